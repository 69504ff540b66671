//! THE forward pass.
//!
//! ```text
//! tokens ─ embed ─┬─ norm ─ Q,K,V ─ qk-norm ─ rope ─ attention ─ output ─ norm ─(+)─┬─ norm ─ FFN or experts ─ norm ─(+)─ ... ─ norm ─ logits
//!                 └──────────────────────────────────────────────────────────────────┘ └──────────────────────────────────┘
//! ```
//! It takes any mix of tokens: whole prompts, chunks of prompts, single tokens of many sequences.
//! Every operation works on each token by itself, and attention sees the token's own sequence only,
//! so a token's result does not depend on who shares the batch. Where tokens also see those behind them
//! ([`Hparams::both_ways`](crate::Hparams::both_ways)), a sequence has to lie in one batch.

use crate::kv_cache::{KvCache, SeqId};
use crate::load::{Ffn, Gated, Layer, Linear, Norm};
use crate::profile::{Cost, Op, Profile};
use crate::spec::{Gating, NormKind, Norms, QkNorm, Ranking};
use crate::{Model, ModelError};
use hurtle_kernels::Exec;
use hurtle_kernels::activations::QuantizedActivations;
use hurtle_kernels::attention::{self, Token, attention};
use hurtle_kernels::elementwise::{self, layer_norm_row, rms_norm, rms_norm_row, rope};
use hurtle_kernels::packed::{Product, Weights, matmul_gated, matmul_packed, multiplies_gated};
use smallvec::SmallVec;
use std::ops::Range;
use std::time::Instant;

/// A token to be processed. It takes the position after what the cache and the batch before it
/// hold of its sequence.
#[derive(Debug, Clone, Copy)]
pub struct BatchToken {
    /// Token id.
    pub id: u32,
    /// Its sequence.
    pub seq: SeqId,
    /// Whether its logits, or its hidden state, are wanted.
    pub logits: bool,
}

/// Buffers of the forward pass, which grow to the largest batch and are used again.
#[derive(Debug, Default)]
pub struct Scratch {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attn: Vec<f32>,
    /// Partial results of attention.
    partials: Vec<f32>,
    added: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    logits: Vec<f32>,
    rope: Vec<(f32, f32)>,
    window_rope: Vec<(f32, f32)>,
    positions: Vec<usize>,
    /// The last position that each token sees.
    sees: Vec<usize>,
    /// Rows of embeddings that were read since the file's pages were let go of.
    n_embedded: usize,
    quantized: QuantizedActivations,
    /// The input of a feed-forward network's last projection, where it is computed without `gate` and `up`.
    gated: QuantizedActivations,
    moe: MoeScratch,
    /// Where costs are added to, if they are wanted.
    pub profile: Option<Profile>,
}

/// Rows of embeddings that are read before the file's pages are let go of, which takes some 50 µs.
/// Linux maps 64 KiB around each: 4 MiB in all.
const EMBEDDED: usize = 64;

/// What a feed-forward network needs of the scratch.
struct Buffers<'a> {
    gate: &'a mut Vec<f32>,
    up: &'a mut Vec<f32>,
    quantized: &'a mut QuantizedActivations,
    gated: &'a mut QuantizedActivations,
}

#[derive(Debug, Default)]
struct MoeScratch {
    router: Vec<f32>,
    order: Vec<usize>,
    weights: Vec<f32>,
    chosen: Vec<Chosen>,
    input: Vec<f32>,
    output: Vec<f32>,
    slots: Vec<f32>,
}

/// A projection of some rows of an input.
struct Projection<'a> {
    linear: &'a Linear,
    /// Rows of the input.
    rows: Range<usize>,
    /// `[rows.len(), n_rows of the weight]`
    out: &'a mut [f32],
}

/// Projections of one input: few enough to lie on the stack when a token is decoded, up to twice
/// the experts that it uses.
type Projections<'a> = SmallVec<[Projection<'a>; 32]>;

/// Adds the costs of operations to a profile, if there is one.
struct Recorder {
    profile: Option<Profile>,
    layer: Option<usize>,
}

