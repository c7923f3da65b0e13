//! The fault matrix: every phase of a migration × everything that can go wrong, on the real cluster, under a witness.
//!
//! ```text
//! ledger on node1 or node2 ─► migrate ─► phase reached ─► strike ─► wait ─► mend ─► how did it end?
//!                                    the witness asks the ledger for its number all the while
//! ```
//! A cell is one phase and one fault, named `phase-fault`. However it ends (done, rolled back, rescued, in doubt until
//! it was mended), the verdict must hold: no number lost, none answered by two copies, nothing left over. `cargo lab
//! faults` tells all cells and prints the table; a choice of them is a story of `cargo lab test`.

mod cell;
mod fault;
mod proxy;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    Stage,
    faults::ledger_with,
    harm::{all_well, renew_worker, shell},
    witness::Witness,
};
use crate::{
    control,
    deploy::{self, Store},
    site::{S3_PORT, Site},
    state::Lab,
    steps::Steps,
};
use cell::{Cell, Report};
use fault::{CLOCK_FILE, SMALL_DISK};
use proxy::Relay;

/// Memory beside the ledger: phases last long enough to strike in them.
const BALLAST_MIB: u32 = 24;
/// The disk that is filled: room for some checkpoints.
const SMALL_DISK_BYTES: &str = "256m";

/// The short choice that every test run tells: each phase at least once, and of the faults those with most to lose.
const CHOICE: [&str; 16] = [
    "planned-leader-killed",
    "holding-leader-killed",
    "copying-source-worker-killed",
    "restoring-leader-killed",
    "holding-source-worker-killed",
    "releasing-source-worker-killed",
    "preparing-target-worker-killed",
    "restoring-target-worker-killed",
    "restoring-source-lost",
    "delivering-source-cut",
    "restoring-target-cut",
    "holding-s3-cut",
    "delivering-s3-garbage",
    "restoring-api-down",
    "rescuing-follower-killed",
    "retiring-source-worker-killed",
];

/// A library through which a process sees the time it is told.
const CLOCK_LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// What the matrix needs of this machine, and the Debian package of each.
pub const FROM_DEBIAN: &[(&str, &str)] = &[(CLOCK_LIBRARY, "libfaketime")];

/// The names of all cells.
fn all() -> Vec<Cell> {
    let phases = cell::PHASES.into_iter();
    phases
        .flat_map(|phase| fault::FAULTS.map(|fault| Cell { phase, fault }))
        .collect()
}

/// The story: the short choice.
pub fn choice(stage: &Stage) -> Result<()> {
    let cells: Vec<Cell> = all()
        .into_iter()
        .filter(|cell| CHOICE.contains(&cell.to_string().as_str()))
        .collect();
    let reports = tell(stage, &cells)?;
    let bad: Vec<&Report> = reports
        .iter()
        .filter(|report| report.violation.is_some())
        .collect();
    if bad.is_empty() {
        return Ok(());
    }
    let words: Vec<String> = bad
        .iter()
        .map(|report| {
            format!(
                "{}: {}",
                report.cell,
                report.violation.as_deref().unwrap_or_default()
            )
        })
        .collect();
    bail!("{}", words.join("; "))
}

