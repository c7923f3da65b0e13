//! Stories of things that break under a migration: the store, the target's disk and runtime, the restore itself. It is
//! undone, or the pod is rescued where it came from, and nothing is left over.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    Stage, Story,
    harm::{
        Changed, Killed, LAME_CRIU, Stopped, WHOLE_CRIU, all_well, nothing_left, process,
        renew_worker,
    },
    journey::{Journey, Seen},
    stage::Migrated,
    witness::Witness,
};
use crate::workloads::{KUARD, LEDGER};

/// Undone means that the source answers again within this, counted from the decision.
const RELEASED_WITHIN_MS: u64 = 1_000;

/// This theme's stories.
pub fn stories() -> Vec<Story> {
    vec![
        Story {
            name: "s3-down",
            about: "Without its store a migration is rolled back within a second, and goes well once there is one again",
            tell: s3_down,
        },
        Story {
            name: "target-disk-full",
            about: "A target whose disk is full lets the migration be rolled back",
            tell: target_disk_full,
        },
        Story {
            name: "target-containerd-stopped",
            about: "A target whose containerd hangs or dies while it is delivered to lets the migration be rolled back",
            tell: target_containerd_stopped,
        },
        Story {
            name: "restore-made-to-fail",
            about: "A pod that its target cannot restore is rescued where it came from",
            tell: restore_made_to_fail,
        },
    ]
}

/// The ledger's container.
pub fn ledger() -> Value {
    json!({"name": "ledger", "image": LEDGER})
}

/// A container with memory, so that phases last long enough to do something in them.
pub fn ballast(mib: u32) -> Value {
    let arguments = ["--port=8081".to_owned(), format!("--mib={mib}")];
    json!({"name": "ballast", "image": KUARD, "args": arguments})
}

/// Starts the ledger, with this much memory beside it, on node 1.
pub fn ledger_with(stage: &Stage, mib: u32) -> Result<()> {
    let containers = match mib {
        0 => json!([ledger()]),
        mib => json!([ledger(), ballast(mib)]),
    };
    // What the story before has broken and mended may still be thought broken.
    all_well(stage)?;
    stage.run_pod("ledger", "node1", containers, json!({}))
}

/// Insists that the migration was undone, and the source alive within a second of the decision.
pub fn rolled_back(witness: &Witness<'_>, (migrated, ended): (Migrated, Seen)) -> Result<()> {
    let Migrated { code, text } = migrated;
    if code != 3 || ended.phase() != "RolledBack" {
        bail!(
            "not rolled back but {} with exit code {code}:\n{text}",
            ended.phase()
        );
    }
    let decided_ms = ended.entered_ms("Releasing")?;
    let took_ms = witness.alive_after(decided_ms)?.saturating_sub(decided_ms);
    println!(
        "          rolled back: {}; answered {took_ms} ms after the decision",
        ended.reason()
    );
    if took_ms > RELEASED_WITHIN_MS {
        bail!(
            "the source answered {took_ms} ms after the decision, and not within {RELEASED_WITHIN_MS} ms"
        );
    }
    Ok(())
}

/// Insists that the pod is where it should be, its ledger whole, and nothing left over.
pub fn whole_on(stage: &Stage, witness: &Witness<'_>, node: &str) -> Result<()> {
    let on = stage.node_of("ledger")?;
    if on != node {
        bail!("the pod is on {on} and not on {node}");
    }
    witness.verdict()?;
    nothing_left(stage)
}

fn s3_down(stage: &Stage) -> Result<()> {
    ledger_with(stage, 0)?;
    let witness = Witness::of(stage, "ledger")?;
    let down = Killed::s3(stage)?;
    rolled_back(
        &witness,
        Journey::begin(stage, "ledger", "node2", &[])?.end()?,
    )?;
    drop(down);
    whole_on(stage, &witness, "node1")?;
    // With 64 MiB the packs are on their way when the store goes.
    let mut journey = Journey::begin(stage, "ledger", "node2", &[])?;
    journey.reaches("Holding")?;
    let down = Killed::s3(stage)?;
    let ended = journey.end()?;
    if ended.0.code != 0 {
        rolled_back(&witness, ended)?;
    }
    drop(down);
    witness.verdict()?;
    nothing_left(stage)?;
    if stage.node_of("ledger")? == "node1" {
        stage.move_pod("ledger", "node2")?;
    }
    whole_on(stage, &witness, "node2")
}

fn target_disk_full(stage: &Stage) -> Result<()> {
    ledger_with(stage, 0)?;
    let witness = Witness::of(stage, "ledger")?;
    let folder = "/var/lib/longshore/layers";
    let small = format!("mkdir -p {folder}; mount -t tmpfs -o size=64k tmpfs {folder}");
    let full = Changed::node(stage, 2, &small, "umount /var/lib/longshore/layers")?;
    // It has the mounts that there were when it was started.
    renew_worker(stage, 2)?;
    let told = (|| {
        rolled_back(
            &witness,
            Journey::begin(stage, "ledger", "node2", &[])?.end()?,
        )?;
        whole_on(stage, &witness, "node1")
    })();
    drop(full);
    renew_worker(stage, 2)?;
    told?;
    stage.move_pod("ledger", "node2")?;
    whole_on(stage, &witness, "node2")
}

fn target_containerd_stopped(stage: &Stage) -> Result<()> {
    ledger_with(stage, 32)?;
    let witness = Witness::of(stage, "ledger")?;
    // Found beforehand, for a delivery takes no longer than finding it.
    let containerd = process(&stage.lab, 2, "containerd")?;
    let mut journey = Journey::begin(stage, "ledger", "node2", &["--max-freeze", "6s"])?;
    journey.reaches("Delivering")?;
    let stopped = Stopped::process(containerd)?;
    rolled_back(&witness, journey.end()?).context("containerd hangs")?;
    drop(stopped);
    whole_on(stage, &witness, "node1")?;
    all_well(stage)?;
    let mut journey = Journey::begin(stage, "ledger", "node2", &[])?;
    journey.reaches("Delivering")?;
    let killed = Killed::containerd_of_node2(stage, containerd)?;
    rolled_back(&witness, journey.end()?).context("containerd is killed")?;
    drop(killed);
    whole_on(stage, &witness, "node1")?;
    all_well(stage)?;
    stage.move_pod("ledger", "node2")?;
    whole_on(stage, &witness, "node2")
}

fn restore_made_to_fail(stage: &Stage) -> Result<()> {
    ledger_with(stage, 0)?;
    let witness = Witness::of(stage, "ledger")?;
    let mut journey = Journey::begin(stage, "ledger", "node2", &[])?;
    // By then the target was found able, as it is on a good day.
    journey.reaches("Holding")?;
    let broken = Changed::node(stage, 2, LAME_CRIU, WHOLE_CRIU)?;
    let (Migrated { code, text }, ended) = journey.end()?;
    drop(broken);
    if code != 3 || ended.phase() != "Rescued" {
        bail!(
            "not rescued but {} with exit code {code}:\n{text}",
            ended.phase()
        );
    }
    println!("          rescued: {}", ended.reason());
    whole_on(stage, &witness, "node1")?;
    stage.move_pod("ledger", "node2")?;
    whole_on(stage, &witness, "node2")
}
