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
use crate::integers::{self, ScaledIntegers, both_signs, raised, sevens, with_eighth};
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

/// Magnitudes, up to 43, are stored so much higher.
const OFFSET: u8 = 64;
const MAX: u8 = 64 + 43;
const LEVELS: [u8; 8] = both_signs(code_books::IQ2_LEVELS, OFFSET);

static XXS: [u64; 256] = raised(&code_books::IQ2_XXS, OFFSET);
static XS: [u64; 512] = raised(&code_books::IQ2_XS, OFFSET);
static S: [u64; 1024] = raised(&code_books::IQ2_S, OFFSET);

/// Scales of 16 groups: `x = d / 8 * (2 scale + 1) * magnitude * sign`.
#[inline(always)]
fn scales_of(bytes: &[u8; 8]) -> [i8; 16] {
    let stored: [u8; 16] = unpack::<4, 1, _, _>(bytes);
    std::array::from_fn(|g| odd(stored[g]))
}

/// `2 scale + 1`.
#[inline(always)]
pub(crate) fn odd(scale: u8) -> i8 {
    (2 * scale + 1) as i8
}

/// The scales of 8 groups that lie above 28 bits of signs.
#[inline(always)]
pub(crate) fn odd_scales(words: [u32; 8]) -> [i8; 16] {
    let mut scales = [0; 16];
    for (scale, word) in scales.iter_mut().zip(words) {
        *scale = odd((word >> 28) as u8);
    }
    scales
}

/// The signs of 8 groups, of which the lower 28 bits have seven of each eight.
#[inline(always)]
pub(crate) fn even_signs(mut words: [u32; 8]) -> [u32; 8] {
    for word in &mut words {
        *word = with_eighth(sevens(*word));
    }
    words
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

    /// Signs with a scale of 8 groups.
    #[inline(always)]
    fn signs_and_scales(&self) -> [u32; 8] {
        let groups = self.groups();
        std::array::from_fn(|g| u32::from_le_bytes(groups[g][1]))
    }
}

impl ScaledIntegers for Iq2Xxs<'_> {
    const GROUP: usize = 32;
    const OFFSET: u8 = OFFSET;
    const LEVELS: &'static [u8] = &LEVELS;
    const MAX: u8 = MAX;

    #[inline(always)]
    fn factor(bytes: &[u8; 66]) -> f32 {
        read_f16(Iq2Xxs::split(bytes).d) * 0.125
    }

    #[inline(always)]
    fn scales(bytes: &[u8; 66]) -> [i8; 16] {
        odd_scales(Iq2Xxs::split(bytes).signs_and_scales())
    }

    const SIGNED: bool = true;

    #[inline(always)]
    fn signs(bytes: &[u8; 66]) -> [u32; 8] {
        even_signs(Iq2Xxs::split(bytes).signs_and_scales())
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 66], stored: &mut [u8; 256]) {
        let (vectors, _) = stored.as_chunks_mut::<8>();
        for (g, [indices, _]) in Iq2Xxs::split(bytes).groups().iter().enumerate() {
            for (l, index) in indices.iter().enumerate() {
                vectors[4 * g + l] = XXS[usize::from(*index)].to_le_bytes();
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
        integers::decode::<Self>(bytes, out);
    }
}

impl ScaledIntegers for Iq2Xs<'_> {
    const GROUP: usize = 16;
    const OFFSET: u8 = OFFSET;
    const LEVELS: &'static [u8] = &LEVELS;
    const MAX: u8 = MAX;

    #[inline(always)]
    fn factor(bytes: &[u8; 74]) -> f32 {
        read_f16(Iq2Xs::split(bytes).d) * 0.125
    }

    #[inline(always)]
    fn scales(bytes: &[u8; 74]) -> [i8; 16] {
        scales_of(Iq2Xs::split(bytes).scales)
    }

    const SIGNED: bool = true;

    #[inline(always)]
    fn signs(bytes: &[u8; 74]) -> [u32; 8] {
        let (words, _) = Iq2Xs::split(bytes).qs.as_chunks();
        std::array::from_fn(|g| {
            // The upper seven bits of each 16, moved together.
            let sevens = u64::from_le_bytes(words[g]) >> 9 & 0x007f_007f_007f_007f;
            let sevens = (sevens | sevens >> 8) & 0x0000_7f7f_0000_7f7f;
            with_eighth((sevens | sevens >> 16) as u32)
        })
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 74], stored: &mut [u8; 256]) {
        let (vectors, _) = stored.as_chunks_mut::<8>();
        let (words, _) = Iq2Xs::split(bytes).qs.as_chunks::<2>();
        for (i, word) in words.iter().enumerate() {
            vectors[i] = XS[usize::from(u16::from_le_bytes(*word) & 511)].to_le_bytes();
        }
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
    const LEVELS: &'static [u8] = &LEVELS;
    const MAX: u8 = MAX;

    #[inline(always)]
    fn factor(bytes: &[u8; 82]) -> f32 {
        read_f16(Iq2S::split(bytes).d) * 0.125
    }

    #[inline(always)]
    fn scales(bytes: &[u8; 82]) -> [i8; 16] {
        scales_of(Iq2S::split(bytes).scales)
    }

    const SIGNED: bool = true;

    #[inline(always)]
    fn signs(bytes: &[u8; 82]) -> [u32; 8] {
        let (signs, _) = Iq2S::split(bytes).signs.as_chunks();
        std::array::from_fn(|g| u32::from_le_bytes(signs[g]))
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 82], stored: &mut [u8; 256]) {
        let (vectors, _) = stored.as_chunks_mut::<8>();
        let block = Iq2S::split(bytes);
        let mut indices = [[0u16; 4]; 8];
        let (low, _) = block.qs.as_chunks::<4>();
        for ((indices, low), high) in indices.iter_mut().zip(low).zip(block.qh) {
            for l in 0..4 {
                indices[l] = u16::from(low[l]) | (u16::from(*high) << (8 - 2 * l)) & 0x300;
            }
        }
        for (i, index) in indices.as_flattened().iter().enumerate() {
            vectors[i] = S[usize::from(index & 1023)].to_le_bytes();
        }
    }
}
