//! What this machine is, and what of it this process may use, as Linux tells it in `/proc` and `/sys`.
//! What cannot be read is unknown; other systems tell nothing here.
pub(crate) mod memory;

pub(crate) use hurtle_engine::cgroup::Limit;

use hurtle_engine::cgroup::{Limits, limits, read, usable_memory};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// No machine has more processors; a bound on what a list of them can make us do.
const MAX_PROCESSORS: usize = 1 << 16;

/// The facts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    /// Model of the processor.
    pub(crate) processor: Option<String>,
    /// Processors (hardware threads) that run.
    pub(crate) online: Option<usize>,
    /// Those on which this process may run.
    pub(crate) allowed: Option<usize>,
    /// The cores that those belong to.
    pub(crate) cores: Option<usize>,
    /// Processor time that the control group has, as a number of processors.
    pub(crate) cpu_quota: Option<Limit<f64>>,
    /// Bytes of memory.
    pub(crate) memory_total: Option<u64>,
    /// Bytes that can still be used without swapping.
    pub(crate) memory_available: Option<u64>,
    /// Bytes that the control group may use.
    pub(crate) memory_limit: Option<Limit<u64>>,
    /// Bytes that this process can still take, as far as is known.
    pub(crate) usable_memory: Option<u64>,
    /// Those that a processor of ours uses.
    pub(crate) caches: Vec<Cache>,
    /// Who gets huge pages: `always`, `madvise` or `never`.
    pub(crate) huge_pages: Option<String>,
}

/// A cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Cache {
    pub(crate) level: u32,
    /// `Data`, `Instruction` or `Unified`.
    pub(crate) kind: String,
    pub(crate) bytes: u64,
    /// Processors that share it.
    pub(crate) shared_by: Option<usize>,
}

impl Machine {
    /// Reads what lies under `root`, which is `/` outside of tests.
    pub(crate) fn read(root: &Path) -> Self {
        let Limits { cpus, memory, .. } = limits(root);
        let status = read(root, "proc/self/status").unwrap_or_default();
        let allowed = after(&status, "Cpus_allowed_list").and_then(processors);
        let meminfo = read(root, "proc/meminfo").unwrap_or_default();
        let cpuinfo = read(root, "proc/cpuinfo").unwrap_or_default();
        let online = read(root, "sys/devices/system/cpu/online");
        Self {
            processor: after(&cpuinfo, "model name").map(str::to_owned),
            online: online.and_then(|list| processors(&list)).map(|all| all.len()),
            cores: allowed.as_ref().and_then(|allowed| cores(root, allowed)),
            caches: allowed
                .as_ref()
                .and_then(|allowed| allowed.first())
                .map_or_else(Vec::new, |processor| caches(root, *processor)),
            allowed: allowed.map(|allowed| allowed.len()),
            cpu_quota: cpus,
            memory_total: memory::field(&meminfo, "MemTotal"),
            memory_available: memory::field(&meminfo, "MemAvailable"),
            memory_limit: memory,
            usable_memory: usable_memory(root),
            huge_pages: read(root, "sys/kernel/mm/transparent_hugepage/enabled")
                .and_then(|text| Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())),
        }
    }

    /// Bytes of a buffer to measure memory with: more than most caches, a small part of what can be used.
    pub(crate) fn probe_bytes(&self) -> usize {
        let part = self.usable_memory.map_or(256 << 20, |usable| usable / 4);
        part.clamp(16 << 20, 1 << 30) as usize
    }
}

/// What follows `NAME:` in the first line that has it.
fn after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let value = lines.find_map(|rest| rest.trim_start().strip_prefix(':'))?.trim();
    (!value.is_empty()).then_some(value)
}

/// The numbers of a list such as `0-3,8`; `None` if it is none.
fn processors(list: &str) -> Option<Vec<usize>> {
    let mut found = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if last >= MAX_PROCESSORS || found.len() > MAX_PROCESSORS {
            return None;
        }
        found.extend(first..=last);
    }
    Some(found)
}

/// How many cores some processors belong to.
fn cores(root: &Path, processors: &[usize]) -> Option<usize> {
    let siblings = |n: &usize| {
        let topology = format!("sys/devices/system/cpu/cpu{n}/topology");
        read(root, format!("{topology}/thread_siblings_list"))
    };
    let cores: Option<BTreeSet<String>> = processors.iter().map(siblings).collect();
    Some(cores?.len()).filter(|n| *n > 0)
}

