//! `hurtle logits`: what the model computes, in full.
use super::detokenize::check_ids;
use crate::args::{EngineArgs, GlobalArgs, ModelArgs, Types, token_ids};
use crate::error::usage;
use crate::models;
use anyhow::Result;
use clap::Args;
use serde::Serialize;

/// Prints {"logits": [...]}: the logits after the last token, one for each token of the vocabulary.
///
/// The numbers read back as exactly the 32-bit floats that were computed; a logit that is infinite or
/// not a number is printed as null.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle logits -m model.gguf --ids 1,2,3
  hurtle logits -m model.gguf --ids \"$(hurtle tokenize -m model.gguf --ids -p Hello)\" --all")]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The tokens, as 1,2,3 or as a JSON array
    #[arg(long)]
    ids: String,
    /// Print an array for each position instead of one for the last
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What is printed. Not a `serde_json::Value`, which would print 32-bit floats as 64-bit ones.
#[derive(Debug, Serialize)]
struct Report<T> {
    logits: T,
}

pub(crate) fn execute(args: &LogitsArgs, globals: &GlobalArgs) -> Result<()> {
    let ids = token_ids(&args.ids)?;
    let options = args.engine.options(Types::EXACT)?;
    if ids.is_empty() {
        usage!("--ids: expected at least one token id");
    }
    let engine = models::load(&args.model.model, &options, globals)?;
    check_ids(&ids, engine.tokenizer())?;
    let mut logits = engine.logits(&ids, args.all)?;
    if args.all {
        super::print_json(&Report { logits })
    } else {
        super::print_json(&Report { logits: logits.pop().unwrap_or_default() })
    }
}
