//! Answers on their way from the engine's thread to a connection.
//!
//! ```text
//! Service ─► on_event ─► channel of the request ─► its connection
//! ```
//! A connection that goes away drops [`Answers`], and with them the tickets, which cancels what still runs.
//! A reader that is slow never holds up the engine: what waits for it is at most its answers, whose length the
//! context bounds.
use crate::error::{ApiError, ErrorKind};
use crate::output::{Logprobs, TokenLogprob};
use hurtle_engine::sampler::{self, Sampled};
use hurtle_engine::{
    EngineError, Event as EngineEvent, Finished, Request, Service, SubmitError, Ticket,
};
use hurtle_text::Tokenizer;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_stream::Stream;

/// News of an answer.
#[derive(Debug)]
pub(crate) enum Event {
    /// More text, never empty.
    Text(String),
    /// A token, if log-probabilities were asked for. Its text comes later, or with that of others.
    Logprobs(Logprobs),
    /// The end.
    Finished(Finished),
    /// The end, without an answer.
    Failed(ApiError),
}

/// What comes from the engine's thread.
#[derive(Debug)]
enum News {
    Event(Event),
    /// Not yet with the texts of its tokens: that is no work for the engine's thread.
    Sampled(Sampled),
}

/// The answers of a request: which one, and news of it.
#[derive(Debug)]
pub(crate) struct Answers {
    news: UnboundedReceiver<(usize, News)>,
    /// Dropping them cancels.
    _tickets: Vec<Ticket>,
    service: Service,
}

impl Stream for Answers {
    type Item = (usize, Event);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let news = self.news.poll_recv(context);
        news.map(|news| {
            let (index, news) = news?;
            Some((
                index,
                match news {
                    News::Event(event) => event,
                    News::Sampled(sampled) => {
                        Event::Logprobs(told(self.service.engine().tokenizer(), &sampled))
                    }
                },
            ))
        })
    }
}

/// Log-probabilities with the texts of their tokens.
fn told(tok: &Tokenizer, sampled: &Sampled) -> Logprobs {
    let told = |token: &sampler::TokenLogprob| TokenLogprob {
        bytes: tok.token_bytes(token.id, true),
        // JSON has no infinity; OpenAI has this number instead.
        logprob: token.logprob.max(-9999.0),
    };
    Logprobs { token: told(&sampled.token), top: sampled.top.iter().map(told).collect() }
}

/// Hands all of `requests` to the engine, or none: what was taken before one is refused is cancelled.
pub(crate) fn submit(
    service: &Service,
    requests: impl IntoIterator<Item = Request>,
) -> Result<Answers, ApiError> {
    let (sender, news) = mpsc::unbounded_channel();
    let mut tickets = Vec::new();
    for (index, request) in requests.into_iter().enumerate() {
        let sender = sender.clone();
        let ticket = service.submit(request, Box::new(move |event| pass_on(&sender, index, event)));
        tickets.push(ticket.map_err(refused)?);
    }
    Ok(Answers { news, _tickets: tickets, service: service.clone() })
}

/// Sends what a connection has to hear. That it may have gone is no error: its ticket cancels.
fn pass_on(sender: &UnboundedSender<(usize, News)>, index: usize, event: EngineEvent) {
    let send = |event| drop(sender.send((index, News::Event(event))));
    let text = |text: String| {
        if !text.is_empty() {
            send(Event::Text(text));
        }
    };
    match event {
        EngineEvent::Started { .. } | EngineEvent::Prompt { .. } => {}
        EngineEvent::Token(token) => {
            if let Some(sampled) = token.logprobs {
                let _ = sender.send((index, News::Sampled(sampled)));
            }
            text(token.text);
        }
        EngineEvent::Finished(mut finished) => {
            text(std::mem::take(&mut finished.text_tail));
            send(Event::Finished(finished));
        }
        EngineEvent::Failed(error) => {
            // A grammar that turns out to lead nowhere is the client's.
            let kind = match error {
                EngineError::Constraint(_) => ErrorKind::Invalid,
                _ => ErrorKind::Internal,
            };
            send(Event::Failed(ApiError::new(kind, error.to_string())));
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
