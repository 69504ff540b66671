//! Prompts for filling a gap between two texts, as models for code are trained for it.
//!
//! ```text
//! BOS  REPO name  FILE name text …  FILE name  PREFIX before SUFFIX after MIDDLE ─► the gap
//! ```
//! The files are there only if the vocabulary has tokens for them, or else as snippets; names are llama.cpp's,
//! whose clients they are tuned with.
use crate::error::ApiError;
use crate::models::Lease;
use hurtle_text::{Encode, Tokenizer};

/// What llama.cpp calls the repository and the file with the gap.
const REPO: &str = "myproject\n";
const FILE: &str = "filename\n";
/// What stands before a file that the vocabulary has no token for.
const SNIPPET: &str = "\n\n--- snippet ---\n\n";

impl Lease {
    /// The prompt for a gap after `before` and before `after`, with other `files`, by name and text.
    ///
    /// # Errors
    /// If the model's vocabulary has no tokens for gaps; `param` is what the client asked with.
    pub(crate) fn fill_in(
        &self,
        param: &str,
        before: &[u32],
        after: &str,
        files: &[(String, String)],
    ) -> Result<Vec<u32>, ApiError> {
        let tok = self.service.engine().tokenizer();
        let fim = tok.fill_in_middle();
        let (Some(prefix), Some(suffix), Some(middle)) = (fim.prefix, fim.suffix, fim.middle)
        else {
            let missing = match (fim.prefix, fim.suffix) {
                (None, _) => "prefix",
                (_, None) => "suffix",
                _ => "middle",
            };
            let message = format!(
                "{param}: model '{}' cannot fill in text: its vocabulary has no token for the {missing}\n\
                 hint: models for code, such as qwen2.5-coder:1.5b, can",
                self.source.name
            );
            return Err(ApiError::invalid(param, message));
        };
        let mut ids: Vec<u32> = tok.bos().filter(|_| tok.adds_bos()).into_iter().collect();
        if let Some(repo) = fim.repo {
            ids.push(repo);
            ids.extend(plain(tok, REPO));
        }
        for (name, text) in files {
            match fim.file_separator {
                Some(separator) => {
                    ids.push(separator);
                    ids.extend(plain(tok, &format!("{name}\n")));
                }
                None => ids.extend(plain(tok, SNIPPET)),
            }
            ids.extend(plain(tok, text));
        }
        if let Some(separator) = fim.file_separator {
            ids.push(separator);
            ids.extend(plain(tok, FILE));
        }
        ids.push(prefix);
        ids.extend_from_slice(before);
        ids.push(suffix);
        ids.extend(plain(tok, after));
        ids.push(middle);
        Ok(ids)
    }
}

/// The tokens of a text in which nothing is a control token.
pub(crate) fn plain(tok: &Tokenizer, text: &str) -> Vec<u32> {
    tok.encode(text, Encode { add_special: false, parse_special: false })
}
