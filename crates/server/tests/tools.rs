//! Calls of tools over every API, with the templates of real models. The model is tiny and random; the grammar of
//! calls makes it call.
use axum::body::{Body, to_bytes};
use axum::http::Request;
use hurtle_engine::{Engine, EngineOptions};
use hurtle_server::{Server, ServerOptions};
use hurtle_text::ChatTemplate;
use serde_json::{Value, json};
use std::path::PathBuf;
use tower::ServiceExt as _;

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

/// A server whose model has this template; none: the one for models that have none.
fn server(template: Option<&str>) -> Server {
    let options =
        EngineOptions { threads: Some(1), ctx_size: Some(4096), ..EngineOptions::default() };
    let engine = Engine::load(&golden("archs/llama.gguf"), &options).expect("loaded");
    let template = match template {
        Some(source) => ChatTemplate::new(source, "<s>", "</s>").expect("compiles"),
        None => {
            let (metadata, tok) = (engine.gguf().metadata(), engine.tokenizer());
            ChatTemplate::fallback_for(metadata, tok).expect("a template").0
        }
    };
    let options = ServerOptions { model: "tiny".into(), ..ServerOptions::default() };
    Server::start(engine, template, options).expect("started")
}

fn template(file: &str) -> String {
    std::fs::read_to_string(golden("templates").join(file)).expect("a template")
}

async fn post(server: &Server, path: &str, body: &Value) -> (u16, String) {
    let request = Request::post(path).body(Body::from(body.to_string())).expect("a request");
    let reply = server.router().oneshot(request).await.expect("a reply");
    let status = reply.status().as_u16();
    let body = to_bytes(reply.into_body(), usize::MAX).await.expect("a body");
    (status, String::from_utf8(body.into()).expect("UTF-8"))
}

/// The reply to a request that must succeed.
async fn ask(server: &Server, path: &str, body: &Value) -> Value {
    let (status, text) = post(server, path, body).await;
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

/// The data of the events of a stream.
async fn events(server: &Server, path: &str, mut body: Value) -> Vec<Value> {
    body["stream"] = true.into();
    let (status, text) = post(server, path, &body).await;
    assert_eq!(status, 200, "{text}");
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).expect("JSON"))
        .collect()
}

/// Small enough that a random model comes to an end.
fn schema() -> Value {
    json!({"type": "object", "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "metric": {"type": "boolean"},
    }, "required": ["city"]})
}

fn tools() -> Value {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "description": "d", "parameters": schema()}});
    json!([tool("get_weather"), tool("get_time")])
}

fn request(choice: &Value) -> Value {
    json!({
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "chat_template_kwargs": {"enable_thinking": false},
        "tools": tools(), "tool_choice": choice, "parallel_tool_calls": false, "seed": 3, "max_tokens": 300,
    })
}

fn check_arguments(arguments: &Value) {
    assert!(
        ["Paris", "Rome"].contains(&arguments["city"].as_str().expect("a city")),
        "{arguments}"
    );
    let keys = arguments.as_object().expect("an object").keys();
    keys.for_each(|key| assert!(key == "city" || key == "metric", "{arguments}"));
}

/// The call that is all of a message.
fn check_message(message: &Value, reason: &Value, context: &str) -> Value {
    assert_eq!(
        (reason, &message["content"]),
        (&json!("tool_calls"), &Value::Null),
        "{context}: {message}"
    );
    let calls = message["tool_calls"].as_array().expect("calls");
    assert_eq!(calls.len(), 1, "{context}: {message}");
    assert_eq!(calls[0]["id"].as_str().map(str::len), Some(9), "{context}: {message}");
    let arguments = calls[0]["function"]["arguments"].as_str().expect("a text");
    check_arguments(&serde_json::from_str(arguments).expect("JSON"));
    calls[0]["function"].clone()
}

