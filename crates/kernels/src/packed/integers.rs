//! IQ1 to IQ3 and TQ: super-blocks of small integers that come out of books.
//!
//! ```text
//! block    the file's blocks of 16 rows, one after the other
//! ```
//!
//! What a book has cannot be looked up lane by lane without a load for each, so a block is unpacked row by
//! row, eight values at a time, before tokens meet it: the time that one token takes is that of
//! unpacking, and a few more cost little.

use super::super_blocks::{self, Factors, QUANT_LINES, SuperBlocks, UNPACKED};
use super::{Kernel, PANEL_ROWS, Tile, prefetch, set_dword};
use crate::activations::{Form, QuantizedActivations, SuperBlock};
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;
use hurtle_quant::{Array, ScaledIntegers};

/// The kernel of all of them.
pub(crate) struct Integers<W>(W);
pub(crate) type Iq1S = Integers<hurtle_quant::Iq1S<'static>>;
pub(crate) type Iq1M = Integers<hurtle_quant::Iq1M<'static>>;
pub(crate) type Iq2Xxs = Integers<hurtle_quant::Iq2Xxs<'static>>;
pub(crate) type Iq2Xs = Integers<hurtle_quant::Iq2Xs<'static>>;
pub(crate) type Iq2S = Integers<hurtle_quant::Iq2S<'static>>;
pub(crate) type Iq3Xxs = Integers<hurtle_quant::Iq3Xxs<'static>>;
pub(crate) type Iq3S = Integers<hurtle_quant::Iq3S<'static>>;
pub(crate) type Tq1_0 = Integers<hurtle_quant::Tq1_0<'static>>;
pub(crate) type Tq2_0 = Integers<hurtle_quant::Tq2_0<'static>>;

impl<W: ScaledIntegers> Integers<W> {
    /// The blocks of the rows.
    #[inline(always)]
    fn rows(block: &[Line]) -> &[W::Bytes] {
        let (rows, _) = W::Bytes::chunks(bytemuck::cast_slice(block));
        &rows[..PANEL_ROWS]
    }
}

impl<W: ScaledIntegers> Kernel for Integers<W> {
    type Bytes = W::Bytes;
    const LEN: usize = 256;
    type Activations = SuperBlock;
    const FORM: Form = Form::SuperBlocks;
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    const TILES: Option<super::MultiplyTiles<SuperBlock>> =
        Some(crate::arch::x86_64::avx512vnni::multiply_tiles::<Self, crate::arch::amx::Amx>);
    const SHARE: usize = 1;
    const HEADER: usize = 0;
    const LINES: usize = (PANEL_ROWS * W::BYTES).div_ceil(size_of::<Line>());
    // More than meet a block that `tile` has unpacked.
    const FROM: usize = 9;
    const FROM_OF_16: usize = 5;

    fn activations(x: &QuantizedActivations) -> &[SuperBlock] {
        x.super_blocks()
    }

    fn pack(block: &W::Bytes, row: usize, _: usize, _: &mut [Line], quants: &mut [Line]) {
        let (rows, _) = W::Bytes::chunks_mut(bytemuck::cast_slice_mut(quants));
        rows[row].as_mut().copy_from_slice(block.as_ref());
    }

    #[inline(always)]
    unsafe fn tile<L: IntLanes, const T: usize>(
        panel: &[Line],
        tokens: Tile<'_, SuperBlock, T>,
    ) -> [[f32; LANES]; T] {
        let mut unpacked = [Line([0; 64]); UNPACKED];
        let mut out = [[0.0; LANES]; T];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut sums = [L::Floats::splat(0.0); T];
            for (b, block) in panel.chunks_exact(Self::LINES).enumerate() {
                prefetch::<L>(block);
                super_blocks::unpack::<L, Self>(block, &mut unpacked);
                super_blocks::add_products::<L, Self, T>(&unpacked, tokens.block(b), &mut sums);
            }
            for t in 0..T {
                out[t] = sums[t].to_array();
            }
        }
        out
    }

    super_blocks::unpacked!();
}

impl<W: ScaledIntegers> SuperBlocks for Integers<W> {
    const OFFSET: i32 = W::OFFSET as i32;
    const MAX: Option<usize> = Some(W::MAX as usize);
    const GROUP_LINES: usize = W::GROUP / 4;

    #[inline(always)]
    fn open<'a>(block: &'a [Line], room: &'a mut [Line; QUANT_LINES]) -> &'a [Line] {
        for (r, bytes) in Self::rows(block).iter().enumerate() {
            W::for_each(bytes, |i, word| {
                set_dword(&mut room[2 * i], r, (word as u32).to_le_bytes());
                set_dword(&mut room[2 * i + 1], r, ((word >> 32) as u32).to_le_bytes());
            });
        }
        room
    }

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(opened: &[Line], i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(&opened[i]) }
    }

    #[inline(always)]
    unsafe fn scales<L: IntLanes>(block: &[Line], q: usize) -> L {
        let mut line = Line([0; 64]);
        for (r, bytes) in Self::rows(block).iter().enumerate() {
            let scales = W::scales(bytes);
            set_dword(&mut line, r, std::array::from_fn(|i| scales[4 * q + i] as u8));
        }
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(&line) }
    }

    #[inline(always)]
    unsafe fn factors<L: IntLanes>(block: &[Line], factors: &mut Factors) {
        for (to, bytes) in factors[0].floats_mut().iter_mut().zip(Self::rows(block)) {
            *to = W::factor(bytes);
        }
    }

    super_blocks::one_factor!();
}
