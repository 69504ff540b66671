//! Activations in the forms that packed weights meet, 8 bit for all but F32, F16 (f32) and BF16 (bf16).
//!
//! Super-blocks of 256 (Q8_K) meet the weights that come in super-blocks, blocks of 32 (Q8_0 and
//! Q8_1) the other quantized ones. The numbers are those of the `quant` crate, bit for bit; the sums are spread
//! out so that the kernels need no arithmetic for them.

use crate::Exec;
use crate::arch::dispatch;
use crate::elementwise::Activation;
use crate::packed::PackedMatrix;
use crate::share::Shared;
use hurtle_quant::{Q8_1Block, Q8KSuperBlock, sum_of_32};
use std::ops::Range;

/// 256 activations, `d * qs[i]` each. Aligned, so that 64 quants are a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct SuperBlock {
    /// Quants, 4 in a dword, the first in the lowest byte.
    pub(crate) qs: [u32; 64],
    /// The sum of each 16 quants, two in a dword: those of groups 4q and 4q + 2, then those of
    /// groups 4q + 1 and 4q + 3, as scales lie after [`halves`](crate::arch::IntLanes::halves).
    pub(crate) sums: [u32; 8],
    /// The sum of each 32 quants, in the same order: groups 4q and 4q + 2, 4q + 1 and 4q + 3.
    pub(crate) sums_32: [u32; 4],
    pub(crate) d: f32,
    /// -32 times the sums of each group of 16: of the first two quants of its dwords, and of the last two. For
    /// [`start_sums`](crate::arch::IntLanes::start_sums) of 16 bits.
    pub(crate) starts: [u32; 16],
    /// -32 times the sum of each group of 16, for those of 32 bits.
    pub(crate) lane_starts: [i32; 16],
}

/// 32 activations, `d * qs[i]` each.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Block {
    /// Quants, 4 in a dword, the first in the lowest byte.
    pub(crate) qs: [u32; 8],
    /// Sum of the quants.
    pub(crate) sum: i32,
    /// That of the first 16.
    pub(crate) first_sum: i32,
    pub(crate) d: f32,
    /// `d` times the sum, as Q8_1 rounds it.
    pub(crate) scaled_sum: f32,
}

/// 4 bytes in a dword.
#[inline(always)]
fn dwords<const N: usize>(bytes: &[i8]) -> [u32; N] {
    let mut dwords = [0; N];
    for (dword, bytes) in dwords.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *dword = u32::from_le_bytes(bytes.map(|byte| byte as u8));
    }
    dwords
}

impl From<&Q8KSuperBlock> for SuperBlock {
    #[inline(always)]
    fn from(block: &Q8KSuperBlock) -> Self {
        let half = |g: usize| u32::from(block.sums[g] as u16);
        // At most 32 * 127.
        let half_32 = |g: usize| u32::from((block.sums[2 * g] + block.sums[2 * g + 1]) as u16);
        let (mut sums, mut sums_32) = ([0; 8], [0; 4]);
        for (i, sums) in sums.iter_mut().enumerate() {
            let g = 4 * (i / 2) + i % 2;
            *sums = half(g) | half(g + 2) << 16;
        }
        for (i, sums) in sums_32.iter_mut().enumerate() {
            let g = 4 * (i / 2) + i % 2;
            *sums = half_32(g) | half_32(g + 2) << 16;
        }
        let qs: [u32; 64] = dwords(&block.qs);
        // Each quant as 127 - q, which needs no sign; the first two of a dword and the last two are added in
        // 16 bits, 8 in all in a group.
        let mut pairs = [0; 64];
        for (pair, q) in pairs.iter_mut().zip(qs) {
            let q = !q ^ 0x8080_8080;
            *pair = (q & 0x00ff_00ff) + (q >> 8 & 0x00ff_00ff);
        }
        let mut starts = [0; 16];
        for (start, pairs) in starts.iter_mut().zip(pairs.as_chunks::<4>().0) {
            let sums = pairs.iter().sum::<u32>();
            // 32 * (8 * 127 - sum of quants), without the first part.
            let down = 0_u16.wrapping_sub(32 * 8 * 127);
            let first = (sums << 5).wrapping_add(down.into()) & 0xffff;
            *start = first | ((sums << 5) & 0xffff_0000).wrapping_add(u32::from(down) << 16);
        }
        let lane_starts = block.sums.map(|sum| -32 * i32::from(sum));
        Self { qs, sums, sums_32, d: block.d, starts, lane_starts }
    }
}

