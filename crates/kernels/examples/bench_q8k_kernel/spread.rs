//! Times, and how far they lie apart.

use serde::Serialize;
use std::fmt;
use std::time::{Duration, Instant};

/// What several measurements of one thing say.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    /// First quartile.
    pub(crate) q1: f64,
    /// Third quartile.
    pub(crate) q3: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let quantile = |q: f64| {
            let at = q * (sorted.len() - 1) as f64;
            let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
            low + at.fract() * (high - low)
        };
        Some(Self { median: quantile(0.5), q1: quantile(0.25), q3: quantile(0.75), min, max })
    }

    /// How many times faster `other` is.
    pub(crate) fn over(&self, other: &Self) -> f64 {
        self.median / other.median
    }

    /// Whether `other` is faster: by a tenth at least, and by more than the spread.
    pub(crate) fn is_beaten_by(&self, other: &Self) -> Answer {
        match (self.over(other) >= 1.1, other.q3 < self.q1) {
            (true, true) => Answer::Yes,
            (true, false) => Answer::Unclear,
            (false, _) => Answer::No,
        }
    }
}

/// What times say about a suspicion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    Yes,
    No,
    /// The quartiles overlap.
    Unclear,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unclear => "unclear, for the quartiles overlap",
        })
    }
}

/// Seconds of one `run`, from as many as fill a turn.
pub(crate) fn time(turn: Duration, mut run: impl FnMut()) -> f64 {
    let (start, mut n) = (Instant::now(), 0);
    loop {
        run();
        n += 1;
        let elapsed = start.elapsed();
        if elapsed >= turn {
            return elapsed.as_secs_f64() / f64::from(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_the_samples() {
        let spread = Spread::of(&[5.0, 1.0, 2.0, 4.0, 3.0]).unwrap();
        let expected = Spread { median: 3.0, q1: 2.0, q3: 4.0, min: 1.0, max: 5.0 };
        assert_eq!(spread, expected);
        let spread = Spread::of(&[1.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.q1, spread.q3), (1.5, 1.25, 1.75));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn a_turn_runs_at_least_once() {
        let mut n = 0;
        let seconds = time(Duration::ZERO, || n += 1);
        assert!(seconds.is_finite() && n == 1);
    }

    #[test]
    fn to_win_takes_a_tenth_and_separate_quartiles() {
        let spread = |q1, median, q3| Spread { median, q1, q3, min: q1, max: q3 };
        let slow = spread(1.9, 2.0, 2.1);
        assert_eq!(slow.is_beaten_by(&spread(1.0, 1.1, 1.2)), Answer::Yes);
        assert_eq!(slow.is_beaten_by(&spread(1.0, 1.1, 1.95)), Answer::Unclear);
        assert_eq!(slow.is_beaten_by(&spread(1.85, 1.86, 1.87)), Answer::No, "less than a tenth");
        assert_eq!(slow.is_beaten_by(&slow), Answer::No);
    }
}
