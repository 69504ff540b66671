//! Chat templates.
use crate::Tokenizer;
use hurtle_gguf::Metadata;
use serde_json::{Map, Value};

/// Why a template could not be compiled or rendered.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String); // its owner replaces it by a real enum

/// What a template is rendered with.
#[derive(Debug, Clone, Default)]
pub struct RenderInput {
    /// Objects with `role`, `content`, `tool_calls` ...
    pub messages: Vec<Value>,
    /// Tool definitions, OpenAI's shape; `None` is `none` in the template.
    pub tools: Option<Vec<Value>>,
    /// Whether to open the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables (`enable_thinking`, `documents`, `date_string` ...).
    pub extra: Map<String, Value>,
    /// What `strftime_now` sees; the clock's local time if `None`. `%Y-%m-%dT%H:%M:%S`.
    pub now: Option<String>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {}

impl ChatTemplate {
    /// The template of a file (`tokenizer.chat_template`, or `tokenizer.chat_template.NAME` for a
    /// named one such as `tool_use`), else `None`. bos/eos texts come from the tokenizer.
    pub fn from_metadata(
        metadata: &Metadata,
        tokenizer: &Tokenizer,
        name: Option<&str>,
    ) -> Result<Option<Self>, TemplateError> {
        let _ = (metadata, tokenizer, name);
        todo!()
    }
    /// Compiles Jinja source.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let _ = (source, bos, eos);
        todo!()
    }
    /// A template known by name (`chatml`, `llama3`, `gemma`, ...), llama.cpp's `--chat-template` names.
    pub fn builtin(name: &str, bos: &str, eos: &str) -> Option<Self> {
        let _ = (name, bos, eos);
        todo!()
    }
    /// The names `builtin` knows.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        [].into_iter()
    }
    /// The Jinja source.
    pub fn source(&self) -> &str {
        todo!()
    }
    /// The prompt, exactly as Hugging Face's `apply_chat_template` renders it.
    pub fn render(&self, input: &RenderInput) -> Result<String, TemplateError> {
        let _ = input;
        todo!()
    }
    /// As `render`, but whatever in the messages' texts (all roles but assistant) or tools spells a special
    /// token of `tokenizer` is broken up by a guard character that occurs nowhere in the input.
    /// Returns the prompt and the guard, for [`Tokenizer::encode_guarded`].
    pub fn render_guarded(
        &self,
        input: &RenderInput,
        tokenizer: &Tokenizer,
    ) -> Result<(String, char), TemplateError> {
        let _ = (input, tokenizer);
        todo!()
    }
}
