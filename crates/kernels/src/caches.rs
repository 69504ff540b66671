//! How large a core's own caches are, which decides how much of a product is at work at a time.

/// Caches of a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caches {
    /// Bytes of the first level's cache for data.
    pub l1: usize,
    /// Bytes of the second level's cache, or a core's part of it.
    pub l2: usize,
    /// Where the sizes come from: a processor's name, `cpuid`, or `default`.
    pub source: &'static str,
}

impl Caches {
    /// What nearly every processor of the last ten years has.
    const SMALLEST: Caches = Caches { l1: 32 << 10, l2: 256 << 10, source: "default" };

    /// Those of this processor: from the table of known ones, else as it says itself, else small ones.
    pub fn detect() -> Caches {
        #[cfg(target_arch = "x86_64")]
        {
            x86_64::known().or_else(x86_64::said).unwrap_or(Self::SMALLEST)
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::SMALLEST
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::Caches;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::ops::RangeInclusive;

    const INTEL: &[u8; 12] = b"GenuineIntel";
    const AMD: &[u8; 12] = b"AuthenticAMD";

    /// Processors whose caches are known, which virtual machines may hide or misstate: vendor, family,
    /// models, name, KiB of the two caches. The first that fits holds.
    type Row = (&'static [u8; 12], u32, RangeInclusive<u32>, &'static str, usize, usize);
    const KNOWN: &[Row] = &[
        (INTEL, 6, 0x55..=0x55, "Skylake-SP, Cascade Lake", 32, 1024),
        (INTEL, 6, 0x6a..=0x6c, "Ice Lake-SP", 48, 1280),
        (INTEL, 6, 0x8f..=0x8f, "Sapphire Rapids", 48, 2048),
        (INTEL, 6, 0xcf..=0xcf, "Emerald Rapids", 48, 2048),
        (INTEL, 6, 0xad..=0xae, "Granite Rapids", 48, 2048),
        (INTEL, 6, 0x3f..=0x3f, "Haswell-EP", 32, 256),
        (INTEL, 6, 0x4f..=0x4f, "Broadwell-EP", 32, 256),
        (INTEL, 6, 0x4e..=0x4e, "Skylake", 32, 256),
        (INTEL, 6, 0x5e..=0x5e, "Skylake", 32, 256),
        (INTEL, 6, 0x8e..=0x8e, "Kaby Lake, Coffee Lake", 32, 256),
        (INTEL, 6, 0x9e..=0x9e, "Kaby Lake, Coffee Lake", 32, 256),
        (INTEL, 6, 0xa5..=0xa6, "Comet Lake", 32, 256),
        (INTEL, 6, 0x7d..=0x7e, "Ice Lake", 48, 512),
        (INTEL, 6, 0x8c..=0x8d, "Tiger Lake", 48, 1280),
        (INTEL, 6, 0x97..=0x97, "Alder Lake", 48, 1280),
        (INTEL, 6, 0x9a..=0x9a, "Alder Lake", 48, 1280),
        (INTEL, 6, 0xb7..=0xb7, "Raptor Lake", 48, 2048),
        (INTEL, 6, 0xba..=0xba, "Raptor Lake", 48, 2048),
        (INTEL, 6, 0xbf..=0xbf, "Raptor Lake", 48, 2048),
        (AMD, 0x17, 0x00..=0xff, "Zen, Zen 2", 32, 512),
        (AMD, 0x19, 0x10..=0x1f, "Zen 4", 32, 1024),
        (AMD, 0x19, 0x60..=0x7f, "Zen 4", 32, 1024),
        (AMD, 0x19, 0xa0..=0xaf, "Zen 4c", 32, 1024),
        (AMD, 0x19, 0x00..=0xff, "Zen 3", 32, 512),
        (AMD, 0x1a, 0x00..=0xff, "Zen 5", 48, 1024),
    ];

    /// Vendor, family and model.
    fn processor() -> ([u8; 12], u32, u32) {
        let names = __cpuid(0);
        let mut vendor = [0; 12];
        for (to, from) in vendor.as_chunks_mut().0.iter_mut().zip([names.ebx, names.edx, names.ecx])
        {
            *to = from.to_le_bytes();
        }
        let version = __cpuid(1).eax;
        let (family, model) = (version >> 8 & 15, version >> 4 & 15);
        let more = if matches!(family, 6 | 15) { version >> 16 & 15 } else { 0 };
        let family = if family == 15 { 15 + (version >> 20 & 255) } else { family };
        (vendor, family, more << 4 | model)
    }

    pub(super) fn known() -> Option<Caches> {
        let (vendor, family, model) = processor();
        row(&vendor, family, model)
    }

    pub(super) fn row(vendor: &[u8; 12], family: u32, model: u32) -> Option<Caches> {
        KNOWN
            .iter()
            .find(|(name, of, models, ..)| {
                *name == vendor && *of == family && models.contains(&model)
            })
            .map(|&(.., source, l1, l2)| Caches { l1: l1 << 10, l2: l2 << 10, source })
    }

    /// What the processor says of its caches, if it says that of both.
    pub(super) fn said() -> Option<Caches> {
        let (vendor, ..) = processor();
        let leaf = if vendor == *AMD { 0x8000_001d } else { 4 };
        if __cpuid(leaf & 0x8000_0000).eax < leaf {
            return None;
        }
        let (mut l1, mut l2) = (0, 0);
        for i in 0..16 {
            let cache = __cpuid_count(leaf, i);
            let (kind, level) = (cache.eax & 31, cache.eax >> 5 & 7);
            if kind == 0 {
                break;
            }
            let field = |from: u32, n: u32| (cache.ebx >> from & ((1 << n) - 1)) as usize + 1;
            let bytes = field(0, 12) * field(12, 10) * field(22, 10) * (cache.ecx as usize + 1);
            // Data, or everything.
            match (kind, level) {
                (1 | 3, 1) => l1 = bytes,
                // Threads of a core share what is its own, as do cores of a cluster.
                (1 | 3, 2) => l2 = bytes / ((cache.eax >> 14 & 0xfff) as usize + 1).div_ceil(2),
                _ => {}
            }
        }
        (l1 > 0 && l2 > 0).then_some(Caches { l1, l2, source: "cpuid" })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn rows_are_found_by_their_numbers() {
            let found = |vendor, family, model| row(vendor, family, model).map(|row| row.source);
            assert_eq!(found(INTEL, 6, 0xad), Some("Granite Rapids"));
            assert_eq!(found(AMD, 0x19, 0x11), Some("Zen 4"));
            assert_eq!(found(AMD, 0x19, 0x01), Some("Zen 3"));
            assert_eq!(found(AMD, 6, 0xad), None);
            assert_eq!(found(INTEL, 6, 0x01), None);
            for (i, (vendor, family, models, ..)) in KNOWN.iter().enumerate() {
                let first = |model| {
                    KNOWN.iter().position(|(name, of, models, ..)| {
                        name == vendor && of == family && models.contains(&model)
                    })
                };
                let reached = models.clone().any(|model| first(model) == Some(i));
                assert!(reached, "row {i} is hidden by another");
            }
        }

        #[test]
        fn a_processor_says_what_the_table_has() {
            let (known, said) = (known(), said());
            println!("{known:?} {said:?}");
            if let (Some(known), Some(said)) = (known, said) {
                assert_eq!(known.l1, said.l1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_of_some_size() {
        let Caches { l1, l2, source } = Caches::detect();
        assert!((8 << 10..1 << 20).contains(&l1), "{l1} by {source}");
        assert!((l1..64 << 20).contains(&l2), "{l2} by {source}");
    }
}
