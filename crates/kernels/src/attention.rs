//! Attention over a paged KV cache.
//!
//! The positions that a token sees are cut into spans of 128, at multiples of 128. Each span gives a
//! partial result (the largest score, the sum of weights, the weighted sum of values), and partial
//! results are merged in ascending order, as in "Online normalizer calculation for softmax"
//! (arXiv:1805.02867) and Flash-Decoding:
//!
//! ```text
//!            | span 0     | span 1     | span 2  pos|
//! keys       scores ─ max ─ weights                     16 positions in the lanes
//! values                    weighted sums               16 values in the lanes
//!            partial 0  +  partial 1  +  partial 2  ─ out
//! ```
//! Where the cuts lie depends on the position alone, so a token's bits do not depend on how the work
//! is split: over tokens and heads if there are enough of them, else over spans as well, so that a
//! single token keeps all threads busy. The query heads of a KV head share each of its reads.

use crate::Exec;
use crate::arch::{LANES, Lanes, all, dispatch};
use crate::kv::{Elem, KvLayer, KvPages, PAGE_TOKENS, TILE, with_kv};
use crate::share::Shared;

/// Positions whose scores are at hand at a time.
const SPAN: usize = 2 * PAGE_TOKENS;

/// What is the same for all tokens of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Query heads; `n_heads / n_kv_heads` in a row share a KV head.
    pub n_heads: usize,
    /// Keys and values.
    pub kv: &'a KvLayer,
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
    /// The last position that it sees, as far as the window reaches from there: its own, or the last of
    /// its sequence where attention looks both ways.
    pub pos: usize,
}

/// A span of one KV head of one token.
pub(crate) struct Task<'a> {
    layer: &'a Layer<'a>,
    pages: &'a KvPages,
    page_ids: &'a [u32],
    kv_head: usize,
    /// Positions, within one span.
    first: usize,
    end: usize,
    /// `[n_group, dim_k]`
    queries: &'a [f32],
}

/// Values of a head in a partial result, filled up to whole vectors.
fn padded(dim_v: usize) -> usize {
    dim_v.next_multiple_of(LANES)
}

/// A partial result: `[n_group]` largest scores, `[n_group]` sums of weights, then weighted sums,
/// `[n_group, padded(dim_v)]`.
fn partial_len(n_group: usize, dim_v: usize) -> usize {
    n_group * (2 + padded(dim_v))
}

