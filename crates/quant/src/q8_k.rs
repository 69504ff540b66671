//! Q8_K: 256 values of 8 bit with a scale, and the sums of their groups. Activations only.
//!
//! ```text
//! Q8_K (292 bytes)  | d: f32 | qs: 256 × i8 | sums: 16 × i16 |   x = d * q
//! ```
//!
//! `sums[g]` is the sum of the quants of group `g` of 16. Weights with a minimum need it, and
//! kernels that can only multiply unsigned with signed bytes.

use crate::block::{Block, Encoder, block_layout};
use crate::fit::{nearest_int, signed_extreme};
use crate::q8_0::quantize_blocks;
use crate::{Error, WeightType};

block_layout! {
    /// View of an encoded Q8_K super-block.
    Q8K {
        /// Scale, f32.
        d: 4,
        /// Quants, i8.
        qs: 256,
        /// Sums of 16 quants each, i16.
        sums: 32,
    }
}

/// 256 activations in 8 bit, laid out as an encoded Q8_K super-block on a little-endian machine.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct Q8KSuperBlock {
    /// Scale: activation `i` is `d * qs[i]`. Negative if the activation of the largest magnitude
    /// is positive.
    pub d: f32,
    /// Quants, from -127 to 127.
    pub qs: [i8; 256],
    /// Sums of 16 quants each.
    pub sums: [i16; 16],
}

const _: () = assert!(size_of::<Q8KSuperBlock>() == 292);

impl Q8KSuperBlock {
    /// All activations zero.
    pub const ZERO: Self = Self { d: 0.0, qs: [0; 256], sums: [0; 16] };

    /// Quantizes 256 activations; that of the largest magnitude becomes -127.
    #[inline(always)]
    pub fn quantize(x: &[f32; 256]) -> Self {
        let extreme = signed_extreme(x);
        if extreme == 0.0 {
            return Self::ZERO;
        }
        let inverse = -127.0 / extreme;
        let mut block = Self { d: 1.0 / inverse, ..Self::ZERO };
        for (q, x) in block.qs.iter_mut().zip(x) {
            *q = nearest_int(inverse * x).clamp(-127, 127) as i8;
        }
        for (sum, group) in block.sums.iter_mut().zip(block.qs.as_chunks::<16>().0) {
            *sum = group.iter().map(|&q| i16::from(q)).sum();
        }
        block
    }

    /// Reads an encoded super-block.
    #[inline]
    pub fn from_bytes(bytes: &[u8; 292]) -> Self {
        let block = Q8K::split(bytes);
        let (sums, _) = block.sums.as_chunks();
        Self {
            d: f32::from_le_bytes(*block.d),
            qs: block.qs.map(|q| q as i8),
            sums: std::array::from_fn(|g| i16::from_le_bytes(sums[g])),
        }
    }

    /// The encoded super-block.
    #[inline]
    pub fn to_bytes(&self) -> [u8; 292] {
        let mut sums = [0; 32];
        for (bytes, sum) in sums.as_chunks_mut().0.iter_mut().zip(self.sums) {
            *bytes = sum.to_le_bytes();
        }
        let mut bytes = [0; 292];
        Q8K { d: &self.d.to_le_bytes(), qs: &self.qs.map(|q| q as u8), sums: &sums }
            .join(&mut bytes);
        bytes
    }
}

/// Quantizes activations for the dot products with super-blocks. Allocates nothing.
///
/// `x` holds `256 * out.len()` values. Equal in every byte to ggml, but that the sums of a
/// super-block of zeros are zero, where ggml leaves what was in memory.
///
/// # Errors
/// [`Error::Length`] if the lengths disagree.
#[inline(always)]
pub fn quantize_activations_q8k_into(x: &[f32], out: &mut [Q8KSuperBlock]) -> Result<(), Error> {
    quantize_blocks(WeightType::Q8_K, x, out, Q8KSuperBlock::quantize)
}

impl Block for Q8K<'_> {
    const TYPE: WeightType = WeightType::Q8_K;
    type Bytes = [u8; 292];
    type Values = [f32; 256];
    const ENCODE: Option<Encoder<Self>> =
        Some(|x, out| *out = Q8KSuperBlock::quantize(x).to_bytes());

    #[inline(always)]
    fn decode(bytes: &[u8; 292], out: &mut [f32; 256]) {
        let block = Q8K::split(bytes);
        let d = f32::from_le_bytes(*block.d);
        for (y, &q) in out.iter_mut().zip(block.qs) {
            *y = d * f32::from(q as i8);
        }
    }
}
