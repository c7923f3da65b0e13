//! Bringing a checkpoint back to life by image, and telling whether that is what happened.
//!
//! ```text
//!  deliver:  manifest ─► base image here? ─► packs ─► proved archive ─► image ─► registry armed ─► runtime pulled it
//!  verify:   restored from this migration's image, or started, or broken?
//!  disarm:   registry answers with the base image ─► runtime pulled that under the same name
//!  withdraw: registry answers no more ─► records gone ─► no container, no sandbox left of the pod
//! ```
//! Nothing here starts anything: the kubelet does. So a `deliver` that failed anywhere can be called failed.
//!
//! A `deliver` gives way when a newer step of its migration waits, for that is the undo. Whatever may take long is
//! abandoned then ([`unless`]): the store, the runtime's pull, its turn. What writes into the layers' folder is not: a
//! thread can't be abandoned, and one that went on would write into what the withdrawal removes.

use tokio_util::sync::CancellationToken;

use crate::{
    fetch::FetchError, gather::GatherError, images::RuntimeError, manifest::ManifestError,
    rebuild::RebuildError, registry::RegistryError, save::SaveError, store::StoreError,
    trust::TrustError,
};

pub mod image;
pub mod verify;

/// Why a checkpoint was not brought, armed, disarmed or withdrawn.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store would not.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest is not believed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Bytes did not come or are damaged.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Bytes could not be stored.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// No image could be made.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// A checkpoint's manifest.
    #[error(transparent)]
    Gather(Box<GatherError>),
    /// The keys to read it with.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The registry's state can't be kept.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The runtime would not.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The manifest belongs to something else.
    #[error("the checkpoint {key:?} is {found}, expected {expected}")]
    NotThisOne {
        /// The manifest's key.
        key: String,
        /// What it says.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// The base image is not here.
    #[error(
        "image {image} of container {container:?} is not complete on this node: {missing}; pull it again, and unset \
         discard_unpacked_layers in containerd's configuration if it is set"
    )]
    NoBaseImage {
        /// Whose.
        container: String,
        /// Name or digest.
        image: String,
        /// What lacks.
        missing: String,
    },
    /// The runtime took the image for another one.
    #[error("the runtime knows {reference} as {found}, expected {expected}")]
    OtherImage {
        /// The name.
        reference: String,
        /// Its id there.
        found: String,
        /// The id it must have.
        expected: String,
    },
    /// It was told to.
    #[error("given up, because a newer step of the migration waits for its end")]
    GaveWay,
    /// Something of the pod is still there.
    #[error("pod {uid} is not gone from this node: {what}")]
    StillThere {
        /// The pod.
        uid: String,
        /// What was seen.
        what: String,
    },
}

impl RestoreError {
    /// Nothing was wrong with it: it was told to end.
    fn gave_way(&self) -> bool {
        matches!(self, Self::GaveWay | Self::Rebuild(RebuildError::GaveWay))
    }
}

impl From<GatherError> for RestoreError {
    fn from(error: GatherError) -> Self {
        Self::Gather(Box::new(error))
    }
}

/// Waits for what may take long, unless the step is to give way. Not for what is broken when it is left half done.
pub async fn unless<T, E: Into<RestoreError>>(
    give_way: &CancellationToken,
    wait: impl Future<Output = Result<T, E>>,
) -> Result<T, RestoreError> {
    match give_way.run_until_cancelled(wait).await {
        Some(ended) => ended.map_err(Into::into),
        None => Err(RestoreError::GaveWay),
    }
}
