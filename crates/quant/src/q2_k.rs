//! Q2_K: super-blocks of 256 values of 2 bit, 16 groups of 16 with a scale and a minimum.
//!
//! ```text
//! | scales: 16 bytes | qs: 64 bytes | d: f16 | dmin: f16 |   84 bytes, 2.625 bits a value
//!
//! scales[g]: low half scale, high half minimum of group g
//! qs:        2-bit planes of 32 bytes
//!
//! x = d * scale[g] * q - dmin * min[g]
//! ```

use crate::WeightType;
use crate::block::{Block, Encoder, IntegerDot, block_layout};
use crate::fit::{AffineSearch, fit_affine, nearest_int};
use crate::float::{read_f16, write_f16};
use crate::planes::{pack, unpack};
use crate::q8_0::dot_i8;
use crate::q8_k::Q8KSuperBlock;

block_layout! {
    /// View of a Q2_K super-block.
    Q2K {
        /// 4-bit scales (low) and minima (high) of 16 groups.
        scales: 16,
        /// 2-bit quants.
        qs: 64,
        /// Scale of the scales, f16.
        d: 2,
        /// Scale of the minima, f16.
        dmin: 2,
    }
}

impl Q2K<'_> {
    /// The quants, from 0 to 3.
    #[inline(always)]
    fn quants(&self) -> [i8; 256] {
        unpack::<2, 32, _, _>(self.qs).map(|q| q as i8)
    }
}

impl Block for Q2K<'_> {
    const TYPE: WeightType = WeightType::Q2_K;
    type Bytes = [u8; 84];
    type Values = [f32; 256];
    const ENCODE: Option<Encoder<Self>> = Some(encode);

    #[inline(always)]
    fn decode(bytes: &[u8; 84], out: &mut [f32; 256]) {
        let block = Q2K::split(bytes);
        let (d, dmin) = (read_f16(block.d), read_f16(block.dmin));
        let quants = block.quants();
        let (quants, _) = quants.as_chunks::<16>();
        let (out, _) = out.as_chunks_mut::<16>();
        for ((out, quants), scales) in out.iter_mut().zip(quants).zip(block.scales) {
            let (scale, min) = (d * f32::from(scales & 15), dmin * f32::from(scales >> 4));
            for (y, &q) in out.iter_mut().zip(quants) {
                *y = scale * f32::from(q) - min;
            }
        }
    }
}

impl IntegerDot for Q2K<'_> {
    type Activations = Q8KSuperBlock;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 84], _: usize, x: &Q8KSuperBlock) -> f32 {
        let block = Q2K::split(bytes);
        let quants = block.quants();
        let (quants, _) = quants.as_chunks::<16>();
        let (activations, _) = x.qs.as_chunks::<16>();
        let (mut products, mut minima) = (0i32, 0i32);
        for (g, scales) in block.scales.iter().enumerate() {
            products += i32::from(scales & 15) * dot_i8(&quants[g], &activations[g]);
            minima += i32::from(scales >> 4) * i32::from(x.sums[g]);
        }
        x.d * (read_f16(block.d) * products as f32 - read_f16(block.dmin) * minima as f32)
    }
}

/// Errors weigh the magnitude of the value, and count absolutely.
const SEARCH: AffineSearch =
    AffineSearch { n_max: 3, first: -0.5, step: 0.1, n_steps: 15, absolute_error: true };

fn encode(x: &[f32; 256], out: &mut [u8; 84]) {
    let (groups, _) = x.as_chunks::<16>();
    let (mut scales, mut minima, mut quants) = ([0.0f32; 16], [0.0f32; 16], [0u8; 256]);
    let (quant_groups, _) = quants.as_chunks_mut::<16>();
    for (g, x) in groups.iter().enumerate() {
        let fit = fit_affine(&SEARCH, x, &x.map(f32::abs));
        (scales[g], minima[g], quant_groups[g]) = (fit.scale, fit.minimum, fit.quants);
    }

    // Four bits for each scale and each minimum, the largest of each becoming 15.
    let quantize = |values: &[f32; 16]| {
        let largest = values.iter().fold(0.0f32, |largest, &v| largest.max(v));
        let inverse = if largest > 0.0 { 15.0 / largest } else { 0.0 };
        (write_f16(largest / 15.0), values.map(|v| nearest_int(inverse * v) as u8))
    };
    let (d, scales) = quantize(&scales);
    let (dmin, minima) = quantize(&minima);
    let scales: [u8; 16] = std::array::from_fn(|g| scales[g] | minima[g] << 4);

    // Round again, now with the scales as they are stored.
    for ((x, quants), packed) in groups.iter().zip(quant_groups).zip(scales) {
        let scale = read_f16(&d) * f32::from(packed & 15);
        if scale == 0.0 {
            continue;
        }
        let min = read_f16(&dmin) * f32::from(packed >> 4);
        *quants = x.map(|x| nearest_int((x + min) / scale).clamp(0, 3) as u8);
    }
    Q2K { scales: &scales, qs: &pack::<2, 32, _, _>(&quants), d: &d, dmin: &dmin }.join(out);
}
