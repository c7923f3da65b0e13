//! The janitor: clears away what undone migrations left where nobody could clear it away in time: the store was down,
//! the target's runtime hung. The pod ran again at once and the user was told; this is what comes after.
//!
//! And a write that was given up may be carried out after the end: a mark on a source that the undo had taken off, so that
//! a deletion of the pod would wait for a person; a creation of the restored pod, once its user has deleted that, so that
//! the name would stay taken; an object in the store, whose last bytes a cut network held back. What has just ended is
//! looked at again for a while, and so is what was cleared away only later.
//!
//! It also lets go of kept checkpoints that nobody needs any more; they are then cleared away like anything late.
//!
//! It keeps nothing in mind: what is left over stands in the replicated state, so whoever leads next goes on with it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use orchestrator_core::{
    id::{MigrationId, Revision},
    migration::{Migration, Phase},
    refusal::Finding,
    state::{Command, State},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use crate::{clock::TimeOfDay, driver::Propose};

/// What comes back, comes back within minutes; asking a node that is not there costs nothing.
const EVERY: Duration = Duration::from_secs(3);
/// Late writes are looked for in every so manieth round.
const LATE_EVERY: u32 = 4;
/// As long as a call that was begun before the end may still be carried out, with the repetitions of a leader that does
/// not know yet that it was deposed.
const LATE_FOR: Duration = Duration::from_secs(100);
/// Of the ended ones that a new leader finds in its state, so many of the newest.
const LATE_MAX: usize = 64;

/// Janitor -> world. The second implementation is the tests' world.
#[async_trait]
pub trait Clear: Send + Sync {
    /// Clears away what this ended migration left, by steps of this revision; says what is still there.
    async fn clear(
        &self,
        id: &MigrationId,
        migration: &Migration,
        revision: Revision,
    ) -> Option<Finding>;
    /// Takes away what a late write has left after this migration's end, if any has.
    async fn look_again(&self, id: &MigrationId, migration: &Migration, revision: Revision);
}

/// Clears away while `leader` says so, until the state's channel closes.
pub struct Janitor {
    /// The world.
    pub clear: Arc<dyn Clear>,
    /// The log.
    pub propose: Arc<dyn Propose>,
    /// The replicated state.
    pub state: watch::Receiver<Arc<State>>,
    /// Are we the leader?
    pub leader: watch::Receiver<bool>,
    /// What time it is.
    pub clock: Arc<dyn TimeOfDay>,
}

/// What this peer knows of a migration that has ended.
struct Ended {
    /// Since when it owes nothing, as far as we have seen.
    since: Instant,
    /// Its checkpoint was kept when last seen.
    kept: bool,
}

impl Janitor {
    /// The loop.
    pub async fn run(self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rounds = 0_u32;
        let mut ended = BTreeMap::new();
        while self.state.has_changed().is_ok() {
            every.tick().await;
            if !*self.leader.borrow() {
                continue;
            }
            self.round().await;
            self.let_go().await;
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(LATE_EVERY) {
                self.look_again(&mut ended).await;
            }
        }
    }

    async fn let_go(&self) {
        let state = Arc::clone(&self.state.borrow());
        for id in state.needless(self.clock.unix_ms()) {
            tracing::info!(migration = %id, "its kept checkpoint is let go of");
            self.propose.propose(Command::LetGo { id }).await;
        }
    }

    async fn look_again(&self, ended: &mut BTreeMap<MigrationId, Ended>) {
        let state = Arc::clone(&self.state.borrow());
        let mut newest: Vec<_> = state
            .migrations
            .iter()
            .filter(|(_, migration)| may_be_written_to(migration.phase))
            .collect();
        newest.sort_unstable_by_key(|(_, migration)| std::cmp::Reverse(migration.revision));
        newest.truncate(LATE_MAX);
        ended.retain(|id, _| newest.iter().any(|(known, _)| *known == id));
        for (id, migration) in newest {
            let seen = ended.entry(id.clone()).or_insert_with(|| Ended {
                since: Instant::now(),
                kept: migration.kept,
            });
            if migration.left_over.is_some() || (seen.kept && !migration.kept) {
                seen.since = Instant::now();
            }
            seen.kept = migration.kept;
            if seen.since.elapsed() <= LATE_FOR {
                let revision = revision(&state, migration);
                self.clear.look_again(id, migration, revision).await;
            }
        }
    }

    async fn round(&self) {
        let state = Arc::clone(&self.state.borrow());
        let untidy = state
            .migrations
            .iter()
            .filter(|(_, migration)| migration.left_over.is_some());
        for (id, migration) in untidy {
            let revision = revision(&state, migration);
            match self.clear.clear(id, migration, revision).await {
                None => {
                    tracing::info!(migration = %id, "what it left over is cleared away");
                    self.propose
                        .propose(Command::Cleared { id: id.clone() })
                        .await;
                }
                Some(left_over) => {
                    tracing::warn!(migration = %id, %left_over, "something of it is left over");
                }
            }
        }
    }
}

