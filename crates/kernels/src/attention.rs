//! Attention over a paged KV cache.

use crate::Exec;
use crate::arch::{Lanes, dispatch};
use crate::kv::KvPage;
use crate::share::Shared;
use bytemuck::Pod;
use half::f16;

/// An element type of the KV cache.
#[expect(private_bounds, reason = "sealed: only the types below")]
pub trait KvElem: Pod + Send + Sync + Sealed {
    /// Rounds to the type.
    fn from_f32(x: f32) -> Self;
}

pub(crate) trait Sealed: Sized {
    /// A row as f32: itself, or decoded into `buffer`.
    ///
    /// # Safety
    /// The lanes' instruction set is present.
    unsafe fn decode_row<'a, L: Lanes>(row: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32];
}

impl Sealed for f32 {
    #[inline(always)]
    unsafe fn decode_row<'a, L: Lanes>(row: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        row
    }
}

impl KvElem for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Sealed for f16 {
    #[inline(always)]
    unsafe fn decode_row<'a, L: Lanes>(row: &'a [f16], buffer: &'a mut [f32]) -> &'a [f32] {
        let buffer = &mut buffer[..row.len()];
        let mut i = 0;
        while i + crate::arch::LANES <= row.len() {
            // SAFETY: the caller has the lanes' instruction set.
            unsafe { L::load_f16(&row[i..]).store(&mut buffer[i..]) };
            i += crate::arch::LANES;
        }
        for (to, from) in buffer[i..].iter_mut().zip(&row[i..]) {
            *to = from.to_f32();
        }
        buffer
    }
}

impl KvElem for f16 {
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
}

/// What is the same for all tokens of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Query heads.
    pub n_heads: usize,
    /// KV heads; each serves `n_heads / n_kv_heads` query heads in a row.
    pub n_kv_heads: usize,
    /// Values of a query or key head.
    pub dim_k: usize,
    /// Values of a value head.
    pub dim_v: usize,
    /// Where the layer's keys begin in a page, in elements of K.
    pub k_offset: usize,
    /// Where the layer's values begin in a page, in elements of V.
    pub v_offset: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// `cap · tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// How many positions a token sees, itself included; `None`: all.
    pub window: Option<usize>,
    /// Logits that take part in the softmax but carry no value, one a query head.
    pub sinks: Option<&'a [f32]>,
}

/// One token's place in its sequence.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// Indices of its sequence's pages, in order.
    pub page_ids: &'a [u32],
    /// Its position. It sees itself and the positions before it, as far as the window reaches.
    pub pos: usize,
}

/// The query heads of one KV head of one token.
pub(crate) struct HeadTask<'a> {
    pub(crate) pages: &'a [KvPage],
    pub(crate) page_ids: &'a [u32],
    pub(crate) first: usize,
    pub(crate) end: usize,
    /// `[n_group, dim_k]`
    pub(crate) queries: &'a [f32],
    pub(crate) dim_k: usize,
    pub(crate) dim_v: usize,
    pub(crate) k_offset: usize,
    pub(crate) v_offset: usize,
    pub(crate) scale: f32,
    pub(crate) soft_cap: Option<f32>,
    /// `[n_group]`
    pub(crate) sinks: Option<&'a [f32]>,
}

/// `out[token, head] = softmax(q · K^T · scale) · V` over the positions that each token sees.
///
/// `q` is `[n_tokens, n_heads, dim_k]`, `out` is `[n_tokens, n_heads, dim_v]`.
///
/// # Panics
/// If a length does not fit `layer`, or a token sees a position that its pages do not hold.
pub fn attention<K: KvElem, V: KvElem>(
    exec: Exec<'_>,
    layer: &Layer<'_>,
    pages: &[KvPage],
    tokens: &[Token<'_>],
    q: &[f32],
    out: &mut [f32],
) {
    let Layer { n_heads, n_kv_heads, dim_k, dim_v, .. } = *layer;
    assert!(
        n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
        "{n_heads} heads, {n_kv_heads} KV heads"
    );
    assert_eq!(q.len(), tokens.len() * n_heads * dim_k, "queries");
    assert_eq!(out.len(), tokens.len() * n_heads * dim_v, "output");
    let n_group = n_heads / n_kv_heads;
    let out = Shared::new(out);
    exec.for_chunks(tokens.len() * n_kv_heads, 1, |items, worker| {
        for item in items {
            let (t, kv_head) = (item / n_kv_heads, item % n_kv_heads);
            let token = &tokens[t];
            let end = token.pos + 1;
            let first = layer.window.map_or(0, |window| end.saturating_sub(window));
            let heads = kv_head * n_group..(kv_head + 1) * n_group;
            let task = HeadTask {
                pages,
                page_ids: token.page_ids,
                first,
                end,
                queries: &q[(t * n_heads + heads.start) * dim_k..(t * n_heads + heads.end) * dim_k],
                dim_k,
                dim_v,
                k_offset: layer.k_offset + kv_head * crate::kv::PAGE_TOKENS * dim_k,
                v_offset: layer.v_offset + kv_head * crate::kv::PAGE_TOKENS * dim_v,
                scale: layer.scale,
                soft_cap: layer.soft_cap,
                sinks: layer.sinks.map(|sinks| &sinks[heads.clone()]),
            };
            // SAFETY: each item writes its own heads of its own token.
            let out = unsafe { out.range((t * n_heads + heads.start) * dim_v, n_group * dim_v) };
            let scratch = worker.scratch(n_group * (end - first) + dim_k.max(dim_v));
            dispatch!(exec.isa, attend[K, V](&task, scratch, out));
        }
    });
}
