//! A loaded model, and sequences that grow on it.

use crate::LineLimits;
use crate::budget::ReasoningBudget;
use crate::cgroup::usable_memory;
use crate::constraint::{Constraint, ConstraintError, Grammar, GrammarConstraint, Grammars};
use crate::sampler::{Distribution, Sampled, Sampler, SamplerError, SamplerParams};
use crate::token_loop::TokenLoop;
use hurtle_gguf::Gguf;
use hurtle_kernels::backend::MatmulBackend;
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_model::{BatchToken, KvCache, Model, ModelError, Scratch, SeqId};
use hurtle_text::{Tokenizer, TokenizerError};
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use hurtle_model::traffic::Packing;
pub use hurtle_model::{Arithmetic, KvType};

/// Why loading or generating failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The file cannot be read as GGUF.
    #[error(transparent)]
    Gguf(#[from] hurtle_gguf::Error),
    /// The file holds no model that hurtle runs.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its vocabulary is not usable.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A sampling parameter makes no sense.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The answer cannot follow its grammar.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// Choosing this request's next token broke down.
    #[error("an internal error ended this request\nhint: the log says what failed; others go on")]
    RequestFailed,
    /// The service broke down while the request was in it.
    #[error(
        "the service has stopped after an internal error\nhint: restart it; the log says what failed"
    )]
    ServiceFailed,
    /// Threads could not be started.
    #[error("cannot start {n_threads} threads: {source}\nhint: ask for fewer with --threads")]
    Threads {
        /// How many.
        n_threads: usize,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A text was wanted of an embedding model.
    #[error(
        "{file} makes embeddings, and does not write text\n\
         hint: 'hurtle logits -m MODEL --ids IDS' prints the embedding of the ids that 'hurtle tokenize \
         --ids' gives; to have a text written, choose another model"
    )]
    EmbeddingModel {
        /// The file.
        file: String,
    },
    /// An embedding was wanted of a model that makes none.
    #[error(
        "{file} does not say how its tokens become one embedding\n\
         hint: embedding models have the key {arch}.pooling_type, 1 (mean), 2 (cls), 3 (last) or 4 (rank)"
    )]
    NoPooling {
        /// The file.
        file: String,
        /// Its architecture.
        arch: &'static str,
    },
    /// A text that has to be processed whole is larger than a batch.
    #[error(
        "the text has {n_tokens} tokens, which this model has to process at once, but a batch holds \
         {batch_size}\nhint: raise --batch-size and --ubatch-size, or leave them out"
    )]
    BatchTooSmall {
        /// Tokens of the text.
        n_tokens: usize,
        /// Tokens that a batch holds.
        batch_size: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty: the model needs at least one token to start from")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {n_prompt} tokens, but the context holds {n_ctx}\n\
         hint: shorten the prompt, or enlarge the context with --ctx-size (the model was trained for {n_ctx_train})"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Context size in force.
        n_ctx: usize,
        /// Context size of the model.
        n_ctx_train: usize,
    },
}

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Threads for single tokens; `None`: what the affinity mask and the cgroup quota allow.
    pub threads: Option<usize>,
    /// Threads for prompts; `None`: as `threads`.
    pub threads_batch: Option<usize>,
    /// Instruction set; `None`: the best that this processor has.
    pub isa: Option<Isa>,
    /// How matrix products are computed.
    pub arithmetic: Arithmetic,
    /// How weights are packed; `None`: as [`default_packing`] says.
    pub packing: Option<Packing>,
    /// Who computes them; `None`: hurtle. A backend has its own arithmetic, so that `arithmetic` does not
    /// count.
    pub backend: Option<Arc<dyn MatmulBackend>>,
    /// Context size; `None`: the model's own. It never exceeds the positions that a model has learned.
    pub ctx_size: Option<usize>,
    /// Prompt tokens processed at once; `None`: 512, or the context where a text has to be processed
    /// whole.
    pub batch_size: Option<usize>,
    /// Element type of K.
    pub kv_type_k: KvType,
    /// Element type of V.
    pub kv_type_v: KvType,
}

/// A loaded model with its tokenizer.
#[derive(Debug)]
pub struct Engine {
    model: Model,
    tokenizer: Tokenizer,
    pool: Pool,
    isa: Isa,
    threads: usize,
    threads_batch: usize,
    n_ctx: usize,
    pub(crate) batch_size: usize,
    pub(crate) kv_types: (KvType, KvType),
    /// What computes its products; `None`: a backend.
    arithmetic: Option<Arithmetic>,
    load_time: Duration,
    /// Built for the first grammar.
    grammars: OnceLock<Result<Grammars, ConstraintError>>,
}

