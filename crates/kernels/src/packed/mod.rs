//! Weights packed for reading at the speed of memory, and their products with activations.
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
//! alone: not on the instruction set, the number of threads or the number of tokens. F32, F16 and
//! BF16 (`floats`) meet f32 and bf16 activations in one fixed order, too.

mod affine;
mod blocks;
mod coded;
mod floats;
mod gated;
mod integers;
mod iq4_xs;
mod nvfp4;
mod sixteens;
pub(crate) mod super_blocks;
pub(crate) mod swept;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod tiles;

pub use gated::{matmul_gated, multiplies_gated};

use crate::activations::{Form, QuantizedActivations};
use crate::arch::{IntLanes, LANES, Lanes, dispatch_packed};
use crate::matmul::Matrix;
use crate::memory::{Line, Lines};
use crate::share::Shared;
use crate::{Caches, Exec, Isa, Worker};
use hurtle_quant::{Array, WeightType};
use std::ops::Range;

/// Rows of a panel: the lanes.
const PANEL_ROWS: usize = LANES;
/// Results of a token, of the rows of a panel.
pub(crate) type Rows = [f32; LANES];

/// How a weight type is packed, and its arithmetic.
pub(crate) trait Kernel {
    /// A block of the file.
    type Bytes: Array<u8>;
    /// Blocks that it is packed as. It begins in a slot that is a multiple of them.
    const PIECES: usize = 1;
    /// Values of a block.
    const LEN: usize;
    /// The blocks that they meet, of as many values.
    type Activations: Sync;
    const FORM: Form;
    /// Blocks that share header lines.
    const SHARE: usize;
    /// Header lines of `SHARE` blocks.
    const HEADER: usize;
    /// Quant lines of a block.
    const LINES: usize;
    /// Whether the weights are pairs of bf16, which lanes of their own multiply where the processor can.
    const PAIRS: bool = false;
    /// Lines of a block that is unpacked for many tokens. 0: many tokens are like few.
    const UNPACKED: usize = 0;
    /// Tokens from which unpacking is won back where there are 32 registers, which let 8 tokens share what
    /// is unpacked on the way. The figures beside its values are those of `packed_speed avx512vnni TYPE 4480
    /// 1536 TOKENS` on a Zen 5, in Gop/s of two threads.
    const FROM: usize = usize::MAX;
    /// The same with 16 registers, which let 4 tokens share it. The figures beside its values are those of
    /// `packed_speed avx2 TYPE 8960 1536 TOKENS` on a Zen 4, in Gop/s of one thread.
    const FROM_OF_16: usize = 12;
    /// The products by tiles (AMX), for types that have them.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    const TILES: Option<MultiplyTiles<Self::Activations>> = None;

    /// The activations in this form, `[n_blocks, n_tokens]`.
    fn activations(x: &QuantizedActivations) -> &[Self::Activations];

    /// Packs a block of row `row` (of a panel), the `slot`-th of those that share `header`.
    fn pack(block: &Self::Bytes, row: usize, slot: usize, header: &mut [Line], quants: &mut [Line]);

    /// The products of a panel with the `T` tokens that `x` gives.
    ///
    /// # Safety
    /// The lanes' instruction set is present.
    unsafe fn tile<L: IntLanes, const T: usize>(
        panel: &[Line],
        x: Tile<'_, Self::Activations, T>,
    ) -> [[f32; LANES]; T];

    /// Unpacks the `slot`-th of the blocks that share a header, which `lines` begin with.
    ///
    /// # Safety
    /// The lanes' instruction set is present.
    #[inline(always)]
    unsafe fn unpack<L: IntLanes>(_lines: &[Line], _slot: usize, _to: &mut [Line]) {
        unreachable!("these blocks are not unpacked");
    }

    /// What an unpacked block of `P` panels adds to the results of `T` tokens, in the arithmetic of `tile`.
    ///
    /// # Safety
    /// The lanes' instruction set is present.
    #[inline(always)]
    unsafe fn products<L: IntLanes, const P: usize, const T: usize>(
        _unpacked: [&[Line]; P],
        _x: &[Self::Activations; T],
    ) -> [[L::Floats; T]; P] {
        unreachable!("these blocks are not unpacked");
    }
}

