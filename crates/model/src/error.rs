use std::fmt;

/// Why a file cannot be run, or a batch not be processed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file itself is at fault.
    #[error(transparent)]
    Gguf(#[from] hurtle_gguf::Error),
    /// There is no such architecture here.
    #[error("{file}: architecture {arch:?} is not supported\nhint: supported are {}", Known)]
    UnknownArch {
        /// The file.
        file: String,
        /// `general.architecture`.
        arch: String,
    },
    /// A key that the architecture needs is not there.
    #[error("{file}: the key {key} is missing")]
    MissingKey {
        /// The file.
        file: String,
        /// The key.
        key: String,
    },
    /// A key's value makes no sense.
    #[error("{file}: {key} is {found}, but must be {expected}")]
    BadValue {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// A tensor that the architecture needs is not there.
    #[error(
        "{file}: tensor {tensor} is missing; the architecture {arch} needs it, with shape {shape:?}\n\
         hint: the file may be incomplete, or made for another version of this architecture"
    )]
    MissingTensor {
        /// The file.
        file: String,
        /// The architecture.
        arch: &'static str,
        /// The tensor.
        tensor: String,
        /// Its shape, fastest-varying size first.
        shape: Vec<u64>,
    },
    /// A tensor has another shape than the metadata says.
    #[error(
        "{file}: tensor {tensor}: expected shape {expected:?}, found {found:?}\n\
         hint: the file contradicts its own metadata; get it from another source"
    )]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// From the metadata.
        expected: Vec<u64>,
        /// From the file.
        found: Vec<u64>,
    },
    /// A tensor's type holds no weights.
    #[error("{file}: tensor {tensor} is of type {ty}, which cannot hold weights")]
    WeightType {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: hurtle_quant::WeightType,
    },
    /// The file holds tensors that this architecture does not know: running it would be wrong.
    #[error(
        "{file}: {} tensors are unknown to the architecture {arch}, among them {}\n\
         hint: the model needs something that hurtle does not do yet; its answers would be wrong",
        tensors.len(), tensors.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ")
    )]
    UnknownTensors {
        /// The file.
        file: String,
        /// The architecture.
        arch: &'static str,
        /// The tensors.
        tensors: Vec<String>,
    },
    /// A backend cannot take the model's weights.
    #[error(
        "{file}: tensor {tensor}: {source}\nhint: run the model without the backend ({backend})"
    )]
    Backend {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The backend.
        backend: String,
        /// What it says.
        source: hurtle_kernels::backend::BackendError,
    },
    /// Logits of a model that has none.
    #[error(
        "the architecture {arch} makes embeddings: it has no output layer and predicts no text\n\
         hint: 'hurtle logits' prints the embedding of token ids"
    )]
    NoLogits {
        /// The architecture.
        arch: &'static str,
    },
    /// Scores of a model that does not rank.
    #[error("the model has no classifier: it ranks nothing")]
    NoClassifier,
    /// A part of a sequence, where each token sees all of it.
    #[error(
        "a sequence of this model must be processed in one batch, because its tokens see those behind \
         them; {n_before} were processed before"
    )]
    SplitSequence {
        /// Tokens of the sequence in the cache.
        n_before: usize,
    },
    /// A position for which the model has no embedding.
    #[error(
        "the sequence has more than {n_positions} tokens, but the model has learned no positions beyond \
         that\nhint: shorten the text"
    )]
    Position {
        /// Positions that the model has.
        n_positions: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token {id} is not in the vocabulary, which has {n_vocab} tokens (0 to {})", n_vocab - 1)]
    Token {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
}

/// The names of all architectures, for a message.
struct Known;

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, spec) in crate::arch::ALL.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, spec.name)?;
        }
        Ok(())
    }
}
