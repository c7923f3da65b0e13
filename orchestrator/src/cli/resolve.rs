//! `migrate resolve`: a person says that a node is dead, where Longshore can't know and therefore waits.
//!
//! Longshore never takes silence for death: a node that is only cut off still holds its pod. Somebody who has powered
//! it off knows more, and says so here. The word is written on the `PodMigration`, the orchestrator takes it from there.
//! A node whose worker answers is not dead, and is refused here and by the orchestrator.

use std::{
    io::{BufRead, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use super::{
    arguments::ResolveArguments,
    ask,
    cluster::Cluster,
    failure::Failure,
    follow::{Story, follow},
    output,
    render::summary::summary,
    verdict::{self, EXIT_DONE, EXIT_REFUSED, Standing},
};
use crate::k8s::resource::{DEAD_NODES, PodMigration};

/// What comes after the word takes as long as a restore and its tidying up, twice if the first one fails.
const PATIENCE: Duration = Duration::from_secs(180);

/// Does it.
pub async fn resolve(cluster: &Cluster, arguments: &ResolveArguments) -> Result<ExitCode, Failure> {
    let object = cluster.get(&arguments.name).await?;
    let node = match subject(&object, arguments.source_is_dead) {
        Subject::Node(node) => node,
        Subject::Nothing(why) => {
            output::print(&format!("nothing to resolve: {why}\n"))?;
            return Ok(ExitCode::from(EXIT_DONE));
        }
    };
    let nodes = cluster.nodes().await?;
    let answers = nodes
        .iter()
        .any(|known| known.metadata.name.as_deref() == Some(&node) && known.spec.connected);
    if answers {
        return refuse(&format!("node {node} is not dead: its worker answers"));
    }
    if !arguments.yes && !confirmed(&node)? {
        return refuse("nothing was declared; to do it without being asked: --yes");
    }
    let noted = cluster
        .note(
            &cluster.namespace,
            object.clone(),
            &[(DEAD_NODES, with(&object, &node))],
        )
        .await?;
    let followed = follow(cluster, noted, Some(PATIENCE), Story::aloud()).await?;
    let (object, instead) = ask::told(followed);
    output::print(&summary(&object))?;
    Ok(ask::conclude(&object, instead))
}

enum Subject {
    Node(String),
    Nothing(String),
}

/// Which node the flag means.
fn subject(object: &PodMigration, source: bool) -> Subject {
    let status = verdict::status(object);
    match verdict::standing(&status) {
        Standing::In(phase) if phase.ended() => {
            Subject::Nothing(format!("{phase}: {}", verdict::explained(phase)))
        }
        Standing::Asked => Subject::Nothing("nobody has taken it up yet".to_owned()),
        Standing::In(_) | Standing::Unreadable(_) if !source => {
            Subject::Node(object.spec.target_node.clone())
        }
        Standing::In(_) | Standing::Unreadable(_) => match status.source_node {
            Some(node) => Subject::Node(node),
            None => Subject::Nothing("it has no source node".to_owned()),
        },
    }
}

/// Those declared before, and this one.
fn with(object: &PodMigration, node: &str) -> String {
    let annotations = object.metadata.annotations.as_ref();
    let before = annotations.and_then(|all| all.get(DEAD_NODES));
    let mut names: Vec<&str> = before
        .iter()
        .flat_map(|names| names.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty() && *name != node)
        .collect();
    names.push(node);
    names.join(",")
}

fn refuse(why: &str) -> Result<ExitCode, Failure> {
    eprintln!("refused: {why}");
    Ok(ExitCode::from(EXIT_REFUSED))
}

/// The node's name, typed: yes is typed too easily.
fn confirmed(node: &str) -> Result<bool, Failure> {
    let prompt = |source| Failure::Process {
        doing: "ask for the node's name",
        source,
    };
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let mut out = std::io::stderr();
    write!(out, "{}", warning(node)).map_err(prompt)?;
    out.flush().map_err(prompt)?;
    let mut typed = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut typed)
        .map_err(prompt)?;
    Ok(typed.trim() == node)
}

/// What the word means.
fn warning(node: &str) -> String {
    format!(
        "\
Declaring {node} dead means: Longshore goes on without it. The pod is restored elsewhere from its checkpoint, or, where
there is none yet, ends with its node. If {node} is alive after all, only cut off, then what it still holds stays frozen
until its worker is back and is told to destroy it; but whatever thaws it there by hand makes a second copy of the pod.
Do this only when {node} is powered off, destroyed or otherwise fenced.
Type the node's name to go on: "
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::golden;

    fn recorded(phase: &str) -> PodMigration {
        let mut object = golden::recorded("succeeded");
        if let Some(status) = &mut object.status {
            phase.clone_into(&mut status.phase);
        }
        object
    }

    #[test]
    fn the_flags_mean_the_nodes_of_the_migration() {
        let object = recorded("Restoring");
        let source = verdict::status(&object).source_node.unwrap();
        assert!(matches!(subject(&object, true), Subject::Node(node) if node == source));
        let target = object.spec.target_node.clone();
        assert!(matches!(subject(&object, false), Subject::Node(node) if node == target));
    }

    #[test]
    fn what_has_ended_needs_no_word() {
        let Subject::Nothing(why) = subject(&recorded("Succeeded"), true) else {
            panic!("it has ended");
        };
        assert!(why.contains("Succeeded"), "{why}");
    }

    #[test]
    fn a_second_node_is_added_and_none_is_named_twice() {
        let mut object = recorded("Restoring");
        assert_eq!(with(&object, "node1"), "node1");
        let note = (DEAD_NODES.to_owned(), "node1,node3".to_owned());
        object.metadata.annotations = Some([note].into());
        assert_eq!(with(&object, "node2"), "node1,node3,node2");
        assert_eq!(with(&object, "node1"), "node3,node1");
    }
}
