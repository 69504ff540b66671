//! The command line: what clap knows of it.
use crate::args::GlobalArgs;
use crate::commands;
use clap::{Parser, Subcommand};

/// Run GGUF language models on this computer's CPU.
#[derive(Debug, Parser)]
#[command(name = "hurtle", version, propagate_version = true, max_term_width = 100)]
#[command(override_usage = "hurtle [OPTIONS] [PROMPT]...\n       hurtle <COMMAND> [OPTIONS]")]
#[command(after_help = "\
Examples:
  hurtle \"Why is the sky blue?\"               ask the default model
  hurtle -m gemma3:270m -p \"Once upon\" --raw  continue a text
  git diff | hurtle \"Write a commit message\"  ask about a text
  hurtle chat -m qwen2.5-coder:1.5b            talk
  hurtle pull hf:user/repo:Q4_K_M              fetch a model

Without the name of a command, 'run' is meant. 'hurtle COMMAND --help' tells more.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) globals: GlobalArgs,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer a prompt, or continue a text (the default command)
    Run(commands::run::RunArgs),
    /// Talk with a model
    Chat(commands::chat::ChatArgs),
    /// Serve a model over HTTP
    Serve(commands::serve::ServeArgs),
    /// Show what a model file holds
    Show(commands::show::ShowArgs),
    /// Fetch a model
    Pull(commands::pull::PullArgs),
    /// List the models on this machine
    List(commands::list::ListArgs),
    /// Remove models from hurtle's store
    Rm(commands::rm::RmArgs),
    /// Split a text into the model's tokens
    Tokenize(commands::tokenize::TokenizeArgs),
    /// Turn token ids into text
    Detokenize(commands::detokenize::DetokenizeArgs),
    /// Show the prompt that a chat template makes of a conversation
    Render(commands::render::RenderArgs),
    /// Compute the logits after a sequence of tokens
    Logits(commands::logits::LogitsArgs),
    /// Measure how well a model predicts a text
    Perplexity(commands::perplexity::PerplexityArgs),
    /// Measure how fast a model runs
    Bench(commands::bench::BenchArgs),
    /// Measure where a token's time goes
    Profile(commands::profile::ProfileArgs),
    /// Look at this machine: threads, memory, instruction sets, and what a model can reach here
    Doctor(commands::doctor::DoctorArgs),
    /// Write a model of a known shape with random weights, to size a machine
    Synth(commands::synth::SynthArgs),
    /// Write the completion script of a shell
    Completions(commands::completions::CompletionsArgs),
}
