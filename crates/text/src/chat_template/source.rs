//! Rewrites a template before minijinja reads it, where minijinja differs from jinja2 or trusts
//! the template too much. Lines stay where they are, so that messages name the right one.
//!
//! - Line ends become `\n`.
//! - `{% generation %}`, which marks the assistant's words for training, becomes `{% with %}`: a
//!   scope and nothing else.
//! - Escapes in string literals that only Python knows are resolved.
//! - Operands and slices go through filters that keep lists small: minijinja adds, repeats and slices
//!   lists lazily and free of charge, so that `l + l` forty times over is too much for any memory.
//! - What would overflow minijinja's counters or its recursive compiler is refused.
use super::TemplateError;

/// The filter for operands of `+`: a template pays for adding lists.
pub(super) const ADDEND: &str = "_addend";
/// The filter for operands of `*`: lists cannot be repeated.
pub(super) const FACTOR: &str = "_factor";
/// The filter for slices: makes lists of them.
pub(super) const SLICED: &str = "_sliced";

/// Columns and lines that minijinja's lexer can count.
const MAX_LINE: usize = 60_000;
const MAX_LINES: usize = 60_000;
/// Bytes of one expression or statement, strings aside. The longest in use have some 300.
const MAX_CODE: usize = 8192;
/// `elif`s, which the compiler nests. The most in use in one template are some 30.
const MAX_ELIFS: usize = 500;

/// The source as minijinja should see it.
pub(super) fn normalize(source: &str) -> Result<String, TemplateError> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let too_much = |line: usize, what: &str, found: usize, limit: usize| TemplateError::Syntax {
        line,
        message: format!("{what}: found {found}, the limit is {limit}"),
    };
    for (i, line) in source.split('\n').enumerate() {
        if line.len() > MAX_LINE {
            return Err(too_much(i + 1, "bytes in one line", line.len(), MAX_LINE));
        }
        if i == MAX_LINES {
            let n = source.split('\n').count();
            return Err(too_much(i, "lines in the template", n, MAX_LINES));
        }
    }
    let mut out = String::with_capacity(source.len() * 2);
    let mut rest = source.as_str();
    let mut elifs = 0;
    while let Some(at) = find_open(rest) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let line = || 1 + source[..source.len() - rest.len()].matches('\n').count();
        let (len, code) = match rest.as_bytes()[1] {
            b'#' => {
                let len = rest.find("#}").map_or(rest.len(), |end| end + 2);
                out.push_str(&rest[..len]);
                (len, 0)
            }
            b'%' => statement(rest, &mut elifs, &mut out),
            _ => {
                out.push_str("{{");
                let (len, code) = expression(&rest[2..], "}}", &mut out);
                (len + 2, code)
            }
        };
        if code > MAX_CODE {
            return Err(too_much(line(), "bytes of code in one expression", code, MAX_CODE));
        }
        if elifs > MAX_ELIFS {
            return Err(too_much(line(), "'elif's in the template", elifs, MAX_ELIFS));
        }
        rest = &rest[len..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the next `{{`, `{%` or `{#` starts.
fn find_open(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|w| w[0] == b'{' && matches!(w[1], b'{' | b'%' | b'#'))
}

/// Copies the `{% ... %}` that `text` starts with, a raw block up to its end; returns its length
/// and how much of it is code.
fn statement(text: &str, elifs: &mut usize, out: &mut String) -> (usize, usize) {
    let word_at = text.len() - text[2..].trim_start_matches(['-', '+']).trim_start().len();
    let word_len = text[word_at..]
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len() - word_at);
    let word = &text[word_at..word_at + word_len];
    if word == "raw" {
        let mut end = word_at;
        while let Some(at) = text[end..].find("{%") {
            end += at + 2;
            let tag = text[end..].trim_start_matches(['-', '+']).trim_start();
            if tag.starts_with("endraw") {
                break;
            }
        }
        out.push_str(&text[..end]);
        return (end, 0);
    }
    *elifs += usize::from(word == "elif");
    out.push_str(&text[..word_at]);
    out.push_str(match word {
        "generation" => "with",
        "endgeneration" => "endwith",
        word => word,
    });
    let body = word_at + word_len;
    let (len, code) = expression(&text[body..], "%}", out);
    (body + len, code)
}

