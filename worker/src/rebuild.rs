//! From an archive to a checkpoint image: the archive is gathered and proved, and the one layer of an OCI image is a plan
//! of its bytes and of ours.
//!
//! ```text
//!  store ─► gather: new bytes, each proved ─► archive (a view, of bases too) ─► edits ─► layer.json ─► sha256 ─► config, manifest
//! ```
//! The layer differs from the archive where it must (`config.dump` names the base image as this node's registry serves
//! it) and where CRIU would lose something (timers). It is never written out: the registry reads it through its plan.
//! Each byte is written once (new bytes, decoded), read once for the digest that images are named by, and once by the
//! runtime's pull.
//!
//! What was built is described in `image.json`, written last and synced. The bytes themselves are not synced: after a
//! crash the digest is computed again before it is used, and a layer that lost bytes is built anew. Repeating [`build`]
//! with the same input gives the same image.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest::{self, SHA256};
use pages::source::{ReadAt, View};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    archive::{
        self, ArchiveError, Edit, Need,
        timerfd::{repair_files, repair_timers},
    },
    gather::{Archive, GatherError, gather},
    rounds::Kept,
    spans::Traffic,
    store::Store,
};

pub mod layer;

use layer::Layer;

/// Read at once while the digest is computed.
const READ_BYTES: usize = 1 << 20;
const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const DESCRIPTION: &str = "image.json";

/// What an image is to be made of.
#[derive(Clone)]
pub struct Recipe {
    /// UID of the migration.
    pub migration: String,
    /// Its revision: part of the image's configuration, so that no two deliveries share an image id.
    pub revision: u64,
    /// The container in the pod.
    pub container: String,
    /// Where the archive is, and its proof.
    pub archive: Archive,
    /// The archive it is a difference to, on this node.
    pub base: Option<Kept>,
    /// What `config.dump` is to name: the base image as this node's registry serves it.
    pub base_reference: String,
    /// The base image's digest and the id the runtime gives it, to compare with what the archive says it ran from.
    pub base_digest: String,
    /// See `base_digest`.
    pub base_image_id: String,
}

/// A checkpoint image on this node's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Built {
    /// Identity of the archive it was made of.
    #[serde(alias = "archive_blake3")]
    pub archive: String,
    /// The base image named in it.
    pub base_reference: String,
    /// Digest and bytes of the layer.
    pub layer_digest: String,
    /// See `layer_digest`.
    pub layer_size: u64,
    /// The configuration, which the image id is the digest of.
    pub config: String,
    /// The manifest.
    pub manifest: String,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Bytes that did not come, or are not what was captured.
    #[error("archive of container {container:?}")]
    Gather {
        /// Whose.
        container: String,
        /// What is wrong.
        #[source]
        source: Box<GatherError>,
    },
    /// The archive can't become a layer.
    #[error("turn the archive of container {container:?} into an image layer")]
    Archive {
        /// Whose.
        container: String,
        /// Why.
        #[source]
        source: ArchiveError,
    },
    /// No room.
    #[error(
        "disk full at {path}: the image layer needs {needed_bytes} bytes, {free_bytes} are free; make room on this node"
    )]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// Bytes of the archive.
        needed_bytes: u64,
        /// Bytes there are.
        free_bytes: u64,
    },
    /// Another fault of the disk.
    #[error("{doing} {path}")]
    Disk {
        /// A verb.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was told to.
    #[error("given up, because a newer step of the migration waits for its end")]
    GaveWay,
    /// The worker is shutting down.
    #[error("a thread of the worker ended early, it is shutting down")]
    Stopped,
}

/// Makes the image in `folder`, or finds it made. An error leaves no layer behind. Gathering gives way, for it waits for
/// the store; threads that write into the folder are let end, so nothing is written once this has returned.
pub async fn build(
    store: Arc<dyn Store>,
    recipe: Recipe,
    folder: PathBuf,
    traffic: Arc<Traffic>,
    progress: &(dyn Fn(u64) + Send + Sync),
    give_way: &CancellationToken,
) -> Result<Built, RebuildError> {
    if let Some(built) = find(&recipe, &folder).await? {
        progress(recipe.archive.size());
        return Ok(built);
    }
    let room = folder.clone();
    let needed_bytes = recipe.archive.size();
    blocking(move || make_room(&room, needed_bytes)).await?;
    let files = Unfinished(folder.clone());
    let new = layer::new_path(&folder);
    // Dropped, its threads may still write into the file of new bytes, which has no name any more then.
    let base = recipe.base.as_ref();
    let gather = gather(store, &recipe.archive, base, &new, traffic, progress);
    let gathered = give_way.run_until_cancelled(gather).await;
    let gathered = gathered.ok_or(RebuildError::GaveWay)?;
    let archive = gathered.map_err(|source| not_gathered(&recipe, &folder, source))?;
    let built = blocking(move || {
        let layer = write_layer(&recipe, &folder, &archive)?;
        describe(&recipe, &folder, layer)
    })
    .await?;
    files.finished();
    Ok(built)
}

