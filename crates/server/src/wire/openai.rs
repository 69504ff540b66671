//! OpenAI's chat completions and completions, with llama.cpp's additions.
use super::fields::Fields;
use super::options::{self, MAX_LOGPROBS};
use super::{SseEvent, arguments_value, content_text, content_texts, llama_cpp};
use crate::error::ApiError;
use crate::output::{
    Delta, FinishReason, Logprobs, Message, Outcome, Progress, TokenLogprob, ToolCall, Usage,
};
use crate::request::{
    Budget, Chat, Completion, Generate, Part, Prompt, ReasoningFormat, Reply, ToolChoice,
};
use hurtle_engine::constraint::Grammar;
use hurtle_engine::sampler::{Distribution, SamplerParams};
use serde_json::{Map, Value, json};

/// What clients send along and what changes no answer here: labels for bookkeeping and hints about speed.
pub const IGNORED: &[&str] = &[
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "backend_sampling",
];

/// Most prompts in one request for completions.
const MAX_PROMPTS: usize = 128;

/// Reads the body of `/v1/chat/completions`; `sampler` holds for what it leaves open.
pub fn parse_chat(body: &[u8], sampler: &SamplerParams) -> Result<Chat, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut generate = options::defaults(sampler);
    common(&mut fields, &mut generate)?;
    options::length(
        &mut fields,
        &["max_completion_tokens", "max_tokens", "n_predict"],
        &mut generate,
    )?;
    options::ends(&mut fields, &mut generate)?;
    let wanted = fields.opt::<bool>("logprobs")?.unwrap_or(false);
    let top = fields.opt::<usize>("top_logprobs")?;
    generate.logprobs = match (wanted, top) {
        (false, Some(1..)) => return Err(fields.wrong("top_logprobs", "needs \"logprobs\": true")),
        (false, _) => None,
        (true, Some(n)) if n > MAX_LOGPROBS => {
            let found = format!("expected at most {MAX_LOGPROBS}, found {n}");
            return Err(fields.wrong("top_logprobs", &found));
        }
        (true, n) => Some(n.unwrap_or(0)),
    };
    // llama.cpp's name for the same.
    let n_probs = options::n_probs(&mut fields, &mut generate)?;
    generate.logprobs = generate.logprobs.or(n_probs);
    let messages = fields.required("messages")?;
    let messages = read_messages(messages)?;
    let (continues, unopened) = read_continues(&mut fields, &messages)?;
    let mut template =
        fields.opt::<Map<String, Value>>("chat_template_kwargs")?.unwrap_or_default();
    if let Some(effort) = fields.opt::<String>("reasoning_effort")? {
        template.insert("reasoning_effort".into(), effort.into());
    }
    options::verbosity(&mut fields, &mut template)?;
    // llama.cpp's: 0 is no reasoning at all, -1 any.
    let message: String = fields.opt("reasoning_budget_message")?.unwrap_or_default();
    let mut budget = None;
    for name in ["reasoning_budget_tokens", "thinking_budget_tokens"] {
        match fields.opt::<i64>(name)? {
            None | Some(-1) => {}
            Some(0) => drop(template.insert("enable_thinking".into(), false.into())),
            Some(n) => {
                let wrong = |_| fields.wrong(name, &format!("expected at least -1, found {n}"));
                let tokens = usize::try_from(n).map_err(wrong)?;
                budget = Some(Budget { tokens, message: message.clone(), param: Some(name) });
            }
        }
    }
    let tools = read_tools(fields.opt("tools")?.unwrap_or_default())?;
    let choice = fields.opt("tool_choice")?;
    let (tools, tool_choice) = read_tool_choice(tools, choice)?;
    let shown = "control tokens are no part of an answer; /v1/completions can show them";
    fields.only("skip_special_tokens", json!(true), shown)?;
    fields.only("modalities", json!(["text"]), "models answer with text only")?;
    let verbose = fields.opt("verbose")?.unwrap_or(false);
    let unread_calls = !fields.opt("parse_tool_calls")?.unwrap_or(true);
    for (old, new) in [("functions", "tools"), ("function_call", "tool_choice")] {
        fields.only(old, json!([]), &format!("use {new}"))?;
    }
    let reply = reply(&mut fields, &mut generate)?;
    // Only what is verbose has a place for them.
    generate.tell.ids = fields.opt("return_tokens")?.unwrap_or(false) && verbose;
    let reasoning = match fields.opt::<String>("reasoning_format")?.as_deref() {
        None | Some("auto" | "deepseek") => ReasoningFormat::Apart,
        Some("none") => ReasoningFormat::InContent,
        // As llama.cpp has it.
        Some("deepseek-legacy") if reply.stream => ReasoningFormat::InContent,
        Some("deepseek-legacy") => ReasoningFormat::Both,
        Some(_) => {
            let what = "expected auto, none, deepseek or deepseek-legacy";
            return Err(fields.wrong("reasoning_format", what));
        }
    };
    let chat = Chat {
        model: fields.opt("model")?,
        messages,
        before: Vec::new(),
        tools,
        tool_choice,
        parallel_tool_calls: fields.opt("parallel_tool_calls")?.unwrap_or(true),
        continues,
        unopened,
        reasoning,
        budget,
        unread_calls,
        verbose,
        template,
        generation: generate,
        reply,
    };
    fields.finish(IGNORED)?;
    Ok(chat)
}

