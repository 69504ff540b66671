//! The ways in which models call tools, known by their templates.
use crate::Tokenizer;

/// How a model writes its answers: what it thinks, and the tools that it calls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnswerFormat {
    pub(super) row: &'static Row,
    /// What stands around reasoning.
    pub(super) reasoning: (&'static str, &'static str),
    /// Markers around an answer that are no part of it.
    pub(super) dropped: &'static [&'static str],
    /// The template itself lets the model know of tools.
    pub(super) native: bool,
}

/// Whether an answer begins with reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reasoning {
    /// It does not, unless the model does so unasked.
    #[default]
    Off,
    /// It may: the model opens a section of reasoning itself.
    Possible,
    /// It does: the prompt has opened a section of reasoning.
    Opened,
}

/// A free text that comes before an answer's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// What it begins with, where it may be missing.
    pub begin: Option<&'static str>,
    /// What it ends with.
    pub end: &'static str,
    /// Whether white space may follow that is no part of the answer.
    pub space: bool,
}

/// One way to call tools.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    pub(super) name: &'static str,
    /// Parts of a template that are found only where models are trained in this way; all of them.
    evidence: &'static [&'static str],
    pub(super) calls: Calls,
    /// Markers around calls that say nothing more.
    pub(super) dropped: &'static [&'static str],
}

/// How a call is written.
#[derive(Debug, PartialEq)]
pub(super) enum Calls {
    /// An object of name and arguments, or a list of them: `<tool_call>{"name": "f", "arguments": {}}</tool_call>`.
    Json {
        open: &'static str,
        /// Empty if nothing closes it.
        close: &'static str,
        name: &'static str,
        arguments: &'static str,
        /// All calls of an answer are one list.
        list: bool,
    },
    /// The name, then an object of arguments: `[TOOL_CALLS]f[ARGS]{}`.
    Named {
        open: &'static str,
        /// What may stand between the name and something that is not needed.
        id: &'static str,
        separator: &'static str,
        close: &'static str,
    },
    /// A tag for each argument: `<function=f><parameter=a>1</parameter></function>`.
    Tagged(Tags),
    /// `call:f{a:<escape>text<escape>}`.
    Gemma { open: &'static str, close: &'static str, quote: &'static str },
    /// `[f(a="text")]`.
    Python { open: &'static str, close: &'static str },
    /// gpt-oss: messages in channels, with a recipient.
    Harmony,
}

/// The tags of [`Calls::Tagged`].
#[derive(Debug, PartialEq)]
pub(super) struct Tags {
    /// What stands around calls.
    pub(super) wrapper: (&'static str, &'static str),
    /// Before the name; empty if it follows the wrapper.
    pub(super) open: &'static str,
    pub(super) name_end: &'static str,
    pub(super) key: &'static str,
    pub(super) key_end: &'static str,
    /// Between key and value; may be empty.
    pub(super) value: &'static str,
    pub(super) value_end: &'static str,
    pub(super) close: &'static str,
}

impl Tags {
    /// What stands before the name of a tool, and behind the last argument.
    pub(super) fn around(&self) -> ([&'static str; 3], [&'static str; 4]) {
        match self.open {
            "" => ([self.wrapper.0, "", ""], ["\n", self.close, "", ""]),
            open => ([self.wrapper.0, "\n", open], ["\n", self.close, "\n", self.wrapper.1]),
        }
    }

    /// What stands around a value apart from the tags: values have lines of their own, or tags of their own.
    pub(super) fn line(&self) -> (&'static str, &'static str) {
        if self.value.is_empty() { ("\n", "\n") } else { ("", "") }
    }
}

const fn json(
    name: &'static str,
    evidence: &'static [&'static str],
    (open, close): (&'static str, &'static str),
    (name_key, arguments): (&'static str, &'static str),
    list: bool,
) -> Row {
    let calls = Calls::Json { open, close, name: name_key, arguments, list };
    Row { name, evidence, calls, dropped: &[] }
}

const ARGUMENTS: (&str, &str) = ("name", "arguments");
const PARAMETERS: (&str, &str) = ("name", "parameters");

