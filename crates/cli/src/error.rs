//! How a failure reaches the user: `error: ...`, then what can be done about it as `hint: ...`.
//!
//! The libraries put remedies into their messages as lines that begin with `hint:`; here the messages
//! of the whole chain come first and the hints last.
use std::fmt;
use std::io;
use std::process::ExitCode;

/// Exit status of a failure while running.
const FAILED: u8 = 1;
/// Exit status of a command line that makes no sense; clap's own messages use it too.
const USAGE: u8 = 2;
/// Exit status after Ctrl-C, as shells expect it.
const INTERRUPTED: u8 = 130;

/// A command line that clap accepts and that makes no sense all the same.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Returns a [`Usage`] error.
macro_rules! usage {
    ($($arg:tt)*) => { return Err($crate::error::Usage(format!($($arg)*)).into()) };
}
pub(crate) use usage;

/// The user broke off; everything worth saying has been said.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Tells the user on standard error and gives the exit status.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<Interrupted>() {
        return INTERRUPTED.into();
    }
    // The reader of our output has gone, as `head` does: not our failure.
    let is_broken_pipe = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    if error.chain().any(|cause| cause.downcast_ref().is_some_and(is_broken_pipe)) {
        return ExitCode::SUCCESS;
    }
    crate::terminal::say(&render(error));
    if error.is::<Usage>() { USAGE.into() } else { FAILED.into() }
}

/// The messages of the chain, then the hints, one a line.
pub(crate) fn render(error: &anyhow::Error) -> String {
    let mut message = String::new();
    let mut hints: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let mut lines = text.split("\nhint: ");
        let headline = lines.next().unwrap_or_default();
        // Many errors quote their cause themselves.
        if !message.contains(headline) {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(headline);
        }
        for hint in lines {
            if !hints.iter().any(|known| known == hint) {
                hints.push(hint.to_owned());
            }
        }
    }
    let hints = hints.iter().map(|hint| format!("\nhint: {hint}"));
    format!("error: {message}{}", hints.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[test]
    fn messages_first_hints_last() {
        let check = |error: anyhow::Error, expected: &str| assert_eq!(render(&error), expected);
        check(anyhow!("no such file"), "error: no such file");
        check(
            anyhow!("x.gguf: no such file\nhint: see 'hurtle list'").context("cannot load"),
            "error: cannot load: x.gguf: no such file\nhint: see 'hurtle list'",
        );
        check(anyhow!("disk full").context("x: disk full"), "error: x: disk full");
        let twice = Err::<(), _>(anyhow!("a\nhint: one")).context("b\nhint: one\nhint: two");
        check(twice.expect_err("an error"), "error: b: a\nhint: one\nhint: two");
    }
}
