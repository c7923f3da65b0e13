//! Good days: nothing breaks, and the pod is the same pod elsewhere.

mod appearance;
mod containers;
mod images;
mod many;
mod moto;
mod redis;
mod rounds;
mod store;

pub use appearance::{abort_by_deletion, looks_the_same};
pub use containers::{sidecar_and_finished_init, two_containers};
pub use images::{by_pull, by_secret, through_the_store};
pub use many::ten_at_once;
pub use moto::moto;
pub use redis::redis_under_load;
pub use rounds::{kept as kept_checkpoint, lost as rounds_lost, sent_ahead};
pub use store::cleared_up as store_cleared_up;

use super::{Stage, client::Client};
use crate::{
    http, process,
    workloads::{KUARD, LEDGER},
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::time::Duration;

/// Where kuard and ledger listen without being told.
pub const PORT: u16 = 8080;
/// Reading 256 MiB twice takes a second, on a busy machine several.
const DIGEST_WITHIN: Duration = Duration::from_secs(30);
/// The kubelet starts a container that died once within a second or two.
const STARTED_AGAIN_WITHIN: Duration = Duration::from_secs(30);

/// One container called `name` from an image.
pub fn container(name: &str, image: &str, arguments: &[&str]) -> Value {
    json!({"name": name, "image": image, "args": arguments, "imagePullPolicy": "IfNotPresent"})
}

/// Starts a ledger.
pub fn run_ledger(stage: &Stage, pod: &str, node: &str) -> Result<()> {
    stage.run_pod(
        pod,
        node,
        json!([container("ledger", LEDGER, &[])]),
        json!({}),
    )
}

/// How often the pod's containers were started again, all together.
pub fn restarts(stage: &Stage, pod: &str) -> Result<u64> {
    let pod = stage.pod(pod)?;
    let statuses = pod["status"]["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten();
    Ok(statuses
        .filter_map(|container| container["restartCount"].as_u64())
        .sum())
}

/// The last number of the ledger's file, which must be whole.
pub fn book(stage: &Stage, pod: &str, port: u16) -> Result<u64> {
    let text = stage.get(pod, port, "/log")?;
    let last = text
        .strip_prefix("last ")
        .and_then(|rest| rest.strip_suffix(" whole\n"))
        .with_context(|| format!("the ledger's file is not whole: {}", text.trim()))?;
    Ok(last.parse()?)
}

/// The last number in what `kubectl logs` shows, which must be 1, 2, 3 … without a gap or a repeat.
fn log(stage: &Stage, pod: &str) -> Result<u64> {
    let text = stage
        .cluster
        .run(&["-n", &stage.namespace, "logs", pod, "--container=ledger"])?;
    counted(&text)
}

fn counted(text: &str) -> Result<u64> {
    let mut last = 0u64;
    for line in text.lines() {
        let number: u64 = line
            .parse()
            .with_context(|| format!("the log has {line:?} after {last}"))?;
        ensure!(
            number == last + 1,
            "the log has {number} after {last}, of {} lines",
            text.lines().count()
        );
        last = number;
    }
    ensure!(last > 0, "the log is empty");
    Ok(last)
}

/// Ten moves back and forth, with a client that never stops asking.
pub fn ledger_ten_moves(stage: &Stage) -> Result<()> {
    const POD: &str = "ledger";
    const MOVES: usize = 10;
    run_ledger(stage, POD, "node1")?;
    let client = Client::start(stage, POD, PORT)?;
    for (nth, to) in ["node2", "node1"]
        .into_iter()
        .cycle()
        .take(MOVES)
        .enumerate()
    {
        stage
            .move_pod(POD, to)
            .with_context(|| format!("move {} of {MOVES}", nth + 1))?;
    }
    // Asked before the client's last question: book and log must hold at least that much.
    let heard = client.stop()?;
    heard.check()?;
    ensure!(
        heard.places() == MOVES + 1,
        "{} addresses answered, {} were expected: one for each move and the first",
        heard.places(),
        MOVES + 1
    );
    let (book, log) = (book(stage, POD, PORT)?, log(stage, POD)?);
    ensure!(
        book >= heard.last() && log >= heard.last(),
        "{} was answered, the file ends at {book}, the log at {log}",
        heard.last()
    );
    ensure!(
        restarts(stage, POD)? == 0,
        "the container was started again"
    );
    let mut downtimes = heard.downtimes();
    downtimes.sort();
    if let (Some(median), Some(longest)) = (downtimes.get(MOVES / 2), downtimes.last()) {
        println!(
            "          {} answers over {MOVES} moves; downtime seen: median {median:.2?}, longest {longest:.2?}",
            heard.0.len()
        );
    }
    Ok(())
}

/// A quarter of a gibibyte of memory, the same bit for bit.
pub fn kuard_holds_memory(stage: &Stage) -> Result<()> {
    const POD: &str = "kuard";
    stage.run_pod(
        POD,
        "node1",
        json!([container("kuard", KUARD, &[])]),
        json!({}),
    )?;
    let digest = |path: &str| -> Result<String> {
        let answer = http::get(stage.address(POD, PORT)?, path, DIGEST_WITHIN)?;
        ensure!(
            answer.status == 200,
            "kuard's memory is not what it should be: {}",
            answer.text()
        );
        Ok(answer.text())
    };
    let before = digest("/mem?mib=256&seed=77")?;
    ensure!(
        before.starts_with("mib 256 seed 77 "),
        "kuard said {before}"
    );
    let page = stage.get(POD, PORT, "/")?;
    stage.move_pod(POD, "node2")?;
    let after = digest("/mem/digest")?;
    ensure!(before == after, "the memory was {before}and is {after}");
    let later = stage.get(POD, PORT, "/")?;
    // The page, the digest and the page again: three more requests than the first page counted.
    ensure!(
        requests(&later)? >= requests(&page)? + 2,
        "the count of requests began anew: {later}"
    );
    ensure!(restarts(stage, POD)? == 0, "kuard was started again");
    Ok(())
}

fn requests(page: &str) -> Result<u64> {
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix("requests "))
        .with_context(|| format!("kuard's page has no requests: {page}"))?;
    Ok(line.parse()?)
}

/// A container that dies after it was moved starts from its image, as it would have without us.
pub fn crash_after_move(stage: &Stage) -> Result<()> {
    const POD: &str = "ledger";
    run_ledger(stage, POD, "node1")?;
    // High enough that a ledger restored a second time is told from a new one, however long the restart takes.
    process::wait_for("a number that takes a while", STARTED_AGAIN_WITHIN, || {
        Ok((book(stage, POD, PORT)? > 1_000).then_some(()))
    })?;
    stage.move_pod(POD, "node2")?;
    let before = number(stage, POD)?;
    ensure!(before > 1_000, "the ledger began anew by being moved");
    super::ground::kill_container(stage, POD, "ledger")?;
    process::wait_for(
        "the container to be started again",
        STARTED_AGAIN_WITHIN,
        || {
            let pod = stage.pod(POD)?;
            let status = &pod["status"]["containerStatuses"][0];
            Ok((status["restartCount"] == 1 && status["ready"] == true).then_some(()))
        },
    )?;
    let after = number(stage, POD)?;
    if after >= before {
        bail!("killed at {before}, the ledger goes on at {after}: it was restored a second time");
    }
    // Its file begins with it: what the first life wrote is gone with the container, as always in Kubernetes.
    ensure!(
        book(stage, POD, PORT)? < before,
        "the former file was brought back"
    );
    // What was started afresh is an ordinary pod again: it can move on.
    stage
        .move_pod(POD, "node1")
        .context("move the pod again after its crash")?;
    ensure!(
        number(stage, POD)? >= after,
        "the second life was not carried over"
    );
    book(stage, POD, PORT).map(drop)
}

/// What the ledger says now.
pub fn number(stage: &Stage, pod: &str) -> Result<u64> {
    let text = stage.get(pod, PORT, "/")?;
    text.trim()
        .parse()
        .with_context(|| format!("the ledger said {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_with_a_gap_a_repeat_or_rubbish_is_not_whole() {
        assert_eq!(counted("1\n2\n3\n").ok(), Some(3));
        for broken in ["1\n3\n", "1\n2\n2\n", "2\n3\n", "1\nx\n", ""] {
            assert!(counted(broken).is_err(), "{broken:?}");
        }
    }
}
