//! The shells for x86-64.

use super::LANES;
use crate::memory::Line;
use std::arch::asm;
use std::arch::x86_64::*;

/// See [`pin`](crate::arch::IntLanes::pin).
#[inline]
#[target_feature(enable = "avx2")]
fn pin_ymm(low: &mut __m256i, high: &mut __m256i) {
    // SAFETY: a comment is no instruction. As it is not said to be pure, it stays in its place.
    unsafe {
        asm!(
            "/* {} {} */",
            inout(ymm_reg) * low,
            inout(ymm_reg) * high,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// See [`pin`](crate::arch::IntLanes::pin).
#[inline]
#[target_feature(enable = "avx512f")]
fn pin_zmm(x: &mut __m512i) {
    // SAFETY: as above.
    unsafe { asm!("/* {} */", inout(zmm_reg) * x, options(nomem, nostack, preserves_flags)) }
}

/// The shuffle that takes byte `i` of each dword to the upper byte of both of its halves.
#[inline]
#[target_feature(enable = "sse2")]
fn scale_bytes(i: usize) -> __m128i {
    let bytes =
        _mm_setr_epi8(-128, 0, -128, 0, -128, 4, -128, 4, -128, 8, -128, 8, -128, 12, -128, 12);
    _mm_add_epi8(bytes, _mm_set1_epi8(i as i8))
}

/// What [`lookup`](crate::arch::IntLanes::lookup) takes to bring four bytes of a table to four lanes each: to
/// the lowest byte of a lane, or of both of its halves.
const fn spread(halves: bool) -> [Line; 4] {
    let mut lines = [Line([128; 64]); 4];
    let mut lane = 0;
    while lane < 64 {
        let (line, byte, index) = (lane / 16, lane % 16 * 4, (lane / 4) as u8);
        lines[line].0[byte] = index;
        if halves {
            lines[line].0[byte + 2] = index;
        }
        lane += 1;
    }
    lines
}
static SPREAD_BYTES: [Line; 4] = spread(false);
static SPREAD_HALVES: [Line; 4] = spread(true);

/// See [`reflect`](crate::arch::IntLanes::reflect).
#[inline]
#[target_feature(enable = "avx2")]
fn reflect(stored: __m256i, offset: u8, signs: u32) -> __m256i {
    let bytes =
        _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let signs = _mm256_shuffle_epi8(_mm256_set1_epi32(signs as i32), bytes);
    let negative = _mm256_cmpeq_epi8(_mm256_and_si256(signs, bit), bit);
    let ones = _mm256_and_si256(negative, _mm256_set1_epi8((2 * offset - 1) as i8));
    _mm256_sub_epi8(_mm256_xor_si256(stored, ones), negative)
}

/// The sums of 16 dwords each of eight rows.
#[inline]
#[target_feature(enable = "avx2")]
fn fold_lines(rows: &[Line; 8]) -> __m256i {
    let mut sums = [_mm256_setzero_si256(); 8];
    for (sum, row) in sums.iter_mut().zip(rows) {
        let row = row.0.as_ptr().cast::<__m256i>();
        // SAFETY: a line is 64 aligned bytes.
        *sum = unsafe { _mm256_add_epi32(_mm256_load_si256(row), _mm256_load_si256(row.add(1))) };
    }
    let [a, b, c, d, e, f, g, h] = sums;
    let first = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    let second = _mm256_hadd_epi32(_mm256_hadd_epi32(e, f), _mm256_hadd_epi32(g, h));
    // The sums of four rows' first halves, then those of the second.
    let low = _mm256_permute2x128_si256::<0x20>(first, second);
    let high = _mm256_permute2x128_si256::<0x31>(first, second);
    _mm256_add_epi32(low, high)
}

/// See [`fold`](crate::arch::IntLanes::fold): the sums of the first and the last eight rows.
#[inline]
#[target_feature(enable = "avx2")]
fn fold_rows(rows: &[Line; LANES]) -> [__m256i; 2] {
    let (halves, _) = rows.as_chunks();
    [fold_lines(&halves[0]), fold_lines(&halves[1])]
}

/// Sums of products of bytes in 32 bits, added up by `dot_lanes`.
macro_rules! lane_sums {
    () => {
        type Sums = Self;
        const LIMIT: usize = usize::MAX;

        #[inline(always)]
        unsafe fn begin(start: Self) -> (Self, Self) {
            // SAFETY: see `load`.
            unsafe { (Self::splat(0), start) }
        }
        #[inline(always)]
        unsafe fn start_sums(x: &$crate::activations::SuperBlock, g: usize, offset: i32) -> Self {
            // SAFETY: see `load`.
            unsafe {
                let starts = Self::splat(x.lane_starts[g]);
                match offset.ilog2() {
                    5 => starts,
                    log @ ..5 => starts.sar(5 - log),
                    log => starts.shl(log - 5),
                }
            }
        }
        #[inline(always)]
        unsafe fn dot_each(sums: Self, bytes: Self, x: Self) -> Self {
            // SAFETY: see `load`.
            unsafe { sums.dot_lanes(bytes, x) }
        }
        #[inline(always)]
        unsafe fn dot_halves(self, halves: Self, x: u32) -> Self {
            // SAFETY: see `load`.
            unsafe { self.dot_half_lanes(halves, x) }
        }
        #[inline(always)]
        unsafe fn add_sums(self, sums: Self) -> Self {
            // SAFETY: see `load`.
            unsafe { self.add(sums) }
        }
        #[inline(always)]
        unsafe fn scale(self, i: usize) -> Self {
            // SAFETY: see `load`.
            unsafe { self.shl(24 - 8 * i as u32).sar(24) }
        }
        #[inline(always)]
        unsafe fn spread_scales(scales: &[u8; 16], i: usize) -> Self {
            // SAFETY: see `load`.
            unsafe { Self::load(&$crate::arch::x86_64::SPREAD_BYTES[i]).lookup(scales) }
        }
        #[inline(always)]
        unsafe fn add_scaled(self, sums: Self, scale: Self) -> Self {
            // SAFETY: see `load`.
            unsafe { self.add(sums.mul(scale)) }
        }
    };
}

/// Sums of products of bytes in pairs of 16 bits, in two 256-bit registers.
macro_rules! ymm_pair_sums {
    () => {
        type Sums = Self;
        // A pair of products with activations of at most 127 stays below 2^15.
        const LIMIT: usize = i16::MAX as usize / (2 * 127);

        #[inline(always)]
        unsafe fn begin(start: Self) -> (Self, Self) {
            // SAFETY: see `load`.
            unsafe { (start, Self::no_sums()) }
        }
        #[inline(always)]
        unsafe fn start_sums(x: &$crate::activations::SuperBlock, g: usize, offset: i32) -> Self {
            let shift = 5 - offset.ilog2() as i32;
            // SAFETY: see `load`.
            unsafe {
                let starts = _mm256_set1_epi32(x.starts[g] as i32);
                let starts = _mm256_sra_epi16(starts, _mm_cvtsi32_si128(shift));
                Self(starts, starts)
            }
        }

        #[inline(always)]
        unsafe fn dot_each(sums: Self, bytes: Self, x: Self) -> Self {
            // SAFETY: see `load`.
            unsafe {
                let low = _mm256_maddubs_epi16(bytes.0, x.0);
                let high = _mm256_maddubs_epi16(bytes.1, x.1);
                Self(_mm256_add_epi16(sums.0, low), _mm256_add_epi16(sums.1, high))
            }
        }
        #[inline(always)]
        unsafe fn dot_halves(self, halves: Self, x: u32) -> Self {
            // SAFETY: see `load`.
            unsafe {
                let x = _mm256_set1_epi32(x as i32);
                let low = _mm256_madd_epi16(halves.0, x);
                let high = _mm256_madd_epi16(halves.1, x);
                Self(_mm256_add_epi32(self.0, low), _mm256_add_epi32(self.1, high))
            }
        }
        #[inline(always)]
        unsafe fn add_sums(self, sums: Self) -> Self {
            // SAFETY: see `load`.
            unsafe { self.dot_halves(sums, 0x0001_0001) }
        }
        #[inline(always)]
        unsafe fn scale(self, i: usize) -> Self {
            // SAFETY: see `load`.
            unsafe {
                let bytes = _mm256_broadcastsi128_si256($crate::arch::x86_64::scale_bytes(i));
                let (low, high) =
                    (_mm256_shuffle_epi8(self.0, bytes), _mm256_shuffle_epi8(self.1, bytes));
                Self(_mm256_srai_epi16::<8>(low), _mm256_srai_epi16::<8>(high))
            }
        }
        #[inline(always)]
        unsafe fn spread_scales(scales: &[u8; 16], i: usize) -> Self {
            // SAFETY: see `load`.
            unsafe { Self::load(&$crate::arch::x86_64::SPREAD_HALVES[i]).lookup(scales) }
        }
        #[inline(always)]
        unsafe fn add_scaled(self, sums: Self, scale: Self) -> Self {
            // SAFETY: see `load`.
            unsafe {
                let low = _mm256_madd_epi16(sums.0, scale.0);
                let high = _mm256_madd_epi16(sums.1, scale.1);
                Self(_mm256_add_epi32(self.0, low), _mm256_add_epi32(self.1, high))
            }
        }
    };
}

/// As `ymm_pair_sums`, in a 512-bit register.
macro_rules! zmm_pair_sums {
    () => {
        type Sums = Self;
        const LIMIT: usize = i16::MAX as usize / (2 * 127);

        #[inline(always)]
        unsafe fn begin(start: Self) -> (Self, Self) {
            // SAFETY: see `load`.
            unsafe { (start, Self::no_sums()) }
        }
        #[inline(always)]
        unsafe fn start_sums(x: &$crate::activations::SuperBlock, g: usize, offset: i32) -> Self {
            let shift = 5 - offset.ilog2() as i32;
            // SAFETY: see `load`.
            unsafe {
                let starts = _mm512_set1_epi32(x.starts[g] as i32);
                Self(_mm512_sra_epi16(starts, _mm_cvtsi32_si128(shift)))
            }
        }
        #[inline(always)]
        unsafe fn dot_each(sums: Self, bytes: Self, x: Self) -> Self {
            // SAFETY: see `load`.
            unsafe {
                let products = _mm512_maddubs_epi16(bytes.0, x.0);
                Self(_mm512_add_epi16(sums.0, products))
            }
        }
        #[inline(always)]
        unsafe fn dot_halves(self, halves: Self, x: u32) -> Self {
            // SAFETY: see `load`.
            unsafe {
                let products = _mm512_madd_epi16(halves.0, _mm512_set1_epi32(x as i32));
                Self(_mm512_add_epi32(self.0, products))
            }
        }
        #[inline(always)]
        unsafe fn add_sums(self, sums: Self) -> Self {
            // SAFETY: see `load`.
            unsafe { self.dot_halves(sums, 0x0001_0001) }
        }
        #[inline(always)]
        unsafe fn scale(self, i: usize) -> Self {
            // SAFETY: see `load`.
            unsafe {
                let bytes = _mm512_broadcast_i32x4($crate::arch::x86_64::scale_bytes(i));
                Self(_mm512_srai_epi16::<8>(_mm512_shuffle_epi8(self.0, bytes)))
            }
        }
        #[inline(always)]
        unsafe fn spread_scales(scales: &[u8; 16], i: usize) -> Self {
            // SAFETY: see `load`.
            unsafe { Self::load(&$crate::arch::x86_64::SPREAD_HALVES[i]).lookup(scales) }
        }
        #[inline(always)]
        unsafe fn add_scaled(self, sums: Self, scale: Self) -> Self {
            // SAFETY: see `load`.
            unsafe { Self(_mm512_add_epi32(self.0, _mm512_madd_epi16(sums.0, scale.0))) }
        }
    };
}
use {lane_sums, ymm_pair_sums, zmm_pair_sums};

/// The 16 lanes of 32 bits in two 256-bit registers; the dot products are what differs.
macro_rules! two_ymm_ints {
    ($name:ident, $isa:literal, $sums:ident) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name(__m256i, __m256i);

        impl $crate::arch::IntLanes for $name {
            type Floats = TwoYmm;
            const NAME: &'static str = $isa;
            const TILE_TOKENS: usize = 4;

            #[inline(always)]
            unsafe fn load(line: &$crate::memory::Line) -> Self {
                let line = line.0.as_ptr().cast::<__m256i>();
                // SAFETY: the caller has the instruction set, here and below; a line is 64 aligned
                // bytes.
                unsafe { Self(_mm256_load_si256(line), _mm256_load_si256(line.add(1))) }
            }
            #[inline(always)]
            unsafe fn load_dwords(dwords: &[u32; 16]) -> Self {
                let dwords = dwords.as_ptr().cast::<__m256i>();
                // SAFETY: see `load`; these are 64 bytes.
                unsafe { Self(_mm256_loadu_si256(dwords), _mm256_loadu_si256(dwords.add(1))) }
            }
            #[inline(always)]
            unsafe fn store(self, line: &mut $crate::memory::Line) {
                let line = line.0.as_mut_ptr().cast::<__m256i>();
                // SAFETY: see `load`.
                unsafe {
                    _mm256_store_si256(line, self.0);
                    _mm256_store_si256(line.add(1), self.1);
                }
            }
            #[inline(always)]
            unsafe fn splat(x: i32) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm256_set1_epi32(x), _mm256_set1_epi32(x)) }
            }
            #[inline(always)]
            unsafe fn and(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    Self(_mm256_and_si256(self.0, other.0), _mm256_and_si256(self.1, other.1))
                }
            }
            #[inline(always)]
            unsafe fn or(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm256_or_si256(self.0, other.0), _mm256_or_si256(self.1, other.1)) }
            }
            #[inline(always)]
            unsafe fn xor(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    Self(_mm256_xor_si256(self.0, other.0), _mm256_xor_si256(self.1, other.1))
                }
            }
            #[inline(always)]
            unsafe fn shl(self, n: u32) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    let n = _mm_cvtsi32_si128(n as i32);
                    Self(_mm256_sll_epi32(self.0, n), _mm256_sll_epi32(self.1, n))
                }
            }
            #[inline(always)]
            unsafe fn shr(self, n: u32) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    let n = _mm_cvtsi32_si128(n as i32);
                    Self(_mm256_srl_epi32(self.0, n), _mm256_srl_epi32(self.1, n))
                }
            }
            #[inline(always)]
            unsafe fn sar(self, n: u32) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    let n = _mm_cvtsi32_si128(n as i32);
                    Self(_mm256_sra_epi32(self.0, n), _mm256_sra_epi32(self.1, n))
                }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    Self(_mm256_add_epi32(self.0, other.0), _mm256_add_epi32(self.1, other.1))
                }
            }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    Self(_mm256_mullo_epi32(self.0, other.0), _mm256_mullo_epi32(self.1, other.1))
                }
            }
            #[cfg(target_os = "linux")]
            #[inline(always)]
            unsafe fn add_halves(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    Self(_mm256_add_epi16(self.0, other.0), _mm256_add_epi16(self.1, other.1))
                }
            }
            #[cfg(target_os = "linux")]
            #[inline(always)]
            unsafe fn mul_halves(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    Self(_mm256_mullo_epi16(self.0, other.0), _mm256_mullo_epi16(self.1, other.1))
                }
            }
            #[cfg(target_os = "linux")]
            #[inline(always)]
            unsafe fn shl_halves(self, n: u32) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    let n = _mm_cvtsi32_si128(n as i32);
                    Self(_mm256_sll_epi16(self.0, n), _mm256_sll_epi16(self.1, n))
                }
            }
            #[cfg(target_os = "linux")]
            #[inline(always)]
            unsafe fn shr_halves(self, n: u32) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    let n = _mm_cvtsi32_si128(n as i32);
                    Self(_mm256_srl_epi16(self.0, n), _mm256_srl_epi16(self.1, n))
                }
            }
            #[cfg(target_os = "linux")]
            #[inline(always)]
            unsafe fn add_bytes(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm256_add_epi8(self.0, other.0), _mm256_add_epi8(self.1, other.1)) }
            }
            #[cfg(target_os = "linux")]
            #[inline(always)]
            unsafe fn scale_halves(self, i: usize) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    let bytes = _mm256_broadcastsi128_si256($crate::arch::x86_64::scale_bytes(i));
                    let (low, high) =
                        (_mm256_shuffle_epi8(self.0, bytes), _mm256_shuffle_epi8(self.1, bytes));
                    Self(_mm256_srai_epi16::<8>(low), _mm256_srai_epi16::<8>(high))
                }
            }
            #[inline(always)]
            unsafe fn no_sums() -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm256_setzero_si256(), _mm256_setzero_si256()) }
            }
            #[inline(always)]
            unsafe fn halves(self) -> [Self; 2] {
                // SAFETY: see `load`.
                unsafe {
                    let (a, b) = (_mm256_slli_epi16::<8>(self.0), _mm256_slli_epi16::<8>(self.1));
                    [
                        Self(_mm256_srai_epi16::<8>(a), _mm256_srai_epi16::<8>(b)),
                        Self(_mm256_srai_epi16::<8>(self.0), _mm256_srai_epi16::<8>(self.1)),
                    ]
                }
            }
            $crate::arch::x86_64::$sums!();
            #[inline(always)]
            unsafe fn start_biased(sum: i32) -> Self {
                // SAFETY: see `load`.
                unsafe { Self::start(sum) }
            }
            #[inline(always)]
            unsafe fn dot_biased(self, biased: Self, x: u32) -> Self {
                // SAFETY: see `load`.
                unsafe { self.dot_large(biased, x) }
            }
            #[inline(always)]
            unsafe fn lookup(self, table: &[u8; 16]) -> Self {
                // SAFETY: see `load`; the table is 16 bytes.
                unsafe {
                    let table = _mm_loadu_si128(table.as_ptr().cast());
                    let table = _mm256_broadcastsi128_si256(table);
                    Self(_mm256_shuffle_epi8(table, self.0), _mm256_shuffle_epi8(table, self.1))
                }
            }
            #[inline(always)]
            unsafe fn reflect(self, offset: u8, signs: &[u32; 2]) -> Self {
                use $crate::arch::x86_64::reflect;
                // SAFETY: see `load`.
                unsafe {
                    Self(reflect(self.0, offset, signs[0]), reflect(self.1, offset, signs[1]))
                }
            }
            #[inline(always)]
            unsafe fn fold(rows: &[$crate::memory::Line; 16]) -> Self {
                // SAFETY: see `load`.
                let [low, high] = unsafe { $crate::arch::x86_64::fold_rows(rows) };
                Self(low, high)
            }
            #[inline(always)]
            unsafe fn as_floats(self) -> TwoYmm {
                // SAFETY: see `load`.
                unsafe { TwoYmm(_mm256_castsi256_ps(self.0), _mm256_castsi256_ps(self.1)) }
            }
            #[inline(always)]
            unsafe fn to_floats(self) -> TwoYmm {
                // SAFETY: see `load`.
                unsafe { TwoYmm(_mm256_cvtepi32_ps(self.0), _mm256_cvtepi32_ps(self.1)) }
            }
            #[inline(always)]
            unsafe fn pin(&mut self) {
                // SAFETY: see `load`.
                unsafe { $crate::arch::x86_64::pin_ymm(&mut self.0, &mut self.1) }
            }
            #[inline(always)]
            unsafe fn pin_sums(sums: &mut Self) {
                // SAFETY: see `load`.
                unsafe { sums.pin() }
            }
        }
    };
}

