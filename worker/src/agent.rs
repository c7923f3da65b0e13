//! The agent: what the orchestrator asks for, done at most once, whatever breaks in between.
//!
//! ```text
//!  orchestrator ──one stream──► line ──events──► agent ──► desk: answer, join, wait, begin?
//!                                                  │  ▲
//!                                            performs  finished
//!                                                  ▼  │
//!                                       one task per step, one step per migration
//! ```
//!
//! On a good day: the [`line`] dials and says hello, the orchestrator welcomes and asks for a step; the [`desk`] finds
//! that it is new; [`perform`] writes *about to*, does it, writes *done*; the report goes out under the call that asked.
//!
//! How it goes wrong: the stream breaks, but steps don't notice. They are finished and written down, and the report is
//! given when the step is asked for again, under the newest call. A step that is asked for twice is joined or answered
//! from the journal. One that is older than what was seen of its migration is refused. A newer one waits until the
//! older has ended, and tells it to give up where that is harmless.
//!
//! One task owns the state and takes one closed enum of events. It never waits for anything but the journal.

mod desk;
mod line;
mod perform;

use std::{sync::Arc, time::Duration};

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
use desk::{Desk, Verdict, Work};

pub use perform::Performer;

/// Events waiting for the agent. It handles one in the time of one disk sync; more than this is a stuck disk.
pub const EVENTS_MAX: usize = 256;
/// An inventory is some kilobytes and changes when somebody installs something or a disk fills up.
const INVENTORY_EVERY: Duration = Duration::from_secs(30);
/// Progress is for people: five times a second per migration looks smooth.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Everything that can happen to the agent.
pub enum Event {
    /// The stream is there; what is sent into it goes to the orchestrator.
    Up(mpsc::Sender<FromWorker>),
    /// The orchestrator said something.
    Heard(ToWorker),
    /// The stream is gone.
    Down,
    /// A step has ended; its report has no call yet.
    Finished(StepKey, Box<StepReport>),
    /// A question was answered.
    Answered(Box<Answer>),
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

struct Agent {
    desk: Desk,
    journal: Journal,
    performer: Arc<Performer>,
    surveyor: Arc<dyn Survey>,
    metrics: Metrics,
    outbound: Option<mpsc::Sender<FromWorker>>,
    events: mpsc::Sender<Event>,
}

/// Serves the orchestrator until the process ends. An error means that the worker can't remember any more.
pub async fn run(tools: Tools) -> Result<(), JournalError> {
    let (events, queue) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(line::keep(
        tools.config.clone(),
        tools.journal.clone(),
        tools.holder.boot_id.clone(),
        events.clone(),
    ));
    serve(tools, events, queue).await
}

/// Serves whoever holds the line and puts what is heard on it into `events`: [`line`], or a simulation.
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
        outbound: None,
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
            Event::Up(outbound) => {
                self.outbound = Some(outbound);
                self.survey();
            }
            Event::Down => {
                self.outbound = None;
                self.metrics.stream(false);
                // Calls of the lost stream mean nothing on the next one; who still cares asks again.
                self.desk.forget_calls();
            }
            Event::Heard(ToWorker { kind }) => match kind {
                Some(heard) => self.hear(heard).await?,
                None => tracing::warn!(
                    "the orchestrator said something that this version does not know"
                ),
            },
            Event::Finished(key, report) => {
                let (call, next) = self.desk.finish(&key);
                if let Some(call) = call {
                    self.send(from_worker::Kind::Report(StepReport { call, ..*report }));
                }
                if let Some(next) = next {
                    // What was seen while it waited may have made it old.
                    self.step(next.request).await?;
                }
            }
            Event::Answered(answer) => self.send(from_worker::Kind::Answer(*answer)),
            Event::Moved(progress) => self.send(from_worker::Kind::Progress(progress)),
            Event::Surveyed(inventory) => self.send(from_worker::Kind::Inventory(*inventory)),
        }
        Ok(())
    }

    async fn hear(&mut self, heard: to_worker::Kind) -> Result<(), JournalError> {
        match heard {
            to_worker::Kind::Welcome(welcome) => {
                let revision = welcome.registered_revision;
                if self.journal.recall().await?.registered < revision {
                    self.journal
                        .append(vec![Entry::Registered { revision }], Urgency::EndsAHold)
                        .await?;
                }
                self.metrics.stream(true);
                tracing::info!(revision, "registered with the orchestrator");
            }
            to_worker::Kind::Step(request) => self.step(request).await?,
            to_worker::Kind::Question(question) => self.question(question),
            to_worker::Kind::Ping(ping) => {
                self.send(from_worker::Kind::Pong(Pong {
                    call: ping.call,
                    worker_unix_ns: self.performer.holder.node.unix_ns(),
                }));
            }
        }
        Ok(())
    }

    async fn step(&mut self, request: StepRequest) -> Result<(), JournalError> {
        let Some(key) = perform::key(&request) else {
            tracing::warn!(
                migration = request.migration_id,
                "asked for a step that this version does not know"
            );
            return Ok(());
        };
        let memory = self.journal.recall().await?;
        let revision = request.revision;
        match self.desk.arrive(&key, request, &memory) {
            Verdict::Answer(report) => self.send(from_worker::Kind::Report(*report)),
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
                call: _,
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

    fn question(&self, question: Question) {
        let (performer, events) = (self.performer.clone(), self.events.clone());
        tokio::spawn(async move {
            let answer = performer.answer(question).await;
            let _agent_gone = events.send(Event::Answered(Box::new(answer))).await;
        });
    }

    fn survey(&self) {
        if self.outbound.is_none() {
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

    /// Into the stream, if there is one. A report that gets lost is asked for again.
    fn send(&self, kind: from_worker::Kind) {
        if let Some(outbound) = &self.outbound
            && let Err(error) = outbound.try_send(message(kind))
        {
            tracing::warn!(%error, "a message to the orchestrator was dropped");
        }
    }
}

fn message(kind: from_worker::Kind) -> FromWorker {
    FromWorker { kind: Some(kind) }
}
