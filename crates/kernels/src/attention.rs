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
//! single token keeps all threads busy.
//!
//! Successive tokens of a sequence are a block, and the rows of a block, the query heads of a KV head
//! of each token, meet a span together. A few vectors at a time of its keys, and then of its values,
//! are widened to f32 and stay in L1 while all rows pass, as many at a time as registers hold sums
//! (`Lanes::SUMS`). A row takes the positions that it sees in ascending order; what only its neighbours
//! see has weight 0, so its sums are the same in any block. The rows of one token alone
//! are too few for a copy to pay: they widen each vector as they meet it, to the same numbers.
//!
//! Keys and values of bf16 stay what they are, two to a lane, and meet queries and weights of the same
//! form; with AMX as tiles (`attention/tiles.rs`).

use crate::arch::{LANES, Lanes, all, dispatch};
use crate::kv::{Elem, KvLayer, KvPages, PAGE_TOKENS, TILE, Tile, Values, with_kv};
use crate::share::Shared;
use crate::{Caches, Exec};
use half::bf16;
use std::ops::Range;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod tiles;

/// Positions whose scores are at hand at a time.
const SPAN: usize = 2 * PAGE_TOKENS;

/// Most rows of a block.
const MOST_ROWS: usize = 192;

/// Rows of a token up to which its keys and values are widened again for each few of them.
const FEW_ROWS: usize = 16;

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

/// A span of one KV head, and the queries of a block that see some of it.
pub(crate) struct Task<'a> {
    layer: &'a Layer<'a>,
    pages: &'a KvPages,
    page_ids: &'a [u32],
    kv_head: usize,
    /// The span's first position.
    start: usize,
    /// The last position that each query sees, ascending.
    positions: &'a [usize],
    /// `[n_rows, query_len]`, factors of the keys.
    queries: &'a [f32],
    /// Bytes of keys or of values, about, that are widened at a time.
    widened: usize,
}

impl Task<'_> {
    /// Query heads that share the KV head.
    fn n_group(&self) -> usize {
        self.layer.n_heads / self.layer.kv.n_kv_heads
    }

    /// Query heads of all queries.
    fn n_rows(&self) -> usize {
        self.positions.len() * self.n_group()
    }

    /// Whether the rows are those of one token, and too few for a copy of keys and values.
    fn is_alone(&self) -> bool {
        self.positions.len() == 1 && self.n_group() <= FEW_ROWS
    }

    /// Where something begins in a position's page that comes after what is at hand, to be fetched ahead;
    /// null if no query sees the position.
    fn ahead(&self, pos: usize, at: impl Fn(&KvLayer, &[u8]) -> *const u8) -> *const u8 {
        match self.page_ids.get(pos / PAGE_TOKENS) {
            Some(&id) if Some(&pos) <= self.positions.last() => {
                at(self.layer.kv, self.pages.page(id))
            }
            _ => std::ptr::null(),
        }
    }

    /// The positions of the span that a query sees.
    fn seen(&self, query: usize) -> Range<usize> {
        clip(&seen(self.layer, self.positions[query]), self.start)
    }

    /// The positions of the span that some query sees.
    fn seen_by_any(&self) -> Range<usize> {
        self.seen(0).start..self.seen(self.positions.len() - 1).end
    }

    /// The query of a row.
    #[inline(always)]
    fn query(&self, row: usize) -> &[f32] {
        let len = query_len(self.layer.kv.dim_k);
        &self.queries[row * len..(row + 1) * len]
    }

    /// The page of a position.
    #[inline(always)]
    fn page(&self, pos: usize) -> &[u8] {
        self.pages.page(self.page_ids[pos / PAGE_TOKENS])
    }
}

/// The positions that a token sees whose last is `pos`.
fn seen(layer: &Layer<'_>, pos: usize) -> Range<usize> {
    let end = pos + 1;
    layer.window.map_or(0, |window| end.saturating_sub(window))..end
}

/// Those of them that lie in the span that begins at `start`; perhaps none.
fn clip(seen: &Range<usize>, start: usize) -> Range<usize> {
    seen.start.max(start)..seen.end.min(start + SPAN)
}

/// The spans of some positions, counted from the sequence's beginning.
fn spans(seen: &Range<usize>) -> Range<usize> {
    seen.start / SPAN..seen.end.div_ceil(SPAN)
}

/// Values of a head in a partial result, filled up to whole vectors.
fn padded(dim_v: usize) -> usize {
    dim_v.next_multiple_of(LANES)
}

/// A row of a partial result: the weighted sums, `[padded(dim_v)]`, the largest score, the sum of
/// weights.
fn row_len(dim_v: usize) -> usize {
    padded(dim_v) + 2
}

