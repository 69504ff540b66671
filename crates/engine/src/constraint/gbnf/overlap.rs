//! Where the longest lexeme may not be the right one.
//!
//! A lexer that goes on as long as it can is wrong if there are a text `w`, a lexeme `A` that is `w`, and a lexeme
//! `B` that begins with `w` and a character that may follow `A`: it would go on with `B`. (`A` and `B` may
//! be the same.) Both are made automata; they read all common texts side by side. Whether the
//! parser would ever allow both in one place is not looked at: at worst, a lexeme is split for nothing.
use super::{CharSet, ConstraintError, Expr, Grammar, Node};
use std::collections::HashSet;

/// States of the largest automaton; what has more is split unseen.
const MAX_STATES: usize = 2000;

/// How much may be compared before a grammar is too complex.
pub(super) struct Budget(usize);

impl Budget {
    pub(super) fn new() -> Self {
        Self(5_000_000)
    }

    fn spend(&mut self, n: usize) -> Result<(), ConstraintError> {
        self.0 = self.0.checked_sub(n).ok_or_else(|| {
            ConstraintError("the grammar is too complex\nhint: use fewer or simpler rules".into())
        })?;
        Ok(())
    }
}

/// The lexemes that may go on where another one, or the same, has ended.
pub(super) fn find(
    grammar: &Grammar<'_>,
    budget: &mut Budget,
) -> Result<Vec<usize>, ConstraintError> {
    let n = grammar.lexemes.len();
    let automata: Vec<_> =
        grammar.lexemes.iter().map(|lexeme| Automaton::new(grammar, lexeme)).collect();
    budget.spend(automata.iter().flatten().map(|automaton| automaton.states.len()).sum())?;
    let firsts: Vec<CharSet> =
        automata.iter().map(|a| a.as_ref().map_or_else(CharSet::all, Automaton::first)).collect();
    let mut next = Vec::with_capacity(n);
    for follow in Follow::new(grammar, budget)?.lexemes {
        budget.spend(follow.len())?;
        let ranges = follow.iter().flat_map(|&lexeme| firsts[lexeme].0.iter().copied());
        next.push(CharSet::of(ranges.collect()));
    }

    let mut found = Vec::new();
    let single = |lexeme: &Expr| matches!(lexeme, Expr::Chars(_));
    for b in 0..n {
        if single(&grammar.lexemes[b]) {
            continue;
        }
        for a in 0..n {
            budget.spend(1)?;
            if next[a].0.is_empty() || !firsts[a].meets(&firsts[b]) {
                continue;
            }
            let goes_on = match (&automata[a], &automata[b]) {
                (Some(ends), Some(goes_on)) => overlaps(ends, goes_on, &next[a], budget)?,
                _ => true,
            };
            if goes_on {
                found.push(b);
                break;
            }
        }
    }
    Ok(found)
}

/// Whether a text that `ends` accepts can go on in `longer` with a character of `next`.
fn overlaps(
    ends: &Automaton,
    longer: &Automaton,
    next: &CharSet,
    budget: &mut Budget,
) -> Result<bool, ConstraintError> {
    // The flag: whether anything has been read.
    let mut seen = HashSet::from([(0, 0, false)]);
    let mut open = vec![(0, 0, false)];
    while let Some((a, b, begun)) = open.pop() {
        budget.spend(1)?;
        let (x, y) = (&ends.states[a], &longer.states[b]);
        if begun && a == ends.end && y.step.as_ref().is_some_and(|(set, _)| set.meets(next)) {
            return Ok(true);
        }
        let mut reach = |pair| {
            if seen.insert(pair) {
                open.push(pair);
            }
        };
        x.free.iter().for_each(|&a| reach((a, b, begun)));
        y.free.iter().for_each(|&b| reach((a, b, begun)));
        if let (Some((p, a)), Some((q, b))) = (&x.step, &y.step)
            && p.meets(q)
        {
            reach((*a, *b, true));
        }
    }
    Ok(false)
}

/// A state: where to go with a character, and where for free.
#[derive(Debug, Default)]
struct State {
    step: Option<(CharSet, usize)>,
    free: Vec<usize>,
}

/// Thompson's automaton of a lexeme; it begins in state 0.
#[derive(Debug)]
struct Automaton {
    states: Vec<State>,
    end: usize,
}

impl Automaton {
    /// None if it is too large.
    fn new(grammar: &Grammar<'_>, lexeme: &Expr) -> Option<Self> {
        let mut automaton = Self { states: vec![State::default()], end: 0 };
        automaton.end = automaton.add(grammar, lexeme, 0)?;
        Some(automaton)
    }

    fn state(&mut self) -> Option<usize> {
        self.states.push(State::default());
        (self.states.len() <= MAX_STATES).then_some(self.states.len() - 1)
    }

