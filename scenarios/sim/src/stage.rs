//! A schedule on the stage: everything is set up, runs, and is looked at in the end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use orchestrator::clock::TimeOfDay;
use orchestrator_core::{
    id::{PodRef, PodUid},
    plan::{CheckpointVia, Handover, Plan, PlannedContainer, Request, RestoreVia},
    state::{Command, Decision},
};
use serde_json::json;

use crate::{
    dice::Dice,
    doors::Doors,
    faults::Network,
    kubelet,
    mistakes::Mistake,
    peer::Peer,
    raft_log::Platter,
    schedule::{Move, PodSketch, Schedule},
    sim::{Inner, Sim, Violation, WallClock},
    trace::Trace,
    truth::{Machine, Truth},
    verdict, worker_process,
};

mod befall;

/// Virtual time in which everything must have ended once nothing goes wrong any more. The longest that is waited for:
/// a kubelet that ends nothing (20 s), a restore that hangs (60 s), each asked again after up to 5 s.
const CALM_MS_MAX: u64 = 150_000;
/// Kubelets and janitor tidy up after the last migration has ended.
const TIDY_MS_MAX: u64 = 40_000;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What came of a schedule.
#[derive(Debug)]
pub struct Told {
    /// What was wrong.
    pub violations: Vec<Violation>,
    /// All events in one number.
    pub hash: u64,
    /// How many there were.
    pub events: u64,
    /// How long it took in its own time.
    pub virtual_ms: u64,
    /// How its migrations ended.
    pub ends: Vec<String>,
    /// The events, when they were asked for.
    pub lines: Vec<String>,
}

/// Runs a schedule on a runtime of its own, in no time.
///
/// # Panics
/// When there can be no runtime.
#[must_use]
pub fn play(schedule: Schedule, mistakes: &'static [Mistake], keep_lines: bool) -> Told {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without IO can be made");
    runtime.block_on(Stage::play(schedule, mistakes, keep_lines))
}

struct Stage {
    sim: Sim,
    doors: Doors,
    clocks: BTreeMap<String, WallClock>,
    nodes: Vec<String>,
    calm_at_ms: u64,
    /// Of every plan.
    rounds_max: u32,
    /// Of every request.
    keep_ms: Option<u64>,
}

impl Stage {
    async fn play(schedule: Schedule, mistakes: &'static [Mistake], keep_lines: bool) -> Told {
        let sim = Sim::new(world(&schedule, keep_lines), mistakes);
        let stage = Arc::new(Self {
            sim: sim.clone(),
            doors: Doors::new(schedule.peers),
            clocks: clocks(&schedule),
            nodes: schedule.nodes.iter().map(|n| n.name.clone()).collect(),
            calm_at_ms: schedule.calm_at_ms,
            rounds_max: schedule.rounds_max,
            keep_ms: schedule.keep_ms,
        });
        stage.start_processes(&schedule);
        let mut users = tokio::task::JoinSet::new();
        for (n, pod) in schedule.pods.into_iter().enumerate() {
            users.spawn(Arc::clone(&stage).moves(n, pod));
        }
        for (when, what) in schedule.misfortunes {
            tokio::spawn(Arc::clone(&stage).befall(when, what));
        }
        tokio::time::sleep(Duration::from_millis(schedule.calm_at_ms)).await;
        sim.event("world", format_args!("nothing goes wrong any more"));
        stage.calm();
        stage.wait_for_the_end(&mut users).await;
        let ends = verdict::ends(&sim);
        sim.ledger(verdict::check);
        let virtual_ms = sim.now_ms();
        let panics = verdict::panics();
        sim.look(|inner| Told {
            violations: inner.violations.drain(..).chain(panics).collect(),
            hash: inner.trace.hash(),
            events: inner.trace.events(),
            virtual_ms,
            ends,
            lines: inner.trace.lines().map(str::to_owned).collect(),
        })
    }

    fn start_processes(&self, schedule: &Schedule) {
        for node in &schedule.nodes {
            let clock = self.clocks[&node.name].clone();
            let (sim, doors) = (self.sim.clone(), self.doors.clone());
            tokio::spawn(kubelet::run(sim.clone(), node.name.clone()));
            tokio::spawn(worker_process::run(sim, node.name.clone(), clock, doors));
        }
        for number in 1..=schedule.peers {
            let peer = Peer {
                sim: self.sim.clone(),
                number,
                doors: self.doors.clone(),
                clock: self.clocks[&format!("peer{number}")].clone(),
                limits: schedule.limits,
            };
            tokio::spawn(peer.run());
        }
    }

    fn calm(&self) {
        self.sim.look(|inner| {
            inner.faults.calm();
            inner.network.heal_all();
            for machine in inner.truth.machines.values_mut() {
                machine.starts_afresh = false;
                machine.breaks_restores = false;
                machine.fails_restores_per_mille = 0;
            }
        });
    }

