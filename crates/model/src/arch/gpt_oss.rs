//! OpenAI's open-weight models.

use super::PLAIN;
use crate::spec::{ArchSpec, ExpertWidth, Gating, Moe, Norms, Window};
use hurtle_kernels::elementwise::Activation;

/// gpt-oss 20B and 120B: experts with biases, attention sinks, every other layer windowed.
pub(super) const GPT_OSS: ArchSpec = ArchSpec {
    name: "gpt-oss",
    norms: Norms::Pre { ffn: "post_attention_norm" },
    attn_sinks: true,
    window: Window::Pattern { period: 2, default: None },
    activation: Activation::SwigluOai,
    moe: Some(Moe { gating: Gating::SoftmaxOfChosen, shared: false, width: ExpertWidth::Expert }),
    ..PLAIN
};
