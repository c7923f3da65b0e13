//! Time and space: how long the freeze may last, how long it will, and whether the checkpoint fits on both nodes.
//!
//! The prediction refuses too long a freeze beforehand; during the hold the budget is enforced by a clock.

use super::Case;
use crate::{
    plan::{KeptCheckpoint, Plan, Request},
    refusal::Finding,
    view::{NodeView, PodView},
};

/// What a freeze costs at any size, as measured in the lab for pods of a few MB: pause and dump 0.5 s, delete and
/// create of the pod 0.4 s, sandbox and network 0.6 s: 1.5 s.
pub const FREEZE_BASE_MS: u64 = 1_500;

/// What every byte costs on top. Lab: written four times at the source, sent, written three times at the target,
/// all of it overlapping in part, comes to 150 MB/s of archive = 150 000 bytes a millisecond.
pub const FREEZE_BYTES_PER_MS: u64 = 150_000;

/// The freeze may last this long when neither the user nor a liveness probe says less: beyond a minute most clients
/// have given the pod up, so a longer one has to be asked for.
pub const FREEZE_DEFAULT_MS: u64 = 60_000;

/// Kept free before the liveness deadline (which counts from the worst moment already): undoing a hold, until the
/// source answers its probe again, takes up to 1 s.
pub const LIVENESS_MARGIN_MS: u64 = 1_000;

/// Copies of the archive on the source at once: CRIU's directory, the content store, the unpacked copy, the tar.
pub const SOURCE_COPIES: u64 = 4;

/// Copies of the archive on the target at once: the image's blob, its snapshot, the copy it is restored from.
pub const TARGET_COPIES: u64 = 3;

/// Rounds pay from this size on. A round costs the pod a stall of its own, 0.4 s and 0.6 ns a byte while it is dumped
/// (lab: 0.45 s at 64 MiB, 1.2 s at 1.2 GB), and spares the freeze the encoding and decoding of what doesn't change,
/// 3.5 ns a byte: even at 140 MB.
pub const ROUNDS_FROM_BYTES: u64 = 144_000_000;

/// The planner's own choice where rounds pay. A later one is made only when the one before took long, see
/// [`round_pays_again`].
pub const ROUNDS_DEFAULT: u32 = 3;

/// What a user may ask for: each is a stall, and a base more that a rescue has to fetch.
pub const ROUNDS_MAX: u32 = 5;

/// After a round that took this long another one pays: in 10 s a program that changes 20 MB/s (the lab's are between
/// numpy's 5 and redis' 30) changes 200 MB, which at 3.5 ns a byte are 0.7 s of freeze, more than a round's stall.
pub const ROUND_AGAIN_FROM_MS: u64 = 10_000;

/// Is there to be another round, after `rounds` of them of which the last took so long? Whoever asked for a number gets
/// it.
#[must_use]
pub fn another_round(plan: &Plan, request: &Request, rounds: usize, took_ms: u64) -> bool {
    let pays = request.rounds_max.is_some() || took_ms >= ROUND_AGAIN_FROM_MS;
    pays && rounds < plan.rounds_max as usize
}

/// The user's word, or what pays; none where a node has no room to keep a round beside everything else.
pub(super) fn rounds_max(case: &Case<'_>, archive_bytes: u64) -> u32 {
    if !have_room_for(case, 1, archive_bytes) {
        return 0;
    }
    match case.request.rounds_max {
        Some(asked) => asked.min(ROUNDS_MAX),
        None if archive_bytes >= ROUNDS_FROM_BYTES => ROUNDS_DEFAULT,
        None => 0,
    }
}

/// The pod's kept checkpoint, where there are rounds to be a difference to it and room for it beside them.
pub(super) fn base(case: &Case<'_>, archive_bytes: u64) -> Option<KeptCheckpoint> {
    let useful = rounds_max(case, archive_bytes) > 0 && have_room_for(case, 2, archive_bytes);
    case.view.base.clone().filter(|_| useful)
}

