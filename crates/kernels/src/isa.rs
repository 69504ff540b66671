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

    pub(crate) const fn level(self) -> Level {
        self.0
    }

    /// `scalar`, `avx2`, `avxvnni`, `avx512` (F, BW, VL, DQ) or `avx512vnni`.
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
