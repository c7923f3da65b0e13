//! What a migration tells those who watch: its trace at a collector, and the metrics of every daemon.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use super::{
    Stage, Story,
    faults::ledger_with,
    harm::shell,
    peers::{METRICS_PORT, Peer},
    replication::other_node,
};
use crate::{
    cache,
    deploy::{NAMESPACE, PEER_COUNT},
    http,
    process::{self, wait_for},
    s3::target_folder,
    site::COLLECTOR_PORT,
};

/// Building it takes some seconds when the tests were not built before.
const BUILT_WITHIN: Duration = Duration::from_secs(300);
/// The trace is sent when the migration has ended; a peer that found no collector before dials again.
const SENT_WITHIN: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Where a worker serves its metrics, on its node's loopback; `deploy/` says the same.
const WORKER_METRICS: &str = "http://127.0.0.1:5718/metrics";
/// The log's part of a freeze: that the source is held, and that the target has every byte.
const COMMITS_IN_FREEZE_MAX: usize = 2;

/// This theme's stories.
pub fn stories() -> Vec<Story> {
    vec![Story {
        name: "traces-and-metrics",
        about: "A collector gets one whole trace of a migration, with two commits in its freeze; every promised metric is served",
        tell: traces_and_metrics,
    }]
}

fn traces_and_metrics(stage: &Stage) -> Result<()> {
    let collector = Collector::start(stage)?;
    ledger_with(stage, 0)?;
    stage.move_pod("ledger", other_node(stage)?)?;
    let migrations = stage.migrations()?;
    let migration = migrations.last().context("there is a migration")?;
    let uid = migration["metadata"]["uid"]
        .as_str()
        .context("an object has a UID")?;
    let id = uid.replace('-', "");
    let spans = wait_for("the whole trace", SENT_WITHIN, || {
        let spans = collector.trace(&id);
        // Each place's spans come in a message of their own.
        let services: BTreeSet<String> = spans.iter().map(place_of).collect();
        Ok((services.len() == 3).then_some(spans))
    })?;
    whole(&spans, &stage.namespace)?;
    freeze_waits_for_two_commits(&spans)?;
    metrics(stage)
}

/// One root, nobody's parent is missing, no span twice.
fn whole(spans: &[Value], namespace: &str) -> Result<()> {
    let ids: BTreeSet<&str> = spans.iter().map(|span| text(span, "span")).collect();
    ensure!(ids.len() == spans.len(), "a span was sent twice");
    let (roots, others): (Vec<_>, Vec<_>) = spans
        .iter()
        .partition(|span| text(span, "parent").is_empty());
    let [root] = roots[..] else {
        bail!("the trace has {} roots", roots.len());
    };
    let name = format!("migrate pod {namespace}/ledger");
    ensure!(text(root, "name") == name, "the root is {root}");
    if let Some(orphan) = others
        .iter()
        .find(|span| !ids.contains(text(span, "parent")))
    {
        bail!("the parent of {orphan} was not sent");
    }
    Ok(())
}

/// What three peers cost while nobody runs the pod.
fn freeze_waits_for_two_commits(spans: &[Value]) -> Result<()> {
    let named = |name: &'static str| spans.iter().filter(move |span| text(span, "name") == name);
    let freeze = named("freeze").next().context("the trace has a freeze")?;
    let inside = |name: &'static str| {
        let within = |span: &&Value| {
            at(span, "start") >= at(freeze, "start") && at(span, "end") <= at(freeze, "end")
        };
        let all: Vec<&Value> = named(name).filter(within).collect();
        let took: u64 = all
            .iter()
            .map(|span| at(span, "end") - at(span, "start"))
            .sum();
        (all.len(), took as f64 / 1e6)
    };
    let ((commits, committing_ms), (questions, asking_ms)) =
        (inside("commit"), inside("ask a majority"));
    println!(
        "          {} spans; in a freeze of {:.0} ms {commits} commits took {committing_ms:.1} ms, and the question who leads \
         {asking_ms:.1} ms",
        spans.len(),
        (at(freeze, "end") - at(freeze, "start")) as f64 / 1e6
    );
    ensure!(
        commits > 0 && commits <= COMMITS_IN_FREEZE_MAX,
        "{commits} commits lie in the freeze"
    );
    ensure!(questions > 0, "nobody asked who leads in the freeze");
    Ok(())
}

fn text<'a>(span: &'a Value, key: &str) -> &'a str {
    span[key].as_str().unwrap_or_default()
}

