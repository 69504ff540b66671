//! Pages of the prefix cache in files, so that a restart or a lack of memory does not cost prompts their processing.
//!
//! ```text
//! key(0) = sha256(identity, tokens 0..64)    key(i) = sha256(key(i - 1), tokens 64 i .. 64 i + 64)
//! DIR/<key>.kv:  "hurtlekv" | key | keys and values of 64 positions, as in memory | sha256 of all before
//! ```
//! What a page holds follows from the tokens up to its end and from what the identity names: weights, types of
//! keys and values, arithmetic, version. So a page that is found under its key has the bits that it would
//! have if it were computed. A file is written beside its name and renamed: who is killed meanwhile loses what was
//! not written yet, and a file that a loss of power has left half written is found by its checksum.

use crate::Engine;
use hurtle_model::PAGE_TOKENS;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(crate) type Key = [u8; 32];

const MAGIC: &[u8; 8] = b"hurtlekv";
/// To be raised when the bits of pages change within a version.
const REVISION: u8 = 2;

/// How long nothing is written after a failure: a disk that is full stays so for a while.
const PAUSE: Duration = Duration::from_secs(60);

/// A file without a proper name that nobody has written to for so long is left over.
const LEFT_OVER: Duration = Duration::from_secs(600);

/// A folder for pages, which several services can share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PrefixDir(Arc<Mutex<Index>>);

#[derive(Debug)]
struct Index {
    path: PathBuf,
    max_bytes: u64,
    /// Sum of the files.
    n_bytes: u64,
    files: HashMap<Key, (SystemTime, u64)>,
    /// The same, oldest use first.
    by_age: BTreeSet<(SystemTime, Key)>,
    paused: Option<Instant>,
}

impl PrefixDir {
    /// Opens a folder, or makes it. What lies there already counts; `max_bytes` bounds all of it, and what was of
    /// no use for the longest time goes first.
    ///
    /// # Errors
    /// If the folder can neither be read nor made.
    pub fn open(path: impl Into<PathBuf>, max_bytes: u64) -> io::Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path)?;
        let mut index = Index {
            path,
            max_bytes,
            n_bytes: 0,
            files: HashMap::new(),
            by_age: BTreeSet::new(),
            paused: None,
        };
        for entry in fs::read_dir(&index.path)? {
            let entry = entry?;
            // What is deleted meanwhile is not there.
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified().unwrap_or(UNIX_EPOCH);
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(".kv.tmp") {
                if used.elapsed().is_ok_and(|age| age > LEFT_OVER) {
                    let _ = fs::remove_file(entry.path());
                }
            } else if let Some(key) = name.strip_suffix(".kv").and_then(key_of) {
                index.add(key, used, metadata.len());
            }
        }
        index.trim(0);
        Ok(Self(Arc::new(Mutex::new(index))))
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        // Whoever panicked has left files and an index that agree, or a file that is found missing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn file(&self, key: &Key) -> PathBuf {
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.path.join(name + ".kv")
    }

    fn add(&mut self, key: Key, used: SystemTime, n_bytes: u64) {
        self.forget(&key);
        self.files.insert(key, (used, n_bytes));
        self.by_age.insert((used, key));
        self.n_bytes += n_bytes;
    }

    fn forget(&mut self, key: &Key) {
        if let Some((used, n_bytes)) = self.files.remove(key) {
            self.by_age.remove(&(used, *key));
            self.n_bytes -= n_bytes;
        }
    }

    /// Deletes the oldest files until `n_bytes` more fit.
    fn trim(&mut self, n_bytes: u64) {
        while self.n_bytes.saturating_add(n_bytes) > self.max_bytes {
            let Some(&(_, key)) = self.by_age.first() else { return };
            let _ = fs::remove_file(self.file(&key));
            self.forget(&key);
        }
    }

    fn touch(&mut self, key: &Key, used: SystemTime) {
        let Some(&(_, n_bytes)) = self.files.get(key) else { return };
        self.add(*key, used, n_bytes);
        // Another process may have deleted it; that is seen when it is read.
        if let Ok(file) = OpenOptions::new().write(true).open(self.file(key)) {
            let _ = file.set_modified(used);
        }
    }

    fn write(&mut self, key: &Key, page: &[u8], used: SystemTime) -> io::Result<()> {
        let head = [&MAGIC[..], key].concat();
        let sum = Sha256::new().chain_update(&head).chain_update(page).finalize();
        let n_bytes = (head.len() + page.len() + sum.len()) as u64;
        if n_bytes > self.max_bytes {
            return Ok(());
        }
        self.trim(n_bytes);
        let path = self.file(key);
        let temporary = path.with_extension("kv.tmp");
        publish(&path, &temporary, &[&head, page, &sum], Some(used))?;
        self.add(*key, used, n_bytes);
        Ok(())
    }
}

