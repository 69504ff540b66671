//! Packed matrices on every instruction set against the integer dot products of the `quant` crate
//! (F32, F16 and BF16: against plain loops), bit for bit.

use hurtle_kernels::activations::{Form, QuantizedActivations};
use hurtle_kernels::elementwise::Activation;
use hurtle_kernels::matmul::Matrix;
use hurtle_kernels::packed::{
    Books, PackedMatrix, Product, Way, Weights, matmul_gated, matmul_packed,
};
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_quant::{Q8_0Block, Q8_1Block, Q8KSuperBlock, WeightType as T};

/// Bytes without a pattern, the same ones every time.
fn noise_bytes(seed: u64, n: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..n).map(|_| next()).collect()
}

/// Numbers from -8 to 8.
fn noise(seed: u64, n: usize) -> Vec<f32> {
    let bytes = noise_bytes(seed, 2 * n);
    bytes.chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 4096.0).collect()
}

/// Encoded weights of ordinary size, whether the type has an encoder or not.
fn encoded(ty: T, seed: u64, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; ty.row_bytes(n).unwrap()];
    if ty.has_encoder() {
        hurtle_quant::quantize(ty, &noise(seed, n), &mut bytes).unwrap();
        return bytes;
    }
    bytes = noise_bytes(seed, bytes.len());
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        match ty {
            T::MXFP4 => block[0] = 120 + block[0] % 8,
            T::IQ4_XS | T::IQ1_S | T::IQ2_XXS | T::IQ2_XS | T::IQ2_S | T::IQ3_XXS | T::IQ3_S => {
                block[1] = 0x20 + block[1] % 8
            }
            // An f16 in the upper bits of four numbers.
            T::IQ1_M => {
                block[53] = block[53] & 0x0f | 0x60;
                block[55] = block[55] & 0x0f | 0x20;
            }
            T::Q1_0 | T::Q2_0 => block[1] = 0x20 + block[1] % 8,
            // Any byte is a scale.
            T::NVFP4 => {}
            T::TQ1_0 | T::TQ2_0 => {
                let last = block.len() - 1;
                block[last] = 0x20 + block[last] % 8;
            }
            _ => panic!("{ty}: where is its scale?"),
        }
    }
    bytes
}

/// A token in every form.
struct Token {
    floats: Vec<f32>,
    q8k: Vec<Q8KSuperBlock>,
    q8_0: Vec<Q8_0Block>,
    q8_1: Vec<Q8_1Block>,
}

impl Token {
    fn new(x: &[f32]) -> Self {
        let mut q8k = vec![Q8KSuperBlock::ZERO; x.len() / 256];
        let mut q8_0 = vec![Q8_0Block::ZERO; x.len() / 32];
        let mut q8_1 = vec![Q8_1Block::ZERO; x.len() / 32];
        let whole = &x[..q8k.len() * 256];
        hurtle_quant::quantize_activations_q8k_into(whole, &mut q8k).unwrap();
        let whole = &x[..q8_0.len() * 32];
        hurtle_quant::quantize_activations_q8_0_into(whole, &mut q8_0).unwrap();
        hurtle_quant::quantize_activations_q8_1_into(whole, &mut q8_1).unwrap();
        Self { floats: x.to_vec(), q8k, q8_0, q8_1 }
    }
}

