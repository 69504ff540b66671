//! Files as a store needs them: written completely or not at all, locked against other processes.
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::error::printable;
use crate::{Error, Progress};

/// The most that is read of a manifest or note.
const MAX_SMALL: u64 = 4 << 20;

/// `path` with `suffix` after its last character.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A small text file; `None` if it is missing, unreadable, too large or no UTF-8.
pub(crate) fn read_small(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    let n = file.take(MAX_SMALL + 1).read_to_string(&mut text).ok()?;
    (n as u64 <= MAX_SMALL).then_some(text)
}

/// Writes and syncs a JSON file; atomic, since it goes through a neighbour and a rename.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::Io {
        path: path.to_owned(),
        doing: "encode",
        source: e.into(),
    })?;
    text.push(b'\n');
    write_atomic(path, &text)
}

/// Writes and syncs a small file through a neighbour and a rename.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = with_suffix(path, ".new");
    let mut file = File::create(&temporary).map_err(Error::io(&temporary, "create"))?;
    file.write_all(bytes).map_err(Error::io(&temporary, "write"))?;
    file.sync_all().map_err(Error::io(&temporary, "sync"))?;
    rename(&temporary, path)
}

/// Renames and makes the rename itself last.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(Error::io(to, "move a finished file here"))?;
    sync_folder_of(to);
    Ok(())
}

/// Makes changes of a folder last. Not all file systems can; what they cannot, they do not need.
fn sync_folder_of(path: &Path) {
    if cfg!(unix)
        && let Some(folder) = path.parent().and_then(|p| File::open(p).ok())
    {
        let _ = folder.sync_all();
    }
}

pub(crate) fn create_dir_all(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::io(path, "create the folder"))
}

/// Removes a folder with all that is in it, if it is there.
pub(crate) fn remove_dir_all(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(path, "remove the folder")(e))
        }
        _ => Ok(()),
    }
}

/// Refuses a write of `needed` bytes near `path` that the disk has no room for. A file system that
/// does not say how much is free is given the benefit of the doubt.
pub(crate) fn check_space(path: &Path, needed: u64) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(path);
    match available_space(folder) {
        Some(available) if available < needed => Err(Error::NoSpace {
            path: folder.to_owned(),
            needed: Some(needed),
            available: Some(available),
        }),
        _ => Ok(()),
    }
}

/// Bytes that the disk under `folder` has room for, if its file system tells.
pub fn available_space(folder: &Path) -> Option<u64> {
    fs4::available_space(folder).ok()
}

/// Refuses a file that does not begin as GGUF files do.
pub(crate) fn check_magic(path: &Path, what: &str) -> Result<(), Error> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    file.take(48).read_to_end(&mut start).map_err(Error::io(path, "read"))?;
    if start.starts_with(b"GGUF") {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&start);
    let found = if start.is_empty() {
        "nothing: it is empty".to_owned()
    } else if text.trim_start().starts_with('<') {
        format!("a web page: {}", printable(&text, 48))
    } else if text.starts_with("version https://git-lfs") {
        "a Git LFS pointer instead of the file itself".to_owned()
    } else if start[0].is_ascii_graphic() && start.iter().all(|b| b.is_ascii()) {
        format!("text: {}", printable(&text, 48))
    } else {
        format!("the bytes {:02x?}", &start[..start.len().min(4)])
    };
    Err(Error::NotGguf { what: what.to_owned(), found })
}

/// A lock that processes share; released when dropped. The file stays, since removing it would
/// race.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough while a program that another thread starts has a copy of the descriptor.
        let _ = self.file.unlock();
    }
}

impl Lock {
    /// Waits until no other process holds the lock, and says so.
    pub(crate) fn wait(
        path: &Path,
        what: &str,
        progress: &mut dyn Progress,
    ) -> Result<Self, Error> {
        if let Some(lock) = Self::try_now(path)? {
            return Ok(lock);
        }
        progress.note(&format!("waiting for another process that is fetching {what}"));
        loop {
            std::thread::sleep(Duration::from_millis(200));
            crate::go_on(progress)?;
            if let Some(lock) = Self::try_now(path)? {
                return Ok(lock);
            }
        }
    }

    /// The lock, or `None` if another process holds it.
    pub(crate) fn try_now(path: &Path) -> Result<Option<Self>, Error> {
        let file = Self::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            // Some network file systems have no locks; one user pulling twice at once is then at
            // risk, which beats not pulling at all.
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {
                Ok(Some(Self { file }))
            }
            Err(TryLockError::Error(e)) => Err(Error::io(path, "lock")(e)),
        }
    }

    fn open(path: &Path) -> Result<File, Error> {
        if let Some(folder) = path.parent() {
            create_dir_all(folder)?;
        }
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(Error::io(path, "open the lock"))
    }
}
