//! The models, as data: one constant each.

use crate::vocabulary::Family;
use crate::vocabulary::{GEMMA3, GPT_OSS, LLAMA3, PHI4, QWEN, SMOLLM2};

/// The shape of a model: all that its speed and its size depend on, apart from the weight types.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The name to ask for it, as the aliases of downloads spell it: `qwen2.5-coder:1.5b`.
    pub name: &'static str,
    /// `general.architecture`.
    pub arch: &'static str,
    /// Layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Query heads.
    pub n_heads: usize,
    /// KV heads.
    pub n_kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Width of the feed-forward, or of what stands for it in a model with experts.
    pub n_ff: usize,
    /// Tokens.
    pub n_vocab: usize,
    /// Context the model was trained for.
    pub n_ctx: usize,
    /// The output shares the embedding's weights.
    pub tied: bool,
    /// Which projections have biases.
    pub bias: Bias,
    /// Queries, keys and values in one tensor, gate and up in another.
    pub fused: bool,
    /// Epsilon of the RMS norms.
    pub norm_eps: f32,
    /// Base of the rotary positions.
    pub rope_base: f32,
    /// How they are stretched.
    pub rope: Rope,
    /// Sliding window of the architecture's windowed layers.
    pub window: Option<usize>,
    /// Mixture of experts.
    pub experts: Option<Experts>,
    /// Vocabulary and chat template.
    pub family: &'static Family,
    /// The recipe its files usually have.
    pub mix: &'static str,
}

/// Which projections have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// None.
    None,
    /// Those to queries, keys and values.
    Qkv,
    /// All of attention and experts.
    All,
}

/// How rotary positions are stretched beyond the context of the first training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rope {
    /// Not at all.
    Plain,
    /// All by the same factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Llama 3's way, which a tensor of divisors describes; the original context is 8192.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
    },
    /// YaRN.
    Yarn {
        /// The factor.
        factor: f32,
        /// Context of the first training.
        n_ctx_orig: usize,
    },
    /// LongRoPE, with two tensors of divisors. The published ones were searched for; these rise
    /// evenly, which costs as much time.
    LongRope {
        /// Values of a head that rotate.
        n_rot: usize,
        /// Context of the first training.
        n_ctx_orig: usize,
    },
}

/// Mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// How many there are.
    pub n: usize,
    /// How many take part in a token.
    pub n_used: usize,
    /// Width of one.
    pub n_ff: usize,
}

impl Shape {
    /// Every known model.
    pub const ALL: &'static [&'static Shape] = &[
        &SMOLLM2_135M,
        &SMOLLM2_360M,
        &SMOLLM2_1_7B,
        &QWEN2_5_CODER_0_5B,
        &QWEN2_5_CODER_1_5B,
        &QWEN2_5_CODER_3B,
        &QWEN2_5_CODER_7B,
        &QWEN3_0_6B,
        &QWEN3_1_7B,
        &QWEN3_4B,
        &QWEN3_8B,
        &QWEN3_30B_A3B,
        &LLAMA3_2_1B,
        &LLAMA3_2_3B,
        &LLAMA3_1_8B,
        &GEMMA3_270M,
        &GEMMA3_1B,
        &GEMMA3_4B,
        &PHI4_MINI,
        &GPT_OSS_20B,
    ];

    /// The model of that name; case and punctuation do not count: `Llama-3.2-1B` is `llama3.2:1b`.
    pub fn find(name: &str) -> Option<&'static Shape> {
        let letters = |name: &str| -> String {
            name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase()
        };
        let name = letters(name);
        Self::ALL.iter().copied().find(|shape| letters(shape.name) == name)
    }
}

const SMOLLM2_135M: Shape = Shape {
    name: "smollm2:135m",
    arch: "llama",
    n_layers: 30,
    n_embd: 576,
    n_heads: 9,
    n_kv_heads: 3,
    head_dim: 64,
    n_ff: 1536,
    n_vocab: 49_152,
    n_ctx: 8192,
    tied: true,
    bias: Bias::None,
    fused: false,
    norm_eps: 1e-5,
    rope_base: 100_000.0,
    rope: Rope::Plain,
    window: None,
    experts: None,
    family: &SMOLLM2,
    mix: "Q4_K_M",
};

const SMOLLM2_360M: Shape = Shape {
    name: "smollm2:360m",
    n_layers: 32,
    n_embd: 960,
    n_heads: 15,
    n_kv_heads: 5,
    n_ff: 2560,
    ..SMOLLM2_135M
};

const SMOLLM2_1_7B: Shape = Shape {
    name: "smollm2:1.7b",
    n_layers: 24,
    n_embd: 2048,
    n_heads: 32,
    n_kv_heads: 32,
    n_ff: 8192,
    rope_base: 130_000.0,
    ..SMOLLM2_135M
};

const QWEN2_5_CODER_0_5B: Shape = Shape {
    name: "qwen2.5-coder:0.5b",
    arch: "qwen2",
    n_layers: 24,
    n_embd: 896,
    n_heads: 14,
    n_kv_heads: 2,
    head_dim: 64,
    n_ff: 4864,
    n_vocab: 151_936,
    n_ctx: 32_768,
    bias: Bias::Qkv,
    norm_eps: 1e-6,
    rope_base: 1e6,
    family: &QWEN,
    ..SMOLLM2_135M
};

const QWEN2_5_CODER_1_5B: Shape = Shape {
    name: "qwen2.5-coder:1.5b",
    n_layers: 28,
    n_embd: 1536,
    n_heads: 12,
    head_dim: 128,
    n_ff: 8960,
    ..QWEN2_5_CODER_0_5B
};