/// The oracle: the dot product of an encoded row with a token.
fn dot(ty: T, row: &[u8], Token { floats, q8k, q8_0, q8_1 }: &Token) -> f32 {
    let dot = match ty {
        T::F32 | T::F16 | T::BF16 => {
            let mut weights = vec![0.0; floats.len()];
            hurtle_quant::dequantize(ty, row, &mut weights).unwrap();
            let mut x = floats.clone();
            if ty == T::BF16 {
                // Of two the second comes first.
                x.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
                for values in [&mut weights, &mut x] {
                    values.as_chunks_mut().0.iter_mut().for_each(|[a, b]| std::mem::swap(a, b));
                }
            }
            let mut sum = 0.0f32;
            for (weights, x) in weights.chunks(256).zip(x.chunks(256)) {
                // Blocks of 16 with an even index, then the others.
                let mut sums = [0.0f32; 2];
                for (i, (w, x)) in weights.iter().zip(x).enumerate() {
                    let sum = &mut sums[i / 16 % 2];
                    *sum = w.mul_add(*x, *sum);
                }
                sum = sum + sums[0] + sums[1];
            }
            Ok(sum)
        }
        T::Q4_0 => hurtle_quant::dot_q4_0_q8_0(row, q8_0),
        T::Q4_1 => hurtle_quant::dot_q4_1_q8_1(row, q8_1),
        T::Q5_0 => hurtle_quant::dot_q5_0_q8_0(row, q8_0),
        T::Q5_1 => hurtle_quant::dot_q5_1_q8_1(row, q8_1),
        T::Q8_0 => hurtle_quant::dot_q8_0_q8_0(row, q8_0),
        T::Q4_K => hurtle_quant::dot_q4_k_q8_k(row, q8k),
        T::Q5_K => hurtle_quant::dot_q5_k_q8_k(row, q8k),
        T::Q6_K => hurtle_quant::dot_q6_k_q8_k(row, q8k),
        T::Q2_K => hurtle_quant::dot_q2_k_q8_k(row, q8k),
        T::Q3_K => hurtle_quant::dot_q3_k_q8_k(row, q8k),
        T::IQ4_XS => hurtle_quant::dot_iq4_xs_q8_k(row, q8k),
        T::IQ1_S => hurtle_quant::dot_iq1_s_q8_k(row, q8k),
        T::IQ1_M => hurtle_quant::dot_iq1_m_q8_k(row, q8k),
        T::IQ2_XXS => hurtle_quant::dot_iq2_xxs_q8_k(row, q8k),
        T::IQ2_XS => hurtle_quant::dot_iq2_xs_q8_k(row, q8k),
        T::IQ2_S => hurtle_quant::dot_iq2_s_q8_k(row, q8k),
        T::IQ3_XXS => hurtle_quant::dot_iq3_xxs_q8_k(row, q8k),
        T::IQ3_S => hurtle_quant::dot_iq3_s_q8_k(row, q8k),
        T::TQ1_0 => hurtle_quant::dot_tq1_0_q8_k(row, q8k),
        T::TQ2_0 => hurtle_quant::dot_tq2_0_q8_k(row, q8k),
        T::IQ4_NL => hurtle_quant::dot_iq4_nl_q8_0(row, q8_0),
        T::MXFP4 => hurtle_quant::dot_mxfp4_q8_0(row, q8_0),
        T::NVFP4 => hurtle_quant::dot_nvfp4_q8_0(row, q8_0),
        T::Q1_0 => hurtle_quant::dot_q1_0_q8_0(row, q8_0),
        T::Q2_0 => hurtle_quant::dot_q2_0_q8_0(row, q8_0),
        _ => panic!("{ty} has a kernel, but the test has no oracle"),
    };
    // A sum of no products but zeros may have either sign.
    dot.unwrap() + 0.0
}

/// Columns of the smallest matrix that can be packed.
fn unit(ty: T) -> usize {
    ty.block_len().max(16)
}

/// Packs one matrix.
fn pack(exec: Exec<'_>, matrix: Matrix<'_>) -> PackedMatrix {
    pack_with(exec, matrix, Books::default())
}

fn pack_with(exec: Exec<'_>, matrix: Matrix<'_>, books: Books) -> PackedMatrix {
    PackedMatrix::pack(exec, &[matrix], books, &|_| {}, &|_| {}).unwrap()
}

/// What can become of the books of a type: one answer if there are none.
fn books_of(ty: T) -> &'static [Books] {
    match ty {
        T::IQ1_S
        | T::IQ1_M
        | T::IQ2_XXS
        | T::IQ2_XS
        | T::IQ2_S
        | T::IQ3_XXS
        | T::IQ3_S
        | T::TQ1_0 => &[Books::LookedUp, Books::Kept],
        _ => &[Books::LookedUp],
    }
}

/// Products of all tokens with one matrix.
fn multiply(exec: Exec<'_>, weights: &PackedMatrix, x: &QuantizedActivations, out: &mut [f32]) {
    matmul_packed(exec, x, &[Product::new(Weights::new(weights, 0, None), 0..x.n_tokens(), out)]);
}

/// Each instruction set of this machine.
fn for_each_isa(f: impl Fn(Isa)) {
    let available = Isa::available();
    for name in ["scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx"] {
        match available.iter().find(|isa| isa.name() == name) {
            Some(isa) => f(*isa),
            None => println!("skipped: {name} is not available on this machine"),
        }
    }
}

