//! Stories of the three peers: the leader dies, a peer's disk is lost, everything is replaced by the next build. The
//! ledger moves all the while under its witness.

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs, thread,
    time::{Duration, Instant},
};

use super::{
    Stage, Story,
    faults::ledger_with,
    harm::{SlowAdmission, Stopped, all_well, nothing_left, shell, signal},
    journey::Journey,
    peers::{Peer, ask_peer, led_by_another},
    stage::Migrated,
    witness::Witness,
};
use crate::{
    cache,
    deploy::{NAMESPACE, ORCHESTRATOR_IMAGE, PEER_STATE, PEERS},
    process::{self, wait_for},
};

/// The promise: losing the leader costs no more.
const FAILOVER_WITHIN: Duration = Duration::from_secs(3);
/// A pod that starts, is ready, learns and is swapped in.
pub const REPLACED_WITHIN: Duration = Duration::from_secs(60);
/// A pod with two programs that take milliseconds, pulled and started.
const RECOVERED_WITHIN: Duration = Duration::from_secs(70);
/// Three peers, one after the other, each ready before the next goes; then a worker on each node.
const ROLLED_OUT_WITHIN: Duration = Duration::from_secs(180);

/// This theme's stories.
pub fn stories() -> Vec<Story> {
    vec![
        Story {
            name: "failover",
            about: "The leader dies in any phase: another leads within 3 s, and the migration succeeds",
            tell: failover,
        },
        Story {
            name: "peer-replacement",
            about: "A peer whose disk is lost comes back as another, while migrations go on",
            tell: peer_replacement,
        },
        Story {
            name: "rolling-upgrade",
            about: "Peers and workers are replaced one after another under migrations, and nothing is lost",
            tell: rolling_upgrade,
        },
        Story {
            name: "group-recovery",
            about: "Two of three disks are lost under a hold: the group is founded anew from the third, and nothing is lost",
            tell: group_recovery,
        },
    ]
}

/// Where the ledger is not.
pub fn other_node(stage: &Stage) -> Result<&'static str> {
    Ok(if stage.node_of("ledger")? == "node1" {
        "node2"
    } else {
        "node1"
    })
}

fn failover(stage: &Stage) -> Result<()> {
    ledger_with(stage, 32)?;
    let witness = Witness::of(stage, "ledger")?;
    let mut worst = Duration::ZERO;
    for phase in [
        "Preparing",
        "Holding",
        "Delivering",
        "Restoring",
        "Retiring",
    ] {
        let took = leader_dies(stage, phase)
            .with_context(|| format!("the leader was killed in {phase}"))?;
        println!(
            "          killed in {phase}: another led after {} ms, and the migration succeeded",
            took.as_millis()
        );
        worst = worst.max(took);
        witness
            .verdict()
            .with_context(|| format!("after the leader was killed in {phase}"))?;
        all_well(stage)?;
    }
    if worst > FAILOVER_WITHIN {
        bail!("it took {worst:?} until another led, more than {FAILOVER_WITHIN:?}");
    }
    nothing_left(stage)
}

/// One migration whose leader is killed in this phase; how long nobody led.
fn leader_dies(stage: &Stage, phase: &str) -> Result<Duration> {
    let leader = Peer::leader(stage)?;
    let to = other_node(stage)?;
    // Over before anybody could see it, unless a call of the API that it makes takes longer.
    let slow = match phase {
        "Preparing" => Some(SlowAdmission::of(stage, "UPDATE")?),
        _ => None,
    };
    let mut journey = Journey::begin(stage, "ledger", to, &["--timeout", "60s"])?;
    journey.reaches(phase)?;
    let began = Instant::now();
    signal(leader.pid, Signal::KILL)?;
    led_by_another(stage, &leader)?;
    let took = began.elapsed();
    drop(slow);
    succeeded(stage, journey, to)?;
    Ok(took)
}

