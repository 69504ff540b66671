//! Keys and values of past tokens, in pages.
//!
//! ```text
//! page    for each layer: K, V                          64 positions of one sequence
//! K       [n_kv_heads][4 tiles]                         a tile: 16 positions
//! tile    [dim_k][16 positions]                         Q8_0: before it [dim_k / 32][16] f16 scales
//! V       [n_kv_heads][64 positions][dim_v]             Q8_0: before each head [64][dim_v / 32] scales
//!
//! BF16    tile [dim_k / 2][16 positions][2], V [n_kv_heads][32 positions][dim_v][2]
//! ```
//! Scores come from lanes that are positions, so that they need no horizontal sums; weighted sums
//! come from lanes that are values. So keys lie transposed, 16 at a time, and values as they are.
//!
//! Of BF16 a lane holds two: successive values of a key, or the values of successive positions. That
//! is what the instruction takes that multiplies bf16 and adds two products at a time, for which queries
//! and weights are rounded to bf16 as well. Without it the same is done in two steps.
//!
//! A page holds all layers of 64 consecutive positions of one sequence, so sequences grow without
//! being moved and share nothing but the pool of pages. Pages lie in slabs of some MiB, which the
//! system can give in 2 MiB pages.

use crate::Isa;
use crate::arch::{LANES, Lanes, dispatch};
use crate::memory::{Line, Lines};
use half::{bf16, f16};
use hurtle_quant::Q8_0Block;
use std::fmt;
use std::str::FromStr;

/// Positions in a page.
pub const PAGE_TOKENS: usize = 64;

/// Positions in a tile of keys.
pub(crate) const TILE: usize = LANES;

/// Values that share a scale in Q8_0.
const SCALED: usize = 32;

/// Element type of keys or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvType {
    /// 4 bytes: exact.
    F32,
    /// 2 bytes: 11 significant bits, up to 65 504, which larger numbers become.
    F16,
    /// 2 bytes: 8 significant bits, the range of f32. Queries, or weights of values, are rounded to it,
    /// too; where the processor multiplies bf16, that is twice as fast.
    #[default]
    BF16,
    /// 8 bits, and an f16 scale for 32 values.
    Q8_0,
}

impl KvType {
    /// All types, for messages and command lines.
    pub const ALL: [KvType; 4] = [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0];

    /// Elements in a lane of 32 bits.
    pub(crate) fn per_lane(self) -> usize {
        with_kv!(self, E => E::PER_LANE)
    }

    /// `f32`, `f16`, `bf16` or `q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::BF16 => "bf16",
            KvType::Q8_0 => "q8_0",
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|ty| ty.name() == name).ok_or_else(|| {
            format!(
                "KV cache type {name:?} is unknown; known are {}",
                Self::ALL.map(Self::name).join(", ")
            )
        })
    }
}

/// Evaluates `$body` with `$E` as the element type.
macro_rules! with_kv {
    ($ty:expr, $E:ident => $body:expr) => {
        match $ty {
            $crate::kv::KvType::F32 => {
                type $E = f32;
                $body
            }
            $crate::kv::KvType::F16 => {
                type $E = half::f16;
                $body
            }
            $crate::kv::KvType::BF16 => {
                type $E = half::bf16;
                $body
            }
            $crate::kv::KvType::Q8_0 => {
                type $E = $crate::kv::Q8;
                $body
            }
        }
    };
}
pub(crate) use with_kv;

/// How an element type lies in memory, and what is multiplied with it.
pub(crate) trait Elem {
    /// What a lane holds: an element, or two.
    type Stored: bytemuck::Pod;
    /// What [`load`](Self::load) gives, when it is stored again.
    type Loaded: Elem<Stored = f32>;
    const PER_LANE: usize = 1;
    /// Whether each 32 elements have an f16 scale.
    const SCALES: bool = false;

    /// Rounds a head to the type; `scales` is empty without them.
    unsafe fn encode<L: Lanes>(x: &[f32], stored: &mut [Self::Stored], scales: &mut [f16]);

