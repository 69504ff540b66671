//! Random blocks of every weight type.
//!
//! The bits of a block are random, all but its scales: those are set so that the values have the
//! standard deviation asked for. What a scale of 1 gives is measured on a few blocks rather than
//! known for each type. Where codes lie to one side of 0, minima move them, and the sign of the
//! scale is random, so that the mean of many blocks is 0.
//!
//! ```text
//!            seed, name, number of the chunk
//!                          │
//!  threads   fill chunk 0, 1, 2 ... of batch i + 1      every chunk has a seed of its own,
//!  caller    write batch i                              so who fills it makes no difference
//! ```

use hurtle_quant::{WeightType, dequantize, quantize};
use std::io::{self, Write};
use std::ops::Range;

/// Where the scale of a block is.
#[derive(Debug, Clone)]
enum ScaleAt {
    /// No blocks: single numbers.
    Number,
    /// f16 at these bytes, each with its factor.
    F16(&'static [(usize, f32)]),
    /// One byte of exponent, or of exponent and mantissa, at each of these bytes.
    Code(Range<usize>),
    /// The four upper bits of four 16-bit words from this byte on make an f16.
    Nibbles(usize),
}

/// THE table: where each weight type has its scale. A minimum `m` of `d * q - m` is set to the mean
/// of `d * q` over random codes.
fn scale_at(ty: WeightType) -> Option<ScaleAt> {
    use WeightType::*;
    Some(match ty {
        F32 | F16 | BF16 => ScaleAt::Number,
        Q1_0 | Q2_0 | Q4_0 | Q5_0 | Q8_0 => ScaleAt::F16(&[(0, 1.0)]),
        IQ1_S | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_NL | IQ4_XS => {
            ScaleAt::F16(&[(0, 1.0)])
        }
        Q4_1 => ScaleAt::F16(&[(0, 1.0), (2, -7.5)]),
        Q5_1 => ScaleAt::F16(&[(0, 1.0), (2, -15.5)]),
        Q2_K => ScaleAt::F16(&[(80, 1.0), (82, 1.5)]),
        Q3_K => ScaleAt::F16(&[(108, 1.0)]),
        Q4_K => ScaleAt::F16(&[(0, 1.0), (2, 7.5)]),
        Q5_K => ScaleAt::F16(&[(0, 1.0), (2, 15.5)]),
        Q6_K => ScaleAt::F16(&[(208, 1.0)]),
        TQ1_0 => ScaleAt::F16(&[(52, 1.0)]),
        TQ2_0 => ScaleAt::F16(&[(64, 1.0)]),
        IQ1_M => ScaleAt::Nibbles(48),
        MXFP4 => ScaleAt::Code(0..1),
        NVFP4 => ScaleAt::Code(0..4),
        _ => return None,
    })
}

/// Whether blocks of this type can be made.
pub(crate) fn is_known(ty: WeightType) -> bool {
    scale_at(ty).is_some()
}

/// A tensor's blocks.
#[derive(Debug)]
pub(crate) struct Blocks {
    ty: WeightType,
    scale: Scale,
    /// Of this tensor.
    seed: u64,
}

/// What is written into a block, and where.
#[derive(Debug, Clone)]
enum Scale {
    /// Uniform numbers below this in absolute value, in place of blocks.
    Number(f32),
    /// f16 without their signs: byte, bits.
    F16(Vec<(usize, u16)>),
    Code(Range<usize>, u8),
    Nibbles(usize, u16),
}

/// Bytes that have a seed of their own, about.
const CHUNK: usize = 1 << 18;
/// Chunks that are filled while others are written.
const CHUNKS_A_BATCH: usize = 64;

impl Blocks {
    /// Blocks of `ty`, a known one, of standard deviation `sd`. `name` keeps tensors apart.
    pub(crate) fn new(ty: WeightType, sd: f64, seed: u64, name: &str) -> Self {
        // FNV-1a.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { ty, scale: Scale::new(ty, sd), seed: mix(seed ^ mix(hash)) }
    }

