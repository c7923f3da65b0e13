//! Restored, or started afresh? The one question a migration must not get wrong.
//!
//! The proof is the runtime's own record. containerd writes the annotations `restored=true` and `checkpointImage` on a
//! container only in the code path that imports a checkpoint, and a container made there can only be started by a
//! restore (its stored status says so, also over a restart of containerd): it runs restored or does not run. So a
//! running container with our reference in `checkpointImage`, before which none of its pod has run, came from this
//! checkpoint and has not been restarted since. A later attempt is no success when an earlier one had run: what that
//! one did is lost. Where every earlier one is known never to have run (the kubelet tries a failed restore again), it is
//! a success, and giving it up would lose what it has done since. Known by `started_at` 0: containerd sets it last, when
//! the task runs, and leaves it alone when that fails, by a restore or not (seen with 2.1.9: 1970 beside the reason
//! StartError). Containers are told apart by label, because containerd 2.1 writes a wrong container name in the
//! annotations of restored ones.
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
    let mut containers = Vec::with_capacity(pod.containers.len());
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
        let mut judged = judge(&container.name, prefix, &statuses);
        // The runtime's, by the node's clock.
        if judged.running_since_unix_ns > 0 {
            judged.running_since_unix_ns = by_our_clock(judged.running_since_unix_ns);
        }
        containers.push(judged);
    }
    Ok(Verified { containers })
}

/// What the attempts at a container prove, the newest last. `prefix` is what references of this migration begin with.
pub fn judge(name: &str, prefix: &str, attempts: &[cri::ContainerStatus]) -> VerifiedContainer {
    let Some((status, earlier)) = attempts.split_last() else {
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
    let attempt = status
        .metadata
        .as_ref()
        .map_or(0, |metadata| metadata.attempt);
    // Records that the runtime has forgotten may be of attempts that ran.
    let all_known = usize::try_from(attempt).is_ok_and(|attempt| attempt == earlier.len());
    let is_first = all_known && earlier.iter().all(|status| status.started_at == 0);
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
    let (origin, detail) = match (status.state(), from_checkpoint, is_first) {
        (ContainerState::ContainerRunning, true, true) => (Origin::Restored, String::new()),
        (ContainerState::ContainerRunning, true, false) => (
            Origin::Broken,
            format!(
                "it was restored, ended and was restored again from the same instant: attempt {attempt}"
            ),
        ),
        (ContainerState::ContainerRunning | ContainerState::ContainerExited, false, _)
            if status.started_at > 0 =>
        {
            (
                Origin::Started,
                "it was started from its image, not restored".to_owned(),
            )
        }
        (ContainerState::ContainerExited, _, _) => {
            (Origin::Broken, why("its restore failed or it ended"))
        }
        (ContainerState::ContainerCreated, true, _) => {
            (Origin::NotYet, "its restore is under way".to_owned())
        }
        (ContainerState::ContainerCreated, false, _) => (
            Origin::NotYet,
            "it was made without the checkpoint and is not started yet".to_owned(),
        ),
        (ContainerState::ContainerRunning, false, _) => {
            (Origin::Started, "it runs, but was not restored".to_owned())
        }
        (ContainerState::ContainerUnknown, _, _) => (
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

    #[test]
    fn restored_a_second_time_is_broken_because_state_was_lost() {
        assert_eq!(
            origin(Some(status(
                ContainerState::ContainerRunning,
                Some(&ours()),
                1
            ))),
            Origin::Broken
        );
    }

    #[test]
    fn restored_at_the_second_attempt_counts_only_when_the_first_is_known_never_to_have_run() {
        let first = |started_at| cri::ContainerStatus {
            started_at,
            ..status(ContainerState::ContainerExited, Some(&ours()), 0)
        };
        let second = status(ContainerState::ContainerRunning, Some(&ours()), 1);
        let origin = |attempts: &[cri::ContainerStatus]| judge("web", PREFIX, attempts).origin();
        assert_eq!(origin(&[first(0), second.clone()]), Origin::Restored);
        assert_eq!(origin(&[first(7), second.clone()]), Origin::Broken);
        assert_eq!(origin(&[second]), Origin::Broken, "the first is forgotten");
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