    /// The same for a value that becomes element `i` of its lanes. The elements before it stay.
    #[inline(always)]
    unsafe fn encode_in_lanes<L: Lanes>(
        x: &[f32],
        i: usize,
        stored: &mut [Self::Stored],
        scales: &mut [f16],
    ) {
        debug_assert_eq!(i, 0, "the lane's only element");
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { Self::encode::<L>(x, stored, scales) }
    }

    /// 16 lanes, scales aside.
    unsafe fn load<L: Lanes>(stored: &[Self::Stored; LANES]) -> L;

    /// Factors for a lane.
    fn n_factors<L: Lanes>() -> usize;

    /// Makes factors of numbers, in place. What is left behind them means nothing.
    unsafe fn make_factors<L: Lanes>(x: &mut [f32]);

    /// Adds the products of lanes that were loaded with factors, which are those of lane `i`.
    unsafe fn add_products<L: Lanes, const P: usize>(
        sums: &mut [L; P],
        loaded: &[L; P],
        factors: &[f32],
        i: usize,
    );
}

/// Lanes of an f32, the factors of which are f32.
macro_rules! single {
    () => {
        type Loaded = f32;

        #[inline(always)]
        fn n_factors<L: Lanes>() -> usize {
            1
        }

        #[inline(always)]
        unsafe fn make_factors<L: Lanes>(_: &mut [f32]) {}

        #[inline(always)]
        unsafe fn add_products<L: Lanes, const P: usize>(
            sums: &mut [L; P],
            loaded: &[L; P],
            factors: &[f32],
            i: usize,
        ) {
            // SAFETY: the caller has the lanes' instruction set.
            unsafe {
                let factor = L::splat(factors[i]);
                for p in 0..P {
                    sums[p] = loaded[p].mul_add(factor, sums[p]);
                }
            }
        }
    };
}

impl Elem for f32 {
    type Stored = f32;
    single!();

    #[inline(always)]
    unsafe fn encode<L: Lanes>(x: &[f32], stored: &mut [f32], _: &mut [f16]) {
        stored.copy_from_slice(x);
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(stored: &[f32; LANES]) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(stored) }
    }
}

impl Elem for f16 {
    type Stored = f16;
    single!();

    #[inline(always)]
    unsafe fn encode<L: Lanes>(x: &[f32], stored: &mut [f16], _: &mut [f16]) {
        // Infinity times a weight of 0 would be no number.
        let largest = f16::MAX.to_f32();
        let (x, rest) = x.as_chunks::<LANES>();
        let (to, last) = stored.split_at_mut(x.len() * LANES);
        for (x, to) in x.iter().zip(to.chunks_exact_mut(LANES)) {
            // SAFETY: the caller has the lanes' instruction set.
            unsafe { L::load(&x.map(|x| x.clamp(-largest, largest))).store_f16(to) };
        }
        for (to, x) in last.iter_mut().zip(rest) {
            *to = f16::from_f32(x.clamp(-largest, largest));
        }
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(stored: &[f16; LANES]) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load_f16(stored) }
    }
}

impl Elem for bf16 {
    /// The bits of two, the first in the upper half.
    type Stored = f32;
    type Loaded = Self;
    const PER_LANE: usize = 2;

    #[inline(always)]
    unsafe fn encode<L: Lanes>(x: &[f32], stored: &mut [f32], _: &mut [f16]) {
        for (lane, x) in stored.iter_mut().zip(x.chunks(2)) {
            let bits = |i: usize| x.get(i).map_or(0, |x| u32::from(bf16::from_f32(*x).to_bits()));
            *lane = f32::from_bits(bits(0) << 16 | bits(1));
        }
    }

