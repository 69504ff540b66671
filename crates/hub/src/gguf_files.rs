//! What the names of GGUF files say: quantization, split number, and what is safe to create.
//!
//! ```text
//! Qwen3-8B-Q4_K_M.gguf                       quantization Q4_K_M
//! gpt-oss-20b-mxfp4-00002-of-00003.gguf      second file of three, quantization MXFP4
//! mmproj-model-f16.gguf                      a vision projector, no language model
//! ```

use crate::error::is_unprintable;

/// Quantizations in the order in which they are preferred when none is asked for: first the usual
/// compromise, then its neighbours upwards and downwards, then what is large, then what is small
/// and rough.
const PREFERENCE: &[&str] = &[
    "Q4_K_M",
    "Q4_K_S",
    "Q4_0",
    "Q4_1",
    "MXFP4",
    "IQ4_NL",
    "IQ4_XS",
    "Q4_K_L",
    "Q4_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q5_0",
    "Q5_1",
    "Q5_K_L",
    "Q5_K",
    "Q6_K",
    "Q6_K_L",
    "Q8_0",
    "Q8_1",
    "Q4_K_XL",
    "Q5_K_XL",
    "Q6_K_XL",
    "Q8_K_XL",
    "MXFP4_MOE",
    "NVFP4",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_XL",
    "Q3_K_S",
    "Q3_K",
    "IQ3_M",
    "IQ3_S",
    "IQ3_XS",
    "IQ3_XXS",
    "BF16",
    "F16",
    "FP16",
    "F32",
    "FP32",
    "Q2_K_L",
    "Q2_K_XL",
    "Q2_K",
    "Q2_K_S",
    "IQ2_M",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "TQ2_0",
    "TQ1_0",
    "Q2_0",
    "IQ1_M",
    "IQ1_S",
    "Q1_0",
];

/// The most files that a split model may promise.
const MAX_SPLITS: u32 = 1024;

/// The base name of a `/`-separated path.
pub(crate) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether a name ends in `.gguf`.
pub(crate) fn is_gguf(path: &str) -> bool {
    strip_gguf(path).is_some()
}

fn strip_gguf(path: &str) -> Option<&str> {
    let at = path.len().checked_sub(".gguf".len())?;
    let (stem, extension) = path.split_at_checked(at)?;
    (!base_name(stem).is_empty() && extension.eq_ignore_ascii_case(".gguf")).then_some(stem)
}

/// A GGUF name taken apart: `{prefix}-{number:05}-of-{total:05}.gguf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Split<'a> {
    pub(crate) prefix: &'a str,
    /// From 1.
    pub(crate) number: u32,
    pub(crate) total: u32,
}

impl<'a> Split<'a> {
    /// `None` if the name is not that of a split file.
    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        let stem = strip_gguf(path)?;
        let (rest, total) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let digits = |s: &str| {
            (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit()))
                .then(|| s.parse::<u32>().ok())?
        };
        let (number, total) = (digits(number)?, digits(total)?);
        (1..=total).contains(&number).then_some(())?;
        (total <= MAX_SPLITS).then_some(Self { prefix, number, total })
    }

    /// The names of all files of the split model, in order.
    pub(crate) fn all(self) -> impl Iterator<Item = String> + use<'a> {
        (1..=self.total).map(move |n| format!("{}-{n:05}-of-{:05}.gguf", self.prefix, self.total))
    }
}

/// All files of the model that `path` belongs to, in order; one name if it is not split.
pub(crate) fn with_splits(path: &str) -> Vec<String> {
    Split::parse(path).map_or_else(|| vec![path.to_owned()], |s| s.all().collect())
}

/// The stem that says what is in the file: base name without extension and split number.
fn stem(path: &str) -> &str {
    let name = base_name(path);
    Split::parse(name).map_or_else(|| strip_gguf(name).unwrap_or(name), |s| s.prefix)
}

