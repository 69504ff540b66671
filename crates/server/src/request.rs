//! What the engine is asked for, whatever API asked.
use crate::error::ApiError;
use hurtle_engine::GenerationParams;
use hurtle_engine::constraint::Grammar;
use hurtle_engine::sampler::{Distribution, SamplerError};
use hurtle_text::Opening;
use serde_json::{Map, Value};

/// An answer to a conversation.
#[derive(Debug, Clone, Default)]
pub struct Chat {
    /// Which model; `None`: the default one.
    pub model: Option<String>,
    /// The conversation as chat templates want it: `role`, `content` (a text), `tool_calls` with their
    /// arguments as objects, `reasoning_content`, `tool_call_id`, `name`.
    pub messages: Vec<Value>,
    /// Tokens before the prompt, as they are.
    pub before: Vec<u32>,
    /// Tools in OpenAI's shape; empty if there are none or none may be used.
    pub tools: Vec<Value>,
    /// Which of them must be called.
    pub tool_choice: ToolChoice,
    /// Whether one answer may call several.
    pub parallel_tool_calls: bool,
    /// Whether the answer goes on with the last message, if that is the assistant's; `None`: if it can.
    pub continues: Option<bool>,
    /// Whether the prompt ends with the last message, and opens no answer.
    pub unopened: bool,
    /// Where reasoning is told.
    pub reasoning: ReasoningFormat,
    /// How long the model may think.
    pub budget: Option<Budget>,
    /// Whether calls of tools are left in the text as the model writes them.
    pub unread_calls: bool,
    /// Whether to tell the prompt and the text as it was written, too.
    pub verbose: bool,
    /// Further variables of the template: `enable_thinking`, `reasoning_effort` ...
    pub template: Map<String, Value>,
    /// How to answer.
    pub generation: Generate,
    /// How to reply.
    pub reply: Reply,
}

/// A limit to the tokens of reasoning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// So many at most.
    pub tokens: usize,
    /// What is said before the reasoning is closed.
    pub message: String,
    /// The parameter that asks for it, if it has to be honoured.
    pub param: Option<&'static str>,
}

/// Where reasoning is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// In a field of its own.
    #[default]
    Apart,
    /// In the content, between the model's markers.
    InContent,
    /// In both.
    Both,
}

/// The continuation of a text.
#[derive(Debug, Clone, Default)]
pub struct Completion {
    /// Which model; `None`: the default one.
    pub model: Option<String>,
    /// The texts to continue, each by itself.
    pub prompts: Vec<Prompt>,
    /// What follows the gap, where the model fills in between.
    pub suffix: Option<String>,
    /// How to answer.
    pub generation: Generate,
    /// How to reply.
    pub reply: Reply,
}

/// A prompt that is not a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A text, with BOS as the model says.
    Text(String),
    /// Token ids, as they are.
    Ids(Vec<u32>),
    /// Texts and token ids after one another; a BOS comes only before a text at the beginning.
    Mixed(Vec<Part>),
}

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A text.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// How to answer.
#[derive(Debug, Clone)]
pub struct Generate {
    /// Sampling, length and stop strings.
    pub params: GenerationParams,
    /// Answers to each prompt, with seeds one after another.
    pub n: usize,
    /// Log-probabilities of each token, and of this many most probable ones.
    pub logprobs: Option<usize>,
    /// Whose they are.
    pub distribution: Distribution,
    /// What else is told.
    pub tell: Tell,
    /// Repeat the prompt before the answer, with the log-probabilities of its tokens if they are asked for.
    pub echo: bool,
    /// What the output must look like, if not just anything.
    pub format: Option<Grammar>,
    /// The parameter that says so.
    pub format_param: &'static str,
    /// What may come before it.
    pub opening: Option<Opening>,
    /// Biases for tokens that only the model's tokenizer can name.
    pub text_bias: Vec<(String, f32)>,
    /// Most tokens of prompt and answer together; `None`: as many as the context holds.
    pub n_ctx: Option<usize>,
    /// Use what earlier requests left in the cache.
    pub cache_prompt: bool,
    /// Who asks: requests of one client wait for each other, not for those of other clients.
    pub client: Option<String>,
    /// Under which number the sequence is to be found again.
    pub slot: Option<usize>,
}

impl Default for Generate {
    fn default() -> Self {
        Self {
            params: GenerationParams::default(),
            n: 1,
            logprobs: None,
            distribution: Distribution::Model,
            tell: Tell::default(),
            echo: false,
            format: None,
            format_param: "response_format",
            opening: None,
            text_bias: Vec::new(),
            n_ctx: None,
            cache_prompt: true,
            client: None,
            slot: None,
        }
    }
}

/// What is told of an answer beside its text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tell {
    /// The numbers of its tokens.
    pub ids: bool,
    /// With each piece of a stream, how long the answer took so far.
    pub timings: bool,
    /// In a stream, how much of the prompt has been processed.
    pub progress: bool,
}

/// How to reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reply {
    /// Piece by piece.
    pub stream: bool,
    /// Close an OpenAI stream with a chunk that counts tokens.
    pub include_usage: bool,
}

/// Which tools must be called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// Refuses what the sampler would refuse, under the name that the client used.
pub(crate) fn check_sampler(
    generate: &Generate,
    wire_name: impl Fn(&'static str) -> &'static str,
) -> Result<(), ApiError> {
    generate.params.sampler.validate().map_err(|error| match error {
        SamplerError::OutOfRange { name, expected, found } => {
            let name = wire_name(name);
            ApiError::invalid(name, format!("{name}: expected {expected}, found {found}"))
        }
        other => ApiError::invalid("sampler", other.to_string()),
    })
}
