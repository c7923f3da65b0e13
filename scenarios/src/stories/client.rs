//! A client of a ledger, outside of the cluster's knowledge of migrations: it asks for the number again and again,
//! follows the pod to whatever address the API says, and writes down every number it was told and by whom.
//!
//! ```text
//!   kubectl get pod --watch ──► addresses, newest last ──► asks the newest; now and then the one before it, too
//! ```
//! One thread asks, one question at a time, so the order of the answers is the order in which they were given. From
//! them alone it follows whether the ledger counted on ([`Heard::check`]): a smaller number is a copy that started
//! again or from an older moment, an answer of the former address after one of the new is a second copy that runs, and
//! a number too large for the time that passed is a gap.

use super::Stage;
use crate::http;
use anyhow::{Context, Result, bail};
use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Between two questions; the ledger counts every 10 ms.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// A frozen pod accepts connections and says nothing; asked again so often that the first new answer is not missed.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);
/// A former address that answers, answers at once; one that is gone must not hold up the questions to the new one.
const FORMER_WITHIN: Duration = Duration::from_millis(20);
/// Every how many questions the former address is asked, too.
const FORMER_EVERY: u64 = 8;
/// The ledger sleeps this long between two numbers, never less.
const PERIOD_MS: u128 = 10;

/// A client at work.
pub struct Client {
    done: Arc<AtomicBool>,
    watch: Child,
    asker: JoinHandle<Vec<Answer>>,
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// When the question was asked.
    pub asked: Instant,
    /// When the answer was there.
    pub heard: Instant,
    /// Which of the pod's addresses answered, counted from 0.
    pub place: usize,
    /// What it said.
    pub number: u64,
}

/// Everything a client was told.
pub struct Heard(pub Vec<Answer>);

impl Client {
    /// Starts asking a pod's ledger; there is a first answer when this returns.
    pub fn start(stage: &Stage, pod: &str, port: u16) -> Result<Self> {
        let addresses = Arc::new(Mutex::new(Vec::new()));
        let mut watch = stage
            .cluster
            .kubectl()
            .args(["-n", &stage.namespace, "get", "pod", pod, "--watch"])
            .args(["--output", "jsonpath={.status.podIP}{\"\\n\"}"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("watch the pod's address")?;
        let lines = BufReader::new(watch.stdout.take().context("read the pod's address")?);
        let known = Arc::clone(&addresses);
        // Ends with the watch.
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Ok(ip) = line.trim().parse::<IpAddr>() {
                    remember(&known, SocketAddr::new(ip, port));
                }
            }
        });
        let done = Arc::new(AtomicBool::new(false));
        let (end, first) = (Arc::clone(&done), Arc::new(AtomicBool::new(false)));
        let heard_one = Arc::clone(&first);
        let asker = thread::spawn(move || ask(&addresses, &end, &heard_one));
        let client = Self { done, watch, asker };
        crate::process::wait_for("the ledger's first answer", Duration::from_secs(30), || {
            Ok(first.load(Ordering::Acquire).then_some(()))
        })?;
        Ok(client)
    }

    /// Stops asking and gives what was heard.
    pub fn stop(mut self) -> Result<Heard> {
        self.done.store(true, Ordering::Release);
        let heard = self.asker.join();
        self.watch
            .kill()
            .and_then(|()| self.watch.wait())
            .context("end the watch")?;
        match heard {
            Ok(answers) => Ok(Heard(answers)),
            Err(_) => bail!("the client panicked"),
        }
    }
}

fn remember(addresses: &Mutex<Vec<SocketAddr>>, address: SocketAddr) {
    let mut known = addresses.lock().unwrap_or_else(PoisonError::into_inner);
    if known.last() != Some(&address) {
        known.push(address);
    }
}

