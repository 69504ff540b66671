//! Gemma 1 to 3.

use super::PLAIN;
use crate::spec::{ArchSpec, AttnScale, EmbdScale, Norms, QkNorm, SoftCaps, Window, WindowRope};
use hurtle_kernels::elementwise::Activation;

/// Gemma.
pub(super) const GEMMA: ArchSpec = ArchSpec {
    name: "gemma",
    activation: Activation::GeluTanh,
    embd_scale: EmbdScale::SqrtEmbd,
    ..PLAIN
};

/// Gemma 2: soft caps, every other layer windowed.
pub(super) const GEMMA2: ArchSpec = ArchSpec {
    name: "gemma2",
    norms: Norms::PreAndPost,
    attn_scale: AttnScale::EmbdPerHeadAt { n_layers: 46 },
    window: Window::Pattern { period: 2, default: Some(4096) },
    soft_caps: SoftCaps { attn: Some(50.0), logits: Some(30.0) },
    ..GEMMA
};

/// Gemma 3: query and key norms, five windowed layers to one global.
pub(super) const GEMMA3: ArchSpec = ArchSpec {
    name: "gemma3",
    norms: Norms::PreAndPost,
    qk_norm: QkNorm::Head,
    attn_scale: AttnScale::EmbdPerHeadAt { n_layers: 62 },
    window: Window::Pattern { period: 6, default: None },
    window_rope: WindowRope::Own { base: 10_000 },
    soft_caps: SoftCaps { attn: None, logits: Some(0.0) },
    ..GEMMA
};
