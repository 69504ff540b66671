//! Every command on a tiny model, against llama.cpp's results for it.
use crate::common::{golden, model, run, run_in, run_with, run_with_env};
use serde_json::{Value, json};
use tempfile::TempDir;

fn expected() -> Value {
    let text = std::fs::read_to_string(golden("archs/llama.json")).expect("golden data");
    serde_json::from_str(&text).expect("JSON")
}

fn as_ids(ids: &Value) -> Vec<u64> {
    ids.as_array().expect("an array").iter().map(|id| id.as_u64().expect("an id")).collect()
}

fn as_floats(values: &Value) -> Vec<f64> {
    values.as_array().expect("an array").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn argmax(logits: &[f64]) -> u64 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    best.expect("logits") as u64
}

fn logits(ids: &Value, more: &[&str]) -> Value {
    let ids = ids.to_string();
    run(&[&["logits", "-m", model(), "--ids", &ids], more].concat()).json()["logits"].take()
}

#[test]
fn logits_are_llama_cpps() {
    for input in expected()["inputs"].as_array().expect("inputs") {
        let found = as_floats(&logits(&input["ids"], &[]));
        let wanted = as_floats(&input["last_logits"]);
        assert_eq!(found.len(), wanted.len());
        for (found, wanted) in found.iter().zip(&wanted) {
            assert!((found - wanted).abs() < 2e-4, "{found} for {wanted}");
        }
        let all = logits(&input["ids"], &["--all"]);
        let all = all.as_array().expect("positions");
        assert_eq!(all.len(), input["ids"].as_array().expect("ids").len());
        assert_eq!(as_floats(all.last().expect("a position")), found);
    }
}

#[test]
fn an_embedding_model_prints_llama_cpps_embedding_and_writes_no_text() {
    for name in ["archs/bert", "archs/nomic-bert", "archs/qwen3-embed"] {
        let text = std::fs::read_to_string(golden(&format!("{name}.json"))).expect("golden data");
        let expected: Value = serde_json::from_str(&text).expect("JSON");
        let path = golden(&format!("{name}.gguf")).display().to_string();
        for input in expected["inputs"].as_array().expect("inputs") {
            let ids = input["ids"].to_string();
            let found = run(&["logits", "-m", &path, "--ids", &ids]).json();
            assert_eq!(found.as_object().expect("an object").len(), 1, "{found}");
            let (found, wanted) = (as_floats(&found["embedding"]), as_floats(&input["embedding"]));
            assert_eq!(found.len(), wanted.len());
            for (found, wanted) in found.iter().zip(&wanted) {
                assert!((found - wanted).abs() < 2e-4, "{name}: {found} for {wanted}");
            }
        }
        for args in
            [&["-m", &path, "hi"][..], &["-m", &path, "--raw", "hi"], &["chat", "-m", &path]]
        {
            let run = run(args);
            assert_eq!(run.status, Some(1), "{}", run.stderr);
            for part in [name, "makes embeddings", "hint: 'hurtle logits"] {
                assert!(run.stderr.contains(part), "{}", run.stderr);
            }
        }
        let all = run(&["logits", "-m", &path, "--ids", "1,2", "--all"]);
        assert_eq!(all.status, Some(2), "{}", all.stderr);
    }
}

#[test]
fn a_forced_instruction_set_gives_the_same_output_and_is_named() {
    let home = tempfile::TempDir::new().expect("a folder");
    let run = |isa: &str| {
        let args = ["-v", "-m", model(), "--raw", "-p", "The quick", "-n", "8", "--temp", "0"];
        // bf16 has bits of its own with AMX.
        let args = [&args[..], &["-ctk", "f16", "-ctv", "f16"]].concat();
        run_with_env(&home, &[("HURTLE_ISA", isa)], &args, b"")
    };
    let reference = run("");
    for isa in hurtle_engine::Isa::available() {
        let run = run(isa.name());
        assert!(run.stderr.contains(&format!("{isa} kernels")), "{}", run.stderr);
        assert_eq!(run.ok(), reference.stdout);
    }
    let unknown = run("altivec");
    assert_eq!(unknown.status, Some(2), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("available: scalar"), "{}", unknown.stderr);
}

