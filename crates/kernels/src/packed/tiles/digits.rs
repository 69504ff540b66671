//! Super-blocks of weights as two digits, for tiles.
//!
//! ```text
//! weight   quant × scale, an integer of up to 14 bits = 128 × high + low, -64 ≤ high < 64, 0 ≤ low < 128
//! digits   64 lines of high, 64 lines of low digits    a super-block of a panel
//! ```
//!
//! With the scale in the weight there is nothing to do between the groups of a super-block, and
//! `128 × high + low` of the sums is the integer that the other kernels arrive at.

use super::{Tiled, Tiles};
use crate::activations::SuperBlock;
use crate::arch::IntLanes;
use crate::memory::Line;
use crate::packed::super_blocks::{Factors, QUANT_LINES as DIGIT_LINES, SuperBlocks};
use std::mem::offset_of;

/// A super-block of a panel, unpacked.
#[repr(C)]
pub(crate) struct Unpacked {
    /// High digits, then low ones.
    digits: [Line; 2 * DIGIT_LINES],
    factors: Factors,
}

/// Its lines.
pub(super) const UNPACKED_LINES: usize = size_of::<Unpacked>() / size_of::<Line>();

/// Lines of a product.
const DEPTH_LINES: usize = 16;

impl<K: SuperBlocks> Tiled for K {
    const DEPTH: usize = 4 * DEPTH_LINES;
    const BLOCKS: usize = 1;
    const PARTS: usize = DIGIT_LINES / DEPTH_LINES;
    type Unpacked = Unpacked;

    #[inline(always)]
    unsafe fn unpack_block<L: IntLanes>(panel: &[Line], b: usize, to: &mut Unpacked) {
        let lines = K::HEADER + K::LINES;
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { unpack::<L, K>(&panel[b * lines..][..lines], to) }
    }

    #[inline(always)]
    unsafe fn add_part<M: Tiles>(tokens: &[SuperBlock], weights: &Unpacked, part: usize) {
        let (high, low) = weights.digits.split_at(DIGIT_LINES);
        let lines = DEPTH_LINES * part..DEPTH_LINES * (part + 1);
        // SAFETY: the caller has the tiles, configured for these values of as many tokens.
        unsafe {
            M::load_tokens(tokens, offset_of!(SuperBlock, qs) + Self::DEPTH * part);
            M::add_products::<0>(tokens.len(), &high[lines.clone()]);
            M::add_products::<1>(tokens.len(), &low[lines]);
        }
    }

    type Factors<L: IntLanes> = K::Held<L>;

    #[inline(always)]
    unsafe fn load_factors<L: IntLanes>(weights: &Unpacked) -> K::Held<L> {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { K::hold::<L>(&weights.factors) }
    }

    #[inline(always)]
    unsafe fn value<L: IntLanes>(
        factors: &K::Held<L>,
        _: usize,
        x: &SuperBlock,
        [high, low]: [&Line; 2],
    ) -> L::Floats {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { K::finish::<L>(factors, x, L::load(high).shl(7).add(L::load(low))) }
    }
}

/// Unpacks a super-block to digits.
#[inline(always)]
unsafe fn unpack<L: IntLanes, K: SuperBlocks>(block: &[Line], to: &mut Unpacked) {
    let (high_lines, low_lines) = to.digits.split_at_mut(DIGIT_LINES);
    let n_groups = DIGIT_LINES / K::GROUP_LINES;
    let mut room = [Line([0; 64]); DIGIT_LINES];
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let opened = K::open::<L>(block, &mut room);
        K::factors::<L>(block, &mut to.factors);
        // Two weights a lane, 16 bits each. With signs, 64 × 128 more than they are, so that none is
        // negative; 64 comes off the high digits at the end.
        let signed = K::OFFSET != 0;
        let (even, odd) = (L::splat(0x00ff_00ff), L::splat(0xff00_ff00_u32 as i32));
        let digit = L::splat(0x7f7f_7f7f);
        let (bias, excess) = (L::splat(0x2000_2000), L::splat(-0x3f3f_3f40));
        let offset = L::splat(-K::OFFSET & 0xffff).or(L::splat(-K::OFFSET << 16));
        for g in 0..n_groups {
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
