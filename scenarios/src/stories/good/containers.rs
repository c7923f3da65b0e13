//! Pods of more than one container.

use super::{
    super::{Stage, ground},
    PORT, book, container, restarts,
};
use crate::workloads::{KUARD, LEDGER, REDIS};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const LEDGER_PORT: u16 = 8081;
const LEDGER_FLAG: &str = "--port=8081";

/// A web server and a counter: both move, cut at one moment.
pub fn two_containers(stage: &Stage) -> Result<()> {
    const POD: &str = "pair";
    let containers = json!([
        container("kuard", KUARD, &["--mib=16"]),
        container("ledger", LEDGER, &[LEDGER_FLAG]),
    ]);
    stage.run_pod(POD, "node1", containers, json!({}))?;
    let memory = stage.get(POD, PORT, "/mem/digest")?;
    for to in ["node2", "node1"] {
        let counted = book(stage, POD, LEDGER_PORT)?;
        stage.move_pod(POD, to)?;
        ensure!(
            book(stage, POD, LEDGER_PORT)? > counted,
            "the ledger did not count on"
        );
        ensure!(
            stage.get(POD, PORT, "/mem/digest")? == memory,
            "kuard's memory changed"
        );
    }
    ensure!(restarts(stage, POD)? == 0, "a container was started again");
    for name in ["kuard", "ledger"] {
        ground::expect_one_copy(stage, POD, name)?;
    }
    for migration in stage.migrations()? {
        one_cut(&migration)?;
    }
    Ok(())
}

/// Every container was paused before the first was dumped: otherwise one runs on while the other is history already.
fn one_cut(migration: &Value) -> Result<()> {
    let spans = migration["status"]["trace"]
        .as_array()
        .context("the migration has no trace")?;
    let of = |begin: &str, moment: &str| -> Vec<u64> {
        let fits = |span: &&Value| {
            span["name"]
                .as_str()
                .is_some_and(|name| name.starts_with(begin))
        };
        spans
            .iter()
            .filter(fits)
            .filter_map(|span| span[moment].as_u64())
            .collect()
    };
    let (paused, dumped) = (of("pause", "endMicros"), of("checkpoint ", "startMicros"));
    ensure!(
        dumped.len() == 2,
        "two containers were moved, {} were dumped",
        dumped.len()
    );
    let last_pause = paused.iter().max().context("nothing was paused")?;
    ensure!(
        dumped.iter().all(|dump| dump >= last_pause),
        "a container was dumped before all were paused"
    );
    Ok(())
}

/// A native sidecar moves with its memory; an init container that finished stays finished.
pub fn sidecar_and_finished_init(stage: &Stage) -> Result<()> {
    const POD: &str = "with-sidecar";
    // Whoever runs the init container leaves a mark outside of the pod.
    stage.run_pod(
        "marks",
        "node2",
        json!([container("redis", REDIS, &[])]),
        json!({}),
    )?;
    let marks = stage.address("marks", 6379)?.ip().to_string();
    let mut prepare = container("prepare", REDIS, &["-h", &marks, "INCR", "prepared"]);
    prepare["command"] = json!(["/usr/bin/redis-cli"]);
    let mut sidecar = container("ledger", LEDGER, &[LEDGER_FLAG]);
    sidecar["restartPolicy"] = json!("Always");
    stage.run_pod(
        POD,
        "node1",
        json!([container("kuard", KUARD, &["--mib=8"])]),
        json!({"initContainers": [prepare, sidecar]}),
    )?;
    let memory = stage.get(POD, PORT, "/mem/digest")?;
    for to in ["node2", "node1"] {
        let counted = book(stage, POD, LEDGER_PORT)?;
        stage.move_pod(POD, to)?;
        ensure!(
            book(stage, POD, LEDGER_PORT)? > counted,
            "the sidecar did not count on"
        );
        ensure!(
            stage.get(POD, PORT, "/mem/digest")? == memory,
            "kuard's memory changed"
        );
    }
    let pod = stage.pod(POD)?;
    let kept = &pod["spec"]["initContainers"];
    ensure!(
        kept.as_array().is_some_and(|all| all
            .iter()
            .any(|one| one["name"] == "ledger" && one["restartPolicy"] == "Always")),
        "the sidecar is no sidecar any more: {kept}"
    );
    let prepared = stage.cluster.run(&[
        "-n",
        &stage.namespace,
        "exec",
        "marks",
        "--",
        "/usr/bin/redis-cli",
        "GET",
        "prepared",
    ])?;
    ensure!(
        prepared.trim() == "1",
        "the finished init container ran {} times",
        prepared.trim()
    );
    Ok(())
}
