//! What the planner sees: Kubernetes and the workers at one moment, as plain values. Gathered by `orchestrator::k8s`,
//! read by [`crate::planner`], never by `apply`: two peers would see different clusters.

use std::collections::BTreeMap;

use crate::{
    id::{MigrationId, NodeName, PodRef, PodUid},
    plan::KeptCheckpoint,
    refusal::Finding,
};

/// Everything the planner may know. `None` and `Err` mean what they say: not there, or not to be learned now.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The pod asked for.
    pub pod: Option<PodView>,
    /// All nodes of the cluster.
    pub nodes: Vec<NodeView>,
    /// The pods already on the target, for their required anti-affinity and ours, and for host ports.
    pub target_pods: Vec<TargetPodView>,
    /// What the source's worker saw of the pod's processes; the error says why it could not look.
    pub inspection: Result<InspectionView, String>,
    /// A kept checkpoint of this pod, by the log.
    pub base: Option<KeptCheckpoint>,
}

/// The pod as the API server has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodView {
    /// Namespace and name.
    pub pod: Option<PodRef>,
    /// Its UID.
    pub uid: Option<PodUid>,
    /// Where it is bound, "" when it is not.
    pub node: String,
    /// `status.phase`.
    pub phase: String,
    /// `status.podIP`.
    pub ip: String,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// The migration that restored it, by its annotation.
    pub restored_by: Option<MigrationId>,
    /// Kind and name of the controlling owner.
    pub controller: Option<(String, String)>,
    /// A mirror of a static pod (annotation `kubernetes.io/config.mirror`).
    pub mirror: bool,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `spec.hostPID`.
    pub host_pid: bool,
    /// `spec.hostIPC`.
    pub host_ipc: bool,
    /// `spec.shareProcessNamespace`.
    pub share_process_namespace: bool,
    /// `spec.hostUsers: false`.
    pub user_namespace: bool,
    /// Names of ephemeral (debug) containers that run.
    pub ephemeral_containers: Vec<String>,
    /// Name and kind (`emptyDir`, `hostPath`, `configMap` …) of every volume.
    pub volumes: Vec<(String, String)>,
    /// Its regular and sidecar containers.
    pub containers: Vec<ContainerView>,
    /// Init containers that are not sidecars, by name.
    pub init_containers: Vec<String>,
    /// `spec.nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// `requiredDuringSchedulingIgnoredDuringExecution` node affinity: terms are alternatives, empty means none asked.
    pub node_affinity: Vec<NodeTermView>,
    /// Required pod affinity: every term needs a pod that matches it.
    pub affinity: Vec<PodTermView>,
    /// Required pod anti-affinity: no term may find a pod that matches it.
    pub anti_affinity: Vec<PodTermView>,
    /// Required constraints we do not evaluate (spread, namespace selectors), in words.
    pub unevaluated_constraints: Vec<String>,
    /// `spec.tolerations`.
    pub tolerations: Vec<TolerationView>,
    /// Sum of requests, milli-CPUs.
    pub cpu_request_milli: u64,
    /// Sum of requests, bytes.
    pub memory_request_bytes: u64,
    /// Requests of other resources (extended resources, ephemeral-storage, hugepages).
    pub other_requests: BTreeMap<String, u64>,
    /// `spec.terminationGracePeriodSeconds`.
    pub grace_seconds: u64,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.finalizers` that are not ours: they would keep the object, and so its name, after our delete.
    pub finalizers: Vec<String>,
    /// `spec.runtimeClassName`.
    pub runtime_class: Option<String>,
    /// Ports of the node it takes.
    pub host_ports: Vec<HostPortView>,
    /// The pod's object for the target as JSON, "" when it could not be made.
    pub target_pod: String,
}

/// A container of the pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// An init container with `restartPolicy: Always`.
    pub sidecar: bool,
    /// The original image reference (before earlier moves).
    pub image: String,
    /// `sha256:…`, "" when the runtime knows none.
    pub image_digest: String,
    /// The runtime's id, without the `containerd://` in front; "" when it does not run.
    pub container_id: String,
    /// `state.running` is set.
    pub running: bool,
    /// Why it does not run, as the kubelet says it ("CrashLoopBackOff"); "" when it runs or nothing is said.
    pub not_running: String,
    /// `tty: true`.
    pub tty: bool,
    /// `stdin: true`.
    pub stdin: bool,
    /// Volume devices and device claims by name.
    pub devices: Vec<String>,
    /// How long the kubelet bears a silent container at worst, milliseconds: a probe may be due the moment it falls
    /// silent, so (failureThreshold - 1) x period + timeout.
    pub liveness_deadline_ms: Option<u64>,
}

