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
use crate::planes::unpack;

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

/// Decodes 8 values.
#[inline(always)]
fn decode_vector(scale: f32, index: usize, shift_down: bool, out: &mut [f32; 8]) {
    let shift = if shift_down { -SHIFT } else { SHIFT };
    let vector = &code_books::IQ1[index & 2047];
    for (y, &level) in out.iter_mut().zip(vector) {
        *y = scale * (f32::from(level as i8) + shift);
    }
}

impl Block for Iq1S<'_> {
    const TYPE: WeightType = WeightType::IQ1_S;
    type Bytes = [u8; 50];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 50], out: &mut [f32; 256]) {
        let block = Iq1S::split(bytes);
        let d = read_f16(block.d);
        let (vectors, _) = out.as_chunks_mut::<8>();
        let (qh, _) = block.qh.as_chunks::<2>();
        for (i, (out, &low)) in vectors.iter_mut().zip(block.qs).enumerate() {
            let high = usize::from(u16::from_le_bytes(qh[i / 4]));
            let scale = d * (2 * (high >> 12 & 7) + 1) as f32;
            let index = usize::from(low) | (high >> (3 * (i % 4)) & 7) << 8;
            decode_vector(scale, index, high >> 15 != 0, out);
        }
    }
}

impl Block for Iq1M<'_> {
    const TYPE: WeightType = WeightType::IQ1_M;
    type Bytes = [u8; 56];
    type Values = [f32; 256];

    #[inline(always)]
    fn decode(bytes: &[u8; 56], out: &mut [f32; 256]) {
        let block = Iq1M::split(bytes);
        let (scales, _) = block.scales.as_chunks::<2>();
        let scales: [u16; 4] = std::array::from_fn(|i| u16::from_le_bytes(scales[i]));
        let d = f16_to_f32(
            scales[0] >> 12 | scales[1] >> 12 << 4 | scales[2] >> 12 << 8 | scales[3] >> 12 << 12,
        );
        let high: [u8; 32] = unpack::<4, 1, _, _>(block.qh);
        let (vectors, _) = out.as_chunks_mut::<8>();
        for (i, (out, &low)) in vectors.iter_mut().zip(block.qs).enumerate() {
            let group = i / 2;
            let scale = scales[group / 4] >> (3 * (group % 4)) & 7;
            let scale = d * f32::from(2 * scale + 1);
            let index = usize::from(low) | usize::from(high[i] & 7) << 8;
            decode_vector(scale, index, high[i] & 8 != 0, out);
        }
    }
}
