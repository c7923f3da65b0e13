//! Images from one node's content store to another's, for a target that can't pull them: their registry is gone, or
//! knows only the source's secrets.
//!
//! ```text
//!  export:  blobs of the image ─► packs ─► images manifest, last
//!  import:  manifest ─► blobs that are missing ─► content store (under a lease) ─► registry ─► the runtime pulls it
//! ```
//! Blobs are written before what names them, each with the labels by which containerd's garbage collector follows an
//! image; the lease keeps them until the pull made a record of the image. Blobs prove themselves: containerd compares
//! the sha256, the packs their blake3.

use std::{collections::HashMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use proto::{
    containerd::{images, leases},
    worker::{Container, ExportImages, ExportedImages, ImportImages},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    data::ProgressFn,
    images::{Blob, Images, RuntimeError, failed},
    manifest::{self, Packed},
    registry::Registry,
    restore::{RestoreError, image::base_image, unless},
    save::{self, PACK_RAW_BYTES_MAX, Pieces, SaveError},
    spans::now_unix_ns,
    store::Store,
};

mod write;

use write::{take_lease, write_blob};

/// What was exported. Version as in [`manifest::VERSION`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImagesManifest {
    version: u32,
    migration: String,
    created_unix_ns: u64,
    images: Vec<ExportedImage>,
    /// What is named before what names it.
    blobs: Vec<ExportedBlob>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportedImage {
    container: String,
    image: String,
    digest: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportedBlob {
    digest: String,
    media_type: String,
    content: Packed,
}

/// The digest of a container's image: as stated, or else what its name stands for on this node.
///
/// What a pod's status states may also be an image id, when the image was never pulled from a registry. The runtime has
/// records under ids, never under digests of manifests: that tells the two apart.
pub async fn digest_of(
    images: &Images,
    container: &Container,
) -> Result<Option<String>, RuntimeError> {
    let stated = container
        .image_digest
        .rsplit('@')
        .next()
        .unwrap_or_default();
    let is_stated = stated.starts_with("sha256:");
    let name = if is_stated {
        stated.to_owned()
    } else {
        full_name(&container.image)
    };
    let target = images
        .record(&name)
        .await?
        .and_then(|record| record.target)
        .map(|target| target.digest);
    Ok(target.or_else(|| is_stated.then(|| stated.to_owned())))
}

/// Names of the containers whose image is not complete here.
pub async fn missing_images(
    images: &Images,
    containers: &[Container],
) -> Result<Vec<String>, RestoreError> {
    let mut missing = Vec::new();
    for container in containers {
        match base_image(images, container).await {
            Ok(_) => {}
            Err(RestoreError::NoBaseImage { .. }) => missing.push(container.name.clone()),
            Err(error) => return Err(error),
        }
    }
    Ok(missing)
}

/// By container: the digest of the image that its running container was made from, by the runtime's own record of the
/// container, not by the image's name, which may stand for another image by now.
pub async fn running_digests(
    images: &Images,
    containers: &[Container],
) -> Result<HashMap<String, String>, RuntimeError> {
    let mut digests = HashMap::new();
    for container in containers {
        let status = images.container_status(&container.container_id).await?;
        for name in [status.image_ref, status.image_id] {
            let record = if name.is_empty() {
                None
            } else {
                images.record(&name).await?
            };
            if let Some(target) = record.and_then(|record| record.target) {
                digests.insert(container.name.clone(), target.digest);
                break;
            }
        }
    }
    Ok(digests)
}

/// Stores the images of these containers, the manifest last.
pub async fn export(
    store: &Arc<dyn Store>,
    images: &Images,
    migration: &str,
    request: &ExportImages,
    progress: &ProgressFn,
) -> Result<ExportedImages, RestoreError> {
    let mut exported = Vec::new();
    let mut blobs: Vec<Blob> = Vec::new();
    for container in &request.containers {
        let tree = base_image(images, container).await?;
        let (name, image) = (container.name.clone(), container.image.clone());
        exported.push(ExportedImage {
            container: name,
            image,
            digest: tree.digest,
        });
        // A tree begins with its topmost blob: reversed, what is named comes before what names it.
        for blob in tree.blobs.into_iter().rev() {
            if !blobs.iter().any(|known| known.digest == blob.digest) {
                blobs.push(blob);
            }
        }
    }
    let total = blobs.iter().map(|blob| blob.size).sum();
    let sources = blobs
        .iter()
        .map(|blob| pieces_of_blob(images.clone(), blob.digest.clone()))
        .collect();
    let stored = save::save(store, &request.store_prefix, sources, total, progress).await?;
    let blobs = blobs
        .into_iter()
        .zip(stored.sources)
        .map(|(blob, content)| {
            let Blob {
                digest,
                media_type,
                size: _,
            } = blob;
            ExportedBlob {
                digest,
                media_type,
                content,
            }
        });
    let manifest = ImagesManifest {
        version: manifest::VERSION,
        migration: migration.to_owned(),
        created_unix_ns: now_unix_ns(),
        images: exported,
        blobs: blobs.collect(),
    };
    let bytes = serde_json::to_vec(&manifest).expect("strings and numbers always serialize");
    let manifest_blake3 = blake3::hash(&bytes).to_hex().to_string();
    let manifest_key = format!("{}images.json", request.store_prefix);
    store.put(&manifest_key, bytes.into()).await?;
    Ok(ExportedImages {
        manifest_key,
        manifest_blake3,
    })
}

/// Brings exported images into this node's runtime. Repeating this fetches only what is missing. Gives way, but for the
/// lease, which would keep what was brought for ever.
pub async fn import(
    store: &Arc<dyn Store>,
    images: &Images,
    registry: &Registry,
    migration: &str,
    request: &ImportImages,
    progress: &ProgressFn,
    give_way: &CancellationToken,
) -> Result<(), RestoreError> {
    let key = &request.manifest_key;
    let bytes = unless(give_way, store.get(key)).await?;
    let manifest: ImagesManifest = manifest::read_versioned(key, &bytes, &request.manifest_blake3)?;
    let lease = format!("longshore-{migration}");
    take_lease(images, &lease).await?;
    let import = import_under(
        store, images, registry, &lease, &manifest, request, progress,
    );
    let imported = unless(give_way, import).await;
    let request = leases::DeleteRequest {
        id: lease.clone(),
        sync: false,
    };
    match images.leases.clone().delete(request).await {
        Err(status) if status.code() != Code::NotFound => {
            tracing::warn!(lease, %status, "a lease could not be ended")
        }
        Ok(_) | Err(_) => {}
    }
    imported
}

async fn import_under(
    store: &Arc<dyn Store>,
    images: &Images,
    registry: &Registry,
    lease: &str,
    manifest: &ImagesManifest,
    request: &ImportImages,
    progress: &ProgressFn,
) -> Result<(), RestoreError> {
    let total = manifest.blobs.iter().map(|blob| blob.content.size).sum();
    let mut done = 0;
    for blob in &manifest.blobs {
        let nonsense = |reason| manifest::ManifestError::Nonsense {
            key: request.manifest_key.clone(),
            reason,
        };
        blob.content.check(&blob.digest).map_err(nonsense)?;
        if images.size(&blob.digest).await?.is_none() {
            write_blob(store, images, lease, blob).await?;
        }
        done += blob.content.size;
        progress("images", done, total);
    }
    for ExportedImage {
        container,
        image,
        digest,
    } in &manifest.images
    {
        if !request
            .containers
            .iter()
            .any(|wanted| wanted.name == *container)
        {
            continue;
        }
        let asked = Container {
            name: container.clone(),
            image_digest: digest.clone(),
            ..Container::default()
        };
        let tree = base_image(images, &asked).await?;
        registry.enter_base(&tree).await?;
        images.pull(&registry.base_reference(image, digest)).await?;
        let top = tree.blobs.first().cloned();
        if let Some(top) = top {
            enter_name(images, image, &top).await?;
        }
    }
    Ok(())
}

/// The image under its own name and digest, so that a later plan finds it. A record that is there stays as it is.
async fn enter_name(images: &Images, image: &str, top: &Blob) -> Result<(), RuntimeError> {
    let name = format!("{}@{}", repository(&full_name(image)), top.digest);
    let target = images::Target {
        media_type: top.media_type.clone(),
        digest: top.digest.clone(),
        size: i64::try_from(top.size).unwrap_or(i64::MAX),
        ..images::Target::default()
    };
    let labels = [("io.cri-containerd.image".to_owned(), "managed".to_owned())].into();
    let image = images::Image {
        name: name.clone(),
        labels,
        target: Some(target),
    };
    match images
        .records
        .clone()
        .create(images::CreateImageRequest { image: Some(image) })
        .await
    {
        Err(status) if status.code() != Code::AlreadyExists => {
            Err(failed(format!("enter image {name}"), status))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// A blob in pieces of a pack's size.
fn pieces_of_blob(images: Images, digest: String) -> Pieces {
    let what = digest.clone();
    let parts = stream::once(async move { images.read(&digest, 0, 0).await }).try_flatten();
    let parts = parts.map_err(move |error| SaveError::Read {
        what: what.clone(),
        source: std::io::Error::other(error),
    });
    let start = Some((parts.boxed(), BytesMut::new()));
    stream::try_unfold(start, |state| async move {
        let Some((mut parts, mut waiting)) = state else {
            return Ok(None);
        };
        while waiting.len() < PACK_RAW_BYTES_MAX {
            let Some(part) = parts.try_next().await? else {
                let last = waiting.freeze();
                return Ok((!last.is_empty()).then_some((last, None)));
            };
            waiting.extend_from_slice(&part);
        }
        let piece: Bytes = waiting.split_to(PACK_RAW_BYTES_MAX).freeze();
        Ok(Some((piece, Some((parts, waiting)))))
    })
    .boxed()
}

/// A name as containerd records it: with its registry, and with the tag or digest it stands for.
fn full_name(image: &str) -> String {
    let first = image.split('/').next().unwrap_or_default();
    let has_registry = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let with_registry = match (has_registry, image.contains('/')) {
        (true, _) => image.to_owned(),
        (false, true) => format!("docker.io/{image}"),
        (false, false) => format!("docker.io/library/{image}"),
    };
    let last = with_registry.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) {
        with_registry
    } else {
        format!("{with_registry}:latest")
    }
}

/// A full name without tag and digest.
pub fn repository(full_name: &str) -> &str {
    let plain = full_name.split('@').next().unwrap_or_default();
    match plain.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        Some(_) | None => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_containerd_records_them() {
        for (short, full) in [
            ("redis", "docker.io/library/redis:latest"),
            ("redis:7", "docker.io/library/redis:7"),
            ("team/app:1", "docker.io/team/app:1"),
            ("localhost/app", "localhost/app:latest"),
            ("10.0.0.1:5000/app:1", "10.0.0.1:5000/app:1"),
            ("quay.io/a/b@sha256:ab", "quay.io/a/b@sha256:ab"),
        ] {
            assert_eq!(full_name(short), full);
        }
        assert_eq!(repository("10.0.0.1:5000/app:1"), "10.0.0.1:5000/app");
        assert_eq!(repository("quay.io/a/b@sha256:ab"), "quay.io/a/b");
    }
}
