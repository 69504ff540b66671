//! Sequences, sampling, generation and embeddings.
#![forbid(unsafe_code)]

mod bench;
mod embed;
mod generate;
pub mod perplexity;
mod profile;
pub mod sampler;
mod stop;

pub use bench::{Bench, BenchSample, BenchTest};
pub use generate::{
    Arithmetic, Engine, EngineError, EngineOptions, Generation, GenerationParams, KvType, Progress,
    Session, StopReason, Timings,
};
pub use hurtle_kernels::Isa;
pub use hurtle_kernels::backend::MatmulBackend;
pub use hurtle_model::Pooling;
pub use profile::ProfileRun;
pub use stop::StopMatcher;
