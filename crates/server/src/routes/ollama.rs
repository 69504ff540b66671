//! Ollama's routes, for tools that know only its API. The model that is served is the only one, and stays
//! loaded as long as the server runs.
use super::{Shared, refusal, with_json};
use crate::error::{ApiError, ErrorKind};
use crate::messages::{Answer, Messages, News};
use crate::output::{Delta, Message, Outcome};
use crate::request::{Chat, Reply};
use crate::wire::ollama::{self, Ask, Head, KeepAlive};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::StreamExt as _;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/api/chat", post(chat))
        .route("/api/generate", post(generate))
        .route("/api/tags", get(tags))
        .route("/api/ps", get(running))
        .route("/api/show", post(show))
        .route("/api/version", get(version))
}

/// An error in the shape that Ollama's clients read.
fn in_shape(reply: Result<Response, ApiError>) -> Response {
    reply.unwrap_or_else(|error| refusal(&error, &error.ollama()))
}

async fn chat(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let answer = async {
        let request = ollama::parse_chat(&body, &shared.options.sampler)?;
        shared.ask(request.chat, request.keep_alive, Shape::Chat).await
    };
    in_shape(answer.await)
}

async fn generate(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let answer = async {
        let request = ollama::parse_generate(&body, &shared.options.sampler)?;
        match request.ask {
            Ask::Chat(chat) => shared.ask(chat, request.keep_alive, Shape::Generate).await,
            Ask::Completion(completion) => {
                check_keep_alive(request.keep_alive)?;
                let (head, reply) =
                    (shared.ollama_head(completion.model.as_deref()), completion.reply);
                let (answers, _) = shared.complete(completion).await?;
                respond(head, Messages::new(answers, None), reply, Shape::Generate).await
            }
        }
    };
    in_shape(answer.await)
}

/// How an answer is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Chat,
    Generate,
}

fn check_keep_alive(keep_alive: Option<KeepAlive>) -> Result<(), ApiError> {
    if keep_alive == Some(KeepAlive::For(Duration::ZERO)) {
        let message = "keep_alive: the model stays loaded as long as the server runs";
        return Err(ApiError::invalid("keep_alive", message));
    }
    Ok(())
}

impl Shared {
    async fn ask(
        self: &Arc<Self>,
        chat: Chat,
        keep_alive: Option<KeepAlive>,
        shape: Shape,
    ) -> Result<Response, ApiError> {
        check_keep_alive(keep_alive)?;
        let (head, reply) = (self.ollama_head(chat.model.as_deref()), chat.reply);
        if chat.messages.is_empty() {
            self.check_model(chat.model.as_deref())?;
            return Ok(with_json(&head.loaded(shape == Shape::Chat, false)));
        }
        let (messages, _) = self.converse(chat).await?;
        respond(head, messages, reply, shape).await
    }

    fn ollama_head(&self, model: Option<&str>) -> Head {
        let model = model.unwrap_or(&self.options.model).to_owned();
        Head { model, created_at: jiff::Timestamp::now().to_string() }
    }

    /// What the lists of models tell of the one that is served.
    fn ollama_model(&self) -> Value {
        let model = self.service.engine().model();
        let family = model.spec().name;
        json!({
            "name": self.options.model,
            "model": self.options.model,
            "details": {"format": "gguf", "family": family, "families": [family]},
        })
    }
}

async fn respond(
    head: Head,
    messages: Messages,
    reply: Reply,
    shape: Shape,
) -> Result<Response, ApiError> {
    let line = move |message: &Message, logprobs: &[_], outcome: Option<&Outcome>| {
        let line = match shape {
            Shape::Chat => head.chat(message, outcome),
            Shape::Generate => head.generate(message, outcome),
        };
        ollama::with_logprobs(line, logprobs)
    };
    if !reply.stream {
        let Answer { message, logprobs, outcome } = messages.one().await?;
        return Ok(with_json(&line(&message, &logprobs, Some(&outcome))));
    }
    // A call comes in one piece, and log-probabilities with what their tokens say.
    let (mut call, mut tokens) = (Message::default(), Vec::new());
    let lines = messages.filter_map(move |(_, news)| {
        let mut message = Message::default();
        let value = match news {
            News::Delta(delta @ (Delta::Content(_) | Delta::Reasoning(_))) => {
                message.push(&delta);
                line(&message, &std::mem::take(&mut tokens), None)
            }
            News::Delta(Delta::ToolCallEnd { .. }) => {
                line(&std::mem::take(&mut call), &std::mem::take(&mut tokens), None)
            }
            News::Delta(Delta::ToolCallArguments { text, .. }) => {
                call.push(&Delta::ToolCallArguments { index: 0, text });
                return None;
            }
            News::Delta(begin @ Delta::ToolCallBegin { .. }) => {
                call.push(&begin);
                return None;
            }
            News::Logprobs(token) => {
                tokens.push(token);
                return None;
            }
            News::Finished(outcome) => line(&message, &std::mem::take(&mut tokens), Some(&outcome)),
            News::Failed(error) => error.ollama(),
        };
        Some(Ok::<_, std::convert::Infallible>(Bytes::from(format!("{value}\n"))))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

async fn tags(State(shared): State<Arc<Shared>>) -> Response {
    with_json(&json!({"models": [shared.ollama_model()]}))
}

async fn running(State(shared): State<Arc<Shared>>) -> Response {
    let mut model = shared.ollama_model();
    model["context_length"] = shared.service.engine().ctx_size().into();
    with_json(&json!({"models": [model]}))
}

async fn show(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let answer = || {
        let request: Value = serde_json::from_slice(&body)
            .map_err(|error| ApiError::new(ErrorKind::Invalid, format!("the body: {error}")))?;
        let name = request["model"].as_str().or(request["name"].as_str());
        let name = name.ok_or_else(|| ApiError::invalid("model", "model: a name is missing"))?;
        shared.check_model(Some(name))?;
        let model = shared.service.engine().model();
        let hparams = model.hparams();
        let family = model.spec().name;
        Ok(with_json(&json!({
            "details": shared.ollama_model()["details"],
            "template": shared.template.source(),
            "capabilities": capabilities(&shared),
            "model_info": {
                "general.architecture": family,
                (format!("{family}.context_length")): hparams.n_ctx_train,
                (format!("{family}.embedding_length")): hparams.n_embd,
            },
        })))
    };
    in_shape(answer())
}

async fn version() -> Response {
    with_json(&json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// What programs that know only Ollama look at before they offer tools or show reasoning.
fn capabilities(shared: &Shared) -> Vec<&'static str> {
    let (template, mut capabilities) = (&shared.template, vec!["completion"]);
    capabilities.extend(template.supports_tools().then_some("tools"));
    capabilities.extend(template.supports_reasoning().then_some("thinking"));
    capabilities
}
