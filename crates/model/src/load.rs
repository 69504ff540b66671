//! From a file to weights: finds every tensor that the architecture needs, checks its shape, and
//! refuses files that hold tensors nobody asked for.

use crate::ModelError;
use crate::hparams::{ExpertParams, Hparams, LayerParams, Pooling, file_name};
use crate::spec::{ArchSpec, FfnKind, Head, Input, NormKind, Norms, QkNorm};
use hurtle_gguf::{Gguf, TensorInfo};
use hurtle_kernels::Exec;
use hurtle_kernels::backend::{MatmulBackend, PreparedMatrix};
use hurtle_kernels::matmul::{Matrix, matmul};
use hurtle_kernels::packed::{Books, PackedMatrix};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

/// Some rows of a tensor of the file.
#[derive(Debug, Clone)]
pub(crate) struct Weight {
    tensor: TensorInfo,
    n_cols: usize,
    bytes: Range<usize>,
    n_rows: usize,
    packed: Option<Packed>,
    /// The rows in a backend's hands, if there is one.
    prepared: Option<Arc<dyn PreparedMatrix>>,
}

/// One of the matrices that were packed together.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    pub(crate) matrix: Arc<PackedMatrix>,
    pub(crate) part: usize,
}

impl Weight {
    pub(crate) fn matrix<'a>(&self, gguf: &'a Gguf) -> Matrix<'a> {
        let bytes = &gguf.data(&self.tensor)[self.bytes.clone()];
        Matrix::new(self.tensor.ty(), self.n_rows, self.n_cols, bytes)
            .expect("the loader checked type and shape")
    }

    /// The rows packed for the kernels, if they are.
    pub(crate) fn packed(&self) -> Option<&Packed> {
        self.packed.as_ref()
    }

    /// Bytes that a product reads.
    pub(crate) fn n_bytes(&self) -> usize {
        self.packed.as_ref().map_or(self.bytes.len(), |packed| packed.matrix.part_bytes())
    }

    /// Lets go of the file's pages.
    pub(crate) fn release(&self, gguf: &Gguf) {
        gguf.release(&self.tensor, self.bytes.clone());
    }

    /// Packs weights of one shape together if there is a kernel for their type, and lets go of the
    /// file's pages on the way, so that little is in memory twice.
    fn pack<'a>(
        weights: impl IntoIterator<Item = &'a mut Weight>,
        books: Books,
        exec: Exec<'_>,
        gguf: &Gguf,
    ) {
        let weights: Vec<&mut Weight> = weights.into_iter().collect();
        let Some(first) = weights.first() else { return };
        let tensor = first.tensor.clone();
        let matrices: Vec<_> = weights.iter().map(|weight| weight.matrix(gguf)).collect();
        let start = gguf.data(&tensor).as_ptr().addr();
        let part = |bytes: &[u8]| {
            let at = bytes.as_ptr().addr() - start;
            at..at + bytes.len()
        };
        let packed = PackedMatrix::pack(
            exec,
            &matrices,
            books,
            &|bytes| gguf.populate(&tensor, part(bytes)),
            &|bytes| gguf.release(&tensor, part(bytes)),
        );
        if let Some(matrix) = packed.map(Arc::new) {
            // What pages at the edges of the pieces have in common with their neighbours.
            gguf.release(&tensor, 0..tensor.n_bytes());
            for (part, weight) in weights.into_iter().enumerate() {
                weight.packed = Some(Packed { matrix: Arc::clone(&matrix), part });
            }
        }
    }

    /// Gives the rows to a backend, and lets go of the file's pages.
    fn hand_over(&mut self, backend: &dyn MatmulBackend, gguf: &Gguf) -> Result<(), ModelError> {
        let prepared = backend.prepare(&self.matrix(gguf)).map_err(|source| {
            let (file, tensor) = (file_name(gguf), self.tensor.name().into());
            ModelError::Backend { file, tensor, backend: backend.name(), source }
        })?;
        self.prepared = Some(prepared.into());
        self.release(gguf);
        Ok(())
    }

    /// `out[token, row] = weights[row] · x[token]` with f32 activations: by the backend, if there is one.
    pub(crate) fn matmul(&self, exec: Exec<'_>, gguf: &Gguf, x: &[f32], out: &mut [f32]) {
        match &self.prepared {
            Some(prepared) => prepared.matmul(exec, x, out),
            None => matmul(exec, &self.matrix(gguf), x, out),
        }
    }

    pub(crate) fn n_cols(&self) -> usize {
        self.n_cols
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// A part of the rows, which must lie within.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Weight {
        let row = self.bytes.len() / self.n_rows;
        let bytes = self.bytes.start + rows.start * row..self.bytes.start + rows.end * row;
        Weight { bytes, n_rows: rows.len(), ..self.clone() }
    }
}