/// Room for the factors of a query.
fn query_len(dim_k: usize) -> usize {
    dim_k.next_multiple_of(2)
}

/// What a thread works with: the scores of some rows, and vectors that were widened.
fn scratch_len(kv: &KvLayer, n_rows: usize) -> usize {
    let vectors = MOST_VECTORS * LANES * kv.dim_k.max(SPAN);
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    let vectors = vectors.max(tiles::scratch_len(kv));
    n_rows * SPAN + vectors
}

/// Most vectors that are widened at a time.
const MOST_VECTORS: usize = 4;

/// How many of `left` vectors of `n_lines` each are widened at a time, in some bytes, about: 4, 2 or 1.
fn at_a_time(left: usize, n_lines: usize, widened: usize) -> usize {
    let fit = (widened / (n_lines * LANES * size_of::<f32>())).max(2);
    [MOST_VECTORS, 2].into_iter().find(|n| *n <= left && *n <= fit).unwrap_or(1)
}

/// Rows of a block, about: with many of them a span's keys and values are widened seldom; scores, queries and
/// sums take a fifth of the second level's cache.
fn block_rows(kv: &KvLayer, caches: Caches) -> usize {
    let row = SPAN + query_len(kv.dim_k) + 2 * row_len(kv.dim_v);
    (caches.l2 / 5 / (row * size_of::<f32>())).clamp(1, MOST_ROWS)
}

/// Brings the query heads of a group together, as factors of the keys: `queries` is
/// `[n_rows, query_len]`, `q` has `width` values a token, of which the first are those of the group.
#[inline(always)]
pub(crate) unsafe fn gather<L: Lanes, K: Elem>(
    q: &[f32],
    width: usize,
    n_group: usize,
    dim: usize,
    queries: &mut [f32],
) {
    let len = query_len(dim);
    for (q, queries) in q.chunks(width).zip(queries.chunks_exact_mut(n_group * len)) {
        for (q, query) in q.chunks_exact(dim).zip(queries.chunks_exact_mut(len)) {
            query[..dim].copy_from_slice(q);
            query[dim..].fill(0.0);
            // SAFETY: the caller has the lanes' instruction set.
            unsafe { K::make_factors::<L>(query) };
        }
    }
}

