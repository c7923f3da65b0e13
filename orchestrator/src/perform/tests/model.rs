//! A source, a target and Kubernetes as values, with trouble on demand.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use orchestrator_core::{
    id::{MigrationId, NodeName, PodUid},
    migration::Image,
    plan::Plan,
    refusal::Finding,
};
use proto::worker::{
    self as wire, StepReport, answer, question, step_report, step_request,
    verified_container::Origin,
};
use tokio::{sync::Notify, time::Instant};

use crate::{
    perform::{Cluster, ClusterError, Deletion, Nodes, RestoredObject, SourceObject},
    workers::{CallError, Clock, step_name},
};

/// What goes wrong at an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    DieBefore,
    DieAfter,
    LoseAnswer,
    Fail,
}

/// One fault, at the n-th effect of the run.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    pub at: usize,
    pub fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Running,
    Held,
    Gone,
}

/// What can be seen from outside.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub violations: Vec<String>,
    pub history: Vec<String>,
    pub effects: usize,
    pub target_runs: bool,
    pub rescued_runs: bool,
    pub source_runs: bool,
    pub source_alive: bool,
    pub disarmed: bool,
    pub marked: bool,
    pub pull_pod: bool,
}

struct Inner {
    source: Source,
    object: Option<()>,
    marked: bool,
    /// A pull that died has left its pod.
    pull_pod: bool,
    user_deleted: bool,
    durable: bool,
    restored: Option<(String, u64)>,
    restored_runs: bool,
    /// A kubelet may start it.
    bound: bool,
    /// After this effect a creation for the target's node is carried out that nobody waits for any more.
    made_late_after: Option<&'static str>,
    /// Marked and deleted; its object stays until the proof.
    given_up: bool,
    withdrawn: bool,
    made: u64,
    disarmed: bool,
    trouble: Option<Trouble>,
    effects: usize,
    history: Vec<String>,
    violations: Vec<String>,
    broken_node: Option<String>,
    fresh_node: Option<String>,
    thaw_after: Option<&'static str>,
    delete_after: Option<&'static str>,
    /// The user deleted the restored pod: its container ends, our finalizer keeps the object.
    restored_deleted: bool,
    delete_restored_after: Option<&'static str>,
    end_after: Option<&'static str>,
    fail_next: Option<&'static str>,
    cut_after: Option<(&'static str, &'static str)>,
    cut: Option<&'static str>,
    doomed: bool,
    /// Kubelets see a made pod this much later.
    kubelets_away: Duration,
    taken_up_from: Instant,
    /// A restore that seems broken comes up when it is barred.
    comes_up_late: bool,
    /// The target has no base image.
    lacks_image: bool,
    /// What its kubelet says of a pull.
    pull_refused: Option<&'static str>,
}

pub struct Model {
    inner: Mutex<Inner>,
    death: Notify,
}

enum Fate {
    Go,
    GoThenDie,
    GoThenLose,
    Fail,
    Die,
}

impl Model {
    pub fn new(trouble: Option<Trouble>) -> Self {
        let inner = Inner {
            source: Source::Running,
            object: Some(()),
            marked: false,
            pull_pod: true,
            user_deleted: false,
            durable: false,
            restored: None,
            restored_runs: false,
            bound: false,
            made_late_after: None,
            given_up: false,
            withdrawn: false,
            made: 0,
            kubelets_away: Duration::ZERO,
            taken_up_from: Instant::now(),
            disarmed: false,
            trouble,
            effects: 0,
            history: Vec::new(),
            violations: Vec::new(),
            broken_node: None,
            fresh_node: None,
            thaw_after: None,
            delete_after: None,
            restored_deleted: false,
            delete_restored_after: None,
            end_after: None,
            fail_next: None,
            cut_after: None,
            cut: None,
            doomed: false,
            comes_up_late: false,
            lacks_image: false,
            pull_refused: None,
        };
        Self {
            inner: Mutex::new(inner),
            death: Notify::new(),
        }
    }

    pub fn break_restores_on(&self, node: &str) {
        self.lock().broken_node = Some(node.to_owned());
    }

    pub fn kubelets_away_for(&self, away: Duration) {
        self.lock().kubelets_away = away;
    }

    pub fn restores_come_up_late(&self) {
        self.lock().comes_up_late = true;
    }

