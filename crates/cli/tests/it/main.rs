//! Tests of the binary, as one program: it links in a fraction of the time of four.
mod backend;
mod bench;
mod chat;
#[cfg(unix)]
mod clients;
mod common;
mod doctor;
mod model;
mod profile;
#[cfg(unix)]
mod serve;
mod synth;
#[cfg(unix)]
mod terminal;
mod usage;
