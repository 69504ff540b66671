//! Which models there are, which are loaded, and until when.
//!
//! ```text
//! named by the server's flags ─┐
//! stored on this machine ──────┴─► file ─► loading ─► ready ─► leaving ─► gone
//!                                                      ▲ a lease for each request
//! ```
//! A model is loaded by the first request that names it, on a thread of its own; requests for it wait
//! meanwhile. It leaves when nobody has asked for it for its `keep_alive`, or when another model needs its
//! place or its memory: then new requests for it wait until it can be loaded again, so that the others have
//! their turn, and it goes as soon as its last answer is written. What holds a `Lease` is never unloaded. One
//! thread frees what leaves, so that no thread that serves connections does.
use crate::Limits;
use crate::embedder::Embedder;
use crate::error::{ApiError, ErrorKind};
use crate::keep_alive::KeepAlive;
use crate::observe;
use hurtle_engine::{Engine, Service, ServiceOptions, ServiceStats, ShutdownReport};
use hurtle_hub::{Hub, LocalModel, Origin};
use hurtle_text::ChatTemplate;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// Makes an engine and its chat template of a file; says why it cannot.
pub type Load = Box<dyn Fn(&Path) -> Result<(Engine, ChatTemplate), String> + Send + Sync>;

/// The models of a server.
pub struct Catalog {
    /// Those that are named from the start; requests that name no model mean the first.
    pub named: Vec<Source>,
    /// Where further names are looked up; `None`: there are no others.
    pub others: Option<Hub>,
    /// Loads a file.
    pub load: Load,
    /// Most models that are loaded at the same time.
    pub max_loaded: usize,
    /// How long a model stays where a request does not say; `None`: those in `named` until the server ends,
    /// others [`DEFAULT_KEEP_ALIVE`].
    pub keep_alive: Option<KeepAlive>,
    /// Bytes that models and their keys and values may take together; `None`: whatever they take, with the
    /// keys and values that [`ServiceOptions`] say.
    pub memory: Option<u64>,
}

/// A model that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What requests and replies call it.
    pub name: String,
    /// What requests may call it, too.
    pub aliases: Vec<String>,
    /// Its first or only file.
    pub path: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
}

impl Source {
    /// A model with one name.
    pub fn new(name: String, path: PathBuf, bytes: u64) -> Self {
        Self { name, aliases: Vec::new(), path, bytes }
    }
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").field("named", &self.named).finish_non_exhaustive()
    }
}

/// Ollama's.
pub const DEFAULT_KEEP_ALIVE: KeepAlive = KeepAlive::For(Duration::from_secs(300));

/// What examples and forms write where the name of a model does not matter, in any case.
const PLACEHOLDERS: [&str; 17] = [
    "any",
    "anything",
    "dummy",
    "ggml-model",
    "llama-cpp",
    "llama-server",
    "llama.cpp",
    "llama_cpp",
    "local",
    "local-model",
    "model",
    "my-model",
    "none",
    "placeholder",
    "string",
    "test",
    "unused",
];

/// How the names of OpenAI's and Anthropic's hosted models begin.
const HOSTED: [&str; 14] = [
    "gpt-3",
    "gpt-4",
    "gpt-5",
    "chatgpt-",
    "o1",
    "o3",
    "o4",
    "davinci-",
    "babbage-",
    "text-davinci-",
    "text-embedding-",
    "codex-",
    "claude-",
    "computer-use-",
];

/// What keys and values get at least, however little memory is left.
const LEAST_KV_BYTES: u64 = 64 << 20;

/// A loaded model.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) source: Source,
    pub(crate) service: Service,
    pub(crate) template: ChatTemplate,
    pub(crate) embedder: Embedder,
    pub(crate) limits: Limits,
}

impl Loaded {
    fn start(
        source: &Source,
        engine: Engine,
        template: ChatTemplate,
        options: ServiceOptions,
        limits: Limits,
    ) -> std::io::Result<Self> {
        Ok(Self {
            source: source.clone(),
            limits,
            service: Service::start(engine, options)?,
            template,
            embedder: Embedder::default(),
        })
    }
}

/// A loaded model that somebody uses; while there is a lease it stays.
#[derive(Debug, Clone)]
pub(crate) struct Lease(Arc<Use>);

#[derive(Debug)]
struct Use {
    /// `None` only while it is dropped.
    loaded: Option<Arc<Loaded>>,
    inner: Arc<Inner>,
}

