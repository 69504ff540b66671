use super::*;
use crate::ChatTemplate;
use crate::tools::format::{AnswerFormat, tests::by_name};
use proptest::prelude::*;
use serde_json::json;

fn tools() -> Vec<Value> {
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {
            "type": "object", "properties": {"s": {"type": "string"}, "n": {"type": "integer"}}}}})
    };
    vec![tool("f"), tool("get_weather")]
}

/// What an answer in pieces is read as; a call as `[name arguments]`, reasoning as `(text)`.
fn read(format: AnswerFormat, how: ReadAnswer, pieces: &[&str]) -> String {
    let mut parser = AnswerParser::new(format, how);
    let mut found = Vec::new();
    for piece in pieces {
        parser.push(piece, &mut found);
    }
    parser.finish(&mut found);
    let mut text = String::new();
    for (i, piece) in found.iter().enumerate() {
        let (before, after) = (i.checked_sub(1).map(|i| &found[i]), found.get(i + 1));
        let opens = !matches!(before, Some(AnswerPiece::Reasoning(_)));
        let closes = !matches!(after, Some(AnswerPiece::Reasoning(_)));
        match piece {
            AnswerPiece::Content(content) => text += content,
            AnswerPiece::Reasoning(thought) => {
                let (open, close) = (if opens { "(" } else { "" }, if closes { ")" } else { "" });
                text += &format!("{open}{thought}{close}");
            }
            AnswerPiece::CallBegin(name) => text += &format!("[{name} "),
            AnswerPiece::CallArguments(arguments) => text += arguments,
            AnswerPiece::CallEnd => text.push(']'),
        }
    }
    text
}

fn check_with(name: &str, how: &ReadAnswer, answer: &str, expected: &str) {
    let format = by_name(name);
    assert_eq!(read(format, how.clone(), &[answer]), expected, "{name}: {answer}");
    let chars: Vec<String> = answer.chars().map(String::from).collect();
    let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
    assert_eq!(read(format, how.clone(), &chars), expected, "{name}, by characters: {answer}");
}

fn check(name: &str, answer: &str, expected: &str) {
    check_with(name, &ReadAnswer { tools: tools(), ..ReadAnswer::default() }, answer, expected);
}

#[test]
fn a_further_call_that_is_cut_off_early_is_no_text() {
    let hermes = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 1}}\n</tool_call>";
    for n in 1..=hermes.find("\"arg").expect("arguments") {
        check("hermes", &format!("{hermes}\n{}", &hermes[..n]), "[f {\"n\": 1}]");
    }
    // What is no beginning of a call is text.
    check("hermes", &format!("{hermes}\n<tool_x"), "[f {\"n\": 1}]\n<tool_x");
    // A bracket that is forgotten is no cut.
    let open = hermes.replace("}}\n</tool_call>", "}");
    check("hermes", &format!("{hermes}\n{open}"), "[f {\"n\": 1}][f {\"n\": 1}]");
    let mistral = "[TOOL_CALLS]f[ARGS]{\"n\": 1}";
    for n in 1.."[TOOL_CALLS]".len() {
        check("mistral", &format!("{mistral}{}", &mistral[..n]), "[f {\"n\": 1}]");
    }
    let coder =
        "<tool_call>\n<function=f>\n<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>";
    for n in 1..="<tool_call>\n<function=".len() {
        check("qwen3-coder", &format!("{coder}\n{}", &coder[..n]), "[f {\"n\":1}]");
    }
}

