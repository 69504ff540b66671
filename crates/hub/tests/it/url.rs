//! Downloads from plain addresses: every way in which a server can fail or lie.
use std::time::Duration;

use hurtle_hub::{Error, LocalModel, NoProgress, Origin};

use crate::server::{Reply, Seen, Server};
use crate::{Recorder, Sandbox, assert_says, gguf, sha256};

const LEN: usize = 300_000;

/// What a pull in a new sandbox led to.
struct Outcome {
    sandbox: Sandbox,
    server: Server,
    result: Result<LocalModel, Error>,
    progress: Recorder,
}

/// Pulls `/m.gguf` with `suffix` from a server with this handler.
fn pull(suffix: &str, handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Outcome {
    let sandbox = Sandbox::new();
    let server = Server::start(handler);
    let mut progress = Recorder::default();
    let url = server.url(&format!("/m.gguf{suffix}"));
    let result = sandbox.hub().pull(&url, false, &mut progress);
    assert_eq!(progress.starts, progress.finishes);
    Outcome { sandbox, server, result, progress }
}

impl Outcome {
    /// The pull gave `content` in this many requests, and left nothing else in the store.
    #[track_caller]
    fn gave(self, content: &[u8], requests: usize) -> Self {
        let model = self.result.as_ref().unwrap();
        assert_eq!(model.bytes, content.len() as u64);
        assert!(std::fs::read(&model.path).unwrap() == content, "the content differs");
        assert_eq!(self.server.seen().len(), requests);
        let tree = self.sandbox.tree("store");
        assert!(tree.iter().all(|f| !f.contains("partial")), "{tree:?}");
        self
    }

    /// The pull failed with this text, and nothing is in the store but what is listed here.
    #[track_caller]
    fn failed(self, says: &[&str], left: &[&str]) -> Self {
        let error = self.result.as_ref().unwrap_err();
        assert_says(&error.to_string(), says);
        let tree = self.sandbox.tree("store");
        let names: Vec<_> = tree.iter().map(|f| f.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, left);
        assert!(self.sandbox.hub().list().unwrap().is_empty());
        self
    }

    fn ranges(&self) -> Vec<Option<usize>> {
        self.server.seen().iter().map(Seen::range).collect()
    }
}

#[test]
fn a_file_is_fetched_once() {
    let content = gguf(LEN, 1);
    let served = content.clone();
    let outcome = pull("", move |r, _| Reply::file(&served, "e", r)).gave(&content, 1);
    assert_eq!(outcome.progress.last, LEN as u64);
    let hub = outcome.sandbox.hub();
    let url = outcome.server.url("/m.gguf");
    let again = hub.resolve(&url, &mut NoProgress).unwrap();
    assert_eq!(again.origin, Origin::Store);
    assert_eq!(outcome.server.seen().len(), 1);

    let listed = hub.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(hub.find_local(&listed[0].name).unwrap().unwrap().path, again.path);
    assert!(hub.find_local("m").unwrap().is_some(), "found by the file's name too");

    hub.pull(&url, true, &mut NoProgress).unwrap();
    assert_eq!(outcome.server.seen().len(), 2);
    assert_eq!(hub.remove(&url).unwrap(), LEN as u64);
    assert_eq!(outcome.sandbox.tree("store"), [""; 0]);
    assert!(matches!(hub.remove(&url), Err(Error::NotInStore(_))));
}

#[test]
fn a_cut_connection_is_resumed() {
    let content = gguf(LEN, 2);
    let served = content.clone();
    let outcome = pull("", move |r, n| {
        let reply = Reply::file(&served, "e", r);
        if n < 2 { reply.cut_after(100_000) } else { reply }
    })
    .gave(&content, 3);
    assert_eq!(outcome.ranges(), [None, Some(100_000), Some(200_000)]);
    assert_eq!(outcome.server.seen()[1].header("if-range"), Some("\"e\""));
    assert_eq!(outcome.progress.starts, 1);
}

#[test]
fn a_later_run_resumes() {
    let content = gguf(LEN, 3);
    let served = content.clone();
    let failing = move |r: &Seen, n: usize| {
        let reply = Reply::file(&served, "e", r);
        if n < 4 { reply.cut_after(if n == 0 { 50_000 } else { 0 }) } else { reply }
    };
    let outcome = pull("", failing).failed(
        &["cut", "4 attempts", "hint: check the connection"],
        &["0.partial", "0.partial.json"],
    );
    let url = outcome.server.url("/m.gguf");
    let model = outcome.sandbox.hub().resolve(&url, &mut NoProgress).unwrap();
    assert!(std::fs::read(model.path).unwrap() == content);
    assert_eq!(outcome.server.seen()[4].range(), Some(50_000));
}

#[test]
fn what_an_unfinished_download_left_can_be_removed() {
    let content = gguf(LEN, 20);
    let outcome = pull("", move |r, n| {
        Reply::file(&content, "e", r).cut_after(if n == 0 { 50_000 } else { 0 })
    });
    let url = outcome.server.url("/m.gguf");
    assert!(outcome.sandbox.hub().remove(&url).unwrap() >= 50_000);
    assert_eq!(outcome.sandbox.tree("store"), [""; 0]);
    assert!(matches!(outcome.sandbox.hub().remove(&url), Err(Error::NotInStore(_))));
}

#[test]
fn a_server_without_ranges_or_validators_starts_over() {
    for etag in [true, false] {
        let content = gguf(LEN, 4);
        let served = content.clone();
        let outcome = pull("", move |_, n| {
            let mut reply = Reply::new(200, &served[..]);
            if etag {
                reply = reply.header("ETag", "\"e\"");
            }
            if n == 0 { reply.cut_after(100_000) } else { reply }
        })
        .gave(&content, 2);
        // Without a validator nothing says that the rest would fit the beginning.
        assert_eq!(outcome.ranges(), [None, etag.then_some(100_000)]);
    }
}

#[test]
fn a_file_that_changes_meanwhile_is_fetched_anew() {
    let (old, new) = (gguf(LEN, 5), gguf(LEN, 6));
    // A server that knows If-Range, and one that sends the rest of the new file to the beginning of
    // the old.
    for knows_if_range in [true, false] {
        let (old, served) = (old.clone(), new.clone());
        pull("", move |r, n| match (n, knows_if_range) {
            (0, _) => Reply::file(&old, "old", r).cut_after(100_000),
            (1, false) => Reply::new(206, &served[100_000..])
                .header("ETag", "\"new\"")
                .header("Content-Range", format!("bytes 100000-{}/{LEN}", LEN - 1)),
            _ => Reply::file(&served, "new", r),
        })
        .gave(&new, if knows_if_range { 2 } else { 3 });
    }
}

#[test]
fn a_range_beyond_the_end() {
    let content = gguf(LEN, 7);
    // Everything arrived, but the connection broke before its end was seen: 416 confirms the size.
    let served = content.clone();
    pull("", move |r, n| {
        let reply = Reply::file(&served, "e", r);
        if n == 0 { reply.claim_length(LEN as u64 + 10) } else { reply }
    })
    .gave(&content, 3);
    // A server that has nothing there at all.
    let served = content.clone();
    pull("", move |r, n| match n {
        0 => Reply::file(&served, "e", r).cut_after(1000),
        1 => Reply::new(416, ""),
        _ => Reply::new(200, &served[..]),
    })
    .gave(&content, 3);
}

#[test]
fn answers_to_another_range_are_not_believed() {
    let content = gguf(LEN, 8);
    for range in
        ["bytes 0-9/300000", "bytes 99999-299999/300000", "nonsense", "bytes 100000-299999/300001"]
    {
        let served = content.clone();
        pull("", move |r, n| match n {
            0 => Reply::file(&served, "e", r).cut_after(100_000),
            1 => Reply::new(206, &served[100_000..]).header("Content-Range", range),
            _ => Reply::new(200, &served[..]),
        })
        .gave(&content, 3);
    }
}

#[test]
fn passing_statuses_are_waited_for() {
    let content = gguf(LEN, 9);
    for status in [408, 429, 500, 502, 503, 504] {
        let served = content.clone();
        let outcome = pull("", move |r, n| match n {
            0 => Reply::new(status, "later"),
            1 => Reply::new(status, "later").header("Retry-After", 0),
            _ => Reply::file(&served, "e", r),
        })
        .gave(&content, 3);
        assert_says(&outcome.progress.notes[0], &[&status.to_string(), "trying again"]);
    }
    // The server's wish counts up to the configured longest pause.
    let started = std::time::Instant::now();
    pull("", move |r, n| match n {
        0 => Reply::new(429, "").header("Retry-After", 86_400),
        _ => Reply::file(&content, "e", r),
    })
    .result
    .unwrap();
    assert!(started.elapsed() >= Duration::from_millis(20));
}

#[test]
fn lasting_failures_are_reported() {
    let check = |status: u16, body: &'static str, says: &[&str], requests: usize| {
        let outcome = pull("", move |_, _| Reply::new(status, body)).failed(says, &[]);
        assert_eq!(outcome.server.seen().len(), requests);
    };
    check(401, "", &["/m.gguf: the server answered 401"], 1);
    check(403, "{\"error\":\"no\\u001b[31m entry\"}", &["403: no [31m entry"], 1);
    check(404, "nothing\n\there", &["404: nothing here"], 1);
    check(500, "", &["500", "gave up after 4 attempts"], 4);
    check(302, "", &["redirect (302 Found) without Location"], 1);
}

