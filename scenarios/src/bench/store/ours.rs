//! Our way: the page store's engine, as the worker's example `page_store` calls it.
//!
//! It tells its own times: the worker is there already when it is asked for a step, so a program's start is none of
//! them. The other ways' tools are started for every step by who uses them, and that is a part of what they cost.

use super::STEP_WITHIN;
use super::place::Place;
use crate::cache;
use crate::process;
use crate::s3;
use crate::steps::Steps;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;

const EXAMPLE: &str = "page_store";

/// The program.
pub struct Ours {
    program: PathBuf,
}

/// A checkpoint that the store has: its archive and its manifest.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// The archive.
    pub archive: &'a Path,
    /// The manifest.
    pub manifest: &'a Path,
}

/// What a capture took.
#[derive(Debug, Deserialize)]
pub struct Captured {
    /// Its parts.
    pub seconds: CaptureSeconds,
    /// Bytes that went into the store.
    pub stored_bytes: u64,
    /// Pages that differ from the base's.
    pub changed_pages: u64,
    /// The most memory of its own that it had at once; mapped files are not.
    pub peak_anonymous_bytes: u64,
}

/// Seconds of a capture.
#[derive(Debug, Deserialize)]
pub struct CaptureSeconds {
    /// All of it.
    pub total: f64,
}

/// What a restore took.
#[derive(Debug, Deserialize)]
pub struct Restored {
    /// Its parts.
    pub seconds: RestoreSeconds,
    /// The most memory of its own that it had at once, until the clock was stopped and a little after.
    pub peak_anonymous_bytes: u64,
}

/// Seconds of a restore.
#[derive(Debug, Deserialize)]
pub struct RestoreSeconds {
    /// All of it.
    pub total: f64,
}

/// Where objects are kept.
#[derive(Clone, Copy)]
pub enum Objects<'a> {
    /// On the lab's S3 server.
    S3(&'a Place),
    /// In a folder: what remains is the engine.
    Folder(&'a Path),
}

impl Ours {
    /// Builds it, unless there is one.
    pub fn prepare(built: Option<&Path>, steps: &Steps) -> Result<Self> {
        if let Some(program) = built {
            let program = program.to_owned();
            return Ok(Self { program });
        }
        steps.run("build the page store", || {
            let mut command = Command::new("cargo");
            command
                .current_dir(cache::project())
                .env("CARGO_TARGET_DIR", s3::target_folder()?)
                .args(["build", "--workspace", "--example", EXAMPLE]);
            cache::run_logged("longshore", &mut command)
        })?;
        Ok(Self {
            program: s3::target_folder()?.join("debug/examples").join(EXAMPLE),
        })
    }

    /// Stores an archive; with a base only what differs from it.
    pub fn capture(
        &self,
        archive: &Path,
        base: Option<Stored>,
        manifest_out: &Path,
        objects: Objects,
    ) -> Result<Captured> {
        let mut command = self.command("capture", objects);
        command.arg("--archive").arg(archive);
        add_base(&mut command, base);
        command.arg("--manifest-out").arg(manifest_out);
        answer(&mut command)
    }

    /// Fetches, verifies and decodes what is new into the file `new`, as a worker does; then, with the clock stopped,
    /// writes the whole archive into `out`.
    pub fn restore(
        &self,
        manifest: &Path,
        base: Option<Stored>,
        (new, out): (&Path, &Path),
        objects: Objects,
    ) -> Result<Restored> {
        let mut command = self.command("restore", objects);
        command.arg("--manifest").arg(manifest);
        add_base(&mut command, base);
        command.arg("--new").arg(new).arg("--out").arg(out);
        answer(&mut command)
    }

    fn command(&self, verb: &str, objects: Objects) -> Command {
        let mut command = Command::new(&self.program);
        match objects {
            Objects::S3(place) => command.envs(place.environment()),
            Objects::Folder(folder) => command.arg("--local").arg(folder),
        };
        command.arg(verb);
        command
    }
}

fn add_base(command: &mut Command, base: Option<Stored>) {
    if let Some(Stored { archive, manifest }) = base {
        command
            .arg("--base")
            .arg(archive)
            .arg("--base-manifest")
            .arg(manifest);
    }
}

/// Its last line is the answer.
fn answer<T: serde::de::DeserializeOwned>(command: &mut Command) -> Result<T> {
    let text = process::succeed(command, STEP_WITHIN)?;
    let line = text.lines().last().context("the page store said nothing")?;
    serde_json::from_str(line).with_context(|| format!("understand the page store's {line}"))
}
