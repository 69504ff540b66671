//! Q4_K kernels for one token, over rows as the file has them: what an engine has before it packs.
//!
//! ```text
//! row          block 0 | block 1 | …              256 weights each
//! block        d | dmin | scales, minima | 128 bytes of quants
//! quants       plane 0 | plane 1 | plane 2 | plane 3      32 bytes each
//! plane p      group 2p in the low halves of its bytes, group 2p + 1 in the high halves
//! ```
//! A SIMD register holds weights of one row here, so each row ends in a horizontal sum, and the
//! scales of a block have to be spread over lanes.

use half::f16;
use hurtle_kernels::Isa;
use hurtle_quant::{Q4K, Q8_0Block, Q8KSuperBlock, Scales};
use std::fmt;
use std::ops::Range;

/// An encoded block of 256 weights.
pub(crate) type Block = [u8; 144];

/// What activations are quantized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    F32,
    /// Blocks of 32 with a scale.
    Q8_0,
    /// Super-blocks of 256 with a scale, and the sums of 16 each.
    Q8K,
}

impl Form {
    pub(crate) const ALL: [Self; 3] = [Self::F32, Self::Q8_0, Self::Q8K];
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Q8_0 => "Q8_0",
            Self::Q8K => "Q8_K",
        })
    }
}

/// The activations of a token, in all forms.
pub(crate) struct Activations {
    /// `[n_cols]`
    pub(crate) f32: Vec<f32>,
    /// `[n_cols / 32]`
    q8_0: Vec<Q8_0Block>,
    /// `[n_cols / 256]`
    q8_k: Vec<Q8KSuperBlock>,
}

impl Activations {
    pub(crate) fn new(x: Vec<f32>) -> Self {
        let q8_0 = x.as_chunks().0.iter().map(Q8_0Block::quantize).collect();
        let q8_k = x.as_chunks().0.iter().map(Q8KSuperBlock::quantize).collect();
        Self { f32: x, q8_0, q8_k }
    }

    /// What a kernel takes the activations for that reads them in `form`.
    pub(crate) fn values(&self, form: Form) -> Vec<f64> {
        fn scaled(d: f32, qs: &[i8]) -> impl Iterator<Item = f64> {
            qs.iter().map(move |&q| f64::from(d) * f64::from(q))
        }
        match form {
            Form::F32 => self.f32.iter().map(|&x| f64::from(x)).collect(),
            Form::Q8_0 => self.q8_0.iter().flat_map(|b| scaled(b.scale(), &b.qs)).collect(),
            Form::Q8K => self.q8_k.iter().flat_map(|b| scaled(b.d, &b.qs)).collect(),
        }
    }
}

/// Some rows of a matrix, and those of their columns that are asked for.
#[derive(Debug, Clone)]
pub(crate) struct Rows<'a> {
    /// `[n_rows, row_blocks]`
    pub(crate) blocks: &'a [Block],
    /// Blocks of a row.
    pub(crate) row_blocks: usize,
    /// Columns, in blocks.
    pub(crate) columns: Range<usize>,
}

impl<'a> Rows<'a> {
    fn iter(&self) -> impl Iterator<Item = &'a [Block]> {
        let columns = self.columns.clone();
        self.blocks.chunks_exact(self.row_blocks).map(move |row| &row[columns.clone()])
    }
}

/// Adds the product of each row with the activations to its element of `out`.
type Function = unsafe fn(&Rows<'_>, &Activations, &mut [f32]);

/// A kernel: what it reads, and which instructions it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) form: Form,
    pub(crate) isa: Isa,
    /// Whether it fetches weights 2 KiB ahead.
    pub(crate) prefetch: bool,
}

impl Kernel {
    /// Whether it has been written.
    pub(crate) fn exists(self) -> bool {
        self.function().is_some()
    }

