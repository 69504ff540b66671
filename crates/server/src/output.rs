//! What the engine gives back, whatever API asked.
use hurtle_engine::Timings;
use std::borrow::Cow;
use std::time::Duration;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// Text for the user.
    Content(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// The model begins to call a tool.
    ToolCallBegin {
        /// Which call of this answer, from 0.
        index: usize,
        /// Unique name of the call.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of the call's arguments, which are JSON.
    ToolCallArguments {
        /// Which call.
        index: usize,
        /// The text.
        text: String,
    },
    /// The call is complete.
    ToolCallEnd {
        /// Which call.
        index: usize,
    },
}

/// A token of an answer, how probable the model found it, and which tokens it found most probable.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The token.
    pub token: TokenLogprob,
    /// The most probable ones, best first.
    pub top: Vec<TokenLogprob>,
}

/// A token and the natural logarithm of its probability.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token's number.
    pub id: u32,
    /// What it adds to a text; may be a part of a character.
    pub bytes: Vec<u8>,
    /// At most 0, and finite; `None` for the first token of a prompt, which nothing foretells.
    pub logprob: Option<f32>,
}

impl TokenLogprob {
    /// The text, as far as it is one.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

/// How much of a prompt has been processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Tokens of the prompt.
    pub total: usize,
    /// Of these, found in the cache.
    pub cached: usize,
    /// Of these, processed, those of the cache included.
    pub processed: usize,
    /// How long it took so far.
    pub time: Duration,
}

impl Progress {
    /// How long it took so far, as answers tell it.
    pub fn timings(&self) -> Timings {
        Timings {
            cache_n: self.cached,
            prompt_n: self.processed.saturating_sub(self.cached),
            prompt_ms: self.time.as_secs_f64() * 1e3,
            ..Timings::default()
        }
    }
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Why.
    pub reason: FinishReason,
    /// Whether the context was full.
    pub truncated: bool,
    /// Tokens of prompt and answer whose keys and values were there at the end.
    pub n_kept: usize,
    /// Under which number the sequence is found again.
    pub slot: Option<usize>,
    /// The stop string that ended it.
    pub stop_string: Option<String>,
    /// Tokens.
    pub usage: Usage,
    /// How long it took.
    pub timings: Timings,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model said so, or a stop string.
    Stop,
    /// As many tokens as were asked for, or as fit.
    Length,
    /// It waits for the results of tools.
    ToolCalls,
}

/// How many tokens a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt: usize,
    /// Of these, found in the cache.
    pub cached: usize,
    /// Of the answer.
    pub generated: usize,
    /// Of these, reasoning; a token that completes no character is not counted.
    pub reasoning: usize,
}

impl Usage {
    /// Of several answers to one prompt: the prompt counts once.
    pub fn and(self, other: Self) -> Self {
        Self {
            prompt: self.prompt.max(other.prompt),
            cached: self.cached.max(other.cached),
            generated: self.generated + other.generated,
            reasoning: self.reasoning + other.reasoning,
        }
    }
}

/// A whole answer, put together from its pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Text for the user.
    pub content: String,
    /// What the model thought.
    pub reasoning: String,
    /// The calls, in order.
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a tool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// Which call of its answer, from 0.
    pub index: usize,
    /// Unique name of the call.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments, JSON.
    pub arguments: String,
}

impl Message {
    /// Appends a piece.
    pub fn push(&mut self, delta: &Delta) {
        match delta {
            Delta::Content(text) => self.content.push_str(text),
            Delta::Reasoning(text) => self.reasoning.push_str(text),
            Delta::ToolCallBegin { index, id, name } => self.tool_calls.push(ToolCall {
                index: *index,
                id: id.clone(),
                name: name.clone(),
                arguments: String::new(),
            }),
            Delta::ToolCallArguments { index, text } => {
                if let Some(call) = self.tool_calls.get_mut(*index) {
                    call.arguments.push_str(text);
                }
            }
            Delta::ToolCallEnd { .. } => {}
        }
    }
}
