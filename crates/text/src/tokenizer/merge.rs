//! Merging neighbours until nothing fits: what byte-pair encoding and SentencePiece share.
//!
//! A word starts as a list of symbols, mostly single characters. Of all neighbours that may merge
//! the pair with the lowest priority goes first, the leftmost of equals. The symbols are a linked
//! list in an array and the pairs wait in a heap, so a word of n symbols takes O(n log n); pairs
//! that another merge made stale are recognized when they come up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No symbol, or a symbol that no table knows.
pub(super) const NONE: u32 = u32::MAX;

/// A piece of the word.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    /// Offset in the word, in bytes.
    pub(super) start: u32,
    /// Bytes; 0 once it has been merged into its left neighbour.
    pub(super) len: u32,
    /// Token or interned string, or [`NONE`].
    pub(super) id: u32,
    prev: u32,
    next: u32,
}

impl Symbol {
    /// The bytes of `word` that the symbol stands for.
    pub(super) fn of<'a>(&self, word: &'a [u8]) -> &'a [u8] {
        &word[self.start as usize..(self.start + self.len) as usize]
    }
}

/// `priority << 32 | left`: the order of merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    key: u64,
    right: u32,
    len: u32,
    merged: u32,
}

/// A word being merged; its memory is used again for the next one.
#[derive(Debug, Default)]
pub(super) struct Word {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

impl Word {
    /// Forgets the word before.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Appends a symbol of `len` > 0 bytes.
    pub(super) fn push(&mut self, len: usize, id: u32) {
        let n = self.symbols.len() as u32;
        let start = self.symbols.last().map_or(0, |s| s.start + s.len);
        if let Some(last) = self.symbols.last_mut() {
            last.next = n;
        }
        let prev = n.checked_sub(1).unwrap_or(NONE);
        self.symbols.push(Symbol { start, len: len as u32, id, prev, next: NONE });
    }

    /// Merges; `merge` says for two neighbours with which priority they merge, and into what.
    pub(super) fn merge(&mut self, mut merge: impl FnMut(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        let Self { symbols, heap } = self;
        let mut try_pair = |symbols: &[Symbol], left: u32, right: u32| {
            if left == NONE || right == NONE {
                return None;
            }
            let (l, r) = (&symbols[left as usize], &symbols[right as usize]);
            let (priority, merged) = merge(l, r)?;
            let key = u64::from(priority) << 32 | u64::from(left);
            Some(Reverse(Candidate { key, right, len: l.len + r.len, merged }))
        };
        let mut pairs = std::mem::take(heap).into_vec();
        let n = symbols.len() as u32;
        pairs.extend((1..n).filter_map(|right| try_pair(symbols, right - 1, right)));
        *heap = pairs.into();

        while let Some(Reverse(Candidate { key, right, len, merged })) = heap.pop() {
            let left = key as u32;
            let (l, r) = (symbols[left as usize], symbols[right as usize]);
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue;
            }
            symbols[right as usize].len = 0;
            symbols[left as usize] = Symbol { len, id: merged, next: r.next, ..l };
            if r.next != NONE {
                symbols[r.next as usize].prev = left;
            }
            heap.extend(try_pair(symbols, l.prev, left));
            heap.extend(try_pair(symbols, left, r.next));
        }
    }

    /// The symbols that are left, in order.
    pub(super) fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|s| s.len > 0)
    }
}

/// Where a text with escaped spaces (U+2581) falls into parts that cannot merge with each other:
/// before a space, unless some token has one behind the same byte.
///
/// Without this a whole text is one word, and its symbols and pairs outgrow the caches: on 1.2 MB
/// of English with Llama 2's vocabulary the parts are seven times as fast (2.5 for 0.35 MB/s on a
/// busy machine).
#[derive(Debug)]
pub(super) struct SpaceJoins([bool; 256]);

impl SpaceJoins {
    /// From the texts of all tokens.
    pub(super) fn new<'a>(texts: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut joins = [false; 256];
        for text in texts {
            let spaces = text.windows(SPACE.len() + 1).filter(|w| w[1..] == *SPACE.as_bytes());
            spaces.for_each(|w| joins[usize::from(w[0])] = true);
        }
        Self(joins)
    }

    /// The parts of `text`.
    pub(super) fn split<'a>(&self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let bytes = rest.as_bytes();
            let is_cut = |&(i, _): &(usize, &str)| i > 0 && !self.0[usize::from(bytes[i - 1])];
            let end = rest.match_indices(SPACE).find(is_cut).map_or(rest.len(), |(i, _)| i);
            let (part, after) = rest.split_at(end);
            rest = after;
            (!part.is_empty()).then_some(part)
        })
    }
}

const SPACE: &str = "\u{2581}";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rescans the whole word for each merge.
    fn naive(word: &str, rules: &[(char, char)]) -> Vec<String> {
        let mut parts: Vec<String> = word.chars().map(String::from).collect();
        let rule = |l: &str, r: &str| {
            rules.iter().position(|&(a, b)| l.ends_with(a) && r.starts_with(b) && l.len() < 3)
        };
        while let Some((_, i)) =
            (1..parts.len()).filter_map(|i| Some((rule(&parts[i - 1], &parts[i])?, i))).min()
        {
            let right = parts.remove(i);
            parts[i - 1].push_str(&right);
        }
        parts
    }

    #[test]
    fn splits_before_spaces_that_no_token_has_inside() {
        let joins = SpaceJoins::new(["▁a", "b", "▁▁", "c▁d"].into_iter().map(str::as_bytes));
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(joins.split(text).collect::<Vec<_>>(), expected);
        };
        check("", &[]);
        check("ab", &["ab"]);
        check("▁a▁b", &["▁a", "▁b"]);
        check("▁▁a▁▁▁b", &["▁▁a", "▁▁▁b"]);
        check("c▁da▁", &["c▁da", "▁"]);
    }

    proptest! {
        #[test]
        fn merges_as_rescanning_does(
            text in "[abc]{0,30}",
            rules in prop::collection::vec(("[abc]", "[abc]"), 0..6),
        ) {
            let first = |s: &String| s.chars().next().unwrap_or('a');
            let rules: Vec<_> = rules.iter().map(|(a, b)| (first(a), first(b))).collect();
            let mut word = Word::default();
            (0..text.len()).for_each(|_| word.push(1, 0));
            let bytes = text.as_bytes();
            word.merge(|l, r| {
                let (l, r) = (l.of(bytes), r.of(bytes));
                let fits = |&(a, b): &(char, char)| {
                    l.ends_with(&[a as u8]) && r.starts_with(&[b as u8]) && l.len() < 3
                };
                Some((rules.iter().position(fits)? as u32, 0))
            });
            let merged: Vec<_> =
                word.symbols().map(|s| String::from_utf8_lossy(s.of(bytes)).into_owned()).collect();
            prop_assert_eq!(merged, naive(&text, &rules));
        }
    }
}
