//! What is timed: a way to multiply a matrix with one token, or just to read it.

use crate::kernels::{Activations, Block, Form, Kernel, Rows};
use hurtle_kernels::activations::QuantizedActivations;
use hurtle_kernels::matmul::Matrix;
use hurtle_kernels::packed::{self, Books, PackedMatrix, Product, matmul_packed};
use hurtle_kernels::{Exec, Isa, Pool};
use hurtle_quant::WeightType;
use memmap2::MmapMut;
use rayon::prelude::*;
use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::hint::black_box;
use std::ops::Range;

/// The pages that weights in the file's layout lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// 4 KiB, as a mapped file has them.
    Small,
    /// 2 MiB, as packed weights have them, where the system grants them.
    Huge,
}

/// In which order the blocks of a matrix are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Row after row, as they lie in memory.
    Rows,
    /// 256 KiB at a time, 8 blocks wide: the activations of a tile stay in L1 for all its rows.
    Tiles,
}

/// Blocks of 256 columns that a tile is wide.
const TILE_BLOCKS: usize = 8;
/// Bytes of a tile: a quarter of an L2 cache of 1 MiB.
const TILE_BYTES: usize = 256 << 10;

/// Who gives rows to threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dispatch {
    /// [`Pool`]: the caller works too, and workers spin between tasks.
    SpinPool,
    /// rayon: tasks are split in halves that idle threads steal.
    WorkStealing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Reads the weights, and adds them up as integers.
    Read(Pages),
    /// A kernel on the layout of the file.
    Plain { kernel: Kernel, order: Order, dispatch: Dispatch, pages: Pages },
    /// hurtle's own kernel on its packed layout.
    Packed(Isa),
}

