//! What is read piece by piece: markers in a text, and where a JSON value ends.

/// What a search for markers gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The marker with this index begins here.
    Marker { at: usize, index: usize },
    /// None, but from here on one may have begun; the length of the text if not.
    Open(usize),
}

/// The first of `markers` in `text`. None of them may be the beginning of another.
pub(super) fn find(text: &str, markers: &[&str]) -> Found {
    for (at, &byte) in text.as_bytes().iter().enumerate() {
        let begins = |marker: &&str| marker.as_bytes().first() == Some(&byte);
        if !markers.iter().any(begins) {
            continue;
        }
        // A marker begins with a whole character.
        let rest = &text[at..];
        for (index, marker) in markers.iter().enumerate() {
            if rest.starts_with(marker) {
                return Found::Marker { at, index };
            }
            if marker.starts_with(rest) {
                return Found::Open(at);
            }
        }
    }
    Found::Open(text.len())
}

/// What a character was to a JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A part of it.
    More,
    /// Its last.
    Done,
    /// None.
    Wrong,
}

/// Finds the end of a JSON object or array. Only its structure is looked at: brackets and texts.
#[derive(Debug, Clone, Default)]
pub(super) struct JsonScan {
    /// The brackets that will close it.
    closing: Vec<char>,
    in_text: bool,
    escaped: bool,
}

impl JsonScan {
    pub(super) fn push(&mut self, c: char) -> Step {
        if self.in_text {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_text = false,
                _ => {}
            }
            return Step::More;
        }
        match c {
            '{' => self.closing.push('}'),
            '[' => self.closing.push(']'),
            _ if self.closing.is_empty() => return Step::Wrong,
            '"' => self.in_text = true,
            '}' | ']' => {
                if self.closing.pop() != Some(c) {
                    return Step::Wrong;
                }
                if self.closing.is_empty() {
                    return Step::Done;
                }
            }
            ':' | ',' | '-' | '+' | '.' => {}
            _ if c.is_ascii_alphanumeric() || c.is_whitespace() => {}
            _ => return Step::Wrong,
        }
        Step::More
    }

    /// Open brackets.
    pub(super) fn depth(&self) -> usize {
        self.closing.len()
    }

    pub(super) fn in_text(&self) -> bool {
        self.in_text
    }
}

/// A member of an object: its key, and the text of its value as far as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member<'a> {
    pub(super) key: String,
    pub(super) value: &'a str,
    pub(super) complete: bool,
}

/// The members of the object that `text` begins with, the last one perhaps broken off.
pub(super) fn members(text: &str) -> Vec<Member<'_>> {
    let mut out = Vec::new();
    let mut rest = text.trim_start().strip_prefix('{').unwrap_or_default();
    loop {
        rest = rest.trim_start().trim_start_matches(',').trim_start();
        let Some(key_end) = end_of_value(rest).filter(|_| rest.starts_with('"')) else { break };
        let Ok(key) = serde_json::from_str::<String>(&rest[..key_end]) else { break };
        let Some(value) = rest[key_end..].trim_start().strip_prefix(':') else { break };
        let value = value.trim_start();
        if value.is_empty() {
            break;
        }
        let end = end_of_value(value);
        let n = end.unwrap_or(value.len());
        out.push(Member { key, value: &value[..n], complete: end.is_some() });
        rest = &value[n..];
    }
    out
}

/// The length of the JSON value that `text` begins with, if its end is there.
fn end_of_value(text: &str) -> Option<usize> {
    match text.chars().next()? {
        '{' | '[' => {
            let mut scan = JsonScan::default();
            let end = text.char_indices().find(|&(_, c)| scan.push(c) != Step::More);
            end.map(|(at, c)| at + c.len_utf8())
        }
        '"' => {
            let mut escaped = false;
            let end = text.char_indices().skip(1).find(|&(_, c)| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map(|(at, _)| at + 1)
        }
        _ => text.find(|c: char| matches!(c, ',' | '}' | ']') || c.is_whitespace()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_or_held_open() {
        let check = |text: &str, expected: Found| {
            assert_eq!(find(text, &["<a>", "<ab>", "日本"]), expected, "{text}");
        };
        check("", Found::Open(0));
        check("xy", Found::Open(2));
        check("x<a>y", Found::Marker { at: 1, index: 0 });
        check("x<<ab>", Found::Marker { at: 2, index: 1 });
        check("x<a", Found::Open(1));
        check("x<ay", Found::Open(4));
        check("é日", Found::Open(2));
        check("é日本", Found::Marker { at: 2, index: 2 });
    }

    #[test]
    fn the_end_of_a_value() {
        let check = |text: &str, expected: (Step, usize)| {
            let mut scan = JsonScan::default();
            let end = text.char_indices().map(|(at, c)| (scan.push(c), at));
            let end = end.into_iter().find(|(step, _)| *step != Step::More);
            assert_eq!(end.unwrap_or((Step::More, text.len())), expected, "{text}");
        };
        check(r#"{"a": [1, {"b}": "\"]"}], "c": -1.5e+3, "d": null} x"#, (Step::Done, 49));
        check("{}", (Step::Done, 1));
        check("[1", (Step::More, 2));
        check("x", (Step::Wrong, 0));
        check("[}", (Step::Wrong, 1));
        check("{'a'}", (Step::Wrong, 1));
    }

    #[test]
    fn members_of_an_object_that_is_still_being_written() {
        let check = |text: &str, expected: &[(&str, &str, bool)]| {
            let found = members(text);
            let found: Vec<_> =
                found.iter().map(|m| (m.key.as_str(), m.value, m.complete)).collect();
            assert_eq!(found, expected, "{text}");
        };
        let whole = r#"{"name": "f\"", "n": 12, "arguments": {"a": [1]}}"#;
        let (name, n, arguments) = ("\"f\\\"\"", "12", r#"{"a": [1]}"#);
        check(whole, &[("name", name, true), ("n", n, true), ("arguments", arguments, true)]);
        check(
            &whole[..44],
            &[("name", name, true), ("n", n, true), ("arguments", "{\"a\": ", false)],
        );
        check(&whole[..10], &[("name", "\"", false)]);
        check(&whole[..4], &[]);
        check("{}", &[]);
    }
}
