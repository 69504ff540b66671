//! Anthropic's routes.
use super::{Shared, broken_off, outcome, refusal, with_json};
use crate::error::ApiError;
use crate::output::{Delta, Message, Usage};
use crate::wire::SseEvent;
use crate::wire::anthropic::{self, Stream};
use crate::worker::Event;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
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
    reply.unwrap_or_else(|error| refusal(&error, &error.anthropic()))
}

async fn count_tokens(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let answer = async {
        let chat = anthropic::parse(&body, &shared.options.sampler, true)?;
        let model = shared.model(chat.model.as_deref()).await?;
        let (ids, _) = model.render(chat).await?;
        Ok(with_json(&anthropic::count(ids.len())))
    };
    in_shape(answer.await)
}

async fn messages(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let answer = async {
        let chat = anthropic::parse(&body, &shared.options.sampler, false)?;
        let lease = shared.model(chat.model.as_deref()).await?;
        let (id, reply) = (shared.head(&lease, "msg").id, chat.reply);
        let model = chat.model.clone().unwrap_or_else(|| lease.source.name.clone());
        let (mut answers, n_prompt) = lease.converse(chat).await?;
        if !reply.stream {
            let (content, outcome) = answers.one().await?;
            let message = Message { content, ..Message::default() };
            return Ok(with_json(&anthropic::message(&id, &model, &message, &outcome)));
        }
        let mut stream = Stream::default();
        let usage = Usage { prompt: n_prompt, ..Usage::default() };
        let start = stream.start(&id, &model, usage).encode();
        let pieces = answers.map(move |(_, event)| {
            let events = match event {
                Event::Text(text) => stream.delta(&Delta::Content(text)),
                Event::Finished(finished) => match broken_off(&finished) {
                    Some(error) => vec![Stream::error(&error)],
                    None => stream.finish(&outcome(finished)),
                },
                Event::Failed(error) => vec![Stream::error(&error)],
            };
            events.iter().map(SseEvent::encode).collect::<String>()
        });
        let pieces = tokio_stream::once(start).chain(pieces);
        let pieces = pieces.map(|text| Ok::<_, std::convert::Infallible>(Bytes::from(text)));
        let headers =
            [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        Ok((headers, Body::from_stream(pieces)).into_response())
    };
    in_shape(answer.await)
}
