//! Performs steps: asks workers and Kubernetes, and says how it ended.
//!
//! ```text
//! recheck, prepare  (before.rs)   both nodes, base images, our mark on the source's object
//! hold, deliver     (freeze.rs)   source worker: held and durable; target worker: every byte
//! restore           (commit.rs)   confirm the hold, delete the source's object, make the target's, prove restored
//! rescue            (rescue.rs)   on the source's node, the target, or any other, one after the other
//! retire, release   (after.rs)    tidied up, or undone
//! ```
//!
//! Every step may be performed twice, by two leaders, and may die between any two of its lines: each line asks what
//! is true before it acts, or is answered by a worker's journal. The rule for outcomes: `Failed` only where nothing
//! of the step can still run; whatever can't be told is `Unknown`.

mod after;
mod before;
mod commit;
mod copy;
mod freeze;
mod rescue;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::plan as tests_plan;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use orchestrator_core::{
    id::{MigrationId, NodeName, PodUid},
    migration::{Image, Migration, Outcome, Span, Step},
    plan::Plan,
    refusal::Finding,
    state::Due,
};
use proto::worker::{self as wire, StepReport, answer, question, step_report, step_request};

use crate::{
    api,
    clock::TimeOfDay,
    driver::Perform,
    workers::{CallError, Clock, Workers},
};

/// A question is answered from memory, /proc or one call to the runtime.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// A short step: pausing, killing, retagging. The worker gives up itself before.
const SHORT_STEP_WITHIN: Duration = Duration::from_secs(30);

/// A step that moves bytes: 100 GiB at 100 MiB/s. A broken stream ends the wait at once.
const LONG_STEP_WITHIN: Duration = Duration::from_secs(1_100);

/// The span of a node's pull of base images. When that failed, its attributes are `node` and `error`.
pub const PULL_SPAN: &str = "pull base images";

/// Source pod, as Kubernetes has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceObject {
    /// It is there, and nobody is deleting it.
    Present,
    /// Somebody else deletes it (or deleted it).
    Deleted,
}

/// What became of the deletion at the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// Its object is gone, by us.
    Done,
    /// Somebody else had deleted it before us: the user's deletion is obeyed.
    ByUser,
}

/// A restored pod's object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredObject {
    /// Its UID.
    pub uid: PodUid,
    /// Where it is bound, or is to be.
    pub node: NodeName,
    /// It is: its kubelet may start it at any moment. Until then nothing of it runs.
    pub bound: bool,
    /// We have given it up: whoever is deleting it, it is us.
    pub given_up: bool,
    /// Somebody is deleting it.
    pub deleting: bool,
    /// Its kubelet has seen it.
    pub taken_up: bool,
    /// Why a container can't be restored: it won't get better by waiting.
    pub broken: Option<String>,
    /// Why it waits, for the user.
    pub waiting: Option<String>,
    /// Condition Ready is True.
    pub ready: bool,
}

impl RestoredObject {
    fn deleted_by_user(&self) -> bool {
        self.deleting && !self.given_up
    }
}

/// Kubernetes said no, or nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// It refused, and nothing was done.
    #[error("Kubernetes refused to {what}: {reason}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its words.
        reason: String,
    },
    /// It is not known whether it was done.
    #[error("Kubernetes gave no clear answer to {what}: {reason}")]
    Unclear {
        /// What was asked.
        what: &'static str,
        /// What happened.
        reason: String,
    },
}

/// The few things we ask of Kubernetes. Every method may be called twice.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// Is the plan's source pod (that UID) there?
    async fn source(&self, plan: &Plan) -> Result<SourceObject, ClusterError>;
    /// Why the target node would not take the pod now.
    async fn target_refuses(&self, plan: &Plan) -> Result<Option<Finding>, ClusterError>;
    /// Marks the source's object, so that its deletion by somebody else can't go unseen.
    async fn mark_source(
        &self,
        plan: &Plan,
        id: &MigrationId,
    ) -> Result<SourceObject, ClusterError>;
    /// Takes the mark away again.
    async fn unmark_source(&self, plan: &Plan, id: &MigrationId) -> Result<(), ClusterError>;
    /// Deletes the source's object for good, that UID and no other.
    async fn delete_source(&self, plan: &Plan, id: &MigrationId) -> Result<Deletion, ClusterError>;
    /// Nodes other than the plan's two that would take the pod, in a fixed order.
    async fn other_nodes(&self, plan: &Plan) -> Result<Vec<NodeName>, ClusterError>;
    /// Makes the restored pod and binds it to this node, or finds that done.
    async fn create(
        &self,
        plan: &Plan,
        id: &MigrationId,
        node: &NodeName,
        images: &[Image],
    ) -> Result<PodUid, ClusterError>;
    /// The restored pod of this migration, wherever it is.
    async fn restored(
        &self,
        plan: &Plan,
        id: &MigrationId,
    ) -> Result<Option<RestoredObject>, ClusterError>;
    /// The log knows that this pod was restored: its deletion needs no noticing any more.
    async fn settle_restored(
        &self,
        plan: &Plan,
        uid: &PodUid,
        id: &MigrationId,
    ) -> Result<(), ClusterError>;
    /// Deletes a restored pod that must not run; its object stays until [`Cluster::delete_restored`].
    async fn condemn_restored(
        &self,
        plan: &Plan,
        uid: &PodUid,
        id: &MigrationId,
    ) -> Result<Deletion, ClusterError>;
    /// Deletes a restored pod of which nothing runs, and lets its object go.
    async fn delete_restored(
        &self,
        plan: &Plan,
        uid: &PodUid,
        id: &MigrationId,
    ) -> Result<Deletion, ClusterError>;
    /// Removes a restored pod that was never bound. Refused when it is by now.
    async fn remove_unbound(
        &self,
        plan: &Plan,
        uid: &PodUid,
        id: &MigrationId,
    ) -> Result<(), ClusterError>;
    /// Lets a node's kubelet pull these containers' images with the pod's own secrets; the error is the kubelet's.
    async fn prepull(
        &self,
        plan: &Plan,
        id: &MigrationId,
        node: &NodeName,
        containers: &[String],
    ) -> Result<(), ClusterError>;
    /// Removes what a pull that died has left. Finding nothing is the rule.
    async fn remove_prepull(&self, plan: &Plan, id: &MigrationId) -> Result<(), ClusterError>;
}