#[test]
fn nobody_there() {
    let sandbox = Sandbox::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/m.gguf");
    let error = sandbox.hub().resolve(&url, &mut NoProgress).unwrap_err();
    assert_says(&error.to_string(), &[&url, "gave up after 2 attempts", "HTTPS_PROXY"]);
}

#[test]
fn lengths_that_are_lies() {
    let content = gguf(LEN, 10);
    // More promised than sent, for ever.
    let served = content.clone();
    let too_long = move |_: &Seen, _: usize| {
        Reply::new(200, &served[..]).header("ETag", "\"e\"").claim_length(LEN as u64 + 1)
    };
    pull("", too_long).failed(&["gave up after 4 attempts"], &["0.partial", "0.partial.json"]);
    // Less promised than there is: what was promised is all that is read, and the checksum tells.
    let sum = sha256(&content);
    let served = content.clone();
    let too_short = move |_: &Seen, _: usize| Reply::new(200, &served[..]).claim_length(1000);
    let says = ["expected sha256", sum.as_str(), "discarded"];
    pull(&format!("#sha256={sum}"), too_short).failed(&says, &[]);
    // More promised than any disk holds.
    let huge = |_: &Seen, _: usize| Reply::new(200, "GGUF").claim_length(1 << 60);
    pull("", huge).failed(&["1152921504606846976 bytes needed", "HURTLE_MODELS"], &[]);
    // No length at all is no lie.
    let served = content.clone();
    pull("", move |_, _| Reply::new(200, &served[..]).without_length()).gave(&content, 1);
}

