//! Q6_K: super-blocks of 256 values of 6 bit, 16 groups of 16 with a scale.
//!
//! ```text
//! | ql: 128 bytes | qh: 64 bytes | scales: 16 × i8 | d: f16 |   210 bytes, 6.5625 bits a value
//!
//! ql: 4-bit planes of 64 bytes: lower bits
//! qh: 2-bit planes of 32 bytes: upper bits
//!
//! x = d * scale[g] * (q - 32)
//! ```

use crate::WeightType;
use crate::block::{Block, Encoder, IntegerDot, block_layout};
use crate::fit::{ZERO_GROUP, fit_symmetric, nearest_int, signed_extreme};
use crate::float::{read_f16, write_f16};
use crate::planes::{pack, unpack};
use crate::q8_0::dot_i8;
use crate::q8_k::Q8KSuperBlock;

block_layout! {
    /// View of a Q6_K super-block.
    Q6K {
        /// Lower four bits of the quants.
        ql: 128,
        /// Upper two bits of the quants.
        qh: 64,
        /// Scales of 16 groups, i8.
        scales: 16,
        /// Scale of the scales, f16.
        d: 2,
    }
}

impl Q6K<'_> {
    /// The quants, from -32 to 31.
    #[inline(always)]
    fn quants(&self) -> [i8; 256] {
        let low: [u8; 256] = unpack::<4, 64, _, _>(self.ql);
        let high: [u8; 256] = unpack::<2, 32, _, _>(self.qh);
        std::array::from_fn(|i| (low[i] | high[i] << 4) as i8 - 32)
    }
}

impl Block for Q6K<'_> {
    const TYPE: WeightType = WeightType::Q6_K;
    type Bytes = [u8; 210];
    type Values = [f32; 256];
    const ENCODE: Option<Encoder<Self>> = Some(encode);

    #[inline(always)]
    fn decode(bytes: &[u8; 210], out: &mut [f32; 256]) {
        let block = Q6K::split(bytes);
        let d = read_f16(block.d);
        let quants = block.quants();
        let (quants, _) = quants.as_chunks::<16>();
        let (out, _) = out.as_chunks_mut::<16>();
        for ((out, quants), &scale) in out.iter_mut().zip(quants).zip(block.scales) {
            let scale = d * f32::from(scale as i8);
            for (y, &q) in out.iter_mut().zip(quants) {
                *y = scale * f32::from(q);
            }
        }
    }
}

impl IntegerDot for Q6K<'_> {
    type Activations = Q8KSuperBlock;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 210], _: usize, x: &Q8KSuperBlock) -> f32 {
        let block = Q6K::split(bytes);
        let quants = block.quants();
        let (quants, _) = quants.as_chunks::<16>();
        let (activations, _) = x.qs.as_chunks::<16>();
        let mut products = 0i32;
        for (g, &scale) in block.scales.iter().enumerate() {
            products += i32::from(scale as i8) * dot_i8(&quants[g], &activations[g]);
        }
        x.d * read_f16(block.d) * products as f32
    }
}

fn encode(x: &[f32; 256], out: &mut [u8; 210]) {
    let (groups, _) = x.as_chunks::<16>();
    let (mut scales, mut quants) = ([0.0f32; 16], [0u8; 256]);
    let (quant_groups, _) = quants.as_chunks_mut::<16>();
    for (g, x) in groups.iter().enumerate() {
        let fit = fit_symmetric(32, x);
        (scales[g], quant_groups[g]) = (fit.scale, fit.quants);
    }
    let extreme = signed_extreme(&scales);
    if extreme.abs() < ZERO_GROUP {
        *out = [0; 210];
        return;
    }

    // Eight bits for each scale; that of the largest magnitude becomes -128.
    let inverse = -128.0 / extreme;
    let d = write_f16(1.0 / inverse);
    let scales = scales.map(|scale| nearest_int(inverse * scale).clamp(-128, 127) as i8);

    // Round again, now with the scales as they are stored.
    for ((x, quants), stored) in groups.iter().zip(quant_groups).zip(scales) {
        let scale = read_f16(&d) * f32::from(stored);
        if scale != 0.0 {
            *quants = x.map(|x| (nearest_int(x / scale).clamp(-32, 31) + 32) as u8);
        }
    }
    Q6K {
        ql: &pack::<4, 64, _, _>(&quants),
        qh: &pack::<2, 32, _, _>(&quants.map(|q| q >> 4)),
        scales: &scales.map(|s| s as u8),
        d: &d,
    }
    .join(out);
}
