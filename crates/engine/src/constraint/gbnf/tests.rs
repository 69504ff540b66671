use super::parse::parse;
use super::*;
use crate::constraint::{Constraint as _, Grammar as Form, GrammarConstraint, Grammars, TokenMask};
use hurtle_gguf::Gguf;
use hurtle_text::Tokenizer;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

/// A vocabulary that has every byte and little else.
static SMALL: LazyLock<(Tokenizer, Grammars)> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/archs/llama.gguf");
    let gguf = Gguf::open(&path).expect("a golden model");
    let tok = Tokenizer::from_metadata(gguf.metadata()).expect("a tokenizer");
    let grammars = Grammars::new(&tok).expect("grammars");
    (tok, grammars)
});

fn compile(gbnf: &str) -> Result<GrammarConstraint, ConstraintError> {
    let (tok, grammars) = &*SMALL;
    grammars.compile(&Form::Gbnf(gbnf.to_owned()), tok)
}

/// Whether the text, byte by byte, is an answer; that no step leads to where nothing is possible.
fn accepts(constraint: &GrammarConstraint, text: &str) -> bool {
    let tok = &SMALL.0;
    let mut constraint = constraint.clone();
    let mut mask = TokenMask::new(tok.n_tokens());
    for byte in text.bytes() {
        if constraint.is_finished() {
            return false;
        }
        constraint.allowed(&mut mask).expect("something is possible");
        let id = (0..tok.n_tokens() as u32).find(|&id| tok.token_bytes(id, false) == [byte]);
        let id = id.expect("a token for each byte");
        if !mask.contains(id) {
            return false;
        }
        constraint.accept(id).expect("accepted");
    }
    constraint.allowed(&mut mask).expect("something is possible");
    constraint.is_finished() || tok.end_of_generation().iter().any(|&id| mask.contains(id))
}

/// Where `expr` can end if it begins at `from`, by trying everything.
fn ends(
    expr: &Expr,
    text: &[char],
    from: usize,
    known: &dyn Fn(usize, usize) -> BTreeSet<usize>,
) -> BTreeSet<usize> {
    let then = |starts: &BTreeSet<usize>, expr: &Expr| -> BTreeSet<usize> {
        starts.iter().flat_map(|&at| ends(expr, text, at, known)).collect()
    };
    match expr {
        Expr::Chars(set) => {
            let in_set = |c: &char| set.0.iter().any(|r| (r.0..=r.1).contains(&u32::from(*c)));
            text.get(from).filter(|c| in_set(c)).map(|_| from + 1).into_iter().collect()
        }
        Expr::Rule(rule) => known(*rule, from),
        Expr::Token(_) => unreachable!("no grammar of these tests has tokens"),
        Expr::Seq(parts) => parts.iter().fold(BTreeSet::from([from]), |at, part| then(&at, part)),
        Expr::Alt(parts) => parts.iter().flat_map(|p| ends(p, text, from, known)).collect(),
        Expr::Repeat(inner, least, most) => {
            let mut at = BTreeSet::from([from]);
            for _ in 0..*least {
                at = then(&at, inner);
            }
            let mut all = at.clone();
            for _ in *least..most.unwrap_or(least + text.len() as u32 + 1) {
                at = then(&at, inner);
                all.extend(&at);
            }
            all
        }
    }
}

/// Whether the grammar has the text, by the definition.
fn oracle(gbnf: &str, text: &str) -> bool {
    let (rules, root) = parse(gbnf, &|_| None).expect("a grammar");
    let text: Vec<char> = text.chars().collect();
    let mut table: HashMap<(usize, usize), BTreeSet<usize>> = HashMap::new();
    loop {
        let known = |rule, at| table.get(&(rule, at)).cloned().unwrap_or_default();
        let mut next = HashMap::new();
        for (rule, from) in (0..rules.len()).flat_map(|r| (0..=text.len()).map(move |at| (r, at))) {
            next.insert((rule, from), ends(&rules[rule].body, &text, from, &known));
        }
        if next == table {
            return table[&(root, 0)].contains(&text.len());
        }
        table = next;
    }
}

/// All texts over `alphabet` up to this length.
fn texts(alphabet: &str, length: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut start = 0;
    for _ in 0..length {
        let end = all.len();
        for i in start..end {
            all.extend(alphabet.chars().map(|c| format!("{}{c}", all[i])).collect::<Vec<_>>());
        }
        start = end;
    }
    all
}

