//! What the control groups of this process limit it to (cgroups(7)).
//!
//! A process is in one group of each hierarchy: `/proc/self/cgroup` names the group,
//! `/proc/self/mountinfo` tells where the hierarchy is mounted. A limit of any group above holds too, so
//! the least one counts.
//!
//! ```text
//! /proc/self/cgroup      4:memory:/docker/c0ffee          0::/user.slice/run.scope
//! /proc/self/mountinfo   ... /docker/c0ffee /sys/fs/cgroup/memory ... - cgroup cgroup rw,memory
//! version 1              memory.limit_in_bytes, memory.usage_in_bytes, total_cache of memory.stat
//!                        cpu.cfs_quota_us / cpu.cfs_period_us
//! version 2              memory.max, memory.current, file of memory.stat
//!                        cpu.max: "150000 100000", or "max 100000"
//! ```

use serde::Serialize;
use std::path::{Component, Path, PathBuf};

/// Limits from here on are none: version 1 writes "no limit" as the largest whole number of pages.
const NO_LIMIT: u64 = 1 << 60;

/// A limit and the file that sets it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit<T> {
    /// How much.
    pub value: T,
    /// Where it stands.
    pub file: PathBuf,
}

/// The limits that matter here; `None` where nothing limits, or nothing can be read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Limits {
    /// Processor time, as a number of processors.
    pub cpus: Option<Limit<f64>>,
    /// Bytes of memory.
    pub memory: Option<Limit<u64>>,
    /// Bytes of memory that are not used yet; what caches files counts as free.
    pub memory_left: Option<u64>,
}

/// Reads the limits under `root`, which is `/` outside of tests.
pub fn limits(root: &Path) -> Limits {
    let mut limits = Limits::default();
    let groups = read(root, "proc/self/cgroup").unwrap_or_default();
    let mounts = read(root, "proc/self/mountinfo").unwrap_or_default();
    for hierarchy in hierarchies(&groups, &mounts) {
        for group in hierarchy.groups() {
            let file = |name: &str| (group.join(name), read(root, group.join(name)));
            if hierarchy.has("cpu") {
                let (path, value) = match hierarchy.version {
                    Version::One => {
                        let (path, quota) = file("cpu.cfs_quota_us");
                        let (_, period) = file("cpu.cfs_period_us");
                        (path, quota.zip(period).and_then(|(quota, period)| ratio(&quota, &period)))
                    }
                    Version::Two => {
                        let (path, max) = file("cpu.max");
                        let words = max.as_deref().and_then(|max| max.split_once(' '));
                        (path, words.and_then(|(quota, period)| ratio(quota, period)))
                    }
                };
                least(&mut limits.cpus, path, value);
            }
            if hierarchy.has("memory") {
                let (limit, used, cached) = match hierarchy.version {
                    Version::One => {
                        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache ")
                    }
                    Version::Two => ("memory.max", "memory.current", "file "),
                };
                let number = |text: &str| text.trim().parse::<u64>().ok();
                let (path, value) = file(limit);
                let limit = value.as_deref().and_then(number).filter(|bytes| *bytes < NO_LIMIT);
                if let Some(limit) = limit {
                    let used = file(used).1.as_deref().and_then(number).unwrap_or(0);
                    let stat = file("memory.stat").1.unwrap_or_default();
                    let cached = stat.lines().find_map(|line| number(line.strip_prefix(cached)?));
                    let left = limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0)));
                    let least = limits.memory_left.unwrap_or(left);
                    limits.memory_left = Some(left.min(least));
                }
                least(&mut limits.memory, path, limit);
            }
        }
    }
    limits
}

