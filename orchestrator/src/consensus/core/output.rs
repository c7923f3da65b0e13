//! What the core says: what is to be done now, what it refuses, and what it can't go on from.

use std::sync::Arc;

use orchestrator_core::{
    id::Revision,
    state::{Applied, Rejection, State},
};
use raft::eraftpb::{ConfState, Message, Snapshot};

use crate::consensus::{
    format::{FormatError, state_to_bytes},
    storage::WriteTask,
};

/// The core can't go on: the peer must stop, a restart from its disk is the only way on.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// Raft refuses.
    #[error("{doing}")]
    Raft {
        /// What we were doing.
        doing: &'static str,
        /// Why not.
        source: raft::Error,
    },
    /// A committed entry or a snapshot can't be understood.
    #[error("apply entry {index}")]
    Unreadable {
        /// Which.
        index: u64,
        /// Why not.
        source: FormatError,
    },
    /// A kind of entry this version never proposes.
    #[error(
        "apply entry {index}: an old form of membership change, which no version of Longshore proposes"
    )]
    OldMembership {
        /// Which.
        index: u64,
    },
}

/// A command was refused on the spot; it is certainly not in the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// This peer doesn't lead; perhaps that one does.
    NotLeader(Option<u64>),
    /// Too much waits for the majority already, or the lead is being handed over.
    Busy,
    /// Raft 0.7 panics in a leader that removes itself: the lead is handed over first.
    RemovesLeader,
}

/// A proposal that was applied here.
#[derive(Debug)]
pub struct Answer {
    /// What [`Core::propose`] returned.
    pub proposal: u64,
    /// Where in the log it is.
    pub at: Revision,
    /// What became of it.
    pub result: Result<Applied, Rejection>,
}

/// A snapshot to be built wherever time doesn't matter, and handed to [`Core::snapshot_built`].
#[derive(Debug)]
pub struct SnapshotPlan {
    pub(super) state: Arc<State>,
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) members: ConfState,
}

impl SnapshotPlan {
    /// Builds it: the slow part, tens of milliseconds for a full history.
    ///
    /// # Errors
    /// When the state can't be serialised.
    pub fn build(self) -> Result<Snapshot, FormatError> {
        let mut snapshot = Snapshot::default();
        snapshot.set_data(state_to_bytes(&self.state)?.into());
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (self.index, self.term);
        metadata.set_conf_state(self.members);
        Ok(snapshot)
    }
}

/// What is to be done now.
#[derive(Debug, Default)]
pub struct Output {
    /// To be sent at once.
    pub send_now: Vec<Message>,
    /// To be written in this order; see [`WriteTask::after`].
    pub writes: Vec<WriteTask>,
    /// Proposals that were applied.
    pub answers: Vec<Answer>,
    /// Proposals whose fate this peer will not learn: it no longer leads.
    pub lost: Vec<u64>,
    /// Confirmations that came: this peer led when they were asked for, and has applied whatever was acknowledged then.
    pub confirmed: Vec<u64>,
    /// Confirmations that will not come: this peer no longer leads.
    pub unconfirmed: Vec<u64>,
    /// A snapshot to be built.
    pub snapshot: Option<SnapshotPlan>,
    /// The state changed.
    pub applied: bool,
}

/// Who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// This peer, and its state has everything that was ever acknowledged: it may act.
    Leader {
        /// Since this term.
        term: u64,
    },
    /// Not this one (or it doesn't know everything yet).
    Follower {
        /// In this term.
        term: u64,
        /// Who does, if known.
        leader: Option<u64>,
    },
    /// The log stopped; only a restart of the process helps.
    Stopped,
}