fn supported() -> Vec<T> {
    T::ALL.iter().copied().filter(|ty| PackedMatrix::supports(*ty)).collect()
}

fn assert_bits(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(same, "{what}: {a:?} instead of {b:?} at {i}");
    }
}

/// Every instruction set and several numbers of threads, against the oracle.
fn check(ty: T, n_rows: usize, n_cols: usize, bytes: &[u8], x: &[f32]) {
    let matrix = Matrix::new(ty, n_rows, n_cols, bytes).unwrap();
    let row_bytes = bytes.len() / n_rows;
    let mut expected = Vec::new();
    for x in x.chunks_exact(n_cols).map(Token::new) {
        expected.extend(bytes.chunks_exact(row_bytes).map(|row| dot(ty, row, &x)));
    }
    let pool = Pool::new(3).unwrap();
    let mut activations = QuantizedActivations::new();
    for_each_isa(|isa| {
        let lanes = match (isa.name(), ty) {
            ("avx512bf16" | "amx", T::BF16) => "avx512bf16",
            ("avx512bf16", _) | ("amx", T::F32 | T::F16 | T::NVFP4) => "avx512vnni",
            (name, _) => name,
        };
        assert_eq!(PackedMatrix::kernel_name(ty, isa), Some(lanes), "{ty}");
    });
    for isa in Isa::available() {
        for (n_threads, books) in
            [1, 3].into_iter().flat_map(|n| books_of(ty).iter().map(move |b| (n, *b)))
        {
            let exec = Exec { isa, pool: &pool, n_threads };
            let packed = pack_with(exec, matrix, books);
            activations.quantize(exec, x, [&packed]);
            let mut out = vec![f32::NAN; expected.len()];
            multiply(exec, &packed, &activations, &mut out);
            let n_tokens = x.len() / n_cols;
            let what =
                format!("{ty} {n_rows}x{n_cols}, {books:?}, {n_tokens} tokens, {isa}, {n_threads}");
            if PackedMatrix::kernel_name(ty, isa) == Some("avx512bf16") {
                // Its instructions take numbers below 2^-126 for 0, in each of the sums.
                let lost = n_cols as f32 * f32::MIN_POSITIVE;
                for (found, expected) in out.iter_mut().zip(&expected) {
                    if (*found - expected).abs() <= lost {
                        *found = *expected;
                    }
                }
            }
            assert_bits(&out, &expected, &what);
        }
    }
}

#[test]
fn products_are_those_of_the_quant_crate_for_every_type_and_ragged_shapes() {
    for ty in supported() {
        for n_rows in [1, 2, 15, 16, 17, 31, 40] {
            // Blocks of 16 are 256 columns twice, and some more.
            let blocks = if unit(ty) == 16 { [1, 18, 35] } else { [1, 2, 3] };
            for n_blocks in blocks {
                let n_cols = n_blocks * unit(ty);
                let bytes = encoded(ty, n_rows as u64, n_rows * n_cols);
                for n_tokens in [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 35, 70] {
                    let x = noise(7 + n_tokens as u64, n_tokens * n_cols);
                    check(ty, n_rows, n_cols, &bytes, &x);
                }
            }
        }
    }
}

/// Prompts are worked on in groups of tokens and panels that fit the caches.
#[test]
fn long_prompts_and_wide_matrices_agree() {
    let cases = [
        (T::Q4_0, 70, 8192, 60),
        (T::Q6_K, 70, 8192, 60),
        // More tokens and panels than meet at a time, and blocks that fill no unit of 256.
        (T::Q5_K, 150, 512, 300),
        (T::Q4_1, 150, 32 * 19, 300),
        (T::Q8_0, 33, 32 * 11, 270),
        (T::F32, 70, 16 * 35, 270),
        (T::F16, 150, 512, 300),
        (T::BF16, 70, 16 * 35, 270),
        (T::BF16, 33, 8192, 60),
    ];
    for (ty, n_rows, n_cols, n_tokens) in cases {
        check(ty, n_rows, n_cols, &encoded(ty, 1, n_rows * n_cols), &noise(2, n_tokens * n_cols));
    }
}

