//! From packs to a checkpoint image: the archive is put together, proved, and in the same pass becomes the one layer of
//! an OCI image.
//!
//! ```text
//!                           ┌─► blake3 of the archive ──► equal to what was captured?
//!  verified packs, in order ┤
//!                           └─► rewriter ─► sha256 ─► layer.tar.part ──(proved)──► layer.tar ─► config, manifest
//! ```
//! The rewritten layer differs from the archive where it must (`config.dump` names the base image as this node's
//! registry serves it) and where CRIU would lose something (timers). The layer gets its name only after the whole
//! archive was compared with its hash: whoever sees a `layer.tar` sees proved bytes.
//!
//! What was built is described in `image.json`, written last and synced. The layer itself is not synced: after a crash
//! its digest is computed again before it is used, and a layer that lost bytes is built anew. Repeating [`build`] with
//! the same input gives the same image.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest::{self, SHA256};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    archive::{
        ArchiveError, Edit, Need, Rewriter,
        timerfd::{repair_files, repair_timers},
    },
    fetch::{self, FetchError},
    manifest::Packed,
    spans::Traffic,
    store::Store,
};

/// Raw packs between fetching and writing: the writer always has the next one, 2 x 8 MiB.
const PACKS_WAITING: usize = 2;
const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "layer.tar";
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
    /// Bytes and proof of the archive.
    pub archive: Packed,
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
    /// Hash of the archive it was made of.
    pub archive_blake3: String,
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
    /// Bytes that did not come or are damaged.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// All packs were sound, and yet it is not the archive that was captured.
    #[error(
        "archive of container {container:?}: {reason}: it is not what was captured and is not used"
    )]
    NotTheArchive {
        /// Whose.
        container: String,
        /// What differs.
        reason: String,
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
    /// The worker is shutting down.
    #[error("a thread of the worker ended early, it is shutting down")]
    Stopped,
}

/// Makes the image in `folder`, or finds it made. An error leaves no layer behind.
pub async fn build(
    store: Arc<dyn Store>,
    recipe: Recipe,
    folder: PathBuf,
    traffic: Arc<Traffic>,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Built, RebuildError> {
    if let Some(built) = find(&recipe, &folder).await? {
        progress(recipe.archive.size);
        return Ok(built);
    }
    let room = folder.clone();
    let needed_bytes = recipe.archive.size;
    blocking(move || {
        fs::create_dir_all(&room).map_err(|source| disk("create", &room, source))?;
        let free_bytes = free_bytes(&room)?;
        // The comparison is a courtesy, the write decides: others fill disks too.
        if free_bytes < needed_bytes {
            Err(RebuildError::DiskFull {
                path: room,
                needed_bytes,
                free_bytes,
            })
        } else {
            Ok(())
        }
    })
    .await?;
    let (sender, receiver) = mpsc::channel(PACKS_WAITING);
    let mut packs = std::pin::pin!(fetch::packs(store, &recipe.archive, traffic));
    let (copy, target) = (recipe.clone(), folder.clone());
    let writer = tokio::task::spawn_blocking(move || write_layer(&copy, &target, receiver));
    let (mut broken, mut done) = (None, 0);
    while let Some(pack) = packs.next().await {
        let Ok(pack) = pack.map_err(|error| broken = Some(error)) else {
            break;
        };
        done += pack.len() as u64;
        // A writer that gave up says why below.
        if sender.send(pack).await.is_err() {
            break;
        }
        progress(done);
    }
    drop(sender);
    let layer = writer.await.map_err(|_| RebuildError::Stopped)?;
    // The fetch's error is the cause, the writer's "too short" its consequence.
    if let Some(error) = broken {
        return Err(error.into());
    }
    let (layer_digest, layer_size) = layer?;
    blocking(move || describe(&recipe, &folder, layer_digest, layer_size)).await
}

/// Where the layer of a folder is.
pub fn layer_path(folder: &Path) -> PathBuf {
    folder.join(LAYER)
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
        let same = built.archive_blake3 == recipe.archive.blake3
            && built.base_reference == recipe.base_reference;
        if !same || built.config != config(&recipe, &built.layer_digest) {
            return Ok(None);
        }
        let Ok(mut layer) = File::open(layer_path(&folder)) else {
            return Ok(None);
        };
        let mut hashing = Hashing::new(io::sink());
        io::copy(&mut layer, &mut hashing)
            .map_err(|source| disk("read", &layer_path(&folder), source))?;
        Ok((hashing.finish() == (built.layer_digest.clone(), built.layer_size)).then_some(built))
    })
    .await
}

/// Writes the layer, compares the archive, and only then gives the layer its name.
fn write_layer(
    recipe: &Recipe,
    folder: &Path,
    mut packs: mpsc::Receiver<Bytes>,
) -> Result<(String, u64), RebuildError> {
    let part = Part(folder.join("layer.tar.part"));
    let file = File::create(&part.0).map_err(|source| disk("create", &part.0, source))?;
    let failed = |source: ArchiveError| {
        let full = matches!(&source, ArchiveError::Write(error) if error.kind() == io::ErrorKind::StorageFull);
        if !full {
            return RebuildError::Archive {
                container: recipe.container.clone(),
                source,
            };
        }
        let free_bytes = free_bytes(folder).unwrap_or(0);
        RebuildError::DiskFull {
            path: part.0.clone(),
            needed_bytes: recipe.archive.size,
            free_bytes,
        }
    };
    let mut hasher = blake3::Hasher::new();
    let mut size = 0;
    let mut rewriter = Rewriter::new(Hashing::new(file), edits(recipe));
    // A fault of the rewriter is remembered until the archive is proved: bytes that were exchanged are to be reported
    // as that, and not as whatever the tar reader made of them.
    let mut fault = None;
    while let Some(pack) = packs.blocking_recv() {
        hasher.update(&pack);
        size += pack.len() as u64;
        if fault.is_none() {
            fault = rewriter.feed(&pack).err();
        }
        if matches!(fault, Some(ArchiveError::Write(_))) {
            break;
        }
    }
    if let Some(full @ ArchiveError::Write(_)) = fault {
        return Err(failed(full));
    }
    let not_the_archive = |reason: String| RebuildError::NotTheArchive {
        container: recipe.container.clone(),
        reason,
    };
    if size != recipe.archive.size {
        return Err(not_the_archive(format!(
            "it has {size} bytes, expected {}",
            recipe.archive.size
        )));
    }
    let found = hasher.finalize().to_hex();
    if found.as_str() != recipe.archive.blake3 {
        return Err(not_the_archive(format!(
            "its hash is {found}, expected {}",
            recipe.archive.blake3
        )));
    }
    let layer = match fault {
        Some(fault) => Err(fault),
        None => rewriter.finish(),
    }
    .map_err(failed)?
    .finish();
    let path = layer_path(folder);
    fs::rename(&part.0, &path).map_err(|source| disk("name", &path, source))?;
    Ok(layer)
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
    layer_digest: String,
    layer_size: u64,
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
        archive_blake3: recipe.archive.blake3.clone(),
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

/// A file that is gone when its making ends early; after it was renamed there is nothing to remove.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Passes bytes on and knows their digest.
struct Hashing<W> {
    out: W,
    context: digest::Context,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            context: digest::Context::new(&SHA256),
            size: 0,
        }
    }

    fn finish(self) -> (String, u64) {
        (
            format!("sha256:{}", hex(self.context.finish().as_ref())),
            self.size,
        )
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.context.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
