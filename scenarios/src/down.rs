//! Taking a lab down, from whatever state it is in.
//!
//! The order: processes first, because nothing else can go while they use it; they are found by cgroup, not by name
//! or remembered number, so none escapes and no other program is hit. Mounts need no undoing, they live in the
//! namespaces of the nodes and go with them. Then interfaces, then files, the state file last: a `down` that dies
//! half-way can be repeated.

use crate::cache::Lock;
use crate::cgroup;
use crate::network;
use crate::site::cgroup_of;
use crate::state::{Lab, Stage};
use anyhow::{Context, Result, bail};
use std::fs;

/// Takes down everything of the lab called `name`. Repeating this does nothing.
pub fn down(name: &str) -> Result<()> {
    let (folder, lab) = (Lab::folder_of(name)?, Lab::load(name)?);
    let _alone = match folder
        .exists()
        .then(|| Lock::try_take(&folder))
        .transpose()?
    {
        Some(None) => bail!("another command is at work on lab {name}; end it first"),
        Some(Some(lock)) => Some(lock),
        None => None,
    };
    if let Some(mut lab) = lab.clone() {
        lab.stage = Stage::Stopping;
        lab.save()?;
    }
    cgroup::remove(&cgroup_of(name))?;
    if let Some(lab) = &lab {
        network::remove(&lab.site)?;
    }
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry.context("list the lab's folder")?.path();
        if path.ends_with("state.json") {
            continue;
        }
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
}

/// Whether there is anything of the lab: files, or processes of a lab whose files were removed by hand.
pub fn is_there(name: &str) -> Result<bool> {
    Ok(Lab::folder_of(name)?.exists() || !cgroup::processes(&cgroup_of(name))?.is_empty())
}
