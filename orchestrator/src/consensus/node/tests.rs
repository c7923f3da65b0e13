use std::{path::PathBuf, time::Instant};

use orchestrator_core::{
    id::NodeName,
    state::{Applied, Command},
};

use super::*;

fn register(node: &str, journal: &str) -> Command {
    Command::Register {
        node: NodeName::from(node),
        journal: journal.to_owned(),
    }
}

async fn leads(log: &Log) {
    let mut leadership = log.leadership();
    tokio::time::timeout(
        Duration::from_secs(10),
        leadership.wait_for(|l| matches!(l, Leadership::Leader { .. })),
    )
    .await
    .unwrap()
    .unwrap();
}

#[tokio::test]
async fn a_log_of_one_peer_leads_at_once_and_keeps_what_it_answered() {
    let dir = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let log = Log::start(dir.path(), 1).await.unwrap();
    leads(&log).await;
    assert!(
        began.elapsed() < Duration::from_millis(900),
        "{:?}",
        began.elapsed()
    );
    let (first, applied) = log.propose(register("node1", "a")).await.unwrap();
    assert_eq!(applied, Ok(Applied::Registered(first)));
    let before = Arc::clone(&log.state().borrow());
    assert_eq!(before.workers[&NodeName::from("node1")].at, first);
    log.stop().await;

    let log = Log::start(dir.path(), 1).await.unwrap();
    leads(&log).await;
    assert_eq!(**log.state().borrow(), *before);
    let (second, _) = log.propose(register("node2", "b")).await.unwrap();
    assert!(second > first);
    log.stop().await;
}

/// How often it is killed, and the longest it may live each time.
const KILLS: u32 = 10;
const LIFE_MS_MAX: u32 = 250;
const DIR: &str = "LONGSHORE_TEST_LOG_DIR";
const BIRTH: &str = "LONGSHORE_TEST_BIRTH";

#[tokio::test]
#[ignore = "the child of the test below, which kills it"]
async fn a_child_proposes_until_it_is_killed() {
    let dir = PathBuf::from(std::env::var(DIR).expect("the parent says where"));
    let birth = std::env::var(BIRTH).expect("the parent says which life this is");
    let log = Log::start(&dir, 1).await.unwrap();
    leads(&log).await;
    let proposers = (0..4).map(|proposer| {
        let (log, birth) = (log.clone(), birth.clone());
        tokio::spawn(async move {
            for n in 0.. {
                let node = format!("{birth}-{proposer}-{n}");
                let (at, _) = log.propose(register(&node, "j")).await.unwrap();
                println!("acked {node} {at}");
            }
        })
    });
    for proposer in proposers.collect::<Vec<_>>() {
        proposer.await.unwrap();
    }
}

#[tokio::test]
async fn kill_9_at_any_moment_loses_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked: Vec<(String, u64)> = Vec::new();
    for birth in 0..KILLS {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture"])
            .arg("consensus::node::tests::a_child_proposes_until_it_is_killed")
            .env(DIR, dir.path())
            .env(BIRTH, birth.to_string())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            use std::io::BufRead;
            let lines = std::io::BufReader::new(out).lines();
            lines.map_while(Result::ok).collect::<Vec<String>>()
        });
        let luck = u32::try_from(uuid::Uuid::new_v4().as_u128() % u128::from(LIFE_MS_MAX)).unwrap();
        tokio::time::sleep(Duration::from_millis(u64::from(100 + luck))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            let words: Vec<&str> = line.split(' ').collect();
            if let ["acked", node, at] = words[..]
                && let Ok(at) = at.parse()
            {
                acked.push((node.to_owned(), at));
            }
        }
        let log = Log::start(dir.path(), 1).await.unwrap();
        leads(&log).await;
        {
            let state = Arc::clone(&log.state().borrow());
            for (node, at) in &acked {
                let found = state.workers.get(&NodeName::from(node.as_str()));
                assert_eq!(found.map(|w| w.at.0), Some(*at), "{node} was answered");
            }
        }
        log.stop().await;
    }
    println!("{} answers survived {KILLS} kills", acked.len());
    assert!(
        acked.len() > 20,
        "the child hardly proposed: {}",
        acked.len()
    );
}

#[tokio::test]
async fn how_long_a_commit_takes_on_this_disk() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::start(dir.path(), 1).await.unwrap();
    leads(&log).await;
    let mut took = Vec::new();
    for n in 0..200 {
        let began = Instant::now();
        log.propose(register(&format!("n{n}"), "j"))
            .await
            .unwrap()
            .1
            .unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    println!(
        "proposed -> applied: p50 {:?}, p99 {:?}",
        took[100], took[198]
    );
    log.stop().await;
}
