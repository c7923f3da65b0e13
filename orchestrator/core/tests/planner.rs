//! Every refusal, one at a time: a view in which the pod can be moved, one thing changed, the sentence the user reads.
#![allow(
    clippy::unwrap_used,
    reason = "what is missing here is a mistake in the test"
)]

use std::collections::BTreeMap;

use orchestrator_core::{
    id::{NodeName, PodRef},
    plan::{Plan, Request},
    planner::{another_round, plan},
    refusal::Finding,
    view::{
        ContainerView, ExpressionView, HostPortView, InspectionView, NodeView, PodTermView,
        PodView, TaintView, TargetPodView, TolerationView, View, WorkerView,
    },
};

const MIB: u64 = 1 << 20;

fn pod_ref(name: &str) -> PodRef {
    PodRef {
        namespace: "default".into(),
        name: name.into(),
    }
}

fn request() -> Request {
    Request {
        pod: pod_ref("kuard"),
        target: "node2".into(),
        freeze_max_ms: None,
        timeout_ms: None,
        dry_run: false,
        rounds_max: None,
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn node(name: &str) -> NodeView {
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

fn container(name: &str) -> ContainerView {
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
fn good() -> View {
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
        inspection: Ok(InspectionView {
            warnings: vec![Finding::new("InodeNumbers", "inode numbers change", "")],
            archive_bytes: 150_000_000,
            ..InspectionView::default()
        }),
    }
}

fn pod(view: &mut View) -> &mut PodView {
    view.pod.as_mut().unwrap()
}

fn first(view: &mut View) -> &mut ContainerView {
    &mut pod(view).containers[0]
}

fn source(view: &mut View) -> &mut NodeView {
    &mut view.nodes[0]
}

fn target(view: &mut View) -> &mut NodeView {
    &mut view.nodes[1]
}

fn worker(node: &mut NodeView) -> &mut WorkerView {
    node.worker.as_mut().unwrap()
}

fn seen(view: &mut View) -> &mut InspectionView {
    view.inspection.as_mut().unwrap()
}

fn expression(key: &str, operator: &str, values: &[&str]) -> ExpressionView {
    ExpressionView {
        key: key.into(),
        operator: operator.into(),
        values: values.iter().map(|v| (*v).to_owned()).collect(),
    }
}

fn term(topology: &str, app: &str) -> PodTermView {
    PodTermView {
        selector: vec![expression("app", "In", &[app])],
        namespaces: vec!["default".into()],
        topology_key: topology.into(),
    }
}

fn port(ip: &str) -> HostPortView {
    HostPortView {
        protocol: "TCP".into(),
        ip: ip.into(),
        port: 8080,
    }
}

fn taint(view: &mut View, effect: &str) {
    target(view).taints = vec![TaintView {
        key: "dedicated".into(),
        value: "db".into(),
        effect: effect.into(),
    }];
}

fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> TolerationView {
    TolerationView {
        key: key.into(),
        operator: operator.into(),
        value: value.into(),
        effect: effect.into(),
    }
}

fn decide(change: impl FnOnce(&mut View)) -> Result<Plan, Vec<Finding>> {
    let mut view = good();
    change(&mut view);
    plan(&request(), &view)
}

fn sentences(decision: Result<Plan, Vec<Finding>>) -> Vec<String> {
    decision
        .expect_err("it should be refused")
        .into_iter()
        .map(|f| format!("{}: {}", f.code, f.message))
        .collect()
}

/// Refused for exactly this reason.
fn refused(change: impl FnOnce(&mut View), sentence: &str) {
    assert_eq!(sentences(decide(change)), [sentence]);
}

fn allowed(change: impl FnOnce(&mut View)) {
    assert_eq!(decide(change).map(|_| ()), Ok(()));
}

#[test]
fn the_good_view_plans_completely() {
    let plan = decide(|_| {}).unwrap();
    assert_eq!(
        (plan.source.0.as_str(), plan.target.0.as_str()),
        ("node1", "node2")
    );
    assert_eq!(
        (plan.uid.0.as_str(), plan.pod_ip.as_str()),
        ("uid-1", "10.0.1.5")
    );
    let names: Vec<_> = plan
        .containers
        .iter()
        .map(|c| (c.name.as_str(), c.sidecar))
        .collect();
    assert_eq!(
        names,
        [("proxy", true), ("kuard", false)],
        "sidecars start first"
    );
    assert_eq!(plan.containers[1].image_digest, "sha256:kuard");
    assert_eq!(plan.containers[1].container_id, "id-of-kuard");
    assert_eq!(plan.finished_init_containers, ["setup"]);
    assert_eq!(
        (plan.freeze_predicted_ms, plan.freeze_budget_ms),
        (2_500, 60_000)
    );
    assert_eq!(
        (plan.timeout_ms, plan.archive_predicted_bytes),
        (300_000, 150_000_000)
    );
    assert_eq!(plan.warnings[0].code, "InodeNumbers", "warnings come along");
    assert_eq!(plan.target_pod, "{}");
}

#[test]
fn all_reasons_are_shown_together() {
    let all = sentences(decide(|v| {
        pod(v).host_network = true;
        first(v).tty = true;
        target(v).cordoned = true;
        worker(target(v)).cpu_flags.clear();
        worker(source(v)).free_bytes = 0;
    }));
    let codes: Vec<_> = all.iter().filter_map(|s| s.split(':').next()).collect();
    assert_eq!(
        codes,
        [
            "HostNetwork",
            "Tty",
            "TargetCordoned",
            "MissingCpuFeatures",
            "SourceDiskTooSmall"
        ]
    );
}

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

#[test]
fn taints_keep_pods_away_that_do_not_tolerate_them() {
    for effect in ["NoSchedule", "NoExecute"] {
        refused(
            |v| taint(v, effect),
            &format!(
                "TaintNotTolerated: node node2 has the taint dedicated=db:{effect}, which the pod does not tolerate"
            ),
        );
    }
    allowed(|v| taint(v, "PreferNoSchedule"));
    let tolerates = |t: TolerationView| {
        decide(|v| {
            taint(v, "NoExecute");
            pod(v).tolerations = vec![t];
        })
        .is_ok()
    };
    assert!(tolerates(toleration("", "Exists", "", "")));
    assert!(tolerates(toleration(
        "dedicated",
        "Exists",
        "",
        "NoExecute"
    )));
    assert!(tolerates(toleration("dedicated", "Equal", "db", "")));
    assert!(!tolerates(toleration("dedicated", "Equal", "web", "")));
    assert!(!tolerates(toleration(
        "dedicated",
        "Exists",
        "",
        "NoSchedule"
    )));
    assert!(!tolerates(toleration("other", "Exists", "", "")));
    assert!(!tolerates(toleration("dedicated", "Lt", "db", "")));
}

#[test]
fn selectors_and_node_affinity_must_allow_the_target() {
    refused(
        |v| pod(v).node_selector = labels(&[("disk", "ssd")]),
        "NodeSelectorMismatch: the pod's nodeSelector wants disk=ssd, node node2 has it not",
    );
    let affinity = |terms: Vec<Vec<ExpressionView>>| decide(|v| pod(v).node_affinity = terms);
    let no = "NodeAffinityMismatch: the pod's required node affinity does not allow node node2";
    for expression in [
        expression("zone", "In", &["b", "c"]),
        expression("zone", "NotIn", &["a"]),
        expression("disk", "Exists", &[]),
        expression("zone", "DoesNotExist", &[]),
        expression("cores", "Gt", &["8"]),
        expression("cores", "Lt", &["8"]),
        expression("metadata.name", "In", &["node1"]),
    ] {
        assert_eq!(sentences(affinity(vec![vec![expression]])), [no]);
    }
    assert_eq!(
        sentences(affinity(vec![vec![]])),
        [no],
        "an empty term matches nothing"
    );
    for expression in [
        expression("zone", "In", &["a", "c"]),
        expression("disk", "NotIn", &["hdd"]),
        expression("cores", "Gt", &["7"]),
        expression("metadata.name", "In", &["node2"]),
    ] {
        assert!(affinity(vec![vec![expression]]).is_ok());
    }
    let (yes, wrong) = (
        expression("zone", "Exists", &[]),
        expression("disk", "Exists", &[]),
    );
    assert!(
        affinity(vec![vec![wrong.clone()], vec![yes.clone()]]).is_ok(),
        "terms are alternatives"
    );
    assert!(
        affinity(vec![vec![wrong, yes]]).is_err(),
        "expressions are not"
    );
    refused(
        |v| pod(v).unevaluated_constraints = vec!["spread over zone".into()],
        "ConstraintNotEvaluated: the pod has a required constraint that this version cannot evaluate: spread over zone",
    );
}

#[test]
fn neighbours_are_respected_in_both_directions() {
    let host = "kubernetes.io/hostname";
    refused(
        |v| pod(v).affinity = vec![term(host, "cache")],
        "PodAffinityMismatch: the pod must run beside a pod that node node2 does not have",
    );
    allowed(|v| pod(v).affinity = vec![term(host, "other")]);
    refused(
        |v| pod(v).anti_affinity = vec![term(host, "other")],
        "PodAntiAffinityMismatch: the pod must not share a node with default/neighbour, and they would on node node2",
    );
    allowed(|v| pod(v).anti_affinity = vec![term(host, "kuard")]);
    allowed(|v| {
        pod(v).anti_affinity = vec![PodTermView {
            namespaces: vec!["elsewhere".into()],
            ..term(host, "other")
        }];
    });
    refused(
        |v| v.target_pods[0].anti_affinity = vec![term(host, "kuard")],
        "PodAntiAffinityMismatch: default/neighbour must not share a node with this one, and they would on node node2",
    );
    allowed(|v| v.target_pods[0].anti_affinity = vec![term("zone", "kuard")]);
    allowed(|v| pod(v).anti_affinity = vec![term("zone", "other")]);
    refused(
        |v| pod(v).anti_affinity = vec![term("rack", "other")],
        "ConstraintNotEvaluated: the pod has a required constraint that this version cannot evaluate: pod affinity by rack",
    );
}

#[test]
fn host_ports_must_be_free() {
    let taken = "HostPortTaken: host port 8080/TCP of node node2 is taken by default/neighbour";
    for (mine, theirs) in [
        ("0.0.0.0", "10.1.1.1"),
        ("10.1.1.1", "0.0.0.0"),
        ("10.1.1.1", "10.1.1.1"),
    ] {
        refused(
            |v| {
                pod(v).host_ports = vec![port(mine)];
                v.target_pods[0].host_ports = vec![port(theirs)];
            },
            taken,
        );
    }
    allowed(|v| {
        pod(v).host_ports = vec![port("10.1.1.1")];
        v.target_pods[0].host_ports = vec![port("10.1.1.2")];
    });
}

#[test]
fn the_checkpoint_must_fit_on_both_nodes() {
    refused(
        |v| worker(source(v)).free_bytes = 599_999_999,
        "SourceDiskTooSmall: the checkpoint of 150000000 bytes needs 4 times its size on node node1, 600000000 bytes; \
         599999999 are free",
    );
    refused(
        |v| worker(target(v)).free_bytes = 449_999_999,
        "TargetDiskTooSmall: the checkpoint of 150000000 bytes needs 3 times its size on node node2, 450000000 bytes; \
         449999999 are free",
    );
    allowed(|v| worker(target(v)).free_bytes = 450_000_000);
}

#[test]
fn the_freeze_must_fit_its_budget() {
    refused(
        |v| first(v).liveness_deadline_ms = Some(3_499),
        "LivenessDeadlineTooShort: the freeze will take about 2500 ms, the liveness probe of container kuard bears 2499 ms",
    );
    let plan = decide(|v| first(v).liveness_deadline_ms = Some(3_500)).unwrap();
    assert_eq!(plan.freeze_budget_ms, 2_500, "the deadline less a second");
    let limited = |limit_ms| {
        let request = Request {
            freeze_max_ms: Some(limit_ms),
            ..request()
        };
        plan_of(&request)
    };
    assert_eq!(
        sentences(limited(2_499)),
        ["FreezeLimitTooShort: the freeze will take about 2500 ms, 2499 ms are allowed"]
    );
    assert_eq!(limited(2_500).unwrap().freeze_budget_ms, 2_500);
    assert_eq!(
        limited(90_000).unwrap().freeze_budget_ms,
        90_000,
        "the user may allow more than the default"
    );
    refused(
        |v| {
            seen(v).archive_bytes = 15_000_000_000;
            worker(source(v)).free_bytes = u64::MAX;
            worker(target(v)).free_bytes = u64::MAX;
        },
        "FreezeTooLong: the freeze will take about 101500 ms, without a word from you it may take 60000 ms",
    );
}

#[test]
fn rounds_are_planned_where_they_pay_and_both_nodes_have_room() {
    let rounds = |asked: Option<u32>, change: fn(&mut View)| {
        let mut view = good();
        change(&mut view);
        let request = Request {
            rounds_max: asked,
            ..request()
        };
        plan(&request, &view).unwrap().rounds_max
    };
    assert_eq!(rounds(None, |_| ()), 3, "150 MB");
    let small = |v: &mut View| seen(v).archive_bytes = 143_999_999;
    assert_eq!(rounds(None, small), 0);
    assert_eq!(rounds(Some(2), small), 2, "the user's word");
    assert_eq!(rounds(Some(9), small), 5, "within reason");
    assert_eq!(rounds(Some(0), |_| ()), 0);
    // One copy more than the checkpoint needs anyway: 4 on the source, 3 on the target.
    let source_full = |v: &mut View| worker(source(v)).free_bytes = 749_999_999;
    let target_full = |v: &mut View| worker(target(v)).free_bytes = 599_999_999;
    for full in [source_full, target_full] {
        assert_eq!(rounds(None, full), 0);
        assert_eq!(rounds(Some(1), full), 0);
    }
}

#[test]
fn another_round_is_made_after_a_long_one_or_by_the_users_word() {
    let planned = plan(&request(), &good()).unwrap();
    let again = |asked: Option<u32>, rounds: usize, took_ms: u64| {
        let request = Request {
            rounds_max: asked,
            ..request()
        };
        another_round(&planned, &request, rounds, took_ms)
    };
    assert!(again(None, 1, 10_000) && !again(None, 1, 9_999));
    assert!(again(Some(3), 2, 1));
    assert!(!again(Some(3), 3, 60_000), "as many as planned");
}

fn plan_of(request: &Request) -> Result<Plan, Vec<Finding>> {
    plan(request, &good())
}

#[test]
fn every_refusal_has_a_code_and_a_sentence() {
    let findings = decide(|v| {
        pod(v).host_pid = true;
        pod(v).affinity = vec![term("rack", "x")];
        target(v).ready = false;
        target(v).pods = 0;
        worker(target(v)).free_bytes = 0;
    })
    .unwrap_err();
    assert_eq!(findings.len(), 5);
    for Finding {
        code,
        message,
        remedy,
    } in findings
    {
        assert!(
            code.chars().all(char::is_alphanumeric) && !message.is_empty() && !remedy.is_empty()
        );
    }
}
