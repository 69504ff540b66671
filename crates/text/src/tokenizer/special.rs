//! Tokens with a role: beginning and end of a text, of a turn, of a gap to fill in.
//!
//! Files name some of them by key. The others are known by their texts, as llama.cpp knows them;
//! so is what ends a generation.

use super::TokenizerError;
use super::vocab::{Vocab, attr};
use hurtle_gguf::Metadata;

/// Tokens for filling in the middle: code before and after a gap, then the gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FillInMiddle {
    /// Before the text that precedes the gap.
    pub prefix: Option<u32>,
    /// Before the text that follows the gap.
    pub suffix: Option<u32>,
    /// Before the text of the gap.
    pub middle: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Before the name of a repository.
    pub repo: Option<u32>,
    /// Before the name of a file.
    pub file_separator: Option<u32>,
}

/// Ids of the tokens with a role, and which of them `add_special` adds.
#[derive(Debug, Clone, Default)]
pub(super) struct Special {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) eom: Option<u32>,
    pub(super) unknown: Option<u32>,
    pub(super) separator: Option<u32>,
    pub(super) padding: Option<u32>,
    pub(super) mask: Option<u32>,
    pub(super) fim: FillInMiddle,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
    pub(super) add_separator: bool,
    /// Sorted.
    pub(super) end_of_generation: Vec<u32>,
}

const EOT: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];
const EOM: &[&str] = &["<|eom_id|>"];
const FIM_PREFIX: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
];
const FIM_SUFFIX: &[&str] = &[
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
];
const FIM_MIDDLE: &[&str] = &[
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];
const FIM_PAD: &[&str] = &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
const FIM_REPO: &[&str] = &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FIM_FILE: &[&str] = &["<|file_sep|>"];
const END_OF_GENERATION: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];
/// Parts of gpt-oss' message format, which an answer has to show.
const SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

