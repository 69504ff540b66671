//! What one sequence carries from token to token, apart from its KV: the sampler, the constraint, the
//! detokenizer and the stop strings. [`Session`](crate::Session) and [`Service`](crate::Service) both
//! step it with the logits that their forward passes give, so that their answers cannot differ.

use crate::budget::Spending;
use crate::constraint::{Constraint, ConstraintError, TokenMask};
use crate::lines::Lines;
use crate::sampler::{Distribution, Sampled, Sampler};
use crate::{Engine, EngineError, GenerationParams, StopMatcher, StopReason};
use hurtle_text::StreamDecoder;

/// A restriction and the set that it fills.
struct Constrained {
    constraint: Box<dyn Constraint>,
    mask: TokenMask,
}

/// What a step gave.
pub(crate) struct Step {
    /// The new token, unless the generation ended without one.
    pub(crate) id: Option<u32>,
    pub(crate) logprobs: Option<Sampled>,
    /// Why the generation ends here.
    pub(crate) stop: Option<StopReason>,
}

pub(crate) struct TokenLoop<'e> {
    engine: &'e Engine,
    sampler: Sampler,
    constrained: Option<Constrained>,
    logprobs: Option<usize>,
    distribution: Distribution,
    decoder: StreamDecoder<'e>,
    /// What the latest token completes.
    decoded: String,
    stop: StopMatcher,
    lines: Lines,
    /// Most tokens to generate.
    n_predict: usize,
    /// Tokens after which the context is full.
    room: usize,
    n_generated: usize,
    ignore_eos: bool,
    stop_ids: Vec<u32>,
    keep_stop: bool,
    /// The budget of reasoning, and a set for the token that it forces.
    spending: Option<(Spending, TokenMask)>,
    /// So many tokens at least, and those that may come before; `None` where any number will do.
    at_least: Option<(usize, TokenMask)>,
}

impl<'e> TokenLoop<'e> {
    /// A loop whose sampler has accepted the prompt; `room` tokens may follow until the context is full.
    pub(crate) fn new(
        engine: &'e Engine,
        sampler: Sampler,
        params: &GenerationParams,
        room: usize,
    ) -> Self {
        Self {
            engine,
            ignore_eos: sampler.params().ignore_eos,
            sampler,
            constrained: None,
            logprobs: None,
            distribution: Distribution::Model,
            decoder: StreamDecoder::new(engine.tokenizer(), params.special).showing(&params.shown),
            decoded: String::new(),
            stop: StopMatcher::new(&params.stop),
            lines: Lines::new(params.lines),
            n_predict: params.n_predict.unwrap_or(usize::MAX),
            room,
            n_generated: 0,
            stop_ids: params.stop_ids.clone(),
            keep_stop: params.keep_stop,
            spending: params.reasoning_budget.clone().map(|budget| {
                (Spending::new(budget), TokenMask::new(engine.model().hparams().n_vocab))
            }),
            at_least: (params.min_tokens > 0).then(|| {
                let mut mask = TokenMask::new(engine.model().hparams().n_vocab);
                mask.words_mut().fill(u32::MAX);
                let ends = engine.tokenizer().end_of_generation().iter().chain(&params.stop_ids);
                ends.for_each(|&id| mask.forbid(id));
                (params.min_tokens, mask)
            }),
        }
    }

    /// The same, restricted, and with log-probabilities of so many best tokens in a distribution.
    pub(crate) fn with(
        mut self,
        constraint: Option<Box<dyn Constraint>>,
        logprobs: Option<usize>,
        distribution: Distribution,
    ) -> Self {
        let mask = || TokenMask::new(self.engine.model().hparams().n_vocab);
        self.constrained = constraint.map(|constraint| Constrained { constraint, mask: mask() });
        self.logprobs = logprobs;
        self.distribution = distribution;
        self
    }

    /// Tokens so far.
    pub(crate) fn n_generated(&self) -> usize {
        self.n_generated
    }

    /// The stop string that ended the generation.
    pub(crate) fn stop_string(&self) -> Option<&str> {
        self.stop.found()
    }

