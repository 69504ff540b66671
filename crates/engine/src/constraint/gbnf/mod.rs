//! GBNF, the grammars of llama.cpp, as Lark for llguidance.
//!
//! A GBNF grammar speaks of characters. llguidance has a lexer in front of its parser, which cuts the text into
//! the longest lexemes that it can, and is fast where lexemes are long: inside a string that is one lexeme,
//! a table says which tokens may follow. So whatever is regular becomes a lexeme, as large as possible:
//!
//! ```text
//! value ::= string | "[" value ("," value)* "]"        start: r0
//! string ::= "\"" [^"]* "\""                      ►    r0: T0 | T1 r0 (T2 r0)* T3
//!                                                      T0: R1
//! ```
//! The longest lexeme is not always the right one: in `("a" | "ab") rest` with `rest ::= "bc" rest?`, the text
//! `abc` begins with `a`. [`overlap`] looks for such places, where the text that may follow a lexeme may also
//! be more of a lexeme, and these are taken apart, down to single characters where need be: as in
//! llama.cpp, slow and right.
mod overlap;
mod parse;
#[cfg(test)]
mod tests;

use super::ConstraintError;
use overlap::Budget;
use parse::Rule;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

/// The grammar in Lark. `token` finds the token of exactly this text, for `<text>`.
pub(super) fn to_lark(
    gbnf: &str,
    token: &dyn Fn(&str) -> Option<u32>,
) -> Result<String, ConstraintError> {
    let (rules, root) = parse::parse(gbnf, token)?;
    let mut split = HashSet::new();
    let mut budget = Budget::new();
    loop {
        let grammar = Grammar::new(&rules, root, &split);
        let overlapping = overlap::find(&grammar, &mut budget)?;
        if overlapping.is_empty() {
            return Ok(grammar.to_lark());
        }
        split.extend(overlapping.into_iter().map(|lexeme| grammar.lexemes[lexeme].clone()));
    }
}

/// A set of characters: ranges in ascending order that do not touch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CharSet(Vec<(u32, u32)>);

impl CharSet {
    /// All characters.
    fn all() -> Self {
        Self::of(vec![(0, 0x10_FFFF)])
    }

    /// The characters in any of `ranges`; surrogates are none.
    fn of(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut set: Vec<(u32, u32)> = Vec::new();
        for (from, to) in ranges {
            for (from, to) in [(from, to.min(0xD7FF)), (from.max(0xE000), to)] {
                match set.last_mut() {
                    _ if from > to => {}
                    Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
                    _ => set.push((from, to)),
                }
            }
        }
        Self(set)
    }

    fn complement(&self) -> Self {
        let mut ranges = Vec::new();
        let mut from = 0;
        for &(first, last) in &self.0 {
            if from < first {
                ranges.push((from, first - 1));
            }
            from = last + 1;
        }
        ranges.push((from, 0x10_FFFF));
        ranges.retain(|range| range.0 <= range.1);
        Self::of(ranges)
    }

    fn meets(&self, other: &Self) -> bool {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            if x.0 <= y.1 && y.0 <= x.1 {
                return true;
            }
            if x.1 < y.1 {
                a.next()
            } else {
                b.next()
            };
        }
        false
    }
}

/// What a rule says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Expr {
    /// One character.
    Chars(CharSet),
    /// The rule of this number.
    Rule(usize),
    /// A token in llguidance's notation.
    Token(String),
    Seq(Vec<Expr>),
    Alt(Vec<Expr>),
    /// From so many times to so many, or without end.
    Repeat(Box<Expr>, u32, Option<u32>),
}

/// What a rule says of lexemes.
#[derive(Debug)]
enum Node {
    Lexeme(usize),
    Rule(usize),
    Token(String),
    Seq(Vec<Node>),
    Alt(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

/// The grammar of lexemes.
#[derive(Debug)]
struct Grammar<'a> {
    rules: &'a [Rule],
    root: usize,
    /// What a regular expression can say, rule by rule.
    regular: Vec<bool>,
    /// Rules that can be empty.
    nullable: Vec<bool>,
    /// Never empty, even where the expression can be: then it is optional in its place.
    lexemes: Vec<Expr>,
    /// Rules that are reached, by number.
    nodes: HashMap<usize, Node>,
}

impl<'a> Grammar<'a> {
    /// Makes a lexeme of whatever is regular, but for what is to be `split`.
    fn new(rules: &'a [Rule], root: usize, split: &HashSet<Expr>) -> Self {
        let mut grammar = Self {
            rules,
            root,
            regular: regular(rules),
            nullable: nullable(rules),
            lexemes: Vec::new(),
            nodes: HashMap::new(),
        };
        let mut build = Build { numbers: HashMap::new(), reached: vec![root], split };
        while let Some(rule) = build.reached.pop() {
            if !grammar.nodes.contains_key(&rule) {
                let node = build.node(&mut grammar, &rules[rule].body);
                grammar.nodes.insert(rule, node);
            }
        }
        grammar
    }

