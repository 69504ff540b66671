//! Values: dot products and matrix products of hurtle and ggml, against f64.

use crate::data::{Noise, decoded, encoded, weight_types, whole_blocks};
use hurtle_ggml::formats::{self, Quantizer, activation_type};
use hurtle_ggml::{Error, Ggml, Layout};
use hurtle_kernels::activations::QuantizedActivations;
use hurtle_kernels::matmul::Matrix;
use hurtle_kernels::packed::{self, Books, PackedMatrix, matmul_packed};
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_quant::WeightType::{self, *};

/// How far f32 sums of the same products may be from f64, in units of the norms: some 50 additions of
/// block sums, each rounded to 6e-8 of what is there.
const ROUNDING: f64 = 1e-6;

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// A row and a token, in numbers.
struct Pair<'a> {
    ty: WeightType,
    weights: &'a [f32],
    x: &'a [f32],
}

impl Pair<'_> {
    fn exact(&self) -> f64 {
        dot(self.weights, self.x)
    }

    /// How far an f32 result may be from `exact`.
    fn tolerance(&self) -> f64 {
        let rounding = ROUNDING * norm(self.weights) * norm(self.x);
        if activation_type(self.ty) != Some(Q8_1) {
            return rounding;
        }
        // The minimum of a block meets the sum of the activations, which Q8_1 keeps in 11 bits.
        let blocks = self.weights.chunks(32).zip(self.x.chunks(32));
        let sums = blocks.map(|(w, x)| {
            let largest = w.iter().fold(0.0f32, |max, w| max.max(w.abs()));
            f64::from(largest) * x.iter().map(|x| f64::from(*x)).sum::<f64>().abs()
        });
        rounding + sums.sum::<f64>() * 2f64.powi(-11)
    }

    #[track_caller]
    fn check(&self, what: &str, found: f32) {
        let (found, exact, tolerance) = (f64::from(found), self.exact(), self.tolerance());
        let distance = (found - exact).abs();
        assert!(
            distance <= tolerance,
            "{} {what}: {found}, exact {exact} ± {tolerance:e}",
            self.ty
        );
    }
}

/// Lengths that are no multiple of what kernels take at a time, in whole blocks.
fn lengths(ty: WeightType) -> Vec<usize> {
    let mut lengths: Vec<usize> =
        [1, 2, 3, 5, 8, 13].iter().map(|n| n * ty.block_len().max(7)).collect();
    lengths.push(whole_blocks(ty, 1536));
    lengths
}

/// A token as hurtle quantizes it for weights of `ty`: the bytes, and the dot product with a row.
fn hurtles_dot(ty: WeightType, row: &[u8], x: &[f32]) -> Option<(Vec<u8>, f32)> {
    use hurtle_quant::*;
    macro_rules! dot {
        ($block:ident, $quantize:ident, $dot:ident) => {{
            let mut blocks = vec![$block::ZERO; x.len() / $block::ZERO.qs.len()];
            $quantize(x, &mut blocks).expect("whole blocks");
            let bytes = blocks.iter().flat_map(|block| block.to_bytes()).collect();
            Some((bytes, $dot(row, &blocks).expect("as many blocks")))
        }};
    }
    match ty {
        WeightType::Q4_0 => dot!(Q8_0Block, quantize_activations_q8_0_into, dot_q4_0_q8_0),
        WeightType::Q5_0 => dot!(Q8_0Block, quantize_activations_q8_0_into, dot_q5_0_q8_0),
        WeightType::Q8_0 => dot!(Q8_0Block, quantize_activations_q8_0_into, dot_q8_0_q8_0),
        WeightType::IQ4_NL => dot!(Q8_0Block, quantize_activations_q8_0_into, dot_iq4_nl_q8_0),
        WeightType::MXFP4 => dot!(Q8_0Block, quantize_activations_q8_0_into, dot_mxfp4_q8_0),
        WeightType::Q4_1 => dot!(Q8_1Block, quantize_activations_q8_1_into, dot_q4_1_q8_1),
        WeightType::Q5_1 => dot!(Q8_1Block, quantize_activations_q8_1_into, dot_q5_1_q8_1),
        WeightType::Q2_K => dot!(Q8KSuperBlock, quantize_activations_q8k_into, dot_q2_k_q8_k),
        WeightType::Q3_K => dot!(Q8KSuperBlock, quantize_activations_q8k_into, dot_q3_k_q8_k),
        WeightType::Q4_K => dot!(Q8KSuperBlock, quantize_activations_q8k_into, dot_q4_k_q8_k),
        WeightType::Q5_K => dot!(Q8KSuperBlock, quantize_activations_q8k_into, dot_q5_k_q8_k),
        WeightType::Q6_K => dot!(Q8KSuperBlock, quantize_activations_q8k_into, dot_q6_k_q8_k),
        WeightType::IQ4_XS => dot!(Q8KSuperBlock, quantize_activations_q8k_into, dot_iq4_xs_q8_k),
        _ => None,
    }
}

