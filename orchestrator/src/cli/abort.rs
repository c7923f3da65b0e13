//! `migrate abort`: deletes the object, which asks for an undo, and waits for what became of it. Once the pod may run
//! on the target nothing is deleted, and the user is told so: an abort that can't be obeyed must not look obeyed.

use std::process::ExitCode;

use orchestrator_core::migration::Phase;

use super::{
    ask,
    cluster::Cluster,
    failure::Failure,
    follow::{Followed, Story, follow},
    output,
    render::summary::summary,
    verdict::{self, EXIT_DONE, Standing},
};
use crate::k8s::resource::PodMigration;

/// Does it.
pub async fn abort(cluster: &Cluster, name: &str) -> Result<ExitCode, Failure> {
    let object = cluster.get(name).await?;
    match before(&object) {
        Before::Delete => cluster.delete(&cluster.namespace, &object).await?,
        Before::AlreadyUndoing => {}
        Before::Over(why) => {
            output::print(&format!("nothing to abort: {why}\n"))?;
            return Ok(ExitCode::from(EXIT_DONE));
        }
        Before::TooLate(why) => return Err(Failure::TooLate { why }),
    }
    let followed = follow(cluster, object, None, Story::aloud()).await?;
    if let Followed::Gone(object) = &followed
        && verdict::standing(&verdict::status(object)) == Standing::Asked
    {
        output::print(&format!(
            "{} was taken back before anybody took it up\n",
            output::name(object)
        ))?;
        return Ok(ExitCode::from(EXIT_DONE));
    }
    let (object, instead) = ask::told(followed);
    output::print(&summary(&object))?;
    if instead.is_some() {
        return Ok(ask::conclude(&object, instead));
    }
    after(&object)
}

#[derive(Debug, PartialEq, Eq)]
enum Before {
    Delete,
    AlreadyUndoing,
    Over(String),
    TooLate(String),
}

/// What an abort means where it stands.
fn before(object: &PodMigration) -> Before {
    let explained = |phase: Phase| format!("{phase}: {}", verdict::explained(phase));
    match verdict::standing(&verdict::status(object)) {
        // Nobody we know of acts on it: the delete is the orchestrator's to judge.
        Standing::Asked | Standing::Unreadable(_) => Before::Delete,
        Standing::In(phase) if phase.abortable() => Before::Delete,
        Standing::In(Phase::Releasing) => Before::AlreadyUndoing,
        Standing::In(phase @ Phase::Succeeded) => Before::TooLate(explained(phase)),
        Standing::In(phase) if phase.ended() => Before::Over(explained(phase)),
        Standing::In(phase) => Before::TooLate(explained(phase)),
    }
}

/// What became of the abort.
fn after(object: &PodMigration) -> Result<ExitCode, Failure> {
    match verdict::standing(&verdict::status(object)) {
        Standing::In(phase @ (Phase::Succeeded | Phase::Rescued)) => Err(Failure::TooLate {
            why: format!("it had committed; {}", verdict::explained(phase)),
        }),
        Standing::In(_) | Standing::Asked | Standing::Unreadable(_) => {
            Ok(ExitCode::from(EXIT_DONE))
        }
    }
}

#[cfg(test)]
mod tests {
    use orchestrator_core::migration::PHASES;

    use super::*;
    use crate::cli::golden;

    #[test]
    fn nothing_is_deleted_once_the_target_may_run() {
        let mut object = golden::recorded("succeeded");
        for phase in PHASES {
            if let Some(status) = &mut object.status {
                status.phase = phase.to_string();
            }
            assert_eq!(
                before(&object) == Before::Delete,
                phase.abortable(),
                "{phase}"
            );
        }
        for phase in ["Restoring", "Rescuing", "Retiring", "Succeeded"] {
            if let Some(status) = &mut object.status {
                status.phase = phase.to_owned();
            }
            assert!(matches!(before(&object), Before::TooLate(_)), "{phase}");
        }
    }
}
