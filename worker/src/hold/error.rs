//! Why a pod could not be held, released or ended.

use std::{path::PathBuf, time::Duration};

use crate::{
    cgroup::CgroupError,
    checkpoint::{CheckpointError, proof::ProofError},
    containerd::ContainerdError,
    data::DataError,
    journal::JournalError,
};

/// What was in the way. All but two are proofs that nothing of the step runs any more, see [`HoldError::is_in_doubt`].
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages say it, and the fields are what they name"
)]
pub enum HoldError {
    #[error("the request names no pod or no container")]
    NoPod,
    #[error("the pod can't be held: {why}")]
    NotRunning { why: String },
    #[error("this migration holds the pod since revision {revision} already")]
    HeldBefore { revision: u64 },
    #[error("the snapshot is stale: {when}, {why}")]
    Stale { when: &'static str, why: String },
    #[error("{doing} took longer than it may ({} ms)", budget.as_millis())]
    OverBudget {
        doing: &'static str,
        budget: Duration,
    },
    #[error("given up: a newer step of this migration was asked for")]
    Superseded,
    #[error("the dump of container {container} hangs and could not be ended yet")]
    DumpStuck { container: String },
    #[error("the archive {} is of container {found} and not of {wanted}", archive.display())]
    OtherContainer {
        archive: PathBuf,
        found: String,
        wanted: String,
    },
    #[error("the worker was interrupted")]
    Interrupted,
    #[error("processes of the pod are left after {} s: {left}", waited.as_secs())]
    StillAlive { waited: Duration, left: String },
    #[error("the kubelet does not end the pod yet, {} s after its deletion; is it running on this node?", waited.as_secs())]
    KubeletSilent { waited: Duration },
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}", chain(.0))]
    Checkpoint(#[from] CheckpointError),
    #[error("{}", chain(.0))]
    Proof(#[from] ProofError),
    #[error("{}", chain(.0))]
    Cgroup(#[from] CgroupError),
    #[error("{0}")]
    Containerd(#[from] ContainerdError),
    #[error("{0}")]
    Data(#[from] DataError),
    #[error("{}", chain(.0))]
    Journal(#[from] JournalError),
}

impl HoldError {
    /// Something of a hold may still be under way, so that nobody can say how it stands.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self, Self::DumpStuck { .. } | Self::Interrupted)
    }
}

/// An error and its causes in one line: these go over the wire as text.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
