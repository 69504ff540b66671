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

use super::{Kernel, Next, Rows, Tile, UNIT, hand_out};
use crate::arch::{IntLanes, Lanes};
use crate::memory::Line;
use std::ops::Range;

/// Lines of a panel's unit, unpacked.
const fn unit_lines<K: Kernel>() -> usize {
    UNIT / K::LEN * K::UNPACKED
}

/// Lines of the buffer that [`sweep`] needs. A panel without a partner has room for one.
pub(crate) const fn buffer_lines<K: Kernel>(n_panels: usize, n_tokens: usize) -> usize {
    n_panels * unit_lines::<K>() + n_panels.next_multiple_of(2) * n_tokens
}

/// The products of panels that lie one after the other with tokens `tokens` of `x` (`[n_blocks, n_tokens]`):
/// `out(panel, first token, rows of each)`. `buffer` is of [`buffer_lines`].
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
    out: &mut dyn FnMut(usize, usize, &[Rows]),
) {
    let (panel_lines, n_blocks) = (panels.len() / n_panels, x.len() / n_tokens);
    let n = tokens.len();
    let (unpacked, results) = buffer.split_at_mut(n_panels * unit_lines::<K>());
    let results = &mut results[..n_panels.next_multiple_of(L::TILE_PANELS) * n];
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
        for p in (0..n_panels).step_by(L::TILE_PANELS) {
            let next = |p| Next::behind::<K>(panels, n_panels, p, blocks.end, n_blocks);
            // A panel without a partner meets the tokens twice.
            let last = n_panels.min(p + L::TILE_PANELS) - 1;
            let units = [p, last].map(|p| &unpacked[p * unit_lines::<K>()..][..unit_lines::<K>()]);
            let nexts = [next(p), next(last)];
            let results = &mut results[p * n..][..L::TILE_PANELS * n];
            let mut t = 0;
            macro_rules! step {
                ($panels:literal, $tokens:literal) => {{
                    let x = Tile { blocks: x, n_tokens, first: tokens.start + t };
                    let units = units.first_chunk::<$panels>().expect("one or both");
                    // SAFETY: the caller has the lanes' instruction set.
                    unsafe {
                        for next in &nexts[..$panels] {
                            next.fetch::<L>(t..t + $tokens, n);
                        }
                        add_unit::<L, K, $panels, $tokens>(*units, x, blocks.clone(), results, t);
                    }
                    t += $tokens;
                }};
            }
            while t < n {
                // From 12 on, all numbers are made of fours and fives.
                if L::TILE_PANELS == 2 {
                    match n - t {
                        rest if rest.is_multiple_of(5) => step!(2, 5),
                        4.. => step!(2, 4),
                        _ => step!(2, 1),
                    }
                } else {
                    match L::TILE_TOKENS.min(n - t) {
                        4.. => step!(1, 4),
                        _ => step!(1, 1),
                    }
                }
            }
        }
    }
    hand_out(results, n, n_panels, tokens.start, out);
}

/// Adds the products of `P` panels with `T` tokens along some blocks to their results, which begin at token `first`
/// of each panel's.
#[inline(always)]
unsafe fn add_unit<L: IntLanes, K: Kernel, const P: usize, const T: usize>(
    units: [&[Line]; P],
    x: Tile<'_, K::Activations, T>,
    blocks: Range<usize>,
    results: &mut [Line],
    first: usize,
) {
    let n = results.len() / P;
    let at = |p: usize, t: usize| p * n + first + t;
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        if K::LEN == UNIT {
            // Loaded at the end: the products take all the registers.
            let products = K::products::<L, P, T>(units, x.block(blocks.start));
            for p in 0..P {
                for t in 0..T {
                    let line = &mut results[at(p, t)];
                    let sum = L::Floats::load(line.floats()).add(products[p][t]);
                    sum.store(line.floats_mut());
                }
            }
            return;
        }
        let mut sums = [[L::Floats::splat(0.0); T]; P];
        for p in 0..P {
            for t in 0..T {
                sums[p][t] = L::Floats::load(results[at(p, t)].floats());
            }
        }
        for (i, b) in blocks.enumerate() {
            let units = units.map(|unit| &unit[i * K::UNPACKED..][..K::UNPACKED]);
            let products = K::products::<L, P, T>(units, x.block(b));
            for p in 0..P {
                for t in 0..T {
                    sums[p][t] = sums[p][t].add(products[p][t]);
                }
            }
        }
        for p in 0..P {
            for t in 0..T {
                sums[p][t].store(results[at(p, t)].floats_mut());
            }
        }
    }
}
