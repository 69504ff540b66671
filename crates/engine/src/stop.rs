//! Stop strings in a stream of text.
//!
//! Text arrives in pieces, and a stop string may lie across several of them. What could still become
//! a stop string is held back; the rest goes out at once. For each stop string one number is
//! carried along: how many of its bytes the text so far ends with (Knuth, Morris and Pratt). The
//! largest of these is how much is held back, so the work for a byte does not depend on how long
//! the stop strings are.

/// One stop string and how much of it the text ends with.
#[derive(Debug, Clone)]
struct Stop {
    text: Vec<u8>,
    /// `borders[n]`: longest proper prefix of `text` that `text[..n]` ends with; n from 1.
    borders: Vec<usize>,
    matched: usize,
}

impl Stop {
    fn new(text: &str) -> Self {
        let mut stop = Self { text: text.into(), borders: vec![0; 2], matched: 0 };
        for &byte in &text.as_bytes()[1..] {
            stop.push(byte);
            stop.borders.push(stop.matched);
        }
        stop.matched = 0;
        stop
    }

    /// Follows the text by one byte; true if it now ends with the stop string.
    fn push(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.text[self.matched] != byte {
            self.matched = self.borders[self.matched];
        }
        self.matched += usize::from(self.text[self.matched] == byte);
        self.matched == self.text.len()
    }
}

/// Finds the first stop string in a text that arrives in pieces.
///
/// The result does not depend on the pieces: the text ends before the stop string that is complete
/// first, and if several are complete with the same byte, before the longest of them.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    /// What could still become a stop string.
    held: String,
    /// Index of the stop string that was found.
    found: Option<usize>,
}

impl StopMatcher {
    /// A matcher for `stops`; empty ones never match.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let stops = stops.iter().map(AsRef::as_ref).filter(|text| !text.is_empty());
        Self { stops: stops.map(Stop::new).collect(), held: String::new(), found: None }
    }

    /// Takes the next piece of text. Appends to `out` what can be shown now, and returns whether a
    /// stop string has been found; it and all that follows it never come out.
    pub fn push(&mut self, piece: &str, out: &mut String) -> bool {
        if self.found.is_some() {
            return true;
        }
        let start = self.held.len();
        self.held.push_str(piece);
        for end in start..self.held.len() {
            let byte = self.held.as_bytes()[end];
            let mut longest = 0;
            for (index, stop) in self.stops.iter_mut().enumerate() {
                if stop.push(byte) && stop.text.len() > longest {
                    longest = stop.text.len();
                    self.found = Some(index);
                }
            }
            if longest > 0 {
                // A stop string begins and ends with whole characters.
                out.push_str(&self.held[..end + 1 - longest]);
                self.held.clear();
                return true;
            }
        }
        let open = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        // What is open begins where a stop string begins, with a whole character.
        out.extend(self.held.drain(..self.held.len() - open));
        false
    }

    /// The stop string that was found.
    pub fn found(&self) -> Option<&str> {
        self.found.and_then(|index| str::from_utf8(&self.stops[index].text).ok())
    }

    /// The text has ended: what was held back was no stop string after all.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds pieces; `expected` is what comes out for each, `|` where it stopped, then the rest.
    fn check(stops: &[&str], pieces: &[&str], expected: &[&str]) {
        let mut matcher = StopMatcher::new(stops);
        let mut found = Vec::new();
        for piece in pieces {
            let mut text = String::new();
            let stopped = matcher.push(piece, &mut text);
            found.push(if stopped { text + "|" } else { text });
        }
        found.push(matcher.finish());
        assert_eq!(found, expected, "{stops:?} {pieces:?}");
    }

    #[test]
    fn only_what_could_become_a_stop_string_is_held_back() {
        check(&[], &["a", "b"], &["a", "b", ""]);
        check(&[""], &["a", ""], &["a", "", ""]);
        check(&["STOP"], &["aSTOPb", "c"], &["a|", "|", ""]);
        check(&["STOP"], &["a S", "T", "OP"], &["a ", "", "|", ""]);
        check(&["STOP"], &["ST", "x", "STO"], &["", "STx", "", "STO"]);
        check(&["STOP"], &["STSTO", "SSTOP"], &["ST", "STOS|", ""]);
        check(&["aab"], &["aaaa", "b"], &["aa", "|", ""]);
        check(&["abab!"], &["ababab", "!"], &["ab", "|", ""]);
    }

    #[test]
    fn the_first_complete_stop_string_wins() {
        check(&["abcd", "bc"], &["abcd"], &["a|", ""]);
        check(&["bc", "abc"], &["xabc"], &["x|", ""]);
        check(&["b", "a"], &["xab"], &["x|", ""]);
        check(&["abcd", "bcx"], &["abc", "x"], &["", "a|", ""]);
        check(&["abcd", "cx"], &["abc", "y"], &["", "abcy", ""]);
    }

    #[test]
    fn characters_stay_whole() {
        // é is C3 A9, è is C3 A8: a common first byte holds nothing back.
        check(&["é"], &["aè", "é"], &["aè", "|", ""]);
        check(&["日本"], &["日", "日本"], &["", "日|", ""]);
        check(&["👍🏽"], &["👍", "🏾"], &["", "👍🏾", ""]);
    }

    /// Grows the text character by character until it ends with a stop string.
    fn naive(stops: &[String], text: &str) -> (String, bool) {
        for (start, c) in text.char_indices() {
            let so_far = &text[..start + c.len_utf8()];
            let matching = stops.iter().filter(|stop| !stop.is_empty() && so_far.ends_with(*stop));
            if let Some(longest) = matching.map(String::len).max() {
                return (so_far[..so_far.len() - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            stops in prop::collection::vec("[abé日]{0,5}", 0..4),
            pieces in prop::collection::vec("[abé日]{0,6}", 0..12),
        ) {
            let mut matcher = StopMatcher::new(&stops);
            let (mut found, mut all, mut found_stop) = (String::new(), String::new(), false);
            for piece in &pieces {
                let stopped = matcher.push(piece, &mut found);
                all.push_str(piece);
                found_stop = stopped;
                // No more is held back than has to be.
                let held = &matcher.held;
                let may_stop = |stop: &String| stop.len() > held.len() && stop.starts_with(held);
                prop_assert!(held.is_empty() || stops.iter().any(may_stop), "held {held:?}");
                if !stopped {
                    prop_assert_eq!(format!("{found}{held}"), all.as_str());
                }
            }
            found.push_str(&matcher.finish());
            prop_assert_eq!((found, found_stop), naive(&stops, &all));
        }
    }
}
