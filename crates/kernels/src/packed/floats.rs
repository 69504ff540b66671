//! F32 and F16, which meet f32 activations, and BF16, which meets activations rounded to bf16.
//!
//! ```text
//! F32    16 lines   value k of 16 rows
//! F16     8 lines   value 2l, 16 × f16 | value 2l + 1
//! BF16    8 lines   16 × (value 2l, value 2l + 1)
//! ```
//! A block is 16 values, without a header. Of each 256 columns the products of the blocks with an even index are added
//! up from zero in ascending order, each rounded once, and those of the others; of a pair of BF16 the second comes
//! first, as in the instruction for it (which takes numbers below 2^-126 for 0). These sums, the even ones first, are
//! added up in ascending order.
//!
//! Nothing is unpacked for many tokens: 8 of them, or 4 with 16 registers, share what takes two instructions at most.
//! On a Zen 5, 512 of them pass at 78 to 89 % of what AVX-512 multiplies, with AVX2 at 84 to 97 % (`packed_speed ISA TYPE
//! 4480 1536 512`).

use super::{Kernel, PANEL_ROWS, Tile, UNIT, halves, prefetch, set_dwords, set_half};
use crate::activations::{FLOATS, Form, Pairs, QuantizedActivations};
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;
use hurtle_quant::Array;
use std::marker::PhantomData;

/// An element type.
pub(crate) trait Type {
    type Bytes: Array<u8>;
    /// What a block meets.
    type Activations: Sync;
    const FORM: Form;
    /// Whether these are pairs, which some processors have instructions for.
    const PAIRS: bool = false;
    /// Lines of a block.
    const LINES: usize;

    fn activations(x: &QuantizedActivations) -> &[Self::Activations];

    fn pack(block: &[u8], row: usize, lines: &mut [Line]);

    /// Adds the products of values `2l` and `2l + 1` of blocks to sums of their own.
    unsafe fn add_two<L: IntLanes, const P: usize, const T: usize>(
        blocks: [&[Line]; P],
        l: usize,
        x: [&[Self::Activations; T]; P],
        sums: &mut [[L::Floats; T]; P],
    );
}

/// An element type that meets f32 activations.
pub(crate) trait Values {
    type Bytes: Array<u8>;
    /// Lines of a block.
    const LINES: usize;

    fn pack(block: &[u8], row: usize, lines: &mut [Line]);

    /// Value `k` of each row.
    unsafe fn value<L: IntLanes>(block: &[Line], k: usize) -> L::Floats;
}

pub(crate) struct ValuesF32;

impl Values for ValuesF32 {
    type Bytes = [u8; 4 * FLOATS];
    const LINES: usize = FLOATS;

    fn pack(block: &[u8], row: usize, lines: &mut [Line]) {
        set_dwords(lines, row, block, |k| k);
    }

    #[inline(always)]
    unsafe fn value<L: IntLanes>(block: &[Line], k: usize) -> L::Floats {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::Floats::load(block[k].floats()) }
    }
}

pub(crate) struct ValuesF16;

impl Values for ValuesF16 {
    type Bytes = [u8; 2 * FLOATS];
    const LINES: usize = FLOATS / 2;

    fn pack(block: &[u8], row: usize, lines: &mut [Line]) {
        for (line, [a, b, c, d]) in lines.iter_mut().zip(block.as_chunks::<4>().0) {
            set_half(line, row, [*a, *b]);
            set_half(line, PANEL_ROWS + row, [*c, *d]);
        }
    }

    #[inline(always)]
    unsafe fn value<L: IntLanes>(block: &[Line], k: usize) -> L::Floats {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::Floats::load_f16(halves(&block[k / 2], k % 2)) }
    }
}

pub(crate) struct Single<V>(PhantomData<V>);

impl<V: Values> Type for Single<V> {
    type Bytes = V::Bytes;
    type Activations = [f32; FLOATS];
    const FORM: Form = Form::Floats;
    const LINES: usize = V::LINES;

    fn activations(x: &QuantizedActivations) -> &[[f32; FLOATS]] {
        x.floats()
    }

    fn pack(block: &[u8], row: usize, lines: &mut [Line]) {
        V::pack(block, row, lines);
    }

    #[inline(always)]
    unsafe fn add_two<L: IntLanes, const P: usize, const T: usize>(
        blocks: [&[Line]; P],
        l: usize,
        x: [&[[f32; FLOATS]; T]; P],
        sums: &mut [[L::Floats; T]; P],
    ) {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            for k in [2 * l, 2 * l + 1] {
                let mut values = [L::Floats::splat(0.0); P];
                for p in 0..P {
                    values[p] = V::value::<L>(blocks[p], k);
                }
                for t in 0..T {
                    for p in 0..P {
                        let x = L::Floats::splat(x[p][t][k]);
                        sums[p][t] = values[p].mul_add(x, sums[p][t]);
                    }
                }
            }
        }
    }
}

pub(crate) struct TypeBF16;

