//! The logic of JSON schemas that llguidance lacks, said in terms of what it has.
//!
//! ```text
//! not A               ─► allOf [¬A]
//! if A then B else C  ─► anyOf [allOf [A, B], allOf [¬A, C]]
//! oneOf [A, B]        ─► anyOf [A, B] if no value is both, else anyOf [allOf [A, ¬B], allOf [B, ¬A]]
//! ```
//! `¬A` is a schema of all values that `A` refuses. Most of them can be written down: of a range, what lies below and
//! above it; of texts, a regular expression of all others. Where that is impossible the schema is refused, because an
//! answer that breaks it would be worse. Parts that nothing refers to may hold anything.

use super::ConstraintError;
use super::json::{FORMATS, NAMED_SCHEMAS, SCHEMAS, each};
use serde_json::{Map, Number, Value, json};
use std::cell::Cell;
use std::collections::HashSet;
use std::collections::btree_map::{BTreeMap, Entry};

/// Schemas that may be visited and made; each part of a `oneOf` may have to exclude every other.
const MAX_SCHEMAS: usize = 20_000;

/// Schemas that may be compared to find out which exclude each other, and how deep inside one another.
const MAX_COMPARED: usize = 300_000;
const MAX_DEPTH: usize = 16;

/// Properties of an object, patterns of their names, and items that have schemas of their own; what holds together
/// counts together. What llguidance does with them takes time by their squares.
const MAX_PARTS: [(&str, usize); 3] =
    [("properties", 500), ("patternProperties", 30), ("prefixItems", 500)];

const TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];

/// Keywords that are not supported, and their values that ask for nothing.
const REFUSED: [(&str, Option<bool>); 5] = [
    ("uniqueItems", Some(false)),
    ("contains", None),
    ("propertyNames", Some(true)),
    ("unevaluatedItems", Some(true)),
    ("unevaluatedProperties", Some(true)),
];

/// The keywords that say something of a value.
const KEYWORDS: &[&str] = &[
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
    "type",
    "const",
    "enum",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "items",
    "additionalItems",
    "prefixItems",
    "minItems",
    "maxItems",
    "uniqueItems",
    "contains",
    "minContains",
    "maxContains",
    "unevaluatedItems",
    "properties",
    "additionalProperties",
    "patternProperties",
    "required",
    "minProperties",
    "maxProperties",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "divisibleBy",
    "disallow",
    "extends",
];

/// The same schema without the keywords that llguidance lacks.
///
/// # Errors
/// If it has one that cannot be said otherwise; with its name and place.
pub(super) fn express(mut schema: Value) -> Result<Value, ConstraintError> {
    let draft = schema.get("$schema").and_then(Value::as_str).unwrap_or_default();
    let old = [3, 4, 6, 7].into_iter().find(|n| draft.contains(&format!("draft-0{n}")));
    let mut logic = Logic {
        root: schema.clone(),
        draft: old.unwrap_or(NEW),
        left: MAX_SCHEMAS,
        compared: Cell::new(0),
        visited: HashSet::new(),
        referred: Vec::new(),
        followed: Vec::new(),
    };
    logic.visit(&mut schema, "#")?;
    let mut moved = BTreeMap::new();
    while let Some(reference) = logic.referred.pop() {
        if let Some(part) = resolve_mut(&mut schema, &reference) {
            logic.visit(part, &reference)?;
        } else if let Some(mut part) = resolve(&logic.root, &reference).cloned()
            && !moved.contains_key(&reference)
            && let Value::Object(root) = &mut schema
        {
            // What it refers to was a part of what has been replaced.
            logic.visited.remove(&reference);
            logic.visit(&mut part, &reference)?;
            let name = format!("replaced-{}", moved.len());
            if let Value::Object(parts) = root.entry("$defs").or_insert_with(|| json!({})) {
                parts.insert(name.clone(), part);
            }
            moved.insert(reference, format!("#/$defs/{name}"));
        }
    }
    each(&mut schema, &mut |node| {
        if let Some(Value::String(reference)) = node.get_mut("$ref")
            && let Some(place) = moved.get(reference)
        {
            reference.clone_from(place);
        }
    });
    Ok(schema)
}

/// Drafts since 2019-09.
const NEW: u32 = 19;

struct Logic {
    /// The schema as it came.
    root: Value,
    /// Older drafts lack keywords, and ignore those beside a reference.
    draft: u32,
    left: usize,
    compared: Cell<usize>,
    /// Places that are done.
    visited: HashSet<String>,
    /// Places that something refers to.
    referred: Vec<String>,
    /// References whose schemas are being negated.
    followed: Vec<String>,
}