fn make_room(folder: &Path, needed_bytes: u64) -> Result<(), RebuildError> {
    // What an earlier attempt left in part must not fill the disk against this one.
    layer::remove(folder).map_err(|source| disk("clear", folder, source))?;
    fs::create_dir_all(folder).map_err(|source| disk("create", folder, source))?;
    let free_bytes = free_bytes(folder)?;
    // The comparison is a courtesy, the write decides: others fill disks too.
    if free_bytes < needed_bytes {
        return Err(RebuildError::DiskFull {
            path: folder.to_owned(),
            needed_bytes,
            free_bytes,
        });
    }
    Ok(())
}

fn not_gathered(recipe: &Recipe, folder: &Path, source: GatherError) -> RebuildError {
    let full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
    let is_full = match &source {
        GatherError::Disk { source, .. } => full(source),
        GatherError::Object {
            source: pages::rebuild::RebuildError::Io { source, .. },
            ..
        } => full(source),
        GatherError::Object { .. }
        | GatherError::Manifest(_)
        | GatherError::Sealed { .. }
        | GatherError::Hash { .. }
        | GatherError::Store(_)
        | GatherError::Fetch(_)
        | GatherError::NotTheArchive { .. }
        | GatherError::Stopped => false,
    };
    if is_full {
        return RebuildError::DiskFull {
            path: layer::new_path(folder),
            needed_bytes: recipe.archive.size(),
            free_bytes: free_bytes(folder).unwrap_or(0),
        };
    }
    RebuildError::Gather {
        container: recipe.container.clone(),
        source: Box::new(source),
    }
}

/// Bytes an unprivileged writer could still write where `path` is.
pub fn free_bytes(path: &Path) -> Result<u64, RebuildError> {
    let facts = rustix::fs::statvfs(path)
        .map_err(|error| disk("ask for the free space of", path, error.into()))?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

/// sha256 in the form registries write it.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(digest::digest(&SHA256, bytes).as_ref()))
}

/// The image in `folder` if it was made of the same archive and its layer is still what it was.
async fn find(recipe: &Recipe, folder: &Path) -> Result<Option<Built>, RebuildError> {
    let (recipe, folder) = (recipe.clone(), folder.to_owned());
    blocking(move || {
        let Ok(bytes) = fs::read(folder.join(DESCRIPTION)) else {
            return Ok(None);
        };
        let Ok(built) = serde_json::from_slice::<Built>(&bytes) else {
            return Ok(None);
        };
        let same = built.archive == recipe.archive.identity()
            && built.base_reference == recipe.base_reference;
        if !same || built.config != config(&recipe, &built.layer_digest) {
            return Ok(None);
        }
        let Ok(layer) = Layer::open(&folder) else {
            return Ok(None);
        };
        // A file that lost its end can't be read where its plan says: as good as another digest.
        let Ok(found) = digest_of(layer.view()) else {
            return Ok(None);
        };
        Ok(
            (found == built.layer_digest && layer.view().size() == built.layer_size)
                .then_some(built),
        )
    })
    .await
}

/// Plans the layer, and computes the digest it will be known by.
fn write_layer(
    recipe: &Recipe,
    folder: &Path,
    archive: &Kept,
) -> Result<(String, u64), RebuildError> {
    let parts = archive::layer::plan(archive.view.as_ref(), edits(recipe)).map_err(|source| {
        RebuildError::Archive {
            container: recipe.container.clone(),
            source,
        }
    })?;
    let at = |source| disk("write the layer's plan in", folder, source);
    let layer = Layer::write(folder, archive, parts).map_err(at)?;
    let digest = digest_of(layer.view()).map_err(|source| disk("read", folder, source))?;
    Ok((digest, layer.view().size()))
}

