//! OpenAI's responses.
use super::{Shared, server_sent, with_json};
use crate::error::{ApiError, ErrorKind};
use crate::messages::News;
use crate::wire::SseEvent;
use crate::wire::openai::Head;
use crate::wire::responses::{self, Asked, Stream};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use std::sync::Arc;
use tokio_stream::StreamExt as _;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v1/responses", post(respond))
        .route("/responses", post(respond))
        .route("/v1/responses/input_tokens", post(input_tokens))
        .route("/responses/input_tokens", post(input_tokens))
}

/// How many tokens the prompt of a response has.
async fn input_tokens(
    State(shared): State<Arc<Shared>>,
    body: Bytes,
) -> Result<Response, ApiError> {
    shared.count_input(responses::parse(&body, &shared.options.sampler)?.chat).await
}

async fn respond(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let Asked { chat: request, echo, special } = responses::parse(&body, &shared.options.sampler)?;
    let stream = request.reply.stream;
    let logprobs = request.generation.logprobs.map(|_| request.generation.distribution);
    let model = shared.model(request.model.as_deref()).await?;
    let head = shared.head(&model, "resp");
    let id = head.id.replacen('-', "_", 1);
    let Head { created, model: name, .. } = head;
    let head = responses::Head { id, created, model: name, echo, special, logprobs };
    let (mut messages, _) = model.converse(request).await?;
    let mut encoder = Stream::new(head);
    if !stream {
        while let Some((_, news)) = messages.next().await {
            match news {
                News::Delta(delta) => drop(encoder.delta(&delta)),
                News::Logprobs(token) => encoder.logprobs(token),
                News::Timings(_) | News::Progress(_) | News::Written(_) => {}
                News::Finished(outcome) => {
                    let last = encoder.finish(&outcome).pop();
                    let whole = last.map(|mut event| event.data["response"].take());
                    return Ok(with_json(&whole.unwrap_or_default()));
                }
                News::Failed(error) => return Err(error),
            }
        }
        return Err(ApiError::new(ErrorKind::Internal, "the engine ended without an answer"));
    }
    let start: String = encoder.start().iter().map(SseEvent::encode).collect();
    // How long the answer took so far, if that is told.
    let mut timings = None;
    let pieces = messages.map(move |(_, news)| {
        let events = match news {
            News::Delta(delta) => {
                let mut events = encoder.delta(&delta);
                let last = events.pop().map(|event| event.with_timings(timings.as_ref()));
                events.extend(last);
                events
            }
            News::Timings(so_far) => {
                timings = Some(so_far);
                Vec::new()
            }
            News::Progress(progress) => {
                vec![encoder.progress(progress).with_timings(timings.as_ref())]
            }
            News::Logprobs(token) => {
                encoder.logprobs(token);
                Vec::new()
            }
            News::Written(_) => Vec::new(),
            News::Finished(outcome) => encoder.finish(&outcome),
            News::Failed(error) => vec![encoder.error(&error)],
        };
        events.iter().map(SseEvent::encode).collect()
    });
    let pieces = tokio_stream::once(start).chain(pieces);
    Ok(server_sent(pieces.map(|text| Ok(Bytes::from(text)))))
}
