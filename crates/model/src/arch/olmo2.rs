//! AI2's OLMo 2 and 3.

use super::PLAIN;
use crate::spec::{ArchSpec, Norms, QkNorm, Window, WindowRope};

/// OLMo 2: norms only after attention and feed-forward. OLMo 3 adds windows.
pub(super) const OLMO2: ArchSpec = ArchSpec {
    name: "olmo2",
    norms: Norms::Post,
    qk_norm: QkNorm::Row,
    window: Window::Pattern { period: 4, default: None },
    window_rope: WindowRope::Unscaled,
    ..PLAIN
};
