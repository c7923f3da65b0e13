//! Everything about one migration.

use super::{Ink, summary, table::sentence, units, waterfall};
use crate::{
    cli::verdict::{self, Standing},
    k8s::resource::{
        PodMigration, PodMigrationSpec, PodMigrationStatus, StatusCondition, StatusFinding,
        StatusPlan,
    },
};

/// Width of the first column of the header.
const LABEL_CHARS: usize = 12;
/// Lines of numbers are broken before this column.
const LINE_CHARS: usize = 100;

/// The page.
pub fn describe(object: &PodMigration, ink: Ink) -> String {
    let status = verdict::status(object);
    let mut text = header(object, &status);
    section(&mut text, ink, "Refused because", &status.refusals);
    if let Some(reason) = &status.reason {
        section(&mut text, ink, "Why", std::slice::from_ref(reason));
    }
    if let Some(doubt) = &status.in_doubt {
        let title = format!(
            "In doubt since {} (asked {} times)",
            doubt.since, doubt.asked
        );
        section(&mut text, ink, &title, std::slice::from_ref(&doubt.what));
    }
    if let Some(stuck) = &status.stuck {
        section(
            &mut text,
            ink,
            "Last failure of a step that is asked again",
            std::slice::from_ref(stuck),
        );
    }
    if let Some(ended) = &status.rounds_ended {
        section(
            &mut text,
            ink,
            "No more rounds were made",
            std::slice::from_ref(ended),
        );
    }
    if let Some(left_over) = &status.left_over {
        section(
            &mut text,
            ink,
            "Still to be cleared away",
            std::slice::from_ref(left_over),
        );
    }
    section(&mut text, ink, "Warnings", &status.warnings);
    conditions(&mut text, ink, &status.conditions);
    let picture = waterfall::waterfall(&status, ink);
    if !picture.is_empty() {
        text.push_str(&format!("\n{}\n{picture}", ink.loud("Where the time went")));
    }
    numbers(&mut text, ink, &status);
    text
}

fn header(object: &PodMigration, status: &PodMigrationStatus) -> String {
    let mut text = String::new();
    let mut field = |label: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("{:<LABEL_CHARS$} {value}\n", format!("{label}:")));
        }
    };
    field("Name", object.metadata.name.clone().unwrap_or_default());
    field(
        "Namespace",
        object.metadata.namespace.clone().unwrap_or_default(),
    );
    field("Pod", object.spec.pod.clone());
    field(
        "Route",
        format!(
            "{} -> {}",
            status.source_node.as_deref().unwrap_or("?"),
            object.spec.target_node
        ),
    );
    field("Dead nodes", status.dead_nodes.join(", "));
    field("Asked", asked(&object.spec));
    field("Phase", phase(object, status));
    field("Freeze", summary::freeze(status).unwrap_or_default());
    field(
        "Downtime",
        summary::downtime(object).unwrap_or_default().to_owned(),
    );
    field(
        "Checkpoint",
        status
            .bytes
            .as_ref()
            .map(summary::transferred)
            .unwrap_or_default(),
    );
    field("Sent ahead", summary::sent_ahead(status));
    let (how, predicted) = status.plan.as_ref().map(plan).unwrap_or_default();
    field("Plan", how);
    field("Predicted", predicted);
    field(
        "Containers",
        status
            .plan
            .as_ref()
            .map(|plan| plan.containers.join(", "))
            .unwrap_or_default(),
    );
    // The object's UID is the migration's id, and without its dashes the trace id.
    field(
        "Trace",
        object
            .metadata
            .uid
            .as_deref()
            .unwrap_or_default()
            .replace('-', ""),
    );
    text
}

