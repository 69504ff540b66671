//! `hurtle rm`: removes models.
use crate::args::GlobalArgs;
use crate::models::hub;
use crate::terminal::{bytes, say};
use anyhow::{Result, bail};
use clap::Args;

/// Removes models from hurtle's store. Files of other programs are left alone.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hurtle rm smollm2\n  hurtle rm gemma3:270m qwen2.5-coder:1.5b"
)]
pub(crate) struct RmArgs {
    /// Names as 'hurtle list' shows them
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) fn execute(args: &RmArgs, globals: &GlobalArgs) -> Result<()> {
    let hub = hub(globals)?;
    let mut failures = Vec::new();
    for name in &args.names {
        match hub.remove(name) {
            Ok(freed) => super::print(&format!("removed {name} ({})\n", bytes(freed)))?,
            Err(error) => failures.push(anyhow::Error::from(error)),
        }
    }
    // One failure does not keep the others from being removed; all are told, the last by main.
    let Some(last) = failures.pop() else { return Ok(()) };
    for failure in &failures {
        say(&crate::error::render(failure));
    }
    bail!(last)
}
