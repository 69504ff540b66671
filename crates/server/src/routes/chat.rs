//! OpenAI's chat completions.
use super::{Shared, server_sent, total, with_json};
use crate::error::ApiError;
use crate::messages::{Answer, Messages, News};
use crate::output::{Delta, Logprobs, Usage};
use crate::wire::openai::{self, Head};
use crate::wire::{SSE_DONE, SseEvent};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use std::collections::HashMap;
use std::sync::Arc;
use tokio_stream::StreamExt as _;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/v1/chat/completions", post(chat)).route("/chat/completions", post(chat))
}

async fn chat(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let request = openai::parse_chat(&body, &shared.options.sampler)?;
    let how = request.reply;
    let (messages, n_prompt) = shared.converse(request).await?;
    let head = shared.head("chatcmpl");
    if how.stream {
        return Ok(stream(head, messages, n_prompt, how.include_usage));
    }
    let part = |Answer { message, logprobs, outcome }| {
        let logprobs = (!logprobs.is_empty()).then(|| openai::chat_logprobs(&logprobs));
        (message, outcome, logprobs)
    };
    let messages: Vec<_> = messages.all().await?.into_iter().map(part).collect();
    Ok(with_json(&head.chat(&messages)))
}

/// Server-sent events, encoded as the pieces come.
fn stream(head: Head, messages: Messages, n_prompt: usize, include_usage: bool) -> Response {
    let mut opened = Vec::new();
    // Tokens of which nothing has come yet.
    let mut tokens: HashMap<usize, Vec<Logprobs>> = HashMap::new();
    let take = |tokens: &mut Vec<Logprobs>| openai::chat_logprobs(&std::mem::take(tokens));
    let mut sum = Usage::default();
    let mut encode = move |news: Option<(usize, News)>| {
        let Some((index, news)) = news else {
            let usage = include_usage
                .then(|| head.chat_usage(total(&[n_prompt], std::iter::once(sum))).encode());
            return usage.unwrap_or_default() + SSE_DONE;
        };
        let mut out = String::new();
        if !opened.contains(&index) {
            opened.push(index);
            out += &head.chat_start(index).encode();
        }
        match news {
            // The API has no chunk for it.
            News::Delta(Delta::ToolCallEnd { .. }) => {}
            News::Delta(delta) => {
                let logprobs = tokens.get_mut(&index).map(take);
                out.extend(head.chat_delta(index, &delta, logprobs).as_ref().map(SseEvent::encode));
            }
            News::Logprobs(token) => tokens.entry(index).or_default().push(token),
            News::Finished(outcome) => {
                if let Some(tokens) = tokens.get_mut(&index).filter(|tokens| !tokens.is_empty()) {
                    let nothing = Delta::Content(String::new());
                    let chunk = head.chat_delta(index, &nothing, Some(take(tokens)));
                    out.extend(chunk.as_ref().map(SseEvent::encode));
                }
                sum = sum.and(outcome.usage);
                out += &head.chat_end(index, &outcome).encode();
            }
            News::Failed(error) => out += &format!("data: {}\n\n", error.openai()),
        }
        out
    };
    let pieces = messages.map(Some).chain(tokio_stream::once(None));
    server_sent(pieces.map(move |news| Ok(Bytes::from(encode(news)))))
}
