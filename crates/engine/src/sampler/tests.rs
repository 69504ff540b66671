//! The chain against a reference that sorts everything and computes in f64.
use super::candidates::after;
use super::{
    Candidates, Rng, Sampled, Sampler, SamplerError, SamplerKind, SamplerParams, Vocabulary,
    temperature, truncation,
};
use crate::constraint::TokenMask;
use proptest::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// A vocabulary of words; ids are indices. The last one ends a generation.
pub(super) struct Words(pub(super) Vec<String>);

impl Words {
    fn numbered(n: usize) -> Self {
        Self((0..n).map(|i| i.to_string()).collect())
    }

    /// Longest match first.
    pub(super) fn spell(&self, mut text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        while !text.is_empty() {
            let matching = (0..self.0.len()).filter(|&i| text.starts_with(&self.0[i]));
            let longest =
                matching.max_by_key(|&i| self.0[i].len()).expect("text in the vocabulary");
            ids.push(longest as u32);
            text = &text[self.0[longest].len()..];
        }
        ids
    }
}

impl Vocabulary for Words {
    fn n_tokens(&self) -> usize {
        self.0.len()
    }
    fn end_of_generation(&self) -> &[u32] {
        &[2]
    }
    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        self.0[id as usize].as_bytes().into()
    }
    fn encode(&self, text: &str) -> Vec<u32> {
        self.spell(text)
    }
}

fn sampler(params: SamplerParams, n_vocab: usize) -> Sampler {
    Sampler::new(params, &Words::numbered(n_vocab)).unwrap()
}

/// Sorted by logit, then by id.
fn sorted(logits: &[f32]) -> Sorted {
    let possible = (0..).zip(logits).filter(|(_, x)| !x.is_nan() && **x > f32::NEG_INFINITY);
    let mut all: Sorted =
        possible.map(|(id, &x)| (id, f64::from(x.min(f32::MAX)) + 0.0, 0.0)).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let max = all.first().map_or(0.0, |best| best.1);
    let total: f64 = all.iter().map(|c| (c.1 - max).exp()).sum();
    all.iter_mut().for_each(|c| c.2 = (c.1 - max).exp() / total);
    all
}

/// The first of them, until there are `min_keep` and `enough(mass)`.
fn prefix(all: &[(u32, f64, f64)], min_keep: usize, enough: impl Fn(f64) -> bool) -> usize {
    let mut mass = 0.0;
    for (i, candidate) in all.iter().enumerate() {
        mass += candidate.2;
        if i + 1 >= min_keep && enough(mass) {
            return i + 1;
        }
    }
    all.len()
}

/// Possible candidates, best first: id, logit, probability.
type Sorted = Vec<(u32, f64, f64)>;

/// Logits of many shapes and sizes, with their candidates sorted.
static MANY_LOGITS: LazyLock<Vec<(Vec<f32>, Sorted)>> = LazyLock::new(|| {
    let sort = |logits: Vec<f32>| {
        let all = sorted(&logits);
        (logits, all)
    };
    many_logits().into_iter().map(sort).collect()
});

fn many_logits() -> Vec<Vec<f32>> {
    let mut rng = Rng::new(1);
    let mut many = vec![
        vec![],
        vec![0.0],
        vec![f32::NAN],
        vec![f32::NEG_INFINITY; 5],
        vec![f32::INFINITY; 3],
        vec![0.0, -0.0, 0.0],
        vec![f32::MAX, f32::MIN, 0.0],
        vec![f32::INFINITY, f32::NAN, f32::NEG_INFINITY, f32::MAX, 1.0],
        vec![1e-40, -1e-40, 0.0],
        vec![2.5; 2000],
    ];
    for n in [2, 3, 10, 127, 128, 129, 1000, 20_000] {
        for spread in [0.1, 1.0, 10.0] {
            // A sum of uniform numbers is about normal.
            let normal: Vec<f32> = (0..n)
                .map(|_| ((0..6).map(|_| rng.uniform() - 0.5).sum::<f64>() * spread) as f32)
                .collect();
            let tied: Vec<f32> = normal.iter().map(|x| (x * 2.0).round() / 2.0).collect();
            let masked: Vec<f32> = (0..n)
                .map(|i| match i % 7 {
                    0 => f32::NEG_INFINITY,
                    1 => f32::NAN,
                    _ => normal[i],
                })
                .collect();
            many.extend([normal, tied, masked]);
        }
    }
    many
}

