//! Bits: what ggml and hurtle write and read.

use crate::data::{Noise, decoded, encoded, weight_types};
use hurtle_ggml::Error;
use hurtle_ggml::formats::{self, Quantizer};
use hurtle_quant::WeightType::{self, *};
use hurtle_quant::{Q8_0Block, Q8_1Block, Q8KSuperBlock};

#[test]
fn the_tables_agree() {
    for &ty in WeightType::ALL {
        assert_eq!(formats::block_size(ty), (ty.block_len(), ty.block_bytes()), "{ty}");
    }
    let not_weights = [Q8_1, I8, I16, I32, I64, F64, Q8_K];
    let weights = WeightType::ALL.iter().copied().filter(|ty| !not_weights.contains(ty));
    assert_eq!(weight_types(), weights.collect::<Vec<_>>());
}

/// Sources that encoders treat differently: ordinary rows, tiny and large ones, rows with one outlier, of
/// one value, of zeros, of one sign.
fn sources(n: usize) -> Vec<Vec<f32>> {
    let mut noise = Noise::new(7);
    let mut sources: Vec<Vec<f32>> =
        [1.0, 0.05, 1e-4, 1e-7, 300.0].iter().map(|scale| noise.values(n, *scale)).collect();
    let mut outlier = noise.values(n, 0.05);
    outlier.iter_mut().step_by(61).for_each(|x| *x *= 40.0);
    let positive = noise.values(n, 1.0).into_iter().map(f32::abs).collect();
    let sparse = (0..n).map(|i| if i % 97 == 5 { noise.value() } else { 0.0 }).collect();
    let coarse = (0..n).map(|_| (noise.value() * 4.0).round() / 4.0).collect();
    sources.extend([outlier, positive, sparse, coarse, vec![0.0; n], vec![-0.25; n]]);
    sources
}

#[track_caller]
fn assert_blocks(ty: WeightType, what: &str, found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "{ty}: {what}");
    let blocks = found.chunks(ty.block_bytes()).zip(expected.chunks(ty.block_bytes()));
    for (i, (found, expected)) in blocks.enumerate() {
        assert_eq!(found, expected, "{ty}: {what}: block {i}");
    }
}

#[test]
fn encoders_write_the_same_bytes() {
    let mut compared = 0;
    for ty in weight_types().into_iter().filter(|ty| ty.has_encoder()) {
        for (i, source) in sources(8 * 1024).iter().enumerate() {
            let expected =
                formats::quantize(ty, source, 1024).expect("ggml encodes what hurtle does");
            let mut found = vec![0; expected.len()];
            hurtle_quant::quantize(ty, source, &mut found).expect("whole blocks");
            assert_blocks(ty, &format!("source {i}"), &found, &expected);
        }
        compared += 1;
    }
    assert!(compared >= 13, "{compared} encoders");
}

