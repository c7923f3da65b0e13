//! The desk where requests are taken in: a `PodMigration` object becomes a plan or its refusals, and that a command;
//! its deletion becomes an abort.
//!
//! Planning looks at Kubernetes and asks the source's worker, so every request has a task of its own; the log makes
//! sure that two for one pod become one migration and one refusal, and that a request submitted twice is one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::Client;
use orchestrator_core::{
    id::{MigrationId, NodeName, PodRef},
    migration::Span,
    plan::KeptCheckpoint,
    planner,
    refusal::Finding,
    state::{Applied, Command, Decision, Rejection},
    view::{InspectionView, PodView, WorkerView},
};
use proto::worker::{self as wire, answer, question};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    api,
    clock::{unix_ms, unix_ns},
    consensus::node::Log,
    k8s::{
        call::CallError,
        intake::{self, Asked, Intake},
        view,
    },
    workers::Workers,
};

/// Looking into /proc of some hundred processes takes well under a second.
const INSPECT_WITHIN: Duration = Duration::from_secs(15);

/// After a lost quorum or an API server that is away.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Takes requests in.
#[derive(Clone)]
pub struct Desk {
    /// Kubernetes.
    pub client: Client,
    /// The log.
    pub log: Log,
    /// Who can be asked.
    pub workers: Workers,
    /// Requests whose task is under way.
    pub busy: Arc<Mutex<BTreeSet<MigrationId>>>,
}

impl Desk {
    /// Until the watch ends. Dropped, it drops what is under way: a deposed leader takes nothing in.
    pub async fn run(self, mut intake: mpsc::Receiver<Intake>) {
        let mut under_way = JoinSet::new();
        while let Some(asked) = intake.recv().await {
            while under_way.try_join_next().is_some() {}
            let desk = self.clone();
            match asked {
                Intake::Submit(asked) => {
                    if desk.begin(&asked.id) {
                        under_way.spawn(async move {
                            desk.submit(&asked).await;
                            desk.end(&asked.id);
                        });
                    }
                }
                Intake::Abort { id, object } => {
                    under_way.spawn(async move { desk.abort(id, object).await });
                }
                Intake::DeclareDead { id, node } => {
                    tokio::spawn(async move { desk.declare_dead(id, node).await });
                }
            }
        }
    }

    fn begin(&self, id: &MigrationId) -> bool {
        let known = self.log.state().borrow().migrations.contains_key(id);
        !known
            && self
                .busy
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(id.clone())
    }

