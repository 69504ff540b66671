//! ggml's encoders, decoders and dot products, for comparisons.
//!
//! They are made for tests: each call copies its bytes to aligned memory.

use crate::memory::Aligned;
use crate::{Error, init, sys};
use hurtle_quant::WeightType;
use std::ffi::c_int;

/// The traits that ggml keeps of a type.
fn traits(ty: WeightType) -> &'static sys::ggml_type_traits {
    init();
    let id = ty.id() as sys::ggml_type;
    assert!(id < sys::GGML_TYPE_COUNT, "ggml {} has no {ty}", crate::version());
    // SAFETY: the id lies within ggml's table, which is constant.
    unsafe { &*sys::ggml_get_type_traits(id) }
}

/// The traits that ggml's processor backend keeps of a type.
fn cpu_traits(ty: WeightType) -> &'static sys::ggml_type_traits_cpu {
    let _known_to_ggml = traits(ty);
    // SAFETY: the id lies within ggml's table, which is constant.
    unsafe { &*sys::ggml_get_type_traits_cpu(ty.id() as sys::ggml_type) }
}

/// Values and bytes of a block, as ggml has them.
pub fn block_size(ty: WeightType) -> (usize, usize) {
    let traits = traits(ty);
    (traits.blck_size as usize, traits.type_size)
}

/// `Ok` if `bytes` encode `n_values` values.
fn check_length(ty: WeightType, n_values: usize, bytes: &[u8]) -> Result<(), Error> {
    let Some(expected) = ty.row_bytes(n_values) else {
        let expected = n_values.next_multiple_of(ty.block_len());
        return Err(Error::Length { ty, what: "values", expected, found: n_values });
    };
    if bytes.len() != expected {
        return Err(Error::Length { ty, what: "bytes", expected, found: bytes.len() });
    }
    Ok(())
}

/// Decodes `bytes` to `out`, with ggml's reference decoder.
///
/// # Errors
/// [`Error::Length`] if `bytes` do not encode `out.len()` values, [`Error::Unsupported`] for F32 and the
/// types that hold no weights.
pub fn dequantize(ty: WeightType, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    check_length(ty, out.len(), bytes)?;
    let to_float = traits(ty).to_float.ok_or(Error::Unsupported { ty, what: "decoder" })?;
    let bytes = Aligned::copy_of(bytes);
    // SAFETY: the lengths were checked, the bytes are aligned, and every byte sequence decodes.
    unsafe { to_float(bytes.as_ptr(), out.as_mut_ptr(), out.len() as i64) };
    Ok(())
}

/// Whether [`quantize`] knows the type.
pub fn has_encoder(ty: WeightType) -> bool {
    use WeightType::{F64, I8, I16, I32, I64, Q8_1, Q8_K};
    !matches!(ty, F64 | I8 | I16 | I32 | I64 | Q8_1 | Q8_K)
}

/// Encodes rows of `n_cols` values, as llama.cpp's quantization tool does without an importance matrix.
/// Types that need one get one that is the same everywhere.
///
/// # Errors
/// [`Error::Length`] if `values` are no whole rows or rows no whole blocks, [`Error::NotFinite`] if a
/// value is not, [`Error::Unsupported`] unless [`has_encoder`].
pub fn quantize(ty: WeightType, values: &[f32], n_cols: usize) -> Result<Vec<u8>, Error> {
    if !has_encoder(ty) {
        return Err(Error::Unsupported { ty, what: "encoder" });
    }
    if n_cols == 0 || !values.len().is_multiple_of(n_cols) {
        let expected = values.len().next_multiple_of(n_cols.max(1));
        return Err(Error::Length { ty, what: "values", expected, found: values.len() });
    }
    let Some(row_bytes) = ty.row_bytes(n_cols) else {
        let expected = n_cols.next_multiple_of(ty.block_len());
        return Err(Error::Length { ty, what: "columns", expected, found: n_cols });
    };
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(Error::NotFinite { ty, index, value: values[index].to_string() });
    }
    init();
    let (n_rows, id) = (values.len() / n_cols, ty.id() as sys::ggml_type);
    let n_bytes = n_rows * row_bytes;
    let mut bytes = Aligned::default();
    let out = bytes.sized(n_bytes);
    if out.is_empty() {
        return Ok(Vec::new());
    }
    // SAFETY: has no preconditions.
    let needs_importance = unsafe { sys::ggml_quantize_requires_imatrix(id) };
    let importance = needs_importance.then(|| vec![1.0f32; n_cols]);
    let importance = importance.as_ref().map_or(std::ptr::null(), |weights| weights.as_ptr());
    // SAFETY: source, destination and importance hold what shape and type say, the destination is
    // aligned, the values are finite, and the type is one that ggml encodes.
    unsafe {
        let (n_rows, n_cols) = (n_rows as i64, n_cols as i64);
        let out = out.as_mut_ptr().cast();
        sys::ggml_quantize_chunk(id, values.as_ptr(), out, 0, n_rows, n_cols, importance);
    }
    Ok(out.to_vec())
}

