//! The workers, as the orchestrator sees them: who is connected, what their node can do, and calls to them.
//!
//! A worker opens one stream ([`crate::api`] accepts it and proves who it is); this module owns what happens on it.
//! A call is sent with a fresh call id and waits for the answer that repeats it. When the stream breaks, every
//! waiting call ends with [`CallError::Lost`]: the truth is then unknown, and whoever asked asks again.
//!
//! It doesn't decide anything, and it doesn't repeat anything.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use orchestrator_core::id::{MigrationId, NodeName};
use proto::worker::{
    Answer, FromWorker, Inventory, Ping, Pong, Progress, Question, StepReport, StepRequest,
    ToWorker, answer, from_worker, question, step_request, to_worker,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::{SystemTimeOfDay, TimeOfDay};

/// Messages that may wait for one worker's stream: two migrations a node make a handful.
pub const OUTBOX_MAX: usize = 256;

/// Why a call brought no answer. None of them says that nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No stream: nothing was sent.
    #[error("the worker of node {node} is not connected")]
    NotConnected {
        /// Which.
        node: NodeName,
    },
    /// The stream broke or was replaced while we waited.
    #[error("the connection to the worker of node {node} was lost while it was asked to {what}")]
    Lost {
        /// Which.
        node: NodeName,
        /// What was asked.
        what: &'static str,
    },
    /// No answer in time.
    #[error("the worker of node {node} gave no answer to {what} within {seconds} s")]
    TimedOut {
        /// Which.
        node: NodeName,
        /// What was asked.
        what: &'static str,
        /// How long we waited.
        seconds: u64,
    },
    /// The worker says that it can't answer.
    #[error("the worker of node {node} can't {what}: {reason}")]
    Refused {
        /// Which.
        node: NodeName,
        /// What was asked.
        what: &'static str,
        /// Its words.
        reason: String,
    },
}

/// The clock of a worker's node against ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Worker's time minus ours, nanoseconds.
    pub offset_ns: i64,
    /// Round trip of the measurement: half of it bounds the error, nanoseconds.
    pub round_trip_ns: u64,
}

impl Clock {
    /// A worker's time as ours.
    #[must_use]
    pub fn correct(self, worker_unix_ns: u64) -> u64 {
        worker_unix_ns.saturating_add_signed(self.offset_ns.saturating_neg())
    }

    /// What is known after another measurement, so much later. On a busy machine one round trip may take a hundred times
    /// as long as another, and most of that one way: the shorter one is believed, until it is old or the longer one can't
    /// be true beside it, which means that a clock was set.
    fn improved_by(self, measured: Self, after_ns: u64) -> Self {
        let drift_ns = after_ns / DRIFT;
        let is_as_good = measured.round_trip_ns <= self.round_trip_ns.saturating_add(2 * drift_ns);
        let apart_ns = self.offset_ns.abs_diff(measured.offset_ns);
        let errors_ns = (self.round_trip_ns.saturating_add(measured.round_trip_ns)) / 2;
        let contradicts = apart_ns > errors_ns.saturating_add(drift_ns);
        if is_as_good || contradicts {
            measured
        } else {
            self
        }
    }
}

/// Two clocks drift apart by less than a two-thousandth, 500 ppm: what NTP allows a clock.
const DRIFT: u64 = 2_000;

/// What is known of a connected worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Connected {
    /// Its inventory, once it sent one.
    pub inventory: Option<Inventory>,
    /// Its clock, once measured.
    pub clock: Clock,
}

/// How far steps have come: the last word of each migration whose step is under way.
pub type UnderWay = BTreeMap<MigrationId, Progress>;

enum Waiting {
    Step(oneshot::Sender<StepReport>),
    Answer(oneshot::Sender<Answer>),
    Pong { sent_ns: u64 },
}

struct Session {
    generation: u64,
    outbox: mpsc::Sender<ToWorker>,
    waiting: BTreeMap<u64, Waiting>,
    connected: Connected,
    /// When the measurement that its clock is known by came, by ours.
    measured_ns: Option<u64>,
}

impl Session {
    fn measured(&mut self, measured: Clock, now_ns: u64) {
        let known = self.connected.clock;
        let better = match self.measured_ns {
            None => measured,
            Some(before_ns) => known.improved_by(measured, now_ns.saturating_sub(before_ns)),
        };
        if better == measured {
            self.connected.clock = measured;
            self.measured_ns = Some(now_ns);
        }
    }
}

#[derive(Default)]
struct Table {
    sessions: BTreeMap<NodeName, Session>,
    last_call: u64,
    last_generation: u64,
}

/// All workers. Cheap to clone.
#[derive(Clone)]
pub struct Workers {
    clock: Arc<dyn TimeOfDay>,
    table: Arc<Mutex<Table>>,
    changed: watch::Sender<u64>,
    progress: watch::Sender<UnderWay>,
}

