//! A witness: while a story does its worst, it asks the ledger for its number, again and again, wherever it may be.
//!
//! ```text
//!  kubectl --watch ──addresses──► one asker per address ──(when, where, number)──► verdict
//! ```
//! What it swears to: the numbers never went back, and no two addresses answered in turns, so there was one live copy
//! at any time. A moved pod has another address each time, and an address that was left is asked on to the end: a
//! source that woke up again would be caught. At the end the pod must answer, and its own book be whole.

use anyhow::{Result, bail};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    process::ChildStdout,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{Stage, watch::Watch};
use crate::{http, process::wait_for};

/// Between two questions to one address: the ledger counts every 10 ms.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// A ledger of this machine answers within 2 ms. A held one's kernel accepts and says nothing.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);
/// An address that has been silent for this long was most likely left for another one...
const LEFT_AFTER: Duration = Duration::from_secs(120);
/// ... and is asked this often from then on: a matrix leaves some two hundred of them behind.
const ASK_LEFT_EVERY: Duration = Duration::from_millis(500);
/// A pod that is mended answers at once; its machine may be busy.
const ALIVE_WITHIN: Duration = Duration::from_secs(30);
const PORT: u16 = 8080;

/// One answer. Times are milliseconds since 1970, so that they compare with those of a migration's phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    asked_ms: u64,
    answered_ms: u64,
    address: SocketAddr,
    number: u64,
}

type Book = Arc<Mutex<Vec<Seen>>>;

/// The witness at work; it stops when dropped.
pub struct Witness<'a> {
    stage: &'a Stage,
    pod: String,
    _watch: Watch,
    stop: Arc<AtomicBool>,
    seen: Book,
}

