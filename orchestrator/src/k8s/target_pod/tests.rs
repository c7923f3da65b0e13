use orchestrator_core::{
    id::PodRef,
    plan::{CheckpointVia, Handover, PlannedContainer, RestoreVia},
};
use serde_json::{Value, json};

use super::*;

/// A pod as the API server gives it after its first life began.
fn running() -> Pod {
    let token = json!({ "name": "kube-api-access-x7f2p", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" });
    let config = json!({ "name": "config", "mountPath": "/etc/kuard" });
    serde_json::from_value(json!({
        "metadata": {
            "name": "kuard", "namespace": "shop", "uid": "uid-1", "resourceVersion": "77", "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z", "generateName": "ku",
            "labels": { "app": "kuard" },
            "annotations": { "note": "mine", "cni.projectcalico.org/podIP": "10.0.1.5/32",
                "longshore.dev/migration": "m0", "longshore.dev/held-for": "m1", "longshore.dev/committed": "m0",
                "longshore.dev/images": "{}" },
            "finalizers": ["longshore.dev/hold"],
            "managedFields": [{ "manager": "kubectl" }],
            "ownerReferences": [
                { "apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "c1", "blockOwnerDeletion": true },
                { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r1", "controller": true }],
        },
        "spec": {
            "nodeName": "node1", "serviceAccountName": "web", "serviceAccount": "web", "restartPolicy": "Always",
            "priority": 100, "priorityClassName": "high", "preemptionPolicy": "PreemptLowerPriority",
            "hostname": "kuard", "terminationGracePeriodSeconds": 5,
            "schedulingGates": [{ "name": "g" }],
            "ephemeralContainers": [{ "name": "debug" }],
            "tolerations": [{ "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 300 }],
            "volumes": [{ "name": "config", "configMap": { "name": "c" } },
                { "name": "kube-api-access-x7f2p", "projected": { "sources": [] } }],
            "initContainers": [
                { "name": "setup", "image": "r/setup:1" },
                { "name": "proxy", "image": "r/proxy:1", "restartPolicy": "Always", "volumeMounts": [token] }],
            "containers": [{ "name": "kuard", "image": "r/kuard:1", "imagePullPolicy": "Always",
                "env": [{ "name": "A", "value": "1" }],
                "resources": { "limits": { "memory": "64Mi" } },
                "volumeMounts": [config, token] }],
        },
        "status": { "phase": "Running", "podIP": "10.0.1.5" },
    }))
    .unwrap()
}

fn target() -> Value {
    serde_json::to_value(for_target(&running(), &"node2".into())).unwrap()
}

fn plan() -> Plan {
    let planned = |name: &str, sidecar| PlannedContainer {
        name: name.into(),
        image: format!("r/{name}:1"),
        image_digest: format!("sha256:{name}"),
        container_id: String::new(),
        sidecar,
    };
    Plan {
        pod: PodRef {
            namespace: "shop".into(),
            name: "kuard".into(),
        },
        uid: "uid-1".into(),
        source: "node1".into(),
        target: "node2".into(),
        pod_ip: String::new(),
        containers: vec![planned("proxy", true), planned("kuard", false)],
        finished_init_containers: vec!["setup".into()],
        handover: Handover::Replace,
        checkpoint: CheckpointVia::Kubelet,
        restore: RestoreVia::Image,
        freeze_budget_ms: 0,
        freeze_predicted_ms: 0,
        archive_predicted_bytes: 0,
        rounds_max: 0,
        base: None,
        timeout_ms: 0,
        warnings: Vec::new(),
        target_pod: target().to_string(),
    }
}

fn image(container: &str) -> Image {
    Image {
        container: container.into(),
        reference: format!("localhost:7/{container}:9"),
        image_id: String::new(),
    }
}

#[test]
fn the_target_pod_is_a_pod_that_was_never_seen_before() {
    let meta = target()["metadata"].clone();
    for field in [
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "managedFields",
        "finalizers",
    ] {
        assert_eq!(meta[field], Value::Null, "{field}");
    }
    assert_eq!(target()["status"], Value::Null);
}

#[test]
fn the_target_pod_keeps_what_the_user_gave_it() {
    let target = target();
    let meta = &target["metadata"];
    assert_eq!(
        (&meta["name"], &meta["namespace"]),
        (&json!("kuard"), &json!("shop"))
    );
    assert_eq!(meta["labels"], json!({ "app": "kuard" }));
    assert_eq!(
        meta["annotations"],
        json!({ "note": "mine" }),
        "without notes of the first life and of ours"
    );
    assert_eq!(
        meta["ownerReferences"],
        json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "c1" }])
    );
    let spec = &target["spec"];
    assert_eq!(
        (&spec["serviceAccountName"], &spec["serviceAccount"]),
        (&json!("web"), &json!("web"))
    );
    assert_eq!(spec["tolerations"][0]["tolerationSeconds"], json!(300));
    let container = &spec["containers"][0];
    assert_eq!(container["env"], json!([{ "name": "A", "value": "1" }]));
    assert_eq!(
        container["resources"],
        json!({ "limits": { "memory": "64Mi" } })
    );
    assert_eq!(
        (&spec["hostname"], &spec["terminationGracePeriodSeconds"]),
        (&json!("kuard"), &json!(5))
    );
}

#[test]
fn what_admission_adds_again_is_left_out() {
    let spec = target()["spec"].clone();
    assert_eq!(spec["nodeName"], json!("node2"));
    assert_eq!(
        spec["volumes"],
        json!([{ "name": "config", "configMap": { "name": "c" } }])
    );
    assert_eq!(
        spec["containers"][0]["volumeMounts"],
        json!([{ "name": "config", "mountPath": "/etc/kuard" }])
    );
    assert_eq!(spec["initContainers"][0]["volumeMounts"], Value::Null);
    assert_eq!(spec["priorityClassName"], json!("high"));
    for field in [
        "priority",
        "preemptionPolicy",
        "schedulingGates",
        "ephemeralContainers",
    ] {
        assert_eq!(spec[field], Value::Null, "{field}");
    }
}

#[test]
fn finished_init_containers_do_not_run_again_and_sidecars_do() {
    let inits = target()["spec"]["initContainers"].clone();
    assert_eq!(inits.as_array().unwrap().len(), 1);
    assert_eq!(inits[0]["name"], json!("proxy"));
}

#[test]
fn a_pod_without_extras_has_no_empty_lists() {
    let mut pod = running();
    let spec = pod.spec.as_mut().unwrap();
    spec.init_containers.as_mut().unwrap().truncate(1);
    spec.volumes.as_mut().unwrap().remove(0);
    let target = serde_json::to_value(for_target(&pod, &"node2".into())).unwrap();
    assert_eq!(
        (
            &target["spec"]["initContainers"],
            &target["spec"]["volumes"]
        ),
        (&Value::Null, &Value::Null)
    );
}

#[test]
fn making_it_twice_gives_the_same() {
    let once = for_target(&running(), &"node2".into());
    assert_eq!(for_target(&once, &"node2".into()), once);
}

#[test]
fn the_images_stand_in_and_the_originals_are_remembered() {
    let images = [image("kuard"), image("proxy")];
    let pod = with_images(&plan(), &"node1".into(), &images, &"m1".into()).unwrap();
    let recorded = crate::k8s::origin::recorded(&pod);
    assert_eq!(
        recorded["kuard"],
        Origin {
            image: "r/kuard:1".into(),
            digest: "sha256:kuard".into(),
            checkpoint: "localhost:7/kuard:9".into()
        }
    );
    let pod = serde_json::to_value(pod).unwrap();
    assert_eq!(
        pod["metadata"]["annotations"]["longshore.dev/migration"],
        json!("m1")
    );
    assert_eq!(pod["metadata"]["annotations"]["note"], json!("mine"));
    assert_eq!(
        (
            &pod["metadata"]["finalizers"],
            &pod["metadata"]["annotations"]["longshore.dev/held-for"]
        ),
        (&json!(["longshore.dev/hold"]), &json!("m1")),
        "its deletion can't go unseen before the log knows that it was restored"
    );
    let container = &pod["spec"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["imagePullPolicy"]),
        (&json!("localhost:7/kuard:9"), &json!("IfNotPresent"))
    );
    assert_eq!(
        pod["spec"]["initContainers"][0]["image"],
        json!("localhost:7/proxy:9")
    );
    assert_eq!(
        (
            &pod["spec"]["nodeName"],
            &pod["spec"]["schedulerName"],
            &pod["metadata"]["annotations"]["longshore.dev/node"]
        ),
        (&Value::Null, &json!("longshore"), &json!("node1")),
        "a rescue names its own node, and only binding it makes it that"
    );
}

#[test]
fn a_container_without_its_image_would_start_fresh_and_is_an_error() {
    let error = with_images(&plan(), &"node2".into(), &[image("kuard")], &"m1".into()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no checkpoint image for container proxy of shop/kuard"
    );
}

#[test]
fn a_moved_pod_moves_again_from_its_originals() {
    let images = [image("kuard"), image("proxy")];
    let mut moved = with_images(&plan(), &"node2".into(), &images, &"m1".into()).unwrap();
    moved.metadata.uid = Some("uid-2".into());
    let view = crate::k8s::view::translate_pod(&moved, &"node1".into());
    let originals: Vec<_> = view
        .containers
        .iter()
        .map(|c| (c.image.as_str(), c.image_digest.as_str()))
        .collect();
    assert_eq!(
        originals,
        [("r/proxy:1", "sha256:proxy"), ("r/kuard:1", "sha256:kuard")]
    );
    assert!(
        !view.target_pod.contains("longshore.dev/"),
        "our notes are written anew"
    );
}

#[test]
fn only_our_own_finalizer_may_stay() {
    let mut pod = running();
    assert!(foreign_finalizers(&pod).is_empty());
    pod.metadata.finalizers = Some(vec!["example.com/x".into(), HOLD_FINALIZER.into()]);
    assert_eq!(foreign_finalizers(&pod), ["example.com/x"]);
}
