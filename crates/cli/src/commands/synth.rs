//! `hurtle synth`: a model's shape with random weights.
use super::table;
use crate::error::{Interrupted, usage};
use crate::interrupt::Interrupt;
use crate::terminal::{StatusLine, bytes, count};
use anyhow::{Result, bail};
use clap::Args;
use hurtle_synth::{Plan, Shape, SynthError, find_mix, find_shape};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Writes a GGUF file with the exact shapes of a known model and random weights: as large, as fast and as
/// hungry as the real one, without a download. It runs, but what it says is noise.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle synth --list                                which models there are, and their sizes
  hurtle synth qwen2.5-coder:1.5b try.gguf           about 1 GB, as a Q4_K_M download would be
  hurtle bench -m try.gguf                           how fast it would be on this machine
  hurtle synth gpt-oss:20b try.gguf --type mxfp4_moe --force

The same model, type and seed give the same bytes on every machine. The vocabulary has the model's \
size and special tokens, but other words.")]
pub(crate) struct SynthArgs {
    /// A model whose shape is known, see --list
    #[arg(required_unless_present = "list")]
    model: Option<String>,
    /// The file to write
    #[arg(value_name = "OUT.gguf", required_unless_present = "list")]
    path: Option<PathBuf>,
    /// A mix of llama.cpp's (q4_k_m, q5_k_s, q8_0 ...) or a weight type for every matrix (iq2_xxs ...)
    /// [default: what the model's files usually have]
    #[arg(long = "type", value_name = "TYPE")]
    mix: Option<String>,
    /// Seed of the random weights
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Threads that make the weights [default: as many as this process may use]
    #[arg(short, long, value_name = "N")]
    threads: Option<std::num::NonZero<usize>>,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    /// List the models, with their sizes in their usual type or in --type
    #[arg(long, conflicts_with_all = ["model", "path", "seed", "threads", "force"])]
    list: bool,
}

pub(crate) fn execute(args: &SynthArgs) -> Result<()> {
    let (Some(model), Some(path)) = (&args.model, &args.path) else {
        return list(args.mix.as_deref());
    };
    let shape = find_shape(model)?;
    let mix = find_mix(args.mix.as_deref().unwrap_or(shape.mix))?;
    let plan = Plan::new(shape, mix)?;
    check_place(path, &plan, shape, args.force)?;

    let total = plan.n_bytes();
    let threads = match args.threads {
        Some(threads) => threads.get(),
        None => std::thread::available_parallelism().map_or(1, |n| n.get()),
    };
    let mut status = StatusLine::new();
    let interrupt = Interrupt::install(false)?;
    let held = interrupt.hold();
    let start = Instant::now();
    let mut show = |done: u64| {
        let rate = bytes((done as f64 / start.elapsed().as_secs_f64()) as u64);
        let percent = 100 * done / total.max(1);
        status.set(&format!("{}: {percent} % of {}, {rate}/s", path.display(), bytes(total)));
        if held.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    match plan.write(path, args.seed, threads, &mut show) {
        Err(SynthError::Cancelled) => return Err(Interrupted.into()),
        result => result?,
    }
    drop(status);
    let seconds = start.elapsed().as_secs_f64();
    let written = std::fs::metadata(path).map_or(total, |file| file.len());
    super::print(&format!(
        "{}: {} with random weights, {} parameters, {}, {} in {seconds:.1} s ({}/s)\n",
        path.display(),
        shape.name,
        count(plan.n_params()),
        mix.name(),
        bytes(written),
        bytes((written as f64 / seconds) as u64)
    ))
}

/// Bytes of a token in the file, its text, type and merge, at most.
const TOKEN_BYTES: u64 = 64;

/// Refuses to overwrite a file, and to begin what the disk has no room for.
fn check_place(path: &Path, plan: &Plan, shape: &Shape, force: bool) -> Result<()> {
    if path.is_dir() {
        usage!("{}: is a folder; expected the name of the file to write", path.display());
    }
    if path.exists() && !force {
        bail!("{}: the file is already there\nhint: --force replaces it", path.display());
    }
    let needed = plan.n_bytes() + TOKEN_BYTES * shape.n_vocab as u64;
    let folder = std::path::absolute(path)?;
    check_space(path, needed, folder.parent().and_then(hurtle_hub::available_space))
}

fn check_space(path: &Path, needed: u64, available: Option<u64>) -> Result<()> {
    match available {
        Some(available) if available < needed => bail!(
            "{}: the file takes {}, but the disk has {} free\n\
             hint: choose a smaller --type, or another disk",
            path.display(),
            bytes(needed),
            bytes(available)
        ),
        _ => Ok(()),
    }
}

fn list(mix: Option<&str>) -> Result<()> {
    let mut rows = Vec::new();
    for shape in Shape::ALL {
        let mix = find_mix(mix.unwrap_or(shape.mix))?;
        let plan = Plan::new(shape, mix)?;
        rows.push([
            shape.name.to_owned(),
            shape.arch.to_owned(),
            count(plan.n_params()),
            mix.name().to_owned(),
            bytes(plan.n_bytes()),
            shape.n_ctx.to_string(),
        ]);
    }
    super::print(&table(["NAME", "ARCHITECTURE", "PARAMETERS", "TYPE", "SIZE", "CONTEXT"], &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_is_told() {
        let check = |needed, available| check_space(Path::new("x.gguf"), needed, available);
        let message = check(2_000_000, Some(1_999_999)).expect_err("too small").to_string();
        assert!(
            message
                .starts_with("x.gguf: the file takes 2.0 MB, but the disk has 2.0 MB free\nhint: ")
        );
        assert!(check(2_000_000, Some(2_000_000)).is_ok());
        assert!(check(u64::MAX, None).is_ok());
        let here = std::env::current_dir().expect("a folder");
        assert!(hurtle_hub::available_space(&here).is_some_and(|n| n > 0));
    }
}
