//! Stories of sudden death: the orchestrator's leader, the source's worker or the target's worker is killed (-9) in a phase.
//! The kubelet starts it again, and the migration goes on or is undone; the ledger swears that no number was lost or
//! answered twice.
//!
//! Every run of the story kills in every phase, each process several times. With `LONGSHORE_KILLS=all` it kills
//! every process in every phase.

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::{env, fmt, thread, time::Duration};

use super::{
    Stage, Story,
    faults::ledger_with,
    harm::{SlowAdmission, Stopped, all_well, nothing_left, process, signal},
    journey::Journey,
    peers::Peer,
    stage::Migrated,
    witness::Witness,
};

/// Asks for the full matrix.
const WANTED: &str = "LONGSHORE_KILLS";

/// This theme's stories.
pub fn stories() -> Vec<Story> {
    vec![Story {
        name: "killed-in-every-phase",
        about: "Orchestrator and workers may die in any phase: no number is lost or answered twice",
        tell: killed_in_every_phase,
    }]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Orchestrator,
    Source,
    Target,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Orchestrator => "the leader",
            Self::Source => "the source's worker",
            Self::Target => "the target's worker",
        })
    }
}

const VICTIMS: [Victim; 3] = [Victim::Orchestrator, Victim::Source, Victim::Target];
const PHASES: [&str; 7] = [
    "Planned",
    "Preparing",
    "Holding",
    "Delivering",
    "Restoring",
    "Retiring",
    "Releasing",
];

/// Who dies where, unless everybody is to die everywhere: whoever has most to lose in the phase.
const CHOICE: [(Victim, &str); 9] = [
    (Victim::Orchestrator, "Planned"),
    (Victim::Target, "Preparing"),
    (Victim::Source, "Holding"),
    (Victim::Orchestrator, "Holding"),
    (Victim::Target, "Delivering"),
    (Victim::Orchestrator, "Restoring"),
    (Victim::Target, "Restoring"),
    (Victim::Source, "Retiring"),
    (Victim::Source, "Releasing"),
];

fn deaths() -> Vec<(Victim, &'static str)> {
    match env::var(WANTED).as_deref() {
        Ok("all") => {
            let each = PHASES.iter();
            each.flat_map(|phase| VICTIMS.map(|victim| (victim, *phase)))
                .collect()
        }
        Ok(_) | Err(_) => CHOICE.to_vec(),
    }
}

fn killed_in_every_phase(stage: &Stage) -> Result<()> {
    ledger_with(stage, 32)?;
    let witness = Witness::of(stage, "ledger")?;
    for (victim, phase) in deaths() {
        let said = one_death(stage, victim, phase);
        let said = said.with_context(|| format!("{victim} was killed in {phase}"))?;
        println!("          {victim} killed in {phase}: {said}");
        witness
            .verdict()
            .with_context(|| format!("after {victim} was killed in {phase}"))?;
        all_well(stage)?;
    }
    nothing_left(stage)
}

/// One migration, from where the pod is to the other node, and how it ended.
fn one_death(stage: &Stage, victim: Victim, phase: &str) -> Result<String> {
    let from = stage.node_of("ledger")?;
    let to = if from == "node1" { "node2" } else { "node1" };
    let at = |node: &str| if node == "node1" { 1 } else { 2 };
    let pid = match victim {
        Victim::Orchestrator => Peer::leader(stage)?.pid,
        Victim::Source => process(&stage.lab, at(&from), "worker")?,
        Victim::Target => process(&stage.lab, at(to), "worker")?,
    };
    // Phases that are over before anybody could see them are made longer by a call of the API that they make.
    let slow = match phase {
        "Planned" => Some(SlowAdmission::of(stage, "CREATE")?),
        "Preparing" => Some(SlowAdmission::of(stage, "UPDATE")?),
        _ => None,
    };
    let mut journey = Journey::begin(stage, "ledger", to, &["--timeout", "60s"])?;
    if phase == "Releasing" {
        journey.reaches("Holding")?;
        // It holds on until it is aborted, for the store says nothing.
        let _silent = Stopped::s3(stage)?;
        thread::sleep(Duration::from_millis(300));
        let object = journey.name()?.to_owned();
        let aborted = thread::scope(|scope| {
            let abort = scope.spawn(|| stage.migrate(&["abort", &object]));
            let killed = journey
                .reaches(phase)
                .and_then(|()| signal(pid, Signal::KILL));
            let aborted = abort.join();
            killed.map(|()| aborted)
        })?;
        drop(aborted);
    } else {
        journey.reaches(phase)?;
        signal(pid, Signal::KILL)?;
    }
    drop(slow);
    let (Migrated { code, text }, ended) = journey.end()?;
    let on = stage.node_of("ledger")?;
    let expected = match (code, ended.phase()) {
        (0, "Succeeded") => to,
        (3, "RolledBack" | "Rescued") => &from,
        (_, other) => bail!("it ended as {other} with exit code {code}:\n{text}"),
    };
    if on != expected {
        bail!("it is {}, but the pod is on {on}", ended.phase());
    }
    Ok(match ended.phase() {
        "Succeeded" => "it went on".to_owned(),
        other => format!("{other} ({})", ended.reason()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_has_every_phase_and_every_process_twice() {
        for phase in PHASES {
            assert!(CHOICE.iter().any(|(_, chosen)| *chosen == phase), "{phase}");
        }
        for victim in VICTIMS {
            assert!(
                CHOICE
                    .iter()
                    .filter(|(chosen, _)| *chosen == victim)
                    .count()
                    >= 2,
                "{victim}"
            );
        }
    }
}
