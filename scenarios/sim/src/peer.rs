//! A peer's process: the production driver, steps, janitor and table of workers, on a simulated log, and Kubernetes as it
//! reaches it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use orchestrator::{
    clock::TimeOfDay,
    consensus::core::Limits,
    driver::{Driver, Propose},
    janitor::Janitor,
    k8s::cluster::RealCluster,
    perform::World,
    workers::{OUTBOX_MAX, Workers},
};
use orchestrator_core::{
    id::NodeName,
    state::{Command, State},
};
use proto::worker::{FromWorker, ToWorker, Welcome, from_worker, to_worker};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    api::Call,
    doors::{Attached, Dialled, Doors, PeerDoor, Proposal, Question},
    life::{Life, together},
    mistakes::Mistake,
    raft_log::{Inputs, Platter, RaftLog},
    sim::{Sim, WallClock},
    wrong::{WrongCluster, WrongNodes, WrongWords},
};

/// A write that was given up is carried out within this, or within the other when it was a creation that waits for its name.
const LATE_MS_MAX: u64 = 6_000;
const LATE_CREATE_MS_MAX: u64 = 15_000;

const QUEUED_MAX: usize = 256;
/// As in production: a worker's clock is measured that often.
const PING_EVERY: Duration = Duration::from_secs(10);

/// Which peer this is, and what it is given.
#[derive(Clone)]
pub struct Peer {
    /// The world.
    pub sim: Sim,
    /// Its number.
    pub number: u64,
    /// Everybody else.
    pub doors: Doors,
    /// Its wall clock.
    pub clock: WallClock,
    /// When snapshots are taken.
    pub limits: Limits,
}

struct Proposer {
    sim: Sim,
    life: Life,
    proposals: mpsc::Sender<Proposal>,
    questions: mpsc::Sender<Question>,
    leader: watch::Receiver<bool>,
}

impl Proposer {
    async fn put(&self, command: Command) -> bool {
        self.life.edge("propose").await;
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal { command, reply };
        let sent = self.proposals.send(proposal).await.is_ok();
        let applied = sent && answer.await.unwrap_or(false);
        self.life.edge("proposed").await;
        applied
    }
}

#[async_trait]
impl Propose for Proposer {
    async fn propose(&self, command: Command) {
        self.put(command).await;
    }

    async fn leads(&self) -> bool {
        self.life.edge("ask a majority").await;
        if self.sim.makes(Mistake::MajorityNotAsked) {
            return *self.leader.borrow();
        }
        let (reply, answer) = oneshot::channel();
        let sent = self.questions.send(reply).await.is_ok();
        let leads = sent && answer.await.unwrap_or(false);
        self.life.edge("a majority answered").await;
        leads
    }
}

impl Peer {
    /// Lives and dies and lives again, for as long as the schedule lasts.
    pub async fn run(self) {
        let name = format!("peer{}", self.number);
        loop {
            let dies_at = self
                .sim
                .look(|inner| inner.faults.deaths.get_mut(&name).and_then(Vec::pop));
            let life = Life::new(&self.sim, &name, dies_at);
            self.doors.born(&name, life.clone());
            self.sim.event(&name, format_args!("starts"));
            let living = tokio::spawn(self.clone().live(life.clone()));
            life.died().await;
            living.abort();
            self.doors.close(&name);
            self.sim.look(|inner| {
                let keeps = inner.dice.hits(500);
                let platter = inner.platters.get_mut(&self.number);
                if let Some(platter) = platter {
                    Platter::crash(platter, keeps);
                }
            });
            self.sim.rest(100..=2_500).await;
        }
    }