/// What models are asked for that have not been trained to call tools.
static GENERIC: Row = json("generic", &[], ("<tool_call>", "</tool_call>"), ARGUMENTS, false);
/// Templates that show tools in a way that is not known.
static UNKNOWN: Row = json("unknown", &[], ("<tool_call>", "</tool_call>"), ARGUMENTS, false);

/// The first whose evidence a template shows counts.
static ROWS: &[Row] = &[
    Row {
        name: "gpt-oss",
        evidence: &["<|start|>", "<|message|>"],
        calls: Calls::Harmony,
        dropped: &[],
    },
    Row {
        name: "gemma 4",
        evidence: &["<|tool_call>"],
        calls: Calls::Gemma { open: "<|tool_call>", close: "<tool_call|>", quote: "<|\"|>" },
        dropped: &[],
    },
    Row {
        name: "function-gemma",
        evidence: &["<start_function_call>"],
        calls: Calls::Gemma {
            open: "<start_function_call>",
            close: "<end_function_call>",
            quote: "<escape>",
        },
        dropped: &[],
    },
    Row {
        name: "deepseek",
        evidence: &["<｜tool▁call▁begin｜>"],
        calls: Calls::Named {
            open: "<｜tool▁call▁begin｜>",
            id: "",
            separator: "<｜tool▁sep｜>",
            close: "<｜tool▁call▁end｜>",
        },
        dropped: &["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"],
    },
    Row {
        name: "kimi",
        evidence: &["<|tool_call_argument_begin|>"],
        calls: Calls::Named {
            open: "<|tool_call_begin|>",
            id: "",
            separator: "<|tool_call_argument_begin|>",
            close: "<|tool_call_end|>",
        },
        dropped: &["<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"],
    },
    Row {
        name: "mistral",
        evidence: &["[TOOL_CALLS]", "[ARGS]"],
        calls: Calls::Named {
            open: "[TOOL_CALLS]",
            id: "[CALL_ID]",
            separator: "[ARGS]",
            close: "",
        },
        dropped: &[],
    },
    Row {
        name: "minimax",
        evidence: &["<invoke name="],
        calls: Calls::Tagged(Tags {
            wrapper: ("<minimax:tool_call>", "</minimax:tool_call>"),
            open: "<invoke name=\"",
            name_end: "\">",
            key: "<parameter name=\"",
            key_end: "\">",
            value: "",
            value_end: "</parameter>",
            close: "</invoke>",
        }),
        dropped: &[],
    },
    Row {
        name: "seed-oss",
        evidence: &["<seed:tool_call>"],
        calls: Calls::Tagged(Tags {
            wrapper: ("<seed:tool_call>", "</seed:tool_call>"),
            ..FUNCTION
        }),
        dropped: &[],
    },
    Row {
        name: "qwen3-coder",
        evidence: &["<tool_call>", "<function="],
        calls: Calls::Tagged(FUNCTION),
        dropped: &[],
    },
    Row {
        name: "glm",
        evidence: &["<tool_call>", "<arg_key>"],
        calls: Calls::Tagged(Tags {
            wrapper: ("<tool_call>", ""),
            open: "",
            name_end: "",
            key: "<arg_key>",
            key_end: "</arg_key>",
            value: "<arg_value>",
            value_end: "</arg_value>",
            close: "</tool_call>",
        }),
        dropped: &[],
    },
    json("mistral-nemo", &["[TOOL_CALLS]"], ("[TOOL_CALLS]", ""), ARGUMENTS, true),
    json(
        "command-r",
        &["<|START_ACTION|>"],
        ("<|START_ACTION|>", "<|END_ACTION|>"),
        ("tool_name", "parameters"),
        true,
    ),
    json("nemotron", &["<TOOLCALL>"], ("<TOOLCALL>", "</TOOLCALL>"), ARGUMENTS, true),
    Row {
        name: "lfm2",
        evidence: &["<|tool_list_start|>"],
        calls: Calls::Python { open: "<|tool_call_start|>", close: "<|tool_call_end|>" },
        dropped: &[],
    },
    json("phi-4", &["<|tool|>"], ("<|tool_call|>", "<|/tool_call|>"), ARGUMENTS, true),
    json("granite", &["<|tool_call|>"], ("<|tool_call|>", ""), ARGUMENTS, true),
    json("hermes", &["<tool_call>"], ("<tool_call>", "</tool_call>"), ARGUMENTS, false),
    json("llama3", &["<|python_tag|>"], ("<|python_tag|>", ""), PARAMETERS, false),
    json(
        "llama3",
        &["\"parameters\": dictionary of argument name"],
        ("<|python_tag|>", ""),
        PARAMETERS,
        false,
    ),
];

