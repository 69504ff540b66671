//! IQ4_XS: super-blocks of 8 groups of 32 values with a scale, indices of 16 levels.
//!
//! ```text
//! line 0       d, 16 × f32
//! 2 lines      scales, a signed byte a group, 4 groups a line
//! 32 lines     indices, 4 lines a group: values 0-15 in the low, 16-31 in the high halves
//! ```

use super::blocks::{Iq4Levels, Levels};
use super::super_blocks::{self, Factors, SuperBlocks};
use super::{Kernel, Tile, prefetch, set_dword, set_dwords, unroll8};
use crate::activations::{Form, QuantizedActivations, SuperBlock};
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;

const HEADER: usize = 3;
const LINES: usize = 32;

pub(crate) struct Iq4Xs;

impl Kernel for Iq4Xs {
    type Bytes = [u8; 136];
    const LEN: usize = 256;
    type Activations = SuperBlock;
    const FORM: Form = Form::SuperBlocks;
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    const TILES: Option<super::MultiplyTiles<SuperBlock>> =
        Some(crate::arch::x86_64::avx512vnni::multiply_tiles::<Self, crate::arch::amx::Amx>);
    const SHARE: usize = 1;
    const HEADER: usize = HEADER;
    const LINES: usize = LINES;
    // As it comes 94, unpacked 92, 91, 96, 98 with 16, 24, 32 and 48 tokens.
    const FROM_OF_16: usize = 32;

    fn activations(x: &QuantizedActivations) -> &[SuperBlock] {
        x.super_blocks()
    }

    fn pack(bytes: &[u8; 136], row: usize, _: usize, header: &mut [Line], quants: &mut [Line]) {
        let block = hurtle_quant::Iq4Xs::split(bytes);
        let d = hurtle_quant::f16_to_f32(u16::from_le_bytes(*block.d));
        set_dword(&mut header[0], row, d.to_ne_bytes());
        let scales = block.scales().map(|scale| scale as u8);
        set_dwords(header, row, &scales, |k| 1 + k);
        set_dwords(quants, row, block.qs, |k| k);
    }

    #[inline(always)]
    unsafe fn tile<L: IntLanes, const T: usize>(
        panel: &[Line],
        tokens: Tile<'_, SuperBlock, T>,
    ) -> [[f32; LANES]; T] {
        let mut out = [[0.0; LANES]; T];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let nibble = L::splat(0x0f0f_0f0f);
            let mut sums = [L::Floats::splat(0.0); T];
            for (b, block) in panel.chunks_exact(HEADER + LINES).enumerate() {
                prefetch::<L>(&block[..HEADER]);
                let x = tokens.block(b);
                let mut products = [L::splat(0); T];
                for half in 0..2 {
                    let mut scales = L::load(&block[1 + half]);
                    for g in 4 * half..4 * half + 4 {
                        let lines = &block[HEADER + 4 * g..][..4];
                        prefetch::<L>(lines);
                        let mut dots = [L::splat(0); T];
                        for t in 0..T {
                            dots[t] = L::start_biased(x[t].sum_of_32(g));
                        }
                        unroll8!(I => {
                            let indices = L::load(&lines[I % 4]).shr(4 * (I / 4) as u32);
                            let w = indices.and(nibble).lookup(&Iq4Levels::TABLE);
                            for t in 0..T {
                                dots[t] = dots[t].dot_biased(w, x[t].qs[8 * g + I]);
                                dots[t].pin();
                            }
                        });
                        let scale = scales.shl(24).sar(24);
                        scales = scales.shr(8);
                        for t in 0..T {
                            products[t] = products[t].add(scale.mul(dots[t]));
                        }
                    }
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

    super_blocks::unpacked!();
}

impl SuperBlocks for Iq4Xs {
    /// That of the table.
    const OFFSET: i32 = 128;
    const MAX: Option<usize> = None;
    const GROUP_LINES: usize = 8;

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(block: &[Line], i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let indices = L::load(&block[HEADER + 4 * (i / 8) + i % 4]).shr(4 * (i % 8 / 4) as u32);
            indices.and(L::splat(0x0f0f_0f0f)).lookup(&Iq4Levels::TABLE)
        }
    }

    #[inline(always)]
    unsafe fn scales<L: IntLanes>(block: &[Line], q: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(&block[1 + q]) }
    }

    #[inline(always)]
    unsafe fn factors<L: IntLanes>(block: &[Line], factors: &mut Factors) {
        factors[0] = block[0];
    }

    super_blocks::one_factor!();
}
