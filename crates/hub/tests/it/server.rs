//! An HTTP server whose answers each test writes by hand, including impossible ones.
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Path and query.
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The first byte that `Range` asks for.
    pub(crate) fn range(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// An answer; by default complete and true.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Send only so many bytes of the body, then cut the connection.
    cut_after: Option<usize>,
    /// Claim this length.
    length: Option<u64>,
    /// Send no length: the end of the connection is the end of the body.
    unsized_body: bool,
    /// Fall silent for so long before the body.
    pause: Option<Duration>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }
    pub(crate) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
    pub(crate) fn redirect(to: impl ToString) -> Self {
        Self::new(302, "").header("Location", to)
    }
    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = Some(bytes);
        self
    }
    pub(crate) fn claim_length(mut self, bytes: u64) -> Self {
        self.length = Some(bytes);
        self
    }
    pub(crate) fn without_length(mut self) -> Self {
        self.unsized_body = true;
        self
    }
    pub(crate) fn pause(mut self, pause: Duration) -> Self {
        self.pause = Some(pause);
        self
    }

    /// What a well-behaved server answers: the whole, or the part that `Range` and `If-Range` ask
    /// for.
    pub(crate) fn file(content: &[u8], etag: &str, request: &Seen) -> Self {
        let etag = format!("\"{etag}\"");
        let fresh = request.header("if-range").is_none_or(|e| e == etag);
        let reply = match request.range() {
            Some(first) if fresh && first < content.len() => {
                let range = format!("bytes {first}-{}/{}", content.len() - 1, content.len());
                Self::new(206, &content[first..]).header("Content-Range", range)
            }
            Some(_) if fresh => {
                Self::new(416, "").header("Content-Range", format!("bytes */{}", content.len()))
            }
            _ => Self::new(200, content),
        };
        reply.header("ETag", etag)
    }

    fn send(&self, mut stream: TcpStream) -> std::io::Result<()> {
        write!(stream, "HTTP/1.1 {} Scripted\r\nConnection: close\r\n", self.status)?;
        for (name, value) in &self.headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        if !self.unsized_body {
            write!(
                stream,
                "Content-Length: {}\r\n",
                self.length.unwrap_or(self.body.len() as u64)
            )?;
        }
        stream.write_all(b"\r\n")?;
        if let Some(pause) = self.pause {
            std::thread::sleep(pause);
        }
        let end = self.cut_after.unwrap_or(self.body.len()).min(self.body.len());
        stream.write_all(&self.body[..end])
    }
}

/// The server; stops when dropped.
pub(crate) struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Answers each request by `handler`, which gets the request and how many came before it.
    pub(crate) fn start(handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let handler = Arc::new(handler);
        let (log, stopped) = (seen.clone(), stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (stream, handler, log) = (stream.unwrap(), handler.clone(), log.clone());
                std::thread::spawn(move || {
                    let Some(request) = read_request(&stream) else { return };
                    let before = {
                        let mut log = log.lock().unwrap();
                        log.push(request.clone());
                        log.len() - 1
                    };
                    // The client may hang up whenever it likes.
                    let _ = handler(&request, before).send(stream);
                });
            }
        });
        Self { address, seen, stop }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn read_request(stream: &TcpStream) -> Option<Seen> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        if line.is_empty() {
            return Some(Seen { path, headers });
        }
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    None
}
