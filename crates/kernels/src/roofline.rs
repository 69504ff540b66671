//! What this machine can do at most: how fast its memory can be read, how fast its processors
//! multiply and add. The two lines of a roofline, measured with the same loads and the same
//! instructions that the kernels use.
//!
//! ```text
//! ops/s │        ┌──────────  products of the instruction set, operands in L1
//!       │      ╱
//!       │    ╱   ops/byte x bytes/s of a buffer that no cache holds
//!       │  ╱
//!       └───────────────────  ops/byte
//! ```
//!
//! Other work on the machine only ever makes a measurement smaller, so each is the best of several.

use crate::Exec;
use crate::arch::{IntLanes, LANES, Lanes, dispatch, dispatch_int};
use crate::kv::{Elem, KvType, with_kv};
use crate::memory::{Line, Lines};
use crate::share::Shared;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How far ahead the reading threads prefetch, in lines: which distance is best depends on the
/// processor, and 0 leaves it to the hardware.
const PREFETCH_LINES: [usize; 3] = [0, 16, 64];
/// How long passes are repeated for each distance. The first pass is always finished.
const READ_TIME: Duration = Duration::from_millis(100);
/// A piece of the buffer that a thread takes: a huge page.
const PIECE_LINES: usize = (2 << 20) / size_of::<Line>();
/// A page of the system, or a part of one.
const PAGE_LINES: usize = 4096 / size_of::<Line>();

/// Tokens of the register tiles that are tried: few would wait for the latency of the
/// instructions, and many do not fit every register file. The last is the largest.
const TILES: [usize; 4] = [4, 6, 8, 12];
/// How often each tile is measured, and how long: a window is shorter than what a scheduler gives to other
/// processes, so that some lie where all threads have a processor to themselves.
const WINDOWS: usize = 32;
const WINDOW: Duration = Duration::from_millis(1);
/// Lines of weights that are multiplied over and over, 4 KiB.
const TILE_LINES: usize = 64;
/// Lines whose products are added up before they leave the narrow sums, as in Q4_K.
const GROUP_LINES: usize = 8;
/// Passes over them between two looks at the clock.
const ROUNDS: usize = 10;
/// Rounds of AMX's products, which have to be configured before.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const TILE_ROUNDS: usize = 100;

/// What some threads of this machine reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofline {
    /// Bytes a second read from memory.
    pub read_bytes: f64,
    /// Multiplications and additions a second of 8-bit integers, as in the products of packed
    /// weights.
    pub integer_ops: f64,
    /// Multiplications and additions a second of f32, as in the exact products.
    pub float_ops: f64,
}

/// A buffer to read, in huge pages where the system gives them.
pub struct Probe {
    lines: Lines,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("n_bytes", &self.n_bytes()).finish()
    }
}

impl Probe {
    /// A buffer of `n_bytes` (rounded up to pages of 4 KiB, and at least one), which should be several times
    /// the size of the last cache. Its memory is taken at once, on `exec`'s threads.
    ///
    /// `None` if the size overflows. Where memory is short, this ends the process as any other
    /// allocation does.
    pub fn new(exec: Exec<'_>, n_bytes: usize) -> Option<Self> {
        let n_lines =
            n_bytes.div_ceil(size_of::<Line>()).max(1).checked_next_multiple_of(PAGE_LINES)?;
        let mut lines = Lines::zeroed(n_lines)?;
        let shared = Shared::new(&mut lines[..]);
        // Pages that were never written are one and the same page of zeros.
        exec.for_chunks(n_lines / PAGE_LINES, PIECE_LINES / PAGE_LINES, |pages, _| {
            for page in pages {
                // SAFETY: each page is visited once.
                let first = unsafe { shared.range(page * PAGE_LINES, 1) };
                first[0] = Line([1; 64]);
            }
        });
        Some(Self { lines })
    }

    /// Bytes of the buffer.
    pub fn n_bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// Measures what `exec`'s threads reach with its instruction set: for about half a second, or
    /// three passes over the buffer if they take longer.
    pub fn measure(&self, exec: Exec<'_>) -> Roofline {
        Roofline {
            read_bytes: PREFETCH_LINES
                .map(|ahead| self.read(exec, ahead))
                .into_iter()
                .fold(0.0, f64::max),
            integer_ops: tile_ops(exec).max(peak(exec, &|operands, tile| {
                black_box(dispatch_int!(exec.isa, integer_products(operands, tile, ROUNDS)));
                // A dword of each lane is 4 products.
                2 * 4 * LANES * tile * TILE_LINES * ROUNDS
            })),
            float_ops: peak(exec, &|operands, tile| {
                black_box(dispatch_int!(exec.isa, float_products(operands, tile, ROUNDS)));
                2 * LANES * tile * TILE_LINES * ROUNDS
            }),
        }
    }

