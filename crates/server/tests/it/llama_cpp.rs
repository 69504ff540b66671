//! llama.cpp's own routes, gaps, and prompts that are repeated.
use crate::common::{ask, copy, expected, get, method, post, refused, server, server_of};
use axum::http::{Method, StatusCode};
use hurtle_gguf::Value as Meta;
use hurtle_server::Server;
use serde_json::{Value, json};

/// The data of each event of a stream, without OpenAI's closing word.
async fn events(server: &Server, path: &str, body: Value) -> Vec<Value> {
    let (status, text) = post(server, path, body).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let events = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: "));
    let data = events.map(|data| data.expect("data")).filter(|&data| data != "[DONE]");
    data.map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

/// Requests that are answered with `n` tokens in a stream.
fn streams(n: usize, prompt: &[u32], text: &str) -> [(&'static str, Value); 3] {
    let common = json!({"stream": true, "temperature": 0, "ignore_eos": true, "max_tokens": n});
    let with = |name: &str, value: Value| {
        let mut body = common.clone();
        body[name] = value;
        body
    };
    [
        ("/completion", with("prompt", json!(prompt))),
        ("/v1/completions", with("prompt", json!(prompt))),
        ("/v1/chat/completions", with("messages", json!([{"role": "user", "content": text}]))),
    ]
}

#[tokio::test]
async fn a_completion_is_the_one_that_llama_cpp_gives() {
    let server = server("llama");
    let greedy = &expected("llama")["greedy"];
    let text = ask(&server, "/detokenize", json!({"tokens": greedy["ids"]})).await;
    let body = json!({"prompt": greedy["prompt"], "temperature": 0, "n_predict": 16, "ignore_eos": true, "seed": 5});
    let whole = ask(&server, "/completion", body.clone()).await;
    assert_eq!(whole["content"], text["content"]);
    assert_eq!((&whole["stop"], &whole["stop_type"]), (&json!(true), &json!("limit")));
    assert_eq!((&whole["tokens_evaluated"], &whole["tokens_predicted"]), (&json!(7), &json!(16)));
    assert_eq!(whole["timings"]["predicted_n"], 16);
    assert_eq!(whole["generation_settings"]["n_predict"], 16);
    assert_eq!(whole["generation_settings"]["seed"], 5);
    let prompt = ask(&server, "/detokenize", json!({"tokens": greedy["prompt"]})).await;
    assert_eq!(whole["prompt"], prompt["content"]);

    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let chunks = events(&server, "/completion", streamed).await;
    let (last, pieces) = chunks.split_last().expect("chunks");
    let streamed: String = pieces.iter().filter_map(|chunk| chunk["content"].as_str()).collect();
    assert_eq!(whole["content"], streamed);
    assert!(pieces.iter().all(|chunk| chunk["stop"] == json!(false)));
    assert_eq!((&last["stop"], &last["has_new_line"]), (&json!(true), &whole["has_new_line"]));

    // Several prompts have several replies; a stop string is told.
    let content = whole["content"].as_str().expect("a text");
    let stop: String = content.chars().skip(3).take(2).collect();
    let mut several = body;
    several["prompt"] = json!([greedy["prompt"], [greedy["prompt"][0]]]);
    several["stop"] = json!([stop]);
    let several = ask(&server, "/completions", several).await;
    assert_eq!(several.as_array().map(Vec::len), Some(2));
    assert_eq!(
        (&several[0]["stop_type"], &several[0]["stopping_word"]),
        (&json!("word"), &json!(stop))
    );
    assert!(content.starts_with(several[0]["content"].as_str().expect("a text")));
    assert_eq!(several[1]["index"], 1);
}

#[tokio::test]
async fn numbers_of_tokens_and_fields_that_are_wanted() {
    let server = server("llama");
    let mut body = json!({"prompt": "a", "temperature": 0, "n_predict": 5, "ignore_eos": true});
    let whole = ask(&server, "/completion", body.clone()).await;
    assert_eq!(whole["tokens"], json!([]));
    body["return_tokens"] = true.into();
    let with_tokens = ask(&server, "/completion", body.clone()).await;
    assert_eq!(with_tokens["tokens"].as_array().map(Vec::len), Some(5));
    let text = ask(&server, "/detokenize", json!({"tokens": with_tokens["tokens"]})).await;
    assert_eq!(text["content"], whole["content"]);

    // In a stream they come with their texts, whether they are asked for or not.
    body["stream"] = true.into();
    let chunks = events(&server, "/completion", body.clone()).await;
    let ids = chunks.iter().flat_map(|chunk| chunk["tokens"].as_array().expect("tokens").clone());
    assert_eq!(Value::from(ids.collect::<Vec<_>>()), with_tokens["tokens"]);

    body["stream"] = false.into();
    body["response_fields"] = json!(["content", "generation_settings/n_predict", "no such"]);
    let some = ask(&server, "/completion", body).await;
    let expected = json!({"content": whole["content"], "generation_settings/n_predict": 5});
    assert_eq!(some, expected);
}

#[tokio::test]
async fn several_answers_to_a_prompt() {
    let server = server("llama");
    let mut body = json!({"prompt": "a", "n_predict": 6, "ignore_eos": true, "seed": 3});
    let one = ask(&server, "/completion", body.clone()).await;
    for name in ["n", "n_cmpl"] {
        let mut body = body.clone();
        body[name] = 2.into();
        let two = ask(&server, "/completion", body.clone()).await;
        assert_eq!(two.as_array().map(Vec::len), Some(2), "{name}");
        assert_eq!(two[0]["content"], one["content"]);
        assert_ne!(two[1]["content"], one["content"], "each has a seed of its own");
        assert_eq!((&two[1]["index"], &two[1]["prompt"]), (&json!(1), &one["prompt"]));
        body["prompt"] = json!(["a", "b"]);
        let four = ask(&server, "/completion", body).await;
        let prompts: Vec<_> =
            four.as_array().expect("answers").iter().map(|a| &a["prompt"]).collect();
        assert_eq!(prompts[0], prompts[1]);
        assert_eq!(prompts[2], prompts[3]);
        assert_ne!(prompts[1], prompts[2]);
    }
    body["n"] = 2.into();
    body["stream"] = true.into();
    let chunks = events(&server, "/completion", body).await;
    let ended = chunks.iter().filter(|chunk| chunk["stop"] == json!(true));
    assert_eq!(ended.count(), 2);
}

#[tokio::test]
async fn tokens_in_the_cache_are_counted() {
    let server = server("llama");
    let mut body = json!({"prompt": [5, 6, 7, 8], "n_predict": 6, "ignore_eos": true});
    // The last token of an answer is not processed any more.
    for (cache_prompt, known) in [(false, 0), (true, 0), (true, 3)] {
        body["cache_prompt"] = cache_prompt.into();
        let reply = ask(&server, "/completion", body.clone()).await;
        assert_eq!(reply["tokens_cached"], 4 + 6 - 1);
        assert_eq!(reply["timings"]["cache_n"], known);
        assert_eq!(reply["timings"]["prompt_n"], 4 - known);
    }
}

#[tokio::test]
async fn lines_may_end_an_answer() {
    let server = server("llama");
    let id = ask(&server, "/tokenize", json!({"content": "\n"})).await["tokens"][0].clone();
    let line_breaks = json!([[id, 100]]);
    let mut body = json!({"prompt": "a", "n_predict": 6, "logit_bias": line_breaks});
    let all = ask(&server, "/completion", body.clone()).await;
    assert_eq!(all["content"], "\n\n\n\n\n\n");
    body["n_indent"] = 1.into();
    let block = ask(&server, "/completion", body.clone()).await;
    assert_eq!((&block["content"], &block["stop_type"]), (&json!("\n"), &json!("limit")));
    assert_eq!(block["truncated"], false);
    let settings = &block["generation_settings"];
    assert_eq!((&settings["n_indent"], &settings["t_max_predict_ms"]), (&json!(1), &json!(-1)));
    body["n_indent"] = 0.into();
    body["t_max_predict_ms"] = 60_000.into();
    assert_eq!(ask(&server, "/completion", body).await["content"], all["content"]);
}

#[tokio::test]
async fn there_are_no_adapters() {
    let server = server("llama");
    assert_eq!(get(&server, "/lora-adapters").await, json!([]));
    assert_eq!(ask(&server, "/lora-adapters", json!([])).await["success"], true);
    let some = json!([{"id": 0, "scale": 0.5}]);
    refused(&server, "/lora-adapters", some, 501, &["not_supported_error"]).await;
    refused(&server, "/lora-adapters", json!({}), 400, &["array"]).await;
    ask(&server, "/completion", json!({"prompt": "a", "n_predict": 1, "lora": []})).await;
}

#[tokio::test]
async fn prompts_of_texts_and_numbers() {
    let server = server("llama");
    let tokens = async |text: &str, special: bool| {
        let body = json!({"content": text, "add_special": special});
        ask(&server, "/tokenize", body).await["tokens"].as_array().expect("tokens").clone()
    };
    let all = [tokens("one", true).await, vec![json!(7), json!(8)], tokens(" two", false).await];
    let answer = async |prompt: Value| {
        let body = json!({"prompt": prompt, "temperature": 0, "n_predict": 8});
        ask(&server, "/completion", body).await["content"].clone()
    };
    let expected = answer(all.concat().into()).await;
    assert_eq!(answer(json!(["one", 7, 8, " two"])).await, expected);
    let one = answer(json!("one")).await;
    assert_eq!(answer(json!({"prompt_string": "one"})).await, one);
    assert_eq!(answer(json!({"content": [{"type": "text", "text": "one"}]})).await, one);
    let parts = ["o", "ne"].map(|text| json!({"type": "text", "text": text}));
    assert_eq!(answer(json!({"content": parts})).await, one, "nothing comes between parts");
    let body = json!({"prompt": ["one", ["one", 7, 8, " two"]], "temperature": 0, "n_predict": 8});
    let several = ask(&server, "/completion", body).await;
    assert_eq!((&several[0]["content"], &several[1]["content"]), (&one, &expected));
    for (prompt, says) in [
        (json!(["one", -7]), "texts and token ids"),
        (json!(["one", 7, null]), "texts and token ids"),
        (json!({"prompt_string": "a", "multimodal_data": []}), "nothing but prompt_string"),
        (json!({"content": "a"}), "an array of parts"),
        (json!(["one", 1_000_000]), "token ids below"),
    ] {
        refused(&server, "/completion", json!({"prompt": prompt}), 400, &["prompt", says]).await;
    }
}

#[tokio::test]
async fn probabilities_of_tokens() {
    let server = server("llama");
    let mut body =
        json!({"prompt": "a", "temperature": 0, "n_predict": 5, "ignore_eos": true, "n_probs": 2});
    let whole = ask(&server, "/completion", body.clone()).await;
    let tokens = whole["completion_probabilities"].as_array().expect("tokens");
    assert_eq!(tokens.len(), 5);
    for token in tokens {
        let top = token["top_logprobs"].as_array().expect("the best");
        // Without a temperature the most probable token is taken.
        assert_eq!((top.len(), &top[0]["id"]), (2, &token["id"]), "{token}");
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64(), "{token}");
    }
    body["stream"] = true.into();
    let chunks = events(&server, "/completion", body).await;
    let streamed = chunks.iter().filter_map(|chunk| chunk["completion_probabilities"].as_array());
    assert_eq!(&streamed.flatten().cloned().collect::<Vec<_>>(), tokens);
}

#[tokio::test]
async fn probabilities_of_what_was_drawn_from() {
    let server = server("llama");
    let mut body = json!({"prompt": "a", "n_predict": 5, "ignore_eos": true, "seed": 1, "n_probs": 4,
        "post_sampling_probs": true, "top_k": 3, "temperature": 1.5, "samplers": ["top_k", "temperature"]});
    let whole = ask(&server, "/completion", body.clone()).await;
    assert_eq!(whole["generation_settings"]["post_sampling_probs"], true);
    let tokens = whole["completion_probabilities"].as_array().expect("tokens");
    assert_eq!(tokens.len(), 5);
    for token in tokens {
        let top = token["top_probs"].as_array().expect("the candidates");
        assert_eq!(top.len(), 3, "the cut leaves no more: {token}");
        let sum: f64 = top.iter().map(|token| token["prob"].as_f64().expect("a number")).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{token}");
        let drawn = top.iter().find(|candidate| candidate["id"] == token["id"]);
        assert_eq!(drawn.expect("one of them")["prob"], token["prob"]);
        assert!(token.get("logprob").is_none() && token.get("top_logprobs").is_none(), "{token}");
    }
    body["stream"] = true.into();
    let chunks = events(&server, "/completion", body.clone()).await;
    let streamed = chunks.iter().filter_map(|chunk| chunk["completion_probabilities"].as_array());
    assert_eq!(&streamed.flatten().cloned().collect::<Vec<_>>(), tokens);

    // Without a temperature there is one candidate, and it is certain.
    body["stream"] = false.into();
    body["temperature"] = 0.into();
    let greedy = ask(&server, "/completion", body).await;
    for token in greedy["completion_probabilities"].as_array().expect("tokens") {
        assert_eq!((&token["prob"], &token["top_probs"][0]["prob"]), (&json!(1.0), &json!(1.0)));
        assert_eq!(token["top_probs"].as_array().map(Vec::len), Some(1), "{token}");
    }
}

#[tokio::test]
async fn times_with_each_piece() {
    let server = server("llama");
    const NAMES: [&str; 9] = [
        "cache_n",
        "prompt_n",
        "prompt_ms",
        "prompt_per_token_ms",
        "prompt_per_second",
        "predicted_n",
        "predicted_ms",
        "predicted_per_token_ms",
        "predicted_per_second",
    ];
    for (path, mut body) in streams(6, &[5, 6, 7], "a") {
        let has_timings = |chunk: &&Value| chunk.get("timings").is_some();
        let plain = events(&server, path, body.clone()).await;
        assert_eq!(plain.iter().filter(has_timings).count(), 1, "the last: {path}");
        body["timings_per_token"] = true.into();
        if path != "/completion" {
            body["stream_options"] = json!({"include_usage": true});
        }
        let chunks = events(&server, path, body.clone()).await;
        let is_chat = path.contains("chat");
        if is_chat {
            let delta = json!({"role": "assistant", "content": null});
            assert_eq!(chunks[0]["choices"][0]["delta"], delta);
            assert!(!has_timings(&&chunks[0]), "nothing has been generated: {}", chunks[0]);
            let usage = chunks.last().expect("usage");
            assert!(usage["choices"] == json!([]) && has_timings(&usage), "{usage}");
        }
        let timed: Vec<_> = chunks.iter().filter(has_timings).collect();
        let missing = chunks.len() - timed.len();
        assert_eq!(missing, usize::from(path != "/completion"), "{path}: {chunks:?}");
        let mut before = 0;
        for chunk in timed {
            for name in NAMES {
                assert!(chunk["timings"][name].is_number(), "{path}: {name}: {chunk}");
            }
            let n = chunk["timings"]["predicted_n"].as_u64().expect("a number");
            assert!((before.max(1)..=6).contains(&n), "{path}: {before}, {chunk}");
            before = n;
        }
        assert_eq!(before, 6, "{path}");
        body["stream"] = false.into();
        if let Some(body) = body.as_object_mut() {
            body.remove("stream_options");
        }
        let whole = ask(&server, path, body).await;
        assert_eq!(whole["timings"]["predicted_n"], 6, "{path}: {whole}");
        assert!(whole["timings"].get("load_ms").is_none(), "{path}: {whole}");
    }
}

#[tokio::test]
async fn times_and_progress_of_responses() {
    let server = server("llama");
    let body = json!({"input": "a b c d e f", "max_output_tokens": 4, "temperature": 0, "stream": true,
        "timings_per_token": true, "return_progress": true});
    let (status, text) = post(&server, "/v1/responses", body).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = data.map(|data| serde_json::from_str(data).expect("JSON")).collect();
    let progress: Vec<_> = events.iter().filter(|e| e.get("prompt_progress").is_some()).collect();
    assert!(progress.iter().all(|event| event["type"] == "response.in_progress"), "{text}");
    let last = &progress.last().expect("progress")["prompt_progress"];
    assert_eq!(last["processed"], last["total"]);
    let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    let n = deltas.map(|event| event["timings"]["predicted_n"].as_u64().expect("times"));
    assert!(n.is_sorted(), "{text}");
    let last = events.last().expect("events");
    assert_eq!(last["timings"]["predicted_n"], 4, "{last}");
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i, "{event}");
    }
}