/// What a stage leaves of many logits, against what `expected` picks from the sorted candidates.
fn check(
    name: &str,
    stage: impl Fn(&mut Candidates<'_>),
    expected: impl Fn(&[(u32, f64, f64)]) -> Vec<u32>,
) {
    for (logits, all) in &*MANY_LOGITS {
        let expected: BTreeSet<u32> = expected(all).into_iter().collect();
        // From each form that candidates can have.
        let from_source = after(logits, &stage);
        let from_edited = after(logits, |c| {
            if let Some(best) = all.first() {
                c.adjust(best.0, |x| x);
            }
            stage(c);
        });
        let from_list = after(logits, |c| {
            c.keep(f32::NEG_INFINITY, |_, _| true);
            stage(c);
        });
        for (form, found) in [("source", from_source), ("edited", from_edited), ("list", from_list)]
        {
            let found: BTreeSet<u32> = found.iter().map(|&(id, _)| id).collect();
            let head = &logits[..logits.len().min(10)];
            assert!(
                found == expected,
                "{name} from {form}, {} logits {head:?}: {} left, expected {}; they differ in {:?}",
                logits.len(),
                found.len(),
                expected.len(),
                found.symmetric_difference(&expected).take(10).collect::<Vec<_>>()
            );
        }
    }
}

fn ids(all: &[(u32, f64, f64)]) -> Vec<u32> {
    all.iter().map(|c| c.0).collect()
}

#[test]
fn top_k_keeps_the_k_best() {
    for k in [i32::MIN, -1, 0, 1, 2, 40, 127, 1000, i32::MAX] {
        let n = if k <= 0 { usize::MAX } else { k as usize };
        let expected = |all: &[_]| ids(&all[..all.len().min(n)]);
        check(&format!("top_k {k}"), |c| truncation::top_k(c, k), expected);
    }
}

const MIN_KEEPS: [usize; 5] = [0, 1, 3, 300, usize::MAX];

#[test]
fn top_p_keeps_the_nucleus() {
    for p in [0.0, 0.1, 0.5, 0.95, 0.999, 1.0] {
        for min_keep in MIN_KEEPS {
            // Equal logits: the sum of their probabilities is off by its rounding.
            let enough = |mass| p < 1.0 && mass >= f64::from(p) - 1e-10;
            let expected = |all: &[_]| ids(&all[..prefix(all, min_keep, enough)]);
            let stage = |c: &mut Candidates<'_>| truncation::top_p(c, p, min_keep);
            check(&format!("top_p {p}, min_keep {min_keep}"), stage, expected);
        }
    }
}

#[test]
fn min_p_keeps_what_is_near_the_best() {
    for p in [0.0, 1e-30, 0.05, 0.5, 1.0] {
        for min_keep in MIN_KEEPS {
            let expected = |all: &[(u32, f64, f64)]| {
                let distance = f64::from(p).ln();
                let near = |c: &(u32, f64, f64)| c.1 >= all[0].1 + distance * (1.0 + 1e-6);
                let kept = all.iter().take_while(|c| p == 0.0 || near(c)).count();
                ids(&all[..kept.max(min_keep).min(all.len())])
            };
            let stage = |c: &mut Candidates<'_>| truncation::min_p(c, p, min_keep);
            check(&format!("min_p {p}, min_keep {min_keep}"), stage, expected);
        }
    }
}

#[test]
fn top_n_sigma_keeps_what_is_within_n_deviations() {
    for n in [-1.0, 0.0, 0.5, 1.0, 3.0, 1e30] {
        let expected = |all: &[(u32, f64, f64)]| {
            let count = all.len() as f64;
            let mean = all.iter().map(|c| c.1).sum::<f64>() / count;
            let variance = all.iter().map(|c| (c.1 - mean).powi(2)).sum::<f64>() / count;
            let near = |c: &&(u32, f64, f64)| {
                n <= 0.0 || c.1 >= all[0].1 - f64::from(n) * variance.sqrt() * (1.0 + 1e-6)
            };
            all.iter().filter(near).map(|c| c.0).collect()
        };
        check(&format!("top_n_sigma {n}"), |c| truncation::top_n_sigma(c, n), expected);
    }
}

#[test]
fn typical_p_keeps_what_is_near_the_entropy() {
    for p in [0.0, 0.2, 0.9, 1.0] {
        for min_keep in MIN_KEEPS {
            // Where scores tie but for rounding, which one comes first is open: the set is not
            // compared, but its properties are.
            for (logits, all) in &*MANY_LOGITS {
                let surprise = |c: &(u32, f64, f64)| -c.2.ln();
                let entropy: f64 =
                    all.iter().filter(|c| c.2 > 0.0).map(|c| c.2 * surprise(c)).sum();
                let score = |c: &(u32, f64, f64)| (surprise(c) - entropy).abs();
                let left = after(logits, |c| truncation::typical_p(c, p, min_keep));
                let kept: BTreeSet<u32> = left.iter().map(|&(id, _)| id).collect();
                if p >= 1.0 {
                    assert_eq!(kept.len(), all.len());
                    continue;
                }
                let (inside, outside): (Vec<_>, Vec<_>) =
                    all.iter().copied().partition(|c| kept.contains(&c.0));
                let furthest = inside.iter().map(score).fold(0.0, f64::max);
                let nearest = outside.iter().map(score).fold(f64::INFINITY, f64::min);
                let tolerance = 1e-4 * furthest.max(1.0);
                assert!(furthest <= nearest + tolerance, "{furthest} {nearest}");

                let mass: f64 = inside.iter().map(|c| c.2).sum();
                let enough = mass > f64::from(p) - 1e-6 && inside.len() >= min_keep;
                assert!(enough || outside.is_empty(), "{mass} of {p}, {} left", inside.len());
                // Without the last one it was not enough.
                if inside.len() > min_keep.max(1) {
                    let last = inside.iter().max_by(|a, b| score(a).total_cmp(&score(b))).unwrap();
                    assert!(mass - last.2 <= f64::from(p) + 1e-3, "{mass} of {p}");
                }
            }
        }
    }
}

#[test]
fn typical_p_by_hand() {
    let kept = |probabilities: &[f32], p| {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
        let left = after(&logits, |c| truncation::typical_p(c, p, 0));
        left.iter().map(|&(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(kept(&[0.97, 0.01, 0.01, 0.01], 0.5), [0]);
    // Entropy 1.33; surprises 0.92 and 1.61: the three improbable ones are nearer to it.
    assert_eq!(kept(&[0.4, 0.2, 0.2, 0.2], 0.5), [1, 2, 3]);
}

#[test]
fn xtc_excludes_top_choices() {
    let logits: Vec<f32> = [0.3f32, 0.4, 0.1, 0.2].iter().map(|p| p.ln()).collect();
    let kept = |probability, threshold, min_keep| {
        let mut rng = Rng::new(0);
        let left = after(&logits, |c| {
            truncation::xtc(c, probability, threshold, min_keep, &mut rng);
        });
        left.iter().map(|&(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(kept(1.0, 0.39, 0), [0, 1, 2, 3]); // one top choice is not excluded
    assert_eq!(kept(1.0, 0.29, 0), [0, 2, 3]);
    assert_eq!(kept(1.0, 0.19, 0), [2, 3]);
    assert_eq!(kept(1.0, 0.09, 0), [2]);
    assert_eq!(kept(1.0, 0.0, 0), [2]);
    assert_eq!(kept(1.0, 0.19, 2), [2, 3]);
    assert_eq!(kept(1.0, 0.19, 3), [0, 1, 2, 3]);
    assert_eq!(kept(1.0, 0.6, 0), [0, 1, 2, 3]);
    assert_eq!(kept(0.0, 0.19, 0), [0, 1, 2, 3]);
    // Of equals, those with the lowest ids are the top.
    let mut rng = Rng::new(0);
    let left = after(&[0.0; 4], |c| truncation::xtc(c, 1.0, 0.25, 0, &mut rng));
    assert_eq!(left, [(3, 0.0)]);

    let acted = (0..10_000).filter(|_| {
        let left = after(&logits, |c| truncation::xtc(c, 0.3, 0.19, 0, &mut rng));
        left.len() == 2
    });
    let acted = acted.count();
    assert!((2800..3200).contains(&acted), "{acted} of 10 000 at 0.3");
}

#[test]
fn temperature_divides_logits() {
    let check = |logits: &[f32], temp, expected: &[(u32, f32)]| {
        let left = after(logits, |c| temperature::temperature(c, temp));
        assert_eq!(left, expected, "{logits:?} at {temp}");
    };
    check(&[1.0, -2.0], 0.5, &[(0, 2.0), (1, -4.0)]);
    check(&[1.0, 3.0, 3.0], 0.0, &[(1, 3.0)]);
    check(&[1.0, 3.0, 3.0], -1.0, &[(1, 3.0)]);
    check(&[f32::NAN, f32::NEG_INFINITY, -5.0], 0.0, &[(2, -5.0)]);
    check(&[f32::NEG_INFINITY], 0.0, &[]);
    // So small a temperature leaves the best alone instead of making several infinite.
    check(&[1.0, 3.0, 2.9], 1e-40, &[(1, 0.0)]);
    check(&[-1.0, -3.0], 1e-40, &[(0, 0.0)]);
    check(&[f32::INFINITY, 1.0], 1e-40, &[(0, 0.0)]);
}

#[test]
fn dynamic_temperature_follows_the_entropy() {
    for logits in [&[0.0, 0.0, 0.0][..], &[3.0, 1.0, 0.0, -2.0], &[50.0, 0.0]] {
        for (temp, range, exponent) in [(1.0, 0.5, 1.0), (0.8, 2.0, 2.0), (0.7, 0.0, 1.0)] {
            let entropy: f64 =
                sorted(logits).iter().filter(|c| c.2 > 0.0).map(|c| -c.2 * c.2.ln()).sum();
            let evenness = entropy / (logits.len() as f64).ln();
            let (low, high) = (f64::max(0.0, temp - range), temp + range);
            let expected = low + (high - low) * evenness.powf(exponent);
            let left = after(logits, |c| {
                temperature::dynamic_temperature(c, temp as f32, range as f32, exponent as f32);
            });
            let (best, best_x) = left[0];
            for (id, x) in left {
                let exact = f64::from(logits[id as usize] - logits[best as usize]) / expected;
                let error = f64::from(x) - f64::from(best_x) - exact;
                assert!(error.abs() <= 1e-4 * exact.abs(), "{x} - {best_x}, {exact}");
            }
        }
    }
    // A single candidate has no entropy to speak of; certainty means temp - range, here 0.
    let dynamic = |c: &mut Candidates<'_>| temperature::dynamic_temperature(c, 0.5, 0.5, 1.0);
    assert_eq!(after(&[7.0], dynamic), [(0, 7.0)]);
    assert_eq!(after(&[500.0, 0.0], dynamic), [(0, 500.0)]);
}

/// Draws follow the distribution: Pearson's chi-squared of 20 000 draws.
#[test]
fn draws_follow_the_probabilities() {
    let logits: Vec<f32> = (0..1000).map(|i| (i * 7919 % 1000) as f32 * 0.007).collect();
    for (change, name) in [
        (SamplerParams::default(), "default"),
        (SamplerParams { top_k: 0, top_p: 1.0, min_p: 0.0, ..Default::default() }, "all"),
        (
            SamplerParams { top_k: 0, top_p: 0.5, min_p: 0.0, temp: 1.5, ..Default::default() },
            "top_p",
        ),
    ] {
        let mut all = sorted(&logits);
        if change.top_k > 0 {
            all.truncate(change.top_k as usize);
        }
        let total: f64 = all.iter().map(|c| c.2).sum();
        let kept = prefix(&all, 0, |mass| mass >= f64::from(change.top_p) * total);
        all.truncate(kept);
        let least = f64::from(change.min_p) * all[0].2;
        all.retain(|c| c.2 >= least);
        let weights: Vec<f64> =
            all.iter().map(|c| ((c.1 - all[0].1) / f64::from(change.temp)).exp()).collect();
        let total: f64 = weights.iter().sum();

        let n_draws = 20_000;
        let mut counts = vec![0u32; logits.len()];
        let mut sampler = sampler(SamplerParams { seed: Some(11), ..change }, logits.len());
        for _ in 0..n_draws {
            counts[sampler.sample(&logits) as usize] += 1;
        }
        let drawn: u32 = all.iter().map(|c| counts[c.0 as usize]).sum();
        assert_eq!(drawn, n_draws, "{name}: drew what had been cut away");
        let terms = all.iter().zip(&weights).map(|(c, weight)| {
            let expected = f64::from(n_draws) * weight / total;
            (f64::from(counts[c.0 as usize]) - expected).powi(2) / expected
        });
        let chi_squared: f64 = terms.sum();
        let freedom = all.len() as f64 - 1.0;
        // Mean `freedom`, variance twice that: within 4 standard deviations.
        let limit = 4.0 * (2.0 * freedom).sqrt();
        assert!((chi_squared - freedom).abs() < limit, "{name}: {chi_squared} of {freedom}");
    }
}

#[test]
fn zero_temperature_is_argmax() {
    let mut greedy = sampler(SamplerParams { temp: 0.0, ..Default::default() }, 100);
    for (logits, all) in &*MANY_LOGITS {
        let expected = all.first().map_or(0, |best| best.0);
        assert_eq!(greedy.sample(logits), expected);
    }
}

/// 200 tokens from logits that depend on the last one.
fn generate(sampler: &mut Sampler) -> Vec<u32> {
    let mut token = 0u32;
    let mut next = || {
        let logits: Vec<f32> =
            (0..300).map(|i| ((i * (token + 3) * 31) % 97) as f32 * 0.05).collect();
        token = sampler.sample(&logits);
        sampler.accept(token);
        token
    };
    (0..200).map(|_| next()).collect()
}

#[test]
fn the_seed_decides() {
    for mirostat in 0..=2 {
        let params = SamplerParams {
            seed: Some(5),
            mirostat,
            top_k: 0,
            repeat_penalty: 1.1,
            dry_multiplier: 0.5,
            xtc_probability: 0.5,
            xtc_threshold: 0.01,
            dry_sequence_breakers: vec!["7".into()],
            ..Default::default()
        };
        let mut first = sampler(params.clone(), 300);
        let tokens = generate(&mut first);
        let mut copy = first.clone();
        assert_eq!(generate(&mut first), generate(&mut copy), "a clone goes on alike");
        first.reset();
        assert_eq!(generate(&mut first), tokens, "reset");
        assert_eq!(generate(&mut sampler(params.clone(), 300)), tokens, "the same seed");
        let other = SamplerParams { seed: Some(6), ..params.clone() };
        assert_ne!(generate(&mut sampler(other, 300)), tokens, "another seed");

        let mut random = sampler(SamplerParams { seed: None, ..params.clone() }, 300);
        let again = SamplerParams { seed: Some(random.seed()), ..params.clone() };
        assert_ne!(random.seed(), sampler(SamplerParams { seed: None, ..params }, 300).seed());
        assert_eq!(generate(&mut random), generate(&mut sampler(again, 300)), "the seed it names");
    }
}

/// A promise to users: this seed gives these tokens in every version, on every machine.
#[test]
fn the_stream_of_choices_is_stable() {
    let tokens =
        generate(&mut sampler(SamplerParams { seed: Some(42), ..Default::default() }, 300));
    assert_eq!(tokens[..12], [244, 98, 298, 204, 245, 178, 33, 188, 70, 294, 170, 249]);
}

#[test]
fn bias_moves_and_forbids() {
    let check = |logit_bias: &[(u32, f32)], ignore_eos, logits: &[f32], expected| {
        let logit_bias = logit_bias.to_vec();
        let params = SamplerParams { logit_bias, ignore_eos, temp: 0.0, ..Default::default() };
        assert_eq!(sampler(params, 4).sample(logits), expected);
    };
    let logits = [1.0, 0.0, 5.0, 2.0]; // 2 ends a generation
    check(&[], false, &logits, 2);
    check(&[], true, &logits, 3);
    check(&[(3, f32::NEG_INFINITY)], true, &logits, 0);
    check(&[(2, 100.0)], true, &logits, 3);
    check(&[(1, 5.5)], false, &logits, 1);
    check(&[(1, 3.0), (0, 1.0), (1, 3.0)], false, &logits, 1); // entries add up
    check(&[(2, -3.5)], false, &logits, 3);
    check(&[(2, f32::NEG_INFINITY), (2, 100.0)], false, &logits, 3);
    check(&[(2, 100.0)], false, &[0.0, 1.0], 1); // fewer logits than tokens
}

#[test]
fn the_chain_runs_in_its_order() {
    let left = |samplers: &str| {
        let params = SamplerParams {
            samplers: SamplerKind::parse_chain(samplers).unwrap(),
            top_k: 3,
            top_p: 0.5,
            min_p: 0.0,
            temp: 4.0,
            seed: Some(0),
            ..Default::default()
        };
        let mut sampler = sampler(params, 5);
        let logits: Vec<f32> = [0.4f32, 0.25, 0.2, 0.1, 0.05].iter().map(|p| p.ln()).collect();
        (0..500).map(|_| sampler.sample(&logits)).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(left(""), 5);
    assert_eq!(left("top_k"), 3);
    assert_eq!(left("top_p"), 2);
    assert_eq!(left("top_p;temperature"), 2);
    assert_eq!(left("temperature;top_p"), 3); // flattened first, the nucleus is larger
    assert_eq!(left("top_k;temperature;top_p"), 2); // 0.37 + 0.33 of what top_k left
}

#[test]
fn logprobs_are_the_models_own() {
    let params = SamplerParams {
        temp: 0.0,
        repeat_penalty: 2.0,
        logit_bias: vec![(1, f32::NEG_INFINITY)],
        ..Default::default()
    };
    let mut sampler = sampler(params, 5000);
    for (logits, all) in &*MANY_LOGITS {
        for n in [0, 1, 5, usize::MAX] {
            let Sampled { token, top } = sampler.sample_with_logprobs(logits, n);
            assert_eq!(top.len(), n.min(all.len()));
            for (found, expected) in top.iter().zip(all) {
                assert_eq!(found.id, expected.0);
                let error = f64::from(found.logprob) - expected.2.ln();
                assert!(expected.2 == 0.0 || error.abs() < 1e-4 * (1.0 - expected.2.ln()));
            }
            if let Some(expected) = all.iter().find(|c| c.0 == token.id) {
                assert!((f64::from(token.logprob).exp() - expected.2).abs() < 1e-6);
            } else {
                assert_eq!(token.logprob, f32::NEG_INFINITY);
            }
        }
    }
}

#[test]
fn logprobs_of_the_draw() {
    let params = |temp: f32| SamplerParams {
        temp,
        samplers: vec![SamplerKind::TopK, SamplerKind::Temperature],
        top_k: 3,
        logit_bias: vec![(1, f32::NEG_INFINITY)],
        seed: Some(7),
        ..Default::default()
    };
    let logits = [1.0, 9.0, 2.5, 0.5, 2.0, -1.0];
    let weights = [(2, 2.5f64), (4, 2.0), (0, 1.0)].map(|(id, x)| (id, (x / 0.5).exp()));
    let mass: f64 = weights.iter().map(|weight| weight.1).sum();
    let (mut told, mut plain) = (sampler(params(0.5), 6), sampler(params(0.5), 6));
    for n in [0, 2, 3, 5].repeat(10) {
        let Sampled { token, top } = told.sample_with_drawn_logprobs(&logits, None, n);
        assert_eq!(token.id, plain.sample(&logits), "telling changes nothing");
        assert_eq!(top.len(), n.min(3));
        for (found, (id, weight)) in top.iter().zip(weights) {
            assert_eq!(found.id, id);
            assert!((f64::from(found.logprob).exp() - weight / mass).abs() < 1e-6);
        }
        let chosen = weights.iter().find(|weight| weight.0 == token.id).unwrap();
        assert!((f64::from(token.logprob).exp() - chosen.1 / mass).abs() < 1e-6);
    }
    // Without a temperature there is nothing to draw.
    let certain = sampler(params(0.0), 6).sample_with_drawn_logprobs(&logits, None, 5);
    assert_eq!((certain.token.id, certain.token.logprob), (2, 0.0));
    assert_eq!(certain.top, [certain.token]);
    // A mask counts, too; Mirostat's candidates are told like all others.
    let mut mask = TokenMask::new(6);
    mask.allow(3);
    let masked = sampler(params(0.5), 6).sample_with_drawn_logprobs(&logits, Some(&mask), 5);
    assert_eq!((masked.token.id, masked.top.len()), (3, 1));
    let mirostat = SamplerParams { mirostat: 2, ..params(1.0) };
    let told = sampler(mirostat, 6).sample_with_drawn_logprobs(&logits, None, 9);
    let sum: f64 = told.top.iter().map(|token| f64::from(token.logprob).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-6, "{told:?}");
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let params = SamplerParams { logit_bias: vec![(9, 1.0), (10, 1.0)], ..Default::default() };
    let error = Sampler::new(params, &Words::numbered(10)).unwrap_err();
    assert_eq!(error, SamplerError::UnknownToken { token: 10, n_tokens: 10 });
    assert!(error.to_string().contains("expected token ids below 10, found 10"));
}

fn any_logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -20.0f32..20.0,
        1 => (-4i8..4).prop_map(f32::from),
        1 => any::<u32>().prop_map(f32::from_bits),
        1 => prop_oneof![Just(f32::NEG_INFINITY), Just(f32::INFINITY), Just(f32::NAN)],
    ]
}

/// Any number that a parameter can be, mostly in its usual range.
fn any_number() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => 0.0f32..=1.0,
        2 => prop_oneof![Just(0.0), Just(1.0), Just(-1.0), Just(f32::MAX), Just(1e-40)],
        1 => 1.0f32..10.0,
        1 => any::<u32>().prop_map(f32::from_bits),
    ]
}

fn any_length() -> impl Strategy<Value = i32> {
    prop_oneof![4 => 0..10i32, 1 => any::<i32>(), 1 => Just(-1)]
}

prop_compose! {
    fn any_params()(
        x in prop::collection::vec(any_number(), 16),
        lengths in prop::collection::vec(any_length(), 4),
        mirostat in 0u8..4,
        min_keep in prop_oneof![0usize..10, any::<usize>()],
        chain in "[edskypmxt]{0,12}",
        logit_bias in prop::collection::vec((0u32..200, any_logit()), 0..4),
        breakers in prop::collection::vec("[0-9]{1,3}", 0..3),
        (seed, ignore_eos) in any::<(u64, bool)>(),
    ) -> SamplerParams {
        SamplerParams {
            seed: Some(seed),
            samplers: SamplerKind::parse_letters(&chain).unwrap(),
            min_keep,
            temp: x[0],
            dynatemp_range: x[1],
            dynatemp_exponent: x[2],
            top_k: lengths[0],
            top_p: x[3],
            min_p: x[4],
            typical_p: x[5],
            top_n_sigma: x[6],
            xtc_probability: x[7],
            xtc_threshold: x[8],
            repeat_last_n: lengths[1],
            repeat_penalty: x[9],
            presence_penalty: x[10],
            frequency_penalty: x[11],
            dry_multiplier: x[12],
            dry_base: x[13],
            dry_allowed_length: lengths[2],
            dry_penalty_last_n: lengths[3],
            dry_sequence_breakers: breakers,
            mirostat,
            mirostat_tau: x[14],
            mirostat_eta: x[15],
            logit_bias,
            ignore_eos,
        }
    }
}

/// The same parameters with everything out of range brought into it.
fn brought_into_range(mut params: SamplerParams) -> SamplerParams {
    for _ in 0..40 {
        let Err(SamplerError::OutOfRange { name, .. }) = params.validate() else { break };
        match name {
            "temp" => params.temp = 0.7,
            "dynatemp_range" => params.dynatemp_range = 0.3,
            "dynatemp_exponent" => params.dynatemp_exponent = 2.0,
            "top_p" => params.top_p = 0.9,
            "min_p" => params.min_p = 0.1,
            "typical_p" => params.typical_p = 0.5,
            "top_n_sigma" => params.top_n_sigma = 1.0,
            "xtc_probability" => params.xtc_probability = 0.5,
            "xtc_threshold" => params.xtc_threshold = 0.1,
            "repeat_penalty" => params.repeat_penalty = 1.3,
            "presence_penalty" => params.presence_penalty = 0.1,
            "frequency_penalty" => params.frequency_penalty = 0.1,
            "dry_multiplier" => params.dry_multiplier = 0.8,
            "dry_base" => params.dry_base = 1.75,
            "repeat_last_n" => params.repeat_last_n = -1,
            "dry_penalty_last_n" => params.dry_penalty_last_n = 20,
            "dry_allowed_length" => params.dry_allowed_length = 1,
            "mirostat" => params.mirostat = 0,
            "mirostat_tau" => params.mirostat_tau = 5.0,
            "mirostat_eta" => params.mirostat_eta = 0.1,
            "logit_bias" => params.logit_bias.clear(),
            other => panic!("no repair for {other}"),
        }
    }
    params
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever passes validation samples: no panic, and a possible token wherever there is one.
    #[test]
    fn any_valid_parameters_give_a_possible_token(
        params in any_params(),
        steps in prop::collection::vec(prop::collection::vec(any_logit(), 0..200), 1..8),
    ) {
        let params = brought_into_range(params);
        prop_assert_eq!(params.validate(), Ok(()));
        let mut sampler = Sampler::new(params.clone(), &Words::numbered(200)).unwrap();
        for logits in &steps {
            let token = sampler.sample_with_logprobs(logits, 3).token.id;
            sampler.accept(token);
            let chosen = logits.get(token as usize).copied().unwrap_or(f32::NAN);
            // Biases and penalties can make any token impossible.
            let untouched = params.logit_bias.is_empty() && !params.ignore_eos
                && (params.mirostat > 0 || !params.samplers.iter().any(|kind| {
                    matches!(kind, SamplerKind::Penalties | SamplerKind::Dry)
                }));
            if untouched && !sorted(logits).is_empty() {
                prop_assert!(chosen > f32::NEG_INFINITY, "chose {} of {:?}", token, logits);
            }
        }
    }
}
