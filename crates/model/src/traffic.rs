//! What of a model's file one generated token has to read: the bytes that bound its speed.

use crate::ExpertParams;
use hurtle_gguf::{Gguf, TensorInfo};
use hurtle_kernels::packed::{Books, PackedMatrix};
use hurtle_quant::WeightType;

/// What a tensor is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A matrix that every token is multiplied with: all of it is read.
    Projection,
    /// The matrices of experts, of which a token uses some.
    Experts,
    /// Embeddings of tokens, if they are not the output layer too, of positions and of token types: one
    /// row is read.
    Lookup,
    /// Norms, biases and factors, which are small and held in f32.
    Vector,
}

impl Use {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Use::Projection => "projections",
            Use::Experts => "experts",
            Use::Lookup => "embedding look-up",
            Use::Vector => "norms, biases",
        }
    }
}

/// The tensors of one weight type and use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Weight type.
    pub ty: WeightType,
    /// What they are read for.
    pub what: Use,
    /// How many there are.
    pub tensors: usize,
    /// Bytes in the file.
    pub bytes: u64,
    /// Bytes that one token reads.
    pub bytes_per_token: u64,
}

impl Traffic {
    /// The same of weights that are packed.
    pub fn packed(self, books: Books) -> Self {
        if !matches!(self.what, Use::Projection | Use::Experts) {
            return self;
        }
        // Whole panels of whole blocks of all types.
        let (n_rows, n_cols) = (16, 4 * 256);
        let file = self.ty.row_bytes(n_cols).map_or(1, |row| n_rows * row) as u128;
        let Some(packed) = PackedMatrix::bytes_of(self.ty, n_rows, n_cols, books) else {
            return self;
        };
        let scaled = |bytes: u64| (u128::from(bytes) * packed as u128 / file) as u64;
        let (bytes, bytes_per_token) = (scaled(self.bytes), scaled(self.bytes_per_token));
        Self { bytes, bytes_per_token, ..self }
    }
}

/// How to pack weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// In this way.
    With(Books),
    /// With books looked up, if all weights then take no more bytes than these.
    Within(u64),
}

impl Default for Packing {
    fn default() -> Self {
        Self::With(Books::default())
    }
}

impl Packing {
    /// What it means for these weights.
    pub fn books(self, weights: &[Traffic]) -> Books {
        match self {
            Self::With(books) => books,
            Self::Within(most) => {
                let packed = weights.iter().map(|row| row.packed(Books::LookedUp).bytes);
                let total = packed.fold(0, u64::saturating_add);
                if total <= most { Books::LookedUp } else { Books::Kept }
            }
        }
    }
}

/// What one token reads of each weight type, most bytes first. A file with experts needs their numbers.
pub fn traffic(gguf: &Gguf, experts: Option<ExpertParams>) -> Vec<Traffic> {
    // Encoders have neither tensor, and look their embeddings up.
    let tied =
        gguf.tensor("output.weight").is_none() && gguf.tensor("output_norm.weight").is_some();
    let mut all: Vec<Traffic> = Vec::new();
    for tensor in gguf.tensors() {
        let (ty, what) = (tensor.ty(), use_of(tensor, tied));
        let row =
            all.iter().position(|row| (row.ty, row.what) == (ty, what)).unwrap_or_else(|| {
                all.push(Traffic { ty, what, tensors: 0, bytes: 0, bytes_per_token: 0 });
                all.len() - 1
            });
        let (row, bytes) = (&mut all[row], tensor.n_bytes() as u64);
        row.tensors += 1;
        row.bytes = row.bytes.saturating_add(bytes);
        row.bytes_per_token = row.bytes_per_token.saturating_add(match (what, experts) {
            (Use::Experts, Some(ExpertParams { n_experts, n_used, .. })) if n_experts > 0 => {
                bytes / n_experts as u64 * n_used as u64
            }
            (Use::Lookup, _) => bytes / tensor.dims().get(1).copied().unwrap_or(1),
            _ => bytes,
        });
    }
    all.sort_by_key(|row| (std::cmp::Reverse(row.bytes_per_token), row.ty, row.what));
    all
}