fn digest_of(bytes: &View) -> io::Result<String> {
    let mut context = digest::Context::new(&SHA256);
    let mut buffer = vec![0; READ_BYTES];
    let (mut at, size) = (0, bytes.size());
    while at < size {
        let window = &mut buffer[..(size - at).min(READ_BYTES as u64) as usize];
        bytes.read_exact_at(window, at)?;
        context.update(window);
        at += window.len() as u64;
    }
    Ok(format!("sha256:{}", hex(context.finish().as_ref())))
}

fn edits(recipe: &Recipe) -> Vec<Edit<'_>> {
    vec![
        Edit {
            name: "config.dump",
            need: Need::Required,
            change: Box::new(|content| change_config(recipe, content).map(Some)),
        },
        Edit {
            name: "checkpoint/timerfd.img",
            need: Need::Optional,
            change: Box::new(|content| Ok(repair_timers(content))),
        },
        Edit {
            name: "checkpoint/files.img",
            need: Need::Optional,
            change: Box::new(|content| Ok(repair_files(content))),
        },
    ]
}

/// The runtime pulls what `rootfsImageRef` names, by containerd's plain rules: no mirrors, no credentials.
fn change_config(recipe: &Recipe, content: &[u8]) -> Result<Vec<u8>, String> {
    let mut config: serde_json::Value =
        serde_json::from_slice(content).map_err(|error| format!("no JSON: {error}"))?;
    let fields = config.as_object_mut().ok_or("no JSON object")?;
    let ran_from = fields
        .get("rootfsImageRef")
        .and_then(|value| value.as_str())
        .ok_or("it has no rootfsImageRef")?;
    // A base image rebuilt under the same tag would fail late, in CRIU, by the size of some library.
    let same = match ran_from.split_once('@') {
        Some((_, digest)) => digest == recipe.base_digest,
        None => ran_from == recipe.base_image_id,
    };
    if !same {
        return Err(format!(
            "the container ran from image {ran_from}, but this node has {} with id {} for it: the same image is needed",
            recipe.base_reference, recipe.base_image_id
        ));
    }
    fields.insert("rootfsImageRef".to_owned(), json!(recipe.base_reference));
    serde_json::to_vec(&config).map_err(|error| error.to_string())
}

/// Writes what was built, last: a folder without it is rubbish of a crash.
fn describe(
    recipe: &Recipe,
    folder: &Path,
    (layer_digest, layer_size): (String, u64),
) -> Result<Built, RebuildError> {
    let config = config(recipe, &layer_digest);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": sha256(config.as_bytes()),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer_digest,
            "size": layer_size,
        }],
        // The first two make containerd and CRI-O restore instead of start; they look on this blob alone, which is
        // why there is no index above it.
        "annotations": {
            "org.criu.checkpoint.container.name": recipe.container,
            "io.kubernetes.cri-o.annotations.checkpoint.name": recipe.container,
            "org.criu.checkpoint.engine.name": "longshore",
            "org.criu.checkpoint.rootfsImageName": recipe.base_reference,
        },
    })
    .to_string();
    let built = Built {
        archive: recipe.archive.identity().to_owned(),
        base_reference: recipe.base_reference.clone(),
        layer_digest,
        layer_size,
        config,
        manifest,
    };
    let bytes = serde_json::to_vec(&built).expect("strings and numbers always serialize");
    replace_file(&folder.join(DESCRIPTION), &bytes)?;
    Ok(built)
}

fn config(recipe: &Recipe, layer_digest: &str) -> String {
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Labels": {
            "longshore.dev/migration": recipe.migration,
            "longshore.dev/revision": recipe.revision.to_string(),
            "longshore.dev/container": recipe.container,
        }},
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
    })
    .to_string()
}

/// This machine's, in the words of images.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Replaces a small file such that a crash leaves the old one or the new one, and a return means it is on disk.
/// The order is the safety: content on disk before the name, the name on disk before anybody is told.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), RebuildError> {
    let part = path.with_extension("part");
    let write = || {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        path.parent()
            .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&part);
        disk("write", path, source)
    })
}

fn disk(doing: &'static str, path: &Path, source: io::Error) -> RebuildError {
    if source.kind() == io::ErrorKind::StorageFull {
        return RebuildError::DiskFull {
            path: path.to_owned(),
            needed_bytes: 0,
            free_bytes: 0,
        };
    }
    RebuildError::Disk {
        doing,
        path: path.to_owned(),
        source,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RebuildError> + Send + 'static,
) -> Result<T, RebuildError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| RebuildError::Stopped)?
}

/// The files of a layer, gone when its making ends early.
struct Unfinished(PathBuf);

impl Unfinished {
    fn finished(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = layer::remove(&self.0);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
