//! llama.cpp's own routes.
use super::models::mix_name;
use super::{BUILD, Shared, broken_off, outcome, server_sent, with_json};
use crate::error::ApiError;
use crate::fill_in::plain;
use crate::models::Lease;
use crate::output::{Logprobs, Outcome, Usage};
use crate::request::{Generate, Reply};
use crate::wire::{llama_cpp, openai};
use crate::worker::{Answers, Event};
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use hurtle_engine::Timings;
use hurtle_engine::sampler::Distribution;
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
        .route("/lora-adapters", get(adapters))
        .route("/lora-adapters", post(set_adapters))
}

async fn completion(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let (request, wanted) = llama_cpp::parse_completion(&body, &shared.options.sampler)?;
    let model = shared.model(request.model.as_deref()).await?;
    let reply = request.reply;
    let (prompts, generation) = model.prompts(request)?;
    let head = Head::new(model.clone(), &prompts, &generation, reply.stream, wanted);
    respond(head, model.submit(prompts, generation).await?, reply).await
}

async fn infill(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let request = llama_cpp::parse_infill(&body, &shared.options.sampler)?;
    let model = shared.model(request.model.as_deref()).await?;
    let before = plain(model.service.engine().tokenizer(), &request.prefix);
    let ids = model.fill_in("input_prefix", &before, &request.suffix, &request.files)?;
    let prompts = vec![ids];
    let llama_cpp::Infill { generation, reply, wanted, .. } = request;
    let head = Head::new(model.clone(), &prompts, &generation, reply.stream, wanted);
    respond(head, model.submit(prompts, generation).await?, reply).await
}

/// What every message about an answer repeats.
pub(super) struct Head {
    model: Lease,
    settings: Value,
    /// The prompt of each answer, and how many tokens it has.
    prompts: Vec<(String, usize)>,
    /// What probabilities are told of.
    distribution: Distribution,
    /// The slot that was asked for.
    slot: Option<usize>,
    /// Fields of a whole reply; empty: all.
    wanted: Vec<String>,
}

/// What a stream has not told yet of an answer, and what it has.
#[derive(Clone, Default)]
struct Streamed {
    tokens: Vec<Logprobs>,
    ids: Vec<u32>,
    timings: Option<Timings>,
    n_generated: usize,
    has_new_line: bool,
}

impl Head {
    pub(super) fn new(
        model: Lease,
        prompts: &[Vec<u32>],
        generate: &Generate,
        stream: bool,
        wanted: Vec<String>,
    ) -> Self {
        let mut biases = model.biases(generate);
        if generate.params.sampler.ignore_eos {
            // JSON's null is what is infinitely small.
            let ends = model.service.engine().tokenizer().end_of_generation().iter();
            biases.extend(ends.map(|&id| (id, f32::NEG_INFINITY)));
        }
        let settings = llama_cpp::settings(generate, &biases, stream);
        let told = prompts.iter().map(|ids| (model.text(ids), ids.len()));
        let prompts = told.flat_map(|told| std::iter::repeat_n(told, generate.n)).collect();
        let Generate { distribution, slot, .. } = *generate;
        Self { model, settings, prompts, distribution, slot, wanted }
    }

    pub(super) fn last(
        &self,
        index: usize,
        content: &str,
        ids: &[u32],
        outcome: &Outcome,
    ) -> Value {
        let (name, prompt) = (&self.model.source.name, &self.prompts[index].0);
        llama_cpp::completion(name, index, prompt, content, ids, &self.settings, outcome)
    }

    /// A message of a stream.
    fn chunk(&self, index: usize, text: &str, streamed: &mut Streamed) -> Value {
        let ids = std::mem::take(&mut streamed.ids);
        streamed.n_generated += ids.len();
        let (prompt, generated) = (self.prompts[index].1, streamed.n_generated);
        let usage = Usage { prompt, generated, ..Usage::default() };
        let mut chunk = llama_cpp::completion_chunk(index, text, &ids, self.slot, usage);
        if let Some(timings) = &streamed.timings {
            chunk["timings"] = llama_cpp::timings(timings);
        }
        chunk
    }
}

