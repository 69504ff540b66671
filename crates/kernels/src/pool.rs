//! The thread pool: owned, passed, never global.
//!
//! A forward pass enters the pool a few hundred times, for tasks of some 10 to 1000 µs, so handing
//! over a task must cost about a microsecond. Workers therefore spin for a moment after a task
//! before they go to sleep, and the caller works too, as worker 0.
//!
//! ```text
//! caller   write task ─ epoch += 1 ─ unpark ─ run part 0 ─ spin/park until pending == 0
//! worker i spin/park until epoch changes ─ run part i ─ pending -= 1 ─ unpark caller
//! ```

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Spins before sleeping: some 20 to 50 µs, longer than the gaps between the tasks of a forward
/// pass, short enough to leave the processor to others between two requests.
const SPINS: u32 = 4_000;

/// What a thread of the pool keeps between tasks.
#[derive(Debug, Default)]
pub struct Worker {
    /// Index of the thread, below the number of threads that take part.
    index: usize,
    scratch: Vec<f32>,
}

impl Worker {
    /// Index of this thread, 0 for the caller of the pool.
    pub fn index(&self) -> usize {
        self.index
    }

    /// A buffer of `len` values with arbitrary content; allocates only when it has to grow.
    pub fn scratch(&mut self, len: usize) -> &mut [f32] {
        if self.scratch.len() < len {
            self.scratch.resize(len, 0.0);
        }
        &mut self.scratch[..len]
    }
}

type Task = *const (dyn Fn(&mut Worker) + Sync);

