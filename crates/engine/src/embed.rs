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
        let model = self.model();
        let (spec, hparams) = (model.spec(), model.hparams());
        let Some(pooling) = self.pooling() else {
            return Err(EngineError::NoPooling { file: self.file(), arch: spec.name });
        };
        let n_tokens = ids.len();
        self.check_prompt(n_tokens, self.ctx_size())?;
        let batch_size = self.batch_size;
        if hparams.both_ways && n_tokens > batch_size {
            return Err(EngineError::BatchTooSmall { n_tokens, batch_size });
        }
        let pooled = match (pooling, spec.ranking) {
            (Pooling::Mean, _) => 0..n_tokens,
            (Pooling::Cls, _) | (Pooling::Rank, Ranking::First) => 0..1,
            (Pooling::Last, _) | (Pooling::Rank, Ranking::LastSoftmax) => n_tokens - 1..n_tokens,
        };

        let mut cache = model.kv_cache(self.kv_types.0, self.kv_types.1);
        let (seq, mut scratch) = (cache.new_sequence(), Scratch::default());
        let exec = self.exec(self.threads().1);
        let mut vector = vec![0.0; hparams.n_embd];
        let mut at = 0;
        for chunk in ids.chunks(batch_size) {
            let token = |(i, id): (usize, &u32)| BatchToken {
                id: *id,
                seq,
                logits: pooled.contains(&(at + i)),
            };
            let batch: Vec<_> = chunk.iter().enumerate().map(token).collect();
            let rows = model.hidden(exec, &batch, &mut cache, &mut scratch)?;
            for row in rows.chunks_exact(hparams.n_embd) {
                vector.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            at += chunk.len();
        }
        let n_pooled = pooled.len() as f32;
        vector.iter_mut().for_each(|x| *x /= n_pooled);
        match pooling {
            Pooling::Mean | Pooling::Cls | Pooling::Last => Ok(vector),
            Pooling::Rank => Ok(model.scores(exec, &vector, &mut scratch)?.to_vec()),
        }
    }

    /// The file's name for messages.
    fn file(&self) -> String {
        self.gguf().paths().first().map_or_else(|| "the model".into(), |p| p.display().to_string())
    }
}
