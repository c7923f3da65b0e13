//! The images of the lab, all built here: pause, kuard, ledger and redis, as one OCI layout and one archive of it.
//!
//! Ours are single static binaries compiled straight by rustc from `src/bin`: no library to match, an image of two
//! megabytes, and the lab doesn't wait for cargo. Redis is Debian's, out of the node tree, with the libraries it names.

use crate::cache::{self, Part, run_logged};
use crate::oci::{self, Image, Tree};
use crate::process;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The image that holds a pod's namespaces.
pub const PAUSE: &str = "registry.lab:5000/pause:1";
/// The web server.
pub const KUARD: &str = "registry.lab:5000/kuard:1";
/// The counter.
pub const LEDGER: &str = "registry.lab:5000/ledger:1";
/// Debian's redis.
pub const REDIS: &str = "registry.lab:5000/redis:1";

/// Raised when images are made in another way from the same sources.
const RECIPE: &str = "1";
const OURS: &[(&str, &str)] = &[("pause", PAUSE), ("kuard", KUARD), ("ledger", LEDGER)];

/// The part with all images: `layout/` and `images.tar`.
pub fn part(base: &Part) -> Result<Part> {
    let mut ingredients = vec![
        ("recipe", RECIPE.into()),
        ("base", base.path()?.as_os_str().as_encoded_bytes().to_vec()),
    ];
    for file in ["answer/mod.rs", "kuard.rs", "ledger.rs", "pause.rs"] {
        let path = sources().join(file);
        ingredients.push((
            file,
            fs::read(&path).with_context(|| format!("read {}", path.display()))?,
        ));
    }
    Ok(Part::new("workloads", ingredients))
}

/// Builds all images into `target`.
pub fn make(base: &Path, target: &Path) -> Result<()> {
    let programs = target.join("programs");
    fs::create_dir(&programs).context("create the folder of programs")?;
    let mut images = Vec::new();
    for (name, image) in OURS {
        let program = programs.join(name);
        compile(name, &program)?;
        let mut tree = Tree::default();
        tree.program(name, &program);
        tree.folder("tmp", 0o1777);
        images.push(Image {
            name: (*image).to_owned(),
            tree,
            entrypoint: vec![format!("/{name}")],
            arguments: Vec::new(),
        });
    }
    images.push(redis(base)?);
    let layout = target.join("layout");
    oci::write_layout(&layout, &images)?;
    oci::archive(&layout, &target.join("images.tar"))
}

fn sources() -> PathBuf {
    cache::project().join("scenarios/src/bin")
}

fn compile(name: &str, program: &Path) -> Result<()> {
    let mut command = Command::new("rustc");
    command
        // In the project's folder rustup picks the project's compiler.
        .current_dir(cache::project())
        .args([
            "--edition",
            "2024",
            "-C",
            "opt-level=2",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
            "--crate-name",
            name,
            "-o",
        ])
        .arg(program)
        .arg(sources().join(format!("{name}.rs")));
    run_logged("workloads", &mut command).with_context(|| format!("compile {name}"))
}

/// Debian's redis: server and client, and every library they load. It keeps nothing on disk unless told to, and
/// answers from anywhere; the lab's network ends at the machine.
fn redis(base: &Path) -> Result<Image> {
    let mut tree = Tree::default();
    for program in ["redis-server", "redis-cli"] {
        add_with_libraries(&mut tree, base, &format!("/usr/bin/{program}"))?;
    }
    tree.folder("tmp", 0o1777);
    tree.folder("data", 0o755);
    tree.text("etc/passwd", "root:x:0:0:root:/:/bin/false\n");
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let arguments = words(&[
        "--save",
        "",
        "--appendonly",
        "no",
        "--protected-mode",
        "no",
        "--bind",
        "0.0.0.0",
        "--dir",
        "/data",
        "--io-threads",
        "1",
    ]);
    Ok(Image {
        name: REDIS.into(),
        tree,
        entrypoint: words(&["/usr/bin/redis-server"]),
        arguments,
    })
}

/// Adds a program of the node tree and the libraries that the tree's own loader finds for it.
fn add_with_libraries(tree: &mut Tree, base: &Path, program: &str) -> Result<()> {
    tree.program(program, base.join(program.trim_start_matches('/')));
    let root = base.display().to_string();
    let listing = process::run("chroot", [root.as_str(), "ldd", program])
        .with_context(|| format!("list the libraries of {program}"))?;
    for library in libraries_in(&listing) {
        // Where the loader asked for it, with the content it leads to: links on the way are the tree's affair.
        let real = process::run("chroot", [root.as_str(), "readlink", "-f", library])
            .with_context(|| format!("find {library}"))?;
        tree.program(library, base.join(real.trim().trim_start_matches('/')));
    }
    Ok(())
}

/// The absolute paths in what ldd prints.
pub fn libraries_in(listing: &str) -> Vec<&str> {
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_read_from_ldd_and_the_kernels_own_is_not() {
        let listing = "\tlinux-vdso.so.1 (0x00007fff)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries_in(listing),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }
}
