//! Temperature, fixed and dynamic.
use super::candidates::Candidates;

/// Divides the logits by `temp`; 0 or less keeps only the best candidate.
pub(super) fn temperature(candidates: &mut Candidates<'_>, temp: f32) {
    if temp <= 0.0 {
        candidates.keep_best();
        return;
    }
    let max = candidates.max();
    if (max / temp).is_finite() {
        candidates.map(|x| x / temp);
    } else {
        // A tiny temperature: only the distances count, and these may become infinite.
        candidates.map(|x| (x - max) / temp);
    }
}

/// Dynamic temperature: from `temp - range` (at least 0) for a certain choice to `temp + range` for
/// an even one, by the entropy's part of the largest possible to the power of `exponent`.
/// A `range` of 0 is a fixed temperature.
pub(super) fn dynamic_temperature(
    candidates: &mut Candidates<'_>,
    temp: f32,
    range: f32,
    exponent: f32,
) {
    if range <= 0.0 {
        temperature(candidates, temp);
        return;
    }
    let n = candidates.n_possible();
    if n <= 1 {
        return;
    }
    let max = candidates.max();
    let (_, entropy) = candidates.mass_and_entropy(max);
    let (low, high) = ((temp - range).max(0.0), (temp + range).min(f32::MAX));
    let evenness = (entropy / (n as f64).ln()) as f32;
    let evenness = evenness.clamp(0.0, 1.0);
    temperature(candidates, low + (high - low) * evenness.powf(exponent));
}
