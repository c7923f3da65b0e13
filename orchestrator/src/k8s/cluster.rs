//! Kubernetes as the steps see it: [`Cluster`] on the real API server. Each method is one question or one write of
//! the modules beside this one; here their answers become the few that steps tell apart.

use std::time::Duration;

use async_trait::async_trait;
use axum::http::{Request, Response, StatusCode};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{ListParams, ObjectMeta, PostParams},
    client::Body,
};
use orchestrator_core::{
    id::{MigrationId, NodeName, PodUid},
    migration::Image,
    plan::{Plan, PlannedContainer},
    refusal::Finding,
    view::{NodeView, TaintView},
};

use super::{
    call::{CallError, bounded, if_there},
    pods::{
        CreateError, MIGRATION_ANNOTATION, Pods, SourceDeleted, SourceState, TargetStatus,
        is_bound, node_for, target_status,
    },
    prepull::{Pulled, Wanted, prepull, remove_leftovers},
    target_pod, view,
};
use crate::perform::{Cluster, ClusterError, Deletion, RestoredObject, SourceObject};

/// Pulling a base image is given this long: 2 GiB at 20 MiB/s.
const PREPULL_WITHIN: Duration = Duration::from_secs(100);

/// A quota counts the source for some moments after it is gone: a refused creation is tried this often.
const CREATE_TRIES: u32 = 8;
const CREATE_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Every kubelet sets it.
const ARCHITECTURE_LABEL: &str = "kubernetes.io/arch";

/// What the kubelet says of a container that won't come up by waiting: its restore was tried and failed, or it ran.
const BROKEN: [&str; 4] = [
    "StartError",
    "RunContainerError",
    "CrashLoopBackOff",
    "ContainerCannotRun",
];

/// The API server, for steps.
#[derive(Clone)]
pub struct RealCluster {
    client: Client,
    pods: Pods,
}

impl RealCluster {
    /// With a client whose `default_retry` is off.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            pods: Pods::new(client.clone()),
            client,
        }
    }

    /// On an API server of the caller's making: method, path with query, and body in; status and body out, or nothing
    /// when the connection broke. The other one is the simulator's.
    #[must_use]
    pub fn on<A, F>(answer: A) -> Self
    where
        A: Fn(String, String, Vec<u8>) -> F + Clone + Send + 'static,
        F: Future<Output = Option<(u16, Vec<u8>)>> + Send + 'static,
    {
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = answer.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.map_err(std::io::Error::other)?;
                let broke = || std::io::Error::other("the connection broke");
                let (method, path) = (parts.method.to_string(), parts.uri.to_string());
                let (status, bytes) = answer(method, path, body.into()).await.ok_or_else(broke)?;
                let mut response = Response::new(Body::from(bytes));
                *response.status_mut() =
                    StatusCode::from_u16(status).map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(response)
            }
        });
        Self::new(Client::new(service, "default"))
    }

    /// Would the API server admit the target's pod? Asked under another name, for the source still has its own.
    async fn admits(&self, plan: &Plan) -> Result<Option<Finding>, ClusterError> {
        let mut pod: Pod =
            serde_json::from_str(&plan.target_pod).map_err(|error| ClusterError::Refused {
                what: "read the planned pod",
                reason: error.to_string(),
            })?;
        target_pod::unbind(&mut pod);
        pod.metadata = ObjectMeta {
            name: None,
            generate_name: Some(format!("{}-", plan.pod.name)),
            ..pod.metadata
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &plan.pod.namespace);
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match bounded("create the target pod, dry run", api.create(&params, &pod)).await {
            Ok(_) => Ok(None),
            // The source still counts against a quota: that one may pass once it is gone.
            Err(CallError::Refused {
                code: 403, message, ..
            }) if message.contains("exceeded quota") => Ok(None),
            Err(CallError::Refused { message, .. }) => Ok(Some(Finding::new(
                "TargetPodNotAdmitted",
                format!("the API server would not take the target pod: {message}"),
                "change the policy or webhook that refuses it",
            ))),
            Err(error @ CallError::Unknown { .. }) => {
                Err(unclear("ask whether the target pod is admitted", &error))
            }
        }
    }
}

fn unclear(what: &'static str, error: &CallError) -> ClusterError {
    ClusterError::Unclear {
        what,
        reason: error.to_string(),
    }
}

fn source_object(state: SourceState) -> SourceObject {
    match state {
        SourceState::Present => SourceObject::Present,
        SourceState::Deleting
        | SourceState::Leaving
        | SourceState::Gone
        | SourceState::OtherPod => SourceObject::Deleted,
    }
}

fn broken(status: &TargetStatus) -> Option<String> {
    if status.phase == "Failed" {
        return Some(format!(
            "the kubelet of the node did not take the pod: {}",
            status.reason
        ));
    }
    status.containers.iter().find_map(|container| {
        let broken = container.restarts > 0
            || BROKEN
                .iter()
                .any(|reason| container.not_running.contains(reason));
        broken.then(|| format!("container {}: {}", container.name, container.not_running))
    })
}

