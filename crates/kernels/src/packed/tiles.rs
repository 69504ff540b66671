//! Products by matrix tiles (AMX): many tokens with unpacked weights, in the same bits.
//!
//! A tile instruction multiplies 16 tokens with 16 rows along 64 or 32 values of a signed byte each. The
//! operands nearly are what they have to be: the tokens' quants of a block lie a fixed distance
//! apart, and 16 or 8 unpacked lines in a row are as many values of 16 rows.
//!
//! ```text
//! step       what fills the 8 registers: 32 tokens, and of a panel a super-block, or two blocks of 32
//! registers  4 of sums, 2 of tokens, 2 of weights
//! sums       [first or second 16 tokens][first or second sums][16 tokens, 16 rows], exact in 32 bits
//! ```
//!
//! A [`SuperBlocks`](super::super_blocks::SuperBlocks) weight is two digits (`digits`), and has a sum for
//! either; each block of 32 (`bytes`) has a sum of its own. The sums are the integers that the other kernels
//! arrive at. What follows, in f32, is the same arithmetic in the same order. So tiles may serve any number of
//! tokens: the results don't change.
//!
//! Tiles are fast enough to wait for their operands, so what is at work stays near: 256 columns of some
//! panels are unpacked once for all the tokens, and 64 tokens' values of them stay in L1 while the panels pass
//! by; the results so far wait in L2. Between the products, vectors turn the sums of the step before into
//! results, since they would otherwise take as long again.

use super::{Kernel, Next, PANEL_ROWS, Rows, UNIT, hand_out};
use crate::arch::{IntLanes, Lanes};
use crate::memory::Line;
use std::ops::Range;

mod bytes;
mod digits;
#[cfg(test)]
pub(crate) mod emulator;
#[cfg(test)]
mod tests;

/// Tokens of a tile.
pub(crate) const TILE_TOKENS: usize = 16;
/// Tokens that are multiplied at a time.
pub(crate) const AT_ONCE: usize = 2 * TILE_TOKENS;

/// Sums of products of up to 32 tokens: `[first or second 16 tokens][first or second sums][token]`, a
/// dword a row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[[Line; TILE_TOKENS]; 2]; 2]);

/// Something that multiplies tiles.
///
/// # Safety
/// The methods may only be called where the instructions are present; all but `configure` between
/// `configure` and `release` on one thread, with the number of tokens, and along the values, that were
/// configured.
pub(crate) trait Tiles {
    /// Prepares this thread for `n_tokens` at a time, from 1 to 32, and products along `depth` values: a
    /// multiple of 4 up to 64.
    unsafe fn configure(n_tokens: usize, depth: usize);
    /// Ends what `configure` began.
    unsafe fn release();
    /// Begins with sums of zero.
    unsafe fn start(n_tokens: usize);
    /// Takes the values of each token that begin at byte `at` of it, and lie within it.
    unsafe fn load_tokens<A>(tokens: &[A], at: usize);
    /// Adds the products of those values with as many weights of 16 rows, 4 in a line, to the first (`S` = 0)
    /// or second sums (`S` = 1).
    unsafe fn add_products<const S: usize>(n_tokens: usize, weights: &[Line]);
    /// The sums: those of the tokens there are; the others keep what they held.
    unsafe fn finish(n_tokens: usize, sums: &mut Sums);
}

/// What tiles have to know of a type.
pub(crate) trait Tiled: Kernel {
    /// Values that a product runs along.
    const DEPTH: usize;
    /// Blocks of a step: 1 or 2.
    const BLOCKS: usize;
    /// Parts of a step, as many for each block.
    const PARTS: usize;
    /// The weights of a step, and what its sums are multiplied with.
    type Unpacked;

    /// Unpacks block `b` of a panel to its place in a step.
    unsafe fn unpack_block<L: IntLanes>(panel: &[Line], b: usize, to: &mut Self::Unpacked);

    /// Adds the products of part `part` to the sums; `tokens` are those of its block.
    unsafe fn add_part<M: Tiles>(
        tokens: &[Self::Activations],
        weights: &Self::Unpacked,
        part: usize,
    );

