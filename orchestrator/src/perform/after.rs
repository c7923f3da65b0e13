//! Undo and tidying up: what is asked again until it is done.

use std::time::Duration;

use async_trait::async_trait;
use orchestrator_core::{
    id::{MigrationId, NodeName, PodUid, Revision},
    migration::{Done, Image, Migration, Outcome, Phase, Restored, Step},
    refusal::Finding,
    state::Due,
    store::Owner,
};
use proto::worker::{self as wire, question, step_report, step_request};
use tokio::time::Instant;

use super::{Act, Deletion, Ended, SHORT_STEP_WITHIN, SourceObject, World, wire_images};
use crate::janitor::Clear;

/// Leftovers are waited for this long, each, in an undo: the pod runs already, the user waits. What is left then is
/// cleared away later.
const TIDY_WITHIN: Duration = Duration::from_secs(5);

/// The trace ends with the first answered readiness; a pod that isn't ready by then was restored all the same.
const READY_WITHIN: Duration = Duration::from_secs(5);

#[async_trait]
impl Clear for World {
    async fn clear(
        &self,
        id: &MigrationId,
        migration: &Migration,
        revision: Revision,
    ) -> Option<Finding> {
        let plan = migration.plan.as_ref()?;
        let due = Due {
            id: id.clone(),
            revision,
            step: Step::Release,
        };
        self.act(migration, plan, &due).clear().await
    }

    async fn look_again(&self, id: &MigrationId, migration: &Migration, revision: Revision) {
        let Some(plan) = &migration.plan else {
            return;
        };
        let due = Due {
            id: id.clone(),
            revision,
            step: Step::Retire,
        };
        if let Err(Ended(outcome)) = self.act(migration, plan, &due).look_again().await {
            let why = outcome.words();
            tracing::info!(migration = %id, why, "what a late write may have left is looked for again later");
        }
    }
}

