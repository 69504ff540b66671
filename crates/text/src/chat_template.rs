//! Chat templates: the Jinja program in a model file that turns a conversation into its prompt.
//!
//! ```text
//! messages, tools ─► [guard.rs] ─► template (jinja.rs, json.rs: Python's semantics) ─► prompt
//!                                     ▲ from the file, or builtin.rs
//! ```
mod builtin;
mod guard;
mod jinja;
mod json;
mod python;
mod source;

use crate::tools::history::Abilities;
use crate::{AnswerFormat, Encode, Reasoning, Tokenizer};
use guard::Guard;
use hurtle_gguf::Metadata;
use minijinja::Environment;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

/// Why a template could not be compiled or rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The source is no valid Jinja.
    #[error("chat template, line {line}: {message}")]
    Syntax {
        /// Line in the template's source, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// The template called `raise_exception`: it does not accept this conversation.
    #[error("the chat template refuses this conversation: {message}")]
    Raised {
        /// Line in the template's source, from 1.
        line: usize,
        /// What the template says.
        message: String,
    },
    /// An operation in the template failed.
    #[error("chat template, line {line}: {message}")]
    Render {
        /// Line in the template's source, from 1.
        line: usize,
        /// What failed.
        message: String,
    },
    /// The template runs for too long or produces too much.
    #[error(
        "chat template, line {line}: stopped after using up the time and memory one rendering may take\nhint: use another template with '--chat-template NAME' or '--chat-template-file FILE'"
    )]
    Limit {
        /// Where it was stopped.
        line: usize,
    },
    /// No private-use character is free to guard the texts with.
    #[error(
        "the conversation uses every private-use character, so its special tokens cannot be told from the template's"
    )]
    NoGuard,
    /// `RenderInput::now` is no date.
    #[error("the time '{0}' is not of the form 2025-03-14T09:26:53")]
    Now(String),
    /// The system gives no thread to render in.
    #[error("cannot start the thread that renders chat templates: {0}")]
    Thread(#[source] std::io::Error),
    /// The file's template is of the wrong type.
    #[error(transparent)]
    Metadata(#[from] hurtle_gguf::Error),
}

/// What a template is rendered with.
#[derive(Debug, Clone, Default)]
pub struct RenderInput {
    /// Objects with `role`, `content`, `tool_calls` ...
    pub messages: Vec<Value>,
    /// Tool definitions, OpenAI's shape; `None` is `none` in the template.
    pub tools: Option<Vec<Value>>,
    /// Whether to open the assistant's turn.
    pub add_generation_prompt: bool,
    /// What the assistant's turn begins with.
    pub begun: Option<Begun>,
    /// Further variables (`enable_thinking`, `documents`, `date_string` ...).
    pub extra: Map<String, Value>,
    /// What `strftime_now` sees; the clock's local time if `None`. `%Y-%m-%dT%H:%M:%S`.
    pub now: Option<String>,
}

/// An answer that has been begun, and that the model goes on with. Like all that the assistant has said, it may hold
/// control tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Begun {
    /// What it has thought; that ends where there is content.
    pub reasoning: String,
    /// What it has said.
    pub content: String,
}

/// A rendered prompt, ready for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    /// Its tokens, with BOS as the model says.
    pub ids: Vec<u32>,
    /// Whether the answer begins with reasoning.
    pub reasoning: Reasoning,
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
    /// Found out when it is first asked for.
    abilities: Arc<OnceLock<Abilities>>,
}

impl ChatTemplate {
    /// The template of a file (`tokenizer.chat_template`, or `tokenizer.chat_template.NAME` for a
    /// named one such as `tool_use`), else `None`. bos/eos texts come from the tokenizer.
    pub fn from_metadata(
        metadata: &Metadata,
        tokenizer: &Tokenizer,
        name: Option<&str>,
    ) -> Result<Option<Self>, TemplateError> {
        let key = match name {
            None | Some("default") => "tokenizer.chat_template".to_owned(),
            Some(name) => format!("tokenizer.chat_template.{name}"),
        };
        let Some(source) = metadata.string(&key)? else { return Ok(None) };
        let text = |id: Option<u32>| {
            id.and_then(|id| tokenizer.token_text(id)).map_or_else(String::new, Cow::into_owned)
        };
        Self::new(source, &text(tokenizer.bos()), &text(tokenizer.eos())).map(Some)
    }