/// `y = weight · x + bias`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Vec<f32>>,
}

/// The weights of a norm.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attn_norm: Option<Norm>,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) q_norm: Option<Vec<f32>>,
    pub(crate) k_norm: Option<Vec<f32>>,
    pub(crate) sinks: Option<Vec<f32>>,
    pub(crate) attn_output: Linear,
    pub(crate) attn_post_norm: Option<Norm>,
    pub(crate) attn_sum_norm: Option<Norm>,
    pub(crate) ffn_norm: Option<Norm>,
    pub(crate) ffn: Ffn,
    pub(crate) ffn_post_norm: Option<Norm>,
    pub(crate) ffn_sum_norm: Option<Norm>,
}

#[derive(Debug)]
pub(crate) enum Ffn {
    Dense(Box<Gated>),
    /// `down · activation(up · x)`.
    Plain {
        up: Linear,
        down: Linear,
    },
    Experts {
        router: Linear,
        experts: Vec<Gated>,
        shared: Option<Box<SharedExpert>>,
    },
}

/// `down · (activation(gate · x) * (up · x))`.
#[derive(Debug)]
pub(crate) struct Gated {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

#[derive(Debug)]
pub(crate) struct SharedExpert {
    /// `[1, n_embd]`
    pub(crate) router: Weight,
    pub(crate) expert: Gated,
}

#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) token_embd: Weight,
    /// Of token type 0, `[n_embd]`.
    pub(crate) token_type: Option<Vec<f32>>,
    /// `[n_positions, n_embd]`
    pub(crate) position_embd: Option<Weight>,
    pub(crate) embd_norm: Option<Norm>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Option<Norm>,
    pub(crate) output: Option<Linear>,
    pub(crate) classifier: Option<Classifier>,
}

/// `output · tanh(dense · x)`, or `output · x`.
#[derive(Debug)]
pub(crate) struct Classifier {
    pub(crate) dense: Option<Linear>,
    pub(crate) output: Linear,
}

impl Weights {
    /// Packs all projections whose type has a kernel. The token embeddings stay in the file, which
    /// looking up a few rows does not read.
    pub(crate) fn pack(&mut self, books: Books, exec: Exec<'_>, gguf: &Gguf) {
        for weights in self.projections() {
            Weight::pack(weights, books, exec, gguf);
        }
    }

    /// Gives everything that is multiplied to a backend.
    pub(crate) fn hand_over(
        &mut self,
        backend: &dyn MatmulBackend,
        gguf: &Gguf,
    ) -> Result<(), ModelError> {
        self.projections().into_iter().flatten().try_for_each(|w| w.hand_over(backend, gguf))?;
        for layer in &mut self.layers {
            if let Ffn::Experts { shared: Some(shared), .. } = &mut layer.ffn {
                shared.router.hand_over(backend, gguf)?;
            }
        }
        Ok(())
    }