/// Computes the partial results of a task: `partial` is `[n_rows, row_len]`, `scratch` as long as
/// [`scratch_len`] says.
fn attend(exec: Exec<'_>, task: &Task<'_>, scratch: &mut [f32], partial: &mut [f32]) {
    let kv = task.layer.kv;
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if tiles::fit(kv) {
        use crate::arch::{amx::Amx, x86_64};
        use crate::isa::Level;
        // SAFETY: an `Isa` of this level exists only if the processor has tiles, and the lanes; or a test
        // emulates them.
        unsafe {
            match exec.isa.level() {
                Level::Amx => {
                    return x86_64::avx512bf16::attend_by_tiles::<Amx>(task, scratch, partial);
                }
                #[cfg(test)]
                Level::Emulated => {
                    use crate::arch::scalar;
                    return scalar::paired::attend_by_tiles::<Amx>(task, scratch, partial);
                }
                _ => {}
            }
        }
    }
    let (scores, vectors) = scratch.split_at_mut(task.n_rows() * SPAN);
    with_kv!(kv.type_k, K => dispatch!(exec.isa, weigh[K](task, vectors, scores, partial)));
    with_kv!(kv.type_v, V => dispatch!(exec.isa, add_values[V](task, vectors, scores, partial)));
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

    let row_len = row_len(dim_v);
    let out = Shared::new(out);
    // The partial results of the whole block, from token `first` on, become its output.
    let finish = |first: usize, kv_head: usize, state: &[f32]| {
        let head = kv_head * n_group;
        let sinks = layer.sinks.map(|sinks| &sinks[head..head + n_group]);
        for (t, state) in state.chunks_exact(n_group * row_len).enumerate() {
            let at = ((first + t) * n_heads + head) * dim_v;
            // SAFETY: each piece writes its own heads of its own tokens.
            let out = unsafe { out.range(at, n_group * dim_v) };
            finish(state, sinks, dim_v, out);
        }
    };
    // The queries of a KV head from token `first` on, as many as there is room for.
    let gather = |first: usize, kv_head: usize, queries: &mut [f32]| {
        let q = &q[(first * n_heads + kv_head * n_group) * dim_k..];
        let width = n_heads * dim_k;
        with_kv!(layer.kv.type_k, K => {
            dispatch!(exec.isa, gather[K](q, width, n_group, dim_k, queries));
        });
    };

    let caches = exec.pool.caches();
    // Beside some queries.
    let widened = caches.l1 / 2;
    let n_items = n_tokens * n_kv_heads;
    if n_items >= 4 * exec.n_threads || exec.n_threads == 1 {
        // Long blocks, but enough of them for all threads.
        let longest = (block_rows(layer.kv, caches) / n_group).max(1);
        let block = (n_items / (8 * exec.n_threads)).clamp(1, longest);
        let queries_len = block * n_group * query_len(dim_k);
        let scratch_len = scratch_len(layer.kv, block * n_group);
        let n_pieces = n_tokens.div_ceil(block) * n_kv_heads;
        exec.for_chunks(n_pieces, 1, |pieces, worker| {
            let partial_len = block * n_group * row_len;
            let scratch = worker.scratch(queries_len + scratch_len + 2 * partial_len);
            let (queries, scratch) = scratch.split_at_mut(queries_len);
            let (scratch, partials) = scratch.split_at_mut(scratch_len);
            let (state, next) = partials.split_at_mut(partial_len);
            for piece in pieces {
                // The last tokens of a prompt see most: with them first, threads end together.
                let piece = n_pieces - 1 - piece;
                let (kv_head, tokens) = (piece % n_kv_heads, piece / n_kv_heads * block);
                let end = n_tokens.min(tokens + block);
                gather(tokens, kv_head, queries);
                let queries_of = |token: usize| &queries[queries_len / block * (token - tokens)..];
                let mut first = tokens;
                while first < end {
                    // As many tokens as follow one another in a sequence.
                    let Token { page_ids, pos } = token(first);
                    let mut positions = [pos; MOST_ROWS];
                    let mut n = 1;
                    while first + n < end {
                        let next = token(first + n);
                        if !std::ptr::eq(next.page_ids, page_ids) || next.pos < positions[n - 1] {
                            break;
                        }
                        positions[n] = next.pos;
                        n += 1;
                    }
                    let positions = &positions[..n];
                    let state = &mut state[..n * n_group * row_len];
                    let seen_by = |i: usize| seen(layer, positions[i]);
                    for span in spans(&(seen_by(0).start..seen_by(n - 1).end)) {
                        // Who sees some of the span: the window ends before it for those in front.
                        let sees = |i: &usize| !clip(&seen_by(*i), span * SPAN).is_empty();
                        let some = (0..n).find(sees).unwrap_or(0);
                        let len = (some..n).take_while(sees).count();
                        if len == 0 {
                            continue;
                        }
                        let next = &mut next[..len * n_group * row_len];
                        let task = Task {
                            layer,
                            pages,
                            page_ids,
                            kv_head,
                            start: span * SPAN,
                            positions: &positions[some..some + len],
                            queries: queries_of(first + some),
                            widened,
                        };
                        attend(exec, &task, scratch, next);
                        let per_token = n_group * row_len;
                        let state = &mut state[some * per_token..(some + len) * per_token];
                        let pairs =
                            state.chunks_exact_mut(per_token).zip(next.chunks_exact(per_token));
                        for (i, (state, next)) in pairs.enumerate() {
                            if spans(&seen_by(some + i)).start == span {
                                state.copy_from_slice(next);
                            } else {
                                dispatch!(exec.isa, merge(state, next, row_len));
                            }
                        }
                    }
                    finish(first, kv_head, state);
                    first += n;
                }
            }
        });
        return;
    }
    // Few tokens: every span is a piece of work.
    let n_spans = |t: usize| spans(&seen(layer, token(t).pos)).len();
    let total: usize = (0..n_tokens).map(|t| n_spans(t) * n_kv_heads).sum();
    let partial_len = n_group * row_len;
    if scratch.len() < total * partial_len {
        scratch.resize(total * partial_len, 0.0);
    }
    let partials = Shared::new(&mut scratch[..]);
    let queries_len = n_group * query_len(dim_k);
    let scratch_len = scratch_len(layer.kv, n_group);
    // Some in a row, so that what is fetched ahead serves the thread that fetches it.
    let chunk = total / (8 * exec.n_threads);
    exec.for_chunks(total, chunk, |pieces, worker| {
        for piece in pieces {
            let (mut t, mut i) = (0, piece);
            while i >= n_spans(t) * n_kv_heads {
                (t, i) = (t + 1, i - n_spans(t) * n_kv_heads);
            }
            let Token { page_ids, pos } = token(t);
            let spans = spans(&seen(layer, pos));
            // Spans of a head lie side by side, to be merged in their order.
            let (kv_head, span) = (i / spans.len(), spans.start + i % spans.len());
            // SAFETY: each piece has its own partial result.
            let partial = unsafe { partials.range(piece * partial_len, partial_len) };
            let (queries, scratch) =
                worker.scratch(queries_len + scratch_len).split_at_mut(queries_len);
            gather(t, kv_head, queries);
            let task = Task {
                layer,
                pages,
                page_ids,
                kv_head,
                start: span * SPAN,
                positions: &[pos],
                queries,
                widened,
            };
            attend(exec, &task, scratch, partial);
        }
    });
    let mut rest = &mut scratch[..];
    for t in 0..n_tokens {
        let n = n_spans(t);
        for kv_head in 0..n_kv_heads {
            let (partials, after) = rest.split_at_mut(n * partial_len);
            let (state, others) = partials.split_at_mut(partial_len);
            for next in others.chunks_exact(partial_len) {
                dispatch!(exec.isa, merge(state, next, row_len));
            }
            finish(t, kv_head, state);
            rest = after;
        }
    }
}

