//! Cutting a text into the words inside which byte-pair encoding may merge.
//!
//! Models state this cut as regular expressions, several in a row, each refining the pieces of the
//! one before. They are a small family: runs of a character class with an optional character in
//! front and an optional tail, tried in order. So a rule here is a list of [`Alt`]ernatives, read
//! like the expression it stands for, and matching one is a scan without backtracking: linear in
//! the text, and no regex engine at start-up.
//!
//! The expressions themselves, and which name stands for which, are in [`table`].
//!
//! The reference implementation runs most of them through an engine that sees only the class of a
//! non-ASCII character; [`Chars`] says where that shows.

mod table;

use super::unicode::{self, LETTER, MARK, NUMBER, SPACE};
use std::cell::Cell;
use std::ops::Range;
use table::TABLE;

/// How a `tokenizer.ggml.pre` name cuts, and what else llama.cpp derives from the name.
#[derive(Debug, Clone, Copy)]
pub(super) struct PreTokenizer {
    pub(super) rules: &'static [Rule],
    /// Tokens are spelled in GPT-2's alphabet for bytes; else in UTF-8, with `<0xHH>` tokens.
    pub(super) byte_level: bool,
    /// A word that is a token stays one, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Default of `add_bos_token`.
    pub(super) add_bos: bool,
    /// The default BOS id of the tokenizer model does not apply.
    pub(super) no_default_bos: bool,
    /// Default of `add_sep_token`.
    pub(super) add_sep: bool,
    /// Spaces are written U+2581 in tokens.
    pub(super) escape_spaces: bool,
    /// Decoding tidies spaces before punctuation.
    pub(super) clean_spaces: bool,
    /// BOS is added whatever `add_bos_token` says, and a run of line feeds that is a token stays
    /// one (Gemma 4).
    pub(super) gemma4: bool,
}

impl PreTokenizer {
    const fn new(rules: &'static [Rule]) -> Self {
        Self {
            rules,
            byte_level: true,
            ignore_merges: false,
            add_bos: false,
            no_default_bos: false,
            add_sep: false,
            escape_spaces: false,
            clean_spaces: true,
            gemma4: false,
        }
    }
    const fn exact_spaces(self) -> Self {
        Self { clean_spaces: false, ..self }
    }
    const fn ignore_merges(self) -> Self {
        Self { ignore_merges: true, ..self }
    }
    const fn add_bos(self) -> Self {
        Self { add_bos: true, ..self }
    }

    /// The pre-tokenizer of a `tokenizer.ggml.pre` name; no name means `default`.
    pub(super) fn by_name(name: Option<&str>) -> Option<Self> {
        let name = name.filter(|n| !n.is_empty()).unwrap_or("default");
        TABLE.iter().find(|(names, _)| names.contains(&name)).map(|&(_, pre)| pre)
    }

    /// Every known name.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        TABLE.iter().flat_map(|(names, _)| names.iter().copied())
    }

    /// Cuts `text`; calls `word` with each piece.
    pub(super) fn split<'a>(&self, text: &'a str, mut word: impl FnMut(&'a str)) {
        let chars = CharList::new(text);
        let mut ends = vec![chars.code.len()];
        for rule in self.rules {
            let mut refined = Vec::with_capacity(ends.len() + text.len() / 4);
            let mut start = 0;
            for end in ends {
                rule.split(&Piece::new(&chars, start..end), |at| refined.push(start + at));
                start = end;
            }
            ends = refined;
        }
        let (mut start, mut rest) = (0, text);
        for end in ends {
            let n_bytes = chars.code[start..end].iter().map(|&c| len_utf8(c)).sum();
            let (piece, after) = rest.split_at(n_bytes);
            word(piece);
            (start, rest) = (end, after);
        }
    }
}

const fn len_utf8(code: u32) -> usize {
    match code {
        0..0x80 => 1,
        0x80..0x800 => 2,
        0x800..0x1_0000 => 3,
        _ => 4,
    }
}

