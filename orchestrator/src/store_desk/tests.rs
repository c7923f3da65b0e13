//! Tasks of the store, on a keeper and a log of ours.

use std::sync::Mutex;

use orchestrator_core::state::{Command, Decision};

use super::*;
use crate::perform::tests_plan as plan;

/// A store of three migrations; what was done to it in order.
#[derive(Default)]
struct Shelf {
    done: Mutex<Vec<String>>,
}

impl Shelf {
    fn note(&self, what: String) {
        self.done.lock().unwrap().push(what);
    }
}

#[async_trait]
impl Keeper for Shelf {
    async fn list(&self) -> Result<Vec<wire::StoredMigration>, String> {
        self.note("list".to_owned());
        let stored = |id: &str, bytes| wire::StoredMigration {
            migration_id: id.to_owned(),
            objects: 2,
            bytes,
            checkpoints: 1,
            youngest_unix_s: 0,
        };
        Ok(vec![
            stored("ended", 10),
            stored("under-way", 30),
            stored("stranger", 20),
        ])
    }

    async fn check(&self, id: &MigrationId) -> Result<wire::StoreChecked, String> {
        let problems = match &*id.0 {
            "stranger" => vec!["checkpoints/stranger/1/packs/x: it is not there".to_owned()],
            _ => Vec::new(),
        };
        Ok(wire::StoreChecked {
            checkpoints: 1,
            loose: 1,
            problems,
            ..wire::StoreChecked::default()
        })
    }

    async fn remove(&self, id: &MigrationId) -> Result<(), String> {
        self.note(format!("remove {id}"));
        Ok(())
    }
}

struct Lead(bool, Arc<Shelf>);

#[async_trait]
impl Propose for Lead {
    async fn propose(&self, _command: Command) {}

    async fn leads(&self) -> bool {
        self.1.note("confirm".to_owned());
        self.0
    }
}

fn state() -> State {
    let mut state = State::default();
    for (at, id, dry_run) in [(1, "ended", true), (2, "under-way", false)] {
        let plan = plan();
        let request = orchestrator_core::plan::Request {
            pod: plan.pod.clone(),
            target: plan.target.clone(),
            freeze_max_ms: None,
            timeout_ms: None,
            dry_run,
            rounds_max: None,
            keep_checkpoint_ms: None,
        };
        let command = Command::Submit {
            id: id.into(),
            object: plan.pod.clone(),
            request,
            decision: Decision::Plan(Box::new(plan)),
            at_ms: 1,
            spans: Vec::new(),
        };
        state
            .apply(orchestrator_core::id::Revision(at), command)
            .unwrap();
    }
    state
}

async fn perform(
    what: StoreWhat,
    unknown_too: bool,
    leads: bool,
) -> (Result<StoreTaskStatus, String>, Vec<String>) {
    let shelf = Arc::new(Shelf::default());
    let (_keep, state) = watch::channel(Arc::new(state()));
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let desk = StoreDesk {
        client: Client::try_from(config).unwrap(),
        keeper: Arc::clone(&shelf) as _,
        propose: Arc::new(Lead(leads, Arc::clone(&shelf))),
        state,
    };
    let status = desk.perform(&StoreTaskSpec { what, unknown_too }).await;
    let done = shelf.done.lock().unwrap().clone();
    (status, done)
}

#[tokio::test]
async fn only_what_is_over_is_removed_and_only_after_the_log_was_confirmed() {
    let (status, done) = perform(StoreWhat::Collect, false, true).await;
    assert_eq!(done, ["list", "confirm", "remove ended"]);
    let status = status.unwrap();
    assert_eq!((status.removed_objects, status.removed_bytes), (2, 10));
    assert_eq!((status.total_objects, status.total_bytes), (6, 60));
    let owners: Vec<(&str, &str, bool)> = status
        .migrations
        .iter()
        .map(|one| (one.id.as_str(), one.owner.as_str(), one.removed))
        .collect();
    let expected = [
        ("under-way", "UnderWay", false),
        ("stranger", "Unknown", false),
        ("ended", "Ended", true),
    ];
    assert_eq!(owners, expected);
}

#[tokio::test]
async fn what_the_log_does_not_know_is_removed_when_that_was_asked_for() {
    let (_, done) = perform(StoreWhat::Collect, true, true).await;
    assert_eq!(done, ["list", "confirm", "remove ended", "remove stranger"]);
}

#[tokio::test]
async fn a_deposed_leader_removes_nothing() {
    let (status, done) = perform(StoreWhat::Collect, true, false).await;
    assert_eq!(done, ["list", "confirm"]);
    assert!(status.unwrap_err().contains("leader"));
}

#[tokio::test]
async fn a_check_names_what_is_wrong_and_removes_nothing() {
    let (status, done) = perform(StoreWhat::Check, false, true).await;
    assert_eq!(done, ["list", "confirm"]);
    let status = status.unwrap();
    assert_eq!(status.problems.len(), 1);
    assert!(status.migrations.iter().all(|one| one.loose == Some(1)));
}