#[tokio::test]
async fn biases_are_told() {
    let server = server("llama");
    let mut body = json!({"prompt": "a", "n_predict": 1, "logit_bias": [[5, 1.5]]});
    let plain = ask(&server, "/completion", body.clone()).await;
    let expected = json!([{"token": 5, "bias": 1.5}]);
    assert_eq!(plain["generation_settings"]["logit_bias"], expected);
    body["ignore_eos"] = true.into();
    let ignoring = ask(&server, "/completion", body.clone()).await;
    let biases = ignoring["generation_settings"]["logit_bias"].as_array().expect("biases").clone();
    assert!(
        biases.len() > 1 && biases[1..].iter().all(|bias| bias["bias"].is_null()),
        "{biases:?}"
    );
    // Until the context is full.
    body["n_predict"] = (-1).into();
    body["logit_bias"] = json!([]);
    assert_eq!(ignoring["truncated"], false);
    assert_eq!(ask(&server, "/completion", body).await["truncated"], true);
}

#[tokio::test]
async fn progress_of_prompts() {
    let server = server("llama");
    let prompt: Vec<u32> = (5..75).collect();
    for (path, mut body) in streams(2, &prompt, &"a b c d e f g h ".repeat(4)) {
        body["return_progress"] = true.into();
        for again in [false, true] {
            let chunks = events(&server, path, body.clone()).await;
            let n = chunks.iter().filter(|chunk| chunk.get("prompt_progress").is_some()).count();
            assert!(n >= 2, "{path}: {chunks:?}");
            let (told, rest) = chunks.split_at(n);
            assert!(rest.iter().all(|chunk| chunk.get("prompt_progress").is_none()), "{chunks:?}");
            let number = |chunk: &Value, name: &str| {
                chunk["prompt_progress"][name].as_u64().expect("a number")
            };
            let (first, last) = (&told[0], &told[n - 1]);
            assert_eq!(number(first, "processed"), number(first, "cache"), "{path}: {first}");
            assert_eq!(number(last, "processed"), number(last, "total"), "{path}: {last}");
            // The second route finds what the first has processed.
            let known = again || path == "/v1/completions";
            assert_eq!(number(first, "cache") > 0, known, "{path}, {again}: {first}");
            for pair in told.windows(2) {
                assert!(number(&pair[0], "processed") < number(&pair[1], "processed"), "{told:?}");
                assert!(number(&pair[0], "time_ms") <= number(&pair[1], "time_ms"), "{told:?}");
                assert_eq!(number(&pair[0], "total"), number(&pair[1], "total"), "{told:?}");
                assert_eq!(number(&pair[0], "cache"), number(&pair[1], "cache"), "{told:?}");
            }
        }
        body["timings_per_token"] = true.into();
        let chunks = events(&server, path, body.clone()).await;
        for chunk in chunks.iter().filter(|chunk| chunk.get("prompt_progress").is_some()) {
            let (progress, timings) = (&chunk["prompt_progress"], &chunk["timings"]);
            assert_eq!(timings["cache_n"], progress["cache"], "{path}: {chunk}");
            let n = timings["prompt_n"].as_u64().zip(timings["cache_n"].as_u64());
            assert_eq!(
                n.map(|(new, known)| new + known),
                progress["processed"].as_u64(),
                "{chunk}"
            );
            assert_eq!(timings["predicted_n"], 0, "{path}: {chunk}");
        }
        body["stream"] = false.into();
        ask(&server, path, body).await;
    }
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_counted() {
    let server = server("llama");
    for (path, body) in streams(2, &[5; 600], &"a b c d e f g h ".repeat(100)) {
        let (status, text) = post(&server, path, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
        let error = &serde_json::from_str::<Value>(&text).expect("JSON")["error"];
        assert_eq!(error["type"], "exceed_context_size_error", "{error}");
        assert_eq!(error["code"], "context_length_exceeded", "{error}");
        assert_eq!(error["n_ctx"], 512, "{error}");
        let n = error["n_prompt_tokens"].as_u64().expect("a number");
        assert!(if path.contains("chat") { n > 512 } else { n == 600 }, "{path}: {error}");
    }
}

#[tokio::test]
async fn tokens_of_a_prompt_are_counted() {
    let server = server("llama");
    let messages = json!([{"role": "user", "content": "one two"}]);
    let chat = json!({"messages": messages, "max_tokens": 1});
    let expected = ask(&server, "/v1/chat/completions", chat.clone()).await;
    let expected = &expected["usage"]["prompt_tokens"];
    assert!(expected.as_u64() > Some(2), "{expected}");
    let response = json!({"input": messages});
    for (path, body) in [("/chat/completions", &chat), ("/responses", &response)] {
        for prefix in ["", "/v1"] {
            let path = format!("{prefix}{path}/input_tokens");
            let counted = ask(&server, &path, body.clone()).await;
            assert_eq!(counted["input_tokens"], *expected, "{path}");
            refused(&server, &path, json!({}), 400, &["is missing"]).await;
        }
    }
}

#[tokio::test]
async fn an_answer_goes_on_with_the_last_message() {
    let server = server("llama");
    let user = json!({"role": "user", "content": "one"});
    let begun = json!({"role": "assistant", "content": "tw"});
    let chat = |messages: Value| json!({"messages": messages, "temperature": 0, "max_tokens": 8});
    let prompt = async |mut body: Value, continues: Option<bool>| {
        body["continue_final_message"] = continues.into();
        ask(&server, "/apply-template", body).await["prompt"].as_str().expect("a text").to_owned()
    };
    let alone = prompt(chat(json!([user])), None).await;
    let both = chat(json!([user, begun]));
    for continues in [None, Some(true)] {
        assert_eq!(prompt(both.clone(), continues).await, format!("{alone}tw"));
    }
    let apart = prompt(both.clone(), Some(false)).await;
    assert!(apart.contains("tw") && !apart.ends_with("tw"), "{apart}");
    // What it begins with is not repeated; every API has it.
    let text = |reply: &Value, at: &str| reply.pointer(at).expect("an answer").clone();
    let chats = ask(&server, "/v1/chat/completions", both).await;
    let expected = text(&chats, "/choices/0/message/content");
    let mut body =
        json!({"model": "tiny", "messages": [user, begun], "max_tokens": 8, "temperature": 0});
    let reply = ask(&server, "/v1/messages", body.clone()).await;
    assert_eq!(text(&reply, "/content/0/text"), expected);
    if let Some(body) = body.as_object_mut() {
        body.remove("max_tokens");
        body.remove("temperature");
    }
    body["stream"] = false.into();
    body["options"] = json!({"temperature": 0, "num_predict": 8});
    let reply = ask(&server, "/api/chat", body).await;
    assert_eq!(text(&reply, "/message/content"), expected);

    let refuses = async |body: Value, param: &str| {
        refused(&server, "/v1/chat/completions", body, 400, &[param]).await;
    };
    let mut wrong = chat(json!([user]));
    wrong["continue_final_message"] = true.into();
    refuses(wrong.clone(), "continue_final_message").await;
    wrong["messages"] = json!([user, begun]);
    wrong["add_generation_prompt"] = true.into();
    refuses(wrong.clone(), "add_generation_prompt").await;
    wrong["add_generation_prompt"] = false.into();
    ask(&server, "/v1/chat/completions", wrong).await;
}

#[tokio::test]
async fn rates_over_all_answers() {
    let server = server("llama");
    let metric = async |name: &str| {
        let (_, text) = method(&server, Method::GET, "/metrics", "").await;
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("llamacpp:{name} ")));
        value.expect("the metric").parse::<f64>().expect("a number")
    };
    assert_eq!(metric("predicted_tokens_seconds").await, 0.0);
    let body = json!({"prompt": "one two three", "n_predict": 8, "ignore_eos": true});
    let (mut sums, mut longest) = ([0.0; 4], 0.0);
    for n in 1..=2 {
        let answer = ask(&server, "/completion", body.clone()).await;
        let time = |name: &str| answer["timings"][name].as_f64().expect("a number");
        sums[0] += time("prompt_n");
        sums[1] += time("prompt_ms") / 1e3;
        sums[2] += time("predicted_n") - 1.0;
        sums[3] += time("predicted_ms") / 1e3;
        // The last token of an answer is not processed.
        longest = time("cache_n") + time("prompt_n") + time("predicted_n") - 1.0;
        // Who has the answer finds it counted, and its place free.
        assert_eq!(metric("tokens_predicted_total").await, f64::from(8 * n));
        assert_eq!(metric("requests_processing").await, 0.0);
    }
    for (name, expected) in [
        ("prompt_seconds_total", sums[1]),
        ("tokens_predicted_seconds_total", sums[3]),
        ("prompt_tokens_seconds", sums[0] / sums[1]),
        ("predicted_tokens_seconds", sums[2] / sums[3]),
    ] {
        let found = metric(name).await;
        assert!((found / expected - 1.0).abs() < 1e-3, "{name}: {found}, {expected}");
    }
    assert_eq!(metric("n_busy_slots_per_decode").await, 1.0);
    assert_eq!(metric("n_tokens_max").await, longest);
}