/// Whether the answer goes on with the last message, and whether the prompt opens none: vLLM's names for it, which
/// llama.cpp has, too.
fn read_continues(
    fields: &mut Fields,
    messages: &[Value],
) -> Result<(Option<bool>, bool), ApiError> {
    let name = "continue_final_message";
    let continues = fields.opt::<bool>(name)?;
    let opens = fields.opt::<bool>("add_generation_prompt")?;
    let said = |message: &&Value| message["role"] == "assistant";
    let last = messages.last().filter(said);
    let is_open = |message: &Value| said(&message) && message.get("tool_calls").is_none();
    if let [.., before, last] = messages
        && is_open(before)
        && is_open(last)
        && continues != Some(false)
        && opens != Some(false)
    {
        let what = "an answer cannot go on with the last of several messages of the assistant; \
            \"continue_final_message\": false begins a new one";
        return Err(fields.wrong("messages", what));
    }
    match (continues, opens) {
        (Some(true), Some(true)) => {
            Err(fields.wrong(name, "only one of this and add_generation_prompt can hold"))
        }
        (Some(true), _) if last.is_none_or(|last| last.get("tool_calls").is_some()) => {
            Err(fields
                .wrong(name, "expected a last message of the assistant without calls of tools"))
        }
        (None | Some(false), Some(false)) => Ok((Some(false), true)),
        _ => Ok((continues, false)),
    }
}

/// Reads the body of `/v1/completions`.
pub fn parse_completion(body: &[u8], sampler: &SamplerParams) -> Result<Completion, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut generate = options::defaults(sampler);
    common(&mut fields, &mut generate)?;
    // OpenAI answers with 16 tokens where nothing is said; llama.cpp, and hurtle, until the end.
    options::length(&mut fields, &["max_tokens", "n_predict"], &mut generate)?;
    options::ends(&mut fields, &mut generate)?;
    // Of a conversation's answer, only those that structure it are shown.
    generate.params.special = !fields.opt("skip_special_tokens")?.unwrap_or(true);
    generate.logprobs = fields.opt("logprobs")?;
    if generate.logprobs.is_some_and(|n| n > MAX_LOGPROBS) {
        return Err(fields.wrong("logprobs", &format!("expected at most {MAX_LOGPROBS}")));
    }
    generate.echo = fields.opt("echo")?.unwrap_or(false);
    fields.only("best_of", json!(1), "ask for several answers with n and choose yourself")?;
    let reply = reply(&mut fields, &mut generate)?;
    let completion = Completion {
        model: fields.opt("model")?,
        prompts: read_prompts(&fields.required("prompt")?)?,
        suffix: fields.opt::<String>("suffix")?.filter(|suffix| !suffix.is_empty()),
        generation: generate,
        reply,
    };
    fields.finish(IGNORED)?;
    Ok(completion)
}

