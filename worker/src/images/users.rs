//! Who runs from this node's images: pods' containers and sandboxes.

use std::collections::HashMap;

use proto::{containerd::containers, cri};
use tonic::Status;

use super::{Images, RuntimeError, failed};

impl Images {
    /// Removes the names of one repository that nobody needs; whether others are left. A name is needed while a
    /// container was made under it: the runtime picks one of the names that an image has, for any pod's containers,
    /// and can't checkpoint a container whose image's name is gone.
    pub async fn forget_unused(&self, repository: &str) -> Result<bool, RuntimeError> {
        let mut used = false;
        for name in self.names(repository).await? {
            // Not the names of a repository whose name only begins the same.
            if !name[repository.len()..].starts_with([':', '@']) {
                continue;
            }
            match self.is_used(&name).await? {
                true => used = true,
                false => self.forget(&name).await?,
            }
        }
        Ok(used)
    }

    async fn is_used(&self, name: &str) -> Result<bool, RuntimeError> {
        let request = containers::ListContainersRequest {
            filters: vec![format!("image==\"{name}\"")],
        };
        let answer = self.containers.clone().list(request).await;
        let answer = answer
            .map_err(|status| failed(format!("list containers made from {name}"), status))?
            .into_inner();
        // The filter is containerd's; that it was obeyed is checked here.
        Ok(answer
            .containers
            .iter()
            .any(|container| container.image == name))
    }

    /// All containers of a pod, dead ones too.
    pub async fn containers_of(&self, pod_uid: &str) -> Result<Vec<cri::Container>, RuntimeError> {
        let label_selector =
            HashMap::from([("io.kubernetes.pod.uid".to_owned(), pod_uid.to_owned())]);
        let filter = cri::ContainerFilter {
            label_selector,
            ..cri::ContainerFilter::default()
        };
        let request = cri::ListContainersRequest {
            filter: Some(filter),
        };
        let answer = self.cri_runtime.clone().list_containers(request).await;
        Ok(answer
            .map_err(|status| failed(format!("list containers of pod {pod_uid}"), status))?
            .into_inner()
            .containers)
    }

    /// How a container is.
    pub async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus, RuntimeError> {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.cri_runtime.clone().container_status(request).await;
        let answer = answer
            .map_err(|status| failed(format!("ask for container {id}"), status))?
            .into_inner();
        answer.status.ok_or_else(|| {
            failed(
                format!("ask for container {id}"),
                Status::not_found("no status given"),
            )
        })
    }

    /// States of a pod's sandboxes: only a ready one can still start containers.
    pub async fn sandboxes_of(
        &self,
        pod_uid: &str,
    ) -> Result<Vec<cri::PodSandboxState>, RuntimeError> {
        let label_selector =
            HashMap::from([("io.kubernetes.pod.uid".to_owned(), pod_uid.to_owned())]);
        let filter = cri::PodSandboxFilter {
            id: String::new(),
            label_selector,
        };
        let request = cri::ListPodSandboxRequest {
            filter: Some(filter),
        };
        let answer = self.cri_runtime.clone().list_pod_sandbox(request).await;
        let answer = answer
            .map_err(|status| failed(format!("list sandboxes of pod {pod_uid}"), status))?
            .into_inner();
        Ok(answer.items.iter().map(cri::PodSandbox::state).collect())
    }
}
