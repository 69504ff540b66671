//! Q4_K and Q5_K: super-blocks of 8 groups of 32 values with a scale and a minimum.
//!
//! ```text
//! line 0       d, 16 × f16 | -dmin, 16 × f16
//! line 1, 2    lower 4 bits of the scales (low half) and minima (high half), a byte a group:
//!              groups 0-3 in line 1, groups 4-7 in line 2
//! line 3       upper 2 bits, a byte for groups g and g + 4:
//!              bits 0-1 scale g, 2-3 minimum g, 4-5 scale g + 4, 6-7 minimum g + 4
//! 8 lines      (Q5_K) fifth bits: byte 4l + b, bit g is value 4l + b of group g; each before one of the first
//!              lines of lower bits
//! 32 lines     lower 4 bits, 8 lines for groups 2p (low half) and 2p + 1 (high half)
//! ```
//! The quants are the file's bytes, a dword at a time.

use super::super_blocks::{self, Factors, SuperBlocks};
use super::{Kernel, PANEL_ROWS, Tile, halves, prefetch, set_dword, set_dwords, set_half, unroll8};
use crate::activations::{Form, QuantizedActivations, SuperBlock};
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;

const HEADER: usize = 4;

/// The fields of a block in the file.
pub(crate) struct Fields<'a> {
    d: &'a [u8; 2],
    dmin: &'a [u8; 2],
    /// Packed scales and minima.
    scales: &'a [u8; 12],
    /// Fifth bits, or nothing.
    high: &'a [u8],
    low: &'a [u8; 128],
}

/// What differs between the two types.
pub(crate) trait Quants {
    type Weights: hurtle_quant::Block;
    /// Lines of fifth bits.
    const HIGH_LINES: usize;
    /// The largest quant.
    const MAX: usize;

    fn split(bytes: &<Self::Weights as hurtle_quant::Block>::Bytes) -> Fields<'_>;
}

pub(crate) struct FourBits;

impl Quants for FourBits {
    type Weights = hurtle_quant::Q4K<'static>;
    const HIGH_LINES: usize = 0;
    const MAX: usize = 15;

    fn split(bytes: &[u8; 144]) -> Fields<'_> {
        let b = hurtle_quant::Q4K::split(bytes);
        Fields { d: b.d, dmin: b.dmin, scales: b.scales, high: &[], low: b.qs }
    }
}

pub(crate) struct FiveBits;

impl Quants for FiveBits {
    type Weights = hurtle_quant::Q5K<'static>;
    const HIGH_LINES: usize = 8;
    const MAX: usize = 31;

    fn split(bytes: &[u8; 176]) -> Fields<'_> {
        let b = hurtle_quant::Q5K::split(bytes);
        Fields { d: b.d, dmin: b.dmin, scales: b.scales, high: b.qh, low: b.qs }
    }
}

/// The kernel of both.
pub(crate) struct Affine<Q>(Q);
pub(crate) type Q4K = Affine<FourBits>;
pub(crate) type Q5K = Affine<FiveBits>;

impl<Q: Quants> Affine<Q> {
    /// Where line `k < 8` of fifth bits lies: lines are one stream, in the order in which a token meets them.
    const fn high_line(k: usize) -> usize {
        if Q::HIGH_LINES > 0 { 2 * k } else { k }
    }

    /// Where line `k < 32` of lower bits lies.
    const fn low_line(k: usize) -> usize {
        if Q::HIGH_LINES > 0 && k < 8 { 2 * k + 1 } else { Q::HIGH_LINES + k }
    }

    /// Dword `i` of group `2 * pair + HALF` of the quants in `lines`.
    #[inline(always)]
    unsafe fn dword<L: IntLanes, const HALF: usize>(lines: &[Line], pair: usize, i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set, here and below.
        unsafe {
            let low = L::load(&lines[Self::low_line(8 * pair + i)]).shr(4 * HALF as u32);
            let low = low.and(L::splat(0x0f0f_0f0f));
            if Q::HIGH_LINES == 0 {
                return low;
            }
            let fifth = L::load(&lines[Self::high_line(i)]).shr((2 * pair + HALF) as u32).shl(4);
            low.or(fifth.and(L::splat(0x1010_1010)))
        }
    }

    /// The minima of groups `4q` to `4q + 3`, a byte each.
    #[inline(always)]
    unsafe fn minima<L: IntLanes>(block: &[Line], q: usize) -> L {
        // SAFETY: see `dword`.
        unsafe {
            let upper = L::load(&block[3]).shr(2 + 4 * q as u32).shl(4);
            let lower = L::load(&block[1 + q]).shr(4).and(L::splat(0x0f0f_0f0f));
            lower.or(upper.and(L::splat(0x3030_3030)))
        }
    }

