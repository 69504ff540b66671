//! From a conversation to token ids.
use crate::args::{TemplateArgs, read_text};
use crate::error::usage;
use crate::terminal::say;
use anyhow::{Context as _, Result};
use hurtle_gguf::Metadata;
use hurtle_text::{ChatTemplate, Encode, RenderInput, Tokenizer};

/// A chat template and where it comes from.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) template: ChatTemplate,
    /// For the user: which template this is.
    pub(crate) origin: String,
}

/// A prompt, ready for the engine.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    /// The prompt opens a section of reasoning that the answer goes on with.
    pub(crate) thinking: bool,
}

impl Template {
    /// The template that the flags name, else the file's, else one that suits the vocabulary, which is told.
    pub(crate) fn load(args: &TemplateArgs, metadata: &Metadata, tok: &Tokenizer) -> Result<Self> {
        let text =
            |id: Option<u32>| id.and_then(|id| tok.token_text(id)).unwrap_or_default().into_owned();
        let (bos, eos) = (text(tok.bos()), text(tok.eos()));
        if let Some(template) = Self::from_args(args, &bos, &eos, tok.adds_bos())? {
            return Ok(template);
        }
        if let Some(template) = ChatTemplate::from_metadata(metadata, tok, None)? {
            return Ok(Self { template, origin: "the model's own".into() });
        }
        let (template, name) = ChatTemplate::fallback_for(metadata, tok)?;
        say(&format!(
            "note: the model has no chat template and may not be made for conversations; using '{name}'\n\
             hint: --chat-template NAME chooses another, and 'hurtle run --raw' continues a text"
        ));
        Ok(Self { template, origin: name.to_owned() })
    }

    /// The template that the flags name, if they name one. One that is known by name begins with `bos` if
    /// the model `adds_bos`; one that is written in Jinja does as it says.
    pub(crate) fn from_args(
        args: &TemplateArgs,
        bos: &str,
        eos: &str,
        adds_bos: bool,
    ) -> Result<Option<Self>> {
        if let Some(path) = &args.chat_template_file {
            let template = ChatTemplate::new(&read_text(path)?, bos, eos)
                .with_context(|| path.display().to_string())?;
            return Ok(Some(Self { template, origin: path.display().to_string() }));
        }
        let Some(name) = &args.chat_template else { return Ok(None) };
        if name.contains("{%") || name.contains("{{") {
            let template = ChatTemplate::new(name, bos, eos).context("--chat-template")?;
            return Ok(Some(Self { template, origin: "from the command line".into() }));
        }
        let Some(template) = ChatTemplate::builtin(name, if adds_bos { bos } else { "" }, eos)
        else {
            let names: Vec<_> = ChatTemplate::builtin_names().collect();
            usage!(
                "--chat-template {name}: no template is called so\n\
                 hint: known are {}; a file is named with --chat-template-file",
                names.join(", ")
            );
        };
        Ok(Some(Self { template, origin: name.clone() }))
    }

    /// The prompt of a conversation. A system prompt goes into the first message where the template knows no
    /// system role. What the conversation says cannot become a control token, unless
    /// `parse_special` allows it.
    pub(crate) fn prompt(
        &self,
        tok: &Tokenizer,
        input: &RenderInput,
        parse_special: bool,
    ) -> Result<Prompt> {
        let input = &*self.template.adapt(input);
        let (text, mut ids) = if parse_special {
            let text = self.template.render(input)?;
            let ids = tok.encode(&text, Encode { add_special: false, parse_special: true });
            (text, ids)
        } else {
            let (text, guard) = self.template.render_guarded(input, tok)?;
            let ids = tok.encode_guarded(&text, guard, false);
            (text, ids)
        };
        // Templates that write BOS themselves must not get a second one.
        if let Some(bos) = tok.bos().filter(|bos| tok.adds_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(Prompt { ids, thinking: text.trim_end().ends_with("<think>") })
    }
}
