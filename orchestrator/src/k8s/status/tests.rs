use std::collections::BTreeMap;

use orchestrator_core::{
    id::{PodRef, Revision},
    migration::{Checkpoint, Doubt, Restored},
    plan::Request,
};

use super::*;

fn place(name: &str) -> PodRef {
    PodRef {
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn plan() -> Plan {
    Plan {
        pod: place("web"),
        uid: "uid-1".into(),
        source: "node1".into(),
        target: "node2".into(),
        pod_ip: String::new(),
        containers: Vec::new(),
        finished_init_containers: Vec::new(),
        handover: Handover::Replace,
        checkpoint: CheckpointVia::Kubelet,
        restore: RestoreVia::Image,
        freeze_budget_ms: 60_000,
        freeze_predicted_ms: 2_500,
        archive_predicted_bytes: 150_000_000,
        rounds_max: 0,
        base: None,
        timeout_ms: 300_000,
        warnings: vec![Finding::new("InodeNumbers", "inode numbers change", "")],
        target_pod: String::new(),
    }
}

fn migration(phase: Phase) -> Migration {
    Migration {
        id: "m1".into(),
        object: place("move-1"),
        request: Request {
            pod: place("web"),
            target: "node2".into(),
            freeze_max_ms: None,
            timeout_ms: None,
            dry_run: false,
            rounds_max: None,
            keep_checkpoint_ms: None,
        },
        plan: Some(plan()),
        refusals: Vec::new(),
        phase,
        revision: Revision(9),
        submitted: Revision(3),
        attempts: 1,
        attempted_ms: 0,
        entered: vec![
            (Phase::Planned, 1_767_225_601_250),
            (phase, 1_767_225_603_000),
        ],
        reason: None,
        doubt: None,
        stuck: None,
        rounds: Vec::new(),
        copying_ended: None,
        checkpoint: None,
        images: Vec::new(),
        restored: None,
        unclean: None,
        left_over: None,
        kept: false,
        dead: Default::default(),
        spans: Vec::new(),
    }
}

fn moved() -> Migration {
    Migration {
        checkpoint: Some(Checkpoint {
            store_prefix: String::new(),
            manifest_key: String::new(),
            manifest_blake3: String::new(),
            paused_unix_ns: 1_000_000_000,
            raw_bytes: 67_423_437,
            stored_bytes: 27_643_609,
            packs: 9,
            boot_id: String::new(),
        }),
        restored: Some(Restored {
            pod_uid: "uid-2".into(),
            node: "node2".into(),
            running_unix_ns: 1_812_400_000,
            images: Vec::new(),
        }),
        spans: vec![Span {
            name: "pause".into(),
            place: "node1".into(),
            parent: String::new(),
            start_unix_ns: 5_000,
            end_unix_ns: 9_999,
            attributes: BTreeMap::new(),
        }],
        ..migration(Phase::Succeeded)
    }
}

fn condition<'a>(status: &'a PodMigrationStatus, r#type: &str) -> &'a StatusCondition {
    status
        .conditions
        .iter()
        .find(|c| c.r#type == r#type)
        .unwrap()
}

#[test]
fn a_moved_pod_shows_its_freeze_and_its_bytes() {
    let status = project(&moved());
    assert_eq!((status.phase.as_str(), status.revision), ("Succeeded", 9));
    assert_eq!(
        (status.freeze.as_deref(), status.freeze_milliseconds),
        (Some("812ms"), Some(812))
    );
    let bytes = status.bytes.clone().unwrap();
    assert_eq!(
        (
            bytes.checkpoint.as_str(),
            bytes.sent.as_str(),
            bytes.ratio.as_str()
        ),
        ("64.3MiB", "26.4MiB", "0.41")
    );
    assert_eq!(status.target_pod_uid.as_deref(), Some("uid-2"));
    assert_eq!(status.phases[0].entered, "2026-01-01T00:00:01.250Z");
    assert_eq!(
        (status.trace[1].start_micros, status.trace[1].end_micros),
        (5, 9)
    );
    let freeze = &status.trace[0];
    assert_eq!(
        (freeze.name.as_str(), freeze.place.as_str()),
        ("freeze", "")
    );
    assert_eq!(
        (freeze.start_micros, freeze.end_micros),
        (1_000_000, 1_812_400)
    );
    assert_eq!(status.warnings[0].code, "InodeNumbers");
    let ready = condition(&status, "Ready");
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("True", "Succeeded")
    );
    assert_eq!(ready.last_transition_time, "2026-01-01T00:00:03.000Z");
    assert_eq!(condition(&status, "Succeeded").status, "True");
}

#[test]
fn a_pull_that_failed_is_a_warning_though_the_images_came_another_way() {
    let mut moved = moved();
    let mut pull = moved.spans[0].clone();
    pull.name = PULL_SPAN.to_owned();
    moved.spans.push(pull.clone());
    assert_eq!(project(&moved).warnings.len(), 1, "this one went well");
    let facts = [("node", "node2"), ("error", "ErrImagePull: no password")];
    pull.attributes = facts
        .map(|(key, fact)| (key.to_owned(), fact.to_owned()))
        .into();
    moved.spans.push(pull);
    let warnings = project(&moved).warnings;
    assert_eq!(warnings[1].code, "BaseImagesNotPulled");
    let words = &warnings[1].message;
    assert!(
        words.contains("node2") && words.contains("ErrImagePull: no password"),
        "{words}"
    );
}

#[test]
fn under_way_is_neither_success_nor_failure() {
    let status = project(&migration(Phase::Holding));
    assert_eq!(condition(&status, "Ready").status, "False");
    let succeeded = condition(&status, "Succeeded");
    assert_eq!(
        (
            succeeded.status.as_str(),
            succeeded.last_transition_time.as_str()
        ),
        ("Unknown", "2026-01-01T00:00:01.250Z")
    );
    assert_eq!((status.freeze, status.bytes), (None, None));
}

#[test]
fn doubt_and_refusals_are_said_in_the_conditions() {
    let doubt = Doubt {
        since_ms: 1_767_225_601_250,
        what: Finding::new("NoAnswer", "node1 does not answer", ""),
        asked: 4,
    };
    let status = project(&Migration {
        doubt: Some(doubt),
        ..migration(Phase::Holding)
    });
    assert_eq!(status.in_doubt.as_ref().map(|d| d.asked), Some(4));
    assert_eq!(
        condition(&status, "Ready").message,
        "in doubt since 2026-01-01T00:00:01.250Z: NoAnswer: node1 does not answer"
    );
    let refusals = vec![
        Finding::new("Tty", "it has a terminal", "run it without"),
        Finding::new("Stdin", "it has stdin", ""),
    ];
    let status = project(&Migration {
        refusals,
        ..migration(Phase::Refused)
    });
    assert_eq!(status.refusals.len(), 2);
    let ready = condition(&status, "Succeeded");
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "Refused")
    );
    assert_eq!(
        ready.message,
        "Tty: it has a terminal (run it without); Stdin: it has stdin"
    );
}

#[test]
fn an_undo_that_was_not_clean_says_so() {
    let status = project(&Migration {
        reason: Some(Finding::new("StoreDown", "the store does not answer", "")),
        unclean: Some("the liveness probe had killed it".into()),
        left_over: None,
        dead: Default::default(),
        ..migration(Phase::RolledBack)
    });
    assert_eq!(
        status.reason.unwrap().message,
        "the store does not answer; the undo was not clean: the liveness probe had killed it"
    );
}

#[test]
fn numbers_are_written_as_people_read_them() {
    for (ms, text) in [
        (0, "0ms"),
        (999, "999ms"),
        (1000, "1.0s"),
        (1249, "1.2s"),
        (1250, "1.3s"),
        (65_000, "65.0s"),
    ] {
        assert_eq!(duration(ms), text);
    }
    for (bytes, text) in [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0KiB"),
        (1_048_575, "1.0MiB"),
        (67_423_437, "64.3MiB"),
        (1 << 40, "1.0TiB"),
    ] {
        assert_eq!(size(bytes), text);
    }
}
