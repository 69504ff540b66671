//! What a file of some shape holds: tensors and metadata.

use crate::shape::{Bias, Experts, Rope, Shape};
use hurtle_gguf::{Metadata, Value};
use hurtle_model::mix::{Mix, MixModel};
use hurtle_model::spec::{ArchSpec, Norms, QkNorm};
use hurtle_quant::WeightType;

/// A tensor to be written.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Fastest-varying first.
    pub(crate) dims: Vec<u64>,
    pub(crate) ty: WeightType,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    /// As F32.
    Values(Vec<f32>),
    /// Around 0, with this standard deviation.
    Random { sd: f64 },
}

impl Tensor {
    pub(crate) fn n_values(&self) -> u64 {
        self.dims.iter().product()
    }

    pub(crate) fn n_bytes(&self) -> u64 {
        self.n_values() / self.ty.block_len() as u64 * self.ty.block_bytes() as u64
    }
}

/// Standard deviation of what is added to a sum: biases and attention sinks.
const BIAS_SD: f64 = 0.02;

/// All tensors, in the order of the file.
pub(crate) fn tensors(shape: &Shape, spec: &ArchSpec, mix: Mix) -> Vec<Tensor> {
    let Shape { n_embd, n_vocab, head_dim, .. } = *shape;
    let model = MixModel {
        n_layers: shape.n_layers,
        n_gqa: shape.n_heads / shape.n_kv_heads.max(1),
        n_experts: shape.experts.map_or(0, |experts| experts.n),
        tied: shape.tied,
    };
    let mut list = List { mix, model, tensors: Vec::new() };
    list.matrix("token_embd", &[n_embd, n_vocab]);
    for (name, factors) in rope_factors(shape) {
        list.values(name, factors);
    }
    for i in 0..shape.n_layers {
        let blk = |part: &str| format!("blk.{i}.{part}");
        let (n_q, n_kv) = (shape.n_heads * head_dim, shape.n_kv_heads * head_dim);
        let (attn_post, ffn_post) = ("post_attention_norm", "post_ffw_norm");
        // Before and behind attention, before and behind the feed-forward.
        let norms = match spec.norms {
            Norms::Pre { ffn } => [Some("attn_norm"), None, Some(ffn), None],
            Norms::PreAndPost => {
                [Some("attn_norm"), Some(attn_post), Some("ffn_norm"), Some(ffn_post)]
            }
            Norms::Post => [None, Some(attn_post), None, Some(ffn_post)],
            Norms::PostSum => [None, Some("attn_output_norm"), None, Some("layer_output_norm")],
            Norms::Parallel => [Some("attn_norm"), None, None, None],
        };
        let norms = norms.map(|norm| norm.map(blk));
        list.norm_if(norms[0].as_deref(), n_embd);
        let qkv: &[(&str, usize)] = if shape.fused {
            &[("attn_qkv", n_q + 2 * n_kv)]
        } else {
            &[("attn_q", n_q), ("attn_k", n_kv), ("attn_v", n_kv)]
        };
        for (part, n_out) in qkv {
            list.linear(&blk(part), n_embd, *n_out, shape.bias != Bias::None);
        }
        let qk_norm = match spec.qk_norm {
            QkNorm::None => None,
            QkNorm::Head => Some((head_dim, head_dim)),
            QkNorm::Row => Some((n_q, n_kv)),
        };
        if let Some((q, k)) = qk_norm {
            list.norm(&blk("attn_q_norm"), q);
            list.norm(&blk("attn_k_norm"), k);
        }
        if spec.attn_sinks {
            list.random(blk("attn_sinks.weight"), &[shape.n_heads], BIAS_SD);
        }
        list.linear(&blk("attn_output"), n_q, n_embd, shape.bias == Bias::All);
        list.norm_if(norms[1].as_deref(), n_embd);
        list.norm_if(norms[2].as_deref(), n_embd);
        let bias = shape.bias == Bias::All;
        match shape.experts {
            Some(Experts { n, n_ff, .. }) => {
                list.linear(&blk("ffn_gate_inp"), n_embd, n, bias);
                list.experts(&blk("ffn_gate_exps"), n_embd, n_ff, n, bias);
                list.experts(&blk("ffn_up_exps"), n_embd, n_ff, n, bias);
                list.experts(&blk("ffn_down_exps"), n_ff, n_embd, n, bias);
            }
            None if shape.fused => {
                list.linear(&blk("ffn_up"), n_embd, 2 * shape.n_ff, bias);
                list.linear(&blk("ffn_down"), shape.n_ff, n_embd, bias);
            }
            None => {
                list.linear(&blk("ffn_gate"), n_embd, shape.n_ff, bias);
                list.linear(&blk("ffn_up"), n_embd, shape.n_ff, bias);
                list.linear(&blk("ffn_down"), shape.n_ff, n_embd, bias);
            }
        }
        list.norm_if(norms[3].as_deref(), n_embd);
    }
    list.norm("output_norm", n_embd);
    if !shape.tied {
        list.matrix("output", &[n_embd, n_vocab]);
    }
    list.tensors
}

struct List {
    mix: Mix,
    model: MixModel,
    tensors: Vec<Tensor>,
}

impl List {
    /// So that sums over a row have the size of what is summed up, and nothing grows from layer to
    /// layer beyond what norms undo.
    fn matrix(&mut self, name: &str, dims: &[usize]) {
        self.random(format!("{name}.weight"), dims, 1.0 / (dims[0] as f64).sqrt());
    }

    fn linear(&mut self, name: &str, n_in: usize, n_out: usize, bias: bool) {
        self.matrix(name, &[n_in, n_out]);
        if bias {
            self.random(format!("{name}.bias"), &[n_out], BIAS_SD);
        }
    }

