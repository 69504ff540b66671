//! Real models against llama.cpp running the same weights dequantized to f32.
//!
//! The files lie in the folder that `HURTLE_TEST_MODELS` names; `cargo xtask test` fetches them.

use hurtle_gguf::Gguf;
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_model::traffic::Packing;
use hurtle_model::{Arithmetic, BatchToken, KvType, Model, Scratch};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

fn golden<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The model, unless it is not there and need not be.
fn open(name: &str) -> Option<Model> {
    let path = std::env::var_os("HURTLE_TEST_MODELS").map(|dir| Path::new(&dir).join(name));
    match path.filter(|path| path.exists()) {
        Some(path) => {
            let pool = Pool::new(1).unwrap();
            let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: 1 };
            Some(
                Model::load(
                    Gguf::open(path).unwrap(),
                    None,
                    Arithmetic::Exact,
                    Packing::default(),
                    exec,
                )
                .unwrap(),
            )
        }
        None => {
            let required = std::env::var_os("HURTLE_REQUIRE_MODELS").is_some();
            assert!(!required, "{name} is missing from HURTLE_TEST_MODELS");
            println!("skipped: {name} is not in HURTLE_TEST_MODELS; `cargo xtask test` fetches it");
            None
        }
    }
}

/// Log-probabilities at every position.
fn log_probs(model: &Model, ids: &[u32]) -> Vec<Vec<f64>> {
    let pool = Pool::new(Pool::available_threads()).unwrap();
    let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: pool.n_threads() };
    let mut cache = model.kv_cache(KvType::F32, KvType::F32);
    let mut scratch = Scratch::default();
    let seq = cache.new_sequence();
    let batch: Vec<_> = ids.iter().map(|id| BatchToken { id: *id, seq, logits: true }).collect();
    let mut rows = Vec::new();
    for batch in batch.chunks(32) {
        let logits = model.forward(exec, batch, &mut cache, &mut scratch).unwrap();
        rows.extend(logits.chunks_exact(model.hparams().n_vocab).map(|logits| {
            let max = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
            let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
            logits.iter().map(|x| f64::from(*x) - max - sum.ln()).collect::<Vec<_>>()
        }));
    }
    rows
}

fn argmax(x: &[f64]) -> u32 {
    (0..x.len()).rev().max_by(|a, b| x[*a].total_cmp(&x[*b])).unwrap() as u32
}

#[derive(Deserialize)]
struct Greedy {
    models: BTreeMap<String, GreedyModel>,
}

#[derive(Deserialize)]
struct GreedyModel {
    file: String,
    prompts: Vec<GreedyPrompt>,
}

#[derive(Deserialize)]
struct GreedyPrompt {
    prompt_ids: Vec<u32>,
    f32: GreedyRun,
}

#[derive(Deserialize)]
struct GreedyRun {
    ids: Vec<u32>,
    margin: Vec<f64>,
}

#[test]
fn greedy_choices_match_wherever_they_are_no_near_tie() {
    for (name, golden) in golden::<Greedy>("greedy.json").models {
        let Some(model) = open(&golden.file) else { continue };
        for (i, prompt) in golden.prompts.iter().enumerate() {
            let ids = [&prompt.prompt_ids[..], &prompt.f32.ids].concat();
            let found = log_probs(&model, &ids[..ids.len() - 1]);
            let found = &found[prompt.prompt_ids.len() - 1..];
            let steps = prompt.f32.ids.iter().zip(&prompt.f32.margin).zip(found);
            for (step, ((expected, margin), found)) in steps.enumerate() {
                let choice = argmax(found);
                assert!(
                    choice == *expected || *margin < 0.01,
                    "{name}, prompt {i}, step {step}: {choice} instead of {expected}, margin {margin}"
                );
            }
        }
    }
}

#[derive(Deserialize)]
struct RealLogits {
    models: BTreeMap<String, Vec<RealText>>,
}

#[derive(Deserialize)]
struct RealText {
    ids: Vec<u32>,
    f32_logprob_of_next: Vec<f64>,
    f32_top5: Vec<(Vec<usize>, Vec<f64>)>,
}

#[test]
fn log_probabilities_match() {
    let files: BTreeMap<String, String> =
        (golden::<Greedy>("greedy.json").models.into_iter()).map(|(k, v)| (k, v.file)).collect();
    for (name, texts) in golden::<RealLogits>("real_logits.json").models {
        let Some(model) = open(&files[&name]) else { continue };
        for text in texts {
            let found = log_probs(&model, &text.ids);
            let nexts = text.ids[1..].iter().zip(&text.f32_logprob_of_next).zip(&found);
            for (pos, ((next, expected), found)) in nexts.enumerate() {
                let error = (found[*next as usize] - expected).abs();
                assert!(error < 2e-3, "{name}: position {pos} is off by {error}");
            }
            for (pos, ((ids, values), found)) in text.f32_top5.iter().zip(&found).enumerate() {
                // Stored as logits: compare what does not depend on their common offset.
                for (id, value) in ids.iter().zip(values).skip(1) {
                    let (expected, found) = (value - values[0], found[*id] - found[ids[0]]);
                    let error = (expected - found).abs();
                    assert!(error < 2e-3, "{name}: top 5 at position {pos} is off by {error}");
                }
            }
        }
    }
}
