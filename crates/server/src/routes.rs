//! The routes, and what holds for all of them.
mod anthropic;
mod chat;
mod embeddings;
mod llama_cpp;
mod models;
mod ollama;
mod page;
mod pull;
mod responses;
mod slots;

use crate::ServerOptions;
use crate::connections::ReadTimeout;
use crate::error::{ApiError, ErrorKind};
use crate::fill_in;
use crate::messages::{Messages, Reading};
use crate::models::{Lease, Models};
use crate::observe::{self, Times};
use crate::output::{FinishReason, Logprobs, Outcome, Usage};
use crate::request::{Budget, Chat, Completion, Generate, Part, Prompt, Reply, ToolChoice};
use crate::wire::openai::Head;
use crate::wire::{self, SSE_DONE, openai};
use crate::worker::{self, Answers, Event};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hurtle_engine::constraint::{ConstraintError, Grammar, GrammarConstraint, prepare_schema};
use hurtle_engine::{BATCH_SIZES, Finished, ReasoningBudget, Service, StopReason};
use hurtle_text::{
    AnswerFormat, Begun, Encode, ForcedAnswer, Opening, ReadAnswer, Reasoning, RenderInput,
    TemplateError, Tokenizer,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;
use tokio_stream::{Stream, StreamExt as _};
use tower_http::catch_panic::CatchPanicLayer;

/// Which program answers; begins as llama.cpp's own name for its builds does.
const BUILD: &str = concat!("build-hurtle-", env!("CARGO_PKG_VERSION"));

/// What the routes share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) models: Arc<Models>,
    pub(crate) options: ServerOptions,
    /// Seconds since 1970 when the server started.
    pub(crate) started: u64,
    /// Requests so far, for the ids of their answers.
    pub(crate) n_requests: AtomicU64,
    pub(crate) times: Arc<Times>,
}

impl Shared {
    pub(crate) fn new(models: Models, options: ServerOptions) -> Self {
        let (models, started) = (Arc::new(models), now());
        Self { models, options, started, n_requests: AtomicU64::new(0), times: Arc::default() }
    }

    /// The model that a request names, or the one that stands in for it.
    pub(crate) async fn model(&self, name: Option<&str>) -> Result<Lease, ApiError> {
        match self.models.lease(name, None).await {
            Err(error) if error.is_no_model() && self.models.stands_in_for(name) => {
                self.models.lease(None, None).await
            }
            other => other,
        }
    }
}

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let limit = DefaultBodyLimit::max(shared.options.max_body);
    let keyed = Router::new()
        .route("/v1/completions", post(completions))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/metrics", get(metrics))
        .merge(models::routes())
        .merge(ollama::routes())
        .merge(anthropic::routes())
        .merge(chat::routes())
        .merge(responses::routes())
        .merge(slots::routes())
        .merge(pull::routes())
        .merge(llama_cpp::routes())
        .merge(embeddings::routes())
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), check_key));
    Router::new()
        .route("/health", get(health))
        .route("/v1/health", get(health))
        .merge(page::routes())
        .merge(keyed)
        .route("/openapi.json", get(openapi))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(limit)
        .layer(CatchPanicLayer::custom(|_| {
            ApiError::new(ErrorKind::Internal, "the server failed on this request").into_response()
        }))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), admit))
        .layer(tower::util::option_layer(shared.options.origins.layer()))
        .with_state(shared)
}

/// Records a request, and refuses it if it comes from a web page that is not let in, or does not come.
async fn admit(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let times = Arc::clone(&shared.times);
    let ServerOptions { hosts, origins, read_timeout, .. } = &shared.options;
    let serve =
        async |request: Request| match hosts.check(&request).and_then(|()| origins.check(&request))
        {
            Ok(()) => {
                let run = async |request| next.run(request).await;
                ReadTimeout(*read_timeout).serve(request, run).await
            }
            Err(error) => error.into_response(),
        };
    observe::observe(times, request, serve).await
}

/// What there is, for programs and for pages that show such descriptions.
async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

/// `tests/it/openapi.rs` compares it with the routes.
const OPENAPI: &str = include_str!("../openapi.json");

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        refusal(&self, &self.openai())
    }
}

/// The response of an error, with the body that an API gives it.
fn refusal(error: &ApiError, body: &Value) -> Response {
    let mut response = with_json(body);
    *response.status_mut() =
        StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if matches!(error.kind, ErrorKind::QueueFull | ErrorKind::Unavailable) {
        response.headers_mut().insert(header::RETRY_AFTER, 1.into());
    }
    response
}