/// See `tiles::multiply`. Only for processors that have tiles.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
type MultiplyTiles<A> = unsafe fn(
    &[Line],
    usize,
    &[A],
    usize,
    Range<usize>,
    &mut [Line],
    &mut dyn FnMut(usize, usize, &[Rows]),
);

/// How many tokens and panels meet at a time where weights are unpacked first.
#[derive(Clone, Copy)]
struct Blocking {
    /// Up to so many tokens meet the `least` panels at a time, as they come from memory.
    few: usize,
    least: usize,
    /// Most panels.
    panels: usize,
    /// Lines of unpacked weights and of results, of some panels with some tokens.
    buffer_lines: fn(usize, usize) -> usize,
}

/// Most tokens that meet some panels.
const MOST_TOKENS: usize = 512;

impl Blocking {
    /// Tokens whose activations of a unit, and results, stay in a third of the second level's cache beside the
    /// weights.
    fn tokens<K: Kernel>(&self, caches: Caches, n_panels: usize) -> usize {
        let bytes = |n_tokens| (self.buffer_lines)(n_panels, n_tokens) * size_of::<Line>();
        let activations = UNIT / K::LEN * size_of::<K::Activations>();
        let room = (caches.l2 / 3).saturating_sub(bytes(0));
        let fit = room / (bytes(1) - bytes(0) + activations);
        // Whole tiles of either kind.
        (fit / 32 * 32).clamp(32, MOST_TOKENS)
    }
}

/// Tokens from which tiles are faster: unpacking takes some 500 cycles a super-block and a tile of up to 16
/// tokens 130, where vectors take some 90 a token (from counts of instructions).
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const FROM_OF_TILES: usize = 12;

/// Columns that are unpacked at a time.
const UNIT: usize = 256;

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

