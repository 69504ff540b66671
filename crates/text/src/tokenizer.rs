//! Tokenizers.
use hurtle_gguf::Metadata;
use std::borrow::Cow;

/// Why the vocabulary of a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TokenizerError(String); // its owner replaces it by a real enum

/// How to encode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Encode {
    /// Add BOS / EOS (CLS / SEP ...) as the model's metadata says.
    pub add_special: bool,
    /// Text that spells a special (control) token becomes that token.
    pub parse_special: bool,
}

/// A tokenizer built from GGUF metadata.
#[derive(Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Builds the tokenizer that `tokenizer.ggml.*` describes.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let _ = metadata;
        todo!()
    }
    /// The ids of `text`, equal to llama.cpp's.
    pub fn encode(&self, text: &str, how: Encode) -> Vec<u32> {
        let _ = (text, how);
        todo!()
    }
    /// As `encode` with `parse_special`, for a rendered prompt in which the caller has put
    /// `guard` characters inside texts that must not be read as special tokens (see
    /// [`crate::ChatTemplate::render_guarded`]): a special token is not matched across a guard,
    /// then the guards vanish and the text around them is encoded as if they had never been there.
    pub fn encode_guarded(&self, text: &str, guard: char, add_special: bool) -> Vec<u32> {
        let _ = (text, guard, add_special);
        todo!()
    }
    /// Texts of all tokens that `parse_special` would match in a text (control, user-defined ...),
    /// for the guard.
    pub fn special_texts(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }
    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        todo!()
    }
    /// The id whose vocabulary entry is exactly `text`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        let _ = text;
        todo!()
    }
    /// What the token adds to an output text: empty for control tokens unless `special`.
    /// An id outside the vocabulary gives nothing.
    pub fn token_bytes(&self, id: u32, special: bool) -> Cow<'_, [u8]> {
        let _ = (id, special);
        todo!()
    }
    /// The vocabulary entry as the file has it, for display.
    pub fn token_text(&self, id: u32) -> Option<Cow<'_, str>> {
        let _ = id;
        todo!()
    }
    /// True if the token ends generation (EOS, EOT, EOM ... as llama.cpp decides).
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        let _ = id;
        todo!()
    }
    /// Every end-of-generation id.
    pub fn end_of_generation(&self) -> &[u32] {
        todo!()
    }
    /// Beginning-of-sequence id.
    pub fn bos(&self) -> Option<u32> {
        todo!()
    }
    /// End-of-sequence id.
    pub fn eos(&self) -> Option<u32> {
        todo!()
    }
    /// Whether `add_special` puts BOS first.
    pub fn adds_bos(&self) -> bool {
        todo!()
    }
    /// Whether `add_special` puts EOS last.
    pub fn adds_eos(&self) -> bool {
        todo!()
    }
    /// The text of `ids` as llama.cpp's llama_detokenize gives it (`remove_special` false,
    /// `unparse_special` = `special`), with bytes that are no UTF-8 replaced.
    pub fn decode(&self, ids: &[u32], special: bool) -> String {
        let _ = (ids, special);
        todo!()
    }
}

/// Turns tokens into text one by one and never emits half a character.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder that starts in the middle of a text (a continuation keeps its leading space);
    /// `special` shows control tokens.
    pub fn new(tokenizer: &'a Tokenizer, special: bool) -> Self {
        let _ = special;
        Self { tokenizer }
    }
    /// The text that became complete with this token; may be empty.
    pub fn push(&mut self, id: u32) -> String {
        let _ = (id, self.tokenizer);
        todo!()
    }
    /// What is left, incomplete characters replaced by U+FFFD.
    pub fn finish(self) -> String {
        todo!()
    }
}
