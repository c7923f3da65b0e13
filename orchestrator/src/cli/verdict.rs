//! What a migration's status means: where it stands, whether that is the end, and the exit code of it.

use std::process::ExitCode;

use orchestrator_core::migration::Phase;

use crate::k8s::resource::{PodMigration, PodMigrationStatus};

/// Exit codes; `--help` documents them.
pub const EXIT_DONE: u8 = 0;
/// The command failed.
pub const EXIT_ERROR: u8 = 1;
/// There were reasons not to.
pub const EXIT_REFUSED: u8 = 2;
/// Rolled back, rescued or abandoned.
pub const EXIT_UNDONE: u8 = 3;
/// The wait ended first.
pub const EXIT_IN_DOUBT: u8 = 4;

/// Where a migration stands, as far as this command can read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has taken it up yet.
    Asked,
    /// In a phase we know.
    In(Phase),
    /// An orchestrator newer than this command says a word that we don't know.
    Unreadable(String),
}

/// The status, or an empty one.
pub fn status(object: &PodMigration) -> PodMigrationStatus {
    object.status.clone().unwrap_or_default()
}

/// Where it stands.
pub fn standing(status: &PodMigrationStatus) -> Standing {
    if status.phase.is_empty() {
        return Standing::Asked;
    }
    match phase_named(&status.phase) {
        Some(phase) => Standing::In(phase),
        None => Standing::Unreadable(status.phase.clone()),
    }
}

/// The phase of that name.
pub fn phase_named(name: &str) -> Option<Phase> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

/// The phase it ended in, if it has.
pub fn ended(status: &PodMigrationStatus) -> Option<Phase> {
    match standing(status) {
        Standing::In(phase) => phase.ended().then_some(phase),
        Standing::Asked | Standing::Unreadable(_) => None,
    }
}

/// The exit code of a command that waited for it.
pub fn exit_code(status: &PodMigrationStatus) -> u8 {
    match standing(status) {
        Standing::In(Phase::Succeeded | Phase::Previewed) => EXIT_DONE,
        Standing::In(Phase::Refused) => EXIT_REFUSED,
        Standing::In(Phase::RolledBack | Phase::Rescued | Phase::Abandoned) => EXIT_UNDONE,
        Standing::In(
            Phase::Planned
            | Phase::Preparing
            | Phase::Copying
            | Phase::Holding
            | Phase::Delivering
            | Phase::Restoring
            | Phase::Rescuing
            | Phase::Retiring
            | Phase::Releasing,
        )
        | Standing::Asked
        | Standing::Unreadable(_) => EXIT_IN_DOUBT,
    }
}

/// As the process wants it.
pub fn exit(status: &PodMigrationStatus) -> ExitCode {
    ExitCode::from(exit_code(status))
}

/// What a phase does, for people who don't read our design.
pub fn explained(phase: Phase) -> &'static str {
    match phase {
        Phase::Planned => "planned; both nodes are checked again",
        Phase::Preparing => "the target gets the base images; the pod runs on the source",
        Phase::Copying => {
            "the target gets the pod's memory ahead; the pod runs on the source, with a short stall"
        }
        Phase::Holding => "the pod is frozen on the source, dumped and stored",
        Phase::Delivering => {
            "the target fetches, verifies and rebuilds the checkpoint; the pod is frozen"
        }
        Phase::Restoring => "committed: the pod is restored on the target",
        Phase::Rescuing => "the target can't: the pod is restored where it can be",
        Phase::Retiring => {
            "the pod runs again; its former copy is destroyed and everything tidied up"
        }
        Phase::Releasing => "undoing: the pod runs again on the source, everything is tidied up",
        Phase::Succeeded => "the pod runs on the target",
        Phase::RolledBack => "the pod runs on the source, as before",
        Phase::Rescued => "the pod was restored from its checkpoint, but not on the target",
        Phase::Refused => "there are reasons not to; nothing was changed",
        Phase::Previewed => "only the plan was wanted; nothing was changed",
        Phase::Abandoned => "the pod was deleted meanwhile, and that was obeyed",
    }
}

#[cfg(test)]
mod tests {
    use orchestrator_core::migration::PHASES;

    use super::*;

    fn in_phase(name: &str) -> PodMigrationStatus {
        PodMigrationStatus {
            phase: name.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn every_phase_is_read_back_by_the_name_it_is_shown_under() {
        for phase in PHASES {
            assert_eq!(standing(&in_phase(&phase.to_string())), Standing::In(phase));
        }
        assert_eq!(standing(&in_phase("")), Standing::Asked);
        assert_eq!(
            standing(&in_phase("Beaming")),
            Standing::Unreadable("Beaming".to_owned())
        );
    }

    #[test]
    fn only_an_end_leaves_no_doubt() {
        for phase in PHASES {
            let code = exit_code(&in_phase(&phase.to_string()));
            assert_eq!(code == EXIT_IN_DOUBT, !phase.ended(), "{phase}");
        }
        assert_eq!(exit_code(&in_phase("Beaming")), EXIT_IN_DOUBT);
    }

    #[test]
    fn rolled_back_is_neither_done_nor_an_error_nor_a_refusal() {
        let codes = [
            "Succeeded",
            "Refused",
            "RolledBack",
            "Rescued",
            "Abandoned",
            "Previewed",
        ]
        .map(|name| exit_code(&in_phase(name)));
        assert_eq!(codes, [0, 2, 3, 3, 3, 0]);
    }
}
