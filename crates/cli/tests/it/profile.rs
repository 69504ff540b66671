//! Profiles of a tiny model. How long an operation takes is nobody's business here; that the parts make
//! the whole, and how it is told, is.
use crate::common::{model, run};
use serde_json::Value;
use tempfile::TempDir;

fn profile(args: &[&str]) -> Vec<String> {
    let start = ["profile", "-m", model()];
    start.iter().chain(args).map(|arg| (*arg).to_owned()).collect()
}

#[track_caller]
fn output(args: &[&str]) -> String {
    let args = profile(args);
    let found = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(found.stderr, "", "nothing is said beside the result");
    found.ok()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&output(&[args, &["-o", "json"]].concat())).expect("JSON")
}

fn sum(rows: &Value, key: &str) -> f64 {
    rows.as_array().expect("an array").iter().filter_map(|row| row[key].as_f64()).sum()
}

#[test]
fn the_parts_make_the_whole() {
    for (args, test, n_tokens) in [
        (&["-n", "4", "-t", "2"][..], "tg4", 4),
        (&["-n", "3", "-t", "1", "-d", "70", "-ctk", "f16", "-ctv", "f16"], "tg3@d70", 3),
        (&["-n", "2", "--activations", "q8"], "tg2", 2),
        (&["--prefill", "20", "-ub", "8"], "pp20", 20),
        (&["--prefill", "-ub", "64"], "pp512", 512),
    ] {
        let found = json(&[args, &["--layers"]].concat());
        assert_eq!((&found["test"], &found["n_tokens"]), (&test.into(), &n_tokens.into()));
        let (operations, total) = (&found["operations"], &found["total"]);
        for key in ["time_us", "bytes", "ops", "least_us"] {
            let whole = total[key].as_f64().expect("a number");
            assert!((sum(operations, key) - whole).abs() <= 1e-6 * whole.abs(), "{key}: {found}");
        }
        assert!((sum(operations, "share") - 1.0).abs() < 1e-6, "{found}");
        let names: Vec<&str> = operations
            .as_array()
            .expect("rows")
            .iter()
            .filter_map(|row| row["name"].as_str())
            .collect();
        assert_eq!(names.contains(&"sampling"), test.starts_with("tg"), "{names:?}");
        assert_eq!(names.last(), Some(&"everything else"));
        for name in ["norms", "QKV", "attention", "attention output", "gate/up", "down", "LM head"]
        {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
        assert!(names.contains(&"quantization") || !args.contains(&"q8"), "{names:?}");
        assert!(total["wait_us"].as_f64() <= total["time_us"].as_f64(), "{found}");
        assert!(found["summary"].as_str().is_some_and(|text| text.ends_with('.')), "{found}");
        let layers = found["layers"].as_array().expect("layers");
        assert_eq!(layers.len(), 2, "the golden model's");
        for layer in layers {
            let (whole, parts) = (&layer["total"]["time_us"], sum(&layer["operations"], "time_us"));
            assert!((parts - whole.as_f64().expect("a time")).abs() < 1e-6, "{layer}");
        }
    }
}

#[test]
fn pages_and_plots_need_nothing_else() {
    let folder = TempDir::new().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    assert_eq!(output(&["-n", "2", "--layers", "--output", &at("p.html")]), "");
    assert_eq!(output(&["-n", "2", "--output", &at("p.svg")]), "");
    let read = |name: &str| std::fs::read_to_string(at(name)).expect("a file");
    let (page, plot) = (read("p.html"), read("p.svg"));
    assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"));
    assert!(plot.starts_with("<svg ") && plot.trim_end().ends_with("</svg>"));
    for text in [&page, &plot] {
        for outside in ["src=", "href=", "url(", "@import", "<script", "<link"] {
            assert!(!text.contains(outside), "{outside}");
        }
        let addresses = text.matches("http").count();
        assert_eq!(addresses, text.matches("http://www.w3.org/2000/svg").count());
        assert!(text.contains("prefers-color-scheme:dark"));
        assert!(!text.contains("NaN") && !text.contains("inf "), "{text}");
        for tag in ["svg", "text", "style", "title", "table", "tr", "td", "div"] {
            let open = text.matches(&format!("<{tag} ")).count()
                + text.matches(&format!("<{tag}>")).count();
            assert_eq!(open, text.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
    assert!(page.contains("<h2>Layers</h2>") && page.contains("everything else"));
    // The form that is asked for wins over the ending.
    assert_eq!(output(&["-n", "1", "-o", "json", "--output", &at("q.html")]), "");
    serde_json::from_str::<Value>(&read("q.html")).expect("JSON");
}

#[test]
fn text_for_people() {
    let text = output(&["-n", "2", "-t", "2", "--layers"]);
    for part in
        ["llama, tg2, 2 threads", "GB/s", "OPERATION", "sampling", "total", "LAYER", "BOUND"]
    {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(!text.contains("NaN"), "{text}");
    assert!(text.trim_end().ends_with('.'), "{text}");
    assert!(!output(&["-n", "2"]).contains("LAYER"));
}

#[test]
fn nonsense_is_refused() {
    let check = |args: &[&str], status, expected: &[&str]| {
        let args = profile(args);
        let found = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(
            (found.status, found.stdout.as_str()),
            (Some(status), ""),
            "{args:?}: {found:?}"
        );
        for part in expected {
            assert!(found.stderr.contains(part), "{args:?}: {part:?} in {found:?}");
        }
        assert!(!found.stderr.contains("panicked"), "{found:?}");
    };
    check(&["-n", "0"], 2, &["--n-gen", "0"]);
    check(&["-n", "4", "--prefill"], 2, &["cannot be used with"]);
    check(&["--prefill", "0"], 2, &["--prefill"]);
    check(&["--prefill", "many"], 2, &["--prefill", "many"]);
    check(&["--layers", "-o", "svg"], 2, &["--layers", "hint: "]);
    check(&["-o", "yaml"], 2, &["yaml", "html"]);
    check(&["-t", "513"], 2, &["--threads 513"]);
    check(&["-ub", "0"], 2, &["--ubatch-size"]);
    check(
        &["-n", "1", "--output", "/no/such/folder/x.html"],
        1,
        &["/no/such/folder/x.html: cannot write"],
    );
}
