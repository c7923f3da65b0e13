//! The parts every lab shares: the node root filesystem and the Kubernetes programs. Made once, kept in the cache.
//!
//! Nodes run Debian's newest (sid): its CRIU is the first packaged one that works on kernels from 6.16. The tree is
//! also where the host-side programs come from that Debian packages and we don't want installed on the host: etcd,
//! the registry, and redis for the redis image. They are started by the tree's own loader, see [`program`].

use crate::cache::{self, Part, run_logged};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a node has, and what is taken from its tree.
const PACKAGES: &[&str] = &[
    // the runtime and what checkpoints
    "containerd",
    "runc",
    "crun",
    "criu",
    "containernetworking-plugins",
    // what kubelet, kube-proxy and people call
    "iproute2",
    "iptables",
    "conntrack",
    "kmod",
    "procps",
    "util-linux",
    "tar",
    "ca-certificates",
    "curl",
    // for the host's side and for images
    "etcd-server",
    "docker-registry",
    "redis-server",
    "redis-tools",
];
const SUITE: &str = "sid";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Raised when the way a tree is made changes without its packages changing.
const BASE_RECIPE: &str = "1";
const KUBE_RECIPE: &str = "1";

/// Kubernetes' version, as the programs report it; the sources' own is in go.mod.
const KUBE_VERSION: &str = "v1.36.3";
/// The names the one binary is called by.
pub const KUBE_PROGRAMS: &[&str] = &[
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
];

/// The node root filesystem.
pub fn base() -> Part {
    let packages = PACKAGES.join(",").into_bytes();
    Part::new(
        "base",
        [
            ("recipe", BASE_RECIPE.into()),
            ("suite", SUITE.into()),
            ("packages", packages),
        ],
    )
}

/// Makes the node root filesystem in `target`.
pub fn make_base(target: &Path) -> Result<()> {
    debian(target, PACKAGES)
}