/// Adds the positions of `next` to those of `state`, both `[n_rows, row_len]`.
#[inline(always)]
pub(crate) fn merge(state: &mut [f32], next: &[f32], row_len: usize) {
    let width = row_len - 2;
    for (state, next) in state.chunks_exact_mut(row_len).zip(next.chunks_exact(row_len)) {
        let (values, totals) = state.split_at_mut(width);
        let (next_values, next_totals) = next.split_at(width);
        let max = totals[0].max(next_totals[0]);
        let (a, b) = (all::exp(totals[0] - max), all::exp(next_totals[0] - max));
        totals[0] = max;
        totals[1] = totals[1] * a + next_totals[1] * b;
        for (x, y) in values.iter_mut().zip(next_values) {
            *x = *x * a + *y * b;
        }
    }
}

/// Adds the sinks of a token's heads, divides by the sums of weights and writes the heads to `out`.
fn finish(state: &[f32], sinks: Option<&[f32]>, dim_v: usize, out: &mut [f32]) {
    let rows = state.chunks_exact(row_len(dim_v)).zip(out.chunks_exact_mut(dim_v));
    for (g, (row, out)) in rows.enumerate() {
        let (values, totals) = row.split_at(padded(dim_v));
        let factor = match sinks {
            None => 1.0 / totals[1],
            Some(sinks) => {
                let max = totals[0].max(sinks[g]);
                let scale = all::exp(totals[0] - max);
                scale / (totals[1] * scale + all::exp(sinks[g] - max))
            }
        };
        for (out, value) in out.iter_mut().zip(values) {
            *out = value * factor;
        }
    }
}

/// Does a step for as many of `rows` at a time as [`Lanes::SUMS`] allows: 6, 4, 2 or 1.
macro_rules! by_rows {
    ($L:ty, $rows:expr, |$row:ident, $H:ident| $step:expr) => {
        let rows: Range<usize> = $rows;
        let mut $row = rows.start;
        while $row < rows.end {
            let left = rows.end - $row;
            if left >= 6 && <$L>::SUMS >= 6 {
                const $H: usize = 6;
                $step;
                $row += $H;
            } else if left >= 4 && <$L>::SUMS >= 4 {
                const $H: usize = 4;
                $step;
                $row += $H;
            } else if left >= 2 && <$L>::SUMS >= 2 {
                const $H: usize = 2;
                $step;
                $row += $H;
            } else {
                const $H: usize = 1;
                $step;
                $row += $H;
            }
        }
    };
}

/// The rows of the queries that see some of `positions`, which lie in the span.
#[inline(always)]
fn rows_that_see(task: &Task<'_>, positions: Range<usize>) -> Range<usize> {
    let n_group = task.n_group();
    let mut queries = 0..task.positions.len();
    while task.seen(queries.start).end <= positions.start {
        queries.start += 1;
    }
    while task.seen(queries.end - 1).start >= positions.end {
        queries.end -= 1;
    }
    queries.start * n_group..queries.end * n_group
}

/// Computes the scores of a span and makes weights of them: see [`make_weights`].
#[inline(always)]
pub(crate) unsafe fn weigh<L: Lanes, K: Elem>(
    task: &Task<'_>,
    vectors: &mut [f32],
    scores: &mut [f32],
    partial: &mut [f32],
) {
    let seen = task.seen_by_any();
    let tiles = seen.start / TILE..seen.end.div_ceil(TILE);
    let n_lanes = task.layer.kv.dim_k.div_ceil(K::PER_LANE);
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut tile = tiles.start;
        while tile < tiles.end {
            let n = at_a_time(tiles.end - tile, n_lanes, task.widened);
            let rows = rows_that_see(task, tile * TILE..(tile + n) * TILE);
            match n {
                4 => score_tiles::<L, K, 4>(task, tile, rows, vectors, scores),
                2 => score_tiles::<L, K, 2>(task, tile, rows, vectors, scores),
                _ => score_tiles::<L, K, 1>(task, tile, rows, vectors, scores),
            }
            tile += n;
        }
        make_weights::<L>(task, scores, partial);
    }
}

