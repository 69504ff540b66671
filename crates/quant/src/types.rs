//! THE table of weight types.

/// A ggml tensor type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types, missing_docs)]
pub enum WeightType {
    F32,
    F16,
    BF16,
    Q4_0,
    // ... every ggml type
}

impl WeightType {
    /// The type of a ggml id, as GGUF stores it.
    pub const fn from_id(id: u32) -> Option<Self> {
        let _ = id;
        todo!()
    }
    /// The ggml id.
    pub const fn id(self) -> u32 {
        todo!()
    }
    /// The name as ggml prints it in upper case: `Q4_K`.
    pub const fn name(self) -> &'static str {
        todo!()
    }
    /// The type of a name, case ignored.
    pub fn from_name(name: &str) -> Option<Self> {
        let _ = name;
        todo!()
    }
    /// Values in a block.
    pub const fn block_len(self) -> usize {
        todo!()
    }
    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        todo!()
    }
    /// Bytes of `n` values, if `n` is a multiple of the block length and the product fits.
    pub const fn row_bytes(self, n: usize) -> Option<usize> {
        let _ = n;
        todo!()
    }
}

impl std::fmt::Display for WeightType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
