//! What choosing a token costs, sampler by sampler: microseconds, the best of many.
//!
//! ```text
//! cargo run --release -p hurtle-engine --example sampling_speed [N_VOCAB]
//! ```
//!
//! Three distributions: of a model that is sure (`peaked`), of one that is not (`normal`: logits with
//! a standard deviation of 2), and one in which all tokens are nearly alike (`flat`).

use hurtle_engine::sampler::{Sampler, SamplerError, SamplerKind, SamplerParams, Vocabulary};
use std::borrow::Cow;
use std::time::Instant;

/// Tokens without a text: only DRY's breakers would look for one.
struct Nameless(usize);

impl Vocabulary for Nameless {
    fn n_tokens(&self) -> usize {
        self.0
    }
    fn end_of_generation(&self) -> &[u32] {
        &[]
    }
    fn token_bytes(&self, _: u32) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }
    fn encode(&self, _: &str) -> Vec<u32> {
        Vec::new()
    }
}

/// About normal, by an own generator: the figures should not depend on one's luck.
fn logits(n: usize, deviation: f32) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    // A sum of twelve uniform numbers has the variance 1.
    (0..n).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * deviation).collect()
}

/// The least time of a choice and of its acceptance, in µs.
fn measure(params: SamplerParams, logits: &[f32]) -> Result<f64, SamplerError> {
    let mut sampler = Sampler::new(params, &Nameless(logits.len()))?;
    // A history to look back on.
    (0..1024).for_each(|i| sampler.accept(i * i % 97));
    let times = (0..201).map(|_| {
        let start = Instant::now();
        let id = sampler.sample(logits);
        sampler.accept(id);
        start.elapsed().as_secs_f64() * 1e6
    });
    Ok(times.fold(f64::INFINITY, f64::min))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let n_vocab = std::env::args().nth(1).map_or(Ok(152_064), |n| n.parse())?;
    let mut peaked = logits(n_vocab, 2.0);
    peaked.iter_mut().step_by(n_vocab / 20 + 1).enumerate().for_each(|(i, x)| *x = 25.0 - i as f32);
    let distributions =
        [("peaked", peaked), ("normal", logits(n_vocab, 2.0)), ("flat", logits(n_vocab, 0.01))];

    let default = || SamplerParams { seed: Some(1), ..Default::default() };
    let alone = |kind| SamplerParams { samplers: vec![kind], ..default() };
    let chain = |names: &str| SamplerKind::parse_chain(names);
    let cases = [
        ("default chain", default()),
        ("greedy", SamplerParams { temp: 0.0, ..default() }),
        ("no sampler", SamplerParams { samplers: vec![], ..default() }),
        (
            "penalties, 64 back",
            SamplerParams { repeat_penalty: 1.1, ..alone(SamplerKind::Penalties) },
        ),
        (
            "penalties, all",
            SamplerParams {
                repeat_penalty: 1.1,
                repeat_last_n: -1,
                ..alone(SamplerKind::Penalties)
            },
        ),
        ("dry", SamplerParams { dry_multiplier: 0.8, ..alone(SamplerKind::Dry) }),
        ("top_n_sigma 1", SamplerParams { top_n_sigma: 1.0, ..alone(SamplerKind::TopNSigma) }),
        ("top_k 40", alone(SamplerKind::TopK)),
        ("top_k 10000", SamplerParams { top_k: 10_000, ..alone(SamplerKind::TopK) }),
        ("typ_p 0.9", SamplerParams { typical_p: 0.9, ..alone(SamplerKind::TypicalP) }),
        ("top_p 0.95", alone(SamplerKind::TopP)),
        ("min_p 0.05", alone(SamplerKind::MinP)),
        (
            "xtc",
            SamplerParams { xtc_probability: 1.0, xtc_threshold: 0.01, ..alone(SamplerKind::Xtc) },
        ),
        ("temperature 0.8", alone(SamplerKind::Temperature)),
        (
            "dynamic temperature",
            SamplerParams { dynatemp_range: 0.5, ..alone(SamplerKind::Temperature) },
        ),
        (
            "temperature, then top_p",
            SamplerParams { samplers: chain("temperature;top_p")?, ..default() },
        ),
        ("mirostat 1", SamplerParams { mirostat: 1, ..default() }),
        ("mirostat 2", SamplerParams { mirostat: 2, ..default() }),
    ];
    println!("µs a token, {n_vocab} tokens in the vocabulary");
    print!("{:<24}", "");
    distributions.iter().for_each(|(name, _)| print!("{name:>10}"));
    println!();
    for (name, params) in cases {
        print!("{name:<24}");
        for (_, logits) in &distributions {
            print!("{:>10.1}", measure(params.clone(), logits)?);
        }
        println!();
    }
    Ok(())
}
