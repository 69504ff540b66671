//! What is generic over lanes is compiled for their instruction set only if it is inlined into a function
//! that has it: intrinsics elsewhere become calls. Nothing else tells, for the results are the same; Q3_K was
//! three times slower with one such function.

use std::path::{Path, PathBuf};

/// Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let found = paths.flat_map(|path| match path.is_dir() {
        true => sources(&path),
        false => vec![path],
    });
    found.filter(|path| path.extension().is_some_and(|end| end == "rs")).collect()
}

/// Names of the functions with a body that are generic over lanes, and whether they are always inlined.
fn generic_over_lanes(text: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("fn ") {
        // `<L: Lanes, ...>` or `<L: IntLanes, ...>` behind the name.
        let signature = &text[at + 3..];
        let name: String =
            signature.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let generics = &signature[name.len()..];
        if !["<L: Lanes", "<L: IntLanes"].iter().any(|start| generics.starts_with(start)) {
            continue;
        }
        // Semicolons in the types of arrays follow an opening bracket.
        let mut depth = 0;
        let end = signature.chars().find(|c| {
            depth += match c {
                '[' => 1,
                ']' => -1,
                _ => 0,
            };
            *c == '{' || (*c == ';' && depth == 0)
        });
        if end == Some(';') {
            continue;
        }
        // Attributes stand between the previous item, or its documentation, and the name.
        let before = text[..at].lines().rev().skip(1).map(str::trim);
        let mut attributes = before.take_while(|line| line.starts_with("#["));
        found.push((name, attributes.any(|line| line == "#[inline(always)]")));
    }
    found
}

#[test]
fn functions_generic_over_lanes_are_always_inlined() {
    let text = "#[inline(always)]\n#[expect(x)]\nunsafe fn a<L: Lanes>(x: [u8; 4]) -> u8 { 1 }\n\
        /// x\nfn b<L: IntLanes, const N: usize>() where L: Copy {}\n\
        fn declared<L: Lanes>(x: [u8; 2]) -> [u8; 2];\nfn other<T>() {}";
    assert_eq!(generic_over_lanes(text), [("a".into(), true), ("b".into(), false)]);

    let mut n = 0;
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = std::fs::read_to_string(&path).expect("a source");
        for (name, inlined) in generic_over_lanes(&text) {
            assert!(inlined, "{}: {name} lacks #[inline(always)]", path.display());
            n += 1;
        }
    }
    assert!(n > 60, "only {n} functions were found");
}
