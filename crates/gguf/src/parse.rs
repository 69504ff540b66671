//! Reads one file's header. See the [crate's documentation](crate) for the layout.

use crate::cursor::{Cursor, Place};
use crate::error::printable;
use crate::foreign::Foreign;
use crate::tensor::{Layout, MAX_DIMS};
use crate::{Array, Error, Metadata, StringArray, TensorInfo, Value, ValueType};
use hurtle_quant::WeightType;
use std::sync::Arc;

pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
pub(crate) const DEFAULT_ALIGNMENT: usize = 32;
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";

/// Arrays in arrays in arrays: real files have one level at most.
pub(crate) const MAX_ARRAY_DEPTH: usize = 4;

// The fewest bytes an item takes in a file; counts are checked against them before allocating.
const MIN_KEY_BYTES: usize = 8 + 1 + 4 + 1; // length, one letter, type, value
const MIN_TENSOR_BYTES: usize = 8 + 1 + 4 + 4 + 8; // length, one letter, n_dims, type, offset
const MIN_STRING_BYTES: usize = 8; // length
const MIN_ARRAY_BYTES: usize = 4 + 8; // type, count

/// What a single file says about itself.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<TensorInfo>,
    /// Where the header ends.
    pub(crate) n_bytes: usize,
}

/// Reads the header in `bytes`, the whole of shard number `shard`, and checks that every tensor's
/// data lies in it.
pub(crate) fn parse(file: &Arc<str>, bytes: &[u8], shard: usize) -> Result<Header, Error> {
    let mut cursor = Cursor::new(Arc::clone(file), bytes);
    let version = version(&mut cursor, bytes)?;
    let n_tensors = cursor.u64()?;
    let n_keys = cursor.u64()?;

    let n = cursor.check_remaining(n_keys, MIN_KEY_BYTES)?;
    let mut metadata = Metadata::with_capacity(Arc::clone(file), n);
    for i in 0..n_keys {
        key_value(&mut cursor, i, &mut metadata)?;
    }

    cursor.place = Place::Header;
    let alignment = alignment(&metadata)?;
    let n = cursor.check_remaining(n_tensors, MIN_TENSOR_BYTES)?;
    let mut tensors = Vec::with_capacity(n);
    for i in 0..n_tensors {
        tensors.push(tensor(&mut cursor, i, alignment)?);
    }
    let n_bytes = cursor.position();
    let data_start = n_bytes.checked_next_multiple_of(alignment);
    let tensors = place_tensors(&mut cursor, tensors, data_start, bytes.len(), shard)?;
    Ok(Header { version, metadata, tensors, n_bytes })
}

fn version(cursor: &mut Cursor<'_>, bytes: &[u8]) -> Result<u32, Error> {
    if !bytes.starts_with(MAGIC) {
        let head = &bytes[..bytes.len().min(64)];
        let magic = match &bytes[..bytes.len().min(4)] {
            [] => "nothing".into(),
            magic => format!("\"{}\"", magic.escape_ascii()),
        };
        return Err(Error::NotGguf {
            file: cursor.file.clone(),
            magic,
            looks_like: Foreign::sniff(head, bytes.len() as u64),
        });
    }
    cursor.take(MAGIC.len() as u64)?;
    let file = cursor.file.clone();
    match cursor.u32()? {
        version @ 2..=3 => Ok(version),
        found if (1..=3).contains(&found.swap_bytes()) => Err(Error::BigEndian { file, found }),
        found => Err(Error::Version { file, found }),
    }
}

/// The value of `general.alignment`, or its default.
pub(crate) fn alignment(metadata: &Metadata) -> Result<usize, Error> {
    match metadata.u32(ALIGNMENT_KEY)? {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(n) if n.is_power_of_two() => Ok(n as usize),
        Some(n) => Err(metadata.wrong_type(ALIGNMENT_KEY, "a power of two", n.to_string())),
    }
}

