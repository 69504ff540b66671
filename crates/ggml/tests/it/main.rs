//! hurtle's formats and products against ggml's, in one process.

mod data;
mod formats;
mod products;
