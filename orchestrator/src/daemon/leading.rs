//! What the leader does, begun when this peer gains the lead and ended when it loses it: a follower has nothing under
//! way. Each part begins by looking: watches list anew, what objects show is read, steps are derived from the state.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result};
use async_trait::async_trait;
use kube::Client;
use orchestrator_core::{id::NodeName, state::Command};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    clock::SystemTimeOfDay,
    consensus::{core::Leadership, node::Log},
    desk::Desk,
    driver::{Driver, Propose},
    janitor::Janitor,
    k8s::{cluster::RealCluster, events::Events, intake, nodes, status::board::Board},
    peers::{book::Book, membership, record::Record},
    perform::World,
    store_desk::StoreDesk,
    trace::Exporter,
    workers::Workers,
};

/// Requests seen and not yet taken in.
const INTAKE_QUEUED_MAX: usize = 256;

/// The leader's work.
pub(super) struct Leading {
    pub(super) client: Client,
    pub(super) log: Log,
    pub(super) workers: Workers,
    pub(super) record: watch::Receiver<Option<Record>>,
    pub(super) book: Book,
    pub(super) otlp_endpoint: Option<String>,
    pub(super) pod_name: String,
}

impl Leading {
    /// Until a part of it ends by itself, which none should.
    pub(super) async fn run(self) -> Result<()> {
        let mut leader = leads(&self.log);
        loop {
            leader
                .wait_for(|leads| *leads)
                .await
                .context("follow the lead")?;
            tracing::info!("this peer leads");
            let mut parts = self.begin(&leader)?;
            tokio::select! {
                lost = leader.wait_for(|leads| !*leads) => drop(lost.context("follow the lead")?),
                ended = parts.join_next() => {
                    let name = ended.context("lead without parts")?.context("lead")?;
                    anyhow::bail!("the leader's {name} ended");
                }
            }
            // Whatever is under way is dropped here: its steps are asked again by whoever leads next.
            tracing::info!("this peer leads no more");
        }
    }

    fn begin(&self, leader: &watch::Receiver<bool>) -> Result<JoinSet<&'static str>> {
        let Self {
            client,
            log,
            workers,
            record,
            book,
            otlp_endpoint,
            pod_name,
        } = self;
        let proposer = Arc::new(Proposer { log: log.clone() });
        let mut parts = JoinSet::new();
        let mut part = |name, work: futures::future::BoxFuture<'static, ()>| {
            parts.spawn(async move {
                work.await;
                name
            });
        };
        let (driver, janitor) = self.at_work(&proposer, leader);
        part("driver", Box::pin(driver.run()));
        part("janitor", Box::pin(janitor.run()));
        let (intake_out, intake_in) = mpsc::channel(INTAKE_QUEUED_MAX);
        part("intake", Box::pin(intake::run(client.clone(), intake_out)));
        let desk = Desk {
            client: client.clone(),
            log: log.clone(),
            workers: workers.clone(),
            busy: Arc::default(),
        };
        part("desk", Box::pin(desk.run(intake_in)));
        let events = Events::new(client.clone(), Some(pod_name.clone()));
        let board = Board::new(client.clone(), events);
        let shown = board.run(log.state(), leader.clone(), workers.progress());
        part("board", Box::pin(shown));
        let nodes = nodes::run(client.clone(), known_nodes(workers), leader.clone());
        part("nodes", Box::pin(nodes));
        if let Some(endpoint) = otlp_endpoint {
            let exporter = Exporter::new(endpoint).context("set up the export of traces")?;
            part(
                "traces",
                Box::pin(exporter.run(log.state(), leader.clone())),
            );
        }
        let store = StoreDesk {
            client: client.clone(),
            keeper: Arc::new(workers.clone()),
            propose: proposer,
            state: log.state(),
        };
        part("store", Box::pin(store.run()));
        let members = membership::run(log.clone(), record.clone(), book.clone());
        part("membership", Box::pin(members));
        Ok(parts)
    }

    /// Who performs what is due, and who clears up behind it: in one and the same world.
    fn at_work(
        &self,
        proposer: &Arc<Proposer>,
        leader: &watch::Receiver<bool>,
    ) -> (Driver, Janitor) {
        let world = World {
            cluster: Arc::new(RealCluster::new(self.client.clone())),
            nodes: Arc::new(self.workers.clone()),
            clock: Arc::new(SystemTimeOfDay),
        };
        let driver = Driver {
            perform: Arc::new(world.clone()),
            propose: proposer.clone(),
            state: self.log.state(),
            leader: leader.clone(),
            clock: Arc::clone(&world.clock),
        };
        let janitor = Janitor {
            clock: Arc::clone(&world.clock),
            clear: Arc::new(world),
            propose: proposer.clone(),
            state: self.log.state(),
            leader: leader.clone(),
        };
        (driver, janitor)
    }
}

fn leads(log: &Log) -> watch::Receiver<bool> {
    let mut leadership = log.leadership();
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            let leads = matches!(*leadership.borrow_and_update(), Leadership::Leader { .. });
            sender.send_if_modified(|before| std::mem::replace(before, leads) != leads);
            if leadership.changed().await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// What is known of the nodes, also of those whose worker is away.
fn known_nodes(workers: &Workers) -> watch::Receiver<Arc<BTreeMap<NodeName, nodes::Known>>> {
    let workers = workers.clone();
    let mut changes = workers.changes();
    let (sender, receiver) = watch::channel(Arc::default());
    tokio::spawn(async move {
        let mut known: BTreeMap<NodeName, nodes::Known> = BTreeMap::new();
        loop {
            changes.borrow_and_update();
            let connected = workers.connected();
            for (node, known) in &mut known {
                known.connected = connected.contains_key(node);
            }
            for (node, worker) in connected {
                if let Some(inventory) = worker.inventory {
                    known.insert(
                        node,
                        nodes::Known {
                            connected: true,
                            inventory,
                        },
                    );
                }
            }
            sender.send_replace(Arc::new(known.clone()));
            if changes.changed().await.is_err() || sender.is_closed() {
                return;
            }
        }
    });
    receiver
}

struct Proposer {
    log: Log,
}

#[async_trait]
impl Propose for Proposer {
    async fn propose(&self, command: Command) {
        match self.log.propose(command).await {
            Ok((_, Ok(_))) => {}
            Ok((at, Err(rejection))) => {
                tracing::info!(%at, %rejection, "a command changed nothing")
            }
            // The step is still due: it is performed again, and reported again.
            Err(error) => tracing::warn!(%error, "a report was not taken"),
        }
    }

    async fn leads(&self) -> bool {
        let confirmed = self.log.confirm().await;
        confirmed
            .inspect_err(|error| tracing::warn!(%error, "a step waits, for we may lead no more"))
            .is_ok()
    }
}
