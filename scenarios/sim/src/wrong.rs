//! Wrappers around the seams of the steps that do it wrong, each in one way. Without a mistake they pass everything on.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use orchestrator::{
    driver::Perform,
    k8s::cluster::RealCluster,
    perform::{Cluster, ClusterError, Deletion, Nodes, RestoredObject, SourceObject},
    workers::{CallError, Clock, Workers},
};
use orchestrator_core::{
    id::{MigrationId, NodeName, PodUid},
    migration::{Image, Migration, Outcome, Span},
    plan::Plan,
    refusal::Finding,
    state::Due,
};
use proto::worker::{
    Barred, HoldState, Release, StepReport, answer, question, step_report, step_request,
};

use crate::{life::Life, mistakes::Mistake, sim::Sim};

/// Workers, asked wrong.
#[derive(Clone)]
pub struct WrongNodes {
    /// The world.
    pub sim: Sim,
    /// Who asks.
    pub life: Life,
    /// As they are.
    pub workers: Workers,
    /// Pods whose hold was confirmed once.
    pub confirmed: Arc<Mutex<BTreeSet<String>>>,
}

#[async_trait]
impl Nodes for WrongNodes {
    async fn step(
        &self,
        node: &NodeName,
        migration: &MigrationId,
        revision: u64,
        kind: step_request::Kind,
        within: Duration,
    ) -> Result<StepReport, CallError> {
        self.life.edge("ask for a step").await;
        // Nobody is asked: it is taken for done.
        let withdraws = matches!(kind, step_request::Kind::Withdraw(_));
        let bars = matches!(kind, step_request::Kind::Bar(_));
        if withdraws && self.sim.makes(Mistake::WithdrawNotProved)
            || bars && self.sim.makes(Mistake::GivenUpWithoutABar)
        {
            return Ok(StepReport {
                outcome: step_report::Outcome::Done.into(),
                result: bars.then(|| step_report::Result::Barred(Barred::default())),
                ..StepReport::default()
            });
        }
        let kind = match kind {
            step_request::Kind::Destroy(destroy)
                if self.sim.makes(Mistake::ReleaseAfterSuccess) =>
            {
                step_request::Kind::Release(Release {
                    pod: destroy.pod,
                    manifest_key: String::new(),
                    keep_if_doomed: false,
                })
            }
            step_request::Kind::Hold(_)
            | step_request::Kind::Deliver(_)
            | step_request::Kind::Disarm(_)
            | step_request::Kind::Destroy(_)
            | step_request::Kind::Release(_)
            | step_request::Kind::Withdraw(_)
            | step_request::Kind::Tidy(_)
            | step_request::Kind::ExportImages(_)
            | step_request::Kind::ImportImages(_)
            | step_request::Kind::Bar(_)
            | step_request::Kind::Copy(_)
            | step_request::Kind::Receive(_) => kind,
        };
        let report = self
            .workers
            .step(node, &migration.0, revision, kind, within)
            .await;
        self.life.edge("a step's report").await;
        report
    }

    async fn ask(
        &self,
        node: &NodeName,
        kind: question::Kind,
        within: Duration,
    ) -> Result<answer::Kind, CallError> {
        let confirm = match &kind {
            question::Kind::ConfirmHold(confirm) => Some(confirm.clone()),
            question::Kind::Inspect(_)
            | question::Kind::HasImages(_)
            | question::Kind::Verify(_)
            | question::Kind::ListStore(_)
            | question::Kind::CheckStore(_)
            | question::Kind::ClearStore(_) => None,
        };
        let Some(confirm) = confirm else {
            let answer = self.workers.ask(node, kind, within).await;
            self.life.edge("an answer").await;
            return answer;
        };
        let uid = confirm.pod.as_ref().map_or("", |pod| &pod.uid).to_owned();
        let known = {
            let confirmed = self
                .confirmed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            confirmed.contains(&uid)
        };
        let believed = self.sim.makes(Mistake::HoldNotConfirmed)
            || self.sim.makes(Mistake::LeaseIgnored) && known;
        if believed {
            return Ok(answer::Kind::HoldState(HoldState {
                held: true,
                boot_id: confirm.boot_id,
                detail: String::new(),
            }));
        }
        let answer = self.workers.ask(node, kind, within).await;
        if let Ok(answer::Kind::HoldState(state)) = &answer
            && state.held
        {
            let mut confirmed = self
                .confirmed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            confirmed.insert(uid);
        }
        self.life.edge("a hold's confirmation").await;
        answer
    }

    fn clock(&self, node: &NodeName) -> Clock {
        self.workers.clock(node)
    }
}

/// The cluster, written to in the wrong order.
#[derive(Clone)]
pub struct WrongCluster {
    /// The world.
    pub sim: Sim,
    /// As it is.
    pub cluster: RealCluster,
}