/// Calls to workers. The second implementation is the tests' node.
#[async_trait]
pub trait Nodes: Send + Sync {
    /// See [`Workers::step`].
    async fn step(
        &self,
        node: &NodeName,
        migration: &MigrationId,
        revision: u64,
        kind: step_request::Kind,
        within: Duration,
    ) -> Result<StepReport, CallError>;
    /// See [`Workers::ask`].
    async fn ask(
        &self,
        node: &NodeName,
        kind: question::Kind,
        within: Duration,
    ) -> Result<answer::Kind, CallError>;
    /// See [`Workers::clock`].
    fn clock(&self, node: &NodeName) -> Clock;
}

#[async_trait]
impl Nodes for Workers {
    async fn step(
        &self,
        node: &NodeName,
        migration: &MigrationId,
        revision: u64,
        kind: step_request::Kind,
        within: Duration,
    ) -> Result<StepReport, CallError> {
        Workers::step(self, node, &migration.0, revision, kind, within).await
    }

    async fn ask(
        &self,
        node: &NodeName,
        kind: question::Kind,
        within: Duration,
    ) -> Result<answer::Kind, CallError> {
        Workers::ask(self, node, kind, within).await
    }

    fn clock(&self, node: &NodeName) -> Clock {
        Workers::clock(self, node)
    }
}

/// The world that steps are performed on.
#[derive(Clone)]
pub struct World {
    /// Kubernetes.
    pub cluster: Arc<dyn Cluster>,
    /// The workers.
    pub nodes: Arc<dyn Nodes>,
    /// What time of day it is.
    pub clock: Arc<dyn TimeOfDay>,
}

impl World {
    fn act<'a>(&'a self, migration: &'a Migration, plan: &'a Plan, due: &'a Due) -> Act<'a> {
        Act {
            world: self,
            migration,
            plan,
            due,
            spans: Vec::new(),
        }
    }
}

#[async_trait]
impl Perform for World {
    async fn perform(&self, due: &Due, migration: &Migration) -> (Outcome, Vec<Span>) {
        let Some(plan) = &migration.plan else {
            return (
                Outcome::Unknown(Finding::new("NoPlan", "a step is due without a plan", "")),
                Vec::new(),
            );
        };
        let mut act = self.act(migration, plan, due);
        let ended = match due.step {
            Step::Recheck => act.recheck().await,
            Step::Prepare => act.prepare().await,
            Step::Copy => act.copy().await,
            Step::Hold => act.hold().await,
            Step::Deliver => act.deliver().await,
            Step::Restore => act.restore().await,
            Step::Rescue => act.rescue().await,
            Step::Retire => act.retire().await,
            Step::Release => act.release().await,
        };
        let outcome = ended.unwrap_or_else(|Ended(outcome)| outcome);
        (outcome, act.spans)
    }
}

/// Ends a step early with this outcome: the error type of its lines, so that `?` reads as "unless it ends here".
struct Ended(Outcome);

impl Ended {
    fn failed(code: &str, message: impl Into<String>) -> Self {
        Self(Outcome::Failed(Finding::new(code, message, "")))
    }

    fn unknown(code: &str, message: impl Into<String>) -> Self {
        Self(Outcome::Unknown(Finding::new(code, message, "")))
    }

    fn pod_deleted(plan: &Plan) -> Self {
        Self(Outcome::PodDeleted(Finding::new(
            "PodDeleted",
            format!(
                "the pod {} was deleted meanwhile; the deletion is obeyed",
                plan.pod
            ),
            "",
        )))
    }
}

impl From<ClusterError> for Ended {
    /// Without more knowledge a refusal by Kubernetes is as unknown as silence: the next ask may be taken.
    fn from(error: ClusterError) -> Self {
        Self::unknown("KubernetesUnclear", error.to_string())
    }
}

