//! Key-value metadata, and its look-up by type.

use crate::error::printable;
use crate::{Array, Error, StringArray, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// Typed key-value metadata, in file order.
#[derive(Debug, Clone)]
pub struct Metadata {
    /// Where it comes from, for messages.
    file: Arc<str>,
    pairs: Vec<(Arc<str>, Value)>,
    index: HashMap<Arc<str>, usize>,
}

impl Default for Metadata {
    fn default() -> Self {
        Self::with_capacity("new metadata".into(), 0)
    }
}

/// Equal keys and values in equal order, wherever they come from.
impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.pairs == other.pairs
    }
}

/// Inserts one pair after the other.
impl<K: Into<Arc<str>>, V: Into<Value>> Extend<(K, V)> for Metadata {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, pairs: I) {
        for (key, value) in pairs {
            self.insert(key, value);
        }
    }
}

impl<K: Into<Arc<str>>, V: Into<Value>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut metadata = Self::new();
        metadata.extend(pairs);
        metadata
    }
}

impl Metadata {
    /// No metadata yet.
    pub fn new() -> Self {
        Self::default()
    }
    pub(crate) fn with_capacity(file: Arc<str>, n: usize) -> Self {
        Self { file, pairs: Vec::with_capacity(n), index: HashMap::with_capacity(n) }
    }
    /// Sets a key. One that exists keeps its place and gives back its old value.
    pub fn insert(&mut self, key: impl Into<Arc<str>>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        if let Some(&i) = self.index.get(&key) {
            return Some(std::mem::replace(&mut self.pairs[i].1, value));
        }
        self.index.insert(Arc::clone(&key), self.pairs.len());
        self.pairs.push((key, value));
        None
    }
    /// Removes a key; the others keep their order.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.index.remove(key)?;
        let (_, value) = self.pairs.remove(at);
        for (i, (key, _)) in self.pairs.iter().enumerate().skip(at) {
            self.index.insert(Arc::clone(key), i);
        }
        Some(value)
    }
    /// Number of keys.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }
    /// True if there are no keys.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
    /// The raw value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        Some(&self.pairs[*self.index.get(key)?].1)
    }
    /// All pairs in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|(key, value)| (&**key, value))
    }

    /// A key that must be there: `metadata.require("llama.block_count", Metadata::u32)`.
    ///
    /// # Errors
    /// [`Error::MissingKey`], and those of `get`.
    pub fn require<'a, T>(
        &'a self,
        key: &str,
        get: impl FnOnce(&'a Self, &str) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        get(self, key)?.ok_or_else(|| Error::MissingKey {
            file: self.file.clone(),
            key: printable(key).into(),
        })
    }

    /// A string, `None` if absent, an error (naming key and both types) if of another type.
    pub fn string(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "string", |value| match value {
            Value::String(v) => Some(v.as_str()),
            _ => None,
        })
    }
    /// Any integer type that fits.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.integer(key, "u32")
    }
    /// Any integer type that fits.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, Error> {
        self.integer(key, "u64")
    }
    /// Any integer type that fits.
    pub fn i64(&self, key: &str) -> Result<Option<i64>, Error> {
        self.integer(key, "i64")
    }
    /// f32 or f64 (or an integer).
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        self.typed(key, "f32", |value| match *value {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => value.as_integer().map(|v| v as f32),
        })
    }
    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "bool", |value| match *value {
            Value::Bool(v) => Some(v),
            _ => None,
        })
    }
    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&StringArray>, Error> {
        self.typed(key, "array of string", |value| match value {
            Value::Array(Array::String(v)) => Some(v),
            _ => None,
        })
    }
    /// An array of any integer type, or of bools, widened to i64.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>, Error> {
        fn widen<T: Copy + Into<i64>>(values: &[T]) -> Vec<i64> {
            values.iter().map(|&v| v.into()).collect()
        }
        self.typed(key, "array of integers that fit i64", |value| {
            let Value::Array(array) = value else { return None };
            Some(match array {
                Array::U8(v) => widen(v),
                Array::I8(v) => widen(v),
                Array::U16(v) => widen(v),
                Array::I16(v) => widen(v),
                Array::U32(v) => widen(v),
                Array::I32(v) => widen(v),
                Array::I64(v) => widen(v),
                Array::Bool(v) => widen(v),
                Array::U64(v) => {
                    v.iter().map(|&v| i64::try_from(v)).collect::<Result<_, _>>().ok()?
                }
                Array::F32(_) | Array::F64(_) | Array::String(_) | Array::Nested(_) => return None,
            })
        })
    }
    /// An array of f32/f64 (narrowed).
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        self.typed(key, "array of f32", |value| match value {
            Value::Array(Array::F32(v)) => Some(v.clone()),
            Value::Array(Array::F64(v)) => Some(v.iter().map(|&v| v as f32).collect()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        get: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        get(value).map(Some).ok_or_else(|| self.wrong_type(key, expected, value.describe()))
    }

    fn integer<T: TryFrom<i128>>(
        &self,
        key: &str,
        expected: &'static str,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Some(integer) = value.as_integer() else {
            return Err(self.wrong_type(key, expected, value.describe()));
        };
        match T::try_from(integer) {
            Ok(v) => Ok(Some(v)),
            Err(_) => Err(self.wrong_type(key, expected, format!("{} {integer}", value.ty()))),
        }
    }

    pub(crate) fn wrong_type(&self, key: &str, expected: &'static str, found: String) -> Error {
        Error::WrongType {
            file: self.file.clone(),
            key: printable(key).into(),
            expected,
            found: found.into(),
        }
    }
}
