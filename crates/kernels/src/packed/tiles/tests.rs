//! Tiles against the kernels without: those of the processor, or emulated, and plain loops.

use super::*;
use crate::activations::QuantizedActivations;
use crate::arch::amx::{self, Amx};
use crate::arch::{LANES, scalar, x86_64};
use crate::isa::Level;
use crate::matmul::Matrix;
use crate::packed::{Books, MOST_TOKENS, MultiplyTiles, PackedMatrix, Product, Task, Weights};
use crate::packed::{affine, blocks, coded, integers, iq4_xs, matmul_packed, sixteens};
use crate::{Exec, Isa, Pool, Worker};
use hurtle_quant::WeightType as T;

/// Tiles in plain loops.
struct Loops;

/// What a thread has of them.
struct State {
    n_tokens: usize,
    depth: usize,
    /// The values of each token.
    tokens: Vec<Vec<i8>>,
    /// `[first or second sums][token]`
    sums: [[[i32; LANES]; AT_ONCE]; 2],
}

thread_local! {
    static LOOPS: std::cell::RefCell<State> =
        const { std::cell::RefCell::new(State::new(0, 0)) };
}

impl State {
    /// What the instructions leave is zeros; nothing may rely on it.
    const fn new(n_tokens: usize, depth: usize) -> Self {
        Self { n_tokens, depth, tokens: Vec::new(), sums: [[[7; LANES]; AT_ONCE]; 2] }
    }
}