impl Recorder {
    /// Runs an operation that reads `bytes` and multiplies and adds `flops` numbers.
    fn time<R>(
        &mut self,
        exec: Exec<'_>,
        op: Op,
        work: impl FnOnce() -> (usize, usize),
        f: impl FnOnce() -> R,
    ) -> R {
        let Some(profile) = &mut self.profile else { return f() };
        let (start, waited) = (Instant::now(), exec.pool.waited());
        let result = f();
        let (bytes, flops) = work();
        let cost = Cost {
            calls: 1,
            time: start.elapsed(),
            wait: exec.pool.waited().saturating_sub(waited),
            bytes: bytes as u64,
            flops: flops as u64,
        };
        profile.add(self.layer, op, cost);
        result
    }
}

/// An operation without products.
fn no_work() -> (usize, usize) {
    (0, 0)
}

/// One expert's part in one token.
#[derive(Debug, Clone, Copy)]
struct Chosen {
    expert: usize,
    token: usize,
    /// Rank among the token's experts.
    rank: usize,
    weight: f32,
}

/// A buffer of `len` values with arbitrary content.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl Model {
    /// Processes `batch` and returns the logits of the tokens that want them, `[n, n_vocab]` in the
    /// batch's order. The cache then holds the batch's tokens.
    ///
    /// # Errors
    /// If the model has no output layer, or as [`Model::hidden`]; the cache is unchanged then.
    pub fn forward<'s>(
        &self,
        exec: Exec<'_>,
        batch: &[BatchToken],
        cache: &mut KvCache,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [f32], ModelError> {
        let hparams = self.hparams();
        let Some(output) = &self.weights.output else {
            return Err(ModelError::NoLogits { arch: self.spec().name });
        };
        let n_out = self.hidden(exec, batch, cache, scratch)?.len() / hparams.n_embd;
        let mut record = Recorder { profile: scratch.profile.take(), layer: None };
        let Scratch { hidden, quantized, logits, .. } = scratch;
        let hidden = &hidden[..n_out * hparams.n_embd];
        let logits = sized(logits, n_out * hparams.n_vocab);
        self.linear(exec, Op::LmHead, hidden, quantized, [(output, &mut *logits)], &mut record);
        if hparams.logit_scale != 1.0 {
            let scale = 1.0 / hparams.logit_scale;
            logits.iter_mut().for_each(|x| *x *= scale);
        }
        if let Some(cap) = hparams.logit_soft_cap {
            elementwise::soft_cap(exec, logits, cap);
        }
        scratch.profile = record.profile;
        Ok(logits)
    }

    /// The classifier's scores for the hidden state of one token, `[n_scores]`.
    ///
    /// # Errors
    /// If the model has no classifier.
    ///
    /// # Panics
    /// If `hidden` is not one token's.
    pub fn scores<'s>(
        &self,
        exec: Exec<'_>,
        hidden: &[f32],
        scratch: &'s mut Scratch,
    ) -> Result<&'s [f32], ModelError> {
        assert_eq!(hidden.len(), self.hparams().n_embd, "a hidden state");
        let classifier = self.weights.classifier.as_ref().ok_or(ModelError::NoClassifier)?;
        let mut record = Recorder { profile: scratch.profile.take(), layer: None };
        let Scratch { normed, quantized, logits, .. } = scratch;
        let x = sized(normed, hidden.len());
        match &classifier.dense {
            None => x.copy_from_slice(hidden),
            Some(dense) => {
                let out = [(dense, &mut *x)];
                self.linear(exec, Op::LmHead, hidden, quantized, out, &mut record);
                // With a cap of 1 it is the plain tanh.
                elementwise::soft_cap(exec, x, 1.0);
            }
        }
        let scores = sized(logits, classifier.output.weight.n_rows());
        let output = [(&classifier.output, &mut *scores)];
        self.linear(exec, Op::LmHead, x, quantized, output, &mut record);
        match self.spec().ranking {
            Ranking::First => {}
            Ranking::LastSoftmax => elementwise::softmax(scores),
        }
        scratch.profile = record.profile;
        Ok(scores)
    }

    /// Processes `batch` and returns the hidden states behind the last norm of the tokens that want
    /// logits, `[n, n_embd]` in the batch's order. The cache then holds the batch's tokens.
    ///
    /// # Errors
    /// If a token is not in the vocabulary, has a position that the model does not know, or comes
    /// after others of its sequence where each token must see all of it; the cache is unchanged then.
    pub fn hidden<'s>(
        &self,
        exec: Exec<'_>,
        batch: &[BatchToken],
        cache: &mut KvCache,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [f32], ModelError> {
        let hparams = self.hparams();
        let (n, n_embd) = (batch.len(), hparams.n_embd);
        if let Some(token) = batch.iter().find(|token| token.id as usize >= hparams.n_vocab) {
            return Err(ModelError::Token { id: token.id, n_vocab: hparams.n_vocab });
        }
        self.locate(batch, cache, scratch)?;

        let mut record = Recorder { profile: scratch.profile.take(), layer: None };
        let n_out = batch.iter().filter(|token| token.logits).count();
        record.time(exec, Op::Embed, no_work, || {
            self.make_room(batch, cache, scratch);
            self.embed(exec, batch, scratch);
        });

        let last = self.weights.layers.len().saturating_sub(1);
        for (i, layer) in self.weights.layers.iter().enumerate() {
            record.layer = Some(i);
            self.attention(exec, i, layer, batch, cache, scratch, &mut record);
            // Behind the last attention only the tokens that want logits matter.
            if i == last {
                let wanted = || batch.iter().map(|token| token.logits);
                keep_rows(&mut scratch.hidden, n_embd, wanted());
                if self.spec().norms == Norms::Parallel {
                    keep_rows(&mut scratch.normed, n_embd, wanted());
                }
            }
            let n = if i == last { n_out } else { n };
            self.feed_forward(exec, layer, n, scratch, &mut record);
        }
        record.layer = None;

        for token in batch {
            cache.advance(token.seq, cache.len(token.seq) + 1);
        }
        let hidden = &mut scratch.hidden[..n_out * n_embd];
        if let Some(norm) = &self.weights.output_norm {
            record.time(exec, Op::Norm, no_work, || self.normalize(exec, hidden, norm));
        }
        scratch.profile = record.profile;
        Ok(hidden)
    }

    /// Gives every token its position and the last one that it sees, and checks that the batch
    /// continues its sequences as this model needs it.
    fn locate(
        &self,
        batch: &[BatchToken],
        cache: &KvCache,
        scratch: &mut Scratch,
    ) -> Result<(), ModelError> {
        let Scratch { positions, sees, .. } = scratch;
        positions.clear();
        for (i, token) in batch.iter().enumerate() {
            let before = batch[..i].iter().rposition(|other| other.seq == token.seq);
            let pos = before.map_or_else(|| cache.len(token.seq), |before| positions[before] + 1);
            positions.push(pos);
        }
        if let Some(embd) = &self.weights.position_embd
            && positions.iter().any(|pos| *pos >= embd.n_rows())
        {
            return Err(ModelError::Position { n_positions: embd.n_rows() });
        }
        sees.clear();
        sees.extend_from_slice(positions);
        if !self.hparams().both_ways {
            return Ok(());
        }
        if let Some(n_before) = batch.iter().map(|token| cache.len(token.seq)).find(|n| *n > 0) {
            return Err(ModelError::SplitSequence { n_before });
        }
        for i in (0..batch.len()).rev() {
            let behind = batch[i + 1..].iter().position(|other| other.seq == batch[i].seq);
            if let Some(behind) = behind {
                sees[i] = sees[i + 1 + behind];
            }
        }
        Ok(())
    }

    /// The embeddings of placed tokens, as they enter the first layer.
    fn embed(&self, exec: Exec<'_>, batch: &[BatchToken], scratch: &mut Scratch) {
        let (weights, hparams) = (&self.weights, self.hparams());
        let n_embd = hparams.n_embd;
        let Scratch { hidden, normed, positions, n_embedded, .. } = scratch;
        let hidden = sized(hidden, batch.len() * n_embd);
        let embd = weights.token_embd.matrix(&self.gguf);
        exec.for_rows(hidden, n_embd, |row, i| {
            embd.decode_row(exec, batch[i].id as usize, row);
            if hparams.embd_scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= hparams.embd_scale);
            }
            if let Some(token_type) = &weights.token_type {
                row.iter_mut().zip(token_type).for_each(|(x, t)| *x += t);
            }
        });
        if let Some(embd) = &weights.position_embd {
            let embd = embd.matrix(&self.gguf);
            let added = sized(normed, hidden.len());
            exec.for_rows(added, n_embd, |row, i| embd.decode_row(exec, positions[i], row));
            hidden.iter_mut().zip(added).for_each(|(x, p)| *x += *p);
        }
        if let Some(norm) = &weights.embd_norm {
            self.normalize(exec, hidden, norm);
        }
        // The system maps far more of the file around a row than the row; unless the products
        // read it there, it would add up to all of the embeddings.
        *n_embedded += batch.len();
        let in_file = weights.output.as_ref().is_some_and(|out| out.weight.packed().is_none());
        if *n_embedded >= EMBEDDED && !in_file {
            weights.token_embd.release(&self.gguf);
            *n_embedded = 0;
        }
    }

    /// Makes room in the cache for tokens whose positions are known, and fills the rotary tables.
    fn make_room(&self, batch: &[BatchToken], cache: &mut KvCache, scratch: &mut Scratch) {
        let Scratch { positions, rope, window_rope, .. } = scratch;
        rope.clear();
        window_rope.clear();
        for (token, pos) in batch.iter().zip(&*positions) {
            cache.reserve(token.seq, pos + 1);
            self.rope.push(*pos, rope);
            self.window_rope.push(*pos, window_rope);
        }
    }

    /// `hidden += post_norm(output · attention(norm(hidden)))`.
    #[expect(clippy::too_many_arguments, reason = "what a forward pass hands down")]
    fn attention(
        &self,
        exec: Exec<'_>,
        index: usize,
        layer: &Layer,
        batch: &[BatchToken],
        cache: &mut KvCache,
        scratch: &mut Scratch,
        record: &mut Recorder,
    ) {
        let hparams = self.hparams();
        let params = &hparams.layers[index];
        let (n, n_embd) = (batch.len(), hparams.n_embd);
        let (n_q, n_kv) = (params.n_heads, params.n_kv_heads);
        let (dim_k, dim_v) = (params.head_dim_k, params.head_dim_v);

        let Scratch { hidden, normed, q, k, v, attn, partials, added, quantized, .. } = scratch;
        let hidden = &mut hidden[..n * n_embd];
        let x = sized(normed, n * n_embd);
        let norm = layer.attn_norm.as_ref();
        record.time(exec, Op::Norm, no_work, || self.norm(exec, hidden, norm, x));
        let q = sized(q, n * n_q * dim_k);
        let k = sized(k, n * n_kv * dim_k);
        let v = sized(v, n * n_kv * dim_v);
        let projections = [(&layer.q, &mut *q), (&layer.k, &mut *k), (&layer.v, &mut *v)];
        self.linear(exec, Op::Qkv, x, quantized, projections, record);

        let (positions, sees) = (&scratch.positions[..], &scratch.sees[..]);
        record.time(exec, Op::Rope, no_work, || {
            // The norm's own length says whether it is over a head or over the whole row.
            debug_assert_eq!(layer.q_norm.is_some(), self.spec().qk_norm != QkNorm::None);
            if let (Some(q_norm), Some(k_norm)) = (&layer.q_norm, &layer.k_norm) {
                rms_norm(exec, q, q_norm, hparams.norm_eps);
                rms_norm(exec, k, k_norm, hparams.norm_eps);
            }
            if params.rotates {
                let (frequencies, table) = match params.window {
                    Some(_) => (&self.window_rope, &scratch.window_rope),
                    None => (&self.rope, &scratch.rope),
                };
                let (style, pairs) = (self.spec().rope, frequencies.n_pairs());
                rope(exec, q, n_q, dim_k, style, table, pairs);
                rope(exec, k, n_kv, dim_k, style, table, pairs);
            }
            for (i, token) in batch.iter().enumerate() {
                let k = &k[i * n_kv * dim_k..(i + 1) * n_kv * dim_k];
                let v = &v[i * n_kv * dim_v..(i + 1) * n_kv * dim_v];
                cache.store(exec.isa, index, (token.seq, positions[i]), k, v);
            }
        });

        let shape = attention::Layer {
            n_heads: n_q,
            kv: cache.layer(index),
            scale: params.attn_scale,
            soft_cap: hparams.attn_soft_cap,
            window: params.window,
            sinks: layer.sinks.as_deref(),
        };
        let token = |i: usize| Token { page_ids: cache.page_ids(batch[i].seq), pos: sees[i] };
        let out = sized(attn, n * n_q * dim_v);
        let work = || {
            let start = |pos: usize| (pos + 1).saturating_sub(params.window.unwrap_or(usize::MAX));
            let seen: usize = sees.iter().map(|pos| pos + 1 - start(*pos)).sum();
            // What successive tokens of a sequence see is read once.
            let (mut sees, mut read) = (sees, 0);
            for run in batch.chunk_by(|a, b| a.seq == b.seq) {
                let (run, others) = sees.split_at(run.len());
                read += run[run.len() - 1] + 1 - start(run[0]);
                sees = others;
            }
            (read * shape.kv.bytes_per_token(), 2 * seen * n_q * (dim_k + dim_v))
        };
        record.time(exec, Op::Attention, work, || {
            attention(exec, &shape, &cache.pages, token, q, partials, out);
        });
        let added = sized(added, n * n_embd);
        let output = [(&layer.attn_output, &mut *added)];
        self.linear(exec, Op::AttnOutput, out, quantized, output, record);
        record.time(exec, Op::Norm, no_work, || {
            let norms = (layer.attn_post_norm.as_ref(), layer.attn_sum_norm.as_ref());
            self.add(exec, norms, added, hidden);
        });
    }

    /// `x = norm(hidden)`, or `hidden` without a norm.
    fn norm(&self, exec: Exec<'_>, hidden: &[f32], norm: Option<&Norm>, x: &mut [f32]) {
        let n_embd = self.hparams().n_embd;
        exec.for_rows(x, n_embd, |row, i| {
            row.copy_from_slice(&hidden[i * n_embd..(i + 1) * n_embd]);
            self.normalize_row(exec, row, norm);
        });
    }

    /// `x = norm(x)`.
    fn normalize(&self, exec: Exec<'_>, x: &mut [f32], norm: &Norm) {
        exec.for_rows(x, norm.weight.len(), |row, _| self.normalize_row(exec, row, Some(norm)));
    }

    /// `row = norm(row)`, or as it is without a norm.
    fn normalize_row(&self, exec: Exec<'_>, row: &mut [f32], norm: Option<&Norm>) {
        let (Some(norm), eps) = (norm, self.hparams().norm_eps) else { return };
        let (weight, bias) = (&norm.weight, norm.bias.as_deref());
        match self.spec().norm {
            NormKind::Rms => rms_norm_row(exec.isa, row, weight, eps),
            NormKind::Layer => layer_norm_row(exec.isa, row, weight, bias, eps),
        }
    }

    /// `hidden += post_norm(ffn(norm(hidden)))` for the first `n` tokens.
    fn feed_forward(
        &self,
        exec: Exec<'_>,
        layer: &Layer,
        n: usize,
        scratch: &mut Scratch,
        record: &mut Recorder,
    ) {
        if n == 0 {
            return;
        }
        let n_embd = self.hparams().n_embd;
        let Scratch { hidden, normed, added, gate, up, quantized, gated, moe, .. } = scratch;
        let mut buffers = Buffers { gate, up, quantized, gated };
        let hidden = &mut hidden[..n * n_embd];
        let x = sized(normed, n * n_embd);
        // Side by side with attention, the feed-forward has the same input, which lies there.
        if self.spec().norms != Norms::Parallel {
            let norm = layer.ffn_norm.as_ref();
            record.time(exec, Op::Norm, no_work, || self.norm(exec, hidden, norm, x));
        }
        let added = sized(added, n * n_embd);
        match &layer.ffn {
            Ffn::Dense(ffn) => self.dense(exec, ffn, x, added, &mut buffers, record),
            Ffn::Plain { up, down } => {
                let Buffers { up: middle, quantized, .. } = buffers;
                let middle = sized(middle, n * up.weight.n_rows());
                self.linear(exec, Op::GateUp, x, quantized, [(up, &mut *middle)], record);
                record.time(exec, Op::Activation, no_work, || {
                    elementwise::activate(exec, self.spec().activation, middle);
                });
                self.linear(exec, Op::Down, middle, quantized, [(down, &mut *added)], record);
            }
            Ffn::Experts { router, experts, shared } => {
                self.route(exec, router, x, n, moe, buffers.quantized, record);
                self.run_experts(exec, experts, x, n, added, moe, &mut buffers, record);
                if let Some(shared) = shared {
                    let weights = sized(&mut moe.router, n);
                    shared.router.matmul(exec, &self.gguf, x, weights);
                    let out = sized(&mut moe.output, n * n_embd);
                    self.dense(exec, &shared.expert, x, out, &mut buffers, record);
                    for ((added, out), weight) in
                        added.chunks_exact_mut(n_embd).zip(out.chunks_exact(n_embd)).zip(weights)
                    {
                        let weight = elementwise::sigmoid(*weight);
                        added.iter_mut().zip(out).for_each(|(a, o)| *a += o * weight);
                    }
                }
            }
        }
        record.time(exec, Op::Norm, no_work, || {
            let norms = (layer.ffn_post_norm.as_ref(), layer.ffn_sum_norm.as_ref());
            self.add(exec, norms, added, hidden);
        });
    }

    /// Chooses each token's experts, most wanted first (ties: lower number first), and sorts the
    /// choices by expert.
    #[expect(clippy::too_many_arguments, reason = "borrowed parts of one scratch")]
    fn route(
        &self,
        exec: Exec<'_>,
        router: &Linear,
        x: &[f32],
        n: usize,
        moe: &mut MoeScratch,
        quantized: &mut QuantizedActivations,
        record: &mut Recorder,
    ) {
        let (Some(params), Some(spec)) = (self.hparams().experts, self.spec().moe) else { return };
        let MoeScratch { router: logits, order, weights, chosen, .. } = moe;
        let logits = sized(logits, n * params.n_experts);
        self.linear(exec, Op::Router, x, quantized, [(router, &mut *logits)], record);
        record.time(exec, Op::Router, no_work, || {
            chosen.clear();
            for (token, logits) in logits.chunks_exact_mut(params.n_experts).enumerate() {
                if spec.gating != Gating::SoftmaxOfChosen {
                    elementwise::softmax(logits);
                }
                order.clear();
                order.extend(0..params.n_experts);
                order.sort_unstable_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
                order.truncate(params.n_used);
                weights.clear();
                weights.extend(order.iter().map(|expert| logits[*expert]));
                match spec.gating {
                    Gating::Softmax => {}
                    Gating::SoftmaxNormalized => {
                        // The floor is the smallest normal f16, as in llama.cpp.
                        let sum = weights.iter().sum::<f32>().max(6.103_515_6e-5);
                        weights.iter_mut().for_each(|weight| *weight /= sum);
                    }
                    Gating::SoftmaxOfChosen => elementwise::softmax(weights),
                }
                chosen.extend(order.iter().zip(&*weights).enumerate().map(
                    |(rank, (expert, weight))| Chosen {
                        expert: *expert,
                        token,
                        rank,
                        weight: *weight,
                    },
                ));
            }
            chosen.sort_unstable_by_key(|chosen| (chosen.expert, chosen.token, chosen.rank));
        });
    }

    /// Runs every expert once, on all the tokens that chose it, then adds up each token's results
    /// in the order of its choice.
    #[expect(clippy::too_many_arguments, reason = "borrowed parts of one scratch")]
    fn run_experts(
        &self,
        exec: Exec<'_>,
        experts: &[Gated],
        x: &[f32],
        n: usize,
        added: &mut [f32],
        moe: &mut MoeScratch,
        buffers: &mut Buffers<'_>,
        record: &mut Recorder,
    ) {
        let (n_embd, n_used) = (self.hparams().n_embd, moe.chosen.len() / n.max(1));
        let MoeScratch { chosen, input, output, slots, .. } = moe;
        let input = sized(input, chosen.len() * n_embd);
        for (row, chosen) in input.chunks_exact_mut(n_embd).zip(&*chosen) {
            row.copy_from_slice(&x[chosen.token * n_embd..(chosen.token + 1) * n_embd]);
        }
        let mut groups: SmallVec<[(&Gated, Range<usize>); 16]> = SmallVec::new();
        let mut start = 0;
        for group in chosen.chunk_by(|a, b| a.expert == b.expert) {
            groups.push((&experts[group[0].expert], start..start + group.len()));
            start += group.len();
        }
        let output = sized(output, chosen.len() * n_embd);
        self.gated(exec, &groups, input, output, buffers, record);
        record.time(exec, Op::Combine, no_work, || {
            let slots = sized(slots, chosen.len() * n_embd);
            for (row, chosen) in output.chunks_exact(n_embd).zip(&*chosen) {
                let at = (chosen.token * n_used + chosen.rank) * n_embd;
                for (slot, x) in slots[at..at + n_embd].iter_mut().zip(row) {
                    *slot = x * chosen.weight;
                }
            }
            for (added, slots) in
                added.chunks_exact_mut(n_embd).zip(slots.chunks_exact(n_used * n_embd))
            {
                added.copy_from_slice(&slots[..n_embd]);
                for slot in slots[n_embd..].chunks_exact(n_embd) {
                    added.iter_mut().zip(slot).for_each(|(a, s)| *a += s);
                }
            }
        });
    }

    /// `out = down · (activation(gate · x) * (up · x))`.
    fn dense(
        &self,
        exec: Exec<'_>,
        ffn: &Gated,
        x: &[f32],
        out: &mut [f32],
        buffers: &mut Buffers<'_>,
        record: &mut Recorder,
    ) {
        let n = x.len() / self.hparams().n_embd;
        let [gate, up] = [&ffn.gate, &ffn.up];
        let packed = |linear: &Linear| linear.weight.packed().is_some();
        let Some(down) = ffn.down.weight.packed().filter(|_| packed(gate) && packed(up)) else {
            return self.gated(exec, &[(ffn, 0..n)], x, out, buffers, record);
        };
        if !multiplies_gated(exec, n, gate.weight.n_rows()) {
            return self.gated(exec, &[(ffn, 0..n)], x, out, buffers, record);
        }
        let Buffers { quantized, gated, .. } = buffers;
        self.quantize(exec, x, quantized, [gate, up], record);
        let work = || {
            let [gate, up] = [gate, up].map(|linear| work_of(linear, n));
            (gate.0 + up.0, gate.1 + up.1)
        };
        record.time(exec, Op::GateUp, work, || {
            let weights = [gate, up].map(|linear| weights_of(linear).expect("they are packed"));
            let activation = self.spec().activation;
            matmul_gated(exec, quantized, weights, activation, &down.matrix, gated);
        });
        let down = Projection { linear: &ffn.down, rows: 0..n, out };
        self.project(exec, Op::Down, &[], gated, false, [down].into_iter().collect(), record);
    }

    /// `out = down · (activation(gate · x) * (up · x))` for networks of one shape, each for its own
    /// rows of `x`, which follow one another.
    fn gated(
        &self,
        exec: Exec<'_>,
        networks: &[(&Gated, Range<usize>)],
        x: &[f32],
        out: &mut [f32],
        buffers: &mut Buffers<'_>,
        record: &mut Recorder,
    ) {
        let Some((first, _)) = networks.first() else { return };
        let n = x.len() / self.hparams().n_embd;
        let n_ff = first.gate.weight.n_rows();
        let gate = sized(buffers.gate, n * n_ff);
        let up = sized(buffers.up, n * n_ff);
        let quantized = &mut *buffers.quantized;
        let mut projections = Projections::new();
        projections.extend(each(networks, |ffn| &ffn.gate, gate, n_ff));
        projections.extend(each(networks, |ffn| &ffn.up, up, n_ff));
        self.project(exec, Op::GateUp, x, quantized, true, projections, record);
        let activation = self.spec().activation;
        let packed = first.down.weight.packed().map(|packed| &packed.matrix);
        record.time(exec, Op::Activation, no_work, || match packed {
            Some(down) => quantized.quantize_gated(exec, activation, gate, up, down),
            None => elementwise::gate(exec, activation, gate, up),
        });
        let n_embd = self.hparams().n_embd;
        let down = each(networks, |ffn| &ffn.down, out, n_embd).collect();
        self.project(exec, Op::Down, gate, quantized, packed.is_none(), down, record);
    }

    /// `out = weight · x + bias` for each of some projections of all rows of one input.
    fn linear<const N: usize>(
        &self,
        exec: Exec<'_>,
        op: Op,
        x: &[f32],
        quantized: &mut QuantizedActivations,
        projections: [(&Linear, &mut [f32]); N],
        record: &mut Recorder,
    ) {
        let projections = projections.into_iter().map(|(linear, out)| {
            let n = x.len() / linear.weight.n_cols();
            Projection { linear, rows: 0..n, out }
        });
        self.project(exec, op, x, quantized, true, projections.collect(), record);
    }

    /// Computes projections of one input, which is quantized once for those that need it, unless
    /// (`quantize`) it is so already.
    #[expect(clippy::too_many_arguments, reason = "what a forward pass hands down")]
    fn project(
        &self,
        exec: Exec<'_>,
        op: Op,
        x: &[f32],
        quantized: &mut QuantizedActivations,
        quantize: bool,
        projections: Projections<'_>,
        record: &mut Recorder,
    ) {
        if quantize {
            let linears = projections.iter().map(|projection| projection.linear);
            self.quantize(exec, x, quantized, linears, record);
        }
        let mut work = (0, 0);
        if record.profile.is_some() {
            for Projection { linear, rows, .. } in &projections {
                let (bytes, flops) = work_of(linear, rows.len());
                work = (work.0 + bytes, work.1 + flops);
            }
        }
        record.time(
            exec,
            op,
            || work,
            || {
                let mut products: SmallVec<[Product<'_>; 32]> = SmallVec::new();
                for Projection { linear, rows, out } in projections {
                    if let Some(weights) = weights_of(linear) {
                        products.push(Product::new(weights, rows, out));
                        continue;
                    }
                    let bias = linear.bias.as_deref();
                    let n_cols = linear.weight.n_cols();
                    let x = &x[rows.start * n_cols..rows.end * n_cols];
                    linear.weight.matmul(exec, &self.gguf, x, out);
                    if let Some(bias) = bias {
                        for row in out.chunks_exact_mut(bias.len()) {
                            row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
                        }
                    }
                }
                if !products.is_empty() {
                    matmul_packed(exec, quantized, &products);
                }
            },
        );
    }

    /// Quantizes the input of some projections for those that need it.
    fn quantize<'a>(
        &self,
        exec: Exec<'_>,
        x: &[f32],
        quantized: &mut QuantizedActivations,
        linears: impl IntoIterator<Item = &'a Linear>,
        record: &mut Recorder,
    ) {
        let packed = linears.into_iter().filter_map(|linear| linear.weight.packed());
        let matrices = packed.map(|packed| &*packed.matrix);
        record.time(exec, Op::Quantize, no_work, || quantized.quantize(exec, x, matrices));
    }

    /// `hidden = sum_norm(hidden + post_norm(added) * residual_scale)`.
    fn add(
        &self,
        exec: Exec<'_>,
        (post_norm, sum_norm): (Option<&Norm>, Option<&Norm>),
        added: &mut [f32],
        hidden: &mut [f32],
    ) {
        let hparams = self.hparams();
        exec.for_row_pairs(added, hidden, hparams.n_embd, |added, hidden, _| {
            self.normalize_row(exec, added, post_norm);
            if hparams.residual_scale != 1.0 {
                added.iter_mut().for_each(|x| *x *= hparams.residual_scale);
            }
            hidden.iter_mut().zip(added).for_each(|(h, a)| *h += *a);
            self.normalize_row(exec, hidden, sum_norm);
        });
    }
}