/// Where a reference leads to; as llguidance reads it.
fn steps(reference: &str) -> Option<impl Iterator<Item = &str>> {
    let path = reference.strip_prefix('#')?;
    (path.is_empty() || path.starts_with('/'))
        .then(|| path.split('/').skip(1).filter(|step| !step.is_empty()))
}

fn resolve<'s>(root: &'s Value, reference: &str) -> Option<&'s Value> {
    steps(reference)?.try_fold(root, |node, step| match node {
        Value::Array(items) => items.get(step.parse::<usize>().ok()?),
        node => node.get(step),
    })
}

fn resolve_mut<'s>(root: &'s mut Value, reference: &str) -> Option<&'s mut Value> {
    steps(reference)?.try_fold(root, |node, step| match node {
        Value::Array(items) => items.get_mut(step.parse::<usize>().ok()?),
        node => node.get_mut(step),
    })
}

fn refused(keyword: &str, at: &str, why: &str) -> ConstraintError {
    ConstraintError(format!("{keyword} at {at}: {why}"))
}

impl Logic {
    fn count(&mut self) -> Result<(), ConstraintError> {
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            let what = "with what not, if, oneOf and dependent schemas exclude";
            ConstraintError(format!(
                "the schema is too large: {what}, it comes to more than {MAX_SCHEMAS} schemas"
            ))
        })?;
        Ok(())
    }

    /// Replaces the keywords of a schema and of all in it.
    fn visit(&mut self, schema: &mut Value, at: &str) -> Result<(), ConstraintError> {
        let Value::Object(node) = schema else { return Ok(()) };
        if !self.visited.insert(at.to_owned()) {
            return Ok(());
        }
        self.count()?;
        for (key, most) in MAX_PARTS {
            let n = self.n_parts(node, key, MAX_DEPTH);
            if n > most {
                return Err(refused(key, at, &format!("expected at most {most}, found {n}")));
            }
        }
        if let Some(Value::String(reference)) = node.get("$ref") {
            self.referred.push(reference.clone());
        }
        for (key, value) in node.iter_mut() {
            let at = format!("{at}/{key}");
            match value {
                Value::Array(parts) if SCHEMAS.contains(&&**key) => {
                    for (i, part) in parts.iter_mut().enumerate() {
                        self.visit(part, &format!("{at}/{i}"))?;
                    }
                }
                // These count where something refers to them.
                Value::Object(_) if key == "$defs" || key == "definitions" => {}
                Value::Object(parts) if NAMED_SCHEMAS.contains(&&**key) => {
                    for (name, part) in parts {
                        self.visit(part, &format!("{at}/{name}"))?;
                    }
                }
                part if SCHEMAS.contains(&&**key) => self.visit(part, &at)?,
                _ => {}
            }
        }
        for (key, nothing) in REFUSED {
            match node.get(key) {
                None => {}
                Some(value) if value.as_bool().is_some_and(|on| Some(on) == nothing) => {
                    node.shift_remove(key);
                }
                Some(_) => return Err(refused(key, at, "this keyword is not supported")),
            }
        }
        let mut all = Vec::new();
        self.replace_not(node, at, &mut all)?;
        self.replace_if(node, at, &mut all)?;
        self.replace_dependent(node, &mut all);
        self.replace_one_of(node, at, &mut all)?;
        if !all.is_empty() {
            match node.entry("allOf").or_insert_with(|| json!([])) {
                Value::Array(parts) => parts.extend(all),
                other => {
                    return Err(refused("allOf", at, &format!("expected an array, found {other}")));
                }
            }
        }
        Ok(())
    }

    fn replace_not(
        &mut self,
        node: &mut Map<String, Value>,
        at: &str,
        all: &mut Vec<Value>,
    ) -> Result<(), ConstraintError> {
        if let Some(excluded) = node.shift_remove("not") {
            all.push(self.negated(&excluded, "not", at)?);
        }
        Ok(())
    }

    fn replace_if(
        &mut self,
        node: &mut Map<String, Value>,
        at: &str,
        all: &mut Vec<Value>,
    ) -> Result<(), ConstraintError> {
        let mut part = |key| node.shift_remove(key);
        let (condition, then, otherwise) = (part("if"), part("then"), part("else"));
        let counts = self.draft >= 7 && (then.is_some() || otherwise.is_some());
        if let Some(condition) = condition.filter(|_| counts) {
            let negated = self.negated(&condition, "if", at)?;
            let both = |condition, consequence: Option<Value>| match consequence {
                Some(consequence) => json!({"allOf": [condition, consequence]}),
                None => condition,
            };
            all.push(any_of([both(condition, then), both(negated, otherwise)]));
        }
        Ok(())
    }

    /// A property asks for others, or for more.
    fn replace_dependent(&self, node: &mut Map<String, Value>, all: &mut Vec<Value>) {
        let keys: &[&str] = match self.draft {
            NEW => &["dependentRequired", "dependentSchemas"],
            _ => &["dependencies"],
        };
        for key in keys {
            let Some(Value::Object(dependent)) = node.shift_remove(*key) else { continue };
            for (name, consequence) in dependent {
                let consequence = match consequence {
                    Value::Array(names) => json!({"type": "object", "required": names}),
                    schema => schema,
                };
                let others = json!({"type": &TYPES[..5]});
                all.push(any_of([others, without(&name), consequence]));
            }
        }
    }

    fn replace_one_of(
        &mut self,
        node: &mut Map<String, Value>,
        at: &str,
        all: &mut Vec<Value>,
    ) -> Result<(), ConstraintError> {
        if !node.get("oneOf").is_some_and(Value::is_array) {
            return Ok(());
        }
        let Some(Value::Array(mut parts)) = node.shift_remove("oneOf") else { return Ok(()) };
        let (mut overlaps, mut closed) = (Vec::new(), Vec::new());
        for (i, a) in parts.iter().enumerate() {
            for (k, b) in parts.iter().enumerate().skip(i + 1) {
                if exclude_when_closed(a, b) {
                    closed.extend([i, k]);
                } else if !self.exclude(a, b, MAX_DEPTH) {
                    overlaps.push((i, k));
                }
                if self.compared.get() > MAX_COMPARED {
                    let why = "there are too many schemas to find out which exclude each other";
                    return Err(refused("oneOf", at, why));
                }
            }
        }
        let mut negated: BTreeMap<usize, Value> = BTreeMap::new();
        for i in overlaps.iter().flat_map(|&(i, k)| [i, k]) {
            if let Entry::Vacant(entry) = negated.entry(i) {
                let not = self.negate(&parts[i])?.map_err(|what| {
                    let why = format!("its schema {i} may hold together with another, and {what} cannot be excluded");
                    refused("oneOf", at, &why)
                })?;
                entry.insert(not);
            }
        }
        for i in closed {
            parts[i]["additionalProperties"] = false.into();
        }
        let mut ways = Vec::new();
        for (i, part) in parts.into_iter().enumerate() {
            let others = overlaps.iter().filter_map(|&(a, b)| match i {
                _ if i == a => Some(b),
                _ if i == b => Some(a),
                _ => None,
            });
            let others: Vec<&Value> = others.map(|other| &negated[&other]).collect();
            for _ in &others {
                self.count()?;
            }
            ways.push(match others.is_empty() {
                true => part,
                false => {
                    let mut parts = vec![part];
                    parts.extend(others.into_iter().cloned());
                    json!({"allOf": parts})
                }
            });
        }
        all.push(any_of(ways));
        Ok(())
    }

    fn negated(
        &mut self,
        schema: &Value,
        keyword: &str,
        at: &str,
    ) -> Result<Value, ConstraintError> {
        let why = |what| refused(keyword, at, &format!("{what} cannot be excluded"));
        self.negate(schema)?.map_err(why)
    }

    /// A schema of all values that are not of this one, in which no keyword has to be replaced any more; or what it
    /// has that cannot be excluded.
    fn negate(&mut self, schema: &Value) -> Result<Result<Value, String>, ConstraintError> {
        self.count()?;
        let node = match schema {
            Value::Bool(all) => return Ok(Ok((!all).into())),
            Value::Object(node) => node,
            other => return Ok(Err(format!("the schema {other}"))),
        };
        let mut ways = Vec::new();
        macro_rules! all_ways {
            ($way:expr) => {
                match $way {
                    Ok(way) => ways.push(way),
                    Err(what) => return Ok(Err(what)),
                }
            };
        }
        let says = |key: &&String| KEYWORDS.contains(&key.as_str());
        for (key, value) in node {
            match (&**key, value) {
                (key, _) if !KEYWORDS.contains(&key) => {}
                ("format", Value::String(name)) if !FORMATS.contains(&&**name) => {}
                ("additionalProperties" | "unevaluatedProperties", Value::Bool(true)) => {}
                ("type", value) => all_ways!(other_types(value)),
                ("const", value) if self.draft >= 6 => {
                    all_ways!(other_values(std::slice::from_ref(value)))
                }
                ("enum", Value::Array(values)) => {
                    self.left = self.left.saturating_sub(values.len());
                    all_ways!(other_values(values));
                }
                ("minimum", Value::Number(n)) => {
                    ways.push(json!({"type": "number", "exclusiveMaximum": n}));
                }
                ("maximum", Value::Number(n)) => {
                    ways.push(json!({"type": "number", "exclusiveMinimum": n}));
                }
                ("exclusiveMinimum", Value::Number(n)) => {
                    ways.push(json!({"type": "number", "maximum": n}));
                }
                ("exclusiveMaximum", Value::Number(n)) => {
                    ways.push(json!({"type": "number", "minimum": n}));
                }
                ("minLength", Value::Number(n)) => {
                    all_ways!(fewer("string", "maxLength", n));
                }
                ("minItems", Value::Number(n)) => all_ways!(fewer("array", "maxItems", n)),
                ("minProperties", Value::Number(n)) => {
                    all_ways!(fewer("object", "maxProperties", n));
                }
                ("maxLength", Value::Number(n)) => all_ways!(more("string", "minLength", n)),
                ("maxItems", Value::Number(n)) => all_ways!(more("array", "minItems", n)),
                ("maxProperties", Value::Number(n)) => {
                    all_ways!(more("object", "minProperties", n));
                }
                ("required", Value::Array(names)) => {
                    ways.extend(names.iter().filter_map(Value::as_str).map(without));
                }
                ("properties", Value::Object(properties)) => {
                    for (name, schema) in properties {
                        match self.negate(schema)? {
                            Ok(Value::Bool(false)) => {}
                            Ok(not) => ways.push(with(name, not)),
                            Err(what) => return Ok(Err(what)),
                        }
                    }
                }
                ("allOf", Value::Array(parts)) => {
                    for part in parts {
                        all_ways!(self.negate(part)?);
                    }
                }
                ("anyOf", Value::Array(parts)) => {
                    let mut none = Vec::new();
                    for part in parts {
                        match self.negate(part)? {
                            Ok(not) => none.push(not),
                            Err(what) => return Ok(Err(what)),
                        }
                    }
                    ways.push(json!({"allOf": none}));
                }
                ("$ref", Value::String(reference)) => {
                    if self.draft < NEW && node.keys().filter(says).count() > 1 {
                        return Ok(Err("what stands beside a reference".into()));
                    }
                    all_ways!(self.negate_referred(reference)?);
                }
                (key, _) => return Ok(Err(format!("a schema with {key}"))),
            }
        }
        Ok(Ok(any_of(ways)))
    }

    fn negate_referred(
        &mut self,
        reference: &str,
    ) -> Result<Result<Value, String>, ConstraintError> {
        let Some(schema) = resolve(&self.root, reference) else {
            return Ok(Err(format!("what {reference} refers to")));
        };
        if self.followed.iter().any(|followed| followed == reference) {
            return Ok(Err("a schema that refers to itself".into()));
        }
        let mut schema = schema.clone();
        self.followed.push(reference.to_owned());
        // It is visited once more where it stands.
        let visited = std::mem::take(&mut self.visited);
        let negated = match self.visit(&mut schema, reference) {
            Ok(()) => self.negate(&schema),
            Err(error) => Err(error),
        };
        self.visited = visited;
        self.followed.pop();
        negated
    }

    /// How many parts of a kind a value may have by a schema.
    fn n_parts(&self, node: &Map<String, Value>, key: &str, depth: usize) -> usize {
        let Some(depth) = depth.checked_sub(1).filter(|_| self.may_compare()) else { return 0 };
        let n = |key: &str| match node.get(key) {
            Some(Value::Array(parts)) => parts.len(),
            Some(Value::Object(parts)) => parts.len(),
            _ => 0,
        };
        let inside = |schema: Option<&Value>| match schema {
            Some(Value::Object(node)) => self.n_parts(node, key, depth),
            _ => 0,
        };
        let each = |key: &str| node.get(key).and_then(Value::as_array).into_iter().flatten();
        let reference = node.get("$ref").and_then(Value::as_str);
        let own = match key {
            // A property may be required and have no schema.
            "properties" => n("properties").max(n("required")),
            "prefixItems" => n("prefixItems").max(n("items")),
            key => n(key),
        };
        own + inside(reference.and_then(|reference| resolve(&self.root, reference)))
            + ["if", "then", "else", "not"]
                .into_iter()
                .map(|key| inside(node.get(key)))
                .sum::<usize>()
            + each("allOf").map(|schema| inside(Some(schema))).sum::<usize>()
            + each("anyOf").map(|schema| inside(Some(schema))).max().unwrap_or(0)
            + each("oneOf").map(|schema| inside(Some(schema))).max().unwrap_or(0)
    }

    /// Whether it is certain that no value is of both schemas.
    fn exclude(&self, a: &Value, b: &Value, depth: usize) -> bool {
        let Some(depth) = depth.checked_sub(1).filter(|_| self.may_compare()) else {
            return false;
        };
        if *a == Value::Bool(false) || *b == Value::Bool(false) {
            return true;
        }
        let (a_nodes, b_nodes) = (self.conjuncts(a, depth), self.conjuncts(b, depth));
        let types = types_of(&a_nodes) & types_of(&b_nodes);
        if types == 0 {
            return true;
        }
        if let (Some(a), Some(b)) = (values_of(&a_nodes), values_of(&b_nodes))
            && !a.iter().any(|a| b.iter().any(|b| equal(a, b)))
        {
            return true;
        }
        let properties = |nodes: &[&'_ Map<String, Value>], name: &str| -> Vec<Value> {
            let of = |node: &&Map<String, Value>| match node.get("properties")?.get(name) {
                None if !node.contains_key("patternProperties") => {
                    node.get("additionalProperties").cloned()
                }
                named => named.cloned(),
            };
            nodes.iter().filter_map(of).collect()
        };
        let required = a_nodes.iter().chain(&b_nodes).filter_map(|node| node.get("required"));
        let mut names = required.filter_map(Value::as_array).flatten().filter_map(Value::as_str);
        let differ = |name: &str| {
            let b = properties(&b_nodes, name);
            let excluded = |a: &Value| b.iter().any(|b| self.exclude(a, b, depth));
            properties(&a_nodes, name).iter().any(excluded)
        };
        if types == 1 << 5 && names.any(differ) {
            return true;
        }
        let none_with = |nodes: &[&Map<String, Value>], other: &Value| {
            let choices = nodes.iter().flat_map(|node| [node.get("anyOf"), node.get("oneOf")]);
            let mut choices = choices.flatten().filter_map(Value::as_array);
            choices.any(|parts| parts.iter().all(|part| self.exclude(part, other, depth)))
        };
        none_with(&a_nodes, b) || none_with(&b_nodes, a)
    }

    fn may_compare(&self) -> bool {
        self.compared.set(self.compared.get() + 1);
        self.compared.get() <= MAX_COMPARED
    }

    /// Schemas that hold together for every value of this one.
    fn conjuncts<'s>(&'s self, schema: &'s Value, depth: usize) -> Vec<&'s Map<String, Value>> {
        let depth = depth.checked_sub(1).filter(|_| self.may_compare());
        let (Value::Object(node), Some(depth)) = (schema, depth) else { return Vec::new() };
        let mut nodes = vec![node];
        if let Some(Value::Array(parts)) = node.get("allOf") {
            nodes.extend(parts.iter().flat_map(|part| self.conjuncts(part, depth)));
        }
        let reference = node.get("$ref").and_then(Value::as_str);
        if let Some(referred) = reference.and_then(|reference| resolve(&self.root, reference)) {
            if self.draft < NEW {
                nodes.clear();
            }
            nodes.extend(self.conjuncts(referred, depth));
        }
        nodes
    }
}

