//! Which instruction set the kernels use: found out once, overridable, and impossible to claim
//! without proof.

use std::fmt;
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
    /// Plain loops, and for attention tiles that a test emulates.
    #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
    Emulated,
}

/// An instruction set that this processor has.
///
/// A value can only be made by detection, so holding one proves that its instructions may be
/// executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Isa(Level);

impl Isa {
    /// Every instruction set of this processor that there are kernels for, slowest first.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut, reason = "only some targets add to it")]
        let mut all = vec![Isa(Level::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                all.push(Isa(Level::Avx2));
                if has!("avxvnni") {
                    all.push(Isa(Level::AvxVnni));
                }
                if has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq") {
                    all.push(Isa(Level::Avx512));
                    if has!("avx512vnni") {
                        all.push(Isa(Level::Avx512Vnni));
                        if has!("avx512bf16") {
                            all.push(Isa(Level::Avx512Bf16));
                            #[cfg(target_os = "linux")]
                            if amx::is_available() {
                                all.push(Isa(Level::Amx));
                            }
                        }
                    }
                }
            }
        }
        all
    }

    /// The fastest instruction set of this processor.
    pub fn best() -> Isa {
        Self::available().into_iter().next_back().unwrap_or(Isa(Level::Scalar))
    }

    /// The portable path, which every processor has.
    pub const fn scalar() -> Isa {
        Isa(Level::Scalar)
    }

    /// Whether there are tiles: AMX.
    pub(crate) const fn has_tiles(self) -> bool {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        return matches!(self.0, Level::Amx);
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        false
    }

    /// Attention by tiles on a processor that may have none, for tests that emulate them.
    #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
    pub(crate) const EMULATED: Isa = Isa(Level::Emulated);

    /// Whether lanes have 32 vector registers instead of 16: AVX-512.
    pub(crate) const fn has_32_registers(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return !matches!(self.0, Level::Scalar | Level::Avx2 | Level::AvxVnni);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    pub(crate) const fn level(self) -> Level {
        self.0
    }

    /// `scalar`, `avx2`, `avxvnni`, `avx512` (F, BW, VL, DQ), `avx512vnni`, `avx512bf16` (beside VNNI) or
    /// `amx` (tiles of int8 and bf16 beside both).
    pub const fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => "avx512bf16",
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx => "amx",
            #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
            Level::Emulated => "emulated",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    /// The instruction set of that name, if this processor has it.
    fn from_str(name: &str) -> Result<Self, String> {
        let available = Self::available();
        available.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
            format!(
                "instruction set {name:?} is not available here; available: {}",
                names.join(", ")
            )
        })
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;

    /// Whether the processor has tiles of 8-bit integers and of bf16, the system saves them, and this process
    /// may use them: Linux wants to be asked, and threads that run already may then, too. For a
    /// processor with AVX-512.
    pub(super) fn is_available() -> bool {
        let features = __cpuid_count(7, 0).edx;
        let (bf16, tile, int8) = (1 << 22, 1 << 24, 1 << 25);
        let needed = bf16 | tile | int8;
        if features & needed != needed {
            return false;
        }
        let saved: u32;
        // SAFETY: a system that enabled AVX-512 has enabled this instruction; 0 is a valid register.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") saved, out("edx") _, options(nomem, nostack));
        }
        let (config, data) = (1 << 17, 1 << 18);
        if saved & (config | data) != config | data {
            return false;
        }
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: this asks for a permission and touches no memory.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_best_is_last() {
        let all = Isa::available();
        for isa in &all {
            assert_eq!(isa.name().parse::<Isa>(), Ok(*isa));
        }
        assert_eq!(all.last(), Some(&Isa::best()));
        let error = "altivec".parse::<Isa>().unwrap_err();
        assert!(error.contains("scalar"), "{error}");
    }
}