#[test]
fn tokens_are_llama_cpps() {
    let expected = expected();
    let tokenize = &expected["tokenize"];
    let text = tokenize["text"].as_str().expect("a text");
    let check = |more: &[&str], ids: &Value| {
        let args = [&["tokenize", "-m", model(), "--ids", "--no-bos"], more].concat();
        assert_eq!(run_with(&args, text.as_bytes()).ok(), format!("{}\n", compact(ids)));
        let args = [&args[..], &["-p", text]].concat();
        assert_eq!(run(&args).ok(), format!("{}\n", compact(ids)));
        let back = run_with(&["detokenize", "-m", model()], ids.to_string().as_bytes()).ok();
        assert_eq!(back, text);
    };
    check(&[], &tokenize["parse_special"]);
    check(&["--no-parse-special"], &tokenize["plain"]);
}

/// serde_json prints arrays without blanks.
fn compact(ids: &Value) -> String {
    ids.to_string()
}

#[test]
fn tokens_are_shown_one_a_line() {
    let text = run_with(&["tokenize", "-m", model(), "--no-bos"], "a\né\n".as_bytes()).ok();
    assert_eq!(
        text,
        "    97  'a'\n    10  '\\n'\n   195  '\\xc3'\n   169  '\\xa9'\n    10  '\\n'\n"
    );
}

#[test]
fn special_tokens_can_be_left_out() {
    let ids = ["tokenize", "-m", model(), "--ids", "--no-bos", "-p", "a<|end|>b"];
    let ids = run(&ids).ok();
    assert_eq!(run(&["detokenize", "-m", model(), "--ids", &ids]).ok(), "a<|end|>b");
    assert_eq!(run(&["detokenize", "-m", model(), "--ids", &ids, "--no-special"]).ok(), "ab");
}

/// The tokens chosen are the most probable ones after those before, as `logits` gives them.
#[test]
fn greedy_continuation_agrees_with_logits() {
    let args = ["-m", model(), "--raw", "--json", "--temp", "0", "-n", "12", "-p", "The quick"];
    let answer = run(&args).json();
    let keys: Vec<&String> = answer.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["text", "token_ids", "prompt_token_ids", "stop_reason", "timings"]);
    let prompt_ids = run(&["tokenize", "-m", model(), "--ids", "-p", "The quick"]).json();
    assert_eq!(answer["prompt_token_ids"], prompt_ids);

    let mut ids = as_ids(&answer["prompt_token_ids"]);
    let n_prompt = ids.len();
    let generated = as_ids(&answer["token_ids"]);
    assert!(!generated.is_empty());
    for &token in &generated {
        let logits = as_floats(&logits(&json!(ids), &[]));
        assert_eq!(argmax(&logits), token, "after {ids:?}");
        ids.push(token);
    }
    if generated.len() == 12 {
        assert_eq!(answer["stop_reason"], "length");
    }
    let timings = &answer["timings"];
    assert_eq!(timings["prompt_n"], n_prompt);
    assert_eq!(timings["predicted_n"], generated.len());
    for key in ["load_ms", "prompt_ms", "prompt_tps", "predicted_ms", "predicted_tps"] {
        assert!(timings[key].as_f64().is_some_and(|x| x >= 0.0), "{key}: {timings}");
    }
}

/// What the golden data holds of greedy decoding, one step at a time.
#[test]
fn greedy_choices_are_llama_cpps() {
    let greedy = &expected()["greedy"];
    let mut ids = as_ids(&greedy["prompt"]);
    let steps = as_ids(&greedy["ids"]).into_iter().zip(as_floats(&greedy["margin"]));
    for (token, margin) in steps.filter(|(_, margin)| *margin >= 0.01) {
        assert_eq!(argmax(&as_floats(&logits(&json!(ids), &[]))), token, "margin {margin}");
        ids.push(token);
    }
}

