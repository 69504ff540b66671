//! Embeddings against llama.cpp's, rerankers against the engine, over every API.
use crate::common::{
    ask, copy, expected, golden, load, method, options, refused, server, server_of,
};
use axum::http::Method;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hurtle_engine::Pooling;
use hurtle_gguf::Value as Meta;
use hurtle_quant::WeightType;
use hurtle_server::{ServerOptions, TextVectors};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn numbers(value: &Value) -> Vec<f32> {
    let number = |x: &Value| x.as_f64().expect("a number") as f32;
    value.as_array().expect("an array").iter().map(number).collect()
}

fn check_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 2e-4, "{difference}");
}

#[tokio::test]
async fn embeddings_are_llama_cpps() {
    for name in ["bert", "nomic-bert", "qwen3-embed"] {
        let (server, golden) = (server(name), expected(name));
        let golden = golden["inputs"].as_array().expect("inputs");
        let input: Value = golden.iter().map(|input| input["ids"].clone()).collect();
        let n_tokens: usize = golden.iter().map(|i| i["ids"].as_array().expect("ids").len()).sum();
        let body = json!({"model": "tiny", "input": input});
        let reply = ask(&server, "/v1/embeddings", body.clone()).await;
        assert_eq!(reply["usage"]["prompt_tokens"], n_tokens);
        let native = ask(&server, "/embedding", body.clone()).await;
        let mut coded = body;
        coded["encoding_format"] = "base64".into();
        let coded = ask(&server, "/v1/embeddings", coded).await;
        for (i, input) in golden.iter().enumerate() {
            let entry = &reply["data"][i];
            assert_eq!((&entry["index"], &entry["object"]), (&json!(i), &json!("embedding")));
            let found = numbers(&entry["embedding"]);
            check_close(&found, &numbers(&input["embedding_l2_normalized"]));
            assert_eq!(numbers(&native[i]["embedding"][0]), found);
            let bytes = coded["data"][i]["embedding"].as_str().expect("base64");
            let bytes = BASE64_STANDARD.decode(bytes).expect("base64");
            let floats =
                bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]));
            assert_eq!(floats.collect::<Vec<_>>(), found);
        }
        let (_, metrics) = method(&server, Method::GET, "/metrics", "").await;
        let counted = format!("hurtle:embedding_tokens_total {}\n", 3 * n_tokens);
        assert!(metrics.contains(&counted), "{metrics}");
        let processed = format!("llamacpp:prompt_tokens_total {}\n", 3 * n_tokens);
        assert!(metrics.contains(&processed), "{metrics}");
    }
}

#[tokio::test]
async fn vectors_of_each_token() {
    let with = |text_vectors: TextVectors| {
        server_of(&golden("bert.gguf"), ServerOptions { text_vectors, ..options() })
    };
    let body = json!({"content": [[5, 6, 7, 8], [9]], "embd_normalize": -1});
    let vectors = async |text_vectors: TextVectors| {
        let reply = ask(&with(text_vectors), "/embedding", body.clone()).await;
        let all = |i: usize| reply[i]["embedding"].as_array().expect("vectors").iter().map(numbers);
        [0, 1].map(|i| all(i).collect::<Vec<_>>())
    };
    let tokens = vectors(TextVectors::Tokens).await;
    assert_eq!((tokens[0].len(), tokens[1].len()), (4, 1));
    for (pooling, of) in [(Pooling::Cls, 0..1), (Pooling::Last, 3..4), (Pooling::Mean, 0..4)] {
        let found = vectors(TextVectors::Pooled(pooling)).await;
        let pooled = &tokens[0][of];
        let n = pooled.len() as f32;
        let mean: Vec<f32> =
            (0..pooled[0].len()).map(|k| pooled.iter().map(|v| v[k]).sum::<f32>() / n).collect();
        assert_eq!(found[0].len(), 1);
        check_close(&found[0][0], &mean);
    }
    // As they are, unless they are wanted otherwise.
    let server = with(TextVectors::Tokens);
    let plain = ask(&server, "/embeddings", json!({"input": [5, 6, 7, 8]})).await;
    assert_eq!(numbers(&plain[0]["embedding"][2]), tokens[0][2]);
    let body = json!({"input": [5, 6, 7, 8], "embd_normalize": 2});
    let normalized = ask(&server, "/embeddings", body).await;
    let length: f32 = numbers(&normalized[0]["embedding"][2]).iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    let body = json!({"model": "tiny", "input": "a"});
    for path in ["/v1/embeddings", "/api/embed"] {
        refused(&server, path, body.clone(), 400, &["only /embedding", "--pooling none"]).await;
    }
}

#[tokio::test]
async fn every_api_gives_the_same_vectors() {
    let server = server("bert");
    let texts = json!(["hello world", "goodbye"]);
    let openai = ask(&server, "/v1/embeddings", json!({"input": texts})).await;
    let first = &openai["data"][0]["embedding"];
    let one = ask(&server, "/v1/embeddings", json!({"input": "hello world"})).await;
    assert_eq!(&one["data"][0]["embedding"], first);
    let body = json!({"model": "tiny", "input": texts});
    let ollama = ask(&server, "/api/embed", body).await;
    assert_eq!(&ollama["embeddings"][0], first);
    assert_eq!(ollama["embeddings"][1], openai["data"][1]["embedding"]);
    assert_eq!(ollama["prompt_eval_count"], openai["usage"]["prompt_tokens"]);
    // The older route does not normalize.
    let old =
        ask(&server, "/api/embeddings", json!({"model": "tiny", "prompt": "hello world"})).await;
    let body = json!({"content": "hello world", "embd_normalize": -1});
    let native = ask(&server, "/embedding", body).await;
    assert_eq!(old["embedding"], native[0]["embedding"][0]);
    assert_ne!(&old["embedding"], first);

    let body = json!({"input": "hello world", "dimensions": 5});
    let short = numbers(&ask(&server, "/v1/embeddings", body).await["data"][0]["embedding"]);
    let mut cut = numbers(first);
    cut.truncate(5);
    let length = cut.iter().map(|x| x * x).sum::<f32>().sqrt();
    let cut: Vec<f32> = cut.iter().map(|x| x / length).collect();
    check_close(&short, &cut);
}

