//! Keeps the objects' status as the log has it. The leader's work; level-triggered: every state is compared with what
//! was written last, so a state missed or a write failed is made up for by the next.
//!
//! A status that was written before by another leader is read once, so nothing is written or told twice. Objects that
//! are being deleted are let go of here once their migration has ended.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use orchestrator_core::{id::MigrationId, migration::Migration, state::State};
use serde_json::{Map, Value, json};
use tokio::{sync::watch, time::Instant};

use super::project;
use crate::{
    k8s::{
        call::{CallError, bounded, if_there},
        events::Events,
        intake::forget,
        pods::FIELD_MANAGER,
        resource::{PodMigration, PodMigrationStatus, StatusProgress},
    },
    workers::UnderWay,
};

/// Failed writes are made up for after this long when no new state comes: a hiccup of the API server takes seconds.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Progress alone makes a write no more often than this: the API server has other work.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// What an object shows, as far as we know.
struct Shown {
    status: Map<String, Value>,
    /// The user has deleted the object; our finalizer keeps it.
    deleting: bool,
    /// The object is gone: nothing to show any more.
    gone: bool,
    /// What the status was made from: while these are the same, nothing has to be looked at.
    of: Option<Arc<Migration>>,
    progress: Option<StatusProgress>,
}

/// Writes status and events.
pub struct Board {
    client: Client,
    events: Events,
    shown: BTreeMap<MigrationId, Shown>,
}

impl Board {
    /// An empty board: what objects show is read when needed.
    #[must_use]
    pub fn new(client: Client, events: Events) -> Self {
        Self {
            client,
            events,
            shown: BTreeMap::new(),
        }
    }

    /// Shows states while `leads` says so, until either sender is gone. A deposed leader forgets what it knows.
    pub async fn run(
        mut self,
        mut states: watch::Receiver<Arc<State>>,
        mut leads: watch::Receiver<bool>,
        mut progress: watch::Receiver<UnderWay>,
    ) {
        let mut progress_from = Instant::now();
        loop {
            let mut complete = true;
            if *leads.borrow_and_update() {
                let state = states.borrow_and_update().clone();
                let under_way = progress.borrow_and_update().clone();
                complete = self.show(&state, &under_way).await;
            } else {
                self.shown.clear();
            }
            let again = async {
                match complete {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(AGAIN_AFTER).await,
                }
            };
            let moved = async {
                tokio::time::sleep_until(progress_from).await;
                progress.changed().await
            };
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                changed = leads.changed() => if changed.is_err() { return },
                changed = moved => match changed {
                    Ok(()) => progress_from = Instant::now() + PROGRESS_EVERY,
                    Err(_) => return,
                },
                () = again => {}
            }
        }
    }

    /// Shows this state; false when something could not be written.
    pub async fn show(&mut self, state: &State, under_way: &UnderWay) -> bool {
        self.shown.retain(|id, _| state.migrations.contains_key(id));
        let mut complete = true;
        for migration in state.migrations.values() {
            if let Err(error) = self.show_one(migration, under_way).await {
                tracing::warn!(migration = %migration.id, %error, "its status was not written");
                complete = false;
            }
        }
        complete
    }

    async fn show_one(
        &mut self,
        migration: &Arc<Migration>,
        under_way: &UnderWay,
    ) -> Result<(), CallError> {
        let progress = progress(migration, under_way);
        let same = |shown: &Shown| {
            let of = shown.of.as_ref();
            of.is_some_and(|of| Arc::ptr_eq(of, migration)) && shown.progress == progress
        };
        if self.shown.get(&migration.id).is_some_and(same) {
            return Ok(());
        }
        let wanted = fields(migration, progress.clone());
        // Not put back after an error: what the object shows is read anew then.
        let mut shown = match self.shown.remove(&migration.id) {
            Some(shown) => shown,
            None => self.read(migration).await?,
        };
        if !shown.gone && shown.status != wanted {
            let entered = shown.status.get("revision") != wanted.get("revision");
            let status = change(&shown.status, &wanted);
            shown = self.write(migration, &status, wanted).await?;
            if entered {
                self.events.tell(migration).await;
            }
        }
        if !shown.gone && shown.deleting && migration.phase.ended() {
            forget(&self.client, &migration.id, &migration.object).await?;
            shown.gone = true;
        }
        shown.of = Some(Arc::clone(migration));
        shown.progress = progress;
        self.shown.insert(migration.id.clone(), shown);
        Ok(())
    }

    /// What the object shows now.
    async fn read(&self, migration: &Migration) -> Result<Shown, CallError> {
        let object = &migration.object;
        let api: Api<PodMigration> = Api::namespaced(self.client.clone(), &object.namespace);
        let call = api.get(&object.name);
        let found = if_there(bounded(format!("get podmigration {object}"), call).await)?;
        let found = found.filter(|o| o.metadata.uid.as_deref() == Some(&migration.id.0));
        let Some(found) = found else {
            return Ok(Shown {
                status: Map::new(),
                deleting: false,
                gone: true,
                of: None,
                progress: None,
            });
        };
        let deleting = found.metadata.deletion_timestamp.is_some();
        let status = found.status.map(serde_json::to_value);
        let status = match status {
            Some(Ok(Value::Object(fields))) => fields,
            Some(Ok(_) | Err(_)) | None => Map::new(),
        };
        Ok(Shown {
            status,
            deleting,
            gone: false,
            of: None,
            progress: None,
        })
    }

    async fn write(
        &self,
        migration: &Migration,
        change: &Value,
        wanted: Map<String, Value>,
    ) -> Result<Shown, CallError> {
        let object = &migration.object;
        let api: Api<PodMigration> = Api::namespaced(self.client.clone(), &object.namespace);
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        // A UID that doesn't match is refused as the change of an immutable field: the name is another object's by now.
        let patch = Patch::Merge(json!({
            "metadata": { "uid": migration.id.0 },
            "status": change,
        }));
        let call = api.patch_status(&object.name, &params, &patch);
        let doing = format!("write the status of podmigration {object}");
        let written = if_there(bounded(doing, call).await)?;
        Ok(Shown {
            status: wanted,
            deleting: written
                .as_ref()
                .is_some_and(|o| o.metadata.deletion_timestamp.is_some()),
            gone: written.is_none(),
            of: None,
            progress: None,
        })
    }
}