    fn end(&self, id: &MigrationId) {
        self.busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    async fn submit(&self, asked: &Asked) {
        let seen_ns = unix_ns();
        loop {
            let planned_ns = unix_ns();
            match self.decide(asked).await {
                Ok(decision) => {
                    let spans = vec![
                        span("request", asked.asked_ns, seen_ns),
                        span("plan", planned_ns, unix_ns()),
                    ];
                    if self.propose(asked, decision, spans).await {
                        return;
                    }
                }
                Err(error) => tracing::warn!(migration = %asked.object, %error, "planning waits"),
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn propose(&self, asked: &Asked, decision: Decision, spans: Vec<Span>) -> bool {
        let command = Command::Submit {
            id: asked.id.clone(),
            object: asked.object.clone(),
            request: asked.request.clone(),
            decision,
            at_ms: unix_ms(),
            spans,
        };
        match self.log.propose(command).await {
            Ok((_, Ok(applied))) => {
                tracing::info!(migration = %asked.object, id = %asked.id, ?applied, "submitted");
                true
            }
            Ok((_, Err(rejection))) => {
                tracing::warn!(migration = %asked.object, %rejection, "not submitted");
                true
            }
            Err(error) => {
                tracing::warn!(migration = %asked.object, %error, "it is submitted again");
                false
            }
        }
    }

    async fn decide(&self, asked: &Asked) -> Result<Decision, CallError> {
        if !asked.phase_shown.is_empty() {
            return Ok(Decision::Refuse(vec![Finding::new(
                "LogLost",
                format!(
                    "the log does not know this migration, which was {} before",
                    asked.phase_shown
                ),
                "see what runs and what is held, then ask for another migration",
            )]));
        }
        let workers = self.worker_views();
        let pod = view::look_up(&self.client, &asked.request).await?;
        let inspection = match &pod {
            Some(pod) => self.inspect(pod).await,
            None => Err("there is no pod to look at".to_owned()),
        };
        let base = pod.as_ref().and_then(|pod| self.base(pod));
        let view = view::gather(
            &self.client,
            &asked.request,
            pod,
            &workers,
            inspection,
            base,
        )
        .await?;
        Ok(match planner::plan(&asked.request, &view) {
            Ok(plan) => Decision::Plan(Box::new(plan)),
            Err(reasons) => Decision::Refuse(reasons),
        })
    }

    /// A kept checkpoint of this pod, by our log: an older one than the group's at the worst.
    fn base(&self, pod: &PodView) -> Option<KeptCheckpoint> {
        let (name, restored_by) = (pod.pod.as_ref()?, pod.restored_by.as_ref()?);
        let state = self.log.state();
        let state = state.borrow();
        state.base_after(name, restored_by, unix_ms())
    }

    fn worker_views(&self) -> BTreeMap<NodeName, WorkerView> {
        let connected = self.workers.connected().into_iter();
        connected
            .filter_map(|(node, worker)| {
                worker
                    .inventory
                    .map(|inventory| (node, api::worker_view(&inventory)))
            })
            .collect()
    }

    async fn inspect(&self, pod: &PodView) -> Result<InspectionView, String> {
        let containers = pod.containers.iter().map(|container| wire::Container {
            name: container.name.clone(),
            image: container.image.clone(),
            image_digest: container.image_digest.clone(),
            container_id: container.container_id.clone(),
        });
        let (namespace, name) = pod
            .pod
            .as_ref()
            .map(|pod| (pod.namespace.clone(), pod.name.clone()))
            .unwrap_or_default();
        let wire_pod = wire::Pod {
            namespace,
            name,
            uid: pod
                .uid
                .as_ref()
                .map(|uid| uid.0.clone())
                .unwrap_or_default(),
            containers: containers.collect(),
            pod_ip: pod.ip.clone(),
        };
        let kind = question::Kind::Inspect(wire::Inspect {
            pod: Some(wire_pod),
            ghost_limit_bytes: 0,
        });
        match self
            .workers
            .ask(&NodeName(pod.node.clone()), kind, INSPECT_WITHIN)
            .await
        {
            Ok(answer::Kind::Inspection(inspection)) => Ok(api::inspection_view(&inspection)),
            Ok(
                answer::Kind::HoldState(_)
                | answer::Kind::Images(_)
                | answer::Kind::Verified(_)
                | answer::Kind::StoreListing(_)
                | answer::Kind::StoreChecked(_)
                | answer::Kind::StoreCleared(_),
            ) => Err("the worker answered another question".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A person's word that a node is dead is taken unless its worker says the contrary, or the log has it already.
    async fn declare_dead(&self, id: MigrationId, node: NodeName) {
        loop {
            let needless = {
                let state = self.log.state();
                let state = state.borrow();
                let known = state.migrations.get(&id);
                known.is_none_or(|migration| migration.phase.ended() || migration.is_dead(&node))
            };
            if needless {
                return;
            }
            if self.workers.connected().contains_key(&node) {
                tracing::warn!(migration = %id, %node, "declared dead, but its worker answers: not taken");
                return;
            }
            let command = Command::DeclareDead {
                id: id.clone(),
                node: node.clone(),
                at_ms: unix_ms(),
            };
            match self.log.propose(command).await {
                Ok((_, Ok(_))) => {
                    tracing::warn!(migration = %id, %node, "declared dead: it goes on without that node");
                    return;
                }
                Ok((_, Err(rejection))) => {
                    tracing::warn!(migration = %id, %node, %rejection, "declared dead, but not taken");
                    return;
                }
                Err(error) => {
                    tracing::warn!(migration = %id, %node, %error, "it is proposed again");
                }
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// Its object is deleted: nobody wants its checkpoint any more. If that is not taken in now, it goes when it is old.
    async fn let_go_of_checkpoint(&self, id: &MigrationId) {
        if !self.log.state().borrow().is_kept(id) {
            return;
        }
        let told = self.log.propose(Command::LetGo { id: id.clone() }).await;
        let told = told.map(|(_, applied)| applied);
        tracing::info!(migration = %id, ?told, "its kept checkpoint is let go of");
    }

    /// Obeyed, refused, or, when the log never knew it or it has ended, the object is let go.
    ///
    /// It is let go only when a majority says that we lead still: a deposed leader's log doesn't know the newest ones.
    async fn abort(&self, id: MigrationId, object: PodRef) {
        let by = Finding::new(
            "Aborted",
            format!("the PodMigration {object} was deleted"),
            "",
        );
        loop {
            if let Err(error) = self.log.confirm().await {
                tracing::warn!(migration = %object, %error, "the abort waits");
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            }
            let known = self
                .log
                .state()
                .borrow()
                .migrations
                .get(&id)
                .map(|migration| migration.phase);
            let let_go = match known {
                None => !self
                    .busy
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .contains(&id),
                Some(phase) => phase.ended(),
            };
            if let_go {
                self.let_go_of_checkpoint(&id).await;
                match intake::forget(&self.client, &id, &object).await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(migration = %object, %error, "it is let go later"),
                }
            } else if known.is_some() {
                let command = Command::Abort {
                    id: id.clone(),
                    reason: by.clone(),
                    at_ms: unix_ms(),
                };
                match self.log.propose(command).await {
                    Ok((_, Ok(Applied::Phase(_) | Applied::Registered(_)))) => return,
                    Ok((
                        _,
                        Err(
                            rejection @ (Rejection::TooLate(_)
                            | Rejection::Stale { .. }
                            | Rejection::NotItsNode(_)
                            | Rejection::NoSuchMigration(_)),
                        ),
                    )) => {
                        tracing::info!(migration = %object, %rejection, "an abort was refused");
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(migration = %object, %error, "the abort is proposed again")
                    }
                }
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}

fn span(name: &str, start_unix_ns: u64, end_unix_ns: u64) -> Span {
    Span {
        name: name.to_owned(),
        place: "orchestrator".to_owned(),
        parent: String::new(),
        start_unix_ns,
        end_unix_ns,
        attributes: BTreeMap::new(),
    }
}
