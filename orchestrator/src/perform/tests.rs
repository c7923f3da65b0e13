//! Die everywhere, fail everywhere, lose every answer: the production driver and steps on a world of values.
//!
//! The world counts its effects. For every effect there is a run in which the orchestrator dies right before it, one
//! in which it dies right after it, one in which the answer is lost, and one in which the effect fails; each run must
//! end, never show two running copies, and never be without both a running copy and a durable checkpoint.

mod dead;
mod late;
mod model;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use model::{Fault, Model, Trouble};
use orchestrator_core::{
    id::{PodRef, Revision},
    migration::{Done, Migration, Outcome, Phase, Span, Step},
    plan::{CheckpointVia, Handover, Plan, PlannedContainer, Request, RestoreVia},
    refusal::Finding,
    state::{Command, Decision, Due, State},
};
use tokio::sync::{Mutex, watch};

use super::World;
use crate::{
    clock::{SystemTimeOfDay, unix_ms},
    driver::{Driver, Perform, Propose},
    janitor::Clear,
};

struct Log {
    model: Arc<Model>,
    state: watch::Sender<Arc<State>>,
    index: Mutex<u64>,
}

#[async_trait::async_trait]
impl Propose for Log {
    async fn propose(&self, command: Command) {
        let mut index = self.index.lock().await;
        *index += 1;
        let mut state = State::clone(&self.state.borrow());
        // A rejection is the log's ordinary answer to a stale report.
        let _ = state.apply(Revision(*index), command);
        if state.migrations[&"m".into()].phase == Phase::Rescuing {
            self.model.must_have_nothing_restored_on("node2");
        }
        self.state.send_replace(Arc::new(state));
    }

    async fn leads(&self) -> bool {
        true
    }
}

pub(crate) fn plan() -> Plan {
    Plan {
        pod: PodRef {
            namespace: "default".to_owned(),
            name: "kuard".to_owned(),
        },
        uid: "source".into(),
        source: "node1".into(),
        target: "node2".into(),
        pod_ip: String::new(),
        containers: vec![PlannedContainer {
            name: "kuard".to_owned(),
            image: "kuard:1".to_owned(),
            image_digest: "sha256:1".to_owned(),
            container_id: "c1".to_owned(),
            sidecar: false,
        }],
        finished_init_containers: vec![],
        handover: Handover::Replace,
        checkpoint: CheckpointVia::Kubelet,
        restore: RestoreVia::Image,
        freeze_budget_ms: 60_000,
        freeze_predicted_ms: 1_000,
        archive_predicted_bytes: 1,
        rounds_max: 1,
        base: None,
        timeout_ms: 600_000,
        warnings: vec![],
        target_pod: "{}".to_owned(),
    }
}

async fn submitted(model: &Arc<Model>) -> Arc<Log> {
    let log = Arc::new(Log {
        model: Arc::clone(model),
        state: watch::Sender::new(Arc::default()),
        index: Mutex::new(1),
    });
    let plan = plan();
    let request = Request {
        pod: plan.pod.clone(),
        target: plan.target.clone(),
        freeze_max_ms: None,
        timeout_ms: None,
        dry_run: false,
        rounds_max: None,
        keep_checkpoint_ms: None,
    };
    let decision = Decision::Plan(Box::new(plan.clone()));
    let command = Command::Submit {
        id: "m".into(),
        object: plan.pod,
        request,
        decision,
        at_ms: unix_ms(),
        spans: vec![],
    };
    log.propose(command).await;
    log
}

fn migration(log: &Log) -> Migration {
    Migration::clone(&log.state.borrow().migrations[&"m".into()])
}

/// Runs the production driver on this model, as often as it dies, until the migration ended.
async fn run(model: &Arc<Model>) -> Migration {
    let log = submitted(model).await;
    for _life in 0..4 {
        let world = World {
            cluster: Arc::clone(model) as _,
            nodes: Arc::clone(model) as _,
            clock: Arc::new(SystemTimeOfDay),
        };
        let driver = Driver {
            perform: Arc::new(world),
            propose: Arc::clone(&log) as _,
            state: log.state.subscribe(),
            leader: watch::Sender::new(true).subscribe(),
            clock: Arc::new(SystemTimeOfDay),
        };
        let (_keep, leader) = watch::channel(true);
        let driver = tokio::spawn(Driver { leader, ..driver }.run());
        let mut state = log.state.subscribe();
        let ended = state.wait_for(|state| state.migrations[&"m".into()].phase.ended());
        let died = tokio::select! {
            _ = ended => false,
            () = model.died() => true,
            () = tokio::time::sleep(Duration::from_secs(1_200)) => panic!("never ended: {:?}", migration(&log)),
        };
        driver.abort();
        let _ = driver.await;
        if !died {
            return migration(&log);
        }
    }
    panic!("it died more often than asked");
}

