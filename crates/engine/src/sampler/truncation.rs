//! The links of the chain that cut candidates away.
use super::candidates::{Candidates, cut_by_mass, rank, total_weight};
use super::rng::Rng;
use super::softmax::exp;

/// Keeps the `k` most probable; of equals, those with the lowest ids. 0 or less: all.
pub(super) fn top_k(candidates: &mut Candidates<'_>, k: i32) {
    if let Ok(k @ 1..) = usize::try_from(k) {
        keep_largest(candidates, k);
    }
}

/// Keeps the `k` ≥ 1 most probable.
pub(super) fn keep_largest(candidates: &mut Candidates<'_>, k: usize) {
    let ranked = candidates.largest(k, |_| 0.0);
    if k <= ranked.len() {
        let (_, last, _) = ranked.select_nth_unstable_by(k - 1, |a, b| b.rank.cmp(&a.rank));
        let cut = last.rank;
        candidates.keep_from(cut);
    }
}

/// Keeps the smallest set of the most probable whose mass is at least `p` of the whole (nucleus
/// sampling, <https://arxiv.org/abs/1904.09751>), and at least `min_keep`. 1: all.
pub(super) fn top_p(candidates: &mut Candidates<'_>, p: f32, min_keep: usize) {
    if p >= 1.0 {
        return;
    }
    let max = candidates.max();
    let target = f64::from(p) * candidates.mass(max);
    let enough = |mass: f64| mass >= target;
    // The nucleus of a vocabulary is mostly small: look for it among the first few.
    let mut ranked = candidates.largest(min_keep.max(256), |x| exp(x - max));
    if !enough(total_weight(ranked)) {
        ranked = candidates.largest(usize::MAX, |x| exp(x - max));
    }
    let cut = cut_by_mass(ranked, min_keep, enough);
    if let Some(cut) = cut {
        candidates.keep_from(cut);
    }
}

/// Keeps what is at least `p` times as probable as the best (<https://arxiv.org/abs/2407.01082>),
/// and at least `min_keep`. 0: all.
pub(super) fn min_p(candidates: &mut Candidates<'_>, p: f32, min_keep: usize) {
    if p <= 0.0 {
        return;
    }
    let floor = candidates.max() + p.ln();
    let mut above = 0;
    if min_keep > 1 {
        candidates.for_each(|_, x| above += usize::from(x >= floor));
    }
    if above < min_keep && min_keep > 1 {
        keep_largest(candidates, min_keep);
    } else {
        candidates.keep(floor, |_, _| true);
    }
}

/// Keeps what lies at most `n` standard deviations below the best logit
/// (<https://arxiv.org/abs/2411.07641>). 0 or less: all.
pub(super) fn top_n_sigma(candidates: &mut Candidates<'_>, n: f32) {
    if n <= 0.0 {
        return;
    }
    let max = f64::from(candidates.max());
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    candidates.for_each(|_, x| {
        let below = f64::from(x) - max;
        count += 1.0;
        sum += below;
        squares += below * below;
    });
    if count > 0.0 {
        let mean: f64 = sum / count;
        let deviation = (squares / count - mean * mean).max(0.0).sqrt();
        candidates.keep((max - f64::from(n) * deviation) as f32, |_, _| true);
    }
}

/// Keeps those whose surprise is nearest to the entropy, the expected surprise, until their mass
/// is above `p` (locally typical sampling, <https://arxiv.org/abs/2202.00666>), and at least
/// `min_keep`. 1: all.
pub(super) fn typical_p(candidates: &mut Candidates<'_>, p: f32, min_keep: usize) {
    if p >= 1.0 {
        return;
    }
    let max = candidates.max();
    let mass = candidates.mass(max);
    let entropy = entropy(candidates) as f32;
    let log_mass = mass.ln() as f32;
    // The nearer, the higher the rank.
    let order = |x: f32| -((log_mass - (x - max)) - entropy).abs();
    let target = f64::from(p) * mass;
    let ranked = candidates.ranked_by(order, |x| exp(x - max));
    if let Some(cut) = cut_by_mass(ranked, min_keep, |mass| mass > target) {
        candidates.keep(f32::NEG_INFINITY, |id, x| rank(order(x), id) >= cut);
    }
}

/// Entropy of the candidates' distribution in nats.
pub(super) fn entropy(candidates: &mut Candidates<'_>) -> f64 {
    let max = candidates.max();
    let mass = candidates.mass(max);
    let mut weighted = 0.0; // Σ weight ln(weight)
    candidates.for_each(|_, x| {
        let weight = exp(x - max);
        if weight > 0.0 {
            weighted += f64::from(weight) * f64::from(x - max);
        }
    });
    if mass > 0.0 { mass.ln() - weighted / mass } else { 0.0 }
}

/// "Exclude top choices": with `probability`, removes all candidates of at least the probability
/// `threshold` but the least probable of them (if `min_keep` remain)
/// (<https://github.com/oobabooga/text-generation-webui/pull/6335>).
///
/// Takes one random number if it is switched on.
pub(super) fn xtc(
    candidates: &mut Candidates<'_>,
    probability: f32,
    threshold: f32,
    min_keep: usize,
    rng: &mut Rng,
) {
    if probability <= 0.0 || threshold > 0.5 || rng.uniform() >= f64::from(probability) {
        return;
    }
    let max = candidates.max();
    let least = f64::from(threshold) * candidates.mass(max);
    candidates.keep(f32::NEG_INFINITY, |_, _| true);
    let mut tops = 0;
    let mut last = u64::MAX; // rank of the least probable top choice
    candidates.for_each(|id, x| {
        if f64::from(exp(x - max)) >= least {
            tops += 1;
            last = last.min(rank(x, id));
        }
    });
    if tops > 1 && candidates.len() - (tops - 1) >= min_keep {
        candidates.keep(f32::NEG_INFINITY, |id, x| rank(x, id) <= last);
    }
}
