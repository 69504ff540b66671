//! Models in several files: `NAME-00001-of-00003.gguf` and so on. Each shard is a GGUF file of
//! its own with the keys below; the metadata of the model is in the first.

use std::path::{Path, PathBuf};

/// Number of this shard, from 0.
pub(crate) const NO_KEY: &str = "split.no";
/// Number of shards.
pub(crate) const COUNT_KEY: &str = "split.count";
/// Tensors of all shards together.
pub(crate) const TENSORS_KEY: &str = "split.tensors.count";

/// The path of shard `no` (from 0) of `count`: `prefix-00001-of-00003.gguf`.
pub fn shard_path(prefix: &Path, no: usize, count: usize) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(format!("-{:05}-of-{count:05}.gguf", no + 1));
    path.into()
}

/// The prefix of a path as [`shard_path`] makes it, if it is that of shard `no` of `count`.
pub(crate) fn shard_prefix(path: &Path, no: usize, count: usize) -> Option<PathBuf> {
    // Names that are not UTF-8 keep their bytes: only the ASCII suffix is cut off.
    let suffix = shard_path(Path::new(""), no, count);
    let name = path.file_name()?.as_encoded_bytes();
    let stem = name.strip_suffix(suffix.as_os_str().as_encoded_bytes())?;
    let stem = match std::str::from_utf8(stem) {
        Ok(stem) => std::ffi::OsString::from(stem),
        #[cfg(unix)]
        Err(_) => std::os::unix::ffi::OsStringExt::from_vec(stem.to_vec()),
        #[cfg(not(unix))]
        Err(_) => return None,
    };
    Some(path.with_file_name(stem))
}
