//! Arrays of strings, as vocabularies are: up to 262,144 of them.
//!
//! ```text
//!   ends   3      3   8            string i is bytes[ends[i - 1]..ends[i]]
//!   bytes  t h e      h e l l o
//! ```
//!
//! Two allocations instead of one per string, and together not larger than the same strings in a
//! file, where each is preceded by its length in 8 bytes.

/// Many strings in one allocation: vocabularies have up to 262,144 of them.
/// Elements are bytes, because some vocabularies are not UTF-8.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StringArray {
    ends: Box<[usize]>,
    bytes: Box<[u8]>,
}

impl StringArray {
    /// From the end of each string in `bytes`: ascending, the last one `bytes.len()`.
    pub(crate) fn from_parts(ends: Vec<usize>, bytes: Vec<u8>) -> Self {
        debug_assert!(ends.is_sorted() && ends.last().copied().unwrap_or(0) == bytes.len());
        Self { ends: ends.into_boxed_slice(), bytes: bytes.into_boxed_slice() }
    }
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The bytes of string `i`.
    pub fn get(&self, i: usize) -> Option<&[u8]> {
        let end = *self.ends.get(i)?;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        Some(&self.bytes[start..end])
    }
    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.bytes[std::mem::replace(&mut start, end)..end])
    }
    /// Bytes of all strings together.
    pub fn total_bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for StringArray {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let (mut ends, mut bytes) = (Vec::new(), Vec::new());
        for string in strings {
            bytes.extend_from_slice(string.as_ref());
            ends.push(bytes.len());
        }
        Self::from_parts(ends, bytes)
    }
}