/// The 16 lanes of 32 bits in a 512-bit register; the dot products are what differs.
macro_rules! zmm_ints {
    ($name:ident, $isa:literal, $sums:ident) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $name<const BF16: bool = false>(__m512i);

        impl<const BF16: bool> $crate::arch::IntLanes for $name<BF16> {
            type Floats = Zmm<BF16>;
            const NAME: &'static str = if BF16 { "avx512bf16" } else { $isa };
            const TILE_TOKENS: usize = 8;
            const TILE_PANELS: usize = 2;

            #[inline(always)]
            unsafe fn load(line: &$crate::memory::Line) -> Self {
                // SAFETY: the caller has the instruction set, here and below; a line is 64 aligned bytes.
                unsafe { Self(_mm512_load_si512(line.0.as_ptr().cast())) }
            }
            #[inline(always)]
            unsafe fn load_dwords(dwords: &[u32; 16]) -> Self {
                // SAFETY: see `load`; these are 64 bytes.
                unsafe { Self(_mm512_loadu_si512(dwords.as_ptr().cast())) }
            }
            #[inline(always)]
            unsafe fn store(self, line: &mut $crate::memory::Line) {
                // SAFETY: see `load`.
                unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), self.0) }
            }
            #[inline(always)]
            unsafe fn splat(x: i32) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm512_set1_epi32(x)) }
            }
            #[inline(always)]
            unsafe fn and(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm512_and_si512(self.0, other.0)) }
            }
            #[inline(always)]
            unsafe fn or(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm512_or_si512(self.0, other.0)) }
            }
            #[inline(always)]
            unsafe fn xor(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm512_xor_si512(self.0, other.0)) }
            }
            #[inline(always)]
            unsafe fn shl(self, n: u32) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    let n = _mm_cvtsi32_si128(n as i32);
                    Self(_mm512_sll_epi32(self.0, n))
                }
            }
            #[inline(always)]
            unsafe fn shr(self, n: u32) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    let n = _mm_cvtsi32_si128(n as i32);
                    Self(_mm512_srl_epi32(self.0, n))
                }
            }
            #[inline(always)]
            unsafe fn sar(self, n: u32) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    let n = _mm_cvtsi32_si128(n as i32);
                    Self(_mm512_sra_epi32(self.0, n))
                }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm512_add_epi32(self.0, other.0)) }
            }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm512_mullo_epi32(self.0, other.0)) }
            }
            #[cfg(target_os = "linux")]
            #[inline(always)]
            unsafe fn add_halves(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm512_add_epi16(self.0, other.0)) }
            }
            #[cfg(target_os = "linux")]
            #[inline(always)]
            unsafe fn mul_halves(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm512_mullo_epi16(self.0, other.0)) }
            }
            #[cfg(target_os = "linux")]
            #[inline(always)]
            unsafe fn shl_halves(self, n: u32) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm512_sll_epi16(self.0, _mm_cvtsi32_si128(n as i32))) }
            }
            #[cfg(target_os = "linux")]
            #[inline(always)]
            unsafe fn shr_halves(self, n: u32) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm512_srl_epi16(self.0, _mm_cvtsi32_si128(n as i32))) }
            }
            #[cfg(target_os = "linux")]
            #[inline(always)]
            unsafe fn add_bytes(self, other: Self) -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm512_add_epi8(self.0, other.0)) }
            }
            #[cfg(target_os = "linux")]
            #[inline(always)]
            unsafe fn scale_halves(self, i: usize) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    let bytes = _mm512_broadcast_i32x4($crate::arch::x86_64::scale_bytes(i));
                    Self(_mm512_srai_epi16::<8>(_mm512_shuffle_epi8(self.0, bytes)))
                }
            }
            #[inline(always)]
            unsafe fn no_sums() -> Self {
                // SAFETY: see `load`.
                unsafe { Self(_mm512_setzero_si512()) }
            }
            #[inline(always)]
            unsafe fn halves(self) -> [Self; 2] {
                // SAFETY: see `load`.
                unsafe {
                    let low = _mm512_slli_epi16::<8>(self.0);
                    [Self(_mm512_srai_epi16::<8>(low)), Self(_mm512_srai_epi16::<8>(self.0))]
                }
            }
            $crate::arch::x86_64::$sums!();
            #[inline(always)]
            unsafe fn start_biased(sum: i32) -> Self {
                // SAFETY: see `load`.
                unsafe { Self::start(sum) }
            }
            #[inline(always)]
            unsafe fn dot_biased(self, biased: Self, x: u32) -> Self {
                // SAFETY: see `load`.
                unsafe { self.dot_large(biased, x) }
            }
            #[inline(always)]
            unsafe fn lookup(self, table: &[u8; 16]) -> Self {
                // SAFETY: see `load`; the table is 16 bytes.
                unsafe {
                    let table = _mm_loadu_si128(table.as_ptr().cast());
                    Self(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), self.0))
                }
            }
            #[inline(always)]
            unsafe fn reflect(self, offset: u8, signs: &[u32; 2]) -> Self {
                let signs = u64::from(signs[0]) | u64::from(signs[1]) << 32;
                // SAFETY: see `load`.
                unsafe {
                    let twice = _mm512_set1_epi8((2 * offset) as i8);
                    Self(_mm512_mask_sub_epi8(self.0, signs, twice, self.0))
                }
            }
            #[inline(always)]
            unsafe fn fold(rows: &[$crate::memory::Line; 16]) -> Self {
                // SAFETY: see `load`.
                unsafe {
                    let [low, high] = $crate::arch::x86_64::fold_rows(rows);
                    Self(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high))
                }
            }
            #[inline(always)]
            unsafe fn as_floats(self) -> Zmm<BF16> {
                // SAFETY: see `load`.
                unsafe { Zmm(_mm512_castsi512_ps(self.0)) }
            }
            #[inline(always)]
            unsafe fn to_floats(self) -> Zmm<BF16> {
                // SAFETY: see `load`.
                unsafe { Zmm(_mm512_cvtepi32_ps(self.0)) }
            }
            #[inline(always)]
            unsafe fn pin(&mut self) {
                // SAFETY: see `load`.
                unsafe { $crate::arch::x86_64::pin_zmm(&mut self.0) }
            }
            #[inline(always)]
            unsafe fn pin_sums(sums: &mut Self) {
                // SAFETY: see `load`.
                unsafe { sums.pin() }
            }
        }
    };
}

