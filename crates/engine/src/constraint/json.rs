//! JSON schemas as llguidance reads them.

use super::{ConstraintError, logic};
use llguidance::api::TopLevelGrammar;
use serde_json::{Map, Value, json};

/// White space between tokens of JSON: enough for an indented answer, and an end to it. Small models
/// would otherwise write nothing else.
const WHITE_SPACE: &str = r"\x20|\n{1,2}[\x20\t]{0,40}";

/// Values of `format` that are honoured. To a JSON schema, `format` is a remark unless somebody knows it.
pub(super) const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Keywords whose value is a schema, or an array of them.
pub(super) const SCHEMAS: [&str; 15] = [
    "items",
    "additionalItems",
    "prefixItems",
    "contains",
    "additionalProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "not",
    "if",
    "then",
    "else",
    "allOf",
    "anyOf",
    "oneOf",
];

/// Keywords whose value has schemas under names of its own.
pub(super) const NAMED_SCHEMAS: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];

/// The grammar of a schema's documents.
pub(super) fn grammar(schema: Value) -> Result<TopLevelGrammar, ConstraintError> {
    prepare_schema(schema).map(TopLevelGrammar::from_json_schema)
}

/// A schema as a part of a [`Lark`](super::Grammar::Lark) grammar, behind `%json`: its documents are those of
/// [`JsonSchema`](super::Grammar::JsonSchema).
///
/// # Errors
/// If it asks for what is not supported.
pub fn prepare_schema(schema: Value) -> Result<Value, ConstraintError> {
    let mut schema = logic::express(schema)?;
    // Objects have the properties that the schema names and no others, unless it says otherwise, as in
    // llama.cpp: a model that may invent properties does not end. Where schemas are intersected, the
    // properties of one are additional ones of the other.
    let close = !any(&schema, &intersects);
    let mut n_multiples = 0;
    let mut too_fine = None;
    each(&mut schema, &mut |node| {
        if let Some(step) = node.get("multipleOf").and_then(Value::as_f64) {
            n_multiples += 1;
            too_fine = too_fine.or((!is_plain(step)).then_some(step));
        }
        if node.get("format").and_then(Value::as_str).is_some_and(|name| !FORMATS.contains(&name)) {
            node.shift_remove("format");
        }
        let open = ["additionalProperties", "patternProperties", "unevaluatedProperties"];
        if close
            && node.contains_key("properties")
            && !open.iter().any(|key| node.contains_key(*key))
        {
            node.insert("additionalProperties".into(), false.into());
        }
    });
    if let Some(step) = too_fine {
        return Err(ConstraintError(format!(
            "multipleOf: expected a number above 0 of at most {MAX_DIGITS} digits, found {step}"
        )));
    }
    if n_multiples > 1 && !close {
        let what = "multipleOf: expected at most one where schemas hold together, found several";
        return Err(ConstraintError(what.into()));
    }
    if let Value::Object(root) = &mut schema {
        let options = root.entry("x-guidance").or_insert_with(|| json!({}));
        let Value::Object(options) = options else {
            return Err(ConstraintError(format!(
                "x-guidance: expected an object, found {options}"
            )));
        };
        options.entry("whitespace_pattern").or_insert_with(|| WHITE_SPACE.into());
    }
    Ok(schema)
}

/// Digits of the longest `multipleOf`: llguidance counts in 32 bits.
const MAX_DIGITS: u32 = 6;

fn is_plain(step: f64) -> bool {
    let mut step = step;
    for _ in 0..MAX_DIGITS {
        if step.fract() == 0.0 {
            break;
        }
        step *= 10.0;
    }
    step > 0.0 && step.fract() == 0.0 && step < 10_f64.powi(MAX_DIGITS as i32)
}

/// Whether this schema holds together with another one for the same value.
fn intersects(node: &Map<String, Value>) -> bool {
    let parts = ["properties", "allOf", "anyOf", "oneOf", "$ref"];
    let several = node.get("allOf").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
    several || parts.iter().filter(|key| node.contains_key(**key)).count() > 1
}

/// Calls `f` for a schema and all schemas inside it.
pub(super) fn each(schema: &mut Value, f: &mut impl FnMut(&mut Map<String, Value>)) {
    let Value::Object(node) = schema else { return };
    f(node);
    for (key, value) in node {
        let key = key.as_str();
        match value {
            Value::Array(schemas) if SCHEMAS.contains(&key) => {
                schemas.iter_mut().for_each(|schema| each(schema, f));
            }
            Value::Object(named) if NAMED_SCHEMAS.contains(&key) => {
                named.values_mut().for_each(|schema| each(schema, f));
            }
            schema if SCHEMAS.contains(&key) => each(schema, f),
            _ => {}
        }
    }
}

/// Whether `f` holds for a schema or one inside it.
fn any(schema: &Value, f: &impl Fn(&Map<String, Value>) -> bool) -> bool {
    let Value::Object(node) = schema else { return false };
    f(node)
        || node.iter().any(|(key, value)| match value {
            Value::Array(schemas) if SCHEMAS.contains(&key.as_str()) => {
                schemas.iter().any(|schema| any(schema, f))
            }
            Value::Object(named) if NAMED_SCHEMAS.contains(&key.as_str()) => {
                named.values().any(|schema| any(schema, f))
            }
            schema => SCHEMAS.contains(&key.as_str()) && any(schema, f),
        })
}
