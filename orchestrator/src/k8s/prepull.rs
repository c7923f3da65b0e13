//! Gets the base images onto the target with the pod's own pull secrets, while the source still runs.
//!
//! A short-lived pod on the target, one container an image, NAME@DIGEST, a command that no image has: the kubelet pulls
//! with the secrets and the service account of the pod that moves, which we never read, and then fails to start it.
//! Whatever happens, the pod is deleted; what a crash leaves behind is found by its label.
//!
//! A kubelet whose copy of a pull secret is not there within a second pulls without it, and is refused: its registry's
//! answer is that of a wrong password. So a refusal is asked for once more, by a second pod, before it is believed.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerStatus, Pod, PodSpec, SeccompProfile, SecurityContext,
    Toleration,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use orchestrator_core::{
    id::{MigrationId, NodeName},
    plan::PlannedContainer,
};
use tokio::time::Instant;

use super::{
    call::{CallError, bounded, if_there},
    origin::pinned,
    pods::FIELD_MANAGER,
};

/// On every pull pod: the migration it serves.
pub const PREPULL_LABEL: &str = "longshore.dev/prepull";

/// No image has this program.
const IMPOSSIBLE: &str = "/longshore-only-wants-the-image";

/// Between two looks at the pull pod: an image that is there already takes the kubelet about 1 s.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A refusal comes within a second or two, and is asked for again at the same price. One that took longer was no
/// matter of the moment: a registry that is not there is not waited for twice.
const AGAIN_IF_WITHIN: Duration = Duration::from_secs(10);

/// Waiting for these, the image is not there and the kubelet has said why: it may be different the next time.
const PULLS_REFUSED: [&str; 3] = ["ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"];

/// The same, and it will never be different.
const PULLS_IMPOSSIBLE: [&str; 3] = [
    "InvalidImageName",
    "ErrImageNeverPull",
    "SignatureValidationFailed",
];

/// Waiting for these, nothing has been decided yet.
const NOT_YET: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// How the pull ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// Every image is there.
    All,
    /// The kubelet's words: it was refused.
    Refused(String),
    /// The kubelet's words: it can't.
    Not(String),
    /// Not within the time; it is given up.
    TooSlow,
}

/// What to pull, and as whom.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The pod for the target (`Plan::target_pod`): its namespace, service account and pull secrets are used.
    pub like: &'a Pod,
    /// Its containers, with their images' digests.
    pub containers: &'a [PlannedContainer],
    /// Where to.
    pub node: &'a NodeName,
    /// For whom.
    pub migration: &'a MigrationId,
}

/// Pulls, waits, and removes the pull pods. Repeating it finds the images there, or a leftover pod to wait for.
///
/// # Errors
/// When the API server gives no clear answer or does not allow the pod.
pub async fn prepull(
    client: &Client,
    wanted: &Wanted<'_>,
    patience: Duration,
) -> Result<Pulled, CallError> {
    let namespace = wanted.like.metadata.namespace.clone().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let began = Instant::now();
    let name = format!("longshore-prepull-{}", wanted.migration);
    let mut ended = pull(&pods, &pull_pod(wanted, &name), &name, patience).await;
    let mut made = vec![name];
    if let Ok(Pulled::Refused(why)) = &ended
        && began.elapsed() < AGAIN_IF_WITHIN
    {
        tracing::info!(migration = %wanted.migration, why, "the base images are pulled once more");
        // The first one stays until then: without it its kubelet would forget the secrets that it has by now.
        let name = format!("{}-again", made[0]);
        let left = patience.saturating_sub(began.elapsed());
        ended = pull(&pods, &pull_pod(wanted, &name), &name, left).await;
        made.push(name);
    }
    let mut removed = Ok(());
    for name in made {
        removed = removed.and(remove(&pods, &name).await);
    }
    let ended = ended?;
    removed?;
    Ok(ended)
}

