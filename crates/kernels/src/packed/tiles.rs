//! Products by matrix tiles (AMX): many tokens with super-blocks of weights, in the same bits.
//!
//! A tile instruction multiplies 16 tokens with 16 rows along 64 values of a signed byte each. The
//! operands nearly are what they have to be: the tokens' quants of a block lie a fixed distance
//! apart, and 16 unpacked lines in a row are 64 values of 16 rows.
//!
//! ```text
//! weight   quant × scale, an integer of up to 14 bits = 128 × high + low, -64 ≤ high < 64, 0 ≤ low < 128
//! digits   64 lines of high, 64 lines of low digits    a super-block of a panel
//! sums     [16 tokens, 16 rows] for either digit       a super-block, exact in 32 bits
//! ```
//!
//! With the scale in the weight there is nothing to do between the groups of a super-block, and
//! `128 × high + low` of the sums is the integer that the other kernels arrive at. What follows, in
//! f32, is the same arithmetic in the same order. So tiles may serve any number of tokens: the
//! results don't change.
//!
//! Tiles are fast enough to wait for their operands, so what is at work stays near: a super-block of some
//! panels is unpacked once for all the tokens, and 64 tokens' values of it stay in L1 while the panels pass
//! by; the results so far wait in L2. 32 tokens at a time fill the 8 tile registers: 2 of tokens, 2 of
//! weights, 4 of sums, and 4 loads serve 4 products. Between the products, vectors turn the sums of the
//! 32 tokens before into results, since they would otherwise take as long again.

use super::PANEL_ROWS;
use super::super_blocks::{Factors, QUANT_LINES as DIGIT_LINES, SuperBlocks};
use crate::activations::SuperBlock;
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;
use std::ops::Range;

#[cfg(test)]
pub(crate) mod emulator;
#[cfg(test)]
mod tests;

/// Tokens of a tile.
pub(crate) const TILE_TOKENS: usize = 16;
/// Tokens that are multiplied at a time.
pub(crate) const AT_ONCE: usize = 2 * TILE_TOKENS;
/// High digits, then low ones.
pub(crate) type Digits = [Line; 2 * DIGIT_LINES];

/// A super-block of a panel, unpacked.
#[repr(C)]
struct Unpacked {
    digits: Digits,
    factors: Factors,
}

/// Its lines.
const UNPACKED_LINES: usize = size_of::<Unpacked>() / size_of::<Line>();

/// Sums of products of up to 32 tokens: `[first or second 16 tokens][high or low digit][token]`, a
/// dword a row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[[Line; TILE_TOKENS]; 2]; 2]);

/// Something that multiplies tiles.
///
/// # Safety
/// The methods may only be called where the instructions are present; all but `configure` between
/// `configure` and `release` on one thread, with the number of tokens that was configured.
pub(crate) trait Tiles {
    /// Prepares this thread for `n_tokens` at a time, from 1 to 32.
    unsafe fn configure(n_tokens: usize);
    /// Ends what `configure` began.
    unsafe fn release();
    /// Begins with sums of zero.
    unsafe fn start(n_tokens: usize);
    /// Adds the products along values `64 k` to `64 k + 63` of a super-block.
    unsafe fn add_quarter(tokens: &[SuperBlock], digits: &Digits, k: usize);
    /// The sums: those of the tokens there are; the others keep what they held.
    unsafe fn finish(n_tokens: usize, sums: &mut Sums);
}

/// Unpacks a super-block to digits, and fetches the one after the next of the panel.
#[inline(always)]
unsafe fn unpack<L: IntLanes, K: SuperBlocks>(block: &[Line], to: &mut Unpacked) {
    let (high_lines, low_lines) = to.digits.split_at_mut(DIGIT_LINES);
    let n_groups = DIGIT_LINES / K::GROUP_LINES;
    let ahead = block.as_ptr().wrapping_add(2 * block.len());
    let mut room = [Line([0; 64]); DIGIT_LINES];
    let opened = K::open(block, &mut room);
    // SAFETY: the caller has the lanes' instruction set; any address may be fetched.
    unsafe {
        K::factors::<L>(block, &mut to.factors);
        // Two weights a lane, 16 bits each. With signs, 64 × 128 more than they are, so that none is
        // negative; 64 comes off the high digits at the end.
        let signed = K::OFFSET != 0;
        let (even, odd) = (L::splat(0x00ff_00ff), L::splat(0xff00_ff00_u32 as i32));
        let digit = L::splat(0x7f7f_7f7f);
        let (bias, excess) = (L::splat(0x2000_2000), L::splat(-0x3f3f_3f40));
        let offset = L::splat(-K::OFFSET & 0xffff).or(L::splat(-K::OFFSET << 16));
        for g in 0..n_groups {
            for i in block.len() * g / n_groups..block.len() * (g + 1) / n_groups {
                L::Floats::prefetch(ahead.wrapping_add(i).cast());
            }
            let scale = K::scales::<L>(block, g / 4).scale_halves(g % 4);
            let start = bias.add_halves(scale.mul_halves(offset));
            for i in K::GROUP_LINES * g..K::GROUP_LINES * (g + 1) {
                let quants = K::quants::<L>(opened, i);
                let mut a = quants.and(even).mul_halves(scale);
                let mut b = quants.shr_halves(8).mul_halves(scale);
                if signed {
                    (a, b) = (a.add_halves(start), b.add_halves(start));
                }
                let low = a.and(even).or(b.shl_halves(8).and(odd)).and(digit);
                let high = a.shr_halves(7).or(b.shl_halves(1).and(odd));
                let high = if signed { high.add_bytes(excess) } else { high };
                high.store(&mut high_lines[i]);
                low.store(&mut low_lines[i]);
            }
        }
    }
}

