//! The driver: on the leader, for every migration, performs the step that is due and proposes its outcome. No other
//! recovery path exists: a new leader has nothing under way, so it performs what is due, as on an ordinary day.
//!
//! It also keeps the two deadlines that end a migration before its commit, by proposing an abort: the migration's
//! own timeout, and the freeze budget once the source is held. The worker keeps the budget during Holding itself;
//! from there on it is kept here.
//!
//! What a step does is not its business ([`crate::perform`]), and what an outcome means neither
//! ([`orchestrator_core::migration`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use orchestrator_core::{
    id::{MigrationId, Revision, UnixMs},
    migration::{Migration, Outcome, Phase, Span, Step},
    refusal::Finding,
    state::{Command, Due, State},
};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::Instant,
};

use crate::clock::TimeOfDay;

/// Driver -> world. The second implementation is the tests' world.
#[async_trait]
pub trait Perform: Send + Sync {
    /// Performs the step of this migration's phase, once or again.
    async fn perform(&self, due: &Due, migration: &Migration) -> (Outcome, Vec<Span>);
}

/// Driver -> log.
#[async_trait]
pub trait Propose: Send + Sync {
    /// Returns when the command was applied, or when it is not known whether it will be.
    async fn propose(&self, command: Command);
    /// A majority says that we lead still, so the state is that of now.
    async fn leads(&self) -> bool;
}

/// A step that could not be told, or failed where it is asked again, waits this long: first, and at most. Where nobody
/// runs the pod, what was in the way may be gone at any moment, and every second of waiting is one of the freeze.
const ASK_AGAIN_FIRST: Duration = Duration::from_millis(200);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(5);
const ASK_AGAIN_FROZEN_MAX: Duration = Duration::from_secs(1);

/// How exactly the deadlines are kept: a tenth of the shortest budget that makes sense (1 s).
const DEADLINES_EVERY: Duration = Duration::from_millis(100);

/// What restoring takes after the commit, kept free at the end of the freeze budget: delete, create, sandbox, restore
/// took 1.3 s on the lab.
pub const RESTORE_RESERVE_MS: u64 = 1_500;

type Key = (MigrationId, Revision);

/// Patience grows over the attempts at one phase, whatever their revisions.
type Patience = (MigrationId, Phase);

/// Runs until the state's channel closes. Performs nothing while `leader` is false.
pub struct Driver {
    /// The world.
    pub perform: Arc<dyn Perform>,
    /// The log.
    pub propose: Arc<dyn Propose>,
    /// The replicated state.
    pub state: watch::Receiver<Arc<State>>,
    /// Are we the leader?
    pub leader: watch::Receiver<bool>,
    /// What time of day it is.
    pub clock: Arc<dyn TimeOfDay>,
}

#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<(Key, Patience)>,
    handles: BTreeMap<Key, tokio::task::AbortHandle>,
    again: BTreeMap<Patience, Again>,
    aborting: BTreeMap<Key, ()>,
    commits: Commits,
}

/// When each migration's last report was proposed. The commit ends when the next step begins, which is what it delays,
/// and travels with that step's report: two of them lie inside every freeze. A new leader doesn't know its
/// predecessor's last one.
#[derive(Clone, Default)]
struct Commits(Arc<Mutex<BTreeMap<MigrationId, (Revision, u64)>>>);

impl Commits {
    fn began(&self, reported: &Due, now_ns: u64) {
        let began = (reported.revision, now_ns);
        self.lock().insert(reported.id.clone(), began);
    }

    /// The commit that made this step due; none when the same step is asked again.
    fn ended(&self, next: &Due, now_ns: u64) -> Option<Span> {
        let (reported, began_ns) = self.lock().remove(&next.id)?;
        (reported != next.revision).then(|| span("commit", began_ns, now_ns))
    }