    /// The projections of all layers, but for the single row that routes to a shared expert, and
    /// those to logits and scores. Those that belong together, the same projection of all experts of a
    /// layer, are one entry.
    fn projections(&mut self) -> Vec<Vec<&mut Weight>> {
        let Self { layers, output, classifier, .. } = self;
        let mut all = Vec::new();
        for layer in layers {
            let Layer { q, k, v, attn_output, ffn, .. } = layer;
            all.extend([q, k, v, attn_output].map(|linear| vec![&mut linear.weight]));
            let dense = match ffn {
                Ffn::Dense(ffn) => Some(&mut **ffn),
                Ffn::Plain { up, down } => {
                    all.extend([up, down].map(|linear| vec![&mut linear.weight]));
                    None
                }
                Ffn::Experts { router, experts, shared } => {
                    all.push(vec![&mut router.weight]);
                    let (mut gate, mut up, mut down) = (Vec::new(), Vec::new(), Vec::new());
                    for expert in experts {
                        gate.push(&mut expert.gate.weight);
                        up.push(&mut expert.up.weight);
                        down.push(&mut expert.down.weight);
                    }
                    all.extend([gate, up, down]);
                    shared.as_mut().map(|shared| &mut shared.expert)
                }
            };
            if let Some(Gated { gate, up, down }) = dense {
                all.extend([gate, up, down].map(|linear| vec![&mut linear.weight]));
            }
        }
        let (dense, scores) = match classifier {
            Some(Classifier { dense, output }) => (dense.as_mut(), Some(output)),
            None => (None, None),
        };
        let heads = [output.as_mut(), dense, scores].into_iter().flatten();
        all.extend(heads.map(|linear| vec![&mut linear.weight]));
        all
    }
}

/// Tensors that other programs put into files of these architectures and that play no part in
/// generating text.
const IGNORED: &[&str] = &[
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
    "cls.weight",
    "cls.bias",
    "cls.output.weight",
    "cls.output.bias",
];

