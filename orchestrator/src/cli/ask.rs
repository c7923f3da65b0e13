//! `migrate pod`: asks for a migration and waits for its end; with `--dry-run` asks for the plan alone and takes the
//! request back.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kube::core::ObjectMeta;

use super::{
    arguments::{PodArguments, PodName},
    cluster::Cluster,
    failure::Failure,
    follow::{Followed, Story, follow},
    output,
    probe::Prober,
    render::summary::summary,
    verdict::{self, EXIT_DONE, EXIT_IN_DOUBT},
};
use crate::k8s::resource::{PodMigration, PodMigrationSpec, REQUESTED_AT};

/// What a client saw while the pod moved (`--probe`).
pub const DOWNTIME: &str = "longshore.dev/downtime";
/// A plan needs two answers from workers, seconds at most.
const PREVIEW_PATIENCE: Duration = Duration::from_secs(60);
/// After the migration's own timeout it is still undone, or, if committed in time, finished: the wait lasts so long.
const UNDO_PATIENCE: Duration = Duration::from_secs(120);

/// Does it.
pub async fn pod(
    cluster: &Cluster,
    flag: Option<&str>,
    arguments: &PodArguments,
) -> Result<ExitCode, Failure> {
    let namespace = namespace(cluster, flag, &arguments.pod)?;
    let wanted = request(&namespace, arguments, now_unix_ns());
    let created = cluster.create(&namespace, &wanted).await?;
    if arguments.dry_run {
        return preview(cluster, &namespace, created, arguments).await;
    }
    if !arguments.wait {
        return asked(&created, arguments);
    }
    let prober = arguments.probe.clone().map(Prober::start);
    let mut story = Story::aloud();
    story.say(&format!("{} asked for", output::name(&created)));
    let patience = arguments.timeout.saturating_add(UNDO_PATIENCE);
    let mut followed = follow(cluster, created, Some(patience), story).await?;
    if let Some(prober) = prober {
        let seen = prober.finish().await;
        if let Followed::Ended(object) = followed {
            followed = Followed::Ended(
                cluster
                    .note(&namespace, object, &[(DOWNTIME, seen.to_string())])
                    .await?,
            );
        }
    }
    finish(followed, arguments)
}

/// The namespace that was written or flagged, or the context's.
fn namespace(cluster: &Cluster, flag: Option<&str>, pod: &PodName) -> Result<String, Failure> {
    match (&pod.namespace, flag) {
        (Some(written), Some(flag)) if written != flag => Err(Failure::TwoNamespaces {
            written: written.clone(),
            flag: flag.to_owned(),
        }),
        (Some(written), _) => Ok(written.clone()),
        (None, _) => Ok(cluster.namespace.clone()),
    }
}

/// The object that asks.
fn request(namespace: &str, arguments: &PodArguments, now_unix_ns: u128) -> PodMigration {
    let PodArguments {
        pod,
        to,
        dry_run,
        timeout,
        wait: _,
        max_freeze,
        rounds,
        keep_checkpoint,
        probe: _,
        output: _,
    } = arguments;
    PodMigration {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", pod.name)),
            namespace: Some(namespace.to_owned()),
            annotations: Some(BTreeMap::from([(
                REQUESTED_AT.to_owned(),
                now_unix_ns.to_string(),
            )])),
            ..Default::default()
        },
        spec: PodMigrationSpec {
            pod: pod.name.clone(),
            target_node: to.clone(),
            max_freeze_milliseconds: max_freeze
                .map(|freeze| u64::try_from(freeze.as_millis()).unwrap_or(u64::MAX)),
            timeout_seconds: Some(whole_seconds(*timeout)),
            dry_run: *dry_run,
            rounds: *rounds,
            keep_checkpoint_seconds: keep_checkpoint.map(whole_seconds),
        },
        status: None,
    }
}

/// Rounded up: half a second asked for is not none.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

fn now_unix_ns() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos())
}

