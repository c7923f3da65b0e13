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
