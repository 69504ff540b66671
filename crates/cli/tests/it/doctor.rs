//! What the doctor finds on whatever machine this is. The figures are the machine's; what is told is not.
use crate::common::{golden, model, run, run_with_env};
use serde_json::Value;
use tempfile::TempDir;

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn the_machine_in_json() {
    let found = run(&["doctor", "-t", "3", "--json"]).json();
    let expected = [
        "processor",
        "caches",
        "kernel_caches",
        "threads",
        "memory",
        "isa",
        "huge_pages",
        "measured",
        "model",
        "advice",
    ];
    assert_eq!(keys(&found), expected);
    let threads = &found["threads"];
    assert_eq!((&threads["used"], &threads["asked"]), (&3.into(), &3.into()));
    assert_eq!(threads["decided_by"], "--threads");
    let measured = found["measured"].as_array().expect("an array");
    let counts: Vec<_> = measured.iter().map(|row| row["threads"].as_u64()).collect();
    assert_eq!(counts, [Some(1), Some(2), Some(3)]);
    for row in measured {
        for key in ["read_bytes_per_second", "integer_ops_per_second", "float_ops_per_second"] {
            assert!(row[key].as_f64().is_some_and(|rate| rate > 0.0), "{key}: {row}");
        }
    }
    let available = found["isa"]["available"].as_array().expect("an array");
    assert_eq!(available[0], "scalar");
    assert_eq!(available.last(), Some(&found["isa"]["used"]));
    assert_eq!(found["model"], Value::Null);
    if cfg!(target_os = "linux") {
        assert!(found["memory"]["total_bytes"].as_u64() > Some(0), "{found}");
        assert!(threads["allowed"].as_u64() > Some(0), "{found}");
    }
}

#[test]
fn a_forced_instruction_set_is_used_and_remarked() {
    let home = TempDir::new().expect("a folder");
    let args = ["doctor", "-t", "1", "--json"];
    let found = run_with_env(&home, &[("HURTLE_ISA", "scalar")], &args, b"").json();
    assert_eq!(found["isa"]["used"], "scalar");
    assert_eq!(found["isa"]["reason"], "forced by HURTLE_ISA");
    let best =
        found["isa"]["available"].as_array().and_then(|all| all.last()).expect("one").clone();
    let advice = found["advice"].as_array().expect("an array");
    let remarked =
        advice.iter().any(|line| line.as_str().is_some_and(|l| l.contains("HURTLE_ISA")));
    assert_eq!(remarked, best != "scalar", "{found}");
}

#[test]
fn a_model_in_json() {
    let file = std::fs::metadata(model()).expect("the golden model").len();
    let args = ["doctor", "-m", model(), "-t", "2", "-c", "64", "--json"];
    let found = run(&args).json();
    let model = &found["model"];
    assert_eq!(model["file_bytes"], file);
    assert_eq!(model["ctx_size"], 64);
    let weights = model["weights"].as_array().expect("an array");
    let sum = |key: &str| weights.iter().filter_map(|row| row[key].as_u64()).sum::<u64>();
    assert!(sum("bytes") < file && sum("bytes") > file / 2, "{model}");
    assert_eq!(model["bytes_per_token"], sum("bytes_per_token"));
    assert!(sum("bytes_per_token") < sum("bytes"), "one row of the embeddings is read: {model}");
    let reads = found["measured"][1]["read_bytes_per_second"].as_f64().expect("a rate");
    let ceiling = model["tokens_per_second_ceiling"].as_f64().expect("a rate");
    assert!((ceiling * sum("bytes_per_token") as f64 / reads - 1.0).abs() < 1e-9, "{model}");
    // A narrower cache takes less.
    let narrow = run(&[&args[..], &["-ctk", "q8_0", "-ctv", "q8_0"]].concat()).json();
    let kv = |found: &Value| found["model"]["kv_bytes"].as_u64().expect("bytes");
    assert!(kv(&narrow) < kv(&found), "{narrow}");
}

/// The kernel of a model's largest weights.
fn kernel(name: &str, activations: &str) -> (String, Vec<String>) {
    let path = golden(name).display().to_string();
    let args = ["doctor", "-m", &path, "-t", "1", "--activations", activations, "--json"];
    let found = run(&args).json();
    let weights = found["model"]["weights"].as_array().expect("an array");
    let row = weights.iter().find(|row| row["use"] == "projections").expect("projections");
    let advice = found["advice"].as_array().expect("an array").iter();
    let advice = advice.map(|line| line.as_str().unwrap_or_default().to_owned()).collect();
    (row["kernel"].as_str().unwrap_or_default().to_owned(), advice)
}

#[test]
fn kernels_follow_the_weight_type() {
    let tells = |advice: &[String], part: &str| advice.iter().any(|line| line.contains(part));
    let (found, advice) = kernel("quantmodels/q4_k.gguf", "q8");
    assert!(found.starts_with("packed"), "{found}");
    assert!(!tells(&advice, "Q4_K"), "{advice:?}");
    let (found, advice) = kernel("quantmodels/q4_k.gguf", "f32");
    assert!(found.starts_with("decoded to f32"), "{found}");
    assert!(tells(&advice, "--activations q8"), "{advice:?}");
    let (found, advice) = kernel("quantmodels/nvfp4.gguf", "q8");
    assert!(found.starts_with("packed"), "{found}");
    assert!(!tells(&advice, "NVFP4"), "{advice:?}");
}

#[test]
fn text_for_people() {
    let text = run(&["doctor", "-m", model(), "-t", "2"]).ok();
    for part in [
        "processor ",
        "caches ",
        "threads ",
        "affinity mask",
        "cgroup quota",
        "memory ",
        "huge pages",
        "instruction sets",
        "THREADS",
        "GB/s",
        "TENSORS",
        "READ A TOKEN",
        "ceiling ",
        "memory needed",
        "What to change\n",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
}

#[test]
fn nonsense_is_refused() {
    let check = |args: &[&str], status, expected: &str| {
        let found = run(args);
        assert_eq!((found.status, found.stdout.as_str()), (Some(status), ""), "{found:?}");
        assert!(found.stderr.contains(expected), "{found:?}");
    };
    check(&["doctor", "-t", "513"], 2, "--threads 513");
    check(&["doctor", "-c", "-5"], 2, "-5");
    check(&["doctor", "-m", "/no/such.gguf", "-t", "1"], 1, "no such file");
}
