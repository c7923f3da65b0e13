//! Bases: checkpoints whose bytes this node has kept, so that a later one can be a difference to them.
//!
//! ```text
//!  source:  Copy ─► archive stays in the kubelet's folder ─► the next round, or the hold, is compared with it
//!  target:  Receive ─► new bytes of the round, proved ─► bases/MIGRATION/ROUND/CONTAINER/new ─► Deliver reads them
//! ```
//! What is kept is known to this process alone: after a restart the node has no bases, and what they were is removed.
//! Bytes that were proved by another process may have been lost with the node's memory since, and proving them again
//! would cost the freeze more than fetching them. A node without the base of a checkpoint fetches that, too: the store
//! has every round until the migration has ended.
//!
//! Bounded by the planner, which makes rounds only where there is room for one more copy of the archive, and by
//! [`Rounds::sweep`]. The folder is root's.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use pages::{
    keys::DataKey,
    source::{Opened, Origin, ReadAt, View},
};

const BASES: &str = "bases";
/// Nobody asks for a base again after so long: a migration is undone within minutes by default, and its end removes
/// them. What is left then is of migrations whose end never reached this node.
const IDLE_MAX: Duration = Duration::from_secs(3600);
/// Of a manifest's hash, in folder names: 64 bits tell the rounds of one migration apart.
const NAME_DIGITS: usize = 16;

/// Bytes of an archive on this node.
#[derive(Clone)]
pub struct Kept {
    /// The archive.
    pub view: Arc<View>,
    /// What differences to it call it; none can be made to one of version 1.
    pub root: Option<[u8; 32]>,
    /// The files that the view reads, the newest first.
    pub files: Vec<KeptFile>,
}

/// A file that views read.
#[derive(Clone)]
pub struct KeptFile {
    /// Opened.
    pub source: Arc<dyn ReadAt>,
    /// Where.
    pub path: PathBuf,
}

/// A checkpoint whose bytes are here.
pub struct Round {
    /// UID of the migration.
    pub migration: String,
    /// blake3 of its manifest, hex: its name.
    pub manifest_blake3: String,
    /// The manifest's key.
    pub manifest_key: String,
    /// Its bytes.
    pub manifest_bytes: u64,
    /// The lineage's key.
    pub key: DataKey,
    /// By container.
    pub archives: Vec<(String, Kept)>,
}

/// The bases of this node. Cheap to clone: clones share them.
#[derive(Clone)]
pub struct Rounds {
    folder: PathBuf,
    kept: Arc<Mutex<HashMap<String, Entry>>>,
}

struct Entry {
    round: Arc<Round>,
    touched: Instant,
}

impl Kept {
    /// A whole file that is an archive.
    pub fn of_file(file: Opened, path: PathBuf, root: [u8; 32]) -> Self {
        let source: Arc<dyn ReadAt> = Arc::new(file);
        let mut view = View::default();
        let (size, offset) = (source.size(), 0);
        let origin = Origin::Source {
            source: Arc::clone(&source),
            offset,
        };
        view.push(size, origin);
        Self {
            view: Arc::new(view),
            root: Some(root),
            files: vec![KeptFile { source, path }],
        }
    }
}

impl Round {
    /// What is kept of this container.
    pub fn archive(&self, container: &str) -> Option<&Kept> {
        let mut archives = self.archives.iter();
        archives
            .find(|(name, _)| name == container)
            .map(|(_, kept)| kept)
    }
}

impl Rounds {
    /// None at first; removes what an earlier process had.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let folder = state_dir.join(BASES);
        remove(&folder)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        Ok(Self {
            folder,
            kept: Arc::default(),
        })
    }

    /// The base of this name, if it is here.
    pub fn get(&self, migration: &str, manifest_blake3: &str) -> Option<Arc<Round>> {
        let mut kept = self.lock();
        let entry = kept
            .get_mut(manifest_blake3)
            .filter(|entry| entry.round.migration == migration)?;
        entry.touched = Instant::now();
        Some(Arc::clone(&entry.round))
    }

    /// From now on it is a base.
    pub fn keep(&self, round: Round) -> Arc<Round> {
        let round = Arc::new(round);
        let entry = Entry {
            round: Arc::clone(&round),
            touched: Instant::now(),
        };
        self.lock().insert(round.manifest_blake3.clone(), entry);
        round
    }

    /// The folder for the bytes of a base that is being received, empty.
    pub fn folder(&self, migration: &str, manifest_blake3: &str) -> io::Result<PathBuf> {
        let name = manifest_blake3.get(..NAME_DIGITS).unwrap_or("unnamed");
        let folder = self.folder.join(migration).join(name);
        remove(&folder)?;
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Removes the bases of a migration. Who is still reading them goes on.
    pub fn forget(&self, migration: &str) -> io::Result<()> {
        self.lock()
            .retain(|_, entry| entry.round.migration != migration);
        remove(&self.folder.join(migration))
    }

    /// Removes bases that nobody has asked for in a long time.
    pub fn sweep(&self) -> io::Result<()> {
        let idle: Vec<String> = self
            .lock()
            .values()
            .filter(|entry| entry.touched.elapsed() > IDLE_MAX)
            .map(|entry| entry.round.migration.clone())
            .collect();
        idle.iter().try_for_each(|migration| self.forget(migration))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(migration: &str, name: &str) -> Round {
        Round {
            migration: migration.to_owned(),
            manifest_blake3: name.to_owned(),
            manifest_key: format!("checkpoints/{migration}/1/manifest"),
            manifest_bytes: 1,
            key: DataKey::from_bytes([1; 32]),
            archives: Vec::new(),
        }
    }

    #[test]
    fn a_base_is_found_by_its_migration_alone_until_that_ends() {
        let folder = tempfile::tempdir().unwrap();
        let rounds = Rounds::open(folder.path()).unwrap();
        rounds.keep(round("m", "aa"));
        rounds.keep(round("n", "bb"));
        let there = rounds.folder("m", "0123456789abcdef0123").unwrap();
        assert!(there.ends_with("bases/m/0123456789abcdef"));
        assert!(rounds.get("m", "aa").is_some());
        assert!(rounds.get("n", "aa").is_none(), "of another migration");
        rounds.forget("m").unwrap();
        assert!(rounds.get("m", "aa").is_none() && !there.exists());
        assert!(rounds.get("n", "bb").is_some());
    }

    #[test]
    fn a_new_process_has_no_bases_and_removes_those_of_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let there = Rounds::open(folder.path()).unwrap().folder("m", "aa");
        fs::write(there.as_ref().unwrap().join("new"), "bytes").unwrap();
        let rounds = Rounds::open(folder.path()).unwrap();
        assert!(!there.unwrap().exists());
        assert!(rounds.get("m", "aa").is_none());
    }
}
