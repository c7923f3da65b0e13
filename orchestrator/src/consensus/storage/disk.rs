//! The log on disk.
//!
//! Disk layout: table `log`, index -> entry; table `meta`: `peer` (whose disk this is), `group` (of which group),
//! `hard_state`, `compacted` (index and term of the last entry that is gone), `snapshot` (state, index, term and
//! membership as of that index).

use std::path::Path;

use orchestrator_core::state::State;
use raft::eraftpb::{Entry, HardState, Snapshot, SnapshotMetadata};
use redb::{
    Builder, Database, Durability, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};
use uuid::Uuid;

use super::{Cache, Loaded, SnapshotWrite, WriteTask};
use crate::consensus::format::{
    FormatError, VERSION, raft_from_bytes, raft_to_bytes, state_to_bytes,
};

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const PEER: &str = "peer";
const GROUP_ROW: &str = "group";
const HARD_STATE: &str = "hard_state";
const COMPACTED: &str = "compacted";
const SNAPSHOT: &str = "snapshot";

/// Every founder starts from the same empty snapshot at this index and term, so that no founder needs another's.
const FOUNDING_INDEX: u64 = 1;

/// The term of a founding.
const FOUNDING_TERM: u64 = 1;

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
    /// The file is of another group.
    #[error("this disk belongs to the group {found}, not to {expected}")]
    OtherGroup {
        /// Which group's it is.
        found: Uuid,
        /// Which group was expected.
        expected: Uuid,
    },
    /// The file is in use already.
    #[error(
        "this disk belongs to peer {found} of a group; founding another group needs an empty one"
    )]
    NotEmpty {
        /// Whose it is.
        found: u64,
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
            Self::Format(_)
            | Self::OtherPeer { .. }
            | Self::OtherGroup { .. }
            | Self::NotEmpty { .. }
            | Self::Gap { .. } => false,
        }
    }
}

fn failed<E: Into<redb::Error>>(doing: &'static str) -> impl FnOnce(E) -> DiskError {
    move |source| DiskError::Database {
        doing,
        source: Box::new(source.into()),
    }
}

/// Whose disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The peer.
    pub peer: u64,
    /// Its group.
    pub group: Uuid,
}

/// What a group begins with, the same on every founder.
#[derive(Clone, Debug)]
pub struct Founding {
    /// The founders.
    pub voters: Vec<u64>,
    /// The log goes on behind this index.
    pub index: u64,
    /// The state as of that index.
    pub state: State,
}

impl Founding {
    /// A group with nothing behind it.
    #[must_use]
    pub fn of(voters: Vec<u64>) -> Self {
        Self {
            voters,
            index: FOUNDING_INDEX,
            state: State::default(),
        }
    }

    fn task(&self) -> Result<WriteTask, FormatError> {
        let mut snapshot = Snapshot::default();
        snapshot.set_data(state_to_bytes(&self.state)?.into());
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (self.index, FOUNDING_TERM);
        metadata.mut_conf_state().voters = self.voters.clone();
        let mut hard_state = HardState::default();
        (hard_state.term, hard_state.commit) = (FOUNDING_TERM, self.index);
        Ok(WriteTask {
            hard_state: Some(hard_state),
            snapshot: Some(SnapshotWrite::Received(snapshot)),
            ..WriteTask::default()
        })
    }
}