    #[inline(always)]
    unsafe fn encode_in_lanes<L: Lanes>(x: &[f32], i: usize, stored: &mut [f32], _: &mut [f16]) {
        for (lane, x) in stored.iter_mut().zip(x) {
            let bits = u32::from(bf16::from_f32(*x).to_bits());
            // What follows in the lane gets no weight before it is written, but must be a number.
            let bits = if i == 0 { bits << 16 } else { lane.to_bits() & 0xFFFF_0000 | bits };
            *lane = f32::from_bits(bits);
        }
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(stored: &[f32; LANES]) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load(stored) }
    }

    #[inline(always)]
    fn n_factors<L: Lanes>() -> usize {
        L::PAIR_FACTORS
    }

    #[inline(always)]
    unsafe fn make_factors<L: Lanes>(x: &mut [f32]) {
        for at in (0..x.len()).step_by(2 * LANES) {
            let values = x[at..].first_chunk().copied().unwrap_or_else(|| {
                let mut values = [0.0; 2 * LANES];
                values[..x.len() - at].copy_from_slice(&x[at..]);
                values
            });
            let mut factors = [0.0; 2 * LANES];
            // SAFETY: the caller has the lanes' instruction set.
            unsafe { L::pair_factors(&values, &mut factors) };
            let to = &mut x[at / 2 * L::PAIR_FACTORS..];
            if L::PAIR_FACTORS == 1
                && let Some(to) = to.first_chunk_mut::<LANES>()
            {
                to.copy_from_slice(&factors[..LANES]);
            } else if let Some(to) = to.first_chunk_mut() {
                *to = factors;
            } else {
                to.copy_from_slice(&factors[..to.len()]);
            }
        }
    }

    #[inline(always)]
    unsafe fn add_products<L: Lanes, const P: usize>(
        sums: &mut [L; P],
        loaded: &[L; P],
        factors: &[f32],
        i: usize,
    ) {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::add_pairs(sums, loaded, factors, i) }
    }
}

/// Q8_0.
pub(crate) struct Q8;

impl Elem for Q8 {
    type Stored = i8;
    const SCALES: bool = true;
    single!();

    #[inline(always)]
    unsafe fn encode<L: Lanes>(x: &[f32], stored: &mut [i8], scales: &mut [f16]) {
        let blocks = x.chunks(SCALED).zip(stored.chunks_mut(SCALED)).zip(scales);
        for ((x, stored), scale) in blocks {
            let mut values = [0.0; SCALED];
            values[..x.len()].copy_from_slice(x);
            let block = Q8_0Block::quantize(&values);
            stored.copy_from_slice(&block.qs[..x.len()]);
            // As above.
            *scale = if block.d.is_finite() { block.d } else { f16::MAX };
        }
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(stored: &[i8; LANES]) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load_i8(stored) }
    }
}

/// Bytes of the scales of `n` runs of `dim` elements.
fn scale_bytes<E: Elem>(dim: usize, n: usize) -> usize {
    if E::SCALES { dim.div_ceil(SCALED) * n * size_of::<f16>() } else { 0 }
}

/// 16 keys of a head.
pub(crate) struct Tile<'a, E: Elem> {
    /// `[dim / 32][16]`, or empty.
    scales: &'a [f16],
    /// `[dim / PER_LANE]`
    stored: &'a [[E::Stored; TILE]],
}

impl<'a, E: Elem> Tile<'a, E> {
    fn n_bytes(dim: usize) -> usize {
        let n_lanes = dim.div_ceil(E::PER_LANE);
        let bytes = scale_bytes::<E>(dim, TILE) + n_lanes * TILE * size_of::<E::Stored>();
        bytes.next_multiple_of(size_of::<Line>())
    }

    #[inline(always)]
    fn new(bytes: &'a [u8], dim: usize) -> Self {
        let (scales, stored) = bytes.split_at(scale_bytes::<E>(dim, TILE));
        let n_lanes = dim.div_ceil(E::PER_LANE);
        let stored = bytemuck::cast_slice(&stored[..n_lanes * TILE * size_of::<E::Stored>()]);
        Self { scales: bytemuck::cast_slice(scales), stored: &stored.as_chunks().0[..n_lanes] }
    }

    /// The 16 keys, without their scales: `[dim / PER_LANE]`.
    #[inline(always)]
    pub(crate) fn stored(&self) -> &'a [[E::Stored; TILE]] {
        self.stored
    }

    /// Scales of the 16 values `d`.
    #[inline(always)]
    pub(crate) unsafe fn scales<L: Lanes>(&self, d: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { L::load_f16(&self.scales[d / SCALED * TILE..(d / SCALED + 1) * TILE]) }
    }
}

/// A page's values of a head. Rows are filled up to whole vectors.
pub(crate) struct Values<'a, E: Elem> {
    /// `[64][dim / 32]`, or empty.
    scales: &'a [f16],
    /// `[64 / PER_LANE][n_vectors]`
    stored: &'a [[E::Stored; LANES]],
    n_scales: usize,
    n_vectors: usize,
}

