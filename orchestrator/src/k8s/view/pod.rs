//! A pod object as the planner reads it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerStatus, NodeSelectorRequirement, Pod, PodAffinityTerm, PodSpec,
        PodStatus, Probe, Toleration,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use orchestrator_core::{
    id::{MigrationId, NodeName, PodRef, PodUid},
    view::{
        ContainerView, ExpressionView, HostPortView, NodeTermView, PodTermView, PodView,
        TolerationView,
    },
};

use crate::k8s::{
    origin,
    pods::MIGRATION_ANNOTATION,
    quantity::{Amounts, add, amounts, raise},
    target_pod,
};

/// The pod, and what it would be on the target.
#[must_use]
pub fn translate(object: &Pod, target: &NodeName) -> PodView {
    let meta = &object.metadata;
    let spec = object.spec.clone().unwrap_or_default();
    let status = object.status.clone().unwrap_or_default();
    let controller = meta.owner_references.iter().flatten();
    let controller = controller
        .clone()
        .find(|owner| owner.controller == Some(true));
    let for_target = target_pod::for_target(object, target);
    let wanted = split(&requests(&for_target.spec.clone().unwrap_or_default()));
    let terms = terms(object);
    PodView {
        pod: Some(PodRef {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }),
        uid: meta.uid.as_deref().map(PodUid::from),
        node: spec.node_name.clone().unwrap_or_default(),
        phase: status.phase.clone().unwrap_or_default(),
        ip: status.pod_ip.clone().unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
        restored_by: meta
            .annotations
            .as_ref()
            .and_then(|a| a.get(MIGRATION_ANNOTATION))
            .map(|id| MigrationId::from(id.as_str())),
        controller: controller.map(|owner| (owner.kind.clone(), owner.name.clone())),
        mirror: meta
            .annotations
            .as_ref()
            .is_some_and(|a| a.contains_key("kubernetes.io/config.mirror")),
        host_network: spec.host_network == Some(true),
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        share_process_namespace: spec.share_process_namespace == Some(true),
        user_namespace: spec.host_users == Some(false),
        ephemeral_containers: debuggers(&status),
        volumes: volumes(&spec),
        containers: containers(object, &spec, &status),
        init_containers: finished_inits(&spec),
        node_selector: spec.node_selector.clone().unwrap_or_default(),
        node_affinity: node_affinity(&spec),
        affinity: terms.affinity,
        anti_affinity: terms.anti_affinity,
        unevaluated_constraints: terms.unevaluated,
        tolerations: spec.tolerations.iter().flatten().map(toleration).collect(),
        cpu_request_milli: wanted.cpu_milli,
        memory_request_bytes: wanted.memory_bytes,
        other_requests: wanted.other,
        grace_seconds: spec
            .termination_grace_period_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .unwrap_or(30),
        labels: meta.labels.clone().unwrap_or_default(),
        finalizers: target_pod::foreign_finalizers(object),
        runtime_class: spec.runtime_class_name.clone(),
        host_ports: host_ports(object),
        // A pod that can't be written down can't be planned; the planner says so.
        target_pod: serde_json::to_string(&for_target).unwrap_or_default(),
    }
}

/// Debug containers that have ended are in nobody's way.
fn debuggers(status: &PodStatus) -> Vec<String> {
    let running = status.ephemeral_container_statuses.iter().flatten();
    let running = running.filter(|s| {
        s.state
            .as_ref()
            .is_none_or(|state| state.terminated.is_none())
    });
    running.map(|s| s.name.clone()).collect()
}

/// Name and kind. The kind is whatever field beside the name is set, so a kind that Kubernetes adds later is named,
/// too, and refused.
fn volumes(spec: &PodSpec) -> Vec<(String, String)> {
    let kind = |volume| match serde_json::to_value(volume) {
        Ok(serde_json::Value::Object(fields)) => fields
            .into_iter()
            .map(|(key, _)| key)
            .find(|key| key != "name"),
        Ok(_) | Err(_) => None,
    };
    let volumes = spec.volumes.iter().flatten();
    volumes
        .map(|v| {
            (
                v.name.clone(),
                kind(v).unwrap_or_else(|| "unknown".to_owned()),
            )
        })
        .collect()
}

fn finished_inits(spec: &PodSpec) -> Vec<String> {
    let inits = spec.init_containers.iter().flatten();
    inits
        .filter(|c| !target_pod::is_sidecar(c))
        .map(|c| c.name.clone())
        .collect()
}