/// Whether no object is of both schemas if neither has properties that it does not name: each requires one that the
/// other does not name.
fn exclude_when_closed(a: &Value, b: &Value) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return false };
    let more = ["additionalProperties", "patternProperties", "allOf", "anyOf", "$ref"];
    let closable = |node: &Map<String, Value>| !more.iter().any(|key| node.contains_key(*key));
    let lacks = |a: &Map<String, Value>, b: &Map<String, Value>| {
        let named = a.get("properties").and_then(Value::as_object);
        let mut required = b.get("required").and_then(Value::as_array).into_iter().flatten();
        named.is_some_and(|named| {
            required.any(|name| name.as_str().is_some_and(|name| !named.contains_key(name)))
        })
    };
    types_of(&[a]) & types_of(&[b]) == 1 << 5
        && closable(a)
        && closable(b)
        && lacks(a, b)
        && lacks(b, a)
}

/// A schema of the values that one of these has.
fn any_of(ways: impl IntoIterator<Item = Value>) -> Value {
    let mut ways: Vec<Value> = ways.into_iter().filter(|way| *way != Value::Bool(false)).collect();
    match ways.len() {
        0 => false.into(),
        1 => ways.remove(0),
        _ if ways.contains(&Value::Bool(true)) => true.into(),
        _ => json!({"anyOf": ways}),
    }
}

