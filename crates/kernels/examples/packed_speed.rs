//! How fast packed weights are read by their kernels, next to the bandwidth of plain reads.
//!
//! `cargo run --release -p hurtle-kernels --example packed_speed [ISA [TYPE [ROWS COLS [TOKENS]]]]`
//!
//! Prints GB/s of weight bytes for products of a matrix (8960 x 1536), with enough copies that no
//! cache holds them; the best of several rounds.

use hurtle_kernels::activations::QuantizedActivations;
use hurtle_kernels::matmul::Matrix;
use hurtle_kernels::packed::{Books, PackedMatrix, Product, Weights, matmul_packed};
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_quant::WeightType as T;
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 7;

/// Seconds of a piece, in the fastest of several rounds over all pieces.
fn best(pieces: usize, mut piece: impl FnMut(usize)) -> f64 {
    let mut round = || {
        let start = Instant::now();
        (0..pieces).for_each(&mut piece);
        start.elapsed().as_secs_f64() / pieces as f64
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

/// GB/s of adding up a buffer, in pieces of 8 MiB.
fn read_bandwidth(exec: Exec<'_>, buffer: &[u64]) -> f64 {
    const PIECE: usize = 1 << 20;
    let seconds = best(buffer.len() / PIECE, |i| {
        exec.for_chunks(PIECE, PIECE / 16, |range, _| {
            let piece = &buffer[i * PIECE..(i + 1) * PIECE][range];
            black_box(piece.iter().fold(0u64, |sum, x| sum.wrapping_add(*x)));
        });
    });
    (PIECE * size_of::<u64>()) as f64 / seconds / 1e9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let isa = args.first().map_or(Ok(Isa::best()), |name| name.parse())?;
    let types: Vec<T> = match args.get(1) {
        Some(name) => vec![T::from_name(name).ok_or("unknown weight type")?],
        None => T::ALL.iter().copied().filter(|ty| PackedMatrix::supports(*ty)).collect(),
    };
    let size = |i: usize, default| args.get(i).map_or(Ok(default), |arg| arg.parse::<usize>());
    let (rows, cols) = (size(2, 8960)?, size(3, 1536)?);
    let token_counts = match args.get(4) {
        Some(n) => vec![n.parse()?],
        None => vec![1, 2, 4, 8, 16, 512],
    };
    let pool = Pool::new(2)?;
    let exec = |n_threads| Exec { isa, pool: &pool, n_threads };
    println!("{isa}: GB/s of weights");
    {
        let buffer = vec![1u64; 64 << 20];
        let [one, two] = [1, 2].map(|n| read_bandwidth(exec(n), &buffer));
        println!("plain reads      1 thread {one:5.1}   2 threads {two:5.1}");
    }
    for ty in types {
        let bytes = vec![0x35; ty.row_bytes(rows * cols).ok_or("shape")?];
        let matrix = Matrix::new(ty, rows, cols, &bytes).ok_or("shape")?;
        let copies = (400 << 20) / bytes.len();
        let start = Instant::now();
        let copies: Option<Vec<_>> = (0..copies)
            .map(|_| PackedMatrix::pack(exec(2), &[matrix], Books::LookedUp, &|_| {}, &|_| {}))
            .collect();
        let copies = copies.ok_or("no kernel")?;
        let n_bytes = copies.len() * copies[0].n_bytes();
        let packing = n_bytes as f64 / start.elapsed().as_secs_f64() / 1e9;
        println!("{ty:6} packed at {packing:.1} GB/s");
        let x = vec![1.5; 64 * cols];
        let mut activations = QuantizedActivations::new();
        let seconds = best(100, |_| activations.quantize(exec(1), &x, &copies[..1]));
        println!("  activations    1 thread {:5.1} values/ns", x.len() as f64 / seconds / 1e9);
        for &n_tokens in &token_counts {
            let x: Vec<f32> = (0..n_tokens * cols).map(|i| (i % 101) as f32 / 50.0 - 1.0).collect();
            let mut activations = QuantizedActivations::new();
            let mut out = vec![0.0; n_tokens * rows];
            // Enough that the weights come from memory, few enough that it ends.
            let used = if n_tokens > 64 { copies.len().min(8) } else { copies.len() };
            let [one, two] = [1, 2].map(|n_threads| {
                activations.quantize(exec(n_threads), &x, &copies[..1]);
                let seconds = best(used, |i| {
                    let product =
                        Product::new(Weights::new(&copies[i], 0, None), 0..n_tokens, &mut out);
                    matmul_packed(exec(n_threads), &activations, &[product]);
                });
                copies[0].n_bytes() as f64 / seconds / 1e9
            });
            let gops =
                |gbs: f64| gbs / copies[0].n_bytes() as f64 * (2 * rows * cols * n_tokens) as f64;
            println!(
                "  {n_tokens:3} tokens     1 thread {one:5.1}   2 threads {two:5.1}   ({:.0} and {:.0} Gop/s)",
                gops(one),
                gops(two)
            );
        }
    }
    Ok(())
}