    /// The target has no base image, and its kubelet says this of a pull.
    pub fn lacks_image(&self, refused: &'static str) {
        let mut inner = self.lock();
        (inner.lacks_image, inner.pull_refused) = (true, Some(refused));
    }

    pub fn start_fresh_on(&self, node: &str) {
        self.lock().fresh_node = Some(node.to_owned());
    }

    /// `Failed` at Restoring is a proof: a rescue may only begin when nothing of the target is left that can run. One
    /// that is bound to no node can't.
    pub fn must_have_nothing_restored_on(&self, node: &str) {
        let mut inner = self.lock();
        let there = inner.restored.as_ref().is_some_and(|(at, _)| at == node);
        if (there && inner.bound) || (inner.restored_runs && inner.restored.is_none()) {
            inner.violations.push(format!(
                "a rescue began while a restored pod was left on {node}"
            ));
        }
    }

    pub fn thaw_after(&self, effect: &'static str) {
        self.lock().thaw_after = Some(effect);
    }

    pub fn user_deletes_after(&self, effect: &'static str) {
        self.lock().delete_after = Some(effect);
    }

    pub fn user_deletes_restored_after(&self, effect: &'static str) {
        self.lock().delete_restored_after = Some(effect);
    }

    pub fn made_late_after(&self, effect: &'static str) {
        self.lock().made_late_after = Some(effect);
    }

    /// The restored pod is gone by its user's will, and another one of the same migration is made late.
    pub fn replaced_late(&self, bound: bool) {
        let mut inner = self.lock();
        inner.user_deleted = true;
        inner.restored_runs = bound;
        inner.make("node2");
        inner.bound = bound;
    }

    pub fn end_source_after(&self, effect: &'static str) {
        self.lock().end_after = Some(effect);
    }

    /// From this effect on nobody reaches that node's worker.
    pub fn cut_after(&self, effect: &'static str, node: &'static str) {
        self.lock().cut_after = Some((effect, node));
    }

    /// What a person does before declaring a node dead: whatever was restored there runs no more.
    pub fn power_off(&self, node: &str) {
        let mut inner = self.lock();
        if inner.restored.as_ref().is_some_and(|(at, _)| at == node) {
            inner.restored_runs = false;
        }
    }

    /// A signal to end it waits in the held source.
    pub fn doom(&self) {
        self.lock().doomed = true;
    }

    pub fn heal(&self) {
        self.lock().cut = None;
    }

    /// Where a restored pod runs, if one does.
    pub fn restored_on(&self) -> Option<String> {
        let inner = self.lock();
        let restored = inner.restored.as_ref().filter(|_| inner.restored_runs);
        restored.map(|(node, _)| node.clone())
    }

    fn reaches(&self, node: &NodeName) -> Result<(), CallError> {
        if self.lock().cut == Some(node.0.as_str()) {
            return Err(CallError::NotConnected { node: node.clone() });
        }
        Ok(())
    }

    pub fn fail_next(&self, effect: &'static str) {
        self.lock().fail_next = Some(effect);
    }

    pub async fn died(&self) {
        self.death.notified().await;
    }