    /// Writes `n_bytes`, whole blocks, made by `threads`. `advance` hears how many bytes were
    /// written each time, and may fail.
    pub(crate) fn write(
        &self,
        n_bytes: u64,
        threads: usize,
        out: &mut dyn Write,
        advance: &dyn Fn(usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let chunk_bytes = CHUNK - CHUNK % self.ty.block_bytes();
        let batch_bytes = chunk_bytes * CHUNKS_A_BATCH;
        let batch_len = |i: u64| {
            let rest = n_bytes.saturating_sub(i * batch_bytes as u64);
            usize::try_from(rest).map_or(batch_bytes, |rest| rest.min(batch_bytes))
        };
        let (mut ready, mut next) = (Vec::new(), Vec::new());
        for i in 0.. {
            // In round i, batch i is filled and batch i - 1 written.
            next.resize(batch_len(i), 0);
            if ready.is_empty() && next.is_empty() {
                break;
            }
            let n_chunks = next.len().div_ceil(chunk_bytes);
            let mut chunks = next.chunks_mut(chunk_bytes).enumerate();
            let a_thread = n_chunks.div_ceil(threads.max(1)).max(1);
            std::thread::scope(|scope| {
                for _ in 0..n_chunks.div_ceil(a_thread) {
                    let part: Vec<_> = chunks.by_ref().take(a_thread).collect();
                    scope.spawn(move || {
                        for (k, chunk) in part {
                            self.fill(chunk, i * CHUNKS_A_BATCH as u64 + k as u64);
                        }
                    });
                }
                out.write_all(&ready)
            })?;
            advance(ready.len())?;
            std::mem::swap(&mut ready, &mut next);
        }
        Ok(())
    }

    /// Fills the chunk of this number.
    fn fill(&self, chunk: &mut [u8], number: u64) {
        let mut rng = Rng(mix(self.seed ^ mix(number)));
        if let Scale::Number(bound) = self.scale {
            let n = chunk.len() / self.ty.block_bytes();
            let values: Vec<f32> = (0..n).map(|_| bound * rng.signed_unit()).collect();
            quantize(self.ty, &values, chunk).expect("number types encode any numbers");
            return;
        }
        rng.fill(chunk);
        for block in chunk.chunks_exact_mut(self.ty.block_bytes()) {
            self.scale.set(block);
        }
    }
}

impl Scale {
    /// The scale that gives values of this standard deviation, or the next one that the type has.
    fn new(ty: WeightType, sd: f64) -> Self {
        match scale_at(ty).expect("callers ask for known types") {
            // The standard deviation of uniform numbers is their bound over the square root of 3.
            ScaleAt::Number => Self::Number((sd * 3f64.sqrt()) as f32),
            ScaleAt::F16(at) => {
                let scale = |d: f64| {
                    let bits = |(at, factor): &(usize, f32)| {
                        // The sign of a factor stays, the block's own sign comes on top.
                        (*at, f16_bits(d as f32 * factor))
                    };
                    Self::F16(at.iter().map(bits).collect())
                };
                scale(sd / scale(1.0).sd(ty))
            }
            ScaleAt::Nibbles(at) => {
                let one = Self::Nibbles(at, f16_bits(1.0));
                Self::Nibbles(at, f16_bits((sd / one.sd(ty)) as f32))
            }
            ScaleAt::Code(at) => {
                let codes = (0..=u8::MAX).map(|code| Self::Code(at.clone(), code));
                let distance = |scale: &Self| (scale.sd(ty) / sd).ln().abs();
                let finite = codes.map(|scale| (distance(&scale), scale));
                let finite = finite.filter(|(distance, _)| distance.is_finite());
                let best = finite.min_by(|(a, _), (b, _)| a.total_cmp(b));
                best.map_or(Self::Code(at, 0), |(_, scale)| scale)
            }
        }
    }

    /// Sets the scale of a block of random bits.
    fn set(&self, block: &mut [u8]) {
        match self {
            Self::Number(_) => {}
            Self::F16(fields) => {
                // A bit of what was there before the first scale was set.
                let sign = u16::from(block[fields[0].0] & 1) << 15;
                for (at, bits) in fields {
                    block[*at..at + 2].copy_from_slice(&(bits ^ sign).to_le_bytes());
                }
            }
            Self::Code(at, code) => block[at.clone()].fill(*code),
            Self::Nibbles(at, bits) => {
                for k in 0..4 {
                    let nibble = (bits >> (4 * k)) as u8 & 15;
                    let high = &mut block[at + 2 * k + 1];
                    *high = *high & 15 | nibble << 4;
                }
            }
        }
    }