fn waiting(status: &TargetStatus) -> Option<String> {
    let reasons: Vec<String> = status
        .containers
        .iter()
        .filter(|container| !container.not_running.is_empty())
        .map(|container| format!("{}: {}", container.name, container.not_running))
        .collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

#[async_trait]
impl Cluster for RealCluster {
    async fn source(&self, plan: &Plan) -> Result<SourceObject, ClusterError> {
        // Before the commit no mark of ours can be there, so the migration's id doesn't matter for what is asked here.
        let nobody = MigrationId::from("");
        let state = self.pods.source_state(&plan.pod, &plan.uid, &nobody).await;
        state
            .map(source_object)
            .map_err(|error| unclear("look at the source pod", &error))
    }

    async fn target_refuses(&self, plan: &Plan) -> Result<Option<Finding>, ClusterError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let found = bounded("look at the target node", nodes.get(&plan.target.0)).await;
        let found = if_there(found).map_err(|error| unclear("look at the target node", &error))?;
        let node = found.as_ref().map(view::node);
        match node {
            None => Ok(Some(Finding::new(
                "NoSuchNode",
                format!("there is no node {} any more", plan.target),
                "",
            ))),
            Some(node) if node.cordoned => Ok(Some(Finding::new(
                "TargetCordoned",
                format!("node {} was cordoned meanwhile", plan.target),
                "kubectl uncordon it, or choose another node",
            ))),
            Some(node) if !node.ready => Ok(Some(Finding::new(
                "TargetNotReady",
                format!("node {} is not Ready any more", plan.target),
                "choose another node",
            ))),
            Some(_) => self.admits(plan).await,
        }
    }

    async fn mark_source(
        &self,
        plan: &Plan,
        id: &MigrationId,
    ) -> Result<SourceObject, ClusterError> {
        let state = self.pods.add_hold(&plan.pod, &plan.uid, id).await;
        state
            .map(source_object)
            .map_err(|error| unclear("mark the source pod", &error))
    }

    async fn unmark_source(&self, plan: &Plan, id: &MigrationId) -> Result<(), ClusterError> {
        let released = self.pods.release_source(&plan.pod, &plan.uid, id).await;
        released.map_err(|error| unclear("take the mark off the source pod", &error))
    }

    async fn delete_source(&self, plan: &Plan, id: &MigrationId) -> Result<Deletion, ClusterError> {
        match self.pods.delete_source(&plan.pod, &plan.uid, id).await {
            Ok(SourceDeleted::Gone) => Ok(Deletion::Done),
            Ok(SourceDeleted::PodDeleted) => Ok(Deletion::ByUser),
            Err(error) => Err(unclear("delete the source pod", &error)),
        }
    }

    async fn other_nodes(&self, plan: &Plan) -> Result<Vec<NodeName>, ClusterError> {
        let what = "look for another node";
        let api: Api<Node> = Api::all(self.client.clone());
        let found = bounded(what, api.list(&ListParams::default())).await;
        let found = found.map_err(|error| unclear(what, &error))?;
        let nodes: Vec<NodeView> = found.items.iter().map(view::node).collect();
        let architecture = |name: &NodeName| {
            let node = nodes.iter().find(|node| node.name.as_ref() == Some(name));
            node.and_then(|node| node.labels.get(ARCHITECTURE_LABEL))
        };
        let wanted = architecture(&plan.target);
        let fits = |node: &&NodeView| {
            let label = node.labels.get(ARCHITECTURE_LABEL);
            let keeps_off = |taint: &TaintView| taint.effect != "PreferNoSchedule";
            node.ready
                && !node.cordoned
                && (wanted.is_none() || label == wanted)
                && !node.taints.iter().any(keeps_off)
        };
        let mut names: Vec<NodeName> = nodes
            .iter()
            .filter(fits)
            .filter_map(|node| node.name.clone())
            .filter(|name| *name != plan.source && *name != plan.target)
            .collect();
        names.sort();
        Ok(names)
    }

    async fn create(
        &self,
        plan: &Plan,
        id: &MigrationId,
        node: &NodeName,
        images: &[Image],
    ) -> Result<PodUid, ClusterError> {
        let what = "create the restored pod";
        let pod = target_pod::with_images(plan, node, images, id).map_err(|error| {
            ClusterError::Refused {
                what,
                reason: error.to_string(),
            }
        })?;
        let mut tries = 1;
        loop {
            match self.pods.create_target(&plan.pod, &pod).await {
                Ok(uid) => return Ok(uid),
                Err(CreateError::Call(CallError::Refused { message, .. }))
                    if tries >= CREATE_TRIES =>
                {
                    return Err(ClusterError::Refused {
                        what,
                        reason: message,
                    });
                }
                Err(CreateError::Call(CallError::Refused { .. })) => {
                    tries += 1;
                    tokio::time::sleep(CREATE_AGAIN_AFTER).await;
                }
                Err(
                    error @ (CreateError::Taken { .. }
                    | CreateError::Call(CallError::Unknown { .. })),
                ) => {
                    return Err(ClusterError::Unclear {
                        what,
                        reason: error.to_string(),
                    });
                }
            }
        }
    }

    async fn restored(
        &self,
        plan: &Plan,
        id: &MigrationId,
    ) -> Result<Option<RestoredObject>, ClusterError> {
        let what = "look at the restored pod";
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &plan.pod.namespace);
        let found = if_there(bounded(what, api.get(&plan.pod.name)).await)
            .map_err(|error| unclear(what, &error))?;
        let made_by = |pod: &Pod| {
            pod.metadata
                .annotations
                .as_ref()
                .and_then(|a| a.get(MIGRATION_ANNOTATION))
                .cloned()
        };
        // A pod that moved before carries that migration's mark: the source is never taken for its own target.
        let Some(pod) = found.filter(|pod| made_by(pod).as_deref() == Some(&id.0)) else {
            return Ok(None);
        };
        let uid = PodUid(pod.metadata.uid.clone().unwrap_or_default());
        let node = NodeName(node_for(&pod).unwrap_or_default().to_owned());
        let status = target_status(&pod);
        Ok(Some(RestoredObject {
            uid,
            node,
            bound: is_bound(&pod),
            given_up: status.given_up_by.as_deref() == Some(&id.0),
            deleting: status.deleting,
            taken_up: !status.containers.is_empty(),
            broken: broken(&status),
            waiting: waiting(&status),
            ready: status.ready,
        }))
    }

    async fn settle_restored(
        &self,
        plan: &Plan,
        uid: &PodUid,
        id: &MigrationId,
    ) -> Result<(), ClusterError> {
        let released = self.pods.release_source(&plan.pod, uid, id).await;
        released.map_err(|error| unclear("let go of the restored pod", &error))
    }

    async fn condemn_restored(
        &self,
        plan: &Plan,
        uid: &PodUid,
        id: &MigrationId,
    ) -> Result<Deletion, ClusterError> {
        match self.pods.condemn(&plan.pod, uid, id).await {
            Ok(SourceDeleted::Gone) => Ok(Deletion::Done),
            Ok(SourceDeleted::PodDeleted) => Ok(Deletion::ByUser),
            Err(error) => Err(unclear("give up the restored pod", &error)),
        }
    }

    async fn delete_restored(
        &self,
        plan: &Plan,
        uid: &PodUid,
        id: &MigrationId,
    ) -> Result<Deletion, ClusterError> {
        match self.pods.delete_source(&plan.pod, uid, id).await {
            Ok(SourceDeleted::Gone) => Ok(Deletion::Done),
            Ok(SourceDeleted::PodDeleted) => Ok(Deletion::ByUser),
            Err(error) => Err(unclear("delete the restored pod", &error)),
        }
    }

    async fn remove_unbound(
        &self,
        plan: &Plan,
        uid: &PodUid,
        id: &MigrationId,
    ) -> Result<(), ClusterError> {
        let removed = self.pods.remove_unbound(&plan.pod, uid, id).await;
        removed.map_err(|error| unclear("remove a pod that was never bound", &error))
    }

    async fn prepull(
        &self,
        plan: &Plan,
        id: &MigrationId,
        node: &NodeName,
        containers: &[String],
    ) -> Result<(), ClusterError> {
        let what = "pull the base images";
        let refused = |reason: String| ClusterError::Refused { what, reason };
        let like: Pod =
            serde_json::from_str(&plan.target_pod).map_err(|error| refused(error.to_string()))?;
        let wanted: Vec<PlannedContainer> = plan
            .containers
            .iter()
            .filter(|container| containers.contains(&container.name))
            .cloned()
            .collect();
        let wanted = Wanted {
            like: &like,
            containers: &wanted,
            node,
            migration: id,
        };
        match prepull(&self.client, &wanted, PREPULL_WITHIN).await {
            Ok(Pulled::All) => Ok(()),
            Ok(Pulled::Refused(reason) | Pulled::Not(reason)) => Err(refused(reason)),
            Ok(Pulled::TooSlow) => Err(refused(format!(
                "not pulled within {} s",
                PREPULL_WITHIN.as_secs()
            ))),
            Err(error) => Err(unclear(what, &error)),
        }
    }

    async fn remove_prepull(&self, plan: &Plan, id: &MigrationId) -> Result<(), ClusterError> {
        let removed = remove_leftovers(&self.client, &plan.pod.namespace, id).await;
        removed.map_err(|error| unclear("remove a pull pod that was left", &error))
    }
}
