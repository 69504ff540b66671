//! One model that many requests share.
//!
//! ```text
//! submit ──► queue ──► waiting ──► running ──► last event
//!                         ▲            │ KV memory has run out: the youngest gives up its pages
//!                         └────────────┘
//! ```
//! A thread of its own runs steps. A step takes the next token of every sequence that is being decoded
//! and, as far as time allows, prompt tokens of the others; all go through one forward pass. How many
//! prompt tokens fit into a step is measured as it goes, so that a stream of tokens does not stall
//! behind somebody's long prompt. Half of them go to the shortest prompt and half to the oldest.
//! Free places go to the client that has the fewest.
//!
//! What a sequence's KV holds does not depend on its neighbours or on how its prompt was cut, so it can be
//! taken from the prefix cache, read from a file of [`PrefixDir`], or dropped and computed once more: the answer keeps
//! its bits.

use crate::cgroup::usable_memory;
use crate::constraint::Constraint;
use crate::generate::millis;
use crate::prefix::PrefixCache;
use crate::sampler::{Distribution, Sampled, Sampler, SamplerError};
use crate::saved::{PrefixDir, SavedPages};
use crate::slots::{SlotAction, SlotContent, SlotDone};
use crate::token_loop::TokenLoop;
use crate::{Engine, EngineError, GenerationParams, StopReason, Timings};
use hurtle_model::{BatchToken, KvCache, PAGE_TOKENS, Scratch, SeqId};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a service works.
#[derive(Debug, Clone)]
pub struct ServiceOptions {
    /// Sequences that run at the same time.
    pub max_sequences: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Memory for keys and values, the prefix cache included; `None`: half of what is available.
    pub kv_bytes: Option<u64>,
    /// Most prompt tokens in a step; `None`: the engine's batch size.
    pub chunk: Option<usize>,
    /// Whether pages of finished sequences are kept for prompts that begin in the same way.
    pub prefix_cache: bool,
    /// Where pages go that memory has no more room for, and all of them at the end.
    pub prefix_dir: Option<PrefixDir>,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            max_sequences: 16,
            queue: 256,
            kv_bytes: None,
            chunk: None,
            prefix_cache: true,
            prefix_dir: None,
        }
    }
}

/// What is asked for.
pub struct Request {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// Sampling, length and stop strings.
    pub params: GenerationParams,
    /// Log-probabilities of each token and of so many best ones.
    pub logprobs: Option<usize>,
    /// Of which distribution they are.
    pub distribution: Distribution,
    /// Log-probabilities of the prompt's tokens but the first, and of so many best ones. All of the prompt is
    /// processed then, whatever the prefix cache holds.
    pub prompt_logprobs: Option<usize>,
    /// A grammar that the answer follows.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Who asks: places are shared fairly between clients.
    pub client: Option<String>,
    /// Under which number the sequence is to be found again; `None`: the lowest that is free.
    pub slot: Option<usize>,
    /// Whether the prefix cache may be used and filled.
    pub cache_prompt: bool,
    /// When the answer ends, complete or not.
    pub deadline: Option<Instant>,
}

impl Request {
    /// A request without extras.
    pub fn new(prompt: Vec<u32>, params: GenerationParams) -> Self {
        Self {
            prompt,
            params,
            logprobs: None,
            distribution: Distribution::Model,
            prompt_logprobs: None,
            constraint: None,
            client: None,
            slot: None,
            cache_prompt: true,
            deadline: None,
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("n_prompt", &self.prompt.len())
            .field("params", &self.params)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// What happens to a request. The last event is `Finished` or `Failed`, and there is exactly one.
#[derive(Debug)]
pub enum Event {
    /// It has a place.
    Started {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// How many of them the prefix cache held.
        n_cached: usize,
        /// How long it waited.
        queued: Duration,
    },
    /// Prompt tokens processed so far.
    Prompt {
        /// Done.
        done: usize,
        /// Of.
        total: usize,
        /// Since the request has its place.
        time: Duration,
    },
    /// Log-probabilities of the next tokens of the prompt, if they were asked for; of its first there are none.
    PromptLogprobs(Vec<Sampled>),
    /// A token, and how long the answer took up to it.
    Token(TokenOut, Timings),
    /// The end.
    Finished(Finished),
    /// The end, without an answer.
    Failed(EngineError),
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenOut {
    /// The token.
    pub id: u32,
    /// What can be shown now: whole characters, and nothing that may become a stop string.
    pub text: String,
    /// Log-probabilities, if they were asked for.
    pub logprobs: Option<Sampled>,
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// What was held back until now.
    pub text_tail: String,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// The stop string that ended it.
    pub stop_string: Option<String>,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// How many of them the prefix cache held.
    pub n_cached: usize,
    /// Tokens of the answer.
    pub n_generated: usize,
    /// Tokens of both whose keys and values were there at the end.
    pub n_kept: usize,
    /// Under which number the sequence is found again; `None`: it never began.
    pub slot: Option<usize>,
    /// How long it took.
    pub timings: Timings,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The prompt is empty, does not fit the context, or holds an unknown token.
    #[error(transparent)]
    Prompt(EngineError),
    /// Prompt and answer need more memory than there is for keys and values.
    #[error(
        "prompt and answer take {needed} tokens of KV memory, but the budget holds {budget}\n\
         hint: ask for a shorter answer, or give the service more KV memory"
    )]
    KvMemory {
        /// Tokens needed.
        needed: usize,
        /// Tokens that fit.
        budget: usize,
    },
    /// Too many requests wait.
    #[error("{waiting} requests are waiting, which is the limit\nhint: try again later")]
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// The service is shutting down.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// The service has failed.
    #[error(
        "the service has stopped after an internal error\nhint: restart it; the log says what failed"
    )]
    ServiceFailed,
    /// A sampling parameter makes no sense.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
}

