//! The worker's memory: what it is about to do, and what it did, on disk before anybody hears of it.
//!
//! One file of lines, `CHECKSUM JSON`, only ever appended to. A line is synced before the effect it announces is begun
//! and before the effect it records is reported. So after a crash the file says at least as much as the orchestrator
//! knows, and at most one step more than was done: *about to* without *done* means that the runtime has to be asked.
//!
//! How it goes wrong: a crash in the middle of an append leaves a torn last line; nobody was told of it, so it is cut
//! off. A bad line with good ones after it was not torn but damaged: then we don't know what we did, and the worker
//! refuses to start until a person has moved the file away (the new journal gets a new id, and the orchestrator lets
//! it register anew). A full disk fails the append, hence the step, before its effect.
//!
//! [`Memory`] is what the lines add up to; [`Journal`] is the door to the thread that owns both.

mod keeper;
mod memory;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use keeper::{Journal, Request, Urgency};
pub use memory::{Archive, HoldFacts, Memory, Migration};

/// What a worker can be asked to do; the names are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    missing_docs,
    reason = "explained at the messages of the same names in worker.proto"
)]
pub enum StepKind {
    Hold,
    Deliver,
    Disarm,
    Destroy,
    Release,
    Withdraw,
    Tidy,
    ExportImages,
    ImportImages,
    Bar,
    Copy,
    Receive,
}

/// A step happens at most once under one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StepKey {
    /// UID of the PodMigration.
    pub migration: String,
    /// Log index at which its phase was entered.
    pub revision: u64,
    /// What to do.
    pub kind: StepKind,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// First line of every journal.
    Created {
        /// Version of this format.
        format: u32,
        /// Tells this journal from one that was lost.
        journal_id: String,
    },
    /// The orchestrator knows this journal from this log index on.
    Registered {
        /// Steps older than that are not for us.
        revision: u64,
    },
    /// A step of this revision was asked for: older ones of the same migration are refused from now on.
    Seen {
        /// UID of the PodMigration.
        migration: String,
        /// The newest.
        revision: u64,
    },
    /// Migrations that were forgotten had no newer revision than this one.
    Forgot {
        /// Refuse unknown migrations up to here.
        up_to_revision: u64,
    },
    /// About to perform a step.
    Begun(StepKey),
    /// A step's report, as it goes over the wire, in hexadecimal.
    Finished {
        /// Which.
        step: StepKey,
        /// The encoded StepReport without its call.
        report: String,
    },
    /// About to pause the containers of a pod.
    Pausing {
        /// UID of the PodMigration.
        migration: String,
        /// What is held, and since when.
        facts: HoldFacts,
    },
    /// About to ask for an archive of a container.
    Dumping {
        /// UID of the PodMigration.
        migration: String,
        /// The runtime's id.
        container_id: String,
    },
    /// An archive is complete, and the container was still paused afterwards.
    Archived {
        /// UID of the PodMigration.
        migration: String,
        /// Which and where.
        archive: Archive,
    },
    /// About to freeze the pod's cgroup: from here on no archive can be made.
    Freezing {
        /// UID of the PodMigration.
        migration: String,
        /// The pod's folder in the freezer's hierarchy.
        cgroup: PathBuf,
    },
    /// The pod runs again, or is gone for good.
    HoldEnded {
        /// UID of the PodMigration.
        migration: String,
    },
    /// About to freeze a restored pod that may be given up.
    Barring {
        /// UID of the PodMigration.
        migration: String,
        /// UID of the restored pod.
        pod_uid: String,
    },
    /// It runs on, or is gone for good.
    BarEnded {
        /// UID of the PodMigration.
        migration: String,
    },
    /// About to checkpoint a pod that runs on.
    Copying {
        /// UID of the PodMigration.
        migration: String,
        /// Nanoseconds since 1970: archives of the pod that are younger are this round's.
        since_unix_ns: u64,
    },
    /// An archive of a round is complete. Nothing is restored from it.
    Copied {
        /// UID of the PodMigration.
        migration: String,
        /// Which and where.
        archive: Archive,
    },
    /// The round has ended, and the pod runs.
    CopyEnded {
        /// UID of the PodMigration.
        migration: String,
    },
    /// The archives of this migration were removed.
    ArchivesRemoved {
        /// UID of the PodMigration.
        migration: String,
    },
}

/// What stood in the way of remembering.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("{doing} {}", path.display())]
    Io {
        /// Verb and object.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not torn but damaged.
    #[error(
        "the journal {} is damaged in line {line}: what this worker did before is not known. Look at the pods it may \
         hold, then move the file away; a new one is made at the next start",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// Written by a newer worker.
    #[error("the journal {} has format {format}, this worker knows {known}: use the newer worker", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// Ours.
        known: u32,
    },
    /// A write failed and could not be taken back.
    #[error("the journal {} could not be written to before, and its end is unclear: restart the worker", path.display())]
    Unclear {
        /// The file.
        path: PathBuf,
    },
    /// The thread that owns the journal is gone.
    #[error("the journal's thread has ended")]
    Closed,
}
