//! Stories of what users and the cluster do in the middle of a migration: they abort it, delete the pod, allow too
//! short a freeze, break a lock; a worker is away. What was asked for is obeyed, and nothing is resurrected.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{thread, time::Duration};

use super::{
    Stage, Story,
    faults::{ledger, ledger_with, rolled_back, whole_on},
    harm::{SlowAdmission, Stopped, all_well, nothing_left, process, shell},
    journey::Journey,
    stage::Migrated,
    witness::{Witness, now_ms},
};
use crate::{process::wait_for, site::Site};

/// A step of a few tens of milliseconds is over by then: both locks of a hold are closed.
const HELD_AFTER: Duration = Duration::from_millis(1_500);

/// A busy API server takes a second between a deletion and a creation.
const NAMELESS_MAX: Duration = Duration::from_secs(5);

/// This theme's stories.
pub fn stories() -> Vec<Story> {
    vec![
        Story {
            name: "abort-under-way",
            about: "An abort is obeyed in every phase before the commit",
            tell: abort_under_way,
        },
        Story {
            name: "user-deletes-the-pod",
            about: "A pod deleted in the middle stays deleted, and nothing of it is left, frozen or otherwise",
            tell: user_deletes_the_pod,
        },
        Story {
            name: "freeze-budget",
            about: "A freeze that would take longer than allowed is undone in time",
            tell: freeze_budget,
        },
        Story {
            name: "liveness",
            about: "A pod whose liveness probe cannot bear the freeze is refused; one that can is not restarted",
            tell: liveness,
        },
        Story {
            name: "worker-away",
            about: "Without the target's worker a migration is refused; when it goes away at the restore, that is shown and settles",
            tell: worker_away,
        },
        Story {
            name: "second-freezer-lock",
            about: "Whoever resumes or deletes a held pod sees nothing of it run",
            tell: second_freezer_lock,
        },
    ]
}

fn abort(stage: &Stage, journey: &Journey<'_>) -> Result<()> {
    let Migrated { code, text } = stage.migrate(&["abort", journey.name()?])?;
    if code != 0 {
        bail!("migrate abort ended with {code}:\n{text}");
    }
    Ok(())
}

fn abort_under_way(stage: &Stage) -> Result<()> {
    ledger_with(stage, 32)?;
    let containerd = process(&stage.lab, 2, "containerd")?;
    let witness = Witness::of(stage, "ledger")?;
    for phase in ["Planned", "Preparing", "Holding", "Delivering"] {
        let slow = match phase {
            "Planned" => Some(SlowAdmission::of(stage, "CREATE")?),
            "Preparing" => Some(SlowAdmission::of(stage, "UPDATE")?),
            _ => None,
        };
        let mut journey = Journey::begin(stage, "ledger", "node2", &[])?;
        journey.reaches(phase)?;
        let stopped = match phase {
            "Holding" => Some(Stopped::s3(stage)?),
            // Its worker would answer in no time.
            "Delivering" => Some(Stopped::process(containerd)?),
            _ => None,
        };
        abort(stage, &journey).with_context(|| format!("in {phase}"))?;
        rolled_back(&witness, journey.end()?).with_context(|| format!("aborted in {phase}"))?;
        drop((slow, stopped));
        whole_on(stage, &witness, "node1").with_context(|| format!("aborted in {phase}"))?;
    }
    Ok(())
}

fn user_deletes_the_pod(stage: &Stage) -> Result<()> {
    for phase in ["Holding", "Delivering", "Restoring"] {
        deleted_in(stage, phase).with_context(|| format!("the pod was deleted in {phase}"))?;
    }
    Ok(())
}

fn deleted_in(stage: &Stage, phase: &str) -> Result<()> {
    ledger_with(stage, 32)?;
    let containerd = process(&stage.lab, 2, "containerd")?;
    let witness = Witness::of(stage, "ledger")?;
    let mut journey = Journey::begin(stage, "ledger", "node2", &[])?;
    journey.reaches(phase)?;
    let stopped = match phase {
        "Holding" => Some(Stopped::s3(stage)?),
        "Delivering" => Some(Stopped::process(containerd)?),
        _ => None,
    };
    delete_pod(stage, &[])?;
    thread::sleep(HELD_AFTER);
    drop(stopped);
    let (Migrated { code, text }, ended) = journey.end()?;
    println!(
        "          deleted in {phase}: {} ({})",
        ended.phase(),
        ended.reason()
    );
    // One deleted at the very end of the restore was restored, and then deleted.
    if !(code == 3 && ["RolledBack", "Abandoned"].contains(&ended.phase())
        || code == 0 && phase == "Restoring")
    {
        bail!(
            "it ended as {} with exit code {code}:\n{text}",
            ended.phase()
        );
    }
    no_pod_left(stage)?;
    let gone_ms = now_ms();
    thread::sleep(HELD_AFTER);
    if witness.answers_between(gone_ms, now_ms()) > 0 {
        bail!("the pod is gone, but something of it still answers");
    }
    witness.verdict_on_the_gone()?;
    nothing_left(stage)
}

/// Between the source's end and the target's making there is no pod of the name for some milliseconds: whoever deletes it
/// then is told so, and deletes it again.
fn delete_pod(stage: &Stage, how: &[&str]) -> Result<()> {
    let delete = [
        "-n",
        &stage.namespace,
        "delete",
        "pod",
        "ledger",
        "--wait=false",
        "--ignore-not-found",
    ];
    wait_for("a pod to delete", NAMELESS_MAX, || {
        let told = stage.cluster.run(&[&delete, how].concat())?;
        Ok((!told.trim().is_empty()).then_some(()))
    })
}