/// AVX2, with F16C for half-precision loads.
pub(crate) mod avx2 {
    use crate::arch::{LANES, Lanes};
    use half::f16;
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub(crate) struct TwoYmm(pub(super) __m256, pub(super) __m256);

    impl Lanes for TwoYmm {
        const TILE_ROWS: usize = 2;
        const TILE_TOKENS: usize = 2;
        const SUMS: usize = 6;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller has AVX2, here and below.
            unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(x: &[f32]) -> Self {
            let x = x[..LANES].as_ptr();
            // SAFETY: 16 values are there.
            unsafe { Self(_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_f16(x: &[f16]) -> Self {
            let x = x[..LANES].as_ptr().cast::<__m128i>();
            // SAFETY: 16 values of 2 bytes are there; `f16` is a transparent u16.
            unsafe {
                Self(
                    _mm256_cvtph_ps(_mm_loadu_si128(x)),
                    _mm256_cvtph_ps(_mm_loadu_si128(x.add(1))),
                )
            }
        }
        #[inline(always)]
        unsafe fn load_i8(x: &[i8]) -> Self {
            let x = x[..LANES].as_ptr();
            // SAFETY: 16 bytes are there.
            unsafe {
                let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(x.cast()));
                let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(x.add(8).cast()));
                Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: &mut [f32]) {
            let to = to[..LANES].as_mut_ptr();
            // SAFETY: room for 16 values is there.
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn store_f16(self, to: &mut [f16]) {
            let to = to[..LANES].as_mut_ptr().cast::<__m128i>();
            // SAFETY: room for 16 values of 2 bytes is there.
            unsafe {
                let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
                let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1);
                _mm_storeu_si128(to, low);
                _mm_storeu_si128(to.add(1), high);
            }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: see `splat`.
            unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: see `splat`.
            unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, summand: Self) -> Self {
            // SAFETY: see `splat`; FMA comes with every AVX2 level.
            unsafe {
                Self(
                    _mm256_fmadd_ps(self.0, factor.0, summand.0),
                    _mm256_fmadd_ps(self.1, factor.1, summand.1),
                )
            }
        }
        #[inline(always)]
        unsafe fn upper_bf16(self) -> Self {
            // SAFETY: see `splat`.
            unsafe {
                let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xFFFF_0000_u32 as i32));
                Self(_mm256_and_ps(self.0, mask), _mm256_and_ps(self.1, mask))
            }
        }
        #[inline(always)]
        unsafe fn lower_bf16(self) -> Self {
            // SAFETY: see `splat`.
            unsafe {
                let low = _mm256_slli_epi32::<16>(_mm256_castps_si256(self.0));
                let high = _mm256_slli_epi32::<16>(_mm256_castps_si256(self.1));
                Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
            }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: see `splat`.
            unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            // SAFETY: a prefetch of any address is valid.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn prefetch_to_l2(at: *const u8) {
            // SAFETY: a prefetch of any address is valid.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn to_array(self) -> [f32; LANES] {
            let mut array = [0.0; LANES];
            // SAFETY: see `splat`.
            unsafe { self.store(&mut array) };
            array
        }
    }

