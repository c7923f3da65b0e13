//! The task that owns raft, and [`Log`], the handle everybody else uses.
//!
//! One `select!` shows every input: proposals, other peers' messages, what the writer wrote, built snapshots, time.
//! After each the core is pumped and what comes out is carried out in the order the core asks for. A new state is
//! published before the proposals in it are answered: whoever got an answer sees it in [`Log::state`].

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use orchestrator_core::{
    id::Revision,
    state::{Applied, Command, Rejection, State},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

pub use super::core::{LIMITS, Leadership, Limits};
use super::{
    core::{Core, CoreError, Output, Refused},
    format::{COMMAND_BYTES_MAX, FormatError, command_to_bytes},
    storage::{Disk, DiskError},
    transport::{Alone, Inbound, Transport},
    writer::{Reopen, Writer, Written},
};

/// Raft's unit of time. Ten without a leader make an election: one to two seconds.
const TICK: Duration = Duration::from_millis(100);
/// Proposals that wait for the task; beyond it proposers wait in line.
const PROPOSALS_QUEUED_MAX: usize = 256;
/// Messages from other peers that wait for the task; raft repeats what is dropped.
pub const INBOUND_QUEUED_MAX: usize = 1024;
/// The log's file in its directory.
const FILE: &str = "log.redb";

/// The log can't start.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// Its directory can't be made, or its thread not started.
    #[error("{doing}")]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The disk.
    #[error("open the replicated log in {path}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: DiskError,
    },
    /// Raft.
    #[error("start the replicated log")]
    Core(#[from] CoreError),
}

/// A command was not applied, or nobody can say.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not applied: this peer doesn't lead.
    #[error("this peer doesn't lead the log")]
    NotLeader {
        /// Who does, if known.
        leader: Option<u64>,
    },
    /// Certainly not applied: too much waits for a majority already. Worth trying again.
    #[error("too many commands wait for a majority of the peers")]
    Busy,
    /// Certainly not applied: it is too long.
    #[error("the command has {bytes} bytes, {COMMAND_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Certainly not applied: it can't be written down.
    #[error("write the command down")]
    Format(#[from] FormatError),
    /// Certainly not applied: the disk is full. Worth trying again once there is room.
    #[error("the disk of the replicated log is full")]
    DiskFull,
    /// Certainly not applied: the disk can't be written. Worth trying again.
    #[error("the disk of the replicated log can't be written: {detail}")]
    Disk {
        /// What it said.
        detail: String,
    },
    /// **Unknown**: it was proposed, then this peer lost the lead or its disk. It may still be applied: look at the
    /// state before proposing again.
    #[error("it is unknown whether the command will be applied")]
    Dropped,
    /// **Unknown**: the log stopped meanwhile.
    #[error("the replicated log stopped")]
    Stopped,
}

impl ProposeError {
    /// The command may still be applied.
    #[must_use]
    pub fn unknown_outcome(&self) -> bool {
        match self {
            Self::Dropped | Self::Stopped => true,
            Self::NotLeader { .. }
            | Self::Busy
            | Self::TooLong { .. }
            | Self::Format(_)
            | Self::DiskFull
            | Self::Disk { .. } => false,
        }
    }
}

/// What applying a command gave, and where in the log it is.
pub type Proposed = (Revision, Result<Applied, Rejection>);

type Reply = oneshot::Sender<Result<Proposed, ProposeError>>;

struct Proposal {
    command: Vec<u8>,
    reply: Reply,
}

/// The replicated log. Clones are the same log.
#[derive(Clone)]
pub struct Log {
    proposals: mpsc::Sender<Proposal>,
    state: watch::Receiver<Arc<State>>,
    leadership: watch::Receiver<Leadership>,
    stop: mpsc::Sender<oneshot::Sender<()>>,
    commit_seconds: Option<prometheus::Histogram>,
}