    pub fn seen(&self) -> Seen {
        let inner = self.lock();
        let on = |node: &str| {
            inner.restored.as_ref().is_some_and(|(at, _)| at == node) && inner.restored_runs
        };
        Seen {
            violations: inner.violations.clone(),
            history: inner.history.clone(),
            effects: inner.effects,
            target_runs: on("node2"),
            rescued_runs: on("node1"),
            source_runs: inner.source == Source::Running,
            source_alive: inner.source != Source::Gone,
            disarmed: inner.disarmed,
            marked: inner.marked,
            pull_pod: inner.pull_pod,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One effect: meets its fate, changes the world, is checked.
    async fn effect<T>(
        &self,
        name: &'static str,
        change: impl FnOnce(&mut Inner) -> T,
        failed: impl FnOnce() -> T,
    ) -> Result<T, ()> {
        let (fate, result) = {
            let mut inner = self.lock();
            inner.effects += 1;
            let fails = inner.fail_next.take_if(|next| *next == name).is_some();
            let fate = match inner
                .trouble
                .filter(|trouble| trouble.at == inner.effects)
                .map(|trouble| trouble.fault)
            {
                None if fails => Fate::Fail,
                None => Fate::Go,
                Some(Fault::DieBefore) => Fate::Die,
                Some(Fault::DieAfter) => Fate::GoThenDie,
                Some(Fault::LoseAnswer) => Fate::GoThenLose,
                Some(Fault::Fail) => Fate::Fail,
            };
            let result = match fate {
                Fate::Go | Fate::GoThenDie | Fate::GoThenLose => Some(change(&mut inner)),
                Fate::Fail => Some(failed()),
                Fate::Die => None,
            };
            inner.after(name);
            (fate, result)
        };
        match fate {
            Fate::Go | Fate::Fail => result.ok_or(()),
            Fate::GoThenLose => Err(()),
            Fate::GoThenDie | Fate::Die => {
                self.death.notify_one();
                std::future::pending().await
            }
        }
    }
}

impl Inner {
    fn make(&mut self, node: &str) {
        self.made += 1;
        self.withdrawn = false;
        self.bound = false;
        self.restored = Some((node.to_owned(), self.made));
    }

    fn after(&mut self, name: &'static str) {
        if self.thaw_after == Some(name) {
            self.thaw_after = None;
            self.source = Source::Running;
        }
        if self.delete_after == Some(name) {
            self.delete_after = None;
            self.user_deleted = true;
        }
        if self.delete_restored_after == Some(name) {
            self.delete_restored_after = None;
            self.restored_deleted = true;
            self.restored_runs = false;
            self.user_deleted = true;
        }
        if self.end_after == Some(name) {
            self.end_after = None;
            self.source = Source::Gone;
        }
        if let Some((_, node)) = self.cut_after.take_if(|(effect, _)| *effect == name) {
            self.cut = Some(node);
        }
        if self.made_late_after == Some(name) && self.object.is_none() && self.restored.is_none() {
            self.made_late_after = None;
            self.make("node2");
        }
        let effect = self.effects;
        self.history.push(format!(
            "{effect} {name}: source {:?}, object {}, restored {:?} runs {}, durable {}",
            self.source,
            self.object.is_some(),
            self.restored,
            self.restored_runs,
            self.durable
        ));
        if self.source == Source::Running && self.restored_runs {
            self.violations
                .push(format!("two run after {effect} {name}"));
        }
        let alive = self.source != Source::Gone || self.restored_runs;
        if !alive && !self.durable && !self.user_deleted {
            self.violations.push(format!("lost after {effect} {name}"));
        }
    }
}

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
        self.effect("mark source", change, || Err(unclear("mark")))
            .await
            .map_err(|()| unclear("mark"))?
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
        self.effect("unmark source", change, || Err(unclear("unmark")))
            .await
            .map_err(|()| unclear("unmark"))?
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
        self.effect("delete source", change, || Err(unclear("delete")))
            .await
            .map_err(|()| unclear("delete"))?
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
        self.effect("settle restored", change, || Err(unclear("settle")))
            .await
            .map_err(|()| unclear("settle"))?
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
        self.effect("condemn restored", change, || Err(unclear("condemn")))
            .await
            .map_err(|()| unclear("condemn"))?
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
        self.effect("delete restored", change, || Err(unclear("delete")))
            .await
            .map_err(|()| unclear("delete"))?
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

#[expect(clippy::too_many_lines, reason = "a table: one row a step")]
fn perform(inner: &mut Inner, kind: &step_request::Kind) -> Option<step_report::Result> {
    match kind {
        step_request::Kind::Hold(_) => {
            inner.source = Source::Held;
            inner.durable = true;
            Some(step_report::Result::Held(wire::HeldCheckpoint {
                boot_id: "b".to_owned(),
                paused_unix_ns: crate::clock::unix_ns(),
                ..Default::default()
            }))
        }
        step_request::Kind::Deliver(_) => Some(step_report::Result::Delivered(wire::Delivered {
            images: vec![wire::DeliveredImage {
                container: "kuard".to_owned(),
                ..Default::default()
            }],
        })),
        step_request::Kind::Disarm(_) => {
            inner.disarmed = true;
            None
        }
        step_request::Kind::Destroy(_) => {
            inner.source = Source::Gone;
            None
        }
        step_request::Kind::Release(release) => {
            if release.keep_if_doomed && inner.doomed {
                return Some(step_report::Result::Released(wire::Released {
                    doomed: true,
                    ..Default::default()
                }));
            }
            if inner.source == Source::Held {
                inner.source = Source::Running;
            }
            let running = inner.source == Source::Running;
            Some(step_report::Result::Released(wire::Released {
                was_held: true,
                running,
                ..Default::default()
            }))
        }
        step_request::Kind::Withdraw(_) => {
            inner.withdrawn = true;
            if inner.restored.is_none() || inner.given_up {
                inner.restored_runs = false;
            }
            None
        }
        step_request::Kind::Bar(_) if inner.comes_up_late => {
            inner.restored_runs = true;
            Some(step_report::Result::Barred(wire::Barred {
                restored: true,
                ..Default::default()
            }))
        }
        step_request::Kind::Bar(_) => Some(step_report::Result::Barred(wire::Barred {
            restored: inner.restored_runs && inner.fresh_node.is_none(),
            detail: String::new(),
        })),
        step_request::Kind::Tidy(tidy) => {
            if !tidy.store_prefix.is_empty() {
                inner.durable = false;
            }
            None
        }
        step_request::Kind::Copy(_) => Some(step_report::Result::Copied(wire::CopiedRound {
            manifest_key: "round".to_owned(),
            ..Default::default()
        })),
        step_request::Kind::ExportImages(_) => Some(step_report::Result::Exported(
            wire::ExportedImages::default(),
        )),
        step_request::Kind::ImportImages(_) => {
            inner.lacks_image = false;
            None
        }
        step_request::Kind::Receive(_) => None,
    }
}

#[async_trait]
impl Nodes for Model {
    async fn step(
        &self,
        node: &NodeName,
        _migration: &MigrationId,
        revision: u64,
        kind: step_request::Kind,
        _within: Duration,
    ) -> Result<StepReport, CallError> {
        self.reaches(node)?;
        let name = step_name(&kind);
        let report = |outcome: step_report::Outcome, result| StepReport {
            revision,
            outcome: outcome as i32,
            result,
            ..Default::default()
        };
        let done = |inner: &mut Inner| report(step_report::Outcome::Done, perform(inner, &kind));
        let failed = || report(step_report::Outcome::Failed, None);
        let lost = CallError::Lost {
            node: node.clone(),
            what: name,
        };
        self.effect(name, done, failed).await.map_err(|()| lost)
    }

    async fn ask(
        &self,
        node: &NodeName,
        kind: question::Kind,
        _within: Duration,
    ) -> Result<answer::Kind, CallError> {
        self.reaches(node)?;
        let lost = CallError::Lost {
            node: node.clone(),
            what: "ask",
        };
        let answer = |inner: &mut Inner| match kind {
            question::Kind::Inspect(_) => answer::Kind::Inspection(wire::Inspection::default()),
            question::Kind::ConfirmHold(_) => answer::Kind::HoldState(wire::HoldState {
                held: inner.source == Source::Held,
                boot_id: "b".to_owned(),
                detail: format!("{:?}", inner.source),
            }),
            question::Kind::HasImages(_) => {
                let missing = inner.lacks_image.then(|| "kuard".to_owned());
                let missing = missing.into_iter().collect();
                answer::Kind::Images(wire::ImagesState { missing })
            }
            question::Kind::Verify(_) => {
                let origin = match (&inner.restored, inner.restored_runs) {
                    _ if Instant::now() < inner.taken_up_from => Origin::NotYet,
                    (Some((at, _)), _) if inner.fresh_node.as_deref() == Some(at) => {
                        Origin::Started
                    }
                    (Some(_), true) => Origin::Restored,
                    (Some(_), false) => Origin::Broken,
                    (None, _) => Origin::NotYet,
                };
                let container = wire::VerifiedContainer {
                    origin: origin as i32,
                    ..Default::default()
                };
                answer::Kind::Verified(wire::Verified {
                    containers: vec![container],
                })
            }
            question::Kind::ClearStore(_) => answer::Kind::StoreCleared(wire::StoreCleared {}),
            question::Kind::ListStore(_) | question::Kind::CheckStore(_) => {
                unreachable!("no step asks for it")
            }
        };
        let name = match &kind {
            question::Kind::Inspect(_) => "inspect",
            question::Kind::ConfirmHold(_) => "confirm hold",
            question::Kind::HasImages(_) => "has images",
            question::Kind::Verify(_) => "verify",
            question::Kind::ClearStore(_) => "clear store",
            question::Kind::ListStore(_) | question::Kind::CheckStore(_) => "store",
        };
        match self
            .effect(name, |inner| Some(answer(inner)), || None)
            .await
        {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(()) => Err(lost),
        }
    }

    fn clock(&self, _node: &NodeName) -> Clock {
        Clock::default()
    }
}
