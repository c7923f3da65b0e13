//! May this pod move to that node, and how? From a request and a view to a plan, or to every reason against it.
//!
//! ```text
//! Request + View ─► pod:       is this a pod that can be moved at all, whole?
//!                   placement: may it run on the target, and could it if it may?
//!                   budget:    can it be moved in the time and the space there is?
//!                      │
//!                      ├─ any finding ─► Err(all of them)
//!                      └─ none        ─► Plan
//! ```
//!
//! All reasons are collected before any is shown: a user who mends one must not meet the next on the second try.
//! Where one fact would give two reasons (a node that isn't ready is tainted, too), the plainer one is given.
//! What is not known counts against the move: the freeze comes after the plan, and there is no asking then.
//! The planner never acts and never looks anything up; what it may know is the [`View`].

mod budget;
mod placement;
mod pod;

pub use budget::another_round;

use crate::{
    id::{NodeName, PodUid},
    plan::{CheckpointVia, Handover, Plan, PlannedContainer, Request, RestoreVia},
    refusal::Finding,
    view::{InspectionView, NodeView, PodView, View},
};

/// A migration that is not committed after this long is undone, when the user names no limit. The lab takes 3 s;
/// pulling a base image of 1 GB at 10 MB/s takes 100 s, a checkpoint of 10 GB at 150 MB/s 70 s; together with a
/// factor of nearly two for waiting in turn: 5 minutes.
pub const TIMEOUT_DEFAULT_MS: u64 = 300_000;

/// Everything the parts of the planner look at.
struct Case<'a> {
    request: &'a Request,
    view: &'a View,
    pod: &'a PodView,
    source: Option<&'a NodeView>,
    target: Option<&'a NodeView>,
}

impl Case<'_> {
    /// What the source's worker saw, where it makes sense to have asked it.
    fn inspection(&self) -> Option<&InspectionView> {
        self.view.inspection.as_ref().ok()
    }
}

/// Decides. The view must be of one moment and of this request's target.
///
/// # Errors
/// Every reason not to, in the order pod, placement, budget; never empty.
pub fn plan(request: &Request, view: &View) -> Result<Plan, Vec<Finding>> {
    let target = node(view, &request.target);
    let mut findings = Vec::new();
    let Some(pod) = &view.pod else {
        findings.push(Finding::new(
            "NoSuchPod",
            format!("there is no pod {}", request.pod),
            "check the name and the namespace",
        ));
        findings.extend(placement::node_exists(&request.target, target));
        return Err(findings);
    };
    let source_name = NodeName(pod.node.clone());
    let case = Case {
        request,
        view,
        pod,
        source: node(view, &source_name),
        target,
    };
    findings.extend(pod::check(&case));
    findings.extend(placement::check(&case));
    findings.extend(budget::check(&case));
    // Both are None only when a finding above says so: no inspection is a reason, no UID means no pod.
    match (case.inspection(), pod.uid.clone()) {
        (Some(seen), Some(uid)) if findings.is_empty() => Ok(make(&case, seen, uid, source_name)),
        (Some(_) | None, Some(_) | None) => Err(findings),
    }
}

fn node<'a>(view: &'a View, name: &NodeName) -> Option<&'a NodeView> {
    view.nodes.iter().find(|n| n.name.as_ref() == Some(name))
}

fn make(case: &Case<'_>, seen: &InspectionView, uid: PodUid, source: NodeName) -> Plan {
    let Case {
        request,
        view: _,
        pod,
        source: _,
        target: _,
    } = case;
    Plan {
        pod: request.pod.clone(),
        uid,
        source,
        target: request.target.clone(),
        pod_ip: pod.ip.clone(),
        containers: planned_containers(pod, seen),
        finished_init_containers: pod.init_containers.clone(),
        handover: Handover::Replace,
        checkpoint: CheckpointVia::Kubelet,
        restore: RestoreVia::Image,
        freeze_budget_ms: budget::freeze_budget_ms(request, pod),
        freeze_predicted_ms: budget::freeze_predicted_ms(seen.archive_bytes),
        archive_predicted_bytes: seen.archive_bytes,
        rounds_max: budget::rounds_max(case, seen.archive_bytes),
        base: budget::base(case, seen.archive_bytes),
        timeout_ms: request.timeout_ms.unwrap_or(TIMEOUT_DEFAULT_MS),
        warnings: seen.warnings.clone(),
        target_pod: pod.target_pod.clone(),
    }
}

/// Sidecars first, as Kubernetes starts them; otherwise the pod's own order.
fn planned_containers(pod: &PodView, seen: &InspectionView) -> Vec<PlannedContainer> {
    let (sidecars, regular): (Vec<_>, Vec<_>) = pod.containers.iter().partition(|c| c.sidecar);
    sidecars
        .into_iter()
        .chain(regular)
        .map(|container| PlannedContainer {
            name: container.name.clone(),
            image: container.image.clone(),
            image_digest: pod::digest(container, seen).unwrap_or_default().to_owned(),
            container_id: container.container_id.clone(),
            sidecar: container.sidecar,
        })
        .collect()
}