/// One performance of one step.
struct Act<'a> {
    world: &'a World,
    migration: &'a Migration,
    plan: &'a Plan,
    due: &'a Due,
    spans: Vec<Span>,
}

impl Act<'_> {
    fn is_dead(&self, node: &NodeName) -> bool {
        self.migration.is_dead(node)
    }

    /// A worker gave no answer: what that leaves unknown, and how it can be settled.
    fn unreached(&self, node: &NodeName, error: &CallError) -> Ended {
        let code = match error {
            CallError::NotConnected { .. } => "WorkerNotConnected",
            CallError::Lost { .. } => "WorkerLost",
            CallError::TimedOut { .. } => "WorkerTimedOut",
            CallError::Refused { .. } => "WorkerCannotTell",
        };
        let which = if *node == self.plan.source {
            "--source-is-dead"
        } else {
            "--target-is-dead"
        };
        Ended(Outcome::Unknown(Finding::new(
            code,
            error.to_string(),
            format!(
                "it is asked again until it answers: look at node {node} and its worker's pod; if that node is powered \
                 off or destroyed, and only then: migrate resolve {} {which}",
                self.migration.object.name
            ),
        )))
    }

    /// Asks a worker for a step; its spans go into the trace.
    async fn step(
        &mut self,
        node: &NodeName,
        kind: step_request::Kind,
        within: Duration,
    ) -> Result<StepReport, Ended> {
        let report = self
            .world
            .nodes
            .step(node, &self.due.id, self.due.revision.0, kind, within)
            .await
            .map_err(|error| self.unreached(node, &error))?;
        self.spans.extend(api::spans(
            node,
            self.world.nodes.clock(node),
            &report.spans,
        ));
        match report.outcome() {
            step_report::Outcome::Stale => Err(Ended(Outcome::Forgotten(Finding::new(
                "WorkerForgot",
                format!(
                    "the worker of node {node} refused revision {}: {}",
                    self.due.revision, report.detail
                ),
                "",
            )))),
            step_report::Outcome::Unknown | step_report::Outcome::Unspecified => Err(
                Ended::unknown("WorkerUnsure", format!("node {node}: {}", report.detail)),
            ),
            step_report::Outcome::Done | step_report::Outcome::Failed => Ok(report),
        }
    }

    /// The same, for steps that must be done: `FAILED` ends the performance.
    async fn must(
        &mut self,
        node: &NodeName,
        kind: step_request::Kind,
        within: Duration,
        code: &str,
    ) -> Result<StepReport, Ended> {
        let report = self.step(node, kind, within).await?;
        match report.outcome() {
            step_report::Outcome::Done => Ok(report),
            step_report::Outcome::Failed
            | step_report::Outcome::Stale
            | step_report::Outcome::Unknown
            | step_report::Outcome::Unspecified => Err(Ended::failed(
                code,
                format!("node {node}: {}", report.detail),
            )),
        }
    }

    async fn ask(&self, node: &NodeName, kind: question::Kind) -> Result<answer::Kind, Ended> {
        let answered = self.world.nodes.ask(node, kind, ASK_WITHIN).await;
        answered.map_err(|error| self.unreached(node, &error))
    }

    /// Notes how long something took that we did ourselves, directly below the phase.
    fn span(&mut self, name: &str, start_unix_ns: u64) {
        self.spans.push(Span {
            name: name.to_owned(),
            place: "orchestrator".to_owned(),
            parent: String::new(),
            start_unix_ns,
            end_unix_ns: self.world.clock.unix_ns(),
            attributes: BTreeMap::new(),
        });
    }

    /// The pod as workers of the source know it.
    fn source_pod(&self) -> wire::Pod {
        self.pod(self.plan.uid.0.clone(), true)
    }

    /// The restored pod as workers know it: another UID, containers without ids yet.
    fn restored_pod(&self, uid: &PodUid) -> wire::Pod {
        self.pod(uid.0.clone(), false)
    }

    fn pod(&self, uid: String, with_ids: bool) -> wire::Pod {
        let containers = self
            .plan
            .containers
            .iter()
            .map(|container| wire::Container {
                name: container.name.clone(),
                image: container.image.clone(),
                image_digest: container.image_digest.clone(),
                container_id: if with_ids {
                    container.container_id.clone()
                } else {
                    String::new()
                },
            });
        wire::Pod {
            namespace: self.plan.pod.namespace.clone(),
            name: self.plan.pod.name.clone(),
            uid,
            containers: containers.collect(),
            pod_ip: if with_ids {
                self.plan.pod_ip.clone()
            } else {
                String::new()
            },
        }
    }
}

fn wire_images(images: &[Image]) -> Vec<wire::DeliveredImage> {
    images
        .iter()
        .map(|image| wire::DeliveredImage {
            container: image.container.clone(),
            reference: image.reference.clone(),
            image_id: image.image_id.clone(),
        })
        .collect()
}

fn core_images(images: &[wire::DeliveredImage]) -> Vec<Image> {
    images
        .iter()
        .map(|image| Image {
            container: image.container.clone(),
            reference: image.reference.clone(),
            image_id: image.image_id.clone(),
        })
        .collect()
}
