//! Tokenizers: text to ids and back, built from the `tokenizer.ggml.*` keys of a GGUF file.
//!
//! Models are trained with a particular cut of text into tokens and degrade with any other, so the
//! ids are those of llama.cpp, including where it deviates from the tokenizer's original.
//!
//! ```text
//! text ──► partition ──► fragments of text ──► pre-tokenizer ──► words ──► merges ──► ids
//!             │                 (BPE only)                                             ▲
//!             └── tokens that the text spells (user-defined, special) ─────────────────┘
//! ```
//!
//! Loading has to be quick, for it delays the first token: the vocabulary is one buffer and one hash
//! table over it ([`vocab`]), nothing is allocated per token.

mod bpe;
mod byte_alphabet;
mod decode;
mod merge;
mod partition;
mod plamo2;
mod pre_tokenizer;
mod rwkv;
mod special;
mod spm;
mod trie;
mod unicode;
mod unicode_data;
mod unigram;
mod vocab;
mod wordpiece;

pub use decode::StreamDecoder;
pub use special::FillInMiddle;

use bpe::{Bpe, Lower};
use hurtle_gguf::Metadata;
use partition::{Fragment, Partition};
use plamo2::Plamo2;
use pre_tokenizer::PreTokenizer;
use rwkv::Rwkv;
use special::Special;
use spm::Spm;
use std::borrow::Cow;
use unigram::{Spaces, Unigram};
use vocab::{Vocab, attr};
use wordpiece::{Normalizer, WordPiece};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";

/// Why the vocabulary of a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A key has a value of another type.
    #[error(transparent)]
    Metadata(#[from] hurtle_gguf::Error),
    /// A key that every tokenizer of this kind has.
    #[error("{key} is missing\nhint: the file has no complete tokenizer; convert the model again")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// The file says that it has no vocabulary.
    #[error(
        "{MODEL} is {model:?}: the file has no vocabulary, only token ids can be used\n\
         hint: convert the model again together with its tokenizer"
    )]
    NoVocabulary {
        /// What it says.
        model: String,
    },
    /// A kind of tokenizer that is not implemented.
    #[error(
        "{MODEL} is {model:?}, which is unknown; known are {known}\n\
         hint: the model may need a newer version of hurtle"
    )]
    UnknownModel {
        /// The value of the key.
        model: String,
        /// What is implemented.
        known: String,
    },
    /// A way of cutting words that is not implemented.
    #[error(
        "{PRE} is {pre:?}, which is unknown; known are {known}\n\
         hint: the model may need a newer version of hurtle; if one of these cuts words in the \
         same way, set the key to it"
    )]
    UnknownPreTokenizer {
        /// The value of the key.
        pre: String,
        /// What is implemented.
        known: String,
    },
    /// An array that has too few elements for the tokens.
    #[error(
        "{key}: expected an element for each of {expected} tokens, found {found}\n\
         hint: the file may be damaged; get it again"
    )]
    ArrayLength {
        /// The key.
        key: &'static str,
        /// Number of tokens.
        expected: usize,
        /// Number of elements.
        found: usize,
    },
    /// Two tokens with one text.
    #[error(
        "{tokens}: tokens {first} and {second} are both {text:?}\n\
         hint: the file may be damaged; get it again",
        tokens = vocab::TOKENS
    )]
    DuplicateToken {
        /// The id of the first.
        first: u32,
        /// The id of the second.
        second: usize,
        /// The text of both.
        text: String,
    },
    /// The normalization table is damaged.
    #[error(
        "tokenizer.ggml.precompiled_charsmap {problem}\nhint: the file may be damaged; get it again"
    )]
    Charsmap {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A vocabulary that has to have a token for each byte lacks one.
    #[error("{tokens}: there is no byte token <0x{byte:02X}>", tokens = vocab::TOKENS)]
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// More than 4 GiB of text or 4 billion merges.
    #[error("the vocabulary is larger than 4 GiB\nhint: the file may be damaged; get it again")]
    TooLarge,
}

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
pub struct Tokenizer {
    vocab: Vocab,
    algorithm: Algorithm,
    partition: Partition,
    special: Special,
    /// A text gets a space in front, which decoding takes away.
    space_prefix: bool,
    /// Decoding tidies spaces before punctuation.
    clean_spaces: bool,
}