fn ask(
    addresses: &Mutex<Vec<SocketAddr>>,
    done: &AtomicBool,
    heard_one: &AtomicBool,
) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut questions = 0u64;
    while !done.load(Ordering::Acquire) {
        questions += 1;
        let known = addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let former = questions.is_multiple_of(FORMER_EVERY) && known.len() > 1;
        let (place, limit) = if former {
            (known.len().checked_sub(2), FORMER_WITHIN)
        } else {
            (known.len().checked_sub(1), ANSWER_WITHIN)
        };
        if let Some((place, address)) = place.and_then(|at| Some((at, *known.get(at)?))) {
            answers.extend(ask_once(place, address, limit));
            heard_one.store(!answers.is_empty(), Ordering::Release);
        }
        thread::sleep(ASK_EVERY);
    }
    answers
}

/// Whatever is no number is no answer: a pod that is being moved refuses, cuts off or is silent.
fn ask_once(place: usize, address: SocketAddr, limit: Duration) -> Option<Answer> {
    let asked = Instant::now();
    let answer = http::get(address, "/", limit).ok()?;
    let number = answer.text().trim().parse().ok()?;
    Some(Answer {
        asked,
        heard: Instant::now(),
        place,
        number,
    })
}

impl Heard {
    /// Whether one ledger counted on through all of it, whatever its address.
    pub fn check(&self) -> Result<()> {
        for pair in self.0.windows(2) {
            let [before, after] = pair else { continue };
            if after.number < before.number {
                bail!(
                    "the ledger went back from {} to {} (addresses {} and {})",
                    before.number,
                    after.number,
                    before.place,
                    after.place
                );
            }
            if after.place < before.place {
                bail!(
                    "two copies answered: address {} said {} after address {} had said {}",
                    after.place,
                    after.number,
                    before.place,
                    before.number
                );
            }
            let possible = after.heard.duration_since(before.asked).as_millis() / PERIOD_MS + 1;
            if u128::from(after.number - before.number) > possible {
                bail!(
                    "the ledger jumped from {} to {} in a time for {possible} numbers",
                    before.number,
                    after.number
                );
            }
        }
        Ok(())
    }

    /// How many addresses answered.
    pub fn places(&self) -> usize {
        let mut places: Vec<usize> = self.0.iter().map(|answer| answer.place).collect();
        places.dedup();
        places.len()
    }

    /// The last number heard.
    pub fn last(&self) -> u64 {
        self.0.last().map_or(0, |answer| answer.number)
    }

    /// The longest time between two good answers.
    pub fn longest_silence(&self) -> Duration {
        self.0
            .windows(2)
            .filter_map(|pair| match pair {
                [before, after] => Some(after.heard.duration_since(before.heard)),
                _ => None,
            })
            .max()
            .unwrap_or_default()
    }

    /// For every change of address, the time between the last good answer of the one and the first of the other.
    pub fn downtimes(&self) -> Vec<Duration> {
        self.0
            .windows(2)
            .filter_map(|pair| match pair {
                [before, after] if before.place != after.place => {
                    Some(after.heard.duration_since(before.heard))
                }
                _ => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers 100 ms apart: address and number.
    fn heard(said: &[(usize, u64)]) -> Heard {
        let mut at = Instant::now();
        let answer = |&(place, number): &(usize, u64)| {
            at += Duration::from_millis(100);
            Answer {
                asked: at,
                heard: at,
                place,
                number,
            }
        };
        Heard(said.iter().map(answer).collect())
    }

    fn complaint(said: &[(usize, u64)]) -> String {
        heard(said)
            .check()
            .map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn a_ledger_that_counts_on_at_a_new_address_is_well() {
        let moved = heard(&[(0, 5), (0, 12), (1, 12), (1, 21)]);
        assert!(moved.check().is_ok());
        assert_eq!((moved.places(), moved.last()), (2, 21));
        assert_eq!(moved.downtimes(), [Duration::from_millis(100)]);
    }

    #[test]
    fn a_smaller_number_a_second_copy_and_a_jump_are_seen() {
        assert!(complaint(&[(0, 50), (1, 49)]).contains("went back"));
        assert!(complaint(&[(0, 5), (1, 6), (0, 7)]).contains("two copies"));
        assert!(complaint(&[(0, 5), (1, 40)]).contains("jumped"));
    }
}