fn with_json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// Compares in constant time, so that how long a refusal takes tells nothing of the key.
async fn check_key(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let keys = &shared.options.api_keys;
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let given = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()));
    let matches = |key: &String| given.is_some_and(|given| bool::from(key.as_bytes().ct_eq(given)));
    // Every key is compared, whichever matches.
    let known = keys.iter().fold(false, |known, key| known | matches(key));
    if keys.is_empty() || known {
        next.run(request).await
    } else {
        let error = ApiError::new(ErrorKind::Unauthorized, "the API key is missing or wrong");
        refused_at(request.uri().path(), &error)
    }
}

async fn nothing_here(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("there is nothing at {method} {path}");
    refused_at(path, &ApiError::new(ErrorKind::NotFound, message))
}

async fn wrong_method(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("{path} does not take {method}");
    refused_at(path, &ApiError::new(ErrorKind::WrongMethod, message))
}

/// The response of an error that no route gives, in the shape of the API whose path it is.
fn refused_at(path: &str, error: &ApiError) -> Response {
    let below = |root: &str| {
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let body = match () {
        () if below("/api") => error.ollama(),
        () if below("/v1/messages") => error.anthropic(),
        () => error.openai(),
    };
    refusal(error, &body)
}

async fn health(State(shared): State<Arc<Shared>>) -> Result<Response, ApiError> {
    match shared.models.is_open() {
        true => Ok(with_json(&json!({"status": "ok"}))),
        false => Err(ApiError::new(ErrorKind::Unavailable, "the server is shutting down")),
    }
}

/// What the engine does, in Prometheus' text format, under llama.cpp's names where it has them.
async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let stats = shared.models.stats();
    let counter = |name, help, value: u64| (name, "counter", help, value as f64);
    let gauge = |name, help, value: f64| (name, "gauge", help, value);
    let seconds = |name, help, time: Duration| (name, "counter", help, time.as_secs_f64());
    let rate =
        |n: u64, time: Duration| if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() };
    let used = stats.kv_bytes as f64 / stats.kv_budget.max(1) as f64;
    let metrics = [
        counter(
            "prompt_tokens_total",
            "Tokens processed of prompts and of texts for vectors and scores.",
            stats.prompt_tokens + shared.times.embedded(),
        ),
        counter(
            "prompt_tokens_cached_total",
            "Prompt tokens found in the cache.",
            stats.cached_tokens,
        ),
        seconds(
            "prompt_seconds_total",
            "Time that prompts of ended answers took.",
            stats.prompt_time,
        ),
        counter("tokens_predicted_total", "Tokens generated.", stats.generated_tokens),
        seconds(
            "tokens_predicted_seconds_total",
            "Time that ended answers took behind their prompts.",
            stats.generation_time,
        ),
        counter("n_decode_total", "Forward passes.", stats.batches),
        counter("batch_tokens_total", "Tokens in all forward passes.", stats.batch_tokens),
        counter("n_tokens_max", "Tokens of the longest sequence so far.", stats.longest as u64),
        gauge(
            "n_busy_slots_per_decode",
            "Sequences in a forward pass, on average.",
            stats.batch_sequences as f64 / stats.batches.max(1) as f64,
        ),
        counter("prefix_lookups_total", "Prompts looked up in the cache.", stats.prefix_lookups),
        counter("prefix_hits_total", "Prompts of which the cache held a part.", stats.prefix_hits),
        counter("preemptions_total", "Sequences that gave up their memory.", stats.preemptions),
        gauge(
            "prompt_tokens_seconds",
            "Prompt tokens a second, of ended answers.",
            rate(stats.timed_prompt_tokens, stats.prompt_time),
        ),
        gauge(
            "predicted_tokens_seconds",
            "Tokens a second, of ended answers.",
            rate(stats.timed_tokens, stats.generation_time),
        ),
        gauge("requests_processing", "Answers being written.", stats.slots.len() as f64),
        gauge("requests_deferred", "Requests that wait.", stats.waiting as f64),
        gauge("kv_cache_usage_ratio", "Part of the memory for keys and values in use.", used),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in metrics {
        text += &format!("# HELP llamacpp:{name} {help}\n# TYPE llamacpp:{name} {kind}\n");
        text += &format!("llamacpp:{name} {value}\n");
    }
    let (name, help) = ("batch_size_tokens", "Tokens in a forward pass.");
    let bounds = BATCH_SIZES.iter().map(|&n| n as f64);
    let sum = stats.batch_tokens as f64;
    observe::write_histogram(&mut text, name, help, bounds, &stats.batch_sizes, sum);
    shared.times.write(&mut text);
    text += "# HELP hurtle:model_bytes Weights, keys and values of a loaded model.\n# TYPE hurtle:model_bytes gauge\n";
    for line in shared.models.loaded(|status| {
        // A name may hold anything; in JSON it is quoted as it has to be here.
        let name = json!(status.loaded.source.name);
        format!("hurtle:model_bytes{{model={name}}} {}\n", status.bytes())
    }) {
        text += &line;
    }
    let mut response =
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response();
    response.headers_mut().insert("process-start-time-unix", shared.started.into());
    response
}

