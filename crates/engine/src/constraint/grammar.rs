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
use hurtle_text::{Opening, Tokenizer};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;
use std::collections::HashMap;
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
    controls: Arc<Controls>,
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
        let control = |id| Some((id, tok.token_bytes(id, true))).filter(|_| tok.is_control(id));
        let controls = (0..n_tokens as u32).filter_map(control).collect();
        Ok(Self { factory, controls: Arc::new(controls) })
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
            let controls = Arc::clone(&self.controls);
            Ok(GrammarConstraint { matcher, opening: None, controls })
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
    /// What comes before, and how far the answer is in it.
    opening: Option<(Arc<Free>, Stage)>,
    controls: Arc<Controls>,
}

/// The texts of control tokens, which the trie does not have.
type Controls = HashMap<u32, Vec<u8>>;

/// A free text before the one that follows a grammar.
struct Free {
    /// What it begins with; empty if it is there from the start.
    begin: Vec<u8>,
    end: Vec<u8>,
    /// Tokens that may be a part of `begin`.
    beginning: Vec<u32>,
    /// Tokens that may end the text and go on with what the grammar would have to see.
    beyond: Vec<u32>,
    /// Tokens of white space, of which one may follow.
    space: Vec<u32>,
}

/// How far an answer is in a [`Free`] text.
#[derive(Clone)]
enum Stage {
    /// There are so many bytes of its beginning, which may be those of an answer without it as well.
    Before { n: usize, or_answer: bool },
    /// In it. The last bytes, as many as can be a part of its end.
    Inside(Vec<u8>),
    /// Right behind it.
    Behind,
}

impl Free {
    fn new(opening: Opening, trie: &TokTrie, controls: &Controls) -> Self {
        let begin = opening.begin.unwrap_or_default().as_bytes();
        let end = opening.end.as_bytes();
        let mut free = Self {
            begin: begin.to_vec(),
            end: end.to_vec(),
            beginning: Vec::new(),
            beyond: Vec::new(),
            space: Vec::new(),
        };
        for id in 0..trie.vocab_size() as u32 {
            let text = text_of(id, trie, controls);
            let behind = |n: usize| text.strip_prefix(&end[n..]);
            let mut ends = (1..end.len()).filter_map(behind).chain(free.behind(text));
            if ends.any(|rest| !is_space(rest)) {
                free.beyond.push(id);
            }
            if (0..begin.len()).any(|n| free.begins(n, text)) {
                free.beginning.push(id);
            }
            if opening.space && is_space(text) && !text.is_empty() {
                free.space.push(id);
            }
        }
        free
    }

    /// Whether `text` goes on with the beginning, of which there are `n` bytes.
    fn begins(&self, n: usize, text: &[u8]) -> bool {
        let rest = &self.begin[n..];
        // It may end at once.
        let inside = text.strip_prefix(rest).map(|inside| self.behind(inside));
        match inside {
            Some(behind) => behind.is_none_or(is_space),
            None => !text.is_empty() && rest.starts_with(text),
        }
    }

    /// What is behind the end, if that is in `text`.
    fn behind<'t>(&self, text: &'t [u8]) -> Option<&'t [u8]> {
        let at = text.windows(self.end.len()).position(|part| part == self.end)?;
        Some(&text[at + self.end.len()..])
    }

    /// Where an answer is that was inside, by its last bytes.
    fn inside(&self, mut tail: Vec<u8>) -> Stage {
        if self.behind(&tail).is_some() {
            return Stage::Behind;
        }
        tail.drain(..tail.len().saturating_sub(self.end.len() - 1));
        Stage::Inside(tail)
    }
}

fn is_space(text: &[u8]) -> bool {
    text.trim_ascii().is_empty()
}

/// The text of a token, or of a control token as it is shown.
fn text_of<'t>(id: u32, trie: &'t TokTrie, controls: &'t Controls) -> &'t [u8] {
    controls.get(&id).map_or_else(|| trie.token(id), Vec::as_slice)
}

impl GrammarConstraint {
    /// The same behind a free text, such as what the model thinks.
    pub fn after(mut self, opening: Opening) -> Self {
        let Ok(env) = self.matcher.tok_env() else { return self };
        let free = Free::new(opening, env.tok_trie(), &self.controls);
        let stage = match free.begin.is_empty() {
            true => Stage::Inside(Vec::new()),
            false => Stage::Before { n: 0, or_answer: true },
        };
        self.opening = Some((Arc::new(free), stage));
        self
    }

    fn allowed_by_grammar(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        let set = self.matcher.compute_mask_or_eos().map_err(|e| told(&e))?;
        let (set, words) = (set.as_slice(), mask.words_mut());
        // The model may have more tokens than the tokenizer, and the other way round.
        let n = set.len().min(words.len());
        words[..n].copy_from_slice(&set[..n]);
        words[n..].fill(0);
        Ok(())
    }

    /// Goes on in the grammar, if it lets the token come.
    fn accepted_by_grammar(&mut self, id: u32) -> Result<bool, ConstraintError> {
        if self.matcher.is_stopped() {
            return Ok(false);
        }
        self.matcher.try_consume_tokens(&[id]).map(|n| n == 1).map_err(|e| told(&e))
    }
}

