//! From a text to one vector: an embedding, or the scores of a reranker.
//!
//! ```text
//! tokens ─ model ─ hidden states ─ mean, first or last ─┬─ embedding
//!                                                       └─ classifier ─ scores
//! ```
//! Where tokens see those behind them, the text is one batch, or an error: in pieces it would be another
//! text.

use crate::{Engine, EngineError};
use hurtle_model::spec::{Head, Ranking};
use hurtle_model::{BatchToken, Pooling, Scratch};
use std::ops::{ControlFlow, Range};

/// Asked between passes whether to go on.
type Between<'a> = &'a mut dyn FnMut() -> ControlFlow<()>;

impl Engine {
    /// How the model makes one vector of a text; `None` if it does not.
    pub fn pooling(&self) -> Option<Pooling> {
        self.model().hparams().pooling
    }

    /// Whether the model is made for vectors rather than for text.
    pub fn is_embedding_model(&self) -> bool {
        self.pooling().is_some() || self.model().spec().head == Head::None
    }

    /// # Errors
    /// If the model is made for vectors rather than for text.
    pub fn check_generates(&self) -> Result<(), EngineError> {
        match self.is_embedding_model() {
            true => Err(EngineError::EmbeddingModel { file: self.file() }),
            false => Ok(()),
        }
    }

