//! What the replicated state promises beyond the table of transitions.

#[path = "given/mod.rs"]
mod given;

use std::sync::Arc;

use given::{in_phase, plan, pod, request, submit};
use orchestrator_core::{
    id::{PodRef, Revision},
    migration::{Done, Outcome, Phase, Step},
    plan::{Plan, Request},
    refusal::Finding,
    state::{Applied, Command, Decision, HISTORY_MAX, Rejection, State, UNDER_WAY_PER_NODE_MAX},
};

fn submit_for(id: &str, pod: &str) -> Command {
    let pod = PodRef {
        namespace: "default".to_owned(),
        name: pod.to_owned(),
    };
    Command::Submit {
        id: id.into(),
        object: PodRef {
            namespace: "default".to_owned(),
            name: format!("move-{id}"),
        },
        request: Request {
            pod: pod.clone(),
            ..request()
        },
        decision: Decision::Plan(Box::new(Plan { pod, ..plan() })),
        at_ms: 1,
        spans: vec![],
    }
}

#[test]
fn a_pod_is_never_in_two_migrations() {
    let mut state = State::default();
    assert_eq!(
        state.apply(Revision(2), submit("a", 1)),
        Ok(Applied::Phase(Phase::Planned))
    );
    assert_eq!(
        state.apply(Revision(3), submit("b", 1)),
        Ok(Applied::Phase(Phase::Refused))
    );
    assert_eq!(
        state.migrations[&"b".into()].refusals[0].code,
        "AlreadyMigrating"
    );
}

#[test]
fn a_migration_submitted_twice_is_one() {
    let mut state = State::default();
    state.apply(Revision(2), submit("a", 1)).unwrap();
    let revision = state.migrations[&"a".into()].revision;
    state.apply(Revision(3), submit("a", 9)).unwrap();
    assert_eq!(state.migrations[&"a".into()].revision, revision);
    assert_eq!(state.migrations.len(), 1);
}

#[test]
fn a_pod_may_move_again_after_its_migration_ended() {
    let (mut state, _) = in_phase(Phase::Succeeded);
    assert_eq!(
        state.apply(Revision(200), submit("again", 1)),
        Ok(Applied::Phase(Phase::Planned))
    );
}

#[test]
fn migrations_wait_their_turn_and_all_get_it() {
    let mut state = State::default();
    for n in 0..10u64 {
        state
            .apply(
                Revision(n + 2),
                submit_for(&format!("m{n}"), &format!("pod{n}")),
            )
            .unwrap();
    }
    let mut at = 100;
    let mut order = Vec::new();
    while let Some(due) = state.due().into_iter().next() {
        assert!(
            state.due().len() <= UNDER_WAY_PER_NODE_MAX,
            "more than allowed at once"
        );
        let done = match due.step {
            Step::Recheck => Done::Rechecked,
            Step::Prepare | Step::Copy => Done::Prepared,
            Step::Hold => Done::Held(given::checkpoint()),
            Step::Deliver => Done::Delivered(vec![]),
            Step::Restore => Done::Restored(given::restored("node2")),
            Step::Rescue => Done::Rescued(given::restored("node1")),
            Step::Retire => Done::Retired,
            Step::Release => Done::Released {
                clean: true,
                detail: String::new(),
                left_over: None,
            },
        };
        if due.step == Step::Recheck {
            order.push(due.id.0.clone());
        }
        at += 1;
        let command = Command::Report {
            id: due.id,
            revision: due.revision,
            outcome: Outcome::Done(done),
            at_ms: at,
            spans: vec![],
        };
        state.apply(Revision(at), command).unwrap();
    }
    assert!(
        state
            .migrations
            .values()
            .all(|m| m.phase == Phase::Succeeded)
    );
    assert_eq!(
        order,
        (0..10)
            .map(|n| format!("m{n}").into())
            .collect::<Vec<Arc<str>>>(),
        "in the order they were asked for"
    );
}

#[test]
fn doubt_remembers_since_when_and_ends_with_the_phase() {
    let (mut state, id) = in_phase(Phase::Restoring);
    let revision = state.migrations[&id].revision;
    let unknown = |at_ms| Command::Report {
        id: id.clone(),
        revision,
        outcome: Outcome::Unknown(orchestrator_core::refusal::Finding::new(
            "Lost",
            "no answer",
            "",
        )),
        at_ms,
        spans: vec![],
    };
    state.apply(Revision(50), unknown(10)).unwrap();
    state.apply(Revision(51), unknown(20)).unwrap();
    let doubt = state.migrations[&id].doubt.clone().expect("in doubt");
    assert_eq!((doubt.since_ms, doubt.asked), (10, 2));
    let outcome = Outcome::Done(Done::Restored(given::restored("node2")));
    state
        .apply(
            Revision(52),
            Command::Report {
                id: id.clone(),
                revision,
                outcome,
                at_ms: 30,
                spans: vec![],
            },
        )
        .unwrap();
    assert_eq!(state.migrations[&id].doubt, None);
}

#[test]
fn a_lost_journal_is_registered_anew_and_a_known_one_is_not() {
    let mut state = State::default();
    let register = |journal: &str| Command::Register {
        node: "node1".into(),
        journal: journal.to_owned(),
    };
    assert_eq!(
        state.apply(Revision(5), register("j1")),
        Ok(Applied::Registered(Revision(5)))
    );
    assert_eq!(
        state.apply(Revision(9), register("j1")),
        Ok(Applied::Registered(Revision(5)))
    );
    assert_eq!(
        state.apply(Revision(12), register("j2")),
        Ok(Applied::Registered(Revision(12)))
    );
}