    /// Bytes a second of the fastest pass over the buffer.
    fn read(&self, exec: Exec<'_>, ahead: usize) -> f64 {
        let mut fastest = Duration::MAX;
        let start = Instant::now();
        while fastest == Duration::MAX || start.elapsed() < READ_TIME {
            let pass = Instant::now();
            exec.for_chunks(self.lines.len(), PIECE_LINES, |piece, _| {
                black_box(dispatch_int!(exec.isa, read_lines(&self.lines[piece], ahead)));
            });
            fastest = fastest.min(pass.elapsed());
        }
        self.n_bytes() as f64 / fastest.as_secs_f64().max(1e-9)
    }
}

/// Multiplications and additions a second that `exec`'s threads reach as attention does them over keys and
/// values of some type, in heads that are whole tiles where there are tiles: of f32, fused, or of bf16.
pub fn attention_ops(exec: Exec<'_>, ty: KvType) -> f64 {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if exec.isa.has_tiles() && ty == KvType::BF16 {
        use crate::arch::amx;
        return peak(exec, &|_, _| {
            // SAFETY: `Isa::has_tiles` proves that the processor has them.
            unsafe { amx::pair_products(TILE_ROUNDS) };
            amx::PAIR_ROUND_OPS * TILE_ROUNDS
        });
    }
    with_kv!(ty, E => peak(exec, &|operands, tile| {
        black_box(dispatch!(exec.isa, attention_products[E](operands, tile, ROUNDS)));
        2 * E::PER_LANE * LANES * tile * TILE_LINES * ROUNDS
    }))
}

/// Multiplications and additions a second by tiles, 0 without them.
fn tile_ops(exec: Exec<'_>) -> f64 {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if exec.isa.has_tiles() {
        use crate::arch::amx;
        return peak(exec, &|_, _| {
            // SAFETY: `Isa::has_tiles` proves that the processor has them.
            unsafe { amx::products(TILE_ROUNDS) };
            amx::ROUND_OPS * TILE_ROUNDS
        });
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    let _ = exec;
    0.0
}

/// Operations a second that all threads together reach with `f`, which is given each of [`TILES`] and tells how
/// many operations a call did: in the best window of time. The tiles take turns, so that nothing that
/// lasts longer than a window falls on one of them alone.
fn peak(exec: Exec<'_>, f: &(dyn Fn(&Operands, usize) -> usize + Sync)) -> f64 {
    let operands = Operands::new();
    let window = |tile| {
        let ops = AtomicU64::new(0);
        let start = Instant::now();
        exec.pool.run(exec.n_threads, |_| {
            let mut mine = 0;
            while mine == 0 || start.elapsed() < WINDOW {
                mine += f(&operands, tile) as u64;
            }
            ops.fetch_add(mine, Ordering::Relaxed);
        });
        ops.into_inner() as f64 / start.elapsed().as_secs_f64().max(1e-9)
    };
    (0..WINDOWS).flat_map(|_| TILES).map(window).fold(0.0, f64::max)
}

/// A panel of weights and the activations that it meets, small enough for L1.
pub(crate) struct Operands {
    /// 4 weights of 16 rows in each line.
    lines: [Line; TILE_LINES],
    /// `[TILE_LINES, tokens]`, 4 activations in each.
    dwords: [[u32; TILES[3]]; TILE_LINES],
    /// A weight of 16 rows in each.
    rows: [[f32; LANES]; TILE_LINES],
    /// `[TILE_LINES, tokens]`, and one more.
    floats: [[f32; TILES[3] + 1]; TILE_LINES],
}

impl Operands {
    fn new() -> Self {
        let byte = |k: usize, i: usize| ((k * 37 + i * 11) % 128) as u8;
        let float = |k: usize, i: usize| f32::from(byte(k, i)) / 64.0;
        Self {
            // From 0 to 15, as weights of 4 bits have them.
            lines: std::array::from_fn(|k| Line(std::array::from_fn(|i| byte(k, i) % 16))),
            dwords: std::array::from_fn(|k| {
                std::array::from_fn(|t| {
                    u32::from_le_bytes(std::array::from_fn(|i| byte(k + i, t).wrapping_sub(64)))
                })
            }),
            rows: std::array::from_fn(|k| std::array::from_fn(|i| float(k, i))),
            floats: std::array::from_fn(|k| std::array::from_fn(|t| float(k, t + 1))),
        }
    }
}

