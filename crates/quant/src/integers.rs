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

/// Eight signs as [`Signs::apply`] takes them.
#[derive(Clone, Copy)]
pub(crate) struct Signs {
    /// 1 in the bytes of negative values.
    negative: u64,
    /// `2 OFFSET - 1` in them.
    ones: u64,
}

impl Signs {
    /// For each byte of signs, which are set if negative.
    pub(crate) const fn all(offset: u8) -> [Self; 256] {
        let mut all = [Self { negative: 0, ones: 0 }; 256];
        let mut signs = 0;
        while signs < 256 {
            let (mut negative, mut i) = (0, 0);
            while i < 8 {
                negative |= (signs as u64 >> i & 1) << (8 * i);
                i += 1;
            }
            all[signs] = Self { negative, ones: negative * (2 * offset as u64 - 1) };
            signs += 1;
        }
        all
    }

    /// For each seven signs; the eighth makes the number of negative ones even.
    pub(crate) const fn even(offset: u8) -> [Self; 128] {
        let all = Self::all(offset);
        let mut even = [all[0]; 128];
        let mut signs = 0;
        while signs < 128 {
            even[signs] = all[signs | (signs.count_ones() as usize & 1) << 7];
            signs += 1;
        }
        even
    }

    /// Gives signs to eight magnitudes that are stored `OFFSET` higher.
    #[inline(always)]
    pub(crate) fn apply(self, stored: u64) -> u64 {
        (stored ^ self.ones) + self.negative
    }
}

/// Vectors of eight magnitudes, stored `offset` higher.
pub(crate) const fn raised<const N: usize>(book: &[[u8; 8]; N], offset: u8) -> [u64; N] {
    let mut words = [0; N];
    let mut i = 0;
    while i < N {
        words[i] = u64::from_le_bytes(book[i]) + offset as u64 * EACH;
        i += 1;
    }
    words
}

/// The same of four.
pub(crate) const fn raised_4<const N: usize>(book: &[[u8; 4]; N], offset: u8) -> [u32; N] {
    let mut words = [0; N];
    let mut i = 0;
    while i < N {
        words[i] = u32::from_le_bytes(book[i]) + offset as u32 * EACH as u32;
        i += 1;
    }
    words
}

/// Two vectors of four.
#[inline(always)]
pub(crate) fn joined(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
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
        for (seven, signs) in Signs::even(64).iter().enumerate() {
            let negative = Signs::all(64)[seven].negative;
            assert_eq!(signs.negative & 0x00ff_ffff_ffff_ffff, negative);
            assert_eq!(signs.negative.count_ones() % 2, 0);
        }
    }

    #[test]
    fn signs_are_applied_to_each_byte() {
        for (offset, largest) in [(64, 62), (16, 15)] {
            for (bits, signs) in Signs::all(offset).into_iter().enumerate() {
                let magnitudes: [u8; 8] =
                    std::array::from_fn(|i| [1, largest, 8, largest - 1][(i + bits) % 4]);
                let [stored] = raised(&[magnitudes], offset);
                let stored = signs.apply(stored).to_le_bytes();
                for i in 0..8 {
                    let magnitude = i16::from(magnitudes[i]);
                    let value = if bits >> i & 1 == 1 { -magnitude } else { magnitude };
                    assert_eq!(i16::from(stored[i]) - i16::from(offset), value);
                }
            }
        }
    }
}
