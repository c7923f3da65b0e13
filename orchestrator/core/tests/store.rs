//! What may be removed from the store, in every phase.

#[path = "given/mod.rs"]
mod given;

use given::in_phase;
use orchestrator_core::{
    id::{MigrationId, Revision},
    migration::PHASES,
    state::{Command, State},
    store::Owner,
};

#[test]
fn nothing_of_a_migration_under_way_is_ever_garbage() {
    for phase in PHASES {
        let (state, id) = in_phase(phase);
        let owner = Owner::of(&state, &id);
        let expected = if phase.ended() {
            Owner::Ended
        } else {
            Owner::UnderWay
        };
        assert_eq!(owner, expected, "{phase}");
        assert_eq!(owner.is_garbage(true), phase.ended(), "{phase}");
    }
}

#[test]
fn what_the_log_does_not_know_goes_by_a_persons_word_alone() {
    let owner = Owner::of(&State::default(), &MigrationId::from("of-another-cluster"));
    assert_eq!(owner, Owner::Unknown);
    assert!(!owner.is_garbage(false) && owner.is_garbage(true));
}

#[test]
fn the_last_copy_of_a_pod_stays() {
    let (mut state, id) = in_phase(orchestrator_core::migration::Phase::Delivering);
    for (at, node) in [(90, "node1"), (91, "node2")] {
        let command = Command::DeclareDead {
            id: id.clone(),
            node: node.into(),
            at_ms: 3,
        };
        state.apply(Revision(at), command).unwrap();
    }
    assert_eq!(
        Owner::of(&state, &id),
        Owner::UnderWay,
        "it is being rescued"
    );
    let mut migration = (*state.migrations[&id]).clone();
    migration.phase = orchestrator_core::migration::Phase::RolledBack;
    state.migrations.insert(id.clone(), migration.into());
    assert_eq!(Owner::of(&state, &id), Owner::LastCopy);
    assert!(!Owner::LastCopy.is_garbage(true));
}
