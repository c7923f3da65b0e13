//! `lab bench`: Longshore beside what one would do without it, on the same lab, in turn.
//!
//! Every figure is a median; `--json` writes them as one object, a figure's name to what ours and theirs took. A bench
//! builds on the lab of that name and starts it when it isn't up.

mod pod;
mod raft;
mod recipe;
mod store;
mod subject;

use crate::deploy;
use crate::machine;
use crate::state::Lab;
use crate::steps::Steps;
use crate::up;
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

pub use pod::{bench as pod, check_runs};
pub use raft::bench as raft;
pub use store::{Options as StoreOptions, bench as store};
pub use subject::Subject;

const NODES: u8 = 2;

/// What was compared, and how it came out.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// Longshore's median.
    pub ours: f64,
    /// The median of the other way.
    pub theirs: f64,
    /// Ours by theirs: below 1 ours is better.
    pub ratio: f64,
    /// Of both.
    pub unit: &'static str,
    /// How many runs each median is of.
    pub runs: usize,
}

impl Figure {
    fn of_seconds(ours: &[f64], theirs: &[f64]) -> Self {
        let (mine, other) = (median(ours), median(theirs));
        Self {
            ours: rounded(mine),
            theirs: rounded(other),
            ratio: rounded(mine / other),
            unit: "s",
            runs: ours.len().min(theirs.len()),
        }
    }
}

/// A thousandth is more than these clocks are good for.
fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

/// The middle one, or between the two in the middle; of nothing it is 0.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.len() % 2, sorted.get(middle)) {
        (_, None) => 0.0,
        (1, Some(value)) => *value,
        (_, Some(value)) => f64::midpoint(sorted[middle - 1], *value),
    }
}

/// Writes figures for machines to read.
fn write(file: &Path, figures: &BTreeMap<&str, Figure>) -> Result<()> {
    let text = serde_json::to_vec_pretty(figures).context("write the figures as JSON")?;
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// The lab with Longshore on it.
fn stage(name: &str, steps: &Steps) -> Result<Lab> {
    machine::prepare(steps)?;
    let lab = up::up(name, NODES, steps)?;
    deploy::deploy(&lab, None, steps)?;
    Ok(lab)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_not_moved_by_one_slow_run() {
        assert!((median(&[1.0, 90.0, 3.0, 2.0, 2.5]) - 2.5).abs() < 1e-9);
        assert!((median(&[4.0, 2.0]) - 3.0).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }

    #[test]
    fn a_figure_is_below_one_when_ours_is_quicker() {
        let figure = Figure::of_seconds(&[1.0, 1.5, 1.2], &[3.0, 2.9, 3.1]);
        assert!((figure.ratio - 0.4).abs() < 1e-9, "{figure:?}");
        assert_eq!((figure.runs, figure.unit), (3, "s"));
    }
}
