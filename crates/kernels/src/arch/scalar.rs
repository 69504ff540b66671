//! The portable shell: plain Rust that every target compiles.

use super::{IntLanes, LANES, Lanes};
use crate::activations::SuperBlock;
use crate::memory::Line;
use half::f16;

/// With `PAIRS`, factors of bf16 are pairs.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const PAIRS: bool = false>([f32; LANES]);

impl<const PAIRS: bool> Lanes for Portable<PAIRS> {
    const TILE_ROWS: usize = 2;
    const TILE_TOKENS: usize = 1;
    const SUMS: usize = 1;
    const PAIR_FACTORS: usize = if PAIRS { 1 } else { 2 };

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(x: &[f32]) -> Self {
        let mut lanes = [0.0; LANES];
        lanes.copy_from_slice(&x[..LANES]);
        Self(lanes)
    }
    #[inline(always)]
    unsafe fn load_f16(x: &[f16]) -> Self {
        let x = &x[..LANES];
        Self(std::array::from_fn(|i| x[i].to_f32()))
    }
    #[inline(always)]
    unsafe fn load_i8(x: &[i8]) -> Self {
        let x = &x[..LANES];
        Self(std::array::from_fn(|i| f32::from(x[i])))
    }
    #[inline(always)]
    unsafe fn store(self, to: &mut [f32]) {
        to[..LANES].copy_from_slice(&self.0);
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: &mut [f16]) {
        for (to, from) in to[..LANES].iter_mut().zip(self.0) {
            *to = f16::from_f32(from);
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * other.0[i]))
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, summand: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(factor.0[i], summand.0[i])))
    }
    #[inline(always)]
    unsafe fn upper_bf16(self) -> Self {
        Self(self.0.map(|x| f32::from_bits(x.to_bits() & 0xFFFF_0000)))
    }
    #[inline(always)]
    unsafe fn lower_bf16(self) -> Self {
        Self(self.0.map(|x| f32::from_bits(x.to_bits() << 16)))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].max(other.0[i])))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_to_l2(_: *const u8) {}
    #[inline(always)]
    unsafe fn to_array(self) -> [f32; LANES] {
        self.0
    }
}

super::shells!(Portable);

/// The vectors beside tiles that are emulated.
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod paired {
    use super::Portable;

    crate::arch::shells!(Portable<true>);
    crate::arch::pair_tile_shell!(Portable<true>);
}

/// 16 lanes of 32 bits in plain integers: the reference of the packed kernels.
#[derive(Clone, Copy)]
pub(crate) struct Dwords([u32; LANES]);

impl Dwords {
    #[inline(always)]
    fn map(self, f: impl Fn(u32) -> u32) -> Self {
        Self(self.0.map(f))
    }
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(u32, u32) -> u32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

/// Dot product of 4 unsigned with 4 signed bytes.
#[inline(always)]
fn dot_bytes(unsigned: u32, signed: u32) -> u32 {
    let (a, b) = (unsigned.to_le_bytes(), signed.to_le_bytes());
    let mut sum = 0;
    for i in 0..4 {
        sum += i32::from(a[i]) * i32::from(b[i] as i8);
    }
    sum as u32
}

/// Applies `f` to each 16 bits.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[inline(always)]
fn by_halves(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    let half = |shift: u32| u32::from(f((a >> shift) as u16, (b >> shift) as u16)) << shift;
    half(0) | half(16)
}

impl IntLanes for Dwords {
    type Floats = Portable;
    const NAME: &'static str = "scalar";
    const TILE_TOKENS: usize = 1;
    type Sums = Self;
    const LIMIT: usize = usize::MAX;

