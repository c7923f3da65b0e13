//! What a hold touches of its node: the runtime's tasks, the pod's cgroup, its processes, archives, the clock.
//!
//! Every method is one look or one effect, without an opinion of its own. [`ThisNode`] is the node; the second
//! implementation is the simulator's, in which effects are lost, late, and between two of them anything happens.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use async_trait::async_trait;
use proto::worker::Pod;

use super::{HoldError, end};
use crate::{
    cgroup::{Cgroups, PodCgroup},
    checkpoint::{dump, proof},
    containerd::{Container, Containerd, ContainerdError, Task},
    spans::{by_node_clock, now_unix_ns},
};

/// The runtime's tasks.
#[async_trait]
pub trait Tasks: Send + Sync {
    /// Every container of a pod that the runtime knows, the sandbox too.
    async fn containers_of(&self, uid: &str) -> Result<Vec<Container>, ContainerdError>;
    /// The task of a container; nothing when it has none.
    async fn task(&self, id: &str) -> Result<Option<Task>, ContainerdError>;
    /// Stops the task; the runtime knows that it is paused.
    async fn pause(&self, id: &str) -> Result<(), ContainerdError>;
    /// Lets a paused task go on.
    async fn resume(&self, id: &str) -> Result<(), ContainerdError>;
}

/// Tasks and everything else that a hold touches. Cgroups go by their folder, and the pod's UID with it: what is frozen
/// must carry it.
#[async_trait]
pub trait Node: Tasks {
    /// Nanoseconds since 1970 by the worker's clock, which doesn't jump.
    fn unix_ns(&self) -> u64;
    /// Waits for dumps of the container that move, ends those that hang. True: none is left.
    async fn end_dump(&self, container: &str) -> bool;
    /// The pod's cgroup, from where one of its processes is.
    async fn cgroup_of(&self, pid: u32, uid: &str) -> Result<PathBuf, HoldError>;
    /// The pod's cgroup by its name alone. Nothing: there is none.
    fn find_cgroup(&self, uid: &str) -> Result<Option<PathBuf>, HoldError>;
    /// Is everything in it stopped, now?
    fn is_frozen(&self, cgroup: &Path, uid: &str) -> Result<bool, HoldError>;
    /// Stops everything in it.
    async fn freeze(&self, cgroup: &Path, uid: &str) -> Result<(), HoldError>;
    /// Freezes one container of it by itself, as the runtime's pause does.
    async fn freeze_container(&self, cgroup: &Path, uid: &str, id: &str) -> Result<(), HoldError>;
    /// Lets everything in it go on that is not frozen on its own.
    async fn thaw(&self, cgroup: &Path, uid: &str) -> Result<(), HoldError>;
    /// Ends every process in it. One that is gone is no error.
    async fn kill(&self, cgroup: &Path, uid: &str) -> Result<(), HoldError>;
    /// Does this process have a signal to end it pending?
    fn end_is_pending(&self, pid: u32) -> bool;
    /// Is the archive there?
    fn has_archive(&self, path: &Path) -> bool;
    /// What the archive says about itself.
    async fn prove(&self, path: &Path) -> Result<proof::Proof, HoldError>;
    /// Removes it.
    async fn remove_archive(&self, path: &Path) -> std::io::Result<()>;
    /// Archives of this pod that were begun after its hold, and whose names nobody told us.
    fn strays(&self, pod: &Pod, since: SystemTime) -> Vec<PathBuf>;
}

/// The node we run on.
#[derive(Clone)]
pub struct ThisNode {
    /// The runtime.
    pub containerd: Containerd,
    /// The second lock.
    pub cgroups: Cgroups,
    /// Where /proc is.
    pub proc: PathBuf,
}

impl ThisNode {
    fn pod(&self, cgroup: &Path, uid: &str) -> Result<PodCgroup, HoldError> {
        Ok(self.cgroups.pod(cgroup.to_owned(), uid)?)
    }
}

