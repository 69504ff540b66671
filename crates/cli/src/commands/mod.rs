//! One module a command.
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod detokenize;
pub(crate) mod doctor;
pub(crate) mod list;
pub(crate) mod logits;
pub(crate) mod perplexity;
pub(crate) mod profile;
pub(crate) mod pull;
pub(crate) mod render;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod show;
pub(crate) mod synth;
pub(crate) mod tokenize;

use crate::cli::{Cli, Command};
use crate::terminal::harmless;
use anyhow::Result;
use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};
use unicode_width::UnicodeWidthStr;

/// Does what the command line says.
pub(crate) fn execute(cli: Cli) -> Result<()> {
    let globals = &cli.globals;
    match cli.command {
        Command::Run(args) => run::execute(&args, globals),
        Command::Chat(args) => chat::execute(&args, globals),
        Command::Serve(args) => serve::execute(&args, globals),
        Command::Show(args) => show::execute(&args, globals),
        Command::Pull(args) => pull::execute(&args, globals),
        Command::List(args) => list::execute(&args, globals),
        Command::Rm(args) => rm::execute(&args, globals),
        Command::Tokenize(args) => tokenize::execute(&args, globals),
        Command::Detokenize(args) => detokenize::execute(&args, globals),
        Command::Render(args) => render::execute(&args, globals),
        Command::Logits(args) => logits::execute(&args, globals),
        Command::Perplexity(args) => perplexity::execute(&args, globals),
        Command::Bench(args) => bench::execute(&args, globals),
        Command::Profile(args) => profile::execute(&args, globals),
        Command::Doctor(args) => doctor::execute(&args, globals),
        Command::Synth(args) => synth::execute(&args),
        Command::Completions(args) => completions::execute(&args),
    }
}

/// Writes `text` to standard output, exactly.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes a text that comes from a file or a model: exactly into files and pipes, and without what could steer
/// the terminal onto one, where its last line is ended.
fn print_foreign(text: &str) -> Result<()> {
    if !std::io::stdout().is_terminal() {
        return print(text);
    }
    let end = if text.ends_with('\n') { "" } else { "\n" };
    print(&(harmless(text) + end))
}

/// Writes `value` and a newline to standard output.
fn print_json(value: &impl Serialize) -> Result<()> {
    print(&(serde_json::to_string(value)? + "\n"))
}

/// Columns under their headings, as wide as what they hold.
fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = headings.map(UnicodeWidthStr::width);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    let mut out = String::new();
    let mut line = |cells: [&str; N]| {
        let start = out.len();
        for (cell, width) in cells.into_iter().zip(widths) {
            out.push_str(cell);
            out.push_str(&" ".repeat(width.saturating_sub(cell.width()) + 3));
        }
        out.truncate(start + out[start..].trim_end().len());
        out.push('\n');
    };
    line(headings);
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [["a", "1 B"].map(String::from), ["日本", "22 B"].map(String::from)];
        let expected = "N      SIZE\na      1 B\n日本   22 B\n";
        assert_eq!(table(["N", "SIZE"], &rows), expected);
    }
}
