//! The accepted tokens, and the penalties for using them again.
use super::candidates::Candidates;
use super::params::SamplerParams;
use std::collections::{HashMap, VecDeque};

/// How many tokens a parameter looks back on: -1 means all.
pub(super) fn window(last_n: i32) -> usize {
    usize::try_from(last_n).unwrap_or(usize::MAX)
}

/// The last tokens that were accepted.
#[derive(Debug, Clone)]
pub(super) struct History {
    tokens: VecDeque<u32>, // oldest first
    /// How many are worth keeping.
    capacity: usize,
}

impl History {
    pub(super) fn new(capacity: usize) -> Self {
        Self { tokens: VecDeque::with_capacity(capacity.min(4096)), capacity }
    }

    pub(super) fn push(&mut self, token: u32) {
        if self.tokens.len() >= self.capacity {
            self.tokens.pop_front();
        }
        if self.capacity > 0 {
            self.tokens.push_back(token);
        }
    }

    pub(super) fn clear(&mut self) {
        self.tokens.clear();
    }

    /// The latest token first.
    pub(super) fn backwards(&self) -> impl Iterator<Item = u32> {
        self.tokens.iter().rev().copied()
    }

    /// The token accepted `n` tokens ago; 0 is the latest.
    fn ago(&self, n: usize) -> Option<u32> {
        let newer = n.checked_add(1)?;
        self.tokens.get(self.tokens.len().checked_sub(newer)?).copied()
    }
}

/// Repetition, frequency and presence penalties.
#[derive(Debug, Clone)]
pub(super) struct Penalties {
    window: usize,
    repeat: f32,
    frequency: f32,
    presence: f32,
    /// How often each token occurs in the window.
    counts: HashMap<u32, u32>,
}

impl Penalties {
    /// `None` if the parameters switch them off.
    pub(super) fn new(params: &SamplerParams) -> Option<Self> {
        let penalties = Self {
            window: window(params.repeat_last_n),
            repeat: params.repeat_penalty,
            frequency: params.frequency_penalty,
            presence: params.presence_penalty,
            counts: HashMap::new(),
        };
        let neutral = params.repeat_penalty == 1.0
            && params.frequency_penalty == 0.0
            && params.presence_penalty == 0.0;
        (penalties.window > 0 && !neutral).then_some(penalties)
    }

    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// To be called before `history` takes `token` in.
    pub(super) fn accept(&mut self, token: u32, history: &History) {
        let leaving = history.ago(self.window - 1);
        *self.counts.entry(token).or_insert(0) += 1;
        if let Some(leaving) = leaving
            && let Some(count) = self.counts.get_mut(&leaving)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&leaving);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.counts.clear();
    }

    /// A logit moves away from "likely": it is divided by the repetition penalty if positive,
    /// multiplied if negative, and then lowered by `count * frequency + presence`.
    pub(super) fn apply(&self, candidates: &mut Candidates<'_>) {
        for (&token, &count) in &self.counts {
            candidates.adjust(token, |x| {
                let x = if x <= 0.0 { x * self.repeat } else { x / self.repeat };
                x - (count as f32 * self.frequency + self.presence)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::candidates::after;
    use super::*;

    /// The logits after the penalties for `accepted`.
    fn check(params: &SamplerParams, accepted: &[u32], logits: &[f32], expected: &[f32]) {
        let mut penalties = Penalties::new(params).unwrap();
        let mut history = History::new(penalties.window());
        for &token in accepted {
            penalties.accept(token, &history);
            history.push(token);
        }
        let found = after(logits, |candidates| penalties.apply(candidates));
        let expected: Vec<_> = (0..).zip(expected.iter().copied()).collect();
        assert_eq!(found, expected, "{accepted:?}");
    }

    #[test]
    fn penalties_by_hand() {
        let repeat = SamplerParams { repeat_penalty: 2.0, ..Default::default() };
        check(&repeat, &[], &[4.0, -4.0, 0.0, 1.0], &[4.0, -4.0, 0.0, 1.0]);
        check(&repeat, &[0, 1, 2, 0, 0], &[4.0, -4.0, 0.0, 1.0], &[2.0, -8.0, 0.0, 1.0]);

        let frequency = SamplerParams { frequency_penalty: 0.5, ..Default::default() };
        check(&frequency, &[0, 1, 0], &[4.0, -4.0, 0.0], &[3.0, -4.5, 0.0]);
        let presence = SamplerParams { presence_penalty: 0.5, ..Default::default() };
        check(&presence, &[0, 1, 0], &[4.0, -4.0, 0.0], &[3.5, -4.5, 0.0]);

        let all = SamplerParams {
            repeat_penalty: 2.0,
            presence_penalty: 1.0,
            frequency_penalty: 0.25,
            ..Default::default()
        };
        check(&all, &[0, 0, 7], &[4.0, 4.0], &[0.5, 4.0]); // 4 / 2 - 1 - 2 * 0.25; 7 is no token
    }

    #[test]
    fn tokens_leave_the_window() {
        let last =
            |n| SamplerParams { repeat_last_n: n, frequency_penalty: 1.0, ..Default::default() };
        let accepted = [0, 0, 1, 0, 2];
        check(&last(1), &accepted, &[0.0; 3], &[0.0, 0.0, -1.0]);
        check(&last(3), &accepted, &[0.0; 3], &[-1.0, -1.0, -1.0]);
        check(&last(4), &accepted, &[0.0; 3], &[-2.0, -1.0, -1.0]);
        check(&last(5), &accepted, &[0.0; 3], &[-3.0, -1.0, -1.0]);
        check(&last(-1), &accepted, &[0.0; 3], &[-3.0, -1.0, -1.0]);
        check(&last(i32::MAX), &accepted, &[0.0; 3], &[-3.0, -1.0, -1.0]);
        assert!(Penalties::new(&last(0)).is_none());
        assert!(Penalties::new(&SamplerParams::default()).is_none());
    }

    /// Counting by increments gives what counting the window anew gives.
    #[test]
    fn counts_follow_the_window() {
        for window in [1, 2, 5, 64] {
            let params = SamplerParams {
                repeat_last_n: window,
                frequency_penalty: 1.0,
                ..Default::default()
            };
            let mut penalties = Penalties::new(&params).unwrap();
            let mut history = History::new(100);
            for i in 0..300u32 {
                let token = i * i % 11 % 6;
                penalties.accept(token, &history);
                history.push(token);
                let mut expected = HashMap::new();
                for token in history.backwards().take(window as usize) {
                    *expected.entry(token).or_insert(0) += 1;
                }
                assert_eq!(penalties.counts, expected);
            }
        }
    }
}
