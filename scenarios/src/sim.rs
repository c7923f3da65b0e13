//! `lab sim`: builds the simulator and runs it. What it does is `scenarios/sim`.
//!
//! It runs production code a hundred thousand times, so our own crates are optimised for it, in one codegen unit as
//! Cargo.toml says why. Dependencies are those of every other build: a profile of its own would build them all again.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{cache, s3::target_folder, steps::Steps};

const PROGRAM: &str = "lab-sim";
/// Ours, as Cargo calls them.
const OPTIMISED: [&str; 5] = [
    "lab-sim",
    "longshore-proto",
    "orchestrator",
    "orchestrator-core",
    "worker",
];

/// The seeds of a test run: some minutes on two cores. What is known of more of them is in ARCHITECTURE.md.
const TEST_SEEDS: &str = "0..100000";

/// Lets cargo build these packages of ours as they would be shipped.
pub fn optimise(cargo: &mut Command, packages: &[&str]) {
    for package in packages {
        for setting in ["opt-level=2", "codegen-units=1"] {
            let setting = format!("profile.dev.package.{package}.{setting}");
            cargo.args(["--config", &setting]);
        }
    }
}

/// Runs cargo, whose words go by, to its end.
pub fn cargo_ends_well(cargo: &mut Command) -> Result<()> {
    let ended = cargo.status().context("start cargo")?;
    if !ended.success() {
        bail!("cargo ended with {ended}");
    }
    Ok(())
}

fn build() -> Result<PathBuf> {
    let target = target_folder()?;
    let mut command = Command::new("cargo");
    // Selected from the whole workspace, so that dependencies have the features everything else uses.
    command
        .current_dir(cache::project())
        .env("CARGO_TARGET_DIR", &target)
        .args(["build", "--locked", "--quiet", "--workspace"])
        .args(["--bin", PROGRAM]);
    optimise(&mut command, &OPTIMISED);
    let steps = Steps::start();
    steps.run(
        "build the simulator as it would be shipped: minutes, the first time",
        || cargo_ends_well(&mut command),
    )?;
    Ok(target.join("debug").join(PROGRAM))
}

/// Runs it with these arguments; its exit code is ours.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let status = Command::new(build()?)
        .args(arguments)
        .status()
        .context("start the simulator")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// What a test run asks of it: every one of these schedules keeps the promise.
pub fn check() -> Result<bool> {
    Ok(run(&["--seeds".to_owned(), TEST_SEEDS.to_owned()])? == ExitCode::SUCCESS)
}
