//! Which weight type each tensor of a quantized model gets.
//!
//! `Q4_K_M` is no weight type but a recipe: most matrices are Q4_K, while those that suffer most
//! from rounding (the output, the values of the attention, the way down from the feed-forward) get
//! more bits in some layers. The recipes here are llama.cpp's, as its `llama-quantize` applies them
//! without an importance matrix, so that files have the sizes and speeds that people know by name.

use hurtle_quant::WeightType;

/// A recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    name: &'static str,
    /// What most matrices get.
    base: WeightType,
    /// `general.file_type`.
    file_type: Option<u32>,
    recipe: Recipe,
}

/// What differs from the base type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recipe {
    /// Nothing.
    Uniform,
    /// The output only.
    Output,
    Q2K,
    Q3KS,
    Q3KM,
    Q3KL,
    Q4KS,
    Q4KM,
    Q5KM,
    Iq4,
    Mxfp4Moe,
}

/// What a recipe has to know of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MixModel {
    /// Layers.
    pub n_layers: usize,
    /// Query heads for each KV head.
    pub n_gqa: usize,
    /// Experts; 0 in a dense model.
    pub n_experts: usize,
    /// The output shares the token embedding's weights.
    pub tied: bool,
}

#[rustfmt::skip]
const MIXES: &[Mix] = &[
    mix("F32", WeightType::F32, 0, Recipe::Uniform),
    mix("F16", WeightType::F16, 1, Recipe::Uniform),
    mix("BF16", WeightType::BF16, 32, Recipe::Uniform),
    mix("Q8_0", WeightType::Q8_0, 7, Recipe::Output),
    mix("Q6_K", WeightType::Q6_K, 18, Recipe::Output),
    mix("Q5_K_M", WeightType::Q5_K, 17, Recipe::Q5KM),
    mix("Q5_K_S", WeightType::Q5_K, 16, Recipe::Output),
    mix("Q5_1", WeightType::Q5_1, 9, Recipe::Output),
    mix("Q5_0", WeightType::Q5_0, 8, Recipe::Output),
    mix("Q4_K_M", WeightType::Q4_K, 15, Recipe::Q4KM),
    mix("Q4_K_S", WeightType::Q4_K, 14, Recipe::Q4KS),
    mix("Q4_1", WeightType::Q4_1, 3, Recipe::Output),
    mix("Q4_0", WeightType::Q4_0, 2, Recipe::Output),
    mix("IQ4_NL", WeightType::IQ4_NL, 25, Recipe::Iq4),
    mix("IQ4_XS", WeightType::IQ4_XS, 30, Recipe::Iq4),
    mix("Q3_K_L", WeightType::Q3_K, 13, Recipe::Q3KL),
    mix("Q3_K_M", WeightType::Q3_K, 12, Recipe::Q3KM),
    mix("Q3_K_S", WeightType::Q3_K, 11, Recipe::Q3KS),
    mix("Q2_K", WeightType::Q2_K, 10, Recipe::Q2K),
    mix("MXFP4_MOE", WeightType::MXFP4, 38, Recipe::Mxfp4Moe),
];

const fn mix(name: &'static str, base: WeightType, file_type: u32, recipe: Recipe) -> Mix {
    Mix { name, base, file_type: Some(file_type), recipe }
}

/// Names that llama.cpp takes for one of its recipes.
const ALIASES: [(&str, &str); 3] = [("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M")];

impl Mix {
    /// llama.cpp's recipes, from the largest to the smallest.
    pub const ALL: &'static [Mix] = MIXES;

    /// The recipe of that name, case ignored.
    pub fn from_name(name: &str) -> Option<Mix> {
        let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
        let name = alias.map_or(name, |(_, name)| name);
        MIXES.iter().copied().find(|mix| mix.name.eq_ignore_ascii_case(name))
    }

    /// The recipe that a file names in `general.file_type`.
    pub fn from_file_type(file_type: u32) -> Option<Mix> {
        MIXES.iter().copied().find(|mix| mix.file_type == Some(file_type))
    }

