//! What the user types: an editor on a terminal, plain lines from a file or a pipe.
use super::slash;
use crate::terminal::{Terminal, say};
use anyhow::{Context as _, Result};
use rustyline::completion::{Completer, FilenameCompleter};
use rustyline::config::Configurer as _;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::{Hint, Hinter};
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Editor, Helper};
use std::borrow::Cow;
use std::io::BufRead;
use std::path::PathBuf;

/// The mark of several lines.
const QUOTES: &str = "\"\"\"";
/// Lines kept for the arrow keys.
const HISTORY_LINES: usize = 1000;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// A message or a command, its lines put together.
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of the file.
    End,
}

/// Where input comes from.
pub(super) enum Reader {
    /// A person at a terminal.
    Editor { editor: Box<Editor<ChatHelper, FileHistory>>, history: Option<PathBuf>, keep: bool },
    /// A file or a pipe.
    Lines,
}

impl Reader {
    /// A reader that suits standard input.
    pub(super) fn new(terminal: Terminal) -> Result<Self> {
        if !terminal.interactive {
            return Ok(Self::Lines);
        }
        let config = Config::builder().completion_type(CompletionType::List).build();
        let mut editor = Editor::with_config(config).context("cannot read from the terminal")?;
        editor.set_max_history_size(HISTORY_LINES).context("history")?;
        editor.set_helper(Some(ChatHelper { files: FilenameCompleter::new(), terminal }));
        let history = history_path();
        // A history that cannot be read is no reason not to talk.
        if let Some(path) = history.as_ref().filter(|path| path.exists())
            && let Err(e) = editor.load_history(path)
        {
            say(&format!("note: {}: cannot read the history: {e}", path.display()));
        }
        Ok(Self::Editor { editor: Box::new(editor), history, keep: true })
    }

    /// Whether to keep what is typed for the arrow keys.
    pub(super) fn keep_history(&mut self, yes: bool) {
        if let Self::Editor { keep, .. } = self {
            *keep = yes;
        }
    }

    /// The next message or command.
    pub(super) fn read(&mut self) -> Result<Input> {
        match self {
            Self::Lines => read_lines(&mut std::io::stdin().lock()),
            Self::Editor { editor, history, keep } => match editor.readline(">>> ") {
                Ok(text) => {
                    if *keep && !text.trim().is_empty() {
                        editor.add_history_entry(&text).context("history")?;
                        if let Some(path) = history
                            && let Err(e) = save_history(editor, path)
                        {
                            say(&format!("note: {}: cannot keep the history: {e}", path.display()));
                            *history = None;
                        }
                    }
                    Ok(Input::Text(joined(&text)))
                }
                Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
                Err(ReadlineError::Eof) => Ok(Input::End),
                Err(e) => Err(e).context("cannot read from the terminal"),
            },
        }
    }
}

fn save_history(
    editor: &mut Editor<ChatHelper, FileHistory>,
    path: &PathBuf,
) -> rustyline::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    editor.append_history(path)
}

/// The file of the history, in the user's folder for state.
fn history_path() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let home = |rest: &str| std::env::home_dir().map(|home| home.join(rest));
    let folder = if cfg!(windows) {
        var("LOCALAPPDATA").or_else(|| home("AppData/Local"))
    } else if cfg!(target_os = "macos") {
        home("Library/Application Support")
    } else {
        var("XDG_STATE_HOME").or_else(|| home(".local/state"))
    };
    Some(folder?.join("hurtle").join("chat_history"))
}

/// One message or command from a file or a pipe.
fn read_lines(lines: &mut impl BufRead) -> Result<Input> {
    let mut text = String::new();
    loop {
        let mut bytes = Vec::new();
        lines.read_until(b'\n', &mut bytes).context("cannot read standard input")?;
        let line = String::from_utf8_lossy(&bytes);
        let line = line.strip_suffix('\n').unwrap_or(&line);
        text.push_str(line.strip_suffix('\r').unwrap_or(line));
        if bytes.is_empty() {
            // What was begun and not ended is still meant.
            let text = text.strip_suffix('\n').unwrap_or(&text);
            return Ok(if text.is_empty() { Input::End } else { Input::Text(joined(text)) });
        }
        if is_complete(&text) {
            return Ok(Input::Text(joined(&text)));
        }
        text.push('\n');
    }
}

