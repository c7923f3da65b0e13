//! Deliberate mistakes: each breaks one rule of the design, by a wrapper around a seam or in the simulated surroundings,
//! never in production code. The simulator must catch every one within a stated number of seeds, or it proves nothing.

/// Which rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "explained in `MISTAKES`, for the table that is printed"
)]
pub enum Mistake {
    CommitBeforeTheManifest,
    UnknownTakenForFailed,
    AbortAllowedLate,
    StaleRevisionAccepted,
    ReleaseAfterSuccess,
    JournalAfterTheEffect,
    OnlyThePause,
    OnlyTheFreezer,
    SourceNotDeletedFirst,
    HoldNotConfirmed,
    LeaseIgnored,
    FreshTakenForRestored,
    DeleteWithoutUid,
    MessagesBeforeFsync,
    ForgottenJournalTrusted,
    WithdrawNotProved,
    GivenUpWithoutABar,
    MajorityNotAsked,
    KeptNotKept,
    BaseCollected,
}

/// Mistakes that are made together, their name on the command line and in the table, and within how many seeds they must
/// be caught.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Which.
    pub mistakes: &'static [Mistake],
    /// What is done wrong.
    pub name: &'static str,
    /// How it is done wrong.
    pub how: &'static str,
    /// Seeds within which it must be caught.
    pub seeds_max: u64,
}

const fn known(
    mistakes: &'static [Mistake],
    name: &'static str,
    how: &'static str,
    seeds_max: u64,
) -> Known {
    Known {
        mistakes,
        name,
        how,
        seeds_max,
    }
}

/// All of them.
pub const MISTAKES: [Known; 19] = [
    known(
        &[Mistake::CommitBeforeTheManifest],
        "commit before the manifest is durable",
        "data path wrapper",
        2_000,
    ),
    known(
        &[Mistake::UnknownTakenForFailed],
        "unknown taken for failed",
        "Perform wrapper",
        2_000,
    ),
    known(
        &[Mistake::AbortAllowedLate],
        "abort allowed late",
        "command altered on its way",
        2_000,
    ),
    known(
        &[Mistake::StaleRevisionAccepted],
        "stale revision accepted by the worker",
        "journal wrapper",
        20_000,
    ),
    known(
        &[Mistake::ReleaseAfterSuccess],
        "release after success",
        "Nodes wrapper",
        2_000,
    ),
    known(
        &[Mistake::JournalAfterTheEffect],
        "journal written after the effect",
        "journal wrapper",
        20_000,
    ),
    known(
        &[Mistake::OnlyThePause],
        "the hold is only the pause",
        "node wrapper",
        20_000,
    ),
    known(
        &[Mistake::OnlyTheFreezer],
        "the hold is only the freezer",
        "node wrapper",
        2_000,
    ),
    known(
        &[Mistake::SourceNotDeletedFirst],
        "target made before the source's object is gone",
        "Cluster wrapper",
        2_000,
    ),
    known(
        &[Mistake::HoldNotConfirmed],
        "hold not confirmed before the commit",
        "Nodes wrapper",
        20_000,
    ),
    known(
        &[Mistake::LeaseIgnored],
        "lease ignored",
        "Nodes wrapper",
        20_000,
    ),
    known(
        &[Mistake::FreshTakenForRestored],
        "fresh start taken for restored",
        "data path wrapper",
        2_000,
    ),
    known(
        &[Mistake::DeleteWithoutUid],
        "delete without UID",
        "API call altered on its way",
        20_000,
    ),
    known(
        &[Mistake::MessagesBeforeFsync],
        "raft messages sent before the fsync",
        "writer of the simulated disk",
        20_000,
    ),
    known(
        &[Mistake::ForgottenJournalTrusted],
        "a forgotten journal not refused",
        "the new journal has the old one's id",
        20_000,
    ),
    known(
        &[Mistake::WithdrawNotProved],
        "withdraw not proved",
        "Nodes wrapper",
        20_000,
    ),
    known(
        &[Mistake::GivenUpWithoutABar],
        "a restore given up without a bar",
        "Nodes wrapper",
        20_000,
    ),
    known(
        &[Mistake::KeptNotKept],
        "a kept checkpoint removed at the end",
        "data path wrapper",
        2_000,
    ),
    known(
        &[Mistake::BaseCollected],
        "a base collected under a round that stands on it",
        "data path wrapper",
        2_000,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_listed_once() {
        for (n, known) in MISTAKES.iter().enumerate() {
            assert!(
                MISTAKES[..n]
                    .iter()
                    .all(|other| other.mistakes != known.mistakes && other.name != known.name)
            );
        }
    }
}
