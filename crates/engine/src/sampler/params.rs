//! The parameters of sampling, their ranges, and the order of the chain.
use std::str::FromStr;

/// Why sampling parameters are refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// A parameter lies outside its range.
    #[error("sampling parameter {name}: expected {expected}, found {found}")]
    OutOfRange {
        /// The parameter, as the field of [`SamplerParams`] is called.
        name: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A logit bias for a token that the model does not have.
    #[error(
        "sampling parameter logit_bias: expected token ids below {n_tokens}, found {token}\n\
         hint: 'hurtle tokenize' shows the ids of a text"
    )]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        n_tokens: usize,
    },
    /// A name in the sampler chain that means nothing here.
    #[error("unknown sampler '{found}'\nhint: the samplers are {}", SamplerKind::all_names())]
    UnknownSampler {
        /// The name or letter.
        found: String,
    },
}

/// One link of the sampler chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SamplerKind {
    /// Repetition, frequency and presence penalties.
    Penalties,
    /// "Don't repeat yourself": penalises tokens that would extend a repeated sequence.
    Dry,
    /// Keeps what lies within n standard deviations of the best logit.
    TopNSigma,
    /// Keeps the k most probable.
    TopK,
    /// Keeps what is about as surprising as the distribution on average.
    TypicalP,
    /// Keeps the smallest set of the most probable whose mass reaches p (the nucleus).
    TopP,
    /// Keeps what is at least p times as probable as the best.
    MinP,
    /// Excludes the top choices, now and then.
    Xtc,
    /// Divides the logits by the temperature.
    Temperature,
    /// For gaps in code: ends early, and takes tokens that begin alike for one. Only where it is asked for.
    Infill,
}

impl SamplerKind {
    /// Kind, name, letter in `--sampler-seq`, in the default order of the chain; the last is no part of it.
    const TABLE: [(Self, &'static str, char); 10] = [
        (Self::Penalties, "penalties", 'e'),
        (Self::Dry, "dry", 'd'),
        (Self::TopNSigma, "top_n_sigma", 's'),
        (Self::TopK, "top_k", 'k'),
        (Self::TypicalP, "typ_p", 'y'),
        (Self::TopP, "top_p", 'p'),
        (Self::MinP, "min_p", 'm'),
        (Self::Xtc, "xtc", 'x'),
        (Self::Temperature, "temperature", 't'),
        (Self::Infill, "infill", 'i'),
    ];

    /// The chain that llama.cpp runs by default.
    pub fn default_chain() -> Vec<Self> {
        let all = Self::TABLE.iter().map(|&(kind, ..)| kind);
        all.filter(|&kind| kind != Self::Infill).collect()
    }

    /// The name in `--samplers`.
    pub fn name(self) -> &'static str {
        let row = Self::TABLE.iter().find(|row| row.0 == self);
        row.map_or("", |row| row.1)
    }

    /// Reads `--samplers`: names separated by `;`, such as `top_k;top_p;temperature`.
    /// An empty text is an empty chain: the choice is then made from the model's own distribution.
    pub fn parse_chain(names: &str) -> Result<Vec<Self>, SamplerError> {
        names.split(';').map(str::trim).filter(|name| !name.is_empty()).map(str::parse).collect()
    }

    /// Reads `--sampler-seq`: one letter for each sampler, `edskypmxt` by default.
    pub fn parse_letters(letters: &str) -> Result<Vec<Self>, SamplerError> {
        let kind_of = |letter: char| {
            let row = Self::TABLE.iter().find(|row| row.2 == letter);
            row.map(|row| row.0)
                .ok_or_else(|| SamplerError::UnknownSampler { found: letter.into() })
        };
        letters.chars().map(kind_of).collect()
    }

    fn all_names() -> String {
        let names = Self::TABLE.map(|(_, name, letter)| format!("{name} ({letter})"));
        names.join(", ")
    }
}

impl FromStr for SamplerKind {
    type Err = SamplerError;

