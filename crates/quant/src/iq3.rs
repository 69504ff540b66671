//! IQ3_XXS and IQ3_S: super-blocks of 256 values; 4 values are an index of a book of magnitudes.
//!
//! ```text
//! IQ3_XXS (98 bytes, 3.0625 bits a value)  | d: f16 | qs: 64 bytes | signs: 8 × u32 |
//!   u32:     of a group of 32: four times 7 sign bits, then 4 bits of scale
//!            x = d * (scale + 1/2) / 2 * magnitude * sign
//!
//! IQ3_S (110 bytes, 3.4375 bits a value)   | d: f16 | qs: 64 bytes | qh: 8 bytes |
//!                                          | signs: 32 bytes | scales: 4 bytes |
//!   qh:      ninth bits of the indices, in order
//!   scales:  of groups of 32, four bits each, in order
//!            x = d * (2 * scale + 1) * magnitude * sign
//! ```

use crate::WeightType;
use crate::block::{Block, block_layout};
use crate::code_books;
use crate::float::read_f16;
use crate::integers::{self, ScaledIntegers, both_signs, raised_4};
use crate::iq2::{even_signs, odd, odd_scales};

block_layout! {
    /// View of an IQ3_XXS super-block.
    Iq3Xxs {
        /// Scale of the scales, f16.
        d: 2,
        /// 64 indices.
        qs: 64,
        /// Signs and scales of 8 groups.
        signs: 32,
    }
}

block_layout! {
    /// View of an IQ3_S super-block.
    Iq3S {
        /// Scale of the scales, f16.
        d: 2,
        /// Lower eight bits of 64 indices.
        qs: 64,
        /// Ninth bits of 64 indices.
        qh: 8,
        /// A sign bit for each value, set if negative.
        signs: 32,
        /// 4-bit scales of 8 groups.
        scales: 4,
    }
}

/// Magnitudes of IQ3_XXS, up to 62, are stored so much higher, and those of IQ3_S, up to 15.
const OFFSET_XXS: u8 = 64;
const OFFSET_S: u8 = 16;
const LEVELS_XXS: [u8; 16] = both_signs(code_books::IQ3_XXS_LEVELS, OFFSET_XXS);
const LEVELS_S: [u8; 16] = both_signs(code_books::IQ3_S_LEVELS, OFFSET_S);
static XXS: [u32; 256] = raised_4(&code_books::IQ3_XXS, OFFSET_XXS);
static S: [u32; 512] = raised_4(&code_books::IQ3_S, OFFSET_S);

impl Block for Iq3Xxs<'_> {
    const TYPE: WeightType = WeightType::IQ3_XXS;
    type Bytes = [u8; 98];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 98], out: &mut [f32; 256]) {
        integers::decode::<Self>(bytes, out);
    }
}

impl Iq3Xxs<'_> {
    /// Signs with a scale of 8 groups.
    #[inline(always)]
    fn signs_and_scales(&self) -> [u32; 8] {
        let (words, _) = self.signs.as_chunks();
        std::array::from_fn(|g| u32::from_le_bytes(words[g]))
    }
}

/// `x = d / 4 * (2 scale + 1) * magnitude * sign`.
impl ScaledIntegers for Iq3Xxs<'_> {
    const GROUP: usize = 32;
    const OFFSET: u8 = OFFSET_XXS;
    const LEVELS: &'static [u8] = &LEVELS_XXS;
    const MAX: u8 = OFFSET_XXS + 62;

    #[inline(always)]
    fn factor(bytes: &[u8; 98]) -> f32 {
        read_f16(Iq3Xxs::split(bytes).d) * 0.25
    }

    #[inline(always)]
    fn scales(bytes: &[u8; 98]) -> [i8; 16] {
        odd_scales(Iq3Xxs::split(bytes).signs_and_scales())
    }

    const SIGNED: bool = true;

    #[inline(always)]
    fn signs(bytes: &[u8; 98]) -> [u32; 8] {
        even_signs(Iq3Xxs::split(bytes).signs_and_scales())
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 98], stored: &mut [u8; 256]) {
        let (vectors, _) = stored.as_chunks_mut::<4>();
        for (vector, index) in vectors.iter_mut().zip(Iq3Xxs::split(bytes).qs) {
            *vector = XXS[usize::from(*index)].to_le_bytes();
        }
    }
}

impl Block for Iq3S<'_> {
    const TYPE: WeightType = WeightType::IQ3_S;
    type Bytes = [u8; 110];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 110], out: &mut [f32; 256]) {
        integers::decode::<Self>(bytes, out);
    }
}

impl ScaledIntegers for Iq3S<'_> {
    const GROUP: usize = 32;
    const OFFSET: u8 = OFFSET_S;
    const LEVELS: &'static [u8] = &LEVELS_S;
    const MAX: u8 = OFFSET_S + 15;

    #[inline(always)]
    fn factor(bytes: &[u8; 110]) -> f32 {
        read_f16(Iq3S::split(bytes).d)
    }

    #[inline(always)]
    fn scales(bytes: &[u8; 110]) -> [i8; 16] {
        let mut scales = [0; 16];
        let stored = u32::from_le_bytes(*Iq3S::split(bytes).scales);
        for (g, scale) in scales[..8].iter_mut().enumerate() {
            *scale = odd((stored >> (4 * g)) as u8 & 15);
        }
        scales
    }

    const SIGNED: bool = true;

    #[inline(always)]
    fn signs(bytes: &[u8; 110]) -> [u32; 8] {
        let (signs, _) = Iq3S::split(bytes).signs.as_chunks();
        std::array::from_fn(|g| u32::from_le_bytes(signs[g]))
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 110], stored: &mut [u8; 256]) {
        let block = Iq3S::split(bytes);
        let (low, _) = block.qs.as_chunks::<8>();
        let (vectors, _) = stored.as_chunks_mut::<4>();
        let (vectors, _) = vectors.as_chunks_mut::<8>();
        for ((vectors, low), high) in vectors.iter_mut().zip(low).zip(block.qh) {
            for i in 0..8 {
                let ninth = usize::from(*high) << 8 >> i & 256;
                vectors[i] = S[usize::from(low[i]) | ninth].to_le_bytes();
            }
        }
    }
}
