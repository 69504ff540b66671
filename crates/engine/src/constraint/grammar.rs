//! Grammars over the tokens of a model, by [`llguidance`].
//!
//! The texts of all tokens lie in a trie, which the grammar's automaton walks to find those that may come
//! next. It is built for the first grammar and shared by all that follow. Control tokens have no text, so that
//! none of them can stand where a text is wanted; those that end a generation may come where the
//! grammar is complete.
//!
//! Grammars come from clients. They are compiled with limits on size and effort, on a thread whose stack no
//! nesting within these limits exhausts.

use super::{Constraint, ConstraintError, TokenMask, gbnf, json};
use hurtle_text::Tokenizer;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;
use std::fmt;
use std::sync::Arc;
use toktrie::{ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokRxInfo, TokTrie};

/// A form that an answer is to have.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(Value),
    /// A text that matches this regular expression from end to end.
    Regex(String),
    /// Lark as llguidance reads it; the rule `start` is the answer.
    Lark(String),
    /// GBNF as llama.cpp reads it; the rule `root` is the answer.
    Gbnf(String),
}

impl Grammar {
    /// What llama.cpp takes for a grammar: GBNF, or Lark if it begins with `%llguidance`.
    pub fn from_text(text: impl Into<String>) -> Self {
        let text = text.into();
        if text.trim_start().starts_with("%llguidance") {
            Self::Lark(text)
        } else {
            Self::Gbnf(text)
        }
    }

    fn compile(&self, tok: &Tokenizer) -> Result<TopLevelGrammar, ConstraintError> {
        let size = match self {
            Self::JsonObject => 0,
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) | Self::Gbnf(text) => text.len(),
        };
        if size > MAX_BYTES {
            return Err(ConstraintError(format!(
                "expected a grammar of at most {MAX_BYTES} bytes, found {size}"
            )));
        }
        Ok(match self {
            Self::JsonObject => json::grammar(serde_json::json!({"type": "object"}))?,
            Self::JsonSchema(schema) => json::grammar(schema.clone())?,
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
            Self::Gbnf(gbnf) => {
                TopLevelGrammar::from_lark(gbnf::to_lark(gbnf, &|text| tok.token_id(text))?)
            }
        })
    }
}

/// Longest grammar.
const MAX_BYTES: usize = 256 << 10;

/// Address space for the stack of the thread that compiles; pages that are not touched take no memory.
const STACK_BYTES: usize = 256 << 20;

/// Bytes of the longest token that may be part of an answer: the trie is no deeper.
const MAX_TOKEN_BYTES: usize = 1000;

/// Most bytes of all tokens together, which is what the trie can number.
const MAX_VOCABULARY_BYTES: usize = (1 << 22) - 2;

/// What all grammars of a model share.
pub(crate) struct Grammars {
    factory: ParserFactory,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// Builds the trie.
    pub(crate) fn new(tok: &Tokenizer) -> Result<Self, ConstraintError> {
        let n_tokens = tok.n_tokens();
        let text = |id| {
            let bytes =
                if tok.is_end_of_generation(id) { vec![] } else { tok.token_bytes(id, false) };
            // The marker of special tokens is no UTF-8, but a damaged vocabulary may have it.
            let fits = bytes.len() <= MAX_TOKEN_BYTES
                && bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER);
            if fits { bytes } else { vec![] }
        };
        let texts: Vec<Vec<u8>> = (0..n_tokens as u32).map(text).collect();
        let n_bytes: usize = texts.iter().map(Vec::len).sum();
        if n_bytes > MAX_VOCABULARY_BYTES {
            return Err(ConstraintError(format!(
                "grammars need a vocabulary of at most {MAX_VOCABULARY_BYTES} bytes, this model's has {n_bytes}"
            )));
        }
        let ends = tok.end_of_generation();
        let info = TokRxInfo::new(n_tokens as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let mut trie = TokTrie::from(&info, &texts);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(ends);
        }
        let env: toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|error| ConstraintError(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Self { factory })
    }

    /// Compiles a grammar.
    pub(crate) fn compile(
        &self,
        grammar: &Grammar,
        tok: &Tokenizer,
    ) -> Result<GrammarConstraint, ConstraintError> {
        let compile = || {
            let parser = self.factory.create_parser(grammar.compile(tok)?).map_err(|e| told(&e))?;
            let mut matcher = Matcher::new(Ok(parser));
            // What cannot even begin is refused now.
            matcher.compute_mask_or_eos().map_err(|e| told(&e))?;
            Ok(GrammarConstraint { matcher })
        };
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
            let thread = builder
                .spawn_scoped(scope, compile)
                .map_err(|e| ConstraintError(format!("no thread to compile the grammar: {e}")))?;
            let failed = |_| ConstraintError("the grammar cannot be compiled".into());
            thread.join().map_err(failed)?
        })
    }
}

/// llguidance's message without what it adds for its developers.
fn told(error: &anyhow::Error) -> ConstraintError {
    let message = error.to_string();
    let end = ["\n<non-verbose/>", "\n<backtrace>", "\n<state>"];
    let end = end.iter().filter_map(|mark| message.find(mark)).min().unwrap_or(message.len());
    match message[..end].trim() {
        "" => ConstraintError("no token of the vocabulary can continue this answer".into()),
        message => ConstraintError(message.to_owned()),
    }
}

/// Where an answer stands in its grammar. A clone is independent and goes on from the same place.
pub struct GrammarConstraint {
    matcher: Matcher,
}

impl Clone for GrammarConstraint {
    fn clone(&self) -> Self {
        // A shallow clone would share the automaton, whose size is limited, with other answers.
        Self { matcher: self.matcher.deep_clone() }
    }
}

impl fmt::Debug for GrammarConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarConstraint").field("stop", &self.matcher.stop_reason()).finish()
    }
}

impl Constraint for GrammarConstraint {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        let set = self.matcher.compute_mask_or_eos().map_err(|e| told(&e))?;
        let (set, words) = (set.as_slice(), mask.words_mut());
        // The model may have more tokens than the tokenizer, and the other way round.
        let n = set.len().min(words.len());
        words[..n].copy_from_slice(&set[..n]);
        words[n..].fill(0);
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<(), ConstraintError> {
        self.matcher.consume_token(id).map_err(|e| told(&e))
    }

    fn is_finished(&self) -> bool {
        self.matcher.is_stopped()
    }
}