    /// Every matrix of type `ty`, embedding and output included.
    pub const fn uniform(ty: WeightType) -> Mix {
        Mix { name: ty.name(), base: ty, file_type: None, recipe: Recipe::Uniform }
    }

    /// `Q4_K_M`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The number that stands for it in `general.file_type`, if there is one.
    pub fn file_type(self) -> Option<u32> {
        self.file_type
    }

    /// The type of a tensor, by its name in a GGUF file and its sizes, fastest-varying first.
    ///
    /// What is no matrix stays F32: norms, biases, and the routers of experts. Where rows are not
    /// whole blocks of the type wanted, the nearest type with smaller blocks takes its place.
    pub fn tensor_type(self, name: &str, dims: &[u64], model: &MixModel) -> WeightType {
        if !is_matrix(name, dims) {
            return WeightType::F32;
        }
        let n_cols = dims[0];
        let wanted = match self.recipe {
            Recipe::Uniform => self.base,
            _ => self.wanted(&Tensor::new(name, dims, model), model),
        };
        fitting(wanted, n_cols)
    }

    fn wanted(self, tensor: &Tensor, model: &MixModel) -> WeightType {
        use WeightType::{MXFP4, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0};
        let (base, i, n) = (self.base, tensor.layer, model.n_layers);
        let many_experts = model.n_experts == 8;
        if tensor.role == Role::Output {
            let whole_blocks = tensor.n_cols.is_multiple_of(base.block_len() as u64);
            let small = matches!(self.recipe, Recipe::Mxfp4Moe) || base == Q8_0 || !whole_blocks;
            return if small { Q8_0 } else { Q6_K };
        }
        let first = |part: usize| i < n / part;
        match (self.recipe, tensor.role) {
            (Recipe::Mxfp4Moe, _) if tensor.experts => MXFP4,
            (Recipe::Mxfp4Moe, _) => Q8_0,
            (_, Role::AttnV) if many_experts => Q8_0,
            (Recipe::Q2K, Role::AttnV) if model.n_gqa >= 4 => Q4_K,
            (Recipe::Q2K, Role::AttnV) => Q3_K,
            (Recipe::Q3KM, Role::AttnV) if i < 2 => Q5_K,
            (Recipe::Q3KM, Role::AttnV) => Q4_K,
            (Recipe::Q3KL, Role::AttnV) => Q5_K,
            (Recipe::Q4KM | Recipe::Q5KM, Role::AttnV) if more_bits(i, n) => Q6_K,
            (Recipe::Q4KS, Role::AttnV) if i < 4 => Q5_K,
            (Recipe::Iq4, Role::AttnV) if model.n_gqa >= 4 => Q5_K,

            (_, Role::AttnK) if many_experts => Q8_0,

            (Recipe::Q2K, Role::FfnDown) => Q3_K,
            (Recipe::Q3KM, Role::FfnDown) if first(16) => Q5_K,
            (Recipe::Q3KM, Role::FfnDown) => Q4_K,
            (Recipe::Q3KL, Role::FfnDown) => Q5_K,
            (Recipe::Q4KM | Recipe::Q5KM, Role::FfnDown) if more_bits(i, n) => Q6_K,
            (Recipe::Q4KS | Recipe::Iq4, Role::FfnDown) if first(8) => Q5_K,

            (Recipe::Output | Recipe::Q3KL | Recipe::Q5KM, Role::AttnOutput) if many_experts => {
                base
            }
            (_, Role::AttnOutput) if many_experts => Q5_K,
            (Recipe::Q2K, Role::AttnOutput) => Q3_K,
            (Recipe::Q3KM, Role::AttnOutput) => Q4_K,
            (Recipe::Q3KL, Role::AttnOutput) => Q5_K,
            _ => base,
        }
    }
}

/// The first eighth of the layers, the last, and every third between.
fn more_bits(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

/// What a matrix is for, as far as recipes distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The output, or the embedding that serves as the output too.
    Output,
    /// Values, or queries, keys and values in one.
    AttnV,
    AttnK,
    AttnOutput,
    FfnDown,
    Other,
}

