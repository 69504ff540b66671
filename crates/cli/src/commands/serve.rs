//! `hurtle serve`: the HTTP server.
use crate::args::{EngineArgs, GlobalArgs, SamplingArgs, TemplateArgs, Types, read_text};
use crate::error::{Usage, usage};
use crate::models;
use crate::prompt::Template;
use crate::terminal::say;
use anyhow::{Context as _, Result};
use axum::serve::ListenerExt as _;
use clap::{Args, ValueEnum};
use hurtle_engine::cgroup::usable_memory;
use hurtle_engine::{EngineOptions, Pooling, PrefixDir, ServiceOptions, ShutdownReport};
use hurtle_hub::Origin;
use hurtle_server::connections;
use hurtle_server::keep_alive::KeepAlive;
use hurtle_server::models::{Catalog, Load, Source};
use hurtle_server::origin::{Hosts, Origins};
use hurtle_server::tls::{Tls, TlsListener};
use hurtle_server::{Limits, Server, ServerOptions, TextVectors};
use hurtle_text::ChatTemplate;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::Level;

/// Serves models over HTTP, as the clients of OpenAI, Ollama, Anthropic and llama.cpp expect it.
///
/// The first --model is loaded at the start, others when a request names them; so is any model that 'hurtle list' shows. Answers to several requests are written at the same time. Sampling flags hold where a request leaves a parameter open.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle serve -m qwen2.5-coder:1.5b
  hurtle serve -m qwen2.5-coder:1.5b -m gemma3:270m --keep-alive 10m
  hurtle serve --host 0.0.0.0 --port 8000 --api-key-file keys.txt --only-named

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
    /// How a vector is made of a text, instead of each model's own way; none: one of each token, on /embedding only
    #[arg(long, value_name = "TYPE", help_heading = "Server")]
    pooling: Option<PoolingType>,
    /// Most tokens of a prompt [default: as many as the context holds]
    #[arg(long, value_name = "N", help_heading = "Server")]
    max_prompt: Option<usize>,
    /// Most tokens of an answer, which ends there [default: as many as the context holds]
    #[arg(long, value_name = "N", help_heading = "Server")]
    max_predict: Option<usize>,
    /// Seconds from a request to the end of its answer, which is cut off then [default: any number]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, help_heading = "Server")]
    timeout: Option<Duration>,
    /// Origin whose web pages may use the server, such as https://example.com; may be repeated; *: all
    #[arg(long, value_name = "ORIGIN", help_heading = "Server")]
    cors_origin: Vec<String>,
    /// Folder where prompts that were processed are kept for the next start, and when memory is short
    #[arg(long, value_name = "DIR", help_heading = "Server")]
    prefix_dir: Option<PathBuf>,
    /// Most bytes in it; what was not used for the longest time goes first
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 30, requires = "prefix_dir", help_heading = "Server")]
    prefix_dir_size: u64,
    /// Folder where POST /slots/N?action=save writes what a slot holds, and restore finds it
    #[arg(long, value_name = "DIR", help_heading = "Server")]
    slot_save_path: Option<PathBuf>,
    /// Name under which this server may be asked when it listens on a loopback address, beside localhost; may be repeated
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    allowed_host: Vec<String>,
    /// Seconds that a client has for the head of a request, and for each piece of its body
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30", help_heading = "Server")]
    read_timeout: Duration,
    /// PEM file with the private key, for https
    #[arg(long, value_name = "FILE", requires = "ssl_cert_file", help_heading = "Server")]
    ssl_key_file: Option<PathBuf>,
    /// PEM file with the certificate, followed by those that vouch for it
    #[arg(long, value_name = "FILE", requires = "ssl_key_file", help_heading = "Server")]
    ssl_cert_file: Option<PathBuf>,
    /// How the log on standard error is written: a line for each request
    #[arg(long, value_name = "FORMAT", default_value = "text", help_heading = "Server")]
    log_format: LogFormat,
    /// Seconds that answers in progress have when the server is stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = "Server")]
    shutdown_timeout: u64,
    /// A model as in 'hurtle run'; may be repeated: the first is the one that requests mean which name none
    #[arg(short, long, env = "HURTLE_MODEL", default_value = hurtle_hub::DEFAULT_MODEL, help_heading = "Models")]
    model: Vec<String>,
    /// Names under which the first --model is served, separated by commas; replies use the first of them [default: what
    /// --model calls it]
    #[arg(short, long, value_name = "NAMES", value_delimiter = ',', help_heading = "Models")]
    alias: Vec<String>,
    /// Serve only the models that --model names, not others that are on this machine; fetch and delete none
    #[arg(long, help_heading = "Models")]
    only_named: bool,
    /// Models that are loaded at the same time; a further one takes the place of one that is not used
    #[arg(long, value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..), help_heading = "Models")]
    max_models: u32,
    /// How long a model stays loaded after a request: seconds, or a time such as 10m; -1: until the server
    /// ends [default: -1 for those that --model names, 5m for others]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, help_heading = "Models")]
    keep_alive: Option<KeepAlive>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    template: TemplateArgs,
}

/// llama.cpp's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PoolingType {
    None,
    Mean,
    Cls,
    Last,
}

