//! Blocks of 32 weights as signed bytes, for tiles: two blocks of a panel are a step, and each has sums of its own.
//!
//! From counts of instructions, not measured, for 256 columns of a panel:
//!
//! ```text
//! unpacking    50 to 80 instructions a block                                      100 to 160 cycles
//! tiles        16 cycles for 16 tokens and a block, as if it had 64 values          8 cycles a token
//! their sums   4 instructions of f32 a block, 6 with minima, two at a time    16 or 24 cycles a token
//! vectors      14 to 19 instructions a block, two at a time                   55 to 75 cycles a token
//! ```
//!
//! Tiles run beside what makes f32 of their sums, so that is what they take, and it is less than vectors take well below
//! the 12 tokens from which super-blocks gain. Results are loaded and stored once for both blocks of a step; the blocks
//! of two panels would share the loads of tokens, but store results twice as often.

use super::{Tiled, Tiles};
use crate::activations::Block;
use crate::arch::{IntLanes, Lanes};
use crate::memory::Line;
use crate::packed::Kernel;
use crate::packed::blocks::{Blocks, QUANT_LINES, Type, UNPACKED};
use std::mem::offset_of;

impl<W: Type> Tiled for Blocks<W> {
    const DEPTH: usize = Self::LEN;
    const BLOCKS: usize = 2;
    const PARTS: usize = 2;
    type Unpacked = [[Line; UNPACKED]; 2];

    #[inline(always)]
    unsafe fn unpack_block<L: IntLanes>(panel: &[Line], b: usize, to: &mut Self::Unpacked) {
        let lines = &panel[b / Self::SHARE * (Self::HEADER + Self::SHARE * Self::LINES)..];
        let (slot, to) = (b % Self::SHARE, &mut to[b % 2]);
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            Self::unpack::<L>(lines, slot, to);
            if let Some(offset) = W::OFFSET {
                let less = L::splat(i32::from_le_bytes([(-offset) as u8; 4]));
                for line in &mut to[..QUANT_LINES] {
                    L::load(line).add_bytes(less).store(line);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add_part<M: Tiles>(tokens: &[Block], weights: &Self::Unpacked, part: usize) {
        let lines = &weights[part][..QUANT_LINES];
        // SAFETY: the caller has the tiles, configured for these values of as many tokens.
        unsafe {
            M::load_tokens(tokens, offset_of!(Block, qs));
            match part {
                0 => M::add_products::<0>(tokens.len(), lines),
                _ => M::add_products::<1>(tokens.len(), lines),
            }
        }
    }

    /// Scales and minima of both blocks.
    type Factors<L: IntLanes> = [[L::Floats; 2]; 2];

    #[inline(always)]
    unsafe fn load_factors<L: IntLanes>(weights: &Self::Unpacked) -> Self::Factors<L> {
        let [first, second] = weights;
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            [
                [
                    L::Floats::load(first[QUANT_LINES].floats()),
                    L::Floats::load(first[QUANT_LINES + 1].floats()),
                ],
                [
                    L::Floats::load(second[QUANT_LINES].floats()),
                    L::Floats::load(second[QUANT_LINES + 1].floats()),
                ],
            ]
        }
    }

    #[inline(always)]
    unsafe fn value<L: IntLanes>(
        factors: &Self::Factors<L>,
        i: usize,
        x: &Block,
        sums: [&Line; 2],
    ) -> L::Floats {
        let [d, minima] = factors[i];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { W::value::<L>(d, minima, x, L::load(sums[i])) }
    }
}
