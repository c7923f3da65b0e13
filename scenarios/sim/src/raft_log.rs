//! A peer's part of the replicated log: the production core on a simulated disk and network.
//!
//! What a write carries is on the disk once it is synced; what only waits for the next sync may be lost with the power.
//! Messages that promise a write travel after it, as the core asks.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use orchestrator::consensus::{
    core::{Core, Leadership, Limits, Output},
    format::command_to_bytes,
    storage::{Loaded, WriteTask, founding},
    transport::Inbound,
};
use orchestrator_core::state::State;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::MissedTickBehavior,
};

use crate::{
    doors::{Doors, Proposal, Question},
    life::Life,
    mistakes::Mistake,
    sim::Sim,
};

/// Twice production's: half the work, and elections that leave time for mistakes.
const TICK: Duration = Duration::from_millis(100);

const STALLED_LOOK: Duration = Duration::from_millis(20);

/// What a peer's disk holds.
#[derive(Debug, Default)]
pub struct Platter {
    synced: Vec<WriteTask>,
    unsynced: Vec<WriteTask>,
}

impl Platter {
    /// A founder's.
    ///
    /// # Panics
    /// When an empty state can't be written down.
    #[must_use]
    pub fn founded(voters: &[u64]) -> Self {
        let task = founding(voters).expect("an empty state can be written down");
        Self {
            synced: vec![task],
            unsynced: Vec::new(),
        }
    }

    fn write(&mut self, tasks: Vec<WriteTask>) {
        let sync = tasks.iter().any(|task| task.must_sync);
        self.unsynced.extend(tasks);
        if sync {
            self.synced.append(&mut self.unsynced);
        }
    }

    /// What is found after the power was cut.
    pub fn crash(&mut self, keeps_unsynced: bool) {
        if keeps_unsynced {
            self.synced.append(&mut self.unsynced);
        }
        self.unsynced.clear();
    }
}

/// What goes into the log's task.
pub struct Inputs {
    /// Commands.
    pub proposals: mpsc::Receiver<Proposal>,
    /// Does a majority say that we lead?
    pub questions: mpsc::Receiver<Question>,
    /// Other peers.
    pub inbound: mpsc::UnboundedReceiver<Inbound>,
}

/// One life of one peer's log.
pub struct RaftLog {
    /// The world.
    pub sim: Sim,
    /// Whose.
    pub life: Life,
    /// Its number.
    pub peer: u64,
    /// Other peers.
    pub doors: Doors,
    /// When snapshots are taken.
    pub limits: Limits,
    /// What it knows.
    pub state: watch::Sender<Arc<State>>,
    /// Does it lead?
    pub leader: watch::Sender<bool>,
}

/// Who waits for an answer; one that is dropped says no.
#[derive(Default)]
struct Waiting {
    proposals: BTreeMap<u64, oneshot::Sender<bool>>,
    questions: BTreeMap<u64, Question>,
}

struct Written {
    number: Option<u64>,
    /// What may be said now.
    messages: Vec<Inbound>,
}

impl RaftLog {
    fn load(&self) -> Core {
        let (loaded, incarnation, patience) = self.sim.look(|inner| {
            let incarnation = inner.truth.count();
            let patience = inner.dice.of(0..=2);
            let platter = inner.platters.get(&self.peer);
            let synced = platter.map(|p| p.synced.as_slice()).unwrap_or_default();
            let loaded = Loaded::from_writes(synced);
            (loaded, incarnation, patience)
        });
        let loaded = loaded.expect("a simulated disk is never damaged");
        // Raft draws election timeouts at random; ranges of one make it replayable.
        let ticks = 10 + 3 * usize::try_from(self.peer + patience).unwrap_or(0);
        let mut config = Core::config(self.peer);
        config.min_election_tick = ticks;
        config.max_election_tick = ticks + 1;
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut core = Core::new(
            &config,
            loaded,
            self.limits,
            u128::from(incarnation),
            &logger,
        )
        .expect("a core starts from a sound disk");
        core.campaign_if_alone();
        core
    }

    /// Until the process dies.
    pub async fn run(self, inputs: Inputs) {
        let Inputs {
            mut proposals,
            mut questions,
            mut inbound,
        } = inputs;
        let mut core = self.load();
        let (to_writer, queue) = mpsc::unbounded_channel();
        let (writer_says, mut written) = mpsc::unbounded_channel();
        let writing = tokio::spawn(write_all(
            self.sim.clone(),
            self.life.clone(),
            self.peer,
            queue,
            writer_says,
        ));
        let mut waiting = Waiting::default();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.published(&core);
        loop {
            let output = core.pump().expect("production entries can be applied");
            self.carry_out(&mut core, output, &to_writer, &mut waiting);
            let stalled = || {
                !self.life.is_dead()
                    && self
                        .sim
                        .look(|i| i.faults.stalled.contains(self.life.name()))
            };
            while stalled() {
                // As production refuses at once what it can't write.
                while proposals.try_recv().is_ok() || questions.try_recv().is_ok() {}
                tokio::time::sleep(STALLED_LOOK).await;
            }
            tokio::select! {
                biased;
                () = self.life.died() => break,
                Some(Written { number, messages }) = written.recv() => {
                    for message in messages {
                        self.send(message);
                    }
                    if let Some(number) = number {
                        core.persisted(number);
                    }
                }
                Some(Proposal { command, reply }) = proposals.recv() => {
                    let bytes = command_to_bytes(&command).expect("a command can be written down");
                    if let Ok(number) = core.propose(bytes) {
                        waiting.proposals.insert(number, reply);
                    }
                }
                Some(reply) = questions.recv() => {
                    if let Ok(number) = core.confirm() {
                        waiting.questions.insert(number, reply);
                    }
                }
                Some(inbound) = inbound.recv() => core.receive(inbound),
                _ = ticks.tick() => core.tick(),
            }
        }
        writing.abort();
    }

