//! The log twice: in memory as raft reads it ([`Cache`]), and on disk ([`Disk`], one redb file).
//!
//! The state is kept as **a snapshot and the log behind it**, and replayed at the start; no rows per migration. Then
//! the applied index and the membership are those of the snapshot by construction, no crash can leave a state that
//! belongs to another index than the disk says, and what restarting does is what every test of `apply` does. The
//! price is the replay: at most [`Limits::entries`](super::core::Limits) commands, some milliseconds.
//!
//! Disk layout: table `log`, index -> entry; table `meta`: `peer` (whose disk this is), `hard_state`, `compacted`
//! (index and term of the last entry that is gone), `snapshot` (state, index, term and membership as of that index).

use std::{collections::VecDeque, path::Path};

use raft::{
    Error as RaftError, GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Message, Snapshot, SnapshotMetadata},
};
use redb::{
    Builder, Database, Durability, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};

use super::format::{
    self, FormatError, VERSION, raft_from_bytes, raft_to_bytes, state_from_bytes, state_to_bytes,
};
use orchestrator_core::state::State;

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const PEER: &str = "peer";
const HARD_STATE: &str = "hard_state";
const COMPACTED: &str = "compacted";
const SNAPSHOT: &str = "snapshot";

/// Every founder starts from the same empty snapshot at this index and term, so that no founder needs another's.
const FOUNDING_INDEX: u64 = 1;

/// redb keeps this much of the file in memory. The file holds the log tail and one snapshot: 20 MiB and some at most.
const CACHE_BYTES: usize = 32 << 20;

/// What can be wrong with the disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file can't be read, written or locked.
    #[error("{doing} the log on disk")]
    Database {
        /// What we were doing.
        doing: &'static str,
        /// Why not.
        #[source]
        source: Box<redb::Error>,
    },
    /// Something in it can't be read.
    #[error("understand the log on disk")]
    Format(#[from] FormatError),
    /// The file was made by another peer.
    #[error("this disk belongs to peer {found}, not to peer {expected}")]
    OtherPeer {
        /// Whose it is.
        found: u64,
        /// Who asked.
        expected: u64,
    },
    /// Entries are missing.
    #[error("the log on disk has a gap: entry {found} follows entry {last}")]
    Gap {
        /// The last good one.
        last: u64,
        /// What comes then.
        found: u64,
    },
}

impl DiskError {
    /// There is no room left: worth waiting for.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Database { source, .. } => {
                let kind = if let redb::Error::Io(cause) = source.as_ref() {
                    Some(cause.kind())
                } else {
                    None
                };
                matches!(
                    kind,
                    Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
                )
            }
            Self::Format(_) | Self::OtherPeer { .. } | Self::Gap { .. } => false,
        }
    }
}

