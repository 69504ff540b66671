//! Files that are damaged, cut off or made to do harm: each is refused with a message that says
//! what and where, or opened and then wholly readable. Nothing panics.

use hurtle_gguf::{Array, Gguf, Metadata, Value};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// GGUF bytes with nothing checked.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(version: u32, n_tensors: u64, n_keys: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(n_tensors).u64(n_keys)
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    fn u32(self, v: u32) -> Self {
        self.bytes(&v.to_le_bytes())
    }
    fn u64(self, v: u64) -> Self {
        self.bytes(&v.to_le_bytes())
    }
    fn string(self, v: impl AsRef<[u8]>) -> Self {
        self.u64(v.as_ref().len() as u64).bytes(v.as_ref())
    }
    fn key(self, key: &str, ty: u32) -> Self {
        self.string(key).u32(ty)
    }
    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let raw = self.string(name).u32(dims.len() as u32);
        dims.iter().fold(raw, |raw, &dim| raw.u64(dim)).u32(ty).u64(offset)
    }
    /// Padding, then `n` bytes of data.
    fn data(mut self, n: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + n, 7);
        self
    }
    fn open(self) -> Result<Gguf, String> {
        Gguf::from_bytes("f.gguf", self.0).map_err(|error| error.to_string())
    }
}

#[track_caller]
fn refused(raw: Raw, expected: &str) {
    let message = raw.open().expect_err(expected);
    assert!(message.starts_with("f.gguf: "), "{message}");
    assert!(message.contains(expected), "expected {expected:?} in {message:?}");
}

const F32: u32 = 0;
const Q4_K: u32 = 12;
const TY_U8: u32 = 0;
const TY_U32: u32 = 4;
const TY_BOOL: u32 = 7;
const TY_STRING: u32 = 8;
const TY_ARRAY: u32 = 9;