    fn carry_out(
        &self,
        core: &mut Core,
        output: Output,
        to_writer: &mpsc::UnboundedSender<WriteTask>,
        waiting: &mut Waiting,
    ) {
        let Output {
            send_now,
            writes,
            answers,
            lost,
            snapshot,
            applied,
            confirmed,
            unconfirmed,
        } = output;
        for message in send_now {
            self.send(Inbound::Message(Box::new(message)));
        }
        let early = self.sim.makes(Mistake::MessagesBeforeFsync);
        for mut task in writes {
            if early {
                for message in std::mem::take(&mut task.after) {
                    self.send(Inbound::Message(Box::new(message)));
                }
            }
            // A writer that is gone is dead, and so are we.
            let _ = to_writer.send(task);
        }
        if let Some(plan) = snapshot {
            let built = plan.build().expect("a state can be written down");
            if let Some(task) = core.snapshot_built(built) {
                let _ = to_writer.send(task);
            }
        }
        if applied {
            let at = core.applied().0;
            self.sim
                .ledger(|ledger, inner| ledger.applied(inner, self.peer, at, core.state()));
            self.sim.tell_news();
        }
        self.published(core);
        for answer in answers {
            if let Some(reply) = waiting.proposals.remove(&answer.proposal) {
                let _ = reply.send(answer.result.is_ok());
            }
        }
        for proposal in lost {
            waiting.proposals.remove(&proposal);
        }
        for question in confirmed {
            if let Some(reply) = waiting.questions.remove(&question) {
                let _ = reply.send(true);
            }
        }
        for question in unconfirmed {
            waiting.questions.remove(&question);
        }
    }

    fn published(&self, core: &Core) {
        self.state.send_if_modified(|before| {
            let news = !Arc::ptr_eq(before, core.state());
            *before = Arc::clone(core.state());
            news
        });
        let leads = matches!(core.leadership(), Leadership::Leader { .. });
        let changed = self
            .leader
            .send_if_modified(|before| std::mem::replace(before, leads) != leads);
        if changed {
            self.sim
                .event(self.life.name(), format_args!("leads: {leads}"));
        }
    }

    /// Lost, late, or twice: raft is made for that.
    fn send(&self, inbound: Inbound) {
        let Inbound::Message(message) = inbound else {
            return;
        };
        if self.life.is_dead() {
            return;
        }
        let to = message.to;
        let other = format!("peer{to}");
        let (reaches, lost, twice, slow_ms) = self.sim.look(|inner| {
            let faults = &inner.faults;
            let (per_mille, slow_ms) = (faults.peers_per_mille, faults.peers_slow_ms);
            let reaches = inner.network.reaches(self.life.name(), &other);
            let lost = per_mille > 0 && inner.dice.hits(per_mille);
            let twice = per_mille > 0 && inner.dice.hits(per_mille);
            let slow_ms = [
                inner.dice.of(1..=slow_ms.max(1)),
                inner.dice.of(1..=slow_ms.max(1)),
            ];
            (reaches, lost, twice, slow_ms)
        });
        let arrives = reaches && !lost;
        if message.has_snapshot() && !message.get_snapshot().get_data().is_empty() {
            self.tell(Inbound::Snapshot {
                peer: to,
                arrived: arrives,
            });
        } else if !arrives {
            self.tell(Inbound::Unreachable { peer: to });
        }
        if !arrives {
            return;
        }
        let copies = 1 + usize::from(twice);
        for ms in slow_ms.into_iter().take(copies) {
            let (doors, other, message) = (self.doors.clone(), other.clone(), message.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                if let Some(door) = doors.peer(&other) {
                    // It may die at this moment.
                    let _ = door.inbound.send(Inbound::Message(message));
                }
            });
        }
    }

    fn tell(&self, what: Inbound) {
        if let Some(own) = self.doors.peer(self.life.name()) {
            let _ = own.inbound.send(what);
        }
    }
}

/// The disk's own pace: whatever has queued up is written with one sync.
async fn write_all(
    sim: Sim,
    life: Life,
    peer: u64,
    mut queue: mpsc::UnboundedReceiver<WriteTask>,
    says: mpsc::UnboundedSender<Written>,
) {
    let early = sim.makes(Mistake::MessagesBeforeFsync);
    while let Some(first) = queue.recv().await {
        let mut batch = vec![first];
        while let Ok(more) = queue.try_recv() {
            batch.push(more);
        }
        let number = batch.iter().filter_map(|task| task.number).max();
        if early {
            let _ = says.send(Written {
                number,
                messages: Vec::new(),
            });
            sim.rest(50..=400).await;
        }
        if batch.iter().any(|task| task.must_sync) {
            sim.rest(0..=6).await;
        }
        if life.is_dead() {
            return;
        }
        let after = batch.iter_mut().flat_map(|task| task.after.drain(..));
        let messages = after
            .map(|message| Inbound::Message(Box::new(message)))
            .collect();
        sim.look(|inner| inner.platters.entry(peer).or_default().write(batch));
        if !early {
            let _ = says.send(Written { number, messages });
        }
    }
}