/// Turns the scores of a span into weights, `e^(score - max)`, as factors of the values: `scores` is
/// `[n_rows, SPAN]`, of which the positions that some row sees are written, those that a row does not see
/// as 0. The maxima and the sums go to `partial`, `[n_rows, row_len]`.
#[inline(always)]
unsafe fn make_weights<L: Lanes>(task: &Task<'_>, scores: &mut [f32], partial: &mut [f32]) {
    let (n_group, seen) = (task.n_group(), task.seen_by_any());
    let row_len = row_len(task.layer.kv.dim_v);
    let pairs = task.layer.kv.type_v.per_lane() == 2;
    // Columns of whole vectors, or of pairs of them.
    let whole = |seen: &Range<usize>| {
        let (first, end) = (seen.start - task.start, seen.end - task.start);
        first / (2 * LANES) * (2 * LANES)..end.next_multiple_of(2 * LANES)
    };
    let all = whole(&seen);
    let rows = scores.chunks_exact_mut(SPAN).zip(partial.chunks_exact_mut(row_len));
    for (row, (scores, partial)) in rows.enumerate() {
        let seen = task.seen(row / n_group);
        let columns = whole(&seen);
        let start = task.start + columns.start;
        let row = &mut scores[columns.clone()];
        if let Some(cap) = task.layer.soft_cap {
            for score in row.iter_mut() {
                *score = cap * all::tanh(*score / cap);
            }
        }
        row[..seen.start - start].fill(f32::NEG_INFINITY);
        row[seen.end - start..].fill(f32::NEG_INFINITY);
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut max = L::splat(f32::NEG_INFINITY);
            for lanes in row.chunks_exact(LANES) {
                max = max.max(L::load(lanes));
            }
            let max = all::max(max.to_array());
            for score in row.iter_mut() {
                *score = all::exp_to_88(*score - max);
            }
            let mut sum = L::splat(0.0);
            for lanes in row.chunks_exact(LANES) {
                sum = sum.add(L::load(lanes));
            }
            // Rows of other tokens see more.
            scores[all.start..columns.start].fill(0.0);
            scores[columns.end..all.end].fill(0.0);
            if pairs {
                bf16::make_factors::<L>(&mut scores[..all.end]);
            }
            let totals = &mut partial[row_len - 2..];
            (totals[0], totals[1]) = (max, all::fold(sum.to_array()));
        }
    }
}

/// Scores of `N` tiles for some rows.
#[inline(always)]
unsafe fn score_tiles<L: Lanes, K: Elem, const N: usize>(
    task: &Task<'_>,
    tile: usize,
    rows: Range<usize>,
    vectors: &mut [f32],
    scores: &mut [f32],
) {
    const PER_PAGE: usize = PAGE_TOKENS / TILE;
    let kv = task.layer.kv;
    let n_lanes = kv.dim_k.div_ceil(K::PER_LANE);
    let tiles: [_; N] = std::array::from_fn(|p| {
        kv.keys::<K>(task.page((tile + p) * TILE), task.kv_head, (tile + p) % PER_PAGE)
    });
    let at = tile * TILE - task.start;
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        if task.is_alone() {
            let keys = std::array::from_fn(|p| tiles[p].stored());
            // Next come the tiles that follow, or else the span's values.
            let next = tile + N;
            let ahead = if next * TILE < task.start + SPAN && next * TILE <= task.positions[0] {
                task.ahead(next * TILE, |kv, page| kv.keys_at(page, task.kv_head, next % PER_PAGE))
            } else {
                task.ahead(task.start, |kv, page| kv.values_at(page, task.kv_head))
            };
            return score_rows::<L, K, K, N>(task, &tiles, keys, ahead, rows, at, scores);
        }
        let vectors = &mut vectors.as_chunks_mut::<TILE>().0[..N * n_lanes];
        for (p, keys) in vectors.chunks_exact_mut(n_lanes).enumerate() {
            let stored = tiles[p].stored();
            // Next come the span's values.
            let page = task.page((tile + p) * TILE);
            let ahead = kv.values_at(page, task.kv_head);
            let mut ahead = ahead.wrapping_add((tile + p) % PER_PAGE * size_of_val(stored));
            for (to, key) in keys.iter_mut().zip(stored) {
                L::prefetch_to_l2(ahead);
                ahead = ahead.wrapping_add(size_of_val(key));
                K::load::<L>(key).store(to);
            }
        }
        let keys = std::array::from_fn(|p| &vectors[p * n_lanes..(p + 1) * n_lanes]);
        let ahead = std::ptr::null();
        score_rows::<L, K, K::Loaded, N>(task, &tiles, keys, ahead, rows, at, scores);
    }
}

