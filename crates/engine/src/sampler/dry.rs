//! DRY, "don't repeat yourself": penalises a token by the length of the repetition that it would
//! extend (<https://github.com/oobabooga/text-generation-webui/pull/5677>).
//!
//! ```text
//! tokens    a b c c b c y a b c        what ends here ends the text, too:
//! matches   0 0 3 1 0 2 0 0 0 ·        "a b c", "c", "b c"
//! ```
//!
//! Each match of n ≥ `allowed_length` tokens forbids, so to speak, the token after it: here c would
//! extend a repetition of 3, y one of 2 and b one of 1. The penalty is
//! `multiplier * base ^ (n - allowed_length)` for the longest such n. The lengths are the Z-array
//! of the reversed text, computed in linear time.
//!
//! A sequence breaker ends every repetition: matches are counted only back to the last one. A
//! breaker is a text, so it can be part of a token or span several: see [`Breakers`].
use super::Vocabulary;
use super::candidates::Candidates;
use super::params::SamplerParams;
use super::penalties::{History, window};
use std::collections::HashMap;

/// Longest tail of a breaker that is compared, llama.cpp's limit.
const MAX_TAIL_TOKENS: usize = 20;

/// DRY's parameters and buffers.
#[derive(Debug, Clone)]
pub(super) struct Dry {
    multiplier: f32,
    base: f32,
    allowed_length: usize,
    window: usize,
    breakers: Breakers,
    /// The window, latest token first.
    recent: Vec<u32>,
    /// `z[i]`: tokens that `recent[i..]` and `recent` have in common from their beginnings.
    z: Vec<usize>,
    /// Token to the longest repetition that it would extend.
    repetitions: HashMap<u32, usize>,
}

impl Dry {
    /// `None` if the parameters switch it off.
    pub(super) fn new(params: &SamplerParams, vocabulary: &dyn Vocabulary) -> Option<Self> {
        let window = window(params.dry_penalty_last_n);
        let on = params.dry_multiplier > 0.0 && params.dry_base >= 1.0 && window > 0;
        on.then(|| Self {
            multiplier: params.dry_multiplier,
            base: params.dry_base,
            allowed_length: usize::try_from(params.dry_allowed_length).unwrap_or(0),
            window,
            breakers: Breakers::new(&params.dry_sequence_breakers, vocabulary),
            recent: Vec::new(),
            z: Vec::new(),
            repetitions: HashMap::new(),
        })
    }

    pub(super) fn window(&self) -> usize {
        self.window
    }

    pub(super) fn apply(&mut self, history: &History, candidates: &mut Candidates<'_>) {
        self.find_repetitions(history);
        for (&token, &length) in &self.repetitions {
            if !self.breakers.is_whole(token) {
                let excess = (length - self.allowed_length) as f32;
                let penalty = self.multiplier * self.base.powf(excess).min(f32::MAX);
                candidates.adjust(token, |x| x - penalty);
            }
        }
    }

    fn find_repetitions(&mut self, history: &History) {
        self.repetitions.clear();
        self.recent.clear();
        self.recent.extend(history.backwards().take(self.window));
        let limit = self.breakers.tokens_since(&self.recent);
        if self.recent.len() <= self.allowed_length || limit < self.allowed_length {
            return;
        }
        z_array(&self.recent, &mut self.z);
        for i in 1..self.recent.len() {
            let length = self.z[i].min(limit);
            if length >= self.allowed_length {
                let longest = self.repetitions.entry(self.recent[i - 1]).or_insert(length);
                *longest = length.max(*longest);
            }
        }
    }
}

/// `z[i]` = length of the longest common prefix of `tokens` and `tokens[i..]`, in linear time.
fn z_array(tokens: &[u32], z: &mut Vec<usize>) {
    z.clear();
    z.resize(tokens.len(), 0);
    // tokens[left..right] is the match that reaches furthest right.
    let (mut left, mut right) = (0, 0);
    for i in 1..tokens.len() {
        let mut length = if i < right { z[i - left].min(right - i) } else { 0 };
        while tokens.get(i + length).is_some_and(|&token| token == tokens[length]) {
            length += 1;
        }
        z[i] = length;
        if i + length > right {
            (left, right) = (i, i + length);
        }
    }
}

/// Sequence breakers as tokens: a head in which the breaker begins (and perhaps ends), and the
/// tokens that complete it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Breakers {
    /// Head to tails, each a sequence of tokens; an empty tail means that the head holds all of it.
    tails: HashMap<u32, Vec<Vec<u32>>>,
}

