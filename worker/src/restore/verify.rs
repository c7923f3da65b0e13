//! Restored, or started afresh? The one question a migration must not get wrong.
//!
//! The proof is the runtime's own record. containerd writes the annotations `restored=true` and `checkpointImage` on a
//! container only in the code path that imports a checkpoint, and a container made there can only be started by a
//! restore (its stored status says so, also over a restart of containerd): it runs restored or does not run. So a
//! running container with our reference in `checkpointImage` came from this checkpoint.
//!
//! A later attempt counts, too: a failed restore is tried again by the kubelet, and after a reboot the whole pod is
//! restored again. What an earlier attempt did is lost whatever we say; giving up this one would lose what it has done
//! since. Only a container that went back to the checkpoint alone, while another one ran on, is no success: the two have
//! never stood like that together. An attempt that never ran has `started_at` 0: containerd sets it last, when the task
//! runs, and leaves it alone when that fails, by a restore or not (seen with 2.1.9: 1970 beside the reason StartError).
//! Containers are told apart by label, because containerd 2.1 writes a wrong container name in the annotations of
//! restored ones.
//!
//! What was weighed and left: CRIU's restore.log and the bundle are deleted by the shim on success, the process tree
//! looks the same either way, and the image of the running container is the base image in both cases.

use proto::{
    cri::{self, ContainerState},
    worker::{Verified, VerifiedContainer, Verify, verified_container::Origin},
};

use super::RestoreError;
use crate::{images::Images, spans::by_our_clock};

const NAME_LABEL: &str = "io.kubernetes.container.name";

/// Looks at every container of the pod.
pub async fn verify(
    images: &Images,
    prefix: &str,
    request: &Verify,
) -> Result<Verified, RestoreError> {
    let Some(pod) = &request.pod else {
        return Ok(Verified::default());
    };
    let known = images.containers_of(&pod.uid).await?;
    let mut all = Vec::with_capacity(pod.containers.len());
    for container in &pod.containers {
        let mut attempts: Vec<_> = known
            .iter()
            .filter(|seen| seen.labels.get(NAME_LABEL) == Some(&container.name))
            .collect();
        attempts.sort_by_key(|seen| {
            let attempt = seen.metadata.as_ref().map_or(0, |known| known.attempt);
            (attempt, seen.created_at)
        });
        let mut statuses = Vec::with_capacity(attempts.len());
        for attempt in attempts {
            statuses.push(images.container_status(&attempt.id).await?);
        }
        all.push((container.name.clone(), statuses));
    }
    let mut containers = judge_pod(prefix, &all);
    // The runtime's, by the node's clock.
    for judged in &mut containers {
        if judged.running_since_unix_ns > 0 {
            judged.running_since_unix_ns = by_our_clock(judged.running_since_unix_ns);
        }
    }
    Ok(Verified { containers })
}

/// What the attempts at a pod's containers prove.
pub fn judge_pod(
    prefix: &str,
    containers: &[(String, Vec<cri::ContainerStatus>)],
) -> Vec<VerifiedContainer> {
    let judged = containers.iter().enumerate().map(|(n, (name, attempts))| {
        let verdict = judge(name, prefix, attempts);
        let others = containers.iter().enumerate().filter(|(m, _)| *m != n);
        let mut others = others.filter_map(|(_, (_, other))| other.last());
        let ended = earlier_ended(attempts);
        if verdict.origin() != Origin::Restored || others.all(|other| other.started_at >= ended) {
            return verdict;
        }
        VerifiedContainer {
            origin: Origin::Broken.into(),
            detail: "it ended and was restored again while another container ran on".to_owned(),
            ..verdict
        }
    });
    judged.collect()
}