/// Where a block of several lines begins: at the start, or as the argument of a command.
fn block_start(text: &str) -> Option<usize> {
    let at = text.find(QUOTES)?;
    (text.starts_with('/') || text[..at].trim().is_empty()).then_some(at)
}

/// Whether `text` is all of a message, or goes on in the next line.
fn is_complete(text: &str) -> bool {
    match block_start(text) {
        Some(at) => text[at + QUOTES.len()..].trim_end().ends_with(QUOTES),
        None => !text.ends_with('\\'),
    }
}

/// The message that was typed, without the marks that held its lines together.
fn joined(text: &str) -> String {
    let Some(at) = block_start(text) else {
        let text = text.replace("\\\n", "\n");
        return text.strip_suffix('\\').unwrap_or(&text).to_owned();
    };
    let block = &text[at + QUOTES.len()..];
    let block = block.trim_end().strip_suffix(QUOTES).unwrap_or(block);
    let block = block.strip_prefix('\n').unwrap_or(block);
    format!("{}{}", &text[..at], block.strip_suffix('\n').unwrap_or(block))
}

/// What the editor asks while a line is typed.
#[derive(Helper)]
pub(super) struct ChatHelper {
    files: FilenameCompleter,
    terminal: Terminal,
}

impl Validator for ChatHelper {
    fn validate(&self, ctx: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if is_complete(ctx.input()) {
            ValidationResult::Valid(None)
        } else {
            ValidationResult::Incomplete
        })
    }
}

impl Completer for ChatHelper {
    type Candidate = rustyline::completion::Pair;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        ctx: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Self::Candidate>)> {
        if slash::takes_file(line) {
            return self.files.complete(line, pos, ctx);
        }
        let typed = &line[..pos];
        if !typed.starts_with('/') {
            return Ok((pos, Vec::new()));
        }
        let pair = |command: &str| Self::Candidate {
            display: command.to_owned(),
            replacement: command.to_owned(),
        };
        Ok((0, slash::completions(typed).map(pair).collect()))
    }
}

/// Faint text where nothing is typed yet.
pub(super) struct Placeholder;

impl Hint for Placeholder {
    fn display(&self) -> &str {
        "Send a message (/? for help)"
    }
    fn completion(&self) -> Option<&str> {
        None
    }
}

impl Hinter for ChatHelper {
    type Hint = Placeholder;

    fn hint(&self, line: &str, _pos: usize, _ctx: &rustyline::Context<'_>) -> Option<Placeholder> {
        (line.is_empty() && self.terminal.color).then_some(Placeholder)
    }
}

impl Highlighter for ChatHelper {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Owned(self.terminal.dim(hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together() {
        let check = |file: &str, expected: &[&str]| {
            let mut lines = file.as_bytes();
            let mut found = Vec::new();
            while let Input::Text(text) = read_lines(&mut lines).expect("read") {
                found.push(text);
            }
            assert_eq!(found, expected, "{file:?}");
        };
        check("a\nb\r\n\nc", &["a", "b", "", "c"]);
        check("a\\\nb\\\n\nc\n", &["a\nb\n", "c"]);
        check("\"\"\"a\nb\"\"\"\nc\n", &["a\nb", "c"]);
        check("\"\"\"\n a\n\nb\n\"\"\"\nc\n", &[" a\n\nb", "c"]);
        check("\"\"\"one line\"\"\"\nc\n", &["one line", "c"]);
        check("/system \"\"\"a\nb\"\"\"\n", &["/system a\nb"]);
        check("say \"\"\" please\nb\n", &["say \"\"\" please", "b"]);
        check("\"\"\"never closed\nb", &["never closed\nb"]);
        check("a\\", &["a"]);
        check("\"\"\"\"\"\"\n", &[""]);
        check("", &[]);
    }
}