async fn tokenize(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let request = wire::llama_cpp::parse_tokenize(&body)?;
    let model = shared.model(request.model.as_deref()).await?;
    let tok = model.service.engine().tokenizer();
    let how = Encode { add_special: request.add_special, parse_special: request.parse_special };
    let ids = tok.encode(&request.content, how);
    let tokens: Value = match request.with_pieces {
        false => json!(ids),
        true => ids.iter().map(|&id| json!({"id": id, "piece": piece(tok, id)})).collect(),
    };
    Ok(with_json(&json!({"tokens": tokens})))
}

/// The text of a token; its bytes, where it is a part of a character.
fn piece(tok: &Tokenizer, id: u32) -> Value {
    match String::from_utf8(tok.token_bytes(id, true)) {
        Ok(text) => text.into(),
        Err(error) => error.into_bytes().into(),
    }
}

async fn detokenize(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let (ids, name) = wire::llama_cpp::parse_detokenize(&body)?;
    let model = shared.model(name.as_deref()).await?;
    model.check_ids("tokens", &ids)?;
    Ok(with_json(&json!({"content": model.text(&ids)})))
}

async fn completions(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let request = openai::parse_completion(&body, &shared.options.sampler)?;
    let model = shared.model(request.model.as_deref()).await?;
    let how = request.reply;
    let (events, n_prompt) = model.complete(request).await?;
    reply(shared.head(&model, "cmpl"), events, n_prompt, how).await
}

impl Lease {
    /// Begins to continue texts; also tells the tokens of each.
    async fn complete(&self, request: Completion) -> Result<(Answers, Vec<usize>), ApiError> {
        let (prompts, generation) = self.prompts(request)?;
        let n_prompt = prompts.iter().map(Vec::len).collect();
        Ok((self.submit(prompts, generation).await?, n_prompt))
    }

    /// The tokens of texts to continue, or of gaps to fill in, and how.
    fn prompts(&self, request: Completion) -> Result<(Vec<Vec<u32>>, Generate), ApiError> {
        self.check_writes()?;
        if request.suffix.is_some() && request.generation.echo {
            return Err(ApiError::invalid("echo", "echo: only one of echo and suffix can hold"));
        }
        let tok = self.service.engine().tokenizer();
        let mut prompts = Vec::new();
        for prompt in request.prompts {
            let encode = |text: &str, first| match &request.suffix {
                Some(_) => fill_in::plain(tok, text),
                None => tok.encode(text, Encode { add_special: first, parse_special: true }),
            };
            let ids = self.prompt_ids("prompt", prompt, encode)?;
            prompts.push(match &request.suffix {
                Some(suffix) => self.fill_in("suffix", &ids, suffix, &[])?,
                None => ids,
            });
        }
        Ok((prompts, request.generation))
    }

    /// The tokens of a prompt whose texts `encode` gives, the text at the beginning as such.
    pub(crate) fn prompt_ids(
        &self,
        param: &str,
        prompt: Prompt,
        encode: impl Fn(&str, bool) -> Vec<u32>,
    ) -> Result<Vec<u32>, ApiError> {
        let parts = match prompt {
            Prompt::Text(text) => return Ok(encode(&text, true)),
            Prompt::Ids(ids) => vec![Part::Ids(ids)],
            Prompt::Mixed(parts) => parts,
        };
        let mut all = Vec::new();
        for (i, part) in parts.into_iter().enumerate() {
            all.extend(match part {
                Part::Text(text) => encode(&text, i == 0),
                Part::Ids(ids) => {
                    self.check_ids(param, &ids)?;
                    ids
                }
            });
        }
        Ok(all)
    }

