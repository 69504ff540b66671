//! The vector trait, the algorithms written over it, and one shell per instruction set.

pub(crate) mod all;
pub(crate) mod scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

/// Lanes of a vector, whatever the register width: AVX-512 uses one register, AVX2 two.
pub(crate) const LANES: usize = 16;

/// 16 f32 lanes. Every operation is one correctly rounded IEEE operation a lane, so all
/// implementations give the same bits.
///
/// # Safety
/// The methods of an implementation may only be called where its instruction set is present; they
/// are inlined into the shells' `#[target_feature]` functions, which are reached through
/// [`crate::Isa`] alone.
pub(crate) trait Lanes: Copy {
    /// Rows and tokens of a register tile of the matrix kernel that fit this register file.
    const TILE_ROWS: usize;
    const TILE_TOKENS: usize;
    unsafe fn splat(x: f32) -> Self;
    /// The first 16 values of `x`; panics if there are fewer.
    unsafe fn load(x: &[f32]) -> Self;
    unsafe fn load_f16(x: &[half::f16]) -> Self;
    unsafe fn store(self, to: &mut [f32]);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn to_array(self) -> [f32; LANES];
}

/// Calls the shell of an instruction set: `dispatch!(isa, function(arguments))`.
macro_rules! dispatch {
    ($isa:expr, $function:ident $([$($generic:ty),+])? ($($arg:expr),* $(,)?)) => {
        match $isa.level() {
            $crate::isa::Level::Scalar => $crate::arch::scalar::$function $(::<$($generic),+>)? ($($arg),*),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level exists only if detection found its features.
            $crate::isa::Level::Avx2 => unsafe { $crate::arch::x86_64::avx2::$function $(::<$($generic),+>)? ($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            $crate::isa::Level::Avx512 => unsafe { $crate::arch::x86_64::avx512::$function $(::<$($generic),+>)? ($($arg),*) },
        }
    };
}
pub(crate) use dispatch;

/// Writes the shells of one instruction set: every algorithm of `all`, compiled for its features.
macro_rules! shells {
    ($lanes:ty $(, $feature:literal)?) => {
        use $crate::arch::all;
        use $crate::attention::{HeadTask, KvElem};
        use hurtle_quant::{Error, WeightType};

        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            decode(ty: WeightType, bytes: &[u8], out: &mut [f32]) -> Result<(), Error>
            = all::decode(ty, bytes, out));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            matmul_rows(rows: &[f32], k: usize, x: &[f32], out: &mut dyn FnMut(usize, usize, f32))
            = all::matmul_rows::<$lanes>(rows, k, x, out));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            sum_of_squares(x: &[f32]) -> f32 = all::sum_of_squares::<$lanes>(x));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            gate(activation: $crate::elementwise::Activation, gate: &mut [f32], up: &[f32])
            = all::gate(activation, gate, up));

        /// One KV head of one token; see [`all::attend`].
        $(#[target_feature(enable = $feature)])?
        #[allow(unused_unsafe, clippy::allow_attributes, reason = "the scalar shell is a safe function")]
        pub(crate) fn attend<K: KvElem, V: KvElem>(
            task: &HeadTask<'_>, scratch: &mut [f32], out: &mut [f32],
        ) {
            // SAFETY: this function has the features that its lanes need.
            unsafe { all::attend::<$lanes, K, V>(task, scratch, out) }
        }
    };
    (@fn $(#[$attr:meta])? $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $call:expr) => {
        $(#[$attr])?
        #[allow(unused_unsafe, clippy::allow_attributes, reason = "some bodies need no unsafe")]
        pub(crate) fn $name($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: this function has the features that its lanes need.
            unsafe { $call }
        }
    };
}
pub(crate) use shells;
