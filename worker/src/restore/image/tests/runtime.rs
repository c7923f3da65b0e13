//! A containerd of the test's own on a real socket: it has one base image, keeps names, and pulls as it is told to.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use proto::{
    containerd::{
        containers::{self, containers_server},
        content::{self, content_server},
        images::{self, images_server},
    },
    cri::{self, image_service_server, runtime_service_server},
};
use tonic::{Request, Response, Status, Streaming};

use crate::rebuild::sha256;

#[derive(Default)]
pub(super) struct State {
    /// By digest.
    blobs: BTreeMap<String, Vec<u8>>,
    /// Names the runtime knows, and for which digest.
    pub names: BTreeMap<String, String>,
    /// Of these, containers were made.
    pub used: Vec<String>,
    /// What it was asked to pull.
    pub asked: Vec<String>,
    /// Pulls of the base image are refused.
    pub refuses_bases: bool,
}

#[derive(Clone, Default)]
pub(super) struct Runtime(Arc<Mutex<State>>);

impl Runtime {
    /// Serves on `socket`, with a base image of this digest and id.
    pub fn start(socket: &Path) -> (Self, String, String) {
        let runtime = Self::default();
        let config = br#"{"architecture":"any"}"#.to_vec();
        let image_id = sha256(&config);
        let manifest = serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": image_id},
            "layers": [],
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = sha256(&manifest);
        runtime.state().blobs =
            BTreeMap::from([(image_id.clone(), config), (digest.clone(), manifest)]);
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(content_server::ContentServer::new(runtime.clone()))
            .add_service(images_server::ImagesServer::new(runtime.clone()))
            .add_service(containers_server::ContainersServer::new(runtime.clone()))
            .add_service(image_service_server::ImageServiceServer::new(
                runtime.clone(),
            ))
            .add_service(runtime_service_server::RuntimeServiceServer::new(
                runtime.clone(),
            ));
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        tokio::spawn(server.serve_with_incoming(incoming));
        (runtime, digest, image_id)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn blob(&self, digest: &str) -> Result<Vec<u8>, Status> {
        let blob = self.state().blobs.get(digest).cloned();
        blob.ok_or_else(|| Status::not_found("no such blob"))
    }
}

fn image(name: String, digest: String) -> images::Image {
    let target = images::Target {
        digest,
        ..Default::default()
    };
    images::Image {
        name,
        target: Some(target),
        ..Default::default()
    }
}

fn not_asked<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not asked"))
}

#[async_trait]
impl content_server::Content for Runtime {
    type ReadStream = BoxStream<'static, Result<content::ReadContentResponse, Status>>;
    type WriteStream = BoxStream<'static, Result<content::WriteContentResponse, Status>>;

    async fn info(
        &self,
        request: Request<content::InfoRequest>,
    ) -> Result<Response<content::InfoResponse>, Status> {
        let digest = request.into_inner().digest;
        let size = self.blob(&digest)?.len() as i64;
        let info = content::Info {
            digest,
            size,
            ..Default::default()
        };
        Ok(Response::new(content::InfoResponse { info: Some(info) }))
    }

    async fn read(
        &self,
        request: Request<content::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let data = self.blob(&request.into_inner().digest)?;
        let whole = content::ReadContentResponse { offset: 0, data };
        Ok(Response::new(stream::iter([Ok(whole)]).boxed()))
    }

    async fn update(
        &self,
        _: Request<content::UpdateRequest>,
    ) -> Result<Response<content::UpdateResponse>, Status> {
        not_asked()
    }

    async fn write(
        &self,
        _: Request<Streaming<content::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        not_asked()
    }

    async fn abort(&self, _: Request<content::AbortRequest>) -> Result<Response<()>, Status> {
        not_asked()
    }
}