/// Scores of `N` tiles for some rows, which go to their columns from `at` on. `keys` are those of
/// `tiles`, as they are or widened: `[n_lanes][16]`. As much is fetched from `ahead`, if that is not null.
#[inline(always)]
unsafe fn score_rows<L: Lanes, K: Elem, E: Elem, const N: usize>(
    task: &Task<'_>,
    tiles: &[Tile<'_, K>; N],
    keys: [&[[E::Stored; TILE]]; N],
    mut ahead: *const u8,
    rows: Range<usize>,
    at: usize,
    scores: &mut [f32],
) {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        by_rows!(L, rows, |row, H| {
            if H * N <= L::SUMS {
                score::<L, K, E, N, H>(task, tiles, keys, ahead, row, at, scores);
            } else {
                for p in 0..N {
                    let (tile, at) = (std::array::from_ref(&tiles[p]), at + p * TILE);
                    score::<L, K, E, 1, H>(task, tile, [keys[p]], ahead, row, at, scores);
                    if !ahead.is_null() {
                        ahead = ahead.wrapping_add(size_of_val(keys[p]));
                    }
                }
            }
            // Once is enough.
            ahead = std::ptr::null();
        });
    }
}

/// The same of `P` tiles for `H` rows.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "indices name rows, tiles and vectors")]
unsafe fn score<L: Lanes, K: Elem, E: Elem, const P: usize, const H: usize>(
    task: &Task<'_>,
    tiles: &[Tile<'_, K>; P],
    keys: [&[[E::Stored; TILE]]; P],
    ahead: *const u8,
    row: usize,
    at: usize,
    scores: &mut [f32],
) {
    let n_lanes = keys[0].len();
    let mut queries = [&[][..]; H];
    for h in 0..H {
        queries[h] = task.query(row + h);
    }
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut sums = [[L::splat(0.0); P]; H];
        if K::SCALES {
            // The scale of 32 values is applied to their sum.
            let mut start = 0;
            while start < n_lanes {
                let end = n_lanes.min(start + 32);
                let mut parts = [[L::splat(0.0); P]; H];
                add_products::<L, E, P, H>(&keys, ahead, &queries, start..end, &mut parts);
                for p in 0..P {
                    let scale: L = tiles[p].scales(start);
                    for h in 0..H {
                        sums[h][p] = parts[h][p].mul_add(scale, sums[h][p]);
                    }
                }
                start = end;
            }
        } else {
            add_products::<L, E, P, H>(&keys, ahead, &queries, 0..n_lanes, &mut sums);
        }
        let scale = L::splat(task.layer.scale);
        for p in 0..P {
            for h in 0..H {
                let at = (row + h) * SPAN + at + p * TILE;
                sums[h][p].mul(scale).store(&mut scores[at..at + TILE]);
            }
        }
    }
}

/// Adds the products of some lanes of keys and queries.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "indices name rows, tiles and lanes")]
unsafe fn add_products<L: Lanes, E: Elem, const P: usize, const H: usize>(
    keys: &[&[[E::Stored; TILE]]; P],
    ahead: *const u8,
    queries: &[&[f32]; H],
    lanes: Range<usize>,
    sums: &mut [[L; P]; H],
) {
    // Slices of one length, checked once.
    let (n, n_factors) = (lanes.len(), E::n_factors::<L>());
    let mut key_lanes = [&[][..]; P];
    for p in 0..P {
        key_lanes[p] = &keys[p][lanes.clone()][..n];
    }
    let mut query_lanes = [&[][..]; H];
    for h in 0..H {
        let factors = lanes.start * n_factors..lanes.end * n_factors;
        query_lanes[h] = &queries[h][factors][..n * n_factors];
    }
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        for d in 0..n {
            let mut key = [L::splat(0.0); P];
            for p in 0..P {
                key[p] = E::load(&key_lanes[p][d]);
                if !ahead.is_null() {
                    let line = (lanes.start + d) * P + p;
                    L::prefetch(ahead.wrapping_add(line * size_of::<[E::Stored; TILE]>()));
                }
            }
            for h in 0..H {
                E::add_products(&mut sums[h], &key, query_lanes[h], d);
            }
        }
    }
}

