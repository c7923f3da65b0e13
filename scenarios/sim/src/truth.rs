//! What is really so, whatever anybody believes: machines and what runs on them, Kubernetes' objects, stored bytes.
//!
//! A container's *memory* is which life it belongs to and how long it has run in it. A checkpoint is a copy of that
//! number, and a client has been answered as often as the number says. So "nothing acknowledged is lost" is: whoever is
//! restored has the number at which its life was last seen running.
//!
//! Only what the promise speaks of is checked here, after every change: one running copy; a restored one is not stale;
//! nothing that we end was the only copy.

use std::collections::BTreeMap;
use std::path::PathBuf;

use worker::containerd::TaskState;

use crate::{
    api::Objects,
    lines::{goes_on, is_whole, went_back_alone},
    sim::Violation,
    store::Stored,
};

/// A life of a container and how far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory {
    /// Which fresh start it goes back to.
    pub life: u64,
    /// Milliseconds it has run.
    pub ran: u64,
}

/// What an image brings to life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A fresh start.
    Base,
    /// A restore.
    Checkpoint(Memory),
}

/// What the worker's registry answers for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of which migration.
    pub migration: String,
    /// With the checkpoint, or after disarming with the base.
    pub content: Content,
    /// Nobody is answered.
    pub silent: bool,
}

/// A container of a pod on a machine.
#[derive(Clone, Debug)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Name in the pod.
    pub name: String,
    /// First process.
    pub pid: u32,
    /// As the runtime says.
    pub state: TaskState,
    /// Exit status once stopped.
    pub exit_status: u32,
    /// 0 the first time.
    pub attempt: u32,
    /// What it remembers; none before it started.
    pub memory: Option<Memory>,
    /// The checkpoint image it was restored from.
    pub restored_from: Option<String>,
    /// It started from a base image where a checkpoint was due.
    pub stray: bool,
    /// A dump of it is under way.
    pub dumping: bool,
    /// A mistake's work: it is said to be paused, and runs.
    pub said_paused: bool,
    /// SIGTERM was sent to it.
    pub term_pending: bool,
    /// It has ever run.
    pub started: bool,
    /// Since when.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: u64,
    running: bool,
}

/// A pod on a machine, as kubelet and runtime have it.
#[derive(Clone, Debug, Default)]
pub struct LocalPod {
    /// Its name.
    pub name: String,
    /// The migration that made it.
    pub made_by: Option<String>,
    /// Its cgroup is frozen.
    pub frozen: bool,
    /// The kubelet ends it since then.
    pub ending_since_ms: Option<u64>,
    /// Its containers, the newest last.
    pub containers: Vec<Container>,
    /// All its containers ran together while its object stood: only then is it ready, and clients are led to it.
    pub whole: bool,
    /// The kubelet starts something of it just now.
    pub starting: bool,
    /// Not before this time is anything started again.
    pub not_before_ms: u64,
}

/// An archive that the kubelet wrote.
#[derive(Clone, Debug)]
pub struct Archive {
    /// The container it says it is of.
    pub container_id: String,
    /// What is in it.
    pub memory: Memory,
    /// Of which pod.
    pub pod: String,
}

/// A node of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Counts its boots.
    pub boot: u32,
    /// It runs.
    pub up: bool,
    /// Frozen processes die of SIGKILL at once (cgroup v2), or once they are thawed.
    pub dies_frozen: bool,
    /// Its runtime starts checkpoint images afresh.
    pub starts_afresh: bool,
    /// Restores fail on it.
    pub breaks_restores: bool,
    /// Restores fail on it so often in a thousand.
    pub fails_restores_per_mille: u64,
    /// Its worker lives and answers for images.
    pub registry_up: bool,
    /// Pods by UID.
    pub pods: BTreeMap<String, LocalPod>,
    /// Images by name.
    pub images: BTreeMap<String, Content>,
    /// What its registry answers; on disk.
    pub registry: BTreeMap<String, Entry>,
    /// Archives; on disk.
    pub archives: BTreeMap<PathBuf, Archive>,
}

/// One container of one pod, over all its copies.
#[derive(Clone, Debug)]
pub struct Line {
    /// The life that counts.
    pub memory: Memory,
    /// An accident ended its last copy.
    pub lost_by_accident: bool,
}

/// Why a container ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Somebody of ours, or the kubelet at our word.
    Ended,
    /// Nobody's will.
    Accident,
}

/// Everything.
#[derive(Debug, Default)]
pub struct Truth {
    /// Nodes by name.
    pub machines: BTreeMap<String, Machine>,
    /// By pod and container.
    pub lines: BTreeMap<(String, String), Line>,
    /// Kubernetes' objects.
    pub objects: Objects,
    /// The store.
    pub stored: Stored,
    counted: u64,
    passed_ms: u64,
}

