//! `hurtle run`: one prompt, one answer.
use crate::answer::{self, AnswerPrinter, Question};
use crate::args::{
    EngineArgs, GenerationArgs, GlobalArgs, ModelArgs, SystemArgs, TemplateArgs, Types, read_stdin,
    read_text, without_last_newline,
};
use crate::error::{Interrupted, usage};
use crate::interrupt::Interrupt;
use crate::prompt::Template;
use crate::terminal::{StatusLine, Terminal, say};
use crate::{models, timings};
use anyhow::Result;
use clap::Args;
use hurtle_engine::sampler::{Sampled, TokenLogprob};
use hurtle_engine::{Engine, StopReason, Timings};
use hurtle_text::{Encode, RenderInput, Tokenizer};
use serde::Serialize;
use serde_json::json;
use std::borrow::Cow;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

/// Answers one prompt and ends.
///
/// The prompt is put into the model's chat template, unless --raw asks for the continuation of a text.
/// It may come from the command line, from --file and from standard input; what is given of these is
/// joined in this order with blank lines between. With --raw, standard input is read only if there is no
/// other text.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle run \"Why is the sky blue?\"
  hurtle run -m gemma3:270m --raw -p \"Once upon a time\" -n 50 --temp 0
  hurtle run -f notes.txt \"Summarize this.\"
  git diff | hurtle run -sys \"You write terse commit messages.\" \"Describe this change.\"
  hurtle run --json -s 1 \"Name a colour.\" | jq .text
  hurtle run -j '{\"type\": \"array\", \"items\": {\"type\": \"string\"}}' \"Name three colours.\"

Ctrl-C stops the answer; what was written stays, and the exit status is 130.")]
pub(crate) struct RunArgs {
    /// The prompt; several words need no quotes
    #[arg(value_name = "PROMPT", conflicts_with = "prompt")]
    words: Vec<String>,
    /// The prompt
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File with (the rest of) the prompt; a newline at its end does not count
    #[arg(short, long)]
    file: Option<PathBuf>,
    #[command(flatten)]
    system: SystemArgs,
    /// Continue the prompt as plain text: no chat template, BOS as the model says, control tokens in
    /// the text are parsed
    #[arg(long, conflicts_with_all = ["system_prompt", "system_prompt_file", "chat_template", "chat_template_file"])]
    raw: bool,
    /// Print one JSON object: text, token_ids, prompt_token_ids, stop_reason, timings
    #[arg(long)]
    json: bool,
    /// With --json: the log-probability of each token, and those of the N most probable ones
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<usize>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    template: TemplateArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    text: &'a str,
    token_ids: &'a [u32],
    prompt_token_ids: &'a [u32],
    stop_reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<TokenLogprobs<'a>>>,
    timings: Timings,
}

/// A token and the most probable ones in its place.
#[derive(Debug, Serialize)]
struct TokenLogprobs<'a> {
    #[serde(flatten)]
    token: Logprob<'a>,
    top: Vec<Logprob<'a>>,
}

#[derive(Debug, Serialize)]
struct Logprob<'a> {
    id: u32,
    token: Cow<'a, str>,
    /// `null` for what is impossible.
    logprob: f32,
}

impl<'a> TokenLogprobs<'a> {
    fn new(tok: &'a Tokenizer, sampled: &Sampled) -> Self {
        let told = |token: &TokenLogprob| Logprob {
            id: token.id,
            token: tok.token_text(token.id).unwrap_or_default(),
            logprob: token.logprob,
        };
        Self { token: told(&sampled.token), top: sampled.top.iter().map(told).collect() }
    }
}

