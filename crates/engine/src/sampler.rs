//! From logits to the next token: llama.cpp's sampler chain.

/// Sampling parameters; names, meanings and defaults are llama.cpp's.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // its owner documents each
pub struct SamplerParams {
    pub seed: Option<u64>,
    pub temp: f32,
    pub dynatemp_range: f32,
    pub dynatemp_exponent: f32,
    pub top_k: i32,
    pub top_p: f32,
    pub min_p: f32,
    pub typical_p: f32,
    pub top_n_sigma: f32,
    pub xtc_probability: f32,
    pub xtc_threshold: f32,
    pub min_keep: usize,
    pub repeat_last_n: i32,
    pub repeat_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub dry_multiplier: f32,
    pub dry_base: f32,
    pub dry_allowed_length: i32,
    pub dry_penalty_last_n: i32,
    /// Token sequences that break a DRY match, already encoded.
    pub dry_sequence_breakers: Vec<String>,
    pub mirostat: u8,
    pub mirostat_tau: f32,
    pub mirostat_eta: f32,
    pub logit_bias: Vec<(u32, f32)>,
    pub ignore_eos: bool,
}
