//! Text in and out of token ids: tokenizers, chat templates and streaming detokenizers, all built
//! from the metadata of a GGUF file.
#![forbid(unsafe_code)]

mod capabilities;
mod chat_template;
mod tokenizer;
mod tools;

pub use capabilities::capabilities;
pub use chat_template::{Begun, ChatPrompt, ChatTemplate, RenderInput, TemplateError};
pub use tokenizer::{Encode, FillInMiddle, StreamDecoder, Tokenizer, TokenizerError};
pub use tools::{
    AnswerFormat, AnswerParser, AnswerPiece, ForcedAnswer, Opening, ReadAnswer, Reasoning,
};
