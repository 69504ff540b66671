//! Blocks whose type is known at compile time, and the loops over rows of them.
//!
//! All of it is `#[inline(always)]`: a function of another crate that is compiled for other CPU
//! features (`#[target_feature(enable = "avx2,fma")]`) and calls [`decode_row`] gets a loop
//! vectorised for those features, without a second decoder. The bits stay the same, because Rust
//! fuses no multiplication with an addition on its own. In an AVX2 caller Q4_K decodes five times
//! as fast as for baseline x86-64 (4.6 against 0.8 values a nanosecond).

use crate::{Error, WeightType};

pub(crate) mod sealed {
    /// Implemented by the rows of the type table only.
    pub trait Sealed {}
}

/// An array `[T; N]` for an `N` that generic code cannot name.
pub trait Array<T>: AsRef<[T]> + AsMut<[T]> + Sized {
    /// How many elements it has.
    const LEN: usize;
    /// All elements zero.
    const ZERO: Self;

    /// Splits a slice into arrays and what is left over.
    fn chunks(slice: &[T]) -> (&[Self], &[T]);
    /// Splits a slice into arrays and what is left over.
    fn chunks_mut(slice: &mut [T]) -> (&mut [Self], &mut [T]);
}

macro_rules! impl_array {
    ($($item:ty = $zero:literal),+) => {$(
        impl<const N: usize> Array<$item> for [$item; N] {
            const LEN: usize = N;
            const ZERO: Self = [$zero; N];

            #[inline(always)]
            fn chunks(slice: &[$item]) -> (&[Self], &[$item]) {
                slice.as_chunks()
            }
            #[inline(always)]
            fn chunks_mut(slice: &mut [$item]) -> (&mut [Self], &mut [$item]) {
                slice.as_chunks_mut()
            }
        }
    )+};
}
impl_array!(u8 = 0, f32 = 0.0);

/// Encodes one block.
pub type Encoder<B> = fn(&<B as Block>::Values, &mut <B as Block>::Bytes);

/// How a block of one weight type becomes numbers, and the reverse where there is an encoder.
pub trait Block: sealed::Sealed {
    /// The row of the type table.
    const TYPE: WeightType;
    /// `[u8; BYTES]`: an encoded block.
    type Bytes: Array<u8>;
    /// `[f32; LEN]`: its values.
    type Values: Array<f32>;
    /// Values in a block.
    const LEN: usize = Self::Values::LEN;
    /// Bytes of a block.
    const BYTES: usize = Self::Bytes::LEN;
    /// The encoder, where the type has one. Any values may come in, NaN and infinities included;
    /// then the block decodes to something meaningless.
    const ENCODE: Option<Encoder<Self>> = None;

    /// Decodes one block, bit for bit as ggml does. Any bytes are a valid block.
    fn decode(bytes: &Self::Bytes, out: &mut Self::Values);
}

/// A block with a dot product in integers against activations quantized to 8 bit.
///
/// The products are summed up exactly within a group of weights that share a scale; each block
/// ends in one conversion to f32 (two where the type has minima).
pub trait IntegerDot: Block {
    /// A block of activations.
    type Activations;

    /// Blocks of activations that a block meets.
    const PARTS: usize = 1;

    /// The dot product of the `part`-th part of a block.
    fn dot_part(bytes: &Self::Bytes, part: usize, x: &Self::Activations) -> f32;
}

/// Compares the lengths that a row must have with those that it has, and splits it into blocks.
#[inline(always)]
fn blocks_of<'a, B: Block>(
    bytes: &'a [u8],
    bytes_name: &'static str,
    n_values: usize,
    values_name: &'static str,
) -> Result<&'a [B::Bytes], Error> {
    let length = |what, expected, found| Error::Length { ty: B::TYPE, what, expected, found };
    if !n_values.is_multiple_of(B::LEN) {
        return Err(length(values_name, n_values.next_multiple_of(B::LEN), n_values));
    }
    let n_blocks = n_values / B::LEN;
    let (blocks, rest) = B::Bytes::chunks(bytes);
    if blocks.len() != n_blocks || !rest.is_empty() {
        return Err(length(bytes_name, n_blocks.saturating_mul(B::BYTES), bytes.len()));
    }
    Ok(blocks)
}

/// Decodes a row. See [`dequantize`](crate::dequantize).
#[inline(always)]
pub fn decode_row<B: Block>(src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    let blocks = blocks_of::<B>(src, "source bytes", dst.len(), "destination values")?;
    let (values, _) = B::Values::chunks_mut(dst);
    for (bytes, out) in blocks.iter().zip(values) {
        B::decode(bytes, out);
    }
    Ok(())
}

