//! The few writes to pods by which one pod takes another's place. The order is the safety:
//!
//! ```text
//! source   add_hold        finalizer: whoever deletes the pod now leaves an object we can see
//!          delete_source   1 mark it committed (resourceVersion: not if anything happened since we looked)
//!                          2 delete it (UID, no grace)
//!                          3 take the finalizer off: the name is free
//! target   create_target   1 make it, bound to no node: the name is the fence, there is one pod of it; held like the source
//!                          2 bind it to its node (UID, resourceVersion): only from here a kubelet may start it
//!          condemn         1 and 2 for a target that must not run; 3 only once it is proved that nothing of it does
//! undo     release_source  finalizer and notes off
//! ```
//!
//! A deletion that we did not mark is somebody else's, and is obeyed. One that falls between our mark and our delete
//! cannot be told from ours; it is taken for ours, for the other reading could lose a pod nobody deleted, after a crash
//! between 1 and 3. So the mark is the instant of the commit as Kubernetes sees it, and whoever deletes the pod later
//! has deleted an object that was already replaced.
//!
//! A creation whose answer was lost may be carried out later, when the name is free again: after the pod's user deleted it,
//! or in the middle of the next move. Nothing but its name could fence it, and so it is made to be harmless: nobody knows
//! its UID, so nobody binds it, and no scheduler cares for it. `remove_unbound` takes it away.
//!
//! Every function may be repeated, by another leader, too, and then finds its work done.

