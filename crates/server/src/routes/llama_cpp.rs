//! llama.cpp's own routes.
use super::{Shared, broken_off, outcome, with_json};
use crate::error::ApiError;
use crate::fill_in::plain;
use crate::models::Lease;
use crate::output::Outcome;
use crate::request::{Generate, Reply};
use crate::wire::{llama_cpp, openai};
use crate::worker::{Answers, Event};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use tokio_stream::StreamExt as _;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/completion", post(completion))
        .route("/completions", post(completion))
        .route("/infill", post(infill))
        .route("/apply-template", post(apply_template))
        .route("/props", get(props))
}

async fn completion(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let (request, wanted) = llama_cpp::parse_completion(&body, &shared.options.sampler)?;
    let model = shared.model(request.model.as_deref()).await?;
    let (reply, settings) = (request.reply, llama_cpp::settings(&request.generation));
    let (prompts, generation) = model.prompts(request)?;
    let texts = prompts.iter().map(|ids| model.text(ids)).collect();
    let answers = model.submit(prompts, generation).await?;
    respond(Head { model, settings, texts, wanted }, answers, reply).await
}

async fn infill(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let request = llama_cpp::parse_infill(&body, &shared.options.sampler)?;
    let model = shared.model(request.model.as_deref()).await?;
    let settings = llama_cpp::settings(&request.generation);
    let before = plain(model.service.engine().tokenizer(), &request.prefix);
    let ids = model.fill_in("input_prefix", &before, &request.suffix, &request.files)?;
    let texts = vec![model.text(&ids)];
    let answers = model.submit(vec![ids], request.generation).await?;
    respond(Head { model, settings, texts, wanted: request.wanted }, answers, request.reply).await
}

/// What every message about an answer repeats.
struct Head {
    model: Lease,
    settings: Value,
    /// The prompts.
    texts: Vec<String>,
    /// Fields of a whole reply; empty: all.
    wanted: Vec<String>,
}

impl Head {
    fn last(&self, index: usize, content: &str, ids: &[u32], outcome: &Outcome) -> Value {
        let (name, prompt) = (&self.model.source.name, &self.texts[index]);
        llama_cpp::completion(name, index, prompt, content, ids, &self.settings, outcome)
    }
}

async fn respond(head: Head, mut answers: Answers, reply: Reply) -> Result<Response, ApiError> {
    if reply.stream {
        let mut broken = vec![false; head.texts.len()];
        let mut tokens = vec![Vec::new(); head.texts.len()];
        let mut ids = vec![Vec::new(); head.texts.len()];
        let events = answers.filter_map(move |(index, event)| {
            let mut data = match event {
                Event::Logprobs(token) => {
                    tokens[index].push(token);
                    return None;
                }
                Event::Id(id) => {
                    ids[index].push(id);
                    return None;
                }
                Event::Text(text) => {
                    broken[index] |= text.contains('\n');
                    llama_cpp::completion_chunk(index, &text, &std::mem::take(&mut ids[index]))
                }
                Event::Finished(finished) => match broken_off(&finished) {
                    Some(error) => error.openai(),
                    None => {
                        let mut last = head.last(index, "", &ids[index], &outcome(finished));
                        last["has_new_line"] = broken[index].into();
                        last
                    }
                },
                Event::Failed(error) => error.openai(),
            };
            let tokens = std::mem::take(&mut tokens[index]);
            if !tokens.is_empty() {
                data["completion_probabilities"] = llama_cpp::probabilities(&tokens);
            }
            Some(Ok::<_, std::convert::Infallible>(Bytes::from(format!("data: {data}\n\n"))))
        });
        let headers =
            [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        return Ok((headers, Body::from_stream(events)).into_response());
    }
    let mut texts = vec![String::new(); head.texts.len()];
    let mut values = vec![Value::Null; head.texts.len()];
    let mut tokens = vec![Vec::new(); head.texts.len()];
    let mut ids = vec![Vec::new(); head.texts.len()];
    while let Some((index, event)) = answers.next().await {
        match event {
            Event::Text(text) => texts[index] += &text,
            Event::Logprobs(token) => tokens[index].push(token),
            Event::Id(id) => ids[index].push(id),
            Event::Finished(finished) => match broken_off(&finished) {
                Some(error) => return Err(error),
                None => {
                    let (text, outcome) = (&texts[index], outcome(finished));
                    values[index] = head.last(index, text, &ids[index], &outcome);
                    if !tokens[index].is_empty() {
                        let tokens = llama_cpp::probabilities(&tokens[index]);
                        values[index]["completion_probabilities"] = tokens;
                    }
                    values[index] = llama_cpp::only(values[index].take(), &head.wanted);
                }
            },
            Event::Failed(error) => return Err(error),
        }
    }
    // As many replies as there were prompts.
    Ok(with_json(&match <[Value; 1]>::try_from(values) {
        Ok([value]) => value,
        Err(values) => values.into(),
    }))
}

async fn apply_template(
    State(shared): State<Arc<Shared>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let request = openai::parse_chat(&body, &shared.options.sampler)?;
    let model = shared.model(request.model.as_deref()).await?;
    let prompt = model.render_text(request).await?;
    Ok(with_json(&json!({"prompt": prompt})))
}

async fn props(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<HashMap<String, String>>, QueryRejection>,
) -> Result<Response, ApiError> {
    let query = query.map_err(|error| ApiError::invalid("model", error.body_text()))?;
    let model = shared.model(query.get("model").map(String::as_str)).await?;
    let engine = model.service.engine();
    let tok = engine.tokenizer();
    let text = |id: Option<u32>| id.and_then(|id| tok.token_text(id)).unwrap_or_default();
    let mut generate = Generate::default();
    generate.params.sampler.clone_from(&shared.options.sampler);
    let settings = llama_cpp::settings(&generate);
    Ok(with_json(&json!({
        "default_generation_settings": {"n_ctx": engine.ctx_size(), "params": settings},
        "total_slots": shared.options.service.max_sequences,
        "model_alias": model.source.name,
        "model_path": model.source.path.display().to_string(),
        "modalities": {"vision": false, "audio": false},
        "chat_template": model.template.source(),
        "bos_token": text(tok.bos()),
        "eos_token": text(tok.eos()),
        "build_info": concat!("hurtle-", env!("CARGO_PKG_VERSION")),
    })))
}