#[async_trait]
impl images_server::Images for Runtime {
    async fn get(
        &self,
        request: Request<images::GetImageRequest>,
    ) -> Result<Response<images::GetImageResponse>, Status> {
        let name = request.into_inner().name;
        let digest = self.state().names.get(&name).cloned();
        let digest = digest.ok_or_else(|| Status::not_found("no such image"))?;
        let image = Some(image(name, digest));
        Ok(Response::new(images::GetImageResponse { image }))
    }

    async fn list(
        &self,
        _: Request<images::ListImagesRequest>,
    ) -> Result<Response<images::ListImagesResponse>, Status> {
        let names = self.state().names.clone();
        let images = names.into_iter().map(|(name, digest)| image(name, digest));
        let images = images.collect();
        Ok(Response::new(images::ListImagesResponse { images }))
    }

    async fn create(
        &self,
        _: Request<images::CreateImageRequest>,
    ) -> Result<Response<images::CreateImageResponse>, Status> {
        not_asked()
    }

    async fn update(
        &self,
        request: Request<images::UpdateImageRequest>,
    ) -> Result<Response<images::UpdateImageResponse>, Status> {
        let image = request.into_inner().image;
        Ok(Response::new(images::UpdateImageResponse { image }))
    }

    async fn delete(
        &self,
        request: Request<images::DeleteImageRequest>,
    ) -> Result<Response<()>, Status> {
        match self.state().names.remove(&request.into_inner().name) {
            Some(_) => Ok(Response::new(())),
            None => Err(Status::not_found("no such image")),
        }
    }
}

#[async_trait]
impl containers_server::Containers for Runtime {
    async fn get(
        &self,
        _: Request<containers::GetContainerRequest>,
    ) -> Result<Response<containers::GetContainerResponse>, Status> {
        not_asked()
    }

    async fn list(
        &self,
        _: Request<containers::ListContainersRequest>,
    ) -> Result<Response<containers::ListContainersResponse>, Status> {
        let used = self.state().used.clone();
        let containers = used.into_iter().map(|image| containers::Container {
            image,
            ..Default::default()
        });
        let containers = containers.collect();
        Ok(Response::new(containers::ListContainersResponse {
            containers,
        }))
    }
}

#[async_trait]
impl image_service_server::ImageService for Runtime {
    async fn image_status(
        &self,
        _: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        not_asked()
    }

    /// A base image is there at once. A checkpoint has its name, and then nothing more is heard of it.
    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let name = request.into_inner().image.unwrap_or_default().image;
        {
            let mut state = self.state();
            state.asked.push(name.clone());
            if name.contains("/base/") {
                if state.refuses_bases {
                    return Err(Status::internal("the disk of images is broken"));
                }
                let ids = state.blobs.keys();
                let mut ids = ids.filter(|digest| !name.ends_with(digest.as_str()));
                let image_ref = ids.next().unwrap().clone();
                return Ok(Response::new(cri::PullImageResponse { image_ref }));
            }
            state.names.insert(name, "sha256:half".to_owned());
        }
        std::future::pending().await
    }

    async fn remove_image(
        &self,
        _: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        not_asked()
    }
}

#[async_trait]
impl runtime_service_server::RuntimeService for Runtime {
    async fn version(
        &self,
        _: Request<cri::VersionRequest>,
    ) -> Result<Response<cri::VersionResponse>, Status> {
        not_asked()
    }

    async fn list_containers(
        &self,
        _: Request<cri::ListContainersRequest>,
    ) -> Result<Response<cri::ListContainersResponse>, Status> {
        Ok(Response::new(cri::ListContainersResponse::default()))
    }

    async fn container_status(
        &self,
        _: Request<cri::ContainerStatusRequest>,
    ) -> Result<Response<cri::ContainerStatusResponse>, Status> {
        not_asked()
    }

    async fn status(
        &self,
        _: Request<cri::StatusRequest>,
    ) -> Result<Response<cri::StatusResponse>, Status> {
        not_asked()
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<cri::ListPodSandboxRequest>,
    ) -> Result<Response<cri::ListPodSandboxResponse>, Status> {
        Ok(Response::new(cri::ListPodSandboxResponse::default()))
    }
}