    /// Adds the products of `N` groups from `2 * pair + FIRST` on, times their scales. Lines to come are fetched with
    /// the first of the pair.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "indices name groups and tokens")]
    unsafe fn add_groups<L: IntLanes, const FIRST: usize, const N: usize, const T: usize>(
        block: &[Line],
        pair: usize,
        x: &[SuperBlock; T],
        products: &mut [L; T],
    ) {
        let lines = &block[HEADER..];
        // Dots that sums have room for.
        let room = (L::LIMIT / Q::MAX).min(8);
        // SAFETY: see `dword`.
        unsafe {
            let scales = <Self as SuperBlocks>::scales::<L>(block, pair / 2);
            let mut scale = [L::splat(0); N];
            for n in 0..N {
                scale[n] = scales.scale((2 * pair + FIRST + n) % 4);
            }
            let mut dots = [[L::no_sums(); T]; N];
            unroll8!(I => {
                if FIRST == 0 {
                    // With the high bits.
                    let low = Self::low_line(8 * pair + I);
                    let first = if pair == 0 { Self::high_line(I) } else { low };
                    prefetch::<L>(&lines[first..low + 1]);
                }
                for n in 0..N {
                    let w = if FIRST + n == 0 {
                        Self::dword::<L, 0>(lines, pair, I)
                    } else {
                        Self::dword::<L, 1>(lines, pair, I)
                    };
                    for t in 0..T {
                        let x = x[t].qs[8 * (2 * pair + FIRST + n) + I];
                        dots[n][t] = L::dot(dots[n][t], w, x);
                        L::pin_sums(&mut dots[n][t]);
                    }
                }
                if (I + 1).is_multiple_of(room) || I == 7 {
                    for n in 0..N {
                        for t in 0..T {
                            products[t] = products[t].add_scaled(dots[n][t], scale[n]);
                            dots[n][t] = L::no_sums();
                        }
                    }
                }
            });
        }
    }
}

impl<Q: Quants> Kernel for Affine<Q> {
    type Bytes = <Q::Weights as hurtle_quant::Block>::Bytes;
    const LEN: usize = 256;
    type Activations = SuperBlock;
    const FORM: Form = Form::SuperBlocks;
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    const TILES: Option<super::MultiplyTiles<SuperBlock>> =
        Some(crate::arch::x86_64::avx512vnni::multiply_tiles::<Self, crate::arch::amx::Amx>);
    const SHARE: usize = 1;
    const HEADER: usize = HEADER;
    const LINES: usize = Q::HIGH_LINES + 32;
    // As it comes and unpacked: Q4_K 1284 and 1159 with 64 tokens, 1222 and 1195 with 512; Q5_K 961 and 824 with 16, 979
    // and 988 with 24, 975 and 1069 with 32.
    const FROM: usize = if Q::HIGH_LINES > 0 { 32 } else { usize::MAX };
    // As it comes, and unpacked with 8, 12, 16 and 32 tokens: Q4_K 175 to 181, and 150, 171, 183, 198; Q5_K 105, and
    // 121, 144, 156, 177.
    const FROM_OF_16: usize = if Q::HIGH_LINES > 0 { 8 } else { 16 };

    fn activations(x: &QuantizedActivations) -> &[SuperBlock] {
        x.super_blocks()
    }

    fn pack(block: &Self::Bytes, row: usize, _: usize, header: &mut [Line], quants: &mut [Line]) {
        let Fields { d, dmin, scales, high, low } = Q::split(block);
        set_half(&mut header[0], row, *d);
        // The sign of an f16 is the highest bit of the second byte.
        set_half(&mut header[0], PANEL_ROWS + row, [dmin[0], dmin[1] ^ 0x80]);
        // The file has 6 bits of scales 0-3 and minima 0-3 with the upper bits of the others above
        // them, then the lower bits of the others, as line 2 has them.
        let ([s, m, lower], _) = scales.as_chunks::<4>() else { unreachable!("12 bytes") };
        let [s, m] = [s, m].map(|bytes| u32::from_le_bytes(*bytes));
        let first = (s & 0x0f0f_0f0f) | (m & 0x0f0f_0f0f) << 4;
        let upper = (s >> 4 & 0x0303_0303)
            | (m >> 2 & 0x0c0c_0c0c)
            | (s >> 2 & 0x3030_3030)
            | (m & 0xc0c0_c0c0);
        set_dword(&mut header[1], row, first.to_le_bytes());
        set_dword(&mut header[2], row, *lower);
        set_dword(&mut header[3], row, upper.to_le_bytes());
        set_dwords(quants, row, high, Self::high_line);
        set_dwords(quants, row, low, Self::low_line);
    }

