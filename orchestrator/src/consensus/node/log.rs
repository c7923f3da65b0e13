//! [`Log`], the handle everybody else uses, and what it asks the node's task.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use orchestrator_core::{
    id::Revision,
    state::{Applied, Command, Rejection, State},
};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::{
    FILE, Inputs, Node, ToTracing,
    error::{AskError, ConsensusError, ProposeError},
};
use crate::consensus::{
    core::{Change, Core, LIMITS, Leadership, Limits, Members, Standing},
    format::{COMMAND_BYTES_MAX, command_to_bytes},
    storage::{Disk, Founding, Owner},
    transport::{Alone, Inbound, Transport},
    writer::{Reopen, Writer},
};

/// Questions that wait for the task; beyond it whoever asks waits in line.
const ASKED_QUEUED_MAX: usize = 256;
/// A majority answers a heartbeat in milliseconds; after an election's time it has to be asked by another leader.
const CONFIRM_WITHIN: Duration = Duration::from_secs(2);

/// A transfer takes two round trips; raft itself gives it up after an election's time.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(1);

/// What applying a command gave, and where in the log it is.
pub type Proposed = (Revision, Result<Applied, Rejection>);

/// What the task is asked.
pub(super) enum Ask {
    Propose(Vec<u8>, oneshot::Sender<Result<Proposed, ProposeError>>),
    Confirm(oneshot::Sender<Result<(), AskError>>),
    Change(Change, oneshot::Sender<Result<(), AskError>>),
    Transfer(u64, oneshot::Sender<Result<(), AskError>>),
    HandOver(oneshot::Sender<Option<u64>>),
    Describe(oneshot::Sender<Standing>),
}

/// Which peer this is, of which group, and how that was founded.
#[derive(Clone, Debug)]
pub struct Membership {
    /// This peer.
    pub peer: u64,
    /// Its group.
    pub group: Uuid,
    /// The founders, the same list on each; only looked at when the directory is new. None: this peer joins later.
    pub founders: Vec<u64>,
}

/// The replicated log. Clones are the same log.
#[derive(Clone)]
pub struct Log {
    asked: mpsc::Sender<Ask>,
    state: watch::Receiver<Arc<State>>,
    leadership: watch::Receiver<Leadership>,
    members: watch::Receiver<Members>,
    stop: mpsc::Sender<oneshot::Sender<()>>,
    commit_seconds: Option<prometheus::Histogram>,
}