/// Any bytes are a block: scales of all signs and sizes, infinite and NaN, and all quants, with
/// activations at the ends of their range.
#[test]
fn any_bytes_and_extreme_activations_agree() {
    for ty in supported() {
        let n_cols = 2 * ty.block_len().max(64);
        let n = ty.row_bytes(33 * n_cols).unwrap();
        let cases = [vec![0xff; n], vec![0x80; n], vec![0x7b; n], vec![0; n]];
        for bytes in cases.into_iter().chain((0..8).map(|seed| noise_bytes(seed, n))) {
            let mut x = noise(3, 5 * n_cols);
            x[..n_cols].fill(1.0);
            x[n_cols..2 * n_cols].fill(-1e30);
            x[2 * n_cols..3 * n_cols].fill(0.0);
            x[3 * n_cols..4 * n_cols].iter_mut().step_by(2).for_each(|x| *x = 127.0);
            x[3 * n_cols + 1..4 * n_cols].iter_mut().step_by(2).for_each(|x| *x = -127.0);
            check(ty, 33, n_cols, &bytes, &x);
        }
    }
}

/// Activations that are not finite must not panic, whatever comes out.
#[test]
fn meaningless_activations_do_no_harm() {
    let pool = Pool::new(2).unwrap();
    for ty in supported() {
        let n_cols = 2 * unit(ty);
        let bytes = noise_bytes(1, ty.row_bytes(20 * n_cols).unwrap());
        let matrix = Matrix::new(ty, 20, n_cols, &bytes).unwrap();
        for value in [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
            let mut x = noise(2, n_cols);
            x[5] = value;
            for x in [&x, &vec![value; n_cols]] {
                for_each_isa(|isa| {
                    for books in books_of(ty) {
                        let exec = Exec { isa, pool: &pool, n_threads: 2 };
                        let packed = pack_with(exec, matrix, *books);
                        let mut activations = QuantizedActivations::new();
                        activations.quantize(exec, x, [&packed]);
                        multiply(exec, &packed, &activations, &mut [0.0; 20]);
                    }
                });
            }
        }
    }
}

#[test]
fn one_buffer_serves_matrices_of_both_forms_and_changing_sizes() {
    let pool = Pool::new(2).unwrap();
    let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: 2 };
    let matrix = |ty: T, n_cols| {
        let bytes = noise_bytes(1, ty.row_bytes(4 * n_cols).unwrap());
        pack(exec, Matrix::new(ty, 4, n_cols, &bytes).unwrap())
    };
    let mut activations = QuantizedActivations::new();
    for n_cols in [256, 8192, 512] {
        let (k, legacy) = (matrix(T::Q4_K, n_cols), matrix(T::Q8_0, n_cols));
        assert_eq!((k.form(), legacy.form()), (Form::SuperBlocks, Form::Blocks));
        let x = noise(n_cols as u64, 3 * n_cols);
        activations.quantize(exec, &x, [&legacy, &k, &k]);
        assert_eq!((activations.n_tokens(), activations.n_cols()), (3, n_cols));
        for matrix in [&k, &legacy] {
            let mut alone = QuantizedActivations::new();
            alone.quantize(exec, &x, [matrix]);
            let (mut a, mut b) = (vec![0.0; 12], vec![0.0; 12]);
            multiply(exec, matrix, &activations, &mut a);
            multiply(exec, matrix, &alone, &mut b);
            assert_bits(&a, &b, "shared and own activations");
        }
    }
    activations.quantize(exec, &[], [&matrix(T::Q4_0, 64)]);
    multiply(exec, &matrix(T::Q4_0, 64), &activations, &mut []);
}

#[test]
fn all_types_that_files_have_weights_of_have_kernels() {
    let without = T::ALL.iter().filter(|ty| !PackedMatrix::supports(**ty));
    let without: Vec<_> = without.map(|ty| ty.name()).collect();
    assert_eq!(without, ["Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"]);
}

/// What the other tests compare is what these numbers of tokens run.
#[test]
fn many_tokens_have_weights_unpacked_once() {
    let pool = Pool::new(1).unwrap();
    for ty in supported() {
        let bytes = vec![0; ty.row_bytes(16 * 1024).unwrap()];
        let matrix = Matrix::new(ty, 16, 1024, &bytes).unwrap();
        let floats = matches!(ty, T::F32 | T::F16 | T::BF16);
        for_each_isa(|isa| {
            let exec = Exec { isa, pool: &pool, n_threads: 1 };
            for books in books_of(ty) {
                let packed = pack_with(exec, matrix, *books);
                let many = match isa.name() {
                    _ if floats || ty == T::NVFP4 => Way::Packed,
                    "amx" => Way::Tiles,
                    // Their registers let more tokens share what is unpacked on the way.
                    "avx512" | "avx512vnni" | "avx512bf16"
                        if packed.form() == Form::Blocks || matches!(ty, T::Q4_K | T::IQ4_XS) =>
                    {
                        Way::Packed
                    }
                    _ => Way::Unpacked,
                };
                assert_eq!(packed.way(isa, 1), Way::Packed, "{ty}, {isa}");
                assert_eq!(packed.way(isa, 270), many, "{ty}, {books:?}, {isa}");
            }
        });
    }
}

