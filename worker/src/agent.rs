//! The agent: what the orchestrator asks for, done at most once, whatever breaks in between.
//!
//! ```text
//!  orchestrator's peers ──one stream each──► lines ──events──► agent ──► desk: answer, join, wait, begin?
//!                                                                │  ▲
//!                                                          performs  finished
//!                                                                ▼  │
//!                                                     one task per step, one step per migration
//! ```
//!
//! On a good day: the [`lines`] dial every peer and say hello, each welcomes, and the one that leads asks for a step; a
//! new leader has its line already, and asks for the same step by that one. The [`desk`] finds that a step is new; [`perform`] writes *about to*, does it, writes *done*; the report goes out under the call that asked.
//!
//! How it goes wrong: a stream breaks, but steps don't notice. They are finished and written down, and the report is
//! given when the step is asked for again, to the newest call, by whichever line. A step that is asked for twice is joined or answered
//! from the journal. One that is older than what was seen of its migration is refused. A newer one waits until the
//! older has ended, and tells it to give up where that is harmless.
//!
//! One task owns the state and takes one closed enum of events. It never waits for anything but the journal.

mod desk;
mod line;
mod lines;
mod perform;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proto::worker::{
    Answer, FromWorker, Hello, Inventory, Pong, Progress, ProtocolVersion, Question, StepReport,
    StepRequest, ToWorker, from_worker, to_worker,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    config::Config,
    data::Data,
    hold::Holder,
    inspect::Inspect,
    inventory::Survey,
    journal::{Entry, Journal, JournalError, StepKey, Urgency},
    metrics::Metrics,
};
use desk::{Asker, Desk, Verdict, Work};

pub use perform::Performer;

/// Events waiting for the agent. It handles one in the time of one disk sync; more than this is a stuck disk.
pub const EVENTS_MAX: usize = 256;
/// An inventory is some kilobytes and changes when somebody installs something or a disk fills up.
const INVENTORY_EVERY: Duration = Duration::from_secs(30);
/// Progress is for people: five times a second per migration looks smooth.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// One stream to one peer, from its beginning to its end. Its successor is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LineId(pub u64);

/// Everything that can happen to the agent.
pub enum Event {
    /// A stream is there; what is sent into it goes to that peer.
    Up(LineId, mpsc::Sender<FromWorker>),
    /// A peer said something.
    Heard(LineId, ToWorker),
    /// A stream is gone.
    Down(LineId),
    /// A step has ended; its report has no call yet.
    Finished(StepKey, Box<StepReport>),
    /// A question that came by a line was answered.
    Answered(LineId, Box<Answer>),
    /// A step has come further.
    Moved(Progress),
    /// The node was surveyed.
    Surveyed(Box<Inventory>),
}

/// What the agent works with.
pub struct Tools {
    /// Flags.
    pub config: Config,
    /// Memory.
    pub journal: Journal,
    /// Pods of this node.
    pub holder: Holder,
    /// Bytes.
    pub data: Arc<dyn Data>,
    /// Looks into running pods.
    pub inspector: Arc<dyn Inspect>,
    /// Looks at the node.
    pub surveyor: Arc<dyn Survey>,
    /// Counts.
    pub metrics: Metrics,
}

/// The way out of a line.
struct Outbound {
    sender: mpsc::Sender<FromWorker>,
    welcomed: bool,
}

struct Agent {
    desk: Desk,
    journal: Journal,
    performer: Arc<Performer>,
    surveyor: Arc<dyn Survey>,
    metrics: Metrics,
    lines: BTreeMap<LineId, Outbound>,
    events: mpsc::Sender<Event>,
}

/// Serves the orchestrator until the process ends. An error means that the worker can't remember any more.
pub async fn run(tools: Tools) -> Result<(), JournalError> {
    let (events, queue) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(lines::keep(line::Dialer {
        config: tools.config.clone(),
        journal: tools.journal.clone(),
        boot_id: tools.holder.boot_id.clone(),
        events: events.clone(),
    }));
    serve(tools, events, queue).await
}

