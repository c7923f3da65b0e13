use serde_json::{Value, json};

use super::*;

fn view(spec: Value, status: Value) -> PodView {
    let object = json!({ "metadata": { "name": "kuard", "namespace": "shop", "uid": "uid-1" },
        "spec": spec, "status": status });
    translate(&serde_json::from_value(object).unwrap(), &"node2".into())
}

fn with_probe(probe: Value, started: bool) -> Option<u64> {
    let mut container = json!({ "name": "a" });
    for (key, value) in probe.as_object().unwrap() {
        container[key] = value.clone();
    }
    let status = json!({ "containerStatuses": [{ "name": "a", "image": "", "imageID": "", "ready": true,
        "restartCount": 0, "started": started }] });
    view(json!({ "containers": [container] }), status).containers[0].liveness_deadline_ms
}

#[test]
fn what_the_planner_asks_for_is_found() {
    let view = view(
        json!({ "nodeName": "node1", "hostNetwork": true, "hostUsers": false, "runtimeClassName": "kata",
            "volumes": [{ "name": "a", "emptyDir": {} }, { "name": "b", "configMap": { "name": "x" } }],
            "initContainers": [{ "name": "setup" }, { "name": "proxy", "restartPolicy": "Always" }],
            "containers": [{ "name": "kuard", "image": "r/kuard:1", "tty": true,
                "ports": [{ "containerPort": 80, "hostPort": 8080 }, { "containerPort": 81 }],
                "resources": { "limits": { "example.com/card": "1" }, "requests": { "cpu": "100m", "memory": "64Mi" } } }] }),
        json!({ "phase": "Running", "podIP": "10.0.1.5",
            "initContainerStatuses": [{ "name": "proxy", "image": "", "imageID": "", "ready": false, "restartCount": 1,
                "containerID": "containerd://old", "state": { "waiting": { "reason": "CrashLoopBackOff" } } }],
            "containerStatuses": [{ "name": "kuard", "image": "", "imageID": "r/kuard@sha256:11", "ready": true,
                "restartCount": 0, "containerID": "containerd://c1", "state": { "running": {} } }] }),
    );
    assert_eq!(
        view.volumes,
        [
            ("a".into(), "emptyDir".into()),
            ("b".into(), "configMap".into())
        ]
    );
    assert_eq!(view.init_containers, ["setup"]);
    let [proxy, kuard] = &view.containers[..] else {
        panic!("two containers move");
    };
    assert!(proxy.sidecar && !proxy.running && proxy.container_id.is_empty());
    assert_eq!(proxy.not_running, "CrashLoopBackOff");
    assert_eq!(
        (kuard.container_id.as_str(), kuard.image_digest.as_str()),
        ("c1", "sha256:11")
    );
    assert!(kuard.running && kuard.tty);
    assert_eq!(kuard.devices, ["example.com/card"]);
    assert_eq!((view.host_ports.len(), view.host_ports[0].port), (1, 8080));
    assert_eq!(
        (view.cpu_request_milli, view.memory_request_bytes),
        (100, 64 << 20)
    );
    assert!(view.host_network && view.user_namespace);
    assert_eq!(
        (view.runtime_class.as_deref(), view.grace_seconds),
        (Some("kata"), 30)
    );
}

#[test]
fn the_liveness_deadline_is_the_worst_case() {
    let http = |threshold, period, timeout| {
        json!({ "httpGet": { "port": 80 }, "failureThreshold": threshold, "periodSeconds": period,
            "timeoutSeconds": timeout })
    };
    assert_eq!(with_probe(json!({}), true), None);
    assert_eq!(
        with_probe(json!({ "livenessProbe": http(3, 10, 1) }), true),
        Some(21_000)
    );
    assert_eq!(
        with_probe(json!({ "livenessProbe": http(1, 10, 2) }), true),
        Some(2_000)
    );
    let tcp = json!({ "tcpSocket": { "port": 80 } });
    assert_eq!(
        with_probe(json!({ "livenessProbe": tcp }), true),
        None,
        "the kernel answers"
    );
    let both = json!({ "livenessProbe": http(3, 10, 1), "startupProbe": http(2, 5, 1) });
    assert_eq!(with_probe(both.clone(), true), Some(21_000));
    assert_eq!(with_probe(both, false), Some(6_000));
}

