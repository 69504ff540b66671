//! IQ1 to IQ3 and TQ1_0 at the file's size: super-blocks of small integers that come out of books.
//!
//! ```text
//! block    the file's blocks of 16 rows, one after the other
//! ```
//!
//! What a book has cannot be looked up lane by lane without a load for each, so a block is unpacked row by
//! row, and few tokens meet it as it comes out: a lane is a place of the row here, and the lanes are added up at
//! the end of the block. Sums of integers are exact, so the bits are those of the other way round, which
//! many tokens take. Looking up is most of what a token costs, and a few more cost little.

use super::super_blocks::{self, Factors, QUANT_LINES, SuperBlocks};
use super::{Kernel, PANEL_ROWS, Tile, prefetch, set_dword, set_dwords};
use crate::activations::{Form, QuantizedActivations, SuperBlock};
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;
use hurtle_quant::{Array, ScaledIntegers};

/// Lines of a row's stored integers of a block.
const ROW_LINES: usize = 4;

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

impl<W: ScaledIntegers> Integers<W> {
    /// The blocks of the rows.
    #[inline(always)]
    fn rows(block: &[Line]) -> &[W::Bytes] {
        let (rows, _) = W::Bytes::chunks(bytemuck::cast_slice(block));
        &rows[..PANEL_ROWS]
    }
}

/// A block of a panel's rows.
struct Rows {
    /// Without signs.
    stored: [[Line; ROW_LINES]; PANEL_ROWS],
    signs: [[u32; 8]; PANEL_ROWS],
    scales: [[i8; 16]; PANEL_ROWS],
}

impl Rows {
    fn new() -> Self {
        Self {
            stored: [[Line([0; 64]); ROW_LINES]; PANEL_ROWS],
            signs: [[0; 8]; PANEL_ROWS],
            scales: [[0; 16]; PANEL_ROWS],
        }
    }

    #[inline(always)]
    fn unpack<W: ScaledIntegers>(&mut self, rows: &[W::Bytes]) {
        for (r, bytes) in rows.iter().enumerate() {
            W::unpack(bytes, bytemuck::cast_mut(&mut self.stored[r]));
            self.signs[r] = W::signs(bytes);
            self.scales[r] = W::scales(bytes);
        }
    }

    /// Line `i` of row `r`, with signs.
    #[inline(always)]
    unsafe fn signed<L: IntLanes, W: ScaledIntegers>(&self, r: usize, i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let stored = L::load(&self.stored[r][i]);
            let (signs, _) = self.signs[r].as_chunks();
            if W::SIGNED { stored.reflect(W::OFFSET, &signs[i]) } else { stored }
        }
    }

    /// The sums of stored integers times scales times activations of row `r`, in 16 parts each.
    #[inline(always)]
    unsafe fn multiply<L: IntLanes, W: ScaledIntegers, const T: usize>(
        &self,
        r: usize,
        x: &[SuperBlock; T],
        parts: &mut [[Line; PANEL_ROWS]; T],
    ) {
        let of_16 = std::array::from_fn(|i| self.scales[r][16 * i / W::GROUP] as u8);
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut products = [L::splat(0); T];
            for i in 0..ROW_LINES {
                let scale = L::spread_scales(&of_16, i);
                let stored = self.signed::<L, W>(r, i);
                for t in 0..T {
                    let x = x[t].qs[LANES * i..].first_chunk().expect("a super-block");
                    let dots = L::dot_each(L::no_sums(), stored, L::load_dwords(x));
                    products[t] = products[t].add_scaled(dots, scale);
                }
            }
            for t in 0..T {
                products[t].store(&mut parts[t][r]);
            }
        }
    }
}

/// Scales `4q` to `4q + 3` of all rows, a byte each.
#[inline(always)]
unsafe fn transposed<L: IntLanes>(q: usize, scales: impl Fn(usize) -> [i8; 16]) -> L {
    let mut line = Line([0; 64]);
    for r in 0..PANEL_ROWS {
        let scales = scales(r);
        set_dword(&mut line, r, std::array::from_fn(|i| scales[4 * q + i] as u8));
    }
    // SAFETY: the caller has the lanes' instruction set.
    unsafe { L::load(&line) }
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
    // More than meet the rows of a block that `tile` has unpacked.
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
        let mut rows = Rows::new();
        let mut parts = [[Line([0; 64]); PANEL_ROWS]; T];
        let mut excess = [Line([0; 64]); 8];
        let mut factors = [Line([0; 64]); 10];
        let mut out = [[0.0; LANES]; T];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut sums = [L::Floats::splat(0.0); T];
            for (b, block) in panel.chunks_exact(Self::LINES).enumerate() {
                prefetch::<L>(block);
                let x = tokens.block(b);
                rows.unpack::<W>(Self::rows(block));
                for r in 0..PANEL_ROWS {
                    rows.multiply::<L, W, T>(r, x, &mut parts);
                }
                let mut products = [L::splat(0); T];
                for t in 0..T {
                    products[t] = L::fold(&parts[t]);
                }
                for q in 0..256 / W::GROUP / 4 {
                    let scales = transposed::<L>(q, |r| rows.scales[r]);
                    super_blocks::store_excess(scales, q, &mut excess);
                }
                Self::factors::<L>(block, &mut factors);
                let finished =
                    super_blocks::finish::<L, Self, T>(products, Some(&excess), &factors, x);
                for t in 0..T {
                    sums[t] = sums[t].add(finished[t]);
                }
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
    unsafe fn open<'a, L: IntLanes>(
        block: &'a [Line],
        room: &'a mut [Line; QUANT_LINES],
    ) -> &'a [Line] {
        let mut rows = Rows::new();
        rows.unpack::<W>(Self::rows(block));
        for r in 0..PANEL_ROWS {
            for i in 0..ROW_LINES {
                // SAFETY: the caller has the lanes' instruction set.
                unsafe {
                    rows.signed::<L, W>(r, i).store(&mut rows.stored[r][i]);
                }
            }
            set_dwords(room, r, bytemuck::cast_slice(&rows.stored[r]), |k| k);
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
        let rows = Self::rows(block);
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { transposed(q, |r| W::scales(&rows[r])) }
    }

    #[inline(always)]
    unsafe fn factors<L: IntLanes>(block: &[Line], factors: &mut Factors) {
        for (to, bytes) in factors[0].floats_mut().iter_mut().zip(Self::rows(block)) {
            *to = W::factor(bytes);
        }
    }

    super_blocks::one_factor!();
}
