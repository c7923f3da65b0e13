//! Kubernetes: the source's object, the restored pod's, and the pod that pulls.

use async_trait::async_trait;
use orchestrator_core::{
    id::{MigrationId, NodeName, PodUid},
    migration::Image,
    plan::Plan,
    refusal::Finding,
};
use tokio::time::Instant;

use super::{Inner, Model, Source};
use crate::perform::{Cluster, ClusterError, Deletion, RestoredObject, SourceObject};

fn unclear(what: &'static str) -> ClusterError {
    ClusterError::Unclear {
        what,
        reason: "the answer was lost".to_owned(),
    }
}

fn source_object(inner: &Inner) -> SourceObject {
    match inner.object {
        Some(()) if !inner.user_deleted => SourceObject::Present,
        Some(()) | None => SourceObject::Deleted,
    }
}

impl Model {
    /// An effect of which neither a failure nor a lost answer says whether it was carried out.
    async fn write<T>(
        &self,
        name: &'static str,
        what: &'static str,
        change: impl FnOnce(&mut Inner) -> Result<T, ClusterError>,
    ) -> Result<T, ClusterError> {
        let done = self.effect(name, change, || Err(unclear(what))).await;
        done.map_err(|()| unclear(what))?
    }
}

#[async_trait]
impl Cluster for Model {
    async fn source(&self, _plan: &Plan) -> Result<SourceObject, ClusterError> {
        Ok(source_object(&self.lock()))
    }

    async fn target_refuses(&self, _plan: &Plan) -> Result<Option<Finding>, ClusterError> {
        Ok(None)
    }

    async fn mark_source(
        &self,
        _plan: &Plan,
        _id: &MigrationId,
    ) -> Result<SourceObject, ClusterError> {
        let change = |inner: &mut Inner| {
            inner.marked = inner.object.is_some();
            Ok(source_object(inner))
        };
        self.write("mark source", "mark", change).await
    }

    async fn unmark_source(&self, _plan: &Plan, _id: &MigrationId) -> Result<(), ClusterError> {
        let change = |inner: &mut Inner| {
            inner.marked = false;
            if inner.user_deleted {
                inner.object = None;
                inner.source = Source::Gone;
            }
            Ok(())
        };
        self.write("unmark source", "unmark", change).await
    }

    async fn delete_source(
        &self,
        _plan: &Plan,
        _id: &MigrationId,
    ) -> Result<Deletion, ClusterError> {
        let change = |inner: &mut Inner| {
            if inner.user_deleted {
                return Ok(Deletion::ByUser);
            }
            inner.object = None;
            inner.marked = false;
            Ok(Deletion::Done)
        };
        self.write("delete source", "delete", change).await
    }

    async fn create(
        &self,
        _plan: &Plan,
        _id: &MigrationId,
        node: &NodeName,
        _images: &[Image],
    ) -> Result<PodUid, ClusterError> {
        let change = |inner: &mut Inner| {
            if inner.object.is_some() {
                inner
                    .violations
                    .push("a pod was made while the source's name was taken".to_owned());
            }
            if inner.restored.is_none() {
                inner.make(&node.0);
            }
            if inner.restored.as_ref().is_none_or(|(at, _)| *at != node.0) {
                return Err(unclear("create: the name is taken"));
            }
            Ok(PodUid(format!("restored-{}", inner.made)))
        };
        let refused = || {
            Err(ClusterError::Refused {
                what: "create",
                reason: "quota".to_owned(),
            })
        };
        let created = self.effect("create", change, refused).await;
        let uid = created.map_err(|()| unclear("create"))??;
        let bind = |inner: &mut Inner| {
            let there = inner.restored.as_ref().map(|(at, _)| at.clone());
            let Some(at) = there.filter(|_| !inner.restored_deleted && !inner.given_up) else {
                return Err(unclear("bind"));
            };
            if at != node.0 {
                let what = "a pod was bound to another node than it was made for";
                inner.violations.push(what.to_owned());
            }
            if !inner.bound {
                inner.bound = true;
                inner.taken_up_from = Instant::now() + inner.kubelets_away;
                inner.restored_runs = inner.broken_node.as_deref() != Some(&node.0);
            }
            Ok(())
        };
        let bound = self.effect("bind", bind, || Err(unclear("bind"))).await;
        bound.map_err(|()| unclear("bind"))?.map(|()| uid)
    }

