//! Model specifications, weights, KV cache and the forward pass.
