//! What happened, told on the pod and on the `PodMigration`: one event a phase. Events are courtesy; losing one loses
//! nothing, so a failure to write one is logged and forgotten.

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use orchestrator_core::migration::{Migration, Phase};

use super::resource::PodMigration;

/// Kubernetes takes at most 1 KiB of text in an event.
const NOTE_BYTES_MAX: usize = 1024;

/// Writes events.
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// `instance` tells peers apart: the name of the orchestrator's pod.
    #[must_use]
    pub fn new(client: Client, instance: Option<String>) -> Self {
        let reporter = Reporter {
            controller: "longshore.dev/orchestrator".to_owned(),
            instance,
        };
        Self {
            recorder: Recorder::new(client, reporter),
        }
    }

    /// Tells that the migration is in its phase, on everything it is about.
    pub async fn tell(&self, migration: &Migration) {
        let event = entered(migration);
        for about in about(migration) {
            let told = tokio::time::timeout(
                super::call::CALL_TIMEOUT,
                self.recorder.publish(&event, &about),
            );
            match told.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(migration = %migration.id, %error, "an event was not written");
                }
                Err(_elapsed) => {
                    tracing::warn!(migration = %migration.id, "an event was not written in time");
                }
            }
        }
    }
}

/// The request's object, and the pod as it is now: the source until the target is proved to be restored.
#[must_use]
pub fn about(migration: &Migration) -> Vec<ObjectReference> {
    let mut about = vec![reference::<PodMigration>(
        &migration.object,
        Some(migration.id.0.to_string()),
    )];
    let restored = migration.restored.as_ref().map(|r| r.pod_uid.0.clone());
    let source = migration.plan.as_ref().map(|plan| plan.uid.0.clone());
    if let Some(uid) = restored.or(source) {
        about.push(reference::<Pod>(&migration.request.pod, Some(uid)));
    }
    about
}

fn reference<K: Resource<DynamicType = ()>>(
    object: &orchestrator_core::id::PodRef,
    uid: Option<String>,
) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: Some(object.namespace.clone()),
        name: Some(object.name.clone()),
        uid,
        ..ObjectReference::default()
    }
}

/// The event of the phase the migration is in.
#[must_use]
pub fn entered(migration: &Migration) -> Event {
    let (type_, note) = words(migration);
    Event {
        type_,
        reason: format!("Migration{}", migration.phase),
        note: Some(shortened(note)),
        action: "Migrate".to_owned(),
        secondary: None,
    }
}

/// Warning: not what the user asked for.
fn words(migration: &Migration) -> (EventType, String) {
    let target = &migration.request.target;
    let source = migration.plan.as_ref().map_or("", |p| p.source.0.as_str());
    let reason = match &migration.reason {
        Some(reason) => reason.to_string(),
        None => "no reason is known".to_owned(),
    };
    let freeze = match migration.freeze_ms() {
        Some(ms) => format!(" after a freeze of {}", super::status::duration(ms)),
        None => String::new(),
    };
    let node = migration
        .restored
        .as_ref()
        .map_or("", |r| r.node.0.as_str());
    let refusals: Vec<_> = migration.refusals.iter().map(ToString::to_string).collect();
    let refusals = refusals.join("; ");
    let (normal, warning) = (EventType::Normal, EventType::Warning);
    match migration.phase {
        Phase::Planned => (normal, format!("will be moved from {source} to {target}")),
        Phase::Preparing => (normal, format!("its images are brought to {target}")),
        Phase::Copying => (normal, format!("its memory is sent ahead to {target}")),
        Phase::Holding => (normal, format!("is frozen on {source} and stored")),
        Phase::Delivering => (normal, format!("its checkpoint is brought to {target}")),
        Phase::Restoring => (normal, format!("is restored on {target}")),
        Phase::Rescuing => (
            warning,
            format!("is restored, but not on {target}: {reason}"),
        ),
        Phase::Retiring => (normal, format!("is tidied up behind on {source}")),
        Phase::Releasing => (warning, format!("is released on {source}: {reason}")),
        Phase::Succeeded => (normal, format!("runs on {target}{freeze}")),
        Phase::RolledBack => (warning, format!("stays on {source}: {reason}")),
        Phase::Rescued => (
            warning,
            format!("runs on {node}{freeze}, not on {target}: {reason}"),
        ),
        Phase::Refused => (warning, format!("is not moved: {refusals}")),
        Phase::Previewed => (normal, format!("could be moved from {source} to {target}")),
        Phase::Abandoned => (warning, format!("was deleted while it was moved: {reason}")),
    }
}

/// Cut at a character's border.
fn shortened(mut note: String) -> String {
    const ELLIPSIS: char = '…';
    if note.len() > NOTE_BYTES_MAX {
        let room = NOTE_BYTES_MAX - ELLIPSIS.len_utf8();
        let end = (0..=room).rev().find(|at| note.is_char_boundary(*at));
        note.truncate(end.unwrap_or(0));
        note.push(ELLIPSIS);
    }
    note
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn notes_fit_into_an_event() {
        assert_eq!(shortened("short".to_owned()), "short");
        for text in ["x".repeat(3000), "ü".repeat(3000)] {
            let note = shortened(text);
            assert!(note.len() <= 1024 && note.len() > 1020 && note.ends_with('…'));
        }
    }
}
