//! A conversation with tools as a template can render it.
//!
//! Templates differ in what they take: some want arguments as objects and some as texts, some only one call in
//! a message, names in results, ids of nine characters; some know nothing of tools. What a template does is
//! found out by rendering small conversations with it ([`Abilities`]), and the conversation is changed
//! where it has to be. What a template cannot say itself is said in plain messages, never left out.
use super::format::{AnswerFormat, Calls};
use crate::chat_template::{ChatTemplate, RenderInput};
use serde_json::{Value, json};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// What a template can render.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Abilities {
    pub(crate) system: bool,
    /// Definitions of tools.
    pub(crate) tools: bool,
    /// Calls in a message of the assistant.
    calls: CallStyle,
    /// Several calls in one message.
    parallel: bool,
    /// Messages with the role `tool`.
    results: bool,
}

/// How a template wants the arguments of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallStyle {
    Object,
    Text,
    /// It shows no calls.
    None,
}

/// An id that satisfies the templates that ask for nine characters.
const ID: &str = "probe0000";

impl Abilities {
    pub(crate) fn of(template: &ChatTemplate) -> Self {
        let shows = |messages: Value, tools: bool, texts: &[&str]| {
            let tool = |name| {
                json!({"type": "function", "function": {
                    "name": name, "description": "d",
                    "parameters": {"type": "object", "properties": {}, "required": []},
                }})
            };
            let input = RenderInput {
                messages: messages.as_array().cloned().unwrap_or_default(),
                tools: tools.then(|| vec![tool("probe_tool")]),
                add_generation_prompt: true,
                ..RenderInput::default()
            };
            template.render(&input).is_ok_and(|text| texts.iter().all(|probe| text.contains(probe)))
        };
        let user = json!({"role": "user", "content": "u"});
        let call = |name: &str, arguments: Value| json!({"id": ID, "type": "function", "function": {"name": name, "arguments": arguments}});
        let said =
            |calls: &[Value]| json!({"role": "assistant", "content": "", "tool_calls": calls});
        let result = json!({"role": "tool", "name": "probe_call", "tool_call_id": ID, "content": "probe_result"});
        let system = json!([{"role": "system", "content": "probe_system"}, user]);

        let object = call("probe_call", json!({"probe_key": "probe_value"}));
        let text = call("probe_call", json!("{\"probe_key\": \"probe_value\"}"));
        let as_json = "\"probe_key\": \"probe_value\"";
        let with = |call: &Value| json!([user, said(std::slice::from_ref(call)), result]);
        let calls = [(CallStyle::Object, &object), (CallStyle::Text, &text)];
        let shown = |call: &Value, probe: &str| shows(with(call), true, &["probe_call", probe]);
        let calls = calls.iter().find(|(_, call)| shown(call, as_json)).map(|(style, _)| *style);
        // Some write arguments in their own way.
        let other = || shown(&object, "probe_value") && !shown(&object, "'probe_key'");
        let calls = calls.or_else(|| other().then_some(CallStyle::Object));
        let style = calls.unwrap_or(CallStyle::None);
        let call_one = if style == CallStyle::Text { text } else { object };
        let one = match style {
            CallStyle::None => json!({"role": "assistant", "content": "a"}),
            _ => said(std::slice::from_ref(&call_one)),
        };
        let mut other = call_one.clone();
        other["function"]["name"] = "probe_other".into();
        let two = said(&[call_one, other]);
        Self {
            system: shows(system, false, &["probe_system"]),
            tools: shows(json!([user]), true, &["probe_tool"]),
            calls: style,
            parallel: style == CallStyle::None
                || shows(json!([user, two]), true, &["probe_call", "probe_other"]),
            results: shows(json!([user, one, result]), true, &["probe_result"]),
        }
    }
}

impl RenderInput {
    /// Whether it has to do with tools.
    fn has_tools(&self) -> bool {
        let of_tools = |m: &Value| m["role"] == "tool" || m.get("tool_calls").is_some();
        self.tools.as_ref().is_some_and(|tools| !tools.is_empty())
            || self.messages.iter().any(of_tools)
    }

