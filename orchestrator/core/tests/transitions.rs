//! Every phase x every command, printed and compared with `transitions.txt`: a change of policy is a readable diff.
//! Write the file anew with `LONGSHORE_BLESS=1 cargo test --workspace --test transitions`.

#[path = "given/mod.rs"]
mod given;

use given::{in_phase, outcomes};
use orchestrator_core::{
    id::Revision,
    migration::{PHASES, Phase},
    refusal::Finding,
    state::{Applied, Command, Rejection},
};

#[test]
fn every_phase_and_every_command_is_as_printed() {
    let mut table = String::from("phase        command                  becomes\n");
    for phase in PHASES {
        let mut commands: Vec<(String, Command)> = outcomes()
            .into_iter()
            .map(|(name, outcome)| {
                let (state, id) = in_phase(phase);
                let revision = state.migrations[&id].revision;
                (
                    name.to_owned(),
                    Command::Report {
                        id,
                        revision,
                        outcome,
                        at_ms: 2,
                        spans: vec![],
                    },
                )
            })
            .collect();
        commands.extend(other_commands(phase));
        for (name, command) in commands {
            let (mut state, id) = in_phase(phase);
            let before = state.migrations[&id].revision;
            let becomes = match state.apply(Revision(100), command) {
                Ok(Applied::Phase(after)) if state.migrations[&id].revision == before => {
                    assert_eq!(after, phase);
                    "stays".to_owned()
                }
                Ok(Applied::Phase(after)) if after == phase => "entered anew".to_owned(),
                Ok(Applied::Phase(after)) => after.to_string(),
                Ok(Applied::Registered(_)) => unreachable!("nothing registers here"),
                Err(Rejection::Stale { .. }) => "refused: stale".to_owned(),
                Err(Rejection::TooLate(_)) => "refused: too late".to_owned(),
                Err(Rejection::NotItsNode(_)) => "refused: not its node".to_owned(),
                Err(Rejection::NoSuchMigration(_)) => unreachable!("it is there"),
            };
            table.push_str(&format!("{:<12} {name:<24} {becomes}\n", phase.to_string()));
        }
    }
    if std::env::var_os("LONGSHORE_BLESS").is_some() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test's own file is no input of the core"
        )]
        // Of the checkout that runs the test, which need not be the one that built it.
        let checkout = std::env::var("CARGO_MANIFEST_DIR").unwrap();
        std::fs::write(format!("{checkout}/tests/transitions.txt"), &table).unwrap();
        return;
    }
    let expected = include_str!("transitions.txt");
    assert!(
        table == expected,
        "the table changed; if that is meant, bless it:\n{table}"
    );
}

fn other_commands(phase: Phase) -> Vec<(String, Command)> {
    let mut commands = Vec::new();
    let (_, id) = in_phase(phase);
    commands.push((
        "abort".to_owned(),
        Command::Abort {
            id: id.clone(),
            reason: Finding::new("Aborted", "the user", ""),
            at_ms: 2,
        },
    ));
    for (name, node) in [("source is dead", "node1"), ("target is dead", "node2")] {
        let command = Command::DeclareDead {
            id: id.clone(),
            node: node.into(),
            at_ms: 2,
        };
        commands.push((name.to_owned(), command));
    }
    commands.push(("let go".to_owned(), Command::LetGo { id: id.clone() }));
    commands.push((
        "stale report".to_owned(),
        Command::Report {
            id,
            revision: Revision(1),
            outcome: outcomes().remove(0).1,
            at_ms: 2,
            spans: vec![],
        },
    ));
    commands
}
