//! `lab bench pod`: `migrate pod` beside the recipe by hand, on equal pods, in turn.
//!
//! Compared is what a client of the pod goes through. Ours: from the last good answer on node1 to the first on node2.
//! The recipe doesn't stop its source; whoever follows it waits from the checkpoint, which is the copy's state, to the
//! copy's first answer.

use super::recipe::{Recipe, Taken};
use super::subject::{self, Subject};
use super::{Figure, median, stage};
use crate::client::Client;
use crate::cluster::Cluster;
use crate::deploy;
use crate::process;
use crate::state::Lab;
use crate::steps::Steps;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The bench's namespace.
pub const NAMESPACE: &str = "bench";
const MIGRATE_WITHIN: Duration = Duration::from_secs(180);
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// What one of our moves took.
struct Moved {
    downtime: f64,
    /// Milliseconds by span, as the trace has them.
    spans: BTreeMap<String, f64>,
}

/// Runs both ways `runs` times, prints the table, and writes the figure.
pub fn bench(name: &str, subject: &Subject, runs: usize, file: Option<&Path>) -> Result<()> {
    let steps = Steps::start();
    let lab = stage(name, &steps)?;
    let (figure, table) = compare(&lab, subject, runs, &steps)?;
    drop(steps);
    print!("{table}");
    if let Some(file) = file {
        super::write(file, &BTreeMap::from([(subject.figure, figure)]))?;
    }
    Ok(())
}

/// The figure of a subject, and the table of where the time goes.
pub fn compare(
    lab: &Lab,
    subject: &Subject,
    runs: usize,
    steps: &Steps,
) -> Result<(Figure, String)> {
    let recipe = Recipe::prepare(lab, steps)?;
    let cluster = Cluster::of(lab)?;
    create_namespace(&cluster)?;
    let one = || one(lab, &cluster, &recipe, subject);
    // Once beforehand, uncounted: what only a first move pays (a base image pulled) is no part of a comparison.
    steps.run("one run of each to warm up", || one().map(drop))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        let (moved, taken) = one().with_context(|| format!("run {run}"))?;
        steps.note(format!(
            "run {run} of {runs}: migrate pod {:.2} s, the recipe {:.2} s",
            moved.downtime,
            taken.total()
        ));
        ours.push(moved);
        theirs.push(taken);
    }
    let downtimes: Vec<f64> = ours.iter().map(|moved| moved.downtime).collect();
    let totals: Vec<f64> = theirs.iter().map(Taken::total).collect();
    let figure = Figure::of_seconds(&downtimes, &totals);
    let table = table(subject, &figure, &ours, &theirs);
    Ok((figure, table))
}

/// Each way once, each with a pod of its own.
fn one(lab: &Lab, cluster: &Cluster, recipe: &Recipe, subject: &Subject) -> Result<(Moved, Taken)> {
    start_pod(cluster, subject)?;
    let taken = recipe.follow(lab, cluster, subject)?;
    clear(cluster)?;
    start_pod(cluster, subject)?;
    let moved = migrate(cluster, subject)?;
    clear(cluster)?;
    Ok((moved, taken))
}

fn client(cluster: &Cluster, subject: &Subject) -> Result<(Client, IpAddr)> {
    let client = Client::asking(cluster, NAMESPACE, subject.name, subject.port, subject.ask)?;
    let first = client.wait_for("the pod's first answer", |_| true)?;
    Ok((client, first.from))
}

fn start_pod(cluster: &Cluster, subject: &Subject) -> Result<()> {
    cluster.apply(&subject.pod(NAMESPACE))?;
    let (_client, address) = client(cluster, subject)?;
    subject::fill(subject, address)
}