    /// The same conversation as a template with these abilities can render it.
    pub(crate) fn with_tools_for(&self, format: &AnswerFormat, abilities: Abilities) -> Self {
        let mut input = self.clone();
        // Templates have several names for what a model thinks, and for whether it does.
        if input.extra.get("reasoning_effort").is_some_and(|effort| effort == "none") {
            input.extra.entry("enable_thinking").or_insert(false.into());
        }
        if let Some(on) = input.extra.get("enable_thinking").cloned() {
            input.extra.entry("thinking").or_insert(on);
        }
        if format.row.calls == Calls::Harmony {
            input.messages.iter_mut().for_each(name_thinking);
        }
        if !self.has_tools() {
            return input;
        }
        name_results(&mut input.messages);
        if format.name().starts_with("mistral") {
            input.messages.iter_mut().for_each(shorten_ids);
        }
        if !abilities.parallel {
            input.messages = one_by_one(input.messages);
        }
        for message in &mut input.messages {
            write_calls(message, format, abilities.calls);
        }
        if !abilities.results {
            input.messages = results_as_users(input.messages);
        }
        if !abilities.tools
            && let Some(tools) = input.tools.take().filter(|tools| !tools.is_empty())
        {
            let text = describe(format, &tools);
            match input.messages.first_mut().filter(|first| first["role"] == "system") {
                Some(system) => {
                    let before = system["content"].as_str().unwrap_or_default().to_owned();
                    system["content"] = [before, text].join("\n\n").into();
                }
                None => input.messages.insert(0, json!({"role": "system", "content": text})),
            }
        }
        input
    }
}

/// gpt-oss' template knows reasoning as `thinking`, and only one of it and content beside a call.
fn name_thinking(message: &mut Value) {
    let Some(message) = message.as_object_mut() else { return };
    let Some(thinking) = message.shift_remove("reasoning_content") else { return };
    if message.contains_key("tool_calls")
        && message.get("content").is_some_and(|content| content.as_str() != Some(""))
    {
        return;
    }
    message.insert("thinking".into(), thinking);
}

/// Gives calls without an id one, and results the id and the name of their call. Results come in the order of
/// the calls, for templates that show no ids.
fn name_results(messages: &mut [Value]) {
    let mut calls: Vec<(String, String)> = Vec::new();
    let mut n_answered = 0;
    for (i, message) in messages.iter_mut().enumerate() {
        if let Some(list) = message.get_mut("tool_calls").and_then(Value::as_array_mut) {
            (calls, n_answered) = (Vec::new(), 0);
            for (k, call) in list.iter_mut().enumerate() {
                if call["id"].as_str().is_none_or(str::is_empty) {
                    call["id"] = format!("c{i:04}{k:04}").into();
                }
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                calls.push((text(&call["id"]), text(&call["function"]["name"])));
            }
        } else if message["role"] == "tool" {
            let (id, name) = (message["tool_call_id"].as_str(), message["name"].as_str());
            let call = match (id, name) {
                (Some(id), _) => calls.iter().find(|call| call.0 == id),
                (None, Some(name)) => calls.iter().find(|call| call.1 == name),
                (None, None) => calls.get(n_answered),
            };
            n_answered += 1;
            if let Some((id, name)) = call.cloned() {
                message["tool_call_id"] = id.into();
                message["name"] = name.into();
            }
        }
    }
    let order: Vec<String> = messages
        .iter()
        .flat_map(|message| message["tool_calls"].as_array().into_iter().flatten())
        .filter_map(|call| call["id"].as_str().map(str::to_owned))
        .collect();
    let is_result = |message: &Value| message["role"] == "tool";
    for results in messages.chunk_by_mut(|a, b| is_result(a) && is_result(b)) {
        results.sort_by_cached_key(|result| {
            order.iter().rposition(|id| result["tool_call_id"] == id.as_str())
        });
    }
}

/// Mistral's templates accept ids of nine letters and digits only.
fn shorten_ids(message: &mut Value) {
    let short = |id: &mut Value| {
        let text = id.as_str().unwrap_or_default();
        if text.len() != 9 || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            *id = format!("{:09x}", hasher.finish() & 0xf_ffff_ffff).into();
        }
    };
    if let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) {
        calls.iter_mut().for_each(|call| short(&mut call["id"]));
    }
    if message["role"] == "tool" {
        short(&mut message["tool_call_id"]);
    }
}