#[tokio::test]
async fn every_template_calls_a_tool_where_one_is_required() {
    for file in [
        "HuggingFaceTB-SmolLM3-3B.jinja",
        "LFM2-8B-A1B.jinja",
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
        "Qwen-Qwen3-0.6B.jinja",
        "deepseek-ai-DeepSeek-V3.1.jinja",
        "google-gemma-2-2b-it.jinja",
        "ibm-granite-granite-3.3-2B-Instruct.jinja",
        "meta-llama-Llama-3.1-8B-Instruct.jinja",
        "mistralai-Mistral-Nemo-Instruct-2407.jinja",
    ] {
        let server = server(Some(&template(file)));
        let named = json!({"type": "function", "function": {"name": "get_time"}});
        for choice in [json!("required"), named] {
            let whole = ask(&server, "/v1/chat/completions", &request(&choice)).await;
            let choice_of = &whole["choices"][0];
            let call = check_message(&choice_of["message"], &choice_of["finish_reason"], file);
            assert!(choice == "required" || call["name"] == "get_time", "{file}: {call}");
        }
    }
}

#[tokio::test]
async fn a_streamed_call_is_the_one_that_comes_in_one_piece() {
    let server = server(None);
    let body = request(&json!("required"));
    let whole = ask(&server, "/v1/chat/completions", &body).await;
    let choice = &whole["choices"][0];
    let call = check_message(&choice["message"], &choice["finish_reason"], "whole");
    let chunks = events(&server, "/v1/chat/completions", body).await;
    let (mut name, mut arguments, mut reason) = (String::new(), String::new(), Value::Null);
    for chunk in &chunks {
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"]["tool_calls"][0];
        assert!(delta.is_null() || delta["index"] == 0, "{chunk}");
        name += delta["function"]["name"].as_str().unwrap_or_default();
        arguments += delta["function"]["arguments"].as_str().unwrap_or_default();
        assert_eq!(choice["delta"]["content"].as_str().unwrap_or_default(), "", "{chunk}");
        reason = choice["finish_reason"].clone();
    }
    assert_eq!(json!({"name": name, "arguments": arguments}), call);
    assert_eq!(reason, "tool_calls");
}

#[tokio::test]
async fn calls_over_anthropics_api() {
    let server = server(None);
    let tools: Value = ["get_weather", "get_time"]
        .map(|name| json!({"name": name, "input_schema": schema()}))
        .into_iter()
        .collect();
    let body = json!({"model": "tiny", "max_tokens": 300, "messages": [{"role": "user", "content": "u"}],
        "tools": tools, "tool_choice": {"type": "any", "disable_parallel_tool_use": true}, "seed": 3});
    let whole = ask(&server, "/v1/messages", &body).await;
    assert_eq!(
        (&whole["stop_reason"], &whole["content"][0]["type"]),
        (&json!("tool_use"), &json!("tool_use"))
    );
    assert_eq!(whole["stop_sequence"], Value::Null);
    check_arguments(&whole["content"][0]["input"]);
    let events = events(&server, "/v1/messages", body.clone()).await;
    let json: String =
        events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&json).expect("JSON"), whole["content"][0]["input"]);
    // The conversation goes on with the result.
    let mut next = body;
    next["tool_choice"] = json!({"type": "auto"});
    next["max_tokens"] = 4.into();
    let id = whole["content"][0]["id"].clone();
    next["messages"] = json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": whole["content"]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "sunny"}]}]);
    assert_eq!(ask(&server, "/v1/messages", &next).await["role"], "assistant");
}

#[tokio::test]
async fn calls_and_results_over_ollamas_api() {
    // Ollama's API cannot ask for a call; a conversation with calls and results can be sent.
    let server = server(Some(&template("Qwen-Qwen3-0.6B.jinja")));
    let call = json!({"function": {"name": "get_weather", "arguments": {"city": "Rome"}}});
    let body = json!({"model": "tiny", "tools": tools(), "think": false, "stream": false, "options": {"num_predict": 4},
        "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_name": "get_weather", "content": "sunny"}]});
    assert_eq!(ask(&server, "/api/chat", &body).await["done"], true);
    let shown = ask(&server, "/api/show", &json!({"model": "tiny"})).await;
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
}