#[test]
fn the_same_seed_gives_the_same_text_in_every_form() {
    let args = ["-m", model(), "-p", "Once", "--raw", "-s", "7", "-n", "20", "--ignore-eos"];
    let text = run(&args).ok();
    assert_eq!(run(&args).ok(), text);
    let answer = run(&[&args[..], &["--json"]].concat()).json();
    assert_eq!(
        answer["text"].as_str().expect("a text").trim_end_matches('\n'),
        text.trim_end_matches('\n')
    );
    assert_eq!(answer["token_ids"].as_array().expect("ids").len(), 20);
    let threads = run(&[&args[..], &["-t", "2", "-tb", "1", "-b", "1"]].concat()).ok();
    assert_eq!(threads, text, "other threads and batches");
    let other = run(&["-m", model(), "-p", "Once", "--raw", "-s", "8", "-n", "20", "--ignore-eos"]);
    assert_ne!(other.ok(), text);
}

#[test]
fn prompts_come_from_everywhere() {
    let home = TempDir::new().expect("a folder");
    std::fs::write(home.path().join("file.txt"), "from a file\n").expect("written");
    std::fs::write(home.path().join("system.txt"), "system\n").expect("written");
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    let check = |args: &[&str], input: &str, expected: &str| {
        let fixed = ["-m", model(), "-n", "0", "--json"];
        let answer = run_in(&home, &[&fixed[..], args].concat(), input.as_bytes()).json();
        let ids = answer["prompt_token_ids"].to_string();
        let text = run(&["detokenize", "-m", model(), "--ids", &ids]).ok();
        // This vocabulary begins texts with a BOS token.
        assert_eq!(text.strip_prefix("<|begin|>").unwrap_or(&text), expected, "{args:?}");
        assert_eq!((&answer["text"], &answer["stop_reason"]), (&json!(""), &json!("length")));
    };
    let chat = |args: &[&str], input: &str, expected: &str| {
        check(&[args, &["--chat-template", template]].concat(), input, expected);
    };
    chat(&["hello"], "", "[user]hello");
    chat(&["hello", "you"], "", "[user]hello you");
    chat(&["-p", "hello"], "", "[user]hello");
    chat(&[], "hello\n", "[user]hello");
    chat(&["what?"], "text\nmore\n", "[user]what?\n\ntext\nmore");
    chat(&["-f", "file.txt", "what?"], "in", "[user]what?\n\nfrom a file\n\nin");
    chat(&["-sys", "Be brief.", "hi"], "", "[system]Be brief.[user]hi");
    chat(&["-sys", "", "hi"], "", "[user]hi");
    chat(&["-sysf", "system.txt", "hi"], "", "[system]system[user]hi");
    chat(&["-e", r"a\nb"], "", "[user]a\nb");
    chat(&[r"a\nb"], "", "[user]a\\nb");
    check(&["--raw", "-p", "Once"], "", "Once");
    check(&["--raw"], "Once\n", "Once");
    check(&["--raw", "-f", "file.txt"], "", "from a file");
    check(&["--raw", "-p", "Once", "-f", "file.txt"], "unread", "Once\n\nfrom a file");
}

/// What a user writes cannot become a control token, unless that is asked for.
#[test]
fn control_tokens_in_a_prompt_stay_text() {
    let count = |more: &[&str]| {
        let args =
            ["-m", model(), "--json", "-n", "0", "--chat-template", "{{ messages[0].content }}"];
        let answer = run(&[&args[..], &["-p", "a<|end|>b"], more].concat()).json();
        as_ids(&answer["prompt_token_ids"]).iter().filter(|&&id| id == 271).count()
    };
    assert_eq!(count(&[]), 0);
    assert_eq!(count(&["--parse-special"]), 1);
}