impl PoolingType {
    fn text_vectors(self) -> TextVectors {
        match self {
            Self::None => TextVectors::Tokens,
            Self::Mean => TextVectors::Pooled(Pooling::Mean),
            Self::Cls => TextVectors::Pooled(Pooling::Cls),
            Self::Last => TextVectors::Pooled(Pooling::Last),
        }
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    fn start(self, verbose: bool) {
        let level = if verbose { Level::DEBUG } else { Level::INFO };
        let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level);
        match self {
            Self::Text => log.with_target(false).with_ansi(false).init(),
            Self::Json => log.json().flatten_event(true).with_target(false).init(),
        }
    }
}

/// A number of seconds above 0.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|time| !time.is_zero()).ok_or_else(|| "expected seconds, more than 0".into())
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
    if args.alias.iter().any(String::is_empty) {
        usage!("--alias: a name is empty");
    }
    let origins =
        Origins::of(&args.cors_origin).map_err(|e| Usage(format!("--cors-origin {e}")))?;
    let tls = match (&args.ssl_key_file, &args.ssl_cert_file) {
        (Some(key), Some(certificate)) => {
            Some(Tls::read(key, certificate).map_err(anyhow::Error::msg)?)
        }
        _ => None,
    };
    args.log_format.start(globals.verbose);
    let options = args.engine.options(Types::FAST)?;
    let hub = models::hub(globals)?;
    let mut named = Vec::new();
    for name in &args.model {
        let local = hub.resolve(name, &mut models::Bar::default())?;
        // Who asks need not know where a file lies.
        let stem = local.path.file_stem().filter(|_| local.origin == Origin::File);
        let name = stem.map_or_else(|| name.clone(), |stem| stem.to_string_lossy().into_owned());
        named.push(Source::new(name, local.path, local.bytes));
    }
    if let Some((name, _)) = args.alias.split_first() {
        named[0].name.clone_from(name);
        named[0].aliases.clone_from(&args.alias);
    }
    let catalog = Catalog {
        load: load(args, options, &named, globals),
        named,
        others: (!args.only_named).then_some(hub),
        max_loaded: args.max_models as usize,
        keep_alive: args.keep_alive,
        memory: usable_memory(Path::new("/")),
    };
    let prefix_dir = args.prefix_dir.as_ref().map(|dir| {
        let opened = PrefixDir::open(dir, args.prefix_dir_size);
        opened.with_context(|| format!("--prefix-dir {}: cannot be opened", dir.display()))
    });
    if let Some(dir) = &args.slot_save_path {
        let made = std::fs::create_dir_all(dir);
        made.with_context(|| format!("--slot-save-path {}: cannot be made", dir.display()))?;
    }
    let options = ServerOptions {
        slot_dir: args.slot_save_path.clone(),
        model: catalog.named[0].name.clone(),
        api_keys,
        max_body: args.max_body,
        service: ServiceOptions {
            max_sequences: args.parallel as usize,
            queue: args.queue,
            prefix_dir: prefix_dir.transpose()?,
            ..ServiceOptions::default()
        },
        sampler,
        text_vectors: args.pooling.map_or(TextVectors::Own, PoolingType::text_vectors),
        limits: Limits {
            max_prompt: args.max_prompt,
            max_predict: args.max_predict,
            timeout: args.timeout,
        },
        origins,
        // Who asks for another name by https does not trust the certificate.
        hosts: match tls.is_some() && args.allowed_host.is_empty() {
            true => Hosts::Any,
            false => Hosts::of(args.host, &args.allowed_host),
        },
        read_timeout: args.read_timeout,
    };
    let server = Server::with_models(catalog, options).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the server's threads")?;
    let report = runtime.block_on(listen(args, tls, &server));
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

/// Loads a file; the template that the flags name is meant for the models that they name.
fn load(args: &ServeArgs, options: EngineOptions, named: &[Source], globals: &GlobalArgs) -> Load {
    let (template, globals) = (args.template.clone(), globals.clone());
    let named: Vec<PathBuf> = named.iter().map(|source| source.path.clone()).collect();
    Box::new(move |path| {
        let load = || {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let engine = models::load_file(&name, path, &options, &globals)?;
            if engine.is_embedding_model() {
                // It converses with nobody, so that any will do.
                let (metadata, tok) = (engine.gguf().metadata(), engine.tokenizer());
                let template = ChatTemplate::fallback_for(metadata, tok)?.0;
                return anyhow::Ok((engine, template));
            }
            let own = TemplateArgs::default();
            let template = if named.iter().any(|named| named == path) { &template } else { &own };
            let template = Template::load(template, engine.gguf().metadata(), engine.tokenizer())?;
            anyhow::Ok((engine, template.template))
        };
        load().map_err(|error| format!("{error:#}"))
    })
}

/// Serves until a signal comes; tells what became of the answers, unless a second signal ends it.
async fn listen(
    args: &ServeArgs,
    tls: Option<Tls>,
    server: &Server,
) -> Result<Option<ShutdownReport>> {
    let address = std::net::SocketAddr::new(args.host, args.port);
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}\nhint: --port N chooses another port")
    })?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    say(&format!("serving {} on {scheme}://{}", args.model.join(", "), listener.local_addr()?));
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let graceful = async move {
        // An error means that the sender has gone, which is a reason to stop as well.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let router = server.router();
    let mut serving = match tls {
        None => {
            // Tokens go out as they come; that it cannot be had changes nothing else.
            let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
            tokio::spawn(connections::serve(listener, router, args.read_timeout, graceful))
        }
        Some(tls) => {
            let listener = TlsListener::new(listener, tls)?;
            tokio::spawn(connections::serve(listener, router, args.read_timeout, graceful))
        }
    };
    tokio::select! {
        ended = &mut serving => ended?,
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