    /// The text of tokens, control tokens included.
    fn text(&self, ids: &[u32]) -> String {
        let mut decoder = hurtle_text::StreamDecoder::new(self.service.engine().tokenizer(), true);
        let mut text = String::new();
        ids.iter().for_each(|&id| decoder.push(id, &mut text));
        text.push_str(&decoder.finish());
        text
    }

    /// Begins to answer a conversation; also tells the tokens of its prompt.
    async fn converse(&self, request: Chat) -> Result<(Messages, usize), ApiError> {
        let (ids, generation, reading) = self.render(request).await?;
        let n_prompt = ids.len();
        Ok((self.begin(ids, generation, reading).await?, n_prompt))
    }

    /// Begins to answer a conversation of which this is the prompt.
    async fn begin(
        &self,
        ids: Vec<u32>,
        mut generation: Generate,
        mut reading: Reading,
    ) -> Result<Messages, ApiError> {
        let (tok, tools) = (self.service.engine().tokenizer(), !reading.how.tools.is_empty());
        generation.params.shown = reading.format.special_tokens(tok, tools);
        let stop = &mut generation.params.stop;
        let call_end = reading.format.closes_call().filter(|_| tools && reading.how.single_call);
        if let Some(end) = call_end.filter(|end| !stop.iter().any(|text| text == end)) {
            stop.push(end.to_owned());
            reading.call_end = Some(end.to_owned());
        }
        let answers = self.submit(vec![ids], generation).await?;
        Ok(Messages::new(answers, Some(reading)))
    }

    /// The prompt of a conversation, how it is to be answered, and how the answer is to be read.
    async fn render(&self, mut request: Chat) -> Result<(Vec<u32>, Generate, Reading), ApiError> {
        self.check_writes()?;
        let before = std::mem::take(&mut request.before);
        self.check_ids("context", &before)?;
        let input = render_input(&mut request);
        let model = self.clone();
        let render = move || {
            let tok = model.service.engine().tokenizer();
            let input = model.begun(input, request.continues)?;
            let prompt = model.template.prompt(tok, &input, false).map_err(cannot_render)?;
            let format = model.template.answer_format();
            let single_call = !request.parallel_tool_calls;
            let thinking = prompt.reasoning == Reasoning::Opened;
            let how = ReadAnswer { thinking, tools: request.tools, single_call };
            let mut generation = request.generation;
            let calls = force_call(tok, &format, &how, &request.tool_choice, &mut generation)?;
            generation.opening = match calls {
                true => format.opening_of_calls(prompt.reasoning),
                false => format.opening(prompt.reasoning),
            };
            if let Some(budget) = request.budget {
                generation.params.reasoning_budget =
                    reasoning_budget(tok, &format, prompt.reasoning, budget)?;
            }
            let Chat { reasoning, unread_calls, verbose, .. } = request;
            let reading = Reading { format, how, reasoning, unread_calls, verbose, call_end: None };
            let mut ids = before;
            // A text begins once.
            let begins = !ids.is_empty() && prompt.ids.first().copied() == tok.bos();
            ids.extend(prompt.ids.into_iter().skip(usize::from(begins)));
            Ok((ids, generation, reading))
        };
        rendered(render).await
    }

    /// The prompt of a conversation as a text.
    async fn render_text(&self, mut request: Chat) -> Result<String, ApiError> {
        let input = render_input(&mut request);
        let model = self.clone();
        let render = move || {
            let input = model.template.adapt(&model.begun(input, request.continues)?);
            model.template.render(&input).map_err(cannot_render)
        };
        rendered(render).await
    }

    /// The input with its last message as the beginning of the answer, if it is one.
    fn begun(
        &self,
        mut input: RenderInput,
        continues: Option<bool>,
    ) -> Result<RenderInput, ApiError> {
        let is_open =
            |last: &&Value| last["role"] == "assistant" && last.get("tool_calls").is_none();
        let Some(last) = input.messages.last().filter(is_open) else { return Ok(input) };
        match (continues, self.template.answer_format().can_be_begun()) {
            (Some(false), _) | (None, false) => return Ok(input),
            // Templates need something to answer to.
            (None, true) if input.messages.len() == 1 => return Ok(input),
            (Some(true), false) => {
                let param = "continue_final_message";
                let message =
                    format!("{param}: answers of model '{}' cannot be begun", self.source.name);
                return Err(ApiError::invalid(param, message));
            }
            (None | Some(true), true) => {}
        }
        let text = |key: &str| last[key].as_str().unwrap_or_default().to_owned();
        input.begun =
            Some(Begun { reasoning: text("reasoning_content"), content: text("content") });
        input.messages.pop();
        Ok(input)
    }