    /// llama.cpp's names, with `_`, `-` or nothing between the words, and its aliases.
    fn from_str(name: &str) -> Result<Self, SamplerError> {
        let plain: String = name.chars().filter(|&c| c != '_' && c != '-').collect();
        match plain.as_str() {
            "nucleus" => return Ok(Self::TopP),
            "temp" => return Ok(Self::Temperature),
            "typ" | "typicalp" => return Ok(Self::TypicalP),
            _ => {}
        }
        let row = Self::TABLE.iter().find(|row| row.1.replace('_', "") == plain);
        row.map(|row| row.0).ok_or_else(|| SamplerError::UnknownSampler { found: name.to_owned() })
    }
}

/// Sampling parameters; names, meanings and defaults are llama.cpp's.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerParams {
    /// Seed of the random numbers; `None`: a new one for each sampler ([`super::Sampler::seed`]
    /// tells which).
    pub seed: Option<u64>,
    /// The links of the chain in the order in which they run. A link that is not listed does not
    /// run, whatever its parameters say. Mirostat replaces the chain.
    pub samplers: Vec<SamplerKind>,
    /// Candidates that [`TypicalP`](SamplerKind::TypicalP), [`TopP`](SamplerKind::TopP),
    /// [`MinP`](SamplerKind::MinP) and [`Xtc`](SamplerKind::Xtc) leave at least.
    pub min_keep: usize,

    /// Divisor of the logits; 0 or less: always the best token.
    pub temp: f32,
    /// Dynamic temperature: the temperature moves within `temp` ± this, the higher the more even
    /// the distribution is; 0: off.
    pub dynatemp_range: f32,
    /// Exponent that shapes how entropy maps to dynamic temperature.
    pub dynatemp_exponent: f32,
    /// Candidates to keep; 0 or less: all.
    pub top_k: i32,
    /// Mass to keep, 0 to 1; 1: off.
    pub top_p: f32,
    /// Least probability as a part of the best token's, 0 to 1; 0: off.
    pub min_p: f32,
    /// Mass of typical tokens to keep, 0 to 1; 1: off.
    pub typical_p: f32,
    /// Standard deviations below the best logit that are kept; 0 or less: off.
    pub top_n_sigma: f32,
    /// How often XTC acts, 0 to 1; 0: off.
    pub xtc_probability: f32,
    /// Probability from which a token counts as a top choice for XTC; above 0.5: off.
    pub xtc_threshold: f32,

    /// Accepted tokens that the three penalties look back on; 0: off, -1: all.
    pub repeat_last_n: i32,
    /// Divisor of a positive, factor of a negative logit of a token seen before; 1: off.
    pub repeat_penalty: f32,
    /// Taken from the logit of a token seen before; 0: off.
    pub presence_penalty: f32,
    /// Taken from the logit of a token for each time it was seen; 0: off.
    pub frequency_penalty: f32,

    /// DRY: penalty for extending a repetition of `dry_allowed_length` tokens; 0: off.
    pub dry_multiplier: f32,
    /// DRY: factor for each further repeated token; 0: off.
    pub dry_base: f32,
    /// DRY: repetitions shorter than this are free.
    pub dry_allowed_length: i32,
    /// DRY: accepted tokens to look back on; 0: off, -1: all.
    pub dry_penalty_last_n: i32,
    /// DRY: texts across which no repetition is counted.
    pub dry_sequence_breakers: Vec<String>,

    /// 0: off; 1: Mirostat; 2: Mirostat 2.0. On, it replaces the chain: only logit bias and a fixed
    /// temperature still apply.
    pub mirostat: u8,
    /// Mirostat: surprise to aim at, in bits a token.
    pub mirostat_tau: f32,
    /// Mirostat: how fast it corrects.
    pub mirostat_eta: f32,

    /// Added to the logits of tokens before anything else; negative infinity: never this token.
    /// Several entries for one token add up.
    pub logit_bias: Vec<(u32, f32)>,
    /// Never choose a token that ends the generation.
    pub ignore_eos: bool,
}

impl Default for SamplerParams {
    fn default() -> Self {
        Self {
            seed: None,
            samplers: SamplerKind::default_chain(),
            min_keep: 0,
            temp: 0.8,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: -1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repeat_last_n: 64,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: 64,
            dry_sequence_breakers: ["\n", ":", "\"", "*"].map(String::from).to_vec(),
            mirostat: 0,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            logit_bias: Vec::new(),
            ignore_eos: false,
        }
    }
}