/// `--wait=false`.
fn asked(created: &PodMigration, arguments: &PodArguments) -> Result<ExitCode, Failure> {
    match arguments.output {
        Some(format) => output::one(created, format)?,
        None => output::print(&format!(
            "{} asked for\n{}",
            output::name(created),
            how_to_go_on(created)
        ))?,
    }
    Ok(ExitCode::from(EXIT_DONE))
}

/// `--dry-run`. The request is taken back however the wait ended: a preview that is asked again is another object.
async fn preview(
    cluster: &Cluster,
    namespace: &str,
    created: PodMigration,
    arguments: &PodArguments,
) -> Result<ExitCode, Failure> {
    let followed = follow(
        cluster,
        created.clone(),
        Some(PREVIEW_PATIENCE),
        Story::aloud(),
    )
    .await;
    cluster.delete(namespace, &created).await?;
    let (Followed::Ended(seen)
    | Followed::Gone(seen)
    | Followed::TimedOut(seen)
    | Followed::Interrupted(seen)) = followed?;
    if let Some(format) = arguments.output {
        output::one(&seen, format)?;
    } else if verdict::ended(&verdict::status(&seen)).is_some() {
        output::print(&summary(&seen))?;
    } else {
        eprintln!(
            "no plan was made; is the orchestrator running? kubectl get pods -n longshore-system"
        );
    }
    Ok(verdict::exit(&verdict::status(&seen)))
}

/// Prints the end, or why there is none yet.
pub fn finish(followed: Followed, arguments: &PodArguments) -> Result<ExitCode, Failure> {
    let (object, instead) = told(followed);
    match arguments.output {
        Some(format) => output::one(&object, format)?,
        None => output::print(&summary(&object))?,
    }
    Ok(conclude(&object, instead))
}

/// The object, and what to say when the wait ended before the migration.
pub fn told(followed: Followed) -> (PodMigration, Option<String>) {
    match followed {
        Followed::Ended(object) => (object, None),
        Followed::Gone(object) => {
            let text =
                "its object is gone, and no end was seen; look at the pod: kubectl get pod -o wide"
                    .to_owned();
            (object, Some(text))
        }
        Followed::TimedOut(object) => {
            let text = format!(
                "no longer waiting; the migration goes on\n{}",
                how_to_go_on(&object)
            );
            (object, Some(text))
        }
        Followed::Interrupted(object) => {
            let text = format!(
                "\nno longer watching; the migration goes on\n{}",
                how_to_go_on(&object)
            );
            (object, Some(text))
        }
    }
}

/// The exit code of a wait.
pub fn conclude(object: &PodMigration, instead: Option<String>) -> ExitCode {
    match instead {
        Some(text) => {
            eprintln!("{}", text.trim_end());
            ExitCode::from(EXIT_IN_DOUBT)
        }
        None => verdict::exit(&verdict::status(object)),
    }
}

fn how_to_go_on(object: &PodMigration) -> String {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    format!(
        "  watch it: migrate watch {name} -n {namespace}\n  undo it:  migrate abort {name} -n {namespace}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_carries_what_was_typed_and_when() {
        let arguments = PodArguments {
            pod: "shop/kuard".parse().unwrap(),
            to: "node2".to_owned(),
            dry_run: true,
            timeout: Duration::from_millis(1_500),
            wait: true,
            max_freeze: Some(Duration::from_secs(2)),
            rounds: Some(2),
            keep_checkpoint: Some(Duration::from_millis(500)),
            probe: None,
            output: None,
        };
        let object = request("shop", &arguments, 7);
        assert_eq!(object.metadata.generate_name.as_deref(), Some("kuard-"));
        assert_eq!(object.metadata.annotations.unwrap()[REQUESTED_AT], "7");
        assert_eq!(object.spec.timeout_seconds, Some(2));
        assert_eq!(object.spec.max_freeze_milliseconds, Some(2_000));
        assert!(object.spec.dry_run);
        assert_eq!(object.spec.rounds, Some(2));
        assert_eq!(
            object.spec.keep_checkpoint_seconds,
            Some(1),
            "half a second is not none"
        );
    }
}
