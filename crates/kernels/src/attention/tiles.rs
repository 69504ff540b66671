//! Attention by matrix tiles (AMX), where keys and values are bf16: they are tiles as they lie.
//!
//! ```text
//! scores  [16 rows, 16 positions] += queries [16 rows, 32 values] × 16 lines of a tile of keys
//! sums    [16 rows, 16 values]    += weights [16 rows, 32 positions] × a vector of 16 lines of values
//! ```
//!
//! Two times two such products share their operands. An instruction adds up the products of even and those
//! of odd elements of its 32 apart, and then both to the sum. So the bits are others than those of vectors;
//! a single token takes tiles, too, so that they are the same in any company.

use super::{SPAN, Task, make_weights, padded, query_len, row_len, rows_that_see};
use crate::arch::{LANES, Lanes};
use crate::kv::{KvLayer, KvType, PAGE_TOKENS, TILE};
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;

#[cfg(test)]
mod tests;

/// Rows that are multiplied at a time.
pub(crate) const AT_ONCE: usize = 32;

/// Columns of two products side by side, and bf16 that a product adds up at a time.
const WIDTH: usize = 2 * LANES;

/// Most values of a key: the steps of a product fit the stack.
const MOST_VALUES: usize = 1024;

/// Products of up to 32 rows with 32 columns.
#[derive(Clone, Copy)]
pub(crate) struct Products<'a> {
    /// The rows, of pairs of bf16: 16 pairs a step.
    pub(crate) rows: *const f32,
    /// Numbers from row to row.
    pub(crate) row_stride: usize,
    /// Where each step's 16 lines of the first 16 columns begin.
    pub(crate) steps: &'a [*const u8],
    /// Bytes from line to line.
    pub(crate) line_stride: usize,
    /// Bytes from there to the lines of the other 16 columns.
    pub(crate) other_columns: usize,
    /// Where the sums go.
    pub(crate) sums: *mut f32,
    /// Numbers from row to row.
    pub(crate) sum_stride: usize,
}

/// Something that multiplies tiles of pairs of bf16.
///
/// # Safety
/// The methods may only be called where the instructions are present; `multiply` between `configure` and
/// `release` on one thread, with as many rows as were configured, and pointers that lead to as much.
pub(crate) trait PairTiles {
    /// Prepares this thread for `n_rows` at a time, from 1 to 32.
    unsafe fn configure(n_rows: usize);
    /// Ends what `configure` began.
    unsafe fn release();
    /// The sums of the products of rows and columns.
    unsafe fn multiply(n_rows: usize, products: Products<'_>);
}

/// Tiles that are configured when that is needed, and released in the end.
struct Configured<M: PairTiles> {
    n_rows: usize,
    tiles: PhantomData<M>,
}

impl<M: PairTiles> Configured<M> {
    fn new() -> Self {
        Self { n_rows: 0, tiles: PhantomData }
    }

    /// Multiplies all of `rows`, as many at a time as tiles hold: `products` is given the first of them.
    ///
    /// # Safety
    /// See [`PairTiles`].
    #[inline(always)]
    unsafe fn multiply<'a>(
        &mut self,
        rows: Range<usize>,
        products: impl Fn(usize) -> Products<'a>,
    ) {
        for first in rows.clone().step_by(AT_ONCE) {
            let n_rows = AT_ONCE.min(rows.end - first);
            // SAFETY: the caller's promise.
            unsafe {
                if self.n_rows != n_rows {
                    M::configure(n_rows);
                    self.n_rows = n_rows;
                }
                M::multiply(n_rows, products(first));
            }
        }
    }
}

impl<M: PairTiles> Drop for Configured<M> {
    fn drop(&mut self) {
        if self.n_rows > 0 {
            // SAFETY: what has been configured is there.
            unsafe { M::release() };
        }
    }
}

/// Whether a layer's keys and values are whole tiles.
pub(crate) fn fit(kv: &KvLayer) -> bool {
    (kv.type_k, kv.type_v) == (KvType::BF16, KvType::BF16)
        && kv.dim_k.is_multiple_of(WIDTH)
        && kv.dim_k <= MOST_VALUES
        && kv.dim_v.is_multiple_of(WIDTH)
}

/// Room for a block of values that ends where nothing has been written yet.
pub(crate) fn scratch_len(kv: &KvLayer) -> usize {
    LANES * padded(kv.dim_v)
}

/// Computes the partial results of a task whose layer [`fit`]s: see `super::attend`.
///
/// # Safety
/// The instruction sets of the lanes, which hold a pair of bf16 each, and of the tiles are present.
#[inline(always)]
pub(crate) unsafe fn attend<L: Lanes, M: PairTiles>(
    task: &Task<'_>,
    scratch: &mut [f32],
    partial: &mut [f32],
) {
    const { assert!(L::PAIR_FACTORS == 1, "factors are pairs of bf16") };
    let (scores, last) = scratch.split_at_mut(task.n_rows() * SPAN);
    let mut tiles = Configured::<M>::new();
    // SAFETY: the caller's promise.
    unsafe {
        score::<L, M>(&mut tiles, task, scores);
        make_weights::<L>(task, scores, partial);
        add_values::<L, M>(&mut tiles, task, last, scores, partial);
    }
}

