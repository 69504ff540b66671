//! Model specifications, weights, KV cache and the forward pass.
//!
//! ```text
//! spec.rs     what distinguishes architectures, as enums
//! arch/*.rs   one constant for each architecture
//! mix.rs      which weight type each tensor gets when a model is quantized
//! hparams.rs  a file's numbers           rope.rs  its rotary positions
//! load.rs     a file's tensors, checked
//! decoder.rs  THE forward pass           kv_cache.rs  what it remembers
//! profile.rs  where its time goes
//! traffic.rs  what of a file a token has to read, and what memory it takes packed
//! ```
#![forbid(unsafe_code)]

pub mod arch;
mod decoder;
mod error;
mod hparams;
mod kv_cache;
mod load;
pub mod mix;
pub mod profile;
mod rope;
pub mod spec;
pub mod traffic;

pub use decoder::{BatchToken, Scratch};
pub use error::ModelError;
pub use hparams::{ExpertParams, Hparams, LayerParams, Pooling};
pub use hurtle_kernels::kv::{KvType, PAGE_TOKENS};
pub use kv_cache::{KvCache, SeqId};
pub use rope::RopeParams;

use hparams::file_name;
use hurtle_gguf::Gguf;
use hurtle_kernels::Exec;
use hurtle_kernels::backend::MatmulBackend;
use load::{Loader, Weights};
use rope::RopeFrequencies;
use spec::ArchSpec;
use traffic::Packing;

/// How matrix products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// f32 activations and exactly decoded weights, which stay in the mapped file: the reference.
    Exact,
    /// Activations quantized to 8 bits for each input, weights packed when the model is loaded,
    /// sums in integers, as llama.cpp does. F32, F16 and BF16 are packed and computed in f32; types
    /// without a kernel are computed exactly.
    #[default]
    Integer,
}

/// A model ready to run.
#[derive(Debug)]
pub struct Model {
    gguf: Gguf,
    spec: &'static ArchSpec,
    hparams: Hparams,
    weights: Weights,
    weight_bytes: u64,
    rope: RopeFrequencies,
    window_rope: RopeFrequencies,
}

impl Model {
    /// Checks that the file holds a model that hurtle runs, and prepares it, on `exec`'s threads
    /// where there is something to pack.
    ///
    /// `n_ctx` is the context it will run with (the trained one if `None`): LongRoPE chooses its
    /// factors by it. `packing` counts for [`Arithmetic::Integer`].
    ///
    /// # Errors
    /// If the architecture is unknown, or metadata and tensors are not what it needs.
    pub fn load(
        gguf: Gguf,
        n_ctx: Option<usize>,
        arithmetic: Arithmetic,
        packing: Packing,
        exec: Exec<'_>,
    ) -> Result<Self, ModelError> {
        let key = "general.architecture";
        let name = gguf
            .metadata()
            .string(key)?
            .ok_or_else(|| ModelError::MissingKey { file: file_name(&gguf), key: key.into() })?;
        let spec = arch::find(name)
            .ok_or_else(|| ModelError::UnknownArch { file: file_name(&gguf), arch: name.into() })?;
        let loader = Loader::new(&gguf, spec);
        let n_vocab = loader.n_vocab()?;
        let hparams = Hparams::read(&gguf, spec, n_vocab, n_ctx)?;
        let mut weights = loader.load(&hparams)?;
        let mut traffic = traffic::traffic(&gguf, hparams.experts);
        if arithmetic == Arithmetic::Integer {
            let books = packing.books(&traffic);
            weights.pack(books, exec, &gguf);
            traffic.iter_mut().for_each(|row| *row = row.packed(books));
        }
        let weight_bytes = traffic.iter().map(|row| row.bytes).fold(0, u64::saturating_add);
        let (rope, window_rope) = (hparams.rope.frequencies(), hparams.window_rope.frequencies());
        Ok(Self { gguf, spec, hparams, weights, weight_bytes, rope, window_rope })
    }

    /// Has all matrix products computed by `backend` from now on, which gets every weight that is
    /// multiplied. Load with [`Arithmetic::Exact`] first: a backend has its own arithmetic.
    ///
    /// # Errors
    /// [`ModelError::Backend`] if it does not take a tensor.
    pub fn hand_over(&mut self, backend: &dyn MatmulBackend) -> Result<(), ModelError> {
        self.weights.hand_over(backend, &self.gguf)
    }

    /// Bytes of all weights as they are computed with: packed ones, and those that stay in the mapped file.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The architecture.
    pub fn spec(&self) -> &'static ArchSpec {
        self.spec
    }

    /// The numbers.
    pub fn hparams(&self) -> &Hparams {
        &self.hparams
    }

    /// Positions that the model has learned, where it has learned them: it knows no others.
    pub fn n_positions(&self) -> Option<usize> {
        self.weights.position_embd.as_ref().map(|embd| embd.n_rows())
    }

    /// An empty KV cache for this model.
    pub fn kv_cache(&self, type_k: KvType, type_v: KvType) -> KvCache {
        KvCache::new(&self.hparams.layers, type_k, type_v)
    }
}
