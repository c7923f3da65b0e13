//! Checkpoints of a running program, taken by the kubelet seconds apart under load, and kept.
//!
//! Making them takes minutes, so they are a part of the cache like any other: the same program under the same load is
//! not checkpointed again unless one asks for it.

use super::image;
use super::load::{self, Running};
use super::workload::Workload;
use crate::bench::pod::{NAMESPACE, clear};
use crate::bench::recipe;
use crate::cache::Part;
use crate::cluster::Cluster;
use crate::state::Lab;
use crate::steps::Steps;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Raised when checkpoints are taken in another way.
const RECIPE: &str = "1";
/// The load has found its pace by then.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// The two archives that are compared.
#[derive(Debug)]
pub struct Pair {
    /// The earlier round.
    pub base: PathBuf,
    /// The last round.
    pub last: PathBuf,
}

/// The kept checkpoints of a program; made on the lab when they are not there or new ones are wanted.
pub fn of(workload: &Workload, fresh: bool, lab: &Lab, steps: &Steps) -> Result<Pair> {
    let part = part(workload);
    if fresh && part.is_there() {
        fs::remove_dir_all(part.path()?).context("remove the kept checkpoints")?;
    }
    let folder = if part.is_there() {
        steps.note(format!("{}: the kept checkpoints", workload.name));
        part.path()?
    } else {
        steps.run("checkpoint a program under load", || {
            part.ensure(|target| make(workload, lab, target, steps))
                .with_context(|| format!("checkpoint {}", workload.name))
        })?
    };
    Ok(Pair {
        base: archive(&folder, workload.rounds - 2),
        last: archive(&folder, workload.rounds - 1),
    })
}

fn part(workload: &Workload) -> Part {
    let tree = if workload.needs_image() {
        image::part().path().unwrap_or_default()
    } else {
        PathBuf::new()
    };
    Part::new(
        "bench-checkpoints",
        [
            ("recipe", RECIPE.into()),
            ("workload", format!("{workload:?}").into_bytes()),
            ("load", load::RECIPE.into()),
            ("tree", tree.into_os_string().into_encoded_bytes()),
        ],
    )
}

fn archive(folder: &Path, round: usize) -> PathBuf {
    folder.join(format!("round-{}.tar", round + 1))
}

fn make(workload: &Workload, lab: &Lab, target: &Path, steps: &Steps) -> Result<()> {
    let cluster = Cluster::of(lab)?;
    let tree = if workload.needs_image() {
        let tree = image::tree(steps)?;
        image::push(lab, &tree, steps)?;
        Some(tree)
    } else {
        None
    };
    cluster.apply(&workload.pod(NAMESPACE))?;
    let taken = load::start(workload, &cluster, NAMESPACE, tree.as_deref())
        .and_then(|running| take(workload, lab, &cluster, running, target, steps));
    clear(&cluster)?;
    taken
}

fn take(
    workload: &Workload,
    lab: &Lab,
    cluster: &Cluster,
    mut running: Running,
    target: &Path,
    steps: &Steps,
) -> Result<()> {
    thread::sleep(SETTLED_AFTER);
    let log = || load::log(workload, cluster, NAMESPACE);
    let signs = |log: &str| workload.sign.map(|sign| log.matches(sign).count());
    let mut due = Instant::now();
    let mut before_last = None;
    for round in 0..workload.rounds {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due = Instant::now() + workload.apart;
        running.check()?;
        let began = Instant::now();
        let taken = recipe::checkpoint(lab, workload.name)?;
        let kept = archive(target, round);
        // The node's files and the cache may be on one file system, or not.
        if fs::rename(&taken, &kept).is_err() {
            fs::copy(&taken, &kept).with_context(|| format!("keep {}", taken.display()))?;
            fs::remove_file(&taken).with_context(|| format!("remove {}", taken.display()))?;
        }
        let size = fs::metadata(&kept).context("look at the archive")?.len();
        steps.note(format!(
            "{} round {}: {} MiB in {:.1} s",
            workload.name,
            round + 1,
            size >> 20,
            began.elapsed().as_secs_f64()
        ));
        if round + 2 == workload.rounds {
            before_last = signs(&log()?);
        }
    }
    let after = signs(&log()?);
    ensure!(
        workload.sign.is_none() || after > before_last,
        "{} did not show {:?} between its last two rounds",
        workload.name,
        workload.sign
    );
    Ok(())
}
