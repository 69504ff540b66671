//! How long a model may think before it answers: reasoning that has used up its tokens is closed for the model, which
//! then goes on as if it had closed it itself.

/// The limit to what a model thinks, and how its thoughts are told from its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningBudget {
    /// Most tokens of reasoning.
    pub tokens: usize,
    /// What opens reasoning at the beginning of an answer; `None`: the prompt has opened it.
    pub begin: Option<String>,
    /// What closes it.
    pub end: String,
    /// The tokens that are written when the budget is spent; `end` is the last of what they say.
    pub closing: Vec<u32>,
}

/// How far an answer is in its reasoning.
#[derive(Debug)]
pub(crate) struct Spending {
    budget: ReasoningBudget,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// The answer so far, which may be the beginning of what opens reasoning.
    Before(Vec<u8>),
    /// So many tokens, and the last bytes, as many as can be a part of the end.
    Inside(usize, Vec<u8>),
    /// So many tokens of the closing are there.
    Closing(usize),
    Behind,
}

impl Spending {
    pub(crate) fn new(budget: ReasoningBudget) -> Self {
        let state = match budget.begin {
            Some(_) => State::Before(Vec::new()),
            None => State::Inside(0, Vec::new()),
        };
        let mut spending = Self { budget, state };
        spending.close_if_spent();
        spending
    }

    /// The token that has to come next, if the budget is spent.
    pub(crate) fn forced(&self) -> Option<u32> {
        match self.state {
            State::Closing(n) => self.budget.closing.get(n).copied(),
            _ => None,
        }
    }

    /// Goes on by a token that says `text`.
    pub(crate) fn accept(&mut self, text: &[u8]) {
        let end = self.budget.end.as_bytes();
        self.state = match std::mem::replace(&mut self.state, State::Behind) {
            State::Before(so_far) => {
                let text = [&*so_far, text].concat();
                let begin = self.budget.begin.as_deref().unwrap_or_default().as_bytes();
                let shown = text.trim_ascii_start();
                match shown.strip_prefix(begin) {
                    Some(inside) => State::Inside(0, inside.to_vec()),
                    None if begin.starts_with(shown) => State::Before(text),
                    None => State::Behind,
                }
            }
            State::Inside(n, mut tail) => {
                tail.extend_from_slice(text);
                match tail.windows(end.len()).any(|part| part == end) {
                    true => State::Behind,
                    false => {
                        tail.drain(..tail.len().saturating_sub(end.len().saturating_sub(1)));
                        State::Inside(n + 1, tail)
                    }
                }
            }
            State::Closing(n) if n + 1 < self.budget.closing.len() => State::Closing(n + 1),
            State::Closing(_) | State::Behind => State::Behind,
        };
        self.close_if_spent();
    }

    fn close_if_spent(&mut self) {
        if matches!(self.state, State::Inside(n, _) if n >= self.budget.tokens) {
            self.state = State::Closing(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds tokens; where one is forced, it is marked with `!` and comes instead.
    fn check(begin: Option<&str>, tokens: usize, pieces: &[&str], expected: &str) {
        let (begin, end) = (begin.map(str::to_owned), "</t>".to_owned());
        let mut spending =
            Spending::new(ReasoningBudget { tokens, begin, end, closing: vec![7, 8] });
        let mut out = String::new();
        for piece in pieces {
            while let Some(id) = spending.forced() {
                out += &format!("!{id}");
                spending.accept(if id == 7 { b"</" } else { b"t>" });
            }
            out += piece;
            spending.accept(piece.as_bytes());
        }
        assert_eq!(out, expected, "{pieces:?}");
    }

    #[test]
    fn reasoning_is_closed_when_its_budget_is_spent() {
        check(None, 2, &["a", "b", "c", "d"], "ab!7!8cd");
        check(None, 0, &["a"], "!7!8a");
        check(Some("<t>"), 1, &["\n<", "t>", "a", "b"], "\n<t>a!7!8b");
    }

    #[test]
    fn nothing_else_is() {
        check(None, 3, &["a", "b</", "t>c", "d", "e", "f"], "ab</t>cdef");
        check(Some("<t>"), 1, &["<x", "a", "b", "c"], "<xabc");
        check(Some("<t>"), 1, &["Hi", "<t>", "b", "c"], "Hi<t>bc");
    }
}
