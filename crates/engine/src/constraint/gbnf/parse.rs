//! The text of a GBNF grammar.
use super::{CharSet, ConstraintError, Expr};
use std::collections::HashMap;

/// Most rules.
const MAX_RULES: usize = 2000;
/// Parentheses inside parentheses.
const MAX_DEPTH: usize = 200;
/// Highest bound of a repetition.
const MAX_REPEAT: u32 = 10_000;

/// A rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) body: Expr,
}

/// The rules, and the number of `root`.
pub(super) fn parse(
    text: &str,
    token: &dyn Fn(&str) -> Option<u32>,
) -> Result<(Vec<Rule>, usize), ConstraintError> {
    let mut parser =
        Parser { text, at: 0, depth: 0, token, numbers: HashMap::new(), rules: Vec::new() };
    parser.space(true);
    while parser.at < text.len() {
        parser.rule()?;
    }
    let Some(&root) = parser.numbers.get("root") else {
        return Err(parser.wrong("expected a rule called 'root', found the end"));
    };
    let mut rules = Vec::with_capacity(parser.rules.len());
    for (name, first, body) in std::mem::take(&mut parser.rules) {
        parser.at = first;
        let body = body.ok_or_else(|| parser.wrong(&format!("no rule is called '{name}'")))?;
        rules.push(Rule { body });
    }
    Ok((rules, root))
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    token: &'a dyn Fn(&str) -> Option<u32>,
    numbers: HashMap<&'a str, usize>,
    /// Name, where it is first used, and what it says, once that is known.
    rules: Vec<(&'a str, usize, Option<Expr>)>,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self, expected: &str) -> bool {
        let found = self.rest().starts_with(expected);
        self.at += if found { expected.len() } else { 0 };
        found
    }

    fn expect(&mut self, expected: &str) -> Result<(), ConstraintError> {
        if self.take(expected) { Ok(()) } else { Err(self.unexpected(&format!("'{expected}'"))) }
    }

    fn unexpected(&self, expected: &str) -> ConstraintError {
        match self.peek() {
            Some(found) => self.wrong(&format!("expected {expected}, found {found:?}")),
            None => self.wrong(&format!("expected {expected}, found the end")),
        }
    }

    fn wrong(&self, what: &str) -> ConstraintError {
        let before = &self.text[..self.at];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        ConstraintError(format!("line {line}, column {column}: {what}"))
    }

    /// Skips blanks and comments, and line breaks if they mean nothing here.
    fn space(&mut self, lines: bool) {
        loop {
            let rest = self.rest();
            let blank = |c| matches!(c, ' ' | '\t') || (lines && matches!(c, '\r' | '\n'));
            let trimmed = rest.trim_start_matches(blank);
            let trimmed = match trimmed.strip_prefix('#') {
                Some(comment) => &comment[comment.find(['\r', '\n']).unwrap_or(comment.len())..],
                None => trimmed,
            };
            self.at += rest.len() - trimmed.len();
            if rest.len() == trimmed.len() {
                return;
            }
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let length = rest.find(|c| !word(c)).unwrap_or(rest.len());
        self.at += length;
        (length > 0).then(|| &rest[..length])
    }

    fn number_of(&mut self, name: &'a str, at: usize) -> Result<usize, ConstraintError> {
        if let Some(&number) = self.numbers.get(name) {
            return Ok(number);
        }
        if self.rules.len() >= MAX_RULES {
            return Err(self.wrong(&format!("expected at most {MAX_RULES} rules")));
        }
        self.numbers.insert(name, self.rules.len());
        self.rules.push((name, at, None));
        Ok(self.rules.len() - 1)
    }

    fn rule(&mut self) -> Result<(), ConstraintError> {
        let at = self.at;
        let Some(name) = self.name() else { return Err(self.unexpected("the name of a rule")) };
        let number = self.number_of(name, at)?;
        if self.rules[number].2.is_some() {
            self.at = at;
            return Err(self.wrong(&format!("the rule '{name}' is there already")));
        }
        self.space(false);
        self.expect("::=")?;
        self.space(true);
        let body = self.alternatives(false)?;
        if !matches!(self.peek(), None | Some('\r' | '\n')) {
            return Err(self.unexpected("the end of the rule"));
        }
        self.rules[number].2 = Some(body);
        self.space(true);
        Ok(())
    }

    /// Alternatives; inside of parentheses, line breaks mean nothing.
    fn alternatives(&mut self, nested: bool) -> Result<Expr, ConstraintError> {
        let mut parts = vec![self.sequence(nested)?];
        loop {
            let at = self.at;
            // Nothing but more alternatives begins with a bar.
            self.space(true);
            if !self.take("|") {
                self.at = at;
                break;
            }
            self.space(true);
            parts.push(self.sequence(nested)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::Alt(parts) })
    }

    fn sequence(&mut self, nested: bool) -> Result<Expr, ConstraintError> {
        let mut parts: Vec<Expr> = Vec::new();
        loop {
            let part = match self.peek() {
                Some('"') => self.literal()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.at += 1;
                    Expr::Chars(CharSet::all())
                }
                Some('(') => self.group()?,
                Some('<' | '!') => self.token()?,
                Some('*' | '+' | '?' | '{') => {
                    let Some(last) = parts.pop() else {
                        return Err(self.unexpected("something to be repeated"));
                    };
                    self.repeat(last)?
                }
                _ => {
                    let at = self.at;
                    let Some(name) = self.name() else { break };
                    Expr::Rule(self.number_of(name, at)?)
                }
            };
            parts.push(part);
            self.space(nested);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::Seq(parts) })
    }

    fn group(&mut self) -> Result<Expr, ConstraintError> {
        if self.depth >= MAX_DEPTH {
            return Err(
                self.wrong(&format!("expected at most {MAX_DEPTH} parentheses inside one another"))
            );
        }
        self.depth += 1;
        self.at += 1;
        self.space(true);
        let inner = self.alternatives(true)?;
        self.space(true);
        self.expect(")")?;
        self.depth -= 1;
        Ok(inner)
    }

    fn repeat(&mut self, what: Expr) -> Result<Expr, ConstraintError> {
        let at = self.at;
        let (least, most) = if self.take("*") {
            (0, None)
        } else if self.take("+") {
            (1, None)
        } else if self.take("?") {
            (0, Some(1))
        } else {
            self.expect("{")?;
            self.space(true);
            let least = self.count()?;
            self.space(true);
            let mut most = least;
            if self.take(",") {
                self.space(true);
                most = self.count()?;
                self.space(true);
            } else if least.is_none() {
                return Err(self.unexpected("a number"));
            }
            self.expect("}")?;
            (least.unwrap_or(0), most)
        };
        if most.is_some_and(|most| most < least) {
            self.at = at;
            return Err(self.wrong(&format!("expected at least {least} times, found {most:?}")));
        }
        Ok(match most {
            Some(0) => Expr::Seq(Vec::new()),
            _ => Expr::Repeat(Box::new(what), least, most),
        })
    }

    fn count(&mut self) -> Result<Option<u32>, ConstraintError> {
        let rest = self.rest();
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if digits == 0 {
            return Ok(None);
        }
        let count = rest[..digits].parse().ok().filter(|&count| count <= MAX_REPEAT);
        if count.is_none() {
            return Err(
                self.wrong(&format!("expected at most {MAX_REPEAT}, found {}", &rest[..digits]))
            );
        }
        self.at += digits;
        Ok(count)
    }

    fn literal(&mut self) -> Result<Expr, ConstraintError> {
        let start = self.at;
        self.at += 1;
        let mut chars = Vec::new();
        while !self.take("\"") {
            if self.peek().is_none() {
                self.at = start;
                return Err(self.wrong("this text has no end"));
            }
            let c = self.char()?;
            chars.push(Expr::Chars(CharSet::of(vec![(c, c)])));
        }
        Ok(if chars.len() == 1 { chars.remove(0) } else { Expr::Seq(chars) })
    }

    fn class(&mut self) -> Result<Expr, ConstraintError> {
        let start = self.at;
        self.at += 1;
        let negated = self.take("^");
        let mut ranges = Vec::new();
        while !self.take("]") {
            if self.peek().is_none() {
                self.at = start;
                return Err(self.wrong("this set of characters has no end"));
            }
            let at = self.at;
            let from = self.char()?;
            let mut to = from;
            if self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                self.at += 1;
                if self.peek().is_some() {
                    to = self.char()?;
                }
            }
            if to < from {
                self.at = at;
                return Err(self.wrong("this range of characters ends before it begins"));
            }
            ranges.push((from, to));
        }
        let set = CharSet::of(ranges);
        let set = if negated { set.complement() } else { set };
        if set.0.is_empty() {
            self.at = start;
            return Err(self.wrong("this set of characters is empty"));
        }
        Ok(Expr::Chars(set))
    }

    /// A character or an escape.
    fn char(&mut self) -> Result<u32, ConstraintError> {
        let Some(c) = self.peek() else { return Err(self.unexpected("a character")) };
        if c != '\\' {
            self.at += c.len_utf8();
            return Ok(u32::from(c));
        }
        let escape = self.rest()[1..].chars().next();
        let plain = |c: char| Some((u32::from(c), 2));
        let hex = |digits: usize| {
            let text = self.rest().get(2..2 + digits)?;
            let all = text.bytes().all(|b| b.is_ascii_hexdigit());
            let code = u32::from_str_radix(text, 16)
                .ok()
                .filter(|&c| all && char::from_u32(c).is_some())?;
            Some((code, 2 + digits))
        };
        let read = match escape {
            Some('x') => hex(2),
            Some('u') => hex(4),
            Some('U') => hex(8),
            Some('t') => plain('\t'),
            Some('r') => plain('\r'),
            Some('n') => plain('\n'),
            Some(c @ ('\\' | '"' | '[' | ']' | '-' | '^')) => plain(c),
            _ => None,
        };
        let Some((code, length)) = read else {
            return Err(self.wrong(
                "expected \\n, \\r, \\t, \\\\, \\\", \\[, \\], or the code of a character as \\xXX, \\uXXXX or \
                 \\UXXXXXXXX",
            ));
        };
        self.at += length;
        Ok(code)
    }

    /// `<[5]>`, `<text>`, and with `!` any other token.
    fn token(&mut self) -> Result<Expr, ConstraintError> {
        let start = self.at;
        let negated = self.take("!");
        self.expect("<")?;
        let rest = self.rest();
        let Some(end) = rest.find('>') else {
            self.at = start;
            return Err(self.wrong("this token has no end"));
        };
        let inner = &rest[..end];
        let id = match inner.strip_prefix('[').and_then(|id| id.strip_suffix(']')) {
            Some(id) => id.parse().ok(),
            None => (self.token)(&self.text[self.at - 1..self.at + end + 1]),
        };
        let Some(id) = id else {
            self.at = start;
            return Err(self.wrong(&format!("the model has no token <{inner}>")));
        };
        self.at += end + 1;
        let not = if negated { "^" } else { "" };
        Ok(Expr::Token(format!("<[{not}{id}]>")))
    }
}
