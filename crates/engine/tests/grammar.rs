//! Answers that follow a grammar: whatever a model would like to say, they are of the form that was asked for.

use hurtle_engine::constraint::{
    Constraint, ConstraintError, Grammar, GrammarConstraint, TokenMask,
};
use hurtle_engine::sampler::SamplerParams;
use hurtle_engine::{
    Engine, EngineError, EngineOptions, Event, Extras, Generation, GenerationParams, Request,
    Service, ServiceOptions, StopReason,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::mpsc::channel;

/// A model that writes nothing but noise unless it is held to something.
fn golden() -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs/llama.gguf");
    let options = EngineOptions { threads: Some(1), ctx_size: Some(4096), ..Default::default() };
    Engine::load(&path, &options).unwrap()
}

static NOISE: LazyLock<Engine> = LazyLock::new(golden);

fn params(seed: u64, n_predict: usize) -> GenerationParams {
    let sampler = SamplerParams { temp: 1.0, seed: Some(seed), ..Default::default() };
    GenerationParams { sampler, n_predict: Some(n_predict), ..Default::default() }
}

fn generate(
    engine: &Engine,
    params: &GenerationParams,
    constraint: impl Constraint + 'static,
) -> Result<Generation, EngineError> {
    let extras = Extras { constraint: Some(Box::new(constraint)), logprobs: None };
    engine.session().generate_with(&[1, 2], params, extras, &mut |_| ControlFlow::Continue(()))
}

fn compile(grammar: &Grammar) -> GrammarConstraint {
    NOISE.constraint(grammar).unwrap_or_else(|error| panic!("{grammar:?}\n{error}"))
}

