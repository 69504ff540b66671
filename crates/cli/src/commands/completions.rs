//! `hurtle completions`: scripts for shells.
use anyhow::Result;
use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

/// Writes the script that teaches a shell to complete hurtle's commands and flags.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle completions bash > ~/.local/share/bash-completion/completions/hurtle
  hurtle completions zsh > ~/.zfunc/_hurtle
  hurtle completions fish > ~/.config/fish/completions/hurtle.fish
  hurtle completions powershell | Out-String | Invoke-Expression")]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn execute(args: &CompletionsArgs) -> Result<()> {
    // Into memory first: the generator panics where the output is closed.
    let mut script = Vec::new();
    generate(args.shell, &mut crate::cli::Cli::command(), "hurtle", &mut script);
    super::print(&String::from_utf8_lossy(&script))
}
