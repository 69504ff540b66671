//! `hurtle render`: the prompt that a chat template makes.
use crate::args::{GlobalArgs, ModelArgs, TemplateArgs, read_stdin};
use crate::error::usage;
use crate::models;
use crate::prompt::Template;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use hurtle_text::{ChatTemplate, RenderInput};
use serde_json::{Map, Value};

/// Prints exactly the prompt that the chat template makes of a conversation, and nothing else.
///
/// Standard input holds a JSON object with "messages" and, as far as wanted, "tools",
/// "add_generation_prompt" (false if absent) and any further variables of the template.
/// Where the template raises an error, its message goes to standard error and the exit status is 1.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}' | hurtle render -m model.gguf
  hurtle render --chat-template chatml --bos '<s>' < messages.json")]
pub(crate) struct RenderArgs {
    /// The model with the template; not needed with --chat-template or --chat-template-file
    #[arg(short, long, env = "HURTLE_MODEL")]
    model: Option<String>,
    #[command(flatten)]
    template: TemplateArgs,
    /// The template's bos_token, instead of the model's
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    bos: Option<String>,
    /// The template's eos_token, instead of the model's
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    eos: Option<String>,
    /// The time that the template sees, instead of the clock's
    #[arg(long, value_name = "2025-03-14T09:26:53")]
    now: Option<String>,
}

pub(crate) fn execute(args: &RenderArgs, globals: &GlobalArgs) -> Result<()> {
    let mut input = parse(&read_stdin()?)?;
    input.now.clone_from(&args.now);
    super::print_foreign(&template(args, globals)?.render(&input)?)
}

fn template(args: &RenderArgs, globals: &GlobalArgs) -> Result<ChatTemplate> {
    if let Some(model) = &args.model {
        let (gguf, tok) = models::open(&ModelArgs { model: model.clone() }, globals)?;
        let found = Template::load(&args.template, gguf.metadata(), &tok)?.template;
        if args.bos.is_none() && args.eos.is_none() {
            return Ok(found);
        }
        let text = |given: &Option<String>, id: Option<u32>| match given {
            Some(text) => text.clone(),
            None => id.and_then(|id| tok.token_text(id)).unwrap_or_default().into_owned(),
        };
        let (bos, eos) = (text(&args.bos, tok.bos()), text(&args.eos, tok.eos()));
        return Ok(ChatTemplate::new(found.source(), &bos, &eos)?);
    }
    let text = |given: &Option<String>| given.clone().unwrap_or_default();
    match Template::from_args(&args.template, &text(&args.bos), &text(&args.eos), true)? {
        Some(found) => Ok(found.template),
        None => usage!(
            "no template: expected --model, --chat-template or --chat-template-file\n\
             hint: hurtle render -m {} < messages.json",
            hurtle_hub::DEFAULT_MODEL
        ),
    }
}

/// The conversation in `text`.
fn parse(text: &str) -> Result<RenderInput> {
    let shape = "hint: expected {\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], ...}";
    let value: Value =
        serde_json::from_str(text).with_context(|| format!("standard input: no JSON\n{shape}"))?;
    let Value::Object(mut object) = value else {
        bail!("standard input: expected an object, found {}\n{shape}", kind(&value));
    };
    let messages = match object.shift_remove("messages") {
        Some(Value::Array(messages)) => messages,
        other => bail!("messages: expected an array, found {}\n{shape}", found(other.as_ref())),
    };
    let tools = match object.shift_remove("tools") {
        None | Some(Value::Null) => None,
        Some(Value::Array(tools)) => Some(tools),
        other => bail!("tools: expected an array, found {}", found(other.as_ref())),
    };
    let add_generation_prompt = match object.shift_remove("add_generation_prompt") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(yes)) => yes,
        other => {
            bail!("add_generation_prompt: expected a boolean, found {}", found(other.as_ref()))
        }
    };
    let extra: Map<String, Value> = object;
    Ok(RenderInput { messages, tools, add_generation_prompt, extra, ..RenderInput::default() })
}

fn found(value: Option<&Value>) -> &'static str {
    value.map_or("nothing", kind)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_are_read() {
        let input =
            parse(r#"{"enable_thinking": false, "messages": [{"role": "user"}], "tools": null}"#)
                .expect("a conversation");
        assert_eq!(input.messages.len(), 1);
        assert_eq!(input.tools, None);
        assert!(!input.add_generation_prompt);
        assert_eq!(input.extra.keys().collect::<Vec<_>>(), ["enable_thinking"]);
    }

    #[test]
    fn other_shapes_are_refused() {
        let check = |text: &str, expected: &str| {
            let message = crate::error::render(&parse(text).expect_err(text));
            assert!(message.contains(expected), "{text}: {message}");
        };
        check("", "standard input: no JSON: EOF");
        check("[]", "expected an object, found an array");
        check("{}", "messages: expected an array, found nothing");
        check(r#"{"messages": {}}"#, "messages: expected an array, found an object");
        check(r#"{"messages": [], "tools": 1}"#, "tools: expected an array, found a number");
        check(
            r#"{"messages": [], "add_generation_prompt": "no"}"#,
            "expected a boolean, found a string",
        );
    }
}
