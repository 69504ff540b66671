//! Real files: what other programs wrote opens, and holds what it should.

use hurtle_gguf::{Gguf, Metadata};
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

#[test]
fn every_golden_file_opens() {
    let mut n_files = 0;
    for folder in ["archs", "quantmodels"] {
        for entry in std::fs::read_dir(golden().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ext| ext == "gguf") {
                let mapped = Gguf::open(&path).unwrap();
                let held = Gguf::from_bytes("held", std::fs::read(&path).unwrap()).unwrap();
                assert_eq!(mapped.metadata(), held.metadata(), "{}", path.display());
                assert_eq!(mapped.tensors().len(), held.tensors().len());
                for (a, b) in mapped.tensors().iter().zip(held.tensors()) {
                    mapped.prefetch(a);
                    assert_eq!(mapped.data(a), held.data(b), "{}: {}", path.display(), a.name());
                    let (half, end) = (a.n_bytes() / 2, a.n_bytes());
                    mapped.populate(a, 0..half);
                    mapped.release(a, half..end);
                    mapped.release(a, 0..usize::MAX);
                    mapped.populate(a, usize::MAX..usize::MAX);
                    assert_eq!(mapped.data(a), held.data(b), "{}: {}", path.display(), a.name());
                }
                n_files += 1;
            }
        }
    }
    assert!(n_files > 40, "only {n_files} golden files");
}

#[test]
fn a_llama_file_holds_what_llama_cpp_says() {
    let path = golden().join("archs/llama.gguf");
    let gguf = Gguf::open(&path).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(gguf.paths(), std::slice::from_ref(&path));
    assert_eq!(gguf.file_len(), std::fs::metadata(&path).unwrap().len());
    assert_eq!(gguf.version(), 3);
    assert_eq!(gguf.architecture().unwrap(), "llama");
    assert_eq!(metadata.require("llama.embedding_length", Metadata::u32).unwrap(), 64);
    assert_eq!(metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().len(), 272);
    let embedding = gguf.tensor("token_embd.weight").unwrap();
    assert_eq!(embedding.dims(), [64, 272]);
    assert_eq!((embedding.ty().name(), embedding.n_bytes()), ("F32", 64 * 272 * 4));
    assert_eq!(gguf.data(embedding).len(), embedding.n_bytes());
    assert!(gguf.tensor("token_embd.weigh").is_none());
}
