//! What users read of a migration: its state in the log, projected onto the object's status. [`project`] is pure;
//! [`board`] writes it when it has changed.

pub mod board;

use k8s_openapi::jiff::Timestamp;
use orchestrator_core::{
    id::UnixMs,
    migration::{Migration, Phase, Round, Span},
    plan::{CheckpointVia, Handover, Plan, RestoreVia},
    refusal::Finding,
};

use crate::perform::PULL_SPAN;

use super::resource::{
    InDoubt, PhaseTime, PodMigrationStatus, StatusBytes, StatusCondition, StatusFinding,
    StatusPlan, StatusRound, StatusSpan,
};

/// The whole status but for progress, which the log doesn't know. The same migration gives the same status, on every
/// peer.
#[must_use]
pub fn project(migration: &Migration) -> PodMigrationStatus {
    let plan = migration.plan.as_ref();
    let restored = migration.restored.as_ref();
    let freeze_ms = migration.freeze_ms();
    PodMigrationStatus {
        phase: migration.phase.to_string(),
        revision: migration.revision.0,
        source_node: plan.map(|p| p.source.0.clone()),
        source_pod_uid: plan.map(|p| p.uid.0.clone()),
        target_pod_uid: restored.map(|r| r.pod_uid.0.clone()),
        refusals: migration.refusals.iter().map(finding).collect(),
        warnings: warnings(migration),
        reason: reason(migration),
        in_doubt: migration.doubt.as_ref().map(|doubt| InDoubt {
            since: rfc3339(doubt.since_ms),
            what: finding(&doubt.what),
            asked: doubt.asked,
        }),
        stuck: migration.stuck.as_ref().map(finding),
        left_over: migration.left_over.as_ref().map(finding),
        dead_nodes: migration.dead.keys().map(|node| node.0.clone()).collect(),
        checkpoint_kept: migration.kept,
        plan: plan.map(status_plan),
        freeze: freeze_ms.map(duration),
        freeze_milliseconds: freeze_ms,
        bytes: migration
            .checkpoint
            .as_ref()
            .map(|c| bytes(c.raw_bytes, c.stored_bytes)),
        rounds: migration.rounds.iter().map(round).collect(),
        rounds_ended: migration.copying_ended.as_ref().map(finding),
        progress: None,
        phases: migration
            .entered
            .iter()
            .map(|(phase, at_ms)| PhaseTime {
                phase: phase.to_string(),
                entered: rfc3339(*at_ms),
            })
            .collect(),
        trace: migration
            .freeze()
            .iter()
            .chain(&migration.spans)
            .map(span)
            .collect(),
        conditions: conditions(migration),
    }
}

/// What was known beforehand, and what had to go another way.
fn warnings(migration: &Migration) -> Vec<StatusFinding> {
    let known = migration.plan.iter().flat_map(|plan| &plan.warnings);
    // A step that was asked twice pulled twice: the last time counts.
    let mut pulls = migration.spans.iter().filter(|span| span.name == PULL_SPAN);
    let pull = pulls.next_back().and_then(|span| {
        let fact = |key: &str| span.attributes.get(key);
        Some(Finding::new(
            "BaseImagesNotPulled",
            format!(
                "node {} did not pull the base images, which had to come another way: {}",
                fact("node")?,
                fact("error")?
            ),
            "look at the pod's imagePullSecrets and at its registry",
        ))
    });
    known.chain(&pull).map(finding).collect()
}

/// Why it didn't end on the target; an undo that was not clean says so in the same place.
fn reason(migration: &Migration) -> Option<StatusFinding> {
    let mut reason = migration.reason.as_ref().map(finding);
    if let Some(unclean) = &migration.unclean {
        let shown = reason.get_or_insert_default();
        if shown.code.is_empty() {
            "UndoNotClean".clone_into(&mut shown.code);
        }
        let gap = if shown.message.is_empty() { "" } else { "; " };
        shown.message = format!("{}{gap}the undo was not clean: {unclean}", shown.message);
    }
    reason
}

fn finding(finding: &Finding) -> StatusFinding {
    let Finding {
        code,
        message,
        remedy,
    } = finding.clone();
    StatusFinding {
        code,
        message,
        remedy,
    }
}