#[test]
fn memory_is_near_the_size_of_the_file() {
    let pool = Pool::new(1).unwrap();
    let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: 1 };
    for ty in supported() {
        let bytes = vec![0; ty.row_bytes(64 * 1024).unwrap()];
        for books in books_of(ty) {
            let packed = pack_with(exec, Matrix::new(ty, 64, 1024, &bytes).unwrap(), *books);
            assert_eq!(PackedMatrix::bytes_of(ty, 64, 1024, *books), Some(packed.n_bytes()));
            let percent = packed.n_bytes() as f64 / bytes.len() as f64 * 100.0;
            let limit = match (ty, books) {
                (T::TQ1_0, Books::LookedUp) => 126.0,
                (T::IQ3_S, Books::LookedUp) => 123.7,
                (T::IQ3_XXS, Books::LookedUp) => 138.8,
                (T::IQ2_S, Books::LookedUp) => 131.8,
                (T::IQ2_XS, Books::LookedUp) => 146.0,
                (T::IQ2_XXS, Books::LookedUp) => 157.6,
                (T::IQ1_M, Books::LookedUp) => 192.9,
                (T::IQ1_S, Books::LookedUp) => 208.1,
                (T::MXFP4, _) => 106.0,
                // Half a line is left over in each panel's block.
                (T::IQ1_S | T::IQ2_XXS | T::TQ1_0 | T::TQ2_0, _) => 104.1,
                _ => 103.0,
            };
            assert!((100.0..limit).contains(&percent), "{ty}, {books:?}: {percent} %");
        }
    }
    assert_eq!(PackedMatrix::bytes_of(T::Q4_K, 16, 300, Books::LookedUp), None);
    assert_eq!(PackedMatrix::bytes_of(T::Q4_K, usize::MAX, 256, Books::LookedUp), None);
    assert_eq!(PackedMatrix::bytes_of(T::I32, 16, 256, Books::LookedUp), None);
    let ragged = [Matrix::new(T::F32, 1, 17, &[0; 68]).unwrap()];
    assert!(PackedMatrix::pack(exec, &ragged, Books::Kept, &|_| {}, &|_| {}).is_none());
    let packed = pack(exec, Matrix::new(T::Q4_0, 0, 32, &[]).unwrap());
    let mut activations = QuantizedActivations::new();
    activations.quantize(exec, &[1.0; 32], [&packed]);
    multiply(exec, &packed, &activations, &mut []);
}

