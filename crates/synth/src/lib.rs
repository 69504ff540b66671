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
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::ControlFlow;
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
    /// The caller broke off.
    #[error("writing was broken off")]
    Cancelled,
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
        let spec =
            arch::find(shape.arch).ok_or(SynthError::UnknownArch { model, arch: shape.arch })?;
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
    /// `on_progress` hears how many bytes of tensors are written, and may break off.
    ///
    /// # Errors
    /// If the file cannot be written or the callback broke off; no file is left or changed then.
    pub fn write(
        &self,
        path: &Path,
        seed: u64,
        threads: usize,
        on_progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), SynthError> {
        let progress = RefCell::new((0, on_progress));
        let cancelled = Cell::new(false);
        let advance = |n: usize| {
            let (done, on_progress) = &mut *progress.borrow_mut();
            *done += n as u64;
            cancelled.set(on_progress(*done).is_break());
            if cancelled.get() { Err(io::Error::other("broken off")) } else { Ok(()) }
        };
        let mut writer = Writer::new(self.metadata(seed));
        for tensor in &self.tensors {
            let Tensor { name, dims, ty, content } = tensor;
            writer.tensor_with(name, dims, *ty, move |out| match content {
                Content::Values(values) => {
                    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                    out.write_all(&bytes)?;
                    advance(bytes.len())
                }
                Content::Random { sd } => {
                    let blocks = random::Blocks::new(*ty, *sd, seed, name);
                    blocks.write(tensor.n_bytes(), threads, out, &advance)
                }
            })?;
        }
        match writer.write(path) {
            Err(_) if cancelled.get() => Err(SynthError::Cancelled),
            result => Ok(result?),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use hurtle_engine::{Engine, EngineOptions};
    use hurtle_text::ChatTemplate;

    /// The weights that the makers count, in the published files. Rotary factors are in the files
    /// too: half a head of them for Llama, and twice 48 for Phi.
    #[test]
    fn shapes_have_the_published_number_of_weights() {
        for (name, expected) in [
            ("smollm2:135m", 134_515_008),
            ("smollm2:360m", 361_821_120),
            ("smollm2:1.7b", 1_711_376_384),
            ("qwen2.5-coder:0.5b", 494_032_768),
            ("qwen2.5-coder:1.5b", 1_543_714_304),
            ("qwen2.5-coder:3b", 3_085_938_688),
            ("qwen2.5-coder:7b", 7_615_616_512),
            ("qwen3:0.6b", 596_049_920),
            ("qwen3:1.7b", 1_720_574_976),
            ("qwen3:4b", 4_022_468_096),
            ("qwen3:8b", 8_190_735_360),
            ("qwen3:30b-a3b", 30_532_122_624),
            ("llama3.2:1b", 1_235_814_400 + 32),
            ("llama3.2:3b", 3_212_749_824 + 64),
            ("llama3.1:8b", 8_030_261_248 + 64),
            ("gemma3:270m", 268_098_176),
            ("gemma3:1b", 999_885_952),
            ("gemma3:4b", 3_880_263_168),
            ("phi4-mini", 3_836_021_760 + 96),
            ("gpt-oss:20b", 20_914_757_184),
        ] {
            let shape = find_shape(name).expect("a shape");
            let plan = Plan::new(shape, find_mix(shape.mix).expect("a mix")).expect("a plan");
            assert_eq!(plan.n_params(), expected, "{name}");
        }
        assert_eq!(Shape::ALL.len(), 20);
    }

    /// Within a percent of files that llama.cpp made, vocabulary aside.
    #[test]
    fn files_have_the_published_sizes() {
        for (name, mix, megabytes) in [
            ("qwen2.5-coder:1.5b", "q4_k_m", 980),
            ("qwen2.5-coder:7b", "q4_k_m", 4677),
            ("llama3.2:1b", "q4_k_m", 800),
            ("llama3.1:8b", "q4_k_m", 4913),
            ("llama3.1:8b", "q8_0", 8533),
            ("gemma3:270m", "q4_k_m", 246),
            ("qwen3:30b-a3b", "q4_k_m", 18_550),
            ("gpt-oss:20b", "mxfp4_moe", 12_100),
        ] {
            let mix = find_mix(mix).expect("a mix");
            let plan = Plan::new(find_shape(name).expect("a shape"), mix).expect("a plan");
            let found = plan.n_bytes() / 1_000_000;
            assert!(found.abs_diff(megabytes) <= megabytes / 100, "{name}: {found} MB");
        }
    }

    #[test]
    fn names_are_forgiving() {
        for (name, expected) in
            [("Qwen2.5-Coder-1.5B", "qwen2.5-coder:1.5b"), ("llama-3.2 1b", "llama3.2:1b")]
        {
            assert_eq!(find_shape(name).expect("a shape").name, expected);
        }
        let message = find_shape("gpt-5").expect_err("unknown").to_string();
        assert!(message.contains("hint: known are smollm2:135m, "), "{message}");
        let message = find_mix("q4_k_x").expect_err("unknown").to_string();
        assert!(message.contains("q4_k_m") && message.contains("iq2_xxs"), "{message}");
        assert_eq!(find_mix("iq2_xxs").expect("a type").name(), "IQ2_XXS");
        assert!(find_mix("i32").is_err() && find_mix("q8_k").is_err());
    }

    /// `shape` made tiny, keeping all that distinguishes its architecture.
    fn tiny(shape: &Shape) -> Shape {
        let (n_heads, n_kv_heads) = (4, if shape.n_heads == shape.n_kv_heads { 4 } else { 2 });
        let rope = match shape.rope {
            Rope::LongRope { n_ctx_orig, .. } => Rope::LongRope { n_rot: 48, n_ctx_orig },
            rope => rope,
        };
        Shape {
            n_layers: 8,
            n_embd: 256,
            n_heads,
            n_kv_heads,
            head_dim: 64,
            n_ff: 512,
            n_vocab: 512,
            rope,
            window: shape.window.map(|_| 8),
            experts: shape.experts.map(|_| Experts { n: 4, n_used: 2, n_ff: 256 }),
            family: &vocabulary::SMOLLM2,
            ..*shape
        }
    }

    fn check_runs(shape: &Shape, mix: Mix) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        let plan = Plan::new(shape, mix).expect("a plan");
        let mut done = 0;
        let mut note = |bytes| {
            done = bytes;
            ControlFlow::Continue(())
        };
        plan.write(&path, 1, 2, &mut note).expect("written");
        assert_eq!(done, plan.n_bytes());

        let options = EngineOptions { ctx_size: Some(64), ..EngineOptions::default() };
        let engine = Engine::load(&path, &options)
            .unwrap_or_else(|e| panic!("{} {}: {e}", shape.name, mix.name()));
        assert_eq!(engine.gguf().n_params(), plan.n_params());
        let ids: Vec<u32> = (0..20).map(|i| i * 25).collect();
        for logits in engine.logits(&ids, true).expect("logits") {
            let square = logits.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let rms = (square / logits.len() as f64).sqrt();
            // A row of weights of length 1 times a normalized vector.
            assert!((0.2..5.0).contains(&rms), "{} {}: {rms}", shape.name, mix.name());
        }
        let metadata = engine.gguf().metadata();
        let template = ChatTemplate::from_metadata(metadata, engine.tokenizer(), None);
        let template = template.expect("it compiles").expect("a template");
        assert!(template.source().contains("im_start"));
    }

    #[test]
    fn every_architecture_runs() {
        for shape in Shape::ALL {
            check_runs(&tiny(shape), find_mix(shape.mix).expect("a mix"));
        }
    }

    /// Rows of 2880 values are not whole blocks of 256, so recipes must give way.
    #[test]
    fn odd_widths_run() {
        let shape = find_shape("gpt-oss:20b").expect("a shape");
        let experts = Some(Experts { n: 2, n_used: 1, n_ff: shape.n_ff });
        let family = &vocabulary::SMOLLM2;
        let shape = Shape { n_layers: 1, n_vocab: 512, experts, family, ..*shape };
        for mix in ["mxfp4_moe", "q4_k_m"] {
            check_runs(&shape, find_mix(mix).expect("a mix"));
        }
    }

    #[test]
    fn every_weight_type_runs() {
        let shape = tiny(find_shape("qwen3:4b").expect("a shape"));
        for mix in Mix::ALL {
            check_runs(&shape, *mix);
        }
        for ty in WeightType::ALL.iter().filter(|ty| random::is_known(**ty)) {
            check_runs(&shape, Mix::uniform(*ty));
        }
    }

    #[test]
    fn bytes_depend_on_the_seed_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let shape = tiny(find_shape("gpt-oss:20b").expect("a shape"));
        let plan = Plan::new(&shape, find_mix("mxfp4_moe").expect("a mix")).expect("a plan");
        let write = |name: &str, seed, threads| {
            let path = folder.path().join(name);
            let mut go_on = |_| ControlFlow::Continue(());
            plan.write(&path, seed, threads, &mut go_on).expect("written");
            std::fs::read(path).expect("read")
        };
        let expected = write("a", 1, 1);
        assert!(write("b", 1, 3) == expected);
        assert!(write("c", 2, 1) != expected);
    }

    #[test]
    fn what_is_broken_off_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let shape = tiny(find_shape("qwen3:4b").expect("a shape"));
        let plan = Plan::new(&shape, find_mix("q8_0").expect("a mix")).expect("a plan");
        let mut stop =
            |done| if done > 1000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let result = plan.write(&folder.path().join("x"), 1, 1, &mut stop);
        assert!(matches!(result, Err(SynthError::Cancelled)), "{result:?}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn impossible_vocabularies_are_refused() {
        let check = |shape: &Shape, n_vocab, expected: &str| {
            let mix = find_mix("q8_0").expect("a mix");
            let error = Plan::new(&Shape { n_vocab, ..*shape }, mix).expect_err("refused");
            assert_eq!(error.to_string(), expected);
        };
        let (qwen, smollm) = (find_shape("qwen3:4b"), find_shape("smollm2:135m"));
        check(
            qwen.expect("a shape"),
            1000,
            "qwen3:4b: a vocabulary of 1000 tokens; it can have 151646 to 476186",
        );
        check(
            smollm.expect("a shape"),
            1 << 20,
            "smollm2:135m: a vocabulary of 1048576 tokens; it can have 259 to 476186",
        );
    }
}
