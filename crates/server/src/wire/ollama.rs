//! Ollama's chat and generate.
use super::fields::Fields;
use super::openai::{function_call, read_tool_choice, read_tools};
use super::{arguments_object, arguments_value, options};
use crate::error::ApiError;
use crate::keep_alive::KeepAlive;
use crate::output::{FinishReason, Logprobs, Message, Outcome, TokenLogprob, ToolCall};
use crate::request::{Chat, Completion, Generate, Prompt, Reply};
use hurtle_engine::constraint::Grammar;
use hurtle_engine::sampler::SamplerParams;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// Options that say how Ollama's runner is to use the machine; here the server's flags say it, and they
/// change no answer.
pub const IGNORED_OPTIONS: &[&str] = &[
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "low_vram",
    "f16_kv",
    "vocab_only",
    "logits_all",
    "embedding_only",
    "use_mmap",
    "use_mlock",
    "numa",
    "num_keep",
];

/// A request for a conversation.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    /// What is asked.
    pub chat: Chat,
    /// How long the model stays.
    pub keep_alive: Option<KeepAlive>,
}

/// A request for a single prompt.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// What is asked; with an empty prompt, only to load or unload the model.
    pub ask: Ask,
    /// How long the model stays.
    pub keep_alive: Option<KeepAlive>,
}

/// Through the template or as it is.
#[derive(Debug, Clone)]
pub enum Ask {
    /// The prompt is one user message.
    Chat(Chat),
    /// The prompt is continued (`raw`, or a `suffix` to fill in before).
    Completion(Completion),
}

/// Reads the body of `/api/chat`. No messages mean that the model is to be loaded or unloaded.
pub fn parse_chat(body: &[u8], sampler: &SamplerParams) -> Result<ChatRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let (model, generation, keep_alive, reply) = common(&mut fields, sampler)?;
    let messages: Vec<Value> = fields.opt("messages")?.unwrap_or_default();
    let messages = messages.iter().enumerate().map(read_message).collect::<Result<_, _>>()?;
    let tools = read_tools(fields.opt("tools")?.unwrap_or_default())?;
    // Ollama has none; clients that also speak to others send it all the same.
    let (tools, tool_choice) = read_tool_choice(tools, fields.opt("tool_choice")?)?;
    let chat = Chat {
        model: Some(model),
        messages,
        tools,
        tool_choice,
        parallel_tool_calls: true,
        template: thinking(&mut fields)?,
        generation,
        reply,
        ..Chat::default()
    };
    fields.finish(&[])?;
    Ok(ChatRequest { chat, keep_alive })
}

/// Reads the body of `/api/generate`.
pub fn parse_generate(body: &[u8], sampler: &SamplerParams) -> Result<GenerateRequest, ApiError> {
    let mut fields = Fields::parse(body)?;
    let (model, generation, keep_alive, reply) = common(&mut fields, sampler)?;
    let prompt: String = fields.opt("prompt")?.unwrap_or_default();
    let suffix = fields.opt::<String>("suffix")?.filter(|suffix| !suffix.is_empty());
    let system = fields.opt::<String>("system")?.filter(|system| !system.is_empty());
    let raw = fields.opt("raw")?.unwrap_or(false);
    let template = thinking(&mut fields)?;
    fields.only("template", json!(""), "start the server with --chat-template-file")?;
    let before: Vec<u32> = fields.opt("context")?.unwrap_or_default();
    fields.only("images", json!([]), "models are given text only")?;
    fields.finish(&[])?;
    if system.is_some() && (raw || suffix.is_some()) {
        return Err(ApiError::invalid(
            "system",
            "system: a prompt that is raw or has a suffix knows no system message",
        ));
    }
    if !before.is_empty() && (raw || suffix.is_some()) {
        return Err(ApiError::invalid(
            "context",
            "context: a prompt that is raw or has a suffix is all of its context",
        ));
    }
    let ask = if raw || suffix.is_some() {
        Ask::Completion(Completion {
            model: Some(model),
            prompts: vec![Prompt::Text(prompt)],
            suffix,
            generation,
            reply,
        })
    } else {
        let mut messages = Vec::new();
        messages.extend(system.map(|text| json!({"role": "system", "content": text})));
        if !prompt.is_empty() {
            messages.push(json!({"role": "user", "content": prompt}));
        }
        Ask::Chat(Chat {
            model: Some(model),
            messages,
            before,
            template,
            generation,
            reply,
            ..Chat::default()
        })
    };
    Ok(GenerateRequest { ask, keep_alive })
}