    async fn live(self, life: Life) {
        let Self {
            sim,
            number,
            doors,
            clock,
            limits,
        } = self;
        let (proposals, proposed) = mpsc::channel(QUEUED_MAX);
        let (questions, questioned) = mpsc::channel(QUEUED_MAX);
        let (inbound, received) = mpsc::unbounded_channel();
        let (dialled, dialling) = mpsc::channel(QUEUED_MAX);
        let (publish_state, state) = watch::channel(Arc::<State>::default());
        let (publish_leader, leader) = watch::channel(false);
        let door = PeerDoor {
            inbound,
            dialled,
            proposals: proposals.clone(),
            leader: leader.clone(),
            state: state.clone(),
        };
        doors.open(life.name(), door);
        let log = RaftLog {
            sim: sim.clone(),
            life: life.clone(),
            peer: number,
            doors: doors.clone(),
            limits,
            state: publish_state,
            leader: publish_leader,
        };
        let log = log.run(Inputs {
            proposals: proposed,
            questions: questioned,
            inbound: received,
        });
        let clock: Arc<dyn TimeOfDay> = Arc::new(clock);
        let workers = Workers::timed_by(Arc::clone(&clock));
        let proposer = Arc::new(Proposer {
            sim: sim.clone(),
            life: life.clone(),
            proposals,
            questions,
            leader: leader.clone(),
        });
        let world = world(&sim, &life, &workers, &clock);
        let (driver, janitor) = leading(&sim, world, &proposer, &state, &leader);
        let reception = Reception {
            sim,
            life,
            doors,
            state,
            workers,
        };
        together([
            Box::pin(log),
            Box::pin(driver.run()),
            Box::pin(janitor.run()),
            Box::pin(reception.run(dialling)),
        ])
        .await;
    }
}

/// Those that are at work while it leads.
fn leading(
    sim: &Sim,
    world: World,
    proposer: &Arc<Proposer>,
    state: &watch::Receiver<Arc<State>>,
    leader: &watch::Receiver<bool>,
) -> (Driver, Janitor) {
    let clock = Arc::clone(&world.clock);
    let janitor = Janitor {
        clock: Arc::clone(&clock),
        clear: Arc::new(world.clone()),
        propose: proposer.clone(),
        state: state.clone(),
        leader: leader.clone(),
    };
    let words = WrongWords {
        sim: sim.clone(),
        perform: Arc::new(world),
    };
    let driver = Driver {
        perform: Arc::new(words),
        propose: proposer.clone(),
        state: state.clone(),
        leader: leader.clone(),
        clock,
    };
    (driver, janitor)
}

/// What steps reach, with whatever is done wrong in between.
fn world(sim: &Sim, life: &Life, workers: &Workers, clock: &Arc<dyn TimeOfDay>) -> World {
    World {
        cluster: Arc::new(WrongCluster {
            sim: sim.clone(),
            cluster: cluster(sim, life),
        }),
        nodes: Arc::new(WrongNodes {
            sim: sim.clone(),
            life: life.clone(),
            workers: workers.clone(),
            confirmed: Arc::default(),
        }),
        clock: Arc::clone(clock),
    }
}

#[derive(Clone)]
struct Reception {
    sim: Sim,
    life: Life,
    doors: Doors,
    state: watch::Receiver<Arc<State>>,
    workers: Workers,
}

impl Reception {
    async fn run(self, mut dialling: mpsc::Receiver<Dialled>) {
        while let Some((attached, reply)) = dialling.recv().await {
            let reception = self.clone();
            tokio::spawn(async move {
                let life = reception.life.clone();
                tokio::select! {
                    biased;
                    () = life.died() => {}
                    () = reception.serve(attached, reply) => {}
                }
            });
        }
    }

    /// As `api::serve` and the registrar: a journal that this peer knows needs no leader, another one is registered
    /// through whoever leads before the worker is welcomed. The stream outlives the lead.
    async fn serve(self, attached: Attached, reply: oneshot::Sender<mpsc::Receiver<ToWorker>>) {
        let Attached {
            node,
            hello,
            mut from_worker,
        } = attached;
        let Some(from_worker::Kind::Hello(hello)) = hello.kind else {
            return;
        };
        let node = NodeName(node);
        let command = Command::Register {
            node: node.clone(),
            journal: hello.journal_id.clone(),
        };
        let known = |state: &State| {
            let worker = state.workers.get(&node)?;
            (worker.journal == hello.journal_id).then_some(worker.at.0)
        };
        let mut registered = known(&self.state.borrow());
        if registered.is_none() {
            self.life.edge("register a worker").await;
            self.doors.propose(command).await;
            registered = self.sim.ledger(|ledger, _| known(ledger.newest()?));
        }
        let Some(registered_revision) = registered else {
            return;
        };
        let (outbox, inbox) = mpsc::channel(OUTBOX_MAX);
        let welcome = ToWorker {
            kind: Some(to_worker::Kind::Welcome(Welcome {
                registered_revision,
            })),
        };
        if outbox.try_send(welcome).is_err() || reply.send(inbox).is_err() {
            return;
        }
        let generation = self.workers.attach(&node, outbox);
        let detach = Detach {
            workers: self.workers.clone(),
            node: node.clone(),
            generation,
        };
        self.sim.event(
            self.life.name(),
            format_args!("takes in the worker of {node}"),
        );
        self.listen(&node, generation, &mut from_worker).await;
        drop(detach);
    }

