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
    let joined = any(&schema, &intersects);
    close(&mut schema);
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
    });
    if let Some(step) = too_fine {
        return Err(ConstraintError(format!(
            "multipleOf: expected a number above 0 of at most {MAX_DIGITS} digits, found {step}"
        )));
    }
    if n_multiples > 1 && joined {
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

/// Lets objects have the properties that the schema names and no others, unless it says otherwise, as in llama.cpp:
/// a model that may invent properties does not end. Where schemas are intersected, the properties of one are
/// additional ones of the other, so that what joins them names those of all.
fn close(schema: &mut Value) {
    let mut closing = Closing { root: schema.clone(), open: Vec::new(), cannot: false };
    let mut closed = schema.clone();
    closing.close(&mut closed, false);
    // Copies may refer to further ones.
    let mut n_done = 0;
    while let Some(pointer) = closing.open.get(n_done).cloned() {
        n_done += 1;
        let Some(mut copy) = closing.root.pointer(&pointer).cloned() else { return };
        closing.close(&mut copy, true);
        let Some((parent, name)) = pointer.rsplit_once('/') else { return };
        let Some(Value::Object(parent)) = closed.pointer_mut(parent) else { return };
        parent.insert(format!("{}{OPEN}", name.replace("~1", "/").replace("~0", "~")), copy);
    }
    if !closing.cannot {
        *schema = closed;
    }
}

/// What the name of a definition ends with that stays open because it is intersected with others.
const OPEN: &str = "-open";
/// What says of itself which further properties an object may have.
const SAYS: [&str; 3] = ["additionalProperties", "patternProperties", "unevaluatedProperties"];
/// Keywords whose schemas hold for the same value as the one that they stand in.
const SAME: [&str; 7] = ["allOf", "anyOf", "oneOf", "if", "then", "else", "not"];

struct Closing {
    /// The schema as it was.
    root: Value,
    /// Pointers to definitions of which an open copy is wanted.
    open: Vec<String>,
    /// There is one that cannot be copied.
    cannot: bool,
}

impl Closing {
    /// `is_part`: it is intersected with another schema.
    fn close(&mut self, schema: &mut Value, is_part: bool) {
        let Value::Object(node) = schema else { return };
        let joins = intersects(node);
        let says = SAYS.iter().any(|key| node.contains_key(*key));
        if !is_part && joins {
            if let Some(names) = self.names(node, 0).filter(|names| !names.is_empty()) {
                let properties = node.entry("properties").or_insert_with(|| json!({}));
                if let Value::Object(properties) = properties {
                    for name in names {
                        properties.entry(name).or_insert(true.into());
                    }
                }
                node.insert("additionalProperties".into(), false.into());
            }
        } else if !is_part && node.contains_key("properties") && !says {
            node.insert("additionalProperties".into(), false.into());
        }
        let is_part = is_part || joins;
        for (key, value) in node {
            let key = key.as_str();
            match value {
                Value::String(name) if key == "$ref" && is_part => self.refer_to_open(name),
                Value::Array(schemas) if SCHEMAS.contains(&key) => {
                    let is_part = is_part && SAME.contains(&key);
                    schemas.iter_mut().for_each(|schema| self.close(schema, is_part));
                }
                Value::Object(named) if NAMED_SCHEMAS.contains(&key) => {
                    let is_part = key == "dependentSchemas" || key == "dependencies";
                    named.values_mut().for_each(|schema| self.close(schema, is_part));
                }
                schema if SCHEMAS.contains(&key) => {
                    let is_part = key == "not" || key == "if" || (is_part && SAME.contains(&key));
                    self.close(schema, is_part);
                }
                _ => {}
            }
        }
    }

    fn refer_to_open(&mut self, name: &mut String) {
        let pointer = name.strip_prefix('#').filter(|pointer| {
            let open = format!("{pointer}{OPEN}");
            pointer.len() > 1
                && self.root.pointer(pointer).is_some_and(Value::is_object)
                && self.root.pointer(&open).is_none()
        });
        let Some(pointer) = pointer.map(str::to_owned) else {
            self.cannot = true;
            return;
        };
        name.push_str(OPEN);
        if !self.open.contains(&pointer) {
            self.open.push(pointer);
        }
    }

    /// The properties that a schema and those of the same value name; `None` if one of them says which further ones
    /// there may be.
    fn names(&self, node: &Map<String, Value>, depth: usize) -> Option<Vec<String>> {
        if depth > 16 || SAYS.iter().any(|key| node.contains_key(*key)) {
            return None;
        }
        let properties = node.get("properties").and_then(Value::as_object);
        let mut names: Vec<String> =
            properties.into_iter().flatten().map(|p| p.0.clone()).collect();
        let mut same: Vec<&Value> = Vec::new();
        for key in SAME {
            match node.get(key) {
                Some(Value::Array(schemas)) => same.extend(schemas),
                Some(schema) => same.push(schema),
                None => {}
            }
        }
        let named = node.get("dependentSchemas").and_then(Value::as_object);
        same.extend(named.into_iter().flatten().map(|(_, schema)| schema));
        if let Some(name) = node.get("$ref") {
            same.push(self.root.pointer(name.as_str()?.strip_prefix('#')?)?);
        }
        for schema in same {
            match schema {
                Value::Object(node) => names.extend(self.names(node, depth + 1)?),
                Value::Bool(_) => {}
                _ => return None,
            }
        }
        Some(names)
    }
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