/// Objects without a property.
fn without(name: &str) -> Value {
    json!({"type": "object", "properties": {name: false}, "additionalProperties": true})
}

/// Objects whose property is of a schema.
fn with(name: &str, schema: Value) -> Value {
    json!({"type": "object", "required": [name], "properties": {name: schema}, "additionalProperties": true})
}

fn fewer(kind: &str, most: &str, least: &Number) -> Result<Value, String> {
    let least = least.as_u64().ok_or_else(|| format!("{most} above {least}"))?;
    Ok(match least.checked_sub(1) {
        None => false.into(),
        Some(n) => json!({"type": kind, most: n}),
    })
}

fn more(kind: &str, least: &str, most: &Number) -> Result<Value, String> {
    let n = most.as_u64().and_then(|most| most.checked_add(1));
    Ok(json!({"type": kind, least: n.ok_or_else(|| format!("{least} below {most}"))?}))
}

/// All values of other types.
fn other_types(types: &Value) -> Result<Value, String> {
    let types: Vec<&str> = match types {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if types.contains(&"integer") && !types.contains(&"number") {
        return Err("type integer".into());
    }
    if let Some(unknown) = types.iter().find(|name| **name != "integer" && !TYPES.contains(name)) {
        return Err(format!("type {unknown}"));
    }
    let others: Vec<&str> = TYPES.into_iter().filter(|name| !types.contains(name)).collect();
    Ok(if others.is_empty() { false.into() } else { json!({"type": others}) })
}

/// All values but these.
fn other_values(values: &[Value]) -> Result<Value, String> {
    let mut types = TYPES.to_vec();
    let (mut ways, mut numbers, mut texts, mut truths) = (vec![], vec![], vec![], vec![]);
    for value in values {
        types.retain(|name| *name != type_of(value));
        match value {
            Value::Null => {}
            Value::Bool(truth) => truths.push(*truth),
            Value::Number(n) if n.as_f64().is_some_and(|n| n.abs() < 2_f64.powi(53)) => {
                numbers.push(n);
            }
            Value::String(text) => texts.push(text.chars().collect::<Vec<_>>()),
            Value::Number(_) => return Err(format!("the number {value}")),
            Value::Array(_) | Value::Object(_) => return Err("an array or object".into()),
        }
    }
    if !types.is_empty() {
        ways.push(json!({"type": types}));
    }
    if let [truth, rest @ ..] = &*truths
        && rest.iter().all(|other| other == truth)
    {
        ways.push(json!({"const": !truth}));
    }
    numbers
        .sort_by(|a, b| a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(std::cmp::Ordering::Equal));
    numbers.dedup_by(|a, b| a.as_f64() == b.as_f64());
    if let (Some(first), Some(last)) = (numbers.first(), numbers.last()) {
        ways.push(json!({"type": "number", "exclusiveMaximum": first}));
        ways.push(json!({"type": "number", "exclusiveMinimum": last}));
    }
    for pair in numbers.windows(2) {
        ways.push(
            json!({"type": "number", "exclusiveMinimum": pair[0], "exclusiveMaximum": pair[1]}),
        );
    }
    if !texts.is_empty() {
        let rests: Vec<&[char]> = texts.iter().map(Vec::as_slice).collect();
        ways.push(json!({"type": "string", "pattern": format!("^(?:{})$", other_texts(&rests))}));
    }
    Ok(any_of(ways))
}

/// A regular expression of all texts but these.
fn other_texts(texts: &[&[char]]) -> String {
    let mut by_first: BTreeMap<char, Vec<&[char]>> = BTreeMap::new();
    for text in texts {
        if let [first, rest @ ..] = text {
            by_first.entry(*first).or_default().push(rest);
        }
    }
    let code = |c: &char| format!("\\x{{{:x}}}", u32::from(*c));
    let firsts: String = by_first.keys().map(code).collect();
    let mut ways = vec![match by_first.is_empty() {
        true => "(?:.|\\n)+".to_owned(),
        false => format!("[^{firsts}](?:.|\\n)*"),
    }];
    ways.extend(by_first.iter().map(|(c, rests)| format!("{}(?:{})", code(c), other_texts(rests))));
    if !texts.iter().any(|text| text.is_empty()) {
        ways.push(String::new());
    }
    ways.join("|")
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The types that a value may have which is of all these schemas, as bits in the order of [`TYPES`].
fn types_of(nodes: &[&Map<String, Value>]) -> u8 {
    let bit = |name: &str| {
        let name = if name == "integer" { "number" } else { name };
        TYPES.iter().position(|known| *known == name).map_or(0, |i| 1 << i)
    };
    let of = |node: &Map<String, Value>| {
        let named = match node.get("type") {
            Some(Value::String(name)) => bit(name),
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).map(bit).fold(0, |all, bit| all | bit)
            }
            _ => u8::MAX,
        };
        let values = values_in(node);
        let valued = values.map_or(u8::MAX, |values| {
            values.iter().map(|value| bit(type_of(value))).fold(0, |all, bit| all | bit)
        });
        named & valued
    };
    nodes.iter().fold((1 << TYPES.len()) - 1, |types, node| types & of(node))
}

