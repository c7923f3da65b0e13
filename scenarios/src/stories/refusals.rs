//! Refusals: every reason not to is given before anything is frozen, in words, with exit code 2, and nothing changed.
//!
//! Each case is asked twice: as a preview, which must leave no object behind, and in earnest. What shows that nothing
//! was frozen is a ledger that a client asks all the time, and that every pod is the one it was.

mod pods;

use super::{
    Stage,
    client::Client,
    good::{PORT, number},
    ground,
};
use crate::process;
use anyhow::{Context, Result, bail, ensure};
use pods::Pods;
use serde_json::Value;
use std::{
    process::{Child, Stdio},
    time::Duration,
};

const SOURCE: &str = "node1";
const TARGET: &str = "node2";
/// The orchestrator sees a change of the cluster by its watches, within a moment.
const SEEN_WITHIN: Duration = Duration::from_secs(15);
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// A freeze of the lab's smallest pod takes 0.8 s and more; a busy machine alone makes a client wait less.
const SILENCE_MAX: Duration = Duration::from_millis(700);

/// What is asked and must be refused.
struct Case<'a> {
    pod: &'a str,
    to: &'a str,
    options: &'a [&'a str],
    /// Codes with a part of their sentences; all must be among the reasons.
    reasons: &'a [(&'a str, &'a str)],
}

/// The ordinary question: this pod to the other node.
fn case<'a>(pod: &'a str, reasons: &'a [(&'a str, &'a str)]) -> Case<'a> {
    Case {
        pod,
        to: TARGET,
        options: &[],
        reasons,
    }
}

/// All refusals that can be provoked on a lab.
pub fn refusals(stage: &Stage) -> Result<()> {
    let pods = Pods::start(stage)?;
    let before = pods::identities(stage)?;
    let client = Client::start(stage, pods::LEDGER, PORT)?;
    let told = by_the_request(stage)
        .and_then(|()| by_the_pod(stage, &pods))
        .and_then(|()| by_the_node(stage))
        .and_then(|()| by_an_exec_session(stage))
        .and_then(|()| dry_run_of_what_can_move(stage));
    let heard = client.stop()?;
    told?;
    heard.check()?;
    ensure!(
        heard.places() == 1 && heard.longest_silence() < SILENCE_MAX,
        "the ledger was silent for {:?}: something was frozen",
        heard.longest_silence()
    );
    // Last, for the ledger that stands still is the one the client asks.
    by_a_stopped_process(stage)?;
    let after = pods::identities(stage)?;
    ensure!(
        before == after,
        "a refusal changed pods: {before:?} became {after:?}"
    );
    pods.end(stage)
}

fn by_the_request(stage: &Stage) -> Result<()> {
    refuse(stage, &case("nobody", &[("NoSuchPod", "there is no pod")]))?;
    let elsewhere = |to, reason| Case {
        to,
        ..case(pods::LEDGER, reason)
    };
    refuse(
        stage,
        &elsewhere("node9", &[("NoSuchNode", "there is no node node9")]),
    )?;
    refuse(
        stage,
        &elsewhere(SOURCE, &[("AlreadyThere", "runs on node node1 already")]),
    )?;
    let limited = Case {
        options: &["--max-freeze", "1ms"],
        ..case(pods::LEDGER, &[("FreezeLimitTooShort", "1 ms are allowed")])
    };
    refuse(stage, &limited)
}

fn by_the_pod(stage: &Stage, pods: &Pods) -> Result<()> {
    for (pod, reasons) in [
        (
            "selective",
            &[("NodeSelectorMismatch", "node node2 has it not")][..],
        ),
        ("hungry", &[("NoRoomMemory", "short of memory")]),
        ("host-network", &[("HostNetwork", "hostNetwork: true")]),
        (
            "host-path",
            &[("VolumeWouldNotMove", "volume kept (hostPath)")],
        ),
        (
            "empty-dir",
            &[("VolumeWouldNotMove", "volume kept (emptyDir)")],
        ),
        ("terminal", &[("Tty", "has tty: true")]),
        (
            "impatient",
            &[("LivenessDeadlineTooShort", "the liveness probe")],
        ),
        (
            "own-address",
            &[("ListenerOnPodAddress", "listens on its own address")],
        ),
        ("shared-memory", &[("SharedMemoryFiles", "/dev/shm")]),
        (
            "several",
            &[
                ("HostNetwork", "hostNetwork: true"),
                ("VolumeWouldNotMove", "volume kept (emptyDir)"),
                ("Tty", "has tty: true"),
            ],
        ),
    ] {
        refuse(stage, &case(pod, reasons))?;
    }
    refuse(
        stage,
        &case(
            &pods.of_replica_set,
            &[("ControllerPod", "belongs to the ReplicaSet")],
        ),
    )?;
    refuse(
        stage,
        &case(
            &pods.of_daemon_set,
            &[("DaemonSetPod", "belongs to the DaemonSet")],
        ),
    )
}

fn by_the_node(stage: &Stage) -> Result<()> {
    let node = |words: &[&str]| stage.cluster.run(words).map(drop);
    node(&["cordon", TARGET])?;
    let told = refuse(
        stage,
        &case(
            pods::LEDGER,
            &[("TargetCordoned", "node node2 is cordoned")],
        ),
    );
    node(&["uncordon", TARGET])?;
    told?;
    node(&["taint", "node", TARGET, "story=refusals:NoSchedule"])?;
    let told = refuse(
        stage,
        &case(
            pods::LEDGER,
            &[("TaintNotTolerated", "story=refusals:NoSchedule")],
        ),
    );
    node(&["taint", "node", TARGET, "story-"])?;
    told
}

