//! What a pod's object says: of the source, whether it is there still and held for whom; of the target, where it is to
//! be and how it gets on.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use orchestrator_core::id::{MigrationId, PodUid};

use super::{
    COMMITTED_ANNOTATION, HELD_ANNOTATION, HOLD_FINALIZER, MIGRATION_ANNOTATION, NODE_ANNOTATION,
};

/// The source as Kubernetes has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// There, and nobody has deleted it.
    Present,
    /// Deleted by somebody else; the finalizer still keeps it.
    Deleting,
    /// Marked and deleted by this migration, not gone yet.
    Leaving,
    /// No pod of that name.
    Gone,
    /// Another pod of that name.
    OtherPod,
}

/// The target pod's state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TargetStatus {
    /// `status.phase`.
    pub phase: String,
    /// `status.reason` and message: the kubelet's words when it did not admit the pod.
    pub reason: String,
    /// Somebody deleted it.
    pub deleting: bool,
    /// The migration that has given it up and deletes it.
    pub given_up_by: Option<String>,
    /// Condition Ready.
    pub ready: bool,
    /// `status.podIP`, "" before there is one.
    pub pod_ip: String,
    /// Sidecars and regular containers.
    pub containers: Vec<TargetContainer>,
}

/// A container of the target pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TargetContainer {
    /// Its name.
    pub name: String,
    /// It runs.
    pub running: bool,
    /// Why it waits or how it ended: reason and message, "" when it runs.
    pub not_running: String,
    /// Above 0: it was started again, so it may have been started afresh.
    pub restarts: u32,
    /// The runtime's id, without its scheme; "" before there is one.
    pub container_id: String,
}

pub(super) fn source_state(
    found: Option<&Pod>,
    uid: &PodUid,
    migration: &MigrationId,
) -> SourceState {
    let Some(object) = found else {
        return SourceState::Gone;
    };
    if uid_of(object) != *uid {
        return SourceState::OtherPod;
    }
    let committed = annotation(object, COMMITTED_ANNOTATION) == Some(&*migration.0);
    match (object.metadata.deletion_timestamp.is_some(), committed) {
        (false, _) => SourceState::Present,
        (true, true) => SourceState::Leaving,
        (true, false) => SourceState::Deleting,
    }
}

/// Without its note, which a user may have taken off, a hold on the source can only be ours.
pub(super) fn held_for(object: &Pod, migration: &MigrationId) -> bool {
    let mut finalizers = object.metadata.finalizers.iter().flatten();
    let held = finalizers.any(|f| f == HOLD_FINALIZER);
    annotation(object, HELD_ANNOTATION).map_or(held, |id| id == &*migration.0)
}

/// The target as its object says.
#[must_use]
pub fn target_status(object: &Pod) -> TargetStatus {
    let status = object.status.clone().unwrap_or_default();
    let words = [status.reason.clone(), status.message.clone()];
    TargetStatus {
        phase: status.phase.clone().unwrap_or_default(),
        reason: words.into_iter().flatten().collect::<Vec<_>>().join(": "),
        deleting: object.metadata.deletion_timestamp.is_some(),
        given_up_by: annotation(object, COMMITTED_ANNOTATION).map(str::to_owned),
        ready: status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
        pod_ip: status.pod_ip.clone().unwrap_or_default(),
        containers: [&status.init_container_statuses, &status.container_statuses]
            .into_iter()
            .flatten()
            .flatten()
            .map(target_container)
            .collect(),
    }
}

fn target_container(status: &ContainerStatus) -> TargetContainer {
    let state = status.state.clone().unwrap_or_default();
    let waiting = state.waiting.map(|w| [w.reason, w.message]);
    let ended = state.terminated.map(|t| {
        let code = format!("exit code {}", t.exit_code);
        [t.reason.or(Some(code)), t.message]
    });
    let words = waiting.or(ended).into_iter().flatten().flatten();
    let id = status.container_id.as_deref().unwrap_or_default();
    TargetContainer {
        name: status.name.clone(),
        running: state.running.is_some(),
        not_running: words.collect::<Vec<_>>().join(": "),
        restarts: u32::try_from(status.restart_count).unwrap_or(0),
        container_id: id.split_once("://").map_or(id, |(_, id)| id).to_owned(),
    }
}

pub(super) fn annotation<'a>(object: &'a Pod, key: &str) -> Option<&'a str> {
    let annotations = object.metadata.annotations.as_ref()?;
    annotations.get(key).map(String::as_str)
}

fn bound_to(object: &Pod) -> Option<&str> {
    let node = object.spec.as_ref()?.node_name.as_deref();
    node.filter(|node| !node.is_empty())
}

/// A kubelet has it, or may have it at any moment.
#[must_use]
pub fn is_bound(object: &Pod) -> bool {
    bound_to(object).is_some()
}

/// Where it is, or is to be.
#[must_use]
pub fn node_for(object: &Pod) -> Option<&str> {
    bound_to(object).or_else(|| annotation(object, NODE_ANNOTATION))
}

/// Made for this migration, and no kubelet has it.
pub(super) fn is_unbound_of(object: &Pod, migration: &MigrationId) -> bool {
    let is = |key| annotation(object, key) == Some(&*migration.0);
    !is_bound(object) && is(MIGRATION_ANNOTATION) && is(HELD_ANNOTATION)
}

pub(super) fn uid_of(object: &Pod) -> PodUid {
    PodUid(object.metadata.uid.clone().unwrap_or_default())
}
