//! Embeddings as OpenAI, llama.cpp and Ollama have them, and the reranking of Jina, Cohere and TEI.
use super::fields::Fields;
use super::options;
use crate::embedder::{Embedded, TooLong, normalize};
use crate::error::ApiError;
use crate::keep_alive::KeepAlive;
use crate::request::Prompt;
use crate::wire::ollama::IGNORED_OPTIONS;
use crate::wire::openai::read_prompts_of;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hurtle_engine::sampler::SamplerParams;
use serde_json::{Value, json};

/// Most texts in a request, OpenAI's limit.
const MAX_TEXTS: usize = 2048;

/// What is wanted of a model.
#[derive(Debug)]
pub(crate) struct Embeddings {
    pub(crate) model: Option<String>,
    pub(crate) inputs: Vec<Prompt>,
    pub(crate) shape: Shape,
    pub(crate) too_long: TooLong,
    pub(crate) keep_alive: Option<KeepAlive>,
    pub(crate) n_ctx: Option<usize>,
}

/// How vectors are given back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    base64: bool,
    /// To length 1; `None`: if it is one vector for a text.
    normalized: Option<bool>,
    /// Only so many of the values.
    dimensions: Option<usize>,
}

fn inputs(value: &Value, param: &str) -> Result<Vec<Prompt>, ApiError> {
    read_prompts_of(value, param, MAX_TEXTS)
}

fn dimensions(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let dimensions = fields.opt("dimensions")?;
    match dimensions {
        Some(0) => Err(fields.wrong("dimensions", "expected at least 1, found 0")),
        dimensions => Ok(dimensions),
    }
}

/// Reads the body of `/v1/embeddings`, or llama.cpp's own `/embedding`.
pub(crate) fn parse_embeddings(body: &[u8], native: bool) -> Result<Embeddings, ApiError> {
    let mut fields = Fields::parse(body)?;
    let names: &[&str] = if native { &["content", "input"] } else { &["input", "content"] };
    let input = fields.any::<Value>(names)?;
    let input = input.ok_or_else(|| fields.wrong(names[0], "is missing"))?;
    let base64 = match fields.opt::<String>("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let what = format!("expected float or base64, found {other}");
            return Err(fields.wrong("encoding_format", &what));
        }
    };
    let normalized = match fields.opt::<i64>("embd_normalize")? {
        None => None,
        Some(2) => Some(true),
        Some(-1) => Some(false),
        Some(n) => {
            let what = format!("expected -1 (none) or 2 (to length 1), found {n}");
            return Err(fields.wrong("embd_normalize", &what));
        }
    };
    let dimensions = dimensions(&mut fields)?;
    let request = Embeddings {
        model: fields.opt("model")?,
        inputs: inputs(&input, names[0])?,
        shape: Shape { base64, normalized, dimensions },
        too_long: TooLong::Refuse,
        keep_alive: None,
        n_ctx: None,
    };
    fields.finish(&["user"])?;
    Ok(request)
}

/// Reads the body of Ollama's `/api/embed`, or of the older `/api/embeddings`.
pub(crate) fn parse_ollama(body: &[u8], old: bool) -> Result<Embeddings, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = fields.required("model")?;
    let name = if old { "prompt" } else { "input" };
    let input = fields.opt::<Value>(name)?.unwrap_or_else(|| json!([]));
    // Nothing to embed means that the model is to be loaded.
    let inputs = match &input {
        Value::String(text) if text.is_empty() => Vec::new(),
        Value::Array(none) if none.is_empty() => Vec::new(),
        Value::Array(_) if old => return Err(fields.wrong(name, "expected a text")),
        input => inputs(input, name)?,
    };
    let mut generate = options::defaults(&SamplerParams::default());
    if let Some(mut options) = fields.object("options")? {
        // Clients send the options of chats along; how tokens are chosen changes no embedding.
        options::sampling(&mut options, &mut generate)?;
        options::stop(&mut options, "stop", &mut generate)?;
        options::length(&mut options, &["num_predict"], &mut generate)?;
        generate.n_ctx = options.opt("num_ctx")?;
        options.finish(IGNORED_OPTIONS)?;
    }
    let keep_alive = super::ollama::keep_alive(&mut fields)?;
    let truncate = old || fields.opt("truncate")?.unwrap_or(true);
    let dimensions = if old { None } else { dimensions(&mut fields)? };
    fields.finish(&[])?;
    Ok(Embeddings {
        model: Some(model),
        inputs,
        shape: Shape { base64: false, normalized: Some(!old), dimensions },
        too_long: if truncate { TooLong::Truncate } else { TooLong::Refuse },
        keep_alive,
        n_ctx: generate.n_ctx,
    })
}

