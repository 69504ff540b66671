//! Real models from text to text: tokenizer, template, engine and perplexity against llama.cpp.
//!
//! The files lie in the folder that `HURTLE_TEST_MODELS` names; `cargo xtask test` fetches them.

use hurtle_engine::perplexity::perplexity;
use hurtle_engine::sampler::SamplerParams;
use hurtle_engine::{Arithmetic, Engine, EngineOptions, GenerationParams, KvType, StopReason};
use hurtle_text::{ChatTemplate, Encode, RenderInput};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const MODELS: [(&str, &str); 2] =
    [("smollm2", "smollm2-135m-q4_1.gguf"), ("gemma3", "gemma3-270m-q4_k_m.gguf")];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn golden_json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden(name)).unwrap()).unwrap()
}

/// What the golden data was made with.
fn exact() -> EngineOptions {
    EngineOptions {
        arithmetic: Arithmetic::Exact,
        kv_type_k: KvType::F32,
        kv_type_v: KvType::F32,
        ..EngineOptions::default()
    }
}

/// The model, unless it is not there and need not be.
fn open(file: &str) -> Option<Engine> {
    open_with(file, &exact())
}

fn open_with(file: &str, options: &EngineOptions) -> Option<Engine> {
    let path = std::env::var_os("HURTLE_TEST_MODELS").map(|dir| Path::new(&dir).join(file));
    match path.filter(|path| path.exists()) {
        Some(path) => Some(Engine::load(&path, options).unwrap()),
        None => {
            let required = std::env::var_os("HURTLE_REQUIRE_MODELS").is_some();
            assert!(!required, "{file} is missing from HURTLE_TEST_MODELS");
            println!("skipped: {file} is not in HURTLE_TEST_MODELS; `cargo xtask test` fetches it");
            None
        }
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn greedy(n_predict: usize) -> GenerationParams {
    let sampler = SamplerParams { temp: 0.0, ..SamplerParams::default() };
    GenerationParams { sampler, n_predict: Some(n_predict), ..GenerationParams::default() }
}

#[test]
fn prompts_render_tokenize_and_continue_as_in_llama_cpp() {
    let golden = golden_json("greedy.json");
    for (name, file) in MODELS {
        let Some(engine) = open(file) else { continue };
        let template =
            ChatTemplate::from_metadata(engine.gguf().metadata(), engine.tokenizer(), None);
        let template = template.unwrap();
        for prompt in golden["models"][name]["prompts"].as_array().unwrap() {
            let text = prompt["prompt"].as_str().unwrap();
            let chat = prompt["kind"] == "chat";
            if chat {
                let input = RenderInput {
                    messages: prompt["messages"].as_array().unwrap().clone(),
                    add_generation_prompt: true,
                    ..RenderInput::default()
                };
                let template = template.as_ref().expect("a chat model's template");
                assert_eq!(template.render(&input).unwrap(), text, "{name}");
                let (guarded, guard) = template.render_guarded(&input, engine.tokenizer()).unwrap();
                let guarded = engine.tokenizer().encode_guarded(&guarded, guard, false);
                assert_eq!(guarded, ids(&prompt["prompt_ids"]), "{name}: {text:?}");
            }
            let how = Encode { add_special: !chat, parse_special: true };
            let prompt_ids = engine.tokenizer().encode(text, how);
            assert_eq!(prompt_ids, ids(&prompt["prompt_ids"]), "{name}: {text:?}");

            // The golden run goes on behind an end of text; ours stops there. (The model crate's
            // test compares all 64 choices of every prompt.)
            let mut expected = ids(&prompt["f32"]["ids"]);
            expected.truncate(20);
            let end = expected.iter().position(|id| engine.tokenizer().is_end_of_generation(*id));
            let mut streamed = String::new();
            let generation = engine
                .session()
                .generate(&prompt_ids, &greedy(expected.len()), &mut |progress| {
                    if let hurtle_engine::Progress::Text(text) = progress {
                        streamed.push_str(text);
                    }
                    ControlFlow::Continue(())
                })
                .unwrap();
            assert_eq!(generation.text, streamed, "{name}");
            let margins = prompt["f32"]["margin"].as_array().unwrap();
            let mut found = generation.token_ids.iter().zip(&expected).zip(margins);
            match found.position(|((found, expected), _)| found != expected) {
                Some(step) => {
                    let margin = margins[step].as_f64().unwrap();
                    assert!(
                        margin < 0.01,
                        "{name}: {text:?}: step {step} differs, margin {margin}"
                    );
                }
                None => {
                    let length = end.unwrap_or(expected.len());
                    let reason = end.map_or(StopReason::Length, |_| StopReason::EndOfText);
                    assert_eq!(generation.token_ids.len(), length, "{name}: {text:?}");
                    assert_eq!(generation.stop_reason, reason, "{name}: {text:?}");
                }
            }
        }
    }
}

#[test]
fn a_second_turn_gives_the_same_bits_as_a_fresh_start() {
    let Some(engine) = open(MODELS[0].1) else { return };
    let encode = |text: &str| engine.tokenizer().encode(text, Encode::default());
    let params = GenerationParams {
        sampler: SamplerParams { seed: Some(7), ..SamplerParams::default() },
        n_predict: Some(24),
        ..GenerationParams::default()
    };
    let mut go = |_: hurtle_engine::Progress<'_>| ControlFlow::Continue(());
    let mut session = engine.session();
    let first = encode("The three largest rivers of Europe are");
    let answer = session.generate(&first, &params, &mut go).unwrap();
    let second = [&first[..], &answer.token_ids, &encode(". The longest of them")].concat();
    let continued = session.generate(&second, &params, &mut go).unwrap();
    let fresh = engine.session().generate(&second, &params, &mut go).unwrap();
    assert!(continued.timings.cache_n >= first.len(), "{:?}", continued.timings);
    assert_eq!(fresh.timings.cache_n, 0);
    assert_eq!(continued.token_ids, fresh.token_ids);
    assert_eq!(continued.text, fresh.text);
}

#[test]
fn perplexity_matches() {
    /// Of the 16 that the golden file has: enough to see an error, few enough to be quick.
    const CHUNKS: usize = 3;
    let golden_results = golden_json("perplexity.json");
    for (name, file) in MODELS {
        let Some(engine) = open(file) else { continue };
        for text in ["perplexity.txt", "perplexity_code.txt"] {
            let content = std::fs::read_to_string(golden(text)).unwrap();
            let tokenizer = engine.tokenizer();
            let ids =
                tokenizer.encode(&content, Encode { add_special: true, parse_special: false });
            let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
            let expected = &golden_results["results"][name][text]["f32"]["cumulative"];
            let mut chunk = 0;
            let last = perplexity(
                &ids,
                512,
                CHUNKS,
                bos,
                &mut |ids, from, f| engine.score(ids, from, f),
                &mut |found| {
                    let expected = expected[chunk].as_f64().unwrap();
                    let error = (found.ppl / expected - 1.0).abs();
                    println!("{name} {text} chunk {chunk}: {} ({expected})", found.ppl);
                    assert!(error < 5e-4, "{name} {text}: {} instead of {expected}", found.ppl);
                    chunk += 1;
                    Ok(())
                },
            );
            assert!(last.unwrap().is_some());
            assert_eq!(chunk, CHUNKS);
        }
    }
}

/// Kullback-Leibler divergence of the probabilities of two rows of logits, in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_probabilities = |logits: &[f32]| -> Vec<f64> {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
        logits.iter().map(|x| f64::from(*x) - max - sum.ln()).collect()
    };
    let (p, q) = (log_probabilities(p), log_probabilities(q));
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// What 8-bit activations cost, and 8-bit activations with a cache of bf16, which is the default: about
/// what llama.cpp's quantized activations with a cache of f32 cost it on the same texts. The rounding is
/// the same, but which way it falls is chance over 192 positions, so a tenth more may be.
#[test]
fn the_default_is_as_near_to_f32_as_llama_cpps() {
    let golden = golden_json("real_logits.json");
    for (name, file) in MODELS {
        let Some(reference) = open(file) else { continue };
        let f32_cache = EngineOptions { arithmetic: Arithmetic::Integer, ..exact() };
        for (cache, options) in [("f32", f32_cache), ("bf16", EngineOptions::default())] {
            let engine = open_with(file, &options).unwrap();
            let (mut sum, mut n, mut yardstick) = (0.0, 0, 0.0);
            for text in golden["models"][name].as_array().unwrap() {
                let ids = ids(&text["ids"]);
                let expected = reference.logits(&ids, true).unwrap();
                let found = engine.logits(&ids, true).unwrap();
                sum += expected.iter().zip(&found).map(|(p, q)| divergence(p, q)).sum::<f64>();
                n += ids.len();
                let mean = text["ggml_vs_f32"]["mean_kl"].as_f64().unwrap();
                yardstick += mean * ids.len() as f64;
            }
            let (mean, yardstick) = (sum / n as f64, yardstick / n as f64);
            println!("{name}, {cache} cache: mean divergence {mean:.5}, llama.cpp {yardstick:.5}");
            assert!(mean <= 1.1 * yardstick, "{name}: {mean}, llama.cpp {yardstick}");
        }
    }
}
