//! Q5_K: super-blocks of 256 values of 5 bit, 8 groups of 32 with a scale and a minimum.
//!
//! ```text
//! | d: f16 | dmin: f16 | scales: 12 bytes | qh: 32 bytes | qs: 128 bytes |   176 bytes, 5.5 bits
//!
//! scales: as in Q4_K
//! qh:     bit planes of 32 bytes: fifth bits, plane g those of group g
//! qs:     4-bit planes of 32 bytes: lower bits, each 32 bytes hold two groups
//!
//! x = d * s[g] * q - dmin * m[g]
//! ```

use crate::WeightType;
use crate::block::{Block, Encoder, IntegerDot, block_layout};
use crate::fit::AffineSearch;
use crate::float::read_f16;
use crate::planes::{pack, unpack};
use crate::q4_k::{AffineSuperBlock, Scales, decode_affine, dot_affine, encode_affine};
use crate::q8_k::Q8KSuperBlock;

block_layout! {
    /// View of a Q5_K super-block.
    Q5K {
        /// Scale of the scales, f16.
        d: 2,
        /// Scale of the minima, f16.
        dmin: 2,
        /// 6-bit scales and minima of 8 groups, see [`Scales`].
        scales: 12,
        /// Fifth bits of the quants.
        qh: 32,
        /// Lower four bits of the quants.
        qs: 128,
    }
}

impl Q5K<'_> {
    /// The quants, from 0 to 31.
    #[inline(always)]
    fn quants(&self) -> [u8; 256] {
        let low: [u8; 256] = unpack::<4, 32, _, _>(self.qs);
        let high: [u8; 256] = unpack::<1, 32, _, _>(self.qh);
        std::array::from_fn(|i| low[i] | high[i] << 4)
    }
}

impl Block for Q5K<'_> {
    const TYPE: WeightType = WeightType::Q5_K;
    type Bytes = [u8; 176];
    type Values = [f32; 256];
    const ENCODE: Option<Encoder<Self>> = Some(encode);

    #[inline(always)]
    fn decode(bytes: &[u8; 176], out: &mut [f32; 256]) {
        let block = Q5K::split(bytes);
        let scales = Scales::unpack(block.scales);
        decode_affine((read_f16(block.d), read_f16(block.dmin)), &scales, &block.quants(), out);
    }
}

impl IntegerDot for Q5K<'_> {
    type Activations = Q8KSuperBlock;

    #[inline(always)]
    fn dot_part(bytes: &[u8; 176], _: usize, x: &Q8KSuperBlock) -> f32 {
        let block = Q5K::split(bytes);
        let scales = Scales::unpack(block.scales);
        dot_affine((read_f16(block.d), read_f16(block.dmin)), &scales, &block.quants(), x)
    }
}

const SEARCH: AffineSearch =
    AffineSearch { n_max: 31, first: -0.5, step: 0.1, n_steps: 15, absolute_error: false };

fn encode(x: &[f32; 256], out: &mut [u8; 176]) {
    let AffineSuperBlock { d, dmin, scales, quants } = encode_affine(&SEARCH, x);
    Q5K {
        d: &d,
        dmin: &dmin,
        scales: &scales,
        qh: &pack::<1, 32, _, _>(&quants.map(|q| q >> 4)),
        qs: &pack::<4, 32, _, _>(&quants),
    }
    .join(out);
}