/// The limits that were asked for.
fn asked(spec: &PodMigrationSpec) -> String {
    let PodMigrationSpec {
        pod: _,
        target_node: _,
        max_freeze_milliseconds,
        timeout_seconds,
        dry_run,
        rounds,
        keep_checkpoint_seconds,
    } = spec;
    let freeze = max_freeze_milliseconds.map(units::milliseconds);
    let timeout = timeout_seconds.map(|s| units::milliseconds(s.saturating_mul(1_000)));
    let keep = keep_checkpoint_seconds.map(|s| units::milliseconds(s.saturating_mul(1_000)));
    let limits = [
        dry_run.then(|| "only a plan".to_owned()),
        freeze.map(|freeze| format!("freeze at most {freeze}")),
        timeout.map(|timeout| format!("committed within {timeout}")),
        rounds.map(|rounds| format!("at most {rounds} rounds before it")),
        keep.map(|keep| format!("checkpoint kept for {keep}")),
    ];
    limits.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn phase(object: &PodMigration, status: &PodMigrationStatus) -> String {
    let known = match verdict::standing(status) {
        Standing::Asked => "not taken up yet".to_owned(),
        Standing::In(phase) => format!("{phase}: {}", verdict::explained(phase)),
        Standing::Unreadable(word) => format!("{word} (unknown to this version of migrate)"),
    };
    let aborting = object.metadata.deletion_timestamp.is_some() && verdict::ended(status).is_none();
    if aborting {
        known + " (an abort was asked for)"
    } else {
        known
    }
}

/// How, and with which numbers.
fn plan(plan: &StatusPlan) -> (String, String) {
    let StatusPlan {
        handover,
        checkpoint_via,
        restore_via,
        containers: _,
        freeze_budget_milliseconds,
        freeze_predicted_milliseconds,
        checkpoint_predicted_bytes,
        rounds_max,
        base,
    } = plan;
    let rounds = summary::planned_rounds(*rounds_max, base.as_deref());
    let how =
        format!("{handover}, checkpoint via {checkpoint_via}, restore via {restore_via}, {rounds}");
    let predicted = format!(
        "{} in a freeze of {} (at most {})",
        units::bytes(*checkpoint_predicted_bytes),
        units::milliseconds(*freeze_predicted_milliseconds),
        units::milliseconds(*freeze_budget_milliseconds),
    );
    (how, predicted)
}

fn section(text: &mut String, ink: Ink, title: &str, findings: &[StatusFinding]) {
    if findings.is_empty() {
        return;
    }
    text.push_str(&format!("\n{}\n", ink.loud(title)));
    for finding in findings {
        text.push_str(&format!("  {}\n", sentence(finding)));
        if !finding.remedy.is_empty() {
            text.push_str(&format!("    -> {}\n", finding.remedy));
        }
    }
}

fn conditions(text: &mut String, ink: Ink, conditions: &[StatusCondition]) {
    if conditions.is_empty() {
        return;
    }
    text.push_str(&format!("\n{}\n", ink.loud("Conditions")));
    for condition in conditions {
        let StatusCondition {
            r#type,
            status,
            reason,
            message,
            last_transition_time,
        } = condition;
        text.push_str(
            format!("  {type:<10} {status:<8} {reason:<12} {last_transition_time}  {message}")
                .trim_end(),
        );
        text.push('\n');
    }
}

/// What the picture has no room for: counts, and CRIU's own statistics.
fn numbers(text: &mut String, ink: Ink, status: &PodMigrationStatus) {
    let mut lines = String::new();
    for span in &status.trace {
        let facts: Vec<String> = span
            .attributes
            .iter()
            .filter(|(key, _)| *key != "bytes")
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        if facts.is_empty() {
            continue;
        }
        let mut line = format!("  {} ({}):", span.name, span.place);
        for fact in facts {
            if line.chars().count() + 1 + fact.chars().count() > LINE_CHARS {
                lines.push_str(&line);
                lines.push('\n');
                line = "   ".to_owned();
            }
            line.push(' ');
            line.push_str(&fact);
        }
        lines.push_str(&line);
        lines.push('\n');
    }
    if !lines.is_empty() {
        text.push_str(&format!("\n{}\n{lines}", ink.loud("Numbers")));
    }
}
