//! Measurements of a tiny model. How fast it is, is nobody's business here; what is measured, and how it
//! is told, is.
use crate::common::{model, run};
use serde_json::{Value, json};

const KEYS: [&str; 23] = [
    "test",
    "n_prompt",
    "n_gen",
    "depth",
    "n_seqs",
    "threads",
    "tps",
    "tps_all",
    "load_ms",
    "first_token_ms",
    "peak_rss_bytes",
    "model_bytes",
    "isa",
    "batch_size",
    "cache_type_k",
    "cache_type_v",
    "model",
    "model_params",
    "activations",
    "n_beside",
    "prompt_tps",
    "gen_tps",
    "longest_pause_ms",
];

fn bench(args: &[&str]) -> Vec<&'static str> {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let args = args.leak().iter().map(String::as_str);
    ["bench", "-m", model()].into_iter().chain(args).collect()
}

fn rows(args: &[&str]) -> Vec<Value> {
    let found = run(&bench(&[args, &["-o", "json"]].concat()));
    assert_eq!(found.stderr, "", "nothing is said beside the results");
    found.json().as_array().expect("an array").clone()
}

#[test]
fn json_tells_all_there_is() {
    let file = std::fs::metadata(model()).expect("the golden model");
    let args = ["-p", "8,16", "-n", "4", "-np", "1,3", "-d", "0,5", "-t", "1,2", "-r", "3"];
    let rows = rows(&args);
    assert_eq!(rows.len(), 3 * 2 * 2 * 2);
    for row in &rows {
        let keys: Vec<&String> = row.as_object().expect("an object").keys().collect();
        assert_eq!(keys, KEYS);
        let rates = row["tps_all"].as_array().expect("rates");
        let mut rates: Vec<f64> = rates.iter().map(|x| x.as_f64().expect("a rate")).collect();
        rates.sort_by(f64::total_cmp);
        assert_eq!(rates.len(), 3);
        assert!(rates[0] > 0.0, "{row}");
        assert_eq!(row["tps"], rates[1]);
        for key in ["load_ms", "first_token_ms"] {
            assert!(row[key].as_f64().is_some_and(|ms| ms > 0.0), "{key}: {row}");
        }
        assert_eq!(row["model_bytes"], file.len());
        assert_eq!(row["model"], "llama");
        let peak = row["peak_rss_bytes"].as_u64();
        assert!(peak.is_some_and(|bytes| bytes > file.len()) || !cfg!(unix), "{row}");
    }
    let one = |test: &str, threads: u64| -> &Value {
        let mut found = rows.iter().filter(|row| row["test"] == test && row["threads"] == threads);
        let row = found.next().unwrap_or_else(|| panic!("{test} with {threads} threads"));
        assert!(found.next().is_none(), "{test} twice");
        row
    };
    for (test, n_prompt, n_gen, depth, n_seqs) in [
        ("pp8", 8, 0, 0, 1),
        ("tg4", 0, 4, 0, 1),
        ("pp16@d5", 16, 0, 5, 1),
        ("tg4x3", 0, 4, 0, 3),
        ("tg4@d5x3", 0, 4, 5, 3),
    ] {
        for threads in [1, 2] {
            let row = one(test, threads);
            let found = ["n_prompt", "n_gen", "depth", "n_seqs"].map(|key| row[key].clone());
            assert_eq!(found, [n_prompt, n_gen, depth, n_seqs].map(|n| json!(n)), "{test}");
        }
    }
}

#[test]
fn every_flag_shows_in_the_results() {
    let args = ["-p", "0", "-n", "0", "-pg", "6,2", "-b", "64,4", "-ub", "32", "-r", "1"];
    let caches = ["-ctk", "f16", "-ctv", "f16,f32", "--no-warmup", "--activations", "q8"];
    let found = rows(&[&args[..], &caches].concat());
    let shown: Vec<_> = found
        .iter()
        .map(|row| {
            ["test", "batch_size", "cache_type_k", "cache_type_v"].map(|key| row[key].clone())
        })
        .collect();
    let row = |batch, v| [json!("pp6+tg2"), json!(batch), json!("f16"), json!(v)];
    assert_eq!(shown, [row(32, "f16"), row(4, "f16"), row(32, "f32"), row(4, "f32")]);
    assert!(found.iter().all(|row| row["activations"] == "q8"));
    // All of a prompt and its tokens, in one rate.
    assert_eq!(found[0]["tps_all"].as_array().map(Vec::len), Some(1));
}

