//! Matrix products handed to someone else, here to a backend that computes them as hurtle does.

use hurtle_gguf::Gguf;
use hurtle_kernels::backend::{BackendError, MatmulBackend, PreparedMatrix};
use hurtle_kernels::matmul::{Matrix, matmul};
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_model::traffic::Packing;
use hurtle_model::{Arithmetic, BatchToken, KvType, Model, Scratch};
use hurtle_quant::WeightType;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A copy of each matrix, and how many were prepared and used. Refuses the matrix number `refused`.
#[derive(Debug, Default)]
struct Copies {
    prepared: AtomicUsize,
    used: Arc<AtomicUsize>,
    refused: Option<usize>,
}

#[derive(Debug)]
struct Copy {
    ty: WeightType,
    n_rows: usize,
    n_cols: usize,
    bytes: Vec<u8>,
    used: Arc<AtomicUsize>,
}

impl MatmulBackend for Copies {
    fn name(&self) -> String {
        "copies 1.0".into()
    }

    fn prepare(&self, matrix: &Matrix<'_>) -> Result<Box<dyn PreparedMatrix>, BackendError> {
        if Some(self.prepared.fetch_add(1, Ordering::Relaxed)) == self.refused {
            return Err("the shelf is full".into());
        }
        Ok(Box::new(Copy {
            ty: matrix.ty(),
            n_rows: matrix.n_rows(),
            n_cols: matrix.n_cols(),
            bytes: matrix.bytes().to_vec(),
            used: Arc::clone(&self.used),
        }))
    }
}

impl PreparedMatrix for Copy {
    fn matmul(&self, exec: Exec<'_>, x: &[f32], out: &mut [f32]) {
        self.used.fetch_add(1, Ordering::Relaxed);
        let matrix = Matrix::new(self.ty, self.n_rows, self.n_cols, &self.bytes).expect("a copy");
        matmul(exec, &matrix, x, out);
    }
}

fn load(name: &str, exec: Exec<'_>) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs").join(name);
    let gguf = Gguf::open(path.with_extension("gguf")).expect("golden data");
    Model::load(gguf, None, Arithmetic::Exact, Packing::default(), exec).expect("a golden model")
}

fn logits(model: &Model, exec: Exec<'_>) -> Vec<u32> {
    let mut cache = model.kv_cache(KvType::F32, KvType::F32);
    let seq = cache.new_sequence();
    let batch: Vec<BatchToken> =
        (1..12).map(|id| BatchToken { id, seq, logits: id % 3 == 0 }).collect();
    let mut scratch = Scratch::default();
    let logits = model.forward(exec, &batch, &mut cache, &mut scratch).expect("known tokens");
    logits.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_backend_computes_every_product() {
    let pool = Pool::new(2).expect("threads");
    let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: 2 };
    // Attention, feed-forward or experts, routers and a shared expert.
    for (name, experts, routers) in
        [("llama", 0, 0), ("phi3", 0, 0), ("gpt-oss", 1, 1), ("qwen3moe", 1, 1), ("qwen2moe", 1, 2)]
    {
        let expected = logits(&load(name, exec), exec);
        let backend = Copies::default();
        let mut model = load(name, exec);
        model.hand_over(&backend).expect("it takes everything");

        let hparams = model.hparams();
        let n_experts = hparams.experts.as_ref().map_or(0, |experts| experts.n_experts);
        let networks = if experts == 0 { 1 } else { n_experts + routers - 1 };
        let of_layer = 4 + 3 * networks + routers;
        let prepared = backend.prepared.load(Ordering::Relaxed);
        assert_eq!(prepared, hparams.layers.len() * of_layer + 1, "{name}");

        assert_eq!(logits(&model, exec), expected, "{name}");
        let used = backend.used.load(Ordering::Relaxed);
        let at_least = hparams.layers.len() * (4 + 3 + routers) + 1;
        assert!(used >= at_least, "{name}: {used} products of at least {at_least}");
    }
}

#[test]
fn what_a_backend_refuses_is_named() {
    let pool = Pool::new(1).expect("threads");
    let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: 1 };
    let mut model = load("llama", exec);
    let backend = Copies { refused: Some(2), ..Copies::default() };
    let error = model.hand_over(&backend).expect_err("an error").to_string();
    for part in ["llama.gguf", "tensor blk.0.attn_v.weight", "the shelf is full", "copies 1.0"] {
        assert!(error.contains(part), "{error}");
    }
}
