//! What may come next, where an answer has to follow a grammar.
mod gbnf;
mod grammar;
mod json;
mod logic;

pub(crate) use grammar::Grammars;
pub use grammar::{Grammar, GrammarConstraint};
pub use json::prepare_schema;

/// A set of tokens: one bit for each token of the vocabulary, 32 to a word, lowest bit first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
    n_tokens: usize,
}

impl TokenMask {
    /// An empty set over a vocabulary of `n_tokens`.
    pub fn new(n_tokens: usize) -> Self {
        Self { words: vec![0; n_tokens.div_ceil(32)], n_tokens }
    }

    /// Tokens of the vocabulary, whether in the set or not.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Takes every token out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Puts a token in; one outside the vocabulary is ignored.
    pub fn allow(&mut self, id: u32) {
        if (id as usize) < self.n_tokens {
            self.words[id as usize / 32] |= 1 << (id % 32);
        }
    }

    /// Takes a token out.
    pub fn forbid(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut(id as usize / 32) {
            *word &= !(1 << (id % 32));
        }
    }

    /// Whether a token is in the set.
    pub fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// The bits.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// The bits, to be written. Those past the vocabulary count for nothing.
    pub fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
    }
}

/// Why an answer cannot follow its grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(pub String);

/// Restricts which token may come next.
pub trait Constraint: Send {
    /// Makes `mask` the set of tokens that may come next.
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError>;
    /// Goes on by a token that was allowed.
    fn accept(&mut self, id: u32) -> Result<(), ConstraintError>;
    /// Whether nothing may follow.
    fn is_finished(&self) -> bool;
}
