//! Keys and values of all sequences, in pages of 64 positions.
//!
//! Memory grows with what is used, page by page; a freed page is reused. Nothing is moved.
//!
//! Sequences with a common prefix can share its pages, and a page can be kept when its sequence is
//! gone: pages are counted. A page that others hold too is copied before a sequence writes into it.

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
    /// How many hold each page; 0: it is free.
    holders: Vec<u32>,
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
            holders: Vec::new(),
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
        for page in sequence.page_ids.drain(keep..) {
            release(&mut self.holders, &mut self.free_pages, page);
        }
    }

    /// Makes room for the first `n` positions of a sequence.
    pub fn reserve(&mut self, seq: SeqId, n: usize) {
        if let Some(index) = self.shared_tail(seq, n) {
            let (shared, own) = (self.sequences[seq.0].page_ids[index], self.new_page());
            self.pages.copy(shared, own);
            self.sequences[seq.0].page_ids[index] = own;
            self.release_page(shared);
        }
        while self.sequences[seq.0].page_ids.len() * PAGE_TOKENS < n {
            let page = self.new_page();
            self.sequences[seq.0].page_ids.push(page);
        }
    }

    /// Pages that [`reserve`](Self::reserve) would take.
    pub fn pages_needed(&self, seq: SeqId, n: usize) -> usize {
        let held = self.sequences[seq.0].page_ids.len();
        let missing = n.div_ceil(PAGE_TOKENS).saturating_sub(held);
        missing + usize::from(self.shared_tail(seq, n).is_some())
    }

    /// The index of the page that position `len` lies in, if the sequence is to grow to `n`
    /// positions and others hold that page too.
    fn shared_tail(&self, seq: SeqId, n: usize) -> Option<usize> {
        let Sequence { page_ids, len, .. } = &self.sequences[seq.0];
        let index = len / PAGE_TOKENS;
        let begun = n > *len && len % PAGE_TOKENS > 0;
        (begun && self.holders[page_ids[index] as usize] > 1).then_some(index)
    }

    fn new_page(&mut self) -> u32 {
        let page = self.free_pages.pop().unwrap_or_else(|| {
            self.holders.push(0);
            self.pages.push()
        });
        self.holders[page as usize] = 1;
        page
    }

    /// Lets an empty sequence begin with `len` positions that lie in `pages`, which it shares with
    /// those that hold them already.
    ///
    /// # Panics
    /// If the sequence is not empty, or `pages` are not as many as `len` positions take, or free.
    pub fn adopt(&mut self, seq: SeqId, pages: &[u32], len: usize) {
        assert!(self.sequences[seq.0].page_ids.is_empty(), "the sequence holds pages");
        assert_eq!(pages.len(), len.div_ceil(PAGE_TOKENS), "pages of {len} positions");
        pages.iter().for_each(|&page| self.hold_page(page));
        let sequence = &mut self.sequences[seq.0];
        sequence.page_ids.extend_from_slice(pages);
        sequence.len = len;
    }

    /// Keeps a page that somebody holds, whatever becomes of its sequences, until
    /// [`release_page`](Self::release_page).
    ///
    /// # Panics
    /// If the page is free.
    pub fn hold_page(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        assert!(*holders > 0, "page {page} is free");
        *holders += 1;
    }

    /// Gives back what [`hold_page`](Self::hold_page) kept.
    pub fn release_page(&mut self, page: u32) {
        release(&mut self.holders, &mut self.free_pages, page);
    }

    /// The bytes of a page.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn page(&self, page: u32) -> &[u8] {
        self.pages.page(page)
    }

    /// A page of these bytes, which were those of a page of an equal cache. The caller holds it, until
    /// [`release_page`](Self::release_page).
    ///
    /// # Panics
    /// If `bytes` are not as many as a page has.
    pub fn restore_page(&mut self, bytes: &[u8]) -> u32 {
        assert_eq!(bytes.len(), self.page_bytes(), "bytes of a page");
        let page = self.new_page();
        self.pages.page_mut(page).copy_from_slice(bytes);
        page
    }

    /// How many hold a page.
    pub fn holders(&self, page: u32) -> usize {
        self.holders[page as usize] as usize
    }

    /// Pages that somebody holds.
    pub fn pages_in_use(&self) -> usize {
        self.pages.len() - self.free_pages.len()
    }

    /// Bytes of a page of [`PAGE_TOKENS`] positions.
    pub fn page_bytes(&self) -> usize {
        self.pages.page_bytes()
    }

    pub(crate) fn advance(&mut self, seq: SeqId, len: usize) {
        self.sequences[seq.0].len = len;
    }

    /// The pages of a sequence, in order.
    pub fn page_ids(&self, seq: SeqId) -> &[u32] {
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

fn release(holders: &mut [u32], free_pages: &mut Vec<u32>, page: u32) {
    let holders = &mut holders[page as usize];
    assert!(*holders > 0, "page {page} is free");
    *holders -= 1;
    if *holders == 0 {
        free_pages.push(page);
    }
}
