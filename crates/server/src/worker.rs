//! Answers on their way from the engine's thread to a connection.
//!
//! ```text
//! Service ─► on_event ─► channel of the request ─► its connection
//! ```
//! A connection that goes away drops [`Answers`], and with them the tickets, which cancels what still runs.
//! A reader that is slow never holds up the engine: what waits for it is at most its answers, whose length the
//! context bounds.
use crate::Limits;
use crate::error::{ApiError, ErrorKind};
use crate::models::Lease;
use crate::observe::{self, Record};
use crate::output::Outcome;
use crate::routes::{broken_off, outcome};
use hurtle_engine::{Event as EngineEvent, Finished, Request, SubmitError, Ticket};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_stream::{Stream, StreamExt as _};

/// News of an answer.
#[derive(Debug)]
pub(crate) enum Event {
    /// More text, never empty.
    Text(String),
    /// The end.
    Finished(Finished),
    /// The end, without an answer.
    Failed(ApiError),
}

/// The answers of a request: which one, and news of it.
#[derive(Debug)]
pub(crate) struct Answers {
    /// What comes before the news.
    prelude: VecDeque<(usize, Event)>,
    events: UnboundedReceiver<(usize, Event)>,
    /// Dropping them cancels.
    _tickets: Vec<Ticket>,
    /// As long as it answers, the model stays.
    _model: Lease,
}

impl Answers {
    /// The same, each after a text.
    pub(crate) fn after(mut self, texts: impl Iterator<Item = String>) -> Self {
        let texts = texts.enumerate().filter(|(_, text)| !text.is_empty());
        self.prelude.extend(texts.map(|(index, text)| (index, Event::Text(text))));
        self
    }

    /// The text and the end of an answer that is the only one.
    pub(crate) async fn one(&mut self) -> Result<(String, Outcome), ApiError> {
        let mut text = String::new();
        while let Some((_, event)) = self.next().await {
            match event {
                Event::Text(piece) => text += &piece,
                Event::Finished(finished) => match broken_off(&finished) {
                    Some(error) => return Err(error),
                    None => return Ok((text, outcome(finished))),
                },
                Event::Failed(error) => return Err(error),
            }
        }
        Err(ApiError::new(ErrorKind::Internal, "the engine ended without an answer"))
    }
}

impl Stream for Answers {
    type Item = (usize, Event);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.prelude.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None => self.events.poll_recv(context),
        }
    }
}

/// Hands all of `requests` to the engine, or none: what was taken before one is refused is cancelled.
pub(crate) fn submit(
    model: &Lease,
    requests: impl IntoIterator<Item = Request>,
) -> Result<Answers, ApiError> {
    let (sender, events) = mpsc::unbounded_channel();
    let mut tickets = Vec::new();
    for (index, request) in requests.into_iter().enumerate() {
        let sender = sender.clone();
        let request = within(model.limits, request)?;
        let mut watch = watch(observe::current());
        let on_event = move |event| {
            watch(&event);
            pass_on(&sender, index, event);
        };
        let ticket = model.service.submit(request, Box::new(on_event));
        tickets.push(ticket.map_err(refused)?);
    }
    Ok(Answers { prelude: VecDeque::new(), events, _tickets: tickets, _model: model.clone() })
}

/// The request within what the server allows.
fn within(limits: Limits, mut request: Request) -> Result<Request, ApiError> {
    let n_prompt = request.prompt.len();
    if let Some(most) = limits.max_prompt.filter(|&most| n_prompt > most) {
        let message =
            format!("the prompt has {n_prompt} tokens, but this server takes {most} at most");
        let error = ApiError::invalid("prompt", message);
        return Err(ApiError { code: Some("context_length_exceeded"), ..error });
    }
    if let Some(most) = limits.max_predict {
        let n_predict = &mut request.params.n_predict;
        *n_predict = Some(n_predict.map_or(most, |n| n.min(most)));
    }
    if let Some(end) = limits.timeout.and_then(|time| Instant::now().checked_add(time)) {
        request.deadline = Some(request.deadline.map_or(end, |earlier| earlier.min(end)));
    }
    Ok(request)
}

/// What records the events of an answer.
fn watch(record: Option<Arc<Record>>) -> impl FnMut(&EngineEvent) + Send {
    let mut has_begun = false;
    move |event| {
        let Some(record) = &record else { return };
        match event {
            EngineEvent::Started { queued, .. } => record.started(*queued),
            EngineEvent::Token(_) if !has_begun => {
                has_begun = true;
                record.first_token();
            }
            EngineEvent::Finished(finished) => record.finished(finished),
            _ => {}
        }
    }
}

/// Sends what a connection has to hear. That it may have gone is no error: its ticket cancels.
fn pass_on(sender: &UnboundedSender<(usize, Event)>, index: usize, event: EngineEvent) {
    let text = |text: String| {
        if !text.is_empty() {
            let _ = sender.send((index, Event::Text(text)));
        }
    };
    match event {
        EngineEvent::Started { .. } | EngineEvent::Prompt { .. } => {}
        EngineEvent::Token(token) => text(token.text),
        EngineEvent::Finished(mut finished) => {
            text(std::mem::take(&mut finished.text_tail));
            let _ = sender.send((index, Event::Finished(finished)));
        }
        EngineEvent::Failed(error) => {
            let error = ApiError::new(ErrorKind::Internal, error.to_string());
            let _ = sender.send((index, Event::Failed(error)));
        }
    }
}

fn refused(error: SubmitError) -> ApiError {
    let kind = match &error {
        SubmitError::QueueFull { .. } => ErrorKind::QueueFull,
        SubmitError::ShuttingDown | SubmitError::ServiceFailed => ErrorKind::Unavailable,
        _ => ErrorKind::Invalid,
    };
    ApiError::new(kind, error.to_string())
}