/// How many logits a pass computes at most, in bytes: with a large vocabulary, asking for the logits
/// of a whole batch would cost more memory than the model.
const MAX_LOGITS_BYTES: usize = 32 << 20;

/// Books are looked up, which is faster, if all weights then fit into half of the memory that can be used now.
pub fn default_packing() -> Packing {
    usable_memory(Path::new("/")).map_or(Packing::default(), |usable| Packing::Within(usable / 2))
}

impl Engine {
    /// Loads a GGUF file. Weights are mapped, and packed only for integer arithmetic; otherwise
    /// loading takes little more than building the tokenizer.
    pub fn load(path: &Path, options: &EngineOptions) -> Result<Self, EngineError> {
        let start = Instant::now();
        let gguf = Gguf::open(path)?;
        let tokenizer = Tokenizer::from_metadata(gguf.metadata())?;
        let threads = options.threads.unwrap_or_else(Pool::available_threads).max(1);
        let threads_batch = options.threads_batch.unwrap_or(threads).max(1);
        let n_threads = threads.max(threads_batch);
        let pool =
            Pool::new(n_threads).map_err(|source| EngineError::Threads { n_threads, source })?;
        let isa = options.isa.unwrap_or_else(Isa::best);
        let exec = Exec { isa, pool: &pool, n_threads };
        let model = match &options.backend {
            None => {
                let packing = options.packing.unwrap_or_else(default_packing);
                Model::load(gguf, options.ctx_size, options.arithmetic, packing, exec)?
            }
            Some(backend) => {
                let mut model = Model::load(
                    gguf,
                    options.ctx_size,
                    Arithmetic::Exact,
                    Packing::default(),
                    exec,
                )?;
                model.hand_over(&**backend)?;
                model
            }
        };
        let n_ctx = options.ctx_size.unwrap_or(model.hparams().n_ctx_train);
        let n_ctx = model.n_positions().map_or(n_ctx, |n| n.min(n_ctx));
        let batch_size = if model.hparams().both_ways { n_ctx } else { 512 };
        Ok(Self {
            n_ctx,
            model,
            tokenizer,
            pool,
            isa,
            threads,
            threads_batch,
            batch_size: options.batch_size.unwrap_or(batch_size).max(1),
            kv_types: (options.kv_type_k, options.kv_type_v),
            arithmetic: options.backend.is_none().then_some(options.arithmetic),
            load_time: start.elapsed(),
            grammars: OnceLock::new(),
        })
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        self.model.gguf()
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Context size in force.
    pub fn ctx_size(&self) -> usize {
        self.n_ctx
    }

    /// Threads for single tokens and for prompts.
    pub fn threads(&self) -> (usize, usize) {
        (self.threads, self.threads_batch)
    }

    /// Instruction set of the kernels.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// How keys and values are computed and kept.
    pub(crate) fn how(&self) -> String {
        let Self { isa, n_ctx, kv_types: (k, v), arithmetic, .. } = self;
        format!("{isa:?} {n_ctx} {k} {v} {arithmetic:?}")
    }

    /// How long loading took.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Prompt tokens processed at once.
    pub(crate) fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// An empty KV cache of the types that were asked for.
    pub(crate) fn kv_cache(&self) -> KvCache {
        self.model.kv_cache(self.kv_types.0, self.kv_types.1)
    }

    pub(crate) fn exec(&self, n_threads: usize) -> Exec<'_> {
        Exec { isa: self.isa, pool: &self.pool, n_threads }
    }