    /// The names of a file's further templates (`tool_use`, `rag` ...), for [`Self::from_metadata`].
    pub fn names_in_metadata(metadata: &Metadata) -> Result<Vec<String>, TemplateError> {
        let Some(names) = metadata.strings("tokenizer.chat_templates")? else {
            return Ok(Vec::new());
        };
        Ok(names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }

    /// A template for a file that has none, and its name: chosen by the special tokens of the
    /// vocabulary, then by the architecture; `plain` puts the messages one after another if nothing
    /// is known, which callers should tell the user.
    pub fn fallback_for(
        metadata: &Metadata,
        tokenizer: &Tokenizer,
    ) -> Result<(Self, &'static str), TemplateError> {
        let architecture = metadata.string("general.architecture")?.unwrap_or_default();
        let pre = metadata.string("tokenizer.ggml.pre")?.unwrap_or_default();
        let name = builtin::guess(|text| tokenizer.token_id(text).is_some(), architecture, pre);
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let bos = bos.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        let source = builtin::source(name).unwrap_or_default();
        Ok((Self::new(&source, &bos, "")?, name))
    }

    /// A template known by name (`chatml`, `llama3`, `gemma`, ...), llama.cpp's `--chat-template`
    /// names. It puts `bos` first: pass an empty one if the model is run without. `eos` is what
    /// templates see as `eos_token`; these have their own ends of turn and do not look at it.
    pub fn builtin(name: &str, bos: &str, eos: &str) -> Option<Self> {
        Self::new(&builtin::source(name)?, bos, eos).ok()
    }

    /// The names `builtin` knows.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        builtin::names()
    }

    /// Compiles Jinja source.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let normalized = source::normalize(source)?;
        let env = with_stack(|| {
            jinja::environment(&normalized).map_err(|e| TemplateError::Syntax {
                line: e.line().unwrap_or(1),
                message: message(&e),
            })
        })?;
        let (bos, eos) = (bos.to_owned(), eos.to_owned());
        Ok(Self { env, source: source.to_owned(), bos, eos, abilities: Arc::default() })
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt, exactly as Hugging Face's `apply_chat_template` renders it.
    pub fn render(&self, input: &RenderInput) -> Result<String, TemplateError> {
        with_stack(|| self.render_here(input))
    }

    fn render_here(&self, input: &RenderInput) -> Result<String, TemplateError> {
        let mut bytes = 0;
        let mut list = |values: &[Value]| {
            minijinja::Value::from_iter(values.iter().map(|v| jinja::value(v, &mut bytes)))
        };
        let messages = list(&input.messages);
        let tools = input.tools.as_deref().map_or(().into(), &mut list);
        let mut variables: Vec<(String, minijinja::Value)> = vec![
            ("documents".into(), ().into()),
            ("strftime_now".into(), jinja::clock(input.now.as_deref())?),
            ("bos_token".into(), self.bos.as_str().into()),
            ("eos_token".into(), self.eos.as_str().into()),
        ];
        variables.extend(input.extra.iter().map(|(k, v)| (k.clone(), jinja::value(v, &mut bytes))));
        variables.extend([
            ("messages".into(), messages),
            ("tools".into(), tools),
            ("add_generation_prompt".into(), input.add_generation_prompt.into()),
        ]);
        let mut env = self.env.clone();
        env.set_fuel(Some(jinja::fuel(bytes)));
        let ctx = minijinja::Value::from_pairs(variables);
        let prompt = env.get_template(jinja::NAME).and_then(|t| t.render(ctx));
        let mut prompt = prompt.map_err(render_error)?;
        if let Some(begun) = &input.begun {
            self.begin(&mut prompt, begun);
        }
        Ok(prompt)
    }