/// It has ended, and had begun.
fn may_be_written_to(phase: Phase) -> bool {
    match phase {
        Phase::Succeeded | Phase::RolledBack | Phase::Rescued | Phase::Abandoned => true,
        Phase::Planned
        | Phase::Preparing
        | Phase::Copying
        | Phase::Holding
        | Phase::Delivering
        | Phase::Restoring
        | Phase::Rescuing
        | Phase::Retiring
        | Phase::Releasing
        | Phase::Refused
        | Phase::Previewed => false,
    }
}

/// The one at which it ended: workers refuse whatever is still on its way from before. But one that registered after
/// that refuses this one, too, and nothing newer will ever come of an ended migration.
fn revision(state: &State, migration: &Migration) -> Revision {
    let plan = migration.plan.iter();
    let nodes = plan.flat_map(|plan| [&plan.source, &plan.target]);
    let registered = nodes.filter_map(|node| state.workers.get(node).map(|worker| worker.at));
    registered.fold(migration.revision, Revision::max)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A state with one migration.
    fn submitted() -> State {
        let plan = crate::perform::tests_plan();
        let submit = Command::Submit {
            id: "m".into(),
            object: plan.pod.clone(),
            request: orchestrator_core::plan::Request {
                pod: plan.pod.clone(),
                target: plan.target.clone(),
                freeze_max_ms: None,
                timeout_ms: None,
                dry_run: true,
                rounds_max: None,
                keep_checkpoint_ms: None,
            },
            decision: orchestrator_core::state::Decision::Plan(Box::new(plan)),
            at_ms: 0,
            spans: Vec::new(),
        };
        let mut state = State::default();
        state.apply(Revision(5), submit).unwrap();
        state
    }

    #[test]
    fn a_worker_that_registered_after_the_end_is_asked_with_a_revision_that_it_takes() {
        let mut state = submitted();
        let migration = Migration::clone(&state.migrations[&"m".into()]);
        assert_eq!(revision(&state, &migration), Revision(5));
        let register = Command::Register {
            node: crate::perform::tests_plan().target,
            journal: "j".to_owned(),
        };
        state.apply(Revision(9), register).unwrap();
        assert_eq!(revision(&state, &migration), Revision(9));
    }

    /// Counts the looks; what is left over stays.
    #[derive(Default)]
    struct Looks(AtomicU32);

    #[async_trait]
    impl Clear for Looks {
        async fn clear(&self, _: &MigrationId, m: &Migration, _: Revision) -> Option<Finding> {
            m.left_over.clone()
        }

        async fn look_again(&self, _: &MigrationId, _: &Migration, _: Revision) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[async_trait]
    impl Propose for Looks {
        async fn propose(&self, _: Command) {}

        async fn leads(&self) -> bool {
            true
        }
    }

    #[tokio::test(start_paused = true)]
    async fn late_writes_are_looked_for_until_a_while_after_the_last_of_it_was_cleared_away() {
        let mut state = submitted();
        let ended = |left_over| {
            let mut migration = Migration::clone(&submitted().migrations[&"m".into()]);
            migration.phase = Phase::RolledBack;
            migration.left_over = left_over;
            Arc::new(migration)
        };
        let left = Some(Finding::new(
            "OnADeadNode",
            "its worker is away".to_owned(),
            "",
        ));
        state.migrations.insert("m".into(), ended(left));
        let (publish, published) = watch::channel(Arc::new(state.clone()));
        let (_lead, leader) = watch::channel(true);
        let looks = Arc::new(Looks::default());
        let janitor = Janitor {
            clear: looks.clone(),
            propose: looks.clone(),
            state: published,
            leader,
            clock: Arc::new(crate::clock::SystemTimeOfDay),
        };
        let running = tokio::spawn(janitor.run());
        let while_looked = async |time: Duration| {
            let before = looks.0.load(Ordering::Relaxed);
            tokio::time::sleep(time).await;
            looks.0.load(Ordering::Relaxed) - before
        };
        while_looked(LATE_FOR * 3).await;
        assert!(
            while_looked(LATE_FOR / 2).await > 0,
            "it waits for its node"
        );
        state.migrations.insert("m".into(), ended(None));
        publish.send_replace(Arc::new(state));
        assert!(while_looked(LATE_FOR / 2).await > 0, "it was just cleared");
        while_looked(LATE_FOR).await;
        assert_eq!(while_looked(LATE_FOR).await, 0, "it is over");
        running.abort();
    }
}
