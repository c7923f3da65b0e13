//! Questions about the store, and its clearing up: `StoreTask` objects, answered by the leader through any worker.
//!
//! ```text
//!  task ─► a worker lists ─► the log is confirmed ─► each migration judged (core::store) ─► check, or clear ─► status
//! ```
//! The order is the safety: what is judged was listed before the log was asked, so nothing that a running migration needs
//! is ever removed. Once an hour what is known to be over is collected without being asked.
//!
//! How it goes wrong: without a worker there is nobody who has the store's keys, and the task fails saying so. A leader
//! that is deposed in the middle leaves the task as it was, and the next one begins it anew; removing twice is removing.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use orchestrator_core::{
    id::{MigrationId, NodeName},
    state::State,
    store::Owner,
};
use proto::worker::{self as wire, answer, question};
use tokio::{sync::watch, time::Instant};

use crate::{
    driver::Propose,
    k8s::{
        call::{CallError as ApiError, bounded},
        pods::FIELD_MANAGER,
        resource::{StoreTask, StoreTaskSpec, StoreTaskStatus, StoreWhat, StoredMigration},
    },
    workers::Workers,
};

/// Somebody waits for the answer.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What ended migrations left is removed at their end; this is for what an end could not reach.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);
/// Listing 100,000 objects takes 100 requests of some 50 ms.
const LIST_WITHIN: Duration = Duration::from_secs(60);
/// Reading 60 GB at 100 MB/s.
const CHECK_WITHIN: Duration = Duration::from_secs(600);
/// Removing 10,000 objects, 16 at once, at 50 ms.
const REMOVE_WITHIN: Duration = Duration::from_secs(60);
/// An object of etcd has at most 1.5 MB; a migration takes 300 bytes of it.
const SHOWN_MAX: usize = 500;
const PROBLEMS_MAX: usize = 100;
const ANOTHER_QUESTION: &str = "the worker answered another question";
/// Whoever asked has read the answer by then, or never will.
const TASK_AGE_MAX_S: i64 = 3600;

/// Who has the keys of the store.
#[async_trait]
pub trait Keeper: Send + Sync {
    /// What lies there.
    async fn list(&self) -> Result<Vec<wire::StoredMigration>, String>;
    /// Is it whole?
    async fn check(&self, id: &MigrationId) -> Result<wire::StoreChecked, String>;
    /// Removes everything of a migration.
    async fn remove(&self, id: &MigrationId) -> Result<(), String>;
}

/// The connected workers: whoever is first by name.
#[async_trait]
impl Keeper for Workers {
    async fn list(&self) -> Result<Vec<wire::StoredMigration>, String> {
        let kind = question::Kind::ListStore(wire::ListStore {});
        let asked = self.ask(&anybody(self)?, kind, LIST_WITHIN).await;
        let answer::Kind::StoreListing(listing) = asked.map_err(|error| error.to_string())? else {
            return Err(ANOTHER_QUESTION.to_owned());
        };
        Ok(listing.migrations)
    }

    async fn check(&self, id: &MigrationId) -> Result<wire::StoreChecked, String> {
        let kind = question::Kind::CheckStore(wire::CheckStore {
            migration_id: id.0.to_string(),
        });
        let asked = self.ask(&anybody(self)?, kind, CHECK_WITHIN).await;
        let answer::Kind::StoreChecked(checked) = asked.map_err(|error| error.to_string())? else {
            return Err(ANOTHER_QUESTION.to_owned());
        };
        Ok(checked)
    }

    async fn remove(&self, id: &MigrationId) -> Result<(), String> {
        let kind = question::Kind::ClearStore(wire::ClearStore {
            migration_id: id.0.to_string(),
        });
        let asked = self.ask(&anybody(self)?, kind, REMOVE_WITHIN).await;
        let answer::Kind::StoreCleared(_) = asked.map_err(|error| error.to_string())? else {
            return Err(ANOTHER_QUESTION.to_owned());
        };
        Ok(())
    }
}

fn anybody(workers: &Workers) -> Result<NodeName, String> {
    let connected = workers.connected();
    connected.into_keys().next().ok_or_else(|| {
        "no worker is connected, and nobody else has the keys of the store: kubectl get pods -n longshore-system"
            .to_owned()
    })
}

/// Answers tasks and collects, until the state's channel closes. The leader's.
pub struct StoreDesk {
    /// Where tasks are.
    pub client: Client,
    /// Who has the store.
    pub keeper: Arc<dyn Keeper>,
    /// Whether we lead still.
    pub propose: Arc<dyn Propose>,
    /// The replicated state.
    pub state: watch::Receiver<Arc<State>>,
}