fn status_plan(plan: &Plan) -> StatusPlan {
    StatusPlan {
        handover: match plan.handover {
            Handover::Replace => "Replace".to_owned(),
        },
        checkpoint_via: match plan.checkpoint {
            CheckpointVia::Kubelet => "kubelet".to_owned(),
        },
        restore_via: match plan.restore {
            RestoreVia::Image => "image".to_owned(),
        },
        containers: plan.containers.iter().map(|c| c.name.clone()).collect(),
        freeze_budget_milliseconds: plan.freeze_budget_ms,
        freeze_predicted_milliseconds: plan.freeze_predicted_ms,
        checkpoint_predicted_bytes: plan.archive_predicted_bytes,
        rounds_max: plan.rounds_max,
        base: plan.base.as_ref().map(|base| base.migration.0.to_string()),
    }
}

fn round(round: &Round) -> StatusRound {
    StatusRound {
        bytes: bytes(round.raw_bytes, round.stored_bytes),
        took_milliseconds: round.took_ms,
    }
}

#[allow(clippy::cast_precision_loss, reason = "shown with two digits")]
fn bytes(checkpoint: u64, sent: u64) -> StatusBytes {
    let ratio = match checkpoint {
        0 => String::new(),
        some => format!("{:.2}", sent as f64 / some as f64),
    };
    StatusBytes {
        checkpoint: size(checkpoint),
        sent: size(sent),
        ratio,
        checkpoint_bytes: checkpoint,
        sent_bytes: sent,
    }
}

fn span(span: &Span) -> StatusSpan {
    let Span {
        name,
        place,
        parent,
        start_unix_ns,
        end_unix_ns,
        attributes,
    } = span.clone();
    StatusSpan {
        name,
        place,
        parent,
        start_micros: start_unix_ns / 1000,
        end_micros: end_unix_ns / 1000,
        attributes,
    }
}

fn conditions(migration: &Migration) -> Vec<StatusCondition> {
    let first = migration.entered.first().map_or(0, |(_, at_ms)| *at_ms);
    let last = migration.entered.last().map_or(0, |(_, at_ms)| *at_ms);
    let succeeded = match migration.phase {
        Phase::Succeeded => "True",
        Phase::RolledBack
        | Phase::Rescued
        | Phase::Refused
        | Phase::Previewed
        | Phase::Abandoned => "False",
        Phase::Planned
        | Phase::Preparing
        | Phase::Copying
        | Phase::Holding
        | Phase::Delivering
        | Phase::Restoring
        | Phase::Rescuing
        | Phase::Retiring
        | Phase::Releasing => "Unknown",
    };
    let message = summary(migration);
    // Times are those of the transitions: Ready turns once, to True; Succeeded turns once, at the end.
    let condition = |r#type: &str, status: &str, at_ms: UnixMs| StatusCondition {
        r#type: r#type.to_owned(),
        status: status.to_owned(),
        reason: migration.phase.to_string(),
        message: message.clone(),
        last_transition_time: rfc3339(at_ms),
    };
    let (ready, ready_ms) = match migration.phase == Phase::Succeeded {
        true => ("True", last),
        false => ("False", first),
    };
    let succeeded_ms = if migration.phase.ended() { last } else { first };
    vec![
        condition("Ready", ready, ready_ms),
        condition("Succeeded", succeeded, succeeded_ms),
    ]
}

/// One sentence.
fn summary(migration: &Migration) -> String {
    if let Some(doubt) = &migration.doubt {
        return format!("in doubt since {}: {}", rfc3339(doubt.since_ms), doubt.what);
    }
    if let Some(stuck) = &migration.stuck {
        return format!("stuck, it is asked again: {stuck}");
    }
    if !migration.refusals.is_empty() {
        let all: Vec<_> = migration.refusals.iter().map(ToString::to_string).collect();
        return all.join("; ");
    }
    match reason(migration) {
        Some(reason) => reason.message,
        None => format!("the migration is {}", migration.phase),
    }
}

/// RFC 3339 with milliseconds, "" for a time no calendar has.
#[must_use]
pub fn rfc3339(at_ms: UnixMs) -> String {
    i64::try_from(at_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .map_or_else(String::new, |time| format!("{time:.3}"))
}

/// "812ms", "1.2s".
#[must_use]
pub fn duration(ms: u64) -> String {
    if ms < 1000 {
        return format!("{ms}ms");
    }
    // Rounded to tenths in whole numbers.
    let tenths = ms.saturating_add(50) / 100;
    format!("{}.{}s", tenths / 10, tenths % 10)
}

/// "64.3MiB".
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0 of the smaller unit.
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes}B"),
        _ => format!("{amount:.1}{}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests;
