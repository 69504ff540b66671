//! IQ1_S and IQ1_M: super-blocks of 256 values; 8 values are an index of a book of ternary
//! vectors, all of them shifted up or down by 1/8.
//!
//! ```text
//! IQ1_S (50 bytes, 1.5625 bits a value)  | d: f16 | qs: 32 bytes | qh: 8 × u16 |
//!   qh[g], group g of 32:  bits 3l .. 3l + 3: upper bits of index l;  12-14: scale;  15: shift down
//!
//! IQ1_M (56 bytes, 1.75 bits a value)    | qs: 32 bytes | qh: 16 bytes | scales: 4 × u16 |
//!   half a byte of qh for each index:      bits 0-2: upper bits of the index;  3: shift down
//!   scales[g / 4], group g of 16:          bits 3 (g % 4) .. + 3: scale
//!   bits 12-15 of the four scales:         the f16 d, lowest first
//!
//! x = d * (2 * scale + 1) * (book[index] ± 1/8)
//! ```

use crate::WeightType;
use crate::block::{Block, block_layout};
use crate::code_books;
use crate::float::{f16_to_f32, read_f16};
use crate::integers::{self, EACH, ScaledIntegers};
use crate::iq2::odd;

const SHIFT: f32 = 0.125;

block_layout! {
    /// View of an IQ1_S super-block.
    Iq1S {
        /// Scale of the scales, f16.
        d: 2,
        /// Lower eight bits of 32 indices.
        qs: 32,
        /// For each group of 32: upper bits of the indices, scale, shift.
        qh: 16,
    }
}

block_layout! {
    /// View of an IQ1_M super-block.
    Iq1M {
        /// Lower eight bits of 32 indices.
        qs: 32,
        /// For each index: upper bits, shift.
        qh: 16,
        /// Scales of 16 groups, and the scale of the scales.
        scales: 8,
    }
}

/// Eight times the values of a vector are stored so much higher.
const OFFSET: u8 = 16;
const MAX: u8 = OFFSET + 8 + 1;
const LEVELS: [u8; 6] = [OFFSET - 9, OFFSET - 7, OFFSET - 1, OFFSET + 1, OFFSET + 7, OFFSET + 9];

/// Eight times the vectors of the book, stored.
static STORED: [u64; 2048] = {
    let mut words = [0; 2048];
    let mut i = 0;
    while i < words.len() {
        let mut bytes = [0; 8];
        let mut j = 0;
        while j < 8 {
            bytes[j] = OFFSET.wrapping_add(code_books::IQ1[i][j].wrapping_mul(8));
            j += 1;
        }
        words[i] = u64::from_le_bytes(bytes);
        i += 1;
    }
    words
};

/// What shifts a stored vector: 1 less or 1 more in each byte.
#[inline(always)]
fn shift(down: bool) -> u64 {
    if down { EACH.wrapping_neg() } else { EACH }
}

impl Block for Iq1S<'_> {
    const TYPE: WeightType = WeightType::IQ1_S;
    type Bytes = [u8; 50];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 50], out: &mut [f32; 256]) {
        integers::decode::<Self>(bytes, out);
    }
}

impl ScaledIntegers for Iq1S<'_> {
    const GROUP: usize = 32;
    const OFFSET: u8 = OFFSET;
    const LEVELS: &'static [u8] = &LEVELS;
    const MAX: u8 = MAX;
    const SIGNED: bool = false;

    #[inline(always)]
    fn signs(_: &[u8; 50]) -> [u32; 8] {
        [0; 8]
    }

    #[inline(always)]
    fn factor(bytes: &[u8; 50]) -> f32 {
        read_f16(Iq1S::split(bytes).d) * SHIFT
    }

    #[inline(always)]
    fn scales(bytes: &[u8; 50]) -> [i8; 16] {
        let (qh, _) = Iq1S::split(bytes).qh.as_chunks::<2>();
        let mut scales = [0; 16];
        for (scale, qh) in scales.iter_mut().zip(qh) {
            *scale = odd(qh[1] >> 4 & 7);
        }
        scales
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 50], stored: &mut [u8; 256]) {
        let block = Iq1S::split(bytes);
        let (qh, _) = block.qh.as_chunks::<2>();
        let (low, _) = block.qs.as_chunks::<4>();
        let (groups, _) = stored.as_chunks_mut::<32>();
        for ((group, low), high) in groups.iter_mut().zip(low).zip(qh) {
            let high = usize::from(u16::from_le_bytes(*high));
            let shift = shift(high >> 15 != 0);
            for (l, vector) in group.as_chunks_mut().0.iter_mut().enumerate() {
                let index = usize::from(low[l]) | (high >> (3 * l) & 7) << 8;
                *vector = STORED[index].wrapping_add(shift).to_le_bytes();
            }
        }
    }
}

impl Iq1M<'_> {
    /// Four words of scales, with the bits of `d`.
    #[inline(always)]
    fn words(&self) -> [u16; 4] {
        let (scales, _) = self.scales.as_chunks::<2>();
        std::array::from_fn(|i| u16::from_le_bytes(scales[i]))
    }
}

impl Block for Iq1M<'_> {
    const TYPE: WeightType = WeightType::IQ1_M;
    type Bytes = [u8; 56];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 56], out: &mut [f32; 256]) {
        integers::decode::<Self>(bytes, out);
    }
}

impl ScaledIntegers for Iq1M<'_> {
    const GROUP: usize = 16;
    const OFFSET: u8 = OFFSET;
    const LEVELS: &'static [u8] = &LEVELS;
    const MAX: u8 = MAX;
    const SIGNED: bool = false;

    #[inline(always)]
    fn signs(_: &[u8; 56]) -> [u32; 8] {
        [0; 8]
    }

    #[inline(always)]
    fn factor(bytes: &[u8; 56]) -> f32 {
        let words = Iq1M::split(bytes).words();
        let bits = (0..4).fold(0, |bits, i| bits | words[i] >> 12 << (4 * i));
        f16_to_f32(bits) * SHIFT
    }

    #[inline(always)]
    fn scales(bytes: &[u8; 56]) -> [i8; 16] {
        let words = Iq1M::split(bytes).words();
        std::array::from_fn(|g| odd((words[g / 4] >> (3 * (g % 4)) & 7) as u8))
    }

    #[inline(always)]
    fn unpack(bytes: &[u8; 56], stored: &mut [u8; 256]) {
        let block = Iq1M::split(bytes);
        let (low, _) = block.qs.as_chunks::<2>();
        let (pairs, _) = stored.as_chunks_mut::<16>();
        for ((pair, low), high) in pairs.iter_mut().zip(low).zip(block.qh) {
            for (l, vector) in pair.as_chunks_mut().0.iter_mut().enumerate() {
                let high = high >> (4 * l);
                let index = usize::from(low[l]) | usize::from(high & 7) << 8;
                let shift = shift(high & 8 != 0);
                *vector = STORED[index].wrapping_add(shift).to_le_bytes();
            }
        }
    }
}
