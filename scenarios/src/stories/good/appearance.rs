//! What the user sees of a move: the pod as it was, and words about what happened.

use super::{
    super::{Stage, client::Client, journey::Journey, stage::Migrated},
    PORT, book, container, restarts,
};
use crate::{
    http, process,
    workloads::{KUARD, LEDGER},
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    thread,
    time::{Duration, Instant},
};

const POD: &str = "dressed";
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// The promise for every undoing: the source runs again this soon after the decision.
const UNDONE_WITHIN: Duration = Duration::from_secs(1);
const SEEN_WITHIN: Duration = Duration::from_secs(30);
/// What is ours among labels and annotations.
const OURS: &str = "longshore.dev/";

/// Same name, labels, annotations and spec; events, columns, objects and exit codes.
pub fn looks_the_same(stage: &Stage) -> Result<()> {
    dress(stage)?;
    let before = stage.pod(POD)?;
    let (code, migration) = ask(stage, &["pod", POD, "--to", "node2", "-o", "json"])?;
    let status = &migration["status"];
    ensure!(
        code == 0 && status["phase"] == "Succeeded" && status["freezeMilliseconds"].is_u64(),
        "migrate -o json ended with {code} and {migration}"
    );
    let after = stage.pod(POD)?;
    ensure!(
        before["metadata"]["uid"] != after["metadata"]["uid"]
            && after["spec"]["nodeName"] == "node2",
        "the pod did not move"
    );
    for part in ["labels", "annotations"] {
        let (was, is) = (theirs(&before, part), theirs(&after, part));
        ensure!(was == is, "the {part} were {was} and are {is}");
    }
    let (was, is) = (comparable(&before), comparable(&after));
    ensure!(was == is, "the spec was {was} and is {is}");
    let name = migration["metadata"]["name"]
        .as_str()
        .context("the migration has no name")?;
    events(stage, name)?;
    columns(stage)?;
    commands(stage, name)
}

fn dress(stage: &Stage) -> Result<()> {
    stage.cluster.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "settings", "namespace": stage.namespace}, "data": {"color": "blue"},
    }))?;
    let mut dressed = container("ledger", LEDGER, &["--period-ms=10"]);
    dressed["env"] = json!([
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ]);
    dressed["ports"] = json!([{"containerPort": PORT, "name": "http"}]);
    dressed["resources"] =
        json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}});
    dressed["readinessProbe"] =
        json!({"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1});
    dressed["livenessProbe"] = json!({"httpGet": {"path": "/healthy", "port": "http"}, "periodSeconds": 10, "failureThreshold": 6});
    dressed["volumeMounts"] = json!([{"name": "settings", "mountPath": "/settings"}]);
    dressed["securityContext"] = json!({"allowPrivilegeEscalation": false});
    stage.run_pod(
        POD,
        "node1",
        json!([dressed]),
        json!({
            "volumes": [{"name": "settings", "configMap": {"name": "settings"}}],
            "tolerations": [{"key": "story", "operator": "Exists"}],
            "hostname": "dressed-up",
        }),
    )?;
    let on = |verb: &str, what: &str| {
        stage
            .cluster
            .run(&["-n", &stage.namespace, verb, "pod", POD, what])
    };
    on("label", "tier=front")?;
    on("annotate", "example.org/owner=the harbour master")?;
    Ok(())
}

/// Labels or annotations but for ours.
fn theirs(pod: &Value, part: &str) -> Value {
    let all = pod["metadata"][part]
        .as_object()
        .cloned()
        .unwrap_or_default();
    all.into_iter()
        .filter(|(key, _)| !key.starts_with(OURS))
        .collect()
}

/// The spec without what must differ: the node and who bound the pod to it, the image that restores and how it is pulled,
/// and the name of the volume that admission makes anew for every pod.
fn comparable(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    spec["nodeName"] = Value::Null;
    spec["schedulerName"] = Value::Null;
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        container["image"] = Value::Null;
        container["imagePullPolicy"] = Value::Null;
        rename_token(&mut container["volumeMounts"]);
    }
    rename_token(&mut spec["volumes"]);
    spec
}

