//! A grammar of the calls that a model may make, for answers that have to call a tool.
use super::format::{AnswerFormat, Calls, HARMONY, Tags};
use super::schema::{Argument, any_object, arguments, is_text, texts};
use crate::Tokenizer;
use serde_json::{Value, json};

/// What an answer must be.
#[derive(Debug, Clone, Copy)]
pub struct ForcedAnswer<'a> {
    /// The tools that may be called, in OpenAI's shape.
    pub tools: &'a [Value],
    /// No more than one call.
    pub single_call: bool,
    /// JSON of this schema is an answer as well.
    pub or_schema: Option<&'a Value>,
}

impl AnswerFormat {
    /// Lark, as llguidance reads it, of an answer that calls tools. What comes before it is
    /// [`Self::opening_of_calls`].
    pub fn grammar(&self, tok: &Tokenizer, answer: ForcedAnswer<'_>) -> String {
        let token = |text: &str| tok.token_id(text).filter(|&id| tok.is_control(id));
        self.lark(&token, answer)
    }

    fn lark(&self, token: &dyn Fn(&str) -> Option<u32>, answer: ForcedAnswer<'_>) -> String {
        let mut lark = Lark { token, rules: String::new() };
        let tools: Vec<(&str, &Value)> = answer.tools.iter().map(name_and_schema).collect();
        let n = tools.len();
        let (before, between, after);
        // Before JSON that is an answer as well.
        let mut header = String::new();
        match &self.row.calls {
            Calls::Json { open, close, name, arguments, list } => {
                // Around each call, or around all of them.
                let marked = !list && !close.is_empty();
                let (open_one, close_one, line) =
                    if marked { (*open, *close, "\n") } else { ("", "", "") };
                for (i, (tool, schema)) in tools.iter().enumerate() {
                    let head =
                        format!("{line}{{{}: {}, {}: ", json!(name), json!(tool), json!(arguments));
                    let foot = format!("}}{line}");
                    lark.call(i, &[open_one, &head], schema, &[&foot, close_one]);
                }
                (before, between, after) = match list {
                    true => (lark.text(&[open, "["]), ", ", lark.text(&["]", close])),
                    false if marked => (String::new(), "\n", String::new()),
                    // A call must not begin like another answer.
                    false if answer.or_schema.is_some() => {
                        (lark.text(&[open]), "; ", String::new())
                    }
                    false => (String::new(), "; ", String::new()),
                };
            }
            Calls::Python { open, close } => {
                // The arguments of lists in JSON can be given a schema.
                for (i, (tool, schema)) in tools.iter().enumerate() {
                    let head = format!("{{\"name\": {}, \"arguments\": ", json!(tool));
                    lark.call(i, &[&head], schema, &["}"]);
                }
                (before, between, after) =
                    (lark.text(&[open, "["]), ", ", lark.text(&["]", close]));
            }
            Calls::Named { open, separator, close, .. } => {
                for (i, (tool, schema)) in tools.iter().enumerate() {
                    lark.call(i, &[open, tool, separator], schema, &[close]);
                }
                let (begin, end) = match self.row.dropped {
                    [begin, end] => (*begin, *end),
                    _ => ("", ""),
                };
                (before, between, after) = (lark.text(&[begin]), "", lark.text(&[end]));
            }
            Calls::Tagged(tags) => {
                tools.iter().enumerate().for_each(|(i, tool)| lark.tagged(i, tags, *tool));
                (before, between, after) = (String::new(), "\n", String::new());
            }
            Calls::Gemma { open, close, quote } => {
                let marks = (*open, *close, *quote);
                tools.iter().enumerate().for_each(|(i, tool)| lark.gemma(i, marks, *tool));
                (before, between, after) = (String::new(), "", String::new());
            }
            Calls::Harmony => {
                for (i, (tool, schema)) in tools.iter().enumerate() {
                    let to = format!("commentary to=functions.{tool} ");
                    let head = [HARMONY[5], &to, HARMONY[6], "json", HARMONY[0]];
                    lark.call(i, &head, schema, &[]);
                }
                lark.until("thought", HARMONY[1]);
                let analysis = lark.text(&[HARMONY[5], "analysis", HARMONY[0]]);
                let next = lark.text(&[HARMONY[4], "assistant"]);
                let thoughts = format!("({analysis} thought {next})?");
                header = format!("{thoughts} {}", lark.text(&[HARMONY[5], "final", HARMONY[0]]));
                (before, between, after) = (thoughts, "", String::new());
            }
        }
        let single = answer.single_call || self.row.calls == Calls::Harmony;
        let more =
            if single { String::new() } else { format!("({} call)*", lark.text(&[between])) };
        let or = if answer.or_schema.is_some() { "(calls | answer)" } else { "calls" };
        let mut out = format!("start: {or}\n");
        let call: Vec<String> = (0..n).map(|i| format!("call{i}")).collect();
        out += &format!("calls: {before} call {more} {after}\n");
        out += &format!("call: {}\n", call.join(" | "));
        if let Some(schema) = answer.or_schema {
            out += &format!("answer: {header} document\ndocument: %json {schema}\n");
        }
        out + &lark.rules
    }
}

