//! Super-blocks whose values are integers times integer scales times one factor.
//!
//! ```text
//! x = factor * scale[group] * (stored - OFFSET)
//! ```
//!
//! Stored integers are bytes from 0 to `MAX`, eight in a word, as products of bytes take them. Books of
//! magnitudes come with their signs applied to eight at a time: with `OFFSET` a power of two and
//! `t = OFFSET + magnitude`, what is stored for a negative value is `(t ^ (2 OFFSET - 1)) + 1`, and no byte
//! carries into its neighbour.

use crate::block::{Block, IntegerDot};
use crate::q8_k::Q8KSuperBlock;

/// A super-block of 256 integers with scales.
pub trait ScaledIntegers: Block<Values = [f32; 256]> {
    /// Values that share a scale: 16 or 32.
    const GROUP: usize;
    /// How much higher than their values the integers are stored.
    const OFFSET: u8;
    /// The largest stored integer.
    const MAX: u8;

    /// What all values are multiplied with.
    fn factor(bytes: &Self::Bytes) -> f32;

    /// The scales of the groups, in order. The first `256 / GROUP` count.
    fn scales(bytes: &Self::Bytes) -> [i8; 16];

    /// Calls `f` with the stored integers, eight in a word from the lowest byte on, and which of 32 words
    /// it is, in order.
    fn for_each(bytes: &Self::Bytes, f: impl FnMut(usize, u64));
}

/// Each byte of a word.
pub(crate) const EACH: u64 = 0x0101_0101_0101_0101;

/// For eight signs, set if negative, 1 in the bytes of the negative values.
pub(crate) static NEGATIVE: [u64; 256] = {
    let mut words = [0; 256];
    let mut signs = 0;
    while signs < 256 {
        let mut i = 0;
        while i < 8 {
            words[signs] |= (signs as u64 >> i & 1) << (8 * i);
            i += 1;
        }
        signs += 1;
    }
    words
};

/// The same for seven signs: the eighth makes the number of negative ones even.
pub(crate) static EVEN_NEGATIVE: [u64; 128] = {
    let mut words = [0; 128];
    let mut signs = 0;
    while signs < 128 {
        words[signs] = NEGATIVE[signs] | (signs.count_ones() as u64 & 1) << 56;
        signs += 1;
    }
    words
};

/// Eight magnitudes stored `offset` higher, with a 1 in the bytes of those that are negative.
#[inline(always)]
pub(crate) fn signed(magnitudes: u64, negative: u64, offset: u8) -> u64 {
    let (offset, ones) = (u64::from(offset), 2 * u64::from(offset) - 1);
    ((magnitudes + offset * EACH) ^ negative * ones) + negative
}

/// Eight magnitudes of two vectors of four.
#[inline(always)]
pub(crate) fn joined(first: [u8; 4], second: [u8; 4]) -> u64 {
    u64::from(u32::from_le_bytes(first)) | u64::from(u32::from_le_bytes(second)) << 32
}

/// Calls `f` with bytes in words.
#[inline(always)]
pub(crate) fn for_each_word(bytes: &[u8; 256], mut f: impl FnMut(usize, u64)) {
    for (i, word) in bytes.as_chunks().0.iter().enumerate() {
        f(i, u64::from_le_bytes(*word));
    }
}

/// [`Block::decode`] of these types.
#[inline(always)]
pub(crate) fn decode<B: ScaledIntegers>(bytes: &B::Bytes, out: &mut [f32; 256]) {
    let (factor, scales) = (B::factor(bytes), B::scales(bytes));
    let (vectors, _) = out.as_chunks_mut::<8>();
    B::for_each(bytes, |i, word| {
        let scale = factor * f32::from(scales[8 * i / B::GROUP]);
        for (y, stored) in vectors[i].iter_mut().zip(word.to_le_bytes()) {
            *y = scale * (f32::from(stored) - f32::from(B::OFFSET));
        }
    });
}

impl<B: ScaledIntegers> IntegerDot for B {
    type Activations = Q8KSuperBlock;

    #[inline(always)]
    fn dot_block(bytes: &B::Bytes, x: &Q8KSuperBlock) -> f32 {
        let scales = B::scales(bytes);
        let (vectors, _) = x.qs.as_chunks::<8>();
        let mut products = 0i32;
        B::for_each(bytes, |i, word| {
            let mut dot = 0;
            for (x, stored) in vectors[i].iter().zip(word.to_le_bytes()) {
                dot += i32::from(*x) * (i32::from(stored) - i32::from(B::OFFSET));
            }
            products += i32::from(scales[8 * i / B::GROUP]) * dot;
        });
        x.d * B::factor(bytes) * products as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_negative_signs_is_even() {
        for (seven, negative) in EVEN_NEGATIVE.iter().enumerate() {
            assert_eq!(negative & 0x00ff_ffff_ffff_ffff, NEGATIVE[seven]);
            assert_eq!(negative.count_ones() % 2, 0);
        }
    }

    #[test]
    fn signs_are_applied_to_each_byte() {
        for (offset, largest) in [(64, 62), (16, 15)] {
            for signs in 0..=255u8 {
                let magnitudes: [u8; 8] = std::array::from_fn(|i| {
                    [1, largest, 8, largest - 1][(i + usize::from(signs)) % 4].min(largest)
                });
                let stored =
                    signed(u64::from_le_bytes(magnitudes), NEGATIVE[usize::from(signs)], offset)
                        .to_le_bytes();
                for i in 0..8 {
                    let magnitude = i16::from(magnitudes[i]);
                    let value = if signs >> i & 1 == 1 { -magnitude } else { magnitude };
                    assert_eq!(i16::from(stored[i]) - i16::from(offset), value);
                }
            }
        }
    }
}
