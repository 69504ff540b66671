//! Matrix tiles of 8-bit integers: Intel AMX.
//!
//! The intrinsics are not stable, so these are instructions. The compiler promises nothing about
//! tile registers between two `asm!`, so one block loads, multiplies and stores. It never touches
//! the configuration, which stays until it is released.

use crate::activations::SuperBlock;
use crate::packed::tiles::{Digits, Sums, TILE_TOKENS, Tiles};
use std::arch::asm;

/// The processor's tiles: 0 to 3 for sums, 4 and 5 for tokens, 6 and 7 for digits.
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
    /// Tiles for 1 to 32 tokens.
    fn new(n_tokens: usize) -> Self {
        let first = n_tokens.min(TILE_TOKENS) as u8;
        // A tile without rows may not be named, so that the second tiles have one at least.
        let second = n_tokens.saturating_sub(TILE_TOKENS).max(1) as u8;
        let digits = TILE_TOKENS as u8;
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        row_bytes[..8].fill(LINE as u16);
        let tiles = [first, first, second, second, first, second, digits, digits];
        rows[..8].copy_from_slice(&tiles);
        Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// Bytes between lines.
const LINE: usize = 64;

impl Tiles for Amx {
    #[inline(always)]
    unsafe fn configure(n_tokens: usize) {
        let config = Config::new(n_tokens);
        // SAFETY: the caller has AMX; the configuration is valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) }
    }

    #[inline(always)]
    unsafe fn release() {
        // SAFETY: the caller has AMX.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }

    #[inline(always)]
    unsafe fn multiply(tokens: &[SuperBlock], digits: &Digits, sums: &mut Sums) {
        /// Loads what 64 values need, and multiplies it.
        macro_rules! step {
            (one $k:literal) => {
                concat!(
                    "tileloadd tmm4, [{first} + {token}*1 + 64*", $k, "]\n",
                    "tileloadd tmm6, [{digits} + {line}*1 + 1024*", $k, "]\n",
                    "tileloadd tmm7, [{digits} + {line}*1 + 4096 + 1024*", $k, "]\n",
                    "tdpbssd tmm0, tmm4, tmm6\n",
                    "tdpbssd tmm1, tmm4, tmm7\n",
                )
            };
            (two $k:literal) => {
                concat!(
                    step!(one $k),
                    "tileloadd tmm5, [{second} + {token}*1 + 64*", $k, "]\n",
                    "tdpbssd tmm2, tmm5, tmm6\n",
                    "tdpbssd tmm3, tmm5, tmm7\n",
                )
            };
        }
        let first = tokens.as_ptr();
        // SAFETY: the caller has AMX, configured for as many tokens as there are: a row is 64 of
        // the quants at the start of a token, or a line of the digits or of the sums.
        unsafe {
            if tokens.len() <= TILE_TOKENS {
                asm!(
                    "tilezero tmm0", "tilezero tmm1",
                    step!(one 0), step!(one 1), step!(one 2), step!(one 3),
                    "tilestored [{sums} + {line}*1], tmm0",
                    "tilestored [{sums} + {line}*1 + 1024], tmm1",
                    first = in(reg) first,
                    token = in(reg) size_of::<SuperBlock>(),
                    digits = in(reg) digits.as_ptr(),
                    line = in(reg) LINE,
                    sums = in(reg) &raw mut *sums,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            } else {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    step!(two 0), step!(two 1), step!(two 2), step!(two 3),
                    "tilestored [{sums} + {line}*1], tmm0",
                    "tilestored [{sums} + {line}*1 + 1024], tmm1",
                    "tilestored [{sums} + {line}*1 + 2048], tmm2",
                    "tilestored [{sums} + {line}*1 + 3072], tmm3",
                    first = in(reg) first,
                    second = in(reg) first.add(TILE_TOKENS),
                    token = in(reg) size_of::<SuperBlock>(),
                    digits = in(reg) digits.as_ptr(),
                    line = in(reg) LINE,
                    sums = in(reg) &raw mut *sums,
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

/// Products of whole tiles with nothing to load or to store: `rounds`, at least one, of four that
/// do not wait for each other.
///
/// # Safety
/// AMX is present.
pub(crate) unsafe fn products(rounds: usize) {
    let config = Config::new(2 * TILE_TOKENS);
    // SAFETY: the caller has AMX; the configuration is valid.
    unsafe {
        asm!(
            "ldtilecfg [{config}]", // the tiles are zeros now
            "2:",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "sub {rounds}, 1",
            "ja 2b",
            "tilerelease",
            config = in(reg) &raw const config,
            rounds = inout(reg) rounds.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }
}