    crate::arch::shells!(TwoYmm, "avx2,fma,f16c");

    two_ymm_ints!(TwoYmmInts, "avx2", ymm_pair_sums);

    impl TwoYmmInts {
        /// Adds up the dot products of `a`'s unsigned with `b`'s signed bytes. The two products
        /// that an i16 takes up are below 2^15 for `a <= 128` and `|b| <= 127`.
        #[inline(always)]
        unsafe fn add_dots(self, a: Self, b: Self) -> Self {
            // SAFETY: the caller has AVX2.
            unsafe {
                let ones = _mm256_set1_epi16(1);
                let low = _mm256_madd_epi16(_mm256_maddubs_epi16(a.0, b.0), ones);
                let high = _mm256_madd_epi16(_mm256_maddubs_epi16(a.1, b.1), ones);
                Self(_mm256_add_epi32(self.0, low), _mm256_add_epi32(self.1, high))
            }
        }
        #[inline(always)]
        unsafe fn start(_: i32) -> Self {
            // SAFETY: the caller has AVX2.
            unsafe { Self(_mm256_setzero_si256(), _mm256_setzero_si256()) }
        }
        /// Takes the bias off again and moves the weight's sign to the activation, since products
        /// of 8 bit without a sign would not fit.
        #[inline(always)]
        unsafe fn dot_large(self, biased: Self, x: u32) -> Self {
            // SAFETY: the caller has AVX2.
            unsafe {
                let x = _mm256_set1_epi32(x as i32);
                let bias = _mm256_set1_epi8(-128);
                let (a, b) = (_mm256_xor_si256(biased.0, bias), _mm256_xor_si256(biased.1, bias));
                self.add_dots(
                    Self(_mm256_abs_epi8(a), _mm256_abs_epi8(b)),
                    Self(_mm256_sign_epi8(x, a), _mm256_sign_epi8(x, b)),
                )
            }
        }
    }