    /// Adds `expr` behind the state `from`; returns where it ends.
    fn add(&mut self, grammar: &Grammar<'_>, expr: &Expr, from: usize) -> Option<usize> {
        match expr {
            Expr::Chars(set) => {
                let (here, to) = (self.state()?, self.state()?);
                self.states[from].free.push(here);
                self.states[here].step = Some((set.clone(), to));
                Some(to)
            }
            Expr::Rule(rule) => self.add(grammar, &grammar.rules[*rule].body, from),
            // No lexeme has one.
            Expr::Token(_) => None,
            Expr::Seq(parts) => {
                parts.iter().try_fold(from, |from, part| self.add(grammar, part, from))
            }
            Expr::Alt(parts) => {
                let to = self.state()?;
                for part in parts {
                    let end = self.add(grammar, part, from)?;
                    self.states[end].free.push(to);
                }
                Some(to)
            }
            Expr::Repeat(inner, least, most) => {
                let mut at = from;
                for _ in 0..*least {
                    at = self.add(grammar, inner, at)?;
                }
                let to = self.state()?;
                match most {
                    None => {
                        let turn = self.state()?;
                        self.states[at].free.push(turn);
                        let end = self.add(grammar, inner, turn)?;
                        self.states[end].free.push(turn);
                        self.states[turn].free.push(to);
                    }
                    Some(most) => {
                        for _ in *least..*most {
                            self.states[at].free.push(to);
                            at = self.add(grammar, inner, at)?;
                        }
                        self.states[at].free.push(to);
                    }
                }
                Some(to)
            }
        }
    }

    /// What it can begin with.
    fn first(&self) -> CharSet {
        let mut seen = HashSet::from([0]);
        let mut open = vec![0];
        let mut ranges = Vec::new();
        while let Some(at) = open.pop() {
            let state = &self.states[at];
            ranges.extend(state.step.iter().flat_map(|(set, _)| set.0.iter().copied()));
            open.extend(state.free.iter().copied().filter(|&next| seen.insert(next)));
        }
        CharSet::of(ranges)
    }
}

type Lexemes = HashSet<usize>;

/// Which lexemes can come behind which, by the book.
struct Follow {
    /// Lexemes that a rule can begin with.
    first: Vec<Lexemes>,
    /// Lexemes behind a rule.
    rules: Vec<Lexemes>,
    /// Lexemes behind a lexeme.
    lexemes: Vec<Lexemes>,
    changed: bool,
}

impl Follow {
    fn new(grammar: &Grammar<'_>, budget: &mut Budget) -> Result<Self, ConstraintError> {
        let n = grammar.rules.len();
        let mut follow = Self {
            first: vec![Lexemes::new(); n],
            rules: vec![Lexemes::new(); n],
            lexemes: vec![Lexemes::new(); grammar.lexemes.len()],
            changed: true,
        };
        while std::mem::take(&mut follow.changed) {
            for (&rule, node) in &grammar.nodes {
                let first = follow.first(grammar, node);
                budget.spend(1 + first.len())?;
                follow.changed |= grow(&mut follow.first[rule], &first);
            }
        }
        follow.changed = true;
        while std::mem::take(&mut follow.changed) {
            for (&rule, node) in &grammar.nodes {
                let after = follow.rules[rule].clone();
                follow.pass(grammar, node, &after, budget)?;
            }
        }
        Ok(follow)
    }

    fn first(&self, grammar: &Grammar<'_>, node: &Node) -> Lexemes {
        match node {
            Node::Lexeme(lexeme) => Lexemes::from([*lexeme]),
            Node::Rule(rule) => self.first[*rule].clone(),
            Node::Token(_) => Lexemes::new(),
            Node::Seq(parts) => {
                let mut first = Lexemes::new();
                for part in parts {
                    first.extend(self.first(grammar, part));
                    if !can_be_empty(grammar, part) {
                        break;
                    }
                }
                first
            }
            Node::Alt(parts) => parts.iter().flat_map(|part| self.first(grammar, part)).collect(),
            Node::Repeat(inner, ..) => self.first(grammar, inner),
        }
    }

    /// Notes that `after` can come behind `node`.
    fn pass(
        &mut self,
        grammar: &Grammar<'_>,
        node: &Node,
        after: &Lexemes,
        budget: &mut Budget,
    ) -> Result<(), ConstraintError> {
        budget.spend(1 + after.len())?;
        match node {
            Node::Lexeme(lexeme) => self.changed |= grow(&mut self.lexemes[*lexeme], after),
            Node::Rule(rule) => self.changed |= grow(&mut self.rules[*rule], after),
            Node::Token(_) => {}
            Node::Seq(parts) => {
                let mut after = after.clone();
                for part in parts.iter().rev() {
                    self.pass(grammar, part, &after, budget)?;
                    if !can_be_empty(grammar, part) {
                        after.clear();
                    }
                    after.extend(self.first(grammar, part));
                }
            }
            Node::Alt(parts) => {
                for part in parts {
                    self.pass(grammar, part, after, budget)?;
                }
            }
            Node::Repeat(inner, _, most) => {
                let mut after = after.clone();
                if *most != Some(1) {
                    after.extend(self.first(grammar, inner));
                }
                self.pass(grammar, inner, &after, budget)?;
            }
        }
        Ok(())
    }
}

fn grow(set: &mut Lexemes, more: &Lexemes) -> bool {
    let before = set.len();
    set.extend(more);
    set.len() > before
}

fn can_be_empty(grammar: &Grammar<'_>, node: &Node) -> bool {
    match node {
        Node::Lexeme(_) | Node::Token(_) => false,
        Node::Rule(rule) => grammar.nullable[*rule],
        Node::Seq(parts) => parts.iter().all(|part| can_be_empty(grammar, part)),
        Node::Alt(parts) => parts.iter().any(|part| can_be_empty(grammar, part)),
        Node::Repeat(inner, least, _) => *least == 0 || can_be_empty(grammar, inner),
    }
}
