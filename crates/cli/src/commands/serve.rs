//! `hurtle serve`: the HTTP server.
use crate::args::{
    EngineArgs, GlobalArgs, ModelArgs, SamplingArgs, TemplateArgs, Types, read_text,
};
use crate::error::usage;
use crate::machine::Machine;
use crate::models;
use crate::prompt::Template;
use crate::terminal::say;
use anyhow::{Context as _, Result};
use clap::Args;
use hurtle_engine::{ServiceOptions, ShutdownReport};
use hurtle_server::{Server, ServerOptions};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Serves a model over HTTP, as OpenAI's clients expect it.
///
/// Answers to several requests are written at the same time. Sampling flags hold where a request leaves a parameter open.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle serve -m qwen2.5-coder:1.5b
  hurtle serve --host 0.0.0.0 --port 8000 --api-key-file keys.txt

Ctrl-C or SIGTERM stops it: answers in progress have --shutdown-timeout seconds; a second one ends it at once.")]
pub(crate) struct ServeArgs {
    /// Address to listen on; 0.0.0.0 lets other machines in
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Server")]
    host: IpAddr,
    /// Port to listen on; 0: any that is free
    #[arg(long, default_value_t = 8080, help_heading = "Server")]
    port: u16,
    /// Key that requests must carry; may be repeated
    #[arg(
        long,
        value_name = "KEY",
        env = "HURTLE_API_KEY",
        hide_env_values = true,
        help_heading = "Server"
    )]
    api_key: Vec<String>,
    /// File with keys, one a line
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    api_key_file: Option<PathBuf>,
    /// Answers that are written at the same time
    #[arg(long, value_name = "N", default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..), help_heading = "Server")]
    parallel: u32,
    /// Most requests that wait; further ones are told to come back
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Server")]
    queue: usize,
    /// Most bytes of a request
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20, help_heading = "Server")]
    max_body: usize,
    /// Seconds that answers in progress have when the server is stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = "Server")]
    shutdown_timeout: u64,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    template: TemplateArgs,
}

pub(crate) fn execute(args: &ServeArgs, globals: &GlobalArgs) -> Result<()> {
    let sampler = args.sampling.params()?;
    let mut api_keys = args.api_key.clone();
    if let Some(path) = &args.api_key_file {
        let text = read_text(path)?;
        api_keys
            .extend(text.lines().map(str::trim).filter(|key| !key.is_empty()).map(String::from));
        if api_keys.is_empty() {
            usage!("--api-key-file {}: there is no key in it", path.display());
        }
    }
    if api_keys.iter().any(String::is_empty) {
        usage!("--api-key: an empty key would let everybody in");
    }
    let options = args.engine.options(Types::FAST)?;
    let engine = models::load(&args.model.model, &options, globals)?;
    let template = Template::load(&args.template, engine.gguf().metadata(), engine.tokenizer())?;
    let ctx_size = engine.ctx_size();
    let options = ServerOptions {
        model: args.model.model.clone(),
        api_keys,
        max_body: args.max_body,
        service: ServiceOptions {
            max_sequences: args.parallel as usize,
            queue: args.queue,
            kv_bytes: Machine::read(Path::new("/")).usable_memory().map(|bytes| bytes / 2),
            ..ServiceOptions::default()
        },
        sampler,
    };
    let server =
        Server::start(engine, template.template, options).context("cannot start a thread")?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the server's threads")?;
    let report = runtime.block_on(listen(args, &server, ctx_size));
    // What a second signal ends is not waited for.
    runtime.shutdown_background();
    let report = report?;
    match report {
        Some(ShutdownReport { cancelled: 0, .. }) => say("stopped: every answer was finished"),
        Some(ShutdownReport { finished, cancelled }) => {
            say(&format!("stopped: {finished} answers were finished, {cancelled} broken off"));
        }
        None => say("stopped: answers in progress were broken off"),
    }
    Ok(())
}

/// Serves until a signal comes; tells what became of the answers, unless a second signal ends it.
async fn listen(
    args: &ServeArgs,
    server: &Server,
    ctx_size: usize,
) -> Result<Option<ShutdownReport>> {
    let address = std::net::SocketAddr::new(args.host, args.port);
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}\nhint: --port N chooses another port")
    })?;
    say(&format!(
        "serving {} with a context of {ctx_size} tokens on http://{}",
        args.model.model,
        listener.local_addr()?
    ));
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let graceful = async move {
        // An error means that the sender has gone, which is a reason to stop as well.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let serve = axum::serve(listener, server.router()).with_graceful_shutdown(graceful);
    let mut serving = tokio::spawn(serve.into_future());
    tokio::select! {
        ended = &mut serving => { ended??; }
        signal = signalled() => signal?,
    }
    say(&format!("stopping: answers in progress have {} s", args.shutdown_timeout));
    let _ = stop.send(true); // nobody listens if serving has ended by itself
    let (server, grace) = (server.clone(), Duration::from_secs(args.shutdown_timeout));
    let closing = async {
        let report = tokio::task::spawn_blocking(move || server.shut_down(grace)).await?;
        // Connections have heard the ends of their answers; what they do not read is lost.
        let _ = tokio::time::timeout(Duration::from_secs(1), serving).await;
        anyhow::Ok(report)
    };
    tokio::select! {
        report = closing => Ok(Some(report?)),
        signal = signalled() => signal.map(|()| None),
    }
}

/// Ctrl-C or SIGTERM.
async fn signalled() -> Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        tokio::select! {
            pressed = tokio::signal::ctrl_c() => pressed.context("cannot wait for Ctrl-C")?,
            _ = terminate.recv() => {}
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")?;
    Ok(())
}
