//! `hurtle chat`: a conversation.
//!
//! ```text
//! input.rs ──► slash.rs (a /command?) ──► parameters.rs, conversation.rs
//!     └──────► conversation.rs ──► prompt.rs ──► engine ──► answer.rs
//! ```
//! Each turn renders the whole conversation; the session keeps what it has computed of it, so only what is
//! new is processed.
mod conversation;
mod input;
mod parameters;
mod slash;

use super::show::Info;
use crate::answer::{self, AnswerPrinter, Question};
use crate::args::{
    EngineArgs, Form, GenerationArgs, GlobalArgs, ModelArgs, SystemArgs, TemplateArgs, Types,
    read_text,
};
use crate::error::{Interrupted, render};
use crate::interrupt::Interrupt;
use crate::prompt::Template;
use crate::terminal::{Terminal, harmless, say};
use crate::{models, timings};
use anyhow::{Result, bail};
use clap::Args;
use conversation::{Conversation, Role};
use hurtle_engine::constraint::GrammarConstraint;
use hurtle_engine::{Engine, Generation, GenerationParams, Session, StopReason, Timings};
use hurtle_text::RenderInput;
use input::{Input, Reader};
use slash::{Slash, Topic};
use std::io;
use std::path::Path;

/// Talks with a model. /? in the conversation lists what can be typed besides messages.
///
/// On a terminal, lines can be edited and come back with the arrow keys, Ctrl-C stops an answer, and Ctrl-D
/// leaves. From a file or a pipe, each line is a message.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hurtle chat
  hurtle chat -m gemma3:270m -sys \"You are a pirate.\" --temp 0.5
  hurtle chat -m model.gguf < questions.txt")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    system: SystemArgs,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    template: TemplateArgs,
}

pub(crate) fn execute(args: &ChatArgs, globals: &GlobalArgs) -> Result<()> {
    let options = args.engine.options(Types::FAST)?;
    let mut chat = Chat {
        args,
        globals,
        terminal: Terminal::detect(globals),
        interrupt: Interrupt::install(false)?,
        conversation: Conversation::new(args.system.text()?),
        params: args.generation.params()?,
        form: args.generation.grammar.form()?,
        verbose: globals.verbose,
        think: None,
        files: Vec::new(),
        answered: false,
        failed: false,
    };
    let mut model = args.model.model.clone();
    let mut engine = models::load_writer(&model, &options, globals)?;
    let mut reader = Reader::new(chat.terminal)?;
    loop {
        chat.greet(&model, &engine);
        match chat.talk(&engine, &mut reader)? {
            Leave::Program if chat.failed && !chat.terminal.interactive => {
                bail!("not every message was answered")
            }
            Leave::Program => return Ok(()),
            Leave::Model(next) => {
                // Two models at once may not fit into the memory.
                drop(engine);
                chat.answered = false;
                engine = match models::load_writer(&next, &options, globals) {
                    Ok(engine) => {
                        model = next;
                        chat.conversation.clear();
                        engine
                    }
                    Err(error) => {
                        say(&render(&error));
                        models::load_writer(&model, &options, globals)?
                    }
                };
            }
        }
    }
}

/// Why [`Chat::talk`] ended.
enum Leave {
    Program,
    /// For another model.
    Model(String),
}

/// A conversation and how it is held.
struct Chat<'a> {
    args: &'a ChatArgs,
    globals: &'a GlobalArgs,
    terminal: Terminal,
    interrupt: Interrupt,
    conversation: Conversation,
    params: GenerationParams,
    form: Option<Form>,
    verbose: bool,
    /// The template's `enable_thinking`, if the user set it.
    think: Option<bool>,
    /// Texts that go before the next message.
    files: Vec<String>,
    /// The model in use has answered before.
    answered: bool,
    /// A message could not be answered.
    failed: bool,
}

