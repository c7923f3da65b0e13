//! Programs written in Python, each with what it needs in a folder of its own in the cache.

use crate::{cache, process};
use anyhow::{Context, Result};
use std::{fs, path::PathBuf, process::Command, time::Duration};

/// A cold install fetches some forty packages.
const INSTALLED_WITHIN: Duration = Duration::from_secs(300);

/// A program of a package, installed once for all labs.
pub fn install(name: &str, package: &str, program: &str) -> Result<PathBuf> {
    let folder = cache::root()?.join(name);
    let program = folder.join("bin").join(program);
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let mut make = Command::new("python3");
    make.args(["-m", "venv"]).arg(&folder);
    process::succeed(&mut make, INSTALLED_WITHIN)?;
    let mut install = Command::new(folder.join("bin/pip"));
    install.args(["install", "--quiet", package]);
    process::succeed(&mut install, INSTALLED_WITHIN)
        .with_context(|| format!("install {package}"))?;
    Ok(program)
}
