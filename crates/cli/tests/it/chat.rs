//! Conversations from a pipe. The golden model talks gibberish; what matters is what happens around it.
use crate::common::{Run, model, run_in};
use tempfile::TempDir;

/// Talks in the folder `home`: each line of `input` is a message or a command.
fn chat_in(home: &TempDir, more: &[&str], input: &str) -> Run {
    let args = ["chat", "-m", model(), "--chat-template", "chatml", "-n", "4", "-s", "1"];
    run_in(home, &[&args[..], more].concat(), input.as_bytes())
}

fn chat(more: &[&str], input: &str) -> Run {
    chat_in(&TempDir::new().expect("a folder"), more, input)
}

#[test]
fn each_line_is_a_turn_and_no_escape_codes_are_written() {
    let found = chat(&[], "hello\nagain\n/history\n");
    assert_eq!((found.status, found.stderr.as_str()), (Some(0), ""), "{found:?}");
    let history = found.stdout.split_once("you: hello\nmodel: ").expect("a history").1;
    assert!(history.contains("\nyou: again\nmodel: "), "{found:?}");
    assert!(!found.stdout.contains(">>>"), "{found:?}");
    let plain = chat(&[], "hello\n").ok();
    assert!(plain.ends_with('\n'));
}

#[test]
fn several_lines_can_be_one_message() {
    let text = chat(&[], "\"\"\"one\ntwo\"\"\"\n\nthree \\\nfour\n/history\n").ok();
    assert!(text.contains("you: one\ntwo\nmodel: "), "{text}");
    assert!(text.contains("you: three \nfour\nmodel: "), "{text}");
}

#[test]
fn commands_change_the_conversation() {
    let check = |input: &str, out: &str, err: &str| {
        let found = chat(&[], input);
        assert!(found.stdout.contains(out), "{input:?}: {found:?}");
        assert!(found.stderr.contains(err), "{input:?}: {found:?}");
        assert!(!found.stderr.contains("panicked"), "{found:?}");
    };
    check("/?\n", "/set parameter NAME VALUE", "");
    check("/help\n", "Ctrl-C stops an answer", "");
    check("/system Be\\\nbrief.\n/show system\n", "Be\nbrief.\n", "is set");
    check("/set system x\n/system\n/show system\n", "no system prompt\n", "removed");
    check("/set parameter temperature 0.5\n/show parameters\n", "temperature          0.5\n", "");
    check("hi\n/clear\n/history\n/show system\n", "\nno system prompt\n", "forgotten");
    check("/show info\n", "architecture       llama\n", "");
    check("/show template\n", "<|im_start|>", "");
    check("/show license\n", "no license in the file\n", "");
    check("/verbose on\nhi\n", "", "eval count:           4 token(s)");
    check("/set think\n", "", "does not know enable_thinking");
    check("/bye\n/show system\n", "", "");
    check("/frob\n", "", "error: /frob is no command");
    check("/set parameter temp hot\n", "", "error: temp: expected a number, found 'hot'");
    check("/regen\n", "", "error: nothing was answered yet");
    check("/read /no/such\n", "", "error: /no/such: cannot read");
    check("/load /no/such.gguf\nhi\n/history\n", "you: hi", "/no/such.gguf");
    assert_eq!(chat(&[], "/bye\n/show system\n").ok(), "");
    assert_eq!(chat(&[], "/frob\n").status, Some(1));
}

#[test]
fn an_answer_is_given_again() {
    let found = chat(&["--temp", "0"], "hi\n/regen\n/history\n").ok();
    assert_eq!(found.matches("you: hi").count(), 1, "{found}");
    assert_eq!(found.matches("model: ").count(), 1, "{found}");
}

#[test]
fn conversations_and_files_are_kept_and_read() {
    let home = TempDir::new().expect("a folder");
    chat_in(&home, &["-sys", "Be brief."], "one\n/save talk.json\n").ok();
    let found = chat_in(&home, &[], "/load talk.json\n/show system\n/history\n").ok();
    assert!(found.contains("Be brief.") && found.contains("you: one\nmodel: "), "{found}");

    std::fs::write(home.path().join("note.txt"), "a note").expect("written");
    let found = chat_in(&home, &[], "/read note.txt\nwhat?\n/history\n").ok();
    assert!(found.contains("you: a note\n\nwhat?\nmodel: "), "{found}");

    let refused = chat_in(&home, &[], "/save note.txt\n");
    assert!(refused.stderr.contains("is no saved conversation"), "{refused:?}");
    let refused = chat_in(&home, &[], "/load note.txt\n");
    assert!(refused.stderr.contains("no saved conversation"), "{refused:?}");
}

#[test]
fn another_model_is_loaded() {
    let other = crate::common::golden("archs/qwen2.gguf").display().to_string();
    let found = chat(&[], &format!("hi\n/load {other}\n/show info\n/history\n")).ok();
    assert!(found.contains("architecture       qwen2\n"), "{found}");
    assert!(!found.contains("you: hi"), "{found}");
}

/// Nothing is forgotten in silence.
#[test]
fn a_conversation_that_does_not_fit_is_cut_openly() {
    let input = "first question, which is long enough\nsecond question, also long\n/history\n";
    let found = chat(&["-c", "128"], input);
    assert!(found.stderr.contains("the context of 128"), "{found:?}");
    assert!(found.stderr.contains("forgetting the oldest turn, \"first question"), "{found:?}");
    assert!(found.stderr.contains("hint: /clear"), "{found:?}");
    let text = found.ok();
    assert!(!text.contains("you: first") && text.contains("you: second"), "{text}");

    let found = chat(&["-c", "64"], &format!("{}\nhi\n/history\n", "word ".repeat(30)));
    assert!(found.stderr.contains("the context holds 64"), "{found:?}");
    assert!(found.stdout.contains("you: hi") && !found.stdout.contains("word"), "{found:?}");
    assert_eq!(found.status, Some(1));
}