fn failed<E: Into<redb::Error>>(doing: &'static str) -> impl FnOnce(E) -> DiskError {
    move |source| DiskError::Database {
        doing,
        source: Box::new(source.into()),
    }
}

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

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.snapshot_index() == 0 || self.snapshot_index() < request_index {
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

/// What a new disk begins with: the empty state of which every founder starts, with these voters.
///
/// # Errors
/// When the empty state can't be serialised.
pub fn founding(voters: &[u64]) -> Result<WriteTask, FormatError> {
    let mut snapshot = Snapshot::default();
    snapshot.set_data(state_to_bytes(&State::default())?.into());
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (FOUNDING_INDEX, 1);
    metadata.mut_conf_state().voters = voters.to_vec();
    let mut hard_state = HardState::default();
    (hard_state.term, hard_state.commit) = (1, FOUNDING_INDEX);
    Ok(WriteTask {
        hard_state: Some(hard_state),
        snapshot: Some(SnapshotWrite::Received(snapshot)),
        ..WriteTask::default()
    })
}

/// The log on disk.
#[derive(Debug)]
pub struct Disk {
    database: Database,
}

impl Disk {
    /// Opens the file, or makes it. A file that was not closed is checked and repaired first.
    ///
    /// # Errors
    /// When it can't be opened, or another process has it open.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        Self::prepare(builder().create(path).map_err(failed("open"))?)
    }

    /// Opens a disk of a test's making.
    #[cfg(test)]
    pub(super) fn on(backend: impl redb::StorageBackend) -> Result<Self, DiskError> {
        Self::prepare(
            builder()
                .create_with_backend(backend)
                .map_err(failed("open"))?,
        )
    }

    fn prepare(database: Database) -> Result<Self, DiskError> {
        let transaction = database.begin_write().map_err(failed("prepare"))?;
        transaction.open_table(LOG).map_err(failed("prepare"))?;
        transaction.open_table(META).map_err(failed("prepare"))?;
        transaction.commit().map_err(failed("prepare"))?;
        Ok(Self { database })
    }

    /// Makes this disk `peer`'s: a new one gets the founding snapshot with these voters (none: the peer joins later,
    /// and its first snapshot comes from the leader). Repeating this changes nothing.
    ///
    /// # Errors
    /// When the disk is another peer's, or can't be written.
    pub fn claim(&self, peer: u64, voters: &[u64]) -> Result<(), DiskError> {
        if let Some(found) = self.owner()? {
            return if found == peer {
                Ok(())
            } else {
                Err(DiskError::OtherPeer {
                    found,
                    expected: peer,
                })
            };
        }
        let transaction = self.database.begin_write().map_err(failed("found"))?;
        let mut owner = vec![VERSION];
        owner.extend(peer.to_le_bytes());
        {
            let mut meta = transaction.open_table(META).map_err(failed("found"))?;
            meta.insert(PEER, owner.as_slice())
                .map_err(failed("found"))?;
        }
        if !voters.is_empty() {
            put(&transaction, &founding(voters)?)?;
        }
        transaction.commit().map_err(failed("found"))
    }

    fn owner(&self) -> Result<Option<u64>, DiskError> {
        let transaction = self.database.begin_read().map_err(failed("read"))?;
        let meta = transaction.open_table(META).map_err(failed("read"))?;
        let Some(value) = meta.get(PEER).map_err(failed("read"))? else {
            return Ok(None);
        };
        match value.value() {
            [VERSION, id @ ..] if id.len() == size_of::<u64>() => {
                let mut bytes = [0; size_of::<u64>()];
                bytes.copy_from_slice(id);
                Ok(Some(u64::from_le_bytes(bytes)))
            }
            [] => Err(FormatError::Empty { what: "the owner" }.into()),
            [found, ..] => Err(FormatError::Version {
                what: "the owner",
                found: *found,
            }
            .into()),
        }
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When something can't be read or understood, or entries are missing.
    pub fn load(&self) -> Result<Loaded, DiskError> {
        let transaction = self.database.begin_read().map_err(failed("read"))?;
        let meta = transaction.open_table(META).map_err(failed("read"))?;
        let mut cache = Cache::default();
        if let Some(value) = meta.get(HARD_STATE).map_err(failed("read"))? {
            cache.hard_state = raft_from_bytes("the hard state", value.value())?;
        }
        if let Some(value) = meta.get(COMPACTED).map_err(failed("read"))? {
            let compacted: SnapshotMetadata =
                raft_from_bytes("the compaction point", value.value())?;
            cache.compacted = (compacted.index, compacted.term);
        }
        if let Some(value) = meta.get(SNAPSHOT).map_err(failed("read"))? {
            cache.snapshot = raft_from_bytes("the snapshot", value.value())?;
        }
        let log = transaction.open_table(LOG).map_err(failed("read"))?;
        for row in log.iter().map_err(failed("read"))? {
            let (_, value) = row.map_err(failed("read"))?;
            let entry: Entry = raft_from_bytes("an entry", value.value())?;
            if entry.index != cache.last() + 1 {
                return Err(DiskError::Gap {
                    last: cache.last(),
                    found: entry.index,
                });
            }
            cache.entries.push_back(entry);
        }
        Loaded::from_cache(cache)
    }

    /// Writes consecutive tasks with one fsync, or none of them.
    ///
    /// # Errors
    /// When the disk can't. Then none is written, or (when the fsync itself failed) all may be: the same tasks can be
    /// written again, repeating them changes nothing.
    pub fn write(&self, tasks: &[WriteTask]) -> Result<(), DiskError> {
        let mut transaction = self.database.begin_write().map_err(failed("write"))?;
        if tasks.iter().all(|task| !task.must_sync) {
            // Only commit indexes: they are found again from the log, so they may wait for the next fsync.
            transaction
                .set_durability(Durability::None)
                .map_err(failed("write"))?;
        }
        for task in tasks {
            put(&transaction, task)?;
        }
        transaction.commit().map_err(failed("sync"))
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder.set_check_integrity_on_open(true);
    builder
}

/// Puts one task into a transaction. The order inside doesn't matter to a crash (all or nothing), but to the result:
/// a received snapshot empties the log before entries of the same Ready are put behind it, and entries replace the
/// tail they conflict with before compaction takes the head.
fn put(transaction: &WriteTransaction, task: &WriteTask) -> Result<(), DiskError> {
    let WriteTask {
        number: _,
        entries,
        hard_state,
        snapshot,
        must_sync: _,
        after: _,
    } = task;
    let mut log = transaction.open_table(LOG).map_err(failed("write"))?;
    let mut meta = transaction.open_table(META).map_err(failed("write"))?;
    let mut keep = |key: &str, bytes: Vec<u8>| -> Result<(), DiskError> {
        meta.insert(key, bytes.as_slice())
            .map_err(failed("write"))?;
        Ok(())
    };
    if let Some(SnapshotWrite::Received(snapshot)) = snapshot {
        log.retain(|_, _| false).map_err(failed("write"))?;
        let metadata = snapshot.get_metadata();
        keep(COMPACTED, point(metadata.index, metadata.term)?)?;
        keep(SNAPSHOT, raft_to_bytes("the snapshot", snapshot)?)?;
    }
    if let Some(first) = entries.first() {
        log.retain_in(first.index.., |_, _| false)
            .map_err(failed("write"))?;
    }
    for entry in entries {
        log.insert(entry.index, raft_to_bytes("an entry", entry)?.as_slice())
            .map_err(failed("write"))?;
    }
    if let Some(hard_state) = hard_state {
        keep(HARD_STATE, raft_to_bytes("the hard state", hard_state)?)?;
    }
    if let Some(SnapshotWrite::Taken {
        snapshot,
        compacted: (index, term),
    }) = snapshot
    {
        log.retain_in(..=*index, |_, _| false)
            .map_err(failed("write"))?;
        keep(COMPACTED, point(*index, *term)?)?;
        keep(SNAPSHOT, raft_to_bytes("the snapshot", snapshot)?)?;
    }
    Ok(())
}

fn point(index: u64, term: u64) -> Result<Vec<u8>, format::FormatError> {
    let mut point = SnapshotMetadata::default();
    (point.index, point.term) = (index, term);
    raft_to_bytes("the compaction point", &point)
}
