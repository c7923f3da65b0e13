//! The resources users see: `PodMigration`, the request form and the notice board, and `MigrationNode`, what each
//! node can do. Spec is written by the user and immutable; status is projected from the log by the leader alone.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The API group of Longshore's resources.
pub const GROUP: &str = "longshore.dev";

/// Keeps a `PodMigration` until its end is known.
pub const FINALIZER: &str = "longshore.dev/migration";

/// When the user pressed Enter, nanoseconds since 1970: the trace begins there.
pub const REQUESTED_AT: &str = "longshore.dev/requested-at";

/// Nodes that a person declared dead for this migration (`migrate resolve`), with commas between.
pub const DEAD_NODES: &str = "longshore.dev/dead-nodes";

/// Asks for a migration. Deleting the object asks for an abort.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "longshore.dev",
    version = "v1alpha1",
    kind = "PodMigration",
    plural = "podmigrations",
    shortname = "pmig",
    category = "all",
    namespaced,
    status = "PodMigrationStatus",
    derive = "PartialEq",
    validation = Rule::new("self.spec == oldSelf.spec").message("spec is immutable: create another PodMigration"),
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.pod"),
    printcolumn(name = "From", type_ = "string", json_path = ".status.sourceNode"),
    printcolumn(name = "To", type_ = "string", json_path = ".spec.targetNode"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Freeze", type_ = "string", json_path = ".status.freeze"),
    printcolumn(name = "Bytes", type_ = "string", json_path = ".status.bytes.checkpoint", priority = 1),
    printcolumn(name = "Sent", type_ = "string", json_path = ".status.bytes.sent", priority = 1),
    printcolumn(name = "Ratio", type_ = "string", json_path = ".status.bytes.ratio", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct PodMigrationSpec {
    /// Name of the pod to move, in this object's namespace.
    pub pod: String,
    /// Name of the node to move it to.
    pub target_node: String,
    /// The longest freeze that is acceptable, in milliseconds. Left out: as long as the pod's liveness probes bear it,
    /// at most 60 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_freeze_milliseconds: Option<u64>,
    /// Give up, and undo, when the migration is not committed after this many seconds. Left out: 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Only plan: status shows the plan, the prediction and every refusal; nothing is changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Rounds before the freeze, at most 5: in each, the running pod's memory is sent ahead, which makes the freeze
    /// shorter and stalls the pod for a moment. 0: none. Left out: as many as pay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 5))]
    pub rounds: Option<u32>,
    /// After the migration its checkpoint stays in the store for so many seconds, and the rounds of the pod's next
    /// migration are differences to it. Left out: it is removed at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_checkpoint_seconds: Option<u64>,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodMigrationStatus {
    /// Planned, Preparing, Copying, Holding, Delivering, Restoring, Rescuing, Retiring, Releasing, or an end: Succeeded,
    /// RolledBack, Rescued, Refused, Previewed, Abandoned.
    pub phase: String,
    /// The log index at which the phase was entered.
    pub revision: u64,
    /// Where the pod ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_node: Option<String>,
    /// UID of the pod that was asked to move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_pod_uid: Option<String>,
    /// UID of the restored pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_pod_uid: Option<String>,
    /// Every reason not to migrate, word for word.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<StatusFinding>,
    /// What will be different after the restore, and what had to go another way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<StatusFinding>,
    /// Why it was undone, rescued or given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<StatusFinding>,
    /// What is not known, since when, and what would settle it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_doubt: Option<InDoubt>,
    /// The last failure of a step that is asked again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stuck: Option<StatusFinding>,
    /// It has ended, but something of it is still to be cleared away; nothing of that runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_over: Option<StatusFinding>,
    /// Nodes that a person declared dead: no word is waited for from them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dead_nodes: Vec<String>,
    /// Its checkpoint is in the store still, for the pod's next migration.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub checkpoint_kept: bool,
    /// The plan, in numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<StatusPlan>,
    /// Paused until restored, as "812ms".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<String>,
    /// The same in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_milliseconds: Option<u64>,
    /// What was moved under the freeze.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<StatusBytes>,
    /// What was sent ahead while the pod ran, round by round.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<StatusRound>,
    /// Why there are no more rounds; the migration went on without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounds_ended: Option<StatusFinding>,
    /// How far the step under way has come, at most once a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<StatusProgress>,
    /// When each phase was entered, RFC 3339 with milliseconds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseTime>,
    /// The trace: where the time went.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<StatusSpan>,
    /// Ready (False while it is under way or after a refusal) and Succeeded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<StatusCondition>,
}

/// A reason, word for word.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusFinding {
    /// CamelCase, stable.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What to do, "" when there is nothing.
    pub remedy: String,
}

/// An unknown outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct InDoubt {
    /// RFC 3339.
    pub since: String,
    /// What is not known and what would settle it.
    pub what: StatusFinding,
    /// How often it was asked.
    pub asked: u32,
}

/// The plan as users read it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusPlan {
    /// Replace.
    pub handover: String,
    /// kubelet.
    pub checkpoint_via: String,
    /// image.
    pub restore_via: String,
    /// The containers that move.
    pub containers: Vec<String>,
    /// The freeze may last this long, milliseconds.
    pub freeze_budget_milliseconds: u64,
    /// It will take this long by our reckoning, milliseconds.
    pub freeze_predicted_milliseconds: u64,
    /// The checkpoint will weigh this much by our reckoning, bytes.
    pub checkpoint_predicted_bytes: u64,
    /// Rounds before the freeze, at most.
    pub rounds_max: u32,
    /// UID of the earlier migration whose kept checkpoint the first round is a difference to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
}

