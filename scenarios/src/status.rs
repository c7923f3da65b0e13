//! What there is of a lab, as text.

use crate::certificates::Pki;
use crate::cluster::Cluster;
use crate::s3;
use crate::site::REGISTRY_PORT;
use crate::state::{Lab, Stage};
use anyhow::Result;
use std::fmt::Write;

/// Tells about the lab called `name`.
pub fn of(name: &str) -> Result<String> {
    let Some(lab) = Lab::load(name)? else {
        return Ok(format!("there is no lab called {name}\n"));
    };
    let stage = match lab.stage {
        Stage::Starting => "starting, or its start was cut off",
        Stage::Up => "up",
        Stage::Stopping => "being taken down, or that was cut off",
    };
    let mut text = format!("lab {name}: {stage}\n");
    writeln!(
        text,
        "kubeconfig  {}",
        Pki::of(&lab.folder()?).kubeconfig("admin").display()
    )?;
    writeln!(text, "registry    {}:{REGISTRY_PORT}", lab.site.gateway())?;
    writeln!(
        text,
        "S3          {} bucket {}",
        s3::endpoint(&lab),
        s3::BUCKET
    )?;
    for (component, process) in &lab.processes {
        let state = if process.is_alive() { "runs" } else { "ENDED" };
        writeln!(text, "{component:<20} {state} as process {}", process.pid)?;
    }
    if lab.stage == Stage::Up {
        match Cluster::of(&lab)?.run(&["get", "nodes", "-o", "wide"]) {
            Ok(nodes) => text += &nodes,
            Err(error) => writeln!(text, "the API does not answer: {error:#}")?,
        }
    }
    Ok(text)
}