/// When the last of the earlier attempts that ran had ended; 0 without one. Those that the runtime has forgotten had ended
/// before the first that it knows was made.
fn earlier_ended(attempts: &[cri::ContainerStatus]) -> i64 {
    let Some((status, earlier)) = attempts.split_last() else {
        return 0;
    };
    let attempt = status.metadata.as_ref().map_or(0, |known| known.attempt);
    let all_known = usize::try_from(attempt).is_ok_and(|attempt| attempt == earlier.len());
    let first = attempts.first().filter(|_| !all_known);
    let ran = earlier.iter().filter(|known| known.started_at > 0);
    ran.map(|known| known.finished_at)
        .chain(first.map(|first| first.created_at))
        .max()
        .unwrap_or(0)
}

/// What the attempts at one container prove, the newest last. `prefix` is what references of this migration begin with.
fn judge(name: &str, prefix: &str, attempts: &[cri::ContainerStatus]) -> VerifiedContainer {
    let Some(status) = attempts.last() else {
        return verdict(
            name,
            Origin::NotYet,
            "the runtime has no container of this name yet".to_owned(),
            None,
        );
    };
    let annotation = |key: &str| {
        status
            .annotations
            .get(key)
            .map(String::as_str)
            .unwrap_or_default()
    };
    let image = annotation("checkpointImage");
    let from_checkpoint = annotation("restored") == "true" && image.starts_with(prefix);
    let why = |what: &str| {
        let cri::ContainerStatus {
            reason,
            message,
            exit_code,
            ..
        } = status;
        format!("{what}: {reason} (exit code {exit_code}) {message}")
            .trim()
            .to_owned()
    };
    let (origin, detail) = match (status.state(), from_checkpoint) {
        (ContainerState::ContainerRunning, true) => (Origin::Restored, String::new()),
        (ContainerState::ContainerRunning | ContainerState::ContainerExited, false)
            if status.started_at > 0 =>
        {
            (
                Origin::Started,
                "it was started from its image, not restored".to_owned(),
            )
        }
        (ContainerState::ContainerExited, _) => {
            (Origin::Broken, why("its restore failed or it ended"))
        }
        (ContainerState::ContainerCreated, true) => {
            (Origin::NotYet, "its restore is under way".to_owned())
        }
        (ContainerState::ContainerCreated, false) => (
            Origin::NotYet,
            "it was made without the checkpoint and is not started yet".to_owned(),
        ),
        (ContainerState::ContainerRunning, false) => {
            (Origin::Started, "it runs, but was not restored".to_owned())
        }
        (ContainerState::ContainerUnknown, _) => (
            Origin::NotYet,
            "the runtime does not know the container's state".to_owned(),
        ),
    };
    verdict(name, origin, detail, Some(status))
}