impl Container {
    /// Made, not started.
    fn new(id: String, name: &str, pid: u32, attempt: u32) -> Self {
        Self {
            id,
            name: name.to_owned(),
            pid,
            state: TaskState::Created,
            exit_status: 0,
            attempt,
            memory: None,
            restored_from: None,
            stray: false,
            dumping: false,
            said_paused: false,
            term_pending: false,
            started: false,
            started_ms: 0,
            ended_ms: 0,
            running: false,
        }
    }

    /// There is a process.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.started && self.state != TaskState::Stopped
    }

    fn is_set_running(&self) -> bool {
        self.started && self.state == TaskState::Running
    }

    /// Its process executes instructions.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.running
    }
}

impl LocalPod {
    /// Containers with a process.
    pub fn alive(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|c| c.is_alive())
    }
}

impl Machine {
    /// The container of this id and its pod's UID.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<(&str, &Container)> {
        let all = self
            .pods
            .iter()
            .flat_map(|(uid, pod)| pod.containers.iter().map(move |c| (uid.as_str(), c)));
        all.into_iter().find(|(_, c)| c.id == id)
    }

    /// The same, to be changed.
    pub fn container_mut(&mut self, id: &str) -> Option<&mut Container> {
        let all = self.pods.values_mut().flat_map(|pod| &mut pod.containers);
        all.into_iter().find(|c| c.id == id)
    }
}

impl Truth {
    /// A number that was never given before.
    pub fn count(&mut self) -> u64 {
        self.counted += 1;
        self.counted
    }

    /// The machine of this name.
    ///
    /// # Panics
    /// When the schedule has no such machine.
    pub fn machine(&mut self, name: &str) -> &mut Machine {
        self.machines
            .get_mut(name)
            .expect("a schedule knows its machines")
    }

