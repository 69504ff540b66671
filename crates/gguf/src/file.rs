//! One logical model file: a single GGUF file, or all the shards of a split one.

use crate::mmap::Bytes;
use crate::parse::{Header, parse};
use crate::split::{COUNT_KEY, NO_KEY, TENSORS_KEY, shard_path, shard_prefix};
use crate::{Error, Metadata, TensorInfo};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One logical model file, with all its splits, mapped into memory.
#[derive(Debug)]
pub struct Gguf {
    paths: Vec<PathBuf>,
    shards: Vec<Bytes>,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<Arc<str>, usize>,
}

impl Gguf {
    /// Maps the file and, if it is the first of a split, its siblings.
    ///
    /// Nothing of the tensor data is read. The file must not be overwritten or truncated as long
    /// as it is open: another program that does so ends this one (`SIGBUS`). Replacing it by
    /// renaming another file is harmless.
    ///
    /// # Errors
    /// If a file cannot be read, is not a well-formed GGUF file of version 2 or 3, or if the
    /// shards of a split do not belong together. See [`Error`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let mut model = Self::read(display_name(path), Bytes::map(path, &display_name(path))?)?;
        model.paths.push(path.to_owned());
        let count = model.metadata.u64(COUNT_KEY)?.unwrap_or(0);
        if count > 1 {
            model.open_siblings(path, count)?;
        }
        Ok(model)
    }

    /// Reads a single file held in memory; `name` is used in messages.
    ///
    /// The alignment of tensor data in memory is that of `bytes`, which may be 1.
    ///
    /// # Errors
    /// As [`Gguf::open`]; a file that is one of several is refused.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self, Error> {
        let file: Arc<str> = name.into();
        let model = Self::read(Arc::clone(&file), Bytes::Owned(bytes))?;
        match model.metadata.u64(COUNT_KEY)? {
            Some(count @ 2..) => Err(Error::Split {
                file,
                expected: "a single file".into(),
                found: format!("one of {count}").into(),
                hint: "open a split model by the path of its first file".into(),
            }),
            _ => Ok(model),
        }
    }

    fn read(file: Arc<str>, bytes: Bytes) -> Result<Self, Error> {
        let Header { version, metadata, tensors, n_bytes } = parse(&file, bytes.as_slice(), 0)?;
        bytes.release(0..n_bytes); // all of it was copied: 16 MB for the largest vocabularies
        let mut model = Self {
            paths: Vec::new(),
            shards: vec![bytes],
            version,
            metadata,
            index: HashMap::with_capacity(tensors.len()),
            tensors: Vec::new(),
        };
        model.add_tensors(&file, tensors)?;
        Ok(model)
    }

    fn add_tensors(&mut self, file: &Arc<str>, tensors: Vec<TensorInfo>) -> Result<(), Error> {
        for (i, tensor) in (self.tensors.len()..).zip(&tensors) {
            match self.index.entry(Arc::clone(tensor.shared_name())) {
                Entry::Vacant(entry) => entry.insert(i),
                Entry::Occupied(_) => {
                    return Err(Error::DuplicateTensor {
                        file: Arc::clone(file),
                        tensor: crate::error::printable(tensor.name()).into(),
                    });
                }
            };
        }
        if self.tensors.is_empty() {
            self.tensors = tensors;
        } else {
            self.tensors.extend(tensors);
        }
        Ok(())
    }

    fn open_siblings(&mut self, first: &Path, count: u64) -> Result<(), Error> {
        let refuse = |path: &Path, expected: String, found: String, hint: String| Error::Split {
            file: display_name(path),
            expected: expected.into(),
            found: found.into(),
            hint: hint.into(),
        };
        // llama.cpp keeps the number in 16 bits, the name has room for five digits.
        let count = u16::try_from(count).map(usize::from).map_err(|_| {
            let expected = format!("{COUNT_KEY} of at most {}", u16::MAX);
            refuse(first, expected, count.to_string(), String::new())
        })?;
        let no = self.metadata.require(NO_KEY, Metadata::u64)?;
        if no != 0 {
            let hint = usize::try_from(no)
                .ok()
                .filter(|&no| no < count)
                .and_then(|no| shard_prefix(first, no, count))
                .map(|prefix| format!("open {}", display_name(&shard_path(&prefix, 0, count))))
                .unwrap_or_else(|| "open the first file of the model".into());
            let found = format!("file {} of {count}", no.saturating_add(1));
            return Err(refuse(first, format!("the first of {count} files"), found, hint));
        }
        let prefix = shard_prefix(first, 0, count).ok_or_else(|| {
            let expected = shard_path(Path::new("NAME"), 0, count).display().to_string();
            let hint = "the other files are found by this name; give all of them their names back";
            let found = first.file_name().unwrap_or_default();
            refuse(first, format!("a file name like {expected}"), format!("{found:?}"), hint.into())
        })?;
        for no in 1..count {
            let path = shard_path(&prefix, no, count);
            let file = display_name(&path);
            if !path.exists() {
                let hint = format!("all {count} files belong in one folder; pull the model again");
                return Err(refuse(&path, format!("{count} files"), "no such file".into(), hint));
            }
            let bytes = Bytes::map(&path, &file)?;
            let Header { metadata, tensors, .. } = parse(&file, bytes.as_slice(), no)?;
            for (key, expected) in [(NO_KEY, no), (COUNT_KEY, count)] {
                let found = metadata.require(key, Metadata::u64)?;
                if found != expected as u64 {
                    let hint = "this is the file of another place or model; pull the model again";
                    let expected = format!("{key} to be {expected}");
                    return Err(refuse(&path, expected, found.to_string(), hint.into()));
                }
            }
            self.add_tensors(&file, tensors)?;
            self.shards.push(bytes);
            self.paths.push(path);
        }
        if let Some(expected) = self.metadata.u64(TENSORS_KEY)?
            && expected != self.tensors.len() as u64
        {
            let hint = "the files may be of different models; pull the model again";
            let found = format!("{} in all files together", self.tensors.len());
            return Err(refuse(first, format!("{expected} tensors"), found, hint.into()));
        }
        Ok(())
    }

    /// The file or files, first split first; none for [`Gguf::from_bytes`].
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }
    /// GGUF version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }
    /// Bytes of all the files together.
    pub fn file_len(&self) -> u64 {
        self.shards.iter().map(|shard| shard.as_slice().len() as u64).sum()
    }
    /// Key-value metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    /// The name of the model's architecture, e.g. `llama`.
    ///
    /// # Errors
    /// If `general.architecture` is absent or not a string.
    pub fn architecture(&self) -> Result<&str, Error> {
        self.metadata.require("general.architecture", Metadata::string)
    }
    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    /// Values of all tensors together: the number of parameters.
    pub fn n_params(&self) -> u64 {
        self.tensors.iter().map(TensorInfo::n_elements).sum()
    }
    /// A tensor by name (hash look-up).
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        Some(&self.tensors[*self.index.get(name)?])
    }
    /// The bytes of a tensor of this file, checked when the file was opened.
    ///
    /// # Panics
    /// May panic, or give other bytes, if `tensor` is of another [`Gguf`].
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        &self.shards[tensor.shard()].as_slice()[tensor.range()]
    }
    /// Asks the system to read a tensor of this file into memory soon. Returns at once.
    pub fn prefetch(&self, tensor: &TensorInfo) {
        self.shards[tensor.shard()].prefetch(tensor.range());
    }
    /// Brings a part of a tensor's bytes into memory in one go, because it is about to be read.
    /// [`Gguf::data`] is as valid before.
    pub fn populate(&self, tensor: &TensorInfo, part: Range<usize>) {
        self.shards[tensor.shard()].populate(within(tensor, part));
    }
    /// Gives the memory of a part of a mapped tensor's bytes back, e.g. when its weights have been
    /// repacked. [`Gguf::data`] stays valid and reads the file again.
    pub fn release(&self, tensor: &TensorInfo, part: Range<usize>) {
        self.shards[tensor.shard()].release(within(tensor, part));
    }
}

/// A part of a tensor's bytes in its file; parts that are not in the tensor are cut off.
fn within(tensor: &TensorInfo, part: Range<usize>) -> Range<usize> {
    let Range { start, end } = tensor.range();
    start.saturating_add(part.start).min(end)..start.saturating_add(part.end).min(end)
}

fn display_name(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}