/// Server-sent events, encoded as the pieces come.
fn stream(head: Head, answers: Answers) -> Response {
    let mut all = vec![Streamed::default(); head.prompts.len()];
    server_sent(answers.filter_map(move |(index, event)| {
        let streamed = &mut all[index];
        let mut data = match event {
            Event::Logprobs(token) => {
                streamed.tokens.push(token);
                return None;
            }
            Event::Id(id) => {
                streamed.ids.push(id);
                return None;
            }
            Event::Timings(timings) => {
                streamed.timings = Some(timings);
                return None;
            }
            Event::Progress(progress) => {
                let mut chunk = head.chunk(index, "", streamed);
                chunk["prompt_progress"] = llama_cpp::progress(progress);
                chunk
            }
            Event::Text(text) => {
                streamed.has_new_line |= text.contains('\n');
                head.chunk(index, &text, streamed)
            }
            Event::Finished(finished) => match broken_off(&finished) {
                Some(error) => error.openai(),
                None => {
                    let mut last = head.last(index, "", &streamed.ids, &outcome(finished));
                    last["has_new_line"] = streamed.has_new_line.into();
                    last
                }
            },
            Event::Failed(error) => error.openai(),
        };
        let tokens = std::mem::take(&mut streamed.tokens);
        if !tokens.is_empty() {
            data["completion_probabilities"] = llama_cpp::probabilities(&tokens, head.distribution);
        }
        Some(Ok(Bytes::from(format!("data: {data}\n\n"))))
    }))
}

async fn respond(head: Head, mut answers: Answers, reply: Reply) -> Result<Response, ApiError> {
    if reply.stream {
        return Ok(stream(head, answers));
    }
    let n = head.prompts.len();
    let mut texts = vec![String::new(); n];
    let mut values = vec![Value::Null; n];
    let mut tokens = vec![Vec::new(); n];
    let mut ids = vec![Vec::new(); n];
    while let Some((index, event)) = answers.next().await {
        match event {
            Event::Text(text) => texts[index] += &text,
            Event::Logprobs(token) => tokens[index].push(token),
            Event::Id(id) => ids[index].push(id),
            Event::Timings(_) | Event::Progress(_) => {}
            Event::Finished(finished) => match broken_off(&finished) {
                Some(error) => return Err(error),
                None => {
                    let (text, outcome) = (&texts[index], outcome(finished));
                    values[index] = head.last(index, text, &ids[index], &outcome);
                    if !tokens[index].is_empty() {
                        let tokens = llama_cpp::probabilities(&tokens[index], head.distribution);
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

/// None: adapters are not supported.
async fn adapters() -> Response {
    with_json(&json!([]))
}

async fn set_adapters(body: Bytes) -> Result<Response, ApiError> {
    llama_cpp::parse_adapters(&body)?;
    Ok(with_json(&json!({"success": true})))
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
    let biases = &shared.options.sampler.logit_bias;
    let settings = llama_cpp::settings(&generate, biases, false);
    Ok(with_json(&json!({
        "default_generation_settings": {"n_ctx": engine.ctx_size(), "params": settings},
        "total_slots": shared.options.service.max_sequences,
        "model_alias": model.source.name,
        "model_path": model.source.path.display().to_string(),
        "modalities": {"vision": false, "audio": false, "video": false},
        "chat_template": model.template.source(),
        "bos_token": text(tok.bos()),
        "eos_token": text(tok.eos()),
        "build_info": BUILD,
        "model_ftype": mix_name(engine.gguf().metadata()),
        "chat_template_caps": {
            "supports_system_role": model.template.supports_system_role(),
            "supports_tools": model.template.supports_tools(),
            "supports_tool_calls": model.template.supports_tools(),
        },
        "endpoint_slots": true,
        "endpoint_metrics": true,
        "endpoint_props": false,
        "ui": true,
        "is_sleeping": false,
    })))
}
