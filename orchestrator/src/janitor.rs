//! The janitor: clears away what undone migrations left where nobody could clear it away in time: the store was down,
//! the target's runtime hung. The pod ran again at once and the user was told; this is what comes after.
//!
//! It keeps nothing in mind: what is left over stands in the replicated state, so whoever leads next goes on with it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use orchestrator_core::{
    id::MigrationId,
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
    /// Clears away what this ended migration left; says what is still there.
    async fn clear(&self, id: &MigrationId, migration: &Migration) -> Option<Finding>;
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
            match self.clear.clear(id, migration).await {
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