fn containers(object: &Pod, spec: &PodSpec, status: &PodStatus) -> Vec<ContainerView> {
    let recorded = origin::recorded(object);
    let statuses: Vec<_> = [&status.init_container_statuses, &status.container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    target_pod::moving(spec)
        .into_iter()
        .map(|(container, sidecar)| {
            let status = statuses.iter().find(|s| s.name == container.name).copied();
            let origin = origin::of(container, status, &recorded);
            let running = status
                .and_then(|s| s.state.as_ref())
                .is_some_and(|s| s.running.is_some());
            ContainerView {
                name: container.name.clone(),
                sidecar,
                image: origin.image,
                image_digest: origin.digest,
                container_id: status
                    .filter(|_| running)
                    .map(runtime_id)
                    .unwrap_or_default(),
                running,
                not_running: status.map(not_running).unwrap_or_default(),
                tty: container.tty == Some(true),
                stdin: container.stdin == Some(true),
                devices: devices(container),
                liveness_deadline_ms: deadline_ms(container, status),
            }
        })
        .collect()
}

fn runtime_id(status: &ContainerStatus) -> String {
    let id = status.container_id.as_deref().unwrap_or_default();
    id.split_once("://").map_or(id, |(_, id)| id).to_owned()
}

fn not_running(status: &ContainerStatus) -> String {
    let Some(state) = &status.state else {
        return String::new();
    };
    let waiting = state.waiting.as_ref().and_then(|w| w.reason.clone());
    let ended = || {
        state
            .terminated
            .as_ref()
            .map(|t| format!("it ended with {}", t.exit_code))
    };
    waiting.or_else(ended).unwrap_or_default()
}

/// Block volumes, device claims, and what device plugins hand out: their resources have a domain in front.
fn devices(container: &Container) -> Vec<String> {
    let volumes = container.volume_devices.iter().flatten();
    let volumes = volumes.map(|device| device.name.clone());
    let resources = container.resources.as_ref();
    let claims = resources
        .and_then(|r| r.claims.as_ref())
        .into_iter()
        .flatten();
    let claims = claims.map(|claim| claim.name.clone());
    let plugged = resources
        .and_then(|r| r.limits.as_ref())
        .into_iter()
        .flatten();
    let plugged = plugged
        .map(|(name, _)| name)
        .filter(|name| name.contains('/'));
    volumes.chain(claims).chain(plugged.cloned()).collect()
}

/// The worst case: a probe is due the moment the container falls silent. A startup probe takes the liveness probe's
/// place until it has succeeded. The kernel answers for a listening socket also while its process is frozen.
fn deadline_ms(container: &Container, status: Option<&ContainerStatus>) -> Option<u64> {
    let starting = status.and_then(|s| s.started) != Some(true);
    let startup = container.startup_probe.as_ref().filter(|_| starting);
    let probe: &Probe = startup.or(container.liveness_probe.as_ref())?;
    if probe.tcp_socket.is_some() {
        return None;
    }
    let or = |value: Option<i32>, default: u64| {
        value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default)
    };
    let (threshold, period, timeout) = (
        or(probe.failure_threshold, 3),
        or(probe.period_seconds, 10),
        or(probe.timeout_seconds, 1),
    );
    let silent = threshold.saturating_sub(1).saturating_mul(period);
    Some(silent.saturating_add(timeout).saturating_mul(1000))
}

fn toleration(toleration: &Toleration) -> TolerationView {
    TolerationView {
        key: toleration.key.clone().unwrap_or_default(),
        operator: toleration.operator.clone().unwrap_or_default(),
        value: toleration.value.clone().unwrap_or_default(),
        effect: toleration.effect.clone().unwrap_or_default(),
    }
}

