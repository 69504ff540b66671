//! Q2_K, Q3_K and Q6_K: super-blocks of 16 groups of 16 values with a scale.
//!
//! ```text
//! Q2_K   1 line     d, 16 × f16 | dmin, 16 × f16
//!        4 lines    a byte a group: scale in the low, minimum in the high half
//!        16 lines   2 bits
//! Q3_K   1 line     d, 16 × f32
//!        3 lines    scales, 32 higher: lower 4 bits in 2 lines, upper 2 bits in 1 line
//!        24 lines   8 with third bits, bit p for plane p, and 16 with the lower 2 bits
//! Q6_K   1 line     d, 16 × f32
//!        4 lines    scales, a signed byte a group
//!        48 lines   for each 128 values 8 with the upper 2 bits, and 16 with the lower 4 bits: 64 values in the
//!                   low, 64 in the high halves
//!
//! 2 bits   8 lines for each 128 values, 32 (a plane) in each pair of bits
//! ```
//! All of them are the file's bytes, a dword at a time; lines lie in the order in which a token meets them first
//! (4 of upper bits, the 4 of lower bits that go with them, and so on), as one stream: with two, a Zen 4 read
//! Q6_K from memory at 20 instead of 23 GB/s a thread. The quants of Q3_K and Q6_K are stored 4
//! and 32 higher than they are; what that makes too much is taken off at the end.

use super::super_blocks::{self, Factors, SuperBlocks};
use super::{Kernel, PANEL_ROWS, Tile, halves, prefetch, set_dword, set_dwords, set_half, unroll8};
use crate::activations::{Form, QuantizedActivations, SuperBlock};
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;
use hurtle_quant::Block as WeightBlock;

/// A weight type.
pub(crate) trait Type {
    type Weights: WeightBlock;
    const HEADER: usize;
    /// Quant lines.
    const LINES: usize;
    /// How much higher than their values the quants are stored.
    const OFFSET: i32;
    /// The largest stored quant.
    const MAX: usize;
    /// Whether there are minima.
    const MINIMA: bool;
    /// See [`Kernel::FROM`]. As it comes and unpacked: Q2_K 922 and 944 with 32 tokens, 938 and 990 with 64; Q3_K 911
    /// and 830 with 16, 921 and 955 with 24; Q6_K 964 and 752 with 16, 1016 and 986 with 32, 1018 and 1121 with 64.
    const FROM: usize;
    /// See [`Kernel::FROM_OF_16`]. As it comes, and unpacked with 8, 12 and 16 tokens: Q2_K 122 to 151, and 129, 141,
    /// 148; Q3_K 116, and 115, 135, 145; Q6_K 127 to 140, and 107, 132, 147.
    const FROM_OF_16: usize = 12;

    fn pack(
        block: &<Self::Weights as WeightBlock>::Bytes,
        row: usize,
        header: &mut [Line],
        quants: &mut [Line],
    );

    /// Scales of groups `4q` to `4q + 3`, a signed byte each.
    unsafe fn scales<L: IntLanes>(header: &[Line], q: usize) -> L;

    /// What the sums of the activations of groups `4q` to `4q + 3` are multiplied with, a signed
    /// byte each: the minima, or the scales if there are none.
    #[inline(always)]
    unsafe fn factors<L: IntLanes>(header: &[Line], q: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { Self::scales(header, q) }
    }

    /// Dword `i < 4` of group `8h + g`.
    unsafe fn quants<L: IntLanes>(lines: &[Line], h: usize, g: usize, i: usize) -> L;
}

/// Writes a f16 as f32.
fn set_scale(line: &mut Line, row: usize, d: &[u8; 2]) {
    let d = hurtle_quant::f16_to_f32(u16::from_le_bytes(*d));
    set_dword(line, row, d.to_ne_bytes());
}

/// Moves bits `from` of each byte to `to`; the others become anything.
#[inline(always)]
pub(super) unsafe fn shift<L: IntLanes>(bytes: L, from: usize, to: usize) -> L {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe { if from > to { bytes.shr((from - to) as u32) } else { bytes.shl((to - from) as u32) } }
}

pub(crate) struct TypeQ2K;

