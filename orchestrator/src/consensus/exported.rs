//! The state as a file: what `orchestrator export` writes and `import` reads.
//!
//! A group that is founded from it begins far above every index of the old one ([`IMPORT_GAP`]), and every migration
//! that runs enters its phase anew there: workers refuse whatever the old group may still ask of them.

use std::path::Path;

use orchestrator_core::{
    id::{Revision, UnixMs},
    state::State,
};
use raft::{
    Storage as _,
    eraftpb::{Entry, EntryType},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    format::{FormatError, command_from_bytes},
    storage::{Disk, DiskError, Founding},
};

const VERSION: u32 = 1;

/// Between the last index of an export and the first of the group that is founded from it. The old group may have gone
/// on after the export: at 500 commands a second it would take three weeks to come this far.
pub const IMPORT_GAP: u64 = 1_000_000_000;

/// What is in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    version: u32,
    /// The group it is of.
    #[serde(with = "crate::consensus::format::group_as_text")]
    pub group: Uuid,
    /// The last log index in it.
    pub index: u64,
    /// The state as of that index.
    pub state: State,
}

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The disk.
    #[error("read the log on disk")]
    Disk(#[from] DiskError),
    /// Nothing on it.
    #[error("there is no log on this disk")]
    Empty,
    /// An entry.
    #[error("apply entry {index}")]
    Entry {
        /// Which.
        index: u64,
        /// Why not.
        source: FormatError,
    },
    /// The file.
    #[error("understand the export")]
    File(#[from] serde_json::Error),
    /// Another version.
    #[error("the export is of version {found}, this program knows {VERSION}")]
    Version {
        /// Which.
        found: u32,
    },
}

impl Exported {
    /// Of a peer's state.
    #[must_use]
    pub fn new(group: Uuid, index: u64, state: State) -> Self {
        Self {
            version: VERSION,
            group,
            index,
            state,
        }
    }

    /// From the disk of a peer that doesn't run. Everything on it counts, committed or not: what was acknowledged is
    /// on a majority of the disks, and this one may not have heard of it. What was not may have been decided, too.
    ///
    /// # Errors
    /// When it can't be read, or another process has it open.
    pub fn from_disk(file: &Path) -> Result<Self, ExportError> {
        if !file.exists() {
            return Err(ExportError::Empty);
        }
        let disk = Disk::open(file)?;
        let (_, group) = disk.owner()?.ok_or(ExportError::Empty)?;
        let loaded = disk.load()?;
        let (mut index, mut state) = (loaded.applied.0, loaded.state);
        let end = loaded.cache.last_index().map_err(|_| ExportError::Empty)?;
        let context = raft::GetEntriesContext::empty(false);
        let behind = loaded.cache.entries(index + 1, end + 1, None, context);
        for entry in behind.map_err(|_| ExportError::Empty)? {
            index = entry.index;
            apply(&mut state, &entry).map_err(|source| ExportError::Entry { index, source })?;
        }
        Ok(Self::new(group.unwrap_or_default(), index, state))
    }

    /// As a file's bytes.
    ///
    /// # Errors
    /// When it can't be serialised.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ExportError> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// From a file's bytes.
    ///
    /// # Errors
    /// When they are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ExportError> {
        let read: Self = serde_json::from_slice(bytes)?;
        match read.version {
            VERSION => Ok(read),
            found => Err(ExportError::Version { found }),
        }
    }

    /// What a group of this one peer begins with.
    #[must_use]
    pub fn founding(self, peer: u64, now_ms: UnixMs) -> Founding {
        let index = self.index.saturating_add(IMPORT_GAP);
        let mut state = self.state;
        state.begin_anew(Revision(index), now_ms);
        Founding {
            voters: vec![peer],
            index,
            state,
        }
    }
}

