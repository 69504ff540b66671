//! PLaMo 2's tokenizer: the cut with the highest sum of scores, found from right to left, with bytes
//! for characters that no token covers. Scores are fixed-point numbers, as in the original.

use super::TokenizerError;
use super::trie::Trie;
use super::vocab::{Vocab, attr};

#[derive(Debug)]
pub(super) struct Plamo2 {
    tokens: Trie,
    /// Tokens of the single bytes.
    bytes: Vec<u32>,
}

/// A token that scores no more than this is never used.
const INVALID_SCORE: i64 = -20_000_000;
const UNKNOWN_SCORE: i64 = -10_000_000;

impl Plamo2 {
    pub(super) fn new(vocab: &Vocab) -> Result<Self, TokenizerError> {
        let bytes = (0..=255).map(|byte| {
            let id = vocab.find_byte(byte).filter(|&id| vocab.has(id, attr::BYTE));
            id.ok_or(TokenizerError::MissingByte { byte })
        });
        let bytes = bytes.collect::<Result<_, _>>()?;
        let usable = |&id: &u32| !vocab.has(id, attr::BYTE) && score(vocab, id).is_some();
        let tokens = Trie::new(vocab.ids().filter(usable).map(|id| (vocab.text(id), id)));
        Ok(Self { tokens, bytes })
    }

    pub(super) fn encode(&self, vocab: &Vocab, text: &[u8], out: &mut Vec<u32>) {
        let text = String::from_utf8_lossy(text);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let bytes = text.as_bytes();

        /// The best way from an offset to the end: the cost of all of it, and the first token.
        #[derive(Clone, Copy)]
        struct Best {
            cost: i64,
            len: usize,
            token: Option<u32>,
        }
        let mut best = vec![Best { cost: 0, len: 0, token: None }; bytes.len() + 1];
        for (at, c) in text.char_indices().rev() {
            let len = c.len_utf8();
            // Of equal ways the longest token wins, and any token wins over bytes.
            let mut first = Best { cost: best[at + len].cost - UNKNOWN_SCORE, len, token: None };
            for (len, id) in self.tokens.prefixes(&bytes[at..]) {
                let Some(score) = score(vocab, id) else { continue };
                let Some(rest) = best.get(at + len).filter(|_| text.is_char_boundary(at + len))
                else {
                    continue;
                };
                let cost = rest.cost - score;
                if cost <= first.cost {
                    first = Best { cost, len, token: Some(id) };
                }
            }
            best[at] = first;
        }

        let mut at = 0;
        while at < bytes.len() {
            let Best { len, token, .. } = best[at];
            match token {
                Some(id) => out.push(id),
                None => out.extend(bytes[at..at + len].iter().map(|&b| self.bytes[usize::from(b)])),
            }
            at += len;
        }
    }
}

/// The score of a token in ten-thousandths, `None` if it is never used.
fn score(vocab: &Vocab, id: u32) -> Option<i64> {
    let score = vocab.score(id);
    let fixed = (score * 1e4).round() as i64;
    (score.is_finite() && fixed > INVALID_SCORE).then_some(fixed.min(i64::from(i32::MAX)))
}
