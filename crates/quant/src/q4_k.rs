//! Q4_K: super-blocks of 256 values of 4 bit, 8 groups of 32 with a scale and a minimum.
//!
//! ```text
//! | d: f16 | dmin: f16 | scales: 12 bytes | qs: 128 bytes |   144 bytes, 4.5 bits a value
//!
//! scales: 6-bit scales s and minima m of 8 groups:
//!                 bits 6-7       bits 4-5          bits 0-3
//!   bytes 0-3     s[4..8] upper  s[0..4] ──────────────────
//!   bytes 4-7     m[4..8] upper  m[0..4] ──────────────────
//!   bytes 8-11    m[4..8] lower (bits 4-7)  s[4..8] lower
//! qs:     4-bit planes of 32 bytes: each 32 bytes hold two groups
//!
//! x = d * s[g] * q - dmin * m[g]
//! ```

use crate::WeightType;
use crate::block::{Block, Encoder, IntegerDot, block_layout};
use crate::fit::{AffineSearch, fit_affine, nearest_int};
use crate::float::{read_f16, write_f16};
use crate::planes::{pack, unpack};
use crate::q8_0::dot_i8;
use crate::q8_k::Q8KSuperBlock;

block_layout! {
    /// View of a Q4_K super-block.
    Q4K {
        /// Scale of the scales, f16.
        d: 2,
        /// Scale of the minima, f16.
        dmin: 2,
        /// 6-bit scales and minima of 8 groups, see [`Scales`].
        scales: 12,
        /// 4-bit quants.
        qs: 128,
    }
}

/// The 6-bit scales and minima of the 8 groups of a Q4_K or Q5_K super-block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scales {
    /// Scales, from 0 to 63.
    pub scales: [u8; 8],
    /// Minima, from 0 to 63.
    pub minima: [u8; 8],
}

impl Scales {
    /// Unpacks the 12 bytes of a super-block.
    #[inline(always)]
    pub fn unpack(packed: &[u8; 12]) -> Self {
        let (mut scales, mut minima) = ([0; 8], [0; 8]);
        for g in 0..4 {
            scales[g] = packed[g] & 63;
            minima[g] = packed[g + 4] & 63;
            scales[g + 4] = (packed[g + 8] & 15) | (packed[g] >> 6 << 4);
            minima[g + 4] = (packed[g + 8] >> 4) | (packed[g + 4] >> 6 << 4);
        }
        Self { scales, minima }
    }

    /// The reverse of [`unpack`](Self::unpack), for values up to 63.
    pub fn pack(&self) -> [u8; 12] {
        let (s, m) = (&self.scales, &self.minima);
        let mut packed = [0; 12];
        for g in 0..4 {
            packed[g] = s[g] | (s[g + 4] >> 4 << 6);
            packed[g + 4] = m[g] | (m[g + 4] >> 4 << 6);
            packed[g + 8] = (s[g + 4] & 15) | (m[g + 4] << 4);
        }
        packed
    }
}

impl Q4K<'_> {
    /// The quants, from 0 to 15.
    #[inline(always)]
    fn quants(&self) -> [u8; 256] {
        unpack::<4, 32, _, _>(self.qs)
    }
}

/// Decodes quants with scales and minima, as Q4_K and Q5_K do.
#[inline(always)]
pub(crate) fn decode_affine(
    (d, dmin): (f32, f32),
    scales: &Scales,
    quants: &[u8; 256],
    out: &mut [f32; 256],
) {
    let (quants, _) = quants.as_chunks::<32>();
    let (out, _) = out.as_chunks_mut::<32>();
    for (g, (out, quants)) in out.iter_mut().zip(quants).enumerate() {
        let scale = d * f32::from(scales.scales[g]);
        let min = dmin * f32::from(scales.minima[g]);
        for (y, &q) in out.iter_mut().zip(quants) {
            *y = scale * f32::from(q) - min;
        }
    }
}

/// The dot product of quants with scales and minima, as Q4_K and Q5_K need it.
#[inline(always)]
pub(crate) fn dot_affine(
    (d, dmin): (f32, f32),
    scales: &Scales,
    quants: &[u8; 256],
    x: &Q8KSuperBlock,
) -> f32 {
    let quants = quants.map(|q| q as i8);
    let (quants, _) = quants.as_chunks::<32>();
    let (activations, _) = x.qs.as_chunks::<32>();
    let (sums, _) = x.sums.as_chunks::<2>();
    let (mut products, mut minima) = (0i32, 0i32);
    for g in 0..8 {
        products += i32::from(scales.scales[g]) * dot_i8(&quants[g], &activations[g]);
        let sum = i32::from(sums[g][0]) + i32::from(sums[g][1]);
        minima += i32::from(scales.minima[g]) * sum;
    }
    x.d * (d * products as f32 - dmin * minima as f32)
}

