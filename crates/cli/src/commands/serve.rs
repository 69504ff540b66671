//! `hurtle serve`: the HTTP server.
use crate::args::{
    EngineArgs, GlobalArgs, ModelArgs, SamplingArgs, TemplateArgs, Types, read_text,
};
use crate::error::usage;
use crate::models;
use crate::prompt::Template;
use crate::terminal::say;
use anyhow::{Context as _, Result};
use clap::Args;
use hurtle_server::{Server, ServerOptions};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Serves a model over HTTP, as OpenAI's clients expect it.
///
/// Requests wait for each other. Sampling flags hold where a request leaves a parameter open.
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
        queue: args.queue,
        sampler,
    };
    let server =
        Server::start(engine, template.template, options).context("cannot start a thread")?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the server's threads")?;
    let finished = runtime.block_on(listen(args, &server, ctx_size))?;
    if finished {
        say("stopped: every answer was finished");
    } else {
        say("stopped: answers in progress were broken off");
    }
    Ok(())
}

/// Serves until a signal comes; tells whether all answers were finished by then.
async fn listen(args: &ServeArgs, server: &Server, ctx_size: usize) -> Result<bool> {
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
    let finished = tokio::select! {
        ended = &mut serving => { ended??; true }
        () = tokio::time::sleep(Duration::from_secs(args.shutdown_timeout)) => false,
        signal = signalled() => { signal?; false }
    };
    server.shut_down();
    Ok(finished)
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
