//! What a request was and what became of it: its id, a line in the log, and times for `/metrics`.
//!
//! A [`Record`] goes with a request, as what its task knows, to the engine's events and to the end of the reply's
//! body. The last of them to let it go writes the line, so that it tells of streams that a client gave up as well.
use crate::models::Lease;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Where the id of a request stands.
const ID: &str = "x-request-id";

/// What a request that its client gave up before the reply counts as, as nginx has it.
const GIVEN_UP: u16 = 499;

tokio::task_local! {
    static RECORD: Arc<Record>;
}

/// Times of all requests, in seconds, and what the engine's service does not count.
#[derive(Debug)]
pub(crate) struct Times {
    first_token: Histogram,
    per_token: Histogram,
    queued: Histogram,
    /// Tokens that were read, but not to write an answer.
    embedded: AtomicU64,
    /// Makes ids that nobody guesses.
    ids: RandomState,
    n_requests: AtomicU64,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            first_token: Histogram::default(),
            per_token: Histogram::default(),
            queued: Histogram::default(),
            embedded: AtomicU64::new(0),
            ids: RandomState::new(),
            n_requests: AtomicU64::new(0),
        }
    }
}

impl Times {
    /// The id that a client gives if it can be written into a log, else a new one.
    fn id(&self, headers: &HeaderMap) -> String {
        let given = headers.get(ID).and_then(|id| id.to_str().ok());
        let fits =
            |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
        given.filter(fits).map_or_else(
            || {
                let number = self.n_requests.fetch_add(1, Ordering::Relaxed);
                format!("{:016x}", self.ids.hash_one(number))
            },
            str::to_owned,
        )
    }

    /// In Prometheus' text format.
    pub(crate) fn write(&self, text: &mut String) {
        let histograms = [
            (
                "time_to_first_token_seconds",
                "From a request to the first token of its answer.",
                &self.first_token,
            ),
            (
                "time_per_output_token_seconds",
                "Between tokens of an answer, on average.",
                &self.per_token,
            ),
            ("queue_time_seconds", "From a request to its place beside others.", &self.queued),
        ];
        for (name, help, histogram) in histograms {
            let (counts, sum) = histogram.read();
            let bounds = BOUNDS.iter().map(|micros| *micros as f64 / 1e6);
            write_histogram(text, name, help, bounds, &counts, sum);
        }
        // Writing to a text does not fail.
        let _ = write!(
            text,
            "# HELP hurtle:embedding_tokens_total Tokens of texts for vectors and scores.\n\
             # TYPE hurtle:embedding_tokens_total counter\nhurtle:embedding_tokens_total {}\n",
            self.embedded()
        );
    }

    /// Tokens of texts for vectors and scores.
    pub(crate) fn embedded(&self) -> u64 {
        self.embedded.load(Ordering::Relaxed)
    }
}

/// Upper bounds of a histogram's buckets, in microseconds.
const BOUNDS: [u64; 17] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    60_000_000,
    180_000_000,
    600_000_000,
];

