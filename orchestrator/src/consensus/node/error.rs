//! Why the log can't start, why a command was not applied, and why a question got no answer.

use std::path::PathBuf;

use crate::consensus::{
    core::{CoreError, Refused},
    format::{COMMAND_BYTES_MAX, FormatError},
    storage::DiskError,
};

/// The log can't start.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// Its directory can't be made, or its thread not started.
    #[error("{doing}")]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The disk.
    #[error("open the replicated log in {path}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: DiskError,
    },
    /// Raft.
    #[error("start the replicated log")]
    Core(#[from] CoreError),
}

/// A command was not applied, or nobody can say.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not applied: this peer doesn't lead.
    #[error("this peer doesn't lead the log")]
    NotLeader {
        /// Who does, if known.
        leader: Option<u64>,
    },
    /// Certainly not applied: too much waits for a majority already. Worth trying again.
    #[error("too many commands wait for a majority of the peers")]
    Busy,
    /// Certainly not applied: it is too long.
    #[error("the command has {bytes} bytes, {COMMAND_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Certainly not applied: it can't be written down.
    #[error("write the command down")]
    Format(#[from] FormatError),
    /// Certainly not applied: the disk is full. Worth trying again once there is room.
    #[error("the disk of the replicated log is full")]
    DiskFull,
    /// Certainly not applied: the disk can't be written. Worth trying again.
    #[error("the disk of the replicated log can't be written: {detail}")]
    Disk {
        /// What it said.
        detail: String,
    },
    /// **Unknown**: it was proposed, then this peer lost the lead or its disk. It may still be applied: look at the
    /// state before proposing again.
    #[error("it is unknown whether the command will be applied")]
    Dropped,
    /// **Unknown**: the log stopped meanwhile.
    #[error("the replicated log stopped")]
    Stopped,
}

/// A question to the log, or an order other than a command, was not carried out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// This peer doesn't lead.
    #[error("this peer doesn't lead the log")]
    NotLeader {
        /// Who does, if known.
        leader: Option<u64>,
    },
    /// Not now.
    #[error("the log is busy with another change")]
    Busy,
    /// A leader can't remove itself.
    #[error("the leader can't be removed: hand the lead to another peer first")]
    RemovesLeader,
    /// No majority answered in time.
    #[error("no majority of the peers answered within {seconds} s")]
    OutOfTime {
        /// How long it waited.
        seconds: u64,
    },
    /// The log stopped.
    #[error("the replicated log stopped")]
    Stopped,
}

impl From<Refused> for AskError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotLeader(leader) => Self::NotLeader { leader },
            Refused::Busy => Self::Busy,
            Refused::RemovesLeader => Self::RemovesLeader,
        }
    }
}

impl ProposeError {
    /// The command may still be applied.
    #[must_use]
    pub fn unknown_outcome(&self) -> bool {
        match self {
            Self::Dropped | Self::Stopped => true,
            Self::NotLeader { .. }
            | Self::Busy
            | Self::TooLong { .. }
            | Self::Format(_)
            | Self::DiskFull
            | Self::Disk { .. } => false,
        }
    }
}
