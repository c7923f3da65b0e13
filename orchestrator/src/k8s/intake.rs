//! Hears of `PodMigration` objects and passes on what they ask for.
//!
//! ```text
//! watch ─► not ended, no finalizer ─► put it on ─► (seen again by the watch)
//!          finalizer on            ─► Submit
//!          being deleted           ─► Abort
//! ```
//!
//! The finalizer comes before the submission: an object whose migration is in the log can't vanish before the end is
//! known. The log takes a submission of a known id for what it is, so passing on too often is harmless, and after every
//! interruption everything is passed on again. Only the leader should run this; a deposed one's submissions are stopped
//! by the log.

use futures::{TryStreamExt, pin_mut};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use orchestrator_core::{
    id::{MigrationId, NodeName, PodRef},
    migration::PHASES,
    plan::Request,
};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    call::{CallError, bounded, if_there},
    pods::FIELD_MANAGER,
    resource::{FINALIZER, PodMigration, REQUESTED_AT},
};

/// Creation times are cut to the second, and a user's clock is a little off.
const NOTE_TRUSTED_MS: u64 = 2_000;

/// What an object asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Intake {
    /// Plan it and submit it, unless the log has it.
    Submit(Asked),
    /// It is being deleted: abort it. When the log has never heard of it, [`forget`] it.
    Abort {
        /// The object's UID.
        id: MigrationId,
        /// Its namespace and name.
        object: PodRef,
    },
}

/// A migration as asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The object's UID.
    pub id: MigrationId,
    /// Its namespace and name.
    pub object: PodRef,
    /// Its spec.
    pub request: Request,
    /// When it was asked for, milliseconds since 1970: the trace's beginning.
    pub asked_ms: u64,
    /// The phase its status shows, "" at first. Shown but unknown to the log: the log was lost.
    pub phase_shown: String,
}

/// What is to be done about an object as seen.
#[derive(Clone, Debug, PartialEq)]
enum Due {
    Nothing,
    AddFinalizer,
    Tell(Box<Intake>),
}

