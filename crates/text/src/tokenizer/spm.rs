//! SentencePiece's byte-pair encoding (Llama 2, Gemma): of all neighbours whose concatenation is a
//! token, the one with the highest score merges first. Characters without a token become their
//! bytes.

use super::merge::{NONE, SpaceJoins, Word};
use super::vocab::{Vocab, attr};

#[derive(Debug)]
pub(super) struct Spm {
    /// Tokens of the single bytes.
    bytes: [Option<u32>; 256],
    joins: SpaceJoins,
}

impl Spm {
    pub(super) fn new(vocab: &Vocab) -> Self {
        let byte = |b| vocab.find_byte(b).or_else(|| vocab.find(&[b]));
        Self {
            bytes: std::array::from_fn(|b| byte(b as u8)),
            joins: SpaceJoins::new(vocab.texts()),
        }
    }

    /// Appends the tokens of `text`, in which spaces are still spaces; with `protect` none of them
    /// is a control token.
    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        text: &[u8],
        space_prefix: bool,
        protect: bool,
        unknown: Option<u32>,
        out: &mut Vec<u32>,
    ) {
        let text = String::from_utf8_lossy(text);
        let mut escaped = String::with_capacity(text.len() + text.len() / 2);
        for c in space_prefix.then_some(' ').into_iter().chain(text.chars()) {
            escaped.push(if c == ' ' { '\u{2581}' } else { c });
        }
        let token = |text: &[u8]| {
            let id = vocab.find(text)?;
            (!protect || !vocab.has(id, attr::CONTROL)).then_some(id)
        };

        let mut word = Word::default();
        for text in self.joins.split(&escaped) {
            word.clear();
            for c in text.chars() {
                let id = token(c.encode_utf8(&mut [0; 4]).as_bytes());
                word.push(c.len_utf8(), id.unwrap_or(NONE));
            }
            let text = text.as_bytes();
            word.merge(|left, right| {
                let merged = &text[left.start as usize..(right.start + right.len) as usize];
                if merged.len() > vocab.max_len() {
                    return None;
                }
                let id = token(merged)?;
                Some((priority(vocab.score(id)), id))
            });
            for symbol in word.symbols() {
                if symbol.id == NONE {
                    let bytes = symbol.of(text).iter();
                    out.extend(bytes.filter_map(|&b| self.bytes[usize::from(b)].or(unknown)));
                } else {
                    out.push(symbol.id);
                }
            }
        }
    }
}

/// Lower for higher scores; NaN last.
fn priority(score: f32) -> u32 {
    if score.is_nan() {
        return u32::MAX;
    }
    // Adding zero makes -0 the same as 0. The bits of positive floats are ordered as integers,
    // those of negative ones the other way round.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_scores_come_first() {
        let scores =
            [f32::INFINITY, 3.0, 1e-30, 0.0, -1e-30, -2.5, -1e9, f32::NEG_INFINITY, f32::NAN];
        assert!(scores.is_sorted_by(|&a, &b| priority(a) < priority(b)));
        assert_eq!(priority(-0.0), priority(0.0));
    }
}
