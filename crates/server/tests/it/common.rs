//! Servers of tiny models, and requests to them.
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode};
use hurtle_engine::{Arithmetic, Engine, EngineOptions, KvType, ServiceOptions};
use hurtle_gguf::{Gguf, Metadata, Writer};
use hurtle_server::models::{Catalog, Source};
use hurtle_server::{Server, ServerOptions};
use hurtle_text::ChatTemplate;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tower::ServiceExt as _;

pub(crate) fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs").join(name)
}

/// What llama.cpp computed with the model `name`.
pub(crate) fn expected(name: &str) -> Value {
    let text = std::fs::read_to_string(golden(&format!("{name}.json"))).expect("the golden file");
    serde_json::from_str(&text).expect("JSON")
}

/// A copy of the golden model `name` with other metadata, to be added to and written.
pub(crate) fn copy(name: &str, change: impl FnOnce(&mut Metadata)) -> Writer<'static> {
    let gguf = Gguf::open(golden(&format!("{name}.gguf"))).expect("opened");
    let mut metadata = gguf.metadata().clone();
    change(&mut metadata);
    let mut writer = Writer::new(metadata);
    for tensor in gguf.tensors() {
        let data = gguf.data(tensor).to_vec();
        writer.tensor(tensor.name(), tensor.dims(), tensor.ty(), data).expect("a tensor");
    }
    writer
}

pub(crate) fn load(path: &Path) -> Result<(Engine, ChatTemplate), String> {
    let options = EngineOptions {
        threads: Some(1),
        arithmetic: Arithmetic::Exact,
        kv_type_k: KvType::F32,
        kv_type_v: KvType::F32,
        ..EngineOptions::default()
    };
    let engine = Engine::load(path, &options).map_err(|error| error.to_string())?;
    let metadata = engine.gguf().metadata();
    let (template, _) =
        ChatTemplate::fallback_for(metadata, engine.tokenizer()).map_err(|e| e.to_string())?;
    Ok((engine, template))
}

pub(crate) fn options() -> ServerOptions {
    ServerOptions {
        model: "tiny".into(),
        service: ServiceOptions { queue: 16, ..ServiceOptions::default() },
        ..ServerOptions::default()
    }
}

/// A server of the golden model `name`, which is called `tiny`.
pub(crate) fn server(name: &str) -> Server {
    server_of(&golden(&format!("{name}.gguf")), options())
}

pub(crate) fn server_of(path: &Path, options: ServerOptions) -> Server {
    let (engine, template) = load(path).expect("loaded");
    Server::start(engine, template, options).expect("started")
}

/// A catalog of the golden models of these names.
pub(crate) fn catalog(names: &[&str]) -> Catalog {
    let source = |name: &&str| {
        let path = golden(&format!("{name}.gguf"));
        let bytes = path.metadata().expect("a file").len();
        Source::new((*name).to_owned(), path, bytes)
    };
    Catalog {
        named: names.iter().map(source).collect(),
        others: None,
        load: Box::new(load),
        max_loaded: 3,
        keep_alive: None,
        memory: None,
    }
}

/// The status and the body's text.
pub(crate) async fn send(server: &Server, request: Request<Body>) -> (StatusCode, String) {
    let reply = server.router().oneshot(request).await.expect("a reply");
    let status = reply.status();
    let body = to_bytes(reply.into_body(), usize::MAX).await.expect("a body");
    (status, String::from_utf8(body.into()).expect("UTF-8"))
}

pub(crate) async fn method(
    server: &Server,
    method: Method,
    path: &str,
    body: impl ToString,
) -> (StatusCode, String) {
    let request = Request::builder().method(method).uri(path);
    send(server, request.body(Body::from(body.to_string())).expect("a request")).await
}

pub(crate) async fn post(server: &Server, path: &str, body: impl ToString) -> (StatusCode, String) {
    method(server, Method::POST, path, body).await
}

/// The reply to a request that must succeed.
pub(crate) async fn ask(server: &Server, path: &str, body: Value) -> Value {
    let (status, text) = post(server, path, body).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

pub(crate) async fn get(server: &Server, path: &str) -> Value {
    let (status, text) = method(server, Method::GET, path, "").await;
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

/// A request that must be refused with this status and these words.
pub(crate) async fn refused(
    server: &Server,
    path: &str,
    body: Value,
    status: u16,
    expected: &[&str],
) {
    let (found, text) = post(server, path, body).await;
    assert_eq!(found.as_u16(), status, "{text}");
    for words in expected {
        assert!(text.contains(words), "{words}: {text}");
    }
}
