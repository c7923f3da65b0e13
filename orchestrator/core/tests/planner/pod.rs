//! What must be true of the pod.

use super::sample::{decide, first, pod, refused, seen, sentences};
use orchestrator_core::refusal::Finding;

#[test]
fn what_is_not_there_cannot_be_moved() {
    refused(|v| v.pod = None, "NoSuchPod: there is no pod default/kuard");
    refused(
        |v| v.nodes.truncate(1),
        "NoSuchNode: there is no node node2",
    );
    let both = sentences(decide(|v| {
        v.pod = None;
        v.nodes.clear();
    }));
    assert_eq!(both.len(), 2, "pod and node are both missing: {both:?}");
}

#[test]
fn only_a_running_pod_elsewhere_is_moved() {
    refused(
        |v| pod(v).phase = "Pending".into(),
        "PodNotRunning: the pod default/kuard is Pending, not Running",
    );
    refused(
        |v| pod(v).deleting = true,
        "PodDeleting: the pod default/kuard is being deleted",
    );
    refused(
        |v| pod(v).node = "node2".into(),
        "AlreadyThere: the pod default/kuard runs on node node2 already",
    );
    refused(
        |v| {
            first(v).running = false;
            first(v).not_running = "CrashLoopBackOff".into();
        },
        "ContainerNotRunning: the container kuard does not run: CrashLoopBackOff",
    );
    refused(
        |v| pod(v).containers[1].running = false,
        "ContainerNotRunning: the container proxy does not run",
    );
    refused(
        |v| pod(v).target_pod.clear(),
        "NoTargetPod: the pod's object for the target could not be made from the one that runs",
    );
}

#[test]
fn pods_that_belong_to_somebody_stay() {
    refused(
        |v| pod(v).controller = Some(("ReplicaSet".into(), "kuard-7f".into())),
        "ControllerPod: it belongs to the ReplicaSet kuard-7f; pods of controllers cannot be moved by this version",
    );
    refused(
        |v| pod(v).controller = Some(("DaemonSet".into(), "agent".into())),
        "DaemonSetPod: it belongs to the DaemonSet agent, which runs one on every node already",
    );
    refused(
        |v| {
            pod(v).mirror = true;
            pod(v).controller = Some(("Node".into(), "node1".into()));
        },
        "StaticPod: it is a static pod: its node's kubelet makes it from a file",
    );
    refused(
        |v| pod(v).finalizers = vec!["example.com/keep".into()],
        "ForeignFinalizer: the finalizer example.com/keep would keep its name taken after it was deleted",
    );
}

#[test]
fn pods_tied_to_their_node_stay() {
    refused(
        |v| pod(v).host_network = true,
        "HostNetwork: the pod has hostNetwork: true: it uses its node's network",
    );
    refused(
        |v| pod(v).host_pid = true,
        "HostPid: the pod has hostPID: true: it sees its node's processes",
    );
    refused(
        |v| pod(v).host_ipc = true,
        "HostIpc: the pod has hostIPC: true: it shares memory with its node",
    );
    refused(
        |v| pod(v).share_process_namespace = true,
        "SharedProcessNamespace: the pod has shareProcessNamespace: true: its process ids may be taken on the target",
    );
    refused(
        |v| pod(v).user_namespace = true,
        "UserNamespace: the pod has hostUsers: false: processes in a user namespace cannot be dumped",
    );
    refused(
        |v| pod(v).runtime_class = Some("gvisor".into()),
        "RuntimeClass: the pod asks for the runtime class gvisor, which may not be runc",
    );
    refused(
        |v| first(v).devices = vec!["gpu".into()],
        "Device: the container kuard uses the device gpu, which stays on its node",
    );
}

#[test]
fn what_would_stay_behind_is_named() {
    refused(
        |v| pod(v).ephemeral_containers = vec!["debugger".into()],
        "EphemeralContainer: the debug container debugger runs in it and would not come along",
    );
    for kind in [
        "hostPath",
        "persistentVolumeClaim",
        "emptyDir",
        "csi",
        "nfs",
    ] {
        refused(
            |v| pod(v).volumes = vec![("data".into(), kind.into())],
            &format!("VolumeWouldNotMove: the content of volume data ({kind}) would stay behind"),
        );
    }
    refused(
        |v| first(v).tty = true,
        "Tty: the container kuard has tty: true: whoever is attached would be cut off",
    );
    refused(
        |v| first(v).stdin = true,
        "Stdin: the container kuard has stdin: true: whoever is attached would be cut off",
    );
}

#[test]
fn a_digest_must_be_known_to_somebody() {
    refused(
        |v| first(v).image_digest.clear(),
        "ImageDigestUnknown: neither Kubernetes nor the runtime knows the digest of the image \
         registry.example/kuard:1 of container kuard, so it can't be proved that the target has the same",
    );
    let plan = decide(|v| {
        first(v).image_digest.clear();
        seen(v)
            .image_digests
            .insert("kuard".into(), "sha256:runtime".into());
    })
    .unwrap();
    assert_eq!(plan.containers[1].image_digest, "sha256:runtime");
}

#[test]
fn what_the_inspection_finds_counts() {
    refused(
        |v| {
            seen(v)
                .refusals
                .push(Finding::new("IoUring", "pid 7 uses io_uring", ""))
        },
        "IoUring: pid 7 uses io_uring",
    );
    refused(
        |v| v.inspection = Err("no answer in 10 s".into()),
        "InspectionFailed: its processes could not be looked at: no answer in 10 s",
    );
}
