//! A hash of the logits of every tiny golden model, bit for bit, exact and in integers.
//!
//! `cargo xtask test --target aarch64` compares what this prints on two kinds of processor.

use hurtle_gguf::Gguf;
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_model::spec::Head;
use hurtle_model::traffic::Packing;
use hurtle_model::{Arithmetic, BatchToken, KvType, Model, Scratch};
use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut models: Vec<PathBuf> = Vec::new();
    for folder in ["archs", "quantmodels"] {
        for entry in golden.join(folder).read_dir()? {
            models.push(entry?.path());
        }
    }
    models.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    models.sort();
    let pool = Pool::new(2)?;
    let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: 2 };
    for path in models {
        for arithmetic in [Arithmetic::Exact, Arithmetic::Integer] {
            let model =
                Model::load(Gguf::open(&path)?, None, arithmetic, Packing::default(), exec)?;
            let hash = fingerprint(&model, exec)?;
            let name = path.file_stem().unwrap_or_default().display();
            println!("{hash:016x} {name} {arithmetic:?}");
        }
    }
    Ok(())
}

/// FNV-1a over the logits of eight tokens, one after the other and then all at once; over the hidden
/// states of an encoder, which takes them all at once only.
fn fingerprint(model: &Model, exec: Exec<'_>) -> Result<u64, Box<dyn Error>> {
    let mut cache = model.kv_cache(KvType::F32, KvType::F32);
    let mut scratch = Scratch::default();
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let encodes = model.spec().head == Head::None;
    for n_batch in [1, 8] {
        if encodes && n_batch < 8 {
            continue;
        }
        let seq = cache.new_sequence();
        let ids = (0..8).map(|i| i * 37 % model.hparams().n_vocab as u32);
        let batch: Vec<_> = ids.map(|id| BatchToken { id, seq, logits: true }).collect();
        for batch in batch.chunks(n_batch) {
            let values = match encodes {
                true => model.hidden(exec, batch, &mut cache, &mut scratch)?,
                false => model.forward(exec, batch, &mut cache, &mut scratch)?,
            };
            for value in values {
                hash = (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    Ok(hash)
}