#[test]
fn what_is_not_gguf_is_recognized() {
    #[track_caller]
    fn check(head: &[u8], expected: &str) {
        // The short form is what a tiny file would be, the long one what a real file would be.
        refused(Raw(head.to_vec()), expected);
        refused(Raw([head, &[0; 4096]].concat()), expected);
    }
    refused(Raw(Vec::new()), "found nothing\nhint: the file is empty");
    check(b"GGU", "not a GGUF file");
    check(b"\x1b[2Jevil", r#"found "\x1b[2J""#);
    check(b"<!DOCTYPE html><html>", "looks like a web page");
    check(b"\n<html lang=en>", "looks like a web page");
    check(b"{\"error\": \"not found\"}", "looks like JSON");
    check(b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull");
    check(b"PK\x03\x04\x00\x00", "zip archive");
    check(b"\x1f\x8b\x08\x00", "decompress it");
    check(b"tjgg\x03\x00\x00\x00", "before August 2023");
    check(b"lmgg\x00\x00\x00\x00", "before August 2023");
    let safetensors = [&[0x90, 1, 0, 0, 0, 0, 0, 0][..], b"{\"__metadata__\"", &[b' '; 4096]];
    refused(Raw(safetensors.concat()), "looks like safetensors");
    check(b"MZ\x90\x00", "pull a GGUF file");
}

#[test]
fn versions() {
    assert!(Raw::header(2, 0, 0).open().is_ok_and(|gguf| gguf.version() == 2));
    assert!(Raw::header(3, 0, 0).open().is_ok_and(|gguf| gguf.version() == 3));
    refused(Raw::header(0, 0, 0), "version 2 or 3, found 0");
    refused(Raw::header(1, 0, 0), "found 1\nhint: this file is from 2023");
    refused(Raw::header(4, 0, 0), "found 4\nhint: the file is newer");
    refused(Raw::header(3u32.swap_bytes(), 0, 0), "big-endian");
    refused(Raw::header(2u32.swap_bytes(), 0, 0), "big-endian");
}

#[test]
fn counts_that_the_file_cannot_hold() {
    for huge in [100, 1 << 20, 1 << 32, u64::MAX / 14, u64::MAX] {
        refused(Raw::header(3, 0, huge), "header, byte 24: expected");
        refused(Raw::header(3, huge, 0), "header, byte 24: expected");
        refused(Raw::header(3, 0, 1).u64(huge).u64(0), "name of key 0");
        let keyed = |ty| Raw::header(3, 0, 1).key("k", ty);
        refused(keyed(TY_STRING).u64(huge), "key k, byte 45: expected");
        for ty in 0..=12 {
            refused(keyed(TY_ARRAY).u32(ty).u64(huge).u32(0), "key k, byte 49: expected");
        }
        refused(keyed(TY_ARRAY).u32(TY_STRING).u64(1).u64(huge), "key k, byte 57: expected");
        refused(Raw::header(3, 1, 0).u64(huge).data(64), "name of tensor 0");
    }
}

#[test]
fn keys_and_values() {
    let raw = |n_keys| Raw::header(3, 0, n_keys);
    let two = raw(2).key("a", TY_U8).bytes(&[1]).key("a", TY_U8).bytes(&[1]);
    refused(two, "name of key 1, byte 38: expected each key once, found a second a");
    refused(raw(1).key("", TY_U8).bytes(&[1; 8]), "expected a name of 1 to 65535 bytes, found 0");
    refused(
        raw(1).string([b'a', 0xff, b'c']).u32(0).u32(0),
        "byte 33: expected UTF-8 text, found byte 0xff",
    );
    refused(
        raw(1).key("k", 13).u64(0),
        "key k, byte 33: expected a value type from 0 to 12, found 13",
    );
    refused(raw(1).key("k", TY_BOOL).bytes(&[2]), "expected a bool, 0 or 1, found 2");
    refused(
        raw(1).key("k", TY_STRING).string([0xc3]),
        "key k, byte 45: expected UTF-8 text, found byte 0xc3",
    );
    let bools = raw(1).key("k", TY_ARRAY).u32(TY_BOOL).u64(3).bytes(&[0, 1, 9]);
    refused(bools, "byte 51: expected a bool, 0 or 1, found 9");
    refused(
        raw(1).key("k", TY_ARRAY).u32(99).u64(0),
        "expected a value type from 0 to 12, found 99",
    );
    refused(raw(1).key("\u{1b}[31m\n", 99).u64(0), r"key \u{1b}[31m\n, byte");
    refused(raw(1).key(&"k".repeat(5000), 99), &format!("key {}…, byte", "k".repeat(80)));
}

#[test]
fn arrays_of_strings_may_hold_any_bytes() {
    let raw = Raw::header(3, 0, 1).key("k", TY_ARRAY).u32(TY_STRING).u64(3);
    let gguf = raw.string([0xff, 0]).string("").string("ä").open().unwrap();
    let strings = gguf.metadata().strings("k").unwrap().unwrap();
    assert_eq!(strings.iter().collect::<Vec<_>>(), [&[0xff, 0][..], &[], "ä".as_bytes()]);
    assert_eq!((strings.get(2), strings.get(3)), (Some("ä".as_bytes()), None));
}

#[test]
fn nested_arrays() {
    let nested = |depth: usize| {
        let raw = Raw::header(3, 0, 1).key("k", TY_ARRAY);
        let raw = (1..depth).fold(raw, |raw, _| raw.u32(TY_ARRAY).u64(1));
        raw.u32(TY_U8).u64(2).bytes(&[1, 2])
    };
    let expected = Array::Nested(vec![Array::Nested(vec![Array::U8(vec![1, 2])])]);
    let gguf = nested(3).open().unwrap();
    assert_eq!(gguf.metadata().get("k"), Some(&Value::Array(expected)));
    assert!(nested(4).open().is_ok());
    refused(nested(5), "key k, byte 85: expected 4 levels of arrays");
    refused(nested(100_000), "4 levels of arrays");
}

#[test]
fn alignments() {
    let raw = |align: u32| {
        Raw::header(3, 1, 1).key("general.alignment", TY_U32).u32(align).tensor("t", &[1], F32, 0)
    };
    for align in [1, 8, 64] {
        let mut raw = raw(align);
        let start = raw.0.len().next_multiple_of(align as usize);
        raw.0.resize(start, 0);
        let gguf = raw.bytes(&[1, 2, 3, 4]).open().unwrap();
        assert_eq!(gguf.tensors()[0].offset(), start);
        assert_eq!(gguf.data(&gguf.tensors()[0]), [1, 2, 3, 4]);
    }
    for align in [0, 3, 48, u32::MAX] {
        refused(raw(align).data(64), "key general.alignment: expected a power of two, found");
    }
    refused(raw(1 << 31).data(64), "tensor t, byte 2147483648: expected 4 bytes, found 0");
    let text = Raw::header(3, 0, 1).key("general.alignment", TY_STRING).string("32");
    refused(text, "key general.alignment: expected u32, found string");
}

#[test]
fn tensors() {
    let one =
        |dims: &[u64], ty, offset| Raw::header(3, 1, 0).tensor("t", dims, ty, offset).data(256);
    let gguf = one(&[8, 2, 2, 2], F32, 0).open().unwrap();
    assert_eq!(gguf.data(&gguf.tensors()[0]), [7; 256]);
    assert_eq!(gguf.n_params(), 64);
    let scalar = one(&[], F32, 32).open().unwrap();
    assert_eq!((scalar.tensors()[0].dims(), scalar.tensors()[0].n_bytes()), (&[1][..], 4));

    refused(one(&[1; 5], F32, 0), "tensor t, byte 33: expected at most 4 dimensions, found 5");
    refused(one(&[4, 0], F32, 0), "dimensions of at least 1, found [4, 0]");
    refused(one(&[255], Q4_K, 0), "rows of a multiple of 256 values (Q4_K), found [255]");
    refused(one(&[1 << 62, 4], F32, 0), "fits the address space");
    refused(one(&[1 << 32, 1 << 32], F32, 0), "fits the address space");
    refused(one(&[u64::MAX, u64::MAX, 2, 2], F32, 0), "fits the address space");
    refused(one(&[u64::MAX - 255], Q4_K, 0), "fits the address space");
    refused(one(&[8, 8, 2], F32, 0), "tensor t, byte 96: expected 512 bytes, found 256");
    refused(one(&[8, 8], F32, 32), "tensor t, byte 128: expected 256 bytes, found 224");
    refused(one(&[8], F32, 8), "a data offset that is a multiple of 32, found 8");
    refused(one(&[8], F32, u64::MAX - 31), "expected 32 bytes, found 0");
    refused(one(&[8], F32, 1 << 63), "expected 32 bytes, found 0");
    for (id, hint) in [(4, "removed"), (33, "Q4_0"), (36, "IQ4_NL"), (4711, "update hurtle")] {
        refused(
            one(&[8], id, 0),
            &format!("tensor t, byte 45: expected a known weight type, found id {id}"),
        );
        refused(one(&[8], id, 0), hint);
    }

    let two = |name, offset| {
        Raw::header(3, 2, 0).tensor("a", &[16], F32, 0).tensor(name, &[16], F32, offset).data(256)
    };
    assert!(two("b", 64).open().is_ok());
    assert!(two("b", 192).open().is_ok());
    refused(two("b", 0), "expected a data offset of at least 64, the end of");
    refused(
        two("b", 32),
        "tensor b, byte 82: expected a data offset of at least 64, the end of a, found 32",
    );
    refused(two("a", 64), "tensor a: expected each tensor once");
    // In any order.
    let turned = Raw::header(3, 2, 0).tensor("a", &[8], F32, 32).tensor("b", &[8], F32, 0);
    let gguf = turned.data(64).open().unwrap();
    assert_eq!(gguf.tensors()[0].offset(), gguf.tensors()[1].offset() + 32);
}

#[test]
fn types_are_checked_when_asked_for() {
    let raw = Raw::header(3, 0, 3).key("n", 5).u32(-3i32 as u32).key("s", TY_STRING).string("x");
    let gguf = raw.key("list", TY_ARRAY).u32(10).u64(2).u64(1).u64(u64::MAX).open().unwrap();
    let metadata = gguf.metadata();
    #[track_caller]
    fn check<T: std::fmt::Debug>(expected: &str, result: Result<T, hurtle_gguf::Error>) {
        assert_eq!(result.unwrap_err().to_string().lines().next().unwrap(), expected);
    }
    assert_eq!(metadata.u32("absent").unwrap(), None);
    assert_eq!(metadata.i64("n").unwrap(), Some(-3));
    assert_eq!(metadata.f32("n").unwrap(), Some(-3.0));
    check("f.gguf: key n: expected u32, found i32 -3", metadata.u32("n"));
    check("f.gguf: key n: expected u64, found i32 -3", metadata.u64("n"));
    check("f.gguf: key n: expected string, found i32", metadata.string("n"));
    check("f.gguf: key n: expected bool, found i32", metadata.bool("n"));
    check("f.gguf: key s: expected f32, found string", metadata.f32("s"));
    check("f.gguf: key s: expected array of string, found string", metadata.strings("s"));
    check("f.gguf: key list: expected u64, found array of 2 u64", metadata.u64("list"));
    check(
        "f.gguf: key list: expected array of integers that fit i64, found array of 2 u64",
        metadata.ints("list"),
    );
    check("f.gguf: key list: expected array of f32, found array of 2 u64", metadata.floats("list"));
    check(
        "f.gguf: key general.architecture: expected a value, found no such key",
        gguf.architecture(),
    );
    check(
        "f.gguf: key absent: expected a value, found no such key",
        metadata.require("absent", Metadata::u32),
    );
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let check = |path: &Path, expected: &str| {
        let message = Gguf::open(path).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    };
    check(folder.path(), "found a directory");
    check(&folder.path().join("none.gguf"), "none.gguf: cannot open: ");
    std::fs::write(folder.path().join("empty.gguf"), "").unwrap();
    check(&folder.path().join("empty.gguf"), "the file is empty");
    #[cfg(unix)]
    check(Path::new("/dev/zero"), "a pipe or a device");
}

/// Reads all there is to read.
fn read_all(gguf: &Gguf) -> u64 {
    let metadata = gguf.metadata();
    let mut sum = 0;
    for (key, _) in metadata.iter() {
        sum += metadata.u64(key).is_ok() as u64;
        sum += metadata.ints(key).is_ok_and(|v| v.is_some()) as u64;
        if let Ok(Some(strings)) = metadata.strings(key) {
            sum += strings.iter().map(|s| s.len() as u64).sum::<u64>();
        }
    }
    for tensor in gguf.tensors() {
        let data = gguf.data(tensor);
        assert_eq!(data.len(), tensor.n_bytes());
        sum += data.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    }
    sum
}

#[test]
fn truncated_anywhere() {
    for name in ["archs/llama.gguf", "quantmodels/q4_k.gguf", "quantmodels/gpt-oss-mxfp4.gguf"] {
        let bytes = std::fs::read(golden(name)).unwrap();
        let gguf = Gguf::from_bytes(name, bytes.clone()).unwrap();
        let header_end = gguf.tensors()[0].offset();
        let data_end = gguf.tensors().iter().map(|t| t.offset() + t.n_bytes()).max().unwrap();
        let sampled = (header_end..data_end).step_by(1009).chain(data_end - 40..data_end);
        for len in (0..header_end).chain(sampled) {
            let message = Gguf::from_bytes(name, bytes[..len].to_vec()).unwrap_err().to_string();
            let expected = if len < 4 { "not a GGUF file" } else { "may be truncated" };
            assert!(message.contains(expected), "{name}, {len} bytes: {message}");
        }
        assert!(Gguf::from_bytes(name, bytes[..data_end].to_vec()).is_ok());
    }
}

#[test]
fn every_byte_of_a_header_changed() {
    // A deterministic corpus: what the fuzz target `gguf_open` does, for those without it.
    let bytes = std::fs::read(golden("archs/llama.gguf")).unwrap();
    let header_end = Gguf::from_bytes("f", bytes.clone()).unwrap().tensors()[0].offset();
    let header = &bytes[..header_end + 64]; // tensors come out truncated unless they shrink too
    let mut opened = 0;
    for at in 0..header_end {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = header.to_vec();
            bytes[at] ^= change;
            if let Ok(gguf) = Gguf::from_bytes("f", bytes) {
                read_all(&gguf);
                opened += 1;
            }
        }
    }
    assert_eq!(opened, 0, "the data of the tensors is missing");
    // With the data there, most changes are harmless to the reader.
    for at in (0..header_end).step_by(61) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x01;
        if let Ok(gguf) = Gguf::from_bytes("f", bytes) {
            read_all(&gguf);
            opened += 1;
        }
    }
    assert!(opened > 10, "only {opened} opened");
}

