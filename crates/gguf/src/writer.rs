//! Writing GGUF files, version 3, little-endian.
//!
//! Tensor data is given as bytes or made while writing, row after row, so that a model need not
//! fit in memory. Files appear under their names only when complete: they are written beside them
//! and renamed, so a failure leaves no half a model, and a model may replace the file it is read
//! from.

use crate::cursor::{MAX_NAME_BYTES, NAME_EXPECTED, Place};
use crate::parse::{ALIGNMENT_KEY, MAGIC, MAX_ARRAY_DEPTH, alignment};
use crate::split::{COUNT_KEY, NO_KEY, TENSORS_KEY, shard_path};
use crate::tensor::Layout;
use crate::{Array, Error, Metadata, Value};
use hurtle_quant::WeightType;
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const VERSION: u32 = 3;

/// A GGUF file to be written: metadata, then tensors in the order they are added.
#[derive(Debug)]
pub struct Writer<'a> {
    metadata: Metadata,
    tensors: Vec<NewTensor<'a>>,
    names: HashSet<Arc<str>>,
}

struct NewTensor<'a> {
    name: Arc<str>,
    layout: Layout,
    write: WriteData<'a>,
}

type WriteData<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

impl fmt::Debug for NewTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewTensor").field("name", &self.name).field("layout", &self.layout).finish()
    }
}

/// Where a model is split into several files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitBy {
    /// After this many tensors (at least 1).
    Tensors(usize),
    /// Before the tensor that would bring a file's data over this many bytes. A single tensor
    /// larger than that gets a file of its own.
    Bytes(u64),
}

impl<'a> Writer<'a> {
    /// Starts a file with this metadata. `general.alignment` is obeyed (default 32); the keys of a
    /// split model (`split.*`) are dropped, because they would no longer be true.
    pub fn new(mut metadata: Metadata) -> Self {
        for key in [NO_KEY, COUNT_KEY, TENSORS_KEY] {
            metadata.remove(key);
        }
        Self { metadata, tensors: Vec::new(), names: HashSet::new() }
    }

    /// Adds a tensor. `dims`: fastest-varying first, 1 to 4 of them.
    ///
    /// # Errors
    /// [`Error::Unwritable`] if the name is taken, empty or too long, if rows are not whole blocks
    /// of `ty`, or if `data` has not the length that shape and type ask for.
    pub fn tensor(
        &mut self,
        name: &str,
        dims: &[u64],
        ty: WeightType,
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), Error> {
        let data = data.into();
        let n_bytes = layout(name, dims, ty)?.n_bytes();
        if data.len() != n_bytes {
            let place = Place::Tensor(name.into());
            return Err(unwritable(place, format!("{n_bytes} bytes"), data.len().to_string()));
        }
        self.tensor_with(name, dims, ty, move |out| out.write_all(&data))
    }

