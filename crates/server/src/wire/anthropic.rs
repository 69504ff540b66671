//! Anthropic's messages.
use super::fields::Fields;
use super::openai::{function_call, read_format, read_tool_choice};
use super::{SseEvent, arguments_object, arguments_value, content_text, options};
use crate::error::ApiError;
use crate::output::{Delta, FinishReason, Message, Outcome, Usage};
use crate::request::{Budget, Chat, Reply};
use hurtle_engine::sampler::SamplerParams;
use serde_json::{Map, Value, json};

/// What clients send along and what changes no answer here. `cache_control` of blocks is left unread for the
/// same reason: prefixes are kept without being asked. Where it is computed is where the server runs.
pub const IGNORED: &[&str] =
    &["metadata", "service_tier", "container", "cache_control", "inference_geo"];

/// By this code clients know that they have to send whole conversations.
const NO_THREADS: &str = "thread_unsupported_request";

/// The body of an error that Anthropic's clients expect.
pub fn error(error: &ApiError) -> Value {
    let mut body = error.anthropic();
    if error.code == Some(NO_THREADS) {
        body["error"]["details"] = json!({"error_code": NO_THREADS, "unsupported": ["thread"]});
    }
    body
}

/// Reads the body of `/v1/messages`, or of `/v1/messages/count_tokens`, which needs no `max_tokens`.
pub fn parse(body: &[u8], sampler: &SamplerParams, counting: bool) -> Result<Chat, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut generate = options::defaults(sampler);
    options::sampling_from_zero(&mut fields, &mut generate)?;
    options::stop(&mut fields, "stop_sequences", &mut generate)?;
    generate.params.n_predict =
        if counting { fields.opt("max_tokens")? } else { Some(fields.required("max_tokens")?) };

    let mut messages = Vec::new();
    if let Some(system) = fields.opt::<Value>("system")? {
        let text = content_text(&system, "system", &["text"])?;
        messages.push(json!({"role": "system", "content": text}));
    }
    let turns: Vec<Value> = fields.required("messages")?;
    if turns.is_empty() {
        return Err(fields.wrong("messages", "expected at least one message"));
    }
    for (i, turn) in turns.iter().enumerate() {
        read_turn(&format!("messages[{i}]"), turn, &mut messages)?;
    }

    let mut template = Map::new();
    let mut budget = None;
    if let Some(mut thinking) = fields.object("thinking")? {
        let kind: String = thinking.required("type")?;
        let enabled = match kind.as_str() {
            "enabled" | "adaptive" => true,
            "disabled" => false,
            _ => return Err(thinking.wrong("type", "expected enabled, adaptive or disabled")),
        };
        template.insert("enable_thinking".into(), enabled.into());
        // An aim, as Anthropic has it: there are models whose thoughts nobody else can close.
        let tokens = thinking.opt::<usize>("budget_tokens")?.filter(|_| enabled);
        budget = tokens.map(|tokens| Budget { tokens, message: String::new(), param: None });
        thinking.finish(&["display"])?;
    }

    if let Some(mut config) = fields.object("output_config")? {
        if let Some(format) = config.opt::<Value>("format")? {
            let param = "output_config.format";
            (generate.format, generate.format_param) = (read_format(&format, param, &[])?, param);
        }
        if let Some(effort) = config.opt::<String>("effort")? {
            template.insert("reasoning_effort".into(), effort.into());
        }
        config.finish(&[])?;
    }

    // Clients for code say that the thoughts of earlier turns are to stay, which they do.
    if let Some(mut management) = fields.object("context_management")? {
        let edits: Vec<Value> = management.opt("edits")?.unwrap_or_default();
        if edits
            .iter()
            .any(|edit| edit["type"] != "clear_thinking_20251015" || edit["keep"] != "all")
        {
            return Err(management.wrong("edits", "nothing is cleared from a conversation here"));
        }
        management.finish(&[])?;
    }

    let tools: Vec<Value> = fields.opt("tools")?.unwrap_or_default();
    let tools = tools.iter().enumerate().map(read_tool).collect::<Result<_, _>>()?;
    let (mut choice, mut parallel) = (None, true);
    if let Some(mut wanted) = fields.object("tool_choice")? {
        let kind: String = wanted.required("type")?;
        choice = Some(match kind.as_str() {
            "any" => json!("required"),
            "tool" => json!({"name": wanted.required::<String>("name")?}),
            "auto" | "none" => kind.into(),
            _ => return Err(wanted.wrong("type", "expected auto, any, tool or none")),
        });
        parallel = !wanted.opt("disable_parallel_tool_use")?.unwrap_or(false);
        wanted.finish(&[])?;
    }
    let (tools, tool_choice) = read_tool_choice(tools, choice)?;
    let chat = Chat {
        model: fields.opt("model")?,
        messages,
        tools,
        tool_choice,
        parallel_tool_calls: parallel,
        budget,
        template,
        generation: generate,
        reply: Reply { stream: fields.opt("stream")?.unwrap_or(false), include_usage: true },
        ..Chat::default()
    };
    if fields.sent("thread").is_some() {
        let what = "is not supported: nothing is stored; send the whole conversation as messages";
        return Err(ApiError { code: Some(NO_THREADS), ..fields.wrong("thread", what) });
    }
    fields.finish(IGNORED)?;
    Ok(chat)
}

