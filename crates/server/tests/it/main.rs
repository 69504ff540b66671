//! Everything beside chats and completions, which `http.rs` tests, over tiny models.
mod common;
mod embeddings;
mod llama_cpp;
mod models;
mod openapi;
mod operation;
mod reasoning;