async fn pull(
    pods: &Api<Pod>,
    pod: &Pod,
    name: &str,
    patience: Duration,
) -> Result<Pulled, CallError> {
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let made = bounded(format!("create pull pod {name}"), pods.create(&params, pod)).await;
    match made {
        Ok(_) => {}
        Err(error) if error.code() == Some(409) => {}
        Err(error) => return Err(error),
    }
    let watch = async {
        loop {
            let seen = if_there(bounded(format!("get pull pod {name}"), pods.get(name)).await)?;
            match seen.as_ref().map(progress) {
                None => {
                    return Ok(Pulled::Not(
                        "the pull pod was deleted by somebody".to_owned(),
                    ));
                }
                Some(Some(end)) => return Ok(end),
                Some(None) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    };
    tokio::time::timeout(patience, watch)
        .await
        .unwrap_or(Ok(Pulled::TooSlow))
}

/// Removes what crashed attempts of this migration left.
///
/// # Errors
/// When the API server gives no clear answer.
pub async fn remove_leftovers(
    client: &Client,
    namespace: &str,
    migration: &MigrationId,
) -> Result<(), CallError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let ours = ListParams::default().labels(&format!("{PREPULL_LABEL}={migration}"));
    let left = bounded("list pull pods", pods.list(&ours)).await?;
    for pod in left.items {
        remove(&pods, pod.metadata.name.as_deref().unwrap_or_default()).await?;
    }
    Ok(())
}

async fn remove(pods: &Api<Pod>, name: &str) -> Result<(), CallError> {
    let at_once = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    let call = pods.delete(name, &at_once);
    if_there(bounded(format!("delete pull pod {name}"), call).await).map(|_| ())
}

/// The pull pod. It runs nothing, so it is as harmless as the strictest namespace asks.
#[must_use]
pub fn pull_pod(wanted: &Wanted<'_>, name: &str) -> Pod {
    let like = wanted.like.spec.clone().unwrap_or_default();
    let Wanted {
        like: original,
        containers,
        node,
        migration,
    } = wanted;
    // One container an image: two of one image would only wait for each other.
    let images: BTreeMap<String, ()> = containers
        .iter()
        .map(|c| (pinned(&c.image, &c.image_digest), ()))
        .collect();
    let containers = images.into_keys().enumerate();
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: original.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([(
                PREPULL_LABEL.to_owned(),
                migration.0.to_string(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: containers.map(|(at, image)| container(at, image)).collect(),
            node_name: Some(node.0.clone()),
            restart_policy: Some("Never".to_owned()),
            service_account_name: like.service_account_name,
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            image_pull_secrets: like.image_pull_secrets,
            termination_grace_period_seconds: Some(0),
            tolerations: Some(vec![Toleration {
                operator: Some("Exists".to_owned()),
                ..Toleration::default()
            }]),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn container(at: usize, image: String) -> Container {
    Container {
        name: format!("image-{at}"),
        image: Some(image),
        // The worker has found the image incomplete. Its kubelet may think otherwise: the runtime's list of images can be
        // behind its content by a moment, and a layer that is missing is not in it.
        image_pull_policy: Some("Always".to_owned()),
        command: Some(vec![IMPOSSIBLE.to_owned()]),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            run_as_non_root: Some(true),
            run_as_user: Some(65_534),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// `None`: not decided yet.
#[must_use]
pub fn progress(pod: &Pod) -> Option<Pulled> {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let failed = |reasons: &[&str]| {
        let waits = |status: &ContainerStatus| waits_for(status, reasons);
        containers.iter().find_map(waits)
    };
    let ended = failed(&PULLS_IMPOSSIBLE).map(Pulled::Not);
    let ended = ended.or_else(|| failed(&PULLS_REFUSED).map(Pulled::Refused));
    if ended.is_some() {
        return ended;
    }
    let wanted = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    if containers.len() == wanted && containers.iter().all(arrived) {
        return Some(Pulled::All);
    }
    // Ended with containers that have not arrived: the kubelet did not admit it.
    (status.phase.as_deref() == Some("Failed")).then(|| {
        let words = [status.reason, status.message];
        Pulled::Not(words.into_iter().flatten().collect::<Vec<_>>().join(": "))
    })
}

fn waits_for(status: &ContainerStatus, reasons: &[&str]) -> Option<String> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.clone().unwrap_or_default();
    reasons.contains(&reason.as_str()).then(|| {
        let message = waiting.message.clone().unwrap_or_default();
        format!("{reason}: {message}")
    })
}

/// The kubelet pulls first and makes the container then: whatever it says of the container, the image is there.
fn arrived(status: &ContainerStatus) -> bool {
    let Some(state) = &status.state else {
        return false;
    };
    let waiting = state.waiting.as_ref().and_then(|w| w.reason.as_deref());
    state.running.is_some()
        || state.terminated.is_some()
        || waiting.is_some_and(|reason| !NOT_YET.contains(&reason))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::k8s::fake_api::FakeApi;

    const FIRST: &str = "longshore-prepull-m1";
    const SECOND: &str = "longshore-prepull-m1-again";

    /// Pulls one image; what the kubelet says before the calls of these numbers.
    async fn pull_with(says: &[(usize, &'static str, &'static str)]) -> (Pulled, FakeApi) {
        let api = FakeApi::default();
        for (call, pod, reason) in says.iter().copied() {
            api.before_call(call, move |objects| {
                let mut object = objects.by_name[pod].clone();
                object["status"] = json!({ "containerStatuses": [{ "name": "image-0", "image": "",
                    "imageID": "", "ready": false, "restartCount": 0, "state": waiting(reason) }] });
                objects.put(object);
            });
        }
        let wanted = Wanted {
            like: &pod_like(),
            containers: &[planned("r:5000/a:1")],
            node: &"node2".into(),
            migration: &"m1".into(),
        };
        let ended = prepull(&api.client(), &wanted, Duration::from_secs(100)).await;
        (ended.unwrap(), api)
    }

    fn pod_like() -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "kuard", "namespace": "shop" },
            "spec": { "containers": [], "serviceAccountName": "web", "imagePullSecrets": [{ "name": "key" }] },
        }))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_asked_for_once_more_before_the_first_pod_goes() {
        let (ended, api) = pull_with(&[
            (2, FIRST, "ErrImagePull"),
            (4, SECOND, "CreateContainerError"),
        ])
        .await;
        assert_eq!(ended, Pulled::All);
        let calls = api.with(|objects| objects.calls.clone());
        let expected = [
            "POST pods".to_owned(),
            format!("GET {FIRST}"),
            format!("GET {FIRST}"),
            "POST pods".to_owned(),
            format!("GET {SECOND}"),
            format!("DELETE {FIRST}"),
            format!("DELETE {SECOND}"),
        ];
        assert_eq!(calls, expected);
        let (ended, api) =
            pull_with(&[(1, FIRST, "ErrImagePull"), (3, SECOND, "ImagePullBackOff")]).await;
        let twice = "ImagePullBackOff: said the kubelet".to_owned();
        assert_eq!(ended, Pulled::Refused(twice));
        assert!(api.with(|objects| objects.by_name.is_empty()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_not_change_or_took_long_is_not_asked_for_again() {
        // A look takes a quarter of a second: the 50th is after 12 s.
        for (call, reason) in [(1, "InvalidImageName"), (50, "ErrImagePull")] {
            let (ended, api) = pull_with(&[(call, FIRST, reason)]).await;
            assert_ne!(ended, Pulled::All);
            let calls = api.with(|objects| objects.calls.clone());
            assert_eq!(calls.iter().filter(|call| *call == "POST pods").count(), 1);
            assert_eq!(calls.last(), Some(&format!("DELETE {FIRST}")));
        }
    }

    fn planned(image: &str) -> PlannedContainer {
        PlannedContainer {
            name: "a".into(),
            image: image.into(),
            image_digest: "sha256:11".into(),
            container_id: String::new(),
            sidecar: false,
        }
    }

    fn seen(states: &[Value]) -> Option<Pulled> {
        let statuses: Vec<_> = states
            .iter()
            .map(|state| {
                json!({ "name": "image-0", "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": state })
            })
            .collect();
        let pod = json!({
            "spec": { "containers": [{ "name": "image-0" }] },
            "status": { "phase": "Pending", "containerStatuses": statuses },
        });
        progress(&serde_json::from_value(pod).unwrap())
    }

    fn waiting(reason: &str) -> Value {
        json!({ "waiting": { "reason": reason, "message": "said the kubelet" } })
    }

    #[test]
    fn the_pull_pod_pulls_by_digest_as_the_pod_that_moves() {
        let wanted = Wanted {
            like: &pod_like(),
            containers: &[planned("r:5000/a:1"), planned("r:5000/a:1"), planned("b")],
            node: &"node2".into(),
            migration: &"m1".into(),
        };
        let pod = pull_pod(&wanted, FIRST);
        let spec = pod.spec.unwrap();
        let images: Vec<_> = spec
            .containers
            .iter()
            .filter_map(|c| c.image.as_deref())
            .collect();
        assert_eq!(images, ["b@sha256:11", "r:5000/a@sha256:11"], "each once");
        let policies: Vec<_> = spec
            .containers
            .iter()
            .map(|c| c.image_pull_policy.as_deref())
            .collect();
        assert_eq!(
            policies,
            [Some("Always"); 2],
            "the worker knows better than the kubelet"
        );
        assert_eq!(spec.node_name.as_deref(), Some("node2"));
        assert_eq!(spec.service_account_name.as_deref(), Some("web"));
        assert_eq!(spec.image_pull_secrets.unwrap()[0].name, "key");
        assert_eq!(pod.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(pod.metadata.labels.unwrap()[PREPULL_LABEL], "m1");
    }

    #[test]
    fn an_image_has_arrived_once_the_kubelet_tries_to_use_it() {
        assert_eq!(seen(&[]), None);
        assert_eq!(seen(&[waiting("ContainerCreating")]), None);
        for reason in [
            "CreateContainerError",
            "RunContainerError",
            "CreateContainerConfigError",
        ] {
            assert_eq!(seen(&[waiting(reason)]), Some(Pulled::All), "{reason}");
        }
        let ended = json!({ "terminated": { "exitCode": 128, "reason": "StartError" } });
        assert_eq!(seen(&[ended]), Some(Pulled::All));
    }

    #[test]
    fn a_failed_pull_is_told_in_the_kubelets_words() {
        let words = |reason: &str| format!("{reason}: said the kubelet");
        for reason in ["ErrImagePull", "ImagePullBackOff"] {
            assert_eq!(
                seen(&[waiting(reason)]),
                Some(Pulled::Refused(words(reason)))
            );
        }
        let never = "InvalidImageName";
        let both = [waiting("ErrImagePull"), waiting(never)];
        assert_eq!(seen(&both), Some(Pulled::Not(words(never))));
    }
}