impl Deref for Lease {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        self.0.loaded.as_deref().expect("a lease has its model until it is dropped")
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        // First the reference, so that the last one is always the table's.
        let Some(path) = self.loaded.take().map(|loaded| loaded.source.path.clone()) else {
            return;
        };
        if let Some(Slot::Ready(ready)) = self.inner.lock().slots.get_mut(&path) {
            ready.users -= 1;
            ready.used = Instant::now();
        }
        self.inner.changed();
    }
}

/// A model that is ready.
#[derive(Debug)]
struct Ready {
    loaded: Arc<Loaded>,
    users: usize,
    keep_alive: KeepAlive,
    /// When it was last used, or loaded.
    used: Instant,
    /// Whether nobody has used it yet; then it stays for a moment at least.
    fresh: bool,
    /// Others need its place.
    retiring: bool,
}

impl Ready {
    /// When it is to be unloaded; `None`: not by itself, or not while it is used.
    fn expires(&self) -> Option<Instant> {
        if self.users > 0 {
            return None;
        }
        match self.keep_alive {
            _ if self.retiring => Some(self.used),
            KeepAlive::Forever => None,
            KeepAlive::For(time) if self.fresh => {
                self.used.checked_add(time.max(Duration::from_secs(5)))
            }
            KeepAlive::For(time) => self.used.checked_add(time),
        }
    }
}

#[derive(Debug)]
enum Slot {
    /// With what those that wait for it are told if it fails.
    Loading(Arc<OnceLock<ApiError>>),
    Ready(Ready),
    /// Being freed.
    Leaving,
}

#[derive(Debug, Default)]
struct State {
    /// By file.
    slots: BTreeMap<PathBuf, Slot>,
    /// Bytes that each slot may take.
    taken: BTreeMap<PathBuf, u64>,
    /// Requests that wait for a model.
    waiting: usize,
    /// The counters of models that have left.
    past: ServiceStats,
    closing: bool,
}

struct Inner {
    catalog: Catalog,
    service: ServiceOptions,
    limits: Limits,
    state: Mutex<State>,
    /// For the thread that frees.
    condvar: Condvar,
    /// For requests that wait.
    notify: tokio::sync::Notify,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("catalog", &self.catalog).finish_non_exhaustive()
    }
}

/// The models of a running server.
#[derive(Debug)]
pub(crate) struct Models {
    inner: Arc<Inner>,
    tidying: Option<JoinHandle<()>>,
}

/// What is told of a loaded model.
#[derive(Debug)]
pub(crate) struct Status<'a> {
    pub(crate) loaded: &'a Loaded,
    /// When it is unloaded if nobody asks; `None`: not by itself.
    pub(crate) expires: Option<SystemTime>,
}

/// Whether a model is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModelState {
    Unloaded,
    Loading,
    Loaded,
}

impl ModelState {
    /// llama.cpp's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::Loading => "loading",
            Self::Loaded => "loaded",
        }
    }

    /// Whether it is there, or will be.
    pub(crate) fn is_running(self) -> bool {
        self != Self::Unloaded
    }
}

impl Status<'_> {
    /// Bytes of its weights, keys and values.
    pub(crate) fn bytes(&self) -> u64 {
        self.loaded.source.bytes + self.loaded.service.stats().kv_bytes
    }
}

impl Drop for Models {
    fn drop(&mut self) {
        self.inner.lock().closing = true;
        self.inner.changed();
        if let Some(thread) = self.tidying.take() {
            // It does not panic, and if it did there would be nothing to undo.
            let _ = thread.join();
        }
    }
}

impl Models {
    /// Nothing is loaded yet.
    pub(crate) fn new(
        catalog: Catalog,
        service: ServiceOptions,
        limits: Limits,
    ) -> std::io::Result<Self> {
        let state = Mutex::new(State::default());
        let (condvar, notify) = (Condvar::new(), tokio::sync::Notify::new());
        let inner = Arc::new(Inner { catalog, service, limits, state, condvar, notify });
        let theirs = Arc::clone(&inner);
        let thread = std::thread::Builder::new().name("hurtle-models".into());
        let tidying = Some(thread.spawn(move || theirs.tidy())?);
        Ok(Self { inner, tidying })
    }

