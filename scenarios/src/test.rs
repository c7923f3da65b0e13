//! `lab test`: every test there is. First `cargo test --workspace`, the simulator and the store's tests on the lab's S3
//! server, which need neither root nor a cluster; then the stories on a real one. The last line counts them together.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    cache, deploy, down, machine, sim,
    state::Lab,
    steps::Steps,
    stores,
    stories::{self, Told},
    up,
};

/// Two between which pods move, and one more, so that the majority of the orchestrator's peers bears a cut one.
const NODES: u8 = 3;

/// Tests counted in lines that cargo's test programs print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Runs everything and prints the counts; fails when anything failed.
pub fn test(name: &str, wanted: &[String], stories_only: bool) -> Result<ExitCode> {
    let mut counted = Counted::default();
    let mut broken = Vec::new();
    if !stories_only && wanted.is_empty() {
        let (own, success) = workspace_tests()?;
        counted = own;
        if !success {
            broken.push("cargo test --workspace failed".to_owned());
        }
        println!("the simulator:");
        if sim::check()? {
            counted.passed += 1;
        } else {
            broken.push("the simulator found a violation".to_owned());
        }
        store_tests(&mut counted, &mut broken)?;
    }
    let stories = stories::all();
    if !wanted.is_empty()
        && !stories
            .iter()
            .any(|story| stories::is_wanted(story.name, wanted))
    {
        bail!("there is no story with {} in its name", wanted.join(" or "));
    }
    let told = if rustix::process::geteuid().is_root() {
        tell(name, &stories, wanted)?
    } else {
        let why = "stories need root: a lab makes namespaces and cgroups";
        let skipped = stories
            .iter()
            .filter(|story| stories::is_wanted(story.name, wanted));
        Told {
            skipped: skipped
                .map(|story| (story.name.to_owned(), why.to_owned()))
                .collect(),
            ..Told::default()
        }
    };
    let Told {
        passed,
        failed,
        skipped,
    } = told;
    for (story, why) in &skipped {
        println!("  skipped {story}: {why}");
    }
    broken.extend(failed.iter().map(|(story, why)| format!("{story}: {why}")));
    for why in &broken {
        println!("FAILED {why}");
    }
    println!(
        "stories: {passed} passed, {} failed, {} skipped",
        failed.len(),
        skipped.len()
    );
    let failures = (counted.failed + failed.len()).max(usize::from(!broken.is_empty()));
    println!(
        "{} passed, {failures} failed, {} skipped",
        counted.passed + passed,
        counted.skipped + skipped.len()
    );
    Ok(if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The worker's store on the lab's own S3 server; counted as one test.
fn store_tests(counted: &mut Counted, broken: &mut Vec<String>) -> Result<()> {
    println!("the worker's store on the lab's S3 server:");
    if stores::check(stores::Kind::Embedded)? {
        counted.passed += 1;
    } else {
        broken.push("the worker's store failed on the lab's S3 server".to_owned());
    }
    Ok(())
}

/// `lab faults`: the matrix, on a lab that is up or is started for it.
pub fn faults(name: &str, cells: &[String], json: Option<&Path>) -> Result<ExitCode> {
    let was_up = down::is_there(name)?;
    let steps = Steps::start();
    machine::install(&steps, stories::FROM_DEBIAN)?;
    let lab = up::up(name, NODES, &steps)?;
    deploy::deploy(&lab, None, &steps)?;
    drop(steps);
    let held = stories::faults(&Lab::expect(name)?, cells, json);
    if !was_up {
        down::down(name)?;
    }
    Ok(if held? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tell(name: &str, stories: &[stories::Story], wanted: &[String]) -> Result<Told> {
    let was_up = down::is_there(name)?;
    let told = {
        let steps = Steps::start();
        machine::install(&steps, stories::FROM_DEBIAN)?;
        let lab = up::up(name, NODES, &steps)?;
        deploy::deploy(&lab, None, &steps)?;
        drop(steps);
        println!("stories on lab {name}:");
        stories::tell(stories, wanted, &Lab::expect(name)?)
    };
    if !was_up {
        down::down(name)?;
    }
    told
}

/// Its output goes by as it comes; the counts are read from it.
fn workspace_tests() -> Result<(Counted, bool)> {
    let mut child = Command::new("cargo")
        .args(["test", "--workspace", "--locked", "--no-fail-fast"])
        .current_dir(cache::project())
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .context("start cargo test")?;
    let output = child.stdout.take().context("read what cargo test prints")?;
    let mut counted = Counted::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("read what cargo test prints")?;
        if let Some(one) = count(&line) {
            counted.passed += one.passed;
            counted.failed += one.failed;
            counted.skipped += one.skipped;
        }
        println!("{line}");
    }
    let status = child.wait().context("wait for cargo test")?;
    Ok((counted, status.success()))
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; …`
fn count(line: &str) -> Option<Counted> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        let part = counts
            .split(';')
            .map(str::trim)
            .find(|part| part.ends_with(word))?;
        part.split(' ').next()?.parse().ok()
    };
    Some(Counted {
        passed: number("passed")?,
        failed: number("failed")?,
        skipped: number("ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_own_counts_are_read() {
        let line = "test result: FAILED. 12 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.01s";
        assert_eq!(
            count(line),
            Some(Counted {
                passed: 12,
                failed: 1,
                skipped: 2
            })
        );
        assert_eq!(count("test a_story ... ok"), None);
    }
}
