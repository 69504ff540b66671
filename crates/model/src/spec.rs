//! What distinguishes one architecture from another, as data.
//!
//! There is one forward pass (`decoder.rs`). An architecture is a constant [`ArchSpec`]
//! ([`crate::arch`]) that says which of its pieces it uses; a file's metadata then fills in the
//! numbers ([`crate::Hparams`]). A new kind of layer is a new variant of one of these enums, and the
//! compiler lists the places that have to know it.

use hurtle_kernels::elementwise::{Activation, RopeStyle};

/// An architecture.
#[derive(Debug, Clone, Copy)]
pub struct ArchSpec {
    /// `general.architecture`, which is also the prefix of its metadata keys.
    pub name: &'static str,
    /// Which values of a head rotate together.
    pub rope: RopeStyle,
    /// Layers that do not rotate at all.
    pub no_rope: NoRope,
    /// Tensors that are added to the embeddings or normalize them.
    pub input: Input,
    /// What a norm computes.
    pub norm: NormKind,
    /// Where a layer normalizes.
    pub norms: Norms,
    /// Normalization of queries and keys.
    pub qk_norm: QkNorm,
    /// Factor of the attention scores.
    pub attn_scale: AttnScale,
    /// Learned per-head logits that take part in the attention softmax (`attn_sinks`).
    pub attn_sinks: bool,
    /// Whether a token also sees those behind it, unless the key `attention.causal` says otherwise.
    pub both_ways: bool,
    /// Which layers see only a window.
    pub window: Window,
    /// Rotary positions in windowed layers.
    pub window_rope: WindowRope,
    /// The shape of a feed-forward network.
    pub ffn: FfnKind,
    /// Behind the first projections of a feed-forward network.
    pub activation: Activation,
    /// Mixture of experts, if the file has experts.
    pub moe: Option<Moe>,
    /// Factor of the token embeddings.
    pub embd_scale: EmbdScale,
    /// Soft-capping of attention scores and logits.
    pub soft_caps: SoftCaps,
    /// Whether `residual_scale` and `logit_scale` are read (granite).
    pub residual_and_logit_scale: bool,
    /// What follows the last layer.
    pub head: Head,
    /// What a classifier makes of a text, if the file has one.
    pub ranking: Ranking,
}

/// What becomes of the token embeddings before the first layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    Tokens,
    /// Learned positions are added (`position_embd`).
    Positions,
    /// The embedding of token type 0 is added, if there is one (`token_types`), and the sum normalized
    /// (`token_embd_norm`).
    Types,
    /// As `Types`, with learned positions before the norm.
    TypesAndPositions,
}

/// What a norm computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMS norm.
    Rms,
    /// Layer norm: without the mean, and with a bias if the file has one.
    Layer,
}

/// The shape of a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FfnKind {
    /// `down · (activation(gate · x) * (up · x))`.
    Gated,
    /// `down · activation(up · x)`.
    Plain,
}

/// What a classifier makes of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranking {
    /// Scores of its first token.
    First,
    /// Scores of its last token, made to sum to 1 by a softmax.
    LastSoftmax,
}

/// What follows the last layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A norm (`output_norm`) and the projection to the vocabulary (`output`, else `token_embd`).
    Vocabulary,
    /// Nothing: the model makes embeddings.
    None,
}

/// Where norms stand around attention and feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// Before each (`attn_norm`, and this tensor before the feed-forward).
    Pre {
        /// `ffn_norm`, or `post_attention_norm` in gpt-oss.
        ffn: &'static str,
    },
    /// Before and after each, the latter on what is added (`post_attention_norm`, `post_ffw_norm`).
    PreAndPost,
    /// Only after each.
    Post,
    /// Only on the sums: of a layer's input and attention (`attn_output_norm`), and of that and the
    /// feed-forward (`layer_output_norm`).
    PostSum,
    /// One norm (`attn_norm`) before attention and feed-forward, which stand side by side.
    Parallel,
}

/// Normalization of queries and keys before rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// RMS norm of each head, weights shared by the heads (`[head_dim]`).
    Head,
    /// RMS norm of all heads together (`[n_heads * head_dim]`).
    Row,
}

/// Layers without rotary positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRope {
    /// All layers rotate.
    Never,
    /// Every n-th layer does not (layers n-1, 2n-1, ...).
    Every(usize),
    /// No layer does if `rope.scaling.finetuned` is false (granite's switch).
    UnlessFinetuned,
    /// No layer does.
    Always,
}

/// Factor of the attention scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttnScale {
    /// `1 / sqrt(head_dim)`.
    HeadDim,
    /// The key `attention.scale`, else as above.
    Key,
    /// As `HeadDim`, but `1 / sqrt(n_embd / n_heads)` for a model of this many layers (27B of Gemma 2 and 3).
    EmbdPerHeadAt {
        /// The number of layers.
        n_layers: usize,
    },
}

/// Sliding windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// All layers see everything.
    None,
    /// If `attention.sliding_window` says so: in each run of `period` layers, all but the last.
    Pattern {
        /// Length of the run, unless `attention.sliding_window_pattern` says otherwise.
        period: usize,
        /// Window where the key is missing; `None`: no windows then.
        default: Option<usize>,
    },
}

/// Rotary positions in windowed layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowRope {
    /// As in the other layers, except for `rope.freq_base_swa`.
    Same,
    /// Unscaled, with a base of their own.
    Own {
        /// Base where `rope.freq_base_swa` is missing.
        base: u32,
    },
    /// The same base, without any scaling.
    Unscaled,
}

/// Factor of the token embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbdScale {
    /// 1.
    One,
    /// `sqrt(n_embd)`.
    SqrtEmbd,
    /// The key `embedding_scale`, else 1.
    Key,
}

/// `cap * tanh(x / cap)`, on attention scores and on logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftCaps {
    /// Cap of attention scores where `attn_logit_softcapping` is missing; `None`: never capped.
    pub attn: Option<f32>,
    /// Cap of logits where `final_logit_softcapping` is missing (0: uncapped); `None`: never capped.
    pub logits: Option<f32>,
}

/// Mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moe {
    /// From router logits to weights.
    pub gating: Gating,
    /// An expert that always takes part, weighted by `sigmoid(ffn_gate_inp_shexp · x)`.
    pub shared: bool,
    /// Which key holds the width of an expert.
    pub width: ExpertWidth,
}

/// From router logits to the weights of the chosen experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts; the weights of the chosen ones as they are.
    Softmax,
    /// Softmax over all experts; the weights of the chosen ones made to sum to 1.
    SoftmaxNormalized,
    /// Softmax over the chosen ones only.
    SoftmaxOfChosen,
}

/// Which key holds the width of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertWidth {
    /// `feed_forward_length`.
    FeedForward,
    /// `expert_feed_forward_length`, else `feed_forward_length / expert_used_count`.
    Expert,
}