/// Encodes a row. See [`quantize`](crate::quantize).
#[inline(always)]
pub fn encode_row<B: Block>(src: &[f32], dst: &mut [u8]) -> Result<(), Error> {
    let encode = B::ENCODE.ok_or(Error::NoEncoder { ty: B::TYPE })?;
    blocks_of::<B>(dst, "destination bytes", src.len(), "source values")?;
    let (values, _) = B::Values::chunks(src);
    let (blocks, _) = B::Bytes::chunks_mut(dst);
    for (x, bytes) in values.iter().zip(blocks) {
        encode(x, bytes);
    }
    Ok(())
}

/// Values decoded at a time by [`dot_row`]. A multiple of every block length.
const DOT_CHUNK: usize = 256;
/// Running sums of [`dot_row`]: independent, so that the loop can be vectorised without changing
/// the result.
const DOT_LANES: usize = 16;

/// Dot product of an encoded row with f32 values. See [`dot`](crate::dot).
#[inline(always)]
pub fn dot_row<B: Block>(row: &[u8], x: &[f32]) -> Result<f32, Error> {
    const { assert!(DOT_CHUNK.is_multiple_of(B::LEN) && B::LEN <= DOT_CHUNK) };
    let blocks = blocks_of::<B>(row, "row bytes", x.len(), "values")?;
    let mut sums = [0.0f32; DOT_LANES];
    let mut weights = [0.0; DOT_CHUNK];
    for (blocks, x) in blocks.chunks(DOT_CHUNK / B::LEN).zip(x.chunks(DOT_CHUNK)) {
        let (values, _) = B::Values::chunks_mut(&mut weights);
        for (bytes, out) in blocks.iter().zip(values) {
            B::decode(bytes, out);
        }
        let (w_lanes, _) = weights[..x.len()].as_chunks::<DOT_LANES>();
        let (x_lanes, x_rest) = x.as_chunks::<DOT_LANES>();
        for (w, x) in w_lanes.iter().zip(x_lanes) {
            for lane in 0..DOT_LANES {
                sums[lane] += w[lane] * x[lane];
            }
        }
        let w_rest = &weights[x_lanes.len() * DOT_LANES..];
        for ((sum, w), x) in sums.iter_mut().zip(w_rest).zip(x_rest) {
            *sum += w * x;
        }
    }
    Ok(sums.iter().sum())
}

/// Dot product of an encoded row with quantized activations, in integers within a block.
///
/// # Errors
/// [`Error::Length`] if `row` does not hold exactly as many values as `x`.
#[inline(always)]
pub fn dot_integer<B: IntegerDot>(row: &[u8], x: &[B::Activations]) -> Result<f32, Error> {
    let n_values = x.len().saturating_mul(B::LEN / B::PARTS);
    let blocks = blocks_of::<B>(row, "row bytes", n_values, "values")?;
    let parts = blocks.iter().flat_map(|bytes| (0..B::PARTS).map(move |part| (bytes, part)));
    Ok(parts.zip(x).map(|((bytes, part), x)| B::dot_part(bytes, part, x)).sum())
}

/// Declares the borrowed view of an encoded block: its fields in order, each a byte array.
///
/// `split` and `join` come from the one list of fields, so that they cannot disagree.
macro_rules! block_layout {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $n:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name<'a> {
            $($(#[$field_doc])* pub $field: &'a [u8; $n]),+
        }

        impl<'a> $name<'a> {
            /// Views the fields of an encoded block.
            #[inline(always)]
            pub fn split(bytes: &'a [u8; 0 $(+ $n)+]) -> Self {
                let rest = bytes.as_slice();
                $(let ($field, rest) = $crate::block::take::<$n>(rest);)+
                let _end = rest;
                Self { $($field),+ }
            }

            /// Writes the fields one after the other.
            #[inline(always)]
            pub fn join(&self, bytes: &mut [u8; 0 $(+ $n)+]) {
                let rest = bytes.as_mut_slice();
                $(
                    let (head, rest) = rest.split_at_mut($n);
                    head.copy_from_slice(self.$field);
                )+
                let _end = rest;
            }
        }
    };
}
pub(crate) use block_layout;

/// The first `N` bytes and the rest; for `split`, whose fields add up to the bytes it has.
#[inline(always)]
pub(crate) fn take<const N: usize>(bytes: &[u8]) -> (&[u8; N], &[u8]) {
    match bytes.split_first_chunk() {
        Some(parts) => parts,
        None => unreachable!("the fields of a block add up to its length"),
    }
}