/// A request that was taken. Dropping it cancels the request at the next step.
#[derive(Debug)]
pub struct Ticket {
    id: u64,
    cancelled: Arc<AtomicBool>,
}

impl Ticket {
    /// The number of the request.
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// What became of the requests that were there at the shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShutdownReport {
    /// Ended by themselves.
    pub finished: usize,
    /// Broken off.
    pub cancelled: usize,
}

/// A running sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotInfo {
    /// The request's number.
    pub id: u64,
    /// The number under which it is found again.
    pub slot: usize,
    /// Who asked.
    pub client: Option<String>,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Tokens whose keys and values are there.
    pub n_done: usize,
    /// Tokens of the answer so far.
    pub n_generated: usize,
}

/// How a service is doing, as of its latest step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceStats {
    /// The running sequences.
    pub slots: Vec<SlotInfo>,
    /// Requests that wait.
    pub waiting: usize,
    /// Bytes of keys and values, the prefix cache included.
    pub kv_bytes: u64,
    /// Most that there may be.
    pub kv_budget: u64,
    /// Tokens in the prefix cache.
    pub prefix_tokens: usize,
    /// Bytes that they take.
    pub prefix_bytes: u64,
    /// Prompts looked up in the prefix cache.
    pub prefix_lookups: u64,
    /// Those of which a part was there.
    pub prefix_hits: u64,
    /// Prompt tokens processed, those of preempted sequences counted again.
    pub prompt_tokens: u64,
    /// Prompt tokens taken from the prefix cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Of answers that have ended: how long their prompts took, each by itself.
    pub prompt_time: Duration,
    /// Tokens that were processed in that time.
    pub timed_prompt_tokens: u64,
    /// Of the same answers: how long they took behind their prompts, each by itself.
    pub generation_time: Duration,
    /// Tokens that were generated in that time: all but the first of each, which its prompt gives.
    pub timed_tokens: u64,
    /// Forward passes.
    pub batches: u64,
    /// Tokens in them.
    pub batch_tokens: u64,
    /// Sequences in them.
    pub batch_sequences: u64,
    /// How many had at most as many tokens as [`BATCH_SIZES`] say, and more than the size before; at the end
    /// those that had more than all.
    pub batch_sizes: [u64; BATCH_SIZES.len() + 1],
    /// Sequences that gave up their memory for a time.
    pub preemptions: u64,
    /// Tokens of the longest sequence so far.
    pub longest: usize,
}

/// Sizes that [`ServiceStats::batch_sizes`] tells apart.
pub const BATCH_SIZES: [usize; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

type OnEvent = Box<dyn FnMut(Event) + Send>;

/// A request on its way to the service's thread.
struct Incoming {
    id: u64,
    request: Request,
    sampler: Sampler,
    on_event: OnEvent,
    cancelled: Arc<AtomicBool>,
    submitted: Instant,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Open,
    /// What still runs then is cancelled.
    Closing(Instant),
    Failed,
}

/// What is to be done with a slot, and who wants to know.
struct SlotRequest {
    slot: usize,
    action: SlotAction,
    on_done: Box<dyn FnOnce(SlotDone) + Send>,
}

struct Inbox {
    state: State,
    incoming: Vec<Incoming>,
    slot_requests: Vec<SlotRequest>,
    /// Requests that the thread has taken and that wait.
    waiting: usize,
    next_id: u64,
    stopped: bool,
    report: ShutdownReport,
}

struct Shared {
    engine: Engine,
    inbox: Mutex<Inbox>,
    /// Something has arrived, or the thread has ended.
    changed: Condvar,
    stats: Mutex<ServiceStats>,
    max_sequences: usize,
    queue: usize,
    chunk: usize,
    prefix_cache: bool,
    saved: Option<SavedPages>,
    /// Bytes of KV memory.
    kv_budget: u64,
    /// Pages of it.
    max_pages: usize,
    /// Tokens that a sequence may have.
    n_ctx: usize,
}

/// Nothing that holds these locks leaves anything half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the thread when the last service is dropped.
struct Thread {
    shared: Arc<Shared>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.shared.close(Duration::ZERO);
        if let Some(handle) = self.handle.take()
            && handle.thread().id() != std::thread::current().id()
        {
            // Panics inside were caught and reported.
            let _ = handle.join();
        }
    }
}

/// One loaded model that many requests share. Cheap to clone; dropping the last clone cancels what runs.
#[derive(Clone)]
pub struct Service {
    thread: Arc<Thread>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("engine", self.engine()).finish_non_exhaustive()
    }
}

/// Bytes of memory that are taken for granted where the system doesn't tell.
const UNKNOWN_MEMORY: u64 = 4 << 30;

