//! Models that open their reasoning themselves, before answers that must have a form.
use crate::common::{ask, copy, load, options, post};
use hurtle_gguf::{Array, Value as Meta};
use hurtle_server::Server;
use hurtle_text::ChatTemplate;
use serde_json::{Value, json};

/// With it the model neither stops thinking at once nor goes on for too long.
const SEED: u64 = 1;

/// Tokens that become the markers of reasoning.
const THINK: (usize, usize) = (269, 270);

const TEMPLATE: &str = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}{{ tools|tojson if tools }}\
    {% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}";

/// A server of a random model with these markers, as tokens of type `kind`.
fn server(kind: i32) -> Server {
    let writer = copy("llama", |metadata| {
        let tokens = metadata.strings("tokenizer.ggml.tokens").expect("texts").expect("tokens");
        let text = |(id, text): (usize, &[u8])| match id {
            id if id == THINK.0 => b"<think>".to_vec(),
            id if id == THINK.1 => b"</think>".to_vec(),
            _ => text.to_vec(),
        };
        let tokens = tokens.iter().enumerate().map(text).collect();
        metadata.insert("tokenizer.ggml.tokens", Meta::Array(Array::String(tokens)));
        let Some(Meta::Array(Array::I32(types))) = metadata.get("tokenizer.ggml.token_type") else {
            panic!("the file has no types of tokens");
        };
        let mut types = types.clone();
        (types[THINK.0], types[THINK.1]) = (kind, kind);
        metadata.insert("tokenizer.ggml.token_type", Meta::Array(Array::I32(types)));
    });
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("thinks.gguf");
    writer.write(&path).expect("written");
    let template = ChatTemplate::new(TEMPLATE, "", "").expect("compiles");
    Server::start(load(&path).expect("loaded").0, template, options()).expect("started")
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]})
}

#[track_caller]
fn check_form(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert!(["Paris", "Rome"].map(Value::from).contains(&value["city"]), "{text}");
}

