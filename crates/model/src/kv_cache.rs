//! Keys and values of all sequences, in pages of 64 positions.
//!
//! Memory grows with what is used, page by page; a freed page is reused. Nothing is moved.

use crate::hparams::LayerParams;
use hurtle_kernels::Isa;
use hurtle_kernels::kv::{KvLayer, KvPages, KvType, PAGE_TOKENS};

/// A sequence in a [`KvCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SeqId(usize);

#[derive(Debug, Default)]
struct Sequence {
    page_ids: Vec<u32>,
    len: usize,
    live: bool,
}

/// The KV cache of a model.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<KvLayer>,
    pub(crate) pages: KvPages,
    free_pages: Vec<u32>,
    sequences: Vec<Sequence>,
}

impl KvCache {
    /// An empty cache for layers of these shapes.
    pub(crate) fn new(layers: &[LayerParams], type_k: KvType, type_v: KvType) -> Self {
        let mut page_bytes = 0;
        let layers = layers.iter().map(|layer| {
            let LayerParams { n_kv_heads, head_dim_k, head_dim_v, .. } = *layer;
            let types = (type_k, type_v);
            let layer = KvLayer::new(page_bytes, types, n_kv_heads, head_dim_k, head_dim_v);
            page_bytes = layer.end();
            layer
        });
        let layers = layers.collect();
        Self {
            layers,
            pages: KvPages::new(page_bytes),
            free_pages: Vec::new(),
            sequences: Vec::new(),
        }
    }

    /// Bytes that `n` positions of a sequence take.
    pub fn bytes_for(&self, n: usize) -> usize {
        n.div_ceil(PAGE_TOKENS) * self.pages.page_bytes()
    }

    /// Bytes in use.
    pub fn n_bytes(&self) -> usize {
        self.pages.len() * self.pages.page_bytes()
    }

    /// A new, empty sequence.
    pub fn new_sequence(&mut self) -> SeqId {
        let id = self.sequences.iter().position(|seq| !seq.live).unwrap_or_else(|| {
            self.sequences.push(Sequence::default());
            self.sequences.len() - 1
        });
        self.sequences[id].live = true;
        SeqId(id)
    }

    /// Forgets a sequence; its pages are reused.
    pub fn remove(&mut self, seq: SeqId) {
        self.truncate(seq, 0);
        self.sequences[seq.0].live = false;
    }

    /// Positions held of a sequence.
    pub fn len(&self, seq: SeqId) -> usize {
        self.sequences[seq.0].len
    }

    /// Forgets all positions of a sequence from `len` on.
    pub fn truncate(&mut self, seq: SeqId, len: usize) {
        let sequence = &mut self.sequences[seq.0];
        sequence.len = sequence.len.min(len);
        let keep = sequence.len.div_ceil(PAGE_TOKENS);
        self.free_pages.extend(sequence.page_ids.drain(keep..));
    }

    /// Makes room for the first `n` positions of a sequence.
    pub fn reserve(&mut self, seq: SeqId, n: usize) {
        while self.sequences[seq.0].page_ids.len() * PAGE_TOKENS < n {
            let page = self.free_pages.pop().unwrap_or_else(|| self.pages.push());
            self.sequences[seq.0].page_ids.push(page);
        }
    }

    pub(crate) fn advance(&mut self, seq: SeqId, len: usize) {
        self.sequences[seq.0].len = len;
    }

    pub(crate) fn page_ids(&self, seq: SeqId) -> &[u32] {
        &self.sequences[seq.0].page_ids
    }

    pub(crate) fn layer(&self, layer: usize) -> &KvLayer {
        &self.layers[layer]
    }

    /// Stores keys and values (`[n_kv_heads, dim]`, both) of a layer at position `pos`.
    pub(crate) fn store(
        &mut self,
        isa: Isa,
        layer: usize,
        (seq, pos): (SeqId, usize),
        k: &[f32],
        v: &[f32],
    ) {
        let page = self.sequences[seq.0].page_ids[pos / PAGE_TOKENS];
        self.pages.store(isa, &self.layers[layer], page, pos % PAGE_TOKENS, k, v);
    }
}
