//! SentencePiece's unigram model (T5, XLM-RoBERTa): of all ways to cut the text into tokens, the one
//! with the highest sum of scores, found by dynamic programming from left to right.
//!
//! Before that the text is normalized by a table in the file that maps beginnings of the text to
//! replacements; [`Charsmap`] describes it.

use super::TokenizerError;
use super::trie::Trie;
use super::vocab::{Vocab, attr};
use hurtle_gguf::{Array, Metadata, Value};

const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";

/// How white space is treated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spaces {
    /// Put one in front.
    pub(super) prefix: bool,
    /// Make one of several, drop those at the end.
    pub(super) merge: bool,
}

#[derive(Debug)]
pub(super) struct Unigram {
    tokens: Trie,
    user_defined: Trie,
    charsmap: Charsmap,
    unknown_score: f64,
    spaces: Spaces,
}

impl Unigram {
    pub(super) fn new(
        metadata: &Metadata,
        vocab: &Vocab,
        spaces: Spaces,
    ) -> Result<Self, TokenizerError> {
        let with = |bits| vocab.ids().filter(move |&id| vocab.has(id, bits));
        let trie = |bits| Trie::new(with(bits).map(|id| (vocab.text(id), id)));
        let lowest = with(attr::NORMAL).map(|id| vocab.score(id)).fold(f32::MAX, f32::min);
        Ok(Self {
            tokens: trie(attr::NORMAL | attr::USER_DEFINED | attr::UNUSED),
            user_defined: trie(attr::USER_DEFINED),
            charsmap: Charsmap::from_metadata(metadata)?,
            unknown_score: f64::from(lowest - 10.0),
            spaces,
        })
    }

    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        text: &[u8],
        unknown: Option<u32>,
        out: &mut Vec<u32>,
    ) {
        let text = self.normalize(text);
        let score = |id| {
            // User-defined tokens should win, and the others have negative scores.
            if vocab.has(id, attr::USER_DEFINED) { 0.0 } else { f64::from(vocab.score(id)) }
        };

        /// The best way to get to an offset: its last token (`None`: unknown) and where that starts.
        #[derive(Clone, Copy)]
        struct Best {
            score: f64,
            token: Option<u32>,
            start: usize,
        }
        let unreached = Best { score: -f64::MAX, token: None, start: 0 };
        let mut best = vec![unreached; text.len() + 1];
        best[0].score = 0.0;
        let mut at = 0;
        while at < text.len() {
            let char_len = utf8_len(text[at]).min(text.len() - at);
            let from = best[at].score;
            let mut reach = |end: usize, token, score| {
                if from + score > best[end].score {
                    best[end] = Best { score: from + score, token, start: at };
                }
            };
            let mut whole_char = false;
            for (len, id) in self.tokens.prefixes(&text[at..]) {
                whole_char |= len == char_len;
                reach(at + len, Some(id), score(id));
            }
            if !whole_char {
                reach(at + char_len, None, self.unknown_score);
            }
            at += char_len;
        }

        let n_before = out.len();
        let mut end = text.len();
        let mut after_unknown = false;
        while end > 0 {
            let Best { token, start, .. } = best[end];
            let id = token.or(unknown);
            let is_unknown = id == unknown;
            if !(is_unknown && after_unknown) {
                out.extend(id);
            }
            (end, after_unknown) = (start, is_unknown);
        }
        out[n_before..].reverse();
    }

    fn normalize(&self, text: &[u8]) -> Vec<u8> {
        const SPACE: &[u8] = "\u{2581}".as_bytes();
        let Spaces { prefix, merge } = self.spaces;
        let mut normalized = Vec::with_capacity(text.len() + text.len() / 2);
        let mut prefixed = false;
        let mut in_word = false;
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, n_consumed) = self.normalize_prefix(rest);
            for &b in piece {
                if b != b' ' {
                    if !in_word {
                        in_word = true;
                        if merge || (prefix && !prefixed) {
                            normalized.extend_from_slice(SPACE);
                            prefixed = true;
                        }
                    }
                    normalized.push(b);
                } else {
                    in_word = false;
                    if !merge {
                        normalized.extend_from_slice(SPACE);
                    }
                }
            }
            rest = &rest[n_consumed..];
        }
        normalized
    }

    /// What the beginning of `text` (not empty) becomes, and how long that beginning is.
    fn normalize_prefix<'a>(&'a self, text: &'a [u8]) -> (&'a [u8], usize) {
        // As in the reference, what only begins like a user-defined token is left alone, too.
        let kept = self.user_defined.longest_partial(text);
        if kept > 0 {
            return (&text[..kept], kept);
        }
        if let Some(replaced) = self.charsmap.longest_match(text) {
            return replaced;
        }
        let len = utf8_len(text[0]);
        match text.get(..len) {
            Some(c) if str::from_utf8(c).is_ok() => (c, len),
            _ => ("\u{fffd}".as_bytes(), 1),
        }
    }
}

/// Bytes of the character that starts with `first`, as its high bits promise.
fn utf8_len(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

/// SentencePiece's precompiled normalization: a double-array trie in 32-bit units, then the
/// zero-terminated replacements that its leaves point to.
///
/// A unit holds, from bit 0: the byte that leads to it (8 bits), whether a key ends here (1),
/// whether the offset is shifted by 8 (1), and the offset to its children (22). The unit of a value
/// has bit 31 set and the value below it. A child's index is the parent's index, xor its offset, xor
/// the byte.
#[derive(Debug, Default)]
struct Charsmap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl Charsmap {
    fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let bytes: Vec<u8> = match metadata.get(CHARSMAP) {
            None => return Ok(Self::default()),
            Some(Value::Array(Array::U8(bytes))) => bytes.clone(),
            Some(Value::Array(Array::I8(bytes))) => bytes.iter().map(|&b| b as u8).collect(),
            Some(_) => return Err(TokenizerError::Charsmap { problem: "is no array of bytes" }),
        };
        let Some((n_bytes, rest)) = bytes.split_first_chunk() else {
            return Err(TokenizerError::Charsmap { problem: "is shorter than its header" });
        };
        let n_bytes = u32::from_le_bytes(*n_bytes) as usize;
        let Some((units, replacements)) = rest.split_at_checked(n_bytes) else {
            return Err(TokenizerError::Charsmap { problem: "is shorter than its header says" });
        };
        if replacements.last() != Some(&0) {
            return Err(TokenizerError::Charsmap { problem: "has no end of its last replacement" });
        }
        let units = units.as_chunks().0.iter().map(|&unit| u32::from_le_bytes(unit)).collect();
        Ok(Self { units, replacements: replacements.to_vec() })
    }

    /// The replacement of the longest beginning of `text` that has one, and its length.
    fn longest_match(&self, text: &[u8]) -> Option<(&[u8], usize)> {
        let offset = |unit: u32| unit >> 10 << ((unit & 1 << 9) >> 6);
        let unit = |i: u32| self.units.get(i as usize).copied();
        let mut longest = None;
        let mut node = offset(unit(0)?);
        for (i, &byte) in text.iter().enumerate() {
            node ^= u32::from(byte);
            let Some(found) = unit(node) else { break };
            if byte == 0 || found & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            node ^= offset(found);
            if found >> 8 & 1 == 1 {
                let Some(value) = unit(node) else { break };
                longest = Some((value & !(1 << 31), i + 1));
            }
        }
        let (start, len) = longest?;
        let replacement = self.replacements.get(start as usize..)?;
        let end = replacement.iter().position(|&b| b == 0)?;
        Some((&replacement[..end], len))
    }
}
