//! Q6_K: super-blocks of 16 groups of 16 values with a scale.
//!
//! ```text
//! line 0       d, 16 × f32
//! 4 lines      scales, a signed byte a group, 4 groups a line
//! 32 lines     lower 4 bits: 16 lines for each 128 values, 64 in the low and 64 in the high halves
//! 16 lines     upper 2 bits: 8 lines for each 128 values, 32 in each pair of bits
//! ```
//! The quants are the file's bytes, a dword at a time. They are stored 32 higher than they are;
//! each group's sum starts with what that makes too much.

use super::{Kernel, Tile, prefetch, set_dword, unroll8};
use crate::activations::{Form, QuantizedActivations, SuperBlock};
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;

const HEADER: usize = 5;

pub(crate) struct Q6K;

impl Kernel for Q6K {
    type Weights = hurtle_quant::Q6K<'static>;
    type Activations = SuperBlock;
    const FORM: Form = Form::SuperBlocks;
    const SHARE: usize = 1;
    const HEADER: usize = HEADER;
    const LINES: usize = 48;

    fn activations(x: &QuantizedActivations) -> &[SuperBlock] {
        x.super_blocks()
    }

    fn pack(bytes: &[u8; 210], row: usize, _: usize, header: &mut [Line], quants: &mut [Line]) {
        let block = hurtle_quant::Q6K::split(bytes);
        let d = hurtle_quant::f16_to_f32(u16::from_le_bytes(*block.d));
        set_dword(&mut header[0], row, d.to_ne_bytes());
        for (line, dword) in header[1..].iter_mut().zip(block.scales.as_chunks::<4>().0) {
            set_dword(line, row, *dword);
        }
        let (low, high) = (block.ql.as_chunks::<4>().0, block.qh.as_chunks::<4>().0);
        for (line, dword) in quants.iter_mut().zip(low.iter().chain(high)) {
            set_dword(line, row, *dword);
        }
    }

    #[inline(always)]
    unsafe fn tile<L: IntLanes, const T: usize>(
        panel: &[Line],
        tokens: Tile<'_, SuperBlock, T>,
    ) -> [[f32; LANES]; T] {
        let mut out = [[0.0; LANES]; T];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let (nibble, upper) = (L::splat(0x0f0f_0f0f), L::splat(0x3030_3030));
            let mut sums = [L::Floats::splat(0.0); T];
            for (b, block) in panel.chunks_exact(Self::HEADER + Self::LINES).enumerate() {
                prefetch::<L>(block);
                let x = tokens.block(b);
                let (low, high) = block[HEADER..].split_at(32);
                let mut products = [L::splat(0); T];
                for h in 0..2 {
                    // Group 8h + G of 16 values.
                    unroll8!(G => {
                        let low = &low[16 * h + 4 * (G % 4)..][..4];
                        let high = &high[8 * h + 4 * (G % 2)..][..4];
                        let mut dots = [L::splat(0); T];
                        for t in 0..T {
                            dots[t] = L::splat(x[t].minus_32_sums[8 * h + G]);
                        }
                        for i in 0..4 {
                            let w = L::load(&low[i]).shr(4 * (G / 4) as u32).and(nibble);
                            let u = L::load(&high[i]);
                            let u = match G / 2 {
                                0 => u.shl(4),
                                1 => u.shl(2),
                                2 => u,
                                _ => u.shr(2),
                            };
                            let w = w.or(u.and(upper));
                            for t in 0..T {
                                dots[t] = dots[t].dot(w, x[t].qs[32 * h + 4 * G + i]);
                            }
                        }
                        let scales = L::load(&block[1 + 2 * h + G / 4]);
                        let scale = scales.shl(24 - 8 * (G % 4) as u32).sar(24);
                        for t in 0..T {
                            products[t] = products[t].add(scale.mul(dots[t]));
                        }
                    });
                }
                let d = L::Floats::load(bytemuck::cast_slice(&block[0].0));
                for t in 0..T {
                    let value = L::Floats::splat(x[t].d).mul(d).mul(products[t].to_floats());
                    sums[t] = sums[t].add(value);
                }
            }
            for t in 0..T {
                out[t] = sums[t].to_array();
            }
        }
        out
    }
}
