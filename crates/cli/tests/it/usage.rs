//! What the program says when it is asked for help, or asked for nonsense.
use crate::common::{golden, model, run, run_with};

const COMMANDS: [&str; 16] = [
    "run",
    "chat",
    "show",
    "pull",
    "list",
    "rm",
    "tokenize",
    "detokenize",
    "render",
    "logits",
    "perplexity",
    "bench",
    "profile",
    "doctor",
    "synth",
    "completions",
];

/// The program fails with `status` and says all of `expected` on standard error, nothing on standard output.
#[track_caller]
fn check(args: &[&str], status: i32, expected: &[&str]) {
    check_with(args, b"", status, expected);
}

#[track_caller]
fn check_with(args: &[&str], input: &[u8], status: i32, expected: &[&str]) {
    let run = run_with(args, input);
    assert_eq!(run.status, Some(status), "{args:?}: {run:?}");
    assert_eq!(run.stdout, "", "{args:?}");
    let tells = run.stderr.lines().any(|line| line.starts_with("error: "));
    assert!(tells, "{args:?}: {}", run.stderr);
    for part in expected {
        assert!(run.stderr.contains(part), "{args:?}: expected {part:?} in {}", run.stderr);
    }
    assert!(!run.stderr.contains("panicked"), "{args:?}: {}", run.stderr);
}

#[test]
fn every_command_has_help_with_examples() {
    let help = run(&["--help"]).ok();
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
        let help = run(&[command, "--help"]).ok();
        assert!(help.contains("Usage: hurtle"), "{help}");
        assert!(help.contains("Example"), "{command}: {help}");
        assert_eq!(run(&["help", command]).ok(), help);
    }
    assert!(run(&["-h"]).ok().contains("Usage: hurtle"));
}

#[test]
fn the_version_is_told() {
    let expected = format!("hurtle {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&["--version"]).ok(), expected);
    assert_eq!(run(&["-V"]).ok(), expected);
}

#[test]
fn every_shell_is_served() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = run(&["completions", shell]).ok();
        assert!(script.contains("perplexity") && script.contains("hurtle"), "{shell}");
    }
    check(&["completions", "cmd"], 2, &["'cmd'", "bash"]);
}

#[test]
fn nonsense_on_the_command_line() {
    check(&["run", "--frobnicate", "hi"], 2, &["--frobnicate", "--help"]);
    check(&["--json-schema", "{", "hi"], 2, &["--json-schema", "JSON"]);
    check(&["-t", "many", "hi"], 2, &["many", "--threads"]);
    check(&["-ctk", "q4_0", "hi"], 2, &["q4_0", "--cache-type-k", "f16", "q8_0"]);
    check(&["-l", "5", "hi"], 2, &["--logit-bias", "15043-1.5"]);
    check(&["--top-p", "1.5", "hi"], 2, &["top_p", "1.5"]);
    check(&["--temp", "nan", "hi"], 2, &["temp", "NaN"]);
    check(&["--mirostat", "3", "hi"], 2, &["mirostat", "3"]);
    check(&["--samplers", "top_k;luck", "hi"], 2, &["luck", "hint: "]);
    check(&["--sampler-seq", "kz", "hi"], 2, &["z", "hint: "]);
    check(&["-r", "", "hi"], 2, &["--reverse-prompt"]);
    check(&["-b", "0", "hi"], 2, &["--batch-size 0"]);
    check(&["-t", "513", "hi"], 2, &["--threads 513", "512"]);
    check(&["-tb", "513", "hi"], 2, &["--threads 513", "512"]);
    check(&["--color", "blue", "hi"], 2, &["blue", "never"]);
    check(&["-p", "a", "b"], 2, &["cannot be used with"]);
    check(&["--raw", "-sys", "a", "b"], 2, &["cannot be used with"]);
    check(
        &["--chat-template", "chatml", "--chat-template-file", "x", "hi"],
        2,
        &["cannot be used with"],
    );
    check(&["run"], 2, &["no prompt", "hint: "]);
    check_with(&[], b" \n", 2, &["no prompt"]);
    check(&["rm"], 2, &["NAME"]);
    check(&["pull"], 2, &["MODEL"]);
    check(&["perplexity", "-m", "x"], 2, &["--file"]);
    check(&["perplexity", "-m", "x", "-f", "x", "-c", "1"], 2, &["--ctx-size 1", "at least 2"]);
}

