//! From logits to the next token: llama.cpp's sampler chain.
//!
//! ```text
//! logits ─► bias ─► penalties ─► dry ─► top_n_sigma ─► top_k ─► typ_p ─► top_p ─► min_p ─► xtc ─► temperature ─► draw
//!                   └───────────────── in the order of SamplerParams::samplers ────────────────────┘
//! logits ─► bias ─► temperature ─► mirostat
//! ```
//!
//! A choice depends on the logits, the parameters, the seed and the tokens accepted before, and on
//! nothing else. NaN counts as negative infinity: impossible. If nothing is possible, the choice is
//! the lowest id.
//!
//! Where this differs from llama.cpp: the random numbers are others; of equal logits the lowest id
//! comes first (there, the sort decides); tokens of negative infinity are not candidates (there,
//! they still count for the evenness that dynamic temperature measures); lengths of -1 look back on
//! all accepted tokens.
mod candidates;
mod dry;
mod infill;
mod logprobs;
mod mirostat;
mod params;
mod penalties;
mod rng;
mod softmax;
mod temperature;
#[cfg(test)]
mod tests;
mod truncation;

pub use logprobs::{Distribution, Sampled, TokenLogprob};
pub use params::{SamplerError, SamplerKind, SamplerParams};

use crate::constraint::TokenMask;
use candidates::{Buffers, Candidates};
use dry::Dry;
use infill::Infill;
use mirostat::Mirostat;
use penalties::{History, Penalties};
use rng::Rng;
use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};

/// What a sampler has to know of a vocabulary, when it is built.
pub trait Vocabulary {
    /// Number of tokens.
    fn n_tokens(&self) -> usize;
    /// Tokens that end a generation, for `ignore_eos`.
    fn end_of_generation(&self) -> &[u32];
    /// The text of a token, control tokens included, for DRY's sequence breakers.
    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]>;
    /// The tokens of a text, without special ones, for DRY's sequence breakers.
    fn encode(&self, text: &str) -> Vec<u32>;
}

impl Vocabulary for hurtle_text::Tokenizer {
    fn n_tokens(&self) -> usize {
        Self::n_tokens(self)
    }

    fn end_of_generation(&self) -> &[u32] {
        Self::end_of_generation(self)
    }

    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        Self::token_bytes(self, id, true).into()
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        Self::encode(self, text, hurtle_text::Encode::default())
    }
}

/// Chooses the tokens of one sequence.
///
/// A clone goes on from the same state and gives the same tokens: speculation clones a sampler,
/// tries, and takes the clone or drops it.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplerParams,
    n_vocab: usize,
    seed: u64,
    rng: Rng,
    /// Token and what is added to its logit, each token once.
    bias: Vec<(u32, f32)>,
    history: History,
    penalties: Option<Penalties>,
    dry: Option<Dry>,
    infill: Option<Infill>,
    mirostat: Mirostat,
    buffers: Buffers,
}

