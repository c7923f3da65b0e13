//! The replicated state and its only writer, [`State::apply`].
//!
//! Ids, times and choices are made by whoever proposes and are carried in the [`Command`]; the same log gives the
//! same bytes on every peer. Changing what `apply` does to an existing command is changing the log: a new meaning
//! is a new variant.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    id::{MigrationId, NodeName, PodRef, Revision, UnixMs},
    migration::{Migration, Outcome, Phase, SPANS_MAX, Span, Step},
    plan::{Plan, Request},
    refusal::Finding,
};

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// A `PodMigration` object was seen and planned.
    Submit {
        /// The object's UID.
        id: MigrationId,
        /// The object's namespace and name.
        object: PodRef,
        /// What it asks for.
        request: Request,
        /// What the planner said.
        decision: Decision,
        /// When.
        at_ms: UnixMs,
        /// Spans from before the log knew it: the request's way here, the planning.
        spans: Vec<Span>,
    },
    /// A step of the phase entered at `revision` ended.
    Report {
        /// Of which migration.
        id: MigrationId,
        /// Of which phase's entry.
        revision: Revision,
        /// How.
        outcome: Outcome,
        /// When.
        at_ms: UnixMs,
        /// Where the time went.
        spans: Vec<Span>,
    },
    /// The user wants it undone.
    Abort {
        /// Which.
        id: MigrationId,
        /// Who or what asked.
        reason: Finding,
        /// When.
        at_ms: UnixMs,
    },
    /// A person says that a node of this migration is dead and stays so.
    DeclareDead {
        /// Of which migration.
        id: MigrationId,
        /// Which node.
        node: NodeName,
        /// When.
        at_ms: UnixMs,
    },
    /// What an ended migration had left over is cleared away.
    Cleared {
        /// Which.
        id: MigrationId,
    },
    /// The kept checkpoint of an ended migration is not wanted any more.
    LetGo {
        /// Of which.
        id: MigrationId,
    },
    /// A worker with a journal we don't know.
    Register {
        /// Of which node.
        node: NodeName,
        /// The journal's own id.
        journal: String,
    },
}

/// The planner's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Decision {
    /// This is how.
    Plan(Box<Plan>),
    /// These are the reasons not to.
    Refuse(Vec<Finding>),
}

/// What `apply` made of a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Applied {
    /// The migration is now in this phase (or stayed in it).
    Phase(Phase),
    /// The worker is registered since this log index.
    Registered(Revision),
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// No such migration.
    #[error("there is no migration {0}")]
    NoSuchMigration(MigrationId),
    /// The report belongs to a phase that was left.
    #[error("stale report: it is of revision {reported}, the phase was entered at {current}")]
    Stale {
        /// What was reported.
        reported: Revision,
        /// What is.
        current: Revision,
    },
    /// Too late to abort.
    #[error("it is too late to abort: the migration is {0}, the target may run already")]
    TooLate(Phase),
    /// The node declared dead has no part in it.
    #[error("node {0} is neither the source nor the target of this migration")]
    NotItsNode(NodeName),
}

/// A worker's registration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// The journal that was registered.
    pub journal: String,
    /// At this log index: steps of older revisions are not for this journal.
    pub at: Revision,
}

/// Finished migrations that are kept: the newest. At about 20 KiB each this bounds the state to 20 MiB.
pub const HISTORY_MAX: usize = 1000;

/// Migrations that may be beyond Planned at once on one node, as source or target: more only lengthens every freeze.
pub const UNDER_WAY_PER_NODE_MAX: usize = 2;

/// Everything the peers agree on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// By id. Shared: every commit publishes a copy of the state, and a copy must not cost what the history weighs.
    pub migrations: BTreeMap<MigrationId, Arc<Migration>>,
    /// Workers by node.
    pub workers: BTreeMap<NodeName, Registration>,
}

/// A step that is due now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// Of which migration.
    pub id: MigrationId,
    /// Fences it.
    pub revision: Revision,
    /// What.
    pub step: Step,
}

impl State {
    /// Applies a committed command: the only writer of the state.
    ///
    /// # Errors
    /// A [`Rejection`] says why nothing changed.
    pub fn apply(&mut self, at: Revision, command: Command) -> Result<Applied, Rejection> {
        match command {
            Command::Submit {
                id,
                object,
                request,
                decision,
                at_ms,
                spans,
            } => Ok(Applied::Phase(
                self.submit(at, id, object, request, decision, at_ms, spans),
            )),
            Command::Report {
                id,
                revision,
                outcome,
                at_ms,
                spans,
            } => self
                .report(at, id, revision, outcome, at_ms, spans)
                .map(Applied::Phase),
            Command::Abort { id, reason, at_ms } => {
                self.abort(at, id, reason, at_ms).map(Applied::Phase)
            }
            Command::DeclareDead { id, node, at_ms } => {
                self.declare_dead(at, id, node, at_ms).map(Applied::Phase)
            }
            Command::Cleared { id } => self.cleared(id).map(Applied::Phase),
            Command::LetGo { id } => self.let_go(id).map(Applied::Phase),
            Command::Register { node, journal } => {
                Ok(Applied::Registered(self.register(at, node, journal)))
            }
        }
    }