#[test]
fn models_that_are_not_there() {
    check(&["-m", "/no/such.gguf", "hi"], 1, &["/no/such.gguf", "no such file"]);
    check(&["-m", "smolm2", "hi"], 1, &["smolm2", "smollm2", "hint: "]);
    check(&["show", "/no/such.gguf"], 1, &["/no/such.gguf"]);
    check(&["chat", "-m", "/no/such.gguf"], 1, &["/no/such.gguf"]);
    check(&["rm", "smollm2", "gemma3:270m"], 1, &["smollm2", "gemma3:270m"]);
    check(&["pull", "hf:user/repo", "--offline"], 1, &["OFFLINE"]);
    let folder = golden("archs").display().to_string();
    check(&["tokenize", "-m", &folder, "-p", "x"], 1, &["folder"]);
    let text = golden("archs/llama.json").display().to_string();
    check(&["-m", &text, "hi"], 1, &["llama.json", "GGUF"]);
}

#[test]
fn files_that_cannot_be_read() {
    let model = model();
    check(&["-m", model, "-f", "/no/such.txt"], 1, &["/no/such.txt: cannot read"]);
    check(&["-m", model, "-sysf", "/no/such.txt", "hi"], 1, &["/no/such.txt: cannot read"]);
    check(
        &["-m", model, "--chat-template-file", "/no.jinja", "hi"],
        1,
        &["/no.jinja: cannot read"],
    );
    check(&["perplexity", "-m", model, "-f", "/no/such.txt"], 1, &["/no/such.txt: cannot read"]);
    let not_text = &b"ab\xff"[..];
    check_with(&["tokenize", "-m", model], not_text, 1, &["standard input", "0xff", "offset 2"]);
}

#[test]
fn ids_that_do_not_exist() {
    let model = model();
    check(&["logits", "-m", model, "--ids", "1,272"], 2, &["number 2", "below 272", "found 272"]);
    check(&["logits", "-m", model, "--ids", "1,x"], 2, &["number 2", "'x'", "hint: "]);
    check(&["logits", "-m", model, "--ids", ""], 2, &["at least one"]);
    check(&["detokenize", "-m", model, "--ids", "4294967295"], 2, &["below 272"]);
    check_with(&["detokenize", "-m", model], b"[1, 2", 2, &["'[1'"]);
}

#[test]
fn templates_that_do_not_work() {
    let model = model();
    check(&["-m", model, "--chat-template", "nope", "hi"], 2, &["nope", "chatml", "hint: "]);
    check(&["-m", model, "--chat-template", "{% if %}", "hi"], 1, &["--chat-template", "line 1"]);
    let raises = "{{ raise_exception('only jokes') }}";
    check(&["-m", model, "--chat-template", raises, "hi"], 1, &["only jokes"]);
    check_with(&["render", "--chat-template", raises], b"{\"messages\": []}", 1, &["only jokes"]);
    check_with(&["render"], b"{\"messages\": []}", 2, &["--chat-template-file", "hint: "]);
    check_with(&["render", "--chat-template", "chatml"], b"{", 1, &["no JSON", "hint: "]);
}

#[test]
fn what_does_not_fit() {
    let model = model();
    let long = "word ".repeat(200);
    check(&["-m", model, "-c", "64", "--raw", "-p", &long], 1, &["64", "--ctx-size"]);
    let ids = vec!["1"; 65].join(",");
    check(&["logits", "-m", model, "-c", "64", "--ids", &ids], 1, &["65", "64"]);
    let short = golden("tokenizers/gpt-2.gguf.out").display().to_string();
    check(
        &["perplexity", "-m", model, "-f", &short, "-c", "16000"],
        1,
        &["16000 tokens of one chunk", "hint: "],
    );
}

#[test]
fn a_gpu_is_not_used_and_that_is_said() {
    let found = run(&["-m", "/no/such.gguf", "-ngl", "99", "hi"]);
    assert!(found.stderr.contains("note: --gpu-layers 99"), "{found:?}");
    let found = run(&["-m", "/no/such.gguf", "-ngl", "0", "hi"]);
    assert!(!found.stderr.contains("note: "), "{found:?}");
}
