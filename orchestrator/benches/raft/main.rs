//! `cargo lab bench raft`: what the replicated log costs. Three peers as processes of their own, over the real transport
//! on loopback, with their logs on this machine's disk.
//!
//! ```text
//!  parent ── lines over stdin and stdout ──► peer 1, 2, 3 (this program again, with `peer` as its first word)
//! ```
//! * commit latency, one command after the other, at the leader;
//! * migrations a second: the production driver on a world in which every step is done at once;
//! * failover: the leader is killed (-9), and the others are asked until one of them has applied a command;
//! * a long history: how much is kept of it, what a peer weighs with it, and how soon it serves after a start.

mod no_op;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use no_op::{NoOp, submit};
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
    tls::{Authority, Identity, peer_name},
};
use orchestrator_core::{
    id::NodeName,
    migration::{Migration, Phase},
    state::{Command, HISTORY_MAX},
};
use prometheus::{IntCounter, IntCounterVec, Opts};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use uuid::Uuid;

const GROUP: Uuid = Uuid::from_u128(4711);
const PEERS: [u64; 3] = [1, 2, 3];
/// Enough for a p99 that isn't one command.
const LATENCY_COMMANDS: usize = 2_000;
/// Pairs of nodes: two migrations may be under way on each.
const NODE_PAIRS: usize = 100;
const MIGRATIONS: usize = 3_000;
const FAILOVERS: usize = 50;
const FINISHED: usize = 10_000;
const RUNNING: usize = 500;
/// Whatever takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two questions to peers that don't lead yet: what a failover is measured to.
const ASK_EVERY: Duration = Duration::from_millis(5);

fn main() -> Result<()> {
    // An error means that it was installed before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["peer", number, folder] => peer(number.parse()?, Path::new(folder)),
        _ => bench(&words),
    }
}

/// The parent. Everything is written below one temporary folder, which is gone at the end.
fn bench(words: &[String]) -> Result<()> {
    let file = words
        .iter()
        .position(|word| word == "--json")
        .and_then(|at| words.get(at + 1));
    let folder = tempfile::tempdir().context("make a folder for the logs")?;
    prepare(folder.path())?;
    let mut group = Group::start(folder.path())?;
    let mut figures = Figures::new();
    let leader = group.leader()?;
    let told = group.ask(leader, &format!("latency {LATENCY_COMMANDS}"))?;
    let (p50, p99) = told.split_once(' ').context("two numbers")?;
    println!("commit latency, 3 peers: p50 {p50} ms, p99 {p99} ms ({LATENCY_COMMANDS} commands)");
    figure(
        &mut figures,
        "commit_latency_p50",
        p50.parse()?,
        "ms",
        LATENCY_COMMANDS,
    );
    figure(
        &mut figures,
        "commit_latency_p99",
        p99.parse()?,
        "ms",
        LATENCY_COMMANDS,
    );

    let told = group.ask(leader, &format!("migrations {MIGRATIONS} 0"))?;
    println!("migrations through the log, no-op world: {told} /s ({MIGRATIONS})");
    figure(
        &mut figures,
        "migrations_per_second",
        told.parse()?,
        "1/s",
        MIGRATIONS,
    );

    failovers(&mut group, &mut figures)?;
    history(&mut group, &mut figures)?;
    if let Some(file) = file {
        let text = serde_json::to_vec_pretty(&figures).context("write the figures as JSON")?;
        std::fs::write(file, text).with_context(|| format!("write {file}"))?;
    }
    Ok(())
}

fn failovers(group: &mut Group, figures: &mut Figures) -> Result<()> {
    let mut took = Vec::new();
    for _ in 0..FAILOVERS {
        took.push(group.fail_over()?.as_secs_f64() * 1_000.0);
    }
    took.sort_by(f64::total_cmp);
    let (median, worst) = (took[FAILOVERS / 2], took[FAILOVERS - 1]);
    println!("failover after kill -9: p50 {median:.0} ms, max {worst:.0} ms ({FAILOVERS} kills)");
    figure(figures, "failover_p50", median, "ms", FAILOVERS);
    figure(figures, "failover_max", worst, "ms", FAILOVERS);
    Ok(())
}