/// What both have.
fn common(fields: &mut Fields, generate: &mut Generate) -> Result<(), ApiError> {
    options::sampling_from_zero(fields, generate)?;
    options::stop(fields, "stop", generate)?;
    options::n(fields, &["n"], generate)?;
    if let Some(format) = fields.opt::<Value>("response_format")? {
        generate.format = read_format(&format, "response_format", &["json_schema"])?;
        generate.format_param = "response_format";
    }
    options::grammar(fields, generate)?;
    options::slot(fields, generate)?;
    if let Some(cache) = fields.opt("cache_prompt")? {
        generate.cache_prompt = cache;
    }
    Ok(())
}

fn reply(fields: &mut Fields, generate: &mut Generate) -> Result<Reply, ApiError> {
    let stream = fields.opt("stream")?.unwrap_or(false);
    options::tell(fields, stream, generate)?;
    let mut include_usage = false;
    if let Some(mut options) = fields.object("stream_options")? {
        include_usage = options.opt("include_usage")?.unwrap_or(false);
        // Padding against eavesdroppers who look at lengths; not asked for over loopback.
        options.only("include_obfuscation", json!(false), "there is no obfuscation")?;
        options.finish(&[])?;
        if !stream {
            return Err(fields.wrong("stream_options", "needs \"stream\": true"));
        }
    }
    Ok(Reply { stream, include_usage })
}

/// `text`, `json_object`, `json_schema`; the schema lies below `path_of_schema`, or beside `type`.
pub(super) fn read_format(
    format: &Value,
    at: &str,
    path_of_schema: &[&str],
) -> Result<Option<Grammar>, ApiError> {
    let schema = || {
        let inner = path_of_schema.iter().try_fold(format, |value, key| value.get(key));
        inner.and_then(|value| value.get("schema")).or_else(|| format.get("schema")).cloned()
    };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        // llama.cpp takes a schema here too.
        Some("json_object") => Ok(Some(schema().map_or(Grammar::JsonObject, Grammar::JsonSchema))),
        Some("json_schema") => schema()
            .map(|schema| Some(Grammar::JsonSchema(schema)))
            .ok_or_else(|| ApiError::invalid(at, format!("{at}: a json_schema needs a schema"))),
        _ => Err(ApiError::invalid(
            format!("{at}.type"),
            format!(
                "{at}.type: expected text, json_object or json_schema, found {}",
                format["type"]
            ),
        )),
    }
}

/// The conversation as templates want it. Fields of a message that templates do not know (`refusal`,
/// `annotations` ...) are dropped: clients send back what they were given.
pub(super) fn read_messages(messages: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages: expected at least one message"));
    }
    messages.iter().enumerate().map(|(i, message)| read_message(i, message)).collect()
}

fn read_message(i: usize, message: &Value) -> Result<Value, ApiError> {
    let at = format!("messages[{i}]");
    // Templates build special tokens of the role, so that no other may pass.
    let role = match message["role"].as_str() {
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        _ => {
            let found = &message["role"];
            return Err(ApiError::invalid(
                format!("{at}.role"),
                format!(
                    "{at}.role: expected system, developer, user, assistant or tool, found {found}"
                ),
            ));
        }
    };
    let content = content_text(&message["content"], &format!("{at}.content"), &["text"])?;
    let mut out =
        Map::from_iter([("role".into(), role.into()), ("content".into(), content.into())]);
    for key in ["name", "tool_call_id", "reasoning_content"] {
        if let Some(Value::String(text)) = message.get(key) {
            out.insert(key.into(), text.as_str().into());
        }
    }
    match message.get("tool_calls") {
        None | Some(Value::Null) => {}
        Some(Value::Array(calls)) => {
            let calls: Vec<_> = calls
                .iter()
                .enumerate()
                .map(|(k, call)| read_call(&format!("{at}.tool_calls[{k}]"), call))
                .collect::<Result<_, _>>()?;
            if !calls.is_empty() {
                out.insert("tool_calls".into(), calls.into());
            }
        }
        Some(_) => {
            let at = format!("{at}.tool_calls");
            return Err(ApiError::invalid(at.clone(), format!("{at}: expected an array")));
        }
    }
    if !out.contains_key("tool_calls") && role != "assistant" && message.get("content").is_none() {
        let at = format!("{at}.content");
        return Err(ApiError::invalid(at.clone(), format!("{at} is missing")));
    }
    Ok(Value::Object(out))
}