impl Log {
    /// Opens the log of one peer in a directory, or founds it there.
    ///
    /// # Errors
    /// When the directory can't be used, is another peer's, or holds what this version can't read.
    pub async fn start(dir: &Path, peer: u64) -> Result<Self, ConsensusError> {
        let membership = Membership {
            peer,
            group: Uuid::nil(),
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
        make(dir)?;
        let file = dir.join(FILE);
        let reopen: Reopen = Box::new(move || Disk::open(&file));
        Self::start_on(reopen, dir, membership, transport, inbound, limits).await
    }

    /// The same, on a disk that is opened in another way.
    pub(crate) async fn start_on(
        reopen: Reopen,
        dir: &Path,
        membership: Membership,
        transport: impl Transport,
        inbound: mpsc::Receiver<Inbound>,
        limits: Limits,
    ) -> Result<Self, ConsensusError> {
        let path = dir.join(FILE);
        let opened = tokio::task::spawn_blocking(move || {
            open(&reopen, &path, &membership, limits).map(|(core, disk)| (core, disk, reopen))
        });
        let (core, disk, reopen) = opened.await.map_err(|cause| ConsensusError::Io {
            doing: "open the replicated log",
            source: std::io::Error::other(cause),
        })??;
        let (events, written) = mpsc::unbounded_channel();
        let writer = Writer::start(disk, reopen, events).map_err(|source| ConsensusError::Io {
            doing: "start the log's writer",
            source,
        })?;
        let (asked, asks) = mpsc::channel(ASKED_QUEUED_MAX);
        let (stop, stopped) = mpsc::channel(1);
        let (publish_state, state) = watch::channel(Arc::clone(core.state()));
        let (publish_leadership, leadership) = watch::channel(core.leadership());
        let (publish_members, members) = watch::channel(core.members());
        let node = Node::new(
            core,
            transport,
            writer,
            publish_state,
            publish_leadership,
            publish_members,
        );
        tokio::spawn(node.run(Inputs {
            asks,
            inbound,
            written,
            stopped,
        }));
        Ok(Self {
            asked,
            state,
            leadership,
            members,
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
        self.asked
            .send(Ask::Propose(command, reply))
            .await
            .map_err(|_| ProposeError::Stopped)?;
        let proposed = answer.await.map_err(|_| ProposeError::Stopped)??;
        if let Some(commit_seconds) = &self.commit_seconds {
            commit_seconds.observe(began.elapsed().as_secs_f64());
        }
        Ok(proposed)
    }

    /// Asks a majority whether this peer leads still. Then whatever was acknowledged to anybody before the call is in
    /// [`Log::state`]: acting on that state acts on the truth of this moment, and not on that before an election
    /// that this peer has not heard of.
    ///
    /// # Errors
    /// When it doesn't lead, or no majority answers in time.
    pub async fn confirm(&self) -> Result<(), AskError> {
        let confirmed = self.ask(Ask::Confirm);
        match tokio::time::timeout(CONFIRM_WITHIN, confirmed).await {
            Ok(answer) => answer?,
            Err(_) => Err(AskError::OutOfTime {
                seconds: CONFIRM_WITHIN.as_secs(),
            }),
        }
    }

    /// Proposes a change of the members. Whether it came about is seen in [`Log::members`].
    ///
    /// # Errors
    /// When it certainly was not proposed.
    pub async fn change(&self, change: Change) -> Result<(), AskError> {
        self.ask(|reply| Ask::Change(change, reply)).await?
    }

    /// Hands the lead to another voter. Whether it came about is seen in [`Log::leadership`].
    ///
    /// # Errors
    /// When this peer doesn't lead.
    pub async fn transfer(&self, to: u64) -> Result<(), AskError> {
        self.ask(|reply| Ask::Transfer(to, reply)).await?
    }

    /// Hands the lead, if this peer has it, to whoever is next to it, and waits a little until that one leads: a peer
    /// that ends politely costs the group no election.
    pub async fn hand_over(&self) {
        if let Ok(Some(heir)) = self.ask(Ask::HandOver).await {
            let mut leadership = self.leadership();
            let led_by = |now: &Leadership| match now {
                Leadership::Leader { .. } => false,
                Leadership::Follower { leader, .. } => *leader == Some(heir),
                Leadership::Stopped => true,
            };
            let handed_over = leadership.wait_for(led_by);
            match tokio::time::timeout(HAND_OVER_WITHIN, handed_over).await {
                Ok(_) => tracing::info!(heir, "the lead is handed over"),
                Err(_) => tracing::warn!(heir, "the lead was not taken over in time"),
            }
        }
    }

    /// What this peer knows of the group.
    ///
    /// # Errors
    /// When the log stopped.
    pub async fn describe(&self) -> Result<Standing, AskError> {
        self.ask(Ask::Describe).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        self.asked
            .send(ask(reply))
            .await
            .map_err(|_| AskError::Stopped)?;
        answer.await.map_err(|_| AskError::Stopped)
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

    /// Who belongs to the group.
    #[must_use]
    pub fn members(&self) -> watch::Receiver<Members> {
        self.members.clone()
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

/// Whose the log in this directory is, if there is one: the peer, and its group if it has a name.
///
/// # Errors
/// When it can't be read, or is in use.
pub fn owner(dir: &Path) -> Result<Option<(u64, Option<Uuid>)>, ConsensusError> {
    let path = dir.join(FILE);
    if !path.exists() {
        return Ok(None);
    }
    let at = at(&path);
    Disk::open(&path).and_then(|disk| disk.owner()).map_err(at)
}

/// Founds a group of one peer in an empty directory, from a state.
///
/// # Errors
/// When the directory is in use, or can't be written.
pub fn found(dir: &Path, owner: Owner, founding: &Founding) -> Result<(), ConsensusError> {
    make(dir)?;
    let path = dir.join(FILE);
    let at = at(&path);
    Disk::open(&path)
        .and_then(|disk| disk.found(owner, founding))
        .map_err(at)
}

fn open(
    reopen: &Reopen,
    path: &Path,
    membership: &Membership,
    limits: Limits,
) -> Result<(Core, Disk), ConsensusError> {
    let Membership {
        peer,
        group,
        founders,
    } = membership;
    let owner = Owner {
        peer: *peer,
        group: *group,
    };
    let founding = (!founders.is_empty()).then(|| Founding::of(founders.clone()));
    let disk = reopen().map_err(at(path))?;
    disk.claim(owner, founding.as_ref()).map_err(at(path))?;
    let loaded = disk.load().map_err(at(path))?;
    let incarnation = Uuid::new_v4().as_u128();
    let logger = slog::Logger::root(ToTracing, slog::o!());
    let mut core = Core::new(&Core::config(*peer), loaded, limits, incarnation, &logger)?;
    core.campaign_if_alone();
    Ok((core, disk))
}

fn make(dir: &Path) -> Result<(), ConsensusError> {
    std::fs::create_dir_all(dir).map_err(|source| ConsensusError::Io {
        doing: "make the log's directory",
        source,
    })
}

fn at(path: &Path) -> impl Fn(crate::consensus::storage::DiskError) -> ConsensusError {
    let path: PathBuf = path.to_owned();
    move |source| ConsensusError::Disk {
        path: path.clone(),
        source,
    }
}