impl Tiles for Loops {
    unsafe fn configure(n_tokens: usize, depth: usize) {
        assert!((1..=AT_ONCE).contains(&n_tokens));
        LOOPS.set(State::new(n_tokens, depth));
    }
    unsafe fn release() {
        LOOPS.set(State::new(0, 0));
    }
    unsafe fn start(n_tokens: usize) {
        LOOPS.with_borrow_mut(|state| {
            assert_eq!(state.n_tokens, n_tokens);
            state.sums = [[[0; LANES]; AT_ONCE]; 2];
        });
    }
    unsafe fn load_tokens<A>(tokens: &[A], at: usize) {
        LOOPS.with_borrow_mut(|state| {
            assert_eq!(state.n_tokens, tokens.len());
            assert!(at + state.depth <= size_of::<A>());
            // SAFETY: these are bytes of the token.
            let values = |token: &A| unsafe {
                let first = std::ptr::from_ref(token).cast::<i8>().add(at);
                std::slice::from_raw_parts(first, state.depth).to_vec()
            };
            state.tokens = tokens.iter().map(values).collect();
        });
    }
    unsafe fn add_products<const S: usize>(n_tokens: usize, weights: &[Line]) {
        LOOPS.with_borrow_mut(|State { tokens, depth, sums, .. }| {
            assert_eq!((tokens.len(), *depth), (n_tokens, 4 * weights.len()));
            for (x, sums) in tokens.iter().zip(&mut sums[S]) {
                for (k, x) in x.iter().enumerate() {
                    for (row, sum) in sums.iter_mut().enumerate() {
                        *sum += i32::from(*x) * i32::from(weights[k / 4].0[4 * row + k % 4] as i8);
                    }
                }
            }
        });
    }
    unsafe fn finish(n_tokens: usize, to: &mut Sums) {
        LOOPS.with_borrow(|state| {
            assert_eq!(state.n_tokens, n_tokens);
            for (s, sums) in state.sums.iter().enumerate() {
                for (t, sums) in sums[..n_tokens].iter().enumerate() {
                    to.0[t / TILE_TOKENS][s][t % TILE_TOKENS] = bytemuck::cast(*sums);
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
    fn check<K: Tiled, M: Tiles>(&self, books: Books, tiles: &str, tokens: Range<usize>) {
        let pool = Pool::new(1).unwrap();
        let exec = Exec { isa: Isa::scalar(), pool: &pool, n_threads: 1 };
        let matrix = Matrix::new(self.ty, self.n_rows, self.n_cols, &self.bytes).unwrap();
        let weights = PackedMatrix::pack(exec, &[matrix], books, &|_| {}, &|_| {}).unwrap();
        let mut x = QuantizedActivations::new();
        x.quantize(exec, &self.x, [&weights]);
        let mut expected = vec![f32::NAN; tokens.len() * self.n_rows];
        matmul_packed(
            exec,
            &x,
            &[Product::new(Weights::new(&weights, 0, None), tokens.clone(), &mut expected)],
        );

        for isa in Isa::available() {
            let multiply: MultiplyTiles<K::Activations> = match isa.level() {
                Level::Scalar => scalar::multiply_tiles::<K, M>,
                Level::Avx2 => x86_64::avx2::multiply_tiles::<K, M>,
                Level::Avx512Vnni => x86_64::avx512vnni::multiply_tiles::<K, M>,
                _ => continue,
            };
            let mut found = vec![f32::NAN; expected.len()];
            let weights = Weights::new(&weights, 0, None);
            let panels = 0..self.n_rows.div_ceil(PANEL_ROWS);
            let task = Task { exec, x: &x, tokens: tokens.clone(), weights, panels };
            let product = Product::new(weights, tokens.clone(), &mut found);
            let mut worker = Worker::default();
            // SAFETY: the lanes are available; the tiles are, or are emulated. One thread writes.
            unsafe {
                task.by_tiles::<K>(multiply, &mut worker, |panel, token, dots| {
                    product.write(panel, token, dots);
                });
            }
            for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
                let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                let Self { ty, n_rows, n_cols, .. } = self;
                let what =
                    format!("{ty} {n_rows}x{n_cols}, {books:?}, tokens {tokens:?}, {tiles}, {isa}");
                assert!(same, "{what}: {a:?} instead of {b:?} at {i}");
            }
        }
    }
}

/// All types with some tiles, ragged rows, columns and numbers of tokens.
fn check_all<M: Tiles>(tiles: &str, token_counts: impl Iterator<Item = usize> + Clone) {
    fn check<K: Tiled, M: Tiles>(
        ty: T,
        books: Books,
        tiles: &str,
        counts: impl Iterator<Item = usize>,
    ) {
        for n_tokens in counts {
            let n_rows = [1, 16, 17, 40][n_tokens % 4];
            // A unit and a part of it, blocks without a second one.
            let n_blocks = if K::BLOCKS == 2 { [1, 7, 8, 11, 16] } else { [1, 2, 3, 1, 2] };
            let n_cols = n_blocks[n_tokens % 5] * K::LEN * K::PIECES;
            let case = Case::new(ty, n_rows, n_cols, n_tokens);
            case.check::<K, M>(books, tiles, 0..n_tokens);
            case.check::<K, M>(books, tiles, n_tokens / 3..n_tokens);
        }
    }
    fn check_long<K: Tiled, M: Tiles>(ty: T, tiles: &str, n_cols: usize) {
        // More tokens, and more panels, than meet at a time.
        let n_tokens = MOST_TOKENS + 70;
        Case::new(ty, 150, n_cols, n_tokens).check::<K, M>(Books::LookedUp, tiles, 1..n_tokens);
    }
    check_long::<affine::Q4K, M>(T::Q4_K, tiles, 512);
    check_long::<blocks::Q5_0, M>(T::Q5_0, tiles, 32 * 11);
    macro_rules! check {
        ($($name:ident: $kernel:path $(| $kept:path)?,)+) => {
            // All but those that meet activations as they are, and one whose blocks have two scales.
            let types = [T::F32, T::F16, T::BF16, T::NVFP4, $(T::$name),+];
            assert!(T::ALL.iter().all(|ty| types.contains(ty) == PackedMatrix::supports(*ty)));
            $(
                assert!(<$kernel>::TILES.is_some(), "{} has no tiles", T::$name);
                check::<$kernel, M>(T::$name, Books::LookedUp, tiles, token_counts.clone());
                $(check::<$kept, M>(T::$name, Books::Kept, tiles, token_counts.clone());)?
            )+
        };
    }
    check! {
        Q4_K: affine::Q4K,
        Q5_K: affine::Q5K,
        Q6_K: sixteens::Q6K,
        Q3_K: sixteens::Q3K,
        Q2_K: sixteens::Q2K,
        IQ4_XS: iq4_xs::Iq4Xs,
        IQ1_S: coded::Iq1S | integers::Iq1S,
        IQ1_M: coded::Iq1M | integers::Iq1M,
        IQ2_XXS: coded::Iq2Xxs | integers::Iq2Xxs,
        IQ2_XS: coded::Iq2Xs | integers::Iq2Xs,
        IQ2_S: coded::Iq2S | integers::Iq2S,
        IQ3_XXS: coded::Iq3Xxs | integers::Iq3Xxs,
        IQ3_S: coded::Iq3S | integers::Iq3S,
        TQ1_0: coded::Tq1_0 | integers::Tq1_0,
        TQ2_0: coded::Tq2_0,
        Q8_0: blocks::Q8_0,
        Q4_0: blocks::Q4_0,
        Q4_1: blocks::Q4_1,
        Q5_0: blocks::Q5_0,
        Q5_1: blocks::Q5_1,
        IQ4_NL: blocks::Iq4Nl,
        MXFP4: blocks::Mxfp4,
        Q1_0: blocks::Q1_0,
        Q2_0: blocks::Q2_0,
    }
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