/// One turn becomes one or more messages: results of tools are messages of their own in templates.
fn read_turn(at: &str, turn: &Value, out: &mut Vec<Value>) -> Result<(), ApiError> {
    let role = match turn["role"].as_str() {
        Some(role @ ("user" | "assistant" | "system")) => role,
        _ => {
            let found = &turn["role"];
            return Err(ApiError::invalid(
                format!("{at}.role"),
                format!("{at}.role: expected user, assistant or system, found {found}"),
            ));
        }
    };
    let blocks = match &turn["content"] {
        Value::Array(blocks) => blocks,
        content @ Value::String(_) => {
            out.push(json!({"role": role, "content": content}));
            return Ok(());
        }
        _ => {
            let at = format!("{at}.content");
            return Err(ApiError::invalid(at.clone(), format!("{at}: expected a text or blocks")));
        }
    };
    let (mut texts, mut reasoning, mut calls) = (Vec::<String>::new(), String::new(), Vec::new());
    for (k, block) in blocks.iter().enumerate() {
        let at = format!("{at}.content[{k}]");
        let text = |key: &str| {
            block[key].as_str().ok_or_else(|| {
                ApiError::invalid(at.clone(), format!("{at}.{key}: expected a text"))
            })
        };
        match (role, block["type"].as_str().unwrap_or("missing")) {
            (_, "text") => texts.push(text("text")?.to_owned()),
            ("user", "document" | "search_result") => texts.push(document(&at, block)?),
            ("assistant", "thinking") => reasoning.push_str(text("thinking")?),
            ("assistant", "redacted_thinking") => {}
            ("assistant", "tool_use") => {
                calls.push(function_call(
                    text("id")?,
                    text("name")?,
                    arguments_value(&block["input"]),
                ));
            }
            ("user", "tool_result") => {
                let content = result_text(&format!("{at}.content"), &block["content"])?;
                out.push(json!({
                    "role": "tool",
                    "tool_call_id": text("tool_use_id")?,
                    "content": content,
                }));
            }
            (_, kind @ "image") => return Err(no_text(at, kind)),
            (_, kind) => {
                let message =
                    format!("{at}: a block of type '{kind}' cannot be read in a turn of {role}");
                return Err(ApiError::invalid(at, message));
            }
        }
    }
    if texts.is_empty() && calls.is_empty() && reasoning.is_empty() {
        return Ok(()); // only results of tools
    }
    let mut message = json!({"role": role, "content": texts.join("\n")});
    if !reasoning.is_empty() {
        message["reasoning_content"] = reasoning.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    out.push(message);
    Ok(())
}

/// What cannot be given to a model.
fn no_text(at: String, kind: &str) -> ApiError {
    let message =
        format!("{at}: a block of type '{kind}' cannot be read: models are given text only");
    ApiError::invalid(at, message)
}

/// The text of a tool's result, which may hold documents.
fn result_text(at: &str, content: &Value) -> Result<String, ApiError> {
    let Value::Array(blocks) = content else { return content_text(content, at, &["text"]) };
    let mut texts = Vec::new();
    for (i, block) in blocks.iter().enumerate() {
        texts.push(match block["type"].as_str() {
            Some("document" | "search_result") => document(&format!("{at}[{i}]"), block)?,
            _ => content_text(&json!([block]), &format!("{at}[{i}]"), &["text"])?,
        });
    }
    Ok(texts.join("\n"))
}

/// A document that is a text, or something that was found, with what is known of it in tags around it.
fn document(at: &str, block: &Value) -> Result<String, ApiError> {
    if block["citations"]["enabled"] == true {
        let at = format!("{at}.citations");
        let message = format!("{at}: models cite nothing here");
        return Err(ApiError::invalid(at, message));
    }
    let (tag, content) = match (block["type"].as_str(), block["source"]["type"].as_str()) {
        (Some("search_result"), _) => ("search_result", &block["content"]),
        (_, Some("text")) => ("document", &block["source"]["data"]),
        (_, Some("content")) => ("document", &block["source"]["content"]),
        _ => return Err(no_text(at.to_owned(), "document")),
    };
    let text = content_text(content, &format!("{at}.source"), &["text"])?;
    let known = ["title", "source", "context"].iter().filter_map(|key| {
        let value = block[*key].as_str().filter(|value| !value.is_empty())?;
        Some(format!("<{key}>{value}</{key}>\n"))
    });
    let known: String = known.collect();
    Ok(format!("<{tag}>\n{known}{text}\n</{tag}>"))
}

/// Tools that clients run, and whose description and arguments Anthropic's models know without being told: what
/// their types begin with.
fn known_tool(kind: &str) -> Option<(&'static str, Value)> {
    let text = |what: &str| json!({"type": "string", "description": what});
    if kind.starts_with("bash_") {
        let restart = json!({"type": "boolean", "description": "Start the shell anew instead."});
        let properties = json!({"command": text("The command to run."), "restart": restart});
        let schema = json!({"type": "object", "properties": properties});
        return Some(("Runs a command in a shell that stays open between calls.", schema));
    }
    if kind.starts_with("text_editor_") {
        let commands = ["view", "create", "str_replace", "insert"];
        let lines = json!({"type": "array", "items": {"type": "integer"},
            "description": "For view: the first line and the last, from 1; -1: to the end."});
        let insert_line = json!({"type": "integer",
            "description": "For insert: the number of the line behind which the text comes."});
        let properties = json!({
            "command": {"type": "string", "enum": commands, "description": "What to do."},
            "path": text("The file, or for view also a folder."),
            "view_range": lines,
            "file_text": text("For create: the text of the file."),
            "old_str": text("For str_replace: the text to replace, which must be there once."),
            "new_str": text("For str_replace, and for insert in earlier versions: the new text."),
            "insert_line": insert_line,
            "insert_text": text("For insert: the text."),
        });
        let required = ["command", "path"];
        let schema = json!({"type": "object", "properties": properties, "required": required});
        return Some(("Views, creates and edits text files.", schema));
    }
    None
}

fn read_tool((i, tool): (usize, &Value)) -> Result<Value, ApiError> {
    let at = format!("tools[{i}]");
    if !tool["name"].is_string() {
        let message = format!("{at}.name: expected a text");
        return Err(ApiError::invalid(at, message));
    }
    let mut function = Map::from_iter([("name".to_owned(), tool["name"].clone())]);
    if let Some(kind) = tool["type"].as_str().filter(|kind| *kind != "custom") {
        let Some((description, schema)) = known_tool(kind) else {
            let message = format!(
                "{at}.type: '{kind}' is run by Anthropic's servers, or needs to see; custom tools, bash \
                 and text_editor can be called here"
            );
            return Err(ApiError::invalid(at, message));
        };
        function.insert("description".into(), description.into());
        function.insert("parameters".into(), schema);
        return Ok(json!({"type": "function", "function": function}));
    }
    if let Some(description) = tool.get("description") {
        function.insert("description".into(), description.clone());
    }
    let schema = tool.get("input_schema").cloned().unwrap_or_else(|| json!({"type": "object"}));
    function.insert("parameters".into(), schema);
    Ok(json!({"type": "function", "function": function}))
}

fn stop_reason(outcome: &Outcome) -> &'static str {
    match outcome.reason {
        FinishReason::ToolCalls => "tool_use",
        FinishReason::Length => "max_tokens",
        FinishReason::Stop if outcome.stop_string.is_some() => "stop_sequence",
        FinishReason::Stop => "end_turn",
    }
}