    /// One model that is loaded already, and no other.
    pub(crate) fn one(
        name: &str,
        engine: Engine,
        template: ChatTemplate,
        service: ServiceOptions,
        limits: Limits,
    ) -> std::io::Result<Self> {
        let paths = engine.gguf().paths();
        let bytes = paths.iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum();
        let path = paths.first().cloned().unwrap_or_default();
        let source = Source::new(name.to_owned(), path.clone(), bytes);
        let catalog = Catalog {
            named: vec![source.clone()],
            others: None,
            load: Box::new(|path| Err(format!("{} is not loaded again", path.display()))),
            max_loaded: 1,
            keep_alive: Some(KeepAlive::Forever),
            memory: None,
        };
        let models = Self::new(catalog, service.clone(), limits)?;
        let loaded = Loaded::start(&source, engine, template, service, limits)?;
        let ready = models.inner.ready(loaded);
        models.inner.lock().slots.insert(path, Slot::Ready(ready));
        Ok(models)
    }

    /// Loads the first of the named models now.
    pub(crate) fn load_first(&self) -> Result<(), ApiError> {
        let Some(source) = self.inner.catalog.named.first() else { return Ok(()) };
        let failed = Arc::default();
        let options = {
            let state = &mut *self.inner.lock();
            state.slots.insert(source.path.clone(), Slot::Loading(Arc::clone(&failed)));
            self.inner.reserve(state, source)
        };
        self.inner.load(source, options, &failed);
        failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// What requests are to be called that name no model.
    pub(crate) fn first_name(&self) -> &str {
        self.inner.catalog.named.first().map_or("", |named| &named.name)
    }

    /// Where further models are; `None` if there are to be none.
    pub(crate) fn hub(&self) -> Option<&Hub> {
        self.inner.catalog.others.as_ref()
    }

    /// Those that are named from the start.
    pub(crate) fn named(&self) -> &[Source] {
        &self.inner.catalog.named
    }

    /// The model of that name, loaded if need be, and for how long it is to stay.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        name: Option<&str>,
        keep_alive: Option<KeepAlive>,
    ) -> Result<Lease, ApiError> {
        let source = self.find(name).await?;
        let lease = self.wait(&source, keep_alive);
        let lease = match self.inner.limits.timeout {
            None => lease.await?,
            Some(time) => {
                tokio::time::timeout(time, lease).await.map_err(|_| timed_out(time))??
            }
        };
        observe::note_model(&lease);
        Ok(lease)
    }

    /// Waits until the model is ready.
    async fn wait(
        &self,
        source: &Source,
        keep_alive: Option<KeepAlive>,
    ) -> Result<Lease, ApiError> {
        let inner = &self.inner;
        let mut waits: Option<Waits<'_>> = None;
        let mut failed: Option<Arc<OnceLock<ApiError>>> = None;
        loop {
            let changed = inner.notify.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(error) = failed.as_ref().and_then(|failed| failed.get()) {
                return Err(error.clone());
            }
            match inner.step(source, keep_alive)? {
                Step::Ready(lease) => return Ok(lease),
                Step::Loading(load) => failed = Some(load),
                Step::Wait => failed = None,
            }
            if waits.is_none() {
                waits = Some(inner.wait()?);
            }
            changed.await;
        }
    }

    /// Unloads a model as soon as its last answer is written.
    pub(crate) async fn unload(self: &Arc<Self>, name: Option<&str>) -> Result<(), ApiError> {
        let source = self.find(name).await?;
        if let Some(Slot::Ready(ready)) = self.inner.lock().slots.get_mut(&source.path) {
            ready.retiring = true;
        }
        self.inner.changed();
        Ok(())
    }

    /// The model that a request means.
    pub(crate) async fn find(self: &Arc<Self>, name: Option<&str>) -> Result<Source, ApiError> {
        let asked = match name {
            None | Some("" | "default") => self.first_name(),
            Some(name) => name,
        };
        // Ollama's clients name a tag.
        let plain = asked.strip_suffix(":latest").unwrap_or(asked);
        let stem = |source: &&Source| source.path.file_stem().is_some_and(|stem| stem == plain);
        let named = || self.inner.catalog.named.iter();
        let called = |source: &&Source| {
            let mut names = source.aliases.iter().chain([&source.name]);
            names.any(|name| [asked, plain].contains(&&**name)) || source.path == Path::new(asked)
        };
        let found = named().find(called);
        if let Some(found) = found.or_else(|| named().find(stem)) {
            return Ok(found.clone());
        }
        let local = self.on_disk(asked).await?.ok_or_else(|| ApiError::no_model(asked))?;
        // A file that flags name is the model that they name.
        if let Some(found) = named().find(|source| source.path == local.path) {
            return Ok(found.clone());
        }
        Ok(Source::new(plain.to_owned(), local.path, local.bytes))
    }

