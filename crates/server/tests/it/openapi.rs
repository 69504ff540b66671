//! The description of the API against the routes.
use crate::common::{get, method, server};
use axum::http::{Method, StatusCode};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// `get /health` and so on, of everything in the sources that reads `.route("/health", get(...))`.
fn in_sources() -> BTreeSet<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folder = std::fs::read_dir(src.join("routes")).expect("a folder");
    let mut files: Vec<_> = folder.map(|entry| entry.expect("an entry").path()).collect();
    files.push(src.join("routes.rs"));
    let mut found = BTreeSet::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let text = std::fs::read_to_string(file).expect("a source");
        for route in text.split(".route(").skip(1) {
            let (path, rest) = route.trim_start().split_once(',').expect("a path");
            // The files of the page are a table of their own.
            if !path.starts_with('"') {
                continue;
            }
            let (method, _) = rest.trim_start().split_once('(').expect("a method");
            found.insert(format!("{method} {}", path.trim_matches('"')));
        }
    }
    found
}

fn operations(description: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = description["paths"].as_object().expect("paths");
    let mut all = Vec::new();
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().expect("methods") {
            all.push((method.as_str(), path.as_str(), operation));
        }
    }
    all
}

#[tokio::test]
async fn it_has_all_routes_and_no_others() {
    let server = server("llama");
    let description = get(&server, "/openapi.json").await;
    let operations = operations(&description);
    let described: BTreeSet<String> =
        operations.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
    assert_eq!(described, in_sources(), "openapi.json and the routes differ");
    for (name, path, operation) in operations {
        let with: Method = name.to_uppercase().parse().expect("a method");
        let (status, text) = method(&server, with, path, "").await;
        let found =
            !text.contains("there is nothing at") && status != StatusCode::METHOD_NOT_ALLOWED;
        assert!(found, "{name} {path}: {status} {text}");
        let (status, text) = method(&server, Method::PATCH, path, "").await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert!(text.contains(&format!("{path} does not take PATCH")), "{text}");
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.strip_prefix("#/components/schemas/").expect("a schema");
            assert!(description["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