/// A message with several calls becomes several messages, each followed by its result.
fn one_by_one(messages: Vec<Value>) -> Vec<Value> {
    let mut out = Vec::with_capacity(messages.len());
    let mut messages = messages.into_iter().peekable();
    while let Some(mut message) = messages.next() {
        let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
        if calls.len() < 2 {
            out.push(message);
            continue;
        }
        let mut results = Vec::new();
        while let Some(result) = messages.next_if(|next| next["role"] == "tool") {
            results.push(result);
        }
        for call in calls {
            let id = call["id"].clone();
            message["tool_calls"] = json!([call]);
            out.push(message.clone());
            // What was said and thought before the calls is said once.
            message["content"] = "".into();
            if let Some(message) = message.as_object_mut() {
                message.retain(|key, _| !matches!(key.as_str(), "reasoning_content" | "thinking"));
            }
            let of_this = |result: &Value| result["tool_call_id"] == id;
            if let Some(at) = results.iter().position(of_this) {
                out.push(results.remove(at));
            }
        }
        out.append(&mut results);
    }
    out
}

/// Arguments as the template wants them; calls become content where it shows none.
fn write_calls(message: &mut Value, format: &AnswerFormat, style: CallStyle) {
    let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) else { return };
    match style {
        CallStyle::Object => {}
        CallStyle::Text => {
            for call in calls {
                let arguments = &mut call["function"]["arguments"];
                if !arguments.is_string() {
                    *arguments = arguments.to_string().into();
                }
            }
        }
        CallStyle::None => {
            let calls: Vec<(String, Value)> = calls
                .iter()
                .map(|call| {
                    let function = &call["function"];
                    let name = function["name"].as_str().unwrap_or_default().to_owned();
                    (name, function["arguments"].clone())
                })
                .collect();
            let text = format.write(&calls);
            let content = message["content"].as_str().unwrap_or_default();
            let space = if content.is_empty() { "" } else { "\n" };
            message["content"] = format!("{content}{space}{text}").into();
            if let Some(message) = message.as_object_mut() {
                message.shift_remove("tool_calls");
            }
        }
    }
}

/// Results become messages of the user, together with what the user says next.
fn results_as_users(messages: Vec<Value>) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::with_capacity(messages.len());
    let mut after_result = false;
    for message in messages {
        let is_result = message["role"] == "tool";
        let content = message["content"].as_str().unwrap_or_default();
        let text = match is_result {
            true => format!("<tool_response>\n{content}\n</tool_response>"),
            false => content.to_owned(),
        };
        match out.last_mut() {
            Some(last) if after_result && (is_result || message["role"] == "user") => {
                let before = last["content"].as_str().unwrap_or_default();
                last["content"] = format!("{before}\n{text}").into();
            }
            _ if is_result => out.push(json!({"role": "user", "content": text})),
            _ => out.push(message),
        }
        after_result = is_result;
    }
    out
}

/// What a model is told of tools if its template does not tell it.
fn describe(format: &AnswerFormat, tools: &[Value]) -> String {
    let mut text = "You can call functions. They are:\n".to_owned();
    for tool in tools {
        text += &format!("{}\n", tool["function"]);
    }
    let example = format.write(&[("NAME".to_owned(), json!({"ARGUMENT": "VALUE"}))]);
    text += "\nIf a function helps to answer, call it: write nothing but its name and its arguments, \
        in this form:\n";
    text += &example;
    text += "\nSeveral calls follow one another. The results come in the next message, between \
        <tool_response> and </tool_response>. If no function is needed, answer as usual.";
    text
}