#[tokio::test]
async fn reasoning_is_kept_apart() {
    let server = server(Some("{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"));
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "u"}], "max_tokens": 8, "seed": 1, "ignore_eos": true});
    let whole = ask(&server, "/v1/chat/completions", &body).await;
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["content"], "");
    assert!(
        message["reasoning_content"].as_str().is_some_and(|text| !text.is_empty()),
        "{message}"
    );
    assert!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64() > Some(0));
    let chunks = events(&server, "/v1/chat/completions", body.clone()).await;
    let streamed: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["reasoning_content"].as_str())
        .collect();
    assert_eq!(message["reasoning_content"], streamed);
    let mut ollama =
        json!({"model": "tiny", "messages": [{"role": "user", "content": "u"}], "stream": false});
    ollama["options"] = json!({"num_predict": 8, "seed": 1, "ignore_eos": true});
    let ollama = ask(&server, "/api/chat", &ollama).await;
    assert_eq!(ollama["message"]["thinking"], message["reasoning_content"]);
    let anthropic = ask(&server, "/v1/messages", &body).await;
    assert_eq!(anthropic["content"][0]["thinking"], message["reasoning_content"]);
}

#[tokio::test]
async fn reasoning_stays_in_the_content_where_it_is_to() {
    let server = server(Some("{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"));
    let mut body = json!({"messages": [{"role": "user", "content": "u"}], "max_tokens": 8, "seed": 1, "ignore_eos": true});
    let apart = ask(&server, "/v1/chat/completions", &body).await;
    let reasoning = apart["choices"][0]["message"]["reasoning_content"].as_str().expect("a text");
    for (format, both) in [("none", false), ("deepseek-legacy", true)] {
        body["reasoning_format"] = format.into();
        let whole = ask(&server, "/v1/chat/completions", &body).await;
        let message = &whole["choices"][0]["message"];
        assert_eq!(message["content"], format!("<think>\n{reasoning}"), "{format}");
        assert_eq!(message.get("reasoning_content").is_some(), both, "{format}");
        // In streams llama.cpp has it in the content alone.
        let chunks = events(&server, "/v1/chat/completions", body.clone()).await;
        let deltas = || chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]);
        let content: String = deltas().filter_map(|delta| delta["content"].as_str()).collect();
        assert_eq!(message["content"], content, "{format}");
        assert!(deltas().all(|delta| delta.get("reasoning_content").is_none()), "{format}");
    }
}

#[tokio::test]
async fn calls_stay_in_the_content_where_they_are_not_to_be_read() {
    let server = server(None);
    let mut body = request(&json!("required"));
    let read = ask(&server, "/v1/chat/completions", &body).await;
    body["parse_tool_calls"] = false.into();
    let unread = ask(&server, "/v1/chat/completions", &body).await;
    let (read, unread) = (&read["choices"][0], &unread["choices"][0]);
    let call = &read["message"]["tool_calls"][0]["function"];
    let text = unread["message"]["content"].as_str().expect("a text");
    assert!(text.contains(call["name"].as_str().expect("a name")), "{text}");
    assert!(text.contains(call["arguments"].as_str().expect("arguments")), "{text}");
    assert_eq!(unread["message"].get("tool_calls"), None);
    assert_eq!(unread["finish_reason"], "stop");
}

