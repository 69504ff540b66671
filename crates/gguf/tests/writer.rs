//! What the writer writes, the reader reads, and other programs' files come out byte for byte.

use hurtle_gguf::{Array, Error, Gguf, Metadata, SplitBy, StringArray, Value, Writer};
use hurtle_quant::WeightType;
use proptest::prelude::*;
use std::path::Path;

fn copy_of<'a>(gguf: &'a Gguf) -> Writer<'a> {
    let mut writer = Writer::new(gguf.metadata().clone());
    for tensor in gguf.tensors() {
        writer.tensor(tensor.name(), tensor.dims(), tensor.ty(), gguf.data(tensor)).unwrap();
    }
    writer
}

fn to_bytes(writer: Writer<'_>) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    writer.write_to("test", &mut bytes)?;
    Ok(bytes)
}

fn assert_same(a: &Gguf, b: &Gguf) {
    assert_eq!(a.tensors().len(), b.tensors().len());
    for (x, y) in a.tensors().iter().zip(b.tensors()) {
        assert_eq!((x.name(), x.dims(), x.ty()), (y.name(), y.dims(), y.ty()));
        assert!(a.data(x) == b.data(y), "{}", x.name());
    }
}

#[test]
fn copies_of_golden_files_are_identical() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    for name in ["archs/llama.gguf", "archs/gemma3.gguf", "quantmodels/q4_k.gguf"] {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        let gguf = Gguf::from_bytes(name, bytes.clone()).unwrap();
        assert!(to_bytes(copy_of(&gguf)).unwrap() == bytes, "{name}");
    }
}

fn values() -> impl Strategy<Value = Value> {
    fn list<T: std::fmt::Debug>(
        element: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = Vec<T>> {
        prop::collection::vec(element, 0..5)
    }
    let array = prop_oneof![
        list(any::<u8>()).prop_map(Array::from),
        list(any::<i8>()).prop_map(Array::from),
        list(any::<u16>()).prop_map(Array::from),
        list(any::<i16>()).prop_map(Array::from),
        list(any::<u32>()).prop_map(Array::from),
        list(any::<i32>()).prop_map(Array::from),
        list(any::<f32>()).prop_map(Array::from),
        list(any::<bool>()).prop_map(Array::from),
        list(any::<u64>()).prop_map(Array::from),
        list(any::<i64>()).prop_map(Array::from),
        list(any::<f64>()).prop_map(Array::from),
        list(list(any::<u8>())).prop_map(|v| Array::from(StringArray::from_iter(v))),
    ];
    let array = array.prop_recursive(3, 12, 4, |inner| list(inner).prop_map(Array::from));
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        array.prop_map(Value::from),
    ]
}

fn metadata() -> impl Strategy<Value = Metadata> {
    prop::collection::vec(("[a-z.ä]{1,12}", values()), 0..6)
        .prop_map(|pairs| pairs.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        metadata in metadata(),
        alignment in prop::option::of(0u32..9),
        // (one of three types, blocks in a row, rows)
        shapes in prop::collection::vec((0usize..3, 1u64..4, 1u64..5), 0..6),
        by in prop_oneof![(1usize..4).prop_map(SplitBy::Tensors), (1u64..900).prop_map(SplitBy::Bytes)],
    ) {
        let mut metadata = metadata;
        metadata.extend(alignment.map(|bits| ("general.alignment", 1u32 << bits)));
        let tensors: Vec<_> = shapes.iter().enumerate().map(|(i, &(ty, blocks, rows))| {
            let ty = [WeightType::F32, WeightType::Q4_0, WeightType::Q4_K][ty];
            let n_bytes = ty.block_bytes() as u64 * blocks * rows;
            let data: Vec<u8> = (0..n_bytes).map(|j| (j * 7 + i as u64) as u8).collect();
            (format!("t{i}"), [blocks * ty.block_len() as u64, rows], ty, data)
        }).collect();
        let writer = || {
            let mut writer = Writer::new(metadata.clone());
            for (name, dims, ty, data) in &tensors {
                writer.tensor(name, dims, *ty, data).unwrap();
            }
            writer
        };
        let check = |gguf: &Gguf| {
            assert_eq!(gguf.tensors().len(), tensors.len());
            for ((name, dims, ty, data), tensor) in tensors.iter().zip(gguf.tensors()) {
                assert_eq!((tensor.name(), tensor.dims(), tensor.ty()), (&**name, &dims[..], *ty));
                assert_eq!(gguf.data(tensor), data);
                assert_eq!(tensor.offset() % (1 << alignment.unwrap_or(5)), 0);
            }
        };
        let whole = Gguf::from_bytes("test", to_bytes(writer()).unwrap()).unwrap();
        assert_eq!(whole.metadata(), &metadata);
        check(&whole);

        let folder = tempfile::tempdir().unwrap();
        let paths = writer().write_split(folder.path().join("model"), by).unwrap();
        let split = Gguf::open(&paths[0]).unwrap();
        check(&split);
        if paths.len() > 1 {
            assert_eq!(split.paths(), paths);
        }
        for (key, value) in metadata.iter() {
            assert_eq!(split.metadata().get(key), Some(value));
        }
        // Read and written again, the traces of the split are gone.
        assert_eq!(to_bytes(copy_of(&split)).unwrap(), to_bytes(writer()).unwrap());
    }
}

