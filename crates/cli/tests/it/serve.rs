//! `hurtle serve` when things go wrong around it: signals, kills, full disks, damaged files.
use crate::common::{environment, golden, model};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Whoever takes longer is stuck.
const STUCK: Duration = Duration::from_secs(120);

pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    /// Lines of standard error.
    lines: Receiver<String>,
}

impl Server {
    pub(crate) fn start(home: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hurtle"))
            .args(["serve", "--port", "0", "-t", "1"])
            .args(args)
            .env_clear()
            .envs(environment(home))
            .current_dir(home)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line); // a test that has seen enough
            }
        });
        let mut server = Self { child, address: String::new(), lines };
        let line = server.line_with("serving ");
        server.address = line.rsplit_once("http://").expect("an address").1.to_owned();
        server
    }

    /// The next line with these words.
    #[track_caller]
    fn line_with(&self, words: &str) -> String {
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(STUCK) {
            if line.contains(words) {
                return line;
            }
            seen.push(line);
        }
        panic!("no line with {words:?}: {seen:#?}");
    }

    fn send(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("connected");
        stream.set_read_timeout(Some(STUCK)).expect("set");
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).expect("sent");
        stream
    }

    /// Status and body.
    fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let mut reply = String::new();
        self.send(path, body).read_to_string(&mut reply).expect("a reply");
        let (head, body) = reply.split_once("\r\n\r\n").expect("a head");
        (head[9..12].parse().expect("a status"), body.to_owned())
    }

    /// An answer that has to come: its text with log-probabilities, and how many tokens of the prompt were known.
    fn complete(&self, prompt: &[u32]) -> (Value, u64) {
        let body = json!({"prompt": prompt, "max_tokens": 20, "logprobs": 3, "seed": 1, "ignore_eos": true});
        let (status, text) = self.post("/v1/completions", &body);
        assert_eq!(status, 200, "{text}");
        let reply: Value = serde_json::from_str(&text).expect("JSON");
        let known = &reply["usage"]["prompt_tokens_details"]["cached_tokens"];
        (reply["choices"].clone(), known.as_u64().expect("a number"))
    }

    pub(crate) fn terminate(&self) {
        let kill = format!("kill -TERM {}", self.child.id());
        let status = Command::new("sh").args(["-c", &kill]).status().expect("a shell");
        assert!(status.success());
    }

    /// Waits for the end, which has to be a good one.
    pub(crate) fn ends(mut self) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(start.elapsed() < STUCK, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn prompt(start: u32) -> Vec<u32> {
    (0..200).map(|i| 10 + (start * 31 + i * i * 7 + i) % 200).collect()
}

#[test]
fn sigterm_breaks_off_what_is_not_done_in_time_and_says_so() {
    let home = TempDir::new().expect("a folder");
    let args = ["-m", model(), "-c", "65536", "--shutdown-timeout", "0"];
    let server = Server::start(home.path(), &args);
    let body = json!({"prompt": "abc", "max_tokens": 60_000, "ignore_eos": true, "stream": true});
    let mut streams: Vec<TcpStream> =
        (0..4).map(|_| server.send("/v1/completions", &body)).collect();
    for stream in &mut streams {
        stream.read_exact(&mut [0; 300]).expect("the answer has begun");
    }
    server.terminate();
    server.line_with("stopping");
    server.line_with("0 answers were finished, 4 broken off");
    server.ends();
    for mut stream in streams {
        // They end; whether with a message or a reset depends on what was on its way.
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

#[test]
fn a_restart_finds_saved_prefixes_and_a_kill_loses_none() {
    let home = TempDir::new().expect("a folder");
    let args = ["-m", model(), "--prefix-dir", "prefixes"];
    let server = Server::start(home.path(), &args);
    let first = server.complete(&prompt(0));
    assert_eq!(first.1, 0);
    server.terminate();
    server.line_with("every answer was finished");
    server.ends();

    let mut server = Server::start(home.path(), &args);
    assert_eq!(server.complete(&prompt(0)), (first.0.clone(), 192));
    server.complete(&prompt(1));
    server.child.kill().expect("killed");
    server.child.wait().expect("ended");
    let server = Server::start(home.path(), &args);
    assert_eq!(server.complete(&prompt(0)), (first.0, 192));
}

/// A disk of 64 KiB at `path`; `None` if this user may not make one.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path) -> Option<Self> {
        std::fs::create_dir(path).expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(path).stderr(Stdio::null());
        let mounted = mount.status().is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("SKIPPED: only root can mount a small disk");
        }
        mounted.then_some(Self(path))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_costs_only_what_would_be_saved() {
    let home = TempDir::new().expect("a folder");
    let path = home.path().join("disk");
    let Some(_disk) = SmallDisk::mount(&path) else { return };
    let args = ["-m", model(), "--prefix-dir", "disk"];
    let server = Server::start(home.path(), &args);
    let first: Vec<_> = (0..6).map(|start| server.complete(&prompt(start)).0).collect();
    server.terminate();
    server.line_with("prefixes cannot be saved");
    server.ends();
    // Nothing is left half written, and what was saved is used.
    for file in std::fs::read_dir(&path).expect("the disk") {
        let name = file.expect("an entry").file_name();
        assert!(name.to_string_lossy().ends_with(".kv"), "{name:?}");
    }
    let server = Server::start(home.path(), &args);
    for (start, first) in (0..).zip(&first) {
        assert_eq!(&server.complete(&prompt(start)).0, first);
    }
}

#[test]
fn vectors_of_tokens() {
    let home = TempDir::new().expect("a folder");
    std::fs::copy(golden("archs/bert.gguf"), home.path().join("bert.gguf")).expect("copied");
    let n_vectors = |pooling: &str| {
        let server = Server::start(home.path(), &["-m", "bert.gguf", "--pooling", pooling]);
        let (status, text) = server.post("/embedding", &json!({"content": [5, 6, 7]}));
        assert_eq!(status, 200, "{text}");
        let reply: Value = serde_json::from_str(&text).expect("JSON");
        reply[0]["embedding"].as_array().expect("vectors").len()
    };
    assert_eq!((n_vectors("none"), n_vectors("mean")), (3, 1));
}

#[test]
fn a_model_is_served_under_other_names() {
    let home = TempDir::new().expect("a folder");
    std::fs::copy(golden("archs/llama.gguf"), home.path().join("llama.gguf")).expect("copied");
    let args = ["-m", "llama.gguf", "--only-named", "-a", "one,two", "--alias", "three"];
    let server = Server::start(home.path(), &args);
    for name in ["one", "two", "three"] {
        let body = json!({"model": name, "prompt": "abc", "max_tokens": 3});
        let (status, text) = server.post("/v1/completions", &body);
        assert_eq!(status, 200, "{name}: {text}");
        assert!(text.contains("\"model\":\"one\""), "{name}: {text}");
    }
    let (status, text) = server.post("/v1/completions", &json!({"model": "four", "prompt": "a"}));
    assert_eq!(status, 404, "{text}");
}

#[test]
fn a_model_that_is_damaged_is_no_harm_to_the_others() {
    let home = TempDir::new().expect("a folder");
    let [good, bad] = ["good.gguf", "bad.gguf"].map(|name| home.path().join(name));
    std::fs::copy(golden("archs/llama.gguf"), &good).expect("copied");
    std::fs::copy(golden("archs/llama.gguf"), &bad).expect("copied");
    let server = Server::start(home.path(), &["-m", "good.gguf", "-m", "bad.gguf"]);
    let ask = |model: &str| {
        server.post("/v1/completions", &json!({"model": model, "prompt": "abc", "max_tokens": 3}))
    };
    let whole = std::fs::read(&bad).expect("read");
    for damaged in [&whole[..whole.len() / 2], b"", b"GGUF", b"<html>not found</html>"] {
        std::fs::write(&bad, damaged).expect("written");
        let (status, text) = ask("bad");
        assert_eq!(status, 500, "{text}");
        assert!(text.contains("'bad' cannot be loaded") && text.contains("bad.gguf"), "{text}");
        assert_eq!(ask("good").0, 200);
    }
    std::fs::remove_file(&bad).expect("removed");
    let (status, text) = ask("bad");
    assert!((400..600).contains(&status) && text.contains("bad"), "{status} {text}");
    // It is there again as soon as its file is.
    std::fs::write(&bad, &whole).expect("written");
    let (status, text) = ask("bad");
    assert_eq!(status, 200, "{text}");
    // A loaded model's file that is replaced, as downloads replace it, changes nothing.
    std::fs::write(home.path().join("new"), b"GGUF").expect("written");
    std::fs::rename(home.path().join("new"), &bad).expect("renamed");
    assert_eq!((ask("bad").0, ask("good").0), (200, 200));
}
