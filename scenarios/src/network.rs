//! The cables: one bridge on the host per lab, one veth pair per node, one route per range of pods.
//!
//! Nothing is forwarded by the host: nodes reach each other over the bridge and route to each other's pods
//! themselves; the host has routes to the pods so that tests can speak to them directly. So no setting of the host
//! and no firewall rule is touched, and a lab cannot reach beyond the machine.

use crate::process::{run, wait_for};
use crate::site::Site;
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

/// Puts up the bridge, with the host's address on it.
pub fn raise_bridge(site: &Site) -> Result<()> {
    let (bridge, address) = (site.bridge(), format!("{}/24", site.gateway()));
    run("ip", ["link", "add", &bridge, "type", "bridge"]).context("make the lab's bridge")?;
    run("ip", ["address", "add", &address, "dev", &bridge])
        .context("give the bridge its address")?;
    run("ip", ["link", "set", &bridge, "up"]).context("put the bridge up")?;
    Ok(())
}

/// Connects node `n`, whose first process is `pid`.
pub fn connect(site: &Site, n: u8, pid: u32) -> Result<()> {
    let (cable, pid, bridge) = (site.cable(n), pid.to_string(), site.bridge());
    run(
        "ip",
        [
            "link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ],
    )
    .context("make the node's cable")?;
    run("ip", ["link", "set", &cable, "master", &bridge, "up"])
        .context("plug the cable into the bridge")?;
    let address = format!("{}/24", site.node_address(n));
    let inside = |args: &[&str]| run("nsenter", ["-t", &pid, "-n", "ip"].iter().chain(args));
    inside(&["link", "set", "lo", "up"]).context("put the node's loopback up")?;
    inside(&["address", "add", &address, "dev", "eth0"]).context("give the node its address")?;
    inside(&["link", "set", "eth0", "up"]).context("put the node's interface up")?;
    inside(&[
        "route",
        "add",
        "default",
        "via",
        &site.gateway().to_string(),
    ])
    .context("give the node its default route")?;
    for other in site.node_numbers().filter(|other| *other != n) {
        inside(&[
            "route",
            "add",
            &site.pod_range(other),
            "via",
            &site.node_address(other).to_string(),
        ])
        .context("route to the other nodes' pods")?;
    }
    // The host learns the way to this node's pods once the node is there.
    run(
        "ip",
        [
            "route",
            "replace",
            &site.pod_range(n),
            "via",
            &site.node_address(n).to_string(),
            "dev",
            &bridge,
        ],
    )
    .context("route from the host to the pods")?;
    Ok(())
}

/// Takes down whatever is there of the lab's interfaces. Repeating this does nothing.
pub fn remove(site: &Site) -> Result<()> {
    let cables = site.node_numbers().map(|n| site.cable(n));
    for interface in cables.chain([site.bridge()]) {
        // The kernel removes a dead node's cable on its own, some time after: it may vanish between look and deletion.
        wait_for(
            &format!("interface {interface} to be gone"),
            Duration::from_secs(10),
            || {
                if !Path::new("/sys/class/net").join(&interface).exists() {
                    return Ok(Some(()));
                }
                let _ = run("ip", ["link", "delete", &interface]);
                Ok(None)
            },
        )?;
    }
    Ok(())
}
