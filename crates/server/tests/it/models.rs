//! Several models: loaded when they are named, unloaded when they are not used, fetched and removed.
use crate::common::{ask, catalog, get, golden, load, method, options, post, refused};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use hurtle_hub::{Hub, HubConfig};
use hurtle_server::keep_alive::KeepAlive;
use hurtle_server::models::Catalog;
use hurtle_server::{Server, ServerOptions};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tower::ServiceExt as _;

fn start(catalog: Catalog) -> Server {
    Server::with_models(catalog, options()).expect("started")
}

fn hub(folder: &Path, endpoint: Option<String>) -> Hub {
    let mut config = HubConfig::new(folder.join("store"), folder.join("hf"));
    config.attempts = 1;
    if let Some(endpoint) = endpoint {
        config.hf_endpoint = endpoint;
    }
    Hub::new(config).expect("a hub")
}

/// A folder with a store of these golden models, and a file that is none.
fn store(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store");
    std::fs::create_dir_all(&store).expect("a store");
    for name in names {
        let file = format!("{name}.gguf");
        std::fs::copy(golden(&file), store.join(file)).expect("copied");
    }
    std::fs::write(store.join("broken.gguf"), "GGUF, but no more").expect("written");
    folder
}

fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 8})
}

async fn answer(server: &Server, model: &str) -> Value {
    let reply = ask(server, "/v1/chat/completions", chat(model)).await;
    assert_eq!(reply["model"], model.strip_suffix(":latest").unwrap_or(model));
    reply["choices"][0]["message"]["content"].clone()
}

async fn running(server: &Server) -> Vec<String> {
    let list = get(server, "/api/ps").await;
    let name = |model: &Value| model["name"].as_str().expect("a name").to_owned();
    let mut names: Vec<String> =
        list["models"].as_array().expect("models").iter().map(name).collect();
    names.sort();
    names
}

/// Waits until these models run, and no others.
async fn settles(server: &Server, expected: &[&str]) {
    let mut found = Vec::new();
    for _ in 0..600 {
        found = running(server).await;
        if found == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("expected {expected:?}, found {found:?}");
}

#[tokio::test]
async fn a_model_is_loaded_by_the_first_request_that_names_it() {
    let folder = store(&["qwen2"]);
    let server =
        start(Catalog { others: Some(hub(folder.path(), None)), ..catalog(&["llama", "gemma"]) });
    assert_eq!(running(&server).await, ["llama"]);
    let mut bodies = Vec::new();
    for model in ["llama", "gemma", "qwen2", "qwen2:latest"] {
        bodies.push(answer(&server, model).await);
    }
    assert_ne!(bodies[0], bodies[1]);
    assert_eq!(bodies[2], bodies[3]);
    assert_eq!(running(&server).await, ["gemma", "llama", "qwen2"]);
    // Who names no model means the first.
    let mut nameless = chat("");
    nameless["model"] = Value::Null;
    let reply = ask(&server, "/v1/chat/completions", nameless).await;
    assert_eq!(reply["choices"][0]["message"]["content"], bodies[0]);

    let list = get(&server, "/v1/models").await;
    let ids: Vec<_> = list["data"].as_array().expect("models").iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["llama", "gemma", "qwen2"]);
    let tags = get(&server, "/api/tags").await;
    let tags = tags["models"].as_array().expect("models").clone();
    let names: Vec<_> = tags.iter().map(|model| &model["name"]).collect();
    assert_eq!(names, ["llama", "gemma", "broken", "qwen2"]);
    assert_eq!(tags[3]["size"], golden("qwen2.gguf").metadata().expect("a file").len());
    assert_eq!(tags[3]["details"]["family"], "qwen2");
    let show = ask(&server, "/api/show", json!({"model": "qwen2"})).await;
    assert_eq!(show["model_info"]["general.architecture"], "qwen2");
    assert_eq!(show["model_info"]["tokenizer.ggml.tokens"], Value::Null);
    assert_eq!(show["capabilities"], json!(["completion"]));
    let verbose = ask(&server, "/api/show", json!({"model": "qwen2", "verbose": true})).await;
    let tokens = verbose["model_info"]["tokenizer.ggml.tokens"].as_array();
    assert_eq!(tokens.map(Vec::len), Some(272));
}