/// A prompt of 20 tokens in chunks of 8 beside 3 sequences that get a token with each.
#[test]
fn prompts_beside_generation() {
    let args = ["-p", "8", "-n", "2", "--mixed", "20,3", "-ub", "8", "-d", "0,5", "-r", "3"];
    let found = rows(&args);
    let tests: Vec<&Value> = found.iter().map(|row| &row["test"]).collect();
    assert_eq!(tests, ["pp8", "tg2", "pp20&tgx3", "pp8@d5", "tg2@d5", "pp20@d5&tgx3"]);
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{row}"));
    for row in &found {
        let name = row["test"].as_str().expect("a name");
        assert_eq!(row["longest_pause_ms"].is_null(), !name.contains("tg"), "{row}");
        if !name.contains('&') {
            assert_eq!(row["n_beside"], 0);
            assert!(row["prompt_tps"].is_null() && row["gen_tps"].is_null(), "{row}");
            continue;
        }
        assert_eq!((&row["n_prompt"], &row["n_gen"]), (&json!(20), &json!(0)));
        assert_eq!((&row["n_seqs"], &row["n_beside"]), (&json!(1), &json!(3)));
        let [tps, prompt, generated] = ["tps", "prompt_tps", "gen_tps"].map(|key| number(row, key));
        assert!((prompt + generated - tps).abs() < 1e-6 * tps, "{row}");
        assert!((prompt / generated - 20.0 / 9.0).abs() < 1e-6, "{row}");
        // Three passes, of which the longest takes at least a third.
        let fastest = row["tps_all"].as_array().expect("rates").iter().filter_map(Value::as_f64);
        let fastest = fastest.fold(0.0, f64::max);
        assert!(number(row, "longest_pause_ms") > 0.99 * 1e3 * 29.0 / fastest / 3.0, "{row}");
    }
    let table = run(&bench(&["-p", "0", "-n", "2", "--mixed", "20,3", "-r", "1"])).ok();
    for part in ["| prompt t/s |", "| beside t/s |", "| longest pause |", "| pp20&tgx3 |"] {
        assert!(table.contains(part), "{part:?} in {table}");
    }
    assert!(!run(&bench(&["-p", "4", "-r", "1"])).ok().contains("longest pause"));
}

#[test]
fn other_forms_tell_the_same() {
    let args = ["-p", "8", "-n", "2", "-r", "2", "-o"];
    let csv = run(&bench(&[&args[..], &["csv"]].concat())).ok();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0], KEYS.join(","));
    for (line, test) in lines[1..].iter().zip(["pp8", "tg2"]) {
        let cells: Vec<&str> = line.split(',').collect();
        assert_eq!(cells.len(), KEYS.len());
        assert_eq!(cells[0], test);
        assert_eq!(cells[7].split(';').count(), 2, "{line}");
    }

    let md = run(&bench(&[&args[..], &["md"]].concat())).ok();
    let lines: Vec<&str> = md.lines().collect();
    assert_eq!(lines.len(), 4);
    let columns = |line: &str| line.split('|').count();
    assert!(lines.iter().all(|line| columns(line) == columns(lines[0])), "{md}");
    assert!(lines[0].contains("| test |") && lines[0].contains(" t/s |"), "{md}");
    assert!(lines[1].starts_with("| -----"), "{md}");
    assert!(lines[2].contains("| pp8  |") && lines[2].contains(" ± "), "{md}");
    assert!(!md.contains("type_k") && !md.contains("batch"), "{md}");
    let md = run(&bench(&["-p", "4", "-n", "0", "-r", "1", "-ctv", "f32", "-b", "2,4"])).ok();
    assert!(md.contains("type_k") && md.contains("batch"), "{md}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let check = |args: &[&str], status, expected: &[&str]| {
        let found = run(&bench(args));
        assert_eq!(
            (found.status, found.stdout.as_str()),
            (Some(status), ""),
            "{args:?}: {found:?}"
        );
        for part in expected {
            assert!(found.stderr.contains(part), "{args:?}: expected {part:?} in {}", found.stderr);
        }
        assert!(!found.stderr.contains("panicked"), "{args:?}: {found:?}");
    };
    check(&["-p", "0", "-n", "0"], 2, &["nothing to measure"]);
    check(&["-pg", "5"], 2, &["--prompt-gen", "512,128"]);
    check(&["--mixed", "5"], 2, &["--mixed", "2048,4"]);
    check(&["--mixed", "5,0"], 2, &["--mixed", "2048,4"]);
    check(&["-ctk", "q4_0"], 2, &["--cache-type-k", "q8_0", "f16"]);
    check(&["-np", "0"], 2, &["--parallel"]);
    check(&["-r", "0"], 2, &["--repetitions"]);
    check(&["-d", "99999999"], 2, &["--n-depth", "99999999"]);
    check(&["-o", "yaml"], 2, &["yaml", "csv"]);
    if cfg!(target_os = "linux") {
        let most = ["-p", "0", "-n", "16777216", "-np", "65536"];
        check(&most, 1, &["tg16777216x65536", "TB", "available", "hint: "]);
        let most = ["-p", "0", "-n", "0", "--mixed", "16777216,65536"];
        check(&most, 1, &["pp16777216&tgx65536", "TB", "available", "hint: "]);
    }
}
