//! What happens to a program while its checkpoints are taken.
//!
//! Rates are kept by the clock: what a freeze held up is made up for, as clients do that wait for an answer and then go on.

use super::workload::{Load, Workload};
use crate::cluster::Cluster;
use crate::http;
use crate::process;
use crate::redis::{Connection, words};
use anyhow::{Context, Result, ensure};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Raised when programs are filled or changed in another way.
pub const RECIPE: &str = "1";
const PAGE_PORT: u16 = 8080;
const REDIS_PORT: u16 = 6379;
/// A page of kuard is asked for fifty times a second.
const PAGE_EVERY: Duration = Duration::from_millis(20);
const PAGE_WITHIN: Duration = Duration::from_secs(2);
/// Documents of about a kibibyte: a gibibyte in redis' memory.
const DOCUMENTS: u64 = 900_000;
const COUNTERS: u64 = 94_000;
const FILLED_AT_ONCE: u64 = 500;
const TICK: Duration = Duration::from_millis(10);
/// 2000 writes, 600 counts and 5000 reads a second.
const WRITES_PER_TICK: u64 = 20;
const COUNTS_PER_TICK: u64 = 6;
const READS_PER_TICK: u64 = 50;
const READY_WITHIN: Duration = Duration::from_secs(240);
const PGBENCH_FILLS_WITHIN: Duration = Duration::from_secs(180);
/// pgbench's scale: 450 MB.
const PGBENCH_SCALE: &str = "30";

/// A load at work; it ends when dropped.
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    program: Option<Child>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(mut program) = self.program.take() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

/// Fills the program and begins to change it; it holds all it will hold when this returns.
pub fn start(
    workload: &Workload,
    cluster: &Cluster,
    namespace: &str,
    tree: Option<&Path>,
) -> Result<Running> {
    let address = |port| address(workload.name, cluster, namespace, port);
    match workload.load {
        Load::Pages => {
            let address = address(PAGE_PORT)?;
            process::wait_for("the first page", READY_WITHIN, || {
                Ok(http::get(address, "/", PAGE_WITHIN).ok())
            })?;
            Ok(repeat(PAGE_EVERY, move || {
                // A page that a freeze held up is asked for again at the next tick.
                http::get(address, "/", PAGE_WITHIN).is_ok()
            }))
        }
        Load::Redis => redis(address(REDIS_PORT)?),
        Load::Itself => {
            process::wait_for("the program to be ready", READY_WITHIN, || {
                // There is no log before there is a container.
                let log = log(workload, cluster, namespace).unwrap_or_default();
                Ok(log.lines().any(|line| line == "ready").then_some(()))
            })?;
            Ok(Running {
                stop: Arc::default(),
                thread: None,
                program: None,
            })
        }
        Load::Pgbench => {
            let tree = tree.context("pgbench is in the tree of Debian's programs")?;
            pgbench(address(5432)?.ip(), tree)
        }
    }
}

/// What the program printed.
pub fn log(workload: &Workload, cluster: &Cluster, namespace: &str) -> Result<String> {
    cluster.run(&["--namespace", namespace, "logs", workload.name])
}

fn address(pod: &str, cluster: &Cluster, namespace: &str, port: u16) -> Result<SocketAddr> {
    let get = ["--namespace", namespace, "get", "pod", pod];
    let ip = process::wait_for("the pod's address", READY_WITHIN, || {
        let pod = cluster.json(&get)?;
        let running = pod["status"]["phase"] == "Running";
        let ip = pod["status"]["podIP"].as_str().map(str::to_owned);
        Ok(ip.filter(|_| running))
    })?;
    let ip: IpAddr = ip.parse().context("understand the pod's address")?;
    Ok(SocketAddr::new(ip, port))
}

/// Calls `tick` at every `every` of the clock.
fn repeat(every: Duration, mut tick: impl FnMut() -> bool + Send + 'static) -> Running {
    let stop = Arc::new(AtomicBool::new(false));
    let thread = thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut due = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                tick();
                due += every;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
    });
    Running {
        stop,
        thread: Some(thread),
        program: None,
    }
}

fn redis(address: SocketAddr) -> Result<Running> {
    let (connection, mut chance) = fill_redis(address)?;
    let mut open = Some(connection);
    Ok(repeat(TICK, move || {
        let mut commands = Vec::new();
        for _ in 0..WRITES_PER_TICK {
            let key = format!("document:{}", chance.below(DOCUMENTS));
            commands.push(words(["SET", &key, &document(&mut chance)]));
        }
        for _ in 0..COUNTS_PER_TICK {
            let key = format!("counter:{}", chance.below(COUNTERS));
            commands.push(words(["HINCRBY", &key, "visits", "1"]));
        }
        for _ in 0..READS_PER_TICK {
            commands.push(words([
                "GET",
                &format!("document:{}", chance.below(DOCUMENTS)),
            ]));
        }
        // A freeze breaks the connection: the client is patient for half a second only, and connects again.
        if open.is_none() {
            open = Connection::open(address).ok();
        }
        let done = open
            .as_mut()
            .is_some_and(|open| open.ask(&commands).is_ok());
        if !done {
            open = None;
        }
        done
    }))
}

