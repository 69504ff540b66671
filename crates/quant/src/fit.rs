//! How encoders choose scales and quants: the searches of ggml's reference encoders.
//!
//! Which of two nearly equal scales wins depends on the last bit of a sum, so the order of every
//! addition here is part of the result: encoded files are to be equal to ggml's in every byte.

/// Groups whose values are all below this are taken for zeros.
pub(crate) const ZERO_GROUP: f32 = 1e-15;

/// The nearest integer, ties to even, of a value up to 4194303 in magnitude. Beyond, and for NaN,
/// the result is some integer of at most 23 bits.
///
/// Adding 1.5 · 2^23 leaves no room for a fraction in the mantissa: the integer is its lower bits.
#[inline(always)]
pub(crate) fn nearest_int(x: f32) -> i32 {
    let mantissa = (x + 12_582_912.0).to_bits() & 0x007f_ffff;
    mantissa as i32 - 0x0040_0000
}

/// The nearest integer that an i8 holds, ties away from zero, of a value in the range of
/// [`nearest_int`].
///
/// Not `x.round() as i8`, because neither the library call nor the saturating conversion
/// vectorises for every target.
#[inline(always)]
pub(crate) fn round_to_i8(x: f32) -> i8 {
    let even = nearest_int(x);
    let rest = x - even as f32;
    let up = i32::from((x > 0.0) & (rest == 0.5));
    let down = i32::from((x < 0.0) & (rest == -0.5));
    (even + up - down).clamp(-128, 127) as i8
}

/// `1 / x`, or 0 for 0.
#[inline(always)]
pub(crate) fn reciprocal(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The value of the largest magnitude (the first of equals) with its sign, 0 if there is none.
#[inline(always)]
pub(crate) fn signed_extreme(x: &[f32]) -> f32 {
    let largest = largest_magnitude(x);
    if largest == 0.0 {
        return 0.0;
    }
    x.iter().copied().find(|x| x.abs() == largest).unwrap_or(0.0)
}

/// The largest magnitude, 0 if there is none; NaN is passed over.
///
/// As integers, which are in the order of what they stand for, NaN aside: compilers find the largest of them in any
/// order, that of f32 in the one that is written.
#[inline(always)]
pub(crate) fn largest_magnitude(x: &[f32]) -> f32 {
    const LANES: usize = 16;
    let magnitude = |x: &f32| {
        let bits = x.abs().to_bits();
        if bits > f32::INFINITY.to_bits() { 0 } else { bits }
    };
    let mut lanes = [0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = magnitude(x).max(*lane);
        }
    }
    let largest = lanes.into_iter().fold(0, u32::max);
    let largest = rest.iter().map(magnitude).fold(largest, u32::max);
    f32::from_bits(largest)
}

/// The smallest and the largest value.
#[inline(always)]
pub(crate) fn min_max(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::MAX, -f32::MAX), |(min, max), &x| {
        (if x < min { x } else { min }, if x > max { x } else { max })
    })
}

/// A scale and the quants that go with it.
pub(crate) struct Symmetric<const N: usize> {
    /// `x ≈ scale * (q - n_max)`.
    pub(crate) scale: f32,
    /// From 0 to `2 * n_max - 1`.
    pub(crate) quants: [u8; N],
}

/// Weighted sums `(w·x·q, w·q·q)` with weights `x²`: their quotient is the scale that fits `q`
/// best, `first² / second` how much of the error it removes.
fn symmetric_sums<const N: usize>(x: &[f32; N], quants: &[i32; N]) -> (f32, f32) {
    let (mut sum_xq, mut sum_qq) = (0.0f32, 0.0f32);
    for (&x, &q) in x.iter().zip(quants) {
        let (w, q) = (x * x, q as f32);
        sum_xq += w * x * q;
        sum_qq += w * q * q;
    }
    (sum_xq, sum_qq)
}