    pub(crate) fn check_ids(&self, param: &str, ids: &[u32]) -> Result<(), ApiError> {
        let n_tokens = self.service.engine().tokenizer().n_tokens();
        match ids.iter().find(|&&id| id as usize >= n_tokens) {
            None => Ok(()),
            Some(id) => Err(ApiError::invalid(
                param,
                format!("{param}: expected token ids below {n_tokens}, found {id}"),
            )),
        }
    }

    /// Refuses to have a text written by a model that is made for vectors.
    fn check_writes(&self) -> Result<(), ApiError> {
        if self.service.engine().is_embedding_model() {
            let message = format!(
                "model '{}' makes embeddings or scores, and does not write text\nhint: ask /v1/embeddings or /v1/rerank",
                self.source.name
            );
            return Err(ApiError::invalid("model", message));
        }
        Ok(())
    }

    /// The biases of tokens, those of texts included.
    fn biases(&self, generate: &Generate) -> Vec<(u32, f32)> {
        let tok = self.service.engine().tokenizer();
        let of_text = |(text, bias): &(String, f32)| {
            let bias = *bias;
            fill_in::plain(tok, text).into_iter().map(move |id| (id, bias))
        };
        let of_texts = generate.text_bias.iter().flat_map(of_text);
        generate.params.sampler.logit_bias.iter().copied().chain(of_texts).collect()
    }

    /// Queues `n` answers to each prompt, with seeds one after another.
    async fn submit(
        &self,
        prompts: Vec<Vec<u32>>,
        generate: Generate,
    ) -> Result<Answers, ApiError> {
        let engine = self.service.engine();
        let n_ctx = generate.n_ctx.map_or(engine.ctx_size(), |n| n.min(engine.ctx_size()));
        let biases = self.biases(&generate);
        let mut params = generate.params;
        params.sampler.logit_bias = biases;
        let n_tokens = engine.tokenizer().n_tokens();
        self.check_ids("stop_token_ids", &params.stop_ids)?;
        if let Some((id, _)) = params.sampler.logit_bias.iter().find(|b| b.0 as usize >= n_tokens) {
            let message = format!("logit_bias: expected token ids below {n_tokens}, found {id}");
            return Err(ApiError::invalid("logit_bias", message));
        }
        let n_slots = self.service.max_sequences();
        if let Some(slot) = generate.slot.filter(|&slot| slot >= n_slots) {
            let message = format!("id_slot: expected less than {n_slots}, found {slot}");
            return Err(ApiError::invalid("id_slot", message));
        }
        for prompt in &prompts {
            if prompt.is_empty() {
                let message =
                    "the prompt is empty: the model needs at least one token to start from";
                return Err(ApiError::invalid("prompt", message));
            }
            if prompt.len() >= n_ctx {
                return Err(ApiError::prompt_too_long(prompt.len(), n_ctx));
            }
        }
        let constraint = match generate.format {
            Some(grammar) => {
                let (param, opening) = (generate.format_param, generate.opening);
                Some(constraint(&self.service, grammar, param, opening).await?)
            }
            None => None,
        };
        let requests = prompts.iter().flat_map(|prompt| {
            (0..generate.n).map(|k| {
                let mut params = params.clone();
                if generate.n_ctx.is_some() {
                    let room = n_ctx - prompt.len();
                    params.n_predict = Some(params.n_predict.map_or(room, |n| n.min(room)));
                }
                params.sampler.seed = params.sampler.seed.map(|seed| seed.wrapping_add(k as u64));
                let request = hurtle_engine::Request {
                    cache_prompt: generate.cache_prompt,
                    client: generate.client.clone(),
                    slot: generate.slot,
                    logprobs: generate.logprobs,
                    distribution: generate.distribution,
                    prompt_logprobs: generate.logprobs.filter(|_| generate.echo),
                    constraint: constraint.clone().map(|constraint| Box::new(constraint) as _),
                    ..hurtle_engine::Request::new(prompt.clone(), params)
                };
                let echoed = if generate.echo { self.text(prompt) } else { String::new() };
                worker::Asked { request, echoed, tell: generate.tell }
            })
        });
        worker::submit(self, requests)
    }
}

