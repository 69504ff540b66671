//! What the thread pool is built of: the standard library's, or under `--cfg loom` loom's, which
//! run a test in every order that the memory model allows (see `tests/pool_model.rs`).

#[cfg(loom)]
mod under {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::{Arc, Mutex, atomic};
    pub(crate) use loom::thread;
}

#[cfg(not(loom))]
mod under {
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::{Arc, Mutex, atomic};
    pub(crate) use std::thread;

    /// A cell with loom's interface: access through closures, so that loom can tell reading from
    /// writing.
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        /// To read.
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        /// To write.
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

pub(crate) use under::*;
