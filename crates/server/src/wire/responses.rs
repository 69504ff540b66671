//! OpenAI's Responses. Nothing is stored: a conversation is sent in full each time.
use super::fields::Fields;
use super::openai::{function_call, read_format, read_tool_choice};
use super::options::{self, MAX_LOGPROBS};
use super::{SseEvent, arguments_value, content_text, llama_cpp};
use crate::error::ApiError;
use crate::output::{Delta, FinishReason, Logprobs, Outcome, Progress, Usage};
use crate::request::{Chat, Reply};
use hurtle_engine::sampler::{Distribution, SamplerParams};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// What clients send along and what changes no answer here. `store` is among them because the reply says
/// that nothing was stored.
pub const IGNORED: &[&str] = &[
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "client_metadata",
];

/// What a reply tells of its request.
const ECHOED: &[&str] = &[
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "reasoning",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
    "user",
];

/// Types of parts that are texts.
const TEXT_TYPES: &[&str] = &["input_text", "output_text", "text", "refusal"];

/// Tools that OpenAI's servers would run, and that clients offer unasked. A model may always leave a tool unused,
/// and here it does; `tools` of the reply names those that it was given.
const NOT_GIVEN: &[&str] =
    &["web_search", "web_search_preview", "web_search_2025_08_26", "image_generation"];

/// What stands in the name of a function between that of its namespace and its own.
const IN_NAMESPACE: &str = "__";

/// The field of a custom tool's arguments that holds its input.
const INPUT: &str = "input";

/// What is asked, and what the reply needs of it.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub chat: Chat,
    /// What the reply repeats.
    pub echo: Map<String, Value>,
    /// The tools whose calls are told in another way than those of functions, by the names that models know.
    pub special: HashMap<String, Special>,
}

/// A tool whose calls are told in a way of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Special {
    name: String,
    namespace: Option<String>,
    /// Its input is a text, and no object of arguments.
    custom: bool,
}

/// Reads the body of `/v1/responses`.
pub fn parse(body: &[u8], sampler: &SamplerParams) -> Result<Asked, ApiError> {
    let mut fields = Fields::parse(body)?;
    let echo = ECHOED.iter().filter_map(|key| Some(((*key).to_owned(), fields.sent(key)?.clone())));
    let mut echo: Map<String, Value> = echo.collect();
    let mut generate = options::defaults(sampler);
    options::sampling_from_zero(&mut fields, &mut generate)?;
    options::length(&mut fields, &["max_output_tokens"], &mut generate)?;
    for (name, why) in [
        ("previous_response_id", "nothing is stored; send the whole conversation as input"),
        ("conversation", "nothing is stored; send the whole conversation as input"),
        ("prompt", "there are no stored prompts"),
        ("background", "answers are given while the client waits"),
    ] {
        fields.only(name, json!(false), why)?;
    }
    fields.only("truncation", json!("disabled"), "a conversation is never cut off")?;

    let top = fields.opt::<usize>("top_logprobs")?;
    if let Some(n) = top.filter(|&n| n > MAX_LOGPROBS) {
        let found = format!("expected at most {MAX_LOGPROBS}, found {n}");
        return Err(fields.wrong("top_logprobs", &found));
    }
    for item in fields.opt::<Vec<String>>("include")?.unwrap_or_default() {
        match item.as_str() {
            // Reasoning comes as a text, so that clients have it already to send it back. Of tools that are not
            // given there is nothing to tell.
            "reasoning.encrypted_content" | "web_search_call.action.sources" => {}
            "message.output_text.logprobs" => generate.logprobs = Some(top.unwrap_or(0)),
            _ => return Err(fields.wrong("include", &format!("'{item}' cannot be included"))),
        }
    }
    if generate.logprobs.is_none() && top.is_some_and(|n| n > 0) {
        let what = "needs \"include\": [\"message.output_text.logprobs\"]";
        return Err(fields.wrong("top_logprobs", what));
    }

    let mut template = Map::new();
    if let Some(mut reasoning) = fields.object("reasoning")? {
        if let Some(effort) = reasoning.opt::<String>("effort")? {
            template.insert("reasoning_effort".into(), effort.into());
        }
        // Reasoning is given in full, not summed up.
        reasoning.finish(&["summary", "generate_summary", "context"])?;
    }
    if let Some(mut text) = fields.object("text")? {
        if let Some(format) = text.opt::<Value>("format")? {
            generate.format = read_format(&format, "text.format", &[])?;
            generate.format_param = "text.format";
        }
        options::verbosity(&mut text, &mut template)?;
        text.finish(&[])?;
    }

    let mut messages = Vec::new();
    if let Some(instructions) = fields.opt::<String>("instructions")? {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    match fields.required::<Value>("input")? {
        text @ Value::String(_) => messages.push(json!({"role": "user", "content": text})),
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                read_item(&format!("input[{i}]"), item, &mut messages)?;
            }
        }
        _ => return Err(fields.wrong("input", "expected a text or an array of items")),
    }
    if messages.is_empty() {
        return Err(fields.wrong("input", "expected at least one message"));
    }

    let sent: Vec<Value> = fields.opt("tools")?.unwrap_or_default();
    let mut tools = Tools::default();
    for (i, tool) in sent.iter().enumerate() {
        tools.read(&format!("tools[{i}]"), tool)?;
    }
    if !sent.is_empty() {
        echo.insert("tools".into(), tools.given.into());
    }
    let special = tools.special;
    let mut choice = fields.opt::<Value>("tool_choice")?;
    if let Some(choice) = &mut choice {
        names_for_models(choice);
    }
    let (tools, tool_choice) = read_tool_choice(tools.functions, choice)?;
    fields.only(
        "stream_options",
        json!({"include_obfuscation": false}),
        "there is no obfuscation",
    )?;
    let stream = fields.opt("stream")?.unwrap_or(false);
    options::tell(&mut fields, stream, &mut generate)?;
    let chat = Chat {
        model: fields.opt("model")?,
        messages,
        tools,
        tool_choice,
        parallel_tool_calls: fields.opt("parallel_tool_calls")?.unwrap_or(true),
        template,
        generation: generate,
        reply: Reply { stream, include_usage: true },
        ..Chat::default()
    };
    fields.finish(IGNORED)?;
    Ok(Asked { chat, echo, special })
}