/// `out[token, head] = softmax(q · K^T · scale) · V` over the positions that each token sees.
///
/// `q` is `[n_tokens, n_heads, dim_k]`, `out` is `[n_tokens, n_heads, dim_v]`; `token(i)` tells of
/// token `i`. `scratch` grows to what is needed and may be used again.
///
/// # Panics
/// If a length does not fit `layer`, or a token sees a position that its pages do not hold.
pub fn attention<'a>(
    exec: Exec<'_>,
    layer: &Layer<'_>,
    pages: &KvPages,
    token: impl Fn(usize) -> Token<'a> + Sync,
    q: &[f32],
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let KvLayer { n_kv_heads, dim_k, dim_v, .. } = *layer.kv;
    let n_heads = layer.n_heads;
    assert!(
        n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
        "{n_heads} heads, {n_kv_heads} KV heads"
    );
    let n_group = n_heads / n_kv_heads;
    let n_tokens = q.len() / (n_heads * dim_k);
    assert_eq!(q.len(), n_tokens * n_heads * dim_k, "queries");
    assert_eq!(out.len(), n_tokens * n_heads * dim_v, "output");
    assert!(layer.sinks.is_none_or(|sinks| sinks.len() == n_heads), "sinks");

    let seen = |token: &Token<'_>| {
        let end = token.pos + 1;
        layer.window.map_or(0, |window| end.saturating_sub(window))..end
    };
    // The positions of span `i` that a token sees.
    let span = |seen: &std::ops::Range<usize>, i: usize| {
        let start = (seen.start / SPAN + i) * SPAN;
        seen.start.max(start)..seen.end.min(start + SPAN)
    };
    let n_spans = |seen: &std::ops::Range<usize>| seen.end.div_ceil(SPAN) - seen.start / SPAN;
    let partial_len = partial_len(n_group, dim_v);
    let scores_len = n_group * SPAN;
    let out = Shared::new(out);
    // Query heads of KV head `item % n_kv_heads` of token `item / n_kv_heads`.
    let heads = |item: usize| item * n_group;
    let attend = |item: usize,
                  token: &Token<'_>,
                  span: std::ops::Range<usize>,
                  scores: &mut [f32],
                  partial: &mut [f32]| {
        let task = Task {
            layer,
            pages,
            page_ids: token.page_ids,
            kv_head: item % n_kv_heads,
            first: span.start,
            end: span.end,
            queries: &q[heads(item) * dim_k..(heads(item) + n_group) * dim_k],
        };
        let (scores_of, values) = partial.split_at_mut(2 * n_group);
        with_kv!(layer.kv.type_k, K => dispatch!(exec.isa, weigh[K](&task, scores, scores_of)));
        with_kv!(layer.kv.type_v, V => dispatch!(exec.isa, add_values[V](&task, scores, values)));
    };
    let finish = |item: usize, partial: &mut [f32]| {
        let sinks = layer.sinks.map(|sinks| &sinks[heads(item % n_kv_heads)..][..n_group]);
        // SAFETY: each item writes its own heads of its own token.
        let out = unsafe { out.range(heads(item) * dim_v, n_group * dim_v) };
        finish(partial, sinks, n_group, dim_v, out);
    };

    let n_items = n_tokens * n_kv_heads;
    if n_items >= 4 * exec.n_threads || exec.n_threads == 1 {
        exec.for_chunks(n_items, 1, |items, worker| {
            let scratch = worker.scratch(scores_len + 2 * partial_len);
            let (scores, partials) = scratch.split_at_mut(scores_len);
            let (state, next) = partials.split_at_mut(partial_len);
            for item in items {
                let token = token(item / n_kv_heads);
                let seen = seen(&token);
                attend(item, &token, span(&seen, 0), scores, state);
                for i in 1..n_spans(&seen) {
                    attend(item, &token, span(&seen, i), scores, next);
                    merge(state, next, n_group);
                }
                finish(item, state);
            }
        });
        return;
    }
    // Few tokens: every span is a piece of work.
    let total: usize = (0..n_tokens).map(|t| n_spans(&seen(&token(t))) * n_kv_heads).sum();
    if scratch.len() < total * partial_len {
        scratch.resize(total * partial_len, 0.0);
    }
    let partials = Shared::new(&mut scratch[..]);
    exec.for_chunks(total, 1, |pieces, worker| {
        for piece in pieces {
            let (mut t, mut i) = (0, piece);
            let (token, seen) = loop {
                let token = token(t);
                let seen = seen(&token);
                let n = n_spans(&seen) * n_kv_heads;
                if i < n {
                    break (token, seen);
                }
                (t, i) = (t + 1, i - n);
            };
            // Spans of a head lie side by side, to be merged in their order.
            let (kv_head, i) = (i / n_spans(&seen), i % n_spans(&seen));
            // SAFETY: each piece has its own partial result.
            let partial = unsafe { partials.range(piece * partial_len, partial_len) };
            let scores = worker.scratch(scores_len);
            attend(t * n_kv_heads + kv_head, &token, span(&seen, i), scores, partial);
        }
    });
    let mut rest = &mut scratch[..];
    for t in 0..n_tokens {
        let n = n_spans(&seen(&token(t)));
        for kv_head in 0..n_kv_heads {
            let (partials, after) = rest.split_at_mut(n * partial_len);
            let (state, others) = partials.split_at_mut(partial_len);
            for next in others.chunks_exact(partial_len) {
                merge(state, next, n_group);
            }
            finish(t * n_kv_heads + kv_head, state);
            rest = after;
        }
    }
}

/// Adds the positions of `next` to those of `state`.
fn merge(state: &mut [f32], next: &[f32], n_group: usize) {
    let width = state.len() / n_group - 2;
    let (maxima, rest) = state.split_at_mut(n_group);
    let (sums, values) = rest.split_at_mut(n_group);
    let (next_maxima, rest) = next.split_at(n_group);
    let (next_sums, next_values) = rest.split_at(n_group);
    for g in 0..n_group {
        let max = maxima[g].max(next_maxima[g]);
        let (a, b) = (all::exp(maxima[g] - max), all::exp(next_maxima[g] - max));
        maxima[g] = max;
        sums[g] = sums[g] * a + next_sums[g] * b;
        let next_values = &next_values[g * width..(g + 1) * width];
        for (x, y) in values[g * width..(g + 1) * width].iter_mut().zip(next_values) {
            *x = *x * a + *y * b;
        }
    }
}