    /// How probable the model finds `id`, and its `n` best tokens.
    pub(crate) fn logprobs(&mut self, logits: &[f32], id: u32, n: usize) -> Sampled {
        self.sampler.logprobs(logits, id, n)
    }

    /// Chooses the next token; what can be shown of it is appended to `text`.
    pub(crate) fn step(&mut self, logits: &[f32], text: &mut String) -> Result<Step, EngineError> {
        let end = |stop| Ok(Step { id: None, logprobs: None, stop: Some(stop) });
        self.at_least.take_if(|(n, _)| self.n_generated >= *n);
        if self.n_generated >= self.n_predict {
            return end(StopReason::Length);
        }
        let mask = match &mut self.constrained {
            Some(Constrained { constraint, mask }) => {
                constraint.allowed(mask)?;
                // A grammar's own end counts for more.
                if let Some((_, early)) = &self.at_least
                    && mask.words().iter().zip(early.words()).any(|(a, b)| a & b != 0)
                {
                    let words = mask.words_mut().iter_mut().zip(early.words());
                    words.for_each(|(word, early)| *word &= early);
                }
                Some(&*mask)
            }
            None => self.at_least.as_ref().map(|(_, mask)| mask),
        };
        let mask = match &mut self.spending {
            Some((spending, forced)) => match spending.forced() {
                Some(id) => {
                    forced.clear();
                    forced.allow(id);
                    Some(&*forced)
                }
                None => mask,
            },
            None => mask,
        };
        let drawn = self.logprobs.filter(|_| self.distribution == Distribution::Drawn);
        let drawn = drawn.map(|n| self.sampler.sample_with_drawn_logprobs(logits, mask, n));
        let id = match &drawn {
            Some(sampled) => sampled.token.id,
            None => self.sampler.sample_masked(logits, mask),
        };
        let tok = self.engine.tokenizer();
        if let Some(mask) = mask.filter(|mask| !mask.contains(id)) {
            // To a grammar that allows the end and nothing else, it comes even if it is to be ignored.
            if self.ignore_eos && tok.end_of_generation().iter().any(|&end| mask.contains(end)) {
                return end(StopReason::EndOfText);
            }
            let none = "no token of the vocabulary can continue this answer".to_owned();
            return Err(ConstraintError(none).into());
        }
        if tok.is_end_of_generation(id) && (!self.ignore_eos || mask.is_some())
            || self.stop_ids.contains(&id)
        {
            return end(StopReason::EndOfText);
        }
        let own = |n| self.sampler.logprobs(logits, id, n);
        let logprobs = drawn.or_else(|| self.logprobs.map(own));
        self.sampler.accept(id);
        self.n_generated += 1;
        if let Some((spending, _)) = &mut self.spending {
            spending.accept(&tok.token_bytes(id, true));
        }
        self.decoded.clear();
        self.decoder.push(id, &mut self.decoded);
        let start = text.len();
        let stopped = match &self.at_least {
            Some(_) => {
                text.push_str(&self.decoded);
                false
            }
            None => self.stop.push(&self.decoded, text),
        };
        if let Some(found) = self.stop.found().filter(|_| stopped && self.keep_stop) {
            text.push_str(found);
        }
        let over = self.lines.push(text, start);
        let finished = match &mut self.constrained {
            Some(Constrained { constraint, .. }) => {
                constraint.accept(id)?;
                constraint.is_finished()
            }
            None => false,
        };
        let stop = match () {
            () if stopped => Some(StopReason::StopString),
            () if finished => Some(StopReason::EndOfText),
            () if over || self.n_generated >= self.n_predict => Some(StopReason::Length),
            () if self.n_generated > self.room => Some(StopReason::Context),
            () => None,
        };
        Ok(Step { id: Some(id), logprobs, stop })
    }

    /// Lets out what was held back.
    pub(crate) fn finish(mut self, text: &mut String) {
        let start = text.len();
        if self.stop.found().is_none() && !self.stop.push(&self.decoder.finish(), text) {
            text.push_str(&self.stop.finish());
        }
        self.lines.push(text, start);
    }
}