fn verdict(
    name: &str,
    origin: Origin,
    detail: String,
    status: Option<&cri::ContainerStatus>,
) -> VerifiedContainer {
    VerifiedContainer {
        name: name.to_owned(),
        origin: origin.into(),
        detail,
        container_id: status.map(|status| status.id.clone()).unwrap_or_default(),
        running_since_unix_ns: status
            .map_or(0, |status| u64::try_from(status.started_at).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const PREFIX: &str = "localhost:5717/longshore/checkpoint/m/";

    fn status(state: ContainerState, image: Option<&str>, attempt: u32) -> cri::ContainerStatus {
        let annotations = image.map(|image| {
            HashMap::from([
                ("restored".to_owned(), "true".to_owned()),
                ("checkpointImage".to_owned(), image.to_owned()),
            ])
        });
        cri::ContainerStatus {
            id: "c1".to_owned(),
            metadata: Some(cri::ContainerMetadata {
                name: "web".to_owned(),
                attempt,
            }),
            state: state.into(),
            started_at: if state == ContainerState::ContainerCreated {
                0
            } else {
                7
            },
            reason: "StartError".to_owned(),
            message: "criu failed".to_owned(),
            annotations: annotations.unwrap_or_default(),
            ..cri::ContainerStatus::default()
        }
    }

    fn origin(status: Option<cri::ContainerStatus>) -> Origin {
        judge("web", PREFIX, status.as_slice()).origin()
    }

    fn ours() -> String {
        format!("{PREFIX}web:r9")
    }

    #[test]
    fn running_from_our_image_at_the_first_attempt_is_restored() {
        assert_eq!(
            origin(Some(status(
                ContainerState::ContainerRunning,
                Some(&ours()),
                0
            ))),
            Origin::Restored
        );
    }

    #[test]
    fn running_from_another_migrations_image_is_not_restored() {
        let other = "localhost:5717/longshore/checkpoint/other/web:r9";
        assert_eq!(
            origin(Some(status(
                ContainerState::ContainerRunning,
                Some(other),
                0
            ))),
            Origin::Started
        );
    }

    #[test]
    fn running_without_the_runtimes_mark_was_started() {
        assert_eq!(
            origin(Some(status(ContainerState::ContainerRunning, None, 0))),
            Origin::Started
        );
        assert_eq!(
            origin(Some(status(ContainerState::ContainerExited, None, 0))),
            Origin::Started
        );
    }

    /// A container's attempts: when each started and ended, 0 for never; the newest runs.
    fn attempts(known: &[(i64, i64)], forgotten: u32) -> Vec<cri::ContainerStatus> {
        let newest = known.len() - 1;
        let attempt = |(n, (started_at, finished_at)): (usize, &(i64, i64))| {
            let state = match n == newest {
                true => ContainerState::ContainerRunning,
                false => ContainerState::ContainerExited,
            };
            let number = forgotten + u32::try_from(n).unwrap();
            cri::ContainerStatus {
                created_at: *started_at,
                started_at: *started_at,
                finished_at: *finished_at,
                ..status(state, Some(&ours()), number)
            }
        };
        known.iter().enumerate().map(attempt).collect()
    }

    fn origins(containers: [Vec<cri::ContainerStatus>; 2]) -> Vec<Origin> {
        let named = containers.map(|attempts| ("c".to_owned(), attempts));
        let judged = judge_pod(PREFIX, &named);
        judged.iter().map(VerifiedContainer::origin).collect()
    }

    #[test]
    fn a_pod_that_was_restored_again_as_a_whole_is_restored() {
        let rebooted = [
            attempts(&[(5, 9), (20, 0)], 0),
            attempts(&[(6, 9), (22, 0)], 0),
        ];
        assert_eq!(origins(rebooted), [Origin::Restored; 2]);
        let never_ran = [attempts(&[(0, 9), (20, 0)], 0), attempts(&[(6, 0)], 0)];
        assert_eq!(origins(never_ran), [Origin::Restored; 2]);
    }

    #[test]
    fn a_container_that_went_back_alone_while_another_ran_on_is_broken() {
        let alone = [attempts(&[(5, 9), (20, 0)], 0), attempts(&[(6, 0)], 0)];
        assert_eq!(origins(alone), [Origin::Broken, Origin::Restored]);
        let forgotten = [attempts(&[(20, 0)], 1), attempts(&[(6, 0)], 0)];
        assert_eq!(origins(forgotten), [Origin::Broken, Origin::Restored]);
    }

    #[test]
    fn a_failed_restore_is_broken_and_says_how() {
        let exited = status(ContainerState::ContainerExited, Some(&ours()), 0);
        let verdict = judge("web", PREFIX, &[exited]);
        assert_eq!(verdict.origin(), Origin::Broken);
        assert!(
            verdict.detail.contains("StartError") && verdict.detail.contains("criu failed"),
            "{}",
            verdict.detail
        );
    }

    #[test]
    fn no_container_and_a_created_one_are_not_yet() {
        assert_eq!(origin(None), Origin::NotYet);
        assert_eq!(
            origin(Some(status(
                ContainerState::ContainerCreated,
                Some(&ours()),
                0
            ))),
            Origin::NotYet
        );
    }
}