/// Writes the dwords of `bytes` to the place of a row in lines: dword `k` in line `place(k)`.
#[inline(always)]
fn set_dwords(lines: &mut [Line], row: usize, bytes: &[u8], place: impl Fn(usize) -> usize) {
    for (k, dword) in bytes.as_chunks::<4>().0.iter().enumerate() {
        set_dword(&mut lines[place(k)], row, *dword);
    }
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

/// Lines between those at work and those that are fetched: 8 KiB, what a core reads in the some 200 ns
/// that memory takes on a busy processor. On a Zen 5, one thread and one token or four, in GB/s
/// (`packed_speed avx512vnni TYPE 8960 1536 TOKENS`):
///
/// ```text
///         1 KiB   2 KiB   4 KiB   8 KiB   16 KiB   32 KiB
/// Q4_K    28      34, 29  37, 31  39, 35  36, 35   34, 36
/// Q6_K    22      25, 16  30, 20  33, 28  32, 29   28, 28
/// ```
///
/// A Zen 4 at 30 GB/s a thread makes less of it: 25 to 29 for Q4_K from 1 to 8 KiB, 22 to 26 for Q6_K.
const AHEAD: usize = 128;

/// Fetches the lines that come `AHEAD` of `lines`, and may lie behind the end of the matrix. A few
/// at a time, between the arithmetic: a processor has some ten buffers for lines on their way, and
/// a burst that fills them holds up all that follows (Q4_K: 16.3 instead of 20.7 GB/s with 4 tokens).
///
/// # Safety
/// The lanes' instruction set is present.
#[inline(always)]
unsafe fn prefetch<L: IntLanes>(lines: &[Line]) {
    let ahead = lines.as_ptr().wrapping_add(AHEAD);
    for i in 0..lines.len() {
        // SAFETY: the caller has the lanes' instruction set; any address may be fetched.
        unsafe { L::Floats::prefetch(ahead.wrapping_add(i).cast()) };
    }
}

/// Lines of a panel that are unpacked next. They come from memory while those before them are at work: unpacking is
/// brief, and would wait for them. On a Zen 4 without AVX-512 24 tokens of Q6_K pass by 25 %, 64 of Q4_K by 10 % faster
/// than with lines that are fetched as others are unpacked.
#[derive(Clone, Copy)]
struct Next {
    lines: *const Line,
    n_lines: usize,
}

impl Next {
    /// What comes behind blocks `..end` of panel `p` of those at work: the next unit, or the first of a panel behind
    /// all of them.
    fn behind<K: Kernel>(
        panels: &[Line],
        n_panels: usize,
        p: usize,
        end: usize,
        n_blocks: usize,
    ) -> Self {
        let panel_lines = panels.len() / n_panels;
        let (first, skipped) = if end < n_blocks { (end, 0) } else { (0, panels.len()) };
        let line = |block: usize| n_blocks.min(block) * panel_lines / n_blocks;
        let lines = panels.as_ptr().wrapping_add(p * panel_lines + skipped + line(first));
        Self { lines, n_lines: line(first + UNIT / K::LEN) - line(first) }
    }

    /// Fetches its part while tokens `tokens` of `n_tokens` are at work.
    ///
    /// # Safety
    /// The lanes' instruction set is present.
    #[inline(always)]
    unsafe fn fetch<L: IntLanes>(self, tokens: Range<usize>, n_tokens: usize) {
        for i in self.n_lines * tokens.start / n_tokens..self.n_lines * tokens.end / n_tokens {
            // SAFETY: the caller has the lanes' instruction set; any address may be fetched.
            unsafe { L::Floats::prefetch(self.lines.wrapping_add(i).cast()) };
        }
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
/// `out(first token, rows of each)`.
///
/// # Safety
/// The lanes' instruction set is present.
#[inline(always)]
pub(crate) unsafe fn multiply<L: IntLanes, K: Kernel>(
    panel: &[Line],
    x: &[K::Activations],
    n_tokens: usize,
    tokens: Range<usize>,
    out: &mut dyn FnMut(usize, &[Rows]),
) {
    macro_rules! step {
        ($tokens:literal, $t:expr) => {{
            let x = Tile { blocks: x, n_tokens, first: $t };
            // SAFETY: the caller has the lanes' instruction set.
            let dots = unsafe { K::tile::<L, $tokens>(panel, x) };
            out($t, &dots);
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

/// Hands out the results of panels, `[n_panels, n_tokens]`: some tokens of one panel after the other, whose rows lie side
/// by side where they go.
fn hand_out(
    results: &[Line],
    n_tokens: usize,
    n_panels: usize,
    first_token: usize,
    out: &mut dyn FnMut(usize, usize, &[Rows]),
) {
    const AT_ONCE: usize = 8;
    let results: &[Rows] = bytemuck::cast_slice(results);
    for t in (0..n_tokens).step_by(AT_ONCE) {
        for (p, results) in results.chunks_exact(n_tokens).take(n_panels).enumerate() {
            out(p, first_token + t, &results[t..n_tokens.min(t + AT_ONCE)]);
        }
    }
}

/// Evaluates `$body` with `$K` as the kernel of a weight type: `Some`, or `None` without one.
macro_rules! with_kernel {
    ($ty:expr, $books:expr, $K:ident => $body:expr) => {
        with_kernel!(@match ($ty, $books), $K, $body,
            F32: floats::F32,
            F16: floats::F16,
            BF16: floats::BF16,
            Q4_K: affine::Q4K,
            Q5_K: affine::Q5K,
            Q6_K: sixteens::Q6K,
            Q3_K: sixteens::Q3K,
            Q2_K: sixteens::Q2K,
            IQ4_XS: iq4_xs::Iq4Xs,
            IQ1_S: coded::Iq1S | integers::Iq1S,
            IQ1_M: coded::Iq1M | integers::Iq1M,
            IQ2_XXS: coded::Iq2Xxs | integers::Iq2Xxs,
            IQ2_XS: coded::Iq2Xs | integers::Iq2Xs,
            IQ2_S: coded::Iq2S | integers::Iq2S,
            IQ3_XXS: coded::Iq3Xxs | integers::Iq3Xxs,
            IQ3_S: coded::Iq3S | integers::Iq3S,
            TQ1_0: coded::Tq1_0 | integers::Tq1_0,
            TQ2_0: coded::Tq2_0,
            Q8_0: blocks::Q8_0,
            Q4_0: blocks::Q4_0,
            Q4_1: blocks::Q4_1,
            Q5_0: blocks::Q5_0,
            Q5_1: blocks::Q5_1,
            IQ4_NL: blocks::Iq4Nl,
            MXFP4: blocks::Mxfp4,
            NVFP4: nvfp4::Nvfp4,
            Q1_0: blocks::Q1_0,
            Q2_0: blocks::Q2_0,
        )
    };
    (@match $which:expr, $K:ident, $body:expr, $($name:ident: $kernel:path $(| $kept:path)?,)+) => {
        match $which {
            $($((WeightType::$name, Books::Kept) => {
                type $K = $kept;
                Some($body)
            })?)+
            $((WeightType::$name, _) => {
                type $K = $kernel;
                Some($body)
            })+
            _ => None,
        }
    };
}

/// What becomes of the books that IQ1 to IQ3 take their values from, and of the trits of TQ1_0, which are hardly
/// faster to come by. Products have the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Books {
    /// Values are looked up when they are packed. 1.2 (IQ3_S) to 2.1 (IQ1_S) times the file's bytes; products with
    /// one token are 3 to 7 times as fast (`packed_speed avx2 TYPE 8960 1536 1`).
    #[default]
    LookedUp,
    /// In each product. The file's bytes.
    Kept,
}

/// How weights meet their tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As they come from memory, by vectors.
    Packed,
    /// Unpacked once for many tokens, by vectors.
    Unpacked,
    /// Unpacked once for many tokens, by tiles (AMX).
    Tiles,
}

/// Matrices of one shape and type, repacked for the kernels, in memory of their own.
pub struct PackedMatrix {
    ty: WeightType,
    books: Books,
    n_rows: usize,
    n_cols: usize,
    n_parts: usize,
    panel_lines: usize,
    lines: Lines,
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ty, n_rows, n_cols, n_parts, .. } = self;
        write!(f, "PackedMatrix({ty}, {n_parts} x {n_rows} x {n_cols}, {} bytes)", self.n_bytes())
    }
}

/// Rows of the file that are packed before they are let go of: some 2 MiB of bytes.
const PACKED_AT_ONCE: usize = 2 << 20;

impl PackedMatrix {
    /// Whether there is a kernel for the type.
    pub fn supports(ty: WeightType) -> bool {
        with_kernel!(ty, Books::LookedUp, K => K::LINES > 0).is_some()
    }

    /// Bytes that a packed matrix takes. `None` if there is no kernel for it, or they are too many.
    pub fn bytes_of(ty: WeightType, n_rows: usize, n_cols: usize, books: Books) -> Option<usize> {
        let panel = with_kernel!(ty, books, K => Self::lines_of_panel::<K>(n_cols))??;
        n_rows.div_ceil(PANEL_ROWS).checked_mul(panel)?.checked_mul(size_of::<Line>())
    }

    /// Lines of a panel. `None` if the columns are no whole blocks, or too many.
    fn lines_of_panel<K: Kernel>(n_cols: usize) -> Option<usize> {
        n_cols.is_multiple_of(K::LEN).then(|| panel_lines::<K>(n_cols / K::LEN))?
    }

    /// Packs matrices of one type and shape side by side, the experts of a layer for example, on
    /// all threads. `None` if there is no kernel for them.
    ///
    /// `before` and `after` hear of each piece of the encoded bytes (a few MiB) when a thread is
    /// about to read it, and when it has been packed and will not be read again.
    ///
    /// # Panics
    /// If the matrices differ in type or shape, or there is none.
    pub fn pack(
        exec: Exec<'_>,
        matrices: &[Matrix<'_>],
        books: Books,
        before: &(dyn Fn(&[u8]) + Sync),
        after: &(dyn Fn(&[u8]) + Sync),
    ) -> Option<Self> {
        let shape = |matrix: &Matrix<'_>| (matrix.ty(), matrix.n_rows(), matrix.n_cols());
        let first = shape(&matrices[0]);
        assert!(matrices.iter().all(|matrix| shape(matrix) == first), "matrices of one shape");
        with_kernel!(first.0, books, K => Self::pack_as::<K>(exec, matrices, books, before, after))?
    }

    fn pack_as<K: Kernel>(
        exec: Exec<'_>,
        matrices: &[Matrix<'_>],
        books: Books,
        before: &(dyn Fn(&[u8]) + Sync),
        after: &(dyn Fn(&[u8]) + Sync),
    ) -> Option<Self> {
        let (ty, n_rows, n_cols) = (matrices[0].ty(), matrices[0].n_rows(), matrices[0].n_cols());
        let n_panels = n_rows.div_ceil(PANEL_ROWS);
        let panel_lines = Self::lines_of_panel::<K>(n_cols)?;
        let all_panels = n_panels.checked_mul(matrices.len())?;
        let mut lines = Lines::zeroed(all_panels.checked_mul(panel_lines)?)?;
        let shared = Shared::new(&mut lines[..]);
        let chunk = (PACKED_AT_ONCE / (panel_lines * size_of::<Line>())).max(1);
        let chunks = n_panels.div_ceil(chunk);
        exec.for_chunks(matrices.len() * chunks, 1, |items, _| {
            for item in items {
                let (part, first) = (item / chunks, item % chunks * chunk);
                let panels = first..n_panels.min(first + chunk);
                let end = n_rows.min(panels.end * PANEL_ROWS);
                let bytes = matrices[part].row_bytes(first * PANEL_ROWS..end);
                before(bytes);
                for panel in panels {
                    // SAFETY: each panel is visited once.
                    let lines = unsafe {
                        shared.range((part * n_panels + panel) * panel_lines, panel_lines)
                    };
                    let rows = panel * PANEL_ROWS..n_rows.min((panel + 1) * PANEL_ROWS);
                    pack_panel::<K>(&matrices[part], rows, lines);
                }
                after(bytes);
            }
        });
        Some(Self { ty, books, n_rows, n_cols, n_parts: matrices.len(), panel_lines, lines })
    }

    /// Weight type.
    pub fn ty(&self) -> WeightType {
        self.ty
    }

    /// Outputs of each matrix.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Inputs.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Matrices.
    pub fn n_parts(&self) -> usize {
        self.n_parts
    }

    /// Bytes of memory: those of the file, but for rows that fill up the last panel, some alignment and
    /// [books](Books) that were looked up.
    pub fn n_bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// Bytes that a product with one of the matrices reads.
    pub fn part_bytes(&self) -> usize {
        self.n_bytes() / self.n_parts
    }

    /// What its activations have to be.
    pub fn form(&self) -> Form {
        Self::form_of(self.ty).expect("packed matrices have a kernel")
    }

    /// What the activations of a weight type have to be. `None` if there is no kernel for it.
    pub fn form_of(ty: WeightType) -> Option<Form> {
        with_kernel!(ty, Books::LookedUp, K => K::FORM)
    }

    /// How [`matmul_packed`] multiplies with so many tokens.
    pub fn way(&self, isa: Isa, n_tokens: usize) -> Way {
        with_kernel!(self.ty, self.books, K => way::<K>(isa, n_tokens))
            .expect("packed matrices have a kernel")
    }

    /// Which kernels `isa` stands for with weights of type `ty`: the name of the lanes that [`matmul_packed`] runs on,
    /// or `amx`, where tiles serve many tokens, and lanes of `avx512vnni` few. `None` if there are none.
    pub fn kernel_name(ty: WeightType, isa: Isa) -> Option<&'static str> {
        with_kernel!(ty, Books::LookedUp, K => kernel_name::<K>(isa))
    }

    /// Panels of a matrix.
    fn n_panels(&self) -> usize {
        self.n_rows.div_ceil(PANEL_ROWS)
    }

    /// The lines of panel `panel` of matrix `part`.
    fn panel(&self, part: usize, panel: usize) -> &[Line] {
        self.panels(part, panel, 1)
    }

    /// The lines of `n` panels of matrix `part`, from panel `first` on.
    fn panels(&self, part: usize, first: usize, n: usize) -> &[Line] {
        let first = part * self.n_panels() + first;
        &self.lines[first * self.panel_lines..][..n * self.panel_lines]
    }
}

/// Packs up to 16 rows.
fn pack_panel<K: Kernel>(matrix: &Matrix<'_>, rows: Range<usize>, mut lines: &mut [Line]) {
    let bytes = matrix.row_bytes(rows.clone());
    let (blocks, _) = K::Bytes::chunks(bytes);
    let n_blocks = blocks.len() / rows.len() * K::PIECES;
    for first in (0..n_blocks).step_by(K::SHARE) {
        let (header, rest) = lines.split_at_mut(K::HEADER);
        let unit = K::SHARE.min(n_blocks - first);
        let (quants, rest) = rest.split_at_mut(unit * K::LINES);
        for (slot, quants) in quants.chunks_exact_mut(K::LINES).enumerate() {
            // At most 16, which the compiler cannot see otherwise.
            for row in 0..rows.len().min(PANEL_ROWS) {
                let block = (row * n_blocks + first + slot) / K::PIECES;
                K::pack(&blocks[block], row, slot, header, quants);
            }
        }
        lines = rest;
    }
}

/// A matrix of some, and what is added to its products.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    matrix: &'a PackedMatrix,
    part: usize,
    bias: Option<&'a [f32]>,
}

impl<'a> Weights<'a> {
    /// Matrix `part`, and `bias` for its rows.
    ///
    /// # Panics
    /// If there is no such part, or the bias has another length.
    pub fn new(matrix: &'a PackedMatrix, part: usize, bias: Option<&'a [f32]>) -> Self {
        assert!(part < matrix.n_parts, "part {part} of {}", matrix.n_parts);
        assert!(bias.is_none_or(|bias| bias.len() == matrix.n_rows), "bias");
        Self { matrix, part, bias }
    }

    /// The activations, in the form that the weights meet.
    fn activations<'x, K: Kernel>(&self, x: &'x QuantizedActivations) -> &'x [K::Activations] {
        let blocks = K::activations(x);
        let n_blocks = self.matrix.n_cols / K::LEN;
        assert_eq!(blocks.len(), x.n_tokens() * n_blocks, "activations for {}", self.matrix.ty);
        blocks
    }

    /// Writes the results of a panel, with the bias, to `out`, which is shorter behind the last row.
    #[inline(always)]
    fn write(&self, panel: usize, dots: &[f32; LANES], out: &mut [f32]) {
        let bias = self.bias.map(|bias| &bias[panel * PANEL_ROWS..]);
        match (bias, out.first_chunk_mut::<PANEL_ROWS>()) {
            (None, Some(out)) => *out = *dots,
            (Some(bias), Some(out)) => {
                for ((out, dot), bias) in out.iter_mut().zip(dots).zip(bias) {
                    *out = dot + bias;
                }
            }
            (bias, None) => Self::write_few(bias, dots, out),
        }
    }

    /// Apart, for a copy of any length would be a call for all.
    #[cold]
    #[inline(never)]
    fn write_few(bias: Option<&[f32]>, dots: &[f32; LANES], out: &mut [f32]) {
        for (i, (out, dot)) in out.iter_mut().zip(dots).enumerate() {
            *out = bias.map_or(*dot, |bias| dot + bias[i]);
        }
    }
}

/// One of several products that share their activations.
pub struct Product<'a> {
    weights: Weights<'a>,
    tokens: Range<usize>,
    out: Shared<'a, f32>,
}

