//! The other ways: restic, zstd, tar, zstd into aws, an image by buildah. Each as its users would call it.

use super::STEP_WITHIN;
use super::place::Place;
use crate::bench::recipe::Recipe;
use crate::machine;
use crate::process;
use crate::python;
use crate::state::Lab;
use crate::steps::Steps;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const TOOLS: &[(&str, &str)] = &[
    ("restic", "restic"),
    ("zstd", "zstd"),
    ("cmp", "diffutils"),
    ("bash", "bash"),
];
/// The key of the object that aws writes.
const OBJECT: &str = "checkpoint.tar.zst";

/// The tools, ready.
pub struct Theirs<'a> {
    lab: &'a Lab,
    aws: PathBuf,
    source: Recipe,
    target: Recipe,
    work: PathBuf,
}

/// How long zstd and aws took, each way.
pub struct ThroughAws {
    /// `zstd -3 -T2 | aws s3 cp -`
    pub up: f64,
    /// `aws s3 cp - | zstd -d | tar x`
    pub down: f64,
}

impl<'a> Theirs<'a> {
    /// Installs what is missing; `work` is for files that come and go.
    pub fn prepare(lab: &'a Lab, work: &Path, steps: &Steps) -> Result<Self> {
        machine::install(steps, TOOLS)?;
        let aws = steps.run("have aws", || python::install("aws", "awscli", "aws"))?;
        Ok(Self {
            lab,
            aws,
            source: Recipe::at(lab, "buildah", steps)?,
            target: Recipe::at(lab, "buildah-target", steps)?,
            work: work.to_owned(),
        })
    }

    /// Seconds of `zstd -1 -T2` of a file.
    pub fn zstd(&self, archive: &Path) -> Result<f64> {
        self.time(
            "zstd -1 -T2 --stdout --quiet \"$1\" > /dev/null",
            &[archive],
        )
    }

    /// Seconds of `tar x` of a file.
    pub fn untar(&self, archive: &Path) -> Result<f64> {
        self.in_empty_folder(|folder| self.time("tar xf \"$1\" -C \"$2\"", &[archive, folder]))
    }

    /// Through a bucket with zstd and aws, and back.
    pub fn through_aws(&self, archive: &Path, place: &Place) -> Result<ThroughAws> {
        let url = format!("s3://{}/{OBJECT}", place.bucket);
        let up = self.time_with(
            place,
            r#"zstd -3 -T2 --stdout --quiet "$1" | "$3" s3 cp --endpoint-url "$ENDPOINT" --only-show-errors - "$2""#,
            &[archive, Path::new(&url), &self.aws],
        )?;
        let down = self.in_empty_folder(|folder| {
            self.time_with(
                place,
                r#""$3" s3 cp --endpoint-url "$ENDPOINT" --only-show-errors "$2" - | zstd -d --stdout --quiet | tar x -C "$1""#,
                &[folder, Path::new(&url), &self.aws],
            )
        })?;
        Ok(ThroughAws { up, down })
    }

    /// Bytes that a backup of `last` adds to a repository that has `base`, in a bucket of its own.
    pub fn restic(&self, base: &Path, last: &Path, place: &Place) -> Result<u64> {
        let restic = |script: &str, files: &[&Path]| self.time_with(place, script, files).map(drop);
        restic("restic --quiet init --repository-version 2", &[])?;
        let backup =
            r#"restic --quiet --no-cache backup --stdin --stdin-filename checkpoint.tar < "$1""#;
        restic(backup, &[base])?;
        let before = place.bytes()?;
        restic(backup, &[last])?;
        let added = place.bytes()? - before;
        Ok(added)
    }

    /// Seconds of making an image of an archive, pushing it and pulling it into another storage.
    pub fn by_image(&self, archive: &Path) -> Result<f64> {
        // A layer the registry has from the run before would not be sent: every run's is another one, as every
        // checkpoint's would be.
        let other = self.work.join("run");
        fs::write(&other, format!("{:?}", Instant::now())).context("make every image another")?;
        let began = Instant::now();
        self.source.build("redis", &[archive, &other])?;
        self.source.push(self.lab)?;
        self.target.pull(self.lab)?;
        let took = began.elapsed().as_secs_f64();
        for storage in [&self.source, &self.target] {
            storage.run(&["rmi", "--all", "--force"])?;
        }
        Ok(took)
    }

    /// An empty folder for one step, removed behind it.
    fn in_empty_folder<T>(&self, step: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let folder = self.work.join("unpacked");
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        let done = step(&folder);
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        done
    }

    fn time(&self, script: &str, arguments: &[&Path]) -> Result<f64> {
        run(&mut bash(script, arguments))
    }

    fn time_with(&self, place: &Place, script: &str, arguments: &[&Path]) -> Result<f64> {
        let mut command = bash(script, arguments);
        command
            .envs(place.environment())
            .env("ENDPOINT", &place.endpoint)
            .env(
                "RESTIC_REPOSITORY",
                format!("s3:{}/{}", place.endpoint, place.bucket),
            )
            // A repository of checkpoints of nobody's, gone in a minute.
            .env("RESTIC_PASSWORD", "bench");
        run(&mut command)
    }
}

/// A pipe fails when any of its programs does.
fn bash(script: &str, arguments: &[&Path]) -> Command {
    let mut command = Command::new("bash");
    command
        .args(["-o", "pipefail", "-c", script, "bash"])
        .args(arguments);
    command
}

fn run(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    process::succeed(command, STEP_WITHIN)?;
    Ok(began.elapsed().as_secs_f64())
}
