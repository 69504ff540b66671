//! Each algorithm once, over [`Lanes`]. Inlined into the shells, which add the target features.

use super::{LANES, Lanes};
use crate::elementwise::{Activation, RopeStyle};
use hurtle_quant::{Block, BlockVisitor, Error, WeightType, decode_row};

/// Decodes whole blocks; compiled for the shell's instruction set.
#[inline(always)]
pub(crate) fn decode(ty: WeightType, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    struct Decode<'a>(&'a [u8], &'a mut [f32]);
    impl BlockVisitor for Decode<'_> {
        type Output = Result<(), Error>;
        #[inline(always)]
        fn visit<B: Block>(self) -> Self::Output {
            decode_row::<B>(self.0, self.1)
        }
    }
    let integers = Err(Error::Unsupported { ty, what: "decoding to f32" });
    ty.visit(Decode(bytes, out)).unwrap_or(integers)
}

/// Adds 16 lanes up, always in the same order.
#[inline(always)]
pub(crate) fn fold(lanes: [f32; LANES]) -> f32 {
    fold_by(lanes, |a, b| a + b)
}

/// The largest of 16 lanes that are not NaN.
#[inline(always)]
pub(crate) fn max(lanes: [f32; LANES]) -> f32 {
    fold_by(lanes, |a, b| if a > b { a } else { b })
}

#[inline(always)]
fn fold_by(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Adds the products of the last `k % 16` values to their lanes.
#[inline(always)]
fn add_tail(lanes: &mut [f32; LANES], a: &[f32], b: &[f32]) {
    for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
        *lane += a * b;
    }
}

/// Dot products of `R` rows with `T` tokens, each `k` long.
///
/// Written with plain loops: a closure does not inherit the shell's target features, so intrinsics
/// inside one would become calls.
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const T: usize>(
    rows: [&[f32]; R],
    tokens: [&[f32]; T],
    k: usize,
) -> [[f32; T]; R] {
    let whole = k - k % LANES;
    let mut dots = [[0.0; T]; R];
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut sums = [[L::splat(0.0); T]; R];
        let mut x = [L::splat(0.0); T];
        let mut at = 0;
        while at < whole {
            for t in 0..T {
                x[t] = L::load(&tokens[t][at..at + LANES]);
            }
            for r in 0..R {
                let w = L::load(&rows[r][at..at + LANES]);
                for t in 0..T {
                    sums[r][t] = sums[r][t].add(w.mul(x[t]));
                }
            }
            at += LANES;
        }
        for r in 0..R {
            for t in 0..T {
                let mut lanes = sums[r][t].to_array();
                add_tail(&mut lanes, &rows[r][whole..k], &tokens[t][whole..k]);
                dots[r][t] = fold(lanes);
            }
        }
    }
    dots
}

/// Multiplies decoded rows with tokens: `out(row, token, rows[row] · x[token])`.
///
/// `rows` is `[n_rows, k]`, `x` is `[n_tokens, k]`.
#[inline(always)]
pub(crate) unsafe fn matmul_rows<L: Lanes>(
    rows: &[f32],
    k: usize,
    x: &[f32],
    out: &mut dyn FnMut(usize, usize, f32),
) {
    let (n_rows, n_tokens) = (rows.len() / k, x.len() / k);
    // A step of the walk over (rows, tokens): as many as a register tile holds, or one.
    macro_rules! step {
        ($rows:literal, $tokens:literal, $r:expr, $t:expr) => {{
            let mut tile_rows = [&rows[..k]; $rows];
            for i in 0..$rows {
                tile_rows[i] = &rows[($r + i) * k..($r + i + 1) * k];
            }
            let mut tile_tokens = [&x[..k]; $tokens];
            for i in 0..$tokens {
                tile_tokens[i] = &x[($t + i) * k..($t + i + 1) * k];
            }
            // SAFETY: the caller has the lanes' instruction set.
            let dots = unsafe { tile::<L, $rows, $tokens>(tile_rows, tile_tokens, k) };
            for r in 0..$rows {
                for t in 0..$tokens {
                    out($r + r, $t + t, dots[r][t]);
                }
            }
        }};
    }
    let mut r = 0;
    while r < n_rows {
        let step_rows = if r + L::TILE_ROWS <= n_rows { L::TILE_ROWS } else { 1 };
        let mut t = 0;
        while t < n_tokens {
            let step_tokens = if t + L::TILE_TOKENS <= n_tokens { L::TILE_TOKENS } else { 1 };
            match (step_rows, step_tokens) {
                (4, 4) => step!(4, 4, r, t),
                (4, 1) => step!(4, 1, r, t),
                (1, 4) => step!(1, 4, r, t),
                (2, 2) => step!(2, 2, r, t),
                (2, 1) => step!(2, 1, r, t),
                (1, 2) => step!(1, 2, r, t),
                _ => {
                    for i in 0..step_rows {
                        step!(1, 1, r + i, t);
                    }
                }
            }
            t += step_tokens;
        }
        r += step_rows;
    }
}