    /// A new, empty sequence.
    pub fn session(&self) -> Session<'_> {
        let mut cache = self.kv_cache();
        let seq = cache.new_sequence();
        let (scratch, tokens, batch) = (Scratch::default(), Vec::new(), Vec::new());
        Session { engine: self, cache, seq, scratch, tokens, batch }
    }

    /// Compiles a grammar for answers to follow. That may take some tens of milliseconds, the first time, when
    /// the vocabulary is made ready, some hundreds.
    ///
    /// # Errors
    /// If the grammar is wrong, larger than the limits allow, or asks for what is not supported.
    pub fn constraint(&self, grammar: &Grammar) -> Result<GrammarConstraint, ConstraintError> {
        let grammars = self.grammars.get_or_init(|| Grammars::new(&self.tokenizer));
        grammars.as_ref().map_err(Clone::clone)?.compile(grammar, &self.tokenizer)
    }

    /// Calls `f(position, logits)` for every position of `ids` from `from` on.
    ///
    /// # Errors
    /// If `ids` is empty, does not fit the context or holds an unknown token.
    pub fn score(
        &self,
        ids: &[u32],
        from: usize,
        f: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check_prompt(ids.len(), self.n_ctx)?;
        let n_vocab = self.model.hparams().n_vocab;
        let most_logits = (MAX_LOGITS_BYTES / 4 / n_vocab).max(1);
        let mut session = self.session();
        let mut at = 0;
        while at < ids.len() {
            let silent = from.saturating_sub(at).min(self.batch_size);
            let n = if silent > 0 { silent } else { self.batch_size.min(most_logits) };
            let chunk = &ids[at..ids.len().min(at + n)];
            let logits = session.forward(chunk, |_| silent == 0)?;
            for (i, logits) in logits.chunks_exact(n_vocab).enumerate() {
                f(at + i, logits);
            }
            at += chunk.len();
        }
        Ok(())
    }

    /// Logits of every position (`all`) or of the last, each `[n_vocab]`.
    pub fn logits(&self, ids: &[u32], all: bool) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut rows = Vec::new();
        let from = if all { 0 } else { ids.len().saturating_sub(1) };
        self.score(ids, from, &mut |_, logits| rows.push(logits.to_vec()))?;
        Ok(rows)
    }

    /// Whether `n_prompt` tokens fit; `limit` is the most there may be.
    pub(crate) fn check_prompt(&self, n_prompt: usize, limit: usize) -> Result<(), EngineError> {
        if n_prompt == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if n_prompt > limit {
            let n_ctx_train = self.model.hparams().n_ctx_train;
            return Err(EngineError::PromptTooLong { n_prompt, n_ctx: self.n_ctx, n_ctx_train });
        }
        Ok(())
    }
}

/// What to generate.
#[derive(Debug, Clone, Default)]
pub struct GenerationParams {
    /// Sampling.
    pub sampler: SamplerParams,
    /// Most tokens to generate; `None`: until the model ends or the context is full.
    pub n_predict: Option<usize>,
    /// Texts that end the generation; they are not part of the output.
    pub stop: Vec<String>,
    /// Tokens that end the generation, beside those that the model ends texts with.
    pub stop_ids: Vec<u32>,
    /// Let the stop string out, too.
    pub keep_stop: bool,
    /// Tokens before which nothing ends the generation but its length, or a grammar.
    pub min_tokens: usize,
    /// How long the model may think.
    pub reasoning_budget: Option<ReasoningBudget>,
    /// Limits to the lines of the text.
    pub lines: LineLimits,
    /// Show control tokens in the text.
    pub special: bool,
    /// Control tokens that are shown in any case: those that structure an answer.
    pub shown: Vec<u32>,
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
    /// Text to show; empty where a token completes no character.
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
    /// The request's time was up (`deadline`).
    Deadline,
}

impl StopReason {
    /// The JSON name.
    pub fn as_str(self) -> &'static str {
        match self {
            StopReason::EndOfText => "eos",
            StopReason::StopString => "stop",
            StopReason::Length => "length",
            StopReason::Context => "context",
            StopReason::Cancelled => "cancelled",
            StopReason::Deadline => "deadline",
        }
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
    /// Time from the end of the prompt to the last of them.
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
    /// Log-probabilities of each of them, if they were asked for.
    pub logprobs: Vec<Sampled>,
    /// How long it took.
    pub timings: Timings,
}

/// What a generation may have beside its [`GenerationParams`].
#[derive(Default)]
pub struct Extras {
    /// A grammar that the answer follows.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Log-probabilities of each token and of so many best ones.
    pub logprobs: Option<usize>,
}

impl fmt::Debug for Extras {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extras")
            .field("constrained", &self.constraint.is_some())
            .field("logprobs", &self.logprobs)
            .finish()
    }
}

/// One sequence and what the KV cache holds of it.
#[derive(Debug)]
pub struct Session<'a> {
    engine: &'a Engine,
    cache: KvCache,
    seq: SeqId,
    scratch: Scratch,
    /// What the cache holds.
    tokens: Vec<u32>,
    /// What is being processed.
    batch: Vec<BatchToken>,
}

/// Tokens that memory is reserved for before generating; longer answers grow by doubling.
const EXPECTED_TOKENS: usize = 4096;

