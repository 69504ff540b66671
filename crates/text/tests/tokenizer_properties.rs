//! What holds for any text and for any file, however damaged.

use hurtle_gguf::{Metadata, Value};
use hurtle_text::{Encode, StreamDecoder, Tokenizer, TokenizerError};
use proptest::prelude::*;

/// `tokenizer.ggml.KEY`s of a vocabulary.
fn metadata(model: &str, tokens: &[Vec<u8>]) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("tokenizer.ggml.model", model);
    metadata.insert("tokenizer.ggml.tokens", strings(tokens));
    metadata
}

fn strings<S: AsRef<[u8]>>(strings: &[S]) -> Value {
    Value::Array(hurtle_gguf::Array::String(strings.iter().collect()))
}

fn set(metadata: &mut Metadata, key: &str, value: impl Into<Value>) {
    metadata.insert(format!("tokenizer.ggml.{key}"), value);
}

/// GPT-2's alphabet, built as its authors did: printable bytes stand for themselves.
fn byte_alphabet() -> Vec<char> {
    let mut next = 0x100;
    let char_of = |b: u8| {
        if matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(b);
        }
        next += 1;
        char::from_u32(next - 1).unwrap_or_default()
    };
    (0..=255).map(char_of).collect()
}

/// All bytes, some longer tokens with their merges, and two special ones.
fn byte_level(pre: &str) -> Tokenizer {
    let mut tokens: Vec<Vec<u8>> =
        byte_alphabet().iter().map(|c| c.to_string().into_bytes()).collect();
    let merges =
        ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "a a", "aa aa", "Ã ©"];
    tokens.extend(merges.iter().map(|m| m.replace(' ', "").into_bytes()));
    tokens.extend(["<|im_end|>", "<|user|>"].map(|t| t.as_bytes().to_vec()));
    let mut types = vec![1i32; tokens.len() - 2];
    types.extend([3, 4]);
    let mut metadata = metadata("gpt2", &tokens);
    set(&mut metadata, "pre", pre);
    set(&mut metadata, "merges", strings(&merges));
    set(&mut metadata, "token_type", Value::Array(hurtle_gguf::Array::I32(types)));
    Tokenizer::from_metadata(&metadata).unwrap_or_else(|e| panic!("{e}"))
}

fn stream(tokenizer: &Tokenizer, ids: &[u32], special: bool) -> String {
    let mut decoder = StreamDecoder::new(tokenizer, special);
    let mut text = String::new();
    ids.iter().for_each(|&id| decoder.push(id, &mut text));
    text + &decoder.finish()
}

const TEXT: &str =
    "\\PC{0,30}|[ \\t\\r\\n'a-zA-Z0-9é中]{0,40}|(<\\|im_end\\|>|<\\|user\\|>|hello| |<|é){0,12}";

