//! The routes over a tiny model, whose greedy continuation llama.cpp has computed.
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use hurtle_engine::{Arithmetic, Engine, EngineOptions, KvType, ServiceOptions};
use hurtle_server::{Server, ServerOptions};
use hurtle_text::ChatTemplate;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tower::ServiceExt as _;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs").join(name)
}

fn server(api_keys: &[&str]) -> Server {
    server_with(api_keys, None)
}

/// A server whose model has this chat template.
fn server_with(api_keys: &[&str], template: Option<&str>) -> Server {
    let options = EngineOptions {
        threads: Some(1),
        arithmetic: Arithmetic::Exact,
        kv_type_k: KvType::F32,
        kv_type_v: KvType::F32,
        ..EngineOptions::default()
    };
    let engine = Engine::load(&golden("llama.gguf"), &options).expect("loaded");
    let template = match template {
        Some(template) => ChatTemplate::new(template, "", ""),
        None => ChatTemplate::fallback_for(engine.gguf().metadata(), engine.tokenizer())
            .map(|(template, _)| template),
    };
    let template = template.expect("a template");
    let options = ServerOptions {
        model: "tiny".into(),
        api_keys: api_keys.iter().map(|key| (*key).to_owned()).collect(),
        max_body: 1 << 20,
        service: ServiceOptions { queue: 16, ..ServiceOptions::default() },
        ..ServerOptions::default()
    };
    Server::start(engine, template, options).expect("started")
}

/// The status and the body's text.
async fn send(server: &Server, request: Request<Body>) -> (StatusCode, String) {
    let reply = server.router().oneshot(request).await.expect("a reply");
    let status = reply.status();
    let body = to_bytes(reply.into_body(), usize::MAX).await.expect("a body");
    (status, String::from_utf8(body.into()).expect("UTF-8"))
}

async fn post(server: &Server, path: &str, body: impl ToString) -> (StatusCode, String) {
    send(server, Request::post(path).body(Body::from(body.to_string())).expect("a request")).await
}

/// The reply to a request that must succeed.
async fn ask(server: &Server, path: &str, body: Value) -> Value {
    let (status, text) = post(server, path, body).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

/// The data of each event of a stream that must end well.
async fn events(server: &Server, path: &str, body: Value) -> Vec<Value> {
    let (status, text) = post(server, path, body).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let text = text.strip_suffix("data: [DONE]\n\n").expect("the closing event");
    let event = |event: &str| serde_json::from_str(event.strip_prefix("data: ").expect("data"));
    text.split_terminator("\n\n").map(|text| event(text).expect("JSON")).collect()
}

fn greedy() -> (Value, Value) {
    let text = std::fs::read_to_string(golden("llama.json")).expect("the golden file");
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    (golden["greedy"]["prompt"].clone(), golden["greedy"]["ids"].clone())
}

#[tokio::test]
async fn a_completion_is_the_one_that_llama_cpp_gives() {
    let server = server(&[]);
    let (prompt, ids) = greedy();
    let expected = ask(&server, "/detokenize", json!({"tokens": ids})).await["content"].clone();
    let body = json!({"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 16, "ignore_eos": true});
    let whole = ask(&server, "/v1/completions", body.clone()).await;
    assert_eq!(whole["choices"][0]["text"], expected);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["prompt_tokens"], 7);
    assert_eq!(whole["usage"]["completion_tokens"], 16);

    let mut streamed = body;
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let chunks = events(&server, "/v1/completions", streamed).await;
    let text: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(expected, text);
    let last = chunks.last().expect("chunks");
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(23)));
}

#[tokio::test]
async fn concurrent_answers_equal_those_given_alone() {
    let server = server(&[]);
    let body = |seed: u64| json!({"prompt": "hello", "max_tokens": 12, "seed": seed, "temperature": 1.5, "ignore_eos": true});
    let mut alone = Vec::new();
    for seed in 0..4 {
        alone.push(ask(&server, "/v1/completions", body(seed)).await["choices"][0]["text"].clone());
    }
    let tasks: Vec<_> = (0..4)
        .map(|seed| {
            let server = server.clone();
            tokio::spawn(async move { ask(&server, "/v1/completions", body(seed)).await })
        })
        .collect();
    for (task, alone) in tasks.into_iter().zip(&alone) {
        assert_eq!(&task.await.expect("a reply")["choices"][0]["text"], alone);
    }
    // Several answers have seeds one after another.
    let mut several = body(0);
    several["n"] = 4.into();
    let several = ask(&server, "/v1/completions", several).await;
    let texts: Vec<_> =
        several["choices"].as_array().expect("choices").iter().map(|c| c["text"].clone()).collect();
    assert_eq!(texts, alone);
    assert_eq!(several["usage"]["completion_tokens"], 48);
}