/// Of the phase as it was entered last, and no other's.
fn progress(migration: &Migration, under_way: &UnderWay) -> Option<StatusProgress> {
    let said = under_way.get(&migration.id)?;
    let current = said.revision == migration.revision.0 && !migration.phase.ended();
    current.then(|| StatusProgress {
        what: said.what.clone(),
        done_bytes: said.done,
        total_bytes: said.total,
    })
}

fn fields(migration: &Migration, progress: Option<StatusProgress>) -> Map<String, Value> {
    let status = PodMigrationStatus {
        progress,
        ..project(migration)
    };
    match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        other => unreachable!("a status is a JSON object of strings and numbers: {other:?}"),
    }
}

/// The merge patch from one to the other: null takes away what is no more.
fn change(from: &Map<String, Value>, to: &Map<String, Value>) -> Value {
    let gone = from.keys().filter(|key| !to.contains_key(*key));
    let gone = gone.map(|key| (key.clone(), Value::Null));
    let changed = to
        .iter()
        .filter(|(key, value)| from.get(*key) != Some(value));
    let changed = changed.map(|(key, value)| (key.clone(), value.clone()));
    Value::Object(gone.chain(changed).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_changes_what_differs_and_takes_away_what_is_gone() {
        let map = |value: Value| value.as_object().unwrap().clone();
        let from = map(json!({ "phase": "Holding", "inDoubt": { "asked": 2 }, "revision": 3 }));
        let to = map(json!({ "phase": "Delivering", "revision": 3, "bytes": 7 }));
        let expected = json!({ "phase": "Delivering", "inDoubt": null, "bytes": 7 });
        assert_eq!(change(&from, &to), expected);
        assert_eq!(change(&to, &to), json!({}));
    }
}
