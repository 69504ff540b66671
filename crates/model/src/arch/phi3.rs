//! Microsoft's Phi-3, 3.5 and 4.

use super::PLAIN;
use crate::spec::ArchSpec;

/// Phi-3, Phi-3.5, Phi-4, Phi-4-mini. Projections are fused in the file, which the loader knows for
/// every architecture. The files' `sliding_window` is ignored, as in llama.cpp: it does not say
/// which layers it is meant for.
pub(super) const PHI3: ArchSpec = ArchSpec { name: "phi3", ..PLAIN };
