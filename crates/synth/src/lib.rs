//! GGUF files with the shapes of known models and random weights.
//!
//! How fast a model runs, and in how much memory, depends on its shape and its weight types, not on
//! what it has learned. So a file of the right shape answers in a minute whether a machine is large
//! enough for a model, before a download of many gigabytes; it also tests loaders and kernels on
//! shapes that no test could carry along.
//!
//! ```text
//! shape.rs       the models, one constant each
//! vocabulary.rs  tokens of the right number, with the model's special ones
//! tensors.rs     names, sizes and metadata, as the architecture's specification asks for them
//! random.rs      random blocks of every weight type, in parallel
//! ```
//!
//! A file depends on the model, the recipe and the seed alone, not on the number of threads.
#![forbid(unsafe_code)]

mod random;
mod shape;
mod tensors;
mod vocabulary;

pub use hurtle_model::mix::Mix;
pub use shape::{Bias, Experts, Rope, Shape};
pub use vocabulary::Family;

use hurtle_gguf::{Metadata, Writer};
use hurtle_model::arch;
use hurtle_quant::WeightType;
use std::cell::RefCell;
use std::path::Path;
use tensors::{Content, Tensor};

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SynthError {
    /// There is no such model here.
    #[error("{name:?} is no model whose shape is known\nhint: known are {}", known_models())]
    UnknownModel {
        /// What was asked for.
        name: String,
    },
    /// There is no such recipe or weight type.
    #[error("{name:?} is no weight type\nhint: known are {}", known_mixes())]
    UnknownMix {
        /// What was asked for.
        name: String,
    },
    /// A shape names an architecture that hurtle does not run.
    #[error("{model}: there is no architecture {arch:?}")]
    UnknownArch {
        /// The model.
        model: &'static str,
        /// Its architecture.
        arch: &'static str,
    },
    /// A vocabulary of that size cannot be made up.
    #[error("{model}: a vocabulary of {found} tokens; it can have {least} to {most}")]
    Vocabulary {
        /// The model.
        model: &'static str,
        /// Its size.
        found: usize,
        /// The fewest.
        least: usize,
        /// The most.
        most: usize,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Gguf(#[from] hurtle_gguf::Error),
}

fn known_models() -> String {
    Shape::ALL.iter().map(|shape| shape.name).collect::<Vec<_>>().join(", ")
}

fn known_mixes() -> String {
    let mixes = Mix::ALL.iter().map(|mix| mix.name());
    let types = WeightType::ALL.iter().filter(|ty| random::is_known(**ty)).map(|ty| ty.name());
    let types = types.filter(|ty| Mix::from_name(ty).is_none());
    mixes.chain(types).map(str::to_lowercase).collect::<Vec<_>>().join(", ")
}

/// The recipe of that name, or the weight type of that name for every matrix.
///
/// # Errors
/// [`SynthError::UnknownMix`].
pub fn find_mix(name: &str) -> Result<Mix, SynthError> {
    let uniform = || WeightType::from_name(name).filter(|ty| random::is_known(*ty));
    Mix::from_name(name)
        .or_else(|| uniform().map(Mix::uniform))
        .ok_or_else(|| SynthError::UnknownMix { name: name.into() })
}

/// The shape of the model of that name.
///
/// # Errors
/// [`SynthError::UnknownModel`].
pub fn find_shape(name: &str) -> Result<&'static Shape, SynthError> {
    Shape::find(name).ok_or_else(|| SynthError::UnknownModel { name: name.into() })
}

/// A file that could be written.
#[derive(Debug)]
pub struct Plan {
    shape: Shape,
    mix: Mix,
    tensors: Vec<Tensor>,
}

impl Plan {
    /// What a file of this shape and recipe holds.
    ///
    /// # Errors
    /// If the architecture is unknown, or the vocabulary too small or too large.
    pub fn new(shape: &Shape, mix: Mix) -> Result<Self, SynthError> {
        let Shape { name: model, n_vocab, .. } = *shape;
        let spec = arch::find(shape.arch)
            .ok_or(SynthError::UnknownArch { model, arch: shape.arch })?;
        let (least, most) = (shape.family.least_tokens(), vocabulary::MOST_TOKENS);
        if !(least..=most).contains(&n_vocab) {
            return Err(SynthError::Vocabulary { model, found: n_vocab, least, most });
        }
        Ok(Self { shape: *shape, mix, tensors: tensors::tensors(shape, spec, mix) })
    }

    /// Weights.
    pub fn n_params(&self) -> u64 {
        self.tensors.iter().map(Tensor::n_values).sum()
    }

    /// Bytes of the tensors. The vocabulary adds some megabytes.
    pub fn n_bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::n_bytes).sum()
    }

    /// Writes the file, replacing any of that name once it is complete. `threads` make the weights;
    /// `on_progress` hears how many bytes of tensors are written.
    ///
    /// # Errors
    /// If the file cannot be written; none is left or changed then.
    pub fn write(
        &self,
        path: &Path,
        seed: u64,
        threads: usize,
        on_progress: &mut dyn FnMut(u64),
    ) -> Result<(), SynthError> {
        let progress = RefCell::new((0, on_progress));
        let advance = |n: usize| {
            let (done, on_progress) = &mut *progress.borrow_mut();
            *done += n as u64;
            on_progress(*done);
        };
        let mut writer = Writer::new(self.metadata(seed));
        for tensor in &self.tensors {
            let Tensor { name, dims, ty, content } = tensor;
            writer.tensor_with(name, dims, *ty, move |out| match content {
                Content::Values(values) => {
                    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                    out.write_all(&bytes)?;
                    advance(bytes.len());
                    Ok(())
                }
                Content::Random { sd } => {
                    let blocks = random::Blocks::new(*ty, *sd, seed, name);
                    blocks.write(tensor.n_bytes(), threads, out, &advance)
                }
            })?;
        }
        Ok(writer.write(path)?)
    }

    fn metadata(&self, seed: u64) -> Metadata {
        let mut metadata = tensors::metadata(&self.shape, self.mix);
        metadata.insert(
            "general.description",
            format!("Random weights (hurtle synth, seed {seed}): for measuring, not for talking"),
        );
        let vocabulary = self.shape.family.metadata(self.shape.n_vocab);
        metadata.extend(vocabulary.iter().map(|(key, value)| (key, value.clone())));
        metadata
    }
}