/// Adds the sinks, divides by the sums of weights and writes the heads to `out`.
fn finish(state: &[f32], sinks: Option<&[f32]>, n_group: usize, dim_v: usize, out: &mut [f32]) {
    let (maxima, rest) = state.split_at(n_group);
    let (sums, values) = rest.split_at(n_group);
    let width = padded(dim_v);
    for g in 0..n_group {
        let factor = match sinks {
            None => 1.0 / sums[g],
            Some(sinks) => {
                let max = maxima[g].max(sinks[g]);
                let scale = all::exp(maxima[g] - max);
                scale / (sums[g] * scale + all::exp(sinks[g] - max))
            }
        };
        let values = &values[g * width..g * width + dim_v];
        for (out, value) in out[g * dim_v..(g + 1) * dim_v].iter_mut().zip(values) {
            *out = value * factor;
        }
    }
}

/// Turns the scores of a span into weights, `e^(score - max)`: `scores` is `[n_group, SPAN]`, of
/// which the positions of the span's tiles are written, those that the token does not see as 0.
/// `totals` receives the maxima and the sums, `[2, n_group]`.
#[inline(always)]
pub(crate) unsafe fn weigh<L: Lanes, K: Elem>(
    task: &Task<'_>,
    scores: &mut [f32],
    totals: &mut [f32],
) {
    let n_group = totals.len() / 2;
    let start = task.first / SPAN * SPAN;
    let tiles = task.first / TILE..task.end.div_ceil(TILE);
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut tile = tiles.start;
        while tile < tiles.end {
            if L::KEY_TILES == 2 && tile + 2 <= tiles.end {
                score_heads::<L, K, 2>(task, tile, n_group, scores);
                tile += 2;
            } else {
                score_heads::<L, K, 1>(task, tile, n_group, scores);
                tile += 1;
            }
        }
        for g in 0..n_group {
            let row = &mut scores[g * SPAN..(g + 1) * SPAN];
            let row = &mut row[tiles.start * TILE - start..tiles.end * TILE - start];
            if let Some(cap) = task.layer.soft_cap {
                for score in row.iter_mut() {
                    *score = cap * all::tanh(*score / cap);
                }
            }
            row[..task.first - tiles.start * TILE].fill(f32::NEG_INFINITY);
            row[task.end - tiles.start * TILE..].fill(f32::NEG_INFINITY);
            let mut max = L::splat(f32::NEG_INFINITY);
            for lanes in row.chunks_exact(LANES) {
                max = max.max(L::load(lanes));
            }
            let max = max.to_array().into_iter().fold(f32::NEG_INFINITY, f32::max);
            for score in row.iter_mut() {
                *score = all::exp(*score - max);
            }
            let mut sum = L::splat(0.0);
            for lanes in row.chunks_exact(LANES) {
                sum = sum.add(L::load(lanes));
            }
            totals[g] = max;
            totals[n_group + g] = all::fold(sum.to_array());
        }
    }
}

/// Scores of `P` tiles for all query heads of the group.
#[inline(always)]
unsafe fn score_heads<L: Lanes, K: Elem, const P: usize>(
    task: &Task<'_>,
    tile: usize,
    n_group: usize,
    scores: &mut [f32],
) {
    let mut g = 0;
    while g < n_group {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            match n_group - g {
                4.. => {
                    score::<L, K, P, 4>(task, tile, g, scores);
                    g += 4;
                }
                2.. => {
                    score::<L, K, P, 2>(task, tile, g, scores);
                    g += 2;
                }
                _ => {
                    score::<L, K, P, 1>(task, tile, g, scores);
                    g += 1;
                }
            }
        }
    }
}

/// Scores of `P` tiles for query heads `g` to `g + H - 1`.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "indices name heads, tiles and vectors")]
unsafe fn score<L: Lanes, K: Elem, const P: usize, const H: usize>(
    task: &Task<'_>,
    tile: usize,
    g: usize,
    scores: &mut [f32],
) {
    const PER_PAGE: usize = PAGE_TOKENS / TILE;
    let kv = task.layer.kv;
    let dim = kv.dim_k;
    let keys: [_; P] = std::array::from_fn(|p| {
        let tile = tile + p;
        let page = task.pages.page(task.page_ids[tile / PER_PAGE]);
        kv.keys::<K>(page, task.kv_head, tile % PER_PAGE)
    });
    let queries: [&[f32]; H] =
        std::array::from_fn(|h| &task.queries[(g + h) * dim..(g + h + 1) * dim]);
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut sums = [[L::splat(0.0); H]; P];
        if K::SCALES {
            // The scale of 32 values is applied to their sum.
            let mut start = 0;
            while start < dim {
                let end = dim.min(start + 32);
                let mut parts = [[L::splat(0.0); H]; P];
                for d in start..end {
                    let mut query = [L::splat(0.0); H];
                    for h in 0..H {
                        query[h] = L::splat(queries[h][d]);
                    }
                    for p in 0..P {
                        let key: L = keys[p].load(d);
                        for h in 0..H {
                            parts[p][h] = key.mul_add(query[h], parts[p][h]);
                        }
                    }
                }
                for p in 0..P {
                    let scale: L = keys[p].scales(start);
                    for h in 0..H {
                        sums[p][h] = parts[p][h].mul_add(scale, sums[p][h]);
                    }
                }
                start = end;
            }
        } else {
            for d in 0..dim {
                let mut query = [L::splat(0.0); H];
                for h in 0..H {
                    query[h] = L::splat(queries[h][d]);
                }
                for p in 0..P {
                    let key: L = keys[p].load(d);
                    for h in 0..H {
                        sums[p][h] = key.mul_add(query[h], sums[p][h]);
                    }
                }
            }
        }
        let scale = L::splat(task.layer.scale);
        let at = tile * TILE % SPAN;
        for p in 0..P {
            for h in 0..H {
                let at = (g + h) * SPAN + at + p * TILE;
                sums[p][h].mul(scale).store(&mut scores[at..at + TILE]);
            }
        }
    }
}

