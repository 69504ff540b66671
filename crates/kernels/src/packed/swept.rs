//! Products with many tokens: weights are unpacked once, to bytes in L1, and all the tokens pass by.
//!
//! One token after another meets the weights of a panel as they come from memory, and a few tokens share
//! what is unpacked on the way. With many tokens the unpacking, the scales and the loads of the same weights
//! would cost as much as the products, so some blocks of some panels are unpacked for all of them.
//!
//! ```text
//! panels   a few, whose results so far wait in L2: 16 f32 for each panel and token
//! unit     256 columns: a super-block, or 8 blocks of 32
//! ```
//!
//! The arithmetic is that of [`Kernel::tile`]: exact integers within a block, blocks added up in ascending
//! order. So the bits are the same.

use super::{Kernel, Next, Tile, UNIT};
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;
use std::ops::Range;

/// Lines of a panel's unit, unpacked.
const fn unit_lines<K: Kernel>() -> usize {
    UNIT / K::LEN * K::UNPACKED
}

/// Lines of the buffer that [`sweep`] needs.
pub(crate) const fn buffer_lines<K: Kernel>(n_panels: usize, n_tokens: usize) -> usize {
    n_panels * (unit_lines::<K>() + n_tokens)
}

/// The products of panels that lie one after the other with tokens `tokens` of `x` (`[n_blocks, n_tokens]`):
/// `out(panel, token, rows)`. `buffer` is of [`buffer_lines`].
///
/// # Safety
/// The lanes' instruction set is present.
#[inline(always)]
pub(crate) unsafe fn sweep<L: IntLanes, K: Kernel>(
    panels: &[Line],
    n_panels: usize,
    x: &[K::Activations],
    n_tokens: usize,
    tokens: Range<usize>,
    buffer: &mut [Line],
    out: &mut dyn FnMut(usize, usize, &[f32; LANES]),
) {
    let (panel_lines, n_blocks) = (panels.len() / n_panels, x.len() / n_tokens);
    let n = tokens.len();
    let (unpacked, results) = buffer.split_at_mut(n_panels * unit_lines::<K>());
    let results = &mut results[..n_panels * n];
    results.fill(Line([0; 64]));
    for first in (0..n_blocks).step_by(UNIT / K::LEN) {
        let blocks = first..n_blocks.min(first + UNIT / K::LEN);
        for (panel, to) in
            panels.chunks_exact(panel_lines).zip(unpacked.chunks_exact_mut(unit_lines::<K>()))
        {
            for (b, to) in blocks.clone().zip(to.chunks_exact_mut(K::UNPACKED)) {
                let lines = &panel[b / K::SHARE * (K::HEADER + K::SHARE * K::LINES)..];
                // SAFETY: the caller has the lanes' instruction set.
                unsafe { K::unpack::<L>(lines, b % K::SHARE, to) };
            }
        }
        for (p, (unit, results)) in
            unpacked.chunks_exact(unit_lines::<K>()).zip(results.chunks_exact_mut(n)).enumerate()
        {
            let next = Next::behind::<K>(panels, n_panels, p, blocks.end, n_blocks);
            let mut t = 0;
            macro_rules! step {
                ($tokens:literal) => {{
                    let x = Tile { blocks: x, n_tokens, first: tokens.start + t };
                    let results = results[t..].first_chunk_mut().expect("within the tokens");
                    // SAFETY: the caller has the lanes' instruction set.
                    unsafe {
                        next.fetch::<L>(t..t + $tokens, n);
                        add_unit::<L, K, $tokens>(unit, x, blocks.clone(), results);
                    }
                    t += $tokens;
                }};
            }
            while t < n {
                match L::TILE_TOKENS.min(n - t) {
                    8.. => step!(8),
                    4.. => step!(4),
                    _ => step!(1),
                }
            }
        }
    }
    for t in 0..n {
        for (p, results) in results.chunks_exact(n).enumerate() {
            out(p, tokens.start + t, results[t].floats());
        }
    }
}

/// Adds the products of `T` tokens along some blocks to their results.
#[inline(always)]
unsafe fn add_unit<L: IntLanes, K: Kernel, const T: usize>(
    unit: &[Line],
    x: Tile<'_, K::Activations, T>,
    blocks: Range<usize>,
    results: &mut [Line; T],
) {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut sums = [L::Floats::splat(0.0); T];
        for (sums, results) in sums.iter_mut().zip(&*results) {
            *sums = L::Floats::load(results.floats());
        }
        for (b, unpacked) in blocks.zip(unit.chunks_exact(K::UNPACKED)) {
            K::add_products::<L, T>(unpacked, x.block(b), &mut sums);
        }
        for (sums, results) in sums.into_iter().zip(results) {
            sums.store(results.floats_mut());
        }
    }
}