    #[inline(always)]
    unsafe fn tile<L: IntLanes, const T: usize>(
        panel: &[Line],
        tokens: Tile<'_, SuperBlock, T>,
    ) -> [[f32; LANES]; T] {
        let mut out = [[0.0; LANES]; T];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut sums = [L::Floats::splat(0.0); T];
            for (b, block) in panel.chunks_exact(Self::HEADER + Self::LINES).enumerate() {
                prefetch::<L>(&block[..HEADER]);
                let x = tokens.block(b);
                let mut products = [L::splat(0); T];
                for pair in 0..4 {
                    // With one token, both groups share their lines. With 8, the sums of one group would wait for
                    // each other; those of both leave no registers for the results, which hardly matters.
                    if T == 1 || T == 8 {
                        Self::add_groups::<L, 0, 2, T>(block, pair, x, &mut products);
                    } else {
                        Self::add_groups::<L, 0, 1, T>(block, pair, x, &mut products);
                        Self::add_groups::<L, 1, 1, T>(block, pair, x, &mut products);
                    }
                }

                let mut offsets = [L::splat(0); T];
                for q in 0..2 {
                    let minima = Self::minima::<L>(block, q).halves();
                    for t in 0..T {
                        offsets[t] = offsets[t].dot_halves(minima[0], x[t].sums_32[2 * q]);
                        offsets[t] = offsets[t].dot_halves(minima[1], x[t].sums_32[2 * q + 1]);
                    }
                }
                let d = L::Floats::load_f16(halves(&block[0], 0));
                let minus_dmin = L::Floats::load_f16(halves(&block[0], 1));
                for t in 0..T {
                    let value =
                        d.mul(products[t].to_floats()).add(minus_dmin.mul(offsets[t].to_floats()));
                    sums[t] = sums[t].add(L::Floats::splat(x[t].d).mul(value));
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

impl<Q: Quants> SuperBlocks for Affine<Q> {
    const OFFSET: i32 = 0;
    const MAX: Option<usize> = Some(Q::MAX);
    const GROUP_LINES: usize = 8;

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(block: &[Line], i: usize) -> L {
        let (pair, i) = (i / 16, i % 16);
        let lines = &block[HEADER..];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            if i < 8 {
                Self::dword::<L, 0>(lines, pair, i)
            } else {
                Self::dword::<L, 1>(lines, pair, i - 8)
            }
        }
    }

    #[inline(always)]
    unsafe fn scales<L: IntLanes>(block: &[Line], q: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let upper = L::load(&block[3]).shr(4 * q as u32).shl(4).and(L::splat(0x3030_3030));
            L::load(&block[1 + q]).and(L::splat(0x0f0f_0f0f)).or(upper)
        }
    }

    #[inline(always)]
    unsafe fn factors<L: IntLanes>(block: &[Line], factors: &mut Factors) {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            L::Floats::load_f16(halves(&block[0], 0)).store(factors[0].floats_mut());
            L::Floats::load_f16(halves(&block[0], 1)).store(factors[1].floats_mut());
            for q in 0..2 {
                let minima = Self::minima::<L>(block, q).halves();
                minima[0].store(&mut factors[2 + 2 * q]);
                minima[1].store(&mut factors[3 + 2 * q]);
            }
        }
    }

    type Held<L: IntLanes> = ([L::Floats; 2], [L; 4]);

    #[inline(always)]
    unsafe fn hold<L: IntLanes>(factors: &Factors) -> Self::Held<L> {
        let [d, minus_dmin, m0, m1, m2, m3, ..] = factors;
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            (
                [L::Floats::load(d.floats()), L::Floats::load(minus_dmin.floats())],
                [L::load(m0), L::load(m1), L::load(m2), L::load(m3)],
            )
        }
    }

    #[inline(always)]
    unsafe fn finish<L: IntLanes>(
        ([d, minus_dmin], minima): &Self::Held<L>,
        x: &SuperBlock,
        products: L,
    ) -> L::Floats {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut offset = L::splat(0);
            for (minima, sums) in minima.iter().zip(x.sums_32) {
                offset = offset.dot_halves(*minima, sums);
            }
            let value = d.mul(products.to_floats()).add(minus_dmin.mul(offset.to_floats()));
            L::Floats::splat(x.d).mul(value)
        }
    }
}
