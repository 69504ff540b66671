//! Ollama's routes that fetch and remove models.
use super::ollama::{in_shape, on_disk};
use super::{Shared, with_json};
use crate::error::{ApiError, ErrorKind};
use crate::models::spec;
use crate::wire::ollama;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, post};
use hurtle_hub::{Error as HubError, Hub, Progress};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/api/pull", post(pull))
        .route("/api/delete", delete(remove))
        .route("/api/copy", post(no_copies))
        .route("/api/create", post(makes_none))
        .route("/api/blobs/{digest}", post(makes_none))
        .route("/api/push", post(publishes_none))
}

/// What is told of something that Ollama does and this server never will.
fn unsupported(message: &str) -> Response {
    in_shape(Err(ApiError::new(ErrorKind::NotSupported, message)))
}

async fn no_copies() -> Response {
    unsupported(
        "models are not copied: each has the name that it was fetched under\n\
         hint: --alias gives the first --model further names",
    )
}

async fn makes_none() -> Response {
    unsupported(
        "models are not made here: a GGUF file is served as it is\n\
         hint: send the system message and the options with each request; --chat-template-file and flags such as \
         --temp hold for all",
    )
}

async fn publishes_none() -> Response {
    unsupported("models are not published from here\nhint: Hugging Face takes GGUF files")
}

/// How often a transfer tells how far it is.
const PERIOD: Duration = Duration::from_millis(100);

/// Tells a connection how a transfer goes; when it has gone, the transfer ends.
struct Lines {
    sender: UnboundedSender<Value>,
    what: String,
    total: Option<u64>,
    told: Option<Instant>,
}

impl Lines {
    fn tell(&self, line: Value) {
        // That nobody listens is seen by `is_cancelled`.
        let _ = self.sender.send(line);
    }

    fn transfer(&self, done: u64) -> Value {
        let mut line = json!({"status": format!("pulling {}", self.what), "digest": self.what, "completed": done});
        if let Some(total) = self.total {
            line["total"] = total.into();
        }
        line
    }
}

impl Progress for Lines {
    fn start(&mut self, what: &str, total: Option<u64>) {
        (self.what, self.total, self.told) = (what.to_owned(), total, None);
        self.tell(self.transfer(0));
    }

    fn advance(&mut self, done: u64) {
        let now = Instant::now();
        let complete = self.total == Some(done);
        if complete || self.told.is_none_or(|told| now - told >= PERIOD) {
            self.told = Some(now);
            self.tell(self.transfer(done));
        }
    }

    fn finish(&mut self) {}

    fn note(&mut self, message: &str) {
        self.tell(json!({"status": message}));
    }

    fn is_cancelled(&self) -> bool {
        self.sender.is_closed()
    }
}

fn refused(error: &HubError) -> ApiError {
    let kind = match error {
        HubError::UnknownModel { .. }
        | HubError::NoSuchRepo { .. }
        | HubError::NoSuchQuant { .. }
        | HubError::NotInStore(_)
        | HubError::NotInOllama { .. } => ErrorKind::NotFound,
        HubError::BadSpec { .. } | HubError::NotOwned { .. } => ErrorKind::Invalid,
        HubError::Busy(_) => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    ApiError::new(kind, error.to_string())
}

/// The models' store, unless the server is to leave it alone.
fn store(shared: &Shared) -> Result<&Hub, ApiError> {
    shared.models.hub().ok_or_else(|| {
        let message = "this server only serves the models that its flags name\n\
            hint: start it without --only-named";
        ApiError::new(ErrorKind::Forbidden, message)
    })
}

async fn pull(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let answer = async {
        let (name, stream) = ollama::parse_pull(&body)?;
        store(&shared)?;
        let spec = spec(&name);
        // A request must not choose what addresses this machine asks, nor what files it reads.
        if spec.contains("://")
            || spec.starts_with("pip:")
            || spec.ends_with(".gguf") && !spec.starts_with("hf:")
        {
            let message = format!(
                "model: '{name}' is not fetched over HTTP: expected an alias, hf:USER/REPO or hf.co/USER/REPO\n\
                 hint: 'hurtle pull' fetches it on the server's machine"
            );
            return Err(ApiError::invalid("model", message));
        }
        let (sender, lines) = mpsc::unbounded_channel();
        let mut progress =
            Lines { sender: sender.clone(), what: String::new(), total: None, told: None };
        let fetch = move || {
            progress.tell(json!({"status": "pulling manifest"}));
            let hub = store(&shared)?;
            hub.pull(&spec, false, &mut progress).map_err(|error| refused(&error))?;
            progress.tell(json!({"status": "success"}));
            Ok::<_, ApiError>(())
        };
        if !stream {
            // Both are dropped with the connection, which ends the transfer.
            drop(sender);
            let _lines = lines;
            on_disk(fetch).await??;
            return Ok(with_json(&json!({"status": "success"})));
        }
        tokio::spawn(async move {
            if let Err(error) = on_disk(fetch).await.and_then(|fetched| fetched) {
                let _ = sender.send(error.ollama()); // unless the connection has gone
            }
        });
        let lines = UnboundedReceiverStream::new(lines);
        let lines = lines.map(|line| Ok::<_, Infallible>(Bytes::from(format!("{line}\n"))));
        let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
        Ok((headers, Body::from_stream(lines)).into_response())
    };
    in_shape(answer.await)
}

async fn remove(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let answer = async {
        let name = ollama::parse_name(&body)?;
        store(&shared)?;
        let source = shared.models.find(Some(&name)).await?;
        if shared.models.named().iter().any(|named| named.path == source.path) {
            let message = format!("model: '{name}' is one that this server was started for");
            return Err(ApiError::invalid("model", message));
        }
        shared.models.unload(Some(&name)).await?;
        let removed = move || {
            let hub = store(&shared)?;
            hub.remove(&spec(&source.name)).map_err(|error| refused(&error))
        };
        on_disk(removed).await??;
        Ok(axum::http::StatusCode::OK.into_response())
    };
    in_shape(answer.await)
}