/// How text between special tokens is cut.
#[derive(Debug)]
enum Algorithm {
    Spm(Box<Spm>),
    Bpe(Box<Bpe>),
    WordPiece(WordPiece),
    Unigram(Unigram),
    Rwkv(Rwkv),
    Plamo2(Plamo2),
}

/// Values of [`MODEL`].
const MODELS: &[&str] = &["llama", "gpt2", "gemma4", "whitespace", "bert", "t5", "rwkv", "plamo2"];

impl Tokenizer {
    /// Builds the tokenizer that `tokenizer.ggml.*` describes.
    ///
    /// # Errors
    ///
    /// If a needed key is missing, has another type or length than it should, or names a tokenizer
    /// or pre-tokenizer that is not implemented, or if two tokens are equal.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let model = metadata.string(MODEL)?.ok_or(TokenizerError::Missing { key: MODEL })?;
        if matches!(model, "none" | "no_vocab") {
            return Err(TokenizerError::NoVocabulary { model: shown(model) });
        }
        if !MODELS.contains(&model) {
            return Err(TokenizerError::UnknownModel {
                model: shown(model),
                known: MODELS.join(", "),
            });
        }

        let flag = |key, default| Ok::<_, TokenizerError>(metadata.bool(key)?.unwrap_or(default));
        let space_prefix = flag("tokenizer.ggml.add_space_prefix", model == "llama")?;
        let mut vocab = Vocab::from_metadata(metadata)?;
        let mut special = Special::default();
        let mut clean_spaces = false;
        let normalizer = |lowercase| {
            let lowercase = flag("tokenizer.ggml.normalizer.lowercase", lowercase)?;
            let strip_accents = flag("tokenizer.ggml.normalizer.strip_accents", lowercase)?;
            Ok::<_, TokenizerError>(Normalizer { lowercase, strip_accents })
        };
        let algorithm = match model {
            "llama" => {
                (special.bos, special.eos, special.unknown) = (Some(1), Some(2), Some(0));
                special.add_bos = true;
                Algorithm::Spm(Box::new(Spm::new(&vocab)))
            }
            "bert" => {
                (special.bos, special.separator) = (Some(101), Some(102));
                (special.unknown, special.mask) = (Some(100), Some(103));
                special.padding = Some(0);
                special.add_bos = true;
                special.add_separator = true;
                clean_spaces = true;
                Algorithm::WordPiece(WordPiece::new(&vocab, normalizer(true)?))
            }
            "t5" => {
                (special.eos, special.unknown, special.padding) = (Some(1), Some(2), Some(0));
                special.add_eos = true;
                let merge = flag("tokenizer.ggml.remove_extra_whitespaces", false)?;
                let spaces = Spaces { prefix: space_prefix, merge };
                Algorithm::Unigram(Unigram::new(metadata, &vocab, spaces)?)
            }
            "rwkv" => Algorithm::Rwkv(Rwkv::new(&vocab)),
            "plamo2" => {
                (special.bos, special.eos, special.unknown) = (Some(1), Some(2), Some(0));
                special.padding = Some(3);
                Algorithm::Plamo2(Plamo2::new(&vocab)?)
            }
            _ => {
                let name = if model == "gemma4" { Some(model) } else { metadata.string(PRE)? };
                let pre = PreTokenizer::by_name(name).ok_or_else(|| {
                    TokenizerError::UnknownPreTokenizer {
                        pre: shown(name.unwrap_or_default()),
                        known: PreTokenizer::names().collect::<Vec<_>>().join(", "),
                    }
                })?;
                if model != "gemma4" {
                    special.bos = (!pre.no_default_bos).then_some(11);
                    special.eos = Some(11);
                }
                special.add_bos = pre.add_bos;
                special.add_separator = pre.add_sep;
                clean_spaces = pre.clean_spaces;
                let lower = name != Some("whitespace");
                let whitespace = match model {
                    "whitespace" => Some(Lower(normalizer(lower)?.lowercase)),
                    _ => None,
                };
                let needs_merges = name != Some("kimi-k2");
                let bpe = Bpe::new(metadata, &mut vocab, pre, needs_merges, whitespace)?;
                Algorithm::Bpe(Box::new(bpe))
            }
        };
        special.complete(metadata, &mut vocab)?;
        match &algorithm {
            Algorithm::Bpe(bpe) => special.add_bos |= bpe.pre.gemma4,
            Algorithm::WordPiece(_) => (special.add_bos, special.add_eos) = (true, false),
            Algorithm::Rwkv(_) | Algorithm::Plamo2(_) => {
                (special.add_bos, special.add_eos) = (false, false);
            }
            Algorithm::Spm(_) | Algorithm::Unigram(_) => {}
        }
        let partition = Partition::new(&vocab);
        special::set_strip_attributes(metadata, &mut vocab)?;
        Ok(Self { vocab, algorithm, partition, special, space_prefix, clean_spaces })
    }

    /// The ids of `text`, equal to llama.cpp's.
    pub fn encode(&self, text: &str, how: Encode) -> Vec<u32> {
        self.encode_parts(text.as_bytes(), &[], how, false)
    }

    /// As `encode` with `parse_special`, for a rendered prompt in which the caller has put
    /// `guard` characters inside texts that must not be read as special tokens (see
    /// [`crate::ChatTemplate::render_guarded`]): a special token is not matched across a guard,
    /// then the guards vanish and the text around them is encoded as if they had never been there.
    ///
    /// Special are the tokens of [`Tokenizer::special_texts`]; other user-defined tokens (tabs, HTML
    /// tags) are matched as in any text. No merge results in a control token either.
    pub fn encode_guarded(&self, text: &str, guard: char, add_special: bool) -> Vec<u32> {
        let mut unguarded = String::with_capacity(text.len());
        let mut guards = Vec::new();
        for part in text.split(guard) {
            guards.push(unguarded.len());
            unguarded.push_str(part);
        }
        let how = Encode { add_special, parse_special: true };
        // The first part has no guard before it, but nothing can be matched across its start.
        self.encode_parts(unguarded.as_bytes(), &guards, how, true)
    }

    fn encode_parts(&self, text: &[u8], guards: &[usize], how: Encode, protect: bool) -> Vec<u32> {
        let Self { vocab, special, .. } = self;
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        if how.add_special && special.add_bos {
            out.extend(special.bos);
        }
        let mut after_token = true;
        for fragment in self.partition.split(vocab, text, guards, how.parse_special) {
            match fragment {
                Fragment::Token(id) => {
                    out.push(id);
                    after_token = true;
                }
                Fragment::Text(range) => {
                    for piece in pieces(&text[range]) {
                        self.encode_text(piece, after_token, protect, &mut out);
                        after_token = false;
                    }
                }
            }
        }
        if how.add_special {
            match self.algorithm {
                Algorithm::WordPiece(_) => out.extend(special.separator),
                _ if special.add_eos => out.extend(special.eos),
                _ => {}
            }
        }
        out
    }

    /// Encodes a text without special tokens that starts the text or follows a token, or does not.
    fn encode_text(&self, text: &[u8], after_token: bool, protect: bool, out: &mut Vec<u32>) {
        let vocab = &self.vocab;
        let unknown = self.special.unknown;
        match &self.algorithm {
            Algorithm::Spm(spm) => {
                let prefix = self.space_prefix && after_token;
                spm.encode(vocab, text, prefix, protect, unknown, out);
            }
            Algorithm::Bpe(bpe) => bpe.encode(vocab, text, protect, out),
            Algorithm::WordPiece(wordpiece) => wordpiece.encode(text, unknown, out),
            Algorithm::Unigram(unigram) => unigram.encode(vocab, text, unknown, out),
            Algorithm::Rwkv(rwkv) => rwkv.encode(text, unknown, out),
            Algorithm::Plamo2(plamo2) => plamo2.encode(vocab, text, out),
        }
    }

    /// Texts of all tokens that a text from outside must not spell, for the guard: control tokens,
    /// and user-defined ones that the file calls control tokens or that look like `<|this|>`.
    pub fn special_texts(&self) -> impl Iterator<Item = &str> {
        let guarded = self.vocab.ids().filter(|&id| self.vocab.has(id, attr::GUARDED));
        guarded.filter_map(|id| str::from_utf8(self.vocab.text(id)).ok())
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.vocab.n_tokens()
    }

    /// The id whose vocabulary entry is exactly `text`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocab.find(text.as_bytes())
    }

    /// The vocabulary entry as the file has it, for display.
    pub fn token_text(&self, id: u32) -> Option<Cow<'_, str>> {
        ((id as usize) < self.n_tokens()).then(|| String::from_utf8_lossy(self.vocab.text(id)))
    }

    /// True for tokens that control the model and are no part of a text (BOS, end of turn ...).
    pub fn is_control(&self, id: u32) -> bool {
        self.vocab.has(id, attr::CONTROL)
    }

    /// True if the token ends generation (EOS, EOT, EOM ... as llama.cpp decides).
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.special.end_of_generation.binary_search(&id).is_ok()
    }

    /// Every end-of-generation id, in ascending order.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.special.end_of_generation
    }

    /// Beginning-of-sequence id.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// End-of-sequence id.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// End-of-turn id.
    pub fn eot(&self) -> Option<u32> {
        self.special.eot
    }

    /// End-of-message id: the model waits for the result of a tool.
    pub fn eom(&self) -> Option<u32> {
        self.special.eom
    }

    /// Id of what no token spells.
    pub fn unknown(&self) -> Option<u32> {
        self.special.unknown
    }

    /// Id between two texts (BERT).
    pub fn separator(&self) -> Option<u32> {
        self.special.separator
    }

    /// Padding id.
    pub fn padding(&self) -> Option<u32> {
        self.special.padding
    }

    /// Id of a gap to guess (BERT).
    pub fn mask(&self) -> Option<u32> {
        self.special.mask
    }

    /// Ids for filling in the middle of a text.
    pub fn fill_in_middle(&self) -> FillInMiddle {
        self.special.fim
    }

    /// Whether `add_special` puts BOS first.
    pub fn adds_bos(&self) -> bool {
        self.special.add_bos && self.special.bos.is_some()
    }

    /// Whether `add_special` puts EOS last.
    pub fn adds_eos(&self) -> bool {
        self.special.add_eos && self.special.eos.is_some()
    }

    /// Whether a separator belongs between two texts that are ranked against each other.
    pub fn adds_separator(&self) -> bool {
        self.special.add_separator && self.special.separator.is_some()
    }
}

/// As much of a text from a file as a message can show.
fn shown(text: &str) -> String {
    const MAX: usize = 60;
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Cuts texts so large that offsets in them would not fit, at a character.
fn pieces(mut text: &[u8]) -> impl Iterator<Item = &[u8]> {
    const MAX: usize = 1 << 30;
    std::iter::from_fn(move || {
        let is_start = |&i: &usize| text.get(i).is_none_or(|&b| b & 0xc0 != 0x80);
        let end = (MAX..MAX + 4).find(is_start).unwrap_or(MAX).min(text.len());
        let (piece, rest) = text.split_at(end);
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}
