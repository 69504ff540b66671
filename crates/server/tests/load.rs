//! Many clients at once, of which many misbehave: they leave in the middle of an answer, read slowly or not at
//! all, send halves of requests, nonsense, and far too much. Those who behave get the very answer that
//! they would get alone, nothing stays occupied, and memory does not grow.
//!
//! Some seconds by default; for longer:
//! `HURTLE_LOAD_CLIENTS=64 HURTLE_LOAD_SECONDS=600 cargo test --profile checked -p hurtle-server --test load -- --nocapture`
use hurtle_engine::{Arithmetic, Engine, EngineOptions, KvType, ServiceOptions};
use hurtle_server::{Server, ServerOptions, connections};
use hurtle_text::ChatTemplate;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const ROUNDS: usize = 4;
const MAX_BODY: usize = 64 << 10;
/// A request that takes longer is stuck.
const STUCK: Duration = Duration::from_secs(120);
/// What memory may grow by after the first round: allocators keep some.
const GROWTH: u64 = 48 << 20;

/// A server of a tiny model, with less KV memory than its sequences want.
fn server() -> Server {
    let options = EngineOptions {
        threads: Some(1),
        arithmetic: Arithmetic::Exact,
        kv_type_k: KvType::F32,
        kv_type_v: KvType::F32,
        ..EngineOptions::default()
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs/llama.gguf");
    let engine = Engine::load(&golden, &options).expect("loaded");
    let (template, _) = ChatTemplate::fallback_for(engine.gguf().metadata(), engine.tokenizer())
        .expect("a template");
    let kv_bytes = engine.model().kv_cache(KvType::F32, KvType::F32).bytes_for(700) as u64;
    let options = ServerOptions {
        model: "tiny".into(),
        api_keys: Vec::new(),
        max_body: MAX_BODY,
        service: ServiceOptions { kv_bytes: Some(kv_bytes), ..ServiceOptions::default() },
        ..ServerOptions::default()
    };
    Server::start(engine, template, options).expect("started")
}

fn setting(name: &str, default: usize) -> usize {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

/// A question: where it goes, and its body.
struct Question {
    path: &'static str,
    body: Value,
}

impl Question {
    fn request(&self, stream: bool) -> Vec<u8> {
        let mut body = self.body.clone();
        body["stream"] = stream.into();
        post(self.path, body.to_string().as_bytes())
    }

    /// The text of an answer.
    fn text(&self, body: &str, stream: bool) -> String {
        let values = body.lines().filter_map(|line| {
            let line = line.strip_prefix("data: ").unwrap_or(line);
            serde_json::from_str::<Value>(line).ok()
        });
        let places: &[&str] = match (self.path, stream) {
            ("/v1/chat/completions", false) => &["/choices/0/message/content"],
            ("/v1/chat/completions", true) => &["/choices/0/delta/content"],
            ("/v1/completions", _) => &["/choices/0/text"],
            ("/v1/messages", false) => &["/content/0/text"],
            ("/v1/messages", true) => &["/delta/text"],
            _ => &["/message/content", "/response"],
        };
        let texts = values.flat_map(|value| {
            let text = |place: &&str| value.pointer(place)?.as_str().map(str::to_owned);
            places.iter().filter_map(text).collect::<String>().chars().collect::<Vec<_>>()
        });
        texts.collect()
    }
}

/// Questions to every API, which partly begin alike, of some to some hundred tokens.
fn questions() -> Vec<Question> {
    let question = |i: usize| {
        let text = format!("{} and {i}", "a long story ".repeat(1 + (i * i) % 30));
        let messages = json!([{"role": "user", "content": text}]);
        let (n, seed) = (4 + (i * 37) % 150, i as u64);
        let options = json!({"num_predict": n, "seed": seed});
        let (path, body) = match i % 5 {
            0 => (
                "/v1/chat/completions",
                json!({"messages": messages, "max_tokens": n, "seed": seed}),
            ),
            1 => ("/v1/completions", json!({"prompt": text, "max_tokens": n, "seed": seed})),
            // Without a parameter for seeds; greedy.
            2 => (
                "/v1/messages",
                json!({"model": "tiny", "messages": messages, "max_tokens": n, "temperature": 0}),
            ),
            3 => ("/api/chat", json!({"model": "tiny", "messages": messages, "options": options})),
            _ => (
                "/api/generate",
                json!({"model": "tiny", "prompt": text, "raw": true, "options": options}),
            ),
        };
        Question { path, body }
    };
    (0..20).map(question).collect()
}

/// HTTP/1.0 ends a reply with the connection, however it is streamed.
fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!("POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    request.insert_str(request.len() - 2, "Content-Type: application/json\r\n");
    [request.as_bytes(), body].concat()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(STUCK)).expect("a timeout");
    stream.set_write_timeout(Some(STUCK)).expect("a timeout");
    stream
}

/// The status and the body of a reply. Between pieces of `piece` bytes the reader waits.
fn exchange(address: SocketAddr, request: &[u8], piece: usize, pause: Duration) -> (u16, String) {
    let mut stream = connect(address);
    // A server that refuses a body may close before it has read all of it.
    let _ = stream.write_all(request);
    let mut reply = Vec::new();
    let mut buffer = vec![0; piece];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => reply.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("stuck: {error}"),
        }
        std::thread::sleep(pause);
    }
    let reply = String::from_utf8(reply).expect("UTF-8");
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or(0), body.to_owned())
}