/// Cached tokens are counted apart, as Anthropic does.
fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt - usage.cached.min(usage.prompt),
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.generated,
    })
}

/// The reply in one piece.
pub fn message(id: &str, model: &str, message: &Message, outcome: &Outcome) -> Value {
    let mut content = Vec::new();
    if !message.reasoning.is_empty() {
        content.push(json!({"type": "thinking", "thinking": message.reasoning, "signature": ""}));
    }
    if !message.content.is_empty() {
        content.push(json!({"type": "text", "text": message.content}));
    }
    content.extend(message.tool_calls.iter().map(|call| {
        json!({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments_object(&call.arguments)})
    }));
    json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason(outcome),
        "stop_sequence": outcome.stop_string,
        "usage": usage_json(outcome.usage),
    })
}

/// The reply to `count_tokens`.
pub fn count(n: usize) -> Value {
    json!({"input_tokens": n})
}

/// Encodes a stream: text, thinking and each call are blocks with an index, opened and closed in turn.
#[derive(Debug, Default)]
pub struct Stream {
    open: Option<Block>,
    /// Blocks so far.
    n_blocks: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    Thinking,
    ToolUse,
}

impl Stream {
    /// What opens the stream, once the prompt is counted.
    pub fn start(&self, id: &str, model: &str, usage: Usage) -> SseEvent {
        let message = json!({
            "id": id, "type": "message", "role": "assistant", "model": model, "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": usage_json(usage),
        });
        SseEvent::typed("message_start", json!({"message": message}))
    }

