//! What the tests of the binary share: a surrounding without the user's models, and the golden model.
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use tempfile::TempDir;

/// A tiny random model with a byte-level vocabulary of 272 tokens and no chat template.
const MODEL: &str = "archs/llama.gguf";

/// A file of the golden data.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// The golden model, as an argument.
pub(crate) fn model() -> &'static str {
    static PATH: LazyLock<String> = LazyLock::new(|| golden(MODEL).display().to_string());
    &PATH
}

/// The environment variables of a user who has nothing, under `home`, and no network.
pub(crate) fn environment(home: &Path) -> Vec<(&'static str, PathBuf)> {
    vec![
        ("HOME", home.to_owned()),
        ("HURTLE_OFFLINE", "1".into()),
        ("HURTLE_MODELS", home.join("models")),
        ("HF_HUB_CACHE", home.join("hf")),
        ("OLLAMA_MODELS", home.join("ollama")),
        ("XDG_STATE_HOME", home.join("state")),
        ("PATH", std::env::var_os("PATH").unwrap_or_default().into()),
        ("TERM", "xterm-256color".into()),
    ]
}

/// What a run of the program gave.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the program with `input` on standard input.
pub(crate) fn run_with(args: &[&str], input: &[u8]) -> Run {
    let home = TempDir::new().expect("a folder");
    run_in(&home, args, input)
}

/// Runs the program for the user whose folder is `home`.
pub(crate) fn run_in(home: &TempDir, args: &[&str], input: &[u8]) -> Run {
    run_with_env(home, &[], args, input)
}

/// Runs the program with further environment variables.
pub(crate) fn run_with_env(
    home: &TempDir,
    env: &[(&str, &str)],
    args: &[&str],
    input: &[u8],
) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hurtle"))
        .args(args)
        .env_clear()
        .envs(environment(home.path()))
        .envs(env.iter().copied())
        .current_dir(home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A program that fails early does not read its input.
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().expect("the program ends");
    Run {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the program with nothing on standard input.
pub(crate) fn run(args: &[&str]) -> Run {
    run_with(args, b"")
}

impl Run {
    /// Standard output of a run that went well.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.status, Some(0), "{self:?}");
        self.stdout
    }

    /// Standard output of a run that went well, as JSON.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }
}
