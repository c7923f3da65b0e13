//! `migrate store`: what an ended migration left is found and removed, what nobody knows stays until somebody says so.

use super::super::{Stage, harm::nothing_left};
use super::run_ledger;
use crate::s3;
use anyhow::{Context, Result, ensure};
use std::{fs, path::PathBuf};

/// Of no migration: as another cluster's would look.
const STRANGER: &str = "0f0e0d0c-0b0a-4900-8807-060504030201";

/// Rubbish of a migration that has ended, and of one that the log never knew.
pub fn cleared_up(stage: &Stage) -> Result<()> {
    run_ledger(stage, "ledger", "node1")?;
    stage.move_pod("ledger", "node2")?;
    nothing_left(stage)?;
    let migrations = stage.migrations()?;
    let uid = migrations
        .last()
        .and_then(|migration| migration["metadata"]["uid"].as_str())
        .context("there is no migration")?;
    let [ours, strangers] = [uid, STRANGER].map(|id| rubbish(stage, id));
    let (ours, strangers) = (ours?, strangers?);
    let stats = asked(stage, &["stats"])?;
    ensure!(stats.contains(uid) && stats.contains("Ended"), "{stats}");
    ensure!(stats.contains("Unknown"), "{stats}");
    let checked = asked(stage, &["check"])?;
    ensure!(checked.contains("every checkpoint is whole"), "{checked}");
    let cleared = asked(stage, &["gc"])?;
    ensure!(!ours.exists(), "what it left is there still:\n{cleared}");
    ensure!(strangers.exists(), "what nobody knows is gone:\n{cleared}");
    let cleared = asked(stage, &["gc", "--unknown"])?;
    ensure!(!strangers.exists(), "it is there still:\n{cleared}");
    let left = stage
        .cluster
        .run(&["get", "storetasks", "--ignore-not-found", "-o", "name"])?;
    ensure!(left.trim().is_empty(), "tasks are left over: {left}");
    Ok(())
}

/// An object as a capture leaves it that ended before its manifest.
fn rubbish(stage: &Stage, id: &str) -> Result<PathBuf> {
    let bucket = stage.lab.folder()?.join("s3").join(s3::BUCKET);
    let packs = bucket.join(format!("checkpoints/{id}/7/packs"));
    fs::create_dir_all(&packs)
        .and_then(|()| fs::write(packs.join("left"), "bytes"))
        .with_context(|| format!("leave something in {}", packs.display()))?;
    Ok(packs.join("left"))
}

fn asked(stage: &Stage, words: &[&str]) -> Result<String> {
    let told = stage.migrate(&[&["store"], words].concat())?;
    ensure!(
        told.code == 0,
        "migrate store {} ended with {}:\n{}",
        words.join(" "),
        told.code,
        told.text
    );
    Ok(told.text)
}