    /// Whether the only model that the server was started with answers for a name that is not found: one that
    /// programs have built in, because a company's service has a model of that name or because it means none.
    pub(crate) fn stands_in_for(&self, name: Option<&str>) -> bool {
        let Catalog { named, others, .. } = &self.inner.catalog;
        let is_built_in = |name: &str| {
            let word = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            let hosted = HOSTED.iter().any(|start| name.starts_with(start));
            let means_none = PLACEHOLDERS.iter().any(|word| name.eq_ignore_ascii_case(word));
            name.bytes().all(word) && !Hub::is_alias(name) && (hosted || means_none)
        };
        named.len() == 1 && others.is_some() && name.is_some_and(is_built_in)
    }

    /// The model in a store of this machine. A path is none: no request chooses which files are read.
    async fn on_disk(self: &Arc<Self>, name: &str) -> Result<Option<LocalModel>, ApiError> {
        let models = Arc::clone(self);
        let spec = spec(name);
        let find = move || {
            let hub = models.hub()?;
            let find = |spec: &str| {
                let found = hub.find_local(spec).ok().flatten();
                found.filter(|local| local.origin != Origin::File)
            };
            find(&spec).or_else(|| find(spec.strip_suffix(":latest")?))
        };
        tokio::task::spawn_blocking(find).await.map_err(|_| failed())
    }

    /// Whether that model is there.
    pub(crate) fn state(&self, source: &Source) -> ModelState {
        match self.inner.lock().slots.get(&source.path) {
            Some(Slot::Ready(ready)) if !ready.retiring => ModelState::Loaded,
            Some(Slot::Loading(_)) => ModelState::Loading,
            Some(Slot::Ready(_) | Slot::Leaving) | None => ModelState::Unloaded,
        }
    }

    /// Calls `f` for every loaded model.
    pub(crate) fn loaded<T>(&self, mut f: impl FnMut(Status<'_>) -> T) -> Vec<T> {
        let state = self.inner.lock();
        let mut told = Vec::new();
        for slot in state.slots.values() {
            let Slot::Ready(ready) = slot else { continue };
            let idle_at = match ready.keep_alive {
                KeepAlive::Forever => None,
                KeepAlive::For(time) if ready.users > 0 => SystemTime::now().checked_add(time),
                KeepAlive::For(time) => {
                    let left = time.saturating_sub(ready.used.elapsed());
                    SystemTime::now().checked_add(left)
                }
            };
            told.push(f(Status { loaded: &ready.loaded, expires: idle_at }));
        }
        told
    }

    /// What all models do and have done.
    pub(crate) fn stats(&self) -> ServiceStats {
        let mut sum = self.inner.lock().past.clone();
        for stats in self.loaded(|status| status.loaded.service.stats()) {
            add_counters(&mut sum, &stats);
            sum.slots.extend(stats.slots);
            sum.waiting += stats.waiting;
            sum.kv_bytes += stats.kv_bytes;
            sum.kv_budget += stats.kv_budget;
            sum.prefix_tokens += stats.prefix_tokens;
            sum.prefix_bytes += stats.prefix_bytes;
        }
        sum.waiting += self.inner.lock().waiting;
        sum
    }

    /// Whether it takes requests.
    pub(crate) fn is_open(&self) -> bool {
        !self.inner.lock().closing
    }

    /// Takes no more requests, and ends those that are there within `grace`.
    pub(crate) fn shut_down(&self, grace: Duration) -> ShutdownReport {
        let services: Vec<Service> = {
            let mut state = self.inner.lock();
            state.closing = true;
            let ready = state.slots.values().filter_map(|slot| match slot {
                Slot::Ready(ready) => Some(ready.loaded.service.clone()),
                _ => None,
            });
            ready.collect()
        };
        self.inner.changed();
        let mut sum = ShutdownReport::default();
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                services.iter().map(|service| scope.spawn(|| service.shutdown(grace))).collect();
            for report in threads.into_iter().filter_map(|thread| thread.join().ok()) {
                sum.finished += report.finished;
                sum.cancelled += report.cancelled;
            }
        });
        sum
    }
}

/// How hurtle calls what Ollama's clients call `hf.co/user/repo`.
pub(crate) fn spec(name: &str) -> String {
    match name.strip_prefix("hf.co/").or_else(|| name.strip_prefix("huggingface.co/")) {
        Some(rest) => format!("hf:{}", rest.strip_suffix(":latest").unwrap_or(rest)),
        None => name.to_owned(),
    }
}

