//! What a model can do.
use crate::{ChatTemplate, Tokenizer};
use hurtle_gguf::Metadata;

/// What a model can do by what its file says, under Ollama's names. `tok` and `template`, if it has them.
pub fn capabilities(
    metadata: &Metadata,
    tok: Option<&Tokenizer>,
    template: Option<&ChatTemplate>,
) -> Vec<&'static str> {
    let arch = metadata.string("general.architecture").ok().flatten().unwrap_or_default();
    if metadata.get(&format!("{arch}.pooling_type")).is_some() {
        return vec!["embedding"];
    }
    let fills_in = |tok: &Tokenizer| {
        let marks = tok.fill_in_middle();
        marks.prefix.is_some() && marks.suffix.is_some()
    };
    let found = [
        ("completion", true),
        ("insert", tok.is_some_and(fills_in)),
        ("tools", template.is_some_and(ChatTemplate::supports_tools)),
        ("thinking", template.is_some_and(ChatTemplate::supports_reasoning)),
    ];
    found.into_iter().filter(|(_, can)| *can).map(|(name, _)| name).collect()
}
