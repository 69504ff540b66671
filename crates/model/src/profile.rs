//! Where the time of a forward pass goes.
//!
//! Each operation is timed on the calling thread from before its work is handed out until all
//! threads are done, so the times of one pass add up to the pass.

use std::time::Duration;

/// An operation of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Looking up token embeddings.
    Embed,
    /// RMS norms before and behind a layer's halves and before the output, residual sums included.
    Norm,
    /// Quantizing activations for the integer kernels.
    Quantize,
    /// Query, key and value projections.
    Qkv,
    /// Norms of queries and keys, rotary positions, and storing keys and values.
    Rope,
    /// Attention itself.
    Attention,
    /// The projection behind attention.
    AttnOutput,
    /// Choosing experts.
    Router,
    /// The first two projections of a feed-forward network; of prompts, with the function between them.
    GateUp,
    /// The function between gate and up, where it is computed by itself.
    Activation,
    /// The last projection of a feed-forward network.
    Down,
    /// Adding up the results of experts.
    Combine,
    /// The projection to the vocabulary.
    LmHead,
}

impl Op {
    /// All operations, in the order of the forward pass.
    pub const ALL: [Op; 13] = [
        Op::Embed,
        Op::Norm,
        Op::Quantize,
        Op::Qkv,
        Op::Rope,
        Op::Attention,
        Op::AttnOutput,
        Op::Router,
        Op::GateUp,
        Op::Activation,
        Op::Down,
        Op::Combine,
        Op::LmHead,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Op::Embed => "embedding",
            Op::Norm => "norms",
            Op::Quantize => "quantization",
            Op::Qkv => "QKV",
            Op::Rope => "RoPE and KV store",
            Op::Attention => "attention",
            Op::AttnOutput => "attention output",
            Op::Router => "router",
            Op::GateUp => "gate/up",
            Op::Activation => "activation",
            Op::Down => "down",
            Op::Combine => "experts' sum",
            Op::LmHead => "LM head",
        }
    }
}

/// What an operation cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// How often it ran.
    pub calls: u64,
    /// How long, all calls together.
    pub time: Duration,
    /// The part of `time` in which the calling thread had nothing left to do and waited for others.
    pub wait: Duration,
    /// Bytes of weights, or of keys and values, that it had to read.
    pub bytes: u64,
    /// Multiplications and additions of its products.
    pub flops: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.time += other.time;
        self.wait += other.wait;
        self.bytes += other.bytes;
        self.flops += other.flops;
    }
}

/// Costs of the operations of some forward passes, layer by layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// One row for each layer, and one for what lies outside of them.
    costs: Vec<[Cost; Op::ALL.len()]>,
}

impl Profile {
    /// Nothing yet, for a model of `n_layers` layers.
    pub fn new(n_layers: usize) -> Self {
        Self { costs: vec![Default::default(); n_layers + 1] }
    }

    /// Layers of the model.
    pub fn n_layers(&self) -> usize {
        self.costs.len() - 1
    }

    /// Adds to an operation of a layer, or outside of the layers (`None`).
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn add(&mut self, layer: Option<usize>, op: Op, cost: Cost) {
        let outside = self.n_layers();
        self.costs[layer.unwrap_or(outside)][op as usize] += cost;
    }

    /// The cost of an operation in a layer, or outside of the layers (`None`).
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn cost(&self, layer: Option<usize>, op: Op) -> Cost {
        self.costs[layer.unwrap_or(self.n_layers())][op as usize]
    }

    /// The cost of an operation in all the model.
    pub fn total(&self, op: Op) -> Cost {
        let mut total = Cost::default();
        for row in &self.costs {
            total += row[op as usize];
        }
        total
    }
}
