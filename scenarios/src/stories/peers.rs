//! The orchestrator's peers as stories see them: who leads, where each runs, and what it says.

use anyhow::{Context, Result};
use serde_json::Value;
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    Stage,
    harm::{MENDED_WITHIN, processes},
};
use crate::{
    deploy::{NAMESPACE, PEER_COUNT, PEERS},
    http,
    process::wait_for,
    site::Site,
};

/// Where a peer serves its metrics; `deploy/` says the same.
pub const METRICS_PORT: u16 = 7480;
/// The leader's line in them.
const LEADS: &str = "longshore_log_leads 1";
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// A peer of the orchestrator: its pod, where it is, and its process.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The pod's name.
    pub pod: String,
    /// The number of its node.
    pub node: u8,
    /// Its process, by its number on the host.
    pub pid: u32,
}

impl Peer {
    /// The one that leads and has a majority behind it.
    pub fn leader(stage: &Stage) -> Result<Self> {
        wait_for("a peer to lead", MENDED_WITHIN, || {
            for ordinal in 0..PEER_COUNT {
                let pod = format!("{PEERS}-{ordinal}");
                // One that restarts just now answers nothing: another one will.
                if let Ok(told) = ask_peer(stage, &pod, &["leader", "-o", "json"])
                    && told["quorum"] == true
                    && let Some(leader) = told["pod"].as_str().filter(|pod| !pod.is_empty())
                {
                    return Self::named(stage, leader).map(Some);
                }
            }
            Ok(None)
        })
    }

    /// One that follows.
    pub fn follower(stage: &Stage) -> Result<Self> {
        let leader = Self::leader(stage)?;
        let ordinal = (0..PEER_COUNT)
            .find(|ordinal| format!("{PEERS}-{ordinal}") != leader.pod)
            .context("there is a peer that follows")?;
        Self::of(stage, ordinal)
    }

    /// The one of this ordinal.
    pub fn of(stage: &Stage, ordinal: u8) -> Result<Self> {
        Self::named(stage, &format!("{PEERS}-{ordinal}"))
    }

    fn named(stage: &Stage, name: &str) -> Result<Self> {
        let pod = stage.cluster.json(&["-n", NAMESPACE, "get", "pod", name])?;
        let on = pod["spec"]["nodeName"]
            .as_str()
            .context("the peer is on no node")?;
        let uid = pod["metadata"]["uid"].as_str().context("a pod has a UID")?;
        let numbers = stage.lab.site.node_numbers();
        let node = numbers
            .into_iter()
            .find(|n| Site::node_name(*n) == on)
            .with_context(|| format!("the lab has no node {on}"))?;
        let pid = wait_for(&format!("{name} to run"), MENDED_WITHIN, || {
            let all = processes(&stage.lab, node, "orchestrator");
            let of_pod = |pid: &u32| {
                let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
                groups.is_ok_and(|groups| groups.contains(uid))
            };
            Ok(all.into_iter().find(of_pod))
        })?;
        let pod = name.to_owned();
        Ok(Self { pod, node, pid })
    }
}

/// Waits until another peer leads: it has applied an entry of its own, so it can apply the next command.
pub fn led_by_another(stage: &Stage, lost: &Peer) -> Result<()> {
    let pods = stage.cluster.json(&["-n", NAMESPACE, "get", "pods"])?;
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let others = pods.iter().filter_map(|pod| {
        let name = pod["metadata"]["name"].as_str()?;
        let ip: IpAddr = pod["status"]["podIP"].as_str()?.parse().ok()?;
        (name.starts_with(PEERS) && name != lost.pod).then(|| SocketAddr::new(ip, METRICS_PORT))
    });
    let others: Vec<SocketAddr> = others.collect();
    wait_for("another peer to lead", MENDED_WITHIN, || {
        let leads = |peer: &SocketAddr| {
            http::get(*peer, "/metrics", ANSWER_WITHIN)
                .is_ok_and(|answer| answer.text().lines().any(|line| line == LEADS))
        };
        Ok(others.iter().any(leads).then_some(()))
    })
}

/// Gives an order from a peer's pod, as an operator does; what was said.
pub fn order_peer(stage: &Stage, pod: &str, words: &[&str]) -> Result<String> {
    let exec = ["-n", NAMESPACE, "exec", pod, "--", "orchestrator"];
    stage.cluster.run(&[&exec[..], words].concat())
}

/// What a peer's own command says, which must be JSON.
pub fn ask_peer(stage: &Stage, pod: &str, words: &[&str]) -> Result<Value> {
    let said = order_peer(stage, pod, words)?;
    serde_json::from_str(said.trim()).with_context(|| format!("understand what {pod} says: {said}"))
}
