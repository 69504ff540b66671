//! TQ1_0 and TQ2_0: 256 ternary values (-1, 0, 1) with a scale.
//!
//! ```text
//! TQ1_0 (54 bytes, 1.6875 bits a value)  | qs: 48 bytes | qh: 4 bytes | d: f16 |
//! TQ2_0 (66 bytes, 2.0625 bits a value)  | qs: 64 bytes | d: f16 |
//!
//! x = d * (q - 1)
//! ```
//!
//! TQ2_0 holds 2-bit planes of 32 bytes. TQ1_0 packs trits: a byte is the binary fraction
//! `ceil(256 * 0.t₀t₁t₂t₃t₄ (base 3))`. Multiplied by 3 it shifts the next trit before the point,
//! which for a byte is bit 8 and up. The trits lie in planes as well: of the first 32 bytes of
//! `qs` (values 0 to 159), of the other 16 (160 to 239) and, four each, of `qh` (240 to 255).

use crate::WeightType;
use crate::block::{Block, block_layout};
use crate::float::read_f16;
use crate::integers::{self, ScaledIntegers};
use crate::planes::unpack;

block_layout! {
    /// View of a TQ1_0 super-block.
    Tq1_0 {
        /// Five planes of 32 trits.
        qs: 32,
        /// Five planes of 16 trits.
        qs_rest: 16,
        /// Four planes of 4 trits.
        qh: 4,
        /// Scale, f16.
        d: 2,
    }
}

block_layout! {
    /// View of a TQ2_0 super-block.
    Tq2_0 {
        /// 2-bit quants.
        qs: 64,
        /// Scale, f16.
        d: 2,
    }
}

/// As many planes of the trits in `packed` as `out` holds.
#[inline(always)]
fn trits<const N: usize>(packed: &[u8; N], out: &mut [u8]) {
    let mut fractions = *packed;
    for plane in out.as_chunks_mut::<N>().0 {
        for (trit, fraction) in plane.iter_mut().zip(&mut fractions) {
            let shifted = u16::from(*fraction) * 3;
            *fraction = shifted as u8;
            *trit = (shifted >> 8) as u8;
        }
    }
}

impl Block for Tq1_0<'_> {
    const TYPE: WeightType = WeightType::TQ1_0;
    type Bytes = [u8; 54];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 54], out: &mut [f32; 256]) {
        integers::decode::<Self>(bytes, out);
    }
}

impl ScaledIntegers for Tq1_0<'_> {
    const GROUP: usize = 32;
    const OFFSET: u8 = 1;
    const LEVELS: &'static [u8] = &[0, 1, 2];
    const MAX: u8 = 2;
    const SIGNED: bool = false;

    #[inline(always)]
    fn signs(_: &[u8; 54]) -> [u32; 8] {
        [0; 8]
    }

    #[inline(always)]
    fn factor(bytes: &[u8; 54]) -> f32 {
        read_f16(Tq1_0::split(bytes).d)
    }

    #[inline(always)]
    fn scales(_: &[u8; 54]) -> [i8; 16] {
        [1; 16]
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 54], stored: &mut [u8; 256]) {
        let block = Tq1_0::split(bytes);
        let (first, rest) = stored.split_at_mut(160);
        let (second, third) = rest.split_at_mut(80);
        trits(block.qs, first);
        trits(block.qs_rest, second);
        trits(block.qh, third);
    }
}

impl Block for Tq2_0<'_> {
    const TYPE: WeightType = WeightType::TQ2_0;
    type Bytes = [u8; 66];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 66], out: &mut [f32; 256]) {
        integers::decode::<Self>(bytes, out);
    }
}

/// Bits may say 3, too, which no encoder writes.
impl ScaledIntegers for Tq2_0<'_> {
    const GROUP: usize = 32;
    const OFFSET: u8 = 1;
    const LEVELS: &'static [u8] = &[0, 1, 2, 3];
    const MAX: u8 = 3;
    const SIGNED: bool = false;

    #[inline(always)]
    fn signs(_: &[u8; 66]) -> [u32; 8] {
        [0; 8]
    }

    #[inline(always)]
    fn factor(bytes: &[u8; 66]) -> f32 {
        read_f16(Tq2_0::split(bytes).d)
    }

    #[inline(always)]
    fn scales(_: &[u8; 66]) -> [i8; 16] {
        [1; 16]
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 66], stored: &mut [u8; 256]) {
        *stored = unpack::<2, 32, _, _>(Tq2_0::split(bytes).qs);
    }
}
