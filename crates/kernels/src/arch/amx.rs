//! Matrix tiles of 8-bit integers, and of pairs of bf16: Intel AMX.
//!
//! The intrinsics are not stable, so these are instructions. Sums stay in tile registers from one `asm!` to
//! the next: nothing else names a tile, since no function is compiled with AMX among its features, and the
//! system keeps them for each thread.

use crate::attention::tiles::{PairTiles, Products};
use crate::memory::Line;
use crate::packed::tiles::{Sums, TILE_TOKENS, Tiles};
use std::arch::asm;

/// The processor's tiles: 0 to 3 for sums, 4 and 5 for tokens, 6 and 7 for weights.
pub(crate) struct Amx;

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<Config>() == 64);

impl Config {
    /// Tiles for 1 to 32 tokens and `depth` values: rows of tokens as long, and a row of weights for each 4.
    fn new(n_tokens: usize, depth: usize) -> Self {
        let first = n_tokens.min(TILE_TOKENS) as u8;
        // A tile without rows may not be named, so that the second tiles have one at least.
        let second = n_tokens.saturating_sub(TILE_TOKENS).max(1) as u8;
        let weights = (depth / 4) as u8;
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        row_bytes[..8].fill(LINE as u16);
        row_bytes[4..6].fill(depth as u16);
        let tiles = [first, first, second, second, first, second, weights, weights];
        rows[..8].copy_from_slice(&tiles);
        Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// Bytes between lines.
const LINE: usize = 64;

impl Tiles for Amx {
    #[inline(always)]
    unsafe fn configure(n_tokens: usize, depth: usize) {
        let config = Config::new(n_tokens, depth);
        // SAFETY: the caller has AMX; the configuration is valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) }
    }

    #[inline(always)]
    unsafe fn release() {
        // SAFETY: the caller has AMX.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }

    #[inline(always)]
    unsafe fn start(n_tokens: usize) {
        // SAFETY: the caller has AMX, configured for as many tokens.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1",
                out("tmm0") _, out("tmm1") _,
                options(nostack, nomem, preserves_flags),
            );
            if n_tokens > TILE_TOKENS {
                asm!(
                    "tilezero tmm2", "tilezero tmm3",
                    out("tmm2") _, out("tmm3") _,
                    options(nostack, nomem, preserves_flags),
                );
            }
        }
    }

    #[inline(always)]
    unsafe fn load_tokens<A>(tokens: &[A], at: usize) {
        let first = tokens.as_ptr().cast::<u8>().wrapping_add(at);
        // SAFETY: the caller has AMX, configured for as many tokens as there are; a row lies within each.
        unsafe {
            asm!(
                "tileloadd tmm4, [{first} + {token}*1]",
                first = in(reg) first,
                token = in(reg) size_of::<A>(),
                out("tmm4") _,
                options(nostack, readonly, preserves_flags),
            );
            if tokens.len() > TILE_TOKENS {
                asm!(
                    "tileloadd tmm5, [{second} + {token}*1]",
                    second = in(reg) first.wrapping_add(TILE_TOKENS * size_of::<A>()),
                    token = in(reg) size_of::<A>(),
                    out("tmm5") _,
                    options(nostack, readonly, preserves_flags),
                );
            }
        }
    }

    #[inline(always)]
    unsafe fn add_products<const S: usize>(n_tokens: usize, weights: &[Line]) {
        // SAFETY: the caller has AMX, configured for as many tokens, and rows of weights as there are lines.
        unsafe {
            asm!(
                "tileloadd tmm{weights}, [{lines} + {line}*1]",
                "tdpbssd tmm{sums}, tmm4, tmm{weights}",
                lines = in(reg) weights.as_ptr(),
                line = in(reg) LINE,
                weights = const 6 + S,
                sums = const S,
                out("tmm0") _, out("tmm1") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
            if n_tokens > TILE_TOKENS {
                asm!(
                    "tdpbssd tmm{sums}, tmm5, tmm{weights}",
                    weights = const 6 + S,
                    sums = const 2 + S,
                    out("tmm2") _, out("tmm3") _,
                    options(nostack, nomem, preserves_flags),
                );
            }
        }
    }

    #[inline(always)]
    unsafe fn finish(n_tokens: usize, sums: &mut Sums) {
        // SAFETY: the caller has AMX, configured for as many tokens; there are 64 rows.
        unsafe {
            asm!(
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 1024], tmm1",
                sums = in(reg) &raw mut *sums,
                line = in(reg) LINE,
                options(nostack, preserves_flags),
            );
            if n_tokens > TILE_TOKENS {
                asm!(
                    "tilestored [{sums} + {line}*1 + 2048], tmm2",
                    "tilestored [{sums} + {line}*1 + 3072], tmm3",
                    sums = in(reg) &raw mut *sums,
                    line = in(reg) LINE,
                    options(nostack, preserves_flags),
                );
            }
        }
    }
}

/// Tiles 0 to 3 for sums, 4 and 5 for rows, 6 and 7 for columns; all products of a call in one go.
impl PairTiles for Amx {
    #[inline(always)]
    unsafe fn configure(n_rows: usize) {
        // SAFETY: the caller has AMX.
        unsafe { <Self as Tiles>::configure(n_rows, LINE) }
    }

