//! The thread pool's protocol, in every order of steps and every staleness of reads that the memory
//! model allows (loom explores them). `cargo xtask test` runs this; by hand:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --profile checked --target-dir target/loom -p hurtle-kernels --test pool_model
//! ```
#![cfg(loom)]

use hurtle_kernels::{Pool, set_sleepless};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `test` in all orders in which threads are interrupted at most `preemptions` times where they
/// need not be.
fn check(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    set_sleepless(false);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(test);
}

/// [`check`], also with threads that only spin. With more than two of them, two could spin in turns
/// forever.
fn check_two(preemptions: usize, test: impl Fn() + Sync + Send + Copy + 'static) {
    check(preemptions, test);
    set_sleepless(true);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(test);
}

/// What a part of a task writes without any synchronization of its own: loom fails if the pool does
/// not order it before the end of `run` and after its beginning.
struct Cells(Vec<loom::cell::UnsafeCell<usize>>);

// SAFETY: loom checks every access.
unsafe impl Sync for Cells {}

impl Cells {
    fn new(n: usize) -> Self {
        Self((0..n).map(|_| loom::cell::UnsafeCell::new(0)).collect())
    }

    fn add(&self, index: usize, n: usize) {
        // SAFETY: loom checks that nobody else accesses it.
        self.0[index].with_mut(|cell| unsafe { *cell += n });
    }

    fn values(&self) -> Vec<usize> {
        // SAFETY: loom checks that nobody writes it.
        self.0.iter().map(|cell| cell.with(|cell| unsafe { *cell })).collect()
    }
}

/// Each part runs once, after all that the caller did before and before all that it does after.
fn check_tasks(preemptions: usize, n_threads: usize, tasks: &'static [usize]) {
    let run_tasks = move || {
        let pool = Pool::new(n_threads).unwrap();
        let cells = Cells::new(n_threads);
        let mut expected = vec![0; n_threads];
        for (i, &active) in tasks.iter().enumerate() {
            // The caller writes into every part's cell, too.
            (0..n_threads).for_each(|index| cells.add(index, 100));
            pool.run(active, |worker| cells.add(worker.index(), i + 1));
            for (index, expected) in expected.iter_mut().enumerate() {
                *expected += 100 + if index < active { i + 1 } else { 0 };
            }
            assert_eq!(cells.values(), expected);
        }
    };
    if n_threads == 2 { check_two(preemptions, run_tasks) } else { check(preemptions, run_tasks) }
}

#[test]
fn two_threads() {
    check_tasks(4, 2, &[2, 2]);
    check_tasks(3, 2, &[2, 1, 2]);
}

#[test]
fn three_threads() {
    check_tasks(2, 3, &[3]);
    check_tasks(1, 3, &[2, 3]);
    check_tasks(1, 3, &[3, 3]);
}

#[test]
fn a_pool_without_tasks_ends() {
    check_two(4, || drop(Pool::new(2).unwrap()));
    check(3, || drop(Pool::new(3).unwrap()));
}

#[test]
fn two_callers() {
    check(3, || {
        let pool = Arc::new(Pool::new(2).unwrap());
        let count = Arc::new(AtomicUsize::new(0));
        let other = {
            let (pool, count) = (Arc::clone(&pool), Arc::clone(&count));
            loom::thread::spawn(move || {
                pool.run(2, |_| _ = count.fetch_add(1, Ordering::Relaxed));
            })
        };
        pool.run(2, |_| _ = count.fetch_add(1, Ordering::Relaxed));
        other.join().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 4);
    });
}

#[test]
fn a_panic_is_passed_on() {
    // The panics are expected, and there are many.
    std::panic::set_hook(Box::new(|_| ()));
    for culprit in 0..2 {
        check_two(3, move || {
            let pool = Pool::new(2).unwrap();
            let cells = Cells::new(2);
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(2, |worker| {
                    cells.add(worker.index(), 1);
                    assert_ne!(worker.index(), culprit);
                });
            }));
            assert!(caught.is_err());
            pool.run(2, |worker| cells.add(worker.index(), 1));
            assert_eq!(cells.values(), [2, 2]);
        });
    }
    let _ = std::panic::take_hook();
}
