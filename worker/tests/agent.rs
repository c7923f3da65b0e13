//! The agent on a real stream: at most once, whatever breaks. Needs no root, no runtime, no kubelet.
#![allow(
    clippy::unwrap_used,
    reason = "what is missing here is a mistake in the test"
)]

#[path = "orchestrator/mod.rs"]
#[expect(dead_code, reason = "shared with the example")]
mod orchestrator;
#[path = "orchestrator/pocket.rs"]
mod pocket;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use orchestrator::Desk;
use pocket::Pocket;
use proto::worker::{Deliver, Disarm, Release, Withdraw, step_report::Outcome, step_request::Kind};
use worker::{
    agent::{self, Tools},
    cgroup::Cgroups,
    checkpoint::kubelet::Kubelet,
    config::Config,
    containerd::Containerd,
    hold::{Holder, ThisNode},
    inspect::Inspector,
    inventory::Surveyor,
    journal::Journal,
    metrics::Metrics,
};

struct Node {
    folder: tempfile::TempDir,
    delivered: Arc<AtomicUsize>,
    slow: Duration,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("cgroup/freezer")).unwrap();
        fs::write(folder.path().join("token"), "the-token\n").unwrap();
        Self {
            folder,
            delivered: Arc::default(),
            slow: Duration::from_millis(300),
        }
    }

    /// A worker's life; ended by aborting it, as kill -9 would.
    fn start(&self, desk: &Desk) -> tokio::task::JoinHandle<()> {
        let path = |name: &str| self.folder.path().join(name);
        let config = Config::parse_from([
            "worker".to_owned(),
            "--node-name=node".to_owned(),
            format!("--orchestrator=http://{}", desk.address),
            format!("--token-file={}", path("token").display()),
            format!("--state-dir={}", path("state").display()),
        ]);
        let journal = Journal::open(&config.state_dir).unwrap();
        let containerd = Containerd::at(&path("no-socket"));
        let cgroups = Cgroups::at(&path("cgroup")).unwrap();
        let kubelet = Kubelet::new(&config);
        let tools = Tools {
            holder: Holder {
                node: Arc::new(ThisNode {
                    containerd: containerd.clone(),
                    cgroups: cgroups.clone(),
                    proc: "/proc".into(),
                }),
                checkpointer: Arc::new(kubelet.clone()),
                journal: journal.clone(),
                boot_id: "boot".into(),
            },
            data: Arc::new(Pocket {
                folder: path(""),
                slow: self.slow,
                delivered: self.delivered.clone(),
            }),
            inspector: Arc::new(Inspector {
                containerd: containerd.clone(),
                proc: "/proc".into(),
                node_root: "/".into(),
            }),
            surveyor: Arc::new(Surveyor {
                containerd,
                kubelet,
                cgroups,
                node_root: "/".into(),
                state_dir: path("state"),
            }),
            metrics: Metrics::new().unwrap(),
            journal,
            config,
        };
        tokio::spawn(async move { agent::run(tools).await.unwrap() })
    }

    fn times_delivered(&self) -> usize {
        self.delivered.load(Ordering::SeqCst)
    }
}

fn deliver() -> Kind {
    Kind::Deliver(Deliver::default())
}

#[tokio::test]
async fn a_worker_says_who_it_is_and_its_registration_is_kept_over_a_restart() {
    let (node, mut desk) = (Node::new(), Desk::open().await);
    let life = node.start(&desk);
    let first = desk.hello().await;
    assert_eq!(
        (
            first.node.as_str(),
            first.boot_id.as_str(),
            first.registered_revision
        ),
        ("node", "boot", 0)
    );
    let inventory = desk.inventory().await;
    assert!(
        inventory
            .restore
            .iter()
            .any(|finding| finding.code == "RuntimeSilent"),
        "{inventory:?}"
    );
    // What is answered after the welcome proves that the welcome was taken in.
    desk.step("m", 20, Kind::Disarm(Disarm::default())).await;
    life.abort();
    node.start(&desk);
    let second = desk.hello().await;
    assert_eq!(
        (second.registered_revision, second.journal_id),
        (10, first.journal_id)
    );
}

