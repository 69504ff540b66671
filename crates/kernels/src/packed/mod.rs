//! Weights packed for integer arithmetic, and their products with quantized activations.
//!
//! ```text
//! matrix   panel 0 | panel 1 | …            16 rows each, the last filled up with zeros
//! panel    block 0 | block 1 | …            along the columns, as the weight type has them
//! block    header lines | quant lines       one sequential stream
//! line     row 0     | row 1     | … | row 15          64 bytes, a cache line
//!          k … k + 3 | k … k + 3 |   | k … k + 3       a dword a row
//! ```
//!
//! A SIMD lane is a row: a dword of weights meets the same 4 activations in all lanes, so there is
//! no horizontal sum, and the activations come as broadcasts from memory. Quants stay as narrow as
//! the file has them, and scales lie before the quants that they belong to.
//!
//! **Same bits everywhere.** Integers are exact within a block. Each block ends in one conversion
//! to f32, and blocks are added up in ascending order with separate multiplications and additions,
//! as the `dot_*` functions of the `quant` crate do. So a result depends on its row and its token
//! alone: not on the instruction set, the number of threads or the number of tokens.

mod affine;
mod blocks;
mod iq4_xs;
mod sixteens;

use crate::Exec;
use crate::activations::{Form, QuantizedActivations};
use crate::arch::{IntLanes, LANES, dispatch_int};
use crate::matmul::Matrix;
use crate::memory::{Line, Lines};
use crate::share::Shared;
use hurtle_quant::{Array, Block, WeightType};
use std::ops::Range;

/// Rows of a panel: the lanes.
const PANEL_ROWS: usize = LANES;

/// How a weight type is packed, and its arithmetic.
pub(crate) trait Kernel {
    /// The blocks of the file.
    type Weights: Block;
    /// The blocks that they meet, of as many values.
    type Activations: Sync;
    const FORM: Form;
    /// Blocks that share header lines.
    const SHARE: usize;
    /// Header lines of `SHARE` blocks.
    const HEADER: usize;
    /// Quant lines of a block.
    const LINES: usize;

    /// The activations in this form, `[n_blocks, n_tokens]`.
    fn activations(x: &QuantizedActivations) -> &[Self::Activations];

    /// Packs a block of row `row` (of a panel), the `slot`-th of those that share `header`.
    fn pack(
        block: &<Self::Weights as Block>::Bytes,
        row: usize,
        slot: usize,
        header: &mut [Line],
        quants: &mut [Line],
    );

    /// The products of a panel with the `T` tokens that `x` gives.
    ///
    /// # Safety
    /// The lanes' instruction set is present.
    unsafe fn tile<L: IntLanes, const T: usize>(
        panel: &[Line],
        x: Tile<'_, Self::Activations, T>,
    ) -> [[f32; LANES]; T];
}

/// `T` tokens among others. In a block they lie side by side, so that one address is enough to
/// reach them.
pub(crate) struct Tile<'a, A, const T: usize> {
    /// `[n_blocks, n_tokens]`
    blocks: &'a [A],
    n_tokens: usize,
    first: usize,
}

impl<A, const T: usize> Tile<'_, A, T> {
    /// Block `b` of each token.
    #[inline(always)]
    fn block(&self, b: usize) -> &[A; T] {
        let tokens = &self.blocks[b * self.n_tokens..][self.first..];
        tokens.first_chunk().expect("a tile lies within the tokens")
    }
}

/// Lines of a panel of `n_blocks` blocks. `None` if they are too many.
fn panel_lines<K: Kernel>(n_blocks: usize) -> Option<usize> {
    let headers = n_blocks.div_ceil(K::SHARE).checked_mul(K::HEADER)?;
    n_blocks.checked_mul(K::LINES)?.checked_add(headers)
}

/// Writes 4 bytes of a row to its place in a line.
#[inline(always)]
fn set_dword(line: &mut Line, row: usize, dword: [u8; 4]) {
    line.0[4 * row..4 * row + 4].copy_from_slice(&dword);
}

/// Writes the `at`-th 16-bit number of a line.
#[inline(always)]
fn set_half(line: &mut Line, at: usize, half: [u8; 2]) {
    line.0[2 * at..2 * at + 2].copy_from_slice(&half);
}

/// The `slot`-th 16 f16 of a line.
#[inline(always)]
fn halves(line: &Line, slot: usize) -> &[half::f16] {
    bytemuck::cast_slice(&line.0[2 * slot * PANEL_ROWS..2 * (slot + 1) * PANEL_ROWS])
}

/// Lines between those at work and those that are fetched: 2 KiB.
const AHEAD: usize = 32;

