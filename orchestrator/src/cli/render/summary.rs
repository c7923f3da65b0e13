//! How it ended (or where it stands when the wait ends first), in a few lines.

use orchestrator_core::migration::Phase;

use super::{table::sentence, units};
use crate::{
    cli::ask::DOWNTIME,
    cli::verdict::{self, Standing},
    k8s::resource::{PodMigration, PodMigrationStatus, StatusBytes, StatusFinding, StatusPlan},
};

/// Width of the first column of the details.
const LABEL_CHARS: usize = 11;

/// The summary.
pub fn summary(object: &PodMigration) -> String {
    let status = verdict::status(object);
    let mut text = headline(object, &status);
    text.push('\n');
    match verdict::standing(&status) {
        Standing::In(Phase::Refused) => findings(&mut text, &status.refusals),
        Standing::In(Phase::Previewed) => preview(&mut text, &status),
        Standing::In(_) | Standing::Asked | Standing::Unreadable(_) => {
            outcome(&mut text, object, &status)
        }
    }
    text
}

fn headline(object: &PodMigration, status: &PodMigrationStatus) -> String {
    let pod = format!(
        "{}/{}",
        object.metadata.namespace.as_deref().unwrap_or_default(),
        object.spec.pod
    );
    let target = &object.spec.target_node;
    let source = status.source_node.as_deref().unwrap_or("its node");
    match verdict::standing(status) {
        Standing::Asked => {
            format!("{pod}: the move to {target} was asked for; nobody has taken it up yet")
        }
        Standing::Unreadable(word) => {
            format!(
                "{pod}: in phase {word}, which this version of migrate doesn't know; use a newer one"
            )
        }
        Standing::In(phase) => match phase {
            Phase::Succeeded => format!("{pod} moved from {source} to {target}"),
            Phase::Refused => format!(
                "{pod} was not moved to {target}: {}; nothing was changed",
                counted(status.refusals.len(), "reason not to", "reasons not to")
            ),
            Phase::Previewed => {
                format!("{pod} can move from {source} to {target}; nothing was changed")
            }
            Phase::RolledBack => format!("{pod} was rolled back: it runs on {source}, as before"),
            Phase::Rescued => {
                format!("{pod} was rescued: restored from its checkpoint, but not on {target}")
            }
            Phase::Abandoned => {
                format!("{pod} was deleted while it was being moved, and that was obeyed")
            }
            Phase::Planned
            | Phase::Preparing
            | Phase::Copying
            | Phase::Holding
            | Phase::Delivering
            | Phase::Restoring
            | Phase::Rescuing
            | Phase::Retiring
            | Phase::Releasing => format!("{pod}: {phase}: {}", verdict::explained(phase)),
        },
    }
}

fn outcome(text: &mut String, object: &PodMigration, status: &PodMigrationStatus) {
    if let Some(reason) = &status.reason {
        detail(text, "why", &sentence(reason));
        remedy(text, reason);
    }
    if let Some(doubt) = &status.in_doubt {
        detail(
            text,
            "in doubt",
            &format!("since {}: {}", doubt.since, sentence(&doubt.what)),
        );
        remedy(text, &doubt.what);
    }
    if let Some(stuck) = &status.stuck {
        detail(text, "stuck", &sentence(stuck));
        remedy(text, stuck);
    }
    if let Some(left_over) = &status.left_over {
        detail(text, "left over", &sentence(left_over));
    }
    if let Some(freeze) = freeze(status) {
        detail(text, "freeze", &freeze);
    }
    if let Some(downtime) = downtime(object) {
        detail(text, "downtime", downtime);
    }
    if let Some(bytes) = &status.bytes {
        detail(text, "checkpoint", &transferred(bytes));
    }
    if status.checkpoint_kept {
        detail(text, "kept", KEPT);
    }
    let ahead = sent_ahead(status);
    if !ahead.is_empty() {
        detail(text, "sent ahead", &ahead);
    }
    if let Some(ended) = &status.rounds_ended {
        detail(text, "no more rounds", &sentence(ended));
    }
    for warning in &status.warnings {
        detail(text, "warning", &sentence(warning));
        remedy(text, warning);
    }
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    detail(
        text,
        "more",
        &format!("migrate describe {name} -n {namespace}"),
    );
}