fn at(span: &Value, key: &str) -> u64 {
    span[key].as_u64().unwrap_or_default()
}

fn place_of(span: &Value) -> String {
    format!("{} {}", span["service"], span["node"])
}

/// Every metric that ARCHITECTURE.md promises is served by the daemon it is promised of.
fn metrics(stage: &Stage) -> Result<()> {
    let mut of_peers = String::new();
    for ordinal in 0..PEER_COUNT {
        let peer = Peer::of(stage, ordinal)?;
        let pod = stage
            .cluster
            .json(&["-n", NAMESPACE, "get", "pod", &peer.pod])?;
        let ip: IpAddr = text(&pod["status"], "podIP")
            .parse()
            .context("read a peer's address")?;
        let answer = http::get(SocketAddr::new(ip, METRICS_PORT), "/metrics", ANSWER_WITHIN)?;
        ensure!(
            answer.status == 200,
            "{} answered {}",
            peer.pod,
            answer.status
        );
        of_peers += &answer.text();
    }
    let mut of_workers = String::new();
    for n in stage.lab.site.node_numbers() {
        of_workers += &shell(&stage.lab, n, &format!("curl -sSf {WORKER_METRICS}"))?;
    }
    let page = fs::read_to_string(cache::project().join("ARCHITECTURE.md"))
        .context("read which metrics are promised")?;
    let promised = promised(&page);
    ensure!(
        promised.len() > 10,
        "ARCHITECTURE.md lists {} metrics",
        promised.len()
    );
    for name in promised {
        let served = match name.starts_with("longshore_worker_") {
            true => &of_workers,
            false => &of_peers,
        };
        // A histogram's lines have endings of their own.
        let is_it = |line: &str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']) || rest.starts_with("_count"))
        };
        ensure!(served.lines().any(is_it), "nobody serves {name}");
    }
    Ok(())
}

/// The names in the section of that title.
fn promised(page: &str) -> BTreeSet<&str> {
    let section = page
        .split("\n## ")
        .find(|section| section.starts_with("Metrics\n"));
    let words = section.unwrap_or_default().split('`');
    let names = words.filter(|word| word.starts_with("longshore_"));
    names.filter_map(|word| word.split('{').next()).collect()
}

/// `orchestrator/examples/collector.rs`, where the lab's peers send their traces.
struct Collector {
    process: Child,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    fn start(stage: &Stage) -> Result<Self> {
        let target = target_folder()?;
        let mut build = Command::new("cargo");
        build
            .current_dir(cache::project())
            .env("CARGO_TARGET_DIR", &target);
        build.args(["build", "--quiet", "--workspace", "--example", "collector"]);
        process::output(&mut build, BUILT_WITHIN).context("build the collector")?;
        let mut process = Command::new(target.join("debug/examples/collector"))
            .arg(format!("{}:{COLLECTOR_PORT}", stage.lab.site.gateway()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the collector")?;
        let out = process.stdout.take().context("hear the collector")?;
        let spans: Arc<Mutex<Vec<Value>>> = Arc::default();
        let heard = Arc::clone(&spans);
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let span = serde_json::from_str(&line).unwrap_or_else(|_| json!({"name": line}));
                heard
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(span);
            }
        });
        Ok(Self { process, spans })
    }

    fn trace(&self, id: &str) -> Vec<Value> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans
            .iter()
            .filter(|span| span["trace"] == id)
            .cloned()
            .collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            eprintln!("the collector is left: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_that_are_promised_are_found_on_the_page() {
        let page = "# A\n\n## Metrics\n\nHere (`:1/metrics`): `longshore_a{phase}`,\n`longshore_b`.\n\n## Z\n`longshore_c`\n";
        assert_eq!(
            promised(page),
            BTreeSet::from(["longshore_a", "longshore_b"])
        );
        let real = include_str!("../../../ARCHITECTURE.md");
        assert!(promised(real).contains("longshore_freeze_seconds"));
    }

    #[test]
    fn commits_outside_the_freeze_are_not_its() {
        let span =
            |name: &str, start: u64, end: u64| json!({"name": name, "start": start, "end": end});
        let mut spans = vec![
            span("freeze", 100, 200),
            span("commit", 90, 95),
            span("commit", 110, 120),
            span("commit", 130, 140),
            span("ask a majority", 150, 151),
        ];
        assert!(freeze_waits_for_two_commits(&spans).is_ok());
        spans.push(span("commit", 160, 170));
        assert!(freeze_waits_for_two_commits(&spans).is_err());
    }
}
