//! OpenAI's GPT-2.

use super::PLAIN;
use crate::spec::{ArchSpec, FfnKind, Input, NoRope, NormKind};
use hurtle_kernels::elementwise::Activation;

/// GPT-2: learned positions.
pub(super) const GPT2: ArchSpec = ArchSpec {
    name: "gpt2",
    input: Input::Positions,
    norm: NormKind::Layer,
    no_rope: NoRope::Always,
    ffn: FfnKind::Plain,
    activation: Activation::GeluTanh,
    ..PLAIN
};
