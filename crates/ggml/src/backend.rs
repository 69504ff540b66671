//! ggml as the one that computes a model's matrix products.

use crate::matrix::{Compute, GgmlMatrix, Layout};
use crate::{Error, features, version};
use hurtle_kernels::Exec;
use hurtle_kernels::backend::{BackendError, MatmulBackend, PreparedMatrix};
use hurtle_kernels::matmul::Matrix;
use std::sync::{Arc, Mutex};

/// ggml, with threads of its own.
///
/// There are as many of them as the last product was asked to use. Between two products they poll for a
/// while, as they do under llama.cpp, and so take time from the threads of hurtle's pool.
#[derive(Debug, Default)]
pub struct Ggml {
    compute: Arc<Mutex<Compute>>,
}

impl Ggml {
    /// Copies a matrix to ggml's memory, in the layout asked for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if ggml has no products with the type, or not in this layout;
    /// [`Error::Memory`] if there is not enough; [`Error::Empty`] if the matrix has no rows.
    pub fn matrix(&self, matrix: &Matrix<'_>, layout: Layout) -> Result<GgmlMatrix, Error> {
        GgmlMatrix::new(&self.compute, matrix, layout)
    }

    /// Copies a matrix to ggml's memory: interleaved where ggml has kernels for that, as llama.cpp does.
    ///
    /// # Errors
    /// As [`Ggml::matrix`], for both layouts.
    pub fn best_matrix(&self, matrix: &Matrix<'_>) -> Result<GgmlMatrix, Error> {
        match self.matrix(matrix, Layout::Repacked) {
            Err(Error::Unsupported { .. }) => self.matrix(matrix, Layout::File),
            result => result,
        }
    }
}

impl MatmulBackend for Ggml {
    fn name(&self) -> String {
        let features = features();
        let features = if features.is_empty() { "no".to_owned() } else { features.join(", ") };
        format!("ggml {}, compiled with {features} instructions", version())
    }

    fn prepare(&self, matrix: &Matrix<'_>) -> Result<Box<dyn PreparedMatrix>, BackendError> {
        Ok(Box::new(self.best_matrix(matrix)?))
    }
}

impl PreparedMatrix for GgmlMatrix {
    fn matmul(&self, exec: Exec<'_>, x: &[f32], out: &mut [f32]) {
        GgmlMatrix::matmul(self, exec.n_threads, x, out);
    }
}
