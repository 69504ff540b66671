//! Models from any address, kept in the store.
use sha2::{Digest, Sha256};

use crate::download::{Request, download, hex, settle};
use crate::gguf_files::{Split, is_gguf, is_safe_name};
use crate::http::{Client, without_userinfo};
use crate::spec::{Spec, UrlSpec};
use crate::store::{Store, Stored, StoredFile};
use crate::{Error, Progress};

/// The stored model of that address, with the checksum asked for if there is one.
pub(crate) fn find(store: &Store, spec: &UrlSpec) -> Option<Stored> {
    let shown = without_userinfo(&spec.url);
    store.fetched().into_iter().find(|stored| {
        let same_address = matches!(Spec::parse(&stored.manifest.source, None),
            Ok(Spec::Url(found)) if found.url == shown);
        let sum_fits = spec
            .sha256
            .as_ref()
            .is_none_or(|sum| stored.manifest.files.iter().any(|f| f.sha256 == *sum));
        same_address && sum_fits
    })
}

/// The lock and the work folder of an address.
pub(crate) fn store_key(spec: &UrlSpec) -> String {
    format!("url-{}", &hex(&Sha256::digest(without_userinfo(&spec.url)))[..16])
}

/// Downloads the file, or all files of a split model, into the store.
pub(crate) fn fetch(
    client: &Client,
    store: &Store,
    spec: &UrlSpec,
    name: &str,
    force: bool,
    progress: &mut dyn Progress,
) -> Result<Stored, Error> {
    let shown = without_userinfo(&spec.url);
    let key = store_key(spec);
    let installation = store.begin(&key, &shown, progress)?;
    if !force && let Some(stored) = find(store, spec) {
        return Ok(stored);
    }
    let own_name = spec.file_name();
    let split = own_name.as_deref().filter(|n| is_safe_name(n)).and_then(Split::parse);
    let splits: Vec<Option<String>> =
        split.map_or_else(|| vec![None], |split| split.all().map(Some).collect());

    let new = installation.fresh_folder("new")?;
    let mut stored = Vec::new();
    let mut finished = Vec::new();
    for (n, file) in splits.into_iter().enumerate() {
        let address = file.as_ref().map_or_else(|| spec.url.clone(), |file| spec.sibling(file));
        let what = file.as_deref().or(own_name.as_deref()).filter(|n| is_safe_name(n));
        let request = Request {
            url: &address,
            what: what.unwrap_or(&shown),
            // The checksum of a split model's address is that of the file named in it.
            sha256: spec.sha256.clone().filter(|_| address == spec.url),
            ..Request::default()
        };
        // A file that is done keeps its partial name until all are, so that nothing half appears.
        let partial = installation.work.join(format!("{n}.partial"));
        let fetched = download(client, &request, &partial, progress)?;
        let candidates = [file, own_name.clone(), fetched.suggested_name];
        let file_name = candidates
            .into_iter()
            .flatten()
            .find(|name| is_safe_name(name) && is_gguf(name))
            .unwrap_or_else(|| "model.gguf".into());
        finished.push((partial, new.join(&file_name)));
        stored.push(StoredFile { name: file_name, bytes: fetched.bytes, sha256: fetched.sha256 });
    }
    for (partial, place) in finished {
        settle(&partial, &place)?;
    }
    let source = UrlSpec { url: shown, sha256: spec.sha256.clone() }.to_string();
    // An address is a poor name for a list.
    let folder = folder_name(&stored, &key);
    let name = if name.contains("://") { folder.as_str() } else { name };
    installation.finish(&new, &folder, name, source, stored)
}

/// `STEM-` and enough of the key to tell addresses apart.
fn folder_name(stored: &[StoredFile], key: &str) -> String {
    let name = &stored[0].name;
    let stem = Split::parse(name).map_or(name.trim_end_matches(".gguf"), |split| split.prefix);
    let stem: String = stem.chars().take(80).collect();
    format!("{stem}-{}", key.trim_start_matches("url-"))
}
