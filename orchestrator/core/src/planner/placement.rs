//! Nodes: may the pod run on the target, could it, and are both sides able to do their part?
//!
//! The target pod is bound by name, past the scheduler; so what the scheduler would have checked is checked here, and
//! what the kubelet would refuse at its admission, which comes after the commit, as well.

use std::collections::{BTreeMap, BTreeSet};

use super::Case;
use crate::{
    id::NodeName,
    refusal::Finding,
    view::{
        ExpressionView, HostPortView, NodeView, PodTermView, TaintView, TolerationView, WorkerView,
    },
};

/// The node label that names the node itself.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Taints that say again what the node's own fields say; the plainer reason is given.
const TAINTS_SAID_OTHERWISE: [&str; 3] = [
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];

pub(super) fn check(case: &Case<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    source(case, &mut findings);
    findings.extend(node_exists(&case.request.target, case.target));
    let Some(target) = case.target else {
        return findings;
    };
    let name = &case.request.target;
    worker_can(name, target.worker.as_ref(), Side::Target, &mut findings);
    // A pod that is there already fits there; anything said about room would count it twice.
    if case.pod.node == name.0 {
        return findings;
    }
    state(name, target, &mut findings);
    room(case, target, &mut findings);
    taints(case, target, &mut findings);
    selectors(case, target, &mut findings);
    neighbours(case, target, &mut findings);
    if let Some(source) = case.source {
        alike(case, source, target, &mut findings);
    }
    findings
}

pub(super) fn node_exists(name: &NodeName, node: Option<&NodeView>) -> Option<Finding> {
    node.is_none().then(|| {
        Finding::new(
            "NoSuchNode",
            format!("there is no node {name}"),
            "list them with: migrate nodes",
        )
    })
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Target,
}

fn source(case: &Case<'_>, findings: &mut Vec<Finding>) {
    // A pod that isn't bound yet has no source; that it doesn't run is said elsewhere.
    if case.pod.node.is_empty() {
        return;
    }
    let name = NodeName(case.pod.node.clone());
    let worker = case.source.and_then(|node| node.worker.as_ref());
    worker_can(&name, worker, Side::Source, findings);
    if case.source.is_some_and(|node| !node.ready) {
        findings.push(Finding::new(
            "SourceNotReady",
            format!("node {name}, where the pod runs, is not Ready: its kubelet does not answer"),
            "bring the node back first",
        ));
    }
}

fn worker_can(
    name: &NodeName,
    worker: Option<&WorkerView>,
    side: Side,
    findings: &mut Vec<Finding>,
) {
    match (worker, side) {
        (Some(worker), Side::Source) => findings.extend(worker.checkpoint_refusals.iter().cloned()),
        (Some(worker), Side::Target) => findings.extend(worker.restore_refusals.iter().cloned()),
        (None, Side::Source | Side::Target) => findings.push(Finding::new(
            match side {
                Side::Source => "SourceWorkerNotConnected",
                Side::Target => "TargetWorkerNotConnected",
            },
            format!("no worker of node {name} is connected"),
            "see that Longshore's worker runs on that node: migrate nodes",
        )),
    }
}

fn state(name: &NodeName, target: &NodeView, findings: &mut Vec<Finding>) {
    if target.cordoned {
        findings.push(Finding::new(
            "TargetCordoned",
            format!("node {name} is cordoned"),
            format!("kubectl uncordon {name}, or name another node"),
        ));
    }
    if !target.ready {
        findings.push(Finding::new(
            "TargetNotReady",
            format!("node {name} is not Ready"),
            "name another node",
        ));
    }
}

fn room(case: &Case<'_>, target: &NodeView, findings: &mut Vec<Finding>) {
    let (pod, name) = (case.pod, &case.request.target);
    let mut ask = |code: &str, what: &str, unit: &str, wanted: u64, all: u64, used: u64| {
        let free = all.saturating_sub(used);
        // Kubernetes lets a pod that asks for nothing onto a full node.
        if wanted > 0 && wanted > free {
            findings.push(Finding::new(
                code,
                format!("node {name} is short of {what}: {free}{unit} free, the pod requests {wanted}{unit}"),
                "make room there, or name another node",
            ));
        }
    };
    let cpu = (target.cpu_milli, target.cpu_used_milli);
    ask("NoRoomCpu", "cpu", "m", pod.cpu_request_milli, cpu.0, cpu.1);
    let memory = (target.memory_bytes, target.memory_used_bytes);
    ask(
        "NoRoomMemory",
        "memory",
        " bytes",
        pod.memory_request_bytes,
        memory.0,
        memory.1,
    );
    ask("NoRoomPods", "pods", "", 1, target.pods, target.pods_used);
    for (resource, wanted) in &pod.other_requests {
        let of = |map: &BTreeMap<String, u64>| map.get(resource).copied().unwrap_or(0);
        let (all, used) = (of(&target.other), of(&target.other_used));
        ask("NoRoomOther", resource, "", *wanted, all, used);
    }
}