/// Fetches the lines that come `AHEAD` of `lines`, and may lie behind the end of the matrix.
///
/// # Safety
/// The lanes' instruction set is present.
#[inline(always)]
unsafe fn prefetch<L: IntLanes>(lines: &[Line]) {
    let ahead = lines.as_ptr().wrapping_add(AHEAD);
    for i in 0..lines.len() {
        // SAFETY: the caller has the lanes' instruction set; any address may be fetched.
        unsafe { L::prefetch(ahead.wrapping_add(i)) };
    }
}

/// Runs `$body` with `$i` as each constant from 0 to 7: unrolled, so that shifts by it are too.
macro_rules! unroll8 {
    ($i:ident => $body:block) => {
        unroll8!(@each $i $body 0 1 2 3 4 5 6 7)
    };
    (@each $i:ident $body:block $($n:literal)+) => {
        $({
            const $i: usize = $n;
            $body
        })+
    };
}
use unroll8;

/// The products of a panel with tokens `tokens` of `x` (`[n_blocks, n_tokens]`), tile by tile:
/// `out(token, rows)`.
///
/// # Safety
/// The lanes' instruction set is present.
#[inline(always)]
pub(crate) unsafe fn multiply<L: IntLanes, K: Kernel>(
    panel: &[Line],
    x: &[K::Activations],
    n_tokens: usize,
    tokens: Range<usize>,
    out: &mut dyn FnMut(usize, &[f32; LANES]),
) {
    macro_rules! step {
        ($tokens:literal, $t:expr) => {{
            let x = Tile { blocks: x, n_tokens, first: $t };
            // SAFETY: the caller has the lanes' instruction set.
            let dots = unsafe { K::tile::<L, $tokens>(panel, x) };
            for i in 0..$tokens {
                out($t + i, &dots[i]);
            }
            $t += $tokens;
        }};
    }
    let mut t = tokens.start;
    while t < tokens.end {
        match L::TILE_TOKENS.min(tokens.end - t) {
            8.. => step!(8, t),
            4.. => step!(4, t),
            2.. => step!(2, t),
            _ => step!(1, t),
        }
    }
}

/// Evaluates `$body` with `$K` as the kernel of a weight type: `Some`, or `None` without one.
macro_rules! with_kernel {
    ($ty:expr, $K:ident => $body:expr) => {
        with_kernel!(@match $ty, $K, $body,
            Q4_K: affine::Q4K,
            Q5_K: affine::Q5K,
            Q6_K: sixteens::Q6K,
            Q3_K: sixteens::Q3K,
            Q2_K: sixteens::Q2K,
            IQ4_XS: iq4_xs::Iq4Xs,
            Q8_0: blocks::Q8_0,
            Q4_0: blocks::Q4_0,
            Q4_1: blocks::Q4_1,
            Q5_0: blocks::Q5_0,
            Q5_1: blocks::Q5_1,
            IQ4_NL: blocks::Iq4Nl,
            MXFP4: blocks::Mxfp4,
        )
    };
    (@match $ty:expr, $K:ident, $body:expr, $($name:ident: $kernel:ty,)+) => {
        match $ty {
            $(WeightType::$name => {
                type $K = $kernel;
                Some($body)
            })+
            _ => None,
        }
    };
}

/// A matrix repacked for the integer kernels, in memory of its own.
pub struct PackedMatrix {
    ty: WeightType,
    n_rows: usize,
    n_cols: usize,
    panel_lines: usize,
    lines: Lines,
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ty, n_rows, n_cols, .. } = self;
        write!(f, "PackedMatrix({ty}, {n_rows} x {n_cols}, {} bytes)", self.n_bytes())
    }
}

impl PackedMatrix {
    /// Whether there is an integer kernel for the type.
    pub fn supports(ty: WeightType) -> bool {
        with_kernel!(ty, K => K::HEADER > 0).is_some()
    }

    /// Packs a matrix, on all threads. `None` if its type has no integer kernel.
    pub fn pack(exec: Exec<'_>, matrix: &Matrix<'_>) -> Option<Self> {
        with_kernel!(matrix.ty(), K => Self::pack_as::<K>(exec, matrix))?
    }

    fn pack_as<K: Kernel>(exec: Exec<'_>, matrix: &Matrix<'_>) -> Option<Self> {
        let (n_rows, n_cols) = (matrix.n_rows(), matrix.n_cols());
        let n_panels = n_rows.div_ceil(PANEL_ROWS);
        let panel_lines = panel_lines::<K>(n_cols / K::Weights::LEN)?;
        let n_lines = n_panels.checked_mul(panel_lines)?;
        let mut lines = Lines::zeroed(n_lines)?;
        let shared = Shared::new(&mut lines[..]);
        exec.for_chunks(n_panels, 1, |panels, _| {
            for panel in panels {
                // SAFETY: each panel is visited once.
                let lines = unsafe { shared.range(panel * panel_lines, panel_lines) };
                let rows = panel * PANEL_ROWS..n_rows.min((panel + 1) * PANEL_ROWS);
                pack_panel::<K>(matrix, rows, lines);
            }
        });
        Some(Self { ty: matrix.ty(), n_rows, n_cols, panel_lines, lines })
    }