impl Service {
    /// Starts the thread.
    ///
    /// # Errors
    /// If it does not start, or the KV memory holds less than a page.
    pub fn start(engine: Engine, options: ServiceOptions) -> std::io::Result<Self> {
        let page_bytes = engine.kv_cache().page_bytes() as u64;
        let budget = options
            .kv_bytes
            .unwrap_or_else(|| usable_memory(Path::new("/")).unwrap_or(UNKNOWN_MEMORY) / 2);
        let max_pages = usize::try_from(budget / page_bytes).unwrap_or(usize::MAX);
        if max_pages == 0 {
            return Err(std::io::Error::other(format!(
                "{budget} bytes of KV memory hold no page of {PAGE_TOKENS} tokens, which takes {page_bytes}\n\
                 hint: give the service more KV memory"
            )));
        }
        let shared = Arc::new(Shared {
            max_sequences: options.max_sequences.max(1),
            queue: options.queue.max(1),
            chunk: options.chunk.unwrap_or(engine.batch_size()).max(1),
            prefix_cache: options.prefix_cache,
            saved: options.prefix_dir.map(|dir| SavedPages::new(dir, &engine)),
            kv_budget: budget,
            max_pages,
            n_ctx: engine.ctx_size().min(max_pages.saturating_mul(PAGE_TOKENS)),
            engine,
            inbox: Mutex::new(Inbox {
                state: State::Open,
                incoming: Vec::new(),
                slot_requests: Vec::new(),
                waiting: 0,
                next_id: 0,
                stopped: false,
                report: ShutdownReport::default(),
            }),
            changed: Condvar::new(),
            stats: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        let name = "hurtle-service".to_owned();
        let handle = std::thread::Builder::new().name(name).spawn(move || theirs.run())?;
        Ok(Self { thread: Arc::new(Thread { shared, handle: Some(handle) }) })
    }

    fn shared(&self) -> &Shared {
        &self.thread.shared
    }

    /// The model.
    pub fn engine(&self) -> &Engine {
        &self.shared().engine
    }

    /// Queues a request. `on_event` is called on the service's thread and must not block; if it
    /// panics, the request ends and nothing more is heard of it.
    pub fn submit(&self, request: Request, on_event: OnEvent) -> Result<Ticket, SubmitError> {
        let shared = self.shared();
        let engine = &shared.engine;
        let n_prompt = request.prompt.len();
        engine.check_generates().map_err(SubmitError::Prompt)?;
        engine
            .check_prompt(n_prompt, engine.ctx_size().saturating_sub(1))
            .map_err(SubmitError::Prompt)?;
        let n_vocab = engine.model().hparams().n_vocab;
        if let Some(&id) = request.prompt.iter().find(|&&id| id as usize >= n_vocab) {
            let unknown = hurtle_model::ModelError::Token { id, n_vocab };
            return Err(SubmitError::Prompt(unknown.into()));
        }
        let answer = request.params.n_predict.unwrap_or(1).max(1);
        let needed = n_prompt.saturating_add(answer).min(engine.ctx_size());
        if needed > shared.n_ctx {
            return Err(SubmitError::KvMemory { needed, budget: shared.n_ctx });
        }
        let mut sampler = Sampler::new(request.params.sampler.clone(), engine.tokenizer())?;
        request.prompt.iter().for_each(|id| sampler.accept(*id));

        let mut inbox = lock(&shared.inbox);
        match inbox.state {
            State::Open => {}
            State::Closing(_) => return Err(SubmitError::ShuttingDown),
            State::Failed => return Err(SubmitError::ServiceFailed),
        }
        let waiting = inbox.waiting + inbox.incoming.len();
        if waiting >= shared.queue {
            return Err(SubmitError::QueueFull { waiting });
        }
        let id = inbox.next_id;
        inbox.next_id += 1;
        let cancelled = Arc::new(AtomicBool::new(false));
        let ticket = Ticket { id, cancelled: Arc::clone(&cancelled) };
        let submitted = Instant::now();
        inbox.incoming.push(Incoming { id, request, sampler, on_event, cancelled, submitted });
        shared.changed.notify_all();
        Ok(ticket)
    }

    /// Sequences that run at the same time, and so many slots there are.
    pub fn max_sequences(&self) -> usize {
        self.shared().max_sequences
    }

    /// Does something with a slot between two steps. `on_done` is called on the service's thread and must neither
    /// block nor panic; it is dropped unheard if the service ends before.
    pub fn with_slot(
        &self,
        slot: usize,
        action: SlotAction,
        on_done: Box<dyn FnOnce(SlotDone) + Send>,
    ) {
        let mut inbox = lock(&self.shared().inbox);
        if matches!(inbox.state, State::Open) {
            inbox.slot_requests.push(SlotRequest { slot, action, on_done });
            self.shared().changed.notify_all();
        }
    }

    /// How it is doing.
    pub fn stats(&self) -> ServiceStats {
        let mut stats = lock(&self.shared().stats).clone();
        let inbox = lock(&self.shared().inbox);
        stats.waiting = inbox.waiting + inbox.incoming.len();
        stats.kv_budget = self.shared().kv_budget;
        stats
    }

    /// Takes no more requests, finishes those it has within `grace`, cancels the rest, and waits for that.
    /// Must not be called from an `on_event`.
    pub fn shutdown(&self, grace: Duration) -> ShutdownReport {
        let shared = self.shared();
        shared.close(grace);
        let inbox = lock(&shared.inbox);
        let stopped = shared.changed.wait_while(inbox, |inbox| !inbox.stopped);
        stopped.unwrap_or_else(PoisonError::into_inner).report
    }
}

/// A request on the service's thread.
struct Job<'e> {
    id: u64,
    on_event: OnEvent,
    cancelled: Arc<AtomicBool>,
    client: Option<String>,
    slot: Option<usize>,
    deadline: Option<Instant>,
    cache_prompt: bool,
    /// Prompt and answer.
    tokens: Vec<u32>,
    n_prompt: usize,
    n_cached: usize,
    prompt_logprobs: Option<usize>,
    /// Tokens of the prompt whose log-probabilities have been told, or that have none.
    n_scored: usize,
    token_loop: TokenLoop<'e>,
    submitted: Instant,
    started: Option<Instant>,
    /// When the prompt was done.
    decoding: Option<Instant>,
    /// Whether its listener has panicked.
    deaf: bool,
}

impl Job<'_> {
    fn tell(&mut self, event: Event) {
        if !self.deaf && catch_unwind(AssertUnwindSafe(|| (self.on_event)(event))).is_err() {
            self.deaf = true;
        }
    }

