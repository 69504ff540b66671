//! Anthropic's routes.
use super::{Shared, refusal, server_sent, with_json};
use crate::error::ApiError;
use crate::messages::{Answer, News};
use crate::output::Usage;
use crate::wire::SseEvent;
use crate::wire::anthropic::{self, Stream};
use crate::wire::openai::Head;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use std::sync::Arc;
use tokio_stream::StreamExt as _;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
}

/// An error in the shape that Anthropic's clients read.
fn in_shape(reply: Result<Response, ApiError>) -> Response {
    reply.unwrap_or_else(|error| refusal(&error, &anthropic::error(&error)))
}

async fn count_tokens(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let answer = async {
        let chat = anthropic::parse(&body, &shared.options.sampler, true)?;
        let model = shared.model(chat.model.as_deref()).await?;
        let (ids, ..) = model.render(chat).await?;
        Ok(with_json(&anthropic::count(ids.len())))
    };
    in_shape(answer.await)
}

async fn messages(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let answer = async {
        let chat = anthropic::parse(&body, &shared.options.sampler, false)?;
        let lease = shared.model(chat.model.as_deref()).await?;
        let (Head { id, model, .. }, reply) = (shared.head(&lease, "msg"), chat.reply);
        let (messages, n_prompt) = lease.converse(chat).await?;
        if !reply.stream {
            let Answer { message, outcome, .. } = messages.one().await?;
            return Ok(with_json(&anthropic::message(&id, &model, &message, &outcome)));
        }
        let mut stream = Stream::default();
        let usage = Usage { prompt: n_prompt, ..Usage::default() };
        let start = stream.start(&id, &model, usage).encode();
        let pieces = messages.map(move |(_, news)| {
            let events = match news {
                News::Delta(delta) => stream.delta(&delta),
                News::Logprobs(_) | News::Timings(_) | News::Progress(_) | News::Written(_) => {
                    Vec::new()
                }
                News::Finished(outcome) => stream.finish(&outcome),
                News::Failed(error) => vec![Stream::error(&error)],
            };
            events.iter().map(SseEvent::encode).collect()
        });
        let pieces = tokio_stream::once(start).chain(pieces);
        Ok(server_sent(pieces.map(|text| Ok(Bytes::from(text)))))
    };
    in_shape(answer.await)
}