#[tokio::test]
async fn a_model_may_think_before_a_form_unless_it_is_told_not_to() {
    let user = json!([{"role": "user", "content": "u"}]);
    let tool = json!({"name": "f", "parameters": schema()});
    let tools = json!([{"type": "function", "function": tool}]);
    // Thoughts of nothing but markers and an `h`, which no answer has, and seldom short ones.
    let bias = json!({THINK.0.to_string(): 60, "104": 60, THINK.1.to_string(): 57});
    // 3: control tokens, 4: tokens of the user.
    for server in [server(3), server(4)] {
        for thinks in [true, false] {
            let mut body = json!({"messages": user, "logit_bias": bias, "max_tokens": 400, "seed": SEED,
                "chat_template_kwargs": {"enable_thinking": thinks}});
            let check = |reasoning: &Value| {
                let reasoning = reasoning.as_str().unwrap_or_default();
                assert_eq!(!reasoning.is_empty(), thinks, "{reasoning}");
            };
            let path = "/v1/chat/completions";
            let mut called = body.clone();
            (called["tools"], called["tool_choice"]) = (tools.clone(), "required".into());
            called["parallel_tool_calls"] = false.into();
            let whole = ask(&server, path, called.clone()).await;
            let message = &whole["choices"][0]["message"];
            check(&message["reasoning_content"]);
            let call = &message["tool_calls"][0]["function"];
            check_form(call["arguments"].as_str().unwrap_or_else(|| panic!("{whole}")));
            assert_eq!(message["content"], Value::Null, "{whole}");

            // The same in pieces.
            called["stream"] = true.into();
            let (_, text) = post(&server, path, called).await;
            let chunks = text.lines().filter_map(|line| line.strip_prefix("data: {"));
            let (mut reasoning, mut arguments) = (String::new(), String::new());
            for chunk in chunks {
                let chunk: Value = serde_json::from_str(&format!("{{{chunk}")).expect("JSON");
                let delta = &chunk["choices"][0]["delta"];
                reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
                let call = &delta["tool_calls"][0]["function"];
                arguments += call["arguments"].as_str().unwrap_or_default();
                assert_eq!(delta["content"].as_str().unwrap_or_default(), "", "{chunk}");
            }
            assert_eq!(reasoning, message["reasoning_content"].as_str().unwrap_or_default());
            assert_eq!(arguments, call["arguments"]);

            for (name, format) in [
                (
                    "response_format",
                    json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema()}}),
                ),
                ("json_schema", schema()),
                ("grammar", json!(r#"root ::= "{\"city\": \"" ("Paris" | "Rome") "\"}""#)),
                ("guided_regex", json!(r#"\{"city": "(Paris|Rome)"\}"#)),
            ] {
                let mut body = body.clone();
                body[name] = format;
                let whole = ask(&server, path, body).await;
                let message = &whole["choices"][0]["message"];
                check(&message["reasoning_content"]);
                check_form(message["content"].as_str().expect("a text"));
            }

            let effort = if thinks { "low" } else { "none" };
            let whole = ask(
                &server,
                "/v1/responses",
                json!({"input": "u", "seed": SEED, "logit_bias": bias,
                "max_output_tokens": 400, "reasoning": {"effort": effort},
                "text": {"format": {"type": "json_schema", "name": "n", "schema": schema()}}}),
            )
            .await;
            let output = whole["output"].as_array().expect("an array");
            assert_eq!(output.iter().any(|item| item["type"] == "reasoning"), thinks, "{whole}");
            let message = output.iter().find(|item| item["type"] == "message").expect("a message");
            check_form(message["content"][0]["text"].as_str().expect("a text"));

            let whole = ask(&server, "/api/chat", json!({"model": "tiny", "messages": user, "stream": false,
                "think": thinks, "format": schema(), "options": {"seed": SEED, "num_predict": 400, "logit_bias": bias}})).await;
            check(&whole["message"]["thinking"]);
            check_form(whole["message"]["content"].as_str().expect("a text"));

            let kind = if thinks {
                json!({"type": "enabled", "budget_tokens": 1024})
            } else {
                json!({"type": "disabled"})
            };
            body["thinking"] = kind;
            body.as_object_mut().expect("an object").remove("chat_template_kwargs");
            body["model"] = "tiny".into();
            body["tools"] = json!([{"name": "f", "input_schema": schema()}]);
            body["tool_choice"] = json!({"type": "any", "disable_parallel_tool_use": true});
            let whole = ask(&server, "/v1/messages", body).await;
            let content = whole["content"].as_array().expect("an array");
            assert_eq!(content.iter().any(|block| block["type"] == "thinking"), thinks, "{whole}");
            let call = content.iter().find(|block| block["type"] == "tool_use").expect("a call");
            check_form(&call["input"].to_string());
        }
    }
}

#[tokio::test]
async fn reasoning_ends_when_its_budget_is_spent() {
    // Thoughts of nothing but an `h`, without an end.
    let bias = json!({"104": 90, THINK.0.to_string(): 60, THINK.1.to_string(): -100});
    let open = json!({"104": 60, THINK.0.to_string(): 90, THINK.1.to_string(): -100});
    let user = json!([{"role": "user", "content": "u"}]);
    let server = server(3);
    let mut n_reasoned = 0;
    for bias in [bias, open] {
        let ask_with = async |name: &str, tokens: i64| {
            let mut body = json!({"messages": user, "logit_bias": bias, "max_tokens": 100, "seed": SEED,
                "json_schema": schema()});
            body[name] = tokens.into();
            ask(&server, "/v1/chat/completions", body).await
        };
        let endless = ask_with("reasoning_budget_tokens", -1).await;
        let reasons = endless["choices"][0]["message"]["reasoning_content"].is_string();
        for name in ["reasoning_budget_tokens", "thinking_budget_tokens"] {
            let whole = ask_with(name, 5).await;
            let message = &whole["choices"][0]["message"];
            check_form(message["content"].as_str().expect("a text"));
            let n = &whole["usage"]["completion_tokens_details"]["reasoning_tokens"];
            let n = n.as_u64().expect("a number");
            assert!(!reasons || (1..=6).contains(&n), "{whole}");
        }
        if reasons {
            assert_eq!(endless["choices"][0]["finish_reason"], "length", "{endless}");
            n_reasoned += 1;
        }
    }
    assert!(n_reasoned > 0, "nothing that was asked for made the model think");
}
