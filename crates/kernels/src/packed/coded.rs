//! IQ1 to IQ3 and TQ as codes: super-blocks of integers of which there are few, each packed as its number among
//! them.
//!
//! ```text
//! 1 line      d, 16 × f32
//! 0-2 lines   scales, 4 bits each: halves of odd numbers. 2 lines for 16 groups, 1 for 8, none if all are 1
//! quants      2 bits: TQ, as Q2_K has them; 16 lines
//!             3 bits: IQ1 and IQ2, as Q3_K has them; 24 lines
//!             4 bits: IQ3; 16 lines for each 128 values, 64 in the low, 64 in the high halves
//! ```
//!
//! The books of the file are used once, for packing: what is left is a look-up among 16 bytes, which lanes have
//! an instruction for.

use super::sixteens::{Sixteens, Type, TypeQ2K, TypeQ3K, high_line, low_line, shift};
use super::{set_dword, set_dwords};
use crate::arch::IntLanes;
use crate::memory::Line;
use hurtle_quant::ScaledIntegers;

/// A weight type.
pub(crate) struct Codes<W>(W);
pub(crate) type Iq1S = Sixteens<Codes<hurtle_quant::Iq1S<'static>>>;
pub(crate) type Iq1M = Sixteens<Codes<hurtle_quant::Iq1M<'static>>>;
pub(crate) type Iq2Xxs = Sixteens<Codes<hurtle_quant::Iq2Xxs<'static>>>;
pub(crate) type Iq2Xs = Sixteens<Codes<hurtle_quant::Iq2Xs<'static>>>;
pub(crate) type Iq2S = Sixteens<Codes<hurtle_quant::Iq2S<'static>>>;
pub(crate) type Iq3Xxs = Sixteens<Codes<hurtle_quant::Iq3Xxs<'static>>>;
pub(crate) type Iq3S = Sixteens<Codes<hurtle_quant::Iq3S<'static>>>;
pub(crate) type Tq1_0 = Sixteens<Codes<hurtle_quant::Tq1_0<'static>>>;
pub(crate) type Tq2_0 = Sixteens<Codes<hurtle_quant::Tq2_0<'static>>>;

impl<W: ScaledIntegers> Codes<W> {
    /// Of a code.
    const BITS: usize = match W::LEVELS.len() {
        ..=4 => 2,
        5..=8 => 3,
        _ => 4,
    };
    /// With 2 bits the codes are the integers, and the scales are 1.
    const SCALE_LINES: usize = if Self::BITS == 2 { 0 } else { 256 / W::GROUP / 8 };

    /// The integer of each code.
    const TABLE: [u8; 16] = {
        let mut table = [0; 16];
        let mut code = 0;
        while code < W::LEVELS.len() {
            table[code] = W::LEVELS[code];
            assert!(Self::BITS > 2 || table[code] as usize == code, "these are not looked up");
            code += 1;
        }
        table
    };
    /// The code of each integer.
    const CODES: [u8; 128] = {
        let mut codes = [0; 128];
        let mut code = 0;
        while code < W::LEVELS.len() {
            codes[W::LEVELS[code] as usize] = code as u8;
            code += 1;
        }
        codes
    };
}

impl<W: ScaledIntegers> Type for Codes<W> {
    type Weights = W;
    const HEADER: usize = 1 + Self::SCALE_LINES;
    const LINES: usize = 8 * Self::BITS;
    const OFFSET: i32 = W::OFFSET as i32;
    const MAX: usize = W::MAX as usize;
    const MINIMA: bool = false;
    // As it comes and unpacked with 16, 24 and 64 tokens: IQ3_S 1011 and 968, 1025 and 1091, 1055 and 1239; IQ2_XS 902 and
    // 843, 958 and 967, 972 and 1177; IQ1_S 894 and 812, 906 and 929, 914 and 1143. TQ2_0 1190 and 1139 with 32, 1205 and
    // 1302 with 256.
    const FROM: usize = if Self::BITS == 2 { 64 } else { 24 };
    // As it comes, and unpacked with 8, 12 and 16 tokens: IQ3_S 148, and 141, not measured, 166; IQ2_XS 84, and 89, 102,
    // 101; IQ1_S 112, and 113, 133, 145; TQ2_0 182, and 149, 160, 170, but of two threads 339 instead of 320 with 16.
    const FROM_OF_16: usize = if Self::BITS == 2 { 16 } else { 12 };

    fn pack(bytes: &W::Bytes, row: usize, header: &mut [Line], quants: &mut [Line]) {
        set_dword(&mut header[0], row, W::factor(bytes).to_ne_bytes());
        if Self::SCALE_LINES > 0 {
            let scales = W::scales(bytes);
            let mut nibbles = [0; 8];
            for (g, scale) in scales[..256 / W::GROUP].iter().enumerate() {
                let (at, upper) = scale_place(W::GROUP, g);
                nibbles[at] |= (*scale as u8 >> 1) << (4 * upper);
            }
            set_dwords(header, row, &nibbles[..4 * Self::SCALE_LINES], |k| 1 + k);
        }
        let codes = W::stored(bytes).map(|stored| Self::CODES[usize::from(stored & 127)]);
        let mut low = [0; 128];
        if Self::BITS == 4 {
            for (v, code) in codes.iter().enumerate() {
                low[v / 128 * 64 + v % 64] |= code << (v % 128 / 64 * 4);
            }
            set_dwords(quants, row, &low, |k| k);
            return;
        }
        for (v, code) in codes.iter().enumerate() {
            low[v / 128 * 32 + v % 32] |= (code & 3) << (v % 128 / 32 * 2);
        }
        if Self::BITS == 2 {
            set_dwords(quants, row, &low[..64], |k| k);
            return;
        }
        let mut high = [0; 32];
        for (v, code) in codes.iter().enumerate() {
            high[v % 32] |= (code >> 2) << (v / 32);
        }
        set_dwords(quants, row, &high, high_line);
        set_dwords(quants, row, &low[..64], low_line);
    }

    #[inline(always)]
    unsafe fn scales<L: IntLanes>(header: &[Line], q: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            if Self::SCALE_LINES == 0 {
                return L::splat(0x0101_0101);
            }
            let halves = if W::GROUP == 16 {
                shift(L::load(&header[1 + q / 2]), 4 * (q % 2), 0).and(L::splat(0x0f0f_0f0f))
            } else {
                // Two scales in a byte, for two groups each.
                let both = L::load(&header[1]).shr(8 * q as u32);
                let each = both.and(L::splat(0x0f)).or(both.and(L::splat(0xf0)).shl(12));
                each.or(each.shl(8))
            };
            halves.shl(1).or(L::splat(0x0101_0101))
        }
    }

    #[inline(always)]
    unsafe fn quants<L: IntLanes>(lines: &[Line], h: usize, g: usize, i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            match Self::BITS {
                2 => TypeQ2K::quants(lines, h, g, i),
                3 => TypeQ3K::quants::<L>(lines, h, g, i).lookup(&Self::TABLE),
                _ => {
                    let codes = shift(L::load(&lines[16 * h + 4 * (g % 4) + i]), 4 * (g / 4), 0);
                    codes.and(L::splat(0x0f0f_0f0f)).lookup(&Self::TABLE)
                }
            }
        }
    }
}

/// The byte of the scale of group `g` of `len` values, and which half of it.
fn scale_place(len: usize, g: usize) -> (usize, usize) {
    if len == 16 { (g / 8 * 4 + g % 4, g / 4 % 2) } else { (g / 2, g % 2) }
}