/// The quantization that a file's name ends with, as written in [`PREFERENCE`].
pub(crate) fn quant_of(path: &str) -> Option<&'static str> {
    PREFERENCE.iter().copied().find(|label| ends_with_word(stem(path), label))
}

/// Whether `text` is `word` or ends in `word` after one of `-._`, in any case.
fn ends_with_word(text: &str, word: &str) -> bool {
    let Some(at) = text.len().checked_sub(word.len()) else { return false };
    let Some((before, end)) = text.split_at_checked(at) else { return false };
    end.eq_ignore_ascii_case(word) && (before.is_empty() || before.ends_with(['-', '.', '_']))
}

/// Whether the file holds something other than a language model.
fn is_accessory(path: &str) -> bool {
    let name = base_name(path).to_ascii_lowercase();
    name.starts_with("mmproj") || name.contains("-mmproj") || name.contains("imatrix")
}

/// Models among files: each is the path of its only or first file, together with how good a default
/// it is.
fn models<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<(usize, &'a str)> {
    let mut found: Vec<(usize, &str)> = paths
        .into_iter()
        .filter(|p| is_gguf(p) && !is_accessory(p))
        .filter(|p| Split::parse(p).is_none_or(|s| s.number == 1))
        .map(|p| {
            let quant = quant_of(p);
            let rank = PREFERENCE.iter().position(|q| Some(*q) == quant);
            (rank.unwrap_or(PREFERENCE.len()), p)
        })
        .collect();
    found.sort_unstable();
    found
}

/// The (first) file of the model that `quant` asks for, or of the best default.
///
/// # Errors
/// The names of what there is, best default first.
pub(crate) fn choose<'a>(
    paths: impl IntoIterator<Item = &'a str>,
    quant: Option<&str>,
) -> Result<&'a str, Vec<String>> {
    let models = models(paths);
    let wanted = |path: &str| match quant {
        None => true,
        Some(q) => ends_with_word(stem(path), q),
    };
    // Of several matches the shortest name: `X-Q4_K_M` before `X-UD-Q4_K_M`.
    models
        .iter()
        .filter(|(_, path)| wanted(path))
        .min_by_key(|(rank, path)| (*rank, path.len(), *path))
        .map(|(_, path)| *path)
        .ok_or_else(|| models.iter().take(40).map(|(_, path)| (*path).to_owned()).collect())
}

/// Every model among the files, best default first.
pub(crate) fn all_models<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    models(paths).into_iter().map(|(_, path)| path).collect()
}

/// A single file name that is safe to create in a folder on every system: visible, no separators,
/// nothing that Windows reserves, at most 200 bytes.
pub(crate) fn is_safe_name(name: &str) -> bool {
    let device = name.split('.').next().unwrap_or_default().to_ascii_uppercase();
    let numbered = |prefix: &str| {
        device
            .strip_prefix(prefix)
            .is_some_and(|n| n.len() == 1 && n.as_bytes()[0].is_ascii_digit())
    };
    (1..=200).contains(&name.len())
        && !name.starts_with('.')
        && !name.ends_with(['.', ' '])
        && !name.chars().any(|c| is_unprintable(c) || "/\\:*?\"<>|".contains(c))
        && !matches!(device.as_str(), "CON" | "PRN" | "AUX" | "NUL")
        && !numbered("COM")
        && !numbered("LPT")
}

