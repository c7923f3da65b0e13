//! What the log said, and whether the machines agree: the same state on every peer at the same index, and no phase that
//! the truth contradicts.

use std::{collections::BTreeMap, sync::Arc};

use orchestrator_core::{
    id::MigrationId,
    migration::{Migration, Phase},
    state::State,
};

use crate::{
    data::prefix,
    sim::{Inner, Violation},
    truth::Content,
};

/// Everything that was applied.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Now.
    pub now_ms: u64,
    states: BTreeMap<u64, Arc<State>>,
    phases: BTreeMap<MigrationId, Phase>,
}

impl Ledger {
    /// A peer has applied everything up to this index.
    pub fn applied(&mut self, inner: &mut Inner, peer: u64, at: u64, state: &Arc<State>) {
        if let Some(known) = self.states.get(&at) {
            if !Arc::ptr_eq(known, state) && known != state {
                self.violated(inner, format!("peer{peer} has another state at {at}"));
            }
            return;
        }
        let newest = self
            .states
            .last_key_value()
            .is_none_or(|(last, _)| at > *last);
        self.states.insert(at, Arc::clone(state));
        if newest {
            for migration in state.migrations.values() {
                self.watch(inner, at, migration);
            }
        }
    }

    /// The newest that any peer has applied.
    #[must_use]
    pub fn newest(&self) -> Option<&Arc<State>> {
        self.states.last_key_value().map(|(_, state)| state)
    }

    fn violated(&self, inner: &mut Inner, what: String) {
        let at_ms = self.now_ms;
        inner.violations.push(Violation { at_ms, what });
    }

    fn watch(&mut self, inner: &mut Inner, at: u64, migration: &Migration) {
        let id = &migration.id;
        let before = self.phases.insert(id.clone(), migration.phase);
        if before == Some(migration.phase) {
            return;
        }
        let why = migration
            .reason
            .as_ref()
            .map_or("", |reason| reason.code.as_str());
        inner.trace.event(
            self.now_ms,
            "log",
            format_args!("{at}: {id} is {} {why}", migration.phase),
        );
        let contradiction = match migration.phase {
            Phase::Delivering => undurable(inner, migration),
            Phase::Retiring => not_restored(inner, migration),
            Phase::Succeeded | Phase::Rescued => source_left(inner, migration),
            Phase::Planned
            | Phase::Preparing
            | Phase::Copying
            | Phase::Holding
            | Phase::Restoring
            | Phase::Rescuing
            | Phase::Releasing
            | Phase::RolledBack
            | Phase::Refused
            | Phase::Previewed
            | Phase::Abandoned => None,
        };
        if let Some(what) = contradiction {
            self.violated(inner, format!("{id} is {}: {what}", migration.phase));
        }
    }
}

/// The checkpoint that the log believes in is whole.
fn undurable(inner: &mut Inner, migration: &Migration) -> Option<String> {
    let key = &migration.checkpoint.as_ref()?.manifest_key;
    let whole = inner.truth.stored.is_whole(key);
    (!whole).then(|| format!("its checkpoint {key} is not whole in the store"))
}

/// What is called restored was not started afresh.
fn not_restored(inner: &mut Inner, migration: &Migration) -> Option<String> {
    let restored = migration.restored.as_ref()?;
    let ours = prefix(&migration.id.0);
    let machine = inner.truth.machine(&restored.node.0);
    let pod = machine.pods.get(&restored.pod_uid.0)?;
    let fresh = pod.alive().find(|c| {
        let from = c.restored_from.as_ref();
        c.stray || from.is_none_or(|from| !from.starts_with(&ours))
    });
    fresh.map(|c| format!("container {} of the restored pod started afresh", c.name))
}

/// The source is gone, its object too, and nothing of the checkpoint is armed.
fn source_left(inner: &mut Inner, migration: &Migration) -> Option<String> {
    let plan = migration.plan.as_ref()?;
    let machine = inner.truth.machine(&plan.source.0);
    let alive = machine
        .pods
        .get(&plan.uid.0)
        .is_some_and(|pod| pod.alive().next().is_some());
    if alive {
        return Some("the source is still there".to_owned());
    }
    let object = inner.truth.objects.pod(&plan.pod.name);
    if object.is_some_and(|object| object.uid == plan.uid.0) {
        return Some("the source's object is still there".to_owned());
    }
    let restored = migration.restored.as_ref()?;
    let machine = inner.truth.machine(&restored.node.0);
    let armed = machine.registry.values().any(|entry| {
        *entry.migration == *migration.id.0
            && !entry.silent
            && matches!(entry.content, Content::Checkpoint(_))
    });
    armed.then(|| "its checkpoint is still armed".to_owned())
}
