//! The /commands of a chat: the union of llama.cpp's and Ollama's.

/// A /command and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Slash {
    Help,
    Leave,
    Clear,
    Regenerate,
    SetParameter {
        name: String,
        value: String,
    },
    /// An empty text removes the system prompt.
    SetSystem(String),
    SetVerbose(bool),
    SetThink(bool),
    SetHistory(bool),
    Show(Topic),
    /// A model, or a file written by /save.
    Load(String),
    Save(String),
    Read(String),
    History,
}

/// What /show can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    Info,
    System,
    Parameters,
    Template,
    License,
}

/// Everything that can be typed, with what it does; also what Tab completes.
const COMMANDS: [(&str, &str, &str); 21] = [
    ("/?", "", "this help (also /help)"),
    ("/bye", "", "leave (also /exit, /quit, Ctrl-D)"),
    ("/clear", "", "forget the conversation; the system prompt stays"),
    ("/regen", "", "answer the last message again"),
    ("/history", "", "show the conversation"),
    ("/read", "FILE", "put a text file before the next message"),
    ("/save", "FILE", "write the conversation to a file"),
    ("/load", "FILE|MODEL", "go on with a saved conversation, or change the model"),
    ("/system", "TEXT", "set the system prompt; without a text: remove it (also /set system)"),
    ("/set system", "TEXT", "the same as /system"),
    ("/set parameter", "NAME VALUE", "change a parameter, as in /set parameter temperature 0.5"),
    ("/set verbose", "", "show times after each answer (also /verbose on)"),
    ("/set quiet", "", "do not (also /verbose off)"),
    ("/set think", "", "ask the model to reason first, if its template can"),
    ("/set nothink", "", "ask it not to"),
    ("/set nohistory", "", "do not keep what is typed for the arrow keys (/set history: do)"),
    ("/show info", "", "what the model file holds"),
    ("/show system", "", "the system prompt"),
    ("/show parameters", "", "the parameters in force"),
    ("/show template", "", "the chat template"),
    ("/show license", "", "the license that the file names"),
];

/// Commands that are completed, but listed under another one.
const MORE: [&str; 8] =
    ["/help", "/exit", "/quit", "/verbose on", "/verbose off", "/set history", "/set", "/show"];

/// What the user typed as a command, if it is one: `None` for a message, an error to show if the command
/// makes no sense. A path such as `/etc/hosts` is a message.
pub(super) fn parse(text: &str) -> Option<Result<Slash, String>> {
    let text = text.trim_end();
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let name = word.strip_prefix('/')?;
    if name != "?" && (name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase())) {
        return None;
    }
    Some(command(name, rest.trim()))
}

fn command(name: &str, rest: &str) -> Result<Slash, String> {
    let needed = |what: &str| {
        if rest.is_empty() { Err(format!("/{name} needs {what}")) } else { Ok(rest.to_owned()) }
    };
    let alone = |slash: Slash| {
        if rest.is_empty() {
            Ok(slash)
        } else {
            Err(format!("/{name} stands alone, found '{rest}'"))
        }
    };
    match name {
        "?" | "help" => Ok(Slash::Help),
        "bye" | "exit" | "quit" => alone(Slash::Leave),
        "clear" => alone(Slash::Clear),
        "regen" => alone(Slash::Regenerate),
        "history" => alone(Slash::History),
        "read" => needed("the name of a file").map(Slash::Read),
        "save" => needed("the name of a file").map(Slash::Save),
        "load" => needed("a model or the name of a file").map(Slash::Load),
        "system" => Ok(Slash::SetSystem(rest.to_owned())),
        "verbose" => match rest {
            "" | "on" => Ok(Slash::SetVerbose(true)),
            "off" => Ok(Slash::SetVerbose(false)),
            other => Err(format!("/verbose: expected on or off, found '{other}'")),
        },
        "set" => set(rest),
        "show" => show(rest),
        other => {
            Err(format!("/{other} is no command; /? lists them, and a space before the / sends it"))
        }
    }
}

