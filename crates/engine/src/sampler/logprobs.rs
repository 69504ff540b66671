//! How probable tokens are: to the model itself, or in the draw.
use super::candidates::{Candidates, sort};

/// Whose probabilities are told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Distribution {
    /// The model's own, before bias, penalties, truncation and temperature.
    #[default]
    Model,
    /// That of the draw: what grammar and sampler chain have left.
    Drawn,
}

/// A token and the natural logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// ln p, at most 0; negative infinity for what is impossible.
    pub logprob: f32,
}

/// A chosen token with the distribution around it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The chosen token and its log-probability.
    pub token: TokenLogprob,
    /// The most probable tokens, best first; equals by id.
    pub top: Vec<TokenLogprob>,
}

/// Log-probabilities among `candidates`: of `id`, and of the `n` most probable tokens.
pub(super) fn logprobs(candidates: &mut Candidates<'_>, id: u32, n: usize) -> Sampled {
    let max = candidates.max();
    let log_mass = candidates.mass(max).ln();
    let logprob = |x: f32| ((f64::from(x) - f64::from(max)) - log_mass).min(0.0) as f32;
    let chosen = candidates.logit(id).map_or(f32::NEG_INFINITY, logprob);
    let mut top = Vec::new();
    if n > 0 {
        let ranked = candidates.largest(n, logprob);
        sort(ranked);
        let best = ranked.iter().take(n);
        top.extend(best.map(|token| TokenLogprob { id: token.id(), logprob: token.weight }));
    }
    Sampled { token: TokenLogprob { id, logprob: chosen }, top }
}
