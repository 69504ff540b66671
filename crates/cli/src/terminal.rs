//! What the program knows of the terminal it talks to, and the lines it writes beside its output.
use crate::args::{ColorChoice, GlobalArgs};
use std::io::{IsTerminal as _, Write as _, stderr, stdin, stdout};
use std::time::{Duration, Instant};
use unicode_width::UnicodeWidthStr as _;

/// Columns when nobody tells.
const DEFAULT_WIDTH: usize = 80;

/// How to show things.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    /// Standard input and output are a person's terminal.
    pub(crate) interactive: bool,
    /// Standard output is a terminal.
    pub(crate) stdout: bool,
    /// Use colours on standard output.
    pub(crate) color: bool,
}

impl Terminal {
    /// Looks at the standard streams and at `--color`, `NO_COLOR` and `TERM`.
    pub(crate) fn detect(globals: &GlobalArgs) -> Self {
        let stdout = stdout().is_terminal();
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let color = match globals.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                stdout && set("NO_COLOR").is_none() && set("TERM").is_none_or(|t| t != "dumb")
            }
        };
        Self { interactive: stdout && stdin().is_terminal(), stdout, color }
    }

    /// Columns of the terminal.
    pub(crate) fn width(self) -> usize {
        if self.stdout { columns() } else { DEFAULT_WIDTH }
    }

    /// `text` faint, where colours are used.
    pub(crate) fn dim(self, text: &str) -> String {
        if self.color { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Columns of the terminal that one of the standard streams is connected to.
fn columns() -> usize {
    let size = crossterm::terminal::size().ok();
    size.map_or(DEFAULT_WIDTH, |(columns, _)| usize::from(columns)).max(1)
}

/// Writes a line to standard error. That nobody listens there is no reason to stop.
pub(crate) fn say(text: &str) {
    let _ = writeln!(stderr().lock(), "{text}");
}

/// `text` without the control characters by which a file or a model could steer the terminal.
pub(crate) fn harmless(text: &str) -> String {
    let shown = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// A line on standard error that says what takes so long, and vanishes. Nothing is shown where
/// standard error is no terminal.
#[derive(Debug)]
pub(crate) struct StatusLine {
    enabled: bool,
    /// Columns that the line on the screen occupies.
    shown: usize,
    /// When the line last changed.
    since: Option<Instant>,
}

impl StatusLine {
    /// The least time between two versions of the line.
    const PAUSE: Duration = Duration::from_millis(50);

    /// An empty line.
    pub(crate) fn new() -> Self {
        Self { enabled: stderr().is_terminal(), shown: 0, since: None }
    }

    /// Shows `text`, as far as it fits, in place of what the line said.
    pub(crate) fn set(&mut self, text: &str) {
        if !self.enabled || self.since.is_some_and(|since| since.elapsed() < Self::PAUSE) {
            return;
        }
        // A line that wraps could not be taken away; half a line is space even for wide characters.
        let fits = if text.is_ascii() { columns() - 1 } else { columns() / 2 };
        let text: String = harmless(text).chars().take(fits).collect();
        self.clear();
        self.shown = text.width();
        let mut err = stderr().lock();
        let _ = write!(err, "{text}").and_then(|()| err.flush());
        self.since = Some(Instant::now());
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        if self.shown > 0 {
            let mut err = stderr().lock();
            let _ = write!(err, "\r{:1$}\r", "", self.shown).and_then(|()| err.flush());
        }
        self.shown = 0;
        self.since = None;
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.clear();
    }
}

/// While it lives, what is typed does not appear on the terminal; it waits to be read.
#[cfg(unix)]
#[derive(Debug)]
pub(crate) struct NoEcho(Option<rustix::termios::Termios>);

#[cfg(unix)]
impl NoEcho {
    /// Switches the echo off, if standard input is a terminal.
    pub(crate) fn new() -> Self {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(stdin()).ok();
        if let Some(before) = &before {
            let mut silent = before.clone();
            silent.local_modes -= LocalModes::ECHO;
            // An echo does no harm but to the looks.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &silent);
        }
        Self(before)
    }
}

#[cfg(unix)]
impl Drop for NoEcho {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            use rustix::termios::{OptionalActions, tcsetattr};
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}

/// `1234567` as `1.2 MB`.
pub(crate) fn bytes(n: u64) -> String {
    scaled(n, 1000.0, &["B", "kB", "MB", "GB", "TB"])
}

/// `1234567` as `1.2 M`.
pub(crate) fn count(n: u64) -> String {
    scaled(n, 1000.0, &["", "k", "M", "B", "T"])
}

fn scaled(n: u64, step: f64, units: &[&str]) -> String {
    let mut value = n as f64;
    let mut unit = 0;
    // 999.95 would be printed as 1000.0.
    while value >= step - 0.05 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let number = if unit == 0 { n.to_string() } else { format!("{value:.1}") };
    format!("{number} {}", units[unit]).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let check = |n, expected: &str| assert_eq!(bytes(n), expected);
        check(0, "0 B");
        check(999, "999 B");
        check(1_000, "1.0 kB");
        check(98_437_654, "98.4 MB");
        check(999_960_000, "1.0 GB");
        check(u64::MAX, "18446744.1 TB");
        assert_eq!(count(134_515_008), "134.5 M");
        assert_eq!(count(12), "12");
    }

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(harmless("a\x1b[31mb\tc\r\nd\u{9b}e"), "a\u{fffd}[31mb\tc\u{fffd}\nd\u{fffd}e");
    }
}
