//! `hurtle show`: what a model file holds.
use super::table;
use crate::args::GlobalArgs;
use crate::models;
use crate::terminal::{bytes, count, harmless};
use anyhow::{Result, bail};
use clap::Args;
use hurtle_gguf::{Array, Gguf, Metadata, StringArray, Value};
use hurtle_text::{ChatTemplate, Tokenizer};
use serde::Serialize;
use serde_json::{Map, json};
use std::fmt::Write as _;

/// Most elements of an array that are shown.
const SHOWN_ELEMENTS: usize = 8;
/// Most characters of a text that are shown.
const SHOWN_CHARS: usize = 200;

/// Shows what a model file holds. The weights are not read.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle show smollm2
  hurtle show model.gguf --tensors
  hurtle show hf:user/repo --json | jq .context_length")]
pub(crate) struct ShowArgs {
    /// The model; the same as --model
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    spec: Option<String>,
    /// The model
    #[arg(short, long, env = "HURTLE_MODEL", default_value = hurtle_hub::DEFAULT_MODEL)]
    model: String,
    /// Show all metadata, long values shortened
    #[arg(long)]
    metadata: bool,
    /// Show all tensors with their types and sizes
    #[arg(long)]
    tensors: bool,
    /// Print the chat template, exactly as the file has it
    #[arg(long, conflicts_with_all = ["metadata", "tensors", "json"])]
    template: bool,
    /// Print one JSON object; --metadata and --tensors add to it
    #[arg(long)]
    json: bool,
}

pub(crate) fn execute(args: &ShowArgs, globals: &GlobalArgs) -> Result<()> {
    let spec = args.spec.as_ref().unwrap_or(&args.model);
    let local = models::resolve(spec, globals)?;
    let gguf = Gguf::open(&local.path)?;
    if args.template {
        let Some(template) = gguf.metadata().string("tokenizer.chat_template")? else {
            bail!(
                "{}: the file has no chat template\n\
                 hint: --chat-template NAME chooses one for 'hurtle run' and 'hurtle chat'",
                local.path.display()
            );
        };
        return super::print_foreign(template);
    }
    let info = Info::of(&gguf)?;
    if args.json {
        let mut object = serde_json::to_value(&info)?;
        if args.metadata {
            object["metadata"] = metadata_json(gguf.metadata()).into();
        }
        if args.tensors {
            object["tensor_list"] = tensors_json(&gguf).into();
        }
        return super::print_json(&object);
    }
    let mut out = info.to_text();
    if args.metadata {
        out.push_str("\nMetadata\n");
        for (key, value) in gguf.metadata().iter() {
            let _ = writeln!(out, "  {} = {}", harmless(key), show_value(value));
        }
    }
    if args.tensors {
        out.push_str("\nTensors\n");
        let row = |t: &hurtle_gguf::TensorInfo| {
            let dims: Vec<String> = t.dims().iter().map(u64::to_string).collect();
            let n_bytes = bytes(t.n_bytes() as u64);
            [harmless(t.name()), t.ty().to_string(), format!("[{}]", dims.join(", ")), n_bytes]
        };
        let rows: Vec<_> = gguf.tensors().iter().map(row).collect();
        out.push_str(&table(["NAME", "TYPE", "DIMENSIONS", "SIZE"], &rows));
    }
    super::print(&out)
}

/// What most people want to know of a model.
#[derive(Debug, Serialize)]
pub(crate) struct Info {
    path: String,
    files: usize,
    bytes: u64,
    gguf_version: u32,
    name: Option<String>,
    architecture: Option<String>,
    parameters: u64,
    size_label: Option<String>,
    quantization: Vec<TypeShare>,
    context_length: Option<u64>,
    embedding_length: Option<u64>,
    layers: Option<u64>,
    vocabulary: Option<usize>,
    tokenizer: Option<String>,
    chat_template: bool,
    license: Option<String>,
    capabilities: Vec<&'static str>,
}

