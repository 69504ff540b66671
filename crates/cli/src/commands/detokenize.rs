//! `hurtle detokenize`: tokens to text.
use crate::args::{GlobalArgs, ModelArgs, read_stdin, token_ids};
use crate::error::usage;
use crate::models;
use anyhow::Result;
use clap::Args;
use hurtle_text::Tokenizer;

/// Turns token ids into text. The weights are not read.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle detokenize -m model.gguf --ids 1,2,3
  hurtle tokenize -m model.gguf --ids -p \"Hello\" | hurtle detokenize -m model.gguf")]
pub(crate) struct DetokenizeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The ids, as 1,2,3 or as a JSON array; standard input if not given
    #[arg(long)]
    ids: Option<String>,
    /// Leave out control tokens
    #[arg(long)]
    no_special: bool,
}

pub(crate) fn execute(args: &DetokenizeArgs, globals: &GlobalArgs) -> Result<()> {
    let ids = match &args.ids {
        Some(ids) => token_ids(ids)?,
        None => token_ids(&read_stdin()?)?,
    };
    let (_, tok) = models::open(&args.model, globals)?;
    check_ids(&ids, &tok)?;
    super::print_foreign(&tok.decode(&ids, !args.no_special))
}

/// Refuses ids that the vocabulary does not have.
pub(crate) fn check_ids(ids: &[u32], tok: &Tokenizer) -> Result<()> {
    let n_tokens = tok.n_tokens();
    let outside = |id: &u32| usize::try_from(*id).is_ok_and(|id| id >= n_tokens);
    if let Some(i) = ids.iter().position(outside) {
        usage!(
            "token ids: number {}: expected an id below {n_tokens}, the size of this model's \
             vocabulary, found {}\nhint: 'hurtle tokenize --ids' gives the ids of a text",
            i + 1,
            ids[i]
        );
    }
    Ok(())
}
