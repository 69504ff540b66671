//! Texts that become vectors, beside answers that are being written.
//!
//! One request after another has its turn at a model, in the order in which they came; the texts of a request
//! go through the model together. A client that goes away gives up its turn, or ends it after the pass that is
//! running.
use crate::error::{ApiError, ErrorKind};
use crate::models::{Lease, timed_out};
use crate::observe;
use crate::request::Prompt;
use hurtle_engine::{Engine, EngineError, Pooling};
use hurtle_text::{ChatTemplate, Encode, RenderInput, Tokenizer};
use serde_json::json;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// Who embeds, and who waits to.
#[derive(Debug)]
pub(crate) struct Embedder {
    turn: Semaphore,
    waiting: AtomicUsize,
}

impl Default for Embedder {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), waiting: AtomicUsize::new(0) }
    }
}

/// How vectors are made of texts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TextVectors {
    /// As each model says; of a model that is made for writing, behind the last token.
    #[default]
    Own,
    /// In this way, whatever the model says.
    Pooled(Pooling),
    /// One for each token.
    Tokens,
}

/// What is to be done with a text that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TooLong {
    Refuse,
    /// Only its beginning counts.
    Truncate,
}

/// What became of each text, and the tokens that it took.
#[derive(Debug)]
pub(crate) struct Embedded<T = Vec<f32>> {
    pub(crate) vectors: Vec<T>,
    pub(crate) n_tokens: usize,
}

/// Asked between passes whether somebody still waits.
type Between<'a> = &'a mut dyn FnMut() -> ControlFlow<()>;

