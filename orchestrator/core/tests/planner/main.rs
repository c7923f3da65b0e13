//! Every refusal, one at a time: a view in which the pod can be moved, one thing changed, the sentence the user reads.
#![allow(
    clippy::unwrap_used,
    reason = "what is missing here is a mistake in the test"
)]

mod freeze;
mod node;
mod placement;
mod pod;
mod sample;

use orchestrator_core::refusal::Finding;
use sample::{decide, first, pod, sentences, source, target, term, worker};

#[test]
fn the_good_view_plans_completely() {
    let plan = decide(|_| {}).unwrap();
    assert_eq!(
        (plan.source.0.as_str(), plan.target.0.as_str()),
        ("node1", "node2")
    );
    assert_eq!(
        (plan.uid.0.as_str(), plan.pod_ip.as_str()),
        ("uid-1", "10.0.1.5")
    );
    let names: Vec<_> = plan
        .containers
        .iter()
        .map(|c| (c.name.as_str(), c.sidecar))
        .collect();
    assert_eq!(
        names,
        [("proxy", true), ("kuard", false)],
        "sidecars start first"
    );
    assert_eq!(plan.containers[1].image_digest, "sha256:kuard");
    assert_eq!(plan.containers[1].container_id, "id-of-kuard");
    assert_eq!(plan.finished_init_containers, ["setup"]);
    assert_eq!(
        (plan.freeze_predicted_ms, plan.freeze_budget_ms),
        (2_500, 60_000)
    );
    assert_eq!(
        (plan.timeout_ms, plan.archive_predicted_bytes),
        (300_000, 150_000_000)
    );
    assert_eq!(plan.warnings[0].code, "InodeNumbers", "warnings come along");
    assert_eq!(plan.target_pod, "{}");
}

#[test]
fn all_reasons_are_shown_together() {
    let all = sentences(decide(|v| {
        pod(v).host_network = true;
        first(v).tty = true;
        target(v).cordoned = true;
        worker(target(v)).cpu_flags.clear();
        worker(source(v)).free_bytes = 0;
    }));
    let codes: Vec<_> = all.iter().filter_map(|s| s.split(':').next()).collect();
    assert_eq!(
        codes,
        [
            "HostNetwork",
            "Tty",
            "TargetCordoned",
            "MissingCpuFeatures",
            "SourceDiskTooSmall"
        ]
    );
}

#[test]
fn every_refusal_has_a_code_and_a_sentence() {
    let findings = decide(|v| {
        pod(v).host_pid = true;
        pod(v).affinity = vec![term("rack", "x")];
        target(v).ready = false;
        target(v).pods = 0;
        worker(target(v)).free_bytes = 0;
    })
    .unwrap_err();
    assert_eq!(findings.len(), 5);
    for Finding {
        code,
        message,
        remedy,
    } in findings
    {
        assert!(
            code.chars().all(char::is_alphanumeric) && !message.is_empty() && !remedy.is_empty()
        );
    }
}
