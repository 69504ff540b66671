//! MXFP4 and NVFP4: 4-bit floats (E2M1) with shared scales that are small floats as well.
//!
//! ```text
//! MXFP4 (17 bytes, 32 values)  | e: E8M0 | qs: 16 bytes |            x = 2^(e - 127) * e2m1[q]
//! NVFP4 (36 bytes, 64 values)  | d: 4 × UE4M3 | qs: 32 bytes |       x = d[g] * e2m1[q]
//!                                                                    4 groups of 16
//! qs: 4-bit planes of 16 bytes (MXFP4) or 8 bytes (NVFP4)
//! ```
//!
//! The values of E2M1 are 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. Here they are doubled, to
//! be integers, and the scales halved. Sources: OCP Microscaling Formats (MX) v1.0; NVIDIA's NVFP4.

use crate::WeightType;
use crate::block::{Block, IntegerDot, block_layout};
use crate::planes::unpack;
use crate::q8_0::{Q8_0Block, dot_i8};

/// Twice the value of each E2M1 code. The negative zero is a plain zero, as in ggml.
pub const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

block_layout! {
    /// View of an MXFP4 block.
    Mxfp4 {
        /// Scale, E8M0: an exponent.
        e: 1,
        /// E2M1 values.
        qs: 16,
    }
}

block_layout! {
    /// View of an NVFP4 block.
    Nvfp4 {
        /// Scales of 4 groups, UE4M3.
        d: 4,
        /// E2M1 values.
        qs: 32,
    }
}

/// Half of an E8M0 scale: `2^(e - 128)`. The code of NaN, 255, is taken for a number, as in ggml.
#[inline(always)]
pub fn e8m0_half(e: u8) -> f32 {
    let e = u32::from(e);
    // The two smallest are subnormal in f32.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
}

/// Half of a UE4M3 scale: 4 bits of exponent, 3 of mantissa, no sign. The code of NaN, 0x7f, is
/// taken for zero, as in ggml.
#[inline(always)]
pub fn ue4m3_half(code: u8) -> f32 {
    // Moved to where an f32 has them, exponent and mantissa lack the difference of the biases,
    // 127 - 7, less one for the half. The product is exact, also for subnormal codes.
    const BIAS: f32 = f32::from_bits((127 + 119) << 23);
    let value = f32::from_bits(u32::from(code & 0x7f) << 20) * BIAS;
    if code == 0x7f { 0.0 } else { value }
}

/// Doubled values of E2M1 codes.
#[inline(always)]
fn e2m1<const N: usize>(codes: [u8; N]) -> [i8; N] {
    codes.map(|code| E2M1_DOUBLED[usize::from(code & 15)])
}

impl Mxfp4<'_> {
    /// Doubled values.
    #[inline(always)]
    fn quants(&self) -> [i8; 32] {
        e2m1(unpack::<4, 16, _, _>(self.qs))
    }
}

impl Block for Mxfp4<'_> {
    const TYPE: WeightType = WeightType::MXFP4;
    type Bytes = [u8; 17];
    type Values = [f32; 32];

    #[inline(always)]
    fn decode(bytes: &[u8; 17], out: &mut [f32; 32]) {
        let block = Mxfp4::split(bytes);
        let scale = e8m0_half(block.e[0]);
        for (y, q) in out.iter_mut().zip(block.quants()) {
            *y = f32::from(q) * scale;
        }
    }
}

impl IntegerDot for Mxfp4<'_> {
    type Activations = Q8_0Block;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 17], _: usize, x: &Q8_0Block) -> f32 {
        let block = Mxfp4::split(bytes);
        dot_i8(&block.quants(), &x.qs) as f32 * (e8m0_half(block.e[0]) * x.scale())
    }
}

impl Nvfp4<'_> {
    /// Doubled values.
    #[inline(always)]
    fn quants(&self) -> [i8; 64] {
        e2m1(unpack::<4, 8, _, _>(self.qs))
    }
}

impl Block for Nvfp4<'_> {
    const TYPE: WeightType = WeightType::NVFP4;
    type Bytes = [u8; 36];
    type Values = [f32; 64];

    #[inline(always)]
    fn decode(bytes: &[u8; 36], out: &mut [f32; 64]) {
        let block = Nvfp4::split(bytes);
        let quants = block.quants();
        let (quants, _) = quants.as_chunks::<16>();
        let (out, _) = out.as_chunks_mut::<16>();
        for ((out, quants), &d) in out.iter_mut().zip(quants).zip(block.d) {
            let scale = ue4m3_half(d);
            for (y, &q) in out.iter_mut().zip(quants) {
                *y = f32::from(q) * scale;
            }
        }
    }
}

impl IntegerDot for Nvfp4<'_> {
    type Activations = Q8_0Block;
    const PARTS: usize = 2;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 36], part: usize, x: &Q8_0Block) -> f32 {
        let block = Nvfp4::split(bytes);
        let quants = block.quants();
        let group = |g: usize| {
            let dot = dot_i8(&quants[32 * part + 16 * g..][..16], &x.qs[16 * g..][..16]);
            dot as f32 * ue4m3_half(block.d[2 * part + g])
        };
        (group(0) + group(1)) * x.scale()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_powers_and_small_floats() {
        for e in 0..=255u8 {
            assert_eq!(f64::from(e8m0_half(e)), 2f64.powi(i32::from(e) - 128), "E8M0 {e}");
        }
        for code in (0..=255u8).filter(|code| *code != 0x7f) {
            let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
            let value = match exponent {
                0 => mantissa * 2f64.powi(-9),
                _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
            };
            assert_eq!(f64::from(ue4m3_half(code)), value / 2.0, "UE4M3 {code:#04x}");
        }
        assert_eq!(ue4m3_half(0x7f), 0.0);
    }
}