/// Serves whoever holds lines and puts what is heard on them into `events`: [`lines`], or a simulation.
pub async fn serve(
    tools: Tools,
    events: mpsc::Sender<Event>,
    mut queue: mpsc::Receiver<Event>,
) -> Result<(), JournalError> {
    let Tools {
        config: _,
        journal,
        holder,
        data,
        inspector,
        surveyor,
        metrics,
    } = tools;
    let performer = Performer {
        journal: journal.clone(),
        holder,
        data,
        inspector,
        metrics: metrics.clone(),
    };
    let mut agent = Agent {
        desk: Desk::default(),
        journal,
        performer: Arc::new(performer),
        surveyor,
        metrics,
        lines: BTreeMap::new(),
        events,
    };
    let mut survey = interval(INVENTORY_EVERY);
    survey.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            event = queue.recv() => match event {
                Some(event) => agent.handle(event).await?,
                None => return Ok(()),
            },
            _ = survey.tick() => agent.survey(),
        }
    }
}

/// The first words on a stream.
pub async fn hello(
    config: &Config,
    journal: &Journal,
    boot_id: &str,
) -> Result<FromWorker, JournalError> {
    let memory = journal.recall().await?;
    Ok(message(from_worker::Kind::Hello(Hello {
        protocol: ProtocolVersion::ProtocolVersion1.into(),
        node: config.node_name.clone(),
        boot_id: boot_id.to_owned(),
        journal_id: memory.journal_id,
        registered_revision: memory.registered,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })))
}

impl Agent {
    async fn handle(&mut self, event: Event) -> Result<(), JournalError> {
        match event {
            Event::Up(line, sender) => {
                let welcomed = false;
                self.lines.insert(line, Outbound { sender, welcomed });
                self.survey();
            }
            Event::Down(line) => {
                self.lines.remove(&line);
                self.count_lines();
                // Calls of a lost line mean nothing on another; who still cares asks again.
                self.desk.forget_calls(line);
            }
            Event::Heard(line, ToWorker { kind }) => match kind {
                Some(heard) => self.hear(line, heard).await?,
                None => tracing::warn!(
                    "the orchestrator said something that this version does not know"
                ),
            },
            Event::Finished(key, report) => {
                if let Some(Asker { line, call }) = self.desk.finish(&key) {
                    let report = StepReport { call, ..*report };
                    self.send(line, from_worker::Kind::Report(report));
                }
                while let Some((line, request)) = self.desk.next(&key.migration) {
                    self.step(line, request).await?;
                }
            }
            Event::Answered(line, answer) => self.send(line, from_worker::Kind::Answer(*answer)),
            Event::Moved(progress) => {
                if let Some(line) = self.desk.listener(&progress.migration_id) {
                    self.send(line, from_worker::Kind::Progress(progress));
                }
            }
            Event::Surveyed(inventory) => {
                for line in self.lines.keys() {
                    self.send(*line, from_worker::Kind::Inventory((*inventory).clone()));
                }
            }
        }
        Ok(())
    }

    async fn hear(&mut self, line: LineId, heard: to_worker::Kind) -> Result<(), JournalError> {
        match heard {
            to_worker::Kind::Welcome(welcome) => {
                let revision = welcome.registered_revision;
                if self.journal.recall().await?.registered < revision {
                    self.journal
                        .append(vec![Entry::Registered { revision }], Urgency::EndsAHold)
                        .await?;
                }
                if let Some(outbound) = self.lines.get_mut(&line) {
                    outbound.welcomed = true;
                }
                self.count_lines();
                tracing::info!(revision, line = line.0, "registered with the orchestrator");
            }
            to_worker::Kind::Step(request) => self.step(line, request).await?,
            to_worker::Kind::Question(question) => self.question(line, question),
            to_worker::Kind::Ping(ping) => {
                let pong = Pong {
                    call: ping.call,
                    worker_unix_ns: self.performer.holder.node.unix_ns(),
                };
                self.send(line, from_worker::Kind::Pong(pong));
            }
        }
        Ok(())
    }