#[test]
fn split_by_bytes_keeps_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(Metadata::new());
    for (name, n) in [("a", 10), ("b", 10), ("c", 30), ("d", 4), ("e", 16), ("f", 1)] {
        writer.tensor(name, &[n], WeightType::I8, vec![0; n as usize]).unwrap();
    }
    let paths = writer.write_split(folder.path().join("m"), SplitBy::Bytes(20)).unwrap();
    let gguf = Gguf::open(&paths[0]).unwrap();
    let shards: Vec<_> = gguf.tensors().iter().map(|t| (t.name(), t.shard())).collect();
    assert_eq!(shards, [("a", 0), ("b", 0), ("c", 1), ("d", 2), ("e", 2), ("f", 3)]);
}

#[test]
fn numbers_keep_their_bits() {
    let nan = f32::from_bits(0x7fa1_2345);
    let metadata = Metadata::from_iter([("nan", nan)]);
    let gguf = Gguf::from_bytes("test", to_bytes(Writer::new(metadata)).unwrap()).unwrap();
    let read = gguf.metadata().require("nan", Metadata::f32).unwrap();
    assert_eq!(read.to_bits(), nan.to_bits());
}

#[test]
fn data_can_be_made_while_writing() {
    let mut writer = Writer::new(Metadata::new());
    writer
        .tensor_with("t", &[4, 3], WeightType::I16, |out| {
            (0..3u8).try_for_each(|row| out.write_all(&[row; 8]))
        })
        .unwrap();
    let gguf = Gguf::from_bytes("test", to_bytes(writer).unwrap()).unwrap();
    let data = gguf.data(gguf.tensor("t").unwrap());
    assert_eq!(data, [[0u8; 8], [1; 8], [2; 8]].concat());
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, "old").unwrap();
    let mut writer = Writer::new(Metadata::new());
    writer
        .tensor_with("t", &[4], WeightType::F32, |_| Err(std::io::Error::other("no more paper")))
        .unwrap();
    let message = writer.write(&path).unwrap_err().to_string();
    assert!(message.contains("no more paper") && message.contains("model.gguf"), "{message}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn a_file_can_replace_the_one_it_is_read_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs/qwen3.gguf");
    std::fs::copy(&golden, &path).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    copy_of(&gguf).write(&path).unwrap();
    assert_same(&gguf, &Gguf::open(&path).unwrap());
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&golden).unwrap());
    #[cfg(unix)]
    {
        let mode = |path| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        std::fs::write(folder.path().join("any"), "").unwrap();
        assert_eq!(mode(path), mode(folder.path().join("any")));
    }
}

#[test]
fn what_no_file_can_hold_is_refused() {
    fn check(expected: &str, result: Result<(), Error>) {
        let message = result.expect_err(expected).to_string();
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }
    const F32: WeightType = WeightType::F32;
    let new = || Writer::new(Metadata::new());
    let bytes = vec![0u8; 4];
    check("name of 1 to 65535 bytes", new().tensor("", &[1], F32, &bytes));
    check("expected 4 bytes, found 3", new().tensor("t", &[1], F32, &bytes[..3]));
    check("1 to 4 dimensions, found 0", new().tensor("t", &[], F32, &bytes));
    check("1 to 4 dimensions, found 5", new().tensor("t", &[1; 5], F32, &bytes));
    check("at least 1, found [1, 0]", new().tensor("t", &[1, 0], F32, &bytes));
    check("multiple of 32 values (Q4_0)", new().tensor("t", &[33], WeightType::Q4_0, &bytes));
    check("address space", new().tensor("t", &[1 << 40, 1 << 40], F32, &bytes));
    let mut writer = new();
    writer.tensor("t", &[1], F32, &bytes).unwrap();
    check("tensor t: expected each tensor once", writer.tensor("t", &[1], F32, &bytes));

    let mut short = new();
    short.tensor_with("t", &[2], F32, |out| out.write_all(&[0; 7])).unwrap();
    check("tensor t: expected 8 bytes, found 7", to_bytes(short).map(drop));
    let with =
        |key: &str, value: Value| to_bytes(Writer::new([(key, value)].into_iter().collect()));
    check("name of 1 to 65535 bytes, found 65536", with(&"k".repeat(65_536), 1u8.into()).map(drop));
    check("a power of two, found 12", with("general.alignment", 12u32.into()).map(drop));
    let deep = |n| (0..n).fold(Array::U8(vec![1]), |inner, _| Array::Nested(vec![inner]));
    assert!(with("k", deep(3).into()).is_ok());
    check("key k: expected at most 4 levels of arrays", with("k", deep(4).into()).map(drop));
    let missing = Path::new("no/such/folder/model.gguf");
    check("model.gguf: cannot create", new().write(missing));
}
