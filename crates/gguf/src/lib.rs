//! Reading and writing GGUF model files.
use hurtle_quant::WeightType;
use std::path::{Path, PathBuf};

/// Why a file is refused: names the file, the key or tensor, and the byte offset.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String); // the owner of this crate replaces it by a real enum

/// One logical model file, with all its splits, mapped into memory.
#[derive(Debug)]
pub struct Gguf {}

impl Gguf {
    /// Maps the file and, if it is the first of a split, its siblings.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let _ = path;
        todo!()
    }
    /// Reads a single file held in memory; `name` is used in messages.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self, Error> {
        let _ = (name, bytes);
        todo!()
    }
    /// The file or files, first split first.
    pub fn paths(&self) -> &[PathBuf] {
        todo!()
    }
    /// GGUF version, 2 or 3.
    pub fn version(&self) -> u32 {
        todo!()
    }
    /// Bytes of all the files together.
    pub fn file_len(&self) -> u64 {
        todo!()
    }
    /// Key-value metadata.
    pub fn metadata(&self) -> &Metadata {
        todo!()
    }
    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        todo!()
    }
    /// A tensor by name (hash look-up).
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let _ = name;
        todo!()
    }
    /// The bytes of a tensor of this file, checked when the file was opened.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        let _ = tensor;
        todo!()
    }
}

/// Where a tensor lies and what it holds.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    name: String,
    dims: Vec<u64>,
    ty: WeightType,
}

impl TensorInfo {
    /// Name, e.g. `blk.0.attn_q.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Sizes, fastest-varying first (ggml's `ne`); 1 to 4 of them.
    pub fn dims(&self) -> &[u64] {
        &self.dims
    }
    /// Weight type.
    pub fn ty(&self) -> WeightType {
        self.ty
    }
    /// Bytes of the data.
    pub fn n_bytes(&self) -> usize {
        todo!()
    }
}

/// Typed key-value metadata, in file order.
#[derive(Debug, Default)]
pub struct Metadata {}

impl Metadata {
    /// The raw value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let _ = key;
        todo!()
    }
    /// All pairs in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        std::iter::empty()
    }
    /// A string, `None` if absent, an error (naming key and both types) if of another type.
    pub fn string(&self, key: &str) -> Result<Option<&str>, Error> {
        let _ = key;
        todo!()
    }
    /// Any integer type that fits.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        let _ = key;
        todo!()
    }
    /// Any integer type that fits.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, Error> {
        let _ = key;
        todo!()
    }
    /// f32 or f64 (or an integer).
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        let _ = key;
        todo!()
    }
    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        let _ = key;
        todo!()
    }
    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&StringArray>, Error> {
        let _ = key;
        todo!()
    }
    /// An array of any integer type, or of bools, widened to i64.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>, Error> {
        let _ = key;
        todo!()
    }
    /// An array of f32/f64 (narrowed).
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        let _ = key;
        todo!()
    }
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Array(Array),
}

/// An array of one element type.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(StringArray),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
    Nested(Vec<Array>),
}

/// Many strings in one allocation: vocabularies have up to 262,144 of them.
/// Elements are bytes, because some vocabularies are not UTF-8.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StringArray {}

impl StringArray {
    /// Number of strings.
    pub fn len(&self) -> usize {
        todo!()
    }
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The bytes of string `i`.
    pub fn get(&self, i: usize) -> Option<&[u8]> {
        let _ = i;
        todo!()
    }
    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        [].into_iter()
    }
}