#[track_caller]
fn check(gbnf: &str, alphabet: &str, length: usize) {
    let constraint = compile(gbnf).unwrap_or_else(|e| panic!("{gbnf}\n{e}"));
    for text in texts(alphabet, length) {
        assert_eq!(accepts(&constraint, &text), oracle(gbnf, &text), "{text:?} in\n{gbnf}");
    }
}

#[test]
fn the_longest_lexeme_is_not_always_the_right_one() {
    check(
        r#"root ::= ("a" | "ab") rest  rest"#.replace("  rest", "\nrest ::= \"bc\" rest?").as_str(),
        "abc",
        6,
    );
    check("root ::= [a-b]+ \"b\" x\nx ::= \"c\" x | \"c\"", "abc", 5);
    check("root ::= ws \"a\" ws root? | ws\nws ::= [ b]*", "ab ", 5);
    check(
        "root ::= (e \"=\" t \"b\")+\ne ::= t (\"-\" t)*\nt ::= \"a\" ws | \"(\" e \")\" ws\nws ::= [ b]*",
        "ab=-(",
        5,
    );
    // Left recursion, and rules that can be empty.
    check("root ::= root \"a\" | \"b\" | n n\nn ::= | \"c\" n", "abc", 5);
    check("root ::= \"a\"{2,3} (\"b\" root)? | .{0}", "ab", 7);
}

