//! What holds for every type and any input: no bytes, values or lengths lead to a panic, rows are
//! no more than their blocks, dot products are sums of products, and encoding loses little.

use hurtle_quant::{
    Error, IntegerDot, Iq4Nl, Iq4Xs, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0,
    Q8_0Block, Q8_1Block, Q8KSuperBlock, WeightType, dequantize, dot, dot_integer, quantize,
    quantize_activations_q8_0_into, quantize_activations_q8_1_into, quantize_activations_q8k_into,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// The types whose values are weights.
fn weights() -> impl Iterator<Item = WeightType> {
    use WeightType::{I8, I16, I32, I64};
    WeightType::ALL.iter().copied().filter(|ty| ![I8, I16, I32, I64].contains(ty))
}

fn encodable() -> impl Iterator<Item = WeightType> {
    weights().filter(|ty| ty.has_encoder())
}

fn decoded(ty: WeightType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / ty.block_bytes() * ty.block_len()];
    dequantize(ty, bytes, &mut values).unwrap();
    values
}

fn encoded(ty: WeightType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xaa; ty.row_bytes(values.len()).unwrap()];
    quantize(ty, values, &mut bytes).unwrap();
    bytes
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

fn dot_f64(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Values between -1 and 1 times a power of ten, none so small that scales are subnormal in f16.
fn row_of_values(len: usize) -> impl Strategy<Value = Vec<f32>> {
    (vec(-1.0f32..1.0, len), -1i32..4)
        .prop_map(|(x, exponent)| x.iter().map(|x| x * 10f32.powi(exponent)).collect())
}

proptest! {
    #[test]
    fn any_bytes_decode_block_by_block(bytes in vec(any::<u8>(), 3 * 292)) {
        for ty in weights() {
            let row = &bytes[..3 * ty.block_bytes()];
            let blocks: Vec<f32> =
                row.chunks(ty.block_bytes()).flat_map(|block| decoded(ty, block)).collect();
            prop_assert_eq!(bits(&decoded(ty, row)), bits(&blocks), "{}", ty);
        }
    }

    #[test]
    fn dot_is_the_sum_of_the_products(
        bytes in vec(any::<u8>(), 8 * 292),
        x in row_of_values(2048),
    ) {
        for ty in weights() {
            let n_blocks = 8.min(x.len() / ty.block_len());
            let row = &bytes[..n_blocks * ty.block_bytes()];
            let x = &x[..n_blocks * ty.block_len()];
            let weights = decoded(ty, row);
            let found = f64::from(dot(ty, row, x).unwrap());
            let norms = norm(&weights) * norm(x);
            // Bytes that happen to be NaN, infinite or huge have no sum to compare with.
            if norms < 1e30 {
                let expected = dot_f64(&weights, x);
                // Products near the smallest f32 are rounded to multiples of it.
                let allowed = 1e-6 * norms + x.len() as f64 * f64::from(f32::from_bits(1));
                prop_assert!((found - expected).abs() <= allowed, "{ty}: {expected} {found}");
            }
        }
    }

    #[test]
    fn any_values_can_be_encoded(pattern in vec(any::<u32>(), 512)) {
        let values: Vec<f32> = pattern.into_iter().map(f32::from_bits).collect();
        for ty in encodable() {
            decoded(ty, &encoded(ty, &values));
        }
    }

    #[test]
    fn encoding_loses_little(x in row_of_values(512)) {
        // The error of the worst value as a fraction of the largest magnitude. It is half a step,
        // or a whole one where the levels are lopsided. The searches of the later types minimise
        // the error of all values, at the expense of some.
        let check = |ty, bound: f32| {
            let y = decoded(ty, &encoded(ty, &x));
            for (x, y) in x.chunks(256).zip(y.chunks(256)) {
                let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                let error = x.iter().zip(y).fold(0.0f32, |e, (x, y)| e.max((x - y).abs()));
                prop_assert!(error <= bound * largest, "{ty}: error {error} of {largest}");
            }
            Ok(())
        };
        check(WeightType::F32, 0.0)?;
        check(WeightType::F16, 1.0 / 2048.0)?;
        check(WeightType::BF16, 1.0 / 256.0)?;
        check(WeightType::Q8_K, 0.51 / 127.0)?;
        check(WeightType::Q8_0, 0.6 / 127.0)?;
        check(WeightType::Q8_1, 0.6 / 127.0)?;
        check(WeightType::Q6_K, 2.0 / 32.0)?;
        check(WeightType::Q5_K, 3.0 / 31.0)?;
        check(WeightType::Q5_1, 1.1 / 31.0)?;
        check(WeightType::Q5_0, 1.1 / 16.0)?;
        check(WeightType::Q4_K, 3.0 / 15.0)?;
        check(WeightType::Q4_1, 1.1 / 15.0)?;
        check(WeightType::Q4_0, 1.1 / 8.0)?;
        check(WeightType::IQ4_NL, 0.2)?;
        check(WeightType::Q3_K, 0.5)?;
        check(WeightType::Q2_K, 0.8)?;
    }
}

#[test]
fn zeros_stay_zeros() {
    for ty in encodable() {
        assert!(decoded(ty, &encoded(ty, &[0.0; 512])).iter().all(|&y| y == 0.0), "{ty}");
    }
}

#[test]
fn wrong_lengths_are_errors() {
    #[track_caller]
    fn check(found: Result<(), Error>, ty: WeightType, what: &str, lengths: (usize, usize)) {
        match found {
            Err(Error::Length { ty: t, what: w, expected, found }) => {
                assert_eq!((t, w, (expected, found)), (ty, what, lengths));
            }
            other => panic!("{ty}: {what}: {other:?}"),
        }
    }
    for ty in weights() {
        let (len, bytes) = (2 * ty.block_len(), 2 * ty.block_bytes());
        for wrong in [0, 1, bytes - 1, bytes + 1, 2 * bytes] {
            let (src, mut dst) = (vec![0; wrong], vec![0.0; len]);
            check(dequantize(ty, &src, &mut dst), ty, "source bytes", (bytes, wrong));
            check(dot(ty, &src, &dst).map(drop), ty, "row bytes", (bytes, wrong));
            if ty.has_encoder() {
                let mut src = src;
                check(quantize(ty, &dst, &mut src), ty, "destination bytes", (bytes, wrong));
            }
        }
        if ty.block_len() > 1 {
            let (mut src, mut dst) = (vec![0; bytes], vec![0.0; len - 1]);
            check(dequantize(ty, &src, &mut dst), ty, "destination values", (len, len - 1));
            check(dot(ty, &src, &dst).map(drop), ty, "values", (len, len - 1));
            if ty.has_encoder() {
                check(quantize(ty, &dst, &mut src), ty, "source values", (len, len - 1));
            }
        }
        dequantize(ty, &[], &mut []).unwrap();
        assert_eq!(dot(ty, &[], &[]), Ok(0.0));
    }

    let x = [0.0; 300];
    let found = quantize_activations_q8_0_into(&x[..63], &mut [Q8_0Block::ZERO; 2]);
    check(found, WeightType::Q8_0, "activations", (64, 63));
    let found = quantize_activations_q8_1_into(&x[..96], &mut [Q8_1Block::ZERO; 2]);
    check(found, WeightType::Q8_1, "activations", (64, 96));
    let found = quantize_activations_q8k_into(&x, &mut [Q8KSuperBlock::ZERO; 1]);
    check(found, WeightType::Q8_K, "activations", (256, 300));
    let found = dot_integer::<Q4K<'_>>(&[0; 144], &[Q8KSuperBlock::ZERO; 2]).map(drop);
    check(found, WeightType::Q4_K, "row bytes", (288, 144));
}

#[test]
fn unsupported_types_are_errors() {
    let int = WeightType::I32;
    assert_eq!(
        dequantize(int, &[0; 4], &mut [0.0]),
        Err(Error::Unsupported { ty: int, what: "decoding to f32" })
    );
    assert!(matches!(quantize(int, &[0.0], &mut [0; 4]), Err(Error::Unsupported { .. })));
    assert!(matches!(dot(int, &[0; 4], &[0.0]), Err(Error::Unsupported { .. })));

    let error = quantize(WeightType::IQ1_S, &[0.0; 256], &mut [0; 50]).unwrap_err();
    assert_eq!(error, Error::NoEncoder { ty: WeightType::IQ1_S });
    assert_eq!(
        error.to_string(),
        "IQ1_S: there is no encoder\nhint: choose one of F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, \
         Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ4_NL, BF16"
    );
}

/// Activations in 8 bit that a test can make from bytes and from values.
trait Activations: Copy {
    /// The type of the encoded block.
    const TYPE: WeightType;
    const ZERO: Self;
    fn from_bytes(bytes: &[u8]) -> Self;
    fn to_bytes(self) -> Vec<u8>;
    fn quantize_into(x: &[f32], out: &mut [Self]) -> Result<(), Error>;
}

macro_rules! impl_activations {
    ($($name:ident: $ty:ident, $quantize:ident;)+) => {$(
        impl Activations for $name {
            const TYPE: WeightType = WeightType::$ty;
            const ZERO: Self = $name::ZERO;
            fn from_bytes(bytes: &[u8]) -> Self {
                $name::from_bytes(bytes.first_chunk().unwrap())
            }
            fn to_bytes(self) -> Vec<u8> {
                $name::to_bytes(&self).to_vec()
            }
            fn quantize_into(x: &[f32], out: &mut [Self]) -> Result<(), Error> {
                $quantize(x, out)
            }
        }
    )+};
}
impl_activations! {
    Q8_0Block: Q8_0, quantize_activations_q8_0_into;
    Q8_1Block: Q8_1, quantize_activations_q8_1_into;
    Q8KSuperBlock: Q8_K, quantize_activations_q8k_into;
}

/// The integer dot product of any bytes is that of the values they stand for.
fn check_integer_dot<B: IntegerDot<Activations: Activations>>(
    bytes: &[u8],
    x: &[f32],
) -> Result<(), TestCaseError> {
    let n_blocks = 2;
    let row = &bytes[..n_blocks * B::BYTES];
    let x = &x[..n_blocks * B::LEN];
    let mut activations = vec![B::Activations::ZERO; n_blocks];
    B::Activations::quantize_into(x, &mut activations).unwrap();
    let activation_bytes: Vec<u8> = activations.iter().flat_map(|block| block.to_bytes()).collect();
    let weights = decoded(B::TYPE, row);
    let quantized = decoded(B::Activations::TYPE, &activation_bytes);
    let found = f64::from(dot_integer::<B>(row, &activations).unwrap());
    // Q8_1 rounds the sum of the activations to f16.
    let norms = norm(&weights) * norm(&quantized);
    if norms < 1e30 {
        let tolerance = if B::Activations::TYPE == WeightType::Q8_1 { 1e-2 } else { 1e-5 } * norms;
        let expected = dot_f64(&weights, &quantized);
        prop_assert!((found - expected).abs() <= tolerance, "{}: {expected} {found}", B::TYPE);
    }

    // Activations that nothing has quantized: any number will do.
    let block_bytes = B::Activations::TYPE.block_bytes();
    let activations: Vec<_> = bytes[..n_blocks * block_bytes]
        .chunks(block_bytes)
        .map(<B::Activations as Activations>::from_bytes)
        .collect();
    dot_integer::<B>(row, &activations).unwrap();
    Ok(())
}

fn check_integer_dots(bytes: &[u8], x: &[f32]) -> Result<(), TestCaseError> {
    check_integer_dot::<Q4_0<'_>>(bytes, x)?;
    check_integer_dot::<Q5_0<'_>>(bytes, x)?;
    check_integer_dot::<Q8_0<'_>>(bytes, x)?;
    check_integer_dot::<Iq4Nl<'_>>(bytes, x)?;
    check_integer_dot::<Mxfp4<'_>>(bytes, x)?;
    check_integer_dot::<Q4_1<'_>>(bytes, x)?;
    check_integer_dot::<Q5_1<'_>>(bytes, x)?;
    check_integer_dot::<Q2K<'_>>(bytes, x)?;
    check_integer_dot::<Q3K<'_>>(bytes, x)?;
    check_integer_dot::<Q4K<'_>>(bytes, x)?;
    check_integer_dot::<Q5K<'_>>(bytes, x)?;
    check_integer_dot::<Q6K<'_>>(bytes, x)?;
    check_integer_dot::<Iq4Xs<'_>>(bytes, x)
}

proptest! {
    #[test]
    fn integer_dot_is_that_of_the_decoded_values(
        bytes in vec(any::<u8>(), 2 * 292),
        x in row_of_values(512),
    ) {
        check_integer_dots(&bytes, &x)?;
    }
}

#[test]
fn integer_dots_do_not_overflow() {
    // The largest and the smallest integers in each place.
    for byte in [0x00, 0x7f, 0x80, 0xff] {
        check_integer_dots(&[byte; 2 * 292], &[1.0; 512]).unwrap();
        check_integer_dots(&[byte; 2 * 292], &[-1.0; 512]).unwrap();
    }
}
