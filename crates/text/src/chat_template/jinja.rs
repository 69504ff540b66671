//! The Jinja environment in which Hugging Face renders chat templates, rebuilt on minijinja.
//!
//! Templates are written and tested against Python's jinja2 (an `ImmutableSandboxedEnvironment` with
//! `trim_blocks`, `lstrip_blocks`, `loopcontrols`, a `generation` tag and three additions: `tojson`,
//! `raise_exception`, `strftime_now`). minijinja is close to it; what it lacks or does otherwise is
//! put right in `source.rs` (syntax), `python.rs` (types) and here.
//! `tests/data/jinja_semantics.json` holds hundreds of expressions with jinja2's results.
//!
//! What is left, found by comparing the two on some hundred templates of models:
//! - more lenient: `none` can be iterated over (as an empty list) and compared, the results of `map`
//!   and `select` have a length;
//! - refused: repeating a list with `*`, `%` on strings, `varargs` and `kwargs` of macros, the
//!   filters `xmlattr`, `striptags`, `truncate`, `urlize`, `wordwrap`, `random` and `filesizeformat`;
//! - different: floats below 1e-4 or from 1e16 on within containers or joined by `~`; adding to a
//!   string marked `safe` escapes nothing.
use super::{TemplateError, json, python};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use std::borrow::Cow;

/// The name under which the one template is registered.
pub(super) const NAME: &str = "chat template";

/// What one render may cost: minijinja counts one for an instruction and one for 64 bytes produced,
/// so this bounds time (a second) and memory (128 MB) of a hostile template ...
const BASE_FUEL: u64 = 2_000_000;
/// ... while a long conversation, in bytes, may cost more.
const FUEL_PER_INPUT_BYTE: u64 = 4;

/// Carries the message of `raise_exception` through minijinja.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Compiles `source`, which [`source::normalize`] has seen.
pub(super) fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_formatter(|out, _, value| {
        if value.kind() == ValueKind::Number {
            Ok(out.write_str(&json::number(value, "nan", "inf"))?)
        } else {
            Ok(write!(out, "{value}")?)
        }
    });
    python::register(&mut env);
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", raise_exception);
    env.add_template_owned(NAME, source.to_owned())?;
    Ok(env)
}

/// The fuel for a render whose inputs have that many bytes.
pub(super) fn fuel(input_bytes: usize) -> u64 {
    BASE_FUEL.saturating_add(FUEL_PER_INPUT_BYTE.saturating_mul(input_bytes as u64))
}

/// A JSON value for a template; adds to `bytes` what it holds.
pub(super) fn value(json: &serde_json::Value, bytes: &mut usize) -> Value {
    use serde_json::Value as Json;
    *bytes += 8;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(n.as_f64()),
        },
        Json::String(text) => {
            *bytes += text.len();
            Value::from(text.as_str())
        }
        Json::Array(items) => items.iter().map(|item| value(item, bytes)).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(key, item)| {
            *bytes += key.len();
            (key.as_str(), value(item, bytes))
        })),
    }
}

/// The function `strftime_now`, frozen at `now` if that is given.
pub(super) fn clock(now: Option<&str>) -> Result<Value, TemplateError> {
    let frozen: Option<jiff::civil::DateTime> = match now {
        Some(text) => Some(text.parse().map_err(|_| TemplateError::Now(text.to_owned()))?),
        None => None,
    };
    Ok(Value::from_function(move |format: &str| {
        let now = frozen.unwrap_or_else(|| jiff::Zoned::now().datetime());
        jiff::fmt::strtime::format(strftime_of_python(format), now)
            .map_err(|e| invalid(format!("strftime_now('{format}'): {e}")))
    }))
}

/// The format with jiff's spelling of what `datetime.strftime` of Python writes for a time without
/// zone in the C locale.
fn strftime_of_python(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let flag = chars.next_if(|c| "-_0^#".contains(*c));
        match chars.next() {
            Some('c') => out.push_str("%a %b %e %H:%M:%S %Y"),
            Some('x') => out.push_str("%m/%d/%y"),
            Some('X') => out.push_str("%H:%M:%S"),
            Some('f') => out.push_str("%6f"),
            Some('z' | 'Z') => {}
            Some(c) if "aAbBCdDeFgGhHIjklmMnpPrRStTuUVwWyY".contains(c) => {
                out.push('%');
                out.extend(flag);
                out.push(c);
            }
            other => {
                // `%%`, and what C does not know, which it leaves alone
                out.push_str("%%");
                out.extend(flag);
                out.extend(other.filter(|c| *c != '%' || flag.is_some()));
            }
        }
    }
    out
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let raised = Raised(message.to_string());
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
}

/// An error of an operation.
pub(super) fn invalid(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, as Hugging Face
/// defines it.
fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    args: Rest<ValueOrKwargs>,
) -> Result<String, Error> {
    let [ensure_ascii, indent, separators, sort_keys] =
        bind(&args.into_values(), ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent =
        match &indent {
            v if v.is_none() || v.is_undefined() => None,
            v if v.as_str().is_some() => v.as_str().map(str::to_owned),
            v => Some(" ".repeat(usize::from(
                u8::try_from(i64::try_from(v.clone())?.max(0)).map_err(|_| {
                    invalid(format!("tojson: indent must be at most 255, found {v}"))
                })?,
            ))),
        };
    let separators: Option<Vec<Value>> = match &separators {
        v if v.is_none() || v.is_undefined() => None,
        v => Some(v.try_iter()?.take(3).collect()),
    };
    let (item_separator, key_separator) = match separators.as_deref() {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.to_string(), key.to_string()),
        Some(_) => return Err(invalid("tojson: separators must be a pair of strings")),
    };
    let style = json::Style {
        indent,
        item_separator,
        key_separator,
        sort_keys: sort_keys.is_true(),
        ensure_ascii: ensure_ascii.is_true(),
    };
    json::dumps(state, value, &style)
}

/// The arguments of a call in the order of `names`, undefined where absent, as Python binds them.
pub(super) fn bind<const N: usize>(args: &[Value], names: [&str; N]) -> Result<[Value; N], Error> {
    let (positional, kwargs): (Rest<Value>, Kwargs) = from_args(args)?;
    if positional.len() > N {
        let what = format!("takes at most {N} arguments, {} given", positional.len());
        return Err(Error::new(ErrorKind::TooManyArguments, what));
    }
    let mut bound = [const { Value::UNDEFINED }; N];
    for (i, slot) in bound.iter_mut().enumerate() {
        match positional.get(i) {
            Some(value) => *slot = value.clone(),
            None => *slot = kwargs.get::<Option<Value>>(names[i])?.unwrap_or_default(),
        }
    }
    kwargs.assert_all_used()?;
    Ok(bound)
}