/// The sums of a span's values, weighted by `weights` (`[n_group, SPAN]`): `out` is `[n_group,
/// padded(dim_v)]`.
#[inline(always)]
pub(crate) unsafe fn add_values<L: Lanes, V: Elem>(
    task: &Task<'_>,
    weights: &[f32],
    out: &mut [f32],
) {
    let width = padded(task.layer.kv.dim_v);
    let n_group = out.len() / width;
    let mut g = 0;
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        while g < n_group {
            match n_group - g {
                4.. => {
                    add_heads::<L, V, 4>(task, g, weights, out);
                    g += 4;
                }
                2.. => {
                    add_heads::<L, V, 2>(task, g, weights, out);
                    g += 2;
                }
                _ => {
                    add_heads::<L, V, 1>(task, g, weights, out);
                    g += 1;
                }
            }
        }
    }
}

/// The sums for query heads `g` to `g + H - 1`.
#[inline(always)]
unsafe fn add_heads<L: Lanes, V: Elem, const H: usize>(
    task: &Task<'_>,
    g: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let width = padded(task.layer.kv.dim_v);
    let mut d = 0;
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        while d < width {
            let vectors = (width - d) / LANES;
            if L::VALUE_SUMS >= 4 * H && vectors >= 4 {
                add::<L, V, H, 4>(task, g, d, weights, out);
                d += 4 * LANES;
            } else if L::VALUE_SUMS >= 2 * H && vectors >= 2 {
                add::<L, V, H, 2>(task, g, d, weights, out);
                d += 2 * LANES;
            } else {
                add::<L, V, H, 1>(task, g, d, weights, out);
                d += LANES;
            }
        }
    }
}

/// Values `d` to `d + 16 D - 1` of the sums for query heads `g` to `g + H - 1`.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "indices name heads, tiles and vectors")]
unsafe fn add<L: Lanes, V: Elem, const H: usize, const D: usize>(
    task: &Task<'_>,
    g: usize,
    d: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let kv = task.layer.kv;
    let width = padded(kv.dim_v);
    let heads: [&[f32]; H] = std::array::from_fn(|h| &weights[(g + h) * SPAN..(g + h + 1) * SPAN]);
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut sums = [[L::splat(0.0); D]; H];
        let mut pos = task.first;
        while pos < task.end {
            let page = task.pages.page(task.page_ids[pos / PAGE_TOKENS]);
            let rows = kv.values::<V>(page, task.kv_head);
            let end = task.end.min((pos / PAGE_TOKENS + 1) * PAGE_TOKENS);
            let heads: [&[f32]; H] = std::array::from_fn(|h| {
                let start = pos % SPAN;
                &heads[h][start..start + (end - pos)]
            });
            for i in 0..end - pos {
                let mut weights = [L::splat(0.0); H];
                for h in 0..H {
                    weights[h] = L::splat(heads[h][i]);
                }
                let slot = pos % PAGE_TOKENS + i;
                for v in 0..D {
                    let value: L = rows.load(slot, d / LANES + v);
                    for h in 0..H {
                        sums[h][v] = value.mul_add(weights[h], sums[h][v]);
                    }
                }
            }
            pos = end;
        }
        for h in 0..H {
            for i in 0..D {
                let at = (g + h) * width + d + i * LANES;
                sums[h][i].store(&mut out[at..at + LANES]);
            }
        }
    }
}
