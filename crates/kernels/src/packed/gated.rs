//! The first half of a gated feed-forward network for many tokens.
//!
//! The products of a prompt with gate and up are more than caches hold (36 MB for 512 tokens and 8960 rows):
//! written as a whole and read again, they would go through memory twice. Here a thread computes some rows of both
//! for some tokens, multiplies and quantizes them while they are in its cache, and only the quantized activations
//! are written.

use super::{PANEL_ROWS, PackedMatrix, Task, Weights};
use crate::Exec;
use crate::activations::QuantizedActivations;
use crate::arch::dispatch;
use crate::elementwise::Activation;

/// Rows that a thread takes at a time: the largest block of activations.
const ROWS: usize = 256;

/// Fewest tokens that a thread takes at a time. Fewer would not win back what unpacking the weights takes.
const LEAST: usize = 48;

/// Parts of the work for each thread, at least, so that all end at about the same time.
const PARTS: usize = 16;

/// Tokens that a thread takes at a time: the results of both matrices fill half of the second level's cache.
fn tokens_at_once(exec: Exec<'_>, n_tokens: usize, n_rows: usize) -> usize {
    let fit = exec.pool.caches().l2 / 2 / (2 * ROWS * size_of::<f32>());
    let parts = (PARTS * exec.n_threads).div_ceil(n_rows.div_ceil(ROWS).max(1));
    let groups = n_tokens.div_ceil(fit.max(1)).max(parts).max(1);
    n_tokens.div_ceil(groups).next_multiple_of(16)
}

/// Whether so many tokens and rows are enough for [`matmul_gated`] to be faster than products that are written and
/// read again. The results have the same bits.
pub fn multiplies_gated(exec: Exec<'_>, n_tokens: usize, n_rows: usize) -> bool {
    n_tokens >= LEAST && tokens_at_once(exec, n_tokens, n_rows) >= LEAST
}

/// `out[token, row] = activation(gate[row] · x[token]) * (up[row] · x[token])`, in the form that `down` needs.
///
/// # Panics
/// If the shapes do not fit, or the activations were made without one of the matrices.
pub fn matmul_gated(
    exec: Exec<'_>,
    x: &QuantizedActivations,
    [gate, up]: [Weights<'_>; 2],
    activation: Activation,
    down: &PackedMatrix,
    out: &mut QuantizedActivations,
) {
    let n_rows = down.n_cols();
    for weights in [gate, up] {
        assert_eq!(weights.matrix.n_cols(), x.n_cols(), "columns");
        assert_eq!(weights.matrix.n_rows(), n_rows, "rows of gate and up, columns of down");
    }
    let n_tokens = x.n_tokens();
    let room = out.make_room(n_tokens, down);
    let at_once = tokens_at_once(exec, n_tokens, n_rows).max(1);
    let groups = n_tokens.div_ceil(at_once);
    exec.for_chunks(n_rows.div_ceil(ROWS) * groups, 1, |items, worker| {
        for item in items {
            let first = item / groups * ROWS;
            let rows = first..n_rows.min(first + ROWS);
            let tokens = item % groups * at_once;
            let tokens = tokens..n_tokens.min(tokens + at_once);
            let panels = first / PANEL_ROWS..rows.end.div_ceil(PANEL_ROWS);
            worker.with_results(2 * tokens.len() * ROWS, |results, worker| {
                let (gates, ups) = results.split_at_mut(tokens.len() * ROWS);
                for (weights, results) in [(gate, &mut *gates), (up, &mut *ups)] {
                    let (tokens, panels) = (tokens.clone(), panels.clone());
                    let first_token = tokens.start;
                    let task = Task { exec, x, tokens, weights, panels };
                    task.run(worker, |panel, token, dots| {
                        let rows = PANEL_ROWS.min(n_rows - panel * PANEL_ROWS);
                        for (token, dots) in (token - first_token..).zip(dots) {
                            let at = token * ROWS + panel * PANEL_ROWS - first;
                            weights.write(panel, dots, &mut results[at..at + rows]);
                        }
                    });
                }
                let (gates, ups) = (gates.chunks_exact_mut(ROWS), ups.chunks_exact(ROWS));
                for (token, (gates, ups)) in tokens.zip(gates.zip(ups)) {
                    let (gates, ups) = (&mut gates[..rows.len()], &ups[..rows.len()]);
                    dispatch!(exec.isa, gate(activation, gates, ups));
                    // SAFETY: each item has rows and tokens of its own.
                    unsafe { room.put(exec, token, first, gates) };
                }
            });
        }
    });
}
