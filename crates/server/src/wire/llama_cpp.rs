//! llama.cpp's own `/completion`, `/infill`, `/tokenize` and `/detokenize`.
use super::fields::Fields;
use super::openai::read_prompts;
use super::options;
use crate::error::{ApiError, ErrorKind};
use crate::output::{FinishReason, Logprobs, Outcome, Progress, TokenLogprob, Usage};
use crate::request::{Completion, Generate, Reply};
use hurtle_engine::Timings;
use hurtle_engine::constraint::Grammar;
use hurtle_engine::sampler::{Distribution, SamplerParams};
use serde_json::{Value, json};

/// What llama.cpp's clients send along and what changes no answer here: `n_cache_reuse` is a hint about the cache;
/// nothing is kept or discarded when a context is shifted, because none is; where tokens are chosen is about speed;
/// llama.cpp itself has no limit to the time of a prompt; `user` is a label.
pub const IGNORED: &[&str] =
    &["n_keep", "n_discard", "n_cache_reuse", "backend_sampling", "t_max_prompt_ms", "user"];

/// Reads the body of `/completion`; also tells which fields of the reply are wanted, if not all.
pub fn parse_completion(
    body: &[u8],
    sampler: &SamplerParams,
) -> Result<(Completion, Vec<String>), ApiError> {
    let mut fields = Fields::parse(body)?;
    let prompts = read_prompts(&fields.required("prompt")?)?;
    let (generation, reply, wanted) = common(&mut fields, sampler)?;
    let completion =
        Completion { model: fields.opt("model")?, prompts, suffix: None, generation, reply };
    fields.finish(IGNORED)?;
    Ok((completion, wanted))
}

/// A gap to fill, and what else is known of the project.
#[derive(Debug, Clone)]
pub struct Infill {
    /// The text before the gap, `input_prefix` and `prompt` together.
    pub prefix: String,
    /// The text after it.
    pub suffix: String,
    /// Further files: name and text.
    pub files: Vec<(String, String)>,
    /// Which model; `None`: the default one.
    pub model: Option<String>,
    /// How to answer.
    pub generation: Generate,
    /// How to reply.
    pub reply: Reply,
    /// Which fields of the reply are wanted; empty: all.
    pub wanted: Vec<String>,
}

/// Reads the body of `/infill`.
pub fn parse_infill(body: &[u8], sampler: &SamplerParams) -> Result<Infill, ApiError> {
    let mut fields = Fields::parse(body)?;
    let prefix: String = fields.required("input_prefix")?;
    let suffix = fields.required("input_suffix")?;
    let prompt: String = fields.opt("prompt")?.unwrap_or_default();
    let mut files = Vec::new();
    for (i, file) in fields.opt::<Vec<Value>>("input_extra")?.unwrap_or_default().iter().enumerate()
    {
        let (Some(name), Some(text)) = (file["filename"].as_str(), file["text"].as_str()) else {
            let what = "expected an object with filename and text";
            return Err(fields.wrong(&format!("input_extra[{i}]"), what));
        };
        files.push((name.to_owned(), text.to_owned()));
    }
    let (generation, reply, wanted) = common(&mut fields, sampler)?;
    let model = fields.opt("model")?;
    fields.finish(IGNORED)?;
    Ok(Infill { prefix: prefix + &prompt, suffix, files, model, generation, reply, wanted })
}

fn common(
    fields: &mut Fields,
    sampler: &SamplerParams,
) -> Result<(Generate, Reply, Vec<String>), ApiError> {
    let mut generate = options::defaults(sampler);
    options::sampling(fields, &mut generate)?;
    options::stop(fields, "stop", &mut generate)?;
    options::length(fields, &["n_predict", "max_completion_tokens", "max_tokens"], &mut generate)?;
    options::n(fields, &["n_cmpl", "n"], &mut generate)?;
    options::lines(fields, &mut generate)?;
    options::slot(fields, &mut generate)?;
    options::grammar(fields, &mut generate)?;
    fields.only("lora", json!([]), "there are no adapters")?;
    if let Some(cache) = fields.opt("cache_prompt")? {
        generate.cache_prompt = cache;
    }
    generate.logprobs = options::n_probs(fields, &mut generate)?;
    let stream = fields.opt("stream")?.unwrap_or(false);
    options::tell(fields, stream, &mut generate)?;
    generate.tell.ids = fields.opt("return_tokens")?.unwrap_or(false) || stream;
    let wanted = fields.opt("response_fields")?.unwrap_or_default();
    Ok((generate, Reply { stream, include_usage: true }, wanted))
}