    /// Tells the log-probabilities of the prompt's next tokens.
    fn score<'l>(&mut self, rows: impl Iterator<Item = &'l [f32]>) {
        let Some(n) = self.prompt_logprobs else { return };
        let ids = self.tokens[self.n_scored..self.n_prompt].iter();
        let scores = rows.zip(ids).map(|(logits, &id)| self.token_loop.logprobs(logits, id, n));
        let scores: Vec<_> = scores.collect();
        if !scores.is_empty() {
            self.n_scored += scores.len();
            self.tell(Event::PromptLogprobs(scores));
        }
    }

    /// How long it took so far.
    fn timings(&self, engine: &Engine) -> Timings {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let decoding = self.decoding.unwrap_or(now);
        let mut timings = Timings {
            load_ms: millis(engine.load_time()),
            cache_n: self.n_cached,
            prompt_n: self.n_prompt - self.n_cached,
            predicted_n: self.token_loop.n_generated(),
            ..Timings::default()
        };
        timings.finish(decoding - started, now - decoding);
        timings
    }

    /// Whether the logits behind the token `i` are wanted for the sake of the prompt's next.
    fn scores_after(&self, i: usize) -> bool {
        self.prompt_logprobs.is_some() && (self.n_scored..self.n_prompt).contains(&(i + 1))
    }

    /// Why it has to end, whatever it is doing.
    fn broken_off(&self, now: Instant) -> Option<StopReason> {
        if self.deaf || self.cancelled.load(Ordering::Relaxed) {
            return Some(StopReason::Cancelled);
        }
        self.deadline.is_some_and(|deadline| deadline <= now).then_some(StopReason::Deadline)
    }
}

/// A place that a job had.
#[derive(Debug, Clone, Copy)]
struct Place {
    slot: usize,
    /// Tokens whose keys and values were there.
    n_kept: usize,
}

/// A job with a place.
struct Running<'e> {
    job: Job<'e>,
    slot: usize,
    seq: SeqId,
    /// Tokens that the next step processes.
    planned: usize,
    /// Whether more pages of its prompt are to be read from files before it begins.
    restoring: bool,
}

/// How long a step should take while somebody reads an answer, and otherwise (so that a new request is
/// soon seen).
const STEP_TIME: (Duration, Duration) = (Duration::from_millis(150), Duration::from_millis(500));

/// Prompt tokens in a step before anything is known of their speed.
const FIRST_CHUNK: usize = 32;

/// Most prompt tokens in a step whose logits are wanted: those of a large vocabulary take half a megabyte each.
const SCORED_CHUNK: usize = 32;

/// How long pages are read from files in a step, and written at the end.
const FILE_TIME: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What the service's thread works with.
struct Scheduler<'e> {
    shared: &'e Shared,
    waiting: VecDeque<Job<'e>>,
    /// Oldest place first.
    running: Vec<Running<'e>>,
    cache: KvCache,
    prefix: PrefixCache,
    /// The tokens of the sequence that ended in each slot last.
    slots: HashMap<usize, Vec<u32>>,
    scratch: Scratch,
    batch: Vec<BatchToken>,
    /// Seconds that a prompt token takes.
    token_time: Option<f64>,
    stats: ServiceStats,
    report: ShutdownReport,
    closing: bool,
}