fn apply(state: &mut State, entry: &Entry) -> Result<(), FormatError> {
    if entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty() {
        // A rejection is a result like any other.
        drop(state.apply(Revision(entry.index), command_from_bytes(&entry.data)?));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use orchestrator_core::{
        id::{MigrationId, NodeName, PodRef},
        plan::Request,
        refusal::Finding,
        state::{Command, Decision},
    };

    use super::*;
    use crate::consensus::{
        node::{Leadership, Log, found},
        storage::Owner,
    };

    const YESTERDAYS: &[u8] = include_bytes!("exported/export.v1.json");

    fn register(node: &str) -> Command {
        Command::Register {
            node: NodeName::from(node),
            journal: "a".to_owned(),
        }
    }

    #[test]
    fn yesterdays_export_is_read_and_written_again_the_same() {
        let read = Exported::from_bytes(YESTERDAYS).unwrap();
        assert_eq!(read.index, 7);
        assert_eq!(read.state.workers[&"node1".into()].at, Revision(7));
        let written = String::from_utf8(read.to_bytes().unwrap()).unwrap();
        assert_eq!(written, String::from_utf8_lossy(YESTERDAYS));
    }

    #[test]
    fn another_version_is_named() {
        let newer = String::from_utf8_lossy(YESTERDAYS).replace("\"version\": 1", "\"version\": 2");
        let error = Exported::from_bytes(newer.as_bytes()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the export is of version 2, this program knows 1"
        );
    }

    #[tokio::test]
    async fn a_group_founded_from_a_disk_has_everything_and_fences_whatever_the_old_one_asked() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let log = Log::start(old.path(), 1).await.unwrap();
        leads(&log).await;
        log.propose(register("node1")).await.unwrap().1.unwrap();
        log.stop().await;

        let mut exported = Exported::from_disk(&old.path().join("log.redb")).unwrap();
        assert!(exported.state.workers.contains_key(&"node1".into()));
        let pod = PodRef {
            namespace: "default".to_owned(),
            name: "kuard".to_owned(),
        };
        let refused = Command::Submit {
            id: MigrationId::from("m"),
            object: pod.clone(),
            request: Request {
                pod,
                target: NodeName::from("node2"),
                freeze_max_ms: None,
                timeout_ms: None,
                dry_run: false,
                rounds_max: None,
                keep_checkpoint_ms: None,
            },
            decision: Decision::Refuse(vec![Finding::new("NoSuchPod", "it is not there", "")]),
            at_ms: 1,
            spans: vec![],
        };
        exported
            .state
            .apply(Revision(exported.index + 1), refused)
            .unwrap();
        let index = exported.index;
        let owner = Owner {
            peer: 9,
            group: Uuid::from_u128(3),
        };
        let founding = exported.founding(owner.peer, 5);
        assert_eq!(founding.index, index + IMPORT_GAP);
        found(new.path(), owner, &founding).unwrap();
        assert!(found(new.path(), owner, &founding).is_err(), "only once");

        let membership = crate::consensus::node::Membership {
            peer: owner.peer,
            group: owner.group,
            founders: Vec::new(),
        };
        let (_nobody, inbound) = tokio::sync::mpsc::channel(1);
        let alone = crate::consensus::transport::Alone;
        let limits = crate::consensus::node::LIMITS;
        let log = Log::start_with(new.path(), membership, alone, inbound, limits)
            .await
            .unwrap();
        leads(&log).await;
        let (at, _) = log.propose(register("node2")).await.unwrap();
        assert!(at.0 > index + IMPORT_GAP);
        let state = log.state().borrow().clone();
        assert!(state.workers.contains_key(&"node1".into()));
        // What had ended is as it was: only what runs enters its phase anew.
        assert_eq!(state.migrations[&"m".into()].revision, Revision(index + 1));
        log.stop().await;
    }

    async fn leads(log: &Log) {
        let mut leadership = log.leadership();
        let leads = leadership.wait_for(|now| matches!(now, Leadership::Leader { .. }));
        leads.await.unwrap();
    }
}
