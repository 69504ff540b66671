//! Reading and writing GGUF model files.
//!
//! ```text
//!   "GGUF"  version u32  n_tensors u64  n_keys u64                              header
//!   key string   type u32   value                                             × n_keys
//!   name string  n_dims u32  dims u64 × n_dims  weight type u32  offset u64   × n_tensors
//!   padding up to a multiple of general.alignment (default 32)
//!   data of the tensors, each at its offset from here, a multiple of the alignment
//! ```
//!
//! Strings are a length in 8 bytes and then their bytes; arrays are the type of their elements, a
//! count in 8 bytes and the elements; all numbers are little-endian
//! ([format description](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)).
//!
//! The bytes are untrusted: no input makes this crate panic, every offset and product is checked,
//! and a count is checked against the bytes left in the file before anything is allocated by it,
//! so that opening a file takes at most a small multiple of the size of its header.
//!
//! ```
//! use hurtle_gguf::{Gguf, Metadata, Writer};
//!
//! let metadata: Metadata = [("general.architecture", "llama")].into_iter().collect();
//! let mut file = Vec::new();
//! Writer::new(metadata).write_to("tiny.gguf", &mut file)?;
//!
//! let gguf = Gguf::from_bytes("tiny.gguf", file)?;
//! assert_eq!(gguf.architecture()?, "llama");
//! let error = gguf.metadata().require("llama.block_count", Metadata::u32).unwrap_err();
//! assert!(error.to_string().starts_with("tiny.gguf: key llama.block_count: expected a value"));
//! # Ok::<(), hurtle_gguf::Error>(())
//! ```

#![deny(unsafe_code)] // but for mmap.rs

mod cursor;
mod error;
mod file;
mod foreign;
mod metadata;
#[expect(unsafe_code, reason = "memory mapping")]
mod mmap;
mod parse;
mod split;
mod strings;
mod tensor;
mod value;
mod writer;

pub use error::Error;
pub use file::Gguf;
pub use foreign::Foreign;
pub use metadata::Metadata;
pub use split::shard_path;
pub use strings::StringArray;
pub use tensor::TensorInfo;
pub use value::{Array, Value, ValueType};
pub use writer::{SplitBy, Writer};
