//! Perplexity: how well a model predicts a text, measured as llama-perplexity does.
//!
//! ```text
//! tokens   |--------- chunk 0 ---------|--------- chunk 1 ---------| ... rest unused
//!          |  context   |    scored   .|  context   |    scored   .|
//!          0          n_ctx/2        n_ctx                            . predicts nothing in its chunk
//! ```
//! Each chunk is evaluated on its own, with BOS in place of its first token if the model begins texts with
//! it. The first half only serves as context. perplexity = exp(mean of -ln p(token that follows)).

/// The perplexity so far.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood.
    pub ppl: f64,
    /// Standard error of `ppl`; 0 where there are too few predictions for one.
    pub stderr: f64,
}

/// Sum of negative log-likelihoods.
#[derive(Debug, Clone, Default)]
struct Likelihood {
    count: usize,
    sum: f64,
    sum_of_squares: f64,
}

impl Likelihood {
    fn add(&mut self, nll: f64) {
        self.count += 1;
        self.sum += nll;
        self.sum_of_squares += nll * nll;
    }

    fn perplexity(&self) -> Perplexity {
        let n = self.count as f64;
        let mean = self.sum / n;
        let variance = self.sum_of_squares / n - mean * mean;
        let ppl = mean.exp();
        // The error of the mean, carried through exp.
        let stderr =
            if self.count > 1 && variance > 0.0 { (variance / (n - 1.0)).sqrt() * ppl } else { 0.0 };
        Perplexity { ppl, stderr }
    }
}

/// Measures the perplexity of `ids` in chunks of `n_ctx` tokens (at least 2, else nothing is scored),
/// the first `max_chunks` of them.
///
/// `bos` replaces the first token of each chunk. `score` evaluates a sequence and calls back with each
/// position from the given one on and its logits, `[n_vocab]`. `on_chunk` hears the perplexity after each
/// chunk. The result is `None` if the text has no complete chunk.
///
/// # Errors
/// Whatever `score` or `on_chunk` fails with.
pub fn perplexity<E>(
    ids: &[u32],
    n_ctx: usize,
    max_chunks: usize,
    bos: Option<u32>,
    score: &mut dyn FnMut(&[u32], usize, &mut dyn FnMut(usize, &[f32])) -> Result<(), E>,
    on_chunk: &mut dyn FnMut(Perplexity) -> Result<(), E>,
) -> Result<Option<Perplexity>, E> {
    if n_ctx < 2 {
        return Ok(None);
    }
    let mut likelihood = Likelihood::default();
    let mut result = None;
    for chunk in ids.chunks_exact(n_ctx).take(max_chunks) {
        let mut tokens = chunk.to_vec();
        if let Some(bos) = bos {
            tokens[0] = bos;
        }
        // The last token predicts one of the next chunk, which is not scored.
        score(&tokens, n_ctx / 2, &mut |position, logits| {
            if let Some(&next) = chunk.get(position + 1) {
                likelihood.add(negative_log_likelihood(logits, next));
            }
        })?;
        let so_far = likelihood.perplexity();
        on_chunk(so_far)?;
        result = Some(so_far);
    }
    Ok(result)
}

/// -ln softmax(logits)[id]; infinite for an id that has no logit.
fn negative_log_likelihood(logits: &[f32], id: u32) -> f64 {
    let Some(&logit) = usize::try_from(id).ok().and_then(|id| logits.get(id)) else {
        return f64::INFINITY;
    };
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    sum.ln() - f64::from(logit - max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// A model of four tokens that gives the token after `t` the logit `3 * (t + 1 == next)`.
    fn counts_up(
        ids: &[u32],
        from: usize,
        f: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Infallible> {
        for (position, &id) in ids.iter().enumerate().skip(from) {
            let mut logits = [0.0; 4];
            logits[(id as usize + 1) % 4] = 3.0;
            f(position, &logits);
        }
        Ok(())
    }

    fn measure(ids: &[u32], n_ctx: usize, chunks: usize) -> (Option<Perplexity>, Vec<f64>) {
        let mut cumulative = Vec::new();
        let mut note = |p: Perplexity| {
            cumulative.push(p.ppl);
            Ok(())
        };
        let result = perplexity(ids, n_ctx, chunks, None, &mut counts_up, &mut note);
        let Ok(result) = result;
        (result, cumulative)
    }

    #[test]
    fn a_perfect_and_a_poor_prediction() {
        let hit = (3f64.exp() + 3.0) / 3f64.exp();
        let miss = 3f64.exp() + 3.0;
        // Positions 2 and 3 of 4; position 3 predicts nothing in the chunk.
        let (result, _) = measure(&[3, 3, 0, 1], 4, 9);
        assert!((result.expect("a chunk").ppl - hit).abs() < 1e-12);
        assert_eq!(result.expect("a chunk").stderr, 0.0);

        let (result, cumulative) = measure(&[0, 1, 2, 3, 0, 0, 0, 0, 1], 4, 9);
        let both = (hit * miss).sqrt();
        assert!((cumulative[0] - hit).abs() < 1e-12);
        assert!((cumulative[1] - both).abs() < 1e-12);
        let result = result.expect("two chunks");
        assert_eq!(result.ppl, cumulative[1]);
        // Two values a, b: standard error of the mean |a - b| / 2.
        assert!((result.stderr - both * (miss.ln() - hit.ln()) / 2.0).abs() < 1e-9);
    }

    #[test]
    fn chunks_are_cut_and_limited() {
        let check = |n_ids, n_ctx, chunks, expected| {
            assert_eq!(measure(&vec![1; n_ids], n_ctx, chunks).1.len(), expected);
        };
        check(11, 4, 9, 2);
        check(12, 4, 9, 3);
        check(12, 4, 2, 2);
        check(3, 4, 9, 0);
        check(3, 1, 9, 0);
        check(0, 0, 9, 0);
        assert_eq!(measure(&[1; 3], 4, 9).0, None);
    }

    #[test]
    fn bos_takes_the_first_place() {
        let mut seen = Vec::new();
        let result = perplexity::<Infallible>(
            &[1, 2, 3, 1],
            2,
            9,
            Some(7),
            &mut |ids, from, _| {
                seen.push((ids.to_vec(), from));
                Ok(())
            },
            &mut |_| Ok(()),
        );
        assert!(result.is_ok());
        assert_eq!(seen, [(vec![7, 2], 1), (vec![7, 1], 1)]);
    }

    #[test]
    fn likelihood_is_stable() {
        let check = |logits: &[f32], id, expected: f64| {
            assert!((negative_log_likelihood(logits, id) - expected).abs() < 1e-6, "{logits:?}");
        };
        check(&[0.0, 0.0], 1, 2f64.ln());
        check(&[1e30, 0.0], 0, 0.0);
        check(&[500.0, 501.0], 1, (1.0 + (-1f64).exp()).ln());
        assert_eq!(negative_log_likelihood(&[0.0], 1), f64::INFINITY);
    }
}
