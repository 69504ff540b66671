//! The types with 32 values a block: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4; and those whose blocks are two
//! or four of them: Q2_0, Q1_0.
//!
//! ```text
//! without minima, two blocks (the last one of an odd number: one):
//!   line 0       d of the first, 16 × f16 | d of the second
//!   quant lines of the first, quant lines of the second
//! with minima, one block:
//!   line 0       d, 16 × f16 | m, 16 × f16
//!   quant lines
//! MXFP4, two blocks:
//!   line 0       16 × (d of the first, d of the second), bf16, which has all the powers of E8M0
//!   quant lines of the first, quant lines of the second
//! Q1_0, Q2_0, two blocks of the file (8 or 4 of 32 values):
//!   line 0       d of the first, 16 × f16 | d of the second
//!   quant lines of all
//!
//! 1 bit    1 line: byte b, bit i is value 4i + b
//! 2 bits   2 lines: byte b of line l, bits 2i and up are value 8i + 4l + b
//! 4 bits   4 lines: values 0-15 in the low, 16-31 in the high halves
//! 5 bits   1 line of fifth bits, byte b, bit i is value 4i + b; then as 4 bits
//! 8 bits   8 lines, 128 higher than the values
//! ```
//! Quants of 4 and 5 bits are stored higher than they are as well, by 8 and 16, where the type has
//! no minimum; those of IQ4_NL and MXFP4 are indices of a table. Each block's sum starts with what that makes too much.

use super::{Kernel, PANEL_ROWS, Tile, halves, prefetch, set_dword, set_half, unroll8};
use crate::activations::{Block, Form, QuantizedActivations};
use crate::arch::{IntLanes, LANES, Lanes};
use crate::memory::Line;
use hurtle_quant::Block as WeightBlock;

/// Lines of a block's quants, a byte each.
pub(crate) const QUANT_LINES: usize = 8;
/// Lines of an unpacked block: quants, scale, minimum.
pub(crate) const UNPACKED: usize = QUANT_LINES + 2;

/// Quants of some width.
pub(crate) trait Quants {
    /// Lines of a block.
    const LINES: usize;
    /// The largest stored quant, if it is small. `None`: they are signed bytes, stored 128 higher.
    const MAX: Option<usize>;
    /// See [`Kernel::FROM_OF_16`]. As it comes, and unpacked with 12, 16, 32 and 48 tokens: Q8_0 98, and 88, 92, 96, 96;
    /// Q4_0 179, and 160, 163, 174, 176; Q4_1 170, and 154, 157, 167, 171; Q1_0 189, and 163, 168, 177, 179; Q2_0 182,
    /// and 163, 165, 176, 177.
    const FROM_OF_16: usize = 48;

    /// Packs `high` (fifth bits, or nothing) and `low` (the other bits).
    fn pack(high: &[u8], low: &[u8], row: usize, lines: &mut [Line]);

    /// Dword `i` of a block.
    unsafe fn quants<L: IntLanes>(lines: &[Line], i: usize) -> L;
}

/// Two values, 1 less and 1 more than zero.
pub(crate) struct OneBit;

impl Quants for OneBit {
    const LINES: usize = 1;
    const MAX: Option<usize> = Some(2);

    fn pack(_: &[u8], low: &[u8], row: usize, lines: &mut [Line]) {
        let bits = low.first_chunk().map_or(0, |low| u32::from_le_bytes(*low));
        set_dword(&mut lines[0], row, by_bytes(bits));
    }

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(lines: &[Line], i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(&lines[0]).shr(i as u32).shl(1).and(L::splat(0x0202_0202)) }
    }
}

/// Every fourth of 32 bits in a byte: byte b takes those from bit b on.
fn by_bytes(bits: u32) -> [u8; 4] {
    [0, 1, 2, 3].map(|b| {
        let bits = bits >> b & 0x1111_1111;
        let bits = (bits | bits >> 3) & 0x0303_0303;
        let bits = (bits | bits >> 6) & 0x000f_000f;
        (bits | bits >> 12) as u8
    })
}

pub(crate) struct TwoBits;

impl Quants for TwoBits {
    const LINES: usize = 2;
    const MAX: Option<usize> = Some(3);