#[tokio::test]
async fn places_for_answers() {
    let server = server("llama");
    let idle = get(&server, "/slots").await;
    let idle = idle.as_array().expect("places");
    assert_eq!(json!(idle.len()), get(&server, "/props").await["total_slots"]);
    for (i, slot) in idle.iter().enumerate() {
        let expected = json!({"id": i, "model": "tiny", "n_ctx": 512, "speculative": false, "is_processing": false});
        assert_eq!(*slot, expected);
    }
}

#[tokio::test]
async fn pieces_of_characters_are_bytes() {
    let server = server("llama");
    let content = "a 媽🤗";
    let body = json!({"content": content, "with_pieces": true});
    let tokens = ask(&server, "/tokenize", body).await;
    let mut bytes = Vec::new();
    for token in tokens["tokens"].as_array().expect("tokens") {
        match &token["piece"] {
            Value::String(text) => bytes.extend_from_slice(text.as_bytes()),
            piece => {
                let piece: Vec<u8> = serde_json::from_value(piece.clone()).expect("bytes");
                assert!(str::from_utf8(&piece).is_err(), "{token}");
                bytes.extend(piece);
            }
        }
    }
    assert_eq!(String::from_utf8(bytes).expect("the text").trim_start(), content);
}

#[tokio::test]
async fn lengths_are_limits_or_refused() {
    let server = server("llama");
    for (path, name) in [
        ("/completion", "n_predict"),
        ("/v1/completions", "max_tokens"),
        ("/v1/chat/completions", "max_tokens"),
    ] {
        let messages = json!([{"role": "user", "content": "a"}]);
        let mut body = json!({"temperature": 0});
        match path.contains("chat") {
            true => body["messages"] = messages,
            false => body["prompt"] = "a".into(),
        }
        body[name] = (-5).into();
        refused(&server, path, body.clone(), 400, &[name, "found -5"]).await;
        body[name] = 0.into();
        ask(&server, path, body).await;
    }
}

