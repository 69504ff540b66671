//! Q8_0 and Q8_1: 32 values of 8 bit with a scale. Weights (Q8_0) and activations (both).
//!
//! ```text
//! Q8_0 (34 bytes)  | d: f16 | qs: 32 × i8 |            x = d * q
//! Q8_1 (36 bytes)  | d: f16 | s: f16 | qs: 32 × i8 |   x = d * q,   s = d * (sum of qs)
//! ```
//!
//! `s` serves weights with a minimum `m`: their dot product with the block is
//! `d * d' * (sum of q * q') + m * s`.

use half::f16;

use crate::block::{Block, Encoder, IntegerDot, block_layout};
use crate::fit::{largest_magnitude, reciprocal, round_to_i8};
use crate::float::{f16_to_f32, read_f16};
use crate::{Error, WeightType};

block_layout! {
    /// View of an encoded Q8_0 block.
    Q8_0 {
        /// Scale, f16.
        d: 2,
        /// Quants, i8.
        qs: 32,
    }
}

block_layout! {
    /// View of an encoded Q8_1 block.
    Q8_1 {
        /// Scale, f16.
        d: 2,
        /// Scaled sum of the quants, f16.
        s: 2,
        /// Quants, i8.
        qs: 32,
    }
}

/// 32 activations in 8 bit, laid out as an encoded Q8_0 block on a little-endian machine.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct Q8_0Block {
    /// Scale: activation `i` is `d * qs[i]`.
    pub d: f16,
    /// Quants, from -127 to 127.
    pub qs: [i8; 32],
}

/// 32 activations in 8 bit with their sum, laid out as an encoded Q8_1 block on a little-endian
/// machine.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct Q8_1Block {
    /// Scale: activation `i` is `d * qs[i]`.
    pub d: f16,
    /// The scale before it was rounded to f16, times the sum of `qs`.
    pub s: f16,
    /// Quants, from -127 to 127.
    pub qs: [i8; 32],
}

const _: () = assert!(size_of::<Q8_0Block>() == 34 && size_of::<Q8_1Block>() == 36);

impl Q8_0Block {
    /// All activations zero.
    pub const ZERO: Self = Self { d: f16::ZERO, qs: [0; 32] };

    /// Quantizes 32 activations.
    #[inline(always)]
    pub fn quantize(x: &[f32; 32]) -> Self {
        let (d, qs) = quantize_symmetric(x);
        Self { d: f16::from_f32(d), qs }
    }

    /// Reads an encoded Q8_0 block.
    #[inline]
    pub fn from_bytes(bytes: &[u8; 34]) -> Self {
        let block = Q8_0::split(bytes);
        Self { d: f16::from_le_bytes(*block.d), qs: block.qs.map(|q| q as i8) }
    }

    /// The encoded Q8_0 block.
    #[inline]
    pub fn to_bytes(&self) -> [u8; 34] {
        let mut bytes = [0; 34];
        Q8_0 { d: &self.d.to_le_bytes(), qs: &self.qs.map(|q| q as u8) }.join(&mut bytes);
        bytes
    }

    /// The scale as f32.
    #[inline(always)]
    pub fn scale(&self) -> f32 {
        f16_to_f32(self.d.to_bits())
    }
}

impl Q8_1Block {
    /// All activations zero.
    pub const ZERO: Self = Self { d: f16::ZERO, s: f16::ZERO, qs: [0; 32] };

    /// Quantizes 32 activations.
    #[inline(always)]
    pub fn quantize(x: &[f32; 32]) -> Self {
        let (d, qs) = quantize_symmetric(x);
        Self { d: f16::from_f32(d), s: f16::from_f32(sum_of_32(&qs) as f32 * d), qs }
    }

    /// Reads an encoded Q8_1 block.
    #[inline]
    pub fn from_bytes(bytes: &[u8; 36]) -> Self {
        let block = Q8_1::split(bytes);
        Self {
            d: f16::from_le_bytes(*block.d),
            s: f16::from_le_bytes(*block.s),
            qs: block.qs.map(|q| q as i8),
        }
    }

    /// The encoded Q8_1 block.
    #[inline]
    pub fn to_bytes(&self) -> [u8; 36] {
        let mut bytes = [0; 36];
        let (d, s) = (self.d.to_le_bytes(), self.s.to_le_bytes());
        Q8_1 { d: &d, s: &s, qs: &self.qs.map(|q| q as u8) }.join(&mut bytes);
        bytes
    }

    /// The scale as f32.
    #[inline(always)]
    pub fn scale(&self) -> f32 {
        f16_to_f32(self.d.to_bits())
    }