    /// What keeps the connection alive while the prompt is processed.
    pub fn ping() -> SseEvent {
        SseEvent::typed("ping", json!({}))
    }

    /// The events of a piece.
    pub fn delta(&mut self, delta: &Delta) -> Vec<SseEvent> {
        let mut events = Vec::new();
        match delta {
            Delta::Content(text) => {
                self.enter(Block::Text, json!({"type": "text", "text": ""}), &mut events);
                events.push(self.piece(json!({"type": "text_delta", "text": text})));
            }
            Delta::Reasoning(text) => {
                let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                self.enter(Block::Thinking, block, &mut events);
                events.push(self.piece(json!({"type": "thinking_delta", "thinking": text})));
            }
            Delta::ToolCallBegin { id, name, .. } => {
                self.close(&mut events);
                let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.enter(Block::ToolUse, block, &mut events);
            }
            Delta::ToolCallArguments { text, .. } => {
                events.push(self.piece(json!({"type": "input_json_delta", "partial_json": text})));
            }
            Delta::ToolCallEnd { .. } => self.close(&mut events),
        }
        events
    }

    /// What closes the stream.
    pub fn finish(&mut self, outcome: &Outcome) -> Vec<SseEvent> {
        let mut events = Vec::new();
        self.close(&mut events);
        let delta =
            json!({"stop_reason": stop_reason(outcome), "stop_sequence": outcome.stop_string});
        let usage = usage_json(outcome.usage);
        events.push(SseEvent::typed("message_delta", json!({"delta": delta, "usage": usage})));
        events.push(SseEvent::typed("message_stop", json!({})));
        events
    }

    /// What ends the stream where something fails in its midst.
    pub fn error(error: &ApiError) -> SseEvent {
        SseEvent { event: Some("error"), data: self::error(error) }
    }

    fn enter(&mut self, block: Block, content: Value, events: &mut Vec<SseEvent>) {
        if self.open == Some(block) {
            return;
        }
        self.close(events);
        self.open = Some(block);
        self.n_blocks += 1;
        let data = json!({"index": self.n_blocks - 1, "content_block": content});
        events.push(SseEvent::typed("content_block_start", data));
    }

    fn close(&mut self, events: &mut Vec<SseEvent>) {
        if self.open.take().is_some() {
            let data = json!({"index": self.n_blocks - 1});
            events.push(SseEvent::typed("content_block_stop", data));
        }
    }

