//! TII's Falcon.

use super::PLAIN;
use crate::spec::{ArchSpec, FfnKind, NormKind, Norms};
use hurtle_kernels::elementwise::Activation;

/// Falcon 7B. The 40B model has a norm more, which the loader reports as an unknown tensor.
pub(super) const FALCON: ArchSpec = ArchSpec {
    name: "falcon",
    norm: NormKind::Layer,
    norms: Norms::Parallel,
    ffn: FfnKind::Plain,
    activation: Activation::GeluTanh,
    ..PLAIN
};
