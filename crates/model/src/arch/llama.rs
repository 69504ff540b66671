//! Llama and what is built like it (Mistral, Mixtral, SmolLM2, TinyLlama), and SmolLM3.

use super::PLAIN;
use crate::spec::{ArchSpec, ExpertWidth, Gating, Moe, NoRope};
use hurtle_kernels::elementwise::RopeStyle;

/// Llama 1 to 3, Mistral, Mixtral, SmolLM2, TinyLlama.
pub(super) const LLAMA: ArchSpec = ArchSpec {
    name: "llama",
    rope: RopeStyle::Norm,
    moe: Some(Moe {
        gating: Gating::SoftmaxNormalized,
        shared: false,
        width: ExpertWidth::FeedForward,
    }),
    ..PLAIN
};

/// SmolLM3: every fourth layer is without positions.
pub(super) const SMOLLM3: ArchSpec =
    ArchSpec { name: "smollm3", rope: RopeStyle::Norm, no_rope: NoRope::Every(4), ..PLAIN };
