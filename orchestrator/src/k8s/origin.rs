//! Which images a pod was really made from, also after it has been moved.
//!
//! A pod restored by image names our checkpoint image in its spec. What the user wrote is kept in an annotation, so
//! that the next move, and a person who looks, goes back to that. An entry counts only while the spec still names the
//! checkpoint image it was written for: an image set by the user afterwards is the truth again.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use serde::{Deserialize, Serialize};

/// JSON, container -> [`Origin`]; on restored pods.
pub const IMAGES_ANNOTATION: &str = "longshore.dev/images";

/// What a container was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The reference the user wrote.
    pub image: String,
    /// `sha256:…`, "" when unknown.
    pub digest: String,
    /// The checkpoint image that stands in for it in the spec.
    #[serde(default)]
    pub checkpoint: String,
}

/// The annotation's content; one that can't be read says nothing.
#[must_use]
pub fn recorded(pod: &Pod) -> BTreeMap<String, Origin> {
    pod.metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(IMAGES_ANNOTATION))
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// Where this container's image came from.
#[must_use]
pub fn of(
    container: &Container,
    status: Option<&ContainerStatus>,
    recorded: &BTreeMap<String, Origin>,
) -> Origin {
    let image = container.image.clone().unwrap_or_default();
    match recorded.get(&container.name) {
        Some(origin) if origin.checkpoint == image => origin.clone(),
        Some(_) | None => Origin {
            digest: digest(&image, status.map_or("", |s| s.image_id.as_str())),
            image,
            checkpoint: String::new(),
        },
    }
}

/// `NAME@sha256:…` says it; a bare `sha256:…` is the config's digest of an image that was never pulled, and no help.
/// A reference by digest needs no status.
fn digest(image: &str, image_id: &str) -> String {
    [image_id, image]
        .iter()
        .find_map(|text| text.split_once('@'))
        .map(|(_, digest)| digest.to_owned())
        .unwrap_or_default()
}

/// The reference that can mean only one image: NAME@DIGEST. Without a digest, the reference as it is.
#[must_use]
pub fn pinned(image: &str, digest: &str) -> String {
    if digest.is_empty() {
        return image.to_owned();
    }
    let name = image.split('@').next().unwrap_or(image);
    // A colon behind the last slash begins a tag; before it, a registry's port.
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let end = name[slash..].find(':').map_or(name.len(), |at| slash + at);
    format!("{}@{digest}", &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(image: &str) -> Container {
        Container {
            name: "a".into(),
            image: Some(image.into()),
            ..Container::default()
        }
    }

    fn status(image_id: &str) -> ContainerStatus {
        ContainerStatus {
            image_id: image_id.into(),
            ..ContainerStatus::default()
        }
    }

    #[test]
    fn the_digest_is_the_one_the_runtime_resolved() {
        let none = BTreeMap::new();
        let of = |image: &str, id: &str| of(&container(image), Some(&status(id)), &none).digest;
        assert_eq!(of("r/a:1", "r/a@sha256:11"), "sha256:11");
        assert_eq!(
            of("r/a:1", "sha256:99"),
            "",
            "a config's digest is no manifest's"
        );
        assert_eq!(of("r/a@sha256:22", ""), "sha256:22");
        assert_eq!(of("r/a:1", ""), "");
    }

    #[test]
    fn a_moved_pod_goes_back_to_what_the_user_wrote() {
        let origin = Origin {
            image: "r/a:1".into(),
            digest: "sha256:11".into(),
            checkpoint: "localhost:7/c:5".into(),
        };
        let recorded = BTreeMap::from([("a".to_owned(), origin.clone())]);
        let restored = status("localhost:7/c@sha256:77");
        assert_eq!(
            of(&container("localhost:7/c:5"), Some(&restored), &recorded),
            origin
        );
        let edited = of(
            &container("r/a:2"),
            Some(&status("r/a@sha256:33")),
            &recorded,
        );
        assert_eq!(
            (edited.image.as_str(), edited.digest.as_str()),
            ("r/a:2", "sha256:33")
        );
    }

    #[test]
    fn a_pinned_reference_has_a_digest_and_no_tag() {
        assert_eq!(pinned("nginx", "sha256:1"), "nginx@sha256:1");
        assert_eq!(pinned("nginx:1.25", "sha256:1"), "nginx@sha256:1");
        assert_eq!(
            pinned("host:5000/a/b", "sha256:1"),
            "host:5000/a/b@sha256:1"
        );
        assert_eq!(
            pinned("host:5000/a/b:2", "sha256:1"),
            "host:5000/a/b@sha256:1"
        );
        assert_eq!(pinned("a:2@sha256:9", "sha256:1"), "a@sha256:1");
        assert_eq!(pinned("a:2", ""), "a:2");
    }
}