impl<'a> Session<'a> {
    /// The engine that it belongs to.
    pub fn engine(&self) -> &'a Engine {
        self.engine
    }

    /// Generates after `prompt` (the whole sequence from its first token; the longest prefix that the
    /// cache already holds is reused). A prompt that does not fit is an error with both numbers.
    /// After a cancelled generation the session stays usable.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        params: &GenerationParams,
        on_progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        self.generate_with(prompt, params, Extras::default(), on_progress)
    }

    /// As [`generate`](Self::generate), restricted by a grammar, or with log-probabilities.
    pub fn generate_with(
        &mut self,
        prompt: &[u32],
        params: &GenerationParams,
        extras: Extras,
        on_progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        let engine = self.engine;
        engine.check_generates()?;
        engine.check_prompt(prompt.len(), engine.n_ctx.saturating_sub(1))?;
        let mut sampler = Sampler::new(params.sampler.clone(), &engine.tokenizer)?;
        prompt.iter().for_each(|id| sampler.accept(*id));

        let start = Instant::now();
        let shared = self.keep_common_prefix(prompt);
        let mut timings = Timings {
            load_ms: millis(engine.load_time),
            cache_n: shared,
            prompt_n: prompt.len() - shared,
            ..Timings::default()
        };
        let room = engine.n_ctx - prompt.len();
        let expected = params.n_predict.unwrap_or(room).min(room).min(EXPECTED_TOKENS);
        self.tokens.reserve(prompt.len() - shared + expected);
        let mut text = String::with_capacity(4 * expected);
        let token_loop = TokenLoop::new(engine, sampler, params, room);
        let mut token_loop =
            token_loop.with(extras.constraint, extras.logprobs, Distribution::Model);
        let mut done = shared;
        let mut logits: &[f32] = &[];
        for chunk in prompt[shared..].chunks(engine.batch_size) {
            done += chunk.len();
            let last = done == prompt.len();
            logits = self.forward(chunk, |i| last && i == chunk.len() - 1)?;
            let progress = Progress::Prompt { done, total: prompt.len() };
            if on_progress(progress).is_break() {
                timings.prompt_n = done - shared;
                timings.finish(start.elapsed(), Duration::ZERO);
                let (token_ids, logprobs) = (Vec::new(), Vec::new());
                let stop_reason = StopReason::Cancelled;
                return Ok(Generation { text, token_ids, stop_reason, logprobs, timings });
            }
        }
        let prompt_time = start.elapsed();

        let start = Instant::now();
        let mut token_ids = Vec::with_capacity(expected);
        let mut logprobs = Vec::new();
        let stop_reason = loop {
            let before = text.len();
            let step = token_loop.step(logits, &mut text)?;
            let Some(id) = step.id else { break step.stop.unwrap_or(StopReason::EndOfText) };
            token_ids.push(id);
            logprobs.extend(step.logprobs);
            let cancelled = on_progress(Progress::Text(&text[before..])).is_break();
            match step.stop {
                Some(StopReason::StopString) => break StopReason::StopString,
                _ if cancelled => break StopReason::Cancelled,
                Some(reason) => break reason,
                None => logits = self.forward(&[id], |_| true)?,
            }
        };
        timings.predicted_n = token_ids.len();
        timings.finish(prompt_time, start.elapsed());
        let before = text.len();
        token_loop.finish(&mut text);
        if before < text.len() {
            // The generation has ended: whether the callback breaks off makes no difference.
            let _ = on_progress(Progress::Text(&text[before..]));
        }
        Ok(Generation { text, token_ids, stop_reason, logprobs, timings })
    }

    /// Drops what the cache holds beyond its common prefix with `prompt`, always leaving at least
    /// one token of the prompt to be processed, whose logits come next. Returns what is kept.
    fn keep_common_prefix(&mut self, prompt: &[u32]) -> usize {
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let keep = common.min(prompt.len() - 1);
        self.cache.truncate(self.seq, keep);
        self.tokens.truncate(keep);
        keep
    }

    /// Processes `ids`; returns the logits of those whose index `wants` them, `[n, n_vocab]`.
    fn forward(
        &mut self,
        ids: &[u32],
        wants: impl Fn(usize) -> bool,
    ) -> Result<&[f32], EngineError> {
        let Self { engine, cache, seq, scratch, tokens, batch } = self;
        let threads = if ids.len() == 1 { engine.threads } else { engine.threads_batch };
        let token = |(i, id): (usize, &u32)| BatchToken { id: *id, seq: *seq, logits: wants(i) };
        batch.clear();
        batch.extend(ids.iter().enumerate().map(token));
        let logits = engine.model.forward(engine.exec(threads), batch, cache, scratch)?;
        tokens.extend_from_slice(ids);
        Ok(logits)
    }
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Timings {
    pub(crate) fn finish(&mut self, prompt: Duration, predicted: Duration) {
        let rate = |n: usize, time: Duration| {
            if n == 0 || time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
        };
        self.prompt_ms = millis(prompt);
        self.prompt_tps = rate(self.prompt_n, prompt);
        self.predicted_ms = millis(predicted);
        self.predicted_tps = rate(self.predicted_n, predicted);
    }
}