#[test]
fn ggmls_dot_products_are_those_of_the_decoded_values() {
    for ty in weight_types() {
        let activation_ty = activation_type(ty).expect("a weight type");
        for (seed, n) in lengths(ty).into_iter().enumerate() {
            let n = n.next_multiple_of(activation_ty.block_len());
            let row = encoded(ty, seed as u64, 1, n);
            let x = Noise::new(100 + seed as u64).values(n, 1.0);
            let x = formats::quantize_activations(activation_ty, Quantizer::Fast, &x)
                .expect("whole blocks");
            let found = formats::vec_dot(ty, n, &row, &x).expect("as many blocks");
            let (weights, x) = (&decoded(ty, &row), &decoded(activation_ty, &x));
            Pair { ty, weights, x }.check(&format!("of {n}"), found);
        }
    }
}

#[test]
fn integer_dot_products_are_ggmls() {
    let mut compared = 0;
    for ty in weight_types() {
        for (seed, n) in lengths(ty).into_iter().enumerate() {
            let n = whole_blocks(ty, n);
            let row = encoded(ty, seed as u64, 1, n);
            let x = Noise::new(200 + seed as u64).values(n, 1.0);
            let Some((x, found)) = hurtles_dot(ty, &row, &x) else { continue };
            compared += 1;
            let activation_ty = activation_type(ty).expect("a weight type");
            let of_ggml = formats::vec_dot(ty, n, &row, &x).expect("as many blocks");
            let (weights, x) = (decoded(ty, &row), decoded(activation_ty, &x));
            // The same integers and the same scales: only the blocks are added up in another order.
            let (distance, norms) = (f64::from(found - of_ggml).abs(), norm(&weights) * norm(&x));
            assert!(distance <= ROUNDING * norms, "{ty} of {n}: {found}, ggml {of_ggml}");
            Pair { ty, weights: &weights, x: &x }.check(&format!("of {n}"), found);
        }
    }
    assert_eq!(compared, 13 * 7);
}

/// A product, its operands and what they mean.
struct Product {
    ty: WeightType,
    n_rows: usize,
    n_cols: usize,
    n_tokens: usize,
    bytes: Vec<u8>,
    weights: Vec<f32>,
    x: Vec<f32>,
}

impl Product {
    fn new(ty: WeightType, [n_rows, n_cols, n_tokens]: [usize; 3]) -> Self {
        let activation_ty = activation_type(ty).expect("a weight type");
        let n_cols = whole_blocks(activation_ty, whole_blocks(ty, n_cols));
        let bytes = encoded(ty, (n_rows * n_cols) as u64, n_rows, n_cols);
        let x = Noise::new(n_tokens as u64).values(n_tokens * n_cols, 1.0);
        Self { ty, n_rows, n_cols, n_tokens, weights: decoded(ty, &bytes), bytes, x }
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix::new(self.ty, self.n_rows, self.n_cols, &self.bytes).expect("whole rows")
    }

    fn name(&self) -> String {
        format!("{} x {} with {} tokens", self.n_rows, self.n_cols, self.n_tokens)
    }

    fn by_ggml(&self, ggml: &Ggml, layout: Layout, n_threads: usize) -> Vec<f32> {
        let matrix = ggml.matrix(&self.matrix(), layout).expect("a matrix for ggml");
        assert_eq!(
            (matrix.ty(), matrix.n_rows(), matrix.n_cols(), matrix.layout()),
            (self.ty, self.n_rows, self.n_cols, layout)
        );
        let mut out = vec![f32::NAN; self.n_tokens * self.n_rows];
        matrix.matmul(n_threads, &self.x, &mut out);
        out
    }