impl<'a> Product<'a> {
    /// `out[token, row] = weights[row] · x[token] + bias[row]` for the tokens `tokens` of the activations;
    /// `out` is `[tokens.len(), n_rows]`.
    ///
    /// # Panics
    /// If the length does not fit.
    pub fn new(weights: Weights<'a>, tokens: Range<usize>, out: &'a mut [f32]) -> Self {
        assert_eq!(out.len(), tokens.len() * weights.matrix.n_rows, "output");
        Self { weights, tokens, out: Shared::new(out) }
    }

    /// Writes the results of a panel for some tokens.
    ///
    /// # Safety
    /// No other thread writes those of this panel.
    #[inline(always)]
    unsafe fn write(&self, panel: usize, first_token: usize, dots: &[Rows]) {
        let n_rows = self.weights.matrix.n_rows;
        let first = panel * PANEL_ROWS;
        for (token, dots) in (first_token - self.tokens.start..).zip(dots) {
            // SAFETY: a panel's rows have outputs of their own in each token.
            let out =
                unsafe { self.out.range(token * n_rows + first, PANEL_ROWS.min(n_rows - first)) };
            self.weights.write(panel, dots, out);
        }
    }

    fn n_panels(&self) -> usize {
        if self.tokens.is_empty() { 0 } else { self.weights.matrix.n_panels() }
    }
}

