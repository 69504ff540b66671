//! Ollama's routes, for tools that know only its API.
use super::models::mix_name;
use super::{Shared, refusal, with_json};
use crate::error::{ApiError, ErrorKind};
use crate::keep_alive::KeepAlive;
use crate::messages::{Answer, Messages, News};
use crate::models::{Source, Status};
use crate::output::{Delta, Message, Outcome};
use crate::request::{Chat, Reply};
use crate::wire::ollama::{self, Ask, Head};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use hurtle_gguf::{Gguf, Metadata};
use hurtle_text::ChatTemplate;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
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
pub(super) fn in_shape(reply: Result<Response, ApiError>) -> Response {
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
                let name = completion.model.as_deref();
                let (mut head, reply) = (shared.ollama_head(name), completion.reply);
                let model = shared.models.lease(name, request.keep_alive).await?;
                head.load = head.asked.elapsed();
                let (answers, _) = model.complete(completion).await?;
                let messages = Messages::new(answers, None);
                respond(head, messages, reply, Shape::Generate, Vec::new()).await
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

impl Shared {
    async fn ask(
        self: &Arc<Self>,
        mut chat: Chat,
        keep_alive: Option<KeepAlive>,
        shape: Shape,
    ) -> Result<Response, ApiError> {
        let name = chat.model.as_deref();
        let (mut head, reply) = (self.ollama_head(name), chat.reply);
        if chat.messages.is_empty() {
            // Without anything to say, the model is only loaded, or unloaded.
            let unload = keep_alive == Some(KeepAlive::For(Duration::ZERO));
            match unload {
                true => self.models.unload(name).await?,
                false => drop(self.models.lease(name, keep_alive).await?),
            }
            return Ok(with_json(&head.loaded(shape == Shape::Chat, unload)));
        }
        let model = self.models.lease(name, keep_alive).await?;
        head.load = head.asked.elapsed();
        let thinks = chat.template.get("enable_thinking") == Some(&Value::Bool(true));
        if thinks && !model.template.supports_reasoning() {
            let message = format!("think: model '{}' does not support thinking", head.model);
            return Err(ApiError::invalid("think", message));
        }
        // The tokens of both are the context of what may follow.
        let told = shape == Shape::Generate;
        (chat.verbose, chat.generation.tell.ids) = (told, told);
        let (ids, generation, reading) = model.render(chat).await?;
        let context = if told { ids.clone() } else { Vec::new() };
        let messages = model.begin(ids, generation, reading).await?;
        respond(head, messages, reply, shape, context).await
    }

    fn ollama_head(&self, model: Option<&str>) -> Head {
        let model = model.unwrap_or(self.models.first_name()).to_owned();
        Head { model, asked: Instant::now(), load: Duration::ZERO }
    }
}

async fn respond(
    head: Head,
    messages: Messages,
    reply: Reply,
    shape: Shape,
    // The tokens of the prompt, if they are told.
    mut context: Vec<u32>,
) -> Result<Response, ApiError> {
    let line = move |message: &Message, logprobs: &[_], outcome: Option<&Outcome>| {
        let line = match shape {
            Shape::Chat => head.chat(message, outcome),
            Shape::Generate => head.generate(message, outcome),
        };
        ollama::with_logprobs(line, logprobs)
    };
    if !reply.stream {
        let Answer { message, logprobs, written, outcome } = messages.one().await?;
        let mut value = line(&message, &logprobs, Some(&outcome));
        if let Some(written) = written {
            context.extend(written.ids);
            value["context"] = context.into();
        }
        return Ok(with_json(&value));
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
            News::Written(written) => {
                context.extend(written.ids);
                return None;
            }
            News::Timings(_) | News::Progress(_) => return None,
            News::Logprobs(token) => {
                tokens.push(token);
                return None;
            }
            News::Finished(outcome) => {
                let mut last = line(&message, &std::mem::take(&mut tokens), Some(&outcome));
                if !context.is_empty() {
                    last["context"] = std::mem::take(&mut context).into();
                }
                last
            }
            News::Failed(error) => error.ollama(),
        };
        Some(Ok::<_, std::convert::Infallible>(Bytes::from(format!("{value}\n"))))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// A time as Ollama writes it.
fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).unwrap_or_default().to_string()
}

/// What a file says of itself.
fn details(metadata: &Metadata) -> Value {
    let text = |key: &str| metadata.string(key).ok().flatten().unwrap_or_default();
    let family = text("general.architecture");
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": text("general.size_label"),
        "quantization_level": mix_name(metadata),
    })
}

/// The name that stands for a model until its content changes: Ollama's clients compare digests, and a digest
/// of the content would take reading all of it.
fn digest(source: &Source) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let modified = source.path.metadata().and_then(|data| data.modified()).ok();
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, &source.path, source.bytes, modified).hash(&mut hasher);
        hasher.finish()
    };
    (0..4).map(|salt| format!("{:016x}", half(salt))).collect()
}

