//! What the machine must have: installed by `up` where Debian packages it, told by `doctor` where only a person can.

use crate::cache::run_logged;
use crate::cgroup;
use crate::steps::Steps;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs and files the lab uses, and the Debian package of each.
const FROM_DEBIAN: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("setsid", "util-linux"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("mmdebstrap", "mmdebstrap"),
    (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
    ("cc", "gcc"),
    ("strip", "binutils"),
    ("/usr/include/stdlib.h", "libc6-dev"),
];
/// Programs only a person can bring, and how.
const FROM_A_PERSON: &[(&str, &str)] = &[
    ("go", "install Go 1.26 or newer from the Go project"),
    ("cargo", "install Rust with rustup"),
    ("rustc", "install Rust with rustup"),
];

const NEEDS_ROOT: &str = "a lab makes namespaces, mounts and cgroups: run it as root";

/// Installs the Debian packages of programs that are missing, as a step; does nothing when there are none.
pub fn install(steps: &Steps, wanted: &[(&str, &'static str)]) -> Result<()> {
    let mut missing: Vec<&str> = wanted
        .iter()
        .filter(|(what, _)| find(what).is_none())
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    steps.run("install missing Debian packages", || {
        install_packages(&missing)
    })
}

fn install_packages(missing: &[&str]) -> Result<()> {
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(words);
        run_logged("apt", &mut command)
    };
    apt(&["update"]).context("refresh the list of Debian packages")?;
    apt(&[&["install", "--yes", "--no-install-recommends"], missing].concat())
        .with_context(|| format!("install {}", missing.join(", ")))
}

/// Fails, with all reasons, when a lab cannot run here.
fn check() -> Result<()> {
    let mut reasons: Vec<String> = Vec::new();
    if !rustix::process::geteuid().is_root() {
        reasons.push(NEEDS_ROOT.into());
    }
    let missing = FROM_A_PERSON
        .iter()
        .filter(|(what, _)| find(what).is_none());
    reasons.extend(missing.map(|(what, how)| format!("{what} is missing: {how}")));
    if find("apt-get").is_none() {
        reasons.push(
            "apt-get is missing: the lab builds its nodes from Debian packages and runs on Debian"
                .into(),
        );
    }
    if !reasons.is_empty() {
        bail!("this machine cannot run a lab:\n  {}", reasons.join("\n  "));
    }
    Ok(())
}

/// What is here and what isn't, and whether a lab can run.
pub fn doctor() -> (String, bool) {
    let (mut lines, mut well) = (Vec::new(), true);
    for (what, package) in FROM_DEBIAN {
        lines.push(match find(what) {
            Some(path) => format!("ok       {what}: {}", path.display()),
            None => format!("will be  {what}: `lab up` installs the Debian package {package}"),
        });
    }
    let programs = FROM_A_PERSON.iter().map(|(what, how)| {
        let found = find(what).map(|path| path.display().to_string());
        (*what, found.ok_or_else(|| (*how).to_owned()))
    });
    let root = if rustix::process::geteuid().is_root() {
        Ok("yes".to_owned())
    } else {
        Err(NEEDS_ROOT.to_owned())
    };
    let told = |state: Result<String>| state.map_err(|error| format!("{error:#}"));
    let machine = [
        ("root", root),
        ("cgroups", told(cgroup_kind())),
        ("memory", told(memory())),
    ];
    for (what, state) in programs.chain(machine) {
        well &= state.is_ok();
        lines.push(match state {
            Ok(text) => format!("ok       {what}: {text}"),
            Err(reason) => format!("MISSING  {what}: {reason}"),
        });
    }
    (lines.join("\n") + "\n", well)
}

fn cgroup_kind() -> Result<String> {
    let found = cgroup::hierarchies()?;
    let v2 = found
        .iter()
        .any(|hierarchy| hierarchy.kind == cgroup::Kind::V2);
    Ok(if v2 {
        "v2 (the lab is tried on v1 more often)".into()
    } else {
        format!("v1, {} hierarchies", found.len())
    })
}

/// A lab of two nodes takes about 2 GiB, its first build (Kubernetes, linked by go) 4.
fn memory() -> Result<String> {
    const NEEDED_MIB: u64 = 4 * 1024;
    let text = std::fs::read_to_string("/proc/meminfo").context("read the machine's memory")?;
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    let mib = kib.context("find the available memory in /proc/meminfo")? / 1024;
    if mib < NEEDED_MIB {
        bail!("{mib} MiB available; a lab wants {NEEDED_MIB}");
    }
    Ok(format!("{mib} MiB available"))
}

/// Makes the machine fit for a lab, or says why it can't be.
pub fn prepare(steps: &Steps) -> Result<()> {
    check()?;
    install(steps, FROM_DEBIAN)
}

/// A program on the PATH, or a file by its absolute path.
fn find(what: &str) -> Option<PathBuf> {
    if what.starts_with('/') {
        return Path::new(what).exists().then(|| what.into());
    }
    let path = std::env::var_os("PATH")?;
    // Administrators' programs are not on everybody's PATH, but the lab runs as root and will find them.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(what))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_on_the_path_and_a_file_by_its_own() {
        assert!(find("sh").is_some());
        assert!(find("/etc/passwd").is_some());
        assert!(find("no-such-program-anywhere").is_none());
        assert!(find("/no/such/file").is_none());
    }
}