    /// The activations as ggml's products see them.
    fn quantized(&self) -> Vec<f32> {
        let ty = activation_type(self.ty).expect("a weight type");
        let bytes = formats::quantize_activations(ty, Quantizer::Fast, &self.x);
        decoded(ty, &bytes.expect("whole blocks"))
    }

    /// Calls `f` with the number of an output, its row and its token of `x`.
    fn for_each<'a>(&'a self, x: &'a [f32], mut f: impl FnMut(usize, Pair<'a>)) {
        for (t, x) in x.chunks(self.n_cols).enumerate() {
            for (r, weights) in self.weights.chunks(self.n_cols).enumerate() {
                f(t * self.n_rows + r, Pair { ty: self.ty, weights, x });
            }
        }
    }
}

/// Rows, columns and tokens: odd numbers, and those that ggml's interleaved kernels ask for.
const SHAPES: [[usize; 3]; 6] =
    [[1, 256, 1], [7, 300, 1], [16, 512, 1], [19, 256, 3], [24, 768, 5], [32, 1024, 16]];

#[test]
fn ggmls_matrix_products_are_those_of_the_decoded_values() {
    let ggml = Ggml::default();
    for ty in weight_types() {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            let product = Product::new(ty, shape);
            let found = product.by_ggml(&ggml, Layout::File, 1 + i % 3);
            let x = product.quantized();
            product.for_each(&x, |i, pair| pair.check(&product.name(), found[i]));
        }
    }
}