use k8s_openapi::{
    api::core::v1::{Binding, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use orchestrator_core::id::{MigrationId, PodRef, PodUid};
use serde_json::{Value, json};

use super::call::{CallError, bounded, if_there};

mod sight;

pub use sight::{SourceState, TargetContainer, TargetStatus, is_bound, node_for, target_status};
use sight::{annotation, held_for, is_unbound_of, source_state, uid_of};

/// Keeps the source's object, and thereby its name and the news of its deletion.
pub const HOLD_FINALIZER: &str = "longshore.dev/hold";
/// On the source: the migration that holds it.
pub const HELD_ANNOTATION: &str = "longshore.dev/held-for";
/// On the source: the migration that has committed and deletes it.
pub const COMMITTED_ANNOTATION: &str = "longshore.dev/committed";
/// On the target: the migration that made it. Not the same as the source's, or a source would pass for its target.
pub const MIGRATION_ANNOTATION: &str = "longshore.dev/migration";

/// On the target: the node it is for, also before it is bound.
pub const NODE_ANNOTATION: &str = "longshore.dev/node";

/// Who schedules the target. There is no such scheduler, so that all others leave the pod to us.
pub const SCHEDULER: &str = "longshore";

/// Who the managed fields say we are.
pub const FIELD_MANAGER: &str = "longshore";

/// Rounds of look and write before we give up for now. The kubelet writes a pod's status at most every second, a round
/// takes some 20 ms: two collisions in a row are rare, eight are a fault.
const ROUNDS_MAX: u32 = 8;

/// How deleting the source ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceDeleted {
    /// The object is gone and its name free, or taken by another pod already.
    Gone,
    /// Somebody else had deleted it before our commit; nothing was changed.
    PodDeleted,
}

/// Why there is no target pod.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The name belongs to a pod that is not this migration's.
    #[error("the name {pod} is taken by the pod with UID {uid}{why}")]
    Taken {
        /// Which name.
        pod: PodRef,
        /// By whom.
        uid: String,
        /// ", which is being deleted", or "".
        why: &'static str,
    },
    /// The call failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Writes pods, as one client.
#[derive(Clone)]
pub struct Pods {
    client: Client,
}

impl Pods {
    /// With a client whose `default_retry` is off.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn api(&self, pod: &PodRef) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &pod.namespace)
    }

    async fn get(&self, pod: &PodRef) -> Result<Option<Pod>, CallError> {
        let api = self.api(pod);
        if_there(bounded(format!("get pod {pod}"), api.get(&pod.name)).await)
    }

    /// Puts the hold's finalizer on the source. Present: it is held for this migration. Repeating it changes nothing.
    ///
    /// # Errors
    /// When the API server gives no clear answer.
    pub async fn add_hold(
        &self,
        pod: &PodRef,
        uid: &PodUid,
        migration: &MigrationId,
    ) -> Result<SourceState, CallError> {
        for round in 0..ROUNDS_MAX {
            let found = self.get(pod).await?;
            let state = source_state(found.as_ref(), uid, migration);
            let Some(object) = found.filter(|_| state == SourceState::Present) else {
                return Ok(state);
            };
            let mut finalizers = object.metadata.finalizers.clone().unwrap_or_default();
            let holder = annotation(&object, HELD_ANNOTATION);
            let held = holder == Some(&*migration.0);
            // What an earlier migration left is overwritten; but one that came while we were writing is newer than us.
            if round > 0 && !held && holder.is_some() {
                return Err(unsettled("hold", pod));
            }
            if held && finalizers.iter().any(|f| f == HOLD_FINALIZER) {
                return Ok(state);
            }
            finalizers.retain(|f| f != HOLD_FINALIZER);
            finalizers.push(HOLD_FINALIZER.to_owned());
            // A mark of an earlier migration would make this one's source look committed.
            let notes = json!({ HELD_ANNOTATION: migration.0, COMMITTED_ANNOTATION: null });
            let change = json!({ "annotations": notes, "finalizers": finalizers });
            if self.patch(pod, &object, "hold", change).await? {
                return Ok(SourceState::Present);
            }
        }
        Err(unsettled("hold", pod))
    }

    /// The source now.
    ///
    /// # Errors
    /// When the API server gives no clear answer.
    pub async fn source_state(
        &self,
        pod: &PodRef,
        uid: &PodUid,
        migration: &MigrationId,
    ) -> Result<SourceState, CallError> {
        Ok(source_state(self.get(pod).await?.as_ref(), uid, migration))
    }

    /// Marks, deletes and lets go of the source, or of a target that is held like it. Repeating it goes on where it
    /// stopped.
    ///
    /// # Errors
    /// When the API server gives no clear answer, or something else keeps the object.
    pub async fn delete_source(
        &self,
        pod: &PodRef,
        uid: &PodUid,
        migration: &MigrationId,
    ) -> Result<SourceDeleted, CallError> {
        self.delete_held(pod, uid, migration, true).await
    }

    /// Marks and deletes a target that is held like a source, and keeps its object: as long as something of it may run,
    /// whoever looks next must find which one that was. Gone: it is deleted, by us.
    ///
    /// # Errors
    /// When the API server gives no clear answer.
    pub async fn condemn(
        &self,
        pod: &PodRef,
        uid: &PodUid,
        migration: &MigrationId,
    ) -> Result<SourceDeleted, CallError> {
        self.delete_held(pod, uid, migration, false).await
    }

    async fn delete_held(
        &self,
        pod: &PodRef,
        uid: &PodUid,
        migration: &MigrationId,
        lets_go: bool,
    ) -> Result<SourceDeleted, CallError> {
        for _ in 0..ROUNDS_MAX {
            let found = self.get(pod).await?;
            match (source_state(found.as_ref(), uid, migration), found) {
                (SourceState::Gone | SourceState::OtherPod, _) | (_, None) => {
                    return Ok(SourceDeleted::Gone);
                }
                (SourceState::Deleting, Some(_)) => return Ok(SourceDeleted::PodDeleted),
                (SourceState::Leaving, Some(_)) if !lets_go => return Ok(SourceDeleted::Gone),
                (SourceState::Present, Some(object)) => {
                    if annotation(&object, COMMITTED_ANNOTATION) == Some(&*migration.0) {
                        self.delete(pod, uid).await?;
                    } else if !held_for(&object, migration) {
                        // Undone meanwhile by a newer leader: the pod runs, and a late delete would lose it.
                        return Err(CallError::Unknown {
                            doing: format!("delete pod {pod}"),
                            why: "it is not held for this migration any more".to_owned(),
                        });
                    } else {
                        let notes = json!({ COMMITTED_ANNOTATION: migration.0 });
                        self.patch(pod, &object, "commit", json!({ "annotations": notes }))
                            .await?;
                    }
                }
                (SourceState::Leaving, Some(object)) => {
                    let ours = |f: &String| f == HOLD_FINALIZER;
                    let finalizers = object.metadata.finalizers.clone().unwrap_or_default();
                    if finalizers.iter().any(ours) {
                        let rest: Vec<_> = finalizers.into_iter().filter(|f| !ours(f)).collect();
                        self.patch(pod, &object, "let go of", json!({ "finalizers": rest }))
                            .await?;
                    } else {
                        // Somebody's grace period is still running: ours is none.
                        self.delete(pod, uid).await?;
                    }
                }
            }
        }
        Err(unsettled("delete", pod))
    }

    /// Takes finalizer and notes off the source: it is an ordinary pod again, or, deleted by somebody, free to go.
    /// Repeating it changes nothing; another migration's hold is left alone.
    ///
    /// # Errors
    /// When the API server gives no clear answer.
    pub async fn release_source(
        &self,
        pod: &PodRef,
        uid: &PodUid,
        migration: &MigrationId,
    ) -> Result<(), CallError> {
        for _ in 0..ROUNDS_MAX {
            let Some(object) = self.get(pod).await? else {
                return Ok(());
            };
            if !held_for(&object, migration) || object.metadata.uid.as_ref() != Some(&uid.0) {
                return Ok(());
            }
            let finalizers = object.metadata.finalizers.iter().flatten();
            let rest: Vec<_> = finalizers.filter(|f| *f != HOLD_FINALIZER).collect();
            let notes = json!({ HELD_ANNOTATION: null, COMMITTED_ANNOTATION: null });
            let change = json!({ "annotations": notes, "finalizers": rest });
            if self.patch(pod, &object, "release", change).await? {
                return Ok(());
            }
        }
        Err(unsettled("release", pod))
    }

    /// Makes the target pod (see `target_pod::with_images`), binds it to its node, and answers its UID. Made already by
    /// this migration for this node: done.
    ///
    /// # Errors
    /// Taken when the name is another's; otherwise as the call's. A refusal may pass: a quota counts the source for some
    /// seconds after it is gone.
    pub async fn create_target(&self, pod: &PodRef, target: &Pod) -> Result<PodUid, CreateError> {
        let made = self.make_target(pod, target).await?;
        if let (false, Some(node)) = (is_bound(&made), node_for(target)) {
            self.bind(pod, &made, node).await?;
        }
        Ok(uid_of(&made))
    }

    /// From here its kubelet may start it. It is bound as it was seen: one that was given up meanwhile is another version.
    /// A refusal is no word on the pod: somebody else may have bound or deleted it, and whoever looks again will see.
    async fn bind(&self, pod: &PodRef, made: &Pod, node: &str) -> Result<(), CallError> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.name.clone()),
                namespace: Some(pod.namespace.clone()),
                uid: made.metadata.uid.clone(),
                resource_version: made.metadata.resource_version.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let (api, params) = (self.api(pod), written());
        let doing = format!("bind pod {pod} to node {node}");
        let call = api.create_subresource::<_, Value>("binding", &pod.name, &params, &binding);
        match bounded(doing.clone(), call).await {
            Ok(_) => Ok(()),
            Err(CallError::Refused { message, .. }) => Err(CallError::Unknown {
                doing,
                why: message,
            }),
            Err(unknown @ CallError::Unknown { .. }) => Err(unknown),
        }
    }

    async fn make_target(&self, pod: &PodRef, target: &Pod) -> Result<Pod, CreateError> {
        let api = self.api(pod);
        let params = written();
        let answer = bounded(format!("create pod {pod}"), api.create(&params, target)).await;
        let refused = match answer {
            Ok(made) => return Ok(made),
            Err(error) if error.code() == Some(409) => error,
            Err(error) => return Err(error.into()),
        };
        // Gone between the two calls: the refusal stands, the next attempt will succeed.
        let Some(there) = self.get(pod).await? else {
            return Err(refused.into());
        };
        let migration = annotation(target, MIGRATION_ANNOTATION);
        let same = migration.is_some()
            && annotation(&there, MIGRATION_ANNOTATION) == migration
            && node_for(&there) == node_for(target);
        let deleting = there.metadata.deletion_timestamp.is_some();
        let given_up = annotation(&there, COMMITTED_ANNOTATION).is_some();
        if same && !deleting && !given_up {
            return Ok(there);
        }
        // Another migration's late creation: no kubelet has it, and none will. The name is free again then.
        if let Some(other) = annotation(&there, MIGRATION_ANNOTATION)
            && Some(other) != migration
            && is_unbound_of(&there, &other.into())
        {
            self.remove_unbound(pod, &uid_of(&there), &other.into())
                .await?;
            return Err(refused.into());
        }
        Err(CreateError::Taken {
            pod: pod.clone(),
            uid: uid_of(&there).0,
            why: if deleting {
                ", which is being deleted"
            } else {
                ""
            },
        })
    }

    /// Removes a target that was made for this migration and never bound. Repeating it goes on where it stopped; another
    /// pod of the name is left alone.
    ///
    /// Order: the mark, or a leader that finds the object being deleted would take it for its user's doing; it makes another
    /// version, so whoever was about to bind it can't. Then the deletion, and only then its name.
    ///
    /// # Errors
    /// When the API server gives no clear answer, or the pod is bound: then more is to be proved before it may go.
    pub async fn remove_unbound(
        &self,
        pod: &PodRef,
        uid: &PodUid,
        migration: &MigrationId,
    ) -> Result<(), CallError> {
        for _ in 0..ROUNDS_MAX {
            let Some(object) = self.get(pod).await?.filter(|pod| uid_of(pod) == *uid) else {
                return Ok(());
            };
            if !is_unbound_of(&object, migration) {
                return Err(CallError::Unknown {
                    doing: format!("remove pod {pod}"),
                    why: "it is bound by now, or not held for this migration".to_owned(),
                });
            }
            if object.metadata.deletion_timestamp.is_some() {
                let finalizers = object.metadata.finalizers.iter().flatten();
                let rest: Vec<_> = finalizers.filter(|f| *f != HOLD_FINALIZER).collect();
                self.patch(pod, &object, "let go of", json!({ "finalizers": rest }))
                    .await?;
            } else if annotation(&object, COMMITTED_ANNOTATION) == Some(&*migration.0) {
                self.delete(pod, uid).await?;
            } else {
                let notes = json!({ COMMITTED_ANNOTATION: migration.0 });
                self.patch(pod, &object, "give up", json!({ "annotations": notes }))
                    .await?;
            }
        }
        Err(unsettled("remove", pod))
    }

    /// With UID and without grace. Not there, or another pod there by now, is done.
    async fn delete(&self, pod: &PodRef, uid: &PodUid) -> Result<(), CallError> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(uid.0.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = self.api(pod);
        match bounded(format!("delete pod {pod}"), api.delete(&pod.name, &params)).await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Changes the metadata of the object as it was seen; false when it has changed since, or is gone.
    async fn patch(
        &self,
        pod: &PodRef,
        seen: &Pod,
        verb: &str,
        mut metadata: Value,
    ) -> Result<bool, CallError> {
        metadata["resourceVersion"] = json!(seen.metadata.resource_version);
        let change = Patch::Merge(json!({ "metadata": metadata }));
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let api = self.api(pod);
        let call = api.patch(&pod.name, &params, &change);
        match bounded(format!("{verb} pod {pod}"), call).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn written() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

fn unsettled(verb: &str, pod: &PodRef) -> CallError {
    CallError::Unknown {
        doing: format!("{verb} pod {pod}"),
        why: format!("it is still there, or changed each time, after {ROUNDS_MAX} rounds"),
    }
}

#[cfg(test)]
mod tests;
