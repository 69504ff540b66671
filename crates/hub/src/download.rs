//! One file from one address to the disk: resumed, verified, never half there.
//!
//! ```text
//! NAME.partial        the bytes so far
//! NAME.partial.json   what they are the beginning of: address, validator (ETag), sha256
//! ```
//! The file is complete and synced when [`download`] returns; [`settle`] then moves it to its
//! place. What identifies the content, in order of trust: a sha256 that the caller knows, the
//! sha256 that Hugging Face sends, the ETag. Without any of these an interrupted download starts
//! over, since nothing says that the rest belongs to the beginning.
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ureq::http::HeaderMap;

use crate::http::{Answer, Client, Transient, describe_io, header, without_userinfo};
use crate::spec::is_sha256;
use crate::{Error, Progress, files};

/// What to fetch and what is known about it.
#[derive(Debug, Default)]
pub(crate) struct Request<'a> {
    pub(crate) url: &'a str,
    /// How it is called in progress and errors.
    pub(crate) what: &'a str,
    pub(crate) bytes: Option<u64>,
    /// 64 lower-case hexadecimal digits.
    pub(crate) sha256: Option<String>,
    /// Whether `X-Linked-ETag` and `ETag` may be sha256 sums, as Hugging Face sends them.
    pub(crate) etag_is_sha256: bool,
}

/// A complete file.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: u64,
    /// Of the content as it lies on the disk.
    pub(crate) sha256: String,
    /// The name that the server suggests (`Content-Disposition`); not checked for safety.
    pub(crate) suggested_name: Option<String>,
    /// Hugging Face's name of the content: `X-Linked-ETag`, else `ETag`, without quotes.
    pub(crate) etag: Option<String>,
}

/// The note beside a partial file.
#[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
struct Note {
    url: String,
    /// A strong ETag of the server that sends the bytes, for `If-Range`.
    validator: Option<String>,
    sha256: Option<String>,
    bytes: Option<u64>,
}

/// A partial file being written, with the sum of what it holds.
struct Partial {
    path: PathBuf,
    file: File,
    done: u64,
    sum: Sha256,
}

/// Fetches `request` into `partial`, going on where an earlier attempt ended.
///
/// # Errors
/// [`Error::Network`] after too many failures in a row, [`Error::Status`], [`Error::Checksum`] and
/// [`Error::Size`] (the bad file is discarded), [`Error::NoSpace`] (the good part is kept),
/// [`Error::NotGguf`].
pub(crate) fn download(
    client: &Client,
    request: &Request<'_>,
    partial: &Path,
    progress: &mut dyn Progress,
) -> Result<Fetched, Error> {
    let mut download = Download {
        client,
        request,
        note: Note::default(),
        note_path: files::with_suffix(partial, ".json"),
        partial: Partial::open(partial)?,
        started: false,
    };
    let result = download.load_note().and_then(|()| download.run(progress));
    if download.started {
        progress.finish();
    }
    if result.is_err() && download.partial.done == 0 {
        download.discard();
    }
    result
}

/// Moves a complete file to its place and drops the note beside it.
pub(crate) fn settle(partial: &Path, place: &Path) -> Result<(), Error> {
    files::rename(partial, place)?;
    let _ = std::fs::remove_file(files::with_suffix(partial, ".json"));
    Ok(())
}

struct Download<'a> {
    client: &'a Client,
    request: &'a Request<'a>,
    note: Note,
    note_path: PathBuf,
    partial: Partial,
    started: bool,
}

/// How one attempt ended, if it did not fail for good.
enum Attempt {
    Done(Fetched),
    /// The connection or the server failed; bytes may have been gained.
    Failed(Transient),
    /// What was there is no beginning of what the server has: start over.
    Stale(&'static str),
}

impl Download<'_> {
    /// Keeps what an earlier attempt left only if its note says that it is the same file.
    fn load_note(&mut self) -> Result<(), Error> {
        let note = files::read_small(&self.note_path)
            .and_then(|text| serde_json::from_str::<Note>(&text).ok())
            .filter(|note| match (&self.request.sha256, &note.sha256) {
                (Some(known), Some(noted)) => known == noted,
                _ => note.url == without_userinfo(self.request.url),
            });
        match note {
            Some(note) => self.note = note,
            None => self.partial.clear()?,
        }
        Ok(())
    }

    fn run(&mut self, progress: &mut dyn Progress) -> Result<Fetched, Error> {
        let shown = without_userinfo(self.request.url);
        let mut failures = self.client.retry.start();
        let mut gained_at = self.partial.done;
        let mut restarts = 0;
        loop {
            match self.attempt(progress)? {
                Attempt::Done(fetched) => return Ok(fetched),
                Attempt::Stale(why) if restarts < 2 => {
                    restarts += 1;
                    progress.note(&format!("{}: {why}; starting over", self.request.what));
                    self.partial.clear()?;
                    self.note = Note::default();
                    gained_at = 0;
                }
                Attempt::Stale(why) => {
                    return Err(Error::BadAnswer { url: shown, why: why.into() });
                }
                Attempt::Failed(failure) => {
                    // A server that always fails after a few bytes is not making progress.
                    if self.partial.done >= gained_at.saturating_add(1 << 20) {
                        gained_at = self.partial.done;
                        failures.reset();
                    }
                    failures.wait(&shown, &failure, progress)?;
                }
            }
        }
    }

