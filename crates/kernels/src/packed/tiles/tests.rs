//! Tiles against the kernels without: those of the processor, or emulated, and plain loops.

use super::*;
use crate::activations::QuantizedActivations;
use crate::arch::amx::{self, Amx};
use crate::arch::{scalar, x86_64};
use crate::isa::Level;
use crate::matmul::Matrix;
use crate::packed::{MOST_TOKENS, MultiplyTiles, PackedMatrix, Product};
use crate::packed::{affine, integers, iq4_xs, matmul_packed, panels_by_tiles, sixteens};
use crate::{Exec, Isa, Pool, Worker};
use hurtle_quant::WeightType as T;

/// Tiles in plain loops.
struct Loops;

type LoopSums = [[[i32; LANES]; TILE_TOKENS]; 4];

thread_local! {
    /// The tokens that are configured, and the sums.
    static LOOPS: std::cell::RefCell<(usize, LoopSums)> =
        const { std::cell::RefCell::new((0, [[[0; LANES]; TILE_TOKENS]; 4])) };
}

impl Tiles for Loops {
    unsafe fn configure(n_tokens: usize) {
        assert!((1..=AT_ONCE).contains(&n_tokens));
        // What the instruction leaves is zeros; nothing may rely on it.
        LOOPS.set((n_tokens, [[[7; LANES]; TILE_TOKENS]; 4]));
    }
    unsafe fn release() {
        LOOPS.set((0, [[[7; LANES]; TILE_TOKENS]; 4]));
    }
    unsafe fn start(n_tokens: usize) {
        LOOPS.with_borrow_mut(|(configured, sums)| {
            assert_eq!(*configured, n_tokens);
            *sums = [[[0; LANES]; TILE_TOKENS]; 4];
        });
    }
    unsafe fn add_quarter(tokens: &[SuperBlock], digits: &Digits, k: usize) {
        LOOPS.with_borrow_mut(|(configured, sums)| {
            assert_eq!(*configured, tokens.len());
            for (t, token) in tokens.iter().enumerate() {
                for (d, digits) in digits.chunks(DIGIT_LINES).enumerate() {
                    let sums = &mut sums[2 * (t / TILE_TOKENS) + d][t % TILE_TOKENS];
                    for (i, x) in token.qs.iter().enumerate().skip(16 * k).take(16) {
                        for (row, sum) in sums.iter_mut().enumerate() {
                            let weights = &digits[i].0[4 * row..4 * row + 4];
                            for (w, x) in weights.iter().zip(x.to_le_bytes()) {
                                *sum += i32::from(*w as i8) * i32::from(x as i8);
                            }
                        }
                    }
                }
            }
        });
    }
    unsafe fn finish(n_tokens: usize, to: &mut Sums) {
        LOOPS.with_borrow(|(configured, sums)| {
            assert_eq!(*configured, n_tokens);
            for t in 0..n_tokens {
                for d in 0..2 {
                    let sums = sums[2 * (t / TILE_TOKENS) + d][t % TILE_TOKENS];
                    to.0[t / TILE_TOKENS][d][t % TILE_TOKENS] = bytemuck::cast(sums);
                }
            }
        });
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
            let panels = 0..product.n_panels();
            let mut worker = Worker::default();
            // SAFETY: the lanes are available; the tiles are, or are emulated.
            unsafe {
                panels_by_tiles::<K>(exec, &product, panels, &x, multiply, &mut worker);
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
    // More tokens, and more panels, than meet at a time.
    let n_tokens = MOST_TOKENS + 70;
    let long = Case::new(T::Q4_K, 150, 512, n_tokens);
    long.check::<affine::Q4K, M>(tiles, 1..n_tokens);
    check::<affine::Q4K, M>(T::Q4_K, tiles, token_counts.clone());
    check::<affine::Q5K, M>(T::Q5_K, tiles, token_counts.clone());
    check::<sixteens::Q6K, M>(T::Q6_K, tiles, token_counts.clone());
    check::<sixteens::Q3K, M>(T::Q3_K, tiles, token_counts.clone());
    check::<sixteens::Q2K, M>(T::Q2_K, tiles, token_counts.clone());
    check::<integers::Iq1M, M>(T::IQ1_M, tiles, token_counts.clone());
    check::<integers::Iq2Xxs, M>(T::IQ2_XXS, tiles, token_counts.clone());
    check::<integers::Iq3S, M>(T::IQ3_S, tiles, token_counts.clone());
    check::<integers::Tq2_0, M>(T::TQ2_0, tiles, token_counts.clone());
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
    unsafe {
        amx::products(3);
        amx::pair_products(3);
    }
    check_all::<Amx>("AMX", [1, 2, 7, 15, 16, 17, 18, 31, 32, 33, 48, 49, 64, 70].into_iter());
}