impl<'a> Witness<'a> {
    /// Watches the ledger in this pod, and returns once it has answered.
    pub fn of(stage: &'a Stage, pod: &str) -> Result<Self> {
        let (cluster, namespace) = (stage.cluster.clone(), stage.namespace.clone());
        let pods = move || {
            let lines = r#"jsonpath={.metadata.name}{" "}{.status.podIP}{"\n"}"#;
            let mut watch = cluster.kubectl();
            watch.args(["-n", &namespace, "get", "pods", "--watch", "-o", lines]);
            watch
        };
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Book::default());
        let mut known = Vec::new();
        let watch = Watch::of(pods, {
            let (name, stop, seen) = (pod.to_owned(), Arc::clone(&stop), Arc::clone(&seen));
            move |news| follow(news, &name, &mut known, &stop, &seen)
        });
        let witness = Self {
            stage,
            pod: pod.to_owned(),
            _watch: watch,
            stop,
            seen,
        };
        witness.alive_after(now_ms())?;
        Ok(witness)
    }

    /// When the ledger first answered a question that was asked after this instant; waits for it.
    pub fn alive_after(&self, from_ms: u64) -> Result<u64> {
        self.alive_within(from_ms, ALIVE_WITHIN)
    }

    /// The same, with a patience of one's own.
    pub fn alive_within(&self, from_ms: u64, within: Duration) -> Result<u64> {
        wait_for("the ledger to answer", within, || {
            let seen = self.lock();
            let after = seen.iter().filter(|seen| seen.asked_ms >= from_ms);
            Ok(after.map(|seen| seen.answered_ms).min())
        })
    }

    /// The answers to what was asked between two instants.
    pub fn answers_between(&self, from_ms: u64, to_ms: u64) -> usize {
        let asked = |seen: &&Seen| (from_ms..to_ms).contains(&seen.asked_ms);
        self.lock().iter().filter(asked).count()
    }

    /// The longest time without an answer, in milliseconds, among what was answered since.
    pub fn longest_silence_ms(&self, since_ms: u64) -> u64 {
        let mut times: Vec<u64> = self.lock().iter().map(|seen| seen.answered_ms).collect();
        times.retain(|time| *time >= since_ms);
        times.sort_unstable();
        times
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or(0)
    }

    /// What it swears to, at the end of a story whose pod lives.
    pub fn verdict(&self) -> Result<()> {
        self.alive_after(now_ms())?;
        self.verdict_on_the_gone()?;
        let book = self.stage.get(&self.pod, PORT, "/log")?;
        if !book.contains("whole") {
            bail!("the ledger's book has a gap or a repeat: {book}");
        }
        let log = ["-n", &self.stage.namespace, "logs", &self.pod];
        let log = self
            .stage
            .cluster
            .run(&[&log[..], &["-c", "ledger"]].concat())?;
        if let Err(why) = consecutive(&log) {
            bail!("the ledger's log: {why}");
        }
        Ok(())
    }

    /// The same for a pod that is gone by now.
    pub fn verdict_on_the_gone(&self) -> Result<()> {
        if let Err(why) = judge(&self.lock()) {
            bail!("the ledger's answers: {why}");
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Starts an asker for every address the pod ever has.
fn follow(
    news: ChildStdout,
    pod: &str,
    known: &mut Vec<IpAddr>,
    stop: &Arc<AtomicBool>,
    seen: &Book,
) {
    for line in BufReader::new(news).lines().map_while(Result::ok) {
        let Some((name, ip)) = line.split_once(' ') else {
            continue;
        };
        let Ok(ip) = ip.parse::<IpAddr>() else {
            continue;
        };
        if name == pod && !known.contains(&ip) {
            known.push(ip);
            let (stop, seen) = (Arc::clone(stop), Arc::clone(seen));
            thread::spawn(move || ask(SocketAddr::new(ip, PORT), &stop, &seen));
        }
    }
}

fn ask(address: SocketAddr, stop: &AtomicBool, seen: &Book) {
    let mut answered = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let asked_ms = now_ms();
        // No answer is what a hold looks like; whether it lasts too long is the story's question.
        let number = http::get(address, "/", ANSWER_WITHIN)
            .ok()
            .and_then(|answer| answer.text().trim().parse().ok());
        if let Some(number) = number {
            answered = Instant::now();
            let one = Seen {
                asked_ms,
                answered_ms: now_ms(),
                address,
                number,
            };
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(one);
        }
        thread::sleep(match answered.elapsed() < LEFT_AFTER {
            true => ASK_EVERY,
            false => ASK_LEFT_EVERY,
        });
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Never back, and never two in turns.
fn judge(seen: &[Seen]) -> Result<(), String> {
    let mut asked: Vec<&Seen> = seen.iter().collect();
    asked.sort_by_key(|one| one.asked_ms);
    let mut answered = asked.clone();
    answered.sort_by_key(|one| one.answered_ms);
    let mut before = answered.into_iter().peekable();
    let mut highest: Option<&Seen> = None;
    for one in asked {
        while let Some(earlier) = before.next_if(|earlier| earlier.answered_ms < one.asked_ms) {
            if highest.is_none_or(|highest| earlier.number > highest.number) {
                highest = Some(earlier);
            }
        }
        if let Some(highest) = highest.filter(|highest| highest.number > one.number) {
            return Err(format!(
                "{} answered {} after {} had answered {}",
                one.address, one.number, highest.address, highest.number
            ));
        }
    }
    let mut lives: BTreeMap<SocketAddr, (u64, u64)> = BTreeMap::new();
    for one in seen {
        let life = lives
            .entry(one.address)
            .or_insert((one.answered_ms, one.asked_ms));
        *life = (life.0.min(one.answered_ms), life.1.max(one.asked_ms));
    }
    let mut lives: Vec<_> = lives.into_iter().collect();
    lives.sort_by_key(|(_, (first, _))| *first);
    for pair in lives.windows(2) {
        let ((left, (_, last)), (next, (first, _))) = (pair[0], pair[1]);
        // An answer to what was asked after the other had spoken: both were alive.
        if last > first {
            return Err(format!(
                "{left} still answered {} ms after {next} had begun to",
                last - first
            ));
        }
    }
    Ok(())
}

/// Whole lines of numbers, each one higher than the last.
fn consecutive(log: &str) -> Result<(), String> {
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    let mut last: Option<u64> = None;
    for line in whole.lines() {
        let number: u64 = line.parse().map_err(|_| format!("the line {line:?}"))?;
        if let Some(last) = last.filter(|last| last + 1 != number) {
            return Err(format!("{number} follows {last}"));
        }
        last = Some(number);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(asked_ms: u64, answered_ms: u64, host: u8, number: u64) -> Seen {
        Seen {
            asked_ms,
            answered_ms,
            address: SocketAddr::from(([10, 0, 0, host], 80)),
            number,
        }
    }

    #[test]
    fn a_pod_that_moves_there_and_counts_on_is_sworn_to() {
        let story = [
            seen(0, 1, 1, 10),
            seen(10, 11, 1, 11),
            seen(900, 901, 2, 12),
        ];
        assert_eq!(judge(&story), Ok(()));
    }

    #[test]
    fn a_number_that_goes_back_is_a_lie_unless_the_answers_crossed() {
        assert!(judge(&[seen(0, 1, 1, 10), seen(5, 6, 1, 9)]).is_err());
        assert_eq!(judge(&[seen(0, 8, 1, 10), seen(5, 6, 1, 9)]), Ok(()));
        assert!(judge(&[seen(0, 1, 1, 10), seen(900, 901, 2, 9)]).is_err());
    }

    #[test]
    fn two_addresses_that_answer_in_turns_are_two_live_copies() {
        let both = [seen(0, 1, 1, 10), seen(5, 6, 2, 11), seen(10, 11, 1, 12)];
        assert!(judge(&both).unwrap_err().contains("still answered"));
    }

    #[test]
    fn a_log_with_a_gap_or_a_repeat_is_told_and_a_half_line_is_not_judged() {
        assert_eq!(consecutive("7\n8\n9\n1"), Ok(()));
        assert!(consecutive("7\n9\n").is_err());
        assert!(consecutive("7\n7\n").is_err());
    }
}