/// The model that a body names, under the newer or the older name of that field.
fn name(fields: &mut Fields) -> Result<String, ApiError> {
    let name = fields.any::<String>(&["model", "name"])?;
    name.filter(|name| !name.is_empty()).ok_or_else(|| fields.wrong("model", "is missing"))
}

/// Reads a body that only names a model.
pub fn parse_name(body: &[u8]) -> Result<String, ApiError> {
    let mut fields = Fields::parse(body)?;
    let name = name(&mut fields)?;
    fields.finish(&[])?;
    Ok(name)
}

/// Reads the body of `/api/pull`: the model, and whether to tell how it goes.
pub fn parse_pull(body: &[u8]) -> Result<(String, bool), ApiError> {
    let mut fields = Fields::parse(body)?;
    let name = name(&mut fields)?;
    fields.only("insecure", json!(false), "certificates are always checked")?;
    let stream = fields.opt("stream")?.unwrap_or(true);
    fields.finish(&[])?;
    Ok((name, stream))
}

/// Reads the body of `/api/show`: the model, and whether vocabularies are to be shown as well.
pub fn parse_show(body: &[u8]) -> Result<(String, bool), ApiError> {
    let mut fields = Fields::parse(body)?;
    let name = name(&mut fields)?;
    let verbose = fields.opt("verbose")?.unwrap_or(false);
    fields.only("system", json!(""), "the model's own is shown")?;
    fields.only("template", json!(""), "the model's own is shown")?;
    fields.finish(&[])?;
    Ok((name, verbose))
}

type Common = (String, Generate, Option<KeepAlive>, Reply);

fn common(fields: &mut Fields, sampler: &SamplerParams) -> Result<Common, ApiError> {
    let model: String = fields.required("model")?;
    let mut generate = options::defaults(sampler);
    match fields.opt::<Value>("format")? {
        None => {}
        Some(Value::String(name)) if name.is_empty() => {}
        Some(Value::String(name)) if name == "json" => generate.format = Some(Grammar::JsonObject),
        Some(schema @ Value::Object(_)) => generate.format = Some(Grammar::JsonSchema(schema)),
        Some(_) => return Err(fields.wrong("format", "expected \"json\" or a JSON schema")),
    }
    generate.format_param = "format";
    // Ollama knows options only where they have a place of their own, and drops these.
    options::sampling(fields, &mut generate)?;
    options::length(fields, &["max_output_tokens"], &mut generate)?;
    if let Some(mut options) = fields.object("options")? {
        options::sampling(&mut options, &mut generate)?;
        options::stop(&mut options, "stop", &mut generate)?;
        options::length(&mut options, &["num_predict"], &mut generate)?;
        generate.n_ctx = options.opt("num_ctx")?;
        options.only("penalize_newline", json!(true), "line breaks are tokens like any other")?;
        if options.opt::<f64>("tfs_z")?.is_some_and(|z| z != 1.0) {
            return Err(
                options.wrong("tfs_z", "expected 1, which is off: there is no tail-free sampling")
            );
        }
        options.finish(IGNORED_OPTIONS)?;
    }
    let logprobs = fields.opt("logprobs")?.unwrap_or(false);
    let top: Option<usize> = fields.opt("top_logprobs")?;
    if top.is_some_and(|n| n > options::MAX_LOGPROBS) {
        let most = options::MAX_LOGPROBS;
        return Err(fields.wrong("top_logprobs", &format!("expected at most {most}")));
    }
    generate.logprobs = logprobs.then(|| top.unwrap_or(0));
    let cut = "nothing is ever cut off; what does not fit is refused";
    fields.only("truncate", json!(false), cut)?;
    fields.only("shift", json!(false), "an answer ends where the context does")?;
    let keep_alive = keep_alive(fields)?;
    // Ollama streams unless told otherwise.
    let reply = Reply { stream: fields.opt("stream")?.unwrap_or(true), include_usage: true };
    Ok((model, generate, keep_alive, reply))
}

/// How long the model stays.
pub(super) fn keep_alive(fields: &mut Fields) -> Result<Option<KeepAlive>, ApiError> {
    let Some(value) = fields.opt::<Value>("keep_alive")? else { return Ok(None) };
    let what = "expected seconds, or a time such as \"5m\" or \"-1\"";
    let read = KeepAlive::from_json(&value).ok_or_else(|| fields.wrong("keep_alive", what))?;
    Ok(Some(read))
}

/// `think`: whether, or how much.
fn thinking(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut template = Map::new();
    match fields.opt::<Value>("think")? {
        None => {}
        Some(on @ Value::Bool(_)) => {
            template.insert("enable_thinking".into(), on);
        }
        Some(Value::String(effort))
            if ["low", "medium", "high", "max"].contains(&effort.as_str()) =>
        {
            template.insert("enable_thinking".into(), true.into());
            template.insert("reasoning_effort".into(), effort.into());
        }
        Some(_) => {
            return Err(fields.wrong("think", "expected a boolean, low, medium, high or max"));
        }
    }
    Ok(template)
}