/// What a new disk begins with: the empty state of which every founder starts, with these voters.
///
/// # Errors
/// When the empty state can't be serialised.
pub fn founding(voters: &[u64]) -> Result<WriteTask, FormatError> {
    Founding::of(voters.to_vec()).task()
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
    pub(crate) fn on(backend: impl redb::StorageBackend) -> Result<Self, DiskError> {
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

    /// Makes this disk `owner`'s: a new one gets the founding (none: the peer joins later, and its first snapshot comes
    /// from the leader). Repeating this changes nothing. A disk from before groups had names gets this one's.
    ///
    /// # Errors
    /// When the disk is another peer's, of another group, or can't be written.
    pub fn claim(&self, owner: Owner, founding: Option<&Founding>) -> Result<(), DiskError> {
        match self.owner()? {
            None => self.take(owner, founding),
            Some((found, _)) if found != owner.peer => Err(DiskError::OtherPeer {
                found,
                expected: owner.peer,
            }),
            Some((_, Some(found))) if found != owner.group => Err(DiskError::OtherGroup {
                found,
                expected: owner.group,
            }),
            Some((_, Some(_))) => Ok(()),
            Some((_, None)) => self.take(owner, None),
        }
    }

    /// Founds a group on an empty disk.
    ///
    /// # Errors
    /// When the disk is in use already, or can't be written.
    pub fn found(&self, owner: Owner, founding: &Founding) -> Result<(), DiskError> {
        match self.owner()? {
            None => self.take(owner, Some(founding)),
            Some((found, _)) => Err(DiskError::NotEmpty { found }),
        }
    }

    fn take(&self, owner: Owner, founding: Option<&Founding>) -> Result<(), DiskError> {
        let transaction = self.database.begin_write().map_err(failed("found"))?;
        {
            let mut meta = transaction.open_table(META).map_err(failed("found"))?;
            let mut keep = |key: &str, value: &[u8]| {
                let bytes = [&[VERSION], value].concat();
                meta.insert(key, bytes.as_slice())
                    .map(drop)
                    .map_err(failed("found"))
            };
            keep(PEER, &owner.peer.to_le_bytes())?;
            keep(GROUP_ROW, owner.group.as_bytes())?;
        }
        if let Some(founding) = founding {
            put(&transaction, &founding.task()?)?;
        }
        transaction.commit().map_err(failed("found"))
    }

    /// Whose disk this is, and of which group, if it has an owner. Disks from before groups had names name none.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn owner(&self) -> Result<Option<(u64, Option<Uuid>)>, DiskError> {
        let transaction = self.database.begin_read().map_err(failed("read"))?;
        let meta = transaction.open_table(META).map_err(failed("read"))?;
        let Some(peer) = meta.get(PEER).map_err(failed("read"))? else {
            return Ok(None);
        };
        let peer = u64::from_le_bytes(fixed("the owner", peer.value())?);
        let group = match meta.get(GROUP_ROW).map_err(failed("read"))? {
            Some(group) => Some(Uuid::from_bytes(fixed("the group", group.value())?)),
            None => None,
        };
        Ok(Some((peer, group)))
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

/// A value of fixed length behind its version.
fn fixed<const N: usize>(what: &'static str, bytes: &[u8]) -> Result<[u8; N], FormatError> {
    let (version, value) = bytes.split_first().ok_or(FormatError::Empty { what })?;
    match (*version, value.try_into()) {
        (VERSION, Ok(value)) => Ok(value),
        (found, Ok(_) | Err(_)) => Err(FormatError::Version { what, found }),
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

fn point(index: u64, term: u64) -> Result<Vec<u8>, FormatError> {
    let mut point = SnapshotMetadata::default();
    (point.index, point.term) = (index, term);
    raft_to_bytes("the compaction point", &point)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Uuid = Uuid::from_u128(5);

    fn disk() -> Disk {
        Disk::on(redb::backends::InMemoryBackend::new()).unwrap()
    }

    #[test]
    fn a_disk_from_before_groups_had_names_gets_its_groups_and_keeps_its_log() {
        let disk = disk();
        let owner = Owner {
            peer: 1,
            group: GROUP,
        };
        disk.found(owner, &Founding::of(vec![1])).unwrap();
        // What the version before wrote: the peer alone.
        let transaction = disk.database.begin_write().unwrap();
        transaction
            .open_table(META)
            .unwrap()
            .remove(GROUP_ROW)
            .unwrap();
        transaction.commit().unwrap();
        assert_eq!(disk.owner().unwrap(), Some((1, None)));

        disk.claim(owner, None).unwrap();
        assert_eq!(disk.owner().unwrap(), Some((1, Some(GROUP))));
        assert_eq!(
            disk.load().unwrap().applied,
            (FOUNDING_INDEX, FOUNDING_TERM)
        );
    }

    #[test]
    fn a_disk_of_another_peer_or_group_is_not_taken() {
        let disk = disk();
        let owner = Owner {
            peer: 1,
            group: GROUP,
        };
        disk.claim(owner, Some(&Founding::of(vec![1, 2, 3])))
            .unwrap();
        let other_peer = Owner { peer: 2, ..owner };
        assert!(matches!(
            disk.claim(other_peer, None),
            Err(DiskError::OtherPeer { found: 1, .. })
        ));
        let other_group = Owner {
            group: Uuid::nil(),
            ..owner
        };
        assert!(matches!(
            disk.claim(other_group, None),
            Err(DiskError::OtherGroup { .. })
        ));
        assert!(matches!(
            disk.found(other_group, &Founding::of(vec![1])),
            Err(DiskError::NotEmpty { found: 1 })
        ));
    }
}
