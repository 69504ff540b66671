//! Models in a local Ollama store, read in place and never changed.
//!
//! ```text
//! manifests/registry.ollama.ai/library/NAME/TAG     JSON: layers with mediaType and digest
//! blobs/sha256-HEX                                  the layer "application/vnd.ollama.image.model" is the GGUF
//! ```
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::spec::{OllamaSpec, is_sha256};
use crate::{LocalModel, Origin, files};

const MODEL_LAYER: &str = "application/vnd.ollama.image.model";

/// Only the fields used here.
#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
}

/// The model, from the first store that holds it.
pub(crate) fn find(stores: &[PathBuf], spec: &OllamaSpec) -> Option<LocalModel> {
    stores.iter().find_map(|store| find_in(store, spec))
}

fn find_in(store: &Path, spec: &OllamaSpec) -> Option<LocalModel> {
    let manifest = [&spec.host, &spec.namespace, &spec.name, &spec.tag]
        .iter()
        .fold(store.join("manifests"), |path, part| path.join(part));
    let manifest: Manifest = serde_json::from_str(&files::read_small(&manifest)?).ok()?;
    let layer = manifest.layers.iter().find(|layer| layer.media_type == MODEL_LAYER)?;
    // The digest becomes part of a path: nothing but digits.
    let digest = layer.digest.strip_prefix("sha256:").filter(|d| is_sha256(d))?;
    let blob = store.join("blobs").join(format!("sha256-{digest}"));
    let source = format!("the Ollama store {}", store.display());
    LocalModel::of_file(spec.to_string(), &blob, Origin::Ollama, source)
}

/// Every model in the stores; of equal names the one that [`find`] gives.
pub(crate) fn list(stores: &[PathBuf]) -> Vec<LocalModel> {
    let mut specs = Vec::new();
    for store in stores {
        for (host_path, host) in folders(&store.join("manifests")) {
            for (namespace_path, namespace) in folders(&host_path) {
                for (name_path, name) in folders(&namespace_path) {
                    let tags = entries(&name_path);
                    specs.extend(tags.iter().filter_map(|(_, tag)| {
                        OllamaSpec::from_parts(&host, &namespace, &name, tag)
                    }));
                }
            }
        }
    }
    let mut models: Vec<LocalModel> = specs.iter().filter_map(|spec| find(stores, spec)).collect();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    models.dedup_by(|a, b| a.name == b.name);
    models
}

fn entries(path: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|e| Some((e.path(), e.file_name().into_string().ok()?))).collect()
}

fn folders(path: &Path) -> Vec<(PathBuf, String)> {
    let mut folders = entries(path);
    folders.retain(|(path, _)| path.is_dir());
    folders
}
