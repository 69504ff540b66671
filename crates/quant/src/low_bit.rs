//! Q1_0 and Q2_0: plain 1 and 2-bit quants with a scale.
//!
//! ```text
//! Q1_0 (18 bytes, 128 values)  | d: f16 | qs: 16 bytes |   x = d if the bit is set, else -d
//! Q2_0 (18 bytes, 64 values)   | d: f16 | qs: 16 bytes |   x = d * (q - 1)
//! ```
//!
//! The quants lie in order, from the lowest bits of the first byte on.

use crate::WeightType;
use crate::block::{Block, IntegerDot, block_layout};
use crate::float::read_f16;
use crate::planes::unpack;
use crate::q8_0::{Q8_0Block, dot_i8};

block_layout! {
    /// View of a Q1_0 block.
    Q1_0 {
        /// Scale, f16.
        d: 2,
        /// Bits.
        qs: 16,
    }
}

block_layout! {
    /// View of a Q2_0 block.
    Q2_0 {
        /// Scale, f16.
        d: 2,
        /// 2-bit quants.
        qs: 16,
    }
}

impl Block for Q1_0<'_> {
    const TYPE: WeightType = WeightType::Q1_0;
    type Bytes = [u8; 18];
    type Values = [f32; 128];

    #[inline(always)]
    fn decode(bytes: &[u8; 18], out: &mut [f32; 128]) {
        let block = Q1_0::split(bytes);
        let d = read_f16(block.d);
        let bits: [u8; 128] = unpack::<1, 1, _, _>(block.qs);
        for (y, bit) in out.iter_mut().zip(bits) {
            *y = if bit != 0 { d } else { -d };
        }
    }
}

impl Block for Q2_0<'_> {
    const TYPE: WeightType = WeightType::Q2_0;
    type Bytes = [u8; 18];
    type Values = [f32; 64];

    #[inline(always)]
    fn decode(bytes: &[u8; 18], out: &mut [f32; 64]) {
        let block = Q2_0::split(bytes);
        let d = read_f16(block.d);
        for (y, q) in out.iter_mut().zip(block.quants()) {
            *y = f32::from(q) * d;
        }
    }
}

impl Q1_0<'_> {
    /// -1 or 1.
    #[inline(always)]
    fn quants(&self) -> [i8; 128] {
        unpack::<1, 1, _, _>(self.qs).map(|bit| 2 * bit as i8 - 1)
    }
}

impl IntegerDot for Q1_0<'_> {
    type Activations = Q8_0Block;
    const PARTS: usize = 4;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 18], part: usize, x: &Q8_0Block) -> f32 {
        let block = Q1_0::split(bytes);
        let dot = dot_i8(&block.quants()[32 * part..][..32], &x.qs);
        dot as f32 * (read_f16(block.d) * x.scale())
    }
}

impl Q2_0<'_> {
    /// -1 to 2.
    #[inline(always)]
    fn quants(&self) -> [i8; 64] {
        unpack::<2, 1, _, _>(self.qs).map(|q| q as i8 - 1)
    }
}

impl IntegerDot for Q2_0<'_> {
    type Activations = Q8_0Block;
    const PARTS: usize = 2;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 18], part: usize, x: &Q8_0Block) -> f32 {
        let block = Q2_0::split(bytes);
        let dot = dot_i8(&block.quants()[32 * part..][..32], &x.qs);
        dot as f32 * (read_f16(block.d) * x.scale())
    }
}
