//! A migration in any phase, and every outcome: the raw material of the tables.
#![allow(dead_code, reason = "each test file uses its part")]

use orchestrator_core::{
    id::{MigrationId, PodRef, Revision},
    migration::{Checkpoint, Done, Image, Outcome, Phase, Restored, Round},
    plan::{CheckpointVia, Handover, Plan, PlannedContainer, Request, RestoreVia},
    refusal::Finding,
    state::{Command, Decision, State},
};

pub fn pod() -> PodRef {
    PodRef {
        namespace: "default".to_owned(),
        name: "kuard".to_owned(),
    }
}

pub fn request() -> Request {
    Request {
        pod: pod(),
        target: "node2".into(),
        freeze_max_ms: None,
        timeout_ms: None,
        dry_run: false,
        rounds_max: None,
        keep_checkpoint_ms: None,
    }
}

pub fn plan() -> Plan {
    Plan {
        pod: pod(),
        uid: "uid-source".into(),
        source: "node1".into(),
        target: "node2".into(),
        pod_ip: "10.0.0.1".to_owned(),
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
        freeze_budget_ms: 30_000,
        freeze_predicted_ms: 2_000,
        archive_predicted_bytes: 64 << 20,
        rounds_max: 0,
        base: None,
        timeout_ms: 300_000,
        warnings: vec![],
        target_pod: "{}".to_owned(),
    }
}

pub fn submit(id: &str, at_ms: u64) -> Command {
    Command::Submit {
        id: id.into(),
        object: PodRef {
            namespace: "default".to_owned(),
            name: format!("move-{id}"),
        },
        request: request(),
        decision: Decision::Plan(Box::new(plan())),
        at_ms,
        spans: vec![],
    }
}

pub fn checkpoint() -> Checkpoint {
    Checkpoint {
        store_prefix: "checkpoints/m/3/".to_owned(),
        manifest_key: "checkpoints/m/3/manifest".to_owned(),
        manifest_blake3: "00".to_owned(),
        paused_unix_ns: 1_000_000_000,
        raw_bytes: 100,
        stored_bytes: 50,
        packs: 1,
        boot_id: "b".to_owned(),
    }
}

pub fn restored(node: &str) -> Restored {
    Restored {
        pod_uid: "uid-target".into(),
        node: node.into(),
        running_unix_ns: 2_500_000_000,
        images: vec![Image {
            container: "kuard".to_owned(),
            reference: "r".to_owned(),
            image_id: "i".to_owned(),
        }],
    }
}

fn copied(again: bool) -> Outcome {
    let round = Round {
        manifest_key: "checkpoints/m/2/manifest".to_owned(),
        manifest_blake3: "11".to_owned(),
        raw_bytes: 100,
        stored_bytes: 70,
        took_ms: 900,
    };
    Outcome::Done(Done::Copied { round, again })
}

pub fn outcomes() -> Vec<(&'static str, Outcome)> {
    let why = || Finding::new("Why", "because", "");
    vec![
        ("done: rechecked", Outcome::Done(Done::Rechecked)),
        ("done: prepared", Outcome::Done(Done::Prepared)),
        ("done: ready to copy", Outcome::Done(Done::ReadyToCopy)),
        ("done: copied, again", copied(true)),
        ("done: copied", copied(false)),
        ("done: held", Outcome::Done(Done::Held(checkpoint()))),
        ("done: delivered", Outcome::Done(Done::Delivered(vec![]))),
        (
            "done: restored",
            Outcome::Done(Done::Restored(restored("node2"))),
        ),
        (
            "done: rescued",
            Outcome::Done(Done::Rescued(restored("node1"))),
        ),
        ("done: retired", Outcome::Done(Done::Retired)),
        (
            "done: released",
            Outcome::Done(Done::Released {
                clean: true,
                detail: String::new(),
                left_over: None,
            }),
        ),
        ("done: doomed", Outcome::Done(Done::Doomed(why()))),
        ("failed", Outcome::Failed(why())),
        ("unknown", Outcome::Unknown(why())),
        ("pod deleted", Outcome::PodDeleted(why())),
        ("not begun", Outcome::NotBegun(why())),
        ("forgotten", Outcome::Forgotten(why())),
    ]
}