impl Type for TypeBF16 {
    type Bytes = [u8; 2 * FLOATS];
    type Activations = Pairs;
    const FORM: Form = Form::Pairs;
    const PAIRS: bool = true;
    const LINES: usize = FLOATS / 2;

    fn activations(x: &QuantizedActivations) -> &[Pairs] {
        x.pairs()
    }

    fn pack(block: &[u8], row: usize, lines: &mut [Line]) {
        set_dwords(lines, row, block, |k| k);
    }

    #[inline(always)]
    unsafe fn add_two<L: IntLanes, const P: usize, const T: usize>(
        blocks: [&[Line]; P],
        l: usize,
        x: [&[Pairs; T]; P],
        sums: &mut [[L::Floats; T]; P],
    ) {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut pairs = [L::Floats::splat(0.0); P];
            for p in 0..P {
                pairs[p] = L::load(&blocks[p][l]).as_floats();
            }
            for t in 0..T {
                for p in 0..P {
                    L::Floats::add_pair(&mut sums[p][t], pairs[p], x[p][t][l]);
                }
            }
        }
    }
}

/// The kernel of all of them.
pub(crate) struct Floats<W>(PhantomData<W>);
pub(crate) type F32 = Floats<Single<ValuesF32>>;
pub(crate) type F16 = Floats<Single<ValuesF16>>;
pub(crate) type BF16 = Floats<TypeBF16>;

impl<W: Type> Floats<W> {
    /// Adds the products of `P` successive blocks to sums of their own, and fetches what comes behind them.
    #[inline(always)]
    unsafe fn add_blocks<L: IntLanes, const P: usize, const T: usize>(
        panel: &[Line],
        tokens: &Tile<'_, W::Activations, T>,
        first: usize,
        sums: &mut [[L::Floats; T]; P],
    ) {
        let lines = &panel[first * W::LINES..][..P * W::LINES];
        let blocks = std::array::from_fn(|p| &lines[p * W::LINES..][..W::LINES]);
        let x = std::array::from_fn(|p| tokens.block(first + p));
        let step = P * W::LINES / (FLOATS / 2);
        for l in 0..FLOATS / 2 {
            // SAFETY: the caller has the lanes' instruction set.
            unsafe {
                prefetch::<L>(&lines[l * step..][..step]);
                W::add_two::<L, P, T>(blocks, l, x, sums);
            }
        }
    }
}

impl<W: Type> Kernel for Floats<W> {
    type Bytes = W::Bytes;
    const LEN: usize = FLOATS;
    type Activations = W::Activations;
    const FORM: Form = W::FORM;
    const PAIRS: bool = W::PAIRS;
    const SHARE: usize = 1;
    const HEADER: usize = 0;
    const LINES: usize = W::LINES;

    fn activations(x: &QuantizedActivations) -> &[W::Activations] {
        W::activations(x)
    }

    fn pack(block: &W::Bytes, row: usize, _: usize, _: &mut [Line], lines: &mut [Line]) {
        W::pack(block.as_ref(), row, lines);
    }

    #[inline(always)]
    unsafe fn tile<L: IntLanes, const T: usize>(
        panel: &[Line],
        tokens: Tile<'_, W::Activations, T>,
    ) -> [[f32; LANES]; T] {
        const UNIT_BLOCKS: usize = UNIT / FLOATS;
        let mut out = [[0.0; LANES]; T];
        let n_blocks = panel.len() / W::LINES;
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut sums = [L::Floats::splat(0.0); T];
            for first in (0..n_blocks).step_by(UNIT_BLOCKS) {
                let end = n_blocks.min(first + UNIT_BLOCKS);
                if T <= 2 || L::TILE_TOKENS == 8 {
                    // In the order of memory; two blocks at a time where one would wait for its sums.
                    let mut units = [[L::Floats::splat(0.0); T]; 2];
                    for b in (first..end).step_by(2) {
                        if T == 8 && b + 1 < end {
                            Self::add_blocks::<L, 2, T>(panel, &tokens, b, &mut units);
                            continue;
                        }
                        let [even, odd] = units.each_mut().map(std::array::from_mut);
                        Self::add_blocks::<L, 1, T>(panel, &tokens, b, even);
                        if b + 1 < end {
                            Self::add_blocks::<L, 1, T>(panel, &tokens, b + 1, odd);
                        }
                    }
                    for t in 0..T {
                        sums[t] = sums[t].add(units[0][t]).add(units[1][t]);
                    }
                } else {
                    // There are no registers for both sums of each token.
                    for kind in 0..2 {
                        let mut unit = [[L::Floats::splat(0.0); T]];
                        for b in (first + kind..end).step_by(2) {
                            Self::add_blocks::<L, 1, T>(panel, &tokens, b, &mut unit);
                        }
                        for t in 0..T {
                            sums[t] = sums[t].add(unit[0][t]);
                        }
                    }
                }
            }
            for t in 0..T {
                out[t] = sums[t].to_array();
            }
        }
        out
    }
}