#[test]
fn checksums_decide() {
    let (content, other) = (gguf(LEN, 11), gguf(LEN, 12));
    let (sum, found) = (sha256(&content), sha256(&other));
    let suffix = format!("#sha256={}", sum.to_uppercase());
    let served = content.clone();
    pull(&suffix, move |r, _| Reply::file(&served, "e", r)).gave(&content, 1);
    let served = other.clone();
    let says = [sum.as_str(), found.as_str(), "hint: the damaged file was discarded"];
    pull(&suffix, move |r, _| Reply::file(&served, "e", r)).failed(&says, &[]);
    // With a sum known, a resumed file that proves wrong is tried once more from its beginning.
    let served = content.clone();
    pull(&suffix, move |r, n| match n {
        0 => Reply::file(&other, "e", r).cut_after(100_000),
        _ => Reply::file(&served, "e", r),
    })
    .gave(&content, 3);
}

#[test]
fn what_is_no_gguf_is_discarded() {
    let check = |body: &'static [u8], says: &str| {
        pull("", move |_, _| Reply::new(200, body)).failed(&["expected a GGUF file", says], &[]);
    };
    check(b"<!DOCTYPE html><title>Sign in</title>", "a web page");
    check(b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer");
    check(b"not found", "text: not found");
    check(b"\x80\x02}q\x00", "the bytes [80, 02, 7d, 71]");
    check(b"GG", "text: GG");
    check(b"", "nothing");
}

#[test]
fn redirects_are_followed_within_reason() {
    let content = gguf(LEN, 13);
    let served = content.clone();
    pull("", move |r, n| match n {
        0 => Reply::redirect("/a/b"),
        1 => Reply::redirect("c?d"),
        _ => Reply::file(&served, "e", r),
    })
    .gave(&content, 3);
    pull("", |_, _| Reply::redirect("/m.gguf")).failed(&["more than 10 redirects"], &[]);
    pull("", |_, _| Reply::redirect("file:///etc/passwd")).failed(&["a redirect to 'file"], &[]);
}

#[test]
fn names_from_the_network_stay_in_the_store() {
    let content = gguf(1000, 14);
    let check = |path: &str, disposition: &str, expected: &str| {
        let sandbox = Sandbox::new();
        let (served, header) = (content.clone(), disposition.to_owned());
        let server = Server::start(move |r, _| {
            Reply::file(&served, "e", r).header("Content-Disposition", &header)
        });
        let model = sandbox.hub().resolve(&server.url(path), &mut NoProgress).unwrap();
        assert_eq!(model.path.file_name().unwrap(), expected, "{path} {disposition}");
        assert!(model.path.starts_with(sandbox.path("store")));
        assert_eq!(sandbox.tree("").len(), 2, "model and manifest: {:?}", sandbox.tree(""));
    };
    check("/a%20b.gguf", "attachment", "a b.gguf");
    check("/get?id=1", "attachment; filename=\"c.gguf\"", "c.gguf");
    check("/get", "attachment; filename=\"../../c.gguf\"", "model.gguf");
    check("/..%2F..%2Fx.gguf", "attachment; filename=/tmp/c.gguf", "model.gguf");
    check("/get", "attachment; filename*=UTF-8''..%2Fc.gguf", "model.gguf");
    check("/manifest.json", "attachment", "model.gguf");
}

