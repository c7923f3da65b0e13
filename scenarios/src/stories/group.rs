//! Stories of what operators do to the group of peers: the lead handed over, peers taken out and put in, all of it while
//! the ledger moves under its witness.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    Stage, Story,
    faults::ledger_with,
    harm::{all_well, nothing_left, shell},
    journey::Journey,
    peers::{Peer, ask_peer, order_peer},
    replication::{REPLACED_WITHIN, other_node, scale, succeeded, voters},
    witness::Witness,
};
use crate::{deploy::PEER_STATE, process::wait_for};

/// This theme's stories.
pub fn stories() -> Vec<Story> {
    vec![Story {
        name: "group-shrinks-and-grows",
        about: "The lead is handed over, the group shrinks to one peer and grows to three, each under a migration that succeeds",
        tell: shrinks_and_grows,
    }]
}

fn shrinks_and_grows(stage: &Stage) -> Result<()> {
    ledger_with(stage, 32)?;
    let witness = Witness::of(stage, "ledger")?;
    let before = voters(stage)?;
    // Scaled down, a StatefulSet keeps its first pod.
    let [first, second, third] = [0, 1, 2].map(|ordinal| Peer::of(stage, ordinal));
    let (first, taken_out) = (first?, [third?, second?]);
    if Peer::leader(stage)?.pod == first.pod {
        hand_lead_to(stage, &taken_out[1])?;
    }
    while_it_moves(stage, || hand_lead_to(stage, &first)).context("the lead was handed over")?;
    while_it_moves(stage, || {
        taken_out.iter().try_for_each(|peer| {
            let id = id_of(stage, &peer.pod)?;
            order_peer(stage, &first.pod, &["remove", &id.to_string()]).map(drop)
        })
    })
    .context("two peers were removed")?;
    scale(stage, 1)?;
    for peer in &taken_out {
        let wipe = format!("rm -rf {PEER_STATE}/{}/*", peer.pod);
        shell(&stage.lab, peer.node, &wipe)?;
    }
    let alone = voters(stage)?;
    if alone.len() != 1 {
        bail!("one peer was to be left, but {alone:?} vote");
    }
    while_it_moves(stage, || scale(stage, 3)).context("the group was made to grow")?;
    let after = wait_for("three voters", REPLACED_WITHIN, || {
        Ok(Some(voters(stage)?).filter(|voters| voters.len() == before.len()))
    })?;
    println!("          the voters were {before:?}, then {alone:?}, and are {after:?}");
    if after.intersection(&before).ne(&alone) {
        bail!("a removed peer's id was given again: {after:?} after {before:?}");
    }
    all_well(stage)?;
    witness.verdict()?;
    nothing_left(stage)
}

/// Does it while a migration holds the ledger, which must succeed.
fn while_it_moves(stage: &Stage, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let to = other_node(stage)?;
    let mut journey = Journey::begin(stage, "ledger", to, &[])?;
    journey.reaches("Holding")?;
    act()?;
    succeeded(stage, journey, to)
}

fn hand_lead_to(stage: &Stage, peer: &Peer) -> Result<()> {
    let id = id_of(stage, &peer.pod)?;
    order_peer(stage, &peer.pod, &["transfer", &id.to_string()])?;
    let leads = Peer::leader(stage)?;
    if leads.pod != peer.pod {
        bail!(
            "the lead was handed to {}, but {} leads",
            peer.pod,
            leads.pod
        );
    }
    Ok(())
}

fn id_of(stage: &Stage, pod: &str) -> Result<u64> {
    let told = ask_peer(stage, pod, &["peers", "-o", "json"])?;
    let peers: Vec<Value> = told["peers"].as_array().cloned().unwrap_or_default();
    let found = peers.iter().find(|peer| peer["pod"] == pod);
    found
        .and_then(|peer| peer["id"].as_u64())
        .with_context(|| format!("no peer is known in {pod}"))
}