/// Fits `x ≈ scale * q` with `q` from `-n_max` to `n_max - 1` by trying 19 scales around that
/// which maps the extreme value to `-n_max`. Errors weigh `x²`.
pub(crate) fn fit_symmetric<const N: usize>(n_max: i32, x: &[f32; N]) -> Symmetric<N> {
    let extreme = signed_extreme(x);
    if extreme.abs() < ZERO_GROUP {
        return Symmetric { scale: 0.0, quants: [0; N] };
    }
    let round = |inverse: f32| x.map(|x| nearest_int(inverse * x).clamp(-n_max, n_max - 1));
    let mut quants = round(-(n_max as f32) / extreme);
    let (sum_xq, sum_qq) = symmetric_sums(x, &quants);
    let mut scale = if sum_qq != 0.0 { sum_xq / sum_qq } else { 0.0 };
    let mut best = scale * sum_xq;
    for step in (-9..=9).filter(|&step| step != 0) {
        let candidate = round(-(n_max as f32 + 0.1 * step as f32) / extreme);
        let (sum_xq, sum_qq) = symmetric_sums(x, &candidate);
        if sum_qq > 0.0 && sum_xq * sum_xq > best * sum_qq {
            quants = candidate;
            scale = sum_xq / sum_qq;
            best = scale * sum_xq;
        }
    }
    Symmetric { scale, quants: quants.map(|q| (q + n_max) as u8) }
}

