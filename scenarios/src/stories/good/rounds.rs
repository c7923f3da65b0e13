//! Rounds: memory is sent ahead while the pod runs, and what was sent ahead may be lost on either side.

use super::super::{
    Stage,
    faults::{ledger_with, whole_on},
    harm::{process, signal},
    journey::{Journey, Seen},
    replication::succeeded,
    witness::Witness,
};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

/// Of the container beside the ledger.
const BALLAST_MIB: u32 = 64;
const BALLAST_PORT: u16 = 8081;
/// What changes in the pod between two rounds are the ledger's numbers and its sockets, some pages of thousands.
const SHARE_LEFT: u64 = 10;

/// Two rounds there, none on the way back.
pub fn sent_ahead(stage: &Stage) -> Result<()> {
    ledger_with(stage, BALLAST_MIB)?;
    let witness = Witness::of(stage, "ledger")?;
    let before = stage.get("ledger", BALLAST_PORT, "/mem/digest")?;
    let seen = moved(stage, "node2", &["--rounds", "2"])?;
    seen.entered_ms("Copying")?;
    let sent: Vec<u64> = [seen.sent_ahead(), vec![seen.sent()?]].concat();
    let [first, second, last] = sent[..] else {
        anyhow::bail!("sent {sent:?} bytes, and not two rounds and the rest");
    };
    println!("          sent {first} and {second} bytes ahead, {last} under the freeze");
    ensure!(
        second < first / SHARE_LEFT && last < first / SHARE_LEFT,
        "what was sent ahead was sent again"
    );
    let after = stage.get("ledger", BALLAST_PORT, "/mem/digest")?;
    ensure!(before == after, "the memory was {before}and is {after}");
    whole_on(stage, &witness, "node2")?;
    let seen = moved(stage, "node1", &["--rounds", "0"])?;
    ensure!(seen.sent_ahead().is_empty(), "there were rounds");
    whole_on(stage, &witness, "node1")
}

/// The target's worker dies when its bases are needed, the source's in the middle of a round.
pub fn lost(stage: &Stage) -> Result<()> {
    ledger_with(stage, BALLAST_MIB)?;
    let witness = Witness::of(stage, "ledger")?;
    for (phase, node, to) in [("Holding", 2, "node2"), ("Copying", 2, "node1")] {
        let worker = process(&stage.lab, node, "worker")?;
        let mut journey = Journey::begin(stage, "ledger", to, &["--rounds", "1"])?;
        journey.reaches(phase)?;
        signal(worker, Signal::KILL)?;
        succeeded(stage, journey, to)
            .with_context(|| format!("the worker of node{node} was killed in {phase}"))?;
        whole_on(stage, &witness, to)?;
    }
    Ok(())
}

fn moved(stage: &Stage, to: &str, flags: &[&str]) -> Result<Seen> {
    let (migrated, seen) = Journey::begin(stage, "ledger", to, flags)?.end()?;
    ensure!(
        migrated.code == 0 && seen.phase() == "Succeeded",
        "it ended as {} with exit code {}:\n{}",
        seen.phase(),
        migrated.code,
        migrated.text
    );
    Ok(seen)
}
