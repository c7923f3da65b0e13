//! Undo, rescue and tidying up: what is asked again until it is done.

use std::time::Duration;

use orchestrator_core::{
    id::{NodeName, PodUid},
    migration::{Done, Image, Outcome, Restored},
    refusal::Finding,
};
use proto::worker::{self as wire, step_report, step_request};
use tokio::time::Instant;

use super::{Act, Deletion, Ended, SHORT_STEP_WITHIN, wire_images};

/// Leftovers are waited for this long, each, in an undo: the pod runs already, the user waits. What is left then is
/// cleared away later.
const TIDY_WITHIN: Duration = Duration::from_secs(5);

/// The trace ends with the first answered readiness; a pod that isn't ready by then was restored all the same.
const READY_WITHIN: Duration = Duration::from_secs(5);

impl Act<'_> {
    /// The source runs again. Only then the rest: what it leaves on the target runs nothing.
    pub(super) async fn release(&mut self) -> Result<Outcome, Ended> {
        let source = self.plan.source.clone();
        let manifest_key = self
            .migration
            .checkpoint
            .as_ref()
            .map_or_else(String::new, |c| c.manifest_key.clone());
        let release = wire::Release {
            pod: Some(self.source_pod()),
            manifest_key,
        };
        let report = self
            .must(
                &source,
                step_request::Kind::Release(release),
                SHORT_STEP_WITHIN,
                "ReleaseFailed",
            )
            .await?;
        let Some(step_report::Result::Released(released)) = report.result else {
            return Err(Ended::unknown(
                "WorkerConfused",
                "the pod was released without a word on how",
            ));
        };
        self.world
            .cluster
            .unmark_source(self.plan, &self.due.id)
            .await?;
        let left_over = self.clear().await;
        let clean = released.running;
        let detail = if clean {
            String::new()
        } else {
            released.detail
        };
        Ok(Outcome::Done(Done::Released {
            clean,
            detail,
            left_over,
        }))
    }

    /// Clears away what an undone migration left; what stands in the way of one part doesn't save the others. Says
    /// what is still there, for it is tried again until nothing is.
    pub(super) async fn clear(&mut self) -> Option<Finding> {
        let (source, target) = (self.plan.source.clone(), self.plan.target.clone());
        let images = self.migration.images.clone();
        let pull_pods = self
            .world
            .cluster
            .remove_prepull(self.plan, &self.due.id)
            .await;
        let at_source = self.tidy(&source, true, &[], TIDY_WITHIN).await;
        let at_target = self.clear_target(&target, &images).await;
        let left: Vec<String> = [pull_pods.map_err(Ended::from), at_source, at_target]
            .into_iter()
            .filter_map(|cleared| cleared.err().map(|Ended(outcome)| outcome.words()))
            .collect();
        (!left.is_empty()).then(|| Finding::new("LeftOver", left.join("; "), ""))
    }

    async fn clear_target(&mut self, target: &NodeName, images: &[Image]) -> Result<(), Ended> {
        let withdraw = wire::Withdraw {
            pod: Some(self.restored_pod(&PodUid(String::new()))),
            images: wire_images(images),
        };
        let withdraw = step_request::Kind::Withdraw(withdraw);
        self.must(target, withdraw, TIDY_WITHIN, "WithdrawFailed")
            .await?;
        self.tidy(target, false, images, TIDY_WITHIN).await
    }

    async fn tidy(
        &mut self,
        node: &NodeName,
        store: bool,
        images: &[Image],
        within: Duration,
    ) -> Result<(), Ended> {
        let store_prefix = match (&self.migration.checkpoint, store) {
            (Some(checkpoint), true) => checkpoint.store_prefix.clone(),
            // A hold that failed in the middle may have stored packs: everything below the migration goes.
            (None, true) => format!("checkpoints/{}/", self.due.id),
            (_, false) => String::new(),
        };
        let tidy = wire::Tidy {
            store_prefix,
            images: wire_images(images),
        };
        self.must(node, step_request::Kind::Tidy(tidy), within, "TidyFailed")
            .await
            .map(|_| ())
    }

    /// The target can't. The held source is destroyed first, then the stored checkpoint is restored where it came
    /// from; the other order would have two.
    pub(super) async fn rescue(&mut self) -> Result<Outcome, Ended> {
        let source = self.plan.source.clone();
        if let Some(made) = self.world.cluster.restored(self.plan, &self.due.id).await? {
            if made.deleted_by_user() {
                return Err(Ended::pod_deleted(self.plan));
            }
            if made.node == source && made.given_up {
                let (uid, reason) = (made.uid, "it was given up before".to_owned());
                return Err(self.prove_failed(&source, &uid, &[], reason).await?);
            }
            if made.node == source {
                let images = self.deliver_to(&source).await?;
                return self.rescued(&source, &made.uid, &images).await;
            }
            // Left from before a crash: the target's, which is proved not to run before anything else is begun.
            let deleted = self
                .world
                .cluster
                .delete_restored(self.plan, &made.uid, &self.due.id)
                .await?;
            if deleted == Deletion::ByUser {
                return Err(Ended::pod_deleted(self.plan));
            }
            let (target, images) = (self.plan.target.clone(), self.migration.images.clone());
            self.withdraw(&target, Some(&made.uid), &images).await?;
        }
        match self
            .world
            .cluster
            .delete_source(self.plan, &self.due.id)
            .await?
        {
            Deletion::Done => {}
            Deletion::ByUser => return Err(Ended::pod_deleted(self.plan)),
        }
        self.destroy_source().await?;
        let images = self.deliver_to(&source).await?;
        let created = self
            .world
            .cluster
            .create(self.plan, &self.due.id, &source, &images)
            .await?;
        self.rescued(&source, &created, &images).await
    }

    async fn rescued(
        &mut self,
        node: &NodeName,
        uid: &PodUid,
        images: &[Image],
    ) -> Result<Outcome, Ended> {
        let restored = self.prove_restored(node, uid, images).await?;
        Ok(Outcome::Done(Done::Rescued(restored)))
    }

    pub(super) async fn destroy_source(&mut self) -> Result<(), Ended> {
        let source = self.plan.source.clone();
        let destroy = wire::Destroy {
            pod: Some(self.source_pod()),
        };
        self.must(
            &source,
            step_request::Kind::Destroy(destroy),
            SHORT_STEP_WITHIN,
            "DestroyFailed",
        )
        .await
        .map(|_| ())
    }

    /// Disarm first: until then a crash of the container would roll its state back.
    pub(super) async fn retire(&mut self) -> Result<Outcome, Ended> {
        let source = self.plan.source.clone();
        let target = self.plan.target.clone();
        match self.migration.restored.clone() {
            Some(restored) => {
                self.disarm(&restored).await?;
                self.world
                    .cluster
                    .release_restored(self.plan, &restored.pod_uid, &self.due.id)
                    .await?;
                self.destroy_source().await?;
                self.first_readiness().await?;
                self.tidy(&restored.node, true, &restored.images, SHORT_STEP_WITHIN)
                    .await?;
                for node in [&source, &target] {
                    if *node != restored.node {
                        self.tidy(node, false, &[], SHORT_STEP_WITHIN).await?;
                    }
                }
            }
            None => {
                let images = self.migration.images.clone();
                let made = self.world.cluster.restored(self.plan, &self.due.id).await?;
                if let Some(made) = &made {
                    let cluster = &self.world.cluster;
                    let (plan, uid, id) = (self.plan, &made.uid, &self.due.id);
                    if cluster.delete_restored(plan, uid, id).await? == Deletion::ByUser {
                        cluster.release_restored(plan, uid, id).await?;
                    }
                }
                self.withdraw(&target, made.as_ref().map(|made| &made.uid), &images)
                    .await?;
                self.world
                    .cluster
                    .delete_source(self.plan, &self.due.id)
                    .await?;
                self.destroy_source().await?;
                // Deleted by the user and not by us, it still has our finalizer, and nothing else would take it off.
                self.world
                    .cluster
                    .unmark_source(self.plan, &self.due.id)
                    .await?;
                self.tidy(&source, true, &[], SHORT_STEP_WITHIN).await?;
                self.tidy(&target, false, &images, SHORT_STEP_WITHIN)
                    .await?;
            }
        }
        let (plan, id) = (self.plan, &self.due.id);
        self.world.cluster.remove_prepull(plan, id).await?;
        Ok(Outcome::Done(Done::Retired))
    }

    async fn disarm(&mut self, restored: &Restored) -> Result<(), Ended> {
        let disarm = wire::Disarm {
            pod: Some(self.restored_pod(&restored.pod_uid)),
            images: wire_images(&restored.images),
        };
        let node = restored.node.clone();
        self.must(
            &node,
            step_request::Kind::Disarm(disarm),
            SHORT_STEP_WITHIN,
            "DisarmFailed",
        )
        .await
        .map(|_| ())
    }

    async fn first_readiness(&mut self) -> Result<(), Ended> {
        let started = self.world.clock.unix_ns();
        let waiting = Instant::now();
        while waiting.elapsed() < READY_WITHIN {
            match self.world.cluster.restored(self.plan, &self.due.id).await? {
                Some(object) if object.ready => {
                    self.span("first readiness", started);
                    return Ok(());
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                None => return Ok(()),
            }
        }
        let reason = Finding::new("NotReadyYet", "the restored pod is not ready yet", "");
        tracing::info!(migration = %self.due.id, %reason, "going on");
        Ok(())
    }
}
