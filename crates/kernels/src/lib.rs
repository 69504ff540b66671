//! The arithmetic of hurtle, and the threads that run it.
//!
//! ```text
//! matmul.rs attention.rs elementwise.rs   safe API: check shapes, split the work over threads
//! packed/ activations.rs                  the same for weights and activations in integers
//! roofline.rs                             what memory and processor give at most, measured
//!        │ dispatch!, dispatch_int! pick a shell    │
//! arch/x86_64.rs  (AVX-512, AVX2, VNNI)     arch/scalar.rs    thin shells: one per instruction set
//! arch/amx.rs     (tiles of int8 and bf16)
//!        └──────────┬───────────────────────────────┘
//!        arch/all.rs, packed/*.rs     each algorithm once, written over `arch::{Lanes, IntLanes}`
//! ```
//!
//! Matrix products come in two kinds. [`matmul::matmul`] takes weights as the file has them and f32
//! activations: exact, slow, for every type. [`packed::matmul_packed`] takes weights packed when
//! the model was loaded and activations in 8 bit (in f32 for F32 and F16, in bf16 for BF16), and reads
//! them at the speed of memory.
//!
//! **Same bits everywhere.** In f32, a sum over `k` is kept in 16 lanes (lane `k % 16`), each lane
//! adds in ascending `k` with a separate multiply and add, and the lanes are folded in one fixed
//! order; in integers, sums are exact within a block and blocks are added in order. So a result
//! depends on its operands alone: not on the instruction set, the number of threads or the number
//! of tokens that are processed together. Tests compare bits, not tolerances. (Attention with keys and
//! values of bf16 has other bits with AMX than without; `attention/tiles.rs` says why.)
//!
//! This crate knows no file and no model, does no I/O and reads no environment.

pub mod activations;
mod arch;
pub mod attention;
pub mod backend;
mod caches;
pub mod elementwise;
mod isa;
pub mod kv;
pub mod matmul;
mod memory;
pub mod packed;
mod pool;
pub mod roofline;
mod share;
mod sync;

pub use caches::Caches;
pub use isa::Isa;
pub use pool::{Pool, Worker};
#[cfg(loom)]
pub use sync::set_sleepless;

/// What a kernel runs on: an instruction set and some threads of a pool.
#[derive(Debug, Clone, Copy)]
pub struct Exec<'a> {
    /// Instruction set, proven to be present.
    pub isa: Isa,
    /// Threads.
    pub pool: &'a Pool,
    /// How many of the pool's threads take part.
    pub n_threads: usize,
}

impl Exec<'_> {
    /// Runs `f` on disjoint ranges that together cover `0..n`, at most `chunk` long each.
    ///
    /// Chunks are handed out as threads ask for them, so `f` must not depend on which thread runs
    /// which chunk.
    pub fn for_chunks(
        &self,
        n: usize,
        chunk: usize,
        f: impl Fn(std::ops::Range<usize>, &mut Worker) + Sync,
    ) {
        self.pool.for_chunks(self.n_threads, n, chunk, f);
    }
}