/// Bytes of memory that this process can take without swapping, as far as the system whose files are under
/// `root` tells.
pub fn usable_memory(root: &Path) -> Option<u64> {
    let meminfo = read(root, "proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|rest| {
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    available.into_iter().chain(limits(root).memory_left).min()
}

/// The text of a file under `root`, if it can be read.
pub fn read(root: &Path, path: impl AsRef<Path>) -> Option<String> {
    let path = path.as_ref();
    std::fs::read_to_string(root.join(path.strip_prefix("/").unwrap_or(path))).ok()
}

/// Keeps the smaller one.
fn least<T: PartialOrd>(limit: &mut Option<Limit<T>>, file: PathBuf, value: Option<T>) {
    if let Some(value) = value
        && limit.as_ref().is_none_or(|limit| value < limit.value)
    {
        *limit = Some(Limit { value, file });
    }
}

/// Processors that a quota stands for; `None` for `max` and -1.
fn ratio(quota: &str, period: &str) -> Option<f64> {
    let number = |text: &str| text.trim().parse::<u64>().ok().filter(|n| *n > 0);
    Some(number(quota)? as f64 / number(period)? as f64)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A tree of groups, and our place in it.
#[derive(Debug)]
struct Hierarchy<'a> {
    version: Version,
    /// Separated by commas; version 2 has all of them.
    controllers: &'a str,
    mount: &'a Path,
    /// Our group, from the mount on.
    group: PathBuf,
}

impl Hierarchy<'_> {
    fn has(&self, controller: &str) -> bool {
        self.version == Version::Two || self.controllers.split(',').any(|name| name == controller)
    }

    /// The folders of our group and of all those above it.
    fn groups(&self) -> impl Iterator<Item = PathBuf> {
        self.group.ancestors().map(|group| self.mount.join(group))
    }
}

/// The hierarchies that are mounted, in the order of `/proc/self/cgroup`.
fn hierarchies<'a>(groups: &'a str, mounts: &'a str) -> Vec<Hierarchy<'a>> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let version = if controllers.is_empty() { Version::Two } else { Version::One };
        let mount = mounts.lines().filter_map(Mount::parse).find(|mount| match version {
            Version::One => {
                mount.kind == "cgroup"
                    && controllers
                        .split(',')
                        .all(|name| mount.options.split(',').any(|option| option == name))
            }
            Version::Two => mount.kind == "cgroup2",
        });
        if let Some(Mount { root, at, .. }) = mount {
            // In a container the mount may begin at our own group, or the path lead out of what is mounted.
            let inside = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
            let group = inside.components().filter(|part| matches!(part, Component::Normal(_)));
            found.push(Hierarchy { version, controllers, mount: at, group: group.collect() });
        }
    }
    found
}