#[test]
fn a_stop_text_ends_the_answer() {
    let args = ["-m", model(), "-p", "Once", "--raw", "--temp", "0", "-n", "40", "--ignore-eos"];
    let args = [&args[..], &["--json"]].concat();
    let whole = run(&args).json();
    let text = whole["text"].as_str().expect("a text");
    let at = text.char_indices().nth(5).expect("five characters").0;
    let end = text[at..].char_indices().nth(2).map_or(text.len(), |(i, _)| at + i);
    let stop = &text[at..end];
    let cut = run(&[&args[..], &["-r", stop]].concat()).json();
    assert_eq!(cut["stop_reason"], "stop");
    assert_eq!(cut["text"].as_str(), text.split(stop).next());
}

#[test]
fn a_full_context_ends_the_answer_and_is_told() {
    let found = run(&["-m", model(), "-p", "Once", "--raw", "-c", "32", "--ignore-eos", "--json"]);
    assert!(found.stderr.contains("the context of 32 tokens is full"), "{found:?}");
    assert_eq!(found.json()["stop_reason"], "context");
}

#[test]
fn verbose_names_every_figure() {
    let found = run(&["-v", "-m", model(), "--chat-template", "chatml", "-n", "3", "hi"]);
    for part in ["chat template: chatml", "prompt eval rate:", "eval count:", "total duration:"] {
        assert!(found.stderr.contains(part), "{found:?}");
    }
}

#[test]
fn conversations_are_rendered() {
    let input =
        r#"{"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": true}"#;
    let expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    let render = |args: &[&str]| run_with(&[&["render"], args].concat(), input.as_bytes()).ok();
    assert_eq!(render(&["--chat-template", "chatml"]), expected);
    let with_bos = render(&["-m", model(), "--chat-template", "chatml"]);
    assert_eq!(with_bos.strip_prefix("<|begin|>").unwrap_or(&with_bos), expected);
    let file = golden("templates/Qwen-Qwen2.5-7B-Instruct.jinja").display().to_string();
    let text = render(&["--chat-template-file", &file]);
    assert!(text.ends_with(&expected["<|im_start|>user".len()..]), "{text}");
    let tokens =
        "{{ bos_token }}|{{ eos_token }}|{{ strftime_now('%Y') }}|{{ add_generation_prompt }}";
    let given = ["--chat-template", tokens, "--bos", "<B>", "--eos", "<E>"];
    let given = [&given[..], &["--now", "2025-03-14T09:26:53"]].concat();
    assert_eq!(render(&given), "<B>|<E>|2025|True");
    assert_eq!(render(&[&given[..], &["-m", model()]].concat()), "<B>|<E>|2025|True");
}

