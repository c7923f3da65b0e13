//! A client of one pod: asks it over HTTP again and again, wherever it is, and remembers every good answer.
//!
//! ```text
//! kubectl get pod NAME --watch ─► the pod's address ─► a question every few ms ─► good answers, with their times
//! ```
//! It knows of the pod what any client knows who asks Kubernetes: the address in its status. So the time until that
//! is published belongs to the downtime it sees. Each question has a connection of its own, for a kept one would not
//! survive the move.

use crate::cluster::Cluster;
use crate::http;
use crate::process::wait_for;
use anyhow::{Context, Result, anyhow};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Between two questions: a downtime is exact to two of these.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// A frozen pod's kernel takes connections and answers none; an answer that comes takes a millisecond.
const ANSWER_WITHIN: Duration = Duration::from_millis(60);
/// A client that hears nothing for so long gives up.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// A good answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When it came.
    pub at: Instant,
    /// Who gave it.
    pub from: IpAddr,
    /// Its text.
    pub text: String,
}

/// A move as its client saw it.
#[derive(Clone, Debug)]
pub struct Gap {
    /// The last answer before it.
    pub before: Answer,
    /// The first answer after it.
    pub after: Answer,
}

impl Gap {
    /// The downtime.
    pub fn length(&self) -> Duration {
        self.after.at.duration_since(self.before.at)
    }
}

/// A client at work; it stops when dropped.
pub struct Client {
    watch: Child,
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<Vec<Answer>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Client {
    /// Begins to ask the pod for `path`; one that isn't there yet is waited for.
    pub fn start(cluster: &Cluster, namespace: &str, pod: &str, ask: (u16, &str)) -> Result<Self> {
        let (port, path) = (ask.0, ask.1.to_owned());
        Self::asking(cluster, namespace, pod, port, move |address| {
            page(address, &path)
        })
    }

    /// The same with a question of its own, which gives a good answer's text.
    pub fn asking(
        cluster: &Cluster,
        namespace: &str,
        pod: &str,
        port: u16,
        ask: impl Fn(SocketAddr) -> Option<String> + Send + 'static,
    ) -> Result<Self> {
        let mut watch = cluster
            .kubectl()
            .args(["--namespace", namespace, "get", "pods", "--watch"])
            .args(["--field-selector", &format!("metadata.name={pod}")])
            .args(["--output", r#"jsonpath={.status.podIP}{"\n"}"#])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("watch the pod with kubectl")?;
        let news = watch.stdout.take().context("read what kubectl prints")?;
        let address = Arc::new(Mutex::new(None));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let address = Arc::clone(&address);
            move || {
                let lines = BufReader::new(news).lines().map_while(Result::ok);
                // A pod that is just made has no address: until it has, the old one is asked.
                for ip in lines.filter_map(|line| line.trim().parse::<IpAddr>().ok()) {
                    *lock(&address) = Some(ip);
                }
            }
        });
        let asker = thread::spawn({
            let (heard, stop) = (Arc::clone(&heard), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let ip = *lock(&address);
                    if let Some(from) = ip
                        && let Some(text) = ask(SocketAddr::new(from, port))
                    {
                        let at = Instant::now();
                        lock(&heard).push(Answer { at, from, text });
                    }
                    thread::sleep(ASK_EVERY);
                }
            }
        });
        Ok(Self {
            watch,
            stop,
            heard,
            threads: vec![reader, asker],
        })
    }

    /// Waits for an answer that is as wished.
    pub fn wait_for(&self, what: &str, wished: impl Fn(&Answer) -> bool) -> Result<Answer> {
        let limit = ANSWERS_WITHIN;
        wait_for(what, limit, || {
            Ok(lock(&self.heard)
                .iter()
                .find(|answer| wished(answer))
                .cloned())
        })
    }

    /// How many good answers there were.
    pub fn answers(&self) -> usize {
        lock(&self.heard).len()
    }

    /// The pod's move, once somebody else than in the beginning has answered.
    pub fn wait_for_move(&self) -> Result<Gap> {
        let first = self.wait_for("the pod's first answer", |_| true)?;
        let from = first.from;
        self.wait_for("an answer from the pod's new place", |answer| {
            answer.from != from
        })?;
        gap(&lock(&self.heard)).ok_or_else(|| anyhow!("the client heard of no move"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Its end is the end of the reader's input.
        let _ = self.watch.kill();
        let _ = self.watch.wait();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A page, when it is a good one.
pub fn page(address: SocketAddr, path: &str) -> Option<String> {
    let answer = http::get(address, path, ANSWER_WITHIN).ok()?;
    (answer.status == 200).then(|| answer.text())
}

/// The first change of who answers.
fn gap(heard: &[Answer]) -> Option<Gap> {
    let at = heard
        .windows(2)
        .position(|pair| pair[0].from != pair[1].from)?;
    Some(Gap {
        before: heard[at].clone(),
        after: heard[at + 1].clone(),
    })
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_between_the_last_answer_of_the_old_and_the_first_of_the_new_place() {
        let start = Instant::now();
        let answer = |ms, last: u8| Answer {
            at: start + Duration::from_millis(ms),
            from: IpAddr::from([10, 200, last, 2]),
            text: ms.to_string(),
        };
        // 700 ms of silence of the same pod are no move.
        let heard = [
            answer(0, 1),
            answer(700, 1),
            answer(1_100, 2),
            answer(1_105, 2),
        ];
        let found = gap(&heard).unwrap();
        assert_eq!(found.length(), Duration::from_millis(400));
        assert_eq!(
            (found.before.text.as_str(), found.after.text.as_str()),
            ("700", "1100")
        );
        assert!(gap(&heard[..2]).is_none());
    }
}