impl Sampler {
    /// Checks the parameters against their ranges and the vocabulary, and makes a sampler that has
    /// accepted no token.
    ///
    /// With DRY on, the sequence breakers are looked for in every token, and for infill the texts of
    /// all tokens are copied, which takes some milliseconds for a large vocabulary.
    pub fn new(params: SamplerParams, vocabulary: &dyn Vocabulary) -> Result<Self, SamplerError> {
        params.validate()?;
        let n_vocab = vocabulary.n_tokens();
        let unknown = params.logit_bias.iter().find(|&&(token, _)| token as usize >= n_vocab);
        if let Some(&(token, _)) = unknown {
            return Err(SamplerError::UnknownToken { token, n_tokens: n_vocab });
        }
        let mut bias = params.logit_bias.clone();
        if params.ignore_eos {
            let ends = vocabulary.end_of_generation().iter();
            bias.extend(ends.map(|&token| (token, f32::NEG_INFINITY)));
        }
        // A stable sort: entries for one token are added in the order in which they were given.
        bias.sort_by_key(|&(token, _)| token);
        bias.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 += next.1;
            }
            same
        });

        let uses = |kind| params.mirostat == 0 && params.samplers.contains(&kind);
        let penalties = Penalties::new(&params).filter(|_| uses(SamplerKind::Penalties));
        let dry = if uses(SamplerKind::Dry) { Dry::new(&params, vocabulary) } else { None };
        let windows = [penalties.as_ref().map(Penalties::window), dry.as_ref().map(Dry::window)];
        let capacity = windows.into_iter().flatten().max().unwrap_or(0);
        let seed = params.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        Ok(Self {
            n_vocab,
            seed,
            rng: Rng::new(seed),
            bias,
            history: History::new(capacity),
            penalties,
            dry,
            infill: uses(SamplerKind::Infill).then(|| Infill::new(vocabulary)),
            mirostat: Mirostat::new(params.mirostat_tau, params.mirostat_eta),
            buffers: Buffers::new(n_vocab),
            params,
        })
    }

    /// The parameters it was made with.
    pub fn params(&self) -> &SamplerParams {
        &self.params
    }

    /// The seed in use: the one given, or the random one chosen in its place.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses the next token from `logits` `[n_vocab]`. The caller then [`accept`](Self::accept)s
    /// it, or another token.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        self.sample_masked(logits, None)
    }

    /// As [`sample`](Self::sample); what `mask` does not contain is impossible.
    pub fn sample_masked(&mut self, logits: &[f32], mask: Option<&TokenMask>) -> u32 {
        self.draw(logits, mask).0
    }

    /// As [`sample_masked`](Self::sample_masked), with the log-probabilities of the draw
    /// ([`Distribution::Drawn`]): that of the choice and those of the `n` most probable tokens that were left.
    pub fn sample_with_drawn_logprobs(
        &mut self,
        logits: &[f32],
        mask: Option<&TokenMask>,
        n: usize,
    ) -> Sampled {
        let (id, mut candidates) = self.draw(logits, mask);
        logprobs::logprobs(&mut candidates, id, n)
    }

    /// The choice, and the candidates among which it was drawn.
    fn draw<'a>(
        &'a mut self,
        logits: &'a [f32],
        mask: Option<&TokenMask>,
    ) -> (u32, Candidates<'a>) {
        let mut candidates = match mask {
            None => Candidates::new(logits, &mut self.buffers),
            Some(mask) => Candidates::masked(logits, mask.words(), &mut self.buffers),
        };
        for &(token, bias) in &self.bias {
            candidates.adjust(token, |x| x + bias);
        }
        let params = &self.params;
        if params.mirostat > 0 {
            temperature::temperature(&mut candidates, params.temp);
            let id = match params.mirostat {
                1 => self.mirostat.draw_v1(&mut candidates, self.n_vocab, &mut self.rng),
                _ => self.mirostat.draw_v2(&mut candidates, &mut self.rng),
            };
            return (id, candidates);
        }
        let mut end = None;
        for kind in &params.samplers {
            let (candidates, min_keep) = (&mut candidates, params.min_keep);
            match kind {
                SamplerKind::Penalties => {
                    if let Some(penalties) = &self.penalties {
                        penalties.apply(candidates);
                    }
                }
                SamplerKind::Dry => {
                    if let Some(dry) = &mut self.dry {
                        dry.apply(&self.history, candidates);
                    }
                }
                SamplerKind::TopNSigma => truncation::top_n_sigma(candidates, params.top_n_sigma),
                SamplerKind::TopK => truncation::top_k(candidates, params.top_k),
                SamplerKind::TypicalP => {
                    truncation::typical_p(candidates, params.typical_p, min_keep);
                }
                SamplerKind::TopP => truncation::top_p(candidates, params.top_p, min_keep),
                SamplerKind::MinP => truncation::min_p(candidates, params.min_p, min_keep),
                SamplerKind::Xtc => truncation::xtc(
                    candidates,
                    params.xtc_probability,
                    params.xtc_threshold,
                    min_keep,
                    &mut self.rng,
                ),
                SamplerKind::Temperature => temperature::dynamic_temperature(
                    candidates,
                    params.temp,
                    params.dynatemp_range,
                    params.dynatemp_exponent,
                ),
                SamplerKind::Infill => {
                    if let Some(infill) = &mut self.infill {
                        end = infill.apply(candidates, mask);
                    }
                    if end.is_some() {
                        break;
                    }
                }
            }
        }
        let id = end.unwrap_or_else(|| candidates.draw(&mut self.rng).0);
        (id, candidates)
    }

    /// As [`sample`](Self::sample), with the log-probabilities that the model itself (before bias,
    /// penalties, truncation and temperature) gives to the choice and to its `n` best tokens.
    pub fn sample_with_logprobs(&mut self, logits: &[f32], n: usize) -> Sampled {
        let id = self.sample(logits);
        self.logprobs(logits, id, n)
    }

    /// The log-probabilities that the model itself gives to `id` and to its `n` best tokens.
    pub fn logprobs(&mut self, logits: &[f32], id: u32, n: usize) -> Sampled {
        logprobs::logprobs(&mut Candidates::new(logits, &mut self.buffers), id, n)
    }

    /// Takes `token` into the history on which penalties and DRY look back: every token of the
    /// sequence, those of the prompt and those chosen.
    pub fn accept(&mut self, token: u32) {
        if let Some(penalties) = &mut self.penalties {
            penalties.accept(token, &self.history);
        }
        self.history.push(token);
    }

    /// Back to the beginning: no token accepted, the same seed from its start.
    pub fn reset(&mut self) {
        self.rng = Rng::new(self.seed);
        self.history.clear();
        self.mirostat = Mirostat::new(self.params.mirostat_tau, self.params.mirostat_eta);
        if let Some(penalties) = &mut self.penalties {
            penalties.clear();
        }
    }
}