fn add_counters(sum: &mut ServiceStats, stats: &ServiceStats) {
    sum.prefix_lookups += stats.prefix_lookups;
    sum.prefix_hits += stats.prefix_hits;
    sum.prompt_tokens += stats.prompt_tokens;
    sum.cached_tokens += stats.cached_tokens;
    sum.generated_tokens += stats.generated_tokens;
    sum.prompt_time += stats.prompt_time;
    sum.timed_prompt_tokens += stats.timed_prompt_tokens;
    sum.generation_time += stats.generation_time;
    sum.timed_tokens += stats.timed_tokens;
    sum.batches += stats.batches;
    sum.batch_tokens += stats.batch_tokens;
    sum.batch_sequences += stats.batch_sequences;
    sum.longest = sum.longest.max(stats.longest);
    sum.preemptions += stats.preemptions;
    sum.batch_sizes.iter_mut().zip(stats.batch_sizes).for_each(|(sum, n)| *sum += n);
}

/// What a request is told whose time was up before it had an answer.
pub(crate) fn timed_out(time: Duration) -> ApiError {
    let message = format!(
        "there was no answer within {} s, the limit of this server\nhint: --timeout sets it",
        time.as_secs_f64()
    );
    ApiError::new(ErrorKind::TimedOut, message)
}

fn failed() -> ApiError {
    ApiError::new(ErrorKind::Internal, "looking for the model failed")
}

/// How a request for a model goes on.
enum Step {
    Ready(Lease),
    Loading(Arc<OnceLock<ApiError>>),
    Wait,
}

