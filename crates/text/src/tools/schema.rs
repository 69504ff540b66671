//! What the schema of a tool's arguments says of each of them, where calls name arguments one by one and values
//! are no JSON.
use serde_json::{Map, Value, json};

/// Most ways to choose arguments that are told apart.
const MAX_WAYS: usize = 16;
/// Most references one behind the other.
const MAX_DEPTH: usize = 16;

/// An argument that a call may have.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Argument {
    pub(super) name: String,
    /// Its schema, which refers to nothing outside.
    pub(super) schema: Value,
    pub(super) required: bool,
}

/// A way to choose arguments: those that may be there, and those that must.
#[derive(Debug, Clone, Default)]
struct Way {
    properties: Vec<(String, Value)>,
    required: Vec<String>,
}

impl Way {
    fn and(mut self, other: &Self) -> Self {
        for (name, schema) in &other.properties {
            match self.properties.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) if known != schema => *known = json!({"allOf": [known, schema]}),
                Some(_) => {}
                None => self.properties.push((name.clone(), schema.clone())),
            }
        }
        self.required.extend(other.required.iter().cloned());
        self
    }
}

/// The arguments that a schema allows: one list for each way that `anyOf` and `oneOf` leave to choose.
pub(super) fn arguments(schema: &Value) -> Vec<Vec<Argument>> {
    let finish = |way: Way| {
        let argument = |(name, value): (String, Value)| Argument {
            required: way.required.contains(&name),
            schema: whole(schema, value),
            name,
        };
        way.properties.into_iter().map(argument).collect()
    };
    ways(schema, schema, 0).into_iter().map(finish).collect()
}

fn ways(root: &Value, node: &Value, depth: usize) -> Vec<Way> {
    let node = target(root, node);
    let properties = node["properties"].as_object().into_iter().flatten();
    let required = node["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let own = Way {
        properties: properties.map(|(name, schema)| (name.clone(), schema.clone())).collect(),
        required: required.map(str::to_owned).collect(),
    };
    let mut all = vec![own];
    if depth >= MAX_DEPTH {
        return all;
    }
    let inside = |member: &Value| ways(root, member, depth + 1);
    for member in node["allOf"].as_array().into_iter().flatten() {
        all = product(all, &inside(member));
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(members) = node[key].as_array() {
            let options: Vec<Way> = members.iter().flat_map(inside).collect();
            all = product(all, &options);
        }
    }
    all
}

/// Each of one and each of the other. Where they are too many, any choice of arguments will do.
fn product(all: Vec<Way>, options: &[Way]) -> Vec<Way> {
    if options.is_empty() {
        return all;
    }
    if all.len() * options.len() > MAX_WAYS {
        let any = options.iter().map(|way| Way { required: Vec::new(), ..way.clone() });
        let any = any.fold(Way::default(), |a, b| a.and(&b));
        return all.into_iter().map(|way| way.and(&any)).collect();
    }
    all.iter().flat_map(|way| options.iter().map(|option| way.clone().and(option))).collect()
}

/// What a schema refers to, or itself.
fn target<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    let mut node = node;
    for _ in 0..MAX_DEPTH {
        let Some(pointer) = node["$ref"].as_str().and_then(|name| name.strip_prefix('#')) else {
            break;
        };
        let Some(next) = root.pointer(pointer) else { break };
        node = next;
    }
    node
}

/// A part of a schema as one by itself, with the definitions that it may refer to.
fn whole(root: &Value, part: Value) -> Value {
    let mut part = match target(root, &part) {
        // What stands beside a reference counts, too.
        target if part.as_object().is_some_and(|part| part.len() == 1) => target.clone(),
        _ => part,
    };
    if part.is_object() && refers(&part) {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(key) {
                part[key] = definitions.clone();
            }
        }
    }
    part
}

fn refers(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.contains_key("$ref") || map.values().any(refers),
        Value::Array(values) => values.iter().any(refers),
        _ => false,
    }
}

/// The schema of one argument.
pub(super) fn argument(schema: &Value, name: &str) -> Option<Value> {
    let mut all = arguments(schema).into_iter().flatten();
    all.find(|argument| argument.name == name).map(|argument| argument.schema)
}

/// The types of the values that a schema allows; `None`: any.
pub(super) fn types(schema: &Value) -> Option<Vec<String>> {
    types_of(schema, schema, 0)
}

fn types_of(root: &Value, node: &Value, depth: usize) -> Option<Vec<String>> {
    let node = target(root, node);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(kind) = text(&node["type"]) {
        return Some(vec![kind]);
    }
    if let Some(kinds) = node["type"].as_array() {
        return kinds.iter().map(text).collect();
    }
    if let Some(values) = node["enum"].as_array() {
        return Some(values.iter().map(|value| kind(value).to_owned()).collect());
    }
    if let Some(value) = node.get("const") {
        return Some(vec![kind(value).to_owned()]);
    }
    if depth >= MAX_DEPTH {
        return None;
    }
    let inside = |member: &Value| types_of(root, member, depth + 1);
    for key in ["anyOf", "oneOf"] {
        if let Some(members) = node[key].as_array() {
            let all: Option<Vec<Vec<String>>> = members.iter().map(inside).collect();
            return all.map(|all| all.concat());
        }
    }
    node["allOf"].as_array()?.iter().find_map(inside)
}

/// JSON schema's name of a value's type.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Whether a value is of one of the types.
pub(super) fn is_of(value: &Value, types: &[String]) -> bool {
    let own = kind(value);
    types.iter().any(|name| name == own || (name == "integer" && own == "number"))
}

