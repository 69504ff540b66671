//! `hurtle logits`: what the model computes, in full.
use super::detokenize::check_ids;
use crate::args::{EngineArgs, GlobalArgs, ModelArgs, Types, token_ids};
use crate::error::usage;
use crate::models;
use anyhow::Result;
use clap::Args;
use hurtle_engine::Pooling;
use serde::Serialize;

/// Prints {"logits": [...]}: the logits after the last token, one for each token of the vocabulary; for an
/// embedding model {"embedding": [...]}, not normalized, and for a reranker {"scores": [...]}.
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
    /// Print an array for each position instead of one for the last (not for embedding models)
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What is printed. Not a `serde_json::Value`, which would print 32-bit floats as 64-bit ones.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Report {
    Logits(Vec<f32>),
    #[serde(rename = "logits")]
    AllLogits(Vec<Vec<f32>>),
    Embedding(Vec<f32>),
    Scores(Vec<f32>),
}

pub(crate) fn execute(args: &LogitsArgs, globals: &GlobalArgs) -> Result<()> {
    let ids = token_ids(&args.ids)?;
    let options = args.engine.options(Types::EXACT)?;
    if ids.is_empty() {
        usage!("--ids: expected at least one token id");
    }
    let engine = models::load(&args.model.model, &options, globals)?;
    check_ids(&ids, engine.tokenizer())?;
    if engine.is_embedding_model() {
        if args.all {
            usage!("--all: an embedding model has one vector for all positions");
        }
        let vector = engine.embed(&ids)?;
        return super::print_json(&match engine.pooling() {
            Some(Pooling::Rank) => Report::Scores(vector),
            _ => Report::Embedding(vector),
        });
    }
    let mut logits = engine.logits(&ids, args.all)?;
    super::print_json(&match args.all {
        true => Report::AllLogits(logits),
        false => Report::Logits(logits.pop().unwrap_or_default()),
    })
}