#[test]
fn calls_of_every_format() {
    let hermes = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 1}}\n</tool_call>";
    check("hermes", hermes, "[f {\"n\": 1}]");
    check(
        "hermes",
        &format!("Let me see.\n{hermes}\n{hermes}\n"),
        "Let me see.[f {\"n\": 1}][f {\"n\": 1}]",
    );
    check("llama3", "{\"name\": \"f\", \"parameters\": {\"n\": 1}}", "[f {\"n\": 1}]");
    check(
        "llama3",
        "<|python_tag|>{\"name\": \"g\", \"parameters\": {}}; {\"name\": \"f\", \"parameters\": {}}",
        "[g {}][f {}]",
    );
    check(
        "mistral",
        "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"n\": 1}, \"id\": \"012345678\"}, {\"name\": \"g\", \"arguments\": {}}]",
        "[f {\"n\": 1}][g {}]",
    );
    check(
        "mistral",
        "So.[TOOL_CALLS]f[ARGS]{\"n\": 1}[TOOL_CALLS]g[CALL_ID]012345678[ARGS]{}",
        "So.[f {\"n\": 1}][g {}]",
    );
    check("mistral", "[TOOL_CALLS]f{\"n\": 1}", "[f {\"n\": 1}]");
    let deepseek = "a<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"n\": 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    check("deepseek", deepseek, "a[f {\"n\": 1}][g {}]");
    let old = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"n\": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    check("deepseek", old, "[f {\"n\": 1}]");
    check(
        "kimi",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"n\": 1}<|tool_call_end|><|tool_calls_section_end|>",
        "[f {\"n\": 1}]",
    );
    let coder = "<tool_call>\n<function=f>\n<parameter=s>\n1\n</parameter>\n<parameter=n>\n2\n</parameter>\n</function>\n</tool_call>";
    check("qwen3-coder", coder, "[f {\"s\":\"1\",\"n\":2}]");
    check("qwen3-coder", "<function=f></function>", "[f {}]");
    check("qwen3-coder", hermes, "[f {\"n\": 1}]");
    check(
        "glm",
        "<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>1</arg_value>\n</tool_call>\n<tool_call>g</tool_call>",
        "[f {\"s\":\"1\"}][g {}]",
    );
    check(
        "minimax",
        "<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"n\">3</parameter>\n</invoke>\n</minimax:tool_call>",
        "[f {\"n\":3}]",
    );
    check(
        "function-gemma",
        "<start_function_call>call:f{s:<escape>a, b<escape>,n:1}<end_function_call>",
        "[f {\"s\":\"a, b\",\"n\":1}]",
    );
    check(
        "gemma 4",
        "<|channel>thought\nhm\n<channel|><|tool_call>call:f{s:<|\"|>}<tool_call|><|\"|>}<tool_call|>",
        "(hm)[f {\"s\":\"}<tool_call|>\"}]",
    );
    check(
        "lfm2",
        "<|tool_call_start|>[f(s=\"a\", n=1), g()]<|tool_call_end|>",
        "[f {\"s\":\"a\",\"n\":1}][g {}]",
    );
    check(
        "lfm2",
        "<|tool_call_start|>[{\"name\": \"f\", \"arguments\": {}}]<|tool_call_end|>",
        "[f {}]",
    );
    check(
        "granite",
        "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"n\": 1}}, {\"name\": \"g\", \"arguments\": {}}]",
        "[f {\"n\": 1}][g {}]",
    );
    check(
        "command-r",
        "<|START_THINKING|>hm<|END_THINKING|><|START_ACTION|>[\n{\"tool_call_id\": \"0\", \"tool_name\": \"f\", \"parameters\": {}}\n]<|END_ACTION|>",
        "(hm)[f {}]",
    );
    check("nemotron", "<TOOLCALL>[{\"name\": \"f\", \"arguments\": {}}]</TOOLCALL>", "[f {}]");
}

#[test]
fn a_list_of_calls_is_no_list_by_itself() {
    let calls = "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}]";
    check("mistral-nemo", calls, "[f {}]");
    check("mistral-nemo", "[TOOL_CALL]", "[TOOL_CALL]");
    check("mistral-nemo", "[{\"name\": \"f\"}]", "[f {}]");
}

#[test]
fn channels_of_gpt_oss() {
    check(
        "gpt-oss",
        "<|channel|>analysis<|message|>hm <|end|><|start|>assistant<|channel|>final<|message|>Hi.",
        "(hm)Hi.",
    );
    check(
        "gpt-oss",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"n\": 1}<|call|>",
        "(hm)I look.[f {\"n\": 1}]",
    );
    check("gpt-oss", " to=functions.f<|channel|>commentary json<|message|>{}", "[f {}]");
    check("gpt-oss", "<|channel|>commentary to=functions.f<|message|>", "[f {}]");
    check(
        "gpt-oss",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b",
        "(a\n\nb)",
    );
    check("gpt-oss", "just text, to=x <|message|>", "just text, to=x <|message|>");
    check(
        "gpt-oss",
        "<|channel|>commentary to=functions.f<|message|>{'a'}<|end|>",
        "<|channel|>commentary to=functions.f<|message|>{'a'}",
    );
    check(
        "gpt-oss",
        &format!("assistant{}<|message|>x", "x".repeat(300)),
        &format!("assistant{}<|message|>x", "x".repeat(300)),
    );
}

#[test]
fn reasoning() {
    check("hermes", "<think>\nhm\n</think>\n\nHi. ", "(hm)Hi. ");
    check("hermes", " \n<think>\n\n</think>\n\nHi.", "Hi.");
    check("hermes", "Hi. <think>no</think>", "Hi. <think>no</think>");
    check("hermes", "<think>never closed </thin", "(never closed </thin)");
    check("hermes", " <thing> ", " <thing> ");
    let how = ReadAnswer { thinking: true, ..ReadAnswer::default() };
    check_with(
        "hermes",
        &how,
        "\nhm </thinks> \n</think>\n\n<think>Hi.\n",
        "(hm </thinks>)<think>Hi.\n",
    );
    check_with("mistral", &ReadAnswer::default(), "[THINK]hm[/THINK]Hi.", "[THINK]hm[/THINK]Hi.");
}

#[test]
fn what_is_no_call_is_content() {
    let same = |name: &str, answer: &str| check(name, answer, answer);
    same("hermes", "a < b, <tool_callx> {\"name\": \"f\"}");
    same("hermes", "<tool_call>\n{\"name\": \"f\", \"arguments\": {'n': 1}}\n</tool_call>");
    same("hermes", "<tool_call>\n{\"name\": \"f\", \"arguments\": [1]}</tool_call>");
    same("hermes", "<tool_call>{\"nam\": \"f\"}</tool_call> x");
    same("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"cut");
    same("hermes", "<tool_call> f </tool_call>");
    same("hermes", "<tool_call");
    same("llama3", "{\"name\": \"Bob\", \"parameters\": {}}");
    same("llama3", "{\"city\": \"Paris\"} {\"name\": \"f\"}");
    same("llama3", "[1, 2] and so on");
    same("llama3", "<|python_tag|>print(1)");
    same("mistral", "[TOOL_CALLS]no name[ARGS]{}");
    same("mistral", "[TOOL_CALLS]f[ARGS]{\"n\": 1");
    same("deepseek", "<｜tool▁call▁begin｜>a\nb");
    same("qwen3-coder", "<function=f>x</function>");
    same("qwen3-coder", "<function=f><parameter=s>x");
    same("function-gemma", "<start_function_call>call:f{s:x}<end_function_call>");
    same("lfm2", "<|tool_call_start|>f<|tool_call_end|>");
    // Behind what is none there may be one.
    check("hermes", "<tool_call>x<tool_call>{\"name\": \"f\"}</tool_call>y", "<tool_call>x[f {}]y");
    // Without tools nothing is a call.
    let how = ReadAnswer::default();
    let call = " <tool_call>{\"name\": \"f\"}</tool_call> ";
    check_with("hermes", &how, call, call);
}

#[test]
fn small_mistakes_are_forgiven() {
    check(
        "hermes",
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 1}\n</tool_call>",
        "[f {\"n\": 1}]",
    );
    check("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"n\": 1}", "[f {\"n\": 1}]");
    check("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {}}}</tool_call>", "[f {}]");
    check(
        "hermes",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"a\nb\"}}</tool_call>",
        "[f {\"s\": \"a\\u000ab\"}]",
    );
    check(
        "hermes",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"n\\\": 1}\"}</tool_call>",
        "[f {\"n\": 1}]",
    );
    check("hermes", "<tool_call>{\"arguments\": null, \"name\": \"f\"}</tool_call>", "[f {}]");
    check("hermes", "<tool_call>{\"name\": \"f\"}\n{\"name\": \"g\"}</tool_call>", "[f {}][g {}]");
    check(
        "hermes",
        "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"n\": 1}}}",
        "[f {\"n\": 1}]",
    );
}

#[test]
fn a_long_call_is_told_as_it_comes() {
    let arguments = json!({"s": "x".repeat(500)}).to_string();
    let call = format!(
        "<tool_call>{{\"name\": \"f\", \"arguments\": {arguments}, \"id\": 1}}</tool_call>!"
    );
    check("hermes", &call, &format!("[f {arguments}]!"));
    check("mistral", &format!("[TOOL_CALLS]f[ARGS]{arguments}"), &format!("[f {arguments}]"));
    let mut parser = AnswerParser::new(
        by_name("hermes"),
        ReadAnswer { tools: tools(), ..ReadAnswer::default() },
    );
    let mut found = Vec::new();
    parser.push(&call[..400], &mut found);
    let [AnswerPiece::CallBegin(name), AnswerPiece::CallArguments(begin)] = &found[..] else {
        panic!("{found:?}")
    };
    assert!(name == "f" && arguments.starts_with(begin) && begin.len() > 350, "{begin}");
    // Arguments that are no JSON after all, and those that are cut off, reach the client as they are.
    let (wrong, cut) = (format!("{}\" oops @", &arguments[..400]), &arguments[..400]);
    check(
        "hermes",
        &format!("<tool_call>{{\"name\": \"f\", \"arguments\": {wrong}</tool_call>!"),
        &format!("[f {wrong}]!"),
    );
    check(
        "hermes",
        &format!("<tool_call>{{\"name\": \"f\", \"arguments\": {cut}"),
        &format!("[f {cut}]"),
    );
}

#[test]
fn one_call_where_one_is_asked_for() {
    let how = ReadAnswer { tools: tools(), single_call: true, ..ReadAnswer::default() };
    check_with(
        "hermes",
        &how,
        "<tool_call>{\"name\": \"f\"}</tool_call><tool_call>{\"name\": \"g\"}</tool_call>",
        "[f {}]",
    );
}

/// What a format writes, it reads.
#[test]
fn written_calls_are_read() {
    for name in [
        "generic",
        "hermes",
        "llama3",
        "mistral-nemo",
        "mistral",
        "deepseek",
        "kimi",
        "qwen3-coder",
        "seed-oss",
        "glm",
        "minimax",
        "function-gemma",
        "gemma 4",
        "lfm2",
        "granite",
        "phi-4",
        "command-r",
        "nemotron",
        "gpt-oss",
    ] {
        let calls = [
            ("f".to_owned(), json!({"s": "a \"b\"", "n": 3})),
            ("get_weather".to_owned(), json!({"o": {"k": [true, null]}})),
        ];
        let format = by_name(name);
        let how = ReadAnswer { tools: tools(), ..ReadAnswer::default() };
        let mut parser = AnswerParser::new(format, how);
        let mut found = Vec::new();
        parser.push(&format.write(&calls), &mut found);
        parser.finish(&mut found);
        let mut read: Vec<(String, String)> = Vec::new();
        for piece in &found {
            match piece {
                AnswerPiece::CallBegin(name) => read.push((name.clone(), String::new())),
                AnswerPiece::CallArguments(text) => read.last_mut().expect("a call").1 += text,
                AnswerPiece::CallEnd => {}
                other => panic!("{name}: {other:?}"),
            }
        }
        let parse =
            |(name, text): (String, String)| (name, serde_json::from_str(&text).expect("JSON"));
        assert_eq!(read.into_iter().map(parse).collect::<Vec<(String, Value)>>(), calls, "{name}");
    }
}

/// Parts of answers, right and wrong, of every format.
fn part() -> impl Strategy<Value = String> {
    let parts = vec![
        "<think>",
        "</think>",
        "[THINK]",
        "<tool_call>",
        "</tool_call>",
        "\n",
        " ",
        "a",
        "é日",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "{\"name\": \"f\", \"arguments\": ",
        "{\"n\": 1}",
        "{\"s\": \"a\\\"b\"}",
        "\"",
        "\\",
        "{\"name\": \"f\"}",
        "'",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "f",
        "get_weather",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "```json",
        "```",
        "function",
        "<function=f>",
        "<parameter=s>",
        "</parameter>",
        "</function>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "<start_function_call>",
        "call:f{",
        "<escape>",
        "<end_function_call>",
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        "f(s=\"a\")",
        "<|channel|>",
        "analysis",
        "commentary",
        " to=functions.f",
        "<|message|>",
        "<|end|>",
        "<|start|>",
        "assistant",
        "<|call|>",
        "<|python_tag|>",
        "<|tool_call|>",
        "<",
        "<|",
        "</",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    ];
    prop::sample::select(parts).prop_map(str::to_owned)
}

const NAMES: [&str; 12] = [
    "generic",
    "hermes",
    "llama3",
    "mistral-nemo",
    "mistral",
    "deepseek",
    "qwen3-coder",
    "glm",
    "function-gemma",
    "lfm2",
    "granite",
    "gpt-oss",
];

proptest! {
    #[test]
    fn pieces_do_not_matter(
        name in prop::sample::select(NAMES.to_vec()),
        parts in prop::collection::vec(part(), 0..30),
        cuts in prop::collection::vec(0..400usize, 0..20),
        thinking: bool,
        single_call: bool,
        any_tools in 0..5,
    ) {
        let tools = if any_tools > 0 { tools() } else { Vec::new() };
        let how = ReadAnswer { thinking, tools, single_call };
        let answer = parts.concat();
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&at| answer.is_char_boundary(at)).collect();
        cuts.extend([0, answer.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]]).collect();
        let whole = read(by_name(name), how.clone(), &[&answer]);
        prop_assert_eq!(read(by_name(name), how.clone(), &pieces), whole.as_str());
        let chars: Vec<String> = answer.chars().map(String::from).collect();
        let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
        prop_assert_eq!(read(by_name(name), how, &chars), whole);
    }

    /// Letters that are no markup come out, in their order.
    #[test]
    fn nothing_is_lost(
        name in prop::sample::select(NAMES.to_vec()),
        parts in prop::collection::vec(part(), 0..12),
    ) {
        // A digit that is in none of the parts stands between them.
        let answer = parts.join("7");
        let how = ReadAnswer { tools: tools(), ..ReadAnswer::default() };
        let found = read(by_name(name), how, &[&answer]);
        let lost = answer.matches('7').count() - found.matches('7').count();
        // Headers of gpt-oss and names of other formats are markup in which a digit may stand.
        let in_markup = answer.matches("functions.f").count() + answer.matches("<|channel|>").count()
            + answer.matches("<|start|>").count() + answer.matches("[CALL_ID]").count() + answer.matches("assistant").count();
        prop_assert!(lost <= 12 * in_markup, "{} of {answer:?} lost: {found:?}", lost);
    }
}

#[test]
fn long_answers_take_linear_time() {
    // Each of these would take minutes if any part were read again and again.
    let n = 200_000;
    for unit in [
        "<",
        " ",
        "\n",
        "<tool_call>",
        "<tool_call>{",
        "{\"name\": \"f\", \"arguments\": {",
        "[TOOL_CALLS]",
        "<think>",
        "{\"a\":",
        "\"",
        "[",
        "<|channel|>",
        "`",
    ] {
        for name in NAMES {
            let how = ReadAnswer { tools: tools(), ..ReadAnswer::default() };
            let mut parser = AnswerParser::new(by_name(name), how);
            let mut found = Vec::new();
            for _ in 0..n / unit.len() {
                parser.push(unit, &mut found);
            }
            parser.finish(&mut found);
            assert!(found.len() <= n, "{name}: {unit}");
        }
    }
}

#[test]
fn a_prompt_may_open_reasoning() {
    let template =
        ChatTemplate::new("{{ messages[0].content }}<think>\n", "", "").expect("compiles");
    assert!(template.answer_format().opens_reasoning("a<think>\n"));
    assert!(!template.answer_format().opens_reasoning("a<think>\n</think>"));
}
