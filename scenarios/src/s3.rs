//! The lab's S3 server: built by cargo, run on the bridge address. A development store: it keeps files in a folder,
//! checks one fixed key, and is gone with the lab. Any other S3 endpoint can be used in its place.

use crate::cache::{self, Part, run_logged};
use crate::control::{self, UNIT};
use crate::process;
use crate::site::S3_PORT;
use crate::state::Lab;
use anyhow::{Context, Result};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The server's program, in its part.
pub const PROGRAM: &str = "lab-s3";
/// The bucket made at the start.
pub const BUCKET: &str = "longshore";
/// The development key: for a store that only this machine reaches and that is gone with the lab.
pub const ACCESS_KEY: &str = "longshore";
/// Its secret, which is none.
pub const SECRET_KEY: &str = "longshore-development";
/// Any region will do; clients must name one.
pub const REGION: &str = "us-east-1";

/// Where cargo puts what it builds: the user's choice, or the cache.
pub fn target_folder() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
        Some(folder) => Ok(folder.into()),
        None => Ok(cache::root()?.join("target")),
    }
}

/// The part with the server's program.
pub fn part() -> Result<Part> {
    let mut ingredients = Vec::new();
    for file in [
        "Cargo.lock",
        "scenarios/s3/Cargo.toml",
        "scenarios/s3/src/main.rs",
        "scenarios/s3/src/store.rs",
    ] {
        let path = cache::project().join(file);
        ingredients.push((
            file,
            fs::read(&path).with_context(|| format!("read {}", path.display()))?,
        ));
    }
    Ok(Part::new("s3", ingredients))
}

/// Builds the server into `target`.
pub fn make(target: &Path) -> Result<()> {
    let cargo_target = target_folder()?;
    let mut command = Command::new("cargo");
    // Selected from the whole workspace, so that its dependencies are built with the features everything else uses.
    command
        .current_dir(cache::project())
        .env("CARGO_TARGET_DIR", &cargo_target)
        .args(["build", "--workspace", "--bin", PROGRAM]);
    run_logged("s3", &mut command).context("build the S3 server with cargo")?;
    let program = cargo_target.join("debug").join(PROGRAM);
    fs::copy(&program, target.join(PROGRAM))
        .with_context(|| format!("keep {}", program.display()))?;
    Ok(())
}

/// Starts the server and waits until it listens.
pub fn start(lab: &mut Lab) -> Result<()> {
    let folder = lab.folder()?.join("s3");
    fs::create_dir_all(&folder).context("create the S3 server's folder")?;
    let program = lab
        .s3
        .clone()
        .context("the S3 server has not been built yet")?
        .join(PROGRAM);
    let address = SocketAddr::from((lab.site.gateway(), S3_PORT));
    let mut command = process::in_group(lab, UNIT)?;
    command
        .arg(program)
        .args([
            "--listen",
            &address.to_string(),
            "--bucket",
            BUCKET,
            "--access-key",
            ACCESS_KEY,
            "--secret-key",
            SECRET_KEY,
        ])
        .arg(folder);
    process::start(lab, "s3", &command)?;
    control::wait_listening(lab, "s3", address)
}

/// The server's address as clients are told it.
pub fn endpoint(lab: &Lab) -> String {
    format!("http://{}:{S3_PORT}", lab.site.gateway())
}