/// A schema that has documents, and short ones.
fn schema() -> impl Strategy<Value = Value> {
    let word = || "[a-z\"\\\\é ]{0,6}";
    let leaf = prop_oneof![
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        (-50..50_i64, 0..1000_i64)
            .prop_map(|(low, n)| json!({"type": "integer", "minimum": low, "maximum": low + n})),
        (-50..50_i64, 1..1000_i64).prop_map(
            |(low, n)| json!({"type": "number", "minimum": low, "exclusiveMaximum": low + n})
        ),
        (0..4_u64, 0..12_u64)
            .prop_map(|(low, n)| json!({"type": "string", "minLength": low, "maxLength": low + n})),
        Just(json!({"type": "string", "pattern": "^[a-c]{2,4}(-[0-9]+)?$", "maxLength": 20})),
        prop_oneof![Just("ipv4"), Just("uuid")]
            .prop_map(|format| json!({"type": "string", "format": format})),
        prop::collection::vec(word(), 1..4).prop_map(|words| json!({"enum": words})),
        word().prop_map(|word| json!({"const": {"a": [word, 1, null]}})),
        Just(json!({"type": ["integer", "null"], "minimum": 5, "maximum": 7})),
        Just(json!({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 9999})),
        Just(json!({"type": "string", "format": "what nobody knows", "maxLength": 9})),
    ];
    leaf.prop_recursive(3, 16, 4, move |inner| {
        let properties = prop::collection::vec((word(), inner.clone(), any::<bool>()), 0..4);
        prop_oneof![
            (inner.clone(), 0..3_u64, 0..3_u64).prop_map(|(items, low, n)| {
                json!({"type": "array", "items": items, "minItems": low, "maxItems": low + n})
            }),
            prop::collection::vec(inner.clone(), 1..4).prop_map(|items| {
                let n = items.len();
                json!({"type": "array", "prefixItems": items, "items": false, "minItems": n})
            }),
            prop::collection::vec(inner.clone(), 1..4).prop_map(|any| json!({"anyOf": any})),
            (properties, any::<bool>()).prop_map(|(properties, closed)| {
                let required: BTreeSet<_> =
                    properties.iter().filter(|p| p.2).map(|p| p.0.clone()).collect();
                let named: Map<_, _> = properties.into_iter().map(|p| (p.0, p.1)).collect();
                let mut schema =
                    json!({"type": "object", "properties": named, "required": required});
                if closed {
                    schema["additionalProperties"] = false.into();
                }
                schema
            }),
            inner.prop_map(|inner| json!({"allOf": [inner]})),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]
    #[test]
    fn every_answer_is_valid(schema in schema(), seed in 0..u64::MAX) {
        let constraint = compile(&Grammar::JsonSchema(schema.clone()));
        let validator = jsonschema::options().should_validate_formats(true).build(&schema);
        let validator = validator.expect("a schema");
        let answer = generate(&NOISE, &params(seed, 3000), constraint).expect("an answer");
        prop_assert_eq!(answer.stop_reason, StopReason::EndOfText, "{}\n{}", schema, answer.text);
        let value: Value = serde_json::from_str(&answer.text).expect("JSON");
        prop_assert!(validator.is_valid(&value), "{}\n{}", schema, answer.text);
    }
}

#[test]
fn schemas_may_refer_to_themselves() {
    let schema = json!({
        "$defs": {"tree": {"type": "object", "required": ["n", "kids"], "properties": {
            "n": {"type": "integer", "minimum": 0, "maximum": 9},
            "kids": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/tree"}}}}},
        "$ref": "#/$defs/tree",
    });
    let constraint = compile(&Grammar::JsonSchema(schema.clone()));
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    for seed in 0..20 {
        let answer = generate(&NOISE, &params(seed, 3000), constraint.clone()).expect("an answer");
        let value = serde_json::from_str(&answer.text).expect("JSON");
        assert!(validator.is_valid(&value), "{}", answer.text);
    }
}

/// The properties of all objects in a document.
fn keys(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
        Value::Object(object) => object.iter().for_each(|(key, value)| {
            found.push(key.clone());
            keys(value, found);
        }),
        _ => {}
    }
}

/// A schema of few values and what it excludes.
fn exclusive() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "boolean"})),
        Just(json!({"type": ["null", "string"], "maxLength": 3})),
        prop::collection::vec("[ab\"é]{0,2}", 1..4).prop_map(|words| json!({"enum": words})),
        (-9..9_i64, 0..20_i64)
            .prop_map(|(low, n)| json!({"type": "integer", "minimum": low, "maximum": low + n})),
        (0..3_i64).prop_map(|n| json!({"enum": [null, true, n, n + 2]})),
    ];
    let object = (leaf.clone(), leaf.clone(), any::<bool>()).prop_map(|(a, b, both)| {
        let required = if both { vec!["a", "b"] } else { vec!["a"] };
        json!({"type": "object", "properties": {"a": a, "b": b}, "required": required, "additionalProperties": false})
    });
    let any = prop_oneof![leaf, object];
    (any.clone(), any.clone(), any, 0..4_u8).prop_map(|(a, b, c, kind)| match kind {
        0 => json!({"allOf": [a], "not": b}),
        1 => json!({"if": a, "then": b, "else": c}),
        2 => json!({"anyOf": [a, b], "if": a, "then": c}),
        _ => json!({"oneOf": [a, b, c]}),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]
    #[test]
    fn no_answer_is_one_that_its_schema_excludes(schema in exclusive(), seed in 0..u64::MAX) {
        // There may be nothing that it allows, or no way to say it.
        let Ok(constraint) = NOISE.constraint(&Grammar::JsonSchema(schema.clone())) else {
            return Ok(());
        };
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let answer = generate(&NOISE, &params(seed, 400), constraint).expect("an answer");
        if answer.stop_reason == StopReason::EndOfText {
            let value = serde_json::from_str(&answer.text).expect("JSON");
            prop_assert!(validator.is_valid(&value), "{}\n{}", schema, answer.text);
        }
    }
}

