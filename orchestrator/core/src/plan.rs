//! The plan: decided once by the planner, complete, immutable. Whoever performs a step has no choice left to make.

use serde::{Deserialize, Serialize};

use crate::{
    id::{MigrationId, NodeName, PodRef, PodUid},
    refusal::Finding,
};

/// What the user asked for, as the `PodMigration` object's spec says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The pod to move.
    pub pod: PodRef,
    /// Where to.
    pub target: NodeName,
    /// The longest freeze the user allows, in milliseconds; `None` leaves it to the planner.
    pub freeze_max_ms: Option<u64>,
    /// Give the whole migration up (before its commit) after this many milliseconds.
    pub timeout_ms: Option<u64>,
    /// Only plan: show what would happen, then end.
    pub dry_run: bool,
    /// Rounds before the freeze, at most; `None` leaves it to the planner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds_max: Option<u32>,
    /// After its end the checkpoint stays in the store for so many milliseconds, as a base for the pod's next migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_checkpoint_ms: Option<u64>,
}

/// How the target pod takes the source pod's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handover {
    /// Same name: the source pod's object is deleted before the target's is made (bare pod, StatefulSet).
    Replace,
}

/// How a checkpoint is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckpointVia {
    /// POST /checkpoint of the kubelet API: a tar archive.
    Kubelet,
}

/// How a checkpoint is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestoreVia {
    /// The checkpoint as an image that the kubelet's runtime restores from.
    Image,
}

/// Everything that was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The pod that moves.
    pub pod: PodRef,
    /// Which pod of that name.
    pub uid: PodUid,
    /// Where it runs.
    pub source: NodeName,
    /// Where it will run.
    pub target: NodeName,
    /// The pod's IP on the source, "" when unknown.
    pub pod_ip: String,
    /// The containers that move, in the pod's order, sidecars first as Kubernetes starts them.
    pub containers: Vec<PlannedContainer>,
    /// Init containers that have run to their end and must not run again.
    pub finished_init_containers: Vec<String>,
    /// How the target takes the source's place.
    pub handover: Handover,
    /// How the checkpoint is taken.
    pub checkpoint: CheckpointVia,
    /// How it is restored.
    pub restore: RestoreVia,
    /// The freeze may last this long, milliseconds: the shorter of the user's limit and the pod's liveness deadline.
    pub freeze_budget_ms: u64,
    /// What the freeze will take by our reckoning, milliseconds.
    pub freeze_predicted_ms: u64,
    /// What the checkpoint will weigh by our reckoning, bytes.
    pub archive_predicted_bytes: u64,
    /// Rounds before the freeze, at most. 0: everything is sent while the pod is frozen.
    #[serde(default)]
    pub rounds_max: u32,
    /// A kept checkpoint that the first round is a difference to. A hint: without it the round is sent whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<KeptCheckpoint>,
    /// Give up before the commit when the migration is older than this, milliseconds.
    pub timeout_ms: u64,
    /// What will be different after the restore, word for word.
    pub warnings: Vec<Finding>,
    /// The pod's object for the target as JSON, complete but for the images: it is needed when the source's object is
    /// already gone, so it is decided and replicated before.
    pub target_pod: String,
}

/// A checkpoint of an ended migration that is in the store still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptCheckpoint {
    /// Whose it is.
    pub migration: MigrationId,
    /// The manifest's key.
    pub manifest_key: String,
    /// blake3 of the manifest, hex.
    pub manifest_blake3: String,
}

/// A container that moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedContainer {
    /// Its name in the pod.
    pub name: String,
    /// The image reference the user wrote, the original one also after earlier moves.
    pub image: String,
    /// `sha256:…` that the source's runtime resolved it to.
    pub image_digest: String,
    /// The runtime's id of the running container on the source.
    pub container_id: String,
    /// An init container with `restartPolicy: Always`.
    pub sidecar: bool,
}
