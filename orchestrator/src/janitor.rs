//! The janitor: clears away what undone migrations left where nobody could clear it away in time: the store was down,
//! the target's runtime hung. The pod ran again at once and the user was told; this is what comes after.
//!
//! It keeps nothing in mind: what is left over stands in the replicated state, so whoever leads next goes on with it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use orchestrator_core::{
    id::{MigrationId, Revision},
    migration::Migration,
    refusal::Finding,
    state::{Command, State},
};
use tokio::{sync::watch, time::MissedTickBehavior};

use crate::driver::Propose;

/// What comes back, comes back within minutes; asking a node that is not there costs nothing.
const EVERY: Duration = Duration::from_secs(3);

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
}

impl Janitor {
    /// The loop.
    pub async fn run(self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.state.has_changed().is_ok() {
            every.tick().await;
            if *self.leader.borrow() {
                self.round().await;
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
    use super::*;

    #[test]
    fn a_worker_that_registered_after_the_end_is_asked_with_a_revision_that_it_takes() {
        let plan = crate::perform::tests_plan();
        let command = |id: &str| Command::Submit {
            id: id.into(),
            object: plan.pod.clone(),
            request: orchestrator_core::plan::Request {
                pod: plan.pod.clone(),
                target: plan.target.clone(),
                freeze_max_ms: None,
                timeout_ms: None,
                dry_run: true,
            },
            decision: orchestrator_core::state::Decision::Plan(Box::new(plan.clone())),
            at_ms: 0,
            spans: Vec::new(),
        };
        let mut state = State::default();
        state.apply(Revision(5), command("m")).unwrap();
        let migration = Migration::clone(&state.migrations[&"m".into()]);
        assert_eq!(revision(&state, &migration), Revision(5));
        let register = Command::Register {
            node: plan.target.clone(),
            journal: "j".to_owned(),
        };
        state.apply(Revision(9), register).unwrap();
        assert_eq!(revision(&state, &migration), Revision(9));
    }
}