    /// Weight type.
    pub fn ty(&self) -> WeightType {
        self.ty
    }

    /// Outputs.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Inputs.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Bytes of memory: those of the file, but for rows that fill up the last panel and some
    /// alignment.
    pub fn n_bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// What its activations are quantized to.
    pub fn form(&self) -> Form {
        with_kernel!(self.ty, K => K::FORM).expect("packed matrices have a kernel")
    }

    /// Which kernels `isa` stands for: the name of the lanes that [`matmul_packed`] runs on.
    pub fn kernel_name(isa: crate::Isa) -> &'static str {
        dispatch_int!(isa, lanes_name())
    }
}

/// Packs up to 16 rows.
fn pack_panel<K: Kernel>(matrix: &Matrix<'_>, rows: Range<usize>, mut lines: &mut [Line]) {
    let bytes = matrix.row_bytes(rows.clone());
    let (blocks, _) = <K::Weights as Block>::Bytes::chunks(bytes);
    let n_blocks = blocks.len() / rows.len();
    for first in (0..n_blocks).step_by(K::SHARE) {
        let (header, rest) = lines.split_at_mut(K::HEADER);
        let unit = K::SHARE.min(n_blocks - first);
        let (quants, rest) = rest.split_at_mut(unit * K::LINES);
        for (slot, quants) in quants.chunks_exact_mut(K::LINES).enumerate() {
            for row in 0..rows.len() {
                K::pack(&blocks[row * n_blocks + first + slot], row, slot, header, quants);
            }
        }
        lines = rest;
    }
}

/// `out[token, row] = weights[row] · x[token]`, in integers.
///
/// `x` holds tokens of `n_cols` values, `out` is `[n_tokens, n_rows]`. Each result is that of the
/// `quant` crate's integer dot product of the row with the token.
///
/// # Panics
/// If a length does not fit the matrix, or `x` was quantized without it.
pub fn matmul_packed(
    exec: Exec<'_>,
    weights: &PackedMatrix,
    x: &QuantizedActivations,
    out: &mut [f32],
) {
    assert_eq!(x.n_cols(), weights.n_cols, "columns");
    assert_eq!(out.len(), x.n_tokens() * weights.n_rows, "output");
    let done = with_kernel!(weights.ty, K => matmul_as::<K>(exec, weights, x, out));
    done.expect("packed matrices have a kernel");
}

/// Bytes of weights, and of activations, that are worked on at a time: together they fit into half
/// of an L2 cache of 1 MiB.
const IN_CACHE: usize = 256 << 10;

fn matmul_as<K: Kernel>(
    exec: Exec<'_>,
    weights: &PackedMatrix,
    x: &QuantizedActivations,
    out: &mut [f32],
) {
    let (n_rows, n_blocks) = (weights.n_rows, weights.n_cols / K::Weights::LEN);
    let blocks = K::activations(x);
    assert_eq!(
        blocks.len(),
        x.n_tokens() * n_blocks,
        "activations quantized for {} weights",
        weights.ty
    );
    if x.n_tokens() == 0 {
        return;
    }
    // A prompt has too many activations to read them all for every panel, so some panels and some
    // tokens meet in L2. A whole number of tiles each time.
    let n_panels = n_rows.div_ceil(PANEL_ROWS);
    let share = n_panels.div_ceil(8 * exec.n_threads.max(1));
    let chunk = (IN_CACHE / (weights.panel_lines * size_of::<Line>())).clamp(1, share.max(1));
    let token_bytes = n_blocks * size_of::<K::Activations>();
    let group = (IN_CACHE / token_bytes).next_multiple_of(8).max(8);
    let out = Shared::new(out);
    exec.for_chunks(n_panels, chunk, |panels, _| {
        for first_token in (0..x.n_tokens()).step_by(group) {
            let tokens = first_token..x.n_tokens().min(first_token + group);
            for panel in panels.clone() {
                let lines = &weights.lines[panel * weights.panel_lines..][..weights.panel_lines];
                let first = panel * PANEL_ROWS;
                let rows = PANEL_ROWS.min(n_rows - first);
                let mut write = |token: usize, dots: &[f32; LANES]| {
                    // SAFETY: each panel writes its own rows' outputs.
                    let out = unsafe { out.range(token * n_rows + first, rows) };
                    out.copy_from_slice(&dots[..rows]);
                };
                let (n_tokens, tokens) = (x.n_tokens(), tokens.clone());
                dispatch_int!(exec.isa, multiply[K](lines, blocks, n_tokens, tokens, &mut write));
            }
        }
    });
}
