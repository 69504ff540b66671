//! llama.cpp's slots: the places in which answers are written, and what they have left in the cache.
use super::{Shared, with_json};
use crate::error::{ApiError, ErrorKind};
use crate::models::Lease;
use crate::routes::ollama::on_disk;
use crate::wire::llama_cpp;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use hurtle_engine::{SlotAction, SlotContent, SlotDone, SlotError};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/slots", get(slots)).route("/slots/{slot}", post(act))
}

/// The places of all loaded models, one model after the other.
async fn slots(State(shared): State<Arc<Shared>>) -> Response {
    let mut slots = Vec::new();
    shared.models.loaded(|status| {
        let service = &status.loaded.service;
        let running = service.stats().slots;
        for place in 0..service.max_sequences() {
            let mut slot = json!({"id": slots.len(), "model": status.loaded.source.name,
                "n_ctx": service.engine().ctx_size(), "speculative": false, "is_processing": false});
            if let Some(answer) = running.iter().find(|answer| answer.slot == place) {
                slot["is_processing"] = true.into();
                slot["id_task"] = answer.id.into();
                slot["n_prompt_tokens"] = answer.n_prompt.into();
                slot["n_past"] = answer.n_done.into();
                slot["n_decoded"] = answer.n_generated.into();
                slot["next_token"] = json!([{"n_decoded": answer.n_generated}]);
            }
            slots.push(slot);
        }
    });
    with_json(&slots.into())
}

/// Saves what a slot holds, puts it back, or lets it be forgotten.
async fn act(
    State(shared): State<Arc<Shared>>,
    id: Result<Path<usize>, PathRejection>,
    query: Result<Query<HashMap<String, String>>, QueryRejection>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let Path(id) = id.map_err(|error| ApiError::invalid("id_slot", error.body_text()))?;
    let query = query.map_err(|error| ApiError::invalid("action", error.body_text()))?;
    let slot = shared.slot(id).await?;
    let reply = match query.get("action").map(String::as_str) {
        Some("save") => slot.save(shared.file(&body)?).await,
        Some("restore") => slot.restore(shared.file(&body)?).await,
        Some("erase") => slot.erase().await,
        _ => Err(ApiError::invalid("action", "action: expected save, restore or erase")),
    };
    reply.map(|reply| with_json(&reply))
}

/// A slot of a model.
struct Slot {
    model: Lease,
    /// Among those of all models.
    id: usize,
    place: usize,
}

impl Shared {
    async fn slot(&self, id: usize) -> Result<Slot, ApiError> {
        let mut left = id;
        let find = |status: crate::models::Status<'_>| {
            let n_slots = status.loaded.service.max_sequences();
            let place = left;
            left = left.wrapping_sub(n_slots);
            (place < n_slots).then(|| (status.loaded.source.name.clone(), place))
        };
        // Behind the one that is found all numbers are too large.
        let found = self.models.loaded(find).into_iter().flatten().next();
        let Some((name, place)) = found else {
            let message =
                format!("there is no slot {id}\nhint: GET /slots tells those that there are");
            return Err(ApiError::invalid("id_slot", message));
        };
        Ok(Slot { model: self.models.lease(Some(&name), None).await?, id, place })
    }

    /// The file that a body names.
    fn file(&self, body: &[u8]) -> Result<(String, PathBuf), ApiError> {
        let Some(folder) = &self.options.slot_dir else {
            let message =
                "this server has no folder for what slots hold\nhint: --slot-save-path names one";
            return Err(ApiError::new(ErrorKind::NotSupported, message));
        };
        let name = llama_cpp::parse_filename(body)?;
        let path = folder.join(&name);
        Ok((name, path))
    }
}

fn refused(name: &str, error: &SlotError) -> ApiError {
    let message = format!("filename: {name}: {error}");
    match error {
        SlotError::Io(error) if error.kind() != std::io::ErrorKind::NotFound => {
            ApiError::new(ErrorKind::Internal, message)
        }
        _ => ApiError::invalid("filename", message),
    }
}

impl Slot {
    async fn act(&self, action: SlotAction) -> Result<SlotDone, ApiError> {
        let (sender, done) = oneshot::channel();
        let on_done = move |done| drop(sender.send(done)); // unless the client has gone
        self.model.service.with_slot(self.place, action, Box::new(on_done));
        let closed = |_| ApiError::new(ErrorKind::Unavailable, "the model is being unloaded");
        done.await.map_err(closed)
    }

    async fn save(self, (name, path): (String, PathBuf)) -> Result<Value, ApiError> {
        let start = Instant::now();
        let done = self.act(SlotAction::Copy).await?;
        let content = done.content.unwrap_or_default();
        let service = self.model.service.clone();
        let written = on_disk(move || content.write(&path, service.engine())).await?;
        let n_bytes = written.map_err(|error| refused(&name, &error))?;
        Ok(
            json!({"id_slot": self.id, "filename": name, "n_saved": done.n_tokens, "n_written": n_bytes,
            "timings": {"save_ms": start.elapsed().as_secs_f64() * 1e3}}),
        )
    }

    async fn restore(self, (name, path): (String, PathBuf)) -> Result<Value, ApiError> {
        let start = Instant::now();
        let service = self.model.service.clone();
        let read = on_disk(move || SlotContent::read(&path, service.engine())).await?;
        let (content, n_bytes) = read.map_err(|error| refused(&name, &error))?;
        let done = self.act(SlotAction::Put(content)).await?;
        Ok(
            json!({"id_slot": self.id, "filename": name, "n_restored": done.n_tokens, "n_read": n_bytes,
            "timings": {"restore_ms": start.elapsed().as_secs_f64() * 1e3}}),
        )
    }

    async fn erase(self) -> Result<Value, ApiError> {
        let done = self.act(SlotAction::Erase).await?;
        Ok(json!({"id_slot": self.id, "n_erased": done.n_tokens}))
    }
}