/// The texts that a schema allows, if it names them all.
pub(super) fn texts(schema: &Value) -> Option<Vec<&str>> {
    let values = match schema.get("const") {
        Some(value) => std::slice::from_ref(value),
        None => schema["enum"].as_array()?.as_slice(),
    };
    values.iter().map(Value::as_str).collect()
}

/// Whether a value is any text.
pub(super) fn is_text(schema: &Value) -> bool {
    let bounded = ["enum", "const", "pattern", "allOf"];
    types(schema).is_some_and(|types| types.iter().all(|name| name == "string"))
        && !bounded.iter().any(|key| schema.get(*key).is_some())
        && !["anyOf", "oneOf"].iter().any(|key| schema.get(*key).is_some())
}

/// A value as it stands in a call that is no JSON.
pub(super) fn typed(text: &str, schema: Option<&Value>) -> Value {
    let types = schema.and_then(types);
    let own = || Value::String(text.to_owned());
    let parsed = serde_json::from_str::<Value>(text.trim()).ok();
    if types.as_ref().is_some_and(|types| types.iter().all(|name| name == "string")) {
        // Where the text has to be of some form, a grammar may have put it between quotation marks.
        let quoted = parsed.filter(|value| value.is_string() && !schema.is_some_and(is_text));
        let named = schema.and_then(texts).is_some_and(|texts| texts.contains(&text));
        return quoted.filter(|_| !named).unwrap_or_else(own);
    }
    let python = || match text.trim() {
        "True" => Some(true.into()),
        "False" => Some(false.into()),
        "None" => Some(Value::Null),
        _ => None,
    };
    let value = parsed.or_else(python);
    match &types {
        Some(types) if types.iter().any(|name| name == "string") => {
            value.filter(|value| is_of(value, types)).unwrap_or_else(own)
        }
        _ => value.unwrap_or_else(own),
    }
}

/// An object without properties.
pub(super) fn any_object() -> Value {
    Value::Object(Map::from_iter([("type".to_owned(), "object".into())]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ways to choose arguments, each by name, with `!` where it must be there.
    fn check(schema: &Value, expected: &[&str]) {
        let told = |arguments: Vec<Argument>| {
            let one = |a: Argument| a.name + if a.required { "!" } else { "" };
            arguments.into_iter().map(one).collect::<Vec<_>>().join(" ")
        };
        let ways: Vec<String> = arguments(schema).into_iter().map(told).collect();
        assert_eq!(ways, expected, "{schema}");
    }

    #[test]
    fn arguments_wherever_they_stand() {
        let (a, b) = (json!({"type": "string"}), json!({"type": "integer"}));
        let object =
            |required: &[&str]| json!({"properties": {"a": a, "b": b}, "required": required});
        check(&json!({"type": "object"}), &[""]);
        check(&object(&["b"]), &["a b!"]);
        check(&json!({"$ref": "#/$defs/x", "$defs": {"x": object(&["a"])}}), &["a! b"]);
        check(
            &json!({"allOf": [object(&[]), {"properties": {"c": {}}, "required": ["c", "a"]}]}),
            &["a! b c!"],
        );
        let mut either = object(&[]);
        either["anyOf"] = json!([{"required": ["a"]}, {"required": ["b"]}]);
        check(&either, &["a! b", "a b!"]);
        let kinds = json!({"oneOf": [
            {"properties": {"a": a}, "required": ["a"]}, {"properties": {"b": b}, "required": ["b"]}]});
        check(&kinds, &["a!", "b!"]);
        // Too many to tell apart.
        let many: Vec<Value> =
            (0..20).map(|i| json!({"required": [i.to_string()], "properties": {"a": a}})).collect();
        check(&json!({"anyOf": many}), &["a"]);
        // One that is a part of itself ends somewhere.
        let round =
            json!({"$ref": "#/$defs/x", "$defs": {"x": {"allOf": [{"$ref": "#/$defs/x"}]}}});
        check(&round, &[""]);
    }

    #[test]
    fn a_part_takes_its_definitions_along() {
        let definitions = json!({"x": {"type": "string"}, "y": {"items": {"$ref": "#/$defs/x"}}});
        let schema = json!({"$defs": definitions, "properties": {
            "s": {"$ref": "#/$defs/x"}, "l": {"$ref": "#/$defs/y"}}});
        assert_eq!(argument(&schema, "s"), Some(json!({"type": "string"})));
        let list = json!({"items": {"$ref": "#/$defs/x"}, "$defs": definitions});
        assert_eq!(argument(&schema, "l"), Some(list));
        assert_eq!(argument(&schema, "z"), None);
    }

    #[test]
    fn values_by_their_types() {
        let check = |schema: Value, text: &str, expected: Value| {
            assert_eq!(typed(text, Some(&schema)), expected, "{schema} {text}");
        };
        check(json!({"type": "string"}), "12", json!("12"));
        check(json!({"type": "string"}), "\"a\"", json!("\"a\""));
        check(json!({"type": "integer"}), "12", json!(12));
        check(json!({"type": ["string", "null"]}), "12", json!("12"));
        let optional = json!({"anyOf": [{"type": "string"}, {"type": "null"}]});
        check(optional.clone(), "12", json!("12"));
        check(optional.clone(), "null", Value::Null);
        check(optional, "\"a\"", json!("a"));
        check(json!({"enum": ["a", "b"]}), "a", json!("a"));
        check(json!({"type": "string", "enum": ["a", "b"]}), "\"a\"", json!("a"));
        check(json!({}), "True", json!(true));
        check(json!({"anyOf": [{"type": "integer"}, {"type": "string"}]}), "7", json!(7));
    }
}