/// A state with one migration in this phase, by the shortest way there.
#[allow(clippy::too_many_lines, reason = "a table: one row a phase")]
pub fn in_phase(phase: Phase) -> (State, MigrationId) {
    let id: MigrationId = "m".into();
    let mut state = State::default();
    let why = || Finding::new("Why", "because", "");
    let mut at = 1;
    let mut apply = |command| {
        at += 1;
        state
            .apply(Revision(at), command)
            .expect("the way to a phase is legal");
        at
    };
    let first = match phase {
        Phase::Refused => Command::Submit {
            id: id.clone(),
            object: pod(),
            request: request(),
            decision: Decision::Refuse(vec![why()]),
            at_ms: 1,
            spans: vec![],
        },
        Phase::Previewed => Command::Submit {
            id: id.clone(),
            object: pod(),
            request: Request {
                dry_run: true,
                ..request()
            },
            decision: Decision::Plan(Box::new(plan())),
            at_ms: 1,
            spans: vec![],
        },
        Phase::Planned
        | Phase::Preparing
        | Phase::Copying
        | Phase::Holding
        | Phase::Delivering
        | Phase::Restoring
        | Phase::Rescuing
        | Phase::Retiring
        | Phase::Releasing
        | Phase::Succeeded
        | Phase::RolledBack
        | Phase::Rescued
        | Phase::Abandoned => submit("m", 1),
    };
    let mut revision = apply(first);
    let forward = [
        Outcome::Done(Done::Rechecked),
        Outcome::Done(Done::Prepared),
        Outcome::Done(Done::Held(checkpoint())),
        Outcome::Done(Done::Delivered(vec![])),
    ];
    let path: Vec<Outcome> = match phase {
        Phase::Planned | Phase::Refused | Phase::Previewed => vec![],
        Phase::Preparing => forward[..1].to_vec(),
        Phase::Copying => vec![
            Outcome::Done(Done::Rechecked),
            Outcome::Done(Done::ReadyToCopy),
        ],
        Phase::Holding => forward[..2].to_vec(),
        Phase::Delivering => forward[..3].to_vec(),
        Phase::Restoring => forward.to_vec(),
        Phase::Rescuing => [&forward[..], &[Outcome::Failed(why())]].concat(),
        Phase::Retiring => [
            &forward[..],
            &[Outcome::Done(Done::Restored(restored("node2")))],
        ]
        .concat(),
        Phase::Releasing => vec![Outcome::Failed(why())],
        Phase::Succeeded => [
            &forward[..],
            &[
                Outcome::Done(Done::Restored(restored("node2"))),
                Outcome::Done(Done::Retired),
            ],
        ]
        .concat(),
        Phase::RolledBack => vec![
            Outcome::Failed(why()),
            Outcome::Done(Done::Released {
                clean: true,
                detail: String::new(),
                left_over: None,
            }),
        ],
        Phase::Rescued => [
            &forward[..],
            &[
                Outcome::Failed(why()),
                Outcome::Done(Done::Rescued(restored("node1"))),
                Outcome::Done(Done::Retired),
            ],
        ]
        .concat(),
        Phase::Abandoned => [
            &forward[..],
            &[Outcome::PodDeleted(why()), Outcome::Done(Done::Retired)],
        ]
        .concat(),
    };
    for outcome in path {
        revision = apply(Command::Report {
            id: id.clone(),
            revision: Revision(revision),
            outcome,
            at_ms: 1,
            spans: vec![],
        });
    }
    assert_eq!(state.migrations[&id].phase, phase);
    (state, id)
}
