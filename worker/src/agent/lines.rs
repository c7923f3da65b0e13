//! Lines to all peers of the orchestrator, so that whoever leads next has one already.
//!
//! The orchestrator's own address reaches any peer; asked there, it says where all are, again and again, for they move.
//! A peer that isn't told of any more loses its line.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::task::AbortHandle;

use super::line::Dialer;

/// Peers move when their pods are made anew.
const ASK_EVERY: Duration = Duration::from_secs(3);
/// While nobody was found yet.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// A dial may take that long, and a peer without Kubernetes longer to know us.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Until the agent is gone.
pub(super) async fn keep(dialer: Dialer) {
    let mut lines: BTreeMap<String, AbortHandle> = BTreeMap::new();
    while !dialer.events.is_closed() {
        match tokio::time::timeout(ANSWER_WITHIN, dialer.peers()).await {
            Ok(Ok(peers)) => change(&dialer, &mut lines, &peers),
            // Lines that stand need no list.
            Ok(Err(error)) => {
                tracing::warn!(%error, lines = lines.len(), "the orchestrator does not say where its peers are")
            }
            Err(_) => tracing::warn!(lines = lines.len(), "the orchestrator does not answer"),
        }
        let pause = if lines.is_empty() {
            ASK_AGAIN
        } else {
            ASK_EVERY
        };
        tokio::time::sleep(pause).await;
    }
    for line in lines.into_values() {
        line.abort();
    }
}

fn change(dialer: &Dialer, lines: &mut BTreeMap<String, AbortHandle>, peers: &BTreeSet<String>) {
    // A peer that knows nobody yet, not even itself, is no reason to let go of those that are known.
    if peers.is_empty() {
        return;
    }
    lines.retain(|address, line| {
        let kept = peers.contains(address);
        if !kept {
            line.abort();
        }
        kept
    });
    for address in peers {
        if !lines.contains_key(address) {
            let line = tokio::spawn(dialer.clone().keep(address.clone()));
            lines.insert(address.clone(), line.abort_handle());
        }
    }
}
