//! Weight types in super-blocks of 256 values with integer scales, unpacked for many tokens.

use super::{Kernel, unroll8};
use crate::activations::SuperBlock;
use crate::arch::{IntLanes, Lanes};
use crate::memory::Line;
use bytemuck::{Pod, Zeroable};

/// Lines of quants: 4 values of each row, a byte each.
pub(crate) const QUANT_LINES: usize = 64;
/// Scales and minima of a super-block, as [`SuperBlocks::finish`] needs them.
pub(crate) type Factors = [Line; 10];

/// What the many-token kernels have to know of a type.
pub(crate) trait SuperBlocks: Kernel<Activations = SuperBlock> {
    /// How much higher than their values the quants are stored.
    const OFFSET: i32;
    /// The largest stored quant, if it is small. `None`: they are signed bytes, stored 128 higher.
    const MAX: Option<usize>;
    /// Lines with one scale: 4 or 8.
    const GROUP_LINES: usize;

    /// What [`quants`](Self::quants) reads: the super-block, or what of it had to be written to `room`.
    #[inline(always)]
    unsafe fn open<'a, L: IntLanes>(
        block: &'a [Line],
        _room: &'a mut [Line; QUANT_LINES],
    ) -> &'a [Line] {
        block
    }

    /// Line `i < 64` of a super-block that was opened: 4 stored quants of each row, a byte each.
    unsafe fn quants<L: IntLanes>(opened: &[Line], i: usize) -> L;

    /// The scales of groups `4q` to `4q + 3`, a signed byte each.
    unsafe fn scales<L: IntLanes>(block: &[Line], q: usize) -> L;

    /// What the sums are multiplied with.
    unsafe fn factors<L: IntLanes>(block: &[Line], factors: &mut Factors);

    /// The factors in registers.
    type Held<L: IntLanes>: Copy;
    unsafe fn hold<L: IntLanes>(factors: &Factors) -> Self::Held<L>;

    /// What a super-block adds to the result of a token, given the sum of quants times scales times
    /// activations.
    unsafe fn finish<L: IntLanes>(
        factors: &Self::Held<L>,
        x: &SuperBlock,
        products: L,
    ) -> L::Floats;
}

/// A super-block of a panel, unpacked for vectors.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Unpacked {
    quants: [Line; QUANT_LINES],
    /// In the form that [`IntLanes::add_scaled`] takes, or as lanes.
    scales: [Line; 16],
    /// Scales as 16-bit numbers, to take off what makes the quants too high.
    excess: [Line; 8],
    factors: Factors,
}

/// Lines of an unpacked super-block.
pub(crate) const UNPACKED: usize = size_of::<Unpacked>() / size_of::<Line>();

const fn n_groups<K: SuperBlocks>() -> usize {
    QUANT_LINES / K::GROUP_LINES
}

/// Whether quants are stored higher than they are, and their sums start so much lower that nothing has to come
/// off at the end. Sums of 16 bits hold the products of a whole group then, since quants as they are are smaller.
#[inline(always)]
pub(super) const fn starts_low<L: IntLanes>(
    offset: i32,
    max: Option<usize>,
    group_lines: usize,
) -> bool {
    let Some(max) = max else { return false };
    let offset = offset as usize;
    let largest = if offset > max - offset { offset } else { max - offset };
    offset > 0 && group_lines == 4 && 4 * largest <= L::LIMIT
}

/// The sums of each token that quants `OFFSET` higher than they are start with in group `g` of 16.
#[inline(always)]
pub(super) unsafe fn low_sums<L: IntLanes, const T: usize>(
    offset: i32,
    x: &[SuperBlock; T],
    g: usize,
) -> [L::Sums; T] {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut sums = [L::no_sums(); T];
        for t in 0..T {
            sums[t] = L::start_sums(&x[t], g, offset);
        }
        sums
    }
}

