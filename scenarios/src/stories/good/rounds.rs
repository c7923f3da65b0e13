//! Rounds: memory is sent ahead while the pod runs, and what was sent ahead may be lost on either side.

use super::super::{
    Stage,
    faults::{ledger_with, whole_on},
    harm::{process, signal, stored},
    journey::{Journey, Seen},
    replication::succeeded,
    witness::Witness,
};
use crate::process::wait_for;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::time::Duration;

/// Of the container beside the ledger.
const BALLAST_MIB: u32 = 64;
const BALLAST_PORT: u16 = 8081;
/// The janitor lets go within seconds, and looks at what has ended every twelve.
const LET_GO_WITHIN: Duration = Duration::from_secs(60);
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

/// The second move stands on what the first has left in the store, the third on the same, and what is let go of is gone.
pub fn kept(stage: &Stage) -> Result<()> {
    ledger_with(stage, BALLAST_MIB)?;
    let witness = Witness::of(stage, "ledger")?;
    let before = stage.get("ledger", BALLAST_PORT, "/mem/digest")?;
    let keep = ["--rounds", "1", "--keep-checkpoint", "1h"];
    let mut first = None;
    let mut uids = Vec::new();
    let mut names = Vec::new();
    for to in ["node2", "node1", "node2"] {
        let seen = moved(stage, to, &keep)?;
        names.push(seen.name().to_owned());
        uids.push(seen.uid()?);
        let ahead: u64 = seen.sent_ahead().iter().sum();
        println!(
            "          to {to}: sent {ahead} bytes ahead, {} under the freeze",
            seen.sent()?
        );
        let whole = *first.get_or_insert(ahead);
        ensure!(
            names.len() == 1 || ahead < whole / SHARE_LEFT,
            "what the store had was sent again"
        );
        whole_on(stage, &witness, to)?;
    }
    let after = stage.get("ledger", BALLAST_PORT, "/mem/digest")?;
    ensure!(before == after, "the memory was {before}and is {after}");
    // The second was followed by the third; both stand on the first.
    let is_stored = |n: usize| Ok::<_, anyhow::Error>(!stored(stage, &uids[n])?.is_empty());
    wait_for("the second checkpoint to go", LET_GO_WITHIN, || {
        Ok((!is_stored(1)?).then_some(()))
    })?;
    ensure!(is_stored(0)? && is_stored(2)?, "a kept one is gone");
    let checked = stage.migrate(&["store", "check"])?;
    ensure!(checked.code == 0, "{}", checked.text);
    let delete = ["-n", &stage.namespace, "delete", "podmigration"];
    let delete = [&delete[..], &[&names[0], &names[2]]].concat();
    stage.cluster.run_within(LET_GO_WITHIN, &delete)?;
    wait_for("what nobody wants to go", LET_GO_WITHIN, || {
        Ok((!is_stored(0)? && !is_stored(2)?).then_some(()))
    })
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