#[test]
fn all_files_of_a_split_model_are_fetched() {
    let sandbox = Sandbox::new();
    let server = Server::start(|r, n| {
        let seed = if r.path.starts_with("/big-00001") { 1 } else { 2 };
        let reply = Reply::file(&gguf(1000, seed), "e", r);
        // The second file fails at first; the first must not be fetched again for that.
        if n == 1 { Reply::new(404, "") } else { reply }
    });
    let url = server.url("/big-00001-of-00002.gguf?key=1");
    assert!(sandbox.hub().resolve(&url, &mut NoProgress).is_err());
    let model = sandbox.hub().resolve(&url, &mut NoProgress).unwrap();
    assert_eq!((model.files.len(), model.bytes), (2, 2000));
    assert_eq!(model.path, model.files[0]);
    assert!(std::fs::read(&model.files[1]).unwrap() == gguf(1000, 2));
    assert_eq!(server.seen()[1].path, "/big-00002-of-00002.gguf?key=1");
    let ranges: Vec<_> = server.seen().iter().map(Seen::range).collect();
    assert_eq!(ranges, [None, None, Some(1000), None]);
}

#[test]
fn a_silent_server_is_left() {
    let mut sandbox = Sandbox::new();
    sandbox.config.timeout = Duration::from_millis(150);
    let content = gguf(LEN, 15);
    let served = content.clone();
    let server = Server::start(move |r, n| {
        let reply = Reply::file(&served, "e", r);
        if n == 0 { reply.pause(Duration::from_millis(600)) } else { reply }
    });
    let model = sandbox.hub().resolve(&server.url("/m.gguf"), &mut NoProgress).unwrap();
    assert!(std::fs::read(model.path).unwrap() == content);
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn pulls_at_once_fetch_once() {
    let sandbox = Sandbox::new();
    let content = gguf(LEN, 16);
    let served = content.clone();
    let server =
        Server::start(move |r, _| Reply::file(&served, "e", r).pause(Duration::from_millis(100)));
    let url = server.url("/m.gguf");
    let notes: Vec<String> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut progress = Recorder::default();
                    let model = sandbox.hub().resolve(&url, &mut progress).unwrap();
                    assert!(std::fs::read(model.path).unwrap() == content);
                    progress.notes
                })
            })
            .collect();
        pulls.into_iter().flat_map(|p| p.join().unwrap()).collect()
    });
    assert_eq!(server.seen().len(), 1);
    assert!(notes.iter().any(|n| n.contains("waiting for another process")), "{notes:?}");
}

#[test]
fn a_model_under_way_is_not_removed() {
    let sandbox = Sandbox::new();
    let content = gguf(1000, 17);
    let server = Server::start(move |r, n| {
        let reply = Reply::file(&content, "e", r);
        if n == 0 { reply } else { reply.pause(Duration::from_millis(300)) }
    });
    let url = server.url("/m.gguf");
    sandbox.hub().resolve(&url, &mut NoProgress).unwrap();
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| sandbox.hub().pull(&url, true, &mut NoProgress));
        while server.seen().len() < 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(matches!(sandbox.hub().remove(&url), Err(Error::Busy(_))));
        pull.join().unwrap().unwrap();
    });
    sandbox.hub().remove(&url).unwrap();
}

#[test]
fn secrets_of_an_address_are_not_kept() {
    let sandbox = Sandbox::new();
    let content = gguf(1000, 18);
    let server =
        Server::start(
            move |r, n| {
                if n == 0 { Reply::file(&content, "e", r) } else { Reply::new(404, "") }
            },
        );
    let url = server.url("/m.gguf").replace("http://", "http://user:secret@");
    sandbox.hub().resolve(&url, &mut NoProgress).unwrap();
    for file in sandbox.tree("store").iter().filter(|f| f.ends_with(".json")) {
        let text = std::fs::read_to_string(sandbox.path("store").join(file)).unwrap();
        assert!(!text.contains("secret"), "{text}");
    }
    let error = sandbox.hub().pull(&url, true, &mut NoProgress).unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn offline_means_no_request() {
    let mut sandbox = Sandbox::new();
    sandbox.config.offline = true;
    let server = Server::start(|_, _| Reply::new(200, gguf(1000, 19)));
    let error = sandbox.hub().resolve(&server.url("/m.gguf"), &mut NoProgress).unwrap_err();
    assert_says(
        &error.to_string(),
        &["HURTLE_OFFLINE forbids", "hint: unset", "hurtle -m file.gguf"],
    );
    assert!(server.seen().is_empty());
}