#[tokio::test]
async fn a_chat_streamed_is_the_chat_in_one_piece() {
    let server = server(&[]);
    let mut body =
        json!({"messages": [{"role": "user", "content": "hi"}], "seed": 1, "max_tokens": 8});
    let whole = ask(&server, "/v1/chat/completions", body.clone()).await;
    assert_eq!(whole["object"], "chat.completion");
    body["stream"] = true.into();
    let chunks = events(&server, "/v1/chat/completions", body).await;
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let delta = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    let text: String = chunks.iter().filter_map(delta).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    let last = &chunks[chunks.len() - 1]["choices"][0]["finish_reason"];
    assert_eq!(last, &whole["choices"][0]["finish_reason"]);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused() {
    let server = server(&[]);
    let check = async |path: &str, body: String, status: u16, expected: &str| {
        let (found, text) = post(&server, path, body).await;
        assert_eq!(found.as_u16(), status, "{text}");
        assert!(text.contains(expected), "{text}");
    };
    let complete = "/v1/completions";
    check(complete, json!({"prompt": "a", "model": "other"}).to_string(), 404, "model_not_found")
        .await;
    check(complete, json!({"prompt": [99_999]}).to_string(), 400, "99999").await;
    check(complete, json!({"prompt": ""}).to_string(), 400, "the prompt is empty").await;
    check(complete, json!({"prompt": vec![1; 5000]}).to_string(), 400, "5000 tokens").await;
    check(complete, json!({"prompt": "a", "logprobs": 1000}).to_string(), 400, "logprobs").await;
    check(complete, "[".repeat(100_000), 400, "recursion limit").await;
    check(complete, " ".repeat(2 << 20), 413, "").await;
    check("/nowhere", String::new(), 404, "nothing at POST /nowhere").await;
}

#[tokio::test]
async fn a_key_is_asked_for() {
    let server = server(&["one", "two"]);
    let check = async |header: Option<(&str, &str)>, path: &str, expected: u16| {
        let mut request = Request::get(path);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request.body(Body::empty()).expect("a request");
        assert_eq!(send(&server, request).await.0.as_u16(), expected, "{path} {header:?}");
    };
    check(None, "/v1/models", 401).await;
    check(Some(("authorization", "Bearer three")), "/v1/models", 401).await;
    check(Some(("authorization", "Bearer two")), "/v1/models", 200).await;
    check(Some(("x-api-key", "one")), "/v1/models", 200).await;
    check(None, "/health", 200).await;
}

#[tokio::test]
async fn after_a_shutdown_requests_are_refused() {
    let server = server(&[]);
    server.shut_down(Duration::ZERO);
    let messages = json!([{"role": "user", "content": "hi"}]);
    let body = json!({"model": "tiny", "messages": messages, "max_tokens": 1}).to_string();
    let ollama = json!({"model": "tiny", "messages": messages}).to_string();
    for (path, body) in
        [("/v1/chat/completions", &body), ("/v1/messages", &body), ("/api/chat", &ollama)]
    {
        let request = Request::post(path).body(Body::from(body.clone())).expect("a request");
        let reply = server.router().oneshot(request).await.expect("a reply");
        assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(reply.headers()["retry-after"], "1", "{path}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place() {
    let server = server(&[]);
    let endless = json!({"prompt": "a", "stream": true, "ignore_eos": true}).to_string();
    let request = Request::post("/v1/completions").body(Body::from(endless)).expect("a request");
    let reply = server.router().oneshot(request).await.expect("a reply");
    let mut body = reply.into_body().into_data_stream();
    body.next().await.expect("a piece").expect("bytes");
    drop(body);
    let idle = "llamacpp:requests_processing 0\n";
    for _ in 0..600 {
        let request = Request::get("/metrics").body(Body::empty()).expect("a request");
        if send(&server, request).await.1.contains(idle) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the answer goes on");
}

#[tokio::test]
async fn every_api_gives_the_same_answer() {
    let server = server(&[]);
    let messages = json!([{"role": "user", "content": "hi"}]);
    let openai = json!({"messages": messages, "temperature": 0, "max_tokens": 8});
    let openai = ask(&server, "/v1/chat/completions", openai).await;
    let expected = openai["choices"][0]["message"]["content"].as_str().expect("a text");

    let options = json!({"temperature": 0, "num_predict": 8});
    let mut body =
        json!({"model": "tiny", "messages": messages, "options": options, "stream": false});
    let whole = ask(&server, "/api/chat", body.clone()).await;
    assert_eq!(whole["message"]["content"], expected);
    assert_eq!(whole["done"], true);
    assert_eq!(whole["eval_count"], openai["usage"]["completion_tokens"]);
    body["stream"] = true.into();
    let (_, lines) = post(&server, "/api/chat", body).await;
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let text = |line: &Value| line["message"]["content"].as_str().expect("a text").to_owned();
    assert_eq!(lines.iter().map(text).collect::<String>(), expected);
    assert_eq!(lines[lines.len() - 1]["done"], true);
    let body = json!({"model": "tiny", "prompt": "hi", "options": options, "stream": false});
    assert_eq!(ask(&server, "/api/generate", body).await["response"], expected);

    let mut body =
        json!({"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 8});
    let whole = ask(&server, "/v1/messages", body.clone()).await;
    assert_eq!(whole["content"][0]["text"], expected);
    let counted = ask(&server, "/v1/messages/count_tokens", body.clone()).await;
    assert_eq!(counted["input_tokens"], openai["usage"]["prompt_tokens"]);
    body["stream"] = true.into();
    let (_, stream) = post(&server, "/v1/messages", body).await;
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = data.map(|d| serde_json::from_str(d).expect("JSON")).collect();
    let text = |event: &Value| event["delta"]["text"].as_str().map(str::to_owned);
    assert_eq!(events.iter().filter_map(text).collect::<String>(), expected);
    assert_eq!(events[events.len() - 1]["type"], "message_stop");
}

#[tokio::test]
async fn a_context_that_a_client_sets_is_kept_to() {
    let server = server(&[]);
    let body = |n_ctx: usize| {
        json!({"model": "tiny:latest", "prompt": "abc", "raw": true, "stream": false,
            "options": {"num_ctx": n_ctx, "temperature": 0}})
    };
    let (status, text) = post(&server, "/api/generate", body(2)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
    let whole = ask(&server, "/api/generate", body(12)).await;
    let used = whole["prompt_eval_count"].as_u64().zip(whole["eval_count"].as_u64());
    assert!(used.is_some_and(|(prompt, answer)| prompt + answer <= 12), "{whole}");
}

/// A place where a form can be asked for: path, a body without it, and where the answer is.
const FORMS: [(&str, &str, &str); 3] = [
    (
        "/v1/chat/completions",
        r#"{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 900}"#,
        "/choices/0/message/content",
    ),
    ("/v1/completions", r#"{"prompt": "hi", "max_tokens": 900}"#, "/choices/0/text"),
    (
        "/api/chat",
        r#"{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": false, "options": {"num_predict": 900}}"#,
        "/message/content",
    ),
];

const ANTHROPIC: (&str, &str, &str) = (
    "/v1/messages",
    r#"{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 900}"#,
    "/content/0/text",
);

#[tokio::test]
async fn answers_have_the_form_that_is_asked_for() {
    let server = server(&[]);
    let answer = async |(path, body, at): (&str, &str, &str), form: Value| {
        let mut body: Value = serde_json::from_str(body).expect("JSON");
        for (key, value) in form.as_object().expect("parameters") {
            body[key] = value.clone();
        }
        let reply = ask(&server, path, body).await;
        reply.pointer(at).and_then(Value::as_str).expect("a text").to_owned()
    };
    let schema = json!({"type": "object", "required": ["n", "ok"],
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}}});
    let check = |text: String| {
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert!(value["n"].as_u64().is_some_and(|n| n < 100) && value["ok"].is_boolean(), "{text}");
        assert_eq!(value.as_object().map(|object| object.len()), Some(2), "{text}");
    };
    let [chat, completion, ollama] = FORMS;
    let named = json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}});
    check(answer(chat, json!({"response_format": named})).await);
    check(answer(chat, json!({"json_schema": schema})).await);
    check(answer(completion, json!({"grammar": {"type": "json_schema", "value": schema}})).await);
    check(answer(ollama, json!({"format": schema})).await);
    let format = json!({"format": {"type": "json_schema", "schema": schema}});
    check(answer(ANTHROPIC, json!({"output_config": format})).await);

    for form in [
        json!({"grammar": "root ::= \"yes\" | \"no\""}),
        json!({"grammar": "%llguidance {}\nstart: \"yes\" | \"no\""}),
        json!({"guided_regex": "yes|no"}),
        json!({"grammar": {"type": "regex", "value": "yes|no"}}),
        json!({"grammar": {"type": "lark", "value": "start: \"yes\" | \"no\""}}),
    ] {
        for place in [chat, completion] {
            let text = answer(place, form.clone()).await;
            assert!(text == "yes" || text == "no", "{text}");
        }
    }
    // What a random model writes in an object has no end, and numbers that fit nowhere; what there is of
    // it is JSON.
    for (place, form) in [
        (chat, json!({"response_format": {"type": "json_object"}})),
        (ollama, json!({"format": "json"})),
    ] {
        let text = answer(place, form).await;
        assert!(text.starts_with('{'), "{text}");
        let error = serde_json::from_str::<serde::de::IgnoredAny>(&text).err();
        assert!(error.is_none_or(|error| error.is_eof()), "{text}");
    }
}

#[tokio::test]
async fn forms_are_the_same_in_pieces_and_beside_others() {
    let server = server(&[]);
    let body = |seed: u64| {
        json!({"prompt": "hi", "seed": seed, "temperature": 1.5, "max_tokens": 60,
            "json_schema": {"type": "array", "items": {"type": "integer"}, "maxItems": 5}})
    };
    let mut alone = Vec::new();
    for seed in 0..4 {
        alone.push(ask(&server, "/v1/completions", body(seed)).await["choices"][0]["text"].clone());
    }
    let mut several = body(0);
    several["n"] = 4.into();
    let several = ask(&server, "/v1/completions", several).await;
    let texts = several["choices"].as_array().expect("choices").iter().map(|c| c["text"].clone());
    assert_eq!(texts.collect::<Vec<_>>(), alone);
    let mut streamed = body(0);
    streamed["stream"] = true.into();
    let chunks = events(&server, "/v1/completions", streamed).await;
    let text = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str());
    assert_eq!(alone[0], text.collect::<String>());
}

#[tokio::test]
async fn a_form_is_that_of_the_answer_and_not_of_the_reasoning() {
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "seed": 1,
        "guided_regex": "yes|no"});
    let answer = async |template: &str| {
        let server = server_with(&[], Some(template));
        let reply = ask(&server, "/v1/chat/completions", body.clone()).await;
        reply["choices"][0]["finish_reason"].as_str().expect("a reason").to_owned()
    };
    assert_eq!(answer("{{ messages[0].content }}").await, "stop");
    // This model never ends to think.
    assert_eq!(answer("{{ messages[0].content }}<think>\n").await, "length");
}

