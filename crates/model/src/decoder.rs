//! THE forward pass.
//!
//! ```text
//! tokens ─ embed ─┬─ norm ─ Q,K,V ─ qk-norm ─ rope ─ attention ─ output ─ norm ─(+)─┬─ norm ─ FFN or experts ─ norm ─(+)─ ... ─ norm ─ logits
//!                 └──────────────────────────────────────────────────────────────────┘ └──────────────────────────────────┘
//! ```
//! It takes any mix of tokens: whole prompts, chunks of prompts, single tokens of many sequences.
//! Every operation works on each token by itself, and attention sees the token's own sequence only,
//! so a token's result does not depend on who shares the batch.

use crate::kv_cache::{KvCache, KvType, SeqId};
use crate::load::{Ffn, Gated, Layer, Linear};
use crate::profile::Profile;
use crate::spec::{Gating, QkNorm};
use crate::{Model, ModelError};
use half::f16;
use hurtle_kernels::Exec;
use hurtle_kernels::activations::QuantizedActivations;
use hurtle_kernels::attention::{self, Token, attention};
use hurtle_kernels::elementwise::{self, rms_norm, rope};
use hurtle_kernels::packed::matmul_packed;

/// A token to be processed. It takes the position after what the cache and the batch before it
/// hold of its sequence.
#[derive(Debug, Clone, Copy)]
pub struct BatchToken {
    /// Token id.
    pub id: u32,
    /// Its sequence.
    pub seq: SeqId,
    /// Whether its logits are wanted.
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
    added: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    logits: Vec<f32>,
    rope: Vec<(f32, f32)>,
    window_rope: Vec<(f32, f32)>,
    positions: Vec<usize>,
    quantized: QuantizedActivations,
    moe: MoeScratch,
    /// Where costs are added to, if they are wanted.
    pub profile: Option<Profile>,
}

/// What a feed-forward network needs of the scratch.
struct Buffers<'a> {
    gate: &'a mut Vec<f32>,
    up: &'a mut Vec<f32>,
    quantized: &'a mut QuantizedActivations,
}

#[derive(Debug, Default)]
struct MoeScratch {
    router: Vec<f32>,
    chosen: Vec<Chosen>,
    input: Vec<f32>,
    output: Vec<f32>,
    slots: Vec<f32>,
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
    /// If a token is not in the vocabulary; the cache is unchanged then.
    pub fn forward<'s>(
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

