//! What Ollama's clients send beside chats, and what they are told.
use crate::common::{ask, get, method, options, post, refused, server, server_of};
use axum::http::Method;
use hurtle_server::ServerOptions;
use serde_json::{Value, json};

/// The error in the reply to a request that fails.
async fn error(server: &hurtle_server::Server, with: Method, path: &str) -> (u16, Value) {
    let (status, text) = method(server, with, path, "{}").await;
    let body: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"));
    (status.as_u16(), body)
}

#[tokio::test]
async fn errors_have_the_shape_of_the_api_whose_path_it_is() {
    let open = server("llama");
    let keys = vec!["secret".to_owned()];
    let keyed = ServerOptions { api_keys: keys, ..options() };
    let keyed = server_of(&crate::common::golden("llama.gguf"), keyed);
    for (server, path, expected) in [
        (&open, "/api/nothing", 404),
        (&open, "/api/chat", 405),
        (&keyed, "/api/chat", 401),
        (&open, "/v1/messages/batches", 404),
        (&keyed, "/v1/messages", 401),
        (&open, "/v1/nothing", 404),
        (&open, "/apiary", 404),
        (&keyed, "/v1/chat/completions", 401),
    ] {
        let with = if expected == 405 { Method::PUT } else { Method::POST };
        let (status, body) = error(server, with, path).await;
        assert_eq!(status, expected, "{path}: {body}");
        match path {
            _ if path.starts_with("/api/") => assert!(body["error"].is_string(), "{path}: {body}"),
            _ if path.starts_with("/v1/messages") => assert_eq!(body["type"], "error", "{body}"),
            _ => assert!(body["error"]["message"].is_string(), "{path}: {body}"),
        }
    }
}

#[tokio::test]
async fn what_cannot_be_done_is_said() {
    let server = server("llama");
    for (path, why) in [
        ("/api/copy", "not copied"),
        ("/api/create", "not made"),
        ("/api/push", "not published"),
        ("/api/blobs/sha256:00", "not made"),
    ] {
        let (status, body) = error(&server, Method::POST, path).await;
        assert_eq!(status, 501, "{path}");
        assert!(body["error"].as_str().is_some_and(|text| text.contains(why)), "{path}: {body}");
    }
}

#[tokio::test]
async fn options_of_the_documentation_are_taken() {
    let server = server("llama");
    let options = json!({"num_keep": 5, "seed": 42, "num_predict": 4, "top_k": 20, "top_p": 0.9, "min_p": 0.0,
        "typical_p": 0.7, "repeat_last_n": 33, "temperature": 0.8, "repeat_penalty": 1.2, "presence_penalty": 1.5,
        "frequency_penalty": 1.0, "penalize_newline": true, "stop": ["\n", "user:"], "numa": false, "num_ctx": 64,
        "num_batch": 2, "num_gpu": 1, "main_gpu": 0, "use_mmap": true, "num_thread": 8, "tfs_z": 1.0,
        "low_vram": false, "f16_kv": true, "vocab_only": false, "use_mlock": false, "logits_all": false,
        "embedding_only": false, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1});
    let body = json!({"model": "tiny", "prompt": "a", "stream": false, "truncate": false, "shift": false,
        "options": options});
    ask(&server, "/api/generate", body.clone()).await;
    for (option, value) in [("tfs_z", json!(0.5)), ("penalize_newline", json!(false))] {
        let mut body = body.clone();
        body["options"][option] = value;
        refused(&server, "/api/generate", body, 400, &[&format!("options.{option}")]).await;
    }
    for field in ["truncate", "shift"] {
        let mut body = body.clone();
        body[field] = true.into();
        refused(&server, "/api/generate", body, 400, &[field, "not supported"]).await;
    }
}

#[tokio::test]
async fn only_models_that_think_are_told_to() {
    let server = server("llama");
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "a"}],
        "options": {"num_predict": 1}, "stream": false});
    for think in [json!(true), json!("high"), json!("max")] {
        body["think"] = think;
        refused(&server, "/api/chat", body.clone(), 400, &["does not support thinking"]).await;
    }
    body["think"] = false.into();
    ask(&server, "/api/chat", body.clone()).await;
    body["think"] = "more".into();
    refused(&server, "/api/chat", body, 400, &["think: expected"]).await;
}

#[tokio::test]
async fn times_of_an_answer() {
    let server = server("llama");
    let body =
        json!({"model": "tiny", "prompt": "a", "options": {"num_predict": 5, "ignore_eos": true}});
    let (_, text) = post(&server, "/api/generate", body).await;
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let last = lines.last().expect("lines");
    let number = |name: &str| last[name].as_u64().unwrap_or_else(|| panic!("{name}: {last}"));
    let parts = ["load_duration", "prompt_eval_duration", "eval_duration"].map(number);
    assert!(parts.iter().all(|&time| time > 0), "{last}");
    assert!(number("total_duration") >= parts.iter().sum(), "{last}");
    let times: Vec<_> =
        lines.iter().map(|line| line["created_at"].as_str().expect("a time")).collect();
    assert!(times.is_sorted() && times.first() < times.last(), "{times:?}");
    assert_eq!(get(&server, "/api/version").await["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn a_context_is_told_and_goes_on() {
    for name in ["llama", "gemma2"] {
        context_of(name).await;
    }
}

async fn context_of(name: &str) {
    let server = server(name);
    let begins = json!({"content": "", "add_special": true});
    let begins = ask(&server, "/tokenize", begins).await["tokens"].as_array().map_or(0, Vec::len);
    let options = json!({"num_predict": 4, "temperature": 0, "ignore_eos": true});
    let body = json!({"model": "tiny", "prompt": "a", "stream": false, "options": options});
    let first = ask(&server, "/api/generate", body.clone()).await;
    let context = first["context"].as_array().expect("a context");
    let n = |reply: &Value| reply["prompt_eval_count"].as_u64().expect("a number") as usize;
    assert_eq!(context.len(), n(&first) + 4, "{first}");

    let mut next = body.clone();
    (next["prompt"], next["context"]) = ("b".into(), first["context"].clone());
    let second = ask(&server, "/api/generate", next.clone()).await;
    let longer = second["context"].as_array().expect("a context");
    assert!(longer.starts_with(context), "{second}");
    // What it has alone follows, but for the beginning of a text: that is there once.
    assert_eq!(n(&second), context.len() + n(&first) - begins, "{second}");

    next["stream"] = true.into();
    let (_, text) = post(&server, "/api/generate", &next).await;
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told: Vec<_> = lines.iter().filter_map(|line| line.get("context")).collect();
    assert_eq!(told, [&second["context"]]);

    next["context"] = json!([4_000_000_000_u32]);
    refused(&server, "/api/generate", next, 400, &["context: expected token ids below"]).await;
    let mut raw = body;
    raw["raw"] = true.into();
    assert_eq!(ask(&server, "/api/generate", raw).await.get("context"), None);
}
