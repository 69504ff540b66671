//! Slots: numbers under which clients find again what they asked before. What a slot holds, the prompt and answer
//! that ran in it last, can be written to a file of the client's own, be put back from it, and be forgotten.
//!
//! ```text
//! FILE: "hurtlesl" | identity | bytes of a page | tokens | ids of tokens | their pages, as in memory | sha256 of all
//! ```
//! Keys and values lie in the prefix cache as those of all prompts do: a slot is a name for some of them.
use crate::Engine;
use crate::saved::{Key, identity, publish};
use hurtle_model::PAGE_TOKENS;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io;
use std::path::Path;

const MAGIC: &[u8; 8] = b"hurtlesl";

/// Tokens, and the pages of keys and values that they have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SlotContent {
    /// The tokens, from the beginning of a sequence.
    pub(crate) tokens: Vec<u32>,
    /// Page after page.
    pub(crate) pages: Vec<u8>,
}

/// What is to become of a slot.
#[derive(Debug)]
pub enum SlotAction {
    /// Copy what it holds.
    Copy,
    /// Let it hold this, as far as there is memory for it.
    Put(SlotContent),
    /// Forget what no other prompt shares.
    Erase,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SlotDone {
    /// Tokens that were copied, put or forgotten.
    pub n_tokens: usize,
    /// What was copied.
    pub content: Option<SlotContent>,
}

/// Why a file gives no content of a slot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// It cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is another's.
    #[error("it is no file of a slot, or damaged")]
    Damaged,
    /// It holds keys and values of another model, or computed otherwise.
    #[error(
        "it was written for another model, or by other arithmetic or another version\n\
         hint: process the prompt again, and save it again"
    )]
    Foreign,
}

impl SlotContent {
    /// How many tokens there are.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Writes a file, for this user alone; returns its size.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path, engine: &Engine) -> Result<u64, SlotError> {
        let number = |n: usize| (n as u64).to_le_bytes();
        let mut head = [&MAGIC[..], &identity(engine)].concat();
        head.extend(number(engine.kv_cache().page_bytes()));
        head.extend(number(self.tokens.len()));
        head.extend(self.tokens.iter().flat_map(|id| id.to_le_bytes()));
        let sum = Sha256::new().chain_update(&head).chain_update(&self.pages).finalize();
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        publish(path, &temporary, &[&head, &self.pages, &sum], None)?;
        Ok((head.len() + self.pages.len() + sum.len()) as u64)
    }

    /// Reads a file; also tells its size.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or is of no use for this engine.
    pub fn read(path: &Path, engine: &Engine) -> Result<(Self, u64), SlotError> {
        let bytes = fs::read(path)?;
        let n_bytes = bytes.len() as u64;
        let rest = bytes.strip_prefix(MAGIC).ok_or(SlotError::Damaged)?;
        let (content, sum) =
            bytes.split_last_chunk::<{ size_of::<Key>() }>().ok_or(SlotError::Damaged)?;
        if Sha256::digest(content)[..] != *sum {
            return Err(SlotError::Damaged);
        }
        let (key, rest) =
            rest.split_first_chunk::<{ size_of::<Key>() }>().ok_or(SlotError::Damaged)?;
        let page_bytes = engine.kv_cache().page_bytes();
        if *key != identity(engine) {
            return Err(SlotError::Foreign);
        }
        let (numbers, rest) = rest.split_first_chunk::<16>().ok_or(SlotError::Damaged)?;
        let (numbers, _) = numbers.as_chunks::<8>();
        let n_tokens = usize::try_from(u64::from_le_bytes(numbers[1])).unwrap_or(usize::MAX);
        // The sum is right, so that the numbers are those that were written; they are checked all the same.
        let n_ids =
            n_tokens.checked_mul(4).filter(|&n| n <= rest.len()).ok_or(SlotError::Damaged)?;
        let (ids, rest) = rest.split_at(n_ids);
        let pages = &rest[..rest.len() - sum.len().min(rest.len())];
        let tokens: Vec<u32> =
            ids.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let n_vocab = engine.model().hparams().n_vocab;
        if u64::from_le_bytes(numbers[0]) != page_bytes as u64
            || Some(pages.len()) != n_tokens.div_ceil(PAGE_TOKENS).checked_mul(page_bytes)
            || tokens.iter().any(|&id| id as usize >= n_vocab)
        {
            return Err(SlotError::Damaged);
        }
        Ok((Self { tokens, pages: pages.to_vec() }, n_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineOptions;

    fn engine(name: &str) -> Engine {
        let archs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs");
        Engine::load(&archs.join(name), &EngineOptions::default()).expect("a golden model")
    }

    #[test]
    fn a_file_is_read_by_the_engine_that_it_is_for_and_whole() {
        let (llama, gemma) = (engine("llama.gguf"), engine("gemma.gguf"));
        let page_bytes = llama.kv_cache().page_bytes();
        let content = SlotContent {
            tokens: (0..100).collect(),
            pages: (0..2 * page_bytes).map(|i| i as u8).collect(),
        };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("slot.bin");
        let n_bytes = content.write(&path, &llama).expect("written");
        assert_eq!(n_bytes, fs::metadata(&path).expect("a file").len());
        assert_eq!(SlotContent::read(&path, &llama).expect("read"), (content, n_bytes));
        assert!(matches!(SlotContent::read(&path, &gemma), Err(SlotError::Foreign)));
        let bytes = fs::read(&path).expect("read");
        for cut in [0, 7, 8, 40, 56, 60, 500, bytes.len() - 1] {
            fs::write(&path, &bytes[..cut]).expect("written");
            assert!(matches!(SlotContent::read(&path, &llama), Err(SlotError::Damaged)), "{cut}");
        }
        for at in [0, 20, 41, 50, 100, bytes.len() - 1] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).expect("written");
            assert!(matches!(SlotContent::read(&path, &llama), Err(SlotError::Damaged)), "{at}");
        }
        let none = folder.path().join("none.bin");
        assert!(matches!(SlotContent::read(&none, &llama), Err(SlotError::Io(_))));
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
