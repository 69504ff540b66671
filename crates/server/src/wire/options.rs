//! Parameters that several APIs spell alike.
use super::fields::Fields;
use crate::error::ApiError;
use crate::request::{Generate, check_sampler};
use hurtle_engine::constraint::Grammar;
use hurtle_engine::sampler::{Distribution, SamplerKind, SamplerParams};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// Most answers to one prompt.
const MAX_N: usize = 128;
/// Most stop strings, and the longest.
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 4096;
/// Most log-probabilities beside the chosen token's.
pub(super) const MAX_LOGPROBS: usize = 100;
/// The same for `n_probs`, which llama.cpp's clients have other uses for.
const MAX_PROBS: usize = 1000;

/// One or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(super) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// llama.cpp's sampling parameters, which its users send to every API, and OpenAI's names for some.
pub(super) fn sampling(fields: &mut Fields, generate: &mut Generate) -> Result<(), ApiError> {
    let sampler = &mut generate.params.sampler;
    macro_rules! take {
        ($($name:literal => $field:ident),* $(,)?) => {
            $(if let Some(value) = fields.opt($name)? { sampler.$field = value; })*
        };
    }
    take! {
        "temperature" => temp,
        "dynatemp_range" => dynatemp_range,
        "dynatemp_exponent" => dynatemp_exponent,
        "top_k" => top_k,
        "top_p" => top_p,
        "min_p" => min_p,
        "typical_p" => typical_p,
        "top_n_sigma" => top_n_sigma,
        "xtc_probability" => xtc_probability,
        "xtc_threshold" => xtc_threshold,
        "repeat_last_n" => repeat_last_n,
        "repeat_penalty" => repeat_penalty,
        "presence_penalty" => presence_penalty,
        "frequency_penalty" => frequency_penalty,
        "dry_multiplier" => dry_multiplier,
        "dry_base" => dry_base,
        "dry_allowed_length" => dry_allowed_length,
        "dry_penalty_last_n" => dry_penalty_last_n,
        "dry_sequence_breakers" => dry_sequence_breakers,
        "mirostat" => mirostat,
        "mirostat_tau" => mirostat_tau,
        "mirostat_eta" => mirostat_eta,
        "min_keep" => min_keep,
        "ignore_eos" => ignore_eos,
    }
    if let Some(seed) = fields.opt("seed")? {
        sampler.seed = read_seed(seed);
    }
    if let Some(chain) = fields.opt::<Value>("samplers")? {
        sampler.samplers = read_chain(fields, chain)?;
    }
    if let Some(bias) = fields.opt("logit_bias")? {
        read_bias(fields, bias, generate)?;
    }
    check_sampler(generate, |name| if name == "temp" { "temperature" } else { name })
}

/// The same in APIs that have no temperature below 0. In llama.cpp's and Ollama's own it means the most probable token.
pub(super) fn sampling_from_zero(
    fields: &mut Fields,
    generate: &mut Generate,
) -> Result<(), ApiError> {
    let own = generate.params.sampler.temp;
    sampling(fields, generate)?;
    let temp = generate.params.sampler.temp;
    if temp < 0.0 && temp != own {
        return Err(fields.wrong("temperature", &format!("expected at least 0, found {temp}")));
    }
    Ok(())
}

/// A seed of llama.cpp's: a negative one means another each time; any other is taken as it is.
fn read_seed(seed: i128) -> Option<u64> {
    // Clients send 64 bits, with a sign or without.
    u64::try_from(seed).ok()
}

/// Names in order, or letters.
fn read_chain(fields: &Fields, chain: Value) -> Result<Vec<SamplerKind>, ApiError> {
    let wrong = |what: String| fields.wrong("samplers", &what);
    match chain {
        Value::String(letters) => {
            SamplerKind::parse_letters(&letters).map_err(|e| wrong(e.to_string()))
        }
        Value::Array(names) => {
            let names = names.iter().map(|name| {
                let name = name.as_str().ok_or_else(|| wrong("expected names".into()))?;
                name.parse().map_err(|e| wrong(format!("{e}")))
            });
            names.collect()
        }
        _ => Err(wrong("expected an array of names or a text of letters".into())),
    }
}

