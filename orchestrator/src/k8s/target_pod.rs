//! The pod for the target, made from the one that runs: the same pod, less what its first life added to it.
//!
//! Two steps, as two moments need them: [`for_target`] when planning (its result is replicated, for the source's
//! object may be gone when it is needed), [`with_images`] at creation, when the checkpoint images are known.
//!
//! Less: the node and what admission adds again by itself (the API token's volume, the numeric priority); what only
//! the first life had (status, finished init containers, gates); our own notes of an earlier move. Everything else
//! stays, for a restore needs the same mounts, the same environment, the same limits.

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use orchestrator_core::{
    id::{MigrationId, NodeName},
    migration::Image,
    plan::Plan,
};

use super::{
    origin::{IMAGES_ANNOTATION, Origin},
    pods::{
        COMMITTED_ANNOTATION, HELD_ANNOTATION, HOLD_FINALIZER, MIGRATION_ANNOTATION,
        NODE_ANNOTATION, SCHEDULER,
    },
};

/// Admission names the API token's volume like this, and adds it again.
const TOKEN_VOLUME: &str = "kube-api-access-";

/// Written by network plugins about the first life's addresses, or by us about an earlier move.
const STALE_ANNOTATIONS: [&str; 13] = [
    "cni.projectcalico.org/containerID",
    "cni.projectcalico.org/podIP",
    "cni.projectcalico.org/podIPs",
    "k8s.ovn.org/pod-networks",
    "k8s.v1.cni.cncf.io/network-status",
    "k8s.v1.cni.cncf.io/networks-status",
    "kubernetes.io/config.seen",
    "kubernetes.io/config.source",
    MIGRATION_ANNOTATION,
    HELD_ANNOTATION,
    COMMITTED_ANNOTATION,
    IMAGES_ANNOTATION,
    NODE_ANNOTATION,
];