/// An entry of a list of models; a file that cannot be read has no details.
fn entry(source: &Source) -> Value {
    let modified = source.path.metadata().and_then(|data| data.modified());
    let details = Gguf::open(&source.path).map(|gguf| details(gguf.metadata()));
    json!({
        "name": source.name,
        "model": source.name,
        "modified_at": rfc3339(modified.unwrap_or(SystemTime::UNIX_EPOCH)),
        "size": source.bytes,
        "digest": digest(source),
        "details": details.unwrap_or_else(|_| json!({})),
    })
}

/// Work on files, off the threads that serve connections.
pub(super) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let failed = |_| ApiError::new(ErrorKind::Internal, "reading the models failed");
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

/// The models that flags name, and those that are stored on this machine.
async fn tags(State(shared): State<Arc<Shared>>) -> Response {
    let models = Arc::clone(&shared.models);
    let list = move || {
        let mut sources = models.named().to_vec();
        let stored = models.hub().and_then(|hub| hub.list().ok()).unwrap_or_default();
        for local in stored {
            if !sources.iter().any(|source| source.path == local.path) {
                sources.push(Source::new(local.name, local.path, local.bytes));
            }
        }
        sources.iter().map(entry).collect::<Vec<Value>>()
    };
    let list = on_disk(list).await;
    in_shape(list.map(|models| with_json(&json!({"models": models}))))
}

async fn running(State(shared): State<Arc<Shared>>) -> Response {
    let entry = |status: Status<'_>| {
        let engine = status.loaded.service.engine();
        let source = &status.loaded.source;
        // Forever is a date that is far away, as in Ollama.
        let forever = "2318-12-31T23:59:59Z".to_owned();
        json!({
            "name": source.name,
            "model": source.name,
            "size": status.bytes(),
            "size_vram": 0,
            "digest": digest(source),
            "details": details(engine.gguf().metadata()),
            "expires_at": status.expires.map_or(forever, rfc3339),
            "context_length": engine.ctx_size(),
        })
    };
    with_json(&json!({"models": shared.models.loaded(entry)}))
}

async fn show(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let answer = async {
        let (name, verbose) = ollama::parse_show(&body)?;
        let source = shared.models.find(Some(&name)).await?;
        // A model that is loaded may have been given another template than its file's.
        let of_this = |status: Status<'_>| {
            (status.loaded.source.path == source.path).then(|| status.loaded.template.clone())
        };
        let template = shared.models.loaded(of_this).into_iter().flatten().next();
        on_disk(move || shown(&source, template, verbose)).await?
    };
    in_shape(answer.await)
}

/// What `/api/show` tells of a model, which need not be loaded.
fn shown(
    source: &Source,
    template: Option<ChatTemplate>,
    verbose: bool,
) -> Result<Response, ApiError> {
    let unreadable = |error: &dyn std::fmt::Display| {
        ApiError::new(ErrorKind::Internal, format!("model '{}': {error}", source.name))
    };
    let gguf = Gguf::open(&source.path).map_err(|error| unreadable(&error))?;
    let metadata = gguf.metadata();
    let tok = hurtle_text::Tokenizer::from_metadata(metadata).map_err(|e| unreadable(&e))?;
    let template = match template {
        Some(template) => Some(template),
        None => ChatTemplate::from_metadata(metadata, &tok, None).map_err(|e| unreadable(&e))?,
    };
    let capabilities = hurtle_text::capabilities(metadata, Some(&tok), template.as_ref());
    let mut info = Map::new();
    for (key, value) in metadata.iter() {
        let value = match value {
            hurtle_gguf::Value::String(text) => text.as_str().into(),
            hurtle_gguf::Value::Bool(on) => Value::Bool(*on),
            hurtle_gguf::Value::F32(x) => (*x).into(),
            hurtle_gguf::Value::F64(x) => (*x).into(),
            other => match other.as_integer() {
                Some(n) => i64::try_from(n).map_or_else(|_| json!(n as u64), Value::from),
                // Vocabularies are long: Ollama leaves them out unless asked for, too.
                None if verbose => array(metadata, key),
                None => Value::Null,
            },
        };
        info.insert(key.to_owned(), value);
    }
    Ok(with_json(&json!({
        "modelfile": format!("FROM {}", source.name),
        "parameters": "",
        "license": metadata.string("general.license").ok().flatten().unwrap_or_default(),
        "template": template.as_ref().map_or("", |template| template.source()),
        "details": details(metadata),
        "model_info": info,
        "capabilities": capabilities,
        "modified_at": entry(source)["modified_at"],
    })))
}

/// An array of the file's, if it is one of texts, integers or numbers.
fn array(metadata: &Metadata, key: &str) -> Value {
    if let Ok(Some(texts)) = metadata.strings(key) {
        return texts.iter().map(|text| Value::from(String::from_utf8_lossy(text))).collect();
    }
    if let Ok(Some(ints)) = metadata.ints(key) {
        return json!(ints);
    }
    metadata.floats(key).ok().flatten().map_or(Value::Null, |floats| json!(floats))
}

async fn version() -> Response {
    with_json(&json!({"version": env!("CARGO_PKG_VERSION")}))
}
