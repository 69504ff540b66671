//! Matrix products with encoded weights.

use crate::Exec;
use crate::arch::dispatch;
use crate::share::Shared;
use hurtle_quant::WeightType;

/// A matrix as a GGUF file stores it: `n_rows` encoded rows of `n_cols` values.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    ty: WeightType,
    n_rows: usize,
    n_cols: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// `None` unless `bytes` holds exactly `n_rows` rows of `n_cols > 0` values, in whole blocks.
    pub fn new(ty: WeightType, n_rows: usize, n_cols: usize, bytes: &'a [u8]) -> Option<Self> {
        let row = ty.row_bytes(n_cols)?;
        (n_cols > 0 && row.checked_mul(n_rows)? == bytes.len()).then_some(Self {
            ty,
            n_rows,
            n_cols,
            bytes,
        })
    }

    /// Weight type.
    pub fn ty(&self) -> WeightType {
        self.ty
    }

    /// Outputs.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Inputs.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// The encoded rows.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Encoded bytes of rows `rows`.
    pub(crate) fn row_bytes(&self, rows: std::ops::Range<usize>) -> &'a [u8] {
        let row = self.bytes.len() / self.n_rows.max(1);
        &self.bytes[rows.start * row..rows.end * row]
    }

    /// Decodes row `row` into `out` (`[n_cols]`).
    ///
    /// # Panics
    /// If there is no such row, or `out` has another length, or the type holds no weights
    /// (integers): the loader refuses such tensors.
    pub fn decode_row(&self, exec: Exec<'_>, row: usize, out: &mut [f32]) {
        assert!(row < self.n_rows, "row {row} of {}", self.n_rows);
        decode(exec, self.ty, self.row_bytes(row..row + 1), out);
    }
}

fn decode(exec: Exec<'_>, ty: WeightType, bytes: &[u8], out: &mut [f32]) {
    let decoded = dispatch!(exec.isa, decode(ty, bytes, out));
    decoded.expect("a Matrix holds whole rows of a weight type");
}

/// Decoded values that one step keeps at hand: 128 KiB, to stay in L2.
const PANEL: usize = 32 * 1024;

/// `out[token, row] = weights[row] · x[token]`, with f32 activations and exactly decoded weights.
///
/// `x` is `[n_tokens, n_cols]`, `out` is `[n_tokens, n_rows]`. Each result is one dot product in the
/// order that the crate's introduction fixes, so it depends on its row and its token alone.
///
/// # Panics
/// If a length does not fit the matrix.
pub fn matmul(exec: Exec<'_>, weights: &Matrix<'_>, x: &[f32], out: &mut [f32]) {
    let (n_rows, k) = (weights.n_rows, weights.n_cols);
    assert!(x.len().is_multiple_of(k), "{} activations for rows of {k}", x.len());
    let n_tokens = x.len() / k;
    assert_eq!(out.len(), n_tokens * n_rows, "output");
    if n_tokens == 0 || n_rows == 0 {
        return;
    }
    // A panel of rows is decoded once and meets all tokens. Multiples of 4 keep whole tiles.
    let share = n_rows.div_ceil(4 * exec.n_threads.max(1));
    let panel = (PANEL / k).min(share).max(1).next_multiple_of(4);
    let out = Shared::new(out);
    exec.for_chunks(n_rows, panel, |rows, worker| {
        let decoded = worker.scratch(rows.len() * k);
        decode(exec, weights.ty, weights.row_bytes(rows.clone()), decoded);
        let mut write = |row: usize, token: usize, value: f32| {
            // SAFETY: each chunk writes its own rows' outputs.
            let out = unsafe { out.range(token * n_rows + rows.start + row, 1) };
            out[0] = value;
        };
        dispatch!(exec.isa, matmul_rows(decoded, k, x, &mut write));
    });
}