/// What a line of `/proc/self/mountinfo` tells (proc_pid_mountinfo(5)).
#[derive(Debug)]
struct Mount<'a> {
    /// The folder of the file system that is mounted.
    root: &'a Path,
    /// Where.
    at: &'a Path,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut system = system.split(' ');
        Some(Self {
            root: Path::new(mount.next()?),
            at: Path::new(mount.next()?),
            kind: system.next()?,
            options: system.nth(1)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const V2: &str = "31 23 0:28 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    /// A folder with these files.
    fn tree(files: &[(&str, &str)]) -> TempDir {
        let root = TempDir::new().expect("a folder");
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }
        root
    }

    /// The limits in a tree of files: processors and the end of the file's name, bytes likewise.
    #[track_caller]
    fn check(files: &[(&str, &str)], cpus: Option<(f64, &str)>, memory: Option<(u64, &str)>) {
        let root = tree(files);
        let found = limits(root.path());
        let shown = found.cpus.as_ref().map(|limit| (limit.value, limit.file.to_str().unwrap()));
        assert_eq!(shown, cpus, "{files:?}");
        let shown = found.memory.as_ref().map(|limit| (limit.value, limit.file.to_str().unwrap()));
        assert_eq!(shown, memory, "{files:?}");
    }

    #[test]
    fn nothing_that_can_be_read() {
        check(&[], None, None);
        check(&[("proc/self/cgroup", "0::/\n")], None, None);
        check(&[("proc/self/cgroup", "0::/\n"), ("proc/self/mountinfo", V2)], None, None);
        check(
            &[("proc/self/cgroup", "x\n:\n::\n0:\n"), ("proc/self/mountinfo", "a b - c")],
            None,
            None,
        );
    }

    #[test]
    fn version_2() {
        let start = [("proc/self/cgroup", "0::/a/b\n"), ("proc/self/mountinfo", V2)];
        let check = |files: &[(&'static str, &'static str)], cpus, memory| {
            check(&[&start[..], files].concat(), cpus, memory);
        };
        let max =
            [("sys/fs/cgroup/a/cpu.max", "max 100000\n"), ("sys/fs/cgroup/a/memory.max", "max\n")];
        check(&max, None, None);
        check(
            &[
                ("sys/fs/cgroup/a/b/cpu.max", "150000 100000\n"),
                ("sys/fs/cgroup/a/b/memory.max", "1073741824\n"),
            ],
            Some((1.5, "/sys/fs/cgroup/a/b/cpu.max")),
            Some((1 << 30, "/sys/fs/cgroup/a/b/memory.max")),
        );
        // A group above is narrower than ours.
        check(
            &[
                ("sys/fs/cgroup/a/b/cpu.max", "400000 100000\n"),
                ("sys/fs/cgroup/a/cpu.max", "50000 100000\n"),
                ("sys/fs/cgroup/memory.max", "4096\n"),
                ("sys/fs/cgroup/a/memory.max", "8192\n"),
            ],
            Some((0.5, "/sys/fs/cgroup/a/cpu.max")),
            Some((4096, "/sys/fs/cgroup/memory.max")),
        );
        for nonsense in ["", "max", "-1 100000", "1 0", "1", "1e5 1e5", "99999999999999999999 1"] {
            check(&[("sys/fs/cgroup/a/b/cpu.max", nonsense)], None, None);
            check(
                &[("sys/fs/cgroup/a/b/memory.max", nonsense)],
                None,
                (nonsense == "1").then_some((1, "/sys/fs/cgroup/a/b/memory.max")),
            );
        }
    }

    #[test]
    fn version_1() {
        let mounts = "\
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";
        let groups = "9:cpu,cpuacct:/job\n4:memory:/job/1\n1:name=systemd:/\n0::/\n";
        let start = [("proc/self/cgroup", groups), ("proc/self/mountinfo", mounts)];
        let check = |files: &[(&'static str, &'static str)], cpus, memory| {
            check(&[&start[..], files].concat(), cpus, memory);
        };
        check(
            &[
                ("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n"),
                ("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n"),
                ("sys/fs/cgroup/memory/job/1/memory.limit_in_bytes", "9223372036854771712\n"),
            ],
            None,
            None,
        );
        check(
            &[
                ("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "250000\n"),
                ("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n"),
                ("sys/fs/cgroup/memory/job/1/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2147483648\n"),
            ],
            Some((2.5, "/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us")),
            Some((2 << 30, "/sys/fs/cgroup/memory/job/memory.limit_in_bytes")),
        );
        // A quota without a period says nothing.
        check(&[("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "250000\n")], None, None);
    }

    #[test]
    fn what_a_group_has_left() {
        let left = |files: &[(&'static str, &'static str)]| {
            let v2 = [("proc/self/cgroup", "0::/a/b\n"), ("proc/self/mountinfo", V2)];
            limits(tree(&[&v2[..], files].concat()).path()).memory_left
        };
        let max = ("sys/fs/cgroup/a/b/memory.max", "1000\n");
        let above = ("sys/fs/cgroup/a/memory.max", "5000\n");
        let used = ("sys/fs/cgroup/a/b/memory.current", "700\n");
        let stat = ("sys/fs/cgroup/a/b/memory.stat", "anon 300\nfile 400\nfile_mapped 9\n");
        assert_eq!(left(&[]), None);
        assert_eq!(left(&[used, stat]), None);
        assert_eq!(left(&[max]), Some(1000));
        assert_eq!(left(&[max, above, used]), Some(300));
        assert_eq!(left(&[max, above, used, stat]), Some(700));
        // The group above is fuller.
        assert_eq!(left(&[max, above, ("sys/fs/cgroup/a/memory.current", "4900")]), Some(100));
        assert_eq!(left(&[max, above, ("sys/fs/cgroup/a/memory.current", "5001")]), Some(0));
        let mounts = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let root = tree(&[
            ("proc/self/cgroup", "4:memory:/job\n"),
            ("proc/self/mountinfo", mounts),
            ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1000"),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "800"),
            ("sys/fs/cgroup/memory/job/memory.stat", "cache 1\ntotal_cache 500\n"),
        ]);
        assert_eq!(limits(root.path()).memory_left, Some(700));
    }

    #[test]
    fn a_container_sees_its_own_group_only() {
        let mounts = "35 31 0:32 /docker/c0ffee /sys/fs/cgroup/memory ro master:12 - cgroup cgroup rw,memory\n";
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4096");
        for group in ["/docker/c0ffee", "/docker/other", "/", "/../../etc"] {
            let groups = format!("4:memory:{group}\n");
            check(
                &[("proc/self/cgroup", &groups), ("proc/self/mountinfo", mounts), limit],
                None,
                Some((4096, "/sys/fs/cgroup/memory/memory.limit_in_bytes")),
            );
        }
    }
}
