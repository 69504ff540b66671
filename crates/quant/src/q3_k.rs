//! Q3_K: super-blocks of 256 values of 3 bit, 16 groups of 16 with a scale.
//!
//! ```text
//! | hmask: 32 bytes | qs: 64 bytes | scales: 12 bytes | d: f16 |   110 bytes, 3.4375 bits a value
//!
//! hmask:        bit planes of 32 bytes: third bits
//! qs:           2-bit planes of 32 bytes: lower bits
//! scales[0..8]  4-bit planes of 8 bytes: lower bits of the 6-bit scales
//! scales[8..12] 2-bit planes of 4 bytes: upper bits
//!
//! x = d * (scale[g] - 32) * (q - 4)
//! ```

use crate::WeightType;
use crate::block::{Block, Encoder, IntegerDot, block_layout};
use crate::fit::{fit_symmetric_descent, nearest_int, signed_extreme};
use crate::float::{read_f16, write_f16};
use crate::planes::{pack, unpack};
use crate::q8_0::dot_i8;
use crate::q8_k::Q8KSuperBlock;

block_layout! {
    /// View of a Q3_K super-block.
    Q3K {
        /// Third bits of the quants.
        hmask: 32,
        /// Lower two bits of the quants.
        qs: 64,
        /// Lower four bits of 16 scales.
        scales_low: 8,
        /// Upper two bits of 16 scales.
        scales_high: 4,
        /// Scale of the scales, f16.
        d: 2,
    }
}

impl Q3K<'_> {
    /// The quants, from -4 to 3.
    #[inline(always)]
    fn quants(&self) -> [i8; 256] {
        let low: [u8; 256] = unpack::<2, 32, _, _>(self.qs);
        let high: [u8; 256] = unpack::<1, 32, _, _>(self.hmask);
        std::array::from_fn(|i| (low[i] | high[i] << 2) as i8 - 4)
    }

    /// The scales of 16 groups, from -32 to 31.
    #[inline(always)]
    pub fn scales(&self) -> [i8; 16] {
        let low: [u8; 16] = unpack::<4, 8, _, _>(self.scales_low);
        let high: [u8; 16] = unpack::<2, 4, _, _>(self.scales_high);
        std::array::from_fn(|g| (low[g] | high[g] << 4) as i8 - 32)
    }
}

impl Block for Q3K<'_> {
    const TYPE: WeightType = WeightType::Q3_K;
    type Bytes = [u8; 110];
    type Values = [f32; 256];
    const ENCODE: Option<Encoder<Self>> = Some(encode);

    #[inline(always)]
    fn decode(bytes: &[u8; 110], out: &mut [f32; 256]) {
        let block = Q3K::split(bytes);
        let d = read_f16(block.d);
        let quants = block.quants();
        let (quants, _) = quants.as_chunks::<16>();
        let (out, _) = out.as_chunks_mut::<16>();
        for ((out, quants), scale) in out.iter_mut().zip(quants).zip(block.scales()) {
            let scale = d * f32::from(scale);
            for (y, &q) in out.iter_mut().zip(quants) {
                *y = scale * f32::from(q);
            }
        }
    }
}

impl IntegerDot for Q3K<'_> {
    type Activations = Q8KSuperBlock;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 110], _: usize, x: &Q8KSuperBlock) -> f32 {
        let block = Q3K::split(bytes);
        let quants = block.quants();
        let (quants, _) = quants.as_chunks::<16>();
        let (activations, _) = x.qs.as_chunks::<16>();
        let mut products = 0i32;
        for (g, scale) in block.scales().into_iter().enumerate() {
            products += i32::from(scale) * dot_i8(&quants[g], &activations[g]);
        }
        x.d * read_f16(block.d) * products as f32
    }
}

fn encode(x: &[f32; 256], out: &mut [u8; 110]) {
    let (groups, _) = x.as_chunks::<16>();
    let (mut scales, mut quants) = ([0.0f32; 16], [0u8; 256]);
    let (quant_groups, _) = quants.as_chunks_mut::<16>();
    for (g, x) in groups.iter().enumerate() {
        let fit = fit_symmetric_descent(4, x);
        (scales[g], quant_groups[g]) = (fit.scale, fit.quants);
    }

    // Six bits for each scale; that of the largest magnitude becomes -32.
    let extreme = signed_extreme(&scales);
    let (d, stored_scales) = if extreme == 0.0 {
        (write_f16(0.0), [0u8; 16])
    } else {
        let inverse = -32.0 / extreme;
        let quantize = |scale| (nearest_int(inverse * scale).clamp(-32, 31) + 32) as u8;
        (write_f16(1.0 / inverse), scales.map(quantize))
    };

    // Round again, now with the scales as they are stored.
    for ((x, quants), stored) in groups.iter().zip(quant_groups).zip(stored_scales) {
        let scale = read_f16(&d) * (f32::from(stored) - 32.0);
        if scale != 0.0 {
            *quants = x.map(|x| (nearest_int(x / scale).clamp(-4, 3) + 4) as u8);
        }
    }
    Q3K {
        hmask: &pack::<1, 32, _, _>(&quants.map(|q| q >> 2)),
        qs: &pack::<2, 32, _, _>(&quants),
        scales_low: &pack::<4, 8, _, _>(&stored_scales),
        scales_high: &pack::<2, 4, _, _>(&stored_scales.map(|s| s >> 4)),
        d: &d,
    }
    .join(out);
}
