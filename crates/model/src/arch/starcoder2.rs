//! BigCode's StarCoder 2.

use super::PLAIN;
use crate::spec::{ArchSpec, FfnKind, NormKind};
use hurtle_kernels::elementwise::Activation;

/// StarCoder 2. The files' sliding window is ignored, as in llama.cpp.
pub(super) const STARCODER2: ArchSpec = ArchSpec {
    name: "starcoder2",
    norm: NormKind::Layer,
    ffn: FfnKind::Plain,
    activation: Activation::GeluTanh,
    ..PLAIN
};