    #[inline(always)]
    unsafe fn release() {
        // SAFETY: the caller has AMX.
        unsafe { <Self as Tiles>::release() }
    }

    #[inline(always)]
    unsafe fn multiply(n_rows: usize, products: Products<'_>) {
        let Products { rows, row_stride, steps, line_stride, other_columns, sums, sum_stride } =
            products;
        let (row_stride, sum_stride) = (4 * row_stride, 4 * sum_stride);
        let range = steps.as_ptr_range();
        // SAFETY: the caller has AMX, configured for as many rows; the pointers lead to as many. There is a
        // step at least.
        unsafe {
            if n_rows <= TILE_TOKENS {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "2:",
                    "mov {columns}, [{step}]",
                    "tileloadd tmm4, [{rows} + {row_stride}*1]",
                    "tileloadd tmm6, [{columns} + {line_stride}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "add {columns}, {other_columns}",
                    "tileloadd tmm7, [{columns} + {line_stride}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {rows}, 64",
                    "add {step}, 8",
                    "cmp {step}, {end}",
                    "jb 2b",
                    "tilestored [{sums} + {sum_stride}*1], tmm0",
                    "tilestored [{sums} + {sum_stride}*1 + 64], tmm1",
                    columns = out(reg) _,
                    step = inout(reg) range.start => _,
                    end = in(reg) range.end,
                    rows = inout(reg) rows => _,
                    row_stride = in(reg) row_stride,
                    line_stride = in(reg) line_stride,
                    other_columns = in(reg) other_columns,
                    sums = in(reg) sums,
                    sum_stride = in(reg) sum_stride,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "mov {columns}, [{step}]",
                    "tileloadd tmm4, [{rows} + {row_stride}*1]",
                    "tileloadd tmm6, [{columns} + {line_stride}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "add {columns}, {other_columns}",
                    "tileloadd tmm7, [{columns} + {line_stride}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{others} + {row_stride}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {rows}, 64",
                    "add {others}, 64",
                    "add {step}, 8",
                    "cmp {step}, {end}",
                    "jb 2b",
                    "tilestored [{sums} + {sum_stride}*1], tmm0",
                    "tilestored [{sums} + {sum_stride}*1 + 64], tmm1",
                    "tilestored [{other_sums} + {sum_stride}*1], tmm2",
                    "tilestored [{other_sums} + {sum_stride}*1 + 64], tmm3",
                    columns = out(reg) _,
                    step = inout(reg) range.start => _,
                    end = in(reg) range.end,
                    rows = inout(reg) rows => _,
                    others = inout(reg) rows.wrapping_byte_add(TILE_TOKENS * row_stride) => _,
                    row_stride = in(reg) row_stride,
                    line_stride = in(reg) line_stride,
                    other_columns = in(reg) other_columns,
                    sums = in(reg) sums,
                    other_sums = in(reg) sums.wrapping_byte_add(TILE_TOKENS * sum_stride),
                    sum_stride = in(reg) sum_stride,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}

/// Multiplications and additions of a round of [`products`].
pub(crate) const ROUND_OPS: usize = 4 * 2 * TILE_TOKENS * 16 * LINE;

/// Those of a round of [`pair_products`].
pub(crate) const PAIR_ROUND_OPS: usize = ROUND_OPS / 2;

/// Runs an instruction on whole tiles with nothing to load or to store: some rounds, at least one, of four
/// that do not wait for each other.
macro_rules! rounds {
    ($multiply:literal, $rounds:expr) => {{
        let config = Config::new(2 * TILE_TOKENS, LINE);
        asm!(
            "ldtilecfg [{config}]", // the tiles are zeros now
            "2:",
            concat!($multiply, " tmm0, tmm4, tmm6"),
            concat!($multiply, " tmm1, tmm4, tmm7"),
            concat!($multiply, " tmm2, tmm5, tmm6"),
            concat!($multiply, " tmm3, tmm5, tmm7"),
            "sub {rounds}, 1",
            "ja 2b",
            "tilerelease",
            config = in(reg) &raw const config,
            rounds = inout(reg) $rounds.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }};
}

/// `rounds` of products of 8-bit integers.
///
/// # Safety
/// AMX is present.
pub(crate) unsafe fn products(rounds: usize) {
    // SAFETY: the caller has AMX; the configuration is valid.
    unsafe { rounds!("tdpbssd", rounds) }
}

/// `rounds` of products of pairs of bf16.
///
/// # Safety
/// AMX is present.
pub(crate) unsafe fn pair_products(rounds: usize) {
    // SAFETY: as above.
    unsafe { rounds!("tdpbf16ps", rounds) }
}