#[tokio::test]
async fn long_texts_are_refused_with_the_numbers_or_cut() {
    let server = server("bert");
    let long = "hello ".repeat(500);
    let body = json!({"model": "tiny", "input": ["a", long]});
    refused(
        &server,
        "/v1/embeddings",
        body.clone(),
        400,
        &["input[1] has", "takes 128", "context_length_exceeded"],
    )
    .await;
    let cut = ask(&server, "/api/embed", body.clone()).await;
    assert_eq!(cut["embeddings"].as_array().map(Vec::len), Some(2));
    let mut strict = body;
    strict["truncate"] = false.into();
    refused(&server, "/api/embed", strict, 400, &["takes 128"]).await;
    let small =
        json!({"model": "tiny", "input": long, "options": {"num_ctx": 16, "temperature": 0.5}});
    assert_eq!(ask(&server, "/api/embed", small).await["prompt_eval_count"], 16);
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused() {
    let server = server("bert");
    let embed = "/v1/embeddings";
    refused(&server, embed, json!({"input": [99_999]}), 400, &["99999"]).await;
    refused(&server, embed, json!({"input": []}), 400, &["no tokens"]).await;
    refused(&server, embed, json!({"input": "a", "dimensions": 4096}), 400, &["dimensions"]).await;
    refused(&server, embed, json!({"input": "a", "model": "other"}), 404, &["model_not_found"])
        .await;
    refused(&server, "/api/embed", json!({"input": "a"}), 400, &["model is missing"]).await;
    refused(
        &server,
        "/v1/rerank",
        json!({"query": "a", "documents": ["b"]}),
        400,
        &["no reranker"],
    )
    .await;
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    refused(&server, "/v1/chat/completions", chat, 400, &["does not write text", "/v1/embeddings"])
        .await;
    refused(&server, "/v1/completions", json!({"prompt": "a"}), 400, &["does not write text"])
        .await;
    // Without an input the model is only loaded.
    let none = ask(&server, "/api/embed", json!({"model": "tiny"})).await;
    assert_eq!(none["embeddings"], json!([]));
}

#[tokio::test]
async fn a_model_that_writes_gives_what_it_knows_at_the_end() {
    let server = server("llama");
    let ids = expected("llama")["inputs"][1]["ids"].clone();
    let reply = ask(&server, "/v1/embeddings", json!({"input": ids})).await;
    let vector = numbers(&reply["data"][0]["embedding"]);
    let length: f32 = vector.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-4, "{length}");
    // Other beginnings count: attention has seen them. Only the end is read, though.
    let mut longer = ids.as_array().expect("ids").clone();
    longer.push(longer[0].clone());
    let other = ask(&server, "/v1/embeddings", json!({"input": longer})).await;
    assert_ne!(numbers(&other["data"][0]["embedding"]), vector);
}

/// A copy of the golden `bert` that scores texts instead.
fn reranker(folder: &Path) -> PathBuf {
    let mut writer = copy("bert", |metadata| {
        metadata.insert("bert.pooling_type", Meta::U32(4));
    });
    let n_embd = 64;
    let values: Vec<u8> = (0..n_embd).flat_map(|i| ((i % 7) as f32 - 3.0).to_le_bytes()).collect();
    writer.tensor("cls.output.weight", &[n_embd, 1], WeightType::F32, values).expect("a tensor");
    let path = folder.join("reranker.gguf");
    writer.write(&path).expect("written");
    path
}

#[tokio::test]
async fn documents_are_put_in_the_order_of_their_scores() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = reranker(folder.path());
    let server = server_of(&path, options());
    let documents = ["red", "a green one", "blue", "what?"];
    let body = json!({"model": "tiny", "query": "which", "documents": documents, "top_n": 3});
    let reply = ask(&server, "/v1/rerank", body).await;

    let (engine, _) = load(&path).expect("loaded");
    let tok = engine.tokenizer();
    let plain = hurtle_text::Encode { add_special: false, parse_special: false };
    let score = |document: &&str| {
        // [CLS] query [SEP] document [SEP], as far as the vocabulary has and adds them.
        let end = tok.eos().or(tok.separator()).filter(|_| tok.adds_eos());
        let mut ids: Vec<u32> = tok.bos().filter(|_| tok.adds_bos()).into_iter().collect();
        ids.extend(tok.encode("which", plain));
        ids.extend(end.into_iter().chain(tok.separator().filter(|_| tok.adds_separator())));
        ids.extend(tok.encode(document, plain));
        ids.extend(end);
        engine.embed(&ids).expect("scores")[0]
    };
    let scores: Vec<f32> = documents.iter().map(score).collect();
    let results = reply["results"].as_array().expect("results");
    assert_eq!(results.len(), 3);
    let mut last = f32::INFINITY;
    for result in results {
        let found = result["relevance_score"].as_f64().expect("a score") as f32;
        let index = result["index"].as_u64().expect("an index") as usize;
        assert_eq!(found, scores[index], "{result}");
        assert!(found <= last, "{reply}");
        last = found;
    }
    let worst = scores.iter().copied().fold(f32::INFINITY, f32::min);
    assert!(last > worst, "{scores:?}: {reply}");
    refused(&server, "/v1/embeddings", json!({"input": "a"}), 400, &["reranker", "/v1/rerank"])
        .await;
}
