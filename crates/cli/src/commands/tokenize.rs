//! `hurtle tokenize`: text to tokens.
use crate::args::{GlobalArgs, ModelArgs, read_stdin, read_text};
use crate::models;
use anyhow::Result;
use clap::Args;
use hurtle_text::Encode;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Splits a text into the model's tokens, one a line with its id. The weights are not read.
///
/// The text is taken exactly as it comes, a newline at its end included.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle tokenize -m gemma3:270m -p \"Hello world\"
  hurtle tokenize -m model.gguf --ids --no-bos < text.txt")]
pub(crate) struct TokenizeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text; standard input if neither this nor --file is given
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with the text
    #[arg(short, long, conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Print one JSON array of ids and nothing else
    #[arg(long)]
    ids: bool,
    /// Text that spells a control token stays text
    #[arg(long)]
    no_parse_special: bool,
    /// Do not add BOS (or EOS), whatever the model says
    #[arg(long)]
    no_bos: bool,
}

pub(crate) fn execute(args: &TokenizeArgs, globals: &GlobalArgs) -> Result<()> {
    let text = match (&args.prompt, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read_text(path)?,
        (None, None) => read_stdin()?,
    };
    let (_, tok) = models::open(&args.model, globals)?;
    let how = Encode { add_special: !args.no_bos, parse_special: !args.no_parse_special };
    let ids = tok.encode(&text, how);
    if args.ids {
        return super::print_json(&ids);
    }
    let mut out = String::new();
    for id in ids {
        writeln!(out, "{id:>6}  '{}'", piece(&tok.token_bytes(id, true)))?;
    }
    super::print(&out)
}

/// The bytes of a token on one line: what is not printable text is escaped.
fn piece(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::piece;

    #[test]
    fn pieces_fit_on_a_line() {
        assert_eq!(piece(" héllo".as_bytes()), " héllo");
        assert_eq!(piece(b"a\n\t\x1b'"), "a\\n\\t\\u{1b}'");
        assert_eq!(piece(b"\xe2\x82z"), "\\xe2\\x82z");
    }
}