impl AnswerFormat {
    /// Calls as the model writes them.
    pub(super) fn write(&self, calls: &[(String, Value)]) -> String {
        let json = |(name, arguments): &(String, Value), keys: (&str, &str)| {
            format!("{{{}: {}, {}: {arguments}}}", json!(keys.0), json!(name), json!(keys.1))
        };
        let each = |write: &dyn Fn(&(String, Value)) -> String, separator: &str| {
            calls.iter().map(write).collect::<Vec<_>>().join(separator)
        };
        match &self.row.calls {
            Calls::Json { open, close, name, arguments, list: true } => {
                let calls = each(&|call| json(call, (name, arguments)), ", ");
                format!("{open}[{calls}]{close}")
            }
            Calls::Json { close: "", name, arguments, .. } => {
                each(&|call| json(call, (name, arguments)), "; ")
            }
            Calls::Json { open, close, name, arguments, .. } => {
                each(&|call| format!("{open}\n{}\n{close}", json(call, (name, arguments))), "\n")
            }
            Calls::Named { open, separator, close, .. } => {
                let call = |(name, arguments): &(String, Value)| {
                    format!("{open}{name}{separator}{arguments}{close}")
                };
                let calls = each(&call, "");
                match self.row.dropped {
                    [begin, end] => format!("{begin}{calls}{end}"),
                    _ => calls,
                }
            }
            Calls::Python { open, close } => {
                let call = |(name, arguments): &(String, Value)| {
                    let arguments = arguments.as_object().into_iter().flatten();
                    let arguments: Vec<_> =
                        arguments.map(|(key, value)| format!("{key}={}", python(value))).collect();
                    format!("{name}({})", arguments.join(", "))
                };
                format!("{open}[{}]{close}", each(&call, ", "))
            }
            Calls::Tagged(tags) => {
                let call = |(name, arguments): &(String, Value)| {
                    let (before, after) = tags.around();
                    let mut text = before.concat() + name + tags.name_end;
                    for (key, value) in arguments.as_object().into_iter().flatten() {
                        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                        let (line, line_end) = tags.line();
                        text += &["\n", tags.key, key, tags.key_end].concat();
                        text += if line.is_empty() { "\n" } else { "" };
                        text += &[tags.value, line, &value, line_end, tags.value_end].concat();
                    }
                    text + &after.concat()
                };
                each(&call, "\n")
            }
            Calls::Gemma { open, close, quote } => {
                let call = |(name, arguments): &(String, Value)| {
                    format!("{open}call:{name}{}{close}", gemma(arguments, quote))
                };
                each(&call, "")
            }
            Calls::Harmony => {
                let call = |(name, arguments): &(String, Value)| {
                    format!(
                        "<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"
                    )
                };
                each(&call, "<|start|>assistant")
            }
        }
    }
}

fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(python).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let member =
                |(key, value): (&String, &Value)| format!("{}: {}", json!(key), python(value));
            format!("{{{}}}", map.iter().map(member).collect::<Vec<_>>().join(", "))
        }
        Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

