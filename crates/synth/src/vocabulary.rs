//! A vocabulary that no one trained, of the size and with the special tokens of one that was.
//!
//! A byte-level BPE vocabulary, also where the model's own is of another kind: the 256 bytes, then
//! pairs of small letters, a pair and a letter, two pairs, the shorter ones after a blank too, until
//! the vocabulary is full. Each but the bytes is one merge of two before it. So English has some two
//! letters a token, and a tokenizer has as much to load as that of the real model.

use hurtle_gguf::{Array, Metadata, StringArray};
use hurtle_text::ChatTemplate;
use std::collections::HashMap;

/// What models of one maker share.
#[derive(Debug)]
pub struct Family {
    /// `tokenizer.ggml.pre`.
    pre_tokenizer: &'static str,
    /// Control tokens where the real vocabulary has them.
    special: &'static [(usize, &'static str)],
    bos: usize,
    /// Ends an answer.
    eos: usize,
    /// Texts begin with `bos`.
    adds_bos: bool,
    /// A chat template by name.
    template: &'static str,
}

pub(crate) const SMOLLM2: Family = Family {
    pre_tokenizer: "smollm",
    special: &[(0, "<|endoftext|>"), (1, "<|im_start|>"), (2, "<|im_end|>")],
    bos: 1,
    eos: 2,
    adds_bos: false,
    template: "chatml",
};

pub(crate) const QWEN: Family = Family {
    pre_tokenizer: "qwen2",
    special: &[(151_643, "<|endoftext|>"), (151_644, "<|im_start|>"), (151_645, "<|im_end|>")],
    bos: 151_643,
    eos: 151_645,
    adds_bos: false,
    template: "chatml",
};

pub(crate) const LLAMA3: Family = Family {
    pre_tokenizer: "llama-bpe",
    special: &[
        (128_000, "<|begin_of_text|>"),
        (128_001, "<|end_of_text|>"),
        (128_006, "<|start_header_id|>"),
        (128_007, "<|end_header_id|>"),
        (128_008, "<|eom_id|>"),
        (128_009, "<|eot_id|>"),
    ],
    bos: 128_000,
    eos: 128_009,
    adds_bos: true,
    template: "llama3",
};

pub(crate) const GEMMA3: Family = Family {
    pre_tokenizer: "default",
    special: &[
        (0, "<pad>"),
        (1, "<eos>"),
        (2, "<bos>"),
        (3, "<unk>"),
        (105, "<start_of_turn>"),
        (106, "<end_of_turn>"),
    ],
    bos: 2,
    eos: 106,
    adds_bos: true,
    template: "gemma",
};

pub(crate) const PHI4: Family = Family {
    pre_tokenizer: "gpt-4o",
    special: &[
        (199_999, "<|endoftext|>"),
        (200_018, "<|endofprompt|>"),
        (200_019, "<|assistant|>"),
        (200_020, "<|end|>"),
        (200_021, "<|user|>"),
        (200_022, "<|system|>"),
    ],
    bos: 199_999,
    eos: 200_020,
    adds_bos: false,
    template: "phi3",
};

pub(crate) const GPT_OSS: Family = Family {
    pre_tokenizer: "gpt-4o",
    special: &[
        (199_998, "<|startoftext|>"),
        (199_999, "<|endoftext|>"),
        (200_002, "<|return|>"),
        (200_003, "<|constrain|>"),
        (200_005, "<|channel|>"),
        (200_006, "<|start|>"),
        (200_007, "<|end|>"),
        (200_008, "<|message|>"),
        (200_012, "<|call|>"),
    ],
    bos: 199_998,
    eos: 200_002,
    adds_bos: false,
    template: "gpt-oss",
};

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

impl Family {
    /// The smallest vocabulary that holds the bytes and all special tokens.
    pub fn least_tokens(&self) -> usize {
        let last = self.special.iter().map(|(id, _)| id + 1).max().unwrap_or(0);
        last.max(256 + self.special.len())
    }

