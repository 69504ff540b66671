//! The hub against a scripted HTTP server, a fake pip and hand-made caches; no test needs a
//! network.
mod huggingface;
mod local;
mod pip;
mod server;
mod url;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hurtle_hub::{Hub, HubConfig, Progress};
use sha2::{Digest, Sha256};

/// A folder with an empty store, Hugging Face cache and Ollama store, gone when dropped.
struct Sandbox {
    root: tempfile::TempDir,
    config: HubConfig,
}

impl Sandbox {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut config = HubConfig::new(root.path().join("store"), root.path().join("hf"));
        config.ollama_stores = vec![root.path().join("ollama")];
        config.home = Some(root.path().join("home"));
        config.attempts = 4;
        config.backoff = Duration::from_millis(1);
        config.max_backoff = Duration::from_millis(20);
        config.timeout = Duration::from_secs(10);
        Self { root, config }
    }

    fn hub(&self) -> Hub {
        Hub::new(self.config.clone()).unwrap()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// All files below a folder of the sandbox, relative and sorted, without lock files.
    fn tree(&self, folder: &str) -> Vec<String> {
        fn walk(path: &Path, base: &Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), base, found);
                } else if !entry.path().to_string_lossy().ends_with(".lock") {
                    found.push(
                        entry.path().strip_prefix(base).unwrap().to_string_lossy().into_owned(),
                    );
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.path(folder), &self.path(folder), &mut found);
        found.sort();
        found
    }
}

/// Writes down what it is told.
#[derive(Default)]
struct Recorder {
    notes: Vec<String>,
    starts: usize,
    finishes: usize,
    last: u64,
}

impl Progress for Recorder {
    fn start(&mut self, _what: &str, _total: Option<u64>) {
        self.starts += 1;
    }
    fn advance(&mut self, done: u64) {
        self.last = done;
    }
    fn finish(&mut self) {
        self.finishes += 1;
    }
    fn note(&mut self, message: &str) {
        self.notes.push(message.to_owned());
    }
}

/// Bytes that begin like a GGUF file and repeat nowhere.
fn gguf(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let noise = (4..len).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    b"GGUF".iter().copied().chain(noise).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Asserts that `text` has all `parts`.
#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' is missing in: {text}");
    }
}