    async fn step(&mut self, line: LineId, request: StepRequest) -> Result<(), JournalError> {
        let Some(key) = perform::key(&request) else {
            tracing::warn!(
                migration = request.migration_id,
                "asked for a step that this version does not know"
            );
            return Ok(());
        };
        let memory = self.journal.recall().await?;
        let revision = request.revision;
        match self.desk.arrive(line, &key, request, &memory) {
            Verdict::Answer(report) => self.send(line, from_worker::Kind::Report(*report)),
            Verdict::Joined => {}
            Verdict::Waits => {
                self.remember_seen(&key, memory.migration(&key.migration).highest)
                    .await
            }
            Verdict::Begin(work) => {
                tracing::info!(migration = key.migration, revision, kind = ?key.kind, "step");
                self.begin(key, *work);
            }
        }
        Ok(())
    }

    /// A step that waits fences older ones already. Not remembering it is harmless: it is written again at its begin.
    async fn remember_seen(&self, key: &StepKey, highest: u64) {
        if key.revision <= highest {
            return;
        }
        let entry = Entry::Seen {
            migration: key.migration.clone(),
            revision: key.revision,
        };
        if let Err(error) = self.journal.append(vec![entry], Urgency::EndsAHold).await {
            tracing::warn!(%error, "a waiting step is not remembered");
        }
    }

    fn begin(&self, key: StepKey, work: Work) {
        let (performer, events) = (self.performer.clone(), self.events.clone());
        let progress = self.progress(&key);
        tokio::spawn(async move {
            let Work {
                request,
                superseded,
                asker: _,
            } = work;
            let performing = {
                let key = key.clone();
                // A task of its own, so that a panic in it is an outcome and not a silence.
                tokio::spawn(async move {
                    performer
                        .perform(&key, &request, &progress, &superseded)
                        .await
                })
            };
            let report = performing.await.unwrap_or_else(|error| {
                perform::unknown(&key, format!("the step broke off: {error}"))
            });
            // Without the agent there is nobody to tell.
            let _agent_gone = events.send(Event::Finished(key, Box::new(report))).await;
        });
    }

    fn question(&self, line: LineId, question: Question) {
        let (performer, events) = (self.performer.clone(), self.events.clone());
        tokio::spawn(async move {
            let answer = performer.answer(question).await;
            let _agent_gone = events.send(Event::Answered(line, Box::new(answer))).await;
        });
    }

    fn survey(&self) {
        if self.lines.is_empty() {
            return;
        }
        let (surveyor, events) = (self.surveyor.clone(), self.events.clone());
        tokio::spawn(async move {
            let inventory = surveyor.survey().await;
            let _agent_gone = events.send(Event::Surveyed(Box::new(inventory))).await;
        });
    }

    /// Told often, passes on seldom. What is dropped is overtaken by the next word.
    fn progress(&self, key: &StepKey) -> impl Fn(&str, u64, u64) + Send + Sync + 'static {
        let (events, migration_id, revision) =
            (self.events.clone(), key.migration.clone(), key.revision);
        let last: std::sync::Mutex<Option<(String, Instant)>> = std::sync::Mutex::new(None);
        move |what, done, total| {
            let Ok(mut last) = last.lock() else { return };
            let is_news = match &*last {
                Some((before, at)) => {
                    before != what || at.elapsed() >= PROGRESS_EVERY || (total > 0 && done == total)
                }
                None => true,
            };
            if is_news {
                *last = Some((what.to_owned(), Instant::now()));
                let what = what.to_owned();
                let progress = Progress {
                    migration_id: migration_id.clone(),
                    revision,
                    what,
                    done,
                    total,
                };
                let _full_or_gone = events.try_send(Event::Moved(progress));
            }
        }
    }

    /// Into a line, if it stands. A report that gets lost is asked for again.
    fn send(&self, line: LineId, kind: from_worker::Kind) {
        if let Some(outbound) = self.lines.get(&line)
            && let Err(error) = outbound.sender.try_send(message(kind))
        {
            tracing::warn!(%error, "a message to the orchestrator was dropped");
        }
    }

    fn count_lines(&self) {
        let welcomed = self.lines.values().filter(|line| line.welcomed).count();
        self.metrics.streams(welcomed);
    }
}

fn message(kind: from_worker::Kind) -> FromWorker {
    FromWorker { kind: Some(kind) }
}
