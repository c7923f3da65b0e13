//! A migration's life: phases, what is due in each, and what every outcome makes of it.
//!
//! ```text
//!                    ┌─ Copying ─┐
//! Planned ─► Preparing ─► Holding ─► Delivering ─► RESTORING ─► Retiring ─► Succeeded
//!    │           │           │            │            │  ▲ commit: from here the target may run
//!    └───────────┴───────────┴────────────┘            ▼
//!                       ▼            ▲               Rescuing ─► Retiring ─► Rescued
//!                   Releasing ◄──────┴─ not begun      │
//!                       └─► RolledBack                 │
//!                                                      └─ the user deleted the pod: Retiring ─► Abandoned
//! ```
//!
//! | phase | who may run the pod | if everything dies now |
//! | --- | --- | --- |
//! | Planned, Preparing | source | nothing happened |
//! | Copying | source | what was copied is a hint, nothing depends on it |
//! | Holding | source, then nobody (held) | held or running; the step is asked again or undone |
//! | Delivering | nobody (held) | the stored checkpoint is complete; the step is asked again |
//! | Restoring | target, perhaps | the step is asked again until the truth is known |
//! | Rescuing | nobody, then the rescue node | the stored checkpoint is the pod |
//! | Retiring | target (or the rescue node) | tidying up is asked again |
//! | Releasing | source once released | releasing is asked again |
//!
//! The step is derived from the phase alone, so a new leader has nothing to recover. What this module doesn't do:
//! anything. It gets values and gives values; [`crate::state`] is its only caller.

mod transition;

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    id::{MigrationId, NodeName, PodRef, PodUid, Revision, UnixMs},
    plan::{Plan, Request},
    refusal::Finding,
};

/// Where a migration stands. The names are shown to users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// Decided; waits for its turn, then both nodes are checked again.
    Planned,
    /// The base images get to the target.
    Preparing,
    /// Rounds: the target gets the pod's memory while the source runs on, so that only what changes afterwards is left
    /// for the freeze.
    Copying,
    /// The source is frozen, dumped and stored.
    Holding,
    /// The target fetches, verifies and rebuilds.
    Delivering,
    /// The commit: the source's object goes, the target's is made. The target may run.
    Restoring,
    /// The target can't: restored where it can be.
    Rescuing,
    /// The held source is destroyed, the checkpoint disarmed, everything tidied up.
    Retiring,
    /// Undo: the source runs again.
    Releasing,
    /// Ended: the pod runs on the target.
    Succeeded,
    /// Ended: the pod runs on the source, as if nothing had happened.
    RolledBack,
    /// Ended: the pod was restored from its checkpoint, but not on the target.
    Rescued,
    /// Ended before it began: there were reasons not to.
    Refused,
    /// Ended before it began: only the plan was wanted.
    Previewed,
    /// Ended: the user deleted the pod in the middle, and that was obeyed.
    Abandoned,
}

/// Every phase, in the order above.
pub const PHASES: [Phase; 15] = [
    Phase::Planned,
    Phase::Preparing,
    Phase::Copying,
    Phase::Holding,
    Phase::Delivering,
    Phase::Restoring,
    Phase::Rescuing,
    Phase::Retiring,
    Phase::Releasing,
    Phase::Succeeded,
    Phase::RolledBack,
    Phase::Rescued,
    Phase::Refused,
    Phase::Previewed,
    Phase::Abandoned,
];

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Phase {
    /// Nothing is due any more.
    #[must_use]
    pub fn ended(self) -> bool {
        self.step().is_none()
    }

    /// An abort is obeyed here. From the commit on it is refused: the target may run.
    #[must_use]
    pub fn abortable(self) -> bool {
        match self {
            Self::Planned | Self::Preparing | Self::Copying | Self::Holding | Self::Delivering => {
                true
            }
            Self::Restoring
            | Self::Rescuing
            | Self::Retiring
            | Self::Releasing
            | Self::Succeeded
            | Self::RolledBack
            | Self::Rescued
            | Self::Refused
            | Self::Previewed
            | Self::Abandoned => false,
        }
    }

    /// The step that is due.
    #[must_use]
    pub fn step(self) -> Option<Step> {
        match self {
            Self::Planned => Some(Step::Recheck),
            Self::Preparing => Some(Step::Prepare),
            Self::Copying => Some(Step::Copy),
            Self::Holding => Some(Step::Hold),
            Self::Delivering => Some(Step::Deliver),
            Self::Restoring => Some(Step::Restore),
            Self::Rescuing => Some(Step::Rescue),
            Self::Retiring => Some(Step::Retire),
            Self::Releasing => Some(Step::Release),
            Self::Succeeded
            | Self::RolledBack
            | Self::Rescued
            | Self::Refused
            | Self::Previewed
            | Self::Abandoned => None,
        }
    }
}

