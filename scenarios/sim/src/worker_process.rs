//! A worker's process: production agent, desk, performer and hold on a simulated machine, and the line that it keeps to
//! whichever peer takes it in.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use clap::Parser;
use proto::worker::{FromWorker, ToWorker};
use tokio::sync::mpsc;
use worker::{
    agent::{self, EVENTS_MAX, Event, LineId, Tools},
    config::Config,
    hold::Holder,
    journal::Journal,
    metrics::Metrics,
};

use crate::{
    doors::{Attached, Doors},
    journal,
    life::{Life, together},
    machine::Hands,
    mistakes::Mistake,
    sim::{Sim, WallClock},
    store::Store,
};

/// Dialling again, as in production but for its growth.
const DIAL_AGAIN: Duration = Duration::from_millis(200);
/// Keepalive: a peer that is not reached this long is given up.
const KEEPALIVE_MS: u64 = 5_000;

/// Lives and dies and lives again, for as long as the schedule lasts.
pub async fn run(sim: Sim, node: String, clock: WallClock, doors: Doors) {
    let name = format!("worker-{node}");
    loop {
        let (up, boot) = sim.look(|inner| {
            let machine = inner.truth.machine(&node);
            (machine.up, machine.boot)
        });
        if !up {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        let dies_at = sim.look(|inner| inner.faults.deaths.get_mut(&name).and_then(Vec::pop));
        let life = Life::new(&sim, &name, dies_at);
        doors.born(&name, life.clone());
        sim.event(&name, format_args!("starts in boot {boot}"));
        sim.look(|inner| inner.truth.machine(&node).registry_up = true);
        let living = tokio::spawn(live(
            sim.clone(),
            life.clone(),
            node.clone(),
            boot,
            clock.clone(),
            doors.clone(),
        ));
        life.died().await;
        living.abort();
        sim.look(|inner| inner.truth.machine(&node).registry_up = false);
        sim.rest(50..=1_500).await;
    }
}

fn config(node: &str) -> Config {
    static DEFAULT: OnceLock<Config> = OnceLock::new();
    let default =
        DEFAULT.get_or_init(|| Config::parse_from(["w", "--node-name=n", "--orchestrator=o"]));
    Config {
        node_name: node.to_owned(),
        ..default.clone()
    }
}

async fn live(sim: Sim, life: Life, node: String, boot: u32, clock: WallClock, doors: Doors) {
    let hands = Hands {
        sim: sim.clone(),
        life: life.clone(),
        node: node.clone(),
        boot,
        clock,
        store: Store {
            sim: sim.clone(),
            life: life.clone(),
        },
        bases: Arc::default(),
    };
    let (journal, queue) = Journal::kept_by_caller();
    let config = config(&node);
    let Ok(metrics) = Metrics::new() else {
        return;
    };
    let boot_id = format!("{node}-boot-{boot}");
    let tools = Tools {
        holder: Holder {
            node: Arc::new(hands.clone()),
            checkpointer: Arc::new(hands.clone()),
            journal: journal.clone(),
            boot_id: boot_id.clone(),
        },
        data: Arc::new(hands.clone()),
        inspector: Arc::new(hands.clone()),
        surveyor: Arc::new(hands),
        metrics,
        journal: journal.clone(),
        config: config.clone(),
    };
    let (events, incoming) = mpsc::channel(EVENTS_MAX);
    let kept = journal::keep(sim.clone(), life.clone(), node.clone(), queue);
    let line = Line {
        sim,
        life,
        node,
        boot_id,
        config,
        journal,
        doors,
        events: events.clone(),
    };
    let agent = async {
        let ended = agent::serve(tools, events, incoming).await;
        assert!(ended.is_ok(), "a simulated journal can be written to");
    };
    together([Box::pin(kept), Box::pin(line.keep_all()), Box::pin(agent)]).await;
}

struct Line {
    sim: Sim,
    life: Life,
    node: String,
    boot_id: String,
    config: Config,
    journal: Journal,
    doors: Doors,
    events: mpsc::Sender<Event>,
}

impl Line {
    /// To every peer, as in production.
    async fn keep_all(self) {
        let lines = self.doors.peers().into_iter();
        futures::future::join_all(lines.map(|peer| self.keep(peer))).await;
    }

    async fn keep(&self, peer: String) {
        loop {
            tokio::time::sleep(DIAL_AGAIN).await;
            let reaches = self
                .sim
                .look(|inner| inner.network.reaches(&self.node, &peer));
            if !reaches {
                continue;
            }
            let Ok(hello) = agent::hello(&self.config, &self.journal, &self.boot_id).await else {
                continue;
            };
            self.sim.rest(1..=10).await;
            let (to_peer, from_worker) = mpsc::channel(EVENTS_MAX);
            let attached = Attached {
                node: self.node.clone(),
                hello,
                from_worker,
            };
            let Some(from_peer) = self.doors.dial(&peer, attached).await else {
                continue;
            };
            self.hold(&peer, to_peer, from_peer).await;
        }
    }

    /// Until the stream breaks, which either side notices in its own time.
    async fn hold(
        &self,
        peer: &str,
        to_peer: mpsc::Sender<FromWorker>,
        mut from_peer: mpsc::Receiver<ToWorker>,
    ) {
        let (outbound, mut said) = mpsc::channel::<FromWorker>(EVENTS_MAX);
        let line = LineId(self.sim.with(|inner| inner.truth.count()));
        if self.events.send(Event::Up(line, outbound)).await.is_err() {
            return;
        }
        let speaking = async {
            while let Some(message) = said.recv().await {
                if !passes(&self.sim, &self.node, peer).await {
                    return;
                }
                if self.life.is_dead() || to_peer.send(message).await.is_err() {
                    return;
                }
            }
        };
        let hearing = async {
            while let Some(message) = from_peer.recv().await {
                if !passes(&self.sim, &self.node, peer).await {
                    return;
                }
                if self.events.send(Event::Heard(line, message)).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = hearing => {}
            () = speaking => {}
        }
        self.sim
            .event(self.life.name(), format_args!("stream to {peer} ends"));
        let _agent_gone = self.events.send(Event::Down(line)).await;
    }
}

/// A message takes its time; over a cut it waits, until somebody gives the stream up.
async fn passes(sim: &Sim, node: &str, peer: &str) -> bool {
    let (slow_ms, per_mille) = sim.look(|inner| {
        let faults = &inner.faults;
        (faults.streams_slow_ms, faults.streams_per_mille)
    });
    sim.rest(0..=slow_ms).await;
    let since_ms = sim.now_ms();
    while !sim.look(|inner| inner.network.reaches(node, peer)) {
        if sim.now_ms() > since_ms + KEEPALIVE_MS {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    !sim.hits(per_mille)
}

/// The journal of this machine is lost: a new one in its place.
pub fn forget(sim: &Sim, node: &str) {
    let same = sim.makes(Mistake::ForgottenJournalTrusted);
    sim.with(|inner| {
        let number = inner.truth.count();
        let old = inner.faults.journal(node).memory().journal_id;
        let journal_id = if same {
            old
        } else {
            format!("journal-{number}-of-{node}")
        };
        inner
            .faults
            .replace_journal(node, journal::Lines::new(journal_id));
        let machine = inner.truth.machine(node);
        machine.registry.clear();
        machine.archives.clear();
    });
}
