//! `lab bench store`: the page store beside what one would send a checkpoint with today, on checkpoints of real programs.
//!
//! ```text
//! rounds ─► two archives of each program, seconds apart under load (kept)
//!    ├─► ours    capture the earlier, capture the last as a difference, restore it        (`page_store`, encrypted)
//!    └─► theirs  restic · zstd · tar x · zstd | aws s3 cp · buildah, push, pull           on the same S3 server
//! ```
//! Times are medians of runs in which both sides take turns; a first run is dropped, and one that begins while the
//! machine takes a second to give a gibibyte of memory is waited with. Bytes are the same in every run and measured
//! once. What was stored is proved to come back byte for byte, beside the timed parts. `table` says what is asked of each figure.

mod changed;
mod image;
pub mod load;
mod measure;
mod ours;
mod place;
mod rounds;
mod table;
mod theirs;
mod workload;

use super::NODES;
use super::pod::create_namespace;
use crate::cluster::Cluster;
use crate::machine;
use crate::steps::Steps;
use crate::up;
use anyhow::{Context, Result, bail};
use measure::Bench;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use workload::{ALL, Workload};

/// One step of one side, on a machine that does other work beside it.
const STEP_WITHIN: Duration = Duration::from_secs(300);

/// What is measured, and how.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only these programs: kuard, redis, numpy, jvm, postgres
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// How many runs each median is of
    #[arg(long, default_value = "5", value_parser = super::check_runs)]
    runs: usize,
    /// Write the figures into this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Take new checkpoints, whether there are some or not
    #[arg(long)]
    fresh: bool,
    /// Measure this build of the worker's example page_store, and not the one of this checkout
    #[arg(long, value_name = "PROGRAM")]
    page_store: Option<PathBuf>,
    /// Measure on a machine that is too busy for it, too; the table says how many runs that was
    #[arg(long)]
    busy: bool,
}

/// Measures, prints the table and writes the figures.
pub fn bench(name: &str, options: &Options) -> Result<()> {
    let Options {
        only,
        runs,
        json,
        fresh,
        page_store,
        busy,
    } = options;
    let wanted = wanted(only)?;
    let steps = Steps::start();
    machine::prepare(&steps)?;
    let lab = up::up(name, NODES, &steps)?;
    create_namespace(&Cluster::of(&lab)?)?;
    let pairs: Vec<(&Workload, rounds::Pair)> = wanted
        .into_iter()
        .map(|workload| Ok((workload, rounds::of(workload, *fresh, &lab, &steps)?)))
        .collect::<Result<_>>()?;
    let bench = Bench::prepare(&lab, *runs, page_store.as_deref(), *busy, &steps)?;
    let mut measured = Vec::new();
    for (workload, pair) in pairs {
        let told = bench
            .measure(workload.name, &pair, &steps)
            .with_context(|| format!("measure {}", workload.name))?;
        measured.push((workload.name, told));
    }
    drop(steps);
    let figures: BTreeMap<&str, _> = table::figures(&measured);
    print!("{}", table::text(&measured, &figures));
    if let Some(file) = json {
        super::write(file, &figures)?;
    }
    Ok(())
}

fn wanted(only: &[String]) -> Result<Vec<&'static Workload>> {
    for name in only {
        if !ALL.iter().any(|workload| workload.name == name) {
            let known: Vec<&str> = ALL.iter().map(|workload| workload.name).collect();
            bail!("there is no program {name}; there are {}", known.join(", "));
        }
    }
    let is_wanted =
        |workload: &&Workload| only.is_empty() || only.iter().any(|name| name == workload.name);
    Ok(ALL.iter().filter(is_wanted).collect())
}
