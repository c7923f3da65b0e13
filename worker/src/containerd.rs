//! What containerd is asked, in our words: which containers a pod has, whether they run, and to pause or resume them.
//!
//! Containers are told apart by their labels. The annotation `io.kubernetes.cri.container-name` says the same in most
//! cases, but on containers that containerd 2.1 restored it is wrong.
//!
//! The socket is dialled at each call anew when containerd was restarted; no call waits longer than its limit.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use proto::{
    containerd::{
        containers::{self, containers_client::ContainersClient},
        tasks::{self, tasks_client::TasksClient},
        version::version_client::VersionClient,
    },
    cri::{self, runtime_service_client::RuntimeServiceClient},
};
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

/// Everything that Kubernetes runs is in this namespace of containerd.
const NAMESPACE: &str = "k8s.io";
const LABEL_UID: &str = "io.kubernetes.pod.uid";
const LABEL_NAME: &str = "io.kubernetes.container.name";
const LABEL_KIND: &str = "io.cri-containerd.kind";
/// Pausing waits for a freezer and for the shim; everything else here is a look-up. The kubelet allows itself 2 min.
const CALL_MAX: Duration = Duration::from_secs(20);

/// The runtime of this node.
#[derive(Clone, Debug)]
pub struct Containerd {
    channel: Channel,
}

/// A container of a pod, running or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Its name in the pod; empty for the sandbox.
    pub name: String,
    /// The sandbox ("pause") and not one from the pod's spec.
    pub is_sandbox: bool,
    /// For example io.containerd.runc.v2.
    pub runtime: String,
}

/// The processes of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// First process, as the node sees it.
    pub pid: u32,
    /// What it does.
    pub state: TaskState,
    /// It has a terminal.
    pub terminal: bool,
    /// How it ended; meaningful when stopped.
    pub exit_status: u32,
}

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "containerd's own words")]
pub enum TaskState {
    Unknown,
    Created,
    Running,
    Stopped,
    Paused,
    Pausing,
}

/// containerd did not do it, or did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {object}: containerd says: {}", status.message())]
pub struct ContainerdError {
    doing: &'static str,
    object: String,
    status: Box<Status>,
}

impl ContainerdError {
    /// What was being done to what, and what the runtime said.
    pub fn new(doing: &'static str, object: impl Into<String>, status: Status) -> Self {
        said(doing, object)(status)
    }

    /// There is no such thing.
    pub fn is_not_found(&self) -> bool {
        self.status.code() == Code::NotFound
    }
}

impl Containerd {
    /// A client of the socket; it is dialled at the first call.
    pub fn at(socket: &Path) -> Self {
        let socket: PathBuf = socket.to_owned();
        // The address is only for the header: the connector below decides where it goes.
        let endpoint = Endpoint::from_static("http://containerd")
            .timeout(CALL_MAX)
            .connect_timeout(CALL_MAX);
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map(TokioIo::new)
            }
        }));
        Self { channel }
    }

    /// containerd's version, without a leading v.
    pub async fn version(&self) -> Result<String, ContainerdError> {
        let answer = VersionClient::new(self.channel.clone())
            .version(Request::new(()))
            .await;
        let version = answer
            .map_err(said("ask for the version of", "containerd"))?
            .into_inner()
            .version;
        Ok(version.trim_start_matches('v').to_owned())
    }

    /// What CRI's status says in detail; the entry `config` holds containerd's settings as JSON.
    pub async fn details(&self) -> Result<HashMap<String, String>, ContainerdError> {
        let request = Request::new(cri::StatusRequest { verbose: true });
        let answer = RuntimeServiceClient::new(self.channel.clone())
            .status(request)
            .await;
        Ok(answer
            .map_err(said(
                "ask for the status of",
                "the container runtime interface",
            ))?
            .into_inner()
            .info)
    }

    /// Every container of a pod that containerd knows, the sandbox too.
    pub async fn containers_of(&self, uid: &str) -> Result<Vec<Container>, ContainerdError> {
        let filters = vec![format!("labels.\"{LABEL_UID}\"==\"{uid}\"")];
        let request = in_namespace(containers::ListContainersRequest { filters });
        let answer = ContainersClient::new(self.channel.clone())
            .list(request)
            .await;
        let known = answer
            .map_err(said("list the containers of pod", uid))?
            .into_inner()
            .containers;
        // The filter is containerd's; that it was obeyed is checked here.
        let ours = known
            .into_iter()
            .filter(|container| container.labels.get(LABEL_UID).is_some_and(|of| of == uid));
        Ok(ours.map(container_of).collect())
    }

    /// The task of a container; nothing when it has none.
    pub async fn task(&self, id: &str) -> Result<Option<Task>, ContainerdError> {
        let request = in_namespace(tasks::GetRequest {
            container_id: id.to_owned(),
        });
        match TasksClient::new(self.channel.clone()).get(request).await {
            Ok(answer) => Ok(answer.into_inner().process.map(|process| task_of(&process))),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(said("look at the task of container", id)(status)),
        }
    }

    /// Stops the task; containerd knows that it is paused.
    pub async fn pause(&self, id: &str) -> Result<(), ContainerdError> {
        let request = in_namespace(tasks::PauseTaskRequest {
            container_id: id.to_owned(),
        });
        let answer = TasksClient::new(self.channel.clone()).pause(request).await;
        answer
            .map(drop)
            .map_err(said("pause the task of container", id))
    }

    /// Lets a paused task go on.
    pub async fn resume(&self, id: &str) -> Result<(), ContainerdError> {
        let request = in_namespace(tasks::ResumeTaskRequest {
            container_id: id.to_owned(),
        });
        let answer = TasksClient::new(self.channel.clone()).resume(request).await;
        answer
            .map(drop)
            .map_err(said("resume the task of container", id))
    }
}

fn container_of(container: containers::Container) -> Container {
    let containers::Container {
        id,
        labels,
        image: _,
        runtime,
        snapshotter: _,
        snapshot_key: _,
    } = container;
    Container {
        id,
        name: labels.get(LABEL_NAME).cloned().unwrap_or_default(),
        is_sandbox: labels.get(LABEL_KIND).is_some_and(|kind| kind == "sandbox"),
        runtime: runtime.map(|runtime| runtime.name).unwrap_or_default(),
    }
}

fn task_of(process: &tasks::Process) -> Task {
    let state = match process.status() {
        tasks::Status::Unknown => TaskState::Unknown,
        tasks::Status::Created => TaskState::Created,
        tasks::Status::Running => TaskState::Running,
        tasks::Status::Stopped => TaskState::Stopped,
        tasks::Status::Paused => TaskState::Paused,
        tasks::Status::Pausing => TaskState::Pausing,
    };
    Task {
        pid: process.pid,
        state,
        terminal: process.terminal,
        exit_status: process.exit_status,
    }
}

fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "containerd-namespace",
        MetadataValue::from_static(NAMESPACE),
    );
    request
}

fn said(doing: &'static str, object: impl Into<String>) -> impl FnOnce(Status) -> ContainerdError {
    let object = object.into();
    move |status| ContainerdError {
        doing,
        object,
        status: Box::new(status),
    }
}