    fn pack(_: &[u8], low: &[u8], row: usize, lines: &mut [Line]) {
        for (l, line) in lines.iter_mut().enumerate() {
            let dword = [0, 1, 2, 3].map(|b| {
                (0..4).map(|i| (low[2 * i + l] >> (2 * b) & 3) << (2 * i)).fold(0, |all, q| all | q)
            });
            set_dword(line, row, dword);
        }
    }

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(lines: &[Line], i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(&lines[i % 2]).shr(2 * (i / 2) as u32).and(L::splat(0x0303_0303)) }
    }
}

pub(crate) struct FourBits;

impl Quants for FourBits {
    const LINES: usize = 4;
    const MAX: Option<usize> = Some(15);

    fn pack(_: &[u8], low: &[u8], row: usize, lines: &mut [Line]) {
        for (line, dword) in lines.iter_mut().zip(low.as_chunks::<4>().0) {
            set_dword(line, row, *dword);
        }
    }

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(lines: &[Line], i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(&lines[i % 4]).shr(4 * (i / 4) as u32).and(L::splat(0x0f0f_0f0f)) }
    }
}

pub(crate) struct FiveBits;

impl Quants for FiveBits {
    const LINES: usize = 5;
    const MAX: Option<usize> = Some(31);
    /// With 8, 12 and 16 tokens: Q5_0 138, and 135, 146, 155; Q5_1 135, and 130, 148, 151.
    const FROM_OF_16: usize = 12;

    fn pack(high: &[u8], low: &[u8], row: usize, lines: &mut [Line]) {
        let bits = high.first_chunk().map_or(0, |high| u32::from_le_bytes(*high));
        set_dword(&mut lines[0], row, by_bytes(bits));
        FourBits::pack(&[], low, row, &mut lines[1..]);
    }

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(lines: &[Line], i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let (nibble, fifth) = (L::splat(0x0f0f_0f0f), L::splat(0x1010_1010));
            let w = L::load(&lines[1 + i % 4]).shr(4 * (i / 4) as u32).and(nibble);
            w.or(L::load(&lines[0]).shr(i as u32).shl(4).and(fifth))
        }
    }
}

pub(crate) struct EightBits;

impl Quants for EightBits {
    const LINES: usize = 8;
    const MAX: Option<usize> = None;

    fn pack(_: &[u8], low: &[u8], row: usize, lines: &mut [Line]) {
        for (line, dword) in lines.iter_mut().zip(low.as_chunks::<4>().0) {
            set_dword(line, row, dword.map(|q| q ^ 0x80));
        }
    }

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(lines: &[Line], i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(&lines[i]) }
    }
}

/// What 4-bit indices stand for.
pub(crate) trait Levels {
    /// The levels, higher by what makes them positive.
    const TABLE: [u8; 16];
    /// The largest of the table if it is small. `None`: the levels are stored 128 higher.
    const MAX: Option<usize>;
}

/// A table of levels, `offset` higher.
const fn raised(levels: [i8; 16], offset: u8) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (levels[i] as u8).wrapping_add(offset);
        i += 1;
    }
    table
}

/// The levels of IQ4_NL and IQ4_XS, 128 higher.
pub(crate) struct Iq4Levels;

impl Levels for Iq4Levels {
    const TABLE: [u8; 16] = raised(hurtle_quant::IQ4_LEVELS, 128);
    const MAX: Option<usize> = None;
}

/// The doubled values of E2M1, from -12 to 12, 12 higher.
pub(crate) struct E2m1Levels;

impl Levels for E2m1Levels {
    const TABLE: [u8; 16] = raised(hurtle_quant::E2M1_DOUBLED, 12);
    const MAX: Option<usize> = Some(24);
}

pub(crate) struct Indices<T>(T);

impl<V: Levels> Quants for Indices<V> {
    const LINES: usize = 4;
    const MAX: Option<usize> = V::MAX;
    /// With 8, 12 and 16 tokens: IQ4_NL 89, and 89, 93, 93; MXFP4 150, and 143, 154, 161.
    const FROM_OF_16: usize = 12;