    crate::arch::int_shells!(TwoYmmInts, "avx2,fma,f16c");
    #[cfg(all(test, target_os = "linux"))]
    crate::arch::tile_shell!(TwoYmmInts, "avx2,fma,f16c");
}

/// AVX2 with the 256-bit VNNI instructions.
pub(crate) mod avxvnni {
    use super::avx2::TwoYmm;
    use std::arch::x86_64::*;

    two_ymm_ints!(TwoYmmInts, "avxvnni", lane_sums);

    impl TwoYmmInts {
        #[inline(always)]
        unsafe fn dot_lanes(self, bytes: Self, x: Self) -> Self {
            // SAFETY: the caller has AVX-VNNI.
            unsafe {
                Self(
                    _mm256_dpbusd_avx_epi32(self.0, bytes.0, x.0),
                    _mm256_dpbusd_avx_epi32(self.1, bytes.1, x.1),
                )
            }
        }
        #[inline(always)]
        unsafe fn dot_half_lanes(self, halves: Self, x: u32) -> Self {
            // SAFETY: the caller has AVX-VNNI.
            unsafe {
                let x = _mm256_set1_epi32(x as i32);
                Self(
                    _mm256_dpwssd_avx_epi32(self.0, halves.0, x),
                    _mm256_dpwssd_avx_epi32(self.1, halves.1, x),
                )
            }
        }
        #[inline(always)]
        unsafe fn start(sum: i32) -> Self {
            // SAFETY: the caller has AVX-VNNI.
            unsafe { Self(_mm256_set1_epi32(-128 * sum), _mm256_set1_epi32(-128 * sum)) }
        }
        #[inline(always)]
        unsafe fn dot_large(self, biased: Self, x: u32) -> Self {
            // SAFETY: the caller has AVX-VNNI.
            unsafe {
                self.dot_lanes(
                    biased,
                    Self(_mm256_set1_epi32(x as i32), _mm256_set1_epi32(x as i32)),
                )
            }
        }
    }