/// One step of refinement.
#[derive(Debug)]
pub(super) enum Rule {
    /// Each match is a word, so is what lies between two matches.
    Match(&'static [Alt]),
    /// Digits in threes from the right: `1234567` is `1`, `234`, `567`. Text before the digits
    /// stays with the first group.
    DigitGroups,
    /// The same for ASCII digits and without that text: `(?=(\d{3})+(?!\d))`.
    Thousands,
}

/// What may match at a position; the first alternative that does wins.
#[derive(Debug)]
pub(super) enum Alt {
    /// `'s|'t|'re|'ve|'m|'ll|'d`
    Contraction { any_case: bool },
    /// `[^\r\n<not_after>]?<body>+`, then an optional contraction in any case.
    Word { not_after: u8, body: Chars, contraction: bool },
    /// `P?U*L+C?|P?U+L*C?` where P is `[^\r\n\p{L}\p{N}]`, U a letter but `a-z`, L a letter but
    /// `A-Z`, and C a contraction: words that change from upper to lower case.
    CasedWord { letters: u8, contraction: bool },
    /// `[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+`
    WordsWithSpaces,
    /// `<before>?<body>+<after>`
    Run { before: Before, body: Chars, after: After },
    /// From one to so many.
    UpTo(usize, Chars),
    /// Exactly so many.
    Exactly(usize, Chars),
    /// `\s*[\r\n]+`
    LineEnds,
    /// `\s+(?!\S)`: white space but for the last character, which goes with the next word.
    SpacesBeforeWord,
    /// `\s+$`
    SpacesAtEnd,
    /// `\s{512}(?!\S)|\s{256}(?!\S)|...|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}`
    SpacesByPowersOfTwo,
    /// An ASCII punctuation mark or symbol, then `[A-Za-z]+`.
    MarkAndAsciiWord,
    /// Exactly this text.
    Literal(&'static str),
    /// `<sentinel:[0-9]+>`
    Sentinel,
    /// `IMGIMG[A-I]{1,4}Z`
    ImageToken,
}

/// An optional character before a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Before {
    Nothing,
    Space,
    AnySpace,
}

/// What a run takes along.
#[derive(Debug, Clone, Copy)]
pub(super) enum After {
    Nothing,
    /// `[\r\n]*`
    LineEnds,
    /// `[\r\n/]*`
    LineEndsOrSlashes,
    /// `[\r\n/]?`
    LineEndOrSlash,
}

type Ranges = &'static [(u32, u32)];

/// A set of characters.
///
/// Code point ranges see non-ASCII white space as a vertical tab, because the reference engine
/// does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chars {
    /// Any of these classes.
    Class(u8),
    /// None of these classes.
    Not(u8),
    /// Of these classes or in these ranges.
    In(u8, Ranges),
    /// Neither of these classes nor in these ranges.
    NotIn(u8, Ranges),
    /// Of these classes but not in these ranges.
    Except(u8, Ranges),
}

/// Code point and class of every character of a text.
struct CharList {
    code: Vec<u32>,
    class: Vec<u8>,
}

impl CharList {
    fn new(text: &str) -> Self {
        let classes = unicode::classes();
        let code: Vec<u32> = text.chars().map(u32::from).collect();
        let class = code.iter().map(|&c| classes[c as usize]).collect();
        Self { code, class }
    }
}

/// The piece of a text that a rule splits; positions count from its start.
struct Piece<'a> {
    code: &'a [u32],
    class: &'a [u8],
    /// The run of white space looked at last, see [`Piece::spaces`].
    spaces: Cell<SpaceRun>,
}

#[derive(Debug, Clone, Copy, Default)]
struct SpaceRun {
    start: usize,
    end: usize,
    /// Behind the last CR or LF, `start` if there is none.
    line_end: usize,
}

impl<'a> Piece<'a> {
    fn new(chars: &'a CharList, range: Range<usize>) -> Self {
        Self {
            code: &chars.code[range.clone()],
            class: &chars.class[range],
            spaces: Cell::default(),
        }
    }

    fn len(&self) -> usize {
        self.code.len()
    }

    fn is(&self, i: usize, c: char) -> bool {
        self.code.get(i) == Some(&u32::from(c))
    }

    fn is_line_end(&self, i: usize) -> bool {
        self.is(i, '\r') || self.is(i, '\n')
    }

    fn of(&self, i: usize, classes: u8) -> bool {
        self.class.get(i).is_some_and(|class| class & classes != 0)
    }