/// Whether sums of stored quants have an excess that comes off at the end.
#[inline(always)]
const fn has_excess<L: IntLanes, K: SuperBlocks>() -> bool {
    K::OFFSET != 0 && K::MAX.is_some() && !starts_low::<L>(K::OFFSET, K::MAX, K::GROUP_LINES)
}

/// See [`Kernel::unpack`]; `block` is header and quants.
#[inline(always)]
pub(crate) unsafe fn unpack<L: IntLanes, K: SuperBlocks>(block: &[Line], to: &mut [Line]) {
    let to: &mut Unpacked = bytemuck::from_bytes_mut(bytemuck::cast_slice_mut(to));
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        K::factors::<L>(block, &mut to.factors);
        for q in 0..n_groups::<K>() / 4 {
            let bytes = K::scales::<L>(block, q);
            for i in 0..4 {
                // Sums of signed bytes are lanes everywhere.
                let lanes = || bytes.shl(24 - 8 * i as u32).sar(24);
                let scale = if K::MAX.is_some() { bytes.scale(i) } else { lanes() };
                scale.store(&mut to.scales[4 * q + i]);
            }
            if has_excess::<L, K>() {
                store_excess(bytes, q, &mut to.excess);
            }
        }
        let mut room = [Line([0; 64]); QUANT_LINES];
        let opened = K::open::<L>(block, &mut room);
        for (i, line) in to.quants.iter_mut().enumerate() {
            K::quants::<L>(opened, i).store(line);
        }
    }
}

/// See [`Kernel::products`].
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "indices name groups, panels and tokens")]
pub(crate) unsafe fn products<L: IntLanes, K: SuperBlocks, const P: usize, const T: usize>(
    unpacked: [&[Line]; P],
    x: &[SuperBlock; T],
) -> [[L::Floats; T]; P] {
    let unpacked =
        unpacked.map(|lines| bytemuck::from_bytes::<Unpacked>(bytemuck::cast_slice(lines)));
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let mut products = [[L::splat(0); T]; P];
        for g in 0..n_groups::<K>() {
            let first = K::GROUP_LINES * g;
            let Some(max) = K::MAX else {
                let mut dots = [[L::splat(0); T]; P];
                for t in 0..T {
                    let start = L::start_biased(x[t].sum_of_32(g));
                    for p in 0..P {
                        dots[p][t] = start;
                    }
                }
                unroll8!(I => {
                    if I < K::GROUP_LINES {
                        for t in 0..T {
                            for p in 0..P {
                                let w = L::load(&unpacked[p].quants[first + I]);
                                dots[p][t] = dots[p][t].dot_biased(w, x[t].qs[first + I]);
                                dots[p][t].pin();
                            }
                        }
                    }
                });
                for p in 0..P {
                    let scale = L::load(&unpacked[p].scales[g]);
                    for t in 0..T {
                        products[p][t] = products[p][t].add(scale.mul(dots[p][t]));
                    }
                }
                continue;
            };
            let low = starts_low::<L>(K::OFFSET, K::MAX, K::GROUP_LINES);
            // Dots that sums have room for.
            let room = if low { K::GROUP_LINES } else { (L::LIMIT / max).min(K::GROUP_LINES) };
            let start = if low { low_sums::<L, T>(K::OFFSET, x, g) } else { [L::no_sums(); T] };
            let mut dots = [start; P];
            unroll8!(I => {
                if I < K::GROUP_LINES {
                    for t in 0..T {
                        for p in 0..P {
                            let w = L::load(&unpacked[p].quants[first + I]);
                            dots[p][t] = L::dot(dots[p][t], w, x[t].qs[first + I]);
                            L::pin_sums(&mut dots[p][t]);
                        }
                    }
                    if (I + 1).is_multiple_of(room) || I + 1 == K::GROUP_LINES {
                        for p in 0..P {
                            let scale = L::load(&unpacked[p].scales[g]);
                            for t in 0..T {
                                products[p][t] = products[p][t].add_scaled(dots[p][t], scale);
                                dots[p][t] = L::no_sums();
                            }
                        }
                    }
                }
            });
        }
        let mut finished = [[L::Floats::splat(0.0); T]; P];
        for p in 0..P {
            let excess = has_excess::<L, K>().then_some(&unpacked[p].excess);
            finished[p] = finish::<L, K, T>(products[p], excess, &unpacked[p].factors, x);
        }
        finished
    }
}