#[async_trait]
impl Cluster for WrongCluster {
    async fn source(&self, plan: &Plan) -> Result<SourceObject, ClusterError> {
        self.cluster.source(plan).await
    }

    async fn target_refuses(&self, plan: &Plan) -> Result<Option<Finding>, ClusterError> {
        self.cluster.target_refuses(plan).await
    }

    async fn mark_source(
        &self,
        plan: &Plan,
        id: &MigrationId,
    ) -> Result<SourceObject, ClusterError> {
        self.cluster.mark_source(plan, id).await
    }

    async fn unmark_source(&self, plan: &Plan, id: &MigrationId) -> Result<(), ClusterError> {
        self.cluster.unmark_source(plan, id).await
    }

    async fn delete_source(&self, plan: &Plan, id: &MigrationId) -> Result<Deletion, ClusterError> {
        if self.sim.makes(Mistake::SourceNotDeletedFirst) {
            // The name is the fence; so that the target can be made, the source lives on under another.
            self.sim
                .with(|inner| inner.truth.objects.rename(&plan.pod.name, &plan.uid.0));
            return Ok(Deletion::Done);
        }
        self.cluster.delete_source(plan, id).await
    }

    async fn create(
        &self,
        plan: &Plan,
        id: &MigrationId,
        node: &NodeName,
        images: &[Image],
    ) -> Result<PodUid, ClusterError> {
        self.cluster.create(plan, id, node, images).await
    }

    async fn restored(
        &self,
        plan: &Plan,
        id: &MigrationId,
    ) -> Result<Option<RestoredObject>, ClusterError> {
        self.cluster.restored(plan, id).await
    }

    async fn settle_restored(
        &self,
        plan: &Plan,
        uid: &PodUid,
        id: &MigrationId,
    ) -> Result<(), ClusterError> {
        self.cluster.settle_restored(plan, uid, id).await
    }

    async fn condemn_restored(
        &self,
        plan: &Plan,
        uid: &PodUid,
        id: &MigrationId,
    ) -> Result<Deletion, ClusterError> {
        self.cluster.condemn_restored(plan, uid, id).await
    }

    async fn delete_restored(
        &self,
        plan: &Plan,
        uid: &PodUid,
        id: &MigrationId,
    ) -> Result<Deletion, ClusterError> {
        self.cluster.delete_restored(plan, uid, id).await
    }

    async fn other_nodes(&self, plan: &Plan) -> Result<Vec<NodeName>, ClusterError> {
        self.cluster.other_nodes(plan).await
    }

    async fn remove_unbound(
        &self,
        plan: &Plan,
        uid: &PodUid,
        id: &MigrationId,
    ) -> Result<(), ClusterError> {
        self.cluster.remove_unbound(plan, uid, id).await
    }

    async fn prepull(
        &self,
        plan: &Plan,
        id: &MigrationId,
        node: &NodeName,
        containers: &[String],
    ) -> Result<(), ClusterError> {
        self.cluster.prepull(plan, id, node, containers).await
    }

    async fn remove_prepull(&self, plan: &Plan, id: &MigrationId) -> Result<(), ClusterError> {
        self.cluster.remove_prepull(plan, id).await
    }
}

/// Steps, told wrong.
pub struct WrongWords {
    /// The world.
    pub sim: Sim,
    /// As they are performed.
    pub perform: Arc<dyn Perform>,
}

#[async_trait]
impl Perform for WrongWords {
    async fn perform(&self, due: &Due, migration: &Migration) -> (Outcome, Vec<Span>) {
        let (outcome, spans) = self.perform.perform(due, migration).await;
        let outcome = match outcome {
            Outcome::Unknown(what) if self.sim.makes(Mistake::UnknownTakenForFailed) => {
                Outcome::Failed(what)
            }
            Outcome::Done(_)
            | Outcome::Failed(_)
            | Outcome::Unknown(_)
            | Outcome::PodDeleted(_)
            | Outcome::NotBegun(_)
            | Outcome::Forgotten(_) => outcome,
        };
        self.sim.event(
            "driver",
            format_args!(
                "{} {:?} at {}: {}",
                due.id,
                due.step,
                due.revision,
                told(&outcome)
            ),
        );
        (outcome, spans)
    }
}

fn told(outcome: &Outcome) -> String {
    let word = match outcome {
        Outcome::Done(_) => "done",
        Outcome::Failed(_) => "failed",
        Outcome::Unknown(_) => "unknown",
        Outcome::PodDeleted(_) => "pod deleted",
        Outcome::NotBegun(_) => "not begun",
        Outcome::Forgotten(_) => "forgotten",
    };
    format!("{word} {}", outcome.words())
}