/// Computes all the products, whose weights meet the same activations, in one go. Each result is
/// that of the `quant` crate's integer dot product of the row with the token (for F32, F16 and
/// BF16, see `floats`), plus the bias.
///
/// # Panics
/// If the activations have other columns than a matrix, fewer tokens than a product asks for, or
/// were made without it.
pub fn matmul_packed(exec: Exec<'_>, x: &QuantizedActivations, products: &[Product<'_>]) {
    let mut n_panels = 0;
    for product in products {
        assert_eq!(x.n_cols(), product.weights.matrix.n_cols, "columns");
        assert!(product.tokens.end <= x.n_tokens(), "tokens");
        n_panels += product.n_panels();
    }
    exec.pool.for_shrinking_chunks(exec.n_threads, n_panels, |taken, worker| {
        // Panels of all products in a row.
        let mut first = 0;
        for product in products {
            let last = first + product.n_panels();
            let (start, end) = (taken.start.max(first), taken.end.min(last));
            if start < end {
                let (weights, tokens) = (product.weights, product.tokens.clone());
                let panels = start - first..end - first;
                let task = Task { exec, x, tokens, weights, panels };
                task.run(worker, |panel, token, dots| {
                    // SAFETY: each panel is visited by one thread.
                    unsafe { product.write(panel, token, dots) }
                });
            }
            first = last;
        }
    });
}