fn key_value(cursor: &mut Cursor<'_>, i: u64, metadata: &mut Metadata) -> Result<(), Error> {
    cursor.place = Place::KeyName(i);
    let at = cursor.position();
    let key = cursor.name()?;
    if metadata.get(&key).is_some() {
        let found = format!("a second {}", printable(&key));
        return Err(cursor.malformed(at, "each key once", found));
    }
    cursor.place = Place::Key(Arc::clone(&key));
    let ty = value_type(cursor)?;
    let value = value(cursor, ty)?;
    metadata.insert(key, value);
    Ok(())
}

fn value_type(cursor: &mut Cursor<'_>) -> Result<ValueType, Error> {
    let at = cursor.position();
    let id = cursor.u32()?;
    ValueType::from_id(id)
        .ok_or_else(|| cursor.malformed(at, "a value type from 0 to 12", id.to_string()))
}

fn value(cursor: &mut Cursor<'_>, ty: ValueType) -> Result<Value, Error> {
    Ok(match ty {
        ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array()?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array()?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array()?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array()?)),
        ValueType::U32 => Value::U32(cursor.u32()?),
        ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array()?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array()?)),
        ValueType::Bool => {
            let at = cursor.position();
            let [byte] = cursor.array()?;
            Value::Bool(boolean(cursor, at, byte)?)
        }
        ValueType::String => Value::String(cursor.utf8()?.into()),
        ValueType::U64 => Value::U64(cursor.u64()?),
        ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array()?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array()?)),
        ValueType::Array => Value::Array(array(cursor, 1)?),
    })
}

fn boolean(cursor: &Cursor<'_>, at: usize, byte: u8) -> Result<bool, Error> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(cursor.malformed(at, "a bool, 0 or 1", byte.to_string())),
    }
}

fn array(cursor: &mut Cursor<'_>, depth: usize) -> Result<Array, Error> {
    let at = cursor.position();
    if depth > MAX_ARRAY_DEPTH {
        let found = format!("{depth} or more");
        return Err(cursor.malformed(at, format!("{MAX_ARRAY_DEPTH} levels of arrays"), found));
    }
    let ty = value_type(cursor)?;
    let n = cursor.u64()?;
    Ok(match ty {
        ValueType::U8 => Array::U8(cursor.take(n)?.to_vec()),
        ValueType::I8 => Array::I8(cursor.numbers(n, i8::from_le_bytes)?),
        ValueType::U16 => Array::U16(cursor.numbers(n, u16::from_le_bytes)?),
        ValueType::I16 => Array::I16(cursor.numbers(n, i16::from_le_bytes)?),
        ValueType::U32 => Array::U32(cursor.numbers(n, u32::from_le_bytes)?),
        ValueType::I32 => Array::I32(cursor.numbers(n, i32::from_le_bytes)?),
        ValueType::F32 => Array::F32(cursor.numbers(n, f32::from_le_bytes)?),
        ValueType::U64 => Array::U64(cursor.numbers(n, u64::from_le_bytes)?),
        ValueType::I64 => Array::I64(cursor.numbers(n, i64::from_le_bytes)?),
        ValueType::F64 => Array::F64(cursor.numbers(n, f64::from_le_bytes)?),
        ValueType::Bool => {
            let start = cursor.position();
            let bytes = cursor.take(n)?;
            let mut bools = Vec::with_capacity(bytes.len());
            for (i, &byte) in bytes.iter().enumerate() {
                bools.push(boolean(cursor, start + i, byte)?);
            }
            Array::Bool(bools)
        }
        ValueType::String => Array::String(strings(cursor, n)?),
        ValueType::Array => {
            let mut arrays = Vec::with_capacity(cursor.check_remaining(n, MIN_ARRAY_BYTES)?);
            for _ in 0..n {
                arrays.push(array(cursor, depth + 1)?);
            }
            Array::Nested(arrays)
        }
    })
}