/// The name of a function, or of a call of one, as models know it.
fn name_for_models(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        None | Some("") => name.to_owned(),
        Some(namespace) if namespace.ends_with(IN_NAMESPACE) => format!("{namespace}{name}"),
        Some(namespace) => format!("{namespace}{IN_NAMESPACE}{name}"),
    }
}

/// The names in a `tool_choice`, and in what it allows, as models know them.
fn names_for_models(choice: &mut Value) {
    let allowed = choice.get_mut("tools").and_then(Value::as_array_mut);
    allowed.into_iter().flatten().for_each(names_for_models);
    let text = |key: &str| choice.get(key).and_then(Value::as_str);
    if let (Some(namespace), Some(name)) = (text("namespace"), text("name")) {
        choice["name"] = name_for_models(Some(namespace), name).into();
    }
}

/// One item of the input. What the assistant thought and the tools that it called are items of their own here,
/// and parts of one message in templates.
fn read_item(at: &str, item: &Value, out: &mut Vec<Value>) -> Result<(), ApiError> {
    let wrong = |field: &str, what: &str| {
        Err(ApiError::invalid(format!("{at}.{field}"), format!("{at}.{field}: {what}")))
    };
    match item["type"].as_str().unwrap_or("message") {
        "message" => {
            let role = match item["role"].as_str() {
                Some("developer") => "system",
                Some(role @ ("system" | "user" | "assistant")) => role,
                _ => return wrong("role", "expected system, developer, user or assistant"),
            };
            let content = content_text(&item["content"], &format!("{at}.content"), TEXT_TYPES)?;
            match out.last_mut().filter(|last| role == "assistant" && is_open(last)) {
                Some(last) => last["content"] = content.into(),
                None => out.push(json!({"role": role, "content": content})),
            }
        }
        "function_call" => {
            let (Some(id), Some(name)) = (item["call_id"].as_str(), item["name"].as_str()) else {
                return wrong("call_id", "a call needs a call_id and a name");
            };
            let name = name_for_models(item["namespace"].as_str(), name);
            push_call(out, function_call(id, &name, arguments_value(&item["arguments"])));
        }
        "custom_tool_call" => {
            let text = |key: &str| item[key].as_str();
            let (Some(id), Some(name), Some(input)) = (text("call_id"), text("name"), text(INPUT))
            else {
                return wrong("call_id", "a call needs a call_id, a name and an input");
            };
            let name = name_for_models(text("namespace"), name);
            push_call(out, function_call(id, &name, json!({INPUT: input})));
        }
        "function_call_output" | "custom_tool_call_output" => {
            let Some(id) = item["call_id"].as_str() else {
                return wrong("call_id", "expected a text");
            };
            let content = content_text(&item["output"], &format!("{at}.output"), TEXT_TYPES)?;
            out.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
        }
        "reasoning" => {
            let types = &["reasoning_text", "summary_text"];
            let mut text = content_text(&item["content"], &format!("{at}.content"), types)?;
            if text.is_empty() {
                text = content_text(&item["summary"], &format!("{at}.summary"), types)?;
            }
            if !text.is_empty() {
                out.push(json!({"role": "assistant", "content": "", "reasoning_content": text}));
            }
        }
        kind => return wrong("type", &format!("an item of type '{kind}' cannot be read")),
    }
    Ok(())
}