fn history(group: &mut Group, figures: &mut Figures) -> Result<()> {
    let leader = group.leader()?;
    group.ask(leader, &format!("migrations {FINISHED} {RUNNING}"))?;
    let told = group.ask(leader, "snapshot")?;
    let words: Vec<&str> = told.split(' ').collect();
    let [kept, bytes, ms] = words[..] else {
        bail!("three numbers and not {told:?}");
    };
    println!(
        "history: {FINISHED} finished and {RUNNING} running, {kept} kept (at most {HISTORY_MAX} finished); \
         snapshot {:.1} MiB in {ms} ms",
        bytes.parse::<f64>()? / f64::from(1 << 20)
    );
    figure(figures, "history_kept", kept.parse()?, "migrations", 1);
    figure(figures, "snapshot_bytes", bytes.parse()?, "B", 1);
    figure(figures, "snapshot_ms", ms.parse()?, "ms", 1);
    let (follower, began) = (
        PEERS
            .into_iter()
            .find(|id| *id != leader)
            .context("a follower")?,
        Instant::now(),
    );
    group.restart(follower)?;
    let at_least = kept.parse::<usize>()?;
    while group.ask(follower, "kept")?.parse::<usize>()? < at_least {
        std::thread::sleep(ASK_EVERY);
    }
    let start_ms = began.elapsed().as_secs_f64() * 1_000.0;
    let weighs = group.weighs_mib(follower)?;
    println!("a peer with it: {start_ms:.0} ms from start to serving, {weighs:.0} MiB resident");
    figure(figures, "start_to_serving", start_ms, "ms", 1);
    figure(figures, "peer_memory", weighs, "MiB", 1);
    Ok(())
}

type Figures = BTreeMap<&'static str, serde_json::Value>;

/// In the form of every bench of the lab; there is nobody to compare with.
fn figure(figures: &mut Figures, name: &'static str, ours: f64, unit: &str, runs: usize) {
    let value = json!({"ours": ours, "theirs": null, "ratio": null, "unit": unit, "runs": runs});
    figures.insert(name, value);
}

/// Certificates and ports, as files that the peers read.
fn prepare(folder: &Path) -> Result<()> {
    let authority = Authority::make()?;
    // All at once, so that no port is given twice.
    let listeners = PEERS.map(|_| std::net::TcpListener::bind("127.0.0.1:0"));
    let mut ports = BTreeMap::new();
    for (id, listener) in PEERS.into_iter().zip(listeners) {
        ports.insert(id, listener?.local_addr()?.port());
        let names = [peer_name(GROUP, id), "localhost".to_owned()];
        let identity = serde_json::to_vec(&authority.issue(&names)?)?;
        std::fs::write(folder.join(format!("identity{id}")), identity)?;
    }
    std::fs::write(folder.join("ports"), serde_json::to_vec(&ports)?)?;
    Ok(())
}

struct Member {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

struct Group {
    folder: PathBuf,
    members: BTreeMap<u64, Member>,
}

impl Group {
    fn start(folder: &Path) -> Result<Self> {
        let mut group = Self {
            folder: folder.to_owned(),
            members: BTreeMap::new(),
        };
        for id in PEERS {
            group.restart(id)?;
        }
        Ok(group)
    }

    fn restart(&mut self, id: u64) -> Result<()> {
        self.kill(id)?;
        let mut process = Process::new(std::env::current_exe()?)
            .args(["peer", &id.to_string()])
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a peer")?;
        let to = process.stdin.take().context("speak to a peer")?;
        let from = BufReader::new(process.stdout.take().context("hear a peer")?);
        self.members.insert(id, Member { process, to, from });
        Ok(())
    }

    fn kill(&mut self, id: u64) -> Result<()> {
        if let Some(mut member) = self.members.remove(&id) {
            member.process.kill().context("kill a peer")?;
            member.process.wait().context("wait for a killed peer")?;
        }
        Ok(())
    }