fn get(address: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    let (status, body) = exchange(address, request.as_bytes(), 4096, Duration::ZERO);
    assert_eq!(status, 200, "{path}: {body}");
    body
}

/// Bodies that must be refused, and what with.
fn nonsense(random: &mut fastrand::Rng) -> (Vec<u8>, u16) {
    let message = |content: &str| json!([{"role": "user", "content": content}]);
    let with = |key: &str, value: Value| {
        let mut body = json!({"messages": message("hi"), "max_tokens": 4});
        body[key] = value;
        (body.to_string().into_bytes(), 400)
    };
    match random.u8(0..10) {
        0 => (b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\xfe\"}]}".into(), 400),
        1 => (b"{\"messages\": [".into(), 400),
        2 => ("[".repeat(50_000).into(), 400),
        3 => (format!("{}1{}", "{\"a\":".repeat(9_000), "}".repeat(9_000)).into(), 400),
        4 => (vec![b' '; MAX_BODY + 1 + random.usize(0..MAX_BODY)], 413),
        5 => ((0..random.usize(1..2000)).map(|_| random.u8(..)).collect(), 400),
        6 => with("messages", json!([{"role": "<|im_start|>", "content": "hi"}])),
        7 => with("n", json!(1_000_000_000)),
        8 => with("max_tokens", json!({"deep": [[[[]]]]})),
        _ => with("messages", message(&"too long ".repeat(5_000))),
    }
}