pub(crate) fn execute(args: &RunArgs, globals: &GlobalArgs) -> Result<()> {
    let terminal = Terminal::detect(globals);
    let params = args.generation.params()?;
    let options = args.engine.options(Types::FAST)?;
    let system = args.system.text()?;
    let text = prompt_text(args)?;
    let form = args.generation.grammar.form()?;

    let interrupt = Interrupt::install(true)?;
    let engine = models::load_writer(&args.model.model, &options, globals)?;
    let constraint = form.map(|form| form.constraint(&engine)).transpose()?;
    let mut question = question(args, globals, &engine, system, text)?;
    if args.json || !terminal.stdout {
        // Who reads a form by a program wants nothing else.
        question.begin_with_answer();
    }
    let extras = question.extras(constraint.as_ref(), args.logprobs);

    let printer = (!args.json)
        .then(|| AnswerPrinter::new(io::stdout().lock(), terminal, args.raw, question.parser()));
    let session = &mut engine.session();
    let generation = answer::generate(session, &question, &params, extras, &interrupt, printer)?;
    if args.json {
        super::print_json(&Answer {
            text: &generation.text,
            token_ids: &generation.token_ids,
            prompt_token_ids: &question.ids,
            stop_reason: generation.stop_reason.as_str(),
            logprobs: args.logprobs.map(|_| {
                let logprobs = generation.logprobs.iter();
                logprobs.map(|sampled| TokenLogprobs::new(engine.tokenizer(), sampled)).collect()
            }),
            timings: generation.timings,
        })?;
    }
    if generation.stop_reason == StopReason::Context {
        say(&format!(
            "note: the answer ends here because the context of {} tokens is full\n\
             hint: --ctx-size N makes it larger",
            engine.ctx_size()
        ));
    }
    if globals.verbose {
        say(&timings::report(&generation.timings));
    }
    match generation.stop_reason {
        StopReason::Cancelled => Err(Interrupted.into()),
        _ => Ok(()),
    }
}

/// The prompt from all places that it may come from.
fn prompt_text(args: &RunArgs) -> Result<String> {
    let mut parts = Vec::new();
    if let Some(prompt) = &args.prompt {
        parts.push(args.generation.unescaped(prompt));
    } else if !args.words.is_empty() {
        parts.push(args.generation.unescaped(&args.words.join(" ")));
    }
    if let Some(path) = &args.file {
        parts.push(without_last_newline(read_text(path)?));
    }
    let reads_stdin = match parts.is_empty() {
        true => !io::stdin().is_terminal(),
        false => !args.raw && stdin_has_text(),
    };
    if reads_stdin {
        let mut status = StatusLine::new();
        status.set("reading standard input");
        parts.push(without_last_newline(read_stdin()?));
    }
    if args.raw && !parts.is_empty() {
        parts.retain(|part| !part.is_empty());
        return Ok(parts.join("\n\n"));
    }
    parts.retain(|part| !part.trim().is_empty());
    if parts.is_empty() {
        usage!("no prompt\nhint: hurtle \"Why is the sky blue?\", or 'hurtle chat' to talk");
    }
    Ok(parts.join("\n\n"))
}

/// Whether a prompt on the command line may be meant to be joined with standard input: with a pipe or a
/// file, yes; not with a terminal, or with what a service or an editor leaves open.
fn stdin_has_text() -> bool {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd as _;
        use std::os::unix::fs::FileTypeExt as _;
        let Ok(fd) = io::stdin().as_fd().try_clone_to_owned() else { return false };
        let Ok(metadata) = std::fs::File::from(fd).metadata() else { return false };
        metadata.is_file() || metadata.file_type().is_fifo()
    }
    #[cfg(not(unix))]
    {
        !io::stdin().is_terminal()
    }
}

fn question(
    args: &RunArgs,
    globals: &GlobalArgs,
    engine: &Engine,
    system: Option<String>,
    text: String,
) -> Result<Question> {
    let tok = engine.tokenizer();
    if args.raw {
        let ids = tok.encode(&text, Encode { add_special: true, parse_special: true });
        if ids.is_empty() {
            usage!("the prompt is empty, and this model has no token to begin a text with");
        }
        return Ok(Question::text(ids));
    }
    let template = Template::load(&args.template, engine.gguf().metadata(), tok)?;
    if globals.verbose {
        say(&format!("chat template: {}", template.origin));
    }
    let system = system.map(|text| json!({"role": "system", "content": text}));
    let user = json!({"role": "user", "content": text});
    let input = RenderInput {
        messages: system.into_iter().chain([user]).collect(),
        add_generation_prompt: true,
        ..RenderInput::default()
    };
    let prompt = template.template.prompt(tok, &input, args.generation.parse_special)?;
    Ok(Question::conversation(&template.template, prompt))
}