    /// One line to a peer, one line back.
    fn ask(&mut self, id: u64, line: &str) -> Result<String> {
        let member = self.members.get_mut(&id).context("the peer runs")?;
        writeln!(member.to, "{line}").context("ask a peer")?;
        let mut told = String::new();
        member.from.read_line(&mut told).context("hear a peer")?;
        match told.trim_end().split_once(' ') {
            Some(("ok", told)) => Ok(told.to_owned()),
            _ => bail!("peer {id}, asked to {line}, says {told:?}"),
        }
    }

    fn leader(&mut self) -> Result<u64> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            for id in PEERS {
                if self.members.contains_key(&id) && self.ask(id, "leads")? == "yes" {
                    return Ok(id);
                }
            }
            std::thread::sleep(ASK_EVERY);
        }
        bail!("nobody leads")
    }

    /// From the kill of the leader to the first command that another one has applied.
    fn fail_over(&mut self) -> Result<Duration> {
        let lost = self.leader()?;
        let began = Instant::now();
        self.kill(lost)?;
        let led = self.leader()?;
        self.ask(led, "latency 1")?;
        let took = began.elapsed();
        self.restart(lost)?;
        // The next kill must find a whole group.
        while self.ask(lost, "kept")? != self.ask(led, "kept")? {
            std::thread::sleep(ASK_EVERY);
        }
        std::thread::sleep(Duration::from_millis(300));
        Ok(took)
    }

    fn weighs_mib(&self, id: u64) -> Result<f64> {
        let pid = self.members.get(&id).context("the peer runs")?.process.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().split(' ').next());
        Ok(kib.context("a process weighs something")?.parse::<f64>()? / 1024.0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for id in PEERS {
            if let Err(error) = self.kill(id) {
                eprintln!("a peer is left: {error:#}");
            }
        }
    }
}

/// A child: one peer, which answers lines.
#[tokio::main]
async fn peer(own: u64, folder: &Path) -> Result<()> {
    let log = join(own, folder).await?;
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
            ["migrations", finished, running] => {
                migrations(&log, finished.parse()?, running.parse()?).await?
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

/// Submits them all, drives them with the production driver, and says how many ended in a second.
async fn migrations(log: &Log, finished: usize, running: usize) -> Result<String> {
    let waits = "waits-".to_owned();
    let (leads, leader) = watch::channel(true);
    let driver = Driver {
        perform: Arc::new(NoOp {
            waits: waits.clone(),
        }),
        propose: Arc::new(Proposer { log: log.clone() }),
        state: log.state(),
        leader,
        clock: Arc::new(SystemTimeOfDay),
    };
    let driver = tokio::spawn(driver.run());
    let began = Instant::now();
    let run = Uuid::new_v4().simple().to_string();
    let mut submitting = JoinSet::new();
    for n in 0..finished + running {
        let name = match n < finished {
            true => format!("pod-{run}-{n}"),
            false => format!("{waits}{run}-{n}"),
        };
        // Those that wait have nodes of their own: they would be in everybody's way.
        let pair = if n < finished { n % NODE_PAIRS } else { n };
        let (log, command) = (log.clone(), submit(&name, pair));
        submitting.spawn(async move { log.propose(command).await });
        while submitting.len() >= INBOUND_QUEUED_MAX.min(256) {
            submitting
                .join_next()
                .await
                .context("something is submitted")???
                .1?;
        }
    }
    while let Some(submitted) = submitting.join_next().await {
        submitted??.1?;
    }
    let mut state = log.state();
    let all = state.wait_for(|state| {
        let done = |m: &Migration| {
            m.phase.ended()
                || m.phase == Phase::Delivering && m.request.pod.name.starts_with(&waits)
        };
        state.migrations.values().all(|m| done(m))
    });
    tokio::time::timeout(PATIENCE, all)
        .await
        .context("they end")??;
    let seconds = began.elapsed().as_secs_f64();
    drop(leads);
    driver.abort();
    Ok(format!("{:.0}", finished as f64 / seconds))
}

/// How many migrations the state has, its bytes, and how long writing it down takes.
fn snapshot(log: &Log) -> Result<String> {
    let state = Arc::clone(&log.state().borrow());
    let began = Instant::now();
    let bytes = state_to_bytes(&state)?.len();
    let ms = began.elapsed().as_secs_f64() * 1_000.0;
    Ok(format!("{} {bytes} {ms:.1}", state.migrations.len()))
}