fn read_call(at: &str, call: &Value) -> Result<Value, ApiError> {
    let Some(name) = call["function"]["name"].as_str() else {
        let at = format!("{at}.function.name");
        return Err(ApiError::invalid(at.clone(), format!("{at}: expected a text")));
    };
    Ok(function_call(
        call["id"].as_str().unwrap_or_default(),
        name,
        arguments_value(&call["function"]["arguments"]),
    ))
}

/// A call as templates want it.
pub(super) fn function_call(id: &str, name: &str, arguments: Value) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// Only functions; nobody here runs the others.
pub(super) fn read_tools(tools: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    for (i, tool) in tools.iter().enumerate() {
        let wrong = |what: String| {
            let at = format!("tools[{i}]");
            Err(ApiError::invalid(at.clone(), format!("{at}{what}")))
        };
        if tool["type"] != "function" {
            return wrong(format!(".type: expected \"function\", found {}", tool["type"]));
        }
        if !tool["function"]["name"].is_string() {
            return wrong(".function.name: expected a text".into());
        }
    }
    Ok(tools)
}

/// `none`, `auto`, `required` or a function. With `none` the model sees no tools.
pub(super) fn read_tool_choice(
    tools: Vec<Value>,
    choice: Option<Value>,
) -> Result<(Vec<Value>, ToolChoice), ApiError> {
    let mut choice = choice.unwrap_or_else(|| "auto".into());
    let mut tools = tools;
    if choice["type"] == "allowed_tools" {
        // In chats they stand in a field of that name.
        let allowed = choice.get("allowed_tools").unwrap_or(&choice).clone();
        let name = |tool: &Value| tool.get("function").unwrap_or(tool)["name"].clone();
        let names: Vec<Value> =
            allowed["tools"].as_array().into_iter().flatten().map(name).collect();
        if let Some(missing) =
            names.iter().find(|name| !tools.iter().any(|tool| tool["function"]["name"] == **name))
        {
            let message = format!("tool_choice: there is no tool {missing} in tools");
            return Err(ApiError::invalid("tool_choice", message));
        }
        tools.retain(|tool| names.contains(&tool["function"]["name"]));
        choice = allowed["mode"].clone();
    }
    let named = choice["function"]["name"].as_str().or_else(|| choice["name"].as_str());
    let chosen = match (choice.as_str(), named) {
        (Some("none"), _) => return Ok((Vec::new(), ToolChoice::Auto)),
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("required"), _) => ToolChoice::Required,
        (_, Some(name)) => ToolChoice::Named(name.to_owned()),
        _ => {
            return Err(ApiError::invalid(
                "tool_choice",
                format!("tool_choice: expected none, auto, required or a function, found {choice}"),
            ));
        }
    };
    let known = match &chosen {
        ToolChoice::Auto => true,
        ToolChoice::Required => !tools.is_empty(),
        ToolChoice::Named(name) => tools.iter().any(|t| t["function"]["name"] == name.as_str()),
    };
    if !known {
        return Err(ApiError::invalid(
            "tool_choice",
            "tool_choice: there is no such tool in tools",
        ));
    }
    Ok((tools, chosen))
}

