//! F32, F16, BF16 and F64: one value a block, little-endian.

use crate::WeightType;
use crate::block::{Block, Encoder};

/// The f32 of an f16's bits.
///
/// Without branches, unlike the conversions of the `half` crate, so that a loop over it
/// vectorises for any target: exponent and mantissa are moved to their place in an f32 and a
/// multiplication by 2^112 corrects the bias; it is exact and normalises subnormals as well.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    const BIAS: f32 = f32::from_bits((127 + 112) << 23);
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * BIAS).to_bits();
    let infinite_or_nan = magnitude | 0x7f80_0000;
    let magnitude = if bits & 0x7c00 == 0x7c00 { infinite_or_nan } else { finite };
    f32::from_bits(sign | magnitude)
}

/// The f32 of a little-endian f16 in a block.
#[inline(always)]
pub(crate) fn read_f16(bytes: &[u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(*bytes))
}

/// The nearest f16 (ties to even, as ggml rounds), little-endian.
#[inline(always)]
pub(crate) fn write_f16(value: f32) -> [u8; 2] {
    half::f16::from_f32(value).to_le_bytes()
}

macro_rules! float_block {
    ($name:ident, $n:literal, $decode:expr, $encode:expr) => {
        #[doc = concat!("A ", stringify!($name), " value.")]
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Block for $name {
            const TYPE: WeightType = WeightType::$name;
            type Bytes = [u8; $n];
            type Values = [f32; 1];
            const ENCODE: Option<Encoder<Self>> = $encode;

            #[inline(always)]
            fn decode(bytes: &[u8; $n], out: &mut [f32; 1]) {
                let decode = $decode;
                *out = [decode(*bytes)];
            }
        }
    };
}

float_block!(F32, 4, f32::from_le_bytes, Some(|&[x], out| *out = x.to_le_bytes()));
float_block!(F16, 2, |bytes| read_f16(&bytes), Some(|&[x], out| *out = write_f16(x)));
float_block!(
    BF16,
    2,
    |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16),
    Some(|&[x], out| *out = half::bf16::from_f32(x).to_le_bytes())
);
float_block!(F64, 8, |bytes| f64::from_le_bytes(bytes) as f32, None);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_converted_as_half_does() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            let equal = found.to_bits() == expected.to_bits();
            assert!(equal || found.is_nan() && expected.is_nan(), "{bits:#06x}");
        }
    }
}