fn set(rest: &str) -> Result<Slash, String> {
    let (what, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let value = value.trim();
    match what {
        "system" => Ok(Slash::SetSystem(value.to_owned())),
        "parameter" => match value.split_once(char::is_whitespace) {
            Some((name, value)) => {
                Ok(Slash::SetParameter { name: name.to_owned(), value: value.trim().to_owned() })
            }
            None => {
                Err("/set parameter needs a name and a value; /show parameters lists them".into())
            }
        },
        "verbose" => Ok(Slash::SetVerbose(true)),
        "quiet" => Ok(Slash::SetVerbose(false)),
        "think" => Ok(Slash::SetThink(true)),
        "nothink" => Ok(Slash::SetThink(false)),
        "history" => Ok(Slash::SetHistory(true)),
        "nohistory" => Ok(Slash::SetHistory(false)),
        other => Err(format!(
            "/set: expected system, parameter, verbose, quiet, think, nothink, history or nohistory, \
             found '{other}'"
        )),
    }
}

fn show(rest: &str) -> Result<Slash, String> {
    Ok(Slash::Show(match rest {
        "info" => Topic::Info,
        "system" => Topic::System,
        "parameters" => Topic::Parameters,
        "template" => Topic::Template,
        "license" => Topic::License,
        other => {
            return Err(format!(
                "/show: expected info, system, parameters, template or license, found '{other}'"
            ));
        }
    }))
}

/// The text of /help.
pub(super) fn help() -> String {
    let mut out = String::from("Commands:\n");
    for (command, arguments, does) in COMMANDS {
        out.push_str(&format!("  {:<27} {does}\n", format!("{command} {arguments}")));
    }
    out.push_str(
        "\nA line that ends in \\ goes on in the next one, and \"\"\" begins and ends several lines.\n\
         Ctrl-C stops an answer; the arrow keys bring back what was typed, Tab completes commands.\n",
    );
    out
}

/// Whether `line` begins a command that takes a file's name.
pub(super) fn takes_file(line: &str) -> bool {
    ["/read ", "/save ", "/load "].iter().any(|command| line.starts_with(command))
}

/// The commands that begin with `line`.
pub(super) fn completions(line: &str) -> impl Iterator<Item = &'static str> {
    let all = COMMANDS.iter().map(|&(command, ..)| command).chain(MORE);
    all.filter(move |command| command.starts_with(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        let check =
            |text: &str, expected: Slash| assert_eq!(parse(text), Some(Ok(expected)), "{text}");
        for text in ["/?", "/help", "/help me"] {
            check(text, Slash::Help);
        }
        for text in ["/bye", "/exit", "/quit", "/bye  "] {
            check(text, Slash::Leave);
        }
        check("/clear", Slash::Clear);
        check("/regen", Slash::Regenerate);
        check("/system You are\na pirate.", Slash::SetSystem("You are\na pirate.".into()));
        check("/set system  Be brief.", Slash::SetSystem("Be brief.".into()));
        check("/set system", Slash::SetSystem(String::new()));
        let set = |name: &str, value: &str| Slash::SetParameter {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        check("/set parameter temperature 0.5", set("temperature", "0.5"));
        check("/set parameter stop a b", set("stop", "a b"));
        check("/verbose off", Slash::SetVerbose(false));
        check("/show template", Slash::Show(Topic::Template));
        check("/load my chat.json", Slash::Load("my chat.json".into()));
        check("/read  x.txt", Slash::Read("x.txt".into()));
    }

    #[test]
    fn messages_are_no_commands() {
        for text in ["hi", "", " /bye", "/etc/hosts is what?", "/", "/ 2", "/2", "/Bye", "//"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn nonsense_is_explained() {
        let check = |text: &str, expected: &str| match parse(text) {
            Some(Err(message)) => assert!(message.contains(expected), "{text}: {message}"),
            other => panic!("{text}: {other:?}"),
        };
        check("/foo", "/foo is no command");
        check("/clear all", "/clear stands alone, found 'all'");
        check("/read", "/read needs the name of a file");
        check("/set", "found ''");
        check("/set parameter temp", "needs a name and a value");
        check("/show me", "found 'me'");
        check("/verbose maybe", "found 'maybe'");
    }

    #[test]
    fn every_listed_command_is_known() {
        for (command, arguments, _) in COMMANDS {
            let text = format!("{command} {}", arguments.replace("NAME VALUE", "temp 1"));
            assert!(matches!(parse(&text), Some(Ok(_))), "{text}");
        }
        assert_eq!(completions("/set q").collect::<Vec<_>>(), ["/set quiet"]);
        assert_eq!(completions("x").count(), 0);
    }
}