    /// Every migration under way enters its phase anew at `at`, in a log that goes on elsewhere: whatever was asked of
    /// workers before is too old for them from the first step on.
    pub fn begin_anew(&mut self, at: Revision, at_ms: UnixMs) {
        let under_way = self.migrations.values_mut().filter(|m| !m.phase.ended());
        for migration in under_way.map(Arc::make_mut) {
            migration.enter(migration.phase, at, at_ms);
        }
    }

    /// The steps that are due, each migration's at most one; Planned ones in turn, as far as their nodes have room.
    #[must_use]
    pub fn due(&self) -> Vec<Due> {
        let mut under_way: BTreeMap<&NodeName, usize> = BTreeMap::new();
        for plan in self
            .migrations
            .values()
            .filter(|m| beyond_planned(m.phase))
            .filter_map(|m| m.plan.as_ref())
        {
            *under_way.entry(&plan.source).or_default() += 1;
            *under_way.entry(&plan.target).or_default() += 1;
        }
        let mut in_turn: Vec<(Revision, Step, &Plan, &Migration)> = self
            .migrations
            .values()
            .filter_map(|m| Some((m.submitted, m.phase.step()?, m.plan.as_ref()?, m.as_ref())))
            .collect();
        in_turn.sort_unstable_by_key(|(submitted, ..)| *submitted);
        let mut due = Vec::new();
        for (_, step, plan, migration) in in_turn {
            if step == Step::Recheck {
                let room =
                    |node| under_way.get(node).copied().unwrap_or(0) < UNDER_WAY_PER_NODE_MAX;
                if !(room(&plan.source) && room(&plan.target)) {
                    continue;
                }
                *under_way.entry(&plan.source).or_default() += 1;
                *under_way.entry(&plan.target).or_default() += 1;
            }
            due.push(Due {
                id: migration.id.clone(),
                revision: migration.revision,
                step,
            });
        }
        due
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "one call site, the fields of one command"
    )]
    fn submit(
        &mut self,
        at: Revision,
        id: MigrationId,
        object: PodRef,
        request: Request,
        decision: Decision,
        at_ms: UnixMs,
        spans: Vec<Span>,
    ) -> Phase {
        if let Some(known) = self.migrations.get(&id) {
            return known.phase;
        }
        let (plan, mut refusals) = match decision {
            Decision::Plan(mut plan) => {
                // It may have been let go of since the plan was made.
                plan.base.take_if(|base| !self.is_kept(&base.migration));
                (Some(*plan), Vec::new())
            }
            Decision::Refuse(reasons) => (None, reasons),
        };
        if let Some(other) = self.under_way_for(&request.pod) {
            refusals.push(Finding::new(
                "AlreadyMigrating",
                format!(
                    "the pod {} is being migrated already by {}",
                    request.pod, other.object
                ),
                "wait for it to end, or abort it with: migrate abort",
            ));
        }
        let phase = match (&plan, refusals.is_empty(), request.dry_run) {
            (Some(_), true, false) => Phase::Planned,
            (Some(_), true, true) => Phase::Previewed,
            (Some(_), false, _) | (None, _, _) => Phase::Refused,
        };
        let mut migration = Migration {
            id: id.clone(),
            object,
            request,
            plan,
            refusals,
            phase,
            revision: at,
            submitted: at,
            entered: Vec::new(),
            attempts: 0,
            attempted_ms: at_ms,
            reason: None,
            doubt: None,
            stuck: None,
            rounds: Vec::new(),
            copying_ended: None,
            checkpoint: None,
            images: Vec::new(),
            restored: None,
            unclean: None,
            left_over: None,
            kept: false,
            dead: BTreeMap::new(),
            spans,
        };
        migration.enter(phase, at, at_ms);
        self.migrations.insert(id, Arc::new(migration));
        self.forget_oldest();
        phase
    }

    fn under_way_for(&self, pod: &PodRef) -> Option<&Migration> {
        self.migrations
            .values()
            .map(Arc::as_ref)
            .find(|m| !m.phase.ended() && &m.request.pod == pod)
    }

    fn report(
        &mut self,
        at: Revision,
        id: MigrationId,
        revision: Revision,
        outcome: Outcome,
        at_ms: UnixMs,
        spans: Vec<Span>,
    ) -> Result<Phase, Rejection> {
        let Some(migration) = self.migrations.get_mut(&id) else {
            return Err(Rejection::NoSuchMigration(id));
        };
        if migration.revision != revision || migration.phase.ended() {
            return Err(Rejection::Stale {
                reported: revision,
                current: migration.revision,
            });
        }
        let migration = Arc::make_mut(migration);
        let room = SPANS_MAX.saturating_sub(migration.spans.len());
        migration.spans.extend(spans.into_iter().take(room));
        if let Some(phase) = migration.next(outcome, at_ms) {
            migration.enter(phase, at, at_ms);
        }
        Ok(migration.phase)
    }

    fn abort(
        &mut self,
        at: Revision,
        id: MigrationId,
        reason: Finding,
        at_ms: UnixMs,
    ) -> Result<Phase, Rejection> {
        let Some(migration) = self.migrations.get_mut(&id) else {
            return Err(Rejection::NoSuchMigration(id));
        };
        if migration.phase == Phase::Releasing || migration.phase.ended() {
            return Ok(migration.phase);
        }
        if !migration.abortable() {
            return Err(Rejection::TooLate(migration.phase));
        }
        let migration = Arc::make_mut(migration);
        migration.reason = Some(reason);
        migration.enter(Phase::Releasing, at, at_ms);
        Ok(Phase::Releasing)
    }

    /// Saying it twice, or of a migration that has ended, changes nothing.
    fn declare_dead(
        &mut self,
        at: Revision,
        id: MigrationId,
        node: NodeName,
        at_ms: UnixMs,
    ) -> Result<Phase, Rejection> {
        let Some(migration) = self.migrations.get_mut(&id) else {
            return Err(Rejection::NoSuchMigration(id));
        };
        let of_plan = migration
            .plan
            .as_ref()
            .is_some_and(|plan| plan.source == node || plan.target == node);
        let of_restored = migration
            .restored
            .as_ref()
            .is_some_and(|restored| restored.node == node);
        if !of_plan && !of_restored {
            return Err(Rejection::NotItsNode(node));
        }
        if migration.phase.ended() || migration.is_dead(&node) {
            return Ok(migration.phase);
        }
        let migration = Arc::make_mut(migration);
        if let Some(phase) = migration.declare_dead(node, at_ms) {
            migration.enter(phase, at, at_ms);
        }
        Ok(migration.phase)
    }

    fn cleared(&mut self, id: MigrationId) -> Result<Phase, Rejection> {
        let Some(migration) = self.migrations.get_mut(&id) else {
            return Err(Rejection::NoSuchMigration(id));
        };
        Arc::make_mut(migration).left_over = None;
        Ok(migration.phase)
    }

    /// At once, or as soon as nothing stands on it: until then it is old.
    fn let_go(&mut self, id: MigrationId) -> Result<Phase, Rejection> {
        let is_needed = self.is_base(&id);
        let Some(migration) = self.migrations.get_mut(&id) else {
            return Err(Rejection::NoSuchMigration(id));
        };
        if migration.kept {
            let migration = Arc::make_mut(migration);
            migration.kept = is_needed;
            migration.request.keep_checkpoint_ms = Some(0);
        }
        Ok(migration.phase)
    }

    fn register(&mut self, at: Revision, node: NodeName, journal: String) -> Revision {
        match self.workers.get(&node) {
            Some(known) if known.journal == journal => known.at,
            Some(_) | None => {
                self.workers.insert(node, Registration { journal, at });
                at
            }
        }
    }

    fn forget_oldest(&mut self) {
        if self.migrations.len() <= HISTORY_MAX {
            return;
        }
        let mut ended: Vec<(Revision, &MigrationId)> = self
            .migrations
            .values()
            // One that still owes something must not be forgotten: a node that comes back would keep what it holds. Nor one
            // whose checkpoint is kept, which nobody would let go of.
            .filter(|m| m.phase.ended() && m.left_over.is_none() && !m.kept)
            .map(|m| (m.submitted, &m.id))
            .collect();
        let surplus = ended.len().saturating_sub(HISTORY_MAX);
        if surplus == 0 {
            return;
        }
        ended.select_nth_unstable(surplus - 1);
        let oldest: Vec<MigrationId> = ended[..surplus]
            .iter()
            .map(|(_, id)| (*id).clone())
            .collect();
        for id in oldest {
            self.migrations.remove(&id);
        }
    }
}

fn beyond_planned(phase: Phase) -> bool {
    !phase.ended() && phase != Phase::Planned
}
