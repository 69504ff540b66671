//! Answers that follow a grammar.

use hurtle_engine::constraint::{Constraint, Grammar, TokenMask};
use hurtle_engine::sampler::SamplerParams;
use hurtle_engine::{Engine, EngineOptions, Extras, GenerationParams, StopReason};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::Path;

fn golden(name: &str) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs");
    let options = EngineOptions { threads: Some(1), ctx_size: Some(2048), ..Default::default() };
    Engine::load(&folder.join(name).with_extension("gguf"), &options).unwrap()
}

fn params(seed: u64, n_predict: usize) -> GenerationParams {
    let sampler = SamplerParams { temp: 1.0, seed: Some(seed), ..Default::default() };
    GenerationParams { sampler, n_predict: Some(n_predict), ..Default::default() }
}

#[test]
fn explore() {
    let engine = golden("llama");
    for g in [
        Grammar::JsonObject,
        Grammar::JsonSchema(
            json!({"type":"object","properties":{"a":{"type":"integer"},"b":{"enum":["x","yy"]}},"required":["a","b"]}),
        ),
        Grammar::JsonSchema(json!({"oneOf":[{"type":"integer"},{"type":"number"}]})),
        Grammar::JsonSchema(json!({"type":"strin"})),
        Grammar::JsonSchema(json!({"type":"string", "pattern": "("})),
        Grammar::JsonSchema(json!({"not":{"type":"string"}})),
        Grammar::JsonSchema(json!(5)),
        Grammar::JsonSchema(json!(true)),
        Grammar::JsonSchema(json!(false)),
        Grammar::Regex("[a-c]{3,5}".into()),
        Grammar::Regex("[a-c".into()),
        Grammar::Lark("start: \"a\" x\nx: \"b\" | \"c\" x".into()),
        Grammar::Lark("start: \"a\" y\nx: \"b\" | \"c\" x".into()),
        Grammar::Lark("start: (\"a\" ".into()),
    ] {
        let t = std::time::Instant::now();
        let c = engine.constraint(&g);
        println!("{g:?} {:?}", t.elapsed());
        match c {
            Err(e) => println!("  ERR {e}"),
            Ok(c) => {
                for seed in 0..3 {
                    let extras = Extras { constraint: Some(Box::new(c.clone())), logprobs: None };
                    let out = engine.session().generate_with(
                        &[1, 2],
                        &params(seed, 100),
                        extras,
                        &mut |_| ControlFlow::Continue(()),
                    );
                    match out {
                        Ok(g) => println!("  {:?} {:?}", g.text, g.stop_reason),
                        Err(e) => println!("  FAIL {e}"),
                    }
                }
            }
        }
    }
}