struct State {
    /// Changes when a new task is there (or `stop` is set).
    epoch: AtomicU32,
    /// The task; written by the caller while `pending` is 0, read by workers after `epoch` changed.
    task: UnsafeCell<Option<Task>>,
    /// How many threads take part in the task (caller included).
    active: AtomicUsize,
    /// Workers that have not finished the task yet.
    pending: AtomicUsize,
    /// Who waits for `pending`; written before the epoch changes.
    caller: UnsafeCell<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

// SAFETY: `task` and `caller` are written only by the holder of `Pool::caller`'s lock while no
// worker runs (`pending == 0`), and read by workers only between the epoch's change (release /
// acquire) and their decrement of `pending` (release / acquire).
unsafe impl Sync for State {}
// SAFETY: the raw task pointer is only used during `run`, which outlives every use of it.
unsafe impl Send for State {}

/// A fixed set of threads.
pub struct Pool {
    state: Arc<State>,
    workers: Vec<JoinHandle<()>>,
    /// What worker 0, the caller, keeps. The lock is held while a task runs.
    caller: Mutex<Worker>,
    waiting: Waiting,
}

/// How long callers had nothing left to do and waited for the workers.
#[derive(Debug, Default)]
struct Waiting {
    measured: AtomicBool,
    nanoseconds: AtomicU64,
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
    /// When the operating system refuses a thread.
    pub fn new(n_threads: usize) -> std::io::Result<Self> {
        let state = Arc::new(State {
            epoch: AtomicU32::new(0),
            task: UnsafeCell::new(None),
            active: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            caller: UnsafeCell::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self {
            state,
            workers: Vec::new(),
            caller: Mutex::new(Worker::default()),
            waiting: Waiting::default(),
        };
        for index in 1..n_threads.max(1) {
            let state = Arc::clone(&pool.state);
            let worker = thread::Builder::new()
                .name(format!("hurtle-{index}"))
                .spawn(move || work(&state, index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that this process may use: the affinity mask and the cgroup's quota, not the host's
    /// cores.
    pub fn available_threads() -> usize {
        thread::available_parallelism().map_or(1, |n| n.get())
    }

    /// Threads, the caller included.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
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
        let Ok(mut caller) = self.caller.try_lock().or_else(|error| match error {
            std::sync::TryLockError::Poisoned(poisoned) => Ok(poisoned.into_inner()),
            std::sync::TryLockError::WouldBlock => Err(()),
        }) else {
            let mut worker = Worker::default();
            for index in 0..n_threads {
                worker.index = index;
                task(&mut worker);
            }
            return;
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
        // SAFETY: no worker runs: `pending` is 0 and the epoch has not changed yet.
        unsafe {
            *self.state.task.get() = Some(erased);
            *self.state.caller.get() = Some(thread::current());
        }
        self.state.active.store(n_threads, Ordering::Relaxed);
        self.state.pending.store(self.workers.len(), Ordering::Relaxed);
        self.state.epoch.fetch_add(1, Ordering::Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let mine = catch_unwind(AssertUnwindSafe(|| task(&mut caller)));
        let waits = self.waiting.measured.load(Ordering::Relaxed).then(Instant::now);
        wait_until(|| self.state.pending.load(Ordering::Acquire) == 0);
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
        let next = AtomicUsize::new(0);
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
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        self.state.epoch.fetch_add(1, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches every panic of a task, so joining cannot fail.
            let _ = worker.join();
        }
    }
}

/// The life of a worker.
fn work(state: &State, index: usize) {
    let mut worker = Worker { index, scratch: Vec::new() };
    let mut seen = 0;
    loop {
        wait_until(|| state.epoch.load(Ordering::Acquire) != seen);
        seen = state.epoch.load(Ordering::Acquire);
        if state.stop.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: the epoch changed, so the caller has written both and will not touch them before
        // our decrement of `pending`.
        let (task, caller) = unsafe { (*state.task.get(), (*state.caller.get()).clone()) };
        if let Some(task) = task
            && index < state.active.load(Ordering::Relaxed)
        {
            // SAFETY: `Pool::run` keeps the task alive until `pending` is 0.
            let task = unsafe { &*task };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(&mut worker))) {
                *state.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
        }
        if state.pending.fetch_sub(1, Ordering::Release) == 1
            && let Some(caller) = caller
        {
            caller.unpark();
        }
    }
}

/// Spins a moment, then sleeps until unparked, until `done`.
fn wait_until(done: impl Fn() -> bool) {
    for _ in 0..SPINS {
        if done() {
            return;
        }
        std::hint::spin_loop();
    }
    while !done() {
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_chunk_runs_exactly_once() {
        for n_threads in [1, 2, 3, 7] {
            let pool = Pool::new(n_threads).unwrap();
            for n in [0, 1, 2, 15, 16, 17, 1000] {
                for chunk in [0, 1, 3, 16, 5000] {
                    let seen: Vec<_> = (0..n).map(|_| AtomicU32::new(0)).collect();
                    pool.for_chunks(n_threads, n, chunk, |range, _| {
                        for i in range {
                            seen[i].fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn only_the_threads_asked_for_take_part() {
        let pool = Pool::new(4).unwrap();
        for n_threads in 0..=6 {
            let mask = AtomicU64::new(0);
            pool.run(n_threads, |worker| {
                mask.fetch_or(1 << worker.index(), Ordering::Relaxed);
            });
            assert_eq!(mask.into_inner(), (1 << n_threads.clamp(1, 4)) - 1);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        for culprit in 0..3 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(3, |worker| assert!(worker.index() != culprit, "part {culprit} fails"));
            }));
            let message = *caught.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains(&format!("part {culprit} fails")));
            let count = AtomicUsize::new(0);
            pool.run(3, |_| _ = count.fetch_add(1, Ordering::Relaxed));
            assert_eq!(count.into_inner(), 3);
        }
    }

    #[test]
    fn nested_and_concurrent_calls_do_all_their_work() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicUsize::new(0);
        pool.run(2, |_| pool.run(2, |_| _ = count.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(count.load(Ordering::Relaxed), 4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(2, |_| _ = count.fetch_add(1, Ordering::Relaxed));
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 4 + 4 * 200 * 2);
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
    fn survives_oversubscription_and_many_lives() {
        for _ in 0..if cfg!(miri) { 2 } else { 500 } {
            let pool = Pool::new(5).unwrap();
            let count = AtomicUsize::new(0);
            pool.run(5, |_| _ = count.fetch_add(1, Ordering::Relaxed));
            assert_eq!(count.into_inner(), 5);
        }
    }
}
