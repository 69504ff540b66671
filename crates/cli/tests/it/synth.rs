//! From a model's name to a file that runs.
use crate::common::{run, run_in};
use tempfile::TempDir;

#[test]
fn a_model_is_made_shown_run_and_measured() {
    let home = TempDir::new().expect("a folder");
    let run = |args: &[&str]| run_in(&home, args, b"");
    let told = run(&["synth", "SmolLM2-135M", "a.gguf"]).ok();
    assert!(told.starts_with("a.gguf: smollm2:135m with random weights, 134.5 M"), "{told}");

    let info = run(&["show", "a.gguf", "--json"]).json();
    assert_eq!(info["parameters"], 134_515_008);
    assert_eq!(info["architecture"], "llama");
    assert_eq!(info["vocabulary"], 49_152);
    assert_eq!(info["chat_template"], true);
    // A Q4_K_M file of this model, made by llama.cpp, has 105,454,432 bytes.
    assert!(info["bytes"].as_u64().is_some_and(|n| n.abs_diff(105_454_432) < 1_000_000), "{info}");

    let logits = run(&["logits", "-m", "a.gguf", "--ids", "1,20000,49151"]).json();
    let logits = logits["logits"].as_array().expect("logits");
    assert_eq!(logits.len(), 49_152);
    assert!(logits.iter().all(|x| x.as_f64().is_some_and(f64::is_finite)));

    let answer = run(&["run", "-m", "a.gguf", "-n", "2", "-s", "1", "--json", "hello"]).json();
    let first = answer["prompt_token_ids"][0].as_u64();
    assert_eq!(first, Some(1), "the template begins with <|im_start|>: {answer}");
    assert_eq!(answer["timings"]["predicted_n"], 2);

    let args = ["bench", "-m", "a.gguf", "-p", "4", "-n", "2", "-r", "1", "-o", "json"];
    let rows = run(&args).json();
    assert_eq!([&rows[0]["test"], &rows[1]["test"]], ["pp4", "tg2"]);

    // The same bytes again, but only if asked to.
    let refused = run(&["synth", "smollm2:135m", "a.gguf"]);
    assert_eq!(refused.status, Some(1));
    assert!(refused.stderr.contains("already there\nhint: --force"), "{refused:?}");
    let bytes = |name: &str| std::fs::read(home.path().join(name)).expect("a file");
    let before = bytes("a.gguf");
    let again = ["synth", "smollm2:135m", "a.gguf", "--type", "q4_k_m", "--force", "-t", "3"];
    run(&again).ok();
    assert!(bytes("a.gguf") == before, "other bytes with other threads");
    let names = std::fs::read_dir(home.path()).expect("a folder");
    assert!(!names.flatten().any(|file| file.file_name().to_string_lossy().contains("partial")));
}

#[test]
fn models_are_listed_with_their_sizes() {
    let check = |more: &[&str], model: &str, expected: &[&str]| {
        let list = run(&[&["synth", "--list"], more].concat()).ok();
        assert_eq!(list.lines().count(), 21);
        let mut rows = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row[0] == model).unwrap_or_else(|| panic!("{list}"));
        assert_eq!(row[1..], *expected, "{list}");
    };
    let expected = ["qwen2", "1.5", "B", "Q4_K_M", "980.1", "MB", "32768"];
    check(&[], "qwen2.5-coder:1.5b", &expected);
    let expected = ["llama", "8.0", "B", "Q8_0", "8.5", "GB", "131072"];
    check(&["--type", "q8_0"], "llama3.1:8b", &expected);
}

#[test]
fn nonsense_is_refused_before_anything_is_written() {
    let home = TempDir::new().expect("a folder");
    let check = |args: &[&str], status, expected: &[&str]| {
        let found = run_in(&home, &[&["synth"], args].concat(), b"");
        assert_eq!(
            (found.status, found.stdout.as_str()),
            (Some(status), ""),
            "{args:?}: {found:?}"
        );
        for part in expected {
            assert!(found.stderr.contains(part), "{args:?}: expected {part:?} in {}", found.stderr);
        }
    };
    check(&[], 2, &["MODEL", "OUT.gguf"]);
    check(&["smollm2:135m"], 2, &["OUT.gguf"]);
    check(&["gpt-5", "x.gguf"], 1, &["gpt-5", "hint: ", "smollm2:135m"]);
    check(&["smollm2:135m", "x.gguf", "--type", "q4_k_x"], 1, &["q4_k_x", "hint: ", "q4_k_m"]);
    check(&["smollm2:135m", "x.gguf", "-s", "-1"], 2, &["-1"]);
    check(&["smollm2:135m", "x.gguf", "-t", "0"], 2, &["--threads"]);
    check(&["smollm2:135m", "."], 2, &["is a folder"]);
    check(&["smollm2:135m", "no/such/x.gguf"], 1, &["no/such/x.gguf"]);
    check(&["--list", "smollm2:135m", "x.gguf"], 2, &["cannot be used with"]);
    assert_eq!(std::fs::read_dir(home.path()).expect("a folder").count(), 0);
}
