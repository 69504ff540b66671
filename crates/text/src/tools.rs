//! Tools that a model may call, and what it thinks: how a prompt tells of them, and how an answer is read.
//!
//! Every family of models writes calls in its own way. A template shows which way that is; the table of
//! [`format`] knows them. [`history`] brings a conversation into the form that a template can render, and
//! [`parser`] reads the answer as it comes.
mod call;
pub(crate) mod format;
mod grammar;
pub(crate) mod history;
pub(crate) mod parser;
mod scan;
mod schema;

pub use format::{AnswerFormat, Opening, Reasoning};
pub use grammar::ForcedAnswer;
pub use parser::{AnswerParser, AnswerPiece, ReadAnswer};
