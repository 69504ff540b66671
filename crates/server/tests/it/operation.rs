//! Ids, the log, limits, web pages of others, and connections that nobody else can read.
use crate::common::{ask, golden, method, options, post, refused, send, server, server_of};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use hurtle_server::connections;
use hurtle_server::origin::{Hosts, Origins};
use hurtle_server::tls::{Tls, TlsListener};
use hurtle_server::{Limits, Server, ServerOptions};
use serde_json::{Value, json};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_stream::StreamExt as _;
use tower::ServiceExt as _;

fn limited(limits: Limits) -> Server {
    server_of(&golden("llama.gguf"), ServerOptions { limits, ..options() })
}

fn with_origins(origins: &[&str]) -> Server {
    let names: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
    let origins = Origins::of(&names).expect("origins");
    server_of(&golden("llama.gguf"), ServerOptions { origins, ..options() })
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("a log").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines(&self) -> Vec<Value> {
        let bytes = self.0.lock().expect("a log");
        let text = std::str::from_utf8(&bytes).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

#[test]
fn each_request_has_an_id_and_a_line_in_the_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(move || writer.clone())
        .finish();
    // The last to let a record go may be the engine's thread.
    tracing::subscriber::set_global_default(subscriber).expect("the only log");
    let line = |id: &str| {
        for _ in 0..600 {
            if let Some(line) = log.lines().into_iter().find(|line| line["id"] == id) {
                return line;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no line for {id}");
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    runtime.block_on(async {
        let server = server("llama");
        let request = |id: &str, path: &str, body: Value| {
            let request = Request::post(path).header("x-request-id", id);
            request.body(Body::from(body.to_string())).expect("a request")
        };
        let body = json!({"prompt": "abc", "max_tokens": 5, "ignore_eos": true});
        let reply =
            server.router().oneshot(request("first", "/v1/completions", body.clone())).await;
        let reply = reply.expect("a reply");
        assert_eq!(reply.headers()["x-request-id"], "first");
        assert!(reply.headers().contains_key("content-type"));
        axum::body::to_bytes(reply.into_body(), usize::MAX).await.expect("a body");
        let first = line("first");
        assert_eq!((&first["method"], &first["path"]), (&json!("POST"), &json!("/v1/completions")));
        assert_eq!((&first["status"], &first["complete"]), (&json!(200), &json!(true)));
        assert_eq!((&first["model"], &first["generated_tokens"]), (&json!("tiny"), &json!(5)));
        for time in ["queue_ms", "first_token_ms", "total_ms"] {
            assert!(first[time].as_f64().is_some_and(|ms| ms >= 0.0), "{time}: {first}");
        }
        assert!(first["first_token_ms"].as_f64() <= first["total_ms"].as_f64(), "{first}");

        let (status, _) = send(&server, request("second", "/v1/completions", json!({}))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let second = line("second");
        assert_eq!((&second["status"], &second["model"]), (&json!(400), &Value::Null));

        // A stream that is given up.
        let mut endless = body;
        endless["stream"] = true.into();
        endless["max_tokens"] = (-1).into();
        let reply = server.router().oneshot(request("third", "/v1/completions", endless)).await;
        let mut stream = reply.expect("a reply").into_body().into_data_stream();
        // Two tokens at least, so that there is a time between them.
        for _ in 0..3 {
            stream.next().await.expect("a piece").expect("bytes");
        }
        drop(stream);
        let third = line("third");
        assert_eq!((&third["status"], &third["complete"]), (&json!(200), &json!(false)));
        assert!(third["generated_tokens"].as_u64().is_some_and(|n| n > 0), "{third}");

        // An id that could forge lines is replaced.
        let reply = server.router().oneshot(request("a b", "/v1/nowhere", json!({}))).await;
        let made = reply.expect("a reply").headers()["x-request-id"].clone();
        assert_eq!(made.len(), 16);
        assert_eq!(line(made.to_str().expect("ASCII"))["status"], 404);

        let request = Request::get("/metrics").body(Body::empty()).expect("a request");
        let reply = server.router().oneshot(request).await.expect("a reply");
        let started = reply.headers()["process-start-time-unix"].to_str().expect("ASCII");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later").as_secs();
        assert!(started.parse::<u64>().is_ok_and(|time| (1..=now).contains(&time)), "{started}");

        let (_, metrics) = method(&server, Method::GET, "/metrics", "").await;
        for name in
            ["time_to_first_token_seconds", "queue_time_seconds", "time_per_output_token_seconds"]
        {
            assert!(metrics.contains(&format!("hurtle:{name}_count 2\n")), "{name}: {metrics}");
        }
        assert!(metrics.contains("hurtle:model_bytes{model=\"tiny\"}"), "{metrics}");
        let passes = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|n| n.trim().parse::<u64>().ok()).expect("a number")
        };
        assert_eq!(passes("hurtle:batch_size_tokens_count"), passes("llamacpp:n_decode_total"));
        assert_eq!(passes("hurtle:batch_size_tokens_sum"), passes("llamacpp:batch_tokens_total"));
    });
}

#[tokio::test]
async fn limits_hold_whatever_is_asked_for() {
    let server = limited(Limits { max_prompt: Some(10), max_predict: Some(6), timeout: None });
    let body = json!({"prompt": "abc", "max_tokens": 50, "ignore_eos": true});
    let reply = ask(&server, "/v1/completions", body).await;
    assert_eq!(reply["usage"]["completion_tokens"], 6);
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    let body = json!({"prompt": vec![1; 11], "max_tokens": 1});
    refused(&server, "/v1/completions", body, 400, &["11 tokens", "10 at most"]).await;
}

#[tokio::test]
async fn time_is_limited() {
    // Until their contexts are full: far more than fits into the time.
    let body = json!({"prompt": vec!["abc"; 8], "n": 2, "ignore_eos": true});
    let all = ask(&server("llama"), "/v1/completions", body.clone()).await;
    let timeout = Some(Duration::from_millis(5));
    let limited_server = limited(Limits { timeout, ..Limits::default() });
    let (status, text) = post(&limited_server, "/v1/completions", body).await;
    match status {
        StatusCode::OK => {
            let part: Value = serde_json::from_str(&text).expect("JSON");
            let n = |reply: &Value| reply["usage"]["completion_tokens"].as_u64().expect("a number");
            assert!(n(&part) < n(&all), "{} of {}", n(&part), n(&all));
            assert_eq!(part["choices"][0]["finish_reason"], "length");
        }
        _ => assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{text}"),
    }
    let none = limited(Limits { timeout: Some(Duration::from_nanos(1)), ..Limits::default() });
    let body = json!({"prompt": "abc", "ignore_eos": true});
    refused(&none, "/v1/completions", body, 504, &["timeout_error", "--timeout"]).await;
    let texts = vec!["to be read ".repeat(8); 1000];
    refused(&none, "/v1/embeddings", json!({"input": texts}), 504, &["--timeout"]).await;
}

#[tokio::test]
async fn pages_of_others_are_let_in_only_if_the_server_says_so() {
    let check = async |server: &Server, origin: &str, status: u16, allowed: Option<&str>| {
        let request = Request::post("/tokenize").header("host", "127.0.0.1:8080");
        let request = request.header("origin", origin).body(Body::from(r#"{"content": "a"}"#));
        let reply = server.router().oneshot(request.expect("a request")).await.expect("a reply");
        assert_eq!(reply.status().as_u16(), status, "{origin}");
        let header = reply.headers().get("access-control-allow-origin");
        assert_eq!(header.map(|value| value.to_str().expect("ASCII")), allowed, "{origin}");
        let body = axum::body::to_bytes(reply.into_body(), usize::MAX).await.expect("a body");
        let hint = body.windows(13).any(|words| words == b"--cors-origin");
        assert_eq!(hint, status == 403, "{body:?}");
    };
    let closed = with_origins(&[]);
    check(&closed, "http://127.0.0.1:8080", 200, None).await;
    check(&closed, "https://a.example", 403, None).await;
    let open = with_origins(&["https://a.example"]);
    check(&open, "https://a.example", 200, Some("https://a.example")).await;
    check(&open, "https://b.example", 403, None).await;
    check(&with_origins(&["*"]), "https://b.example", 200, Some("*")).await;
    // What a browser asks before it sends JSON or a key.
    let ask_first = async |server: &Server| {
        let request = Request::options("/v1/chat/completions")
            .header("origin", "https://a.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type");
        let request = request.body(Body::empty()).expect("a request");
        server.router().oneshot(request).await.expect("a reply")
    };
    let reply = ask_first(&open).await;
    assert_eq!(reply.headers()["access-control-allow-origin"], "https://a.example");
    assert!(reply.headers().contains_key("access-control-allow-headers"));
    let reply = ask_first(&closed).await;
    assert!(!reply.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_page_that_gives_its_name_our_address_is_refused() {
    let hosts = Hosts::of([127, 0, 0, 1].into(), &["a.example".to_owned()]);
    let server = server_of(&golden("llama.gguf"), ServerOptions { hosts, ..options() });
    for (host, status) in [("localhost:8080", 200), ("a.example", 200), ("b.example:8080", 403)] {
        for path in ["/", "/health", "/v1/models"] {
            let request = Request::get(path).header("host", host).body(Body::empty());
            let (found, text) = send(&server, request.expect("a request")).await;
            assert_eq!(found.as_u16(), status, "{host} {path}: {text}");
            assert_eq!(text.contains("--allowed-host b.example"), status == 403, "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_finish_a_request_is_not_waited_for() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let read_timeout = Duration::from_millis(300);
    let server = server_of(&golden("llama.gguf"), ServerOptions { read_timeout, ..options() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let serving = connections::serve(listener, server.router(), read_timeout, stopped);
    let serving = tokio::spawn(serving);
    // What is sent in pieces, and all that is answered until the server closes.
    let talk = async |pieces: &[&str], pause: Duration| {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        for piece in pieces {
            if stream.write_all(piece.as_bytes()).await.is_err() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        let mut reply = Vec::new();
        // A connection that is closed while something was on its way is reset.
        let _ = stream.read_to_end(&mut reply).await;
        String::from_utf8_lossy(&reply).into_owned()
    };
    let at_once = Duration::ZERO;
    let head = "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 16\r\n\r\n";
    // Nothing; part of a head; a head whose lines never end; HTTP/2's beginning.
    assert_eq!(talk(&[], at_once).await, "");
    assert_eq!(talk(&["GET /health HT"], at_once).await, "");
    let endless = [&["GET / HTTP/1.1\r\n"][..], &["a: b\r\n"; 40]].concat();
    assert_eq!(talk(&endless, Duration::from_millis(50)).await, "");
    talk(&["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], at_once).await;
    // Part of a body, and one of which a byte comes now and then, for ever.
    let part = talk(&[head, "{\"content\""], at_once).await;
    assert!(part.starts_with("HTTP/1.1 408") && part.contains("--read-timeout"), "{part}");
    let long = head.replace("16", "1000");
    let drops = [&[long.as_str()][..], &["{"; 100]].concat();
    let dripped = talk(&drops, Duration::from_millis(50)).await;
    assert!(dripped.is_empty() || dripped.starts_with("HTTP/1.1 408"), "{dripped}");
    // A client that takes its time is served, and its connection is closed when it asks for nothing more.
    let whole = talk(&[head, "{\"content\"", ": \"a\"}"], Duration::from_millis(20)).await;
    assert!(whole.starts_with("HTTP/1.1 200") && whole.contains("tokens"), "{whole}");

    let mut idle = tokio::net::TcpStream::connect(address).await.expect("connected");
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
    idle.read_u8().await.expect("a reply");
    drop(stop);
    serving.await.expect("all connections have ended");
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn after_a_shutdown_the_server_is_not_healthy() {
    let server = server("llama");
    let (status, _) = method(&server, Method::GET, "/health", "").await;
    assert_eq!(status, StatusCode::OK);
    server.shut_down(Duration::ZERO);
    let (status, text) = method(&server, Method::GET, "/health", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_written_as_other_servers_write_them() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (router, time) = (server("llama").router(), Duration::from_secs(30));
    tokio::spawn(connections::serve(listener, router, time, std::future::pending()));
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.expect("sent");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.expect("a reply");
    assert!(reply.contains("\r\nProcess-Start-Time-Unix: "), "{reply}");
    assert!(reply.contains("\r\nContent-Type: text/plain"), "{reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_trusts_the_certificate_is_served() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    let folder = tempfile::tempdir().expect("a folder");
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (key, certificate) = (folder.path().join("key.pem"), folder.path().join("cert.pem"));
    std::fs::write(&key, pair.signing_key.serialize_pem()).expect("written");
    std::fs::write(&certificate, pair.cert.pem()).expect("written");
    let wrong = |key: &std::path::Path, certificate: &std::path::Path, words: &str| {
        let error = Tls::read(key, certificate).expect_err("no TLS");
        assert!(error.contains(words), "{error}");
    };
    wrong(&certificate, &certificate, "cert.pem");
    wrong(&key, &key, "there is no certificate");
    wrong(&folder.path().join("none.pem"), &certificate, "none.pem");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let tls = Tls::read(&key, &certificate).expect("TLS");
    let listener = TlsListener::new(listener, tls).expect("listening");
    let (router, time) = (server("llama").router(), Duration::from_secs(30));
    tokio::spawn(connections::serve(listener, router, time, std::future::pending()));

    // One that says nothing, and one that speaks plainly, hold up nobody.
    let _silent = tokio::net::TcpStream::connect(address).await.expect("connected");
    let mut plain = tokio::net::TcpStream::connect(address).await.expect("connected");
    plain.write_all(b"GET /health HTTP/1.1\r\n\r\n").await.expect("sent");
    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.der().clone()).expect("a root");
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    let name = "localhost".try_into().expect("a name");
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await.expect("a handshake");
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.expect("sent");
    let mut reply = String::new();
    // A server may close without saying so.
    let _ = stream.read_to_string(&mut reply).await;
    assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
    assert!(reply.contains("{\"status\":\"ok\"}"), "{reply}");
}
