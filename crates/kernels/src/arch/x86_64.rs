//! The shells for x86-64.

/// AVX2, with F16C for half-precision loads.
pub(crate) mod avx2 {
    use crate::arch::{LANES, Lanes};
    use half::f16;
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub(crate) struct TwoYmm(__m256, __m256);

    impl Lanes for TwoYmm {
        const TILE_ROWS: usize = 2;
        const TILE_TOKENS: usize = 2;

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
        unsafe fn store(self, to: &mut [f32]) {
            let to = to[..LANES].as_mut_ptr();
            // SAFETY: room for 16 values is there.
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
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
        unsafe fn to_array(self) -> [f32; LANES] {
            let mut array = [0.0; LANES];
            // SAFETY: see `splat`.
            unsafe { self.store(&mut array) };
            array
        }
    }

    crate::arch::shells!(TwoYmm, "avx2,fma,f16c");
}

/// AVX-512 (F, BW, VL, DQ).
pub(crate) mod avx512 {
    use crate::arch::{LANES, Lanes};
    use half::f16;
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub(crate) struct Zmm(__m512);

    impl Lanes for Zmm {
        const TILE_ROWS: usize = 4;
        const TILE_TOKENS: usize = 4;

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
        unsafe fn to_array(self) -> [f32; LANES] {
            let mut array = [0.0; LANES];
            // SAFETY: see `splat`.
            unsafe { self.store(&mut array) };
            array
        }
    }

    crate::arch::shells!(Zmm, "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c");
}