impl Type for TypeQ2K {
    type Weights = hurtle_quant::Q2K<'static>;
    const HEADER: usize = 5;
    const LINES: usize = 16;
    const OFFSET: i32 = 0;
    const MAX: usize = 3;
    const MINIMA: bool = true;
    const FROM: usize = 64;

    fn pack(bytes: &[u8; 84], row: usize, header: &mut [Line], quants: &mut [Line]) {
        let block = hurtle_quant::Q2K::split(bytes);
        set_half(&mut header[0], row, *block.d);
        set_half(&mut header[0], PANEL_ROWS + row, *block.dmin);
        set_dwords(header, row, block.scales, |k| 1 + k);
        set_dwords(quants, row, block.qs, |k| k);
    }

    #[inline(always)]
    unsafe fn scales<L: IntLanes>(header: &[Line], q: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(&header[1 + q]).and(L::splat(0x0f0f_0f0f)) }
    }

    #[inline(always)]
    unsafe fn factors<L: IntLanes>(header: &[Line], q: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(&header[1 + q]).shr(4).and(L::splat(0x0f0f_0f0f)) }
    }

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(lines: &[Line], h: usize, g: usize, i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let line = L::load(&lines[8 * h + 4 * (g % 2) + i]);
            shift(line, 2 * (g / 2), 0).and(L::splat(0x0303_0303))
        }
    }
}

pub(crate) struct TypeQ3K;

impl Type for TypeQ3K {
    type Weights = hurtle_quant::Q3K<'static>;
    const HEADER: usize = 4;
    const LINES: usize = 24;
    const OFFSET: i32 = 4;
    const MAX: usize = 7;
    const MINIMA: bool = false;
    const FROM: usize = 24;

    fn pack(bytes: &[u8; 110], row: usize, header: &mut [Line], quants: &mut [Line]) {
        let block = hurtle_quant::Q3K::split(bytes);
        set_scale(&mut header[0], row, block.d);
        set_dwords(header, row, block.scales_low, |k| 1 + k);
        set_dwords(header, row, block.scales_high, |k| 3 + k);
        set_dwords(quants, row, block.hmask, high_line);
        set_dwords(quants, row, block.qs, low_line);
    }

    #[inline(always)]
    unsafe fn scales<L: IntLanes>(header: &[Line], q: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let low = L::load(&header[1 + q % 2]).shr(4 * (q / 2) as u32);
            let high = shift(L::load(&header[3]), 2 * q, 4);
            let higher = low.and(L::splat(0x0f0f_0f0f)).or(high.and(L::splat(0x3030_3030)));
            // Less 32 in each byte; the highest bit is there so that none borrows from the next.
            let bit = L::splat(0x8080_8080_u32 as i32);
            higher.or(bit).add(L::splat(-0x2020_2020)).xor(bit)
        }
    }

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(lines: &[Line], h: usize, g: usize, i: usize) -> L {
        let line = 4 * (g % 2) + i;
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let high = shift(L::load(&lines[high_line(line)]).shr(4 * h as u32), g / 2, 2);
            let low = shift(L::load(&lines[low_line(8 * h + line)]), 2 * (g / 2), 0);
            low.and(L::splat(0x0303_0303)).or(high.and(L::splat(0x0404_0404)))
        }
    }
}

pub(crate) struct TypeQ6K;

impl Type for TypeQ6K {
    type Weights = hurtle_quant::Q6K<'static>;
    const HEADER: usize = 5;
    const LINES: usize = 48;
    const OFFSET: i32 = 32;
    const MAX: usize = 63;
    const MINIMA: bool = false;
    const FROM: usize = 48;

    fn pack(bytes: &[u8; 210], row: usize, header: &mut [Line], quants: &mut [Line]) {
        let block = hurtle_quant::Q6K::split(bytes);
        set_scale(&mut header[0], row, block.d);
        set_dwords(header, row, block.scales, |k| 1 + k);
        set_dwords(quants, row, block.ql, |k| 24 * (k / 16) + low_line(k % 16));
        set_dwords(quants, row, block.qh, |k| 24 * (k / 8) + high_line(k % 8));
    }

