//! From the name of a model to its file, vocabulary or engine.
use crate::args::{GlobalArgs, ModelArgs};
use crate::terminal::{StatusLine, say};
use anyhow::{Context as _, Result};
use hurtle_engine::{Engine, EngineOptions};
use hurtle_gguf::Gguf;
use hurtle_hub::{Hub, HubConfig, LocalModel};
use hurtle_text::Tokenizer;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;

/// The user's models.
pub(crate) fn hub(globals: &GlobalArgs) -> Result<Hub> {
    let mut config = HubConfig::from_env()?;
    config.offline |= globals.offline;
    Ok(Hub::new(config)?)
}

/// The model `spec` on this machine, fetched if need be.
pub(crate) fn resolve(spec: &str, globals: &GlobalArgs) -> Result<LocalModel> {
    Ok(hub(globals)?.resolve(spec, &mut Bar::default())?)
}

/// The header of the model's file and its vocabulary: no weights are read.
pub(crate) fn open(model: &ModelArgs, globals: &GlobalArgs) -> Result<(Gguf, Tokenizer)> {
    let local = resolve(&model.model, globals)?;
    let gguf = Gguf::open(&local.path)?;
    let tokenizer = Tokenizer::from_metadata(gguf.metadata())
        .with_context(|| local.path.display().to_string())?;
    Ok((gguf, tokenizer))
}

/// Loads the model `spec`, ready to run.
pub(crate) fn load(spec: &str, options: &EngineOptions, globals: &GlobalArgs) -> Result<Engine> {
    let local = resolve(spec, globals)?;
    load_file(&local.name, &local.path, options, globals)
}

/// Loads the file of the model `name`.
pub(crate) fn load_file(
    name: &str,
    path: &Path,
    options: &EngineOptions,
    globals: &GlobalArgs,
) -> Result<Engine> {
    let mut status = StatusLine::new();
    status.set(&format!("loading {name}"));
    let engine = Engine::load(path, options)?;
    drop(status);
    let trained = engine.model().hparams().n_ctx_train;
    if engine.ctx_size() > trained {
        say(&format!(
            "note: a context of {} tokens was asked for, but the model was made for {trained}: \
             beyond that it may talk nonsense",
            engine.ctx_size()
        ));
    }
    if globals.verbose {
        let (threads, threads_batch) = engine.threads();
        let backend = options.backend.as_ref();
        let products = backend.map(|backend| format!(", matrix products by {}", backend.name()));
        say(&format!(
            "{}: {} kernels{}, {threads} threads ({threads_batch} for prompts), context of {} tokens",
            path.display(),
            engine.isa(),
            products.unwrap_or_default(),
            engine.ctx_size()
        ));
    }
    Ok(engine)
}

/// As [`load`], for what has to write text.
pub(crate) fn load_writer(
    spec: &str,
    options: &EngineOptions,
    globals: &GlobalArgs,
) -> Result<Engine> {
    let engine = load(spec, options, globals)?;
    engine.check_generates()?;
    Ok(engine)
}

/// Shows a download on standard error.
#[derive(Debug, Default)]
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
}

impl hurtle_hub::Progress for Bar {
    fn start(&mut self, what: &str, total: Option<u64>) {
        let (bar, template) = match total {
            Some(total) => (
                ProgressBar::new(total),
                "{wide_msg} [{bar:20}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left",
            ),
            None => (
                ProgressBar::new_spinner(),
                "{wide_msg} {spinner} {decimal_bytes} {decimal_bytes_per_sec}",
            ),
        };
        let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(what.to_owned());
        if bar.is_hidden() {
            say(&format!("fetching {what}"));
        }
        self.bar = Some(bar);
    }

    fn advance(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            // Neither what a resumed transfer starts with nor a fall back to 0 is speed.
            if (bar.position() == 0 && done > 0) || done < bar.position() {
                bar.set_position(done);
                bar.reset_eta();
            }
            bar.set_position(done);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn note(&mut self, message: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(message)),
            None => say(message),
        }
    }
}
