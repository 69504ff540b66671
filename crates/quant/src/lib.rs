//! What the bytes of each GGUF weight type mean.
//!
//! Weights come in blocks: a few dozen small integers and the scales that turn them into numbers.
//! This crate holds the table of the types ([`WeightType`]) and for each type the scalar decoder,
//! which is bit for bit that of ggml, the encoder where there is one, and the dot products, with
//! f32 activations ([`dot`]) and with activations quantized to 8 bit ([`IntegerDot`]). Speed is
//! the task of the kernels, which have this crate as their reference; still the loops are written
//! so that compilers vectorise them, and can be compiled for other CPU features by a caller
//! ([`decode_row`]).
//!
//! Bytes come from files and are never trusted: every byte sequence of a valid length decodes to
//! something, and lengths are checked.
//!
//! # Adding a weight type
//! One [`Block`] in a file of its family, `block_layout!` for the layout, and one row in the table
//! of `types.rs`. Then [`dequantize`] and [`dot`] know it.
#![forbid(unsafe_code)]

mod block;
pub mod code_books;
mod fit;
mod float;
mod fp4;
mod integers;
mod iq1;
mod iq2;
mod iq3;
mod iq4;
mod low_bit;
mod planes;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_k;
mod q5_0;
mod q5_k;
mod q6_k;
mod q8_0;
mod q8_k;
mod ternary;
mod types;

pub use block::{Array, Block, Encoder, IntegerDot, decode_row, dot_integer, dot_row, encode_row};
pub use float::{BF16, F16, F32, F64, f16_to_f32};
pub use fp4::{E2M1_DOUBLED, Mxfp4, Nvfp4, e8m0_half, ue4m3_half};
pub use integers::ScaledIntegers;
pub use iq1::{Iq1M, Iq1S};
pub use iq2::{Iq2S, Iq2Xs, Iq2Xxs};
pub use iq3::{Iq3S, Iq3Xxs};
pub use iq4::{IQ4_LEVELS, Iq4Nl, Iq4Xs};
pub use low_bit::{Q1_0, Q2_0};
pub use q2_k::Q2K;
pub use q3_k::Q3K;
pub use q4_0::{Q4_0, Q4_1};
pub use q4_k::{Q4K, Scales};
pub use q5_0::{Q5_0, Q5_1};
pub use q5_k::Q5K;
pub use q6_k::Q6K;
pub use q8_0::{
    Q8_0, Q8_0Block, Q8_1, Q8_1Block, quantize_activations_q8_0_into,
    quantize_activations_q8_1_into, sum_of_32,
};
pub use q8_k::{Q8K, Q8KSuperBlock, quantize_activations_q8k_into};
pub use ternary::{Tq1_0, Tq2_0};
pub use types::{BlockVisitor, WeightType};

/// Why bytes could not be decoded or encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice does not hold whole blocks, or source and destination disagree.
    #[error("{ty}: {what}: expected {expected}, found {found}")]
    Length {
        /// The weight type concerned.
        ty: WeightType,
        /// Which slice.
        what: &'static str,
        /// Length that would fit.
        expected: usize,
        /// Length that was given.
        found: usize,
    },
    /// The type is one of the integer types, which hold no weights.
    #[error("{ty}: {what} is not supported, for {ty} values are no weights")]
    Unsupported {
        /// The weight type concerned.
        ty: WeightType,
        /// The operation asked for.
        what: &'static str,
    },
    /// The type can be decoded only.
    #[error("{ty}: there is no encoder\nhint: choose one of {}", encodable())]
    NoEncoder {
        /// The weight type concerned.
        ty: WeightType,
    },
}

/// The types that [`quantize`] knows, for a message.
fn encodable() -> String {
    let types = WeightType::ALL.iter().filter(|ty| ty.has_encoder());
    types.map(|ty| ty.name()).collect::<Vec<_>>().join(", ")
}

/// Runs `visitor` with the block of `ty`; integer types have none.
fn with_block<V, T>(ty: WeightType, visitor: V, what: &'static str) -> Result<T, Error>
where
    V: BlockVisitor<Output = Result<T, Error>>,
{
    ty.visit(visitor).unwrap_or(Err(Error::Unsupported { ty, what }))
}

/// Decodes whole blocks of `ty` into `dst`, bit for bit as ggml does.
///
/// `dst.len()` must be a multiple of the block length and `src.len()` the bytes of that many blocks.
///
/// # Errors
/// [`Error::Length`] if they are not, [`Error::Unsupported`] for the integer types.
pub fn dequantize(ty: WeightType, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    struct Dequantize<'a>(&'a [u8], &'a mut [f32]);
    impl BlockVisitor for Dequantize<'_> {
        type Output = Result<(), Error>;
        fn visit<B: Block>(self) -> Self::Output {
            decode_row::<B>(self.0, self.1)
        }
    }
    with_block(ty, Dequantize(src, dst), "decoding to f32")
}

