//! IQ2_XXS, IQ2_XS and IQ2_S: super-blocks of 256 values; 8 values are an index of a book of
//! magnitudes and 8 signs.
//!
//! ```text
//! IQ2_XXS (66 bytes, 2.0625 bits a value)  | d: f16 | qs: 8 × (4 bytes, u32) |
//!   group of 32:    4 indices; u32: four times 7 sign bits, then 4 bits of scale
//!
//! IQ2_XS (74 bytes, 2.3125 bits a value)   | d: f16 | qs: 32 × u16 | scales: 8 bytes |
//!   u16:            9 bits of index, 7 sign bits
//!
//! IQ2_S (82 bytes, 2.5625 bits a value)    | d: f16 | qs: 32 bytes | signs: 32 bytes |
//!                                          | qh: 8 bytes | scales: 8 bytes |
//!   qh:             upper two bits of the indices, in order
//!
//! scales: of groups of 16, four bits each, in order
//! x = d * (scale + 1/2) / 4 * magnitude * sign
//! ```
//!
//! Of 8 signs the first types store 7: the number of negative ones is even.

use crate::WeightType;
use crate::block::{Block, block_layout};
use crate::code_books;
use crate::float::read_f16;
use crate::planes::unpack;

block_layout! {
    /// View of an IQ2_XXS super-block.
    Iq2Xxs {
        /// Scale of the scales, f16.
        d: 2,
        /// Indices, signs and scales of 8 groups.
        qs: 64,
    }
}

block_layout! {
    /// View of an IQ2_XS super-block.
    Iq2Xs {
        /// Scale of the scales, f16.
        d: 2,
        /// 32 indices with signs.
        qs: 64,
        /// 4-bit scales of 16 groups.
        scales: 8,
    }
}

block_layout! {
    /// View of an IQ2_S super-block.
    Iq2S {
        /// Scale of the scales, f16.
        d: 2,
        /// Lower eight bits of 32 indices.
        qs: 32,
        /// A sign bit for each value, set if negative.
        signs: 32,
        /// Upper two bits of 32 indices.
        qh: 8,
        /// 4-bit scales of 16 groups.
        scales: 8,
    }
}

/// Eight signs of seven: the eighth makes the number of negative ones even. Other bits of
/// `seven` are ignored.
#[inline(always)]
pub(crate) fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// Decodes a vector of magnitudes whose signs are the lowest bits of `signs`.
#[inline(always)]
pub(crate) fn decode_vector<const N: usize>(
    scale: f32,
    magnitudes: &[u8; N],
    signs: u8,
    out: &mut [f32; N],
) {
    for (j, (y, &magnitude)) in out.iter_mut().zip(magnitudes).enumerate() {
        let sign = u32::from(signs >> j & 1) << 31;
        *y = f32::from_bits((scale * f32::from(magnitude)).to_bits() ^ sign);
    }
}

#[inline(always)]
fn group_scale(d: f32, scale: u8) -> f32 {
    d * (0.5 + f32::from(scale)) * 0.25
}

impl Block for Iq2Xxs<'_> {
    const TYPE: WeightType = WeightType::IQ2_XXS;
    type Bytes = [u8; 66];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 66], out: &mut [f32; 256]) {
        let block = Iq2Xxs::split(bytes);
        let d = read_f16(block.d);
        let (words, _) = block.qs.as_chunks::<4>();
        let (pairs, _) = words.as_chunks::<2>();
        let (vectors, _) = out.as_chunks_mut::<8>();
        let (groups, _) = vectors.as_chunks_mut::<4>();
        for (group, &[indices, signs]) in groups.iter_mut().zip(pairs) {
            let signs = u32::from_le_bytes(signs);
            let scale = group_scale(d, (signs >> 28) as u8);
            for (l, (out, index)) in group.iter_mut().zip(indices).enumerate() {
                let magnitudes = &code_books::IQ2_XXS[usize::from(index)];
                decode_vector(scale, magnitudes, even_signs(signs >> (7 * l)), out);
            }
        }
    }
}

impl Block for Iq2Xs<'_> {
    const TYPE: WeightType = WeightType::IQ2_XS;
    type Bytes = [u8; 74];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 74], out: &mut [f32; 256]) {
        let block = Iq2Xs::split(bytes);
        let d = read_f16(block.d);
        let scales: [u8; 16] = unpack::<4, 1, _, _>(block.scales);
        let (words, _) = block.qs.as_chunks::<2>();
        let (vectors, _) = out.as_chunks_mut::<8>();
        for (i, (out, &word)) in vectors.iter_mut().zip(words).enumerate() {
            let word = u16::from_le_bytes(word);
            let magnitudes = &code_books::IQ2_XS[usize::from(word & 511)];
            let signs = even_signs(u32::from(word >> 9));
            decode_vector(group_scale(d, scales[i / 2]), magnitudes, signs, out);
        }
    }
}

impl Block for Iq2S<'_> {
    const TYPE: WeightType = WeightType::IQ2_S;
    type Bytes = [u8; 82];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 82], out: &mut [f32; 256]) {
        let block = Iq2S::split(bytes);
        let d = read_f16(block.d);
        let scales: [u8; 16] = unpack::<4, 1, _, _>(block.scales);
        let high: [u8; 32] = unpack::<2, 1, _, _>(block.qh);
        let (vectors, _) = out.as_chunks_mut::<8>();
        for (i, out) in vectors.iter_mut().enumerate() {
            let index = usize::from(block.qs[i]) | usize::from(high[i]) << 8;
            let magnitudes = &code_books::IQ2_S[index & 1023];
            decode_vector(group_scale(d, scales[i / 2]), magnitudes, block.signs[i], out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::even_signs;

    #[test]
    fn the_number_of_negative_signs_is_even() {
        for seven in 0..=127u32 {
            let signs = even_signs(seven);
            assert_eq!(u32::from(signs & 127), seven);
            assert_eq!(signs.count_ones() % 2, 0);
        }
    }
}