/// Products of some panels of weights with some tokens, for one thread.
struct Task<'a> {
    exec: Exec<'a>,
    x: &'a QuantizedActivations,
    tokens: Range<usize>,
    weights: Weights<'a>,
    panels: Range<usize>,
}

/// The way that so many tokens of a product take.
fn way<K: Kernel>(isa: Isa, n_tokens: usize) -> Way {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if isa.has_tiles() && n_tokens >= FROM_OF_TILES && K::TILES.is_some() {
        return Way::Tiles;
    }
    let from = if isa.has_32_registers() { K::FROM } else { K::FROM_OF_16 };
    if K::UNPACKED > 0 && n_tokens >= from { Way::Unpacked } else { Way::Packed }
}

/// See [`PackedMatrix::kernel_name`].
fn kernel_name<K: Kernel>(isa: Isa) -> &'static str {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if isa.has_tiles() && K::TILES.is_some() {
        return isa.name();
    }
    dispatch_packed!(K, isa, lanes_name())
}

impl Task<'_> {
    /// The products in the way that suits the number of tokens: `out(panel, first token, rows of each)`.
    fn run(&self, worker: &mut Worker, out: impl FnMut(usize, usize, &[Rows])) {
        let PackedMatrix { ty, books, .. } = *self.weights.matrix;
        let done = with_kernel!(ty, books, K => self.run_as::<K>(worker, out));
        done.expect("packed matrices have a kernel");
    }

    fn run_as<K: Kernel>(&self, worker: &mut Worker, out: impl FnMut(usize, usize, &[Rows])) {
        match way::<K>(self.exec.isa, self.tokens.len()) {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Way::Tiles => {
                let multiply = K::TILES.expect("a type that goes this way");
                // SAFETY: the way proves that the processor has them.
                unsafe { self.by_tiles::<K>(multiply, worker, out) };
            }
            Way::Unpacked => self.by_vectors::<K>(worker, out),
            _ => self.as_packed::<K>(out),
        }
    }

    /// As the weights come from memory.
    fn as_packed<K: Kernel>(&self, mut out: impl FnMut(usize, usize, &[Rows])) {
        let Self { exec, x, weights: Weights { matrix, part, .. }, ref panels, .. } = *self;
        let blocks = self.weights.activations::<K>(x);
        // A prompt has too many activations to read them all for every panel, so some panels and some
        // tokens, a quarter of L2 each, meet there. A whole number of tiles each time.
        let in_cache = exec.pool.caches().l2 / 4;
        let token_bytes = matrix.n_cols / K::LEN * size_of::<K::Activations>();
        let panel_bytes = matrix.panel_lines * size_of::<Line>();
        let group = (in_cache / token_bytes).next_multiple_of(8).max(8);
        let few_panels = (in_cache / panel_bytes.max(1)).max(1);
        for first in panels.clone().step_by(few_panels) {
            for token in self.tokens.clone().step_by(group) {
                for panel in first..panels.end.min(first + few_panels) {
                    let group = token..self.tokens.end.min(token + group);
                    let mut out = |token: usize, dots: &[Rows]| out(panel, token, dots);
                    let (lines, n_tokens) = (matrix.panel(part, panel), x.n_tokens());
                    dispatch_packed!(
                        K,
                        exec.isa,
                        multiply[K](lines, blocks, n_tokens, group, &mut out)
                    );
                }
            }
        }
    }

    /// By tiles.
    ///
    /// # Safety
    /// The instructions of `multiply` are present.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    unsafe fn by_tiles<K: Kernel>(
        &self,
        multiply: MultiplyTiles<K::Activations>,
        worker: &mut Worker,
        out: impl FnMut(usize, usize, &[Rows]),
    ) {
        let blocking = Blocking { few: 64, least: 1, panels: 8, buffer_lines: tiles::buffer_lines };
        self.unpacked::<K>(
            worker,
            blocking,
            |lines, n_panels, x, n_tokens, tokens, buffer, out| {
                // SAFETY: the caller has the instructions.
                unsafe { multiply(lines, n_panels, x, n_tokens, tokens, buffer, out) }
            },
            out,
        );
    }

    /// Unpacked, by vectors.
    fn by_vectors<K: Kernel>(&self, worker: &mut Worker, out: impl FnMut(usize, usize, &[Rows])) {
        // Registers enough for two panels meet the tokens two at a time.
        let least = if self.exec.isa.has_32_registers() { 2 } else { 1 };
        let blocking =
            Blocking { few: 32, least, panels: 4, buffer_lines: swept::buffer_lines::<K> };
        self.unpacked::<K>(
            worker,
            blocking,
            |lines, n_panels, x, n_tokens, tokens, buffer, out| {
                dispatch_packed!(
                    K,
                    self.exec.isa,
                    sweep[K](lines, n_panels, x, n_tokens, tokens, buffer, out)
                );
            },
            out,
        );
    }

    /// A few panels at a time, whose weights `multiply` unpacks.
    fn unpacked<K: Kernel>(
        &self,
        worker: &mut Worker,
        blocking: Blocking,
        multiply: impl Fn(
            &[Line],
            usize,
            &[K::Activations],
            usize,
            Range<usize>,
            &mut [Line],
            &mut dyn FnMut(usize, usize, &[Rows]),
        ),
        mut out: impl FnMut(usize, usize, &[Rows]),
    ) {
        let Self { exec, x, ref tokens, weights, ref panels } = *self;
        let blocks = weights.activations::<K>(x);
        let at_once = if tokens.len() <= blocking.few { blocking.least } else { blocking.panels };
        let steps = panels.len().div_ceil(at_once).max(1);
        let n_panels = panels.len().div_ceil(steps).next_multiple_of(blocking.least);
        let n_tokens = blocking.tokens::<K>(exec.pool.caches(), n_panels);
        for first in panels.clone().step_by(n_panels.max(1)) {
            let n_panels = n_panels.min(panels.end - first);
            for token in tokens.clone().step_by(n_tokens) {
                let group = token..tokens.end.min(token + n_tokens);
                let scratch =
                    worker.scratch((blocking.buffer_lines)(n_panels, group.len()) * LANES);
                let buffer = bytemuck::cast_slice_mut::<f32, Line>(scratch);
                let lines = weights.matrix.panels(weights.part, first, n_panels);
                multiply(
                    lines,
                    n_panels,
                    blocks,
                    x.n_tokens(),
                    group,
                    buffer,
                    &mut |p, token, dots| out(first + p, token, dots),
                );
            }
        }
    }
}
