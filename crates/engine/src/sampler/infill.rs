//! The link of the chain that editors put behind top-k and top-p when a gap is filled in: it ends early rather than
//! late, and takes tokens that begin alike for one
//! (llama.cpp's `infill`, <https://github.com/ggml-org/llama.cpp/pull/9896>).
//!
//! ```text
//! 3 · P(end) · n > P(text)?  only ends are left
//! "re" 0.3, "ret" 0.2, "return" 0.1  ─►  "re" 0.6: the others go into the most probable
//! p ≥ 0.2, then p ≥ 1 / (1 + texts) of what is left; nothing left: the end
//! ```
use super::Vocabulary;
use super::candidates::Candidates;
use super::softmax::exp;
use super::truncation::keep_largest;
use crate::constraint::TokenMask;

/// Most candidates that are compared with each other; where no link before it leaves fewer, the most probable.
const MOST: usize = 512;
/// What a text has to be as probable as.
const LEAST: f64 = 0.2;

#[derive(Debug, Clone, Copy)]
struct Token {
    id: u32,
    rank: u64,
    /// Its probability, and that of those that it stands for; 0 if another stands for it.
    p: f64,
    ends: bool,
}

/// The texts of a vocabulary, and room for the candidates.
#[derive(Debug, Clone)]
pub(super) struct Infill {
    /// Tokens that end a generation, ascending.
    ends: Vec<u32>,
    /// Texts of all tokens, one after another; those of ends are empty.
    texts: Vec<u8>,
    /// `[n_vocab + 1]`, where each begins.
    offsets: Vec<usize>,
    tokens: Vec<Token>,
}

impl Infill {
    pub(super) fn new(vocabulary: &dyn Vocabulary) -> Self {
        let mut ends = vocabulary.end_of_generation().to_vec();
        ends.sort_unstable();
        let (mut texts, mut offsets) = (Vec::new(), vec![0]);
        for id in 0..vocabulary.n_tokens() as u32 {
            if ends.binary_search(&id).is_err() {
                texts.extend_from_slice(&vocabulary.token_bytes(id));
            }
            offsets.push(texts.len());
        }
        Self { ends, texts, offsets, tokens: Vec::with_capacity(MOST) }
    }

    fn text(&self, id: u32) -> &[u8] {
        let id = id as usize;
        &self.texts[self.offsets[id]..self.offsets[id + 1]]
    }

    /// Leaves those that are to be drawn from; or the end, which need not be a candidate.
    pub(super) fn apply(
        &mut self,
        candidates: &mut Candidates<'_>,
        mask: Option<&TokenMask>,
    ) -> Option<u32> {
        keep_largest(candidates, MOST);
        let max = candidates.max();
        let mass = candidates.mass(max);
        let mut tokens = std::mem::take(&mut self.tokens);
        tokens.clear();
        let ends = |id: u32| self.ends.binary_search(&id).is_ok();
        tokens.extend(candidates.largest(MOST, |x| exp(x - max)).iter().map(|token| Token {
            id: token.id(),
            rank: token.rank,
            p: f64::from(token.weight) / mass,
            ends: ends(token.id()),
        }));
        tokens.sort_unstable_by_key(|token| std::cmp::Reverse(token.rank));
        let end = self.choose(&mut tokens, mask);
        if end.is_none() {
            candidates.keep(f32::NEG_INFINITY, |id, _| tokens.iter().any(|token| token.id == id));
        }
        self.tokens = tokens;
        end
    }