/// Stores the scales of groups `4q` to `4q + 3`, a byte each, for what makes the quants too high to come off.
#[inline(always)]
pub(crate) unsafe fn store_excess<L: IntLanes>(scales: L, q: usize, excess: &mut [Line]) {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let halves = scales.halves();
        halves[0].store(&mut excess[2 * q]);
        halves[1].store(&mut excess[2 * q + 1]);
    }
}

/// What a super-block adds to the results, given its products with quants as they are, or as they are stored and
/// the scales that what is too much comes off by.
#[inline(always)]
pub(crate) unsafe fn finish<L: IntLanes, K: SuperBlocks, const T: usize>(
    mut products: [L; T],
    excess: Option<&[Line; 8]>,
    factors: &Factors,
    x: &[SuperBlock; T],
) -> [L::Floats; T] {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        if let Some(excess) = excess {
            for t in 0..T {
                let mut sum = L::splat(0);
                for (i, scales) in excess[..n_groups::<K>() / 2].iter().enumerate() {
                    let x = if K::GROUP_LINES == 4 { x[t].sums[i] } else { x[t].sums_32[i] };
                    sum = sum.dot_halves(L::load(scales), x);
                }
                products[t] = products[t].add(sum.mul(L::splat(-K::OFFSET)));
            }
        }
        let factors = K::hold::<L>(factors);
        let mut finished = [L::Floats::splat(0.0); T];
        for t in 0..T {
            finished[t] = K::finish::<L>(&factors, &x[t], products[t]);
        }
        finished
    }
}

/// What [`Kernel`] says of unpacked blocks, for all types in super-blocks.
macro_rules! unpacked {
    () => {
        const UNPACKED: usize = $crate::packed::super_blocks::UNPACKED;

        #[inline(always)]
        unsafe fn unpack<L: $crate::arch::IntLanes>(
            block: &[$crate::memory::Line],
            _: usize,
            to: &mut [$crate::memory::Line],
        ) {
            // SAFETY: the caller has the lanes' instruction set.
            unsafe { $crate::packed::super_blocks::unpack::<L, Self>(block, to) }
        }

        #[inline(always)]
        unsafe fn products<L: $crate::arch::IntLanes, const P: usize, const T: usize>(
            unpacked: [&[$crate::memory::Line]; P],
            x: &[$crate::activations::SuperBlock; T],
        ) -> [[L::Floats; T]; P] {
            // SAFETY: the caller has the lanes' instruction set.
            unsafe { $crate::packed::super_blocks::products::<L, Self, P, T>(unpacked, x) }
        }
    };
}
pub(crate) use unpacked;

/// What [`SuperBlocks`] says of results, for types whose only factor is the first.
macro_rules! one_factor {
    () => {
        type Held<L: $crate::arch::IntLanes> = L::Floats;

        #[inline(always)]
        unsafe fn hold<L: $crate::arch::IntLanes>(
            factors: &$crate::packed::super_blocks::Factors,
        ) -> L::Floats {
            // SAFETY: the caller has the lanes' instruction set.
            unsafe { L::Floats::load(factors[0].floats()) }
        }

        #[inline(always)]
        unsafe fn finish<L: $crate::arch::IntLanes>(
            d: &L::Floats,
            x: &$crate::activations::SuperBlock,
            products: L,
        ) -> L::Floats {
            // SAFETY: the caller has the lanes' instruction set.
            unsafe { L::Floats::splat(x.d).mul(*d).mul(products.to_floats()) }
        }
    };
}
pub(crate) use one_factor;