fn rename_token(volumes: &mut Value) {
    let Some(volumes) = volumes.as_array_mut() else {
        return;
    };
    for volume in volumes.iter_mut() {
        let is_token = volume["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("kube-api-access-"));
        if is_token {
            volume["name"] = json!("kube-api-access");
        }
    }
    volumes.sort_by_key(|volume| volume["name"].to_string());
}

/// On the pod and on the migration.
fn events(stage: &Stage, migration: &str) -> Result<()> {
    process::wait_for("events on pod and migration", SEEN_WITHIN, || {
        let events = stage
            .cluster
            .json(&["-n", &stage.namespace, "get", "events"])?;
        let items = events["items"].as_array().cloned().unwrap_or_default();
        let told = |kind: &str, name: &str| {
            items.iter().any(|event| {
                event["involvedObject"]["kind"] == kind
                    && event["involvedObject"]["name"] == name
                    && event["reason"] == "MigrationSucceeded"
            })
        };
        Ok((told("Pod", POD) && told("PodMigration", migration)).then_some(()))
    })
}

/// `kubectl get podmigrations`, plain and wide.
fn columns(stage: &Stage) -> Result<()> {
    let shown = |more: &[&str]| {
        stage
            .cluster
            .run(&[&["-n", &stage.namespace, "get", "podmigrations"][..], more].concat())
    };
    let head = |text: &str| -> Vec<String> {
        let first = text.lines().next().unwrap_or_default();
        first.split_whitespace().map(str::to_owned).collect()
    };
    let plain = shown(&[])?;
    ensure!(
        head(&plain) == ["NAME", "POD", "FROM", "TO", "PHASE", "FREEZE", "AGE"],
        "kubectl shows {plain}"
    );
    ensure!(
        plain.contains("node1") && plain.contains("node2") && plain.contains("Succeeded"),
        "kubectl shows {plain}"
    );
    let wide = head(&shown(&["-o", "wide"])?);
    for column in ["BYTES", "SENT", "RATIO"] {
        ensure!(
            wide.iter().any(|shown| shown == column),
            "kubectl -o wide has no column {column}"
        );
    }
    Ok(())
}

/// The other commands and the exit codes.
fn commands(stage: &Stage, migration: &str) -> Result<()> {
    for (line, code, shown) in [
        (&["get"][..], 0, "Succeeded"),
        (&["get", migration, "-o", "name"], 0, migration),
        (&["describe", migration], 0, "checkpoint ledger"),
        (&["nodes"], 0, "node2"),
        (&["describe", "no-such-migration"], 1, "no-such-migration"),
        (&["pod", POD], 1, "--to"),
        (&["pod", POD, "--to", "node2"], 2, "already"),
    ] {
        let ended = stage.migrate(line)?;
        ensure!(
            ended.code == code && ended.text.contains(shown),
            "migrate {} ended with {} and said {}",
            line.join(" "),
            ended.code,
            ended.text
        );
    }
    Ok(())
}

fn ask(stage: &Stage, words: &[&str]) -> Result<(i32, Value)> {
    let output = process::output(&mut stage.migrate_command(words), ANSWERED_WITHIN)?;
    let code = output.status.code().context("migrate was killed")?;
    let object = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((code, object))
}

/// Asks for the heavy pod's migration, and deletes its object once the pod is held.
fn delete_in_the_dump(stage: &Stage) -> Result<Journey<'_>> {
    // Without rounds: what they send ahead is not dumped under the freeze, and the hold is over in a moment.
    let mut journey = Journey::begin(stage, "heavy", "node2", &["--rounds", "0"])?;
    journey.reaches("Holding")?;
    // Into the dump, not before it.
    thread::sleep(Duration::from_millis(300));
    let delete = [
        "-n",
        &stage.namespace,
        "delete",
        "podmigration",
        journey.name()?,
        "--wait=false",
    ];
    stage.cluster.run(&delete)?;
    Ok(journey)
}

/// Deleting the PodMigration while the pod is held undoes it.
pub fn abort_by_deletion(stage: &Stage) -> Result<()> {
    // Large enough that the hold lasts for seconds.
    let containers = json!([
        container("ledger", LEDGER, &[]),
        container("kuard", KUARD, &["--port=8081", "--mib=512"]),
    ]);
    stage.run_pod("heavy", "node1", containers, json!({}))?;
    let uid = stage.pod("heavy")?["metadata"]["uid"].clone();
    let client = Client::start(stage, "heavy", PORT)?;
    let journey = delete_in_the_dump(stage)?;
    let decided = Instant::now();
    process::wait_for("the migration to be gone", SEEN_WITHIN, || {
        Ok(stage.migrations()?.is_empty().then_some(()))
    })?;
    let (Migrated { code, text }, ended) = journey.end()?;
    ensure!(
        code == 3 && ended.phase() == "RolledBack",
        "the migration was {}, and migrate ended with {code}:\n{text}",
        ended.phase()
    );
    thread::sleep(Duration::from_millis(500));
    let heard = client.stop()?;
    heard.check()?;
    let again = heard
        .0
        .iter()
        .find(|answer| answer.heard > decided)
        .context("the ledger never answered again")?;
    let took = again.heard.duration_since(decided);
    println!(
        "          source answered {took:.2?} after the deletion, silent for {:.2?}",
        heard.longest_silence()
    );
    ensure!(
        heard.longest_silence() > Duration::from_millis(250),
        "the pod was never held: the deletion came before or after"
    );
    ensure!(
        took < UNDONE_WITHIN,
        "the source answered {took:?} after the deletion"
    );
    ensure!(
        stage.pod("heavy")?["metadata"]["uid"] == uid
            && stage.node_of("heavy")? == "node1"
            && restarts(stage, "heavy")? == 0,
        "the source is not the pod it was"
    );
    // The dump was cut off while it read the memory, which must not show in it.
    let digest = http::get(
        stage.address("heavy", 8081)?,
        "/mem/digest",
        ANSWERED_WITHIN,
    )?;
    ensure!(
        digest.status == 200,
        "kuard's memory is not what it was: {}",
        digest.text()
    );
    book(stage, "heavy", PORT).map(drop)
}