impl SuperBlock {
    /// The sum of quants `32 g` to `32 g + 31`.
    #[inline(always)]
    pub(crate) fn sum_of_32(&self, g: usize) -> i32 {
        let pair = self.sums_32[2 * (g / 4) + g % 2];
        i32::from((pair >> (16 * (g / 2 % 2))) as i16)
    }
}

impl From<&Q8_1Block> for Block {
    #[inline(always)]
    fn from(block: &Q8_1Block) -> Self {
        Self {
            qs: dwords(&block.qs),
            sum: sum_of_32(&block.qs),
            first_sum: block.qs[..16].iter().map(|q| i32::from(*q)).sum(),
            d: block.scale(),
            scaled_sum: block.scaled_sum(),
        }
    }
}

#[inline(always)]
pub(crate) fn quantize_super_block(x: &[f32; 256], out: &mut SuperBlock) {
    *out = SuperBlock::from(&Q8KSuperBlock::quantize(x));
}

#[inline(always)]
pub(crate) fn quantize_block(x: &[f32; 32], out: &mut Block) {
    *out = Block::from(&Q8_1Block::quantize(x));
}

/// The forms that activations are quantized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Q8_K: super-blocks of 256, for the k-quants.
    SuperBlocks,
    /// Q8_0 and Q8_1: blocks of 32, for the other quantized types.
    Blocks,
    /// As they are, for F32 and F16.
    Floats,
    /// Rounded to bf16, for BF16.
    Pairs,
}

/// Values of a block of [`Form::Floats`] and [`Form::Pairs`].
pub(crate) const FLOATS: usize = 16;

/// A block of bf16, two to a dword, the first in the lower half.
pub(crate) type Pairs = [u32; FLOATS / 2];

/// Rounds to bf16, to nearest, ties to even.
#[inline(always)]
pub(crate) fn round_to_pairs(x: &[f32; FLOATS], out: &mut Pairs) {
    for (pair, x) in out.iter_mut().zip(x.as_chunks::<2>().0) {
        let [first, second] = x.map(|x| {
            let bits = x.to_bits();
            // A NaN stays one.
            let quiet = bits | 0x0040_0000;
            if x.is_nan() { quiet } else { bits.wrapping_add(0x7fff + (bits >> 16 & 1)) }
        });
        *pair = first >> 16 | second & 0xffff_0000;
    }
}

/// Activations of some tokens, quantized once for all the matrices that they meet.
///
/// Keep one and use it again: its buffers only grow.
#[derive(Debug, Default)]
pub struct QuantizedActivations {
    n_tokens: usize,
    n_cols: usize,
    /// Which forms are there. What is not is left from before.
    forms: [bool; 4],
    /// `[n_cols / 256, n_tokens]`
    super_blocks: Vec<SuperBlock>,
    /// `[n_cols / 32, n_tokens]`
    blocks: Vec<Block>,
    /// `[n_cols / 16, n_tokens]`
    floats: Vec<[f32; FLOATS]>,
    /// `[n_cols / 16, n_tokens]`
    pairs: Vec<Pairs>,
}

/// How many values make it worth while to wake other threads.
const PARALLEL: usize = 4096;

