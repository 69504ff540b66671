//! Answers on their way from the engine's thread to a connection.
//!
//! ```text
//! Service ─► on_event ─► channel of the request ─► its connection
//! ```
//! A connection that goes away drops [`Answers`], and with them the tickets, which cancels what still runs.
//! A reader that is slow never holds up the engine: what waits for it is at most its answers, whose length the
//! context bounds.
use crate::Limits;
use crate::error::{ApiError, ErrorKind, Overflow};
use crate::models::Lease;
use crate::observe::{self, Record};
use crate::output::{Logprobs, Progress, TokenLogprob};
use crate::request::Tell;
use hurtle_engine::sampler::{self, Sampled};
use hurtle_engine::{
    EngineError, Event as EngineEvent, Finished, Request, SubmitError, Ticket, Timings,
};
use hurtle_text::Tokenizer;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_stream::Stream;

/// News of an answer.
#[derive(Debug)]
pub(crate) enum Event {
    /// More text, never empty.
    Text(String),
    /// A token, if log-probabilities were asked for. Its text comes later, or with that of others.
    Logprobs(Logprobs),
    /// The number of a token, if numbers were asked for. Its text comes later, or with that of others.
    Id(u32),
    /// How long the answer took up to the text that comes next, if that was asked for.
    Timings(Timings),
    /// More of the prompt has been processed, if that was asked for.
    Progress(Progress),
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
    /// The first token of a prompt, which nothing foretells.
    First(u32),
}

/// The answers of a request: which one, and news of it.
#[derive(Debug)]
pub(crate) struct Answers {
    news: UnboundedReceiver<(usize, News)>,
    /// Dropping them cancels.
    _tickets: Vec<Ticket>,
    /// As long as it answers, the model stays.
    model: Lease,
}

impl Stream for Answers {
    type Item = (usize, Event);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let news = self.news.poll_recv(context);
        news.map(|news| {
            let (index, news) = news?;
            let tok = self.model.service.engine().tokenizer();
            let event = match news {
                News::Event(event) => event,
                News::Sampled(sampled) => Event::Logprobs(told(tok, &sampled)),
                News::First(id) => {
                    let bytes = tok.token_bytes(id, true);
                    let token = TokenLogprob { id, bytes, logprob: None };
                    Event::Logprobs(Logprobs { token, top: Vec::new() })
                }
            };
            Some((index, event))
        })
    }
}

/// Log-probabilities with the texts of their tokens.
fn told(tok: &Tokenizer, sampled: &Sampled) -> Logprobs {
    let told = |token: &sampler::TokenLogprob| TokenLogprob {
        id: token.id,
        bytes: tok.token_bytes(token.id, true),
        // JSON has no infinity; OpenAI has this number instead.
        logprob: Some(token.logprob.max(-9999.0)),
    };
    Logprobs { token: told(&sampled.token), top: sampled.top.iter().map(told).collect() }
}

/// A request of several.
pub(crate) struct Asked {
    pub(crate) request: Request,
    /// What its answer begins with.
    pub(crate) echoed: String,
    /// What is told beside its text.
    pub(crate) tell: Tell,
}

/// Hands all of `requests` to the engine, or none: what was taken before one is refused is cancelled.
pub(crate) fn submit(
    model: &Lease,
    requests: impl IntoIterator<Item = Asked>,
) -> Result<Answers, ApiError> {
    let (sender, news) = mpsc::unbounded_channel();
    let mut tickets = Vec::new();
    for (index, Asked { request, mut echoed, tell }) in requests.into_iter().enumerate() {
        let sender = sender.clone();
        let request = within(model.limits, request)?;
        if let Some(&first) = request.prompt.first()
            && request.prompt_logprobs.is_some()
        {
            let _ = sender.send((index, News::First(first)));
        }
        let mut watch = watch(observe::current());
        let mut cached = 0;
        let on_event = move |event| {
            watch(&event);
            // Behind the log-probabilities of its tokens, as every text.
            if let EngineEvent::Token(..) | EngineEvent::Finished(_) = &event {
                pass_on_text(&sender, index, std::mem::take(&mut echoed));
            }
            let send = |event| drop(sender.send((index, News::Event(event))));
            let pass_on_progress = |progress: Progress| {
                if tell.progress && tell.timings {
                    send(Event::Timings(progress.timings()));
                }
                if tell.progress {
                    send(Event::Progress(progress));
                }
            };
            match &event {
                &EngineEvent::Started { n_prompt: total, n_cached, .. } => {
                    cached = n_cached;
                    let (processed, time) = (cached, Duration::ZERO);
                    pass_on_progress(Progress { total, cached, processed, time });
                }
                &EngineEvent::Prompt { done: processed, total, time } => {
                    pass_on_progress(Progress { total, cached, processed, time });
                }
                EngineEvent::Token(token, timings) => {
                    if tell.ids {
                        send(Event::Id(token.id));
                    }
                    if tell.timings {
                        send(Event::Timings(*timings));
                    }
                }
                _ => {}
            }
            pass_on(&sender, index, event);
        };
        let ticket = model.service.submit(request, Box::new(on_event));
        tickets.push(ticket.map_err(refused)?);
    }
    Ok(Answers { news, _tickets: tickets, model: model.clone() })
}

/// The request within what the server allows.
fn within(limits: Limits, mut request: Request) -> Result<Request, ApiError> {
    let n_prompt = request.prompt.len();
    if let Some(most) = limits.max_prompt.filter(|&most| n_prompt > most) {
        let message =
            format!("the prompt has {n_prompt} tokens, but this server takes {most} at most");
        let error = ApiError::invalid("prompt", message);
        let overflow = Some(Overflow { n_prompt, n_ctx: most });
        return Err(ApiError { code: Some("context_length_exceeded"), overflow, ..error });
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
            EngineEvent::Token(..) if !has_begun => {
                has_begun = true;
                record.first_token();
            }
            EngineEvent::Finished(finished) => record.finished(finished),
            _ => {}
        }
    }
}

fn pass_on_text(sender: &UnboundedSender<(usize, News)>, index: usize, text: String) {
    if !text.is_empty() {
        let _ = sender.send((index, News::Event(Event::Text(text))));
    }
}

/// Sends what a connection has to hear. That it may have gone is no error: its ticket cancels.
fn pass_on(sender: &UnboundedSender<(usize, News)>, index: usize, event: EngineEvent) {
    let send = |event| drop(sender.send((index, News::Event(event))));
    match event {
        EngineEvent::Started { .. } | EngineEvent::Prompt { .. } => {}
        EngineEvent::PromptLogprobs(tokens) => {
            tokens.into_iter().for_each(|token| drop(sender.send((index, News::Sampled(token)))));
        }
        EngineEvent::Token(token, _) => {
            if let Some(sampled) = token.logprobs {
                let _ = sender.send((index, News::Sampled(sampled)));
            }
            pass_on_text(sender, index, token.text);
        }
        EngineEvent::Finished(mut finished) => {
            pass_on_text(sender, index, std::mem::take(&mut finished.text_tail));
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