    /// Appends an answer that has been begun, with the markers of reasoning that it needs.
    fn begin(&self, prompt: &mut String, begun: &Begun) {
        let format = self.answer_format();
        let (open, close) = format.reasoning();
        let opened = format.opens_reasoning(prompt);
        let thinks = opened || !begun.reasoning.is_empty();
        if thinks && !opened {
            *prompt += &format!("{open}\n");
        }
        *prompt += &begun.reasoning;
        if thinks && !begun.content.is_empty() {
            *prompt += &format!("\n{close}\n\n");
        }
        *prompt += &begun.content;
    }

    /// As `render`, but whatever in the messages' texts (all roles but assistant) or tools spells a special
    /// token of `tokenizer` is broken up by a guard character that occurs nowhere in the input.
    /// Returns the prompt and the guard, for [`Tokenizer::encode_guarded`].
    ///
    /// A message's `role` is the caller's to check: templates build special tokens of it.
    pub fn render_guarded(
        &self,
        input: &RenderInput,
        tokenizer: &Tokenizer,
    ) -> Result<(String, char), TemplateError> {
        self.render_guarding(input, tokenizer.special_texts())
    }

    /// As [`Self::render_guarded`], with the special texts given.
    pub fn render_guarding<'a>(
        &self,
        input: &RenderInput,
        specials: impl IntoIterator<Item = &'a str>,
    ) -> Result<(String, char), TemplateError> {
        let template = [self.source.as_str(), &self.bos, &self.eos];
        let guard = Guard::new(specials, input, &template).ok_or(TemplateError::NoGuard)?;
        Ok((self.render(&guard.apply(input))?, guard.mark))
    }

    /// The prompt of a conversation, as far as necessary [adapted](Self::adapt) to the template. What the conversation says cannot become a control token, unless
    /// `parse_special` allows it.
    pub fn prompt(
        &self,
        tok: &Tokenizer,
        input: &RenderInput,
        parse_special: bool,
    ) -> Result<ChatPrompt, TemplateError> {
        let input = &self.adapt(input);
        let (text, mut ids) = if parse_special {
            let text = self.render(input)?;
            let ids = tok.encode(&text, Encode { add_special: false, parse_special: true });
            (text, ids)
        } else {
            let (text, guard) = self.render_guarded(input, tok)?;
            let ids = tok.encode_guarded(&text, guard, false);
            (text, ids)
        };
        // Templates that write BOS themselves must not get a second one.
        if let Some(bos) = tok.bos().filter(|bos| tok.adds_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ChatPrompt { ids, reasoning: self.reasoning(input, &text) })
    }

    /// Whether the answer to this prompt begins with reasoning.
    fn reasoning(&self, input: &RenderInput, prompt: &str) -> Reasoning {
        let format = self.answer_format();
        match &input.begun {
            Some(Begun { content, .. }) if !content.is_empty() => Reasoning::Off,
            Some(Begun { reasoning, .. }) if !reasoning.is_empty() => Reasoning::Opened,
            _ if format.opens_reasoning(prompt) => Reasoning::Opened,
            // Every answer of these models has a header.
            _ if !format.can_be_begun() => Reasoning::Possible,
            _ if !self.supports_reasoning() || format.closes_reasoning(prompt) => Reasoning::Off,
            _ if input.forbids_reasoning() => Reasoning::Off,
            _ => Reasoning::Possible,
        }
    }

    fn abilities(&self) -> Abilities {
        *self.abilities.get_or_init(|| Abilities::of(self))
    }

    /// Whether the template shows tools to the model.
    pub fn supports_tools(&self) -> bool {
        self.abilities().tools
    }

    /// Whether the template accepts a system message and shows it to the model.
    pub fn supports_system_role(&self) -> bool {
        self.abilities().system
    }

    /// Whether the template knows reasoning.
    pub fn supports_reasoning(&self) -> bool {
        let format = self.answer_format();
        let (open, close) = format.reasoning();
        // Some do no more than take it from earlier answers.
        !format.can_be_begun() || self.source.contains(open) || self.source.contains(close)
    }

    /// How the model writes reasoning and calls of tools.
    pub fn answer_format(&self) -> AnswerFormat {
        AnswerFormat::of_template(&self.source, self.supports_tools())
    }

    /// The conversation as this template can take it: tools, their calls and results in a form that it shows,
    /// and with [`RenderInput::merge_system`] if it has no system role. [`Self::render`] itself never
    /// does this.
    pub fn adapt(&self, input: &RenderInput) -> RenderInput {
        let input = input.with_tools_for(&self.answer_format(), self.abilities());
        match input.messages.iter().any(is_system) && !self.supports_system_role() {
            true => input.merge_system(),
            false => input,
        }
    }
}