/// The caches of a processor, nearest first.
fn caches(root: &Path, processor: usize) -> Vec<Cache> {
    let cache = |index: usize| {
        let file = |name: &str| {
            let path = format!("sys/devices/system/cpu/cpu{processor}/cache/index{index}/{name}");
            read(root, path).map(|text| text.trim().to_owned())
        };
        Some(Cache {
            level: file("level")?.parse().ok()?,
            kind: file("type")?,
            bytes: size(&file("size")?)?,
            shared_by: file("shared_cpu_list")
                .and_then(|list| processors(&list))
                .map(|all| all.len()),
        })
    };
    (0..16).map_while(cache).collect()
}

/// `1024K` in bytes.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, ""),
    };
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => 0,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A folder with these files in it.
    pub(crate) fn tree(files: &[(&str, &str)]) -> TempDir {
        let root = TempDir::new().expect("a folder");
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }
        root
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        let nothing = Machine::read(tree(&[]).path());
        let Machine { processor, online, allowed, cores, caches, huge_pages, .. } = &nothing;
        assert_eq!((processor, online, allowed, cores), (&None, &None, &None, &None));
        assert_eq!((caches.len(), huge_pages), (0, &None));
        assert_eq!(nothing.usable_memory, None);
        let nonsense = Machine::read(
            tree(&[
                ("proc/self/status", "Cpus_allowed_list:\t0-99999999999\n"),
                ("proc/cpuinfo", "model name\t:\n"),
                ("proc/meminfo", "MemTotal: many kB\n"),
                ("sys/devices/system/cpu/online", "a-b"),
                ("sys/kernel/mm/transparent_hugepage/enabled", "always"),
            ])
            .path(),
        );
        assert_eq!(nonsense, nothing);
    }

    #[test]
    fn a_server() {
        let cpu = "sys/devices/system/cpu";
        let owned: Vec<(String, &str)> = vec![
            (
                "proc/cpuinfo".into(),
                "processor\t: 0\nmodel name\t: Some Xeon @ 2.50GHz\nflags\t: x\n",
            ),
            ("proc/self/status".into(), "Name:\tx\nCpus_allowed:\tf\nCpus_allowed_list:\t0-2,5\n"),
            ("proc/meminfo".into(), "MemTotal:  8000 kB\nMemFree: 1 kB\nMemAvailable:  6000 kB\n"),
            (format!("{cpu}/online"), "0-7\n"),
            (format!("{cpu}/cpu0/topology/thread_siblings_list"), "0,4\n"),
            (format!("{cpu}/cpu1/topology/thread_siblings_list"), "1,5\n"),
            (format!("{cpu}/cpu2/topology/thread_siblings_list"), "2,6\n"),
            (format!("{cpu}/cpu5/topology/thread_siblings_list"), "1,5\n"),
            (format!("{cpu}/cpu0/cache/index0/level"), "1\n"),
            (format!("{cpu}/cpu0/cache/index0/type"), "Data\n"),
            (format!("{cpu}/cpu0/cache/index0/size"), "32K\n"),
            (format!("{cpu}/cpu0/cache/index0/shared_cpu_list"), "0,4\n"),
            (format!("{cpu}/cpu0/cache/index1/level"), "3\n"),
            (format!("{cpu}/cpu0/cache/index1/type"), "Unified\n"),
            (format!("{cpu}/cpu0/cache/index1/size"), "480M\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled".into(), "always [madvise] never\n"),
            ("proc/self/cgroup".into(), "0::/\n"),
            ("proc/self/mountinfo".into(), "1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("sys/fs/cgroup/memory.max".into(), "4096000\n"),
            ("sys/fs/cgroup/cpu.max".into(), "300000 100000\n"),
        ];
        let files: Vec<(&str, &str)> =
            owned.iter().map(|(name, text)| (name.as_str(), *text)).collect();
        let machine = Machine::read(tree(&files).path());
        assert_eq!(machine.processor.as_deref(), Some("Some Xeon @ 2.50GHz"));
        assert_eq!((machine.online, machine.allowed, machine.cores), (Some(8), Some(4), Some(3)));
        assert_eq!(machine.cpu_quota.as_ref().map(|limit| limit.value), Some(3.0));
        assert_eq!(machine.memory_total, Some(8000 << 10));
        assert_eq!(machine.usable_memory, Some(4_096_000));
        assert_eq!(machine.huge_pages.as_deref(), Some("madvise"));
        let cache = |level, kind: &str, bytes, shared_by| Cache {
            level,
            kind: kind.into(),
            bytes,
            shared_by,
        };
        let expected = [cache(1, "Data", 32 << 10, Some(2)), cache(3, "Unified", 480 << 20, None)];
        assert_eq!(machine.caches, expected);
    }
}
