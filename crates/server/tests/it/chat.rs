//! What llama.cpp's clients send with conversations, and what they are told beside the answer.
use crate::common::{ask, post, refused, server};
use serde_json::{Value, json};

const CHATS: &str = "/v1/chat/completions";

/// A question with this field.
fn with(name: &str, value: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "temperature": 0,
        "ignore_eos": true});
    body[name] = value;
    body
}

#[tokio::test]
async fn a_verbose_reply_tells_the_prompt_and_the_answer_as_it_was_written() {
    let server = server("llama");
    let mut body = with("verbose", json!(true));
    let prompt = ask(&server, "/apply-template", body.clone()).await["prompt"].clone();
    body["return_tokens"] = true.into();
    let whole = ask(&server, CHATS, body.clone()).await;
    let verbose = &whole["__verbose"];
    assert!(verbose["prompt"].as_str().zip(prompt.as_str()).is_some_and(|(a, b)| a.ends_with(b)));
    assert_eq!(verbose["content"], whole["choices"][0]["message"]["content"]);
    assert_eq!(verbose["tokens"].as_array().map(Vec::len), Some(4), "{verbose}");
    assert_eq!(verbose["generation_settings"]["n_predict"], 4);
    assert_eq!(verbose["timings"], whole["timings"]);

    body["stream"] = true.into();
    let (_, text) = post(&server, CHATS, &body).await;
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let chunks: Vec<Value> = data.filter_map(|data| serde_json::from_str(data).ok()).collect();
    let told = chunks.iter().filter_map(|chunk| chunk.get("__verbose"));
    let told: Vec<_> = told.collect();
    assert_eq!(told.len(), 1, "{text}");
    assert_eq!(
        (&told[0]["content"], &told[0]["tokens"]),
        (&verbose["content"], &verbose["tokens"])
    );

    let silent = ask(&server, CHATS, with("verbose", json!(false))).await;
    assert_eq!(silent.get("__verbose"), None);
}

#[tokio::test]
async fn a_prompt_may_open_no_answer() {
    let server = server("llama");
    let prompt = async |body: Value| {
        let reply = ask(&server, "/apply-template", body).await;
        reply["prompt"].as_str().expect("a text").to_owned()
    };
    let opened = prompt(with("add_generation_prompt", json!(true))).await;
    let unopened = prompt(with("add_generation_prompt", json!(false))).await;
    assert!(opened.len() > unopened.len() && opened.starts_with(&unopened), "{opened} {unopened}");
    let body = with("add_generation_prompt", json!(false));
    let answer = ask(&server, CHATS, body.clone()).await;
    let count = ask(&server, "/v1/chat/completions/input_tokens", body).await;
    assert_eq!(answer["usage"]["prompt_tokens"], count["input_tokens"]);
}

#[tokio::test]
async fn only_the_last_message_is_gone_on_with() {
    let server = server("llama");
    let said = |text: &str| json!({"role": "assistant", "content": text});
    let messages = json!([{"role": "user", "content": "a"}, said("b"), said("c")]);
    let mut body = with("messages", messages);
    refused(&server, CHATS, body.clone(), 400, &["messages", "continue_final_message"]).await;
    body["continue_final_message"] = false.into();
    ask(&server, CHATS, body).await;
}

#[tokio::test]
async fn log_probabilities_have_the_numbers_of_tokens() {
    let server = server("llama");
    let mut body = with("logprobs", json!(true));
    body["top_logprobs"] = 2.into();
    let openai = ask(&server, CHATS, body).await;
    let tokens = &openai["choices"][0]["logprobs"]["content"];
    assert_eq!(tokens.as_array().map(Vec::len), Some(4));
    // The most probable one is chosen.
    assert_eq!(tokens[0]["id"], tokens[0]["top_logprobs"][0]["id"]);
    let text = ask(&server, "/detokenize", json!({"tokens": [tokens[0]["id"]]})).await;
    assert_eq!(text["content"], tokens[0]["token"]);
    let llama_cpp = ask(&server, CHATS, with("n_probs", json!(2))).await;
    assert_eq!(&llama_cpp["choices"][0]["logprobs"]["content"], tokens);

    let mut drawn = with("n_probs", json!(2));
    drawn["post_sampling_probs"] = true.into();
    let drawn = ask(&server, CHATS, drawn).await;
    let token = &drawn["choices"][0]["logprobs"]["content"][0];
    assert_eq!((&token["prob"], &token["top_probs"][0]["id"]), (&json!(1.0), &token["id"]));
}

#[tokio::test]
async fn answers_end_as_vllms_clients_ask() {
    let server = server("llama");
    let path = "/v1/completions";
    let ask_for = async |name: &str, value: Value| {
        let mut body =
            json!({"prompt": "a", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
        body["logprobs"] = 0.into();
        body[name] = value;
        let whole = ask(&server, path, body).await;
        let choice = &whole["choices"][0];
        let n = whole["usage"]["completion_tokens"].as_u64().expect("a number");
        (choice["text"].as_str().expect("a text").to_owned(), n, choice["finish_reason"].clone())
    };
    let (all, n, reason) = ask_for("n", json!(1)).await;
    assert_eq!((n, &reason), (8, &json!("length")));

    // The third token ends the answer, unless more have to come.
    let mut body = json!({"prompt": "a", "n_predict": 8, "temperature": 0, "ignore_eos": true});
    body["return_tokens"] = true.into();
    let ids = ask(&server, "/completion", body).await["tokens"].clone();
    let ids: Vec<u64> = serde_json::from_value(ids).expect("ids");
    let end = (1..8).find(|&at| !ids[..at].contains(&ids[at])).expect("a new token");
    let (text, n, reason) = ask_for("stop_token_ids", json!([ids[end]])).await;
    assert_eq!((n, &reason), (end as u64, &json!("stop")));
    assert!(all.starts_with(&text), "{text}");
    let body = json!({"prompt": "a", "max_tokens": 8, "temperature": 0, "ignore_eos": true,
        "stop_token_ids": [ids[end]], "min_tokens": 8});
    let whole = ask(&server, path, body).await;
    assert_eq!(whole["usage"]["completion_tokens"], 8, "{whole}");

    let stop: String = all.chars().filter(|c| c.is_ascii_graphic()).take(1).collect();
    let before = all.split(&stop).next().expect("a part");
    let mut body =
        json!({"prompt": "a", "max_tokens": 8, "temperature": 0, "ignore_eos": true, "stop": stop});
    for (keep, expected) in [(false, before.to_owned()), (true, format!("{before}{stop}"))] {
        body["include_stop_str_in_output"] = keep.into();
        let whole = ask(&server, path, body.clone()).await;
        assert_eq!(whole["choices"][0]["text"], expected, "{whole}");
    }
    for (name, value) in [
        ("stop_token_ids", json!([4_000_000_000_u32])),
        ("min_tokens", json!(9)),
        ("guided_choice", json!([])),
    ] {
        let mut body = json!({"prompt": "a", "max_tokens": 8});
        body[name] = value;
        refused(&server, path, body, 400, &[name]).await;
    }
    let forms = [
        ("guided_choice", json!(["x.y", "z"])),
        ("structured_outputs", json!({"choice": ["x.y", "z"]})),
    ];
    for (name, value) in forms {
        let mut body = with(name, value);
        body["max_tokens"] = 20.into();
        let whole = ask(&server, CHATS, body).await;
        let content = whole["choices"][0]["message"]["content"].as_str().expect("a text");
        assert!(["x.y", "z"].contains(&content), "{whole}");
    }
}