async fn check(trouble: Option<Trouble>) -> (Phase, usize) {
    let model = Arc::new(Model::new(trouble));
    let ended = run(&model).await;
    let seen = model.seen();
    let context = format!(
        "{trouble:?}: {:?} because of {:?}\n{}",
        ended.phase,
        ended.reason,
        seen.history.join("\n")
    );
    assert!(
        seen.violations.is_empty(),
        "{:?}\n{context}",
        seen.violations
    );
    assert!(!seen.pull_pod, "a pull pod is left over\n{context}");
    match ended.phase {
        Phase::Succeeded => assert!(
            seen.target_runs && !seen.source_alive && seen.disarmed,
            "{context}"
        ),
        Phase::RolledBack => assert!(
            seen.source_runs && !seen.target_runs && !seen.marked,
            "{context}"
        ),
        Phase::Rescued => assert!(
            seen.rescued_runs && !seen.source_alive && seen.disarmed,
            "{context}"
        ),
        Phase::Planned
        | Phase::Preparing
        | Phase::Copying
        | Phase::Holding
        | Phase::Delivering
        | Phase::Restoring
        | Phase::Rescuing
        | Phase::Retiring
        | Phase::Releasing
        | Phase::Refused
        | Phase::Previewed
        | Phase::Abandoned => panic!("ended as {:?}\n{context}", ended.phase),
    }
    (ended.phase, seen.effects)
}

