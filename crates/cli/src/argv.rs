//! From llama.cpp's way of writing a command line to the one clap reads.
//!
//! Two things differ. llama.cpp has short flags of several letters (`-ngl 99`, `-sys TEXT`), which clap would
//! read as a stack of one-letter flags; they become long flags here. And the command may be left out:
//! `hurtle "Why is the sky blue?"` and `hurtle -m MODEL -p TEXT` are `hurtle run ...`.
//!
//! The value of an option is never looked at, so that `-p -sys` asks about the text `-sys`.
use clap::Command;
use std::ffi::{OsStr, OsString};

/// llama.cpp's short flags of several letters, and the long flag of each.
const LONG_FLAGS: [(&str, &str); 11] = [
    ("-tb", "--threads-batch"),
    ("-ub", "--ubatch-size"),
    ("-sys", "--system-prompt"),
    ("-sysf", "--system-prompt-file"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-ngl", "--gpu-layers"),
    ("-sp", "--special"),
    ("-jf", "--json-schema-file"),
    ("-np", "--parallel"),
    ("-pg", "--prompt-gen"),
];

/// The command that is meant when none is named.
const DEFAULT_COMMAND: &str = "run";

/// The command line `args` (program name first) as clap can read it; `root` tells which commands
/// there are and which options take a value.
pub(crate) fn translate(args: Vec<OsString>, root: &Command) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    let mut rest = args.peekable();

    // Options that hold for every command may precede its name.
    while let Some(arg) = rest.peek() {
        if matches!(arg.to_str(), Some("-h" | "--help" | "-V" | "--version")) {
            out.extend(rest);
            return out;
        }
        let Some(Known { value_follows }) = lookup(arg, &[root]) else { break };
        out.extend(rest.next());
        if value_follows {
            out.extend(rest.next());
        }
    }

    let named = rest.peek().and_then(|word| word.to_str()).filter(|word| {
        *word == "help" || root.get_subcommands().any(|command| command.get_name() == *word)
    });
    let name = named.unwrap_or(DEFAULT_COMMAND).to_owned();
    if named.is_some() {
        rest.next();
    }
    let command = root.find_subcommand(&name);
    out.push(name.into());

    let scopes: Vec<&Command> = command.into_iter().chain([root]).collect();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            out.push(arg);
            break;
        }
        let arg = long_flag(&arg, &scopes).unwrap_or(arg);
        let value_follows = lookup(&arg, &scopes).is_some_and(|known| known.value_follows);
        out.push(arg);
        if value_follows {
            out.extend(rest.next());
        }
    }
    out.extend(rest);
    out
}

/// The long form of `-ngl`, `-ngl=99` or `-ngl99`, if `arg` is one and the command has it.
fn long_flag(arg: &OsStr, scopes: &[&Command]) -> Option<OsString> {
    let arg = arg.to_str()?;
    let letters = arg.strip_prefix('-')?.bytes().take_while(u8::is_ascii_lowercase).count();
    let (flag, value) = arg.split_at(1 + letters);
    let (_, long) = LONG_FLAGS.iter().find(|(short, _)| *short == flag)?;
    lookup(OsStr::new(long), scopes)?;
    let value = match value.as_bytes().first() {
        None => return Some(long.into()),
        Some(b'=') => &value[1..],
        Some(b'0'..=b'9' | b'-') => value,
        Some(_) => return None,
    };
    Some(format!("{long}={value}").into())
}

/// What is known of an argument that is an option.
struct Known {
    /// The next argument is its value.
    value_follows: bool,
}

