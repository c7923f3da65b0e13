//! The pod itself: can it be moved at all, and would all of it come along?

use super::Case;
use crate::{
    refusal::Finding,
    view::{ContainerView, InspectionView, PodView, View},
};

/// Volumes that Kubernetes fills from its own objects: the target's kubelet fills them again with the same content.
const VOLUMES_THAT_COME_ALONG: [&str; 4] = ["configMap", "secret", "projected", "downwardAPI"];

pub(super) fn check(case: &Case<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    life(case, &mut findings);
    owner(case.pod, &mut findings);
    namespaces(case.pod, &mut findings);
    parts(case.pod, &mut findings);
    for container in &case.pod.containers {
        container_check(container, case.pod, case.view, &mut findings);
    }
    inspection(case, &mut findings);
    findings
}

/// The digest Kubernetes knows, else the one the source's runtime knows.
pub(super) fn digest<'a>(
    container: &'a ContainerView,
    seen: &'a InspectionView,
) -> Option<&'a str> {
    [
        Some(&container.image_digest),
        seen.image_digests.get(&container.name),
    ]
    .into_iter()
    .flatten()
    .find(|digest| !digest.is_empty())
    .map(String::as_str)
}

fn runs(pod: &PodView) -> bool {
    pod.phase == "Running" && !pod.deleting
}

fn life(case: &Case<'_>, findings: &mut Vec<Finding>) {
    let (pod, name) = (case.pod, &case.request.pod);
    if pod.phase != "Running" {
        findings.push(Finding::new(
            "PodNotRunning",
            format!("the pod {name} is {}, not Running", pod.phase),
            "wait until it runs",
        ));
    }
    if pod.deleting {
        findings.push(Finding::new(
            "PodDeleting",
            format!("the pod {name} is being deleted"),
            "",
        ));
    }
    if pod.node == case.request.target.0 {
        findings.push(Finding::new(
            "AlreadyThere",
            format!("the pod {name} runs on node {} already", pod.node),
            "name another node with --to",
        ));
    }
    if runs(pod) && pod.target_pod.is_empty() {
        findings.push(Finding::new(
            "NoTargetPod",
            "the pod's object for the target could not be made from the one that runs",
            "report this with the pod's YAML",
        ));
    }
}

fn owner(pod: &PodView, findings: &mut Vec<Finding>) {
    if pod.mirror {
        findings.push(Finding::new(
            "StaticPod",
            "it is a static pod: its node's kubelet makes it from a file",
            "move the file to the other node's manifests folder",
        ));
        return;
    }
    match &pod.controller {
        Some((kind, name)) if kind == "DaemonSet" => findings.push(Finding::new(
            "DaemonSetPod",
            format!("it belongs to the DaemonSet {name}, which runs one on every node already"),
            "",
        )),
        Some((kind, name)) => findings.push(Finding::new(
            "ControllerPod",
            format!(
                "it belongs to the {kind} {name}; pods of controllers cannot be moved by this version"
            ),
            "move a pod without a controller, or wait for a later version",
        )),
        None => {}
    }
    for finalizer in &pod.finalizers {
        findings.push(Finding::new(
            "ForeignFinalizer",
            format!("the finalizer {finalizer} would keep its name taken after it was deleted"),
            format!("let the owner of {finalizer} remove it"),
        ));
    }
}

fn namespaces(pod: &PodView, findings: &mut Vec<Finding>) {
    let shared = [
        (
            pod.host_network,
            "HostNetwork",
            "hostNetwork: true",
            "it uses its node's network",
        ),
        (
            pod.host_pid,
            "HostPid",
            "hostPID: true",
            "it sees its node's processes",
        ),
        (
            pod.host_ipc,
            "HostIpc",
            "hostIPC: true",
            "it shares memory with its node",
        ),
        (
            pod.share_process_namespace,
            "SharedProcessNamespace",
            "shareProcessNamespace: true",
            "its process ids may be taken on the target",
        ),
        (
            pod.user_namespace,
            "UserNamespace",
            "hostUsers: false",
            "processes in a user namespace cannot be dumped",
        ),
    ];
    for (set, code, field, reason) in shared {
        if set {
            findings.push(Finding::new(
                code,
                format!("the pod has {field}: {reason}"),
                format!("run it without {field}"),
            ));
        }
    }
    if let Some(class) = &pod.runtime_class {
        findings.push(Finding::new(
            "RuntimeClass",
            format!("the pod asks for the runtime class {class}, which may not be runc"),
            "run it without runtimeClassName",
        ));
    }
}

fn parts(pod: &PodView, findings: &mut Vec<Finding>) {
    for name in &pod.ephemeral_containers {
        findings.push(Finding::new(
            "EphemeralContainer",
            format!("the debug container {name} runs in it and would not come along"),
            "end the debug session; its container must be gone",
        ));
    }
    for (name, kind) in &pod.volumes {
        if !VOLUMES_THAT_COME_ALONG.contains(&kind.as_str()) {
            findings.push(Finding::new(
                "VolumeWouldNotMove",
                format!("the content of volume {name} ({kind}) would stay behind"),
                "keep the data outside of the pod, or in its root file system",
            ));
        }
    }
}

fn container_check(
    container: &ContainerView,
    pod: &PodView,
    view: &View,
    findings: &mut Vec<Finding>,
) {
    let name = &container.name;
    if runs(pod) && (!container.running || container.container_id.is_empty()) {
        let state = match container.not_running.as_str() {
            "" => String::new(),
            why => format!(": {why}"),
        };
        findings.push(Finding::new(
            "ContainerNotRunning",
            format!("the container {name} does not run{state}"),
            "wait until all its containers run",
        ));
    }
    let terminal = [
        (container.tty, "Tty", "tty: true"),
        (container.stdin, "Stdin", "stdin: true"),
    ];
    for (set, code, field) in terminal {
        if set {
            findings.push(Finding::new(
                code,
                format!("the container {name} has {field}: whoever is attached would be cut off"),
                format!("run it without {field}"),
            ));
        }
    }
    for device in &container.devices {
        findings.push(Finding::new(
            "Device",
            format!("the container {name} uses the device {device}, which stays on its node"),
            "",
        ));
    }
    // Without an inspection the runtime has not been asked for the digest, and that is a reason of its own.
    if let Ok(seen) = &view.inspection
        && container.running
        && digest(container, seen).is_none()
    {
        findings.push(Finding::new(
            "ImageDigestUnknown",
            format!(
                "neither Kubernetes nor the runtime knows the digest of the image {} of container {name}, so it \
                 can't be proved that the target has the same",
                container.image
            ),
            "run it from an image that was pulled from a registry",
        ));
    }
}

fn inspection(case: &Case<'_>, findings: &mut Vec<Finding>) {
    match &case.view.inspection {
        Ok(seen) => findings.extend(seen.refusals.iter().cloned()),
        // Nobody could have looked when there is no worker or nothing runs: those reasons are given already.
        Err(why) => {
            let worker = case.source.is_some_and(|node| node.worker.is_some());
            if worker && runs(case.pod) {
                findings.push(Finding::new(
                    "InspectionFailed",
                    format!("its processes could not be looked at: {why}"),
                    "look at the log of the worker on that node, then try again",
                ));
            }
        }
    }
}
