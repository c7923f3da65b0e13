//! Ten at once, in both directions.

use super::{
    super::{
        Stage,
        client::{Client, Heard},
        ground,
    },
    PORT, book, restarts, run_ledger,
};
use crate::process;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{collections::BTreeMap, thread, time::Duration};

const MIGRATIONS: usize = 10;
/// Ten that wait for each other on two cores.
const ENDED_WITHIN: Duration = Duration::from_secs(240);
/// Phases after which nothing more happens, and where the pod then is.
const ENDS: [&str; 4] = ["Succeeded", "RolledBack", "Rescued", "Refused"];

struct Wanted {
    pod: String,
    from: &'static str,
    to: &'static str,
}

/// Asks for ten migrations in one breath; every ledger counts on, on exactly one node.
pub fn ten_at_once(stage: &Stage) -> Result<()> {
    let wanted: Vec<Wanted> = (0..MIGRATIONS)
        .map(|n| {
            let (from, to) = if n % 2 == 0 {
                ("node1", "node2")
            } else {
                ("node2", "node1")
            };
            Wanted {
                pod: format!("ledger-{n}"),
                from,
                to,
            }
        })
        .collect();
    start_all(stage, &wanted)?;
    let clients = wanted
        .iter()
        .map(|one| Client::start(stage, &one.pod, PORT))
        .collect::<Result<Vec<_>>>()?;
    let before = uids(stage)?;
    ask_for_all(stage, &wanted)?;
    let ended = wait_for_all(stage);
    let heard = clients
        .into_iter()
        .map(Client::stop)
        .collect::<Result<Vec<_>>>()?;
    let ended = ended?;
    let after = uids(stage)?;
    ensure!(
        after.len() == MIGRATIONS,
        "there were {MIGRATIONS} pods and are {}",
        after.len()
    );
    let mut succeeded = 0;
    for (one, heard) in wanted.iter().zip(heard) {
        let migration = ended
            .get(&one.pod)
            .with_context(|| format!("the migration of {} is lost", one.pod))?;
        let moved = as_told(stage, one, migration, &heard)?;
        if moved {
            succeeded += 1;
            let pod = &one.pod;
            ensure!(
                migration["status"]["targetPodUid"] == after[pod].as_str()
                    && before.get(pod) != after.get(pod),
                "{pod} is not the pod that its migration made: it was moved twice"
            );
        }
        ground::expect_one_copy(stage, &one.pod, "ledger")?;
    }
    println!("          {succeeded} of {MIGRATIONS} succeeded, the others say why not");
    let reasons: Vec<String> = ended
        .values()
        .map(|migration| migration["status"]["reason"]["message"].to_string())
        .collect();
    ensure!(
        succeeded * 2 >= MIGRATIONS,
        "only {succeeded} of {MIGRATIONS} succeeded: {}",
        reasons.join("; ")
    );
    Ok(())
}

/// Is this pod where its migration says, and counts on? True: it moved.
fn as_told(stage: &Stage, one: &Wanted, migration: &Value, heard: &Heard) -> Result<bool> {
    let Wanted { pod, from, to } = one;
    let phase = migration["status"]["phase"].as_str().unwrap_or_default();
    heard
        .check()
        .with_context(|| format!("{pod}, which ended {phase}"))?;
    ensure!(
        book(stage, pod, PORT)? >= heard.last(),
        "{pod} forgot what it had answered"
    );
    ensure!(restarts(stage, pod)? == 0, "{pod} was started again");
    let on = stage.node_of(pod)?;
    if phase == "Succeeded" {
        ensure!(on == *to, "{pod} succeeded, and is on {on}");
        return Ok(true);
    }
    honest(pod, phase, migration)?;
    ensure!(
        on == *from || phase == "Rescued",
        "{pod} ended {phase}, and is on {on}"
    );
    Ok(false)
}

fn start_all(stage: &Stage, wanted: &[Wanted]) -> Result<()> {
    thread::scope(|scope| {
        let starts: Vec<_> = wanted
            .iter()
            .map(|one| scope.spawn(|| run_ledger(stage, &one.pod, one.from)))
            .collect();
        for start in starts {
            match start.join() {
                Ok(started) => started?,
                Err(_) => bail!("starting a pod panicked"),
            }
        }
        Ok(())
    })
}

/// One request to the API server's client for all ten: they lie there before the first is taken up.
fn ask_for_all(stage: &Stage, wanted: &[Wanted]) -> Result<()> {
    let items: Vec<Value> = wanted
        .iter()
        .map(|one| {
            json!({
                "apiVersion": "longshore.dev/v1alpha1", "kind": "PodMigration",
                "metadata": {"name": one.pod, "namespace": stage.namespace},
                "spec": {"pod": one.pod, "targetNode": one.to},
            })
        })
        .collect();
    stage
        .cluster
        .apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}))
}

fn wait_for_all(stage: &Stage) -> Result<BTreeMap<String, Value>> {
    process::wait_for("ten migrations to end", ENDED_WITHIN, || {
        let migrations = stage.migrations()?;
        ensure!(
            migrations.len() == MIGRATIONS,
            "{} migrations were asked for, {} are there",
            MIGRATIONS,
            migrations.len()
        );
        let ended = migrations.iter().all(|migration| {
            migration["status"]["phase"]
                .as_str()
                .is_some_and(|phase| ENDS.contains(&phase))
        });
        let named = || {
            let name = |migration: &Value| migration["spec"]["pod"].as_str().map(str::to_owned);
            migrations
                .iter()
                .filter_map(|migration| Some((name(migration)?, migration.clone())))
                .collect()
        };
        Ok(ended.then(named))
    })
}

/// An end that is none of success must say in words why.
fn honest(pod: &str, phase: &str, migration: &Value) -> Result<()> {
    let status = &migration["status"];
    let said = |finding: &Value| {
        finding["message"]
            .as_str()
            .is_some_and(|message| !message.is_empty())
    };
    let refused = status["refusals"]
        .as_array()
        .is_some_and(|all| !all.is_empty() && all.iter().all(said));
    ensure!(
        said(&status["reason"]) || refused,
        "{pod} ended {phase} without a reason"
    );
    Ok(())
}

fn uids(stage: &Stage) -> Result<BTreeMap<String, String>> {
    let pods = stage
        .cluster
        .json(&["-n", &stage.namespace, "get", "pods"])?;
    let items = pods["items"].as_array().into_iter().flatten();
    Ok(items
        .filter_map(|pod| {
            let text = |field: &str| pod["metadata"][field].as_str().map(str::to_owned);
            Some((text("name")?, text("uid")?))
        })
        .collect())
}
