//! How an answer looks while it arrives: reasoning faint, Markdown drawn, or plain text as it is.
use crate::interrupt::Interrupt;
use crate::markdown::MarkdownStream;
use crate::terminal::{StatusLine, Terminal, harmless};
use anyhow::Result;
use hurtle_engine::constraint::GrammarConstraint;
use hurtle_engine::{Extras, Generation, GenerationParams, Progress, Session};
use std::io::{self, Write};
use std::ops::ControlFlow;

/// From so many prompt tokens on, the user is told how far they are processed.
const LONG_PROMPT: usize = 64;

/// What an answer has beside its parameters: a grammar, which holds behind the reasoning if the prompt has
/// opened a section of it, and log-probabilities.
pub(crate) fn extras(
    constraint: Option<&GrammarConstraint>,
    thinking: bool,
    logprobs: Option<usize>,
) -> Extras {
    let constraint = constraint.cloned().map(|constraint| match thinking {
        true => Box::new(constraint.after(CLOSE, None)) as _,
        false => Box::new(constraint) as _,
    });
    Extras { constraint, logprobs }
}

/// Generates after the prompt `ids` and prints the answer as it comes, if there is a printer. Ctrl-C stops it.
///
/// # Errors
/// What the engine refuses; an [`io::Error`] if the answer cannot be written.
pub(crate) fn generate<W: Write>(
    session: &mut Session<'_>,
    ids: &[u32],
    params: &GenerationParams,
    extras: Extras,
    interrupt: &Interrupt,
    mut printer: Option<AnswerPrinter<W>>,
) -> Result<Generation> {
    let mut status = StatusLine::new();
    if ids.len() >= LONG_PROMPT {
        status.set(&format!("processing prompt 0/{}", ids.len()));
    }
    let mut written = Ok(());
    let held = interrupt.hold();
    let generated = session.generate_with(ids, params, extras, &mut |progress| {
        match progress {
            Progress::Prompt { done, total } if done < total => {
                status.set(&format!("processing prompt {done}/{total}"));
            }
            Progress::Text(text) => {
                status.clear();
                if let Some(printer) = &mut printer {
                    written = printer.push(text);
                }
            }
            _ => {}
        }
        if written.is_err() || held.pressed() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    drop(held);
    drop(status);
    written?;
    printer.map_or(Ok(()), AnswerPrinter::finish)?;
    Ok(generated?)
}

/// The tags around what a reasoning model thinks before it answers.
const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Writes an answer to standard output as it arrives.
#[derive(Debug)]
pub(crate) struct AnswerPrinter<W: Write> {
    out: W,
    style: Style,
    ends_line: bool,
}

#[derive(Debug)]
enum Style {
    /// Exactly the text, for files and pipes.
    Verbatim,
    /// The text without what could steer the terminal.
    Harmless,
    /// For a person.
    Pretty { terminal: Terminal, thoughts: ThoughtSplitter, markdown: Box<MarkdownStream> },
}

impl<W: Write> AnswerPrinter<W> {
    /// A printer for one answer. `plain` leaves the text as it is on a terminal too; `thinking` says
    /// that the prompt has opened a section of reasoning already.
    pub(crate) fn new(out: W, terminal: Terminal, plain: bool, thinking: bool) -> Self {
        let style = if !plain && (terminal.stdout || terminal.color) {
            Style::Pretty {
                terminal,
                thoughts: ThoughtSplitter::new(thinking),
                markdown: Box::new(MarkdownStream::new(terminal.width(), terminal.color)),
            }
        } else if terminal.stdout {
            Style::Harmless
        } else {
            Style::Verbatim
        };
        Self { out, style, ends_line: true }
    }

    /// Writes what can be shown of the answer with `text` added.
    pub(crate) fn push(&mut self, text: &str) -> io::Result<()> {
        let shown = match &mut self.style {
            Style::Verbatim => text.to_owned(),
            Style::Harmless => harmless(text),
            Style::Pretty { terminal, thoughts, markdown } => {
                let parts = thoughts.push(text);
                draw(parts, *terminal, markdown)
            }
        };
        self.write(&shown)
    }

    /// Writes what was held back and ends the line.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let mut rest = String::new();
        if let Style::Pretty { terminal, thoughts, markdown } = &mut self.style {
            let parts = thoughts.finish();
            rest = draw(parts, *terminal, markdown);
            rest.push_str(&markdown.finish());
        }
        self.write(&rest)?;
        if !self.ends_line {
            self.write("\n")?;
        }
        Ok(())
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if let Some(last) = text.chars().next_back() {
            self.ends_line = last == '\n';
            self.out.write_all(text.as_bytes())?;
            self.out.flush()?;
        }
        Ok(())
    }
}

fn draw(parts: Vec<Part>, terminal: Terminal, markdown: &mut MarkdownStream) -> String {
    let show = |part| match part {
        Part::Thought(text) => terminal.dim(&harmless(&text)),
        Part::Answer(text) => markdown.push(&text),
    };
    parts.into_iter().map(show).collect()
}

/// A stretch of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// What stands between the tags; a blank line takes the place of the closing one.
    Thought(String),
    /// The rest.
    Answer(String),
}

