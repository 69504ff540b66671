//! Keys and values of all sequences, in pages of 64 positions.
//!
//! Memory grows with what is used, page by page; a freed page is reused. Nothing is moved.

use crate::hparams::LayerParams;
use hurtle_kernels::attention::KvElem;
use hurtle_kernels::kv::{KvPage, PAGE_TOKENS};
use std::fmt;
use std::str::FromStr;

/// Element type of keys or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// 4 bytes: exact.
    #[default]
    F32,
    /// 2 bytes.
    F16,
}

impl KvType {
    /// All types, for messages and command lines.
    pub const ALL: [KvType; 2] = [KvType::F32, KvType::F16];

    /// `f32` or `f16`.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
        }
    }

    fn n_bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::F16 => 2,
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|ty| ty.name() == name).ok_or_else(|| {
            format!(
                "KV cache type {name:?} is unknown; known are {}",
                Self::ALL.map(Self::name).join(", ")
            )
        })
    }
}

/// A sequence in a [`KvCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SeqId(usize);

/// Where a layer's keys and values begin in a page, in elements of their types.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerOffsets {
    pub(crate) k: usize,
    pub(crate) v: usize,
}

#[derive(Debug, Default)]
struct Sequence {
    page_ids: Vec<u32>,
    len: usize,
    live: bool,
}

/// The KV cache of a model.
#[derive(Debug)]
pub struct KvCache {
    type_k: KvType,
    type_v: KvType,
    layers: Vec<LayerOffsets>,
    page_bytes: usize,
    pub(crate) pages: Vec<KvPage>,
    free_pages: Vec<u32>,
    sequences: Vec<Sequence>,
}

impl KvCache {
    /// An empty cache for layers of these shapes.
    pub(crate) fn new(layers: &[LayerParams], type_k: KvType, type_v: KvType) -> Self {
        // A page is one run of bytes; each part starts on a 64-byte line.
        let mut at = 0;
        let mut part = |n_values: usize, ty: KvType| {
            let start = at / ty.n_bytes();
            at = (at + n_values * ty.n_bytes()).next_multiple_of(64);
            start
        };
        let layers = layers
            .iter()
            .map(|layer| LayerOffsets {
                k: part(layer.n_kv_heads * PAGE_TOKENS * layer.head_dim_k, type_k),
                v: part(layer.n_kv_heads * PAGE_TOKENS * layer.head_dim_v, type_v),
            })
            .collect();
        Self {
            type_k,
            type_v,
            layers,
            page_bytes: at,
            pages: Vec::new(),
            free_pages: Vec::new(),
            sequences: Vec::new(),
        }
    }

    /// Element types of keys and values.
    pub fn types(&self) -> (KvType, KvType) {
        (self.type_k, self.type_v)
    }

    /// Bytes that `n` positions of a sequence take.
    pub fn bytes_for(&self, n: usize) -> usize {
        n.div_ceil(PAGE_TOKENS) * self.page_bytes
    }

    /// Bytes allocated.
    pub fn n_bytes(&self) -> usize {
        self.pages.len() * self.page_bytes
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

    /// Makes room for position `pos` of a sequence.
    pub(crate) fn reserve(&mut self, seq: SeqId, pos: usize) {
        while self.sequences[seq.0].page_ids.len() <= pos / PAGE_TOKENS {
            let page = self.free_pages.pop().unwrap_or_else(|| {
                self.pages.push(KvPage::new(self.page_bytes));
                u32::try_from(self.pages.len() - 1).expect("fewer pages than bytes of memory")
            });
            self.sequences[seq.0].page_ids.push(page);
        }
    }

    pub(crate) fn advance(&mut self, seq: SeqId, len: usize) {
        self.sequences[seq.0].len = len;
    }

    pub(crate) fn page_ids(&self, seq: SeqId) -> &[u32] {
        &self.sequences[seq.0].page_ids
    }

    pub(crate) fn offsets(&self, layer: usize) -> LayerOffsets {
        self.layers[layer]
    }

    /// Stores `row` (`[n_kv_heads, dim]`) at position `pos`; `offset` is the layer's.
    pub(crate) fn store<E: KvElem>(
        &mut self,
        seq: SeqId,
        pos: usize,
        offset: usize,
        dim: usize,
        row: &[f32],
    ) {
        let page = self.sequences[seq.0].page_ids[pos / PAGE_TOKENS] as usize;
        let page = self.pages[page].as_mut_slice::<E>();
        for (head, row) in row.chunks_exact(dim).enumerate() {
            let at = offset + (head * PAGE_TOKENS + pos % PAGE_TOKENS) * dim;
            for (to, from) in page[at..at + dim].iter_mut().zip(row) {
                *to = E::from_f32(*from);
            }
        }
    }
}