/// OpenAI's object from ids to biases, or llama.cpp's array of pairs whose first half may be a text and whose
/// second half may be `false` for never.
fn read_bias(fields: &Fields, bias: Value, generate: &mut Generate) -> Result<(), ApiError> {
    let wrong = || {
        let shape =
            "expected an object from token ids to numbers, or an array of [token, number] pairs";
        fields.wrong("logit_bias", shape)
    };
    let pairs: Vec<(Value, Value)> = match bias {
        Value::Object(map) => map.into_iter().map(|(k, v)| (Value::String(k), v)).collect(),
        Value::Array(pairs) => {
            let pair = |pair| serde_json::from_value(pair).map_err(|_| wrong());
            pairs.into_iter().map(pair).collect::<Result<_, _>>()?
        }
        _ => return Err(wrong()),
    };
    for (token, bias) in pairs {
        let bias = match bias {
            Value::Bool(false) => f32::NEG_INFINITY,
            Value::Number(n) => n.as_f64().unwrap_or(f64::NAN) as f32,
            _ => return Err(wrong()),
        };
        let id = match &token {
            Value::Number(n) => Some(n.as_u64().ok_or_else(wrong)?),
            Value::String(text) => text.parse().ok(),
            _ => return Err(wrong()),
        };
        match (id, token) {
            (Some(id), _) => {
                let id = u32::try_from(id).map_err(|_| wrong())?;
                generate.params.sampler.logit_bias.push((id, bias));
            }
            (None, Value::String(text)) => generate.text_bias.push((text, bias)),
            (None, _) => return Err(wrong()),
        }
    }
    Ok(())
}

/// Stop strings.
pub(super) fn stop(
    fields: &mut Fields,
    name: &str,
    generate: &mut Generate,
) -> Result<(), ApiError> {
    let Some(stop) = fields.opt::<OneOrMany<String>>(name)? else { return Ok(()) };
    let stop = stop.into_vec();
    if stop.len() > MAX_STOPS {
        return Err(fields
            .wrong(name, &format!("expected at most {MAX_STOPS} texts, found {}", stop.len())));
    }
    for text in &stop {
        if text.is_empty() || text.len() > MAX_STOP_BYTES {
            let found =
                format!("expected texts of 1 to {MAX_STOP_BYTES} bytes, found {}", text.len());
            return Err(fields.wrong(name, &found));
        }
    }
    generate.params.stop = stop;
    Ok(())
}

/// The number of answers under any of `names`.
pub(super) fn n(
    fields: &mut Fields,
    names: &[&str],
    generate: &mut Generate,
) -> Result<(), ApiError> {
    for name in names.iter().rev() {
        let Some(n) = fields.opt::<usize>(name)? else { continue };
        if !(1..=MAX_N).contains(&n) {
            return Err(fields.wrong(name, &format!("expected 1 to {MAX_N}, found {n}")));
        }
        generate.n = n;
    }
    Ok(())
}

/// llama.cpp's `id_slot`; -1: any.
pub(super) fn slot(fields: &mut Fields, generate: &mut Generate) -> Result<(), ApiError> {
    generate.slot = match fields.opt::<i64>("id_slot")? {
        None | Some(-1) => None,
        Some(n) => {
            let wrong = |_| fields.wrong("id_slot", &format!("expected at least -1, found {n}"));
            Some(usize::try_from(n).map_err(wrong)?)
        }
    };
    Ok(())
}

/// How long answers are to be: a variable of the template, as the effort of reasoning is.
pub(super) fn verbosity(
    fields: &mut Fields,
    template: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    match fields.opt::<String>("verbosity")? {
        None => {}
        Some(verbosity) if ["low", "medium", "high"].contains(&&*verbosity) => {
            template.insert("verbosity".into(), verbosity.into());
        }
        Some(_) => return Err(fields.wrong("verbosity", "expected low, medium or high")),
    }
    Ok(())
}

/// llama.cpp's `n_indent` and `t_max_predict_ms`, with which editors complete code.
pub(super) fn lines(fields: &mut Fields, generate: &mut Generate) -> Result<(), ApiError> {
    let lines = &mut generate.params.lines;
    lines.n_indent = fields.opt("n_indent")?.unwrap_or(0);
    let name = "t_max_predict_ms";
    lines.max_time = match fields.opt::<i64>(name)? {
        None | Some(-1 | 0) => None,
        Some(n) => {
            let wrong = |_| fields.wrong(name, &format!("expected at least -1, found {n}"));
            Some(Duration::from_millis(u64::try_from(n).map_err(wrong)?))
        }
    };
    Ok(())
}