fn taints(case: &Case<'_>, target: &NodeView, findings: &mut Vec<Finding>) {
    for taint in &target.taints {
        if TAINTS_SAID_OTHERWISE.contains(&taint.key.as_str())
            || taint.effect == "PreferNoSchedule"
            || case.pod.tolerations.iter().any(|t| tolerates(t, taint))
        {
            continue;
        }
        let TaintView { key, value, effect } = taint;
        findings.push(Finding::new(
            "TaintNotTolerated",
            format!(
                "node {} has the taint {key}={value}:{effect}, which the pod does not tolerate",
                case.request.target
            ),
            "name another node, or run the pod with a toleration",
        ));
    }
}

fn tolerates(toleration: &TolerationView, taint: &TaintView) -> bool {
    let effect = toleration.effect.is_empty() || toleration.effect == taint.effect;
    // Operators that compare numbers are not known here, so they tolerate nothing.
    let exists = toleration.operator == "Exists";
    let equal =
        matches!(toleration.operator.as_str(), "" | "Equal") && toleration.value == taint.value;
    let key = (toleration.key.is_empty() && exists) || toleration.key == taint.key;
    effect && key && (exists || equal)
}

fn selectors(case: &Case<'_>, target: &NodeView, findings: &mut Vec<Finding>) {
    let (pod, name) = (case.pod, &case.request.target);
    for (key, value) in &pod.node_selector {
        if target.labels.get(key) != Some(value) {
            findings.push(Finding::new(
                "NodeSelectorMismatch",
                format!("the pod's nodeSelector wants {key}={value}, node {name} has it not"),
                "name another node, or label this one",
            ));
        }
    }
    let holds = |expression: &ExpressionView| {
        if expression.key == "metadata.name" {
            let named = BTreeMap::from([(expression.key.clone(), name.0.clone())]);
            return matches(expression, &named);
        }
        matches(expression, &target.labels)
    };
    // An empty term matches no node; alternatives: one term is enough.
    let fits = |term: &Vec<ExpressionView>| !term.is_empty() && term.iter().all(holds);
    if !pod.node_affinity.is_empty() && !pod.node_affinity.iter().any(fits) {
        findings.push(Finding::new(
            "NodeAffinityMismatch",
            format!("the pod's required node affinity does not allow node {name}"),
            "name another node, or label this one",
        ));
    }
    for constraint in &pod.unevaluated_constraints {
        findings.push(Finding::new(
            "ConstraintNotEvaluated",
            format!(
                "the pod has a required constraint that this version cannot evaluate: {constraint}"
            ),
            "run it without, or with a preferred instead of a required one",
        ));
    }
}

/// Kubernetes' label selector operators. A label that isn't there satisfies NotIn.
fn matches(expression: &ExpressionView, labels: &BTreeMap<String, String>) -> bool {
    let ExpressionView {
        key,
        operator,
        values,
    } = expression;
    let label = labels.get(key);
    let number = |text: &String| text.parse::<i64>().ok();
    let compared = || Some((number(label?)?, number(values.first()?)?));
    match operator.as_str() {
        "In" => label.is_some_and(|l| values.contains(l)),
        "NotIn" => !label.is_some_and(|l| values.contains(l)),
        "Exists" => label.is_some(),
        "DoesNotExist" => label.is_none(),
        "Gt" => compared().is_some_and(|(have, bound)| have > bound),
        "Lt" => compared().is_some_and(|(have, bound)| have < bound),
        _unknown => false,
    }
}