/// Reads `lines`, prefetching those `ahead` lines further on; the bits that are set in any of them.
///
/// # Safety
/// The lanes' instruction set is present.
#[inline(always)]
pub(crate) unsafe fn read_lines<L: IntLanes>(lines: &[Line], ahead: usize) -> [f32; LANES] {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut bits = [L::splat(0); 4];
        let (quads, rest) = lines.as_chunks::<4>();
        for quad in quads {
            for i in 0..4 {
                if ahead > 0 {
                    L::Floats::prefetch(quad.as_ptr().wrapping_add(i + ahead).cast());
                }
                bits[i] = bits[i].or(L::load(&quad[i]));
            }
        }
        for line in rest {
            bits[0] = bits[0].or(L::load(line));
        }
        bits[0].or(bits[1]).or(bits[2].or(bits[3])).as_floats().to_array()
    }
}

/// Evaluates `$body` with `$T` as the tokens of a tile, one of [`TILES`].
macro_rules! by_tile {
    ($tokens:expr, $T:ident => $body:expr) => {
        by_tile!(@match $tokens, $T, $body, 4, 6, 8; 12)
    };
    (@match $tokens:expr, $T:ident, $body:expr, $($n:literal),+; $last:literal) => {
        match $tokens {
            $($n => {
                const $T: usize = $n;
                $body
            })+
            _ => {
                const $T: usize = $last;
                $body
            }
        }
    };
}

/// The sum of the products of each lane, for a tile of `tokens` (one of [`TILES`]), `rounds` times.
///
/// # Safety
/// The lanes' instruction set is present.
#[inline(always)]
pub(crate) unsafe fn integer_products<L: IntLanes>(
    operands: &Operands,
    tokens: usize,
    rounds: usize,
) -> [f32; LANES] {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe { by_tile!(tokens, T => integer_tile::<L, T>(operands, rounds)) }
}

/// The inner loop of packed products.
#[inline(always)]
unsafe fn integer_tile<L: IntLanes, const T: usize>(
    operands: &Operands,
    rounds: usize,
) -> [f32; LANES] {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut totals = [L::splat(0); T];
        for _ in 0..rounds {
            for first in (0..TILE_LINES).step_by(GROUP_LINES) {
                let mut sums = [L::no_sums(); T];
                for k in first..first + GROUP_LINES {
                    let w = L::load(&operands.lines[k]);
                    for (sum, x) in sums.iter_mut().zip(operands.dwords[k]) {
                        *sum = L::dot(*sum, w, x);
                        L::pin_sums(sum);
                    }
                }
                for t in 0..T {
                    totals[t] = totals[t].add_sums(sums[t]);
                }
            }
        }
        for t in 1..T {
            totals[0] = totals[0].add(totals[t]);
        }
        totals[0].as_floats().to_array()
    }
}

/// As [`integer_products`], of f32.
///
/// # Safety
/// The lanes' instruction set is present.
#[inline(always)]
pub(crate) unsafe fn float_products<L: Lanes>(
    operands: &Operands,
    tokens: usize,
    rounds: usize,
) -> [f32; LANES] {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe { by_tile!(tokens, T => float_tile::<L, T>(operands, rounds)) }
}

/// The inner loop of exact products.
#[inline(always)]
unsafe fn float_tile<L: Lanes, const T: usize>(operands: &Operands, rounds: usize) -> [f32; LANES] {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut sums = [L::splat(0.0); T];
        for _ in 0..rounds {
            for k in 0..TILE_LINES {
                let w = L::load(&operands.rows[k]);
                for (sum, x) in sums.iter_mut().zip(operands.floats[k]) {
                    *sum = sum.add(w.mul(L::splat(x)));
                }
            }
        }
        for t in 1..T {
            sums[0] = sums[0].add(sums[t]);
        }
        sums[0].to_array()
    }
}

/// As [`float_products`], of lanes as attention loads them, with factors.
///
/// # Safety
/// The lanes' instruction set is present.
#[inline(always)]
pub(crate) unsafe fn attention_products<L: Lanes, E: Elem>(
    operands: &Operands,
    tokens: usize,
    rounds: usize,
) -> [f32; LANES] {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe { by_tile!(tokens, T => attention_tile::<L, E, T>(operands, rounds)) }
}

