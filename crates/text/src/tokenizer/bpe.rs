//! Byte-pair encoding by a list of merges (GPT-2 and most that came after it).
//!
//! A merge names two strings and, by its place in the list, a priority. All strings of the merges
//! are interned next to the tokens when loading, so that merging compares ids and builds no text.

use super::TokenizerError;
use super::byte_alphabet::char_of;
use super::merge::{NONE, SpaceJoins, Word};
use super::pre_tokenizer::PreTokenizer;
use super::unicode;
use super::vocab::{Vocab, attr};
use hashbrown::HashMap;
use hurtle_gguf::Metadata;

const MERGES: &str = "tokenizer.ggml.merges";

#[derive(Debug)]
pub(super) struct Bpe {
    pub(super) pre: PreTokenizer,
    /// `left << 32 | right` to priority and what they merge into.
    merges: HashMap<u64, (u32, u32)>,
    /// Symbols of the single bytes, [`NONE`] where nothing knows them.
    bytes: [u32; 256],
    /// Tokens for a byte of a symbol that is no token.
    fallback: [Vec<u32>; 256],
    /// Where spaces are escaped, what may merge across them.
    joins: Option<SpaceJoins>,
    /// Words end at white space, which is dropped; and whether they are lowered.
    whitespace: Option<Lower>,
}

/// Whether to turn words into lower case.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lower(pub(super) bool);

impl Bpe {
    pub(super) fn new(
        metadata: &Metadata,
        vocab: &mut Vocab,
        pre: PreTokenizer,
        needs_merges: bool,
        whitespace: Option<Lower>,
    ) -> Result<Self, TokenizerError> {
        let mut merges = HashMap::new();
        match metadata.strings(MERGES)? {
            Some(list) => {
                u32::try_from(list.len()).map_err(|_| TokenizerError::TooLarge)?;
                merges.reserve(list.len());
                let mut both = Vec::new();
                let mut last = 0;
                for (rank, merge) in list.iter().enumerate() {
                    // The first string may itself start with a space.
                    let space = merge.iter().skip(1).position(|&b| b == b' ');
                    let Some(space) = space.map(|i| i + 1) else { continue };
                    let (left, right) = (&merge[..space], &merge[space + 1..]);
                    both.clear();
                    both.extend_from_slice(left);
                    both.extend_from_slice(right);
                    let pair = pair(vocab.intern(left)?, vocab.intern(right)?);
                    // Mostly tokens follow in the order of their merges.
                    let next = [last, last + 1].into_iter().find(|&id| vocab.text(id) == both);
                    last = match next {
                        Some(id) => id,
                        None => vocab.intern(&both)?,
                    };
                    merges.entry(pair).or_insert((rank as u32, last));
                }
            }
            None if needs_merges => return Err(TokenizerError::Missing { key: MERGES }),
            None => {}
        }

        let fallback = std::array::from_fn(|byte| {
            let byte = byte as u8;
            if pre.byte_level {
                let mut utf8 = [0; 4];
                let spelled = char_of(byte).encode_utf8(&mut utf8);
                spelled.bytes().filter_map(|b| vocab.find(&[b])).collect()
            } else {
                vocab.find_byte(byte).into_iter().collect()
            }
        });
        let bytes = std::array::from_fn(|byte| {
            let mut utf8 = [0; 4];
            let spelled = char_of(byte as u8).encode_utf8(&mut utf8);
            vocab.find_interned(spelled.as_bytes()).unwrap_or(NONE)
        });
        let joins = pre.escape_spaces.then(|| SpaceJoins::new(vocab.texts()));
        Ok(Self { pre, merges, bytes, fallback, joins, whitespace })
    }

    /// Appends the tokens of `text`; with `protect` none of them is a control token.
    pub(super) fn encode(&self, vocab: &Vocab, text: &[u8], protect: bool, out: &mut Vec<u32>) {
        let text = String::from_utf8_lossy(text);
        let mut session =
            Session { bpe: self, vocab, protect, word: Word::default(), spelled: String::new() };
        match self.whitespace {
            None => match &self.joins {
                None => self.pre.split(&text, |word| session.encode(word, out)),
                Some(joins) => {
                    let text = text.replace(' ', "\u{2581}");
                    self.pre.split(&text, |word| {
                        joins.split(word).for_each(|word| session.encode(word, out));
                    });
                }
            },
            Some(Lower(lower)) => {
                let classes = unicode::classes();
                let is_space = |c| classes[c as usize] & unicode::SPACE != 0;
                for word in text.split(is_space) {
                    let lowered: String;
                    let word = if lower {
                        lowered = word.chars().map(unicode::lower).collect();
                        &lowered
                    } else {
                        word
                    };
                    self.pre.split(word, |word| session.encode(word, out));
                }
            }
        }
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Encodes words, reusing its buffers.
struct Session<'a> {
    bpe: &'a Bpe,
    vocab: &'a Vocab,
    protect: bool,
    word: Word,
    /// A word in the alphabet of the vocabulary.
    spelled: String,
}

impl Session<'_> {
    fn encode(&mut self, word: &str, out: &mut Vec<u32>) {
        let Self { bpe, vocab, protect, .. } = *self;
        let forbidden = |id| protect && vocab.has(id, attr::CONTROL);
        if let Some(id) = self.whole_token(word)
            && !forbidden(id)
        {
            return out.push(id);
        }
        self.word.clear();
        if bpe.pre.byte_level {
            word.bytes().for_each(|b| self.word.push(1, bpe.bytes[usize::from(b)]));
        } else {
            for c in word.chars() {
                let id = vocab.find_interned(c.encode_utf8(&mut [0; 4]).as_bytes());
                self.word.push(c.len_utf8(), id.unwrap_or(NONE));
            }
        }
        self.word.merge(|left, right| {
            let &merge = bpe.merges.get(&pair(left.id, right.id))?;
            (!forbidden(merge.1)).then_some(merge)
        });
        for symbol in self.word.symbols() {
            if (symbol.id as usize) < vocab.n_tokens() && !forbidden(symbol.id) {
                out.push(symbol.id);
            } else {
                for &byte in symbol.of(word.as_bytes()) {
                    out.extend_from_slice(&bpe.fallback[usize::from(byte)]);
                }
            }
        }
    }

    /// The token that the word is as a whole, where the pre-tokenizer says that it stays one.
    fn whole_token(&mut self, word: &str) -> Option<u32> {
        let pre = &self.bpe.pre;
        if !pre.ignore_merges {
            let line_feeds = pre.gemma4 && word.bytes().all(|b| b == b'\n');
            return if line_feeds { self.vocab.find(word.as_bytes()) } else { None };
        }
        if !pre.byte_level {
            return self.vocab.find(word.as_bytes());
        }
        if word.len() > self.vocab.max_len() {
            return None;
        }
        self.spelled.clear();
        self.spelled.extend(word.bytes().map(char_of));
        self.vocab.find(self.spelled.as_bytes())
    }
}