    fn is_regular(&self, expr: &Expr) -> bool {
        holds(expr, &|rule| self.regular[rule])
    }

    fn is_nullable(&self, expr: &Expr) -> bool {
        empty(expr, &self.nullable)
    }

    fn to_lark(&self) -> String {
        let mut out = format!("start: r{}\n", self.root);
        let mut rules: Vec<_> = self.nodes.iter().collect();
        rules.sort_by_key(|(number, _)| **number);
        for (number, node) in rules {
            let _ = write!(out, "r{number}: ");
            write_node(node, &mut out);
            out.push('\n');
        }
        let mut named = Vec::new();
        for (number, lexeme) in self.lexemes.iter().enumerate() {
            let _ = write!(out, "T{number}: ");
            write_expr(lexeme, &mut out, &mut named);
            if self.is_nullable(lexeme) {
                out.push_str(" & /(?s:.)+/");
            }
            out.push('\n');
        }
        let mut written = HashSet::new();
        while let Some(rule) = named.pop() {
            if written.insert(rule) {
                let _ = write!(out, "R{rule}: ");
                write_expr(&self.rules[rule].body, &mut out, &mut named);
                out.push('\n');
            }
        }
        out
    }
}

/// Builds the nodes of a grammar.
struct Build<'s> {
    numbers: HashMap<Expr, usize>,
    reached: Vec<usize>,
    split: &'s HashSet<Expr>,
}

impl Build<'_> {
    fn node(&mut self, grammar: &mut Grammar<'_>, expr: &Expr) -> Node {
        let regular = grammar.is_regular(expr);
        if regular && !self.split.contains(expr) {
            return self.lexeme(grammar, expr);
        }
        match expr {
            Expr::Chars(_) => self.lexeme(grammar, expr),
            Expr::Rule(rule) => {
                self.reached.push(*rule);
                Node::Rule(*rule)
            }
            Expr::Token(token) => Node::Token(token.clone()),
            Expr::Repeat(inner, least, most) => {
                Node::Repeat(Box::new(self.node(grammar, inner)), *least, *most)
            }
            Expr::Seq(parts) if regular => {
                Node::Seq(parts.iter().map(|part| self.node(grammar, part)).collect())
            }
            Expr::Seq(parts) => Node::Seq(self.runs(grammar, parts)),
            Expr::Alt(parts) => {
                let (lexemes, rest): (Vec<_>, Vec<_>) =
                    parts.iter().partition(|part| !regular && grammar.is_regular(part));
                let mut nodes = Vec::new();
                if !lexemes.is_empty() {
                    let lexemes = Expr::Alt(lexemes.into_iter().cloned().collect());
                    nodes.push(self.node(grammar, &lexemes));
                }
                nodes.extend(rest.into_iter().map(|part| self.node(grammar, part)));
                Node::Alt(nodes)
            }
        }
    }

    /// A sequence in which neighbours that are regular are one lexeme.
    fn runs(&mut self, grammar: &mut Grammar<'_>, parts: &[Expr]) -> Vec<Node> {
        let mut nodes = Vec::new();
        let mut rest = parts;
        while let Some(part) = rest.first() {
            let n = rest.iter().take_while(|part| grammar.is_regular(part)).count();
            let run = if n > 1 { Expr::Seq(rest[..n].to_vec()) } else { part.clone() };
            nodes.push(self.node(grammar, &run));
            rest = &rest[n.max(1)..];
        }
        nodes
    }

    fn lexeme(&mut self, grammar: &mut Grammar<'_>, expr: &Expr) -> Node {
        if *expr == Expr::Seq(Vec::new()) {
            return Node::Seq(Vec::new());
        }
        let number = *self.numbers.entry(expr.clone()).or_insert_with(|| {
            grammar.lexemes.push(expr.clone());
            grammar.lexemes.len() - 1
        });
        match grammar.is_nullable(expr) {
            true => Node::Repeat(Box::new(Node::Lexeme(number)), 0, Some(1)),
            false => Node::Lexeme(number),
        }
    }
}