/// One of those that wait.
struct Waits<'a>(&'a Inner);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl Inner {
    /// Nothing that holds the lock leaves anything half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.condvar.notify_all();
        self.notify.notify_waiters();
    }

    fn wait(&self) -> Result<Waits<'_>, ApiError> {
        let mut state = self.lock();
        let waiting = state.waiting;
        if waiting >= self.service.queue {
            let message = format!(
                "{waiting} requests are waiting for a model to be loaded, which is the limit\nhint: try again later"
            );
            return Err(ApiError::new(ErrorKind::QueueFull, message));
        }
        state.waiting += 1;
        Ok(Waits(self))
    }

    /// Takes the model if it is ready, else sees to it that it will be.
    fn step(
        self: &Arc<Self>,
        source: &Source,
        keep_alive: Option<KeepAlive>,
    ) -> Result<Step, ApiError> {
        let path = &source.path;
        let state = &mut *self.lock();
        if state.closing {
            return Err(ApiError::new(ErrorKind::Unavailable, "the server is shutting down"));
        }
        match state.slots.get_mut(path) {
            Some(Slot::Ready(ready)) if !ready.retiring => {
                ready.users += 1;
                ready.fresh = false;
                ready.keep_alive = keep_alive.unwrap_or(ready.keep_alive);
                let loaded = Some(Arc::clone(&ready.loaded));
                return Ok(Step::Ready(Lease(Arc::new(Use { loaded, inner: Arc::clone(self) }))));
            }
            Some(Slot::Loading(failed)) => return Ok(Step::Loading(Arc::clone(failed))),
            Some(Slot::Ready(_) | Slot::Leaving) => return Ok(Step::Wait),
            None => {}
        }
        if !self.has_place(state, source) {
            return Ok(Step::Wait);
        }
        let options = self.reserve(state, source);
        let failed: Arc<OnceLock<ApiError>> = Arc::default();
        state.slots.insert(path.clone(), Slot::Loading(Arc::clone(&failed)));
        let (inner, theirs, wanted) = (Arc::clone(self), Arc::clone(&failed), source.clone());
        let thread = std::thread::Builder::new().name("hurtle-load".into());
        let started = thread.spawn(move || inner.load(&wanted, options, &theirs));
        if let Err(error) = started {
            state.slots.remove(path);
            state.taken.remove(path);
            let message = format!("there is no thread to load the model with: {error}");
            return Err(ApiError::new(ErrorKind::Unavailable, message));
        }
        Ok(Step::Loading(failed))
    }

    /// Whether one more model may be loaded now. If not, one of the others is told to leave: rather one that
    /// nobody uses, rather one that no flag names, rather one that was not used for long.
    fn has_place(&self, state: &mut State, source: &Source) -> bool {
        let full = state.slots.len() >= self.catalog.max_loaded.max(1);
        let short = self.free(state).is_some_and(|free| free < source.bytes);
        if state.slots.is_empty() || !(full || short) {
            return true;
        }
        let leaving = |slot: &Slot| match slot {
            Slot::Leaving => true,
            Slot::Ready(ready) => ready.retiring,
            Slot::Loading(_) => false,
        };
        if !state.slots.values().any(leaving) {
            let named = |path: &Path| self.catalog.named.iter().any(|source| source.path == path);
            let ready = state.slots.iter_mut().filter_map(|(path, slot)| match slot {
                Slot::Ready(ready) => Some((path, ready)),
                _ => None,
            });
            let victim =
                ready.min_by_key(|(path, ready)| (ready.users > 0, named(path), ready.used));
            if let Some((_, ready)) = victim {
                ready.retiring = true;
                self.condvar.notify_all();
            }
        }
        false
    }

    /// Bytes that no model has a claim to.
    fn free(&self, state: &State) -> Option<u64> {
        Some(self.catalog.memory?.saturating_sub(state.taken.values().sum()))
    }

    /// Puts down what a model will take: its files, and half of what is then left for keys and values.
    fn reserve(&self, state: &mut State, source: &Source) -> ServiceOptions {
        let mut options = self.service.clone();
        let bytes = source.bytes;
        if let Some(free) = self.free(state) {
            let kv_bytes = (free.saturating_sub(bytes) / 2).max(LEAST_KV_BYTES);
            options.kv_bytes = Some(options.kv_bytes.map_or(kv_bytes, |most| most.min(kv_bytes)));
        }
        state.taken.insert(source.path.clone(), bytes + options.kv_bytes.unwrap_or(0));
        options
    }

    /// Loads a model into the slot that is there for it.
    fn load(&self, source: &Source, options: ServiceOptions, failed: &OnceLock<ApiError>) {
        let path = &source.path;
        let load = || {
            let (engine, template) = (self.catalog.load)(path)?;
            // Packed, weights may take more than in the file.
            let more = engine.model().weight_bytes().saturating_sub(source.bytes);
            if let Some(taken) = self.lock().taken.get_mut(path) {
                *taken = taken.saturating_add(more);
            }
            let loaded = Loaded::start(source, engine, template, options, self.limits);
            loaded.map_err(|error| error.to_string())
        };
        let result = catch_unwind(AssertUnwindSafe(load))
            .unwrap_or_else(|_| Err("an internal error".to_owned()));
        let mut state = self.lock();
        match result {
            Ok(loaded) => {
                state.slots.insert(path.clone(), Slot::Ready(self.ready(loaded)));
            }
            Err(why) => {
                state.slots.remove(path);
                state.taken.remove(path);
                let message = format!("model '{}' cannot be loaded: {why}", source.name);
                // Only this thread sets it.
                let _ = failed.set(ApiError::new(ErrorKind::Internal, message));
            }
        }
        drop(state);
        self.changed();
    }

    fn ready(&self, loaded: Loaded) -> Ready {
        let named = self.catalog.named.iter().any(|named| named.path == loaded.source.path);
        let default = if named { KeepAlive::Forever } else { DEFAULT_KEEP_ALIVE };
        Ready {
            loaded: Arc::new(loaded),
            users: 0,
            keep_alive: self.catalog.keep_alive.unwrap_or(default),
            used: Instant::now(),
            fresh: true,
            retiring: false,
        }
    }

    /// Frees models that leave, until the server ends.
    fn tidy(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let over = state.slots.iter().find_map(|(path, slot)| match slot {
                Slot::Ready(ready) if ready.expires().is_some_and(|end| end <= now) => {
                    Some(path.clone())
                }
                _ => None,
            });
            if let Some(path) = over {
                let left = state.slots.insert(path.clone(), Slot::Leaving);
                drop(state);
                let stats = match &left {
                    Some(Slot::Ready(ready)) => {
                        // Nothing runs; but its last step may not have been counted yet.
                        ready.loaded.service.shutdown(Duration::ZERO);
                        ready.loaded.service.stats()
                    }
                    _ => ServiceStats::default(),
                };
                drop(left);
                state = self.lock();
                state.slots.remove(&path);
                state.taken.remove(&path);
                add_counters(&mut state.past, &stats);
                self.changed();
                continue;
            }
            if state.closing {
                return;
            }
            let next = state.slots.values().filter_map(|slot| match slot {
                Slot::Ready(ready) => ready.expires(),
                _ => None,
            });
            state = match next.min() {
                None => self.condvar.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(end) => {
                    let wait = self.condvar.wait_timeout(state, end.saturating_duration_since(now));
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}
