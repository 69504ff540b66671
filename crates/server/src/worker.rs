//! A thread that answers requests, one after another.
//!
//! ```text
//! submit ─► queue (bounded) ─► thread: Session::generate ─► channel of the request ─► its connection
//! ```
//! A connection that goes away drops the receiving end, which the thread sees with the next token. A reader
//! that is slow never holds up the thread: what waits for it is at most one answer, which the context bounds.
use crate::error::{ApiError, ErrorKind};
use hurtle_engine::{Engine, Generation, GenerationParams, Progress};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokio::sync::mpsc::UnboundedSender;

/// What a request hears: which of its answers, and what of it.
pub(crate) type Events = UnboundedSender<(usize, Event)>;

/// News of an answer.
#[derive(Debug)]
pub(crate) enum Event {
    /// More text, never empty.
    Text(String),
    /// The end.
    Finished(Generation),
    /// The end, without an answer.
    Failed(ApiError),
}

/// An answer to generate.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) prompt: Vec<u32>,
    pub(crate) params: GenerationParams,
    /// Reuse what the job before left in the cache.
    pub(crate) cache_prompt: bool,
    /// Which answer of its request this is.
    pub(crate) index: usize,
    pub(crate) events: Events,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Worker {
    engine: Arc<Engine>,
    /// `None` once the server shuts down.
    queue: Mutex<Option<SyncSender<Job>>>,
    cancelled: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// Starts the thread; `waiting` requests may wait for it.
    pub(crate) fn start(engine: Engine, waiting: usize) -> std::io::Result<Self> {
        let engine = Arc::new(engine);
        let cancelled = Arc::new(AtomicBool::new(false));
        let (queue, jobs) = mpsc::sync_channel::<Job>(waiting);
        let thread = {
            let (engine, cancelled) = (Arc::clone(&engine), Arc::clone(&cancelled));
            std::thread::Builder::new().name("answers".into()).spawn(move || {
                let mut session = engine.session();
                for job in jobs {
                    if !job.cache_prompt {
                        session = engine.session();
                    }
                    answer(&mut session, job, &cancelled);
                }
            })?
        };
        let (queue, thread) = (Mutex::new(Some(queue)), Mutex::new(Some(thread)));
        Ok(Self { engine, queue, cancelled, thread })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Queues a job, or refuses it at once.
    pub(crate) fn submit(&self, job: Job) -> Result<(), ApiError> {
        let shutting_down = || ApiError::new(ErrorKind::Unavailable, "the server is shutting down");
        let queue = self.queue.lock().unwrap_or_else(|e| e.into_inner());
        let queue = queue.as_ref().ok_or_else(shutting_down)?;
        queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => ApiError::new(
                ErrorKind::QueueFull,
                "too many requests are waiting\nhint: try again later",
            ),
            TrySendError::Disconnected(_) => shutting_down(),
        })
    }

    /// Refuses new jobs and breaks off those that are there; returns when the thread has ended.
    pub(crate) fn shut_down(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.queue.lock().unwrap_or_else(|e| e.into_inner()).take();
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        // A panic of the thread has been reported by itself.
        thread.map(JoinHandle::join);
    }
}

fn answer(session: &mut hurtle_engine::Session<'_>, job: Job, cancelled: &AtomicBool) {
    let Job { prompt, params, index, events, .. } = job;
    let gone = || events.is_closed() || cancelled.load(Ordering::Relaxed);
    let mut end = None;
    if !gone() {
        let generated = session.generate(&prompt, &params, &mut |progress| {
            if let Progress::Text(text) = progress
                && !text.is_empty()
            {
                // Nobody listens: `gone` says so.
                let _ = events.send((index, Event::Text(text.to_owned())));
            }
            if gone() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        end = Some(match generated {
            Ok(generation) if !gone() => Event::Finished(generation),
            Ok(_) => Event::Failed(broken_off()),
            Err(error) => Event::Failed(ApiError::new(ErrorKind::Invalid, error.to_string())),
        });
    }
    let _ = events.send((index, end.unwrap_or_else(|| Event::Failed(broken_off()))));
}

fn broken_off() -> ApiError {
    ApiError::new(ErrorKind::Unavailable, "the answer was broken off: the server is shutting down")
}
