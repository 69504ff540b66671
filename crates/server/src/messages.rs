//! Answers to conversations: their text, read into content, reasoning and calls of tools as it comes.
use crate::error::{ApiError, ErrorKind};
use crate::output::{Delta, FinishReason, Logprobs, Message, Outcome, Progress};
use crate::request::ReasoningFormat;
use crate::routes::{broken_off, outcome};
use crate::worker::{Answers, Event};
use hurtle_engine::Timings;
use hurtle_text::{AnswerFormat, AnswerParser, AnswerPiece, ReadAnswer};
use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tokio_stream::{Stream, StreamExt as _};

/// News of an answer.
#[derive(Debug)]
pub(crate) enum News {
    /// A piece of it.
    Delta(Delta),
    /// A token, if log-probabilities were asked for. What it says comes later, or with that of others.
    Logprobs(Logprobs),
    /// How long the answer took up to what comes next, if that was asked for.
    Timings(Timings),
    /// More of the prompt has been processed, if that was asked for.
    Progress(Progress),
    /// All of the answer as it was written, if that was asked for: right before the end.
    Written(Written),
    /// The end.
    Finished(Outcome),
    /// The end, without an answer.
    Failed(ApiError),
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) message: Message,
    pub(crate) logprobs: Vec<Logprobs>,
    /// As it was written, if that was asked for.
    pub(crate) written: Option<Written>,
    pub(crate) outcome: Outcome,
}

/// An answer as it was written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written {
    pub(crate) text: String,
    /// The numbers of its tokens, if they were asked for.
    pub(crate) ids: Vec<u32>,
}

/// How the answers of a request are to be read.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) format: AnswerFormat,
    pub(crate) how: ReadAnswer,
    /// Where reasoning is told.
    pub(crate) reasoning: ReasoningFormat,
    /// Whether calls are left in the text.
    pub(crate) unread_calls: bool,
    /// Whether the answer is told as it was written, too.
    pub(crate) verbose: bool,
    /// A stop string that is no wish of the client's, but ends a call.
    pub(crate) call_end: Option<String>,
}

/// The answers of a request: which one, and news of it.
#[derive(Debug)]
pub(crate) struct Messages {
    answers: Answers,
    /// Without it, an answer is content as it is.
    reading: Option<Reading>,
    /// One for each answer.
    readers: Vec<Reader>,
    news: VecDeque<(usize, News)>,
}

#[derive(Debug)]
struct Reader {
    parser: Option<AnswerParser>,
    /// Calls that the client knows of.
    n_calls: usize,
    /// Tokens of reasoning.
    n_reasoning: usize,
    /// What stands around reasoning in the content, if it is told there.
    marks: Option<(&'static str, &'static str)>,
    /// Whether reasoning is told apart.
    apart: bool,
    /// Whether the content so far ends in reasoning.
    in_reasoning: bool,
    written: Option<Written>,
}

impl Messages {
    pub(crate) fn new(answers: Answers, reading: Option<Reading>) -> Self {
        Self { answers, reading, readers: Vec::new(), news: VecDeque::new() }
    }

    /// The answer that is the only one.
    pub(crate) async fn one(self) -> Result<Answer, ApiError> {
        let nothing = || ApiError::new(ErrorKind::Internal, "the engine ended without an answer");
        self.all().await?.pop().ok_or_else(nothing)
    }

    /// All answers, in order.
    pub(crate) async fn all(mut self) -> Result<Vec<Answer>, ApiError> {
        let mut parts: Vec<(Message, Vec<Logprobs>, Option<Written>)> = Vec::new();
        let mut ended = Vec::new();
        while let Some((index, news)) = self.next().await {
            parts.resize_with(parts.len().max(index + 1), Default::default);
            match news {
                News::Delta(delta) => parts[index].0.push(&delta),
                News::Logprobs(token) => parts[index].1.push(token),
                News::Timings(_) | News::Progress(_) => {}
                News::Written(written) => parts[index].2 = Some(written),
                News::Finished(outcome) => ended.push((index, outcome)),
                News::Failed(error) => return Err(error),
            }
        }
        ended.sort_by_key(|(index, _)| *index);
        let answer = |(index, outcome): (usize, Outcome)| {
            let (message, logprobs, written) = std::mem::take(&mut parts[index]);
            Answer { message, logprobs, written, outcome }
        };
        Ok(ended.into_iter().map(answer).collect())
    }