    /// The standard deviation of the values of blocks with this scale, around 0.
    fn sd(&self, ty: WeightType) -> f64 {
        const SAMPLE: usize = 64;
        let mut bytes = vec![0; SAMPLE * ty.block_bytes()];
        Rng(1).fill(&mut bytes);
        bytes.chunks_exact_mut(ty.block_bytes()).for_each(|block| self.set(block));
        let mut values = vec![0.0; SAMPLE * ty.block_len()];
        dequantize(ty, &bytes, &mut values).expect("whole blocks of a type with a decoder");
        let sum: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
        (sum / values.len() as f64).sqrt()
    }
}

fn f16_bits(x: f32) -> u16 {
    let mut bytes = [0; 2];
    quantize(WeightType::F16, &[x], &mut bytes).expect("one number is a whole block");
    u16::from_le_bytes(bytes)
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), the
/// fastest there is that is good enough for this.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        let (words, rest) = bytes.as_chunks_mut::<8>();
        words.iter_mut().for_each(|word| *word = self.next().to_le_bytes());
        let last = self.next().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }

    /// Uniform in [-1, 1).
    fn signed_unit(&mut self) -> f32 {
        ((self.next() >> 32) as u32 as i32) as f32 * (1.0 / (1u32 << 31) as f32)
    }
}

/// SplitMix64's finalizer: every bit of `z` changes about half of the bits of the result.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> impl Iterator<Item = WeightType> {
        WeightType::ALL.iter().copied().filter(|ty| is_known(*ty))
    }

    fn made(ty: WeightType, sd: f64, seed: u64, name: &str, n_blocks: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let n_bytes = (n_blocks * ty.block_bytes()) as u64;
        let blocks = Blocks::new(ty, sd, seed, name);
        blocks.write(n_bytes, 2, &mut out, &|_| Ok(())).expect("memory takes it all");
        out
    }

    #[test]
    fn values_spread_as_asked() {
        for ty in known() {
            // What matrices of 576 to 18,944 columns ask for.
            for sd in [0.0417, 0.0073] {
                let n = 262_144 / ty.block_len();
                let mut values = vec![0.0; n * ty.block_len()];
                dequantize(ty, &made(ty, sd, 1, "x", n), &mut values).expect("whole blocks");
                let count = values.len() as f64;
                let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
                let square = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / count;
                let ratio = square.sqrt() / sd;
                // Powers of two are at most the square root of two away.
                let fits = if matches!(ty, WeightType::MXFP4 | WeightType::NVFP4) {
                    0.7..1.42
                } else {
                    0.93..1.07
                };
                assert!(fits.contains(&ratio), "{ty}: {} for {sd}", square.sqrt());
                assert!((mean / sd).abs() < 0.1, "{ty}: mean {mean} for {sd}");
            }
        }
    }

    #[test]
    fn bytes_depend_on_seed_and_name_only() {
        for ty in known() {
            let n = 2 * CHUNK / ty.block_bytes() + 3;
            let expected = made(ty, 0.02, 7, "x", n);
            assert_eq!(expected.len(), n * ty.block_bytes());
            assert_eq!(made(ty, 0.02, 7, "x", n), expected, "{ty}");
            assert_ne!(made(ty, 0.02, 8, "x", n), expected, "{ty}");
            assert_ne!(made(ty, 0.02, 7, "y", n), expected, "{ty}");
            // A chunk is not like the one before it.
            assert_ne!(expected[..64], expected[CHUNK - CHUNK % ty.block_bytes()..][..64], "{ty}");
        }
    }

    #[test]
    fn threads_make_no_difference() {
        let n_bytes = (CHUNK * CHUNKS_A_BATCH * 5 / 2 / 144 * 144) as u64;
        let blocks = Blocks::new(WeightType::Q4_K, 0.02, 3, "x");
        let write = |threads| {
            let (mut out, total) = (Vec::new(), std::cell::Cell::new(0));
            let advance = |n| {
                total.set(total.get() + n);
                Ok(())
            };
            blocks.write(n_bytes, threads, &mut out, &advance).expect("memory takes it all");
            assert_eq!((out.len() as u64, total.get() as u64), (n_bytes, n_bytes));
            out
        };
        let expected = write(1);
        for threads in [0, 2, 3, 64, 1000] {
            assert!(write(threads) == expected, "{threads} threads");
        }
    }

    #[test]
    fn a_full_disk_is_an_error() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let blocks = Blocks::new(WeightType::Q8_0, 0.02, 3, "x");
        let error = blocks.write(34, 1, &mut Full, &|_| Ok(())).expect_err("no room");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