    /// Leaves the tokens to draw from; best first, before and after.
    fn choose(&self, tokens: &mut Vec<Token>, mask: Option<&TokenMask>) -> Option<u32> {
        let sum = |tokens: &[Token], ends: bool| -> f64 {
            tokens.iter().filter(|token| token.ends == ends).map(|token| token.p).sum()
        };
        if 3.0 * sum(tokens, true) * tokens.len() as f64 > sum(tokens, false) {
            tokens.retain(|token| token.ends);
            return None;
        }
        for i in 0..tokens.len() {
            for k in 0..tokens.len() {
                if tokens[i].p == 0.0 {
                    break;
                }
                let (text, other) = (self.text(tokens[i].id), self.text(tokens[k].id));
                if i == k || tokens[k].p == 0.0 || text.is_empty() || !other.starts_with(text) {
                    continue;
                }
                let (to, from) = if tokens[k].p > tokens[i].p { (k, i) } else { (i, k) };
                tokens[to].p += std::mem::take(&mut tokens[from].p);
            }
        }
        let best = tokens.first().copied();
        tokens.retain(|token| token.p >= LEAST || token.ends);
        let n_texts = tokens.iter().filter(|token| !token.ends).count();
        if n_texts == 0 {
            let allowed = |end: &&u32| mask.is_none_or(|mask| mask.contains(**end));
            let end = self.ends.iter().find(allowed).copied();
            // Where nothing may end it goes on as well as it can.
            tokens.clear();
            tokens.extend(best.filter(|_| end.is_none()));
            return end;
        }
        let left: f64 = tokens.iter().map(|token| token.p).sum();
        let least = left / (n_texts + 1) as f64;
        tokens.retain(|token| token.p >= least || token.ends);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::candidates::Buffers;
    use super::super::tests::Words;
    use super::*;

    /// Tokens with their probabilities; what is left of them, or the end. `</s>` has the number 2.
    fn check(words: &[(&str, f32)], expected: Result<&[&str], u32>) {
        let mut all = vec![("?", 0.0), ("!", 0.0), ("</s>", 0.0)];
        for &(word, p) in words {
            match all.iter_mut().find(|(known, _)| *known == word) {
                Some(known) => known.1 = p,
                None => all.push((word, p)),
            }
        }
        let vocabulary = Words(all.iter().map(|(word, _)| (*word).to_owned()).collect());
        let logits: Vec<f32> = all.iter().map(|(_, p)| p.ln()).collect();
        let mut buffers = Buffers::new(logits.len());
        let mut candidates = Candidates::new(&logits, &mut buffers);
        let end = Infill::new(&vocabulary).apply(&mut candidates, None);
        let mut left = Vec::new();
        candidates.for_each(|id, _| left.push(all[id as usize].0));
        let found = end.map_or(Ok(&*left), Err);
        assert_eq!(found, expected, "{words:?}");
    }

    #[test]
    fn what_is_left() {
        // An end that is not improbable enough.
        check(&[("</s>", 0.2), ("a", 0.5), ("b", 0.3)], Ok(&["</s>"]));
        check(&[("</s>", 0.01), ("a", 0.59), ("b", 0.4)], Ok(&["</s>", "a", "b"]));
        // "re", "ret" and "return" are one.
        check(&[("ret", 0.15), ("re", 0.3), ("return", 0.1), ("x", 0.25), ("y", 0.2)], Ok(&["re"]));
        // Nothing is probable.
        check(
            &[
                ("a", 0.1),
                ("b", 0.15),
                ("c", 0.15),
                ("d", 0.15),
                ("e", 0.15),
                ("f", 0.15),
                ("g", 0.15),
            ],
            Err(2),
        );
        check(&[("a", 0.5), ("b", 0.5)], Ok(&["a", "b"]));
    }

    #[test]
    fn where_nothing_may_end_it_goes_on() {
        let words = Words((0..20).map(|i| format!("w{i}x")).collect());
        let (mut infill, logits) = (Infill::new(&words), [0.0; 20]);
        let mut mask = TokenMask::new(20);
        (5..20).for_each(|id| mask.allow(id));
        let mut buffers = Buffers::new(20);
        let mut candidates = Candidates::masked(&logits, mask.words(), &mut buffers);
        assert_eq!(infill.apply(&mut candidates, Some(&mask)), None);
        let mut left = Vec::new();
        candidates.for_each(|id, _| left.push(id));
        assert_eq!(left, [5]);
    }
}
