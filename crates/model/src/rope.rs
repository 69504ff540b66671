//! Rotary positions and the ways to stretch them.
//!
//! All of linear scaling, YaRN (arXiv:2309.00071), Llama 3's and LongRoPE's factors come down to one
//! frequency a pair and one magnitude, which are fixed when the model is loaded:
//! `angle(pos, i) = pos · freq[i]`, `(cos, sin) · magnitude`.

use crate::ModelError;
use crate::hparams::file_name;
use crate::spec::ArchSpec;
use hurtle_gguf::Gguf;

/// Rotary positions of some layers.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeParams {
    /// `rope.freq_base`.
    pub base: f32,
    n_rot: usize,
    scaling: Scaling,
    /// Divisors of the frequencies, `[n_rot / 2]`.
    factors: Option<Vec<f32>>,
    attn_factor: f32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scaling {
    None,
    Linear { factor: f32 },
    Yarn { factor: f32, n_ctx_orig: usize },
}

/// YaRN's bounds, in rotations over the original context: above `FAST` a pair keeps its frequency,
/// below `SLOW` it is fully interpolated.
const BETA_FAST: f64 = 32.0;
const BETA_SLOW: f64 = 1.0;

impl RopeParams {
    /// Without any scaling.
    pub(crate) fn plain(n_rot: usize, base: f32) -> Self {
        Self { base, n_rot, scaling: Scaling::None, factors: None, attn_factor: 1.0 }
    }

    pub(crate) fn with_base(&self, base: f32) -> Self {
        Self { base, ..self.clone() }
    }

    pub(crate) fn read(
        gguf: &Gguf,
        spec: &ArchSpec,
        n_rot: usize,
        n_ctx_train: usize,
        n_ctx: usize,
    ) -> Result<Self, ModelError> {
        let meta = gguf.metadata();
        let key = |name: &str| format!("{}.rope.{name}", spec.name);
        let base = meta.f32(&key("freq_base"))?.unwrap_or(10_000.0);
        let factor = match meta.f32(&key("scaling.factor"))? {
            Some(factor) => Some(factor),
            None => meta.f32(&key("scale_linear"))?,
        };
        let factor = factor.filter(|factor| *factor != 0.0).unwrap_or(1.0);
        for (key, value) in [(key("freq_base"), base), (key("scaling.factor"), factor)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(ModelError::BadValue {
                    file: file_name(gguf),
                    key,
                    found: value.to_string(),
                    expected: "above 0".into(),
                });
            }
        }
        let n_ctx_orig = meta.u32(&key("scaling.original_context_length"))?.map(|n| n as usize);
        let n_ctx_orig = n_ctx_orig.filter(|n| *n > 0).unwrap_or(n_ctx_train);
        let scaling = match meta.string(&key("scaling.type"))?.unwrap_or("linear") {
            "none" => Scaling::None,
            "linear" | "longrope" => Scaling::Linear { factor },
            "yarn" => Scaling::Yarn { factor, n_ctx_orig },
            other => {
                return Err(ModelError::BadValue {
                    file: file_name(gguf),
                    key: key("scaling.type"),
                    found: format!("{other:?}"),
                    expected: "none, linear, longrope or yarn".into(),
                });
            }
        };
        Ok(Self {
            base,
            n_rot,
            scaling,
            factors: rope_factors(gguf, n_rot, n_ctx > n_ctx_orig)?,
            attn_factor: meta.f32(&key("scaling.attn_factor"))?.unwrap_or(1.0),
        })
    }

    /// The tables for use.
    pub(crate) fn frequencies(&self) -> RopeFrequencies {
        let pairs = 0..self.n_rot / 2;
        let plain = |i: usize| {
            let freq = f64::from(self.base).powf(-2.0 * i as f64 / self.n_rot as f64);
            freq / self.factors.as_ref().map_or(1.0, |factors| f64::from(factors[i]))
        };
        let (freq, magnitude) = match self.scaling {
            Scaling::None => (pairs.map(plain).collect(), 1.0),
            Scaling::Linear { factor } => {
                (pairs.map(|i| plain(i) / f64::from(factor)).collect(), 1.0)
            }
            Scaling::Yarn { factor, n_ctx_orig } => {
                let factor = f64::from(factor);
                // The pair that makes `rotations` turns within the original context.
                let pair_of = |rotations: f64| {
                    let turns = n_ctx_orig as f64 / (rotations * std::f64::consts::TAU);
                    self.n_rot as f64 * turns.ln() / (2.0 * f64::from(self.base).ln())
                };
                let low = pair_of(BETA_FAST).floor().max(0.0);
                let high = pair_of(BETA_SLOW).ceil().min(self.n_rot as f64 - 1.0);
                let freq = pairs.map(|i| {
                    let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    plain(i) * (ramp / factor + (1.0 - ramp))
                });
                let magnitude = if factor <= 1.0 { 1.0 } else { 1.0 + 0.1 * factor.ln() };
                (freq.collect(), magnitude)
            }
        };
        RopeFrequencies { freq, magnitude: magnitude * f64::from(self.attn_factor) }
    }
}

/// Frequency factors that the file carries as tensors: Llama 3's, or LongRoPE's for long or short
/// contexts.
fn rope_factors(gguf: &Gguf, n_rot: usize, long: bool) -> Result<Option<Vec<f32>>, ModelError> {
    let names = [
        "rope_freqs.weight",
        if long { "rope_factors_long.weight" } else { "rope_factors_short.weight" },
    ];
    let Some(tensor) = names.iter().find_map(|name| gguf.tensor(name)) else { return Ok(None) };
    let file = || file_name(gguf);
    let expected = vec![n_rot as u64 / 2];
    if tensor.dims() != expected {
        let found = tensor.dims().to_vec();
        return Err(ModelError::Shape {
            file: file(),
            tensor: tensor.name().into(),
            expected,
            found,
        });
    }
    let mut factors = vec![0.0; n_rot / 2];
    hurtle_quant::dequantize(tensor.ty(), gguf.data(tensor), &mut factors).map_err(|_| {
        ModelError::WeightType { file: file(), tensor: tensor.name().into(), ty: tensor.ty() }
    })?;
    if let Some(bad) = factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
        return Err(ModelError::BadValue {
            file: file(),
            key: tensor.name().into(),
            found: bad.to_string(),
            expected: "above 0".into(),
        });
    }
    Ok(Some(factors))
}

/// Frequencies and magnitude, ready for use.
#[derive(Debug, Clone)]
pub(crate) struct RopeFrequencies {
    freq: Vec<f64>,
    magnitude: f64,
}

impl RopeFrequencies {
    /// Rotating pairs of a head.
    pub(crate) fn n_pairs(&self) -> usize {
        self.freq.len()
    }

    /// Appends (cosine, sine) of all pairs at position `pos`.
    pub(crate) fn push(&self, pos: usize, table: &mut Vec<(f32, f32)>) {
        table.extend(self.freq.iter().map(|freq| {
            let (sin, cos) = (pos as f64 * freq).sin_cos();
            ((cos * self.magnitude) as f32, (sin * self.magnitude) as f32)
        }));
    }
}
