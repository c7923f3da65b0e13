//! The address book: which peers there are, where each was last found, and which were removed.
//!
//! Filled from Kubernetes and from greetings, kept on disk, so that neither an API server that is away nor a restart
//! makes peers strangers. An address that is wrong only costs a failed dial: the certificate says who answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

const FILE: &str = "peers.json";
const VERSION: u32 = 1;

/// Where a peer is found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// IP or name.
    pub host: String,
    /// Where peers and operators dial.
    pub peer_port: u16,
    /// Where workers dial.
    pub worker_port: u16,
}

impl Address {
    /// For a worker.
    #[must_use]
    pub fn for_workers(&self) -> String {
        authority(&self.host, self.worker_port)
    }

    /// For a peer.
    #[must_use]
    pub fn for_peers(&self) -> String {
        authority(&self.host, self.peer_port)
    }
}

/// `host:port`, with brackets around an IPv6 address.
fn authority(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// One peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Its pod's name, "" when not known.
    pub name: String,
    /// Where it was last found.
    pub address: Option<Address>,
}

/// Everything in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entries {
    version: u32,
    /// The peers, by id.
    pub peers: BTreeMap<u64, Known>,
    /// Ids that were members once and never will be again.
    pub removed: BTreeSet<u64>,
}

/// The book. Clones are the same book.
#[derive(Clone)]
pub struct Book {
    file: Option<PathBuf>,
    entries: watch::Sender<Arc<Entries>>,
    writing: Arc<Mutex<()>>,
    complained: Arc<AtomicBool>,
}

impl Book {
    /// As it was left in this directory. One that can't be read is begun anew: it is found out again.
    #[must_use]
    pub fn open(directory: &std::path::Path) -> Self {
        let file = directory.join(FILE);
        let kept = fs::read(&file).ok();
        let kept: Option<Entries> = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let entries = kept.filter(|kept| kept.version == VERSION);
        Self {
            file: Some(file),
            entries: watch::Sender::new(Arc::new(entries.unwrap_or_default())),
            writing: Arc::default(),
            complained: Arc::default(),
        }
    }

    /// What is in it now, and when it changes.
    #[must_use]
    pub fn entries(&self) -> watch::Receiver<Arc<Entries>> {
        self.entries.subscribe()
    }

    /// Where a peer was last found.
    #[must_use]
    pub fn address(&self, peer: u64) -> Option<Address> {
        self.entries.borrow().peers.get(&peer)?.address.clone()
    }

    /// A peer was found here.
    pub fn found(&self, peer: u64, address: &Address) {
        self.change(|entries| {
            entries.peers.entry(peer).or_default().address = Some(address.clone());
        });
    }

    /// A peer has this name.
    pub fn named(&self, peer: u64, name: &str) {
        self.change(|entries| name.clone_into(&mut entries.peers.entry(peer).or_default().name));
    }

    /// These are members no more. Their ids are never given again.
    pub fn removed(&self, peers: &BTreeSet<u64>) {
        self.change(|entries| {
            entries.removed.extend(peers);
            entries.peers.retain(|peer, _| !peers.contains(peer));
        });
    }

    fn change(&self, change: impl FnOnce(&mut Entries)) {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = self.entries.send_if_modified(|known| {
            let mut entries = Entries::clone(known);
            change(&mut entries);
            entries.version = VERSION;
            let removed = std::mem::take(&mut entries.removed);
            entries.peers.retain(|peer, _| !removed.contains(peer));
            entries.removed = removed;
            let changed = **known != entries;
            *known = Arc::new(entries);
            changed
        });
        if changed {
            let kept = self.keep();
            // Without the file a restart has to ask Kubernetes: worth one line, not one a change.
            if let Err(error) = &kept
                && !self.complained.swap(true, Ordering::Relaxed)
            {
                tracing::warn!(%error, "the peers' addresses are not kept on disk");
            }
        }
    }

    fn keep(&self) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let fresh = file.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(&**self.entries.borrow())?)?;
        fs::rename(fresh, file)
    }

    /// One that isn't kept, for tests.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self {
            file: None,
            entries: watch::Sender::default(),
            writing: Arc::default(),
            complained: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str) -> Address {
        Address {
            host: host.to_owned(),
            peer_port: 7444,
            worker_port: 7443,
        }
    }

    #[test]
    fn a_book_survives_a_restart_and_removed_peers_stay_removed() {
        let directory = tempfile::tempdir().unwrap();
        let book = Book::open(directory.path());
        book.found(1, &at("10.0.0.1"));
        book.named(1, "longshore-orchestrator-0");
        book.found(2, &at("10.0.0.2"));
        book.removed(&BTreeSet::from([2]));
        book.found(2, &at("10.0.0.9"));
        let book = Book::open(directory.path());
        assert_eq!(book.address(1), Some(at("10.0.0.1")));
        assert_eq!(book.address(2), None);
        let entries = Arc::clone(&book.entries().borrow());
        assert_eq!(entries.peers[&1].name, "longshore-orchestrator-0");
        assert_eq!(entries.removed, BTreeSet::from([2]));
    }

    #[test]
    fn an_ipv6_address_is_bracketed() {
        assert_eq!(at("fd00::1").for_workers(), "[fd00::1]:7443");
        assert_eq!(at("10.0.0.1").for_peers(), "10.0.0.1:7444");
    }
}