/// Whether a message holds only what the assistant thought so far.
fn is_open(message: &Value) -> bool {
    message["role"] == "assistant"
        && message["content"] == ""
        && message.get("tool_calls").is_none()
}

/// Adds a call to the assistant's message that it belongs to.
fn push_call(out: &mut Vec<Value>, call: Value) {
    if out.last().is_none_or(|last| last["role"] != "assistant") {
        out.push(json!({"role": "assistant", "content": ""}));
    }
    let last = out.len() - 1;
    match out[last].get_mut("tool_calls").and_then(Value::as_array_mut) {
        Some(calls) => calls.push(call),
        None => out[last]["tool_calls"] = json!([call]),
    }
}

/// The tools of a request.
#[derive(Debug, Default)]
struct Tools {
    /// As chats have them.
    functions: Vec<Value>,
    special: HashMap<String, Special>,
    /// Those of the request that models are given, as they were sent.
    given: Vec<Value>,
}

impl Tools {
    fn read(&mut self, at: &str, tool: &Value) -> Result<(), ApiError> {
        let kind = tool["type"].as_str().unwrap_or_default();
        if NOT_GIVEN.contains(&kind) {
            return Ok(());
        }
        match kind {
            "namespace" => {
                let (Some(namespace), Some(tools)) =
                    (tool["name"].as_str(), tool["tools"].as_array())
                else {
                    return Err(wrong_tool(at, "", "a namespace needs a name and tools"));
                };
                for (i, tool) in tools.iter().enumerate() {
                    self.add(&format!("{at}.tools[{i}]"), tool, Some(namespace))?;
                }
            }
            _ => self.add(at, tool, None)?,
        }
        self.given.push(tool.clone());
        Ok(())
    }

    /// Functions and custom tools lie flat here.
    fn add(&mut self, at: &str, tool: &Value, namespace: Option<&str>) -> Result<(), ApiError> {
        let custom = match tool["type"].as_str() {
            Some("function") => false,
            Some("custom") => true,
            _ => {
                let what = format!(
                    "expected \"function\", \"custom\" or \"namespace\", found {}",
                    tool["type"]
                );
                return Err(wrong_tool(at, ".type", &what));
            }
        };
        let Some(name) = tool["name"].as_str() else {
            return Err(wrong_tool(at, ".name", "expected a text"));
        };
        let full = name_for_models(namespace, name);
        if self.functions.iter().any(|known| known["function"]["name"] == full.as_str()) {
            let what = format!("there is another tool of the name '{full}'");
            return Err(wrong_tool(at, ".name", &what));
        }
        let function = match custom {
            true => custom_function(&full, tool),
            false => {
                let keys = ["name", "description", "parameters", "strict"];
                let sent = |key: &&str| Some(((*key).to_owned(), tool.get(*key)?.clone()));
                let sent = keys.iter().filter_map(sent).filter(|(_, value)| !value.is_null());
                let mut function: Map<String, Value> = sent.collect();
                function.insert("name".into(), full.as_str().into());
                function.into()
            }
        };
        self.functions.push(json!({"type": "function", "function": function}));
        if custom || namespace.is_some() {
            let namespace = namespace.map(str::to_owned);
            self.special.insert(full, Special { name: name.to_owned(), namespace, custom });
        }
        Ok(())
    }
}

fn wrong_tool(at: &str, field: &str, what: &str) -> ApiError {
    ApiError::invalid(at, format!("{at}{field}: {what}"))
}