    fn has(&self, i: usize, chars: Chars) -> bool {
        let Some(&class) = self.class.get(i) else { return false };
        let in_ranges = |ranges: Ranges| {
            let mut code = self.code[i];
            if code > 0x7f && class & SPACE != 0 {
                code = 0x0b;
            }
            ranges.iter().any(|&(first, last)| (first..=last).contains(&code))
        };
        match chars {
            Chars::Class(classes) => class & classes != 0,
            Chars::Not(classes) => class & classes == 0,
            Chars::In(classes, ranges) => class & classes != 0 || in_ranges(ranges),
            Chars::NotIn(classes, ranges) => class & classes == 0 && !in_ranges(ranges),
            Chars::Except(classes, ranges) => class & classes != 0 && !in_ranges(ranges),
        }
    }

    /// Where the run of characters that starts at `i` ends.
    fn run(&self, mut i: usize, mut belongs: impl FnMut(usize) -> bool) -> usize {
        while i < self.len() && belongs(i) {
            i += 1;
        }
        i
    }

    fn run_of(&self, i: usize, chars: Chars) -> usize {
        self.run(i, |i| self.has(i, chars))
    }

    fn matches(&self, i: usize, text: &str) -> bool {
        text.chars().zip(i..).all(|(c, i)| self.is(i, c))
    }

    /// The white space from `i` on, scanned once however often it is asked for.
    fn spaces(&self, i: usize) -> SpaceRun {
        let known = self.spaces.get();
        if (known.start..known.end).contains(&i) {
            return SpaceRun { start: i, line_end: known.line_end.max(i), ..known };
        }
        let mut run = SpaceRun { start: i, end: i, line_end: i };
        while self.of(run.end, SPACE) {
            run.end += 1;
            if self.is_line_end(run.end - 1) {
                run.line_end = run.end;
            }
        }
        self.spaces.set(run);
        run
    }

    /// Characters of the contraction at `i`, 0 if there is none.
    fn contraction(&self, i: usize, any_case: bool) -> usize {
        let letter = |i: usize| {
            let c = self.code.get(i).copied().and_then(char::from_u32).unwrap_or('\0');
            if any_case { c.to_ascii_lowercase() } else { c }
        };
        match (self.is(i, '\''), letter(i + 1), letter(i + 2)) {
            (true, 's' | 't' | 'm' | 'd', _) => 2,
            (true, 'r' | 'v', 'e') | (true, 'l', 'l') => 3,
            _ => 0,
        }
    }
}

impl Rule {
    /// Calls `cut` with where each piece ends.
    fn split(&self, piece: &Piece<'_>, mut cut: impl FnMut(usize)) {
        let n = piece.len();
        match self {
            Rule::Match(alternatives) => {
                let (mut i, mut last) = (0, 0);
                while i < n {
                    match alternatives.iter().find_map(|alt| alt.end(piece, i)) {
                        Some(end) => {
                            if last < i {
                                cut(i);
                            }
                            cut(end);
                            (i, last) = (end, end);
                        }
                        None => i += 1,
                    }
                }
                if last < n {
                    cut(n);
                }
            }
            Rule::DigitGroups => {
                let (mut i, mut last) = (0, 0);
                while i < n {
                    let end = piece.run_of(i, Chars::Class(NUMBER));
                    if end == i {
                        i += 1;
                        continue;
                    }
                    let first = (end - i) % 3;
                    if first > 0 {
                        cut(i + first);
                    }
                    (i + first + 3..=end).step_by(3).for_each(&mut cut);
                    (i, last) = (end, end);
                }
                if last < n {
                    cut(n);
                }
            }
            Rule::Thousands => {
                let mut i = 0;
                while i < n {
                    let end = piece.run_of(i, ASCII_DIGIT);
                    if end == i {
                        i += 1;
                        continue;
                    }
                    let first = i + (end - i) % 3;
                    (first..end).step_by(3).filter(|&at| at > 0).for_each(&mut cut);
                    i = end;
                }
                if n > 0 {
                    cut(n);
                }
            }
        }
    }
}

