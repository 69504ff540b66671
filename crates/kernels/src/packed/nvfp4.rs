//! NVFP4: 16 values share a scale, so that the 32 values of a block of activations have two.
//!
//! ```text
//! line 0       scales of 64 values, 4 bytes of UE4M3 a row
//! 2 × 4 lines  indices of levels: of 16 values, 8 in the low, 8 in the high halves of 2 lines
//! ```

use super::blocks::{E2m1Levels, Levels};
use super::{Kernel, Tile, prefetch, set_dword, set_dwords};
use crate::activations::{Block, Form, QuantizedActivations};
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;

const LINES: usize = 4;
/// How much higher than their values the levels are stored.
const OFFSET: i32 = 12;
/// The code of NaN, which counts as zero, as in ggml. With the bit of the sign it doesn't.
const NAN: u8 = 0x7f;
/// Half of a scale is this times what has its bits, exponent and mantissa, where an f32 has them.
const BIAS: f32 = f32::from_bits((127 + 119) << 23);

pub(crate) struct Nvfp4;

/// Scale `i` of each row, halved as the levels are doubled.
#[inline(always)]
unsafe fn scale<L: IntLanes>(header: &Line, i: usize) -> L::Floats {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let code = L::load(header).shr(8 * i as u32).and(L::splat(0x7f));
        code.shl(20).as_floats().mul(L::Floats::splat(BIAS))
    }
}

impl Kernel for Nvfp4 {
    type Bytes = [u8; 36];
    const PIECES: usize = 2;
    const LEN: usize = 32;
    type Activations = Block;
    const FORM: Form = Form::Blocks;
    const SHARE: usize = 2;
    const HEADER: usize = 1;
    const LINES: usize = LINES;

    fn activations(x: &QuantizedActivations) -> &[Block] {
        x.blocks()
    }

    fn pack(bytes: &[u8; 36], row: usize, slot: usize, header: &mut [Line], quants: &mut [Line]) {
        let block = hurtle_quant::Nvfp4::split(bytes);
        let code = |code: u8| if code == NAN { 0 } else { code };
        set_dword(&mut header[0], row, block.d.map(code));
        set_dwords(quants, row, &block.qs[16 * slot..][..16], |k| k);
    }

    #[inline(always)]
    unsafe fn tile<L: IntLanes, const T: usize>(
        panel: &[Line],
        tokens: Tile<'_, Block, T>,
    ) -> [[f32; LANES]; T] {
        let mut out = [[0.0; LANES]; T];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let nibble = L::splat(0x0f0f_0f0f);
            // Dots that sums have room for.
            let room = E2m1Levels::MAX.map_or(1, |max| (L::LIMIT / max).min(4));
            let mut sums = [L::Floats::splat(0.0); T];
            for (u, unit) in panel.chunks_exact(1 + 2 * LINES).enumerate() {
                prefetch::<L>(&unit[..1]);
                for (slot, lines) in unit[1..].chunks_exact(LINES).enumerate() {
                    let x = tokens.block(2 * u + slot);
                    let mut values = [L::Floats::splat(0.0); T];
                    for g in 0..2 {
                        prefetch::<L>(&lines[2 * g..2 * g + 2]);
                        let (mut dots, mut parts) = ([L::splat(0); T], [L::no_sums(); T]);
                        for t in 0..T {
                            let sum =
                                if g == 0 { x[t].first_sum } else { x[t].sum - x[t].first_sum };
                            (dots[t], parts[t]) = L::begin(L::splat(-OFFSET * sum));
                        }
                        for i in 0..4 {
                            let indices = L::load(&lines[2 * g + i % 2]).shr(4 * (i / 2) as u32);
                            let w = indices.and(nibble).lookup(&E2m1Levels::TABLE);
                            for t in 0..T {
                                parts[t] = L::dot(parts[t], w, x[t].qs[4 * g + i]);
                                L::pin_sums(&mut parts[t]);
                            }
                            if (i + 1).is_multiple_of(room) || i == 3 {
                                for t in 0..T {
                                    dots[t] = dots[t].add_sums(parts[t]);
                                    parts[t] = L::no_sums();
                                }
                            }
                        }
                        let d = scale::<L>(&unit[0], 2 * slot + g);
                        for t in 0..T {
                            let value = dots[t].to_floats().mul(d);
                            values[t] = if g == 0 { value } else { values[t].add(value) };
                        }
                    }
                    for t in 0..T {
                        sums[t] = sums[t].add(values[t].mul(L::Floats::splat(x[t].d)));
                    }
                }
            }
            for t in 0..T {
                out[t] = sums[t].to_array();
            }
        }
        out
    }
}