/// Makes a tree of Debian packages in `target`.
pub fn debian(target: &Path, packages: &[&str]) -> Result<()> {
    let source = format!(
        "deb [signed-by={KEYRING}] {} {SUITE} main",
        debian_archive()?
    );
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=root", "--variant=minbase", "--skip=output/dev"])
        // A mirror may be a snapshot whose index has expired; the keyring still vouches for it.
        .arg(r#"--aptopt=Acquire::Check-Valid-Until "false""#)
        .arg(format!("--include={}", packages.join(",")))
        .arg(SUITE)
        .arg(target)
        .arg(source);
    run_logged("base", &mut command).context("build a tree of Debian packages with mmdebstrap")
}

/// The archive this machine installs from: the one that is known to be reachable.
fn debian_archive() -> Result<String> {
    let mut texts = Vec::new();
    for file in [
        "/etc/apt/sources.list.d/debian.sources",
        "/etc/apt/sources.list",
    ] {
        texts.extend(fs::read_to_string(file));
    }
    match texts.iter().find_map(|text| archive_in(text)) {
        Some(archive) => Ok(archive),
        None => bail!(
            "no Debian archive is named in this machine's apt sources; the lab builds its nodes from one"
        ),
    }
}

fn archive_in(sources: &str) -> Option<String> {
    let uses = sources
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'));
    let words = uses
        .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
        .flat_map(str::split_whitespace);
    words
        .filter(|word| word.contains("://") && !word.contains("security"))
        .map(str::to_owned)
        .next()
}

/// The Kubernetes programs.
pub fn kube() -> Result<Part> {
    let mut ingredients = vec![
        ("recipe", KUBE_RECIPE.into()),
        ("version", KUBE_VERSION.into()),
    ];
    for file in ["go.mod", "go.sum", "main.go"] {
        let path = kube_sources().join(file);
        ingredients.push((
            file,
            fs::read(&path).with_context(|| format!("read {}", path.display()))?,
        ));
    }
    Ok(Part::new("kube", ingredients))
}

/// Builds the Kubernetes programs into `target`.
pub fn make_kube(target: &Path) -> Result<()> {
    let minor = KUBE_VERSION
        .trim_start_matches('v')
        .split('.')
        .nth(1)
        .unwrap_or_default();
    let stamp =
        |name: &str, value: &str| format!("-X k8s.io/component-base/version.{name}={value}");
    let flags = [
        "-s -w".to_owned(),
        stamp("gitVersion", KUBE_VERSION),
        stamp("gitMajor", "1"),
        stamp("gitMinor", minor),
        stamp("gitTreeState", "clean"),
    ];
    let mut command = Command::new("go");
    command
        .current_dir(kube_sources())
        .env("CGO_ENABLED", "0")
        // The linker drops what debuggers need, so that nothing is lost by not writing it: the same program, sooner.
        .args(["build", "-trimpath", "-gcflags=all=-dwarf=false"])
        .args(["-ldflags", &flags.join(" "), "-o"])
        .arg(target.join("kube"))
        .arg(".");
    run_logged("kube", &mut command).context("build Kubernetes with go")?;
    for program in KUBE_PROGRAMS {
        std::os::unix::fs::symlink("kube", target.join(program))
            .with_context(|| format!("name the binary {program}"))?;
    }
    Ok(())
}

fn kube_sources() -> PathBuf {
    cache::project().join("scenarios/lab/kube")
}

/// A command that runs a program of the tree on the host, with the tree's own loader and libraries: the host's may be
/// older than the program needs. A static program needs neither.
pub fn program(base: &Path, path: &str) -> Result<Vec<PathBuf>> {
    let program = base.join(path);
    let bytes = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    match interpreter(&bytes) {
        None => Ok(vec![program]),
        Some(loader) => {
            let loader = base.join(loader.trim_start_matches('/'));
            let libraries = base
                .join("usr/lib")
                .join(format!("{}-linux-gnu", std::env::consts::ARCH));
            Ok(vec![loader, "--library-path".into(), libraries, program])
        }
    }
}

/// The loader an ELF program asks for (its PT_INTERP segment), if any.
fn interpreter(elf: &[u8]) -> Option<String> {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, bytes: usize| {
        elf.get(at..at + bytes).map(|raw| {
            raw.iter()
                .rev()
                .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
        })
    };
    // 64-bit little-endian ELF: table offset at 32, entry size at 54, count at 56; in an entry type at 0, offset at 8, size at 32.
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let entry = (0..count)
        .map(|n| (table + n * size) as usize)
        .find(|at| number(*at, 4) == Some(u64::from(PT_INTERP)))?;
    let (offset, length) = (
        number(entry + 8, 8)? as usize,
        number(entry + 32, 8)? as usize,
    );
    let text = elf.get(offset..offset + length)?;
    Some(
        String::from_utf8_lossy(text)
            .trim_end_matches('\0')
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_taken_from_either_form_of_apt_sources() {
        let new = "Types: deb\n# http://old.example/debian\nURIs: http://a.example/debian\nSuites: bookworm\n";
        assert_eq!(archive_in(new).as_deref(), Some("http://a.example/debian"));
        let old = "# deb http://c.example/debian x\ndeb http://s.example/debian-security x-security main\ndeb [arch=amd64] http://b.example/debian x main\n";
        assert_eq!(archive_in(old).as_deref(), Some("http://b.example/debian"));
        assert_eq!(archive_in("Types: deb\n"), None);
    }

    #[test]
    fn a_dynamic_program_names_its_loader_and_a_text_file_none() {
        let shell = fs::read("/bin/sh").unwrap();
        assert!(
            interpreter(&shell).is_some_and(|loader| loader.contains("ld-linux")),
            "{:?}",
            interpreter(&shell)
        );
        assert_eq!(interpreter(b"#!/bin/sh\n"), None);
    }
}
