//! Memory for packed weights: cache lines, zero at first, in 2 MiB pages where Linux gives them.
//!
//! A matrix is one stream of many megabytes. With 4 KiB pages each page costs a walk through the
//! page table, and the processor's prefetchers stop at its end.

use bytemuck::{Pod, Zeroable};

/// A cache line.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
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

    const HUGE_PAGE: usize = 2 << 20;

    /// A fixed number of lines in an anonymous mapping of their own.
    pub(crate) struct Lines {
        start: NonNull<Line>,
        len: usize,
    }

    // SAFETY: the mapping belongs to this value alone and is reached through borrows of it.
    unsafe impl Send for Lines {}
    // SAFETY: as above.
    unsafe impl Sync for Lines {}

    impl Lines {
        /// `len` lines of zeros. `None` if their size overflows; where memory is short, this ends
        /// the process as any other allocation does.
        pub(crate) fn zeroed(len: usize) -> Option<Self> {
            let layout = Layout::array::<Line>(len).ok()?;
            if len == 0 {
                return Some(Self { start: NonNull::dangling(), len });
            }
            // A mapping begins at any 4 KiB page. Ask for more, and give back what lies before the
            // first huge page and after the end.
            let slack = if layout.size() < HUGE_PAGE { 0 } else { HUGE_PAGE };
            let asked = layout.size().checked_add(slack)?;
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
                handle_alloc_error(layout);
            }
            let base = address.cast::<u8>();
            let before = if slack == 0 { 0 } else { base.addr().wrapping_neg() % HUGE_PAGE };
            // SAFETY: `sysconf` has no preconditions.
            let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(4096) as usize;
            let kept = layout.size().next_multiple_of(page);
            let start = base.wrapping_add(before);
            let after = asked.next_multiple_of(page) - before - kept;
            // SAFETY: both ranges lie in the mapping, outside of what is kept. Advice and giving
            // back may fail; then the memory is slower or larger, and as valid.
            unsafe {
                if before > 0 {
                    libc::munmap(base.cast(), before);
                }
                if after > 0 {
                    libc::munmap(start.add(kept).cast(), after);
                }
                if slack > 0 {
                    libc::madvise(start.cast(), kept, libc::MADV_HUGEPAGE);
                }
            }
            NonNull::new(start.cast()).map(|start| Self { start, len })
        }
    }

    impl Drop for Lines {
        fn drop(&mut self) {
            if self.len > 0 {
                // SAFETY: exactly the range that `zeroed` kept (the system rounds the length up to
                // whole pages, as `zeroed` did), and nobody borrows it any more.
                unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<Line>()) };
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
        for len in [0, 1, 63, 64, 65, 32_767, 32_768, 32_769, 100_000] {
            let mut lines = Lines::zeroed(len).unwrap();
            assert_eq!(lines.len(), len);
            assert!(lines.iter().all(|line| line.0 == [0; 64]));
            assert!(lines.as_ptr().is_aligned());
            lines.iter_mut().for_each(|line| line.0 = [1; 64]);
        }
        assert!(Lines::zeroed(usize::MAX / 32).is_none());
    }
}
