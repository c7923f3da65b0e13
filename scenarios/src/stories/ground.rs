//! What a story does and sees on the nodes themselves, below Kubernetes.

use super::Stage;
use crate::{node, process, site::Site};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Any of these commands takes well under a second.
const COMMAND_WITHIN: Duration = Duration::from_secs(30);

/// The number of a node by its name.
pub fn node_number(stage: &Stage, node: &str) -> Result<u8> {
    stage
        .lab
        .site
        .node_numbers()
        .find(|n| Site::node_name(*n) == node)
        .with_context(|| format!("the lab has no {node}"))
}

/// Runs a command in a node, which must succeed, and gives what it printed.
pub fn run(stage: &Stage, node: &str, words: &[&str]) -> Result<String> {
    let mut command = node::inside(&stage.lab, node_number(stage, node)?)?;
    command.args(words);
    process::succeed(&mut command, COMMAND_WITHIN)
}

/// `ctr` on a node, in the kubelet's namespace of containerd.
pub fn ctr(stage: &Stage, node: &str, words: &[&str]) -> Result<String> {
    run(
        stage,
        node,
        &[&["ctr", "--namespace", "k8s.io"], words].concat(),
    )
}

/// Kills a container's processes behind Kubernetes' back.
pub fn kill_container(stage: &Stage, pod: &str, container: &str) -> Result<()> {
    signal_container(stage, pod, container, "SIGKILL")
}

/// Sends a signal to a container's first process.
pub fn signal_container(stage: &Stage, pod: &str, container: &str, signal: &str) -> Result<()> {
    let (node, id) = (stage.node_of(pod)?, container_id(stage, pod, container)?);
    ctr(stage, &node, &["tasks", "kill", "--signal", signal, &id]).map(drop)
}

/// The runtime's name for a container.
pub fn container_id(stage: &Stage, pod: &str, container: &str) -> Result<String> {
    let object = stage.pod(pod)?;
    let statuses = object["status"]["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten();
    let id = statuses
        .filter(|status| status["name"] == container)
        .find_map(|status| {
            status["containerID"]
                .as_str()?
                .strip_prefix("containerd://")
        })
        .with_context(|| format!("the pod {pod} has no running container {container}"))?;
    Ok(id.to_owned())
}

/// On how many nodes the runtime has a task of this container of the story's pod: one, or a promise is broken.
pub fn live_copies(stage: &Stage, pod: &str, container: &str) -> Result<usize> {
    let mut copies = 0;
    for n in stage.lab.site.node_numbers() {
        let node = Site::node_name(n);
        let filter = format!(
            "labels.\"io.kubernetes.pod.namespace\"=={},labels.\"io.kubernetes.pod.name\"=={pod},labels.\"io.kubernetes.container.name\"=={container}",
            stage.namespace
        );
        let containers = ctr(stage, &node, &["containers", "list", "--quiet", &filter])?;
        let tasks = ctr(stage, &node, &["tasks", "list"])?;
        copies += containers
            .lines()
            .filter(|id| {
                tasks
                    .lines()
                    .any(|task| task.starts_with(id) && !task.contains("STOPPED"))
            })
            .count();
    }
    Ok(copies)
}

/// Insists that exactly one copy of a container is there.
pub fn expect_one_copy(stage: &Stage, pod: &str, container: &str) -> Result<()> {
    let copies = live_copies(stage, pod, container)?;
    ensure!(
        copies == 1,
        "the container {container} of {pod} has {copies} live copies on the nodes"
    );
    Ok(())
}