/// Counts itself out.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells the thread that works for a request that nobody waits any more.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Lease {
    /// Embeds texts, in the model's own way if `pooling` names no other. A model that is made for writing gives what
    /// it knows behind the last token, as Ollama does.
    pub(crate) async fn embed(
        &self,
        inputs: Vec<Prompt>,
        too_long: TooLong,
        n_ctx: Option<usize>,
        pooling: Option<Pooling>,
        queue: usize,
    ) -> Result<Embedded, ApiError> {
        let texts = self.to_embed(inputs, too_long, n_ctx).await?;
        let own = self.service.engine().pooling();
        let pooling = pooling.or(own).unwrap_or(Pooling::Last);
        let make = move |engine: &Engine, texts: &[Vec<u32>], between: Between<'_>| {
            engine.embed_all(texts, pooling, between)
        };
        self.vectors(texts, make, queue).await
    }

    /// The vectors of each token of each text.
    pub(crate) async fn embed_tokens(
        &self,
        inputs: Vec<Prompt>,
        queue: usize,
    ) -> Result<Embedded<Vec<Vec<f32>>>, ApiError> {
        let texts = self.to_embed(inputs, TooLong::Refuse, None).await?;
        let make = |engine: &Engine, texts: &[Vec<u32>], between: Between<'_>| {
            engine.embed_tokens(texts, between)
        };
        self.vectors(texts, make, queue).await
    }

    /// The tokens of texts to embed; a reranker refuses them.
    async fn to_embed(
        &self,
        inputs: Vec<Prompt>,
        too_long: TooLong,
        n_ctx: Option<usize>,
    ) -> Result<Vec<Vec<u32>>, ApiError> {
        let engine = self.service.engine();
        if engine.pooling() == Some(Pooling::Rank) {
            let message = format!(
                "model '{}' is a reranker: it scores texts, and makes no embeddings\nhint: ask /v1/rerank",
                self.source.name
            );
            return Err(ApiError::invalid("model", message));
        }
        let model = self.clone();
        let most = n_ctx.map_or(usize::MAX, |n| n.max(1)).min(engine.longest_embeddable());
        let tokens = move || model.tokens(inputs, too_long, most);
        in_background(tokens).await?
    }

    /// How much each document says about the query, and the tokens that it took to find out.
    pub(crate) async fn rank(
        &self,
        query: String,
        documents: Vec<String>,
        queue: usize,
    ) -> Result<Embedded, ApiError> {
        let engine = self.service.engine();
        if engine.pooling() != Some(Pooling::Rank) {
            let message = format!(
                "model '{}' is no reranker\nhint: rerankers have the pooling type 4 (rank)",
                self.source.name
            );
            return Err(ApiError::invalid("model", message));
        }
        let model = self.clone();
        let tokens = move || {
            let pairs = model.pairs(&query, &documents)?;
            pairs
                .iter()
                .enumerate()
                .try_for_each(|(i, ids)| model.fits("documents", i, ids.len()))?;
            Ok::<_, ApiError>(pairs)
        };
        let texts = in_background(tokens).await??;
        let make = |engine: &Engine, texts: &[Vec<u32>], between: Between<'_>| {
            engine.embed_all(texts, Pooling::Rank, between)
        };
        self.vectors(texts, make, queue).await
    }

    /// What `make` makes of texts, in turn.
    async fn vectors<T: Send + 'static>(
        &self,
        texts: Vec<Vec<u32>>,
        make: impl FnOnce(&Engine, &[Vec<u32>], Between<'_>) -> Result<Vec<T>, EngineError>
        + Send
        + 'static,
        queue: usize,
    ) -> Result<Embedded<T>, ApiError> {
        let waiting = self.embedder.waiting.fetch_add(1, Ordering::Relaxed);
        let waits = Waits(&self.embedder.waiting);
        if waiting >= queue {
            let message = format!(
                "{waiting} requests are waiting to be embedded, which is the limit\nhint: try again later"
            );
            return Err(ApiError::new(ErrorKind::QueueFull, message));
        }
        let work = async {
            let failed = |_| ApiError::new(ErrorKind::Unavailable, "the server is shutting down");
            let _turn = self.embedder.turn.acquire().await.map_err(failed)?;
            drop(waits);
            self.in_turn(texts, make).await
        };
        match self.limits.timeout {
            None => work.await,
            Some(time) => tokio::time::timeout(time, work).await.map_err(|_| timed_out(time))?,
        }
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        texts: Vec<Vec<u32>>,
        make: impl FnOnce(&Engine, &[Vec<u32>], Between<'_>) -> Result<Vec<T>, EngineError>
        + Send
        + 'static,
    ) -> Result<Embedded<T>, ApiError> {
        let gone = Arc::new(AtomicBool::new(false));
        let _gone = Gone(Arc::clone(&gone));
        let model = self.clone();
        let n_tokens = texts.iter().map(Vec::len).sum();
        observe::note_tokens(n_tokens);
        let embed = move || {
            let engine = model.service.engine();
            let mut between = || match gone.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            make(engine, &texts, &mut between)
        };
        let vectors = in_background(embed).await?.map_err(|error| refused(&error))?;
        Ok(Embedded { vectors, n_tokens })
    }

    fn tokens(
        &self,
        inputs: Vec<Prompt>,
        too_long: TooLong,
        most: usize,
    ) -> Result<Vec<Vec<u32>>, ApiError> {
        let tok = self.service.engine().tokenizer();
        let mut texts = Vec::with_capacity(inputs.len());
        for (i, input) in inputs.into_iter().enumerate() {
            // Nothing in a text is a control token: it is data.
            let encode = |text: &str, first| {
                tok.encode(text, Encode { add_special: first, parse_special: false })
            };
            let mut ids = self.prompt_ids("input", input, encode)?;
            if ids.is_empty() {
                let message = format!("input[{i}]: there are no tokens in it to embed");
                return Err(ApiError::invalid("input", message));
            }
            if too_long == TooLong::Truncate && ids.len() > most {
                let end = ids.last().copied().filter(|&id| most > 1 && tok.is_control(id));
                ids.truncate(most - usize::from(end.is_some()));
                ids.extend(end);
            }
            self.fits("input", i, ids.len())?;
            texts.push(ids);
        }
        Ok(texts)
    }

    fn fits(&self, param: &str, index: usize, n_tokens: usize) -> Result<(), ApiError> {
        let most = self.service.engine().longest_embeddable();
        if n_tokens <= most {
            return Ok(());
        }
        let message = format!(
            "{param}[{index}] has {n_tokens} tokens, which is too large: the model takes {most} at once\n\
             hint: split the text, or start the server with a larger --ctx-size or --ubatch-size"
        );
        Err(ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid(param, message) })
    }

    /// Query and document as the model wants them: in the template `rerank` of its file, or else one after the
    /// other, with the tokens that begin, separate and end texts, as llama.cpp puts them.
    fn pairs(&self, query: &str, documents: &[String]) -> Result<Vec<Vec<u32>>, ApiError> {
        let engine = self.service.engine();
        let tok = engine.tokenizer();
        let invalid =
            |error: &dyn std::fmt::Display| ApiError::invalid("documents", error.to_string());
        let key = "tokenizer.chat_template.rerank";
        if let Ok(Some(prompt)) = engine.gguf().metadata().string(key) {
            let template = ChatTemplate::new(&as_jinja(prompt), "", "").map_err(|e| invalid(&e))?;
            let pair = |document: &String| pair(&template, tok, query, document);
            return documents.iter().map(|text| pair(text).map_err(|e| invalid(&e))).collect();
        }
        let plain = Encode { add_special: false, parse_special: false };
        let query = tok.encode(query, plain);
        let end = tok.eos().or(tok.separator()).filter(|_| tok.adds_eos());
        let begin = tok.bos().filter(|_| tok.adds_bos());
        let between = tok.separator().filter(|_| tok.adds_separator());
        let pair = |document: &String| {
            let mut ids: Vec<u32> = begin.into_iter().collect();
            ids.extend_from_slice(&query);
            ids.extend(end.into_iter().chain(between));
            ids.extend(tok.encode(document, plain));
            ids.extend(end);
            ids
        };
        Ok(documents.iter().map(pair).collect())
    }
}