impl Alt {
    /// Where the match that starts at `i` ends; a match is never empty.
    fn end(&self, p: &Piece<'_>, i: usize) -> Option<usize> {
        let longer = |from: usize, end: usize| (end > from).then_some(end);
        match *self {
            Alt::Contraction { any_case } => longer(i, i + p.contraction(i, any_case)),
            Alt::Word { not_after, body, contraction } => {
                let prefix = !p.is_line_end(i) && !p.of(i, not_after);
                let after_prefix = if prefix { longer(i + 1, p.run_of(i + 1, body)) } else { None };
                let end = after_prefix.or_else(|| longer(i, p.run_of(i, body)))?;
                Some(if contraction { end + p.contraction(end, true) } else { end })
            }
            Alt::CasedWord { letters, contraction } => {
                let end = cased_word(p, i, letters)?;
                Some(if contraction { end + p.contraction(end, true) } else { end })
            }
            Alt::WordsWithSpaces => {
                let letter = |i| p.of(i, LETTER);
                let prefix = !p.is_line_end(i) && !p.of(i, LETTER | NUMBER);
                let mut end = if prefix { i + 1 } else { i };
                if !letter(end) {
                    return None;
                }
                loop {
                    end = p.run_of(end + 1, Chars::Class(MARK));
                    if p.is(end, ' ') && letter(end + 1) {
                        end += 1;
                    } else if !letter(end) {
                        return Some(end);
                    }
                }
            }
            Alt::Run { before, body, after } => {
                let prefix = match before {
                    Before::Nothing => false,
                    Before::Space => p.is(i, ' '),
                    Before::AnySpace => p.of(i, SPACE),
                };
                let after_prefix = if prefix { longer(i + 1, p.run_of(i + 1, body)) } else { None };
                let end = after_prefix.or_else(|| longer(i, p.run_of(i, body)))?;
                let slash_or_line_end = |i| p.is_line_end(i) || p.is(i, '/');
                Some(match after {
                    After::Nothing => end,
                    After::LineEnds => p.run(end, |i| p.is_line_end(i)),
                    After::LineEndsOrSlashes => p.run(end, slash_or_line_end),
                    After::LineEndOrSlash => end + usize::from(slash_or_line_end(end)),
                })
            }
            Alt::UpTo(n, chars) => longer(i, p.run(i, |j| j - i < n && p.has(j, chars))),
            Alt::Exactly(n, chars) => (i..i + n).all(|i| p.has(i, chars)).then_some(i + n),
            Alt::LineEnds => longer(i, p.spaces(i).line_end),
            Alt::SpacesBeforeWord => {
                let end = p.spaces(i).end;
                longer(i, if end == p.len() { end } else { end.saturating_sub(1) })
            }
            Alt::SpacesAtEnd => longer(i, p.spaces(i).end).filter(|&end| end == p.len()),
            Alt::SpacesByPowersOfTwo => {
                let end = p.spaces(i).end;
                let fits = |n: &usize| i + n < end || (i + n == end && end == p.len());
                let n = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1].into_iter().find(fits);
                n.map(|n| i + n).or_else(|| (i < end).then_some(i + 1))
            }
            Alt::MarkAndAsciiWord => {
                if !p.has(i, ASCII_MARK) {
                    return None;
                }
                longer(i + 1, p.run_of(i + 1, ASCII_LETTER))
            }
            Alt::Literal(text) => p.matches(i, text).then_some(i + text.chars().count()),
            Alt::Sentinel => {
                let digits = p.matches(i, "<sentinel:").then_some(i + 10)?;
                let end = longer(digits, p.run_of(digits, ASCII_DIGIT))?;
                p.is(end, '>').then_some(end + 1)
            }
            Alt::ImageToken => {
                let letters = p.matches(i, "IMGIMG").then_some(i + 6)?;
                let a_to_i = Chars::In(0, &[(0x41, 0x49)]);
                let end = p.run(letters, |j| j - letters < 4 && p.has(j, a_to_i));
                (end > letters && p.is(end, 'Z')).then_some(end + 1)
            }
        }
    }
}