    crate::arch::int_shells!(TwoYmmInts, "avxvnni,avx2,fma,f16c");
}

/// AVX-512 (F, BW, VL, DQ).
pub(crate) mod avx512 {
    use crate::arch::{LANES, Lanes};
    use half::f16;
    use std::arch::x86_64::*;
    use std::mem::transmute;

    /// Lanes in a register; those of `BF16` have the instructions for it.
    #[derive(Clone, Copy)]
    pub(crate) struct Zmm<const BF16: bool = false>(pub(super) __m512);

    impl<const BF16: bool> Lanes for Zmm<BF16> {
        const TILE_ROWS: usize = 4;
        const TILE_TOKENS: usize = 4;
        const SUMS: usize = if BF16 { 24 } else { 12 };
        const PAIR_FACTORS: usize = if BF16 { 1 } else { 2 };

        #[inline(always)]
        unsafe fn pair_factors(x: &[f32; 2 * LANES], to: &mut [f32; 2 * LANES]) {
            // SAFETY: see `splat`; with `BF16` the caller has its instructions, too.
            unsafe {
                let (first, second) = (_mm512_loadu_ps(&x[0]), _mm512_loadu_ps(&x[LANES]));
                if BF16 {
                    // Earlier values come in lower halves.
                    let pairs = _mm512_cvtne2ps_pbh(second, first);
                    let pairs = _mm512_rol_epi32::<16>(transmute::<__m512bh, __m512i>(pairs));
                    _mm512_storeu_ps(&mut to[0], _mm512_castsi512_ps(pairs));
                } else {
                    _mm512_storeu_ps(&mut to[0], round_to_bf16(first));
                    _mm512_storeu_ps(&mut to[LANES], round_to_bf16(second));
                }
            }
        }
        #[inline(always)]
        unsafe fn add_pairs<const P: usize>(
            sums: &mut [Self; P],
            pairs: &[Self; P],
            factors: &[f32],
            i: usize,
        ) {
            // SAFETY: as above.
            unsafe {
                if BF16 {
                    let factors = transmute::<__m512, __m512bh>(_mm512_set1_ps(factors[i]));
                    for p in 0..P {
                        let pairs = transmute::<__m512, __m512bh>(pairs[p].0);
                        sums[p].0 = _mm512_dpbf16_ps(sums[p].0, pairs, factors);
                    }
                } else {
                    crate::arch::add_split_pairs(sums, pairs, factors, i);
                }
            }
        }

