//! The HTTP APIs that clients of language models speak, over one engine.
//!
//! ```text
//! body ─► wire::fields ─► wire::{openai, responses, anthropic, ollama, llama_cpp} ─► request::{Chat, Completion}
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
