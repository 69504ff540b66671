//! How fast the packed kernels compute: weights that stay in L2, so that memory costs nothing.
//!
//! Decoding runs at the lower of this rate and the bandwidth of memory, thread by thread. Where the
//! bandwidth for a thread is higher than the rate of a kernel, its arithmetic decides.

use crate::random_values;
use crate::spread::{Spread, time};
use crate::work::{multiply_packed, pack, quantize};
use hurtle_kernels::activations::QuantizedActivations;
use hurtle_kernels::matmul::Matrix;
use hurtle_kernels::packed::PackedMatrix;
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_quant::WeightType;
use serde::Serialize;
use std::error::Error;
use std::time::Duration;

/// Tokens at once.
const TOKENS: [usize; 5] = [1, 2, 4, 8, 16];
/// Bytes of weights, at most: with the activations they fit into an L2 cache of 256 KiB.
const BYTES: usize = 192 << 10;
const COLS: usize = 1536;

/// A weight type on an instruction set.
#[derive(Debug, Serialize)]
pub(crate) struct Rate {
    weight_type: &'static str,
    isa: &'static str,
    tokens: [usize; TOKENS.len()],
    /// GB of weights a second on one thread, for as many tokens; each weight counts once. Of the
    /// fastest turn: what interrupted the others was not the kernel.
    gb_per_s: [f64; TOKENS.len()],
    /// Seconds of a product.
    seconds: [Spread; TOKENS.len()],
}

/// Measures every weight type that can be packed on every instruction set, all in turn, for
/// `rounds` rounds.
///
/// # Errors
/// If the system refuses threads or memory.
pub(crate) fn measure(rounds: u32, turn: Duration) -> Result<Vec<Rate>, Box<dyn Error>> {
    let pool = Pool::new(1)?;
    let exec = |isa| Exec { isa, pool: &pool, n_threads: 1 };
    let mut matrices = Vec::new();
    for ty in WeightType::ALL.iter().copied().filter(|ty| PackedMatrix::supports(*ty)) {
        let row_bytes = ty.row_bytes(COLS).ok_or("columns")?;
        let n_rows = (BYTES / row_bytes).next_multiple_of(16) - 16;
        // Their values do not matter, as long as the scales are ordinary numbers.
        let bytes = vec![0x35; n_rows * row_bytes];
        let matrix = Matrix::new(ty, n_rows, COLS, &bytes).ok_or("shape")?;
        let matrix = pack(exec(Isa::best()), &matrix).ok_or("no kernel")?;
        let tokens = TOKENS.map(|n| {
            let x: Vec<f32> = random_values(3, n * COLS).collect();
            quantize(exec(Isa::best()), &x, &matrix)
        });
        matrices.push((ty, matrix, tokens));
    }
    let isas = Isa::available();
    let cases = matrices.iter().flat_map(|matrix| isas.iter().map(move |&isa| (matrix, isa)));
    let cases: Vec<_> = cases.collect();
    let mut samples = vec![[const { Vec::new() }; TOKENS.len()]; cases.len()];
    let mut out = Vec::new();
    for _ in 0..rounds {
        for (samples, &((_, matrix, tokens), isa)) in samples.iter_mut().zip(&cases) {
            for (samples, x) in samples.iter_mut().zip(tokens) {
                samples.push(seconds(exec(isa), matrix, x, &mut out, turn));
            }
        }
    }
    let rate = |(samples, &((ty, matrix, _), isa)): (&[Vec<f64>; 5], &(&(_, _, _), Isa))| {
        let ty: &WeightType = ty;
        let matrix: &PackedMatrix = matrix;
        let seconds = samples.each_ref().map(|samples| Spread::of(samples));
        let seconds = seconds.map(|spread| spread.expect("there is at least one round"));
        Rate {
            weight_type: ty.name(),
            isa: isa.name(),
            tokens: TOKENS,
            gb_per_s: seconds.map(|spread| matrix.n_bytes() as f64 / spread.min / 1e9),
            seconds,
        }
    };
    Ok(samples.iter().zip(&cases).map(rate).collect())
}

/// Seconds of a product, over a turn.
fn seconds(
    exec: Exec<'_>,
    matrix: &PackedMatrix,
    x: &QuantizedActivations,
    out: &mut Vec<f32>,
    turn: Duration,
) -> f64 {
    out.resize(x.n_tokens() * matrix.n_rows(), 0.0);
    multiply_packed(exec, matrix, x, out);
    time(turn, || multiply_packed(exec, matrix, x, out))
}

/// A row for each weight type and instruction set.
pub(crate) fn print(rates: &[Rate]) {
    println!("\nGB/s of weights in L2, one thread, fastest turn\n");
    let tokens = TOKENS.map(|n| if n == 1 { "1 token".to_owned() } else { n.to_string() });
    println!("| weights | instruction set | {} |", tokens.join(" | "));
    println!("|---|---|{}", "--:|".repeat(TOKENS.len()));
    for Rate { weight_type, isa, gb_per_s, .. } in rates {
        let cells = gb_per_s.map(|rate| format!("{rate:.2}"));
        println!("| {weight_type} | {isa} | {} |", cells.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_rate_on_every_instruction_set() {
        let rates = measure(1, Duration::ZERO).unwrap();
        let types = WeightType::ALL.iter().filter(|ty| PackedMatrix::supports(**ty)).count();
        assert_eq!(rates.len(), types * Isa::available().len());
        assert!(rates.iter().flat_map(|rate| rate.gb_per_s).all(|rate| rate > 0.0));
    }
}