    /// What sums are multiplied with, in registers.
    type Factors<L: IntLanes>: Copy;
    unsafe fn load_factors<L: IntLanes>(weights: &Self::Unpacked) -> Self::Factors<L>;

    /// What block `i` of a step adds to the result of a token that is `x` there, given its first and second sums.
    unsafe fn value<L: IntLanes>(
        factors: &Self::Factors<L>,
        i: usize,
        x: &Self::Activations,
        sums: [&Line; 2],
    ) -> L::Floats;
}

/// Steps along the columns that are unpacked at a time.
const fn unit_steps<K: Tiled>() -> usize {
    UNIT / K::LEN / K::BLOCKS
}

/// Most lines of a panel's unit, unpacked.
const UNIT_LINES: usize = digits::UNPACKED_LINES;

/// A step whose sums have not become results yet.
struct Pending<K: Tiled> {
    weights: *const K::Unpacked,
    /// `[n_blocks, all tokens]`, of which there are `n_tokens` from here on.
    x: *const K::Activations,
    n_blocks: usize,
    n_tokens: usize,
    /// The results so far.
    results: *mut Line,
    /// Which of the two sums.
    sums: usize,
}

/// Adds the sums of part of the tokens, as many for each part of a step, to the results. A block's tokens lie
/// `stride` after those of the block before.
///
/// # Safety
/// The lanes' instruction set is present; the pointers lead to as many tokens.
#[inline(always)]
unsafe fn add_results<L: IntLanes, K: Tiled>(
    pending: &Pending<K>,
    stride: usize,
    sums: &[Sums; 2],
    part: usize,
) {
    let most = AT_ONCE / K::PARTS;
    let first = most * part;
    let n = most.min(pending.n_tokens.saturating_sub(first));
    if n == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        // Nearly always all of them, which makes a loop without questions.
        if n == most && pending.n_blocks == K::BLOCKS {
            add_tokens::<L, K>(pending, stride, sums, first, most, K::BLOCKS);
        } else {
            add_tokens::<L, K>(pending, stride, sums, first, n, pending.n_blocks);
        }
    }
}

/// [`add_results`] of `n` tokens, that lie within a tile, from `first` on.
#[inline(always)]
unsafe fn add_tokens<L: IntLanes, K: Tiled>(
    pending: &Pending<K>,
    stride: usize,
    sums: &[Sums; 2],
    first: usize,
    n: usize,
    n_blocks: usize,
) {
    let sums = &sums[pending.sums].0[first / TILE_TOKENS];
    let sums = [&sums[0][first % TILE_TOKENS..][..n], &sums[1][first % TILE_TOKENS..][..n]];
    // SAFETY: see `add_results`.
    unsafe {
        let factors = K::load_factors::<L>(&*pending.weights);
        let results = std::slice::from_raw_parts_mut(pending.results.add(first), n);
        let x = pending.x.add(first);
        for (i, to) in results.iter_mut().enumerate() {
            let mut result = L::Floats::load(to.floats());
            for b in 0..K::BLOCKS {
                if b < n_blocks {
                    let x = &*x.add(b * stride + i);
                    let sums = [&sums[0][i], &sums[1][i]];
                    result = result.add(K::value::<L>(&factors, b, x, sums));
                }
            }
            result.store(to.floats_mut());
        }
    }
}

