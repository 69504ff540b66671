//! Hugging Face: what a repository offers, and its shared cache on the disk.
//!
//! The cache has the layout of the `huggingface_hub` package, so that what one tool fetched the
//! others find:
//! ```text
//! models--USER--REPO/refs/main                      the commit that "main" was when last asked
//!                   /blobs/ETAG                     contents; for large files ETAG is their sha256
//!                   /snapshots/COMMIT/PATH          links to the blobs under their names in the repository
//! .locks/models--USER--REPO/hurtle.lock
//! ```
//! A blob gets its name by a rename when it is complete, and a snapshot its link after that.
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::download::{Request, download, hex, settle};
use crate::files::{self, Lock};
use crate::gguf_files::{all_models, base_name, choose, is_safe_path, quant_of, with_splits};
use crate::http::{Client, PATH_SEGMENT};
use crate::spec::{HfFile, HfSpec, Spec, is_sha256};
use crate::{Error, HubConfig, LocalModel, Origin, Progress};

/// The most bytes that a listing may have; the largest repositories need a few MB.
const MAX_LISTING: u64 = 64 << 20;

/// Files looked at in one snapshot, and how deep: no model repository comes near.
const MAX_SNAPSHOT_FILES: usize = 20_000;
const MAX_SNAPSHOT_DEPTH: usize = 8;

/// What `/api/models/USER/REPO` answers; only the fields used here.
#[derive(Deserialize)]
struct Listing {
    /// The commit.
    sha: Option<String>,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

/// The server and the cache of the configuration.
pub(crate) struct HuggingFace<'a> {
    config: &'a HubConfig,
    client: &'a Client,
}

impl<'a> HuggingFace<'a> {
    pub(crate) fn new(config: &'a HubConfig, client: &'a Client) -> Self {
        Self { config, client }
    }

    fn folder(&self, repo: &str) -> PathBuf {
        self.config.hf_cache.join(format!("models--{}", repo.replace('/', "--")))
    }

    /// The model as it lies in the cache.
    pub(crate) fn find(&self, spec: &HfSpec) -> Option<LocalModel> {
        snapshots(&self.folder(&spec.repo)).iter().find_map(|snapshot| {
            let paths = files_under(snapshot);
            let chosen = select(spec, paths.iter().map(String::as_str)).ok()?;
            self.local(spec, snapshot, chosen)
        })
    }

    /// The model whose first file is `path` in a snapshot; `None` if a split is missing.
    fn local(&self, spec: &HfSpec, snapshot: &Path, path: &str) -> Option<LocalModel> {
        let source = format!("the Hugging Face cache {}", self.config.hf_cache.display());
        LocalModel::of_file(
            spec.to_string(),
            &snapshot.join(path),
            Origin::HuggingFaceCache,
            source,
        )
    }