/// What a model does with experts: several matrices of different types, some of them packed
/// together, meet different tokens of one input in one call.
#[test]
fn a_group_of_products_is_each_of_them() {
    let pool = Pool::new(3).unwrap();
    let (n_cols, n_tokens) = (512, 11);
    let x = noise(1, n_tokens * n_cols);
    let rows = [40, 1, 16];
    let types = [T::Q4_K, T::Q6_K, T::Q8_0];
    let bytes: Vec<Vec<Vec<u8>>> = types
        .iter()
        .zip(rows)
        .map(|(ty, n)| (0..3).map(|seed| encoded(*ty, seed, n * n_cols)).collect())
        .collect();
    for isa in Isa::available() {
        for n_threads in [1, 3] {
            let exec = Exec { isa, pool: &pool, n_threads };
            let packed: Vec<PackedMatrix> = types
                .iter()
                .zip(rows)
                .zip(&bytes)
                .map(|((ty, n), parts)| {
                    let parts: Vec<_> = parts
                        .iter()
                        .map(|bytes| Matrix::new(*ty, n, n_cols, bytes).unwrap())
                        .collect();
                    PackedMatrix::pack(exec, &parts, Books::LookedUp, &|_| {}, &|_| {}).unwrap()
                })
                .collect();
            let mut activations = QuantizedActivations::new();
            activations.quantize(exec, &x, &packed);
            let bias = noise(9, 40);
            let cases = [(0, 2, 0..4), (1, 0, 4..4), (0, 0, 3..11), (2, 1, 10..11), (1, 1, 0..11)];
            let mut outs: Vec<Vec<f32>> = cases
                .iter()
                .map(|(m, _, tokens)| vec![f32::NAN; tokens.len() * rows[*m]])
                .collect();
            let products: Vec<_> = cases
                .iter()
                .zip(&mut outs)
                .map(|((m, part, tokens), out)| {
                    let bias = (*part != 1).then_some(&bias[..rows[*m]]);
                    Product::new(Weights::new(&packed[*m], *part, bias), tokens.clone(), out)
                })
                .collect();
            matmul_packed(exec, &activations, &products);
            drop(products);
            for ((m, part, tokens), out) in cases.into_iter().zip(outs) {
                let mut expected = Vec::new();
                for t in tokens {
                    let x = Token::new(&x[t * n_cols..(t + 1) * n_cols]);
                    let row_bytes = bytes[m][part].len() / rows[m];
                    for (r, row) in bytes[m][part].chunks_exact(row_bytes).enumerate() {
                        let bias = if part == 1 { 0.0 } else { bias[r] };
                        expected.push(dot(types[m], row, &x) + bias);
                    }
                }
                assert_bits(&out, &expected, &format!("{} part {part}, {isa}", types[m]));
            }
        }
    }
}

/// Every byte is announced before it is read, and let go of once.
#[test]
fn packing_tells_what_it_reads() {
    use std::sync::Mutex;
    let pool = Pool::new(2).unwrap();
    let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: 2 };
    let (n_rows, n_cols) = (3000, 2048);
    let bytes = noise_bytes(1, T::Q8_0.row_bytes(n_rows * n_cols).unwrap());
    let matrix = Matrix::new(T::Q8_0, n_rows, n_cols, &bytes).unwrap();
    let (before, after) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let note = |list: &Mutex<Vec<(usize, usize)>>, part: &[u8]| {
        let at = part.as_ptr().addr() - bytes.as_ptr().addr();
        list.lock().unwrap().push((at, part.len()));
    };
    let packed = PackedMatrix::pack(
        exec,
        &[matrix],
        Books::LookedUp,
        &|part| note(&before, part),
        &|part| note(&after, part),
    );
    assert_eq!(packed.unwrap().n_parts(), 1);
    for list in [before, after] {
        let mut list = list.into_inner().unwrap();
        list.sort_unstable();
        assert!(list.len() > 1, "in several pieces");
        let end = list.iter().fold(0, |at, (start, len)| {
            assert_eq!(*start, at);
            at + len
        });
        assert_eq!(end, bytes.len());
    }
}