    fn pack(_: &[u8], low: &[u8], row: usize, lines: &mut [Line]) {
        FourBits::pack(&[], low, row, lines);
    }

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(lines: &[Line], i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let nibble = L::splat(0x0f0f_0f0f);
            let indices = L::load(&lines[i % 4]).shr(4 * (i / 4) as u32).and(nibble);
            indices.lookup(&V::TABLE)
        }
    }
}

/// The fields of a block in the file.
pub(crate) struct Fields<'a> {
    /// Scale: f16, or bf16 for MXFP4.
    d: [u8; 2],
    /// Minimum.
    m: Option<&'a [u8; 2]>,
    /// Fifth bits, or nothing.
    high: &'a [u8],
    low: &'a [u8],
}

/// A weight type.
pub(crate) trait Type {
    type Weights: WeightBlock;
    type Quants: Quants;
    /// How much higher than their values the quants are stored; `None` if the type has minima.
    const OFFSET: Option<i32>;
    /// Whether the scales are bf16.
    const BF16: bool = false;
    /// Blocks that a block of the file is packed as.
    const PIECES: usize = 1;
    /// Piece `piece < PIECES` of a block of the file.
    fn split(bytes: &<Self::Weights as WeightBlock>::Bytes, piece: usize) -> Fields<'_>;

    /// The scales of the `slot`-th block of a header line.
    #[inline(always)]
    unsafe fn scale<L: IntLanes>(header: &Line, slot: usize) -> L::Floats {
        // SAFETY: the caller has the lanes' instruction set, here and below.
        unsafe {
            if Self::BF16 {
                L::load(header).shr(16 * slot as u32).shl(16).as_floats()
            } else {
                L::Floats::load_f16(halves(header, slot / Self::PIECES))
            }
        }
    }

    /// The minima of a header line, if there are any.
    #[inline(always)]
    unsafe fn minima<L: IntLanes>(header: &Line) -> L::Floats {
        // SAFETY: see `scale`.
        unsafe {
            if Self::OFFSET.is_some() {
                L::Floats::splat(0.0)
            } else {
                L::Floats::load_f16(halves(header, 1))
            }
        }
    }

    /// The sums of quants times activations of a block of `P` panels, whose lines may be unpacked. Where they are
    /// not, those to come are fetched one at a time: with all of a block at once, a Zen 4 read Q8_0 from memory at
    /// 20 instead of 26 GB/s a thread, for four tokens at 16 instead of 23.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "indices name panels and tokens")]
    unsafe fn dots<L: IntLanes, const P: usize, const T: usize, const UNPACKED: bool>(
        lines: [&[Line]; P],
        x: &[Block; T],
    ) -> [[L; T]; P] {
        // SAFETY: see `scale`.
        unsafe {
            let mut dots = [[L::splat(0); T]; P];
            let mut w = [L::splat(0); P];
            macro_rules! load {
                ($i:expr) => {
                    for p in 0..P {
                        if !UNPACKED && $i < Self::Quants::LINES {
                            prefetch::<L>(&lines[p][$i..$i + 1]);
                        }
                        w[p] = if UNPACKED {
                            L::load(&lines[p][$i])
                        } else {
                            Self::Quants::quants(lines[p], $i)
                        };
                    }
                };
            }
            if let Some(max) = Self::Quants::MAX {
                let mut parts = [[L::no_sums(); T]; P];
                for t in 0..T {
                    let start = L::splat(-Self::OFFSET.unwrap_or(0) * x[t].sum);
                    for p in 0..P {
                        (dots[p][t], parts[p][t]) = L::begin(start);
                    }
                }
                // Dots that sums have room for.
                let room = (L::LIMIT / max).min(8);
                unroll8!(I => {
                    load!(I);
                    for t in 0..T {
                        for p in 0..P {
                            parts[p][t] = L::dot(parts[p][t], w[p], x[t].qs[I]);
                            L::pin_sums(&mut parts[p][t]);
                        }
                    }
                    if (I + 1).is_multiple_of(room) || I == 7 {
                        for p in 0..P {
                            for t in 0..T {
                                dots[p][t] = dots[p][t].add_sums(parts[p][t]);
                                parts[p][t] = L::no_sums();
                            }
                        }
                    }
                });
            } else {
                for t in 0..T {
                    let start = L::start_biased(x[t].sum);
                    for p in 0..P {
                        dots[p][t] = start;
                    }
                }
                unroll8!(I => {
                    load!(I);
                    for t in 0..T {
                        for p in 0..P {
                            dots[p][t] = dots[p][t].dot_biased(w[p], x[t].qs[I]);
                            dots[p][t].pin();
                        }
                    }
                });
            }
            dots
        }
    }

