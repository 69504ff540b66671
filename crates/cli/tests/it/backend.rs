//! Who computes matrix products.
use crate::common::{model, run};

#[test]
fn a_backend_goes_with_its_own_arithmetic() {
    let found = run(&["-m", model(), "--backend", "ggml", "--activations", "q8", "hi"]);
    assert_eq!(found.status, Some(2), "{found:?}");
    assert!(found.stderr.contains("--activations q8: a backend decides"), "{found:?}");
    let text = |more: &[&str]| {
        run(&[&["-m", model(), "--raw", "-p", "The", "-n", "4", "--temp", "0"], more].concat()).ok()
    };
    assert_eq!(text(&["--backend", "hurtle", "--activations", "f32"]), text(&[]));
}

#[cfg(not(feature = "ggml"))]
#[test]
fn ggml_is_not_built_in_and_how_to_build_it_in_is_told() {
    for command in ["run", "chat", "logits", "perplexity"] {
        let help = run(&[command, "--help"]).ok();
        assert!(help.contains("--backend <NAME>") && !help.contains("ggml"), "{help}");
    }
    let found = run(&["-m", "/no/such.gguf", "--backend", "ggml", "hi"]);
    assert_eq!(found.status, Some(2), "{found:?}");
    for part in ["--backend ggml: this hurtle was built without", "hint: ", "cargo xtask ggml"] {
        assert!(found.stderr.contains(part), "{found:?}");
    }
}

#[cfg(feature = "ggml")]
mod ggml {
    use crate::common::{golden, model, run};
    use serde_json::Value;

    fn read(name: &str) -> Value {
        let text = std::fs::read_to_string(golden(&format!("{name}.json"))).expect("golden data");
        serde_json::from_str(&text).expect("JSON")
    }

    fn floats(values: &Value) -> Vec<f64> {
        values.as_array().expect("an array").iter().map(|x| x.as_f64().expect("a number")).collect()
    }

    fn logits(name: &str, ids: &Value) -> Vec<f64> {
        let (path, ids) = (golden(&format!("{name}.gguf")).display().to_string(), ids.to_string());
        let found = run(&["logits", "-m", &path, "--backend", "ggml", "--ids", &ids]).json();
        floats(&found["logits"])
    }

    /// Root mean square of the distance to the logits `key` of each input.
    fn rms(name: &str, expected: &Value, key: &str) -> f64 {
        let (mut sum, mut n) = (0.0, 0);
        for input in expected["inputs"].as_array().expect("inputs") {
            let found = logits(name, &input["ids"]);
            let wanted = floats(&input[key]);
            assert_eq!(found.len(), wanted.len(), "{name}");
            sum += found.iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            n += found.len();
        }
        (sum / n as f64).sqrt()
    }

    #[test]
    fn help_names_it() {
        assert!(run(&["run", "--help"]).ok().contains("ggml"));
    }

    /// The most probable tokens, one after the other, are llama.cpp's as long as there is no near tie.
    #[test]
    fn greedy_tokens_are_the_golden_ones() {
        for name in ["archs/llama", "archs/qwen3", "archs/qwen2moe", "archs/gpt-oss"] {
            let expected = read(name);
            let mut ids = expected["inputs"][1]["ids"].as_array().expect("ids").clone();
            let greedy = expected["greedy"]["ids"].as_array().expect("greedy tokens");
            let margins = floats(&expected["greedy"]["margin"]);
            let mut equal = 0;
            for (expected, margin) in greedy.iter().zip(margins) {
                let logits = logits(name, &Value::from(ids.clone()));
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                let best = Value::from(best.expect("logits"));
                if best != *expected {
                    // Activations are rounded to the type of the weights.
                    assert!(margin < 2e-2, "{name}: {best} for {expected}, margin {margin}");
                    break;
                }
                equal += 1;
                ids.push(best);
            }
            assert!(equal > 0, "{name}");
        }
    }

    #[test]
    fn an_answer_is_the_one_that_hurtle_gives() {
        let answer = |backend: &str| {
            let args =
                ["run", "-v", "-m", model(), "--raw", "--json", "-p", "The quick", "-n", "12"];
            run(&[&args[..], &["--temp", "0", "--backend", backend]].concat())
        };
        let ggml = answer("ggml");
        assert!(ggml.stderr.contains("matrix products by ggml 0."), "{}", ggml.stderr);
        let (found, expected) = (ggml.json(), answer("hurtle").json());
        assert_eq!(found["token_ids"].as_array().map(Vec::len), Some(12));
        assert_eq!(found["token_ids"], expected["token_ids"]);
        assert_eq!(found["text"], expected["text"]);
    }

    /// As far from the exact logits as llama.cpp is with these weights.
    #[test]
    fn every_weight_type_runs() {
        let mut names: Vec<String> = std::fs::read_dir(golden("quantmodels"))
            .expect("golden data")
            .map(|entry| entry.expect("a file").file_name().into_string().expect("UTF-8"))
            .filter_map(|name| name.strip_suffix(".gguf").map(|name| format!("quantmodels/{name}")))
            .collect();
        names.sort();
        assert!(names.len() >= 29, "{names:?}");
        for name in names {
            let expected = read(&name);
            let yardstick = expected["observed"]["quantized_activations_vs_exact_rms"].as_f64();
            let yardstick = yardstick.expect("llama.cpp's distance");
            let rms = rms(&name, &expected, "last_logits_exact");
            println!("{name}: {rms:.2e}, llama.cpp {yardstick:.2e}");
            assert!(rms <= 1.5 * yardstick, "{name}: {rms} against llama.cpp's {yardstick}");
        }
    }
}
