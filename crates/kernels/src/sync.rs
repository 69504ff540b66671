//! What the thread pool is built of: the standard library's, or under `--cfg loom` loom's, which
//! run a test in every order that the memory model allows (see `tests/pool_model.rs`).

#[cfg(loom)]
mod under {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::{Arc, Mutex, atomic};
    pub(crate) use loom::thread;
    use std::cell::Cell;

    thread_local! {
        static SLEEPLESS: Cell<bool> = const { Cell::new(false) };
    }

    /// Whether threads of the models that this thread runs spin instead of sleeping. To loom, waking
    /// a thread orders memory even if that thread does not sleep: only without it, an ordering that
    /// an atomic operation lacks is seen.
    pub fn set_sleepless(on: bool) {
        SLEEPLESS.set(on);
    }

    pub(crate) fn park() {
        if SLEEPLESS.get() { thread::yield_now() } else { thread::park() }
    }

    pub(crate) fn unpark(thread: &thread::Thread) {
        if !SLEEPLESS.get() {
            thread.unpark();
        }
    }
}

#[cfg(not(loom))]
mod under {
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::{Arc, Mutex, atomic};
    pub(crate) use std::thread::{self, park};

    pub(crate) fn unpark(thread: &thread::Thread) {
        thread.unpark();
    }

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

pub(crate) use under::{Arc, Mutex, UnsafeCell, atomic, park, spin_loop, thread, unpark};

#[cfg(loom)]
pub use under::set_sleepless;
