//! Calls that are written otherwise than in JSON, read when they are complete.
use super::format::Tags;
use super::schema::{argument, typed};
use serde_json::{Map, Number, Value};

/// How deep lists and objects may nest.
const MAX_DEPTH: usize = 64;

/// A name and its arguments, JSON.
pub(super) type Call = (String, String);

/// `call:f{a:<escape>text<escape>,b:[1,true]}`
pub(super) fn gemma(body: &str, quote: &str) -> Option<Vec<Call>> {
    let mut reader = Reader { rest: body.trim(), quote: Some(quote) };
    reader.eat("call:").then_some(())?;
    let name = reader.until("{")?.trim();
    let arguments = reader.object(0)?;
    (reader.rest.trim().is_empty() && is_name(name)).then_some(())?;
    Some(vec![(name.to_owned(), arguments.to_string())])
}

/// `[f(a="text", b=[1, True]), g()]`, with or without the list's brackets.
pub(super) fn python(body: &str) -> Option<Vec<Call>> {
    let mut reader = Reader { rest: body.trim(), quote: None };
    let in_list = reader.eat("[");
    let mut calls = Vec::new();
    while !(reader.at_end() || in_list && reader.eat("]")) {
        let name = reader.until("(")?.trim();
        is_name(name).then_some(())?;
        let mut arguments = Map::new();
        while !reader.eat(")") {
            let key = reader.until("=")?.trim();
            is_name(key).then_some(())?;
            arguments.insert(key.to_owned(), reader.value(0)?);
            if !reader.eat(",") && !reader.next_is(')') {
                return None;
            }
        }
        calls.push((name.to_owned(), Value::Object(arguments).to_string()));
        reader.eat(",");
    }
    (!calls.is_empty() && reader.rest.trim().is_empty()).then_some(calls)
}

/// `<function=f><parameter=a>1</parameter></function>`. A value is a text where `schema` says so, else JSON if
/// it is that.
pub(super) fn tagged<'a>(
    body: &str,
    tags: &Tags,
    schema: impl Fn(&str) -> Option<&'a Value>,
) -> Option<Call> {
    let body = body.trim_start().strip_prefix(tags.open)?;
    let end = match tags.open {
        // Without arguments nothing but the closing tag ends the name.
        "" => body.find(['\n', '<']).unwrap_or(body.len()),
        _ => body.find(tags.name_end)?,
    };
    let name = body[..end].trim();
    let mut rest = &body[end..];
    rest = rest.strip_prefix(tags.name_end).unwrap_or(rest);
    is_name(name).then_some(())?;
    let schema = schema(name);
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() || rest.starts_with(tags.close) {
            return Some((name.to_owned(), Value::Object(arguments).to_string()));
        }
        let (key, after) = rest.strip_prefix(tags.key)?.split_once(tags.key_end)?;
        let value = match tags.value {
            "" => after,
            open => after.trim_start().strip_prefix(open)?,
        };
        let (value, after) = value.split_once(tags.value_end)?;
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        let key = key.trim();
        arguments.insert(
            key.to_owned(),
            typed(value, schema.and_then(|schema| argument(schema, key)).as_ref()),
        );
        rest = after;
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/'))
}

/// Reads values of Python, or those of Gemma, whose texts stand between `quote`s.
struct Reader<'a> {
    rest: &'a str,
    quote: Option<&'a str>,
}

impl<'a> Reader<'a> {
    fn at_end(&self) -> bool {
        self.rest.trim_start().is_empty()
    }

    fn next_is(&self, c: char) -> bool {
        self.rest.trim_start().starts_with(c)
    }

    fn eat(&mut self, text: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// What stands before `end`, which is taken too.
    fn until(&mut self, end: &str) -> Option<&'a str> {
        let (before, after) = self.rest.split_once(end)?;
        self.rest = after;
        Some(before)
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        if let Some(quote) = self.quote.filter(|quote| self.eat(quote)) {
            return Some(self.until(quote)?.into());
        }
        let rest = self.rest.trim_start();
        match rest.chars().next()? {
            '{' => {
                self.eat("{");
                self.object(depth)
            }
            '[' => {
                self.eat("[");
                let mut items = Vec::new();
                while !self.eat("]") {
                    items.push(self.value(depth + 1)?);
                    if !self.eat(",") && !self.next_is(']') {
                        return None;
                    }
                }
                Some(items.into())
            }
            quote @ ('"' | '\'') => {
                self.rest = &rest[1..];
                self.text(quote).map(Value::String)
            }
            _ => {
                let end = rest.find([',', ']', '}', ')']).unwrap_or(rest.len());
                self.rest = &rest[end..];
                match rest[..end].trim() {
                    "true" | "True" => Some(true.into()),
                    "false" | "False" => Some(false.into()),
                    "null" | "None" => Some(Value::Null),
                    number => number.parse::<Number>().ok().map(Value::Number),
                }
            }
        }
    }