    async fn wait_for_the_end(&self, users: &mut tokio::task::JoinSet<()>) {
        let within = Duration::from_millis(CALM_MS_MAX);
        let all = async {
            while users.join_next().await.is_some() {}
            // Users lose sight of a migration whose pod is gone before the log knew of it.
            while !self.sim.ledger(|ledger, _| verdict::have_all_ended(ledger)) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(within, all).await.is_err() {
            let what = self.sim.ledger(|ledger, _| verdict::not_ended(ledger));
            self.sim.violated(format!("never ended: {what}"));
            return;
        }
        let until_ms = self.sim.now_ms() + TIDY_MS_MAX;
        while self.sim.is_sound() && self.sim.now_ms() < until_ms {
            if self
                .sim
                .ledger(|ledger, inner| verdict::is_tidy(ledger, inner))
            {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A user who moves a pod again and again, each time to wherever it is not.
    async fn moves(self: Arc<Self>, number: usize, pod: PodSketch) {
        for (n, wish) in pod.moves.iter().enumerate() {
            tokio::time::sleep(Duration::from_millis(wish.after_ms)).await;
            let id = format!("m{}", number * 10 + n + 1);
            if !self.submit(&id, &pod, wish).await {
                return;
            }
            while !self.sim.ledger(|ledger, _| verdict::has_ended(ledger, &id)) {
                if !self.sim.is_sound() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// False: there is no pod to move.
    async fn submit(&self, id: &str, pod: &PodSketch, wish: &Move) -> bool {
        loop {
            if let Some(plan) = self.plan(pod, wish) {
                let command = self.command(id, plan);
                self.doors.propose(command).await;
                if self.sim.ledger(|ledger, _| verdict::is_known(ledger, id)) {
                    return true;
                }
            } else if self.sim.look(|inner| {
                let objects = &inner.truth.objects;
                objects.is_gone_by_user(&pod.name)
            }) {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }

    /// As the planner does: of a pod that runs whole, and to a node where it is not.
    fn plan(&self, pod: &PodSketch, wish: &Move) -> Option<Plan> {
        let now_ms = self.clocks["peer1"].unix_ms();
        self.sim.ledger(|ledger, inner| {
            let object = inner.truth.objects.pod(&pod.name)?;
            // One that was just made is bound to no node yet.
            if object.deleting || object.node.is_empty() {
                return None;
            }
            let others: Vec<&String> = self.nodes.iter().filter(|n| **n != object.node).collect();
            let target = usize::try_from(wish.target).ok()? % others.len();
            let local = inner.truth.machine(&object.node).pods.get(&object.uid)?;
            let base = local.made_by.as_deref().and_then(|made_by| {
                let state = ledger.newest()?;
                state.base_after(&pod_ref(&pod.name), &made_by.into(), now_ms)
            });
            let containers = pod.containers.iter().map(|name| {
                let container = local.alive().find(|c| c.name == *name)?;
                Some(PlannedContainer {
                    name: name.clone(),
                    image: "base:1".to_owned(),
                    image_digest: "sha256:1".to_owned(),
                    container_id: container.id.clone(),
                    sidecar: false,
                })
            });
            Some(Plan {
                pod: pod_ref(&pod.name),
                uid: PodUid(object.uid),
                source: object.node.as_str().into(),
                target: others[target].as_str().into(),
                pod_ip: String::new(),
                containers: containers.collect::<Option<Vec<_>>>()?,
                finished_init_containers: Vec::new(),
                handover: Handover::Replace,
                checkpoint: CheckpointVia::Kubelet,
                restore: RestoreVia::Image,
                freeze_budget_ms: wish.freeze_budget_ms,
                freeze_predicted_ms: 1_000,
                archive_predicted_bytes: 1,
                rounds_max: self.rounds_max,
                base,
                timeout_ms: 60_000,
                warnings: Vec::new(),
                target_pod: object_of(pod, others[target]).to_string(),
            })
        })
    }

    fn command(&self, id: &str, plan: Plan) -> Command {
        let request = Request {
            pod: plan.pod.clone(),
            target: plan.target.clone(),
            freeze_max_ms: None,
            timeout_ms: None,
            dry_run: false,
            // A word of the user: each round is followed by another one.
            rounds_max: Some(self.rounds_max),
            keep_checkpoint_ms: self.keep_ms,
        };
        Command::Submit {
            id: id.into(),
            object: pod_ref(id),
            request,
            decision: Decision::Plan(Box::new(plan)),
            at_ms: self.clocks["peer1"].unix_ms(),
            spans: Vec::new(),
        }
    }
}

fn pod_ref(name: &str) -> PodRef {
    PodRef {
        namespace: "default".to_owned(),
        name: name.to_owned(),
    }
}

fn object_of(pod: &PodSketch, node: &str) -> serde_json::Value {
    let containers: Vec<_> = pod
        .containers
        .iter()
        .map(|name| json!({ "name": name, "image": "base:1" }))
        .collect();
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": { "name": pod.name, "namespace": "default" },
        "spec": { "nodeName": node, "containers": containers },
    })
}

fn world(schedule: &Schedule, keep_lines: bool) -> Inner {
    let mut truth = Truth::default();
    for node in &schedule.nodes {
        let machine = Machine {
            up: true,
            dies_frozen: node.dies_frozen,
            starts_afresh: node.starts_afresh,
            breaks_restores: node.breaks_restores,
            fails_restores_per_mille: node.fails_restores_per_mille,
            ..Machine::default()
        };
        truth.machines.insert(node.name.clone(), machine);
    }
    for pod in &schedule.pods {
        truth.objects.create(object_of(pod, &pod.node));
    }
    let voters: Vec<u64> = (1..=schedule.peers).collect();
    let platters = voters.iter().map(|peer| (*peer, Platter::founded(&voters)));
    Inner {
        dice: Dice::new(schedule.seed, 2),
        trace: Trace::new(keep_lines),
        truth,
        faults: schedule.faults.clone(),
        network: Network::default(),
        violations: Vec::new(),
        platters: platters.collect(),
    }
}

fn clocks(schedule: &Schedule) -> BTreeMap<String, WallClock> {
    let nodes = schedule.nodes.iter();
    let nodes = nodes.map(|node| (node.name.clone(), WallClock::new(node.clock_ms)));
    let peers = (1..=schedule.peers).map(|n| (format!("peer{n}"), WallClock::new(0)));
    nodes.chain(peers).collect()
}
