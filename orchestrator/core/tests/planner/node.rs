//! What must be true of both nodes.

use super::sample::{MIB, allowed, pod, refused, source, taint, target, worker};
use orchestrator_core::refusal::Finding;

#[test]
fn both_workers_must_be_there_and_able() {
    refused(
        |v| {
            source(v).worker = None;
            v.inspection = Err("no worker".into());
        },
        "SourceWorkerNotConnected: no worker of node node1 is connected",
    );
    refused(
        |v| target(v).worker = None,
        "TargetWorkerNotConnected: no worker of node node2 is connected",
    );
    refused(
        |v| {
            worker(source(v)).checkpoint_refusals.push(Finding::new(
                "NoCriu",
                "node1 has no CRIU",
                "",
            ))
        },
        "NoCriu: node1 has no CRIU",
    );
    refused(
        |v| {
            worker(target(v)).restore_refusals.push(Finding::new(
                "NoRestore",
                "node2 has containerd 2.4",
                "",
            ))
        },
        "NoRestore: node2 has containerd 2.4",
    );
    allowed(|v| {
        worker(target(v)).checkpoint_refusals.push(Finding::new(
            "NoCriu",
            "not asked of a target",
            "",
        ))
    });
    refused(
        |v| source(v).ready = false,
        "SourceNotReady: node node1, where the pod runs, is not Ready: its kubelet does not answer",
    );
}

#[test]
fn the_target_must_take_pods() {
    refused(
        |v| {
            target(v).cordoned = true;
            taint(v, "NoSchedule");
            target(v).taints[0].key = "node.kubernetes.io/unschedulable".into();
        },
        "TargetCordoned: node node2 is cordoned",
    );
    refused(
        |v| target(v).ready = false,
        "TargetNotReady: node node2 is not Ready",
    );
}

#[test]
fn the_target_must_have_room() {
    refused(
        |v| target(v).cpu_used_milli = 1_501,
        "NoRoomCpu: node node2 is short of cpu: 499m free, the pod requests 500m",
    );
    refused(
        |v| target(v).memory_used_bytes = 1024 * MIB - 1,
        "NoRoomMemory: node node2 is short of memory: 1 bytes free, the pod requests 134217728 bytes",
    );
    refused(
        |v| target(v).pods_used = 110,
        "NoRoomPods: node node2 is short of pods: 0 free, the pod requests 1",
    );
    refused(
        |v| target(v).other.clear(),
        "NoRoomOther: node node2 is short of example.com/card: 0 free, the pod requests 1",
    );
    allowed(|v| target(v).cpu_used_milli = 1_500);
    allowed(|v| {
        pod(v).cpu_request_milli = 0;
        target(v).cpu_used_milli = 9_000;
    });
}

#[test]
fn the_target_must_be_like_the_source() {
    refused(
        |v| worker(target(v)).architecture = "arm64".into(),
        "OtherArchitecture: the pod runs on architecture amd64, node node2 has arm64",
    );
    refused(
        |v| worker(target(v)).cgroup_version = 1,
        "OtherCgroupVersion: the pod runs on cgroup version 2, node node2 has 1",
    );
    refused(
        |v| worker(target(v)).runtime = "cri-o 1.36".into(),
        "OtherRuntime: the pod runs on runtime containerd, node node2 has cri-o",
    );
    allowed(|v| worker(target(v)).runtime = "containerd 2.3.3".into());
    refused(
        |v| worker(target(v)).cpu_flags = vec!["sse2".into()],
        "MissingCpuFeatures: the CPU of node node2 lacks what the pod may be using: avx2, avx512f",
    );
    allowed(|v| worker(target(v)).cpu_flags.push("amx".into()));
}
