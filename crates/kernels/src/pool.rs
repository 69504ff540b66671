//! The thread pool: owned, passed, never global.
//!
//! A forward pass enters the pool a few hundred times, for tasks of some 10 to 1000 µs, so handing
//! over a task must cost about a microsecond. Workers therefore spin for a moment after a task
//! before they go to sleep, and the caller works too, as worker 0.
//!
//! ```text
//! caller   write task ─ pending = n - 1 ─ call += 1 ─ unpark n - 1 workers ─ run part 0 ─ wait until pending == 0
//! worker i wait until call has changed and is for i ─ run part i ─ pending -= 1 ─ unpark the caller, if it sleeps
//! ```
//!
//! - A [`Call`] holds the task's number and how many threads it is for, in one word: a worker that it
//!   is not for touches nothing, however late it looks, and one that it is for keeps it from changing.
//! - Nobody who spins costs the other side a system call, and the caller gives its handle away only
//!   before it sleeps.
//! - `tests/pool_model.rs` runs all of this under loom, in every order that the memory model allows.

use crate::Caches;
use crate::memory::Line;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::thread::{self, JoinHandle, Thread};
use crate::sync::{Arc, Mutex, UnsafeCell, park, spin_loop, unpark};
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// Looks at a word before sleeping. How long that takes depends on the processor's `pause`: from
/// some 15 µs to some 200 µs. Longer than the gaps between the tasks of a forward pass, short enough
/// to leave the processor to others between two requests.
const SPINS: u32 = if cfg!(loom) { 1 } else { 4_000 };

/// What a thread of the pool keeps between tasks.
#[derive(Debug, Default)]
pub struct Worker {
    /// Index of the thread, below the number of threads that take part.
    index: usize,
    scratch: Vec<Line>,
    results: Vec<Line>,
}

/// Values that a thread's buffer holds from the start, so that no task has to make room for what
/// tasks usually ask for, whichever thread it comes to and when. Untouched memory costs nothing.
const SCRATCH: usize = 1024 * 1024;

/// Values of a cache line.
const LINE_VALUES: usize = size_of::<Line>() / size_of::<f32>();

impl Worker {
    fn new(index: usize) -> Self {
        let scratch = Vec::with_capacity(SCRATCH / LINE_VALUES);
        Self { index, scratch, results: Vec::new() }
    }

    /// Index of this thread, 0 for the caller of the pool.
    pub fn index(&self) -> usize {
        self.index
    }

    /// A buffer of `len` values with arbitrary content, which begins with a cache line; allocates only when
    /// it has to grow.
    pub fn scratch(&mut self, len: usize) -> &mut [f32] {
        values(&mut self.scratch, len)
    }

    /// Another buffer like [`scratch`](Self::scratch), for what outlives the use of that one.
    pub fn with_results<R>(&mut self, len: usize, f: impl FnOnce(&mut [f32], &mut Self) -> R) -> R {
        let mut results = std::mem::take(&mut self.results);
        let result = f(values(&mut results, len), self);
        self.results = results;
        result
    }
}

/// The first `len` values of some lines, of which there will be enough.
fn values(lines: &mut Vec<Line>, len: usize) -> &mut [f32] {
    let n_lines = len.div_ceil(LINE_VALUES);
    if lines.len() < n_lines {
        lines.resize(n_lines, Line([0; 64]));
    }
    &mut bytemuck::cast_slice_mut(&mut lines[..n_lines])[..len]
}

type Task = *const (dyn Fn(&mut Worker) + Sync);

/// The number of a task, counted from 0 for none, and how many threads it is for: 44 and 20 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call(u64);

impl Call {
    const THREADS: u64 = (1 << 20) - 1;

    /// The call after this one.
    fn next(self, n_threads: usize) -> Self {
        Self((self.0 | Self::THREADS).wrapping_add(1) | n_threads as u64)
    }

    /// Whether the worker of this index takes part.
    fn is_for(self, index: usize) -> bool {
        (index as u64) < self.0 & Self::THREADS
    }
}

/// A value on cache lines of its own (two: processors fetch them in pairs), so that threads that
/// spin on it don't slow those that write its neighbours.
#[repr(align(128))]
struct Apart<T>(T);

/// In `State::pending`: the caller sleeps, or is about to.
const ASLEEP: usize = 1 << (usize::BITS - 1);