/// The fields of a reply that `wanted` names, under these names; `a/b` is the field `b` of `a`.
pub(crate) fn only(reply: Value, wanted: &[String]) -> Value {
    if wanted.is_empty() {
        return reply;
    }
    let fields = wanted.iter().filter_map(|path| {
        let found = path.split('/').try_fold(&reply, |value, key| value.get(key))?;
        Some((path.clone(), found.clone()))
    });
    Value::Object(fields.collect())
}

/// The reply of `/completion` in one piece; in a stream, the last message, whose text is what was held back.
pub(crate) fn completion(
    model: &str,
    index: usize,
    prompt: &str,
    content: &str,
    tokens: &[u32],
    settings: &Value,
    outcome: &Outcome,
) -> Value {
    let stop_type = match outcome.reason {
        FinishReason::Length => "limit",
        _ if outcome.stop_string.is_some() => "word",
        _ => "eos",
    };
    json!({
        "index": index,
        "content": content,
        "tokens": tokens,
        "id_slot": slot_id(outcome.slot),
        "stop": true,
        "model": model,
        "tokens_predicted": outcome.usage.generated,
        "tokens_evaluated": outcome.usage.prompt,
        "generation_settings": settings,
        "prompt": prompt,
        "has_new_line": content.contains('\n'),
        "truncated": outcome.truncated,
        "stop_type": stop_type,
        "stopping_word": outcome.stop_string.as_deref().unwrap_or_default(),
        "tokens_cached": outcome.n_kept,
        "timings": timings(&outcome.timings),
    })
}

/// A message of the stream of `/completion`; `usage` counts the tokens up to its end.
pub(crate) fn completion_chunk(
    index: usize,
    content: &str,
    tokens: &[u32],
    slot: Option<usize>,
    usage: Usage,
) -> Value {
    json!({
        "index": index,
        "content": content,
        "tokens": tokens,
        "stop": false,
        "id_slot": slot_id(slot),
        "tokens_predicted": usage.generated,
        "tokens_evaluated": usage.prompt,
    })
}

/// A slot's number; -1: not known.
fn slot_id(slot: Option<usize>) -> i64 {
    slot.and_then(|slot| i64::try_from(slot).ok()).unwrap_or(-1)
}

/// Log-probabilities of tokens, for `n_probs`; of what was drawn from, probabilities, and those of no token that
/// could not have been drawn.
pub(crate) fn probabilities(tokens: &[Logprobs], of: Distribution) -> Value {
    let prob = |token: &TokenLogprob| token.logprob.map_or(0.0, f32::exp);
    let entry = |token: &TokenLogprob| {
        let mut value = json!({"id": token.id, "token": token.text(), "bytes": token.bytes});
        match of {
            Distribution::Model => value["logprob"] = token.logprob.into(),
            Distribution::Drawn => value["prob"] = prob(token).into(),
        }
        value
    };
    let token = |Logprobs { token, top }: &Logprobs| {
        let mut value = entry(token);
        match of {
            Distribution::Model => value["top_logprobs"] = top.iter().map(entry).collect(),
            Distribution::Drawn => {
                let possible = top.iter().filter(|token| prob(token) > 0.0);
                value["top_probs"] = possible.map(entry).collect();
            }
        }
        value
    };
    tokens.iter().map(token).collect()
}

/// How far a prompt is, for `return_progress`.
pub(crate) fn progress(progress: Progress) -> Value {
    json!({
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.processed,
        "time_ms": progress.time.as_millis() as u64,
    })
}

/// How long an answer took, under llama.cpp's names.
pub(crate) fn timings(timings: &Timings) -> Value {
    let each = |ms: f64, n: usize| if n == 0 { 0.0 } else { ms / n as f64 };
    let per_second = |ms: f64, n: usize| if ms > 0.0 { n as f64 / ms * 1e3 } else { 0.0 };
    // The first token comes of what the prompt has left: it takes no pass of its own.
    let n_passes = timings.predicted_n.saturating_sub(1);
    json!({
        "cache_n": timings.cache_n,
        "prompt_n": timings.prompt_n,
        "prompt_ms": timings.prompt_ms,
        "prompt_per_token_ms": each(timings.prompt_ms, timings.prompt_n),
        "prompt_per_second": per_second(timings.prompt_ms, timings.prompt_n),
        "predicted_n": timings.predicted_n,
        "predicted_ms": timings.predicted_ms,
        "predicted_per_token_ms": each(timings.predicted_ms, n_passes),
        "predicted_per_second": per_second(timings.predicted_ms, n_passes),
    })
}

