//! What the operating system says of this process's memory.

/// The most memory that this process has had in RAM so far, in bytes; pages of mapped files count.
#[cfg(target_os = "linux")]
pub(crate) fn peak_rss() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// The most memory that this process has had in RAM so far, in bytes; pages of mapped files count.
#[cfg(all(unix, not(target_os = "linux")))]
pub(crate) fn peak_rss() -> Option<u64> {
    use nix::sys::resource::{UsageWho, getrusage};
    let peak = u64::try_from(getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss()).ok()?;
    // Apple's systems count bytes, the others kilobytes.
    Some(if cfg!(target_vendor = "apple") { peak } else { peak.saturating_mul(1024) })
}

/// Not known on this system.
#[cfg(not(unix))]
pub(crate) fn peak_rss() -> Option<u64> {
    None
}

/// Bytes of this process that lie in huge pages, where the system tells.
pub(crate) fn huge_pages() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/smaps_rollup").ok()?, "AnonHugePages")
}

/// `NAME:   123 kB` of a file in /proc, in bytes.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        let text = "VmPeak:\t  99 kB\nVmHWM:\t    1234 kB\nThreads:\t1\n";
        assert_eq!(field(text, "VmHWM"), Some(1234 << 10));
        assert_eq!(field(text, "Vm"), None);
        assert_eq!(field(text, "Threads"), None);
        assert_eq!(field(&format!("VmHWM: {} kB", u64::MAX), "VmHWM"), None);
    }

    #[cfg(unix)]
    #[test]
    fn memory_that_is_used_shows() {
        let before = peak_rss().expect("a peak");
        let bytes = vec![1u8; before as usize + (1 << 20)];
        std::hint::black_box(&bytes);
        assert!(peak_rss().expect("a peak") > before);
    }
}