/// Encodes `src` as blocks of `ty`, as ggml's reference encoder does without an importance matrix.
///
/// `src.len()` must be a multiple of the block length and `dst.len()` the bytes of that many
/// blocks. [`WeightType::has_encoder`] says which types have one. NaN and infinite values, and
/// finite ones whose scale is too large for an f16, are no error; the blocks that hold them decode
/// to something meaningless.
///
/// # Errors
/// [`Error::Length`] if the lengths disagree, [`Error::NoEncoder`] or, for the integer types,
/// [`Error::Unsupported`] if there is no encoder.
pub fn quantize(ty: WeightType, src: &[f32], dst: &mut [u8]) -> Result<(), Error> {
    struct Quantize<'a>(&'a [f32], &'a mut [u8]);
    impl BlockVisitor for Quantize<'_> {
        type Output = Result<(), Error>;
        fn visit<B: Block>(self) -> Self::Output {
            encode_row::<B>(self.0, self.1)
        }
    }
    with_block(ty, Quantize(src, dst), "encoding")
}

/// Dot product of one encoded row with `x`, in f32.
///
/// The order of the additions depends on the length alone, so the result is the same on every
/// machine. Allocates nothing.
///
/// # Errors
/// [`Error::Length`] if `row` is not `x.len()` values, [`Error::Unsupported`] for the integer
/// types.
pub fn dot(ty: WeightType, row: &[u8], x: &[f32]) -> Result<f32, Error> {
    struct Dot<'a>(&'a [u8], &'a [f32]);
    impl BlockVisitor for Dot<'_> {
        type Output = Result<f32, Error>;
        fn visit<B: Block>(self) -> Self::Output {
            dot_row::<B>(self.0, self.1)
        }
    }
    with_block(ty, Dot(row, x), "a dot product")
}

macro_rules! integer_dots {
    ($($name:ident: $block:ident x $x:ident;)+) => {$(
        #[doc = concat!(
            "[`dot_integer`] of a row of [`", stringify!($block), "`] blocks with [`",
            stringify!($x), "`]s."
        )]
        ///
        /// # Errors
        /// [`Error::Length`] if `row` does not hold exactly as many values as `x`.
        pub fn $name(row: &[u8], x: &[$x]) -> Result<f32, Error> {
            dot_integer::<$block<'_>>(row, x)
        }
    )+};
}

integer_dots! {
    dot_q4_0_q8_0: Q4_0 x Q8_0Block;
    dot_q5_0_q8_0: Q5_0 x Q8_0Block;
    dot_q8_0_q8_0: Q8_0 x Q8_0Block;
    dot_iq4_nl_q8_0: Iq4Nl x Q8_0Block;
    dot_mxfp4_q8_0: Mxfp4 x Q8_0Block;
    dot_nvfp4_q8_0: Nvfp4 x Q8_0Block;
    dot_q1_0_q8_0: Q1_0 x Q8_0Block;
    dot_q2_0_q8_0: Q2_0 x Q8_0Block;
    dot_q4_1_q8_1: Q4_1 x Q8_1Block;
    dot_q5_1_q8_1: Q5_1 x Q8_1Block;
    dot_q2_k_q8_k: Q2K x Q8KSuperBlock;
    dot_q3_k_q8_k: Q3K x Q8KSuperBlock;
    dot_q4_k_q8_k: Q4K x Q8KSuperBlock;
    dot_q5_k_q8_k: Q5K x Q8KSuperBlock;
    dot_q6_k_q8_k: Q6K x Q8KSuperBlock;
    dot_iq4_xs_q8_k: Iq4Xs x Q8KSuperBlock;
    dot_iq1_s_q8_k: Iq1S x Q8KSuperBlock;
    dot_iq1_m_q8_k: Iq1M x Q8KSuperBlock;
    dot_iq2_xxs_q8_k: Iq2Xxs x Q8KSuperBlock;
    dot_iq2_xs_q8_k: Iq2Xs x Q8KSuperBlock;
    dot_iq2_s_q8_k: Iq2S x Q8KSuperBlock;
    dot_iq3_xxs_q8_k: Iq3Xxs x Q8KSuperBlock;
    dot_iq3_s_q8_k: Iq3S x Q8KSuperBlock;
    dot_tq1_0_q8_k: Tq1_0 x Q8KSuperBlock;
    dot_tq2_0_q8_k: Tq2_0 x Q8KSuperBlock;
}