#[tokio::test]
async fn a_model_is_told_by_its_name() {
    let folder = store(&["qwen2"]);
    let hub = hub(folder.path(), None);
    let server = start(Catalog { others: Some(hub), ..catalog(&["llama", "gemma"]) });
    let list = get(&server, "/v1/models").await;
    let model = get(&server, "/v1/models/llama").await;
    assert_eq!(model, list["data"][0]);
    assert_eq!((&model["object"], &model["id"]), (&json!("model"), &json!("llama")));
    assert_eq!(model["meta"]["n_vocab"], 272);
    // Anthropic's clients read these.
    assert_eq!((&model["type"], &model["display_name"]), (&json!("model"), &json!("llama")));
    assert_eq!((&list["first_id"], &list["last_id"]), (&json!("llama"), &json!("gemma")));
    // One that is stored here, and not loaded.
    let stored = get(&server, "/v1/models/qwen2").await;
    assert_eq!((&stored["id"], &stored["status"]["value"]), (&json!("qwen2"), &json!("unloaded")));
    let (status, text) = method(&server, Method::GET, "/v1/models/nowhere", "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(text.contains("model_not_found"), "{text}");
}

#[tokio::test]
async fn models_are_loaded_and_unloaded_on_request() {
    let server = start(catalog(&["llama", "gemma"]));
    let status = async |name: &str| {
        let model = get(&server, &format!("/v1/models/{name}")).await;
        model["status"]["value"].as_str().expect("a status").to_owned()
    };
    let wait = async |name: &str, wanted: &str| {
        while status(name).await != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let gemma = json!({"model": "gemma"});
    assert_eq!(status("gemma").await, "unloaded");
    refused(&server, "/models/unload", gemma.clone(), 400, &["not running"]).await;
    assert_eq!(ask(&server, "/models/load", gemma.clone()).await, json!({"success": true}));
    wait("gemma", "loaded").await;
    refused(&server, "/models/load", gemma.clone(), 400, &["already running"]).await;
    assert_eq!(ask(&server, "/models/unload", gemma).await, json!({"success": true}));
    wait("gemma", "unloaded").await;
    refused(&server, "/models/load", json!({"model": "nowhere"}), 404, &["not found"]).await;
}

#[tokio::test]
async fn a_model_has_several_names() {
    let folder = store(&["llama"]);
    let hub = hub(folder.path(), None);
    let mut catalog = Catalog { others: Some(hub), ..catalog(&["llama", "gemma"]) };
    let named = &mut catalog.named[0];
    named.path = folder.path().join("store/llama.gguf");
    named.name = "gpt-4o-mini".into();
    named.aliases = ["gpt-4o-mini", "small"].map(String::from).into();
    let server = start(catalog);
    let list = get(&server, "/v1/models").await;
    assert_eq!(list["data"][0]["id"], "gpt-4o-mini");
    assert_eq!(list["data"][0]["aliases"], json!(["gpt-4o-mini", "small"]));
    assert_eq!(list["data"][1]["aliases"], json!([]));
    let expected = answer(&server, "gpt-4o-mini").await;
    // What its file is called means it, too.
    for name in ["small", "small:latest", "llama", "default", ""] {
        let reply = ask(&server, "/v1/chat/completions", chat(name)).await;
        assert_eq!(reply["choices"][0]["message"]["content"], expected, "{name}");
        assert_eq!(reply["model"], "gpt-4o-mini", "{name}");
    }
    assert_eq!(running(&server).await, ["gpt-4o-mini"]);
    refused(&server, "/v1/chat/completions", chat("smal"), 404, &["model_not_found"]).await;
}

#[tokio::test]
async fn what_cannot_be_loaded_leaves_the_others_alone() {
    let folder = store(&[]);
    let server = start(Catalog { others: Some(hub(folder.path(), None)), ..catalog(&["llama"]) });
    let before = answer(&server, "llama").await;
    let chats = "/v1/chat/completions";
    refused(
        &server,
        chats,
        chat("broken"),
        500,
        &["model 'broken' cannot be loaded", "broken.gguf"],
    )
    .await;
    refused(&server, "/api/show", json!({"model": "broken"}), 500, &["broken.gguf"]).await;
    refused(&server, chats, chat("nowhere"), 404, &["model_not_found"]).await;
    // No request chooses a file.
    let path = golden("qwen2.gguf");
    for name in [
        path.to_str().expect("UTF-8"),
        "./qwen2.gguf",
        "../store/broken.gguf",
        "https://127.0.0.1/x.gguf",
        "\0",
        "",
    ] {
        let (status, text) = post(&server, chats, chat(name)).await;
        match name {
            "" => assert_eq!(status, StatusCode::OK, "{text}"),
            _ => assert_eq!(status, StatusCode::NOT_FOUND, "{name}: {text}"),
        }
    }
    assert_eq!(answer(&server, "llama").await, before);
    let mut none = catalog(&["llama"]);
    none.named[0].path = folder.path().join("store/broken.gguf");
    let error = Server::with_models(none, options()).expect_err("no server");
    assert!(error.contains("broken.gguf"), "{error}");
    // Without a store there are only those that are named.
    let closed = start(catalog(&["llama"]));
    refused(&closed, chats, chat("broken"), 404, &["model_not_found"]).await;
    refused(&closed, "/api/pull", json!({"model": "smollm2"}), 403, &["--only-named"]).await;
    let (status, _) =
        method(&closed, Method::DELETE, "/api/delete", json!({"model": "llama"})).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_only_model_answers_for_names_that_are_built_into_programs() {
    let folder = store(&["qwen2"]);
    let with = |named: &[&str], others: Option<Hub>| start(Catalog { others, ..catalog(named) });
    let server = with(&["llama"], Some(hub(folder.path(), None)));
    let expected = answer(&server, "llama").await;
    for name in ["gpt-4o", "gpt-3.5-turbo", "text-davinci-003", "test", "local-model", "LLaMA_CPP"]
    {
        let reply = ask(&server, "/v1/chat/completions", chat(name)).await;
        assert_eq!(reply["choices"][0]["message"]["content"], expected, "{name}");
        assert_eq!(reply["model"], "llama", "the reply says who answered");
    }
    let message = json!({"model": "claude-x", "max_tokens": 4, "messages": [{"role": "user", "content": "a"}]});
    assert_eq!(ask(&server, "/v1/messages", message).await["model"], "llama");
    let texts = json!({"model": "text-embedding-3-small", "input": "a"});
    assert_eq!(ask(&server, "/v1/embeddings", texts).await["model"], "llama");
    // Names that mean a certain model, Ollama's clients, which fetch what is not there, and servers that
    // have several models or no others.
    let chats = "/v1/chat/completions";
    for name in ["nowhere", "smollm2", "gpt-oss", "gpt-4o:latest", "hf:user/gpt-4", "gpt-4/x.gguf"]
    {
        refused(&server, chats, chat(name), 404, &["model_not_found"]).await;
    }
    let question = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "a"}]});
    refused(&server, "/api/chat", question, 404, &["gpt-4o"]).await;
    let two = with(&["llama", "gemma"], Some(hub(folder.path(), None)));
    refused(&two, chats, chat("gpt-4o"), 404, &["model_not_found"]).await;
    refused(&with(&["llama"], None), chats, chat("gpt-4o"), 404, &["model_not_found"]).await;
}