/// Whether the expression has no tokens, and only rules of which `rule` says so.
fn holds(expr: &Expr, rule: &impl Fn(usize) -> bool) -> bool {
    match expr {
        Expr::Chars(_) => true,
        Expr::Rule(number) => rule(*number),
        Expr::Token(_) => false,
        Expr::Seq(parts) | Expr::Alt(parts) => parts.iter().all(|part| holds(part, rule)),
        Expr::Repeat(inner, ..) => holds(inner, rule),
    }
}

/// Whether the expression can be empty, given which rules can.
fn empty(expr: &Expr, rules: &[bool]) -> bool {
    match expr {
        Expr::Chars(_) | Expr::Token(_) => false,
        Expr::Rule(number) => rules[*number],
        Expr::Seq(parts) => parts.iter().all(|part| empty(part, rules)),
        Expr::Alt(parts) => parts.iter().any(|part| empty(part, rules)),
        Expr::Repeat(inner, least, _) => *least == 0 || empty(inner, rules),
    }
}

/// Rules that are neither recursive nor made of such that are.
fn regular(rules: &[Rule]) -> Vec<bool> {
    let mut known = vec![false; rules.len()];
    // What depends on regular rules only is regular; what is recursive never comes to that.
    fixpoint(&mut known, |number, known| holds(&rules[number].body, &|rule| known[rule]));
    known
}

fn nullable(rules: &[Rule]) -> Vec<bool> {
    let mut known = vec![false; rules.len()];
    fixpoint(&mut known, |number, known| empty(&rules[number].body, known));
    known
}

/// Sets flags that follow from others until there are no more.
fn fixpoint(known: &mut [bool], follows: impl Fn(usize, &[bool]) -> bool) {
    loop {
        let mut changed = false;
        for number in 0..known.len() {
            if !known[number] && follows(number, known) {
                known[number] = true;
                changed = true;
            }
        }
        if !changed {
            return;
        }
    }
}

fn write_node(node: &Node, out: &mut String) {
    match node {
        Node::Lexeme(number) => drop(write!(out, "T{number}")),
        Node::Rule(number) => drop(write!(out, "r{number}")),
        Node::Token(token) => out.push_str(token),
        Node::Seq(parts) => write_list(parts, " ", out, write_node),
        Node::Alt(parts) => write_list(parts, " | ", out, write_node),
        Node::Repeat(inner, least, most) => {
            out.push('(');
            write_node(inner, out);
            out.push(')');
            write_count(*least, *most, out);
        }
    }
}

/// Writes an expression for a lexeme, and notes the rules that it names.
fn write_expr(expr: &Expr, out: &mut String, named: &mut Vec<usize>) {
    match expr {
        Expr::Chars(set) => {
            out.push_str("/[");
            for &(from, to) in &set.0 {
                let _ = write!(out, "\\x{{{from:x}}}-\\x{{{to:x}}}");
            }
            out.push_str("]/");
        }
        Expr::Rule(number) => {
            named.push(*number);
            let _ = write!(out, "R{number}");
        }
        Expr::Token(token) => out.push_str(token),
        Expr::Seq(parts) => {
            write_list(parts, " ", out, |part, out| write_expr(part, out, named));
        }
        Expr::Alt(parts) => {
            write_list(parts, " | ", out, |part, out| write_expr(part, out, named));
        }
        Expr::Repeat(inner, least, most) => {
            out.push('(');
            write_expr(inner, out, named);
            out.push(')');
            write_count(*least, *most, out);
        }
    }
}

fn write_list<T>(
    parts: &[T],
    between: &str,
    out: &mut String,
    mut write: impl FnMut(&T, &mut String),
) {
    if parts.is_empty() {
        out.push_str("\"\"");
        return;
    }
    out.push('(');
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            out.push_str(between);
        }
        write(part, out);
    }
    out.push(')');
}

fn write_count(least: u32, most: Option<u32>, out: &mut String) {
    match (least, most) {
        (0, None) => out.push('*'),
        (1, None) => out.push('+'),
        (0, Some(1)) => out.push('?'),
        (least, None) => drop(write!(out, "{{{least},}}")),
        (least, Some(most)) => drop(write!(out, "{{{least},{most}}}")),
    }
}
