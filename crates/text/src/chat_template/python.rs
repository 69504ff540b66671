//! Python's types as templates see them, where minijinja's own lack something or differ: string
//! methods, filters built on them, and generators.
use super::jinja::{bind, invalid};
use super::source;
use minijinja::value::{
    Enumerator, Kwargs, Object, ObjectRepr, Rest, Tuple, ValueKind, ValueOrKwargs, from_args,
};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use std::sync::{Arc, Mutex, PoisonError};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Widest padding `ljust`, `zfill`, `center` ... may produce.
const MAX_WIDTH: usize = 1 << 16;

/// Registers everything of this module.
pub(super) fn register(env: &mut Environment<'static>) {
    env.set_unknown_method_callback(method);
    let lazy = [
        ("map", Value::from_function(filters::map)),
        ("select", Value::from_function(filters::select)),
        ("reject", Value::from_function(filters::reject)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
    ];
    for (name, filter) in lazy {
        env.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let items = filter.call(state, &args.into_values())?;
            Ok::<_, Error>(Value::from_object(Generator(Mutex::new(items.try_iter()?.collect()))))
        });
    }
    let int = Value::from_function(filters::int);
    env.add_filter("int", move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        match int.call(state, &args) {
            Err(e) if e.kind() != ErrorKind::OutOfFuel => {
                let (_, default, _, kwargs): (Value, Option<Value>, Option<Value>, Kwargs) =
                    from_args(&args)?;
                let named: Option<Value> = kwargs.get("default")?;
                Ok(default.or(named).unwrap_or_else(|| Value::from(0)))
            }
            result => result,
        }
    });
    env.add_filter("indent", indent);
    env.add_filter("trim", |text: &Value, chars: Option<&str>| {
        let text = text.to_string();
        strip(&text, chars, true, true).to_owned()
    });
    env.add_filter("center", |text: &Value, width: Option<usize>| {
        center(&text.to_string(), width.unwrap_or(80), ' ')
    });
    env.add_filter("wordcount", |text: &Value| {
        text.to_string()
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|w| !w.is_empty())
            .count()
    });
    let is_list = |v: &Value| matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable);
    env.add_filter(source::ADDEND, move |state: &State<'_, '_>, value: Value| {
        if is_list(&value) {
            state.consume_fuel(value.len().unwrap_or(0) as u64 / 32)?;
        }
        Ok::<_, Error>(value)
    });
    env.add_filter(source::FACTOR, move |value: Value| match is_list(&value) {
        true => Err(invalid("lists cannot be repeated with '*'")),
        false => Ok(value),
    });
    env.add_filter(source::SLICED, |state: &State<'_, '_>, value: Value| {
        if value.kind() != ValueKind::Iterable {
            return Ok(value);
        }
        state.consume_fuel(value.len().unwrap_or(0) as u64 / 2)?;
        Ok::<_, Error>(value.try_iter()?.collect())
    });
    env.remove_global("debug"); // not of jinja2, and takes long to print
    env.add_filter("pprint", |value: &Value| format!("{value:?}"));
    env.add_function("cycler", |items: Rest<Value>| {
        minijinja_contrib::globals::cycler(items.to_vec())
    });
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_function("dict", dict);
    // What has `iter()`; minijinja also lets one iterate over `none`.
    env.add_test("iterable", |v: &Value| !v.is_none() && v.try_iter().is_ok());
    // What has `len()` and `[]`, so strings and mappings as well.
    env.add_test("sequence", |v: &Value| {
        matches!(v.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map) || v.is_undefined()
    });
    env.add_test("callable", |v: &Value| v.kind() == ValueKind::Plain);
}

/// What `map`, `select` and their kin give: true even if empty, and empty once iterated over.
#[derive(Debug)]
struct Generator(Mutex<Vec<Value>>);

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let mut items = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Enumerator::Values(std::mem::take(&mut *items))
    }
    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.0.lock().unwrap_or_else(PoisonError::into_inner).len())
    }
    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// Methods of Python's `str`, `dict`, `list` and `tuple`: minijinja-contrib's, and those it lacks.