    /// Every model in the cache, named so that [`HuggingFace::find`] finds it.
    pub(crate) fn list(&self) -> Vec<LocalModel> {
        let mut models = Vec::new();
        let entries = fs::read_dir(&self.config.hf_cache).into_iter().flatten().flatten();
        for entry in entries {
            let folder = entry.file_name();
            let repo = folder.to_str().and_then(|name| name.strip_prefix("models--"));
            let repo = repo.map(|name| name.replacen("--", "/", 1));
            let Some(Ok(Spec::Hf(repo))) = repo.map(|r| Spec::parse(&format!("hf:{r}"), None))
            else {
                continue;
            };
            let mut seen = HashSet::new();
            for snapshot in snapshots(&entry.path()) {
                let paths = files_under(&snapshot);
                for path in all_models(paths.iter().map(String::as_str)) {
                    if seen.contains(path) {
                        continue;
                    }
                    let file = HfFile::Path(path.to_owned());
                    let long = HfSpec { repo: repo.repo.clone(), file };
                    let Some(model) = self.local(&long, &snapshot, path) else { continue };
                    seen.insert(path.to_owned());
                    // The short name if it leads to the same file.
                    let short = quant_of(path).and_then(|quant| {
                        let file = HfFile::Quant(quant.to_owned());
                        self.find(&HfSpec { repo: repo.repo.clone(), file })
                    });
                    models.push(short.filter(|s| s.path == model.path).unwrap_or(model));
                }
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    /// Fetches the model into the cache; files that are there already are not fetched again unless
    /// `force`.
    pub(crate) fn fetch(
        &self,
        spec: &HfSpec,
        force: bool,
        progress: &mut dyn Progress,
    ) -> Result<LocalModel, Error> {
        let offline =
            [(self.config.offline, "HURTLE_OFFLINE"), (self.config.hf_offline, "HF_HUB_OFFLINE")];
        if let Some((_, variable)) = offline.into_iter().find(|(on, _)| *on) {
            return Err(Error::Offline { what: spec.to_string(), variable });
        }
        let folder = self.folder(&spec.repo);
        let locks = self.config.hf_cache.join(".locks");
        let lock = locks.join(folder.file_name().unwrap_or_default()).join("hurtle.lock");
        let _lock = Lock::wait(&lock, &spec.to_string(), progress)?;
        if !force && let Some(model) = self.find(spec) {
            return Ok(model);
        }

        progress.note(&format!("looking up {spec} at {}", self.endpoint()));
        let listing = self.listing(&spec.repo, progress)?;
        let usable: Vec<&Sibling> =
            listing.siblings.iter().filter(|s| is_safe_path(&s.rfilename)).collect();
        let chosen = select(spec, usable.iter().map(|s| s.rfilename.as_str()))?.to_owned();
        let wanted = with_splits(&chosen);
        let siblings: Vec<&Sibling> = wanted
            .iter()
            .filter_map(|path| usable.iter().copied().find(|s| s.rfilename == *path))
            .collect();
        if siblings.len() != wanted.len() {
            return Err(Error::IncompleteSplit {
                place: format!("hf:{}", spec.repo),
                name: chosen,
                found: siblings.len(),
                expected: wanted.len(),
            });
        }
        // A mirror may not know the commit; "main" then names the snapshot.
        let is_commit = |c: &String| c.len() == 40 && c.bytes().all(|b| b.is_ascii_hexdigit());
        let commit = listing.sha.filter(is_commit).unwrap_or_else(|| "main".into());
        let snapshot = folder.join("snapshots").join(&commit);
        for sibling in siblings {
            self.fetch_file(&spec.repo, &commit, sibling, &folder, &snapshot, force, progress)?;
        }
        if commit != "main" {
            files::create_dir_all(&folder.join("refs"))?;
            files::write_atomic(&folder.join("refs").join("main"), commit.as_bytes())?;
        }
        let path = snapshot.join(&wanted[0]);
        self.local(spec, &snapshot, &wanted[0]).ok_or(Error::NoSuchFile(path))
    }

    /// One file of the repository into blobs, and its link into the snapshot.
    #[expect(
        clippy::too_many_arguments,
        reason = "one file's place in the repository and on the disk"
    )]
    fn fetch_file(
        &self,
        repo: &str,
        commit: &str,
        sibling: &Sibling,
        folder: &Path,
        snapshot: &Path,
        force: bool,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let path = &sibling.rfilename;
        let blobs = folder.join("blobs");
        files::create_dir_all(&blobs)?;
        let known_sum = sibling
            .lfs
            .as_ref()
            .and_then(|lfs| lfs.sha256.as_deref())
            .filter(|sum| is_sha256(sum))
            .map(str::to_ascii_lowercase);
        if !force && let Some(sum) = &known_sum {
            let whole = fs::metadata(blobs.join(sum))
                .is_ok_and(|m| m.is_file() && sibling.size.is_none_or(|size| size == m.len()));
            if whole {
                return link(&blobs.join(sum), snapshot, path);
            }
        }

        let segments: Vec<String> = path
            .split('/')
            .map(|s| percent_encoding::utf8_percent_encode(s, PATH_SEGMENT).to_string())
            .collect();
        let url = format!("{}/{repo}/resolve/{commit}/{}", self.endpoint(), segments.join("/"));
        let request = Request {
            url: &url,
            what: base_name(path),
            bytes: sibling.size,
            sha256: known_sum,
            etag_is_sha256: true,
        };
        let key = hex(&<sha2::Sha256 as sha2::Digest>::digest(path));
        let partial = blobs.join(format!("hurtle-{}.partial", &key[..16]));
        let fetched = download(self.client, &request, &partial, progress)
            .map_err(|e| self.explain(repo, &format!("{repo}/{path}"), e))?;
        // The cache names blobs by their ETag, whatever it is made of.
        let is_plain = |e: &String| {
            (8..=128).contains(&e.len()) && e.bytes().all(|b| b.is_ascii_alphanumeric())
        };
        let blob = blobs.join(fetched.etag.filter(is_plain).unwrap_or(fetched.sha256));
        settle(&partial, &blob)?;
        link(&blob, snapshot, path)
    }

    fn listing(&self, repo: &str, progress: &mut dyn Progress) -> Result<Listing, Error> {
        let url = format!("{}/api/models/{repo}?blobs=true", self.endpoint());
        let text = self
            .client
            .get_text(&url, MAX_LISTING, progress)
            .map_err(|e| self.explain(repo, repo, e))?;
        serde_json::from_str(&text).map_err(|e| Error::BadAnswer {
            url,
            why: format!("expected the JSON description of a repository: {e}"),
        })
    }

    fn endpoint(&self) -> &str {
        self.config.hf_endpoint.trim_end_matches('/')
    }

    /// What the statuses mean here.
    fn explain(&self, repo: &str, what: &str, error: Error) -> Error {
        match error {
            Error::Status { status: status @ (401 | 403), detail, .. } => Error::Denied {
                repo: repo.to_owned(),
                status,
                detail,
                with_token: self.client.has_token(),
                page: format!("{}/{repo}", self.endpoint()),
                endpoint: self.endpoint().to_owned(),
            },
            Error::Status { status: 404, .. } => {
                Error::NoSuchRepo { what: what.to_owned(), endpoint: self.endpoint().to_owned() }
            }
            other => other,
        }
    }
}

/// The (first) file that `spec` means among `paths`.
fn select<'p>(spec: &HfSpec, paths: impl Iterator<Item = &'p str>) -> Result<&'p str, Error> {
    let paths: Vec<&str> = paths.collect();
    let (wanted, chosen) = match &spec.file {
        HfFile::Default => ("any quantization", choose(paths, None)),
        HfFile::Quant(quant) => (quant.as_str(), choose(paths, Some(quant))),
        HfFile::Path(path) => {
            let first = with_splits(path).swap_remove(0);
            let found = paths.iter().copied().find(|p| *p == first);
            let others = || all_models(paths).into_iter().take(40).map(str::to_owned).collect();
            (path.as_str(), found.ok_or_else(others))
        }
    };
    chosen.map_err(|available| Error::NoSuchQuant {
        place: format!("hf:{}", spec.repo),
        wanted: wanted.to_owned(),
        available,
    })
}