#[test]
fn a_file_is_described() {
    let text = run(&["show", model()]).ok();
    for part in ["architecture       llama", "vocabulary         272", "F32", "chat template"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let info = run(&["show", "-m", model(), "--json", "--tensors", "--metadata"]).json();
    assert_eq!((&info["architecture"], &info["vocabulary"]), (&json!("llama"), &json!(272)));
    let tensors = info["tensor_list"].as_array().expect("tensors");
    let count: u64 = info["quantization"]
        .as_array()
        .expect("types")
        .iter()
        .map(|share| share["tensors"].as_u64().expect("a count"))
        .sum();
    assert_eq!(tensors.len() as u64, count);
    assert_eq!(info["metadata"]["tokenizer.ggml.tokens"]["length"], 272);
    let text = run(&["show", model(), "--metadata", "--tensors"]).ok();
    assert!(
        text.contains("tokenizer.ggml.tokens = [") && text.contains("token_embd.weight"),
        "{text}"
    );
    let none = run(&["show", model(), "--template"]);
    assert_eq!(none.status, Some(1));
    assert!(none.stderr.contains("no chat template"), "{none:?}");
}

#[test]
fn perplexity_is_that_of_the_logits() {
    let home = TempDir::new().expect("a folder");
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(3);
    std::fs::write(home.path().join("text"), &text).expect("written");
    let args = ["perplexity", "-m", model(), "-f", "text", "-c", "16", "--chunks", "2", "--json"];
    let report = run_in(&home, &args, b"").json();
    assert_eq!((&report["chunks"], &report["n_ctx"]), (&json!(2), &json!(16)));

    let ids = run(&["tokenize", "-m", model(), "--ids", "--no-parse-special", "-p", &text]).json();
    let ids = as_ids(&ids);
    assert_eq!(report["tokens"], ids.len());
    let bos = run(&["tokenize", "-m", model(), "--ids", "-p", ""]).json();
    let mut losses = Vec::new();
    for chunk in ids.chunks_exact(16).take(2) {
        let mut tokens = chunk.to_vec();
        if let Some(bos) = as_ids(&bos).first() {
            tokens[0] = *bos;
        }
        let all = logits(&json!(tokens), &["--all"]);
        for position in 8..15 {
            let row = as_floats(&all[position]);
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            losses.push(sum.ln() - row[chunk[position + 1] as usize]);
        }
    }
    let wanted = (losses.iter().sum::<f64>() / losses.len() as f64).exp();
    let found = report["ppl"].as_f64().expect("a number");
    assert!((found - wanted).abs() < 1e-4 * wanted, "{found} for {wanted}");
    assert_eq!(report["cumulative"][1], report["ppl"]);
    let told = run_in(&home, &args[..args.len() - 1], b"");
    assert!(told.stdout.starts_with("perplexity ") && told.stderr.contains("[2/2]"), "{told:?}");
}

#[test]
fn an_empty_store_is_listed() {
    let found = run(&["list"]);
    assert!(found.stderr.contains("hurtle pull"), "{found:?}");
    assert_eq!(run(&["list", "--json"]).ok(), "[]\n");
}

/// A model in the cache that Hugging Face's tools share: found, shown, used, and not removed.
#[test]
fn models_of_other_programs_are_used_in_place() {
    let home = TempDir::new().expect("a folder");
    let repo = home.path().join("hf/models--user--tiny");
    let snapshot = repo.join("snapshots").join("0".repeat(40));
    std::fs::create_dir_all(&snapshot).expect("a folder");
    std::fs::create_dir_all(repo.join("refs")).expect("a folder");
    std::fs::write(repo.join("refs/main"), "0".repeat(40)).expect("written");
    std::fs::copy(model(), snapshot.join("tiny-Q4_K_M.gguf")).expect("copied");

    let models = run_in(&home, &["list", "--json"], b"").json();
    let name = models[0]["name"].as_str().expect("a name");
    assert!(name.starts_with("hf:user/tiny"), "{models}");
    let size = std::fs::metadata(model()).expect("a file").len();
    assert_eq!(models[0]["bytes"], size);
    let table = run_in(&home, &["list"], b"").ok();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("NAME ") && lines[0].ends_with("SOURCE"), "{table}");
    assert!(lines[1].starts_with(name) && lines[1].contains(" kB "), "{table}");

    let pulled = run_in(&home, &["pull", name], b"").ok();
    assert!(pulled.contains("tiny-Q4_K_M.gguf"), "{pulled}");
    assert_eq!(
        run_in(&home, &["tokenize", "-m", name, "--ids", "--no-bos", "-p", "a"], b"").ok(),
        "[97]\n"
    );
    let removed = run_in(&home, &["rm", name], b"");
    assert_eq!(removed.status, Some(1), "{removed:?}");
    assert!(removed.stderr.contains("Hugging Face"), "{removed:?}");
}

