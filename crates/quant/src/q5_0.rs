//! Q5_0 and Q5_1: 32 values of 5 bit with a scale, and in Q5_1 a minimum.
//!
//! ```text
//! Q5_0 (22 bytes)  | d: f16 | qh: 4 bytes | qs: 16 bytes |            x = d * (q - 16)
//! Q5_1 (24 bytes)  | d: f16 | m: f16 | qh: 4 bytes | qs: 16 bytes |   x = d * q + m
//! ```
//!
//! Byte `j` of `qs` holds the lower bits of value `j` in its low and of value `j + 16` in its high
//! half. Bit `j` of `qh`, read as a little-endian integer, is the fifth bit of value `j`.

use crate::WeightType;
use crate::block::{Block, Encoder, IntegerDot, block_layout};
use crate::fit::{min_max, reciprocal, signed_extreme};
use crate::float::{read_f16, write_f16};
use crate::planes::{pack, unpack};
use crate::q8_0::{Q8_0Block, Q8_1Block, dot_i8};

block_layout! {
    /// View of a Q5_0 block.
    Q5_0 {
        /// Scale, f16.
        d: 2,
        /// Fifth bits.
        qh: 4,
        /// Lower four bits.
        qs: 16,
    }
}

block_layout! {
    /// View of a Q5_1 block.
    Q5_1 {
        /// Scale, f16.
        d: 2,
        /// Minimum, f16.
        m: 2,
        /// Fifth bits.
        qh: 4,
        /// Lower four bits.
        qs: 16,
    }
}

/// Quants from 0 to 31.
#[inline(always)]
fn join_bits(qs: &[u8; 16], qh: &[u8; 4]) -> [i8; 32] {
    let low: [u8; 32] = unpack::<4, 16, _, _>(qs);
    let high: [u8; 32] = unpack::<1, 1, _, _>(qh);
    std::array::from_fn(|i| (low[i] | high[i] << 4) as i8)
}

/// The reverse of [`join_bits`]: `qs` and `qh`.
fn split_bits(quants: &[u8; 32]) -> ([u8; 16], [u8; 4]) {
    (pack::<4, 16, _, _>(quants), pack::<1, 1, _, _>(&quants.map(|q| q >> 4)))
}

impl Q5_0<'_> {
    /// The quants, from -16 to 15.
    #[inline(always)]
    fn quants(&self) -> [i8; 32] {
        join_bits(self.qs, self.qh).map(|q| q - 16)
    }
}

impl Block for Q5_0<'_> {
    const TYPE: WeightType = WeightType::Q5_0;
    type Bytes = [u8; 22];
    type Values = [f32; 32];
    const ENCODE: Option<Encoder<Self>> = Some(encode_q5_0);

    #[inline(always)]
    fn decode(bytes: &[u8; 22], out: &mut [f32; 32]) {
        let block = Q5_0::split(bytes);
        let d = read_f16(block.d);
        for (y, q) in out.iter_mut().zip(block.quants()) {
            *y = f32::from(q) * d;
        }
    }
}

impl Block for Q5_1<'_> {
    const TYPE: WeightType = WeightType::Q5_1;
    type Bytes = [u8; 24];
    type Values = [f32; 32];
    const ENCODE: Option<Encoder<Self>> = Some(encode_q5_1);

    #[inline(always)]
    fn decode(bytes: &[u8; 24], out: &mut [f32; 32]) {
        let block = Q5_1::split(bytes);
        let (d, m) = (read_f16(block.d), read_f16(block.m));
        for (y, q) in out.iter_mut().zip(join_bits(block.qs, block.qh)) {
            *y = f32::from(q) * d + m;
        }
    }
}

impl IntegerDot for Q5_0<'_> {
    type Activations = Q8_0Block;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 22], _: usize, x: &Q8_0Block) -> f32 {
        let block = Q5_0::split(bytes);
        dot_i8(&block.quants(), &x.qs) as f32 * (read_f16(block.d) * x.scale())
    }
}

impl IntegerDot for Q5_1<'_> {
    type Activations = Q8_1Block;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 24], _: usize, x: &Q8_1Block) -> f32 {
        let block = Q5_1::split(bytes);
        let products = dot_i8(&join_bits(block.qs, block.qh), &x.qs) as f32;
        products * (read_f16(block.d) * x.scale()) + read_f16(block.m) * x.scaled_sum()
    }
}

/// The value of the largest magnitude becomes -16, so that all 32 levels are used.
fn encode_q5_0(x: &[f32; 32], out: &mut [u8; 22]) {
    let d = signed_extreme(x) / -16.0;
    let inverse = reciprocal(d);
    let quants = x.map(|x| ((x * inverse + 16.5) as i8).clamp(0, 31) as u8);
    let (qs, qh) = split_bits(&quants);
    Q5_0 { d: &write_f16(d), qh: &qh, qs: &qs }.join(out);
}

fn encode_q5_1(x: &[f32; 32], out: &mut [u8; 24]) {
    let (min, max) = min_max(x);
    let d = (max - min) / 31.0;
    let inverse = reciprocal(d);
    let quants = x.map(|x| ((x - min) * inverse + 0.5) as u8).map(|q| q.min(31));
    let (qs, qh) = split_bits(&quants);
    Q5_1 { d: &write_f16(d), m: &write_f16(min), qh: &qh, qs: &qs }.join(out);
}