/// The length of the answer under any of `names`; -1, and Ollama's -2, mean no limit but the context.
pub(super) fn length(
    fields: &mut Fields,
    names: &[&str],
    generate: &mut Generate,
) -> Result<(), ApiError> {
    for name in names.iter().rev() {
        match fields.opt::<i64>(name)? {
            None => {}
            Some(-1) => generate.params.n_predict = None,
            Some(-2) if *name == "num_predict" => generate.params.n_predict = None,
            Some(n) => {
                let wrong = |_| fields.wrong(name, &format!("expected at least -1, found {n}"));
                generate.params.n_predict = Some(usize::try_from(n).map_err(wrong)?);
            }
        }
    }
    Ok(())
}

/// What vLLM has beside: tokens that end an answer, how many come at least, and what is shown.
pub(super) fn ends(fields: &mut Fields, generate: &mut Generate) -> Result<(), ApiError> {
    let params = &mut generate.params;
    params.stop_ids = fields.opt("stop_token_ids")?.unwrap_or_default();
    if params.stop_ids.len() > MAX_STOPS {
        let n = params.stop_ids.len();
        let what = format!("expected at most {MAX_STOPS} tokens, found {n}");
        return Err(fields.wrong("stop_token_ids", &what));
    }
    params.min_tokens = fields.opt("min_tokens")?.unwrap_or(0);
    params.keep_stop = fields.opt("include_stop_str_in_output")?.unwrap_or(false);
    if let (Some(most), least) = (params.n_predict, params.min_tokens)
        && least > most
    {
        let what = format!("expected at most max_tokens, {most}, found {least}");
        return Err(fields.wrong("min_tokens", &what));
    }
    Ok(())
}

/// llama.cpp's `grammar` and `json_schema`, and vLLM's `structured_outputs` and `guided_...`. A grammar may also be an object with
/// `type` and `value`, as mistral.rs has it.
pub(super) fn grammar(fields: &mut Fields, generate: &mut Generate) -> Result<(), ApiError> {
    let grammar = match fields.opt::<Value>("grammar")? {
        None => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) => Some(Grammar::from_text(text)),
        Some(Value::Object(grammar)) => Some(typed_grammar(fields, &grammar)?),
        Some(_) => return Err(fields.wrong("grammar", "expected a text, or an object")),
    };
    let schema = fields.opt::<Value>("json_schema")?.map(Grammar::JsonSchema);
    let mut all = vec![("grammar", grammar), ("json_schema", schema)];
    all.extend(guided(fields, ["guided_json", "guided_regex", "guided_choice", "guided_grammar"])?);
    if let Some(mut outputs) = fields.object("structured_outputs")? {
        all.extend(guided(&mut outputs, ["json", "regex", "choice", "grammar"])?);
        let object = outputs.opt::<bool>("json_object")?.filter(|&wanted| wanted);
        all.push(("json_object", object.map(|_| Grammar::JsonObject)));
        // How to compile it is for the server to say, and white space is what JSON allows.
        outputs.finish(&["_backend", "_backend_was_auto"])?;
    }
    for (name, grammar) in all {
        let Some(grammar) = grammar else { continue };
        if generate.format.is_some() {
            let what = "only one form can hold at a time, of grammar, json_schema, guided_json, guided_regex, \
                guided_choice, guided_grammar, structured_outputs and response_format";
            return Err(fields.wrong(name, what));
        }
        (generate.format, generate.format_param) = (Some(grammar), name);
    }
    Ok(())
}

