//! Limits that editors set to completions of code: where a block ends, and how long more lines may take.
use std::time::{Duration, Instant};

/// Limits to the lines of an answer; names and meanings are those of llama.cpp's `n_indent` and `t_max_predict_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LineLimits {
    /// Blanks and tabs that every line but the first begins with at least. The answer ends before what follows fewer.
    pub n_indent: usize,
    /// From the first token; after that, the answer ends with the next token that breaks a line.
    pub max_time: Option<Duration>,
}

/// Follows a text that arrives in pieces.
#[derive(Debug)]
pub(crate) struct Lines {
    limits: LineLimits,
    /// When the first piece came.
    begun: Option<Instant>,
    /// Blanks and tabs that the line begins with, as long as nothing else has come; in the first it does not matter.
    indent: Option<usize>,
    ended: bool,
}

impl Lines {
    pub(crate) fn new(limits: LineLimits) -> Self {
        Self { limits, begun: None, indent: None, ended: false }
    }

    /// Takes what stands in `text` from `start` on, cuts off what is not allowed, and tells whether the text ends.
    pub(crate) fn push(&mut self, text: &mut String, start: usize) -> bool {
        let LineLimits { n_indent, max_time } = self.limits;
        if self.ended {
            text.truncate(start);
            return true;
        }
        let begun = max_time.map(|_| *self.begun.get_or_insert_with(Instant::now));
        let over = begun.zip(max_time).is_some_and(|(begun, most)| begun.elapsed() > most);
        let mut breaks = false;
        let mut cut = None;
        for (i, byte) in text.bytes().enumerate().skip(start) {
            match (&mut self.indent, byte) {
                (Some(indent), b' ' | b'\t') => *indent += 1,
                (Some(indent), _) if *indent < n_indent => {
                    cut = Some(i);
                    break;
                }
                (indent, b'\n') => {
                    *indent = (n_indent > 0).then_some(0);
                    breaks = true;
                }
                (indent, _) => *indent = None,
            }
        }
        if let Some(cut) = cut {
            // Before a byte that begins a character: a blank or a line break came last.
            text.truncate(cut);
        }
        self.ended = cut.is_some() || over && breaks;
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces, and the text that comes of them; `|` where it ended.
    fn check(limits: LineLimits, pieces: &[&str], expected: &str) {
        let (mut lines, mut text) = (Lines::new(limits), String::new());
        for piece in pieces {
            let start = text.len();
            text.push_str(piece);
            if lines.push(&mut text, start) {
                text.push('|');
                break;
            }
        }
        assert_eq!(text, expected, "{limits:?} {pieces:?}");
    }

    #[test]
    fn an_answer_ends_where_its_block_does() {
        let of = |n_indent| LineLimits { n_indent, max_time: None };
        check(of(0), &["a\nb", "\n\nc"], "a\nb\n\nc");
        check(of(2), &["a\n  b\n", "\t", "\tc\n", " ", "é"], "a\n  b\n\t\tc\n |");
        check(of(2), &["a\n", "\n  b"], "a\n|");
        check(of(1), &["a", "b\n c\nd"], "ab\n c\n|");
        check(of(4), &["a\n  "], "a\n  ");
    }

    #[test]
    fn lines_that_take_too_long_are_the_last() {
        let limits = |max_time| LineLimits { n_indent: 0, max_time: Some(max_time) };
        check(limits(Duration::ZERO), &["a", "b", "c\nd", "e"], "abc\nd|");
        check(limits(Duration::from_secs(1000)), &["a\n", "b\n"], "a\nb\n");
    }
}
