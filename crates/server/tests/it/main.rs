//! Everything beside chats and completions, which `http.rs` tests, over tiny models.
mod chat;
mod common;
mod embeddings;
mod llama_cpp;
mod models;
mod ollama;
mod openapi;
mod operation;
mod reasoning;
mod slots;