impl Shape {
    /// The vectors of a text's tokens in this shape.
    pub(crate) fn of_tokens(self, vectors: Vec<Vec<f32>>) -> Result<Vec<Value>, ApiError> {
        let normalized = Some(self.normalized.unwrap_or(false));
        Self { normalized, ..self }.vectors(vectors)
    }

    /// The vectors in this shape.
    pub(crate) fn vectors(self, vectors: Vec<Vec<f32>>) -> Result<Vec<Value>, ApiError> {
        let one = |mut vector: Vec<f32>| {
            if let Some(n) = self.dimensions {
                if n > vector.len() {
                    let most = vector.len();
                    let message = format!("dimensions: the model has {most}, found {n}");
                    return Err(ApiError::invalid("dimensions", message));
                }
                vector.truncate(n);
            }
            if self.normalized.unwrap_or(true) {
                normalize(&mut vector);
            }
            Ok(match self.base64 {
                false => json!(vector),
                true => {
                    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                    BASE64_STANDARD.encode(bytes).into()
                }
            })
        };
        vectors.into_iter().map(one).collect()
    }
}

/// OpenAI's reply.
pub(crate) fn openai(model: &str, vectors: Vec<Value>, n_tokens: usize) -> Value {
    let entry =
        |(index, vector)| json!({"object": "embedding", "index": index, "embedding": vector});
    json!({
        "object": "list",
        "data": vectors.into_iter().enumerate().map(entry).collect::<Value>(),
        "model": model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    })
}

/// llama.cpp's own: the vectors of each text, of which pooling leaves one.
pub(crate) fn llama_cpp(texts: Vec<Vec<Value>>) -> Value {
    let entry = |(index, vectors)| json!({"index": index, "embedding": vectors});
    texts.into_iter().enumerate().map(entry).collect()
}

/// Documents to be put in order.
#[derive(Debug)]
pub(crate) struct Rerank {
    pub(crate) model: Option<String>,
    pub(crate) query: String,
    pub(crate) documents: Vec<String>,
    pub(crate) reply: Ranked,
}

/// How their order is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ranked {
    top_n: usize,
    /// Repeat the documents.
    documents: bool,
    /// As Hugging Face's TEI does.
    tei: bool,
}

