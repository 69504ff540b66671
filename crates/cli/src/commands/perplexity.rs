//! `hurtle perplexity`: how well a model predicts a text.
use crate::args::{ComputeArgs, GlobalArgs, ModelArgs, Types, read_text};
use crate::error::usage;
use crate::models;
use crate::terminal::say;
use crate::timings::duration;
use anyhow::{Result, bail};
use clap::Args;
use hurtle_engine::EngineOptions;
use hurtle_engine::perplexity::{Perplexity, perplexity};
use hurtle_text::Encode;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// Measures how well a model predicts a text: exp of the mean negative log-likelihood of its tokens.
///
/// llama-perplexity's method: the text is cut into chunks of --ctx-size tokens, each chunk is evaluated
/// on its own, and the second half of each is scored. Numbers are comparable only between runs with the
/// same text, --ctx-size and --chunks, and between models with the same tokenizer.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  hurtle perplexity -m model.gguf -f wiki.test.raw -c 512 --chunks 16"
)]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text
    #[arg(short, long)]
    file: PathBuf,
    /// Tokens in a chunk
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    ctx_size: usize,
    /// Chunks to measure; -1: all
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    chunks: i64,
    /// Print one JSON object: ppl, stderr, chunks, tokens, n_ctx, cumulative, seconds
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    result: Perplexity,
    /// Chunks measured.
    chunks: usize,
    /// Tokens of the whole text.
    tokens: usize,
    n_ctx: usize,
    /// The perplexity after each chunk.
    cumulative: Vec<f64>,
    seconds: f64,
}

pub(crate) fn execute(args: &PerplexityArgs, globals: &GlobalArgs) -> Result<()> {
    let n_ctx = args.ctx_size;
    if n_ctx < 2 {
        usage!("--ctx-size {n_ctx}: expected at least 2 tokens in a chunk");
    }
    let options = EngineOptions { ctx_size: Some(n_ctx), ..args.compute.options(Types::EXACT)? };
    let text = read_text(&args.file)?;
    let engine = models::load(&args.model.model, &options, globals)?;
    let tok = engine.tokenizer();
    let ids = tok.encode(&text, Encode { add_special: true, parse_special: false });

    let available = ids.len() / n_ctx;
    let chunks = usize::try_from(args.chunks).map_or(available, |n| n.min(available));
    if chunks == 0 && args.chunks != 0 {
        bail!(
            "{}: expected at least the {n_ctx} tokens of one chunk, found {}\n\
             hint: take a longer text or a smaller --ctx-size",
            args.file.display(),
            ids.len()
        );
    }
    let bos = tok.bos().filter(|_| tok.adds_bos());
    let start = Instant::now();
    let mut cumulative = Vec::new();
    let result = perplexity::<anyhow::Error>(
        &ids,
        n_ctx,
        chunks,
        bos,
        &mut |ids, from, f| Ok(engine.score(ids, from, f)?),
        &mut |so_far| {
            cumulative.push(so_far.ppl);
            let done = cumulative.len();
            let left = start.elapsed().as_secs_f64() / done as f64 * (chunks - done) as f64;
            let left = if done < chunks {
                format!(", {} left", duration(1e3 * left))
            } else {
                String::new()
            };
            say(&format!("[{done}/{chunks}] {:.4} ± {:.4}{left}", so_far.ppl, so_far.stderr));
            Ok(())
        },
    )?;
    let Some(result) = result else { usage!("--chunks 0: nothing to measure") };
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        return super::print_json(&Report {
            result,
            chunks: cumulative.len(),
            tokens: ids.len(),
            n_ctx,
            cumulative,
            seconds,
        });
    }
    super::print(&format!(
        "perplexity {:.4} ± {:.4} over {chunks} chunks of {n_ctx} tokens in {}\n",
        result.ppl,
        result.stderr,
        duration(1e3 * seconds)
    ))
}
