//! Lists: of migrations, and of what each node can do.

use super::units;
use crate::{
    cli::verdict,
    k8s::resource::{
        MigrationNode, MigrationNodeSpec, PodMigration, StatusFinding, StoreTaskStatus, StoreWhat,
    },
};

/// Between columns, as kubectl has it.
const GAP: &str = "   ";

/// What of a list is shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Columns {
    /// The namespace first.
    pub namespace: bool,
    /// The sizes too.
    pub wide: bool,
}

/// Migrations, one a line; ages at `now` (seconds since 1970).
pub fn migrations(objects: &[PodMigration], columns: Columns, now: i64) -> String {
    let Columns { namespace, wide } = columns;
    let mut header = vec!["NAME", "POD", "FROM", "TO", "PHASE", "FREEZE", "AGE"];
    if namespace {
        header.insert(0, "NAMESPACE");
    }
    if wide {
        header.extend(["BYTES", "SENT", "RATIO"]);
    }
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for object in objects {
        let status = verdict::status(object);
        let mut row = vec![
            object.metadata.name.clone().unwrap_or_default(),
            object.spec.pod.clone(),
            status.source_node.unwrap_or_default(),
            object.spec.target_node.clone(),
            phase_cell(&status.phase, status.in_doubt.is_some()),
            status.freeze.unwrap_or_default(),
            age_cell(object, now),
        ];
        if namespace {
            row.insert(0, object.metadata.namespace.clone().unwrap_or_default());
        }
        if wide {
            let bytes = status.bytes.unwrap_or_default();
            row.extend([bytes.checkpoint, bytes.sent, bytes.ratio]);
        }
        rows.push(row);
    }
    aligned(&rows)
}

/// What lies in the store, then what is wrong with it and what was done.
pub fn stored(status: &StoreTaskStatus, what: StoreWhat) -> String {
    let mut header = vec![
        "MIGRATION",
        "OBJECT",
        "OWNER",
        "CHECKPOINTS",
        "OBJECTS",
        "BYTES",
    ];
    match what {
        StoreWhat::Stats => {}
        StoreWhat::Check => header.push("LOOSE"),
        StoreWhat::Collect => header.push("REMOVED"),
    }
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for one in &status.migrations {
        let mut row = vec![
            one.id.clone(),
            one.object.clone(),
            one.owner.clone(),
            one.checkpoints.to_string(),
            one.objects.to_string(),
            units::bytes(one.bytes),
        ];
        match what {
            StoreWhat::Stats => {}
            StoreWhat::Check => {
                row.push(one.loose.map_or(String::new(), |loose| loose.to_string()))
            }
            StoreWhat::Collect => row.push(if one.removed { "yes" } else { "" }.to_owned()),
        }
        rows.push(row);
    }
    let mut text = if status.migrations.is_empty() {
        String::new()
    } else {
        aligned(&rows)
    };
    for problem in &status.problems {
        text.push_str(&format!("wrong: {problem}\n"));
    }
    text.push_str(&format!(
        "{} objects, {}",
        status.total_objects,
        units::bytes(status.total_bytes)
    ));
    match what {
        StoreWhat::Stats => {}
        StoreWhat::Check if status.problems.is_empty() => {
            text.push_str("; every checkpoint is whole")
        }
        StoreWhat::Check => text.push_str(&format!("; {} things are wrong", status.problems.len())),
        StoreWhat::Collect => text.push_str(&format!(
            "; removed {} objects, {}",
            status.removed_objects,
            units::bytes(status.removed_bytes)
        )),
    }
    text.push('\n');
    text
}

/// What each node can do, then why not, word for word.
pub fn nodes(nodes: &[MigrationNode]) -> String {
    let mut rows = vec![
        [
            "NODE",
            "WORKER",
            "CHECKPOINT",
            "RESTORE",
            "RUNTIME",
            "CRIU",
            "KERNEL",
            "CGROUPS",
            "ARCH",
            "FREE",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let mut reasons = String::new();
    for node in nodes {
        let MigrationNodeSpec {
            checkpoint,
            restore,
            connected,
            runtime,
            criu,
            kernel,
            cgroups,
            architecture,
            free_bytes,
            findings,
        } = &node.spec;
        let name = node.metadata.name.clone().unwrap_or_default();
        for finding in findings {
            reasons.push_str(&format!("\n{name}: {}", sentence(finding)));
            if !finding.remedy.is_empty() {
                reasons.push_str(&format!("\n  -> {}", finding.remedy));
            }
            reasons.push('\n');
        }
        rows.push(vec![
            name,
            if *connected { "connected" } else { "away" }.to_owned(),
            checkpoint.clone(),
            restore.clone(),
            runtime.clone(),
            criu.clone(),
            kernel.clone(),
            cgroups.clone(),
            architecture.clone(),
            units::bytes(*free_bytes),
        ]);
    }
    aligned(&rows) + &reasons
}

/// `Code: message`.
pub fn sentence(finding: &StatusFinding) -> String {
    let StatusFinding {
        code,
        message,
        remedy: _,
    } = finding;
    format!("{code}: {message}")
}

fn phase_cell(phase: &str, in_doubt: bool) -> String {
    match (phase, in_doubt) {
        ("", _) => "Asked".to_owned(),
        (phase, true) => format!("{phase} (in doubt)"),
        (phase, false) => phase.to_owned(),
    }
}

fn age_cell(object: &PodMigration, now: i64) -> String {
    match &object.metadata.creation_timestamp {
        Some(created) => {
            units::age(u64::try_from(now.saturating_sub(created.0.as_second())).unwrap_or_default())
        }
        None => String::new(),
    }
}

/// Columns as wide as their widest cell; an empty cell is shown as `-`, so that scripts can count fields.
fn aligned(rows: &[Vec<String>]) -> String {
    let shown = |cell: &String| {
        if cell.is_empty() {
            "-".to_owned()
        } else {
            cell.clone()
        }
    };
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| shown(cell).chars().count())
                .max()
                .unwrap_or_default()
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{:<width$}", shown(cell), width = *width))
            .collect();
        text.push_str(line.join(GAP).trim_end());
        text.push('\n');
    }
    text
}