/// What one weight type takes of a file.
#[derive(Debug, Serialize)]
struct TypeShare {
    #[serde(rename = "type")]
    ty: &'static str,
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

impl Info {
    /// Reads the metadata of a file.
    pub(crate) fn of(gguf: &Gguf) -> Result<Self> {
        let metadata = gguf.metadata();
        let string = |key: &str| metadata.string(key).map(|text| text.map(str::to_owned));
        let architecture = string("general.architecture")?;
        let number = |key: &str| match &architecture {
            Some(arch) => metadata.u64(&format!("{arch}.{key}")),
            None => Ok(None),
        };
        let template = metadata.string("tokenizer.chat_template")?;
        let tokenizer = match (string("tokenizer.ggml.model")?, string("tokenizer.ggml.pre")?) {
            (Some(model), Some(pre)) => Some(format!("{model} ({pre})")),
            (model, _) => model,
        };
        let path = gguf.paths().first().map(|path| path.display().to_string());
        Ok(Self {
            path: path.unwrap_or_default(),
            files: gguf.paths().len(),
            bytes: gguf.file_len(),
            gguf_version: gguf.version(),
            name: string("general.name")?,
            parameters: gguf.n_params(),
            size_label: string("general.size_label")?,
            quantization: type_shares(gguf),
            context_length: number("context_length")?,
            embedding_length: number("embedding_length")?,
            layers: number("block_count")?,
            vocabulary: metadata.strings("tokenizer.ggml.tokens")?.map(StringArray::len),
            tokenizer,
            chat_template: template.is_some(),
            license: string("general.license")?,
            capabilities: hurtle_text::capabilities(
                metadata,
                Tokenizer::from_metadata(metadata).ok().as_ref(),
                template.and_then(|source| ChatTemplate::new(source, "", "").ok()).as_ref(),
            ),
            architecture,
        })
    }

    /// As lines for a person.
    pub(crate) fn to_text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                let _ = writeln!(out, "{name:<18} {}", harmless(&value));
            }
        };
        let files =
            if self.files > 1 { format!(" in {} files", self.files) } else { String::new() };
        line("file", Some(self.path.clone()));
        line(
            "size",
            Some(format!("{}{files}, GGUF version {}", bytes(self.bytes), self.gguf_version)),
        );
        line("name", self.name.clone());
        line("architecture", self.architecture.clone());
        let label = self.size_label.as_ref().map(|label| format!(" ({label})"));
        line("parameters", Some(count(self.parameters) + &label.unwrap_or_default()));
        line("context length", self.context_length.map(|n| n.to_string()));
        line("embedding length", self.embedding_length.map(|n| n.to_string()));
        line("layers", self.layers.map(|n| n.to_string()));
        line("vocabulary", self.vocabulary.map(|n| n.to_string()));
        line("tokenizer", self.tokenizer.clone());
        line("chat template", Some(if self.chat_template { "yes" } else { "no" }.into()));
        line("license", self.license.clone());
        line("capabilities", Some(self.capabilities.join(", ")));
        let share = |share: &TypeShare| {
            let percent = 100.0 * share.bytes as f64 / self.bytes.max(1) as f64;
            format!(
                "{} {} tensors, {} ({percent:.1} %)",
                share.ty,
                share.tensors,
                bytes(share.bytes)
            )
        };
        for (i, text) in self.quantization.iter().map(share).enumerate() {
            line(if i == 0 { "quantization" } else { "" }, Some(text));
        }
        out
    }
}

/// The weight types of a file, the one with most bytes first.
fn type_shares(gguf: &Gguf) -> Vec<TypeShare> {
    let mut shares: Vec<TypeShare> = Vec::new();
    for tensor in gguf.tensors() {
        let ty = tensor.ty().name();
        let i = shares.iter().position(|share| share.ty == ty).unwrap_or_else(|| {
            shares.push(TypeShare { ty, tensors: 0, parameters: 0, bytes: 0 });
            shares.len() - 1
        });
        shares[i].tensors += 1;
        shares[i].parameters = shares[i].parameters.saturating_add(tensor.n_elements());
        shares[i].bytes = shares[i].bytes.saturating_add(tensor.n_bytes() as u64);
    }
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    shares
}