    /// Adds a tensor whose data `write` makes when its turn comes. `dims` as in [`Writer::tensor`].
    ///
    /// # Errors
    /// As [`Writer::tensor`]. If `write` fails, or writes another number of bytes than shape and
    /// type ask for, writing the file fails.
    pub fn tensor_with(
        &mut self,
        name: &str,
        dims: &[u64],
        ty: WeightType,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> Result<(), Error> {
        let layout = layout(name, dims, ty)?;
        let name: Arc<str> = name.into();
        check_name(&name, Place::Tensor)?;
        if !self.names.insert(Arc::clone(&name)) {
            return Err(unwritable(Place::Tensor(name), "each tensor once", "a second one"));
        }
        self.tensors.push(NewTensor { name, layout, write: Box::new(write) });
        Ok(())
    }

    /// Writes one file to `out`; `name` is used in messages.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Unwritable`] if the metadata cannot be stored or a tensor's data
    /// had another length than announced.
    pub fn write_to(self, name: &str, mut out: impl Write) -> Result<(), Error> {
        write_file(&name.into(), &mut out, &self.metadata, self.tensors)
    }

    /// Writes one file, replacing any of that name once it is complete.
    ///
    /// # Errors
    /// As [`Writer::write_to`]; no file is left or changed then.
    pub fn write(self, path: impl AsRef<Path>) -> Result<(), Error> {
        let file = PendingFile::create(path.as_ref())?;
        file.write(&self.metadata, self.tensors)?;
        file.publish()
    }

    /// Writes `PREFIX-00001-of-0000N.gguf` and so on, replacing any of those names once all are
    /// complete. The metadata is in the first. Gives back the paths, first file first.
    ///
    /// # Errors
    /// As [`Writer::write_to`]; more than 65,535 files are refused.
    pub fn write_split(self, prefix: impl AsRef<Path>, by: SplitBy) -> Result<Vec<PathBuf>, Error> {
        let n_tensors = self.tensors.len();
        let shards = split(self.tensors, by);
        let count = shards.len();
        let (Ok(count_value), Ok(n_tensors)) = (u16::try_from(count), i32::try_from(n_tensors))
        else {
            let found = format!("{count} files, {n_tensors} tensors");
            let expected = "at most 65535 files and 2147483647 tensors";
            return Err(unwritable(Place::Header, expected, found));
        };
        let mut metadata = self.metadata;
        let mut files = Vec::with_capacity(count);
        for (no, tensors) in (0..count_value).zip(shards) {
            if no == 1 {
                let alignment = metadata.remove(ALIGNMENT_KEY);
                metadata = Metadata::new();
                metadata.extend(alignment.map(|value| (ALIGNMENT_KEY, value)));
            }
            // The types are those that llama.cpp reads.
            metadata.insert(NO_KEY, no);
            metadata.insert(COUNT_KEY, count_value);
            metadata.insert(TENSORS_KEY, n_tensors);
            let path = shard_path(prefix.as_ref(), no.into(), count);
            let file = PendingFile::create(&path)?;
            file.write(&metadata, tensors)?;
            files.push(file);
        }
        let paths = files.iter().map(|file| file.path.clone()).collect();
        // The first file comes last: until it is there, nothing can be opened.
        files.into_iter().rev().try_for_each(PendingFile::publish)?;
        Ok(paths)
    }
}

fn split(tensors: Vec<NewTensor<'_>>, by: SplitBy) -> Vec<Vec<NewTensor<'_>>> {
    let mut shards = vec![Vec::new()];
    let mut n_bytes = 0u64; // of the last shard
    for tensor in tensors {
        let tensor_bytes = tensor.layout.n_bytes() as u64;
        let last = shards.len() - 1;
        let full = match by {
            SplitBy::Tensors(n) => shards[last].len() >= n.max(1),
            SplitBy::Bytes(limit) => n_bytes.saturating_add(tensor_bytes) > limit,
        };
        if full && !shards[last].is_empty() {
            shards.push(vec![tensor]);
            n_bytes = tensor_bytes;
        } else {
            shards[last].push(tensor);
            n_bytes = n_bytes.saturating_add(tensor_bytes);
        }
    }
    shards
}

/// A file that is written under a temporary name beside its own, and removed if it is dropped
/// before it is published.
struct PendingFile {
    name: Arc<str>,
    path: PathBuf,
    file: tempfile::NamedTempFile,
}

impl PendingFile {
    fn create(path: &Path) -> Result<Self, Error> {
        let name: Arc<str> = path.to_string_lossy().into();
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".").suffix(".gguf.partial");
        #[cfg(unix)]
        // As for any new file: what the umask leaves of this.
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(|reason| Error::Io {
            file: Arc::clone(&name),
            action: "create",
            reason,
        })?;
        Ok(Self { name, path: path.to_owned(), file })
    }

    fn write(&self, metadata: &Metadata, tensors: Vec<NewTensor<'_>>) -> Result<(), Error> {
        let mut out = io::BufWriter::with_capacity(1 << 20, self.file.as_file());
        write_file(&self.name, &mut out, metadata, tensors)
    }

    fn publish(self) -> Result<(), Error> {
        let Self { name, path, file } = self;
        let sync = file.as_file().sync_all();
        sync.and_then(|()| file.persist(path).map(drop).map_err(|error| error.error))
            .map_err(|reason| Error::Io { file: name, action: "write", reason })
    }
}

fn write_file(
    file: &Arc<str>,
    out: &mut dyn Write,
    metadata: &Metadata,
    tensors: Vec<NewTensor<'_>>,
) -> Result<(), Error> {
    let failed = |reason| Error::Io { file: Arc::clone(file), action: "write", reason };
    let alignment = alignment(metadata)?;
    let header = encode_header(metadata, &tensors, alignment)?;
    out.write_all(&header).map_err(failed)?;
    pad(out, header.len(), alignment).map_err(failed)?;
    for NewTensor { name, layout, write } in tensors {
        let mut counted = Counted { out, n_bytes: 0 };
        write(&mut counted).map_err(failed)?;
        let n_bytes = layout.n_bytes();
        if counted.n_bytes != n_bytes as u64 {
            let (expected, found) = (format!("{n_bytes} bytes"), counted.n_bytes.to_string());
            return Err(unwritable(Place::Tensor(name), expected, found));
        }
        pad(out, n_bytes, alignment).map_err(failed)?;
    }
    out.flush().map_err(failed)
}

/// Zeros from `n_bytes` up to a multiple of `alignment`, a power of two.
fn pad(mut out: &mut dyn Write, n_bytes: usize, alignment: usize) -> io::Result<()> {
    let padding = n_bytes.wrapping_neg() & (alignment - 1);
    io::copy(&mut io::repeat(0).take(padding as u64), &mut out).map(drop)
}

/// Counts what passes through.
struct Counted<'a> {
    out: &'a mut dyn Write,
    n_bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.n_bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn encode_header(
    metadata: &Metadata,
    tensors: &[NewTensor<'_>],
    alignment: usize,
) -> Result<Vec<u8>, Error> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        check_name(key, Place::Key)?;
        encode_string(&mut out, key.as_bytes());
        out.extend(value.ty().id().to_le_bytes());
        if !encode_value(&mut out, value) {
            let expected = format!("at most {MAX_ARRAY_DEPTH} levels of arrays");
            return Err(unwritable(Place::Key(key.into()), expected, "more"));
        }
    }
    let mut offset = 0u64;
    for NewTensor { name, layout, .. } in tensors {
        encode_string(&mut out, name.as_bytes());
        out.extend((layout.dims().len() as u32).to_le_bytes());
        layout.dims().iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(layout.ty().id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (layout.n_bytes() as u64)
            .checked_next_multiple_of(alignment as u64)
            .and_then(|n_bytes| offset.checked_add(n_bytes))
            .ok_or_else(|| {
                let place = Place::Tensor(Arc::clone(name));
                unwritable(place, "a file of less than 2^64 bytes", "more")
            })?;
    }
    Ok(out)
}

fn encode_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

/// False if arrays are nested too deeply.
fn encode_value(out: &mut Vec<u8>, value: &Value) -> bool {
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(v) => encode_string(out, v.as_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Array(v) => return encode_array(out, v, 1),
    }
    true
}

fn encode_array(out: &mut Vec<u8>, array: &Array, depth: usize) -> bool {
    if depth > MAX_ARRAY_DEPTH {
        return false;
    }
    out.extend(array.ty().id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&v| u8::from(v))),
        Array::String(v) => out.extend(v.encoded()),
        Array::U64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::Nested(v) => return v.iter().all(|v| encode_array(out, v, depth + 1)),
    }
    true
}

fn layout(name: &str, dims: &[u64], ty: WeightType) -> Result<Layout, Error> {
    Layout::new(dims, ty)
        .map_err(|(expected, found)| unwritable(Place::Tensor(name.into()), expected, found))
}

fn check_name(name: &str, place: fn(Arc<str>) -> Place) -> Result<(), Error> {
    match name.len() {
        1..=MAX_NAME_BYTES => Ok(()),
        len => Err(unwritable(place(name.into()), NAME_EXPECTED, format!("{len} bytes"))),
    }
}

fn unwritable(place: Place, expected: impl Into<String>, found: impl Into<String>) -> Error {
    Error::Unwritable {
        place: place.to_string().into(),
        expected: expected.into().into(),
        found: found.into().into(),
    }
}
