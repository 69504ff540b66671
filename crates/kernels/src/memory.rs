//! Memory for packed weights: cache lines, zero at first, in 2 MiB pages where Linux gives them.
//!
//! A matrix is one stream of many megabytes. With 4 KiB pages each page costs a walk through the
//! page table, and the processor's prefetchers stop at its end.

use bytemuck::{Pod, Zeroable};

/// A cache line.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

impl Line {
    /// The bits as f32.
    #[inline(always)]
    pub(crate) fn floats(&self) -> &[f32; 16] {
        bytemuck::cast_ref(self)
    }

    /// The bits as f32.
    #[inline(always)]
    pub(crate) fn floats_mut(&mut self) -> &mut [f32; 16] {
        bytemuck::cast_mut(self)
    }
}

#[cfg(target_os = "linux")]
pub(crate) use linux::Lines;
#[cfg(not(target_os = "linux"))]
pub(crate) use portable::Lines;

#[cfg(target_os = "linux")]
mod linux {
    use super::Line;
    use std::alloc::{Layout, handle_alloc_error};
    use std::ptr::NonNull;

    use std::sync::{Arc, Mutex, PoisonError, Weak};

    const HUGE_PAGE: usize = 2 << 20;
    /// Bytes that are mapped at a time for what is smaller.
    const CHUNK: usize = 32 << 20;

    /// An anonymous mapping, in whole huge pages.
    struct Mapping {
        start: NonNull<u8>,
        len: usize,
    }

    // SAFETY: the mapping belongs to this value alone; its bytes are reached through `Lines`.
    unsafe impl Send for Mapping {}
    // SAFETY: as above.
    unsafe impl Sync for Mapping {}

    impl Mapping {
        /// Zeros, at least `size` bytes. `None` if the size overflows.
        fn new(size: usize) -> Option<Self> {
            let len = size.checked_next_multiple_of(HUGE_PAGE)?;
            // A mapping begins at any 4 KiB page. Ask for more, and give back what lies before the
            // first huge page and after the end.
            let asked = len.checked_add(HUGE_PAGE)?;
            // SAFETY: a new private mapping at an address of the system's choice touches no other.
            let address = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    asked,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            if address == libc::MAP_FAILED {
                handle_alloc_error(Layout::array::<Line>(size / size_of::<Line>()).ok()?);
            }
            let base = address.cast::<u8>();
            let before = base.addr().wrapping_neg() % HUGE_PAGE;
            let start = base.wrapping_add(before);
            let after = asked - before - len;
            // SAFETY: both ranges lie in the mapping, outside of what is kept. Advice and giving
            // back may fail; then the memory is slower or larger, and as valid.
            unsafe {
                if before > 0 {
                    libc::munmap(base.cast(), before);
                }
                if after > 0 {
                    libc::munmap(start.add(len).cast(), after);
                }
                libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE);
            }
            NonNull::new(start).map(|start| Self { start, len })
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: exactly the range that `new` kept, and nobody borrows it any more.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }

    /// The mapping of which small ones take their part, and what is taken. A matrix of 1 MiB in pages of
    /// its own would lie in 4 KiB pages, and be read at half the speed.
    static SHARED: Mutex<(Weak<Mapping>, usize)> = Mutex::new((Weak::new(), 0));

    /// A fixed number of lines.
    pub(crate) struct Lines {
        start: NonNull<Line>,
        len: usize,
        mapping: Option<Arc<Mapping>>,
    }

    // SAFETY: the lines belong to this value alone and are reached through borrows of it.
    unsafe impl Send for Lines {}
    // SAFETY: as above.
    unsafe impl Sync for Lines {}

    impl Lines {
        /// `len` lines of zeros. `None` if their size overflows; where memory is short, this ends
        /// the process as any other allocation does.
        pub(crate) fn zeroed(len: usize) -> Option<Self> {
            let size = Layout::array::<Line>(len).ok()?.size();
            if len == 0 {
                return Some(Self { start: NonNull::dangling(), len, mapping: None });
            }
            let (mapping, at) = if size >= CHUNK {
                (Arc::new(Mapping::new(size)?), 0)
            } else {
                let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
                let (mapping, at) = match shared.0.upgrade() {
                    Some(mapping) if mapping.len - shared.1 >= size => (mapping, shared.1),
                    _ => (Arc::new(Mapping::new(CHUNK)?), 0),
                };
                *shared = (Arc::downgrade(&mapping), at + size);
                (mapping, at)
            };
            // SAFETY: these bytes lie in the mapping, and nobody else has them.
            let start = unsafe { mapping.start.add(at) }.cast();
            Some(Self { start, len, mapping: Some(mapping) })
        }
    }

    impl Drop for Lines {
        fn drop(&mut self) {
            // What else lies in the mapping may be needed for long, so these pages are given back
            // now. They are not handed out again.
            if self.mapping.as_ref().is_none_or(|mapping| Arc::strong_count(mapping) == 1) {
                return;
            }
            // SAFETY: `sysconf` has no preconditions.
            let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(4096) as usize;
            let first = self.start.addr().get().next_multiple_of(page);
            let end = (self.start.addr().get() + self.len * size_of::<Line>()) / page * page;
            if first < end {
                let start = self.start.as_ptr().with_addr(first);
                // SAFETY: whole pages of these lines, which nobody borrows any more.
                unsafe { libc::madvise(start.cast(), end - first, libc::MADV_DONTNEED) };
            }
        }
    }

    impl std::ops::Deref for Lines {
        type Target = [Line];
        fn deref(&self) -> &[Line] {
            // SAFETY: the mapping holds `len` lines, initialised by the system with zeros.
            unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
        }
    }

    impl std::ops::DerefMut for Lines {
        fn deref_mut(&mut self) -> &mut [Line] {
            // SAFETY: as in `deref`, and borrowed mutably.
            unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod portable {
    use super::Line;

    /// A fixed number of lines.
    pub(crate) struct Lines(Box<[Line]>);

    impl Lines {
        /// `len` lines of zeros. `None` if their size overflows; where memory is short, this ends
        /// the process as any other allocation does.
        pub(crate) fn zeroed(len: usize) -> Option<Self> {
            std::alloc::Layout::array::<Line>(len).ok()?;
            Some(Self(vec![Line([0; 64]); len].into_boxed_slice()))
        }
    }

    impl std::ops::Deref for Lines {
        type Target = [Line];
        fn deref(&self) -> &[Line] {
            &self.0
        }
    }

    impl std::ops::DerefMut for Lines {
        fn deref_mut(&mut self) -> &mut [Line] {
            &mut self.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zero_and_can_be_written() {
        let mut kept = Vec::new();
        for len in [0, 1, 63, 64, 65, 32_767, 32_768, 32_769, 100_000, 524_288, 600_000, 9] {
            let mut lines = Lines::zeroed(len).unwrap();
            assert_eq!(lines.len(), len);
            assert!(lines.iter().all(|line| line.0 == [0; 64]));
            assert!(lines.as_ptr().is_aligned());
            lines.iter_mut().for_each(|line| line.0 = [1; 64]);
            if len % 2 == 1 {
                kept.push(lines);
            }
        }
        // Those in between are gone; these have what was written.
        assert!(kept.iter().all(|lines| lines.iter().all(|line| line.0 == [1; 64])));
        assert!(Lines::zeroed(usize::MAX / 32).is_none());
    }
}
