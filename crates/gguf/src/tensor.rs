//! Where a tensor lies and how large it is.

use hurtle_quant::WeightType;
use std::sync::Arc;

/// Most dimensions that ggml has.
pub(crate) const MAX_DIMS: usize = 4;

/// Where a tensor lies and what it holds.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    name: Arc<str>,
    layout: Layout,
    shard: usize,
    /// From the start of the shard.
    offset: usize,
}

impl TensorInfo {
    pub(crate) fn new(name: Arc<str>, layout: Layout, shard: usize, offset: usize) -> Self {
        Self { name, layout, shard, offset }
    }
    pub(crate) fn shared_name(&self) -> &Arc<str> {
        &self.name
    }
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.layout.n_bytes
    }
    /// Name, e.g. `blk.0.attn_q.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Sizes, fastest-varying first (ggml's `ne`); 1 to 4 of them.
    pub fn dims(&self) -> &[u64] {
        self.layout.dims()
    }
    /// Weight type.
    pub fn ty(&self) -> WeightType {
        self.layout.ty
    }
    /// Bytes of the data.
    pub fn n_bytes(&self) -> usize {
        self.layout.n_bytes
    }
    /// Number of values: the product of the dimensions.
    pub fn n_elements(&self) -> u64 {
        self.dims().iter().product()
    }
    /// Which of [`Gguf::paths`](crate::Gguf::paths) holds the data.
    pub fn shard(&self) -> usize {
        self.shard
    }
    /// Where the data starts, in bytes from the start of its file.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

/// Shape and weight type, checked: no dimension is 0, the rows are whole blocks, and neither the
/// number of values nor the number of bytes overflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    dims: [u64; MAX_DIMS],
    n_dims: u8,
    ty: WeightType,
    n_bytes: usize,
}

impl Layout {
    /// On failure what was expected, and what was found.
    pub(crate) fn new(dims: &[u64], ty: WeightType) -> Result<Self, (String, String)> {
        let n_dims = dims.len();
        if n_dims == 0 || n_dims > MAX_DIMS {
            return Err((format!("1 to {MAX_DIMS} dimensions"), n_dims.to_string()));
        }
        let shape = || format!("{dims:?}");
        if dims.contains(&0) {
            return Err(("dimensions of at least 1".into(), shape()));
        }
        let block_len = ty.block_len();
        if !dims[0].is_multiple_of(block_len as u64) {
            return Err((format!("rows of a multiple of {block_len} values ({ty})"), shape()));
        }
        let too_large = || ("a tensor that fits the address space".into(), shape());
        let n_rows = dims[1..].iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
        let n_bytes = n_rows
            .filter(|&n_rows| dims[0].checked_mul(n_rows).is_some())
            .zip(usize::try_from(dims[0]).ok().and_then(|n| ty.row_bytes(n)))
            .and_then(|(n_rows, row)| usize::try_from(n_rows).ok()?.checked_mul(row))
            .filter(|&n| isize::try_from(n).is_ok())
            .ok_or_else(too_large)?;
        let mut layout = Self { dims: [1; MAX_DIMS], n_dims: n_dims as u8, ty, n_bytes };
        layout.dims[..n_dims].copy_from_slice(dims);
        Ok(layout)
    }
    pub(crate) fn dims(&self) -> &[u64] {
        &self.dims[..usize::from(self.n_dims)]
    }
    pub(crate) fn ty(&self) -> WeightType {
        self.ty
    }
    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}