    /// Whatever runs goes on running until now.
    pub fn time_passes(&mut self, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.passed_ms);
        self.passed_ms = now_ms;
        if passed_ms == 0 {
            return;
        }
        for pod in self.machines.values_mut().flat_map(|m| m.pods.values_mut()) {
            for container in pod.containers.iter_mut().filter(|c| c.running) {
                let Some(memory) = &mut container.memory else {
                    continue;
                };
                memory.ran += passed_ms;
                let line = (pod.name.clone(), container.name.clone());
                if let Some(line) = self.lines.get_mut(&line)
                    && line.memory.life == memory.life
                {
                    line.memory.ran = line.memory.ran.max(memory.ran);
                }
            }
        }
    }

    /// What runs now, and is that as promised?
    pub fn settle(&mut self, now_ms: u64, violations: &mut Vec<Violation>) {
        let mut violated = |what| {
            violations.push(Violation {
                at_ms: now_ms,
                what,
            });
        };
        let Self {
            machines,
            lines,
            objects,
            ..
        } = self;
        let mut running: BTreeMap<(&str, &str), (u32, &str)> = BTreeMap::new();
        for (node, machine) in machines {
            let up = machine.up;
            for (uid, pod) in &mut machine.pods {
                pod.whole = pod.whole || objects.is_current(&pod.name, uid) && is_whole(pod, lines);
                let (name, frozen) = (pod.name.as_str(), pod.frozen);
                let runs = |c: &Container| up && !frozen && c.is_set_running();
                let begins = |c: &&Container| runs(c) && !c.running;
                let begin = pod.containers.iter().filter(begins);
                let alone = begin.map(|c| (c.id.clone(), went_back_alone(&pod.containers, c)));
                let alone: BTreeMap<String, bool> = alone.collect();
                for container in &mut pod.containers {
                    let runs = runs(container);
                    container.running = runs;
                    if let Some(alone) = alone.get(&container.id)
                        && let Some(stale) = goes_on(lines, name, container, *alone)
                    {
                        violated(format!(
                            "stale: {name}/{} on {node} {stale}",
                            container.name
                        ));
                    }
                    if runs {
                        let copy = (name, container.name.as_str());
                        let (copies, first) = running.entry(copy).or_insert((0, node.as_str()));
                        *copies += 1;
                        if *copies == 2 {
                            let (pod, container) = copy;
                            violated(format!(
                                "two copies of {pod}/{container} run, on {first} and {node}"
                            ));
                        }
                    }
                }
            }
        }
    }

    /// A new container of a pod on a machine: its id.
    pub fn make_container(&mut self, node: &str, uid: &str, name: &str) -> Option<String> {
        let number = self.count();
        let pod = self.machine(node).pods.get_mut(uid)?;
        let attempt = pod.containers.iter().filter(|c| c.name == name).count();
        let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
        let id = format!("c{number}");
        let pid = u32::try_from(number).unwrap_or(u32::MAX);
        pod.containers
            .push(Container::new(id.clone(), name, pid, attempt));
        Some(id)
    }

    /// It starts: afresh, or restored from the image of this name.
    pub fn start(&mut self, node: &str, id: &str, content: Content, reference: &str, stray: bool) {
        let fresh = Memory {
            life: self.count(),
            ran: 0,
        };
        let now_ms = self.passed_ms;
        let machine = self.machine(node);
        let Some(container) = machine.container_mut(id) else {
            return;
        };
        container.started = true;
        container.started_ms = now_ms;
        container.state = TaskState::Running;
        match content {
            Content::Checkpoint(memory) => {
                container.memory = Some(memory);
                container.restored_from = Some(reference.to_owned());
            }
            Content::Base => {
                container.memory = Some(fresh);
                container.stray = stray;
            }
        }
    }

    /// A container's process ends.
    pub fn end(
        &mut self,
        now_ms: u64,
        node: &str,
        id: &str,
        exit_status: u32,
        cause: Cause,
    ) -> Option<Violation> {
        let machine = self.machine(node);
        let uid = machine.container(id)?.0.to_owned();
        let local = machine.pods.get(&uid)?;
        // A pod that was never ready has answered nobody: one whose other container can't be restored, one that a
        // kubelet brought up once more when its object was gone.
        let cause = if local.whole { cause } else { Cause::Accident };
        let pod = local.name.clone();
        let container = machine.container_mut(id)?;
        if !container.is_alive() {
            return None;
        }
        container.state = TaskState::Stopped;
        container.ended_ms = now_ms;
        container.exit_status = exit_status;
        container.running = false;
        let name = container.name.clone();
        let memory = container.memory?;
        if container.stray {
            return None;
        }
        if cause == Cause::Ended && self.objects.ended_by_user(&uid) {
            return None;
        }
        self.was_that_the_last(now_ms, node, &pod, &name, memory, cause)
    }

    fn was_that_the_last(
        &mut self,
        now_ms: u64,
        node: &str,
        pod: &str,
        name: &str,
        memory: Memory,
        cause: Cause,
    ) -> Option<Violation> {
        let key = (pod.to_owned(), name.to_owned());
        let line = self.lines.get(&key)?.memory;
        if line.life != memory.life || self.is_elsewhere(pod, name, line) {
            return None;
        }
        if cause == Cause::Accident {
            self.lines.get_mut(&key)?.lost_by_accident = true;
            return None;
        }
        // An accident to one container of a pod that was not proved yet is one to the pod: it is given up as a whole.
        let hurt = self
            .lines
            .iter()
            .any(|((of, _), line)| of == pod && line.lost_by_accident);
        if hurt {
            self.lines.get_mut(&key)?.lost_by_accident = true;
        }
        let safe = hurt || self.objects.deleted_by_user(pod) || self.stored.has(pod, name, line);
        (!safe).then(|| Violation {
            at_ms: now_ms,
            what: format!("lost: the only copy of {pod}/{name} was ended on {node}, and no checkpoint has {line:?}"),
        })
    }

    /// Is there a process that has everything of this life?
    #[must_use]
    pub fn is_elsewhere(&self, pod: &str, name: &str, memory: Memory) -> bool {
        let pods = self.machines.values().flat_map(|m| m.pods.values());
        let mut containers = pods.filter(|p| p.name == pod).flat_map(|p| p.alive());
        containers.any(|c| c.name == name && c.memory == Some(memory))
    }

    /// Objects were removed from the store: was that the only copy?
    pub fn unstored(&self, now_ms: u64, keys: &[String]) -> Vec<Violation> {
        let mut violations = Vec::new();
        for (pod, name, memory) in self.stored.of(keys) {
            let Some(line) = self.lines.get(&(pod.clone(), name.clone())) else {
                continue;
            };
            let needed = line.memory == memory
                && !line.lost_by_accident
                && !self.objects.deleted_by_user(&pod)
                && !self.is_elsewhere(&pod, &name, memory);
            // A copy that has run on is found by its life.
            let lives = self
                .machines
                .values()
                .flat_map(|m| m.pods.values())
                .filter(|p| p.name == pod)
                .flat_map(|p| p.alive())
                .any(|c| c.name == name && c.memory.is_some_and(|m| m.life == memory.life));
            if needed && !lives {
                violations.push(Violation {
                    at_ms: now_ms,
                    what: format!(
                        "lost: the checkpoint of {pod}/{name} was removed, and it was the only copy"
                    ),
                });
            }
        }
        violations
    }
}