    async fn listen(
        &self,
        node: &NodeName,
        generation: u64,
        from_worker: &mut mpsc::Receiver<FromWorker>,
    ) {
        let mut ping = tokio::time::interval(PING_EVERY);
        loop {
            tokio::select! {
                biased;
                message = from_worker.recv() => match message {
                    Some(message) => self.workers.receive(node, generation, message),
                    None => return,
                },
                _ = ping.tick() => self.workers.ping(node),
            }
        }
    }
}

/// Whatever ends the stream, what waits on it is lost.
struct Detach {
    workers: Workers,
    node: NodeName,
    generation: u64,
}

impl Drop for Detach {
    fn drop(&mut self) {
        self.workers.detach(&self.node, self.generation);
    }
}

/// Kubernetes as this process reaches it. A request that was sent is carried out, whoever is dead by then.
fn cluster(sim: &Sim, life: &Life) -> RealCluster {
    let (sim, life) = (sim.clone(), life.clone());
    RealCluster::on(move |method, uri, body| {
        let (sim, life) = (sim.clone(), life.clone());
        async move {
            life.edge("call Kubernetes").await;
            let (path, query) = uri.split_once('?').unwrap_or((uri.as_str(), ""));
            let call = Call {
                method,
                path: path.to_owned(),
                query: query.to_owned(),
                body: serde_json::from_slice(&body).unwrap_or(Value::Null),
            };
            let name = life.name().to_owned();
            let (answered, answer) = oneshot::channel();
            tokio::spawn(async move {
                let said = carry_out(&sim, &name, call).await;
                // Who asked may be gone.
                let _ = answered.send(said);
            });
            let said = answer.await.ok().flatten();
            life.edge("Kubernetes answered").await;
            said
        }
    })
}

async fn carry_out(sim: &Sim, name: &str, mut call: Call) -> Option<(u16, Vec<u8>)> {
    if sim.makes(Mistake::DeleteWithoutUid) && call.method == "DELETE" {
        call.body["preconditions"] = Value::Null;
    }
    let (slow_ms, per_mille, late) = sim.look(|inner| {
        let faults = &inner.faults;
        (
            faults.api_slow_ms,
            faults.api_per_mille,
            faults.api_late_per_mille,
        )
    });
    sim.rest(1..=slow_ms.max(2)).await;
    let reaches = sim.look(|inner| !inner.faults.api_down && inner.network.reaches(name, "api"));
    if !reaches || sim.hits(per_mille) {
        return None;
    }
    let creates = call.method == "POST" && call.path.ends_with("/pods");
    let worst = creates && sim.look(|inner| takes_one(&mut inner.faults.late_creates));
    if worst || call.method != "GET" && sim.hits(late) {
        let (sim, name) = (sim.clone(), name.to_owned());
        tokio::spawn(async move {
            if worst || creates && sim.hits(500) {
                name_is_free_again(&sim, &call).await;
            } else {
                sim.rest(300..=LATE_MS_MAX).await;
            }
            apply(&sim, &name, &call);
        });
        return None;
    }
    let (status, body) = apply(sim, name, &call);
    let late_ms = sim.look(|inner| inner.faults.slow_answers.remove(name));
    tokio::time::sleep(Duration::from_millis(late_ms.unwrap_or(0))).await;
    sim.rest(1..=slow_ms.max(2)).await;
    let lost = sim.hits(per_mille) || sim.look(|inner| inner.faults.api_down);
    (!lost).then(|| (status, body.to_string().into_bytes()))
}

fn takes_one(count: &mut u64) -> bool {
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}

/// The worst moment for a late creation: its repetition was carried out before, and what that made is gone.
async fn name_is_free_again(sim: &Sim, call: &Call) {
    let name = call.body["metadata"]["name"].as_str().unwrap_or_default();
    let until_ms = sim.now_ms() + LATE_CREATE_MS_MAX;
    for free in [false, true] {
        let is_so = || sim.look(|inner| inner.truth.objects.is_free(name)) == free;
        while sim.now_ms() < until_ms && !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn apply(sim: &Sim, name: &str, call: &Call) -> (u16, Value) {
    let (status, body) = sim.with(|inner| inner.truth.objects.answer(call));
    if call.method != "GET" {
        sim.event(
            name,
            format_args!(
                "{} {} {}: {status}",
                call.method, call.path, call.body["metadata"]
            ),
        );
    }
    (status, body)
}
