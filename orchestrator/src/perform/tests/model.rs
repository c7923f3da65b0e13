//! A source, a target and Kubernetes as values, with trouble on demand.

mod cluster;
mod nodes;

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use orchestrator_core::id::NodeName;
use tokio::{sync::Notify, time::Instant};

use crate::workers::CallError;

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