impl Breakers {
    fn new(texts: &[String], vocabulary: &dyn Vocabulary) -> Self {
        let mut breakers = Self::default();
        if texts.is_empty() {
            return breakers;
        }
        // Every suffix of a breaker that a tail may have to spell, encoded once.
        let mut suffixes: HashMap<&str, Vec<u32>> = HashMap::new();
        for id in (0..vocabulary.n_tokens()).map_while(|id| u32::try_from(id).ok()) {
            let token = vocabulary.token_bytes(id);
            for text in texts {
                for begun in begun_by(&token, text) {
                    let tail = suffixes.entry(&text[begun..]).or_insert_with_key(|rest| {
                        let mut tail =
                            if rest.is_empty() { vec![] } else { vocabulary.encode(rest) };
                        tail.truncate(MAX_TAIL_TOKENS);
                        tail
                    });
                    let tails = breakers.tails.entry(id).or_default();
                    if !tails.contains(tail) {
                        tails.push(tail.clone());
                    }
                }
            }
        }
        breakers
    }

    /// Whether a whole breaker lies inside this token.
    fn is_whole(&self, token: u32) -> bool {
        self.tails.get(&token).is_some_and(|tails| tails.iter().any(Vec::is_empty))
    }

    /// Number of tokens since the end of the last breaker (all, if there is none).
    fn tokens_since(&self, recent: &[u32]) -> usize {
        for (i, token) in recent.iter().enumerate() {
            // recent[..i] follow the head, the latest first.
            let tails = self.tails.get(token).into_iter().flatten();
            let matching = tails.filter(|tail| {
                let following = recent[..i].iter().rev().take(tail.len());
                tail.len() <= i && tail.iter().eq(following)
            });
            if let Some(longest) = matching.map(Vec::len).max() {
                return i - longest;
            }
        }
        recent.len()
    }
}

/// How many bytes of `text` have been said when `token` ends, for each place in `token` at which
/// `text` can begin; only places that leave whole characters to say.
fn begun_by(token: &[u8], text: &str) -> Vec<usize> {
    if token.windows(text.len()).any(|part| part == text.as_bytes()) {
        return vec![text.len()];
    }
    let longest = token.len().min(text.len() - 1);
    let begun = (1..=longest).filter(|&n| text.is_char_boundary(n));
    begun.filter(|&n| token.ends_with(&text.as_bytes()[..n])).collect()
}

#[cfg(test)]
mod tests {
    use super::super::candidates::after;
    use super::super::tests::Words;
    use super::*;

    /// What DRY takes from the logit of each token, in letters: `"b1 c2.5"`.
    /// The vocabulary is `words`; `accepted` are indices of them.
    fn check(words: &[&str], accepted: &str, change: impl Fn(&mut SamplerParams), expected: &str) {
        let mut params = SamplerParams {
            dry_multiplier: 1.0,
            dry_base: 2.0,
            dry_sequence_breakers: vec![],
            ..Default::default()
        };
        change(&mut params);
        let words = Words(words.iter().map(|&word| word.into()).collect());
        let mut dry = Dry::new(&params, &words).unwrap();
        let mut history = History::new(dry.window());
        words.spell(accepted).into_iter().for_each(|token| history.push(token));
        let left = after(&vec![0.0; words.0.len()], |c| dry.apply(&history, c));
        let found = left.iter().filter(|&&(_, x)| x != 0.0);
        let found: Vec<_> =
            found.map(|&(id, x)| format!("{}{}", words.0[id as usize], -x)).collect();
        assert_eq!(found.join(" "), expected, "{accepted}");
    }

    const LETTERS: &[&str] = &["a", "b", "c", "y", "\n"];

    #[test]
    fn longer_repetitions_cost_more() {
        check(LETTERS, "", |_| {}, "");
        check(LETTERS, "ab", |_| {}, "");
        check(LETTERS, "abca", |_| {}, "");
        check(LETTERS, "abcab", |_| {}, "c1"); // 2 tokens repeated: 2^0
        check(LETTERS, "abcyabc", |_| {}, "y2");
        // The module's example: c would extend "a b c", y would extend "b c", b only "c".
        check(LETTERS, "abccbcyabc", |_| {}, "c2 y1");
        check(LETTERS, "abccbcyabc", |p| p.dry_allowed_length = 1, "b1 c4 y2");
        check(LETTERS, "abccbcyabc", |p| p.dry_allowed_length = 3, "c1");
        check(LETTERS, "abccbcyabc", |p| p.dry_allowed_length = 4, "");
        check(LETTERS, "abcab", |p| p.dry_multiplier = 2.5, "c2.5");
        check(LETTERS, "abcyabc", |p| p.dry_base = 1.5, "y1.5");
        // Of two matches before the same token the longer counts; matches may overlap.
        check(LETTERS, "abcyybcyabc", |_| {}, "y2");
        check(LETTERS, "aaaaa", |_| {}, "a4");
        // Every token that follows another one is in question if no repetition is free.
        check(LETTERS, "abc", |p| p.dry_allowed_length = 0, "b1 c1");
    }