#[test]
fn objects_have_no_properties_that_the_schema_does_not_name() {
    let part = json!({"type": "object", "properties": {"b": {"type": "null"}}});
    let closed = json!({"type": "object", "required": ["a"], "properties": {
        "a": {"type": "array", "items": part, "maxItems": 3}}});
    let constraint = compile(&Grammar::JsonSchema(closed.clone()));
    for seed in 0..10 {
        let answer = generate(&NOISE, &params(seed, 3000), constraint.clone()).expect("an answer");
        let mut found = Vec::new();
        keys(&serde_json::from_str(&answer.text).expect("JSON"), &mut found);
        assert!(found.iter().all(|key| key == "a" || key == "b"), "{}", answer.text);
    }
    // They may have others where that is said, or where another part names them.
    let mut open = closed;
    open["additionalProperties"] = json!({"type": "null"});
    let together = json!({"allOf": [
        {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
        {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}]});
    for schema in [open, together] {
        let constraint = compile(&Grammar::JsonSchema(schema.clone()));
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let mut others = 0;
        for seed in 0..20 {
            let answer =
                generate(&NOISE, &params(seed, 300), constraint.clone()).expect("an answer");
            if answer.stop_reason == StopReason::EndOfText {
                let value = serde_json::from_str(&answer.text).expect("JSON");
                assert!(validator.is_valid(&value), "{}", answer.text);
                keys(&value, &mut Vec::new());
                others += 1;
            }
        }
        assert!(others > 0, "no answer ended");
    }
}

#[test]
fn joined_objects_have_the_properties_that_any_of_them_names() {
    let object = |name: &str| json!({"type": "object", "properties": {name: {"type": "null"}}, "required": [name]});
    let mut beside = object("a");
    beside["allOf"] = json!([object("b")]);
    let both = json!({"allOf": [object("a"), object("b")]});
    let mut either = object("a");
    let other = json!({"properties": {"b": {"type": "boolean"}}, "required": ["b"]});
    either["anyOf"] = json!([object("b"), other]);
    // A definition that is joined in one place and stands alone in another.
    let mut inner = object("b");
    inner["allOf"] = json!([{"$ref": "#/$defs/x"}]);
    let referring = json!({"$defs": {"x": object("a")}, "type": "object", "required": ["a", "b"],
        "properties": {"a": inner, "b": {"$ref": "#/$defs/x"}}});
    for schema in [beside, both, either, referring] {
        let constraint = compile(&Grammar::JsonSchema(schema.clone()));
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let mut found = Vec::new();
        for seed in 0..20 {
            let answer =
                generate(&NOISE, &params(seed, 3000), constraint.clone()).expect("an answer");
            assert_eq!(answer.stop_reason, StopReason::EndOfText, "{schema}\n{}", answer.text);
            let value = serde_json::from_str(&answer.text).expect("JSON");
            assert!(validator.is_valid(&value), "{schema}\n{}", answer.text);
            keys(&value, &mut found);
        }
        assert!(found.iter().all(|key| key == "a" || key == "b"), "{schema}\n{found:?}");
        assert!(found.iter().any(|key| key == "b"), "{schema}\n{found:?}");
    }
    // What says that there may be others has them, and so have those that it is joined with.
    let mut open = object("a");
    open["allOf"] = json!([{"properties": {"b": {"type": "null"}}, "additionalProperties": true}]);
    let prepared = hurtle_engine::constraint::prepare_schema(open.clone()).expect("prepared");
    assert_eq!(prepared.get("additionalProperties"), None, "{prepared}");
}

#[test]
fn what_cannot_be_had_is_refused_with_the_reason() {
    let check = |grammar: Grammar, expected: &str| {
        let error = NOISE.constraint(&grammar).expect_err("refused").to_string();
        assert!(error.contains(expected), "{grammar:?}\n{error}");
        assert!(!error.contains("backtrace") && !error.contains("non-verbose"), "{error}");
    };
    let schema = Grammar::JsonSchema;
    check(schema(json!(5)), "schema must be an object or boolean");
    check(schema(json!(false)), "Unsatisfiable");
    check(schema(json!({"type": "strin"})), "Invalid type: strin");
    check(schema(json!({"uniqueItems": true})), "uniqueItems");
    check(schema(json!({"type": "string", "pattern": "("})), "unclosed group");
    check(schema(json!({"type": "integer", "minimum": 3, "maximum": 2})), "minimum");
    check(schema(json!({"$ref": "#/$defs/none"})), "none");
    check(schema(json!({"$ref": "http://localhost:1/schema"})), "http://localhost:1/schema");
    check(schema(json!({"oneOf": [{"type": "integer"}, {"type": "number"}]})), "oneOf");
    check(
        schema(json!({"type": "number", "multipleOf": 1e-9})),
        "multipleOf: expected a number above 0",
    );
    check(
        schema(json!({"type": "number", "multipleOf": 0})),
        "multipleOf: expected a number above 0",
    );
    let multiples = json!({"allOf": [{"multipleOf": 99_999}, {"multipleOf": 99_998}]});
    check(schema(multiples), "multipleOf: expected at most one");
    check(schema(json!({"x-guidance": 5})), "x-guidance: expected an object");
    check(Grammar::Regex("[a".into()), "unclosed character class");
    check(Grammar::Lark("start: x".into()), "unknown name: \"x\"");
    check(Grammar::Lark("x: \"a\"".into()), "no start rule");
    check(Grammar::Gbnf("root ::= x".into()), "no rule is called 'x'");
    check(Grammar::from_text("%llguidance {}\nstart: x"), "unknown name");
    check(Grammar::Lark(" ".repeat(1 << 20)), "at most 262144 bytes");
}

/// What somebody may send who means no good: all of it is answered, and soon.
#[test]
fn hostile_grammars_are_bounded() {
    let nested = |open: &str, close: &str, n: usize| open.repeat(n) + "\"a\"" + &close.repeat(n);
    let chain = |names: &str, n: usize| {
        let rule = |i: usize| format!("{names}{i}: {names}{} \"b\"\n", i + 1);
        let start = format!("start: {names}0\n");
        start + &(0..n).map(rule).collect::<String>() + &format!("{names}{n}: \"c\"\n")
    };
    let doubling = (0..60).map(|i| format!("a{i}: a{0} a{0}\n", i + 1)).collect::<String>();
    let mut deep = json!({"type": "null"});
    for _ in 0..120 {
        deep = json!({"anyOf": [deep, {"type": "array", "items": {"type": "string"}}]});
    }
    let mut wide = Map::new();
    for i in 0..3000 {
        wide.insert(format!("property {i}"), json!({"$ref": "#"}));
    }
    let refs = (0..2000)
        .map(|i| (format!("d{i}"), json!({"allOf": [{"$ref": format!("#/$defs/d{}", i + 1)}]})));
    let mut refs: Map<String, Value> = refs.collect();
    refs.insert("d2000".into(), json!({"type": "null"}));
    let names = |n: usize| (0..n).map(|i| format!("name {i}"));
    let objects = |n: usize, kind: &str| -> Value {
        let object = |name: String| json!({"properties": {name: {"type": kind, "maxLength": 9}}, "required": ["x"]});
        names(n).map(object).collect()
    };
    let mut conditions = json!({"minimum": 1});
    for i in 0..60 {
        conditions =
            json!({"if": conditions, "then": {"maximum": i}, "else": {"not": {"const": i}}});
    }
    let patterns: Map<_, _> = names(2000).map(|name| (format!("^{name}.*x"), json!({}))).collect();
    let parts: Map<_, _> = names(20)
        .map(|name| {
            (
                name.clone(),
                json!({"required": names(400).map(|n| name.clone() + &n).collect::<Vec<_>>()}),
            )
        })
        .collect();
    let together: Value =
        parts.keys().map(|name| json!({"$ref": format!("#/$defs/{name}")})).collect();
    let grammars = [
        Grammar::Regex("(((a{1,100}){1,100}){1,100}){1,100}".into()),
        Grammar::Regex("(a*)*b".into()),
        Grammar::Regex("(.*a.{30})*x.*a.{30}y".into()),
        Grammar::Regex(format!("{}a{}", "(".repeat(5000), ")".repeat(5000))),
        Grammar::Regex((0..5000).map(|i| format!("w{i}|")).collect()),
        Grammar::Regex(r"\p{L}{0,1000}\P{L}{0,1000}".into()),
        Grammar::Lark(format!("start: {}", nested("(", ")", 50_000))),
        Grammar::Lark(format!("start: T\nT: {}", nested("(", ")", 50_000))),
        Grammar::Lark(format!("start: {}", nested("~", "", 50_000))),
        Grammar::Lark(chain("T", 8000)),
        Grammar::Lark(chain("t", 8000)),
        Grammar::Lark(format!("start: a0\n{doubling}a60: \"x\"")),
        Grammar::Lark("start: start start | \"a\" | ".into()),
        Grammar::Lark("start: x\nx: x x x x | \"a\"? | /a*/".into()),
        Grammar::Lark("start: %json {\"type\": \"x\"}".into()),
        Grammar::Lark("start: (/a*/ | /b*/){0,2000000000}".into()),
        Grammar::Gbnf("root ::= ((\"a\"{0,1000}){0,1000}){0,1000} root?".into()),
        Grammar::Gbnf(format!(
            "root ::= {}",
            (0..9000).map(|i| format!("\"w{i}\" root | ")).collect::<String>() + "\"\""
        )),
        Grammar::Gbnf(
            (0..1900)
                .map(|i| format!("r{i} ::= [a-z]+ r{} | \"{i}\" root\n", i + 1))
                .collect::<String>()
                + "r1900 ::= \"x\"\nroot ::= r0",
        ),
        Grammar::JsonSchema(deep),
        Grammar::JsonSchema(json!({"type": "object", "properties": wide.clone()})),
        Grammar::JsonSchema(
            json!({"type": "object", "properties": wide, "additionalProperties": true}),
        ),
        Grammar::JsonSchema(json!({"$defs": refs, "$ref": "#/$defs/d0"})),
        Grammar::JsonSchema(json!({"type": "object", "patternProperties": patterns})),
        Grammar::JsonSchema(json!({"required": names(15_000).collect::<Vec<_>>()})),
        Grammar::JsonSchema(json!({"$defs": parts, "allOf": together})),
        Grammar::JsonSchema(json!({"prefixItems": vec![true; 20_000]})),
        Grammar::JsonSchema(json!({"enum": names(15_000).collect::<Vec<_>>()})),
        Grammar::JsonSchema(json!({"not": {"enum": names(15_000).collect::<Vec<_>>()}})),
        Grammar::JsonSchema(
            json!({"oneOf": names(3000).map(|name| json!({"const": name})).collect::<Vec<_>>()}),
        ),
        Grammar::JsonSchema(json!({"oneOf": objects(1500, "string")})),
        Grammar::JsonSchema(
            json!({"allOf": [{"anyOf": objects(200, "string")}, {"anyOf": objects(200, "number")}]}),
        ),
        Grammar::JsonSchema(conditions),
        Grammar::JsonSchema(json!({"$ref": "#"})),
        Grammar::JsonSchema(json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]})),
        Grammar::JsonSchema(
            json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "null"}}),
        ),
        Grammar::JsonSchema(
            json!({"type": "string", "minLength": 1_000_000, "maxLength": 4_000_000_000_u64}),
        ),
        Grammar::JsonSchema(
            json!({"type": "string", "pattern": "^(.{1,500}x){1,500}$", "maxLength": 77_777}),
        ),
        Grammar::JsonSchema(
            json!({"type": "number", "multipleOf": 1e-300, "minimum": -1e300, "maximum": 1e300}),
        ),
        Grammar::JsonSchema(json!({"type": "integer", "multipleOf": 982_451_653, "minimum": 7})),
    ];
    for grammar in grammars {
        let start = std::time::Instant::now();
        let compiled = NOISE.constraint(&grammar);
        let compiling = start.elapsed();
        let told = match compiled {
            Ok(constraint) => match generate(&NOISE, &params(1, 60), constraint) {
                Ok(answer) => format!("{} tokens", answer.token_ids.len()),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        let name: String = format!("{grammar:?}").chars().take(60).collect();
        let told: String = told.lines().next().unwrap_or_default().chars().take(100).collect();
        println!("{compiling:>12.1?} {:>12.1?}  {name}  {told}", start.elapsed() - compiling);
    }
    // And nothing of it stays.
    let answer = generate(&NOISE, &params(1, 60), compile(&Grammar::Regex("yes|no".into())));
    assert!(["yes", "no"].contains(&&*answer.expect("an answer").text));
}

/// Requests with and without grammars in one batch have the answers that they have alone.
#[test]
fn constrained_and_free_answers_do_not_disturb_each_other() {
    let forms = [
        None,
        Some(Grammar::JsonObject),
        Some(Grammar::Regex("[a-f]{30,40}".into())),
        Some(Grammar::Lark("start: \"(\" start \")\" | /[0-9]+/ start?".into())),
        Some(Grammar::Gbnf("root ::= [a-z] root | \".\"".into())),
        Some(Grammar::JsonSchema(json!({"type": "array", "items": {"type": "integer"}}))),
    ];
    let job = |i: usize| (forms[i % forms.len()].as_ref().map(compile), params(i as u64, 50));
    let alone: Vec<_> = (0..18)
        .map(|i| {
            let (constraint, params) = job(i);
            let constraint = constraint.map(|constraint| Box::new(constraint) as _);
            let extras = Extras { constraint, logprobs: Some(2) };
            let mut session = NOISE.session();
            let answer =
                session.generate_with(&[1, 2], &params, extras, &mut |_| ControlFlow::Continue(()));
            let Generation { text, token_ids, stop_reason, logprobs, .. } =
                answer.expect("an answer");
            (text, token_ids, stop_reason, logprobs)
        })
        .collect();
    let service =
        Service::start(golden(), ServiceOptions { max_sequences: 7, ..Default::default() });
    let service = service.expect("started");
    let running: Vec<_> = (0..18)
        .map(|i| {
            let (constraint, params) = job(i);
            let constraint = constraint.map(|constraint| Box::new(constraint) as _);
            let request =
                Request { constraint, logprobs: Some(2), ..Request::new(vec![1, 2], params) };
            let (sender, events) = channel();
            let ticket = service.submit(request, Box::new(move |event| drop(sender.send(event))));
            (ticket.expect("taken"), events)
        })
        .collect();
    for ((_ticket, events), alone) in running.into_iter().zip(alone) {
        let mut found = (String::new(), Vec::new(), StopReason::Cancelled, Vec::new());
        for event in events {
            match event {
                Event::Token(token, _) => {
                    found.0 += &token.text;
                    found.1.push(token.id);
                    found.3.extend(token.logprobs);
                }
                Event::Finished(finished) => {
                    found.0 += &finished.text_tail;
                    found.2 = finished.stop_reason;
                }
                Event::Failed(error) => panic!("{error}"),
                Event::Started { .. } | Event::Prompt { .. } | Event::PromptLogprobs(_) => {}
            }
        }
        assert_eq!(found, alone);
    }
}

#[test]
fn a_stop_string_ends_an_answer_before_its_grammar_does() {
    let stop = vec!["dd".to_owned()];
    let params = GenerationParams { stop, ..params(3, 1000) };
    let constraint = compile(&Grammar::Regex("[a-d]{900}".into()));
    let answer = generate(&NOISE, &params, constraint).expect("an answer");
    assert_eq!(answer.stop_reason, StopReason::StopString);
    assert!(answer.text.len() < 900 && !answer.text.contains("dd"), "{}", answer.text);
}

/// Allows the end and nothing else, and does not say that it is finished.
struct OnlyTheEnd;

impl Constraint for OnlyTheEnd {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        mask.clear();
        NOISE.tokenizer().end_of_generation().iter().for_each(|&id| mask.allow(id));
        Ok(())
    }

    fn accept(&mut self, _: u32) -> Result<(), ConstraintError> {
        unreachable!("an end is not accepted")
    }

    fn is_finished(&self) -> bool {
        false
    }
}

