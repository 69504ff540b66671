//! BERT and what is built like it: encoders that make embeddings.

use super::PLAIN;
use crate::spec::{ArchSpec, FfnKind, Head, Input, NoRope, NormKind, Norms};
use hurtle_kernels::elementwise::Activation;

/// BERT, RoBERTa and XLM-RoBERTa: all-MiniLM, bge, e5, arctic-embed and others.
pub(super) const BERT: ArchSpec = ArchSpec {
    name: "bert",
    input: Input::TypesAndPositions,
    no_rope: NoRope::Always,
    ffn: FfnKind::Plain,
    activation: Activation::GeluTanh,
    ..NOMIC_BERT
};

/// nomic-embed-text 1 and 1.5: rotary positions and a gated feed-forward.
pub(super) const NOMIC_BERT: ArchSpec = ArchSpec {
    name: "nomic-bert",
    input: Input::Types,
    norm: NormKind::Layer,
    norms: Norms::PostSum,
    both_ways: true,
    head: Head::None,
    ..PLAIN
};
