//! Hears of `PodMigration` objects and passes on what they ask for.
//!
//! ```text
//! watch ─► not ended, no finalizer ─► put it on ─► (seen again by the watch)
//!          finalizer on            ─► Submit
//!          being deleted           ─► Abort
//!          dead nodes noted        ─► DeclareDead
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
    resource::{DEAD_NODES, FINALIZER, PodMigration, REQUESTED_AT},
};

/// The way to the API server takes milliseconds, the creation's seconds are cut off, clocks differ by less than this.
const NOTE_FITS_WITHIN_NS: u64 = 5_000_000_000;

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
    /// A person says that this node is dead.
    DeclareDead {
        /// The object's UID.
        id: MigrationId,
        /// Which node.
        node: NodeName,
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
    /// When the user asked, nanoseconds since 1970: the trace's beginning.
    pub asked_ns: u64,
    /// The phase its status shows, "" at first. Shown but unknown to the log: the log was lost.
    pub phase_shown: String,
}

/// What is to be done about an object as seen.
#[derive(Clone, Debug, PartialEq)]
enum Due {
    Nothing,
    AddFinalizer,
    Tell(Vec<Intake>),
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
            Due::Tell(all) => {
                for intake in all {
                    if out.send(intake).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

fn due(object: &PodMigration) -> Due {
    let Some(id) = object.uid().map(|uid| MigrationId(uid.into())) else {
        return Due::Nothing;
    };
    let place = place(object);
    let finalizer = object.finalizers().iter().any(|f| f == FINALIZER);
    let mut told = dead_nodes(object, &id);
    if object.metadata.deletion_timestamp.is_some() {
        told.push(Intake::Abort { id, object: place });
        return match finalizer {
            true => Due::Tell(told),
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
        (false, true) => {
            let submit = Intake::Submit(Asked {
                id,
                object: place,
                request: request(object),
                asked_ns: asked_ns(object),
                phase_shown: phase_shown.to_owned(),
            });
            told.insert(0, submit);
            Due::Tell(told)
        }
    }
}

/// What `migrate resolve` noted: names of nodes with commas between.
fn dead_nodes(object: &PodMigration, id: &MigrationId) -> Vec<Intake> {
    let noted = object.annotations().get(DEAD_NODES);
    noted
        .iter()
        .flat_map(|names| names.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(|name| Intake::DeclareDead {
            id: id.clone(),
            node: NodeName::from(name),
        })
        .collect()
}

fn place(object: &PodMigration) -> PodRef {
    PodRef {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

/// The CLI's note when it fits the object's creation, which is known to the second; else the creation. Anybody may
/// write the note, and a user's clock may be wrong: either would stretch the trace over years.
fn asked_ns(object: &PodMigration) -> u64 {
    let created = object.metadata.creation_timestamp.as_ref();
    let created_ns = created
        .and_then(|time| u64::try_from(time.0.as_nanosecond()).ok())
        .unwrap_or(0);
    let noted = object.annotations().get(REQUESTED_AT);
    noted
        .and_then(|ns| ns.parse().ok())
        .filter(|ns| created_ns.abs_diff(*ns) < NOTE_FITS_WITHIN_NS)
        .unwrap_or(created_ns)
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
        rounds_max: spec.rounds,
        keep_checkpoint_ms: spec
            .keep_checkpoint_seconds
            .map(|seconds| seconds.saturating_mul(1000)),
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
    if found.uid().as_deref() != Some(&id.0) || !found.finalizers().iter().any(ours) {
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
        let [Intake::Submit(asked)] = told.as_slice() else {
            panic!("it should be submitted");
        };
        assert_eq!(asked.request.pod.to_string(), "shop/web");
        assert_eq!(
            (asked.request.timeout_ms, asked.request.freeze_max_ms),
            (Some(60_000), Some(900))
        );
        assert_eq!(asked.asked_ns, 1_767_225_601_000_000_000);
    }

    #[test]
    fn the_trace_begins_when_the_user_asked_unless_that_is_impossible() {
        let noted = |ns: &str| {
            let mut object = object(json!({}), "");
            let note = (REQUESTED_AT.to_owned(), ns.to_owned());
            object.metadata.annotations = Some([note].into());
            asked_ns(&object)
        };
        let created = 1_767_225_601_000_000_000;
        assert_eq!(noted("1767225600912345678"), 1_767_225_600_912_345_678);
        for impossible in ["0", "soon", "-1", "1767229999000000000"] {
            assert_eq!(noted(impossible), created, "{impossible}");
        }
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
            Due::Tell(vec![abort.clone()])
        );
        assert_eq!(due(&object(leaving(), "Succeeded")), Due::Tell(vec![abort]));
        let gone = json!({ "deletionTimestamp": "2026-01-01T00:00:09Z" });
        assert_eq!(
            due(&object(gone, "")),
            Due::Nothing,
            "nothing of ours is on it"
        );
    }

    #[test]
    fn nodes_noted_as_dead_are_told_also_while_the_object_is_being_deleted() {
        let dead = |node: &str| Intake::DeclareDead {
            id: "m1".into(),
            node: node.into(),
        };
        for metadata in [ours(), leaving()] {
            let mut object = object(metadata, "Restoring");
            let note = (DEAD_NODES.to_owned(), "node1, node2,".to_owned());
            object.metadata.annotations = Some([note].into());
            let Due::Tell(told) = due(&object) else {
                panic!("it should be told");
            };
            assert!(told.contains(&dead("node1")) && told.contains(&dead("node2")));
            assert_eq!(told.len(), 3);
        }
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
