//! Products by matrix tiles (AMX): many tokens with super-blocks of weights, in the same bits.
//!
//! A tile instruction multiplies 16 tokens with 16 rows along 64 values of a signed byte each. The
//! operands nearly are what they have to be: the tokens' quants of a block lie a fixed distance
//! apart, and 16 unpacked lines in a row are 64 values of 16 rows.
//!
//! ```text
//! weight   quant × scale, an integer of up to 14 bits = 128 × high + low, -32 ≤ high ≤ 32, 0 ≤ low < 128
//! digits   64 lines of high, 64 lines of low digits    a super-block of a panel
//! sums     [16 tokens, 16 rows] for either digit       a super-block, exact in 32 bits
//! ```
//!
//! With the scale in the weight there is nothing to do between the groups of a super-block, and
//! `128 × high + low` of the sums is the integer that the other kernels arrive at. What follows, in
//! f32, is the same arithmetic in the same order. So tiles may serve any number of tokens: the
//! results don't change.
//!
//! Unpacking costs as much as some tokens, so it is done once for a panel and all the tokens that
//! it meets in the cache. 32 tokens at a time fill the 8 tile registers: 2 of tokens, 2 of weights,
//! 4 of sums, and 4 loads serve 4 products.

use super::{Kernel, PANEL_ROWS, TILE_LINES};
use crate::activations::SuperBlock;
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;
use std::ops::Range;

#[cfg(test)]
mod emulator;
#[cfg(test)]
mod tests;

/// Tokens of a tile.
pub(crate) const TILE_TOKENS: usize = 16;
/// Lines of one digit of a super-block.
pub(crate) const DIGIT_LINES: usize = 64;
/// High digits, then low ones.
pub(crate) type Digits = [Line; 2 * DIGIT_LINES];

/// Sums of products of up to 32 tokens: `[first or second 16 tokens][high or low digit][token]`, a
/// dword a row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[[Line; TILE_TOKENS]; 2]; 2]);

/// Something that multiplies tiles.
///
/// # Safety
/// The methods may only be called where the instructions are present, and `multiply` between
/// `configure` and `release` on one thread, with the number of tokens that was configured.
pub(crate) trait Tiles {
    /// Prepares this thread for `n_tokens` at a time, from 1 to 32.
    unsafe fn configure(n_tokens: usize);
    /// Ends what `configure` began.
    unsafe fn release();
    /// The sums of a super-block: those of the tokens there are; the others keep what they held.
    unsafe fn multiply(tokens: &[SuperBlock], digits: &Digits, sums: &mut Sums);
}

/// Weight types in super-blocks, for tiles.
pub(crate) trait SuperBlocks: Kernel<Activations = SuperBlock> {
    /// How much higher than their values the quants are stored.
    const OFFSET: i32;

    /// Line `i < 64` of a super-block: 4 stored quants of each row, a byte each, and the scale that
    /// they have in common.
    unsafe fn line<L: IntLanes>(block: &[Line], i: usize) -> (L, L);

    /// What a super-block adds to the result of a token, given the sum of quants times scales times
    /// activations.
    unsafe fn finish<L: IntLanes>(block: &[Line], x: &SuperBlock, products: L) -> L::Floats;
}

/// Byte `i` of each lane, with its sign, as an integer.
#[inline(always)]
pub(super) unsafe fn signed_byte<L: IntLanes>(bytes: L, i: usize) -> L {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe { bytes.shl(24 - 8 * i as u32).sar(24) }
}

/// Unpacks a super-block to digits.
#[inline(always)]
unsafe fn unpack<L: IntLanes, K: SuperBlocks>(block: &[Line], digits: &mut Digits) {
    let (high_lines, low_lines) = digits.split_at_mut(DIGIT_LINES);
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let even = L::splat(0x00ff_00ff);
        let digit = L::splat(0x007f_007f);
        // Two weights a lane, 16 bits each. 64 × 128 more than they are, none is negative, and none
        // carries into the other; 64 comes off the high digits at the end.
        let bias = L::splat(0x2000_2000);
        let (top, excess) = (L::splat(0x8080_8080_u32 as i32), L::splat(-0x4040_4040));
        for i in 0..DIGIT_LINES {
            let (quants, scale) = K::line::<L>(block, i);
            let start = bias.add(scale.mul(L::splat(-K::OFFSET * 0x0001_0001)));
            let a = quants.and(even).mul(scale).add(start);
            let b = quants.shr(8).and(even).mul(scale).add(start);
            let low = a.and(digit).or(b.and(digit).shl(8));
            let high = a.shr(7).and(even).or(b.shr(7).and(even).shl(8));
            // Less 64 in each byte; the highest bit is there so that none borrows from the next.
            high.or(top).add(excess).xor(top).store(&mut high_lines[i]);
            low.store(&mut low_lines[i]);
        }
    }
}

/// The products of a panel with tokens `tokens` of `x` (`[n_blocks, n_tokens]`): `out(token, rows)`.
/// `digits` has room for a [`Digits`] a block.
///
/// # Safety
/// The instruction sets of the lanes and of the tiles are present.
#[inline(always)]
pub(crate) unsafe fn multiply<L: IntLanes, K: SuperBlocks, M: Tiles>(
    panel: &[Line],
    x: &[SuperBlock],
    n_tokens: usize,
    tokens: Range<usize>,
    digits: &mut [Line],
    out: &mut dyn FnMut(usize, &[f32; LANES]),
) {
    const AT_ONCE: usize = 2 * TILE_TOKENS;
    let block_lines = K::HEADER + K::LINES;
    let digits = digits.as_chunks_mut::<{ 2 * DIGIT_LINES }>().0;
    let mut sums = Sums([[[Line([0; 64]); TILE_TOKENS]; 2]; 2]);
    // SAFETY: the caller has the lanes' instruction set, and that of the tiles; they are configured
    // for as many tokens as meet them.
    unsafe {
        for (block, digits) in panel.chunks_exact(block_lines).zip(&mut *digits) {
            unpack::<L, K>(block, digits);
        }
        let mut configured = 0;
        let mut t = tokens.start;
        while t < tokens.end {
            let n = AT_ONCE.min(tokens.end - t);
            if n != configured {
                M::configure(n);
                configured = n;
            }
            let mut results = [L::Floats::splat(0.0); AT_ONCE];
            for (b, block) in panel.chunks_exact(block_lines).enumerate() {
                if t == tokens.start {
                    // The panel that comes next arrives while this one is at work.
                    for line in block {
                        L::Floats::prefetch(
                            std::ptr::from_ref(line).wrapping_add(panel.len()).cast(),
                        );
                    }
                }
                let x = &x[b * n_tokens..][t..t + n];
                M::multiply(x, &digits[b], &mut sums);
                for (i, (x, result)) in x.iter().zip(&mut results).enumerate() {
                    let [high, low] = &sums.0[i / TILE_TOKENS];
                    let i = i % TILE_TOKENS;
                    let products = L::load(&high[i]).shl(7).add(L::load(&low[i]));
                    *result = result.add(K::finish::<L>(block, x, products));
                }
            }
            for (i, result) in results[..n].iter().enumerate() {
                out(t + i, &result.to_array());
            }
            t += n;
        }
        if configured > 0 {
            M::release();
        }
    }
}

const _: () = assert!(TILE_LINES == 2 * DIGIT_LINES);
const _: () = assert!(PANEL_ROWS == 16, "a line of digits is a row of a tile");
const _: () = assert!(std::mem::offset_of!(SuperBlock, qs) == 0, "tiles begin with the quants");