    fn piece(&self, delta: Value) -> SseEvent {
        let index = self.n_blocks.saturating_sub(1);
        SseEvent::typed("content_block_delta", json!({"index": index, "delta": delta}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ToolChoice;

    fn with(name: &str, value: Value) -> Result<Chat, ApiError> {
        let mut body = json!({"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
        body[name] = value;
        read(body)
    }

    #[test]
    fn documents_that_are_texts() {
        let check = |block: Value, expected: Result<&str, &str>| {
            let chat = with("messages", json!([{"role": "user", "content": [block]}]));
            let chat = chat.map(|chat| chat.messages[0]["content"].clone());
            match expected {
                Ok(text) => assert_eq!(chat.expect("read"), text),
                Err(param) => {
                    assert_eq!(chat.expect_err("refused").param.as_deref(), Some(param));
                }
            }
        };
        let source = json!({"type": "text", "media_type": "text/plain", "data": "Green."});
        check(
            json!({"type": "document", "source": source, "title": "Sky", "citations": {"enabled": false}}),
            Ok("<document>\n<title>Sky</title>\nGreen.\n</document>"),
        );
        let content = json!([{"type": "text", "text": "Green."}]);
        check(
            json!({"type": "document", "source": {"type": "content", "content": content}}),
            Ok("<document>\nGreen.\n</document>"),
        );
        let found = json!({"type": "search_result", "source": "a.org", "content": content});
        let text = "<search_result>\n<source>a.org</source>\nGreen.\n</search_result>";
        check(found.clone(), Ok(text));
        check(json!({"type": "tool_result", "tool_use_id": "1", "content": [found]}), Ok(text));
        let pdf = json!({"type": "base64", "media_type": "application/pdf", "data": ""});
        check(json!({"type": "document", "source": pdf}), Err("messages[0].content[0]"));
        check(
            json!({"type": "document", "source": source, "citations": {"enabled": true}}),
            Err("messages[0].content[0].citations"),
        );
    }

    #[test]
    fn tools_that_clients_run() {
        let tools = json!([
            {"type": "bash_20250124", "name": "bash"},
            {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
        ]);
        let chat = with("tools", tools).expect("read");
        let function = |i: usize| &chat.tools[i]["function"];
        assert_eq!(function(0)["name"], "bash");
        assert!(function(0)["parameters"]["properties"]["command"].is_object());
        assert_eq!(function(1)["parameters"]["required"], json!(["command", "path"]));
        let search = json!([{"type": "web_search_20250305", "name": "web_search"}]);
        assert_eq!(with("tools", search).expect_err("refused").param.as_deref(), Some("tools[0]"));
    }

    #[test]
    fn threads_are_refused_so_that_clients_do_without() {
        let refused = with("thread", json!({"type": "create"})).expect_err("refused");
        let told = error(&refused);
        assert_eq!(told["error"]["type"], "invalid_request_error");
        assert_eq!(told["error"]["details"]["error_code"], NO_THREADS);
        let other = with("max_tokens", json!("x")).expect_err("refused");
        assert_eq!(error(&other)["error"].get("details"), None);
    }

    #[test]
    fn what_clients_for_code_send_along() {
        let effort = with("output_config", json!({"effort": "low"})).expect("read");
        assert_eq!(effort.template["reasoning_effort"], "low");
        let keep = |what: &str| {
            let edit = json!({"type": "clear_thinking_20251015", "keep": what});
            with("context_management", json!({"edits": [edit]}))
        };
        assert!(keep("all").is_ok());
        let param = keep("none").expect_err("refused").param;
        assert_eq!(param.as_deref(), Some("context_management.edits"));
        assert!(with("cache_control", json!({"type": "ephemeral"})).is_ok());
        let image = json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]);
        let error = with("messages", image).expect_err("refused");
        assert!(error.message.contains("models are given text only"), "{error}");
    }

    fn read(body: Value) -> Result<Chat, ApiError> {
        parse(body.to_string().as_bytes(), &SamplerParams::default(), false)
    }

    #[test]
    fn a_conversation_with_tools_is_translated() {
        let chat = read(json!({
            "model": "m", "max_tokens": 5, "system": [{"type": "text", "text": "Be brief.",
                "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "2 + 2?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 2}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "4"}]},
                    {"type": "text", "text": "So?"}]},
            ],
            "tools": [{"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "stop_sequences": ["\n\n"], "top_k": 3, "thinking": {"type": "enabled", "budget_tokens": 1024},
            "metadata": {"user_id": "u"},
        }))
        .expect("read");
        let roles: Vec<_> =
            chat.messages.iter().map(|m| m["role"].as_str().unwrap_or("")).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        assert_eq!(chat.messages[2]["reasoning_content"], "hm");
        assert_eq!(chat.messages[2]["tool_calls"][0]["function"]["arguments"], json!({"a": 2}));
        assert_eq!(chat.messages[3], json!({"role": "tool", "tool_call_id": "t1", "content": "4"}));
        assert_eq!(chat.tools[0]["function"]["parameters"], json!({"type": "object"}));
        assert_eq!((chat.tool_choice, chat.parallel_tool_calls), (ToolChoice::Required, false));
        assert_eq!(chat.template["enable_thinking"], true);
        assert_eq!(chat.generation.params.n_predict, Some(5));
        assert_eq!(chat.generation.params.sampler.top_k, 3);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let check = |key: &str, value: Value, param: &str| {
            let mut body = json!({"max_tokens": 1, "messages": [{"role": "user", "content": "x"}]});
            body[key] = value;
            let error = read(body).expect_err(key);
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        };
        check("max_tokens", Value::Null, "max_tokens");
        check("messages", json!([]), "messages");
        check(
            "messages",
            json!([{"role": "user", "content": [{"type": "image"}]}]),
            "messages[0].content[0]",
        );
        check("messages", json!([{"role": "tool", "content": "x"}]), "messages[0].role");
        check("tools", json!([{"type": "computer_20250124", "name": "bash"}]), "tools[0]");
        check("tool_choice", json!({"type": "tool", "name": "f"}), "tool_choice");
        check("mcp_servers", json!([]), "mcp_servers");
        check("thinking", json!({"type": "much"}), "thinking.type");
    }

    #[test]
    fn blocks_open_and_close_in_turn() {
        let mut stream = Stream::default();
        let text = |text: &str| Delta::Content(text.into());
        let deltas = [
            Delta::Reasoning("a".into()),
            text("b"),
            text("c"),
            Delta::ToolCallBegin { index: 0, id: "1".into(), name: "f".into() },
            Delta::ToolCallArguments { index: 0, text: "{}".into() },
            Delta::ToolCallEnd { index: 0 },
            Delta::ToolCallBegin { index: 1, id: "2".into(), name: "f".into() },
        ];
        let outcome = Outcome {
            reason: FinishReason::ToolCalls,
            truncated: false,
            n_kept: 0,
            slot: None,
            stop_string: None,
            usage: Usage { prompt: 10, cached: 4, generated: 2, reasoning: 0 },
            timings: Default::default(),
        };
        let mut events: Vec<SseEvent> = deltas.iter().flat_map(|d| stream.delta(d)).collect();
        events.extend(stream.finish(&outcome));
        let told: Vec<_> =
            events.iter().map(|e| (e.event.unwrap_or(""), e.data["index"].as_u64())).collect();
        let (start, delta, stop) =
            ("content_block_start", "content_block_delta", "content_block_stop");
        assert_eq!(
            told,
            [
                (start, Some(0)),
                (delta, Some(0)),
                (stop, Some(0)),
                (start, Some(1)),
                (delta, Some(1)),
                (delta, Some(1)),
                (stop, Some(1)),
                (start, Some(2)),
                (delta, Some(2)),
                (stop, Some(2)),
                (start, Some(3)),
                (stop, Some(3)),
                ("message_delta", None),
                ("message_stop", None),
            ]
        );
        assert_eq!(events[12].data["delta"]["stop_reason"], "tool_use");
        assert_eq!(events[12].data["usage"]["input_tokens"], 6);
        assert!(events[0].encode().starts_with("event: content_block_start\ndata: {"));
    }

    #[test]
    fn a_reply_in_one_piece() {
        let mut whole = Message::default();
        whole.push(&Delta::Content("hi".into()));
        let outcome = Outcome {
            reason: FinishReason::Stop,
            truncated: false,
            n_kept: 0,
            slot: None,
            stop_string: Some("x".into()),
            usage: Usage::default(),
            timings: Default::default(),
        };
        let reply = message("msg_1", "m", &whole, &outcome);
        assert_eq!(reply["content"], json!([{"type": "text", "text": "hi"}]));
        assert_eq!(
            (&reply["stop_reason"], &reply["stop_sequence"]),
            (&json!("stop_sequence"), &json!("x"))
        );
    }
}
