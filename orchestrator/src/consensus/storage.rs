//! The log twice: in memory as raft reads it ([`Cache`]), and on disk ([`Disk`], one redb file).
//!
//! The state is kept as **a snapshot and the log behind it**, and replayed at the start; no rows per migration. Then
//! the applied index and the membership are those of the snapshot by construction, no crash can leave a state that
//! belongs to another index than the disk says, and what restarting does is what every test of `apply` does. The
//! price is the replay: at most [`Limits::entries`](super::core::Limits) commands, some milliseconds.

use std::collections::VecDeque;

use orchestrator_core::state::State;
use raft::{
    Error as RaftError, GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Message, Snapshot},
};

use super::{core::Members, format::state_from_bytes};
pub use disk::{Disk, DiskError, Founding, Owner, founding};

mod disk;

/// The log as raft reads it. Only the core writes it, and always before it tells raft so.
#[derive(Debug, Default)]
pub struct Cache {
    /// Term, vote and commit index.
    pub(super) hard_state: HardState,
    /// The membership raft starts with: the snapshot's.
    founding: ConfState,
    /// Index and term of the last entry that is gone.
    compacted: (u64, u64),
    entries: VecDeque<Entry>,
    /// What a peer gets that is too far behind.
    snapshot: Snapshot,
}

impl Cache {
    fn first(&self) -> u64 {
        self.compacted.0 + 1
    }

    fn last(&self) -> u64 {
        self.compacted.0 + self.entries.len() as u64
    }

    /// Index of the snapshot that a peer too far behind gets.
    #[must_use]
    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }

    /// The membership as of that snapshot.
    #[must_use]
    pub fn snapshot_members(&self) -> &ConfState {
        self.snapshot.get_metadata().get_conf_state()
    }

    /// Appends, replacing whatever conflicts.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index >= self.first() && first.index <= self.last() + 1,
            "raft appends entry {} to a log of {}..={}",
            first.index,
            self.first(),
            self.last()
        );
        self.entries.truncate(position(first.index, self.first()));
        self.entries.extend(entries.iter().cloned());
    }

    /// Replaces everything by a snapshot that another peer sent.
    pub(super) fn install(&mut self, snapshot: Snapshot) {
        let metadata = snapshot.get_metadata();
        self.compacted = (metadata.index, metadata.term);
        self.entries.clear();
        self.snapshot = snapshot;
    }

    /// Takes a snapshot of our own into use and forgets the entries that nobody needs any more: all but the newest,
    /// which spare a peer that is a little behind the snapshot. Returns index and term of the last one forgotten.
    pub(super) fn compact(
        &mut self,
        snapshot: Snapshot,
        keep: usize,
        keep_bytes: usize,
    ) -> (u64, u64) {
        let mut to = snapshot.get_metadata().index;
        self.snapshot = snapshot;
        let (mut kept, mut kept_bytes) = (0, 0);
        while to > self.compacted.0 && kept < keep {
            kept_bytes += self.entries[position(to, self.first())].data.len();
            if kept_bytes > keep_bytes {
                break;
            }
            kept += 1;
            to -= 1;
        }
        if to > self.compacted.0 {
            let gone = position(to, self.first());
            let term = self.entries[gone].term;
            self.entries.drain(..=gone);
            self.compacted = (to, term);
        }
        self.compacted
    }
}

/// Where in a log that begins at `first` an entry lies.
fn position(index: u64, first: u64) -> usize {
    usize::try_from(index - first).expect("a log in memory has fewer entries than memory has bytes")
}

impl Storage for Cache {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.founding.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(RaftError::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(RaftError::Store(StorageError::Unavailable));
        }
        let range = position(low, self.first())..position(high, self.first());
        let mut entries: Vec<Entry> = self.entries.range(range).cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.compacted.0 {
            return Ok(self.compacted.1);
        }
        if index < self.first() {
            return Err(RaftError::Store(StorageError::Compacted));
        }
        self.entries
            .get(position(index, self.first()))
            .map(|entry| entry.term)
            .ok_or(RaftError::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let index = self.snapshot_index();
        // One from before the peer came would be refused there for ever; a newer one is being built.
        if index == 0
            || index < request_index
            || !Members::from(self.snapshot_members()).all().contains(&to)
        {
            return Err(RaftError::Store(
                StorageError::SnapshotTemporarilyUnavailable,
            ));
        }
        Ok(self.snapshot.clone())
    }
}

/// A snapshot on its way to the disk.
#[derive(Clone, Debug)]
pub enum SnapshotWrite {
    /// From another peer: it replaces the log.
    Received(Snapshot),
    /// Our own: the log loses its oldest entries, to this index of this term.
    Taken {
        /// The snapshot.
        snapshot: Snapshot,
        /// Index and term of the last entry that goes.
        compacted: (u64, u64),
    },
}

/// Everything one raft Ready wants written. It is written whole or not at all.
#[derive(Clone, Debug, Default)]
pub struct WriteTask {
    /// The Ready's number, to be told to the core once written; `None` for a snapshot of our own.
    pub number: Option<u64>,
    /// New entries; they replace those of the same index and all later ones.
    pub entries: Vec<Entry>,
    /// Term, vote, commit index.
    pub hard_state: Option<HardState>,
    /// A snapshot.
    pub snapshot: Option<SnapshotWrite>,
    /// The promise to other peers depends on it, so it needs an fsync. A commit index alone doesn't.
    pub must_sync: bool,
    /// Messages that promise what this task writes: to be sent only once it is written.
    pub after: Vec<Message>,
}

/// What a disk held.
#[derive(Debug)]
pub struct Loaded {
    /// The log.
    pub cache: Cache,
    /// The state as of the snapshot; raft hands out again what was committed after it.
    pub state: State,
    /// The membership as of the snapshot.
    pub members: ConfState,
    /// Index and term of the snapshot.
    pub applied: (u64, u64),
}

impl Loaded {
    /// From what the same writes would have left on a disk of the caller's making: a simulation's.
    ///
    /// # Errors
    /// When the snapshot can't be understood, or entries are missing.
    pub fn from_writes<'a>(
        writes: impl IntoIterator<Item = &'a WriteTask>,
    ) -> Result<Self, DiskError> {
        let mut cache = Cache::default();
        for task in writes {
            if let Some(SnapshotWrite::Received(snapshot)) = &task.snapshot {
                cache.install(snapshot.clone());
            }
            if let Some(first) = task.entries.first().filter(|e| e.index > cache.last() + 1) {
                return Err(DiskError::Gap {
                    last: cache.last(),
                    found: first.index,
                });
            }
            cache.append(&task.entries);
            if let Some(hard_state) = &task.hard_state {
                cache.hard_state = hard_state.clone();
            }
            if let Some(SnapshotWrite::Taken {
                snapshot,
                compacted,
            }) = &task.snapshot
            {
                cache.snapshot = snapshot.clone();
                while cache.compacted.0 < compacted.0 && cache.entries.pop_front().is_some() {
                    cache.compacted.0 += 1;
                }
                cache.compacted = *compacted;
            }
        }
        Self::from_cache(cache)
    }

    fn from_cache(mut cache: Cache) -> Result<Self, DiskError> {
        let metadata = cache.snapshot.get_metadata();
        let members = metadata.get_conf_state().clone();
        let applied = (metadata.index, metadata.term);
        let state = if metadata.index == 0 {
            State::default()
        } else {
            state_from_bytes(cache.snapshot.get_data())?
        };
        cache.founding = members.clone();
        Ok(Self {
            cache,
            state,
            members,
            applied,
        })
    }
}