fn gemma(value: &Value, quote: &str) -> String {
    match value {
        Value::String(text) => format!("{quote}{text}{quote}"),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(|v| gemma(v, quote)).collect::<Vec<_>>().join(","))
        }
        Value::Object(map) => {
            let member = |(key, value): (&String, &Value)| format!("{key}:{}", gemma(value, quote));
            format!("{{{}}}", map.iter().map(member).collect::<Vec<_>>().join(","))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(file: &str) -> ChatTemplate {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/templates/");
        let source = std::fs::read_to_string(format!("{dir}{file}.jinja")).expect("a template");
        ChatTemplate::new(&source, "<s>", "</s>").expect("compiles")
    }

    /// Two calls in one message, their results, and a question.
    fn conversation() -> RenderInput {
        let call = |id: &str, name: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let tool = json!({"type": "function", "function": {"name": "get_weather", "description": "Weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "c"}}, "required": ["city"]}}});
        let messages = json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather in Paris and Rome?"},
            {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [
                call("call_abcdefghijkl", "get_weather", json!({"city": "Paris"})),
                call("call_mnopqrstuvwx", "get_time", json!({"city": "Rome"}))]},
            {"role": "tool", "tool_call_id": "call_mnopqrstuvwx", "content": "noon"},
            {"role": "tool", "tool_call_id": "call_abcdefghijkl", "content": "sunny"},
            {"role": "assistant", "content": "Good."},
            {"role": "user", "content": "Thanks."},
        ]);
        RenderInput {
            messages: messages.as_array().cloned().expect("messages"),
            tools: Some(vec![tool]),
            add_generation_prompt: true,
            now: Some("2025-03-14T09:26:53".into()),
            ..RenderInput::default()
        }
    }

    #[test]
    fn every_template_shows_tools_calls_and_results() {
        for file in [
            "HuggingFaceTB-SmolLM3-3B",
            "LFM2-8B-A1B",
            "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
            "Qwen-Qwen2.5-7B-Instruct",
            "Qwen-Qwen3-0.6B",
            "deepseek-ai-DeepSeek-V3.1",
            "google-gemma-2-2b-it",
            "ibm-granite-granite-3.3-2B-Instruct",
            "meta-llama-Llama-3.1-8B-Instruct",
            "microsoft-Phi-3.5-mini-instruct",
            "mistralai-Mistral-Nemo-Instruct-2407",
            "openai-gpt-oss-120b",
        ] {
            let template = template(file);
            let text = template.render(&template.adapt(&conversation()));
            let text = text.unwrap_or_else(|error| panic!("{file}: {error}"));
            for part in [
                "Be brief.",
                "Weather.",
                "get_weather",
                "Paris",
                "get_time",
                "Rome",
                "sunny",
                "noon",
                "Thanks.",
            ] {
                // Mistral's template shows the system message only in the last turn.
                assert!(text.contains(part), "{file}: {part} in\n{text}");
            }
            assert!(!text.contains("\\\"city\\\""), "{file}: arguments as a text in\n{text}");
        }
    }

    #[test]
    fn what_templates_can_do() {
        let check = |file: &str, tools, calls, parallel, results| {
            let found = Abilities::of(&template(file));
            let found = (found.tools, found.calls, found.parallel, found.results);
            assert_eq!(found, (tools, calls, parallel, results), "{file}");
        };
        use CallStyle::{None, Object};
        check("Qwen-Qwen3-0.6B", true, Object, true, true);
        check("meta-llama-Llama-3.1-8B-Instruct", true, Object, false, true);
        check("mistralai-Mistral-Nemo-Instruct-2407", true, Object, true, true);
        check("openai-gpt-oss-120b", true, Object, false, true);
        check("deepseek-ai-DeepSeek-V3.1", false, Object, true, true);
        check("LFM2-8B-A1B", true, None, true, true);
        check("google-gemma-2-2b-it", false, None, true, false);
        let text = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '{\"name\": \"' ~ c.function.name ~ '\", \"arguments\": ' + c.function.arguments + '}' }}{% endfor %}{% endfor %}";
        let found = Abilities::of(&ChatTemplate::new(text, "", "").expect("compiles"));
        assert_eq!((found.calls, found.parallel), (CallStyle::Text, true));
    }

    fn adapted(template: &str, messages: Value) -> Vec<Value> {
        let template = ChatTemplate::new(template, "", "").expect("compiles");
        let messages = messages.as_array().cloned().expect("messages");
        template.adapt(&RenderInput { messages, ..RenderInput::default() }).messages
    }

    #[test]
    fn results_know_their_calls() {
        let source = "{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls|tojson if m.tool_calls }}{% endfor %}";
        let call = |name: &str| json!({"function": {"name": name, "arguments": {}}});
        let found = adapted(
            source,
            json!([
                {"role": "assistant", "content": "", "tool_calls": [call("a"), call("b")]},
                {"role": "tool", "content": "1", "name": "b"},
                {"role": "tool", "content": "2"},
            ]),
        );
        assert_eq!(found[0]["tool_calls"][1]["id"], "c00000001");
        assert_eq!(
            (&found[1]["tool_call_id"], &found[1]["name"]),
            (&json!("c00000001"), &json!("b"))
        );
        assert_eq!(
            (&found[2]["tool_call_id"], &found[2]["name"]),
            (&json!("c00000001"), &json!("b"))
        );
    }

    #[test]
    fn a_template_without_tools_gets_messages() {
        let source = "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('role') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}";
        let template = ChatTemplate::new(source, "", "").expect("compiles");
        let text = template.render(&template.adapt(&conversation())).expect("renders");
        assert_eq!(text.matches("<user>").count(), 3, "{text}");
        assert!(text.contains("Be brief.\n\nYou can call functions"), "{text}");
        assert!(text.contains("<assistant><tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\":\"Paris\"}}\n</tool_call>"), "{text}");
        let results =
            "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nnoon\n</tool_response>";
        assert!(text.contains(results), "{text}");
    }

    #[test]
    fn conversations_without_tools_stay_as_they_are() {
        let messages =
            json!([{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hi."}]);
        assert_eq!(json!(adapted("{{ messages }}", messages.clone())), messages);
    }
}
