//! Mirostat: truncation that steers towards a chosen surprise
//! (Basu et al., <https://arxiv.org/abs/2007.14966>).
use super::candidates::{Candidates, sort};
use super::rng::Rng;
use super::truncation::keep_largest;

/// Tokens from which Mirostat 1 estimates the exponent of Zipf's law.
const ESTIMATED_FROM: usize = 100;

/// The running bound on surprise.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mirostat {
    /// Surprise to aim at, bits.
    tau: f64,
    /// Learning rate.
    eta: f64,
    /// Largest surprise allowed, bits.
    mu: f64,
}

impl Mirostat {
    pub(super) fn new(tau: f32, eta: f32) -> Self {
        let (tau, eta) = (f64::from(tau), f64::from(eta));
        Self { tau, eta, mu: 2.0 * tau }
    }

    /// Mirostat 1: estimates Zipf's exponent s, then keeps the k tokens that give the surprise mu
    /// in a vocabulary of `n_vocab` tokens.
    pub(super) fn draw_v1(
        &mut self,
        candidates: &mut Candidates<'_>,
        n_vocab: usize,
        rng: &mut Rng,
    ) -> u32 {
        let s = zipf_exponent(candidates);
        let epsilon = s - 1.0;
        // The limit for s = 1, where the formula reads 0 / 0.
        let factor = if epsilon.abs() < 1e-9 {
            1.0 / (n_vocab as f64).ln()
        } else {
            epsilon / (1.0 - (n_vocab as f64).powf(-epsilon))
        };
        let k = (factor * self.mu.exp2()).powf(1.0 / s);
        keep_largest(candidates, (k as usize).max(1)); // NaN as usize is 0
        self.draw(candidates, rng)
    }

    /// Mirostat 2: keeps the tokens whose surprise is at most mu, or else the best one.
    pub(super) fn draw_v2(&mut self, candidates: &mut Candidates<'_>, rng: &mut Rng) -> u32 {
        let max = candidates.max();
        let best_surprise = candidates.mass(max).log2();
        if best_surprise <= self.mu {
            let distance = (self.mu - best_surprise) * std::f64::consts::LN_2;
            candidates.keep((f64::from(max) - distance) as f32, |_, _| true);
        } else {
            candidates.keep_best();
        }
        self.draw(candidates, rng)
    }

    fn draw(&mut self, candidates: &mut Candidates<'_>, rng: &mut Rng) -> u32 {
        let (id, probability) = candidates.draw(rng);
        let error = -probability.log2() - self.tau;
        self.mu -= self.eta * error;
        id
    }
}

/// Least-squares estimate of s in p(i) ∝ i^-s from the most probable tokens (equation 30 of the
/// paper): Σ t b / Σ t² with t = ln((i + 1) / i), b = ln(p(i) / p(i + 1)).
fn zipf_exponent(candidates: &mut Candidates<'_>) -> f64 {
    // Ratios of probabilities are differences of logits, so the weight can carry the logit.
    let ranked = candidates.largest(ESTIMATED_FROM, |x| x);
    sort(ranked);
    let top = &ranked[..ranked.len().min(ESTIMATED_FROM)];
    let (mut t_b, mut t_t) = (0.0, 0.0);
    for (i, pair) in top.windows(2).enumerate() {
        let t = ((i as f64 + 2.0) / (i as f64 + 1.0)).ln();
        let b = f64::from(pair[0].weight) - f64::from(pair[1].weight);
        t_b += t * b;
        t_t += t * t;
    }
    t_b / t_t
}

#[cfg(test)]
mod tests {
    use super::super::candidates::Buffers;
    use super::*;

    /// Zipfian logits, in no order.
    fn zipf(n: usize, exponent: f64) -> Vec<f32> {
        let place = |i: usize| (i * 7919 % n + 1) as f64;
        (0..n).map(|i| (-exponent * place(i).ln()) as f32).collect()
    }

