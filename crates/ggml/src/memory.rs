//! Memory aligned as ggml wants it.

/// A cache line: what ggml aligns its buffers to.
#[derive(Debug, Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A buffer that starts at a cache line and only grows.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
}

impl Aligned {
    /// A copy of `bytes`.
    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let mut copy = Self::default();
        copy.sized(bytes.len()).copy_from_slice(bytes);
        copy
    }

    /// A copy of `bytes` unless they are aligned for all of ggml's blocks as they are.
    pub(crate) fn copy_of_unaligned(bytes: &[u8]) -> Option<Self> {
        let aligned = bytes.as_ptr().addr().is_multiple_of(align_of::<f64>());
        (!aligned).then(|| Self::copy_of(bytes))
    }

    /// The first `n_bytes`, with arbitrary content.
    pub(crate) fn sized(&mut self, n_bytes: usize) -> &mut [u8] {
        let n_lines = n_bytes.div_ceil(size_of::<Line>());
        if self.lines.len() < n_lines {
            self.lines.resize(n_lines, Line([0; 64]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..n_bytes]
    }

    /// Where the buffer starts.
    pub(crate) fn as_ptr(&self) -> *const std::ffi::c_void {
        self.lines.as_ptr().cast()
    }
}
