//! Recorded objects in, text out: `golden/*.json` and what each renderer makes of them. `GOLDEN=write` renews the text
//! files; a diff of them is read like code.

use std::path::{Path, PathBuf};

use super::render::{
    Ink,
    describe::describe,
    news::{News, live},
    summary::summary,
    table,
};
use crate::k8s::resource::{MigrationNode, PodMigration};

const RECORDED: [&str; 6] = [
    "succeeded",
    "refused",
    "rolled-back",
    "previewed",
    "in-doubt",
    "asked",
];

/// Of the checkout that runs the test, which need not be the one that built it.
fn folder() -> PathBuf {
    let checkout = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    Path::new(&checkout).join("src/cli/golden")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(folder().join(file)).unwrap_or_default()
}

/// A recorded migration.
pub fn recorded(name: &str) -> PodMigration {
    serde_json::from_str(&read(&format!("{name}.json"))).unwrap()
}

fn check(file: &str, text: &str) {
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        std::fs::write(folder().join(file), text).unwrap();
    }
    assert_eq!(read(file), text, "golden/{file}; GOLDEN=write renews it");
}

#[test]
fn an_end_is_summed_up_as_recorded() {
    for name in RECORDED {
        check(&format!("{name}.summary.txt"), &summary(&recorded(name)));
    }
}

#[test]
fn a_migration_is_described_as_recorded() {
    for name in RECORDED {
        check(
            &format!("{name}.describe.txt"),
            &describe(&recorded(name), Ink::Plain),
        );
    }
}

#[test]
fn the_story_is_told_as_recorded() {
    for name in RECORDED {
        let object = recorded(name);
        let mut lines = News::default().of(&object);
        lines.push(format!("live: {}", live(&object)));
        check(&format!("{name}.news.txt"), &(lines.join("\n") + "\n"));
    }
}

#[test]
fn lists_are_printed_as_recorded() {
    let all = RECORDED.map(recorded);
    // 2026-11-24T11:10:00Z, ten minutes after the recorded objects were made.
    let now = 1_795_518_600;
    let narrow = table::migrations(&all, table::Columns::default(), now);
    let wide = table::migrations(
        &all,
        table::Columns {
            namespace: true,
            wide: true,
        },
        now,
    );
    check("get.txt", &format!("{narrow}\n{wide}"));
    let nodes: Vec<MigrationNode> = serde_json::from_str(&read("nodes.json")).unwrap();
    check("nodes.txt", &table::nodes(&nodes));
}