/// The rules of a grammar as they are written.
struct Lark<'a> {
    /// The ids of control tokens, which are no texts for a grammar.
    token: &'a dyn Fn(&str) -> Option<u32>,
    rules: String,
}

impl Lark<'_> {
    /// Texts one after another.
    fn text(&self, parts: &[&str]) -> String {
        let mut out: Vec<String> = Vec::new();
        let mut text = String::new();
        for part in parts {
            match (self.token)(part) {
                None => text += part,
                Some(id) => {
                    out.extend((!text.is_empty()).then(|| json!(text).to_string()));
                    text.clear();
                    out.push(format!("<[{id}]>"));
                }
            }
        }
        out.extend((!text.is_empty()).then(|| json!(text).to_string()));
        out.join(" ")
    }

    fn rule(&mut self, name: &str, body: &str) {
        self.rules += &format!("{name}: {body}\n");
    }

    /// A call whose arguments are JSON.
    fn call(&mut self, i: usize, before: &[&str], schema: &Value, after: &[&str]) {
        let (before, after) = (self.text(before), self.text(after));
        self.rule(&format!("call{i}"), &format!("{before} arguments{i} {after}"));
        self.rule(&format!("arguments{i}"), &format!("%json {schema}"));
    }

    /// Any text until `end`, and that.
    fn until(&mut self, name: &str, end: &str) {
        match (self.token)(end) {
            Some(id) => self.rule(name, &format!("/(?s:.*)/ <[{id}]>")),
            None => self.rule(&format!("{name}[lazy]"), &format!("/(?s:.*){}/", escaped(end))),
        }
    }

    fn tagged(&mut self, i: usize, tags: &Tags, (tool, schema): (&str, &Value)) {
        let ([a, b, c], end) = tags.around();
        let (line, line_end) = tags.line();
        let space = if line.is_empty() { "\n" } else { "" };
        let mut ways = Vec::new();
        for (way, arguments) in arguments(schema).into_iter().enumerate() {
            let mut body = Vec::new();
            for (k, Argument { name, schema, required }) in arguments.into_iter().enumerate() {
                let value = format!("value{i}_{way}_{k}");
                let head =
                    self.text(&["\n", tags.key, &name, tags.key_end, space, tags.value, line]);
                let argument = if is_text(&schema) {
                    self.until(&value, tags.value_end);
                    format!("{head} {value}")
                } else {
                    self.value(&value, &schema);
                    format!("{head} {value} {}", self.text(&[line_end, tags.value_end]))
                };
                body.push(if required { argument } else { format!("({argument})?") });
            }
            ways.push(body.join(" "));
        }
        let (head, end) = (self.text(&[a, b, c, tool, tags.name_end]), self.text(&end));
        let body = alternatives(&ways);
        self.rule(&format!("call{i}"), &format!("{head} {body} {end}"));
    }

    /// A value that stands by itself: one of several texts, or JSON.
    fn value(&mut self, name: &str, schema: &Value) {
        let body = match texts(schema) {
            Some(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| json!(text).to_string()).collect();
                texts.join(" | ")
            }
            None => format!("%json {schema}"),
        };
        self.rule(name, &body);
    }

    fn gemma(&mut self, i: usize, marks: (&str, &str, &str), (tool, schema): (&str, &Value)) {
        let (open, close, quote) = marks;
        let mut ways = Vec::new();
        for (way, arguments) in arguments(schema).into_iter().enumerate() {
            let (mut required, mut optional) = (Vec::new(), Vec::new());
            for (k, Argument { name, schema, required: needed }) in
                arguments.into_iter().enumerate()
            {
                let value = format!("value{i}_{way}_{k}");
                let argument = if is_text(&schema) {
                    self.until(&value, quote);
                    format!("{} {value}", self.text(&[&name, ":", quote]))
                } else if texts(&schema).is_some() {
                    self.value(&value, &schema);
                    format!("{} {value} {}", self.text(&[&name, ":", quote]), self.text(&[quote]))
                } else {
                    self.value(&value, &schema);
                    format!("{} {value}", self.text(&[&name, ":"]))
                };
                if needed { &mut required } else { &mut optional }.push(argument);
            }
            // Commas stand between arguments only.
            let rest = |k: usize| format!("rest{i}_{way}_{k}");
            for (k, argument) in optional.iter().enumerate() {
                self.rule(&rest(k), &format!("(\",\" {argument})? {}", rest(k + 1)));
            }
            self.rule(&rest(optional.len()), "\"\"");
            ways.push(if required.is_empty() {
                let first = |(k, argument): (usize, &String)| format!("{argument} {}", rest(k + 1));
                let any: Vec<String> = optional.iter().enumerate().map(first).collect();
                if any.is_empty() { String::new() } else { format!("({})?", any.join(" | ")) }
            } else {
                required.join(" \",\" ") + " " + &rest(0)
            });
        }
        let head = self.text(&[open, "call:", tool, "{"]);
        let foot = self.text(&["}", close]);
        let body = alternatives(&ways);
        self.rule(&format!("call{i}"), &format!("{head} {body} {foot}"));
    }
}

