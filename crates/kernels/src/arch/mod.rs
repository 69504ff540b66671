//! The vector trait, the algorithms written over it, and one shell per instruction set.

use crate::activations::SuperBlock;
use crate::memory::Line;

pub(crate) mod all;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx;
pub(crate) mod scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

/// Lanes of a vector, whatever the register width: AVX-512 uses one register, AVX2 two.
pub(crate) const LANES: usize = 16;

/// 16 f32 lanes. Every operation is one correctly rounded IEEE operation a lane, so all
/// implementations give the same bits.
///
/// # Safety
/// The methods of an implementation may only be called where its instruction set is present; they
/// are inlined into the shells' `#[target_feature]` functions, which are reached through
/// [`crate::Isa`] alone.
pub(crate) trait Lanes: Copy {
    /// Rows and tokens of a register tile of the matrix kernel that fit this register file.
    const TILE_ROWS: usize;
    const TILE_TOKENS: usize;
    /// Sums that attention keeps at a time, beside up to four vectors and a factor.
    const SUMS: usize;
    unsafe fn splat(x: f32) -> Self;
    /// The first 16 values of `x`, here and below; panics if there are fewer.
    unsafe fn load(x: &[f32]) -> Self;
    unsafe fn load_f16(x: &[half::f16]) -> Self;
    unsafe fn load_i8(x: &[i8]) -> Self;
    unsafe fn store(self, to: &mut [f32]);
    /// Rounds to nearest, ties to even.
    unsafe fn store_f16(self, to: &mut [half::f16]);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self · factor + summand`, rounded once.
    unsafe fn mul_add(self, factor: Self, summand: Self) -> Self;
    /// Factors of [`add_pairs`](Self::add_pairs) for a lane of two bf16: 2, or 1 that holds both.
    const PAIR_FACTORS: usize = 2;
    /// Rounds values to bf16, to nearest, ties to even, and writes them as factors.
    #[inline(always)]
    unsafe fn pair_factors(x: &[f32; 2 * LANES], to: &mut [f32; 2 * LANES]) {
        let rounded = x.map(|x| half::bf16::from_f32(x).to_f32());
        if Self::PAIR_FACTORS == 2 {
            *to = rounded;
            return;
        }
        for (pair, to) in rounded.as_chunks().0.iter().zip(to) {
            let [first, second]: [u32; 2] = pair.map(f32::to_bits);
            *to = f32::from_bits(first | second >> 16);
        }
    }
    /// Adds two products to each lane of some sums: that of the bf16 in the upper half of `pairs` with
    /// the first of lane `i`'s factors, then that of the lower half with the second, each rounded once.
    /// An instruction for it may take numbers below 2^-126 for 0.
    #[inline(always)]
    unsafe fn add_pairs<const P: usize>(
        sums: &mut [Self; P],
        pairs: &[Self; P],
        factors: &[f32],
        i: usize,
    ) {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { add_split_pairs(sums, pairs, factors, i) }
    }
    /// As [`add_pairs`](Self::add_pairs), with the factors in the halves of `x`.
    #[inline(always)]
    unsafe fn add_pair(sum: &mut Self, pairs: Self, x: u32) {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { add_split_pair(sum, pairs, x) }
    }
    /// The bf16 in the upper half of each lane.
    unsafe fn upper_bf16(self) -> Self;
    /// The bf16 in the lower half of each lane.
    unsafe fn lower_bf16(self) -> Self;
    /// The larger of numbers that are not NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// Fetches the cache line at `at`, which need not be memory.
    unsafe fn prefetch(at: *const u8);
    /// The same, past the cache of the first level.
    unsafe fn prefetch_to_l2(at: *const u8);
    unsafe fn to_array(self) -> [f32; LANES];
}

/// [`Lanes::add_pairs`] in two steps.
#[inline(always)]
unsafe fn add_split_pairs<L: Lanes, const P: usize>(
    sums: &mut [L; P],
    pairs: &[L; P],
    factors: &[f32],
    i: usize,
) {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let [first, second] = if L::PAIR_FACTORS == 2 {
            [L::splat(factors[2 * i]), L::splat(factors[2 * i + 1])]
        } else {
            let pair = L::splat(factors[i]);
            [pair.upper_bf16(), pair.lower_bf16()]
        };
        for p in 0..P {
            sums[p] = pairs[p].upper_bf16().mul_add(first, sums[p]);
            sums[p] = pairs[p].lower_bf16().mul_add(second, sums[p]);
        }
    }
}

/// [`Lanes::add_pair`] in two steps.
#[inline(always)]
unsafe fn add_split_pair<L: Lanes>(sum: &mut L, pairs: L, x: u32) {
    // SAFETY: the caller has the lanes' instruction set.
    unsafe {
        let x = L::splat(f32::from_bits(x));
        *sum = pairs.upper_bf16().mul_add(x.upper_bf16(), *sum);
        *sum = pairs.lower_bf16().mul_add(x.lower_bf16(), *sum);
    }
}

/// 16 lanes of 32 bits, each an integer or 4 bytes: what the kernels of packed weights work on.
/// Every operation is exact, so all implementations give the same bits.
///
/// # Safety
/// As for [`Lanes`].
pub(crate) trait IntLanes: Copy {
    /// The same lanes holding f32.
    type Floats: Lanes;
    /// Which implementation this is; the name of its instruction set.
    const NAME: &'static str;
    /// Most tokens of a register tile: 1, 2, 4 or 8.
    const TILE_TOKENS: usize;
    /// Panels that a register tile of unpacked weights meets its tokens with: 1 or 2.
    const TILE_PANELS: usize = 1;
    /// Sums of products of bytes that have not met their scale yet. Where an instruction adds 4
    /// products in 32 bits, these are the lanes; elsewhere pairs are kept in 16 bits, which halves
    /// the work, and the instruction that joins them multiplies with the scale, too.
    type Sums: Copy;
    /// How large the bytes of a lane may be that [`Sums`](Self::Sums) hold the products of, added up.
    const LIMIT: usize;
    unsafe fn load(line: &Line) -> Self;
    unsafe fn load_dwords(dwords: &[u32; LANES]) -> Self;
    unsafe fn store(self, line: &mut Line);
    unsafe fn splat(x: i32) -> Self;
    unsafe fn and(self, other: Self) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    unsafe fn xor(self, other: Self) -> Self;
    /// Shifts each lane to the left by `n < 32`, across bytes.
    unsafe fn shl(self, n: u32) -> Self;
    /// Shifts zeros in from above.
    unsafe fn shr(self, n: u32) -> Self;
    /// Shifts copies of the sign in.
    unsafe fn sar(self, n: u32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// The lower 32 bits of the products.
    unsafe fn mul(self, other: Self) -> Self;
    /// Adds each 16 bits; what does not fit is lost, here and below.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    unsafe fn add_halves(self, other: Self) -> Self;
    /// Multiplies each 16 bits.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    unsafe fn mul_halves(self, other: Self) -> Self;
    /// Shifts each 16 bits to the left by `n < 16`.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    unsafe fn shl_halves(self, n: u32) -> Self;
    /// Shifts zeros into each 16 bits from above.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    unsafe fn shr_halves(self, n: u32) -> Self;
    /// Adds each byte.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    unsafe fn add_bytes(self, other: Self) -> Self;
    /// Byte `i < 4` of each lane, with its sign, as both of the lane's 16 bits.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    unsafe fn scale_halves(self, i: usize) -> Self;
    /// Adds the dot product of each lane's 4 bytes, from 0 to 127, with the 4 signed bytes of the same lane of
    /// `x`, from -127 to 127 each. The largest bytes of all the products of `sums` may add up to
    /// [`LIMIT`](Self::LIMIT).
    unsafe fn dot_each(sums: Self::Sums, bytes: Self, x: Self) -> Self::Sums;
    /// The same with 4 bytes for all lanes.
    #[inline(always)]
    unsafe fn dot(sums: Self::Sums, bytes: Self, x: u32) -> Self::Sums {
        // SAFETY: the caller has the lanes' instruction set.
        unsafe { Self::dot_each(sums, bytes, Self::splat(x as i32)) }
    }
    /// No products yet.
    unsafe fn no_sums() -> Self::Sums;
    /// What a sum and the [`Sums`](Self::Sums) that are added to it begin with, so that both add up to `start`: it costs
    /// nothing where it may begin the products.
    unsafe fn begin(start: Self) -> (Self, Self::Sums);
    /// What the sums of group `g < 16` start with where bytes are stored `offset`, a power of two, higher than they
    /// are. Sums wrap around, so the bytes as they are have to keep to the limit, no matter how they are stored.
    unsafe fn start_sums(x: &SuperBlock, g: usize, offset: i32) -> Self::Sums;
    /// Adds sums of products.
    unsafe fn add_sums(self, sums: Self::Sums) -> Self;
    /// Byte `i < 4` of each lane, with its sign, in the form that [`add_scaled`](Self::add_scaled)
    /// takes.
    unsafe fn scale(self, i: usize) -> Self;
    /// Scales `4i` to `4i + 3`, from 0 to 127, of four lanes each, in that form.
    unsafe fn spread_scales(scales: &[u8; 16], i: usize) -> Self;
    /// Adds sums of products, times each lane's `scale`.
    unsafe fn add_scaled(self, sums: Self::Sums, scale: Self) -> Self;
    /// Bytes 0 and 2 of each lane, and bytes 1 and 3, with their signs, as two numbers of 16 bits.
    unsafe fn halves(self) -> [Self; 2];
    /// Adds the dot product of each lane's two numbers of 16 bits with those of `x`.
    unsafe fn dot_halves(self, halves: Self, x: u32) -> Self;
    /// What a sum of [`dot_biased`](Self::dot_biased) starts with, for activations that add up to
    /// `sum`.
    unsafe fn start_biased(sum: i32) -> Self;
    /// As [`dot`](Self::dot) for weights from -128 to 127, stored 128 higher.
    unsafe fn dot_biased(self, biased: Self, x: u32) -> Self;
    /// Replaces each byte below 16 by that byte of the table, and 128 by 0.
    unsafe fn lookup(self, table: &[u8; 16]) -> Self;
    /// Turns each byte `offset + m` into `offset - m` whose bit of `signs` is set, the lowest first. `offset` is a power
    /// of two, and `m` from `-offset` to `offset - 1`.
    unsafe fn reflect(self, offset: u8, signs: &[u32; 2]) -> Self;
    /// The sum of all lanes of each row.
    unsafe fn fold(rows: &[Line; LANES]) -> Self;
    /// Converts integers, rounding to the nearest f32.
    unsafe fn to_floats(self) -> Self::Floats;
    /// Takes the lanes for the bits of f32.
    unsafe fn as_floats(self) -> Self::Floats;
    /// Makes the compiler compute this value before all that follows: sums of several tokens are
    /// to be interleaved as written, since in one after the other each addition waits for the last.
    unsafe fn pin(&mut self);
    /// The same for sums.
    unsafe fn pin_sums(sums: &mut Self::Sums);
}

/// Calls the f32 shell of an instruction set: `dispatch!(isa, function(arguments))`. The VNNI
/// levels and AMX have integer instructions in addition, and share the shell of the level below, as
/// those for bf16 share the integer shell.
macro_rules! dispatch {
    ($isa:expr, $function:ident $([$($generic:ty),+])? ($($arg:expr),* $(,)?)) => {
        match $isa.level() {
            $crate::isa::Level::Scalar => $crate::arch::scalar::$function $(::<$($generic),+>)? ($($arg),*),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of these levels exists only if detection found their features.
            $crate::isa::Level::Avx2 | $crate::isa::Level::AvxVnni => unsafe {
                $crate::arch::x86_64::avx2::$function $(::<$($generic),+>)? ($($arg),*)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            $crate::isa::Level::Avx512 | $crate::isa::Level::Avx512Vnni => unsafe {
                $crate::arch::x86_64::avx512::$function $(::<$($generic),+>)? ($($arg),*)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            $crate::isa::Level::Avx512Bf16 => unsafe {
                $crate::arch::x86_64::avx512bf16::$function $(::<$($generic),+>)? ($($arg),*)
            },
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: as above.
            $crate::isa::Level::Amx => unsafe {
                $crate::arch::x86_64::avx512bf16::$function $(::<$($generic),+>)? ($($arg),*)
            },
            #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
            $crate::isa::Level::Emulated => $crate::arch::scalar::paired::$function $(::<$($generic),+>)? ($($arg),*),
        }
    };
}
pub(crate) use dispatch;

/// Calls the integer shell of an instruction set: `dispatch_int!(isa, function(arguments))`.
macro_rules! dispatch_int {
    ($isa:expr, $function:ident $([$($generic:ty),+])? ($($arg:expr),* $(,)?)) => {
        match $isa.level() {
            $crate::isa::Level::Scalar => $crate::arch::scalar::$function $(::<$($generic),+>)? ($($arg),*),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level exists only if detection found its features.
            $crate::isa::Level::Avx2 => unsafe { $crate::arch::x86_64::avx2::$function $(::<$($generic),+>)? ($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            $crate::isa::Level::AvxVnni => unsafe { $crate::arch::x86_64::avxvnni::$function $(::<$($generic),+>)? ($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            $crate::isa::Level::Avx512 => unsafe { $crate::arch::x86_64::avx512::$function $(::<$($generic),+>)? ($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            $crate::isa::Level::Avx512Vnni | $crate::isa::Level::Avx512Bf16 => unsafe {
                $crate::arch::x86_64::avx512vnni::$function $(::<$($generic),+>)? ($($arg),*)
            },
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: as above. What tiles don't serve runs on the lanes of the level below.
            $crate::isa::Level::Amx => unsafe { $crate::arch::x86_64::avx512vnni::$function $(::<$($generic),+>)? ($($arg),*) },
            #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
            $crate::isa::Level::Emulated => $crate::arch::scalar::$function $(::<$($generic),+>)? ($($arg),*),
        }
    };
}
pub(crate) use dispatch_int;

/// Calls the shell of products with packed weights of the kernel `$K`: an integer shell, but for pairs of bf16 where there
/// are instructions for them.
macro_rules! dispatch_packed {
    ($K:ty, $isa:expr, $function:ident $([$generic:ty])? ($($arg:expr),* $(,)?)) => {
        match $isa.level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level exists only if detection found its features.
            $crate::isa::Level::Avx512Bf16 if <$K>::PAIRS => unsafe {
                $crate::arch::x86_64::avx512bf16::$function $(::<$generic>)? ($($arg),*)
            },
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: as above.
            $crate::isa::Level::Amx if <$K>::PAIRS => unsafe {
                $crate::arch::x86_64::avx512bf16::$function $(::<$generic>)? ($($arg),*)
            },
            _ => $crate::arch::dispatch_int!($isa, $function $([$generic])? ($($arg),*)),
        }
    };
}
pub(crate) use dispatch_packed;

/// Writes the shells of one instruction set: every algorithm of `all`, compiled for its features.
macro_rules! shells {
    ($lanes:ty $(, $feature:literal)?) => {
        use $crate::arch::all;
        use $crate::attention::Task;
        use $crate::kv::Elem;
        use hurtle_quant::{Error, WeightType};

        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            decode(ty: WeightType, bytes: &[u8], out: &mut [f32]) -> Result<(), Error>
            = all::decode(ty, bytes, out));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            matmul_rows(rows: &[f32], k: usize, x: &[f32], out: &mut dyn FnMut(usize, usize, f32))
            = all::matmul_rows::<$lanes>(rows, k, x, out));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            rms_norm(row: &mut [f32], weight: &[f32], eps: f32)
            = all::rms_norm::<$lanes>(row, weight, eps));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            layer_norm(row: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32)
            = all::layer_norm::<$lanes>(row, weight, bias, eps));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            rope(heads: &mut [f32], head_dim: usize, style: $crate::elementwise::RopeStyle, table: &[(f32, f32)])
            = all::rope(heads, head_dim, style, table));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            gate(activation: $crate::elementwise::Activation, gate: &mut [f32], up: &[f32])
            = all::gate(activation, gate, up));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            quantize_super_block(x: &[f32; 256], out: &mut $crate::activations::SuperBlock)
            = $crate::activations::quantize_super_block(x, out));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            quantize_block(x: &[f32; 32], out: &mut $crate::activations::Block)
            = $crate::activations::quantize_block(x, out));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            round_to_pairs(x: &[f32; $crate::activations::FLOATS], out: &mut $crate::activations::Pairs)
            = $crate::activations::round_to_pairs(x, out));

        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            gather[K: Elem](q: &[f32], width: usize, n_group: usize, dim: usize, queries: &mut [f32])
            = $crate::attention::gather::<$lanes, K>(q, width, n_group, dim, queries));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            weigh[K: Elem](task: &Task<'_>, vectors: &mut [f32], scores: &mut [f32], partial: &mut [f32])
            = $crate::attention::weigh::<$lanes, K>(task, vectors, scores, partial));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            add_values[V: Elem](task: &Task<'_>, vectors: &mut [f32], weights: &[f32], partial: &mut [f32])
            = $crate::attention::add_values::<$lanes, V>(task, vectors, weights, partial));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            attention_products[E: Elem](operands: &$crate::roofline::Operands, tokens: usize, rounds: usize)
                -> [f32; $crate::arch::LANES]
            = $crate::roofline::attention_products::<$lanes, E>(operands, tokens, rounds));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            merge(state: &mut [f32], next: &[f32], row_len: usize)
            = $crate::attention::merge(state, next, row_len));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            store_key[E: Elem](tile: &mut [u8], slot: usize, key: &[f32])
            = $crate::kv::store_key::<$lanes, E>(tile, slot, key));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            store_value[E: Elem](values: &mut [u8], slot: usize, value: &[f32])
            = $crate::kv::store_value::<$lanes, E>(values, slot, value));
    };
    (@fn $(#[$attr:meta])? $name:ident $([$generic:ident: $bound:ident])?
        ($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $call:expr) => {
        $(#[$attr])?
        #[allow(unused_unsafe, clippy::allow_attributes, reason = "some bodies need no unsafe")]
        pub(crate) fn $name $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: this function has the features that its lanes need.
            unsafe { $call }
        }
    };
}
pub(crate) use shells;

/// Writes the shells of products with packed weights.
macro_rules! packed_shells {
    ($lanes:ty $(, $feature:literal)?) => {
        use $crate::packed::Kernel;

        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            multiply[K: Kernel](panel: &[$crate::memory::Line], x: &[K::Activations], n_tokens: usize,
                tokens: std::ops::Range<usize>, out: &mut dyn FnMut(usize, &[$crate::packed::Rows]))
            = $crate::packed::multiply::<$lanes, K>(panel, x, n_tokens, tokens, out));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            sweep[K: Kernel](panels: &[$crate::memory::Line], n_panels: usize, x: &[K::Activations],
                n_tokens: usize, tokens: std::ops::Range<usize>, buffer: &mut [$crate::memory::Line],
                out: &mut dyn FnMut(usize, usize, &[$crate::packed::Rows]))
            = $crate::packed::swept::sweep::<$lanes, K>(
                panels, n_panels, x, n_tokens, tokens, buffer, out));

        /// The name of the lanes that [`multiply`] runs on.
        $(#[target_feature(enable = $feature)])?
        pub(crate) fn lanes_name() -> &'static str {
            <$lanes as $crate::arch::IntLanes>::NAME
        }
    };
}
pub(crate) use packed_shells;

/// Writes the integer shells of one instruction set.
macro_rules! int_shells {
    ($lanes:ty $(, $feature:literal)?) => {
        $crate::arch::packed_shells!($lanes $(, $feature)?);

        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            read_lines(lines: &[$crate::memory::Line], ahead: usize) -> [f32; $crate::arch::LANES]
            = $crate::roofline::read_lines::<$lanes>(lines, ahead));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            integer_products(operands: &$crate::roofline::Operands, tokens: usize, rounds: usize) -> [f32; $crate::arch::LANES]
            = $crate::roofline::integer_products::<$lanes>(operands, tokens, rounds));
        $crate::arch::shells!(@fn $(#[target_feature(enable = $feature)])?
            float_products(operands: &$crate::roofline::Operands, tokens: usize, rounds: usize) -> [f32; $crate::arch::LANES]
            = $crate::roofline::float_products::<<$lanes as $crate::arch::IntLanes>::Floats>(operands, tokens, rounds));
    };
}
pub(crate) use int_shells;

/// Writes the shell of an instruction set's lanes beside tiles.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! tile_shell {
    ($lanes:ty $(, $feature:literal)?) => {
        /// Panels of packed rows times some tokens; see [`crate::packed::tiles::multiply`].
        ///
        /// # Safety
        /// The tiles' instructions are present.
        $(#[target_feature(enable = $feature)])?
        pub(crate) unsafe fn multiply_tiles<
            K: $crate::packed::tiles::Tiled,
            M: $crate::packed::tiles::Tiles,
        >(
            panels: &[$crate::memory::Line],
            n_panels: usize,
            x: &[K::Activations],
            n_tokens: usize,
            tokens: std::ops::Range<usize>,
            buffer: &mut [$crate::memory::Line],
            out: &mut dyn FnMut(usize, usize, &[$crate::packed::Rows]),
        ) {
            // SAFETY: this function has the features that its lanes need, the caller the tiles.
            unsafe {
                $crate::packed::tiles::multiply::<$lanes, K, M>(
                    panels, n_panels, x, n_tokens, tokens, buffer, out,
                );
            }
        }
    };
}
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use tile_shell;

/// Writes the shell of an instruction set's lanes, which hold pairs of bf16, beside tiles.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! pair_tile_shell {
    ($lanes:ty $(, $feature:literal)?) => {
        /// A span of a KV head; see [`crate::attention::tiles::attend`].
        ///
        /// # Safety
        /// The tiles' instructions are present.
        $(#[target_feature(enable = $feature)])?
        pub(crate) unsafe fn attend_by_tiles<M: $crate::attention::tiles::PairTiles>(
            task: &Task<'_>,
            scratch: &mut [f32],
            partial: &mut [f32],
        ) {
            // SAFETY: this function has the features that its lanes need, the caller the tiles.
            unsafe { $crate::attention::tiles::attend::<$lanes, M>(task, scratch, partial) }
        }
    };
}
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use pair_tile_shell;