impl Shared {
    fn head(&self, model: &Lease, prefix: &str) -> Head {
        let number = self.n_requests.fetch_add(1, Ordering::Relaxed);
        Head {
            id: format!("{prefix}-{:x}-{number:x}", self.started),
            created: now(),
            model: model.source.name.clone(),
            system_fingerprint: BUILD.into(),
        }
    }
}

/// How reasoning is closed when its budget is spent; `None` where there will be none.
fn reasoning_budget(
    tok: &Tokenizer,
    format: &AnswerFormat,
    reasoning: Reasoning,
    budget: Budget,
) -> Result<Option<ReasoningBudget>, ApiError> {
    if !format.can_be_begun() {
        return budget.param.map_or(Ok(None), |param| {
            let what = "the reasoning of this model cannot be closed for it";
            Err(ApiError::invalid(param, format!("{param}: {what}")))
        });
    }
    let (begin, end) = format.reasoning();
    let begin = match reasoning {
        Reasoning::Off => return Ok(None),
        Reasoning::Possible => Some(begin.to_owned()),
        Reasoning::Opened => None,
    };
    let mut closing = fill_in::plain(tok, &budget.message);
    closing.extend(tok.encode(end, Encode { add_special: false, parse_special: true }));
    let (tokens, end) = (budget.tokens, end.to_owned());
    Ok(Some(ReasoningBudget { tokens, begin, end, closing }))
}

/// Lets an answer be only what `tool_choice` wants, and a call of a tool where only JSON is wanted. False if nothing
/// has to be done for that.
fn force_call(
    tok: &Tokenizer,
    format: &AnswerFormat,
    how: &ReadAnswer,
    choice: &ToolChoice,
    generation: &mut Generate,
) -> Result<bool, ApiError> {
    let conflict = |with: &str| {
        let param = generation.format_param;
        let message = format!("{param}: an answer cannot have this form together with {with}");
        Err(ApiError::invalid(param, message))
    };
    let schema = match (&generation.format, choice) {
        (None, ToolChoice::Auto) => return Ok(false),
        _ if how.tools.is_empty() => return Ok(false),
        (None, _) => None,
        (Some(_), ToolChoice::Required | ToolChoice::Named(_)) => {
            return conflict("a tool_choice that asks for a call");
        }
        (Some(Grammar::JsonObject), ToolChoice::Auto) => Some(json!({"type": "object"})),
        (Some(Grammar::JsonSchema(schema)), ToolChoice::Auto) => Some(schema.clone()),
        (Some(_), ToolChoice::Auto) => return conflict("tools"),
    };
    let named = |tool: &&Value| match choice {
        ToolChoice::Named(name) => tool["function"]["name"] == name.as_str(),
        ToolChoice::Auto | ToolChoice::Required => true,
    };
    let mut tools: Vec<Value> = how.tools.iter().filter(named).cloned().collect();
    for (i, tool) in tools.iter_mut().enumerate() {
        let schema = tool["function"]["parameters"].take();
        let schema = if schema.is_null() { json!({"type": "object"}) } else { schema };
        tool["function"]["parameters"] = prepare_schema(schema).map_err(|error| {
            let param = format!("tools[{i}].function.parameters");
            ApiError::invalid(param.clone(), format!("{param}: {error}"))
        })?;
    }
    let schema = schema.map(prepare_schema).transpose().map_err(|error| {
        let param = generation.format_param;
        ApiError::invalid(param, format!("{param}: {error}"))
    })?;
    let answer = ForcedAnswer {
        tools: &tools,
        single_call: how.single_call || matches!(choice, ToolChoice::Named(_)),
        or_schema: schema.as_ref(),
    };
    generation.format = Some(Grammar::Lark(format.grammar(tok, answer)));
    if schema.is_none() {
        generation.format_param = "tools";
    }
    Ok(true)
}

/// Compiles a grammar. It may be a large one: one at a time, and not on the threads that serve connections.
async fn constraint(
    service: &Service,
    grammar: Grammar,
    param: &'static str,
    opening: Option<Opening>,
) -> Result<GrammarConstraint, ApiError> {
    static COMPILING: Semaphore = Semaphore::const_new(1);
    let failed = || ApiError::new(ErrorKind::Internal, "compiling the grammar failed");
    let _turn = COMPILING.acquire().await.map_err(|_| failed())?;
    let service = service.clone();
    let compile = move || {
        let constraint = service.engine().constraint(&grammar)?;
        Ok(opening.into_iter().fold(constraint, GrammarConstraint::after))
    };
    let compiled = tokio::task::spawn_blocking(compile).await.map_err(|_| failed())?;
    compiled.map_err(|error: ConstraintError| ApiError::invalid(param, format!("{param}: {error}")))
}