proptest! {
    #[test]
    fn bytes_come_back(text in TEXT, parse_special: bool) {
        // These tidy no spaces when decoding.
        for pre in ["qwen2", "smollm", "deepseek-v3", "gpt-4o", "superbpe", "kimi-k2", "viking"] {
            let tokenizer = byte_level(pre);
            let ids = tokenizer.encode(&text, Encode { add_special: false, parse_special });
            prop_assert_eq!(tokenizer.decode(&ids, true), text.as_str());
            prop_assert_eq!(stream(&tokenizer, &ids, true), text.as_str());
        }
    }

    #[test]
    fn stream_is_decode(ids in prop::collection::vec(0u32..300, 0..40), special: bool) {
        let tokenizer = byte_level("qwen2");
        prop_assert_eq!(stream(&tokenizer, &ids, special), tokenizer.decode(&ids, special));
    }

    #[test]
    fn unguarded_is_encode(text in TEXT) {
        let tokenizer = byte_level("qwen2");
        let how = Encode { add_special: false, parse_special: true };
        prop_assert_eq!(
            tokenizer.encode_guarded(&text, '\u{e000}', false),
            tokenizer.encode(&text, how)
        );
    }

    #[test]
    fn guards_only_break_special_tokens(text in TEXT) {
        let tokenizer = byte_level("qwen2");
        let guarded: String = text.chars().flat_map(|c| [c, '\u{e000}']).collect();
        let ids = tokenizer.encode_guarded(&guarded, '\u{e000}', false);
        prop_assert_eq!(tokenizer.decode(&ids, true), text.as_str());
        let specials: Vec<_> =
            tokenizer.special_texts().filter_map(|text| tokenizer.token_id(text)).collect();
        prop_assert_eq!(specials.len(), 2);
        prop_assert!(!ids.iter().any(|id| specials.contains(id)));
    }

    /// Any file either gives an error or a tokenizer that does not panic.
    #[test]
    fn hostile_files(
        model in prop::sample::select(vec![
            "llama", "gpt2", "gemma4", "whitespace", "bert", "t5", "rwkv", "plamo2",
        ]),
        pre in prop::sample::select(vec!["llama-bpe", "default", "gemma4", "whitespace", "phi-2"]),
        tokens in prop::collection::vec(
            prop_oneof![
                "[ab<>\\\\▁ é]{0,4}".prop_map(String::into_bytes),
                "(<0x[0-9A-F]{2}>|\\\\x[0-9a-f]{0,2}|<\\|im_end\\|>|</s>|unused|<mask>)".prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>(), 0..4),
            ],
            0..40,
        ),
        types in prop::collection::vec(-1i32..8, 0..60),
        scores in prop::collection::vec(any::<f32>(), 0..60),
        merges in prop::collection::vec("[ab▁ é]{0,6}", 0..20),
        charsmap in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
        special in prop::collection::vec(any::<i32>(), 6),
        flags in any::<[bool; 5]>(),
        name in prop::sample::select(vec!["phi-3", "modern-bert", ""]),
        text in TEXT,
        ids in prop::collection::vec(any::<u32>(), 0..10),
    ) {
        let mut unique = tokens.clone();
        unique.sort();
        unique.dedup();
        for tokens in [&tokens, &unique] {
            let mut metadata = metadata(model, tokens);
            metadata.insert("general.name", name);
            set(&mut metadata, "pre", pre);
            set(&mut metadata, "token_type", Value::Array(hurtle_gguf::Array::I32(types.clone())));
            if !scores.is_empty() {
                set(&mut metadata, "scores", Value::Array(hurtle_gguf::Array::F32(scores.clone())));
            }
            set(&mut metadata, "merges", strings(&merges));
            if let Some(charsmap) = &charsmap {
                let charsmap = Value::Array(hurtle_gguf::Array::U8(charsmap.clone()));
                set(&mut metadata, "precompiled_charsmap", charsmap);
            }
            let keys = ["bos", "eos", "eot", "unknown", "seperator", "fim_pad"];
            for (key, &id) in keys.iter().zip(&special) {
                set(&mut metadata, &format!("{key}_token_id"), id % 50);
            }
            let keys = [
                "add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces",
                "normalizer.lowercase",
            ];
            for (key, flag) in keys.iter().zip(flags) {
                set(&mut metadata, key, flag);
            }
            let tokenizer = match Tokenizer::from_metadata(&metadata) {
                Ok(tokenizer) => tokenizer,
                Err(e) => {
                    prop_assert!(e.to_string().contains("tokenizer.ggml."), "{e}");
                    continue;
                }
            };
            for add_special in [false, true] {
                for parse_special in [false, true] {
                    let out = tokenizer.encode(&text, Encode { add_special, parse_special });
                    prop_assert!(out.iter().all(|&id| (id as usize) < tokenizer.n_tokens()));
                    tokenizer.decode(&out, parse_special);
                }
            }
            tokenizer.encode_guarded(&text, 'a', true);
            stream(&tokenizer, &ids, true);
            for id in 0..tokens.len() as u32 + 1 {
                tokenizer.token_bytes(id, true);
                prop_assert_eq!(tokenizer.token_text(id).is_some(), (id as usize) < tokens.len());
            }
        }
    }
}

