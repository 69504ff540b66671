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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_any_type_that_fits() {
        fn check<T: Into<Value>>(value: T, u32: Option<u32>, u64: Option<u64>, f32: f32) {
            let metadata = Metadata::from_iter([("k", value)]);
            assert_eq!(metadata.u32("k").ok().flatten(), u32);
            assert_eq!(metadata.u64("k").ok().flatten(), u64);
            assert_eq!(metadata.f32("k").unwrap(), Some(f32));
        }
        check(200u8, Some(200), Some(200), 200.0);
        check(-1i8, None, None, -1.0);
        check(60_000u16, Some(60_000), Some(60_000), 60_000.0);
        check(-1i16, None, None, -1.0);
        check(u32::MAX, Some(u32::MAX), Some(0xffff_ffff), 4_294_967_296.0);
        check(7i32, Some(7), Some(7), 7.0);
        check(1u64 << 32, None, Some(1 << 32), 4_294_967_296.0);
        check(5i64, Some(5), Some(5), 5.0);
        check(0.5f32, None, None, 0.5);
        check(0.5f64, None, None, 0.5);
    }

    #[test]
    fn arrays_are_widened_and_narrowed() {
        fn ints(array: impl Into<Array>) -> Option<Vec<i64>> {
            Metadata::from_iter([("k", array.into())]).ints("k").ok().flatten()
        }
        assert_eq!(ints(vec![1u8, 255]), Some(vec![1, 255]));
        assert_eq!(ints(vec![-1i8]), Some(vec![-1]));
        assert_eq!(ints(vec![60_000u16]), Some(vec![60_000]));
        assert_eq!(ints(vec![-2i16]), Some(vec![-2]));
        assert_eq!(ints(vec![u32::MAX]), Some(vec![0xffff_ffff]));
        assert_eq!(ints(vec![-3i32]), Some(vec![-3]));
        assert_eq!(ints(vec![i64::MIN]), Some(vec![i64::MIN]));
        assert_eq!(ints(vec![4u64]), Some(vec![4]));
        assert_eq!(ints(vec![true, false]), Some(vec![1, 0]));
        assert_eq!(ints(vec![u64::MAX]), None);
        assert_eq!(ints(vec![1f32]), None);
        let floats =
            Metadata::from_iter([("a", Array::F32(vec![1.5])), ("b", Array::F64(vec![0.1]))]);
        assert_eq!(floats.floats("a").unwrap(), Some(vec![1.5]));
        assert_eq!(floats.floats("b").unwrap(), Some(vec![0.1]));
    }

    #[test]
    fn keys_keep_their_order() {
        let mut metadata = Metadata::from_iter([("a", 1u8), ("b", 2), ("c", 3)]);
        assert_eq!(metadata.insert("b", 4u8), Some(Value::U8(2)));
        assert_eq!(metadata.remove("a"), Some(Value::U8(1)));
        assert_eq!(metadata.remove("a"), None);
        assert_eq!(metadata.insert("a", 5u8), None);
        let pairs: Vec<_> = metadata.iter().collect();
        assert_eq!(pairs, [("b", &Value::U8(4)), ("c", &Value::U8(3)), ("a", &Value::U8(5))]);
        for (key, value) in pairs {
            assert_eq!(metadata.get(key), Some(value));
        }
    }
}
