//! `lab bench store`

mod image;
mod load;
mod rounds;
mod workload;

use super::NODES;
use super::pod::create_namespace;
use crate::cluster::Cluster;
use crate::machine;
use crate::state::Lab;
use crate::steps::Steps;
use crate::up;
use anyhow::{Result, bail};
use std::path::PathBuf;
use workload::{ALL, Workload};

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
}

pub fn bench(name: &str, options: &Options) -> Result<()> {
    let steps = Steps::start();
    let wanted = wanted(&options.only)?;
    machine::prepare(&steps)?;
    let lab = || -> Result<Lab> {
        let lab = up::up(name, NODES, &steps)?;
        create_namespace(&Cluster::of(&lab)?)?;
        Ok(lab)
    };
    for workload in wanted {
        rounds::of(workload, options.fresh, lab, &steps)?;
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
    let is_wanted = |workload: &&Workload| {
        only.is_empty() || only.iter().any(|name| name == workload.name)
    };
    Ok(ALL.iter().filter(is_wanted).collect())
}
