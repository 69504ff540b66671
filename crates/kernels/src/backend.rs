//! The seam for matrix products that someone else computes.
//!
//! hurtle computes its own. A [`MatmulBackend`] takes over the products with the weights of a model, and
//! nothing else: it is asked once for each matrix when the model is loaded, and what it prepares is
//! called for each product. Norms, attention and the rest stay here.

use crate::Exec;
use crate::matmul::Matrix;
use std::fmt::Debug;

/// Why a backend cannot take a matrix.
pub type BackendError = Box<dyn std::error::Error + Send + Sync>;

/// Someone who computes matrix products.
pub trait MatmulBackend: Debug + Send + Sync {
    /// Name and version, for people.
    fn name(&self) -> String;

    /// Makes a matrix ready for products. What is returned keeps no reference to the matrix: a backend
    /// that needs the weights later copies them.
    ///
    /// # Errors
    /// If the backend does not know the weight type, or has no memory for the weights.
    fn prepare(&self, matrix: &Matrix<'_>) -> Result<Box<dyn PreparedMatrix>, BackendError>;
}

/// A matrix in a backend's hands.
pub trait PreparedMatrix: Debug + Send + Sync {
    /// `out[token, row] = weights[row] · x[token]`, on at most `exec`'s number of threads.
    ///
    /// `x` is `[n_tokens, n_cols]`, `out` is `[n_tokens, n_rows]`. Whether a result depends on the number
    /// of tokens or threads is the backend's affair.
    ///
    /// # Panics
    /// If a length does not fit the matrix.
    fn matmul(&self, exec: Exec<'_>, x: &[f32], out: &mut [f32]);
}