/// What a chat template is given; the messages are taken for it.
fn render_input(request: &mut Chat) -> RenderInput {
    RenderInput {
        messages: std::mem::take(&mut request.messages),
        tools: Some(request.tools.clone()).filter(|tools| !tools.is_empty()),
        add_generation_prompt: !request.unopened,
        extra: std::mem::take(&mut request.template),
        ..RenderInput::default()
    }
}

/// What a chat template makes, on a thread where it may take a while.
async fn rendered<T: Send + 'static>(
    render: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let failed = |_| ApiError::new(ErrorKind::Internal, "the chat template failed");
    tokio::task::spawn_blocking(render).await.map_err(failed)?
}

fn cannot_render(error: TemplateError) -> ApiError {
    ApiError::invalid("messages", error.to_string())
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

pub(crate) fn outcome(finished: Finished) -> Outcome {
    let Finished { stop_string, timings, .. } = finished;
    let truncated = finished.stop_reason == StopReason::Context;
    let reason = match finished.stop_reason {
        StopReason::Length | StopReason::Context | StopReason::Deadline => FinishReason::Length,
        StopReason::EndOfText | StopReason::StopString | StopReason::Cancelled => {
            FinishReason::Stop
        }
    };
    let usage = Usage {
        prompt: finished.n_prompt,
        cached: finished.n_cached,
        generated: finished.n_generated,
        reasoning: 0,
    };
    Outcome {
        reason,
        truncated,
        n_kept: finished.n_kept,
        slot: finished.slot,
        stop_string,
        usage,
        timings,
    }
}

/// The error of an answer that the server itself has cancelled, or that never began.
pub(crate) fn broken_off(finished: &Finished) -> Option<ApiError> {
    match finished.stop_reason {
        StopReason::Cancelled => {
            let message = "the answer was broken off: the server is shutting down";
            Some(ApiError::new(ErrorKind::Unavailable, message))
        }
        StopReason::Deadline if finished.n_generated == 0 => {
            let message = "there was no time left to answer: the server limits it with --timeout";
            Some(ApiError::new(ErrorKind::TimedOut, message))
        }
        _ => None,
    }
}

/// Tokens of all: each prompt counts once, however many answers it has.
fn total(n_prompt: &[usize], outcomes: impl Iterator<Item = Usage>) -> Usage {
    let sum = outcomes.reduce(Usage::and).unwrap_or_default();
    Usage { prompt: n_prompt.iter().sum(), ..sum }
}

async fn reply(
    head: Head,
    mut events: Answers,
    n_prompt: Vec<usize>,
    how: Reply,
) -> Result<Response, ApiError> {
    if how.stream {
        return Ok(stream(head, events, n_prompt, how));
    }
    let mut texts: Vec<String> = Vec::new();
    let mut tokens: Vec<Vec<Logprobs>> = Vec::new();
    let mut answers = Vec::new();
    while let Some((index, event)) = events.next().await {
        match event {
            Event::Text(text) => {
                texts.resize(texts.len().max(index + 1), String::new());
                texts[index] += &text;
            }
            Event::Logprobs(token) => {
                tokens.resize(tokens.len().max(index + 1), Vec::new());
                tokens[index].push(token);
            }
            Event::Finished(finished) => {
                if let Some(error) = broken_off(&finished) {
                    return Err(error);
                }
                answers.push((index, outcome(finished)));
            }
            Event::Id(_) | Event::Timings(_) | Event::Progress(_) => {}
            Event::Failed(error) => return Err(error),
        }
    }
    answers.sort_by_key(|answer| answer.0);
    let sum = total(&n_prompt, answers.iter().map(|answer| answer.1.usage));
    let answers = answers.into_iter().map(|(index, outcome)| {
        let text = texts.get_mut(index).map(std::mem::take).unwrap_or_default();
        let tokens = tokens.get(index).filter(|tokens| !tokens.is_empty());
        (text, outcome, tokens.map(|tokens| openai::completion_logprobs(tokens, &mut 0)))
    });
    let texts: Vec<_> = answers.collect();
    Ok(with_json(&head.completion(&texts, sum)))
}

/// Server-sent events, encoded as the pieces come.
fn stream(head: Head, events: Answers, n_prompt: Vec<usize>, how: Reply) -> Response {
    // Tokens whose text has not come yet, and where in the answer it begins.
    let mut tokens: HashMap<usize, (Vec<Logprobs>, usize)> = HashMap::new();
    let take = |(tokens, offset): &mut (Vec<Logprobs>, usize)| {
        openai::completion_logprobs(&std::mem::take(tokens), offset)
    };
    let mut timings = HashMap::new();
    let mut sum = Usage::default();
    let encode = move |(index, event): (usize, Event)| {
        let mut out = String::new();
        match event {
            Event::Logprobs(token) => tokens.entry(index).or_default().0.push(token),
            Event::Id(_) => {}
            Event::Timings(so_far) => drop(timings.insert(index, so_far)),
            Event::Progress(progress) => {
                let chunk = head.completion_chunk(index, "", None, None);
                let chunk = chunk.with_timings(timings.get(&index));
                out += &chunk.with_progress(progress).encode();
            }
            Event::Text(text) => {
                let logprobs = tokens.get_mut(&index).map(take);
                let chunk = head.completion_chunk(index, &text, logprobs, None);
                out += &chunk.with_timings(timings.get(&index)).encode();
            }
            Event::Finished(finished) => match broken_off(&finished) {
                Some(error) => out += &format!("data: {}\n\n", error.openai()),
                None => {
                    if let Some(waiting) = tokens.get_mut(&index).filter(|w| !w.0.is_empty()) {
                        let logprobs = Some(take(waiting));
                        out += &head.completion_chunk(index, "", logprobs, None).encode();
                    }
                    let outcome = outcome(finished);
                    sum = sum.and(outcome.usage);
                    let chunk = head.completion_chunk(index, "", None, Some(outcome.reason));
                    out += &chunk.with_timings(Some(&outcome.timings)).encode();
                }
            },
            Event::Failed(error) => out += &format!("data: {}\n\n", error.openai()),
        }
        (out, sum, head.clone())
    };
    let mut tail = (Usage::default(), None);
    let pieces = events.map(encode).map(Some);
    let closed = pieces.chain(tokio_stream::once(None)).map(move |piece| {
        let text = match piece {
            Some((text, sum, head)) => {
                tail = (sum, Some(head));
                text
            }
            None => {
                let mut text = String::new();
                if let (sum, Some(head)) = &tail
                    && how.include_usage
                {
                    let sum = total(&n_prompt, std::iter::once(*sum));
                    text += &head.completion_usage(sum).encode();
                }
                text + SSE_DONE
            }
        };
        Ok(Bytes::from(text))
    });
    server_sent(closed)
}

/// A response of server-sent events.
fn server_sent(pieces: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(with_pings(pieces, PING))).into_response()
}