/// Sums that have not become results yet.
struct Pending {
    unpacked: *const Unpacked,
    tokens: *const SuperBlock,
    n_tokens: usize,
    /// The results so far.
    results: *mut Line,
    /// Which of the two sums.
    sums: usize,
}

/// Adds tokens `tokens` of the sums to the results.
///
/// # Safety
/// The lanes' instruction set is present; the pointers lead to as many tokens.
#[inline(always)]
unsafe fn add_results<L: IntLanes, K: SuperBlocks>(
    pending: &Pending,
    sums: &[Sums; 2],
    tokens: Range<usize>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let factors = K::hold::<L>(&(*pending.unpacked).factors);
        for i in tokens.start..tokens.end.min(pending.n_tokens) {
            let [high, low] = &sums[pending.sums].0[i / TILE_TOKENS];
            let (x, result) = (&*pending.tokens.add(i), &mut *pending.results.add(i));
            let at = i % TILE_TOKENS;
            let products = L::load(&high[at]).shl(7).add(L::load(&low[at]));
            let value = K::finish::<L>(&factors, x, products);
            L::Floats::load(result.floats()).add(value).store(result.floats_mut());
        }
    }
}

/// The products of panels that lie one after the other with tokens `tokens` of `x` (`[n_blocks, n_tokens]`):
/// `out(panel, token, rows)`. `buffer` is of [`buffer_lines`].
///
/// # Safety
/// The instruction sets of the lanes and of the tiles are present.
#[inline(always)]
pub(crate) unsafe fn multiply<L: IntLanes, K: SuperBlocks, M: Tiles>(
    panels: &[Line],
    n_panels: usize,
    x: &[SuperBlock],
    n_tokens: usize,
    tokens: Range<usize>,
    buffer: &mut [Line],
    out: &mut dyn FnMut(usize, usize, &[f32; LANES]),
) {
    /// Tokens whose values of a super-block stay in L1.
    const NEAR: usize = 2 * AT_ONCE;
    let block_lines = K::HEADER + K::LINES;
    let panel_lines = panels.len() / n_panels;
    let n = tokens.len();
    let (unpacked, rest) = buffer.split_at_mut(n_panels * UNPACKED_LINES);
    assert_eq!(unpacked.len(), n_panels * UNPACKED_LINES, "buffer of the weights");
    let unpacked = unpacked.as_mut_ptr().cast::<Unpacked>();
    let results = &mut rest[..n_panels * n];
    results.fill(Line([0; 64]));
    let results = results.as_mut_ptr();
    let mut sums = [Sums([[[Line([0; 64]); TILE_TOKENS]; 2]; 2]); 2];
    let mut pending: Option<Pending> = None;
    let (whole, rest) = (n - n % AT_ONCE, n % AT_ONCE);
    let mut configured = 0;
    // SAFETY: the caller has the lanes' instruction set, and that of the tiles; they are configured
    // for as many tokens as meet them. The buffer has room for the panels, and their results.
    unsafe {
        for b in 0..panel_lines / block_lines {
            for p in 0..n_panels {
                let block = &panels[p * panel_lines + b * block_lines..][..block_lines];
                unpack::<L, K>(block, &mut *unpacked.add(p));
            }
            let x = &x[b * n_tokens + tokens.start..][..n];
            let near = (0..whole).step_by(NEAR).map(|t| t..whole.min(t + NEAR));
            for near in near.chain(std::iter::once(whole..n)).filter(|near| !near.is_empty()) {
                let at_once = if near.start == whole { rest } else { AT_ONCE };
                if configured != at_once {
                    M::configure(at_once);
                    configured = at_once;
                }
                for p in 0..n_panels {
                    for t in near.clone().step_by(AT_ONCE) {
                        let x = &x[t..t + at_once];
                        let unpacked = unpacked.add(p);
                        let which = pending.as_ref().map_or(0, |pending| 1 - pending.sums);
                        M::start(at_once);
                        for k in 0..4 {
                            M::add_quarter(x, &(*unpacked).digits, k);
                            if let Some(pending) = &pending {
                                add_results::<L, K>(
                                    pending,
                                    &sums,
                                    AT_ONCE / 4 * k..AT_ONCE / 4 * (k + 1),
                                );
                            }
                        }
                        M::finish(at_once, &mut sums[which]);
                        pending = Some(Pending {
                            unpacked,
                            tokens: x.as_ptr(),
                            n_tokens: at_once,
                            results: results.add(p * n + t),
                            sums: which,
                        });
                    }
                }
            }
            // What comes next is unpacked in the same place.
            if let Some(pending) = &pending {
                add_results::<L, K>(pending, &sums, 0..AT_ONCE);
            }
            pending = None;
        }
        if configured > 0 {
            M::release();
        }
        for t in 0..n {
            for p in 0..n_panels {
                out(p, tokens.start + t, (*results.add(p * n + t)).floats());
            }
        }
    }
}

/// Lines of the buffer that [`multiply`] needs.
pub(crate) const fn buffer_lines(n_panels: usize, n_tokens: usize) -> usize {
    n_panels * (UNPACKED_LINES + n_tokens)
}

const _: () = assert!(PANEL_ROWS == 16, "a line of digits is a row of a tile");
const _: () = assert!(std::mem::offset_of!(SuperBlock, qs) == 0, "tiles begin with the quants");