    fn attempt(&mut self, progress: &mut dyn Progress) -> Result<Attempt, Error> {
        // The sum decides at the end, so with one known any beginning may be continued.
        let known_sum = self.request.sha256.is_some() || self.note.sha256.is_some();
        if self.partial.done > 0 && self.note.validator.is_none() && !known_sum {
            self.partial.clear()?;
        }
        let resumed_at = self.partial.done;
        let range = format!("bytes={resumed_at}-");
        let mut headers = Vec::new();
        if resumed_at > 0 {
            headers.push(("Range", range.as_str()));
            if let Some(validator) = &self.note.validator {
                headers.push(("If-Range", validator.as_str()));
            }
        }
        let mut answer = match self.client.get_once(self.request.url, &headers, &[416])? {
            Ok(answer) => answer,
            Err(failure) => return Ok(Attempt::Failed(failure)),
        };
        let identity = self.identity(&answer);
        let changed = |noted: &Option<String>, now: &Option<String>| {
            resumed_at > 0 && noted.is_some() && now.is_some() && noted != now
        };
        if changed(&self.note.sha256, &identity.sha256) {
            return Ok(Attempt::Stale("the file has changed on the server"));
        }

        let status = answer.response.status().as_u16();
        let length = answer.response.body().content_length();
        let total = match status {
            416 => {
                let total = header(answer.response.headers(), "content-range")
                    .and_then(|v| v.strip_prefix("bytes */")?.trim().parse::<u64>().ok());
                let complete = resumed_at > 0 && total == Some(resumed_at);
                if !complete {
                    return Ok(Attempt::Stale("the server has no such part of the file"));
                }
                total
            }
            206 => match content_range(answer.response.headers()) {
                Some((first, total)) if first == resumed_at && resumed_at > 0 => {
                    if changed(&self.note.validator, &identity.validator) {
                        return Ok(Attempt::Stale("the file has changed on the server"));
                    }
                    total
                }
                _ => return Ok(Attempt::Stale("the server sent another part than asked for")),
            },
            _ => {
                if resumed_at > 0 {
                    progress.note(&format!(
                        "{}: the server sends the whole file again",
                        self.request.what
                    ));
                    self.partial.clear()?;
                }
                length
            }
        };
        if matches!(status, 206 | 416)
            && let (Some(noted), Some(now)) = (self.note.bytes, total)
            && noted != now
        {
            return Ok(Attempt::Stale("the server now gives another size"));
        }
        let mut fetched = Fetched {
            bytes: 0,
            sha256: String::new(),
            suggested_name: suggested_name(answer.response.headers()),
            etag: linked_etag(&answer).map(str::to_owned),
        };
        let expected = self.request.bytes.or(total);
        self.note = Note { bytes: expected, ..identity };
        self.check_promise(expected, total)?;
        files::write_json(&self.note_path, &self.note)?;
        if !self.started {
            self.started = true;
            progress.start(self.request.what, expected);
        }
        progress.advance(self.partial.done);

        if status != 416 {
            let body = answer.response.body_mut().with_config().reader();
            if let Some(failure) = self.copy(body, expected, progress)? {
                return Ok(Attempt::Failed(failure));
            }
        }
        let done = self.partial.done;
        if let Some(expected) = expected.filter(|e| *e != done) {
            // A lying Content-Length. The next attempt asks for the rest.
            if done < expected {
                let why = format!("expected {expected} bytes, {done} arrived");
                return Ok(Attempt::Failed(Transient::new(why)));
            }
            self.discard();
            return Err(Error::Size { what: self.request.what.into(), expected, found: done });
        }
        fetched.bytes = done;
        fetched.sha256 = hex(&self.partial.sum.clone().finalize());
        if let Some(expected) = self.note.sha256.as_ref().filter(|e| **e != fetched.sha256) {
            if resumed_at > 0 {
                return Ok(Attempt::Stale("the resumed file has the wrong checksum"));
            }
            let expected = expected.clone();
            self.discard();
            let what = self.request.what.into();
            return Err(Error::Checksum { what, expected, found: fetched.sha256 });
        }
        self.partial.sync()?;
        if let Err(error) = files::check_magic(&self.partial.path, self.request.what) {
            self.discard();
            return Err(error);
        }
        // Now the partial file is its own description: asked for again, the server only confirms
        // it.
        self.note.bytes = Some(done);
        self.note.sha256 = Some(fetched.sha256.clone());
        files::write_json(&self.note_path, &self.note)?;
        Ok(Attempt::Done(fetched))
    }