/// Waits for the end, which must be a good one.
pub fn succeeded(stage: &Stage, journey: Journey<'_>, to: &str) -> Result<()> {
    let (Migrated { code, text }, ended) = journey.end()?;
    if code != 0 || ended.phase() != "Succeeded" {
        bail!(
            "it ended as {} with exit code {code}:\n{text}",
            ended.phase()
        );
    }
    let on = stage.node_of("ledger")?;
    if on != to {
        bail!("it succeeded, but the pod is on {on}");
    }
    Ok(())
}

fn peer_replacement(stage: &Stage) -> Result<()> {
    ledger_with(stage, 0)?;
    let witness = Witness::of(stage, "ledger")?;
    let before = voters(stage)?;
    let lost = Peer::follower(stage)?;
    let to = other_node(stage)?;
    let mut journey = Journey::begin(stage, "ledger", to, &[])?;
    journey.reaches("Holding")?;
    // It writes into files that have no name any more, until its pod is made anew.
    let wipe = format!("rm -rf {PEER_STATE}/{}/*", lost.pod);
    shell(&stage.lab, lost.node, &wipe)?;
    let delete = [
        "-n",
        NAMESPACE,
        "delete",
        "pod",
        &lost.pod,
        "--grace-period=1",
    ];
    stage.cluster.run_within(REPLACED_WITHIN, &delete)?;
    succeeded(stage, journey, to)?;
    let after = wait_for("three voters with a new one", REPLACED_WITHIN, || {
        let now = voters(stage)?;
        let renewed = now.len() == before.len() && now != before;
        Ok(renewed.then_some(now))
    })?;
    println!("          the voters were {before:?} and are {after:?}");
    if after
        .difference(&before)
        .any(|new| Some(new) < before.iter().max())
    {
        bail!("an id was given twice: {after:?} after {before:?}");
    }
    all_well(stage)?;
    stage.move_pod("ledger", other_node(stage)?)?;
    witness.verdict()
}

/// Who votes, by what the leader says.
pub fn voters(stage: &Stage) -> Result<BTreeSet<u64>> {
    let leader = Peer::leader(stage)?;
    let told = ask_peer(stage, &leader.pod, &["peers", "-o", "json"])?;
    let peers: Vec<Value> = told["peers"].as_array().cloned().unwrap_or_default();
    let votes = peers.iter().filter(|peer| peer["vote"] == "voter");
    Ok(votes.filter_map(|peer| peer["id"].as_u64()).collect())
}

fn rolling_upgrade(stage: &Stage) -> Result<()> {
    ledger_with(stage, 0)?;
    let witness = Witness::of(stage, "ledger")?;
    let moved = under_rollout(stage, &format!("statefulset/{PEERS}"), |to| {
        stage.move_pod("ledger", to)
    })?;
    println!("          {moved} migrations succeeded while the peers were replaced");
    let moved = under_rollout(stage, "daemonset/longshore-worker", |to| {
        // A worker that ends in the middle of a hold may have to undo it; nothing is lost by that.
        let Migrated { code, text } = stage.migrate(&["pod", "ledger", "--to", to])?;
        match code {
            0 | 2 | 3 => Ok(()),
            _ => bail!("migrate ended with {code}:\n{text}"),
        }
    })?;
    println!("          {moved} migrations ended while the workers were replaced");
    all_well(stage)?;
    stage.move_pod("ledger", other_node(stage)?)?;
    witness.verdict()?;
    nothing_left(stage)
}