#[tokio::test]
async fn a_step_asked_for_three_times_is_done_once() {
    let (node, mut desk) = (Node::new(), Desk::open().await);
    node.start(&desk);
    desk.hello().await;
    let _first = desk.ask("m", 20, deliver()).await;
    let second = desk.ask("m", 20, deliver()).await;
    assert_eq!(desk.report(second).await.outcome(), Outcome::Done, "joined");
    assert_eq!(
        desk.step("m", 20, deliver()).await.outcome(),
        Outcome::Done,
        "from the journal"
    );
    assert_eq!(node.times_delivered(), 1);
}

#[tokio::test]
async fn a_step_survives_the_stream_and_its_report_survives_the_worker() {
    let (node, mut desk) = (Node::new(), Desk::open().await);
    let life = node.start(&desk);
    desk.hello().await;
    desk.ask("m", 20, deliver()).await;
    desk.hang_up().await;
    desk.hello().await;
    assert_eq!(desk.step("m", 20, deliver()).await.outcome(), Outcome::Done);
    life.abort();
    node.start(&desk);
    desk.hello().await;
    assert_eq!(desk.step("m", 20, deliver()).await.outcome(), Outcome::Done);
    assert_eq!(node.times_delivered(), 1);
}

#[tokio::test]
async fn what_is_older_than_the_registration_or_than_a_step_seen_is_refused() {
    let (node, mut desk) = (Node::new(), Desk::open().await);
    node.start(&desk);
    desk.hello().await;
    assert_eq!(desk.step("m", 9, deliver()).await.outcome(), Outcome::Stale);
    let withdraw = desk
        .step("m", 30, Kind::Withdraw(Withdraw::default()))
        .await;
    assert_eq!(withdraw.outcome(), Outcome::Done);
    assert_eq!(
        desk.step("m", 20, deliver()).await.outcome(),
        Outcome::Stale
    );
    assert_eq!(
        desk.step("other", 20, deliver()).await.outcome(),
        Outcome::Done
    );
    assert_eq!(node.times_delivered(), 1);
}

#[tokio::test]
async fn steps_of_one_migration_follow_each_other_and_those_of_two_do_not_wait() {
    let (mut node, mut desk) = (Node::new(), Desk::open().await);
    // Long beside a step of the other migration, whose journal waits for a disk with other things to do.
    node.slow = Duration::from_secs(3);
    node.start(&desk);
    desk.hello().await;
    let slow = desk.ask("m", 20, deliver()).await;
    let next = desk.ask("m", 20, Kind::Disarm(Disarm::default())).await;
    let other = desk
        .step("other", 21, Kind::Disarm(Disarm::default()))
        .await;
    assert_eq!(
        (other.outcome(), node.times_delivered()),
        (Outcome::Done, 0)
    );
    assert_eq!(desk.report(slow).await.outcome(), Outcome::Done);
    assert_eq!(desk.report(next).await.outcome(), Outcome::Done);
}

#[tokio::test]
async fn a_delivery_gives_way_to_a_withdrawal_and_the_newest_of_those_that_wait_is_done() {
    let (mut node, mut desk) = (Node::new(), Desk::open().await);
    node.slow = Duration::from_secs(3600);
    node.start(&desk);
    desk.hello().await;
    let slow = desk.ask("m", 20, deliver()).await;
    let withdraw = || Kind::Withdraw(Withdraw::default());
    let older = desk.ask("m", 21, withdraw()).await;
    let newer = desk.ask("m", 22, withdraw()).await;
    assert_eq!(desk.report(slow).await.outcome(), Outcome::Failed);
    // The older was begun before the newer was heard of, or it was not done at all.
    let outcome = desk.report(older).await.outcome();
    assert!(
        matches!(outcome, Outcome::Done | Outcome::Stale),
        "{outcome:?}"
    );
    assert_eq!(desk.report(newer).await.outcome(), Outcome::Done);
    assert_eq!(node.times_delivered(), 0);
}

#[tokio::test]
async fn without_a_runtime_a_release_is_in_doubt_and_never_called_done() {
    let (node, mut desk) = (Node::new(), Desk::open().await);
    node.start(&desk);
    desk.hello().await;
    let released = desk.step("m", 20, Kind::Release(Release::default())).await;
    assert_eq!(released.outcome(), Outcome::Unknown);
    assert!(
        released.detail.contains("containerd"),
        "{}",
        released.detail
    );
}
