//! A reading position in untrusted bytes. Every read is checked against the end of the file, and
//! every failure says which key or tensor was being read and at which byte.

use crate::Error;
use crate::error::printable;
use std::fmt;
use std::sync::Arc;

/// What is being read, for messages.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Header,
    KeyName(u64),
    Key(Arc<str>),
    TensorName(u64),
    Tensor(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::KeyName(i) => write!(f, "name of key {i}"),
            Self::Key(key) => write!(f, "key {}", printable(key)),
            Self::TensorName(i) => write!(f, "name of tensor {i}"),
            Self::Tensor(name) => write!(f, "tensor {}", printable(name)),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    pub(crate) file: Arc<str>,
    pub(crate) place: Place,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(file: Arc<str>, bytes: &'a [u8]) -> Self {
        Self { file, place: Place::Header, bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// What was read since an earlier position.
    pub(crate) fn since(&self, start: usize) -> &'a [u8] {
        &self.bytes[start..self.at]
    }

    pub(crate) fn malformed(
        &self,
        at: usize,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        Error::Malformed {
            file: self.file.clone(),
            place: self.place.to_string().into(),
            offset: at as u64,
            expected: expected.into().into(),
            found: found.into().into(),
        }
    }

    fn truncated(&self, expected: u64) -> Error {
        Error::Truncated {
            file: self.file.clone(),
            place: self.place.to_string().into(),
            offset: self.at as u64,
            expected,
            found: (self.bytes.len() - self.at) as u64,
        }
    }

    /// Checks that `n` items of at least `each` bytes can still follow. Whoever allocates by a
    /// count out of the file asks here first.
    pub(crate) fn check_remaining(&self, n: u64, each: usize) -> Result<usize, Error> {
        let needed = n.saturating_mul(each as u64);
        if needed > (self.bytes.len() - self.at) as u64 {
            return Err(self.truncated(needed));
        }
        // `each` is at least 1, so `n` is not larger than a slice's length.
        Ok(n as usize)
    }

    /// The next `n` bytes.
    #[inline]
    pub(crate) fn take(&mut self, n: u64) -> Result<&'a [u8], Error> {
        let n = self.check_remaining(n, 1)?;
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(taken)
    }

    /// The next `N` bytes, the content of one little-endian number.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        match self.bytes[self.at..].first_chunk() {
            Some(chunk) => {
                self.at += N;
                Ok(*chunk)
            }
            None => Err(self.truncated(N as u64)),
        }
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next `n` numbers of `N` bytes each.
    pub(crate) fn numbers<T, const N: usize>(
        &mut self,
        n: u64,
        from_le_bytes: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Error> {
        let bytes = self.take(n.saturating_mul(N as u64))?;
        Ok(bytes.as_chunks().0.iter().map(|&chunk| from_le_bytes(chunk)).collect())
    }

    /// A string: its length in 8 bytes, then its bytes.
    #[inline] // vocabularies call this half a million times
    pub(crate) fn string(&mut self) -> Result<&'a [u8], Error> {
        let len = self.u64()?;
        self.take(len)
    }

    /// A string that must be UTF-8.
    pub(crate) fn utf8(&mut self) -> Result<&'a str, Error> {
        let bytes = self.string()?;
        let start = self.at - bytes.len();
        std::str::from_utf8(bytes).map_err(|error| {
            let at = start + error.valid_up_to();
            self.malformed(at, "UTF-8 text", format!("byte {:#04x}", self.bytes[at]))
        })
    }

    /// The name of a key or tensor: UTF-8, 1 to 65,535 bytes, as GGUF demands of keys.
    pub(crate) fn name(&mut self) -> Result<Arc<str>, Error> {
        let at = self.at;
        let name = self.utf8()?;
        match name.len() {
            1..=MAX_NAME_BYTES => Ok(name.into()),
            len => Err(self.malformed(at, NAME_EXPECTED, format!("{len} bytes"))),
        }
    }
}

/// Longest key that GGUF allows.
pub(crate) const MAX_NAME_BYTES: usize = 65_535;
pub(crate) const NAME_EXPECTED: &str = "a name of 1 to 65535 bytes";
