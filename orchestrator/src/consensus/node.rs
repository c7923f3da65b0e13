//! The task that owns raft, and [`Log`], the handle everybody else uses.
//!
//! One `select!` shows every input: proposals, other peers' messages, what the writer wrote, built snapshots, time.
//! After each the core is pumped and what comes out is carried out in the order the core asks for. A new state is
//! published before the proposals in it are answered: whoever got an answer sees it in [`Log::state`].

use std::{collections::HashMap, sync::Arc, time::Duration};

use orchestrator_core::state::State;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

pub use super::core::{LIMITS, Leadership, Limits};
use super::{
    core::{Core, CoreError, Members, Output, Refused},
    format::FormatError,
    transport::{Inbound, Transport},
    writer::{Writer, Written},
};
pub use error::{AskError, ConsensusError, ProposeError};
use log::Ask;
pub use log::{Log, Membership, Proposed, found, owner};

mod error;
mod log;

/// Raft's unit of time. Ten to twenty without a leader make an election: half a second to one.
const TICK: Duration = Duration::from_millis(50);
/// Messages from other peers that wait for the task; raft repeats what is dropped.
pub const INBOUND_QUEUED_MAX: usize = 1024;
/// The log's file in its directory.
const FILE: &str = "log.redb";

/// The log can't go on; only a restart of the process helps.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error("go on with the log")]
    Core(#[from] CoreError),
    #[error("the log's writer died")]
    Writer,
}

type Answer<T, E> = oneshot::Sender<Result<T, E>>;

struct Inputs {
    asks: mpsc::Receiver<Ask>,
    inbound: mpsc::Receiver<Inbound>,
    written: mpsc::UnboundedReceiver<Written>,
    stopped: mpsc::Receiver<oneshot::Sender<()>>,
}

struct Node<T> {
    core: Core,
    transport: T,
    writer: Writer,
    waiting: HashMap<u64, Answer<Proposed, ProposeError>>,
    confirming: HashMap<u64, Answer<(), AskError>>,
    /// The disk can't write: it is full, or what it said.
    stalled: Option<(bool, String)>,
    building: Option<JoinHandle<Result<raft::eraftpb::Snapshot, FormatError>>>,
    state: watch::Sender<Arc<State>>,
    leadership: watch::Sender<Leadership>,
    members: watch::Sender<Members>,
}

impl<T: Transport> Node<T> {
    fn new(
        core: Core,
        transport: T,
        writer: Writer,
        state: watch::Sender<Arc<State>>,
        leadership: watch::Sender<Leadership>,
        members: watch::Sender<Members>,
    ) -> Self {
        Self {
            core,
            transport,
            writer,
            waiting: HashMap::new(),
            confirming: HashMap::new(),
            stalled: None,
            building: None,
            state,
            leadership,
            members,
        }
    }

    async fn run(mut self, mut inputs: Inputs) {
        let ended = self.serve(&mut inputs).await;
        let Self {
            core: _,
            transport: _,
            writer,
            waiting,
            confirming,
            stalled: _,
            building: _,
            state: _,
            leadership,
            members: _,
        } = self;
        if let Err(cause) = tokio::task::spawn_blocking(|| writer.stop()).await {
            tracing::error!(%cause, "wait for the log's writer");
        }
        leadership.send_replace(Leadership::Stopped);
        drop((waiting, confirming)); // whoever waits learns that the log stopped
        match ended {
            Ok(Some(done)) => drop(done.send(())), // nobody may wait for it any more
            Ok(None) => {}
            Err(cause) => {
                tracing::error!(
                    cause = format!("{:#}", anyhow::Error::new(cause)),
                    "the replicated log stops"
                );
            }
        }
    }

    /// Until somebody stops it (who is then to be told), or the last handle is gone.
    async fn serve(&mut self, inputs: &mut Inputs) -> Result<Option<oneshot::Sender<()>>, Fatal> {
        let mut ticks = interval(TICK);
        // After a pause of the machine one tick is enough: a burst would look like a lost leader.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut others = true;
        loop {
            // Whatever came together is pumped together: each pump publishes a copy of the state, and starts a write.
            self.pump()?;
            tokio::select! {
                stop = inputs.stopped.recv() => return Ok(stop),
                written = inputs.written.recv() => {
                    self.written(written.ok_or(Fatal::Writer)?);
                    while let Ok(written) = inputs.written.try_recv() {
                        self.written(written);
                    }
                }
                Some(ask) = inputs.asks.recv() => {
                    self.asked(ask);
                    while let Ok(ask) = inputs.asks.try_recv() {
                        self.asked(ask);
                    }
                }
                inbound = inputs.inbound.recv(), if others => match inbound {
                    Some(inbound) => {
                        self.core.receive(inbound);
                        // Not more than was there: whoever floods us must not keep the clock from ticking.
                        for _ in 0..inputs.inbound.len() {
                            let Ok(inbound) = inputs.inbound.try_recv() else {
                                break;
                            };
                            self.core.receive(inbound);
                        }
                    }
                    None => others = false, // a log of one peer
                },
                Some(built) = join(&mut self.building) => self.snapshot_built(built),
                _ = ticks.tick() => self.core.tick(),
            }
        }
    }