/// How often a stream says that it is there while it has nothing to tell: a long prompt is silent for longer than
/// some clients and proxies wait.
const PING: Duration = Duration::from_secs(30);

/// The pieces, and comments, which clients skip, while there are none.
fn with_pings(
    pieces: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static,
    every: Duration,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    let ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    let ping = |_| Ok(Bytes::from_static(b": ping\n\n"));
    pieces.timeout_repeating(ticks).map(move |piece| piece.unwrap_or_else(ping))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_that_is_silent_says_that_it_is_there() {
        let (sender, pieces) = tokio::sync::mpsc::unbounded_channel();
        let pieces = tokio_stream::wrappers::UnboundedReceiverStream::new(pieces);
        let stream = with_pings(pieces, Duration::from_millis(5));
        tokio::pin!(stream);
        assert_eq!(stream.next().await, Some(Ok(Bytes::from(": ping\n\n"))));
        sender.send(Ok(Bytes::from("data: 1\n\n"))).expect("sent");
        let skipped = |piece: &Result<Bytes, Infallible>| {
            piece.as_ref().is_ok_and(|bytes| bytes.starts_with(b": "))
        };
        let mut next = stream.next().await;
        while next.as_ref().is_some_and(skipped) {
            next = stream.next().await;
        }
        assert_eq!(next, Some(Ok(Bytes::from("data: 1\n\n"))));
        drop(sender);
        while let Some(piece) = stream.next().await {
            assert!(skipped(&piece), "{piece:?}");
        }
    }
}