/// The sums of a span's values, weighted by `weights` (`[n_rows, SPAN]`), which go to `partial`
/// (`[n_rows, row_len]`).
#[inline(always)]
pub(crate) unsafe fn add_values<L: Lanes, V: Elem>(
    task: &Task<'_>,
    vectors: &mut [f32],
    weights: &[f32],
    partial: &mut [f32],
) {
    let kv = task.layer.kv;
    let (width, n_group, n_rows) = (padded(kv.dim_v), task.n_group(), task.n_rows());
    for partial in partial.chunks_exact_mut(row_len(kv.dim_v)) {
        partial[..width].fill(0.0);
    }
    if task.is_alone() {
        // SAFETY: the caller has the lanes' instruction set.
        return unsafe { add_in_place::<L, V>(task, weights, partial) };
    }
    // The steps of the span that take some positions, a step for those that share lanes.
    let steps = |seen: Range<usize>| {
        (seen.start - task.start) / V::PER_LANE..(seen.end - task.start).div_ceil(V::PER_LANE)
    };
    let per_page = PAGE_TOKENS / V::PER_LANE;
    let seen = steps(task.seen_by_any());
    let values = &mut vectors.as_chunks_mut::<LANES>().0[..MOST_VECTORS * SPAN];
    let mut d = 0;
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        while d < width / LANES {
            let n = at_a_time(width / LANES - d, seen.len(), task.widened);
            let mut step = seen.start;
            while step < seen.end {
                let pos = task.start + step * V::PER_LANE;
                let rows = kv.values::<V>(task.page(pos), task.kv_head);
                // Next come the keys of the span that follows.
                let ahead = task.ahead(pos + SPAN, |kv, page| kv.keys_at(page, task.kv_head, 0));
                let end = seen.end.min((step / per_page + 1) * per_page);
                for step in step..end {
                    for v in 0..n {
                        let (slot, to) = (step % per_page, &mut values[v * SPAN + step]);
                        if !ahead.is_null() {
                            L::prefetch_to_l2(ahead.wrapping_add(rows.offset(slot, d + v)));
                        }
                        rows.load::<L>(slot, d + v).store(to);
                    }
                }
                step = end;
            }
            by_rows!(L, 0..n_rows, |row, H| {
                // What one of the rows sees; those that don't see it have weights of 0.
                let start = steps(task.seen(row / n_group)).start;
                let end = steps(task.seen((row + H - 1) / n_group)).end;
                add_widened::<L, V, H>(task, values, (d, n), row, start..end, weights, partial);
            });
            d += n;
        }
    }
}

/// Adds the values that a token alone sees to the sums of its rows.
#[inline(always)]
unsafe fn add_in_place<L: Lanes, V: Elem>(task: &Task<'_>, weights: &[f32], partial: &mut [f32]) {
    let kv = task.layer.kv;
    let (row_len, n_vectors) = (row_len(kv.dim_v), padded(kv.dim_v) / LANES);
    let seen = task.seen(0);
    let mut pos = seen.start;
    while pos < seen.end {
        let rows = kv.values::<V>(task.page(pos), task.kv_head);
        let end = seen.end.min((pos / PAGE_TOKENS + 1) * PAGE_TOKENS);
        let slot = pos % PAGE_TOKENS / V::PER_LANE;
        let steps = (pos - task.start) / V::PER_LANE..(end - task.start).div_ceil(V::PER_LANE);
        let factors = steps.start * V::n_factors::<L>()..steps.end * V::n_factors::<L>();
        // Next come the values of the page that follows, or else the keys of the span that does.
        let mut ahead = if end < task.start + SPAN {
            task.ahead(end, |kv, page| kv.values_at(page, task.kv_head))
        } else {
            task.ahead(end, |kv, page| kv.keys_at(page, task.kv_head, 0))
        };
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            by_rows!(L, 0..task.n_rows(), |row, H| {
                let mut weights_of = [&[][..]; H];
                for h in 0..H {
                    weights_of[h] = &weights[(row + h) * SPAN..][factors.clone()];
                }
                let partial = &mut partial[row * row_len..(row + H) * row_len];
                // The `i`-th of `n` vectors from `d` on. While they pass, as many that come next are
                // fetched, in the order of memory.
                let column = |d: usize, i: usize, n: usize| {
                    let line = size_of::<[V::Stored; LANES]>();
                    let offset = (d * steps.len() + i) * line;
                    let ahead = if ahead.is_null() { ahead } else { ahead.wrapping_add(offset) };
                    Column { rows: &rows, slot, vector: d + i, ahead, stride: n * line }
                };
                let mut d = 0;
                while d < n_vectors {
                    if H * 4 <= L::SUMS && d + 4 <= n_vectors {
                        let values = std::array::from_fn(|i| column(d, i, 4));
                        add::<L, V, _, H, 4>(values, weights_of, d, row_len, partial);
                        d += 4;
                    } else if H * 2 <= L::SUMS && d + 2 <= n_vectors {
                        let values = std::array::from_fn(|i| column(d, i, 2));
                        add::<L, V, _, H, 2>(values, weights_of, d, row_len, partial);
                        d += 2;
                    } else {
                        add::<L, V, _, H, 1>([column(d, 0, 1)], weights_of, d, row_len, partial);
                        d += 1;
                    }
                }
                // Once is enough.
                ahead = std::ptr::null();
            });
        }
        pos = end;
    }
}