/// What the driver performs. Every step may be performed twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Step {
    /// Is what the plan was made from still true?
    Recheck,
    /// Base images on the target.
    Prepare,
    /// A round: a checkpoint of the running source, kept by the target as a base.
    Copy,
    /// Hold, dump, store, verify still held.
    Hold,
    /// Fetch, verify, rebuild on the target.
    Deliver,
    /// Delete the source's object, make the target's, verify restored.
    Restore,
    /// Destroy the held source, restore on the source node.
    Rescue,
    /// Disarm, destroy the held source, tidy up.
    Retire,
    /// Let the source run again, tidy up.
    Release,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is done, and this came out.
    Done(Done),
    /// Proved: nothing of it can still run.
    Failed(Finding),
    /// It can't be told now. Never leads back: the step is asked again.
    Unknown(Finding),
    /// The user deleted the pod. Deletion is obeyed.
    PodDeleted(Finding),
    /// Proved at Restoring: the source's object was not touched and nothing of the target was made. There is a way back.
    NotBegun(Finding),
    /// The worker refused: its journal is younger than this phase. The phase is entered anew, with a revision it takes.
    Forgotten(Finding),
}

impl Outcome {
    /// What it says of what went wrong, "" when nothing did.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Done(_) => String::new(),
            Self::Failed(what)
            | Self::Unknown(what)
            | Self::PodDeleted(what)
            | Self::NotBegun(what)
            | Self::Forgotten(what) => what.message.clone(),
        }
    }
}

/// What a step brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Done {
    /// The plan still holds.
    Rechecked,
    /// The target has the base images; the hold comes next.
    Prepared,
    /// The target has the base images; rounds come next, for the plan has some. A word of its own: logs from before
    /// there were rounds mean what they meant.
    ReadyToCopy,
    /// The target has another round.
    Copied {
        /// Which.
        round: Round,
        /// So much changed while it was sent that another one pays.
        again: bool,
    },
    /// The source is held and its checkpoint durable.
    Held(Checkpoint),
    /// The target has every byte.
    Delivered(Vec<Image>),
    /// The pod runs on the target, restored.
    Restored(Restored),
    /// The pod runs on the rescue node, restored.
    Rescued(Restored),
    /// Nothing is left over.
    Retired,
    /// The source runs, or is gone by the user's will.
    Released {
        /// It runs again as if nothing had happened.
        clean: bool,
        /// Why not, "" when clean.
        detail: String,
        /// What the undone migration left somewhere, and why it is still there.
        left_over: Option<Finding>,
    },
    /// The source is still held, for a thaw would only let it die: its stored checkpoint is the pod.
    Doomed(Finding),
}

/// A durable checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Where its parts lie in the store.
    pub store_prefix: String,
    /// The manifest's key.
    pub manifest_key: String,
    /// blake3 of the manifest, hex.
    pub manifest_blake3: String,
    /// When the first task was paused: nanoseconds since 1970, corrected to the orchestrator's clock.
    pub paused_unix_ns: u64,
    /// Bytes of the archives.
    pub raw_bytes: u64,
    /// Bytes that were stored.
    pub stored_bytes: u64,
    /// Objects that were stored.
    pub packs: u32,
    /// The source node's boot: another one means that the hold is gone.
    pub boot_id: String,
}

/// A checkpoint of the source while it ran: a base for what comes after it. Nobody restores from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// The manifest's key.
    pub manifest_key: String,
    /// blake3 of the manifest, hex.
    pub manifest_blake3: String,
    /// Bytes of the archives.
    pub raw_bytes: u64,
    /// Bytes that were stored.
    pub stored_bytes: u64,
    /// From the step's beginning until the target had it, milliseconds.
    pub took_ms: u64,
}

/// A checkpoint image on the node that restores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The container it restores.
    pub container: String,
    /// What the pod's spec names.
    pub reference: String,
    /// The runtime's id of it.
    pub image_id: String,
}

/// A pod that was proved to be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Its UID.
    pub pod_uid: PodUid,
    /// Where it runs.
    pub node: NodeName,
    /// When its last container ran: nanoseconds since 1970, corrected to the orchestrator's clock.
    pub running_unix_ns: u64,
    /// The images it was restored from; they are disarmed when retiring.
    pub images: Vec<Image>,
}

/// A piece of the trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// What was done.
    pub name: String,
    /// Where: a node's name, or "orchestrator".
    pub place: String,
    /// Name of the enclosing span of the same phase, "" for the phase itself.
    pub parent: String,
    /// Nanoseconds since 1970, corrected to the orchestrator's clock.
    pub start_unix_ns: u64,
    /// The same for its end.
    pub end_unix_ns: u64,
    /// Bytes, counts, CRIU's own statistics.
    pub attributes: BTreeMap<String, String>,
}

