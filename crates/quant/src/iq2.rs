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
use crate::integers::{self, ScaledIntegers, signed};
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

/// Magnitudes, up to 43, are stored so much higher.
const OFFSET: u8 = 64;
const MAX: u8 = 64 + 43;

/// Eight magnitudes of a book with their signs.
#[inline(always)]
fn vector(magnitudes: &[u8; 8], signs: u8) -> u64 {
    signed(u64::from_le_bytes(*magnitudes), signs, OFFSET)
}

/// Scales of 16 groups: `x = d / 8 * (2 scale + 1) * magnitude * sign`.
#[inline(always)]
fn scales_of(bytes: &[u8; 8]) -> [i8; 16] {
    unpack::<4, 1, _, _>(bytes).map(odd)
}

/// `2 scale + 1`.
#[inline(always)]
pub(crate) fn odd(scale: u8) -> i8 {
    (2 * scale + 1) as i8
}

impl Block for Iq2Xxs<'_> {
    const TYPE: WeightType = WeightType::IQ2_XXS;
    type Bytes = [u8; 66];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 66], out: &mut [f32; 256]) {
        integers::decode::<Self>(bytes, out);
    }
}

impl Iq2Xxs<'_> {
    /// Indices, and signs with a scale, of 8 groups.
    #[inline(always)]
    fn groups(&self) -> &[[[u8; 4]; 2]] {
        self.qs.as_chunks().0.as_chunks().0
    }
}

impl ScaledIntegers for Iq2Xxs<'_> {
    const GROUP: usize = 32;
    const OFFSET: u8 = OFFSET;
    const MAX: u8 = MAX;

    #[inline(always)]
    fn factor(bytes: &[u8; 66]) -> f32 {
        read_f16(Iq2Xxs::split(bytes).d) * 0.125
    }

    #[inline(always)]
    fn scales(bytes: &[u8; 66]) -> [i8; 16] {
        let block = Iq2Xxs::split(bytes);
        let mut scales = [0; 16];
        for (scale, [_, signs]) in scales.iter_mut().zip(block.groups()) {
            *scale = odd(signs[3] >> 4);
        }
        scales
    }

    #[inline(always)]
    fn stored(bytes: &[u8; 66]) -> [u64; 32] {
        let block = Iq2Xxs::split(bytes);
        let mut stored = [0; 32];
        let (vectors, _) = stored.as_chunks_mut::<4>();
        for (vectors, [indices, signs]) in vectors.iter_mut().zip(block.groups()) {
            let signs = u32::from_le_bytes(*signs);
            for (l, (to, index)) in vectors.iter_mut().zip(indices).enumerate() {
                let magnitudes = &code_books::IQ2_XXS[usize::from(*index)];
                *to = vector(magnitudes, even_signs(signs >> (7 * l)));
            }
        }
        stored
    }
}

impl Block for Iq2Xs<'_> {
    const TYPE: WeightType = WeightType::IQ2_XS;
    type Bytes = [u8; 74];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 74], out: &mut [f32; 256]) {
        integers::decode::<Self>(bytes, out);
    }
}

impl ScaledIntegers for Iq2Xs<'_> {
    const GROUP: usize = 16;
    const OFFSET: u8 = OFFSET;
    const MAX: u8 = MAX;

    #[inline(always)]
    fn factor(bytes: &[u8; 74]) -> f32 {
        read_f16(Iq2Xs::split(bytes).d) * 0.125
    }

    #[inline(always)]
    fn scales(bytes: &[u8; 74]) -> [i8; 16] {
        scales_of(Iq2Xs::split(bytes).scales)
    }

    #[inline(always)]
    fn stored(bytes: &[u8; 74]) -> [u64; 32] {
        let (words, _) = Iq2Xs::split(bytes).qs.as_chunks::<2>();
        std::array::from_fn(|i| {
            let word = u16::from_le_bytes(words[i]);
            let magnitudes = &code_books::IQ2_XS[usize::from(word & 511)];
            vector(magnitudes, even_signs(u32::from(word >> 9)))
        })
    }
}

impl Block for Iq2S<'_> {
    const TYPE: WeightType = WeightType::IQ2_S;
    type Bytes = [u8; 82];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 82], out: &mut [f32; 256]) {
        integers::decode::<Self>(bytes, out);
    }
}

impl ScaledIntegers for Iq2S<'_> {
    const GROUP: usize = 16;
    const OFFSET: u8 = OFFSET;
    const MAX: u8 = MAX;

    #[inline(always)]
    fn factor(bytes: &[u8; 82]) -> f32 {
        read_f16(Iq2S::split(bytes).d) * 0.125
    }

    #[inline(always)]
    fn scales(bytes: &[u8; 82]) -> [i8; 16] {
        scales_of(Iq2S::split(bytes).scales)
    }

    #[inline(always)]
    fn stored(bytes: &[u8; 82]) -> [u64; 32] {
        let block = Iq2S::split(bytes);
        let high: [u8; 32] = unpack::<2, 1, _, _>(block.qh);
        std::array::from_fn(|i| {
            let index = usize::from(block.qs[i]) | usize::from(high[i]) << 8;
            vector(&code_books::IQ2_S[index & 1023], block.signs[i])
        })
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