fn migrate(cluster: &Cluster, subject: &Subject) -> Result<Moved> {
    let (client, _) = client(cluster, subject)?;
    let mut command = Command::new(deploy::program("migrate")?);
    command
        .env("KUBECONFIG", cluster.kubeconfig())
        .args(["pod", subject.name, "-n", NAMESPACE])
        .args(["--to", "node2", "-o", "json"]);
    let text = process::succeed(&mut command, MIGRATE_WITHIN).context("migrate the pod")?;
    let gap = client.wait_for_move()?;
    let migration: Value = serde_json::from_str(&text).context("read the migration")?;
    Ok(Moved {
        downtime: gap.length().as_secs_f64(),
        spans: spans(&migration),
    })
}

/// Deletes the bench's pods at once and waits until both nodes are rid of them.
pub fn clear(cluster: &Cluster) -> Result<()> {
    let delete = [
        "-n",
        NAMESPACE,
        "delete",
        "pods",
        "--all",
        "--grace-period=1",
    ];
    cluster.run_within(GONE_WITHIN, &delete)?;
    Ok(())
}

/// Makes the bench's namespace, ready for pods.
pub fn create_namespace(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
    )?;
    process::wait_for("the namespace's ServiceAccount", GONE_WITHIN, || {
        let get = ["-n", NAMESPACE, "get", "serviceaccount", "default"];
        Ok(cluster.run(&get).ok())
    })
    .map(drop)
}

/// The trace's spans by name, repeated ones together; milliseconds.
fn spans(migration: &Value) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for span in migration["status"]["trace"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let (name, start, end) = (
            span["name"].as_str(),
            span["startMicros"].as_u64(),
            span["endMicros"].as_u64(),
        );
        if let (Some(name), Some(start), Some(end)) = (name, start, end) {
            let micros = u32::try_from(end.saturating_sub(start)).unwrap_or(u32::MAX);
            *sums.entry(name.to_owned()).or_insert(0.0) += f64::from(micros) / 1_000.0;
        }
    }
    sums
}

/// The steps of ours in their order, as the trace names them (NAME for the container's), and how they lie in each other.
const OURS: &[(&str, &str)] = &[
    ("pause", "pause"),
    ("checkpoint", "checkpoint NAME"),
    ("save packs to S3", "save packs"),
    ("fetch and rebuild", "rebuild NAME"),
    ("pull base, beside it", "pull base image"),
    ("pull checkpoint", "pull NAME"),
    ("delete, create pod", "delete source pod"),
    ("restore", "restore"),
];

fn table(subject: &Subject, figure: &Figure, ours: &[Moved], theirs: &[Taken]) -> String {
    let mut text = format!(
        "\n{}, from node1 to node2; medians of {} runs in turn\n\n",
        subject.says, figure.runs
    );
    let mut line = |label: &str, value: String| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {label:<44} {value:>9}");
    };
    line(
        "migrate pod: last answer to first answer",
        seconds(figure.ours),
    );
    for (label, name) in OURS {
        let name = name.replace("NAME", subject.name);
        let took: Vec<f64> = ours
            .iter()
            .filter_map(|moved| moved.spans.get(&name))
            .copied()
            .collect();
        line(&format!("    {label}"), seconds(median(&took) / 1_000.0));
    }
    line(
        "the recipe: checkpoint to first answer",
        seconds(figure.theirs),
    );
    for (label, part) in Taken::PARTS {
        let took: Vec<f64> = theirs.iter().map(part).collect();
        line(&format!("    {label}"), seconds(median(&took)));
    }
    line("ours by theirs", format!("{:.2}", figure.ratio));
    text
}

fn seconds(value: f64) -> String {
    format!("{value:.2} s")
}

/// Fails when a number of runs makes no median.
pub fn check_runs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(runs @ 1..=100) => Ok(runs),
        Ok(_) | Err(_) => Err("1 to 100 runs".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_one_name_are_taken_together() {
        let span = |name: &str, start: u64, end: u64| json!({"name": name, "startMicros": start, "endMicros": end});
        let migration = json!({"status": {"trace": [span("pause", 10, 2_010), span("pause", 5_000, 6_000), span("x", 7, 7)]}});
        let sums = spans(&migration);
        assert!((sums["pause"] - 3.0).abs() < 1e-9, "{sums:?}");
        assert!(spans(&json!({})).is_empty());
    }
}
