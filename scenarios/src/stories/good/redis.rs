//! Redis under a write load: what it acknowledged, it has, wherever it runs.
//!
//! The writer sends one SET after the other and counts a key only when `+OK` came back; the connection breaks with the
//! move (connections are closed, and said to be), and it connects to wherever the pod is by then. A SET whose answer
//! was lost may be there or not, so its key is never used again.

use super::{super::Stage, container};
use crate::{
    redis::{Connection, words},
    workloads::REDIS,
};
use anyhow::{Result, bail, ensure};
use serde_json::json;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const POD: &str = "redis";
const REDIS_PORT: u16 = 6379;
const KEYS: usize = 200_000;
/// Sent before the answers are read: enough that the network's turn-around does not matter.
const AT_ONCE: usize = 1_000;
/// The load goes on this long before and after the move.
const AROUND_THE_MOVE: Duration = Duration::from_millis(500);

fn value_of(key: &str) -> String {
    format!("the value of {key} and nothing else")
}

/// Moves redis while it is written to, and asks for everything afterwards.
pub fn redis_under_load(stage: &Stage) -> Result<()> {
    stage.run_pod(POD, "node1", json!([container(POD, REDIS, &[])]), json!({}))?;
    fill(stage)?;
    let done = AtomicBool::new(false);
    let (moved, acknowledged) = thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(stage, &done));
        thread::sleep(AROUND_THE_MOVE);
        let moved = stage.move_pod(POD, "node2");
        thread::sleep(AROUND_THE_MOVE);
        done.store(true, Ordering::Release);
        (moved, writer.join())
    });
    moved?;
    let Ok(acknowledged) = acknowledged else {
        bail!("the writer panicked")
    };
    let Written {
        acknowledged,
        connections,
        longest_silence,
    } = acknowledged?;
    ensure!(
        connections > 1,
        "the writer never had to connect again: it did not write through the move"
    );
    println!(
        "          {} writes acknowledged over {connections} connections; longest time without one {longest_silence:.2?}",
        acknowledged.len()
    );
    let filled = (0..KEYS).map(|n| format!("filled:{n}"));
    let missing = missing(stage, &filled.chain(acknowledged).collect::<Vec<_>>())?;
    ensure!(
        missing.is_empty(),
        "{} keys are not as they were acknowledged, the first is {:?}",
        missing.len(),
        missing.first()
    );
    Ok(())
}

fn fill(stage: &Stage) -> Result<()> {
    let mut connection = Connection::open(stage.address(POD, REDIS_PORT)?)?;
    let keys: Vec<String> = (0..KEYS).map(|n| format!("filled:{n}")).collect();
    for some in keys.chunks(AT_ONCE) {
        let sets: Vec<_> = some
            .iter()
            .map(|key| words(["SET", key, &value_of(key)]))
            .collect();
        connection.ask(&sets)?;
    }
    Ok(())
}

/// What the writer did.
struct Written {
    acknowledged: Vec<String>,
    connections: usize,
    longest_silence: Duration,
}

fn write_until(stage: &Stage, done: &AtomicBool) -> Result<Written> {
    let mut written = Written {
        acknowledged: Vec::new(),
        connections: 0,
        longest_silence: Duration::ZERO,
    };
    let (mut next, mut last_ok) = (0u64, Instant::now());
    while !done.load(Ordering::Acquire) {
        // Between two lives the pod has no address, or a former one that refuses: asked again until it is there.
        let Ok(mut connection) = stage.address(POD, REDIS_PORT).and_then(Connection::open) else {
            continue;
        };
        let before = written.acknowledged.len();
        while !done.load(Ordering::Acquire) {
            let key = format!("written:{next}");
            next += 1;
            match connection.ask(&[words(["SET", &key, &value_of(&key)])]) {
                Ok(answers) if answers == [Some("OK".to_owned())] => {
                    written.longest_silence = written.longest_silence.max(last_ok.elapsed());
                    last_ok = Instant::now();
                    written.acknowledged.push(key);
                }
                Ok(answers) => bail!("redis answered a SET with {answers:?}"),
                Err(_) => break,
            }
        }
        written.connections += usize::from(written.acknowledged.len() > before);
    }
    Ok(written)
}

fn missing(stage: &Stage, keys: &[String]) -> Result<Vec<String>> {
    let mut connection = Connection::open(stage.address(POD, REDIS_PORT)?)?;
    let mut missing = Vec::new();
    for some in keys.chunks(AT_ONCE) {
        let gets: Vec<_> = some.iter().map(|key| words(["GET", key])).collect();
        let values = connection.ask(&gets)?;
        let lost = some
            .iter()
            .zip(values)
            .filter(|(key, value)| value.as_deref() != Some(&value_of(key)));
        missing.extend(lost.map(|(key, _)| key.clone()));
    }
    Ok(missing)
}