/// Which peer this is, and with whom it founds the log.
#[derive(Clone, Debug)]
pub struct Membership {
    /// This peer.
    pub peer: u64,
    /// The founders, the same list on each; only looked at when the directory is new.
    pub founders: Vec<u64>,
}

impl Log {
    /// Opens the log of one peer in a directory, or founds it there.
    ///
    /// # Errors
    /// When the directory can't be used, is another peer's, or holds what this version can't read.
    pub async fn start(dir: &Path, peer: u64) -> Result<Self, ConsensusError> {
        let membership = Membership {
            peer,
            founders: vec![peer],
        };
        let (_nobody, inbound) = mpsc::channel(1);
        Self::start_with(dir, membership, Alone, inbound, LIMITS).await
    }

    /// Opens one peer's part of a log of several.
    ///
    /// # Errors
    /// As [`Log::start`].
    pub async fn start_with(
        dir: &Path,
        membership: Membership,
        transport: impl Transport,
        inbound: mpsc::Receiver<Inbound>,
        limits: Limits,
    ) -> Result<Self, ConsensusError> {
        let file = dir.join(FILE);
        let dir = dir.to_owned();
        let opened = tokio::task::spawn_blocking(move || open(&dir, &membership, limits));
        let (core, disk) = opened.await.map_err(|cause| ConsensusError::Io {
            doing: "open the replicated log",
            source: std::io::Error::other(cause),
        })??;
        let (events, written) = mpsc::unbounded_channel();
        let reopen: Reopen = Box::new(move || Disk::open(&file));
        let writer = Writer::start(disk, reopen, events).map_err(|source| ConsensusError::Io {
            doing: "start the log's writer",
            source,
        })?;
        let (proposals, proposed) = mpsc::channel(PROPOSALS_QUEUED_MAX);
        let (stop, stopped) = mpsc::channel(1);
        let (publish_state, state) = watch::channel(Arc::clone(core.state()));
        let (publish_leadership, leadership) = watch::channel(core.leadership());
        let node = Node {
            core,
            transport,
            writer,
            waiting: HashMap::new(),
            stalled: None,
            building: None,
            state: publish_state,
            leadership: publish_leadership,
        };
        tokio::spawn(node.run(Inputs {
            proposed,
            inbound,
            written,
            stopped,
        }));
        Ok(Self {
            proposals,
            state,
            leadership,
            stop,
            commit_seconds: None,
        })
    }

    /// Also measures, from proposing to applied.
    #[must_use]
    pub fn measured_by(self, commit_seconds: prometheus::Histogram) -> Self {
        Self {
            commit_seconds: Some(commit_seconds),
            ..self
        }
    }

    /// Proposes a command and waits until it is applied here. It is then on the disks of a majority.
    ///
    /// # Errors
    /// [`ProposeError::unknown_outcome`] tells those after which the command may still be applied.
    pub async fn propose(&self, command: Command) -> Result<Proposed, ProposeError> {
        let command = command_to_bytes(&command)?;
        if command.len() > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLong {
                bytes: command.len(),
            });
        }
        let began = Instant::now();
        let (reply, answer) = oneshot::channel();
        self.proposals
            .send(Proposal { command, reply })
            .await
            .map_err(|_| ProposeError::Stopped)?;
        let proposed = answer.await.map_err(|_| ProposeError::Stopped)??;
        if let Some(commit_seconds) = &self.commit_seconds {
            commit_seconds.observe(began.elapsed().as_secs_f64());
        }
        Ok(proposed)
    }

    /// The state after every applied batch. An answered proposal is in it.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// Who leads. Act only while it says [`Leadership::Leader`].
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Stops the log and waits until everything queued is on the disk and the file is free. Repeating it is fine.
    pub async fn stop(self) {
        let (done, stopped) = oneshot::channel();
        if self.stop.send(done).await.is_ok() {
            // An error means that somebody else's stop was first, and is done.
            let _ = stopped.await;
        }
    }
}

