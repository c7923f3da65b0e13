//! One peer as a process of its own, which answers lines: the production log, transport and driver, on a world in which
//! every step is done at once.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use orchestrator::{
    clock::SystemTimeOfDay,
    consensus::{
        core::LIMITS,
        format::state_to_bytes,
        node::{INBOUND_QUEUED_MAX, Leadership, Log, Membership},
    },
    driver::{Driver, Propose},
    peers::{
        book::{Address, Book},
        gate::Gate,
        network::{Network, Parts},
        operator::Desk,
        record::Records,
        server::{Door, serve},
    },
    tls::Identity,
};
use orchestrator_core::{
    id::NodeName,
    migration::{Migration, Phase},
    state::{Command, State},
};
use prometheus::{IntCounter, IntCounterVec, Opts};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use uuid::Uuid;

use super::{
    GROUP, LOST, PATIENCE, PEERS,
    no_op::{GOES_ON, NoOp, submit},
};

/// Pairs of nodes: two migrations may be under way on each.
const NODE_PAIRS: usize = 100;
const SUBMITTED_AT_ONCE: usize = 32;
/// Two for each pair of nodes, and some that wait for their turn.
const UNDER_WAY_MAX: usize = 256;

/// A child: one peer, which answers lines.
#[tokio::main]
pub async fn peer(own: u64, folder: &Path) -> Result<()> {
    let log = join(own, folder).await?;
    tokio::spawn(drive(log.clone()));
    let (said, mut lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            // The peer has ended: nobody is to be told.
            let _ = said.blocking_send(line);
        }
    });
    while let Some(line) = lines.recv().await {
        let words: Vec<&str> = line.split(' ').collect();
        let said = match words[..] {
            ["leads"] => match leads(&log) {
                true => "yes".to_owned(),
                false => "no".to_owned(),
            },
            ["kept"] => log.state().borrow().migrations.len().to_string(),
            ["latency", count] => latency(&log, count.parse()?).await?,
            ["migrations", run, finished, running] => {
                migrations(&log, run, finished.parse()?, running.parse()?).await?
            }
            ["snapshot"] => snapshot(&log)?,
            _ => bail!("{line:?} is not understood"),
        };
        println!("ok {said}");
    }
    Ok(())
}

async fn join(own: u64, folder: &Path) -> Result<Log> {
    let read = |name: String| std::fs::read(folder.join(name));
    let identity: Identity = serde_json::from_slice(&read(format!("identity{own}"))?)?;
    let ports: BTreeMap<u64, u16> = serde_json::from_slice(&read("ports".to_owned())?)?;
    let disk = folder.join(format!("peer{own}"));
    std::fs::create_dir_all(&disk)?;
    let book = Book::open(&disk);
    for (id, port) in ports.iter().filter(|(id, _)| **id != own) {
        let address = Address {
            host: "127.0.0.1".to_owned(),
            peer_port: *port,
            worker_port: 1,
        };
        book.found(*id, &address);
    }
    let (inbound_out, inbound) = mpsc::channel(INBOUND_QUEUED_MAX);
    let parts = Parts {
        own,
        group: GROUP,
        address: None,
        identity: identity.clone(),
        book: book.clone(),
        inbound: inbound_out.clone(),
        dropped: IntCounter::new("dropped", "dropped")?,
    };
    let membership = Membership {
        peer: own,
        group: GROUP,
        founders: PEERS.to_vec(),
    };
    let network = Network::new(parts);
    let log = Log::start_with(&disk, membership, network, inbound, LIMITS).await?;
    let refused = IntCounterVec::new(Opts::new("refused", "refused"), &["reason"])?;
    let gate = Gate::new(own, GROUP, book, log.members(), refused);
    let door = Door {
        gate: gate.clone(),
        inbound: inbound_out,
        log: log.clone(),
    };
    let nowhere = kube::Config::new("http://127.0.0.1:1".parse()?);
    let desk = Desk {
        log: log.clone(),
        gate,
        records: Records::new(kube::Client::try_from(nowhere)?, "none"),
    };
    let listener = TcpListener::bind(("127.0.0.1", ports[&own])).await?;
    tokio::spawn(async move { serve(listener, &identity, door, desk).await });
    Ok(log)
}

