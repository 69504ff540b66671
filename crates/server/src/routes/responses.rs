//! OpenAI's responses.
use super::{Shared, server_sent, with_json};
use crate::error::ApiError;
use crate::messages::{Answer, News};
use crate::wire::SseEvent;
use crate::wire::responses::{self, Stream};
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
    shared.count_input(responses::parse(&body, &shared.options.sampler)?.0).await
}

async fn respond(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let (request, echo) = responses::parse(&body, &shared.options.sampler)?;
    let stream = request.reply.stream;
    let model = shared.model(request.model.as_deref()).await?;
    let head = shared.head(&model, "resp");
    let id = head.id.replacen('-', "_", 1);
    let head = responses::Head { id, created: head.created, model: head.model, echo };
    let (messages, _) = model.converse(request).await?;
    if !stream {
        let Answer { message, outcome, .. } = messages.one().await?;
        return Ok(with_json(&head.response(&message, &outcome)));
    }
    let mut stream = Stream::new(head);
    let start: String = stream.start().iter().map(SseEvent::encode).collect();
    // How long the answer took so far, if that is told.
    let mut timings = None;
    let pieces = messages.map(move |(_, news)| {
        let events = match news {
            News::Delta(delta) => {
                let mut events = stream.delta(&delta);
                let last = events.pop().map(|event| event.with_timings(timings.as_ref()));
                events.extend(last);
                events
            }
            News::Timings(so_far) => {
                timings = Some(so_far);
                Vec::new()
            }
            News::Progress(progress) => {
                vec![stream.progress(progress).with_timings(timings.as_ref())]
            }
            News::Logprobs(_) | News::Written(_) => Vec::new(),
            News::Finished(outcome) => stream.finish(&outcome),
            News::Failed(error) => vec![stream.error(&error)],
        };
        events.iter().map(SseEvent::encode).collect()
    });
    let pieces = tokio_stream::once(start).chain(pieces);
    Ok(server_sent(pieces.map(|text| Ok(Bytes::from(text)))))
}
