//! The HTTP APIs that clients of language models speak, over one engine.
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

pub mod error;
pub mod output;
pub mod request;
pub mod wire;

mod messages;
mod routes;
mod worker;

use axum::Router;
use hurtle_engine::sampler::SamplerParams;
use hurtle_engine::{Engine, Service, ServiceOptions, ShutdownReport};
use hurtle_text::ChatTemplate;
use std::sync::Arc;
use std::time::Duration;

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The model's name; requests may also call it `default`.
    pub model: String,
    /// Keys of which one must be given; none: everybody may ask.
    pub api_keys: Vec<String>,
    /// Most bytes of a body.
    pub max_body: usize,
    /// How many answers are written at the same time, how many requests wait, and the memory they have.
    pub service: ServiceOptions,
    /// Sampling, where a request leaves it open.
    pub sampler: SamplerParams,
}

/// A model with the routes to it.
#[derive(Debug, Clone)]
pub struct Server(Arc<routes::Shared>);

impl Server {
    /// Starts the thread that answers.
    ///
    /// # Errors
    /// If there is no thread to be had, or no memory for keys and values.
    pub fn start(
        engine: Engine,
        template: ChatTemplate,
        options: ServerOptions,
    ) -> std::io::Result<Self> {
        let service = Service::start(engine, options.service.clone())?;
        let started = routes::now();
        let n_requests = Default::default();
        Ok(Self(Arc::new(routes::Shared { service, template, options, started, n_requests })))
    }

    /// The routes.
    pub fn router(&self) -> Router {
        routes::router(Arc::clone(&self.0))
    }

    /// Refuses new requests, waits for those that are there, and breaks off what is not done after `grace`.
    pub fn shut_down(&self, grace: Duration) -> ShutdownReport {
        self.0.service.shutdown(grace)
    }
}