fn neighbours(case: &Case<'_>, target: &NodeView, findings: &mut Vec<Finding>) {
    let (pod, name) = (case.pod, &case.request.target);
    let others = || {
        let moving = Some(&case.request.pod);
        case.view
            .target_pods
            .iter()
            .filter(move |o| Some(&o.pod) != moving)
    };
    for term in &pod.affinity {
        match reach(case, target, term) {
            Reach::Unchanged => {}
            Reach::Node if others().any(|o| selects(term, &o.pod.namespace, &o.labels)) => {}
            Reach::Node => findings.push(Finding::new(
                "PodAffinityMismatch",
                format!("the pod must run beside a pod that node {name} does not have"),
                "name the node where the other pod runs",
            )),
            Reach::Beyond => findings.push(beyond(term)),
        }
    }
    for term in &pod.anti_affinity {
        match reach(case, target, term) {
            Reach::Unchanged => {}
            Reach::Node => findings.extend(
                others()
                    .find(|o| selects(term, &o.pod.namespace, &o.labels))
                    .map(|o| apart(name, "the pod", &o.pod.to_string())),
            ),
            Reach::Beyond => findings.push(beyond(term)),
        }
    }
    for other in others() {
        // Whatever the term's place is, the other pod is in the target's: no need to look beyond.
        let forbids = |term: &&PodTermView| {
            !matches!(reach(case, target, term), Reach::Unchanged)
                && selects(term, &case.request.pod.namespace, &pod.labels)
        };
        if other.anti_affinity.iter().any(|term| forbids(&term)) {
            findings.push(apart(name, &other.pod.to_string(), "this one"));
        }
        findings.extend(
            pod.host_ports
                .iter()
                .filter(|port| other.host_ports.iter().any(|taken| collide(port, taken)))
                .map(|port| {
                    Finding::new(
                        "HostPortTaken",
                        format!(
                            "host port {}/{} of node {name} is taken by {}",
                            port.port, port.protocol, other.pod
                        ),
                        "name another node",
                    )
                }),
        );
    }
}

/// What has to be known to evaluate a term at the target.
enum Reach {
    /// Source and target are one place for this term: the move changes nothing.
    Unchanged,
    /// The place is the node: its pods are all there is to know.
    Node,
    /// The place has other nodes, whose pods the view doesn't hold.
    Beyond,
}

fn reach(case: &Case<'_>, target: &NodeView, term: &PodTermView) -> Reach {
    if term.topology_key == HOSTNAME {
        return Reach::Node;
    }
    let place = |node: &NodeView| node.labels.get(&term.topology_key).cloned();
    match (case.source.and_then(place), place(target)) {
        (Some(from), Some(to)) if from == to => Reach::Unchanged,
        (Some(_) | None, Some(_) | None) => Reach::Beyond,
    }
}

fn selects(term: &PodTermView, namespace: &String, labels: &BTreeMap<String, String>) -> bool {
    term.namespaces.contains(namespace) && term.selector.iter().all(|e| matches(e, labels))
}

fn apart(node: &NodeName, who: &str, whom: &str) -> Finding {
    Finding::new(
        "PodAntiAffinityMismatch",
        format!("{who} must not share a node with {whom}, and they would on node {node}"),
        "name another node",
    )
}

fn beyond(term: &PodTermView) -> Finding {
    Finding::new(
        "ConstraintNotEvaluated",
        format!(
            "the pod has a required constraint that this version cannot evaluate: pod affinity by {}",
            term.topology_key
        ),
        "name a node of the same place, or use a preferred instead of a required one",
    )
}

fn collide(one: &HostPortView, other: &HostPortView) -> bool {
    let any = |port: &HostPortView| port.ip == "0.0.0.0";
    one.port == other.port
        && one.protocol == other.protocol
        && (one.ip == other.ip || any(one) || any(other))
}

fn alike(case: &Case<'_>, source: &NodeView, target: &NodeView, findings: &mut Vec<Finding>) {
    let (Some(from), Some(to)) = (&source.worker, &target.worker) else {
        return;
    };
    let name = &case.request.target;
    let mut differ = |code: &str, what: &str, from: &str, to: &str| {
        if from != to {
            findings.push(Finding::new(
                code,
                format!("the pod runs on {what} {from}, node {name} has {to}"),
                "name a node like the one it runs on",
            ));
        }
    };
    differ(
        "OtherArchitecture",
        "architecture",
        &from.architecture,
        &to.architecture,
    );
    let (old, new) = (
        from.cgroup_version.to_string(),
        to.cgroup_version.to_string(),
    );
    differ("OtherCgroupVersion", "cgroup version", &old, &new);
    // Archives of containerd and CRI-O are not readable for each other; versions of one are.
    differ(
        "OtherRuntime",
        "runtime",
        family(&from.runtime),
        family(&to.runtime),
    );
    if from.architecture != to.architecture {
        return;
    }
    let has: BTreeSet<&String> = to.cpu_flags.iter().collect();
    let missing: Vec<&str> = from
        .cpu_flags
        .iter()
        .filter(|flag| !has.contains(flag))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        findings.push(Finding::new(
            "MissingCpuFeatures",
            format!(
                "the CPU of node {name} lacks what the pod may be using: {}",
                missing.join(", ")
            ),
            "name a node with the same or a newer CPU",
        ));
    }
}

fn family(runtime: &str) -> &str {
    runtime.split_whitespace().next().unwrap_or(runtime)
}
