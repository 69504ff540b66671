//! OpenAI's chat completions.
use super::{Shared, llama_cpp, server_sent, total, with_json};
use crate::error::ApiError;
use crate::messages::{Answer, Messages, News, Written};
use crate::output::{Delta, Logprobs, Outcome, Usage};
use crate::request::Chat;
use crate::wire::openai::{self, Head};
use crate::wire::{SSE_DONE, SseEvent};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use hurtle_engine::Timings;
use hurtle_engine::sampler::Distribution;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use tokio_stream::StreamExt as _;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/chat/completions", post(chat))
        .route("/v1/chat/completions/input_tokens", post(input_tokens))
        .route("/chat/completions/input_tokens", post(input_tokens))
}

async fn chat(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let request = openai::parse_chat(&body, &shared.options.sampler)?;
    let (how, distribution) = (request.reply, request.generation.distribution);
    let model = shared.model(request.model.as_deref()).await?;
    let (ids, generation, reading) = model.render(request).await?;
    let n_prompt = ids.len();
    let asked = reading.verbose.then(|| {
        let prompts = std::slice::from_ref(&ids);
        llama_cpp::Head::new(model.clone(), prompts, &generation, how.stream, Vec::new())
    });
    let messages = model.begin(ids, generation, reading).await?;
    let head = shared.head(&model, "chatcmpl");
    let told = Told { head, distribution, asked };
    if how.stream {
        return Ok(stream(told, messages, n_prompt, how.include_usage));
    }
    let mut verbose = None;
    let part = |(index, Answer { message, logprobs, written, outcome })| {
        if let Some(written) = written.filter(|_| index == 0) {
            verbose = told.verbose(index, &written, &outcome);
        }
        let logprobs = (!logprobs.is_empty()).then(|| told.logprobs(&logprobs));
        (message, outcome, logprobs)
    };
    let messages: Vec<_> = messages.all().await?.into_iter().enumerate().map(part).collect();
    let mut reply = told.head.chat(&messages);
    if let Some(verbose) = verbose {
        reply["__verbose"] = verbose;
    }
    Ok(with_json(&reply))
}

/// How many tokens the prompt of a conversation has.
async fn input_tokens(
    State(shared): State<Arc<Shared>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    shared.count_input(openai::parse_chat(&body, &shared.options.sampler)?).await
}

impl Shared {
    /// The reply about the tokens of a conversation's prompt.
    pub(super) async fn count_input(&self, chat: Chat) -> Result<Response, ApiError> {
        let model = self.model(chat.model.as_deref()).await?;
        let (ids, ..) = model.render(chat).await?;
        Ok(with_json(&json!({"object": "response.input_tokens", "input_tokens": ids.len()})))
    }
}

/// What a reply tells of all its answers.
struct Told {
    head: Head,
    /// What log-probabilities are of.
    distribution: Distribution,
    /// What was asked, if it is to be told.
    asked: Option<llama_cpp::Head>,
}

impl Told {
    fn logprobs(&self, tokens: &[Logprobs]) -> Value {
        openai::chat_logprobs(tokens, self.distribution)
    }

    /// llama.cpp's `__verbose`: the reply of `/completion`.
    fn verbose(&self, index: usize, written: &Written, outcome: &Outcome) -> Option<Value> {
        let asked = self.asked.as_ref()?;
        Some(asked.last(index, &written.text, &written.ids, outcome))
    }
}

/// Server-sent events, encoded as the pieces come.
fn stream(told: Told, messages: Messages, n_prompt: usize, include_usage: bool) -> Response {
    let mut opened = Vec::new();
    // Tokens of which nothing has come yet.
    let mut tokens: HashMap<usize, Vec<Logprobs>> = HashMap::new();
    let take = |told: &Told, tokens: &mut Vec<Logprobs>| told.logprobs(&std::mem::take(tokens));
    // Answers as they were written, if that is told.
    let mut all_written: HashMap<usize, Written> = HashMap::new();
    // How long answers took so far, if that is told.
    let mut timings: HashMap<usize, Timings> = HashMap::new();
    // Those of answers that have ended.
    let mut ended = Vec::new();
    let mut sum = Usage::default();
    let mut encode = move |news: Option<(usize, News)>| {
        let head = &told.head;
        let Some((index, news)) = news else {
            let total = total(&[n_prompt], std::iter::once(sum));
            let only = ended.first().filter(|_| ended.len() == 1);
            let usage = include_usage.then(|| head.chat_usage(total).with_timings(only).encode());
            return usage.unwrap_or_default() + SSE_DONE;
        };
        let mut out = String::new();
        if !opened.contains(&index) {
            opened.push(index);
            // What tells how far the prompt is opens the answer, too.
            if !matches!(news, News::Progress(_)) {
                out += &head.chat_start(index).encode();
            }
        }
        match news {
            // The API has no chunk for it.
            News::Delta(Delta::ToolCallEnd { .. }) => {}
            News::Delta(delta) => {
                let logprobs = tokens.get_mut(&index).map(|tokens| take(&told, tokens));
                let chunk = head.chat_delta(index, &delta, logprobs);
                let timings = timings.get(&index);
                out.extend(chunk.map(|chunk| chunk.with_timings(timings).encode()));
            }
            News::Timings(so_far) => drop(timings.insert(index, so_far)),
            News::Progress(progress) => {
                let chunk = head.chat_progress(index, progress);
                out += &chunk.with_timings(timings.get(&index)).encode();
            }
            News::Logprobs(token) => tokens.entry(index).or_default().push(token),
            News::Written(written) => drop(all_written.insert(index, written)),
            News::Finished(outcome) => {
                if let Some(tokens) = tokens.get_mut(&index).filter(|tokens| !tokens.is_empty()) {
                    let nothing = Delta::Content(String::new());
                    let chunk = head.chat_delta(index, &nothing, Some(take(&told, tokens)));
                    out.extend(chunk.as_ref().map(SseEvent::encode));
                }
                ended.push(outcome.timings);
                sum = sum.and(outcome.usage);
                let mut end = head.chat_end(index, &outcome);
                let written = all_written.remove(&index);
                if let Some(verbose) = written.and_then(|w| told.verbose(index, &w, &outcome)) {
                    end.data["__verbose"] = verbose;
                }
                out += &end.encode();
            }
            News::Failed(error) => out += &format!("data: {}\n\n", error.openai()),
        }
        out
    };
    let pieces = messages.map(Some).chain(tokio_stream::once(None));
    server_sent(pieces.map(move |news| Ok(Bytes::from(encode(news)))))
}