pub(crate) struct Loader<'a> {
    gguf: &'a Gguf,
    spec: &'static ArchSpec,
    used: HashSet<String>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(gguf: &'a Gguf, spec: &'static ArchSpec) -> Self {
        Self { gguf, spec, used: HashSet::new() }
    }

    /// Number of tokens: what the embedding has rows for.
    pub(crate) fn n_vocab(&self) -> Result<usize, ModelError> {
        let name = "token_embd.weight";
        let tensor = self.gguf.tensor(name).ok_or_else(|| self.missing(name, vec![]))?;
        let rows = tensor.dims().get(1).copied().unwrap_or(0);
        let tokens = self.gguf.metadata().strings("tokenizer.ggml.tokens")?.map(|t| t.len() as u64);
        if rows == 0 || tokens.is_some_and(|tokens| tokens != rows) {
            let expected = vec![tensor.dims()[0], tokens.unwrap_or(1)];
            return Err(self.shape(tensor, expected));
        }
        Ok(rows as usize)
    }

    /// Finds all weights.
    pub(crate) fn load(mut self, hparams: &Hparams) -> Result<Weights, ModelError> {
        let Hparams { n_embd, n_vocab, .. } = *hparams;
        let token_embd = self.weight("token_embd.weight", n_embd, n_vocab)?;
        let (types, positions) = match self.spec.input {
            Input::Tokens => (false, false),
            Input::Positions => (false, true),
            Input::Types => (true, false),
            Input::TypesAndPositions => (true, true),
        };
        let token_type = if types { self.first_row("token_types.weight", n_embd)? } else { None };
        let position_embd = positions
            .then(|| self.weight("position_embd.weight", n_embd, hparams.n_ctx_train))
            .transpose()?;
        let embd_norm = self.norm_if(types, "token_embd_norm", n_embd)?;
        let vocabulary = self.spec.head == Head::Vocabulary;
        let output_norm = self.norm_if(vocabulary, "output_norm", n_embd)?;
        let output = if vocabulary {
            let weight = self.optional_weight("output.weight", n_embd, n_vocab, 1)?;
            let weight = weight.unwrap_or_else(|| token_embd.clone());
            Some(Linear { weight, bias: self.optional_vector("output.bias", n_vocab)? })
        } else {
            None
        };
        let classifier = match hparams.pooling {
            Some(Pooling::Rank) => Some(self.classifier(n_embd)?),
            _ => None,
        };
        let mut layers = Vec::new();
        for (i, params) in hparams.layers.iter().enumerate() {
            layers.push(self.layer(
                &format!("blk.{i}"),
                n_embd,
                params,
                hparams.experts.as_ref(),
            )?);
        }
        let unknown: Vec<String> = (self.gguf.tensors().iter().map(TensorInfo::name))
            .filter(|name| !self.used.contains(*name) && !IGNORED.contains(name))
            .map(String::from)
            .collect();
        if !unknown.is_empty() {
            let (file, arch) = (file_name(self.gguf), self.spec.name);
            return Err(ModelError::UnknownTensors { file, arch, tensors: unknown });
        }
        Ok(Weights {
            token_embd,
            token_type,
            position_embd,
            embd_norm,
            layers,
            output_norm,
            output,
            classifier,
        })
    }

    fn classifier(&mut self, n_embd: usize) -> Result<Classifier, ModelError> {
        let name = "cls.output";
        let n_scores = self.n_rows(&format!("{name}.weight"));
        let dense = self.gguf.tensor("cls.weight").is_some();
        Ok(Classifier {
            dense: dense.then(|| self.linear("cls", n_embd, n_embd)).transpose()?,
            output: self.linear(name, n_embd, n_scores)?,
        })
    }

    /// Rows of a matrix whose number the metadata does not tell; 1 if it is not there.
    fn n_rows(&self, name: &str) -> usize {
        let rows = self.gguf.tensor(name).and_then(|tensor| tensor.dims().get(1).copied());
        rows.map_or(1, |rows| usize::try_from(rows).unwrap_or(usize::MAX))
    }

    /// The first row of a matrix, decoded.
    fn first_row(&mut self, name: &str, n_cols: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let n_rows = self.n_rows(name);
        let values = self.optional_values(name, &[n_cols, n_rows])?;
        Ok(values.map(|mut values| {
            values.truncate(n_cols);
            values
        }))
    }

    fn layer(
        &mut self,
        blk: &str,
        n_embd: usize,
        params: &LayerParams,
        experts: Option<&ExpertParams>,
    ) -> Result<Layer, ModelError> {
        let LayerParams { n_heads, n_kv_heads, head_dim_k, head_dim_v, .. } = *params;
        let (n_q, n_k, n_v) =
            (n_heads * head_dim_k, n_kv_heads * head_dim_k, n_kv_heads * head_dim_v);
        let post = matches!(self.spec.norms, Norms::Post | Norms::PreAndPost);
        let sum = self.spec.norms == Norms::PostSum;
        let (pre_attn, pre_ffn) = match self.spec.norms {
            Norms::Pre { ffn } => (true, Some(ffn)),
            Norms::PreAndPost => (true, Some("ffn_norm")),
            Norms::Post | Norms::PostSum => (false, None),
            Norms::Parallel => (true, None),
        };
        let name = |part: &str| format!("{blk}.{part}");
        let [q, k, v] = self.qkv(blk, n_embd, [n_q, n_k, n_v])?;
        let (q_norm_len, k_norm_len) = match self.spec.qk_norm {
            QkNorm::None => (None, None),
            QkNorm::Head => (Some(head_dim_k), Some(head_dim_k)),
            QkNorm::Row => (Some(n_q), Some(n_k)),
        };
        let sinks = self.spec.attn_sinks.then_some(n_heads);
        Ok(Layer {
            attn_norm: self.norm_if(pre_attn, &name("attn_norm"), n_embd)?,
            q,
            k,
            v,
            q_norm: self.vector_if(q_norm_len, &format!("{blk}.attn_q_norm.weight"))?,
            k_norm: self.vector_if(k_norm_len, &format!("{blk}.attn_k_norm.weight"))?,
            sinks: self.vector_if(sinks, &format!("{blk}.attn_sinks.weight"))?,
            attn_output: self.linear(
                &format!("{blk}.attn_output"),
                n_heads * head_dim_v,
                n_embd,
            )?,
            attn_post_norm: self.norm_if(post, &name("post_attention_norm"), n_embd)?,
            attn_sum_norm: self.norm_if(sum, &name("attn_output_norm"), n_embd)?,
            ffn_norm: match pre_ffn {
                Some(norm) => Some(self.norm(&name(norm), n_embd)?),
                None => None,
            },
            ffn: match (experts, self.spec.ffn) {
                (Some(experts), _) => self.experts(blk, n_embd, experts)?,
                (None, FfnKind::Gated) => {
                    Ffn::Dense(Box::new(self.gated(blk, "", n_embd, params.n_ff)?))
                }
                (None, FfnKind::Plain) => Ffn::Plain {
                    up: self.linear(&name("ffn_up"), n_embd, params.n_ff)?,
                    down: self.linear(&name("ffn_down"), params.n_ff, n_embd)?,
                },
            },
            ffn_post_norm: self.norm_if(post, &name("post_ffw_norm"), n_embd)?,
            ffn_sum_norm: self.norm_if(sum, &name("layer_output_norm"), n_embd)?,
        })
    }

    /// Query, key and value projections, split or fused in one tensor.
    fn qkv(&mut self, blk: &str, n_embd: usize, n: [usize; 3]) -> Result<[Linear; 3], ModelError> {
        let total = n.iter().sum();
        let names = ["attn_q", "attn_k", "attn_v"];
        let name = format!("{blk}.attn_qkv");
        let Some(weight) = self.optional_weight(&format!("{name}.weight"), n_embd, total, 1)?
        else {
            let [q, k, v] = names.map(|name| format!("{blk}.{name}"));
            return Ok([
                self.linear(&q, n_embd, n[0])?,
                self.linear(&k, n_embd, n[1])?,
                self.linear(&v, n_embd, n[2])?,
            ]);
        };
        let bias = self.optional_vector(&format!("{name}.bias"), total)?;
        let mut at = 0;
        let mut part = |i: usize| -> Result<Linear, ModelError> {
            let rows = at..at + n[i];
            at = rows.end;
            let bias = match &bias {
                Some(bias) => Some(bias[rows.clone()].to_vec()),
                None => self.optional_vector(&format!("{blk}.{}.bias", names[i]), n[i])?,
            };
            Ok(Linear { weight: weight.rows(rows), bias })
        };
        Ok([part(0)?, part(1)?, part(2)?])
    }

    /// A feed-forward network, gate and up split or fused (gate first) in `ffn_up`.
    fn gated(
        &mut self,
        blk: &str,
        suffix: &str,
        n_embd: usize,
        n_ff: usize,
    ) -> Result<Gated, ModelError> {
        let name = |part: &str| format!("{blk}.ffn_{part}{suffix}");
        let down = self.linear(&name("down"), n_ff, n_embd)?;
        if self.gguf.tensor(&format!("{}.weight", name("gate"))).is_some() {
            let gate = self.linear(&name("gate"), n_embd, n_ff)?;
            return Ok(Gated { gate, up: self.linear(&name("up"), n_embd, n_ff)?, down });
        }
        let fused = self.linear(&name("up"), n_embd, 2 * n_ff)?;
        let part = |rows: Range<usize>| Linear {
            weight: fused.weight.rows(rows.clone()),
            bias: fused.bias.as_ref().map(|bias| bias[rows].to_vec()),
        };
        Ok(Gated { gate: part(0..n_ff), up: part(n_ff..2 * n_ff), down })
    }

    fn experts(
        &mut self,
        blk: &str,
        n_embd: usize,
        params: &ExpertParams,
    ) -> Result<Ffn, ModelError> {
        let ExpertParams { n_experts, n_ff, n_ff_shared, .. } = *params;
        let router = self.linear(&format!("{blk}.ffn_gate_inp"), n_embd, n_experts)?;
        let [gate, up] = match self.expert_tensor(
            &format!("{blk}.ffn_gate_up_exps"),
            n_embd,
            2 * n_ff,
            n_experts,
        )? {
            // Fused: each expert's gate rows, then its up rows.
            Some(fused) => [0..n_ff, n_ff..2 * n_ff].map(|rows| {
                let part = |expert: &Linear| Linear {
                    weight: expert.weight.rows(rows.clone()),
                    bias: expert.bias.as_ref().map(|bias| bias[rows.clone()].to_vec()),
                };
                fused.iter().map(part).collect::<Vec<_>>()
            }),
            None => [
                self.required_experts(&format!("{blk}.ffn_gate_exps"), n_embd, n_ff, n_experts)?,
                self.required_experts(&format!("{blk}.ffn_up_exps"), n_embd, n_ff, n_experts)?,
            ],
        };
        let down =
            self.required_experts(&format!("{blk}.ffn_down_exps"), n_ff, n_embd, n_experts)?;
        let experts = gate.into_iter().zip(up).zip(down);
        let experts = experts.map(|((gate, up), down)| Gated { gate, up, down }).collect();
        let shared = if self.spec.moe.is_some_and(|moe| moe.shared) {
            let router = format!("{blk}.ffn_gate_inp_shexp.weight");
            Some(Box::new(SharedExpert {
                router: self
                    .optional_weight(&router, n_embd, 1, 1)?
                    .ok_or_else(|| self.missing(&router, vec![n_embd as u64]))?,
                expert: self.gated(blk, "_shexp", n_embd, n_ff_shared)?,
            }))
        } else {
            None
        };
        Ok(Ffn::Experts { router, experts, shared })
    }

    fn required_experts(
        &mut self,
        name: &str,
        n_in: usize,
        n_out: usize,
        n: usize,
    ) -> Result<Vec<Linear>, ModelError> {
        self.expert_tensor(name, n_in, n_out, n)?.ok_or_else(|| {
            self.missing(&format!("{name}.weight"), vec![n_in as u64, n_out as u64, n as u64])
        })
    }

    /// The experts of one tensor, `[n_in, n_out, n]` with an optional bias `[n_out, n]`.
    fn expert_tensor(
        &mut self,
        name: &str,
        n_in: usize,
        n_out: usize,
        n: usize,
    ) -> Result<Option<Vec<Linear>>, ModelError> {
        let Some(all) = self.optional_weight(&format!("{name}.weight"), n_in, n_out, n)? else {
            return Ok(None);
        };
        let bias = self.optional_values(&format!("{name}.bias"), &[n_out, n])?;
        let expert = |i: usize| Linear {
            weight: all.rows(i * n_out..(i + 1) * n_out),
            bias: bias.as_ref().map(|bias| bias[i * n_out..(i + 1) * n_out].to_vec()),
        };
        Ok(Some((0..n).map(expert).collect()))
    }

    fn norm_if(&mut self, there: bool, name: &str, len: usize) -> Result<Option<Norm>, ModelError> {
        there.then(|| self.norm(name, len)).transpose()
    }

    fn norm(&mut self, name: &str, len: usize) -> Result<Norm, ModelError> {
        let weight = self.vector(&format!("{name}.weight"), len)?;
        let bias = match self.spec.norm {
            NormKind::Rms => None,
            NormKind::Layer => self.optional_vector(&format!("{name}.bias"), len)?,
        };
        Ok(Norm { weight, bias })
    }

    fn linear(&mut self, name: &str, n_in: usize, n_out: usize) -> Result<Linear, ModelError> {
        Ok(Linear {
            weight: self.weight(&format!("{name}.weight"), n_in, n_out)?,
            bias: self.optional_vector(&format!("{name}.bias"), n_out)?,
        })
    }

    fn weight(&mut self, name: &str, n_in: usize, n_out: usize) -> Result<Weight, ModelError> {
        let weight = self.optional_weight(name, n_in, n_out, 1)?;
        weight.ok_or_else(|| self.missing(name, vec![n_in as u64, n_out as u64]))
    }

    /// A tensor `[n_in, n_out, n]` as `n * n_out` rows.
    fn optional_weight(
        &mut self,
        name: &str,
        n_in: usize,
        n_out: usize,
        n: usize,
    ) -> Result<Option<Weight>, ModelError> {
        let Some(tensor) = self.find(name, &[n_in, n_out, n])? else { return Ok(None) };
        let n_rows = n_out * n;
        if n_rows == 0 || Matrix::new(tensor.ty(), n_rows, n_in, self.gguf.data(tensor)).is_none() {
            return Err(self.weight_type(tensor));
        }
        // Proves that the type can be decoded at all: integers cannot.
        let block = &self.gguf.data(tensor)[..tensor.ty().block_bytes()];
        let mut values = vec![0.0; tensor.ty().block_len()];
        hurtle_quant::dequantize(tensor.ty(), block, &mut values)
            .map_err(|_| self.weight_type(tensor))?;
        Ok(Some(Weight {
            n_cols: n_in,
            bytes: 0..tensor.n_bytes(),
            n_rows,
            tensor: tensor.clone(),
            packed: None,
            prepared: None,
        }))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let vector = self.optional_vector(name, len)?;
        vector.ok_or_else(|| self.missing(name, vec![len as u64]))
    }

    fn vector_if(
        &mut self,
        len: Option<usize>,
        name: &str,
    ) -> Result<Option<Vec<f32>>, ModelError> {
        len.map(|len| self.vector(name, len)).transpose()
    }

    fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<Vec<f32>>, ModelError> {
        self.optional_values(name, &[len])
    }

    /// A small tensor, decoded.
    fn optional_values(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(tensor) = self.find(name, shape)? else { return Ok(None) };
        let mut values = vec![0.0; shape.iter().product()];
        hurtle_quant::dequantize(tensor.ty(), self.gguf.data(tensor), &mut values)
            .map_err(|_| self.weight_type(tensor))?;
        Ok(Some(values))
    }

    /// The tensor, if it is there; sizes of 1 at the end of a shape do not count.
    fn find(&mut self, name: &str, shape: &[usize]) -> Result<Option<&'a TensorInfo>, ModelError> {
        let Some(tensor) = self.gguf.tensor(name) else { return Ok(None) };
        let expected: Vec<u64> = shape.iter().map(|n| *n as u64).collect();
        let trim = |dims: &[u64]| dims.iter().rposition(|n| *n != 1).map_or(0, |last| last + 1);
        if expected[..trim(&expected)] != tensor.dims()[..trim(tensor.dims())] {
            return Err(self.shape(tensor, expected));
        }
        self.used.insert(name.to_owned());
        Ok(Some(tensor))
    }

    fn missing(&self, tensor: &str, shape: Vec<u64>) -> ModelError {
        let (file, arch) = (file_name(self.gguf), self.spec.name);
        ModelError::MissingTensor { file, arch, tensor: tensor.into(), shape }
    }

    fn shape(&self, tensor: &TensorInfo, expected: Vec<u64>) -> ModelError {
        let (file, found) = (file_name(self.gguf), tensor.dims().to_vec());
        ModelError::Shape { file, tensor: tensor.name().into(), expected, found }
    }

    fn weight_type(&self, tensor: &TensorInfo) -> ModelError {
        let (file, ty) = (file_name(self.gguf), tensor.ty());
        ModelError::WeightType { file, tensor: tensor.name().into(), ty }
    }
}