/// What ggml quantizes activations to for products with weights of `ty`. `None` if it has no dot
/// product for them.
pub fn activation_type(ty: WeightType) -> Option<WeightType> {
    let traits = cpu_traits(ty);
    traits.vec_dot?;
    let is_it = |ty: &WeightType| ty.id() as sys::ggml_type == traits.vec_dot_type;
    WeightType::ALL.iter().copied().find(is_it)
}

/// Which of ggml's encoders of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantizer {
    /// The scalar one that defines the format.
    Reference,
    /// The one that its products use, written for an instruction set.
    Fast,
}

/// Quantizes activations to `ty`, one of those that [`activation_type`] names.
///
/// # Errors
/// [`Error::Length`] if the values are no whole blocks, [`Error::NotFinite`] if one is not finite,
/// [`Error::Unsupported`] if there is no such encoder.
pub fn quantize_activations(
    ty: WeightType,
    quantizer: Quantizer,
    values: &[f32],
) -> Result<Vec<u8>, Error> {
    let Some(n_bytes) = ty.row_bytes(values.len()) else {
        let expected = values.len().next_multiple_of(ty.block_len());
        return Err(Error::Length { ty, what: "values", expected, found: values.len() });
    };
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(Error::NotFinite { ty, index, value: values[index].to_string() });
    }
    let from_float = match quantizer {
        Quantizer::Reference => traits(ty).from_float_ref,
        Quantizer::Fast => cpu_traits(ty).from_float,
    };
    let from_float = from_float.ok_or(Error::Unsupported { ty, what: "encoder of activations" })?;
    let mut bytes = Aligned::default();
    let out = bytes.sized(n_bytes);
    // SAFETY: the destination is aligned and holds the blocks of as many values.
    unsafe { from_float(values.as_ptr(), out.as_mut_ptr().cast(), values.len() as i64) };
    Ok(out.to_vec())
}

/// ggml's dot product of an encoded row with encoded activations of `n` values, which have the type
/// [`activation_type`] of the row's.
///
/// # Errors
/// [`Error::Length`] if `row` or `activations` do not encode `n` values, [`Error::Unsupported`] if ggml has no
/// dot product for the type.
pub fn vec_dot(ty: WeightType, n: usize, row: &[u8], activations: &[u8]) -> Result<f32, Error> {
    let unsupported = Error::Unsupported { ty, what: "dot product" };
    let activation_ty = activation_type(ty).ok_or(unsupported.clone())?;
    let vec_dot = cpu_traits(ty).vec_dot.ok_or(unsupported)?;
    check_length(ty, n, row)?;
    check_length(activation_ty, n, activations)?;
    let most = c_int::MAX as usize;
    let length = c_int::try_from(n).map_err(|_| Error::Length {
        ty,
        what: "values",
        expected: most,
        found: n,
    })?;
    let (row, activations) = (Aligned::copy_of(row), Aligned::copy_of(activations));
    let mut dot = 0.0;
    // SAFETY: both encode `n` values in their types, aligned; the strides are not used for one row.
    unsafe { vec_dot(length, &mut dot, 0, row.as_ptr(), 0, activations.as_ptr(), 0, 1) };
    Ok(dot)
}