/// `cargo lab faults`: the cells whose names contain one of `wanted` (all without). Gives whether the promise held.
pub fn faults(lab: &Lab, wanted: &[String], file: Option<&Path>) -> Result<bool> {
    let cells: Vec<Cell> = all()
        .into_iter()
        .filter(|cell| super::is_wanted(&cell.to_string(), wanted))
        .collect();
    if cells.is_empty() {
        bail!(
            "no cell has {} in its name; they are called phase-fault, as holding-s3-slow",
            wanted.join(" or ")
        );
    }
    let began = Instant::now();
    let stage = Stage::set(lab, "faults")?;
    let reports = tell(&stage, &cells);
    let cleared = stage.clear();
    let reports = reports?;
    cleared?;
    print!("{}", matrix(&reports));
    let violated = reports
        .iter()
        .filter(|report| report.violation.is_some())
        .count();
    println!(
        "{} cells, {violated} violations ({:.0} min)",
        reports.len(),
        began.elapsed().as_secs_f32() / 60.0
    );
    if let Some(file) = file {
        let all: Vec<Value> = reports.iter().map(Report::to_json).collect();
        let text = serde_json::to_vec_pretty(&all).context("write the matrix as JSON")?;
        fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(violated == 0)
}

/// Tells the cells one after the other on one ledger, which is made anew only when a cell has lost it.
fn tell(stage: &Stage, cells: &[Cell]) -> Result<Vec<Report>> {
    let ground = Ground::prepare(stage)?;
    let told = tell_on(&ground, cells);
    let restored = ground.restore();
    told.and_then(|reports| restored.map(|()| reports))
}

fn tell_on(ground: &Ground<'_>, cells: &[Cell]) -> Result<Vec<Report>> {
    ledger_with(ground.stage, BALLAST_MIB)?;
    let mut witness = Witness::of(ground.stage, "ledger")?;
    let mut reports = Vec::new();
    let mut left = Vec::new();
    for cell in cells {
        let report = cell.tell(ground, &witness, &mut left);
        println!("          {report}");
        let fresh = report.ledger_lost;
        reports.push(report);
        if fresh {
            drop(witness);
            ground.new_ledger()?;
            witness = Witness::of(ground.stage, "ledger")?;
        }
    }
    Ok(reports)
}

/// The matrix for people and for the repository: a row for each fault, a column for each phase; how it ended and for how
/// long nobody was answered. Violations are told below it, in full.
fn matrix(reports: &[Report]) -> String {
    let phases: Vec<&str> = cell::PHASES
        .into_iter()
        .filter(|phase| reports.iter().any(|report| report.phase == *phase))
        .collect();
    let mut text = format!("| fault | {} |\n", phases.join(" | "));
    text.push_str(&format!("| --- |{}\n", " --- |".repeat(phases.len())));
    for fault in fault::FAULTS {
        let of_fault: Vec<&Report> = reports.iter().filter(|one| one.fault == fault).collect();
        if of_fault.is_empty() {
            continue;
        }
        let told = phases.iter().map(|phase| {
            let told = of_fault.iter().find(|report| report.phase == *phase);
            told.map_or_else(String::new, |report| report.entry())
        });
        let told: Vec<String> = told.collect();
        text.push_str(&format!("| {fault} | {} |\n", told.join(" | ")));
    }
    for report in reports {
        if let Some(violation) = &report.violation {
            text.push_str(&format!("\n* {}: {violation}\n", report.cell));
        }
    }
    text
}

/// The lab made ready for faults: workers speak to the store through a relay, rebuild on a small disk, and read the
/// clock through a library that can be told to be wrong.
struct Ground<'a> {
    stage: &'a Stage,
    relay: Relay,
}

impl<'a> Ground<'a> {
    fn prepare(stage: &'a Stage) -> Result<Self> {
        let gateway = stage.lab.site.gateway();
        let relay = Relay::start(
            SocketAddr::from((gateway, 0)),
            SocketAddr::from((gateway, S3_PORT)),
        )?;
        for n in stage.lab.site.node_numbers() {
            let disk = format!(
                "mkdir -p {SMALL_DISK}; mountpoint -q {SMALL_DISK} || \
                 mount -t tmpfs -o size={SMALL_DISK_BYTES} tmpfs {SMALL_DISK}; echo +0 > {CLOCK_FILE}"
            );
            shell(&stage.lab, n, &disk)?;
        }
        let ground = Self { stage, relay };
        ground.fake_clocks(true)?;
        let store = Store::of_lab_at(format!("http://{}", ground.relay.address));
        deploy::deploy_built(&stage.lab, Some(&store), &Steps::start())?;
        ground.renew_workers()?;
        Ok(ground)
    }