fn freeze_budget(stage: &Stage) -> Result<()> {
    const BUDGET: Duration = Duration::from_secs(5);
    ledger_with(stage, 0)?;
    let witness = Witness::of(stage, "ledger")?;
    let began_ms = now_ms();
    // A store that accepts and says nothing.
    let silent = Stopped::s3(stage)?;
    let journey = Journey::begin(stage, "ledger", "node2", &["--max-freeze", "5s"])?;
    rolled_back(&witness, journey.end()?)?;
    let frozen = Duration::from_millis(witness.longest_silence_ms(began_ms));
    drop(silent);
    println!(
        "          frozen for {} ms of {}",
        frozen.as_millis(),
        BUDGET.as_millis()
    );
    if frozen > BUDGET {
        bail!("the pod was frozen for {} ms", frozen.as_millis());
    }
    whole_on(stage, &witness, "node1")
}

fn liveness(stage: &Stage) -> Result<()> {
    let with_probe = |period: u32, failures: u32| {
        let mut container: Value = ledger();
        container["livenessProbe"] = json!({
            "httpGet": {"path": "/healthy", "port": 8080},
            "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 1,
        });
        json!([container])
    };
    stage.run_pod("hasty", "node1", with_probe(1, 1), json!({}))?;
    let Migrated { code, text } = stage.migrate(&["pod", "hasty", "--to", "node2"])?;
    if code != 2 || !text.contains("liveness") {
        bail!(
            "a pod whose probe fails within a second was not refused for it, but ended with {code}:\n{text}"
        );
    }
    stage.run_pod("ledger", "node1", with_probe(2, 5), json!({}))?;
    let witness = Witness::of(stage, "ledger")?;
    stage.move_pod("ledger", "node2")?;
    stage.move_pod("ledger", "node1")?;
    // Longer than the probe's patience: had the freeze used it up, the kubelet would act now.
    thread::sleep(Duration::from_secs(4));
    let restarts = &stage.pod("ledger")?["status"]["containerStatuses"][0]["restartCount"];
    if restarts != 0 {
        bail!("the pod was restarted {restarts} times");
    }
    whole_on(stage, &witness, "node1")
}

fn worker_away(stage: &Stage) -> Result<()> {
    ledger_with(stage, 0)?;
    let witness = Witness::of(stage, "ledger")?;
    let away = Stopped::process(process(&stage.lab, 2, "worker")?)?;
    wait_for(
        "the orchestrator to miss the worker",
        Duration::from_secs(30),
        || {
            let node = stage
                .cluster
                .json(&["get", "migrationnode", &Site::node_name(2)])?;
            Ok((node["spec"]["connected"] == false).then_some(()))
        },
    )?;
    let Migrated { code, text } = stage.migrate(&["pod", "ledger", "--to", "node2"])?;
    if code != 2 || !text.contains("worker") || !text.contains("node2") {
        bail!(
            "without the target's worker it was not refused for that, but ended with {code}:\n{text}"
        );
    }
    drop(away);
    all_well(stage)?;
    let mut journey = Journey::begin(stage, "ledger", "node2", &[])?;
    journey.reaches("Restoring")?;
    let away = Stopped::process(process(&stage.lab, 2, "worker")?)?;
    let doubt = wait_for("the doubt to be shown", Duration::from_secs(30), || {
        let doubt = journey.object()?["status"]["inDoubt"].clone();
        Ok((!doubt.is_null()).then_some(doubt))
    })?;
    println!("          in doubt: {}", doubt["what"]["message"]);
    let described = stage.migrate(&["describe", journey.name()?])?.text;
    if !described.to_lowercase().contains("in doubt") {
        bail!("describe says nothing of the doubt:\n{described}");
    }
    drop(away);
    let (Migrated { code, text }, ended) = journey.end()?;
    if code != 0 {
        bail!(
            "the doubt was settled as {} with exit code {code}:\n{text}",
            ended.phase()
        );
    }
    all_well(stage)?;
    whole_on(stage, &witness, "node2")
}

fn second_freezer_lock(stage: &Stage) -> Result<()> {
    ledger_with(stage, 0)?;
    let witness = Witness::of(stage, "ledger")?;
    let mut journey = Journey::begin(stage, "ledger", "node2", &[])?;
    journey.reaches("Holding")?;
    let silent = Stopped::s3(stage)?;
    thread::sleep(HELD_AFTER);
    let held_ms = now_ms();
    let pod = stage.pod("ledger")?;
    let id = pod["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .context("the container has an id")?;
    let id = id.trim_start_matches("containerd://");
    shell(&stage.lab, 1, &format!("ctr -n k8s.io tasks resume {id}"))?;
    thread::sleep(HELD_AFTER);
    // Killed by whom it may: what is frozen twice answers nobody.
    delete_pod(stage, &["--force", "--grace-period=0"])?;
    thread::sleep(HELD_AFTER);
    let answers = witness.answers_between(held_ms, now_ms());
    if answers > 0 {
        bail!("the held pod answered {answers} times after it was resumed behind our back");
    }
    drop(silent);
    let (Migrated { code, text }, ended) = journey.end()?;
    println!(
        "          resumed and deleted in the hold: {} ({})",
        ended.phase(),
        ended.reason()
    );
    if code != 3 {
        bail!(
            "it ended as {} with exit code {code}:\n{text}",
            ended.phase()
        );
    }
    no_pod_left(stage)?;
    witness.verdict_on_the_gone()?;
    nothing_left(stage)
}

/// Waits until the story's namespace has no pod any more.
fn no_pod_left(stage: &Stage) -> Result<()> {
    wait_for("the pod to be gone", Duration::from_secs(30), || {
        let pods = stage
            .cluster
            .json(&["-n", &stage.namespace, "get", "pods"])?;
        Ok(pods["items"]
            .as_array()
            .is_some_and(Vec::is_empty)
            .then_some(()))
    })
}