/// A tool whose input is a text as a function of one argument. A grammar of the input is told to the model.
fn custom_function(name: &str, tool: &Value) -> Value {
    let mut description = tool["description"].as_str().unwrap_or_default().to_owned();
    let format = &tool["format"];
    if let Some(definition) = format["definition"].as_str() {
        let syntax = format["syntax"].as_str().unwrap_or("grammar");
        description += &format!("\n\nThe input follows this grammar ({syntax}):\n{definition}");
    }
    let parameters = json!({
        "type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT],
        "additionalProperties": false,
    });
    json!({"name": name, "description": description, "parameters": parameters})
}

/// The input of a custom tool that a model has called with such arguments.
fn custom_input(arguments: &str) -> String {
    match serde_json::from_str::<Value>(arguments) {
        Ok(Value::Object(mut object)) => match object.remove(INPUT) {
            Some(Value::String(text)) => text,
            Some(other) => other.to_string(),
            None => arguments.to_owned(),
        },
        _ => arguments.to_owned(),
    }
}

/// What every event of one reply shares.
#[derive(Debug, Clone)]
pub struct Head {
    /// `resp_...`
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// What the client asked for.
    pub echo: Map<String, Value>,
    /// The tools whose calls are told in a way of their own.
    pub special: HashMap<String, Special>,
    /// Whether log-probabilities are told, and of which distribution.
    pub logprobs: Option<Distribution>,
}

impl Head {
    fn object(&self, status: &str, output: &[Value]) -> Value {
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": self.model,
            "output": output,
            "error": null,
            "incomplete_details": null,
            "instructions": null,
            "metadata": {},
            "parallel_tool_calls": true,
            "tool_choice": "auto",
            "tools": [],
            "previous_response_id": null,
            "truncation": "disabled",
            "store": false,
            "usage": null,
        });
        for (key, value) in &self.echo {
            response[key] = value.clone();
        }
        response
    }
}

/// Encodes a stream: each message, thought and call is an item with an index, and every event has a number.
#[derive(Debug)]
pub struct Stream {
    head: Head,
    sequence: u64,
    /// The items that are complete.
    output: Vec<Value>,
    open: Option<Item>,
    /// Tokens of which nothing has come yet.
    tokens: Vec<Logprobs>,
    /// Those of the message that is open.
    told: Vec<Value>,
}

/// The item that is being written.
#[derive(Debug)]
enum Item {
    Message(String),
    Reasoning(String),
    Call {
        id: String,
        name: String,
        namespace: Option<String>,
        arguments: String,
    },
    /// A call of a custom tool, of whose input nothing is told before all of it is there.
    Custom {
        id: String,
        name: String,
        namespace: Option<String>,
        arguments: String,
    },
}

impl Item {
    /// The prefix of the item's name.
    fn prefix(&self) -> &'static str {
        match self {
            Item::Message(_) => "msg",
            Item::Reasoning(_) => "rs",
            Item::Call { .. } => "fc",
            Item::Custom { .. } => "ctc",
        }
    }

    fn json(&self, id: &str, status: &str, logprobs: &[Value]) -> Value {
        let mut item = match self {
            Item::Message(text) => {
                let part = text_part(text, logprobs);
                let content = if status == "in_progress" { json!([]) } else { json!([part]) };
                json!({"id": id, "type": "message", "role": "assistant", "status": status, "content": content})
            }
            Item::Reasoning(text) => {
                let part = json!({"type": "reasoning_text", "text": text});
                let content = if status == "in_progress" { json!([]) } else { json!([part]) };
                json!({"id": id, "type": "reasoning", "status": status, "summary": [], "content": content})
            }
            Item::Call { id: call, name, arguments, .. } => json!({
                "id": id, "type": "function_call", "status": status,
                "call_id": call, "name": name, "arguments": arguments,
            }),
            Item::Custom { id: call, name, arguments, .. } => {
                let input = if status == "in_progress" { "" } else { &*custom_input(arguments) };
                json!({
                    "id": id, "type": "custom_tool_call", "status": status,
                    "call_id": call, "name": name, INPUT: input,
                })
            }
        };
        if let Item::Call { namespace: Some(namespace), .. }
        | Item::Custom { namespace: Some(namespace), .. } = self
        {
            item["namespace"] = namespace.as_str().into();
        }
        item
    }
}

