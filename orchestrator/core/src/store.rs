//! Whose is what lies in the store, and may it go? Pure: the log in, verdicts out.
//!
//! The log is the lease: a capture or a restore belongs to a migration that is under way in it, from before its first
//! object until after its last reader. So what is listed first and judged by a log that was confirmed afterwards can't be
//! in use: a migration that began after the list has nothing in it.

use serde::{Deserialize, Serialize};

use crate::{
    id::MigrationId,
    migration::{Migration, Phase},
    state::State,
};

/// What the log knows of a migration that has something in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// It is under way: everything of it is in use.
    UnderWay,
    /// It has ended, and its checkpoint is all that is left of the pod: only a person may remove it.
    LastCopy,
    /// It has ended, and its checkpoint is a base for the pod's next migration.
    Kept,
    /// It has ended, and nothing of it is needed.
    Ended,
    /// The log does not know it: it was forgotten, or another cluster shares the bucket.
    Unknown,
}

impl Owner {
    /// By the log.
    #[must_use]
    pub fn of(state: &State, id: &MigrationId) -> Self {
        let known = state.migrations.get(id);
        known.map_or(Self::Unknown, |migration| Self::known(migration))
    }

    /// By what the log knows of it.
    #[must_use]
    pub fn known(migration: &Migration) -> Self {
        match migration.phase.ended() {
            false => Self::UnderWay,
            true if is_last_copy(migration) => Self::LastCopy,
            true if migration.kept => Self::Kept,
            true => Self::Ended,
        }
    }

    /// May it go? What the log does not know goes by a person's word alone: it may be another cluster's, and in use.
    #[must_use]
    pub fn is_garbage(self, unknown_too: bool) -> bool {
        match self {
            Self::UnderWay | Self::LastCopy | Self::Kept => false,
            Self::Ended => true,
            Self::Unknown => unknown_too,
        }
    }
}

/// Undone while its source's node was dead: the pod ended with the node, after its checkpoint.
fn is_last_copy(migration: &Migration) -> bool {
    migration.phase == Phase::RolledBack
        && migration.checkpoint.is_some()
        && migration.source_is_dead()
}
