//! The images of this node as its runtime has them: blobs and records through containerd, pulls through CRI.
//!
//! Only questions and single effects live here; what they add up to is decided in [`restore`](crate::restore) and
//! [`content`](crate::content). Every call names the namespace that the kubelet's containers live in.

mod users;

use std::{collections::HashMap, path::PathBuf, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use hyper_util::rt::TokioIo;
use proto::{
    containerd::{containers, content, images, leases},
    cri,
};
use serde::Deserialize;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Uri},
};

use crate::rebuild::architecture;

/// Until an answer begins: the slowest, a look at a loaded node's containers, takes a second. A containerd that hangs
/// must not hang a step.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Until a pull is done: 64 GiB at 200 MB/s of unpacking and its checks.
const PULL_TIMEOUT: Duration = Duration::from_secs(600);
/// Manifests and configurations have kilobytes; a blob above this is no such document.
const DOCUMENT_BYTES_MAX: i64 = 8 << 20;

/// Names the namespace, as every containerd call must.
#[derive(Clone)]
pub struct Namespace;

impl Interceptor for Namespace {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(
            "containerd-namespace",
            tonic::metadata::MetadataValue::from_static("k8s.io"),
        );
        Ok(request)
    }
}

type Named = InterceptedService<Channel, Namespace>;

/// The runtime's services. Cheap to clone: clones share one connection, which is dialled when it is needed.
#[derive(Clone)]
pub struct Images {
    pub(crate) content: content::content_client::ContentClient<Named>,
    pub(crate) records: images::images_client::ImagesClient<Named>,
    pub(crate) leases: leases::leases_client::LeasesClient<Named>,
    containers: containers::containers_client::ContainersClient<Named>,
    cri_images: cri::image_service_client::ImageServiceClient<Named>,
    cri_runtime: cri::runtime_service_client::RuntimeServiceClient<Named>,
}

/// What was asked of the runtime, and what it said.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {}", said(.status))]
pub struct RuntimeError {
    /// Verb and object.
    pub doing: String,
    /// The runtime's answer; not a `source`, since its words are part of this error's own.
    pub status: Box<Status>,
}

/// An image as far as this node's architecture needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageTree {
    /// The topmost blob: manifest or index.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Digest of the configuration: the runtime's image id. "" when not even the manifest is here.
    pub image_id: String,
    /// Every blob there must be, the topmost first, then what it names.
    pub blobs: Vec<Blob>,
    /// Digests of those that are not in the content store.
    pub missing: Vec<String>,
}

/// One blob of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// sha256.
    pub digest: String,
    /// Bytes; 0 for one that is missing.
    pub size: u64,
    /// From whoever names it.
    pub media_type: String,
}

/// Index and manifest in one: whichever parts are there.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    media_type: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

