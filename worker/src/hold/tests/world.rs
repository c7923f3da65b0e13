//! The runtime, the kubelet and the data path of the hold's tests: they do what they are asked and keep a log of it.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use proto::{
    containerd::{
        containers::{self, containers_server},
        tasks::{self, tasks_server},
    },
    worker::{
        Deliver, Delivered, DeliveredImage, Disarm, ExportImages, ExportedImages, HasImages,
        ImportImages, Receive, Span, Tidy, Verified, VerifiedContainer, Verify, Withdraw,
        verified_container::Origin,
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{IDS, UID};
use crate::{
    checkpoint::{CheckpointError, Checkpointer, Subject},
    data::{Data, DataError, ProgressFn, Saved, Stores},
};

/// What the runtime of the test knows, and what was done to it in which order.
#[derive(Default)]
pub(super) struct World {
    pub states: BTreeMap<String, tasks::Status>,
    pub log: Vec<String>,
    /// This container is resumed by somebody while it is dumped.
    pub meddle_with: Option<String>,
    /// The dump of this container ends without letting it go on.
    pub leaves_paused: Option<String>,
    /// Dumps take this long.
    pub dump: Duration,
    /// Archives say that they are of this container.
    pub archives_claim: Option<String>,
    /// A dump of this container was ended midway: it resumes only once it is frozen again.
    pub thawed: Option<String>,
    pub folder: PathBuf,
    /// What the runtime's records say of the restored containers.
    pub origin: Origin,
}

#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    pub fn freezer(&self) -> String {
        fs::read_to_string(
            self.world()
                .folder
                .join(format!("freezer/kubepods/pod{UID}/freezer.state")),
        )
        .unwrap()
        .trim()
        .into()
    }
}

#[async_trait]
impl tasks_server::Tasks for Shared {
    async fn get(
        &self,
        request: Request<tasks::GetRequest>,
    ) -> Result<Response<tasks::GetResponse>, Status> {
        assert_eq!(
            request.metadata().get("containerd-namespace").unwrap(),
            "k8s.io"
        );
        let id = request.into_inner().container_id;
        let world = self.world();
        let status = world
            .states
            .get(&id)
            .ok_or_else(|| Status::not_found("no such task"))?;
        let process = tasks::Process {
            id,
            pid: 77,
            status: (*status).into(),
            ..Default::default()
        };
        Ok(Response::new(tasks::GetResponse {
            process: Some(process),
        }))
    }

    async fn list(
        &self,
        _: Request<tasks::ListTasksRequest>,
    ) -> Result<Response<tasks::ListTasksResponse>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn pause(
        &self,
        request: Request<tasks::PauseTaskRequest>,
    ) -> Result<Response<()>, Status> {
        let id = request.into_inner().container_id;
        let mut world = self.world();
        world.log.push(format!("pause {id}"));
        world.states.insert(id, tasks::Status::Paused);
        Ok(Response::new(()))
    }

    async fn resume(
        &self,
        request: Request<tasks::ResumeTaskRequest>,
    ) -> Result<Response<()>, Status> {
        let frozen = self.freezer();
        let id = request.into_inner().container_id;
        let mut world = self.world();
        let state = world
            .folder
            .join(format!("freezer/kubepods/pod{UID}/{id}/freezer.state"));
        if world.thawed.as_ref() == Some(&id) && fs::read_to_string(state).unwrap() != "FROZEN" {
            return Err(Status::unknown(
                "runc did not terminate successfully: container not paused",
            ));
        }
        world.log.push(format!("resume {id} under {frozen}"));
        world.states.insert(id, tasks::Status::Running);
        Ok(Response::new(()))
    }
}

#[async_trait]
impl containers_server::Containers for Shared {
    async fn get(
        &self,
        _: Request<containers::GetContainerRequest>,
    ) -> Result<Response<containers::GetContainerResponse>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn list(
        &self,
        _: Request<containers::ListContainersRequest>,
    ) -> Result<Response<containers::ListContainersResponse>, Status> {
        let known: Vec<String> = self.world().states.keys().cloned().collect();
        let name = |id: &str| {
            IDS.iter()
                .find(|(_, known)| *known == id)
                .map_or(id, |(name, _)| *name)
                .to_owned()
        };
        let containers = known.into_iter().map(|id| containers::Container {
            labels: HashMap::from([
                ("io.kubernetes.pod.uid".to_owned(), UID.to_owned()),
                ("io.kubernetes.container.name".to_owned(), name(&id)),
            ]),
            id,
            ..Default::default()
        });
        Ok(Response::new(containers::ListContainersResponse {
            containers: containers.collect(),
        }))
    }
}