impl Work {
    /// The form in which it takes activations.
    pub(crate) fn form(&self) -> Option<Form> {
        match self {
            Self::Read(_) => None,
            Self::Plain { kernel, .. } => Some(kernel.form),
            Self::Packed(_) => Some(Form::Q8K),
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = |pages: &Pages| match pages {
            Pages::Small => "",
            Pages::Huge => ", 2 MiB pages",
        };
        match self {
            Self::Read(huge) => write!(f, "plain reads{}", pages(huge)),
            Self::Plain { kernel, order, dispatch, pages: huge } => {
                write!(f, "Q4_K x {} {}", kernel.form, kernel.isa)?;
                if *order == Order::Tiles {
                    f.write_str(", L2 tiles")?;
                }
                if *dispatch == Dispatch::WorkStealing {
                    f.write_str(", work stealing")?;
                }
                if kernel.prefetch {
                    f.write_str(", prefetch")?;
                }
                f.write_str(pages(huge))
            }
            Self::Packed(isa) => write!(f, "packed {isa}"),
        }
    }
}

/// Copies of one matrix, so many that no cache holds them; taken one after the other, as decoding
/// takes the matrices of a model.
pub(crate) struct Weights {
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    /// Bytes of a copy.
    pub(crate) n_bytes: usize,
    pub(crate) n_copies: usize,
    small: MmapMut,
    huge: MmapMut,
    packed: Vec<PackedMatrix>,
    next: Cell<usize>,
}

/// `n_copies` copies of `bytes`, in such pages.
fn copies(bytes: &[u8], n_copies: usize, pages: Pages) -> std::io::Result<MmapMut> {
    let len = bytes.len().checked_mul(n_copies).ok_or(std::io::ErrorKind::OutOfMemory)?;
    let mut map = MmapMut::map_anon(len)?;
    #[cfg(target_os = "linux")]
    {
        let advice = match pages {
            Pages::Small => memmap2::Advice::NoHugePage,
            Pages::Huge => memmap2::Advice::HugePage,
        };
        // A kernel built without huge pages refuses both, and has small ones.
        match map.advise(advice) {
            Err(error) if error.kind() != std::io::ErrorKind::InvalidInput => return Err(error),
            _ => {}
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = pages;
    for copy in map.chunks_exact_mut(bytes.len()) {
        copy.copy_from_slice(bytes);
    }
    Ok(map)
}

/// Packs a matrix for hurtle's kernels.
pub(crate) fn pack(exec: Exec<'_>, matrix: &Matrix<'_>) -> Option<PackedMatrix> {
    PackedMatrix::pack(exec, &[*matrix], Books::LookedUp, &|_| {}, &|_| {})
}

/// Quantizes `x` (`[n_tokens, n_cols]`) for a packed matrix.
pub(crate) fn quantize(exec: Exec<'_>, x: &[f32], matrix: &PackedMatrix) -> QuantizedActivations {
    let mut quantized = QuantizedActivations::new();
    quantized.quantize(exec, x, [matrix]);
    quantized
}

/// The products of a packed matrix with tokens: `[n_tokens, n_rows]`.
pub(crate) fn multiply_packed(
    exec: Exec<'_>,
    matrix: &PackedMatrix,
    x: &QuantizedActivations,
    out: &mut [f32],
) {
    matmul_packed(
        exec,
        x,
        &[Product::new(packed::Weights::new(matrix, 0, None), 0..x.n_tokens(), out)],
    );
}

impl Weights {
    /// At least `n_bytes` of copies of the matrix in each layout.
    pub(crate) fn new(
        (n_rows, n_cols): (usize, usize),
        bytes: &[u8],
        n_bytes: usize,
        exec: Exec<'_>,
    ) -> Result<Self, Box<dyn Error>> {
        let matrix = Matrix::new(WeightType::Q4_K, n_rows, n_cols, bytes).ok_or("shape")?;
        let n_copies = n_bytes.div_ceil(bytes.len());
        let packed = (0..n_copies).map(|_| pack(exec, &matrix));
        Ok(Self {
            n_rows,
            n_cols,
            n_bytes: bytes.len(),
            n_copies,
            small: copies(bytes, n_copies, Pages::Small)?,
            huge: copies(bytes, n_copies, Pages::Huge)?,
            packed: packed.collect::<Option<_>>().ok_or("Q4_K has no integer kernel")?,
            next: Cell::new(0),
        })
    }

    /// The copy whose turn it is.
    fn turn(&self) -> usize {
        self.next.replace((self.next.get() + 1) % self.n_copies)
    }

    fn bytes(&self, pages: Pages, copy: usize) -> &[u8] {
        let map = match pages {
            Pages::Small => &self.small,
            Pages::Huge => &self.huge,
        };
        &map[copy * self.n_bytes..(copy + 1) * self.n_bytes]
    }
}

/// The threads of both kinds, the token, and room for the results.
pub(crate) struct Bench {
    pub(crate) pool: Pool,
    stealing: rayon::ThreadPool,
    pub(crate) x: Activations,
    quantized: QuantizedActivations,
    /// `[n_rows]`
    pub(crate) out: Vec<f32>,
}

/// Where threads write to, each to its own rows.
struct Outputs(*mut f32);
// SAFETY: `rows` hands out ranges that its caller promises to be disjoint.
unsafe impl Sync for Outputs {}

impl Outputs {
    /// # Safety
    /// The rows exist, and nobody else uses them.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's duty")]
    unsafe fn rows(&self, rows: Range<usize>) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(rows.start), rows.len()) }
    }
}

impl Bench {
    /// For the products of `weights` with `x` (`[n_cols]`) on up to `n_threads` threads.
    pub(crate) fn new(
        pool: Pool,
        weights: &Weights,
        x: Vec<f32>,
    ) -> Result<Self, rayon::ThreadPoolBuildError> {
        let stealing = rayon::ThreadPoolBuilder::new().num_threads(pool.n_threads()).build()?;
        let exec = Exec { isa: Isa::best(), pool: &pool, n_threads: 1 };
        let quantized = quantize(exec, &x, &weights.packed[0]);
        let out = vec![f32::NAN; weights.n_rows];
        Ok(Self { pool, stealing, x: Activations::new(x), quantized, out })
    }