/// Spans kept for one migration. A migration makes about 40; a repeated step may double them.
pub const SPANS_MAX: usize = 200;

/// Since when, and what is not known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Doubt {
    /// Since when.
    pub since_ms: UnixMs,
    /// What is unknown and what would settle it.
    pub what: Finding,
    /// How often the step was asked.
    pub asked: u32,
}

/// One migration, as replicated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Migration {
    /// Its id: the UID of the object that asked for it.
    pub id: MigrationId,
    /// Namespace and name of that object.
    pub object: PodRef,
    /// What was asked.
    pub request: Request,
    /// What was decided; `None` only when refused.
    pub plan: Option<Plan>,
    /// Why it was refused.
    pub refusals: Vec<Finding>,
    /// Where it stands.
    pub phase: Phase,
    /// The log index at which this phase was entered.
    pub revision: Revision,
    /// The log index at which it was submitted: the order of turns.
    pub submitted: Revision,
    /// When each phase was entered.
    pub entered: Vec<(Phase, UnixMs)>,
    /// Attempts at this phase: 1 unless it had to be entered anew.
    pub attempts: u32,
    /// When the last attempt began.
    pub attempted_ms: UnixMs,
    /// Why it was undone, rescued or given up.
    pub reason: Option<Finding>,
    /// The step's outcome is unknown.
    pub doubt: Option<Doubt>,
    /// The last failure of a step that is asked again.
    pub stuck: Option<Finding>,
    /// Rounds that the target has, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<Round>,
    /// Why there are no more rounds: the migration goes on without, its freeze is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copying_ended: Option<Finding>,
    /// The durable checkpoint, from Holding's end on.
    pub checkpoint: Option<Checkpoint>,
    /// The images on the target, from Delivering's end on.
    pub images: Vec<Image>,
    /// The restored pod, from the end of Restoring or Rescuing on.
    pub restored: Option<Restored>,
    /// The undo was not clean: why.
    pub unclean: Option<String>,
    /// It has ended, but something of it is still to be cleared away. Nothing of that runs.
    pub left_over: Option<Finding>,
    /// It has ended, and its checkpoint stays in the store: a base for the pod's next migration.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
    /// Nodes that a person declared dead, and when: nothing runs there, and nothing will before our worker there was
    /// asked again. No proof is waited for from them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dead: BTreeMap<NodeName, UnixMs>,
    /// Its trace.
    pub spans: Vec<Span>,
}

impl Migration {
    /// This node was declared dead.
    #[must_use]
    pub fn is_dead(&self, node: &NodeName) -> bool {
        self.dead.contains_key(node)
    }

    /// The source's node was declared dead.
    #[must_use]
    pub fn source_is_dead(&self) -> bool {
        self.plan
            .as_ref()
            .is_some_and(|plan| self.is_dead(&plan.source))
    }

    /// Its checkpoint is to stay in the store when it has ended: it was asked for, and the pod goes on from it.
    #[must_use]
    pub fn keeps_checkpoint(&self) -> bool {
        let asked = self.request.keep_checkpoint_ms.is_some();
        asked && self.checkpoint.is_some() && self.restored.is_some()
    }

    /// An undo is possible: nothing was committed, and there is a source to go back to. With the source's node dead
    /// the stored checkpoint is all there is, so the way is forward.
    #[must_use]
    pub fn abortable(&self) -> bool {
        self.phase.abortable() && !(self.phase == Phase::Delivering && self.source_is_dead())
    }

    /// The pod was restored, but not on the target.
    #[must_use]
    pub fn rescued(&self) -> bool {
        match (&self.restored, &self.plan) {
            (Some(restored), Some(plan)) => restored.node != plan.target,
            (None, _) | (_, None) => false,
        }
    }

    /// Paused until restored: milliseconds, once both are known.
    #[must_use]
    pub fn freeze_ms(&self) -> Option<u64> {
        let freeze = self.freeze()?;
        Some(freeze.end_unix_ns.saturating_sub(freeze.start_unix_ns) / 1_000_000)
    }

    /// The freeze as a span of no place: it begins on one node and ends on another. Derived, so never in `spans`.
    #[must_use]
    pub fn freeze(&self) -> Option<Span> {
        Some(Span {
            name: "freeze".to_owned(),
            place: String::new(),
            parent: String::new(),
            start_unix_ns: self.checkpoint.as_ref()?.paused_unix_ns,
            end_unix_ns: self.restored.as_ref()?.running_unix_ns,
            attributes: BTreeMap::new(),
        })
    }
}