    /// What a block adds to the result of a token.
    #[inline(always)]
    unsafe fn value<L: IntLanes>(d: L::Floats, minima: L::Floats, x: &Block, dots: L) -> L::Floats {
        // SAFETY: see `scale`.
        unsafe {
            let value = dots.to_floats().mul(d.mul(L::Floats::splat(x.d)));
            if Self::OFFSET.is_some() {
                return value;
            }
            value.add(minima.mul(L::Floats::splat(x.scaled_sum)))
        }
    }
}

macro_rules! types {
    ($($type:ident = $name:ident, $quants:ty, $offset:expr, $block:ident => $fields:expr;)+) => {$(
        pub(crate) struct $name;

        impl Type for $name {
            type Weights = hurtle_quant::$type<'static>;
            type Quants = $quants;
            const OFFSET: Option<i32> = $offset;

            fn split(bytes: &<Self::Weights as WeightBlock>::Bytes, _: usize) -> Fields<'_> {
                let $block = hurtle_quant::$type::split(bytes);
                $fields
            }
        }

        pub(crate) type $type = Blocks<$name>;
    )+};
}

types! {
    Q4_0 = TypeQ4_0, FourBits, Some(8), b => Fields { d: *b.d, m: None, high: &[], low: b.qs };
    Q4_1 = TypeQ4_1, FourBits, None, b => Fields { d: *b.d, m: Some(b.m), high: &[], low: b.qs };
    Q5_0 = TypeQ5_0, FiveBits, Some(16), b => Fields { d: *b.d, m: None, high: b.qh, low: b.qs };
    Q5_1 = TypeQ5_1, FiveBits, None, b => Fields { d: *b.d, m: Some(b.m), high: b.qh, low: b.qs };
    Q8_0 = TypeQ8_0, EightBits, Some(128), b => Fields { d: *b.d, m: None, high: &[], low: b.qs };
    Iq4Nl = TypeIq4Nl, Indices<Iq4Levels>, Some(128),
        b => Fields { d: *b.d, m: None, high: &[], low: b.qs };
}

pub(crate) struct TypeMxfp4;

impl Type for TypeMxfp4 {
    type Weights = hurtle_quant::Mxfp4<'static>;
    type Quants = Indices<E2m1Levels>;
    const OFFSET: Option<i32> = Some(12);
    const BF16: bool = true;

    fn split(bytes: &[u8; 17], _: usize) -> Fields<'_> {
        let b = hurtle_quant::Mxfp4::split(bytes);
        let [_, _, d @ ..] = hurtle_quant::e8m0_half(b.e[0]).to_le_bytes();
        Fields { d, m: None, high: &[], low: b.qs }
    }
}

pub(crate) type Mxfp4 = Blocks<TypeMxfp4>;

pub(crate) struct TypeQ1_0;

impl Type for TypeQ1_0 {
    type Weights = hurtle_quant::Q1_0<'static>;
    type Quants = OneBit;
    const OFFSET: Option<i32> = Some(1);
    const PIECES: usize = 4;

    fn split(bytes: &[u8; 18], piece: usize) -> Fields<'_> {
        let b = hurtle_quant::Q1_0::split(bytes);
        Fields { d: *b.d, m: None, high: &[], low: &b.qs[4 * piece..][..4] }
    }
}

pub(crate) type Q1_0 = Blocks<TypeQ1_0>;

pub(crate) struct TypeQ2_0;

impl Type for TypeQ2_0 {
    type Weights = hurtle_quant::Q2_0<'static>;
    type Quants = TwoBits;
    const OFFSET: Option<i32> = Some(1);
    const PIECES: usize = 2;