/// Whether ggml has an interleaved layout for a matrix of this shape; finding out needs no encoder, of which
/// some are slow.
fn interleaves(ggml: &Ggml, ty: WeightType, [n_rows, n_cols, _]: [usize; 3]) -> bool {
    let n_cols = whole_blocks(ty, n_cols);
    let bytes = vec![0; ty.row_bytes(n_cols).expect("whole blocks") * n_rows];
    let matrix = Matrix::new(ty, n_rows, n_cols, &bytes).expect("whole rows");
    match ggml.matrix(&matrix, Layout::Repacked) {
        Ok(_) => true,
        Err(Error::Unsupported { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// The interleaved kernels quantize activations of several tokens with an encoder of their own, so each quant
/// may be one off.
#[test]
fn interleaved_products_are_within_a_quant_of_the_others() {
    let ggml = Ggml::default();
    let mut repacked = Vec::new();
    for ty in weight_types() {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            if !interleaves(&ggml, ty, shape) {
                continue;
            }
            repacked.push(ty);
            let product = Product::new(ty, shape);
            let found = product.by_ggml(&ggml, Layout::Repacked, 1 + i % 3);
            let block_len = activation_type(ty).expect("a weight type").block_len();
            product.for_each(&product.x, |i, pair| {
                let blocks = pair.weights.chunks(block_len).zip(pair.x.chunks(block_len));
                let quants = blocks.map(|(weights, x)| {
                    let largest = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                    let weights: f64 = weights.iter().map(|w| f64::from(w.abs())).sum();
                    weights * f64::from(largest) / 127.0
                });
                // Half a quant for rounding, one for a quant that is one off.
                let tolerance = pair.tolerance() + 1.5 * quants.sum::<f64>();
                let (found, exact) = (f64::from(found[i]), pair.exact());
                let name = product.name();
                assert!((found - exact).abs() <= tolerance, "{ty} {name}: {found}, exact {exact}");
            });
        }
    }
    repacked.dedup();
    println!("interleaved: {repacked:?}");
    let any = repacked.contains(&Q4_K) && repacked.contains(&Q4_0);
    assert!(any || !cfg!(target_arch = "x86_64"), "{repacked:?}");
}

#[test]
fn packed_matrix_products_are_ggmls() {
    let ggml = Ggml::default();
    let pool = Pool::new(2).expect("threads");
    let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: 2 };
    let mut compared = 0;
    for ty in weight_types() {
        for shape in SHAPES {
            if hurtles_dot(ty, &[], &[]).is_none() {
                continue;
            }
            let product = Product::new(ty, shape);
            let packed =
                PackedMatrix::pack(exec, &[product.matrix()], Books::LookedUp, &|_| {}, &|_| {});
            let packed = packed.expect("a kernel");
            let mut found = vec![f32::NAN; product.n_tokens * product.n_rows];
            let mut activations = QuantizedActivations::default();
            activations.quantize(exec, &product.x, [&packed]);
            let tokens = 0..activations.n_tokens();
            let of_packed =
                packed::Product::new(packed::Weights::new(&packed, 0, None), tokens, &mut found);
            matmul_packed(exec, &activations, &[of_packed]);
            let of_ggml = product.by_ggml(&ggml, Layout::File, 2);

            // Both quantize the activations, and in a few quants they may differ by one: what that does
            // to a result is known exactly.
            let quantized = product.quantized();
            let mine: Vec<f32> = (product.x.chunks(product.n_cols))
                .flat_map(|x| {
                    let row = &product.bytes[..product.bytes.len() / product.n_rows];
                    let (bytes, _) = hurtles_dot(ty, row, x).expect("checked above");
                    decoded(activation_type(ty).expect("a weight type"), &bytes)
                })
                .collect();
            let mut expected = Vec::new();
            product.for_each(&quantized, |_, pair| expected.push((pair.exact(), pair.tolerance())));
            product.for_each(&mine, |i, pair| {
                let (exact, tolerance) = expected[i];
                let distance = f64::from(found[i]) - f64::from(of_ggml[i]) - (pair.exact() - exact);
                let name = product.name();
                assert!(
                    distance.abs() <= tolerance + pair.tolerance(),
                    "{ty} {name}: {}, ggml {}",
                    found[i],
                    of_ggml[i]
                );
            });
            compared += 1;
        }
    }
    assert_eq!(compared, 13 * SHAPES.len());
}

#[test]
fn matrices_share_threads_and_wait_for_each_other() {
    let ggml = Ggml::default();
    let products = [Product::new(Q4_K, SHAPES[5]), Product::new(Q8_0, SHAPES[4])];
    let matrices = products.each_ref().map(|product| {
        let matrix = ggml.matrix(&product.matrix(), Layout::File).expect("a plain matrix");
        let mut out = vec![0.0; product.n_tokens * product.n_rows];
        matrix.matmul(1, &product.x, &mut out);
        (product, matrix, out)
    });
    std::thread::scope(|scope| {
        for (i, (product, matrix, expected)) in matrices.iter().cycle().take(4).enumerate() {
            scope.spawn(move || {
                for round in 0..20 {
                    let mut out = vec![f32::NAN; expected.len()];
                    matrix.matmul((i + round) % 4, &product.x, &mut out);
                    assert_eq!(out, *expected, "{}", product.ty);
                }
            });
        }
    });
    let (_, matrix, _) = &matrices[0];
    matrix.matmul(2, &[], &mut []);
}

#[test]
fn matrices_that_ggml_cannot_multiply_are_refused() {
    let ggml = Ggml::default();
    let check = |ty: WeightType, n_rows: usize, layout: Layout, expected: &str| {
        let bytes = vec![0; ty.row_bytes(n_rows * 256).expect("whole blocks")];
        let matrix = Matrix::new(ty, n_rows, 256, &bytes).expect("whole rows");
        let error = ggml.matrix(&matrix, layout).expect_err("an error").to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(Q4_K, 0, Layout::File, "Q4_K: the matrix has no rows");
    check(Q8_1, 1, Layout::File, "Q8_1: ggml has no matrix product for this type");
    check(Q8_K, 1, Layout::File, "Q8_K: ggml has no matrix product");
    check(F64, 1, Layout::File, "F64: ggml has no matrix product");
    check(I32, 1, Layout::Repacked, "I32: ggml has no matrix product");
    check(Q6_K, 7, Layout::Repacked, "Q6_K: ggml has no interleaved layout of this shape");
    check(F32, 8, Layout::Repacked, "F32: ggml has no interleaved layout");
}

#[test]
fn rows_and_lengths_that_do_not_fit_panic_before_ggml_is_called() {
    let ggml = Ggml::default();
    let product = Product::new(Q4_0, [2, 64, 1]);
    let matrix = ggml.matrix(&product.matrix(), Layout::File).expect("a plain matrix");
    for (n_x, n_out) in [(63, 2), (64, 1), (64, 3), (128, 2), (0, 1)] {
        let call = || matrix.matmul(1, &vec![0.0; n_x], &mut vec![0.0; n_out]);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
        assert!(caught.is_err(), "{n_x} activations, {n_out} outputs");
    }
}
