//! Hugging Face: listing, choosing, denials, the token's way, and the shared cache.
use std::path::Path;

use hurtle_hub::{Error, LocalModel, NoProgress, Origin, Token};
use serde_json::{Value, json};

use crate::server::{Reply, Seen, Server};
use crate::{Sandbox, assert_says, gguf, sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "someone/Tiny-GGUF";

/// Size of every file of the fake repository; its content depends on its name.
const LEN: usize = 5000;

fn content(path: &str) -> Vec<u8> {
    gguf(LEN, path.bytes().fold(7, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into())))
}

/// The listing of a repository with these files, with sizes and sums as the real server gives them.
fn listing(paths: &[&str]) -> Value {
    let siblings: Vec<Value> = paths
        .iter()
        .map(|path| {
            let sum = sha256(&content(path));
            json!({"rfilename": path, "size": LEN, "lfs": {"sha256": sum, "size": LEN}})
        })
        .collect();
    json!({"id": REPO, "sha": COMMIT, "private": false, "siblings": siblings})
}

/// Answers as Hugging Face does for `listing`.
fn answer(listing: &Value, request: &Seen) -> Reply {
    let prefix = format!("/{REPO}/resolve/{COMMIT}/");
    if request.path == format!("/api/models/{REPO}?blobs=true") {
        Reply::new(200, listing.to_string())
    } else if let Some(path) = request.path.strip_prefix(&prefix) {
        Reply::file(&content(path), "cdn", request)
            .header("X-Linked-ETag", format!("\"{}\"", sha256(&content(path))))
    } else {
        Reply::new(404, "{\"error\":\"Repository not found\"}")
    }
}

fn serve(paths: &[&str]) -> Server {
    let listing = listing(paths);
    Server::start(move |request, _| answer(&listing, request))
}

fn sandbox(server: &Server) -> Sandbox {
    let mut sandbox = Sandbox::new();
    sandbox.config.hf_endpoint = server.url("/");
    sandbox
}

const USUAL: &[&str] = &[
    "README.md",
    "Tiny-Q8_0.gguf",
    "Tiny-Q4_K_M.gguf",
    "mmproj-Tiny-F16.gguf",
    "sub dir/Tiny-F16.gguf",
];

#[test]
fn files_are_chosen_fetched_and_cached() {
    let server = serve(USUAL);
    let sandbox = sandbox(&server);
    let hub = sandbox.hub();
    let check = |spec: &str, path: &str| {
        let before = server.seen().len();
        let model = hub.resolve(spec, &mut NoProgress).unwrap();
        assert_eq!(model.origin, Origin::HuggingFaceCache);
        assert_eq!((model.name.as_str(), model.bytes), (spec, LEN as u64));
        assert_eq!(
            model.path,
            sandbox.path(&format!("hf/models--someone--Tiny-GGUF/snapshots/{COMMIT}/{path}"))
        );
        assert!(std::fs::read(&model.path).unwrap() == content(&path.replace(' ', "%20")));
        assert_eq!(server.seen().len(), before + 2, "one listing, one file");
        hub.resolve(spec, &mut NoProgress).unwrap();
        assert_eq!(server.seen().len(), before + 2, "nothing more");
    };
    check("hf:someone/Tiny-GGUF:q8_0", "Tiny-Q8_0.gguf");
    check("hf:someone/Tiny-GGUF:Q4_K_M", "Tiny-Q4_K_M.gguf");
    let listed: Vec<String> = hub.list().unwrap().into_iter().map(|m| m.name).collect();
    assert_eq!(listed, ["hf:someone/Tiny-GGUF:Q4_K_M", "hf:someone/Tiny-GGUF:Q8_0"]);

    // The layout that other tools read.
    let repo = sandbox.path("hf/models--someone--Tiny-GGUF");
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert!(repo.join("blobs").join(sha256(&content("Tiny-Q8_0.gguf"))).is_file());
    #[cfg(unix)]
    assert_eq!(
        std::fs::read_link(repo.join("snapshots").join(COMMIT).join("Tiny-Q8_0.gguf")).unwrap(),
        Path::new("../../blobs").join(sha256(&content("Tiny-Q8_0.gguf")))
    );
    assert!(!sandbox.tree("hf").iter().any(|f| f.contains("partial")), "{:?}", sandbox.tree("hf"));

    let error = hub.remove("hf:someone/Tiny-GGUF:Q8_0").unwrap_err();
    assert_says(&error.to_string(), &["not hurtle's to remove", "share", "hf cache rm"]);
}

