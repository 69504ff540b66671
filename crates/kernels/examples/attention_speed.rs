//! How fast attention over a prompt's last chunk is, and over a single token, for a layer of many, so
//! that keys and values come from memory:
//! `cargo run --release -p hurtle-kernels --example attention_speed [CONTEXT] [THREADS] [TYPE] [ISA]`

use hurtle_kernels::attention::{Layer, Token, attention};
use hurtle_kernels::kv::{KvLayer, KvPages, KvType, PAGE_TOKENS};
use hurtle_kernels::{Exec, Isa, Pool};
use std::time::{Duration, Instant};

/// Query heads, KV heads and values of a head, as in Qwen2.5 1.5B and Llama 2 7B.
const SHAPES: [(usize, usize, usize); 2] = [(12, 2, 128), (32, 32, 128)];

/// Bytes of keys and values, about: more than caches hold.
const MEMORY: usize = 400 << 20;

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = || args.next().map(|arg| arg.parse().expect("a number"));
    let context: usize = number().unwrap_or(4096).max(512);
    let n_threads: usize = number().unwrap_or_else(Pool::available_threads);
    let only: Option<KvType> = args.next().map(|arg| arg.parse().expect("a type"));
    let isa: Isa = args.next().map_or(Isa::best(), |arg| arg.parse().expect("an instruction set"));
    let pool = Pool::new(n_threads).expect("threads");
    let exec = Exec { isa, pool: &pool, n_threads };
    for (n_heads, n_kv_heads, dim) in SHAPES {
        for ty in KvType::ALL.into_iter().filter(|ty| only.is_none_or(|only| only == *ty)) {
            let layer_at = |start| KvLayer::new(start, (ty, ty), n_kv_heads, dim, dim);
            let n_layers = (MEMORY / (layer_at(0).bytes_per_token() * context)).clamp(1, 28);
            let layers: Vec<KvLayer> = (0..n_layers)
                .scan(0, |start, _| {
                    let kv = layer_at(*start);
                    *start = kv.end();
                    Some(kv)
                })
                .collect();
            let mut pages = KvPages::new(layers[n_layers - 1].end());
            let row: Vec<f32> = (0..n_kv_heads * dim).map(|i| (i as f32 * 0.37).sin()).collect();
            let mut page_ids = Vec::new();
            for pos in 0..context {
                if pos % PAGE_TOKENS == 0 {
                    page_ids.push(pages.push());
                }
                let page = page_ids[pos / PAGE_TOKENS];
                for kv in &layers {
                    pages.store(exec.isa, kv, page, pos % PAGE_TOKENS, &row, &row);
                }
            }
            let scale = 1.0 / (dim as f32).sqrt();
            for n_tokens in [1, 512] {
                let first = context - n_tokens;
                let q: Vec<f32> =
                    (0..n_tokens * n_heads * dim).map(|i| (i as f32 * 0.11).cos()).collect();
                let mut out = vec![0.0; q.len()];
                let mut scratch = Vec::new();
                let mut best = Duration::MAX;
                let layers = if n_tokens == 1 { &layers } else { &layers[..1] };
                for _ in 0..20 {
                    let start = Instant::now();
                    for kv in layers {
                        let layer =
                            Layer { n_heads, kv, scale, soft_cap: None, window: None, sinks: None };
                        let token = |i| Token { page_ids: &page_ids, pos: first + i };
                        attention(exec, &layer, &pages, token, &q, &mut scratch, &mut out);
                    }
                    best = best.min(start.elapsed() / layers.len() as u32);
                }
                let seen: usize = (first + 1..=context).sum();
                let flops = 4.0 * (seen * n_heads * dim) as f64;
                let n_bytes = (layers[0].bytes_per_token() * context) as f64;
                println!(
                    "{n_heads}/{n_kv_heads} heads of {dim}, {ty}, {n_tokens} tokens at {first}: \
                     {:.3} ms, {:.1} GFLOPS, {:.1} GB/s",
                    best.as_secs_f64() * 1e3,
                    flops / best.as_secs_f64() / 1e9,
                    n_bytes / best.as_secs_f64() / 1e9,
                );
            }
        }
    }
}
