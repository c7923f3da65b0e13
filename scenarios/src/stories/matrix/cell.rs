//! One cell: a fault in a phase, and what came of it.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use super::{
    Ground,
    fault::{Aim, Fault, number, seen_gone},
    proxy::Mode,
};
use crate::stories::{
    Stage,
    harm::{Changed, LAME_CRIU, SlowAdmission, WHOLE_CRIU, all_well, nothing_left_but},
    journey::{Journey, Seen},
    witness::{Witness, now_ms},
};

/// The phases a fault can strike in.
pub const PHASES: [&str; 9] = [
    "Planned",
    "Preparing",
    "Copying",
    "Holding",
    "Delivering",
    "Restoring",
    "Rescuing",
    "Retiring",
    "Releasing",
];

/// A migration that is not committed by then is undone: faults of a matrix are shorter, but S3 may be very slow.
const TIMEOUT: &str = "60s";
/// Frozen for longer, the migration is undone: what the longest fault may cost.
const MAX_FREEZE: &str = "30s";
/// How often a migration under a fault is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A pod that is released or cleared after its node came back answers within this.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// A fault in a phase.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// One of [`PHASES`].
    pub phase: &'static str,
    /// What goes wrong in it.
    pub fault: Fault,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.phase.to_lowercase(), self.fault)
    }
}

/// What came of a cell.
#[derive(Debug)]
pub struct Report {
    /// Its name.
    pub cell: String,
    /// The phase it strikes in.
    pub phase: &'static str,
    /// With what.
    pub fault: Fault,
    /// "Succeeded", "RolledBack", …, with "in doubt until healed, then " before it.
    pub outcome: String,
    /// Paused until restored, by Longshore's own account.
    pub freeze: String,
    /// The longest time in which the ledger answered nobody, milliseconds.
    pub downtime_ms: u64,
    /// How the promise was broken, if it was.
    pub violation: Option<String>,
    /// The ledger ended with its node, or must be made anew after a violation.
    pub ledger_lost: bool,
    /// What telling it took.
    pub took: Took,
}

/// Where the time of a cell goes: a matrix has an hour, which is 20 s for each of its 180 cells.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    /// Until every part was well again after the cell before.
    ready: Duration,
    /// The migration, from the request to its end.
    migration: Duration,
    /// Until the ledger had answered and been believed, and nothing was left over.
    judged: Duration,
}

impl Took {
    fn whole(&self) -> Duration {
        self.ready + self.migration + self.judged
    }