#[tokio::test]
async fn some_of_the_tools_may_be_called() {
    let server = server(None);
    let name = json!({"type": "function", "function": {"name": "get_time"}});
    let allowed = json!({"mode": "required", "tools": [name]});
    let choice = json!({"type": "allowed_tools", "allowed_tools": allowed});
    let whole = ask(&server, "/v1/chat/completions", &request(&choice)).await;
    let choice = &whole["choices"][0];
    let call = check_message(&choice["message"], &choice["finish_reason"], "allowed");
    assert_eq!(call["name"], "get_time");
    let unknown = json!({"type": "allowed_tools", "allowed_tools":
        {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_rich"}}]}});
    let (status, text) = post(&server, "/v1/chat/completions", &request(&unknown)).await;
    assert_eq!(status, 400);
    assert!(text.contains("get_rich"), "{text}");
}

#[tokio::test]
async fn responses() {
    let server = server(None);
    let tool =
        json!({"type": "function", "name": "get_weather", "parameters": schema(), "strict": true});
    let body = json!({"model": "tiny", "input": "u", "instructions": "i", "tools": [tool], "tool_choice": "required",
        "parallel_tool_calls": false, "seed": 5, "max_output_tokens": 300});
    let whole = ask(&server, "/v1/responses", &body).await;
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("completed")));
    assert_eq!((&whole["store"], &whole["tool_choice"]), (&json!(false), &json!("required")));
    let call = &whole["output"][0];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("get_weather")));
    check_arguments(
        &serde_json::from_str(call["arguments"].as_str().expect("a text")).expect("JSON"),
    );

    let events = events(&server, "/v1/responses", body.clone()).await;
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i, "{event}");
    }
    let last = &events[events.len() - 1];
    assert_eq!(last["type"], "response.completed");
    assert_eq!(last["response"]["output"][0]["arguments"], call["arguments"]);

    // The next turn, with a form that the answer has to have.
    let mut next = body;
    next["tools"] = json!([]);
    next["tool_choice"] = "auto".into();
    next["text"] = json!({"format": {"type": "json_schema", "name": "n", "schema": schema()}});
    next["input"] = json!([{"role": "user", "content": "u"}, call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}]);
    let next = ask(&server, "/v1/responses", &next).await;
    let text = next["output"][0]["content"][0]["text"].as_str().expect("a text");
    check_arguments(&serde_json::from_str(text).expect("JSON"));
    assert!(next["usage"]["input_tokens"].as_u64() > Some(0), "{next}");
}

#[tokio::test]
async fn with_tools_and_a_schema_an_answer_is_one_or_the_other() {
    let server = server(None);
    let answer =
        json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]});
    let mut body = request(&json!("auto"));
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "n", "schema": answer}});
    let mut found = std::collections::HashSet::new();
    for seed in 0..12 {
        body["seed"] = seed.into();
        let whole = ask(&server, "/v1/chat/completions", &body).await;
        let choice = &whole["choices"][0];
        if choice["finish_reason"] == "tool_calls" {
            check_message(&choice["message"], &choice["finish_reason"], "a call");
        } else {
            let text = choice["message"]["content"].as_str().expect("a text");
            assert!(serde_json::from_str::<Value>(text).expect("JSON")["a"].is_boolean(), "{text}");
        }
        found.insert(choice["finish_reason"].to_string());
    }
    assert_eq!(found.len(), 2, "{found:?}");
}

#[tokio::test]
async fn what_cannot_be_done_is_refused() {
    let server = server(None);
    let check = async |key: &str, value: Value, expected: &str| {
        let mut body = request(&json!("required"));
        body[key] = value;
        let (status, text) = post(&server, "/v1/chat/completions", &body).await;
        assert_eq!(status, 400, "{text}");
        assert!(text.contains(expected), "{text}");
    };
    check("response_format", json!({"type": "json_object"}), "response_format: an answer cannot")
        .await;
    check("grammar", json!("root ::= \"a\""), "an answer cannot have this form together with")
        .await;
    let tool = |parameters: Value| json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
    check("tools", tool(json!({"type": "nonsense"})), "tools").await;
    check("tools", tool(json!({"multipleOf": -1})), "tools[0].function.parameters: multipleOf")
        .await;
    let (status, text) =
        post(&server, "/v1/responses", &json!({"input": "u", "previous_response_id": "resp_1"}))
            .await;
    assert!(status == 400 && text.contains("previous_response_id"), "{text}");
}