/// Somebody has a process of their own in the container.
fn by_an_exec_session(stage: &Stage) -> Result<()> {
    const POD: &str = "shared-memory";
    let mut session: Child = stage
        .cluster
        .kubectl()
        .args(["-n", &stage.namespace, "exec", "--stdin", POD, "--"])
        .arg("/usr/bin/redis-cli")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("open an exec session")?;
    let told = refuse(
        stage,
        &case(
            POD,
            &[("ExecSession", "was started from outside into the container")],
        ),
    );
    // It ends with its input.
    drop(session.stdin.take());
    let ended = process::wait_for("the exec session to end", SEEN_WITHIN, || {
        Ok(session.try_wait()?)
    });
    told?;
    ended.map(drop)
}

/// A process that was stopped would make the dump hang.
fn by_a_stopped_process(stage: &Stage) -> Result<()> {
    ground::signal_container(stage, pods::LEDGER, "ledger", "SIGSTOP")?;
    let told = refuse(
        stage,
        &case(pods::LEDGER, &[("StoppedProcess", "is stopped (SIGSTOP)")]),
    );
    ground::signal_container(stage, pods::LEDGER, "ledger", "SIGCONT")?;
    told?;
    let stood_at = number(stage, pods::LEDGER)?;
    process::wait_for("the ledger to go on", SEEN_WITHIN, || {
        Ok((number(stage, pods::LEDGER)? > stood_at).then_some(()))
    })
}

/// What could move is shown with its prediction, and stays.
fn dry_run_of_what_can_move(stage: &Stage) -> Result<()> {
    let objects = stage.migrations()?.len();
    let (code, migration) = ask(
        stage,
        &[
            "pod",
            pods::LEDGER,
            "--to",
            TARGET,
            "--dry-run",
            "-o",
            "json",
        ],
    )?;
    let status = &migration["status"];
    ensure!(
        code == 0 && status["phase"] == "Previewed",
        "the preview ended with {code}: {status}"
    );
    let predicted = |what: &str| status["plan"][what].as_u64().unwrap_or(0) > 0;
    ensure!(
        predicted("freezePredictedMilliseconds") && predicted("checkpointPredictedBytes"),
        "the preview predicts nothing: {status}"
    );
    expect_objects(stage, objects)
}

/// Asks in preview until the reason is seen, then in earnest: both refused, for the reasons expected.
fn refuse(stage: &Stage, case: &Case<'_>) -> Result<()> {
    let Case {
        pod,
        to,
        options,
        reasons,
    } = case;
    let line = [&["pod", pod, "--to", to, "-o", "json"], *options].concat();
    let preview = [&line[..], &["--dry-run"]].concat();
    let objects = stage.migrations()?.len();
    let told = || format!("migrate {}", line.join(" "));
    process::wait_for(
        &format!("{} to be refused for {reasons:?}", told()),
        SEEN_WITHIN,
        || {
            let (code, preview) = ask(stage, &preview)?;
            Ok((code == 2 && lacks(&preview, reasons).is_none()).then_some(()))
        },
    )?;
    expect_objects(stage, objects).with_context(told)?;
    let (code, migration) = ask(stage, &line)?;
    ensure!(code == 2, "{} ended with {code}: {migration}", told());
    let status = &migration["status"];
    if let Some(reason) = lacks(&migration, reasons) {
        bail!(
            "{} does not say {reason:?} but {}",
            told(),
            status["refusals"]
        );
    }
    let entered = status["phases"].as_array().into_iter().flatten();
    for phase in entered {
        ensure!(
            phase["phase"] == "Refused",
            "{} went as far as {phase}",
            told()
        );
    }
    Ok(())
}

/// The first reason that a migration does not give.
fn lacks<'a>(migration: &Value, reasons: &'a [(&str, &str)]) -> Option<&'a (&'a str, &'a str)> {
    let given = migration["status"]["refusals"].as_array();
    let is_given = |(code, sentence): &(&str, &str)| {
        given.into_iter().flatten().any(|given| {
            given["code"] == *code
                && given["message"]
                    .as_str()
                    .is_some_and(|message| message.contains(sentence))
        })
    };
    reasons.iter().find(|reason| !is_given(reason))
}

/// `migrate` with `-o json`: its exit code and the object it printed.
fn ask(stage: &Stage, words: &[&str]) -> Result<(i32, Value)> {
    let output = process::output(&mut stage.migrate_command(words), ANSWERED_WITHIN)?;
    let code = output.status.code().context("migrate was killed")?;
    match serde_json::from_slice(&output.stdout) {
        Ok(object) => Ok((code, object)),
        Err(_) => bail!(
            "migrate {} ended with {code} and printed no object: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

/// A preview takes its object back.
fn expect_objects(stage: &Stage, expected: usize) -> Result<()> {
    process::wait_for("the preview's object to be gone", SEEN_WITHIN, || {
        Ok((stage.migrations()?.len() == expected).then_some(()))
    })
}
