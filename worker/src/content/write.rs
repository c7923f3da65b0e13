//! A blob into containerd's content store, so that its garbage collector keeps it as part of an image.

use std::{collections::HashMap, sync::Arc};

use bytes::BytesMut;
use futures::TryStreamExt;
use proto::containerd::{content, leases};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, metadata::MetadataValue};

use super::ExportedBlob;
use crate::{
    fetch,
    images::{Images, RuntimeError, failed},
    restore::RestoreError,
    spans::Traffic,
    store::Store,
};

/// Data of one message to containerd: gRPC's usual limit is 4 MiB a message.
const WRITE_BYTES: usize = 1 << 20;
/// Messages that wait for containerd: 4 MiB.
const WRITES_WAITING: usize = 4;

pub(super) async fn take_lease(images: &Images, lease: &str) -> Result<(), RuntimeError> {
    let request = leases::CreateRequest {
        id: lease.to_owned(),
        ..leases::CreateRequest::default()
    };
    match images.leases.clone().create(request).await {
        Err(status) if status.code() != Code::AlreadyExists => {
            Err(failed(format!("take lease {lease}"), status))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Fetches a blob into the content store. The commit is sent only when every byte was verified.
pub(super) async fn write_blob(
    store: &Arc<dyn Store>,
    images: &Images,
    lease: &str,
    blob: &ExportedBlob,
) -> Result<(), RestoreError> {
    let doing = || format!("write blob {} into containerd", blob.digest);
    let reference = format!("{lease}-{}", blob.digest);
    // What a crash left half written is begun anew.
    let _ = images
        .content
        .clone()
        .abort(content::AbortRequest {
            r#ref: reference.clone(),
        })
        .await;
    let (sender, receiver) = mpsc::channel(WRITES_WAITING);
    let mut request = Request::new(ReceiverStream::new(receiver));
    let lease = MetadataValue::try_from(lease)
        .map_err(|_| failed(doing(), Status::invalid_argument("lease name")))?;
    request.metadata_mut().insert("containerd-lease", lease);
    let mut client = images.content.clone();
    let write = async {
        let answers = client
            .write(request)
            .await
            .map_err(|status| failed(doing(), status))?
            .into_inner();
        answers
            .try_for_each(|_| async { Ok(()) })
            .await
            .map_err(|status| failed(doing(), status))
    };
    // Fetching ends early when containerd does not take more; its answer is then the reason.
    let (written, sent) = tokio::join!(write, send_blob(store, blob, reference, sender));
    sent?;
    match written {
        Err(error) if error.status.code() == Code::AlreadyExists => Ok(()),
        written => Ok(written?),
    }
}

async fn send_blob(
    store: &Arc<dyn Store>,
    blob: &ExportedBlob,
    reference: String,
    sender: mpsc::Sender<content::WriteContentRequest>,
) -> Result<(), RestoreError> {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let message = |action: content::WriteAction, offset: u64| content::WriteContentRequest {
        action: action.into(),
        r#ref: reference.clone(),
        total: number(blob.content.size),
        expected: blob.digest.clone(),
        offset: number(offset),
        ..content::WriteContentRequest::default()
    };
    let mut packs = std::pin::pin!(fetch::packs(
        store.clone(),
        &blob.content,
        Arc::new(Traffic::default())
    ));
    let mut offset = 0;
    let mut document = BytesMut::new();
    while let Some(pack) = packs.try_next().await? {
        // Only documents have references to follow, and those fit in one pack.
        document = if offset == 0 {
            BytesMut::from(&pack[..])
        } else {
            BytesMut::new()
        };
        for part in pack.chunks(WRITE_BYTES) {
            let data = part.to_vec();
            if sender
                .send(content::WriteContentRequest {
                    data,
                    ..message(content::WriteAction::Write, offset)
                })
                .await
                .is_err()
            {
                return Ok(());
            }
            offset += part.len() as u64;
        }
    }
    let labels = collection_labels(&blob.media_type, &document);
    let commit = content::WriteContentRequest {
        labels,
        ..message(content::WriteAction::Commit, offset)
    };
    let _ = sender.send(commit).await;
    Ok(())
}

/// By these labels the garbage collector goes from an index to manifests, and from a manifest to configuration and
/// layers.
fn collection_labels(media_type: &str, document: &[u8]) -> HashMap<String, String> {
    #[derive(Deserialize)]
    struct Named {
        digest: String,
    }
    #[derive(Deserialize)]
    struct Document {
        #[serde(default)]
        manifests: Vec<Named>,
        config: Option<Named>,
        #[serde(default)]
        layers: Vec<Named>,
    }
    if !media_type.contains("manifest") && !media_type.contains("index") {
        return HashMap::new();
    }
    let Ok(Document {
        manifests,
        config,
        layers,
    }) = serde_json::from_slice(document)
    else {
        return HashMap::new();
    };
    let label =
        |key: String, named: Named| (format!("containerd.io/gc.ref.content.{key}"), named.digest);
    let manifests = manifests
        .into_iter()
        .enumerate()
        .map(|(at, named)| label(format!("m.{at}"), named));
    let layers = layers
        .into_iter()
        .enumerate()
        .map(|(at, named)| label(format!("l.{at}"), named));
    manifests
        .chain(config.map(|named| label("config".to_owned(), named)))
        .chain(layers)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_garbage_collector_can_follow_manifest_and_index() {
        let manifest = br#"{"config":{"digest":"sha256:c"},"layers":[{"digest":"sha256:l"}]}"#;
        let labels = collection_labels("application/vnd.oci.image.manifest.v1+json", manifest);
        assert_eq!(labels["containerd.io/gc.ref.content.config"], "sha256:c");
        assert_eq!(labels["containerd.io/gc.ref.content.l.0"], "sha256:l");
        let index = br#"{"manifests":[{"digest":"sha256:m"}]}"#;
        let labels = collection_labels("application/vnd.oci.image.index.v1+json", index);
        assert_eq!(labels["containerd.io/gc.ref.content.m.0"], "sha256:m");
        assert!(collection_labels("application/vnd.oci.image.layer.v1.tar", manifest).is_empty());
    }
}