/// Have both nodes room for so many bases beside everything else?
fn have_room_for(case: &Case<'_>, bases: u64, archive_bytes: u64) -> bool {
    let roomy = |node: Option<&NodeView>, copies: u64| {
        node.and_then(|node| node.worker.as_ref())
            .is_some_and(|worker| {
                worker.free_bytes >= copies.saturating_add(bases).saturating_mul(archive_bytes)
            })
    };
    roomy(case.source, SOURCE_COPIES) && roomy(case.target, TARGET_COPIES)
}

/// By our reckoning, for archives of this size together.
#[must_use]
pub fn freeze_predicted_ms(archive_bytes: u64) -> u64 {
    FREEZE_BASE_MS.saturating_add(archive_bytes / FREEZE_BYTES_PER_MS)
}

/// The shorter of the user's limit (or the default) and what the most impatient liveness probe bears.
#[must_use]
pub fn freeze_budget_ms(request: &Request, pod: &PodView) -> u64 {
    let asked = request.freeze_max_ms.unwrap_or(FREEZE_DEFAULT_MS);
    match most_impatient(pod) {
        Some((_, borne_ms)) => asked.min(borne_ms),
        None => asked,
    }
}

/// The container whose liveness probe gives up first, and how long a freeze it bears.
fn most_impatient(pod: &PodView) -> Option<(&str, u64)> {
    pod.containers
        .iter()
        .filter_map(|c| {
            let deadline_ms = c.liveness_deadline_ms?;
            Some((
                c.name.as_str(),
                deadline_ms.saturating_sub(LIVENESS_MARGIN_MS),
            ))
        })
        .min_by_key(|(_, borne_ms)| *borne_ms)
}

pub(super) fn check(case: &Case<'_>) -> Vec<Finding> {
    let Some(seen) = case.inspection() else {
        return Vec::new();
    };
    let mut findings = time(case, freeze_predicted_ms(seen.archive_bytes));
    findings.extend(space(
        case.source,
        "SourceDiskTooSmall",
        SOURCE_COPIES,
        seen.archive_bytes,
    ));
    findings.extend(space(
        case.target,
        "TargetDiskTooSmall",
        TARGET_COPIES,
        seen.archive_bytes,
    ));
    findings
}

fn time(case: &Case<'_>, predicted_ms: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((container, borne_ms)) = most_impatient(case.pod)
        && borne_ms < predicted_ms
    {
        findings.push(Finding::new(
            "LivenessDeadlineTooShort",
            format!(
                "the freeze will take about {predicted_ms} ms, the liveness probe of container {container} bears \
                 {borne_ms} ms"
            ),
            "raise failureThreshold, periodSeconds or timeoutSeconds of the probe",
        ));
    }
    match case.request.freeze_max_ms {
        Some(limit_ms) if limit_ms < predicted_ms => findings.push(Finding::new(
            "FreezeLimitTooShort",
            format!("the freeze will take about {predicted_ms} ms, {limit_ms} ms are allowed"),
            format!("allow more: --max-freeze {predicted_ms}ms"),
        )),
        None if FREEZE_DEFAULT_MS < predicted_ms => findings.push(Finding::new(
            "FreezeTooLong",
            format!(
                "the freeze will take about {predicted_ms} ms, without a word from you it may take \
                 {FREEZE_DEFAULT_MS} ms"
            ),
            format!("allow more: --max-freeze {predicted_ms}ms"),
        )),
        Some(_) | None => {}
    }
    findings
}

fn space(node: Option<&NodeView>, code: &str, copies: u64, archive: u64) -> Option<Finding> {
    let node = node?;
    let (name, worker) = (node.name.as_ref()?, node.worker.as_ref()?);
    let needed = copies.saturating_mul(archive);
    (worker.free_bytes < needed).then(|| {
        Finding::new(
            code,
            format!(
                "the checkpoint of {archive} bytes needs {copies} times its size on node {name}, {needed} bytes; \
                 {} are free",
                worker.free_bytes
            ),
            "free disk space on that node",
        )
    })
}
