//! Files mapped into memory: the one place of this crate with `unsafe` code.
//!
//! A mapping costs no copy and no memory of its own, but the file can still be changed while it
//! is mapped. Rust calls bytes that change behind a shared reference undefined behaviour, and no
//! check can rule it out. What can be done is done:
//!
//! * the mapping is private and read-only, so this process never changes the bytes;
//! * everything but tensor data is copied out when the file is opened, so a later change cannot
//!   lead to an access out of bounds; changed tensor data is only other numbers;
//! * [`Writer`](crate::Writer) replaces files by renaming, which leaves existing mappings alone.
//!
//! A file that is *truncated* while it is mapped still ends the process with `SIGBUS` when a page
//! behind its new end is touched. Programs that replace a model should rename, not overwrite.

use crate::Error;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The bytes of one file: mapped, or held in memory.
pub(crate) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

/// Without the gigabytes.
impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self {
            Self::Mapped(_) => "Mapped",
            Self::Owned(_) => "Owned",
        };
        write!(f, "{kind}({} bytes)", self.as_slice().len())
    }
}

impl Bytes {
    /// Maps a regular, possibly empty file.
    pub(crate) fn map(path: &Path, name: &Arc<str>) -> Result<Self, Error> {
        let io = |action| {
            let file = Arc::clone(name);
            move |reason| Error::Io { file, action, reason }
        };
        // Looked at before it is opened, because opening a pipe waits for its other end.
        let found = std::fs::metadata(path).map_err(io("open"))?;
        if !found.is_file() {
            let found = if found.is_dir() { "a directory" } else { "a pipe or a device" };
            return Err(Error::NotAFile { file: Arc::clone(name), found });
        }
        let file = File::open(path).map_err(io("open"))?;
        if file.metadata().map_err(io("read"))?.len() == 0 {
            return Ok(Self::Owned(Vec::new())); // an empty range cannot be mapped
        }
        // SAFETY: the mapping is read-only and lives as long as the `Mmap`. That nobody else
        // changes the file cannot be checked; the module's documentation says what follows.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io("map"))?;
        Ok(Self::Mapped(map))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }

    /// Asks the system to start reading a range. Only a hint: failures are of no consequence, and
    /// a range that is not in the file is ignored.
    pub(crate) fn prefetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self
            && map.get(range.clone()).is_some()
        {
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Brings a range into memory in one go, where touching it would do so page by page. Only a
    /// hint: failures are of no consequence, and a range that is not in the file is ignored.
    pub(crate) fn populate(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Self::Mapped(map) = self
            && map.get(range.clone()).is_some()
        {
            let _ = map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len());
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }

    /// Gives the memory of a range back to the system, which reads it again if it is touched.
    /// Only a hint: failures are of no consequence, and a range that is not in the file is ignored.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self
            && map.get(range.clone()).is_some()
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the range was just found to lie in the mapping, so no other memory is
            // concerned. Dropped pages of a mapping are filled again from the file, and nothing
            // was ever written to this read-only one, so they hold the same bytes as before.
            let _ = unsafe { map.unchecked_advise_range(advice, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