#[tokio::test]
async fn a_prompt_is_repeated() {
    let server = server("llama");
    let mut body = json!({"prompt": ["one", "two"], "n": 2, "max_tokens": 4, "seed": 3});
    let plain = ask(&server, "/v1/completions", body.clone()).await;
    body["echo"] = true.into();
    let echoed = ask(&server, "/v1/completions", body.clone()).await;
    for (i, prompt) in ["one", "one", "two", "two"].iter().enumerate() {
        let text = plain["choices"][i]["text"].as_str().expect("a text");
        let found = echoed["choices"][i]["text"].as_str().expect("a text");
        assert!(found.ends_with(&format!("{prompt}{text}")), "{i}: {found:?}, {text:?}");
    }
    assert_eq!(plain["usage"]["total_tokens"], echoed["usage"]["total_tokens"]);
    body["stream"] = true.into();
    let (_, stream) = post(&server, "/v1/completions", body).await;
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: {"));
    let mut texts = vec![String::new(); 4];
    for data in data {
        let chunk: Value = serde_json::from_str(&format!("{{{data}")).expect("JSON");
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().expect("an index") as usize;
        texts[index] += choice["text"].as_str().expect("a text");
    }
    for (i, text) in texts.iter().enumerate() {
        assert_eq!(&echoed["choices"][i]["text"], text);
    }
}

#[tokio::test]
async fn a_prompt_is_scored() {
    let server = server("llama");
    let mut body = json!({"prompt": "one two three", "max_tokens": 0, "echo": true, "logprobs": 2});
    let alone = ask(&server, "/v1/completions", body.clone()).await;
    let choice = &alone["choices"][0];
    assert!(choice["text"].as_str().expect("a text").ends_with("one two three"), "{choice}");
    let list = |name: &str| choice["logprobs"][name].as_array().expect("an array").clone();
    let (tokens, logprobs) = (list("tokens"), list("token_logprobs"));
    let (tops, offsets) = (list("top_logprobs"), list("text_offset"));
    assert_eq!(tokens.len(), alone["usage"]["prompt_tokens"].as_u64().expect("a number") as usize);
    assert!(tokens.len() == logprobs.len() && tops.len() == offsets.len(), "{choice}");
    let text: String = tokens.iter().map(|token| token.as_str().expect("a text")).collect();
    assert_eq!(&choice["text"], &text);
    assert!(logprobs[0].is_null() && tops[0].is_null(), "nothing foretells the first: {choice}");
    for (i, logprob) in logprobs.iter().enumerate().skip(1) {
        assert!(logprob.as_f64().is_some_and(|x| x <= 0.0), "{choice}");
        assert_eq!(&tops[i][tokens[i].as_str().expect("a text")], logprob);
        assert!((2..4).contains(&tops[i].as_object().expect("an object").len()));
    }
    // With an answer, and from a stream, the prompt has the same.
    body["max_tokens"] = 3.into();
    body["seed"] = 1.into();
    let longer = ask(&server, "/v1/completions", body.clone()).await;
    let found = &longer["choices"][0]["logprobs"];
    let all = found["token_logprobs"].as_array().expect("an array");
    assert_eq!(&all[..logprobs.len()], logprobs);
    assert!(all.len() > logprobs.len());
    body["stream"] = true.into();
    let (_, stream) = post(&server, "/v1/completions", body).await;
    let (mut streamed, mut offsets) = (Vec::new(), Vec::new());
    for data in stream.lines().filter_map(|line| line.strip_prefix("data: {")) {
        let chunk: Value = serde_json::from_str(&format!("{{{data}")).expect("JSON");
        let told = &chunk["choices"][0]["logprobs"];
        streamed.extend(told["token_logprobs"].as_array().into_iter().flatten().cloned());
        offsets.extend(told["text_offset"].as_array().into_iter().flatten().cloned());
    }
    assert_eq!(&streamed, all);
    assert_eq!(&Value::from(offsets), &found["text_offset"]);
}

#[tokio::test]
async fn a_gap_is_filled_by_models_that_can() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("coder.gguf");
    let key = |name: &str| format!("tokenizer.ggml.fim_{name}_token_id");
    let writer = copy("llama", |metadata| {
        for (name, id) in [("pre", 260_u32), ("suf", 261), ("mid", 262), ("sep", 263)] {
            metadata.insert(key(name), Meta::U32(id));
        }
    });
    writer.write(&path).expect("written");
    let coder = server_of(&path, crate::common::options());
    let tokens = async |text: &str| {
        let reply =
            ask(&coder, "/tokenize", json!({"content": text, "parse_special": false})).await;
        reply["tokens"].as_array().expect("tokens").clone()
    };
    let extra = json!([{"filename": "a.rs", "text": "fn a() {}"}]);
    let body = json!({"input_prefix": "let x", "prompt": " = ", "input_suffix": ";\n", "n_predict": 8, "temperature": 0, "ignore_eos": true});
    let mut with_files = body.clone();
    with_files["input_extra"] = extra;
    let bos = expected("llama")["tokenize"]["parse_special"][0].clone();
    let first = ask(&coder, "/tokenize", json!({"content": "", "add_special": true})).await;
    let first = first["tokens"].as_array().expect("tokens").clone();
    assert!(first.is_empty() || first == [bos]);
    let check = async |body: Value, files: Vec<Value>| {
        let mut ids = first.clone();
        ids.extend(files);
        ids.push(263.into());
        ids.extend(tokens("filename\n").await);
        ids.push(260.into());
        ids.extend(tokens("let x = ").await);
        ids.push(261.into());
        ids.extend(tokens(";\n").await);
        ids.push(262.into());
        let expected = json!({"prompt": ids, "n_predict": 8, "temperature": 0, "ignore_eos": true});
        let expected = ask(&coder, "/completion", expected).await;
        let found = ask(&coder, "/infill", body).await;
        assert_eq!(found["prompt"], expected["prompt"]);
        assert_eq!(found["tokens_evaluated"], ids.len());
        assert_eq!(found["content"], expected["content"]);
        found["content"].clone()
    };
    let plain = check(body.clone(), Vec::new()).await;
    let mut file = vec![json!(263)];
    file.extend(tokens("a.rs\n").await);
    file.extend(tokens("fn a() {}").await);
    check(with_files, file).await;
    let openai = json!({"prompt": "let x = ", "suffix": ";\n", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let openai = ask(&coder, "/v1/completions", openai).await;
    assert_eq!(openai["choices"][0]["text"], plain);
    let options = json!({"num_predict": 8, "temperature": 0, "ignore_eos": true});
    let ollama = json!({"model": "tiny", "prompt": "let x = ", "suffix": ";\n", "options": options, "stream": false});
    assert_eq!(ask(&coder, "/api/generate", ollama).await["response"], plain);
    let show = ask(&coder, "/api/show", json!({"model": "tiny"})).await;
    assert_eq!(show["capabilities"], json!(["completion", "insert"]));
    // What llama.cpp's plugins for editors send.
    let editor = json!({"id_slot": 0, "input_prefix": "a\n", "input_suffix": "b\n", "input_extra": [], "prompt": "c",
        "n_predict": 8, "stop": [], "n_indent": 2, "top_k": 40, "top_p": 0.9, "stream": false,
        "samplers": ["top_k", "top_p", "infill"], "cache_prompt": true, "t_max_prompt_ms": 500,
        "t_max_predict_ms": 1000, "response_fields": ["content", "timings/prompt_n", "truncated", "tokens_cached"]});
    let reply = ask(&coder, "/infill", editor).await;
    assert!(reply["content"].is_string() && reply["tokens_cached"].is_u64(), "{reply}");
    let only_read = json!({"input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0, "samplers": [],
        "input_extra": [{"filename": "a.rs", "text": "fn a() {}"}], "cache_prompt": true, "t_max_prompt_ms": 1,
        "t_max_predict_ms": 1, "response_fields": [""]});
    assert_eq!(ask(&coder, "/infill", only_read).await, json!({}));

    let cannot = server("llama");
    refused(&cannot, "/infill", body, 400, &["cannot fill in", "prefix"]).await;
    let body = json!({"prompt": "a", "suffix": "b"});
    refused(&cannot, "/v1/completions", body, 400, &["suffix: model 'tiny' cannot fill in"]).await;
}

#[tokio::test]
async fn what_the_server_is_and_what_prompts_become() {
    let server = server("llama");
    let props = get(&server, "/props").await;
    assert_eq!(props["total_slots"], 16);
    assert_eq!(props["model_alias"], "tiny");
    assert!(props["default_generation_settings"]["n_ctx"].as_u64().is_some_and(|n| n > 0));
    assert!(props["chat_template"].as_str().is_some_and(|template| template.contains("message")));
    let (status, text) =
        crate::common::method(&server, axum::http::Method::GET, "/props?model=other", "").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{text}");

    let messages = json!([{"role": "user", "content": "Hello"}]);
    let prompt = ask(&server, "/apply-template", json!({"messages": messages})).await;
    let prompt = prompt["prompt"].as_str().expect("a text");
    assert!(prompt.contains("Hello"), "{prompt}");
    // It is what a chat is answered to.
    let chat = json!({"messages": messages, "max_tokens": 6, "temperature": 0});
    let chat = ask(&server, "/v1/chat/completions", chat).await;
    let tokens = json!({"content": prompt, "add_special": true});
    let tokens = ask(&server, "/tokenize", tokens).await["tokens"].clone();
    let raw = json!({"prompt": tokens, "n_predict": 6, "temperature": 0});
    let raw = ask(&server, "/completion", raw).await;
    assert_eq!(raw["content"], chat["choices"][0]["message"]["content"]);
}