/// A vector of successive steps' values: a step is a position, or the positions that share lanes.
trait Vectors: Sized {
    /// Those of the first `n` steps, which alone are asked for.
    fn first(self, n: usize) -> Self;

    /// That of step `i`.
    unsafe fn load<L: Lanes>(&self, i: usize) -> L;
}

/// Widened.
impl Vectors for &[[f32; LANES]] {
    #[inline(always)]
    fn first(self, n: usize) -> Self {
        &self[..n]
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(&self, i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(&self[i]) }
    }
}

/// As they lie in a page, from lane `slot` on.
struct Column<'a, V: Elem> {
    rows: &'a Values<'a, V>,
    slot: usize,
    vector: usize,
    /// What is fetched with the first step, and `stride` bytes further with each that follows; nothing
    /// if it is null.
    ahead: *const u8,
    stride: usize,
}

impl<V: Elem> Vectors for Column<'_, V> {
    #[inline(always)]
    fn first(self, _: usize) -> Self {
        self
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(&self, i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            if !self.ahead.is_null() {
                L::prefetch(self.ahead.wrapping_add(i * self.stride));
            }
            self.rows.load(self.slot + i, self.vector)
        }
    }
}

/// Adds some steps' vectors `d` to `d + n - 1` to the sums of `H` rows.
#[inline(always)]
unsafe fn add_widened<L: Lanes, V: Elem, const H: usize>(
    task: &Task<'_>,
    values: &[[f32; LANES]],
    (d, n): (usize, usize),
    row: usize,
    steps: Range<usize>,
    weights: &[f32],
    partial: &mut [f32],
) {
    let row_len = row_len(task.layer.kv.dim_v);
    let partial = &mut partial[row * row_len..(row + H) * row_len];
    let factors = steps.start * V::n_factors::<L>()..steps.end * V::n_factors::<L>();
    let mut rows = [&[][..]; H];
    for h in 0..H {
        rows[h] = &weights[(row + h) * SPAN..(row + h + 1) * SPAN][factors.clone()];
    }
    let column = |v: usize| &values[v * SPAN..(v + 1) * SPAN][steps.clone()];
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut v = 0;
        while v < n {
            if v + 4 <= n && H * 4 <= L::SUMS {
                let columns = std::array::from_fn(|i| column(v + i));
                add::<L, V, _, H, 4>(columns, rows, d + v, row_len, partial);
                v += 4;
            } else if v + 2 <= n && H * 2 <= L::SUMS {
                let columns = std::array::from_fn(|i| column(v + i));
                add::<L, V, _, H, 2>(columns, rows, d + v, row_len, partial);
                v += 2;
            } else {
                add::<L, V, _, H, 1>([column(v)], rows, d + v, row_len, partial);
                v += 1;
            }
        }
    }
}

/// Adds vectors `d` to `d + D - 1` of some steps to the sums of `H` rows, `[H, row_len]`.
#[inline(always)]
unsafe fn add<L: Lanes, V: Elem, S: Vectors, const H: usize, const D: usize>(
    values: [S; D],
    weights: [&[f32]; H],
    d: usize,
    row_len: usize,
    partial: &mut [f32],
) {
    // Slices of one length, checked once.
    let n = weights[0].len() / V::n_factors::<L>();
    let values = values.map(|values| values.first(n));
    let weights = weights.map(|weights| &weights[..n * V::n_factors::<L>()]);
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut sums = [[L::splat(0.0); D]; H];
        for h in 0..H {
            for i in 0..D {
                sums[h][i] = L::load(&partial[h * row_len + (d + i) * LANES..]);
            }
        }
        for step in 0..n {
            let mut value = [L::splat(0.0); D];
            for i in 0..D {
                value[i] = values[i].load(step);
            }
            for h in 0..H {
                V::add_products(&mut sums[h], &value, weights[h], step);
            }
        }
        for h in 0..H {
            for i in 0..D {
                sums[h][i].store(&mut partial[h * row_len + (d + i) * LANES..]);
            }
        }
    }
}