#[test]
fn history_is_bounded_and_keeps_the_newest() {
    let mut state = State::default();
    let ended = u64::try_from(HISTORY_MAX).unwrap() + 10;
    for n in 0..ended {
        let command = Command::Submit {
            id: format!("{n:06}").as_str().into(),
            object: pod(),
            request: request(),
            decision: Decision::Refuse(vec![]),
            at_ms: n,
            spans: vec![],
        };
        state.apply(Revision(n + 2), command).unwrap();
    }
    assert_eq!(state.migrations.len(), HISTORY_MAX);
    assert!(!state.migrations.contains_key(&"000000".into()));
    assert!(
        state
            .migrations
            .contains_key(&format!("{:06}", ended - 1).as_str().into())
    );
}

#[test]
fn a_commit_copies_the_migration_it_changes_and_no_other() {
    let mut state = State::default();
    state.apply(Revision(2), submit_for("a", "a")).unwrap();
    state.apply(Revision(3), submit_for("b", "b")).unwrap();
    let published = state.clone();
    let report = Command::Report {
        id: "b".into(),
        revision: Revision(3),
        outcome: Outcome::Done(Done::Rechecked),
        at_ms: 2,
        spans: vec![],
    };
    state.apply(Revision(4), report).unwrap();
    let shared = |id: &str| {
        let (before, after) = (&published.migrations, &state.migrations);
        Arc::ptr_eq(&before[&id.into()], &after[&id.into()])
    };
    assert!(shared("a"), "what didn't change is not copied");
    assert!(!shared("b"));
    assert_eq!(
        published.migrations[&"b".into()].phase,
        Phase::Planned,
        "what was published stays as it was"
    );
}

#[test]
fn a_freeze_is_from_the_pause_to_the_restored_task() {
    let (state, id) = in_phase(Phase::Succeeded);
    assert_eq!(state.migrations[&id].freeze_ms(), Some(1_500));
}

#[test]
fn the_state_survives_its_own_json_byte_for_byte() {
    let (state, _) = in_phase(Phase::Rescued);
    let bytes = serde_json::to_vec(&state).unwrap();
    let back: State = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(serde_json::to_vec(&back).unwrap(), bytes);
}

#[test]
fn what_is_left_over_is_known_until_it_is_cleared_away() {
    let (mut state, id) = in_phase(Phase::Releasing);
    let left_over = Finding::new("LeftOver", "layers on node2", "");
    let done = Done::Released {
        clean: true,
        detail: String::new(),
        left_over: Some(left_over.clone()),
    };
    let revision = state.migrations[&id].revision;
    let report = Command::Report {
        id: id.clone(),
        revision,
        outcome: Outcome::Done(done),
        at_ms: 9,
        spans: vec![],
    };
    assert_eq!(
        state.apply(Revision(100), report),
        Ok(Applied::Phase(Phase::RolledBack))
    );
    assert_eq!(state.migrations[&id].left_over, Some(left_over));
    let cleared = state.apply(Revision(101), Command::Cleared { id: id.clone() });
    assert_eq!(cleared, Ok(Applied::Phase(Phase::RolledBack)));
    assert_eq!(state.migrations[&id].left_over, None);
}

#[test]
fn a_node_is_declared_dead_once_and_only_where_it_has_a_part() {
    let (mut state, id) = in_phase(Phase::Restoring);
    let entered = state.migrations[&id].revision;
    let other = Command::DeclareDead {
        id: id.clone(),
        node: "node9".into(),
        at_ms: 5,
    };
    assert_eq!(
        state.apply(Revision(100), other),
        Err(Rejection::NotItsNode("node9".into()))
    );
    let dead = |id| Command::DeclareDead {
        id,
        node: "node1".into(),
        at_ms: 5,
    };
    state.apply(Revision(101), dead(id.clone())).unwrap();
    assert_eq!(state.migrations[&id].revision, Revision(101));
    state.apply(Revision(102), dead(id.clone())).unwrap();
    assert_eq!(
        state.migrations[&id].revision,
        Revision(101),
        "{entered:?}: said twice it changes nothing"
    );
}

#[test]
fn with_the_source_dead_a_delivery_can_neither_be_aborted_nor_undone() {
    let (mut state, id) = in_phase(Phase::Delivering);
    state
        .apply(
            Revision(100),
            Command::DeclareDead {
                id: id.clone(),
                node: "node1".into(),
                at_ms: 5,
            },
        )
        .unwrap();
    let abort = Command::Abort {
        id: id.clone(),
        reason: Finding::new("Aborted", "the user", ""),
        at_ms: 6,
    };
    assert_eq!(
        state.apply(Revision(101), abort),
        Err(Rejection::TooLate(Phase::Delivering))
    );
    let report = Command::Report {
        id: id.clone(),
        revision: state.migrations[&id].revision,
        outcome: Outcome::Failed(Finding::new("DeliverFailed", "disk full", "")),
        at_ms: 7,
        spans: vec![],
    };
    assert_eq!(
        state.apply(Revision(102), report),
        Ok(Applied::Phase(Phase::Rescuing)),
        "the checkpoint is all there is of the pod"
    );
}

#[test]
fn in_a_log_that_goes_on_elsewhere_only_what_runs_is_begun_anew() {
    for (phase, anew) in [(Phase::Delivering, true), (Phase::Succeeded, false)] {
        let (mut state, id) = in_phase(phase);
        let before = state.migrations[&id].clone();
        state.begin_anew(Revision(1_000_000), 77);
        let after = &state.migrations[&id];
        assert_eq!(after.phase, phase);
        assert_eq!(after.checkpoint, before.checkpoint);
        let revision = if anew {
            Revision(1_000_000)
        } else {
            before.revision
        };
        assert_eq!(after.revision, revision, "{phase}");
        // The phase was entered when it was: only the attempt is new.
        assert_eq!(after.entered, before.entered);
    }
}