    fn function(self) -> Option<Function> {
        Some(match (self.form, self.isa.name(), self.prefetch) {
            (Form::F32, "scalar", false) => f32_scalar,
            (Form::Q8_0, "scalar", false) => q8_0_scalar,
            (Form::Q8K, "scalar", false) => q8_k_scalar,
            #[cfg(target_arch = "x86_64")]
            (Form::F32, "avx2", false) => x86_64::f32_avx2,
            #[cfg(target_arch = "x86_64")]
            (Form::Q8_0, "avx2", false) => x86_64::q8_0_avx2,
            #[cfg(target_arch = "x86_64")]
            (Form::Q8K, "avx2", false) => x86_64::q8_k_avx2::<false>,
            #[cfg(target_arch = "x86_64")]
            (Form::Q8K, "avx2", true) => x86_64::q8_k_avx2::<true>,
            #[cfg(target_arch = "x86_64")]
            (Form::Q8K, "avx512vnni", false) => x86_64::q8_k_avx512vnni::<false>,
            #[cfg(target_arch = "x86_64")]
            (Form::Q8K, "avx512vnni", true) => x86_64::q8_k_avx512vnni::<true>,
            _ => return None,
        })
    }

    /// Adds the product of each row with the activations to its element of `out`.
    ///
    /// # Panics
    /// If the kernel does not exist, or the rows have more columns than the activations.
    pub(crate) fn run(self, rows: &Rows<'_>, x: &Activations, out: &mut [f32]) {
        let function = self.function().expect("the kernel has been written");
        // SAFETY: the function needs the features of `self.isa`, and having an `Isa` proves them.
        unsafe { function(rows, x, out) }
    }
}

/// The f32 of a little-endian f16.
#[inline(always)]
fn scale(bytes: &[u8; 2]) -> f32 {
    f16::from_le_bytes(*bytes).to_f32()
}

/// Decodes each weight where it is needed.
fn f32_scalar(rows: &Rows<'_>, x: &Activations, out: &mut [f32]) {
    let x = &x.f32.as_chunks::<256>().0[rows.columns.clone()];
    for (row, out) in rows.iter().zip(out) {
        let mut sum = 0.0;
        for (block, x) in row.iter().zip(x) {
            let block = Q4K::split(block);
            let Scales { scales, minima } = Scales::unpack(block.scales);
            let (d, dmin) = (scale(block.d), scale(block.dmin));
            let (planes, groups) = (block.qs.as_chunks::<32>().0, x.as_chunks::<32>().0);
            for g in 0..8 {
                let (scale, min) = (d * f32::from(scales[g]), dmin * f32::from(minima[g]));
                for (q, x) in planes[g / 2].iter().zip(&groups[g]) {
                    let q = q >> (4 * (g % 2)) & 15;
                    sum += (scale * f32::from(q) - min) * x;
                }
            }
        }
        *out += sum;
    }
}

/// The integer product of group `g` of a block.
#[inline(always)]
fn dot_group(qs: &[u8; 128], g: usize, x: &[i8]) -> i32 {
    let plane = &qs.as_chunks::<32>().0[g / 2];
    let products = plane.iter().zip(x).map(|(q, &x)| {
        let q = q >> (4 * (g % 2)) & 15;
        i32::from(q) * i32::from(x)
    });
    products.sum()
}

/// Integers within a group of 32, then two conversions to f32.
fn q8_0_scalar(rows: &Rows<'_>, x: &Activations, out: &mut [f32]) {
    let x = &x.q8_0.as_chunks::<8>().0[rows.columns.clone()];
    for (row, out) in rows.iter().zip(out) {
        let mut sum = 0.0;
        for (block, x) in row.iter().zip(x) {
            let block = Q4K::split(block);
            let Scales { scales, minima } = Scales::unpack(block.scales);
            let (d, dmin) = (scale(block.d), scale(block.dmin));
            for (g, x) in x.iter().enumerate() {
                let (scale, min) = (d * f32::from(scales[g]), dmin * f32::from(minima[g]));
                let product = dot_group(block.qs, g, &x.qs);
                let offset: i32 = x.qs.iter().map(|&x| i32::from(x)).sum();
                sum += x.scale() * (scale * product as f32 - min * offset as f32);
            }
        }
        *out += sum;
    }
}