fn read_message((i, message): (usize, &Value)) -> Result<Value, ApiError> {
    let at = format!("messages[{i}]");
    let wrong = |field: &str, what: &str| {
        Err(ApiError::invalid(format!("{at}.{field}"), format!("{at}.{field}: {what}")))
    };
    let Some(role @ ("system" | "user" | "assistant" | "tool")) = message["role"].as_str() else {
        return wrong("role", "expected system, user, assistant or tool");
    };
    if message["images"].as_array().is_some_and(|images| !images.is_empty()) {
        return wrong("images", "models are given text only");
    }
    let content = match &message["content"] {
        Value::Null => "",
        Value::String(text) => text,
        _ => return wrong("content", "expected a text"),
    };
    let mut out = json!({"role": role, "content": content});
    for (theirs, ours) in [
        ("thinking", "reasoning_content"),
        ("tool_name", "name"),
        ("name", "name"),
        ("tool_call_id", "tool_call_id"),
    ] {
        if let Some(Value::String(text)) = message.get(theirs) {
            out[ours] = text.as_str().into();
        }
    }
    if let Some(calls) = message["tool_calls"].as_array().filter(|calls| !calls.is_empty()) {
        let mut read = Vec::new();
        for call in calls {
            let Some(name) = call["function"]["name"].as_str() else {
                return wrong("tool_calls", "a call needs the name of a function");
            };
            let arguments = arguments_value(&call["function"]["arguments"]);
            read.push(function_call(call["id"].as_str().unwrap_or_default(), name, arguments));
        }
        out["tool_calls"] = read.into();
    }
    Ok(out)
}

/// What every line of a reply says of itself.
#[derive(Debug, Clone)]
pub struct Head {
    /// The model's name, as it was asked for.
    pub model: String,
    /// When it was asked.
    pub asked: Instant,
    /// How long it waited for the model.
    pub load: Duration,
}

impl Head {
    /// A line of a chat, and with an outcome its last or only one.
    pub fn chat(&self, message: &Message, outcome: Option<&Outcome>) -> Value {
        let mut out = json!({"role": "assistant", "content": message.content});
        if !message.reasoning.is_empty() {
            out["thinking"] = message.reasoning.as_str().into();
        }
        if !message.tool_calls.is_empty() {
            let call = |call: &ToolCall| {
                let arguments = arguments_object(&call.arguments);
                json!({"id": call.id, "function":
                    {"index": call.index, "name": call.name, "arguments": arguments}})
            };
            out["tool_calls"] = message.tool_calls.iter().map(call).collect();
        }
        self.line("message", out, outcome)
    }

    /// A line of a generation, and with an outcome its last or only one.
    pub fn generate(&self, message: &Message, outcome: Option<&Outcome>) -> Value {
        let mut line = self.line("response", message.content.as_str().into(), outcome);
        if !message.reasoning.is_empty() {
            line["thinking"] = message.reasoning.as_str().into();
        }
        line
    }

    /// The reply to a request that only loads or unloads.
    pub fn loaded(&self, chat: bool, unloaded: bool) -> Value {
        let (key, value) = match chat {
            true => ("message", json!({"role": "assistant", "content": ""})),
            false => ("response", json!("")),
        };
        let mut line = self.line(key, value, None);
        line["done"] = true.into();
        line["done_reason"] = if unloaded { "unload" } else { "load" }.into();
        line
    }

    fn line(&self, key: &str, value: Value, outcome: Option<&Outcome>) -> Value {
        let mut line = json!({
            "model": self.model,
            "created_at": jiff::Timestamp::now().to_string(),
            key: value,
            "done": outcome.is_some(),
        });
        if let Some(outcome) = outcome {
            let nanos = |millis: f64| (millis * 1e6) as u64;
            let timings = &outcome.timings;
            // Calls of tools end an answer like any other.
            let reason = if outcome.reason == FinishReason::Length { "length" } else { "stop" };
            line["done_reason"] = reason.into();
            line["total_duration"] = (self.asked.elapsed().as_nanos() as u64).into();
            line["load_duration"] = (self.load.as_nanos() as u64).into();
            line["prompt_eval_count"] = outcome.usage.prompt.into();
            line["prompt_eval_duration"] = nanos(timings.prompt_ms).into();
            line["eval_count"] = outcome.usage.generated.into();
            line["eval_duration"] = nanos(timings.predicted_ms).into();
        }
        line
    }
}