struct State {
    /// The latest [`Call`]. Written only by the holder of `Pool::caller`'s lock.
    call: Apart<AtomicU64>,
    /// Workers that have not finished the task yet, and perhaps [`ASLEEP`].
    pending: Apart<AtomicUsize>,
    /// The task; `None` ends the workers. Written by the caller while no worker is pending, read by
    /// workers that the call is for before they cease to be pending.
    task: UnsafeCell<Option<Task>>,
    /// Whom to wake. Written by the caller before it sets [`ASLEEP`], read by the last worker before
    /// it ceases to be pending.
    sleeper: UnsafeCell<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the raw task pointer is what keeps this from being automatic. `task` and `sleeper` are
// written only by the holder of `Pool::caller`'s lock while no worker may read them: workers read
// `task` between a call that is for them (release / acquire) and their decrement of `pending`
// (release / acquire), and the last one reads `sleeper` between `ASLEEP` and its decrement (as well).
unsafe impl Sync for State {}
// SAFETY: the task is only used during `Pool::run`, which outlives every use of it.
unsafe impl Send for State {}

/// A fixed set of threads.
pub struct Pool {
    state: Arc<State>,
    workers: Vec<JoinHandle<()>>,
    /// What worker 0, the caller, keeps. The lock is held while a task runs.
    caller: Mutex<Worker>,
    waiting: Waiting,
    caches: Caches,
}

/// How long callers had nothing left to do and waited for the workers.
#[derive(Debug, Default)]
struct Waiting {
    measured: std::sync::atomic::AtomicBool,
    nanoseconds: std::sync::atomic::AtomicU64,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("n_threads", &self.n_threads()).finish()
    }
}