fn node_affinity(spec: &PodSpec) -> Vec<NodeTermView> {
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| {
        a.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let terms = required.map(|selector| selector.node_selector_terms.as_slice());
    let expression = |wanted: &NodeSelectorRequirement| ExpressionView {
        key: wanted.key.clone(),
        operator: wanted.operator.clone(),
        values: wanted.values.clone().unwrap_or_default(),
    };
    terms
        .unwrap_or_default()
        .iter()
        .map(|term| {
            let both = [&term.match_expressions, &term.match_fields];
            both.into_iter()
                .flatten()
                .flatten()
                .map(expression)
                .collect()
        })
        .collect()
}

/// What a pod requires of its neighbours.
#[derive(Default)]
pub struct Terms {
    /// Beside these.
    pub affinity: Vec<PodTermView>,
    /// Apart from these.
    pub anti_affinity: Vec<PodTermView>,
    /// Not evaluated, in words.
    pub unevaluated: Vec<String>,
}

/// Required affinity, anti-affinity and spreading.
#[must_use]
pub fn terms(object: &Pod) -> Terms {
    let mut terms = Terms::default();
    let Some(spec) = &object.spec else {
        return terms;
    };
    let own = object.metadata.namespace.clone().unwrap_or_default();
    let affinity = spec.affinity.clone().unwrap_or_default();
    let beside = affinity
        .pod_affinity
        .and_then(|a| a.required_during_scheduling_ignored_during_execution);
    let apart = affinity
        .pod_anti_affinity
        .and_then(|a| a.required_during_scheduling_ignored_during_execution);
    let mut sort =
        |wanted: Option<Vec<PodAffinityTerm>>, what: &str, into: &mut Vec<PodTermView>| {
            for term in wanted.into_iter().flatten() {
                if term.namespace_selector.is_some() {
                    terms
                        .unevaluated
                        .push(format!("{what} with a namespaceSelector"));
                } else {
                    into.push(pod_term(&term, &own));
                }
            }
        };
    let (mut affinity, mut anti_affinity) = (Vec::new(), Vec::new());
    sort(beside, "pod affinity", &mut affinity);
    sort(apart, "pod anti-affinity", &mut anti_affinity);
    terms.affinity = affinity;
    terms.anti_affinity = anti_affinity;
    let spread = spec.topology_spread_constraints.iter().flatten();
    let strict = spread.filter(|s| s.when_unsatisfiable == "DoNotSchedule");
    terms
        .unevaluated
        .extend(strict.map(|s| format!("topology spread by {}", s.topology_key)));
    terms
}

fn pod_term(term: &PodAffinityTerm, own: &str) -> PodTermView {
    let namespaces = term.namespaces.clone().unwrap_or_default();
    PodTermView {
        selector: selector(term.label_selector.as_ref()),
        namespaces: if namespaces.is_empty() {
            vec![own.to_owned()]
        } else {
            namespaces
        },
        topology_key: term.topology_key.clone(),
    }
}

/// No selector matches no pod, an empty one every pod.
fn selector(selector: Option<&LabelSelector>) -> Vec<ExpressionView> {
    let expression = |key: &str, operator: &str, values: Vec<String>| ExpressionView {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values,
    };
    let Some(selector) = selector else {
        return vec![expression("", "In", Vec::new())];
    };
    let labels = selector.match_labels.iter().flatten();
    let labels = labels.map(|(key, value)| expression(key, "In", vec![value.clone()]));
    let wanted = selector.match_expressions.iter().flatten();
    let wanted =
        wanted.map(|e| expression(&e.key, &e.operator, e.values.clone().unwrap_or_default()));
    labels.chain(wanted).collect()
}

/// Ports of the node that it takes.
#[must_use]
pub fn host_ports(object: &Pod) -> Vec<HostPortView> {
    let spec = object.spec.clone().unwrap_or_default();
    target_pod::moving(&spec)
        .into_iter()
        .flat_map(|(container, _)| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(HostPortView {
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                ip: port
                    .host_ip
                    .clone()
                    .filter(|ip| !ip.is_empty())
                    .unwrap_or_else(|| "0.0.0.0".to_owned()),
                port: port
                    .host_port
                    .and_then(|p| u16::try_from(p).ok())
                    .filter(|p| *p > 0)?,
            })
        })
        .collect()
}

/// What the scheduler counts for a pod: the larger of what runs together and what each init container needs beside the
/// sidecars started before it; the pod's own figures where it has any; and the overhead.
#[must_use]
pub fn requests(spec: &PodSpec) -> Amounts {
    let of = |c: &Container| amounts(c.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for init in spec.init_containers.iter().flatten() {
        let mut now = sidecars.clone();
        add(&mut now, &of(init));
        raise(&mut peak, &now);
        if target_pod::is_sidecar(init) {
            sidecars = now;
        }
    }
    let mut sum = sidecars;
    for container in &spec.containers {
        add(&mut sum, &of(container));
    }
    raise(&mut sum, &peak);
    sum.extend(amounts(
        spec.resources.as_ref().and_then(|r| r.requests.as_ref()),
    ));
    add(&mut sum, &amounts(spec.overhead.as_ref()));
    sum
}

/// Amounts in the planner's units.
#[derive(Debug, PartialEq)]
pub struct Split {
    /// Milli-CPUs.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// The rest, in whole units.
    pub other: BTreeMap<String, u64>,
}

/// Thousandths to the planner's units.
#[must_use]
pub fn split(amounts: &Amounts) -> Split {
    let whole = |milli: u64| milli.div_ceil(1000);
    let named = |name: &str| amounts.get(name).copied().unwrap_or(0);
    Split {
        cpu_milli: named("cpu"),
        memory_bytes: whole(named("memory")),
        other: amounts
            .iter()
            .filter(|(name, _)| !["cpu", "memory"].contains(&name.as_str()))
            .map(|(name, milli)| (name.clone(), whole(*milli)))
            .collect(),
    }
}

#[cfg(test)]
mod tests;