impl QuantizedActivations {
    /// No tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the content by `x` (`[n_tokens, n_cols]`), in the forms that `matrices` need. They
    /// all have `n_cols` columns.
    ///
    /// # Panics
    /// If the matrices differ in their columns, or `x` does not hold whole tokens.
    pub fn quantize<'m>(
        &mut self,
        exec: Exec<'_>,
        x: &[f32],
        matrices: impl IntoIterator<Item = &'m PackedMatrix>,
    ) {
        self.clear();
        for matrix in matrices {
            if self.n_cols == 0 {
                self.start(x.len(), matrix.n_cols());
            }
            assert_eq!(self.n_cols, matrix.n_cols(), "columns of matrices with one input");
            // A row is whole blocks, so blocks do not cross tokens.
            self.fill(exec, matrix.form(), &Source::Values(x));
        }
    }

    /// Replaces the content by `activation(gate) · up` (`[n_tokens, n_cols]`, both), in the form
    /// that `matrix` needs. What becomes of `gate` is not said.
    ///
    /// # Panics
    /// If the lengths differ, or are no whole tokens.
    pub fn quantize_gated(
        &mut self,
        exec: Exec<'_>,
        activation: Activation,
        gate: &mut [f32],
        up: &[f32],
        matrix: &PackedMatrix,
    ) {
        assert_eq!(gate.len(), up.len(), "gate and up");
        self.clear();
        self.start(gate.len(), matrix.n_cols());
        self.fill(exec, matrix.form(), &Source::Gated(activation, Shared::new(gate), up));
    }

    fn clear(&mut self) {
        self.forms = [false; 4];
        (self.n_tokens, self.n_cols) = (0, 0);
    }

    fn start(&mut self, n_values: usize, n_cols: usize) {
        assert!(n_values.is_multiple_of(n_cols), "{n_values} values for {n_cols} columns");
        (self.n_tokens, self.n_cols) = (n_values / n_cols, n_cols);
    }

    /// Makes a form, unless it is there.
    fn fill(&mut self, exec: Exec<'_>, form: Form, source: &Source<'_>) {
        /// Values that are computed and quantized before the next ones: whole blocks of every form.
        const NEAR: usize = 512;
        if self.forms[form as usize] {
            return;
        }
        let n_cols = self.n_cols;
        let pieces = n_cols.div_ceil(NEAR);
        let n = self.n_tokens * pieces;
        let n_threads = if source.len() < PARALLEL { 1 } else { exec.n_threads.max(1) };
        let room = self.room(form);
        Exec { n_threads, ..exec }.for_chunks(n, n.div_ceil(2 * n_threads), |items, _| {
            for item in items {
                let (token, first) = (item / pieces, item % pieces * NEAR);
                let last = n_cols.min(first + NEAR);
                // SAFETY: chunks do not overlap.
                let x =
                    unsafe { source.range(exec, token * n_cols + first..token * n_cols + last) };
                // SAFETY: each item has its own place.
                unsafe { room.put(exec, token, first, x) };
            }
        });
    }

    /// Replaces the content by `n_tokens` tokens in the form that `matrix` needs, still to be filled in.
    pub(crate) fn make_room(&mut self, n_tokens: usize, matrix: &PackedMatrix) -> Room<'_> {
        self.clear();
        (self.n_tokens, self.n_cols) = (n_tokens, matrix.n_cols());
        self.room(matrix.form())
    }

    fn room(&mut self, form: Form) -> Room<'_> {
        /// The blocks of all tokens.
        fn blocks<B: Copy>(blocks: &mut Vec<B>, n: usize, zero: B) -> Shared<'_, B> {
            blocks.resize(n, zero);
            Shared::new(blocks)
        }
        self.forms[form as usize] = true;
        let n = self.n_tokens * self.n_cols;
        let blocks = match form {
            Form::SuperBlocks => {
                let zero = SuperBlock::from(&Q8KSuperBlock::ZERO);
                Blocks::Super(blocks(&mut self.super_blocks, n / 256, zero))
            }
            Form::Blocks => {
                let zero = Block::from(&Q8_1Block::ZERO);
                Blocks::Of32(blocks(&mut self.blocks, n / 32, zero))
            }
            Form::Floats => Blocks::Floats(blocks(&mut self.floats, n / FLOATS, [0.0; FLOATS])),
            Form::Pairs => Blocks::Pairs(blocks(&mut self.pairs, n / FLOATS, [0; FLOATS / 2])),
        };
        Room { n_tokens: self.n_tokens, blocks }
    }

    /// Tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Values of a token.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    fn made<'a, B>(&self, form: Form, blocks: &'a [B]) -> &'a [B] {
        if self.forms[form as usize] { blocks } else { &[] }
    }

    /// `[n_cols / 256, n_tokens]`; empty if no matrix needed them.
    pub(crate) fn super_blocks(&self) -> &[SuperBlock] {
        self.made(Form::SuperBlocks, &self.super_blocks)
    }

    /// `[n_cols / 32, n_tokens]`; empty if no matrix needed them.
    pub(crate) fn blocks(&self) -> &[Block] {
        self.made(Form::Blocks, &self.blocks)
    }

    /// `[n_cols / 16, n_tokens]`; empty if no matrix needed them.
    pub(crate) fn floats(&self) -> &[[f32; FLOATS]] {
        self.made(Form::Floats, &self.floats)
    }

    /// `[n_cols / 16, n_tokens]`; empty if no matrix needed them.
    pub(crate) fn pairs(&self) -> &[Pairs] {
        self.made(Form::Pairs, &self.pairs)
    }
}