/// The products of panels that lie one after the other with tokens `tokens` of `x` (`[n_blocks, n_tokens]`):
/// `out(panel, first token, rows of each)`. `buffer` is of [`buffer_lines`].
///
/// # Safety
/// The instruction sets of the lanes and of the tiles are present.
#[inline(always)]
pub(crate) unsafe fn multiply<L: IntLanes, K: Tiled, M: Tiles>(
    panels: &[Line],
    n_panels: usize,
    x: &[K::Activations],
    n_tokens: usize,
    tokens: Range<usize>,
    buffer: &mut [Line],
    out: &mut dyn FnMut(usize, usize, &[Rows]),
) {
    /// Tokens whose values of a unit stay in L1.
    const NEAR: usize = 2 * AT_ONCE;
    const {
        assert!(unit_steps::<K>() * size_of::<K::Unpacked>() <= UNIT_LINES * size_of::<Line>());
        assert!(align_of::<K::Unpacked>() <= align_of::<Line>());
        assert!(TILE_TOKENS.is_multiple_of(AT_ONCE / K::PARTS));
    }
    let (panel_lines, n_blocks) = (panels.len() / n_panels, x.len() / n_tokens);
    let n = tokens.len();
    let (unpacked, results) = buffer.split_at_mut(n_panels * UNIT_LINES);
    assert_eq!(unpacked.len(), n_panels * UNIT_LINES, "buffer of the weights");
    // `[n_panels, steps]`
    let unpacked = unpacked.as_mut_ptr().cast::<K::Unpacked>();
    let results = &mut results[..n_panels * n];
    results.fill(Line([0; 64]));
    let results = results.as_mut_ptr();
    let mut sums = [Sums([[[Line([0; 64]); TILE_TOKENS]; 2]; 2]); 2];
    let mut pending: Option<Pending<K>> = None;
    let (whole, rest) = (n - n % AT_ONCE, n % AT_ONCE);
    let mut configured = 0;
    // SAFETY: the caller has the lanes' instruction set, and that of the tiles; they are configured
    // for as many tokens as meet them. The buffer has room for the panels, and their results.
    unsafe {
        for first in (0..n_blocks).step_by(UNIT / K::LEN) {
            let blocks = first..n_blocks.min(first + UNIT / K::LEN);
            for (p, panel) in panels.chunks_exact(panel_lines).enumerate() {
                for b in blocks.clone() {
                    let step = p * unit_steps::<K>() + (b - first) / K::BLOCKS;
                    K::unpack_block::<L>(panel, b, &mut *unpacked.add(step));
                }
            }
            let near = (0..whole).step_by(NEAR).map(|t| t..whole.min(t + NEAR));
            for near in near.chain(std::iter::once(whole..n)).filter(|near| !near.is_empty()) {
                let at_once = if near.start == whole { rest } else { AT_ONCE };
                if configured != at_once {
                    M::configure(at_once, K::DEPTH);
                    configured = at_once;
                }
                for p in 0..n_panels {
                    let next = Next::behind::<K>(panels, n_panels, p, blocks.end, n_blocks);
                    for t in near.clone().step_by(AT_ONCE) {
                        next.fetch::<L>(t..t + at_once, n);
                        for (step, b) in blocks.clone().step_by(K::BLOCKS).enumerate() {
                            let weights = unpacked.add(p * unit_steps::<K>() + step);
                            let first_token = tokens.start + t;
                            let which = pending.as_ref().map_or(0, |pending| 1 - pending.sums);
                            M::start(at_once);
                            for part in 0..K::PARTS {
                                let b = b + part * K::BLOCKS / K::PARTS;
                                if b < blocks.end {
                                    let x = &x[b * n_tokens + first_token..][..at_once];
                                    K::add_part::<M>(x, &*weights, part);
                                }
                                if let Some(pending) = &pending {
                                    add_results::<L, K>(pending, n_tokens, &sums, part);
                                }
                            }
                            M::finish(at_once, &mut sums[which]);
                            pending = Some(Pending {
                                weights,
                                x: x.as_ptr().add(b * n_tokens + first_token),
                                n_blocks: K::BLOCKS.min(blocks.end - b),
                                n_tokens: at_once,
                                results: results.add(p * n + t),
                                sums: which,
                            });
                        }
                    }
                }
            }
            // What comes next is unpacked in the same place.
            if let Some(pending) = pending.take() {
                for part in 0..K::PARTS {
                    add_results::<L, K>(&pending, n_tokens, &sums, part);
                }
            }
        }
        if configured > 0 {
            M::release();
        }
        let results = std::slice::from_raw_parts(results, n_panels * n);
        hand_out(results, n, n_panels, tokens.start, out);
    }
}

/// Lines of the buffer that [`multiply`] needs.
pub(crate) const fn buffer_lines(n_panels: usize, n_tokens: usize) -> usize {
    n_panels * (UNIT_LINES + n_tokens)
}

const _: () = assert!(PANEL_ROWS == 16, "a line of weights is a row of a tile");
