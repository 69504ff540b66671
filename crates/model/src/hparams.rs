//! The numbers of a model, from its metadata.

use crate::ModelError;
use crate::rope::RopeParams;
use crate::spec::{
    ArchSpec, AttnScale, EmbdScale, ExpertWidth, NoRope, NormKind, Window, WindowRope,
};
use hurtle_gguf::{Gguf, Value};

/// More layers than any model has; a bound on what a hostile file can make us allocate.
const MAX_LAYERS: usize = 1024;

/// The numbers of a model.
#[derive(Debug, Clone)]
pub struct Hparams {
    /// Layers.
    pub layers: Vec<LayerParams>,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Context length the model was trained for.
    pub n_ctx_train: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Whether a token also sees those behind it, so that a sequence has to be processed whole.
    pub both_ways: bool,
    /// How a sequence becomes one vector, in embedding models.
    pub pooling: Option<Pooling>,
    /// Factor of the token embeddings.
    pub embd_scale: f32,
    /// Factor of what attention and feed-forward add to the residual stream.
    pub residual_scale: f32,
    /// Divisor of the logits.
    pub logit_scale: f32,
    /// Cap of the attention scores.
    pub attn_soft_cap: Option<f32>,
    /// Cap of the logits.
    pub logit_soft_cap: Option<f32>,
    /// Rotary positions of the layers that see everything.
    pub rope: RopeParams,
    /// Rotary positions of the windowed layers.
    pub window_rope: RopeParams,
    /// Experts, chosen experts and their width; `None` for a dense model.
    pub experts: Option<ExpertParams>,
}

/// How a sequence becomes one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all tokens.
    Mean,
    /// The first token.
    Cls,
    /// The last token.
    Last,
    /// The classifier's scores of the first token (qwen3: of the last): how well a text answers a query.
    Rank,
}

impl Pooling {
    /// By `pooling_type`.
    fn from_id(id: usize) -> Option<Self> {
        [Self::Mean, Self::Cls, Self::Last, Self::Rank].get(id.checked_sub(1)?).copied()
    }

    /// llama.cpp's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "last",
            Self::Rank => "rank",
        }
    }
}

/// The numbers of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerParams {
    /// Query heads.
    pub n_heads: usize,
    /// KV heads.
    pub n_kv_heads: usize,
    /// Values of a query or key head.
    pub head_dim_k: usize,
    /// Values of a value head.
    pub head_dim_v: usize,
    /// Width of the feed-forward.
    pub n_ff: usize,
    /// How many positions a token sees.
    pub window: Option<usize>,
    /// Whether queries and keys rotate.
    pub rotates: bool,
    /// Factor of the attention scores.
    pub attn_scale: f32,
}

/// The numbers of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertParams {
    /// Experts.
    pub n_experts: usize,
    /// Experts chosen for a token.
    pub n_used: usize,
    /// Width of an expert.
    pub n_ff: usize,
    /// Width of the shared expert.
    pub n_ff_shared: usize,
}