/// Gate and up in one go are two products, the function between them and quantizing, one after the other.
#[test]
fn gated_products_are_those_of_each_matrix() {
    let pool = Pool::new(3).unwrap();
    // The last thread's rows are fewer than the others'; the forms are super-blocks, blocks of 32 and floats.
    let cases = [
        (T::Q4_K, T::Q6_K, T::Q4_K, 256, 512, [48, 133]),
        (T::Q8_0, T::Q8_0, T::Q4_0, 288, 544, [50, 70]),
        (T::F16, T::Q4_0, T::BF16, 64, 272, [1, 64]),
    ];
    for isa in Isa::available() {
        for (gate, up, down, n_cols, n_rows, token_counts) in cases {
            let exec = |n_threads| Exec { isa, pool: &pool, n_threads };
            let [gate_bytes, up_bytes] =
                [(gate, 1), (up, 2)].map(|(ty, seed)| encoded(ty, seed, n_rows * n_cols));
            let gate = pack(exec(3), Matrix::new(gate, n_rows, n_cols, &gate_bytes).unwrap());
            let up = pack(exec(3), Matrix::new(up, n_rows, n_cols, &up_bytes).unwrap());
            let down_bytes = encoded(down, 3, 40 * n_rows);
            let down = pack(exec(3), Matrix::new(down, 40, n_rows, &down_bytes).unwrap());
            let bias = noise(4, n_rows);
            let weights = [Weights::new(&gate, 0, Some(&bias)), Weights::new(&up, 0, None)];
            for n_tokens in token_counts {
                let x = noise(5, n_tokens * n_cols);
                let mut quantized = QuantizedActivations::new();
                quantized.quantize(exec(1), &x, [&gate, &up]);
                let mut outs = [(); 2].map(|()| vec![f32::NAN; n_tokens * n_rows]);
                let [gates, ups] = &mut outs;
                let products = [(weights[0], &mut *gates), (weights[1], &mut *ups)]
                    .map(|(weights, out)| Product::new(weights, 0..n_tokens, out));
                matmul_packed(exec(1), &quantized, &products);
                let mut activations = QuantizedActivations::new();
                activations.quantize_gated(exec(1), Activation::Silu, gates, ups, &down);
                let mut expected = vec![f32::NAN; n_tokens * 40];
                multiply(exec(1), &down, &activations, &mut expected);
                assert!(expected.iter().all(|x| x.is_finite()), "the test has ordinary numbers");
                for n_threads in [1, 3] {
                    // With less room in caches, tokens come in more groups.
                    for l2 in [128 << 10, 1 << 20] {
                        let pool = Pool::new(3).unwrap();
                        let caches = hurtle_kernels::Caches { l2, ..pool.caches() };
                        let pool = pool.with_caches(caches);
                        let exec = Exec { isa, pool: &pool, n_threads };
                        let mut found = QuantizedActivations::new();
                        // What was there before does not shine through.
                        found.quantize(exec, &noise(6, 2 * n_rows), [&down]);
                        let silu = Activation::Silu;
                        matmul_gated(exec, &quantized, weights, silu, &down, &mut found);
                        assert_eq!((found.n_tokens(), found.n_cols()), (n_tokens, n_rows));
                        let mut products = vec![f32::NAN; n_tokens * 40];
                        multiply(exec, &down, &found, &mut products);
                        let what = format!("{n_tokens} tokens, {n_threads} threads, {l2}, {isa}");
                        assert_bits(&products, &expected, &what);
                    }
                }
            }
        }
    }
}

/// Quants and activations as large as they can be: sums of 16 bits wrap around on the way, and come out right.
#[test]
fn the_largest_sums_fit() {
    let pool = Pool::new(1).unwrap();
    let (n_rows, n_cols, n_tokens) = (17, 256, 40);
    // All of one sign, or as neighbours and pairs differ.
    let x: Vec<f32> = (0..n_tokens * n_cols)
        .map(|i| match i / n_cols % 4 {
            0 => 127.0,
            1 => -127.0,
            2 => [127.0, -127.0][i % 2],
            _ => [127.0, -127.0][i / 2 % 2],
        })
        .collect();
    for_each_isa(|isa| {
        let exec = Exec { isa, pool: &pool, n_threads: 1 };
        for ty in supported() {
            for (seed, fill) in [(0, 0_u8), (1, 0xff), (2, 0x0f), (3, 0xf0), (4, 0x55), (5, 0xaa)] {
                // Scales are those of ordinary weights; of the types below, the quants are all the same.
                let mut bytes = encoded(ty, seed, n_rows * n_cols);
                for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                    match ty {
                        T::Q6_K => block[..192].fill(fill),
                        T::Q3_K => block[..96].fill(fill),
                        T::Q2_K => block[16..80].fill(fill),
                        T::Q4_K => block[16..].fill(fill),
                        T::Q5_K => block[16..].fill(fill),
                        T::Q4_0 | T::Q5_0 | T::Q8_0 | T::IQ4_NL => block[2..].fill(fill),
                        _ => {}
                    }
                }
                for books in books_of(ty) {
                    let matrix = Matrix::new(ty, n_rows, n_cols, &bytes).unwrap();
                    let packed = pack_with(exec, matrix, *books);
                    for n in [1, 5, n_tokens] {
                        let x = &x[..n * n_cols];
                        let mut activations = QuantizedActivations::new();
                        activations.quantize(exec, x, [&packed]);
                        let mut found = vec![f32::NAN; n * n_rows];
                        multiply(exec, &packed, &activations, &mut found);
                        let mut expected = Vec::new();
                        for x in x.chunks_exact(n_cols) {
                            let x = Token::new(x);
                            for row in bytes.chunks_exact(bytes.len() / n_rows) {
                                expected.push(dot(ty, row, &x) + 0.0);
                            }
                        }
                        assert_bits(
                            &found,
                            &expected,
                            &format!("{ty} {fill:#x}, {n} tokens, {isa}"),
                        );
                    }
                }
            }
        }
    });
}