/// Sum of squares, in lanes.
#[inline(always)]
unsafe fn sum_of_squares<L: Lanes>(x: &[f32]) -> f32 {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe { tile::<L, 1, 1>([x], [x], x.len())[0][0] }
}

/// See [`elementwise::rms_norm`](crate::elementwise::rms_norm).
#[inline(always)]
pub(crate) unsafe fn rms_norm<L: Lanes>(row: &mut [f32], weight: &[f32], eps: f32) {
    // SAFETY: the caller has the lanes' instruction set.
    let mean = unsafe { sum_of_squares::<L>(row) } / row.len() as f32;
    scale(row, weight, 1.0 / (mean + eps).sqrt());
}

/// See [`elementwise::layer_norm`](crate::elementwise::layer_norm).
#[inline(always)]
pub(crate) unsafe fn layer_norm<L: Lanes>(
    row: &mut [f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
) {
    let mut sums = [0.0; LANES];
    for values in row.chunks(LANES) {
        sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
    }
    let mean = fold(sums) / row.len() as f32;
    row.iter_mut().for_each(|x| *x -= mean);
    // SAFETY: the caller has the lanes' instruction set.
    let variance = unsafe { sum_of_squares::<L>(row) } / row.len() as f32;
    scale(row, weight, 1.0 / (variance + eps).sqrt());
    if let Some(bias) = bias {
        row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    }
}

/// `x[i] = x[i] · scale · weight[i]`.
#[inline(always)]
fn scale(row: &mut [f32], weight: &[f32], scale: f32) {
    for (x, w) in row.iter_mut().zip(weight) {
        *x = *x * scale * w;
    }
}

/// Rotates the heads of a token: see [`elementwise::rope`](crate::elementwise::rope).
#[inline(always)]
pub(crate) fn rope(heads: &mut [f32], head_dim: usize, style: RopeStyle, table: &[(f32, f32)]) {
    for head in heads.chunks_exact_mut(head_dim) {
        match style {
            RopeStyle::Norm => {
                for (pair, (cos, sin)) in head.chunks_exact_mut(2).zip(table) {
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * cos - b * sin;
                    pair[1] = a * sin + b * cos;
                }
            }
            RopeStyle::Neox => {
                let (low, high) = head[..2 * table.len()].split_at_mut(table.len());
                for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(table) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}

/// `e^x`, to about 1 ulp. Above 88 it is infinite.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    if x > 88.0 { f32::INFINITY } else { exp_to_88(x) }
}

/// `e^x` for `x <= 88`, to about 1 ulp: `2^n · p(r)` with `|r| <= ln 2 / 2` (Cephes' polynomial).
/// Below -87 it is 0.
///
/// Written without branches, so that loops over it become vector code.
#[inline(always)]
pub(crate) fn exp_to_88(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding it rounds to an integer: 1.5 · 2^23.
    const ROUND: f32 = 12_582_912.0;
    // Not `max`, which would make a number of NaN.
    let clamped = if x < -87.0 { -87.0 } else { x };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 0.166_666_65);
    let p = p.mul_add(r, 0.5);
    let p = (p * r).mul_add(r, r) + 1.0;
    // The integer sits in the low bits of `shifted`; move it into the exponent.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < -87.0 { 0.0 } else { p * scale }
}

/// `tanh`, from [`exp`].
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    // 1 - 2 / (e^2|x| + 1) loses relative accuracy below 0.1, where the series is exact enough.
    let a = x.abs();
    let large = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    let s = a * a;
    let small = a
        * (1.0
            + s * (-0.333_333_34 + s * (0.133_333_34 + s * (-0.053_968_254 + s * 0.021_869_488))));
    let value = if a < 0.1 { small } else { large };
    value.copysign(x)
}

/// `gate = activation(gate) · up`.
#[inline(always)]
pub(crate) fn gate(activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => {
            for (g, u) in gate.iter_mut().zip(up) {
                *g = *g / (1.0 + exp(-*g)) * u;
            }
        }
        Activation::GeluTanh => {
            for (g, u) in gate.iter_mut().zip(up) {
                const SQRT_2_OVER_PI: f32 = 0.797_884_6;
                let inner = SQRT_2_OVER_PI * *g * (1.0 + 0.044_715 * *g * *g);
                *g = 0.5 * *g * (1.0 + tanh(inner)) * u;
            }
        }
        Activation::SwigluOai => {
            for (g, u) in gate.iter_mut().zip(up) {
                const ALPHA: f32 = 1.702;
                const LIMIT: f32 = 7.0;
                let x = g.min(LIMIT);
                let y = u.clamp(-LIMIT, LIMIT);
                *g = x / (1.0 + exp(-ALPHA * x)) * (y + 1.0);
            }
        }
    }
}