    /// Does the work on the next copy of the weights. Every result overwrites `out`.
    pub(crate) fn run(&mut self, work: Work, n_threads: usize, weights: &Weights) {
        let copy = weights.turn();
        // As many pieces a thread as the packed kernels have.
        let chunk = weights.n_rows.div_ceil(8 * n_threads);
        match work {
            Work::Read(pages) => {
                let row = weights.n_bytes / weights.n_rows;
                let bytes = weights.bytes(pages, copy);
                self.pool.for_chunks(n_threads, weights.n_rows, chunk, |rows, _| {
                    black_box(add_up(&bytes[rows.start * row..rows.end * row]));
                });
            }
            Work::Plain { kernel, order, dispatch, pages } => {
                let row_blocks = weights.n_cols / 256;
                let (blocks, _) = weights.bytes(pages, copy).as_chunks::<144>();
                let x = &self.x;
                let multiply = |rows: Range<usize>, out: &mut [f32]| {
                    let blocks = &blocks[rows.start * row_blocks..rows.end * row_blocks];
                    multiply(kernel, order, blocks, row_blocks, x, out);
                };
                match dispatch {
                    Dispatch::SpinPool => {
                        let n_rows = self.out.len();
                        let out = Outputs(self.out.as_mut_ptr());
                        self.pool.for_chunks(n_threads, n_rows, chunk, |rows, _| {
                            // SAFETY: chunks are disjoint, and lie within the rows.
                            multiply(rows.clone(), unsafe { out.rows(rows) });
                        });
                    }
                    Dispatch::WorkStealing => self.stealing.install(|| {
                        let chunks = self.out.par_chunks_mut(chunk).enumerate();
                        chunks.for_each(|(i, out)| {
                            multiply(i * chunk..i * chunk + out.len(), out);
                        });
                    }),
                }
            }
            Work::Packed(isa) => {
                let exec = Exec { isa, pool: &self.pool, n_threads };
                multiply_packed(exec, &weights.packed[copy], &self.quantized, &mut self.out);
            }
        }
    }

    /// Hands tasks over that do nothing, one for each thread.
    pub(crate) fn run_nothing(&self, dispatch: Dispatch) {
        let n_threads = self.pool.n_threads();
        match dispatch {
            Dispatch::SpinPool => {
                self.pool.for_chunks(n_threads, n_threads, 1, |rows, _| _ = black_box(rows));
            }
            Dispatch::WorkStealing => self.stealing.install(|| {
                (0..n_threads).into_par_iter().for_each(|row| _ = black_box(row));
            }),
        }
    }
}

/// The products of some rows.
fn multiply(
    kernel: Kernel,
    order: Order,
    blocks: &[Block],
    row_blocks: usize,
    x: &Activations,
    out: &mut [f32],
) {
    out.fill(0.0);
    match order {
        Order::Rows => kernel.run(&Rows { blocks, row_blocks, columns: 0..row_blocks }, x, out),
        Order::Tiles => {
            let width = TILE_BLOCKS.min(row_blocks);
            let height = TILE_BYTES / (width * size_of::<Block>());
            for (blocks, out) in blocks.chunks(height * row_blocks).zip(out.chunks_mut(height)) {
                for start in (0..row_blocks).step_by(width) {
                    let columns = start..row_blocks.min(start + width);
                    kernel.run(&Rows { blocks, row_blocks, columns }, x, out);
                }
            }
        }
    }
}

/// Adds up bytes as numbers of 64 bits, and fetches them 2 KiB ahead, as the kernels do.
fn add_up(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    for line in bytes.as_chunks::<64>().0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: any address may be fetched, and every x86-64 processor can.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(2048).cast());
        }
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.iter().fold(0, |sum, x| sum.wrapping_add(*x))
}