fn use_of(tensor: &TensorInfo, tied: bool) -> Use {
    let name = tensor.name();
    if tensor.dims().len() < 2 || !name.ends_with(".weight") {
        Use::Vector
    } else if matches!(name, "position_embd.weight" | "token_types.weight")
        || (name == "token_embd.weight" && !tied)
    {
        Use::Lookup
    } else if name.ends_with("_exps.weight") {
        Use::Experts
    } else {
        Use::Projection
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// What the golden model `name` reads, as `(use, tensors, bytes, bytes a token)` of all types together.
    fn read(name: &str, experts: Option<(usize, usize)>) -> Vec<(Use, usize, u64, u64)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let gguf = Gguf::open(root.join(name)).expect("a golden model");
        let experts = experts.map(|(n_experts, n_used)| ExpertParams {
            n_experts,
            n_used,
            n_ff: 1,
            n_ff_shared: 1,
        });
        let rows = traffic(&gguf, experts);
        let total = |f: fn(&Traffic) -> u64| rows.iter().map(f).sum::<u64>();
        let tensors = gguf.tensors();
        assert_eq!(rows.iter().map(|row| row.tensors).sum::<usize>(), tensors.len());
        let bytes: u64 = tensors.iter().map(|tensor| tensor.n_bytes() as u64).sum();
        assert_eq!(total(|row| row.bytes), bytes);
        let mut uses: Vec<_> = rows.iter().map(|row| row.what).collect();
        uses.sort();
        uses.dedup();
        let sum = |what| {
            let rows = rows.iter().filter(|row| row.what == what);
            rows.fold((what, 0, 0, 0), |sum, row| {
                (what, sum.1 + row.tensors, sum.2 + row.bytes, sum.3 + row.bytes_per_token)
            })
        };
        uses.into_iter().map(sum).collect()
    }

    #[test]
    fn tied_embeddings_are_read_as_the_output_layer() {
        let rows = read("archs/gemma3.gguf", None);
        assert_eq!(
            rows.iter().map(|row| row.0).collect::<Vec<_>>(),
            [Use::Projection, Use::Vector]
        );
        assert!(rows.iter().all(|(.., bytes, read)| bytes == read), "{rows:?}");
    }

    #[test]
    fn of_other_embeddings_a_row_is_read() {
        let rows = read("archs/llama.gguf", None);
        let Some((_, 1, bytes, read)) = rows.iter().find(|row| row.0 == Use::Lookup).copied()
        else {
            panic!("{rows:?}")
        };
        assert_eq!(bytes, 272 * read);
    }

    #[test]
    fn an_encoder_looks_up_tokens_positions_and_types() {
        let rows = read("archs/bert.gguf", None);
        let row = |what| rows.iter().find(|row| row.0 == what).copied();
        assert_eq!(row(Use::Lookup), Some((Use::Lookup, 3, 4 * 64 * (272 + 128 + 2), 4 * 64 * 3)));
    }

    #[test]
    fn of_the_experts_those_chosen_are_read() {
        for (n_experts, n_used) in [(4, 2), (8, 1)] {
            let rows = read("archs/qwen3moe.gguf", Some((n_experts, n_used)));
            let Some((_, tensors, bytes, read)) =
                rows.iter().find(|row| row.0 == Use::Experts).copied()
            else {
                panic!("{rows:?}")
            };
            assert!(tensors.is_multiple_of(3), "gate, up and down of each layer: {tensors}");
            assert_eq!(read * n_experts as u64, bytes * n_used as u64);
        }
    }
    #[test]
    fn books_are_looked_up_where_memory_is_plenty() {
        let row = |ty, what, bytes| Traffic { ty, what, tensors: 1, bytes, bytes_per_token: bytes };
        let weights = [
            row(WeightType::IQ3_S, Use::Projection, 1100),
            row(WeightType::Q4_K, Use::Projection, 2000),
            // These are not packed.
            row(WeightType::IQ3_S, Use::Lookup, 500),
        ];
        let total = |books| weights.iter().map(|row| row.packed(books).bytes).sum::<u64>();
        assert_eq!(total(Books::Kept), 1120 + 2000 + 500, "half a line of a panel is left over");
        assert_eq!(total(Books::LookedUp), 1360 + 2000 + 500);
        let books = |most| Packing::Within(most).books(&weights);
        assert_eq!((books(3859), books(3860)), (Books::Kept, Books::LookedUp));
        assert_eq!(Packing::With(Books::Kept).books(&weights), Books::Kept);
        let experts = row(WeightType::IQ2_XXS, Use::Experts, 66).packed(Books::LookedUp);
        assert_eq!((experts.bytes, experts.bytes_per_token), (104, 104));
    }
}
