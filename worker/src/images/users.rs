//! Which names of images containers stand on. The runtime gives a container the first of all names that its image has
//! on the node, whoever made that name and whatever the pod's spec says; a checkpoint of the container then asks for it.

use std::collections::BTreeSet;

use proto::containerd::containers::ListContainersRequest;

use super::{Images, RuntimeError, failed};

impl Images {
    /// Names beginning with `prefix` that any container of this node was made under.
    pub async fn used_names(&self, prefix: &str) -> Result<BTreeSet<String>, RuntimeError> {
        // Only those: records of containers are large, and a node has hundreds.
        let filters = vec![format!("image~=\"^{prefix}\"")];
        let answer = self
            .containers
            .clone()
            .list(ListContainersRequest { filters })
            .await;
        let answer = answer
            .map_err(|status| failed(format!("list containers on images {prefix}"), status))?
            .into_inner();
        Ok(answer
            .containers
            .into_iter()
            .map(|container| container.image)
            .filter(|image| image.starts_with(prefix))
            .collect())
    }
}
