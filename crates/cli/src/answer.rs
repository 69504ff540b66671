//! How an answer looks while it arrives: reasoning faint, Markdown drawn, or plain text as it is.
use crate::interrupt::Interrupt;
use crate::markdown::MarkdownStream;
use crate::terminal::{StatusLine, Terminal, harmless};
use anyhow::Result;
use hurtle_engine::constraint::GrammarConstraint;
use hurtle_engine::{Extras, Generation, GenerationParams, Progress, Session};
use hurtle_text::{
    AnswerFormat, AnswerParser, AnswerPiece, ChatPrompt, ChatTemplate, ReadAnswer, Reasoning,
};
use std::io::{self, Write};
use std::ops::ControlFlow;

/// From so many prompt tokens on, the user is told how far they are processed.
const LONG_PROMPT: usize = 64;

/// What a model said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) content: String,
    pub(crate) reasoning: String,
}

/// A prompt, and how its answer is read.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) ids: Vec<u32>,
    /// `None`: as a text that goes on.
    format: Option<AnswerFormat>,
    /// Whether the answer begins with reasoning.
    reasoning: Reasoning,
}

impl Question {
    /// A text to go on with.
    pub(crate) fn text(ids: Vec<u32>) -> Self {
        Self { ids, format: None, reasoning: Reasoning::Off }
    }

    /// A conversation to answer.
    pub(crate) fn conversation(template: &ChatTemplate, prompt: ChatPrompt) -> Self {
        let ChatPrompt { ids, reasoning } = prompt;
        Self { ids, format: Some(template.answer_format()), reasoning }
    }

    /// Has no reasoning come before a form, unless the prompt has opened it.
    pub(crate) fn begin_with_answer(&mut self) {
        if self.reasoning == Reasoning::Possible {
            self.reasoning = Reasoning::Off;
        }
    }

    /// Tells reasoning from answer.
    pub(crate) fn parser(&self) -> Option<AnswerParser> {
        let thinking = self.reasoning == Reasoning::Opened;
        let how = ReadAnswer { thinking, ..ReadAnswer::default() };
        self.format.map(|format| AnswerParser::new(format, how))
    }

    /// Reads a whole answer.
    pub(crate) fn read(&self, text: &str) -> Said {
        let mut said = Said::default();
        let Some(mut parser) = self.parser() else {
            said.content = text.to_owned();
            return said;
        };
        let mut pieces = Vec::new();
        parser.push(text, &mut pieces);
        parser.finish(&mut pieces);
        for piece in pieces {
            match piece {
                AnswerPiece::Content(text) => said.content += &text,
                AnswerPiece::Reasoning(text) => said.reasoning += &text,
                // Nothing is read as a call where there are no tools.
                AnswerPiece::CallBegin(_)
                | AnswerPiece::CallArguments(_)
                | AnswerPiece::CallEnd => {}
            }
        }
        said
    }

    /// What the answer has beside its parameters: a grammar, which holds behind the reasoning, and
    /// log-probabilities.
    pub(crate) fn extras(
        &self,
        constraint: Option<&GrammarConstraint>,
        logprobs: Option<usize>,
    ) -> Extras {
        let opening = self.format.and_then(|format| format.opening(self.reasoning));
        let constraint = constraint.cloned().map(|constraint| {
            Box::new(opening.into_iter().fold(constraint, GrammarConstraint::after)) as _
        });
        Extras { constraint, logprobs }
    }
}