impl Images {
    /// Nothing is dialled before the first call, and a lost connection is dialled again.
    pub fn new(containerd_socket: PathBuf) -> Self {
        let connect = tower::service_fn(move |_: Uri| {
            let socket = containerd_socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://containerd");
        let pulls = endpoint
            .clone()
            .timeout(PULL_TIMEOUT)
            .connect_with_connector_lazy(connect.clone());
        let channel = endpoint
            .timeout(CALL_TIMEOUT)
            .connect_with_connector_lazy(connect);
        // 16 MiB: gRPC's own limit on the runtime's side; blobs come in pieces far below.
        let large = 16 << 20;
        Self {
            content: content::content_client::ContentClient::with_interceptor(
                channel.clone(),
                Namespace,
            )
            .max_decoding_message_size(large),
            records: images::images_client::ImagesClient::with_interceptor(
                channel.clone(),
                Namespace,
            )
            .max_decoding_message_size(large),
            leases: leases::leases_client::LeasesClient::with_interceptor(
                channel.clone(),
                Namespace,
            ),
            containers: containers::containers_client::ContainersClient::with_interceptor(
                channel.clone(),
                Namespace,
            )
            .max_decoding_message_size(large),
            cri_images: cri::image_service_client::ImageServiceClient::with_interceptor(
                pulls, Namespace,
            ),
            cri_runtime: cri::runtime_service_client::RuntimeServiceClient::with_interceptor(
                channel, Namespace,
            )
            .max_decoding_message_size(large),
        }
    }

    /// Bytes of a blob; `None` when it is not here.
    pub async fn size(&self, digest: &str) -> Result<Option<u64>, RuntimeError> {
        let request = content::InfoRequest {
            digest: digest.to_owned(),
        };
        match self.content.clone().info(request).await {
            Ok(answer) => Ok(Some(
                answer
                    .into_inner()
                    .info
                    .map_or(0, |info| u64::try_from(info.size).unwrap_or(0)),
            )),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(format!("look for blob {digest}"), status)),
        }
    }

    /// The bytes of a blob from `offset` on, at most `size` of them (0: to its end).
    pub async fn read(
        &self,
        digest: &str,
        offset: u64,
        size: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, RuntimeError>> + Send + use<>, RuntimeError> {
        let doing = format!("read blob {digest}");
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let request = content::ReadContentRequest {
            digest: digest.to_owned(),
            offset: number(offset),
            size: number(size),
        };
        let answer = self
            .content
            .clone()
            .read(request)
            .await
            .map_err(|status| failed(doing.clone(), status))?;
        Ok(answer.into_inner().map(move |part| match part {
            Ok(part) => Ok(Bytes::from(part.data)),
            Err(status) => Err(failed(doing.clone(), status)),
        }))
    }

    /// A small blob, whole; `None` when it is not here.
    pub async fn document(&self, digest: &str) -> Result<Option<Bytes>, RuntimeError> {
        match self.size(digest).await? {
            None => Ok(None),
            Some(size) if size > DOCUMENT_BYTES_MAX.unsigned_abs() => Err(failed(
                format!("read blob {digest} as a document"),
                Status::out_of_range(format!("{size} bytes are more than a manifest has")),
            )),
            Some(_) => {
                let parts: Vec<Bytes> = self.read(digest, 0, 0).await?.try_collect().await?;
                Ok(Some(parts.concat().into()))
            }
        }
    }

    /// Follows an image from its topmost blob as far as this architecture needs it.
    pub async fn tree(&self, digest: &str) -> Result<ImageTree, RuntimeError> {
        let mut tree = ImageTree {
            digest: digest.to_owned(),
            ..ImageTree::default()
        };
        let mut next = Some((digest.to_owned(), String::new()));
        while let Some((digest, media_type)) = next.take() {
            let Some(bytes) = self.document(&digest).await? else {
                tree.missing.push(digest);
                break;
            };
            let document: Document = serde_json::from_slice(&bytes).map_err(|error| {
                failed(
                    format!("read manifest {digest}"),
                    Status::data_loss(error.to_string()),
                )
            })?;
            let media_type = document.own_media_type(media_type);
            if tree.media_type.is_empty() {
                tree.media_type = media_type.clone();
            }
            tree.blobs.push(Blob {
                digest,
                size: bytes.len() as u64,
                media_type,
            });
            next = document
                .manifest_for_us()
                .map(|entry| (entry.digest.clone(), entry.media_type.clone()));
            let Document {
                config,
                layers,
                manifests,
                media_type: _,
            } = document;
            if !manifests.is_empty() && next.is_none() {
                tree.missing.push(format!(
                    "a manifest for {} in {}",
                    architecture(),
                    tree.digest
                ));
            }
            tree.image_id = config
                .as_ref()
                .map(|config| config.digest.clone())
                .unwrap_or_default();
            for Descriptor {
                digest,
                media_type,
                platform: _,
            } in config.into_iter().chain(layers)
            {
                match self.size(&digest).await? {
                    Some(size) => tree.blobs.push(Blob {
                        digest,
                        size,
                        media_type,
                    }),
                    None => tree.missing.push(digest),
                }
            }
        }
        Ok(tree)
    }

    /// What a name stands for; `None` when the runtime has no record of it.
    pub async fn record(&self, name: &str) -> Result<Option<images::Image>, RuntimeError> {
        match self
            .records
            .clone()
            .get(images::GetImageRequest {
                name: name.to_owned(),
            })
            .await
        {
            Ok(answer) => Ok(answer.into_inner().image),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(format!("look up image {name}"), status)),
        }
    }

    /// Names of the records that begin with `prefix`.
    pub async fn names(&self, prefix: &str) -> Result<Vec<String>, RuntimeError> {
        let names = self
            .all_records()
            .await?
            .into_iter()
            .map(|image| image.name);
        Ok(names.filter(|name| name.starts_with(prefix)).collect())
    }

    /// All records there are.
    pub async fn all_records(&self) -> Result<Vec<images::Image>, RuntimeError> {
        let filters = Vec::new();
        let request = images::ListImagesRequest { filters };
        let answer = self.records.clone().list(request).await;
        let answer = answer.map_err(|status| failed("list images".to_owned(), status))?;
        Ok(answer.into_inner().images)
    }

    /// Removes a name; one that is not there is removed already.
    pub async fn forget(&self, name: &str) -> Result<(), RuntimeError> {
        match self
            .records
            .clone()
            .delete(images::DeleteImageRequest {
                name: name.to_owned(),
                sync: false,
            })
            .await
        {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(failed(format!("remove image {name}"), status)),
        }
    }

    /// Sets or clears the label that keeps an image from the kubelet's garbage collection.
    pub async fn pin(&self, name: &str, pinned: bool) -> Result<(), RuntimeError> {
        let key = "io.cri-containerd.pinned";
        let value = if pinned { "pinned" } else { "" };
        let Some(record) = self.record(name).await? else {
            return Err(failed(
                format!("pin image {name}"),
                Status::not_found("there is no such image"),
            ));
        };
        // The mask lets only the label change; the target is sent because containerd reads it from every request.
        let image = images::Image {
            labels: HashMap::from([(key.to_owned(), value.to_owned())]),
            ..record
        };
        let update_mask = Some(prost_types::FieldMask {
            paths: vec![format!("labels.{key}")],
        });
        let request = images::UpdateImageRequest {
            image: Some(image),
            update_mask,
        };
        self.records
            .clone()
            .update(request)
            .await
            .map_err(|status| failed(format!("pin image {name}"), status))?;
        Ok(())
    }

    /// Has the runtime pull an image as it would for the kubelet, unpacked and all; gives its id.
    pub async fn pull(&self, reference: &str) -> Result<String, RuntimeError> {
        let image = Some(cri::ImageName {
            image: reference.to_owned(),
        });
        let answer = self
            .cri_images
            .clone()
            .pull_image(cri::PullImageRequest { image })
            .await;
        Ok(answer
            .map_err(|status| failed(format!("pull image {reference}"), status))?
            .into_inner()
            .image_ref)
    }

    /// The id the runtime knows a reference under.
    pub async fn image_id(&self, reference: &str) -> Result<Option<String>, RuntimeError> {
        let image = Some(cri::ImageName {
            image: reference.to_owned(),
        });
        let request = cri::ImageStatusRequest { image };
        let answer = self.cri_images.clone().image_status(request).await;
        let answer = answer
            .map_err(|status| failed(format!("ask for image {reference}"), status))?
            .into_inner();
        Ok(answer.image.map(|image| image.id))
    }
}

impl Document {
    /// In an index: the first manifest for this architecture.
    fn manifest_for_us(&self) -> Option<&Descriptor> {
        self.manifests.iter().find(|entry| match &entry.platform {
            Some(Platform { architecture, os }) => {
                os == "linux" && architecture == crate::rebuild::architecture()
            }
            None => true,
        })
    }

    /// What it calls itself, else what it was called by what led to it, else the usual.
    fn own_media_type(&self, called: String) -> String {
        let own = self.media_type.clone().filter(|own| !own.is_empty());
        let known = own.unwrap_or(called);
        if known.is_empty() {
            self.usual_media_type()
        } else {
            known
        }
    }

    /// OCI documents may leave their media type out.
    fn usual_media_type(&self) -> String {
        let kind = if self.manifests.is_empty() {
            "manifest"
        } else {
            "index"
        };
        format!("application/vnd.oci.image.{kind}.v1+json")
    }
}

/// A failed call as an error.
pub fn failed(doing: String, status: Status) -> RuntimeError {
    RuntimeError {
        doing,
        status: Box::new(status),
    }
}

/// The runtime's words, and what they mean where they don't say it.
fn said(status: &Status) -> String {
    let words = status.message();
    if status.code() == Code::Unavailable {
        format!("containerd does not answer ({words}); is it running on this node?")
    } else if matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) {
        format!("containerd does not answer in time ({words})")
    } else if words.contains("no space left on device") {
        format!("the node's disk is full: {words}")
    } else {
        words.to_owned()
    }
}
