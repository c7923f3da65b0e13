//! `lab bench raft`: what the replicated log costs. The bench itself is `orchestrator/benches/raft`, which knows the
//! log; here it is built as it would be shipped, on the dependencies every other build has.

use crate::cache;
use crate::s3::target_folder;
use crate::sim::{cargo_ends_well, optimise};
use crate::steps::Steps;
use anyhow::{Context, Result};
use std::path::{Path, absolute};
use std::process::Command;

/// Ours, as Cargo calls them: optimised, in one codegen unit as Cargo.toml says why.
const OPTIMISED: [&str; 3] = ["longshore-proto", "orchestrator", "orchestrator-core"];

/// Builds and runs it.
pub fn bench(json: Option<&Path>) -> Result<()> {
    let steps = Steps::start();
    steps.run(
        "build the bench as it would be shipped: minutes, the first time",
        || cargo_ends_well(&mut cargo_bench(&["--no-run"])?),
    )?;
    drop(steps);
    let mut command = cargo_bench(&[])?;
    if let Some(file) = json {
        let file = absolute(file).context("find the figures' file")?;
        command.arg("--").arg("--json").arg(file);
    }
    cargo_ends_well(&mut command).context("run the bench of the log")
}

fn cargo_bench(more: &[&str]) -> Result<Command> {
    let mut command = Command::new("cargo");
    command
        .current_dir(cache::project())
        .env("CARGO_TARGET_DIR", target_folder()?)
        .args(["bench", "--locked", "--quiet", "--workspace"])
        .args(["--profile", "dev", "--bench", "raft"])
        .args(more);
    optimise(&mut command, &OPTIMISED);
    Ok(command)
}