/// Reads the pages that `tokens` begin with from files into the prefix cache. False if there are more than there is
/// time for until `end`.
fn restore(
    shared: &Shared,
    prefix: &mut PrefixCache,
    cache: &mut KvCache,
    tokens: &[u32],
    end: Instant,
) -> bool {
    let Some(saved) = &shared.saved else { return true };
    let (n, mut pages) = prefix.lookup(tokens);
    let n_known = n / PAGE_TOKENS;
    pages.truncate(n_known);
    // Held, so that making room for the next ones does not take these.
    pages.iter().for_each(|&page| cache.hold_page(page));
    let mut all = true;
    for (depth, key) in saved.keys(tokens).enumerate().skip(n_known) {
        if Instant::now() >= end {
            all = !saved.has(&key);
            break;
        }
        let full = |cache: &KvCache| cache.pages_in_use() >= shared.max_pages;
        if full(cache) && saved.has(&key) {
            prefix.evict(cache, Some(saved));
        }
        if full(cache) {
            break;
        }
        let Some(page) = saved.read(&key, depth, cache.page_bytes()) else { break };
        pages.push(cache.restore_page(&page));
    }
    prefix.insert(cache, &tokens[..pages.len() * PAGE_TOKENS], &pages);
    pages.iter().for_each(|&page| cache.release_page(page));
    all
}

impl Shared {
    fn close(&self, grace: Duration) {
        let mut inbox = lock(&self.inbox);
        let now = Instant::now();
        let end = now.checked_add(grace).unwrap_or(now + Duration::from_secs(1 << 30));
        inbox.state = match inbox.state {
            State::Open => State::Closing(end),
            State::Closing(earlier) => State::Closing(end.min(earlier)),
            State::Failed => State::Failed,
        };
        self.changed.notify_all();
    }

    fn run(&self) {
        let mut scheduler = Scheduler::new(self);
        let broken = catch_unwind(AssertUnwindSafe(|| {
            scheduler.work();
            scheduler.save_all();
        }))
        .is_err();
        if broken {
            // First the door, so that nobody waits in front of it.
            {
                let mut inbox = lock(&self.inbox);
                inbox.state = State::Failed;
                inbox.slot_requests.clear();
            }
            scheduler.intake();
            let running = scheduler.running.drain(..).map(|running| running.job);
            for mut job in running.chain(scheduler.waiting.drain(..)) {
                job.tell(Event::Failed(EngineError::ServiceFailed));
            }
        }
        let mut inbox = lock(&self.inbox);
        inbox.stopped = true;
        inbox.waiting = 0;
        inbox.report = scheduler.report;
        self.changed.notify_all();
    }
}

impl<'e> Scheduler<'e> {
    fn new(shared: &'e Shared) -> Self {
        Self {
            shared,
            waiting: VecDeque::new(),
            running: Vec::new(),
            cache: shared.engine.kv_cache(),
            prefix: PrefixCache::new(),
            slots: HashMap::new(),
            scratch: Scratch::default(),
            batch: Vec::new(),
            token_time: None,
            stats: ServiceStats::default(),
            report: ShutdownReport::default(),
            closing: false,
        }
    }

    /// Steps until the service is closed and nothing is left to do.
    fn work(&mut self) {
        loop {
            let state = self.wait();
            self.intake();
            let now = Instant::now();
            let over = match state {
                State::Open => false,
                State::Closing(end) => {
                    self.closing = true;
                    now >= end
                }
                State::Failed => return,
            };
            self.break_off(
                |job| if over { Some(StopReason::Cancelled) } else { job.broken_off(now) },
            );
            if self.closing && self.running.is_empty() && self.waiting.is_empty() {
                return;
            }
            self.admit();
            self.reuse();
            self.plan();
            if self.make_room() {
                self.announce();
                self.step();
            }
            self.publish();
        }
    }

    /// Sleeps while there is nothing to do.
    fn wait(&self) -> State {
        let idle = self.running.is_empty() && self.waiting.is_empty();
        let inbox = lock(&self.shared.inbox);
        let nothing = |inbox: &mut Inbox| {
            idle && inbox.incoming.is_empty()
                && inbox.slot_requests.is_empty()
                && matches!(inbox.state, State::Open)
        };
        let inbox = self.shared.changed.wait_while(inbox, nothing);
        inbox.unwrap_or_else(PoisonError::into_inner).state
    }

    /// Takes what has arrived.
    fn intake(&mut self) {
        let (incoming, slot_requests) = {
            let mut inbox = lock(&self.shared.inbox);
            inbox.waiting += inbox.incoming.len();
            (std::mem::take(&mut inbox.incoming), std::mem::take(&mut inbox.slot_requests))
        };
        for SlotRequest { slot, action, on_done } in slot_requests {
            on_done(self.with_slot(slot, action));
        }
        for incoming in incoming {
            let Incoming { id, request, sampler, on_event, cancelled, submitted } = incoming;
            let Request { prompt, params, constraint, client, slot, deadline, .. } = request;
            let room = self.shared.n_ctx - prompt.len();
            let token_loop = TokenLoop::new(&self.shared.engine, sampler, &params, room);
            self.waiting.push_back(Job {
                id,
                on_event,
                cancelled,
                client,
                slot,
                deadline,
                cache_prompt: request.cache_prompt
                    && request.prompt_logprobs.is_none()
                    && self.shared.prefix_cache,
                n_prompt: prompt.len(),
                n_cached: 0,
                tokens: prompt,
                prompt_logprobs: request.prompt_logprobs,
                n_scored: 1,
                token_loop: token_loop.with(constraint, request.logprobs, request.distribution),
                submitted,
                started: None,
                decoding: None,
                deaf: false,
            });
        }
    }