/// Where activations come from.
enum Source<'a> {
    Values(&'a [f32]),
    /// `activation(gate) · up`, computed in the place of `gate`.
    Gated(Activation, Shared<'a, f32>, &'a [f32]),
}

impl Source<'_> {
    fn len(&self) -> usize {
        match self {
            Source::Values(x) => x.len(),
            Source::Gated(_, _, up) => up.len(),
        }
    }

    /// Some of the values.
    ///
    /// # Safety
    /// No value is asked for twice.
    unsafe fn range(&self, exec: Exec<'_>, range: Range<usize>) -> &[f32] {
        match self {
            Source::Values(x) => &x[range],
            Source::Gated(activation, gate, up) => {
                // SAFETY: the caller's promise.
                let gate = unsafe { gate.range(range.start, range.len()) };
                dispatch!(exec.isa, gate(*activation, gate, &up[range]));
                gate
            }
        }
    }
}

/// Blocks of one form, `[n_blocks, n_tokens]`, that several threads fill in.
pub(crate) struct Room<'a> {
    n_tokens: usize,
    blocks: Blocks<'a>,
}

enum Blocks<'a> {
    Super(Shared<'a, SuperBlock>),
    Of32(Shared<'a, Block>),
    Floats(Shared<'a, [f32; FLOATS]>),
    Pairs(Shared<'a, Pairs>),
}

impl Room<'_> {
    /// Quantizes values of a token, whole blocks from column `first` on.
    ///
    /// # Safety
    /// Nobody else fills in these.
    pub(crate) unsafe fn put(&self, exec: Exec<'_>, token: usize, first: usize, x: &[f32]) {
        let super_block = |x: &_, out: &mut _| dispatch!(exec.isa, quantize_super_block(x, out));
        let of_32 = |x: &_, out: &mut _| dispatch!(exec.isa, quantize_block(x, out));
        let pairs = |x: &_, out: &mut _| dispatch!(exec.isa, round_to_pairs(x, out));
        // SAFETY: the caller's promise, of all of them.
        unsafe {
            match &self.blocks {
                Blocks::Super(blocks) => self.put_blocks(blocks, token, first, x, super_block),
                Blocks::Of32(blocks) => self.put_blocks(blocks, token, first, x, of_32),
                Blocks::Floats(blocks) => {
                    self.put_blocks(blocks, token, first, x, |x, out| *out = *x);
                }
                Blocks::Pairs(blocks) => self.put_blocks(blocks, token, first, x, pairs),
            }
        }
    }

    /// # Safety
    /// As for [`put`](Self::put).
    unsafe fn put_blocks<const LEN: usize, B>(
        &self,
        blocks: &Shared<'_, B>,
        token: usize,
        first: usize,
        x: &[f32],
        quantize: impl Fn(&[f32; LEN], &mut B),
    ) {
        let (x, rest) = x.as_chunks();
        debug_assert!(first.is_multiple_of(LEN) && rest.is_empty(), "whole blocks");
        for (b, x) in (first / LEN..).zip(x) {
            // SAFETY: the caller's promise.
            quantize(x, unsafe { &mut blocks.range(b * self.n_tokens + token, 1)[0] });
        }
    }
}
