//! What a grammar costs: tokens a second of a model with and without one, and the time of a mask.
//!
//! ```text
//! cargo run --release -p hurtle-engine --example grammar_speed MODEL.gguf [THREADS]
//! ```
//!
//! The runs take turns, and the best of each kind counts. `cost` is the time of the masks as a share of the
//! time of a token; what the sampler makes of a mask is in the rates only.

use hurtle_engine::constraint::{Constraint, ConstraintError, Grammar, TokenMask};
use hurtle_engine::sampler::SamplerParams;
use hurtle_engine::{Engine, EngineOptions, Extras, Generation, GenerationParams};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Measures another constraint.
struct Measured<C> {
    constraint: C,
    times: Arc<Mutex<Vec<Duration>>>,
}

impl<C: Constraint> Constraint for Measured<C> {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        let start = Instant::now();
        let allowed = self.constraint.allowed(mask);
        if let Ok(mut times) = self.times.lock() {
            times.push(start.elapsed());
        }
        allowed
    }

    fn accept(&mut self, id: u32) -> Result<(), ConstraintError> {
        let start = Instant::now();
        let accepted = self.constraint.accept(id);
        if let Some(last) = self.times.lock().ok().as_mut().and_then(|times| times.last_mut()) {
            *last += start.elapsed();
        }
        accepted
    }

    fn is_finished(&self) -> bool {
        self.constraint.is_finished()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("MODEL.gguf is missing")?;
    let threads = args.next().map(|n| n.parse()).transpose()?;
    let options = EngineOptions { threads, ctx_size: Some(1024), ..Default::default() };
    let engine = Engine::load(Path::new(&path), &options)?;

    let schema = r#"{"type": "array", "minItems": 5, "maxItems": 5, "items": {
        "type": "object", "required": ["name", "age", "email", "tags", "note"], "properties": {
            "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "email": {"type": "string", "format": "email"},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
            "note": {"type": "string", "maxLength": 80}}}}"#;
    let json = r#"root ::= value
        value ::= object | array | string | number | ("true" | "false" | "null") ws
        object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
        array ::= "[" ws ( value ("," ws value)* )? "]" ws
        string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
        number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ws
        ws ::= | " " | "\n" [ \t]{0,20}"#;
    let how = hurtle_text::Encode { add_special: true, parse_special: true };
    let prompt =
        engine.tokenizer().encode("A list of five people, as JSON:\n\n[{\"name\": \"", how);

    println!(
        "{:<12} {:>10} {:>7} {:>12} {:>12} {:>8} {:>10} {:>10}",
        "grammar", "compile", "tokens", "held t/s", "free t/s", "cost", "median", "longest"
    );
    for (name, grammar) in [
        ("json schema", Grammar::JsonSchema(serde_json::from_str(schema)?)),
        ("json object", Grammar::JsonObject),
        ("gbnf", Grammar::Gbnf(json.into())),
        ("regex", Grammar::Regex("(?s:.*)".into())),
    ] {
        let start = Instant::now();
        let constraint = engine.constraint(&grammar)?;
        let compile = start.elapsed();
        let times = Arc::new(Mutex::new(Vec::new()));
        let run = |held: bool| -> Result<Generation, hurtle_engine::EngineError> {
            let sampler = SamplerParams { seed: Some(1), ignore_eos: true, ..Default::default() };
            let params = GenerationParams { sampler, n_predict: Some(200), ..Default::default() };
            let constraint: Option<Box<dyn Constraint>> = match held {
                true => Some(Box::new(Measured {
                    constraint: constraint.clone(),
                    times: Arc::clone(&times),
                })),
                false => None,
            };
            let extras = Extras { constraint, logprobs: None };
            engine
                .session()
                .generate_with(&prompt, &params, extras, &mut |_| ControlFlow::Continue(()))
        };
        let (mut held, mut free, mut n) = (0_f64, 0_f64, 0);
        for _ in 0..5 {
            let answer = run(true)?;
            held = held.max(answer.timings.predicted_tps);
            n = answer.timings.predicted_n;
            free = free.max(run(false)?.timings.predicted_tps);
        }
        let mut times = times.lock().map_err(|_| "a run broke off")?.clone();
        times.sort_unstable();
        let total: Duration = times.iter().sum();
        let cost = total.as_secs_f64() / times.len() as f64 * free;
        println!(
            "{name:<12} {compile:>10.1?} {n:>7} {held:>12.1} {free:>12.1} {:>7.2}% {:>10.1?} {:>10.1?}",
            cost * 100.0,
            times[times.len() / 2],
            times[times.len() - 1],
        );
    }
    Ok(())
}