/// Reads the body of `/v1/rerank`: `documents` as Jina and Cohere have them, or TEI's `texts`.
pub(crate) fn parse_rerank(body: &[u8]) -> Result<Rerank, ApiError> {
    let mut fields = Fields::parse(body)?;
    let query = fields.required("query")?;
    let texts = fields.opt::<Vec<Value>>("texts")?;
    let tei = texts.is_some();
    let name = if tei { "texts" } else { "documents" };
    let documents = match texts {
        Some(texts) => texts,
        None => fields.required("documents")?,
    };
    if documents.is_empty() || documents.len() > MAX_TEXTS {
        let what = format!("expected 1 to {MAX_TEXTS} texts, found {}", documents.len());
        return Err(fields.wrong(name, &what));
    }
    let text = |(i, document): (usize, &Value)| {
        let text = document.as_str().or_else(|| document["text"].as_str());
        let wrong = || fields.wrong(&format!("{name}[{i}]"), "expected a text");
        text.map(str::to_owned).ok_or_else(wrong)
    };
    let documents: Vec<String> =
        documents.iter().enumerate().map(text).collect::<Result<_, _>>()?;
    let top_n = fields.opt("top_n")?.unwrap_or(documents.len());
    let repeat = fields.any(&["return_documents", "return_text"])?.unwrap_or(false);
    fields.only("truncate", json!(false), "shorten the documents yourself")?;
    fields.only("raw_scores", json!(true), "scores are the model's own")?;
    let model = fields.opt("model")?;
    fields.finish(&["user"])?;
    Ok(Rerank { model, query, documents, reply: Ranked { top_n, documents: repeat, tei } })
}

impl Ranked {
    /// The reply: the best first.
    pub(crate) fn reply(self, model: &str, documents: &[String], embedded: &Embedded) -> Value {
        let score = |vector: &Vec<f32>| vector.first().copied().unwrap_or_default();
        let mut ranked: Vec<(usize, f32)> =
            embedded.vectors.iter().map(score).enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(self.top_n);
        let entry = |(index, score): (usize, f32)| {
            let (name, key) =
                if self.tei { ("score", "text") } else { ("relevance_score", "document") };
            let mut entry = json!({"index": index, name: score});
            if self.documents {
                let text = &documents[index];
                entry[key] = if self.tei { json!(text) } else { json!({"text": text}) };
            }
            entry
        };
        let results: Value = ranked.into_iter().map(entry).collect();
        if self.tei {
            return results;
        }
        let n_tokens = embedded.n_tokens;
        json!({
            "object": "list",
            "model": model,
            "results": results,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let check = |body: Value, param: &str| {
            let error = parse_embeddings(body.to_string().as_bytes(), false).expect_err("refused");
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        };
        check(json!({}), "input");
        check(json!({"input": 5}), "input");
        check(json!({"input": [[1], "a", {}]}), "input");
        check(json!({"input": vec!["a"; 2049]}), "input");
        check(json!({"input": "a", "encoding_format": "int8"}), "encoding_format");
        check(json!({"input": "a", "dimensions": 0}), "dimensions");
        check(json!({"input": "a", "embd_normalize": 1}), "embd_normalize");
        check(json!({"input": "a", "prefix": "x"}), "prefix");
        let rerank = |body: Value| parse_rerank(body.to_string().as_bytes());
        let error = rerank(json!({"query": "a", "documents": []})).expect_err("refused");
        assert_eq!(error.param.as_deref(), Some("documents"));
        let error = rerank(json!({"query": "a", "documents": ["a", 1]})).expect_err("refused");
        assert_eq!(error.param.as_deref(), Some("documents[1]"));
    }

    #[test]
    fn the_best_document_comes_first() {
        let body = json!({"query": "q", "documents": ["a", {"text": "b"}, "c"], "top_n": 2, "return_documents": true});
        let request = parse_rerank(body.to_string().as_bytes()).expect("read");
        let vectors = vec![vec![-1.0], vec![2.0], vec![0.5]];
        let embedded = Embedded { vectors, n_tokens: 9 };
        let reply = request.reply.reply("m", &request.documents, &embedded);
        let expected = json!([{"index": 1, "relevance_score": 2.0, "document": {"text": "b"}},
            {"index": 2, "relevance_score": 0.5, "document": {"text": "c"}}]);
        assert_eq!(reply["results"], expected);
        let body = json!({"query": "q", "texts": ["a", "b", "c"]});
        let request = parse_rerank(body.to_string().as_bytes()).expect("read");
        let reply = request.reply.reply("m", &request.documents, &embedded);
        assert_eq!(reply[0], json!({"index": 1, "score": 2.0}));
    }
}
