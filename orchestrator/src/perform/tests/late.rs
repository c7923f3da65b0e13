//! Pods that their users delete in the middle, and pods that are made when nobody waits for them any more.

use std::sync::Arc;

use orchestrator_core::migration::Phase;

use super::{model::Model, run};
use crate::{clock::SystemTimeOfDay, janitor::Clear, perform::World};

#[tokio::test(start_paused = true)]
async fn a_deletion_by_the_user_is_obeyed_in_every_phase() {
    for after in ["inspect", "mark source", "hold", "deliver"] {
        let model = Arc::new(Model::new(None));
        model.user_deletes_after(after);
        let ended = run(&model).await;
        assert!(
            matches!(ended.phase, Phase::RolledBack | Phase::Abandoned),
            "after {after}: {:?}\n{}",
            ended.phase,
            model.seen().history.join("\n")
        );
        assert!(
            !model.seen().target_runs,
            "after {after}: a deleted pod was resurrected"
        );
        assert!(
            !model.seen().marked,
            "after {after}: our finalizer keeps the deleted pod's object"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_restored_pod_that_its_user_deletes_before_the_log_knows_it_is_not_made_again() {
    let model = Arc::new(Model::new(None));
    model.user_deletes_restored_after("create");
    let ended = run(&model).await;
    let history = model.seen().history.join("\n");
    assert_eq!(
        ended.phase,
        Phase::Abandoned,
        "{:?}\n{history}",
        ended.reason
    );
    let creates = history.matches(" create:").count();
    assert_eq!(creates, 1, "a deleted pod was resurrected\n{history}");
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_is_carried_out_in_the_middle_of_a_rescue_is_taken_away() {
    let model = Arc::new(Model::new(None));
    model.break_restores_on("node2");
    model.made_late_after("destroy");
    let ended = run(&model).await;
    let seen = model.seen();
    let history = seen.history.join("\n");
    assert_eq!(ended.phase, Phase::Rescued, "{:?}\n{history}", ended.reason);
    assert!(history.contains("remove unbound"), "{history}");
    assert!(seen.violations.is_empty(), "{:?}", seen.violations);
}

#[tokio::test(start_paused = true)]
async fn a_pod_made_once_more_after_the_end_is_ended_and_the_one_that_is_known_is_not() {
    for bound in [false, true] {
        let model = Arc::new(Model::new(None));
        let ended = run(&model).await;
        let world = World {
            cluster: Arc::clone(&model) as _,
            nodes: Arc::clone(&model) as _,
            clock: Arc::new(SystemTimeOfDay),
        };
        world.look_again(&"m".into(), &ended, ended.revision).await;
        assert!(model.seen().target_runs, "the one that is known runs on");
        model.replaced_late(bound);
        let before = model.seen().history.len();
        world.look_again(&"m".into(), &ended, ended.revision).await;
        let seen = model.seen();
        let history = &seen.history[before..];
        let expected: &[&str] = match bound {
            true => &[
                "clear store",
                "condemn restored",
                "withdraw",
                "delete restored",
            ],
            false => &["clear store", "remove unbound"],
        };
        let as_expected = history.len() == expected.len()
            && history
                .iter()
                .zip(expected)
                .all(|(is, what)| is.contains(what));
        assert!(as_expected, "{}", history.join("\n"));
        assert!(seen.violations.is_empty(), "{:?}", seen.violations);
        assert!(!seen.target_runs && !seen.rescued_runs);
    }
}