/// Generates the answer and prints it as it comes, if there is a printer. Ctrl-C stops it.
///
/// # Errors
/// What the engine refuses; an [`io::Error`] if the answer cannot be written.
pub(crate) fn generate<W: Write>(
    session: &mut Session<'_>,
    question: &Question,
    params: &GenerationParams,
    extras: Extras,
    interrupt: &Interrupt,
    mut printer: Option<AnswerPrinter<W>>,
) -> Result<Generation> {
    let Question { ids, format, .. } = question;
    let mut params = params.clone();
    if let Some(format) = format {
        params.shown = format.special_tokens(session.engine().tokenizer(), false);
    }
    let mut status = StatusLine::new();
    if ids.len() >= LONG_PROMPT {
        status.set(&format!("processing prompt 0/{}", ids.len()));
    }
    let mut written = Ok(());
    let held = interrupt.hold();
    let generated = session.generate_with(ids, &params, extras, &mut |progress| {
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
    Pretty(Box<Pretty>),
}

/// Reasoning faint, Markdown drawn.
#[derive(Debug)]
struct Pretty {
    terminal: Terminal,
    parser: Option<AnswerParser>,
    markdown: MarkdownStream,
    /// What was shown last is reasoning, from which a blank line parts the answer.
    reasoning: bool,
}

impl Pretty {
    fn push(&mut self, text: &str) -> String {
        match &mut self.parser {
            Some(parser) => {
                let mut pieces = Vec::new();
                parser.push(text, &mut pieces);
                self.draw(pieces)
            }
            None => self.markdown.push(text),
        }
    }

    fn finish(&mut self) -> String {
        let mut pieces = Vec::new();
        if let Some(parser) = &mut self.parser {
            parser.finish(&mut pieces);
        }
        self.draw(pieces) + &self.markdown.finish()
    }

    fn draw(&mut self, pieces: Vec<AnswerPiece>) -> String {
        let mut shown = String::new();
        for piece in pieces {
            match piece {
                AnswerPiece::Reasoning(text) => {
                    self.reasoning = true;
                    shown += &self.terminal.dim(&harmless(&text));
                }
                AnswerPiece::Content(text) => {
                    if std::mem::take(&mut self.reasoning) {
                        shown += "\n\n";
                    }
                    shown += &self.markdown.push(&text);
                }
                // Nothing is read as a call where there are no tools.
                AnswerPiece::CallBegin(_)
                | AnswerPiece::CallArguments(_)
                | AnswerPiece::CallEnd => {}
            }
        }
        shown
    }
}

impl<W: Write> AnswerPrinter<W> {
    /// A printer for one answer, of which `parser` tells what is reasoning. `plain` leaves the text as it is
    /// on a terminal too.
    pub(crate) fn new(
        out: W,
        terminal: Terminal,
        plain: bool,
        parser: Option<AnswerParser>,
    ) -> Self {
        let style = if !plain && (terminal.stdout || terminal.color) {
            let markdown = MarkdownStream::new(terminal.width(), terminal.color);
            Style::Pretty(Box::new(Pretty { terminal, parser, markdown, reasoning: false }))
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
            Style::Pretty(pretty) => pretty.push(text),
        };
        self.write(&shown)
    }

    /// Writes what was held back and ends the line.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let rest = match &mut self.style {
            Style::Pretty(pretty) => pretty.finish(),
            Style::Verbatim | Style::Harmless => String::new(),
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a terminal without colours shows of `text`, however it is cut into pieces.
    #[track_caller]
    fn check(template: &str, thinking: bool, text: &str, shown: &str) {
        let template = ChatTemplate::builtin(template, "", "").expect("a template");
        let reasoning = if thinking { Reasoning::Opened } else { Reasoning::Possible };
        let prompt = ChatPrompt { ids: Vec::new(), reasoning };
        let question = Question::conversation(&template, prompt);
        let terminal = Terminal { interactive: false, stdout: true, color: false };
        for size in 1..=text.len().max(1) {
            let chars: Vec<char> = text.chars().collect();
            let mut out = Vec::new();
            let mut printer = AnswerPrinter::new(&mut out, terminal, false, question.parser());
            for piece in chars.chunks(size) {
                printer.push(&piece.iter().collect::<String>()).expect("written");
            }
            printer.finish().expect("written");
            let out = String::from_utf8(out).expect("UTF-8");
            assert_eq!(out, shown, "in pieces of {size}: {text:?}");
        }
    }

    #[test]
    fn reasoning_is_told_from_the_answer() {
        check("chatml", false, "plain", "plain\n");
        check("chatml", false, "<think>\nhm\n</think>\n\nyes", "hm\n\nyes\n");
        check("chatml", false, "\n <think>hm</think>yes", "hm\n\nyes\n");
        check("chatml", false, "<think>\n\n</think>\n\nyes", "yes\n");
        check("chatml", true, "hm a < b </thin\n\n</think>\nyes", "hm a < b </thin\n\nyes\n");
        check("chatml", true, "\nhm", "hm\n");
        check("chatml", true, "hm </thi", "hm </thi\n");
        check("chatml", false, "a <think> is a tag</think>", "a <think> is a tag</think>\n");
        check("chatml", false, "<thi", "<thi\n");
        check("chatml", false, "", "");
        let channels = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes";
        check("gpt-oss", false, channels, "hm\n\nyes\n");
    }

    #[test]
    fn pipes_get_the_text_as_it_is() {
        let print = |terminal| {
            let mut out = Vec::new();
            let mut printer = AnswerPrinter::new(&mut out, terminal, true, None);
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