impl Clone for GrammarConstraint {
    fn clone(&self) -> Self {
        // A shallow clone would share the automaton, whose size is limited, with other answers.
        Self {
            matcher: self.matcher.deep_clone(),
            opening: self.opening.clone(),
            controls: Arc::clone(&self.controls),
        }
    }
}

impl fmt::Debug for GrammarConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarConstraint").field("stop", &self.matcher.stop_reason()).finish()
    }
}

impl Constraint for GrammarConstraint {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        let Some((free, stage)) = self.opening.clone() else {
            return self.allowed_by_grammar(mask);
        };
        match stage {
            Stage::Before { or_answer: true, .. } | Stage::Behind => {
                self.allowed_by_grammar(mask)?;
            }
            Stage::Before { or_answer: false, .. } => mask.clear(),
            Stage::Inside(_) => mask.words_mut().fill(u32::MAX),
        }
        let env = self.matcher.tok_env().map_err(|e| told(&e))?;
        let trie = env.tok_trie();
        let text = |id: u32| text_of(id, trie, &self.controls);
        match stage {
            Stage::Before { n, .. } => {
                let begins = free.beginning.iter().filter(|&&id| free.begins(n, text(id)));
                begins.for_each(|&id| mask.allow(id));
            }
            Stage::Inside(tail) => {
                // It must not be all.
                trie.eos_tokens().iter().for_each(|&id| mask.forbid(id));
                for &id in &free.beyond {
                    let text = [&*tail, text(id)].concat();
                    if free.behind(&text).is_some_and(|rest| !is_space(rest)) {
                        mask.forbid(id);
                    }
                }
            }
            Stage::Behind => free.space.iter().for_each(|&id| mask.allow(id)),
        }
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<(), ConstraintError> {
        let Some((free, stage)) = self.opening.take() else {
            return self.matcher.consume_token(id).map_err(|e| told(&e));
        };
        let env = self.matcher.tok_env().map_err(|e| told(&e))?;
        let text = text_of(id, env.tok_trie(), &self.controls);
        let stage = match stage {
            Stage::Before { n, or_answer } if free.begins(n, text) => {
                let rest = free.begin.len() - n;
                if text.len() < rest {
                    let n = n + text.len();
                    let or_answer = or_answer && self.accepted_by_grammar(id)?;
                    Stage::Before { n, or_answer }
                } else {
                    let stage = free.inside(text[rest..].to_vec());
                    self.matcher.reset().map_err(|e| told(&e))?;
                    stage
                }
            }
            Stage::Inside(tail) => free.inside([&*tail, text].concat()),
            Stage::Behind if free.space.contains(&id) => {
                // It is a part of the answer if it can be.
                self.accepted_by_grammar(id)?;
                return Ok(());
            }
            Stage::Before { .. } | Stage::Behind => {
                return self.matcher.consume_token(id).map_err(|e| told(&e));
            }
        };
        self.opening = Some((free, stage));
        Ok(())
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
        let compile = |regex: &str, begin: Option<&'static str>| {
            let grammar = grammars.compile(&Grammar::Regex(regex.into()), &tok).expect("compiled");
            grammar.after(Opening { begin, end: "</think>", space: true })
        };
        let check = |grammar: &GrammarConstraint, text: &str, valid: bool| {
            let mut grammar = grammar.clone();
            let mut mask = TokenMask::new(tok.n_tokens());
            let ends = tok.end_of_generation();
            let ids = tok.encode(text, hurtle_text::Encode::default());
            let mut found = ids.into_iter().all(|id| {
                grammar.allowed(&mut mask).expect("a mask");
                let inside = matches!(grammar.opening, Some((_, Stage::Inside(_))));
                assert!(!inside || !ends.iter().any(|&id| mask.contains(id)));
                mask.contains(id) && grammar.accept(id).is_ok()
            });
            grammar.allowed(&mut mask).expect("a mask");
            found &= ends.iter().any(|&id| mask.contains(id));
            assert_eq!(found, valid, "{text}");
        };
        let digits = compile("[0-9]+", None);
        for thoughts in ["", "hm, 1 < 2 </thin </", "</ </think"] {
            check(&digits, &format!("{thoughts}</think>12"), true);
            check(&digits, &format!("{thoughts}</think>\n\n12"), true);
            check(&digits, &format!("{thoughts}</think>a"), false);
            check(&digits, &format!("{thoughts}</think>"), false);
            check(&digits, thoughts, false);
        }
        let digits = compile("[0-9]+", Some("<think>"));
        check(&digits, "<think></think>12", true);
        // What an answer begins with may be what a thought begins with.
        let tags = compile("<t?[0-9]*", Some("<think>"));
        for (grammar, answer) in [(&digits, "12"), (&tags, "<t12"), (&tags, "<")] {
            check(grammar, answer, true);
            for thoughts in ["", "\nhm, 1 < 2 </thin </\n", "</ </think"] {
                check(grammar, &format!("<think>{thoughts}</think>\n\n{answer}"), true);
                check(grammar, &format!("<think>{thoughts}</think>a"), false);
                check(grammar, &format!("<think>{thoughts}"), false);
            }
            check(grammar, &format!("<thi{answer}"), false);
            check(grammar, &format!("a{answer}"), false);
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