    fn to_json(self) -> Value {
        json!({
            "ready": self.ready.as_secs_f32(), "migration": self.migration.as_secs_f32(),
            "judged": self.judged.as_secs_f32(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.violation.as_deref().unwrap_or("promise kept");
        write!(
            f,
            "{}: {}, freeze {}, downtime {} ms: {verdict} ({:.0} s)",
            self.cell,
            self.outcome,
            self.freeze,
            self.downtime_ms,
            self.took.whole().as_secs_f32()
        )
    }
}

impl Report {
    /// Nothing told yet.
    pub fn of(cell: Cell) -> Self {
        Self {
            cell: cell.to_string(),
            phase: cell.phase,
            fault: cell.fault,
            outcome: "not told".to_owned(),
            freeze: "-".to_owned(),
            downtime_ms: 0,
            violation: None,
            ledger_lost: false,
            took: Took::default(),
        }
    }

    /// Its place in the matrix.
    pub fn entry(&self) -> String {
        match &self.violation {
            Some(_) => "**violated**".to_owned(),
            None => format!(
                "{}, {:.1} s",
                self.outcome,
                self.downtime_ms as f64 / 1_000.0
            ),
        }
    }

    /// For machines.
    pub fn to_json(&self) -> Value {
        json!({
            "cell": self.cell, "outcome": self.outcome, "freeze": self.freeze,
            "downtime_ms": self.downtime_ms, "violation": self.violation,
            "seconds": self.took.to_json(),
        })
    }
}

/// How a cell's migration ended, before it is judged.
struct Ended {
    seen: Seen,
    doubted: bool,
    object_is_there: bool,
    /// The words of a command that went wrong in itself.
    words: String,
}

impl Cell {
    /// Tells it; whatever goes wrong in the telling is a violation, for then the promise was not shown to hold.
    pub fn tell(
        self,
        ground: &Ground<'_>,
        witness: &Witness<'_>,
        left_before: &mut Vec<String>,
    ) -> Report {
        let (began, began_ms) = (Instant::now(), now_ms());
        let mut report = Report::of(self);
        let told = self.tell_into(ground, witness, began_ms, &mut report);
        report.ledger_lost = told.is_err();
        let told = told.and_then(|()| nothing_left_but(ground.stage, left_before));
        report.took.judged = began.elapsed() - report.took.ready - report.took.migration;
        if let Err(error) = told {
            report.violation = Some(format!("{error:#}"));
        }
        report
    }

    fn tell_into(
        self,
        ground: &Ground<'_>,
        witness: &Witness<'_>,
        began_ms: u64,
        report: &mut Report,
    ) -> Result<()> {
        let (stage, began) = (ground.stage, Instant::now());
        ground.controllers_run()?;
        all_well(stage)?;
        report.took.ready = began.elapsed();
        let from = stage.node_of("ledger")?;
        let to = Ground::other(&from);
        let ended = self.migrate(ground, &from, &to);
        report.took.migration = began.elapsed() - report.took.ready;
        let ended = ended?;
        let phase = match ended.seen.phase() {
            // Deleted by the abort, the object goes with the end, which nobody may have seen: an undo has one end only.
            "Releasing" if self.phase == "Releasing" && !ended.object_is_there => "RolledBack",
            phase => phase,
        }
        .to_owned();
        report.outcome = match ended.doubted {
            true => format!("in doubt until healed, then {phase}"),
            false => phase.clone(),
        };
        report.freeze = ended.seen.freeze().unwrap_or("-").to_owned();
        let expected = match phase.as_str() {
            "Succeeded" => &to,
            "RolledBack" | "Rescued" => &from,
            other => bail!("it ended as {other:?}: {}", ended.words),
        };
        let on = stage.node_of("ledger")?;
        // A rescue is where it can be.
        if on != *expected && phase != "Rescued" {
            bail!("it is {phase}, but the pod is on {on}");
        }
        witness.alive_within(now_ms(), BACK_WITHIN)?;
        report.downtime_ms = witness.longest_silence_ms(began_ms);
        witness.verdict()
    }

    /// The migration with its fault.
    fn migrate(self, ground: &Ground<'_>, from: &str, to: &str) -> Result<Ended> {
        let stage = ground.stage;
        let (source, target) = (number(stage, from)?, number(stage, to)?);
        let aim = self.fault.aim(stage, source, target)?;
        // Phases that are over before anybody could see them are made longer by a call of the API that they make.
        let mut slow = match self.phase {
            "Planned" => Some(SlowAdmission::of(stage, "CREATE")?),
            "Preparing" => Some(SlowAdmission::of(stage, "UPDATE")?),
            _ => None,
        };
        // The ledger is too small for rounds to pay: it has one where that is what is struck.
        let rounds = if self.phase == "Copying" { "1" } else { "0" };
        let flags = [
            "--timeout",
            TIMEOUT,
            "--max-freeze",
            MAX_FREEZE,
            "--rounds",
            rounds,
        ];
        if self.phase == "Releasing" {
            // It holds on until it is aborted, for the store says nothing.
            ground.relay.set(Mode::Silent);
        }
        let mut journey = Journey::begin(stage, "ledger", to, &flags)?;
        let broken = match self.phase {
            "Releasing" => self.strike_while_releasing(ground, &mut journey, &aim)?,
            "Rescuing" => {
                journey.reaches("Holding")?;
                // By then the target was found able, as it is on a good day.
                let lame = Changed::node(stage, target, LAME_CRIU, WHOLE_CRIU)?;
                journey.reaches("Rescuing")?;
                drop(lame);
                self.fault.strike(stage, &ground.relay, &aim)?
            }
            phase => {
                journey.reaches(phase)?;
                self.fault.strike(stage, &ground.relay, &aim)?
            }
        };
        // Undone through the API, which has to be there for that.
        if self.fault != Fault::ApiDown {
            drop(slow.take());
        }
        let mut doubted = false;
        let mut ended = false;
        let began = Instant::now();
        while !ended && began.elapsed() < self.fault.lasts() {
            thread::sleep(LOOK_EVERY);
            ended = journey.has_ended();
        }
        if !ended && self.fault == Fault::SourceLost {
            declare_lost(stage, &journey, from)?;
            ended = journey.ends_within(BACK_WITHIN);
        }
        if !ended && !self.fault.lasts().is_zero() {
            // With the API server away nobody can be told, which is doubt, too.
            doubted = journey
                .object()
                .map_or(true, |object| !object["status"]["inDoubt"].is_null());
        }
        drop(broken);
        drop(slow);
        let (migrated, seen) = journey.end()?;
        let object_is_there = stage
            .migrations()?
            .iter()
            .any(|object| object["metadata"]["name"] == seen.name());
        Ok(Ended {
            seen,
            doubted,
            object_is_there,
            words: migrated.text,
        })
    }

    /// A migration is aborted under the silent store, and struck while it is undone.
    fn strike_while_releasing<'a>(
        self,
        ground: &'a Ground<'_>,
        journey: &mut Journey<'_>,
        aim: &Aim,
    ) -> Result<super::fault::Broken<'a>> {
        let struck = self.abort_and_strike(ground, journey, aim);
        let of_the_store = matches!(
            self.fault,
            Fault::S3Refusing | Fault::S3Slow | Fault::S3Cut | Fault::S3Garbage
        );
        if struck.is_err() || !of_the_store {
            ground.relay.set(Mode::Good);
        }
        struck
    }

    fn abort_and_strike<'a>(
        self,
        ground: &'a Ground<'_>,
        journey: &mut Journey<'_>,
        aim: &Aim,
    ) -> Result<super::fault::Broken<'a>> {
        let stage = ground.stage;
        journey.reaches("Holding")?;
        thread::sleep(Duration::from_millis(300));
        let object = journey.name()?.to_owned();
        let within = Duration::from_secs(10);
        let asked = [
            "-n",
            &stage.namespace,
            "delete",
            "podmigration",
            &object,
            "--wait=false",
        ];
        stage.cluster.run_within(within, &asked)?;
        journey.reaches("Releasing")?;
        self.fault.strike(stage, &ground.relay, aim)
    }
}

/// What a person does who knows that the node is lost.
fn declare_lost(stage: &Stage, journey: &Journey<'_>, node: &str) -> Result<()> {
    seen_gone(stage, node)?;
    let name = journey.name()?.to_owned();
    let resolved = stage
        .migrate(&["resolve", &name, "--source-is-dead", "--yes"])
        .context("declare the source lost")?;
    println!(
        "          declared lost: {}",
        resolved.text.lines().next().unwrap_or_default()
    );
    Ok(())
}
