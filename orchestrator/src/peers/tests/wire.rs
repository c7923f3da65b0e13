//! Real logs with the real transport on loopback, over wires that can be cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use orchestrator_core::{id::NodeName, state::Command};
use prometheus::{IntCounter, IntCounterVec, Opts};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use uuid::Uuid;

use super::faulty::{Faults, Faulty};
use crate::{
    consensus::{
        node::{INBOUND_QUEUED_MAX, Leadership, Limits, Log, Membership},
        storage::Disk,
        transport::Inbound,
    },
    peers::{
        book::{Address, Book},
        gate::Gate,
        network::{Network, Parts},
        operator::Desk,
        record::Records,
        server::{Door, serve},
    },
    tls::{Authority, Identity, peer_name},
};

pub(super) const GROUP: Uuid = Uuid::from_u128(77);

/// Small, so that a peer is soon too far behind for the log.
const LIMITS: Limits = Limits {
    entries: 30,
    bytes: 1 << 20,
    keep: 5,
    keep_bytes: 10_000,
};

/// Whatever these tests wait for comes in a second; the machine may be busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Peer {
    pub(super) log: Log,
    pub(super) parts: Parts,
    pub(super) refused: IntCounterVec,
    pub(super) faults: Faults,
    served: JoinHandle<()>,
    _disk: tempfile::TempDir,
}

impl Peer {
    pub(super) fn refusals(&self, reason: &str) -> u64 {
        self.refused.with_label_values(&[reason]).get()
    }

    pub(super) async fn stop(self) {
        self.served.abort();
        self.log.stop().await;
    }
}

/// The ports of the peers, and a wire from each to each.
pub(super) struct Wires {
    pub(super) authority: Authority,
    listeners: BTreeMap<u64, TcpListener>,
    pub(super) ports: BTreeMap<u64, u16>,
    wires: BTreeMap<(u64, u64), (u16, watch::Sender<bool>)>,
}

impl Wires {
    pub(super) async fn among(ids: &[u64]) -> Self {
        // An error means that another test was first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut listeners = BTreeMap::new();
        for id in ids {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listeners.insert(*id, listener);
        }
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let ports: BTreeMap<u64, u16> = listeners.iter().map(|(id, l)| (*id, port(l))).collect();
        let mut wires = BTreeMap::new();
        for from in ids {
            for to in ids.iter().filter(|to| *to != from) {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let (cut, whole) = watch::channel(true);
                wires.insert((*from, *to), (port(&listener), cut));
                tokio::spawn(carry(listener, ports[to], whole));
            }
        }
        Self {
            authority: Authority::make().unwrap(),
            listeners,
            ports,
            wires,
        }
    }

    /// Cuts a peer off from all others, or heals that.
    pub(super) fn cut(&self, peer: u64, whole: bool) {
        for ((from, to), (_, wire)) in &self.wires {
            if *from == peer || *to == peer {
                wire.send_replace(whole);
            }
        }
    }

    pub(super) fn identity(&self, group: Uuid, peer: u64) -> Identity {
        let names = [peer_name(group, peer), "localhost".to_owned()];
        self.authority.issue(&names).unwrap()
    }

    pub(super) async fn start(&mut self, peer: u64, founders: &[u64]) -> Peer {
        let disk = tempfile::tempdir().unwrap();
        let book = Book::in_memory();
        for ((from, to), (port, _)) in &self.wires {
            if *from == peer {
                book.found(*to, &at(*port));
            }
        }
        let (inbound_out, inbound) = mpsc::channel(INBOUND_QUEUED_MAX);
        let parts = Parts {
            own: peer,
            group: GROUP,
            address: None,
            identity: self.identity(GROUP, peer),
            book: book.clone(),
            inbound: inbound_out.clone(),
            dropped: IntCounter::new("dropped", "dropped").unwrap(),
        };
        let faults = Faults::default();
        let log = start(disk.path(), peer, founders, &parts, inbound, faults.clone()).await;
        let refused = IntCounterVec::new(Opts::new("refused", "refused"), &["reason"]).unwrap();
        let gate = Gate::new(peer, GROUP, book, log.members(), refused.clone());
        tokio::spawn(gate.clone().note_removals());
        let door = Door {
            gate: gate.clone(),
            inbound: inbound_out,
            log: log.clone(),
        };
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let records = Records::new(kube::Client::try_from(nowhere).unwrap(), "none");
        let desk = Desk {
            log: log.clone(),
            gate: gate.clone(),
            records,
        };
        let (listener, identity) = (
            self.listeners.remove(&peer).unwrap(),
            parts.identity.clone(),
        );
        let served = tokio::spawn(async move {
            serve(listener, &identity, door, desk).await.unwrap();
        });
        Peer {
            log,
            parts,
            refused,
            faults,
            served,
            _disk: disk,
        }
    }
}

async fn start(
    dir: &Path,
    peer: u64,
    founders: &[u64],
    parts: &Parts,
    inbound: mpsc::Receiver<Inbound>,
    faults: Faults,
) -> Log {
    let membership = Membership {
        peer,
        group: GROUP,
        founders: founders.to_vec(),
    };
    let file = dir.join("log.redb");
    let open = Box::new(move || Disk::on(Faulty::open(&file, faults.clone())));
    let network = Network::new(parts.clone());
    Log::start_on(open, dir, membership, network, inbound, LIMITS)
        .await
        .unwrap()
}

pub(super) fn at(port: u16) -> Address {
    Address {
        host: "127.0.0.1".to_owned(),
        peer_port: port,
        worker_port: 1,
    }
}

/// Carries bytes while the wire is whole.
async fn carry(listener: TcpListener, to: u16, mut whole: watch::Receiver<bool>) {
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut cut = whole.clone();
        if !*whole.borrow_and_update() {
            continue; // hangs up at once
        }
        tokio::spawn(async move {
            let Ok(mut far) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], to))).await
            else {
                return;
            };
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                _ = cut.wait_for(|whole| !*whole) => {}
            }
        });
    }
}

pub(super) type Group = BTreeMap<u64, Peer>;

pub(super) async fn three() -> (Wires, Group) {
    let mut wires = Wires::among(&[1, 2, 3, 4]).await;
    let mut group = Group::new();
    for id in 1..=3 {
        group.insert(id, wires.start(id, &[1, 2, 3]).await);
    }
    (wires, group)
}

/// Who leads among these.
pub(super) async fn leader(group: &Group, among: &[u64]) -> u64 {
    tokio::time::timeout(PATIENCE, async {
        loop {
            let leads = among.iter().find(|id| {
                let leadership = group[id].log.leadership();
                matches!(*leadership.borrow(), Leadership::Leader { .. })
            });
            if let Some(id) = leads {
                return *id;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("somebody leads")
}

pub(super) fn register(node: &str) -> Command {
    Command::Register {
        node: NodeName::from(node),
        journal: "j".to_owned(),
    }
}

/// Waits until every peer of these has this node.
pub(super) async fn everybody_has(group: &Group, among: &[u64], node: &str) {
    for id in among {
        let mut state = group[id].log.state();
        let has = state.wait_for(|state| state.workers.contains_key(&NodeName::from(node)));
        tokio::time::timeout(PATIENCE, has)
            .await
            .unwrap_or_else(|_| panic!("peer {id} never had {node}"))
            .unwrap();
    }
}

pub(super) fn set(ids: &[u64]) -> BTreeSet<u64> {
    ids.iter().copied().collect()
}