/// The inner loop of attention.
#[inline(always)]
unsafe fn attention_tile<L: Lanes, E: Elem, const T: usize>(
    operands: &Operands,
    rounds: usize,
) -> [f32; LANES] {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut sums = [[L::splat(0.0)]; T];
        for _ in 0..rounds {
            for k in 0..TILE_LINES {
                let lanes = [L::load(&operands.rows[k])];
                for (t, sum) in sums.iter_mut().enumerate() {
                    E::Loaded::add_products(sum, &lanes, &operands.floats[k][t..], 0);
                }
            }
        }
        for t in 1..T {
            sums[0][0] = sums[0][0].add(sums[t][0]);
        }
        sums[0][0].to_array()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, Pool};

    /// Calls `f` for every instruction set of this machine.
    fn for_each_isa(f: impl Fn(Isa)) {
        Isa::available().into_iter().for_each(f);
    }

    #[test]
    fn every_line_is_read() {
        for_each_isa(|isa| {
            for n in [0, 1, 3, 4, 5, 8, 63] {
                for ahead in PREFETCH_LINES {
                    for set in 0..n {
                        let mut lines = vec![Line([0; 64]); n];
                        lines[set].0 = std::array::from_fn(|i| i as u8);
                        let bits = dispatch_int!(isa, read_lines(&lines, ahead));
                        assert_eq!(*bytemuck::bytes_of(&bits), lines[set].0, "{isa}: {set} of {n}");
                    }
                }
            }
        });
    }

    #[test]
    fn all_products_are_computed() {
        let operands = Operands::new();
        let signed = |x: u32, i: usize| i32::from(x.to_le_bytes()[i] as i8);
        for_each_isa(|isa| {
            for (tokens, rounds) in TILES.map(|tile| [(tile, 1), (tile, 3)]).concat() {
                let mut integers = [0; LANES];
                let mut floats = [0.0; LANES];
                for k in 0..TILE_LINES {
                    for (lane, t) in (0..LANES).flat_map(|lane| (0..tokens).map(move |t| (lane, t)))
                    {
                        for i in 0..4 {
                            let w = i32::from(operands.lines[k].0[4 * lane + i]);
                            integers[lane] += rounds * w * signed(operands.dwords[k][t], i);
                        }
                        let product = operands.rows[k][lane] * operands.floats[k][t];
                        floats[lane] += f64::from(product) * f64::from(rounds);
                    }
                }
                let found =
                    dispatch_int!(isa, integer_products(&operands, tokens, rounds as usize));
                assert_eq!(found.map(|x| x.to_bits() as i32), integers, "{isa}, {tokens} tokens");
                let rounds = rounds as usize;
                let plain = dispatch_int!(isa, float_products(&operands, tokens, rounds));
                let fused = dispatch!(isa, attention_products[f32](&operands, tokens, rounds));
                for (found, expected) in
                    [plain, fused].into_iter().flat_map(|x| x.into_iter().zip(floats))
                {
                    assert!((f64::from(found) / expected - 1.0).abs() < 1e-4, "{isa}: {found}");
                }
                let pairs =
                    dispatch!(isa, attention_products[half::bf16](&operands, tokens, rounds));
                assert!(pairs.iter().all(|sum| sum.is_finite() && *sum > 0.0), "{isa}: {pairs:?}");
            }
        });
    }

    #[test]
    fn every_set_of_threads_is_measured() {
        let pool = Pool::new(2).unwrap();
        for n_threads in [1, 2] {
            let exec = Exec { isa: Isa::best(), pool: &pool, n_threads };
            let probe = Probe::new(exec, 3 << 20).unwrap();
            assert_eq!(probe.n_bytes(), 3 << 20);
            let Roofline { read_bytes, integer_ops, float_ops } = probe.measure(exec);
            let [f32_ops, bf16_ops] = [KvType::F32, KvType::BF16].map(|ty| attention_ops(exec, ty));
            for rate in [read_bytes, integer_ops, float_ops, f32_ops, bf16_ops] {
                assert!(rate.is_finite() && rate > 0.0, "{rate}");
            }
        }
        let exec = Exec { isa: Isa::scalar(), pool: &pool, n_threads: 1 };
        assert_eq!(Probe::new(exec, 0).unwrap().n_bytes(), 4096);
        assert!(Probe::new(exec, usize::MAX).is_none());
    }
}