/// Longest sequence breaker, llama.cpp's limit.
const MAX_BREAKER_BYTES: usize = 40;
/// Most sequence breakers: each is compared with the whole vocabulary.
const MAX_BREAKERS: usize = 64;

impl SamplerParams {
    /// Refuses what no sampler could honour, naming the parameter, its value and its range.
    pub fn validate(&self) -> Result<(), SamplerError> {
        let finite = |x: f32| x.is_finite();
        let unit = |x: f32| (0.0..=1.0).contains(&x);
        let positive = |x: f32| x.is_finite() && x >= 0.0;
        let invertible = |x: f32| x.is_finite() && x > 0.0 && (1.0 / x).is_finite();
        let base = |x: f32| x == 0.0 || (x.is_finite() && x >= 1.0);

        for (name, value, in_range, expected) in [
            ("temp", self.temp, &finite as &dyn Fn(f32) -> bool, "a finite number"),
            ("dynatemp_range", self.dynatemp_range, &positive, "a finite number of at least 0"),
            (
                "dynatemp_exponent",
                self.dynatemp_exponent,
                &positive,
                "a finite number of at least 0",
            ),
            ("top_p", self.top_p, &unit, "a number from 0 to 1"),
            ("min_p", self.min_p, &unit, "a number from 0 to 1"),
            ("typical_p", self.typical_p, &unit, "a number from 0 to 1"),
            ("top_n_sigma", self.top_n_sigma, &finite, "a finite number"),
            ("xtc_probability", self.xtc_probability, &unit, "a number from 0 to 1"),
            ("xtc_threshold", self.xtc_threshold, &unit, "a number from 0 to 1"),
            ("repeat_penalty", self.repeat_penalty, &invertible, "a finite number above 0"),
            ("presence_penalty", self.presence_penalty, &finite, "a finite number"),
            ("frequency_penalty", self.frequency_penalty, &finite, "a finite number"),
            ("dry_multiplier", self.dry_multiplier, &positive, "a finite number of at least 0"),
            ("dry_base", self.dry_base, &base, "0 (off) or a finite number of at least 1"),
            ("mirostat_tau", self.mirostat_tau, &positive, "a finite number of at least 0"),
            ("mirostat_eta", self.mirostat_eta, &positive, "a finite number of at least 0"),
        ] {
            if !in_range(value) {
                return Err(SamplerError::OutOfRange { name, expected, found: value.to_string() });
            }
        }
        for (name, value, least, expected) in [
            ("repeat_last_n", self.repeat_last_n, -1, "a number of tokens, or -1 for all"),
            (
                "dry_penalty_last_n",
                self.dry_penalty_last_n,
                -1,
                "a number of tokens, or -1 for all",
            ),
            ("dry_allowed_length", self.dry_allowed_length, 0, "a number of tokens"),
        ] {
            if value < least {
                return Err(SamplerError::OutOfRange { name, expected, found: value.to_string() });
            }
        }
        if self.mirostat > 2 {
            return Err(SamplerError::OutOfRange {
                name: "mirostat",
                expected: "0 (off), 1 or 2",
                found: self.mirostat.to_string(),
            });
        }
        self.validate_breakers()?;
        // A bias of +inf could meet a logit of -inf, and the sum would mean nothing.
        let bias =
            self.logit_bias.iter().find(|&&(_, bias)| bias.is_nan() || bias == f32::INFINITY);
        match bias {
            Some((token, bias)) => Err(SamplerError::OutOfRange {
                name: "logit_bias",
                expected: "finite numbers or -inf",
                found: format!("{bias} for token {token}"),
            }),
            None => Ok(()),
        }
    }