    /// Behind the opening bracket.
    fn object(&mut self, depth: usize) -> Option<Value> {
        let mut object = Map::new();
        while !self.eat("}") {
            // Gemma's keys have no quotes, or those of texts.
            let key = match self.quote.map(|quote| (quote, self.eat(quote))) {
                Some((_, false)) => self.until(":")?.trim().trim_matches('"').to_owned(),
                Some((quote, true)) => {
                    let key = self.until(quote)?.to_owned();
                    self.eat(":").then_some(key)?
                }
                None => {
                    let Value::String(key) = self.value(depth + 1)? else { return None };
                    self.eat(":").then_some(key)?
                }
            };
            object.insert(key, self.value(depth + 1)?);
            if !self.eat(",") && !self.next_is('}') {
                return None;
            }
        }
        Some(object.into())
    }

    /// A text of Python, behind its opening quote.
    fn text(&mut self, quote: char) -> Option<String> {
        let mut out = String::new();
        let mut chars = self.rest.chars();
        loop {
            match chars.next()? {
                '\\' => match chars.next()? {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    'u' => {
                        let digits = chars.as_str().get(..4)?;
                        out.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
                        chars = chars.as_str()[4..].chars();
                    }
                    c @ ('\\' | '\'' | '"') => out.push(c),
                    c => out.extend(['\\', c]),
                },
                c if c == quote => {
                    self.rest = chars.as_str();
                    return Some(out);
                }
                c => out.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(found: Option<Vec<Call>>, expected: Option<&[(&str, Value)]>) {
        let read = |(name, arguments): (String, String)| {
            (name, serde_json::from_str::<Value>(&arguments).expect("JSON"))
        };
        let found: Option<Vec<_>> = found.map(|calls| calls.into_iter().map(read).collect());
        let expected =
            expected.map(|calls| calls.iter().map(|(n, a)| ((*n).to_owned(), a.clone())).collect());
        assert_eq!(found, expected);
    }

    #[test]
    fn gemma_calls() {
        let check =
            |body: &str, expected: Option<&[(&str, Value)]>| check(gemma(body, "<q>"), expected);
        check("call:f{}", Some(&[("f", json!({}))]));
        check(
            "call:f{a:<q>x, {\"y\"}<q>,n:-1.5,b:true,l:[<q>z<q>,2],o:{k:null}}",
            Some(&[(
                "f",
                json!({"a": "x, {\"y\"}", "n": -1.5, "b": true, "l": ["z", 2], "o": {"k": null}}),
            )]),
        );
        check("call:f{a:<q>x<q>", None);
        check("call:f{a:x}", None);
        check("f{}", None);
        check("call:{}", None);
        check(&format!("call:f{{a:{}", "[".repeat(100_000)), None);
    }

    #[test]
    fn python_calls() {
        let check = |body: &str, expected: Option<&[(&str, Value)]>| check(python(body), expected);
        check(
            "[f(a=\"x, \\\"y\\\"\\u00e9)\", n=3), g()]",
            Some(&[("f", json!({"a": "x, \"y\"é)", "n": 3})), ("g", json!({}))]),
        );
        check("f(d={'k': [True, None]},)", Some(&[("f", json!({"d": {"k": [true, null]}}))]));
        check("[]", None);
        check("f(1)", None);
        check("f(a=1", None);
        check("say hello", None);
        check(&format!("f(a={}", "[".repeat(100_000)), None);
    }

    #[test]
    fn tagged_calls() {
        let tags = Tags {
            wrapper: ("", ""),
            open: "<function=",
            name_end: ">",
            key: "<parameter=",
            key_end: ">",
            value: "",
            value_end: "</parameter>",
            close: "</function>",
        };
        let schema = json!({"properties": {"s": {"type": "string"}, "n": {"type": "integer"}}});
        let read = |body: &str| {
            tagged(body, &tags, |name| (name == "f").then_some(&schema)).map(|c| vec![c])
        };
        check(
            read(
                "<function=f>\n<parameter=s>\n12\n  x\n</parameter>\n<parameter=n>\n12\n</parameter>\n<parameter=o>{\"a\": 1}</parameter></function>",
            ),
            Some(&[("f", json!({"s": "12\n  x", "n": 12, "o": {"a": 1}}))]),
        );
        check(read("<function=g></function>"), Some(&[("g", json!({}))]));
        check(read("<function=f>text</function>"), None);
        check(read("<function=f><parameter=a>1"), None);
        check(read("<function=>"), None);
    }
}