        #[inline(always)]
        unsafe fn add_pair(sum: &mut Self, pairs: Self, x: u32) {
            // SAFETY: as above.
            unsafe {
                if BF16 {
                    let x = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x as i32));
                    let pairs = transmute::<__m512, __m512bh>(pairs.0);
                    sum.0 = _mm512_dpbf16_ps(sum.0, pairs, x);
                } else {
                    crate::arch::add_split_pair(sum, pairs, x);
                }
            }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: the caller has AVX-512, here and below.
            unsafe { Self(_mm512_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(x: &[f32]) -> Self {
            let x = x[..LANES].as_ptr();
            // SAFETY: 16 values are there.
            unsafe { Self(_mm512_loadu_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load_f16(x: &[f16]) -> Self {
            let x = x[..LANES].as_ptr().cast::<__m256i>();
            // SAFETY: 16 values of 2 bytes are there; `f16` is a transparent u16.
            unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(x))) }
        }
        #[inline(always)]
        unsafe fn load_i8(x: &[i8]) -> Self {
            let x = x[..LANES].as_ptr().cast::<__m128i>();
            // SAFETY: 16 bytes are there.
            unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x)))) }
        }
        #[inline(always)]
        unsafe fn store_f16(self, to: &mut [f16]) {
            let to = to[..LANES].as_mut_ptr().cast::<__m256i>();
            // SAFETY: room for 16 values of 2 bytes is there.
            unsafe {
                let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
                _mm256_storeu_si256(to, halves);
            }
        }
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, summand: Self) -> Self {
            // SAFETY: see `splat`.
            unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, summand.0)) }
        }
        #[inline(always)]
        unsafe fn upper_bf16(self) -> Self {
            // SAFETY: see `splat`.
            unsafe {
                let bits = _mm512_castps_si512(self.0);
                let mask = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
                Self(_mm512_castsi512_ps(_mm512_and_si512(bits, mask)))
            }
        }
        #[inline(always)]
        unsafe fn lower_bf16(self) -> Self {
            // SAFETY: see `splat`.
            unsafe {
                let bits = _mm512_castps_si512(self.0);
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
            }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: see `splat`.
            unsafe { Self(_mm512_max_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: &mut [f32]) {
            let to = to[..LANES].as_mut_ptr();
            // SAFETY: room for 16 values is there.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: see `splat`.
            unsafe { Self(_mm512_add_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: see `splat`.
            unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            // SAFETY: a prefetch of any address is valid.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn prefetch_to_l2(at: *const u8) {
            // SAFETY: a prefetch of any address is valid.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
        }
        #[inline(always)]
        unsafe fn to_array(self) -> [f32; LANES] {
            let mut array = [0.0; LANES];
            // SAFETY: see `splat`.
            unsafe { self.store(&mut array) };
            array
        }
    }

    /// Rounds to bf16.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn round_to_bf16(x: __m512) -> __m512 {
        let bits = _mm512_castps_si512(x);
        let ties = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let bits = _mm512_add_epi32(bits, _mm512_add_epi32(ties, _mm512_set1_epi32(0x7FFF)));
        let upper = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
        _mm512_castsi512_ps(_mm512_and_si512(bits, upper))
    }

    crate::arch::shells!(Zmm, "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c");

    zmm_ints!(ZmmInts, "avx512", zmm_pair_sums);

    impl<const BF16: bool> ZmmInts<BF16> {
        #[inline(always)]
        unsafe fn add_dots(self, a: __m512i, b: __m512i) -> Self {
            // SAFETY: the caller has AVX-512.
            unsafe {
                let pairs = _mm512_maddubs_epi16(a, b);
                Self(_mm512_add_epi32(self.0, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))))
            }
        }
        #[inline(always)]
        unsafe fn start(_: i32) -> Self {
            // SAFETY: the caller has AVX-512.
            unsafe { Self(_mm512_setzero_si512()) }
        }
        /// As with AVX2: the weight's sign moves to the activation.
        #[inline(always)]
        unsafe fn dot_large(self, biased: Self, x: u32) -> Self {
            // SAFETY: the caller has AVX-512.
            unsafe {
                let x = _mm512_set1_epi32(x as i32);
                let w = _mm512_xor_si512(biased.0, _mm512_set1_epi8(-128));
                let negative = _mm512_movepi8_mask(w);
                let x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
                self.add_dots(_mm512_abs_epi8(w), x)
            }
        }
    }

    crate::arch::int_shells!(ZmmInts, "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c");
}