impl Special {
    /// Completes the defaults of a tokenizer model, given in `self`, by what the file says, and
    /// corrects the attributes of the tokens that turn out to be special.
    pub(super) fn complete(
        &mut self,
        metadata: &Metadata,
        vocab: &mut Vocab,
    ) -> Result<(), TokenizerError> {
        let file_says_control: Vec<u32> =
            vocab.ids().filter(|&id| vocab.has(id, attr::CONTROL | attr::UNKNOWN)).collect();

        let n_tokens = vocab.n_tokens();
        let fim = &mut self.fim;
        // Of two keys for one id the later, older one counts.
        for (keys, id) in [
            (&["bos_token_id"][..], &mut self.bos),
            (&["eos_token_id"], &mut self.eos),
            (&["eot_token_id"], &mut self.eot),
            (&["eom_token_id"], &mut self.eom),
            (&["unknown_token_id"], &mut self.unknown),
            // Misspelled in all files.
            (&["seperator_token_id"], &mut self.separator),
            (&["padding_token_id"], &mut self.padding),
            (&["mask_token_id"], &mut self.mask),
            (&["fim_pre_token_id", "prefix_token_id"], &mut fim.prefix),
            (&["fim_suf_token_id", "suffix_token_id"], &mut fim.suffix),
            (&["fim_mid_token_id", "middle_token_id"], &mut fim.middle),
            (&["fim_pad_token_id"], &mut fim.pad),
            (&["fim_rep_token_id"], &mut fim.repo),
            (&["fim_sep_token_id"], &mut fim.file_separator),
        ] {
            // An id outside the vocabulary counts as absent: some files say "none" that way.
            let in_vocab = |id: &u32| (*id as usize) < n_tokens;
            *id = id.filter(in_vocab);
            for key in keys {
                let key = format!("tokenizer.ggml.{key}");
                match metadata.get(&key).and_then(hurtle_gguf::Value::as_integer) {
                    Some(stated) => *id = u32::try_from(stated).ok().filter(in_vocab).or(*id),
                    // Absent, or an error because it is no number.
                    None => drop(metadata.u32(&key)?),
                }
            }
        }
        for (key, add) in [
            ("tokenizer.ggml.add_bos_token", &mut self.add_bos),
            ("tokenizer.ggml.add_eos_token", &mut self.add_eos),
            ("tokenizer.ggml.add_sep_token", &mut self.add_separator),
        ] {
            *add = metadata.bool(key)?.unwrap_or(*add);
        }

        let fim = &mut self.fim;
        for (id, texts) in [
            (&mut self.eot, EOT),
            (&mut self.eom, EOM),
            (&mut fim.prefix, FIM_PREFIX),
            (&mut fim.suffix, FIM_SUFFIX),
            (&mut fim.middle, FIM_MIDDLE),
            (&mut fim.pad, FIM_PAD),
            (&mut fim.repo, FIM_REPO),
            (&mut fim.file_separator, FIM_FILE),
        ] {
            if id.is_none() {
                *id = texts.iter().find_map(|text| vocab.find(text.as_bytes()));
                id.iter().for_each(|&id| vocab.add_attr(id, attr::CONTROL));
            }
        }
        for id in vocab.ids() {
            let unused = || vocab.text(id).windows(6).any(|w| w == b"unused");
            if vocab.has(id, attr::CONTROL) && unused() {
                vocab.add_attr(id, attr::UNUSED);
            }
        }

        let mut ends = vec![self.fim.pad, self.fim.repo, self.fim.file_separator];
        for text in END_OF_GENERATION {
            if let Some(id) = vocab.find(text.as_bytes()) {
                vocab.add_attr(id, attr::CONTROL);
                ends.push(Some(id));
            }
        }
        for text in SHOWN {
            if let Some(id) = vocab.find(text.as_bytes()) {
                vocab.set_attr(id, attr::USER_DEFINED);
            }
        }
        ends.extend([self.eos, self.eot, self.eom]);
        let mut ends: Vec<u32> = ends.into_iter().flatten().collect();
        ends.sort_unstable();
        ends.dedup();
        let ending =
            |ends: &[u32], text: &str| vocab.find(text.as_bytes()).filter(|id| ends.contains(id));
        let ends_with = |text| ending(&ends, text).is_some();
        // gpt-oss and Solar end only a part of their answer by <|end|>.
        let calls = ends_with("<|call|>") || ends_with("<|calls|>");
        let parts = calls && (ends_with("<|return|>") || ends_with("<|flush|>"));
        // Gemma 4 and PLaMo have another token for the end, </s> is HTML.
        let html = ends_with("<|tool_response>") || ends_with("<|plamo:eos|>");
        let no_end = [("<|end|>", parts, attr::USER_DEFINED), ("</s>", html, attr::NORMAL)]
            .map(|(text, applies, attr)| (ending(&ends, text).filter(|_| applies), attr));
        for (id, attr) in no_end {
            if let Some(id) = id {
                ends.retain(|&end| end != id);
                vocab.set_attr(id, attr);
            }
        }
        self.end_of_generation = ends;

        for id in file_says_control {
            vocab.add_attr(id, attr::GUARDED);
        }
        for id in vocab.ids() {
            let text = vocab.text(id);
            let bars = text.starts_with(b"<|") && text.ends_with(b"|>");
            let looks_special = bars && vocab.has(id, attr::USER_DEFINED);
            if looks_special || vocab.has(id, attr::CONTROL | attr::UNKNOWN) {
                vocab.add_attr(id, attr::GUARDED);
            }
        }
        Ok(())
    }
}

/// Lets special tokens swallow the white space around them, where llama.cpp knows by the name of
/// the model that they do. Files do not say it.
pub(super) fn set_strip_attributes(
    metadata: &Metadata,
    vocab: &mut Vocab,
) -> Result<(), TokenizerError> {
    let get = |key| Ok::<_, TokenizerError>(metadata.string(key)?.unwrap_or_default());
    let name = get("general.name")?.to_ascii_lowercase();
    let pre = get("tokenizer.ggml.pre")?;
    let architecture = get("general.architecture")?;
    let contains = |text: &str, parts: &[&str]| parts.iter().any(|part| text.contains(part));

    let mut add = |text: &str, attr| {
        if let Some(id) = vocab.find(text.as_bytes()) {
            vocab.add_attr(id, attr);
        }
    };
    if contains(pre, &["jina-v2-de", "jina-v2-es", "jina-v2-code"])
        || contains(architecture, &["nomic-bert-moe", "jina-bert-v3"])
    {
        add("<mask>", attr::LSTRIP);
    } else if contains(&name, &["phi-3", "phi3"]) {
        let special = attr::CONTROL | attr::USER_DEFINED | attr::UNKNOWN;
        let but = ["<unk>", "<s>", "<|endoftext|>"];
        for id in vocab.ids() {
            let excepted = but.iter().any(|text| text.as_bytes() == vocab.text(id));
            if !excepted && (vocab.has(id, special) || vocab.text(id) == b"</s>") {
                vocab.add_attr(id, attr::RSTRIP);
            }
        }
    } else if contains(&name, &["modern-bert"]) {
        add("[MASK]", attr::LSTRIP);
    }
    Ok(())
}