    fn with_slot(&mut self, slot: usize, action: SlotAction) -> SlotDone {
        let Self { shared, cache, prefix, slots, .. } = self;
        match action {
            SlotAction::Copy => {
                let mut tokens = slots.get(&slot).cloned().unwrap_or_default();
                let (n, pages) = prefix.lookup(&tokens);
                tokens.truncate(n);
                let pages = pages.iter().flat_map(|&page| cache.page(page)).copied().collect();
                SlotDone { n_tokens: n, content: Some(SlotContent { tokens, pages }) }
            }
            SlotAction::Put(SlotContent { mut tokens, pages: bytes }) => {
                let mut pages = Vec::new();
                for page in bytes.chunks_exact(cache.page_bytes()) {
                    if cache.pages_in_use() >= shared.max_pages {
                        prefix.evict(cache, shared.saved.as_ref());
                    }
                    if cache.pages_in_use() >= shared.max_pages {
                        break;
                    }
                    pages.push(cache.restore_page(page));
                }
                tokens.truncate(pages.len() * PAGE_TOKENS);
                if shared.prefix_cache {
                    prefix.insert(cache, &tokens, &pages);
                }
                pages.iter().for_each(|&page| cache.release_page(page));
                let n_tokens = prefix.lookup(&tokens).0;
                slots.insert(slot, tokens);
                SlotDone { n_tokens, content: None }
            }
            SlotAction::Erase => {
                let tokens = slots.remove(&slot).unwrap_or_default();
                SlotDone { n_tokens: prefix.erase(cache, &tokens), content: None }
            }
        }
    }

