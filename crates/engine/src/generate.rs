//! A loaded model, and sequences that grow on it.
use crate::sampler::SamplerParams;
use hurtle_gguf::Gguf;
use hurtle_text::{ChatTemplate, Tokenizer};
use std::ops::ControlFlow;
use std::path::Path;

/// Why loading or generating failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(String); // replaced by a real enum

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// 4 bytes, exact.
    #[default]
    F32,
    /// 2 bytes.
    F16,
}

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Threads; `None`: what the affinity mask and the cgroup quota allow.
    pub threads: Option<usize>,
    /// Context size; `None`: the model's own.
    pub ctx_size: Option<usize>,
    /// Prompt tokens processed at once (`-b`/`-ub`); `None`: 512.
    pub batch_size: Option<usize>,
    /// Element type of K.
    pub kv_type_k: KvType,
    /// Element type of V.
    pub kv_type_v: KvType,
}

/// A loaded model with its tokenizer.
#[derive(Debug)]
pub struct Engine {}

impl Engine {
    /// Loads a GGUF file.
    pub fn load(path: &Path, options: &EngineOptions) -> Result<Self, EngineError> {
        let _ = (path, options);
        todo!()
    }
    /// The file.
    pub fn gguf(&self) -> &Gguf {
        todo!()
    }
    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        todo!()
    }
    /// The file's chat template, or a fallback by name, with a note of which.
    pub fn chat_template(&self) -> Result<ChatTemplate, EngineError> {
        todo!()
    }
    /// Context size in force.
    pub fn ctx_size(&self) -> usize {
        todo!()
    }
    /// A new, empty sequence.
    pub fn session(&self) -> Session<'_> {
        todo!()
    }
    /// Logits of every position (`all`) or of the last, each `[n_vocab]`.
    pub fn logits(&self, ids: &[u32], all: bool) -> Result<Vec<Vec<f32>>, EngineError> {
        let _ = (ids, all);
        todo!()
    }
}

/// What to generate.
#[derive(Debug, Clone)]
pub struct GenerationParams {
    /// Sampling.
    pub sampler: SamplerParams,
    /// Most tokens to generate; `None`: until the model ends or the context is full.
    pub n_predict: Option<usize>,
    /// Texts that end the generation; they are not part of the output.
    pub stop: Vec<String>,
    /// Show control tokens in the text.
    pub special: bool,
}

/// What the callback hears.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Prompt tokens processed so far, of how many.
    Prompt {
        /// Done.
        done: usize,
        /// Of.
        total: usize,
    },
    /// Text to show.
    Text(&'a str),
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model said so (`eos`).
    EndOfText,
    /// A stop string (`stop`).
    StopString,
    /// `n_predict` reached (`length`).
    Length,
    /// The context is full (`context`).
    Context,
    /// The callback broke off (`cancelled`).
    Cancelled,
}

impl StopReason {
    /// The JSON name.
    pub fn as_str(self) -> &'static str {
        todo!()
    }
}

/// Milliseconds and rates, as llama.cpp's server reports them.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Timings {
    /// Loading the model.
    pub load_ms: f64,
    /// Prompt tokens that were processed (without those reused).
    pub prompt_n: usize,
    /// Prompt tokens taken from the session's cache.
    pub cache_n: usize,
    /// Time for them.
    pub prompt_ms: f64,
    /// Tokens a second.
    pub prompt_tps: f64,
    /// Generated tokens.
    pub predicted_n: usize,
    /// Time for them.
    pub predicted_ms: f64,
    /// Tokens a second.
    pub predicted_tps: f64,
}

/// A finished generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The text, stop string excluded.
    pub text: String,
    /// Generated ids (the end token, if any, excluded).
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// How long it took.
    pub timings: Timings,
}

/// One sequence and what the KV cache holds of it.
#[derive(Debug)]
pub struct Session<'a> {
    engine: &'a Engine,
}

impl Session<'_> {
    /// Generates after `prompt` (the whole sequence from its first token; the longest prefix that the
    /// cache already holds is reused). A prompt that does not fit is an error with both numbers.
    /// After a cancelled generation the session stays usable.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        params: &GenerationParams,
        on_progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        let _ = (prompt, params, on_progress, self.engine);
        todo!()
    }
}
