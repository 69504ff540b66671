//! ggml's matrix products, called from hurtle.
//!
//! ggml is the library under llama.cpp. hurtle needs it for nothing; here it serves three purposes:
//!
//! - **Oracle.** [`formats`] calls ggml's encoders, decoders and dot products, and the tests of this
//!   crate compare hurtle's with them, over many more inputs than the golden files hold.
//! - **Baseline.** [`GgmlMatrix`] multiplies in the same process, on the same data, at the same time of
//!   day: `examples/side_by_side.rs` times it next to hurtle's kernels.
//! - **Backend.** [`Ggml`] implements [`MatmulBackend`](hurtle_kernels::backend::MatmulBackend), so that
//!   `hurtle run --backend ggml` computes the matrix products of a model with ggml.
//!
//! ggml's source comes in the crate `llama-cpp-sys-2`, which carries a recent llama.cpp (ggml 0.26) and
//! binds all of ggml's functions. Building it takes minutes and needs cmake, a C++ compiler and libclang;
//! so this crate is no member of the workspace, and nothing depends on it unless the feature `ggml` of
//! the command line asks for it.
//!
//! ```text
//! cargo xtask ggml                                             # builds it, runs its tests
//! cargo xtask ggml side-by-side --threads 2 Q4_K 8960 1536     # times it next to hurtle
//! cargo xtask ggml hurtle run --backend ggml "Why is the sky blue?"
//! ```
//!
//! ggml chooses its kernels when it is compiled. The task asks for those of this processor by environment
//! variables that are ggml's build options (`GGML_AVX512=ON`, `GGML_AVX512_VNNI=ON`, …); without them it is
//! compiled for AVX2 on x86-64. [`missing_features`] tells what a build lacks. (Flags in `CFLAGS` such as
//! `-march=native` would reach ggml's reference encoders too, which then round another way.)
//!
//! ggml ends the process where it finds a wrong shape, or gets no threads or no memory for its own small
//! structures. Everything that can be checked is checked before it is called.

mod backend;
pub mod formats;
mod matrix;
mod memory;

pub use backend::Ggml;
pub use matrix::{GgmlMatrix, Layout};

use hurtle_quant::WeightType;
use llama_cpp_sys_2 as sys;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Once;

/// Why ggml cannot do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// ggml does not do this with that type.
    #[error("{ty}: ggml has no {what} for this type")]
    Unsupported {
        /// The weight type.
        ty: WeightType,
        /// The operation.
        what: &'static str,
    },
    /// A slice has the wrong length.
    #[error("{ty}: {what}: expected {expected}, found {found}")]
    Length {
        /// The weight type.
        ty: WeightType,
        /// Which slice.
        what: &'static str,
        /// Length that would fit.
        expected: usize,
        /// Length that was given.
        found: usize,
    },
    /// ggml's encoders end the process if they meet such values.
    #[error("{ty}: value {index} is {value}, but ggml encodes only finite values")]
    NotFinite {
        /// The weight type.
        ty: WeightType,
        /// Which value.
        index: usize,
        /// The value.
        value: String,
    },
    /// A matrix without rows.
    #[error("{ty}: the matrix has no rows, but ggml multiplies at least one")]
    Empty {
        /// The weight type.
        ty: WeightType,
    },
    /// A matrix does not fit into memory.
    #[error(
        "ggml cannot allocate {n_bytes} bytes for a matrix of {ty}\nhint: use a smaller model, or free memory"
    )]
    Memory {
        /// The weight type.
        ty: WeightType,
        /// Bytes asked for.
        n_bytes: usize,
    },
}

/// Makes ggml ready: its tables, and where it writes messages. Cheap after the first call.
fn init() {
    /// Passes warnings and errors on to standard error. Without it ggml tells there of every matrix
    /// that it lays out anew.
    unsafe extern "C" fn log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
        if (level == sys::GGML_LOG_LEVEL_WARN || level == sys::GGML_LOG_LEVEL_ERROR)
            && !text.is_null()
        {
            // SAFETY: ggml passes a string that ends in 0 and lives until the callback returns.
            eprint!("ggml: {}", unsafe { CStr::from_ptr(text) }.to_string_lossy());
        }
    }
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        // SAFETY: the callback keeps nothing; `Once` keeps other threads away until both are done.
        unsafe {
            sys::ggml_log_set(Some(log), std::ptr::null_mut());
            sys::ggml_cpu_init();
        }
    });
}

/// The version of ggml: `0.26.0`.
pub fn version() -> String {
    // SAFETY: ggml returns a constant string.
    unsafe { CStr::from_ptr(sys::ggml_version()) }.to_string_lossy().into_owned()
}

/// An instruction set: its name, whether ggml was compiled for it, whether this processor has it.
type Feature = (&'static str, bool, bool);

fn known_features() -> Vec<Feature> {
    macro_rules! features {
        ($arch:literal, $detected:ident, $($name:literal: $function:ident, $feature:tt;)+) => {{
            #[cfg(target_arch = $arch)]
            let features = {
                // SAFETY: the functions return constants.
                vec![$(($name, unsafe { sys::$function() } != 0, std::arch::$detected!($feature))),+]
            };
            #[cfg(not(target_arch = $arch))]
            let features = Vec::new();
            features
        }};
    }
    let mut features: Vec<Feature> = features! {
        "x86_64", is_x86_feature_detected,
        "AVX2": ggml_cpu_has_avx2, "avx2";
        "AVX-VNNI": ggml_cpu_has_avx_vnni, "avxvnni";
        "AVX-512": ggml_cpu_has_avx512, "avx512f";
        "AVX-512 VNNI": ggml_cpu_has_avx512_vnni, "avx512vnni";
        "AVX-512 BF16": ggml_cpu_has_avx512_bf16, "avx512bf16";
    };
    features.extend::<Vec<Feature>>(features! {
        "aarch64", is_aarch64_feature_detected,
        "dotprod": ggml_cpu_has_dotprod, "dotprod";
        "i8mm": ggml_cpu_has_matmul_int8, "i8mm";
    });
    features
}

/// Instruction sets that ggml was compiled for.
pub fn features() -> Vec<&'static str> {
    known_features().into_iter().filter(|feature| feature.1).map(|feature| feature.0).collect()
}

/// Instruction sets that this processor has and ggml was not compiled for: as long as there are any, its
/// times say little.
pub fn missing_features() -> Vec<&'static str> {
    let missing = |feature: &Feature| feature.2 && !feature.1;
    known_features().into_iter().filter(missing).map(|feature| feature.0).collect()
}