impl<'a, E: Elem> Values<'a, E> {
    fn n_bytes(dim: usize) -> usize {
        let n_lanes = PAGE_TOKENS / E::PER_LANE * dim.next_multiple_of(LANES);
        let stored = n_lanes * size_of::<E::Stored>();
        (scale_bytes::<E>(dim, PAGE_TOKENS) + stored).next_multiple_of(size_of::<Line>())
    }

    #[inline(always)]
    fn new(bytes: &'a [u8], dim: usize) -> Self {
        let n_vectors = dim.div_ceil(LANES);
        let (scales, stored) = bytes.split_at(scale_bytes::<E>(dim, PAGE_TOKENS));
        let n_bytes = PAGE_TOKENS / E::PER_LANE * n_vectors * LANES * size_of::<E::Stored>();
        let stored: &[E::Stored] = bytemuck::cast_slice(&stored[..n_bytes]);
        Self {
            scales: bytemuck::cast_slice(scales),
            stored: stored.as_chunks().0,
            n_scales: dim.div_ceil(SCALED),
            n_vectors,
        }
    }

    /// Where those of [`load`](Self::load) lie, in bytes after the first.
    #[inline(always)]
    pub(crate) fn offset(&self, slot: usize, i: usize) -> usize {
        (slot * self.n_vectors + i) * size_of::<[E::Stored; LANES]>()
    }

    /// Values `16 i` to `16 i + 15` of a position, or of the two that share lane `slot`.
    #[inline(always)]
    pub(crate) unsafe fn load<L: Lanes>(&self, slot: usize, i: usize) -> L {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe {
            let values: L = E::load(&self.stored[slot * self.n_vectors + i]);
            if E::SCALES {
                let scale = self.scales[slot * self.n_scales + i * LANES / SCALED];
                values.mul(L::splat(scale.to_f32()))
            } else {
                values
            }
        }
    }
}

/// Where a layer's keys and values lie in a page.
#[derive(Debug, Clone, Copy)]
pub struct KvLayer {
    pub(crate) type_k: KvType,
    pub(crate) type_v: KvType,
    pub(crate) n_kv_heads: usize,
    pub(crate) dim_k: usize,
    pub(crate) dim_v: usize,
    /// Bytes of a tile of keys, and of a page's values of a head.
    tile_bytes: usize,
    values_bytes: usize,
    /// Where the keys begin in a page, and the values.
    k_start: usize,
    v_start: usize,
    /// Where the next layer begins.
    end: usize,
}

impl KvLayer {
    /// A layer that begins `start` bytes into a page (rounded up to a cache line).
    pub fn new(
        start: usize,
        (type_k, type_v): (KvType, KvType),
        n_kv_heads: usize,
        dim_k: usize,
        dim_v: usize,
    ) -> Self {
        let align = |at: usize| at.next_multiple_of(size_of::<Line>());
        let tile_bytes = with_kv!(type_k, K => Tile::<K>::n_bytes(dim_k));
        let values_bytes = with_kv!(type_v, V => Values::<V>::n_bytes(dim_v));
        let k_start = align(start);
        let v_start = align(k_start + n_kv_heads * (PAGE_TOKENS / TILE) * tile_bytes);
        let end = align(v_start + n_kv_heads * values_bytes);
        Self {
            type_k,
            type_v,
            n_kv_heads,
            dim_k,
            dim_v,
            tile_bytes,
            values_bytes,
            k_start,
            v_start,
            end,
        }
    }

    /// Where the next layer may begin in the page.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Bytes that attention reads of a position.
    pub fn bytes_per_token(&self) -> usize {
        self.n_kv_heads * (self.tile_bytes / TILE + self.values_bytes / PAGE_TOKENS)
    }