/// A text with `{query}` and `{document}` as a template of two messages.
fn as_jinja(prompt: &str) -> String {
    let mut out = String::new();
    let mut rest = prompt;
    while !rest.is_empty() {
        let places = [("{query}", 0), ("{document}", 1)];
        let found = places.into_iter().filter_map(|(name, k)| Some((rest.find(name)?, name, k)));
        let (at, name, message) = found.min().unwrap_or((rest.len(), "", 0));
        // A text in JSON is one in Jinja, too.
        out += &format!("{{{{ {} }}}}", json!(rest[..at]));
        if !name.is_empty() {
            out += &format!("{{{{ messages[{message}].content }}}}");
        }
        rest = &rest[at + name.len()..];
    }
    out
}

/// A query and a document in a template; neither can spell a control token.
fn pair(
    template: &ChatTemplate,
    tok: &Tokenizer,
    query: &str,
    document: &str,
) -> Result<Vec<u32>, hurtle_text::TemplateError> {
    let message = |text: &str| json!({"role": "user", "content": text});
    let input =
        RenderInput { messages: vec![message(query), message(document)], ..RenderInput::default() };
    let (text, guard) = template.render_guarded(&input, tok)?;
    Ok(tok.encode_guarded(&text, guard, false))
}

async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let failed = |_| ApiError::new(ErrorKind::Internal, "an internal error ended this request");
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

fn refused(error: &EngineError) -> ApiError {
    ApiError::new(ErrorKind::Invalid, error.to_string())
}

/// To length 1; a vector of zeros stays one.
pub(crate) fn normalize(vector: &mut [f32]) {
    let squares: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    if squares > 0.0 {
        let scale = 1.0 / squares.sqrt();
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_a_template_are_filled() {
        let prompt = "<q>\n{query}</q> {{x}} \"{document}\"\n";
        let template = ChatTemplate::new(&as_jinja(prompt), "", "").expect("a template");
        let message = |text: &str| json!({"role": "user", "content": text});
        let messages = vec![message("a{document}"), message("b")];
        let text = template.render(&RenderInput { messages, ..RenderInput::default() });
        assert_eq!(text.expect("rendered"), "<q>\na{document}</q> {{x}} \"b\"\n");
    }

    #[test]
    fn lengths() {
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zeros = [0.0; 2];
        normalize(&mut zeros);
        assert_eq!(zeros, [0.0; 2]);
    }
}
