//! Super-blocks whose values are integers times integer scales times one factor.
//!
//! ```text
//! x = factor * scale[group] * (stored - OFFSET)
//! ```
//!
//! Stored integers are bytes from 0 to `MAX`, eight in a word, as products of bytes take them. What books of
//! magnitudes give has signs beside it, which are applied to many at a time: with `OFFSET` a power of two and
//! `t = OFFSET + magnitude`, what is stored for a negative value is `2 OFFSET - t = (t ^ (2 OFFSET - 1)) + 1`,
//! and no byte carries into its neighbour.

use crate::block::{Block, IntegerDot};
use crate::q8_k::Q8KSuperBlock;

/// A super-block of 256 integers with scales.
pub trait ScaledIntegers: Block<Values = [f32; 256]> {
    /// Values that share a scale: 16 or 32.
    const GROUP: usize;
    /// How much higher than their values the integers are stored.
    const OFFSET: u8;
    /// The integers that are stored, at most 16.
    const LEVELS: &'static [u8];
    /// The largest of them.
    const MAX: u8;

    /// What all values are multiplied with.
    fn factor(bytes: &Self::Bytes) -> f32;

    /// The scales of the groups, in order. The first `256 / GROUP` count.
    fn scales(bytes: &Self::Bytes) -> [i8; 16];

    /// Whether values have signs that [`unpack`](Self::unpack) leaves out.
    const SIGNED: bool;

    /// The signs of each 32 values, the first in the lowest bit, set if negative.
    fn signs(bytes: &Self::Bytes) -> [u32; 8];

    /// The stored integers, those of magnitudes where there are signs.
    fn unpack(bytes: &Self::Bytes, stored: &mut [u8; 256]);

    /// The stored integers with their signs.
    #[inline(always)]
    fn stored(bytes: &Self::Bytes) -> [u8; 256] {
        let mut stored = [0; 256];
        Self::unpack(bytes, &mut stored);
        if Self::SIGNED {
            let signs = Self::signs(bytes).map(u32::to_le_bytes);
            let (words, _) = stored.as_chunks_mut::<8>();
            for (word, signs) in words.iter_mut().zip(signs.as_flattened()) {
                let negative = bits(*signs);
                let ones = negative * (2 * u64::from(Self::OFFSET) - 1);
                *word = ((u64::from_le_bytes(*word) ^ ones) + negative).to_le_bytes();
            }
        }
        stored
    }
}

/// Each byte of a word.
pub(crate) const EACH: u64 = 0x0101_0101_0101_0101;

/// Eight bits as bytes of a word, the lowest first: 0 or 1.
#[inline(always)]
fn bits(byte: u8) -> u64 {
    const EACH_BIT: u64 = 0x8040_2010_0804_0201;
    let bits = u64::from(byte).wrapping_mul(EACH) & EACH_BIT;
    // 127 more reaches the upper bit from any other, and no neighbour.
    ((bits + 0x7f * EACH) | bits) >> 7 & EACH
}

/// Signs of four bytes with seven each, the lowest bits: the eighth makes the number of negative ones even.
#[inline(always)]
pub(crate) fn with_eighth(signs: u32) -> u32 {
    let mut parity = signs;
    for shift in [4, 2, 1] {
        parity ^= parity >> shift;
    }
    signs | (parity & EACH as u32) << 7
}

/// Four times seven bits, as four bytes.
#[inline(always)]
pub(crate) fn sevens(bits: u32) -> u32 {
    let seven = 0x7f_u32;
    bits & seven | (bits & seven << 7) << 1 | (bits & seven << 14) << 2 | (bits & seven << 21) << 3
}

/// Magnitudes with either sign, stored `offset` higher.
pub(crate) const fn both_signs<const N: usize, const LEVELS: usize>(
    magnitudes: [u8; N],
    offset: u8,
) -> [u8; LEVELS] {
    assert!(LEVELS == 2 * N);
    let mut levels = [0; LEVELS];
    let mut i = 0;
    while i < N {
        levels[i] = offset + magnitudes[i];
        levels[N + i] = offset - magnitudes[i];
        i += 1;
    }
    levels
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

/// [`Block::decode`] of these types.
#[inline(always)]
pub(crate) fn decode<B: ScaledIntegers>(bytes: &B::Bytes, out: &mut [f32; 256]) {
    let (factor, scales) = (B::factor(bytes), B::scales(bytes));
    let stored = B::stored(bytes);
    let groups = out.chunks_exact_mut(B::GROUP).zip(stored.chunks_exact(B::GROUP));
    for ((out, stored), scale) in groups.zip(scales) {
        let scale = factor * f32::from(scale);
        for (y, stored) in out.iter_mut().zip(stored) {
            *y = scale * (f32::from(*stored) - f32::from(B::OFFSET));
        }
    }
}

impl<B: ScaledIntegers> IntegerDot for B {
    type Activations = Q8KSuperBlock;

    #[inline(always)]
    fn dot_part(bytes: &B::Bytes, _: usize, x: &Q8KSuperBlock) -> f32 {
        let stored = B::stored(bytes);
        let groups = x.qs.chunks_exact(B::GROUP).zip(stored.chunks_exact(B::GROUP));
        let mut products = 0i32;
        for ((x, stored), scale) in groups.zip(B::scales(bytes)) {
            let mut dot = 0;
            for (x, stored) in x.iter().zip(stored) {
                dot += i32::from(*x) * (i32::from(*stored) - i32::from(B::OFFSET));
            }
            products += i32::from(scale) * dot;
        }
        x.d * B::factor(bytes) * products as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Array;

    #[test]
    fn the_number_of_negative_signs_is_even() {
        for seven in 0..128u32 {
            let [first, .., last] = with_eighth(sevens(seven | seven << 21)).to_le_bytes();
            assert_eq!((first, u32::from(first & 127)), (last, seven));
            assert_eq!(first.count_ones() % 2, 0);
        }
    }

    #[test]
    fn no_other_integers_than_the_levels_are_stored() {
        fn check<B: ScaledIntegers>() {
            let mut random = fastrand::Rng::with_seed(1);
            let mut found = [false; 256];
            for _ in 0..500 {
                let bytes: Vec<u8> = (0..B::BYTES).map(|_| random.u8(..)).collect();
                let (blocks, _) = B::Bytes::chunks(&bytes);
                for stored in B::stored(&blocks[0]) {
                    found[usize::from(stored)] = true;
                }
            }
            let levels = |stored: &usize| B::LEVELS.contains(&(*stored as u8));
            let found: Vec<usize> = (0..256).filter(|stored| found[*stored]).collect();
            assert!(found.iter().all(levels), "{}: {found:?}", B::TYPE);
            assert_eq!(found.last(), Some(&usize::from(B::MAX)), "{}", B::TYPE);
        }
        check::<crate::Iq1S<'_>>();
        check::<crate::Iq1M<'_>>();
        check::<crate::Iq2Xxs<'_>>();
        check::<crate::Iq2Xs<'_>>();
        check::<crate::Iq2S<'_>>();
        check::<crate::Iq3Xxs<'_>>();
        check::<crate::Iq3S<'_>>();
        check::<crate::Tq1_0<'_>>();
        check::<crate::Tq2_0<'_>>();
    }

    #[test]
    fn bits_become_bytes() {
        for byte in 0..=255 {
            assert_eq!(bits(byte).to_le_bytes(), std::array::from_fn(|i| byte >> i & 1));
        }
    }
}
