//! Sequences, sampling and generation.
#![forbid(unsafe_code)]

mod generate;
pub mod perplexity;
pub mod sampler;

pub use generate::{
    Engine, EngineError, EngineOptions, Generation, GenerationParams, KvType, Progress, Session,
    StopReason, Timings,
};
