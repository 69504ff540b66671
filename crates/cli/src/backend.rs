//! Who computes matrix products.
use anyhow::Result;
use clap::ValueEnum;
use hurtle_engine::MatmulBackend;
use std::sync::Arc;

/// Who computes matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    Hurtle,
    #[cfg_attr(not(feature = "ggml"), value(hide = true))]
    Ggml,
}

impl Backend {
    /// What to give the engine.
    ///
    /// # Errors
    /// If this hurtle was built without the backend.
    pub(crate) fn engine(self) -> Result<Option<Arc<dyn MatmulBackend>>> {
        match self {
            Backend::Hurtle => Ok(None),
            Backend::Ggml => ggml().map(Some),
        }
    }
}

#[cfg(feature = "ggml")]
fn ggml() -> Result<Arc<dyn MatmulBackend>> {
    let missing = hurtle_ggml::missing_features();
    if !missing.is_empty() {
        crate::terminal::say(&format!(
            "note: ggml was compiled without {}, which this processor has\n\
             hint: 'cargo xtask ggml hurtle' compiles it for this processor",
            missing.join(", ")
        ));
    }
    Ok(Arc::new(hurtle_ggml::Ggml::default()))
}

#[cfg(not(feature = "ggml"))]
fn ggml() -> Result<Arc<dyn MatmulBackend>> {
    crate::error::usage!(
        "--backend ggml: this hurtle was built without ggml\n\
         hint: in hurtle's source, 'cargo xtask ggml hurtle run --backend ggml ...' builds and runs one \
         with it; cmake, a C++ compiler and libclang must be installed"
    );
}
