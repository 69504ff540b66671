//! THE table of weight types.
//!
//! Each row gives the id that a GGUF file stores, the name, the values and the bytes of a block,
//! and the [`Block`] that knows what those bytes mean. Everything else in the crate follows from
//! the rows: a new weight type is one row here and one [`Block`] in the file of its family.
//!
//! The numbers are written twice, here and in the layout of the block struct, and the compiler
//! refuses to build the crate if the two disagree.

use crate::block::{Block, sealed};
use crate::float::{BF16, F16, F32, F64};
use crate::fp4::{Mxfp4, Nvfp4};
use crate::iq1::{Iq1M, Iq1S};
use crate::iq2::{Iq2S, Iq2Xs, Iq2Xxs};
use crate::iq3::{Iq3S, Iq3Xxs};
use crate::iq4::{Iq4Nl, Iq4Xs};
use crate::low_bit::{Q1_0, Q2_0};
use crate::q2_k::Q2K;
use crate::q3_k::Q3K;
use crate::q4_0::{Q4_0, Q4_1};
use crate::q4_k::Q4K;
use crate::q5_0::{Q5_0, Q5_1};
use crate::q5_k::Q5K;
use crate::q6_k::Q6K;
use crate::q8_0::{Q8_0, Q8_1};
use crate::q8_k::Q8K;
use crate::ternary::{Tq1_0, Tq2_0};

macro_rules! weight_types {
    ($($id:literal $name:ident $len:literal $bytes:literal $(=> $block:ty)?;)+) => {
        /// A ggml tensor type. The discriminant is the id that a GGUF file stores.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u32)]
        #[expect(non_camel_case_types, reason = "the names the format uses")]
        pub enum WeightType {
            $(
                #[doc = concat!(
                    "Id ", $id, ": ", $len, " value(s) in a block of ", $bytes, " byte(s)."
                )]
                $name = $id,
            )+
        }

        impl WeightType {
            /// Every type, in the order of the ids.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The type of a ggml id, as GGUF stores it. `None` for an id that is unknown or was
            /// withdrawn (4, 5, 31 to 33, 36 to 38).
            pub const fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The name as ggml prints it in upper case: `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }

            /// Values in a block.
            pub const fn block_len(self) -> usize {
                match self {
                    $(Self::$name => $len,)+
                }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(Self::$name => $bytes,)+
                }
            }

            /// Calls `visitor` with the [`Block`] of this type, or returns `None` for the integer
            /// types, which are no weights.
            ///
            /// This is the one place where a type known at run time becomes a type known at
            /// compile time.
            #[inline(always)]
            pub fn visit<V: BlockVisitor>(self, visitor: V) -> Option<V::Output> {
                match self {
                    $(Self::$name => visit_block!(visitor $(, $block)?),)+
                }
            }
        }

        $($(
            impl sealed::Sealed for $block {}
            const _: () = assert!(
                <$block as Block>::LEN == $len
                    && <$block as Block>::BYTES == $bytes
                    && <$block as Block>::TYPE.id() == $id,
                concat!("the row of ", stringify!($name), " and its block struct disagree")
            );
        )?)+
    };
}

macro_rules! visit_block {
    ($visitor:ident) => {{
        drop($visitor);
        None
    }};
    ($visitor:ident, $block:ty) => {
        Some($visitor.visit::<$block>())
    };
}

weight_types! {
    // id name   values bytes  meaning
     0 F32          1     4 => F32;
     1 F16          1     2 => F16;
     2 Q4_0        32    18 => Q4_0<'_>;
     3 Q4_1        32    20 => Q4_1<'_>;
     6 Q5_0        32    22 => Q5_0<'_>;
     7 Q5_1        32    24 => Q5_1<'_>;
     8 Q8_0        32    34 => Q8_0<'_>;
     9 Q8_1        32    36 => Q8_1<'_>;
    10 Q2_K       256    84 => Q2K<'_>;
    11 Q3_K       256   110 => Q3K<'_>;
    12 Q4_K       256   144 => Q4K<'_>;
    13 Q5_K       256   176 => Q5K<'_>;
    14 Q6_K       256   210 => Q6K<'_>;
    15 Q8_K       256   292 => Q8K<'_>;
    16 IQ2_XXS    256    66 => Iq2Xxs<'_>;
    17 IQ2_XS     256    74 => Iq2Xs<'_>;
    18 IQ3_XXS    256    98 => Iq3Xxs<'_>;
    19 IQ1_S      256    50 => Iq1S<'_>;
    20 IQ4_NL      32    18 => Iq4Nl<'_>;
    21 IQ3_S      256   110 => Iq3S<'_>;
    22 IQ2_S      256    82 => Iq2S<'_>;
    23 IQ4_XS     256   136 => Iq4Xs<'_>;
    24 I8           1     1;
    25 I16          1     2;
    26 I32          1     4;
    27 I64          1     8;
    28 F64          1     8 => F64;
    29 IQ1_M      256    56 => Iq1M<'_>;
    30 BF16         1     2 => BF16;
    34 TQ1_0      256    54 => Tq1_0<'_>;
    35 TQ2_0      256    66 => Tq2_0<'_>;
    39 MXFP4       32    17 => Mxfp4<'_>;
    40 NVFP4       64    36 => Nvfp4<'_>;
    41 Q1_0       128    18 => Q1_0<'_>;
    42 Q2_0        64    18 => Q2_0<'_>;
}

/// What to do with a type that [`WeightType::visit`] has made static.
pub trait BlockVisitor {
    /// What [`visit`](Self::visit) returns.
    type Output;

    /// Runs with the block `B`.
    fn visit<B: Block>(self) -> Self::Output;
}

impl WeightType {
    /// The ggml id.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The type of a name, case ignored.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// Whether [`quantize`](crate::quantize) can write this type.
    pub fn has_encoder(self) -> bool {
        struct HasEncoder;
        impl BlockVisitor for HasEncoder {
            type Output = bool;
            fn visit<B: Block>(self) -> bool {
                B::ENCODE.is_some()
            }
        }
        self.visit(HasEncoder).unwrap_or(false)
    }

    /// Bytes of `n` values, if `n` is a multiple of the block length and the product fits.
    pub const fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl std::fmt::Display for WeightType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_lead_back_to_the_type() {
        for &ty in WeightType::ALL {
            assert_eq!(WeightType::from_id(ty.id()), Some(ty));
            assert_eq!(WeightType::from_name(ty.name()), Some(ty));
            assert_eq!(WeightType::from_name(&ty.name().to_lowercase()), Some(ty));
        }
        for withdrawn in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(WeightType::from_id(withdrawn), None, "id {withdrawn}");
        }
        assert_eq!(WeightType::from_name("Q4_K_M"), None);
        assert_eq!(WeightType::from_name(""), None);
    }

    #[test]
    fn row_bytes_is_checked() {
        #[track_caller]
        fn check(ty: WeightType, n: usize, expected: Option<usize>) {
            assert_eq!(ty.row_bytes(n), expected, "{ty} x {n}");
        }
        check(WeightType::Q4_K, 0, Some(0));
        check(WeightType::Q4_K, 512, Some(288));
        check(WeightType::Q4_K, 511, None);
        check(WeightType::Q4_K, 32, None);
        check(WeightType::F32, usize::MAX / 4, Some(usize::MAX / 4 * 4));
        check(WeightType::F32, usize::MAX / 4 + 1, None);
        check(WeightType::I64, usize::MAX, None);
        check(WeightType::Q8_0, usize::MAX / 32 * 32, None);
    }
}