/// How often times of which length were seen.
#[derive(Debug, Default)]
struct Histogram {
    /// The last one is for what is longer than every bound.
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    fn see(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.counts[BOUNDS.partition_point(|&bound| bound < micros)]
            .fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Counts, and the sum in seconds.
    fn read(&self) -> (Vec<u64>, f64) {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        (counts.collect(), self.micros.load(Ordering::Relaxed) as f64 / 1e6)
    }
}

/// Writes a histogram; `counts` has one more bucket than there are `bounds`.
pub(crate) fn write_histogram(
    text: &mut String,
    name: &str,
    help: &str,
    bounds: impl Iterator<Item = f64>,
    counts: &[u64],
    sum: f64,
) {
    // Writing to a text does not fail.
    let _ = write!(text, "# HELP hurtle:{name} {help}\n# TYPE hurtle:{name} histogram\n");
    let mut total = 0;
    let bounds = bounds.map(|bound| bound.to_string()).chain(["+Inf".to_owned()]);
    for (bound, count) in bounds.zip(counts) {
        total += count;
        let _ = writeln!(text, "hurtle:{name}_bucket{{le=\"{bound}\"}} {total}");
    }
    let _ = write!(text, "hurtle:{name}_sum {sum}\nhurtle:{name}_count {total}\n");
}

/// What is known of a request.
#[derive(Debug)]
pub(crate) struct Record {
    id: String,
    method: String,
    path: String,
    start: Instant,
    times: Arc<Times>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    status: Option<u16>,
    model: Option<String>,
    prompt_tokens: usize,
    cached_tokens: usize,
    generated_tokens: usize,
    queued: Option<Duration>,
    first_token: Option<Duration>,
    /// Whether the client got all of the reply.
    complete: bool,
}

impl Record {
    fn known(&self, note: impl FnOnce(&mut Known)) {
        note(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// An answer has its place.
    pub(crate) fn started(&self, queued: Duration) {
        self.times.queued.see(queued);
        self.known(|known| {
            known.queued = Some(known.queued.map_or(queued, |most| most.max(queued)))
        });
    }

    /// An answer has its first token.
    pub(crate) fn first_token(&self) {
        let time = self.start.elapsed();
        self.times.first_token.see(time);
        self.known(|known| known.first_token = known.first_token.or(Some(time)));
    }

    /// An answer has ended.
    pub(crate) fn finished(&self, finished: &hurtle_engine::Finished) {
        let n = finished.n_generated;
        if n > 1 {
            let seconds = finished.timings.predicted_ms / 1e3 / (n - 1) as f64;
            self.times.per_token.see(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        }
        self.known(|known| {
            known.prompt_tokens += finished.n_prompt;
            known.cached_tokens += finished.n_cached;
            known.generated_tokens += n;
        });
    }
}

/// The line in the log.
impl Drop for Record {
    fn drop(&mut self) {
        let known = std::mem::take(self.known.get_mut().unwrap_or_else(PoisonError::into_inner));
        let millis = |time: Duration| (time.as_secs_f64() * 1e5).round() / 1e2;
        let tokens = |n: usize| known.model.is_some().then_some(n as u64);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    id = self.id,
                    method = self.method,
                    path = self.path,
                    status = known.status.unwrap_or(GIVEN_UP),
                    model = known.model.as_deref(),
                    prompt_tokens = tokens(known.prompt_tokens),
                    cached_tokens = tokens(known.cached_tokens),
                    generated_tokens = tokens(known.generated_tokens),
                    queue_ms = known.queued.map(millis),
                    first_token_ms = known.first_token.map(millis),
                    total_ms = millis(self.start.elapsed()),
                    complete = known.complete,
                    "request"
                )
            };
        }
        // What watches the server would fill the log.
        match self.path.as_str() {
            "/health" | "/v1/health" | "/metrics" => line!(debug),
            _ => line!(info),
        }
    }
}

/// The record of the request that this task serves.
pub(crate) fn current() -> Option<Arc<Record>> {
    RECORD.try_with(Arc::clone).ok()
}

/// Notes which model a request is for.
pub(crate) fn note_model(model: &Lease) {
    if let Some(record) = current() {
        record.known(|known| known.model = Some(model.source.name.clone()));
    }
}

/// Notes tokens that were read, but not to write an answer.
pub(crate) fn note_tokens(n: usize) {
    if let Some(record) = current() {
        record.times.embedded.fetch_add(n as u64, Ordering::Relaxed);
        record.known(|known| known.prompt_tokens += n);
    }
}

/// Serves a request, and records it.
pub(crate) async fn observe(
    times: Arc<Times>,
    request: Request<Body>,
    serve: impl AsyncFnOnce(Request<Body>) -> Response<Body>,
) -> Response<Body> {
    let id = times.id(request.headers());
    let record = Arc::new(Record {
        id: id.clone(),
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        start: Instant::now(),
        times,
        known: Mutex::default(),
    });
    let mut reply = RECORD.scope(Arc::clone(&record), serve(request)).await;
    record.known(|known| known.status = Some(reply.status().as_u16()));
    if let Ok(id) = HeaderValue::try_from(id) {
        reply.headers_mut().insert(ID, id);
    }
    reply.map(|body| Body::new(Recorded { body, record }))
}

/// A body that keeps its record until it has ended.
struct Recorded {
    body: Body,
    record: Arc<Record>,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) {
            self.record.known(|known| known.complete = true);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.record.known(|known| known.complete = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_buckets() {
        let histogram = Histogram::default();
        for micros in [500, 1_000, 1_001, 3_600_000_000] {
            histogram.see(Duration::from_micros(micros));
        }
        let (counts, sum) = histogram.read();
        assert_eq!((counts[0], counts[1], counts[BOUNDS.len()]), (2, 1, 1));
        assert!((sum - 3_600.002_501).abs() < 1e-9, "{sum}");
        let mut text = String::new();
        write_histogram(&mut text, "x", "X.", [1.0, 2.5].into_iter(), &[2, 0, 1], 4.5);
        let expected = "# HELP hurtle:x X.\n# TYPE hurtle:x histogram\nhurtle:x_bucket{le=\"1\"} 2\n\
            hurtle:x_bucket{le=\"2.5\"} 2\nhurtle:x_bucket{le=\"+Inf\"} 3\nhurtle:x_sum 4.5\nhurtle:x_count 3\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn ids_are_taken_or_made() {
        let times = Times::default();
        let id = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ID, HeaderValue::from_str(value).expect("a value"));
            times.id(&headers)
        };
        assert_eq!(id("abc-1"), "abc-1");
        for wrong in ["", "a b", &"x".repeat(129)] {
            assert_eq!(id(wrong).len(), 16, "{wrong}");
        }
        assert_ne!(times.id(&HeaderMap::new()), times.id(&HeaderMap::new()));
    }
}
