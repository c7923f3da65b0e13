//! Gathers what the planner may know, at one moment, with bounded calls.
//!
//! Two looks: [`pod`] first, since the source's worker can only be asked about a pod that was seen; then [`gather`]
//! with the worker's answer. Translating is pure: [`mod@pod`] for pods, [`node`] for nodes. What can't be translated
//! is said as such and counts against the move.

mod pod;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, api::ListParams};
use orchestrator_core::{
    id::{NodeName, PodRef},
    plan::{KeptCheckpoint, Request},
    view::{InspectionView, NodeView, PodView, TaintView, TargetPodView, View, WorkerView},
};

use super::{
    call::{CallError, bounded, if_there},
    quantity::{Amounts, add, amounts},
};

pub use pod::translate as translate_pod;

/// The pod asked for; `None` when there is none of that name.
///
/// # Errors
/// When the API server gives no clear answer.
pub async fn look_up(client: &Client, request: &Request) -> Result<Option<PodView>, CallError> {
    let PodRef { namespace, name } = &request.pod;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = if_there(bounded(format!("get pod {}", request.pod), pods.get(name)).await)?;
    Ok(found.map(|object| pod::translate(&object, &request.target)))
}

/// Everything else, around a pod that was looked up and inspected.
///
/// # Errors
/// When the API server gives no clear answer.
pub async fn gather(
    client: &Client,
    request: &Request,
    pod: Option<PodView>,
    workers: &BTreeMap<NodeName, WorkerView>,
    inspection: Result<InspectionView, String>,
    base: Option<KeptCheckpoint>,
) -> Result<View, CallError> {
    let target = &request.target;
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::all(client.clone());
    let everything = ListParams::default();
    // Pods that have ended use nothing of the node.
    let on_target = ListParams::default().fields(&format!(
        "spec.nodeName={target},status.phase!=Succeeded,status.phase!=Failed"
    ));
    let (nodes, target_pods) = tokio::try_join!(
        bounded("list nodes", nodes.list(&everything)),
        bounded(format!("list pods of node {target}"), pods.list(&on_target)),
    )?;
    let used = used(&target_pods.items);
    let nodes = nodes.items.iter().map(|object| {
        let mut view = node(object);
        view.worker = view
            .name
            .as_ref()
            .and_then(|name| workers.get(name))
            .cloned();
        if view.name.as_ref() == Some(target) {
            use_up(&mut view, &used, target_pods.items.len());
        }
        view
    });
    Ok(View {
        pod,
        nodes: nodes.collect(),
        target_pods: target_pods.items.iter().map(neighbour).collect(),
        inspection,
        base,
    })
}

fn used(pods: &[Pod]) -> Amounts {
    let mut sum = Amounts::new();
    for spec in pods.iter().filter_map(|pod| pod.spec.as_ref()) {
        add(&mut sum, &pod::requests(spec));
    }
    sum
}

fn use_up(view: &mut NodeView, used: &Amounts, pods: usize) {
    let split = pod::split(used);
    view.cpu_used_milli = split.cpu_milli;
    view.memory_used_bytes = split.memory_bytes;
    view.other_used = split.other;
    view.pods_used = u64::try_from(pods).unwrap_or(u64::MAX);
}

fn neighbour(object: &Pod) -> TargetPodView {
    let terms = pod::terms(object);
    TargetPodView {
        pod: PodRef {
            namespace: object.metadata.namespace.clone().unwrap_or_default(),
            name: object.metadata.name.clone().unwrap_or_default(),
        },
        labels: object.metadata.labels.clone().unwrap_or_default(),
        anti_affinity: terms.anti_affinity,
        host_ports: pod::host_ports(object),
    }
}

/// A node, without its worker and what its pods use.
#[must_use]
pub fn node(object: &Node) -> NodeView {
    let spec = object.spec.clone().unwrap_or_default();
    let status = object.status.clone().unwrap_or_default();
    let mut allocatable = amounts(status.allocatable.as_ref());
    let pods = allocatable.remove("pods").unwrap_or(0) / 1000;
    let split = pod::split(&allocatable);
    NodeView {
        name: object.metadata.name.as_deref().map(NodeName::from),
        ready: status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
        cordoned: spec.unschedulable.unwrap_or(false),
        taints: spec
            .taints
            .into_iter()
            .flatten()
            .map(|taint| TaintView {
                key: taint.key,
                value: taint.value.unwrap_or_default(),
                effect: taint.effect,
            })
            .collect(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        cpu_milli: split.cpu_milli,
        memory_bytes: split.memory_bytes,
        pods,
        other: split.other,
        ..NodeView::default()
    }
}
