//! IBM's Granite 3.

use super::PLAIN;
use crate::spec::{ArchSpec, AttnScale, EmbdScale, NoRope};
use hurtle_kernels::elementwise::RopeStyle;

/// Granite: Llama with four scales.
pub(super) const GRANITE: ArchSpec = ArchSpec {
    name: "granite",
    rope: RopeStyle::Norm,
    no_rope: NoRope::UnlessFinetuned,
    attn_scale: AttnScale::Key,
    embd_scale: EmbdScale::Key,
    residual_and_logit_scale: true,
    ..PLAIN
};
