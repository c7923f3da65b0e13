use std::time::Instant;

use orchestrator_core::id::NodeName;

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