    /// The scaled sum of the quants as f32.
    #[inline(always)]
    pub fn scaled_sum(&self) -> f32 {
        f16_to_f32(self.s.to_bits())
    }
}

/// Sum of 32 quants: bytes that are 128 higher, eight and then four at a time, since compilers make
/// of the plain sum of a short array one extraction for each element.
#[inline(always)]
pub fn sum_of_32(qs: &[i8; 32]) -> i32 {
    const EVEN: u64 = 0x00ff_00ff_00ff_00ff;
    let mut sums = 0;
    for bytes in qs.as_chunks::<8>().0 {
        let bytes = u64::from_le_bytes(bytes.map(|q| q as u8 ^ 0x80));
        sums += (bytes & EVEN) + (bytes >> 8 & EVEN);
    }
    // Four sums of 16 bit, added up in the upper one; at most 32 * 255 each.
    (sums.wrapping_mul(0x0001_0001_0001_0001) >> 48) as i32 - 32 * 128
}

/// Scale and quants; the largest magnitude becomes 127.
#[inline(always)]
fn quantize_symmetric(x: &[f32; 32]) -> (f32, [i8; 32]) {
    let d = largest_magnitude(x) / 127.0;
    let inverse = reciprocal(d);
    let mut qs = [0; 32];
    for (q, x) in qs.iter_mut().zip(x) {
        *q = round_to_i8(x * inverse);
    }
    (d, qs)
}

/// Quantizes activations for the dot products with Q8_0 blocks. Allocates nothing.
///
/// `x` holds `32 * out.len()` values. Equal in every byte to ggml.
///
/// # Errors
/// [`Error::Length`] if the lengths disagree.
#[inline(always)]
pub fn quantize_activations_q8_0_into(x: &[f32], out: &mut [Q8_0Block]) -> Result<(), Error> {
    quantize_blocks(WeightType::Q8_0, x, out, Q8_0Block::quantize)
}

/// Quantizes activations for the dot products with Q8_1 blocks. Allocates nothing.
///
/// `x` holds `32 * out.len()` values. Equal in every byte to ggml.
///
/// # Errors
/// [`Error::Length`] if the lengths disagree.
#[inline(always)]
pub fn quantize_activations_q8_1_into(x: &[f32], out: &mut [Q8_1Block]) -> Result<(), Error> {
    quantize_blocks(WeightType::Q8_1, x, out, Q8_1Block::quantize)
}

/// Quantizes `N` values for each element of `out`.
#[inline(always)]
pub(crate) fn quantize_blocks<T, const N: usize>(
    ty: WeightType,
    x: &[f32],
    out: &mut [T],
    quantize: impl Fn(&[f32; N]) -> T,
) -> Result<(), Error> {
    let (blocks, rest) = x.as_chunks::<N>();
    if blocks.len() != out.len() || !rest.is_empty() {
        let expected = out.len().saturating_mul(N);
        return Err(Error::Length { ty, what: "activations", expected, found: x.len() });
    }
    for (x, out) in blocks.iter().zip(out) {
        *out = quantize(x);
    }
    Ok(())
}

/// Exact dot product of 8-bit integers.
#[inline(always)]
pub(crate) fn dot_i8(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}

impl Block for Q8_0<'_> {
    const TYPE: WeightType = WeightType::Q8_0;
    type Bytes = [u8; 34];
    type Values = [f32; 32];
    const ENCODE: Option<Encoder<Self>> = Some(|x, out| *out = Q8_0Block::quantize(x).to_bytes());

    #[inline(always)]
    fn decode(bytes: &[u8; 34], out: &mut [f32; 32]) {
        let block = Q8_0::split(bytes);
        let d = read_f16(block.d);
        for (y, &q) in out.iter_mut().zip(block.qs) {
            *y = f32::from(q as i8) * d;
        }
    }
}

impl Block for Q8_1<'_> {
    const TYPE: WeightType = WeightType::Q8_1;
    type Bytes = [u8; 36];
    type Values = [f32; 32];
    const ENCODE: Option<Encoder<Self>> = Some(|x, out| *out = Q8_1Block::quantize(x).to_bytes());

    #[inline(always)]
    fn decode(bytes: &[u8; 36], out: &mut [f32; 32]) {
        let block = Q8_1::split(bytes);
        let d = read_f16(block.d);
        for (y, &q) in out.iter_mut().zip(block.qs) {
            *y = f32::from(q as i8) * d;
        }
    }
}

impl IntegerDot for Q8_0<'_> {
    type Activations = Q8_0Block;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 34], _: usize, x: &Q8_0Block) -> f32 {
        let weights = Q8_0Block::from_bytes(bytes);
        dot_i8(&weights.qs, &x.qs) as f32 * (weights.scale() * x.scale())
    }
}