/// Of a checkpoint that outlives its migration.
const KEPT: &str = "the checkpoint stays in the store for the pod's next migration";

/// How much of it is sent before the freeze.
pub fn planned_rounds(rounds_max: u32, base: Option<&str>) -> String {
    let rounds = match rounds_max {
        0 => "everything sent under the freeze".to_owned(),
        1 => "one round before the freeze, with a short stall".to_owned(),
        more => format!("up to {more} rounds before the freeze, each with a short stall"),
    };
    match base {
        None => rounds,
        Some(id) => format!("{rounds}; the first a difference to the checkpoint of {id}"),
    }
}

/// What was sent before the freeze, "" when nothing was.
pub fn sent_ahead(status: &PodMigrationStatus) -> String {
    let rounds = status.rounds.iter().map(|round| {
        format!(
            "{} in {}",
            transferred(&round.bytes),
            units::milliseconds(round.took_milliseconds)
        )
    });
    rounds.collect::<Vec<_>>().join("; ")
}

fn preview(text: &mut String, status: &PodMigrationStatus) {
    if let Some(plan) = &status.plan {
        let StatusPlan {
            handover,
            checkpoint_via,
            restore_via,
            containers,
            freeze_budget_milliseconds,
            freeze_predicted_milliseconds,
            checkpoint_predicted_bytes,
            rounds_max,
            base,
        } = plan;
        detail(
            text,
            "plan",
            &format!("{handover}, checkpoint via {checkpoint_via}, restore via {restore_via}"),
        );
        detail(text, "containers", &containers.join(", "));
        detail(
            text,
            "before it",
            &planned_rounds(*rounds_max, base.as_deref()),
        );
        detail(
            text,
            "freeze",
            &format!(
                "about {}, at most {}",
                units::milliseconds(*freeze_predicted_milliseconds),
                units::milliseconds(*freeze_budget_milliseconds)
            ),
        );
        detail(
            text,
            "checkpoint",
            &format!("about {}", units::bytes(*checkpoint_predicted_bytes)),
        );
    }
    for warning in &status.warnings {
        detail(text, "warning", &sentence(warning));
        remedy(text, warning);
    }
}

/// Findings, word for word, each with its remedy.
pub fn findings(text: &mut String, findings: &[StatusFinding]) {
    for finding in findings {
        text.push_str(&format!("  {}\n", sentence(finding)));
        if !finding.remedy.is_empty() {
            text.push_str(&format!("    -> {}\n", finding.remedy));
        }
    }
}

/// What a client saw, where one asked (`--probe`).
pub fn downtime(object: &PodMigration) -> Option<&str> {
    let annotations = object.metadata.annotations.as_ref()?;
    annotations.get(DOWNTIME).map(String::as_str)
}

/// `812ms of at most 30.00s (predicted 900ms)`, as much of it as is known.
pub fn freeze(status: &PodMigrationStatus) -> Option<String> {
    // Exactly, for it is compared with the prediction behind it; the status' own text is for tables.
    let mut text = match (status.freeze_milliseconds, &status.freeze) {
        (Some(ms), _) => units::milliseconds(ms),
        (None, Some(shown)) => shown.clone(),
        (None, None) => return None,
    };
    if let Some(plan) = &status.plan {
        text.push_str(&format!(
            " of at most {} (predicted {})",
            units::milliseconds(plan.freeze_budget_milliseconds),
            units::milliseconds(plan.freeze_predicted_milliseconds)
        ));
    }
    Some(text)
}

/// `64.3MiB, sent 26.1MiB (ratio 0.41)`.
pub fn transferred(bytes: &StatusBytes) -> String {
    let StatusBytes {
        checkpoint,
        sent,
        ratio,
        checkpoint_bytes: _,
        sent_bytes: _,
    } = bytes;
    format!("{checkpoint}, sent {sent} (ratio {ratio})")
}

fn detail(text: &mut String, label: &str, value: &str) {
    text.push_str(&format!("  {label:<LABEL_CHARS$} {value}\n"));
}

fn remedy(text: &mut String, finding: &StatusFinding) {
    if !finding.remedy.is_empty() {
        detail(text, "", &format!("-> {}", finding.remedy));
    }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    }
}