fn strings(cursor: &mut Cursor<'_>, n: u64) -> Result<StringArray, Error> {
    let mut ends = Vec::with_capacity(cursor.check_remaining(n, MIN_STRING_BYTES)?);
    let start = cursor.position();
    for _ in 0..n {
        cursor.string()?;
        ends.push(cursor.position() - start);
    }
    Ok(StringArray::from_parts(cursor.since(start).to_vec(), ends))
}

/// A tensor as the header describes it; its offset counts from the start of the data.
struct Described {
    name: Arc<str>,
    layout: Layout,
    offset: u64,
    /// Where in the file the offset stands, for messages.
    offset_at: usize,
}

fn tensor(cursor: &mut Cursor<'_>, i: u64, alignment: usize) -> Result<Described, Error> {
    cursor.place = Place::TensorName(i);
    let name = cursor.name()?;
    cursor.place = Place::Tensor(Arc::clone(&name));

    let dims_at = cursor.position();
    let n_dims = cursor.u32()? as usize;
    if n_dims > MAX_DIMS {
        let expected = format!("at most {MAX_DIMS} dimensions");
        return Err(cursor.malformed(dims_at, expected, n_dims.to_string()));
    }
    let mut dims = [1; MAX_DIMS];
    for dim in &mut dims[..n_dims] {
        *dim = cursor.u64()?;
    }
    let id_at = cursor.position();
    let id = cursor.u32()?;
    let ty = WeightType::from_id(id).ok_or_else(|| Error::UnknownWeightType {
        file: cursor.file.clone(),
        tensor: printable(&name).into(),
        id,
        offset: id_at as u64,
    })?;
    // A scalar has no dimensions; ggml gives it one of size 1.
    let layout = Layout::new(&dims[..n_dims.max(1)], ty)
        .map_err(|(expected, found)| cursor.malformed(dims_at, expected, found))?;

    let offset_at = cursor.position();
    let offset = cursor.u64()?;
    if !offset.is_multiple_of(alignment as u64) {
        let expected = format!("a data offset that is a multiple of {alignment}");
        return Err(cursor.malformed(offset_at, expected, offset.to_string()));
    }
    Ok(Described { name, layout, offset, offset_at })
}

/// Turns offsets into places in the file, and checks that they lie in it and do not overlap.
fn place_tensors(
    cursor: &mut Cursor<'_>,
    described: Vec<Described>,
    data_start: Option<usize>,
    file_len: usize,
    shard: usize,
) -> Result<Vec<TensorInfo>, Error> {
    let mut order: Vec<&Described> = described.iter().collect();
    order.sort_unstable_by_key(|tensor| tensor.offset);
    for pair in order.windows(2) {
        let [a, b] = pair else { continue };
        // The sum cannot overflow: `a.offset <= b.offset`.
        if b.offset - a.offset < a.layout.n_bytes() as u64 {
            cursor.place = Place::Tensor(Arc::clone(&b.name));
            let end = u128::from(a.offset) + a.layout.n_bytes() as u128;
            let expected =
                format!("a data offset of at least {end}, the end of {}", printable(&a.name));
            return Err(cursor.malformed(b.offset_at, expected, b.offset.to_string()));
        }
    }
    let mut tensors = Vec::with_capacity(described.len());
    for Described { name, layout, offset, .. } in described {
        let start = data_start
            .and_then(|start| start.checked_add(usize::try_from(offset).ok()?))
            .unwrap_or(usize::MAX);
        if layout.n_bytes() > file_len.saturating_sub(start) {
            return Err(Error::Truncated {
                file: cursor.file.clone(),
                place: Place::Tensor(name).to_string().into(),
                offset: start as u64,
                expected: layout.n_bytes() as u64,
                found: file_len.saturating_sub(start) as u64,
            });
        }
        tensors.push(TensorInfo::new(name, layout, shard, start));
    }
    Ok(tensors)
}
