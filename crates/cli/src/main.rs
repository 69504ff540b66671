//! The `hurtle` command: runs GGUF language models on the CPU.
//!
//! ```text
//! argv.rs ──► cli.rs, args.rs ──► commands/*.rs ──► models.rs (hub), prompt.rs (text), engine
//!                                       │
//!                                       └──► answer.rs ──► markdown.rs ──► standard output
//! ```
//! Results go to standard output, everything said beside them to standard error. Exit status: 0, or 1
//! if something failed, 2 if the command line makes no sense, 130 after Ctrl-C.
#![forbid(unsafe_code)]

mod answer;
mod args;
mod argv;
mod backend;
mod cli;
mod commands;
mod error;
mod interrupt;
mod machine;
mod markdown;
mod models;
mod prompt;
mod terminal;
mod timings;

use clap::{CommandFactory as _, Parser as _};
use std::io::IsTerminal as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let mut command = cli::Cli::command();
    if args.len() <= 1 && std::io::stdin().is_terminal() {
        terminal::say(&command.render_help().to_string());
        return ExitCode::from(2);
    }
    let cli = cli::Cli::parse_from(argv::translate(args, &command));
    match commands::execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::report(&error),
    }
}
