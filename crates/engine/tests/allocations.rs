//! Decoding a token allocates nothing: not in the forward pass, nor in sampling, detokenizing and
//! stop strings around it. (The KV cache allocates where a page of 64 positions begins; the steps
//! that are counted lie inside one.)

use hurtle_engine::sampler::SamplerParams;
use hurtle_engine::{Arithmetic, Engine, EngineOptions, GenerationParams};
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_model::{BatchToken, KvType, Scratch};
use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, counting.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's duty is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's duty is the same.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's duty is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's duty is the same.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tokens before anything is counted: buffers grow to their sizes.
const WARM_UP: usize = 8;
/// The last position in the first page of the cache is 63.
const N_TOKENS: usize = 56;

fn engine(name: &str, arithmetic: Arithmetic) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs");
    let options = EngineOptions { threads: Some(2), arithmetic, ..Default::default() };
    Engine::load(&folder.join(name).with_extension("gguf"), &options).expect("a golden model")
}

/// Allocations of each token after the warm-up, given the counts after every token.
fn grown(counts: &[usize]) -> Vec<usize> {
    counts[WARM_UP..].windows(2).map(|pair| pair[1] - pair[0]).collect()
}

fn in_forward(engine: &Engine) -> Vec<usize> {
    let pool = Pool::new(2).unwrap();
    let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: 2 };
    let model = engine.model();
    let (mut cache, mut scratch) = (model.kv_cache(KvType::F32, KvType::F32), Scratch::default());
    let seq = cache.new_sequence();
    let mut counts = Vec::with_capacity(N_TOKENS);
    for i in 0..N_TOKENS as u32 {
        let id = i * 37 % model.hparams().n_vocab as u32;
        let token = BatchToken { id, seq, logits: true };
        model.forward(exec, &[token], &mut cache, &mut scratch).unwrap();
        counts.push(count());
    }
    grown(&counts)
}

fn in_generation(engine: &Engine) -> Vec<usize> {
    let params = GenerationParams {
        sampler: SamplerParams { seed: Some(1), ignore_eos: true, ..Default::default() },
        n_predict: Some(N_TOKENS),
        stop: vec!["no such text".into()],
        special: true,
        shown: Vec::new(),
        ..GenerationParams::default()
    };
    let mut counts = Vec::with_capacity(N_TOKENS + 2);
    let mut session = engine.session();
    let generated = session.generate(&[1, 2, 3, 4], &params, &mut |_| {
        counts.push(count());
        ControlFlow::Continue(())
    });
    assert_eq!(generated.unwrap().token_ids.len(), N_TOKENS);
    grown(&counts)
}

/// Without libtest, whose own thread allocates at the same time.
fn main() {
    let mut failures = Vec::new();
    for name in ["llama", "gemma3", "qwen3moe"] {
        for arithmetic in [Arithmetic::Exact, Arithmetic::Integer] {
            let engine = engine(name, arithmetic);
            // In this order: a thread allocates as it starts, the engine's own when it is first
            // given work.
            let counts = [("generate", in_generation(&engine)), ("forward", in_forward(&engine))];
            for (what, counts) in counts {
                assert!(counts.len() >= N_TOKENS - WARM_UP - 1);
                if counts.iter().any(|&n| n > 0) {
                    failures.push(format!("{name}, {arithmetic:?}, {what}: {counts:?}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "allocations for each token:\n{}", failures.join("\n"));
    println!("a token allocates nothing: ok");
}