/// One batch: on a busy machine the kernel clears a gigabyte of pages for redis meanwhile.
const FILLED_WITHIN: Duration = Duration::from_secs(30);

/// Puts all documents and counters into a redis.
pub fn fill_redis(address: SocketAddr) -> Result<(Connection, Chance)> {
    let mut chance = Chance(1);
    let mut connection = process::wait_for("redis to answer", READY_WITHIN, || {
        Ok(Connection::open_for(address, FILLED_WITHIN).ok())
    })?;
    for first in (0..DOCUMENTS).step_by(FILLED_AT_ONCE as usize) {
        let last = DOCUMENTS.min(first + FILLED_AT_ONCE);
        let sets: Vec<_> = (first..last)
            .map(|key| words(["SET", &format!("document:{key}"), &document(&mut chance)]))
            .collect();
        connection.ask(&sets).context("fill redis")?;
    }
    for first in (0..COUNTERS).step_by(FILLED_AT_ONCE as usize) {
        let counts: Vec<_> = (first..COUNTERS.min(first + FILLED_AT_ONCE))
            .map(|key| words(["HINCRBY", &format!("counter:{key}"), "visits", "1"]))
            .collect();
        connection.ask(&counts).context("fill redis")?;
    }
    Ok((connection, chance))
}

fn pgbench(host: IpAddr, tree: &Path) -> Result<Running> {
    let command = || {
        let mut command = Command::new("chroot");
        command.arg(tree).arg("/bench/pgbench").args([
            "--host",
            &host.to_string(),
            "--username",
            "postgres",
        ]);
        command
    };
    process::wait_for("pgbench to fill postgres", READY_WITHIN, || {
        let mut fill = command();
        fill.args([
            "--initialize",
            "--quiet",
            "--scale",
            PGBENCH_SCALE,
            "postgres",
        ]);
        // Refused until postgres has started; a filling begun twice begins anew.
        Ok(process::succeed(&mut fill, PGBENCH_FILLS_WITHIN).ok())
    })?;
    let program = command()
        .args([
            "--rate", "200", "--client", "4", "--time", "600", "postgres",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start pgbench")?;
    Ok(Running {
        stop: Arc::default(),
        thread: None,
        program: Some(program),
    })
}

impl Running {
    /// Fails when the load has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        if let Some(program) = &mut self.program {
            let ended = program.try_wait().context("look after the load")?;
            ensure!(ended.is_none(), "the load has ended by itself: {ended:?}");
        }
        Ok(())
    }
}

/// Numbers that are the same in every run (splitmix64).
pub struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

const SYLLABLES: [&str; 32] = [
    "ka", "lo", "mi", "ne", "ru", "sa", "ti", "vo", "wen", "bar", "cor", "del", "fen", "gal",
    "hin", "jor", "lem", "mon", "nor", "pel", "ques", "ras", "sil", "tor", "und", "ver", "wil",
    "yan", "zor", "ash", "ber", "dun",
];
const WORDS_OF_NOTE: usize = 105;

/// A document like those that services keep in redis, every one new: it compresses to about a third.
fn document(chance: &mut Chance) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(1200);
    let number = chance.next();
    let (user, cents, day) = (number % 100_000, number % 999_983, number % 28 + 1);
    // Writing to a String does not fail.
    let _ = write!(
        text,
        r#"{{"id":{number},"user":"user-{user:05}","created":"2026-03-{day:02}T10:15:30Z","amount":{},"currency":"EUR","paid":{},"note":""#,
        cents as f64 / 100.0,
        cents % 3 == 0,
    );
    for _ in 0..WORDS_OF_NOTE {
        // Three syllables in four of a small vocabulary, as words of a language are.
        let word = chance.below(2_000);
        for syllable in [word % 32, word / 32 % 32, word % 7] {
            text += SYLLABLES[syllable as usize];
        }
        text.push(' ');
    }
    text += r#""}"#;
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_a_kibibyte_of_json_and_no_two_are_the_same() {
        let mut chance = Chance(1);
        let (one, two) = (document(&mut chance), document(&mut chance));
        assert_ne!(one, two);
        for text in [one, two] {
            assert!((800..1200).contains(&text.len()), "{}", text.len());
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
        }
    }
}
