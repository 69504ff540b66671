//! `json.dumps` of Python, byte for byte, for the `tojson` filter: the models were trained on its
//! spacing (`, ` and `: `), its key order and its way to write numbers.
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// Nested deeper than this a value is refused instead of overflowing the stack.
const MAX_DEPTH: usize = 128;

/// The arguments of `json.dumps` that templates use.
#[derive(Debug, Clone)]
pub(super) struct Style {
    /// What one level is indented with; `None` puts everything on one line.
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sort_keys: bool,
    /// Write everything beyond ASCII as `\uXXXX`.
    pub(super) ensure_ascii: bool,
}

/// Serializes `value`; an error where Python has no JSON for it.
pub(super) fn dumps(state: &State<'_, '_>, value: &Value, style: &Style) -> Result<String, Error> {
    let mut out = String::new();
    write(state, &mut out, value, style, 0)?;
    Ok(out)
}

/// Every value costs a little fuel, as a list may be longer than what made it.
fn write(
    state: &State<'_, '_>,
    out: &mut String,
    value: &Value,
    style: &Style,
    depth: usize,
) -> Result<(), Error> {
    state.consume_fuel(1 + value.as_str().map_or(0, |text| text.len() as u64 / 16))?;
    if depth > MAX_DEPTH {
        let what = format!("tojson: the value is nested deeper than {MAX_DEPTH} levels");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value, "NaN", "Infinity")),
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), style),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = value.try_iter()?.peekable();
            if items.peek().is_none() {
                out.push_str("[]");
                return Ok(());
            }
            out.push('[');
            for (i, item) in items.enumerate() {
                separate(out, style, i, depth + 1);
                write(state, out, &item, style, depth + 1)?;
            }
            close(out, style, depth);
            out.push(']');
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if keys.is_empty() {
                out.push_str("{}");
                return Ok(());
            }
            if style.sort_keys {
                keys.sort();
            }
            out.push('{');
            for (i, key) in keys.iter().enumerate() {
                separate(out, style, i, depth + 1);
                match key.kind() {
                    ValueKind::String => write_string(out, key.as_str().unwrap_or_default(), style),
                    ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                        out.push('"');
                        write(state, out, key, style, depth + 1)?;
                        out.push('"');
                    }
                    kind => return Err(no_json(kind, "as a key")),
                }
                out.push_str(&style.key_separator);
                write(state, out, &value.get_item(key)?, style, depth + 1)?;
            }
            close(out, style, depth);
            out.push('}');
        }
        kind => return Err(no_json(kind, "")),
    }
    Ok(())
}

fn no_json(kind: ValueKind, how: &str) -> Error {
    let what = format!("tojson: a value of type {kind} has no JSON {how}");
    Error::new(ErrorKind::InvalidOperation, what.trim_end().to_owned())
}

/// What stands before item `i`: the comma and, if indenting, the line break.
fn separate(out: &mut String, style: &Style, i: usize, depth: usize) {
    if i > 0 {
        out.push_str(&style.item_separator);
    }
    if style.indent.is_some() {
        close(out, style, depth);
    }
}

fn close(out: &mut String, style: &Style, depth: usize) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        for _ in 0..depth {
            out.push_str(indent);
        }
    }
}

fn write_string(out: &mut String, text: &str, style: &Style) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            c if c < ' ' || (style.ensure_ascii && c >= '\x7f' && c != '\x7f') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A number as Python writes it; `nan` and `inf` are how it spells those.
pub(super) fn number(value: &Value, nan: &str, inf: &str) -> String {
    match f64::try_from(value.clone()) {
        Ok(x) if !value.is_integer() => float(x, nan, inf),
        _ => value.to_string(),
    }
}

/// `repr` of a Python float: the shortest digits that read back as `x`, with an exponent only
/// below 1e-4 and from 1e16 on.
pub(super) fn float(x: f64, nan: &str, inf: &str) -> String {
    if x.is_nan() {
        return nan.to_owned();
    }
    if x.is_infinite() {
        return format!("{}{inf}", if x < 0.0 { "-" } else { "" });
    }
    if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) {
        let text = format!("{x:e}"); // 1.5e-7
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(e) => ('-', e),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = x.to_string();
    if text.contains('.') { text } else { text + ".0" }
}