    /// As it was.
    fn restore(self) -> Result<()> {
        self.controllers_run()?;
        for n in self.stage.lab.site.node_numbers() {
            let undo = format!("umount -l {SMALL_DISK} || true; rm -f {CLOCK_FILE}");
            shell(&self.stage.lab, n, &undo)?;
        }
        self.fake_clocks(false)?;
        deploy::deploy_built(&self.stage.lab, None, &Steps::start())?;
        self.renew_workers()
    }

    /// As an ordinary control plane's kubelet sees to it.
    fn controllers_run(&self) -> Result<()> {
        control::start_controllers(&mut Lab::expect(&self.stage.lab.site.name)?)
    }

    fn renew_workers(&self) -> Result<()> {
        for n in self.stage.lab.site.node_numbers() {
            renew_worker(self.stage, n)?;
        }
        all_well(self.stage)
    }

    /// Workers take their library for the time from their node's folder, which they mount anyway; clocks that only ever
    /// go forward stay true.
    fn fake_clocks(&self, wanted: bool) -> Result<()> {
        const LIBRARY: &str = "/var/lib/longshore/libfaketime.so.1";
        if wanted {
            for n in self.stage.lab.site.node_numbers() {
                let library = fs::read(CLOCK_LIBRARY).context("read the library for the time")?;
                let to = crate::node::path_from_host(&self.stage.lab, n, LIBRARY)?;
                fs::write(&to, library).with_context(|| format!("write {}", to.display()))?;
            }
        }
        let settings = [
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", CLOCK_FILE),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_CACHE_DURATION", "1"),
        ];
        let words: Vec<String> = settings
            .iter()
            .map(|(name, value)| match wanted {
                true => format!("{name}={value}"),
                false => format!("{name}-"),
            })
            .collect();
        let mut command = vec![
            "-n",
            deploy::NAMESPACE,
            "set",
            "env",
            "daemonset/longshore-worker",
        ];
        command.extend(words.iter().map(String::as_str));
        self.stage.cluster.run(&command).map(drop)
    }

    fn new_ledger(&self) -> Result<()> {
        let within = Duration::from_secs(60);
        let all = [
            "-n",
            &self.stage.namespace,
            "delete",
            "pods",
            "--all",
            "--grace-period=0",
            "--force",
        ];
        self.stage.cluster.run_within(within, &all)?;
        ledger_with(self.stage, BALLAST_MIB)
    }

    /// The node of the pair that is not this one; a third node is left for the first.
    fn other(node: &str) -> String {
        Site::node_name(if node == Site::node_name(1) { 2 } else { 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chosen_cell_exists_and_every_phase_is_chosen() {
        let names: Vec<String> = all().iter().map(ToString::to_string).collect();
        for chosen in CHOICE {
            assert!(names.iter().any(|name| name == chosen), "{chosen}");
        }
        for phase in cell::PHASES {
            let prefix = format!("{}-", phase.to_lowercase());
            assert!(
                CHOICE.iter().any(|chosen| chosen.starts_with(&prefix)),
                "{phase}"
            );
        }
        assert_eq!(names.len(), cell::PHASES.len() * fault::FAULTS.len());
    }

    #[test]
    fn the_third_node_is_left_for_the_first() {
        assert_eq!(Ground::other("node1"), "node2");
        assert_eq!(Ground::other("node2"), "node1");
        assert_eq!(Ground::other("node3"), "node1");
    }

    #[test]
    fn a_matrix_has_every_cell_in_its_place_and_violations_in_full() {
        let cell = |phase, fault| Cell { phase, fault };
        let mut reports = [
            Report::of(cell("Holding", fault::Fault::S3Slow)),
            Report::of(cell("Restoring", fault::Fault::ApiDown)),
        ];
        reports[0].outcome = "Succeeded".to_owned();
        reports[1].violation = Some("two answered".to_owned());
        let text = matrix(&reports);
        assert!(text.contains("| fault | Holding | Restoring |"), "{text}");
        assert!(text.contains("| s3-slow | Succeeded, 0.0 s |  |"), "{text}");
        assert!(text.contains("| api-down |  | **violated** |"), "{text}");
        assert!(
            text.contains("* restoring-api-down: two answered"),
            "{text}"
        );
    }
}
