//! Chat formats known by name, for files without a template and for `--chat-template NAME`.
//!
//! Names and texts are llama.cpp's; the formats are those their models were trained with. Each is
//! a short Jinja template in the frame of [`source`], so there is one renderer for everything.

/// One format: what comes first, for each message (`r` its role, `t` its text), and to open the
/// assistant's turn.
struct Format {
    name: &'static str,
    start: &'static str,
    message: &'static str,
    prompt: &'static str,
}

const fn format(
    name: &'static str,
    start: &'static str,
    message: &'static str,
    prompt: &'static str,
) -> Format {
    Format { name, start, message, prompt }
}

/// Begins with BOS, if the model has one.
const BOS: &str = "{{ bos_token }}";
/// For formats whose user turns hold everything up to the assistant's next message.
const BOS_TURNS: &str = "{{ bos_token }}{% set ns = namespace(open=false) %}";
/// For formats that put the system's text into the next user message.
const BOS_NO_SYSTEM: &str = "{{ bos_token }}{% set ns = namespace(system='') %}";

#[rustfmt::skip]
const FORMATS: &[Format] = &[
    format("chatml", BOS,
        "<|im_start|>{{ r }}\n{{ t }}<|im_end|>\n",
        "<|im_start|>assistant\n"),
    format("llama2", BOS_TURNS,
        "{% if not ns.open %}[INST] {% set ns.open = true %}{% endif %}{% if r == 'system' %}{{ t }}\n{% elif r == 'user' %}{{ t }} [/INST]{% else %}{{ t }}</s>{% set ns.open = false %}{% endif %}",
        ""),
    format("llama2-sys", BOS_TURNS,
        "{% if not ns.open %}[INST] {% set ns.open = true %}{% endif %}{% if r == 'system' %}<<SYS>>\n{{ t }}\n<</SYS>>\n\n{% elif r == 'user' %}{{ t }} [/INST]{% else %}{{ t }}</s>{% set ns.open = false %}{% endif %}",
        ""),
    format("llama2-sys-bos", BOS_TURNS,
        "{% if not ns.open %}{{ '' if loop.first else '<s>' }}[INST] {% set ns.open = true %}{% endif %}{% if r == 'system' %}<<SYS>>\n{{ t }}\n<</SYS>>\n\n{% elif r == 'user' %}{{ t }} [/INST]{% else %}{{ t }}</s>{% set ns.open = false %}{% endif %}",
        ""),
    format("llama2-sys-strip", BOS_TURNS,
        "{% if not ns.open %}[INST] {% set ns.open = true %}{% endif %}{% if r == 'system' %}<<SYS>>\n{{ t|trim }}\n<</SYS>>\n\n{% elif r == 'user' %}{{ t|trim }} [/INST]{% else %}{{ t|trim }}</s>{% set ns.open = false %}{% endif %}",
        ""),
    format("mistral-v1", BOS_TURNS,
        "{% if not ns.open %} [INST] {% set ns.open = true %}{% endif %}{% if r == 'system' %}{{ t }}\n\n{% elif r == 'user' %}{{ t }} [/INST]{% else %} {{ t }}</s>{% set ns.open = false %}{% endif %}",
        ""),
    format("mistral-v3", BOS_TURNS,
        "{% if not ns.open %}[INST] {% set ns.open = true %}{% endif %}{% if r == 'system' %}{{ t }}\n\n{% elif r == 'user' %}{{ t }}[/INST]{% else %} {{ t|trim }}</s>{% set ns.open = false %}{% endif %}",
        ""),
    format("mistral-v3-tekken", BOS_TURNS,
        "{% if not ns.open %}[INST]{% set ns.open = true %}{% endif %}{% if r == 'system' %}{{ t }}\n\n{% elif r == 'user' %}{{ t }}[/INST]{% else %}{{ t }}</s>{% set ns.open = false %}{% endif %}",
        ""),
    format("mistral-v7", BOS,
        "{% if r == 'system' %}[SYSTEM_PROMPT] {{ t }}[/SYSTEM_PROMPT]{% elif r == 'user' %}[INST] {{ t }}[/INST]{% else %} {{ t }}</s>{% endif %}",
        ""),
    format("mistral-v7-tekken", BOS,
        "{% if r == 'system' %}[SYSTEM_PROMPT]{{ t }}[/SYSTEM_PROMPT]{% elif r == 'user' %}[INST]{{ t }}[/INST]{% else %}{{ t }}</s>{% endif %}",
        ""),
    format("phi3", BOS,
        "<|{{ r }}|>\n{{ t }}<|end|>\n",
        "<|assistant|>\n"),
    format("phi4", BOS,
        "<|im_start|>{{ r }}<|im_sep|>{{ t }}<|im_end|>",
        "<|im_start|>assistant<|im_sep|>"),
    format("falcon3", BOS,
        "<|{{ r }}|>\n{{ t }}\n",
        "<|assistant|>\n"),
    format("zephyr", BOS,
        "<|{{ r }}|>\n{{ t }}<|endoftext|>\n",
        "<|assistant|>\n"),
    format("monarch", BOS,
        "{{ '' if loop.first else '<s>' }}{{ r }}\n{{ t }}</s>\n",
        "<s>assistant\n"),
    format("gemma", BOS_NO_SYSTEM,
        "{% if r == 'system' %}{% set ns.system = ns.system ~ t|trim %}{% else %}<start_of_turn>{{ 'model' if r == 'assistant' else r }}\n{% if ns.system and r != 'assistant' %}{{ ns.system }}{{ '\\n\\n' }}{% set ns.system = '' %}{% endif %}{{ t|trim }}<end_of_turn>\n{% endif %}",
        "<start_of_turn>model\n"),
    format("orion", BOS_NO_SYSTEM,
        "{% if r == 'system' %}{% set ns.system = ns.system ~ t %}{% elif r == 'user' %}Human: {% if ns.system %}{{ ns.system }}{{ '\\n\\n' }}{% set ns.system = '' %}{% endif %}{{ t }}\n\nAssistant: </s>{% else %}{{ t }}</s>{% endif %}",
        ""),
    format("openchat", BOS,
        "{% if r != 'system' %}GPT4 Correct {{ r[:1]|upper }}{{ r[1:] }}: {% endif %}{{ t }}<|end_of_turn|>",
        "GPT4 Correct Assistant:"),
    format("vicuna", BOS,
        "{% if r == 'system' %}{{ t }}\n\n{% elif r == 'user' %}USER: {{ t }}\n{% elif r == 'assistant' %}ASSISTANT: {{ t }}</s>\n{% endif %}",
        "ASSISTANT:"),
    format("vicuna-orca", BOS,
        "{% if r == 'system' %}SYSTEM: {{ t }}\n{% elif r == 'user' %}USER: {{ t }}\n{% elif r == 'assistant' %}ASSISTANT: {{ t }}</s>\n{% endif %}",
        "ASSISTANT:"),
    format("deepseek", BOS,
        "{% if r == 'system' %}{{ t }}{% elif r == 'user' %}### Instruction:\n{{ t }}\n{% elif r == 'assistant' %}### Response:\n{{ t }}\n<|EOT|>\n{% endif %}",
        "### Response:\n"),
    format("deepseek2", BOS,
        "{% if r == 'system' %}{{ t }}\n\n{% elif r == 'user' %}User: {{ t }}\n\n{% elif r == 'assistant' %}Assistant: {{ t }}<｜end▁of▁sentence｜>{% endif %}",
        "Assistant:"),
    format("deepseek3", BOS,
        "{% if r == 'system' %}{{ t }}\n\n{% elif r == 'user' %}<｜User｜>{{ t }}{% elif r == 'assistant' %}<｜Assistant｜>{{ t }}<｜end▁of▁sentence｜>{% endif %}",
        "<｜Assistant｜>"),
    format("deepseek-ocr", BOS,
        "{{ t }}",
        ""),
    format("command-r", BOS,
        "{% set name = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[r] %}{% if name %}<|START_OF_TURN_TOKEN|><|{{ name }}_TOKEN|>{{ t|trim }}<|END_OF_TURN_TOKEN|>{% endif %}",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"),
    format("llama3", BOS,
        "<|start_header_id|>{{ r }}<|end_header_id|>\n\n{{ t|trim }}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    format("chatglm3", "[gMASK]sop",
        "<|{{ r }}|>\n {{ t }}",
        "<|assistant|>"),
    format("chatglm4", "[gMASK]<sop>",
        "<|{{ r }}|>\n{{ t }}",
        "<|assistant|>\n"),
    format("glmedge", BOS,
        "<|{{ r }}|>\n{{ t }}",
        "<|assistant|>"),
    format("minicpm", BOS,
        "{% if r == 'user' %}<用户>{{ t|trim }}<AI>{% else %}{{ t|trim }}{% endif %}",
        ""),
    format("exaone3", BOS,
        "{% if r == 'user' %}[|user|]{{ t|trim }}\n{% elif r in ['system', 'assistant'] %}[|{{ r }}|]{{ t|trim }}[|endofturn|]\n{% endif %}",
        "[|assistant|]"),
    format("exaone4", BOS,
        "{% if r == 'user' %}[|user|]{{ t|trim }}\n{% elif r in ['system', 'assistant', 'tool'] %}[|{{ r }}|]{{ t|trim }}[|endofturn|]\n{% endif %}",
        "[|assistant|]"),
    format("exaone-moe", BOS,
        "{% if r in ['system', 'user', 'assistant', 'tool'] %}<|{{ r }}|>\n{{ t|trim }}<|endofturn|>\n{% endif %}",
        "<|assistant|>\n"),
    format("rwkv-world", BOS,
        "{% if r in ['system', 'user', 'assistant'] %}{{ r|title }}: {{ t|trim }}\n\n{% endif %}",
        "{% if messages and messages[-1].role == 'user' %}Assistant:{% endif %}"),
    format("granite", BOS,
        "<|start_of_role|>{{ r }}<|end_of_role|>{% if r == 'assistant_tool_call' %}<|tool_call|>{% endif %}{{ t }}<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>"),
    format("granite-4.0", BOS, GRANITE_4, "<|start_of_role|>assistant<|end_of_role|>"),
    format("granite-4.1", BOS, GRANITE_4, "<|start_of_role|>assistant<|end_of_role|>"),
    format("gigachat", "<s>",
        "{% if r == 'system' and loop.first %}{{ t }}<|message_sep|>{% elif r == 'user' %}user<|role_sep|>{{ t }}<|message_sep|>available functions<|role_sep|>[]<|message_sep|>{% elif r == 'assistant' %}assistant<|role_sep|>{{ t }}<|message_sep|>{% endif %}",
        "assistant<|role_sep|>"),
    format("megrez", BOS,
        "<|role_start|>{{ r }}<|role_end|>{{ t }}<|turn_end|>",
        "<|role_start|>assistant<|role_end|>"),
    format("yandex", BOS,
        "{% if r == 'user' %} Пользователь: {{ t }}\n\n{% elif r == 'assistant' %} Ассистент: {{ t }}\n\n{% endif %}",
        " Ассистент:[SEP]"),
    format("bailing", BOS,
        "<role>{{ 'HUMAN' if r == 'user' else r|upper }}</role>{{ t }}",
        "<role>ASSISTANT</role>"),
    format("bailing-think", BOS,
        "<role>{{ 'HUMAN' if r == 'user' else r|upper }}</role>{{ t }}",
        "<role>ASSISTANT</role><think>"),
    format("bailing2", "{{ bos_token }}{% if not messages or messages[0].role != 'system' %}<role>SYSTEM</role>detailed thinking off<|role_end|>{% endif %}",
        "<role>{{ 'HUMAN' if r == 'user' else r|upper }}</role>{{ t }}<|role_end|>",
        "<role>ASSISTANT</role>"),
    format("llama4", BOS,
        "<|header_start|>{{ r }}<|header_end|>\n\n{{ t|trim }}<|eot|>",
        "<|header_start|>assistant<|header_end|>\n\n"),
    format("smolvlm", "<|im_start|>",
        "{% if r == 'system' %}{{ t }}\n\n{% else %}{{ 'User' if r == 'user' else 'Assistant' }}: {{ t }}<end_of_utterance>\n{% endif %}",
        "Assistant:"),
    format("hunyuan-moe", "",
        "{% if r == 'assistant' %}{{ t }}<|eos|>{% else %}<|startoftext|>{{ t }}{{ '<|extra_4|>' if r == 'system' else '<|extra_0|>' }}{% endif %}",
        ""),
    format("gpt-oss", BOS,
        "<|start|>{{ r }}<|message|>{{ t }}{{ '<|return|>' if r == 'assistant' else '<|end|>' }}",
        "<|start|>assistant"),
    format("hunyuan-dense", BOS,
        "{% if r == 'system' and loop.first %}{{ t }}<｜hy_place▁holder▁no▁3｜>{% elif r == 'assistant' %}<｜hy_Assistant｜>{{ t }}<｜hy_place▁holder▁no▁2｜>{% elif r == 'user' %}<｜hy_User｜>{{ t }}<｜hy_Assistant｜>{% endif %}",
        ""),
    format("hunyuan-vl", "<｜hy_begin▁of▁sentence｜>",
        "{% if r == 'system' and loop.first %}{{ t }}<｜hy_place▁holder▁no▁3｜>{% elif r == 'user' %}{{ t }}<｜hy_User｜>{% elif r == 'assistant' %}{{ t }}<｜hy_Assistant｜>{% endif %}",
        ""),
    format("kimi-k2", BOS,
        "{% set head = {'system': 'system', 'user': 'user', 'assistant': 'assistant', 'tool': 'system'}[r] %}{% if head %}<|im_{{ head }}|>{{ r }}<|im_middle|>{% endif %}{{ t }}<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>"),
    format("seed_oss", "",
        "<seed:bos>{{ r }}\n{{ t|trim if r == 'assistant' else t }}<seed:eos>",
        "<seed:bos>assistant\n"),
    format("grok-2", BOS,
        "{% if r == 'system' %}System: {{ t|trim }}<|separator|>\n\n{% elif r == 'user' %}Human: {{ t|trim }}<|separator|>\n\n{% elif r == 'assistant' %}Assistant: {{ t }}<|separator|>\n\n{% endif %}",
        "Assistant:"),
    format("pangu-embedded", "{{ bos_token }}{% if messages and messages[0].role != 'system' %}[unused9]系统：[unused10]{% endif %}",
        "{% set name = {'system': '系统', 'user': '用户', 'assistant': '助手', 'tool': '工具', 'function': '方法'}[r] %}{% if name %}[unused9]{{ name }}：{{ t }}[unused10]{% endif %}",
        "[unused9]助手："),
    format("solar-open", BOS,
        "<|begin|>{{ r }}<|content|>{{ t }}<|end|>",
        "<|begin|>assistant"),
    format("plain", BOS,
        "{{ t }}\n\n",
        ""),
];

const GRANITE_4: &str = "<|start_of_role|>{% if r == 'assistant_tool_call' %}assistant<|end_of_role|><|tool_call|>{% else %}{{ r }}<|end_of_role|>{% endif %}{{ t }}<|end_of_text|>\n";

/// The names, in the order of the table.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().map(|format| format.name)
}

