//! Which chat template turns a conversation into a prompt.
use crate::args::{TemplateArgs, read_text};
use crate::error::usage;
use crate::terminal::say;
use anyhow::{Context as _, Result};
use hurtle_gguf::Metadata;
use hurtle_text::{ChatTemplate, Tokenizer};

/// A chat template and where it comes from.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) template: ChatTemplate,
    /// For the user: which template this is.
    pub(crate) origin: String,
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
}
