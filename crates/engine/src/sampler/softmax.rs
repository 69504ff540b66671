//! The exponential and what is made of it.
//!
//! `f32::exp` is a call into the platform's library: its last bit differs between platforms, and a
//! loop over it does not vectorise. This one gives the same bits everywhere, so a seed gives the
//! same tokens everywhere.

/// Below this exp(x) is no normal number; here it is 0.
const LOWEST: f32 = -87.0;

/// exp(x) for x ≤ 0, within 2 units in the last place; 0 below -87 and for NaN, 1 above 0.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2; exp(r) is its Taylor polynomial of degree 7; 2^n is put
/// together from bits. No branch, so that loops vectorise.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has so few bits that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    let clamped = if x > LOWEST { x } else { LOWEST };
    let clamped = if clamped < 0.0 { clamped } else { 0.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;
    let mut poly = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        poly = poly * r + coefficient;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23); // 2^n
    let mask = u32::from(x >= LOWEST).wrapping_neg();
    f32::from_bits((poly * power).to_bits() & mask)
}

/// Logits that are worked on together: loops over arrays of this length vectorise.
pub(super) const BLOCK: usize = 128;

/// Σ exp(x - max) over `logits`. NaN counts as negative infinity, positive infinity as `max`.
pub(super) fn mass(logits: &[f32], max: f32) -> f64 {
    logits.chunks(BLOCK).map(|block| block_mass(block, max)).sum()
}

/// [`mass`] of at most [`BLOCK`] logits.
pub(super) fn block_mass(block: &[f32], max: f32) -> f64 {
    let mut weights = [0.0; BLOCK];
    let weights = &mut weights[..block.len()];
    for (weight, &x) in weights.iter_mut().zip(block) {
        *weight = exp(x - max);
    }
    sum(weights)
}

/// The [`mass`], and Σ w ln w for the weights w = exp(x - max).
pub(super) fn mass_and_logs(logits: &[f32], max: f32) -> (f64, f64) {
    let (mut mass, mut logs) = (0.0, 0.0);
    let (mut weights, mut products) = ([0.0; BLOCK], [0.0; BLOCK]);
    for block in logits.chunks(BLOCK) {
        let (weights, products) = (&mut weights[..block.len()], &mut products[..block.len()]);
        for ((weight, product), &x) in weights.iter_mut().zip(&mut *products).zip(block) {
            let below = x - max;
            let below = if below > LOWEST { below } else { LOWEST };
            *weight = exp(x - max);
            *product = *weight * if below < 0.0 { below } else { 0.0 };
        }
        mass += sum(weights);
        logs += sum(products);
    }
    (mass, logs)
}

/// Σ of f32 numbers in f64.
fn sum(numbers: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (chunks, rest) = numbers.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(x);
        }
    }
    let rest: f64 = rest.iter().map(|&x| f64::from(x)).sum();
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_the_exponential() {
        for i in 0..=870_000 {
            let x = i as f32 * -1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) / expected - 1.0).abs();
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}): {error:e}");
        }
        for (x, expected) in [
            (0.0, 1.0),
            (-0.0, 1.0),
            (-88.0, 0.0),
            (f32::NEG_INFINITY, 0.0),
            (f32::MIN, 0.0),
            (f32::NAN, 0.0),
            (f32::INFINITY, 1.0),
        ] {
            assert_eq!(exp(x), expected, "exp({x})");
        }
    }

    #[test]
    fn mass_is_the_sum_of_exponentials() {
        let logits: Vec<f32> = (0..1003).map(|i| (i * 37 % 101) as f32 * -0.3).collect();
        let expected: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        assert!((mass(&logits, 0.0) / expected - 1.0).abs() < 1e-6);
        let logs: f64 = logits.iter().map(|&x| f64::from(x).exp() * f64::from(x)).sum();
        assert_eq!(mass_and_logs(&logits, 0.0).0, mass(&logits, 0.0));
        assert!((mass_and_logs(&logits, 0.0).1 / logs - 1.0).abs() < 1e-6);

        let odd = [f32::NAN, 5.0, f32::NEG_INFINITY, 5.0, f32::INFINITY];
        assert_eq!(mass(&odd, 5.0), 3.0);
        assert_eq!(mass_and_logs(&odd, 5.0), (3.0, 0.0));
        assert_eq!(mass(&[], 0.0), 0.0);
    }
}