#[tokio::test(start_paused = true)]
async fn the_good_day() {
    assert_eq!(check(None).await.0, Phase::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn the_trace_has_every_commit_between_two_steps_and_every_question_who_leads() {
    let ended = run(&Arc::new(Model::new(None))).await;
    let count = |name: &str| ended.spans.iter().filter(|span| span.name == name).count();
    // Of seven steps three begin in Kubernetes.
    assert_eq!((count("commit"), count("ask a majority")), (6, 3));
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_was_refused_is_told_though_the_images_came_through_the_store() {
    let model = Arc::new(Model::new(None));
    model.lacks_image("ErrImagePull: no password");
    let ended = run(&model).await;
    assert_eq!(ended.phase, Phase::Succeeded, "{:?}", ended.reason);
    let named = |name: &str| ended.spans.iter().find(|span| span.name == name).unwrap();
    let pull = &named(super::PULL_SPAN).attributes;
    assert_eq!(pull["node"], "node2");
    assert!(
        pull["error"].contains("ErrImagePull: no password"),
        "{pull:?}"
    );
    named("send base images through the store");
}

/// Doesn't know for the first fifty times.
struct Doubting(AtomicU64);

#[async_trait::async_trait]
impl Perform for Doubting {
    async fn perform(&self, due: &Due, _migration: &Migration) -> (Outcome, Vec<Span>) {
        let span = Span {
            name: "tried".to_owned(),
            place: String::new(),
            parent: String::new(),
            start_unix_ns: 1,
            end_unix_ns: 2,
            attributes: BTreeMap::new(),
        };
        let outcome = match (due.step, self.0.fetch_add(1, Ordering::Relaxed)) {
            (Step::Recheck, 0..50) => Outcome::Unknown(Finding::new("Doubt", "", "")),
            (Step::Recheck, _) => Outcome::Done(Done::Rechecked),
            _ => std::future::pending().await,
        };
        (outcome, vec![span])
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_asked_again_and_again_in_doubt_does_not_fill_the_trace() {
    let log = submitted(&Arc::new(Model::new(None))).await;
    let (_keep, leader) = watch::channel(true);
    let driver = Driver {
        perform: Arc::new(Doubting(AtomicU64::new(0))),
        propose: Arc::clone(&log) as _,
        state: log.state.subscribe(),
        leader,
        clock: Arc::new(SystemTimeOfDay),
    };
    let driver = tokio::spawn(driver.run());
    let mut state = log.state.subscribe();
    let settled = state.wait_for(|state| state.migrations[&"m".into()].phase == Phase::Preparing);
    drop(settled.await);
    driver.abort();
    // The first doubt, and the end.
    assert_eq!(migration(&log).spans.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_orchestrator_may_die_before_and_after_every_effect() {
    let (_, effects) = check(None).await;
    for at in 1..=effects {
        for fault in [Fault::DieBefore, Fault::DieAfter] {
            let (phase, _) = check(Some(Trouble { at, fault })).await;
            assert_eq!(
                phase,
                Phase::Succeeded,
                "a death alone must not undo anything (effect {at})"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_answer_may_be_lost() {
    let (_, effects) = check(None).await;
    for at in 1..=effects {
        let trouble = Trouble {
            at,
            fault: Fault::LoseAnswer,
        };
        let (phase, _) = check(Some(trouble)).await;
        assert_eq!(
            phase,
            Phase::Succeeded,
            "a lost answer alone must not undo anything (effect {at})"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn every_effect_may_fail() {
    let (_, effects) = check(None).await;
    let mut ends = Vec::new();
    for at in 1..=effects {
        ends.push(
            check(Some(Trouble {
                at,
                fault: Fault::Fail,
            }))
            .await
            .0,
        );
    }
    assert!(
        ends.contains(&Phase::RolledBack) && ends.contains(&Phase::Succeeded),
        "{ends:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_breaks_is_rescued_on_the_source_node() {
    let model = Arc::new(Model::new(None));
    model.break_restores_on("node2");
    let ended = run(&model).await;
    assert_eq!(ended.phase, Phase::Rescued, "{:?}", ended.reason);
    assert!(model.seen().rescued_runs);
    assert!(
        model.seen().violations.is_empty(),
        "{:?}",
        model.seen().violations
    );
}

#[tokio::test(start_paused = true)]
async fn a_kubelet_that_has_not_seen_the_pod_yet_is_waited_for_longer_than_a_restore() {
    let model = Arc::new(Model::new(None));
    model.kubelets_away_for(Duration::from_secs(100));
    assert_eq!(run(&model).await.phase, Phase::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_comes_up_when_it_is_given_up_is_a_success() {
    let model = Arc::new(Model::new(None));
    model.break_restores_on("node2");
    model.restores_come_up_late();
    let ended = run(&model).await;
    assert_eq!(ended.phase, Phase::Succeeded, "{:?}", ended.reason);
    let history = model.seen().history.join("\n");
    assert!(!history.contains("condemn"), "{history}");
}

#[tokio::test(start_paused = true)]
async fn a_restore_is_given_up_in_this_order() {
    let model = Arc::new(Model::new(None));
    model.break_restores_on("node2");
    run(&model).await;
    let history = model.seen().history;
    let at = |what: &str| history.iter().position(|line| line.contains(what)).unwrap();
    let order = ["bar", "condemn", "withdraw", "delete restored"].map(at);
    assert!(order.is_sorted(), "{order:?}\n{}", history.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn a_fresh_start_is_never_called_success() {
    let model = Arc::new(Model::new(None));
    model.start_fresh_on("node2");
    let ended = run(&model).await;
    assert_eq!(ended.phase, Phase::Rescued, "{:?}", ended.reason);
}

#[tokio::test(start_paused = true)]
async fn a_source_found_running_at_the_commit_is_gone_back_to() {
    let model = Arc::new(Model::new(None));
    model.thaw_after("deliver");
    let ended = run(&model).await;
    assert_eq!(ended.phase, Phase::RolledBack, "{:?}", ended.reason);
    assert!(model.seen().source_runs);
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_would_let_the_source_die_brings_back_its_checkpoint_instead() {
    let model = Arc::new(Model::new(None));
    model.doom();
    model.fail_next("deliver");
    let ended = run(&model).await;
    assert_eq!(ended.phase, Phase::Rescued, "{:?}", ended.reason);
    let seen = model.seen();
    assert!(seen.rescued_runs && seen.violations.is_empty(), "{seen:?}");
}

/// The number of the first effect of this name on a good day.
async fn effect_number(name: &str) -> usize {
    let model = Arc::new(Model::new(None));
    run(&model).await;
    let history = model.seen().history;
    let at = history.iter().position(|line| line.contains(name));
    at.expect("a good day has it") + 1
}

#[tokio::test(start_paused = true)]
async fn a_source_that_its_kubelet_ends_while_nobody_drives_does_not_stop_the_move() {
    let trouble = Trouble {
        at: effect_number("delete source").await,
        fault: Fault::DieAfter,
    };
    let model = Arc::new(Model::new(Some(trouble)));
    model.end_source_after("delete source");
    let ended = run(&model).await;
    assert_eq!(ended.phase, Phase::Succeeded, "{:?}", ended.reason);
    let seen = model.seen();
    assert!(seen.target_runs, "{}", seen.history.join("\n"));
    assert!(seen.violations.is_empty(), "{:?}", seen.violations);
}

#[tokio::test(start_paused = true)]
async fn what_an_undo_leaves_is_remembered_and_cleared_away_later() {
    let model = Arc::new(Model::new(None));
    model.thaw_after("deliver");
    model.fail_next("tidy");
    let ended = run(&model).await;
    assert_eq!(ended.phase, Phase::RolledBack, "{:?}", ended.reason);
    assert!(ended.left_over.is_some(), "a tidying failed");
    let history = model.seen().history.join("\n");
    assert!(
        history.contains("withdraw"),
        "what failed at the source must not save the target's leftovers:\n{history}"
    );
    let world = World {
        cluster: Arc::clone(&model) as _,
        nodes: Arc::clone(&model) as _,
        clock: Arc::new(SystemTimeOfDay),
    };
    assert_eq!(world.clear(&"m".into(), &ended, ended.revision).await, None);
}
