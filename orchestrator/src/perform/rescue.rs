//! Rescue: the target can't, and the source's object is gone or its node dead. The stored checkpoint is the pod.
//!
//! The held source is destroyed first (or its node is dead by a person's word), then the checkpoint is restored where
//! it came from, or, that node being dead or having failed, on the target once more, or on any other node that would
//! take the pod. One attempt is one node, and only a proof that nothing of an attempt runs begins the next: the other
//! order would have two.

use orchestrator_core::{
    id::{NodeName, PodUid},
    migration::{Done, Image, Outcome},
};

use super::{Act, Ended};

impl Act<'_> {
    pub(super) async fn rescue(&mut self) -> Result<Outcome, Ended> {
        if let Some(made) = self.world.cluster.restored(self.plan, &self.due.id).await? {
            if made.deleted_by_user() {
                return Err(Ended::pod_deleted(self.plan));
            }
            if self.is_dead(&made.node) {
                // Left by an attempt on a node that died since: nothing runs there, by a person's word.
                self.delete_restored(&made.uid).await?;
            } else if !made.bound {
                // Nothing of it runs, and it may be for another node, and of images that are gone.
                let (plan, id) = (self.plan, &self.due.id);
                self.world
                    .cluster
                    .remove_unbound(plan, &made.uid, id)
                    .await?;
            } else if made.given_up {
                let reason = "it was given up before".to_owned();
                return Err(self
                    .prove_failed(&made.node, &made.uid, &[], reason)
                    .await?);
            } else {
                // Whatever attempt this is: it may run there by now, and what it did meanwhile must not be lost.
                let images = self.deliver_to(&made.node).await?;
                return self.rescued(&made.node, &made.uid, &images).await;
            }
        }
        let node = self.rescue_node().await?;
        self.delete_source().await?;
        if !self.is_dead(&self.plan.source) {
            self.destroy_source().await?;
        }
        self.prepare_elsewhere(&node).await?;
        let images = self.deliver_to(&node).await?;
        let created = self
            .world
            .cluster
            .create(self.plan, &self.due.id, &node, &images)
            .await?;
        self.rescued(&node, &created, &images).await
    }

    /// Where an attempt is made that has no object yet: the source's node, the target, the others, in turn and without
    /// the dead. A function of the attempt, so that one asked again is asked of the same node.
    async fn rescue_node(&self) -> Result<NodeName, Ended> {
        let mut nodes = vec![self.plan.source.clone(), self.plan.target.clone()];
        nodes.retain(|node| !self.is_dead(node));
        let turn = usize::try_from(self.migration.attempts.saturating_sub(1)).unwrap_or(usize::MAX);
        if turn >= nodes.len() {
            nodes.extend(self.world.cluster.other_nodes(self.plan).await?);
        }
        let count = nodes.len();
        if count == 0 {
            return Err(Ended::failed(
                "NoNodeLeft",
                "both nodes of the migration are dead, and no other would take the pod",
            ));
        }
        Ok(nodes.swap_remove(turn % count))
    }

    /// Source and target have the base images: the one ran from them, the other was prepared.
    async fn prepare_elsewhere(&mut self, node: &NodeName) -> Result<(), Ended> {
        if *node == self.plan.source || *node == self.plan.target {
            return Ok(());
        }
        let (missing, why) = self.pull_images(node).await?;
        if missing.is_empty() {
            return Ok(());
        }
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        Err(Ended::failed(
            "BaseImageMissing",
            format!(
                "node {node} lacks the images of {}{why}",
                missing.join(", ")
            ),
        ))
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
}