#[tokio::test]
async fn a_wrong_form_is_refused_by_the_name_of_the_parameter() {
    let server = server(&[]);
    let check = async |path: &str, key: &str, form: Value, param: &str, expected: &str| {
        let mut body = json!({"model": "tiny", "prompt": "a"});
        body[key] = form;
        let (status, text) = post(&server, path, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
        let error: Value = serde_json::from_str(&text).expect("JSON");
        if path == "/v1/completions" {
            assert_eq!(error["error"]["param"], param, "{text}");
        }
        assert!(text.contains(param) && text.contains(expected), "{text}");
    };
    let openai = "/v1/completions";
    check(
        openai,
        "grammar",
        json!("root ::= x"),
        "grammar",
        "line 1, column 10: no rule is called",
    )
    .await;
    check(
        openai,
        "grammar",
        json!({"type": "lark", "value": "start: x"}),
        "grammar",
        "unknown name",
    )
    .await;
    check(openai, "grammar", json!({"type": "ebnf", "value": "x"}), "grammar", "expected a type")
        .await;
    check(openai, "grammar", json!(5), "grammar", "expected a text, or an object").await;
    check(openai, "guided_regex", json!("[a"), "guided_regex", "unclosed character class").await;
    check(openai, "json_schema", json!({"type": "strin"}), "json_schema", "Invalid type").await;
    let inexpressible = json!({"properties": {"a": {"not": {"pattern": "^a"}}}});
    check(
        openai,
        "json_schema",
        inexpressible,
        "json_schema",
        "not at #/properties/a: a schema with pattern",
    )
    .await;
    let names: serde_json::Map<_, _> =
        (0..4000).map(|i| (format!("name {i}"), json!({}))).collect();
    check(
        openai,
        "json_schema",
        json!({"properties": names}),
        "json_schema",
        "properties at #: expected at most 500",
    )
    .await;
    let format = json!({"type": "json_schema", "json_schema": {"schema": {"pattern": "(", "type": "string"}}});
    check(openai, "response_format", format, "response_format", "unclosed group").await;
    check("/api/generate", "format", json!({"$ref": "http://localhost/x"}), "format", "").await;
}

#[tokio::test]
async fn log_probabilities_in_every_shape() {
    let server = server(&[]);
    let n_tokens =
        |reply: &Value| reply["usage"]["completion_tokens"].as_u64().expect("a number") as usize;
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "seed": 3,
        "temperature": 1.5, "ignore_eos": true, "logprobs": true, "top_logprobs": 3});
    let whole = ask(&server, "/v1/chat/completions", body.clone()).await;
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().expect("tokens").clone();
    assert_eq!(tokens.len(), n_tokens(&whole));
    let bytes = |tokens: &[Value]| -> Vec<u8> {
        let bytes = tokens.iter().flat_map(|token| token["bytes"].as_array().expect("bytes"));
        bytes.map(|byte| byte.as_u64().expect("a byte") as u8).collect()
    };
    let text = whole["choices"][0]["message"]["content"].as_str().expect("a text");
    assert_eq!(String::from_utf8_lossy(&bytes(&tokens)), text);
    for token in &tokens {
        let top = token["top_logprobs"].as_array().expect("the best");
        let logprob = |token: &Value| token["logprob"].as_f64().expect("a number");
        assert_eq!(top.len(), 3);
        assert!(top.windows(2).all(|pair| logprob(&pair[0]) >= logprob(&pair[1])));
        assert!(logprob(token) <= logprob(&top[0]) && logprob(&top[0]) <= 0.0);
    }
    body["stream"] = true.into();
    let chunks = events(&server, "/v1/chat/completions", body.clone()).await;
    let pieces =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(pieces.flatten().cloned().collect::<Vec<_>>(), tokens);
    body["stream"] = false.into();
    body["logprobs"] = false.into();
    body["top_logprobs"] = 0.into();
    let without = ask(&server, "/v1/chat/completions", body).await;
    assert_eq!(without["choices"][0]["logprobs"], Value::Null);
    assert_eq!(without["choices"][0]["message"]["content"], text);

    // The older shape.
    let mut body = json!({"prompt": "hi", "max_tokens": 12, "seed": 3, "temperature": 1.5,
        "ignore_eos": true, "logprobs": 2});
    let whole = ask(&server, "/v1/completions", body.clone()).await;
    let logprobs = whole["choices"][0]["logprobs"].clone();
    let list = |logprobs: &Value, key: &str| logprobs[key].as_array().expect("a list").clone();
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(&logprobs, key).len(), n_tokens(&whole), "{key}");
    }
    let tokens = list(&logprobs, "tokens");
    for ((token, logprob), top) in
        tokens.iter().zip(list(&logprobs, "token_logprobs")).zip(list(&logprobs, "top_logprobs"))
    {
        let token = token.as_str().expect("a name");
        assert_eq!(top[token], logprob);
        assert!((2..=3).contains(&top.as_object().expect("an object").len()));
    }
    assert_eq!(list(&logprobs, "text_offset")[0], 0);
    body["stream"] = true.into();
    let chunks = events(&server, "/v1/completions", body).await;
    for key in ["tokens", "text_offset"] {
        let pieces =
            chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"][key].as_array());
        assert_eq!(pieces.flatten().cloned().collect::<Vec<_>>(), list(&logprobs, key), "{key}");
    }

    // Ollama's.
    let mut body = json!({"model": "tiny", "prompt": "hi", "logprobs": true, "top_logprobs": 2,
        "stream": false, "options": {"num_predict": 8, "seed": 1}});
    let whole = ask(&server, "/api/generate", body.clone()).await;
    let tokens = whole["logprobs"].as_array().expect("tokens").clone();
    assert_eq!(tokens.len() as u64, whole["eval_count"].as_u64().expect("a number"));
    assert_eq!(tokens[0]["top_logprobs"].as_array().map(Vec::len), Some(2));
    body["stream"] = true.into();
    let (_, lines) = post(&server, "/api/generate", body).await;
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let pieces = lines.iter().filter_map(|line| line["logprobs"].as_array());
    assert_eq!(pieces.flatten().cloned().collect::<Vec<_>>(), tokens);
}
