//! Room for the checkpoint, the freeze and its budget, and rounds.

use super::sample::{
    allowed, decide, first, good, refused, request, seen, sentences, source, target, worker,
};
use orchestrator_core::{
    plan::{KeptCheckpoint, Plan, Request},
    planner::{another_round, plan},
    refusal::Finding,
    view::View,
};

fn plan_of(request: &Request) -> Result<Plan, Vec<Finding>> {
    plan(request, &good())
}

#[test]
fn the_checkpoint_must_fit_on_both_nodes() {
    refused(
        |v| worker(source(v)).free_bytes = 599_999_999,
        "SourceDiskTooSmall: the checkpoint of 150000000 bytes needs 4 times its size on node node1, 600000000 bytes; \
         599999999 are free",
    );
    refused(
        |v| worker(target(v)).free_bytes = 449_999_999,
        "TargetDiskTooSmall: the checkpoint of 150000000 bytes needs 3 times its size on node node2, 450000000 bytes; \
         449999999 are free",
    );
    allowed(|v| worker(target(v)).free_bytes = 450_000_000);
}

#[test]
fn the_freeze_must_fit_its_budget() {
    refused(
        |v| first(v).liveness_deadline_ms = Some(3_499),
        "LivenessDeadlineTooShort: the freeze will take about 2500 ms, the liveness probe of container kuard bears 2499 ms",
    );
    let plan = decide(|v| first(v).liveness_deadline_ms = Some(3_500)).unwrap();
    assert_eq!(plan.freeze_budget_ms, 2_500, "the deadline less a second");
    let limited = |limit_ms| {
        let request = Request {
            freeze_max_ms: Some(limit_ms),
            ..request()
        };
        plan_of(&request)
    };
    assert_eq!(
        sentences(limited(2_499)),
        ["FreezeLimitTooShort: the freeze will take about 2500 ms, 2499 ms are allowed"]
    );
    assert_eq!(limited(2_500).unwrap().freeze_budget_ms, 2_500);
    assert_eq!(
        limited(90_000).unwrap().freeze_budget_ms,
        90_000,
        "the user may allow more than the default"
    );
    refused(
        |v| {
            seen(v).archive_bytes = 15_000_000_000;
            worker(source(v)).free_bytes = u64::MAX;
            worker(target(v)).free_bytes = u64::MAX;
        },
        "FreezeTooLong: the freeze will take about 101500 ms, without a word from you it may take 60000 ms",
    );
}

#[test]
fn rounds_are_planned_where_they_pay_and_both_nodes_have_room() {
    let rounds = |asked: Option<u32>, change: fn(&mut View)| {
        let mut view = good();
        change(&mut view);
        let request = Request {
            rounds_max: asked,
            ..request()
        };
        plan(&request, &view).unwrap().rounds_max
    };
    assert_eq!(rounds(None, |_| ()), 3, "150 MB");
    let small = |v: &mut View| seen(v).archive_bytes = 143_999_999;
    assert_eq!(rounds(None, small), 0);
    assert_eq!(rounds(Some(2), small), 2, "the user's word");
    assert_eq!(rounds(Some(9), small), 5, "within reason");
    assert_eq!(rounds(Some(0), |_| ()), 0);
    // One copy more than the checkpoint needs anyway: 4 on the source, 3 on the target.
    let source_full = |v: &mut View| worker(source(v)).free_bytes = 749_999_999;
    let target_full = |v: &mut View| worker(target(v)).free_bytes = 599_999_999;
    for full in [source_full, target_full] {
        assert_eq!(rounds(None, full), 0);
        assert_eq!(rounds(Some(1), full), 0);
    }
}

#[test]
fn rounds_begin_with_a_kept_checkpoint_where_both_nodes_have_room_for_it_too() {
    let kept = KeptCheckpoint {
        migration: "m0".into(),
        manifest_key: "checkpoints/m0/9/manifest".to_owned(),
        manifest_blake3: "00".to_owned(),
    };
    let base = |asked: Option<u32>, change: fn(&mut View)| {
        let mut view = good();
        view.base = Some(kept.clone());
        change(&mut view);
        let request = Request {
            rounds_max: asked,
            ..request()
        };
        plan(&request, &view).unwrap().base
    };
    assert_eq!(base(None, |_| ()), Some(kept.clone()));
    assert_eq!(base(Some(0), |_| ()), None, "without rounds");
    // Two copies more than the checkpoint needs anyway.
    assert_eq!(
        base(None, |v| worker(source(v)).free_bytes = 899_999_999),
        None
    );
    assert_eq!(
        base(None, |v| worker(target(v)).free_bytes = 749_999_999),
        None
    );
}

#[test]
fn another_round_is_made_after_a_long_one_or_by_the_users_word() {
    let planned = plan(&request(), &good()).unwrap();
    let again = |asked: Option<u32>, rounds: usize, took_ms: u64| {
        let request = Request {
            rounds_max: asked,
            ..request()
        };
        another_round(&planned, &request, rounds, took_ms)
    };
    assert!(again(None, 1, 10_000) && !again(None, 1, 9_999));
    assert!(again(Some(3), 2, 1));
    assert!(!again(Some(3), 3, 60_000), "as many as planned");
}