impl RenderInput {
    /// Whether a variable tells the model not to think, under the names that templates have for it.
    fn forbids_reasoning(&self) -> bool {
        let off = Some(&Value::Bool(false));
        ["enable_thinking", "thinking"].iter().any(|name| self.extra.get(*name) == off)
    }

    /// The same conversation without a system role: its system messages, joined by line breaks,
    /// begin the first user message; if there is none, they become one.
    pub fn merge_system(&self) -> Self {
        let (system, mut messages): (Vec<Value>, Vec<Value>) =
            self.messages.iter().cloned().partition(is_system);
        let text = system.iter().map(text_of).collect::<Vec<_>>().join("\n");
        if !text.is_empty() {
            match messages.iter_mut().find(|m| m["role"] == "user") {
                Some(user) => match &mut user["content"] {
                    Value::Array(parts) => {
                        parts.insert(0, json!({"type": "text", "text": text + "\n"}));
                    }
                    content => {
                        let user = content.as_str().unwrap_or_default();
                        *content = Value::String(format!("{text}\n{user}"));
                    }
                },
                None => messages.insert(0, json!({"role": "user", "content": text})),
            }
        }
        Self { messages, ..self.clone() }
    }
}

fn is_system(message: &Value) -> bool {
    message.get("role").is_some_and(|role| role == "system")
}

/// A message's content, or the texts of its parts.
fn text_of(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect()
        }
        _ => String::new(),
    }
}

/// Runs `f` with a stack that is deep enough for whatever a template may nest: minijinja compiles,
/// prints and drops recursively, and the stack of a server's worker has two megabytes. Only what is
/// used takes memory.
fn with_stack<T: Send>(
    f: impl FnOnce() -> Result<T, TemplateError> + Send,
) -> Result<T, TemplateError> {
    const STACK: usize = 256 << 20;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK);
        match thread.spawn_scoped(scope, f).map_err(TemplateError::Thread)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The innermost line and cause of minijinja's chain.
fn render_error(e: minijinja::Error) -> TemplateError {
    let mut line = e.line().unwrap_or(1);
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&e);
    while let Some(at) = cause {
        if let Some(raised) = at.downcast_ref::<jinja::Raised>() {
            return TemplateError::Raised { line, message: raised.0.clone() };
        }
        if let Some(inner) = at.downcast_ref::<minijinja::Error>() {
            line = inner.line().unwrap_or(line);
            if inner.kind() == minijinja::ErrorKind::OutOfFuel {
                return TemplateError::Limit { line };
            }
        }
        cause = at.source();
    }
    TemplateError::Render { line, message: message(&e) }
}

/// minijinja's kind and detail, without its own mention of file and line.
fn message(e: &minijinja::Error) -> String {
    match e.detail() {
        Some(detail) => format!("{}: {detail}", e.kind()),
        None => e.kind().to_string(),
    }
}