/// The only values that a schema has, if it names them.
fn values_in(node: &Map<String, Value>) -> Option<&[Value]> {
    match (node.get("const"), node.get("enum")) {
        (Some(value), _) => Some(std::slice::from_ref(value)),
        (None, Some(Value::Array(values))) => Some(values),
        _ => None,
    }
}

fn values_of<'s>(nodes: &[&'s Map<String, Value>]) -> Option<&'s [Value]> {
    nodes.iter().find_map(|node| values_in(node))
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        // Numbers in them may be written in several ways.
        (Value::Array(_), Value::Array(_)) | (Value::Object(_), Value::Object(_)) => true,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Small values, of which schemas name many.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Value::from),
            (-2..4_i64).prop_map(Value::from),
            Just(json!(0.5)),
            "[ab\\n]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 8, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::vec(("[ab]", inner), 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn schema() -> impl Strategy<Value = Value> {
        let kind = || prop::sample::select(TYPES.to_vec());
        let name = || prop::sample::select(vec!["a", "b"]);
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            kind().prop_map(|kind| json!({"type": kind})),
            (kind(), kind()).prop_map(|(a, b)| match a == b {
                true => json!({"type": a}),
                false => json!({"type": [a, b]}),
            }),
            value().prop_map(|value| json!({"const": value})),
            prop::collection::vec(value(), 1..4).prop_map(|values| json!({"enum": values})),
            (-2..4_i64).prop_map(|n| json!({"minimum": n})),
            (-2..4_i64).prop_map(|n| json!({"exclusiveMaximum": n})),
            (0..3_u64, 0..3_u64)
                .prop_map(|(low, n)| json!({"minLength": low, "maxLength": low + n})),
            (0..3_u64).prop_map(|n| json!({"type": "array", "minItems": n})),
            Just(json!({"$ref": "#/$defs/x"})),
            name().prop_map(|name| json!({"required": [name]})),
            Just(json!({"type": "string", "pattern": "^a"})),
        ];
        let inner = leaf.prop_recursive(3, 12, 3, move |inner| {
            let several = || prop::collection::vec(inner.clone(), 1..4);
            prop_oneof![
                inner.clone().prop_map(|not| json!({"not": not})),
                (inner.clone(), inner.clone(), inner.clone())
                    .prop_map(|(a, b, c)| json!({"if": a, "then": b, "else": c})),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| json!({"if": a, "then": b})),
                several().prop_map(|parts| json!({"oneOf": parts})),
                several().prop_map(|parts| json!({"anyOf": parts})),
                several().prop_map(|parts| json!({"allOf": parts})),
                (name(), inner.clone()).prop_map(|(name, schema)| json!({"properties": {name: schema}})),
                (name(), name()).prop_map(|(a, b)| json!({"dependentRequired": {a: [b]}})),
                (name(), inner.clone()).prop_map(|(a, b)| json!({"dependentSchemas": {a: b}})),
                (inner.clone(), inner.clone(), inner.clone()).prop_map(
                    |(a, b, c)| json!({"type": ["object", "number"], "properties": {"a": a}, "not": b, "oneOf": [c, false]})
                ),
            ]
        });
        (inner.clone(), inner).prop_map(|(mut schema, x)| {
            if let Value::Object(node) = &mut schema {
                node.insert("$defs".into(), json!({"x": x}));
            }
            schema
        })
    }

    fn validator(schema: &Value) -> jsonschema::Validator {
        jsonschema::validator_for(schema).unwrap_or_else(|error| panic!("{schema}: {error}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]
        #[test]
        fn another_way_to_say_the_same(
            schema in schema(),
            values in prop::collection::vec(value(), 30),
        ) {
            let text = schema.to_string();
            // A reference that leads back to itself says nothing, and there may be none.
            prop_assume!(text.matches("$ref").count() < 2 || !text.contains("{\"$ref\""));
            let Ok(expressed) = express(schema.clone()) else { return Ok(()) };
            let lacking = ["not", "if", "then", "else", "oneOf", "dependentRequired", "dependentSchemas"];
            let mut reached = expressed.clone();
            each(&mut reached, &mut |node| {
                node.shift_remove("$defs");
            });
            let quoted = |key: &str| reached.to_string().contains(&format!("\"{key}\":"));
            prop_assert!(!lacking.iter().any(|key| quoted(key)), "{}", expressed);
            let (a, b) = (validator(&schema), validator(&expressed));
            for value in &values {
                prop_assert_eq!(a.is_valid(value), b.is_valid(value), "{}\n{}\n{}", schema, expressed, value);
            }
        }
    }

    #[test]
    fn what_cannot_be_said_is_refused_with_its_place() {
        let check = |schema: Value, expected: &str| {
            let error = express(schema.clone()).expect_err("refused").to_string();
            assert!(error.starts_with(expected), "{schema}: {error}");
        };
        let pattern = json!({"pattern": "^a"});
        let inside = |schema: Value| json!({"properties": {"a": {"items": schema}}});
        check(
            inside(json!({"not": pattern})),
            "not at #/properties/a/items: a schema with pattern",
        );
        check(json!({"if": pattern, "then": true}), "if at #: a schema with pattern");
        check(json!({"not": {"type": "integer"}}), "not at #: type integer");
        check(json!({"not": {"const": [1]}}), "not at #: an array or object");
        check(
            json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
            "oneOf at #: its schema 0 may hold together with another, and type integer",
        );
        check(inside(json!({"uniqueItems": true})), "uniqueItems at #/properties/a/items: this");
        check(json!({"unevaluatedProperties": false}), "unevaluatedProperties at #");
        check(json!({"$ref": "#/$defs/a", "$defs": {"a": {"not": pattern}}}), "not at #/$defs/a");
        let itself = json!({"$ref": "#/$defs/a", "$defs": {"a": {"not": {"$ref": "#/$defs/a"}}}});
        check(itself, "not at #/$defs/a: a schema that refers to itself");
        let many: Map<_, _> = (0..501).map(|i| (i.to_string(), json!({}))).collect();
        check(
            inside(json!({"properties": many})),
            "properties at #/properties/a/items: expected at most 500, found 501",
        );
        // What nothing refers to may hold anything.
        let unused =
            json!({"$defs": {"a": {"not": pattern}}, "uniqueItems": false, "type": "null"});
        assert_eq!(express(unused.clone()).expect("expressed")["$defs"], unused["$defs"]);
    }

    #[test]
    fn objects_that_differ_in_what_they_require_exclude_each_other() {
        let part = |name: &str| json!({"type": "object", "properties": {name: {"type": "string", "pattern": "^x"}}, "required": [name]});
        let mut open = part("a");
        open["additionalProperties"] = true.into();
        let mut closed = part("a");
        closed["additionalProperties"] = false.into();
        let both = json!({"a": "x", "b": "x"});
        for (a, expressible) in [(part("a"), true), (closed, true), (open, false)] {
            let schema = json!({"oneOf": [a, part("b")]});
            let Ok(expressed) = express(schema.clone()) else {
                assert!(!expressible, "{schema}");
                continue;
            };
            assert!(expressible, "{schema}");
            let found = validator(&expressed);
            assert!(found.is_valid(&json!({"a": "x"})) && found.is_valid(&json!({"b": "x"})));
            assert_eq!(validator(&schema).is_valid(&both), found.is_valid(&both), "{expressed}");
        }
    }

    #[test]
    fn references_into_what_is_replaced_lead_to_the_same() {
        let schema =
            json!({"oneOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/oneOf/0"}}]});
        let expressed = express(schema).expect("expressed");
        let validator = validator(&expressed);
        for (value, valid) in [(json!(null), true), (json!([null]), true), (json!([1]), false)] {
            assert_eq!(validator.is_valid(&value), valid, "{value}: {expressed}");
        }
    }
}
