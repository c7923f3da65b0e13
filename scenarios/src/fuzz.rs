//! `lab fuzz`: builds the page engine's fuzz targets with coverage instrumentation and runs each for a while.
//!
//! libFuzzer without cargo-fuzz and without a nightly compiler: the instrumentation is LLVM's own pass, which a stable
//! rustc runs when it is told to. What is found lies in the corpus folder of the target, in the cache; a crash is left
//! beside it, and its path is printed by libFuzzer with the bytes that made it.

use std::{
    fs,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{cache, s3::target_folder};

/// Below the project.
const FOLDER: &str = "worker/pages/fuzz";
const TARGETS: [&str; 5] = ["layout", "recipe", "manifest", "pack", "round"];
/// What cargo-fuzz passes, without the sanitizer that needs a nightly compiler: there is no `unsafe` of ours to watch.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";
/// Inputs beyond this only make it slow.
const INPUT_BYTES_MAX: u32 = 16 << 10;

/// Runs these targets, or all, each for so many seconds. Ends with 1 when one found something.
pub fn run(targets: &[String], seconds: u32) -> Result<ExitCode> {
    let known = |target: &String| TARGETS.contains(&target.as_str());
    if let Some(unknown) = targets.iter().find(|target| !known(target)) {
        bail!(
            "there is no fuzz target {unknown:?}; there are {}",
            TARGETS.join(", ")
        );
    }
    let chosen: Vec<&str> = match targets {
        [] => TARGETS.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    let build = target_folder()?.join("fuzz");
    let built = Command::new("cargo")
        .current_dir(cache::project().join(FOLDER))
        .env("CARGO_TARGET_DIR", &build)
        .env("RUSTFLAGS", FLAGS)
        .args(["build", "--locked", "--release", "--quiet"])
        // Without a target of its own, build scripts and macros would be instrumented, too.
        .args(["--target", &host()?])
        .status()
        .context("start cargo")?;
    if !built.success() {
        bail!("build the fuzz targets: cargo ended with {built}");
    }
    let mut found = Vec::new();
    for target in &chosen {
        let corpus = cache::root()?.join("fuzz").join(target);
        fs::create_dir_all(&corpus).with_context(|| format!("create {}", corpus.display()))?;
        println!("fuzz {target}: {seconds} s");
        let status = Command::new(build.join(host()?).join("release").join(target))
            .current_dir(&corpus)
            .arg(&corpus)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={INPUT_BYTES_MAX}"))
            .args(["-print_final_stats=1", "-verbosity=0"])
            .status()
            .with_context(|| format!("start fuzz target {target}"))?;
        if !status.success() {
            found.push(*target);
        }
    }
    println!(
        "{} fuzz targets, {seconds} s each, {} found something{}{}",
        chosen.len(),
        found.len(),
        if found.is_empty() { "" } else { ": " },
        found.join(", ")
    );
    Ok(if found.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The triple that this machine's compiler builds for.
fn host() -> Result<String> {
    let output = Command::new("rustc")
        .args(["--print", "host-tuple"])
        .output();
    let output = output.context("ask rustc for its host")?;
    let text = String::from_utf8(output.stdout).context("read rustc's host")?;
    Ok(text.trim().to_owned())
}