/// Restarts a workload, and moves the ledger to and fro until that is over. How often it moved.
fn under_rollout(
    stage: &Stage,
    workload: &str,
    moves: impl Fn(&'static str) -> Result<()>,
) -> Result<u32> {
    stage
        .cluster
        .run(&["-n", NAMESPACE, "rollout", "restart", workload])?;
    let limit = format!("--timeout={}s", ROLLED_OUT_WITHIN.as_secs());
    let status = ["-n", NAMESPACE, "rollout", "status", workload, &limit];
    thread::scope(|scope| {
        let rollout = scope.spawn(|| stage.cluster.run_within(ROLLED_OUT_WITHIN, &status));
        let mut moved = 0;
        while !rollout.is_finished() {
            moves(other_node(stage)?).with_context(|| format!("while {workload} was replaced"))?;
            moved += 1;
        }
        match rollout.join() {
            Ok(ended) => ended.map(|_| moved),
            Err(_) => bail!("waiting for {workload} panicked"),
        }
    })
}

/// As the runbook says, with a pod held in the middle of its migration.
fn group_recovery(stage: &Stage) -> Result<()> {
    ledger_with(stage, 32)?;
    let witness = Witness::of(stage, "ledger")?;
    let left = Peer::of(stage, 1)?;
    let lost = [Peer::of(stage, 0)?, Peer::of(stage, 2)?];
    let mut journey = Journey::begin(stage, "ledger", other_node(stage)?, &[])?;
    journey.reaches("Holding")?;
    let silent = Stopped::s3(stage)?;
    scale(stage, 0)?;
    for peer in &lost {
        shell(
            &stage.lab,
            peer.node,
            &format!("rm -rf {PEER_STATE}/{}/*", peer.pod),
        )?;
    }
    let manifest = cache::project().join("deploy/recovery/pod.yaml");
    let manifest = fs::read_to_string(&manifest).context("read the recovery's manifest")?;
    // As the lab's overlay changes the StatefulSet.
    let manifest = manifest
        .replace(
            "image: longshore/orchestrator",
            &format!("image: {ORCHESTRATOR_IMAGE}"),
        )
        .replace("65532", "0");
    let mut apply = stage.cluster.kubectl();
    apply.args(["apply", "--filename", "-"]);
    process::succeed_with_input(
        &mut apply,
        process::Input::Bytes(manifest.into()),
        RECOVERED_WITHIN,
    )?;
    let recovery = ["-n", NAMESPACE, "wait", "pod/longshore-recovery"];
    let done = ["--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s"];
    let recovered = stage
        .cluster
        .run_within(RECOVERED_WITHIN, &[&recovery[..], &done].concat());
    let said = stage.cluster.run(&[
        "-n",
        NAMESPACE,
        "logs",
        "longshore-recovery",
        "--all-containers",
    ])?;
    recovered.with_context(|| format!("the recovery said: {said}"))?;
    stage.cluster.run_within(
        RECOVERED_WITHIN,
        &["-n", NAMESPACE, "delete", "pod", "longshore-recovery"],
    )?;
    println!(
        "          {}",
        said.lines()
            .find(|line| line.contains("founded"))
            .unwrap_or(&said)
    );
    drop(silent);
    scale(stage, 3)?;
    let (Migrated { code, text }, ended) = journey.end()?;
    if !matches!((code, ended.phase()), (0, "Succeeded") | (3, "RolledBack")) {
        bail!(
            "it ended as {} with exit code {code}:\n{text}",
            ended.phase()
        );
    }
    println!(
        "          the migration that was under way: {}",
        ended.phase()
    );
    all_well(stage)?;
    let voters = wait_for("three voters", REPLACED_WITHIN, || {
        Ok(Some(voters(stage)?).filter(|voters| voters.len() == 3))
    })?;
    println!(
        "          the voters are {voters:?}; the disk of {} was left",
        left.pod
    );
    witness.verdict()?;
    stage.move_pod("ledger", other_node(stage)?)?;
    witness.verdict()?;
    nothing_left(stage)
}

/// Makes the peers as many, and waits until there are as many pods.
pub fn scale(stage: &Stage, replicas: u8) -> Result<()> {
    let (set, replicas_flag) = (
        format!("statefulset/{PEERS}"),
        format!("--replicas={replicas}"),
    );
    stage
        .cluster
        .run(&["-n", NAMESPACE, "scale", &set, &replicas_flag])?;
    let label = format!("app.kubernetes.io/name={PEERS}");
    wait_for("the peers to be as many", REPLACED_WITHIN, || {
        let pods = stage
            .cluster
            .json(&["-n", NAMESPACE, "get", "pods", "-l", &label])?;
        let count = pods["items"].as_array().map_or(0, Vec::len);
        Ok((count == usize::from(replicas)).then_some(()))
    })
}