/// Methods that change their object are unknown here, as they are forbidden in jinja2's immutable
/// sandbox.
fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match (value.as_str(), value.kind()) {
        (Some(text), _) => string_method(state, text, name, args)?,
        (None, ValueKind::Map) if name == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        (None, ValueKind::Seq) => sequence_method(state, value, name, args)?,
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn sequence_method(
    state: &State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    match name {
        "copy" => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        "index" | "count" => {
            state.consume_fuel(value.len().unwrap_or(0) as u64)?;
            if name == "count" {
                return Ok(None);
            }
            let (what,): (&Value,) = from_args(args)?;
            match value.try_iter()?.position(|item| item == *what) {
                Some(at) => Ok(Some(Value::from(at))),
                None => Err(invalid(format!("index: {what:?} is not in the list"))),
            }
        }
        _ => Ok(None),
    }
}

/// `None` for a method that is left to minijinja-contrib.
fn string_method(
    state: &State<'_, '_>,
    text: &str,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    let one = |value: &Value| match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(invalid(format!("{name}: must be a string, not {}", value.kind()))),
    };
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, name != "rstrip", name != "lstrip"))
        }
        "split" | "rsplit" => {
            let [sep, max] = bind(args, ["sep", "maxsplit"])?;
            let sep = if sep.is_none() || sep.is_undefined() { None } else { Some(one(&sep)?) };
            let max = if max.is_undefined() { -1 } else { i64::try_from(max)? };
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            split(text, sep.as_deref(), max, name == "rsplit")?
        }
        "splitlines" => {
            let [keep] = bind(args, ["keepends"])?;
            lines(text, keep.is_true()).into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let (sep,): (&str,) = from_args(args)?;
            let at = if name == "partition" { text.split_once(sep) } else { text.rsplit_once(sep) };
            let parts = match at {
                _ if sep.is_empty() => return Err(invalid(format!("{name}: empty separator"))),
                Some((a, b)) => [a, sep, b],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let mut out = String::new();
            for (i, item) in items.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(text);
                }
                let from = out.len();
                match item.as_str() {
                    Some(item) => out.push_str(item),
                    None => {
                        return Err(invalid(format!(
                            "join: item {i} must be a string, not {}",
                            item.kind()
                        )));
                    }
                }
                state.consume_fuel(1 + (text.len() + out.len() - from) as u64 / 64)?;
            }
            Value::from(out)
        }
        "replace" => {
            let [old, new, count] = bind(args, ["old", "new", "count"])?;
            let (old, new) = (one(&old)?, one(&new)?);
            let count = if count.is_undefined() { -1 } else { i64::try_from(count)? };
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let found = text.matches(&old).take(count).count();
            state.consume_fuel((found.saturating_mul(new.len()) / 64) as u64)?;
            Value::from(text.replacen(&old, &new, count))
        }
        "format" if text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 4) => {
            return Err(invalid("format: widths and precisions may have at most four digits"));
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what, start): (&str, Option<usize>) = from_args(args)?;
            let skipped = char_offset(text, start.unwrap_or(0));
            let tail = &text[skipped..];
            match if name.starts_with('r') { tail.rfind(what) } else { tail.find(what) } {
                Some(at) => Value::from(text[..skipped + at].chars().count()),
                None if name.ends_with("find") => Value::from(-1),
                None => return Err(invalid(format!("{name}: substring not found"))),
            }
        }
        "startswith" if args.len() == 2 => {
            let (prefix, start): (&str, usize) = from_args(args)?;
            Value::from(text[char_offset(text, start)..].starts_with(prefix))
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "isdecimal" => {
            let () = from_args(args)?;
            let decimal = |c: char| c.general_category() == GeneralCategory::DecimalNumber;
            Value::from(!text.is_empty() && text.chars().all(decimal))
        }
        "istitle" => {
            let () = from_args(args)?;
            Value::from(text.chars().any(char::is_alphabetic) && title(text) == text)
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let (fill, missing) = (fill.unwrap_or(' '), padding(text, width));
            Value::from(match name {
                "ljust" => text.chars().chain(std::iter::repeat_n(fill, missing)).collect(),
                "rjust" => std::iter::repeat_n(fill, missing).chain(text.chars()).collect(),
                _ => center(text, width, fill),
            })
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            Value::from(format!("{sign}{}{digits}", "0".repeat(padding(text, width))))
        }
        _ => return Ok(None),
    }))
}