    #[inline(always)]
    unsafe fn load(line: &Line) -> Self {
        let (dwords, _) = line.0.as_chunks();
        Self(std::array::from_fn(|i| u32::from_le_bytes(dwords[i])))
    }
    #[inline(always)]
    unsafe fn load_dwords(dwords: &[u32; LANES]) -> Self {
        Self(*dwords)
    }
    #[inline(always)]
    unsafe fn store(self, line: &mut Line) {
        for (bytes, dword) in line.0.as_chunks_mut().0.iter_mut().zip(self.0) {
            *bytes = dword.to_le_bytes();
        }
    }
    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        Self([x as u32; LANES])
    }
    #[inline(always)]
    unsafe fn and(self, other: Self) -> Self {
        self.zip(other, |a, b| a & b)
    }
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        self.zip(other, |a, b| a | b)
    }
    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        self.zip(other, |a, b| a ^ b)
    }
    #[inline(always)]
    unsafe fn shl(self, n: u32) -> Self {
        self.map(|a| a << n)
    }
    #[inline(always)]
    unsafe fn shr(self, n: u32) -> Self {
        self.map(|a| a >> n)
    }
    #[inline(always)]
    unsafe fn sar(self, n: u32) -> Self {
        self.map(|a| (a as i32 >> n) as u32)
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, u32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, u32::wrapping_mul)
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    unsafe fn add_halves(self, other: Self) -> Self {
        self.zip(other, |a, b| by_halves(a, b, u16::wrapping_add))
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    unsafe fn mul_halves(self, other: Self) -> Self {
        self.zip(other, |a, b| by_halves(a, b, u16::wrapping_mul))
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    unsafe fn shl_halves(self, n: u32) -> Self {
        self.map(|a| by_halves(a, 0, |a, _| a << n))
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    unsafe fn shr_halves(self, n: u32) -> Self {
        self.map(|a| by_halves(a, 0, |a, _| a >> n))
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    unsafe fn add_bytes(self, other: Self) -> Self {
        self.zip(other, |a, b| {
            let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
            u32::from_le_bytes(std::array::from_fn(|i| a[i].wrapping_add(b[i])))
        })
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[inline(always)]
    unsafe fn scale_halves(self, i: usize) -> Self {
        self.map(|bytes| {
            let scale = u32::from(i16::from(bytes.to_le_bytes()[i] as i8) as u16);
            scale | scale << 16
        })
    }
    #[inline(always)]
    unsafe fn dot_each(sums: Self, bytes: Self, x: Self) -> Self {
        sums.zip(bytes.zip(x, dot_bytes), u32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn no_sums() -> Self {
        Self([0; LANES])
    }
    #[inline(always)]
    unsafe fn begin(start: Self) -> (Self, Self) {
        (Self([0; LANES]), start)
    }
    #[inline(always)]
    unsafe fn start_sums(x: &SuperBlock, g: usize, offset: i32) -> Self {
        Self([(x.lane_starts[g] / 32 * offset) as u32; LANES])
    }
    #[inline(always)]
    unsafe fn add_sums(self, sums: Self) -> Self {
        self.zip(sums, u32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn scale(self, i: usize) -> Self {
        self.map(|bytes| i32::from(bytes.to_le_bytes()[i] as i8) as u32)
    }
    #[inline(always)]
    unsafe fn spread_scales(scales: &[u8; 16], i: usize) -> Self {
        Self(std::array::from_fn(|lane| u32::from(scales[4 * i + lane / 4])))
    }
    #[inline(always)]
    unsafe fn add_scaled(self, sums: Self, scale: Self) -> Self {
        let products = sums.zip(scale, u32::wrapping_mul);
        self.zip(products, u32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn halves(self) -> [Self; 2] {
        let half = |byte: u8| u32::from(i16::from(byte as i8) as u16);
        [0, 1].map(|i| {
            self.map(|bytes| {
                let bytes = bytes.to_le_bytes();
                half(bytes[i]) | half(bytes[i + 2]) << 16
            })
        })
    }
    #[inline(always)]
    unsafe fn dot_halves(self, halves: Self, x: u32) -> Self {
        let product = |a: u32, b: u32| i32::from(a as i16) * i32::from(b as i16);
        self.zip(halves, |sum, halves| {
            let products = product(halves, x) + product(halves >> 16, x >> 16);
            sum.wrapping_add(products as u32)
        })
    }
    #[inline(always)]
    unsafe fn start_biased(sum: i32) -> Self {
        Self([(-128 * sum) as u32; LANES])
    }
    #[inline(always)]
    unsafe fn dot_biased(self, biased: Self, x: u32) -> Self {
        self.zip(biased, |sum, bytes| sum.wrapping_add(dot_bytes(bytes, x)))
    }
    #[inline(always)]
    unsafe fn lookup(self, table: &[u8; 16]) -> Self {
        let byte = |index: u8| if index < 128 { table[usize::from(index & 15)] } else { 0 };
        self.map(|indices| u32::from_le_bytes(indices.to_le_bytes().map(byte)))
    }
    #[inline(always)]
    unsafe fn reflect(self, offset: u8, signs: &[u32; 2]) -> Self {
        let mut lanes = self;
        for (i, lane) in lanes.0.iter_mut().enumerate() {
            let signs = signs[i / 8] >> (4 * (i % 8));
            let mut bytes = lane.to_le_bytes();
            for (j, byte) in bytes.iter_mut().enumerate() {
                if signs >> j & 1 == 1 {
                    *byte = (2 * offset).wrapping_sub(*byte);
                }
            }
            *lane = u32::from_le_bytes(bytes);
        }
        lanes
    }
    #[inline(always)]
    unsafe fn fold(rows: &[Line; LANES]) -> Self {
        // SAFETY: these lanes need nothing.
        let rows = rows.each_ref().map(|row| unsafe { Self::load(row) });
        Self(rows.map(|row| row.0.into_iter().fold(0, u32::wrapping_add)))
    }
    #[inline(always)]
    unsafe fn as_floats(self) -> Portable {
        Portable(self.0.map(f32::from_bits))
    }
    #[inline(always)]
    unsafe fn to_floats(self) -> Portable {
        Portable(self.0.map(|a| a as i32 as f32))
    }
    #[inline(always)]
    unsafe fn pin(&mut self) {}
    #[inline(always)]
    unsafe fn pin_sums(_: &mut Self) {}
}

super::int_shells!(Dwords);
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
super::tile_shell!(Dwords);