/// A term of a node selector: all expressions must hold.
pub type NodeTermView = Vec<ExpressionView>;

/// `key operator values`, Kubernetes' own operators.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpressionView {
    /// The label's key, or `metadata.name` for a field.
    pub key: String,
    /// In, NotIn, Exists, DoesNotExist, Gt, Lt.
    pub operator: String,
    /// The values.
    pub values: Vec<String>,
}

/// A required term of pod affinity or anti-affinity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodTermView {
    /// All must hold for the labels of the other pod. Kubernetes' empty selector matches every pod: no expressions.
    pub selector: Vec<ExpressionView>,
    /// Where the other pod may live; the view has put the pod's own namespace where none was named.
    pub namespaces: Vec<String>,
    /// The node label that makes two nodes one place.
    pub topology_key: String,
}

/// A port of the node that a container takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPortView {
    /// TCP, UDP, SCTP.
    pub protocol: String,
    /// The node's address, "0.0.0.0" for all.
    pub ip: String,
    /// The number.
    pub port: u16,
}

/// A toleration.
#[derive(Clone, Debug, PartialEq)]
pub struct TolerationView {
    /// "" tolerates every key (with operator Exists).
    pub key: String,
    /// Exists or Equal.
    pub operator: String,
    /// For Equal.
    pub value: String,
    /// "" is every effect.
    pub effect: String,
}

/// A taint.
#[derive(Clone, Debug, PartialEq)]
pub struct TaintView {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// NoSchedule, PreferNoSchedule, NoExecute.
    pub effect: String,
}

/// A pod on the target.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetPodView {
    /// Namespace and name.
    pub pod: PodRef,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its required anti-affinity, which forbids others to come as well.
    pub anti_affinity: Vec<PodTermView>,
    /// Ports of the node it takes.
    pub host_ports: Vec<HostPortView>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeView {
    /// Its name.
    pub name: Option<NodeName>,
    /// Condition Ready is True.
    pub ready: bool,
    /// `spec.unschedulable` (cordoned).
    pub cordoned: bool,
    /// Its taints.
    pub taints: Vec<TaintView>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Allocatable, milli-CPUs.
    pub cpu_milli: u64,
    /// Allocatable, bytes.
    pub memory_bytes: u64,
    /// Allocatable, pods.
    pub pods: u64,
    /// Other allocatable resources.
    pub other: BTreeMap<String, u64>,
    /// Requested by its pods, milli-CPUs.
    pub cpu_used_milli: u64,
    /// Requested by its pods, bytes.
    pub memory_used_bytes: u64,
    /// Its pods.
    pub pods_used: u64,
    /// Other resources requested by its pods.
    pub other_used: BTreeMap<String, u64>,
    /// What its worker says; `None` when no worker of this node is connected.
    pub worker: Option<WorkerView>,
}

/// A worker's inventory (see `proto`: Inventory).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerView {
    /// Kubernetes' word: amd64, arm64.
    pub architecture: String,
    /// 1 or 2.
    pub cgroup_version: u32,
    /// CPU features.
    pub cpu_flags: Vec<String>,
    /// "containerd 2.1.9".
    pub runtime: String,
    /// Why it can't checkpoint.
    pub checkpoint_refusals: Vec<Finding>,
    /// Why it can't restore.
    pub restore_refusals: Vec<Finding>,
    /// The least free of the file systems a checkpoint passes through, bytes.
    pub free_bytes: u64,
}

/// What the source's worker saw (see `proto`: Inspection).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InspectionView {
    /// What cannot be dumped.
    pub refusals: Vec<Finding>,
    /// What would be different.
    pub warnings: Vec<Finding>,
    /// Predicted archives, bytes.
    pub archive_bytes: u64,
    /// Digests by container, for those whose digest Kubernetes does not know (imported, never pulled).
    pub image_digests: BTreeMap<String, String>,
}