#[test]
fn the_default_is_the_best_there_is_and_files_can_be_named() {
    let server = serve(USUAL);
    let name = |spec: &str| {
        let model = sandbox(&server).hub().resolve(spec, &mut NoProgress).unwrap();
        model.path.file_name().unwrap().to_string_lossy().into_owned()
    };
    assert_eq!(name("hf:someone/Tiny-GGUF"), "Tiny-Q4_K_M.gguf");
    assert_eq!(name("hf:someone/Tiny-GGUF/Tiny-Q8_0.gguf"), "Tiny-Q8_0.gguf");
    let in_folder = listing(&["sub/Tiny-F16.gguf"]);
    let server = Server::start(move |r, _| answer(&in_folder, r));
    let sandbox = sandbox(&server);
    let model = sandbox.hub().resolve("hf:someone/Tiny-GGUF:F16", &mut NoProgress).unwrap();
    assert!(model.path.ends_with("sub/Tiny-F16.gguf"));
    assert!(std::fs::read(model.path).unwrap() == content("sub/Tiny-F16.gguf"));
}

#[test]
fn what_is_not_there_is_said_with_what_is() {
    let server = serve(USUAL);
    let check = |spec: &str, says: &[&str]| {
        let error = sandbox(&server).hub().resolve(spec, &mut NoProgress).unwrap_err();
        assert_says(&error.to_string(), says);
    };
    check(
        "hf:someone/Tiny-GGUF:Q5_0",
        &["no GGUF file matches 'Q5_0'", "Tiny-Q4_K_M.gguf, Tiny-Q8_0.gguf"],
    );
    check("hf:someone/Tiny-GGUF/x.gguf", &["'x.gguf'", "Tiny-Q4_K_M.gguf"]);
    check(
        "hf:someone/Else",
        &["hf:someone/Else: not found at http://127", "hint: check the spelling"],
    );
    let empty = serve(&["README.md"]);
    let error = sandbox(&empty).hub().resolve("hf:someone/Tiny-GGUF", &mut NoProgress).unwrap_err();
    assert_says(&error.to_string(), &["no GGUF file at all"]);
}

#[test]
fn denials_name_the_token() {
    for status in [401, 403] {
        let server = Server::start(move |_, _| {
            Reply::new(status, "").header("X-Error-Message", "Access to model x is restricted")
        });
        let mut sandbox = sandbox(&server);
        let spec = "hf:someone/Tiny-GGUF";
        let error = sandbox.hub().resolve(spec, &mut NoProgress).unwrap_err().to_string();
        let page = server.url("/someone/Tiny-GGUF");
        let status = status.to_string();
        assert_says(&error, &[&status, "restricted", "set HF_TOKEN", &page, "/settings/tokens"]);
        assert!(server.seen()[0].header("authorization").is_none());
        sandbox.config.hf_token = Some(Token::new(" hf_abc\n").unwrap());
        let error = sandbox.hub().resolve(spec, &mut NoProgress).unwrap_err().to_string();
        assert_says(&error, &["accept the licence", "whose token HF_TOKEN holds"]);
        assert!(!error.contains("hf_abc"));
        assert_eq!(server.seen()[1].header("authorization"), Some("Bearer hf_abc"));
        assert!(!format!("{:?}", sandbox.hub()).contains("hf_abc"));
    }
}

#[test]
fn the_token_stays_with_its_server() {
    let cdn = Server::start(|r, _| Reply::file(&content("Tiny-Q8_0.gguf"), "cdn", r));
    let (elsewhere, described) = (cdn.url("/blob"), listing(&["Tiny-Q8_0.gguf"]));
    let server = Server::start(move |r, _| {
        if r.path.ends_with(".gguf") {
            Reply::redirect("/moved")
        } else if r.path == "/moved" {
            Reply::redirect(&elsewhere)
        } else {
            answer(&described, r)
        }
    });
    let mut sandbox = sandbox(&server);
    sandbox.config.hf_token = Some(Token::new("hf_abc").unwrap());
    sandbox.hub().resolve("hf:someone/Tiny-GGUF", &mut NoProgress).unwrap();
    assert_eq!(server.seen().len(), 3);
    assert!(server.seen().iter().all(|s| s.header("authorization") == Some("Bearer hf_abc")));
    assert_eq!(cdn.seen().len(), 1);
    assert!(cdn.seen()[0].header("authorization").is_none());
    // Nor does it go to addresses that have nothing to do with Hugging Face.
    sandbox.hub().resolve(&cdn.url("/m.gguf"), &mut NoProgress).unwrap();
    assert!(cdn.seen()[1].header("authorization").is_none());
}