/// Reads keys of one architecture, with errors that name file and key.
struct Keys<'a> {
    gguf: &'a Gguf,
    spec: &'a ArchSpec,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.spec.name)
    }

    fn count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        Ok(self.gguf.metadata().u32(&self.name(key))?.map(|n| n as usize))
    }

    /// A count that must be there, and above 0.
    fn positive(&self, key: &str) -> Result<usize, ModelError> {
        match self.count(key)? {
            None => Err(ModelError::MissingKey { file: file_name(self.gguf), key: self.name(key) }),
            Some(0) => Err(self.bad(key, 0, "above 0")),
            Some(n) => Ok(n),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f32>, ModelError> {
        match self.gguf.metadata().f32(&self.name(key))? {
            Some(x) if !x.is_finite() => Err(self.bad(key, x, "finite")),
            x => Ok(x),
        }
    }

    /// One number for all layers, or an array with one for each.
    fn per_layer(&self, key: &str, n_layers: usize) -> Result<Option<Vec<usize>>, ModelError> {
        if !matches!(self.gguf.metadata().get(&self.name(key)), Some(Value::Array(_))) {
            return Ok(self.count(key)?.map(|n| vec![n; n_layers]));
        }
        let values = self.gguf.metadata().ints(&self.name(key))?.unwrap_or_default();
        if values.len() != n_layers {
            return Err(self.bad(
                key,
                format!("an array of {}", values.len()),
                format!("an array of {n_layers}, one value a layer"),
            ));
        }
        let values = values.into_iter().map(|v| {
            u32::try_from(v)
                .map(|v| v as usize)
                .map_err(|_| self.bad(key, v, "a number of 32 bits"))
        });
        values.collect::<Result<_, _>>().map(Some)
    }

    fn bad(&self, key: &str, found: impl ToString, expected: impl ToString) -> ModelError {
        ModelError::BadValue {
            file: file_name(self.gguf),
            key: self.name(key),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }
}

/// The file's name for messages.
pub(crate) fn file_name(gguf: &Gguf) -> String {
    gguf.paths().first().map_or_else(|| "GGUF".into(), |path| path.display().to_string())
}

impl Hparams {
    /// Reads the metadata of a model of architecture `spec`; `n_ctx` is the context it will run
    /// with (the trained one if `None`), which decides between LongRoPE's two sets of factors.
    pub(crate) fn read(
        gguf: &Gguf,
        spec: &ArchSpec,
        n_vocab: usize,
        n_ctx: Option<usize>,
    ) -> Result<Self, ModelError> {
        let keys = Keys { gguf, spec };
        let n_ctx_train = keys.positive("context_length")?;
        let n_embd = keys.positive("embedding_length")?;
        let n_layers = keys.positive("block_count")?;
        if n_layers > MAX_LAYERS {
            return Err(keys.bad("block_count", n_layers, format!("at most {MAX_LAYERS}")));
        }
        let missing =
            |key: &str| ModelError::MissingKey { file: file_name(gguf), key: keys.name(key) };
        let key = match spec.norm {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        let norm_eps = keys.number(key)?.ok_or_else(|| missing(key))?;
        let n_heads = keys
            .per_layer("attention.head_count", n_layers)?
            .ok_or_else(|| missing("attention.head_count"))?;
        let n_kv_heads =
            keys.per_layer("attention.head_count_kv", n_layers)?.unwrap_or_else(|| n_heads.clone());
        let n_ff = keys.per_layer("feed_forward_length", n_layers)?.unwrap_or(vec![0; n_layers]);
        if n_heads.contains(&0) {
            return Err(keys.bad("attention.head_count", 0, "above 0"));
        }
        for (heads, kv_heads) in n_heads.iter().zip(&n_kv_heads) {
            if *kv_heads == 0 || !heads.is_multiple_of(*kv_heads) {
                let expected = format!("a divisor of attention.head_count ({heads})");
                return Err(keys.bad("attention.head_count_kv", kv_heads, expected));
            }
        }
        let head_dim = n_embd / n_heads[0];
        let head_dim_k = keys.count("attention.key_length")?.unwrap_or(head_dim);
        let head_dim_v = keys.count("attention.value_length")?.unwrap_or(head_dim);
        for (key, dim) in
            [("attention.key_length", head_dim_k), ("attention.value_length", head_dim_v)]
        {
            if dim == 0 || dim > 1 << 16 {
                return Err(keys.bad(key, dim, "between 1 and 65536"));
            }
        }

        let n_rot = keys.count("rope.dimension_count")?.unwrap_or(head_dim_k);
        if n_rot > head_dim_k || !n_rot.is_multiple_of(2) {
            let expected = format!("even and at most the head size, {head_dim_k}");
            return Err(keys.bad("rope.dimension_count", n_rot, expected));
        }
        let rope = RopeParams::read(gguf, spec, n_rot, n_ctx_train, n_ctx.unwrap_or(n_ctx_train))?;
        let base_swa = keys.number("rope.freq_base_swa")?;
        let window_rope = match spec.window_rope {
            WindowRope::Same => rope.with_base(base_swa.unwrap_or(rope.base)),
            WindowRope::Own { base } => RopeParams::plain(n_rot, base_swa.unwrap_or(base as f32)),
            WindowRope::Unscaled => RopeParams::plain(n_rot, rope.base),
        };

        let windows = windows(&keys, n_layers)?;
        let finetuned = gguf.metadata().bool(&keys.name("rope.scaling.finetuned"))?.unwrap_or(true);
        let inv_sqrt = |dim: usize| 1.0 / (dim as f32).sqrt();
        let attn_scale = match spec.attn_scale {
            AttnScale::HeadDim => inv_sqrt(head_dim_k),
            AttnScale::Key => match keys.number("attention.scale")? {
                Some(scale) if scale != 0.0 => scale,
                _ => inv_sqrt(head_dim_k),
            },
            AttnScale::EmbdPerHeadAt { n_layers: special } if special == n_layers => {
                inv_sqrt(n_embd / n_heads[0])
            }
            AttnScale::EmbdPerHeadAt { .. } => inv_sqrt(head_dim_k),
        };
        let layers = (0..n_layers)
            .map(|i| LayerParams {
                n_heads: n_heads[i],
                n_kv_heads: n_kv_heads[i],
                head_dim_k,
                head_dim_v,
                n_ff: n_ff[i],
                window: windows[i],
                rotates: match spec.no_rope {
                    NoRope::Never => true,
                    NoRope::Every(n) => !(i + 1).is_multiple_of(n),
                    NoRope::UnlessFinetuned => finetuned,
                    NoRope::Always => false,
                },
                attn_scale,
            })
            .collect::<Vec<_>>();

        let causal = gguf.metadata().bool(&keys.name("attention.causal"))?;
        let both_ways = causal.map_or(spec.both_ways, |causal| !causal);
        if both_ways && windows.iter().any(Option::is_some) {
            return Err(keys.bad("attention.causal", false, "true where layers have a window"));
        }
        let pooling = match keys.count("pooling_type")?.unwrap_or(0) {
            0 => None,
            id => Some(Pooling::from_id(id).ok_or_else(|| {
                keys.bad("pooling_type", id, "0 (none), 1 (mean), 2 (cls), 3 (last) or 4 (rank)")
            })?),
        };

        let scale = |key: &str| -> Result<f32, ModelError> {
            Ok(keys.number(key)?.filter(|scale| *scale != 0.0).unwrap_or(1.0))
        };
        let cap = |default: Option<f32>, key: &str| -> Result<Option<f32>, ModelError> {
            let Some(default) = default else { return Ok(None) };
            Ok(Some(keys.number(key)?.unwrap_or(default)).filter(|cap| *cap != 0.0))
        };
        let (residual_scale, logit_scale) = if spec.residual_and_logit_scale {
            (scale("residual_scale")?, scale("logit_scale")?)
        } else {
            (1.0, 1.0)
        };
        Ok(Self {
            n_embd,
            n_vocab,
            n_ctx_train,
            norm_eps,
            both_ways,
            pooling,
            embd_scale: match spec.embd_scale {
                EmbdScale::One => 1.0,
                EmbdScale::SqrtEmbd => (n_embd as f32).sqrt(),
                EmbdScale::Key => scale("embedding_scale")?,
            },
            residual_scale,
            logit_scale,
            attn_soft_cap: cap(spec.soft_caps.attn, "attn_logit_softcapping")?,
            logit_soft_cap: cap(spec.soft_caps.logits, "final_logit_softcapping")?,
            rope,
            window_rope,
            experts: experts(&keys, &layers)?,
            layers,
        })
    }
}

fn windows(keys: &Keys<'_>, n_layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let Window::Pattern { period, default } = keys.spec.window else {
        return Ok(vec![None; n_layers]);
    };
    let window = keys.count("attention.sliding_window")?.or(default).filter(|window| *window > 0);
    let key = "attention.sliding_window_pattern";
    if matches!(keys.gguf.metadata().get(&keys.name(key)), Some(Value::Array(_))) {
        let windowed = keys.per_layer(key, n_layers)?.unwrap_or_default();
        return Ok(windowed.iter().map(|windowed| window.filter(|_| *windowed != 0)).collect());
    }
    let period = keys.count(key)?.unwrap_or(period);
    Ok((0..n_layers).map(|i| window.filter(|_| period == 0 || i % period < period - 1)).collect())
}

fn experts(keys: &Keys<'_>, layers: &[LayerParams]) -> Result<Option<ExpertParams>, ModelError> {
    let Some(moe) = keys.spec.moe else { return Ok(None) };
    let n_experts = keys.count("expert_count")?.unwrap_or(0);
    if n_experts == 0 {
        return Ok(None);
    }
    if n_experts > 1 << 16 {
        return Err(keys.bad("expert_count", n_experts, "at most 65536"));
    }
    let n_used = keys.positive("expert_used_count")?;
    if n_used > n_experts {
        return Err(keys.bad(
            "expert_used_count",
            n_used,
            format!("at most expert_count, {n_experts}"),
        ));
    }
    let n_ff = match moe.width {
        ExpertWidth::FeedForward => layers[0].n_ff,
        ExpertWidth::Expert => keys
            .count("expert_feed_forward_length")?
            .filter(|n| *n > 0)
            .unwrap_or(layers[0].n_ff / n_used),
    };
    let n_ff_shared = keys
        .count("expert_shared_feed_forward_length")?
        .filter(|n| *n > 0)
        .unwrap_or(layers[0].n_ff);
    Ok(Some(ExpertParams { n_experts, n_used, n_ff, n_ff_shared }))
}