struct Tensor {
    role: Role,
    layer: usize,
    n_cols: u64,
    /// One matrix for each of several experts.
    experts: bool,
}

impl Tensor {
    fn new(name: &str, dims: &[u64], model: &MixModel) -> Self {
        let block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let (layer, part) = block.unwrap_or(("0", name));
        let role = match part {
            "output.weight" => Role::Output,
            "token_embd.weight" if model.tied => Role::Output,
            "attn_v.weight" | "attn_qkv.weight" => Role::AttnV,
            "attn_k.weight" => Role::AttnK,
            "attn_output.weight" => Role::AttnOutput,
            _ if part.starts_with("ffn_down") => Role::FfnDown,
            _ => Role::Other,
        };
        let experts = dims.get(2).is_some_and(|n| *n > 1);
        Self { role, layer: layer.parse().unwrap_or(0), n_cols: dims[0], experts }
    }
}

fn is_matrix(name: &str, dims: &[u64]) -> bool {
    name.ends_with("weight")
        && !name.ends_with("_norm.weight")
        && !name.contains("ffn_gate_inp.weight")
        && dims.iter().skip(1).any(|n| *n > 1)
}

/// `ty`, or what takes its place where rows of `n_cols` values are not whole blocks.
fn fitting(ty: WeightType, n_cols: u64) -> WeightType {
    use WeightType::{
        F16, IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL, IQ4_XS, Q2_0, Q2_K,
        Q3_K, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, TQ1_0, TQ2_0,
    };
    let fits = |ty: WeightType| n_cols.is_multiple_of(ty.block_len() as u64);
    if fits(ty) {
        return ty;
    }
    let smaller = match ty {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q2_0 | Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        _ => F16,
    };
    if fits(smaller) { smaller } else { F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: MixModel = MixModel { n_layers: 18, n_gqa: 4, n_experts: 0, tied: true };

    #[track_caller]
    fn check(mix: &str, model: &MixModel, name: &str, dims: &[u64], expected: WeightType) {
        let mix = Mix::from_name(mix).expect("a recipe");
        assert_eq!(mix.tensor_type(name, dims, model), expected, "{} {name}", mix.name());
    }

    /// What a published Q4_K_M file of Gemma 3 270M holds; its rows of 640 are not whole blocks
    /// of 256.
    #[test]
    fn gemma3_270m_q4_k_m() {
        use WeightType::{F32, Q4_K, Q5_0, Q6_K, Q8_0};
        let check =
            |name: &str, dims: &[u64], expected| check("q4_k_m", &SMALL, name, dims, expected);
        check("token_embd.weight", &[640, 262_144], Q8_0);
        check("output_norm.weight", &[640], F32);
        check("blk.0.attn_k.weight", &[640, 256], Q5_0);
        check("blk.0.attn_output.weight", &[1024, 640], Q4_K);
        check("blk.0.attn_v.weight", &[640, 256], Q8_0);
        check("blk.2.attn_v.weight", &[640, 256], Q5_0);
        check("blk.0.ffn_up.weight", &[640, 2048], Q5_0);
        let down: Vec<usize> = (0..18)
            .filter(|i| {
                let name = format!("blk.{i}.ffn_down.weight");
                let mix = Mix::from_name("Q4_K_M").expect("a recipe");
                mix.tensor_type(&name, &[2048, 640], &SMALL) == Q6_K
            })
            .collect();
        assert_eq!(down, [0, 1, 4, 7, 10, 13, 15, 16, 17]);
    }

    #[test]
    fn recipes_differ_where_they_should() {
        use WeightType::{F16, F32, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0};
        let untied = MixModel { n_layers: 32, n_gqa: 4, n_experts: 0, tied: false };
        let square = [4096, 4096];
        for (mix, embedding, output, v, down, attn_output) in [
            ("q2_k", Q2_K, Q6_K, Q4_K, Q3_K, Q3_K),
            ("q3_k_s", Q3_K, Q6_K, Q3_K, Q3_K, Q3_K),
            ("q3_k_m", Q3_K, Q6_K, Q5_K, Q5_K, Q4_K),
            ("q3_k_l", Q3_K, Q6_K, Q5_K, Q5_K, Q5_K),
            ("q4_k_s", Q4_K, Q6_K, Q5_K, Q5_K, Q4_K),
            ("q4_k_m", Q4_K, Q6_K, Q6_K, Q6_K, Q4_K),
            ("q5_k_s", Q5_K, Q6_K, Q5_K, Q5_K, Q5_K),
            ("q5_k_m", Q5_K, Q6_K, Q6_K, Q6_K, Q5_K),
            ("q4_0", Q4_0, Q6_K, Q4_0, Q4_0, Q4_0),
            ("q8_0", Q8_0, Q8_0, Q8_0, Q8_0, Q8_0),
            ("iq4_xs", IQ4_XS, Q6_K, Q5_K, Q5_K, IQ4_XS),
            ("f16", F16, F16, F16, F16, F16),
        ] {
            check(mix, &untied, "token_embd.weight", &square, embedding);
            check(mix, &untied, "output.weight", &square, output);
            check(mix, &untied, "blk.0.attn_v.weight", &square, v);
            check(mix, &untied, "blk.0.attn_qkv.weight", &square, v);
            check(mix, &untied, "blk.0.ffn_down.weight", &square, down);
            check(mix, &untied, "blk.0.attn_output.weight", &square, attn_output);
            check(mix, &untied, "blk.0.attn_q_norm.weight", &[128], F32);
            check(mix, &untied, "blk.0.attn_v.bias", &[4096], F32);
        }
        let experts = MixModel { n_layers: 24, n_gqa: 8, n_experts: 32, tied: false };
        check("mxfp4_moe", &experts, "blk.3.ffn_down_exps.weight", &[2880, 2880, 32], MXFP4);
        check("mxfp4_moe", &experts, "blk.3.ffn_down_exps.bias", &[2880, 32], F32);
        check("mxfp4_moe", &experts, "blk.3.ffn_gate_inp.weight", &[2880, 32], F32);
        check("mxfp4_moe", &experts, "blk.3.attn_q.weight", &[2880, 4096], Q8_0);
        check("mxfp4_moe", &experts, "output.weight", &[2880, 201_088], Q8_0);
        let mixtral = MixModel { n_layers: 32, n_gqa: 4, n_experts: 8, tied: false };
        check("q4_k_m", &mixtral, "blk.9.attn_v.weight", &square, Q8_0);
        check("q4_k_m", &mixtral, "blk.9.attn_k.weight", &square, Q8_0);
        check("q4_k_m", &mixtral, "blk.9.attn_output.weight", &square, Q5_K);
        check("q3_k_s", &mixtral, "blk.9.attn_output.weight", &square, Q5_K);
        check("q3_k_l", &mixtral, "blk.9.attn_output.weight", &square, Q3_K);
        check("q5_k_m", &mixtral, "blk.9.attn_output.weight", &square, Q5_K);
    }

    #[test]
    fn odd_rows_get_types_that_fit() {
        for &ty in WeightType::ALL {
            for n_cols in [1, 31, 32, 64, 96, 128, 256, 640] {
                let found = Mix::uniform(ty).tensor_type("output.weight", &[n_cols, 2], &SMALL);
                assert!(n_cols.is_multiple_of(found.block_len() as u64), "{ty} {n_cols} {found}");
            }
        }
    }

    #[test]
    fn names_are_found() {
        for mix in Mix::ALL {
            assert_eq!(Mix::from_name(&mix.name().to_lowercase()), Some(*mix));
        }
        for (alias, name) in ALIASES {
            assert_eq!(Mix::from_name(alias).map(Mix::name), Some(name));
        }
        assert_eq!(Mix::from_name("q4_k_x"), None);
    }
}
