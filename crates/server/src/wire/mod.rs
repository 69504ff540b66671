//! The wire types: a decoder of requests and an encoder of replies for each API.
pub mod anthropic;
pub(crate) mod embeddings;
mod fields;
pub mod llama_cpp;
pub mod ollama;
pub mod openai;
mod options;
pub mod responses;

use crate::error::ApiError;
use crate::output::Progress;
use hurtle_engine::Timings;
use serde_json::{Value, json};

/// One message of a stream of server-sent events.
#[derive(Debug, Clone, PartialEq)]
pub struct SseEvent {
    /// The event's name, where the API has names.
    pub event: Option<&'static str>,
    /// Its data.
    pub data: Value,
}

impl SseEvent {
    fn unnamed(data: Value) -> Self {
        Self { event: None, data }
    }

    /// An event whose name is repeated in its data as `type`, as Anthropic has it.
    fn typed(event: &'static str, mut data: Value) -> Self {
        data["type"] = event.into();
        Self { event: Some(event), data }
    }

    /// With llama.cpp's times, if there are any.
    pub fn with_timings(mut self, timings: Option<&Timings>) -> Self {
        if let Some(timings) = timings {
            self.data["timings"] = llama_cpp::timings(timings);
        }
        self
    }

    /// With how far the prompt is.
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.data["prompt_progress"] = llama_cpp::progress(progress);
        self
    }

    /// As it goes over the wire. JSON has no line breaks outside of strings, and escapes those inside.
    pub fn encode(&self) -> String {
        match self.event {
            Some(event) => format!("event: {event}\ndata: {}\n\n", self.data),
            None => format!("data: {}\n\n", self.data),
        }
    }
}

/// What closes an OpenAI stream.
pub const SSE_DONE: &str = "data: [DONE]\n\n";

/// The texts of a message's content: a text, or parts of which each is a text. Parts are joined by line
/// breaks, as llama.cpp does.
fn content_text(content: &Value, at: &str, text_types: &[&str]) -> Result<String, ApiError> {
    Ok(content_texts(content, at, text_types)?.join("\n"))
}

/// The texts of a content: one, or one of each part.
fn content_texts<'a>(
    content: &'a Value,
    at: &str,
    text_types: &[&str],
) -> Result<Vec<&'a str>, ApiError> {
    let parts = match content {
        Value::Null => return Ok(Vec::new()),
        Value::String(text) => return Ok(vec![text]),
        Value::Array(parts) => parts,
        _ => {
            return Err(ApiError::invalid(
                at,
                format!("{at}: expected a text or an array of parts"),
            ));
        }
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        let kind = part["type"].as_str().unwrap_or("missing");
        if !text_types.contains(&kind) {
            return Err(ApiError::invalid(
                format!("{at}[{i}]"),
                format!(
                    "{at}[{i}]: a part of type '{kind}' cannot be read: models are given text only"
                ),
            ));
        }
        let text = part["text"].as_str().ok_or_else(|| {
            ApiError::invalid(format!("{at}[{i}]"), format!("{at}[{i}].text: expected a text"))
        })?;
        texts.push(text);
    }
    Ok(texts)
}

/// Arguments where they have to be an object; what is none is given under a name that says so.
fn arguments_object(arguments: &str) -> Value {
    match arguments_value(&Value::String(arguments.to_owned())) {
        object @ Value::Object(_) => object,
        text => json!({"unparsed": text}),
    }
}

/// Arguments of an earlier call as templates want them: an object if they are one, else the text as it is.
fn arguments_value(arguments: &Value) -> Value {
    match arguments {
        Value::String(text) if text.trim().is_empty() => Value::Object(Default::default()),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(object @ Value::Object(_)) => object,
            _ => arguments.clone(),
        },
        Value::Null => Value::Object(Default::default()),
        other => other.clone(),
    }
}
