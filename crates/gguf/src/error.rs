//! Why a file is refused: every message names the file, the key or tensor, the byte offset, what
//! was expected and what was found, and what to do about it where something can be done.
//!
//! Names out of a file may hold anything, terminal escape sequences and megabytes included, so
//! they pass through [`printable`] on their way into a message.

use crate::foreign::Foreign;
use std::sync::Arc;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{file}: cannot {action}: {reason}")]
    Io {
        /// The file concerned.
        file: Arc<str>,
        /// What was attempted: `open`, `map`, `write` …
        action: &'static str,
        /// The reason given. Not a `source()`, since the message has it already.
        reason: std::io::Error,
    },
    /// The path names a directory, a pipe or a device.
    #[error("{file}: expected a file, found {found}")]
    NotAFile {
        /// The path concerned.
        file: Arc<str>,
        /// What lies there.
        found: &'static str,
    },
    /// The first four bytes are not `GGUF`.
    #[error("{file}: not a GGUF file: expected it to begin with \"GGUF\", found {magic}{}", hint_line(.looks_like.hint()))]
    NotGguf {
        /// The file concerned.
        file: Arc<str>,
        /// Its first bytes, printable.
        magic: String,
        /// What the file probably is.
        looks_like: Foreign,
    },
    /// A file for machines of the other byte order.
    #[error(
        "{file}: big-endian GGUF (version field {found:#010x}): expected a little-endian file\n\
         hint: convert it with llama.cpp's gguf_convert_endian.py, or pull a little-endian file"
    )]
    BigEndian {
        /// The file concerned.
        file: Arc<str>,
        /// The version field as read in little-endian order.
        found: u32,
    },
    /// A version before 2 or after 3.
    #[error("{file}: expected GGUF version 2 or 3, found {found}{}", hint_line(version_hint(*.found)))]
    Version {
        /// The file concerned.
        file: Arc<str>,
        /// The version it has.
        found: u32,
    },
    /// The file ends before what it announces.
    #[error(
        "{file}: {place}, byte {offset}: expected {expected} bytes, found {found} up to the end of the file\n\
         hint: the file may be truncated; pull or download it again"
    )]
    Truncated {
        /// The file concerned.
        file: Arc<str>,
        /// The key, tensor or field.
        place: Box<str>,
        /// Where it starts in the file.
        offset: u64,
        /// Bytes announced (at least; saturates).
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A field holds what it must not.
    #[error(
        "{file}: {place}, byte {offset}: expected {expected}, found {found}\n\
         hint: the file is damaged or was made by a faulty program; pull it again"
    )]
    Malformed {
        /// The file concerned.
        file: Arc<str>,
        /// The key, tensor or field.
        place: Box<str>,
        /// Where the field starts in the file.
        offset: u64,
        /// What would be right.
        expected: Box<str>,
        /// What is there.
        found: Box<str>,
    },
    /// A tensor of a weight type that this program does not know.
    #[error(
        "{file}: tensor {tensor}, byte {offset}: expected a known weight type, found id {id}{}",
        hint_line(weight_type_hint(*.id))
    )]
    UnknownWeightType {
        /// The file concerned.
        file: Arc<str>,
        /// The tensor concerned.
        tensor: Box<str>,
        /// The ggml id found.
        id: u32,
        /// Where the id stands in the file.
        offset: u64,
    },
    /// Two tensors of one name, perhaps in two files of a split model.
    #[error(
        "{file}: tensor {tensor}: expected each tensor once, found a second one of this name\n\
         hint: the file, or a file of the split model, is damaged or misplaced; pull the model again"
    )]
    DuplicateTensor {
        /// The file with the second one.
        file: Arc<str>,
        /// The tensor concerned.
        tensor: Box<str>,
    },
    /// A metadata key has a value of another type, or one out of range.
    #[error("{file}: key {key}: expected {expected}, found {found}")]
    WrongType {
        /// The file concerned.
        file: Arc<str>,
        /// The key concerned.
        key: Box<str>,
        /// The type asked for.
        expected: &'static str,
        /// The type, or the value, found.
        found: Box<str>,
    },
    /// A metadata key that is needed is absent.
    #[error(
        "{file}: key {key}: expected a value, found no such key\n\
         hint: the file may be incomplete or made for something else; convert it again or pull another"
    )]
    MissingKey {
        /// The file concerned.
        file: Arc<str>,
        /// The key concerned.
        key: Box<str>,
    },
    /// The files of a split model do not belong together, or some are missing.
    #[error("{file}: split model: expected {expected}, found {found}{}", hint_line(.hint))]
    Split {
        /// The shard concerned.
        file: Arc<str>,
        /// What would be right.
        expected: Box<str>,
        /// What is there.
        found: Box<str>,
        /// What to do about it, or empty.
        hint: Box<str>,
    },
    /// The writer was given what no GGUF file can hold.
    #[error("{place}: expected {expected}, found {found}")]
    Unwritable {
        /// The key or tensor concerned.
        place: Box<str>,
        /// What would be right.
        expected: Box<str>,
        /// What was given.
        found: Box<str>,
    },
}

fn hint_line(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("\nhint: {text}") }
}

fn version_hint(version: u32) -> &'static str {
    if version < 2 {
        "this file is from 2023; pull a newer conversion of the model"
    } else {
        "the file is newer than this program; update hurtle, or pull another file"
    }
}

fn weight_type_hint(id: u32) -> &'static str {
    match id {
        4 | 5 => "this type was removed from GGUF in 2023; pull another quantization of the model",
        31..=33 => "this repacked Q4_0 was removed from GGUF; pull the Q4_0 file of the model",
        36..=38 => "this repacked IQ4_NL was removed from GGUF; pull the IQ4_NL file of the model",
        _ => "update hurtle, or pull another quantization of the model (Q4_K_M, Q8_0)",
    }
}

/// A name out of a file, fit for a message: control characters escaped, long ones shortened.
pub(crate) fn printable(name: &str) -> String {
    const MAX_CHARS: usize = 80;
    let mut text: String = name.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if name.chars().nth(MAX_CHARS).is_some() {
        text.push('…');
    }
    text
}