#[tokio::test]
async fn keep_alive_says_when_a_model_leaves() {
    let server =
        start(Catalog { keep_alive: Some(KeepAlive::Forever), ..catalog(&["llama", "gemma"]) });
    let generate = |model: &str, prompt: &str, keep_alive: Value| json!({"model": model, "prompt": prompt, "keep_alive": keep_alive, "stream": false, "options": {"num_predict": 4, "ignore_eos": true}});
    // Nothing to say: only to load, and to unload.
    let loaded = ask(&server, "/api/generate", generate("gemma", "", json!("1h"))).await;
    assert_eq!((&loaded["done_reason"], &loaded["response"]), (&json!("load"), &json!("")));
    assert_eq!(running(&server).await, ["gemma", "llama"]);
    let ps = get(&server, "/api/ps").await;
    let until = |name: &str| {
        let models = ps["models"].as_array().expect("models");
        let model = models.iter().find(|model| model["name"] == name).expect("running");
        let until: jiff::Timestamp =
            model["expires_at"].as_str().expect("a time").parse().expect("RFC 3339");
        until.as_second() - jiff::Timestamp::now().as_second()
    };
    assert!((3500..3601).contains(&until("gemma")), "{ps}");
    assert!(until("llama") > 100 * 365 * 86_400, "{ps}");
    let unloaded = ask(&server, "/api/generate", generate("gemma", "", json!(0))).await;
    assert_eq!(unloaded["done_reason"], "unload");
    settles(&server, &["llama"]).await;
    // After an answer, and after a while.
    ask(&server, "/api/generate", generate("gemma", "a", json!(0))).await;
    settles(&server, &["llama"]).await;
    ask(&server, "/api/generate", generate("gemma", "a", json!("200ms"))).await;
    settles(&server, &["llama"]).await;
    let body = json!({"model": "llama", "messages": [], "keep_alive": 0});
    assert_eq!(ask(&server, "/api/chat", body).await["done_reason"], "unload");
    settles(&server, &[]).await;
    // What was counted stays counted.
    let (_, metrics) = method(&server, Method::GET, "/metrics", "").await;
    assert!(metrics.contains("llamacpp:tokens_predicted_total 8\n"), "{metrics}");
    // It comes back when it is asked for.
    answer(&server, "llama").await;
    settles(&server, &["llama"]).await;
    refused(&server, "/api/generate", generate("gemma", "a", json!("soon")), 400, &["keep_alive"])
        .await;
}

