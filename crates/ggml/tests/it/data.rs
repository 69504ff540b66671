//! Rows and activations without a pattern, the same ones every time.

use hurtle_ggml::formats;
use hurtle_quant::WeightType;

/// Bits without a pattern.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 56) as u8).collect()
    }

    /// From -1 to 1.
    pub(crate) fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// `n` values of about the size of `scale`, bell-shaped as weights and activations are.
    pub(crate) fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| (0..4).map(|_| self.value()).sum::<f32>() * scale).collect()
    }
}

/// Every type that ggml multiplies with.
pub(crate) fn weight_types() -> Vec<WeightType> {
    let all = WeightType::ALL.iter().copied();
    all.filter(|ty| formats::has_encoder(*ty) && formats::activation_type(*ty).is_some()).collect()
}

/// A whole number of blocks near `n`.
pub(crate) fn whole_blocks(ty: WeightType, n: usize) -> usize {
    n.next_multiple_of(ty.block_len())
}

/// `n_rows` rows of `n_cols` weights, encoded by ggml.
pub(crate) fn encoded(ty: WeightType, seed: u64, n_rows: usize, n_cols: usize) -> Vec<u8> {
    let values = Noise::new(seed).values(n_rows * n_cols, 0.05);
    formats::quantize(ty, &values, n_cols).expect("ggml encodes this type")
}

/// What bytes mean, by hurtle.
pub(crate) fn decoded(ty: WeightType, bytes: &[u8]) -> Vec<f32> {
    let n = bytes.len() / ty.block_bytes() * ty.block_len();
    let mut values = vec![f32::NAN; n];
    hurtle_quant::dequantize(ty, bytes, &mut values).expect("whole blocks of weights");
    values
}
