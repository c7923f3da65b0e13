//! A view in which the pod can be moved, what is changed in it, and what is said of that.

use std::collections::BTreeMap;

use orchestrator_core::{
    id::{NodeName, PodRef},
    plan::{Plan, Request},
    planner::plan,
    refusal::Finding,
    view::{
        ContainerView, ExpressionView, HostPortView, InspectionView, NodeView, PodTermView,
        PodView, TaintView, TargetPodView, TolerationView, View, WorkerView,
    },
};

pub const MIB: u64 = 1 << 20;

pub fn pod_ref(name: &str) -> PodRef {
    PodRef {
        namespace: "default".into(),
        name: name.into(),
    }
}

pub fn request() -> Request {
    Request {
        pod: pod_ref("kuard"),
        target: "node2".into(),
        freeze_max_ms: None,
        timeout_ms: None,
        dry_run: false,
        rounds_max: None,
        keep_checkpoint_ms: None,
    }
}

pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

pub fn node(name: &str) -> NodeView {
    NodeView {
        name: Some(NodeName(name.into())),
        ready: true,
        labels: labels(&[
            ("kubernetes.io/hostname", name),
            ("zone", "a"),
            ("rack", name),
            ("cores", "8"),
        ]),
        cpu_milli: 2000,
        memory_bytes: 1024 * MIB,
        pods: 110,
        other: BTreeMap::from([("example.com/card".into(), 1)]),
        worker: Some(WorkerView {
            architecture: "amd64".into(),
            cgroup_version: 2,
            cpu_flags: vec!["sse2".into(), "avx2".into(), "avx512f".into()],
            runtime: "containerd 2.1.9".into(),
            free_bytes: 10_000 * MIB,
            ..WorkerView::default()
        }),
        ..NodeView::default()
    }
}

pub fn container(name: &str) -> ContainerView {
    ContainerView {
        name: name.into(),
        image: format!("registry.example/{name}:1"),
        image_digest: format!("sha256:{name}"),
        container_id: format!("id-of-{name}"),
        running: true,
        ..ContainerView::default()
    }
}

/// The pod kuard on node1 can be moved to node2.
pub fn good() -> View {
    View {
        pod: Some(PodView {
            pod: Some(pod_ref("kuard")),
            uid: Some("uid-1".into()),
            node: "node1".into(),
            phase: "Running".into(),
            ip: "10.0.1.5".into(),
            containers: vec![
                container("kuard"),
                ContainerView {
                    sidecar: true,
                    ..container("proxy")
                },
            ],
            init_containers: vec!["setup".into()],
            volumes: ["configMap", "secret", "projected", "downwardAPI"]
                .map(|kind| (format!("a-{kind}"), kind.to_owned()))
                .to_vec(),
            cpu_request_milli: 500,
            memory_request_bytes: 128 * MIB,
            other_requests: BTreeMap::from([("example.com/card".into(), 1)]),
            labels: labels(&[("app", "kuard")]),
            target_pod: "{}".into(),
            ..PodView::default()
        }),
        nodes: vec![node("node1"), node("node2")],
        target_pods: vec![TargetPodView {
            pod: pod_ref("neighbour"),
            labels: labels(&[("app", "other")]),
            anti_affinity: Vec::new(),
            host_ports: Vec::new(),
        }],
        base: None,
        inspection: Ok(InspectionView {
            warnings: vec![Finding::new("InodeNumbers", "inode numbers change", "")],
            archive_bytes: 150_000_000,
            ..InspectionView::default()
        }),
    }
}

pub fn pod(view: &mut View) -> &mut PodView {
    view.pod.as_mut().unwrap()
}

pub fn first(view: &mut View) -> &mut ContainerView {
    &mut pod(view).containers[0]
}

pub fn source(view: &mut View) -> &mut NodeView {
    &mut view.nodes[0]
}

pub fn target(view: &mut View) -> &mut NodeView {
    &mut view.nodes[1]
}

pub fn worker(node: &mut NodeView) -> &mut WorkerView {
    node.worker.as_mut().unwrap()
}

pub fn seen(view: &mut View) -> &mut InspectionView {
    view.inspection.as_mut().unwrap()
}

pub fn expression(key: &str, operator: &str, values: &[&str]) -> ExpressionView {
    ExpressionView {
        key: key.into(),
        operator: operator.into(),
        values: values.iter().map(|v| (*v).to_owned()).collect(),
    }
}

pub fn term(topology: &str, app: &str) -> PodTermView {
    PodTermView {
        selector: vec![expression("app", "In", &[app])],
        namespaces: vec!["default".into()],
        topology_key: topology.into(),
    }
}

pub fn port(ip: &str) -> HostPortView {
    HostPortView {
        protocol: "TCP".into(),
        ip: ip.into(),
        port: 8080,
    }
}

pub fn taint(view: &mut View, effect: &str) {
    target(view).taints = vec![TaintView {
        key: "dedicated".into(),
        value: "db".into(),
        effect: effect.into(),
    }];
}

pub fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> TolerationView {
    TolerationView {
        key: key.into(),
        operator: operator.into(),
        value: value.into(),
        effect: effect.into(),
    }
}

pub fn decide(change: impl FnOnce(&mut View)) -> Result<Plan, Vec<Finding>> {
    let mut view = good();
    change(&mut view);
    plan(&request(), &view)
}

pub fn sentences(decision: Result<Plan, Vec<Finding>>) -> Vec<String> {
    decision
        .expect_err("it should be refused")
        .into_iter()
        .map(|f| format!("{}: {}", f.code, f.message))
        .collect()
}

/// Refused for exactly this reason.
pub fn refused(change: impl FnOnce(&mut View), sentence: &str) {
    assert_eq!(sentences(decide(change)), [sentence]);
}

pub fn allowed(change: impl FnOnce(&mut View)) {
    assert_eq!(decide(change).map(|_| ()), Ok(()));
}
