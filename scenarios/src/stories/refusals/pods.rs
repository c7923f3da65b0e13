//! The pods that cannot move, each for one reason, all started together.

use super::{
    super::{
        Stage,
        good::{container, run_ledger},
    },
    SOURCE, TARGET,
};
use crate::{
    process,
    workloads::{self, REDIS},
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{collections::BTreeMap, thread, time::Duration};

/// The pod that could move, were it not for what the story does to it.
pub const LEDGER: &str = "ledger";
/// A label that only the source has.
const LABEL: &str = "story.longshore.dev/refusals";
const RUNNING_WITHIN: Duration = Duration::from_secs(60);

/// What was started, where the name is not the story's choice.
pub struct Pods {
    /// The ReplicaSet's pod.
    pub of_replica_set: String,
    /// The DaemonSet's pod on the source.
    pub of_daemon_set: String,
}

/// Name, containers, and what is special about the pod's spec.
type Special = (&'static str, &'static str, Value, Value);

impl Pods {
    /// Starts all and waits until they run.
    pub fn start(stage: &Stage) -> Result<Self> {
        let cluster = &stage.cluster;
        cluster.run(&["label", "node", SOURCE, &format!("{LABEL}=here")])?;
        controllers(stage)?;
        let special = special(stage)?;
        thread::scope(|scope| {
            let ledger = scope.spawn(|| run_ledger(stage, LEDGER, SOURCE));
            let others: Vec<_> = special
                .into_iter()
                .map(|(name, node, containers, spec)| {
                    scope.spawn(move || stage.run_pod(name, node, containers, spec))
                })
                .collect();
            for started in others.into_iter().chain([ledger]) {
                match started.join() {
                    Ok(started) => started?,
                    Err(_) => bail!("starting a pod panicked"),
                }
            }
            Ok(())
        })?;
        Ok(Self {
            of_replica_set: pod_of(stage, "of-replica-set")?,
            of_daemon_set: pod_of(stage, "of-daemon-set")?,
        })
    }

    /// Takes back what is not in the story's namespace.
    pub fn end(&self, stage: &Stage) -> Result<()> {
        // Else they make their pods anew while the namespace is cleared.
        stage.cluster.run(&[
            "-n",
            &stage.namespace,
            "delete",
            "replicasets,daemonsets",
            "--all",
        ])?;
        stage
            .cluster
            .run(&["label", "node", SOURCE, &format!("{LABEL}-")])
            .map(drop)
    }
}

fn ledger_at(port: &str) -> Value {
    container("ledger", workloads::LEDGER, &[port])
}

fn special(stage: &Stage) -> Result<Vec<Special>> {
    let ledger = || json!([ledger_at("--port=8080")]);
    let most = most_of_the_memory(stage)?;
    let hungry = || {
        let mut hungry = ledger_at("--port=8080");
        hungry["resources"] = json!({"requests": {"memory": most}});
        json!([hungry])
    };
    let mut terminal = ledger_at("--port=8080");
    terminal["tty"] = json!(true);
    let mut impatient = ledger_at("--port=8080");
    impatient["livenessProbe"] = json!({
        "exec": null, "httpGet": {"path": "/healthy", "port": 8080},
        // Long between two looks, so that a busy machine does not fail it; it bears no more for that.
        "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 2,
    });
    let (own_address, shared_memory) = (redis_on_its_address(), redis_in_shared_memory());
    let mut several = ledger_at("--port=18081");
    several["tty"] = json!(true);
    let empty_dir = || json!([{"name": "kept", "emptyDir": {}}]);
    Ok(vec![
        (
            "selective",
            SOURCE,
            ledger(),
            json!({"nodeSelector": {LABEL: "here"}}),
        ),
        ("hungry", SOURCE, hungry(), json!({})),
        ("hog", TARGET, hungry(), json!({})),
        (
            "host-network",
            SOURCE,
            json!([ledger_at("--port=18080")]),
            json!({"hostNetwork": true}),
        ),
        (
            "host-path",
            SOURCE,
            ledger(),
            json!({"volumes": [{"name": "kept", "hostPath": {"path": "/tmp"}}]}),
        ),
        (
            "empty-dir",
            SOURCE,
            ledger(),
            json!({"volumes": empty_dir()}),
        ),
        ("terminal", SOURCE, json!([terminal]), json!({})),
        ("impatient", SOURCE, json!([impatient]), json!({})),
        ("own-address", SOURCE, json!([own_address]), json!({})),
        ("shared-memory", SOURCE, json!([shared_memory]), json!({})),
        (
            "several",
            SOURCE,
            json!([several]),
            json!({"hostNetwork": true, "volumes": empty_dir()}),
        ),
    ])
}

fn redis_on_its_address() -> Value {
    let mut own_address = container(
        "redis",
        REDIS,
        &[
            "--bind",
            "$(POD_IP)",
            "--protected-mode",
            "no",
            "--save",
            "",
        ],
    );
    own_address["env"] = json!([
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]);
    own_address
}

fn redis_in_shared_memory() -> Value {
    container(
        "redis",
        REDIS,
        &["--logfile", "/dev/shm/redis.log", "--save", ""],
    )
}

/// More than half of what the target has: it has room for one such pod.
fn most_of_the_memory(stage: &Stage) -> Result<String> {
    let node = stage.cluster.json(&["get", "node", TARGET])?;
    let kibibytes: u64 = node["status"]["allocatable"]["memory"]
        .as_str()
        .and_then(|text| text.strip_suffix("Ki"))
        .context("read how much memory the node has")?
        .parse()?;
    Ok(format!("{}Ki", kibibytes * 3 / 5))
}

fn controllers(stage: &Stage) -> Result<()> {
    let of = |kind: &str, name: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": kind,
            "metadata": {"name": name, "namespace": stage.namespace},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "nodeSelector": {LABEL: "here"}, "terminationGracePeriodSeconds": 1,
                        "containers": [ledger_at("--port=8080")],
                    },
                },
            },
        })
    };
    stage.cluster.apply(&of("ReplicaSet", "of-replica-set"))?;
    stage.cluster.apply(&of("DaemonSet", "of-daemon-set"))
}

fn pod_of(stage: &Stage, app: &str) -> Result<String> {
    process::wait_for(&format!("the pod of {app}"), RUNNING_WITHIN, || {
        let pods = stage.cluster.json(&[
            "-n",
            &stage.namespace,
            "get",
            "pods",
            "--selector",
            &format!("app={app}"),
            "--field-selector",
            "status.phase=Running",
        ])?;
        Ok(pods["items"][0]["metadata"]["name"]
            .as_str()
            .map(str::to_owned))
    })
}

/// Every pod of the story: its UID, its node, and how often it was started again.
pub fn identities(stage: &Stage) -> Result<BTreeMap<String, String>> {
    let pods = stage
        .cluster
        .json(&["-n", &stage.namespace, "get", "pods"])?;
    let items = pods["items"].as_array().into_iter().flatten();
    Ok(items
        .filter_map(|pod| {
            let name = pod["metadata"]["name"].as_str()?.to_owned();
            let (uid, node) = (&pod["metadata"]["uid"], &pod["spec"]["nodeName"]);
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            Some((name, format!("{uid} on {node}, {restarts} restarts")))
        })
        .collect())
}