/// How an answer is made, with these biases.
pub(crate) fn settings(generate: &Generate, biases: &[(u32, f32)], stream: bool) -> Value {
    let sampler = &generate.params.sampler;
    let lines = &generate.params.lines;
    let grammar = match &generate.format {
        Some(Grammar::Gbnf(text) | Grammar::Lark(text) | Grammar::Regex(text)) => text,
        _ => "",
    };
    let n_predict = generate.params.n_predict.map_or(json!(-1), |n| json!(n));
    let samplers: Vec<&str> = sampler.samplers.iter().map(|kind| kind.name()).collect();
    json!({
        "n_predict": n_predict,
        "max_tokens": n_predict,
        "seed": sampler.seed.map_or(json!(-1), |seed| json!(seed)),
        "temperature": sampler.temp,
        "dynatemp_range": sampler.dynatemp_range,
        "dynatemp_exponent": sampler.dynatemp_exponent,
        "top_k": sampler.top_k,
        "top_p": sampler.top_p,
        "min_p": sampler.min_p,
        "typical_p": sampler.typical_p,
        "top_n_sigma": sampler.top_n_sigma,
        "xtc_probability": sampler.xtc_probability,
        "xtc_threshold": sampler.xtc_threshold,
        "repeat_last_n": sampler.repeat_last_n,
        "repeat_penalty": sampler.repeat_penalty,
        "presence_penalty": sampler.presence_penalty,
        "frequency_penalty": sampler.frequency_penalty,
        "dry_multiplier": sampler.dry_multiplier,
        "dry_base": sampler.dry_base,
        "dry_allowed_length": sampler.dry_allowed_length,
        "dry_penalty_last_n": sampler.dry_penalty_last_n,
        "dry_sequence_breakers": sampler.dry_sequence_breakers,
        "mirostat": sampler.mirostat,
        "mirostat_tau": sampler.mirostat_tau,
        "mirostat_eta": sampler.mirostat_eta,
        "min_keep": sampler.min_keep,
        "ignore_eos": sampler.ignore_eos,
        "logit_bias": biases.iter().map(|(id, bias)| json!({"token": id, "bias": bias})).collect::<Value>(),
        "samplers": samplers,
        "stop": generate.params.stop,
        "n_probs": generate.logprobs.unwrap_or(0),
        "post_sampling_probs": generate.distribution == Distribution::Drawn,
        "timings_per_token": generate.tell.timings,
        "n_indent": lines.n_indent,
        "t_max_predict_ms": lines.max_time.map_or(-1, |time| time.as_millis() as i64),
        "grammar": grammar,
        "stream": stream,
        "lora": [],
    })
}

/// What `/tokenize` is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokenize {
    /// The text.
    pub content: String,
    /// Put BOS first as the model says.
    pub add_special: bool,
    /// Read control tokens in the text.
    pub parse_special: bool,
    /// Give the text of each token too.
    pub with_pieces: bool,
    /// Which model; `None`: the default one.
    pub model: Option<String>,
}

/// Reads the body of `/tokenize`.
pub fn parse_tokenize(body: &[u8]) -> Result<Tokenize, ApiError> {
    let mut fields = Fields::parse(body)?;
    let tokenize = Tokenize {
        content: fields.required("content")?,
        add_special: fields.opt("add_special")?.unwrap_or(false),
        parse_special: fields.opt("parse_special")?.unwrap_or(true),
        with_pieces: fields.opt("with_pieces")?.unwrap_or(false),
        model: fields.opt("model")?,
    };
    fields.finish(&[])?;
    Ok(tokenize)
}

/// Reads the body of `/detokenize`: ids, and which model.
pub fn parse_detokenize(body: &[u8]) -> Result<(Vec<u32>, Option<String>), ApiError> {
    let mut fields = Fields::parse(body)?;
    let read = (fields.required("tokens")?, fields.opt("model")?);
    fields.finish(&[])?;
    Ok(read)
}

/// Reads the body of `/lora-adapters`, which can name none.
pub(crate) fn parse_adapters(body: &[u8]) -> Result<(), ApiError> {
    match serde_json::from_slice::<Vec<Value>>(body) {
        Ok(adapters) if adapters.is_empty() => Ok(()),
        Ok(_) => Err(ApiError::new(ErrorKind::NotSupported, "there are no adapters here")),
        Err(error) => {
            let message = format!("the body is no JSON array of adapters: {error}");
            Err(ApiError::new(ErrorKind::Invalid, message))
        }
    }
}

