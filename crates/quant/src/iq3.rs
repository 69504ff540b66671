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
use crate::iq2::{decode_vector, even_signs};
use crate::planes::unpack;

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

impl Block for Iq3Xxs<'_> {
    const TYPE: WeightType = WeightType::IQ3_XXS;
    type Bytes = [u8; 98];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 98], out: &mut [f32; 256]) {
        let block = Iq3Xxs::split(bytes);
        let d = read_f16(block.d);
        let (words, _) = block.signs.as_chunks::<4>();
        let (vectors, _) = out.as_chunks_mut::<4>();
        for (i, (out, &index)) in vectors.iter_mut().zip(block.qs).enumerate() {
            let word = u32::from_le_bytes(words[i / 8]);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            // Two vectors share eight signs.
            let signs = even_signs(word >> (7 * (i / 2 % 4))) >> (4 * (i % 2));
            decode_vector(scale, &code_books::IQ3_XXS[usize::from(index)], signs, out);
        }
    }
}

impl Block for Iq3S<'_> {
    const TYPE: WeightType = WeightType::IQ3_S;
    type Bytes = [u8; 110];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 110], out: &mut [f32; 256]) {
        let block = Iq3S::split(bytes);
        let d = read_f16(block.d);
        let scales: [u8; 8] = unpack::<4, 1, _, _>(block.scales);
        let high: [u8; 64] = unpack::<1, 1, _, _>(block.qh);
        let (vectors, _) = out.as_chunks_mut::<4>();
        for (i, (out, &low)) in vectors.iter_mut().zip(block.qs).enumerate() {
            let scale = d * f32::from(2 * scales[i / 8] + 1);
            let index = usize::from(low) | usize::from(high[i]) << 8;
            let signs = block.signs[i / 2] >> (4 * (i % 2));
            decode_vector(scale, &code_books::IQ3_S[index & 511], signs, out);
        }
    }
}