/// A round that was sent ahead.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusRound {
    /// What was sent.
    pub bytes: StatusBytes,
    /// Until the target had it, milliseconds.
    pub took_milliseconds: u64,
}

/// What was moved, as numbers and as people read them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusBytes {
    /// The checkpoint, "64.3MiB".
    pub checkpoint: String,
    /// What was stored and fetched.
    pub sent: String,
    /// sent / checkpoint, "0.41".
    pub ratio: String,
    /// The checkpoint, bytes.
    pub checkpoint_bytes: u64,
    /// What was stored and fetched, bytes.
    pub sent_bytes: u64,
}

/// How far a step has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusProgress {
    /// save, fetch, rebuild, pull.
    pub what: String,
    /// Bytes so far.
    pub done_bytes: u64,
    /// Bytes in all, 0 when not known.
    pub total_bytes: u64,
}

/// A phase and when it was entered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PhaseTime {
    /// Which.
    pub phase: String,
    /// RFC 3339 with milliseconds.
    pub entered: String,
}

/// A span of the trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusSpan {
    /// What was done.
    pub name: String,
    /// A node's name, or "orchestrator".
    pub place: String,
    /// The enclosing span.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub parent: String,
    /// Microseconds since 1970.
    pub start_micros: u64,
    /// Microseconds since 1970.
    pub end_micros: u64,
    /// Bytes, counts, CRIU's own statistics.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// A Kubernetes condition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusCondition {
    /// Ready, Succeeded.
    pub r#type: String,
    /// True, False, Unknown.
    pub status: String,
    /// CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
    /// RFC 3339.
    pub last_transition_time: String,
}

/// A question about the store, or an order to clear it up: asked by `migrate store`, answered by the orchestrator through
/// a worker, removed by who asked, or after an hour.
#[allow(
    clippy::duplicated_attributes,
    reason = "each column has its own type and path"
)]
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "longshore.dev",
    version = "v1alpha1",
    kind = "StoreTask",
    plural = "storetasks",
    status = "StoreTaskStatus",
    derive = "PartialEq",
    printcolumn(name = "What", type_ = "string", json_path = ".spec.what"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct StoreTaskSpec {
    /// Stats: what lies there. Check: the same, and every checkpoint proved. Collect: the same, and what nobody needs removed.
    pub what: StoreWhat,
    /// With Collect: also what the log does not know. It may belong to another cluster that uses the same bucket.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unknown_too: bool,
}

/// See [`StoreTaskSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "explained where it is used")]
pub enum StoreWhat {
    Stats,
    Check,
    Collect,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StoreTaskStatus {
    /// Done, or Failed; "" until then.
    pub phase: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// By migration, the largest first, at most 500.
    pub migrations: Vec<StoredMigration>,
    /// All together.
    pub total_objects: u64,
    /// All together.
    pub total_bytes: u64,
    /// Removed by this task.
    pub removed_objects: u64,
    /// Removed by this task.
    pub removed_bytes: u64,
    /// What is wrong with checkpoints, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// What a migration has in the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StoredMigration {
    /// UID of its PodMigration.
    pub id: String,
    /// Namespace and name of that object, where the log knows it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// UnderWay, LastCopy, Ended, Unknown.
    pub owner: String,
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Complete checkpoints among them.
    pub checkpoints: u32,
    /// After a check: objects that no manifest names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loose: Option<u64>,
    /// It was removed by this task.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

/// What a node can do, as its worker says. Written by the orchestrator; one object a node, of the node's name.
#[allow(
    clippy::duplicated_attributes,
    reason = "each column has its own type and path"
)]
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "longshore.dev",
    version = "v1alpha1",
    kind = "MigrationNode",
    plural = "migrationnodes",
    shortname = "mnode",
    derive = "PartialEq",
    printcolumn(name = "Checkpoint", type_ = "string", json_path = ".spec.checkpoint"),
    printcolumn(name = "Restore", type_ = "string", json_path = ".spec.restore"),
    printcolumn(name = "Runtime", type_ = "string", json_path = ".spec.runtime"),
    printcolumn(name = "Criu", type_ = "string", json_path = ".spec.criu"),
    printcolumn(
        name = "Kernel",
        type_ = "string",
        json_path = ".spec.kernel",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct MigrationNodeSpec {
    /// "yes", or "no".
    pub checkpoint: String,
    /// "yes", or "no".
    pub restore: String,
    /// A worker of this node is connected.
    pub connected: bool,
    /// "containerd 2.1.9, runc 1.3.6".
    pub runtime: String,
    /// CRIU's version, "" without.
    pub criu: String,
    /// The kernel's version.
    pub kernel: String,
    /// "v1" or "v2".
    pub cgroups: String,
    /// amd64, arm64.
    pub architecture: String,
    /// Free bytes on the file systems that a checkpoint passes through.
    pub free_bytes: u64,
    /// Why not, and what to do.
    #[serde(default)]
    pub findings: Vec<StatusFinding>,
}