/// One of several bodies of a rule.
fn alternatives(ways: &[String]) -> String {
    match ways {
        [one] => one.clone(),
        ways => {
            // Nothing is a text of no length.
            let body = |way: &String| if way.is_empty() { "\"\"".to_owned() } else { way.clone() };
            let bodies: Vec<String> = ways.iter().map(body).collect();
            format!("({})", bodies.join(" | "))
        }
    }
}

/// Name and schema of a tool.
fn name_and_schema(tool: &Value) -> (&str, &Value) {
    static ANY: std::sync::LazyLock<Value> = std::sync::LazyLock::new(any_object);
    let function = &tool["function"];
    let schema = function.get("parameters").filter(|schema| schema.is_object());
    (function["name"].as_str().unwrap_or_default(), schema.unwrap_or(&ANY))
}

/// A text as a regular expression between slashes.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~/".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::format::tests::by_name;

    #[test]
    fn a_grammar_of_arguments_one_by_one() {
        let schema = json!({
            "properties": {"k": {"enum": ["x", "y"]}},
            "required": ["k"],
            "anyOf": [{"$ref": "#/$defs/a"}, {"properties": {"n": {"$ref": "#/$defs/n"}}}],
            "$defs": {
                "a": {"properties": {"s": {"type": "string"}}, "required": ["s"]},
                "n": {"type": "integer"},
            },
        });
        let tools = [json!({"function": {"name": "f", "parameters": schema}})];
        let answer = ForcedAnswer { tools: &tools, single_call: true, or_schema: None };
        assert_eq!(
            by_name("qwen3-coder").lark(&|_| None, answer),
            r#"start: calls
calls:  call  
call: call0
value0_0_0: "x" | "y"
value0_0_1[lazy]: /(?s:.*)<\/parameter>/
value0_1_0: "x" | "y"
value0_1_1: %json {"type":"integer"}
call0: "<tool_call>\n<function=f>" ("\n<parameter=k>\n" value0_0_0 "\n</parameter>" "\n<parameter=s>\n" value0_0_1 | "\n<parameter=k>\n" value0_1_0 "\n</parameter>" ("\n<parameter=n>\n" value0_1_1 "\n</parameter>")?) "\n</function>\n</tool_call>"
"#
        );
    }

    #[test]
    fn a_grammar_of_calls() {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
        let tools = [tool, json!({"type": "function", "function": {"name": "g"}})];
        let answer = ForcedAnswer { tools: &tools, single_call: false, or_schema: None };
        let token = |text: &str| (text == "</tool_call>").then_some(7);
        assert_eq!(
            by_name("hermes").lark(&token, answer),
            r#"start: calls
calls:  call ("\n" call)* 
call: call0 | call1
call0: "<tool_call>\n{\"name\": \"f\", \"arguments\": " arguments0 "}\n" <[7]>
arguments0: %json {"type":"object"}
call1: "<tool_call>\n{\"name\": \"g\", \"arguments\": " arguments1 "}\n" <[7]>
arguments1: %json {"type":"object"}
"#
        );
    }
}