    /// Tile `tile` of a page's keys of a head.
    #[inline(always)]
    pub(crate) fn keys<'a, K: Elem>(
        &self,
        page: &'a [u8],
        head: usize,
        tile: usize,
    ) -> Tile<'a, K> {
        let at = self.tile_start(head, tile);
        Tile::new(&page[at..at + self.tile_bytes], self.dim_k)
    }

    /// Where tile `tile` of a page's keys of a head begins.
    #[inline(always)]
    pub(crate) fn keys_at(&self, page: &[u8], head: usize, tile: usize) -> *const u8 {
        page[self.tile_start(head, tile)..].as_ptr()
    }

    /// Where a page's values of a head begin.
    #[inline(always)]
    pub(crate) fn values_at(&self, page: &[u8], head: usize) -> *const u8 {
        page[self.values_start(head)..].as_ptr()
    }

    #[inline(always)]
    fn tile_start(&self, head: usize, tile: usize) -> usize {
        self.k_start + (head * (PAGE_TOKENS / TILE) + tile) * self.tile_bytes
    }

    #[inline(always)]
    fn values_start(&self, head: usize) -> usize {
        self.v_start + head * self.values_bytes
    }

    /// A page's values of a head.
    #[inline(always)]
    pub(crate) fn values<'a, V: Elem>(&self, page: &'a [u8], head: usize) -> Values<'a, V> {
        let at = self.values_start(head);
        Values::new(&page[at..at + self.values_bytes], self.dim_v)
    }
}

/// Bytes of a slab, about: large enough for 2 MiB pages, small beside a model.
const SLAB: usize = 8 << 20;

/// Bytes of the pages that the system gives where memory is asked for in bulk.
const HUGE_PAGE: usize = 2 << 20;

/// The pages of all sequences.
pub struct KvPages {
    page_lines: usize,
    pages_per_slab: usize,
    slabs: Vec<Lines>,
    len: usize,
}

impl fmt::Debug for KvPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvPages")
            .field("len", &self.len)
            .field("page_bytes", &self.page_bytes())
            .finish()
    }
}

impl KvPages {
    /// No pages yet; each will have at least `page_bytes` bytes.
    pub fn new(page_bytes: usize) -> Self {
        let page_lines = page_bytes.div_ceil(size_of::<Line>()).max(1);
        let pages_per_slab = (SLAB / (page_lines * size_of::<Line>())).clamp(1, 64);
        Self { page_lines, pages_per_slab, slabs: Vec::new(), len: 0 }
    }

    /// Pages.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.page_lines * size_of::<Line>()
    }

    /// Adds a page, whose bytes mean nothing yet, and returns its index.
    ///
    /// # Panics
    /// If there are 2^32 pages already.
    pub fn push(&mut self) -> u32 {
        if self.len == self.slabs.len() * self.pages_per_slab {
            // Whole huge pages, where there is more than one.
            let mut n_bytes = self.pages_per_slab * self.page_bytes();
            if n_bytes > HUGE_PAGE {
                n_bytes = n_bytes.next_multiple_of(HUGE_PAGE);
            }
            let lines = Lines::zeroed(n_bytes / size_of::<Line>());
            self.slabs.push(lines.expect("a slab is some MiB, or one page"));
        }
        self.len += 1;
        u32::try_from(self.len - 1).expect("fewer than 2^32 pages")
    }

    /// Copies the bytes of page `from` to page `to`.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn copy(&mut self, from: u32, to: u32) {
        let ((from_slab, from), (to_slab, to)) = (self.place(from), self.place(to));
        let n = self.page_lines;
        if from_slab == to_slab {
            self.slabs[to_slab].copy_within(from..from + n, to);
        } else {
            let slabs = self.slabs.get_disjoint_mut([from_slab, to_slab]);
            let [source, copy] = slabs.expect("two slabs that exist");
            copy[to..to + n].copy_from_slice(&source[from..from + n]);
        }
    }

    /// The bytes of a page, to be kept elsewhere and given to [`page_mut`](Self::page_mut) of pages of the same shape.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn page(&self, page: u32) -> &[u8] {
        let (slab, at) = self.place(page);
        bytemuck::cast_slice(&self.slabs[slab][at..at + self.page_lines])
    }

    /// The same, to be written.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn page_mut(&mut self, page: u32) -> &mut [u8] {
        let (slab, at) = self.place(page);
        bytemuck::cast_slice_mut(&mut self.slabs[slab][at..at + self.page_lines])
    }

    fn place(&self, page: u32) -> (usize, usize) {
        assert!((page as usize) < self.len, "page {page} of {}", self.len);
        let page = page as usize;
        (page / self.pages_per_slab, page % self.pages_per_slab * self.page_lines)
    }

    /// Stores the keys `k` (`[n_kv_heads, dim_k]`) and values `v` (`[n_kv_heads, dim_v]`) of a
    /// layer at position `slot < 64` of a page.
    ///
    /// # Panics
    /// If a length does not fit, or there is no such page or slot.
    pub fn store(
        &mut self,
        isa: Isa,
        layer: &KvLayer,
        page: u32,
        slot: usize,
        k: &[f32],
        v: &[f32],
    ) {
        let KvLayer { n_kv_heads, dim_k, dim_v, tile_bytes, values_bytes, .. } = *layer;
        assert!(slot < PAGE_TOKENS, "slot {slot}");
        assert_eq!((k.len(), v.len()), (n_kv_heads * dim_k, n_kv_heads * dim_v), "keys and values");
        let (slab, at) = self.place(page);
        let lines = &mut self.slabs[slab][at..at + self.page_lines];
        let page: &mut [u8] = bytemuck::cast_slice_mut(lines);
        for head in 0..n_kv_heads {
            let tile = &mut page[layer.tile_start(head, slot / TILE)..][..tile_bytes];
            let k = &k[head * dim_k..(head + 1) * dim_k];
            with_kv!(layer.type_k, K => dispatch!(isa, store_key[K](tile, slot % TILE, k)));
            let values = &mut page[layer.values_start(head)..][..values_bytes];
            let v = &v[head * dim_v..(head + 1) * dim_v];
            with_kv!(layer.type_v, V => dispatch!(isa, store_value[V](values, slot, v)));
        }
    }
}

