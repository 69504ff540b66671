//! Split models: every way in which the files may fail to belong together.

use hurtle_gguf::{Gguf, Metadata, SplitBy, Value, Writer, shard_path};
use hurtle_quant::WeightType;
use std::path::{Path, PathBuf};

/// Three files with a tensor each, in a folder of their own.
struct Model {
    folder: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

fn model() -> Model {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::new([("general.architecture", "llama")].into_iter().collect());
    for name in ["a", "b", "c"] {
        writer.tensor(name, &[4], WeightType::I8, name.repeat(4).into_bytes()).unwrap();
    }
    let paths = writer.write_split(folder.path().join("model"), SplitBy::Tensors(1)).unwrap();
    Model { folder, paths }
}

#[track_caller]
fn refused(path: &Path, expected: &[&str]) {
    let message = Gguf::open(path).unwrap_err().to_string();
    for expected in expected {
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }
}

/// Writes a shard with these keys and one tensor.
fn write_shard(path: &Path, keys: &[(&str, Value)], tensor: &str) {
    // The writer drops the keys of a split, so they are written under other names first.
    let disguised = keys.iter().map(|(key, value)| (key.replace("split", "SPLIT"), value.clone()));
    let mut writer = Writer::new(disguised.collect());
    writer.tensor(tensor, &[4], WeightType::I8, vec![0; 4]).unwrap();
    let mut bytes = Vec::new();
    writer.write_to("shard", &mut bytes).unwrap();
    while let Some(at) = bytes.windows(5).position(|word| word == b"SPLIT") {
        bytes[at..at + 5].copy_from_slice(b"split");
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn opened_as_one() {
    let model = model();
    let gguf = Gguf::open(&model.paths[0]).unwrap();
    assert_eq!(gguf.paths(), model.paths);
    let n_bytes: u64 = model.paths.iter().map(|path| path.metadata().unwrap().len()).sum();
    assert_eq!(gguf.file_len(), n_bytes);
    for (i, tensor) in gguf.tensors().iter().enumerate() {
        assert_eq!(tensor.shard(), i);
        assert_eq!(gguf.data(tensor), tensor.name().repeat(4).as_bytes());
        assert_eq!(gguf.tensor(tensor.name()).unwrap().shard(), i);
    }
    assert_eq!(gguf.n_params(), 12);
}

#[test]
fn another_than_the_first() {
    let model = model();
    refused(
        &model.paths[2],
        &[
            "expected the first of 3 files, found file 3 of 3",
            "hint: open ",
            "model-00001-of-00003.gguf",
        ],
    );
    let renamed = model.folder.path().join("renamed.gguf");
    std::fs::rename(&model.paths[1], &renamed).unwrap();
    refused(&renamed, &["found file 2 of 3", "hint: open the first file of the model"]);
}

#[test]
fn missing() {
    let model = model();
    std::fs::remove_file(&model.paths[2]).unwrap();
    refused(
        &model.paths[0],
        &["model-00003-of-00003.gguf: split model: expected 3 files, found no such file", "hint: "],
    );
}

#[test]
fn under_another_name() {
    let model = model();
    let renamed = model.folder.path().join("renamed.gguf");
    std::fs::rename(&model.paths[0], &renamed).unwrap();
    refused(
        &renamed,
        &["expected a file name like NAME-00001-of-00003.gguf, found \"renamed.gguf\""],
    );
}

#[test]
fn in_each_others_places() {
    let model = model();
    std::fs::copy(&model.paths[1], &model.paths[2]).unwrap();
    refused(&model.paths[0], &["model-00003-of-00003.gguf", "expected split.no to be 2, found 1"]);
}

#[cfg(unix)]
#[test]
fn a_link_to_the_first_or_to_itself() {
    let model = model();
    std::fs::remove_file(&model.paths[1]).unwrap();
    std::os::unix::fs::symlink(&model.paths[0], &model.paths[1]).unwrap();
    refused(&model.paths[0], &["model-00002-of-00003.gguf", "expected split.no to be 1, found 0"]);
    std::fs::remove_file(&model.paths[1]).unwrap();
    std::os::unix::fs::symlink(&model.paths[1], &model.paths[1]).unwrap();
    refused(&model.paths[0], &["model-00002-of-00003.gguf", "found no such file"]);
}

#[test]
fn of_different_models() {
    let model = model();
    let shard = |no: u16, count: u16, tensor| {
        let keys = [("split.no", no.into()), ("split.count", count.into())];
        write_shard(&model.paths[2], &keys, tensor);
    };
    shard(2, 3, "c");
    assert!(Gguf::open(&model.paths[0]).is_ok());
    shard(2, 4, "c");
    refused(&model.paths[0], &["model-00003", "expected split.count to be 3, found 4"]);
    shard(2, 3, "a");
    refused(&model.paths[0], &["model-00003", "tensor a: expected each tensor once"]);
    write_shard(&model.paths[2], &[("split.count", 3u16.into())], "c");
    refused(&model.paths[0], &["model-00003", "key split.no: expected a value"]);
    std::fs::write(&model.paths[2], "<html>").unwrap();
    refused(&model.paths[0], &["model-00003", "web page"]);
}

#[test]
fn with_a_wrong_number_of_tensors_or_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |no| shard_path(&folder.path().join("m"), no, 2);
    let write = |no: u64, count: Value, n_tensors: Value| {
        let keys =
            [("split.no", no.into()), ("split.count", count), ("split.tensors.count", n_tensors)];
        write_shard(&path(no as usize), &keys, &format!("t{no}"));
    };
    write(1, 2u64.into(), 2i32.into());
    write(0, 2u64.into(), 2i32.into());
    assert!(Gguf::open(path(0)).is_ok());
    write(0, 2i8.into(), 3i32.into());
    refused(&path(0), &["expected 3 tensors, found 2 in all files together"]);
    write(0, u64::MAX.into(), 2i32.into());
    refused(&path(0), &["expected split.count of at most 65535, found 18446744073709551615"]);
    write(0, (-2i32).into(), 2i32.into());
    refused(&path(0), &["key split.count: expected u64, found i32 -2"]);
    write(0, "2".into(), 2i32.into());
    refused(&path(0), &["key split.count: expected u64, found string"]);
    for count in [0u16, 1] {
        write(0, count.into(), 9i32.into());
        assert_eq!(Gguf::open(path(0)).unwrap().tensors().len(), 1, "not split at all");
    }
}

#[test]
fn held_in_memory() {
    let bytes = std::fs::read(&model().paths[0]).unwrap();
    let message = Gguf::from_bytes("held", bytes).unwrap_err().to_string();
    assert!(message.contains("held: split model: expected a single file, found one of 3"));
}

#[test]
fn only_the_first_has_the_metadata() {
    let model = model();
    let first = std::fs::read(&model.paths[0]).unwrap();
    let second = std::fs::read(&model.paths[1]).unwrap();
    let mentions = |bytes: &[u8]| bytes.windows(20).any(|word| word == b"general.architecture");
    assert!(mentions(&first) && !mentions(&second));
    let gguf = Gguf::open(&model.paths[0]).unwrap();
    assert_eq!(gguf.metadata().require("split.count", Metadata::u32).unwrap(), 3);
}