/// Fits `x ≈ scale * q` with `q` from `-n_max` to `n_max - 1` by coordinate descent: up to five
/// rounds, in each of which every quant moves to where it fits the scale of the others best.
/// Errors weigh `x²`.
pub(crate) fn fit_symmetric_descent<const N: usize>(n_max: i32, x: &[f32; N]) -> Symmetric<N> {
    let extreme = signed_extreme(x);
    if extreme.abs() < ZERO_GROUP {
        return Symmetric { scale: 0.0, quants: [0; N] };
    }
    let round = |value: f32| nearest_int(value).clamp(-n_max, n_max - 1);
    let inverse = -(n_max as f32) / extreme;
    let mut quants = x.map(|x| round(inverse * x));
    let (mut sum_xq, mut sum_qq) = symmetric_sums(x, &quants);
    for _ in 0..5 {
        let mut changed = false;
        for (&x, quant) in x.iter().zip(&mut quants) {
            let (w, q) = (x * x, *quant as f32);
            let others_xq = sum_xq - w * x * q;
            if others_xq <= 0.0 || others_xq.is_nan() {
                continue;
            }
            let others_qq = sum_qq - w * q * q;
            let moved = round(x * others_qq / others_xq);
            if moved == *quant {
                continue;
            }
            let q = moved as f32;
            let (new_xq, new_qq) = (others_xq + w * x * q, others_qq + w * q * q);
            if new_qq > 0.0 && new_xq * new_xq * sum_qq > sum_xq * sum_xq * new_qq {
                (*quant, sum_xq, sum_qq) = (moved, new_xq, new_qq);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let scale = if sum_qq > 0.0 { sum_xq / sum_qq } else { 0.0 };
    Symmetric { scale, quants: quants.map(|q| (q + n_max) as u8) }
}

/// What [`fit_affine`] tries.
pub(crate) struct AffineSearch {
    /// The largest quant.
    pub(crate) n_max: i32,
    /// The scales tried map the range of the values to `n_max + first`, `+ first + step`, ….
    pub(crate) first: f32,
    /// See `first`.
    pub(crate) step: f32,
    /// How many steps are taken.
    pub(crate) n_steps: i32,
    /// Whether the error is the sum of the absolute differences instead of their squares.
    pub(crate) absolute_error: bool,
}

/// A scale, a minimum and the quants that go with them.
pub(crate) struct Affine<const N: usize> {
    /// `x ≈ scale * q - minimum`.
    pub(crate) scale: f32,
    /// The amount below zero, never negative.
    pub(crate) minimum: f32,
    /// From 0 to `n_max`.
    pub(crate) quants: [u8; N],
}

/// Fits `x ≈ scale * q - minimum`: for each scale tried the values are rounded, and the scale and
/// the minimum that fit these quants best compete by their weighted error.
pub(crate) fn fit_affine<const N: usize>(
    search: &AffineSearch,
    x: &[f32; N],
    weights: &[f32; N],
) -> Affine<N> {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_wx) = (weights[0], weights[0] * x[0]);
    for (&x, &w) in x.iter().zip(weights).skip(1) {
        if x < min {
            min = x;
        }
        if x > max {
            max = x;
        }
        sum_w += w;
        sum_wx += w * x;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        return Affine { scale: 0.0, minimum: -min, quants: [0; N] };
    }

    let n_max = search.n_max as f32;
    let round = |inverse: f32, min: f32| {
        x.map(|x| nearest_int(inverse * (x - min)).clamp(0, search.n_max) as u8)
    };
    let error = |scale: f32, min: f32, quants: &[u8; N]| {
        let mut error = 0.0f32;
        for ((&x, &w), &q) in x.iter().zip(weights).zip(quants) {
            let difference = scale * f32::from(q) + min - x;
            let difference =
                if search.absolute_error { difference.abs() } else { difference * difference };
            error += w * difference;
        }
        error
    };

    let inverse = n_max / (max - min);
    let mut scale = 1.0 / inverse;
    let mut quants = round(inverse, min);
    let mut best_error = error(scale, min, &quants);
    for step in 0..=search.n_steps {
        // The best minimum so far, not the lowest value, is what the next scales count from.
        let inverse = (search.first + search.step * step as f32 + n_max) / (max - min);
        let candidate = round(inverse, min);
        let (mut sum_q, mut sum_qq, mut sum_xq) = (0.0f32, 0.0f32, 0.0f32);
        for ((&x, &w), &q) in x.iter().zip(weights).zip(&candidate) {
            let q = f32::from(q);
            sum_q += w * q;
            sum_qq += w * q * q;
            sum_xq += w * q * x;
        }
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        if determinant <= 0.0 || determinant.is_nan() {
            continue;
        }
        let mut new_scale = (sum_w * sum_xq - sum_wx * sum_q) / determinant;
        let mut new_min = (sum_qq * sum_wx - sum_q * sum_xq) / determinant;
        if new_min > 0.0 {
            new_min = 0.0;
            new_scale = sum_xq / sum_qq;
        }
        let new_error = error(new_scale, new_min, &candidate);
        if new_error < best_error {
            (best_error, scale, min, quants) = (new_error, new_scale, new_min, candidate);
        }
    }
    Affine { scale, minimum: -min, quants }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_int_rounds_ties_to_even() {
        for i in -2000..2000 {
            let x = i as f32 * 0.25;
            assert_eq!(nearest_int(x), x.round_ties_even() as i32, "{x}");
        }
        for x in [4_194_303.0, -4_194_303.0] {
            assert_eq!(nearest_int(x), x as i32);
        }
        for x in [f32::NAN, f32::INFINITY, -f32::MAX] {
            assert!(nearest_int(x).abs() <= 1 << 22, "{x}");
        }
    }

    #[test]
    fn round_to_i8_rounds_ties_away_from_zero() {
        // Every f32 in steps of 1000 of its bits, and the neighbours of the ties.
        let all = (0..=u32::MAX).step_by(1000).map(f32::from_bits);
        let in_range = all.filter(|x| x.abs() <= 4_194_303.0);
        let ties = (-300..=300).map(|i| i as f32 + 0.5);
        for x in in_range.chain(ties.flat_map(|x| [x.next_down(), x, x.next_up()])) {
            assert_eq!(round_to_i8(x), x.round() as i8, "{x:?}");
        }
    }

    #[test]
    fn signed_extreme_keeps_the_first_of_equals() {
        assert_eq!(signed_extreme(&[1.0, -3.0, 3.0]), -3.0);
        assert_eq!(signed_extreme(&[f32::NAN, 2.0]), 2.0);
        assert_eq!(signed_extreme(&[]), 0.0);
        assert_eq!(signed_extreme(&[-0.0; 3]).to_bits(), 0);
        let long: Vec<f32> =
            (0..40).map(|i| if i == 37 { -5.0 } else { i as f32 / 10.0 }).collect();
        assert_eq!(signed_extreme(&long), -5.0);
    }
}