    /// The embedding of a text, `[n_embd]`, not normalized; of a reranker ([`Pooling::Rank`]) its
    /// scores, `[n_scores]`.
    ///
    /// # Errors
    /// If the model makes none, `ids` is empty, does not fit the context or, where it has to be
    /// processed whole, the batch size, or holds an unknown token.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        let Some(pooling) = self.pooling() else {
            return Err(EngineError::NoPooling {
                file: self.file(),
                arch: self.model().spec().name,
            });
        };
        let mut vectors = self.embed_all(&[ids], pooling, &mut || ControlFlow::Continue(()))?;
        Ok(vectors.pop().unwrap_or_default())
    }

    /// Tokens of the longest text that can be embedded.
    pub fn longest_embeddable(&self) -> usize {
        match self.model().hparams().both_ways {
            true => self.ctx_size().min(self.batch_size),
            false => self.ctx_size(),
        }
    }

    /// The vectors of many texts, as [`Engine::embed`] gives them, with a pooling that may not be the model's
    /// own. Short texts go through the model together. `between` is asked between passes, and may break off:
    /// then those that are done are returned.
    ///
    /// # Errors
    /// As [`Engine::embed`], for the first text that has one.
    pub fn embed_all(
        &self,
        texts: &[impl AsRef<[u32]>],
        pooling: Pooling,
        between: Between<'_>,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let together = |texts: &[&[u32]], scratch: &mut Scratch, between: Between<'_>| {
            self.embed_together(texts, pooling, scratch, between)
        };
        self.in_batches(texts, together, between)
    }

    /// As [`Engine::embed_all`] without pooling: the vector of each token, `[n_tokens][n_embd]` of each text.
    ///
    /// # Errors
    /// As [`Engine::embed`], for the first text that has one.
    pub fn embed_tokens(
        &self,
        texts: &[impl AsRef<[u32]>],
        between: Between<'_>,
    ) -> Result<Vec<Vec<Vec<f32>>>, EngineError> {
        let together = |texts: &[&[u32]], scratch: &mut Scratch, between: Between<'_>| {
            let mut vectors: Vec<Vec<Vec<f32>>> = vec![Vec::new(); texts.len()];
            let each = |text: usize, row: &[f32]| vectors[text].push(row.to_vec());
            let whole = self.states(texts, |n_tokens| 0..n_tokens, scratch, between, each)?;
            Ok(if whole { vectors } else { Vec::new() })
        };
        self.in_batches(texts, together, between)
    }

    /// What `together` makes of many texts, as many at a time as go through the model together.
    fn in_batches<T>(
        &self,
        texts: &[impl AsRef<[u32]>],
        together: impl Fn(&[&[u32]], &mut Scratch, Between<'_>) -> Result<Vec<T>, EngineError>,
        between: Between<'_>,
    ) -> Result<Vec<T>, EngineError> {
        let both_ways = self.model().hparams().both_ways;
        let batch_size = self.batch_size;
        for text in texts {
            let n_tokens = text.as_ref().len();
            self.check_prompt(n_tokens, self.ctx_size())?;
            if both_ways && n_tokens > batch_size {
                return Err(EngineError::BatchTooSmall { n_tokens, batch_size });
            }
        }
        let mut vectors = Vec::with_capacity(texts.len());
        let mut scratch = Scratch::default();
        while vectors.len() < texts.len() {
            // As many as fit into a batch; a longer one goes alone, in pieces.
            let rest = &texts[vectors.len()..];
            let mut n_tokens = 0;
            let fits = |text: &&_| {
                n_tokens += AsRef::<[u32]>::as_ref(*text).len();
                n_tokens <= batch_size
            };
            let n = rest.iter().take_while(fits).count().max(1);
            let group: Vec<&[u32]> = rest[..n].iter().map(AsRef::as_ref).collect();
            if between().is_break() {
                break;
            }
            let made = together(&group, &mut scratch, between)?;
            if made.is_empty() {
                break;
            }
            vectors.extend(made);
        }
        Ok(vectors)
    }

    /// The vectors of texts that fit into one batch, or of one text; none if `between` breaks off.
    fn embed_together(
        &self,
        texts: &[&[u32]],
        pooling: Pooling,
        scratch: &mut Scratch,
        between: Between<'_>,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let model = self.model();
        let n_embd = model.hparams().n_embd;
        let pooled = |n_tokens: usize| match (pooling, model.spec().ranking) {
            (Pooling::Mean, _) => 0..n_tokens,
            (Pooling::Cls, _) | (Pooling::Rank, Ranking::First) => 0..1,
            (Pooling::Last, _) | (Pooling::Rank, Ranking::LastSoftmax) => n_tokens - 1..n_tokens,
        };
        let mut vectors = vec![vec![0.0; n_embd]; texts.len()];
        let add = |text: usize, row: &[f32]| {
            vectors[text].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        };
        if !self.states(texts, pooled, scratch, between, add)? {
            return Ok(Vec::new());
        }
        let exec = self.exec(self.threads().1);
        for (vector, text) in vectors.iter_mut().zip(texts) {
            let n_pooled = pooled(text.len()).len() as f32;
            vector.iter_mut().for_each(|x| *x /= n_pooled);
            if pooling == Pooling::Rank {
                *vector = model.scores(exec, vector, scratch)?.to_vec();
            }
        }
        Ok(vectors)
    }

    /// Calls `each(text, row)` with the hidden states, `[n_embd]`, of those tokens of each text that `wanted_of` names of
    /// its number of tokens, in order. False if `between` breaks off.
    fn states(
        &self,
        texts: &[&[u32]],
        wanted_of: impl Fn(usize) -> Range<usize>,
        scratch: &mut Scratch,
        between: Between<'_>,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<bool, EngineError> {
        let model = self.model();
        let mut cache = model.kv_cache(self.kv_types.0, self.kv_types.1);
        let exec = self.exec(self.threads().1);
        let mut batch = Vec::new();
        // Whose row each wanted token gives.
        let mut owners = Vec::new();
        let mut wanted = Vec::new();
        for (owner, text) in texts.iter().enumerate() {
            let seq = cache.new_sequence();
            for (i, id) in text.iter().enumerate() {
                let logits = wanted_of(text.len()).contains(&i);
                batch.push(BatchToken { id: *id, seq, logits });
                wanted.push((logits, owner));
            }
        }
        for (chunk, wanted) in batch.chunks(self.batch_size).zip(wanted.chunks(self.batch_size)) {
            if chunk.len() < batch.len() && between().is_break() {
                return Ok(false);
            }
            let rows = model.hidden(exec, chunk, &mut cache, scratch)?;
            owners.clear();
            owners.extend(wanted.iter().filter(|wanted| wanted.0).map(|wanted| wanted.1));
            for (row, owner) in rows.chunks_exact(model.hparams().n_embd).zip(&owners) {
                each(*owner, row);
            }
        }
        Ok(true)
    }

    /// The file's name for messages.
    fn file(&self) -> String {
        self.gguf().paths().first().map_or_else(|| "the model".into(), |p| p.display().to_string())
    }
}
