//! Sequences, sampling, generation ([`Session`] for one, [`Service`] for many) and embeddings.
#![forbid(unsafe_code)]

mod bench;
mod budget;
pub mod cgroup;
pub mod constraint;
mod embed;
mod generate;
mod lines;
pub mod perplexity;
mod prefix;
mod profile;
pub mod sampler;
mod saved;
mod service;
mod slots;
mod stop;
mod token_loop;

pub use bench::{Bench, BenchSample, BenchTest};
pub use budget::ReasoningBudget;
pub use generate::{
    Arithmetic, Engine, EngineError, EngineOptions, Extras, Generation, GenerationParams, KvType,
    Packing, Progress, Session, StopReason, Timings, default_packing,
};
pub use hurtle_kernels::Isa;
pub use hurtle_kernels::backend::MatmulBackend;
pub use hurtle_model::Pooling;
pub use lines::LineLimits;
pub use profile::ProfileRun;
pub use saved::PrefixDir;
pub use service::{
    BATCH_SIZES, Event, Finished, Request, Service, ServiceOptions, ServiceStats, ShutdownReport,
    SlotInfo, SubmitError, Ticket, TokenOut,
};
pub use slots::{SlotAction, SlotContent, SlotDone, SlotError};
pub use stop::StopMatcher;
