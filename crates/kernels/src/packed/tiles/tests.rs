//! Tiles against the kernels without: those of the processor, or emulated, and plain loops.

use super::*;
use crate::activations::QuantizedActivations;
use crate::arch::amx::{self, Amx};
use crate::arch::{scalar, x86_64};
use crate::isa::Level;
use crate::matmul::Matrix;
use crate::packed::{MultiplyTiles, PackedMatrix, Product, TILES_IN_CACHE};
use crate::packed::{affine, iq4_xs, matmul_packed, panels_as, sixteens};
use crate::{Exec, Isa, Pool, Worker};
use hurtle_quant::WeightType as T;

/// Tiles in plain loops.
struct Loops;

impl Tiles for Loops {
    unsafe fn configure(n_tokens: usize) {
        assert!((1..=2 * TILE_TOKENS).contains(&n_tokens));
    }
    unsafe fn release() {}
    unsafe fn multiply(tokens: &[SuperBlock], digits: &Digits, sums: &mut Sums) {
        for (t, token) in tokens.iter().enumerate() {
            for (d, digits) in digits.chunks(DIGIT_LINES).enumerate() {
                for row in 0..LANES {
                    let mut sum = 0;
                    for (line, x) in digits.iter().zip(token.qs) {
                        for (w, x) in line.0[4 * row..4 * row + 4].iter().zip(x.to_le_bytes()) {
                            sum += i32::from(*w as i8) * i32::from(x as i8);
                        }
                    }
                    let to = &mut sums.0[t / TILE_TOKENS][d][t % TILE_TOKENS].0;
                    to[4 * row..4 * row + 4].copy_from_slice(&sum.to_le_bytes());
                }
            }
        }
    }
}

fn noise_bytes(seed: u64, n: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| random.u8(..)).collect()
}

/// Weights of a type, and tokens that they meet.
struct Case {
    ty: T,
    n_rows: usize,
    n_cols: usize,
    bytes: Vec<u8>,
    x: Vec<f32>,
}

impl Case {
    /// Weights of any bits: every quant and scale, infinities and NaN.
    fn new(ty: T, n_rows: usize, n_cols: usize, n_tokens: usize) -> Self {
        let bytes = noise_bytes(n_rows as u64, ty.row_bytes(n_rows * n_cols).unwrap());
        let random = noise_bytes(n_tokens as u64, n_tokens * n_cols);
        let mut x: Vec<_> = random.into_iter().map(|x| f32::from(x as i8) / 16.0).collect();
        // The largest sums there are.
        x[..n_cols].fill(1.0);
        Self { ty, n_rows, n_cols, bytes, x }
    }

    /// The products of tokens `tokens` by tiles against those of the other kernels.
    fn check<K: SuperBlocks, M: Tiles>(&self, tiles: &str, tokens: Range<usize>) {
        let pool = Pool::new(1).unwrap();
        let exec = Exec { isa: Isa::scalar(), pool: &pool, n_threads: 1 };
        let matrix = Matrix::new(self.ty, self.n_rows, self.n_cols, &self.bytes).unwrap();
        let weights = PackedMatrix::pack(exec, &[matrix], &|_| {}, &|_| {}).unwrap();
        let mut x = QuantizedActivations::new();
        x.quantize(exec, &self.x, [&weights]);
        let mut expected = vec![f32::NAN; tokens.len() * self.n_rows];
        matmul_packed(exec, &x, &[Product::new(&weights, 0, tokens.clone(), None, &mut expected)]);

        for isa in Isa::available() {
            let multiply: MultiplyTiles<SuperBlock> = match isa.level() {
                Level::Scalar => scalar::multiply_tiles::<K, M>,
                Level::Avx2 => x86_64::avx2::multiply_tiles::<K, M>,
                Level::Avx512Vnni => x86_64::avx512vnni::multiply_tiles::<K, M>,
                _ => continue,
            };
            let mut found = vec![f32::NAN; expected.len()];
            let product = Product::new(&weights, 0, tokens.clone(), None, &mut found);
            let (panels, exec) = (0..product.n_panels(), Exec { isa, ..exec });
            let mut worker = Worker::default();
            // SAFETY: the lanes are available; the tiles are, or are emulated.
            unsafe {
                panels_as::<K>(exec, &product, panels, &x, Some(multiply), &mut worker);
            }
            for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
                let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                let Self { ty, n_rows, n_cols, .. } = self;
                let what = format!("{ty} {n_rows}x{n_cols}, tokens {tokens:?}, {tiles}, {isa}");
                assert!(same, "{what}: {a:?} instead of {b:?} at {i}");
            }
        }
    }
}

/// All types with some tiles, ragged rows and numbers of tokens.
fn check_all<M: Tiles>(tiles: &str, token_counts: impl Iterator<Item = usize> + Clone) {
    fn check<K: SuperBlocks, M: Tiles>(ty: T, tiles: &str, counts: impl Iterator<Item = usize>) {
        for n_tokens in counts {
            let (n_rows, n_blocks) = ([1, 16, 17, 40][n_tokens % 4], 1 + n_tokens % 3);
            let case = Case::new(ty, n_rows, n_blocks * 256, n_tokens);
            case.check::<K, M>(tiles, 0..n_tokens);
            case.check::<K, M>(tiles, n_tokens / 3..n_tokens);
        }
    }
    // More tokens than the cache holds.
    let long = Case::new(T::Q4_K, 17, 8192, 150);
    assert!(149 * 32 * size_of::<SuperBlock>() > TILES_IN_CACHE);
    long.check::<affine::Q4K, M>(tiles, 1..150);
    check::<affine::Q4K, M>(T::Q4_K, tiles, token_counts.clone());
    check::<affine::Q5K, M>(T::Q5_K, tiles, token_counts.clone());
    check::<sixteens::Q6K, M>(T::Q6_K, tiles, token_counts.clone());
    check::<sixteens::Q3K, M>(T::Q3_K, tiles, token_counts.clone());
    check::<sixteens::Q2K, M>(T::Q2_K, tiles, token_counts.clone());
    check::<iq4_xs::Iq4Xs, M>(T::IQ4_XS, tiles, token_counts);
}

#[test]
#[cfg_attr(miri, ignore = "slow")]
fn tiles_give_the_bits_of_the_other_kernels() {
    check_all::<Loops>("loops", 1..=70);
}

/// The instructions themselves, on any processor.
#[test]
#[cfg_attr(miri, ignore = "instructions in the text, and a signal handler")]
fn tile_instructions_give_the_bits_of_the_other_kernels() {
    if Isa::best().level() == Level::Amx {
        println!("AMX: of this processor");
    } else {
        println!("AMX: emulated, this processor has none");
        emulator::install();
    }
    // SAFETY: the instructions are there, or emulated.
    unsafe { amx::products(3) };
    check_all::<Amx>("AMX", [1, 2, 7, 15, 16, 17, 18, 31, 32, 33, 48, 49, 64, 70].into_iter());
}
