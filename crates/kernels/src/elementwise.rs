//! Operations on single tokens: norms, activations, rotary positions.

use crate::arch::{all, dispatch};
use crate::share::Shared;
use crate::{Exec, Isa};

/// How many values make it worth while to wake other threads.
const PARALLEL: usize = 16 * 1024;

impl Exec<'_> {
    /// Calls `f(row, index)` for each of the rows of `x` (`[n, width]`), on all threads if there is
    /// enough to do.
    ///
    /// # Panics
    /// If `x` does not hold whole rows.
    pub fn for_rows(&self, x: &mut [f32], width: usize, f: impl Fn(&mut [f32], usize) + Sync) {
        assert!(
            width > 0 && x.len().is_multiple_of(width),
            "{} values in rows of {width}",
            x.len()
        );
        if x.len() < PARALLEL {
            for (i, row) in x.chunks_exact_mut(width).enumerate() {
                f(row, i);
            }
            return;
        }
        let n = x.len() / width;
        let x = Shared::new(x);
        self.for_chunks(n, (PARALLEL / 4 / width).max(1), |rows, _| {
            for i in rows {
                // SAFETY: each row is visited once.
                f(unsafe { x.range(i * width, width) }, i);
            }
        });
    }

    /// Calls `f(row of x, row of y, index)` for each of the rows of both (`[n, width]`), on all threads
    /// if there is enough to do.
    ///
    /// # Panics
    /// If `x` does not hold whole rows, or `y` as many.
    pub fn for_row_pairs(
        &self,
        x: &mut [f32],
        y: &mut [f32],
        width: usize,
        f: impl Fn(&mut [f32], &mut [f32], usize) + Sync,
    ) {
        assert_eq!(x.len(), y.len(), "two rows for each index");
        let y = Shared::new(y);
        // SAFETY: each row is visited once.
        self.for_rows(x, width, |x, i| f(x, unsafe { y.range(i * width, width) }, i));
    }
}

/// `x[i] = x[i] / sqrt(mean(x²) + eps) · weight` for each row of `x` (`[n, weight.len()]`), after
/// "Root Mean Square Layer Normalization" (arXiv:1910.07467).
pub fn rms_norm(exec: Exec<'_>, x: &mut [f32], weight: &[f32], eps: f32) {
    exec.for_rows(x, weight.len(), |row, _| rms_norm_row(exec.isa, row, weight, eps));
}

/// [`rms_norm`] of one row.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm_row(isa: Isa, row: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(row.len(), weight.len(), "row and weight of a norm");
    dispatch!(isa, rms_norm(row, weight, eps));
}

/// `x[i] = (x[i] - mean(x)) / sqrt(variance(x) + eps) · weight + bias` for each row of `x`
/// (`[n, weight.len()]`), after "Layer Normalization" (arXiv:1607.06450).
///
/// # Panics
/// If `bias` is not as long as `weight`.
pub fn layer_norm(exec: Exec<'_>, x: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) {
    exec.for_rows(x, weight.len(), |row, _| layer_norm_row(exec.isa, row, weight, bias, eps));
}

/// [`layer_norm`] of one row.
///
/// # Panics
/// If the lengths differ.
pub fn layer_norm_row(isa: Isa, row: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) {
    assert_eq!(row.len(), weight.len(), "row and weight of a norm");
    assert!(bias.is_none_or(|bias| bias.len() == row.len()), "bias of a norm");
    dispatch!(isa, layer_norm(row, weight, bias, eps));
}

/// The function between the two halves of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
    /// gpt-oss: gate clamped to at most 7, up to ±7, `gate · sigmoid(1.702 gate) · (up + 1)`.
    SwigluOai,
}

/// Values that a thread takes at a time. It divides `PARALLEL`, so that each piece of `gate` finds its
/// piece of `up`.
const PIECE: usize = 4096;

/// `gate = activation(gate) · up`, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn gate(exec: Exec<'_>, activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up");
    let whole = gate.len() - gate.len() % PIECE;
    let (head, tail) = gate.split_at_mut(whole);
    exec.for_rows(head, PIECE, |gate, i| {
        dispatch!(exec.isa, gate(activation, gate, &up[i * PIECE..(i + 1) * PIECE]));
    });
    dispatch!(exec.isa, gate(activation, tail, &up[whole..]));
}

/// `x = activation(x)`, element by element: a gate whose `up` is 1 everywhere.
pub fn activate(exec: Exec<'_>, activation: Activation, x: &mut [f32]) {
    static ONES: [f32; PIECE] = [1.0; PIECE];
    let whole = x.len() - x.len() % PIECE;
    let (head, tail) = x.split_at_mut(whole);
    exec.for_rows(head, PIECE, |x, _| dispatch!(exec.isa, gate(activation, x, &ONES)));
    let ones = &ONES[..tail.len()];
    dispatch!(exec.isa, gate(activation, tail, ones));
}

/// `cap · tanh(x / cap)`.
pub fn soft_cap(exec: Exec<'_>, x: &mut [f32], cap: f32) {
    exec.for_rows(x, 1, |x, _| x[0] = cap * all::tanh(x[0] / cap));
}

/// Which values of a head form a rotating pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours: `(x[2i], x[2i + 1])`.
    Norm,
    /// Halves: `(x[i], x[i + n_rot / 2])`.
    Neox,
}

/// Rotates the first `2 · n_pairs` values of each head, after "RoFormer" (arXiv:2104.09864).
///
/// `x` is `[n_tokens, n_heads, head_dim]`; `table` is `[n_tokens, n_pairs]` of (cosine, sine).
///
/// # Panics
/// If a length does not fit.
pub fn rope(
    exec: Exec<'_>,
    x: &mut [f32],
    n_heads: usize,
    head_dim: usize,
    style: RopeStyle,
    table: &[(f32, f32)],
    n_pairs: usize,
) {
    assert!(2 * n_pairs <= head_dim, "{n_pairs} pairs in a head of {head_dim}");
    assert_eq!(x.len() * n_pairs, table.len() * n_heads * head_dim, "rope table");
    exec.for_rows(x, n_heads * head_dim, |token, t| {
        let table = &table[t * n_pairs..(t + 1) * n_pairs];
        dispatch!(exec.isa, rope(token, head_dim, style, table));
    });
}

/// Turns `x` into its softmax.
pub fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in x.iter_mut() {
        *x = all::exp(*x - max);
        sum += *x;
    }
    for x in x.iter_mut() {
        *x /= sum;
    }
}

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + all::exp(-x))
}