impl Pool {
    /// A pool of `n_threads` threads, of which the calling thread is one. 0 counts as 1.
    ///
    /// # Errors
    /// When the operating system refuses a thread, or for more than a million.
    pub fn new(n_threads: usize) -> std::io::Result<Self> {
        if n_threads as u64 > Call::THREADS {
            let message = format!("at most {} threads, not {n_threads}", Call::THREADS);
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, message));
        }
        let state = Arc::new(State {
            call: Apart(AtomicU64::new(0)),
            pending: Apart(AtomicUsize::new(0)),
            task: UnsafeCell::new(None),
            sleeper: UnsafeCell::new(None),
            panic: Mutex::new(None),
        });
        let caller = Mutex::new(Worker::new(0));
        let waiting = Waiting::default();
        let caches = Caches::detect();
        let mut pool = Self { state, workers: Vec::new(), caller, waiting, caches };
        for index in 1..n_threads.max(1) {
            let state = Arc::clone(&pool.state);
            let worker = thread::Builder::new()
                .name(format!("hurtle-{index}"))
                .spawn(move || state.work(index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that this process may use: the affinity mask and the cgroup's quota, not the host's
    /// cores.
    pub fn available_threads() -> usize {
        std::thread::available_parallelism().map_or(1, |n| n.get())
    }

    /// Threads, the caller included.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The caches of the cores that the threads run on.
    pub fn caches(&self) -> Caches {
        self.caches
    }

    /// The same pool for cores with other caches than this processor's: results don't depend on them.
    pub fn with_caches(mut self, caches: Caches) -> Self {
        self.caches = caches;
        self
    }

    /// Switches on or off that [`waited`](Self::waited) grows: two looks at the clock a task.
    pub fn measure_waiting(&self, on: bool) {
        self.waiting.measured.store(on, Ordering::Relaxed);
    }

    /// How long callers of [`run`](Self::run) were done with their own part and waited for other
    /// threads, all tasks together, while [`measure_waiting`](Self::measure_waiting) was on.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waiting.nanoseconds.load(Ordering::Relaxed))
    }

    /// Runs `task` once on each of the first `n_threads` threads and returns when all are done.
    ///
    /// If the pool is busy with another caller's task (or this is a call from inside a task), the
    /// calling thread runs everything by itself, as each index in turn.
    ///
    /// # Panics
    /// Passes on a panic of `task`, after every thread has ended its part.
    pub fn run(&self, n_threads: usize, task: impl Fn(&mut Worker) + Sync) {
        let n_threads = n_threads.clamp(1, self.n_threads());
        let mut caller = match self.caller.try_lock() {
            Ok(caller) => caller,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let mut worker = Worker::default();
                for index in 0..n_threads {
                    worker.index = index;
                    task(&mut worker);
                }
                return;
            }
        };
        if n_threads == 1 {
            return task(&mut caller);
        }
        let erased: &(dyn Fn(&mut Worker) + Sync) = &task;
        // SAFETY: the lifetime is erased only until the end of this call: no worker touches the
        // task after its decrement of `pending`, and we do not leave before `pending` is 0.
        let erased: Task = unsafe {
            std::mem::transmute::<
                &(dyn Fn(&mut Worker) + Sync),
                &'static (dyn Fn(&mut Worker) + Sync),
            >(erased)
        };
        // SAFETY: we hold the lock, and `pending` is 0 since the last call.
        unsafe { self.call(Some(erased), n_threads) };
        let mine = catch_unwind(AssertUnwindSafe(|| task(&mut caller)));
        let waits = self.waiting.measured.load(Ordering::Relaxed).then(Instant::now);
        self.state.wait_for_workers();
        if let Some(start) = waits {
            let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.waiting.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        }
        let theirs = self.state.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(caller);
        if let Some(panic) = mine.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Hands `task` to the workers below `n_threads`.
    ///
    /// # Safety
    /// Nobody else calls, and no worker is pending. The task lives until none is again.
    unsafe fn call(&self, task: Option<Task>, n_threads: usize) {
        let state = &*self.state;
        // SAFETY: no worker is pending, so none reads it.
        state.task.with_mut(|slot| unsafe { *slot = task });
        state.pending.0.store(n_threads - 1, Ordering::Relaxed);
        let call = Call(state.call.0.load(Ordering::Relaxed)).next(n_threads);
        state.call.0.store(call.0, Ordering::Release);
        for worker in &self.workers[..n_threads - 1] {
            unpark(worker.thread());
        }
    }

    /// Runs `f` on disjoint ranges that together cover `0..n`, each at most `chunk` long, on the
    /// first `n_threads` threads. Chunks go to whichever thread is free.
    pub fn for_chunks(
        &self,
        n_threads: usize,
        n: usize,
        chunk: usize,
        f: impl Fn(std::ops::Range<usize>, &mut Worker) + Sync,
    ) {
        let chunk = chunk.max(1);
        let next = std::sync::atomic::AtomicUsize::new(0);
        self.run(n_threads.min(n.div_ceil(chunk)), |worker| {
            loop {
                let start = next.fetch_add(1, Ordering::Relaxed).saturating_mul(chunk);
                if start >= n {
                    break;
                }
                f(start..n.min(start + chunk), worker);
            }
        });
    }

    /// As [`for_chunks`](Self::for_chunks), with chunks that shrink: each thread takes a part of what
    /// is left, down to single items. Long runs of items stay together, and all threads end at about
    /// the same time.
    pub fn for_shrinking_chunks(
        &self,
        n_threads: usize,
        n: usize,
        f: impl Fn(std::ops::Range<usize>, &mut Worker) + Sync,
    ) {
        let n_threads = n_threads.clamp(1, self.n_threads()).min(n.max(1));
        let next = std::sync::atomic::AtomicUsize::new(0);
        self.run(n_threads, |worker| {
            let mut start = next.load(Ordering::Relaxed);
            while start < n {
                let end = start + ((n - start) / (2 * n_threads)).max(1);
                let (taken, failed) = (Ordering::Relaxed, Ordering::Relaxed);
                match next.compare_exchange_weak(start, end, taken, failed) {
                    Ok(_) => {
                        f(start..end, worker);
                        start = next.load(Ordering::Relaxed);
                    }
                    Err(now) => start = now,
                }
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: this borrow is the only one, so no `run` is going on.
        unsafe { self.call(None, self.n_threads()) };
        for worker in self.workers.drain(..) {
            // A worker catches every panic of a task, so joining cannot fail.
            let _ = worker.join();
        }
    }
}

impl State {
    /// The life of a worker.
    fn work(&self, index: usize) {
        let mut worker = Worker::new(index);
        let mut seen = Call(0);
        loop {
            let mut call = seen;
            wait_until(|| {
                call = Call(self.call.0.load(Ordering::Acquire));
                call != seen && call.is_for(index)
            });
            seen = call;
            // SAFETY: the call is for us, so the caller has written the task and will not touch it
            // before our decrement of `pending`.
            let Some(task) = self.task.with(|task| unsafe { *task }) else { return };
            // SAFETY: `Pool::run` keeps the task alive until `pending` is 0.
            let task = unsafe { &*task };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(&mut worker))) {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            self.finish();
        }
    }

    /// A worker is done; the last one wakes the caller.
    fn finish(&self) {
        let pending = &self.pending.0;
        let mut seen = pending.load(Ordering::Acquire);
        loop {
            // Once `pending` is 0 the caller may be gone, or asleep again for another task: take its
            // handle before.
            let sleeper = if seen == ASLEEP | 1 {
                // SAFETY: the caller has written it before `ASLEEP`, and not again before the count,
                // of which the last one is ours, is 0.
                self.sleeper.with(|sleeper| unsafe { (*sleeper).clone() })
            } else {
                None
            };
            let (done, failed) = (Ordering::Release, Ordering::Acquire);
            match pending.compare_exchange_weak(seen, seen - 1, done, failed) {
                Ok(_) => {
                    if let Some(sleeper) = sleeper {
                        unpark(&sleeper);
                    }
                    return;
                }
                Err(now) => seen = now,
            }
        }
    }

    /// Waits until no worker is pending. For the holder of `Pool::caller`'s lock.
    fn wait_for_workers(&self) {
        let pending = &self.pending.0;
        if spin_until(|| pending.load(Ordering::Acquire) == 0) {
            return;
        }
        // SAFETY: workers read it only after `ASLEEP` is set, which is what follows.
        self.sleeper.with_mut(|sleeper| unsafe { *sleeper = Some(thread::current()) });
        if pending.fetch_or(ASLEEP, Ordering::AcqRel) > 0 {
            while pending.load(Ordering::Acquire) != ASLEEP {
                park();
            }
        }
    }
}

/// Spins a moment; tells whether `done` came true.
fn spin_until(mut done: impl FnMut() -> bool) -> bool {
    (0..SPINS).any(|_| {
        let done = done();
        if !done {
            spin_loop();
        }
        done
    })
}

/// Spins a moment, then sleeps until unparked, until `done`.
fn wait_until(mut done: impl FnMut() -> bool) {
    if !spin_until(&mut done) {
        while !done() {
            park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, AtomicU64};

    /// Shorter where every instruction costs a hundred.
    const LIVES: usize = if cfg!(miri) { 2 } else { 2_000 };

    #[test]
    fn every_chunk_runs_exactly_once() {
        for n_threads in [1, 2, 3, 7] {
            let pool = Pool::new(n_threads).unwrap();
            for n in [0, 1, 2, 15, 16, 17, 1000] {
                for chunk in [0, 1, 3, 16, 5000] {
                    let seen: Vec<_> = (0..n).map(|_| AtomicU32::new(0)).collect();
                    let visit = |range: std::ops::Range<usize>, _: &mut Worker| {
                        for i in range {
                            seen[i].fetch_add(1, Ordering::Relaxed);
                        }
                    };
                    pool.for_chunks(n_threads, n, chunk, visit);
                    assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                    pool.for_shrinking_chunks(n_threads, n, visit);
                    assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 2));
                }
            }
        }
    }

    /// Runs a task on `n_threads` of the pool's threads and checks that each index had its part.
    fn check_run(pool: &Pool, n_threads: usize) {
        let parts: Vec<_> = (0..pool.n_threads()).map(|_| AtomicU32::new(0)).collect();
        pool.run(n_threads, |worker| _ = parts[worker.index()].fetch_add(1, Ordering::Relaxed));
        let n_threads = n_threads.clamp(1, pool.n_threads());
        for (index, part) in parts.into_iter().enumerate() {
            let expected = u32::from(index < n_threads);
            assert_eq!(part.into_inner(), expected, "part {index} of {n_threads}");
        }
    }

    #[test]
    fn only_the_threads_asked_for_take_part() {
        let pool = Pool::new(4).unwrap();
        for i in 0..1_000 {
            check_run(&pool, i * i % 11 % 7);
        }
    }

    #[test]
    fn workers_that_sleep_are_woken() {
        let pool = Pool::new(3).unwrap();
        for n_threads in [3, 2, 3] {
            thread::sleep(std::time::Duration::from_millis(5));
            check_run(&pool, n_threads);
            // Here the caller sleeps, too.
            let late = AtomicU32::new(0);
            pool.run(n_threads, |worker| {
                if worker.index() > 0 {
                    thread::sleep(std::time::Duration::from_millis(5));
                    late.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!(late.into_inner() as usize, n_threads - 1);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(5).unwrap();
        for round in 0..50 {
            let culprit = round % 5;
            let done = AtomicU32::new(0);
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(5, |worker| {
                    assert!(worker.index() != culprit, "part {culprit} fails");
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }));
            let message = *caught.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, format!("part {culprit} fails"));
            assert_eq!(done.into_inner(), 4, "the others end their parts");
            check_run(&pool, 5);
        }
        let all_fail = || pool.run(5, |worker| panic!("part {} fails", worker.index()));
        assert!(catch_unwind(AssertUnwindSafe(all_fail)).is_err());
        check_run(&pool, 5);
    }

    #[test]
    fn nested_and_concurrent_calls_do_all_their_work() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicU64::new(0);
        pool.run(2, |_| pool.run(2, |_| _ = count.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(count.load(Ordering::Relaxed), 4);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..200).for_each(|_| check_run(&pool, 2)));
            }
        });
    }

    /// Far more threads than processors, in several pools, each with several callers.
    #[test]
    fn survives_oversubscription() {
        let pools: Vec<_> = [33, 8, 1].into_iter().map(|n| Pool::new(n).unwrap()).collect();
        let sums: Vec<_> = pools.iter().map(|_| AtomicU64::new(0)).collect();
        let (n_callers, rounds) = if cfg!(miri) { (2, 2) } else { (6, 30) };
        thread::scope(|scope| {
            for _ in 0..n_callers {
                scope.spawn(|| {
                    for round in 0..rounds {
                        for (pool, sum) in pools.iter().zip(&sums) {
                            pool.for_chunks(pool.n_threads(), 100 + round, 7, |range, _| {
                                let part: usize = range.sum();
                                sum.fetch_add(part as u64, Ordering::Relaxed);
                            });
                        }
                    }
                });
            }
        });
        let expected: usize = (0..rounds).map(|round| (0..100 + round).sum::<usize>()).sum();
        for sum in sums {
            assert_eq!(sum.into_inner(), (n_callers * expected) as u64);
        }
    }

    #[test]
    fn waiting_is_measured_where_it_is_asked_for() {
        let pool = Pool::new(2).unwrap();
        let late = Duration::from_millis(5);
        let workers_are_late = || {
            pool.run(2, |worker| {
                if worker.index() > 0 {
                    thread::sleep(late);
                }
            });
        };
        workers_are_late();
        assert_eq!(pool.waited(), Duration::ZERO);
        pool.measure_waiting(true);
        let start = Instant::now();
        workers_are_late();
        let waited = pool.waited();
        assert!(!waited.is_zero() && waited <= start.elapsed());
        pool.run(1, |_| thread::sleep(late));
        assert_eq!(pool.waited(), waited, "one thread has nobody to wait for");
        pool.measure_waiting(false);
        workers_are_late();
        assert_eq!(pool.waited(), waited);
    }

    #[test]
    fn survives_many_lives() {
        for life in 0..LIVES {
            let pool = Pool::new(1 + life % 5).unwrap();
            // Some lives end before their threads have begun, some with a panic.
            match life % 3 {
                0 => check_run(&pool, 5),
                1 => {
                    let last = pool.n_threads() - 1;
                    let fails = || pool.run(5, |worker| assert_ne!(worker.index(), last));
                    assert!(catch_unwind(AssertUnwindSafe(fails)).is_err());
                }
                _ => {}
            }
        }
    }

    #[test]
    fn more_threads_than_can_be_are_refused() {
        for n_threads in [Call::THREADS as usize + 1, usize::MAX] {
            let error = Pool::new(n_threads).unwrap_err().to_string();
            assert!(error.contains(&n_threads.to_string()), "{error}");
        }
    }

    #[test]
    fn calls_differ_and_say_whom_they_are_for() {
        let mut call = Call(u64::MAX - 5 * (Call::THREADS + 1)); // the number is about to wrap
        for n_threads in [1, 2, 3, 1, 1 << 19, Call::THREADS as usize, 2, 2, 2] {
            let next = call.next(n_threads);
            assert_ne!(next, call);
            assert!(next.is_for(n_threads - 1) && !next.is_for(n_threads), "{next:?}");
            call = next;
        }
    }
}