    /// The keys of `tokenizer.*` for a vocabulary of `n_tokens`, at least
    /// [`least_tokens`](Self::least_tokens) and at most [`MOST_TOKENS`].
    pub(crate) fn metadata(&self, n_tokens: usize) -> Metadata {
        let special: HashMap<usize, &str> = self.special.iter().copied().collect();
        let (mut tokens, mut types, mut merges) = (Vec::new(), Vec::new(), Vec::new());
        let mut ordinary = bytes().map(|byte| (byte.to_string(), None)).chain(words());
        for id in 0..n_tokens {
            if let Some(text) = special.get(&id) {
                tokens.push((*text).to_owned());
                types.push(CONTROL);
            } else if let Some((text, merge)) = ordinary.next() {
                tokens.push(text);
                types.push(NORMAL);
                merges.extend(merge);
            }
        }
        let id = |id: usize| id as u32;
        let name = |id: usize| special.get(&id).copied().unwrap_or_default();
        let mut metadata = Metadata::new();
        metadata.insert("tokenizer.ggml.model", "gpt2");
        metadata.insert("tokenizer.ggml.pre", self.pre_tokenizer);
        metadata.insert("tokenizer.ggml.tokens", StringArray::from_iter(tokens));
        metadata.insert("tokenizer.ggml.token_type", Array::I32(types));
        metadata.insert("tokenizer.ggml.merges", StringArray::from_iter(merges));
        metadata.insert("tokenizer.ggml.bos_token_id", id(self.bos));
        metadata.insert("tokenizer.ggml.eos_token_id", id(self.eos));
        metadata.insert("tokenizer.ggml.add_bos_token", self.adds_bos);
        if let Some(template) = ChatTemplate::builtin(self.template, name(self.bos), name(self.eos))
        {
            metadata.insert("tokenizer.chat_template", template.source());
        }
        metadata
    }
}

/// The largest vocabulary that can be made up.
pub(crate) const MOST_TOKENS: usize =
    256 + LETTERS + LETTERS * LETTERS * (2 + LETTERS + LETTERS * LETTERS);

const LETTERS: usize = 26;
/// What stands for a blank.
const BLANK: char = '\u{120}';

/// The characters that stand for the 256 bytes in byte-level BPE: printable ones for themselves, the
/// others in their order from U+0100 on.
fn bytes() -> impl Iterator<Item = char> {
    let mut hidden = 0x100..;
    (0..=255u8).map(move |byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => hidden.next().and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER),
    })
}

/// Everything longer than a byte, and how it is merged.
fn words() -> impl Iterator<Item = (String, Option<String>)> {
    fn letters() -> impl Iterator<Item = String> + Clone {
        ('a'..='z').map(String::from)
    }
    fn pairs() -> impl Iterator<Item = String> + Clone {
        letters().flat_map(|a| letters().map(move |b| format!("{a}{b}")))
    }
    let merged = |(a, b): (String, String)| (format!("{a}{b}"), Some(format!("{a} {b}")));
    let blank = |rest: String| (BLANK.to_string(), rest);
    let twos = letters().flat_map(|a| letters().map(move |b| (a.clone(), b)));
    let threes = pairs().flat_map(|a| letters().map(move |b| (a.clone(), b)));
    let fours = pairs().flat_map(|a| pairs().map(move |b| (a.clone(), b)));
    let short = letters().map(blank).chain(twos).chain(pairs().map(blank));
    short.chain(threes).chain(fours).map(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use hurtle_text::{Encode, Tokenizer};

    #[test]
    fn every_vocabulary_loads_and_gives_texts_back() {
        let mut sizes: Vec<_> = Shape::ALL.iter().map(|s| (s.family, s.n_vocab)).collect();
        sizes.dedup_by_key(|(family, n)| (family.special.as_ptr(), *n));
        for (family, n_vocab) in sizes {
            let metadata = family.metadata(n_vocab);
            let tokenizer = Tokenizer::from_metadata(&metadata).expect("a tokenizer");
            assert_eq!(tokenizer.n_tokens(), n_vocab);
            for (id, text) in family.special {
                assert_eq!(tokenizer.token_id(text), Some(*id as u32));
                let how = Encode { add_special: false, parse_special: true };
                assert_eq!(tokenizer.encode(text, how), [*id as u32], "{text}");
            }
            assert!(tokenizer.is_end_of_generation(family.eos as u32));
            assert_eq!(tokenizer.bos(), Some(family.bos as u32));
            assert_eq!(tokenizer.adds_bos(), family.adds_bos);

            let text = "The quick brown fox: naïve 漢字 🦊\n\n\t42 \u{0}\u{7f}";
            let how = Encode { add_special: false, parse_special: false };
            let ids = tokenizer.encode(text, how);
            assert_eq!(tokenizer.decode(&ids, true), text);
            let words = "several ordinary words of english";
            let n = tokenizer.encode(words, how).len();
            assert!(n < words.len() * 2 / 3, "{n} tokens for {words:?}");

            let template = ChatTemplate::from_metadata(&metadata, &tokenizer, None);
            assert!(template.expect("a template").is_some());
        }
    }

    #[test]
    fn the_largest_vocabulary_has_no_token_twice() {
        let metadata = QWEN.metadata(MOST_TOKENS);
        let tokenizer = Tokenizer::from_metadata(&metadata).expect("a tokenizer");
        assert_eq!(tokenizer.n_tokens(), MOST_TOKENS);
    }
}