/// Tells reasoning from answer while the text arrives in pieces. Only a tag at the very beginning
/// opens a section of reasoning: later ones are talk about tags.
#[derive(Debug)]
struct ThoughtSplitter {
    state: State,
    /// Text that may turn out to be part of a tag.
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Start,
    /// After the opening tag, before any thought.
    ThoughtStart,
    Thought,
    /// After the closing tag, before any answer.
    AnswerStart,
    Answer,
}

impl ThoughtSplitter {
    fn new(thinking: bool) -> Self {
        let state = if thinking { State::ThoughtStart } else { State::Start };
        Self { state, held: String::new() }
    }

    fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        loop {
            match self.state {
                State::Start => {
                    let begin = self.held.trim_start();
                    if let Some(rest) = begin.strip_prefix(OPEN) {
                        self.held = rest.to_owned();
                        self.state = State::ThoughtStart;
                    } else if OPEN.starts_with(begin) {
                        return parts; // undecided, or only white space
                    } else {
                        self.state = State::Answer;
                    }
                }
                State::ThoughtStart => {
                    self.held = self.held.trim_start().to_owned();
                    if let Some(rest) = self.held.strip_prefix(CLOSE) {
                        self.held = rest.to_owned();
                        self.state = State::AnswerStart; // it did not think
                    } else if CLOSE.starts_with(&self.held) {
                        return parts;
                    } else {
                        self.state = State::Thought;
                    }
                }
                State::Thought => {
                    if let Some(at) = self.held.find(CLOSE) {
                        let thought = self.held[..at].trim_end();
                        parts.push(Part::Thought(format!("{thought}\n\n")));
                        self.held = self.held[at + CLOSE.len()..].to_owned();
                        self.state = State::AnswerStart;
                    } else {
                        let end = self.held.len() - undecided(&self.held);
                        let rest = self.held.split_off(end);
                        parts.extend(take(&mut self.held).map(Part::Thought));
                        self.held = rest;
                        return parts;
                    }
                }
                State::AnswerStart => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return parts;
                    }
                    self.state = State::Answer;
                }
                State::Answer => {
                    parts.extend(take(&mut self.held).map(Part::Answer));
                    return parts;
                }
            }
        }
    }

    fn finish(&mut self) -> Vec<Part> {
        let thinking = matches!(self.state, State::ThoughtStart | State::Thought);
        let part = if thinking { Part::Thought } else { Part::Answer };
        take(&mut self.held).map(part).into_iter().collect()
    }
}

/// Bytes at the end of a thought that may be white space before the closing tag, or part of it.
fn undecided(text: &str) -> usize {
    let tag = (1..CLOSE.len()).rev().find(|&n| text.ends_with(&CLOSE[..n])).unwrap_or(0);
    text.len() - text[..text.len() - tag].trim_end().len()
}

fn take(text: &mut String) -> Option<String> {
    (!text.is_empty()).then(|| std::mem::take(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of `text`, cut into pieces in every way that is asked for, are always the same.
    #[track_caller]
    fn check(thinking: bool, text: &str, thought: &str, answer: &str) {
        for size in 1..=text.len().max(1) {
            let chars: Vec<char> = text.chars().collect();
            let mut splitter = ThoughtSplitter::new(thinking);
            let mut parts: Vec<Part> = chars
                .chunks(size)
                .flat_map(|piece| splitter.push(&piece.iter().collect::<String>()))
                .collect();
            parts.extend(splitter.finish());
            let (mut thoughts, mut answers) = (String::new(), String::new());
            for part in parts {
                match part {
                    Part::Thought(text) => {
                        assert_eq!(answers, "", "a thought after the answer");
                        thoughts.push_str(&text);
                    }
                    Part::Answer(text) => answers.push_str(&text),
                }
            }
            assert_eq!((&*thoughts, &*answers), (thought, answer), "in pieces of {size}: {text:?}");
        }
    }

    #[test]
    fn thoughts_are_told_from_answers() {
        check(false, "plain", "", "plain");
        check(false, "<think>\nhm\n</think>\n\nyes", "hm\n\n", "yes");
        check(false, "\n <think>hm</think>yes", "hm\n\n", "yes");
        check(false, "<think>\n\n</think>\n\nyes", "", "yes");
        check(true, "hm a < b </thin\n\n</think>\nyes", "hm a < b </thin\n\n", "yes");
        check(true, "\nhm", "hm", "");
        check(true, "hm </thi", "hm </thi", "");
        check(false, "a <think> is a tag</think>", "", "a <think> is a tag</think>");
        check(false, "<thin air", "", "<thin air");
        check(false, "<thi", "", "<thi");
        check(false, "  ", "", "  ");
        check(false, "", "", "");
    }

    #[test]
    fn pipes_get_the_text_as_it_is() {
        let print = |terminal| {
            let mut out = Vec::new();
            let mut printer = AnswerPrinter::new(&mut out, terminal, true, false);
            printer.push("<think>a\x1b[31m").expect("written");
            printer.push("**b**").expect("written");
            printer.finish().expect("written");
            String::from_utf8(out).expect("UTF-8")
        };
        let pipe = Terminal { interactive: false, stdout: false, color: false };
        assert_eq!(print(pipe), "<think>a\x1b[31m**b**\n");
        assert_eq!(print(Terminal { stdout: true, ..pipe }), "<think>a\u{fffd}[31m**b**\n");
    }
}