    fn experts(&mut self, name: &str, n_in: usize, n_out: usize, n: usize, bias: bool) {
        self.matrix(name, &[n_in, n_out, n]);
        if bias {
            self.random(format!("{name}.bias"), &[n_out, n], BIAS_SD);
        }
    }

    fn norm(&mut self, name: &str, len: usize) {
        self.values(&format!("{name}.weight"), vec![1.0; len]);
    }

    fn norm_if(&mut self, name: Option<&str>, len: usize) {
        if let Some(name) = name {
            self.norm(name, len);
        }
    }

    fn values(&mut self, name: &str, values: Vec<f32>) {
        let dims = vec![values.len() as u64];
        let content = Content::Values(values);
        self.tensors.push(Tensor { name: name.into(), dims, ty: WeightType::F32, content });
    }

    fn random(&mut self, name: String, dims: &[usize], sd: f64) {
        let dims: Vec<u64> = dims.iter().map(|n| *n as u64).collect();
        let ty = self.mix.tensor_type(&name, &dims, &self.model);
        self.tensors.push(Tensor { name, dims, ty, content: Content::Random { sd } });
    }
}

/// Tensors of divisors of the rotary frequencies.
fn rope_factors(shape: &Shape) -> Vec<(&'static str, Vec<f32>)> {
    match shape.rope {
        Rope::Plain | Rope::Linear { .. } | Rope::Yarn { .. } => vec![],
        Rope::Llama3 { factor } => {
            let n_rot = shape.head_dim;
            let pairs = (0..n_rot / 2).map(|i| {
                let exponent = 2.0 * i as f64 / n_rot as f64;
                llama3_divisor(f64::from(shape.rope_base).powf(exponent), f64::from(factor)) as f32
            });
            vec![("rope_freqs.weight", pairs.collect())]
        }
        Rope::LongRope { n_rot, n_ctx_orig } => {
            let pairs = n_rot / 2;
            let most = shape.n_ctx as f32 / n_ctx_orig as f32;
            let long = (0..pairs).map(|i| most.powf(i as f32 / pairs as f32)).collect();
            vec![
                ("rope_factors_long.weight", long),
                ("rope_factors_short.weight", vec![1.0; pairs]),
            ]
        }
    }
}

/// Llama 3.1's divisor of a frequency: 1 for waves that fit four times into the original context of
/// 8192 tokens, `factor` for those that do not fit once, and between them a smooth way from one to the
/// other. `1 / freq` is the wave's length over 2 pi.
fn llama3_divisor(inverse_freq: f64, factor: f64) -> f64 {
    const N_CTX_ORIG: f64 = 8192.0;
    const MOST_WAVES: f64 = 4.0;
    let waves = N_CTX_ORIG / (std::f64::consts::TAU * inverse_freq);
    let smooth = ((waves - 1.0) / (MOST_WAVES - 1.0)).clamp(0.0, 1.0);
    1.0 / ((1.0 - smooth) / factor + smooth)
}

/// The keys other than those of the tokenizer.
pub(crate) fn metadata(shape: &Shape, mix: Mix) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", shape.arch);
    metadata.insert("general.type", "model");
    metadata.insert("general.name", format!("{} (random weights)", shape.name));
    metadata.insert("general.quantization_version", 2u32);
    if let Some(file_type) = mix.file_type() {
        metadata.insert("general.file_type", file_type);
    }
    let mut key = |key: &str, value: Value| {
        metadata.insert(format!("{}.{key}", shape.arch), value);
    };
    let count = |n: usize| Value::U32(n as u32);
    key("block_count", count(shape.n_layers));
    key("context_length", count(shape.n_ctx));
    key("embedding_length", count(shape.n_embd));
    key("feed_forward_length", count(shape.n_ff));
    key("vocab_size", count(shape.n_vocab));
    key("attention.head_count", count(shape.n_heads));
    key("attention.head_count_kv", count(shape.n_kv_heads));
    key("attention.key_length", count(shape.head_dim));
    key("attention.value_length", count(shape.head_dim));
    key("attention.layer_norm_rms_epsilon", shape.norm_eps.into());
    if let Some(window) = shape.window {
        key("attention.sliding_window", count(window));
    }
    if let Some(Experts { n, n_used, n_ff }) = shape.experts {
        key("expert_count", count(n));
        key("expert_used_count", count(n_used));
        key("expert_feed_forward_length", count(n_ff));
    }
    key("rope.freq_base", shape.rope_base.into());
    let n_rot = match shape.rope {
        Rope::LongRope { n_rot, .. } => n_rot,
        _ => shape.head_dim,
    };
    key("rope.dimension_count", count(n_rot));
    match shape.rope {
        Rope::Plain | Rope::Llama3 { .. } => {}
        Rope::Linear { factor } => {
            key("rope.scaling.type", "linear".into());
            key("rope.scaling.factor", factor.into());
        }
        Rope::Yarn { factor, n_ctx_orig } => {
            key("rope.scaling.type", "yarn".into());
            key("rope.scaling.factor", factor.into());
            key("rope.scaling.original_context_length", count(n_ctx_orig));
        }
        Rope::LongRope { n_ctx_orig, .. } => {
            // As the paper has it (arXiv:2402.13753): sqrt(1 + ln(scale) / ln(original context)).
            let (n_ctx, n_ctx_orig_f) = (shape.n_ctx as f32, n_ctx_orig as f32);
            let magnitude = (1.0 + (n_ctx / n_ctx_orig_f).ln() / n_ctx_orig_f.ln()).sqrt();
            key("rope.scaling.original_context_length", count(n_ctx_orig));
            key("rope.scaling.attn_factor", magnitude.into());
        }
    }
    metadata
}