/// A line with the tokens that it completes, if log-probabilities were asked for.
pub fn with_logprobs(mut line: Value, tokens: &[Logprobs]) -> Value {
    let entry = |token: &TokenLogprob| json!({"token": token.text(), "logprob": token.logprob, "bytes": token.bytes});
    if !tokens.is_empty() {
        let tokens = tokens.iter().map(|Logprobs { token, top }| {
            let mut value = entry(token);
            if !top.is_empty() {
                value["top_logprobs"] = top.iter().map(entry).collect();
            }
            value
        });
        line["logprobs"] = tokens.collect();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Delta, Usage};

    fn chat(body: Value) -> Result<ChatRequest, ApiError> {
        parse_chat(body.to_string().as_bytes(), &SamplerParams::default())
    }

    #[test]
    fn options_are_honoured_or_refused() {
        let body = |options: Value| json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "options": options});
        let request = chat(body(json!({"num_predict": 7, "temperature": 0, "seed": 1, "stop": ["a"], "num_ctx": 64, "num_gpu": 1})))
            .expect("read");
        let generate = &request.chat.generation;
        assert_eq!((generate.params.n_predict, generate.n_ctx), (Some(7), Some(64)));
        assert_eq!(generate.params.sampler.seed, Some(1));
        assert!(request.chat.reply.stream);
        let error = chat(body(json!({"tfs_z": 0.5}))).expect_err("refused");
        assert_eq!(error.param.as_deref(), Some("options.tfs_z"));
        let mut beside = body(json!({"temperature": 0.25}));
        beside["max_output_tokens"] = 9.into();
        beside["top_p"] = 0.5.into();
        let generate = chat(beside).expect("read").chat.generation;
        let sampler = &generate.params.sampler;
        assert_eq!((generate.params.n_predict, sampler.top_p, sampler.temp), (Some(9), 0.5, 0.25));
        let unlimited = chat(body(json!({"num_predict": -1}))).expect("read");
        assert_eq!(unlimited.chat.generation.params.n_predict, None);
    }

    #[test]
    fn a_prompt_is_a_message_or_a_text() {
        let read = |body: Value| {
            parse_generate(body.to_string().as_bytes(), &SamplerParams::default()).map(|r| r.ask)
        };
        let Ok(Ask::Chat(chat)) = read(json!({"model": "m", "prompt": "x", "system": "s"})) else {
            panic!("expected a chat");
        };
        assert_eq!(chat.messages.len(), 2);
        let Ok(Ask::Completion(raw)) = read(json!({"model": "m", "prompt": "x", "raw": true}))
        else {
            panic!("expected a completion");
        };
        assert_eq!(raw.prompts, [Prompt::Text("x".into())]);
        let follow = json!({"model": "m", "prompt": "x", "context": [1, 2]});
        let Ok(Ask::Chat(chat)) = read(follow.clone()) else { panic!("expected a chat") };
        assert_eq!(chat.before, [1, 2]);
        let mut raw = follow;
        raw["raw"] = true.into();
        assert_eq!(read(raw).expect_err("refused").param.as_deref(), Some("context"));
        let Ok(Ask::Chat(load)) = read(json!({"model": "m"})) else { panic!("expected a chat") };
        assert!(load.messages.is_empty());
        for (key, value) in [
            ("template", json!("{{ .Prompt }}")),
            ("context", json!(["a"])),
            ("images", json!(["x"])),
        ] {
            let mut body = json!({"model": "m", "prompt": "x"});
            body[key] = value;
            assert_eq!(read(body).expect_err(key).param.as_deref(), Some(key));
        }
    }

    #[test]
    fn lines_of_a_stream() {
        let head = Head { model: "m".into(), asked: Instant::now(), load: Duration::ZERO };
        let mut message = Message::default();
        message.push(&Delta::Content("hi".into()));
        let line = head.chat(&message, None);
        assert_eq!((&line["message"]["content"], &line["done"]), (&json!("hi"), &json!(false)));
        let outcome = Outcome {
            reason: FinishReason::Stop,
            truncated: false,
            n_kept: 0,
            slot: None,
            stop_string: None,
            usage: Usage { prompt: 3, cached: 0, generated: 2, reasoning: 0 },
            timings: hurtle_engine::Timings { prompt_ms: 2.0, ..Default::default() },
        };
        let last = head.generate(&Message::default(), Some(&outcome));
        assert_eq!((&last["done"], &last["response"]), (&json!(true), &json!("")));
        assert_eq!(
            (&last["eval_count"], &last["prompt_eval_duration"]),
            (&json!(2), &json!(2_000_000))
        );
    }
}