/// Fetches the one file of a repository whose listing and file answers were altered.
fn altered(
    change_listing: impl Fn(&mut Value),
    change_file: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
) -> (Sandbox, Server, Result<LocalModel, Error>) {
    let mut listing = listing(&["Tiny-Q8_0.gguf"]);
    change_listing(&mut listing);
    let server = Server::start(move |r, n| {
        if r.path.ends_with(".gguf") { change_file(r, n) } else { answer(&listing, r) }
    });
    let sandbox = sandbox(&server);
    let result = sandbox.hub().resolve("hf:someone/Tiny-GGUF", &mut NoProgress);
    (sandbox, server, result)
}

#[test]
fn contents_are_checked_against_all_that_is_known() {
    let good = || content("Tiny-Q8_0.gguf");
    let sum = sha256(&good());
    let without_lfs = |listing: &mut Value| {
        listing["siblings"] = json!([{"rfilename": "Tiny-Q8_0.gguf"}]);
    };
    // The sum of the listing.
    let bad = |r: &Seen, _: usize| Reply::file(&gguf(LEN, 99), "e", r);
    let (sandbox, _, result) = altered(|_| (), bad);
    assert_says(&result.unwrap_err().to_string(), &[&sum, &sha256(&gguf(LEN, 99))]);
    assert!(!sandbox.tree("hf").iter().any(|f| f.contains("blobs")));
    // The sum of the file's header, when a mirror's listing has none.
    let linked = format!("\"{sum}\"");
    let bad = move |r: &Seen, _: usize| {
        Reply::file(&gguf(LEN, 99), "e", r).header("X-Linked-ETag", &linked)
    };
    let (_, _, result) = altered(without_lfs, bad);
    assert_says(&result.unwrap_err().to_string(), &["expected sha256", &sum]);
    // The size of the listing, before a byte is read.
    let (_, _, result) = altered(|_| (), |_, _| Reply::new(200, gguf(LEN + 1, 1)));
    assert_says(&result.unwrap_err().to_string(), &["expected 5000 bytes, found 5001"]);
    // A mirror that says nothing at all is believed, and its file named by what it is.
    let no_commit = |listing: &mut Value| {
        *listing = json!({"siblings": [{"rfilename": "Tiny-Q8_0.gguf"}], "sha": "../../evil"});
    };
    let (sandbox, server, result) = altered(no_commit, move |_, _| Reply::new(200, good()));
    assert!(result.unwrap().path.ends_with("snapshots/main/Tiny-Q8_0.gguf"));
    assert!(sandbox.path(&format!("hf/models--someone--Tiny-GGUF/blobs/{sum}")).is_file());
    assert!(server.seen()[1].path.contains("/resolve/main/"));
}

#[test]
fn a_hostile_etag_names_no_file() {
    let change =
        |listing: &mut Value| listing["siblings"] = json!([{"rfilename": "Tiny-Q8_0.gguf"}]);
    for etag in ["\"../../../evil\"", "\"\"", "\"a/b\"", "W/\"..\""] {
        let file = move |_: &Seen, _: usize| {
            Reply::new(200, content("Tiny-Q8_0.gguf")).header("X-Linked-ETag", etag)
        };
        let (sandbox, _, result) = altered(change, file);
        assert!(result.unwrap().path.starts_with(sandbox.path("hf")));
        assert!(sandbox.tree("").iter().all(|f| !f.contains("evil")));
    }
}

#[test]
fn hostile_listings_choose_nothing() {
    let hostile = [
        "../evil-Q4_K_M.gguf",
        "/etc/x.gguf",
        "a/../../x.gguf",
        "a\\..\\x.gguf",
        ".hidden.gguf",
        "C:x.gguf",
        "x\n.gguf",
    ];
    for name in hostile {
        let listing = json!({"sha": COMMIT, "siblings": [{"rfilename": name}]});
        let server = Server::start(move |_, _| Reply::new(200, listing.to_string()));
        let sandbox = sandbox(&server);
        let error = sandbox.hub().resolve("hf:someone/Tiny-GGUF", &mut NoProgress).unwrap_err();
        assert!(matches!(error, Error::NoSuchQuant { .. }), "{name:?}: {error}");
        assert_eq!(sandbox.tree(""), [""; 0]);
    }
    for body in ["", "<html>", "[]", "{\"siblings\": 3}", "{\"siblings\": [{\"size\": -1}]}"] {
        let server = Server::start(move |_, _| Reply::new(200, body));
        let error =
            sandbox(&server).hub().resolve("hf:someone/Tiny-GGUF", &mut NoProgress).unwrap_err();
        assert_says(&error.to_string(), &["/api/models/someone/Tiny-GGUF", "expected the JSON"]);
    }
}

