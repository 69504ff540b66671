//! The links of the chain that cut candidates away.
use super::candidates::{Candidates, cut_by_mass, rank, total_weight};
use super::rng::Rng;
use super::softmax::exp;

/// Up to how many candidates are picked out by the maxima of blocks. Larger sets are cut off by
/// counting.
const FEW: usize = 256;

/// Keeps the `k` most probable; of equals, those with the lowest ids. 0 or less: all.
pub(super) fn top_k(candidates: &mut Candidates<'_>, k: i32) {
    if let Ok(k @ 1..) = usize::try_from(k) {
        keep_largest(candidates, k);
    }
}

/// Keeps the `k` ≥ 1 most probable.
pub(super) fn keep_largest(candidates: &mut Candidates<'_>, k: usize) {
    if k >= candidates.len() {
        return;
    }
    let cut = if k < FEW {
        let ranked = candidates.largest(k, |_| 0.0);
        (k <= ranked.len()).then(|| {
            let (_, last, _) = ranked.select_nth_unstable_by(k - 1, |a, b| b.rank.cmp(&a.rank));
            last.rank
        })
    } else {
        candidates.cut(|x| x, |_| 0.0, k, |_| true)
    };
    if let Some(cut) = cut {
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
    let few = FEW.min(candidates.len() / 512);
    let nucleus = if min_keep <= few {
        let ranked = candidates.largest(few, |x| exp(x - max));
        enough(total_weight(ranked)).then(|| cut_by_mass(ranked, 0, 0.0, min_keep, enough))
    } else {
        None
    };
    let cut = nucleus.unwrap_or_else(|| candidates.cut(|x| x, |x| exp(x - max), min_keep, enough));
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
    let (mass, entropy) = candidates.mass_and_entropy(max);
    let (log_mass, entropy) = (mass.ln() as f32, entropy as f32);
    // The nearer, the higher the rank.
    let order = |x: f32| -((log_mass - (x - max)) - entropy).abs();
    let target = f64::from(p) * mass;
    let cut = candidates.cut(order, |x| exp(x - max), min_keep, |mass| mass > target);
    if let Some(cut) = cut {
        candidates.keep(f32::NEG_INFINITY, |id, x| rank(order(x), id) >= cut);
    }
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
    // `exp` is off by some 1e-7: lower logits need not be looked at.
    let floor = (f64::from(max) + least.ln() - 1e-6) as f32;
    let tops = candidates.at_least(floor, |x| exp(x - max));
    tops.retain(|top| f64::from(top.weight) >= least);
    let n_tops = tops.len();
    let Some(last) = tops.iter().map(|top| top.rank).min() else { return };
    if n_tops > 1 && (min_keep <= 1 || candidates.n_possible() - (n_tops - 1) >= min_keep) {
        candidates.keep(f32::NEG_INFINITY, |id, x| rank(x, id) <= last);
    }
}