/// Why the target's pod can't be made.
#[derive(Debug, thiserror::Error)]
pub enum TargetPodError {
    /// Not what we wrote, or written by another version.
    #[error("read the planned pod for {pod}")]
    Read {
        /// Which.
        pod: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An image is missing: the pod would start fresh.
    #[error("there is no checkpoint image for container {container} of {pod}")]
    NoImage {
        /// Of which pod.
        pod: String,
        /// For which container.
        container: String,
    },
    /// The origins could not be written down.
    #[error("write the origins of {pod}'s images")]
    Write {
        /// Which.
        pod: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The pod as it should be made on the target, complete but for the images.
#[must_use]
pub fn for_target(source: &Pod, target: &NodeName) -> Pod {
    Pod {
        metadata: metadata(&source.metadata),
        spec: source.spec.as_ref().map(|spec| target_spec(spec, target)),
        status: None,
    }
}

/// Lists what stays; a field that Kubernetes learns later is not taken along unseen.
fn metadata(source: &ObjectMeta) -> ObjectMeta {
    let annotations = source.annotations.clone().map(|mut annotations| {
        annotations.retain(|key, _| !STALE_ANNOTATIONS.contains(&key.as_str()));
        annotations
    });
    ObjectMeta {
        name: source.name.clone(),
        namespace: source.namespace.clone(),
        generate_name: source.generate_name.clone(),
        labels: source.labels.clone(),
        annotations: annotations.filter(|a| !a.is_empty()),
        owner_references: owners(source.owner_references.as_deref().unwrap_or_default()),
        ..ObjectMeta::default()
    }
}

/// Owners for garbage collection stay owners; a controller's pod never comes here. Blocking the owner's deletion needs
/// a permission on the owner that we don't have, and the owner can ask for it again.
fn owners(source: &[OwnerReference]) -> Option<Vec<OwnerReference>> {
    let owners: Vec<_> = source
        .iter()
        .filter(|owner| owner.controller != Some(true))
        .map(|owner| OwnerReference {
            block_owner_deletion: None,
            ..owner.clone()
        })
        .collect();
    (!owners.is_empty()).then_some(owners)
}

fn target_spec(source: &PodSpec, target: &NodeName) -> PodSpec {
    let mut spec = source.clone();
    spec.node_name = Some(target.0.clone());
    // Recomputed from priorityClassName; a number that doesn't match the class of today would be refused.
    spec.priority = None;
    spec.preemption_policy = None;
    // Bound by us: a gate would be in the way, and nothing waits for one.
    spec.scheduling_gates = None;
    // Not allowed at creation; the planner refuses pods that have any.
    spec.ephemeral_containers = None;
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| !is_token(&volume.name));
    }
    spec.volumes = spec.volumes.filter(|volumes| !volumes.is_empty());
    let inits = spec.init_containers.take().unwrap_or_default();
    let sidecars: Vec<_> = inits.into_iter().filter(is_sidecar).collect();
    spec.init_containers = (!sidecars.is_empty()).then_some(sidecars);
    for container in containers(&mut spec) {
        if let Some(mounts) = &mut container.volume_mounts {
            mounts.retain(|mount| !is_token(&mount.name));
        }
        container.volume_mounts = container.volume_mounts.take().filter(|m| !m.is_empty());
    }
    spec
}

fn is_token(volume: &str) -> bool {
    volume.starts_with(TOKEN_VOLUME)
}

/// An init container that goes on running.
#[must_use]
pub fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

fn containers(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    let sidecars = spec.init_containers.iter_mut().flatten();
    sidecars.chain(spec.containers.iter_mut())
}

/// As it is made: for no node yet, and for no scheduler. Binding it to its node is a step of its own (see `pods`).
pub fn unbind(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = None;
    spec.scheduler_name = Some(SCHEDULER.to_owned());
}

/// The planned pod with its checkpoint images, marked with the migration it belongs to. `node` is the target, or the
/// node of a rescue; it is not bound to it yet.
///
/// # Errors
/// When a container has no image: it would start fresh, which is never wanted.
pub fn with_images(
    plan: &Plan,
    node: &NodeName,
    images: &[Image],
    migration: &MigrationId,
) -> Result<Pod, TargetPodError> {
    let name = plan.pod.to_string();
    let mut pod: Pod =
        serde_json::from_str(&plan.target_pod).map_err(|source| TargetPodError::Read {
            pod: name.clone(),
            source,
        })?;
    let mut origins = std::collections::BTreeMap::new();
    unbind(&mut pod);
    let spec = pod.spec.get_or_insert_default();
    for container in containers(spec) {
        let image = images.iter().find(|i| i.container == container.name);
        let planned = plan.containers.iter().find(|c| c.name == container.name);
        let (Some(image), Some(planned)) = (image, planned) else {
            return Err(TargetPodError::NoImage {
                pod: name,
                container: container.name.clone(),
            });
        };
        container.image = Some(image.reference.clone());
        container.image_pull_policy = Some("IfNotPresent".to_owned());
        origins.insert(
            container.name.clone(),
            Origin {
                image: planned.image.clone(),
                digest: planned.image_digest.clone(),
                checkpoint: image.reference.clone(),
            },
        );
    }
    let origins = serde_json::to_string(&origins)
        .map_err(|source| TargetPodError::Write { pod: name, source })?;
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(MIGRATION_ANNOTATION.to_owned(), migration.0.to_string());
    annotations.insert(IMAGES_ANNOTATION.to_owned(), origins);
    annotations.insert(NODE_ANNOTATION.to_owned(), node.0.clone());
    // Until the log knows that it was restored, its deletion must not go unseen: a gone pod would be made again.
    annotations.insert(HELD_ANNOTATION.to_owned(), migration.0.to_string());
    pod.metadata.finalizers = Some(vec![HOLD_FINALIZER.to_owned()]);
    Ok(pod)
}

/// Finalizers that would keep the source's name taken after we deleted it.
#[must_use]
pub fn foreign_finalizers(pod: &Pod) -> Vec<String> {
    let finalizers = pod.metadata.finalizers.iter().flatten();
    finalizers
        .filter(|finalizer| finalizer.as_str() != HOLD_FINALIZER)
        .cloned()
        .collect()
}

/// The containers that move, sidecars (true) first.
#[must_use]
pub fn moving(spec: &PodSpec) -> Vec<(&Container, bool)> {
    let inits = spec.init_containers.iter().flatten();
    let sidecars = inits.filter(|c| is_sidecar(c)).map(|c| (c, true));
    sidecars
        .chain(spec.containers.iter().map(|c| (c, false)))
        .collect()
}

#[cfg(test)]
mod tests;
