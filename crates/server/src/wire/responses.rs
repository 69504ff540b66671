//! OpenAI's Responses. Nothing is stored: a conversation is sent in full each time.
use super::fields::Fields;
use super::openai::{function_call, read_format, read_tool_choice};
use super::{SseEvent, arguments_value, content_text, options};
use crate::error::ApiError;
use crate::output::{Delta, FinishReason, Message, Outcome, Progress, Usage};
use crate::request::{Chat, Reply};
use hurtle_engine::sampler::SamplerParams;
use serde_json::{Map, Value, json};

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

/// Reads the body of `/v1/responses`; also gives what the reply repeats of it.
pub fn parse(body: &[u8], sampler: &SamplerParams) -> Result<(Chat, Map<String, Value>), ApiError> {
    let mut fields = Fields::parse(body)?;
    let echo = ECHOED.iter().filter_map(|key| Some(((*key).to_owned(), fields.sent(key)?.clone())));
    let echo = echo.collect();
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

    for item in fields.opt::<Vec<String>>("include")?.unwrap_or_default() {
        // Reasoning comes as a text, so that clients have it already to send it back.
        if item != "reasoning.encrypted_content" {
            return Err(fields.wrong("include", &format!("'{item}' cannot be included")));
        }
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
        text.only("verbosity", json!("medium"), "say in the instructions how long to answer")?;
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

    let tools: Vec<Value> = fields.opt("tools")?.unwrap_or_default();
    let tools = tools.iter().enumerate().map(read_tool).collect::<Result<_, _>>()?;
    let (tools, tool_choice) = read_tool_choice(tools, fields.opt("tool_choice")?)?;
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
    Ok((chat, echo))
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
            let call = function_call(id, name, arguments_value(&item["arguments"]));
            let last = assistant(out);
            match last.get_mut("tool_calls").and_then(Value::as_array_mut) {
                Some(calls) => calls.push(call),
                None => last["tool_calls"] = json!([call]),
            }
        }
        "function_call_output" => {
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

/// The assistant's message that a call belongs to.
fn assistant(out: &mut Vec<Value>) -> &mut Value {
    if out.last().is_none_or(|last| last["role"] != "assistant") {
        out.push(json!({"role": "assistant", "content": ""}));
    }
    let last = out.len() - 1;
    &mut out[last]
}

/// Functions lie flat here.
fn read_tool((i, tool): (usize, &Value)) -> Result<Value, ApiError> {
    let at = format!("tools[{i}]");
    if tool["type"] != "function" {
        let message = format!("{at}.type: expected \"function\", found {}", tool["type"]);
        return Err(ApiError::invalid(at, message));
    }
    if !tool["name"].is_string() {
        let message = format!("{at}.name: expected a text");
        return Err(ApiError::invalid(at, message));
    }
    let keys = ["name", "description", "parameters", "strict"];
    let function: Map<_, _> = keys
        .iter()
        .filter_map(|key| {
            Some(((*key).to_owned(), tool.get(key).filter(|v| !v.is_null())?.clone()))
        })
        .collect();
    Ok(json!({"type": "function", "function": function}))
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
}

impl Head {
    /// The reply in one piece.
    pub fn response(&self, message: &Message, outcome: &Outcome) -> Value {
        let mut encoder = Stream::new(self.clone());
        if !message.reasoning.is_empty() {
            encoder.delta(&Delta::Reasoning(message.reasoning.clone()));
        }
        if !message.content.is_empty() {
            encoder.delta(&Delta::Content(message.content.clone()));
        }
        for (index, call) in message.tool_calls.iter().enumerate() {
            let (id, name) = (call.id.clone(), call.name.clone());
            encoder.delta(&Delta::ToolCallBegin { index, id, name });
            encoder.delta(&Delta::ToolCallArguments { index, text: call.arguments.clone() });
        }
        let last = encoder.finish(outcome).pop();
        last.map(|mut event| event.data["response"].take()).unwrap_or_default()
    }

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
}

/// The item that is being written.
#[derive(Debug)]
enum Item {
    Message(String),
    Reasoning(String),
    Call { id: String, name: String, arguments: String },
}

impl Item {
    /// The prefix of the item's name.
    fn prefix(&self) -> &'static str {
        match self {
            Item::Message(_) => "msg",
            Item::Reasoning(_) => "rs",
            Item::Call { .. } => "fc",
        }
    }

    fn json(&self, id: &str, status: &str) -> Value {
        match self {
            Item::Message(text) => {
                let part = json!({"type": "output_text", "text": text, "annotations": []});
                let content = if status == "in_progress" { json!([]) } else { json!([part]) };
                json!({"id": id, "type": "message", "role": "assistant", "status": status, "content": content})
            }
            Item::Reasoning(text) => {
                let part = json!({"type": "reasoning_text", "text": text});
                let content = if status == "in_progress" { json!([]) } else { json!([part]) };
                json!({"id": id, "type": "reasoning", "status": status, "summary": [], "content": content})
            }
            Item::Call { id: call, name, arguments } => json!({
                "id": id, "type": "function_call", "status": status,
                "call_id": call, "name": name, "arguments": arguments,
            }),
        }
    }
}

impl Stream {
    /// An encoder for one reply.
    pub fn new(head: Head) -> Self {
        Self { head, sequence: 0, output: Vec::new(), open: None }
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

    /// The events of a piece.
    pub fn delta(&mut self, delta: &Delta) -> Vec<SseEvent> {
        let mut events = Vec::new();
        match delta {
            Delta::Content(piece) => {
                if !matches!(self.open, Some(Item::Message(_))) {
                    self.enter(Item::Message(String::new()), &mut events);
                    let part = json!({"type": "output_text", "text": "", "annotations": []});
                    events.push(self.part_event("response.content_part.added", "part", part));
                }
                if let Some(Item::Message(text)) = &mut self.open {
                    text.push_str(piece);
                }
                let mut event =
                    self.part_event("response.output_text.delta", "delta", piece.as_str().into());
                event.data["logprobs"] = json!([]);
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
                let (id, name, arguments) = (id.clone(), name.clone(), String::new());
                self.enter(Item::Call { id, name, arguments }, &mut events);
            }
            Delta::ToolCallArguments { text, .. } => {
                if let Some(Item::Call { arguments, .. }) = &mut self.open {
                    arguments.push_str(text);
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
                let part = json!({"type": "output_text", "text": text, "annotations": []});
                let mut event = self.part_event("response.output_text.done", "text", text.into());
                event.data["logprobs"] = json!([]);
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
        }
        let item = self.item_event("response.output_item.done", status, events);
        self.output.extend(item);
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
        let item = self.open.as_ref()?.json(&self.item_id(), status);
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
        parse(body.to_string().as_bytes(), &SamplerParams::default()).map(|(chat, _)| chat)
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
        check("tools", json!([{"type": "web_search"}]), "tools[0]");
        check("input", json!([]), "input");
        check(
            "input",
            json!([{"role": "user", "content": [{"type": "input_image"}]}]),
            "input[0].content[0]",
        );
        check("input", json!([{"type": "item_reference", "id": "x"}]), "input[0].type");
        check("max_tool_calls", json!(1), "max_tool_calls");
        check("include", json!(["message.output_text.logprobs"]), "include");
    }

    #[test]
    fn events_are_numbered_and_end_with_the_whole() {
        let echo = Map::from_iter([("instructions".to_owned(), json!("Be brief."))]);
        let head = Head { id: "resp_1".into(), created: 5, model: "m".into(), echo };
        let mut stream = Stream::new(head.clone());
        let deltas = [
            Delta::Reasoning("hm".into()),
            Delta::Content("a".into()),
            Delta::Content("b".into()),
            Delta::ToolCallBegin { index: 0, id: "c1".into(), name: "f".into() },
            Delta::ToolCallArguments { index: 0, text: "{}".into() },
            Delta::ToolCallEnd { index: 0 },
        ];
        let outcome = Outcome {
            reason: FinishReason::ToolCalls,
            truncated: false,
            n_kept: 0,
            slot: None,
            stop_string: None,
            usage: Usage { prompt: 3, cached: 0, generated: 2, reasoning: 0 },
            timings: Default::default(),
        };
        let mut events = stream.start();
        events.extend(deltas.iter().flat_map(|delta| stream.delta(delta)));
        events.extend(stream.finish(&outcome));
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

        // The reply in one piece holds the same.
        let mut message = Message::default();
        deltas.iter().for_each(|delta| message.push(delta));
        assert_eq!(&head.response(&message, &outcome), whole);
    }

    #[test]
    fn an_answer_that_is_too_long_is_incomplete() {
        let echo = Map::new();
        let head = Head { id: "resp_1".into(), created: 5, model: "m".into(), echo };
        let outcome = Outcome {
            reason: FinishReason::Length,
            truncated: false,
            n_kept: 0,
            slot: None,
            stop_string: None,
            usage: Usage::default(),
            timings: Default::default(),
        };
        let mut message = Message::default();
        message.push(&Delta::Content("a".into()));
        let whole = head.response(&message, &outcome);
        assert_eq!(
            (&whole["status"], &whole["output"][0]["status"]),
            (&json!("incomplete"), &json!("incomplete"))
        );
        assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    }
}