impl Default for Workers {
    fn default() -> Self {
        Self::new()
    }
}

impl Workers {
    /// Nobody is connected yet.
    #[must_use]
    pub fn new() -> Self {
        Self::timed_by(Arc::new(SystemTimeOfDay))
    }

    /// The same, with this clock to measure theirs against.
    #[must_use]
    pub fn timed_by(clock: Arc<dyn TimeOfDay>) -> Self {
        Self {
            clock,
            table: Arc::default(),
            changed: watch::Sender::default(),
            progress: watch::Sender::default(),
        }
    }

    /// How far steps have come. For people: only the last word is kept, and a step's end takes it away.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<UnderWay> {
        self.progress.subscribe()
    }

    /// Fires whenever a worker comes, goes or changes its inventory.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Who is connected, and what they said.
    #[must_use]
    pub fn connected(&self) -> BTreeMap<NodeName, Connected> {
        self.lock()
            .sessions
            .iter()
            .map(|(node, session)| (node.clone(), session.connected.clone()))
            .collect()
    }

    /// The clock of a node; no offset when nothing was measured.
    #[must_use]
    pub fn clock(&self, node: &NodeName) -> Clock {
        self.lock()
            .sessions
            .get(node)
            .map(|session| session.connected.clock)
            .unwrap_or_default()
    }

    /// A worker's stream begins. An older stream of the same node is replaced, its waiting calls are lost.
    pub fn attach(&self, node: &NodeName, outbox: mpsc::Sender<ToWorker>) -> u64 {
        let generation = {
            let mut table = self.lock();
            table.last_generation += 1;
            let generation = table.last_generation;
            let session = Session {
                generation,
                outbox,
                waiting: BTreeMap::new(),
                connected: Connected::default(),
                measured_ns: None,
            };
            table.sessions.insert(node.clone(), session);
            generation
        };
        self.announce();
        generation
    }

    /// The stream of this generation ended.
    pub fn detach(&self, node: &NodeName, generation: u64) {
        {
            let mut table = self.lock();
            if table
                .sessions
                .get(node)
                .is_some_and(|session| session.generation == generation)
            {
                table.sessions.remove(node);
            }
        }
        self.announce();
    }

    /// A message of this generation's stream.
    pub fn receive(&self, node: &NodeName, generation: u64, message: FromWorker) {
        let received_ns = self.clock.unix_ns();
        let mut table = self.lock();
        let Some(session) = table
            .sessions
            .get_mut(node)
            .filter(|session| session.generation == generation)
        else {
            return;
        };
        let mut inventory_changed = false;
        match message.kind {
            Some(from_worker::Kind::Report(report)) => {
                if let Some(Waiting::Step(waiting)) = session.waiting.remove(&report.call) {
                    // Whoever asked may have given up; then the report is asked for again.
                    let _ = waiting.send(report);
                }
            }
            Some(from_worker::Kind::Answer(answer)) => {
                if let Some(Waiting::Answer(waiting)) = session.waiting.remove(&answer.call) {
                    let _ = waiting.send(answer);
                }
            }
            Some(from_worker::Kind::Pong(Pong {
                call,
                worker_unix_ns,
            })) => {
                if let Some(Waiting::Pong { sent_ns }) = session.waiting.remove(&call) {
                    session.measured(measure(sent_ns, worker_unix_ns, received_ns), received_ns);
                }
            }
            Some(from_worker::Kind::Inventory(inventory)) => {
                inventory_changed = session.connected.inventory.as_ref() != Some(&inventory);
                session.connected.inventory = Some(inventory);
            }
            Some(from_worker::Kind::Progress(progress)) => {
                let id = MigrationId::from(progress.migration_id.as_str());
                self.progress.send_modify(|under_way| {
                    under_way.insert(id, progress);
                });
            }
            Some(from_worker::Kind::Hello(_)) | None => {}
        }
        drop(table);
        if inventory_changed {
            self.announce();
        }
    }

    /// Measures the node's clock; the answer is taken in by [`Workers::receive`].
    pub fn ping(&self, node: &NodeName) {
        let mut table = self.lock();
        table.last_call += 1;
        let call = table.last_call;
        let Some(session) = table.sessions.get_mut(node) else {
            return;
        };
        let ping = ToWorker {
            kind: Some(to_worker::Kind::Ping(Ping { call })),
        };
        session
            .waiting
            .retain(|_, waiting| !matches!(waiting, Waiting::Pong { .. }));
        let sent_ns = self.clock.unix_ns();
        if session.outbox.try_send(ping).is_ok() {
            session.waiting.insert(call, Waiting::Pong { sent_ns });
        }
    }

    /// Asks for a step and waits for its report. Dropping the future doesn't stop the step.
    ///
    /// # Errors
    /// Whatever the error, the step may have been done.
    pub async fn step(
        &self,
        node: &NodeName,
        migration: &str,
        revision: u64,
        kind: step_request::Kind,
        within: Duration,
    ) -> Result<StepReport, CallError> {
        let what = step_name(&kind);
        let (sender, receiver) = oneshot::channel();
        self.send(node, what, Waiting::Step(sender), |call| {
            let migration_id = migration.to_owned();
            to_worker::Kind::Step(StepRequest {
                call,
                migration_id,
                revision,
                kind: Some(kind),
            })
        })?;
        let reported = wait(node, what, within, receiver).await;
        let id = MigrationId::from(migration);
        self.progress
            .send_if_modified(|under_way| under_way.remove(&id).is_some());
        reported
    }

    /// Puts a question and waits for the answer.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn ask(
        &self,
        node: &NodeName,
        kind: question::Kind,
        within: Duration,
    ) -> Result<answer::Kind, CallError> {
        let what = question_name(&kind);
        let (sender, receiver) = oneshot::channel();
        self.send(node, what, Waiting::Answer(sender), |call| {
            to_worker::Kind::Question(Question {
                call,
                kind: Some(kind),
            })
        })?;
        let answer = wait(node, what, within, receiver).await?;
        match answer.kind {
            Some(kind) if answer.error.is_empty() => Ok(kind),
            Some(_) | None => Err(CallError::Refused {
                node: node.clone(),
                what,
                reason: answer.error,
            }),
        }
    }

    fn send(
        &self,
        node: &NodeName,
        what: &'static str,
        waiting: Waiting,
        message: impl FnOnce(u64) -> to_worker::Kind,
    ) -> Result<(), CallError> {
        let mut table = self.lock();
        table.last_call += 1;
        let call = table.last_call;
        let Some(session) = table.sessions.get_mut(node) else {
            return Err(CallError::NotConnected { node: node.clone() });
        };
        session
            .outbox
            .try_send(ToWorker {
                kind: Some(message(call)),
            })
            .map_err(|_| CallError::Lost {
                node: node.clone(),
                what,
            })?;
        session.waiting.insert(call, waiting);
        Ok(())
    }

    fn announce(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        // A panic while the table was locked leaves it consistent: every change is a single insert or remove.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn wait<T>(
    node: &NodeName,
    what: &'static str,
    within: Duration,
    receiver: oneshot::Receiver<T>,
) -> Result<T, CallError> {
    match tokio::time::timeout(within, receiver).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) => Err(CallError::Lost {
            node: node.clone(),
            what,
        }),
        Err(_) => Err(CallError::TimedOut {
            node: node.clone(),
            what,
            seconds: within.as_secs(),
        }),
    }
}