    #[inline(always)]
    unsafe fn scales<L: IntLanes>(header: &[Line], q: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(&header[1 + q]) }
    }

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(lines: &[Line], h: usize, g: usize, i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let low = shift(L::load(&lines[24 * h + low_line(4 * (g % 4) + i)]), 4 * (g / 4), 0);
            let high = shift(L::load(&lines[24 * h + high_line(4 * (g % 2) + i)]), 2 * (g / 2), 4);
            low.and(L::splat(0x0f0f_0f0f)).or(high.and(L::splat(0x3030_3030)))
        }
    }
}

/// Where Q3_K, or a half of Q6_K, has line `k < 8` of the upper bits.
pub(super) const fn high_line(k: usize) -> usize {
    8 * (k / 4) + k % 4
}

/// Where it has line `k < 16` of the lower bits.
pub(super) const fn low_line(k: usize) -> usize {
    if k < 8 { 8 * (k / 4) + 4 + k % 4 } else { 8 + k }
}

/// The kernel of all of them.
pub(crate) struct Sixteens<W>(W);
pub(crate) type Q2K = Sixteens<TypeQ2K>;
pub(crate) type Q3K = Sixteens<TypeQ3K>;
pub(crate) type Q6K = Sixteens<TypeQ6K>;

impl<W: Type> Kernel for Sixteens<W> {
    type Bytes = <W::Weights as WeightBlock>::Bytes;
    const LEN: usize = 256;
    type Activations = SuperBlock;
    const FORM: Form = Form::SuperBlocks;
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    const TILES: Option<super::MultiplyTiles<SuperBlock>> =
        Some(crate::arch::x86_64::avx512vnni::multiply_tiles::<Self, crate::arch::amx::Amx>);
    const SHARE: usize = 1;
    const HEADER: usize = W::HEADER;
    const LINES: usize = W::LINES;
    const FROM: usize = W::FROM;
    const FROM_OF_16: usize = W::FROM_OF_16;

    fn activations(x: &QuantizedActivations) -> &[SuperBlock] {
        x.super_blocks()
    }