#[async_trait]
impl Tasks for Containerd {
    async fn containers_of(&self, uid: &str) -> Result<Vec<Container>, ContainerdError> {
        Containerd::containers_of(self, uid).await
    }

    async fn task(&self, id: &str) -> Result<Option<Task>, ContainerdError> {
        Containerd::task(self, id).await
    }

    async fn pause(&self, id: &str) -> Result<(), ContainerdError> {
        Containerd::pause(self, id).await
    }

    async fn resume(&self, id: &str) -> Result<(), ContainerdError> {
        Containerd::resume(self, id).await
    }
}

#[async_trait]
impl Tasks for ThisNode {
    async fn containers_of(&self, uid: &str) -> Result<Vec<Container>, ContainerdError> {
        self.containerd.containers_of(uid).await
    }

    async fn task(&self, id: &str) -> Result<Option<Task>, ContainerdError> {
        self.containerd.task(id).await
    }

    async fn pause(&self, id: &str) -> Result<(), ContainerdError> {
        self.containerd.pause(id).await
    }

    async fn resume(&self, id: &str) -> Result<(), ContainerdError> {
        self.containerd.resume(id).await
    }
}

#[async_trait]
impl Node for ThisNode {
    fn unix_ns(&self) -> u64 {
        now_unix_ns()
    }

    async fn end_dump(&self, container: &str) -> bool {
        dump::end(container).await
    }

    async fn cgroup_of(&self, pid: u32, uid: &str) -> Result<PathBuf, HoldError> {
        let path = self.proc.join(pid.to_string()).join("cgroup");
        let text = tokio::fs::read_to_string(&path)
            .await
            .map_err(|source| HoldError::Read { path, source })?;
        Ok(self
            .cgroups
            .of_process(pid, &text, uid)?
            .folder()
            .to_owned())
    }

    fn find_cgroup(&self, uid: &str) -> Result<Option<PathBuf>, HoldError> {
        let found = self.cgroups.find(uid)?;
        Ok(found.map(|cgroup| cgroup.folder().to_owned()))
    }

    fn is_frozen(&self, cgroup: &Path, uid: &str) -> Result<bool, HoldError> {
        Ok(self.pod(cgroup, uid)?.is_frozen()?)
    }

    async fn freeze(&self, cgroup: &Path, uid: &str) -> Result<(), HoldError> {
        Ok(self.pod(cgroup, uid)?.freeze().await?)
    }

    async fn freeze_container(&self, cgroup: &Path, uid: &str, id: &str) -> Result<(), HoldError> {
        Ok(self.pod(cgroup, uid)?.freeze_container(id).await?)
    }

    async fn thaw(&self, cgroup: &Path, uid: &str) -> Result<(), HoldError> {
        Ok(self.pod(cgroup, uid)?.thaw().await?)
    }

    async fn kill(&self, cgroup: &Path, uid: &str) -> Result<(), HoldError> {
        match self.pod(cgroup, uid)?.kill().await {
            Err(error) if !error.is_gone() => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn end_is_pending(&self, pid: u32) -> bool {
        let status = self.proc.join(pid.to_string()).join("status");
        std::fs::read_to_string(status).is_ok_and(|text| end::end_is_pending(&text))
    }

    fn has_archive(&self, path: &Path) -> bool {
        path.is_file()
    }

    async fn prove(&self, path: &Path) -> Result<proof::Proof, HoldError> {
        let file = path.to_owned();
        let reading = tokio::task::spawn_blocking(move || proof::read(&file));
        Ok(reading.await.map_err(|_| HoldError::Interrupted)??)
    }

    async fn remove_archive(&self, path: &Path) -> std::io::Result<()> {
        tokio::fs::remove_file(path).await
    }

    fn strays(&self, pod: &Pod, since: SystemTime) -> Vec<PathBuf> {
        let since = by_node_clock(since);
        end::strays(Path::new(end::KUBELET_CHECKPOINTS), pod, since)
    }
}
