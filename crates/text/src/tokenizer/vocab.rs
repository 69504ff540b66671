//! The tokens of a file: their texts in one buffer, found by text through one hash table.

use super::TokenizerError;
use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};
use hurtle_gguf::{Array, Metadata, Value};
use std::hash::BuildHasher;

/// What kind of token it is, as bits: some files call a token several things at once.
pub(super) mod attr {
    pub(in super::super) const UNKNOWN: u16 = 1 << 0;
    pub(in super::super) const UNUSED: u16 = 1 << 1;
    pub(in super::super) const NORMAL: u16 = 1 << 2;
    /// Never written by a text, only by `parse_special`.
    pub(in super::super) const CONTROL: u16 = 1 << 3;
    /// Found in any text before anything else.
    pub(in super::super) const USER_DEFINED: u16 = 1 << 4;
    pub(in super::super) const BYTE: u16 = 1 << 5;
    /// Swallows white space before it.
    pub(in super::super) const LSTRIP: u16 = 1 << 6;
    /// Swallows white space after it.
    pub(in super::super) const RSTRIP: u16 = 1 << 7;
    /// A text from outside must not spell it, see `Tokenizer::encode_guarded`.
    pub(in super::super) const GUARDED: u16 = 1 << 8;
}

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";

/// Texts by id and ids by text.
///
/// Ids from [`Vocab::n_tokens`] on are no tokens: they name the strings that occur only in BPE
/// merges (see [`Vocab::intern`]).
#[derive(Debug)]
pub(super) struct Vocab {
    bytes: Vec<u8>,
    /// Where each text ends in `bytes`; it starts where the one before ends.
    ends: Vec<u32>,
    /// `[n_tokens]`, bits of [`attr`].
    attrs: Vec<u16>,
    /// `[n_tokens]`, 0 without scores.
    scores: Vec<f32>,
    by_text: HashTable<u32>,
    hasher: DefaultHashBuilder,
    n_tokens: usize,
    /// Bytes of the longest token.
    max_len: usize,
}

impl Vocab {
    /// Reads `tokens`, `scores` and `token_type`.
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let tokens = metadata.strings(TOKENS)?.ok_or(TokenizerError::Missing { key: TOKENS })?;
        let n_tokens = tokens.len();
        let mut vocab = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(n_tokens),
            attrs: attrs(metadata, n_tokens)?,
            scores: scores(metadata, n_tokens)?,
            by_text: HashTable::with_capacity(n_tokens),
            hasher: DefaultHashBuilder::default(),
            n_tokens,
            max_len: 0,
        };
        for (i, text) in tokens.iter().enumerate() {
            let named;
            let text = if text.is_empty() {
                named = format!("[EMPTY_{i}]");
                named.as_bytes()
            } else {
                text
            };
            let id = vocab.intern(text)?;
            if id as usize != i {
                return Err(TokenizerError::DuplicateToken {
                    first: id,
                    second: i,
                    text: super::shown(&String::from_utf8_lossy(text)),
                });
            }
            vocab.max_len = vocab.max_len.max(text.len());
        }
        Ok(vocab)
    }

    pub(super) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    pub(super) fn max_len(&self) -> usize {
        self.max_len
    }

    /// The text of a token or interned string, empty if there is no such id.
    pub(super) fn text(&self, id: u32) -> &[u8] {
        text_at(&self.bytes, &self.ends, id)
    }

    /// Bits of [`attr`], none if there is no such token.
    pub(super) fn attr(&self, id: u32) -> u16 {
        self.attrs.get(id as usize).copied().unwrap_or(0)
    }

    pub(super) fn has(&self, id: u32, bits: u16) -> bool {
        self.attr(id) & bits != 0
    }

    /// Adds `bits` to what the token is.
    pub(super) fn add_attr(&mut self, id: u32, bits: u16) {
        self.set_attr(id, self.attr(id) | bits);
    }

    /// Makes the token this and nothing else.
    pub(super) fn set_attr(&mut self, id: u32, bits: u16) {
        if let Some(attr) = self.attrs.get_mut(id as usize) {
            *attr = bits;
        }
    }

    pub(super) fn score(&self, id: u32) -> f32 {
        self.scores.get(id as usize).copied().unwrap_or(0.0)
    }

    /// The token of exactly this text.
    pub(super) fn find(&self, text: &[u8]) -> Option<u32> {
        self.find_interned(text).filter(|&id| (id as usize) < self.n_tokens)
    }

    /// The token or interned string of exactly this text.
    pub(super) fn find_interned(&self, text: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(text);
        self.by_text.find(hash, |&id| self.text(id) == text).copied()
    }

    /// The token `<0xHH>` of a byte.
    pub(super) fn find_byte(&self, byte: u8) -> Option<u32> {
        self.find(format!("<0x{byte:02X}>").as_bytes())
    }

    /// The id of `text`, a new one behind the tokens if it has none.
    pub(super) fn intern(&mut self, text: &[u8]) -> Result<u32, TokenizerError> {
        let Self { bytes, ends, by_text, hasher, .. } = self;
        let hash = hasher.hash_one(text);
        let entry = by_text.entry(
            hash,
            |&id| text_at(bytes, ends, id) == text,
            |&id| hasher.hash_one(text_at(bytes, ends, id)),
        );
        match entry {
            Entry::Occupied(found) => Ok(*found.get()),
            Entry::Vacant(free) => {
                let id = ends.len() as u32;
                let end = u32::try_from(bytes.len() + text.len());
                let end = end.map_err(|_| TokenizerError::TooLarge)?;
                bytes.extend_from_slice(text);
                ends.push(end);
                free.insert(id);
                Ok(id)
            }
        }
    }

    /// Texts of all tokens and interned strings.
    pub(super) fn texts(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.ends.len() as u32).map(|id| self.text(id))
    }

    /// All tokens in order.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + use<> {
        0..self.n_tokens as u32
    }
}

fn text_at<'a>(bytes: &'a [u8], ends: &[u32], id: u32) -> &'a [u8] {
    let id = id as usize;
    let Some(&end) = ends.get(id) else { return &[] };
    let start = if id == 0 { 0 } else { ends[id - 1] };
    &bytes[start as usize..end as usize]
}

fn check_length(key: &'static str, expected: usize, found: usize) -> Result<(), TokenizerError> {
    if found < expected {
        return Err(TokenizerError::ArrayLength { key, expected, found });
    }
    Ok(())
}

fn attrs(metadata: &Metadata, n_tokens: usize) -> Result<Vec<u16>, TokenizerError> {
    let Some(types) = metadata.ints(TOKEN_TYPES)? else { return Ok(vec![attr::NORMAL; n_tokens]) };
    check_length(TOKEN_TYPES, n_tokens, types.len())?;
    let attr = |ty: &i64| match ty {
        1 => attr::NORMAL,
        2 => attr::UNKNOWN,
        3 => attr::CONTROL,
        4 => attr::USER_DEFINED,
        5 => attr::UNUSED,
        6 => attr::BYTE,
        _ => 0,
    };
    Ok(types[..n_tokens].iter().map(attr).collect())
}

fn scores(metadata: &Metadata, n_tokens: usize) -> Result<Vec<f32>, TokenizerError> {
    let mut scores = match metadata.get(SCORES) {
        None => return Ok(Vec::new()),
        Some(Value::Array(Array::I32(ints))) => ints.iter().map(|&i| i as f32).collect(),
        Some(_) => metadata.floats(SCORES)?.unwrap_or_default(),
    };
    check_length(SCORES, n_tokens, scores.len())?;
    scores.truncate(n_tokens);
    Ok(scores)
}
