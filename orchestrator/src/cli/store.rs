//! `migrate store`: what lies in the store, whether it is whole, and clearing it up. The orchestrator answers, through a
//! worker, which alone has the store's keys; this command asks by a `StoreTask` and waits.

use std::{process::ExitCode, time::Duration};

use tokio::time::Instant;

use super::{
    arguments::{Format, StoreCommand},
    cluster::Cluster,
    failure::Failure,
    output,
    render::table,
    verdict::{EXIT_DONE, EXIT_ERROR, EXIT_IN_DOUBT},
};
use crate::k8s::resource::{StoreTask, StoreTaskSpec, StoreTaskStatus, StoreWhat};

const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Checking 60 GB takes ten minutes.
const ANSWERED_WITHIN: Duration = Duration::from_secs(660);

/// Does it.
pub async fn store(cluster: &Cluster, command: &StoreCommand) -> Result<ExitCode, Failure> {
    let (what, unknown_too, format) = match command {
        StoreCommand::Stats { output } => (StoreWhat::Stats, false, *output),
        StoreCommand::Check { output } => (StoreWhat::Check, false, *output),
        StoreCommand::Gc { unknown, output } => (StoreWhat::Collect, *unknown, *output),
    };
    let asked = cluster
        .ask_store(StoreTaskSpec { what, unknown_too })
        .await?;
    let name = asked.metadata.name.unwrap_or_default();
    let began = Instant::now();
    let answered = loop {
        let task = cluster.store_task(&name).await?;
        if task
            .status
            .as_ref()
            .is_some_and(|status| !status.phase.is_empty())
        {
            break task;
        }
        if began.elapsed() > ANSWERED_WITHIN {
            eprintln!(
                "no answer within {} s; it goes on without this command: kubectl get storetask {name}",
                ANSWERED_WITHIN.as_secs()
            );
            return Ok(ExitCode::from(EXIT_IN_DOUBT));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    cluster.forget_store_task(&name).await;
    told(&answered, what, format)
}

fn told(task: &StoreTask, what: StoreWhat, format: Option<Format>) -> Result<ExitCode, Failure> {
    let status = task.status.clone().unwrap_or_default();
    match format {
        Some(format) => output::one(task, format)?,
        None if status.phase == "Done" => output::print(&table::stored(&status, what))?,
        None => eprintln!("error: {}", status.message),
    }
    Ok(ExitCode::from(code(&status)))
}

fn code(status: &StoreTaskStatus) -> u8 {
    if status.phase == "Done" && status.problems.is_empty() {
        EXIT_DONE
    } else {
        EXIT_ERROR
    }
}