fn tensors_json(gguf: &Gguf) -> Vec<serde_json::Value> {
    let object = |t: &hurtle_gguf::TensorInfo| json!({"name": t.name(), "type": t.ty().name(), "dims": t.dims(), "bytes": t.n_bytes()});
    gguf.tensors().iter().map(object).collect()
}

fn metadata_json(metadata: &Metadata) -> Map<String, serde_json::Value> {
    metadata.iter().map(|(key, value)| (key.to_owned(), json_value(value))).collect()
}

/// A value as JSON; arrays of more than a few elements as `{"length": n, "first": [...]}`.
fn json_value(value: &Value) -> serde_json::Value {
    match value {
        Value::U8(x) => json!(x),
        Value::I8(x) => json!(x),
        Value::U16(x) => json!(x),
        Value::I16(x) => json!(x),
        Value::U32(x) => json!(x),
        Value::I32(x) => json!(x),
        Value::F32(x) => short(*x),
        Value::Bool(x) => json!(x),
        Value::String(x) => json!(x),
        Value::U64(x) => json!(x),
        Value::I64(x) => json!(x),
        Value::F64(x) => json!(x),
        Value::Array(array) => {
            let (length, first) = first_elements(array);
            if length > first.len() {
                json!({"length": length, "first": first})
            } else {
                json!(first)
            }
        }
    }
}

/// A number as short as a 32-bit float can be written: 0.1, not 0.10000000149011612.
fn short(x: f32) -> serde_json::Value {
    x.to_string().parse::<f64>().map_or(serde_json::Value::Null, |x| json!(x))
}

/// The length of an array, and its first elements.
fn first_elements(array: &Array) -> (usize, Vec<serde_json::Value>) {
    fn first<T: Serialize>(values: &[T]) -> (usize, Vec<serde_json::Value>) {
        (values.len(), values.iter().take(SHOWN_ELEMENTS).map(|value| json!(value)).collect())
    }
    match array {
        Array::U8(x) => first(x),
        Array::I8(x) => first(x),
        Array::U16(x) => first(x),
        Array::I16(x) => first(x),
        Array::U32(x) => first(x),
        Array::I32(x) => first(x),
        Array::F32(x) => (x.len(), x.iter().take(SHOWN_ELEMENTS).map(|&x| short(x)).collect()),
        Array::Bool(x) => first(x),
        Array::U64(x) => first(x),
        Array::I64(x) => first(x),
        Array::F64(x) => first(x),
        Array::String(x) => {
            let texts = x.iter().take(SHOWN_ELEMENTS);
            (x.len(), texts.map(|text| json!(String::from_utf8_lossy(text))).collect())
        }
        Array::Nested(x) => {
            let nested = x.iter().take(SHOWN_ELEMENTS);
            (x.len(), nested.map(|array| json!({"length": first_elements(array).0})).collect())
        }
    }
}

/// A value on one line.
fn show_value(value: &Value) -> String {
    if let Value::Array(array) = value {
        let (length, first) = first_elements(array);
        let shown: Vec<String> =
            first.iter().map(|element| shorten(&element.to_string())).collect();
        let more = if length > shown.len() { ", ..." } else { "" };
        return format!("[{}{more}] ({length})", shown.join(", "));
    }
    shorten(&json_value(value).to_string())
}

fn shorten(text: &str) -> String {
    let text = harmless(text);
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((at, _)) => format!("{}... ({} bytes)", &text[..at], text.len()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shortened() {
        let check = |value: Value, expected: &str| assert_eq!(show_value(&value), expected);
        check(Value::U32(7), "7");
        check(Value::F32(0.1), "0.1");
        check(Value::String("a\u{1b}\n".into()), "\"a\\u001b\\n\"");
        check(Value::Array(Array::I32(vec![1, 2])), "[1, 2] (2)");
        check(Value::Array(Array::U8(vec![1; 9])), "[1, 1, 1, 1, 1, 1, 1, 1, ...] (9)");
        let long = show_value(&Value::String("é".repeat(300)));
        assert!(long.ends_with("é... (602 bytes)"), "{long}");
    }
}