#[tokio::test]
async fn models_take_turns_where_there_is_one_place() {
    let most = Arc::new(AtomicUsize::new(0));
    let alone = start(catalog(&["llama", "gemma", "qwen2"]));
    let mut expected = Vec::new();
    for model in ["llama", "gemma", "qwen2"] {
        expected.push(answer(&alone, model).await);
    }
    let server = start(Catalog { max_loaded: 1, ..catalog(&["llama", "gemma", "qwen2"]) });
    let tasks: Vec<_> = (0..12)
        .map(|i| {
            let (server, most) = (server.clone(), Arc::clone(&most));
            tokio::spawn(async move {
                let found = answer(&server, ["llama", "gemma", "qwen2"][i % 3]).await;
                most.fetch_max(running(&server).await.len(), Ordering::Relaxed);
                found
            })
        })
        .collect();
    for (i, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.await.expect("an answer"), expected[i % 3], "{i}");
    }
    assert!(most.load(Ordering::Relaxed) <= 1);
}

#[tokio::test]
async fn a_model_stays_while_it_answers() {
    let server = start(Catalog { max_loaded: 1, ..catalog(&["llama", "gemma"]) });
    let endless = json!({"model": "llama", "prompt": "a", "stream": true, "ignore_eos": true, "max_tokens": 2000});
    let request = Request::post("/v1/completions").body(Body::from(endless.to_string()));
    let reply = server.router().oneshot(request.expect("a request")).await.expect("a reply");
    let mut body = reply.into_body().into_data_stream();
    body.next().await.expect("a piece").expect("bytes");
    // Asked to leave, and needed by another.
    let unload = json!({"model": "llama", "keep_alive": 0});
    ask(&server, "/api/generate", unload).await;
    let other = {
        let server = server.clone();
        tokio::spawn(async move { answer(&server, "gemma").await })
    };
    let mut text = String::new();
    while let Some(piece) = body.next().await {
        text += std::str::from_utf8(&piece.expect("bytes")).expect("UTF-8");
    }
    assert!(text.contains(r#""finish_reason":"length""#), "{text}");
    drop(body);
    other.await.expect("an answer");
    settles(&server, &["gemma"]).await;
}

#[tokio::test]
async fn memory_is_shared_out() {
    let bytes = golden("llama.gguf").metadata().expect("a file").len();
    // Enough for the weights of two and what keys and values get at least, not for three.
    let memory = Some(2 * (64 << 20) + 2 * bytes + bytes / 2);
    let server = start(Catalog { memory, ..catalog(&["llama", "gemma", "qwen2"]) });
    for model in ["llama", "gemma", "qwen2", "llama"] {
        answer(&server, model).await;
        let n = running(&server).await.len();
        assert!(n <= 2, "{n} models after {model}");
    }
}

#[tokio::test]
async fn too_many_that_wait_are_told_to_come_back() {
    let slow: hurtle_server::models::Load = Box::new(|path| {
        if path.ends_with("gemma.gguf") {
            std::thread::sleep(Duration::from_millis(500));
        }
        load(path)
    });
    let mut options: ServerOptions = options();
    options.service.queue = 2;
    let catalog = Catalog { load: slow, ..catalog(&["llama", "gemma"]) };
    let server = Server::with_models(catalog, options).expect("started");
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let server = server.clone();
            tokio::spawn(
                async move { post(&server, "/v1/chat/completions", chat("gemma")).await.0 },
            )
        })
        .collect();
    // Others go on meanwhile.
    answer(&server, "llama").await;
    let mut statuses = Vec::new();
    for task in tasks {
        statuses.push(task.await.expect("a reply").as_u16());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 429, 429, 429, 429]);
}