/// A part of a message.
fn text_part(text: &str, logprobs: &[Value]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

impl Stream {
    /// An encoder for one reply.
    pub fn new(head: Head) -> Self {
        let (output, tokens, told) = Default::default();
        Self { head, sequence: 0, output, open: None, tokens, told }
    }

    /// What opens the stream.
    pub fn start(&mut self) -> Vec<SseEvent> {
        let response = self.head.object("in_progress", &[]);
        ["response.created", "response.in_progress"]
            .map(|name| self.event(name, json!({"response": response})))
            .into()
    }

    /// The event that tells how far the prompt is.
    pub fn progress(&mut self, progress: Progress) -> SseEvent {
        let response = self.head.object("in_progress", &[]);
        let event = self.event("response.in_progress", json!({"response": response}));
        event.with_progress(progress)
    }

    /// Takes a token, whose text comes later, or with that of others.
    pub fn logprobs(&mut self, token: Logprobs) {
        self.tokens.push(token);
    }

    /// The events of a piece.
    pub fn delta(&mut self, delta: &Delta) -> Vec<SseEvent> {
        let mut events = Vec::new();
        // Those of messages are told and no others.
        let tokens = std::mem::take(&mut self.tokens);
        match delta {
            Delta::Content(piece) => {
                if !matches!(self.open, Some(Item::Message(_))) {
                    self.enter(Item::Message(String::new()), &mut events);
                    let part = text_part("", &[]);
                    events.push(self.part_event("response.content_part.added", "part", part));
                }
                let tokens = match self.head.logprobs {
                    Some(of) => llama_cpp::probabilities(&tokens, of),
                    None => json!([]),
                };
                self.told.extend(tokens.as_array().into_iter().flatten().cloned());
                if let Some(Item::Message(text)) = &mut self.open {
                    text.push_str(piece);
                }
                let mut event =
                    self.part_event("response.output_text.delta", "delta", piece.as_str().into());
                event.data["logprobs"] = tokens;
                events.push(event);
            }
            Delta::Reasoning(piece) => {
                if !matches!(self.open, Some(Item::Reasoning(_))) {
                    self.enter(Item::Reasoning(String::new()), &mut events);
                }
                if let Some(Item::Reasoning(text)) = &mut self.open {
                    text.push_str(piece);
                }
                events.push(self.part_event(
                    "response.reasoning_text.delta",
                    "delta",
                    piece.as_str().into(),
                ));
            }
            Delta::ToolCallBegin { id, name, .. } => {
                let (id, arguments) = (id.clone(), String::new());
                let item = match self.head.special.get(name).cloned() {
                    Some(Special { name, namespace, custom: true }) => {
                        Item::Custom { id, name, namespace, arguments }
                    }
                    Some(Special { name, namespace, custom: false }) => {
                        Item::Call { id, name, namespace, arguments }
                    }
                    None => Item::Call { id, name: name.clone(), namespace: None, arguments },
                };
                self.enter(item, &mut events);
            }
            Delta::ToolCallArguments { text, .. } => {
                match &mut self.open {
                    Some(Item::Custom { arguments, .. }) => {
                        arguments.push_str(text);
                        return events;
                    }
                    Some(Item::Call { arguments, .. }) => arguments.push_str(text),
                    _ => {}
                }
                let data = self.item_data(json!({"delta": text}));
                events.push(self.event("response.function_call_arguments.delta", data));
            }
            Delta::ToolCallEnd { .. } => self.close("completed", &mut events),
        }
        events
    }

    /// What closes the stream.
    pub fn finish(&mut self, outcome: &Outcome) -> Vec<SseEvent> {
        let (name, status) = match outcome.reason {
            FinishReason::Length => ("response.incomplete", "incomplete"),
            _ => ("response.completed", "completed"),
        };
        let mut events = Vec::new();
        self.close(status, &mut events);
        let mut response = self.head.object(status, &self.output);
        response["usage"] = usage_json(outcome.usage);
        if status == "incomplete" {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        let event = self.event(name, json!({"response": response}));
        events.push(event.with_timings(Some(&outcome.timings)));
        events
    }

    /// What ends the stream where something fails in its midst.
    pub fn error(&mut self, error: &ApiError) -> SseEvent {
        let mut response = self.head.object("failed", &self.output);
        response["error"] =
            json!({"code": error.code.unwrap_or("server_error"), "message": error.message});
        self.event("response.failed", json!({"response": response}))
    }

    fn enter(&mut self, item: Item, events: &mut Vec<SseEvent>) {
        self.close("completed", events);
        self.open = Some(item);
        self.item_event("response.output_item.added", "in_progress", events);
    }

    fn close(&mut self, status: &str, events: &mut Vec<SseEvent>) {
        match &self.open {
            None => return,
            Some(Item::Message(text)) => {
                let text = text.clone();
                let part = text_part(&text, &self.told);
                let mut event = self.part_event("response.output_text.done", "text", text.into());
                event.data["logprobs"] = self.told.as_slice().into();
                events.push(event);
                events.push(self.part_event("response.content_part.done", "part", part));
            }
            Some(Item::Reasoning(text)) => {
                let text = text.clone();
                events.push(self.part_event("response.reasoning_text.done", "text", text.into()));
            }
            Some(Item::Call { name, arguments, .. }) => {
                let data = json!({"name": name, "arguments": arguments});
                let data = self.item_data(data);
                events.push(self.event("response.function_call_arguments.done", data));
            }
            Some(Item::Custom { arguments, .. }) => {
                let input = custom_input(arguments);
                let data = self.item_data(json!({"delta": input}));
                events.push(self.event("response.custom_tool_call_input.delta", data));
                let data = self.item_data(json!({INPUT: input}));
                events.push(self.event("response.custom_tool_call_input.done", data));
            }
        }
        let item = self.item_event("response.output_item.done", status, events);
        self.output.extend(item);
        self.told.clear();
        self.open = None;
    }

    /// The name of the open item.
    fn item_id(&self) -> String {
        let prefix = self.open.as_ref().map_or("item", Item::prefix);
        format!("{prefix}_{}_{}", self.head.id.trim_start_matches("resp_"), self.output.len())
    }

    fn item_event(
        &mut self,
        name: &'static str,
        status: &str,
        events: &mut Vec<SseEvent>,
    ) -> Option<Value> {
        let item = self.open.as_ref()?.json(&self.item_id(), status, &self.told);
        let data = json!({"output_index": self.output.len(), "item": item});
        events.push(self.event(name, data));
        Some(item)
    }

    fn item_data(&self, mut data: Value) -> Value {
        data["item_id"] = self.item_id().into();
        data["output_index"] = self.output.len().into();
        data
    }

    fn part_event(&mut self, name: &'static str, key: &str, value: Value) -> SseEvent {
        let data = self.item_data(json!({"content_index": 0, key: value}));
        self.event(name, data)
    }

    fn event(&mut self, name: &'static str, mut data: Value) -> SseEvent {
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        SseEvent::typed(name, data)
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.generated,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.generated,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hurtle_engine::constraint::Grammar;

    fn read(body: Value) -> Result<Chat, ApiError> {
        parse(body.to_string().as_bytes(), &SamplerParams::default()).map(|asked| asked.chat)
    }

    fn head() -> Head {
        let echo = Map::from_iter([("instructions".to_owned(), json!("Be brief."))]);
        let (special, logprobs) = Default::default();
        Head { id: "resp_1".into(), created: 5, model: "m".into(), echo, special, logprobs }
    }

    fn outcome(reason: FinishReason) -> Outcome {
        Outcome {
            reason,
            truncated: false,
            n_kept: 0,
            slot: None,
            stop_string: None,
            usage: Usage { prompt: 3, cached: 0, generated: 2, reasoning: 0 },
            timings: Default::default(),
        }
    }

    #[test]
    fn items_become_messages() {
        let chat = read(json!({
            "model": "m", "instructions": "Be brief.", "max_output_tokens": 4, "store": true,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "2 + 2?"}]},
                {"type": "reasoning", "id": "rs_1", "summary": [], "content": [
                    {"type": "reasoning_text", "text": "hm"}]},
                {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{\"a\":2}"},
                {"type": "function_call", "call_id": "c2", "name": "add", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "4"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4"}]},
            ],
            "tools": [{"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": true}],
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
            "reasoning": {"effort": "low"},
        }))
        .expect("read");
        let roles: Vec<_> =
            chat.messages.iter().map(|m| m["role"].as_str().unwrap_or("")).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant"]);
        assert_eq!(chat.messages[2]["reasoning_content"], "hm");
        assert_eq!(chat.messages[2]["tool_calls"].as_array().map(Vec::len), Some(2));
        assert_eq!(chat.messages[4]["content"], "4");
        assert_eq!(chat.tools[0]["function"]["name"], "add");
        assert_eq!(chat.generation.format, Some(Grammar::JsonSchema(json!({"type": "object"}))));
        assert_eq!(chat.template["reasoning_effort"], "low");
        assert_eq!(chat.generation.params.n_predict, Some(4));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let check = |key: &str, value: Value, param: &str| {
            let mut body = json!({"model": "m", "input": "x"});
            body[key] = value;
            let error = read(body).expect_err(key);
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        };
        check("previous_response_id", json!("resp_1"), "previous_response_id");
        check("background", json!(true), "background");
        check("truncation", json!("auto"), "truncation");
        check("tools", json!([{"type": "file_search"}]), "tools[0]");
        check("tools", json!([{"type": "namespace", "name": "n"}]), "tools[0]");
        let nested = json!([{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]);
        check("tools", nested, "tools[0].tools[0]");
        let tool = json!({"type": "custom", "name": "f"});
        check("tools", json!([tool, tool]), "tools[1]");
        check("text", json!({"verbosity": "endless"}), "text.verbosity");
        check("tool_choice", json!({"type": "web_search"}), "tool_choice");
        check("top_logprobs", json!(2), "top_logprobs");
        check("top_logprobs", json!(1000), "top_logprobs");
        check("input", json!([]), "input");
        check(
            "input",
            json!([{"role": "user", "content": [{"type": "input_image"}]}]),
            "input[0].content[0]",
        );
        check("input", json!([{"type": "item_reference", "id": "x"}]), "input[0].type");
        check("max_tool_calls", json!(1), "max_tool_calls");
        check("include", json!(["file_search_call.results"]), "include");
    }

    #[test]
    fn events_are_numbered_and_end_with_the_whole() {
        let mut stream = Stream::new(head());
        let deltas = [
            Delta::Reasoning("hm".into()),
            Delta::Content("a".into()),
            Delta::Content("b".into()),
            Delta::ToolCallBegin { index: 0, id: "c1".into(), name: "f".into() },
            Delta::ToolCallArguments { index: 0, text: "{}".into() },
            Delta::ToolCallEnd { index: 0 },
        ];
        let mut events = stream.start();
        events.extend(deltas.iter().flat_map(|delta| stream.delta(delta)));
        events.extend(stream.finish(&outcome(FinishReason::ToolCalls)));
        let names: Vec<_> = events.iter().map(|e| e.event.unwrap_or("")).collect();
        assert_eq!(
            names,
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.reasoning_text.delta",
                "response.reasoning_text.done",
                "response.output_item.done",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.output_item.added",
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "response.output_item.done",
                "response.completed",
            ]
        );
        for (i, event) in events.iter().enumerate() {
            assert_eq!(event.data["sequence_number"], i, "{}", event.data);
        }
        let whole = &events[events.len() - 1].data["response"];
        assert_eq!(whole["output"][1]["content"][0]["text"], "ab");
        assert_eq!(whole["output"][2]["arguments"], "{}");
        assert_eq!(whole["instructions"], "Be brief.");
    }

    #[test]
    fn an_answer_that_is_too_long_is_incomplete() {
        let mut stream = Stream::new(head());
        stream.delta(&Delta::Content("a".into()));
        let last = stream.finish(&outcome(FinishReason::Length)).pop().expect("the last event");
        let whole = &last.data["response"];
        assert_eq!(
            (&whole["status"], &whole["output"][0]["status"]),
            (&json!("incomplete"), &json!("incomplete"))
        );
        assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    }

    #[test]
    fn tools_of_agents() {
        let patch = json!({"type": "custom", "name": "apply_patch", "description": "Edits.",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: \"x\""}});
        let spawn = json!({"type": "function", "name": "spawn", "parameters": {"type": "object"}});
        let agents = json!({"type": "namespace", "name": "agents", "tools": [spawn]});
        let body = json!({
            "model": "m",
            "tools": [patch, agents, {"type": "web_search", "external_web_access": true}],
            "tool_choice": {"type": "function", "namespace": "agents", "name": "spawn"},
            "input": [
                {"role": "user", "content": "x"},
                {"type": "custom_tool_call", "call_id": "1", "name": "apply_patch", "input": "p"},
                {"type": "custom_tool_call_output", "call_id": "1", "output": "done"},
                {"type": "function_call", "call_id": "2", "namespace": "agents", "name": "spawn",
                    "arguments": "{}"},
                {"type": "function_call_output", "call_id": "2", "output": "ok"},
            ],
        });
        let asked = parse(body.to_string().as_bytes(), &SamplerParams::default()).expect("read");
        let Asked { chat, echo, special } = asked;
        let names: Vec<_> = chat.tools.iter().map(|tool| &tool["function"]["name"]).collect();
        assert_eq!(names, ["apply_patch", "agents__spawn"]);
        let patch_function = &chat.tools[0]["function"];
        assert!(patch_function["description"].to_string().contains("start: "), "{patch_function}");
        assert_eq!(chat.tool_choice, crate::request::ToolChoice::Named("agents__spawn".into()));
        assert_eq!(echo["tools"], json!([patch, agents]));
        let call = |k: usize| &chat.messages[k]["tool_calls"][0]["function"];
        assert_eq!(call(1), &json!({"name": "apply_patch", "arguments": {"input": "p"}}));
        assert_eq!(call(3)["name"], "agents__spawn");
        assert_eq!(chat.messages[2]["content"], "done");

        let mut stream = Stream::new(Head { special, ..head() });
        let mut events = Vec::new();
        for (index, (name, text)) in
            [("apply_patch", r#"{"input": "a\nb"}"#), ("agents__spawn", "{}")].iter().enumerate()
        {
            let (id, name) = (format!("c{index}"), (*name).to_owned());
            events.extend(stream.delta(&Delta::ToolCallBegin { index, id, name }));
            let text = (*text).to_owned();
            events.extend(stream.delta(&Delta::ToolCallArguments { index, text }));
            events.extend(stream.delta(&Delta::ToolCallEnd { index }));
        }
        let names: Vec<_> = events.iter().map(|e| e.event.unwrap_or("")).collect();
        assert_eq!(
            names[..4],
            [
                "response.output_item.added",
                "response.custom_tool_call_input.delta",
                "response.custom_tool_call_input.done",
                "response.output_item.done",
            ]
        );
        assert_eq!(events[1].data["delta"], "a\nb");
        let last = stream.finish(&outcome(FinishReason::ToolCalls)).pop().expect("the last event");
        let output = &last.data["response"]["output"];
        assert_eq!(
            (&output[0]["type"], &output[0]["name"], &output[0]["input"]),
            (&json!("custom_tool_call"), &json!("apply_patch"), &json!("a\nb"))
        );
        assert_eq!(
            (&output[1]["type"], &output[1]["namespace"], &output[1]["name"]),
            (&json!("function_call"), &json!("agents"), &json!("spawn"))
        );
    }

    #[test]
    fn log_probabilities_are_those_of_the_message() {
        use crate::output::TokenLogprob;
        let chat = read(json!({"model": "m", "input": "x", "top_logprobs": 0})).expect("read");
        assert_eq!(chat.generation.logprobs, None);
        let include = ["message.output_text.logprobs", "reasoning.encrypted_content"];
        let chat = read(json!({"model": "m", "input": "x", "top_logprobs": 2, "include": include}));
        assert_eq!(chat.expect("read").generation.logprobs, Some(2));

        let mut stream = Stream::new(Head { logprobs: Some(Distribution::Model), ..head() });
        for (text, delta) in [
            ("hm", Delta::Reasoning("hm".into())),
            ("a", Delta::Content("a".into())),
            ("b", Delta::Content("b".into())),
        ] {
            let bytes = text.as_bytes().to_vec();
            let token = TokenLogprob { id: 7, bytes, logprob: Some(-0.5) };
            stream.logprobs(Logprobs { token, top: Vec::new() });
            let events = stream.delta(&delta);
            let told = &events[events.len() - 1].data["logprobs"];
            assert_eq!(told[0]["token"].as_str(), (text != "hm").then_some(text), "{told}");
        }
        let last = stream.finish(&outcome(FinishReason::Stop)).pop().expect("the last event");
        let message = &last.data["response"]["output"][1]["content"][0];
        let tokens: Vec<_> =
            message["logprobs"].as_array().into_iter().flatten().map(|t| &t["token"]).collect();
        assert_eq!(tokens, ["a", "b"]);
    }
}