    /// Ends the jobs that `why` gives a reason for.
    fn break_off(&mut self, why: impl Fn(&Job<'e>) -> Option<StopReason>) {
        for i in (0..self.waiting.len()).rev() {
            if let Some(reason) = why(&self.waiting[i])
                && let Some(job) = self.waiting.remove(i)
            {
                self.finish(job, None, reason);
            }
        }
        for i in (0..self.running.len()).rev() {
            if let Some(reason) = why(&self.running[i].job) {
                let (job, place) = self.retire(i);
                self.finish(job, Some(place), reason);
            }
        }
    }

    /// Takes a job from its place, and leaves its pages to the prefix cache; also tells which place it was.
    fn retire(&mut self, index: usize) -> (Job<'e>, Place) {
        let Running { job, slot, seq, .. } = self.running.remove(index);
        let n_kept = self.cache.len(seq);
        self.remember(&job, seq, n_kept);
        self.cache.remove(seq);
        self.slots.insert(slot, job.tokens[..n_kept].to_vec());
        (job, Place { slot, n_kept })
    }

    /// Lets the prefix cache know the first `n` tokens of a job.
    fn remember(&mut self, job: &Job<'e>, seq: SeqId, n: usize) {
        if job.cache_prompt && n > 0 {
            let pages = self.cache.page_ids(seq).to_vec();
            self.prefix.insert(&mut self.cache, &job.tokens[..n], &pages);
        }
    }

    /// The last event.
    fn finish(&mut self, job: Job<'e>, place: Option<Place>, stop_reason: StopReason) {
        if self.closing {
            match stop_reason {
                StopReason::Cancelled => self.report.cancelled += 1,
                _ => self.report.finished += 1,
            }
        }
        let timings = job.timings(&self.shared.engine);
        let n_generated = job.token_loop.n_generated();
        if job.decoding.is_some() {
            let time = |ms: f64| Duration::from_secs_f64(ms / 1e3);
            self.stats.prompt_time += time(timings.prompt_ms);
            self.stats.timed_prompt_tokens += timings.prompt_n as u64;
            self.stats.generation_time += time(timings.predicted_ms);
            self.stats.timed_tokens += n_generated.saturating_sub(1) as u64;
        }
        // Who has heard the end finds the place free.
        self.publish();
        let stop_string = job.token_loop.stop_string().map(str::to_owned);
        let Job { token_loop, n_prompt, n_cached, mut on_event, deaf, .. } = job;
        let mut text_tail = String::new();
        token_loop.finish(&mut text_tail);
        if !deaf {
            let finished = Finished {
                text_tail,
                stop_reason,
                stop_string,
                n_prompt,
                n_cached,
                n_generated,
                n_kept: place.map_or(0, |place| place.n_kept),
                slot: place.map(|place| place.slot),
                timings,
            };
            // A listener that panics hears nothing more anyway.
            let _ = catch_unwind(AssertUnwindSafe(|| on_event(Event::Finished(finished))));
        }
    }

    /// Gives free places to waiting jobs: to the client with the fewest, and there to the oldest.
    fn admit(&mut self) {
        while self.running.len() < self.shared.max_sequences && !self.waiting.is_empty() {
            let places = |job: &Job<'e>| {
                self.running.iter().filter(|running| running.job.client == job.client).count()
            };
            let order = |i: &usize| (places(&self.waiting[*i]), *i);
            let Some(next) = (0..self.waiting.len()).min_by_key(order) else { return };

            // A new job must not drive out those that are there. It will soon need a page more.
            let pages = |n: usize| n.div_ceil(PAGE_TOKENS) + 1;
            let promised = |running: &Running<'e>| {
                self.cache.pages_needed(running.seq, running.job.tokens.len()) + 1
            };
            let promised: usize = self.running.iter().map(promised).sum();
            let in_use = self.cache.pages_in_use() - self.prefix.n_evictable(&self.cache);
            let wanted = in_use + promised + pages(self.waiting[next].tokens.len());
            if wanted > self.shared.max_pages && !self.running.is_empty() {
                return;
            }
            let Some(job) = self.waiting.remove(next) else { return };
            let seq = self.cache.new_sequence();
            let is_free = |slot: &usize| !self.running.iter().any(|running| running.slot == *slot);
            let free = || (0..self.shared.max_sequences).find(is_free).unwrap_or(0);
            let slot = job.slot.unwrap_or_else(free);
            self.running.push(Running { job, slot, seq, planned: 0, restoring: false });
        }
    }

    /// Lets sequences that have not begun begin with what the prefix cache holds of their tokens, all
    /// but the last. That is done as late as possible: of equal prompts that come together, most
    /// wait until one is processed and take its pages.
    fn reuse(&mut self) {
        let end = Instant::now() + FILE_TIME.0;
        let Self { shared, running, cache, prefix, .. } = self;
        for Running { job, seq, restoring, .. } in running {
            if job.cache_prompt && cache.len(*seq) == 0 {
                let tokens = &job.tokens[..job.tokens.len() - 1];
                *restoring = !restore(shared, prefix, cache, tokens, end);
                if !*restoring {
                    let (n, pages) = prefix.lookup(tokens);
                    cache.adopt(*seq, &pages, n);
                }
            }
        }
    }

    /// Saves what the prefix cache holds.
    fn save_all(&mut self) {
        let Some(saved) = &self.shared.saved else { return };
        let end = Instant::now() + FILE_TIME.1;
        let left = self.prefix.save_all(&self.cache, saved, end);
        if left > 0 {
            let pages = self.prefix.n_pages();
            tracing::warn!(left, pages, "there was no time to save all prefixes");
        }
    }

    /// Tells those that the next step is the first for.
    fn announce(&mut self) {
        for Running { job, seq, planned, .. } in &mut self.running {
            if *planned > 0 && job.started.is_none() {
                let (now, n_cached) = (Instant::now(), self.cache.len(*seq));
                job.started = Some(now);
                job.n_cached = n_cached;
                self.stats.prefix_lookups += u64::from(job.cache_prompt);
                self.stats.prefix_hits += u64::from(n_cached > 0);
                self.stats.cached_tokens += n_cached as u64;
                let (n_prompt, queued) = (job.n_prompt, now - job.submitted);
                job.tell(Event::Started { n_prompt, n_cached, queued });
            }
        }
    }

    /// Tokens of a sequence that have not been processed.
    fn left(&self, running: &Running<'e>) -> usize {
        running.job.tokens.len() - self.cache.len(running.seq)
    }

    /// Decides how many tokens each sequence gets in the next step.
    fn plan(&mut self) {
        let left: Vec<usize> = self.running.iter().map(|running| self.left(running)).collect();
        let decoding = left.contains(&1);
        let target = if decoding { STEP_TIME.0 } else { STEP_TIME.1 };
        let fitting =
            self.token_time.map_or(FIRST_CHUNK, |time| (target.as_secs_f64() / time) as usize);
        let mut budget = fitting.max(FIRST_CHUNK / 2).min(self.shared.chunk);
        for (running, &left) in self.running.iter_mut().zip(&left) {
            running.planned = usize::from(left == 1);
        }
        let begins = |&i: &usize| left[i] > 1 && !self.running[i].restoring;
        let mut prompts: Vec<usize> = (0..left.len()).filter(begins).collect();
        let oldest = prompts.iter().copied().min_by_key(|&i| self.running[i].job.id);
        prompts.sort_by_key(|&i| (left[i], self.running[i].job.id));
        let mut scored = SCORED_CHUNK;
        // The oldest has half for certain; what is left over goes to the others, shortest first.
        let first = oldest.map(|i| (i, budget.div_ceil(2)));
        for (i, most) in first.into_iter().chain(prompts.into_iter().map(|i| (i, usize::MAX))) {
            let running = &mut self.running[i];
            let mut n = budget.min(most).min(left[i] - running.planned);
            if running.job.prompt_logprobs.is_some() {
                n = n.min(scored);
                scored -= n;
            }
            running.planned += n;
            budget -= n;
        }
    }

    /// Frees pages until the planned step fits: first those of the prefix cache, then those of the
    /// youngest sequence. False if nothing is left to be done in this step.
    fn make_room(&mut self) -> bool {
        loop {
            let needed = |running: &Running<'e>| {
                let n = self.cache.len(running.seq) + running.planned;
                self.cache.pages_needed(running.seq, n)
            };
            let needed: usize = self.running.iter().map(needed).sum();
            if self.cache.pages_in_use() + needed <= self.shared.max_pages {
                return self.running.iter().any(|running| running.planned > 0);
            }
            if self.prefix.evict(&mut self.cache, self.shared.saved.as_ref()) {
                continue;
            }
            let youngest = (0..self.running.len()).max_by_key(|&i| self.running[i].job.id);
            let Some(youngest) = youngest else { return false };
            let Running { job, seq, .. } = self.running.remove(youngest);
            self.cache.remove(seq);
            self.waiting.push_front(job);
            self.stats.preemptions += 1;
        }
    }

    /// One forward pass, and the tokens that it gives.
    fn step(&mut self) {
        let Self { shared, running, cache, scratch, batch, stats, .. } = self;
        let engine = &shared.engine;
        batch.clear();
        let mut n_prompt_tokens = 0;
        for Running { job, seq, planned, .. } in &*running {
            let done = cache.len(*seq);
            let last = job.tokens.len() - 1;
            let ids = job.tokens.iter().enumerate().skip(done).take(*planned);
            let logits = |i| i == last || job.scores_after(i);
            batch.extend(ids.map(|(i, &id)| BatchToken { id, seq: *seq, logits: logits(i) }));
            // A prompt's last token counts too, unless it is all there was to do.
            n_prompt_tokens += if *planned > 1 || done < job.n_prompt { *planned } else { 0 };
        }
        let start = Instant::now();
        let (threads, threads_batch) = engine.threads();
        let threads = if batch.len() == 1 { threads } else { threads_batch };
        let n_vocab = engine.model().hparams().n_vocab;
        let logits = engine.model().forward(engine.exec(threads), batch, cache, scratch);
        // Ids were checked when the requests came, and the model generates no others.
        let logits = logits.unwrap_or_else(|error| panic!("a checked batch: {error}"));
        let time = start.elapsed().as_secs_f64();
        stats.batches += 1;
        stats.batch_tokens += batch.len() as u64;
        stats.batch_sequences +=
            running.iter().filter(|running| running.planned > 0).count() as u64;
        let longest = running.iter().map(|running| cache.len(running.seq)).max();
        stats.longest = stats.longest.max(longest.unwrap_or(0));
        stats.batch_sizes[BATCH_SIZES.partition_point(|&n| n < batch.len())] += 1;
        stats.prompt_tokens += n_prompt_tokens as u64;

        let mut rows = logits.chunks_exact(n_vocab);
        let mut ended = Vec::new();
        let mut prompts_done = Vec::new();
        for (index, Running { job, seq, planned, .. }) in running.iter_mut().enumerate() {
            if *planned == 0 {
                continue;
            }
            let done = cache.len(*seq);
            if job.decoding.is_none() {
                let time = job.started.map_or(Duration::ZERO, |started| started.elapsed());
                job.tell(Event::Prompt { done, total: job.n_prompt, time });
            }
            let scored = (done - *planned..done).filter(|&i| job.scores_after(i)).count();
            job.score(rows.by_ref().take(scored));
            if done < job.tokens.len() {
                continue;
            }
            if job.decoding.is_none() {
                job.decoding = Some(Instant::now());
                prompts_done.push(index);
            }
            let Some(logits) = rows.next() else { break };
            let mut text = String::new();
            // A grammar's engine is others' code: what it breaks is this answer alone.
            let step = AssertUnwindSafe(|| job.token_loop.step(logits, &mut text));
            match catch_unwind(step).unwrap_or(Err(EngineError::RequestFailed)) {
                Ok(step) => {
                    if let Some(id) = step.id {
                        job.tokens.push(id);
                        stats.generated_tokens += 1;
                        let token = TokenOut { id, text, logprobs: step.logprobs };
                        let timings = job.timings(engine);
                        job.tell(Event::Token(token, timings));
                    }
                    ended.extend(step.stop.map(|reason| (index, Ok(reason))));
                }
                Err(error) => ended.push((index, Err(error))),
            }
        }
        if n_prompt_tokens >= (FIRST_CHUNK / 2).min(self.shared.chunk) {
            let now = time / n_prompt_tokens as f64;
            self.token_time = Some(self.token_time.map_or(now, |before| (before + now) / 2.0));
        }
        // Others may begin in the same way: whole pages of a prompt are known from now on.
        for index in prompts_done {
            let Running { job, seq, .. } = &self.running[index];
            if job.cache_prompt {
                let n = job.n_prompt / PAGE_TOKENS * PAGE_TOKENS;
                let pages = self.cache.page_ids(*seq).to_vec();
                self.prefix.insert(&mut self.cache, &job.tokens[..n], &pages);
            }
        }
        for (index, end) in ended.into_iter().rev() {
            let (mut job, place) = self.retire(index);
            match end {
                Ok(reason) => self.finish(job, Some(place), reason),
                Err(error) => {
                    self.report.finished += usize::from(self.closing);
                    job.tell(Event::Failed(error));
                }
            }
        }
    }

    /// Lets others see how it goes.
    fn publish(&mut self) {
        let page_bytes = self.cache.page_bytes() as u64;
        let slots = self.running.iter().map(|Running { job, slot, seq, .. }| SlotInfo {
            id: job.id,
            slot: *slot,
            client: job.client.clone(),
            n_prompt: job.n_prompt,
            n_done: self.cache.len(*seq),
            n_generated: job.token_loop.n_generated(),
        });
        self.stats.slots = slots.collect();
        self.stats.kv_bytes = self.cache.pages_in_use() as u64 * page_bytes;
        self.stats.prefix_tokens = self.prefix.n_tokens();
        self.stats.prefix_bytes = self.prefix.n_pages() as u64 * page_bytes;
        lock(&self.shared.stats).clone_from(&self.stats);
        lock(&self.shared.inbox).waiting = self.waiting.len();
    }
}
