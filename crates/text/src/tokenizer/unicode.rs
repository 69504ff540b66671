//! What tokenizers ask about characters: the major general category and whether it is white space.

use super::unicode_data::CATEGORY_RUNS;
use std::sync::LazyLock;

/// Unassigned, or no character at all.
pub(super) const UNDEFINED: u8 = 1 << 0;
/// `\p{N}`
pub(super) const NUMBER: u8 = 1 << 1;
/// `\p{L}`
pub(super) const LETTER: u8 = 1 << 2;
/// `\s`: all separators (`\p{Z}`), tab to carriage return, and next line (U+0085). The last six
/// are also [`CONTROL`].
pub(super) const SPACE: u8 = 1 << 3;
/// `\p{M}`
pub(super) const MARK: u8 = 1 << 4;
/// `\p{P}`
pub(super) const PUNCTUATION: u8 = 1 << 5;
/// `\p{S}`
pub(super) const SYMBOL: u8 = 1 << 6;
/// `\p{C}` without the unassigned ones
pub(super) const CONTROL: u8 = 1 << 7;

const N_CODE_POINTS: usize = 0x11_0000;

/// One byte a code point: 1 MiB, of which a text touches the few pages of its scripts.
static CLASSES: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut classes = vec![0u8; N_CODE_POINTS].into_boxed_slice();
    for (i, &run) in CATEGORY_RUNS.iter().enumerate() {
        let start = (run >> 8) as usize;
        let end = CATEGORY_RUNS.get(i + 1).map_or(N_CODE_POINTS, |next| (next >> 8) as usize);
        classes[start..end].fill(run as u8);
    }
    for c in ('\t'..='\r').chain(['\u{85}']) {
        classes[c as usize] |= SPACE;
    }
    classes
});

/// The class of every code point, to be indexed by it.
pub(super) fn classes() -> &'static [u8] {
    &CLASSES
}

/// Simple lower case: the first character of the full mapping. Characters newer than the table have
/// none.
pub(super) fn lower(c: char) -> char {
    if classes()[c as usize] == UNDEFINED {
        return c;
    }
    c.to_lowercase().next().unwrap_or(c)
}

/// The first character of the canonical decomposition: the base letter of an accented one.
pub(super) fn base_char(c: char) -> char {
    let mut base = None;
    unicode_normalization::char::decompose_canonical(c, |d| {
        base.get_or_insert(d);
    });
    base.unwrap_or(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

    #[test]
    fn classes_agree_with_a_library_on_assigned_characters() {
        let mut n_assigned = 0;
        for c in '\0'..=char::MAX {
            let class = classes()[c as usize];
            if class == UNDEFINED {
                continue;
            }
            n_assigned += 1;
            let expected = match c.general_category_group() {
                GeneralCategoryGroup::Number => NUMBER,
                GeneralCategoryGroup::Letter => LETTER,
                GeneralCategoryGroup::Separator => SPACE,
                GeneralCategoryGroup::Mark => MARK,
                GeneralCategoryGroup::Punctuation => PUNCTUATION,
                GeneralCategoryGroup::Symbol => SYMBOL,
                GeneralCategoryGroup::Other => CONTROL,
            };
            let space = if c.is_whitespace() { SPACE } else { 0 };
            assert_eq!(class, expected | space, "U+{:04X}", c as u32);
        }
        // Unicode 15.1 has 149,813 characters; the rest is private use and controls.
        assert!(n_assigned > 149_813, "{n_assigned}");
    }

    #[test]
    fn case_and_base() {
        let check = |c, lowered, base| {
            assert_eq!((lower(c), base_char(c)), (lowered, base), "{c}");
        };
        check('A', 'a', 'A');
        check('É', 'é', 'E');
        check('ß', 'ß', 'ß');
        check('İ', 'i', 'I');
        check('가', '가', 'ᄀ');
        check('中', '中', '中');
        // New in Unicode 16, with U+1C8A as its lower case.
        check('\u{1c89}', '\u{1c89}', '\u{1c89}');
    }
}