/// A text, token ids, or several of one kind.
pub(super) fn read_prompts(prompt: &Value) -> Result<Vec<Prompt>, ApiError> {
    read_prompts_of(prompt, "prompt", MAX_PROMPTS)
}

/// As [`read_prompts`], of the field `name`, at most `most`.
pub(super) fn read_prompts_of(
    prompt: &Value,
    name: &str,
    most: usize,
) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |what: &str| ApiError::invalid(name, format!("{name}: {what}"));
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let one = |value: &Value| match value {
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        // As llama.cpp has them, where pictures may lie beside the text.
        Value::Object(object) => match object.iter().next() {
            Some((key, Value::String(text))) if key == "prompt_string" && object.len() == 1 => {
                Ok(Prompt::Text(text.clone()))
            }
            Some((key, content @ Value::Array(_))) if key == "content" && object.len() == 1 => {
                let at = format!("{name}.content");
                let texts = content_texts(content, &at, &["text"])?;
                Ok(Prompt::Text(texts.concat()))
            }
            _ => Err(wrong(
                "expected an object with nothing but prompt_string, a text, or content, an array of parts",
            )),
        },
        Value::Array(parts) if parts.iter().any(Value::is_string) => {
            let part = |part: &Value| match part {
                Value::String(text) => Some(Part::Text(text.clone())),
                _ => id(part).map(|id| Part::Ids(vec![id])),
            };
            let parts: Option<_> = parts.iter().map(part).collect();
            parts.map(Prompt::Mixed).ok_or_else(|| wrong("expected texts and token ids"))
        }
        Value::Array(ids) => {
            let ids: Option<_> = ids.iter().map(id).collect();
            ids.map(Prompt::Ids).ok_or_else(|| wrong("expected token ids"))
        }
        _ => Err(wrong("expected a text, an array of token ids, or several of them")),
    };
    match prompt {
        // With numbers among them, texts are parts of one prompt.
        Value::Array(many)
            if !many.iter().any(Value::is_number)
                && many.iter().any(|p| p.is_string() || p.is_array() || p.is_object()) =>
        {
            if many.len() > most {
                return Err(wrong(&format!("expected at most {most}, found {}", many.len())));
            }
            many.iter().map(one).collect()
        }
        one_prompt => one(one_prompt).map(|prompt| vec![prompt]),
    }
}

/// OpenAI's name of an ending.
pub(super) fn finish_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}

/// OpenAI's count of tokens.
pub(super) fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    })
}