/// A relative `/`-separated path all of whose parts are safe names.
pub(crate) fn is_safe_path(path: &str) -> bool {
    path.len() <= 1000 && path.split('/').count() <= 8 && path.split('/').all(is_safe_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantization_is_read_from_the_end_of_the_name() {
        let check = |path: &str, quant: Option<&str>| assert_eq!(quant_of(path), quant, "{path}");
        check("Qwen3-8B-Q4_K_M.gguf", Some("Q4_K_M"));
        check("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", Some("Q4_K_M"));
        check("SmolLM2-135M-Instruct.Q4_1.gguf", Some("Q4_1"));
        check("gpt-oss-20b-mxfp4.gguf", Some("MXFP4"));
        check("Q8_0/big-Q8_0-00001-of-00002.gguf", Some("Q8_0"));
        check("Qwen3-4B-UD-Q4_K_XL.gguf", Some("Q4_K_XL"));
        check("model-BF16.GGUF", Some("BF16"));
        check("model.gguf", None);
        check("faq4_0.gguf", None);
        check("q4_0.gguf", Some("Q4_0"));
        check("é.gguf", None);
        check(".gguf", None);
    }

    #[test]
    fn splits_are_recognised_and_completed() {
        let check = |path: &str, split: Option<(&str, u32, u32)>| {
            let found = Split::parse(path).map(|s| (s.prefix, s.number, s.total));
            assert_eq!(found, split, "{path}");
        };
        check("a-00001-of-00003.gguf", Some(("a", 1, 3)));
        check("d/a-Q4_0-00003-of-00003.gguf", Some(("d/a-Q4_0", 3, 3)));
        check("a-00004-of-00003.gguf", None);
        check("a-00000-of-00003.gguf", None);
        check("a-00001-of-99999.gguf", None);
        check("a-1-of-3.gguf", None);
        check("a-+0001-of-00003.gguf", None);
        check("a.gguf", None);
        assert_eq!(with_splits("a.gguf"), ["a.gguf"]);
        assert_eq!(
            with_splits("a-00002-of-00002.gguf"),
            ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]
        );
    }

    #[test]
    fn choice_follows_the_request_then_the_preference() {
        let check = |files: &[&str], quant: Option<&str>, expected: Option<&str>| {
            let chosen = choose(files.iter().copied(), quant);
            assert_eq!(chosen.ok(), expected, "{files:?} {quant:?}");
        };
        let usual = [
            "README.md",
            "m-Q2_K.gguf",
            "m-Q8_0.gguf",
            "m-Q4_K_M.gguf",
            "m-UD-Q4_K_M.gguf",
            "m-f16.gguf",
        ];
        check(&usual, None, Some("m-Q4_K_M.gguf"));
        check(&usual, Some("q8_0"), Some("m-Q8_0.gguf"));
        check(&usual, Some("UD-Q4_K_M"), Some("m-UD-Q4_K_M.gguf"));
        check(&usual, Some("F16"), Some("m-f16.gguf"));
        check(&usual, Some("Q3_K_M"), None);
        check(&usual, Some("16"), None);
        check(&["m-Q8_0.gguf", "mmproj-m-Q4_K_M.gguf"], None, Some("m-Q8_0.gguf"));
        check(&["m.gguf"], None, Some("m.gguf"));
        check(&["m.gguf", "m-F16.gguf"], None, Some("m-F16.gguf"));
        check(
            &["m-Q4_K_M-00002-of-00002.gguf", "m-Q4_K_M-00001-of-00002.gguf"],
            Some("Q4_K_M"),
            Some("m-Q4_K_M-00001-of-00002.gguf"),
        );
        check(&["model.safetensors"], None, None);
    }

    #[test]
    fn only_harmless_names_are_safe() {
        for name in ["a.gguf", "Modell mit Leerzeichen.gguf", "é.gguf", "console.gguf"] {
            assert!(is_safe_name(name), "{name}");
        }
        let long = "x".repeat(201);
        for name in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "a\\b",
            "C:x",
            "a\nb",
            "a\0b",
            "a\u{202e}b",
            "a.",
            "NUL",
            "com1.gguf",
            &long,
        ] {
            assert!(!is_safe_name(name), "{name:?}");
        }
        assert!(is_safe_path("Q8_0/a.gguf"));
        for path in ["../a.gguf", "/a.gguf", "a//b", "a/../b", "a/./b", "c:/x", "a/b/c/d/e/f/g/h/i"]
        {
            assert!(!is_safe_path(path), "{path}");
        }
    }
}