/// Writes a file that is there whole or not at all, under another name until it is; one such file at a time.
pub(crate) fn publish(
    path: &Path,
    temporary: &Path,
    parts: &[&[u8]],
    modified: Option<SystemTime>,
) -> io::Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // Left over by somebody who was killed, if there is one.
    let _ = fs::remove_file(temporary);
    let written = create(temporary).and_then(|mut file| {
        parts.iter().try_for_each(|part| file.write_all(part))?;
        modified.map_or(Ok(()), |modified| file.set_modified(modified))?;
        fs::rename(temporary, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(temporary);
    }
    written
}

/// A new file, for this user alone: pages tell of conversations.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn key_of(hex: &str) -> Option<Key> {
    let mut key = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(key)
}

/// When the page `depth` of a prefix counts as used: it is of no use without those before it, so that they have to
/// be younger, although reading or writing them all takes a while.
fn used(now: SystemTime, depth: usize) -> SystemTime {
    now.checked_sub(Duration::from_secs(depth as u64)).unwrap_or(now)
}

/// The pages of one model.
#[derive(Debug)]
pub(crate) struct SavedPages {
    dir: PrefixDir,
    identity: Key,
}

impl SavedPages {
    pub(crate) fn new(dir: PrefixDir, engine: &Engine) -> Self {
        Self { dir, identity: identity(engine) }
    }

    /// The key of each whole page of `tokens`.
    pub(crate) fn keys<'a>(&self, tokens: &'a [u32]) -> impl Iterator<Item = Key> + use<'a> {
        let mut key = self.identity;
        tokens.chunks_exact(PAGE_TOKENS).map(move |page| {
            let mut sha = Sha256::new().chain_update(key);
            page.iter().for_each(|token| sha.update(token.to_le_bytes()));
            key = sha.finalize().into();
            key
        })
    }

    /// Saves the last page of `tokens`, unless it is there. A failure is logged, and nothing more is tried for a
    /// while.
    pub(crate) fn save(&self, tokens: &[u32], page: &[u8]) {
        let Some((depth, key)) = self.keys(tokens).enumerate().last() else { return };
        let used = used(SystemTime::now(), depth);
        let mut index = self.dir.lock();
        if index.files.contains_key(&key) {
            return index.touch(&key, used);
        }
        if index.paused.is_some_and(|end| Instant::now() < end) {
            return;
        }
        if let Err(error) = index.write(&key, page, used) {
            index.paused = Some(Instant::now() + PAUSE);
            let folder = index.path.display().to_string();
            tracing::warn!(folder, %error, "prefixes cannot be saved; the next try is in a minute");
        }
    }

    /// Whether there is a file of this key.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.dir.lock().files.contains_key(key)
    }

    /// The page of a key, of `n_bytes`. A file that is not what was written is deleted.
    pub(crate) fn read(&self, key: &Key, depth: usize, n_bytes: usize) -> Option<Vec<u8>> {
        let mut index = self.dir.lock();
        if !index.files.contains_key(key) {
            return None;
        }
        let path = index.file(key);
        match fs::read(&path).map(|bytes| checked(bytes, key, n_bytes)) {
            Ok(Some(page)) => {
                index.touch(key, used(SystemTime::now(), depth));
                return Some(page);
            }
            Ok(None) => {
                let path = path.display().to_string();
                tracing::warn!(path, "a saved prefix is damaged; it is deleted");
            }
            // Deleted by another process.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = path.display().to_string();
                tracing::warn!(path, %error, "a saved prefix cannot be read; it is deleted");
            }
        }
        let _ = fs::remove_file(path);
        index.forget(key);
        None
    }
}

