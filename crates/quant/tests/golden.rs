//! Decoders, encoders and dot products against the results of ggml in `tests/golden/quants`.
//!
//! 8 rows of 1024 values, encoded and decoded by ggml for each type, and an activation vector.

use std::fs;
use std::path::PathBuf;

use hurtle_quant::{
    Error, Q8_0Block, Q8_1Block, Q8KSuperBlock, WeightType, dequantize, dot, dot_iq1_m_q8_k,
    dot_iq1_s_q8_k, dot_iq2_s_q8_k, dot_iq2_xs_q8_k, dot_iq2_xxs_q8_k, dot_iq3_s_q8_k,
    dot_iq3_xxs_q8_k, dot_iq4_nl_q8_0, dot_iq4_xs_q8_k, dot_mxfp4_q8_0, dot_nvfp4_q8_0,
    dot_q1_0_q8_0, dot_q2_0_q8_0, dot_q2_k_q8_k, dot_q3_k_q8_k, dot_q4_0_q8_0, dot_q4_1_q8_1,
    dot_q4_k_q8_k, dot_q5_0_q8_0, dot_q5_1_q8_1, dot_q5_k_q8_k, dot_q6_k_q8_k, dot_q8_0_q8_0,
    dot_tq1_0_q8_k, dot_tq2_0_q8_k, quantize, quantize_activations_q8_0_into,
    quantize_activations_q8_1_into, quantize_activations_q8k_into,
};
use serde_json::Value;

const ROWS: usize = 8;
const COLS: usize = 1024;

fn read(name: &str) -> Vec<u8> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quants").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read_f32(name: &str) -> Vec<f32> {
    let bytes = read(name);
    let (values, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "{name}");
    values.iter().copied().map(f32::from_le_bytes).collect()
}

/// A type of the index.
struct Golden {
    ty: WeightType,
    entry: Value,
    encoded: Vec<u8>,
    decoded: Vec<f32>,
}

impl Golden {
    fn all() -> Vec<Self> {
        let index: Value = serde_json::from_slice(&read("index.json")).unwrap();
        let types = index["types"].as_object().unwrap();
        types
            .iter()
            .map(|(name, entry)| Self {
                ty: WeightType::from_name(name).unwrap_or_else(|| panic!("unknown type {name}")),
                encoded: read(entry["file"].as_str().unwrap()),
                decoded: read_f32(entry["dequantized"].as_str().unwrap()),
                entry: entry.clone(),
            })
            .collect()
    }

    fn of(ty: WeightType) -> Self {
        Self::all().into_iter().find(|golden| golden.ty == ty).unwrap()
    }