/// The Jinja source of a format. A message's text is its content, or the texts of its parts.
pub(super) fn source(name: &str) -> Option<String> {
    let Format { start, message, prompt, .. } = FORMATS.iter().find(|f| f.name == name)?;
    Some(format!(
        "{{%- macro text(m) -%}}\
         {{%- if m.content is string -%}}{{{{ m.content }}}}\
         {{%- elif m.content -%}}{{%- for part in m.content -%}}{{{{ part.text }}}}{{%- endfor -%}}\
         {{%- endif -%}}\
         {{%- endmacro -%}}\
         {start}\
         {{% for m in messages %}}{{% set r = m.role %}}{{% set t = text(m) %}}{message}{{% endfor %}}\
         {{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    ))
}

/// The format of a file that has no template: `has` tells whether the vocabulary has a token.
/// The special tokens a model was trained with are the best evidence; `plain` if there is none.
pub(super) fn guess(
    has: impl Fn(&str) -> bool,
    architecture: &str,
    pre_tokenizer: &str,
) -> &'static str {
    /// If all of these tokens are there, the format is this.
    const RULES: &[(&[&str], &str)] = &[
        (&["<|im_start|>", "<|im_sep|>"], "phi4"),
        (&["<|im_start|>", "<end_of_utterance>"], "smolvlm"),
        (&["<|im_middle|>", "<|im_assistant|>"], "kimi-k2"),
        (&["<|im_start|>"], "chatml"),
        (&["<start_of_turn>"], "gemma"),
        (&["<|start_header_id|>"], "llama3"),
        (&["<|header_start|>"], "llama4"),
        (&["<|start|>", "<|channel|>"], "gpt-oss"),
        (&["<|start_of_role|>"], "granite"),
        (&["<｜User｜>", "<｜Assistant｜>"], "deepseek3"),
        (&["<|START_OF_TURN_TOKEN|>"], "command-r"),
        (&["[|endofturn|]", "[|tool|]"], "exaone4"),
        (&["[|endofturn|]"], "exaone3"),
        (&["<|endofturn|>", "<|assistant|>"], "exaone-moe"),
        (&["[INST]", "[SYSTEM_PROMPT]"], "mistral-v7-tekken"),
        (&["[gMASK]", "<sop>", "<|assistant|>"], "chatglm4"),
        (&["[gMASK]", "sop", "<|assistant|>"], "chatglm3"),
        (&["<|end|>", "<|assistant|>"], "phi3"),
        (&["<|assistant|>", "<|endoftext|>", "</s>"], "falcon3"),
        (&["<|role_start|>"], "megrez"),
        (&["<|role_sep|>", "<|message_sep|>"], "gigachat"),
        (&["<seed:bos>"], "seed_oss"),
        (&["<|begin|>", "<|content|>", "<|end|>"], "solar-open"),
        (&["<|startoftext|>", "<|extra_0|>", "<|extra_4|>"], "hunyuan-moe"),
        (&["<｜hy_User｜>", "<｜hy_Assistant｜>"], "hunyuan-dense"),
        (&["<|end_of_turn|>"], "openchat"),
        (&["<用户>", "<AI>"], "minicpm"),
    ];
    if let Some((_, name)) = RULES.iter().find(|(tokens, _)| tokens.iter().all(|t| has(t))) {
        return name;
    }
    match architecture {
        _ if has("[INST]") && pre_tokenizer == "tekken" => "mistral-v3-tekken",
        _ if has("[INST]") => "mistral-v3",
        "rwkv6" | "rwkv7" => "rwkv-world",
        "orion" => "orion",
        "deepseek2" => "deepseek2",
        "bailingmoe" => "bailing",
        "bailingmoe2" => "bailing2",
        "grok" => "grok-2",
        "pangu-embedded" => "pangu-embedded",
        _ => "plain",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_by_vocabulary_then_architecture() {
        let check = |tokens: &[&str], architecture: &str, pre: &str, want: &str| {
            let got = guess(|text| tokens.contains(&text), architecture, pre);
            assert_eq!(got, want, "{tokens:?}, {architecture}, {pre}");
            assert!(names().any(|name| name == got));
        };
        check(&["<|im_start|>", "<|im_end|>"], "qwen2", "qwen2", "chatml");
        check(&["<|im_start|>", "<|im_sep|>"], "phi3", "dbrx", "phi4");
        check(&["<start_of_turn>", "[INST]"], "gemma3", "", "gemma");
        check(&["<|start_header_id|>"], "llama", "llama-bpe", "llama3");
        check(&["[INST]", "[/INST]"], "llama", "tekken", "mistral-v3-tekken");
        check(&["[INST]", "[SYSTEM_PROMPT]"], "llama", "tekken", "mistral-v7-tekken");
        check(&["[INST]"], "llama", "", "mistral-v3");
        check(&["<|end|>", "<|assistant|>"], "phi3", "", "phi3");
        check(&[], "rwkv7", "", "rwkv-world");
        check(&["<s>", "</s>"], "llama", "", "plain");
    }
}
