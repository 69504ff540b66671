//! The portable shell: plain Rust that every target compiles.

use super::{LANES, Lanes};
use half::f16;

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Lanes for Portable {
    const TILE_ROWS: usize = 2;
    const TILE_TOKENS: usize = 1;

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
    unsafe fn store(self, to: &mut [f32]) {
        to[..LANES].copy_from_slice(&self.0);
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
    unsafe fn to_array(self) -> [f32; LANES] {
        self.0
    }
}

super::shells!(Portable);