fn open(
    dir: &Path,
    membership: &Membership,
    limits: Limits,
) -> Result<(Core, Disk), ConsensusError> {
    std::fs::create_dir_all(dir).map_err(|source| ConsensusError::Io {
        doing: "make the log's directory",
        source,
    })?;
    let path = dir.join(FILE);
    let at = |source| ConsensusError::Disk {
        path: path.clone(),
        source,
    };
    let disk = Disk::open(&path).map_err(at)?;
    let Membership { peer, founders } = membership;
    disk.claim(*peer, founders).map_err(at)?;
    let loaded = disk.load().map_err(at)?;
    let incarnation = uuid::Uuid::new_v4().as_u128();
    let logger = slog::Logger::root(ToTracing, slog::o!());
    let mut core = Core::new(&Core::config(*peer), loaded, limits, incarnation, &logger)?;
    core.campaign_if_alone();
    Ok((core, disk))
}

/// The log can't go on; only a restart of the process helps.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error("go on with the log")]
    Core(#[from] CoreError),
    #[error("the log's writer died")]
    Writer,
}

struct Inputs {
    proposed: mpsc::Receiver<Proposal>,
    inbound: mpsc::Receiver<Inbound>,
    written: mpsc::UnboundedReceiver<Written>,
    stopped: mpsc::Receiver<oneshot::Sender<()>>,
}

struct Node<T> {
    core: Core,
    transport: T,
    writer: Writer,
    waiting: HashMap<u64, Reply>,
    /// The disk can't write: it is full, or what it said.
    stalled: Option<(bool, String)>,
    building: Option<JoinHandle<Result<raft::eraftpb::Snapshot, FormatError>>>,
    state: watch::Sender<Arc<State>>,
    leadership: watch::Sender<Leadership>,
}

impl<T: Transport> Node<T> {
    async fn run(mut self, mut inputs: Inputs) {
        let ended = self.serve(&mut inputs).await;
        let Self {
            core: _,
            transport: _,
            writer,
            waiting,
            stalled: _,
            building: _,
            state: _,
            leadership,
        } = self;
        if let Err(cause) = tokio::task::spawn_blocking(|| writer.stop()).await {
            tracing::error!(%cause, "wait for the log's writer");
        }
        leadership.send_replace(Leadership::Stopped);
        drop(waiting); // whoever waits learns that the log stopped
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
            self.pump()?;
            tokio::select! {
                stop = inputs.stopped.recv() => return Ok(stop),
                written = inputs.written.recv() => self.written(written.ok_or(Fatal::Writer)?),
                Some(proposal) = inputs.proposed.recv() => {
                    self.propose(proposal);
                    while let Ok(proposal) = inputs.proposed.try_recv() {
                        self.propose(proposal);
                    }
                }
                inbound = inputs.inbound.recv(), if others => match inbound {
                    Some(inbound) => self.core.receive(inbound),
                    None => others = false, // a log of one peer
                },
                Some(built) = join(&mut self.building) => self.snapshot_built(built),
                _ = ticks.tick() => self.core.tick(),
            }
        }
    }

    fn propose(&mut self, proposal: Proposal) {
        let Proposal { command, reply } = proposal;
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
                Err(Refused::Busy) => ProposeError::Busy,
            },
        };
        answer(reply, Err(refused));
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
                for (_, reply) in self.waiting.drain() {
                    answer(reply, Err(ProposeError::Dropped));
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
        for done in answers {
            if let Some(reply) = self.waiting.remove(&done.proposal) {
                answer(reply, Ok((done.at, done.result)));
            }
        }
        for proposal in lost {
            if let Some(reply) = self.waiting.remove(&proposal) {
                answer(reply, Err(ProposeError::Dropped));
            }
        }
        if let Some(plan) = snapshot {
            self.building = Some(tokio::task::spawn_blocking(move || plan.build()));
        }
        Ok(())
    }
}

/// Whoever proposed may have given up waiting: then nobody is to be told.
fn answer(reply: Reply, result: Result<Proposed, ProposeError>) {
    drop(reply.send(result));
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