/// Copies code up to and with `close`; returns its length, and that without strings.
fn expression(text: &str, close: &str, out: &mut String) -> (usize, usize) {
    // One level for the code as a whole, and one for each open bracket.
    let mut levels = vec![Level::default()];
    let mut in_strings = 0;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        let rest = &text[at..];
        let goes_on = |rest: &str| rest.trim_start().starts_with(['.', '(', '[']);
        let nested = levels.len() > 1;
        let Some(level) = levels.last_mut() else { break };
        // `}}` may end two mappings.
        let marked = (c == '-' || c == '+') && rest[1..].starts_with(close);
        if !nested && (marked || rest.starts_with(close)) {
            level.end_operand(out);
            let len = close.len() + usize::from(marked);
            out.push_str(&rest[..len]);
            return (at + len, at - in_strings);
        }
        let blank = c.is_whitespace();
        if blank && !goes_on(rest) || "|+-*/%~=!<>,:)]}".contains(c) {
            level.end_operand(out);
        } else if !blank && level.expected.is_some() {
            // A literal is no list.
            let literal = matches!(c, '\'' | '"' | '0'..='9');
            level.reading = level.expected.take().filter(|_| !literal);
        }
        match c {
            '*' if rest.starts_with("**") => {
                out.push_str("**");
                chars.next();
                continue;
            }
            '+' | '*' => {
                let filter = if c == '+' { ADDEND } else { FACTOR };
                let left = out.trim_end();
                if left.ends_with(|c| is_name(c) || matches!(c, ')' | ']' | '}' | '\'' | '"')) {
                    level.expected = Some(filter);
                    let word = left.rsplit(|c| !is_name(c)).next().unwrap_or_default();
                    let literal = left.ends_with(['\'', '"'])
                        || word.starts_with(|c: char| c.is_ascii_digit());
                    if !literal {
                        out.truncate(left.len());
                        out.push('|');
                        out.push_str(filter);
                        out.push(' ');
                    }
                }
            }
            ':' => level.has_colon = true,
            '(' | '[' | '{' => levels.push(Level::default()),
            ')' | ']' | '}' if nested => {
                let sliced = c == ']' && level.has_colon && !goes_on(&rest[1..]);
                levels.pop();
                if sliced {
                    out.push_str("]|");
                    out.push_str(SLICED);
                    continue;
                }
            }
            _ => {}
        }
        out.push(c);
        if matches!(c, '\'' | '"') {
            while let Some((_, inner)) = chars.next() {
                if inner == '\\' {
                    escape(&mut chars, out);
                    continue;
                }
                out.push(inner);
                if inner == c {
                    break;
                }
            }
            in_strings += chars.offset() - at;
        }
    }
    (text.len(), text.len() - in_strings)
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What is known of the code in one pair of brackets.
#[derive(Default)]
struct Level {
    /// An operator has been read whose right operand needs this filter.
    expected: Option<&'static str>,
    /// That operand is just being read.
    reading: Option<&'static str>,
    has_colon: bool,
}

impl Level {
    /// Appends the filter if the operand that needs it has just been copied.
    fn end_operand(&mut self, out: &mut String) {
        if let Some(filter) = self.reading.take() {
            out.push('|');
            out.push_str(filter);
        }
    }
}

/// Copies what follows a backslash so that minijinja reads what Python would.
fn escape(chars: &mut std::str::CharIndices<'_>, out: &mut String) {
    let Some((_, c)) = chars.next() else {
        out.push('\\');
        return;
    };
    match c {
        '\n' => {} // a continued line
        'a' => out.push_str("\\x07"),
        'v' => out.push_str("\\x0b"),
        '/' => out.push_str("\\\\/"),
        'U' => {
            let hex: String = chars.as_str().chars().take(8).collect();
            let code = u32::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == 8);
            match code.and_then(char::from_u32) {
                Some(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                    chars.nth(7);
                }
                None => out.push_str("\\U"),
            }
        }
        c => {
            out.push('\\');
            out.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrites_only_what_must_be() {
        let check = |source: &str, want: &str| {
            assert_eq!(normalize(source).unwrap(), want, "{source}");
        };
        check(
            "a\r\nb\rc {{ 'x' }} }} %} {# {{ a + b }} #}",
            "a\nb\nc {{ 'x' }} }} %} {# {{ a + b }} #}",
        );
        check("{%- generation -%}x{%endgeneration%}", "{%- with -%}x{%endwith%}");
        check(
            "{% raw %}{{ a + b }}{%- endraw %}{{ '}}' }}",
            "{% raw %}{{ a + b }}{%- endraw %}{{ '}}' }}",
        );
        check(r"{{ '\a\v\/\n\'\U0001F600\d' }}", r"{{ '\x07\x0b\\/\n\'\ud83d\ude00\d' }}");
        check("{{ 'a' + b.c[0](x) ~ 1 }}", "{{ 'a' + b.c[0](x)|_addend ~ 1 }}");
        check("{{- a.b + 'c' -}}", "{{- a.b|_addend + 'c' -}}");
        check("{{ a1+(b+c) }}", "{{ a1|_addend +(b|_addend +c|_addend)|_addend }}");
        check("{{ a + b|trim + 1 }}", "{{ a|_addend + b|_addend|trim|_addend + 1 }}");
        check("{{ 12 + 3 * n ** 2 }}", "{{ 12 + 3 * n|_factor ** 2 }}");
        check("{% set x = a[1:] + b [0]+%}", "{% set x = a[1:]|_sliced|_addend + b [0]|_addend+%}");
        check("{{ a[:-1][0].b[f(c)[1:]:] }}", "{{ a[:-1][0].b[f(c)[1:]|_sliced:]|_sliced }}");
        check("{{ {'a': {'b': c + d}}}}", "{{ {'a': {'b': c|_addend + d|_addend}}}}");
        check("{{ é + 'é' }}{{ a +", "{{ é|_addend + 'é' }}{{ a|_addend +");
    }
}