/// An encoded super-block of Q4_K or Q5_K, but for the packing of the quants.
pub(crate) struct AffineSuperBlock {
    pub(crate) d: [u8; 2],
    pub(crate) dmin: [u8; 2],
    pub(crate) scales: [u8; 12],
    pub(crate) quants: [u8; 256],
}

/// Encodes 256 values in 8 groups with scale and minimum, as Q4_K and Q5_K need it. Errors weigh
/// the magnitude of the value plus the root mean square of its group.
pub(crate) fn encode_affine(search: &AffineSearch, x: &[f32; 256]) -> AffineSuperBlock {
    let (groups, _) = x.as_chunks::<32>();
    let (mut scales, mut minima, mut quants) = ([0.0f32; 8], [0.0f32; 8], [0u8; 256]);
    let (quant_groups, _) = quants.as_chunks_mut::<32>();
    for (g, x) in groups.iter().enumerate() {
        let sum_of_squares = x.iter().fold(0.0f32, |sum, x| sum + x * x);
        let rms = (sum_of_squares / 32.0).sqrt();
        let fit = fit_affine(search, x, &x.map(|x| rms + x.abs()));
        (scales[g], minima[g], quant_groups[g]) = (fit.scale, fit.minimum, fit.quants);
    }

    // Six bits for each scale and each minimum, the largest of each becoming 63.
    let quantize = |values: &[f32; 8]| {
        let largest = values.iter().fold(0.0f32, |largest, &v| largest.max(v));
        let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
        let quantized = values.map(|v| (nearest_int(inverse * v) as u8).min(63));
        (write_f16(largest / 63.0), quantized)
    };
    let (d, scales) = quantize(&scales);
    let (dmin, minima) = quantize(&minima);

    // Round again, now with the scales as they are stored.
    for (g, (x, quants)) in groups.iter().zip(quant_groups).enumerate() {
        let scale = read_f16(&d) * f32::from(scales[g]);
        if scale == 0.0 {
            continue;
        }
        let min = read_f16(&dmin) * f32::from(minima[g]);
        *quants = x.map(|x| nearest_int((x + min) / scale).clamp(0, search.n_max) as u8);
    }
    AffineSuperBlock { d, dmin, scales: Scales { scales, minima }.pack(), quants }
}

impl Block for Q4K<'_> {
    const TYPE: WeightType = WeightType::Q4_K;
    type Bytes = [u8; 144];
    type Values = [f32; 256];
    const ENCODE: Option<Encoder<Self>> = Some(encode);

    #[inline(always)]
    fn decode(bytes: &[u8; 144], out: &mut [f32; 256]) {
        let block = Q4K::split(bytes);
        let scales = Scales::unpack(block.scales);
        decode_affine((read_f16(block.d), read_f16(block.dmin)), &scales, &block.quants(), out);
    }
}

impl IntegerDot for Q4K<'_> {
    type Activations = Q8KSuperBlock;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 144], _: usize, x: &Q8KSuperBlock) -> f32 {
        let block = Q4K::split(bytes);
        let scales = Scales::unpack(block.scales);
        dot_affine((read_f16(block.d), read_f16(block.dmin)), &scales, &block.quants(), x)
    }
}

const SEARCH: AffineSearch =
    AffineSearch { n_max: 15, first: -1.0, step: 0.1, n_steps: 20, absolute_error: false };

fn encode(x: &[f32; 256], out: &mut [u8; 144]) {
    let AffineSuperBlock { d, dmin, scales, quants } = encode_affine(&SEARCH, x);
    Q4K { d: &d, dmin: &dmin, scales: &scales, qs: &pack::<4, 32, _, _>(&quants) }.join(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_lie_where_the_diagram_says() {
        let scales = Scales {
            scales: [1, 2, 3, 4, 0b10_0101, 0b01_0110, 0b11_0111, 0b00_1000],
            minima: [9, 10, 11, 12, 0b01_1101, 0b10_1110, 0b00_1111, 0b11_0000],
        };
        let packed = [
            0b1000_0001,
            0b0100_0010,
            0b1100_0011,
            0b0000_0100,
            0b0100_1001,
            0b1000_1010,
            0b0000_1011,
            0b1100_1100,
            0b1101_0101,
            0b1110_0110,
            0b1111_0111,
            0b0000_1000,
        ];
        assert_eq!(scales.pack(), packed);
        assert_eq!(Scales::unpack(&packed), scales);
    }
}
