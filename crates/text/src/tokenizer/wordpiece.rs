//! WordPiece (BERT): words are split off at white space and punctuation, then taken apart greedily
//! into the longest tokens. A word that does not come out even is unknown.

use super::trie::Trie;
use super::unicode::{self, CONTROL, MARK, PUNCTUATION, SPACE, SYMBOL};
use super::vocab::Vocab;

/// The keys of BERT's normalizer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Normalizer {
    pub(super) lowercase: bool,
    pub(super) strip_accents: bool,
}

#[derive(Debug)]
pub(super) struct WordPiece {
    tokens: Trie,
    normalizer: Normalizer,
}

impl WordPiece {
    pub(super) fn new(vocab: &Vocab, normalizer: Normalizer) -> Self {
        Self { tokens: Trie::new(vocab.ids().map(|id| (vocab.text(id), id))), normalizer }
    }

    pub(super) fn encode(&self, text: &[u8], unknown: Option<u32>, out: &mut Vec<u32>) {
        let classes = unicode::classes();
        // Tokens that start a word are spelled with U+2581 in front.
        const START: &str = "\u{2581}";
        let mut word = String::from(START);
        let mut finish = |word: &mut String| {
            if word.len() > START.len() {
                self.encode_word(word.as_bytes(), unknown, out);
                word.truncate(START.len());
            }
        };
        for c in String::from_utf8_lossy(text).chars() {
            let Normalizer { lowercase, strip_accents } = self.normalizer;
            let c = if strip_accents { unicode::base_char(c) } else { c };
            let class = classes[c as usize];
            let is = |bits| class & bits != 0;
            if is(SPACE) {
                finish(&mut word);
                continue;
            }
            if matches!(c, '\0' | '\u{fffd}') || is(CONTROL) || (strip_accents && is(MARK)) {
                continue;
            }
            let alone = is(PUNCTUATION) || (c.is_ascii() && is(SYMBOL)) || is_ideograph(c);
            if alone {
                finish(&mut word);
            }
            word.push(if lowercase { unicode::lower(c) } else { c });
            if alone {
                finish(&mut word);
            }
        }
        finish(&mut word);
    }

    fn encode_word(&self, word: &[u8], unknown: Option<u32>, out: &mut Vec<u32>) {
        let n_before = out.len();
        let mut rest = word;
        while !rest.is_empty() {
            let Some((len, id)) = self.tokens.prefixes(rest).last() else {
                out.truncate(n_before);
                out.extend(unknown);
                return;
            };
            out.push(id);
            rest = &rest[len..];
        }
    }
}

/// The blocks that BERT's tokenizer calls Chinese. (The sixth starts at U+2B820, but the original
/// has a typing error that vocabularies depend on.)
fn is_ideograph(c: char) -> bool {
    matches!(c as u32,
        0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x20000..=0x2a6df | 0x2a700..=0x2b73f
        | 0x2b740..=0x2b81f | 0x2b920..=0x2ceaf | 0xf900..=0xfaff | 0x2f800..=0x2fa1f)
}