    /// What the answer says about the content.
    fn identity(&self, answer: &Answer) -> Note {
        let from_etag = linked_etag(answer)
            .filter(|etag| self.request.etag_is_sha256 && is_sha256(etag))
            .map(str::to_ascii_lowercase);
        Note {
            url: without_userinfo(self.request.url),
            validator: header(answer.response.headers(), "etag")
                .filter(|etag| etag.starts_with('"') && etag.len() < 256)
                .map(str::to_owned),
            sha256: self.request.sha256.clone().or(from_etag),
            bytes: None,
        }
    }

    /// Refuses at once what cannot end well: a size other than the known one, and a full disk.
    fn check_promise(&self, expected: Option<u64>, total: Option<u64>) -> Result<(), Error> {
        if let (Some(expected), Some(found)) = (self.request.bytes, total)
            && expected != found
        {
            let what = self.request.what.into();
            return Err(Error::Size { what, expected, found });
        }
        match expected {
            Some(bytes) => {
                files::check_space(&self.partial.path, bytes.saturating_sub(self.partial.done))
            }
            None => Ok(()),
        }
    }

    /// Appends the body, at most one byte more than expected. `Some` if the connection failed.
    fn copy(
        &mut self,
        mut body: impl Read,
        expected: Option<u64>,
        progress: &mut dyn Progress,
    ) -> Result<Option<Transient>, Error> {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            if expected.is_some_and(|e| self.partial.done > e) {
                return Ok(None);
            }
            match body.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => {
                    self.partial.append(&buffer[..n])?;
                    progress.advance(self.partial.done);
                    crate::go_on(progress)?;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Ok(Some(Transient::new(describe_io(&e)))),
            }
        }
    }

    fn discard(&self) {
        let _ = std::fs::remove_file(&self.partial.path);
        let _ = std::fs::remove_file(&self.note_path);
    }
}

impl Partial {
    /// Opens or creates the file and sums what it holds.
    fn open(path: &Path) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io(path, "open the partial file"))?;
        let mut partial = Self { path: path.to_owned(), file, done: 0, sum: Sha256::new() };
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let n = partial.file.read(&mut buffer).map_err(Error::io(path, "read"))?;
            if n == 0 {
                return Ok(partial);
            }
            partial.sum.update(&buffer[..n]);
            partial.done += n as u64;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Err(e) = self.file.write_all(bytes) {
            // Part of the block may have been written; keep file and sum in step.
            let _ = self.file.set_len(self.done);
            return Err(Error::io(&self.path, "write")(e));
        }
        self.sum.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> Result<(), Error> {
        self.file.set_len(0).map_err(Error::io(&self.path, "truncate"))?;
        self.file.seek(SeekFrom::Start(0)).map_err(Error::io(&self.path, "rewind"))?;
        self.done = 0;
        self.sum = Sha256::new();
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io(&self.path, "sync"))
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// `X-Linked-ETag` of the first answer, else `ETag` of the first answer, without `W/` and quotes.
fn linked_etag(answer: &Answer) -> Option<&str> {
    let etag = header(&answer.first_headers, "x-linked-etag")
        .or_else(|| header(&answer.first_headers, "etag"))?;
    Some(etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"'))
}

/// First byte and total of `Content-Range: bytes FIRST-LAST/TOTAL`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) =
        header(headers, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((first.trim().parse().ok()?, total))
}

/// The file name of `Content-Disposition` (RFC 6266), `filename*` in UTF-8 before `filename`.
fn suggested_name(headers: &HeaderMap) -> Option<String> {
    let value = header(headers, "content-disposition")?;
    let parameter = |name: &str| {
        value.split(';').find_map(|part| {
            let (key, value) = part.trim().split_once('=')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
        })
    };
    let extended = parameter("filename*").and_then(|value| {
        let encoded = value.strip_prefix("UTF-8''").or_else(|| value.strip_prefix("utf-8''"))?;
        Some(percent_encoding::percent_decode_str(encoded).decode_utf8().ok()?.into_owned())
    });
    extended.or_else(|| parameter("filename").map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn content_ranges() {
        let check = |value: &str, expected: Option<(u64, Option<u64>)>| {
            assert_eq!(content_range(&headers("content-range", value)), expected, "{value}");
        };
        check("bytes 5-9/10", Some((5, Some(10))));
        check("bytes 5-9/*", Some((5, None)));
        check("bytes */10", None);
        check("bytes 5-9/-1", None);
        check("bytes 99999999999999999999-/1", None);
        check("items 5-9/10", None);
    }

    #[test]
    fn suggested_names() {
        let check = |value: &str, expected: Option<&str>| {
            let found = suggested_name(&headers("content-disposition", value));
            assert_eq!(found.as_deref(), expected, "{value}");
        };
        check("attachment; filename=\"a b.gguf\"", Some("a b.gguf"));
        check("inline; filename*=UTF-8''a%20b.gguf; filename=\"x\";", Some("a b.gguf"));
        check("attachment; FileName=a.gguf", Some("a.gguf"));
        check("attachment", None);
    }
}
