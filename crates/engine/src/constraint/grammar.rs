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
            Ok(GrammarConstraint { matcher, opening: None })
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
    ConstraintError(match message[..end].trim() {
        "" | "NoExtensionBias" => "no token of the vocabulary can continue this answer".into(),
        message => match message.strip_prefix("panic: ") {
            Some(panic) => format!("the grammar library failed on this grammar: {panic}"),
            None => message.to_owned(),
        },
    })
}

/// Where an answer stands in its grammar. A clone is independent and goes on from the same place.
pub struct GrammarConstraint {
    matcher: Matcher,
    /// What comes before.
    opening: Option<Opening>,
}

/// A free text before the one that follows a grammar.
#[derive(Clone)]
struct Opening {
    /// How it ends.
    end: Vec<u8>,
    /// The last bytes of it, as many as can be a part of `end`.
    tail: Vec<u8>,
    /// The control token that ends it, which has no text.
    token: Option<u32>,
    /// Tokens that may end it and go on with what the grammar would have to see.
    beyond: Vec<u32>,
}

impl Opening {
    /// Where the text ends in `tail` and the bytes of a token; what is behind.
    fn rest<'t>(&self, text: &'t [u8]) -> Option<&'t [u8]> {
        let at = text.windows(self.end.len()).position(|part| part == self.end)?;
        Some(&text[at + self.end.len()..])
    }
}

impl GrammarConstraint {
    /// The same behind a free text that ends with `end`, such as the reasoning that a prompt has opened. A token
    /// that ends it may bring white space along. `token`: the control token that `end` is, if it is one.
    pub fn after(mut self, end: &str, token: Option<u32>) -> Self {
        let env = self.matcher.tok_env().ok().filter(|_| !end.is_empty());
        let Some(env) = env else { return self };
        let trie = env.tok_trie();
        let (end, tail) = (end.as_bytes().to_vec(), Vec::new());
        let mut opening = Opening { end, tail, token, beyond: Vec::new() };
        let beyond = |id: &u32| {
            let token = trie.token(*id);
            (0..opening.end.len()).any(|n| {
                let text = [&opening.end[..n], token].concat();
                opening.rest(&text).is_some_and(|rest| !rest.trim_ascii().is_empty())
            })
        };
        opening.beyond = (0..trie.vocab_size() as u32).filter(beyond).collect();
        self.opening = Some(opening);
        self
    }
}

impl Clone for GrammarConstraint {
    fn clone(&self) -> Self {
        // A shallow clone would share the automaton, whose size is limited, with other answers.
        Self { matcher: self.matcher.deep_clone(), opening: self.opening.clone() }
    }
}

impl fmt::Debug for GrammarConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarConstraint").field("stop", &self.matcher.stop_reason()).finish()
    }
}

impl Constraint for GrammarConstraint {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        if let Some(opening) = &self.opening {
            let env = self.matcher.tok_env().map_err(|e| told(&e))?;
            let trie = env.tok_trie();
            mask.words_mut().fill(u32::MAX);
            // It must not be all.
            trie.eos_tokens().iter().for_each(|&id| mask.forbid(id));
            for &id in &opening.beyond {
                let text = [&*opening.tail, trie.token(id)].concat();
                if opening.rest(&text).is_some_and(|rest| !rest.trim_ascii().is_empty()) {
                    mask.forbid(id);
                }
            }
            return Ok(());
        }
        let set = self.matcher.compute_mask_or_eos().map_err(|e| told(&e))?;
        let (set, words) = (set.as_slice(), mask.words_mut());
        // The model may have more tokens than the tokenizer, and the other way round.
        let n = set.len().min(words.len());
        words[..n].copy_from_slice(&set[..n]);
        words[n..].fill(0);
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<(), ConstraintError> {
        if let Some(opening) = &mut self.opening {
            let env = self.matcher.tok_env().map_err(|e| told(&e))?;
            opening.tail.extend_from_slice(env.tok_trie().token(id));
            if opening.token == Some(id) || opening.rest(&opening.tail).is_some() {
                self.opening = None;
            } else {
                let n = opening.tail.len().saturating_sub(opening.end.len() - 1);
                opening.tail.drain(..n);
            }
            return Ok(());
        }
        self.matcher.consume_token(id).map_err(|e| told(&e))
    }