    fn split(bytes: &[u8; 18], piece: usize) -> Fields<'_> {
        let b = hurtle_quant::Q2_0::split(bytes);
        Fields { d: *b.d, m: None, high: &[], low: &b.qs[8 * piece..][..8] }
    }
}

pub(crate) type Q2_0 = Blocks<TypeQ2_0>;

/// The kernel of all of them.
pub(crate) struct Blocks<W>(W);

impl<W: Type> Kernel for Blocks<W> {
    type Bytes = <W::Weights as WeightBlock>::Bytes;
    const LEN: usize = 32;
    type Activations = Block;
    const FORM: Form = Form::Blocks;
    const PIECES: usize = W::PIECES;
    const SHARE: usize = if W::OFFSET.is_some() { 2 * W::PIECES } else { 1 };
    const HEADER: usize = 1;
    const LINES: usize = W::Quants::LINES;
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    const TILES: Option<super::MultiplyTiles<Block>> =
        Some(crate::arch::x86_64::avx512vnni::multiply_tiles::<Self, crate::arch::amx::Amx>);
    const UNPACKED: usize = UNPACKED;
    const FROM_OF_16: usize = W::Quants::FROM_OF_16;

    fn activations(x: &QuantizedActivations) -> &[Block] {
        x.blocks()
    }

    fn pack(
        block: &Self::Bytes,
        row: usize,
        slot: usize,
        header: &mut [Line],
        quants: &mut [Line],
    ) {
        let Fields { d, m, high, low } = W::split(block, slot % W::PIECES);
        let slot = slot / W::PIECES;
        let at = if W::BF16 { 2 * row + slot } else { PANEL_ROWS * slot + row };
        set_half(&mut header[0], at, d);
        if let Some(m) = m {
            set_half(&mut header[0], PANEL_ROWS + row, *m);
        }
        W::Quants::pack(high, low, row, quants);
    }

    #[inline(always)]
    unsafe fn tile<L: IntLanes, const T: usize>(
        panel: &[Line],
        tokens: Tile<'_, Block, T>,
    ) -> [[f32; LANES]; T] {
        let mut out = [[0.0; LANES]; T];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut sums = [L::Floats::splat(0.0); T];
            for (u, unit) in panel.chunks(1 + Self::SHARE * Self::LINES).enumerate() {
                let (header, quants) = unit.split_at(1);
                prefetch::<L>(header);
                for (slot, lines) in quants.chunks_exact(Self::LINES).enumerate() {
                    let b = u * Self::SHARE + slot;
                    let x = tokens.block(b);
                    let [dots] = W::dots::<L, 1, T, false>([lines], x);
                    let d = W::scale::<L>(&header[0], slot);
                    let minima = W::minima::<L>(&header[0]);
                    for t in 0..T {
                        sums[t] = sums[t].add(W::value::<L>(d, minima, &x[t], dots[t]));
                    }
                }
            }
            for t in 0..T {
                out[t] = sums[t].to_array();
            }
        }
        out
    }

    #[inline(always)]
    unsafe fn unpack<L: IntLanes>(lines: &[Line], slot: usize, to: &mut [Line]) {
        let (header, quants) = lines.split_at(1);
        let (to, factors) = to.split_at_mut(QUANT_LINES);
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            W::scale::<L>(&header[0], slot).store(factors[0].floats_mut());
            W::minima::<L>(&header[0]).store(factors[1].floats_mut());
            for (i, to) in to.iter_mut().enumerate() {
                W::Quants::quants::<L>(&quants[slot * Self::LINES..], i).store(to);
            }
        }
    }

    #[inline(always)]
    unsafe fn products<L: IntLanes, const P: usize, const T: usize>(
        unpacked: [&[Line]; P],
        x: &[Block; T],
    ) -> [[L::Floats; T]; P] {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let mut products = [[L::Floats::splat(0.0); T]; P];
            let dots = W::dots::<L, P, T, true>(unpacked, x);
            for p in 0..P {
                let factors = &unpacked[p][QUANT_LINES..];
                let d = L::Floats::load(factors[0].floats());
                let minima = L::Floats::load(factors[1].floats());
                for t in 0..T {
                    products[p][t] = W::value::<L>(d, minima, &x[t], dots[p][t]);
                }
            }
            products
        }
    }
}
