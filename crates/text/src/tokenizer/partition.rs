//! Finding the tokens that a text spells literally: user-defined ones always, control tokens if
//! asked for.
//!
//! The longest token wins wherever it stands, then the next longest finds its place in what is left,
//! and so on. (That is not the leftmost-longest match: a later long token takes precedence over an
//! earlier short one that overlaps it.) One pass over a trie finds the longest token at each
//! position; a heap hands them out by length. Where a longer one got in the way, the next shorter
//! one at that position is tried.

use super::trie::Trie;
use super::vocab::{Vocab, attr};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// A part of the text, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fragment {
    Token(u32),
    /// Bytes of the text, not empty.
    Text(Range<usize>),
}

#[derive(Debug)]
pub(super) struct Partition {
    tokens: Trie,
}

impl Partition {
    pub(super) fn new(vocab: &Vocab) -> Self {
        let special = attr::CONTROL | attr::USER_DEFINED | attr::UNKNOWN;
        let ids = vocab.ids().filter(|&id| vocab.has(id, special));
        Self { tokens: Trie::new(ids.map(|id| (vocab.text(id), id))) }
    }

    /// Splits `text`. No guarded token is found across one of the `guards`, which are offsets in
    /// ascending order.
    pub(super) fn split(
        &self,
        vocab: &Vocab,
        text: &[u8],
        guards: &[usize],
        parse_special: bool,
    ) -> Vec<Fragment> {
        let eligible = |start: usize, len: usize, id: u32| {
            let guard = guards.get(guards.partition_point(|&g| g <= start));
            let broken = guard.is_some_and(|&g| g < start + len);
            !(broken && vocab.has(id, attr::GUARDED))
                && (parse_special || !vocab.has(id, attr::CONTROL | attr::UNKNOWN))
        };
        // The longest token at `start` shorter than `limit`, by length, then id.
        let longest = |start: usize, limit: usize| {
            let found = self.tokens.prefixes(&text[start..]).take_while(|&(len, _)| len < limit);
            let (len, id) = found.filter(|&(len, id)| eligible(start, len, id)).last()?;
            Some((len, Reverse(id), Reverse(start)))
        };
        let mut candidates: BinaryHeap<_> =
            (0..text.len()).filter_map(|start| longest(start, usize::MAX)).collect();
        if candidates.is_empty() {
            return if text.is_empty() { vec![] } else { vec![Fragment::Text(0..text.len())] };
        }

        // Taken spans are at least as long as the one in hand (or longer by the white space they
        // swallow), so one that overlaps it covers its first or its last byte.
        let mut taken = vec![false; text.len()];
        let mut tokens = Vec::new();
        while let Some((len, Reverse(id), Reverse(start))) = candidates.pop() {
            let end = start + len;
            if taken[start] {
                continue;
            }
            if taken[end - 1] {
                candidates.extend(longest(start, len));
                continue;
            }
            taken[start..end].fill(true);
            tokens.push((start, id));
            let is_space = |i: usize| matches!(text[i], b'\t'..=b'\r' | b' ');
            if vocab.has(id, attr::LSTRIP) {
                let spaces = (0..start).rev().take_while(|&i| !taken[i] && is_space(i)).count();
                taken[start - spaces..start].fill(true);
            }
            if vocab.has(id, attr::RSTRIP) {
                let spaces = (end..text.len()).take_while(|&i| !taken[i] && is_space(i)).count();
                taken[end..end + spaces].fill(true);
            }
        }

        tokens.sort_unstable();
        let mut fragments = Vec::with_capacity(2 * tokens.len() + 1);
        // Between two tokens at most one run of bytes is free.
        let push_text = |fragments: &mut Vec<_>, gap: Range<usize>| {
            let free = |&i: &usize| !taken[i];
            if let (Some(first), Some(last)) = (gap.clone().find(free), gap.rev().find(free)) {
                fragments.push(Fragment::Text(first..last + 1));
            }
        };
        let mut at = 0;
        for (start, id) in tokens {
            push_text(&mut fragments, at..start);
            fragments.push(Fragment::Token(id));
            at = start + vocab.text(id).len();
        }
        push_text(&mut fragments, at..text.len());
        fragments
    }
}