    async fn restored(
        &self,
        _plan: &Plan,
        _id: &MigrationId,
    ) -> Result<Option<RestoredObject>, ClusterError> {
        let inner = self.lock();
        Ok(inner.restored.as_ref().map(|(node, made)| RestoredObject {
            uid: PodUid(format!("restored-{made}")),
            node: NodeName(node.clone()),
            bound: inner.bound,
            given_up: inner.given_up,
            deleting: inner.restored_deleted,
            taken_up: Instant::now() >= inner.taken_up_from,
            broken: None,
            waiting: None,
            ready: inner.restored_runs,
        }))
    }

    async fn other_nodes(&self, _plan: &Plan) -> Result<Vec<NodeName>, ClusterError> {
        Ok(vec!["node3".into()])
    }

    async fn settle_restored(
        &self,
        _plan: &Plan,
        _uid: &PodUid,
        _id: &MigrationId,
    ) -> Result<(), ClusterError> {
        let change = |inner: &mut Inner| {
            if inner.restored_deleted {
                inner.restored = None;
            }
            Ok(())
        };
        self.write("settle restored", "settle", change).await
    }

    async fn condemn_restored(
        &self,
        _plan: &Plan,
        _uid: &PodUid,
        _id: &MigrationId,
    ) -> Result<Deletion, ClusterError> {
        let change = |inner: &mut Inner| {
            if inner.restored_deleted {
                return Ok(Deletion::ByUser);
            }
            inner.given_up = true;
            Ok(Deletion::Done)
        };
        self.write("condemn restored", "condemn", change).await
    }

    async fn delete_restored(
        &self,
        _plan: &Plan,
        _uid: &PodUid,
        _id: &MigrationId,
    ) -> Result<Deletion, ClusterError> {
        let change = |inner: &mut Inner| {
            if inner.restored_deleted {
                return Ok(Deletion::ByUser);
            }
            let at = inner.restored.as_ref().map(|(node, _)| node.as_str());
            // On a node that is dead by a person's word nothing runs.
            if !inner.withdrawn && (at.is_none() || at != inner.cut) {
                let what = "a restored pod's object went before the proof that nothing of it runs";
                inner.violations.push(what.to_owned());
            }
            inner.restored = None;
            inner.given_up = false;
            Ok(Deletion::Done)
        };
        self.write("delete restored", "delete", change).await
    }

    async fn remove_unbound(
        &self,
        _plan: &Plan,
        _uid: &PodUid,
        _id: &MigrationId,
    ) -> Result<(), ClusterError> {
        let change = |inner: &mut Inner| {
            if inner.bound {
                return Err(unclear("remove a pod that is bound"));
            }
            inner.restored = None;
            Ok(())
        };
        let removed = self.effect("remove unbound", change, || Err(unclear("remove")));
        removed.await.map_err(|()| unclear("remove"))?
    }

    async fn prepull(
        &self,
        _plan: &Plan,
        _id: &MigrationId,
        _node: &NodeName,
        _containers: &[String],
    ) -> Result<(), ClusterError> {
        let mut inner = self.lock();
        if let Some(reason) = inner.pull_refused {
            let (what, reason) = ("pull the base images", reason.to_owned());
            return Err(ClusterError::Refused { what, reason });
        }
        inner.lacks_image = false;
        Ok(())
    }

    async fn remove_prepull(&self, _plan: &Plan, _id: &MigrationId) -> Result<(), ClusterError> {
        self.lock().pull_pod = false;
        Ok(())
    }
}