/// Watches until the receiver is gone. The watch mends itself; what can't be written now is written when the object is
/// seen again.
pub async fn run(client: Client, out: mpsc::Sender<Intake>) {
    let all: Api<PodMigration> = Api::all(client.clone());
    let objects = watcher(all, watcher::Config::default())
        .default_backoff()
        .applied_objects();
    pin_mut!(objects);
    loop {
        let seen = tokio::select! {
            () = out.closed() => return,
            seen = objects.try_next() => seen,
        };
        let object = match seen {
            Ok(Some(object)) => object,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the watch on PodMigrations was interrupted");
                continue;
            }
        };
        match due(&object) {
            Due::Nothing => {}
            Due::AddFinalizer => {
                if let Err(error) = add_finalizer(&client, &object).await {
                    tracing::warn!(%error, "a PodMigration waits for its finalizer");
                }
            }
            Due::Tell(intake) => {
                if out.send(*intake).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn due(object: &PodMigration) -> Due {
    let Some(id) = object.uid().map(MigrationId) else {
        return Due::Nothing;
    };
    let place = place(object);
    let finalizer = object.finalizers().iter().any(|f| f == FINALIZER);
    if object.metadata.deletion_timestamp.is_some() {
        return match finalizer {
            true => Due::Tell(Box::new(Intake::Abort { id, object: place })),
            false => Due::Nothing,
        };
    }
    let phase_shown = object.status.as_ref().map_or("", |s| s.phase.as_str());
    // The log forgets old migrations; one that has ended must not begin anew then.
    let ended = PHASES
        .iter()
        .any(|phase| phase.ended() && phase.to_string() == phase_shown);
    match (ended, finalizer) {
        (true, _) => Due::Nothing,
        (false, false) => Due::AddFinalizer,
        (false, true) => Due::Tell(Box::new(Intake::Submit(Asked {
            id,
            object: place,
            request: request(object),
            asked_ms: asked_ms(object),
            phase_shown: phase_shown.to_owned(),
        }))),
    }
}

fn place(object: &PodMigration) -> PodRef {
    PodRef {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

/// As the asker noted it. Without a note, or with one that the API server's clock contradicts, it is the second in
/// which the object was made.
fn asked_ms(object: &PodMigration) -> u64 {
    let created = object.metadata.creation_timestamp.as_ref();
    let created_ms = created
        .and_then(|time| u64::try_from(time.0.as_millisecond()).ok())
        .unwrap_or(0);
    let noted = object.annotations().get(REQUESTED_AT);
    noted
        .and_then(|text| text.parse::<u64>().ok())
        .map(|ns| ns / 1_000_000)
        .filter(|noted_ms| noted_ms.abs_diff(created_ms) <= NOTE_TRUSTED_MS)
        .unwrap_or(created_ms)
}

/// The spec as the planner reads it.
#[must_use]
pub fn request(object: &PodMigration) -> Request {
    let spec = &object.spec;
    Request {
        pod: PodRef {
            namespace: object.namespace().unwrap_or_default(),
            name: spec.pod.clone(),
        },
        target: NodeName(spec.target_node.clone()),
        freeze_max_ms: spec.max_freeze_milliseconds,
        timeout_ms: spec
            .timeout_seconds
            .map(|seconds| seconds.saturating_mul(1000)),
        dry_run: spec.dry_run,
    }
}

/// As seen: one that was changed since is seen again.
async fn add_finalizer(client: &Client, object: &PodMigration) -> Result<(), CallError> {
    let mut finalizers = object.finalizers().to_vec();
    finalizers.push(FINALIZER.to_owned());
    set_finalizers(client, object, &finalizers).await
}

/// Takes the finalizer off, so that the object may go. Repeating it changes nothing.
///
/// # Errors
/// When the API server gives no clear answer.
pub async fn forget(client: &Client, id: &MigrationId, object: &PodRef) -> Result<(), CallError> {
    let api: Api<PodMigration> = Api::namespaced(client.clone(), &object.namespace);
    let call = api.get(&object.name);
    let Some(found) = if_there(bounded(format!("get podmigration {object}"), call).await)? else {
        return Ok(());
    };
    let ours = |f: &String| f == FINALIZER;
    if found.uid().as_ref() != Some(&id.0) || !found.finalizers().iter().any(ours) {
        return Ok(());
    }
    let rest: Vec<_> = found
        .finalizers()
        .iter()
        .filter(|f| !ours(f))
        .cloned()
        .collect();
    set_finalizers(client, &found, &rest).await
}

async fn set_finalizers(
    client: &Client,
    seen: &PodMigration,
    finalizers: &[String],
) -> Result<(), CallError> {
    let object = place(seen);
    let api: Api<PodMigration> = Api::namespaced(client.clone(), &object.namespace);
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let change = Patch::Merge(json!({ "metadata": {
        "resourceVersion": seen.resource_version(),
        "finalizers": finalizers,
    }}));
    let call = api.patch(&object.name, &params, &change);
    bounded(format!("set the finalizers of podmigration {object}"), call)
        .await
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(metadata: serde_json::Value, phase: &str) -> PodMigration {
        let mut object: PodMigration = serde_json::from_value(json!({
            "apiVersion": "longshore.dev/v1alpha1", "kind": "PodMigration",
            "metadata": { "name": "move-1", "namespace": "shop", "uid": "m1",
                "creationTimestamp": "2026-01-01T00:00:01Z" },
            "spec": { "pod": "web", "targetNode": "node2", "timeoutSeconds": 60, "maxFreezeMilliseconds": 900 },
            "status": { "phase": phase },
        }))
        .unwrap();
        let more: kube::api::ObjectMeta = serde_json::from_value(metadata).unwrap();
        object.metadata.finalizers = more.finalizers;
        object.metadata.deletion_timestamp = more.deletion_timestamp;
        object
    }

    fn ours() -> serde_json::Value {
        json!({ "finalizers": [FINALIZER] })
    }

    fn leaving() -> serde_json::Value {
        json!({ "finalizers": [FINALIZER], "deletionTimestamp": "2026-01-01T00:00:09Z" })
    }

    #[test]
    fn the_finalizer_comes_before_the_submission() {
        assert_eq!(due(&object(json!({}), "")), Due::AddFinalizer);
        let Due::Tell(told) = due(&object(ours(), "")) else {
            panic!("it should be submitted");
        };
        let Intake::Submit(asked) = *told else {
            panic!("it should be submitted");
        };
        assert_eq!(asked.request.pod.to_string(), "shop/web");
        assert_eq!(
            (asked.request.timeout_ms, asked.request.freeze_max_ms),
            (Some(60_000), Some(900))
        );
        assert_eq!(asked.asked_ms, 1_767_225_601_000);
    }

    #[test]
    fn the_askers_own_time_counts_unless_it_cannot_be_true() {
        let asked = |noted: &str| {
            let mut object = object(ours(), "");
            object
                .annotations_mut()
                .insert(REQUESTED_AT.to_owned(), noted.to_owned());
            asked_ms(&object)
        };
        assert_eq!(asked("1767225601640000000"), 1_767_225_601_640);
        // A day off, and no number.
        assert_eq!(asked("1767312001640000000"), 1_767_225_601_000);
        assert_eq!(asked("yesterday"), 1_767_225_601_000);
    }

    #[test]
    fn deleting_the_object_asks_for_an_abort() {
        let place = PodRef {
            namespace: "shop".into(),
            name: "move-1".into(),
        };
        let abort = Intake::Abort {
            id: "m1".into(),
            object: place,
        };
        assert_eq!(
            due(&object(leaving(), "Holding")),
            Due::Tell(Box::new(abort.clone()))
        );
        assert_eq!(
            due(&object(leaving(), "Succeeded")),
            Due::Tell(Box::new(abort))
        );
        let gone = json!({ "deletionTimestamp": "2026-01-01T00:00:09Z" });
        assert_eq!(
            due(&object(gone, "")),
            Due::Nothing,
            "nothing of ours is on it"
        );
    }

    #[test]
    fn a_migration_that_has_ended_never_begins_again() {
        for phase in [
            "Succeeded",
            "RolledBack",
            "Rescued",
            "Refused",
            "Previewed",
            "Abandoned",
        ] {
            assert_eq!(due(&object(json!({}), phase)), Due::Nothing);
            assert_eq!(due(&object(ours(), phase)), Due::Nothing);
        }
        assert!(matches!(due(&object(ours(), "Holding")), Due::Tell(_)));
    }
}
