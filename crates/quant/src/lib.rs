//! What the bytes of each GGUF weight type mean.
#![forbid(unsafe_code)]

mod types;
pub use types::WeightType;

/// Why bytes could not be decoded or encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice does not hold whole blocks, or source and destination disagree.
    #[error("{ty}: {what}: expected {expected}, found {found}")]
    Length {
        /// The weight type concerned.
        ty: WeightType,
        /// Which slice.
        what: &'static str,
        /// Length that would fit.
        expected: usize,
        /// Length that was given.
        found: usize,
    },
    /// The type has no encoder (or no decoder to f32, as the integer types).
    #[error("{ty}: {what} is not supported")]
    Unsupported {
        /// The weight type concerned.
        ty: WeightType,
        /// The operation asked for.
        what: &'static str,
    },
}

/// Decodes whole blocks of `ty` into `dst`, bit for bit as ggml does.
///
/// `dst.len()` must be a multiple of the block length and `src.len()` the bytes of that many blocks.
pub fn dequantize(ty: WeightType, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    let _ = (ty, src, dst);
    todo!("quant")
}

/// Encodes `src` as blocks of `ty`, as ggml's reference encoder does.
pub fn quantize(ty: WeightType, src: &[f32], dst: &mut [u8]) -> Result<(), Error> {
    let _ = (ty, src, dst);
    todo!("quant")
}

/// Dot product of one encoded row with `x`, in f32.
pub fn dot(ty: WeightType, row: &[u8], x: &[f32]) -> Result<f32, Error> {
    let _ = (ty, row, x);
    todo!("quant")
}