const FUNCTION: Tags = Tags {
    wrapper: ("<tool_call>", "</tool_call>"),
    open: "<function=",
    name_end: ">",
    key: "<parameter=",
    key_end: ">",
    value: "",
    value_end: "</parameter>",
    close: "</function>",
};

/// What stands around reasoning; the first that a template shows counts.
const REASONING: &[(&str, &str)] = &[
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
];
const THINK: (&str, &str) = ("<think>", "</think>");

/// Markers around what is not reasoning.
const ANSWER: &[&[&str]] =
    &[&["<response>", "</response>"], &["<|START_RESPONSE|>", "<|END_RESPONSE|>"]];

impl AnswerFormat {
    /// The format of the models that have this template; `shows_tools`: it lets them know of tools.
    pub(crate) fn of_template(source: &str, shows_tools: bool) -> Self {
        let shown = |text: &str| source.contains(text);
        let known = ROWS.iter().find(|row| row.evidence.iter().all(|text| shown(text)));
        let row = known.unwrap_or(if shows_tools { &UNKNOWN } else { &GENERIC });
        let reasoning = REASONING.iter().find(|(open, _)| source.contains(open));
        let dropped = ANSWER.iter().find(|markers| markers.iter().all(|text| shown(text)));
        Self {
            row,
            reasoning: *reasoning.unwrap_or(&THINK),
            dropped: dropped.copied().unwrap_or_default(),
            native: shows_tools,
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.row.name
    }

    /// Whether a prompt opens a section of reasoning that the answer goes on with.
    pub(crate) fn opens_reasoning(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.reasoning.0)
    }

    /// Whether a prompt ends with a section of reasoning, which is empty.
    pub(crate) fn closes_reasoning(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.reasoning.1)
    }

    /// Whether an answer can be begun for the model: not where what it says follows a header that tells what it is.
    pub fn can_be_begun(&self) -> bool {
        !matches!(self.row.calls, Calls::Harmony)
    }

    /// What opens and closes reasoning.
    pub fn reasoning(&self) -> (&'static str, &'static str) {
        self.reasoning
    }

    /// What comes before the form that an answer is to have: reasoning, and the header of the message.
    pub fn opening(&self, reasoning: Reasoning) -> Option<Opening> {
        let (begin, end) = self.reasoning;
        match (reasoning, &self.row.calls) {
            (Reasoning::Off, _) => None,
            (_, Calls::Harmony) => {
                Some(Opening { begin: None, end: "<|channel|>final<|message|>", space: false })
            }
            (Reasoning::Possible, _) => Some(Opening { begin: Some(begin), end, space: true }),
            (Reasoning::Opened, _) => Some(Opening { begin: None, end, space: true }),
        }
    }

    /// What comes before an answer of [`Self::grammar`].
    pub fn opening_of_calls(&self, reasoning: Reasoning) -> Option<Opening> {
        // There it is a part of the grammar.
        self.opening(reasoning).filter(|_| self.row.calls != Calls::Harmony)
    }

    /// What closes each call, where a text does that stands for nothing else.
    pub fn closes_call(&self) -> Option<&'static str> {
        match self.row.calls {
            Calls::Json { close, list: false, .. } | Calls::Named { close, .. } => Some(close),
            Calls::Tagged(Tags { close, .. }) | Calls::Gemma { close, .. } => Some(close),
            Calls::Json { .. } | Calls::Python { .. } | Calls::Harmony => None,
        }
        .filter(|close| !close.is_empty())
    }

    /// The markers that are special tokens of a vocabulary, which an answer usually does not show.
    pub fn special_tokens(&self, tok: &Tokenizer, tools: bool) -> Vec<u32> {
        let mut texts = vec![self.reasoning.0, self.reasoning.1];
        texts.extend(self.dropped);
        match &self.row.calls {
            Calls::Harmony => texts.extend(HARMONY),
            _ if !tools => {}
            Calls::Json { open, close, .. } | Calls::Python { open, close } => {
                texts.extend([*open, close]);
            }
            Calls::Named { open, id, separator, close } => {
                texts.extend([*open, id, separator, close]);
            }
            Calls::Tagged(tags) => texts.extend([tags.wrapper.0, tags.wrapper.1, tags.close]),
            Calls::Gemma { open, close, quote } => texts.extend([*open, close, quote]),
        }
        if tools {
            texts.extend(self.row.dropped);
        }
        // Gemma 4 opens reasoning by a token and a word.
        let id = |text: &str| {
            tok.token_id(text).or_else(|| tok.token_id(text.trim_end_matches(char::is_alphabetic)))
        };
        texts.into_iter().filter_map(id).filter(|&id| tok.is_control(id)).collect()
    }
}