/// Reads the body of `/slots/{slot}`: the name of a file, which lies in no other folder.
pub(crate) fn parse_filename(body: &[u8]) -> Result<String, ApiError> {
    let mut fields = Fields::parse(body)?;
    let name: String = fields.required("filename")?;
    let allowed = |c: char| c.is_alphanumeric() || "._- ".contains(c);
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.chars().all(allowed) {
        let what =
            "expected up to 200 letters, digits, '-', '_', ' ' and '.', no '.' at the beginning";
        return Err(fields.wrong("filename", what));
    }
    fields.finish(&[])?;
    Ok(name)
}

/// Reads the body of `/models/load` and `/models/unload`: which model.
pub(crate) fn parse_model(body: &[u8]) -> Result<String, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = fields.required("model")?;
    fields.finish(&[])?;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Prompt;

    #[test]
    fn a_completion() {
        let body = br#"{"prompt": [1, 2], "n_predict": 5, "n_probs": 3, "stream": true, "id_slot": 0,
            "cache_prompt": false, "grammar": "root ::= \"a\"", "samplers": ["top_k", "temperature"],
            "response_fields": ["content"]}"#;
        let (read, wanted) = parse_completion(body, &SamplerParams::default()).expect("read");
        assert_eq!(wanted, ["content"]);
        assert_eq!(read.prompts, [Prompt::Ids(vec![1, 2])]);
        let generate = read.generation;
        assert_eq!((generate.params.n_predict, generate.logprobs), (Some(5), Some(3)));
        assert_eq!(generate.format, Some(Grammar::Gbnf("root ::= \"a\"".into())));
        assert_eq!(generate.params.sampler.samplers.len(), 2);
        assert!(!generate.cache_prompt && read.reply.stream);
    }

    #[test]
    fn rates_count_the_tokens_that_took_a_pass() {
        let times = |predicted_n: usize| {
            let (prompt_n, prompt_ms, predicted_ms) = (4, 8.0, 10.0);
            timings(&Timings {
                prompt_n,
                prompt_ms,
                predicted_n,
                predicted_ms,
                ..Timings::default()
            })
        };
        let six = times(6);
        assert_eq!(
            (&six["prompt_per_token_ms"], &six["prompt_per_second"]),
            (&json!(2.0), &json!(500.0))
        );
        assert_eq!(
            (&six["predicted_per_token_ms"], &six["predicted_per_second"]),
            (&json!(2.0), &json!(500.0))
        );
        for n in [0, 1] {
            assert_eq!(
                (&times(n)["predicted_per_token_ms"], &times(n)["predicted_per_second"]),
                (&json!(0.0), &json!(0.0))
            );
        }
        let nothing = timings(&Timings::default());
        assert_eq!(nothing["prompt_per_second"], 0.0);
    }

    #[test]
    fn fields_that_are_wanted() {
        let reply = json!({"content": "x", "settings": {"seed": 1, "top_k": 2}, "stop": true});
        let check = |wanted: &[&str], expected: Value| {
            let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(only(reply.clone(), &wanted), expected);
        };
        check(&[], reply.clone());
        check(&["content", "settings/seed"], json!({"content": "x", "settings/seed": 1}));
        check(&["settings", "nothing", "content/x"], json!({"settings": reply["settings"]}));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let check = |body: &str, param: &str| {
            let error =
                parse_completion(body.as_bytes(), &SamplerParams::default()).expect_err(body);
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        };
        check(r#"{"prompt": "a", "lora": [{"id": 0, "scale": 1}]}"#, "lora");
        check(r#"{"prompt": "a", "t_max_predict_ms": -2}"#, "t_max_predict_ms");
        check(r#"{"prompt": "a", "n": 0}"#, "n");
        check(r#"{"prompt": "a", "post_sampling_probs": 1}"#, "post_sampling_probs");
        check(r#"{"prompt": "a", "timings_per_token": 1}"#, "timings_per_token");
        check(r#"{"prompt": "a", "return_progress": 1}"#, "return_progress");
        check(r#"{}"#, "prompt");
    }

    #[test]
    fn a_gap_to_fill() {
        let body = br#"{"input_prefix": "a", "prompt": "b", "input_suffix": "c",
            "input_extra": [{"filename": "f", "text": "t"}]}"#;
        let infill = parse_infill(body, &SamplerParams::default()).expect("read");
        assert_eq!((&*infill.prefix, &*infill.suffix), ("ab", "c"));
        assert_eq!(infill.files, [("f".to_owned(), "t".to_owned())]);
    }

    #[test]
    fn tokens() {
        let read = parse_tokenize(br#"{"content": "a"}"#).expect("read");
        assert!(read.parse_special && !read.add_special);
        assert_eq!(parse_detokenize(br#"{"tokens": [1, 2]}"#), Ok((vec![1, 2], None)));
        assert!(parse_detokenize(br#"{"tokens": [-1]}"#).is_err());
    }
}
