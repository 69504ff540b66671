//! F32, F16 and BF16, which meet f32 activations.
//!
//! ```text
//! F32    16 lines   value k of 16 rows
//! F16     8 lines   value 2l, 16 × f16 | value 2l + 1
//! BF16    8 lines   16 × (value 2l, value 2l + 1)
//! ```
//! A block is 16 values, without a header. Value `k` adds to sum `k % 4` of its row, with separate
//! multiplications and additions; the sums are added up as `(0 + 1) + (2 + 3)`.

use super::{Kernel, PANEL_ROWS, Tile, halves, prefetch, set_dwords, set_half};
use crate::activations::{FLOATS, Form, QuantizedActivations};
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;
use hurtle_quant::Array;
use std::marker::PhantomData;

/// An element type.
pub(crate) trait Type {
    type Bytes: Array<u8>;
    /// Lines of a block.
    const LINES: usize;

    fn pack(block: &[u8], row: usize, lines: &mut [Line]);

    /// Values `k` of the rows.
    unsafe fn value<L: IntLanes>(lines: &[Line], k: usize) -> L::Floats;
}

pub(crate) struct TypeF32;

impl Type for TypeF32 {
    type Bytes = [u8; 4 * FLOATS];
    const LINES: usize = FLOATS;

    fn pack(block: &[u8], row: usize, lines: &mut [Line]) {
        set_dwords(lines, row, block, |k| k);
    }

    #[inline(always)]
    unsafe fn value<L: IntLanes>(lines: &[Line], k: usize) -> L::Floats {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::Floats::load(bytemuck::cast_slice(&lines[k].0)) }
    }
}

pub(crate) struct TypeF16;

impl Type for TypeF16 {
    type Bytes = [u8; 2 * FLOATS];
    const LINES: usize = FLOATS / 2;

    fn pack(block: &[u8], row: usize, lines: &mut [Line]) {
        for (line, [a, b, c, d]) in lines.iter_mut().zip(block.as_chunks::<4>().0) {
            set_half(line, row, [*a, *b]);
            set_half(line, PANEL_ROWS + row, [*c, *d]);
        }
    }

    #[inline(always)]
    unsafe fn value<L: IntLanes>(lines: &[Line], k: usize) -> L::Floats {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::Floats::load_f16(halves(&lines[k / 2], k % 2)) }
    }
}

pub(crate) struct TypeBF16;

impl Type for TypeBF16 {
    type Bytes = [u8; 2 * FLOATS];
    const LINES: usize = FLOATS / 2;

    fn pack(block: &[u8], row: usize, lines: &mut [Line]) {
        TypeF32::pack(block, row, lines);
    }

    #[inline(always)]
    unsafe fn value<L: IntLanes>(lines: &[Line], k: usize) -> L::Floats {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let pair = L::load(&lines[k / 2]);
            if k.is_multiple_of(2) { pair.shl(16) } else { pair.and(L::splat(!0xffff)) }.as_floats()
        }
    }
}

/// The kernel of all of them.
pub(crate) struct Floats<W>(PhantomData<W>);
pub(crate) type F32 = Floats<TypeF32>;
pub(crate) type F16 = Floats<TypeF16>;
pub(crate) type BF16 = Floats<TypeBF16>;

impl<W: Type> Kernel for Floats<W> {
    type Bytes = W::Bytes;
    const LEN: usize = FLOATS;
    type Activations = [f32; FLOATS];
    const FORM: Form = Form::Floats;
    const SHARE: usize = 1;
    const HEADER: usize = 0;
    const LINES: usize = W::LINES;
    const SUMS: usize = 2;

    fn activations(x: &QuantizedActivations) -> &[[f32; FLOATS]] {
        x.floats()
    }

    fn pack(block: &W::Bytes, row: usize, _: usize, _: &mut [Line], lines: &mut [Line]) {
        W::pack(block.as_ref(), row, lines);
    }

    #[inline(always)]
    unsafe fn tile<L: IntLanes, const T: usize>(
        panel: &[Line],
        tokens: Tile<'_, [f32; FLOATS], T>,
    ) -> [[f32; LANES]; T] {
        let mut out = [[0.0; LANES]; T];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut sums = [[L::Floats::splat(0.0); 4]; T];
            for (b, block) in panel.chunks_exact(W::LINES).enumerate() {
                prefetch::<L>(block);
                let x = tokens.block(b);
                for k in 0..FLOATS {
                    let w = W::value::<L>(block, k);
                    for t in 0..T {
                        let product = w.mul(L::Floats::splat(x[t][k]));
                        sums[t][k % 4] = sums[t][k % 4].add(product);
                    }
                }
            }
            for t in 0..T {
                let [a, b, c, d] = sums[t];
                out[t] = a.add(b).add(c.add(d)).to_array();
            }
        }
        out
    }
}