/// A projection's weights as the kernels take them, if they are packed.
fn weights_of(linear: &Linear) -> Option<Weights<'_>> {
    let packed = linear.weight.packed()?;
    Some(Weights::new(&packed.matrix, packed.part, linear.bias.as_deref()))
}

/// Bytes that a projection of `n` rows reads, and numbers that it multiplies and adds.
fn work_of(linear: &Linear, n: usize) -> (usize, usize) {
    let weight = &linear.weight;
    (weight.n_bytes(), 2 * n * weight.n_rows() * weight.n_cols())
}

/// A projection of each of some networks, of rows that follow one another; `out` is `[n_rows, width]`.
fn each<'a>(
    networks: &'a [(&'a Gated, Range<usize>)],
    part: impl Fn(&Gated) -> &Linear + 'a,
    mut out: &'a mut [f32],
    width: usize,
) -> impl Iterator<Item = Projection<'a>> {
    networks.iter().map(move |(network, rows)| {
        let rest = std::mem::take(&mut out);
        let (mine, rest) = rest.split_at_mut(rows.len() * width);
        out = rest;
        Projection { linear: part(network), rows: rows.clone(), out: mine }
    })
}

/// Moves the rows that `keep` names to the front.
fn keep_rows(x: &mut [f32], width: usize, keep: impl Iterator<Item = bool>) {
    let mut to = 0;
    for (from, keep) in keep.enumerate() {
        if keep {
            x.copy_within(from * width..(from + 1) * width, to * width);
            to += 1;
        }
    }
}