    #[test]
    fn only_the_window_counts() {
        check(LETTERS, "abcab", |p| p.dry_penalty_last_n = 5, "c1");
        check(LETTERS, "abcab", |p| p.dry_penalty_last_n = 4, "");
        check(LETTERS, "abcab", |p| p.dry_penalty_last_n = -1, "c1");
    }

    #[test]
    fn penalties_stay_finite_or_forbid() {
        let text = "a".repeat(2000);
        let forbid = |base| {
            let last_n = move |p: &mut SamplerParams| {
                (p.dry_penalty_last_n, p.dry_base, p.dry_multiplier) = (-1, base, 1.0);
            };
            check(LETTERS, &text, last_n, &format!("a{}", f32::MAX));
        };
        forbid(1.75);
        forbid(f32::MAX);
    }

    #[test]
    fn breakers_end_repetitions() {
        let breakers = |texts: &'static [&str]| {
            move |p: &mut SamplerParams| {
                p.dry_sequence_breakers = texts.iter().map(|&text| text.into()).collect();
            }
        };
        // Without: 3 tokens and the line break, which is spared because it is a breaker itself.
        check(LETTERS, "abcyabc", breakers(&["\n"]), "y2");
        check(LETTERS, "a\nbcya\nbc", breakers(&["\n"]), "y1"); // "b c", not "a \n b c"
        check(LETTERS, "a\nbcya\nbc", breakers(&[]), "y4");
        check(LETTERS, "ab\nyab\n", breakers(&["\n"]), "");
        check(LETTERS, "ab\nab", breakers(&["\n"]), "");
        check(LETTERS, "ab\nab", breakers(&[]), "\n1");

        // A breaker inside a token, and one that begins in a token and ends in others.
        let words = &["a", "b", "c", "y", "x:x", "x#", "!", "!?", "é"];
        check(words, "abcyx:xabc", breakers(&[":"]), "y2");
        check(words, "ax:xbcyax:xbc", breakers(&[":"]), "y1");
        check(words, "ax#!bcyax#!bc", breakers(&["#!"]), "y1");
        check(words, "ax#bcyax#bc", breakers(&["#!"]), "y4");
        check(words, "ax#!ax#", breakers(&[]), "!1");
        check(words, "ax#!ax#", breakers(&["#!"]), "!1"); // "a x#" came after the last "#!"
        check(words, "yax#!yax#", breakers(&["#!"]), "!2");
        check(words, "ax#!yax#!y", breakers(&["#!"]), ""); // "y" alone is short
        // The head of an unfinished breaker is no breaker.
        check(words, "ax#cax#", breakers(&["#!"]), "c1");
        // Of several tails the longest counts.
        check(words, "ax#!!?bcyax#!!?bc", breakers(&["#!", "#!!?"]), "y1");
        check(words, "aébcyaébc", breakers(&["é"]), "y1");
    }

    #[test]
    fn what_a_token_begins() {
        for (token, text, expected) in [
            ("ab", "b", vec![1]),
            ("ab", "abab", vec![2]),
            ("aab", "aabaab", vec![3]),
            ("aa", "aaa", vec![1, 2]),
            ("ba", "ab", vec![1]),
            ("b", "ab", vec![]),
            ("", "ab", vec![]),
        ] {
            assert_eq!(begun_by(token.as_bytes(), text), expected, "{token} {text}");
        }
        // Half a character has been said: the rest is no text, and so no tokens.
        assert!(begun_by(&"é".as_bytes()[..1], "é").is_empty());
        assert!(begun_by(&"aé".as_bytes()[..2], "aé").is_empty());
        assert_eq!(begun_by(&"aé".as_bytes()[..1], "aé"), [1]);
    }

    #[test]
    fn z_array_is_what_comparing_gives() {
        let mut z = Vec::new();
        let mut rng = super::super::rng::Rng::new(3);
        for length in 0..60 {
            for kinds in 1..4 {
                let mut token = || (rng.uniform() * f64::from(kinds)) as u32;
                let tokens: Vec<u32> = (0..length).map(|_| token()).collect();
                z_array(&tokens, &mut z);
                for i in 1..tokens.len() {
                    let same = tokens.iter().zip(&tokens[i..]).take_while(|(a, b)| a == b);
                    assert_eq!(z[i], same.count(), "{tokens:?} at {i}");
                }
            }
        }
    }
}
