//! Qwen 2, 2.5 and 3, dense and with experts.

use super::PLAIN;
use crate::spec::{ArchSpec, ExpertWidth, Gating, Moe, QkNorm, Ranking};

/// Qwen 2 and 2.5.
pub(super) const QWEN2: ArchSpec = ArchSpec { name: "qwen2", ..PLAIN };

/// Qwen 1.5 and 2 with experts, one of them shared.
pub(super) const QWEN2MOE: ArchSpec = ArchSpec {
    name: "qwen2moe",
    moe: Some(Moe { gating: Gating::Softmax, shared: true, width: ExpertWidth::Expert }),
    ..PLAIN
};

/// Qwen 3, also its embedding models and rerankers.
pub(super) const QWEN3: ArchSpec =
    ArchSpec { name: "qwen3", qk_norm: QkNorm::Head, ranking: Ranking::LastSoftmax, ..PLAIN };

/// Qwen 3 with experts.
pub(super) const QWEN3MOE: ArchSpec = ArchSpec {
    name: "qwen3moe",
    moe: Some(Moe { gating: Gating::SoftmaxNormalized, shared: false, width: ExpertWidth::Expert }),
    ..QWEN3
};