    fn read(&mut self, index: usize, event: Event) {
        while self.readers.len() <= index {
            self.readers.push(Reader::new(self.reading.as_ref()));
        }
        let reader = &mut self.readers[index];
        let mut pieces = Vec::new();
        let end = match event {
            Event::Text(text) => {
                reader.push(text, &mut pieces);
                None
            }
            Event::Finished(finished) => Some(match broken_off(&finished) {
                Some(error) => News::Failed(error),
                None => {
                    let mut outcome = outcome(finished);
                    let call_end = self.reading.as_ref().and_then(|r| r.call_end.as_ref());
                    if let Some(end) = outcome.stop_string.take_if(|end| Some(&*end) == call_end) {
                        reader.push(end, &mut pieces);
                    }
                    if let Some(parser) = &mut reader.parser {
                        parser.finish(&mut pieces);
                        if parser.n_calls() > 0 && outcome.reason == FinishReason::Stop {
                            outcome.reason = FinishReason::ToolCalls;
                        }
                    }
                    outcome.usage.reasoning = reader.n_reasoning;
                    News::Finished(outcome)
                }
            }),
            Event::Logprobs(token) => Some(News::Logprobs(token)),
            Event::Timings(timings) => Some(News::Timings(timings)),
            Event::Progress(progress) => Some(News::Progress(progress)),
            Event::Id(id) => {
                if let Some(written) = &mut reader.written {
                    written.ids.push(id);
                }
                None
            }
            Event::Failed(error) => Some(News::Failed(error)),
        };
        for piece in pieces {
            let deltas = reader.deltas(piece).map(|delta| (index, News::Delta(delta)));
            self.news.extend(deltas);
        }
        if let Some(News::Finished(_)) = end {
            let written = reader.written.take();
            self.news.extend(written.map(|written| (index, News::Written(written))));
        }
        self.news.extend(end.map(|end| (index, end)));
    }
}

impl Reader {
    fn new(reading: Option<&Reading>) -> Self {
        let parser = reading.map(|Reading { format, how, unread_calls, .. }| {
            let mut how = how.clone();
            if *unread_calls {
                how.tools.clear();
            }
            AnswerParser::new(*format, how)
        });
        let place = reading.map_or(ReasoningFormat::Apart, |reading| reading.reasoning);
        let marks = reading.map(|reading| reading.format.reasoning());
        Self {
            parser,
            n_calls: 0,
            n_reasoning: 0,
            marks: marks.filter(|_| place != ReasoningFormat::Apart),
            apart: place != ReasoningFormat::InContent,
            in_reasoning: false,
            written: reading.filter(|reading| reading.verbose).map(|_| Written::default()),
        }
    }

    /// Takes what a token has added to the text.
    fn push(&mut self, text: String, pieces: &mut Vec<AnswerPiece>) {
        if let Some(written) = &mut self.written {
            written.text.push_str(&text);
        }
        match &mut self.parser {
            Some(parser) => {
                parser.push(&text, pieces);
                self.n_reasoning += usize::from(parser.is_reasoning());
            }
            None => pieces.push(AnswerPiece::Content(text)),
        }
    }

    /// What the client is told of a piece.
    fn deltas(&mut self, piece: AnswerPiece) -> impl Iterator<Item = Delta> + use<> {
        let (mut mark, mut inside) = (None, None);
        if let Some((open, close)) = self.marks {
            let reasoning = matches!(piece, AnswerPiece::Reasoning(_));
            if reasoning != self.in_reasoning {
                self.in_reasoning = reasoning;
                // The parser leaves out the white space around them.
                mark = Some(match reasoning {
                    true => format!("{open}\n"),
                    false => format!("\n{close}\n\n"),
                });
            }
            if let AnswerPiece::Reasoning(text) = &piece {
                inside = Some(text.clone());
            }
        }
        let own = (inside.is_none() || self.apart).then(|| self.delta(piece));
        let content = mark.into_iter().chain(inside).map(Delta::Content);
        content.chain(own)
    }

    fn delta(&mut self, piece: AnswerPiece) -> Delta {
        let index = self.n_calls.saturating_sub(1);
        match piece {
            AnswerPiece::Content(text) => Delta::Content(text),
            AnswerPiece::Reasoning(text) => Delta::Reasoning(text),
            AnswerPiece::CallBegin(name) => {
                self.n_calls += 1;
                Delta::ToolCallBegin { index: self.n_calls - 1, id: call_id(), name }
            }
            AnswerPiece::CallArguments(text) => Delta::ToolCallArguments { index, text },
            AnswerPiece::CallEnd => Delta::ToolCallEnd { index },
        }
    }
}

impl Stream for Messages {
    type Item = (usize, News);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Poll::Ready(Some(news));
            }
            match ready!(Pin::new(&mut self.answers).poll_next(context)) {
                Some((index, event)) => self.read(index, event),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// A name that no other call has, here or elsewhere: nine letters and digits, for some templates accept nothing
/// else.
fn call_id() -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    static N_CALLS: AtomicU64 = AtomicU64::new(0);
    let mut number = RandomState::new().hash_one(N_CALLS.fetch_add(1, Ordering::Relaxed));
    let digit = |_| {
        let digit = DIGITS[(number % 62) as usize];
        number /= 62;
        char::from(digit)
    };
    (0..9).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_names_of_their_own() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| call_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(
            ids.iter().all(|id| id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()))
        );
    }
}