    fn is_finished(&self) -> bool {
        self.opening.is_none() && self.matcher.is_stopped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hurtle_gguf::Gguf;
    use hurtle_text::StreamDecoder;
    use std::io::Read as _;
    use std::path::Path;

    /// A vocabulary of the golden data.
    fn tokenizer(name: &str) -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tokenizers");
        let packed =
            std::fs::read(folder.join(format!("{name}.gguf.gz"))).expect("the golden file");
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&*packed).read_to_end(&mut bytes).expect("a packed file");
        let gguf = Gguf::from_bytes(name, bytes).expect("a vocabulary");
        Tokenizer::from_metadata(gguf.metadata()).expect("a tokenizer")
    }

    /// All answers that the grammar of this test allows.
    const ANSWERS: [&str; 6] = ["hello", "help me", "123.5", "é世界", " hello\n\tx", "<s></s>"];

    /// At every step of many answers the mask is exactly the set of tokens that lead to one of `ANSWERS`.
    fn check(name: &str) {
        let tok = tokenizer(name);
        let grammars = Grammars::new(&tok).expect("grammars");
        let regex = ANSWERS.map(|answer| answer.replace('.', "\\.")).join("|");
        let grammar = grammars.compile(&Grammar::Regex(regex), &tok).expect("compiled");
        let n_tokens = tok.n_tokens() as u32;
        // Models may have more tokens than their vocabulary names.
        let mut mask = TokenMask::new(tok.n_tokens() + 77);
        let mut rng = fastrand::Rng::with_seed(1);
        let mut found = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let (mut grammar, mut bytes) = (grammar.clone(), Vec::new());
            let (mut decoder, mut text) = (StreamDecoder::new(&tok, false), String::new());
            loop {
                mask.words_mut().fill(u32::MAX);
                grammar.allowed(&mut mask).expect("a mask");
                let leads = |id: u32| {
                    if tok.is_end_of_generation(id) {
                        return ANSWERS.iter().any(|answer| answer.as_bytes() == bytes);
                    }
                    let token = tok.token_bytes(id, false);
                    let longer = [&*bytes, &*token].concat();
                    !token.is_empty() && ANSWERS.iter().any(|a| a.as_bytes().starts_with(&longer))
                };
                let expected: Vec<u32> = (0..n_tokens).filter(|&id| leads(id)).collect();
                let allowed: Vec<u32> =
                    (0..mask.n_tokens() as u32).filter(|&id| mask.contains(id)).collect();
                assert_eq!(allowed, expected, "{name} after {:?}", String::from_utf8_lossy(&bytes));
                let id = expected[rng.usize(..expected.len())];
                if tok.is_end_of_generation(id) {
                    break;
                }
                grammar.accept(id).expect("accepted");
                bytes.extend(tok.token_bytes(id, false));
                decoder.push(id, &mut text);
                if grammar.is_finished() {
                    break;
                }
            }
            text += &decoder.finish();
            assert!(ANSWERS.contains(&&*text), "{name}: {text:?}");
            found.insert(text);
        }
        assert!(found.len() >= 3, "{name}: {found:?}");
    }

    #[test]
    fn masks_hold_what_leads_to_an_answer_in_every_kind_of_vocabulary() {
        for name in ["gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3", "falcon"] {
            check(name);
        }
    }

    #[test]
    fn a_free_text_may_come_first() {
        let tok = tokenizer("qwen2");
        let grammars = Grammars::new(&tok).expect("grammars");
        let digits = grammars.compile(&Grammar::Regex("[0-9]+".into()), &tok).expect("compiled");
        let check = |text: &str, valid: bool| {
            let mut grammar = digits.clone().after("</think>", None);
            let mut mask = TokenMask::new(tok.n_tokens());
            let ids = tok.encode(text, hurtle_text::Encode::default());
            let found = ids.into_iter().all(|id| {
                grammar.allowed(&mut mask).expect("a mask");
                let ends = tok.end_of_generation();
                assert!(grammar.opening.is_none() || !ends.iter().any(|&id| mask.contains(id)));
                mask.contains(id) && grammar.accept(id).is_ok()
            });
            assert_eq!(found, valid, "{text}");
        };
        for thoughts in ["", "hm, 1 < 2 </thin </", "</ </think"] {
            check(&format!("{thoughts}</think>12"), true);
            check(&format!("{thoughts}</think>\n\n12"), true);
            check(&format!("{thoughts}</think>a"), false);
        }
    }

    #[test]
    fn words_of_a_word_piece_vocabulary_have_their_blanks() {
        // Such a vocabulary has no token for a line break, or for words without a blank in front.
        let tok = tokenizer("bert-bge");
        let grammars = Grammars::new(&tok).expect("grammars");
        let grammar = Grammar::Regex("( hello| world){2}".into());
        let mut grammar = grammars.compile(&grammar, &tok).expect("compiled");
        let mut mask = TokenMask::new(tok.n_tokens());
        for word in [" world", " hello"] {
            grammar.allowed(&mut mask).expect("a mask");
            let ids = (0..tok.n_tokens() as u32)
                .filter(|&id| tok.token_bytes(id, false) == word.as_bytes());
            let id = ids.into_iter().next().expect("a word");
            assert!(mask.contains(id), "{word}");
            grammar.accept(id).expect("accepted");
        }
        assert!(grammar.is_finished());
        let error = grammars.compile(&Grammar::Regex("\n".into()), &tok).expect_err("refused");
        assert!(error.to_string().contains("no token of the vocabulary"), "{error}");
    }
}