impl Act<'_> {
    /// The source runs again. Only then the rest: what it leaves on the target runs nothing.
    pub(super) async fn release(&mut self) -> Result<Outcome, Ended> {
        if self.is_dead(&self.plan.source) {
            return self.release_without_source().await;
        }
        // A deletion is obeyed, and the signal that waits is its own.
        let present = self.world.cluster.source(self.plan).await? == SourceObject::Present;
        let released = self
            .release_source(present && self.migration.checkpoint.is_some())
            .await?;
        if released.doomed {
            let reason = Finding::new("HeldPodKilled", released.detail, "");
            return Ok(Outcome::Done(Done::Doomed(reason)));
        }
        self.world
            .cluster
            .unmark_source(self.plan, &self.due.id)
            .await?;
        let left_over = self.clear_undone().await;
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

    /// Its node is dead, by a person's word, and it may have run on after its checkpoint: the pod ends with its node,
    /// as any pod does. If the node comes back after all, the source is released there.
    async fn release_without_source(&mut self) -> Result<Outcome, Ended> {
        self.world
            .cluster
            .unmark_source(self.plan, &self.due.id)
            .await?;
        let source = self.plan.source.clone();
        let target = self.plan.target.clone();
        let images = self.migration.images.clone();
        let mut left = vec![format!(
            "node {source} was declared dead: the source is released when its worker is back"
        )];
        if !self.is_dead(&target)
            && let Err(Ended(outcome)) = self.clear_target(&target, &images).await
        {
            left.push(outcome.words());
        }
        let kept = self
            .migration
            .checkpoint
            .as_ref()
            .map_or_else(String::new, |checkpoint| {
                format!(
                    "; its checkpoint stays in the store under {}",
                    checkpoint.store_prefix
                )
            });
        Ok(Outcome::Done(Done::Released {
            clean: false,
            detail: format!("node {source} was declared dead, and the pod with it{kept}"),
            left_over: Some(Finding::new("OnADeadNode", left.join("; "), "")),
        }))
    }

    async fn release_source(&mut self, keep_if_doomed: bool) -> Result<wire::Released, Ended> {
        let source = self.plan.source.clone();
        let manifest_key = self
            .migration
            .checkpoint
            .as_ref()
            .map_or_else(String::new, |c| c.manifest_key.clone());
        let release = wire::Release {
            pod: Some(self.source_pod()),
            manifest_key,
            keep_if_doomed,
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
        Ok(released)
    }

    /// What may come after the end, by a call that was given up: an object in the store, whose bytes were on their way
    /// still; a mark on a source that was let go of; a pod that was made once more.
    async fn look_again(&mut self) -> Result<(), Ended> {
        let cleared = self.clear_store().await;
        self.look_at_kubernetes().await.and(cleared)
    }

    async fn clear_store(&self) -> Result<(), Ended> {
        if !Owner::known(self.migration).is_garbage(false) {
            return Ok(());
        }
        let node = match self.is_dead(&self.plan.source) {
            true => &self.plan.target,
            false => &self.plan.source,
        };
        let migration_id = self.due.id.0.to_string();
        let clear = question::Kind::ClearStore(wire::ClearStore { migration_id });
        self.ask(node, clear).await.map(drop)
    }

    async fn look_at_kubernetes(&mut self) -> Result<(), Ended> {
        match self.migration.phase {
            Phase::RolledBack => {
                let (plan, id) = (self.plan, &self.due.id);
                Ok(self.world.cluster.unmark_source(plan, id).await?)
            }
            Phase::Succeeded | Phase::Rescued | Phase::Abandoned => self.end_the_late_one().await,
            Phase::Planned
            | Phase::Preparing
            | Phase::Copying
            | Phase::Holding
            | Phase::Delivering
            | Phase::Restoring
            | Phase::Rescuing
            | Phase::Retiring
            | Phase::Releasing
            | Phase::Refused
            | Phase::Previewed => Ok(()),
        }
    }

    /// A pod of this migration that is not the one the log knows: its name had become free, and its creation came late.
    /// Only one that still bears our hold is touched. A user's copy of the restored pod does not, nor a later migration's.
    async fn end_the_late_one(&mut self) -> Result<(), Ended> {
        let (plan, id) = (self.plan, self.due.id.clone());
        let Some(made) = self.world.cluster.restored(plan, &id).await? else {
            return Ok(());
        };
        let known = self.migration.restored.as_ref().map(|r| &r.pod_uid);
        if known == Some(&made.uid) {
            return Ok(());
        }
        tracing::warn!(migration = %id, uid = %made.uid, node = %made.node, bound = made.bound, "a pod of it was made after its end");
        let cluster = &self.world.cluster;
        if !made.bound {
            return Ok(cluster.remove_unbound(plan, &made.uid, &id).await?);
        }
        cluster.condemn_restored(plan, &made.uid, &id).await?;
        self.withdraw(&made.node, Some(&made.uid), &[]).await?;
        let cluster = &self.world.cluster;
        cluster.delete_restored(plan, &made.uid, &id).await?;
        Ok(())
    }

    /// Clears away what an ended migration still owes. Says what is still there, for it is tried again until nothing is.
    pub(super) async fn clear(&mut self) -> Option<Finding> {
        let undone = self.migration.phase == Phase::RolledBack;
        let left: Vec<String> = if undone && !self.is_dead(&self.plan.source) {
            return self.clear_undone().await;
        } else if undone {
            match self.release_source(false).await {
                Ok(_) => return self.clear_undone().await,
                Err(Ended(outcome)) => vec![outcome.words()],
            }
        } else {
            self.clear_the_dead().await
        };
        (!left.is_empty()).then(|| Finding::new("OnADeadNode", left.join("; "), ""))
    }

    /// Nodes that were declared dead and came back: what was held there is destroyed, what was being restored there is
    /// withdrawn, under the revision of the end, so nothing older reaches them.
    async fn clear_the_dead(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for node in self.migration.dead.keys().cloned().collect::<Vec<_>>() {
            if let Err(Ended(outcome)) = self.clear_dead(&node).await {
                left.push(outcome.words());
            }
        }
        left
    }

    async fn clear_dead(&mut self, node: &NodeName) -> Result<(), Ended> {
        if *node == self.plan.source {
            self.destroy_source().await?;
        }
        match self.migration.restored.clone() {
            Some(restored) if restored.node == *node => {
                self.disarm(&restored).await?;
                self.tidy(node, false, &restored.images, TIDY_WITHIN).await
            }
            Some(_) | None => {
                let images = self.migration.images.clone();
                self.clear_target(node, &images).await
            }
        }
    }

    /// What an undone migration left; what stands in the way of one part doesn't save the others.
    async fn clear_undone(&mut self) -> Option<Finding> {
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
        // Rounds, attempts that failed in the middle, the checkpoint: everything below the migration goes.
        let store_prefix = match store {
            true => format!("checkpoints/{}/", self.due.id),
            false => String::new(),
        };
        let tidy = wire::Tidy {
            store_prefix,
            images: wire_images(images),
        };
        self.must(node, step_request::Kind::Tidy(tidy), within, "TidyFailed")
            .await
            .map(|_| ())
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
        match self.migration.restored.clone() {
            Some(restored) => self.retire_for(&restored).await?,
            None => self.retire_for_nobody().await?,
        }
        let (plan, id) = (self.plan, &self.due.id);
        self.world.cluster.remove_prepull(plan, id).await?;
        Ok(Outcome::Done(Done::Retired))
    }

    /// The restored pod takes over. A dead node is passed over: what is on it is cleared when it is back.
    async fn retire_for(&mut self, restored: &Restored) -> Result<(), Ended> {
        let source = self.plan.source.clone();
        let target = self.plan.target.clone();
        self.world
            .cluster
            .settle_restored(self.plan, &restored.pod_uid, &self.due.id)
            .await?;
        let alive = !self.is_dead(&restored.node);
        let store = !self.migration.keeps_checkpoint();
        if alive {
            self.disarm(restored).await?;
        }
        if !self.is_dead(&source) {
            self.destroy_source().await?;
        }
        if alive {
            self.first_readiness().await?;
            self.tidy(&restored.node, store, &restored.images, SHORT_STEP_WITHIN)
                .await?;
        }
        for node in [&source, &target] {
            if *node != restored.node && !self.is_dead(node) {
                self.tidy(node, store && !alive, &[], SHORT_STEP_WITHIN)
                    .await?;
            }
        }
        Ok(())
    }

    /// The user deleted the pod: nothing of it stays anywhere.
    async fn retire_for_nobody(&mut self) -> Result<(), Ended> {
        let source = self.plan.source.clone();
        let target = self.plan.target.clone();
        let images = self.migration.images.clone();
        let made = self.world.cluster.restored(self.plan, &self.due.id).await?;
        let (plan, id) = (self.plan, &self.due.id);
        let cluster = &self.world.cluster;
        let by_user = match &made {
            Some(made) => cluster.condemn_restored(plan, &made.uid, id).await? == Deletion::ByUser,
            None => false,
        };
        // A rescue may have made it elsewhere.
        let mut nodes = vec![target.clone()];
        nodes.extend(made.as_ref().map(|made| made.node.clone()));
        nodes.dedup();
        for node in nodes.iter().filter(|node| !self.migration.is_dead(node)) {
            let uid = made
                .as_ref()
                .filter(|made| made.node == *node)
                .map(|made| &made.uid);
            self.withdraw(node, uid, &images).await?;
        }
        let cluster = &self.world.cluster;
        match &made {
            Some(made) if by_user => cluster.settle_restored(plan, &made.uid, id).await?,
            Some(made) => cluster
                .delete_restored(plan, &made.uid, id)
                .await
                .map(drop)?,
            None => {}
        }
        self.world
            .cluster
            .delete_source(self.plan, &self.due.id)
            .await?;
        if !self.is_dead(&source) {
            self.destroy_source().await?;
        }
        // Deleted by the user and not by us, it still has our finalizer, and nothing else would take it off.
        self.world
            .cluster
            .unmark_source(self.plan, &self.due.id)
            .await?;
        let keeper = [&source, &target]
            .into_iter()
            .find(|node| !self.migration.is_dead(node))
            .cloned();
        for node in [&source, &target] {
            if !self.is_dead(node) {
                let store = keeper.as_ref() == Some(node);
                self.tidy(node, store, &images, SHORT_STEP_WITHIN).await?;
            }
        }
        Ok(())
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