/// Texts without an end of a word, and almost special tokens. A quadratic step anywhere would take
/// minutes here.
#[test]
fn long_texts_take_n_log_n() {
    let start = std::time::Instant::now();
    let tokens = ["▁", "a", "aa", "aaaa", "▁▁", "▁▁▁▁", "<|", "<|im_end|>", "\n", "\n\n", "\n\n\n"];
    let tokens = tokens.map(|t| t.as_bytes().to_vec());
    let mut metadata = metadata("llama", &tokens);
    let types = [1, 1, 1, 1, 1, 1, 1, 3, 4, 4, 4].to_vec();
    set(&mut metadata, "token_type", Value::Array(hurtle_gguf::Array::I32(types)));
    let spm = Tokenizer::from_metadata(&metadata).unwrap_or_else(|e| panic!("{e}"));
    for tokenizer in [&spm, &byte_level("qwen2"), &byte_level("gemma4"), &byte_level("jais-2")] {
        for unit in ["a", " ", "\n", "<|im_end|", "<|im_end|>", "é", "'"] {
            let text = unit.repeat(300_000 / unit.len());
            for parse_special in [false, true] {
                let ids = tokenizer.encode(&text, Encode { add_special: false, parse_special });
                // SentencePiece puts a space behind a token.
                assert!(ids.len() <= 2 * text.len());
            }
        }
    }
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

#[test]
fn errors_name_the_key_and_the_remedy() {
    let tokens = [b"a".to_vec(), b"b".to_vec()];
    let check = |metadata: &Metadata, expected: &str| {
        let error = Tokenizer::from_metadata(metadata).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    };
    check(&Metadata::new(), "tokenizer.ggml.model is missing\nhint: ");
    check(
        &metadata("word2vec", &tokens),
        "tokenizer.ggml.model is \"word2vec\", which is unknown; known are llama, gpt2",
    );
    check(
        &metadata("none", &tokens),
        "tokenizer.ggml.model is \"none\": the file has no vocabulary",
    );
    check(&metadata("gpt2", &tokens), "tokenizer.ggml.merges is missing");
    check(
        &metadata("llama", &[b"a".to_vec(), b"b".to_vec(), b"a".to_vec()]),
        "tokenizer.ggml.tokens: tokens 0 and 2 are both \"a\"",
    );
    let long = "x".repeat(1000);
    let shown = format!("tokenizer.ggml.model is \"{}...\", which", &long[..60]);
    check(&metadata(&long, &tokens), &shown);
    let changed = |key: &str, value: Value| {
        let mut metadata = metadata("gpt2", &tokens);
        set(&mut metadata, "merges", strings(&["a b"]));
        set(&mut metadata, key, value);
        metadata
    };
    check(
        &changed("pre", "new".into()),
        "tokenizer.ggml.pre is \"new\", which is unknown; known are default, llama3",
    );
    check(
        &changed("token_type", Value::Array(hurtle_gguf::Array::I32(vec![1]))),
        "tokenizer.ggml.token_type: expected an element for each of 2 tokens, found 1",
    );
    check(
        &changed("scores", Value::Array(hurtle_gguf::Array::F32(vec![1.0]))),
        "tokenizer.ggml.scores: expected an element for each of 2 tokens, found 1",
    );
    for (key, value) in [
        ("tokens", Value::from(3u32)),
        ("merges", Value::from(true)),
        ("bos_token_id", Value::from("one")),
        ("add_bos_token", Value::from("yes")),
        ("add_space_prefix", Value::from(1.0f32)),
    ] {
        let error = Tokenizer::from_metadata(&changed(key, value)).map(|_| ());
        assert!(matches!(error, Err(TokenizerError::Metadata(_))), "{key}");
        assert!(error.is_err_and(|e| e.to_string().contains(key)));
    }
}
