//! Kept checkpoints: what stands on what, and what may go.
#![allow(
    clippy::unwrap_used,
    reason = "what is missing here is a mistake in the test"
)]

#[path = "given/mod.rs"]
mod given;

use std::sync::Arc;

use given::{checkpoint, in_phase, plan, pod, request};
use orchestrator_core::{
    id::{MigrationId, PodRef, Revision},
    migration::{Migration, Phase},
    plan::KeptCheckpoint,
    state::{Applied, Command, Decision, State},
    store::Owner,
};

const KEEP_MS: u64 = 1_000;

/// The state after these migrations of one pod, in this order: each kept, on the base that was to be had then.
fn after(moves: &[&str]) -> State {
    let mut state = State::default();
    for (n, id) in moves.iter().enumerate() {
        let before = n.checked_sub(1).map(|n| MigrationId::from(moves[n]));
        let base = before.and_then(|before| state.base_after(&pod(), &before, 10));
        state = with(state, id, base);
    }
    state
}

/// One migration more, which has succeeded at 10 ms.
fn with(mut state: State, id: &str, base: Option<KeptCheckpoint>) -> State {
    let at = Revision(state.migrations.len() as u64 + 1);
    state.apply(at, submit(id, base)).unwrap();
    let mut migration = Migration::clone(&state.migrations[&id.into()]);
    let mut checkpoint = checkpoint();
    checkpoint.manifest_key = format!("checkpoints/{id}/3/manifest");
    migration.checkpoint = Some(checkpoint);
    migration.restored = Some(given::restored("node2"));
    migration.enter(Phase::Retiring, at, 9);
    let revision = migration.revision;
    state.migrations.insert(id.into(), Arc::new(migration));
    let report = Command::Report {
        id: id.into(),
        revision,
        outcome: orchestrator_core::migration::Outcome::Done(
            orchestrator_core::migration::Done::Retired,
        ),
        at_ms: 10,
        spans: vec![],
    };
    assert_eq!(
        state.apply(at, report),
        Ok(Applied::Phase(Phase::Succeeded))
    );
    state
}

fn submit(id: &str, base: Option<KeptCheckpoint>) -> Command {
    let mut request = request();
    request.keep_checkpoint_ms = Some(KEEP_MS);
    let mut plan = plan();
    plan.base = base;
    Command::Submit {
        id: id.into(),
        object: PodRef {
            namespace: "default".to_owned(),
            name: id.to_owned(),
        },
        request,
        decision: Decision::Plan(Box::new(plan)),
        at_ms: 1,
        spans: vec![],
    }
}

fn let_go(state: &mut State, id: &str) {
    state
        .apply(Revision(99), Command::LetGo { id: id.into() })
        .unwrap();
}

#[test]
fn a_pods_migrations_stand_on_the_first_until_it_is_old() {
    let state = after(&["m1", "m2"]);
    let first = state.base_after(&pod(), &"m1".into(), 10).unwrap();
    assert_eq!(first.manifest_key, "checkpoints/m1/3/manifest");
    let plan = state.migrations[&"m2".into()].plan.as_ref().unwrap();
    assert_eq!(plan.base.as_ref(), Some(&first));
    let next = state.base_after(&pod(), &"m2".into(), 9 + KEEP_MS);
    assert_eq!(next, Some(first), "not on the difference");
    assert_eq!(state.base_after(&pod(), &"m2".into(), 10 + KEEP_MS), None);
}

#[test]
fn only_a_pod_of_this_name_stands_on_it() {
    let state = after(&["m1"]);
    let other = PodRef {
        namespace: "elsewhere".to_owned(),
        ..pod()
    };
    assert_eq!(state.base_after(&other, &"m1".into(), 10), None);
    assert_eq!(state.base_after(&pod(), &"m0".into(), 10), None);
}

#[test]
fn what_nobody_asked_to_keep_is_not_kept() {
    let (state, id) = in_phase(Phase::Succeeded);
    assert!(!state.is_kept(&id));
    assert_eq!(Owner::of(&state, &id), Owner::Ended);
}

#[test]
fn a_base_stays_as_long_as_something_stands_on_it() {
    let mut state = after(&["m1", "m2", "m3"]);
    assert_eq!(Owner::of(&state, &"m1".into()), Owner::Kept);
    assert!(!Owner::Kept.is_garbage(true));
    assert_eq!(
        state.needless(10),
        [MigrationId::from("m2")],
        "followed by m3"
    );
    let_go(&mut state, "m1");
    assert!(state.is_kept(&"m1".into()), "m2 and m3 stand on it");
    let_go(&mut state, "m2");
    assert_eq!(Owner::of(&state, &"m2".into()), Owner::Ended);
    assert_eq!(state.needless(10), [], "m3 stands on m1");
    let_go(&mut state, "m3");
    assert_eq!(state.needless(10), [MigrationId::from("m1")]);
    let_go(&mut state, "m1");
    assert_eq!(Owner::of(&state, &"m1".into()), Owner::Ended);
}

#[test]
fn a_base_of_what_is_under_way_stays_and_a_plan_on_a_lost_one_goes_without() {
    let mut state = after(&["m1"]);
    let base = state.base_after(&pod(), &"m1".into(), 10);
    state
        .apply(Revision(50), submit("m2", base.clone()))
        .unwrap();
    assert_eq!(state.needless(10 + KEEP_MS), [], "m2 is under way");
    let_go(&mut state, "m1");
    assert!(state.is_kept(&"m1".into()));

    let mut state = after(&["m1"]);
    assert_eq!(state.needless(9 + KEEP_MS), []);
    assert_eq!(state.needless(10 + KEEP_MS), [MigrationId::from("m1")]);
    let_go(&mut state, "m1");
    state.apply(Revision(50), submit("m2", base)).unwrap();
    let plan = state.migrations[&"m2".into()].plan.as_ref().unwrap();
    assert_eq!(plan.base, None);
}

#[test]
fn a_base_of_the_last_copy_of_a_pod_stays() {
    let mut state = after(&["m1"]);
    let base = state.base_after(&pod(), &"m1".into(), 10);
    state.apply(Revision(50), submit("m2", base)).unwrap();
    let mut lost = Migration::clone(&state.migrations[&"m2".into()]);
    lost.checkpoint = Some(checkpoint());
    lost.dead.insert("node1".into(), 60);
    lost.phase = Phase::RolledBack;
    state.migrations.insert("m2".into(), Arc::new(lost));
    assert_eq!(Owner::of(&state, &"m2".into()), Owner::LastCopy);
    assert_eq!(state.needless(10 + KEEP_MS), []);
    let_go(&mut state, "m1");
    assert_eq!(Owner::of(&state, &"m1".into()), Owner::Kept);
}

#[test]
fn one_that_is_kept_is_not_forgotten() {
    let mut state = after(&["m1"]);
    for n in 0..=orchestrator_core::state::HISTORY_MAX {
        let mut command = submit(&format!("later-{n}"), None);
        if let Command::Submit { request, .. } = &mut command {
            request.dry_run = true;
        }
        state.apply(Revision(100 + n as u64), command).unwrap();
    }
    assert!(state.is_kept(&"m1".into()));
}