/// The forms that vLLM has, under these names: of a schema, a regular expression, one of several texts, and a grammar.
fn guided(
    fields: &mut Fields,
    [json, regex, choice, grammar]: [&'static str; 4],
) -> Result<[(&'static str, Option<Grammar>); 4], ApiError> {
    let schema = match fields.opt::<Value>(json)? {
        // As a text, too.
        Some(Value::String(text)) => Some(
            serde_json::from_str(&text)
                .map_err(|e| fields.wrong(json, &format!("the schema is not JSON: {e}")))?,
        ),
        schema => schema,
    };
    let one_of = match fields.opt::<Vec<String>>(choice)? {
        Some(texts) if texts.is_empty() => {
            return Err(fields.wrong(choice, "expected at least one text"));
        }
        texts => texts.map(|texts| {
            let texts: Vec<String> = texts.iter().map(|text| regex_escape(text)).collect();
            Grammar::Regex(texts.join("|"))
        }),
    };
    Ok([
        (json, schema.map(Grammar::JsonSchema)),
        (regex, fields.opt::<String>(regex)?.map(Grammar::Regex)),
        (choice, one_of),
        (grammar, fields.opt::<String>(grammar)?.map(Grammar::from_text)),
    ])
}

/// A text as a regular expression.
fn regex_escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// `{"type": "regex" | "lark" | "json_schema", "value": ...}`.
fn typed_grammar(fields: &Fields, grammar: &Map<String, Value>) -> Result<Grammar, ApiError> {
    let value = grammar.get("value").cloned().unwrap_or_default();
    Ok(match (grammar.get("type").and_then(Value::as_str), value) {
        (Some("regex"), Value::String(text)) => Grammar::Regex(text),
        (Some("lark"), Value::String(text)) => Grammar::Lark(text),
        (Some("gbnf"), Value::String(text)) => Grammar::Gbnf(text),
        (Some("json_schema"), schema @ (Value::Object(_) | Value::Bool(_))) => {
            Grammar::JsonSchema(schema)
        }
        _ => {
            let what = "expected a type (regex, lark, gbnf or json_schema) and its value";
            return Err(fields.wrong("grammar", what));
        }
    })
}

/// llama.cpp's `n_probs` and `post_sampling_probs`: log-probabilities of how many tokens, and of which distribution.
pub(super) fn n_probs(
    fields: &mut Fields,
    generate: &mut Generate,
) -> Result<Option<usize>, ApiError> {
    let n_probs = fields.opt::<usize>("n_probs")?.filter(|&n| n > 0);
    if let Some(n) = n_probs.filter(|&n| n > MAX_PROBS) {
        return Err(fields.wrong("n_probs", &format!("expected at most {MAX_PROBS}, found {n}")));
    }
    if fields.opt("post_sampling_probs")?.unwrap_or(false) {
        generate.distribution = Distribution::Drawn;
    }
    Ok(n_probs)
}

/// What llama.cpp's clients want to be told in streams: times with each piece, and how far the prompt is. Without a
/// stream there is nowhere to tell it.
pub(super) fn tell(
    fields: &mut Fields,
    stream: bool,
    generate: &mut Generate,
) -> Result<(), ApiError> {
    generate.tell.timings = fields.opt("timings_per_token")?.unwrap_or(false) && stream;
    generate.tell.progress = fields.opt("return_progress")?.unwrap_or(false) && stream;
    Ok(())
}

/// The server's own sampling parameters, for what a request leaves open.
pub(super) fn defaults(sampler: &SamplerParams) -> Generate {
    let mut generate = Generate::default();
    generate.params.sampler = sampler.clone();
    generate
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: &str) -> Result<Generate, ApiError> {
        let mut fields = Fields::parse(body.as_bytes())?;
        let mut generate = Generate::default();
        sampling(&mut fields, &mut generate)?;
        stop(&mut fields, "stop", &mut generate)?;
        n(&mut fields, &["n"], &mut generate)?;
        length(&mut fields, &["max_tokens", "num_predict"], &mut generate)?;
        grammar(&mut fields, &mut generate)?;
        ends(&mut fields, &mut generate)?;
        n_probs(&mut fields, &mut generate)?;
        fields.finish(&[])?;
        Ok(generate)
    }

    #[test]
    fn forms_as_vllm_has_them() {
        let check = |body: Value, expected: Grammar, param: &str| {
            let generate = read(&body.to_string()).expect("read");
            assert_eq!((generate.format, generate.format_param), (Some(expected), param), "{body}");
        };
        let schema = || json!({"type": "object"});
        check(json!({"guided_json": schema()}), Grammar::JsonSchema(schema()), "guided_json");
        let text = schema().to_string();
        check(json!({"guided_json": text}), Grammar::JsonSchema(schema()), "guided_json");
        let choice = || Grammar::Regex(r"a\.b|c".into());
        check(json!({"guided_choice": ["a.b", "c"]}), choice(), "guided_choice");
        let outputs = |form: Value| json!({"structured_outputs": form});
        check(outputs(json!({"choice": ["a.b", "c"]})), choice(), "choice");
        check(outputs(json!({"json": schema()})), Grammar::JsonSchema(schema()), "json");
        check(outputs(json!({"json_object": true})), Grammar::JsonObject, "json_object");
        check(outputs(json!({"regex": "a+"})), Grammar::Regex("a+".into()), "regex");
    }

    #[test]
    fn ends_as_vllm_has_them() {
        let body =
            r#"{"stop_token_ids": [5], "min_tokens": 3, "include_stop_str_in_output": true}"#;
        let params = read(body).expect("read").params;
        assert_eq!((params.stop_ids, params.min_tokens, params.keep_stop), (vec![5], 3, true));
    }

    #[test]
    fn seeds() {
        let check = |body: &str, expected: Option<u64>| {
            assert_eq!(read(body).expect("read").params.sampler.seed, expected, "{body}");
        };
        check(r#"{"seed": 7}"#, Some(7));
        check(r#"{"seed": 18446744073709551615}"#, Some(u64::MAX));
        check(r#"{"seed": -1}"#, None);
        check(r#"{"seed": null}"#, None);
    }

    #[test]
    fn lengths() {
        let check = |body: &str, expected: Option<usize>| {
            assert_eq!(read(body).expect("read").params.n_predict, expected, "{body}");
        };
        check(r#"{"max_tokens": 5, "num_predict": 7}"#, Some(5));
        check(r#"{"num_predict": 0}"#, Some(0));
        check(r#"{"max_tokens": -1}"#, None);
        check(r#"{"num_predict": -2}"#, None);
    }

    #[test]
    fn biases_in_both_shapes() {
        let biases = |body| {
            let generate = read(body).expect("read");
            (generate.params.sampler.logit_bias, generate.text_bias)
        };
        assert_eq!(biases(r#"{"logit_bias": {"5": -100, "7": 1.5}}"#).0, [(5, -100.0), (7, 1.5)]);
        let (ids, texts) = biases(r#"{"logit_bias": [[5, 1], [" the", false]]}"#);
        assert_eq!((ids, texts), (vec![(5, 1.0)], vec![(" the".to_owned(), f32::NEG_INFINITY)]));
    }

    #[test]
    fn temperatures_below_zero() {
        let body = br#"{"temperature": -1}"#;
        let read = |from_zero: bool, own: f32| {
            let mut generate = Generate::default();
            generate.params.sampler.temp = own;
            let mut fields = Fields::parse(body).expect("read");
            let read = if from_zero { sampling_from_zero } else { sampling };
            read(&mut fields, &mut generate).map(|()| generate.params.sampler.temp)
        };
        assert_eq!(read(false, 0.8), Ok(-1.0));
        assert_eq!(read(true, 0.8).expect_err("refused").param.as_deref(), Some("temperature"));
        // The server itself may have one.
        assert_eq!(read(true, -1.0), Ok(-1.0));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let check = |body: &str, param: &str| {
            let error = read(body).expect_err(body);
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        };
        check(r#"{"temperature": "hot"}"#, "temperature");
        check(r#"{"top_p": 2}"#, "top_p");
        check(r#"{"temperature": 1e39}"#, "temperature");
        check(r#"{"n": 0}"#, "n");
        check(r#"{"n": 1000}"#, "n");
        check(r#"{"max_tokens": -5}"#, "max_tokens");
        check(r#"{"max_tokens": -2}"#, "max_tokens");
        check(r#"{"num_predict": -3}"#, "num_predict");
        check(r#"{"stop": ""}"#, "stop");
        check(r#"{"stop": ["a", 1]}"#, "stop");
        check(r#"{"samplers": ["magic"]}"#, "samplers");
        check(r#"{"logit_bias": [[1]]}"#, "logit_bias");
        check(r#"{"logit_bias": {"99999999999": 1}}"#, "logit_bias");
        check(r#"{"grammar": "root ::= \"a\"", "json_schema": {}}"#, "json_schema");
        check(r#"{"best_of": 2}"#, "best_of");
        check(r#"{"guided_choice": []}"#, "guided_choice");
        check(r#"{"guided_json": "{"}"#, "guided_json");
        check(r#"{"guided_json": {}, "guided_regex": "a"}"#, "guided_regex");
        check(
            r#"{"structured_outputs": {"structural_tag": "x"}}"#,
            "structured_outputs.structural_tag",
        );
        check(r#"{"min_tokens": 4, "max_tokens": 3}"#, "min_tokens");
        check(r#"{"stop_token_ids": ["x"]}"#, "stop_token_ids");
        check(r#"{"n_probs": 1001}"#, "n_probs");
    }
}
