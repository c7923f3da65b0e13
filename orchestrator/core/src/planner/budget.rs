//! Time and space: how long the freeze may last, how long it will, and whether the checkpoint fits on both nodes.
//!
//! The prediction refuses too long a freeze beforehand; during the hold the budget is enforced by a clock.

use super::Case;
use crate::{
    plan::Request,
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