/// A client does one thing.
fn act(address: SocketAddr, questions: &[Question], alone: &[String], random: &mut fastrand::Rng) {
    let i = random.usize(0..questions.len());
    let question = &questions[i];
    let stream = random.bool();
    let check = |piece: usize, pause: Duration| {
        let request = question.request(stream);
        let start = Instant::now();
        let mut reply = exchange(address, &request, piece, pause);
        // Too many wait already.
        while reply.0 == 429 && start.elapsed() < STUCK {
            std::thread::sleep(Duration::from_millis(100));
            reply = exchange(address, &request, piece, pause);
        }
        let (status, body) = reply;
        assert_eq!(status, 200, "{body}");
        assert_eq!(question.text(&body, stream), alone[i], "{} {body}", question.body);
    };
    match random.u8(0..12) {
        0..4 => check(4096, Duration::ZERO),
        4 => check(300, Duration::from_millis(random.u64(0..20))),
        // Leaves before the answer, or in the middle of it.
        5..7 => {
            let mut client = connect(address);
            client.write_all(&question.request(stream)).expect("sent");
            let _ = client.read(&mut vec![0; random.usize(1..600)]).expect("read");
        }
        7 => {
            let mut client = connect(address);
            client.write_all(&question.request(stream)).expect("sent");
            std::thread::sleep(Duration::from_millis(random.u64(0..50)));
        }
        // Reads nothing of a long answer.
        8 => {
            let body = json!({"prompt": "a", "n": 16, "max_tokens": 100, "ignore_eos": true, "stream": true});
            let mut client = connect(address);
            client.write_all(&post("/v1/completions", body.to_string().as_bytes())).expect("sent");
            std::thread::sleep(Duration::from_millis(random.u64(0..200)));
        }
        // Half a request.
        9 => {
            let request = question.request(stream);
            let mut client = connect(address);
            let half = random.usize(0..request.len());
            client.write_all(&request[..half]).expect("sent");
        }
        // No HTTP at all.
        10 => {
            let noise: Vec<u8> = (0..random.usize(1..500)).map(|_| random.u8(..)).collect();
            let mut client = connect(address);
            // The server may close at the first byte.
            let _ = client.write_all(&noise);
        }
        _ => {
            let (body, expected) = nonsense(random);
            let request = post("/v1/chat/completions", &body);
            let (status, text) = exchange(address, &request, 4096, Duration::ZERO);
            // 0: the connection was closed before the refusal of a large body was read.
            assert!(status == expected || (expected == 413 && status == 0), "{status}: {text}");
        }
    }
}

/// Bytes of memory in use, where the system tells.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[test]
fn answers_are_those_given_alone_whoever_else_is_there() {
    let n_clients = setting("HURTLE_LOAD_CLIENTS", 24);
    let seconds = setting("HURTLE_LOAD_SECONDS", 8);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = server();
    let (time, never) = (Duration::from_secs(30), std::future::pending());
    runtime.spawn(connections::serve(listener, server.router(), time, never));

    let questions = questions();
    let alone: Vec<String> = questions
        .iter()
        .map(|question| {
            let (status, body) = exchange(address, &question.request(false), 4096, Duration::ZERO);
            assert_eq!(status, 200, "{body}");
            question.text(&body, false)
        })
        .collect();
    // The model may end at once.
    let n_empty = alone.iter().filter(|text| text.is_empty()).count();
    assert!(n_empty < questions.len() / 2, "{alone:?}");

    let n_actions = AtomicUsize::new(0);
    let mut memory = Vec::new();
    for round in 0..ROUNDS {
        let end = Instant::now() + Duration::from_secs_f64(seconds as f64 / ROUNDS as f64);
        std::thread::scope(|scope| {
            for client in 0..n_clients {
                let (questions, alone, n_actions) = (&questions, &alone, &n_actions);
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed((round * n_clients + client) as u64);
                    while Instant::now() < end {
                        act(address, questions, alone, &mut random);
                        n_actions.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        // All have gone: whatever was begun ends.
        let start = Instant::now();
        let idle = ["requests_processing 0\n", "requests_deferred 0\n"];
        while !idle.iter().all(|line| get(address, "/metrics").contains(line)) {
            assert!(start.elapsed() < STUCK, "still busy: {}", get(address, "/slots"));
            std::thread::sleep(Duration::from_millis(50));
        }
        memory.extend(resident());
    }
    let metrics = get(address, "/metrics");
    let preempted = metrics.lines().find(|line| line.starts_with("llamacpp:preemptions_total"));
    println!(
        "{} actions of {n_clients} clients; MiB after each round: {:?}; {}",
        n_actions.into_inner(),
        memory.iter().map(|bytes| bytes >> 20).collect::<Vec<_>>(),
        preempted.unwrap_or("no preemptions"),
    );
    if let [first, .., last] = memory[..] {
        assert!(last < first + GROWTH, "memory grows: {memory:?}");
    }
    assert_eq!(server.shut_down(STUCK).cancelled, 0);
}