/// Integers within a block of 256, then two conversions to f32.
fn q8_k_scalar(rows: &Rows<'_>, x: &Activations, out: &mut [f32]) {
    let x = &x.q8_k[rows.columns.clone()];
    for (row, out) in rows.iter().zip(out) {
        let mut sum = 0.0;
        for (block, x) in row.iter().zip(x) {
            let block = Q4K::split(block);
            let Scales { scales, minima } = Scales::unpack(block.scales);
            let (mut products, mut offsets) = (0, 0);
            for g in 0..8 {
                let product = dot_group(block.qs, g, &x.qs[32 * g..32 * (g + 1)]);
                products += i32::from(scales[g]) * product;
                let offset = i32::from(x.sums[2 * g]) + i32::from(x.sums[2 * g + 1]);
                offsets += i32::from(minima[g]) * offset;
            }
            let (d, dmin) = (scale(block.d), scale(block.dmin));
            sum += x.d * (d * products as f32 - dmin * offsets as f32);
        }
        *out += sum;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::{Activations, Block, Rows};
    use hurtle_quant::Q4K;
    use std::arch::x86_64::*;

    /// The f32 of a little-endian f16.
    #[inline]
    #[target_feature(enable = "f16c")]
    fn scale(bytes: &[u8; 2]) -> f32 {
        let half = i32::from(u16::from_le_bytes(*bytes));
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)))
    }

    /// Scales and minima of the 8 groups, a byte each, from the 12 bytes that hold them.
    #[inline(always)]
    fn scales_and_minima(packed: &[u8; 12]) -> (i64, i64) {
        let word = |i: usize| {
            let bytes = packed.as_chunks::<4>().0[i];
            u64::from(u32::from_le_bytes(bytes))
        };
        let (a, b, c) = (word(0), word(1), word(2));
        let upper = |word: u64| word >> 6 << 4 & 0x3030_3030;
        let scales = a & 0x3f3f_3f3f | (c & 0x0f0f_0f0f | upper(a)) << 32;
        let minima = b & 0x3f3f_3f3f | (c >> 4 & 0x0f0f_0f0f | upper(b)) << 32;
        (scales as i64, minima as i64)
    }

    /// Fetches what comes 2 KiB behind a block.
    #[inline(always)]
    fn prefetch(block: &Block) {
        let ahead = block.as_ptr().wrapping_add(2048);
        for line in 0..3 {
            // SAFETY: any address may be fetched, and every x86-64 processor can.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line).cast()) };
        }
    }

    /// The sum of the lanes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn add_up(x: __m256) -> f32 {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load<T>(bytes: &[T; 32]) -> __m256i {
        const { assert!(size_of::<T>() == 1) };
        // SAFETY: 32 elements of a byte are there, and the load needs no alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    /// Decodes 8 weights at a time: integers to f32, a multiplication and a subtraction, and then
    /// the multiplication and addition that are the product.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn f32_avx2(rows: &Rows<'_>, x: &Activations, out: &mut [f32]) {
        let x = &x.f32.as_chunks::<256>().0[rows.columns.clone()];
        let nibble = _mm256_set1_epi32(15);
        for (row, out) in rows.iter().zip(out) {
            let mut sums = [_mm256_setzero_ps(); 4];
            for (block, x) in row.iter().zip(x) {
                let block = Q4K::split(block);
                let (scales, minima) = scales_and_minima(block.scales);
                let (scales, minima) = (scales.to_le_bytes(), minima.to_le_bytes());
                let (d, dmin) = (scale(block.d), scale(block.dmin));
                let spread = |g: usize| (d * f32::from(scales[g]), dmin * f32::from(minima[g]));
                for p in 0..4 {
                    let (low, high) = (spread(2 * p), spread(2 * p + 1));
                    let low = (_mm256_set1_ps(low.0), _mm256_set1_ps(low.1));
                    let high = (_mm256_set1_ps(high.0), _mm256_set1_ps(high.1));
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let q = block.qs.as_ptr().wrapping_add(32 * p + 8 * i);
                        let x = x.as_ptr().wrapping_add(64 * p + 8 * i);
                        // SAFETY: 8 of the 128 quants, and 8 activations of each of 2 groups.
                        let (q, x_low, x_high) = unsafe {
                            let q = _mm_loadl_epi64(q.cast());
                            (q, _mm256_loadu_ps(x), _mm256_loadu_ps(x.add(32)))
                        };
                        let q = _mm256_cvtepu8_epi32(q);
                        let q_low = _mm256_cvtepi32_ps(_mm256_and_si256(q, nibble));
                        let q_high = _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(q));
                        let w_low = _mm256_fmsub_ps(low.0, q_low, low.1);
                        let w_high = _mm256_fmsub_ps(high.0, q_high, high.1);
                        *sum = _mm256_fmadd_ps(w_low, x_low, *sum);
                        *sum = _mm256_fmadd_ps(w_high, x_high, *sum);
                    }
                }
            }
            let [a, b, c, d] = sums;
            *out += add_up(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)));
        }
    }

    /// `vpmaddubsw` and `vpmaddwd` within a group of 32, then 8 lanes of f32; the sums of the
    /// activations, which Q8_0 does not hold, take as many instructions again.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn q8_0_avx2(rows: &Rows<'_>, x: &Activations, out: &mut [f32]) {
        let x = &x.q8_0.as_chunks::<8>().0[rows.columns.clone()];
        let (nibble, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        for (row, out) in rows.iter().zip(out) {
            let (mut products, mut offsets) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            for (block, x) in row.iter().zip(x) {
                let block = Q4K::split(block);
                let (scales, minima) = scales_and_minima(block.scales);
                let (scales, minima) = (scales.to_le_bytes(), minima.to_le_bytes());
                let (d, dmin) = (scale(block.d), scale(block.dmin));
                for (p, plane) in block.qs.as_chunks::<32>().0.iter().enumerate() {
                    let q = load(plane);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(q), nibble);
                    let low = _mm256_and_si256(q, nibble);
                    for (g, q) in [(2 * p, low), (2 * p + 1, high)] {
                        let dx = scale(&x[g].d.to_le_bytes());
                        let x = load(&x[g].qs);
                        let product = _mm256_madd_epi16(_mm256_maddubs_epi16(q, x), ones);
                        let offset = _mm256_maddubs_epi16(_mm256_set1_epi8(1), x);
                        let offset = _mm256_madd_epi16(offset, ones);
                        let s = _mm256_set1_ps(dx * d * f32::from(scales[g]));
                        let m = _mm256_set1_ps(dx * dmin * f32::from(minima[g]));
                        products = _mm256_fmadd_ps(s, _mm256_cvtepi32_ps(product), products);
                        offsets = _mm256_fmadd_ps(m, _mm256_cvtepi32_ps(offset), offsets);
                    }
                }
            }
            *out += add_up(_mm256_sub_ps(products, offsets));
        }
    }

    /// The minima of the groups times the sums of their activations: 8 lanes to be added up.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn offsets(minima: i64, sums: &[i16; 16]) -> __m256i {
        let minima = _mm_cvtsi64_si128(minima);
        // Each minimum twice, for a group has two sums of 16.
        let minima = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(minima, minima));
        // SAFETY: 16 sums of 16 bits are there.
        let sums = unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) };
        _mm256_madd_epi16(minima, sums)
    }

    /// `vpmaddubsw`, then `vpmaddwd` with the scale of the group: integers for the whole block,
    /// then one conversion of the products and one of the minima.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn q8_k_avx2<const PREFETCH: bool>(
        rows: &Rows<'_>,
        x: &Activations,
        out: &mut [f32],
    ) {
        let x = &x.q8_k[rows.columns.clone()];
        let nibble = _mm256_set1_epi8(15);
        for (row, out) in rows.iter().zip(out) {
            let (mut sums, mut minima_sums) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            for (block, x) in row.iter().zip(x) {
                if PREFETCH {
                    prefetch(block);
                }
                let block = Q4K::split(block);
                let (scales, minima) = scales_and_minima(block.scales);
                let scales = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(scales));
                let scales = _mm256_broadcastsi128_si256(scales);
                let groups = x.qs.as_chunks::<32>().0;
                let mut products = _mm256_setzero_si256();
                for (p, plane) in block.qs.as_chunks::<32>().0.iter().enumerate() {
                    let q = load(plane);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(q), nibble);
                    let low = _mm256_and_si256(q, nibble);
                    for (g, q) in [(2 * p, low), (2 * p + 1, high)] {
                        let product = _mm256_maddubs_epi16(q, load(&groups[g]));
                        // Bytes 2g and 2g + 1 are the scale of group g, for every lane.
                        let lane = _mm256_set1_epi16((2 * g + 1) as i16 * 256 + 2 * g as i16);
                        let scale = _mm256_shuffle_epi8(scales, lane);
                        products = _mm256_add_epi32(products, _mm256_madd_epi16(scale, product));
                    }
                }
                let d = _mm256_set1_ps(x.d * scale(block.d));
                let dmin = _mm256_set1_ps(x.d * scale(block.dmin));
                let offsets = offsets(minima, &x.sums);
                sums = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(products), sums);
                minima_sums = _mm256_fmadd_ps(dmin, _mm256_cvtepi32_ps(offsets), minima_sums);
            }
            *out += add_up(_mm256_sub_ps(sums, minima_sums));
        }
    }

    /// `vpdpbusd`, then `vpdpwssd` with the scales: a sum of 4 products is below 2^15, so its
    /// lower half is all of it.
    #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    pub(super) fn q8_k_avx512vnni<const PREFETCH: bool>(
        rows: &Rows<'_>,
        x: &Activations,
        out: &mut [f32],
    ) {
        let x = &x.q8_k[rows.columns.clone()];
        let (nibble, zero) = (_mm512_set1_epi8(15), _mm512_setzero_si512());
        for (row, out) in rows.iter().zip(out) {
            let (mut sums, mut minima_sums) = (_mm512_setzero_ps(), _mm256_setzero_ps());
            for (block, x) in row.iter().zip(x) {
                if PREFETCH {
                    prefetch(block);
                }
                let block = Q4K::split(block);
                let (scales, minima) = scales_and_minima(block.scales);
                let scales = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(scales));
                let scales = _mm512_castsi256_si512(scales);
                let groups = x.qs.as_chunks::<32>().0;
                let mut products = zero;
                // Two planes in a register, so groups g and g + 2.
                for (h, planes) in block.qs.as_chunks::<64>().0.iter().enumerate() {
                    // SAFETY: 64 bytes are there, and the load needs no alignment.
                    let q = unsafe { _mm512_loadu_si512(planes.as_ptr().cast()) };
                    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(q), nibble);
                    let low = _mm512_and_si512(q, nibble);
                    for (g, q) in [(4 * h, low), (4 * h + 1, high)] {
                        let x = _mm512_inserti64x4::<1>(
                            _mm512_castsi256_si512(load(&groups[g])),
                            load(&groups[g + 2]),
                        );
                        let lanes = _mm512_inserti64x4::<1>(
                            _mm512_set1_epi32(g as i32),
                            _mm256_set1_epi32(g as i32 + 2),
                        );
                        let scales = _mm512_permutexvar_epi32(lanes, scales);
                        let product = _mm512_dpbusd_epi32(zero, q, x);
                        products = _mm512_dpwssd_epi32(products, product, scales);
                    }
                }
                let d = _mm512_set1_ps(x.d * scale(block.d));
                let dmin = _mm256_set1_ps(x.d * scale(block.dmin));
                let offsets = offsets(minima, &x.sums);
                sums = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(products), sums);
                minima_sums = _mm256_fmadd_ps(dmin, _mm256_cvtepi32_ps(offsets), minima_sums);
            }
            *out += _mm512_reduce_add_ps(sums) - add_up(minima_sums);
        }
    }
}
