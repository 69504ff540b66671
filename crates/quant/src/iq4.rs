//! IQ4_NL and IQ4_XS: 4-bit quants that are indices of 16 unevenly spaced levels.
//!
//! ```text
//! IQ4_NL (18 bytes, 32 values)    | d: f16 | qs: 16 bytes |
//!        x = d * LEVELS[q]
//! IQ4_XS (136 bytes, 256 values)  | d: f16 | scales_high: 2 bytes | scales_low: 4 bytes | qs: 128 |
//!        x = d * (scale[g] - 32) * LEVELS[q],   8 groups of 32
//!
//! qs:           4-bit planes of 16 bytes
//! scales_low:   lower four bits of the scales, in order
//! scales_high:  upper two bits of the scales, in order
//! ```

use crate::WeightType;
use crate::block::{Block, Encoder, IntegerDot, block_layout};
use crate::fit::{ZERO_GROUP, reciprocal, signed_extreme};
use crate::float::{read_f16, write_f16};
use crate::planes::{pack, unpack};
use crate::q8_0::{Q8_0Block, dot_i8};
use crate::q8_k::Q8KSuperBlock;

/// The levels of IQ4_NL and IQ4_XS, ascending: denser around zero, as weights are.
pub const IQ4_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

block_layout! {
    /// View of an IQ4_NL block.
    Iq4Nl {
        /// Scale, f16.
        d: 2,
        /// 4-bit indices of levels.
        qs: 16,
    }
}

block_layout! {
    /// View of an IQ4_XS super-block.
    Iq4Xs {
        /// Scale of the scales, f16.
        d: 2,
        /// Upper two bits of 8 scales.
        scales_high: 2,
        /// Lower four bits of 8 scales.
        scales_low: 4,
        /// 4-bit indices of levels.
        qs: 128,
    }
}

/// The levels that indices below 16 stand for.
#[inline(always)]
fn levels<const N: usize>(indices: [u8; N]) -> [i8; N] {
    indices.map(|index| IQ4_LEVELS[usize::from(index & 15)])
}

impl Iq4Nl<'_> {
    /// The levels of the quants.
    #[inline(always)]
    fn quants(&self) -> [i8; 32] {
        levels(unpack::<4, 16, _, _>(self.qs))
    }
}

impl Iq4Xs<'_> {
    /// The levels of the quants.
    #[inline(always)]
    fn quants(&self) -> [i8; 256] {
        levels(unpack::<4, 16, _, _>(self.qs))
    }

    /// The scales of 8 groups, from -32 to 31.
    #[inline(always)]
    pub fn scales(&self) -> [i8; 8] {
        let low: [u8; 8] = unpack::<4, 1, _, _>(self.scales_low);
        let high: [u8; 8] = unpack::<2, 1, _, _>(self.scales_high);
        std::array::from_fn(|g| (low[g] | high[g] << 4) as i8 - 32)
    }
}

impl Block for Iq4Nl<'_> {
    const TYPE: WeightType = WeightType::IQ4_NL;
    type Bytes = [u8; 18];
    type Values = [f32; 32];
    const ENCODE: Option<Encoder<Self>> = Some(encode_iq4_nl);

    #[inline(always)]
    fn decode(bytes: &[u8; 18], out: &mut [f32; 32]) {
        let block = Iq4Nl::split(bytes);
        let d = read_f16(block.d);
        for (y, level) in out.iter_mut().zip(block.quants()) {
            *y = d * f32::from(level);
        }
    }
}

impl Block for Iq4Xs<'_> {
    const TYPE: WeightType = WeightType::IQ4_XS;
    type Bytes = [u8; 136];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 136], out: &mut [f32; 256]) {
        let block = Iq4Xs::split(bytes);
        let d = read_f16(block.d);
        let quants = block.quants();
        let (quants, _) = quants.as_chunks::<32>();
        let (out, _) = out.as_chunks_mut::<32>();
        for ((out, quants), scale) in out.iter_mut().zip(quants).zip(block.scales()) {
            let scale = d * f32::from(scale);
            for (y, &level) in out.iter_mut().zip(quants) {
                *y = scale * f32::from(level);
            }
        }
    }
}

impl IntegerDot for Iq4Nl<'_> {
    type Activations = Q8_0Block;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 18], _: usize, x: &Q8_0Block) -> f32 {
        let block = Iq4Nl::split(bytes);
        dot_i8(&block.quants(), &x.qs) as f32 * (read_f16(block.d) * x.scale())
    }
}

impl IntegerDot for Iq4Xs<'_> {
    type Activations = Q8KSuperBlock;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 136], _: usize, x: &Q8KSuperBlock) -> f32 {
        let block = Iq4Xs::split(bytes);
        let quants = block.quants();
        let (quants, _) = quants.as_chunks::<32>();
        let (activations, _) = x.qs.as_chunks::<32>();
        let mut products = 0i32;
        for (g, scale) in block.scales().into_iter().enumerate() {
            products += i32::from(scale) * dot_i8(&quants[g], &activations[g]);
        }
        x.d * read_f16(block.d) * products as f32
    }
}

/// The index of the level nearest to `x`, the upper of two equally near.
fn nearest_level(x: f32) -> u8 {
    let above = IQ4_LEVELS.partition_point(|&level| f32::from(level) <= x).clamp(1, 15);
    let (lower, upper) = (f32::from(IQ4_LEVELS[above - 1]), f32::from(IQ4_LEVELS[above]));
    if x - lower < upper - x { above as u8 - 1 } else { above as u8 }
}

/// Tries 15 scales around that which maps the extreme value to the lowest level, and keeps the
/// best. Errors weigh `x²`.
fn encode_iq4_nl(x: &[f32; 32], out: &mut [u8; 18]) {
    let extreme = signed_extreme(x);
    let lowest = f32::from(IQ4_LEVELS[0]);
    let mut scale = 0.0;
    if extreme.abs() >= ZERO_GROUP {
        let sums = |inverse: f32| {
            let (mut sum_xq, mut sum_qq) = (0.0f32, 0.0f32);
            for &x in x {
                let q = f32::from(IQ4_LEVELS[usize::from(nearest_level(inverse * x))]);
                let w = x * x;
                sum_xq += w * q * x;
                sum_qq += w * q * q;
            }
            (sum_xq, sum_qq)
        };
        let (sum_xq, sum_qq) = sums(1.0 / (-extreme / lowest));
        scale = if sum_qq > 0.0 { sum_xq / sum_qq } else { 0.0 };
        let mut best = scale * sum_xq;
        for step in -7..=7 {
            let (sum_xq, sum_qq) = sums((step as f32 + lowest) / extreme);
            if sum_qq > 0.0 && sum_xq * sum_xq > best * sum_qq {
                scale = sum_xq / sum_qq;
                best = scale * sum_xq;
            }
        }
    }
    let inverse = reciprocal(scale);
    let indices = x.map(|x| nearest_level(inverse * x));
    Iq4Nl { d: &write_f16(scale), qs: &pack::<4, 16, _, _>(&indices) }.join(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_level_is_the_nearest() {
        for i in -1400..1400 {
            let x = i as f32 * 0.1;
            let distance = |level: i8| (f32::from(level) - x).abs();
            let expected = IQ4_LEVELS.iter().map(|&l| distance(l)).fold(f32::MAX, f32::min);
            assert_eq!(distance(IQ4_LEVELS[usize::from(nearest_level(x))]), expected, "{x}");
        }
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(nearest_level(x) < 16);
        }
    }
}
