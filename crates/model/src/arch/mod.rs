//! The architectures that hurtle runs: one constant each.

mod bert;
mod falcon;
mod gemma;
mod gpt2;
mod gpt_oss;
mod granite;
mod llama;
mod olmo2;
mod phi3;
mod qwen;
mod starcoder2;

use crate::spec::{
    ArchSpec, AttnScale, EmbdScale, FfnKind, Head, Input, NoRope, NormKind, Norms, QkNorm, Ranking,
    SoftCaps, Window, WindowRope,
};
use hurtle_kernels::elementwise::{Activation, RopeStyle};

/// Every architecture, in alphabetical order.
pub const ALL: &[&ArchSpec] = &[
    &bert::BERT,
    &falcon::FALCON,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gpt_oss::GPT_OSS,
    &gpt2::GPT2,
    &granite::GRANITE,
    &llama::LLAMA,
    &bert::NOMIC_BERT,
    &olmo2::OLMO2,
    &phi3::PHI3,
    &qwen::QWEN2,
    &qwen::QWEN2MOE,
    &qwen::QWEN3,
    &qwen::QWEN3MOE,
    &llama::SMOLLM3,
    &starcoder2::STARCODER2,
];

/// The architecture of that name.
pub fn find(name: &str) -> Option<&'static ArchSpec> {
    ALL.iter().copied().find(|spec| spec.name == name)
}

/// What most of them share: the plain pre-norm transformer with a gated feed-forward.
const PLAIN: ArchSpec = ArchSpec {
    name: "",
    rope: RopeStyle::Neox,
    no_rope: NoRope::Never,
    input: Input::Tokens,
    norm: NormKind::Rms,
    norms: Norms::Pre { ffn: "ffn_norm" },
    qk_norm: QkNorm::None,
    attn_scale: AttnScale::HeadDim,
    attn_sinks: false,
    both_ways: false,
    window: Window::None,
    window_rope: WindowRope::Same,
    ffn: FfnKind::Gated,
    activation: Activation::Silu,
    moe: None,
    embd_scale: EmbdScale::One,
    soft_caps: SoftCaps { attn: None, logits: None },
    residual_and_logit_scale: false,
    head: Head::Vocabulary,
    ranking: Ranking::First,
};

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_sorted_and_unique() {
        assert!(super::ALL.is_sorted_by(|a, b| a.name < b.name));
        assert!(super::find("llama").is_some() && super::find("").is_none());
    }
}