/// AVX-512 with VNNI.
pub(crate) mod avx512vnni {
    use super::avx512::Zmm;
    use std::arch::x86_64::*;

    zmm_ints!(ZmmInts, "avx512vnni", lane_sums);

    impl<const BF16: bool> ZmmInts<BF16> {
        #[inline(always)]
        unsafe fn dot_lanes(self, bytes: Self, x: Self) -> Self {
            // SAFETY: the caller has AVX-512 VNNI.
            unsafe { Self(_mm512_dpbusd_epi32(self.0, bytes.0, x.0)) }
        }
        #[inline(always)]
        unsafe fn dot_half_lanes(self, halves: Self, x: u32) -> Self {
            // SAFETY: the caller has AVX-512 VNNI.
            unsafe { Self(_mm512_dpwssd_epi32(self.0, halves.0, _mm512_set1_epi32(x as i32))) }
        }
        #[inline(always)]
        unsafe fn start(sum: i32) -> Self {
            // SAFETY: the caller has AVX-512 VNNI.
            unsafe { Self(_mm512_set1_epi32(-128 * sum)) }
        }
        #[inline(always)]
        unsafe fn dot_large(self, biased: Self, x: u32) -> Self {
            // SAFETY: the caller has AVX-512 VNNI.
            unsafe { self.dot_lanes(biased, Self(_mm512_set1_epi32(x as i32))) }
        }
    }

    crate::arch::int_shells!(
        ZmmInts,
        "avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
    );
    #[cfg(target_os = "linux")]
    crate::arch::tile_shell!(
        ZmmInts,
        "avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
    );
}

/// AVX-512 with the instructions for bf16; its integers are those of [`avx512vnni`].
pub(crate) mod avx512bf16 {
    use super::avx512::Zmm;
    use super::avx512vnni::ZmmInts;

    crate::arch::shells!(Zmm<true>, "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c");
    crate::arch::packed_shells!(
        ZmmInts<true>,
        "avx512bf16,avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
    );
    #[cfg(target_os = "linux")]
    crate::arch::pair_tile_shell!(
        Zmm<true>,
        "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
    );
}
