//! Sequences, sampling and generation.
#![forbid(unsafe_code)]

mod bench;
mod generate;
pub mod perplexity;
pub mod sampler;
mod stop;

pub use bench::{Bench, BenchSample, BenchTest};
pub use generate::{
    Arithmetic, Engine, EngineError, EngineOptions, Generation, GenerationParams, KvType, Progress,
    Session, StopReason, Timings,
};
pub use hurtle_kernels::Isa;
pub use hurtle_kernels::backend::MatmulBackend;
pub use stop::StopMatcher;