    fn numbers(&self, key: &str) -> Vec<f64> {
        self.entry[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    }

    fn row(&self, r: usize) -> (&[u8], &[f32]) {
        let bytes = self.encoded.len() / ROWS;
        (&self.encoded[r * bytes..][..bytes], &self.decoded[r * COLS..][..COLS])
    }
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

#[test]
fn the_table_agrees_with_ggml() {
    for Golden { ty, entry, .. } in Golden::all() {
        let number = |key: &str| entry[key].as_u64().unwrap() as usize;
        assert_eq!(ty.id() as usize, number("type_id"), "{ty}");
        assert_eq!(ty.block_len(), number("block_size"), "{ty}");
        assert_eq!(ty.block_bytes(), number("type_size"), "{ty}");
        assert_eq!(ty.row_bytes(COLS), Some(number("row_bytes")), "{ty}");
    }
}

#[test]
fn decoded_values_have_the_bits_of_ggml() {
    let all = Golden::all();
    assert_eq!(all.len(), 27);
    for golden in all {
        let mut found = vec![f32::NAN; ROWS * COLS];
        dequantize(golden.ty, &golden.encoded, &mut found).unwrap();
        let differing = (0..found.len())
            .filter(|&i| found[i].to_bits() != golden.decoded[i].to_bits())
            .collect::<Vec<_>>();
        assert!(
            differing.is_empty(),
            "{}: {} values differ; first at {}: expected {}, found {}",
            golden.ty,
            differing.len(),
            differing[0],
            golden.decoded[differing[0]],
            found[differing[0]],
        );
    }
}

#[test]
fn encoded_bytes_are_those_of_ggml() {
    use WeightType::{
        BF16, F16, IQ4_NL, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0,
    };
    let source = read_f32("source.f32.bin");
    for ty in [F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL] {
        let golden = Golden::of(ty);
        let mut found = vec![0; golden.encoded.len()];
        quantize(ty, &source, &mut found).unwrap();
        let block_bytes = ty.block_bytes();
        for (i, found) in found.chunks(block_bytes).enumerate() {
            let expected = &golden.encoded[i * block_bytes..][..block_bytes];
            assert_eq!(found, expected, "{ty}, block {i}");
        }
    }
}

#[test]
fn quantized_activations_are_those_of_ggml() {
    let x = read_f32("act.f32.bin");

    let mut q8_0 = [Q8_0Block::ZERO; COLS / 32];
    quantize_activations_q8_0_into(&x, &mut q8_0).unwrap();
    assert_eq!(q8_0.map(|block| block.to_bytes()).concat(), read("act.q8_0.bin"));

    let mut q8_1 = [Q8_1Block::ZERO; COLS / 32];
    quantize_activations_q8_1_into(&x, &mut q8_1).unwrap();
    assert_eq!(q8_1.map(|block| block.to_bytes()).concat(), read("act.q8_1.bin"));

    let mut q8_k = [Q8KSuperBlock::ZERO; COLS / 256];
    quantize_activations_q8k_into(&x, &mut q8_k).unwrap();
    assert_eq!(q8_k.map(|block| block.to_bytes()).concat(), read("act.q8_k.bin"));
}

#[test]
fn dot_with_f32_activations_is_exact_to_rounding() {
    let x = read_f32("act.f32.bin");
    for golden in Golden::all() {
        for (r, expected) in golden.numbers("dot_f64").into_iter().enumerate() {
            let (row, weights) = golden.row(r);
            let found = f64::from(dot(golden.ty, row, &x).unwrap());
            let tolerance = 1e-6 * norm(weights) * norm(&x);
            assert!(
                (found - expected).abs() <= tolerance,
                "{} row {r}: expected {expected} ± {tolerance:e}, found {found}",
                golden.ty,
            );
        }
    }
}

#[test]
fn dot_with_quantized_activations_is_that_of_ggml() {
    let x = read_f32("act.f32.bin");
    let mut q8_0 = [Q8_0Block::ZERO; COLS / 32];
    quantize_activations_q8_0_into(&x, &mut q8_0).unwrap();
    let mut q8_1 = [Q8_1Block::ZERO; COLS / 32];
    quantize_activations_q8_1_into(&x, &mut q8_1).unwrap();
    let mut q8_k = [Q8KSuperBlock::ZERO; COLS / 256];
    quantize_activations_q8k_into(&x, &mut q8_k).unwrap();

    let check = |ty, activation: &str, dot: &dyn Fn(&[u8]) -> Result<f32, Error>| {
        let golden = Golden::of(ty);
        assert_eq!(golden.entry["vec_dot_activation"], activation, "{ty}");
        let exact = golden.numbers("dot_f64");
        let of_ggml = golden.numbers("ggml_vec_dot");
        for r in 0..ROWS {
            let (row, weights) = golden.row(r);
            let found = f64::from(dot(row).unwrap());
            let norms = norm(weights) * norm(&x);
            // The integers are the same; only the additions of the blocks have another order.
            let (distance, error) = ((found - of_ggml[r]).abs(), (found - exact[r]).abs());
            assert!(distance <= 1e-6 * norms, "{ty} row {r}: {found}, ggml {}", of_ggml[r]);
            assert!(error <= 1.4e-3 * norms, "{ty} row {r}: {found}, exact {}", exact[r]);
        }
    };
    check(WeightType::Q4_0, "Q8_0", &|row| dot_q4_0_q8_0(row, &q8_0));
    check(WeightType::Q5_0, "Q8_0", &|row| dot_q5_0_q8_0(row, &q8_0));
    check(WeightType::Q8_0, "Q8_0", &|row| dot_q8_0_q8_0(row, &q8_0));
    check(WeightType::IQ4_NL, "Q8_0", &|row| dot_iq4_nl_q8_0(row, &q8_0));
    check(WeightType::MXFP4, "Q8_0", &|row| dot_mxfp4_q8_0(row, &q8_0));
    check(WeightType::NVFP4, "Q8_0", &|row| dot_nvfp4_q8_0(row, &q8_0));
    check(WeightType::Q1_0, "Q8_0", &|row| dot_q1_0_q8_0(row, &q8_0));
    check(WeightType::Q2_0, "Q8_0", &|row| dot_q2_0_q8_0(row, &q8_0));
    check(WeightType::Q4_1, "Q8_1", &|row| dot_q4_1_q8_1(row, &q8_1));
    check(WeightType::Q5_1, "Q8_1", &|row| dot_q5_1_q8_1(row, &q8_1));
    check(WeightType::Q2_K, "Q8_K", &|row| dot_q2_k_q8_k(row, &q8_k));
    check(WeightType::Q3_K, "Q8_K", &|row| dot_q3_k_q8_k(row, &q8_k));
    check(WeightType::Q4_K, "Q8_K", &|row| dot_q4_k_q8_k(row, &q8_k));
    check(WeightType::Q5_K, "Q8_K", &|row| dot_q5_k_q8_k(row, &q8_k));
    check(WeightType::Q6_K, "Q8_K", &|row| dot_q6_k_q8_k(row, &q8_k));
    check(WeightType::IQ4_XS, "Q8_K", &|row| dot_iq4_xs_q8_k(row, &q8_k));
    check(WeightType::IQ1_S, "Q8_K", &|row| dot_iq1_s_q8_k(row, &q8_k));
    check(WeightType::IQ1_M, "Q8_K", &|row| dot_iq1_m_q8_k(row, &q8_k));
    check(WeightType::IQ2_XXS, "Q8_K", &|row| dot_iq2_xxs_q8_k(row, &q8_k));
    check(WeightType::IQ2_XS, "Q8_K", &|row| dot_iq2_xs_q8_k(row, &q8_k));
    check(WeightType::IQ2_S, "Q8_K", &|row| dot_iq2_s_q8_k(row, &q8_k));
    check(WeightType::IQ3_XXS, "Q8_K", &|row| dot_iq3_xxs_q8_k(row, &q8_k));
    check(WeightType::IQ3_S, "Q8_K", &|row| dot_iq3_s_q8_k(row, &q8_k));
    check(WeightType::TQ1_0, "Q8_K", &|row| dot_tq1_0_q8_k(row, &q8_k));
    check(WeightType::TQ2_0, "Q8_K", &|row| dot_tq2_0_q8_k(row, &q8_k));
}