#[test]
fn required_constraints_are_read_and_preferred_ones_are_not() {
    let term = |key: &str| {
        json!({ "labelSelector": { "matchLabels": { "app": "db" },
        "matchExpressions": [{ "key": "tier", "operator": "Exists" }] }, "topologyKey": key })
    };
    let mut elsewhere = term("zone");
    elsewhere["namespaceSelector"] = json!({});
    let view = view(
        json!({ "containers": [], "affinity": {
            "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "disk", "operator": "In", "values": ["ssd"] }],
                  "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["node2"] }] }] } },
            "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [term("host"), elsewhere] },
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [{ "topologyKey": "host", "namespaces": ["x"] }],
                "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 1, "podAffinityTerm": term("host") }] } },
            "topologySpreadConstraints": [
                { "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule" },
                { "maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "ScheduleAnyway" }] }),
        json!({}),
    );
    assert_eq!(
        view.node_affinity[0].len(),
        2,
        "labels and fields are one term"
    );
    assert_eq!(view.affinity.len(), 1);
    assert_eq!(
        (
            view.affinity[0].selector.len(),
            &view.affinity[0].namespaces
        ),
        (2, &vec!["shop".to_owned()])
    );
    assert_eq!(view.anti_affinity.len(), 1);
    assert_eq!(
        view.anti_affinity[0].selector[0].values,
        Vec::<String>::new(),
        "no selector matches nothing"
    );
    assert_eq!(view.anti_affinity[0].namespaces, ["x"]);
    assert_eq!(
        view.unevaluated_constraints,
        [
            "pod affinity with a namespaceSelector",
            "topology spread by zone"
        ]
    );
}

#[test]
fn requests_are_counted_as_the_scheduler_counts_them() {
    let cpu = |name: &str, cpu: &str, more: Value| {
        let mut container = json!({ "name": name, "resources": { "requests": { "cpu": cpu } } });
        for (key, value) in more.as_object().unwrap() {
            container[key] = value.clone();
        }
        container
    };
    let sidecar = cpu("proxy", "200m", json!({ "restartPolicy": "Always" }));
    let of = |inits: Value, more: Value| {
        let mut spec = json!({ "containers": [cpu("a", "100m", json!({})), cpu("b", "100m", json!({}))],
            "initContainers": inits });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        requests(&serde_json::from_value(spec).unwrap())["cpu"]
    };
    assert_eq!(of(json!([]), json!({})), 200);
    assert_eq!(
        of(json!([sidecar.clone()]), json!({})),
        400,
        "sidecars run beside"
    );
    let (small, big) = (cpu("i", "50m", json!({})), cpu("i", "500m", json!({})));
    assert_eq!(
        of(json!([small]), json!({})),
        200,
        "init containers run before"
    );
    assert_eq!(
        of(json!([sidecar, big]), json!({})),
        700,
        "beside earlier sidecars"
    );
    assert_eq!(of(json!([]), json!({ "overhead": { "cpu": "10m" } })), 210);
    assert_eq!(
        of(
            json!([]),
            json!({ "resources": { "requests": { "cpu": "1" } } })
        ),
        1000,
        "the pod's own figure"
    );
}

#[test]
fn debug_containers_count_while_they_run() {
    let state = |state: Value| {
        json!({ "name": "debug", "image": "", "imageID": "", "ready": false,
        "restartCount": 0, "state": state })
    };
    let names = |s: Value| {
        view(
            json!({ "containers": [] }),
            json!({ "ephemeralContainerStatuses": [s] }),
        )
        .ephemeral_containers
    };
    assert_eq!(names(state(json!({ "running": {} }))), ["debug"]);
    assert!(names(state(json!({ "terminated": { "exitCode": 0 } }))).is_empty());
}
