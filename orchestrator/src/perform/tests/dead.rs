//! Nodes that are cut off and then declared dead: nothing goes on by itself, everything goes on with that word, and a
//! node that comes back is cleared.

use std::{sync::Arc, time::Duration};

use orchestrator_core::{
    id::NodeName,
    migration::{Migration, Phase},
    refusal::Finding,
    state::Command,
};

use super::{Log, migration, model::Model, submitted};
use crate::{
    clock::{SystemTimeOfDay, unix_ms},
    driver::{Driver, Propose},
    janitor::Clear,
    perform::World,
};

fn world(model: &Arc<Model>) -> World {
    World {
        cluster: Arc::clone(model) as _,
        nodes: Arc::clone(model) as _,
        clock: Arc::new(SystemTimeOfDay),
    }
}

/// Longer than any patience of the driver's or a step's.
const LONG: Duration = Duration::from_secs(900);

/// Drives until it is in doubt, waits in vain, declares the node dead, and drives to the end.
async fn run(model: &Arc<Model>, dead: &str) -> (Phase, Migration) {
    let log = submitted(model).await;
    let (_keep, leader) = tokio::sync::watch::channel(true);
    let driver = Driver {
        perform: Arc::new(world(model)),
        clock: Arc::new(SystemTimeOfDay),
        propose: Arc::clone(&log) as _,
        state: log.state.subscribe(),
        leader,
    };
    let driver = tokio::spawn(driver.run());
    let doubted = wait(&log, |migration| migration.doubt.is_some())
        .await
        .phase;
    tokio::time::sleep(LONG).await;
    let waited = migration(&log);
    assert!(
        waited.doubt.is_some() && !waited.phase.ended(),
        "it went on without a word: {:?}",
        waited.phase
    );
    model.power_off(dead);
    log.propose(Command::DeclareDead {
        id: "m".into(),
        node: NodeName::from(dead),
        at_ms: unix_ms(),
    })
    .await;
    let ended = wait(&log, |migration| migration.phase.ended()).await;
    driver.abort();
    let seen = model.seen();
    assert!(
        seen.violations.is_empty(),
        "{:?}\n{}",
        seen.violations,
        seen.history.join("\n")
    );
    (doubted, ended)
}

async fn wait(log: &Arc<Log>, until: impl Fn(&Migration) -> bool) -> Migration {
    let mut state = log.state.subscribe();
    let seen = state.wait_for(|state| until(&state.migrations[&"m".into()]));
    let timed = tokio::time::timeout(LONG, seen).await;
    drop(timed.unwrap_or_else(|_| panic!("it never came: {:?}", migration(log))));
    migration(log)
}

/// What the janitor finds still there.
async fn left(model: &Arc<Model>, ended: &Migration) -> Option<Finding> {
    let world = world(model);
    world.clear(&ended.id, ended, ended.revision).await
}

#[tokio::test(start_paused = true)]
async fn a_source_cut_off_at_the_commit_waits_for_a_persons_word_and_then_moves() {
    let model = Arc::new(Model::new(None));
    model.cut_after("deliver", "node1");
    let (doubted, ended) = run(&model, "node1").await;
    assert_eq!(doubted, Phase::Restoring);
    assert_eq!(ended.phase, Phase::Succeeded, "{:?}", ended.reason);
    assert!(model.seen().source_alive, "nobody could reach it");
    assert!(ended.left_over.is_some());

    let still = left(&model, &ended).await;
    assert!(still.is_some(), "it is still cut off");
    model.heal();
    assert_eq!(left(&model, &ended).await, None);
    assert!(!model.seen().source_alive, "the held source is destroyed");
    assert!(model.seen().violations.is_empty());
}

#[tokio::test(start_paused = true)]
async fn with_the_source_dead_a_target_that_fails_leaves_the_pod_to_another_node() {
    let model = Arc::new(Model::new(None));
    model.cut_after("deliver", "node1");
    model.break_restores_on("node2");
    let (_, ended) = run(&model, "node1").await;
    assert_eq!(ended.phase, Phase::Rescued, "{:?}", ended.reason);
    assert_eq!(model.restored_on().as_deref(), Some("node3"));
}

#[tokio::test(start_paused = true)]
async fn a_target_cut_off_after_the_commit_and_declared_dead_brings_the_pod_back_to_its_source() {
    let model = Arc::new(Model::new(None));
    model.cut_after("create", "node2");
    let (doubted, ended) = run(&model, "node2").await;
    assert_eq!(doubted, Phase::Restoring);
    assert_eq!(ended.phase, Phase::Rescued, "{:?}", ended.reason);
    assert_eq!(model.restored_on().as_deref(), Some("node1"));
    model.heal();
    assert_eq!(left(&model, &ended).await, None);
    let seen = model.seen();
    assert!(seen.rescued_runs, "{}", seen.history.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn an_undo_whose_source_is_dead_ends_unclean_and_releases_it_when_it_is_back() {
    let model = Arc::new(Model::new(None));
    model.cut_after("hold", "node1");
    model.fail_next("deliver");
    let (doubted, ended) = run(&model, "node1").await;
    assert_eq!(doubted, Phase::Releasing);
    assert_eq!(ended.phase, Phase::RolledBack);
    let unclean = ended.unclean.clone().unwrap_or_default();
    assert!(
        unclean.contains("declared dead") && unclean.contains("checkpoint"),
        "{unclean}"
    );
    assert!(!model.seen().source_runs);
    model.heal();
    assert_eq!(left(&model, &ended).await, None);
    assert!(model.seen().source_runs, "it is held by nobody any more");
}

#[tokio::test(start_paused = true)]
async fn retiring_without_the_source_ends_and_destroys_it_when_it_is_back() {
    let model = Arc::new(Model::new(None));
    model.cut_after("disarm", "node1");
    let (doubted, ended) = run(&model, "node1").await;
    assert_eq!(doubted, Phase::Retiring);
    assert_eq!(ended.phase, Phase::Succeeded);
    model.heal();
    assert_eq!(left(&model, &ended).await, None);
    assert!(!model.seen().source_alive);
}