    /// One step of the paper's algorithm on sorted probabilities; returns the token and the new mu.
    fn step(version: u8, logits: &[f32], tau: f64, eta: f64, mu: f64, u: f64) -> (u32, f64) {
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let mut tokens: Vec<(u32, f64)> =
            (0..).zip(logits.iter().map(|&x| f64::from(x).exp() / total)).collect();
        tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if version == 1 {
            let (mut numerator, mut denominator) = (0.0, 0.0);
            for i in 1..100 {
                let t = ((i as f64 + 1.0) / i as f64).ln();
                numerator += t * (tokens[i - 1].1 / tokens[i].1).ln();
                denominator += t * t;
            }
            let s = numerator / denominator;
            let n = logits.len() as f64;
            let k = ((s - 1.0) * 2f64.powf(mu) / (1.0 - n.powf(1.0 - s))).powf(1.0 / s);
            tokens.truncate((k as usize).max(1));
        } else {
            let kept = tokens.iter().take_while(|token| -token.1.log2() <= mu).count();
            tokens.truncate(kept.max(1));
        }
        tokens.sort_by_key(|token| token.0);
        let total: f64 = tokens.iter().map(|token| token.1).sum();
        let mut below = 0.0;
        let drawn = tokens.iter().find(|token| {
            below += token.1 / total;
            below > u
        });
        let &(id, p) = drawn.unwrap_or(&tokens[tokens.len() - 1]);
        (id, mu - eta * (-(p / total).log2() - tau))
    }

    fn check(version: u8, tau: f32) {
        let logits = zipf(2000, 1.1);
        let mut mirostat = Mirostat::new(tau, 0.1);
        let (mut rng, mut same) = (Rng::new(9), Rng::new(9));
        let mut mu = 2.0 * f64::from(tau);
        let mut surprises = Vec::new();
        for i in 0..3000 {
            let mut buffers = Buffers::default();
            let mut candidates = Candidates::new(&logits, &mut buffers);
            let id = match version {
                1 => mirostat.draw_v1(&mut candidates, logits.len(), &mut rng),
                _ => mirostat.draw_v2(&mut candidates, &mut rng),
            };
            let (expected, new_mu) =
                step(version, &logits, f64::from(tau), f64::from(0.1f32), mu, same.uniform());
            assert_eq!(id, expected, "version {version}, tau {tau}, token {i}");
            assert!((mirostat.mu - new_mu).abs() < 1e-3, "mu {} {new_mu}", mirostat.mu);
            // mu = mu - eta * (surprise - tau)
            surprises.push((mu - new_mu) / f64::from(0.1f32) + f64::from(tau));
            mu = mirostat.mu;
        }
        let settled = &surprises[500..];
        let mean = settled.iter().sum::<f64>() / settled.len() as f64;
        assert!((mean - f64::from(tau)).abs() < 0.1, "version {version}: {mean} bits for {tau}");
    }

    #[test]
    fn mirostat_follows_the_paper_and_reaches_its_target() {
        for tau in [2.0, 5.0] {
            check(1, tau);
            check(2, tau);
        }
    }

    #[test]
    fn degenerate_distributions_give_a_token() {
        for logits in [&[][..], &[1.0], &[1.0, 1.0], &[0.0; 300], &[f32::NEG_INFINITY; 4]] {
            let mut mirostat = Mirostat::new(5.0, 0.1);
            let mut rng = Rng::new(0);
            for n_vocab in [0, 1, logits.len()] {
                let mut buffers = Buffers::default();
                let mut candidates = Candidates::new(logits, &mut buffers);
                let id = mirostat.draw_v1(&mut candidates, n_vocab, &mut rng);
                assert!((id as usize) < logits.len().max(1));
                let mut candidates = Candidates::new(logits, &mut buffers);
                let id = mirostat.draw_v2(&mut candidates, &mut rng);
                assert!((id as usize) < logits.len().max(1));
            }
        }
    }
}