/// The log-probabilities of a chat, with the numbers of tokens, as llama.cpp has them.
pub(crate) fn chat_logprobs(tokens: &[Logprobs], of: Distribution) -> Value {
    json!({"content": llama_cpp::probabilities(tokens, of), "refusal": null})
}
/// The log-probabilities of a completion, or of a piece that begins `offset` characters behind its start.
pub fn completion_logprobs(tokens: &[Logprobs], offset: &mut usize) -> Value {
    // Parts of characters have names of their own, so that they are not taken for one another.
    let name = |token: &TokenLogprob| match str::from_utf8(&token.bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => token.bytes.iter().fold("bytes:".into(), |name, b| format!("{name}\\x{b:02x}")),
    };
    let (mut names, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for Logprobs { token, top } in tokens {
        names.push(name(token));
        logprobs.push(token.logprob);
        // The token itself is always among them.
        let top = top.iter().chain([token]).map(|token| (name(token), token.logprob.into()));
        let top = top.collect::<Map<String, Value>>();
        tops.push(token.logprob.map(|_| top));
        offsets.push(*offset);
        *offset += token.bytes.iter().filter(|&b| b & 0xc0 != 0x80).count();
    }
    json!({"tokens": names, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
}

/// What all chunks and the reply of one request have in common.
#[derive(Debug, Clone)]
pub struct Head {
    /// `chatcmpl-...`, `cmpl-...`
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// Which program answers, for clients that compare seeds.
    pub system_fingerprint: String,
}

impl Head {
    fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "choices": choices,
        })
    }

    /// A whole chat completion; each answer with its log-probabilities, if they are wanted.
    pub fn chat(&self, answers: &[(Message, Outcome, Option<Value>)]) -> Value {
        let choice = |(index, (message, outcome, logprobs)): (usize, &(Message, Outcome, _))| {
            json!({
                "index": index,
                "message": message_json(message),
                "logprobs": logprobs,
                "finish_reason": finish_name(outcome.reason),
            })
        };
        let choices: Value = answers.iter().enumerate().map(choice).collect();
        let mut reply = self.object("chat.completion", choices);
        let total = answers.iter().map(|a| a.1.usage).reduce(Usage::and).unwrap_or_default();
        reply["usage"] = usage(total);
        if let [(_, outcome, _)] = answers {
            reply["timings"] = llama_cpp::timings(&outcome.timings);
        }
        reply
    }

    /// The chunk that opens the answer `index`.
    pub fn chat_start(&self, index: usize) -> SseEvent {
        self.chat_chunk(index, json!({"role": "assistant", "content": null}), None, None)
    }

    /// The chunk that tells how far the prompt of the answer `index` is. It opens the answer, too.
    pub fn chat_progress(&self, index: usize, progress: Progress) -> SseEvent {
        self.chat_start(index).with_progress(progress)
    }

    /// The chunk of a piece of the answer `index`, if the API has one for it.
    pub fn chat_delta(
        &self,
        index: usize,
        delta: &Delta,
        logprobs: Option<Value>,
    ) -> Option<SseEvent> {
        let delta = match delta {
            Delta::Content(text) => json!({"content": text}),
            Delta::Reasoning(text) => json!({"reasoning_content": text}),
            Delta::ToolCallBegin { index, id, name } => json!({"tool_calls": [{
                "index": index, "id": id, "type": "function",
                "function": {"name": name, "arguments": ""},
            }]}),
            Delta::ToolCallArguments { index, text } => json!({"tool_calls": [{
                "index": index, "function": {"arguments": text},
            }]}),
            Delta::ToolCallEnd { .. } => return None,
        };
        Some(self.chat_chunk(index, delta, logprobs, None))
    }

    /// The chunk that ends the answer `index`.
    pub fn chat_end(&self, index: usize, outcome: &Outcome) -> SseEvent {
        let event = self.chat_chunk(index, json!({}), None, Some(outcome.reason));
        event.with_timings(Some(&outcome.timings))
    }

    /// The chunk that counts tokens, for `include_usage`.
    pub fn chat_usage(&self, total: Usage) -> SseEvent {
        let mut data = self.object("chat.completion.chunk", json!([]));
        data["usage"] = usage(total);
        SseEvent::unnamed(data)
    }

    fn chat_chunk(
        &self,
        index: usize,
        delta: Value,
        logprobs: Option<Value>,
        reason: Option<FinishReason>,
    ) -> SseEvent {
        let choice = json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason.map(finish_name),
        });
        SseEvent::unnamed(self.object("chat.completion.chunk", json!([choice])))
    }

    /// A whole completion: text, ending and log-probabilities of each answer.
    pub fn completion(&self, answers: &[(String, Outcome, Option<Value>)], total: Usage) -> Value {
        let choice = |(index, (text, outcome, logprobs)): (usize, &(String, Outcome, _))| {
            json!({
                "index": index,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": finish_name(outcome.reason),
            })
        };
        let choices = answers.iter().enumerate().map(choice).collect();
        let mut reply = self.object("text_completion", choices);
        reply["usage"] = usage(total);
        if let [(_, outcome, _)] = answers {
            reply["timings"] = llama_cpp::timings(&outcome.timings);
        }
        reply
    }

    /// A chunk of the completion `index`; the last one has an ending.
    pub fn completion_chunk(
        &self,
        index: usize,
        text: &str,
        logprobs: Option<Value>,
        reason: Option<FinishReason>,
    ) -> SseEvent {
        let choice = json!({
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason.map(finish_name),
        });
        SseEvent::unnamed(self.object("text_completion", json!([choice])))
    }

    /// The chunk that counts tokens, for `include_usage`.
    pub fn completion_usage(&self, total: Usage) -> SseEvent {
        let mut data = self.object("text_completion", json!([]));
        data["usage"] = usage(total);
        SseEvent::unnamed(data)
    }
}