#[test]
fn an_answer_ends_with_its_grammar_even_where_ends_are_ignored() {
    let mut params = params(1, 100);
    params.sampler.ignore_eos = true;
    let answer = generate(&NOISE, &params, OnlyTheEnd).expect("an answer");
    assert_eq!((answer.stop_reason, answer.token_ids.len()), (StopReason::EndOfText, 0));
    // What need not end goes on.
    let constraint = compile(&Grammar::Regex("a{0,20}".into()));
    assert_eq!(generate(&NOISE, &params, constraint).expect("an answer").text, "a".repeat(20));
}

#[test]
fn a_real_model_fills_in_a_form() {
    let file = "smollm2-135m-q4_1.gguf";
    let path = std::env::var_os("HURTLE_TEST_MODELS").map(|dir| Path::new(&dir).join(file));
    let Some(path) = path.filter(|path| path.exists()) else {
        let required = std::env::var_os("HURTLE_REQUIRE_MODELS").is_some();
        assert!(!required, "{file} is missing from HURTLE_TEST_MODELS");
        println!("skipped: {file} is not in HURTLE_TEST_MODELS; `cargo xtask test` fetches it");
        return;
    };
    let options = EngineOptions { threads: Some(2), ctx_size: Some(512), ..Default::default() };
    let engine = Engine::load(&path, &options).unwrap();
    let schema = json!({"type": "object", "required": ["name", "age", "tags"], "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3}}});
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let constraint = engine.constraint(&Grammar::JsonSchema(schema)).expect("compiled");
    let how = hurtle_text::Encode { add_special: true, parse_special: true };
    let prompt = engine.tokenizer().encode("A person as JSON:\n", how);
    for seed in 0..4 {
        let extras = Extras { constraint: Some(Box::new(constraint.clone())), logprobs: None };
        let answer =
            engine.session().generate_with(&prompt, &params(seed, 200), extras, &mut |_| {
                ControlFlow::Continue(())
            });
        let answer = answer.expect("an answer");
        println!("{}", answer.text);
        assert_eq!(answer.stop_reason, StopReason::EndOfText);
        let value = serde_json::from_str(&answer.text).expect("JSON");
        assert!(validator.is_valid(&value), "{}", answer.text);
    }
}
