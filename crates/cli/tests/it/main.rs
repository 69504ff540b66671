//! Tests of the binary, as one program: it links in a fraction of the time of four.
mod chat;
mod common;
mod model;
#[cfg(unix)]
mod terminal;
mod usage;
