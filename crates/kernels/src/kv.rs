//! Pages of the KV cache.
//!
//! ```text
//! page = for each layer:  K [n_kv_heads][PAGE_TOKENS][head_dim_k]   V [n_kv_heads][PAGE_TOKENS][head_dim_v]
//! ```
//! A page holds all layers of 64 consecutive positions of one sequence, so sequences grow without
//! being moved and share nothing but the pool of pages. Where a layer's K and V begin in a page is
//! the model's business.

use crate::memory::Line;
use bytemuck::Pod;

/// Positions in a page.
pub const PAGE_TOKENS: usize = 64;

/// 64 positions of one sequence, all layers.
pub struct KvPage(Box<[Line]>);

impl KvPage {
    /// A page of at least `bytes` bytes, all zero.
    pub fn new(bytes: usize) -> Self {
        Self(vec![Line([0; 64]); bytes.div_ceil(64)].into_boxed_slice())
    }

    /// The page as values of a type.
    pub fn as_slice<E: Pod>(&self) -> &[E] {
        bytemuck::cast_slice(&self.0)
    }

    /// The page as values of a type, to be written.
    pub fn as_mut_slice<E: Pod>(&mut self) -> &mut [E] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    /// Bytes of memory.
    pub fn n_bytes(&self) -> usize {
        self.0.len() * 64
    }
}

impl std::fmt::Debug for KvPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvPage").field("n_bytes", &self.n_bytes()).finish()
    }
}
