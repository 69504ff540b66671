//! Any bytes either are refused, or open; what opens can be read to its last byte, and written
//! and read again without a difference.
#![no_main]

use hurtle_gguf::{Gguf, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes("fuzz", bytes.to_vec()) else { return };
    let metadata = gguf.metadata();
    for (key, value) in metadata.iter() {
        assert_eq!(metadata.get(key).map(|v| v.ty()), Some(value.ty()));
        let _ = (metadata.u64(key), metadata.f32(key), metadata.bool(key), metadata.string(key));
        let _ = (metadata.ints(key), metadata.floats(key));
        if let Ok(Some(strings)) = metadata.strings(key) {
            assert_eq!(strings.iter().map(<[u8]>::len).sum::<usize>(), strings.total_bytes());
        }
    }

    // Padding up to a huge alignment would only make huge files.
    if metadata.u32("general.alignment").ok().flatten().is_some_and(|n| n > 4096) {
        return;
    }
    let mut writer = Writer::new(metadata.clone());
    for tensor in gguf.tensors() {
        assert_eq!(gguf.tensor(tensor.name()).map(|t| t.offset()), Some(tensor.offset()));
        let data = gguf.data(tensor);
        writer.tensor(tensor.name(), tensor.dims(), tensor.ty(), data).expect("was readable");
    }
    let mut copy = Vec::new();
    writer.write_to("copy", &mut copy).expect("was readable");
    let copy = Gguf::from_bytes("copy", copy).expect("was just written");
    assert_eq!(copy.tensors().len(), gguf.tensors().len());
    for (a, b) in copy.tensors().iter().zip(gguf.tensors()) {
        assert_eq!((a.name(), a.dims(), a.ty()), (b.name(), b.dims(), b.ty()));
        assert_eq!(copy.data(a), gguf.data(b));
    }
});
