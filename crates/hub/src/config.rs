//! Where to look and how to behave, as one value: tests and embedding programs need no environment.
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;
use crate::error::printable;

/// The Hugging Face server when `HF_ENDPOINT` names no other.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A secret that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Checks that the token can stand in an HTTP header.
    ///
    /// # Errors
    /// [`Error::Config`] if it is empty or holds anything but visible ASCII characters.
    pub fn new(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::Config {
                name: "HF_TOKEN".into(),
                why: "a token is one word of visible ASCII characters".into(),
            });
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Everything that a [`Hub`](crate::Hub) takes from its surroundings.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HubConfig {
    /// hurtle's own store. `HURTLE_MODELS`, else `hurtle/models` in the user's data folder.
    pub store: PathBuf,
    /// What `~` in a path stands for.
    pub home: Option<PathBuf>,
    /// Hugging Face's shared cache. `HF_HUB_CACHE`, else `$HF_HOME/hub`.
    pub hf_cache: PathBuf,
    /// The Hugging Face server or a mirror of it. `HF_ENDPOINT`.
    pub hf_endpoint: String,
    /// Sent to `hf_endpoint` and to no other host. `HF_TOKEN`, else the file `$HF_HOME/token`.
    pub hf_token: Option<Token>,
    /// Ollama stores, read and never changed. `OLLAMA_MODELS`, then the usual places.
    pub ollama_stores: Vec<PathBuf>,
    /// The Python whose pip fetches wheels; `None` tries `python3`, `python`, `pip3` and `pip`.
    /// `HURTLE_PYTHON`.
    pub python: Option<PathBuf>,
    /// Certificates to trust instead of the built-in ones, in PEM. `SSL_CERT_FILE`.
    pub ca_file: Option<PathBuf>,
    /// Use no network at all. `HURTLE_OFFLINE`.
    pub offline: bool,
    /// Do not ask Hugging Face. `HF_HUB_OFFLINE`.
    pub hf_offline: bool,
    /// How many requests in a row may fail before a download gives up. Default 6.
    pub attempts: u32,
    /// The pause after the first failure; doubled after each further one. Default 1 s.
    pub backoff: Duration,
    /// The longest pause, also when a server asks for more with `Retry-After`. Default 60 s.
    pub max_backoff: Duration,
    /// How long a server may be silent. Default 60 s.
    pub timeout: Duration,
}

impl HubConfig {
    /// A configuration that looks at nothing but `store` and a Hugging Face cache in `hf_cache`.
    pub fn new(store: impl Into<PathBuf>, hf_cache: impl Into<PathBuf>) -> Self {
        Self {
            store: store.into(),
            home: None,
            hf_cache: hf_cache.into(),
            hf_endpoint: DEFAULT_ENDPOINT.into(),
            hf_token: None,
            ollama_stores: Vec::new(),
            python: None,
            ca_file: None,
            offline: false,
            hf_offline: false,
            attempts: 6,
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(60),
            timeout: Duration::from_secs(60),
        }
    }

    /// The configuration that this process's environment describes; each field names its variables.
    ///
    /// # Errors
    /// [`Error::Config`] if a variable has an unusable value or no folder for the store can be
    /// derived.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_vars(&|name| std::env::var_os(name), std::env::home_dir())
    }

    /// [`HubConfig::from_env`] with the variables given by a function, and the user's home folder.
    ///
    /// # Errors
    /// As [`HubConfig::from_env`].
    pub fn from_vars(
        var: &dyn Fn(&str) -> Option<OsString>,
        home: Option<PathBuf>,
    ) -> Result<Self, Error> {
        let home = home.filter(|h| !h.as_os_str().is_empty());
        // An empty variable counts as unset, as everywhere in the XDG specification.
        let var = |name: &str| var(name).filter(|v| !v.is_empty());
        let path = |name: &str| var(name).map(|v| expand_home(Path::new(&v), home.as_deref()));
        let under_home = |rest: &str| home.as_ref().map(|h| h.join(rest));
        let no_home = |name: &str| Error::Config {
            name: name.into(),
            why: "not set, and this user has no home folder to derive it from".into(),
        };

        let data_dir = || {
            if cfg!(windows) {
                path("LOCALAPPDATA").or_else(|| under_home("AppData/Local"))
            } else if cfg!(target_os = "macos") {
                under_home("Library/Application Support")
            } else {
                path("XDG_DATA_HOME")
                    .filter(|p| p.is_absolute())
                    .or_else(|| under_home(".local/share"))
            }
        };
        let store = path("HURTLE_MODELS")
            .or_else(|| data_dir().map(|d| d.join("hurtle").join("models")))
            .ok_or_else(|| no_home("HURTLE_MODELS"))?;

        let hf_home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|c| c.join("huggingface")))
            .or_else(|| under_home(".cache/huggingface"));
        let hf_cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| hf_home.as_ref().map(|h| h.join("hub")))
            .ok_or_else(|| no_home("HF_HOME"))?;

        let mut config = Self::new(store, hf_cache);
        if let Some(endpoint) = var("HF_ENDPOINT") {
            config.hf_endpoint = utf8("HF_ENDPOINT", endpoint)?;
        }
        let token_file =
            path("HF_TOKEN_PATH").or_else(|| hf_home.as_ref().map(|h| h.join("token")));
        config.hf_token = match var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")) {
            Some(token) => Some(Token::new(&utf8("HF_TOKEN", token)?)?),
            // A token file that cannot be read or holds no token is the same as none.
            None => token_file
                .and_then(|f| std::fs::read_to_string(f).ok())
                .and_then(|text| Token::new(&text).ok()),
        };
        config.ollama_stores = [
            path("OLLAMA_MODELS"),
            under_home(".ollama/models"),
            Some(PathBuf::from("/usr/share/ollama/.ollama/models")),
        ]
        .into_iter()
        .flatten()
        .collect();
        config.python = path("HURTLE_PYTHON");
        config.ca_file = path("SSL_CERT_FILE");
        config.offline = flag("HURTLE_OFFLINE", var("HURTLE_OFFLINE"))?;
        config.hf_offline = flag("HF_HUB_OFFLINE", var("HF_HUB_OFFLINE"))?;
        config.home = home;
        Ok(config)
    }
}

/// `~` and `~/...` with the home folder put in; everything else unchanged.
pub(crate) fn expand_home(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

fn utf8(name: &str, value: OsString) -> Result<String, Error> {
    value.into_string().map_err(|_| Error::Config { name: name.into(), why: "is not UTF-8".into() })
}

fn flag(name: &str, value: Option<OsString>) -> Result<bool, Error> {
    let Some(value) = value else { return Ok(false) };
    let value = utf8(name, value)?;
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(Error::Config {
            name: name.into(),
            why: format!("expected 1 or 0, found '{}'", printable(&value, 40)),
        }),
    }
}
