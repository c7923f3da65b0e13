//! Where processes are reached: peers by each other, by workers and by users; everybody by who kills them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use orchestrator::consensus::transport::Inbound;
use orchestrator_core::state::{Command, State};
use proto::worker::{FromWorker, ToWorker};
use tokio::sync::{mpsc, oneshot, watch};

use crate::life::Life;

/// A worker that wants to be taken in.
pub struct Attached {
    /// Its node.
    pub node: String,
    /// Its first words.
    pub hello: FromWorker,
    /// What it says after that.
    pub from_worker: mpsc::Receiver<FromWorker>,
}

/// The way in, and where the answer goes: what the peer will say, if it takes the worker in.
pub type Dialled = (Attached, oneshot::Sender<mpsc::Receiver<ToWorker>>);

/// A command, and whether it was applied.
pub struct Proposal {
    /// What.
    pub command: Command,
    /// True: it is in the log.
    pub reply: oneshot::Sender<bool>,
}

/// Who asks whether a majority says that this peer leads.
pub type Question = oneshot::Sender<bool>;

/// A peer that lives.
#[derive(Clone)]
pub struct PeerDoor {
    /// Messages of other peers.
    pub inbound: mpsc::UnboundedSender<Inbound>,
    /// Workers.
    pub dialled: mpsc::Sender<Dialled>,
    /// Commands.
    pub proposals: mpsc::Sender<Proposal>,
    /// Does it lead?
    pub leader: watch::Receiver<bool>,
    /// What it knows.
    pub state: watch::Receiver<Arc<State>>,
}

#[derive(Default)]
struct Inner {
    lives: BTreeMap<String, Life>,
    peers: BTreeMap<String, PeerDoor>,
    names: Vec<String>,
}

/// All doors; clones are the same.
#[derive(Clone, Default)]
pub struct Doors(Arc<Mutex<Inner>>);

impl Doors {
    /// For so many peers.
    #[must_use]
    pub fn new(peers: u64) -> Self {
        let doors = Self::default();
        doors.lock().names = (1..=peers).map(|n| format!("peer{n}")).collect();
        doors
    }

    /// Names of all peers.
    #[must_use]
    pub fn peers(&self) -> Vec<String> {
        self.lock().names.clone()
    }

    /// A process begins a life.
    pub fn born(&self, name: &str, life: Life) {
        self.lock().lives.insert(name.to_owned(), life);
    }

    /// kill -9.
    pub fn kill(&self, name: &str, why: &str) {
        let life = self.lock().lives.get(name).cloned();
        if let Some(life) = life {
            life.die(why);
        }
    }

    /// A peer can be reached.
    pub fn open(&self, name: &str, door: PeerDoor) {
        self.lock().peers.insert(name.to_owned(), door);
    }

    /// It can't any more.
    pub fn close(&self, name: &str) {
        self.lock().peers.remove(name);
    }

    /// The door of a peer that lives.
    #[must_use]
    pub fn peer(&self, name: &str) -> Option<PeerDoor> {
        self.lock().peers.get(name).cloned()
    }

    /// Who leads, as far as one peer believes it of itself.
    #[must_use]
    pub fn leader(&self) -> Option<(String, PeerDoor)> {
        leader(&self.lock().peers)
    }

    /// What the best informed peer knows.
    #[must_use]
    pub fn state(&self) -> Option<Arc<State>> {
        let (_, door) = self.leader()?;
        let state = Arc::clone(&door.state.borrow());
        Some(state)
    }

    /// A worker dials; nothing when it is turned away.
    pub async fn dial(&self, peer: &str, attached: Attached) -> Option<mpsc::Receiver<ToWorker>> {
        let door = self.peer(peer)?;
        let (reply, answer) = oneshot::channel();
        door.dialled.send((attached, reply)).await.ok()?;
        answer.await.ok()
    }

    /// Somebody proposes a command to whoever believes to lead. False: it is not known to be applied.
    pub async fn propose(&self, command: Command) -> bool {
        for door in self.leaders() {
            let (reply, answer) = oneshot::channel();
            let command = command.clone();
            let proposal = Proposal { command, reply };
            let sent = door.proposals.send(proposal).await.is_ok();
            if sent && answer.await.unwrap_or(false) {
                return true;
            }
        }
        false
    }

    fn leaders(&self) -> Vec<PeerDoor> {
        let inner = self.lock();
        let leading = inner.peers.values().filter(|door| *door.leader.borrow());
        leading.cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn leader(peers: &BTreeMap<String, PeerDoor>) -> Option<(String, PeerDoor)> {
    let mut leading = peers.iter().filter(|(_, door)| *door.leader.borrow());
    leading
        .next()
        .map(|(name, door)| (name.clone(), door.clone()))
}