    fn validate_breakers(&self) -> Result<(), SamplerError> {
        let refuse = |expected, found| {
            Err(SamplerError::OutOfRange { name: "dry_sequence_breakers", expected, found })
        };
        let breakers = &self.dry_sequence_breakers;
        if breakers.len() > MAX_BREAKERS {
            return refuse("at most 64 texts", format!("{} of them", breakers.len()));
        }
        match breakers.iter().find(|text| text.is_empty() || text.len() > MAX_BREAKER_BYTES) {
            Some(text) => {
                refuse("texts of 1 to 40 bytes each", format!("{text:?} of {} bytes", text.len()))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl Fn(&mut SamplerParams), expected: &str) {
        let mut params = SamplerParams::default();
        change(&mut params);
        let message = params.validate().err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(message, expected);
    }

    #[test]
    fn errors_name_parameter_range_and_value() {
        check(|_| {}, "");
        for (value, found) in [(f32::NAN, "NaN"), (1.5, "1.5"), (-0.1, "-0.1")] {
            let message = format!("expected a number from 0 to 1, found {found}");
            check(|p| p.top_p = value, &format!("sampling parameter top_p: {message}"));
            check(|p| p.min_p = value, &format!("sampling parameter min_p: {message}"));
            check(|p| p.typical_p = value, &format!("sampling parameter typical_p: {message}"));
        }
        check(
            |p| p.temp = f32::INFINITY,
            "sampling parameter temp: expected a finite number, found inf",
        );
        check(
            |p| p.repeat_penalty = 0.0,
            "sampling parameter repeat_penalty: expected a finite number above 0, found 0",
        );
        check(
            |p| p.dry_base = 0.5,
            "sampling parameter dry_base: expected 0 (off) or a finite number of at least 1, \
             found 0.5",
        );
        check(
            |p| p.repeat_last_n = -2,
            "sampling parameter repeat_last_n: expected a number of tokens, or -1 for all, \
             found -2",
        );
        check(|p| p.mirostat = 3, "sampling parameter mirostat: expected 0 (off), 1 or 2, found 3");
        check(
            |p| p.logit_bias = vec![(1, 0.5), (7, f32::INFINITY)],
            "sampling parameter logit_bias: expected finite numbers or -inf, found inf for token 7",
        );
        check(
            |p| p.dry_sequence_breakers = vec!["a".into(), String::new()],
            "sampling parameter dry_sequence_breakers: expected texts of 1 to 40 bytes each, \
             found \"\" of 0 bytes",
        );
        check(
            |p| p.dry_sequence_breakers = vec!["a".into(); 65],
            "sampling parameter dry_sequence_breakers: expected at most 64 texts, found 65 of them",
        );
    }

    #[test]
    fn what_switches_a_sampler_off_is_in_range() {
        check(
            |p| {
                (p.temp, p.top_k, p.top_n_sigma) = (-1.0, -1, -1.0);
                (p.top_p, p.min_p, p.typical_p) = (1.0, 0.0, 1.0);
                (p.dry_multiplier, p.dry_base, p.dry_penalty_last_n) = (0.0, 0.0, 0);
                (p.repeat_last_n, p.xtc_threshold) = (0, 1.0);
                p.logit_bias = vec![(0, f32::NEG_INFINITY)];
            },
            "",
        );
    }

    #[test]
    fn chains_are_read_by_name_and_by_letter() {
        use SamplerKind::*;
        let default = SamplerKind::default_chain();
        let names: Vec<_> = default.iter().map(|kind| kind.name()).collect();
        assert_eq!(SamplerKind::parse_chain(&names.join(";")), Ok(default.clone()));
        assert_eq!(SamplerKind::parse_letters("edskypmxt"), Ok(default));
        assert_eq!(
            SamplerKind::parse_chain(" top-k; topp ;nucleus;temp;typ;typical-p;min_p;"),
            Ok(vec![TopK, TopP, TopP, Temperature, TypicalP, TypicalP, MinP])
        );
        assert_eq!(SamplerKind::parse_chain(""), Ok(vec![]));
        for error in [SamplerKind::parse_chain("top_k;top_q"), SamplerKind::parse_letters("kq")] {
            let message = error.unwrap_err().to_string();
            assert!(message.starts_with("unknown sampler '"), "{message}");
            assert!(message.contains("hint: the samplers are penalties (e), dry (d)"), "{message}");
        }
    }
}
