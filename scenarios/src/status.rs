//! What there is of a lab, as text.

use crate::certificates::Pki;
use crate::cluster::Cluster;
use crate::s3;
use crate::site::REGISTRY_PORT;
use crate::state::{Lab, Stage};
use anyhow::Result;

/// Tells about the lab called `name`.
pub fn print(name: &str) -> Result<()> {
    let Some(lab) = Lab::load(name)? else {
        println!("there is no lab called {name}");
        return Ok(());
    };
    let stage = match lab.stage {
        Stage::Starting => "starting, or its start was cut off",
        Stage::Up => "up",
        Stage::Stopping => "being taken down, or that was cut off",
    };
    println!("lab {name}: {stage}");
    println!(
        "kubeconfig  {}",
        Pki::of(&lab.folder()?).kubeconfig("admin").display()
    );
    println!("registry    {}:{REGISTRY_PORT}", lab.site.gateway());
    println!("S3          {} bucket {}", s3::endpoint(&lab), s3::BUCKET);
    for (component, process) in &lab.processes {
        let state = if process.is_alive() { "runs" } else { "ENDED" };
        println!("{component:<20} {state} as process {}", process.pid);
    }
    if lab.stage == Stage::Up {
        match Cluster::of(&lab)?.run(&["get", "nodes", "-o", "wide"]) {
            Ok(nodes) => print!("{nodes}"),
            Err(error) => println!("the API does not answer: {error:#}"),
        }
    }
    Ok(())
}