/// The worker answered at the middle of the round trip, as NTP assumes.
fn measure(sent_ns: u64, worker_ns: u64, received_ns: u64) -> Clock {
    let round_trip_ns = received_ns.saturating_sub(sent_ns);
    let middle_ns = sent_ns.saturating_add(round_trip_ns / 2);
    let offset = i128::from(worker_ns) - i128::from(middle_ns);
    Clock {
        offset_ns: i64::try_from(offset).unwrap_or(0),
        round_trip_ns,
    }
}

/// A step in a word, for errors and for the model world of the tests.
pub(crate) fn step_name(kind: &step_request::Kind) -> &'static str {
    match kind {
        step_request::Kind::Hold(_) => "hold",
        step_request::Kind::Deliver(_) => "deliver",
        step_request::Kind::Disarm(_) => "disarm",
        step_request::Kind::Destroy(_) => "destroy",
        step_request::Kind::Release(_) => "release",
        step_request::Kind::Withdraw(_) => "withdraw",
        step_request::Kind::Tidy(_) => "tidy",
        step_request::Kind::ExportImages(_) => "export images",
        step_request::Kind::ImportImages(_) => "import images",
        step_request::Kind::Bar(_) => "bar",
        step_request::Kind::Copy(_) => "copy",
        step_request::Kind::Receive(_) => "receive",
    }
}

fn question_name(kind: &question::Kind) -> &'static str {
    match kind {
        question::Kind::Inspect(_) => "inspect",
        question::Kind::ConfirmHold(_) => "confirm the hold",
        question::Kind::HasImages(_) => "look for images",
        question::Kind::Verify(_) => "verify the restore",
        question::Kind::ListStore(_) => "list the store",
        question::Kind::CheckStore(_) => "check the store",
        question::Kind::ClearStore(_) => "clear the store",
    }
}

#[cfg(test)]
mod tests;
