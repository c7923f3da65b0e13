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
mod peer;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use orchestrator::tls::{Authority, peer_name};
use orchestrator_core::state::HISTORY_MAX;
use serde_json::json;
use uuid::Uuid;

const GROUP: Uuid = Uuid::from_u128(4711);
const PEERS: [u64; 3] = [1, 2, 3];
/// Enough for a p99 that isn't one command.
const LATENCY_COMMANDS: usize = 2_000;
const MIGRATIONS: usize = 3_000;
const FAILOVERS: usize = 50;
const FINISHED: usize = 10_000;
const RUNNING: usize = 500;
/// What a peer says that lost the lead in the middle.
const LOST: &str = "lost";
/// Whatever takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two questions to peers that don't lead yet: what a failover is measured to.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// As the daemon has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    // An error means that it was installed before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["peer", number, folder] => peer::peer(number.parse()?, Path::new(folder)),
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

    let per_second = MIGRATIONS as f64 / group.migrate(1, MIGRATIONS, 0)?.as_secs_f64();
    println!("migrations through the log, no-op world: {per_second:.0} /s ({MIGRATIONS})");
    figure(
        &mut figures,
        "migrations_per_second",
        per_second,
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
    let took = group.migrate(2, FINISHED, RUNNING)?;
    let leader = group.leader()?;
    let told = group.ask(leader, "snapshot")?;
    let words: Vec<&str> = told.split(' ').collect();
    let [kept, bytes, ms] = words[..] else {
        bail!("three numbers and not {told:?}");
    };
    println!(
        "history: {FINISHED} finished and {RUNNING} running in {:.0} s, {kept} kept (of the finished the last {HISTORY_MAX}); \
         snapshot {:.1} MiB in {ms} ms",
        took.as_secs_f64(),
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

    /// How long it takes until so many have ended and so many go on, from the first that is asked for.
    fn migrate(&mut self, run: u32, finished: usize, running: usize) -> Result<Duration> {
        let began = Instant::now();
        loop {
            let leader = self.leader()?;
            if self.ask(leader, &format!("migrations {run} {finished} {running}"))? != LOST {
                return Ok(began.elapsed());
            }
            println!("peer {leader} lost the lead in the middle; the next one goes on");
        }
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