/// The markers of gpt-oss' messages.
pub(super) const HARMONY: [&str; 7] = [
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
];

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The format of this name, as a template that knows tools would have it.
    pub(in crate::tools) fn by_name(name: &str) -> AnswerFormat {
        if name == "generic" {
            return AnswerFormat::of_template("", false);
        }
        let row = ROWS.iter().find(|row| row.name == name).expect("a format");
        let mut source = row.evidence.concat();
        source += match name {
            "gemma 4" => "<|channel>thought",
            "command-r" => "<|START_THINKING|>",
            _ => "",
        };
        AnswerFormat::of_template(&source, true)
    }

    #[test]
    fn formats_of_real_templates() {
        let check = |file: &str, expected: &str| {
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/templates/");
            let source = std::fs::read_to_string(format!("{dir}{file}.jinja")).expect("a template");
            let template = crate::ChatTemplate::new(&source, "<s>", "</s>").expect("compiles");
            assert_eq!(template.answer_format().name(), expected, "{file}");
        };
        check("HuggingFaceTB-SmolLM3-3B", "generic");
        check("LFM2-8B-A1B", "lfm2");
        check("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "hermes");
        check("Qwen-Qwen2.5-7B-Instruct", "hermes");
        check("Qwen-Qwen3-0.6B", "hermes");
        check("deepseek-ai-DeepSeek-V3.1", "deepseek");
        check("google-gemma-2-2b-it", "generic");
        check("ibm-granite-granite-3.3-2B-Instruct", "granite");
        check("meta-llama-Llama-3.1-8B-Instruct", "llama3");
        check("microsoft-Phi-3.5-mini-instruct", "generic");
        check("mistralai-Mistral-Nemo-Instruct-2407", "mistral-nemo");
        check("openai-gpt-oss-120b", "gpt-oss");
    }

    #[test]
    fn no_marker_begins_another() {
        for row in ROWS {
            let mut markers: Vec<&str> = row.dropped.to_vec();
            markers.extend(ANSWER.iter().copied().flatten());
            match &row.calls {
                Calls::Tagged(tags) => markers.extend([tags.wrapper.0, tags.wrapper.1, tags.open]),
                Calls::Json { open, .. } | Calls::Named { open, .. } => markers.push(open),
                Calls::Gemma { open, .. } | Calls::Python { open, .. } => markers.push(open),
                Calls::Harmony => markers.extend(HARMONY),
            }
            markers.retain(|marker| !marker.is_empty());
            for (i, a) in markers.iter().enumerate() {
                for (k, b) in markers.iter().enumerate() {
                    assert!(i == k || !b.starts_with(a), "{}: {a} {b}", row.name);
                }
            }
        }
    }
}