#[async_trait]
impl Checkpointer for Shared {
    async fn checkpoint(&self, subject: &Subject) -> Result<PathBuf, CheckpointError> {
        let (path, dump, claimed) = {
            let mut world = self.world();
            let paused = world
                .states
                .values()
                .filter(|state| **state == tasks::Status::Paused)
                .count();
            world
                .log
                .push(format!("dump {} with {paused} paused", subject.container));
            if let Some(id) = world.meddle_with.clone() {
                world.states.insert(id, tasks::Status::Running);
            }
            let claimed = world
                .archives_claim
                .clone()
                .unwrap_or_else(|| subject.container_id.clone());
            (
                world.folder.join(format!("{}.tar", subject.container)),
                world.dump,
                claimed,
            )
        };
        tokio::time::sleep(dump).await;
        let left = self.world().leaves_paused.take();
        if let Some(id) = left {
            self.world().states.insert(id, tasks::Status::Paused);
        }
        let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
        let json = format!("{{\"id\":\"{claimed}\"}}");
        let mut header = tar::Header::new_ustar();
        header.set_size(json.len() as u64);
        builder
            .append_data(&mut header, "config.dump", json.as_bytes())
            .unwrap();
        builder.finish().unwrap();
        Ok(path)
    }
}

#[async_trait]
impl Data for Shared {
    async fn save(&self, what: Stores<'_>, _progress: &ProgressFn) -> Result<Saved, DataError> {
        let Stores {
            migration: _,
            prefix,
            archives,
            base: _,
        } = what;
        let frozen = self.freezer();
        let mut world = self.world();
        let names: Vec<&str> = archives.iter().map(|(name, _)| name.as_str()).collect();
        world
            .log
            .push(format!("save {} under {frozen}", names.join(",")));
        if prefix == "refused/" {
            return Err(DataError("put refused/0: connection refused".into()));
        }
        Ok(Saved {
            manifest_key: format!("{prefix}manifest"),
            ..Saved::default()
        })
    }
    async fn copy(&self, what: Stores<'_>, progress: &ProgressFn) -> Result<Saved, DataError> {
        self.save(what, progress).await
    }
    async fn receive(
        &self,
        _: &str,
        _: &Receive,
        _: &ProgressFn,
        _: &CancellationToken,
    ) -> Result<Vec<Span>, DataError> {
        Err(DataError("not asked".into()))
    }
    async fn deliver(
        &self,
        _: &str,
        _: u64,
        _: &Deliver,
        _: &ProgressFn,
        _: &CancellationToken,
    ) -> Result<(Delivered, Vec<Span>), DataError> {
        Err(DataError("not asked".into()))
    }
    async fn verify(&self, request: &Verify) -> Result<Verified, DataError> {
        let frozen = self.freezer();
        let mut world = self.world();
        world.log.push(format!("look under {frozen}"));
        let named = request.pod.iter().flat_map(|pod| &pod.containers);
        let containers = named.map(|container| VerifiedContainer {
            name: container.name.clone(),
            origin: world.origin.into(),
            ..VerifiedContainer::default()
        });
        Ok(Verified {
            containers: containers.collect(),
        })
    }
    async fn disarm(&self, _: &Disarm) -> Result<(), DataError> {
        Err(DataError("not asked".into()))
    }
    async fn silence(&self, migration: &str, _: &[DeliveredImage]) -> Result<(), DataError> {
        let frozen = self.freezer();
        let mut world = self.world();
        world
            .log
            .push(format!("silence {migration} under {frozen}"));
        Ok(())
    }
    async fn withdraw(&self, _: &str, _: &Withdraw) -> Result<(), DataError> {
        Err(DataError("not asked".into()))
    }
    async fn tidy(&self, _: &str, _: &Tidy) -> Result<(), DataError> {
        Err(DataError("not asked".into()))
    }
    async fn has_images(&self, _: &HasImages) -> Result<Vec<String>, DataError> {
        Err(DataError("not asked".into()))
    }
    async fn running_digests(
        &self,
        _containers: &[proto::worker::Container],
    ) -> Result<std::collections::HashMap<String, String>, DataError> {
        Ok(std::collections::HashMap::new())
    }

    async fn export_images(
        &self,
        _: &str,
        _: &ExportImages,
        _: &ProgressFn,
        _: &CancellationToken,
    ) -> Result<ExportedImages, DataError> {
        Err(DataError("not asked".into()))
    }
    async fn import_images(
        &self,
        _: &str,
        _: &ImportImages,
        _: &ProgressFn,
        _: &CancellationToken,
    ) -> Result<(), DataError> {
        Err(DataError("not asked".into()))
    }
}