#[track_caller]
fn check_decoders(ty: WeightType, what: &str, bytes: &[u8]) {
    let found = decoded(ty, bytes);
    let mut expected = vec![0.0; found.len()];
    match formats::dequantize(ty, bytes, &mut expected) {
        Ok(()) => {}
        Err(Error::Unsupported { .. }) => {
            assert!([F32, F64, Q8_1, Q8_K].contains(&ty), "{ty}: ggml cannot decode it");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        // Which NaN it is depends on the compiler.
        let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        assert!(same, "{ty}: {what}: value {i} is {found:?}, ggml's {expected:?}");
    }
}

#[test]
fn decoders_read_the_same_bits() {
    for ty in weight_types() {
        for (i, source) in sources(1024).iter().enumerate() {
            let bytes = formats::quantize(ty, source, 512).expect("ggml encodes this type");
            check_decoders(ty, &format!("source {i}"), &bytes);
        }
    }
}

/// Files may hold any bytes: scales that are infinite or no numbers, patterns that no encoder writes.
#[test]
fn decoders_agree_on_any_bytes() {
    for &ty in WeightType::ALL {
        if [I8, I16, I32, I64].contains(&ty) {
            continue;
        }
        for seed in 0..8 {
            let bytes = Noise::new(seed).bytes(200 * ty.block_bytes());
            check_decoders(ty, &format!("noise {seed}"), &bytes);
        }
    }
}

/// A source's blocks as hurtle and as ggml quantize them.
fn activations(ty: WeightType, source: &[f32], quantizer: Quantizer) -> (Vec<u8>, Vec<u8>) {
    let found = match ty {
        Q8_0 => {
            let mut blocks = vec![Q8_0Block::ZERO; source.len() / 32];
            hurtle_quant::quantize_activations_q8_0_into(source, &mut blocks)
                .expect("whole blocks");
            blocks.iter().flat_map(Q8_0Block::to_bytes).collect()
        }
        Q8_1 => {
            let mut blocks = vec![Q8_1Block::ZERO; source.len() / 32];
            hurtle_quant::quantize_activations_q8_1_into(source, &mut blocks)
                .expect("whole blocks");
            blocks.iter().flat_map(Q8_1Block::to_bytes).collect()
        }
        Q8_K => {
            let mut blocks = vec![Q8KSuperBlock::ZERO; source.len() / 256];
            hurtle_quant::quantize_activations_q8k_into(source, &mut blocks).expect("whole blocks");
            blocks.iter().flat_map(Q8KSuperBlock::to_bytes).collect::<Vec<u8>>()
        }
        _ => panic!("{ty} holds no activations"),
    };
    let of_ggml = formats::quantize_activations(ty, quantizer, source).expect("whole blocks");
    (found, of_ggml)
}

#[test]
fn activations_are_quantized_to_the_same_bytes() {
    // Of Q8_K ggml has one encoder.
    let quantizers =
        [(Q8_0, Quantizer::Reference), (Q8_1, Quantizer::Reference), (Q8_K, Quantizer::Fast)];
    for (ty, quantizer) in quantizers {
        for (i, source) in sources(16 * 256).iter().enumerate() {
            let (found, expected) = activations(ty, source, quantizer);
            assert_blocks(ty, &format!("source {i}"), &found, &expected);
        }
    }
}

/// ggml's products quantize with encoders for an instruction set, which may round the reciprocal of the
/// scale, and ties, another way: scales are the same, a few quants are one off.
#[test]
fn activations_of_ggmls_products_are_nearly_the_same() {
    for (ty, quants_at) in [(Q8_0, 2), (Q8_1, 4)] {
        let (mut quants, mut differing) = (0, 0);
        for source in sources(16 * 256) {
            let (found, expected) = activations(ty, &source, Quantizer::Fast);
            let blocks = found.chunks(ty.block_bytes()).zip(expected.chunks(ty.block_bytes()));
            for (found, expected) in blocks {
                assert_eq!(found[..2], expected[..2], "{ty}: scale");
                for (a, b) in found[quants_at..].iter().zip(&expected[quants_at..]) {
                    let distance = (*a as i8).abs_diff(*b as i8);
                    assert!(distance <= 1, "{ty}: quants {} and {}", *a as i8, *b as i8);
                    quants += 1;
                    differing += usize::from(distance);
                }
            }
        }
        println!("{ty}: {differing} of {quants} quants differ");
        // All ties of the source that is a multiple of 1/4 may: less than a tenth of all.
        assert!(differing * 10 <= quants, "{ty}: {differing} of {quants} quants differ");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let values = vec![1.0; 256];
    let length = |result: Result<Vec<u8>, Error>| match result {
        Err(Error::Length { expected, found, .. }) => (expected, found),
        other => panic!("{other:?}"),
    };
    assert_eq!(length(formats::quantize(Q4_K, &values, 255)), (510, 256));
    assert_eq!(length(formats::quantize(Q4_K, &values, 128)), (256, 128));
    assert_eq!(length(formats::quantize(Q4_K, &values, 0)), (256, 256));
    let quantize = formats::quantize_activations;
    assert_eq!(length(quantize(Q8_K, Quantizer::Fast, &values[1..])), (256, 255));
    assert_eq!(formats::quantize(Q4_K, &[], 256), Ok(Vec::new()));

    let bytes = encoded(Q4_K, 1, 1, 256);
    let mut out = vec![0.0; 512];
    let error = formats::dequantize(Q4_K, &bytes, &mut out).unwrap_err();
    assert_eq!(error.to_string(), "Q4_K: bytes: expected 288, found 144");
    let error = formats::vec_dot(Q4_K, 256, &bytes, &bytes).unwrap_err();
    assert_eq!(error.to_string(), "Q8_K: bytes: expected 292, found 144");

    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = values.clone();
        values[77] = bad;
        for result in
            [formats::quantize(IQ2_XXS, &values, 256), quantize(Q8_K, Quantizer::Fast, &values)]
        {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(&format!("value 77 is {bad}")), "{error}");
        }
    }
    for ty in [Q8_1, Q8_K, F64, I8] {
        assert!(
            matches!(formats::quantize(ty, &values, 256), Err(Error::Unsupported { .. })),
            "{ty}"
        );
    }
    let error = quantize(Q8_K, Quantizer::Reference, &values).unwrap_err();
    assert_eq!(error.to_string(), "Q8_K: ggml has no encoder of activations for this type");
    assert!(matches!(formats::vec_dot(Q8_1, 0, &[], &[]), Err(Error::Unsupported { .. })));
}