const QWEN2_5_CODER_3B: Shape = Shape {
    name: "qwen2.5-coder:3b",
    n_layers: 36,
    n_embd: 2048,
    n_heads: 16,
    n_ff: 11_008,
    ..QWEN2_5_CODER_1_5B
};

const QWEN2_5_CODER_7B: Shape = Shape {
    name: "qwen2.5-coder:7b",
    n_layers: 28,
    n_embd: 3584,
    n_heads: 28,
    n_kv_heads: 4,
    n_ff: 18_944,
    n_vocab: 152_064,
    tied: false,
    ..QWEN2_5_CODER_1_5B
};

const QWEN3_0_6B: Shape = Shape {
    name: "qwen3:0.6b",
    arch: "qwen3",
    n_layers: 28,
    n_embd: 1024,
    n_heads: 16,
    n_kv_heads: 8,
    head_dim: 128,
    n_ff: 3072,
    n_ctx: 40_960,
    bias: Bias::None,
    ..QWEN2_5_CODER_0_5B
};

const QWEN3_1_7B: Shape = Shape { name: "qwen3:1.7b", n_embd: 2048, n_ff: 6144, ..QWEN3_0_6B };

const QWEN3_4B: Shape =
    Shape { name: "qwen3:4b", n_layers: 36, n_embd: 2560, n_heads: 32, n_ff: 9728, ..QWEN3_0_6B };

const QWEN3_8B: Shape =
    Shape { name: "qwen3:8b", n_embd: 4096, n_ff: 12_288, tied: false, ..QWEN3_4B };

const QWEN3_30B_A3B: Shape = Shape {
    name: "qwen3:30b-a3b",
    arch: "qwen3moe",
    n_layers: 48,
    n_embd: 2048,
    n_heads: 32,
    n_kv_heads: 4,
    n_ff: 6144,
    tied: false,
    experts: Some(Experts { n: 128, n_used: 8, n_ff: 768 }),
    ..QWEN3_0_6B
};

const LLAMA3_2_1B: Shape = Shape {
    name: "llama3.2:1b",
    n_layers: 16,
    n_embd: 2048,
    n_heads: 32,
    n_kv_heads: 8,
    head_dim: 64,
    n_ff: 8192,
    n_vocab: 128_256,
    n_ctx: 131_072,
    rope_base: 500_000.0,
    rope: Rope::Llama3 { factor: 32.0 },
    family: &LLAMA3,
    ..SMOLLM2_135M
};

const LLAMA3_2_3B: Shape = Shape {
    name: "llama3.2:3b",
    n_layers: 28,
    n_embd: 3072,
    n_heads: 24,
    head_dim: 128,
    ..LLAMA3_2_1B
};

const LLAMA3_1_8B: Shape = Shape {
    name: "llama3.1:8b",
    n_layers: 32,
    n_embd: 4096,
    head_dim: 128,
    n_ff: 14_336,
    tied: false,
    rope: Rope::Llama3 { factor: 8.0 },
    ..LLAMA3_2_1B
};

const GEMMA3_270M: Shape = Shape {
    name: "gemma3:270m",
    arch: "gemma3",
    n_layers: 18,
    n_embd: 640,
    n_heads: 4,
    n_kv_heads: 1,
    head_dim: 256,
    n_ff: 2048,
    n_vocab: 262_144,
    n_ctx: 32_768,
    norm_eps: 1e-6,
    rope_base: 1e6,
    window: Some(512),
    family: &GEMMA3,
    ..SMOLLM2_135M
};

const GEMMA3_1B: Shape =
    Shape { name: "gemma3:1b", n_layers: 26, n_embd: 1152, n_ff: 6912, ..GEMMA3_270M };

const GEMMA3_4B: Shape = Shape {
    name: "gemma3:4b",
    n_layers: 34,
    n_embd: 2560,
    n_heads: 8,
    n_kv_heads: 4,
    n_ff: 10_240,
    n_vocab: 262_208,
    n_ctx: 131_072,
    rope: Rope::Linear { factor: 8.0 },
    window: Some(1024),
    ..GEMMA3_270M
};

const PHI4_MINI: Shape = Shape {
    name: "phi4-mini",
    arch: "phi3",
    n_layers: 32,
    n_embd: 3072,
    n_heads: 24,
    n_kv_heads: 8,
    head_dim: 128,
    n_ff: 8192,
    n_vocab: 200_064,
    n_ctx: 131_072,
    fused: true,
    rope_base: 10_000.0,
    rope: Rope::LongRope { n_rot: 96, n_ctx_orig: 4096 },
    family: &PHI4,
    ..SMOLLM2_135M
};

const GPT_OSS_20B: Shape = Shape {
    name: "gpt-oss:20b",
    arch: "gpt-oss",
    n_layers: 24,
    n_embd: 2880,
    n_heads: 64,
    n_kv_heads: 8,
    head_dim: 64,
    n_ff: 2880,
    n_vocab: 201_088,
    n_ctx: 131_072,
    tied: false,
    bias: Bias::All,
    rope_base: 150_000.0,
    rope: Rope::Yarn { factor: 32.0, n_ctx_orig: 4096 },
    window: Some(128),
    experts: Some(Experts { n: 32, n_used: 4, n_ff: 2880 }),
    family: &GPT_OSS,
    mix: "MXFP4_MOE",
    ..SMOLLM2_135M
};
