//! The HTTP APIs that clients of language models speak, over the engines of one or several models.
//!
//! ```text
//! body ─► wire::fields ─► wire::{openai, anthropic, ollama, llama_cpp} ─► request::{Chat, Completion}
//!                                                                                        │ engine
//! reply, stream ◄─ wire::{…} (one encoder each) ◄─ output::{Delta, Outcome} ◄────────────┘
//! ```
//! Every API is translated into the same request and from the same output, so that what one of them can
//! do, all of them can, and an answer does not depend on the API that asked. A parameter is honoured or
//! refused by its name; the few that clients send and that change no answer are listed as `IGNORED` beside
//! the API that knows them.
#![forbid(unsafe_code)]

pub use embedder::TextVectors;

pub mod connections;
pub mod error;
pub mod keep_alive;
pub mod models;
pub mod origin;
pub mod output;
pub mod request;
pub mod tls;
pub mod wire;

mod embedder;
mod fill_in;
mod messages;
mod observe;
mod routes;
mod worker;

use axum::Router;
use hurtle_engine::sampler::SamplerParams;
use hurtle_engine::{Engine, ServiceOptions, ShutdownReport};
use hurtle_text::ChatTemplate;
use models::{Catalog, Models};
use origin::{Hosts, Origins};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// What [`Server::start`] calls its model; requests may also call it `default`.
    pub model: String,
    /// Keys of which one must be given; none: everybody may ask.
    pub api_keys: Vec<String>,
    /// Most bytes of a body.
    pub max_body: usize,
    /// How many answers are written at the same time, how many requests wait, and the memory they have.
    pub service: ServiceOptions,
    /// Sampling, where a request leaves it open.
    pub sampler: SamplerParams,
    /// How vectors are made of texts.
    pub text_vectors: TextVectors,
    /// Where requests may save what slots hold; `None`: nowhere.
    pub slot_dir: Option<PathBuf>,
    /// What no request may exceed.
    pub limits: Limits,
    /// Web pages that may use the server, beside its own.
    pub origins: Origins,
    /// Names under which it may be asked.
    pub hosts: Hosts,
    /// How long the next piece of a body may take.
    pub read_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            model: "default".into(),
            api_keys: Vec::new(),
            max_body: 16 << 20,
            service: ServiceOptions::default(),
            sampler: SamplerParams::default(),
            text_vectors: TextVectors::default(),
            slot_dir: None,
            limits: Limits::default(),
            origins: Origins::default(),
            hosts: Hosts::default(),
            read_timeout: Duration::from_secs(30),
        }
    }
}

/// What no request may exceed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a prompt; `None`: as many as the context holds.
    pub max_prompt: Option<usize>,
    /// Tokens of an answer, which ends there; `None`: as many as the context holds.
    pub max_predict: Option<usize>,
    /// Time from a request to the end of its answer, which is cut off then; `None`: any.
    pub timeout: Option<Duration>,
}

/// Models with the routes to them.
#[derive(Debug, Clone)]
pub struct Server(Arc<routes::Shared>);

impl Server {
    /// Serves one model, which is loaded already and stays.
    ///
    /// # Errors
    /// If there is no thread to be had, or no memory for keys and values.
    pub fn start(
        engine: Engine,
        template: ChatTemplate,
        options: ServerOptions,
    ) -> std::io::Result<Self> {
        let service = options.service.clone();
        let models = Models::one(&options.model, engine, template, service, options.limits)?;
        Ok(Self(Arc::new(routes::Shared::new(models, options))))
    }

    /// Serves the models of a catalog, of which the first is loaded now.
    ///
    /// # Errors
    /// If the first model cannot be loaded, or there is no thread to be had.
    pub fn with_models(catalog: Catalog, options: ServerOptions) -> Result<Self, String> {
        let models = Models::new(catalog, options.service.clone(), options.limits);
        let models = models.map_err(|error| error.to_string())?;
        models.load_first().map_err(|error| error.to_string())?;
        Ok(Self(Arc::new(routes::Shared::new(models, options))))
    }

    /// The routes.
    pub fn router(&self) -> Router {
        routes::router(Arc::clone(&self.0))
    }

    /// Refuses new requests, waits for those that are there, and breaks off what is not done after `grace`.
    pub fn shut_down(&self, grace: Duration) -> ShutdownReport {
        self.0.models.shut_down(grace)
    }
}
