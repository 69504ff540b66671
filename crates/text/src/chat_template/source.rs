//! Rewrites a template before minijinja reads it, where minijinja's lexer differs from jinja2's.
//! Lines stay where they are, so that messages name the right one.
//!
//! - Line ends become `\n`.
//! - `{% generation %}`, which marks the assistant's words for training, becomes `{% with %}`: a
//!   scope and nothing else.
//! - Escapes in string literals that only Python knows are resolved.

/// The source as minijinja should see it.
pub(super) fn normalize(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = find_open(rest) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let len = match rest.as_bytes()[1] {
            b'#' => rest.find("#}").map_or(rest.len(), |end| end + 2),
            b'%' => statement(rest, &mut out),
            _ => expression(rest, "}}", &mut out),
        };
        if rest.as_bytes()[1] == b'#' {
            out.push_str(&rest[..len]);
        }
        rest = &rest[len..];
    }
    out.push_str(rest);
    out
}

/// Where the next `{{`, `{%` or `{#` starts.
fn find_open(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|w| w[0] == b'{' && matches!(w[1], b'{' | b'%' | b'#'))
}

/// Copies the `{% ... %}` that `text` starts with, a raw block up to its end; returns its length.
fn statement(text: &str, out: &mut String) -> usize {
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
        return end;
    }
    out.push_str(&text[..word_at]);
    out.push_str(match word {
        "generation" => "with",
        "endgeneration" => "endwith",
        word => word,
    });
    let body = word_at + word_len;
    body + expression(&text[body..], "%}", out)
}

/// Copies code up to and with `close`; returns its length.
fn expression(text: &str, close: &str, out: &mut String) -> usize {
    let mut depth = 0_usize; // of braces, as `}}` may end two mappings
    let mut chars = text.char_indices();
    // The opening `{{` is part of what is copied, but no mapping.
    if close == "}}" {
        out.push_str(&text[..2]);
        chars.nth(1);
    }
    while let Some((at, c)) = chars.next() {
        if depth == 0 && text[at..].starts_with(close) {
            out.push_str(close);
            return at + close.len();
        }
        out.push(c);
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            '\'' | '"' => {
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
            }
            _ => {}
        }
    }
    text.len()
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