/// The page in a file, if the file is whole and of this key.
fn checked(mut bytes: Vec<u8>, key: &Key, n_bytes: usize) -> Option<Vec<u8>> {
    let start = MAGIC.len() + key.len();
    if bytes.len() != start + n_bytes + key.len() {
        return None;
    }
    let (content, sum) = bytes.split_at(start + n_bytes);
    let whole = content.starts_with(MAGIC)
        && content[MAGIC.len()..].starts_with(key)
        && Sha256::digest(content)[..] == *sum;
    whole.then(|| {
        bytes.truncate(start + n_bytes);
        bytes.split_off(start)
    })
}

/// What, beside tokens, the content of pages follows from. Of the weights it takes samples: all of them would
/// cost seconds.
pub(crate) fn identity(engine: &Engine) -> Key {
    const SAMPLE: usize = 4096;
    let gguf = engine.gguf();
    let mut sha = Sha256::new();
    let mut part = |bytes: &[u8]| {
        sha.update((bytes.len() as u64).to_le_bytes());
        sha.update(bytes);
    };
    part(env!("CARGO_PKG_VERSION").as_bytes());
    part(&[REVISION]);
    part(engine.how().as_bytes());
    part(format!("{:?}", engine.model().hparams()).as_bytes());
    part(&engine.kv_cache().page_bytes().to_le_bytes());
    for path in gguf.paths() {
        let metadata = fs::metadata(path).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        let len = metadata.map(|metadata| metadata.len());
        part(format!("{len:?} {modified:?}").as_bytes());
    }
    for tensor in gguf.tensors() {
        let data = gguf.data(tensor);
        part(format!("{} {:?} {:?}", tensor.name(), tensor.dims(), tensor.ty()).as_bytes());
        for at in [0, data.len() / 2, data.len().saturating_sub(SAMPLE)] {
            part(&data[at..data.len().min(at + SAMPLE)]);
        }
    }
    sha.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 1000;
    const FILE: u64 = 8 + 32 + PAGE as u64 + 32;

    fn saved(path: &Path, max_bytes: u64) -> SavedPages {
        let dir = PrefixDir::open(path, max_bytes).expect("a folder");
        SavedPages { dir, identity: [7; 32] }
    }

    fn tokens(n_pages: usize) -> Vec<u32> {
        (0..n_pages as u32 * 64).collect()
    }

    fn read(saved: &SavedPages, tokens: &[u32]) -> Option<Vec<u8>> {
        let (depth, key) = saved.keys(tokens).enumerate().last().expect("a page");
        saved.read(&key, depth, PAGE)
    }

    fn files(path: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(path).expect("a folder");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    #[test]
    fn pages_are_found_again_by_all_tokens_before_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = saved(folder.path(), 1 << 20);
        for n in 1..4 {
            first.save(&tokens(n), &[n as u8; PAGE]);
        }
        for saved in [first, saved(folder.path(), 1 << 20)] {
            for n in 1..4 {
                assert_eq!(read(&saved, &tokens(n)), Some(vec![n as u8; PAGE]));
            }
            let mut other = tokens(3);
            other[0] = 1;
            assert_eq!(read(&saved, &other), None);
            let foreign = SavedPages { dir: saved.dir.clone(), identity: [8; 32] };
            assert_eq!(read(&foreign, &tokens(1)), None);
        }
        assert_eq!(files(folder.path()).len(), 3);
    }

    #[test]
    fn the_oldest_give_way() {
        let folder = tempfile::tempdir().expect("a folder");
        let saved = saved(folder.path(), 3 * FILE);
        let text = |i: u32| vec![i; 64];
        for i in 0..3 {
            saved.save(&text(i), &[0; PAGE]);
        }
        assert!(read(&saved, &text(0)).is_some());
        saved.save(&text(3), &[0; PAGE]);
        let there: Vec<bool> = (0..4).map(|i| read(&saved, &text(i)).is_some()).collect();
        assert_eq!(there, [true, false, true, true]);
        // Of a prefix, the end goes first, whatever the order in which it was saved.
        saved.save(&tokens(1), &[0; PAGE]);
        saved.save(&tokens(2), &[0; PAGE]);
        read(&saved, &tokens(1));
        read(&saved, &tokens(2));
        let smaller = PrefixDir::open(folder.path(), FILE).expect("a folder");
        let saved = SavedPages { dir: smaller, identity: [7; 32] };
        assert_eq!(files(folder.path()).len(), 1);
        assert_eq!(read(&saved, &tokens(2)), None);
    }

    #[test]
    fn what_is_damaged_is_deleted_and_never_used() {
        type Damage = fn(&mut Vec<u8>);
        let damages: [Damage; 6] = [
            |file| file.truncate(100),
            Vec::clear,
            |file| file.push(0),
            |file| file[0] ^= 1,
            |file| file[500] ^= 1,
            |file| *file.last_mut().expect("bytes") ^= 1,
        ];
        for damage in damages {
            let folder = tempfile::tempdir().expect("a folder");
            let saved = saved(folder.path(), 1 << 20);
            saved.save(&tokens(1), &[1; PAGE]);
            let file = files(folder.path()).pop().expect("a file");
            let mut bytes = fs::read(&file).expect("read");
            damage(&mut bytes);
            fs::write(&file, bytes).expect("written");
            assert_eq!(read(&saved, &tokens(1)), None);
            assert!(files(folder.path()).is_empty());
            saved.save(&tokens(1), &[1; PAGE]);
            assert!(read(&saved, &tokens(1)).is_some());
        }
        // One page's file under the name of another.
        let folder = tempfile::tempdir().expect("a folder");
        let saved = saved(folder.path(), 1 << 20);
        saved.save(&tokens(1), &[1; PAGE]);
        let first = files(folder.path()).pop().expect("a file");
        saved.save(&tokens(2), &[2; PAGE]);
        let second = files(folder.path()).into_iter().find(|path| *path != first);
        fs::copy(&first, second.expect("a file")).expect("copied");
        assert_eq!(read(&saved, &tokens(2)), None);
    }

    #[test]
    fn what_somebody_left_half_written_is_no_page() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = saved(folder.path(), 1 << 20);
        first.save(&tokens(1), &[1; PAGE]);
        let key = first.keys(&tokens(2)).last().expect("a page");
        let half = first.dir.lock().file(&key).with_extension("kv.tmp");
        fs::write(&half, [1; 10]).expect("written");
        let old = SystemTime::now() - 2 * LEFT_OVER;
        File::options().write(true).open(&half).expect("open").set_modified(old).expect("set");
        fs::write(folder.path().join("notes.txt"), "not ours").expect("written");
        let again = saved(folder.path(), 1 << 20);
        assert!(read(&again, &tokens(1)).is_some());
        assert_eq!(read(&again, &tokens(2)), None);
        assert!(!half.exists());
        assert_eq!(files(folder.path()).len(), 2);
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_costs_only_what_would_be_saved() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("saved");
        let saved = saved(&path, 1 << 20);
        fs::remove_dir(&path).expect("removed");
        saved.save(&tokens(1), &[1; PAGE]);
        assert_eq!(read(&saved, &tokens(1)), None);
        assert!(saved.dir.lock().paused.is_some());
    }
}