fn leads(log: &Log) -> bool {
    matches!(*log.leadership().borrow(), Leadership::Leader { .. })
}

async fn latency(log: &Log, count: usize) -> Result<String> {
    let mut took = Vec::new();
    for n in 0..count {
        let command = Command::Register {
            node: NodeName(format!("node{}", n % NODE_PAIRS)),
            journal: Uuid::new_v4().to_string(),
        };
        let began = Instant::now();
        log.propose(command).await?.1?;
        took.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    Ok(format!("{:.3} {:.3}", at(0.5), at(0.99)))
}

struct Proposer {
    log: Log,
}

#[async_trait]
impl Propose for Proposer {
    async fn propose(&self, command: Command) {
        // A report that was not taken is asked for again.
        let _ = self.log.propose(command).await;
    }

    async fn leads(&self) -> bool {
        self.log.confirm().await.is_ok()
    }
}

/// As the daemon does: on every peer, at work on the one that leads.
async fn drive(log: Log) {
    let (leads, leader) = watch::channel(false);
    let driver = Driver {
        perform: Arc::new(NoOp),
        propose: Arc::new(Proposer { log: log.clone() }),
        state: log.state(),
        leader,
        clock: Arc::new(SystemTimeOfDay),
    };
    tokio::spawn(driver.run());
    let mut leadership = log.leadership();
    loop {
        leads.send_replace(matches!(
            *leadership.borrow_and_update(),
            Leadership::Leader { .. }
        ));
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Submits them, as many at once as are under way on a busy day, and waits for the end of those that end, or for that of
/// the lead: then the next leader is told the same, and what was submitted before is known by its id.
async fn migrations(log: &Log, run: &str, finished: usize, running: usize) -> Result<String> {
    let mut leadership = log.leadership();
    let all = submit_and_wait(log, run, finished, running);
    let lost = leadership.wait_for(|now| !matches!(now, Leadership::Leader { .. }));
    tokio::select! {
        done = tokio::time::timeout(PATIENCE, all) => match done.context("they end")?? {
            true => Ok("done".to_owned()),
            false => Ok(LOST.to_owned()),
        },
        lost = lost => lost.map(|_| LOST.to_owned()).context("follow the lead"),
    }
}

/// False: one was not taken.
async fn submit_and_wait(log: &Log, run: &str, finished: usize, running: usize) -> Result<bool> {
    let mut state = log.state();
    let total = finished + running;
    for first in (0..total).step_by(SUBMITTED_AT_ONCE) {
        let room = |state: &Arc<State>| under_way(state) + SUBMITTED_AT_ONCE <= UNDER_WAY_MAX;
        state.wait_for(room).await?;
        let mut submitting = JoinSet::new();
        for n in first..total.min(first + SUBMITTED_AT_ONCE) {
            // Those that go on running have nodes of their own: they would be in everybody's way.
            let command = match n < finished {
                true => submit(&format!("pod-{run}-{n}"), n % NODE_PAIRS),
                false => submit(&format!("{GOES_ON}{run}-{n}"), n),
            };
            let log = log.clone();
            submitting.spawn(async move { log.propose(command).await.is_ok() });
        }
        if !submitting.join_all().await.into_iter().all(|taken| taken) {
            return Ok(false);
        }
    }
    state.wait_for(|state| under_way(state) == 0).await?;
    Ok(true)
}

/// Without those that go on.
fn under_way(state: &State) -> usize {
    let done = |m: &Migration| {
        m.phase.ended() || m.phase == Phase::Delivering && m.request.pod.name.starts_with(GOES_ON)
    };
    state.migrations.values().filter(|m| !done(m)).count()
}

/// How many migrations the state has, its bytes, and how long writing it down takes.
fn snapshot(log: &Log) -> Result<String> {
    let state = Arc::clone(&log.state().borrow());
    let began = Instant::now();
    let bytes = state_to_bytes(&state)?.len();
    let ms = began.elapsed().as_secs_f64() * 1_000.0;
    Ok(format!("{} {bytes} {ms:.1}", state.migrations.len()))
}