#[test]
fn splits_come_together_or_not_at_all() {
    let first = "big/Big-Q4_K_M-00001-of-00002.gguf";
    let second = "big/Big-Q4_K_M-00002-of-00002.gguf";
    let server = serve(&[second, first]);
    let whole = sandbox(&server);
    let model = whole.hub().resolve("hf:someone/Tiny-GGUF:Q4_K_M", &mut NoProgress).unwrap();
    assert_eq!((model.files.len(), model.bytes), (2, 2 * LEN as u64));
    assert!(model.path.ends_with(first));
    // By the name of any of its files, now from the cache.
    let by_second = format!("hf:someone/Tiny-GGUF/{second}");
    assert_eq!(whole.hub().find_local(&by_second).unwrap().unwrap().path, model.path);
    std::fs::remove_file(&model.files[1]).unwrap();
    assert!(whole.hub().find_local(&by_second).unwrap().is_none());

    let server = serve(&[first]);
    let error =
        sandbox(&server).hub().resolve("hf:someone/Tiny-GGUF", &mut NoProgress).unwrap_err();
    assert_says(&error.to_string(), &["incomplete: 1 of 2 files"]);
}

#[test]
fn a_cut_transfer_is_resumed_and_a_blob_reused() {
    let (sandbox, server, result) = altered(
        |_| (),
        |r, n| {
            let reply = Reply::file(&content("Tiny-Q8_0.gguf"), "e", r);
            if n == 1 { reply.cut_after(2000) } else { reply }
        },
    );
    result.unwrap();
    assert_eq!(server.seen()[2].range(), Some(2000));
    // The link is gone, the blob is not: nothing is fetched again.
    std::fs::remove_dir_all(sandbox.path("hf/models--someone--Tiny-GGUF/snapshots")).unwrap();
    sandbox.hub().resolve("hf:someone/Tiny-GGUF", &mut NoProgress).unwrap();
    assert_eq!(server.seen().len(), 4);
    sandbox.hub().pull("hf:someone/Tiny-GGUF", true, &mut NoProgress).unwrap();
    assert_eq!(server.seen().len(), 6);
}

/// What `huggingface_hub` leaves behind after `hf download`.
fn foreign_cache(sandbox: &Sandbox, repo: &str, path: &str) {
    let sum = sha256(&content(path));
    let base = format!("hf/models--{}", repo.replace('/', "--"));
    sandbox.write(&format!("{base}/blobs/{sum}"), content(path));
    sandbox.write(&format!("{base}/refs/main"), COMMIT);
    let link = sandbox.path(&format!("{base}/snapshots/{COMMIT}/{path}"));
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(Path::new("../../blobs").join(sum), link).unwrap();
    #[cfg(not(unix))]
    std::fs::copy(sandbox.path(&format!("{base}/blobs/{sum}")), link).unwrap();
}

#[test]
fn what_other_tools_fetched_is_used_in_place() {
    let mut sandbox = Sandbox::new();
    sandbox.config.hf_offline = true;
    foreign_cache(&sandbox, REPO, "Tiny-Q5_0.gguf");
    foreign_cache(
        &sandbox,
        "bartowski/SmolLM2-135M-Instruct-GGUF",
        "SmolLM2-135M-Instruct-Q4_K_M.gguf",
    );
    let hub = sandbox.hub();
    let before = sandbox.tree("");
    let path = |spec: &str| hub.resolve(spec, &mut NoProgress).unwrap().path;
    assert!(path("hf:someone/Tiny-GGUF").ends_with("Tiny-Q5_0.gguf"));
    // An alias finds its sources there.
    assert!(path("smollm2").ends_with("SmolLM2-135M-Instruct-Q4_K_M.gguf"));
    assert_eq!(sandbox.tree(""), before);
    let error = hub.resolve("hf:someone/Tiny-GGUF:Q8_0", &mut NoProgress).unwrap_err();
    assert_says(&error.to_string(), &["HF_HUB_OFFLINE forbids"]);
}

#[test]
fn a_broken_cache_is_no_model_and_no_panic() {
    let sandbox = Sandbox::new();
    let base = "hf/models--someone--Tiny-GGUF";
    sandbox.write(&format!("{base}/refs/main"), [0xff, 0xfe]);
    sandbox.write("hf/models--x", "a file");
    sandbox.write("hf/models----/snapshots/a/b.gguf", "");
    sandbox.write("hf/models--a--b--c/snapshots/a/b.gguf", "GGUF");
    std::fs::create_dir_all(sandbox.path(&format!("{base}/snapshots/x/dir.gguf"))).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", sandbox.path(&format!("{base}/snapshots/x/m.gguf")))
        .unwrap();
    let hub = sandbox.hub();
    assert!(hub.find_local("hf:someone/Tiny-GGUF").unwrap().is_none());
    for model in hub.list().unwrap() {
        assert!(hub.find_local(&model.name).unwrap().is_some(), "{}", model.name);
    }
}