/// Values of a head that are rounded at a time.
const PIECE: usize = 4 * SCALED;

/// Stores a key in a tile; the other 15 stay.
#[inline(always)]
pub(crate) unsafe fn store_key<L: Lanes, E: Elem>(tile: &mut [u8], slot: usize, key: &[f32]) {
    let (tile_scales, tile) = tile.split_at_mut(scale_bytes::<E>(key.len(), TILE));
    let tile_scales: &mut [f16] = bytemuck::cast_slice_mut(tile_scales);
    let tile = &mut tile[..key.len().div_ceil(E::PER_LANE) * TILE * size_of::<E::Stored>()];
    let tile: &mut [E::Stored] = bytemuck::cast_slice_mut(tile);
    let mut piece = [bytemuck::Zeroable::zeroed(); PIECE];
    let mut scales = [f16::ZERO; PIECE / SCALED];
    for (i, key) in key.chunks(PIECE).enumerate() {
        let piece = &mut piece[..key.len().div_ceil(E::PER_LANE)];
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { E::encode::<L>(key, piece, &mut scales) };
        for (d, value) in piece.iter().enumerate() {
            tile[(i * PIECE / E::PER_LANE + d) * TILE + slot] = *value;
        }
        if E::SCALES {
            for (b, scale) in scales[..key.len().div_ceil(SCALED)].iter().enumerate() {
                tile_scales[(i * (PIECE / SCALED) + b) * TILE + slot] = *scale;
            }
        }
    }
}

/// Stores a value in its row of a page's values.
#[inline(always)]
pub(crate) unsafe fn store_value<L: Lanes, E: Elem>(values: &mut [u8], slot: usize, value: &[f32]) {
    let dim = value.len();
    let (scales, rows) = values.split_at_mut(scale_bytes::<E>(dim, PAGE_TOKENS));
    let row_bytes = dim.next_multiple_of(LANES) * size_of::<E::Stored>();
    let row = &mut rows[slot / E::PER_LANE * row_bytes..][..dim * size_of::<E::Stored>()];
    let n_scales = scale_bytes::<E>(dim, 1);
    let scales = &mut scales[slot * n_scales..(slot + 1) * n_scales];
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let (row, scales) = (bytemuck::cast_slice_mut(row), bytemuck::cast_slice_mut(scales));
        E::encode_in_lanes::<L>(value, slot % E::PER_LANE, row, scales);
    }
}