/// [`Alt::CasedWord`] without the contraction.
fn cased_word(p: &Piece<'_>, i: usize, letters: u8) -> Option<usize> {
    let upper = |i| p.of(i, letters) && !p.has(i, Chars::In(0, &[(0x61, 0x7a)]));
    let lower = |i| p.of(i, letters) && !p.has(i, Chars::In(0, &[(0x41, 0x5a)]));
    let prefix = !p.is_line_end(i) && !p.of(i, LETTER | NUMBER);
    let starts = [prefix.then_some(i + 1), Some(i)];
    let starts = || starts.into_iter().flatten();
    // U*L+: where no L follows the U, they give back up to the last one that is an L, too.
    let ends_lower = |start: usize| {
        let uppers = p.run(start, upper);
        let end = p.run(uppers, lower);
        if end > uppers {
            return Some(end);
        }
        (start..uppers).rev().find(|&i| lower(i)).map(|i| i + 1)
    };
    // U+L*, after U*L+ has failed: nothing follows the U.
    let only_upper = |start: usize| Some(p.run(start, upper)).filter(|&end| end > start);
    starts().find_map(ends_lower).or_else(|| starts().find_map(only_upper))
}

const ASCII_DIGIT: Chars = Chars::In(0, &[(0x30, 0x39)]);
const ASCII_LETTER: Chars = Chars::In(0, &[(0x41, 0x5a), (0x61, 0x7a)]);
const ASCII_MARK: Chars = Chars::In(0, &[(0x21, 0x2f), (0x3a, 0x40), (0x5b, 0x60), (0x7b, 0x7e)]);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use std::time::{Duration, Instant};

    fn split<'a>(pre: &PreTokenizer, text: &'a str) -> Vec<&'a str> {
        let mut words = Vec::new();
        pre.split(text, |word| words.push(word));
        words
    }

    fn named(name: &str) -> PreTokenizer {
        PreTokenizer::by_name(Some(name)).unwrap_or_else(|| panic!("{name}"))
    }

    fn array(value: &Value) -> &[Value] {
        value.as_array().unwrap_or_else(|| panic!("no array: {value}"))
    }

    /// Every name against what llama.cpp makes of the same texts.
    #[test]
    fn splits_as_llama_cpp_does() {
        let data = include_str!("../../tests/data/pre_tokenizers.json");
        let data: Value = serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}"));
        let mut n_names = 0;
        for group in array(&data["splits"]) {
            for name in array(&group["names"]) {
                let name = name.as_str().unwrap_or_default();
                for (text, lengths) in array(&data["texts"]).iter().zip(array(&group["words"])) {
                    let mut rest = text.as_str().unwrap_or_default();
                    let mut expected = Vec::new();
                    for length in array(lengths) {
                        let word;
                        (word, rest) = rest.split_at(length.as_u64().unwrap_or_default() as usize);
                        expected.push(word);
                    }
                    assert_eq!(
                        split(&named(name), text.as_str().unwrap_or_default()),
                        expected,
                        "{name}"
                    );
                }
                n_names += 1;
            }
        }
        assert_eq!(n_names, PreTokenizer::names().count());
    }

    #[test]
    fn unknown_and_missing_names() {
        assert!(PreTokenizer::by_name(Some("no-such-cut")).is_none());
        for name in [None, Some("")] {
            let pre = PreTokenizer::by_name(name).unwrap_or_else(|| panic!("no default"));
            assert_eq!(split(&pre, "a 12345!!"), ["a", " ", "123", "45", "!!"]);
        }
    }

    /// Long runs of one kind, where a backtracking engine needs quadratic time or its whole stack.
    #[test]
    fn takes_linear_time() {
        let unit =
            ["a", "A", "é", " ", "\n", "\r\n", "1", "!", "中", "e\u{301}", "'s", "a ", " \t", "/"];
        let start = Instant::now();
        for name in PreTokenizer::names() {
            for unit in unit {
                let text = unit.repeat(20_000);
                assert_eq!(split(&named(name), &text).concat(), text, "{name} {unit:?}");
            }
        }
        // 1300 splits of a few milliseconds; a quadratic one takes many seconds by itself.
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    }

    proptest! {
        #[test]
        fn words_are_the_text(text in "\\PC{0,40}|[ \t\r\n'a-zA-Z0-9é中/!]{0,60}") {
            for name in PreTokenizer::names() {
                let words = split(&named(name), &text);
                prop_assert!(words.iter().all(|word| !word.is_empty()), "{name}");
                prop_assert_eq!(words.concat(), text.as_str(), "{}", name);
            }
        }
    }
}
