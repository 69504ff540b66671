//! The models that there are, for clients that ask before they ask one of them.
use super::{Shared, with_json};
use crate::error::ApiError;
use crate::models::{Source, Status};
use crate::wire::llama_cpp;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use hurtle_gguf::Metadata;
use hurtle_model::mix::Mix;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v1/models", get(list))
        .route("/models", get(list))
        .route("/v1/models/{model}", get(one))
        .route("/models/load", post(load))
        .route("/models/unload", post(unload))
}

/// The models that flags name, and those that are loaded.
async fn list(State(shared): State<Arc<Shared>>) -> Response {
    let mut sources = shared.models.named().to_vec();
    shared.models.loaded(|status| {
        let source = &status.loaded.source;
        if !sources.iter().any(|known| known.path == source.path) {
            sources.push(source.clone());
        }
    });
    let models: Vec<Value> = sources.iter().map(|source| shared.told(source)).collect();
    let id = |model: Option<&Value>| model.map(|model| model["id"].clone());
    // The last three are Anthropic's.
    with_json(&json!({"object": "list", "data": models, "has_more": false,
        "first_id": id(models.first()), "last_id": id(models.last())}))
}

/// One of them, or one that is stored on this machine.
async fn one(
    State(shared): State<Arc<Shared>>,
    Path(model): Path<String>,
) -> Result<Response, ApiError> {
    let source = shared.models.find(Some(&model)).await?;
    Ok(with_json(&shared.told(&source)))
}

impl Shared {
    /// What OpenAI's, Anthropic's and llama.cpp's clients are told of a model.
    fn told(&self, source: &Source) -> Value {
        let started = SystemTime::UNIX_EPOCH + Duration::from_secs(self.started);
        let started = jiff::Timestamp::try_from(started).unwrap_or_default();
        let status = self.models.state(source).name();
        let mut model = json!({"id": source.name, "aliases": source.aliases, "tags": [],
            "object": "model", "created": self.started, "owned_by": "hurtle",
            "type": "model", "display_name": source.name, "created_at": started.to_string(),
            "status": {"value": status}});
        self.models.loaded(|status| {
            if status.loaded.source.path == source.path {
                model["meta"] = meta(&status);
            }
        });
        model
    }
}

fn meta(status: &Status<'_>) -> Value {
    let engine = status.loaded.service.engine();
    let hparams = engine.model().hparams();
    json!({"n_vocab": hparams.n_vocab, "n_ctx_train": hparams.n_ctx_train,
        "n_embd": hparams.n_embd, "n_ctx": engine.ctx_size(), "n_params": engine.gguf().n_params(),
        "size": status.loaded.source.bytes, "ftype": mix_name(engine.gguf().metadata())})
}

/// How a file calls its mix of weight types.
pub(super) fn mix_name(metadata: &Metadata) -> &'static str {
    let file_type = metadata.u32("general.file_type").ok().flatten();
    file_type.and_then(Mix::from_file_type).map_or("unknown", Mix::name)
}

/// Begins to load a model; its status tells when it is there.
async fn load(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let name = llama_cpp::parse_model(&body)?;
    let source = shared.models.find(Some(&name)).await?;
    if shared.models.state(&source).is_running() {
        let message = format!("model '{name}' is already running");
        return Err(ApiError::invalid("model", message));
    }
    // What fails is in the log, and its status tells that it is not there.
    tokio::spawn(async move { shared.models.lease(Some(&name), None).await });
    Ok(with_json(&json!({"success": true})))
}

/// Unloads a model as soon as its last answer is written.
async fn unload(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let name = llama_cpp::parse_model(&body)?;
    let source = shared.models.find(Some(&name)).await?;
    if !shared.models.state(&source).is_running() {
        let message = format!("model '{name}' is not running");
        return Err(ApiError::invalid("model", message));
    }
    shared.models.unload(Some(&name)).await?;
    Ok(with_json(&json!({"success": true})))
}