    fn keep_only(&self, due: &BTreeSet<Key>) {
        self.lock().retain(|id, _| {
            let of_id = (id.clone(), Revision(0))..=(id.clone(), Revision(u64::MAX));
            due.range(of_id).next().is_some()
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MigrationId, (Revision, u64)>> {
        // A panic while it was locked leaves it whole: every change is one insert or remove.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Again {
    delay: Duration,
    not_before: Instant,
}

impl Driver {
    /// The loop.
    pub async fn run(mut self) {
        let mut under_way = UnderWay::default();
        let mut deadlines = tokio::time::interval(DEADLINES_EVERY);
        loop {
            let leader = *self.leader.borrow_and_update();
            let state = Arc::clone(&self.state.borrow_and_update());
            if leader {
                self.start_what_is_due(&state, &mut under_way);
            } else {
                under_way = UnderWay::default();
            }
            tokio::select! {
                // In order, so that a simulation repeats: news of the state first, and time last.
                biased;
                changed = self.state.changed() => if changed.is_err() { return },
                changed = self.leader.changed() => if changed.is_err() { return },
                Some(ended) = under_way.tasks.join_next() => {
                    under_way.ended(ended);
                    // One look at what is due for all that ended together.
                    while let Some(ended) = under_way.tasks.try_join_next() {
                        under_way.ended(ended);
                    }
                }
                _ = deadlines.tick() => if leader { self.keep_deadlines(&state, &mut under_way) },
            }
        }
    }

    fn start_what_is_due(&self, state: &State, under_way: &mut UnderWay) {
        let due = state.due();
        under_way.forget_all_but(state, &due);
        for due in due {
            let Some(migration) = state.migrations.get(&due.id).cloned() else {
                continue;
            };
            let key = (due.id.clone(), due.revision);
            let patience = (due.id.clone(), migration.phase);
            if under_way.handles.contains_key(&key) || under_way.waits(&patience) {
                continue;
            }
            let again = under_way.again.contains_key(&patience);
            let (perform, propose) = (Arc::clone(&self.perform), Arc::clone(&self.propose));
            let (ended, commits) = ((key.clone(), patience), under_way.commits.clone());
            let commit = commits.ended(&due, self.clock.unix_ns());
            let clock = Arc::clone(&self.clock);
            let handle = under_way.tasks.spawn(async move {
                let mut asked = None;
                // Where the first effect is Kubernetes' nothing fences a leader that was deposed without knowing it.
                if begins_with_kubernetes(due.step) {
                    let asked_ns = clock.unix_ns();
                    if !propose.leads().await {
                        return ended;
                    }
                    asked = Some(span("ask a majority", asked_ns, clock.unix_ns()));
                }
                let (outcome, mut spans) = perform.perform(&due, &migration).await;
                if again && matches!(outcome, Outcome::Unknown(_)) {
                    // The first one has told all there is; hundreds of them would take the room of what comes later.
                    spans.clear();
                    asked = None;
                }
                tracing::info!(migration = %due.id, revision = %due.revision, step = ?due.step, ?outcome, "a step ended");
                spans.extend(commit.into_iter().chain(asked));
                commits.began(&due, clock.unix_ns());
                let command = Command::Report { id: due.id, revision: due.revision, outcome, at_ms: clock.unix_ms(), spans };
                propose.propose(command).await;
                ended
            });
            under_way.handles.insert(key, handle);
        }
    }

    fn keep_deadlines(&self, state: &State, under_way: &mut UnderWay) {
        let now_ms = self.clock.unix_ms();
        for migration in state.migrations.values() {
            let key = (migration.id.clone(), migration.revision);
            let Some(reason) =
                overdue(migration, now_ms).filter(|_| !under_way.aborting.contains_key(&key))
            else {
                continue;
            };
            under_way.aborting.insert(key, ());
            let propose = Arc::clone(&self.propose);
            let command = Command::Abort {
                id: migration.id.clone(),
                reason,
                at_ms: now_ms,
            };
            tokio::spawn(async move { propose.propose(command).await });
        }
    }
}

impl UnderWay {
    fn ended(&mut self, ended: Result<(Key, Patience), JoinError>) {
        match ended {
            Ok((key, patience)) => {
                self.handles.remove(&key);
                let longest = ask_again_max(patience.1);
                let delay = self
                    .again
                    .get(&patience)
                    .map_or(ASK_AGAIN_FIRST, |again| (again.delay * 2).min(longest));
                // Only matters when the phase stays: otherwise it is forgotten at the next look.
                self.again.insert(
                    patience,
                    Again {
                        delay,
                        not_before: Instant::now() + delay,
                    },
                );
            }
            Err(error) if error.is_cancelled() => {}
            Err(error) => {
                tracing::error!(%error, "a step panicked; it is asked again");
                self.handles.retain(|_, handle| !handle.is_finished());
            }
        }
    }

    fn waits(&self, patience: &Patience) -> bool {
        self.again
            .get(patience)
            .is_some_and(|again| Instant::now() < again.not_before)
    }

    /// A phase that was left takes its step with it.
    fn forget_all_but(&mut self, state: &State, due: &[Due]) {
        // With hundreds under way, looking through the list for each of them would be most of what a commit costs.
        let due: BTreeSet<Key> = due
            .iter()
            .map(|due| (due.id.clone(), due.revision))
            .collect();
        self.handles.retain(|key, handle| {
            let keep = due.contains(key);
            if !keep {
                handle.abort();
            }
            keep
        });
        self.aborting.retain(|key, ()| due.contains(key));
        self.commits.keep_only(&due);
        self.again
            .retain(|(id, phase), _| state.migrations.get(id).is_some_and(|m| m.phase == *phase));
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

/// Other steps begin with a worker, which refuses an old revision.
fn begins_with_kubernetes(step: Step) -> bool {
    match step {
        Step::Prepare | Step::Restore | Step::Rescue | Step::Retire | Step::Release => true,
        Step::Recheck | Step::Copy | Step::Hold | Step::Deliver => false,
    }
}

fn ask_again_max(phase: Phase) -> Duration {
    match phase {
        Phase::Holding
        | Phase::Delivering
        | Phase::Restoring
        | Phase::Rescuing
        | Phase::Releasing => ASK_AGAIN_FROZEN_MAX,
        Phase::Planned
        | Phase::Preparing
        | Phase::Copying
        | Phase::Retiring
        | Phase::Succeeded
        | Phase::RolledBack
        | Phase::Rescued
        | Phase::Abandoned
        | Phase::Refused
        | Phase::Previewed => ASK_AGAIN_MAX,
    }
}

/// Why this migration has to be undone by now, if it has.
fn overdue(migration: &Migration, now_ms: UnixMs) -> Option<Finding> {
    let plan = migration.plan.as_ref().filter(|_| migration.abortable())?;
    if let (Phase::Delivering, Some(checkpoint)) = (migration.phase, &migration.checkpoint) {
        let frozen_ms = now_ms.saturating_sub(checkpoint.paused_unix_ns / 1_000_000);
        if frozen_ms.saturating_add(RESTORE_RESERVE_MS) > plan.freeze_budget_ms {
            return Some(Finding::new(
                "FreezeBudgetExceeded",
                format!(
                    "the pod is frozen since {frozen_ms} ms, its budget is {} ms with {RESTORE_RESERVE_MS} ms for the restore",
                    plan.freeze_budget_ms
                ),
                "allow a longer freeze with --max-freeze, or let the liveness probe bear more",
            ));
        }
    }
    let (_, submitted_ms) = migration.entered.first()?;
    let age_ms = now_ms.saturating_sub(*submitted_ms);
    (age_ms > plan.timeout_ms && migration.phase != Phase::Planned).then(|| {
        Finding::new(
            "TimedOut",
            format!(
                "the migration is not committed after {age_ms} ms, it was given {} ms",
                plan.timeout_ms
            ),
            "allow more with --timeout",
        )
    })
}

fn span(name: &str, start_unix_ns: u64, end_unix_ns: u64) -> Span {
    Span {
        name: name.to_owned(),
        place: "orchestrator".to_owned(),
        parent: String::new(),
        start_unix_ns,
        end_unix_ns,
        attributes: BTreeMap::new(),
    }
}