    fn pack(block: &Self::Bytes, row: usize, _: usize, header: &mut [Line], quants: &mut [Line]) {
        W::pack(block, row, header, quants);
    }

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "indices name groups and tokens")]
    unsafe fn tile<L: IntLanes, const T: usize>(
        panel: &[Line],
        tokens: Tile<'_, SuperBlock, T>,
    ) -> [[f32; LANES]; T] {
        let mut out = [[0.0; LANES]; T];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut sums = [L::Floats::splat(0.0); T];
            for (b, block) in panel.chunks_exact(W::HEADER + W::LINES).enumerate() {
                prefetch::<L>(&block[..W::HEADER]);
                let x = tokens.block(b);
                let (header, lines) = block.split_at(W::HEADER);
                let mut products = [L::splat(0); T];
                // Sums of the activations, times minima or scales.
                let mut offsets = [L::splat(0); T];
                let low = super_blocks::starts_low::<L>(W::OFFSET, Some(W::MAX), 4);
                // Dots that sums have room for.
                let room = if low { 4 } else { (L::LIMIT / W::MAX).min(4) };
                // With one token, groups G and G + 4 share their lines. With 8, the sums of one would wait for each other.
                let at_once = if T == 1 || T == 8 { 2 } else { 1 };
                for h in 0..2 {
                    for q in if low { 0..0 } else { 2 * h..2 * h + 2 } {
                        let factors = W::factors::<L>(header, q).halves();
                        for t in 0..T {
                            let sums = &x[t].sums[2 * q..2 * q + 2];
                            offsets[t] = offsets[t].dot_halves(factors[0], sums[0]);
                            offsets[t] = offsets[t].dot_halves(factors[1], sums[1]);
                        }
                    }
                    let scales = [W::scales::<L>(header, 2 * h), W::scales::<L>(header, 2 * h + 1)];
                    unroll8!(G => {
                        if G < 8 / at_once {
                            let part = |g| W::LINES * (8 * h + at_once * g) / 16;
                            prefetch::<L>(&lines[part(G)..part(G + 1)]);
                            let mut scale = [scales[G / 4].scale(G % 4); 2];
                            if at_once == 2 {
                                scale[1] = scales[1].scale(G % 4);
                            }
                            let mut dots = [[L::no_sums(); T]; 2];
                            if low {
                                for j in 0..at_once {
                                    let g = 8 * h + G + 4 * j;
                                    dots[j] = super_blocks::low_sums::<L, T>(W::OFFSET, x, g);
                                }
                            }
                            for i in 0..4 {
                                for j in 0..at_once {
                                    let g = G + 4 * j;
                                    let w = W::quants::<L>(lines, h, g, i);
                                    for t in 0..T {
                                        let x = x[t].qs[32 * h + 4 * g + i];
                                        dots[j][t] = L::dot(dots[j][t], w, x);
                                        L::pin_sums(&mut dots[j][t]);
                                    }
                                }
                                if (i + 1).is_multiple_of(room) || i == 3 {
                                    for j in 0..at_once {
                                        for t in 0..T {
                                            products[t] =
                                                products[t].add_scaled(dots[j][t], scale[j]);
                                            dots[j][t] = L::no_sums();
                                        }
                                    }
                                }
                            }
                        }
                    });
                }
                for t in 0..T {
                    let xd = L::Floats::splat(x[t].d);
                    let value = if W::MINIMA {
                        let d = L::Floats::load_f16(halves(&header[0], 0));
                        let dmin = L::Floats::load_f16(halves(&header[0], 1));
                        let offset = dmin.mul(offsets[t].mul(L::splat(-1)).to_floats());
                        xd.mul(d.mul(products[t].to_floats()).add(offset))
                    } else {
                        let d = L::Floats::load(bytemuck::cast_slice(&header[0].0));
                        let mut products = products[t];
                        if !low {
                            products = products.add(offsets[t].mul(L::splat(-W::OFFSET)));
                        }
                        xd.mul(d).mul(products.to_floats())
                    };
                    sums[t] = sums[t].add(value);
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

impl<W: Type> SuperBlocks for Sixteens<W> {
    const OFFSET: i32 = W::OFFSET;
    const MAX: Option<usize> = Some(W::MAX);
    const GROUP_LINES: usize = 4;

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(block: &[Line], i: usize) -> L {
        let g = i / 4;
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { W::quants::<L>(&block[W::HEADER..], g / 8, g % 8, i % 4) }
    }

    #[inline(always)]
    unsafe fn scales<L: IntLanes>(block: &[Line], q: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { W::scales::<L>(&block[..W::HEADER], q) }
    }

    #[inline(always)]
    unsafe fn factors<L: IntLanes>(block: &[Line], factors: &mut Factors) {
        let header = &block[..W::HEADER];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            if !W::MINIMA {
                factors[0] = header[0];
                return;
            }
            L::Floats::load_f16(halves(&header[0], 0)).store(factors[0].floats_mut());
            L::Floats::load_f16(halves(&header[0], 1)).store(factors[1].floats_mut());
            for q in 0..4 {
                let minima = W::factors::<L>(header, q).halves();
                minima[0].store(&mut factors[2 + 2 * q]);
                minima[1].store(&mut factors[3 + 2 * q]);
            }
        }
    }

    type Held<L: IntLanes> = ([L::Floats; 2], [L; 8]);

    #[inline(always)]
    unsafe fn hold<L: IntLanes>(factors: &Factors) -> Self::Held<L> {
        let [d, dmin, minima @ ..] = factors;
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut held = [L::splat(0); 8];
            if W::MINIMA {
                for (held, minima) in held.iter_mut().zip(minima) {
                    *held = L::load(minima);
                }
            }
            ([L::Floats::load(d.floats()), L::Floats::load(dmin.floats())], held)
        }
    }

    #[inline(always)]
    unsafe fn finish<L: IntLanes>(
        ([d, dmin], minima): &Self::Held<L>,
        x: &SuperBlock,
        products: L,
    ) -> L::Floats {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let xd = L::Floats::splat(x.d);
            if !W::MINIMA {
                return xd.mul(*d).mul(products.to_floats());
            }
            let mut offsets = L::splat(0);
            for (minima, sums) in minima.iter().zip(x.sums) {
                offsets = offsets.dot_halves(*minima, sums);
            }
            let offset = dmin.mul(offsets.mul(L::splat(-1)).to_floats());
            xd.mul(d.mul(products.to_floats()).add(offset))
        }
    }
}