/// What kind of option `arg` is for the commands `scopes`; `None` if it is none of theirs.
fn lookup(arg: &OsStr, scopes: &[&Command]) -> Option<Known> {
    let arg = arg.to_str()?;
    let options = || scopes.iter().flat_map(|command| command.get_arguments());
    // What may follow and need not is looked at as any other argument.
    let takes_value = |option: &clap::Arg| {
        let needs_one = option.get_num_args().is_none_or(|n| n.min_values() > 0);
        option.get_action().takes_values() && needs_one
    };
    if let Some(long) = arg.strip_prefix("--") {
        let (name, attached) = match long.split_once('=') {
            Some((name, _)) => (name, true),
            None => (long, false),
        };
        let option = options().find(|option| {
            option.get_long() == Some(name)
                || option.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
        })?;
        return Some(Known { value_follows: takes_value(option) && !attached });
    }
    // `-vp TEXT`: flags in one word, of which the last may take a value.
    let mut letters = arg.strip_prefix('-')?.chars();
    let mut known = None;
    while let Some(letter) = letters.next() {
        let option = options().find(|option| option.get_short() == Some(letter))?;
        if takes_value(option) {
            return Some(Known { value_follows: letters.as_str().is_empty() });
        }
        known = Some(Known { value_follows: false });
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[track_caller]
    fn check(given: &[&str], expected: &[&str]) {
        let args = ["hurtle"].iter().chain(given).map(OsString::from).collect();
        let found = translate(args, &crate::cli::Cli::command());
        assert_eq!(found[1..], *expected, "{given:?}");
    }

    #[test]
    fn the_command_may_be_left_out() {
        check(&["Why is the sky blue?"], &["run", "Why is the sky blue?"]);
        check(&["-m", "x.gguf", "-p", "hi"], &["run", "-m", "x.gguf", "-p", "hi"]);
        check(&["chat", "-m", "x.gguf"], &["chat", "-m", "x.gguf"]);
        check(&["run", "chat"], &["run", "chat"]);
        check(&["-m", "x.gguf", "chat"], &["run", "-m", "x.gguf", "chat"]);
        check(&["help", "chat"], &["help", "chat"]);
        check(&["--help"], &["--help"]);
        check(&["-V"], &["-V"]);
        check(&[], &["run"]);
    }

    #[test]
    fn global_options_may_come_first() {
        check(&["--color", "never", "list"], &["--color", "never", "list"]);
        check(&["--color=never", "-v", "hi"], &["--color=never", "-v", "run", "hi"]);
        check(&["-v", "--offline", "chat"], &["-v", "--offline", "chat"]);
        check(&["--color", "never", "--help"], &["--color", "never", "--help"]);
    }

    #[test]
    fn short_flags_of_several_letters_become_long() {
        check(&["chat", "-ngl", "99"], &["chat", "--gpu-layers", "99"]);
        check(&["chat", "-ngl=99"], &["chat", "--gpu-layers=99"]);
        check(&["chat", "-ngl99"], &["chat", "--gpu-layers=99"]);
        check(&["chat", "-ngl-1"], &["chat", "--gpu-layers=-1"]);
        check(&["-sys", "Be brief.", "hi"], &["run", "--system-prompt", "Be brief.", "hi"]);
        check(&["-sysf", "f", "hi"], &["run", "--system-prompt-file", "f", "hi"]);
        check(
            &["-ctk", "f16", "-ctv=f16", "-tb", "2", "-ub", "64", "-sp"],
            &[
                "run",
                "--cache-type-k",
                "f16",
                "--cache-type-v=f16",
                "--threads-batch",
                "2",
                "--ubatch-size",
                "64",
                "--special",
            ],
        );
        check(
            &["bench", "-np", "1,4", "-pg", "512,128"],
            &["bench", "--parallel", "1,4", "--prompt-gen", "512,128"],
        );
        // A value that may be missing does not hide the next flag.
        check(
            &["profile", "--prefill", "-ub", "8"],
            &["profile", "--prefill", "--ubatch-size", "8"],
        );
        // What clap reads by itself stays as it is.
        check(&["-c512", "-t=2", "-n", "-1"], &["run", "-c512", "-t=2", "-n", "-1"]);
        // A command without the option keeps the word, and clap's message names it.
        check(&["list", "-ngl", "1"], &["list", "-ngl", "1"]);
        check(&["-ngl+1"], &["run", "-ngl+1"]);
    }

    #[test]
    fn values_are_left_alone() {
        check(&["-p", "-sys", "-ngl", "1"], &["run", "-p", "-sys", "--gpu-layers", "1"]);
        check(&["-vp", "-ngl"], &["run", "-vp", "-ngl"]);
        check(&["-p-sys", "-sp"], &["run", "-p-sys", "--special"]);
        check(&["--prompt=-sys", "-sp"], &["run", "--prompt=-sys", "--special"]);
        check(&["--n-predict", "-sp", "-sp"], &["run", "--n-predict", "-sp", "--special"]);
        check(&["--", "-sys", "-ngl"], &["run", "--", "-sys", "-ngl"]);
        check(&["-", "é", "-é"], &["run", "-", "é", "-é"]);
    }

    #[test]
    fn every_long_flag_exists() {
        let root = crate::cli::Cli::command();
        let commands: Vec<&Command> = root.get_subcommands().collect();
        for (short, long) in LONG_FLAGS {
            assert!(lookup(OsStr::new(long), &commands).is_some(), "{short} is {long}");
        }
    }
}