impl Chat<'_> {
    fn greet(&self, model: &str, engine: &Engine) {
        if self.terminal.interactive {
            say(&format!(
                "{}, context of {} tokens. /? for help, Ctrl-D to leave.",
                harmless(model),
                engine.ctx_size()
            ));
        }
    }

    /// Talks until the user leaves or wants another model.
    fn talk(&mut self, engine: &Engine, reader: &mut Reader) -> Result<Leave> {
        let metadata = engine.gguf().metadata();
        let template = Template::load(&self.args.template, metadata, engine.tokenizer())?;
        if self.verbose {
            say(&format!("chat template: {}", template.origin));
        }
        let constraint = self.form.as_ref().map(|form| form.constraint(engine)).transpose()?;
        let mut session = engine.session();
        loop {
            let text = match reader.read()? {
                Input::Text(text) => text,
                Input::Interrupted => {
                    say("Press Ctrl-D or type /bye to leave.");
                    continue;
                }
                Input::End => return Ok(Leave::Program),
            };
            match slash::parse(&text) {
                None if text.trim().is_empty() => {}
                None => {
                    let parts: Vec<String> = self.files.drain(..).chain([text]).collect();
                    self.conversation.ask(parts.join("\n\n"));
                    self.answer(engine, &template, constraint.as_ref(), &mut session)?;
                }
                Some(Ok(Slash::Leave)) => return Ok(Leave::Program),
                Some(Ok(Slash::Regenerate)) => {
                    if self.conversation.reopen() {
                        self.answer(engine, &template, constraint.as_ref(), &mut session)?;
                    } else {
                        self.fail("nothing was answered yet");
                    }
                }
                Some(Ok(Slash::SetHistory(keep))) => reader.keep_history(keep),
                Some(Ok(Slash::Load(name))) => match self.load(&name) {
                    Ok(Some(model)) => return Ok(Leave::Model(model)),
                    Ok(None) => {}
                    Err(error) => self.fail_with(&error),
                },
                Some(Ok(command)) => {
                    if let Err(error) = self.obey(command, engine, &template) {
                        // Nobody reads what we write: that is no mistake of the command.
                        if error.is::<io::Error>() {
                            return Err(error);
                        }
                        self.fail_with(&error);
                    }
                }
                Some(Err(message)) => self.fail(&message),
            }
        }
    }

    fn fail(&mut self, message: &str) {
        self.fail_with(&anyhow::anyhow!("{message}"));
    }

    fn fail_with(&mut self, error: &anyhow::Error) {
        self.failed = true;
        say(&render(error));
    }

    /// Answers the question that is open, and shows the answer as it comes.
    fn answer(
        &mut self,
        engine: &Engine,
        template: &Template,
        constraint: Option<&GrammarConstraint>,
        session: &mut Session<'_>,
    ) -> Result<()> {
        let generated = self
            .fitting_prompt(engine, template)
            .and_then(|question| Ok((self.generate(&question, constraint, session)?, question)));
        let (generation, question) = match generated {
            Ok(generated) => generated,
            Err(error) if error.is::<io::Error>() => return Err(error),
            Err(error) => {
                self.conversation.unask();
                self.fail_with(&error);
                return Ok(());
            }
        };
        self.conversation.answer(question.read(&generation.text));
        if self.verbose {
            // The model was loaded once, not for each answer.
            let load_ms = if self.answered { 0.0 } else { generation.timings.load_ms };
            say(&timings::report(&Timings { load_ms, ..generation.timings }));
        }
        self.answered = true;
        match generation.stop_reason {
            StopReason::Context => say(&format!(
                "note: the answer ends here because the context of {} tokens is full\n\
                 hint: /clear starts anew; 'hurtle chat --ctx-size N' makes the context larger",
                engine.ctx_size()
            )),
            // A script that is interrupted ends; a person goes on.
            StopReason::Cancelled if !self.terminal.interactive => return Err(Interrupted.into()),
            _ => {}
        }
        Ok(())
    }

    /// The prompt of the conversation. Where it leaves no room for an answer, the oldest turns are
    /// forgotten, and the user is told.
    fn fitting_prompt(&mut self, engine: &Engine, template: &Template) -> Result<Question> {
        let ctx_size = engine.ctx_size();
        let room = self.params.n_predict.unwrap_or(usize::MAX).clamp(1, (ctx_size / 8).max(1));
        loop {
            let mut input = RenderInput {
                messages: self.conversation.for_template(),
                add_generation_prompt: true,
                ..RenderInput::default()
            };
            if let Some(think) = self.think {
                input.extra.insert("enable_thinking".into(), think.into());
            }
            let parse_special = self.args.generation.parse_special;
            let prompt = template.template.prompt(engine.tokenizer(), &input, parse_special)?;
            let n = prompt.ids.len();
            if n + room <= ctx_size {
                return Ok(Question::conversation(&template.template, prompt));
            }
            let Some(question) = self.conversation.forget_oldest() else {
                if n < ctx_size {
                    return Ok(Question::conversation(&template.template, prompt));
                }
                bail!(
                    "the message makes a prompt of {n} tokens, and the context holds {ctx_size}\n\
                     hint: 'hurtle chat --ctx-size N' makes the context larger"
                );
            };
            let begin: String = question.chars().take(40).collect();
            say(&format!(
                "note: the conversation has {n} tokens, and the context of {ctx_size} must keep {room} \
                 for the answer: forgetting the oldest turn, \"{}\"\n\
                 hint: /clear starts anew; 'hurtle chat --ctx-size N' makes the context larger",
                harmless(&begin.replace('\n', " "))
            ));
        }
    }

    fn generate(
        &self,
        question: &Question,
        constraint: Option<&GrammarConstraint>,
        session: &mut Session<'_>,
    ) -> Result<Generation> {
        let extras = question.extras(constraint, None);
        #[cfg(unix)]
        let _silent = self.terminal.interactive.then(crate::terminal::NoEcho::new);
        let out = io::stdout().lock();
        let printer = AnswerPrinter::new(out, self.terminal, false, question.parser());
        answer::generate(session, question, &self.params, extras, &self.interrupt, Some(printer))
    }

    /// Loads a saved conversation, or gives the name of the model to change to.
    fn load(&mut self, name: &str) -> Result<Option<String>> {
        let path = Path::new(name);
        if path.is_file() && !is_gguf(path) {
            self.conversation = Conversation::load(path)?;
            let n = self.conversation.messages().len();
            say(&format!("{}: {n} messages", harmless(name)));
            return Ok(None);
        }
        // A name that leads nowhere must not cost the model in use.
        let model = ModelArgs { model: name.to_owned() };
        models::open(&model, self.globals)?;
        Ok(Some(model.model))
    }

    /// Does what a command says that only concerns this conversation.
    fn obey(&mut self, command: Slash, engine: &Engine, template: &Template) -> Result<()> {
        match command {
            Slash::Help => super::print(&slash::help())?,
            Slash::Clear => {
                self.conversation.clear();
                self.files.clear();
                say("The conversation is forgotten.");
            }
            Slash::SetSystem(text) if text.is_empty() => {
                self.conversation.system = None;
                say("The system prompt is removed.");
            }
            Slash::SetSystem(text) => {
                self.conversation.system = Some(text);
                say("The system prompt is set.");
            }
            Slash::SetParameter { name, value } => {
                parameters::set(&mut self.params, &name, &value).map_err(anyhow::Error::msg)?;
                say(&format!("{name} is {value}."));
            }
            Slash::SetVerbose(yes) => self.verbose = yes,
            Slash::SetThink(yes) => {
                if !template.template.source().contains("enable_thinking") {
                    say(
                        "note: the chat template does not know enable_thinking, so this may have no effect",
                    );
                }
                self.think = Some(yes);
            }
            Slash::Read(name) => {
                let text = read_text(Path::new(&name))?;
                say(&format!("{name}: {} bytes, put before the next message", text.len()));
                self.files.push(text);
            }
            Slash::Save(name) => {
                self.conversation.save(Path::new(&name))?;
                say(&format!("{name}: {} messages", self.conversation.messages().len()));
            }
            Slash::History => super::print(&self.history())?,
            Slash::Show(topic) => super::print(&self.show(topic, engine, template)?)?,
            Slash::Leave | Slash::Regenerate | Slash::SetHistory(_) | Slash::Load(_) => {}
        }
        Ok(())
    }

    /// The conversation for reading.
    fn history(&self) -> String {
        let system = self.conversation.system.iter().map(|text| ("system", text));
        let messages = self.conversation.messages().iter().map(|message| match message.role {
            Role::User => ("you", &message.content),
            Role::Assistant => ("model", &message.content),
        });
        let line = |(who, text): (&str, &String)| format!("{who}: {}\n", harmless(text));
        system.chain(messages).map(line).collect()
    }

    fn show(&self, topic: Topic, engine: &Engine, template: &Template) -> Result<String> {
        let none = |what: &str| format!("no {what}");
        Ok(match topic {
            Topic::Info => Info::of(engine.gguf())?.to_text(),
            Topic::System => {
                self.conversation.system.clone().unwrap_or_else(|| none("system prompt")) + "\n"
            }
            Topic::Parameters => parameters::show(&self.params),
            Topic::Template => harmless(template.template.source()) + "\n",
            Topic::License => {
                let license = engine.gguf().metadata().string("general.license")?;
                license.map_or_else(|| none("license in the file"), harmless) + "\n"
            }
        })
    }
}

/// Whether a file is a model rather than a conversation.
fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read =
        std::fs::File::open(path).and_then(|mut file| io::Read::read_exact(&mut file, &mut magic));
    read.is_ok() && magic == *b"GGUF"
}