        self.place(batch, cache, scratch);
        let hidden = sized(&mut scratch.hidden, n * n_embd);
        let embd = self.weights.token_embd.matrix(&self.gguf);
        exec.for_rows(hidden, n_embd, |row, i| {
            embd.decode_row(exec, batch[i].id as usize, row);
            if hparams.embd_scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= hparams.embd_scale);
            }
        });

        let last = self.weights.layers.len().saturating_sub(1);
        for (i, layer) in self.weights.layers.iter().enumerate() {
            self.attention(exec, i, layer, batch, cache, scratch);
            // Behind the last attention only the tokens that want logits matter.
            if i == last {
                keep_rows(&mut scratch.hidden, n_embd, batch.iter().map(|token| token.logits));
            }
            let n = if i == last { batch.iter().filter(|token| token.logits).count() } else { n };
            self.feed_forward(exec, layer, n, scratch);
        }

        for token in batch {
            cache.advance(token.seq, cache.len(token.seq) + 1);
        }
        let n_out = batch.iter().filter(|token| token.logits).count();
        let hidden = &mut scratch.hidden[..n_out * n_embd];
        rms_norm(exec, hidden, &self.weights.output_norm, hparams.norm_eps);
        let logits = sized(&mut scratch.logits, n_out * hparams.n_vocab);
        let output = (&self.weights.output, &mut *logits);
        self.linear(exec, hidden, &mut scratch.quantized, [output]);
        if hparams.logit_scale != 1.0 {
            let scale = 1.0 / hparams.logit_scale;
            logits.iter_mut().for_each(|x| *x *= scale);
        }
        if let Some(cap) = hparams.logit_soft_cap {
            elementwise::soft_cap(exec, logits, cap);
        }
        Ok(logits)
    }

    /// Gives every token its position, makes room in the cache and fills the rotary tables.
    fn place(&self, batch: &[BatchToken], cache: &mut KvCache, scratch: &mut Scratch) {
        let Scratch { positions, rope, window_rope, .. } = scratch;
        positions.clear();
        rope.clear();
        window_rope.clear();
        for (i, token) in batch.iter().enumerate() {
            let before = batch[..i].iter().rposition(|other| other.seq == token.seq);
            let pos = before.map_or_else(|| cache.len(token.seq), |before| positions[before] + 1);
            positions.push(pos);
            cache.reserve(token.seq, pos);
            self.rope.push(pos, rope);
            self.window_rope.push(pos, window_rope);
        }
    }

    /// `hidden += post_norm(output · attention(norm(hidden)))`.
    fn attention(
        &self,
        exec: Exec<'_>,
        index: usize,
        layer: &Layer,
        batch: &[BatchToken],
        cache: &mut KvCache,
        scratch: &mut Scratch,
    ) {
        let hparams = self.hparams();
        let params = &hparams.layers[index];
        let (n, n_embd) = (batch.len(), hparams.n_embd);
        let (n_q, n_kv) = (params.n_heads, params.n_kv_heads);
        let (dim_k, dim_v) = (params.head_dim_k, params.head_dim_v);

        let hidden = &scratch.hidden[..n * n_embd];
        let x = sized(&mut scratch.normed, n * n_embd);
        x.copy_from_slice(hidden);
        if let Some(norm) = &layer.attn_norm {
            rms_norm(exec, x, norm, hparams.norm_eps);
        }
        let q = sized(&mut scratch.q, n * n_q * dim_k);
        let k = sized(&mut scratch.k, n * n_kv * dim_k);
        let v = sized(&mut scratch.v, n * n_kv * dim_v);
        let quantized = &mut scratch.quantized;
        let projections = [(&layer.q, &mut *q), (&layer.k, &mut *k), (&layer.v, &mut *v)];
        self.linear(exec, x, quantized, projections);
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

        let offsets = cache.offsets(index);
        let (type_k, type_v) = cache.types();
        for (i, token) in batch.iter().enumerate() {
            let pos = scratch.positions[i];
            let k = &k[i * n_kv * dim_k..(i + 1) * n_kv * dim_k];
            let v = &v[i * n_kv * dim_v..(i + 1) * n_kv * dim_v];
            match type_k {
                KvType::F32 => cache.store::<f32>(token.seq, pos, offsets.k, dim_k, k),
                KvType::F16 => cache.store::<f16>(token.seq, pos, offsets.k, dim_k, k),
            }
            match type_v {
                KvType::F32 => cache.store::<f32>(token.seq, pos, offsets.v, dim_v, v),
                KvType::F16 => cache.store::<f16>(token.seq, pos, offsets.v, dim_v, v),
            }
        }
        let tokens: Vec<Token<'_>> = (batch.iter().zip(&scratch.positions))
            .map(|(token, pos)| Token { page_ids: cache.page_ids(token.seq), pos: *pos })
            .collect();
        let shape = attention::Layer {
            n_heads: n_q,
            n_kv_heads: n_kv,
            dim_k,
            dim_v,
            k_offset: offsets.k,
            v_offset: offsets.v,
            scale: params.attn_scale,
            soft_cap: hparams.attn_soft_cap,
            window: params.window,
            sinks: layer.sinks.as_deref(),
        };
        let out = sized(&mut scratch.attn, n * n_q * dim_v);
        match (type_k, type_v) {
            (KvType::F32, KvType::F32) => {
                attention::<f32, f32>(exec, &shape, &cache.pages, &tokens, q, out)
            }
            (KvType::F32, KvType::F16) => {
                attention::<f32, f16>(exec, &shape, &cache.pages, &tokens, q, out)
            }
            (KvType::F16, KvType::F32) => {
                attention::<f16, f32>(exec, &shape, &cache.pages, &tokens, q, out)
            }
            (KvType::F16, KvType::F16) => {
                attention::<f16, f16>(exec, &shape, &cache.pages, &tokens, q, out)
            }
        }
        let added = sized(&mut scratch.added, n * n_embd);
        self.linear(exec, out, quantized, [(&layer.attn_output, &mut *added)]);
        let hidden = &mut scratch.hidden[..n * n_embd];
        self.add(exec, layer.attn_post_norm.as_deref(), added, hidden);
    }

    /// `hidden += post_norm(ffn(norm(hidden)))` for the first `n` tokens.
    fn feed_forward(&self, exec: Exec<'_>, layer: &Layer, n: usize, scratch: &mut Scratch) {
        if n == 0 {
            return;
        }
        let hparams = self.hparams();
        let n_embd = hparams.n_embd;
        let Scratch { hidden, normed, added, gate, up, quantized, moe, .. } = scratch;
        let mut buffers = Buffers { gate, up, quantized };
        let hidden = &mut hidden[..n * n_embd];
        let x = sized(normed, n * n_embd);
        x.copy_from_slice(hidden);
        if let Some(norm) = &layer.ffn_norm {
            rms_norm(exec, x, norm, hparams.norm_eps);
        }
        let added = sized(added, n * n_embd);
        match &layer.ffn {
            Ffn::Dense(ffn) => self.gated(exec, ffn, x, added, &mut buffers),
            Ffn::Experts { router, experts, shared } => {
                self.route(exec, router, x, n, moe, buffers.quantized);
                self.run_experts(exec, experts, x, n, added, moe, &mut buffers);
                if let Some(shared) = shared {
                    let weights = sized(&mut moe.router, n);
                    shared.router.matmul(exec, &self.gguf, x, weights);
                    let out = sized(&mut moe.output, n * n_embd);
                    self.gated(exec, &shared.expert, x, out, &mut buffers);
                    for ((added, out), weight) in
                        added.chunks_exact_mut(n_embd).zip(out.chunks_exact(n_embd)).zip(weights)
                    {
                        let weight = elementwise::sigmoid(*weight);
                        added.iter_mut().zip(out).for_each(|(a, o)| *a += o * weight);
                    }
                }
            }
        }
        self.add(exec, layer.ffn_post_norm.as_deref(), added, hidden);
    }

    /// Chooses each token's experts, most wanted first (ties: lower number first), and sorts the
    /// choices by expert.
    fn route(
        &self,
        exec: Exec<'_>,
        router: &Linear,
        x: &[f32],
        n: usize,
        moe: &mut MoeScratch,
        quantized: &mut QuantizedActivations,
    ) {
        let (Some(params), Some(spec)) = (self.hparams().experts, self.spec().moe) else { return };
        let logits = sized(&mut moe.router, n * params.n_experts);
        self.linear(exec, x, quantized, [(router, &mut *logits)]);
        moe.chosen.clear();
        let mut order: Vec<usize> = Vec::with_capacity(params.n_experts);
        let mut weights: Vec<f32> = Vec::with_capacity(params.n_used);
        for (token, logits) in logits.chunks_exact_mut(params.n_experts).enumerate() {
            if spec.gating != Gating::SoftmaxOfChosen {
                elementwise::softmax(logits);
            }
            order.clear();
            order.extend(0..params.n_experts);
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
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
                Gating::SoftmaxOfChosen => elementwise::softmax(&mut weights),
            }
            moe.chosen.extend(order.iter().zip(&weights).enumerate().map(
                |(rank, (expert, weight))| Chosen { expert: *expert, token, rank, weight: *weight },
            ));
        }
        moe.chosen.sort_by_key(|chosen| chosen.expert);
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
    ) {
        let (n_embd, n_used) = (self.hparams().n_embd, moe.chosen.len() / n.max(1));
        let MoeScratch { chosen, input, output, slots, .. } = moe;
        let slots = sized(slots, n * n_used * n_embd);
        for group in chosen.chunk_by(|a, b| a.expert == b.expert) {
            let input = sized(input, group.len() * n_embd);
            for (row, chosen) in input.chunks_exact_mut(n_embd).zip(group) {
                row.copy_from_slice(&x[chosen.token * n_embd..(chosen.token + 1) * n_embd]);
            }
            let output = sized(output, group.len() * n_embd);
            self.gated(exec, &experts[group[0].expert], input, output, buffers);
            for (row, chosen) in output.chunks_exact(n_embd).zip(group) {
                let at = (chosen.token * n_used + chosen.rank) * n_embd;
                for (slot, x) in slots[at..at + n_embd].iter_mut().zip(row) {
                    *slot = x * chosen.weight;
                }
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
    }

    /// `out = down · (activation(gate · x) * (up · x))`.
    fn gated(
        &self,
        exec: Exec<'_>,
        ffn: &Gated,
        x: &[f32],
        out: &mut [f32],
        buffers: &mut Buffers<'_>,
    ) {
        let n = x.len() / self.hparams().n_embd;
        let gate = sized(buffers.gate, n * ffn.gate.weight.n_rows());
        let up = sized(buffers.up, n * ffn.up.weight.n_rows());
        let projections = [(&ffn.gate, &mut *gate), (&ffn.up, &mut *up)];
        self.linear(exec, x, buffers.quantized, projections);
        elementwise::gate(exec, self.spec().activation, gate, up);
        self.linear(exec, gate, buffers.quantized, [(&ffn.down, out)]);
    }

    /// `out = weight · x + bias` for each of some projections of one input, which is quantized once
    /// for those that need it.
    fn linear<const N: usize>(
        &self,
        exec: Exec<'_>,
        x: &[f32],
        quantized: &mut QuantizedActivations,
        projections: [(&Linear, &mut [f32]); N],
    ) {
        let packed = projections.iter().filter_map(|(linear, _)| linear.weight.packed());
        quantized.quantize(exec, x, packed);
        for (linear, out) in projections {
            match linear.weight.packed() {
                Some(packed) => matmul_packed(exec, packed, quantized, out),
                None => linear.weight.matmul(exec, &self.gguf, x, out),
            }
            if let Some(bias) = &linear.bias {
                for row in out.chunks_exact_mut(bias.len()) {
                    row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
                }
            }
        }
    }

    /// `hidden += post_norm(added) * residual_scale`.
    fn add(
        &self,
        exec: Exec<'_>,
        post_norm: Option<&[f32]>,
        added: &mut [f32],
        hidden: &mut [f32],
    ) {
        let hparams = self.hparams();
        if let Some(norm) = post_norm {
            rms_norm(exec, added, norm, hparams.norm_eps);
        }
        if hparams.residual_scale != 1.0 {
            added.iter_mut().for_each(|x| *x *= hparams.residual_scale);
        }
        hidden.iter_mut().zip(added).for_each(|(h, a)| *h += *a);
    }
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