/// The snapshots of a repository's folder: that of `main` first, then the others, newest first.
fn snapshots(folder: &Path) -> Vec<PathBuf> {
    let main = files::read_small(&folder.join("refs").join("main"));
    let main = main.as_deref().map(str::trim);
    let mut found: Vec<_> = fs::read_dir(folder.join("snapshots"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.path().is_dir())
        .map(|e| {
            let is_main = main.is_some_and(|m| e.file_name() == m);
            let modified = e.metadata().and_then(|m| m.modified()).ok();
            (is_main, modified, e.path())
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, _, path)| path).collect()
}

/// Relative `/`-separated paths of the files in a snapshot; links to files count as files.
fn files_under(snapshot: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![(snapshot.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = todo.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = format!("{prefix}{name}");
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                if depth < MAX_SNAPSHOT_DEPTH {
                    todo.push((entry.path(), format!("{path}/"), depth + 1));
                }
            } else if is_safe_path(&path)
                && found.len() < MAX_SNAPSHOT_FILES
                && entry.path().is_file()
            {
                found.push(path);
            }
        }
    }
    found
}

/// Makes `snapshot/path` a relative link to the blob. Where the file system has no links the file
/// itself moves there, as `huggingface_hub` does it.
fn link(blob: &Path, snapshot: &Path, path: &str) -> Result<(), Error> {
    let target = snapshot.join(path);
    if let Some(folder) = target.parent() {
        files::create_dir_all(folder)?;
    }
    let up = "../".repeat(2 + path.matches('/').count());
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    let temporary = files::with_suffix(&target, ".new");
    let _ = fs::remove_file(&temporary);
    if symlink(&format!("{up}blobs/{name}"), &temporary).is_ok() {
        files::rename(&temporary, &target)
    } else {
        files::rename(blob, &target)
    }
}

#[cfg(unix)]
fn symlink(original: &str, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(original, link)
}

#[cfg(windows)]
fn symlink(original: &str, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(original, link)
}