/// Scores of a span, for the rows that see some of each 32 positions.
#[inline(always)]
unsafe fn score<L: Lanes, M: PairTiles>(
    tiles: &mut Configured<M>,
    task: &Task<'_>,
    scores: &mut [f32],
) {
    let kv = task.layer.kv;
    let seen = task.seen_by_any();
    let line = size_of::<[f32; LANES]>();
    let (step_bytes, query_len) = (LANES * line, query_len(kv.dim_k));
    // SAFETY: the caller has the lanes' instruction set.
    let scale = unsafe { L::splat(task.layer.scale) };
    for first in (seen.start / WIDTH * WIDTH..seen.end).step_by(WIDTH) {
        let rows = rows_that_see(task, first..first + WIDTH);
        let page = task.page(first);
        let tile = first % PAGE_TOKENS / TILE;
        let [keys, other] = [tile, tile + 1].map(|tile| kv.keys_at(page, task.kv_head, tile));
        // Next come the span's values.
        let ahead = kv.values_at(page, task.kv_head);
        let ahead = ahead.wrapping_add(first % PAGE_TOKENS * kv.dim_v * size_of::<bf16>());
        for i in 0..WIDTH * kv.dim_v * size_of::<bf16>() / line {
            // SAFETY: as above; any address may be fetched.
            unsafe { L::prefetch_to_l2(ahead.wrapping_add(i * line)) };
        }
        let mut steps = [std::ptr::null(); MOST_VALUES / WIDTH];
        let steps = &mut steps[..kv.dim_k / WIDTH];
        for (i, step) in steps.iter_mut().enumerate() {
            *step = keys.wrapping_add(i * step_bytes);
        }
        let at = first - task.start;
        let sums = scores.as_mut_ptr();
        // SAFETY: the caller's promise; there are as many scores.
        unsafe {
            tiles.multiply(rows.clone(), |row| Products {
                rows: task.queries[row * query_len..].as_ptr(),
                row_stride: query_len,
                steps,
                line_stride: line,
                other_columns: other.addr() - keys.addr(),
                sums: sums.wrapping_add(row * SPAN + at),
                sum_stride: SPAN,
            });
            for scores in scores[rows.start * SPAN..rows.end * SPAN].chunks_exact_mut(SPAN) {
                for lanes in scores[at..at + WIDTH].chunks_exact_mut(LANES) {
                    L::load(lanes).mul(scale).store(lanes);
                }
            }
        }
    }
}

/// The sums of a span's values, weighted by `weights`, which go to `partial`. `last` is of [`scratch_len`].
#[inline(always)]
unsafe fn add_values<L: Lanes, M: PairTiles>(
    tiles: &mut Configured<M>,
    task: &Task<'_>,
    last: &mut [f32],
    weights: &[f32],
    partial: &mut [f32],
) {
    let kv = task.layer.kv;
    let (n_vectors, row_len) = (padded(kv.dim_v) / LANES, row_len(kv.dim_v));
    let line = size_of::<[f32; LANES]>();
    let seen = task.seen_by_any();
    let first = seen.start / WIDTH * WIDTH;
    let mut blocks = [std::ptr::null(); SPAN / WIDTH];
    let blocks = &mut blocks[..(seen.end - first).div_ceil(WIDTH)];
    for (i, block) in blocks.iter_mut().enumerate() {
        let pos = first + i * WIDTH;
        let lanes = pos % PAGE_TOKENS / 2;
        let offset = lanes * n_vectors * line;
        *block = kv.values_at(task.page(pos), task.kv_head).wrapping_add(offset);
        let n_lanes = (seen.end - pos).div_ceil(2);
        if n_lanes < LANES {
            // Behind them lies what may be no numbers, which no weight of 0 makes harmless.
            let values = kv.values::<bf16>(task.page(pos), task.kv_head);
            let (written, rest) = last.split_at_mut(n_lanes * n_vectors * LANES);
            let written = written.chunks_exact_mut(LANES);
            for (i, to) in written.enumerate() {
                // SAFETY: the caller has the lanes' instruction set.
                unsafe {
                    values.load::<L>(lanes + i / n_vectors, i % n_vectors).store(to);
                }
            }
            rest[..(LANES - n_lanes) * n_vectors * LANES].fill(0.0);
            *block = last.as_ptr().cast();
        }
    }
    let column = (first - task.start) / 2;
    for d in (0..n_vectors).step_by(2) {
        // Next come the keys of the span that follows.
        for page in 0..SPAN / PAGE_TOKENS {
            let pos = task.start + SPAN + page * PAGE_TOKENS;
            let ahead = task.ahead(pos, |kv, page| kv.keys_at(page, task.kv_head, 0));
            if !ahead.is_null() {
                let n_lines = PAGE_TOKENS * kv.dim_k * size_of::<bf16>() / line;
                for i in n_lines * d / n_vectors..n_lines * (d + 2) / n_vectors {
                    // SAFETY: as above; any address may be fetched.
                    unsafe { L::prefetch_to_l2(ahead.wrapping_add(i * line)) };
                }
            }
        }
        let mut steps = [std::ptr::null(); SPAN / WIDTH];
        let steps = &mut steps[..blocks.len()];
        for (step, block) in steps.iter_mut().zip(&*blocks) {
            *step = block.wrapping_add(d * line);
        }
        let sums = partial.as_mut_ptr();
        // SAFETY: the caller's promise; there are as many weights and sums.
        unsafe {
            tiles.multiply(0..task.n_rows(), |row| Products {
                rows: weights[row * SPAN + column..].as_ptr(),
                row_stride: SPAN,
                steps,
                line_stride: n_vectors * line,
                other_columns: line,
                sums: sums.wrapping_add(row * row_len + d * LANES),
                sum_stride: row_len,
            });
        }
    }
}