    /// Whoever asked may have given up waiting: then nobody is to be told.
    fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Propose(command, reply) => self.propose(command, reply),
            Ask::Confirm(reply) => match self.core.confirm() {
                Ok(number) => drop(self.confirming.insert(number, reply)),
                Err(refused) => drop(reply.send(Err(refused.into()))),
            },
            Ask::Change(change, reply) => {
                drop(reply.send(self.core.change(change).map_err(AskError::from)));
            }
            Ask::Transfer(to, reply) => {
                drop(reply.send(self.core.transfer(to).map_err(AskError::from)));
            }
            Ask::HandOver(reply) => {
                let heir = self
                    .core
                    .heir()
                    .filter(|heir| self.core.transfer(*heir).is_ok());
                let _ = reply.send(heir);
            }
            Ask::Describe(reply) => drop(reply.send(self.core.standing())),
        }
    }

    fn propose(&mut self, command: Vec<u8>, reply: Answer<Proposed, ProposeError>) {
        let refused = match &self.stalled {
            Some((true, _)) => ProposeError::DiskFull,
            Some((false, detail)) => ProposeError::Disk {
                detail: detail.clone(),
            },
            None => match self.core.propose(command) {
                Ok(number) => {
                    self.waiting.insert(number, reply);
                    return;
                }
                Err(Refused::NotLeader(leader)) => ProposeError::NotLeader { leader },
                Err(Refused::Busy | Refused::RemovesLeader) => ProposeError::Busy,
            },
        };
        drop(reply.send(Err(refused)));
    }

    fn written(&mut self, written: Written) {
        match written {
            Written::Persisted { number, messages } => {
                for message in messages {
                    self.transport.send(message);
                }
                if let Some(number) = number {
                    self.core.persisted(number);
                }
                if self.stalled.take().is_some() {
                    tracing::info!("the log's disk can be written again");
                }
            }
            Written::Stalled { full, detail } => {
                if self.stalled.is_none() {
                    tracing::error!(full, detail, "write the log; trying again");
                }
                self.stalled = Some((full, detail));
                // Somebody whose disk can be written leads better.
                if let Some(heir) = self.core.heir()
                    && self.core.transfer(heir).is_ok()
                {
                    tracing::info!(
                        heir,
                        "the lead is handed over, for the disk can't be written"
                    );
                }
                for (_, reply) in self.waiting.drain() {
                    drop(reply.send(Err(ProposeError::Dropped)));
                }
            }
        }
    }

    fn snapshot_built(&mut self, built: Result<raft::eraftpb::Snapshot, FormatError>) {
        match built {
            Ok(snapshot) => {
                if let Some(task) = self.core.snapshot_built(snapshot) {
                    self.writer.write(task);
                }
            }
            Err(cause) => tracing::error!(
                cause = format!("{:#}", anyhow::Error::new(cause)),
                "build a snapshot of the state"
            ),
        }
    }

    fn pump(&mut self) -> Result<(), CoreError> {
        let Output {
            send_now,
            writes,
            answers,
            lost,
            confirmed,
            unconfirmed,
            snapshot,
            applied,
        } = self.core.pump()?;
        for message in send_now {
            self.transport.send(message);
        }
        for task in writes {
            self.writer.write(task);
        }
        if applied {
            self.state.send_replace(Arc::clone(self.core.state()));
        }
        let leadership = self.core.leadership();
        self.leadership.send_if_modified(|known| {
            let changed = *known != leadership;
            *known = leadership;
            changed
        });
        self.members.send_if_modified(|known| {
            let members = self.core.members();
            let changed = *known != members;
            *known = members;
            changed
        });
        for done in answers {
            if let Some(reply) = self.waiting.remove(&done.proposal) {
                drop(reply.send(Ok((done.at, done.result))));
            }
        }
        for proposal in lost {
            if let Some(reply) = self.waiting.remove(&proposal) {
                drop(reply.send(Err(ProposeError::Dropped)));
            }
        }
        for question in confirmed {
            if let Some(reply) = self.confirming.remove(&question) {
                drop(reply.send(Ok(())));
            }
        }
        for question in unconfirmed {
            if let Some(reply) = self.confirming.remove(&question) {
                drop(reply.send(Err(AskError::NotLeader { leader: None })));
            }
        }
        if let Some(plan) = snapshot {
            self.building = Some(tokio::task::spawn_blocking(move || plan.build()));
        }
        Ok(())
    }
}

/// Waits for a build, if there is one; `None` when there is none or it panicked.
async fn join<T>(building: &mut Option<JoinHandle<T>>) -> Option<T> {
    let result = building.as_mut()?.await;
    *building = None;
    result
        .inspect_err(|cause| tracing::error!(%cause, "build a snapshot of the state"))
        .ok()
}

/// Raft logs through slog; what it says goes on to tracing.
struct ToTracing;

impl slog::Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        let message = record.msg();
        match record.level() {
            slog::Level::Critical | slog::Level::Error => {
                tracing::error!(target: "raft", "{message}")
            }
            slog::Level::Warning => tracing::warn!(target: "raft", "{message}"),
            // Raft's info is about its inner life: debug for us.
            slog::Level::Info | slog::Level::Debug => tracing::debug!(target: "raft", "{message}"),
            slog::Level::Trace => tracing::trace!(target: "raft", "{message}"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