impl StoreDesk {
    /// The loop.
    pub async fn run(self) {
        let tasks: Api<StoreTask> = Api::all(self.client.clone());
        let mut collected = Instant::now();
        while self.state.has_changed().is_ok() {
            tokio::time::sleep(LOOK_EVERY).await;
            if collected.elapsed() > COLLECT_EVERY {
                collected = Instant::now();
                self.collect_unasked().await;
            }
            if let Err(error) = self.look(&tasks).await {
                tracing::warn!(%error, "tasks of the store wait");
            }
        }
    }

    async fn collect_unasked(&self) {
        let spec = StoreTaskSpec {
            what: StoreWhat::Collect,
            unknown_too: false,
        };
        match self.perform(&spec).await {
            Ok(status) if status.removed_objects > 0 => {
                let (objects, bytes) = (status.removed_objects, status.removed_bytes);
                tracing::info!(
                    objects,
                    bytes,
                    "the store was cleared of what ended migrations left"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error, "the store was not cleared"),
        }
    }

    async fn look(&self, tasks: &Api<StoreTask>) -> Result<(), ApiError> {
        let all = bounded(
            "list storetasks".to_owned(),
            tasks.list(&ListParams::default()),
        )
        .await?;
        for task in all.items {
            let name = task.name_any();
            if task
                .status
                .as_ref()
                .is_none_or(|status| status.phase.is_empty())
            {
                let status = match self.perform(&task.spec).await {
                    Ok(status) => status,
                    Err(message) => StoreTaskStatus {
                        phase: "Failed".to_owned(),
                        message,
                        ..StoreTaskStatus::default()
                    },
                };
                let patch = Patch::Merge(serde_json::json!({ "status": status }));
                let params = PatchParams {
                    field_manager: Some(FIELD_MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                let call = tasks.patch_status(&name, &params, &patch);
                bounded(format!("answer storetask {name}"), call).await?;
            } else if age_s(&task) > TASK_AGE_MAX_S {
                let now = DeleteParams::default();
                let call = tasks.delete(&name, &now);
                bounded(format!("delete storetask {name}"), call).await?;
            }
        }
        Ok(())
    }

    /// Does what a task asks.
    ///
    /// # Errors
    /// Who could not do it, and why.
    pub async fn perform(&self, spec: &StoreTaskSpec) -> Result<StoreTaskStatus, String> {
        let listed = self.keeper.list().await?;
        // After the list: what began meanwhile is not in it.
        if !self.propose.leads().await {
            return Err("the leader changed meanwhile; ask again".to_owned());
        }
        let state = Arc::clone(&self.state.borrow());
        let mut status = StoreTaskStatus {
            phase: "Done".to_owned(),
            ..StoreTaskStatus::default()
        };
        for stored in listed {
            let id = MigrationId::from(stored.migration_id.as_str());
            let mut shown = shown(&state, &id, &stored);
            match spec.what {
                StoreWhat::Stats => {}
                StoreWhat::Check => {
                    let checked = self.keeper.check(&id).await?;
                    shown.loose = Some(checked.loose);
                    status.problems.extend(checked.problems);
                }
                StoreWhat::Collect if Owner::of(&state, &id).is_garbage(spec.unknown_too) => {
                    self.keeper.remove(&id).await?;
                    shown.removed = true;
                    status.removed_objects += stored.objects;
                    status.removed_bytes += stored.bytes;
                }
                StoreWhat::Collect => {}
            }
            status.total_objects += stored.objects;
            status.total_bytes += stored.bytes;
            status.migrations.push(shown);
        }
        status.problems.truncate(PROBLEMS_MAX);
        let largest = |one: &StoredMigration| std::cmp::Reverse((one.bytes, one.id.clone()));
        status.migrations.sort_by_key(largest);
        status.migrations.truncate(SHOWN_MAX);
        Ok(status)
    }
}

fn shown(state: &State, id: &MigrationId, stored: &wire::StoredMigration) -> StoredMigration {
    let known = state.migrations.get(id);
    StoredMigration {
        id: stored.migration_id.clone(),
        object: known.map_or_else(String::new, |known| known.object.to_string()),
        owner: format!("{:?}", Owner::of(state, id)),
        objects: stored.objects,
        bytes: stored.bytes,
        checkpoints: stored.checkpoints,
        loose: None,
        removed: false,
    }
}

fn age_s(task: &StoreTask) -> i64 {
    let created = task.metadata.creation_timestamp.as_ref();
    created.map_or(0, |created| {
        let now = k8s_openapi::jiff::Timestamp::now();
        now.as_second() - created.0.as_second()
    })
}

#[cfg(test)]
mod tests;