fn message_json(message: &Message) -> Value {
    let calls = |call: &ToolCall| {
        json!({"id": call.id, "type": "function",
            "function": {"name": call.name, "arguments": call.arguments}})
    };
    let silent = message.content.is_empty() && !message.tool_calls.is_empty();
    let content = if silent { Value::Null } else { message.content.as_str().into() };
    let mut out = json!({"role": "assistant", "content": content});
    if !message.reasoning.is_empty() {
        out["reasoning_content"] = message.reasoning.as_str().into();
    }
    if !message.tool_calls.is_empty() {
        out["tool_calls"] = message.tool_calls.iter().map(calls).collect();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: Value) -> Result<Chat, ApiError> {
        parse_chat(body.to_string().as_bytes(), &SamplerParams::default())
    }

    fn with(key: &str, value: Value) -> Value {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        body[key] = value;
        body
    }

    #[test]
    fn what_the_official_client_sends_is_read() {
        let chat = chat(json!({
            "model": "default",
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": null, "refusal": null, "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "3"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "max_completion_tokens": 9, "temperature": 0, "seed": 3, "stop": "x", "n": 2,
            "logprobs": true, "top_logprobs": 4, "user": "u", "stream": true,
            "stream_options": {"include_usage": true}, "parallel_tool_calls": false,
        }))
        .expect("read");
        assert_eq!(chat.messages[0], json!({"role": "system", "content": "Be brief."}));
        assert_eq!(chat.messages[1]["content"], "a\nb");
        assert_eq!(chat.messages[2]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!(chat.messages[3]["tool_call_id"], "c1");
        assert_eq!(chat.tool_choice, ToolChoice::Named("f".into()));
        assert!(!chat.parallel_tool_calls);
        assert_eq!(chat.reply, Reply { stream: true, include_usage: true });
        let generate = chat.generation;
        assert_eq!((generate.n, generate.logprobs), (2, Some(4)));
        assert_eq!(generate.params.n_predict, Some(9));
        assert_eq!(generate.params.stop, ["x"]);
        assert_eq!((generate.params.sampler.temp, generate.params.sampler.seed), (0.0, Some(3)));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let check = |key: &str, value: Value, param: &str| {
            let error = chat(with(key, value)).expect_err(key);
            assert_eq!((error.status(), error.param.as_deref()), (400, Some(param)), "{error}");
        };
        check("web_search_options", json!({}), "web_search_options");
        check("modalities", json!(["audio"]), "modalities");
        check("functions", json!([{"name": "f"}]), "functions");
        check("reasoning_format", json!("some"), "reasoning_format");
        check("top_logprobs", json!(2), "top_logprobs");
        check("tool_choice", json!("required"), "tool_choice");
        check("tool_choice", json!("maybe"), "tool_choice");
        check("tools", json!([{"type": "web_search"}]), "tools[0]");
        check("response_format", json!({"type": "xml"}), "response_format.type");
        check("response_format", json!({"type": "json_schema"}), "response_format");
        check("stream_options", json!({"include_usage": true}), "stream_options");
        check("messages", json!([]), "messages");
        check("messages", json!([{"role": "root", "content": "x"}]), "messages[0].role");
        check("messages", json!([{"role": "user"}]), "messages[0].content");
        check(
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            "messages[0].content[0]",
        );
        assert_eq!(
            chat(json!({"model": "m"})).expect_err("refused").param.as_deref(),
            Some("messages")
        );
    }

    #[test]
    fn how_long_to_think_and_to_answer() {
        for name in ["reasoning_budget_tokens", "thinking_budget_tokens"] {
            let template = |n: i64| chat(with(name, n.into())).map(|chat| chat.template);
            assert_eq!(template(0).expect("read")["enable_thinking"], false);
            assert!(template(-1).expect("read").is_empty());
            assert_eq!(template(-2).expect_err("refused").param.as_deref(), Some(name));
            let budget = chat(with(name, 5.into())).expect("read").budget.expect("a budget");
            assert_eq!((budget.tokens, budget.param), (5, Some(name)));
        }
        for verbosity in ["low", "medium", "high"] {
            let read = chat(with("verbosity", verbosity.into())).expect("read");
            assert_eq!(read.template["verbosity"], verbosity);
        }
        let refused = chat(with("verbosity", "endless".into())).expect_err("refused");
        assert_eq!(refused.param.as_deref(), Some("verbosity"));
    }

    #[test]
    fn tool_choice_none_hides_the_tools() {
        let mut body = with("tools", json!([{"type": "function", "function": {"name": "f"}}]));
        assert_eq!(chat(body.clone()).expect("read").tools.len(), 1);
        body["tool_choice"] = "none".into();
        assert!(chat(body).expect("read").tools.is_empty());
    }

    #[test]
    fn formats() {
        let check = |format: Value, expected: Option<Grammar>| {
            let chat = chat(with("response_format", format)).expect("read");
            assert_eq!(chat.generation.format, expected);
        };
        let schema = json!({"type": "object"});
        check(json!({"type": "text"}), None);
        check(json!({"type": "json_object"}), Some(Grammar::JsonObject));
        check(
            json!({"type": "json_object", "schema": schema}),
            Some(Grammar::JsonSchema(schema.clone())),
        );
        let named = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
        check(named, Some(Grammar::JsonSchema(schema.clone())));
    }

    #[test]
    fn prompts_in_every_shape() {
        let check = |prompt: Value, expected: &[Prompt]| {
            assert_eq!(read_prompts(&prompt).expect("read"), expected, "{prompt}");
        };
        let text = |text: &str| Prompt::Text(text.into());
        check(json!("a"), &[text("a")]);
        check(json!(["a", "b"]), &[text("a"), text("b")]);
        check(json!([1, 2]), &[Prompt::Ids(vec![1, 2])]);
        check(json!([[1], [2, 3]]), &[Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]);
        for wrong in [json!(1), json!({}), json!([-1]), json!([[1.5]]), json!([4_294_967_296_u64])]
        {
            assert!(read_prompts(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_stream_has_the_shape_that_clients_read() {
        let head = Head {
            id: "chatcmpl-1".into(),
            created: 5,
            model: "m".into(),
            system_fingerprint: "f".into(),
        };
        let outcome = Outcome {
            reason: FinishReason::ToolCalls,
            truncated: false,
            n_kept: 4,
            slot: None,
            stop_string: None,
            usage: Usage { prompt: 3, cached: 1, generated: 2, reasoning: 0 },
            timings: Default::default(),
        };
        let begin = Delta::ToolCallBegin { index: 0, id: "c".into(), name: "f".into() };
        let chunk = head.chat_delta(0, &begin, None).expect("a chunk").data;
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["name"], "f");
        assert_eq!(head.chat_end(0, &outcome).data["choices"][0]["finish_reason"], "tool_calls");
        let last = head.chat_usage(outcome.usage).data;
        assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(5)));
        let whole = head.chat(&[(
            Message {
                tool_calls: vec![ToolCall {
                    index: 0,
                    id: "c".into(),
                    name: "f".into(),
                    arguments: "{}".into(),
                }],
                ..Message::default()
            },
            outcome,
            None,
        )]);
        assert_eq!(whole["choices"][0]["message"]["content"], Value::Null);
        assert_eq!(whole["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
    }
}
