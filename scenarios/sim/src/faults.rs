//! What goes wrong: the rates that hold now, who reaches whom, and the list of single misfortunes of a schedule.

use std::collections::{BTreeMap, BTreeSet};

use orchestrator_core::migration::Phase;

use crate::journal::Lines;

/// Rates and states of the surroundings, and the disks that processes leave behind.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Calls to the store that fail.
    pub store_per_mille: u64,
    /// Calls to the API server that get no answer, before or after they are carried out.
    pub api_per_mille: u64,
    /// Writes there that get no answer and are carried out seconds later.
    pub api_late_per_mille: u64,
    /// The longest a call to the API server takes, milliseconds.
    pub api_slow_ms: u64,
    /// Nobody answers there.
    pub api_down: bool,
    /// Dumps that fail.
    pub dump_per_mille: u64,
    /// Messages between peers that are lost, and as many that come twice.
    pub peers_per_mille: u64,
    /// The longest a message between peers takes, milliseconds.
    pub peers_slow_ms: u64,
    /// Messages to and from workers after which the stream breaks.
    pub streams_per_mille: u64,
    /// The longest a message on a stream takes, milliseconds.
    pub streams_slow_ms: u64,
    /// So many of the next creations of pods get no answer and are carried out when their name is free again.
    pub late_creates: u64,
    /// The next answer of the API server to this peer is on its way for so long, milliseconds.
    pub slow_answers: BTreeMap<String, u64>,
    /// Peers whose log stands still: nothing is taken in or written, while everything else of the process goes on.
    pub stalled: BTreeSet<String>,
    /// Kubelets that were stopped.
    pub kubelets_down: BTreeSet<String>,
    /// Effects (counted twice, before and after) at which the next lives of a process end.
    pub deaths: BTreeMap<String, Vec<u64>>,
    /// Nothing goes wrong any more.
    pub is_calm: bool,
    journals: BTreeMap<String, Lines>,
}

impl Faults {
    /// Nothing goes wrong any more.
    pub fn calm(&mut self) {
        let journals = std::mem::take(&mut self.journals);
        *self = Self {
            is_calm: true,
            api_slow_ms: 10,
            peers_slow_ms: 5,
            streams_slow_ms: 5,
            journals,
            ..Self::default()
        };
    }

    /// The journal on this machine's disk.
    pub fn journal(&mut self, node: &str) -> &mut Lines {
        self.journals
            .entry(node.to_owned())
            .or_insert_with(|| Lines::new(format!("journal-of-{node}")))
    }

    /// Another disk in its place.
    pub fn replace_journal(&mut self, node: &str, lines: Lines) {
        self.journals.insert(node.to_owned(), lines);
    }
}

/// Who reaches whom. Places are peers, nodes and the API server.
#[derive(Debug, Default)]
pub struct Network {
    cuts: BTreeSet<(String, String)>,
    alone: BTreeSet<String>,
}

impl Network {
    /// Both ways.
    #[must_use]
    pub fn reaches(&self, one: &str, other: &str) -> bool {
        one == other
            || !(self.alone.contains(one)
                || self.alone.contains(other)
                || self.cuts.contains(&pair(one, other)))
    }

    /// Nothing passes between these two.
    pub fn cut(&mut self, one: &str, other: &str) {
        self.cuts.insert(pair(one, other));
    }

    /// Nothing comes in or goes out.
    pub fn isolate(&mut self, place: &str) {
        self.alone.insert(place.to_owned());
    }

    /// Everything about this place is whole again.
    pub fn heal(&mut self, place: &str) {
        self.alone.remove(place);
        self.cuts
            .retain(|(one, other)| one != place && other != place);
    }

    /// Everything is whole again.
    pub fn heal_all(&mut self) {
        *self = Self::default();
    }
}

fn pair(one: &str, other: &str) -> (String, String) {
    let (one, other) = if one < other {
        (one, other)
    } else {
        (other, one)
    };
    (one.to_owned(), other.to_owned())
}

/// When a misfortune comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// At this time.
    At(u64),
    /// So long after the log says that this migration is in this phase.
    Phase(String, Phase, u64),
}

/// A single misfortune.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfortune {
    /// kill -9. `peers`: all of them at once.
    Kill(String),
    /// The worker's journal is lost, and the worker with it.
    Forget(String),
    /// The node's power is cut.
    Reboot(String),
    /// A container on it is killed.
    Accident(String),
    /// Its kubelet stops for a while.
    HaltKubelet(String, u64),
    /// Nothing passes between these two for a while.
    Cut(String, String, u64),
    /// Nothing passes to or from it for a while.
    Isolate(String, u64),
    /// Nothing passes between this peer and the others for a while; everybody else reaches it.
    Depose(String, u64),
    /// This peer's log stands still for a while: its disk hangs, or is full.
    Stall(String, u64),
    /// A wall clock jumps by milliseconds.
    Jump(String, i64),
    /// The API server is away for a while.
    ApiDown(u64),
    /// The store refuses this often in a thousand, for a while.
    StoreBad(u64, u64),
    /// Kubernetes' next answer to this peer is on its way for so long.
    SlowAnswer(String, u64),
    /// The next creation of a pod gets no answer, and is carried out when the name is free again.
    LateCreate,
    /// The user deletes the pod.
    DeletePod(String),
    /// The user deletes the nth `PodMigration`.
    DeleteMigration(usize),
}