/// A Hugging Face with one repository, whose file comes slowly if asked so.
async fn hugging_face(slow: bool) -> (String, Arc<AtomicUsize>) {
    use axum::routing::get;
    let model = std::fs::read(golden("qwen2.gguf")).expect("a file");
    let sum = {
        use sha2::Digest as _;
        let sum = sha2::Sha256::digest(&model);
        sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let listing = json!({"sha": "0".repeat(40), "siblings": [
        {"rfilename": "tiny-Q8_0.gguf", "size": model.len(), "lfs": {"sha256": sum}}]});
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let file = move || async move {
        let length = model.len().to_string();
        let pieces: Vec<Vec<u8>> = model.chunks(4096).map(<[u8]>::to_vec).collect();
        let pieces = tokio_stream::iter(pieces).then(move |piece| {
            let counted = Arc::clone(&counted);
            async move {
                if slow {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                counted.fetch_add(piece.len(), Ordering::Relaxed);
                Ok::<_, std::convert::Infallible>(piece)
            }
        });
        ([("content-length", length)], Body::from_stream(pieces))
    };
    let router = axum::Router::new()
        .route("/api/models/user/repo", get(move || async move { listing.to_string() }))
        .route("/user/repo/resolve/{commit}/{file}", get(file));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    (format!("http://{address}"), sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_fetched_and_removed() {
    let folder = store(&["llama"]);
    let (endpoint, _) = hugging_face(false).await;
    let server =
        start(Catalog { others: Some(hub(folder.path(), Some(endpoint))), ..catalog(&["gemma"]) });
    let name = "hf.co/user/repo:Q8_0";
    refused(&server, "/v1/chat/completions", chat(name), 404, &["model_not_found"]).await;
    let (status, lines) = post(&server, "/api/pull", json!({"model": name})).await;
    assert_eq!(status, StatusCode::OK, "{lines}");
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(lines[0]["status"], "pulling manifest");
    assert_eq!(lines[lines.len() - 1], json!({"status": "success"}));
    let size = golden("qwen2.gguf").metadata().expect("a file").len();
    let whole = lines.iter().find(|line| line["completed"] == size).expect("a complete transfer");
    assert_eq!(whole["total"], size);
    answer(&server, name).await;
    let again = json!({"name": name, "stream": false});
    assert_eq!(ask(&server, "/api/pull", again).await, json!({"status": "success"}));

    let delete = async |name: &str| {
        method(&server, Method::DELETE, "/api/delete", json!({"model": name})).await
    };
    let (status, text) = delete("gemma").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
    // Others' caches are left alone.
    let (status, text) = delete(name).await;
    assert!(status == StatusCode::BAD_REQUEST && text.contains("Hugging Face"), "{status} {text}");
    assert_eq!(delete("nowhere").await.0, StatusCode::NOT_FOUND);
    answer(&server, "llama").await;
    let (status, text) = delete("llama").await;
    assert_eq!(status, StatusCode::OK, "{text}");
    assert!(!folder.path().join("store/llama.gguf").exists());
    refused(&server, "/v1/chat/completions", chat("llama"), 404, &["model_not_found"]).await;

    for (name, status) in [
        ("http://127.0.0.1/x.gguf", 400),
        ("pip:something", 400),
        ("./x.gguf", 400),
        ("hf:user/other", 404),
        ("no-such-alias", 404),
    ] {
        let body = json!({"model": name, "stream": false});
        refused(&server, "/api/pull", body, status, &["error"]).await;
    }
    refused(&server, "/api/pull", json!({"model": "a", "insecure": true}), 400, &["insecure"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_ends_with_its_client() {
    let folder = store(&[]);
    let (endpoint, sent) = hugging_face(true).await;
    let hub = hub(folder.path(), Some(endpoint));
    let server = start(Catalog { others: Some(hub), ..catalog(&["llama"]) });
    let body = json!({"model": "hf:user/repo"}).to_string();
    let request = Request::post("/api/pull").body(Body::from(body)).expect("a request");
    let reply = server.router().oneshot(request).await.expect("a reply");
    let mut body = reply.into_body().into_data_stream();
    let partial = |folder: &Path| -> Option<PathBuf> {
        let blobs = folder.join("hf/models--user--repo/blobs");
        let mut files = std::fs::read_dir(blobs).ok()?.flatten().map(|entry| entry.path());
        files.find(|path| path.extension().is_some_and(|ext| ext == "partial"))
    };
    while partial(folder.path()).is_none_or(|path| path.metadata().is_ok_and(|m| m.len() == 0)) {
        body.next().await.expect("a line").expect("bytes");
    }
    drop(body);
    // No more is asked for: what is sent stands still, and it is not all.
    let mut before = usize::MAX;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = sent.load(Ordering::Relaxed);
        if now == before {
            break;
        }
        before = now;
    }
    let size = golden("qwen2.gguf").metadata().expect("a file").len() as usize;
    assert!(before < size, "{before} of {size} bytes were sent");
    assert!(partial(folder.path()).is_some(), "what is there stays");
}