/// A small file with a key of every type, nested arrays and two tensors.
fn seed() -> Vec<u8> {
    let mut raw = Raw::header(3, 2, 15);
    for ty in 0..=12 {
        let key = raw.key(&format!("key{ty}"), ty);
        raw = match ty {
            0 | 1 | 7 => key.bytes(&[1]),
            2 | 3 => key.bytes(&[1, 0]),
            8 => key.string("text"),
            9 => key.u32(TY_ARRAY).u64(2).u32(TY_BOOL).u64(2).bytes(&[0, 1]).u32(5).u64(1).u32(3),
            10..=12 => key.u64(1),
            _ => key.u32(1),
        };
    }
    raw.key("strings", TY_ARRAY)
        .u32(TY_STRING)
        .u64(2)
        .string("a")
        .string("bc")
        .key("general.alignment", TY_U32)
        .u32(32)
        .tensor("a.weight", &[256, 1], Q4_K, 0)
        .tensor("b.weight", &[8], F32, 160)
        .data(192)
        .0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Single fields and stretches overwritten with likely and unlikely numbers.
    #[test]
    fn mutated(changes in prop::collection::vec((any::<prop::sample::Index>(), change()), 1..4)) {
        let mut bytes = seed();
        assert!(Gguf::from_bytes("seed", bytes.clone()).is_ok());
        for (at, change) in changes {
            let at = at.index(bytes.len());
            match change {
                Change::Overwrite(new) => {
                    let n = new.len().min(bytes.len() - at);
                    bytes[at..at + n].copy_from_slice(&new[..n]);
                }
                Change::Insert(new) => drop(bytes.splice(at..at, new)),
                Change::Remove(n) => drop(bytes.drain(at..(at + n).min(bytes.len()))),
            }
            if bytes.is_empty() { break }
        }
        match Gguf::from_bytes("mutated", bytes) {
            Ok(gguf) => drop(read_all(&gguf)),
            Err(error) => assert!(error.to_string().starts_with("mutated: ")),
        }
    }

    #[test]
    fn random_bytes_after_the_magic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0", &bytes[..]].concat();
        if let Ok(gguf) = Gguf::from_bytes("random", bytes) {
            read_all(&gguf);
        }
    }
}

#[derive(Debug, Clone)]
enum Change {
    Overwrite(Vec<u8>),
    Insert(Vec<u8>),
    Remove(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let number = prop_oneof![
        any::<u8>().prop_map(|v| vec![v]),
        any::<u32>().prop_map(|v| v.to_le_bytes().to_vec()),
        (0u64..300).prop_map(|v| v.to_le_bytes().to_vec()),
        (0u32..64).prop_map(|shift| (1u64 << shift).to_le_bytes().to_vec()),
        (0u64..300).prop_map(|v| (u64::MAX - v).to_le_bytes().to_vec()),
    ];
    prop_oneof![
        4 => number.clone().prop_map(Change::Overwrite),
        1 => number.prop_map(Change::Insert),
        1 => (1usize..20).prop_map(Change::Remove),
    ]
}