#[test]
fn a_model_without_a_template_is_used_with_a_note() {
    let found = run(&["-m", model(), "-n", "1", "hi"]);
    assert!(found.stderr.contains("note: the model has no chat template"), "{found:?}");
    assert_eq!(found.status, Some(0));
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_failure() {
    use std::process::{Command, Stdio};
    let home = TempDir::new().expect("a folder");
    let generate = ["-m", model(), "--raw", "-p", "x", "--ignore-eos"];
    for args in
        [&["completions", "bash"][..], &["show", model(), "--tensors"], &["--help"], &generate]
    {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_hurtle"))
            .args(args)
            .env_clear()
            .envs(crate::common::environment(home.path()))
            .stdin(Stdio::null())
            .stdout(writer)
            .output()
            .expect("the program runs");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        assert!(output.status.success(), "{args:?}");
    }
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let home = TempDir::new().expect("a folder");
    let schema = r#"{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "maximum": 9}}}"#;
    std::fs::write(home.path().join("schema.json"), schema).expect("written");
    std::fs::write(home.path().join("yes.gbnf"), "root ::= \"yes\" | \"no\"\n").expect("written");
    let answer = |args: &[&str]| {
        let fixed = ["-m", model(), "--raw", "-p", "x", "-n", "900", "-s", "1", "--json"];
        let answer = run_in(&home, &[&fixed[..], args].concat(), b"").json();
        assert_eq!(answer["stop_reason"], "eos", "{answer}");
        answer["text"].as_str().expect("a text").to_owned()
    };
    for args in [["-j", schema], ["--json-schema", schema], ["-jf", "schema.json"]] {
        let value: Value = serde_json::from_str(&answer(&args)).expect("JSON");
        assert!(value["n"].as_i64().is_some_and(|n| n <= 9), "{value}");
    }
    let lark = "%llguidance {}\nstart: \"yes\" | \"no\"";
    for args in [
        ["--grammar-file", "yes.gbnf"],
        ["--grammar", "root ::= \"no\" | \"yes\""],
        ["--grammar", lark],
    ] {
        assert!(["yes", "no"].contains(&&*answer(&args)), "{args:?}");
    }
    let chat = ["chat", "-m", model(), "--grammar", "root ::= \"yes\" | \"no\""];
    let lines = run_in(&home, &chat, b"a\nb\n").ok();
    assert!(lines.lines().all(|line| ["yes", "no"].contains(&line)), "{lines}");
    assert_eq!(lines.lines().count(), 2, "{lines}");

    let refused = |args: &[&str], expected: &str| {
        let run = run_in(&home, &[&["-m", model(), "--raw", "-p", "x"], args].concat(), b"");
        assert_eq!(run.status, Some(2), "{run:?}");
        assert!(run.stderr.contains(expected), "{run:?}");
    };
    refused(&["-j", "{"], "--json-schema: expected JSON");
    refused(&["-j", "{\"type\": \"x\"}"], "--json-schema: Invalid type: x");
    refused(&["--grammar", "root ::= x"], "--grammar: line 1, column 10: no rule is called 'x'");
    refused(&["-j", "{}", "--grammar", "x"], "cannot be used with");
    refused(&["--logprobs", "2"], "--json");
}

#[test]
fn log_probabilities_are_those_of_the_logits() {
    let args = [
        "-m",
        model(),
        "--raw",
        "--json",
        "--logprobs",
        "3",
        "-n",
        "6",
        "-p",
        "The quick",
        "-s",
        "1",
    ];
    let exact = ["--activations", "f32", "-ctk", "f32", "-ctv", "f32", "--ignore-eos"];
    let answer = run(&[&args[..], &exact].concat()).json();
    let mut ids = as_ids(&answer["prompt_token_ids"]);
    let logprobs = answer["logprobs"].as_array().expect("log-probabilities");
    assert_eq!(logprobs.len(), 6);
    for (token, id) in logprobs.iter().zip(as_ids(&answer["token_ids"])) {
        assert_eq!(token["id"], id);
        let logits = as_floats(&logits(&json!(ids), &[]));
        let mass: f64 = logits.iter().map(|x| f64::from(*x as f32).exp()).sum();
        let mut expected: Vec<f64> =
            logits.iter().map(|x| f64::from(*x as f32) - mass.ln()).collect();
        let close = |found: &Value, expected: f64| {
            assert!(
                (found.as_f64().expect("a number") - expected).abs() < 1e-3,
                "{found} {expected}"
            );
        };
        close(&token["logprob"], expected[id as usize]);
        expected.sort_by(|a, b| b.total_cmp(a));
        let top = token["top"].as_array().expect("the best");
        assert_eq!(top.len(), 3);
        top.iter().zip(expected).for_each(|(token, expected)| close(&token["logprob"], expected));
        ids.push(id);
    }
}
