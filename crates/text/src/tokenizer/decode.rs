//! From tokens back to text.

use super::byte_alphabet::byte_of;
use super::vocab::attr;
use super::{Algorithm, Tokenizer, rwkv};

impl Tokenizer {
    /// What the token adds to an output text: empty for control tokens unless `special`.
    /// An id outside the vocabulary gives nothing.
    pub fn token_bytes(&self, id: u32, special: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.push_bytes(id, special, &mut bytes);
        bytes
    }

    /// Appends [`token_bytes`](Self::token_bytes) to `out`.
    fn push_bytes(&self, id: u32, special: bool, out: &mut Vec<u8>) {
        let vocab = &self.vocab;
        let text = vocab.text(id);
        let is = |bits| vocab.has(id, bits);
        if id as usize >= vocab.n_tokens() || (!special && is(attr::CONTROL | attr::UNKNOWN)) {
            return;
        }
        match &self.algorithm {
            Algorithm::Rwkv(_) => rwkv::unescape(text, out),
            Algorithm::Plamo2(_) => match hex_byte(text) {
                Some(byte) if is(attr::BYTE) => out.push(byte),
                _ => out.extend_from_slice(text),
            },
            _ if is(attr::CONTROL | attr::UNKNOWN | attr::USER_DEFINED) => {
                out.extend_from_slice(text);
            }
            Algorithm::Bpe(bpe) if is(attr::NORMAL) && bpe.pre.byte_level => unspell(text, out),
            Algorithm::Bpe(bpe) if is(attr::NORMAL) && !bpe.pre.escape_spaces => {
                out.extend_from_slice(text);
            }
            _ if is(attr::NORMAL) => unescape_spaces(text, out),
            _ if is(attr::BYTE) => out.extend(hex_byte(text)),
            _ => {}
        }
    }

    /// The text of `ids` as llama.cpp's llama_detokenize gives it (`remove_special` false,
    /// `unparse_special` = `special`), with bytes that are no UTF-8 replaced.
    ///
    /// Where the tokenizer puts a space in front of a text, the first token loses it again; some
    /// tokenizers also tidy spaces before punctuation. A [`StreamDecoder`] does neither.
    pub fn decode(&self, ids: &[u32], special: bool) -> String {
        let mut bytes = Vec::new();
        for (i, &id) in ids.iter().enumerate() {
            self.push_bytes(id, special, &mut bytes);
            if i == 0 && self.space_prefix && bytes.first() == Some(&b' ') {
                bytes.remove(0);
            }
        }
        if self.clean_spaces {
            bytes = clean_spaces(&bytes);
        }
        String::from_utf8(bytes)
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }
}

/// The byte that `<0xHH>` names.
fn hex_byte(text: &[u8]) -> Option<u8> {
    let digit = |i| char::from(*text.get(i)?).to_digit(16);
    Some((digit(3)? << 4 | digit(4)?) as u8)
}

/// From GPT-2's alphabet for bytes; a character outside of it stands for itself.
fn unspell(text: &[u8], out: &mut Vec<u8>) {
    for c in String::from_utf8_lossy(text).chars() {
        match byte_of(c) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// U+2581 is a space.
fn unescape_spaces(text: &[u8], out: &mut Vec<u8>) {
    const ESCAPED: &[u8] = "\u{2581}".as_bytes();
    let mut rest = text;
    while let Some(&first) = rest.first() {
        rest = match rest.strip_prefix(ESCAPED) {
            Some(after) => {
                out.push(b' ');
                after
            }
            None => {
                out.push(first);
                &rest[1..]
            }
        };
    }
}

/// Drops the space before `?`, `!`, `.`, `,`; then those around a lone apostrophe; then the one
/// before `'s`, `'m`, `'re` and `'ve`.
fn clean_spaces(text: &[u8]) -> Vec<u8> {
    let rewrite = |text: &[u8], drops_space: fn(&[u8]) -> bool| {
        let mut out: Vec<u8> = Vec::with_capacity(text.len());
        for (i, &b) in text.iter().enumerate() {
            if i > 0 && text[i - 1] == b' ' && drops_space(&text[i..]) {
                out.pop();
            }
            out.push(b);
        }
        out
    };
    let text = rewrite(text, |rest| matches!(rest, [b'?' | b'!' | b'.' | b',', ..]));

    let mut out: Vec<u8> = Vec::with_capacity(text.len());
    let mut i = 0;
    // The space behind one apostrophe is gone and cannot be before the next.
    let mut after_space = false;
    while i < text.len() {
        let lone = after_space && text[i..].starts_with(b"' ");
        if lone {
            out.pop();
        }
        out.push(text[i]);
        after_space = text[i] == b' ';
        i += if lone { 2 } else { 1 };
    }

    rewrite(&out, |rest| matches!(rest, [b'\'', b's' | b'm', ..] | [b'\'', b'r' | b'v', b'e', ..]))
}

/// Turns tokens into text one by one and never emits half a character.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    special: bool,
    /// Control tokens that are shown nevertheless.
    shown: Vec<u32>,
    /// The beginning of a character, up to three bytes.
    pending: Vec<u8>,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder that starts in the middle of a text (a continuation keeps its leading space);
    /// `special` shows control tokens.
    pub fn new(tokenizer: &'a Tokenizer, special: bool) -> Self {
        Self { tokenizer, special, shown: Vec::new(), pending: Vec::new() }
    }

    /// The same, but these control tokens are shown in any case.
    pub fn showing(mut self, ids: &[u32]) -> Self {
        self.shown = ids.to_vec();
        self
    }

    /// Appends to `text` what became complete with this token, perhaps nothing.
    pub fn push(&mut self, id: u32, text: &mut String) {
        let special = self.special || self.shown.contains(&id);
        self.tokenizer.push_bytes(id, special, &mut self.pending);
        let mut n_done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            n_done += chunk.valid().len();
            let invalid = chunk.invalid();
            // At the end this may be the beginning of a character.
            let is_open = n_done + invalid.len() == self.pending.len()
                && str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if !invalid.is_empty() && !is_open {
                text.push(char::REPLACEMENT_CHARACTER);
                n_done += invalid.len();
            }
        }
        self.pending.drain(..n_done);
    }

    /// What is left, incomplete characters replaced by U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_spaces() {
        let check = |text: &str, expected: &str| {
            assert_eq!(clean_spaces(text.as_bytes()), expected.as_bytes(), "{text}");
        };
        check("", "");
        check(" ", " ");
        check("Hello , world ! What ? No .", "Hello, world! What? No.");
        check("a  . b", "a . b");
        check("rock ' n ' roll", "rock'n'roll");
        check("a ' ' b", "a'' b");
        check(
            "it 's I 'm you 're we 've he 'd can 't I 'll",
            "it's I'm you're we've he 'd can 't I 'll",
        );
        check(" .", ".");
        check("x '", "x '");
    }
}