#[test]
fn grammars_as_llama_cpp_users_write_them() {
    let json = r#"
# JSON, more or less
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"#;
    let constraint = compile(json).expect("compiled");
    for text in
        ["{}", "{ }", r#"{"a":1}"#, r#"{"a": -1.5e3, "b\"\u00e9ö": [true, null, {"c": []}]}"#]
    {
        assert!(accepts(&constraint, text), "{text}");
        assert!(oracle(json, text), "{text}");
    }
    for text in ["", "[]", "{", r#"{"a"}"#, r#"{"a":01}"#, r#"{"a":1,}"#, "{} x", r#"{"a":"\x"}"#] {
        assert!(!accepts(&constraint, text), "{text}");
    }

    let list = "root ::= item+\n\n# Excludes various line break characters\nitem ::= \"- \" [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ \"\\n\"";
    let constraint = compile(list).expect("compiled");
    assert!(accepts(&constraint, "- a\n- bö\n") && !accepts(&constraint, "- a"));

    let moves =
        "root ::= \"1. \" move \" \" move \"\\n\" ([1-9] [0-9]? \". \" move \" \" move \"\\n\")+
move ::= (pawn | nonpawn | castle) [+#]?
nonpawn ::= [NBKQR] [a-h]? [1-8]? \"x\"? [a-h] [1-8]
pawn ::= ([a-h] \"x\")? [a-h] [1-8] (\"=\" [NBKQR])?
castle ::= \"O-O\" \"-O\"?";
    let constraint = compile(moves).expect("compiled");
    assert!(accepts(&constraint, "1. e4 e5\n2. Nf3 Nc6\n10. O-O Bxb5+\n"));
    assert!(!accepts(&constraint, "1. e4 e5\n"));

    let code = "root ::= (declaration)*
declaration ::= type identifier \"(\" parameter? \")\" \"{\" statement* \"}\"
type ::= \"int\" ws | \"float\" ws
identifier ::= [a-zA-Z_] [a-zA-Z_0-9]*
parameter ::= type identifier
statement ::= ( type identifier ws \"=\" ws expression \";\" ) | ( identifier ws \"=\" ws expression \";\" ) |
              ( \"while\" \"(\" expression \")\" \"{\" statement* \"}\" ) | ( \"return\" ws expression \";\" )
expression ::= term ((\"+\" | \"-\") term)*
term ::= identifier | number | \"(\" expression \")\" | \"-\" expression
number ::= [0-9]+
ws ::= ([ \\t\\n]+)";
    let constraint = compile(code).expect("compiled");
    for (text, valid) in [
        ("int main(){return 1;}", true),
        ("int f(float x){int y = (x+1)-2;while(y){y = y-1;}return y;}int g(){}", true),
        ("int i(){whiles = 1;}", true),
        ("int main(){return 1}", false),
        ("int main(){while(}", false),
    ] {
        assert_eq!(accepts(&constraint, text), valid, "{text}");
        assert_eq!(oracle(code, text), valid, "{text}");
    }
}

#[test]
fn lexemes_are_as_large_as_they_may_be() {
    let check = |gbnf: &str, n_lexemes: usize| {
        let lark = to_lark(gbnf, &|_| None).expect("a grammar");
        let found = lark.lines().filter(|line| line.starts_with('T')).count();
        assert_eq!(found, n_lexemes, "{gbnf}\n{lark}");
    };
    check("root ::= a b*\na ::= \"x\"\nb ::= [0-9] a", 1);
    check("root ::= \"[\" (root | s) \"]\"\ns ::= \"\\\"\" [^\"]* \"\\\"\"", 3);
}

#[test]
fn tokens_by_number_and_by_text() {
    let lark = |gbnf: &str| to_lark(gbnf, &|text| (text == "<think>").then_some(7));
    assert!(lark("root ::= <think> !<[5]>*").expect("a grammar").contains("(<[7]> (<[^5]>)*)"));
    assert!(lark("root ::= <nothing>").is_err());
    let constraint = compile("root ::= <[65]> !<[65]> \"b\"").expect("compiled");
    let mut constraint = constraint.clone();
    let mut mask = TokenMask::new(SMALL.0.n_tokens());
    constraint.allowed(&mut mask).expect("a mask");
    assert_eq!(
        (0..mask.n_tokens() as u32).filter(|&id| mask.contains(id)).collect::<Vec<_>>(),
        [65]
    );
    constraint.accept(65).expect("accepted");
    constraint.allowed(&mut mask).expect("a mask");
    assert!(!mask.contains(65) && mask.contains(66));
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let check = |gbnf: &str, expected: &str| {
        let error = compile(gbnf).expect_err(gbnf);
        assert!(error.to_string().contains(expected), "{gbnf}\n{error}");
    };
    check("", "expected a rule called 'root', found the end");
    check("a ::= \"b\"", "expected a rule called 'root', found the end");
    check("root ::= a", "line 1, column 10: no rule is called 'a'");
    check("root ::= \"a\"\nroot ::= \"b\"", "line 2, column 1: the rule 'root' is there already");
    check("root := \"a\"", "line 1, column 6: expected '::=', found ':'");
    check("root ::= \"a", "line 1, column 10: this text has no end");
    check("root ::= [a", "line 1, column 10: this set of characters has no end");
    check("root ::= []", "is empty");
    check("root ::= [b-a]", "ends before it begins");
    check("root ::= \"\\q\"", "line 1, column 11: expected \\n");
    check("root ::= \"\\uD800\"", "line 1, column 11: expected \\n");
    check("root ::= (\"a\"", "expected ')', found the end");
    check("root ::= * \"a\"", "expected something to be repeated");
    check("root ::= \"a\"{3,2}", "expected at least 3 times");
    check("root ::= \"a\"{}", "expected a number");
    check("root ::= \"a\"{99999}", "at most 10000");
    check("root ::= \"a\" ]", "expected the end of the rule, found ']'");
    check(&format!("root ::= {}", "(".repeat(100_000)), "parentheses");
    check("root ::= <x", "this token has no end");
    check("root ::= <[99999999999]>", "the model has no token");
}

/// An expression over few characters and the rules `root`, `x` and `y`.
fn expr() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        4 => "[ab]{1,2}".prop_map(|text| format!("\"{text}\"")),
        2 => Just("[ab]".to_owned()),
        1 => Just("[^a]".to_owned()),
        1 => Just("\"\"".to_owned()),
        2 => prop_oneof![Just("root"), Just("x"), Just("y")].prop_map(str::to_owned),
    ];
    leaf.prop_recursive(4, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.join(" ")),
            prop::collection::vec(inner.clone(), 1..4)
                .prop_map(|parts| format!("({})", parts.join(" | "))),
            (inner, prop_oneof![Just("*"), Just("+"), Just("?"), Just("{2}"), Just("{1,2}")])
                .prop_map(|(inner, op)| format!("({inner}){op}")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn any_grammar_has_the_texts_that_it_should(root in expr(), x in expr(), y in expr()) {
        let gbnf = format!("root ::= {root}\nx ::= \"a\" | {x}\ny ::= {y} | \"b\"");
        match compile(&gbnf) {
            Ok(constraint) => for text in texts("ab", 5) {
                prop_assert_eq!(accepts(&constraint, &text), oracle(&gbnf, &text), "{:?} in\n{}", text, gbnf);
            },
            // A grammar without any text is refused.
            Err(error) => for text in texts("ab", 5) {
                prop_assert!(!oracle(&gbnf, &text), "{}\n{:?} in\n{}", error, text, gbnf);
            }
        }
    }
}