/// Where character `n` starts, in bytes.
fn char_offset(text: &str, n: usize) -> usize {
    text.char_indices().nth(n).map_or(text.len(), |(at, _)| at)
}

/// How many characters `text` lacks to `width`.
fn padding(text: &str, width: usize) -> usize {
    width.min(MAX_WIDTH).saturating_sub(text.chars().count())
}

fn center(text: &str, width: usize, fill: char) -> String {
    let missing = padding(text, width);
    // CPython's rounding: the odd one goes left if the width is odd.
    let left = missing / 2 + (missing & width & 1);
    let fill = |n| std::iter::repeat_n(fill, n);
    fill(left).chain(text.chars()).chain(fill(missing - left)).collect()
}

/// A letter after a letter is lowered, every other one raised.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        match in_word {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        in_word = c.is_alphabetic();
    }
    out
}

/// `str.isspace` of Python: Unicode's white space and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let gone = |c: char| chars.map_or_else(|| is_space(c), |set| set.contains(c));
    let text = if left { text.trim_start_matches(gone) } else { text };
    if right { text.trim_end_matches(gone) } else { text }
}

fn split(text: &str, sep: Option<&str>, max: usize, from_right: bool) -> Result<Value, Error> {
    let n = max.saturating_add(1);
    let mut parts: Vec<&str> = match (sep, from_right) {
        (Some(""), _) => return Err(invalid("split: empty separator")),
        (Some(sep), false) => text.splitn(n, sep).collect(),
        (Some(sep), true) => text.rsplitn(n, sep).collect(),
        (None, _) => {
            let (mut parts, mut rest) = (Vec::new(), strip(text, None, !from_right, from_right));
            while !rest.is_empty() {
                let at = match (parts.len() == max, from_right) {
                    (true, _) => None,
                    (false, true) => rest.char_indices().rev().find(|(_, c)| is_space(*c)),
                    (false, false) => rest.char_indices().find(|(_, c)| is_space(*c)),
                };
                let (part, left) = match at {
                    None => (strip(rest, None, from_right, !from_right && parts.len() < max), ""),
                    Some((i, c)) if from_right => (&rest[i + c.len_utf8()..], &rest[..i]),
                    Some((i, _)) => (&rest[..i], &rest[i..]),
                };
                parts.push(part);
                rest = strip(left, None, !from_right, from_right);
            }
            parts
        }
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// `str.splitlines`.
fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |c| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_end(*c)) {
        let end = if rest[at..].starts_with("\r\n") { at + 2 } else { at + c.len_utf8() };
        out.push(&rest[..if keep_ends { end } else { at }]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        out.push(rest);
    }
    out
}

/// `indent(width=4, first=False, blank=False)`; the width may be the text to indent with.
fn indent(state: &State<'_, '_>, text: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let [width, first, blank] = bind(&args.into_values(), ["width", "first", "blank"])?;
    let prefix = match width.as_str() {
        Some(prefix) => prefix.to_owned(),
        None if width.is_undefined() => " ".repeat(4),
        None => " ".repeat(usize::try_from(width)?.min(MAX_WIDTH)),
    };
    let text = text.to_string() + "\n";
    let lines = lines(&text, false);
    state.consume_fuel((lines.len().saturating_mul(prefix.len()) / 64) as u64)?;
    let mut out = if first.is_true() { prefix.clone() } else { String::new() };
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
            if blank.is_true() || !line.is_empty() {
                out.push_str(&prefix);
            }
        }
        out.push_str(line);
    }
    Ok(out)
}

/// `dict(mapping or pairs, **more)`.
fn dict(state: &State<'_, '_>, from: Option<&Value>, more: Kwargs) -> Result<Value, Error> {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    if let Some(from) = from {
        for item in from.try_iter()? {
            state.consume_fuel(4)?;
            pairs.push(match from.kind() {
                ValueKind::Map => (item.clone(), from.get_item(&item)?),
                _ => {
                    let pair: Vec<Value> = item.try_iter()?.take(3).collect();
                    match <[Value; 2]>::try_from(pair) {
                        Ok([key, value]) => (key, value),
                        Err(_) => return Err(invalid("dict: expected pairs")),
                    }
                }
            });
        }
    }
    for key in more.args() {
        pairs.push((Value::from(key), more.peek(key)?));
    }
    Ok(Value::from_pairs(pairs))
}
