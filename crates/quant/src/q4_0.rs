//! Q4_0 and Q4_1: 32 values of 4 bit with a scale, and in Q4_1 a minimum.
//!
//! ```text
//! Q4_0 (18 bytes)  | d: f16 | qs: 16 bytes |            x = d * (q - 8)
//! Q4_1 (20 bytes)  | d: f16 | m: f16 | qs: 16 bytes |   x = d * q + m
//! ```
//!
//! Byte `j` of `qs` holds value `j` in its low and value `j + 16` in its high half.

use crate::WeightType;
use crate::block::{Block, Encoder, IntegerDot, block_layout};
use crate::fit::{min_max, reciprocal, signed_extreme};
use crate::float::{read_f16, write_f16};
use crate::planes::{pack, unpack};
use crate::q8_0::{Q8_0Block, Q8_1Block, dot_i8};

block_layout! {
    /// View of a Q4_0 block.
    Q4_0 {
        /// Scale, f16.
        d: 2,
        /// 4-bit quants.
        qs: 16,
    }
}

block_layout! {
    /// View of a Q4_1 block.
    Q4_1 {
        /// Scale, f16.
        d: 2,
        /// Minimum, f16.
        m: 2,
        /// 4-bit quants.
        qs: 16,
    }
}

impl Q4_0<'_> {
    /// The quants, from -8 to 7.
    #[inline(always)]
    fn quants(&self) -> [i8; 32] {
        unpack::<4, 16, _, _>(self.qs).map(|q| q as i8 - 8)
    }
}

impl Q4_1<'_> {
    /// The quants, from 0 to 15.
    #[inline(always)]
    fn quants(&self) -> [i8; 32] {
        unpack::<4, 16, _, _>(self.qs).map(|q| q as i8)
    }
}

impl Block for Q4_0<'_> {
    const TYPE: WeightType = WeightType::Q4_0;
    type Bytes = [u8; 18];
    type Values = [f32; 32];
    const ENCODE: Option<Encoder<Self>> = Some(encode_q4_0);

    #[inline(always)]
    fn decode(bytes: &[u8; 18], out: &mut [f32; 32]) {
        let block = Q4_0::split(bytes);
        let d = read_f16(block.d);
        for (y, q) in out.iter_mut().zip(block.quants()) {
            *y = f32::from(q) * d;
        }
    }
}

impl Block for Q4_1<'_> {
    const TYPE: WeightType = WeightType::Q4_1;
    type Bytes = [u8; 20];
    type Values = [f32; 32];
    const ENCODE: Option<Encoder<Self>> = Some(encode_q4_1);

    #[inline(always)]
    fn decode(bytes: &[u8; 20], out: &mut [f32; 32]) {
        let block = Q4_1::split(bytes);
        let (d, m) = (read_f16(block.d), read_f16(block.m));
        for (y, q) in out.iter_mut().zip(block.quants()) {
            *y = f32::from(q) * d + m;
        }
    }
}

impl IntegerDot for Q4_0<'_> {
    type Activations = Q8_0Block;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 18], _: usize, x: &Q8_0Block) -> f32 {
        let block = Q4_0::split(bytes);
        dot_i8(&block.quants(), &x.qs) as f32 * (read_f16(block.d) * x.scale())
    }
}

impl IntegerDot for Q4_1<'_> {
    type Activations = Q8_1Block;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 20], _: usize, x: &Q8_1Block) -> f32 {
        let block = Q4_1::split(bytes);
        let products = dot_i8(&block.quants(), &x.qs) as f32;
        products * (read_f16(block.d) * x.scale()) + read_f16(block.m) * x.scaled_sum()
    }
}

/// The value of the largest magnitude becomes -8, so that all 16 levels are used.
fn encode_q4_0(x: &[f32; 32], out: &mut [u8; 18]) {
    let d = signed_extreme(x) / -8.0;
    let inverse = reciprocal(d);
    let quants = x.map(|x| ((x * inverse + 8.5) as i8).clamp(0, 15) as u8);
    Q4_0 { d: &write_f16(d), qs: &pack::<4, 16, _, _>(&quants) }.join(out);
}

fn encode_q4_1(x: &[f32; 32], out: &mut [u8; 20]) {
    let (min, max) = min_max(x);
    let d = (max - min) / 15.0;
    let inverse = reciprocal(d);
    let quants = x.map(|x| ((x - min) * inverse + 0.5) as u8).map(|q| q.min(15));
    let (d, m) = (write_f16(d), write_f16(min));
    Q4_1 { d: &d, m: &m, qs: &pack::<4, 16, _, _>(&quants) }.join(out);
}
